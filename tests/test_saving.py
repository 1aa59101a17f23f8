"""What a training saves: whole at any time, whatever ends it; only what can be told from the start is refused."""
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint import FileSystemReader, filesystem

import disk
import progress
import sample
import saving
import train
import weights
from tiny_training import base, command, data, go, refuse, rows, same_training, step_in, write_data

ROOT = Path(__file__).parent.parent
AGAIN = ("--log-every", "1", "--val-every", "100")


def resume(out, *options):
    train.main(["--resume", "--out", str(out), *AGAIN, *map(str, options)])


@pytest.fixture(scope="session")
def four(base, data, tmp_path_factory):
    """Four steps of stage 2."""
    out = tmp_path_factory.mktemp("four") / "out"
    go(base, data, out, "--steps", 4)
    return out


@pytest.fixture(scope="session")
def two(base, data, tmp_path_factory):
    """The first two of them, saved twice."""
    out = tmp_path_factory.mktemp("two") / "out"
    go(base, data, out, "--steps", 4, "--save-every", 1, "--stop-at", 2)
    return out


@pytest.fixture
def half(two, tmp_path):
    return shutil.copytree(two, tmp_path / "out")


def same_weights(*outs) -> bool:
    one, other = (load_file(out / "model.safetensors") for out in outs)
    return all(torch.equal(one[name], other[name]) for name in one)


def names_in(directory) -> list:
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())


# ---------------------------------------------------------------- kills

def test_the_last_two_checkpoints_are_whole(half, capsys):
    """And the one before can be asked and gone on with."""
    assert (step_in(half), step_in(half / "previous")) == (2, 1)
    before = half / "previous"
    assert names_in(before) == [name for name in names_in(half) if not name.startswith(("previous/", "log."))]
    sample.main(["--checkpoint", str(before), "--out", str(half / "a"), "--text", "Hi", "--max-new-tokens", "2"])
    shutil.move(half / "previous", half.parent / "previous")
    resume(half.parent / "previous", "--stop-at", 2)
    assert same_weights(half.parent / "previous", half)


def checkpoint_of(out, step):
    """A small stand-in of a checkpoint: files that say their step; one that only the odd ones have."""
    for name in ("config.json", "model.safetensors", "speech_decoder/flow.safetensors", "trainer/state.json",
                 "trainer/optimizer/.metadata", *["trainer/optimizer/__1_0.distcp"] * (step % 2)):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(str(step))


def commit(out, step):
    checkpoint_of(out / ".saving", step)
    saving.commit(out)


def whole(directory, step):
    """The directory has all of the checkpoint of a step and nothing of another one."""
    reference = directory.parent / f"whole {step}"
    checkpoint_of(reference, step)
    names = names_in(reference)
    shutil.rmtree(reference)
    own = [name for name in names_in(directory)
           if not name.startswith(("previous/", "log.jsonl")) and "notes" not in name]
    assert own == sorted([*names, saving.FILES]) and {(directory / name).read_text() for name in names} == {str(step)}


CALLS = ("replace", "rename", "unlink", "rmdir", "mkdir")


def killed(monkeypatch, at, do):
    """Do something, killed before its call number `at` that changes the disk. Returns whether it got that far."""
    count = 0

    def dying(call):
        def counted(*args, **options):
            nonlocal count
            count += 1
            if count == at:
                raise SystemExit("killed")
            return call(*args, **options)
        return counted
    with monkeypatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, dying(getattr(os, name)))
        try:
            do()
        except SystemExit:
            return True
    return False


def test_a_kill_at_any_moment_of_a_save_leaves_a_whole_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)                # there is no power cut here
    notes = ("log.jsonl", "notes.txt", "trainer/notes.txt", "trainer/optimizer/notes.txt", "previous/notes.txt")
    start = tmp_path / "start"
    start.mkdir()
    commit(start, 1), commit(start, 2)
    for name in notes:
        (start / name).write_text("mine")
    checkpoint_of(start / ".saving", 3)
    for at in range(1, 1000):
        out = shutil.copytree(start, tmp_path / f"out{at}")
        if not killed(monkeypatch, at, lambda: saving.commit(out)):
            break
        assert saving.holds_training(out)
        before = 3 if (out / ".saved").exists() or (out / "config.json").read_text() == "3" else 2
        killed(monkeypatch, at % 7 + 1, lambda: saving.recover(out))        # and again in the middle of that
        saving.recover(out)
        saving.recover(out)
        whole(out, before)
        whole(out / "previous", before - 1)
        assert all((out / name).read_text() == "mine" for name in notes)
        assert not [path for path in out.iterdir() if path.name.startswith(".")]
        shutil.rmtree(out)
    assert at > 30, "as many moments were tried"
    whole(out, 3), whole(out / "previous", 2)


