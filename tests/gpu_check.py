"""What only a GPU can show: golden numbers on it, speed of decoding, one answer at the paper's size, steps of training.

    python tests/gpu_check.py                                     # one GPU of 80 GB, at most 8 minutes: docs/gpu.md
    python tests/gpu_check.py --only decoding --out decoding.md   # one section
    python tests/gpu_check.py --device cpu --tiny --out tiny.md   # the same code on a CPU, in seconds: no speeds

Every section is a process of its own with a time budget. One that fails or takes too long leaves its reason, what it
had measured, and the other sections; the exit code is 1 then, 2 without a GPU. The report is written anew after each
section. All weights are random and made on the device, no files but the golden ones are read: speeds are real, answers
are not. gpu_sections.py measures; golden numbers, processes and report are here.
"""
import argparse
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import disk
from cli import one_line_errors
from gpu_sections import answer, decoding, table, training


# ---------------------------------------------------------------- golden numbers

class Outcomes:
    """A pytest plugin: the reports that count, and what is wrong in the failed ones."""

    def __init__(self):
        self.reports = []

    def pytest_runtest_logreport(self, report):
        if report.when == "call" or report.outcome != "passed":     # set-up counts where a test gets no further
            self.reports.append(report)

    def pytest_collectreport(self, report):
        if report.failed:
            self.reports.append(report)

    def count(self, outcome: str) -> int:
        return sum(report.outcome == outcome for report in self.reports)

    def failures(self) -> list:
        """'test: reason' of each failed one."""
        lines = []
        for report in self.reports:
            if report.failed:
                crash, text = getattr(report.longrepr, "reprcrash", None), str(report.longrepr)
                reason = crash.message if crash else "\n".join(re.findall("^E (.*)", text, re.MULTILINE)) or text
                lines.append(f"{report.nodeid.rpartition('::')[2]}: {' '.join(reason.split())[:400]}")
        return lines


def golden(device: str, tiny: bool):
    """The golden tests with modules and numbers on the device, float32 sums without TF32, tolerances as on a CPU."""
    os.environ["GOLDEN_DEVICE"] = device                # tests/test_golden_*.py read it when they are imported
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    torch.backends.cudnn.allow_tf32 = False             # of matrix products it is off by default
    import pytest
    rows, failures = [], []
    for name in ("test_golden_ex_omni.py", "test_golden_glm4_voice.py"):
        outcomes, begun = Outcomes(), time.perf_counter()
        code = pytest.main(["-q", "-p", "no:cacheprovider", str(ROOT / "tests" / name)]
                           + ["-k", "tqgf or projector or speaker"] * tiny, plugins=[outcomes])
        rows.append([name, *map(outcomes.count, ("passed", "failed", "skipped")), time.perf_counter() - begun])
        failures += outcomes.failures() or [f"{name}: pytest ended with code {int(code)}"] * (int(code) != 0)
        yield table(["golden tests in float32", "passed", "failed", "skipped", "s"], rows[-1:])
    if failures:
        yield "\n".join(f"- {line}" for line in failures)
    assert not failures, f"{len(failures)} golden tests fail, the first is {failures[0]}"


# ---------------------------------------------------------------- the report

SECTIONS = {            # name: function, title, budget in seconds
    "golden": (golden, "Golden numbers", 110),
    "decoding": (decoding, "Decoding", 90),
    "answer": (answer, "One answer at the paper's size", 110),
    "training": (training, "Training steps of stage IV", 130)}


def machine(device: str) -> str:
    """What it was measured on."""
    versions = f"torch {torch.__version__}, Python {platform.python_version()}, {time.strftime('%Y-%m-%d')}"
    if device != "cuda":
        return f"{platform.machine()} CPU; {versions}"
    try:
        driver = subprocess.run(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
                                capture_output=True, text=True, timeout=20).stdout.split()[0]
    except (OSError, IndexError, subprocess.TimeoutExpired):
        driver = "unknown"
    memory = torch.cuda.get_device_properties(0).total_memory / 2 ** 30
    return (f"{torch.cuda.get_device_name()}, {memory:.0f} GiB; driver {driver}, CUDA {torch.version.cuda}, cuDNN "
            f"{torch.backends.cudnn.version()}; {versions}")


def section(name: str, args) -> tuple:
    """One section in a process of its own -> its markdown, and the reason why it failed, if it did."""
    _, title, budget = SECTIONS[name]
    begun, reason = time.perf_counter(), None
    with tempfile.TemporaryDirectory() as directory:
        into, why = Path(directory) / "section.md", Path(directory) / "section.reason"
        command = [sys.executable, str(Path(__file__).resolve()), "--section", name, "--out", str(into),
                   "--device", args.device, *["--tiny"] * args.tiny]
        try:
            code = subprocess.run(command, cwd=ROOT, timeout=budget).returncode
            if code:
                reason = why.read_text(encoding="utf-8") if why.exists() else f"exit code {code}"
        except subprocess.TimeoutExpired:
            reason = f"stopped after its budget of {budget} s"
        text = into.read_text(encoding="utf-8") if into.exists() else ""
    took = f"{time.perf_counter() - begun:.0f} s of {budget} s"
    print(f"{name}: {took}, {reason or 'done'}", flush=True)
    return f"## {title}\n\n" + (f"**Failed:** {reason}\n\n" if reason else "") + f"{text}\n\n{took}.", reason


def measure(args) -> None:
    """The section named in args, in this process: each part of its report is written as soon as it is known, and the
    reason of a failure, in one line, to a second file."""
    if args.device == "cpu":
        torch.set_num_threads(1)                        # the shapes are tiny: a second thread costs more than it brings
    out, parts = Path(args.out), []
    try:
        for part in SECTIONS[args.section][0](args.device, args.tiny):
            parts.append(part)
            out.write_text("\n\n".join(parts), encoding="utf-8")
    except BaseException as error:                      # with its traceback on stderr
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        out.with_suffix(".reason").write_text(reason[:500], encoding="utf-8")
        raise


def report(args) -> int:
    """All sections asked for, one after the other -> the exit code."""
    command = " ".join(["python tests/gpu_check.py", *sys.argv[1:]])
    head = ["# On a GPU", f"Written by `{command}`. Random weights: the speeds are real, the answers are not.",
            machine(args.device)]
    done, failed = {name: f"## {SECTIONS[name][1]}\n\nNot measured yet." for name in args.only}, 0
    for name in args.only:
        done[name], reason = section(name, args)
        failed += reason is not None
        with disk.replacing(args.out) as temporary:
            temporary.write_text("\n\n".join([*head, *done.values()]) + "\n", encoding="utf-8")
    print(f"wrote {args.out}; {failed} of {len(done)} sections failed")
    return 1 if failed else 0


def main(argv=None) -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="(default: %(default)s)")
    p.add_argument("--tiny", action="store_true", help="tiny shapes: whether the code works, not how fast it is")
    p.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="these sections (default: all)")
    p.add_argument("--out", help="(default: docs/gpu.md on a GPU)")
    p.add_argument("--section", choices=SECTIONS, help=argparse.SUPPRESS)
    args = p.parse_args(argv)
    if args.section:
        return measure(args)
    with one_line_errors():
        if args.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("no GPU that torch can use was found, nothing was measured: on a CPU --device cpu --tiny "
                             "--out FILE goes through the same code")
        if args.out is None and args.device != "cuda":
            raise ValueError("give --out: docs/gpu.md is for figures of a GPU")
        args.out = Path(args.out or ROOT / "docs" / "gpu.md").resolve()
        code = report(args)
    sys.exit(code)


if __name__ == "__main__":
    main()
