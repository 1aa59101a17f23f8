"""data.py: what is written is what is read, damage is noticed, and what is supervised is the answer."""
import json
import os
import time

import numpy as np
import pytest
import torch

import prepared
from data import Split, Writer, check, chunks, collate, fingerprint, rows_of
from loading import mixed_rows, sample_order
from model import ExOmni, loss_counts
from tokenizer import SPEECH_ID, with_system


def sample(n, seed=0):
    random = np.random.default_rng((seed, n))
    return ({"id": f"s{n}", "task": "qa", "messages": [{"role": "user", "content": f"say {n}"}], "answer": f"{n} é"},
            {"audio": random.uniform(-1, 1, 100 + n).astype(np.float32), "units": random.integers(0, 16384, 5 + n),
             "face": random.random((12 + n, 52)).astype(np.float32)})


def write(directory, numbers=range(4), finish=True):
    with Writer(directory) as out:
        for n in numbers:
            row, arrays = sample(n)
            if row["id"] not in out:
                out.add(row, **arrays)
        if finish:
            finish(out) if callable(finish) else out.finish(tokenizer="abc")


def test_what_is_written_is_what_is_read(tmp_path):
    write(tmp_path)
    split = Split(tmp_path, verify=True)
    assert len(split) == 4 and split.manifest["tokenizer"] == "abc"
    for n in (2, 0, 3):
        row, arrays = sample(n)
        got = split[n]
        assert {key: got[key] for key in row} == row
        np.testing.assert_array_equal(got["units"], arrays["units"])
        assert np.abs(got["audio"] - arrays["audio"]).max() <= 0.5 / 32767 * 1.001             # half a step of 16 bits
        assert np.abs(got["face"] - arrays["face"]).max() <= 2 ** -12                          # half a step below 1
        assert got["audio"].dtype == got["face"].dtype == np.float32 and got["units"].dtype == np.int64


def test_samples_share_an_answer_and_may_lack_arrays(tmp_path):
    with Writer(tmp_path) as out:
        row, arrays = sample(0)
        first = out.add(row, **arrays)
        out.add(row | {"id": "again"}, units=first["units"], face=first["face"])
        out.add({"id": "words", "task": "chat", "messages": [], "answer": "Hi."})
        out.finish()
    split = Split(tmp_path)
    np.testing.assert_array_equal(split[1]["units"], split[0]["units"])
    assert split[1]["audio"] is None and split[2]["units"] is None and split[2]["face"] is None
    assert (tmp_path / "units.u16").stat().st_size == 2 * len(arrays["units"])


@pytest.mark.parametrize("spoil", ["whole", "half a row", "half an array", "array without a row"])
def test_an_interrupted_writer_goes_on_and_ends_with_the_same_bytes(tmp_path, spoil):
    write(tmp_path / "at once")
    write(tmp_path / "broken", range(2), finish=False)
    rows = tmp_path / "broken" / "samples.jsonl"
    if spoil == "half a row":
        rows.write_bytes(rows.read_bytes()[:-9])
    elif spoil == "half an array":
        path = tmp_path / "broken" / "face.f16"
        path.write_bytes(path.read_bytes()[:-7])
    elif spoil == "array without a row":
        with open(tmp_path / "broken" / "audio.i16", "ab") as file:
            file.write(b"123")
    with pytest.raises(FileNotFoundError, match="no manifest.json"):
        Split(tmp_path / "broken")
    write(tmp_path / "broken")
    for file in (tmp_path / "at once").iterdir():
        assert (tmp_path / "broken" / file.name).read_bytes() == file.read_bytes(), file.name


def test_damage_is_noticed(tmp_path):
    write(tmp_path)
    path = tmp_path / "units.u16"
    whole = path.read_bytes()
    path.write_bytes(whole[:-2])
    with pytest.raises(ValueError, match=f"has {len(whole) - 2} bytes, expected {len(whole)}"):
        Split(tmp_path)
    path.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    with pytest.raises(ValueError, match="checksum differs"):
        Split(tmp_path, verify=True)
    path.unlink()
    with pytest.raises(ValueError, match="has no bytes"):
        Split(tmp_path)
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 2}))
    with pytest.raises(ValueError, match="format 2, expected 1"):
        Split(tmp_path)


def flip(directory, name, *places):
    """Change bytes of a file; its size stays."""
    content = bytearray((directory / name).read_bytes())
    for at in places:
        content[at] ^= 255
    (directory / name).write_bytes(content)