@pytest.mark.parametrize("kind", ["symlink", "read-only parent", "link inside"])
def test_out_may_be_a_link_or_lie_in_a_directory_that_is_not_ours(tmp_path, kind):
    real = tmp_path / "real"
    real.mkdir()
    out = tmp_path / "link" if kind == "symlink" else real
    if kind == "symlink":
        out.symlink_to(real)
    commit(out, 1)
    if kind == "read-only parent":
        tmp_path.chmod(0o555)
    if kind == "link inside":
        (out / "speech_decoder").rename(tmp_path / "shared")
        (out / "speech_decoder").symlink_to(tmp_path / "shared")
    commit(out, 2)
    tmp_path.chmod(0o755)
    assert (real / "config.json").read_text() == "2" and (real / "previous" / "config.json").read_text() == "1"
    assert {path.name for path in tmp_path.iterdir()} <= {"real", "link", "shared"}, "nothing is written next to it"
    assert out.is_symlink() == (kind == "symlink")
    if kind == "link inside":
        assert (tmp_path / "shared" / "flow.safetensors").read_text() == "1", "what the link led to is untouched"


def test_a_killed_save_is_finished_at_the_next_start(half, four, monkeypatch):
    """The real thing: SIGKILL's like in the middle of the move, then --resume; the log and a note stay."""
    (half / "notes.txt").write_text("mine")
    moves, move = [], saving.move

    def dying(name, source, target):
        moves.append(name)
        if len(moves) == 9:
            raise SystemExit("killed")
        move(name, source, target)
    monkeypatch.setattr(saving, "move", dying)
    with pytest.raises(SystemExit, match="killed"):
        resume(half, "--save-every", 1)
    monkeypatch.undo()
    assert (half / ".saved").is_dir()
    resume(half)
    same_training(four, half)
    assert (half / "notes.txt").read_text() == "mine" and not list(half.glob(".*"))


def test_steps_after_the_last_checkpoint_and_torn_rows_are_taken_out_of_the_log(half, four):
    """As a power cut leaves them."""
    with open(half / "log.jsonl", "a") as file:
        file.write('{"step": 3, "units": 1.0, "norm": 1.0}\n{"step": 2, "un')
    resume(half)
    same_training(four, half)
    assert [row["step"] for row in rows(half, "norm")] == [1, 2, 3, 4]


@pytest.mark.parametrize("module, name", [(weights, "save_file"), (filesystem, "_write_item"), (saving, "flush")],
                         ids=("while the weights", "while the optimizer", "while it is flushed"))
def test_a_full_disk_leaves_the_old_checkpoint(half, four, capsys, monkeypatch, module, name):
    def full(*_, **__):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(module, name, full)
    refuse(capsys, ["--resume", "--out", str(half), "--save-every", "1"], "step 3 could not be saved",
           "No space left on device", "the last checkpoint is untouched")
    monkeypatch.undo()
    assert (step_in(half), step_in(half / "previous")) == (2, 1) and not list(half.glob(".*"))
    resume(half)
    same_training(four, half)


def test_torchs_words_for_a_full_disk_are_not_taken():
    try:
        try:
            raise OSError(28, "No space left on device")
        finally:
            raise RuntimeError("unexpected pos 704 vs 598")
    except RuntimeError as error:
        assert "No space left on device" in str(saving.behind(error))


def test_an_interrupt_while_a_save_is_waited_for_ends_the_run_with_that_save_whole(half, four, capsys, monkeypatch):
    join = threading.Thread.join

    def interrupted(*_):
        monkeypatch.setattr(threading.Thread, "join", join)
        raise KeyboardInterrupt
    monkeypatch.setattr(saving.Saver, "writing", lambda saver: saver.thread is not None)    # as a slow one
    monkeypatch.setattr(threading.Thread, "join", interrupted)
    with pytest.raises(SystemExit) as stop:
        resume(half, "--save-every", 1)
    assert stop.value.code == 130 and capsys.readouterr().err.splitlines()[-1] == "interrupted"
    monkeypatch.undo()
    assert (step_in(half), step_in(half / "previous")) == (3, 2) and not list(half.glob(".*"))
    resume(half)
    same_training(four, half)


