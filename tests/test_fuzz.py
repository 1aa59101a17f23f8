"""A minute of tests/fuzz.py, which tries odd and damaged inputs of every kind."""
import subprocess
import sys
from pathlib import Path

import pytest

import fuzz
from fuzz_captures import Case

ROOT = Path(__file__).parent.parent


def test_no_input_does_harm():
    """0.7 minutes at most; fewer inputs on a slow machine, as a time limit must hold everywhere."""
    command = [sys.executable, "tests/fuzz.py", "--inputs", "150", "--minutes", "0.7"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and " 0 faults" in done.stdout, done.stdout[-3000:] + done.stderr[-1000:]


def works(argv):
    Path("out.json").write_text("{}")


def raises(argv):
    raise KeyError("x")


def admits(argv):
    print("error: KeyError: 'x' (a fault of this program: please report it)", file=sys.stderr)
    sys.exit(2)


def says_two_lines(argv):
    print("error: this\nand that", file=sys.stderr)
    sys.exit(2)


def destroys(argv):
    Path("kept.txt").unlink()
    print("error: no", file=sys.stderr)
    sys.exit(2)


def loads(argv):
    print(len(bytearray(2300 << 20)))


@pytest.mark.parametrize("main, wrong, fault", [
    (works, "", ""), (works, "half of it", "nonsense: half of it"), (raises, "", "traceback"), (admits, "", "traceback"),
    (says_two_lines, "", "lines"), (destroys, "", "loss"), (loads, "", "memory")])
def test_every_fault_is_seen(tmp_path, main, wrong, fault):
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "kept.txt").write_text("kept")
    before = fuzz.contents(folder)
    seen = fuzz.run(main, [], folder)
    assert fuzz.judge(Case("x", "", main, [], lambda: wrong), seen, before) == fault
