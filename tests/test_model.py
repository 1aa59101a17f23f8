"""model.py at the tiny size with random weights: batches, teacher forcing against decoding, checkpoints."""
import dataclasses
import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.utils.rnn import pad_sequence

from checkpoint import PRESETS, official_name, our_name, preset
from decode import GREEDY
from face_decoder import frames_for_units
from model import ABLATIONS, ExOmni, SpeechProjector
from tokenizer import SPEECH_ID, Tokenizer, write_tiny
from whisper import windows


CONFIG = PRESETS["tiny"]
STOP, END = CONFIG.stop_ids[0], CONFIG.generator.unit_vocab
RATE = 16_000
# float32 sums in another order through at most six layers; seen below 1e-5 on values of order 1
CLOSE = {"atol": 1e-4, "rtol": 1e-3}


def build(seed=4, config=CONFIG) -> ExOmni:
    """Random weights that keep the size of what passes through them, so that the likeliest id is clearly so. The stop
    ids' rows are larger than the others: replies end at different times."""
    model = ExOmni(config).eval()
    torch.manual_seed(seed)
    for name, p in sorted(model.named_parameters()):
        if p.ndim == 1:
            torch.nn.init.normal_(p, mean=float(name.endswith("weight")), std=0.1)
        else:
            torch.nn.init.normal_(p, std=p[0].numel() ** -0.5)
    for table in (model.llm.embed_tokens, model.speech_generator.llm.embed_tokens, model.speech_generator.llm_embedding,
                  model.speech_generator.speech_embedding, model.face_decoder.speech_token_embedding):
        torch.nn.init.normal_(table.weight)
    model.speech_encoder.init_weights()
    if model.lm_head is not None:
        torch.nn.init.normal_(model.lm_head.weight, std=0.4)
        model.lm_head.weight.data[STOP] *= 2.5
    model.speech_generator.llm_decoder.weight.data[END] *= 2
    return model


@pytest.fixture(scope="module")
def model():
    return build()


@pytest.fixture
def fresh():
    return build()


def windows_of(waveform):
    return windows(waveform, CONFIG.speech_encoder)


def noise(seconds, seed):
    return 0.1 * torch.randn(round(seconds * RATE), generator=torch.Generator().manual_seed(seed))


# Prompts of different lengths, with speech (one clip, two clips) and without, and their clips.
PROMPTS = [[1, 2, SPEECH_ID, 3], [4, 5, 6], [7, SPEECH_ID, 8, 9, SPEECH_ID], list(range(10, 30)), [SPEECH_ID], [31, 32]]
CLIPS = [noise(1, 0), None, [noise(2, 1), noise(0.3, 2)], None, noise(3, 3), None]
LIMIT = 8


def answer_all(model, which=range(len(PROMPTS)), **options):
    options = dict(max_new_tokens=LIMIT, unit_sampler=GREEDY) | options
    return model.generate([PROMPTS[i] for i in which], [CLIPS[i] for i in which], **options)


def answer_one(model, i, **options):
    return model.generate(PROMPTS[i], CLIPS[i], **(dict(max_new_tokens=LIMIT, unit_sampler=GREEDY) | options))


@pytest.fixture(scope="module")
def answers(model):
    """The batch that several tests look at; rows end at different times, by stop id and by limit."""
    answers = answer_all(model)
    lengths, units = [len(a.text_ids) for a in answers], [len(a.units) for a in answers]
    assert len(set(lengths)) > 2 and len(set(units)) > 2, (lengths, units)
    stopped = [a.text_ids[-1] in CONFIG.stop_ids for a in answers]
    assert any(stopped) and not all(stopped), "some replies stop, some reach the limit"
    ended = [len(a.unit_states) == len(a.units) + 1 for a in answers if len(a.units)]
    assert any(ended) and not all(ended), "some rows of units end by themselves, some reach the limit"
    assert min(units) == 0, "an empty reply in the middle of the company"
    return answers


def same_answer(seen, expected):
    assert seen.text_ids == expected.text_ids
    assert seen.units.tolist() == expected.units.tolist()
    for name in ("text_states", "unit_states", "face"):
        torch.testing.assert_close(getattr(seen, name), getattr(expected, name), **CLOSE, msg=lambda text: f"{name}: {text}")


# ---------------------------------------------------------------- generation

@torch.no_grad()
def test_choices_are_decisive(model, answers):
    """What makes the exact comparisons below fair: the best id leads by far more than float noise (about 1e-5)."""
    for a in answers:
        best = model.logits(a.text_states).topk(2).values
        assert (best[:, 0] - best[:, 1]).min() > 1e-3
        if len(a.units) == 0:
            continue
        logits = model.speech_generator.llm_decoder(a.unit_states)[:, :END + 1]
        early = torch.arange(len(logits)) < 2 * len([i for i in a.text_ids if i not in CONFIG.stop_ids])
        logits[early, END] = -torch.inf
        best = logits.topk(2).values
        assert (best[:, 0] - best[:, 1]).min() > 1e-3


