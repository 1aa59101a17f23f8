"""sample.py: every kind of input works or is refused in one line, and nothing that existed is lost."""
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file

import prepare
import sample
from face.arkit import ARKIT_NAMES, read_track
from face_decoder import frames_for_units
from flow import OUTPUT_RATE, mel_frames

ROOT = Path(__file__).parent.parent
QUESTION = ROOT / "tests" / "fixtures" / "question.wav"
SHORT = ["--max-new-tokens", "3", "--temperature", "0"]


@pytest.fixture
def out(tmp_path):
    return tmp_path / "answer"


def ask(checkpoint, out, *args):
    sample.main(["--checkpoint", str(checkpoint), "--out", str(out), *SHORT, *map(str, args)])


def read(directory):
    face = json.loads((directory / "answer.json").read_text())
    sound, rate = soundfile.read(directory / "answer.wav")
    assert rate == OUTPUT_RATE
    return (directory / "answer.txt").read_text(encoding="utf-8"), sound, face


def sine(seconds, rate=16_000, channels=1):
    t = np.arange(round(seconds * rate)) / rate
    return np.repeat(0.3 * np.sin(2 * np.pi * 220 * t)[:, None], channels, axis=1)


def test_an_answer_is_text_sound_and_face_of_one_length(checkpoint, out, capsys):
    ask(checkpoint, out, "--audio", QUESTION)
    text, sound, face = read(out)
    printed = capsys.readouterr().out
    assert printed.count(text) == 1, "the text is printed as it comes"
    for word in ("s of speech in", "RTF", "speech TTFT", "face latency"):
        assert word in printed.splitlines()[-1]
    assert face["facsNames"] == ARKIT_NAMES and face["numPoses"] == 52 and face["exportFps"] == 30
    assert face["trackPath"] == "answer.wav" and face["numFrames"] == len(face["weightMat"])
    weights = np.array(face["weightMat"])
    assert weights.shape == (face["numFrames"], 52) and weights.min() >= 0 and weights.max() <= 1
    units = next(n for n in range(1, 61) if frames_for_units(n) == face["numFrames"])
    assert len(sound) == 256 * mel_frames(units)


def test_the_answer_can_be_watched_and_taken_elsewhere(checkpoint, out, capsys):
    ask(checkpoint, out, "--text", "Hi", "--export", "csv,npy,glb")
    assert {p.name for p in out.iterdir()} == {f"answer.{e}" for e in ("txt", "wav", "json", "html", "csv", "npy", "glb")}
    page = (out / "answer.html").read_text(encoding="utf-8")
    assert page.startswith("<!") and len(page) < 2.5e6
    from_json = read_track(out / "answer.json")
    for ending in ("csv", "npy"):
        assert np.abs(read_track(out / f"answer.{ending}") - from_json).max() < 1e-4
    assert str(out / "answer.html") in capsys.readouterr().out


def test_an_unknown_format_is_refused_before_anything_is_asked(checkpoint, out, capsys):
    with pytest.raises(SystemExit) as stop:
        ask(checkpoint, out, "--text", "Hi", "--export", "glb,fbx")
    assert stop.value.code == 2 and "unknown format fbx: expected some of json, csv" in capsys.readouterr().err
    assert not out.exists()


def test_a_format_whose_package_is_missing_is_refused_before_anything_is_asked(checkpoint, out, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SystemExit) as stop:
        ask(checkpoint, out, "--text", "Hi", "--export", "mp4")
    assert stop.value.code == 2 and "pip install imageio-ffmpeg" in capsys.readouterr().err and not out.exists()


def test_the_same_seed_gives_the_same_answer(checkpoint, tmp_path):
    for name in "ab":
        sample.main(["--checkpoint", str(checkpoint), "--text", "Hi", "--out", str(tmp_path / name),
                     "--max-new-tokens", "4", "--temperature", "1", "--seed", "3"])
    for ending in ("txt", "wav", "json"):
        a, b = ((tmp_path / name / f"answer.{ending}").read_bytes() for name in "ab")
        assert a == b


def test_several_questions_are_a_batch_with_a_folder_each(checkpoint, out, tmp_path):
    other = tmp_path / "other.wav"
    soundfile.write(other, sine(0.5), 16_000)
    ask(checkpoint, out, "--audio", QUESTION, other)
    ask(checkpoint, tmp_path / "alone", "--audio", other)
    assert sorted(p.name for p in out.iterdir()) == ["1-question", "2-other", "gallery.html"]
    assert read(out / "2-other")[0] == read(tmp_path / "alone")[0]


def test_a_conversation_goes_on_until_an_empty_line(checkpoint, out, monkeypatch, capsys):
    lines = iter(["Hello", str(QUESTION), ""])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    ask(checkpoint, out, "--interactive")
    assert sorted(p.name for p in out.iterdir()) == ["1", "2"]
    assert capsys.readouterr().out.count("RTF") == 2


def test_without_a_speech_decoder_there_is_text_and_a_face_and_it_says_so(checkpoint, out, tmp_path, capsys):
    mute = tmp_path / "mute"
    shutil.copytree(checkpoint, mute, ignore=shutil.ignore_patterns("speech_decoder"))
    ask(mute, out, "--text", "Hi")
    assert sorted(p.name for p in out.iterdir()) == ["answer.html", "answer.json", "answer.txt"]
    assert "no speech_decoder/" in capsys.readouterr().out