def test_steps_go_on_while_a_save_is_written(half, four, monkeypatch):
    """Step 3 is written only when step 4 is done, and is still step 3, bit for bit."""
    done, write, training, seen = threading.Event(), filesystem._write_item, progress.Log.training, []

    def row(log, step, rates):
        training(log, step, rates)
        if step == 4:
            seen.append((step_in(half), (half / ".saving").exists()))
            done.set()
    monkeypatch.setattr(filesystem, "_write_item", lambda *args: done.wait(60) and write(*args))
    monkeypatch.setattr(progress.Log, "training", row)
    resume(half, "--save-every", 1)
    assert seen == [(2, True)], "the old checkpoint counts until the new one is written"
    monkeypatch.undo()
    same_training(four, half)
    before = shutil.move(half / "previous", half.parent / "before")
    assert step_in(before) == 3
    resume(before)
    assert same_weights(four, before)


SLOW = """
import sys, time, train
from torch.distributed.checkpoint import filesystem
filesystem._write_item = lambda *_: time.sleep(600)
train.main(sys.argv[1:])
"""


def test_a_kill_while_the_steps_go_on_leaves_the_checkpoint_before(half, four):
    argv = [sys.executable, "-c", SLOW, "--resume", "--out", half, "--save-every", "1", *AGAIN]
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run:
        while rows(half, "step")[-1]["step"] < 4 and run.poll() is None:
            time.sleep(0.05)
        assert (half / ".saving" / "trainer").is_dir() and run.poll() is None
        run.kill()
    assert (step_in(half), step_in(half / "previous")) == (2, 1)
    resume(half)
    same_training(four, half)
    assert not list(half.glob(".*"))


def test_a_training_that_fails_in_its_first_step_leaves_nothing(base, data, tmp_path, capsys, monkeypatch):
    def damaged(*_):
        raise ValueError("a sample is damaged")
    monkeypatch.setattr(train, "to_device", damaged)
    refuse(capsys, [*command(data, base, tmp_path / "runs" / "out", 2), "--anyway"], "a sample is damaged")
    assert not list(tmp_path.iterdir())


def test_ctrl_c_finishes_the_step_and_loses_nothing(base, data, four, tmp_path, monkeypatch, capsys):
    out, handler, training = tmp_path / "out", signal.getsignal(signal.SIGINT), progress.Log.training

    def interrupt(log, step, rates):
        training(log, step, rates)
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)
    monkeypatch.setattr(progress.Log, "training", interrupt)
    with pytest.raises(SystemExit) as stop:
        go(base, data, out, "--steps", 4)
    assert stop.value.code == 130 and signal.getsignal(signal.SIGINT) is handler
    line = capsys.readouterr().out.splitlines()[-1]
    assert line == f"stopped after step 2 of 4; go on with: python train.py --resume --out {out}"
    monkeypatch.undo()
    resume(out)
    same_training(four, out)


def test_resume_auto_starts_and_then_goes_on(base, data, four, tmp_path, capsys):
    """The same command three times, as torchrun repeats it."""
    out = tmp_path / "out"
    whole = [*command(data, base, out, 2, "--steps", 4, "--resume", "auto"), "--anyway"]
    for stop in (1, 2):
        train.main([*whole, "--stop-at", str(stop)])
    train.main(whole)
    same_training(four, out)
    train.main(whole)
    assert "stage 2 is done" in capsys.readouterr().out.splitlines()[-2]


# ---------------------------------------------------------------- whose directory

LOCKS = """
import sys, disk
with disk.locked(sys.argv[1]):
    print("inside", flush=True)
    sys.stdin.read()
"""


def test_two_runs_on_one_out_are_one(half, capsys):
    with subprocess.Popen([sys.executable, "-c", LOCKS, half], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          text=True) as first:
        assert first.stdout.readline() == "inside\n"
        refuse(capsys, ["--resume", "--out", str(half)], f"is in use by process {first.pid} on ")
        assert (half / ".lock").exists(), "it is the other one's"
        first.kill()
    with disk.locked(half):                                         # a kill frees it
        pass
    assert not (half / ".lock").exists()


def test_where_locks_are_unknown_the_pid_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "fcntl", None)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    host = disk.socket.gethostname()
    for holder, free in ((f"{ended.pid} on {host}", True), (f"{os.getppid()} on {host}", False),
                         (f"{ended.pid} on elsewhere", False)):
        (tmp_path / ".lock").write_text(holder)
        try:
            with disk.locked(tmp_path):
                assert free
        except ValueError as error:
            assert not free and holder in str(error)


@pytest.mark.parametrize("kind, says", [
    ("file", "is a file: expected a directory"), ("other", "is not empty (thesis.tex)"),
    ("foreign log", "is not empty (log.jsonl)"), ("checkpoint", "holds a checkpoint already: choose another --out"),
    ("training", "holds a checkpoint already: --resume goes on with it"), ("below a file", "Not a directory")])
