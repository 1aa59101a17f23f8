"""Shared by all commands: arguments, devices, error lines and exit codes.

Wrong input ends with one line on stderr and exit code 2, an interrupt with one line and exit code 130, a closed pipe
(`| head`) silently with exit code 141. --debug prints the traceback of an error. Commands import this file before
torch, whose import takes seconds, so that an interrupt during it, or a missing package, is one line too.

Inside `one_line_errors` print replaces characters that the console cannot show by "?". Commands write their files
before they print, because printing to a closed pipe ends them.
"""
import argparse
import errno
import math
import os
import re
import signal
import sys
import tempfile
import traceback
import warnings
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from urllib.parse import unquote

if sys.version_info < (3, 10):
    sys.exit(f"error: this is Python {sys.version.split()[0]}, expected 3.10 or newer")


# ---- errors and exit codes ----------------------------------------------------------------------------------------

@contextmanager
def one_line_errors(interrupted: str = "interrupted", debug: bool = False):
    """with one_line_errors(debug=args.debug): run(args)

    Ends the command with one line for any error. ValueError, OSError, a missing package and lack of memory are the
    user's to solve, others are reported as faults of this program. interrupted: the message after Ctrl-C. debug: print
    the traceback as well. Raises SystemExit."""
    if hasattr(sys.stdout, "reconfigure"):              # a notebook's stdout has none
        sys.stdout.reconfigure(errors="replace")
    if signal.getsignal(signal.SIGINT) is exit_on_interrupt:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    warnings.formatwarning = lambda message, *where, **more: f"note: {message}\n"      # without a line of our code
    try:
        try:
            yield
        finally:
            print(end="", flush=True)                   # raise the console's errors here, not when Python exits
    except KeyboardInterrupt:
        end(130, interrupted)
    except BrokenPipeError:
        end(141)
    except (SystemExit, GeneratorExit):
        raise
    except BaseException as error:                      # Exception would miss panics of packages written in Rust
        if debug:
            traceback.print_exc()
        end(2, line_of(error))


# Advice for errors of the system in opening or writing files.
ADVICE = {errno.ENOSPC: "make room there, or choose another place",
          errno.EDQUOT: "make room there, or choose another place",
          errno.EROFS: "choose a place that can be written to", errno.ENAMETOOLONG: "choose a shorter name",
          errno.EACCES: "check its permissions, or choose another place", errno.EIO: "is the disk failing?",
          errno.EPERM: "check its permissions, or choose another place", errno.EFBIG: "choose a place for larger files",
          errno.EEXIST: "a directory is needed there, choose another name", errno.ENOTDIR: "choose another name",
          errno.EISDIR: "choose another name",
          errno.EMFILE: "raise the limit, `ulimit -n`", errno.ENOENT: "check the path", errno.ELOOP: "check its links"}


def line_of(error: BaseException) -> str:
    """The line that is printed for an error."""
    kind, text = type(error).__name__, " ".join(str(error).split())
    if isinstance(error, OSError) and error.errno is not None and error.strerror:
        names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, (str, bytes))]
        advice = ADVICE.get(error.errno, "check the path and the disk")
        return " ".join("".join(f"{part}: " for part in ["error", *names, error.strerror]).split()) + f" {advice}"
    if isinstance(error, ModuleNotFoundError):
        return f"error: {text}: `pip install -r requirements.txt`, or that package"
    if isinstance(error, MemoryError) or kind == "OutOfMemoryError" or "can't allocate memory" in text:     # torch's
        return f"error: out of memory {text[:200]}".rstrip() + ": take less at a time, or another --device"
    if isinstance(error, (ValueError, OSError, ImportError)):
        return f"error: {text or kind}"
    return f"error: {kind}: {text[:500]} (a fault of this program: please report it; --debug shows where)"


def end(code: int, line: str = "") -> None:
    """Print the line, if there is one, and exit. A stream that cannot be written to is redirected to /dev/null, or
    Python would print another error at exit."""
    for stream, text in ((sys.stdout, ""), (sys.stderr, line and line + "\n")):
        try:
            print(text, end="", file=stream, flush=True)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(code)


