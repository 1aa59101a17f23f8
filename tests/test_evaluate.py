"""evaluate.py: figures whose truth is known, and one run over a small split with the tiny random model."""
import json
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

import evaluate
from face import measure as evaluate_face
import weights
from batches import collate
from data import Split, Writer
from face_decoder import FPS, face_loss
from face.head import make_head
from model import Answer, ExOmni
from toy.teacher import face_track
from test_train import change

PHONES = [["pau", 0, 0.41], ["b", 0.41, 0.5], ["aa", 0.5, 0.8], ["m", 0.8, 0.9], ["ae", 0.9, 1.2], ["f", 1.2, 1.3],
          ["aa", 1.3, 1.59], ["pau", 1.59, 2.01], ["p", 2.01, 2.1], ["ae", 2.1, 2.39], ["pau", 2.39, 2.8]]
UNITS, FRAMES = 35, 84                                          # 2.8 s


@pytest.fixture(scope="module")
def head():
    return make_head()


@pytest.fixture(scope="module")
def voice():
    """What a teacher's clip needs: phones, a sound that is loud in vowels, and the track. Lips part half a frame after
    such a sound begins: it is half a frame late, or two lags would explain it equally well."""
    time = np.arange(round(2.8 * 16_000)) / 16_000 - 0.5 / FPS
    loud = sum(((time >= start) & (time < end)) * (0.5 if name[0] == "a" else 0.02) for name, start, end in PHONES
               if name != "pau")
    audio = (loud * np.sin(800 * time)).astype(np.float32)
    return {"phones": PHONES, "audio": audio, "face": face_track(PHONES, FRAMES, audio)}


# ---------------------------------------------------------------- figures

def test_an_answer_is_right_letter_for_letter():
    samples = [{"id": str(n), "answer": "Two.", "family": "espeak" if n < 2 else "flite"} for n in range(3)]
    rows = evaluate.marked(lambda asked: ["Two.", "two.", "Two."], samples)
    assert [row["right"] for row in rows] == [True, False, True]
    assert rows[1]["expected"] == "Two." and rows[1]["got"] == "two."
    assert evaluate.by(rows, "family") == {"espeak": {"right": 1, "asked": 2, "share": 0.5},
                                           "flite": {"right": 1, "asked": 1, "share": 1.0}}
    assert evaluate.by(rows, "phrasing") == {} and evaluate.share([])["share"] is None


def test_words_are_what_can_be_heard():
    assert evaluate.words("It's 24 o'clock, twenty-one!") == "it's twenty four o'clock twenty one".split()
    assert evaluate.words("305 and 2024") == "three hundred and five and two zero two four".split()


def test_the_word_error_rate_counts_edits_over_all_words():
    pairs = [("Two and two is four.", "2 and 2 is 4"), ("A cat.", "the cat sat"), ("Yes, it is so.", "")]
    assert evaluate.word_error_rate(pairs) == pytest.approx((0 + 2 + 4) / 11)
    assert evaluate.edits("kitten", "sitting") == 3


def spoken(text, seconds, voice_seconds, units=None, ended=True):
    own = np.arange(round(voice_seconds * 12.5)) % 7
    units = torch.arange(round(seconds * 12.5)) % 7 if units is None else units
    answer = Answer(text, [], None, units, torch.zeros(len(units) + ended, 4), None, None, {})
    return {"answer": text}, answer, {"audio": np.zeros(round(voice_seconds * 16_000)), "units": own}


def test_an_answer_shorter_than_the_voice_is_truncated():
    cut = spoken("Cut", 8, 12, ended=False)
    found = evaluate.compare_speech([spoken("Whole.", 2, 2), spoken("Long.", 2.4, 2), cut])
    assert [row["text"] for row in found["truncated"]] == ["Cut"] == [found["longest"]["text"]]
    assert found["length over the voice's, median"] == 1 and found["length within 10 %"] == pytest.approx(1 / 3)
    assert found["units equal to the voice's"] == pytest.approx(1 / 3) and found["stopped by the limit of units"] == 1
    assert found["unit error rate"] == pytest.approx((0 + 5 + 50) / (25 + 25 + 150))    # inserted, and left out