def edit_manifest(directory, edit):
    manifest = json.loads((directory / "manifest.json").read_text())
    edit(manifest)
    (directory / "manifest.json").write_text(json.dumps(manifest))


def edit_row(directory, edit, number=2):
    """Change the row of a line, and the manifest so that it fits: whoever does this means it."""
    path = directory / "samples.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    row = json.loads(lines[number - 1])
    lines[number - 1] = edit(row) or json.dumps(row).encode() + b"\n"
    path.write_bytes(b"".join(lines))
    restate(directory, "samples.jsonl")


def restate(directory, name):
    """The manifest states the size and checksum that a file has."""
    path = directory / name
    true = {"bytes": path.stat().st_size, "crc32": prepared.checksum(path)}
    edit_manifest(directory, lambda m: m["files"][name].update(true))


def cut_with_edited_sizes(directory):
    for name, width in (("audio.i16", 2), ("units.u16", 2), ("face.f16", 104)):
        path = directory / name
        os.truncate(path, path.stat().st_size // 2 // width * width)
        edit_manifest(directory, lambda m: m["files"][name].update(bytes=path.stat().st_size))


def spoilt(name, value):
    """A value of one sample's array is another, and the checksum is right."""
    def harm(directory):
        array = np.memmap(directory / prepared.ARRAYS[name][0], prepared.ARRAYS[name][1], "r+")
        array[300 if name == "face" else 7] = value         # of s0 is the first, of s1 the second
        array.flush()
        restate(directory, prepared.ARRAYS[name][0])
    return harm


ROW = "samples.jsonl line 2"
DAMAGES = {
    "forty flipped bytes": (lambda d: flip(d, "audio.i16", *range(80, 120)), "audio.i16 is damaged"),
    "a flipped byte of a face": (lambda d: flip(d, "face.f16", 11), "face.f16 is damaged"),
    "a wrong crc": (lambda d: edit_manifest(d, lambda m: m["files"]["units.u16"].update(crc32=1)), "u16 is damaged"),
    "a crc in words": (lambda d: edit_manifest(d, lambda m: m["files"]["units.u16"].update(crc32="1")),
                       "field files.units.u16.crc32 is '1', expected a whole number"),
    "no size": (lambda d: edit_manifest(d, lambda m: m["files"]["face.f16"].pop("bytes")), "files.face.f16.bytes"),
    "no entry": (lambda d: edit_manifest(d, lambda m: m["files"].pop("face.f16")), "field files.face.f16 is missing"),
    "no files": (lambda d: edit_manifest(d, lambda m: m.update(files=[])), "field files is a list"),
    "another count": (lambda d: edit_manifest(d, lambda m: m.update(samples=3)), "has 4 samples, its manifest says 3"),
    "a vocabulary of nothing": (lambda d: edit_manifest(d, lambda m: m.update(unit_vocab=0)), "field unit_vocab is 0"),
    "a manifest of a list": (lambda d: (d / "manifest.json").write_text("[]"), "expected an object"),
    "a cut tail": (cut_with_edited_sizes, "samples.jsonl line 3, sample s2: audio is"),
    "a cut row": (lambda d: os.truncate(d / "samples.jsonl", 200), ROW),
    "no rows": (lambda d: (d / "samples.jsonl").unlink(), "samples.jsonl not found"),
    "a directory": (lambda d: ((d / "face.f16").unlink(), (d / "face.f16").mkdir()), "face.f16 is a directory"),
    "half a frame": (lambda d: (os.truncate(d / "face.f16", 105), restate(d, "face.f16")), "a multiple of 104"),
    "no json": (lambda d: edit_row(d, lambda row: b"{'id': 1}\n"), f"{ROW} is not json"),
    "deep json": (lambda d: edit_row(d, lambda row: b"[" * 100_000 + b"\n"), f"{ROW} is not json"),
    "a key twice": (lambda d: edit_row(d, lambda row: json.dumps(row)[:-1].encode() + b', "answer": "no"}\n'),
                    f"{ROW} is not json (it has 'answer' twice in one object)"),
    "no object": (lambda d: edit_row(d, lambda row: b"3\n"), f"{ROW} is not a json object"),
    "no id": (lambda d: edit_row(d, lambda row: row.pop("id") and None), f"{ROW}: field id is missing"),
    "an id twice": (lambda d: edit_row(d, lambda row: row.update(id="s0")), f"{ROW}, sample s0: an earlier line has"),
    "no task": (lambda d: edit_row(d, lambda row: row.pop("task") and None), "sample s1: field task is missing"),
    "an unknown task": (lambda d: edit_row(d, lambda row: row.update(task="sing")), "sample s1: field task is 'sing'"),
    "no text": (lambda d: edit_row(d, lambda row: row.update(answer=None)), "sample s1: field answer is None"),
    "messages of text": (lambda d: edit_row(d, lambda row: row.update(messages="hi")), "field messages is 'hi'"),
    "a message of nobody": (lambda d: edit_row(d, lambda row: row.update(messages=[{"role": "me"}])), "whose role is"),
    "a negative start": (lambda d: edit_row(d, lambda row: row.update(audio=[-1, 5])), "field audio[0] is -1"),
    "half a unit": (lambda d: edit_row(d, lambda row: row.update(units=[0, 1.5])), "field units[1] is 1.5"),
    "three numbers": (lambda d: edit_row(d, lambda row: row.update(units=[0, 1, 2])), "units is [0, 1, 2]"),
    "beyond the end": (lambda d: edit_row(d, lambda row: row.update(face=[50, 5])), "face is [50, 5], expected"),
    "a face that is no number": (spoilt("face", np.nan), "sample s0 has nan among its face, expected -1 to 2"),
    "a face out of range": (spoilt("face", -1.5), "sample s0 has -1.5 among its face"),
    "a unit too large": (spoilt("units", 16384), "sample s1 has 16384 among its units, expected 0 to 16383"),
}


@pytest.mark.parametrize("spoil, says", DAMAGES.values(), ids=DAMAGES)
def test_damaged_data_is_refused_by_file_line_and_sample(tmp_path, spoil, says):
    """Also where it was whole when it was opened before."""
    write(tmp_path, finish=lambda out: out.finish(unit_vocab=16384))
    long_ago = time.time_ns() - 10 ** 10
    for path in tmp_path.iterdir():
        os.utime(path, ns=(long_ago, long_ago))
    Split(tmp_path)
    assert len(json.loads((tmp_path / prepared.MEMORY).read_text())) == 4
    spoil(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError)) as refused:
        Split(tmp_path)
    assert says in str(refused.value) and str(tmp_path) in str(refused.value)


