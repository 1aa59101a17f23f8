"""sample.py: every kind of input works or is refused in one line, and nothing that existed is lost."""
import errno
import importlib
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file

import cli
import disk
import prepare
import sample
from face import make_head
from face.arkit import ARKIT_NAMES
from face.captures import read_track
from face.gltf import write_glb
from face_decoder import frames_for_units
from flow import OUTPUT_RATE, mel_frames

export = importlib.import_module("face.export")      # face.export is the function
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
    export.write_answers(out, {"9-stale": made()}, OUTPUT_RATE, make_head())
    ask(checkpoint, out, "--audio", QUESTION, other)
    ask(checkpoint, tmp_path / "alone", "--audio", other)
    assert sorted(p.name for p in out.iterdir()) == ["1-question", "2-other", "9-stale", "gallery.html"]
    assert read(out / "2-other")[0] == read(tmp_path / "alone")[0]
    page = (out / "gallery.html").read_text(encoding="utf-8")
    assert "2-other" in page and "9-stale" not in page, "that is of an earlier batch"


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


def test_text_and_speech_that_the_limit_cut_are_said(checkpoint, out, capsys, monkeypatch):
    monkeypatch.setattr("speech_generator.MAX_UNITS", 2)
    ask(checkpoint, out, "--text", "Hi")                                # random weights never stop
    printed = capsys.readouterr().out
    assert f"{out}: the answer was cut after 3 tokens: --max-new-tokens takes more" in printed
    assert f"{out}: the speech was cut after 0.5 s: the speech generator did not end it by itself" in printed


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
    ("missing", "not found"), ("not audio", "not audio"), ("empty file", "not audio"), ("no samples", "holds no sound"),
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


# ---------------------------------------------------------------- an answer's files: together or not at all

def test_a_conversation_begins_with_what_was_given_and_survives_mistakes(out, tmp_path, monkeypatch, capsys):
    spaced = Path(shutil.copy(QUESTION, tmp_path / "my question.wav"))
    heard = [f"'{spaced}'", str(spaced).replace(" ", "\\ "), spaced.as_uri()]
    read_as_text = ["what is it? " * 30, "yes and/or no?", '"Quoted", is it?']
    bad = ["./nowhere", "a misspelt name.wav", "~/nowhere.flac", f"{tmp_path}/", str(out / "12" / "answer.wav")]
    (out / "12").mkdir(parents=True)
    shutil.copy(QUESTION, bad[-1])                                  # the question lies where its answer would
    lines, asked, turns = iter([*heard, *read_as_text, *bad, ""]), [], []

    def answer(model, sampling, chats, clips, out, names, writing):
        turns.append(sum(message["role"] == "user" for message in chats[0]))
        asked.append((chats[0][-1]["content"][-1].get("text"), clips is not None))
        return [SimpleNamespace(text="So it is.")]
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    model = SimpleNamespace(config=SimpleNamespace(past_turns=20))
    monkeypatch.setattr(sample, "load", lambda args: (model, {}))
    monkeypatch.setattr(sample, "ask", answer)
    sample.main(["--interactive", "--text", "Hello", "--audio", str(QUESTION), "--out", str(out)])
    texts = [text.strip() for text in read_as_text]
    assert asked == [("Hello", True), *[(None, True)] * 3, *((text, False) for text in texts)]
    assert turns == [1, 2, 3, 4, 5, 6, 7]                           # those before stay in the prompt
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == len(bad) and all(line.startswith("error: ") for line in errors), errors
    assert all("not found" in line for line in errors[:3]) and "is a directory" in errors[3]
    assert "would be replaced" in errors[4]


@pytest.mark.parametrize("options, says", [
    (["--max-new-tokens", "4000"], "expected a whole number from 1 to 3750"), (["--max-new-tokens", "0"], "expected"),
    (["--temperature", "1e-320"], "expected 0 or a finite number from 1e-05"),
    (["--temperature", "nan"], "expected a number"),
    (["--text", "caf\udce9"], "--text is not UTF-8"),
    (["--top-p", "0"], "expected a number from"), (["--device", "foo"], "--device foo"), (["--seed", "-1"], "expected"),
    (["--interactive", "--audio", "a.wav", "b.wav"], "one question after the other")])