@pytest.mark.parametrize("row", range(len(PROMPTS)))
def test_a_batch_answers_as_one_by_one(model, answers, row):
    """Speech, several clips and text-only in one batch; rows finish early."""
    same_answer(answers[row], answer_one(model, row))


@pytest.mark.parametrize("which", ([0, 4], [1, 3, 5], [3, 2, 1]), ids=("speech", "text only", "mixed"))
def test_the_company_in_a_batch_does_not_matter(model, answers, which):
    for seen, row in zip(answer_all(model, which), which, strict=True):
        same_answer(seen, answers[row])


def test_a_batch_with_release_quirks_answers_as_one_by_one(model):
    seen = answer_all(model, [0, 1], release_quirks=True)
    for a, row in zip(seen, [0, 1], strict=True):
        same_answer(a, answer_one(model, row, release_quirks=True))


def test_answers_have_the_promised_shapes(answers):
    for a in answers:
        N, U = len(a.text_ids), len(a.units)
        words = N - (a.text_ids[-1] in CONFIG.stop_ids)
        assert a.text_states.shape == (N, CONFIG.llm.hidden_size)
        assert len(a.unit_states) in (U, U + 1) and a.unit_states.shape[1] == CONFIG.generator.llm.hidden_size
        assert a.face.shape == (frames_for_units(U), 52) and a.face.isfinite().all()
        assert 2 * words <= U <= 20 * words and (U == 0 or a.units.max() < END)
        assert a.waveform is None, "a checkpoint without a speech decoder makes no sound"
        assert {"first_text", "text", "first_unit", "units", "face"} <= a.seconds.keys()
        assert not any(t.is_cuda for t in (a.text_states, a.units, a.unit_states, a.face))


def test_the_same_seed_gives_the_same_answer_and_another_another(model):
    options = dict(temperature=1.0, top_p=0.95, max_new_tokens=4)
    def drawn(seed):
        generator = torch.Generator().manual_seed(seed)
        return [(a.text_ids, a.units.tolist()) for a in model.generate(
            [PROMPTS[1], PROMPTS[3]], None, generator=generator, **options)]
    first = drawn(1)
    torch.manual_seed(123)
    assert drawn(1) == first, "torch's own generator plays no part"
    assert drawn(2) != first
    one, two = (model.generate(PROMPTS[1], generator=torch.Generator().manual_seed(s), max_new_tokens=2) for s in (1, 2))
    assert one.text_ids == two.text_ids and one.units.tolist() != two.units.tolist(), "greedy text, sampled units"


@pytest.mark.parametrize("release_quirks", (False, True))
def test_an_empty_reply_has_no_units_and_no_face(fresh, release_quirks):
    fresh.lm_head.weight.data.zero_()
    fresh.lm_head.weight.data[STOP] = fresh.llm(torch.tensor([PROMPTS[1]])).detach()[0, -1]
    a = fresh.generate(PROMPTS[1], max_new_tokens=5, release_quirks=release_quirks)
    assert a.text_ids == [STOP] and a.text == "" and a.text_states.shape == (1, 64)
    assert a.units.shape == (0,) and a.unit_states.shape == (0, 48) and a.face.shape == (0, 52)


def test_an_empty_reply_in_a_batch_leaves_the_others_alone(fresh, monkeypatch):
    logits = fresh.logits
    def first_row_stops(states):
        out = logits(states).clone()
        out[0, STOP] = 1e4
        return out
    plain = answer_one(fresh, 3)
    monkeypatch.setattr(fresh, "logits", first_row_stops)
    empty, other = answer_all(fresh, [1, 3])
    assert empty.text_ids == [STOP] and empty.face.shape == (0, 52) and len(empty.units) == 0
    same_answer(other, plain)
    same_answer(empty, answer_one(fresh, 1))


def words_spoken(model, **options):
    """How many text ids the speech generator is given, from its limits: never ending by itself, it makes 20 a word."""
    model.speech_generator.llm_decoder.bias.data[END] = -1e4
    a = model.generate([4, 5, 6], unit_sampler=GREEDY, **options)
    return len(a.units) / 20, a.text_ids


def test_at_the_token_limit_the_last_word_is_spoken_but_not_by_the_release(fresh):
    fresh.lm_head.weight.data[list(CONFIG.stop_ids)] = 0
    spoken, ids = words_spoken(fresh, max_new_tokens=3)
    assert len(ids) == 3 and not set(ids) & set(CONFIG.stop_ids) and spoken == 3
    spoken, ids = words_spoken(fresh, max_new_tokens=3, release_quirks=True)
    assert len(ids) == 3 and spoken == 2