def test_questions_are_spread_evenly_and_long_answers_are_all_there():
    samples = [{"answer": f"Answer {n}." + " And more." * (n % 10 == 3)} for n in range(40) for _ in range(2)]
    chosen = [sample["answer"] for sample in evaluate.choose(samples, 16)]
    assert len(chosen) == len(set(chosen)) == 16 and sum("And more." in text for text in chosen) == 4
    places = [int(text.split()[1].rstrip(".")) for text in chosen]
    assert places == sorted(places) and max(np.diff(places)) <= 4 and max(places) >= 36
    assert len(evaluate.choose(samples, 100)) == 40


def test_changed_clips_have_the_stated_levels():
    clip, random = np.linspace(-0.8, 0.8, 16_000, dtype=np.float32), np.random.default_rng(0)
    half, double, noisy = (change(clip, random) for change in evaluate.CHANGES.values())
    assert np.allclose(half, clip / 2) and double.max() == 1 and double[8100] == pytest.approx(2 * clip[8100])
    level = 20 * np.log10((noisy - clip).std() / np.sqrt(np.mean(clip ** 2)))
    assert level == pytest.approx(-30, abs=0.2)                 # 16000 draws: the spread of their level is 0.05 dB


# ---------------------------------------------------------------- faces

def test_the_teacher_scores_full_marks_against_itself(voice, head):
    found = evaluate_face.face_figures([voice["face"]], [voice["face"]], [voice], head)
    for name in ("lips close in /p b m/", "lips close in /f v/", "jaw correlation", "jaw lag within one frame",
                 "closed in silence", "jitter", "opening (95 % of frames below), over the teacher's"):
        assert found[name] == pytest.approx(1), name
    for name in ("LVE, % (lve_l2)", "jaw lag to the teacher, ms", "velocity error, all"):
        assert found[name] == 0, name


@pytest.mark.parametrize("shift", [-3, -1, 2])
def test_a_shifted_track_lags_by_its_shift(voice, head, shift):
    track = voice["face"][np.clip(np.arange(FRAMES) - shift, 0, FRAMES - 1)]
    found = evaluate_face.face_figures([track], [voice["face"]], [voice], head)
    own = evaluate_face.face_figures([voice["face"]], [voice["face"]], [voice], head)
    sound = "lips' lag to the sound, ms (median)"
    assert found["jaw lag to the teacher, ms"] == pytest.approx(1000 * shift / FPS)
    assert found[sound] - own[sound] == pytest.approx(1000 * shift / FPS)
    assert found["jaw lag within one frame"] == (abs(shift) == 1) and found["jaw correlation"] < 0.95


@pytest.mark.parametrize("still", ["mean", "shut"])
def test_a_face_held_still_gets_no_marks(voice, head, still):
    track = np.zeros((FRAMES, 52)) + (voice["face"].mean(0) if still == "mean" else 0)
    found = evaluate_face.face_figures([track], [voice["face"]], [voice], head)
    for name in ("lips close in /p b m/", "lips close in /f v/", "jaw correlation", "closed in silence", "jitter"):
        assert found[name] == 0, name
    assert found["jaw lag to the teacher, ms"] is None and found["LVE, % (lve_l2)"] > 1


def test_a_trembling_face_is_told_by_its_jitter(voice, head):
    tremble = voice["face"] + 0.05 * (np.arange(FRAMES) % 2)[:, None]
    assert evaluate_face.face_figures([tremble], [voice["face"]], [voice], head)["jitter"] > 2


def test_without_recordings_what_needs_them_is_left_out(voice, head, tmp_path):
    silent = voice | {"audio": None}                            # data made from shipped answers
    found = evaluate_face.face_figures([voice["face"]], [voice["face"]], [silent], head)
    assert found["lips close in /p b m/"] == 1 and found["lips' lag to the sound, ms (median)"] is None
    answer = SimpleNamespace(waveform=torch.zeros(100))
    assert evaluate.write_sounds([({"answer": "Yes."}, answer, silent)], tmp_path).keys() == {"generated"}
    found = evaluate_face.face_figures([voice["face"]], [voice["face"]], [None], head)
    assert found["jaw correlation"] == pytest.approx(1)
    assert found["lips close in /p b m/"] is found["closed in silence"] is None


def test_silence_is_away_from_sounds_but_not_from_the_ends():
    silent = evaluate_face.silent_frames(PHONES, FRAMES).nonzero()[0]
    assert silent.tolist() == [*range(0, 10), *range(51, 58), *range(75, 84)]   # to 0.31 s, 1.69 to 1.91, from 2.49
    assert evaluate_face.silent_frames([["aa", 0, 0.49], ["pau", 0.49, 0.8]], 40).nonzero()[0].tolist() == [*range(18, 40)]


