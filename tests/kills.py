"""SIGKILLs of a training on two processes, at random moments, saves included.

    python tests/kills.py --runs 20 --seed 0

A small training that saves after every step is started by torchrun with one command (`--resume auto`), and again and
again after each kill: of torchrun, of one of its processes, or of all. What counts as a fault:

    stays       a process is still there ENDS seconds after the kill
    lost        less is left than had been saved before the kill
    half        what is left, or the checkpoint before it, lacks a file or cannot be opened
    refused     the same command does not go on to the end
    other       losses, norms, weights or moments at the end are not those of the undisturbed training, to 1e-5

Linux only: processes are read from /proc.
"""
import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

import disk  # noqa: E402
import prepare  # noqa: E402
import saving  # noqa: E402
from model import ExOmni  # noqa: E402
from tiny_training import change, command, optimizer_of, rows, step_in, write_data  # noqa: E402

ENDS, TOLERANCE = 30, 1e-5
WHOM = ("torchrun", "rank 0", "rank 1", "all")
SAVES = 2                               # a kill falls into the second step or into one up to so many saves later


def start(argv: list, log: Path) -> subprocess.Popen:
    """train.py on two processes."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with open(log, "ab") as file:
        return subprocess.Popen([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
                                 "train.py", *argv], cwd=HERE.parent, env=environment, stdout=file, stderr=file)


def children(pid: int) -> list:
    try:
        return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
    except OSError:
        return []


def runs(pid: int) -> bool:
    """Whether there is such a process, and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def saved_step(out: Path) -> int:
    """Of the newest checkpoint; 0 where nothing was saved."""
    for _ in range(100):                                                # its files may be on the move
        for directory in (out / ".saved", out):
            if (directory / "trainer" / "state.json").is_file():
                try:
                    return step_in(directory)
                except FileNotFoundError:
                    break
        else:
            return 0
    raise AssertionError("state.json comes and goes")


def started(out: Path) -> int:
    """Which start of the training its log is of: each writes the file anew, after a step; 0 where there is none."""
    return (out / "log.jsonl").stat().st_ino if (out / "log.jsonl").exists() else 0


def phase(out: Path, began: int) -> str:
    """What the training is doing. began: `started` before it."""
    if started(out) == began:
        return "starting"
    return "moving" if (out / ".saved").exists() else "saving" if (out / ".saving").exists() else "training"


def wait_at_random(torchrun: subprocess.Popen, out: Path, began: int, draw: random.Random, cycle: float) -> float:
    """Wait until the training has done a step, for 0 to SAVES saves, then for a part of the time from one to the next:
    that time is returned. Ends early where torchrun does. began: `started` before it; cycle: the time before."""
    saves, wait = draw.randint(0, SAVES), lambda until: torchrun.poll() is None and not until() and not time.sleep(0.01)
    while wait(lambda: started(out) != began):
        pass
    first, begun = saved_step(out), time.monotonic()
    while wait(lambda: saved_step(out) >= first + saves):
        pass
    cycle = (time.monotonic() - begun) / saves if saves else cycle
    time.sleep(draw.random() * cycle)
    return cycle


def kill(torchrun: subprocess.Popen, whom: str) -> list:
    """SIGKILL torchrun, its first or second process, or all -> the pids of all. It is stopped meanwhile, so that it
    starts no others; before it has started any, it is killed itself."""
    os.kill(torchrun.pid, signal.SIGSTOP)
    workers = sorted(children(torchrun.pid))
    chosen = {"torchrun": [], "rank 0": workers[:1], "rank 1": workers[1:2], "all": [torchrun.pid, *workers]}[whom]
    for pid in chosen or [torchrun.pid]:
        if runs(pid):
            os.kill(pid, signal.SIGKILL)
    os.kill(torchrun.pid, signal.SIGCONT)
    return [torchrun.pid, *workers]