def test_a_wrong_argument_is_refused_before_anything_is_opened(out, capsys, monkeypatch, options, says):
    monkeypatch.setattr(sample, "load", None)
    assert says in refused(lambda: sample.main(["--text", "Hi", "--out", str(out), *options]), out, capsys)


@pytest.mark.parametrize("kind", ["same name", "link to it", "link as it", "in a batch", "template"])
def test_the_question_is_never_replaced(out, tmp_path, capsys, monkeypatch, kind):
    monkeypatch.setattr(sample, "load", None)
    folder = out / "1-answer" if kind == "in a batch" else out
    folder.mkdir(parents=True)
    question, options = folder / "answer.wav", []
    if kind == "link as it":
        question.symlink_to(shutil.copy(QUESTION, tmp_path / "q.wav"))
    else:
        shutil.copy(QUESTION, question)
    asked = [question]
    if kind == "link to it":
        asked = [tmp_path / "link.wav"]
        asked[0].symlink_to(question)
    elif kind == "in a batch":
        asked = [question, QUESTION]
    elif kind == "template":
        asked, options = [QUESTION], ["--template", folder / "answer.glb"]
        write_glb(options[1], make_head(), np.zeros((1, 52)), 30)
    with pytest.raises(SystemExit):
        sample.main([*map(str, ["--out", out, *options, "--audio", *asked])])
    assert "would be replaced by the answer" in capsys.readouterr().err
    assert question.read_bytes() == QUESTION.read_bytes()


@pytest.mark.parametrize("kind, says", [("a file", "is no directory"), ("below a file", "is no directory"),
                                        ("a name taken", "answer.html is a directory")])
def test_an_out_that_cannot_be_written_is_refused_before_the_model_is_opened(out, capsys, monkeypatch, kind, says):
    monkeypatch.setattr(sample, "load", None)
    if kind == "a name taken":
        (out / "answer.html").mkdir(parents=True)
    else:
        out.write_text("mine")
    with pytest.raises(SystemExit):
        sample.main(["--text", "Hi", "--out", str(out / "below" if kind == "below a file" else out)])
    assert says in capsys.readouterr().err


def made(seconds=1, face=1.0, text="new", sound=0.1):
    """An answer such as `generate` gives."""
    return SimpleNamespace(text=text, face=torch.full((30 * seconds, 52), face), units=[0],
                           waveform=None if sound is None else torch.full((OUTPUT_RATE * seconds,), sound))


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize("kind", ["face", "sound", "export", "rename"])
def test_an_answer_is_written_whole_or_not_at_all(out, monkeypatch, kind):
    """What an earlier one left there stays, all of it."""
    head = make_head()
    export.write_answers(out, {".": made(text="old")}, OUTPUT_RATE, head, ["html", "csv"])
    before, values = contents(out), {}
    if kind in ("face", "sound"):
        values[kind] = float("nan")
    elif kind == "export":
        monkeypatch.setitem(export.EXPORTS, "html", lambda *_: 1 / 0)
    else:
        monkeypatch.setattr(export.os, "replace", lambda *_: 1 / 0)
    with pytest.raises((ValueError, ZeroDivisionError)):
        export.write_answers(out, {".": made(**values)}, OUTPUT_RATE, head)
    assert contents(out) == before
    monkeypatch.undo()
    export.write_answers(out, {".": made(sound=None)}, OUTPUT_RATE, head)
    assert set(contents(out)) == {"answer.txt", "answer.json", "answer.html"}, "no sound, no csv of another answer"


def test_a_head_that_one_format_cannot_show_costs_that_format_alone(checkpoint, out, monkeypatch, capsys):
    def too_large(path, *_):
        raise ValueError(f"{path}: the head has too many triangles")
    monkeypatch.setitem(export.EXPORTS, "html", too_large)
    ask(checkpoint, out, "--text", "Hi", "--export", "csv")
    assert set(contents(out)) == {f"answer.{ending}" for ending in ("txt", "wav", "json", "csv")}
    printed = capsys.readouterr()
    assert printed.err.startswith("no .html: answer.html: the head has too many triangles\n")
    assert "watch" not in printed.out


