"""evaluate.py and face/measure.py: faces whose figures are known; every part over a small split with a tiny model."""
import json
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

import cli
import disk
import evaluate
import train
from data import Split, Writer, collate
from face import measure as face_measure
from face.arkit import ARKIT_NAMES
from face.head import make_head
from face_decoder import FPS, face_loss
from flow import OUTPUT_HOP, OUTPUT_RATE
from model import Answer, ExOmni
from test_train import change
from toy import marking, rooms, speaking
from toy.teacher import face_track

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


# ---------------------------------------------------------------- faces

def test_the_teacher_scores_full_marks_against_itself(voice, head):
    found = face_measure.face_figures([voice["face"]], [voice["face"]], [voice], head)
    for name in ("lips close in /p b m/", "lips close in /f v/", "jaw correlation", "jaw lag within one frame",
                 "closed in silence", "jitter", "opening (95 % of frames below), over the teacher's"):
        assert found[name] == pytest.approx(1), name
    for name in ("LVE, % (lve_l2)", "jaw lag to the teacher, ms", "velocity error, all"):
        assert found[name] == 0, name


@pytest.mark.parametrize("shift", [-3, -1, 2])
def test_a_shifted_track_lags_by_its_shift(voice, head, shift):
    track = voice["face"][np.clip(np.arange(FRAMES) - shift, 0, FRAMES - 1)]
    found = face_measure.face_figures([track], [voice["face"]], [voice], head)
    own = face_measure.face_figures([voice["face"]], [voice["face"]], [voice], head)
    sound = "lips' lag to the sound, ms (median)"
    assert found["jaw lag to the teacher, ms"] == pytest.approx(1000 * shift / FPS)
    assert found[sound] - own[sound] == pytest.approx(1000 * shift / FPS)
    assert found["jaw lag within one frame"] == (abs(shift) == 1) and found["jaw correlation"] < 0.95


@pytest.mark.parametrize("still", ["mean", "shut"])
def test_a_face_held_still_gets_no_marks(voice, head, still):
    track = np.zeros((FRAMES, 52)) + (voice["face"].mean(0) if still == "mean" else 0)
    found = face_measure.face_figures([track], [voice["face"]], [voice], head)
    for name in ("lips close in /p b m/", "lips close in /f v/", "jaw correlation", "closed in silence", "jitter"):
        assert found[name] == 0, name
    assert found["jaw lag to the teacher, ms"] is None and found["LVE, % (lve_l2)"] > 1


def test_a_trembling_face_has_more_jitter(voice, head):
    tremble = voice["face"] + 0.05 * (np.arange(FRAMES) % 2)[:, None]
    assert face_measure.face_figures([tremble], [voice["face"]], [voice], head)["jitter"] > 2


def test_how_an_answer_ends_and_trembles_there(voice, head):
    own, frame = voice["face"], np.arange(FRAMES)[:, None]
    figures = lambda track: face_measure.face_figures([track, own], [own, own], [voice, voice], head)
    names = ["jitter, first 6 frames", "jitter, last 6 frames", "ends with a closed eye", "ends with parted lips"]
    assert [figures(own)[name] for name in names] == pytest.approx([1, 1, 0, 0])
    found = figures(own + .2 * (frame >= FRAMES - 3))
    assert found[names[0]] == pytest.approx(1) and found[names[1]] > 2 and found[names[2]] == 0
    cut = figures(own[:45])                                     # in the middle of a vowel
    assert cut[names[3]] == .5
    blinking = own.copy()
    blinking[-1, ARKIT_NAMES.index("eyeBlinkRight")] = .5
    assert figures(blinking)[names[2]] == .5 and face_measure.endings([], head)[names[2]] is None


