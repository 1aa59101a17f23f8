"""model.py: the losses of `ExOmni.forward`, teacher forcing against decoding, and the ablations."""
import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from checkpoint import ABLATIONS
from face_decoder import frames_for_units
from model import ExOmni
from tiny_model import (CLIPS, CLOSE, CONFIG, END, PROMPTS, RATE, STOP, answer_one, answers, fresh, model, near, noise,
                        same_answer, windows_of)
from tokenizer import SPEECH_ID


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


def test_empty_replies_reach_all_of_the_generator(fresh):
    """Only the stop token: nothing to be said, and still the same parameters have gradients on every process."""
    fresh(training_batch([{"ids": [5, STOP], "n": 1}]))["units"].backward()
    for name, p in fresh.speech_generator.named_parameters():
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
    part = {"face": "face_decoder", "generator": "speech_generator"}[ABLATIONS[name]]
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


@pytest.mark.parametrize("name", ABLATIONS)
def test_without_a_part_too_padding_does_not_change_a_sample(fresh, name):
    fresh.ablate(name)
    fresh.eval()
    alone, together = [losses(fresh, s) for s in (SPOKEN, LONGER, SHORT)], losses(fresh, SPOKEN, LONGER, SHORT)
    for loss in ("units", "face"):
        assert together[loss] == near(sum(a[loss] for a in alone) / 3)