def test_what_was_read_through_is_not_read_again_until_it_changes(tmp_path, monkeypatch):
    write(tmp_path)
    read, checksum = [], prepared.checksum
    monkeypatch.setattr(prepared, "checksum", lambda path: read.append(path.name) or checksum(path))

    def opened(*age):
        for path in tmp_path.iterdir():
            os.utime(path, *age)
        Split(tmp_path)
        return len(read), read.clear()

    assert opened()[0] == opened()[0] == 4, "just written: they may change again within a tick of the clock"
    assert [opened((1000, 1000))[0] for _ in range(3)] == [4, 4, 4], "ctime says that somebody was there"
    Split(tmp_path)
    assert not read or len(read.clear() or []) == 0
    (tmp_path / prepared.MEMORY).write_text('{"audio.i16": 3')
    Split(tmp_path)
    assert len(read) == 4, "a damaged memory is none"


def test_a_read_only_directory_can_be_opened(tmp_path, monkeypatch):
    write(tmp_path)
    monkeypatch.setattr(prepared.disk, "write_json", lambda *_: (_ for _ in ()).throw(PermissionError("read-only")))
    assert len(Split(tmp_path)) == 4 and not (tmp_path / prepared.MEMORY).exists()


# ---------------------------------------------------------------- the writer

@pytest.mark.parametrize("row, arrays, says", [
    ({"task": "sing"}, {}, "expected a new id"), ({}, {"units": np.array([70000])}, "16-bit ids"),
    ({}, {"units": np.array([-1])}, "16-bit ids"), ({}, {"face": np.zeros((3, 51))}, r"face of shape \(3, 51\)"),
    ({}, {"face": np.full((3, 52), 2.5)}, "weights from -1 to 2"), ({}, {"audio": np.array([np.nan])}, "finite")])
def test_what_the_format_cannot_hold_is_refused(tmp_path, row, arrays, says):
    with Writer(tmp_path) as out, pytest.raises(ValueError, match=says):
        out.add({"id": "a", "task": "qa", "messages": [], "answer": ""} | row, **arrays)