def test_one_new_token_is_a_reply(fresh):
    fresh.lm_head.weight.data[list(CONFIG.stop_ids)] = 0
    spoken, ids = words_spoken(fresh, max_new_tokens=1)
    assert spoken == 1 and len(ids) == 1
    assert words_spoken(fresh, max_new_tokens=1, release_quirks=True)[0] == 0


def test_prompts_may_be_tensors_and_clips_log_mels(model, answers):
    for prompt, clip in ((torch.tensor(PROMPTS[0]), windows_of(CLIPS[0])), (PROMPTS[0], CLIPS[0].numpy())):
        same_answer(model.generate(prompt, clip, max_new_tokens=LIMIT, unit_sampler=GREEDY), answers[0])


def test_long_audio_is_two_windows_of_speech_frames(model):
    wave = noise(31, 9)
    per_window = CONFIG.speech_encoder.max_source_positions // CONFIG.projector_stride
    speech, = model.encode_clips([wave])
    first, = model.encode_clips([wave[:30 * RATE]])
    assert len(first) == per_window == 300 and len(speech) == 2 * per_window
    torch.testing.assert_close(speech[:per_window], first, **CLOSE)
    ids, mask, clips = model.prompts([[1, SPEECH_ID, 2]], [wave])
    embeds, _, lengths = model.splice(ids, mask, None, model.encode_clips(clips))
    assert embeds.shape[1] == lengths.item() == 2 + 2 * per_window
    torch.testing.assert_close(embeds[0, 1:-1], speech, **CLOSE)
    long, short = (model.generate([1, SPEECH_ID, 2], clip, max_new_tokens=2, unit_sampler=GREEDY)
                   for clip in (wave, wave[:30 * RATE]))
    assert not torch.allclose(long.text_states[0], short.text_states[0], atol=1e-2), "the last second is heard"


def test_projector_lays_frames_end_to_end_and_drops_the_rest():
    torch.manual_seed(0)
    projector, x = SpeechProjector(4, 8, 6, stride=3), torch.randn(2, 11, 4)
    seen = projector(x)
    assert seen.shape == (2, 3, 6)
    one = projector.linear2(projector.linear1(torch.cat([x[1, 3], x[1, 4], x[1, 5]])).relu())
    torch.testing.assert_close(seen[1, 1], one, **CLOSE)


# ---------------------------------------------------------------- errors at the door

@pytest.mark.parametrize("prompts, clips", (
    ([[1, SPEECH_ID]], None), ([[1, SPEECH_ID]], [None]), ([[1]], [torch.ones(99)]),
    ([[SPEECH_ID, SPEECH_ID]], [torch.ones(99)]), ([[SPEECH_ID], [1]], [None, torch.ones(99)]),
    ([[SPEECH_ID], [1]], [torch.ones(99)]), ([[SPEECH_ID]], [[torch.ones(99)] * 2])))
def test_a_wrong_number_of_clips_raises(model, prompts, clips):
    with pytest.raises(ValueError, match="clips of speech"):
        model.generate(prompts, clips)


def test_a_wrong_number_of_clips_in_training_raises(model):
    ids = torch.tensor([[1, SPEECH_ID, 2]])
    with pytest.raises(ValueError, match="1 speech placeholders, 0 clips"):
        model({"input_ids": ids, "mask": ids != 0, "labels": ids.clamp(min=0)})


def test_prompts_longer_than_the_context_raise(model):
    limit = CONFIG.llm.max_position_embeddings
    with pytest.raises(ValueError, match=f"{limit + 1} tokens with its speech, the context holds {limit}"):
        model.generate([[1], [1] * (limit + 1)])
    with pytest.raises(ValueError, match=f"prompt of {limit - 5} tokens and 6 new ones are longer than the context of {limit}"):
        model.generate([1] * (limit - 5), max_new_tokens=6)


@pytest.mark.parametrize("clip, said", (
    (torch.zeros(0), "at least one sample"), (torch.full((9,), math.nan), "9 samples that are NaN"),
    (torch.zeros(2, 500), "expected"), (torch.zeros(1, 128, 3000), r"expected \(B, 80, 3000\)")))
def test_broken_sound_raises(model, clip, said):
    with pytest.raises(ValueError, match=said):
        model.generate([SPEECH_ID], clip)


def test_empty_prompts_and_chats_without_a_tokenizer_raise(model):
    for prompts in ([], [[1], []]):
        with pytest.raises(ValueError, match="empty"):
            model.generate(prompts)
    with pytest.raises(ValueError, match="no tokenizer"):
        model.generate([{"role": "user", "content": "hi"}])


