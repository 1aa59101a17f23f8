"""`prepare.py corpus`: every reader on a copy of its corpus that made_corpora.py writes, whole, killed and gone on."""
import itertools
import os
import re
import shutil
from functools import partial

import numpy as np
import pytest

import made_corpora
import prepare
from corpora import corpus
from data import Split, Writer
from face_decoder import frames_for_units
from published_models import refused

CORPORA = {
    "librispeech": made_corpora.librispeech, "aishell": made_corpora.aishell,
    "aishell tars": partial(made_corpora.aishell, packed=True), "wenetspeech": made_corpora.wenetspeech,
    "gigaspeech": made_corpora.gigaspeech, "emilia": made_corpora.emilia, "instructs2s": made_corpora.instructs2s,
    "parquet": made_corpora.parquet, "beat": made_corpora.beat, "a2f-bench": made_corpora.unitalker,
    "faces": made_corpora.faces, "table": made_corpora.table,
    "table jsonl": partial(made_corpora.table, ending=".jsonl")}


def command(name, made, source, out, workers=1):
    """The words of the command line."""
    if name.startswith("table"):
        source = source / ("table.jsonl" if "jsonl" in name else "table.csv")
    return ["corpus", name.split()[0], str(source), "--out", str(out), "--workers", str(workers), *made.options]


def contents(out) -> dict:
    """Name -> bytes of what a command wrote. verified.json is the reader's."""
    return {path.relative_to(out): path.read_bytes() for path in sorted(out.rglob("*"))
            if path.is_file() and path.name not in ("verified.json", ".lock")}


@pytest.fixture(params=CORPORA)
def made(request, tmp_path):
    """(name, what was made, its directory, an --out)."""
    if request.param == "parquet":
        pytest.importorskip("pyarrow")
    source = tmp_path / "source ü"
    source.mkdir()
    return request.param, CORPORA[request.param](source), source, tmp_path / "out"


