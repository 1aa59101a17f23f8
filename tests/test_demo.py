"""demo.py: a reproducible demo set that can be interrupted; nothing held out is trained."""
import json
import lzma
import multiprocessing
import os
import signal
import time
from collections import Counter

import numpy as np
import pytest

import disk
import prepare
from data import Split, Writer, check, fingerprint
from face_decoder import frames_for_units
from model import ExOmni
from test_voices import have_espeak
from toy import answers as answers_file
from toy import demo, domain, plan, voices

SIZE = {"asked": {"espeak": 5, "flite": 2}, "once more": {}, "unknown": {"espeak": 1}, "follow-up": {"flite": 2},
        "noise": 4, "random": {"espeak": 2, "flite": 1}, "strings": 3, "sentences": 3, "held": 1, "casual": 8,
        "typed talks": 6, "spoken talks": 4, "every": 5, "tests": 4}
needs_espeak = pytest.mark.skipif(not have_espeak(), reason="espeakng-loader is not installed")
needs_voices = pytest.mark.skipif(voices.shutil.which("flite") is None or not have_espeak(),
                                  reason="flite or espeakng-loader is not installed")


@pytest.fixture(scope="module")
def few_answers():
    """A world of 19 answers, one or two of a kind, so that a whole set takes seconds."""
    known = domain.known
    with pytest.MonkeyPatch.context() as patch:
        for name in ("OPPOSITES", "LEGS", "SOUNDS", "COLORS", "FACTS", "TALK", "TOPICS"):
            patch.setattr(domain, name, dict([*getattr(domain, name).items()][:1]))
        patch.setattr(domain, "CAPITALS", {"France": "Paris", "Germany": "Berlin"})
        for name in ("DAYS", "MONTHS", "SEASONS", "COUNTS"):
            patch.setattr(domain, name, getattr(domain, name)[:1])
        patch.setattr(domain, "known", lambda: {kind: several[:1] if kind in ("plus", "minus") else several
                                                for kind, several in known().items()})
        patch.setattr(domain, "REFUSED", {split: (20, held) for split, (_, held) in domain.REFUSED.items()})
        yield


@pytest.fixture(scope="module")
def made(few_answers, tmp_path_factory):
    out = tmp_path_factory.mktemp("data") / "demo"
    assert demo.make(out, size=SIZE, workers=1)
    return out


def contents(out):
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*"))
            if path.is_file() and path.name != "verified.json"}         # when the files were last read


def said_by(clips: dict, *families) -> dict:
    """The clips of a plan whose family is one of these; noise is always there."""
    return {split: [clip for clip in several if clip["how"]["family"] in (*families, "noise")]
            for split, several in clips.items()}


def speaks(row, split: str) -> bool:
    """Whether a sample has units and a face: of training's spoken questions every third clip."""
    number = row["id"].rsplit("-", 1)[-1]
    return row["task"] in ("qa", "tts", "face") and not (
        split == "train" and row["task"] == "qa" and "voice" in row and int(number) % demo.SPEAKING)


@needs_voices
def test_every_split_is_whole_and_its_rows_have_what_their_task_needs(made):
    tasks = {}
    for name in demo.SPLITS:
        split = Split(made / name, verify=True)
        tasks[name] = Counter(row["task"] for row in split.rows)
        for row in (split[n] for n in range(len(split))):
            speech = any(not isinstance(message["content"], str) for message in row["messages"])
            assert (row["audio"] is not None) == (speech or name == "voice")
            assert (row["face"] is not None) == speaks(row, name) and row["units"] is None
            if row["task"] == "asr":
                assert len(row["audio"]) <= demo.WINDOW * voices.RATE and row["kind"] != "noise"
                heard = [] if row["family"] in ("joe", "ked", "slt-hts") else row["answer"].split()
                assert [word for word, _, _ in row["words"]] == heard
                assert row["answer"] == domain.spoken(row["text"])
    assert set(tasks["train"]) == {"qa", "asr", "chat", "tts", "face"} and set(tasks["voice"]) == {"tts"}
    assert all(set(tasks[name]) == {"qa", "asr", "chat"} for name in (*plan.TESTS, "test-turns", "test-outside"))
    assert set(tasks["test-typed"]) == {"chat"}