def stragglers(torchrun: subprocess.Popen, pids: list) -> list:
    """Those of the processes that do not end in time; they are killed then."""
    until = time.monotonic() + ENDS
    while any(map(runs, pids)) and time.monotonic() < until:
        torchrun.poll()
        time.sleep(0.1)
    left = [pid for pid in pids if runs(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    torchrun.wait()
    return left


def faults_of(out: Path, saved: int, work: Path) -> list:
    """What is wrong with what a kill left in OUT; looked at in a copy, as the next start is to mend it. saved: the step
    that was saved before."""
    copy, found = work / "copy", []
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(out, copy)
    saving.recover(copy)
    steps = [0]
    for directory in (copy, copy / "previous"):
        if not (directory / "trainer").exists() and not (directory / "config.json").exists():
            continue
        try:
            missing = [name for name in [*saving.files_of(directory), saving.FILES] if not (directory / name).is_file()]
            assert not missing, f"{missing} missing"
            ExOmni.from_pretrained(directory)
            with saving.collective_errors():
                optimizer_of(directory)
            record, = disk.read_json(directory / "stages.json").values()
            assert record["step"] == step_in(directory), "stages.json and state.json differ"
            steps.append(step_in(directory))
        except Exception as error:
            found.append(f"half: {directory.name}: {' '.join(str(error).split())[:200]}")
    return found + ([f"lost: step {saved} was saved, {max(steps)} is left"] if max(steps) < saved else [])


def apart(one: Path, other: Path) -> float:
    """The largest difference between two trainings: of their logs, weights and moments."""
    found = []
    for out in (one, other):
        figures = {f"{row['step']} {name}": torch.tensor(value) for row in rows(out, "norm")
                   for name, value in row.items() if name in ("text", "units", "face", "norm")}
        found.append(figures | load_file(out / "model.safetensors") | optimizer_of(out))
    a, b = found
    assert a.keys() == b.keys()
    return max(float((value.double() - b[name].double()).abs().max()) for name, value in a.items())


def train_and_kill(count: int, draw: random.Random, work: Path, report) -> list:
    """Kill a training so often -> faults. report: is given a line for each kill, and one at the end."""
    steps, cycle = (SAVES + 1) * (count + 1), 0.05
    prepare.main(["weights", "--preset", "tiny", "--out", str(work / "tiny")])
    base = change(work / "tiny", work / "base")
    write_data(work / "data" / "train", 5, 0)
    write_data(work / "data" / "val", 1, 1)
    argv = lambda name: [*command(work / "data", base, work / name, 4, "--anyway", "--recipe", "v1", "--lr", "1e-3",
                                  "--steps", steps, "--batch", 2, "--save-every", 1, "--resume", "auto",
                                  "--dtype", "float32", "--device", "cpu")]
    whole, out, faults, log = work / "whole", work / "killed", [], work / "killed.txt"
    whole_run = start(argv("whole"), work / "whole.txt")
    for number in range(count):
        began, whom = started(out), WHOM[number % len(WHOM)]
        torchrun = start(argv("killed"), log)
        cycle = wait_at_random(torchrun, out, began, draw, cycle)
        if torchrun.poll() is not None:
            faults.append(f"refused: code {torchrun.returncode} before kill {number + 1}: see {log}")
            break
        saved, when, begun = saved_step(out), phase(out, began), time.monotonic()
        left = stragglers(torchrun, kill(torchrun, whom))
        took = time.monotonic() - begun
        found = [f"stays: {len(left)} processes"] * bool(left) + (faults_of(out, saved, work) if out.exists() else [])
        faults += [f"kill {number + 1}: {fault}" for fault in found]
        report(f"{number + 1:3}  {whom:9} killed while {when:9} step {saved:4} saved, all ended after {took:4.1f} s: "
               f"{'; '.join(found) or 'whole'}")
    for run, name in ((whole_run, "whole"), (start(argv("killed"), log), "killed")):
        if run.wait() != 0:
            faults.append(f"refused: code {run.returncode}: see {work / name}.txt")
    if not any(fault.startswith("refused") for fault in faults):
        difference = apart(whole, out)
        faults += [f"other: {difference:.1e} apart at the end"] * (difference > TOLERANCE)
        report(f"at the end, after {steps} steps: {difference:.1e} apart from the undisturbed training")
    return faults


def main(argv=None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=20, help="how often it is killed (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument("--keep", type=Path, help="an empty directory to work in, which stays")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        faults = train_and_kill(args.runs, random.Random(args.seed), args.keep or Path(temporary),
                                lambda line: print(line, flush=True))
    print("\n".join(faults) or "no faults")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
