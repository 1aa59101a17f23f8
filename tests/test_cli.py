"""cli.py: every way a command can end is a code and at most one line; arguments and devices; consoles and pipes."""
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import cli

ROOT = Path(__file__).parent.parent


def ended(error, **options) -> SystemExit:
    with pytest.raises(SystemExit) as stop, cli.one_line_errors(**options):
        raise error
    return stop.value


# ---------------------------------------------------------------- errors

@pytest.mark.parametrize("error, code, line", [
    (ValueError("two\nlines"), 2, "error: two lines"), (ValueError(), 2, "error: ValueError"),
    (FileNotFoundError("x not found"), 2, "error: x not found"),
    (ModuleNotFoundError("No module named 'soxr'"), 2, "error: No module named 'soxr': `pip install"),
    (MemoryError(), 2, "error: out of memory: take less"),
    (torch.OutOfMemoryError("CUDA out of memory."), 2, "error: out of memory CUDA out of memory.: take less"),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), 2, "error: out of memory [enforce"),
    (KeyError("x"), 2, "error: KeyError: 'x' (a fault of this program: please report it; --debug shows where)"),
    (RecursionError("too deep\n" * 1000), 2, "error: RecursionError: too deep too deep"),
    (AssertionError(), 2, "error: AssertionError:"), (KeyboardInterrupt(), 130, "interrupted"),
    (BrokenPipeError(32, "Broken pipe"), 141, ""), (SystemExit(7), 7, "")])
def test_every_exception_is_a_code_and_at_most_one_line(capsys, error, code, line):
    assert ended(error).code == code
    printed = capsys.readouterr().err
    assert printed.startswith(line) and printed.count("\n") == bool(line) and len(printed) < 700


def test_debug_shows_the_traceback_and_an_interrupt_what_is_kept(capsys):
    assert ended(ValueError("wrong"), debug=True).code == 2
    printed = capsys.readouterr().err
    assert "Traceback" in printed and "raise error" in printed and printed.endswith("\nerror: wrong\n")
    assert ended(KeyboardInterrupt(), interrupted="go on").code == 130 and capsys.readouterr().err == "go on\n"


@pytest.mark.parametrize("encoding, seen", [("cp1252", b"caf\xe9 ? ? ?"), ("ascii", b"caf? ? ? ?"),
                                            ("utf-8", "café → \u4f60 ?".encode())])
def test_a_console_that_lacks_a_character_does_not_end_the_work(monkeypatch, encoding, seen):
    """The last one is a byte of a Latin-1 file name."""
    console = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(console, encoding, write_through=True))
    with cli.one_line_errors():
        print("café → \u4f60 " + os.fsdecode(b"\xe9"), end="")
    assert console.getvalue() == seen


def run(code: str, stdout=subprocess.PIPE, **options) -> tuple:
    """Exit code and standard error of a program."""
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=stdout, stderr=subprocess.PIPE, text=True,
                               **options)
    return process.communicate()[1], process.returncode


@pytest.mark.parametrize("body", ["print('x', flush=True)", "print('x')", "[print(n) for n in range(100_000)]",
                                  "cli.Parser().parse_args(['--help'])"])
def test_a_reader_that_left_is_no_error(body):
    reader, writer = os.pipe()
    os.close(reader)
    try:
        printed, code = run(f"import cli\nwith cli.one_line_errors(): {body}", stdout=writer)
        assert printed == "" and code == (0 if "--help" in body else 141)
    finally:
        os.close(writer)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has such a device")
def test_a_full_disk_under_standard_output_is_one_line():
    with open("/dev/full", "w") as full:
        printed, code = run("import cli\nwith cli.one_line_errors(): print('x')", stdout=full)
    assert code == 2 and "No space left" in printed and printed.count("\n") == 1


WAIT = "print(flush=True); time.sleep(60)"