@needs_voices
def test_noise_is_answered_not_transcribed_and_a_turn_comes_after_others(made):
    rows = {row["id"]: row for row in Split(made / "train").rows}
    noise, turns = ([row for name, row in rows.items() if name.startswith(start)]
                    for start in ("train-noise", "train-turn"))
    assert len(noise) == SIZE["noise"] and {(row["task"], row["answer"]) for row in noise} == {("qa", domain.SILENCE)}
    assert {row["task"] for row in turns} == {"qa", "asr"}
    assert all(len(row["messages"]) in ((1,) if row["task"] == "asr" else (3, 5)) for row in turns)
    talks = [row for row in rows.values() if row["id"].startswith("train-heard")]
    sounds = [rows[name]["audio"] for name in rows if name.startswith(("train-0", "unknown"))]
    assert len(talks) == SIZE["spoken talks"] and all(row["audio"] in sounds for row in talks)


@needs_voices
def test_answers_last_whole_units_and_share_one_face_of_as_many_frames(made):
    voice, train = Split(made / "voice"), Split(made / "train")
    for row in voice.rows:
        units, rest = divmod(row["audio"][1], 1280)
        assert rest == 0 and row["face"][1] == frames_for_units(units)
    faces = {}
    for row in train.rows:
        if "face" in row:
            assert faces.setdefault(row["answer"], row["face"]) == row["face"]
    held = {row["answer"] for row in voice.rows if row["held"]}
    assert len(held) == 2 and not held & set(faces) and held <= {row["answer"] for row in Split(made / "val").rows}


@needs_voices
def test_a_second_run_does_nothing_and_another_seed_is_refused(made):
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*")}
    assert demo.make(made, size=SIZE, workers=1) is False
    assert {path: path.stat().st_mtime_ns for path in made.rglob("*")} == before
    with pytest.raises(ValueError, match="another seed, size, choice of installed voices or version"):
        demo.make(made, seed=1, size=SIZE, workers=1)


@needs_voices
def test_an_interrupted_run_goes_on_and_ends_with_the_same_bytes(made, tmp_path, monkeypatch):
    said, real = [], demo.say

    def interrupted(job):
        said.append(job)
        if len(said) in (4, 20):
            raise KeyboardInterrupt
        return real(job)

    monkeypatch.setattr(demo, "say", interrupted)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            demo.make(tmp_path / "demo", size=SIZE, workers=1)
    demo.make(tmp_path / "demo", size=SIZE, workers=1)
    assert contents(tmp_path / "demo") == contents(made)
    installed = [family for family in (*voices.FAMILIES, *voices.HELD_FAMILIES) if voices.available(family)]
    there = said_by(plan.plan(0, SIZE), *installed)
    assert len(said) == sum(map(len, there.values())) + 2               # nothing was said twice but what broke