# ---------------------------------------------------------------- the whole

SPEECH, TEXT = ([{"role": "user", "content": content}] for content in ([{"type": "speech"}], "Say it."))
SHORT = ["--max-new-tokens", "2", "--threads", "1", "--answers", "3"]


@pytest.fixture(scope="module")
def tiny(checkpoint, tmp_path_factory):
    """It hears 1 s at once: 30 s would be most of the work."""
    return change(checkpoint, tmp_path_factory.mktemp("evaluate") / "tiny")


@pytest.fixture(scope="module")
def data(tiny, voice, tmp_path_factory):
    """val, test-voices and voice, whose answers are what the tiny model says, but for the last one of each split."""
    out, model = tmp_path_factory.mktemp("evaluate"), ExOmni.from_pretrained(tiny)
    random = np.random.default_rng(0)
    asked = [{"id": f"q{n}", "task": "qa", "messages": SPEECH, "text": "What?", "kind": "talk", "phrasing": "train",
              "family": ["espeak", "flite"][n % 2], "audio": 0.3 * random.standard_normal(4000 + 2000 * n)}
             for n in range(3)]
    asked = [row | {"audio": np.round(row["audio"].clip(-1, 1) * 32767).astype(np.int16)} for row in asked]
    heard = [row | {"audio": row["audio"].astype(np.float32) / 32767} for row in asked]     # as Split reads it
    answers = [*evaluate.write_texts(model, heard, 2)[:2], "Something else."]
    assert all(evaluate.words(text) or text for text in answers)
    arrays = {"units": np.arange(UNITS), "face": voice["face"]}
    with Writer(out / "voice") as writer:
        for n, text in enumerate(dict.fromkeys([*answers, "held out"])):
            writer.add({"id": f"a{n}", "task": "tts", "messages": TEXT, "answer": text, "phones": PHONES},
                       audio=voice["audio"], **arrays)
        writer.finish(unit_vocab=96)
    for split in ("val", "test-voices"):
        with Writer(out / split) as writer:
            for row, text in zip(asked, answers):
                row = row | {"answer": text}
                writer.add({key: row[key] for key in row if key != "audio"}, audio=row["audio"], **arrays)
            writer.add({"id": "c", "task": "chat", "messages": TEXT, "answer": "No.", "kind": "talk"})
            if split == "val":
                writer.add({"id": "f", "task": "face", "messages": TEXT, "answer": "held out"}, **arrays)
            writer.finish(unit_vocab=96)
    return out


def run(tiny, data, out, *more):
    evaluate.main([*more, "--checkpoint", str(tiny), "--data", str(data), "--out", str(out), *SHORT])
    return weights.read_json(out / "evaluation.json")