@pytest.mark.parametrize("messages, options", (
    ([1, CONFIG.llm.vocab_size], {}), ([1, -5], {}), (torch.tensor([[1, 2], [3, 4]]), {}), ([1, 2], {"max_new_tokens": 0})),
    ids=("id beyond the vocabulary", "negative id", "a (B, N) tensor", "no new tokens"))
def test_what_cannot_be_answered_raises_at_the_door(model, messages, options):
    with pytest.raises(ValueError):
        model.generate(messages, **({"max_new_tokens": 1} | options))


def test_an_unknown_preset_lists_the_known_ones():
    with pytest.raises(ValueError, match="'qwen' is unknown.*qwen3-8b.*tiny"):
        preset("qwen")


# ---------------------------------------------------------------- text as it comes

@pytest.fixture
def talking(tmp_path):
    """A model with a tokenizer whose replies are mostly ASCII, and short of units to save time."""
    write_tiny(tmp_path)
    model = build()
    model.tokenizer = Tokenizer.from_pretrained(tmp_path)
    model.lm_head.weight.data[128:] *= 0.1
    model.speech_generator.llm_decoder.bias.data[END] = 1e4
    return model


def streamed(model, prompts, **options):
    pieces = [""] * len(prompts)
    def on_text(row, piece):
        assert piece
        pieces[row] += piece
    answers = model.generate(prompts, on_text=on_text, unit_sampler=GREEDY, **options)
    return pieces, [a.text for a in answers]


CHATS = [[{"role": "user", "content": text}] for text in ("hello", "tell me more", "why?")]


def test_pieces_of_text_make_the_answers_text(talking):
    pieces, texts = streamed(talking, CHATS, max_new_tokens=LIMIT)
    assert pieces == texts and all(texts) and len(set(texts)) == 3


def write(model, monkeypatch, ids):
    """Let the language model write these ids, whatever it thinks."""
    step = iter(ids)
    def logits(states):
        return torch.nn.functional.one_hot(torch.full(states.shape[:-1], next(step)), CONFIG.llm.vocab_size).float()
    monkeypatch.setattr(model, "logits", logits)


@pytest.mark.parametrize("text", ("a€b", "naïve 😀", "e\u0301", "\ufffd!", "<|im_end|>"))
def test_a_character_of_several_tokens_is_streamed_when_complete(talking, monkeypatch, text):
    ids = list(text.encode())
    write(talking, monkeypatch, ids + [STOP])
    pieces = []
    a = talking.generate(CHATS[0], max_new_tokens=30, on_text=lambda row, piece: pieces.append(piece))
    assert a.text == text == "".join(pieces) and a.text_ids == ids + [STOP]
    assert len(pieces) == len(text) or "\ufffd" in text, "a piece for each character"


@pytest.mark.parametrize("ids", (list("a€".encode()[:-1]), [97, 300], [97, 255, 98, 255]))
def test_a_reply_that_ends_in_half_a_character_is_streamed_whole(talking, monkeypatch, ids):
    """At the token limit, or with ids that have no text."""
    write(talking, monkeypatch, ids + [STOP])
    pieces = []
    a = talking.generate(CHATS[0], max_new_tokens=30, on_text=lambda row, piece: pieces.append(piece))
    assert a.text.endswith("\ufffd") and "".join(pieces) == a.text


# ---------------------------------------------------------------- training

def training_batch(samples):
    """samples: dicts of ids, n (prompt length), clips, units or None, face or None -> a padded batch."""
    ids = [torch.tensor(s["ids"]) for s in samples]
    labels = [row.masked_fill(torch.arange(len(row)) < s["n"], -100) for row, s in zip(ids, samples)]
    mels = [windows_of(clip) for s in samples for clip in s.get("clips", [])]
    batch = {"input_ids": pad_sequence(ids, batch_first=True),
             "labels": pad_sequence(labels, batch_first=True, padding_value=-100),
             "mask": pad_sequence([torch.ones(len(row), dtype=torch.bool) for row in ids], batch_first=True),
             "mel": torch.cat(mels) if mels else None}
    empty = torch.zeros(0, 52)
    batch["units"] = pad_sequence([torch.as_tensor(s.get("units", []), dtype=torch.long) for s in samples], batch_first=True,
                                  padding_value=-100)
    batch["face"] = pad_sequence([s.get("face", empty) for s in samples], batch_first=True)
    batch["frames"] = torch.tensor([len(s.get("face", empty)) for s in samples])
    return batch


def sample(seed, prompt, reply, units, clips=(), face=True):
    g = torch.Generator().manual_seed(seed)
    words = torch.randint(0, 256, (reply,), generator=g).tolist() + [STOP]
    s = {"ids": list(prompt) + words, "n": len(prompt), "clips": clips,
         "units": torch.randint(0, END, (units,), generator=g)}
    return s | ({"face": torch.rand(int(frames_for_units(units)), 52, generator=g)} if face and units else {})


