"""`prepare.py weights`: its command line and the tiny preset. What is converted: test_published.py."""
import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch

import prepare
import saving
from model import ExOmni
from published_models import files, refused
from speech_tokenizer import SpeechTokenizer

ROOT = Path(__file__).parent.parent


def test_the_tiny_preset_answers_without_any_source(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("nothing is to be fetched"))
    prepare.main(["weights", "--preset", "tiny", "--out", str(tmp_path / "a")])
    prepare.main(["weights", "--preset", "tiny", "--out", str(tmp_path / "b"), "--seed", "0"])
    prepare.main(["weights", "--preset", "tiny", "--out", str(tmp_path / "c"), "--seed", "1"])
    assert files(tmp_path / "a") == files(tmp_path / "b") != files(tmp_path / "c")
    model = ExOmni.from_pretrained(tmp_path / "a")
    answer = model.generate([{"role": "user", "content": [{"type": "speech"}]}], torch.randn(8000), max_new_tokens=3)
    assert len(answer.units) and answer.face.isfinite().all() and answer.waveform.isfinite().all()
    units = SpeechTokenizer.from_pretrained(tmp_path / "a" / "speech_tokenizer").encode(torch.randn(16_000))
    assert int(units.max()) < model.config.generator.unit_vocab == model.speech_decoder.config.flow.vocab_size


@pytest.mark.parametrize("words, expected", [
    (["--preset", "qwen3-9b"], "preset 'qwen3-9b' is unknown, expected one of"),
    ([], "--preset"),
    (["--preset", "tiny", "--llm", "x"], "takes no llm"),
    (["--preset", "tiny", "--revision", "llm=1"], "takes no revision"),
    (["--preset", "qwen3-8b", "--revision", "1234"], "expected PART=COMMIT, PART being one of llm, speech_encoder"),
    (["--preset", "tiny", "--seed", "-1"], "'-1': expected a whole number"),
    (["--release", "x", "--llm", "y"], "not both")])
def test_arguments_that_cannot_be(tmp_path, capsys, words, expected):
    assert expected in refused(capsys, "weights", "--out", tmp_path / "out", *words)
    assert not list(tmp_path.iterdir())


OURS = '{"model_type": "llava_her_qwen3"}'
FOREIGN = {"thesis": {"chapter": "1"}, "config alone": {"config.json": "{}"},
           "a web project": {"config.json": '{"port": 1}'}, "ours without weights": {"config.json": OURS},
           "an image model": {"config.json": "[]", "model.safetensors": ""},
           "another model": {"config.json": '{"model_type": "qwen3"}', "model.safetensors": "", "tokenizer.json": "{}"},
           "damaged": {"config.json": OURS[:-1], "model.safetensors": ""},
           "trained": {"config.json": OURS, "model.safetensors": "", "stages.json": "{}"}}


def test_overwrite_replaces_checkpoints_only(tmp_path, capsys):
    for name, content in FOREIGN.items():
        fill(tmp_path / name, content)
    (tmp_path / "file").write_text("2")
    before = files(tmp_path)
    for name in (*FOREIGN, "file"):
        line = refused(capsys, "weights", "--preset", "tiny", "--out", tmp_path / name, "--overwrite")
        assert "choose another" in line
        assert ("no checkpoint of this" in line) == (name not in ("trained", "file")), line
    assert {name: content for name, content in files(tmp_path).items() if name.name != ".lock"} == before


# ---- the swap -----------------------------------------------------------------------------------------------------

OLD = {"config.json": "old", "model-00001-of-00002.safetensors": "old", "model-00002-of-00002.safetensors": "old",
       "vocab.json": "old", "speech_decoder/flow.safetensors": "old", "notes.txt": "a reader's"}
NEW = dict.fromkeys(("model.safetensors", "tokenizer.json", "speech_decoder/flow.safetensors"), "new")
OLD |= {"config.json": '{"model_type": "llava_her_qwen3"}'}
NEW |= {"config.json": '{"model_type": "llava_her_qwen3", "new": true}'}


def fill(directory, content):
    for name, text in content.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text)


def seen(directory):
    """What is in a directory, without what saving.py keeps there."""
    return {str(name): content.decode() for name, content in files(directory).items()
            if name.parts[0] not in (".lock", "trainer", "previous")}


def build(out):
    with prepare.building(out, overwrite=True) as new:
        fill(new, NEW)


