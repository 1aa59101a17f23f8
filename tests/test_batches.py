"""batches.py: what is supervised is the answer, every epoch sees every sample, and what does not fit is named."""
from itertools import combinations

import numpy as np
import pytest
import torch

from batches import BESIDE, check, chunks, collate, draw, fingerprint, pieces, rows_of
from data import Split, Writer
from model import ExOmni, loss_counts
from tokenizer import SPEECH_ID, with_system


@pytest.fixture(scope="module")
def model(checkpoint):
    return ExOmni.from_pretrained(checkpoint)


SPOKEN = [{"role": "user", "content": [{"type": "speech"}]}]
WRITTEN = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Why?"}]


def split_of(tmp_path, *samples, **about):
    """samples: (task, messages, answer, arrays)."""
    with Writer(tmp_path) as out:
        for i, (task, messages, answer, arrays) in enumerate(samples):
            out.add({"id": f"s{i}", "task": task, "messages": messages, "answer": answer}, **arrays)
        out.finish(**about)
    return Split(tmp_path)


def units(n, largest=95):
    return np.arange(n) % (largest + 1)


def three(tmp_path):
    random = np.random.default_rng(0)
    spoken = dict(audio=random.uniform(-1, 1, 5000), units=units(5), face=np.ones((12, 52)))
    return split_of(tmp_path, ("qa", SPOKEN, "Yes.", spoken), ("chat", WRITTEN, "Because.", {}),
                    ("qa", WRITTEN, "", dict(units=units(8))))


def test_the_answer_and_its_end_are_supervised_and_nothing_else(model, tmp_path):
    split = three(tmp_path)
    batch = collate([split[i] for i in range(3)], model, ("text", "units", "face"))
    for b in range(3):
        labels, ids = batch["labels"][b], batch["input_ids"][b]
        kept = labels != -100
        assert labels[kept].tolist() == model.tokenizer.encode(split[b]["answer"]) + [model.tokenizer.im_end_id]
        assert torch.equal(labels[kept], ids[kept]), "labels stand at their ids"
        n = int(batch["mask"][b].sum())
        assert ids[:n - int(kept.sum())].tolist() == model.tokenizer.encode_chat(with_system(split[b]["messages"]))
        assert kept[:n].nonzero()[-1] == n - 1 and not kept[n:].any()
    assert (batch["input_ids"] == SPEECH_ID).sum(1).tolist() == [1, 0, 0] and batch["mel"].shape == (1, 80, 3000)
    assert batch["units"][0, :5].tolist() == [0, 1, 2, 3, 4] and (batch["units"][1] == -100).all()
    assert batch["face"].shape == (3, 12, 52) and batch["frames"].tolist() == [12, 0, 0]


def test_the_sound_is_heard_as_when_asking(model, tmp_path):
    split = three(tmp_path)
    batch = collate([split[0]], model, ("text",))
    with torch.no_grad():
        heard, = model.hear_clips([torch.from_numpy(split[0]["audio"])])
        assert torch.equal(model.hear(batch["mel"])[0], heard)


def test_with_seeds_each_clip_is_heard_in_a_voice_of_its_own_and_nothing_else_changes(model, tmp_path):
    spoken = dict(audio=np.random.default_rng(0).uniform(-1, 1, 5000))
    split = split_of(tmp_path, ("qa", WRITTEN, "Because.", {}), *[("qa", SPOKEN, "Yes.", spoken)] * 2)
    samples = [split[i] for i in range(3)]
    plain, augmented = (collate(samples, model, ("text",), seeds=seeds) for seeds in (None, [1, 2, 3]))
    assert torch.equal(plain["mel"][0], plain["mel"][1]) and not torch.allclose(*augmented["mel"])
    assert torch.equal(augmented["mel"][1], collate(samples[2:], model, ("text",), seeds=[3])["mel"][0])
    assert all(torch.equal(plain[name], augmented[name]) for name in plain if name != "mel")


def test_only_what_the_losses_need_is_there(model, tmp_path):
    split = three(tmp_path)
    samples = [split[i] for i in range(3)]
    assert "units" not in collate(samples, model, ("text",)) and "face" not in collate(samples, model, ("units",))
    assert {"units", "face"} <= collate(samples, model, ("face",)).keys()
    assert not {"mel", "units", "face"} & collate(samples[1:2], model, ("text", "units", "face")).keys()


def test_counts_are_what_the_losses_are_means_over(model, tmp_path):
    """With every loss divided by 1 the sums come out: sum / count = mean."""
    split = three(tmp_path)
    batch = collate([split[i] for i in range(3)], model, ("text", "units", "face"))
    counts = {name: int(n) for name, n in loss_counts(batch).items()}
    assert counts == {"text": 15, "text_accuracy": 15, "units": 2, "units_accuracy": 15, "face": 1}
    with torch.no_grad():
        means, sums = model(batch), model(batch, dict.fromkeys(counts, 1))
    for name, mean in means.items():
        assert sums[name].item() / counts[name] == pytest.approx(mean.item(), rel=1e-5)
    assert set(sums) == set(counts) and 0 <= sums["units_accuracy"] <= 15