def test_without_recordings_what_needs_them_is_left_out(voice, head, tmp_path):
    silent = voice | {"audio": None}                            # data made from shipped answers
    found = face_measure.face_figures([voice["face"]], [voice["face"]], [silent], head)
    assert found["lips close in /p b m/"] == 1 and found["lips' lag to the sound, ms (median)"] is None
    answer = SimpleNamespace(waveform=torch.zeros(100))
    assert speaking.write_sounds([({"answer": "Yes."}, answer, silent)], tmp_path).keys() == {"generated"}
    found = face_measure.face_figures([voice["face"]], [voice["face"]], [None], head)
    assert found["jaw correlation"] == pytest.approx(1)
    assert found["lips close in /p b m/"] is found["closed in silence"] is None


def test_lines_of_the_frame_rate_are_seen_in_noise_and_noise_has_none():
    noise = 0.1 * torch.randn(2, 5 * OUTPUT_RATE, generator=torch.Generator().manual_seed(0))
    pulses, hop = noise.clone(), noise.clone()
    pulses[:, ::OUTPUT_HOP] += 1
    hop[:, ::4] += 0.02                                         # at 5,512 Hz alone
    found = speaking.lines(list(noise))
    # About 100 independent frames in each level: its deviation is 0.6 dB, and 84 lines are looked at.
    assert abs(found["mean"]) < 0.3 and found["p90"] < 1.5 and found["max"] < 3
    assert speaking.lines(list(pulses))["mean"] > 6
    found = speaking.lines(list(hop))
    assert abs(found["mean"]) < 0.5 and found["max"] > 6
    assert speaking.lines([torch.zeros(100)]) == {"mean": 0, "p90": 0, "max": 0}    # shorter than a frame, silent


def test_silence_is_away_from_sounds_but_not_from_the_ends():
    silent = face_measure.silent_frames(PHONES, FRAMES).nonzero()[0]
    assert silent.tolist() == [*range(0, 10), *range(51, 58), *range(75, 84)]   # to 0.31 s, 1.69 to 1.91, from 2.49
    silent = face_measure.silent_frames([["aa", 0, 0.49], ["pau", 0.49, 0.8]], 40)
    assert silent.nonzero()[0].tolist() == [*range(18, 40)]


# ---------------------------------------------------------------- the whole

SPEECH, TEXT = ([{"role": "user", "content": content}] for content in ([{"type": "speech"}], "Say it."))
SHORT = ["--max-new-tokens", "2", "--threads", "1", "--answers", "3"]


@pytest.fixture(scope="module")
def tiny(checkpoint, tmp_path_factory):
    """Its speech encoder takes 1 s at once: 30 s would be most of the work."""
    return change(checkpoint, tmp_path_factory.mktemp("evaluate") / "tiny")


@pytest.fixture(scope="module")
def data(tiny, voice, tmp_path_factory):
    """train, val, test-voices and voice, whose answers are what the tiny model says, but for the last of each split."""
    out, model = tmp_path_factory.mktemp("evaluate"), ExOmni.from_pretrained(tiny)
    random = np.random.default_rng(0)
    asked = [{"id": f"q{n}", "task": "qa", "messages": SPEECH, "text": "What?", "kind": "talk", "phrasing": "train",
              "family": ["espeak", "flite"][n % 2], "audio": 0.3 * random.standard_normal(4000 + 2000 * n)}
             for n in range(3)]
    asked = [row | {"audio": np.round(row["audio"].clip(-1, 1) * 32767).astype(np.int16)} for row in asked]
    clips = [row | {"audio": row["audio"].astype(np.float32) / 32767} for row in asked]     # as Split reads it
    answers = [text for text, _ in marking.write_texts(model, clips, 2)[:2]] + ["Something else."]
    (read, _), = marking.write_texts(model, [{"messages": TEXT, "audio": None}], 2)
    arrays = {"units": np.arange(UNITS), "face": voice["face"]}
    with Writer(out / "voice") as writer:
        for n, text in enumerate(dict.fromkeys([*answers, "held out"])):
            writer.add({"id": f"a{n}", "task": "tts", "messages": TEXT, "answer": text, "phones": PHONES},
                       audio=voice["audio"], **arrays)
        writer.finish(unit_vocab=96)
    for split in ("train", "val", "test-voices"):
        with Writer(out / split) as writer:
            for row, text in zip(asked, answers):
                row = row | {"answer": text}
                writer.add({key: row[key] for key in row if key != "audio"}, audio=row["audio"], **arrays)
            writer.add({"id": "c", "task": "chat", "messages": TEXT, "answer": "No.", "kind": "talk"})
            if split != "test-voices":
                writer.add({"id": "f", "task": "face", "messages": TEXT, "answer": "held out"}, **arrays)
                writer.add({"id": "t", "task": "tts", "messages": TEXT, "answer": read}, **arrays)
                writer.add({"id": "u", "task": "tts", "messages": TEXT, "answer": "Read otherwise."}, **arrays)
            writer.finish(unit_vocab=96)
    return out