@needs_voices
def test_several_processes_make_the_same_bytes_and_units_can_be_added_and_replaced(made, tmp_path):
    demo.make(tmp_path, size=SIZE, workers=2)
    assert contents(tmp_path) == contents(made)
    voice, train = tmp_path / "voice", tmp_path / "train"
    for offset in (0, 7):
        units = answers_file.units_of(voice, lambda sound: np.arange(len(sound) // 1280) + offset)
        count = answers_file.add_units(train, units, unit_vocab=500, speech_tokenizer="abc")
        split = Split(train, verify=True)
        speaking = [row for row in split.rows if speaks(row, "train")]
        assert count == len(speaking) == sum("units" in row for row in split.rows)
        assert split.manifest["unit_vocab"] == 500 and split.manifest["speech_tokenizer"] == "abc"
        for n in range(0, len(split), 17):
            if split[n]["units"] is not None:
                np.testing.assert_array_equal(split[n]["units"], units[split[n]["answer"]])
    assert (train / "units.u16").stat().st_size == 2 * sum(len(units[a]) for a in {row["answer"] for row in speaking})
    for wrong, message in (({}, "no units for"), ({a: u[1:] for a, u in units.items()}, "as long as its face"),
                           ({a: u + 500 for a, u in units.items()}, "below 500")):
        with pytest.raises(ValueError, match=message):
            answers_file.add_units(train, wrong, 500, "abc")
    Split(train, verify=True)                                                  # and nothing was lost


@pytest.fixture(scope="module")
def shipped(few_answers, checkpoint, tmp_path_factory):
    """A directory with demo/voice, random units and faces that nobody said, and mini, the same as shipped answers."""
    folder, random = tmp_path_factory.mktemp("shipped"), np.random.default_rng(0)
    with Writer(folder / "demo" / "voice") as out:
        for n, clip in enumerate(plan.plan(0, SIZE)["voice"]):
            ends, units = random.integers(1, 400, 7).cumsum() / 1000, random.integers(0, 96, 5 + n % 4)
            phones = [[name, start, end] for name, start, end in zip("pau hh ax l ow pau".split(), ends, ends[1:])]
            phones[0][1] = 0.0
            out.add({"id": clip["id"], "task": "tts", "messages": [], "answer": clip["text"], "phones": phones},
                    units=units, face=random.random((frames_for_units(len(units)), 52)))
        out.finish(seed=0, size=SIZE, unit_vocab=96, speech_tokenizer=fingerprint(checkpoint))
    answers_file.ship_answers(folder / "demo", folder / "mini")
    return folder


@pytest.fixture
def alone(monkeypatch, tmp_path):
    """No flite, nothing shipped, one process, and `small` is SIZE."""
    monkeypatch.setattr(voices.shutil, "which", lambda name: None)
    monkeypatch.setattr(demo, "SHIPPED", tmp_path / "nothing")
    monkeypatch.setattr(demo.os, "cpu_count", lambda: 1)
    monkeypatch.setitem(demo.SIZES, "small", SIZE)
    for cached in (demo.crowd, voices.held_voices.festival_voices):
        cached.cache_clear()
    yield
    for cached in (demo.crowd, voices.held_voices.festival_voices):
        cached.cache_clear()


def run(*options):
    prepare.main(["demo", "--size", "small", *map(str, options)])


def test_shipped_answers_come_back_faces_within_half_a_step(shipped):
    voice = Split(shipped / "demo" / "voice")
    about, answers = answers_file.read_answers(shipped / "mini")
    assert about["speech_tokenizer"] == voice.manifest["speech_tokenizer"] and about["unit_vocab"] == 96
    assert list(answers) == [row["answer"] for row in voice.rows]
    for said in (voice[n] for n in range(len(voice))):
        back = answers[said["answer"]]
        np.testing.assert_array_equal(back["units"], said["units"])
        np.testing.assert_allclose(back["face"], said["face"], rtol=0, atol=1 / 510 + 1e-6)     # 8 bits, float32
        assert back["phones"] == said["phones"] and back["face"].dtype == np.float32


@needs_espeak
def test_without_flite_shipped_answers_make_a_set_that_all_stages_can_train_on(shipped, checkpoint, alone, tmp_path):
    assert demo.make(tmp_path, size="small", answers=shipped / "mini")
    model, clips = ExOmni.from_pretrained(checkpoint), said_by(plan.plan(0, SIZE), "espeak")
    _, answers = answers_file.read_answers(shipped / "mini")
    for name in demo.SPLITS:
        split = Split(tmp_path / name, verify=True)
        check(split, range(len(split)), model)
        assert split.manifest["unit_vocab"] == 96 and split.manifest["speech_tokenizer"] == fingerprint(checkpoint)
        asked = [row["id"] for row in split.rows if row["task"] == "asr" and row["family"] not in ("joe", "hibari")]
        assert asked == [f"{clip['id']}-asr" for clip in clips[name] if clip["text"] and name != "voice"]
        for row in (split[n] for n in range(len(split))):
            assert (row["units"] is not None) == (row["face"] is not None) == speaks(row, name)
            if row["units"] is not None:
                np.testing.assert_array_equal(row["units"], answers[row["answer"]]["units"])
                assert len(row["face"]) == frames_for_units(len(row["units"]))
    assert {row["task"] for row in Split(tmp_path / "train").rows} == {"qa", "asr", "chat", "tts", "face"}
    families = {row["family"] for row in Split(tmp_path / "test-natural").rows if row["task"] == "qa"}
    assert families <= {"joe"} and "test-natural" in demo.summary(tmp_path)
    with pytest.raises(ValueError, match="has no sound"):
        answers_file.units_of(tmp_path / "voice", len)


@needs_voices
def test_what_is_asked_is_the_same_with_shipped_answers(shipped, made, tmp_path):
    demo.make(tmp_path, size=SIZE, workers=1, answers=shipped / "mini")
    for name in demo.SPLITS[1:]:
        ours, theirs = Split(tmp_path / name), Split(made / name)
        assert [row["id"] for row in ours.rows] == [row["id"] for row in theirs.rows]
        for n in range(len(ours)):
            assert ours[n]["messages"] == theirs[n]["messages"]
            assert np.array_equal(ours[n]["audio"], theirs[n]["audio"])


@needs_espeak
def test_answers_of_a_smaller_world_make_a_set_without_the_others(shipped, alone, tmp_path, capsys):
    """As those of an earlier version do: without the refusals, for example."""
    known = {next(iter(domain.FACTS)), "The capital of France is Paris."}
    with Writer(tmp_path / "older" / "voice") as out:
        for n, text in enumerate(sorted(known)):
            out.add({"id": f"a{n}", "task": "tts", "messages": [], "answer": text, "phones": [["pau", 0.0, 0.4]]},
                    units=np.arange(5), face=np.zeros((12, 52)))
        out.finish(seed=0, size="small", unit_vocab=96, speech_tokenizer="0")
    answers_file.ship_answers(tmp_path / "older", tmp_path / "older")
    run("--out", tmp_path / "a", "--answers", tmp_path / "older")
    texts = len(plan.plan(0, SIZE)["voice"])
    assert f"left out: {texts - 2} of {texts} texts of the answer voice" in capsys.readouterr().out
    rows = [row for name in demo.SPLITS for row in Split(tmp_path / "a" / name).rows if row["task"] != "asr"]
    assert {row["answer"] for row in rows} == known and {row["task"] for row in rows} == {"qa", "chat", "tts", "face"}
    assert all(row["kind"] != "noise" for row in rows)


@needs_espeak
def test_shipped_answers_are_the_default_without_flite_and_a_second_run_does_nothing(shipped, alone, tmp_path, capsys,
                                                                                     monkeypatch):
    monkeypatch.setattr(demo, "SHIPPED", shipped / "mini")
    said, real = [], demo.say

    def interrupted(job):
        said.append(job)
        if len(said) == 4:
            raise KeyboardInterrupt
        return real(job)

    monkeypatch.setattr(demo, "say", interrupted)
    with pytest.raises(SystemExit) as stop:
        run("--out", tmp_path / "a")
    assert stop.value.code == 130
    run("--out", tmp_path / "a")
    assert "flite is not installed answers from" in " ".join(capsys.readouterr().out.split())
    before = contents(tmp_path / "a")
    run("--out", tmp_path / "a")
    assert contents(tmp_path / "a") == before and "complete already" in capsys.readouterr().out
    run("--out", tmp_path / "b", "--answers", shipped / "mini")
    assert contents(tmp_path / "b") == before


def test_wrong_answers_are_refused_in_one_line_and_nothing_is_begun(shipped, alone, tmp_path, capsys):
    whole = (shipped / "mini" / answers_file.ANSWERS).read_bytes()
    odd = [lzma.compress(first) for first in (b"[]\n", b"{}\n", b"3", b'{"format": 1, "answers": 2}\n',
                                              b"[" * 100_000 + b"\n")]
    for name, content in (("short", whole[:-100]), ("damaged", whole[:900] + b"?" + whole[901:]), ("text", b"units"),
                          *((f"odd{n}", content) for n, content in enumerate(odd))):
        (tmp_path / name).mkdir()
        (tmp_path / name / answers_file.ANSWERS).write_bytes(content)
    with Writer(tmp_path / "other" / "voice") as out:
        out.add({"id": "a", "task": "tts", "messages": [], "answer": "Else.", "phones": [["pau", 0.0, 0.4]]},
                units=np.arange(5), face=np.zeros((12, 52)))
        out.finish(seed=0, size="small", unit_vocab=96, speech_tokenizer="0")
    answers_file.ship_answers(tmp_path / "other", tmp_path / "other")
    for options, message in (
            (["--answers", tmp_path / "none"], "answers.xz not found: expected shipped answers"),
            (["--answers", tmp_path / "short"], "truncated, damaged"),
            (["--answers", tmp_path / "damaged"], "truncated, damaged"),
            (["--answers", tmp_path / "text"], "truncated, damaged"),
            *((["--answers", tmp_path / f"odd{n}"], "truncated, damaged") for n in range(len(odd))),
            (["--answers", tmp_path / "other"], "have none of this world's"),
            ([], "flite is not installed: `apt-get install flite`" if have_espeak() else "espeakng-loader")):
        with pytest.raises(SystemExit) as stop:
            run("--out", tmp_path / "out", *options)
        error = capsys.readouterr().err
        assert stop.value.code == 2 and message in error and error.count("\n") == 1
        assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="has no units to ship"):
        without = tmp_path / "without" / "voice"
        with Writer(without) as out:
            out.add({"id": "a", "task": "tts", "messages": [], "answer": "Yes."})
            out.finish()
        answers_file.ship_answers(without.parent, tmp_path)


def test_a_set_made_with_flite_does_not_go_on_with_shipped_answers_nor_the_other_way_round(shipped, alone, tmp_path):
    flite, answered = {"seed": 0, "size": "small"}, {"seed": 0, "size": "small", "answers": "0"}
    for record, answers, message in ((flite, shipped / "mini", "made with flite, not from --answers"),
                                     (answered, None, "made from --answers, not with flite"),
                                     (answered, shipped / "mini", "version of the domain or the answ")):
        disk.write_json(tmp_path / "demo.json", record)
        with pytest.raises(ValueError, match=message):
            demo.make(tmp_path, size="small", answers=answers)
    assert list(tmp_path.iterdir()) == [tmp_path / "demo.json"]


def test_the_list_is_jsonl_of_every_phrasing(capsys):
    prepare.main(["demo", "--list"])
    rows = list(map(json.loads, capsys.readouterr().out.splitlines()))
    assert [row["text"] for row in rows] == [row["text"] for row in domain.phrasings()]
    assert {row["split"] for row in rows} == {"train", "recombined", "wording"} and all(row["answer"] for row in rows)


def test_workers_leave_an_interrupt_to_their_parent():
    """From their first moment: they import for seconds before any code of theirs could say so."""
    before = signal.getsignal(signal.SIGINT)
    with demo.parallel_map(2) as spread:
        assert list(spread(signal.getsignal, [signal.SIGINT] * 2)) == [signal.SIG_IGN] * 2
        assert signal.getsignal(signal.SIGINT) is before


def test_an_interrupt_ends_the_workers_at_once():
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt), demo.parallel_map(2) as spread:
        spread(time.sleep, [60, 60])
        raise KeyboardInterrupt
    assert time.monotonic() - began < 30 and not multiprocessing.active_children()


def test_a_worker_that_is_ended_from_outside_is_one_line():
    with pytest.raises(OSError, match="was ended .*the same command goes on"), demo.parallel_map(2) as spread:
        list(spread(os._exit, [1]))
