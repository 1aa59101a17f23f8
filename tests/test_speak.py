"""`prepare.py speak`, with a program that the test writes; and the whole way from recordings to stages II and III."""
import argparse
import sys

import numpy as np
import pytest
import soundfile

import train
from corpora import adding, label, speak, units
from data import Split, Writer, check, rows_of
from model import ExOmni
from tiny_training import base, command            # noqa: F401 (a fixture)
from whisper import load_audio

SAY = [{"role": "user", "content": "Read aloud: so"}]
PROGRAM = '''
import sys, time, wave
out = sys.argv[1]
text = sys.argv[2] if len(sys.argv) > 2 else sys.stdin.read()
if text == "slow":
    time.sleep(9)
if text == "fails":
    sys.exit("no voice\\nfor this")
if text == "nothing":
    sys.exit()
if text == "junk":
    open(out, "w").write("not a sound")
    sys.exit()
with wave.open(out, "wb") as file:
    file.setparams((1, 2, 8000, 0, "NONE", ""))
    samples = bytes([0, 0] if text == "silent" else [0, 16, 0, 240]) * 400 * len(text)
    file.writeframes(samples)
'''


@pytest.fixture(scope="module")
def tts(tmp_path_factory):
    path = tmp_path_factory.mktemp("tts") / "with a space" / "tts.py"
    path.parent.mkdir()
    path.write_text(PROGRAM)
    return f"{sys.executable} -S -E '{path}' {{out}}"


def run(module, *words):
    parser = argparse.ArgumentParser()
    getattr(module, f"add_{module.__name__.split('.')[-1]}")(parser.add_subparsers())
    args = parser.parse_args([module.__name__.split(".")[-1], *map(str, words)])
    args.command(args)


def write(directory, answers, task="qa"):
    with Writer(directory) as out:
        for n, answer in enumerate(answers):
            out.add({"id": f"a{n}", "task": task, "messages": SAY, "answer": answer})
        out.add({"id": "asked", "task": "asr", "messages": [{"role": "user", "content": [{"type": "speech"}]}],
                 "answer": "not to be spoken"}, audio=np.full(8000, 0.5))
        out.add({"id": "typed", "task": "chat", "messages": SAY, "answer": "Nor this."})
        out.add({"id": "without an answer", "task": "qa", "messages": SAY})
        out.finish(corpus="ours")
    return directory


def samples_of(split):
    return {row["id"]: adding.waveform(split, row["answer_audio"]) for row in split.rows if "answer_audio" in row}


@pytest.mark.parametrize("form", ["{} {{text}}", "{}"])
def test_answers_are_spoken_once_each_by_argument_or_standard_input(tmp_path, tts, capsys, form):
    odd = ["-w out; rm -rf /tmp/none $HOME 'é\"你", "{out} {text}", "Same.", "Same."]
    data = write(tmp_path / "train", odd)
    run(speak, tmp_path, "--tts", form.format(tts))
    split = Split(data, verify=True)
    sounds = samples_of(split)
    assert sounds.keys() == {"a0", "a1", "a2", "a3"} and "spoke 3 answers" in capsys.readouterr().out
    for n, text in enumerate(odd):
        letters = len(text) + (n == 0 and "text" in form)       # a space keeps a text from being an option
        assert len(sounds[f"a{n}"]) == pytest.approx(2 * 800 * letters, abs=16)
        assert np.abs(sounds[f"a{n}"]).max() > 0.05
    assert split.rows[2]["answer_audio"] == split.rows[3]["answer_audio"]
    assert (split[4]["audio"] > 0.49).all() and split.manifest["corpus"] == "ours"
    before = (data / "audio.i16").read_bytes()
    run(speak, tmp_path, "--tts", form.format(tts))
    assert (data / "audio.i16").read_bytes() == before


def test_failures_are_counted_by_reason_and_tried_again(tmp_path, tts, capsys):
    data = write(tmp_path, ["Good.", "fails", "silent", "nothing", "junk", "slow", "x" * 40, "a\0b", "silent "])
    words = [data, "--tts", f"{tts} {{text}}", "--timeout", 0.5, "--longest", 2]
    run(speak, *words)
    printed = capsys.readouterr().out
    assert "spoke 1 answers" in printed and samples_of(Split(data)).keys() == {"a0"}
    for expected in ("failed 1: ended with code 1, first a1 no voice for this", "failed 1: silence, first a2",
                     "failed 1: wrote no sound, first a3", "failed 1: no sound that can be read, first a4",
                     "failed 1: not done in 0.5 s, first a5", "failed 1: longer than 2 s, first a6 4.0 s",
                     "failed 1: not a text for a command line, first a7"):
        assert expected in printed, printed
    run(speak, *words[:-1], 5)
    assert "spoke 1 answers" in capsys.readouterr().out and samples_of(Split(data)).keys() == {"a0", "a6"}
    run(speak, *words)                                          # what is left can only fail: said, no error
    assert "spoke 0 answers" in capsys.readouterr().out and not list(data.glob(".adding*"))