@pytest.mark.parametrize("name, sound, rate", [
    ("8 kHz", sine(0.5, 8_000), 8_000),
    ("96 kHz", sine(0.5, 96_000), 96_000),
    ("6 channels", sine(0.5, channels=6), 16_000),
    ("0.05 s", sine(0.05), 16_000),
    ("exactly 30 s", sine(30), 16_000),
    ("31 s", sine(31), 16_000),
    ("3 minutes", sine(180), 16_000),
    ("silence", np.zeros((16_000, 1)), 16_000)])
def test_odd_sound_is_heard(checkpoint, out, tmp_path, name, sound, rate):
    soundfile.write(tmp_path / "odd.wav", sound, rate)
    ask(checkpoint, out, "--audio", tmp_path / "odd.wav")
    read(out)


def test_one_emoji_is_a_question(checkpoint, out):
    ask(checkpoint, out, "--text", "\N{FACE WITH TEARS OF JOY}")
    read(out)


def bad_audio(path, kind):
    if kind == "not audio":
        path.write_text("hello")
    elif kind == "empty file":
        path.write_bytes(b"")
    elif kind == "no samples":
        soundfile.write(path, np.zeros((0, 1)), 16_000)
    elif kind == "NaN":
        soundfile.write(path, np.array([0.1, np.nan, 0.2]), 16_000, subtype="FLOAT")


def bad_checkpoint(directory, kind):
    weights = directory / "model.safetensors"
    if kind == "no config":
        (directory / "config.json").unlink()
    elif kind == "config not json":
        (directory / "config.json").write_text("{")
    elif kind == "truncated":
        weights.write_bytes(weights.read_bytes()[:-1000])
    elif kind == "decoder truncated":
        path = directory / "speech_decoder" / "flow.safetensors"
        path.write_bytes(path.read_bytes()[:5000])
    else:
        tensors = load_file(weights)
        name = "model.layers.1.mlp.down_proj.weight"
        if kind == "tensor missing":
            del tensors[name]
        elif kind == "wrong shape":
            tensors[name] = tensors[name][:, :-1].contiguous()
        elif kind == "left over":
            tensors["model.layers.7.mlp.down_proj.weight"] = torch.zeros(2)
        save_file(tensors, weights)


def refused(run, out, capsys) -> str:
    """The one line that is printed; what lay in `out` is still there, and nothing else."""
    out.mkdir()
    (out / "answer.txt").write_text("precious")
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit:
        run()
    assert exit.value.code == 2
    line, = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert [p.name for p in out.iterdir()] == ["answer.txt"] and (out / "answer.txt").read_text() == "precious"
    return line


@pytest.mark.parametrize("kind, says", [
    ("missing", "not found"), ("not audio", "not audio"), ("empty file", "not audio"), ("no samples", "at least one sample"),
    ("NaN", "1 samples that are NaN")])
def test_bad_sound_is_refused_in_one_line(checkpoint, out, tmp_path, capsys, kind, says):
    path = tmp_path / "q.wav"
    bad_audio(path, kind)
    line = refused(lambda: ask(checkpoint, out, "--audio", path), out, capsys)
    assert says in line and str(path) in line


@pytest.mark.parametrize("kind, says", [
    ("no config", "config.json not found"), ("config not json", "not valid json"),
    ("truncated", "not a complete safetensors"), ("decoder truncated", "not a complete safetensors"),
    ("tensor missing", "1 missing: llm.layers.1.mlp.down_proj.weight"),
    ("wrong shape", "model.layers.1.mlp.down_proj.weight is [64, 127], expected [64, 128]"),
    ("left over", "left over: model.layers.7.mlp.down_proj.weight")])
def test_a_broken_checkpoint_is_refused_in_one_line(checkpoint, out, tmp_path, capsys, kind, says):
    broken = tmp_path / "broken"
    shutil.copytree(checkpoint, broken)
    bad_checkpoint(broken, kind)
    assert says in refused(lambda: ask(broken, out, "--text", "Hi"), out, capsys)


def test_a_text_longer_than_the_context_is_refused(checkpoint, out, capsys):
    line = refused(lambda: ask(checkpoint, out, "--text", "word " * 2000), out, capsys)
    assert "context" in line and "4096" in line


def test_no_question_is_refused(checkpoint, out, capsys):
    assert "nothing to answer" in refused(lambda: ask(checkpoint, out), out, capsys)


def test_an_unknown_preset_is_refused_with_the_list(out, tmp_path, capsys):
    line = refused(lambda: prepare.main(["weights", "--preset", "huge", "--out", str(tmp_path / "new")]), out, capsys)
    assert "'huge'" in line and "qwen3-8b" in line and not (tmp_path / "new").exists()


def test_the_command_itself_exits_with_2_and_one_line(tmp_path):
    run = subprocess.run([sys.executable, ROOT / "sample.py", "--checkpoint", tmp_path, "--audio", "nowhere.wav"],
                         capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 2 and run.stdout == ""
    assert run.stderr == "error: nowhere.wav not found: expected an audio file\n"