def test_what_is_not_ours_is_not_taken_over(base, data, half, tmp_path, capsys, monkeypatch, kind, says):
    """Said before anything is opened."""
    out = tmp_path / "other"
    if kind in ("file", "below a file"):
        out.write_text("mine")
        out = out / "below" if kind == "below a file" else out
    elif kind in ("checkpoint", "training"):
        out = shutil.copytree(base if kind == "checkpoint" else half, out)
    else:
        out.mkdir()
        (out / ("thesis.tex" if kind == "other" else "log.jsonl")).write_text('{"mine": 1}\n')
        (out / ".saving").mkdir()
    before = names_in(tmp_path)
    monkeypatch.setattr(train, "open_training", None)
    refuse(capsys, [*command(data, base, out, 2), "--anyway"], says)
    assert names_in(tmp_path) == before


def test_hidden_files_lost_and_found_and_the_log_of_a_run_without_a_save_are_no_hindrance(base, data, tmp_path):
    out = tmp_path / "out"
    (out / "lost+found").mkdir(parents=True)
    (out / ".DS_Store").write_text("mine")
    (out / "log.jsonl").write_text('{"step": 0, "start": {}}\n{"st')
    go(base, data, out, "--steps", 1)
    assert [row["step"] for row in rows(out, "step")][0] == 0 and (out / ".DS_Store").read_text() == "mine"


# ---------------------------------------------------------------- what may change, what is refused

def test_a_resumed_run_is_not_another_run(half, data, tmp_path, capsys):
    refuse(capsys, ["--resume", "--out", str(half), "--steps", "8"], "is resumed as it was started",
           "leave out --steps")
    refuse(capsys, ["--resume", "--out", str(half), "--stage", "3"], "leave out --stage")
    write_data(tmp_path / "other" / "train", 2, 5)
    write_data(tmp_path / "other" / "val", 2, 5)
    refuse(capsys, ["--resume", "--out", str(half), "--data", str(tmp_path / "other")], "is not the data that")
    moved = shutil.copytree(data, tmp_path / "moved")
    resume(half, "--data", moved)


def swapped(tensors):
    tensors["model.speech_generator.llm_decoder.bias"] += 1


@pytest.mark.parametrize("change", [
    swapped, lambda tensors: tensors.pop("model.norm.weight"),
    lambda tensors: tensors.update({name: tensor.half() for name, tensor in tensors.items()}), None],
    ids=["trained", "a tensor less", "another type", "gone"])
def test_weights_of_another_training_are_not_gone_on_with(half, four, capsys, change):
    path = half / "model.safetensors"
    if change:
        tensors = load_file(path)
        change(tensors)
        weights.write_tensors(path, tensors)
    else:
        path.unlink()
    before = names_in(half)
    refuse(capsys, ["--resume", "--out", str(half)], f"{path} is not the file that this training saved: put that back",
           f"--init-from {half}", f"--out {half / 'previous'}")
    assert [name for name in names_in(half) if name != ".lock"] == before
    shutil.copy(half / "previous" / "model.safetensors", path)
    refuse(capsys, ["--resume", "--out", str(half)], "is not the file that this training saved")
    shutil.copy(four / "model.safetensors", path)
    refuse(capsys, ["--resume", "--out", str(half)], "is not the file that this training saved")


def test_a_checkpoint_of_before_there_were_marks_is_gone_on_with(half):
    files = disk.read_json(half / saving.FILES)
    assert {*files["marks"]} == {"config.json", "model.safetensors", "trainer/state.json",
                                 "trainer/optimizer/__0_0.distcp"}
    disk.write_json(half / saving.FILES, {"files": files["files"]})
    resume(half)
    assert "marks" in disk.read_json(half / saving.FILES)


def test_rate_batch_and_accumulation_may_change_and_it_is_said(half, capsys):
    resume(half, "--lr", "1e-4", "--batch", 2, "--accumulate", 1, "--stop-at", 3)
    said = "batch 4 -> 2; accumulate 4 -> 1; rates {'generator': 0.002} -> {'generator': 0.0001}"
    assert f"from there on: {said}; 4 steps as before" in capsys.readouterr().out
    assert rows(half, "start")[-1]["start"]["changed"] == said
    assert rows(half, "norm")[-1]["rates"]["generator"] <= 1e-4
    state = disk.read_json(half / "trainer" / "state.json")
    assert (state["seen"], state["batch"]) == (10, 2), "2 x 4 samples, then 2: none twice, none left out"
    resume(half)
    assert "from there on" not in capsys.readouterr().out