SPOKEN = sample(1, [1, SPEECH_ID, 2], 3, 13, [noise(1, 5)])
LONGER = sample(2, range(40), 9, 31, face=True)
SHORT = sample(3, [5], 1, 5)
TEXT_ONLY = sample(4, [6, SPEECH_ID], 6, 0, [noise(1, 6)])


def losses(model, *samples):
    with torch.no_grad():
        return {k: v.item() for k, v in model(training_batch(samples)).items()}


def near(value):
    return pytest.approx(value, rel=1e-4)              # float32 sums in another order


def test_losses_are_finite_and_reach_every_part(fresh):
    fresh.train()
    out = fresh(training_batch([SPOKEN, LONGER, SHORT, TEXT_ONLY]))
    assert out.keys() == {"text", "units", "face"} and all(loss.ndim == 0 and loss.isfinite() for loss in out.values())
    sum(out.values()).backward()
    for name, p in fresh.named_parameters():
        if name == "speech_encoder.embed_positions.weight":
            assert p.grad is None
        else:
            assert p.grad is not None and p.grad.isfinite().all() and p.grad.abs().max() > 0, name


def test_each_loss_trains_what_comes_before_it(fresh):
    batch = training_batch([SPOKEN, SHORT])
    parts = lambda: {n.split(".")[0] for n, p in fresh.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    before = {"speech_encoder", "speech_projector", "llm"}
    for name, reached in (("text", before | {"lm_head"}), ("units", before | {"speech_generator"}),
                          ("face", before | {"speech_generator", "face_decoder"})):
        fresh.zero_grad(set_to_none=True)
        fresh(batch)[name].backward()
        assert parts() == reached, name


def test_the_text_loss_is_the_mean_over_supervised_tokens(model):
    ids = torch.tensor([SHORT["ids"]])
    log_probs = model.logits(model.llm(ids)).log_softmax(-1)[0]
    expected = -torch.stack([log_probs[0, ids[0, 1]], log_probs[1, STOP]]).mean()
    assert losses(model, SHORT)["text"] == near(expected.item())


def test_padding_the_batch_does_not_change_the_losses(model):
    rows = [SPOKEN, LONGER, SHORT]
    alone, together = [losses(model, s) for s in rows], losses(model, *rows)
    tokens = [len(s["ids"]) - s["n"] for s in rows]
    assert together["text"] == near(sum(n * a["text"] for n, a in zip(tokens, alone)) / sum(tokens))     # mean over tokens
    for name in ("units", "face"):
        assert together[name] == near(sum(a[name] for a in alone) / 3)                                  # mean over samples


def test_rows_without_units_or_face_do_not_contribute(model):
    alone = losses(model, LONGER)
    together = losses(model, LONGER, TEXT_ONLY)
    assert together["units"] == near(alone["units"]) and together["face"] == near(alone["face"])
    assert together["text"] != near(alone["text"])
    faceless = {k: v for k, v in SHORT.items() if k != "face"}
    together = losses(model, LONGER, faceless)
    assert together["face"] == near(alone["face"])
    assert together["units"] == near((alone["units"] + losses(model, SHORT)["units"]) / 2)
    nothing = losses(model, TEXT_ONLY)
    assert nothing["units"] == nothing["face"] == 0 and nothing["text"] > 0


def test_a_batch_without_units_or_face_has_no_such_loss(model):
    batch = training_batch([SPOKEN, SHORT])
    full = model(batch)
    assert model(batch | {"face": None}).keys() == {"text", "units"}
    only = model({k: v for k, v in batch.items() if k not in ("units", "face", "frames")})
    assert only.keys() == {"text"} and only["text"].item() == near(full["text"].item())


def test_stop_ids_between_two_supervised_replies_are_no_words(model):
    calls = {}
    hook = model.speech_generator.register_forward_hook(lambda _, args, out: calls.update(text_ids=args[2]))
    words = {"ids": [1, 2, 10, 11, STOP, 3, 4, 12, STOP], "n": 2, "units": [1, 2, 3]}
    batch = training_batch([words])
    batch["labels"][0, 5:7] = -100                     # the second question
    model(batch)
    hook.remove()
    assert calls["text_ids"][0][:3].tolist() == [10, 11, 12], "the generator takes the first 3 ids, each a word"


def test_every_part_runs_with_weight_zero_where_a_batch_has_nothing_for_it(fresh):
    """Several processes must run the same modules: one silent window, no units and no frames still reach every part."""
    plain = training_batch([{"ids": SHORT["ids"], "n": SHORT["n"]}])
    silent = plain | {"mel": windows_of(torch.zeros(RATE))}
    assert silent["units"].shape == (1, 0) and silent["face"].shape[:2] == (1, 0)
    out = fresh(silent)
    assert out["text"].item() == near(losses(fresh, {"ids": SHORT["ids"], "n": SHORT["n"]})["text"])
    assert out["units"].item() == out["face"].item() == 0
    sum(out.values()).backward()
    for part in (fresh.speech_projector, fresh.speech_generator.llm, fresh.face_decoder):
        for name, p in part.named_parameters():
            assert p.grad is not None and not p.grad.any(), name


def test_a_batch_without_supervised_text_has_finite_losses(model):
    batch = training_batch([SHORT])
    batch["labels"][:] = -100
    assert all(loss.isfinite() for loss in model(batch).values())


def test_what_stands_in_the_padding_does_not_matter(model):
    batch = training_batch([SPOKEN, LONGER])
    expected = {k: v.item() for k, v in model(batch).items()}
    batch["input_ids"] = batch["input_ids"].masked_fill(~batch["mask"], 77)
    past = torch.arange(batch["face"].shape[1]) >= batch["frames"][:, None]
    batch["face"] = batch["face"].masked_fill(past[..., None], 50.0)
    assert {k: v.item() for k, v in model(batch).items()} == near(expected)


def test_teacher_forcing_sees_what_decoding_saw(model, answers):
    """The same context, the same text, the same states, the same faces: for replies that stopped and that were cut."""
    calls = {}
    hooks = [model.speech_generator.register_forward_hook(lambda _, args, out: calls.update(args=args, out=out)),
             model.face_decoder.register_forward_hook(lambda _, args, out: calls.update(face=out))]
    clips = [[] if c is None else c if isinstance(c, list) else [c] for c in CLIPS]
    batch = training_batch([{"ids": p + a.text_ids, "n": len(p), "clips": c, "units": a.units, "face": a.face}
                            for p, c, a in zip(PROMPTS, clips, answers)])
    with torch.no_grad():
        model(batch)
    for hook in hooks:
        hook.remove()
    assert len(calls) == 3
    context, mask, text_ids, _ = calls["args"]
    for b, a in enumerate(answers):
        assert int(mask[b].sum()) == len(a.text_ids)
        torch.testing.assert_close(context[b, mask[b]], a.text_states, **CLOSE)
        assert text_ids[b][text_ids[b] >= 0].tolist() == [i for i in a.text_ids if i not in CONFIG.stop_ids]
        states = calls["out"].states[b, calls["out"].mask[b]]
        assert len(states) == len(a.units) + 1
        torch.testing.assert_close(states[:len(a.unit_states)], a.unit_states, **CLOSE)
        if len(a.unit_states) == len(states):           # cut at the limit, decoding had one state less to show the face
            torch.testing.assert_close(calls["face"][b, :len(a.face)], a.face, **CLOSE)


def test_the_generators_loss_is_that_of_its_targets(model, answers):
    """From the states that decoding recorded: the mean over the units and the end."""
    a = next(a for a in answers if len(a.units) and len(a.unit_states) == len(a.units) + 1)
    row = next(i for i in range(len(answers)) if answers[i] is a)
    clips = CLIPS[row] if isinstance(CLIPS[row], list) else [CLIPS[row]] if CLIPS[row] is not None else []
    seen = losses(model, {"ids": PROMPTS[row] + a.text_ids, "n": len(PROMPTS[row]), "clips": clips, "units": a.units})
    with torch.no_grad():
        log_probs = model.speech_generator.llm_decoder(a.unit_states).log_softmax(-1)
    targets = torch.cat([a.units, torch.tensor([END])])
    assert seen["units"] == near(-log_probs[torch.arange(len(targets)), targets].mean().item())


# ---------------------------------------------------------------- ablations

@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_changes_its_part_trains_answers_and_is_kept(fresh, tmp_path, name):
    """The part keeps what it can; all that is left of it is trained; a checkpoint remembers what was left out."""
    part = ABLATIONS[name]
    batch, before = training_batch([SPOKEN, SHORT]), {k: v.clone() for k, v in fresh.state_dict().items()}
    expected = {loss: value.item() for loss, value in fresh(batch).items()}
    fresh.ablate(name)
    out = fresh(batch)
    assert out["text"].item() == near(expected["text"]) and out[LOSS[part]].item() != near(expected[LOSS[part]])
    sum(out.values()).backward()
    assert all(p.grad is not None for p in getattr(fresh, part).parameters()), "nothing is built that is not used"
    changed = [k for k, v in fresh.state_dict().items() if k not in before or not torch.equal(v, before[k])]
    assert all(k.startswith(part) for k in changed) and bool(changed) == (name in ("speech-context", "tqgf", "generator-tqgf"))
    fresh.eval().save_pretrained(tmp_path)
    again = ExOmni.from_pretrained(tmp_path)
    assert again.config == fresh.config
    same_answer(answer_one(again, 1), answer_one(fresh, 1))


LOSS = {"face_decoder": "face", "speech_generator": "units"}


# ---------------------------------------------------------------- checkpoints

@pytest.fixture(scope="module")
def saved(tmp_path_factory, model):
    directory = tmp_path_factory.mktemp("saved")
    model.save_pretrained(directory)
    return directory


def copied(saved, directory, change):
    """A copy of the checkpoint with its tensors changed by change(dict)."""
    tensors = load_file(saved / "model.safetensors")
    tensors = change(tensors) or tensors
    save_file(tensors, directory / "model.safetensors")
    for name in ("config.json", "generation_config.json"):
        (directory / name).write_bytes((saved / name).read_bytes())
    return directory


def same_weights(seen, expected):
    state = seen.state_dict()
    assert state.keys() == expected.state_dict().keys()
    assert all(torch.equal(state[name], t) for name, t in expected.state_dict().items())


def test_a_checkpoint_says_how_units_are_drawn(tmp_path):
    """By default sampled; greedily where generation_config.json says so."""
    for greedy in (True, False):
        model = build(config=dataclasses.replace(CONFIG, greedy_units=greedy))
        model.save_pretrained(tmp_path / str(greedy))
        again = ExOmni.from_pretrained(tmp_path / str(greedy))
        assert again.config.greedy_units is greedy
        drawn = [again.generate([4, 5, 6], max_new_tokens=8, generator=torch.Generator().manual_seed(seed)).units.tolist()
                 for seed in range(3)]
        likeliest = again.generate([4, 5, 6], max_new_tokens=8, unit_sampler=GREEDY).units.tolist()
        assert (drawn == 3 * [likeliest]) == greedy


def test_a_saved_model_comes_back_and_answers_the_same(model, answers, saved, tmp_path):
    again = ExOmni.from_pretrained(saved)
    assert again.config == CONFIG and not again.training
    same_weights(again, model)
    same_answer(answer_one(again, 0), answers[0])
    again.save_pretrained(tmp_path / "twice")
    for name in ("model.safetensors", "config.json", "generation_config.json"):
        assert (tmp_path / "twice" / name).read_bytes() == (saved / name).read_bytes()


def test_the_tokenizer_goes_along(model, saved, tmp_path):
    directory = tmp_path / "one"
    directory.mkdir()
    write_tiny(copied(saved, directory, lambda t: t))
    ExOmni.from_pretrained(directory).save_pretrained(tmp_path / "two")
    assert ExOmni.from_pretrained(tmp_path / "two").tokenizer.encode("hi") == [104, 105]


def test_the_file_has_the_official_names(saved):
    names = set(load_file(saved / "model.safetensors"))
    for name in ("model.embed_tokens.weight", "lm_head.weight", "model.layers.1.self_attn.q_norm.weight", "model.norm.weight",
                 "model.speech_encoder.model.encoder.conv1.bias", "model.speech_encoder.model.encoder.embed_positions.weight",
                 "model.speech_encoder.model.encoder.layers.0.self_attn.k_proj.weight",
                 "model.speech_projector.linear2.bias", "model.speech_generator.input_proj.2.weight",
                 "model.speech_generator.tqgf.layers.0.0.gate_proj.weight", "model.speech_generator.tqgf.layers.1.1.3.weight",
                 "model.speech_generator.llm.model.model.layers.0.self_attn.q_proj.weight",
                 "model.speech_generator.llm.model.model.embed_tokens.weight", "model.speech_generator.llm_decoder.bias",
                 "model.speech_generator.llm_embedding.weight", "model.speech_generator.speech_embedding.weight",
                 "model.blendshape_generator.speech_token_projection.weight", "model.blendshape_generator.out_head.4.weight",
                 "model.blendshape_generator.transformer_encoder.transformer_encoder.layers.1.self_attn.in_proj_weight",
                 "model.blendshape_generator.tqgf.norm.bias"):
        assert name in names, name
    assert not [n for n in names if "qkv" in n or "gate_up" in n or "inv_freq" in n or "speech_decoder" in n]


def test_names_map_there_and_back(model):
    for name in model.state_dict():
        assert our_name(official_name(name), tied=False) == name


PARTS = ("speech_encoder.", "speech_projector.", "speech_generator.", "blendshape_generator.")


@pytest.mark.parametrize("prefix", ("model.model.", ""))
def test_prefixed_variants_load(model, saved, tmp_path, prefix):
    def change(tensors):
        return {prefix + n.removeprefix("model.") if n.startswith(tuple("model." + p for p in PARTS)) else n: t
                for n, t in tensors.items()}
    directory = copied(saved, tmp_path, change)
    assert any(n.startswith(prefix + "speech_projector.") for n in load_file(directory / "model.safetensors"))
    same_weights(ExOmni.from_pretrained(directory), model)


def test_what_the_release_saves_without_need_is_ignored(model, saved, tmp_path):
    unused = {"model.blendshape_generator.rope.inv_freq": torch.ones(24),
              "model.blendshape_generator.transformer_encoder.rope.inv_freq": torch.ones(24),
              "model.speech_generator.llm.model.lm_head.weight": torch.ones(320, 48),
              "model.speech_encoder.model.decoder.layers.0.fc1.weight": torch.ones(2, 2)}
    again = ExOmni.from_pretrained(copied(saved, tmp_path, lambda tensors: tensors | unused))
    same_weights(again, model)
    assert "ignored 4" in again.summary and "inv_freq" in again.summary


def test_a_tied_output_matrix_is_not_stored_and_a_stored_copy_is_ignored(tmp_path):
    config = dataclasses.replace(CONFIG, llm=dataclasses.replace(CONFIG.llm, tie_word_embeddings=True))
    tied = build(config=config)
    tied.speech_generator.llm_decoder.bias.data[END] = 1e4     # few units, to save time
    one, two = tmp_path / "one", tmp_path / "two"
    two.mkdir()
    tied.save_pretrained(one)
    assert "lm_head.weight" not in load_file(one / "model.safetensors")
    copied(one, two, lambda tensors: tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()})
    for directory in (one, two):
        again = ExOmni.from_pretrained(directory)
        same_weights(again, tied)
        assert again.generate([1, 2], max_new_tokens=3, unit_sampler=GREEDY).text_ids == \
            tied.generate([1, 2], max_new_tokens=3, unit_sampler=GREEDY).text_ids