def test_interrupted_it_goes_on_and_the_end_is_the_same(tmp_path, tts, monkeypatch):
    answers = ["One.", "Seventeen.", "Three!", "Four score."]
    data, whole = write(tmp_path / "a", answers), write(tmp_path / "b", answers)
    run(speak, whole, "--tts", tts)
    add, made = adding.Adding.add, []

    def interrupted(self, number, array):
        if len(made) == 2:
            made.append("the interrupt")
            raise KeyboardInterrupt
        made.append(number)
        add(self, number, array)
    monkeypatch.setattr(adding.Adding, "add", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(speak, data, "--tts", tts)
    assert not samples_of(Split(data))
    run(speak, data, "--tts", tts)
    assert sorted(made[:2] + made[3:]) == [0, 1, 2, 3]
    for name in ("audio.i16", "samples.jsonl", "manifest.json"):
        assert (data / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.parametrize("command, expected", [
    ("espeak-ng {text}", "expected a program and {out}"),
    ("", "expected a program and {out}"),
    ("say 'x {out}", "No closing quotation"),
    ("no-such-program-of-ours {out}", "there is no program no-such-program-of-ours"),
    (f"{sys.executable} -c raise {{out}}", "spoke none of 2 answers: ended with code 1, a"),
])
def test_a_command_that_cannot_speak_is_one_line(tmp_path, command, expected):
    data = write(tmp_path, ["One.", "Two."])
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        run(speak, data, "--tts", command)
    assert expected in str(error.value) and "\n" not in str(error.value)
    assert not samples_of(Split(data)) and not list(data.glob(".adding*"))


# ---- your voice, your language ------------------------------------------------------------------------------------

class Teacher:
    """Instead of the published network: a mouth that opens with the sound."""

    def __init__(self, *_):
        pass

    def track(self, sound, frames):
        return np.repeat(np.linspace(0, np.abs(sound).max(), frames)[:, None], 52, 1)


def test_from_recordings_to_stages_two_and_three(tmp_path, base, tts, monkeypatch):     # noqa: F811
    """wavs and texts -> rows -> speech of the answers that have none -> units -> faces -> trained."""
    data = tmp_path / "data"
    for name in ("train", "val"):
        with Writer(data / name) as out:
            for n, text in enumerate(["Guten Tag.", "Auf Wiedersehen!"]):
                soundfile.write(tmp_path / "a.wav", 0.3 * np.sin(np.arange(22_050 // (n + 1)) / 20), 22_050)
                listen = [{"role": "user", "content": [{"type": "speech"}]}]
                out.add({"id": f"r{n}", "task": "asr", "messages": listen, "answer": text},
                        audio=load_audio(tmp_path / "a.wav").numpy())
            out.add({"id": "text", "task": "tts", "messages": SAY, "answer": "Wie geht es Ihnen?"})
            out.finish()
    monkeypatch.setitem(label.TEACHERS, "audio2face3d", Teacher)
    monkeypatch.setattr(label, "FILES", ())
    run(speak, data, "--tts", tts)
    run(units, data, "--checkpoint", base, "--from-asr", "--device", "cpu")
    run(label, data, "--teacher", "audio2face3d", tmp_path)
    split = Split(data / "train", verify=True)
    tasks = [row["task"] for row in split.rows]
    assert (tasks.count("asr"), tasks.count("tts"), tasks.count("face")) == (2, 3, 3)
    check(split, rows_of(split, ("asr", "tts", "face")), ExOmni.from_pretrained(base))
    for stage, start in ((2, base), (3, tmp_path / "stage2")):
        out = tmp_path / f"stage{stage}"
        train.main(command(data, start, out, stage, "--steps", 1, "--anyway", "--device", "cpu", "--recipe", "v1"))
        assert (out / "model.safetensors").exists()