@pytest.mark.parametrize("field, value, says", [
    ("step", "2", "field step is '2', expected a whole number"), ("step", 9, "step 9 of 4"),
    ("stage", 3, "there is no such stage"), ("rates", {"generator": None}, "field generator is None"),
    ("since_log", {}, "field since_log.losses is missing"), ("dtype", "int8", "field dtype is 'int8'")])
def test_a_state_that_is_not_one_is_named(half, capsys, field, value, says):
    path = half / "trainer" / "state.json"
    disk.write_json(path, disk.read_json(path) | {field: value})
    refuse(capsys, ["--resume", "--out", str(half)], str(path), says)


class Attack:
    def __reduce__(self):
        return os.mkdir, ("attacked",)


@pytest.mark.parametrize("content, says", [
    (pickle.dumps(Attack()), "it names posix.mkdir"), (b"", ""), (b"\x80\x04K\x01.", "")],
    ids=("attack", "empty", "a number"))
def test_nothing_is_unpickled_freely(half, capsys, monkeypatch, content, says):
    monkeypatch.chdir(half)
    (half / "trainer" / "optimizer" / ".metadata").write_bytes(content)
    refuse(capsys, ["--resume", "--out", str(half)], "trainer/optimizer cannot be read", "the checkpoint before", says)
    assert not (half / "attacked").exists()


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 255
    path.write_bytes(content)


def test_moments_that_were_damaged_are_not_gone_on_with(half, capsys):
    """In a place that the marks do not look at; torch writes checksums and leaves them alone."""
    path = half / "trainer/optimizer/__0_0.distcp"
    step = path.stat().st_size // 4096
    assert step > 200
    flip(path, 2048 * step + 100)
    refuse(capsys, ["--resume", "--out", str(half)], "__0_0.distcp is damaged, the checksum of", "previous, the checkp")


OPTIMIZER, STATE = "trainer/optimizer/__0_0.distcp", "trainer/state.json"


@pytest.mark.parametrize("name, spoil, says", [
    (OPTIMIZER, lambda path: shutil.copy(path.parents[2] / "previous" / OPTIMIZER, path), "is not the file that this"),
    (OPTIMIZER, lambda path: os.truncate(path, 2000), "is not the file that this"),
    (OPTIMIZER, lambda path: (path.unlink(), os.mkfifo(path)), "is a pipe or a device"),
    (STATE, lambda path: disk.write_json(path, disk.read_json(path) | {"tasks": ["foo"]}), "is not the file that this"),
    (STATE, lambda path: disk.write_json(path, disk.read_json(path) | {"step": 1}), "is not the file that this"),
    ("config.json", lambda path: disk.write_json(path, disk.read_json(path) | {"rope_theta": 5.0}), "is not the file"),
    (saving.FILES, lambda path: disk.write_json(path, disk.read_json(path) | {"files": [""]}), "names '', which is no"),
    (f"previous/{saving.FILES}", lambda path: os.truncate(path, 9), "is not valid json"),
    ("log.jsonl", lambda path: (path.unlink(), os.mkfifo(path)), "is a pipe or a device")])
def test_what_was_saved_and_is_another_thing_now_is_named(half, capsys, name, spoil, says):
    spoil(half / name)
    refuse(capsys, ["--resume", "--out", str(half)], f"{half / name} {says}")


@pytest.mark.parametrize("row", [b"[" * 100_000, b'{"step": "2"}', b'{"step": null}', b'{"step": [1]}', b"3", b"\xff"],
                         ids=lambda row: row[:16].decode(errors="replace"))
def test_what_is_no_row_of_a_log_is_left_out(row):
    assert progress.step_of(row + b"\n") == float("inf") and progress.step_of(b'{"step": 2}\n') == 2


def test_what_torch_wrote_is_read_as_torch_reads_it(half):
    directory = half / "trainer" / "optimizer"
    ours, theirs = (reader(directory).read_metadata() for reader in (saving.Reader, FileSystemReader))
    assert ours.state_dict_metadata == theirs.state_dict_metadata and ours.storage_data == theirs.storage_data
    assert len(ours.state_dict_metadata) > 10


def test_processes_on_different_disks_are_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "PATIENCE", 0)
    monkeypatch.setattr(saving.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(saving.dist, "get_rank", lambda: 1)
    monkeypatch.setattr(saving.dist, "broadcast_object_list", lambda texts: texts.__setitem__(0, "7 on first"))
    lock = tmp_path / ".lock"
    assert not saving.shared(lock)
    for text in ("7 on second", "7 on first"):
        lock.write_text(text)
        assert saving.shared(lock) == (text == "7 on first")