def test_a_kill_at_any_moment_leaves_the_old_checkpoint_or_the_new_one(tmp_path):
    """A child is killed at its first change of the directory, at its second, ... until it comes to the end."""
    def child(out, last):
        count = itertools.count(1)

        def counted(change):
            return lambda *args, **kwargs: os._exit(9) if next(count) == last else change(*args, **kwargs)
        try:
            for name in ("replace", "unlink", "rmdir"):
                setattr(os, name, counted(getattr(os, name)))
            build(out)
            os._exit(0)
        finally:
            os._exit(1)

    found, new = [], NEW | {"notes.txt": "a reader's"}
    for last in range(1, 200):
        out = tmp_path / str(last)
        fill(out, OLD)
        pid = os.fork()
        if not pid:
            child(out, last)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert code in (0, 9)
        saving.recover(out)                                 # as the next command does
        found.append(seen(out) == new)
        assert found[-1] or seen(out) == OLD, last
        if code == 0:
            break
        if last % 8 == 0:
            build(out)
            assert seen(out) == new and not (out / "previous").exists(), "and the next one goes through"
    assert code == 0 and found[-1] and not found[0] and found == sorted(found)


def test_after_a_kill_in_the_last_move_the_next_start_says_that_the_checkpoint_is_whole(tmp_path, capsys, monkeypatch):
    fill(tmp_path, OLD)
    move = saving.move

    def killed(name, source, target):
        if name == "tokenizer.json":
            os._exit(9)
        move(name, source, target)
    pid = os.fork()
    if not pid:
        saving.move = killed
        build(tmp_path)
    os.waitpid(pid, 0)
    assert (tmp_path / ".saved").exists()
    line = refused(capsys, "weights", "--preset", "tiny", "--out", tmp_path)
    assert "holds a whole checkpoint" in line and "--overwrite makes it again" in line
    assert seen(tmp_path) == NEW | {"notes.txt": "a reader's"} and not (tmp_path / "previous").exists()


@pytest.mark.parametrize("name, make", [
    (".saving", Path.touch), (".saved", Path.touch), (".saved", lambda path: path.symlink_to("nowhere")),
    (".saving", lambda path: path.symlink_to("nowhere")), (".saved", lambda path: (path / "mine").mkdir(parents=True))])
def test_what_is_in_the_way_is_said_before_the_work(tmp_path, capsys, name, make):
    make(tmp_path / name)
    if name == ".saved" and (tmp_path / name).is_dir():
        (tmp_path / name / "mine" / "notes").touch()
    line = refused(capsys, "weights", "--preset", "tiny", "--out", tmp_path)
    assert f"{tmp_path / name} is in the way" in line and os.path.lexists(tmp_path / name)
    (tmp_path / "link").symlink_to("nowhere")
    assert "a link that leads nowhere" in refused(capsys, "weights", "--preset", "tiny", "--out", tmp_path / "link")


def test_a_failed_swap_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    fill(tmp_path / "out", OLD)
    monkeypatch.setattr(saving, "commit", lambda out: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError):
        build(tmp_path / "out")
    assert seen(tmp_path / "out") == OLD


def test_an_interrupt_in_the_last_moment_comes_too_late(tmp_path, monkeypatch):
    """Or "nothing was written" would be wrong."""
    fill(tmp_path / "out", OLD)
    step, handler = saving.put_in_place, signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(saving, "put_in_place", lambda out: os.kill(os.getpid(), signal.SIGINT) or step(out))
    build(tmp_path / "out")
    assert seen(tmp_path / "out") == NEW | {"notes.txt": "a reader's"}
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_link_stays_one_and_nothing_is_left_next_to_it(tmp_path):
    fill(tmp_path / "disk", OLD)
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    build(tmp_path / "out")
    assert (tmp_path / "out").is_symlink() and seen(tmp_path / "disk")["config.json"] == NEW["config.json"]
    assert {path.name for path in tmp_path.iterdir()} == {"disk", "out"}


def test_two_commands_do_not_write_the_same_checkpoint(tmp_path, capsys):
    with prepare.building(tmp_path / "out", overwrite=False) as new:
        fill(new, NEW)
        assert f"in use by process {os.getpid()}" in refused(
            capsys, "weights", "--preset", "tiny", "--out", tmp_path / "out")
    assert seen(tmp_path / "out") == NEW


def test_the_command_line(tmp_path):
    command = [sys.executable, ROOT / "prepare.py", "weights", "--preset", "tiny", "--out", tmp_path / "out"]
    done, again = (subprocess.run(command, capture_output=True, text=True) for _ in range(2))
    assert done.returncode == 0 and done.stdout.splitlines()[-1].startswith("wrote ") and not done.stderr
    assert again.returncode == 2 and again.stderr.startswith("error: ") and again.stderr.count("\n") == 1