def test_a_full_disk_is_said_and_the_same_command_goes_on(tmp_path, monkeypatch):
    write(tmp_path / "at once")

    class Full:
        def write(self, _):
            raise OSError(28, "No space left on device")
        tell = flush = lambda self: 0

    with pytest.raises(OSError, match="cannot be written.*No space left.*make room"), Writer(tmp_path / "full") as out:
        for n in range(4):
            row, arrays = sample(n)
            out.add(row, **arrays)
            out.files["face"] = Full()
    write(tmp_path / "full")
    for file in (tmp_path / "at once").iterdir():
        assert (tmp_path / "full" / file.name).read_bytes() == file.read_bytes(), file.name


def test_two_writers_do_not_write_the_same_directory(tmp_path):
    with Writer(tmp_path) as out:
        with pytest.raises(ValueError, match=f"in use by process {os.getpid()}"):
            Writer(tmp_path)
        row, arrays = sample(0)
        out.add(row, **arrays)
        out.finish()
    assert len(Split(tmp_path)) == 1 and "s0" in Writer(tmp_path)


def test_finished_data_stays_finished_until_something_is_added(tmp_path):
    write(tmp_path)
    with Writer(tmp_path) as out:
        assert "s3" in out
    assert len(Split(tmp_path)) == 4
    write(tmp_path, range(6), finish=False)
    with pytest.raises(FileNotFoundError, match="no manifest.json"):
        Split(tmp_path)
    write(tmp_path, range(6))
    assert len(Split(tmp_path)) == 6


@pytest.mark.parametrize("finish", [True, False])
@pytest.mark.parametrize("spoil", [lambda d: flip(d, "samples.jsonl", 3), lambda d: (d / "samples.jsonl").unlink()],
                         ids=["a broken row before whole ones", "no rows"])