@pytest.mark.parametrize("body, code, line", [
    ("import no_such_package", 2, "error: No module named 'no_such_package': `pip install"),
    (WAIT, 130, "interrupted"),
    (f"try: {WAIT}\nexcept BaseException: time.half_imported     # numpy and torch do so", 130, "interrupted"),
    (f"with cli.one_line_errors('nothing was done'):\n    try: {WAIT}\n    finally: print('cleaned up')", 130,
     "nothing was done")])
def test_what_goes_wrong_while_importing_is_one_line(body, code, line):
    start = "import sys, time; sys.modules['__main__'].__file__ = 'sample.py'; import cli\n"
    process = subprocess.Popen([sys.executable, "-c", start + body], cwd=ROOT, text=True, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE)
    if code == 130:
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
    out, printed = process.communicate(timeout=60)
    assert process.returncode == code and printed.startswith(line) and printed.count("\n") == 1
    assert ("cleaned up" in out) == ("cleaned up" in body)


def test_other_programs_that_import_from_here_keep_their_own_interrupt():
    code = "import signal, sys, cli; sys.exit(signal.getsignal(signal.SIGINT) is not signal.default_int_handler)"
    assert run(code) == ("", 0) and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_processes_are_asked_to_end_and_waited_for(tmp_path):
    code = "import sys, time\ntry: print(flush=True); time.sleep(60)\nexcept KeyboardInterrupt: open(sys.argv[1], 'w')"
    process = subprocess.Popen([sys.executable, "-c", code, tmp_path / "saved"], stdout=subprocess.PIPE)
    process.stdout.readline()
    began = time.monotonic()
    cli.stop([process])
    cli.stop([process])                                             # it has ended already
    assert process.returncode == 0 and (tmp_path / "saved").exists() and time.monotonic() - began < 30
    process.stdout.close()


def test_a_child_that_wrote_its_own_line_gets_no_second_one(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.failed("train.py", 2, "see above")
    assert stop.value.code == 2 and capsys.readouterr() == ("train.py ended with code 2: see above\n", "")
    with pytest.raises(ValueError, match="train.py ended with code -9: see above"):
        cli.failed("train.py", -9, "see above")


def test_where_nothing_can_be_written_is_known_at_once(tmp_path):
    assert cli.writable(tmp_path / "a" / "b").is_dir() and not list((tmp_path / "a" / "b").iterdir())
    (tmp_path / "file").touch()
    for directory in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / ("n" * 300)):
        with pytest.raises(OSError, match=r"--work .* is no directory to write to \(.*\): choose another"):
            cli.writable(directory, "--work")


# ---------------------------------------------------------------- arguments

@pytest.mark.parametrize("read, good, bad", [
    (cli.positive, {"1": 1, "2147483647": 2 ** 31 - 1}, ["0", "-1", "1.5", "x", "", "nan", "inf", "9" * 5000, "1e3"]),
    (cli.threads, {"2": 2}, ["0", "100000"]),
    (cli.seed, {"0": 0}, ["-1", str(2 ** 64)]),
    (cli.number(1e-6, 10), {"1e-6": 1e-6, "10": 10.0}, ["0", "1e-320", "-1", "11", "nan", "inf", "-inf", "x"]),
    (cli.number(0, float("inf")), {"0": 0.0, "1e300": 1e300}, ["inf", "nan", "-0.1"])])
def test_numbers_are_read_within_their_limits(read, good, bad):
    for text, value in good.items():
        assert read(text) == value and type(read(text)) is type(value)
    for text in bad:
        with pytest.raises(cli.argparse.ArgumentTypeError, match="expected a (whole )?number (from|of)") as error:
            read(text)
        assert len(str(error.value)) < 150


