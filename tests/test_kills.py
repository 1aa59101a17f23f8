"""tests/kills.py sees every fault; and a process of torchrun's ends with it. The kills themselves take minutes."""
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import kills
from tiny_training import base, data, go

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are read from /proc")


@pytest.fixture(scope="module")
def saved(base, data, tmp_path_factory):
    """Three steps, saved after each."""
    out = tmp_path_factory.mktemp("kills") / "out"
    go(base, data, out, "--steps", 3, "--save-every", 1)
    return out


def cut_short(path):
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("spoil, step, says", [
    (lambda out: None, 3, []), (lambda out: None, 4, ["lost: step 4 was saved, 3 is left"]),
    (lambda out: (out / "config.json").unlink(), 3, ["half: copy: ['config.json'] missing", "lost"]),
    (lambda out: cut_short(out / "model.safetensors"), 3, ["half: copy", "lost"]),
    (lambda out: cut_short(out / "trainer/optimizer/__0_0.distcp"), 3, ["half: copy", "lost"]),
    (lambda out: shutil.copy(out / "previous/stages.json", out), 3, ["half: copy: stages.json and state", "lost"]),
    (lambda out: cut_short(out / "previous/model.safetensors"), 3, ["half: previous"])])
def test_what_a_kill_may_leave_is_judged(saved, tmp_path, spoil, step, says):
    out = shutil.copytree(saved, tmp_path / "out")
    spoil(out)
    found = kills.faults_of(out, step, tmp_path)
    assert len(found) == len(says) and all(fault.startswith(text) for fault, text in zip(found, says)), found


def test_another_end_is_seen(saved, tmp_path):
    other = shutil.copytree(saved, tmp_path / "other")
    assert kills.apart(saved, other) == 0
    tensors = load_file(other / "model.safetensors")
    next(iter(tensors.values())).view(-1)[0] += 1e-3
    save_file(tensors, other / "model.safetensors", {"format": "pt"})
    assert kills.apart(saved, other) == pytest.approx(1e-3, rel=0.1)


PARENT = """
import subprocess, sys
subprocess.run([sys.executable, "-c",
    "import os; parent = os.getppid(); import ranks, time; ranks.end_with(parent); print(os.getpid(), flush=True); "
    "time.sleep(60)"])
"""


def test_a_process_ends_with_the_one_that_started_it():
    """As those of a torchrun that was killed."""
    with subprocess.Popen([sys.executable, "-c", PARENT], cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        child = int(parent.stdout.readline())
        time.sleep(1)
        assert kills.runs(child)
        os.kill(parent.pid, signal.SIGKILL)
        until = time.monotonic() + 20
        while kills.runs(child) and time.monotonic() < until:
            time.sleep(0.1)
        assert not kills.runs(child)