def test_one_run_reports_all_parts(tiny, data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(evaluate, "script", lambda *_, **__: 1.5)       # sample.py itself: its own tests
    found = run(tiny, data, tmp_path)
    printed = capsys.readouterr().out
    for split in ("val", "test-voices"):
        assert found["answers"]["splits"][split]["spoken"] == {"right": 2, "asked": 3, "share": pytest.approx(2 / 3)}
        assert found["answers"]["splits"][split]["family"]["flite"]["share"] == 1
        wrong, = found["answers"]["wrong"][split]
        assert wrong["expected"] == "Something else." != wrong["got"] and wrong["question"] == "What?"
        assert found["answers"]["splits"][split]["typed"]["asked"] == 1
    assert found["answers"]["changed"].keys() == {"split", "clean", *evaluate.CHANGES}
    assert found["speech"]["text right"]["right"] == found["face"]["generated"]["answers"] == found["speech"]["answers"]
    assert found["speech"]["twice the same seed, equal"] is True and "word error rates left out" in printed
    for side, rate in (("generated", 22_050), ("voice", 16_000)):
        rows = [json.loads(line) for line in (tmp_path / "speech" / f"{side}.jsonl").read_text().splitlines()]
        assert len(rows) == found["speech"]["answers"] and soundfile.info(rows[0]["audio"]).samplerate == rate
    assert abs(found["face"]["generated"]["face longer than speech by at most, s"]) < 1 / FPS
    assert found["face"]["held_out"]["teacher"]["jaw correlation"] == pytest.approx(1)
    seconds = found["latency"]["seconds"]
    assert seconds["cold start to answer.html"]["median"] == 1.5
    assert seconds["text"]["median"] < seconds["first sound, after the question"]["median"]
    assert "2/3 0.667" in printed and f"wrote {tmp_path / 'evaluation.json'}" in printed


def test_parts_can_be_asked_for_and_earlier_ones_stay(tiny, data, tmp_path):
    weights.write_json(tmp_path / "evaluation.json", {"latency": {"checkpoint": "other"}})
    found = run(tiny, data, tmp_path, "answers")
    assert found.keys() == {"latency", "answers"} and found["latency"] == {"checkpoint": "other"}
    assert found["answers"]["checkpoint"] == str(tiny)


def test_error_rates_are_those_of_what_the_asr_hears(tiny, data, tmp_path, monkeypatch):
    texts = {row["answer"] for row in Split(data / "voice").rows}
    monkeypatch.setattr(evaluate, "words", str.split)                   # the tiny model's answers are not English
    monkeypatch.setattr(evaluate, "listener", lambda name: lambda path: "" if "generated" in str(path) else "so it is")
    found = run(tiny, data, tmp_path, "speech", "--asr", "any")["speech"]
    assert found["word error rate, generated"] == 1 and found["word error rate, voice"] >= 1
    assert {row[0] for row in found["heard"]["generated"]} <= texts


def test_predictions_are_those_of_the_loss(tiny, data):
    model, split = ExOmni.from_pretrained(tiny), Split(data / "val")
    last = model.face_decoder.out_head[-1]
    last.weight.data.mul_(0.1), last.bias.data.fill_(0.5)               # away from the limits, which clip them
    rows = [i for i, row in enumerate(split.rows) if "face" in row]
    tracks = evaluate_face.teacher_forced(model, split, rows)
    batch = collate([split[i] for i in rows], model, ("face",))
    with torch.no_grad():
        loss = model(batch, {"face": len(rows)})["face"]
    ours = face_loss(torch.from_numpy(np.stack(tracks)), batch["face"], batch["frames"])
    assert 0 < np.stack(tracks).min() and np.stack(tracks).max() < 1 and torch.allclose(ours, loss, rtol=1e-4)


def test_ablations_are_trained_once(tiny, data, tmp_path, monkeypatch, capsys):
    trained = []

    def script(name, args, *options):
        out = options[options.index("--out") + 1]
        trained.append((name, options[options.index("--ablate") + 1] if "--ablate" in options else None))
        shutil.copytree(tiny, out)
        asked = {"init_from": args.init_from, "data": args.data, "seed": 0, "ablate": trained[-1][1], "epochs": 10.0}
        weights.write_json(out / "trainer" / "state.json", asked | {"step": 5, "steps": 5})
    monkeypatch.setattr(evaluate, "script", script)
    ask = lambda *more: run(tiny, data, tmp_path, "--ablations", "--init-from", "stage2", *more)
    found = [ask("--steps", "5"), ask()][-1]["ablations"]
    assert trained == [("train.py", None), ("train.py", "velocity"), ("train.py", "speech-context")]
    assert found["whole"]["jaw correlation"] is not None and "without velocity" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        ask("--steps", "6")
    assert stop.value.code == 2 and "was trained with another steps" in capsys.readouterr().err


@pytest.mark.parametrize("options, message", [
    (["voice"], "part voice: expected some of answers, speech"),
    (["--ablations"], "--ablations needs --init-from"),
    (["speech", "--asr", "base"], "pip install faster-whisper"),
    (["answers", "--checkpoint", "nowhere"], "nowhere is not a directory"),
    (["face", "--data", "nowhere"], "is not finished prepared data"),
    (["latency", "--audio", "nowhere.wav"], "nowhere.wav")])
def test_wrong_input_is_one_line(tiny, data, tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.setitem(sys.modules, "faster_whisper", None)
    with pytest.raises(SystemExit) as stop:
        evaluate.main(["--checkpoint", str(tiny), "--data", str(data), "--out", str(tmp_path), *SHORT, *options])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and error.count("\n") == 1


def test_a_script_that_fails_is_told(capfd):
    with pytest.raises(ValueError, match="nothing.py ended with code 2"):
        evaluate.script("nothing.py", SimpleNamespace(threads=1), quiet=True)