def test_a_closed_console_does_not_cost_the_answer(checkpoint, out, monkeypatch):
    def closed(*_, **__):
        raise BrokenPipeError
    load = sample.load

    def loaded(args):
        result = load(args)
        monkeypatch.setattr("builtins.print", closed)
        return result
    monkeypatch.setattr(sample, "load", loaded)
    with pytest.raises((SystemExit, BrokenPipeError)):
        ask(checkpoint, out, "--text", "Hi")
    monkeypatch.undo()
    read(out)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows")
@pytest.mark.parametrize("names, step", [(["."], 1), (["1-a", "2-b"], 3)])
def test_killed_at_any_step_an_answer_is_the_old_or_the_new_one_never_both(out, names, step, monkeypatch):
    """Killed at the n-th file that is renamed or removed; the next answer's first step, `finish`, makes it whole."""
    monkeypatch.setitem(export.EXPORTS, "html", lambda path, track, sound, text, head: path.write_text(text))
    monkeypatch.setattr(export, "write_gallery", lambda path, answers, *_: path.write_text(str(answers)))
    head, endings = make_head(), ["html"]

    def state():
        files = [path for path in sorted(out.rglob("*"))
                 if path.is_file() and "/." not in path.relative_to(out.parent).as_posix()]
        return {str(path.relative_to(out)): path.read_bytes() for path in files if path.name != "mine.txt"}

    def write(text):
        size = len(text)
        answers = {name: made(text=f"{text} {name}", face=size / 10, sound=size / 20) for name in names}
        export.write_answers(out, answers, OUTPUT_RATE, head, endings)

    def die(left):
        """This process ends at the left-th rename or removal of an answer's file."""
        count = iter(range(left, -1, -1))
        replace, unlink = os.replace, Path.unlink
        dies = lambda path: os._exit(9) if Path(path).name.startswith(("answer.", ".answer", "gallery")) and not next(
            count) else None
        export.os.replace = lambda source, target: dies(source) or replace(source, target)
        Path.unlink = lambda path, missing_ok=False: dies(path) or unlink(path, missing_ok)

    write("new")
    new = state()
    write("older")
    (out / "mine.txt").write_text("mine")
    old, seen = state(), set()
    assert new.keys() == old.keys() and not [name for name in new if new[name] == old[name]]
    for left in range(0, 1000, step):
        pid = os.fork()
        if not pid:
            try:
                die(left)
                write("new")
            except BaseException:
                os._exit(1)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        between = state()
        assert code in (0, 9)
        assert between.items() <= old.items() or between.items() <= new.items(), "files of both"
        export.finish(out)
        after = state()
        assert after in (old, new) and (between != new or after == new)
        assert not [path.name for path in out.iterdir() if path.name.startswith(".")], "nothing is left over"
        seen.add(after == new)
        if code == 0:
            break
        write("older")
    assert seen == {True, False} and left >= 9 and (out / "mine.txt").read_text() == "mine"


def test_two_at_once_on_one_out_are_not_mixed(checkpoint, out, capsys):
    with disk.locked(out), pytest.raises(SystemExit) as stop:
        ask(checkpoint, out, "--text", "Hi")
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and not out.exists()
    assert f"is in use by process {os.getpid()}" in error


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG])
@pytest.mark.parametrize("ending", ["txt", "wav", "json", "csv", "npy", "glb", "html"])
def test_a_disk_that_cannot_be_written_is_one_line_with_the_file_and_what_to_do(out, monkeypatch, number, ending):
    """It fails at the file of this ending; what was there stays."""
    head, before = make_head(), {}
    export.write_answers(out, {".": made(text="old")}, OUTPUT_RATE, head)
    before, opener = contents(out), io.open
    fails = iter(range(["txt", "wav", "json", "csv", "npy", "glb", "html"].index(ending), -1, -1))

    def full(path, mode="r", *args, **kwargs):
        file = opener(path, mode, *args, **kwargs)
        if ".answer.new" in str(path) and set(mode) & set("wax") and not next(fails):
            file.close()
            raise OSError(number, os.strerror(number))              # as write() does: without a name
        return file
    monkeypatch.setattr("builtins.open", full)
    monkeypatch.setattr(io, "open", full)
    with pytest.raises(OSError) as caught:
        export.write_answers(out, {".": made()}, OUTPUT_RATE, head, ["csv", "npy", "glb", "html"])
    monkeypatch.undo()
    line = cli.line_of(caught.value)
    assert line == f"error: {out / f'answer.{ending}'}: {os.strerror(number)}: {cli.ADVICE[number]}"
    assert contents(out) == before