def test_terms_that_are_not_asked_for_are_not_computed(model, tmp_path):
    split = three(tmp_path)
    batch = collate([split[0]], model, ("text", "units", "face"))
    with torch.no_grad():
        every = model(batch)
        for name in every:
            assert model(batch, {name: 1 if name != "text" else 5}).keys() == {name}
        assert model(batch, {"face": 1})["face"] == every["face"]


def test_every_epoch_sees_every_sample_once_in_another_order():
    rows = np.array([3, 5, 7, 11, 13])
    stream = draw(rows, 0, 0, 15)
    epochs = [stream[i:i + 5] for i in (0, 5, 10)]
    assert all(sorted(epoch) == rows.tolist() for epoch in epochs) and len(set(map(tuple, epochs))) == 3
    assert draw(rows, 0, 4, 7) == stream[4:11], "any part of the stream can be drawn"
    assert draw(rows, 1, 0, 15) != stream and draw(rows, 0, 0, 15) == stream


def test_pieces_share_out_the_batch_by_length(tmp_path):
    split = split_of(tmp_path, *[("tts", WRITTEN, "a", dict(units=units(n))) for n in (9, 1, 8, 2, 7)])
    assert pieces(split, [0, 1, 2, 3, 4], 2) == [[1, 3], [4, 2, 0]]
    assert [len(piece) for piece in pieces(split, [0, 1, 2, 3, 4], 5)] == [1] * 5
    assert chunks(split, [0, 1, 2, 3, 4], 2) == [[1, 3], [4, 2], [0]]


@pytest.mark.parametrize("lengths, count", [((3, 90, 4, 200, 5, 8, 60, 7), 3), ((150, 1, 1, 1, 1, 1, 1), 2),
                                            ((20,) * 8, 4), ((300, 1, 290, 2, 280), 4)])
def test_pieces_cost_the_least(tmp_path, lengths, count):
    """Against all ways to cut the sorted batch."""
    split = split_of(tmp_path, *[("tts", WRITTEN, "a", dict(units=units(n))) for n in lengths])
    def cost(cut):
        return sum((len(piece) * (BESIDE + max(lengths[i] for i in piece))) ** 2 for piece in cut)
    rows = sorted(range(len(lengths)), key=lambda i: lengths[i])
    ways = [[rows[i:j] for i, j in zip((0, *cut), (*cut, len(rows)))]
            for cut in combinations(range(1, len(rows)), count - 1)]
    found = pieces(split, list(range(len(lengths))), count)
    assert sum(found, []) == rows and len(found) == count
    assert cost(found) == min(map(cost, ways))


def test_speech_without_sound_is_named(model, tmp_path):
    split = split_of(tmp_path, ("qa", SPOKEN, "a", {}), ("qa", WRITTEN, "a", dict(audio=np.zeros(9))))
    for i, expected in enumerate(["s0.* 1 speech parts, expected 0", "s1.* 0 speech parts, expected 1"]):
        with pytest.raises(ValueError, match=expected):
            collate([split[i]], model, ("text",))


WRONG = {
    "an asr sample without sound": (("asr", SPOKEN, "a", {}), "s0, task asr, lacks audio"),
    "a face sample without units": (("face", WRITTEN, "a", dict(face=np.ones((12, 52)))), "s0, task face, lacks units"),
    "a qa sample with a face but no units": (("qa", WRITTEN, "a", dict(face=np.ones((12, 52)))), "task qa, lacks units"),
    "a clip longer than the window": (("asr", SPOKEN, "a", dict(audio=np.zeros(480_001))),
                                      "s0 has 30.0 s of speech.*hears 30.0 s"),
    "a face at another rate": (("face", WRITTEN, "a", dict(units=units(25), face=np.ones((61, 52)))),
                               "s0 has 61 face frames, its 25 units at 30 fps need 60"),
    "units beyond the vocabulary": (("tts", WRITTEN, "a", dict(units=units(200, 199))),
                                    "of 200 or more kinds, the checkpoint's of 96"),
}


@pytest.mark.parametrize("sample, expected", WRONG.values(), ids=WRONG)
def test_a_sample_that_does_not_fit_is_named(model, tmp_path, sample, expected):
    split = split_of(tmp_path, sample)
    with pytest.raises(ValueError, match=expected):
        check(split, rows_of(split, [sample[0]]), model)
    check(split, rows_of(split, ["chat"]), model)                   # another stage's samples do not matter


def test_units_of_another_preset_or_tokenizer_are_refused(model, checkpoint, tmp_path):
    tts = ("tts", WRITTEN, "a", dict(units=units(9)))
    own = fingerprint(checkpoint)
    for i, (about, fits) in enumerate([({}, True), ({"unit_vocab": 96, "speech_tokenizer": own}, True),
                                       ({"unit_vocab": 16384}, False), ({"speech_tokenizer": "0000abcd"}, False)]):
        split = split_of(tmp_path / str(i), tts, **about)
        if fits:
            check(split, [0], model)
        else:
            with pytest.raises(ValueError, match="made for another preset"):
                check(split, [0], model)
