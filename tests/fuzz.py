"""Odd and damaged inputs to the commands: each must be answered rightly, or refused in one line.

    python tests/fuzz.py --minutes 20             # until 2,000 inputs are done or the time is over
    python tests/fuzz.py --only captures --seed 7 --inputs 300 --keep /tmp/found

Hypothesis makes the inputs (tests/fuzz_*.py): captures whose true timing is known, edited configs, prepared data,
weights, sounds, heads, and arguments. Each runs a command in a child process of its own. What counts as a fault:

    traceback   an exit code other than 0 and 2, or a line that admits a fault of the program
    lines       exit code 2 with no line on stderr, or with several
    hang        more than 30 s of CPU time
    memory      a peak above 2 GiB
    nonsense    exit code 0 and output that is wrong: a frame at another time, a value that is not finite, invalid json
    loss        a file that was there before is gone or changed, although the command refused
"""

import argparse
import json
import os
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a child that is forked has no threads of its parent
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

import torch  # noqa: E402
from hypothesis import HealthCheck, Phase, given, seed, settings  # noqa: E402

import fuzz_commands  # noqa: E402

torch.set_num_threads(1)
CPU_SECONDS, PEAK_KIB, WALL_SECONDS = 30, 2 << 20, 120


def run(main, argv: list, folder: Path) -> dict:
    """main(argv) in a child process whose working directory is `folder` -> its exit code, stdout, stderr, CPU seconds
    and peak memory in KiB."""
    log = {name: folder.with_name(f"{folder.name}.{name}") for name in ("stdout", "stderr")}
    if not (child := os.fork()):
        code = 99
        try:
            os.chdir(folder)
            for number, path in enumerate(log.values(), start=1):
                os.dup2(os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY), number)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            sys.stdout = open(1, "w", closefd=False)                        # not a test's
            sys.stderr = open(2, "w", closefd=False, errors="backslashreplace")        # as Python's own
            resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS + 1, CPU_SECONDS + 2))
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, 1 << 30))
            code = outcome(main, argv)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    status, usage = wait(child)
    code = os.waitstatus_to_exitcode(status)
    said = {name: path.read_text(encoding="utf-8", errors="replace") for name, path in log.items()}
    return {"code": code, "cpu": usage.ru_utime + usage.ru_stime, "peak": usage.ru_maxrss, **said}


def outcome(main, argv: list) -> int:
    """The exit code of main(argv), as Python would give it."""
    try:
        main(argv)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def wait(child: int) -> tuple:
    """The child's status and usage; it is killed after WALL_SECONDS."""
    begun = time.monotonic()
    while True:
        done, status, usage = os.wait4(child, os.WNOHANG)
        if done:
            return status, usage
        if time.monotonic() > begun + WALL_SECONDS:
            os.kill(child, 9)
        time.sleep(0.002)


def contents(folder: Path) -> dict:
    """path -> bytes of every file in a folder that existed before the command, but the gigabytes of zeros."""
    return {
        path: path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink() and path.stat().st_size < 1 << 28
    }


def judge(case, seen: dict, before: dict) -> str:
    """The kind of fault, or "" where the command did right."""
    lines = [line for line in seen["stderr"].splitlines() if line.strip() and not line.startswith("note: ")]
    if seen["cpu"] > CPU_SECONDS or seen["code"] in (-9, -24):
        return "hang"
    if seen["peak"] > PEAK_KIB:
        return "memory"
    if seen["code"] not in (0, 2) or "Traceback" in seen["stderr"] or "a fault of this program" in seen["stderr"]:
        return "traceback"
    if seen["code"] == 2 and len(lines) != 1:
        return "lines"
    if seen["code"] == 2 and any(not path.is_file() or path.read_bytes() != old for path, old in before.items()):
        return "loss"
    if seen["code"] == 0 and (wrong := case.check()):
        return f"nonsense: {wrong}"
    return ""


def try_inputs(only: list, count: int, until: float, number: int, keep: Path | None) -> tuple:
    """Draw and run up to `count` inputs until a time -> how often each kind was run, refused; the faults found."""
    ran, refused, faults = Counter(), Counter(), []
    strategy = fuzz_commands.cases(only)

    @seed(number)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def each(make):
        if time.monotonic() > until:
            return
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "work"
            folder.mkdir()
            case = make(folder)
            before = contents(folder)
            seen = run(case.main, case.argv, folder)
            ran[case.kind] += 1
            refused[case.kind] += seen["code"] == 2
            if fault := judge(case, seen, before):
                last = (seen["stderr"].strip().splitlines() or [""])[-1]
                faults.append((case.kind, fault, case.about, last))
                print(f"{case.kind}: {fault}\n    {case.about}\n    {last[:200]}", flush=True)
                if keep and case.kind != "bombs":
                    shutil.copytree(scratch, keep / f"{len(faults):03}-{case.kind}", symlinks=True)
                    (keep / f"{len(faults):03}-{case.kind}" / "argv.json").write_text(
                        json.dumps([fault, case.about, case.argv])
                    )

    each()
    return ran, refused, faults


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--minutes", type=float, default=20, help="at most")
    p.add_argument("--inputs", type=int, default=2000, help="at most")
    p.add_argument("--only", nargs="*", choices=fuzz_commands.KINDS, help="kinds of input (default: all)")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--keep", type=Path, help="directory for the inputs that showed a fault")
    args = p.parse_args()
    begun = time.monotonic()
    ran, refused, faults = try_inputs(
        args.only or fuzz_commands.KINDS, args.inputs, begun + 60 * args.minutes, args.seed, args.keep
    )
    found = Counter((kind, fault.split(":")[0]) for kind, fault, _, _ in faults)
    print(f"{'kind':<12}{'inputs':>7}{'refused':>9}  faults")
    for kind in ran:
        own = ", ".join(f"{n} {fault}" for (of, fault), n in found.items() if of == kind)
        print(f"{kind:<12}{ran[kind]:>7}{refused[kind]:>9}  {own or 'none'}")
    print(f"{sum(ran.values())} inputs in {time.monotonic() - begun:.0f} s, seed {args.seed}: {len(faults)} faults")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