def measure(tiny, data, out, *more):
    evaluate.main([*more, "--checkpoint", str(tiny), "--data", str(data), "--out", str(out), *SHORT])
    return disk.read_json(out / "evaluation.json")


def test_one_run_reports_all_parts(tiny, data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(evaluate, "script", lambda *_, **__: 1.5)       # sample.py itself: its own tests
    found = measure(tiny, data, tmp_path)
    printed = capsys.readouterr().out
    for split in ("val", "test-voices"):
        assert found["answers"]["splits"][split]["spoken"] == {"right": 2, "asked": 3, "share": pytest.approx(2 / 3)}
        assert found["answers"]["splits"][split]["family"]["flite"]["share"] == 1
        wrong, = found["answers"]["wrong"][split]
        assert wrong["expected"] == "Something else." != wrong["got"] and wrong["question"] == "What?"
        assert found["answers"]["splits"][split]["typed"]["asked"] == 1
    assert found["answers"]["changed"].keys() == {"split", "clean", *rooms.CONDITIONS}
    assert found["speech"]["text right"]["right"] == found["face"]["generated"]["answers"] == found["speech"]["answers"]
    assert {f"lines in the sound, {side}, mean, dB" for side in ("generated", "voice")} <= found["speech"].keys()
    assert found["speech"]["twice the same seed, equal"] is True and "word error rates left out" in printed
    for side, rate in (("generated", 22_050), ("voice", 16_000)):
        rows = [json.loads(line) for line in (tmp_path / "speech" / f"{side}.jsonl").read_text().splitlines()]
        assert len(rows) == found["speech"]["answers"] and soundfile.info(rows[0]["audio"]).samplerate == rate
    assert abs(found["face"]["generated"]["face longer than speech by at most, s"]) < 1 / FPS
    assert found["face"]["held_out"]["teacher"]["jaw correlation"] == pytest.approx(1)
    seconds = found["latency"]["seconds"]
    assert seconds["cold start to answer.html"]["median"] == 1.5
    assert seconds["text"]["median"] < seconds["first sound, after the question"]["median"]
    assert 0 < seconds["face latency"]["median"] < seconds["face"]["median"] > seconds["speech TTFT"]["median"]
    assert found["latency"]["paper"] == {"overall RTF": 2.158, "speech TTFT": 0.029, "face latency": 0.012}
    assert seconds.keys() > found["latency"]["paper"].keys() and "2.158" in printed and "NVIDIA H20" in printed
    assert found["latency"]["hardware"] and found["latency"]["hardware"] in printed
    assert sum(row["answers"] for row in found["speech"]["by duration"].values()) == found["speech"]["answers"]
    assert "2/3 0.667" in printed and f"wrote {tmp_path / 'evaluation.json'}" in printed


def test_parts_can_be_asked_for_and_earlier_ones_stay(tiny, data, tmp_path):
    disk.write_json(tmp_path / "evaluation.json", {"latency": {"checkpoint": "other"}})
    found = measure(tiny, data, tmp_path, "answers")
    assert found.keys() == {"latency", "answers"} and found["latency"] == {"checkpoint": "other"}
    assert found["answers"]["checkpoint"] == str(tiny)


def test_error_rates_are_those_of_the_transcripts(tiny, data, tmp_path, monkeypatch):
    texts = {row["answer"] for row in Split(data / "voice").rows}
    monkeypatch.setattr(speaking, "words", str.split)                   # the tiny model's answers are not English
    transcribe = lambda path: "" if "generated" in str(path) else "so it is"
    monkeypatch.setattr(evaluate, "transcriber", lambda name: transcribe)
    found = measure(tiny, data, tmp_path, "speech", "--asr", "any")["speech"]
    assert found["word error rate, generated"] == 1 and found["word error rate, voice"] >= 1
    assert {row[0] for row in found["heard"]["generated"]} <= texts
    assert all(row["generated"] == 1 and row["voice"] >= 1 for row in found["by duration"].values())


def test_predictions_are_those_of_the_loss(tiny, data):
    model, split = ExOmni.from_pretrained(tiny), Split(data / "val")
    last = model.face_decoder.out_head[-1]
    last.weight.data.mul_(0.1), last.bias.data.fill_(0.5)               # away from the limits, which clip them
    rows = [i for i, row in enumerate(split.rows) if "face" in row]
    tracks = face_measure.teacher_forced(model, split, rows)
    batch = collate([split[i] for i in rows], model, ("face",))
    with torch.no_grad():
        loss = model(batch, {"face": len(rows)})["face"]
    ours = face_loss(torch.from_numpy(np.stack(tracks)), batch["face"], batch["frames"])
    assert 0 < np.stack(tracks).min() and np.stack(tracks).max() < 1 and torch.allclose(ours, loss, rtol=1e-4)


def test_every_ablation_of_the_paper_is_trained_and_measured(tiny, data, tmp_path, monkeypatch, capsys):
    asked = []

    def script(name, args, *options, advice):
        """Saves the tiny model, ablated but untrained, where train.py would."""
        given = dict(zip(options[::2], options[1::2]))
        asked.append(tuple(given.get(f"--{key}") for key in ("stage", "init-from", "ablate", "steps", "resume")))
        model = ExOmni.from_pretrained(tiny)
        if "--ablate" in given:
            model.ablate(given["--ablate"])
        model.save_pretrained(given["--out"])
    monkeypatch.setattr(evaluate, "script", script)
    options = ["--ablations", "--init-from", "stage2", "--init-generator-from", "stage1", "--steps", "5"]
    found, printed = measure(tiny, data, tmp_path, *options)["ablations"], capsys.readouterr().out
    faces = ["velocity", "speech-context", "context", "tqgf", "units"]
    assert asked == [(3, "stage2", name, 5, "auto") for name in [None, *faces]] + [
        (2, "stage1", name, 5, "auto") for name in (None, "generator-tqgf")]
    for name in ("whole", *(f"without {name}" for name in faces)):
        assert found[name]["LVE, % (lve_l2)"] > 0
        assert found[name]["paper"].keys() == {"v1 LVE", "v2 Sync-D", "v2 Sync-C"}
    assert found["whole"]["paper"]["v1 LVE"] == 3.667 and found["without context"]["paper"]["v2 Sync-D"] == 9.591
    assert found["without tqgf"]["paper"] == {"v1 LVE": None, "v2 Sync-D": 10.209, "v2 Sync-C": 4.043}
    whole, without = found["generator"]["whole"], found["generator"]["without generator-tqgf"]
    assert (whole["paper"]["v1 test-hard"], without["paper"]["v1 test-hard"]) == (13.67, 14.68)
    for figures in (whole, without):
        assert figures["unit loss"] > 0 and 0 <= figures["unit accuracy"] <= 1
        assert figures["text right"] == {"right": 1, "asked": 2, "share": 0.5} and figures["unit error rate"] > 0
    assert whole["unit loss"] != without["unit loss"] and "only the order compares" in printed
    rows = [re.split(" {2,}", line.strip()) for line in printed.splitlines() if line.startswith("  ")]
    paper = {row[0]: row[-3:] for row in rows if len(row) > 4}
    assert paper["w/o speech context"] == ["5.079", "-", "-"]
    assert paper["w/o TQGF"] == ["14.68", "about equal", "better"]


def test_a_finished_ablation_is_used_again_and_another_one_is_refused(tiny, data, tmp_path, monkeypatch, capsys):
    source, trainings = tmp_path / "stage2", []
    shutil.copytree(tiny, source)
    disk.write_json(source / "stages.json", {stage: {"step": 1, "steps": 1} for stage in "12"})

    def script(name, args, *options, advice):
        """train.py in this process."""
        try:
            train.main([str(option) for option in options])
        except SystemExit as stop:
            cli.failed(name, stop.code, advice)
        trainings.append(disk.read_json(tmp_path / "ablations" / "context" / "stages.json")["3"]["ablate"])
    monkeypatch.setattr(evaluate, "script", script)
    monkeypatch.setattr(evaluate, "TABLE_6", {"context": evaluate.TABLE_6["context"]})
    options = ["--ablations", "--init-from", str(source), "--steps"]
    first, again = (measure(tiny, data, tmp_path, *options, "1")["ablations"]["without context"] for _ in range(2))
    assert first == again and trainings == ["context", "context"] and capsys.readouterr().out.count("step 1/1") == 1
    with pytest.raises(SystemExit) as stop:
        measure(tiny, data, tmp_path, *options, "2")
    assert stop.value.code == 2
    printed = capsys.readouterr()
    assert "holds another training, remove it or choose another --out" in printed.out and printed.err.count("\n") == 1


def test_the_units_loss_of_the_ablation_is_that_of_training(tiny, data):
    model, split = ExOmni.from_pretrained(tiny), Split(data / "val")
    rows = [i for i, row in enumerate(split.rows) if row["task"] == "tts"]
    with torch.no_grad():
        losses = [model(collate([split[i]], model, ("units",)), {"units": 1})["units"].item() for i in rows]
    found = speaking.generator_figures(model, data, 3, 2, 0)
    assert found["unit loss"] == pytest.approx(np.mean(losses), rel=1e-5)


@pytest.mark.parametrize("options, message", [
    (["voice"], "part voice: expected some of answers, speech"),
    (["--ablations"], "--ablations needs --init-from"),
    (["speech", "--asr", "base"], "pip install faster-whisper"),
    (["answers", "--out", str(Path(__file__) / "below")], "is no directory to write to"),
    (["answers", "--device", "xla"], "--device xla: expected auto, cpu"),
    (["answers", "--threads", "0"], "--threads: '0': expected a whole number from 1 to 1024"),
    (["answers", "--epochs", "inf"], "--epochs: 'inf': expected a number from"),
    (["answers", "--checkpoint", "nowhere"], "nowhere is not a directory"),
    (["answers", "--steps", "2"], "--steps is for ablations, which is not asked for"),
    (["face", "--asr", "base"], "--asr is for speech, which is not asked for"),
    (["face", "--data", "nowhere"], "is not finished prepared data"),
    (["latency", "--audio", "nowhere.wav"], "nowhere.wav")])
def test_wrong_input_is_one_line(tiny, data, tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.setitem(sys.modules, "faster_whisper", None)
    with pytest.raises(SystemExit) as stop:
        evaluate.main(["--checkpoint", str(tiny), "--data", str(data), "--out", str(tmp_path / "out"), *SHORT, *options])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_script_that_fails_with_its_own_line_adds_none(capfd):
    with pytest.raises(SystemExit) as stop:
        evaluate.script("nothing.py", SimpleNamespace(threads=1), quiet=True)
    printed = capfd.readouterr()
    assert stop.value.code == 2 and "nothing.py ended with code 2" in printed.out and printed.err.count("\n") == 1
