"""model.py at the tiny size with random weights: batches and single prompts, errors, text as it comes."""
import dataclasses
import math

import pytest
import torch

import speech_generator
from checkpoint import preset
from decode import GREEDY
from face_decoder import frames_for_units
from model import SpeechProjector
from tokenizer import SPEECH_ID, Tokenizer
from tokenizer_files import write_tiny
from tiny_model import (CLIPS, CLOSE, CONFIG, END, LIMIT, PROMPTS, RATE, STOP, answer_all, answer_one, answers, build, fresh,
                        model, noise, same_answer, windows_of)


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


def test_a_clip_longer_than_the_context_raises_before_it_is_encoded(fresh, monkeypatch):
    monkeypatch.setattr(fresh, "encode_speech", lambda mel: pytest.fail("it was encoded"))
    fresh.config = dataclasses.replace(CONFIG, llm=dataclasses.replace(CONFIG.llm, max_position_embeddings=700))
    with pytest.raises(ValueError, match="a clip of 90 s is too long, at most 60 s fit"):
        fresh.generate([SPEECH_ID], torch.zeros(61 * RATE))


def test_what_cannot_be_spoken_raises_at_the_door_and_units_are_bounded(fresh, monkeypatch):
    fresh.lm_head.weight.data[list(CONFIG.stop_ids)] = 0
    with pytest.raises(ValueError, match="1365 tokens is too long to be spoken, expected at most 1364"):
        fresh.generate([1, 2], max_new_tokens=1365)
    monkeypatch.setattr(speech_generator, "LONGEST", 50)
    assert words_spoken(fresh, max_new_tokens=3)[0] == 50 / 20, "60 without the bound"


@pytest.mark.parametrize("part, named", (
    ("speech_encoder.layers.0.fc1.weight", "the speech encoder"),
    ("speech_projector.linear2.bias", "the speech encoder"),
    ("llm.layers.1.mlp.down_proj.weight", "the language model"), ("lm_head.weight", "the language model"),
    ("speech_generator.input_proj.0.weight", "the speech generator"),
    ("speech_generator.llm_decoder.weight", "the speech generator"), ("face_decoder.out_head.1.bias", "the face")))
@pytest.mark.parametrize("value", (math.nan, math.inf))
def test_the_first_part_whose_numbers_are_not_finite_is_named(fresh, part, named, value):
    fresh.get_parameter(part).data.flatten()[3:5] = value
    fresh.lm_head.weight.data[list(CONFIG.stop_ids)] = 0                        # no empty reply
    with pytest.raises(ValueError, match=f"^{named}: .*NaN or infinite.*weights"):
        fresh.generate([1, SPEECH_ID, 2], noise(1, 0), max_new_tokens=3, unit_sampler=GREEDY)


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


def test_the_probability_of_a_reply_is_that_of_its_ids(model):
    """As a forward pass without a cache gives it, the id that stops included."""
    answer = model.generate(PROMPTS[1], max_new_tokens=LIMIT, unit_sampler=GREEDY)
    ids = torch.tensor([PROMPTS[1] + answer.text_ids])
    with torch.no_grad():
        logits = model.logits(model.llm(embeds=model.llm.embed_tokens(ids)))[0].log_softmax(-1)
    first = len(PROMPTS[1])
    expected = sum(logits[n - 1, ids[0, n]] for n in range(first, ids.shape[1])).exp()
    assert answer.confidence == pytest.approx(float(expected), rel=1e-4)       # float32 sums in another order