ODD_LINES = {
    "   ": "nothing was asked", "\x1b[A\x1b[B": None, "\x00\x07": "nothing was asked", "\t \x1b": "nothing was asked",
    "word " * 50_000: "letters, expected a question of at most", "/": "is a directory", "'/'": "is a directory",
    "caf\udce9?": "is not UTF-8", "/no\x00where.wav": "not found", "~nobody/q.wav": "not found",
    "file:///no/such.wav": "not found", "file://localhost/no%20such.wav": "/no such.wav not found",
    "C:\\sounds\\q.wav": "not found", "q.wav'": "not found", "''": None, '"': None, "\\": None, "~": "is a directory",
    "./": "is a directory", "\\\\server\\q.wav": "not found", "x" * 300 + ".wav": "cannot be opened"}


def test_odd_lines_are_one_clear_line_each_and_the_conversation_goes_on(out, tmp_path, monkeypatch, capsys):
    """None: it is a question."""
    (tmp_path / "notes.txt").write_text("no sound")
    latin = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9 #1.wav")
    shutil.copy(QUESTION, latin)
    lines = {**ODD_LINES, str(tmp_path / "notes.txt"): "is not audio", os.devnull: "a pipe or a device"}
    url = f"file://{latin.replace('#', '%23').replace(chr(0xdce9), '%E9')}"
    heard, asked = [latin, f'"{latin}"', url, f"file://{latin}"], []

    def answer(model, sampling, chats, clips, out, names, writing):
        asked.append(clips is not None)
        return [SimpleNamespace(text="So it is.")]
    script = iter([*lines, *heard, "the end of the input comes in the middle of a li"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(script, None) or (_ for _ in ()).throw(EOFError))
    model = SimpleNamespace(config=SimpleNamespace(past_turns=20))
    monkeypatch.setattr(sample, "load", lambda args: (model, {}))
    monkeypatch.setattr(sample, "ask", answer)
    sample.main(["--interactive", "--out", str(out)])
    errors = iter(capsys.readouterr().err.splitlines())
    for line, says in lines.items():
        if says is not None:
            error = next(errors)
            assert error.startswith("error: ") and says in error and len(error) < 600, (line[:40], error)
    assert next(errors, None) is None
    assert asked == [False] * [*lines.values()].count(None) + [True] * len(heard) + [False]


@pytest.mark.parametrize("kind", ["link", "link that leads nowhere", "link to a file", "too long a name", "empty"])
def test_an_out_that_is_a_link_is_followed_and_one_that_cannot_be_is_refused(checkpoint, out, tmp_path, capsys, kind):
    (tmp_path / "real").mkdir()
    target = {"link that leads nowhere": "none", "link to a file": "file"}.get(kind, "real")
    (tmp_path / "file").touch()
    given = {"too long a name": out / ("n" * 256), "empty": ""}.get(kind, out)
    if given == out:
        out.symlink_to(tmp_path / target)
    if kind == "link":
        ask(checkpoint, out, "--text", "Hi")
        assert out.is_symlink() and read(tmp_path / "real")
        return
    with pytest.raises(SystemExit) as stop:
        ask(checkpoint, given, "--text", "Hi")
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and "--out" in error
    says = {"empty": "argument --out is empty", "too long a name": "File name too long"}
    assert says.get(kind, "choose another") in error
    assert {path.name for path in tmp_path.iterdir()} <= {"real", "file", "answer"}