def test_samples_texts_hours_and_what_is_skipped(made, capsys):
    name, expected, source, out = made
    prepare.main(command(name, expected, source, out))
    printed = capsys.readouterr().out
    found, hours = {}, 0
    for split in ("train", "val"):
        samples = Split(out / split, verify=True)
        for sample in (samples[n] for n in range(len(samples))):
            sound, lies = sample["audio"], sample.get("answer_audio")
            if sound is None and lies:
                sound = samples.arrays["audio"][lies[0]:sum(lies)] / 32767
            found[sample["id"]] = (split, sample["task"], sample["answer"], sound)
            if "face" in sample and sample["face"] is not None:
                assert sample["face"].shape == (frames_for_units(-(-lies[1] // 1280)), 52) and lies[1] == len(sound)
        hours += len(samples.arrays["audio"]) / 16_000 / 3600
    assert {name: sample[:3] for name, sample in found.items()} == {
        name: sample[:3] for name, sample in expected.samples.items()}
    for sample, (*_, sound) in expected.samples.items():
        assert (found[sample][3] is None) == (sound is None), sample
        if sound is not None:
            assert len(found[sample][3]) == len(sound), sample
            off = np.abs(found[sample][3] * 32767 - sound).max()        # a step of an int16; more after a jump in Opus
            assert off < (200 if name in ("wenetspeech", "gigaspeech") else 1.01), sample
    skipped = re.findall(r"^skipped (\d+): (.*?), first .", printed, re.M)
    assert {reason: int(count) for count, reason in skipped} == expected.skipped
    assert sum(float(h) for h in re.findall(r"samples +([\d.]+) h", printed)) == pytest.approx(hours, abs=0.01)


def dying(monkeypatch, last) -> None:
    """This process dies at its last-th write, half of which is done."""
    count = itertools.count(1)
    append, keep = Writer.append, corpus.Skipped.keep

    def append_half(out, name, array):
        if next(count) == last:
            out.files[name].write(array[:len(array) // 2])
            out.files[name].flush()
            os._exit(9)
        return append(out, name, array)

    def keep_half(skipped, name, skip):
        if next(count) == last:
            skipped.file.write(b'{"id": "half')
            skipped.file.flush()
            os._exit(9)
        return keep(skipped, name, skip)

    monkeypatch.setattr(Writer, "append", append_half)
    monkeypatch.setattr(corpus.Skipped, "keep", keep_half)


def test_killed_at_three_points_and_gone_on_the_files_are_the_same(made, monkeypatch):
    name, expected, source, out = made
    writes, decoded = [], []
    append, keep, decode = Writer.append, corpus.Skipped.keep, corpus.decode
    monkeypatch.setattr(Writer, "append", lambda *args: writes.append(1) or append(*args))
    monkeypatch.setattr(corpus.Skipped, "keep", lambda *args: writes.append(1) or keep(*args))
    monkeypatch.setattr(corpus, "decode", lambda clip, longest: decoded.append(clip.id) or decode(clip, longest))
    words = command(name, expected, source, out)
    prepare.main(words)
    whole = contents(out)
    assert len(writes) >= 3 and len(decoded) == len(set(decoded))
    for last in (1, len(writes) // 2 + 1, len(writes)):
        shutil.rmtree(out)
        pid = os.fork()
        if not pid:
            try:
                dying(monkeypatch, last)
                prepare.main(words)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
        decoded.clear()
        prepare.main(words)
        assert contents(out) == whole
    again = len(decoded)
    assert again <= 2, "what was written is not decoded again"
    prepare.main(words)
    assert contents(out) == whole and len(decoded) == again, "a third time nothing is to do"


def test_workers_write_the_same_files(tmp_path):
    source = tmp_path / "source"
    expected = made_corpora.librispeech(source)
    for workers in (1, 2):
        prepare.main(command("librispeech", expected, source, tmp_path / str(workers), workers))
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def test_few_clips_are_in_memory_at_once():
    """However slow the writer is, the reader is not far ahead."""
    clips = (corpus.Clip(str(n), []) for n in itertools.count())
    read = []
    results = corpus.decoded((read.append(clip) or clip for clip in clips), {}, 2)
    assert [next(results)[0].id for _ in range(3)] == ["0", "1", "2"] and len(read) <= 3 + 2 * corpus.AHEAD
    results.close()


@pytest.mark.parametrize("name", sorted({name.split()[0] for name in CORPORA}))
def test_another_layout_is_refused_in_one_line(tmp_path, capsys, name):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "notes.md").write_text("nothing")
    words = ["--answer", "answer"] if name == "parquet" else []
    if name == "parquet":
        pytest.importorskip("pyarrow")
    assert "expected" in refused(capsys, "corpus", name, tmp_path / "source", "--out", tmp_path / "out", *words)
    assert "not found: expected" in refused(capsys, "corpus", name, tmp_path / "none", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_command_and_other_data_are_not_mixed(tmp_path, capsys):
    made_corpora.table(tmp_path)
    words = ["corpus", "table", tmp_path / "table.csv", "--out", tmp_path / "out", "--workers", "1"]
    prepare.main(list(map(str, words)))
    before = contents(tmp_path / "out")
    assert "--val None, not 0.5" in refused(capsys, *words, "--val", "0.5")
    assert contents(tmp_path / "out") == before
    (tmp_path / "out" / "skipped.jsonl").write_text("{}\n")
    assert "skipped.jsonl is damaged ('reason'): remove it" in refused(capsys, *words)
    (tmp_path / "out" / "corpus.json").unlink()
    assert "other prepared data" in refused(capsys, *words)


def test_no_sample_of_use_is_an_error_that_says_why(tmp_path, capsys):
    (tmp_path / "t.csv").write_text("audio,text\nnone.wav,x\n")
    words = ["corpus", "table", tmp_path / "t.csv", "--out", tmp_path / "out", "--workers", "1"]
    said = refused(capsys, *words)
    assert "no sample of use: skipped 1: missing sound, first t.csv line 2: audio is 'none.wav', there is no" in said
    assert not (tmp_path / "out").exists()                  # or the corrected command would be refused
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("")
    refused(capsys, *words)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_val_is_chosen_by_speaker_and_share(tmp_path):
    source = tmp_path / "source"
    made_corpora.librispeech(source)
    for share, count in ((0, 0), (1, 6)):
        out = tmp_path / str(share)
        prepare.main(["corpus", "librispeech", str(source / "train-clean-100"), "--out", str(out), "--workers", "1",
                      "--val", str(share)])
        assert len(Split(out / "val")) == count
    splits = lambda group: {corpus.checked(corpus.Clip(f"a-{n}", [corpus.asr("a", "x")], group=group), 0.5).split
                            for n in range(20)}
    assert len(splits("one speaker")) == 1 and splits("") == {"train", "val"}


def test_units_are_taken_only_where_their_tokenizer_is_named(tmp_path, checkpoint):
    source = tmp_path / "source"
    source.mkdir()
    made = made_corpora.instructs2s(source)
    np.save(source / "a.npy", np.arange(5))
    for out, words in (("without", []), ("with", ["--units-of", str(checkpoint)])):
        prepare.main(command("instructs2s", made, source, tmp_path / out) + words)
        split = Split(tmp_path / out / "train")
        assert ("units" in split.rows[0]) == bool(words) == ("unit_vocab" in split.manifest)
    assert split[0]["units"].tolist() == [*range(5)] and split.manifest["unit_vocab"] == 96


def test_earlier_turns_are_kept_as_text(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    prepare.main(command("instructs2s", made_corpora.instructs2s(source), source, tmp_path / "out"))
    rows = {row["id"]: row for row in Split(tmp_path / "out" / "train").rows}
    speech, say = {"type": "speech"}, lambda role, text: {"role": role, "content": text}
    assert rows["a"]["messages"] == [say("user", [speech, {"type": "text", "text": "Please answer."}])]
    assert rows["b-4"]["messages"] == [say("user", "One?"), say("assistant", "1."), say("user", [speech])]
    assert rows["b-6"]["messages"][2:] == [say("user", "Two?"), say("assistant", "2."), say("user", "Typed?")]
    assert rows["5"]["text"] == "Said?" and rows["b-2"]["answer_audio"][1] == 6400


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    (tmp_path / "a.parquet").write_bytes(b"")
    assert "`pip install pyarrow`" in refused(capsys, "corpus", "parquet", tmp_path, "--out", tmp_path / "out")


def test_fields_that_mean_something_else_are_not_kept(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"id": "a", "text": "x", "task": "qa", "units": [0, 9], "mood": "calm"}\n'
                                      '{"text": "y", "score": NaN}\n{"text": "\\ud800"}\n')
    prepare.main(["corpus", "table", str(tmp_path / "t.jsonl"), "--out", str(tmp_path / "out"), "--workers", "1"])
    rows = Split(tmp_path / "out" / "train").rows
    assert [(row["id"], row["task"], row.get("mood"), "units" in row) for row in rows] == [("a", "tts", "calm", False)]