def parser():
    p = cli.Parser(prog="p", description="One.\n\n    python p.py   # an example, kept\n\n" + "word " * 60)
    p.add_argument("--steps", type=cli.positive, help="how many, 5 %% more")
    p.add_argument("--size", default="", help="a name")
    p.add_argument("--dtype", nargs="+", default=["a", "b"], help="of weights")
    p.add_argument("--rate", default=0, help="100%% at most")
    p.add_argument("--seed", default=3, help="by default 3")
    p.add_argument("--quick", action="store_true", help="or slow")
    one = p.add_subparsers(dest="command", required=True).add_parser("one", help="a command")
    one.add_argument("--out", required=True, help="a file")
    return p


@pytest.mark.parametrize("argv, line", [
    (["--steps", "0", "one", "--out", "x"], "argument --steps: '0': expected a whole number from 1"),
    (["one"], "required: --out"), ([], "required: command"), (["two"], "invalid choice: 'two'"),
    (["one", "--out", "x", "--new"], "unrecognized arguments: --new"), (["one", "--out"], "expected one argument")])
def test_wrong_arguments_are_one_line(capsys, argv, line):
    with pytest.raises(SystemExit) as stop:
        parser().parse_args(argv)
    printed = capsys.readouterr().err
    assert stop.value.code == 2 and printed.count("\n") == 1 and printed.startswith("error: ") and line in printed
    assert printed.endswith("--help says more\n")


@pytest.mark.parametrize("argv, debug", [(["one"], False), (["--debug", "one"], True), (["one", "--debug"], True)])
def test_debug_may_stand_before_and_after_the_command(argv, debug):
    assert parser().parse_args([*argv, "--out", "x"]).debug is debug


def test_help_shows_defaults_where_there_are_some_and_leaves_examples_alone(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "82")
    with pytest.raises(SystemExit) as stop:
        parser().parse_args(["--help"])
    lines = capsys.readouterr().out.splitlines()
    words = " ".join(" ".join(lines).split())
    assert stop.value.code == 0 and "    python p.py   # an example, kept" in lines and max(map(len, lines)) <= 80
    for text in ("how many, 5 % more --size", "a name --dtype", "of weights (default: a b)", "or slow",
                 "100% at most (default: 0)", "by default 3 --quick", "show where an error came from"):
        assert text in words, text
    assert "None" not in words and "False" not in words


# ---------------------------------------------------------------- devices

@pytest.mark.parametrize("asked, line", [
    ("foo", "expected auto, cpu, cuda"), ("meta", "expected auto, cpu"), ("xla", "expected auto, cpu"),
    ("cuda:", "expected auto"), ("cuda:x", "expected auto"), ("cuda:-1", "expected auto"), ("", "expected auto"),
    ("cuda:²", "expected auto"), ("cpu:1", "--device cpu:1: there are 1, counted from 0"), ("cuda", "is without cuda"),
    ("cuda:7", "is without cuda"), ("mps", "is without mps")])
def test_a_device_that_is_not_there_is_refused(monkeypatch, asked, line):
    for backend in (torch.cuda, torch.backends.mps):
        monkeypatch.setattr(backend, "is_available", lambda: False)
    for backend in (torch.backends.cuda, torch.backends.mps):
        monkeypatch.setattr(backend, "is_built", lambda: False)
    with pytest.raises(ValueError, match="--device") as error:
        cli.pick_device(asked)
    assert line in str(error.value)
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    if asked == "cuda":
        with pytest.raises(ValueError, match="torch finds no such device here"):
            cli.pick_device(asked)


def test_a_gpu_is_picked_by_its_number_or_torchruns(monkeypatch):
    used = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", used.append)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert cli.pick_device("auto") == cli.pick_device("cuda") == torch.device("cuda:0")
    assert cli.pick_device("cuda:1") == torch.device("cuda:1") and cli.pick_device("cpu") == torch.device("cpu")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert cli.pick_device("auto") == torch.device("cuda:1") and [device.index for device in used] == [0, 0, 1, 1]
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match="--device cuda:2: there are 2, counted from 0"):
        cli.pick_device("auto")
