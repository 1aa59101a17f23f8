"""demo.py: a reproducible demo set that can be interrupted; nothing held out is trained."""
import json
from collections import Counter

import numpy as np
import pytest

import demo
import domain
import prepare
import voices
from data import Split
from face_decoder import frames_for_units
from test_voices import have_espeak

SIZE = {"espeak": 1, "flite": 1, "hear_espeak": 2, "hear_flite": 1, "strings": 3, "sentences": 3, "held": 1, "every": 2}
needs_voices = pytest.mark.skipif(voices.shutil.which("flite") is None or not have_espeak(),
                                  reason="flite or espeakng-loader is not installed")


@pytest.fixture(scope="module")
def few_answers():
    """A domain of five answers, so that a whole set takes seconds."""
    items = domain.items()[::70]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(domain, "items", lambda: items)
        yield items


@pytest.fixture(scope="module")
def made(few_answers, tmp_path_factory):
    out = tmp_path_factory.mktemp("data") / "demo"
    assert demo.make(out, size=SIZE, workers=1)
    return out


def contents(out):
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def full():
    return demo.plan(0, demo.SIZES["full"])


def test_the_full_plan_has_the_recipes_numbers(full):
    asked = [clip for clip in full["train"] if "answer" in clip]
    families = Counter(clip["how"]["family"] for clip in asked)
    assert 8000 <= len(asked) <= 9500 and families["flite"] >= 0.4 * len(asked)
    assert 280 <= min(len(full[split]) for split in demo.TESTS)
    assert all(3 <= len(clip["text"].split()) <= 8 for clip in full["train"] if clip["kind"] == "random")


def test_held_out_phrasings_and_voices_are_not_in_training(full):
    trained = {domain.spoken(clip["text"]) for clip in full["train"] if "answer" in clip}
    train_voices = {clip["how"]["voice"] for clip in full["train"]}
    kinds = {"val": {"train"}, "test-voices": {"train"}, "test-recombined": {"recombined"}, "test-wording": {"wording"},
             "test-both": {"recombined", "wording"}, "test-natural": {"train", "recombined", "wording"}}
    for split, expected in kinds.items():
        assert {clip["phrasing"] for clip in full[split]} == expected
        for clip in full[split]:
            held = split in ("test-voices", "test-both", "test-natural")
            assert (clip["how"]["voice"] not in train_voices) if held else True
            assert clip["phrasing"] == "train" or domain.spoken(clip["text"]) not in trained
    assert {clip["how"]["voice"] for clip in full["test-natural"]} == set(voices.HELD_NATURAL)


def test_one_seed_makes_one_plan(few_answers):
    assert demo.plan(0, SIZE) == demo.plan(0, SIZE) != demo.plan(1, SIZE)


@needs_voices
def test_every_split_is_whole_and_its_rows_have_what_their_task_needs(made):
    tasks = {}
    for name in demo.SPLITS:
        split = Split(made / name, verify=True)
        tasks[name] = Counter(row["task"] for row in split.rows)
        for row in (split[n] for n in range(len(split))):
            assert (row["audio"] is not None) == (row["task"] == "asr" or "voice" in row)
            assert (row["face"] is not None) == (row["task"] in ("qa", "tts", "face")) and row["units"] is None
            if row["task"] == "asr":
                assert len(row["audio"]) <= demo.WINDOW * voices.RATE
                assert [word for word, _, _ in row["words"]] == row["answer"].split()
                assert row["answer"] == domain.spoken(row["text"])
    assert set(tasks["train"]) == {"qa", "asr", "chat", "tts", "face"} and set(tasks["voice"]) == {"tts"}
    assert all(set(tasks[name]) == {"qa", "asr", "chat"} for name in demo.TESTS)


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
    with pytest.raises(ValueError, match="another seed, size or version"):
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
    assert len(said) == sum(map(len, demo.plan(0, SIZE).values())) + 2         # nothing was said twice but what broke


@needs_voices
def test_several_processes_make_the_same_bytes_and_units_can_be_added_and_replaced(made, tmp_path):
    demo.make(tmp_path, size=SIZE, workers=2)
    assert contents(tmp_path) == contents(made)
    voice, train = tmp_path / "voice", tmp_path / "train"
    for offset in (0, 7):
        units = demo.units_of(voice, lambda sound: np.arange(len(sound) // 1280) + offset)
        count = demo.add_units(train, units, unit_vocab=500, speech_tokenizer="abc")
        split = Split(train, verify=True)
        speaking = [row for row in split.rows if row["task"] in ("qa", "tts", "face")]
        assert count == len(speaking) == sum("units" in row for row in split.rows)
        assert split.manifest["unit_vocab"] == 500 and split.manifest["speech_tokenizer"] == "abc"
        for n in range(0, len(split), 17):
            if split[n]["units"] is not None:
                np.testing.assert_array_equal(split[n]["units"], units[split[n]["answer"]])
    assert (train / "units.u16").stat().st_size == 2 * sum(len(units[a]) for a in {row["answer"] for row in speaking})
    for wrong, message in (({}, "no units for"), ({a: u[1:] for a, u in units.items()}, "as long as its face"),
                           ({a: u + 500 for a, u in units.items()}, "below 500")):
        with pytest.raises(ValueError, match=message):
            demo.add_units(train, wrong, 500, "abc")
    Split(train, verify=True)                                                  # and nothing was lost


def test_the_list_is_jsonl_of_every_phrasing(capsys):
    prepare.main(["demo", "--list"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["text"] for row in rows] == [row["text"] for row in domain.phrasings()]
    assert {row["split"] for row in rows} == {"train", "recombined", "wording"} and all(row["answer"] for row in rows)