def exit_on_interrupt(*_) -> None:
    """The handler of Ctrl-C while modules are imported. It exits at once, as nothing needs cleaning up yet. An
    exception could be swallowed by a module, leaving it half imported, or make torch's C++ code abort."""
    os.write(2, b"interrupted\n")
    os._exit(130)


def is_command() -> bool:
    """Whether the running program is a command of this project. Others that import it keep their own Ctrl-C handler."""
    file, here = getattr(sys.modules["__main__"], "__file__", None), Path(__file__).resolve().parent
    return sys.argv[0] == "-m" or bool(file) and Path(file).resolve().parent in (
        here, here / "docs", here / "face", here / "toy")               # "-m": a package that `python -m` imports


def missing_package_hook(kind, error, trace) -> None:
    """sys.excepthook that prints one line for a missing package."""
    if "--debug" in sys.argv or not issubclass(kind, ImportError):
        return sys.__excepthook__(kind, error, trace)
    end(2, line_of(error))


if is_command():
    sys.excepthook = missing_package_hook
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:   # not in workers, which ignore Ctrl-C
        signal.signal(signal.SIGINT, exit_on_interrupt)


# ---- commands that run other ones ---------------------------------------------------------------------------------

def stop(processes, number=signal.SIGINT) -> None:
    """Send the processes a signal and wait until they have ended. A training saves first."""
    for process in processes:
        process.send_signal(number)
    for process in processes:
        process.wait()


def failed(name: str, code: int, advice: str) -> None:
    """End this command because another process failed. Raises ValueError, or, for exit codes 2 and 130, with which the
    process printed its own error line, SystemExit."""
    if code not in (2, 130):
        raise ValueError(f"{name} ended with code {code}: {advice}")
    print(f"{name} ended with code {code}: {advice}")
    sys.exit(code)


# ---- arguments ----------------------------------------------------------------------------------------------------

class Help(argparse.HelpFormatter):
    """Adds default values to the help of options; does not wrap examples and lists in a description."""

    def _get_help_string(self, action) -> str:
        default, text = action.default, action.help or ""
        if default is None or default is False or default in ("", [], argparse.SUPPRESS) or "default" in text:
            return text
        shown = " ".join(map(str, default)) if isinstance(default, list) else str(default)
        return f"{text} (default: {shown.replace('%', '%%')})"

    def _fill_text(self, text, width, indent) -> str:
        wrap = partial(super()._fill_text, width=width, indent=indent)
        return "\n\n".join(part if part.startswith((" ", "|")) or "\n " in part else wrap(part)
                           for part in text.strip("\n").split("\n\n"))


class Parser(argparse.ArgumentParser):
    """An ArgumentParser with --debug and one-line errors, also for its subparsers."""

    def __init__(self, debug=False, **options):
        super().__init__(**{"formatter_class": Help} | options)
        self.add_argument("--debug", action="store_true", default=debug, help="show where an error came from")

    def add_subparsers(self, **options):                # SUPPRESS: their default would undo a --debug before them
        return super().add_subparsers(**{"parser_class": partial(Parser, debug=argparse.SUPPRESS)} | options)

    def parse_known_args(self, args=None, namespace=None):
        args = [*sys.argv[1:]] if args is None else [*args]
        for before, given in zip(["", *args], args):                # --out "" would mean the current directory
            name, equals, value = given.partition("=") if given.startswith("--") else (before, "=", given)
            if equals and not value.strip() and name not in ("--text", "--export"):
                what = f"argument {name}" if name.startswith("-") else "an argument"
                self.error(f"{what} is empty: is a variable of the shell not set?")
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> None:
        end(2, f"error: {' '.join(message.split())}; {self.prog} --help says more")

    def exit(self, status=0, message=None) -> None:     # after --help
        end(status, message or "")