@pytest.mark.parametrize("name", ("model.layers.0.self_attn.v_proj.weight", "model.speech_projector.linear1.bias",
                                  "lm_head.weight"))
def test_a_missing_tensor_is_named(saved, tmp_path, name):
    directory = copied(saved, tmp_path, lambda tensors: {n: t for n, t in tensors.items() if n != name})
    with pytest.raises(ValueError, match="1 missing") as caught:
        ExOmni.from_pretrained(directory)
    assert our_name(name, tied=False) in str(caught.value) or name in str(caught.value)


def test_a_wrong_shape_is_named(saved, tmp_path):
    name = "model.speech_generator.llm_decoder.weight"
    directory = copied(saved, tmp_path, lambda tensors: tensors | {name: torch.zeros(5, 48)})
    with pytest.raises(ValueError, match=rf"1 not fitting: {name} is \[5, 48\], expected \[99, 48\]"):
        ExOmni.from_pretrained(directory)


@pytest.mark.parametrize("name", ("model.layers.2.self_attn.q_proj.weight", "model.speech_generator.extra.weight", "other"))
def test_a_left_over_tensor_is_named(saved, tmp_path, name):
    directory = copied(saved, tmp_path, lambda tensors: tensors | {name: torch.zeros(2)})
    with pytest.raises(ValueError, match=f"1 left over: {name}"):
        ExOmni.from_pretrained(directory)