def test_what_no_interrupt_breaks_is_not_cut_away(tmp_path, spoil, finish):
    write(tmp_path, finish=finish)
    spoil(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises((ValueError, FileNotFoundError), match="samples.jsonl"):
        Writer(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


# ---------------------------------------------------------------- batches

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


def test_the_sound_is_encoded_as_when_asking(model, tmp_path):
    split = three(tmp_path)
    batch = collate([split[0]], model, ("text",))
    with torch.no_grad():
        asked, = model.encode_clips([torch.from_numpy(split[0]["audio"])])
        assert torch.equal(model.encode_speech(batch["mel"])[0], asked)


def test_augment_changes_the_clips_and_nothing_else(model, tmp_path):
    """It is given each log-mel with the number of its sample."""
    spoken = dict(audio=np.random.default_rng(0).uniform(-1, 1, 5000))
    split = split_of(tmp_path, ("qa", WRITTEN, "Because.", {}), *[("qa", SPOKEN, "Yes.", spoken)] * 2)
    samples = [split[i] for i in range(3)]
    plain, augmented = (collate(samples, model, ("text",), augment=how) for how in (None, lambda mel, n: mel + n))
    assert torch.equal(plain["mel"][0], plain["mel"][1])
    assert torch.equal(augmented["mel"], plain["mel"] + torch.tensor([1, 2])[:, None, None])
    assert all(torch.equal(plain[name], augmented[name]) for name in plain if name != "mel")


def test_only_what_the_losses_need_is_there(model, tmp_path):
    split = three(tmp_path)
    samples = [split[i] for i in range(3)]
    assert "units" not in collate(samples, model, ("text",)) and "face" not in collate(samples, model, ("units",))
    assert {"units", "face"} <= collate(samples, model, ("face",)).keys()
    assert not {"mel", "units", "face"} & collate(samples[1:2], model, ("text", "units", "face")).keys()


ALWAYS = ("mel", "units", "face")


def test_several_processes_have_the_same_inputs_even_for_text_alone(model, tmp_path):
    split = three(tmp_path)
    samples = [split[i] for i in range(3)]
    text = collate(samples[1:2], model, ("text", "units", "face"), always=ALWAYS)
    assert text["units"].shape == (1, 0) and text["face"].shape == (1, 0, 52) and text["frames"].tolist() == [0]
    assert text["mel"].shape == (1, 80, 3000) and text["mel"].unique().numel() == 1, "silence"
    assert "units" not in collate(samples[1:2], model, ("text",), always=ALWAYS), "no loss asks for it"
    both = [collate(samples, model, ("text", "units", "face"), always=always) for always in ((), ALWAYS)]
    assert both[0].keys() == both[1].keys() and all(torch.equal(both[0][name], both[1][name]) for name in both[0])


def test_a_text_only_batch_has_losses_of_weight_zero_and_gradients_for_every_part(checkpoint, tmp_path):
    model, split = ExOmni.from_pretrained(checkpoint), three(tmp_path)
    text, spoken = (collate([split[i]], model, ("text", "units", "face"), always=ALWAYS) for i in (1, 0))
    losses = model(text, {"text": 1, "units": 1, "face": 1})
    assert losses["units"] == losses["face"] == 0 < losses["text"]
    sum(losses.values()).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    model.zero_grad()
    sum(model(spoken).values()).backward()
    assert without == [name for name, p in model.named_parameters() if p.grad is None]


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
    stream = sample_order(rows, 0, 0, 15)
    epochs = [stream[i:i + 5] for i in (0, 5, 10)]
    assert all(sorted(epoch) == rows.tolist() for epoch in epochs) and len(set(map(tuple, epochs))) == 3
    assert sample_order(rows, 0, 4, 7) == stream[4:11], "any part of the stream can be asked for"
    assert sample_order(rows, 1, 0, 15) != stream and sample_order(rows, 0, 0, 15) == stream


def test_replay_adds_some_rows_of_earlier_tasks_chosen_by_the_seed(tmp_path):
    split = split_of(tmp_path, *[("tts", WRITTEN, "a", dict(units=units(5)))] * 20, *[("chat", WRITTEN, "a", {})] * 3)
    first, again, other = (mixed_rows(split, ("chat",), {"tts": 6}, seed) for seed in (0, 0, 1))
    assert first[:3].tolist() == [20, 21, 22] and len(set(first)) == 9 and first[3:].max() < 20
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert len(mixed_rows(split, ("chat",), {"tts": 10_000}, 0)) == 23, "all there are"


def test_chunks_are_of_like_length(tmp_path):
    split = split_of(tmp_path, *[("tts", WRITTEN, "a", dict(units=units(n))) for n in (9, 1, 8, 2, 7)])
    assert chunks(split, [0, 1, 2, 3, 4], 2) == [[1, 3], [4, 2], [0]]


def test_speech_without_sound_is_named(model, tmp_path):
    split = split_of(tmp_path, ("qa", SPOKEN, "a", {}), ("qa", WRITTEN, "a", dict(audio=np.zeros(9))))
    for i, expected in enumerate(["s0.* 1 speech parts, expected 0", "s1.* 0 speech parts, expected 1"]):
        with pytest.raises(ValueError, match=expected):
            collate([split[i]], model, ("text",))


WRONG = {
    "an asr sample without sound": (("asr", SPOKEN, "a", {}), "s0, task asr, lacks audio"),
    "a face sample without units": (("face", WRITTEN, "a", dict(face=np.ones((12, 52)))), "s0, task face, lacks units"),
    "a qa sample with a face but no units": (("qa", WRITTEN, "a", dict(face=np.ones((12, 52)))), "task qa, lacks units"),
    "a clip longer than the context": (("asr", SPOKEN, "a", dict(audio=np.zeros(391 * 16_000))),
                                       "s0 has 391.0 s of speech.*context holds 390.0 s"),
    "a face at another rate": (("face", WRITTEN, "a", dict(units=units(25), face=np.ones((61, 52)))),
                               "s0 has 61 face frames, its 25 units at 30 fps need 60"),
    "units beyond the vocabulary": (("tts", WRITTEN, "a", dict(units=units(200, 199))),
                                    "s0 has 96 among its units, expected 0 to 95"),
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


def test_refused_rows_leave_the_index_alone(model, tmp_path):
    """Rows that are sound one by one, but not those that the manifest was written of."""
    split = split_of(tmp_path, ("chat", WRITTEN, "a", {}))
    rows, index = split.directory / "samples.jsonl", (split.directory / "samples.index").read_bytes()
    rows.write_bytes(rows.read_bytes().replace(b'"s0"', b'"s00"'))
    with pytest.raises(ValueError, match="bytes, expected"):
        Split(split.directory)
    assert (split.directory / "samples.index").read_bytes() == index