def bounded(kind, what: str, low, high):
    """An argparse type: a number from low to high, both included, never infinite or nan."""
    def read(text: str):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high or math.isinf(value):
            limits = f"of {low} or more" if high == math.inf else f"from {low} to {high}"
            raise argparse.ArgumentTypeError(f"{text[:40]!r}: expected {what} {limits}")
        return value
    return read


whole, number = partial(bounded, int, "a whole number"), partial(bounded, float, "a number")    # (low, high)
positive, threads, seed = whole(1, 2 ** 31 - 1), whole(1, 1024), whole(0, 2 ** 63 - 1)


def check_directory(directory, option="--out") -> Path:
    """Check, before the work starts, that a directory is writable, or can be made. Does not make it. Raises OSError."""
    path = Path(os.path.abspath(directory))
    try:
        existing = next(one for one in (path, *path.parents) if os.path.lexists(one))
        if not existing.is_dir():
            kind = "a link that leads nowhere" if existing.is_symlink() and not existing.exists() else "a file"
            raise OSError(f"{option} {directory} is no directory to write to ({existing} is {kind}): choose another")
        tempfile.TemporaryFile(dir=existing).close()
        for name in path.relative_to(existing).parts:
            with suppress(FileNotFoundError):
                os.lstat(existing / name)                           # raises OSError if the name is too long
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(f"{option} {directory} is no directory to write to ({error.strerror}): choose another") from None
    return Path(directory)


def writable(directory, option="--out") -> Path:
    """`check_directory`, then make the directory where it is missing. Raises OSError."""
    check_directory(directory, option).mkdir(parents=True, exist_ok=True)
    return Path(directory)


SOUNDS = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac", ".aif", ".aiff", ".au", ".raw", ".pcm", ".webm")


def typed_path(line: str) -> str | None:
    """The path in a line that was typed, pasted or dropped into a terminal: quoted, with ~, escaped spaces or file://.
    None where it is no existing file and does not look like the path of a recording."""
    path = line
    if path[0] == path[-1] and path[0] in "\"'" and len(path) > 2:
        path = path[1:-1]
    elif os.name != "nt" and not os.path.exists(path):
        path = re.sub(r"\\(.)", r"\1", path)
    if path.startswith("file://"):
        path = unquote(path.removeprefix("file://").removeprefix("localhost"), errors="surrogateescape")
    path = os.path.expanduser(path)
    begins = line.strip("\"'").startswith(("/", "./", "../", "~/", "file://", "\\\\")) or re.match(r"\w:\\", line)
    ends = path.lower().rstrip("\"' ").endswith(SOUNDS) or os.sep in path and os.path.isdir(path)
    return path if os.path.isfile(path) or begins or ends else None


# ---- devices ------------------------------------------------------------------------------------------------------

def pick_device(asked: str):
    """--device -> torch.device. auto: a GPU if there is one. Under torchrun each process takes its own GPU. Raises
    ValueError for a device that is unknown, missing, or not supported by this build of torch."""
    import torch                                        # imported here: it takes seconds
    if asked == "auto":
        asked = "cuda" if torch.cuda.is_available() else "cpu"
    kind, colon, index = asked.partition(":")
    if kind not in ("cpu", "cuda", "mps") or colon and not (index.isascii() and index.isdigit()):
        raise ValueError(f"--device {asked}: expected auto, cpu, cuda, cuda:NUMBER or mps")
    backend = {"cpu": torch.cpu, "cuda": torch.cuda, "mps": torch.backends.mps}[kind]
    if not backend.is_available():
        built = {"cuda": torch.backends.cuda, "mps": torch.backends.mps}[kind].is_built()
        raise ValueError(f"--device {asked}: " + ("torch finds no such device here" if built else
                         f"this build of torch ({torch.__version__}) is without {kind}") + "; cpu and auto always work")
    if kind == "cuda" and not colon:
        index = os.environ.get("LOCAL_RANK", "0")
    count = torch.cuda.device_count() if kind == "cuda" else 1
    if int(index or 0) >= count:
        raise ValueError(f"--device {kind}:{index}: there are {count}, counted from 0")
    device = torch.device(kind, int(index)) if index else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(device)
    return device