def test_a_checkpoint_without_weights_or_config_says_so(saved, tmp_path):
    with pytest.raises(FileNotFoundError, match="not a directory"):
        ExOmni.from_pretrained(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="config.json"):
        ExOmni.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_bytes((saved / "config.json").read_bytes())
    with pytest.raises(FileNotFoundError, match="no model"):
        ExOmni.from_pretrained(tmp_path)


def test_shards_are_written_read_and_replaced(model, saved, tmp_path, monkeypatch):
    monkeypatch.setattr("checkpoint.SHARD_BYTES", 200_000)
    model.save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 3 and not (tmp_path / "model.safetensors").exists()
    same_weights(ExOmni.from_pretrained(tmp_path), model)
    monkeypatch.undo()
    model.save_pretrained(tmp_path)
    assert [p.name for p in tmp_path.glob("*.safetensors")] == ["model.safetensors"]
    same_weights(ExOmni.from_pretrained(tmp_path), model)


def test_bfloat16_answers_with_speech_and_face(saved):
    half = ExOmni.from_pretrained(saved, dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    for a in answer_all(half, [0, 1], max_new_tokens=4):
        assert a.text_ids and a.face.isfinite().all() and a.face.shape == (frames_for_units(len(a.units)), 52)


def test_bfloat16_states_are_close_to_float32(model, saved):
    half = ExOmni.from_pretrained(saved, dtype=torch.bfloat16)
    with torch.no_grad():
        mel, ids = windows_of(CLIPS[0]), torch.tensor([PROMPTS[3]])
        for seen, exact in ((half.encode_speech(mel), model.encode_speech(mel)), (half.llm(ids), model.llm(ids))):
            assert (seen.float() - exact).norm() / exact.norm() < 0.05      # some dozen roundings of 2^-8
