"""Files in and out: what is read is a plain file and of a size that fits; what is written replaces the old one whole.

Every value of a json file that decides something goes through `checked` (a whole object, by a dataclass) or `typed`
(one value): a wrong one is an error that names the file, the field, what was seen and what was expected.
"""
import codecs
import json
import os
import socket
import stat
import sys
import warnings
from contextlib import contextmanager, suppress
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Literal, Union, get_args, get_origin, get_type_hints

try:
    import fcntl
except ImportError:                                                     # Windows
    fcntl = None

TEXT_BYTES = 200 << 20          # of a json or text file at most: an hour of face track at 60 frames/s is half of it

# Kinds of values for annotations: a type, then the least and the greatest value, or length of a list.
Size = Annotated[int, 1, 1 << 20]           # a width, a vocabulary, a length
Layers = Annotated[int, 1, 256]             # of what is built one after the other
Share = Annotated[float, 0, 1]              # a probability
Scale = Annotated[float, 0, 1e6]
Sizes = Annotated[list[Size], 1, 64]
Positive = Annotated[float, 1e-12, 1e12]
LIMITS = {int: (-1 << 63, (1 << 63) - 1), float: (-sys.float_info.max, sys.float_info.max)}    # where none are given
WORDS = {int: "a whole number", float: "a finite number", bool: "true or false", str: "a text", list: "a list",
         tuple: "a list", dict: "an object"}


def regular(path, what: str) -> Path:
    """The path of a plain file that can be opened. what: what was expected there, for the error. Raises
    FileNotFoundError where there is none, ValueError where it is a directory, a pipe or a device: those may never end,
    OSError where it cannot be opened."""
    path = Path(path)
    try:
        mode = path.stat().st_mode
        if stat.S_ISREG(mode):                                          # a pipe would wait for the other side
            open(path, "rb").close()
    except (FileNotFoundError, NotADirectoryError):
        link = f" (it is a link to {os.readlink(path)}, where there is nothing)" if os.path.islink(path) else ""
        raise FileNotFoundError(f"{path} not found{link}: expected {what}") from None
    except OSError as error:
        raise OSError(f"{path} cannot be opened ({error.strerror}): expected {what}; check its permissions") from None
    if not stat.S_ISREG(mode):
        kind = "a directory" if stat.S_ISDIR(mode) else "a pipe or a device"
        raise ValueError(f"{path} is {kind}: expected {what}")
    return path


def read_bytes(path, what: str) -> bytes:
    """All of a plain file of at most TEXT_BYTES; what: what was expected there. Raises as `regular` does."""
    path = regular(path, what)
    if path.stat().st_size > TEXT_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size >> 20} MiB, expected {what} of at most {TEXT_BYTES >> 20}")
    try:
        return path.read_bytes()
    except OSError as error:                                            # of a failing disk: it names no file
        raise OSError(f"{path} cannot be read ({error.strerror}): expected {what}") from None


def encoding_of(path) -> str:
    """The encoding of a text file of any size: UTF-16 or UTF-8 with a mark where its first bytes say so, UTF-16 where
    every second one of them is zero; else UTF-8 where most of what is not ASCII is such, else cp1252, as Windows writes
    it. A byte that is none of the encoding found becomes a mark; both are said in a warning."""
    with open(path, "rb") as file:
        head = file.read(4096)
        if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
            return "utf-16"
        if head[1:2] == b"\0" or head[:1] == b"\0":
            zeros = [head[start::2].count(0) for start in (0, 1)]       # of ASCII in big, in little endian
            if max(zeros) > len(head) // 4:
                return "utf-16-be" if zeros[0] > zeros[1] else "utf-16-le"
        decoder, good, bad = codecs.getincrementaldecoder("utf-8")("replace"), 0, 0
        while head:
            text = decoder.decode(head)
            if not text.isascii():
                wrong = text.count("\ufffd")
                bad, good = bad + wrong, good + len(text) - len(text.encode("ascii", "ignore")) - wrong
            head = file.read(1 << 20)
    if bad:
        kept = good > bad
        warnings.warn(f"{path} is not all UTF-8: " + (f"{bad} characters of it are damaged" if kept else
                      "read as Windows-1252; convert it to UTF-8 if letters are wrong"), stacklevel=3)
        return "utf-8-sig" if kept else "cp1252"
    return "utf-8-sig"


def open_text(path):
    """A text file of any size, opened to be read in its own encoding."""
    return open(path, encoding=encoding_of(path), errors="replace")


def refuse_to_replace(inputs, out) -> None:
    """Raises ValueError where the file `out` is one of the inputs (paths, or None), also through links."""
    for path in inputs:
        if path is not None and os.path.exists(out) and os.path.exists(path) and os.path.samefile(path, out):
            raise ValueError(f"{out} is read here and would be replaced: choose another name to write to")


def read_json(path) -> dict:
    """The object in a json file. Raises FileNotFoundError, or ValueError where it is not a json object."""
    data = read_bytes(path, f"a json file {Path(path).name}")
    try:
        value = json.loads(data, object_pairs_hook=once)               # UTF-8 or UTF-16, with or without a mark
    except ValueError as error:
        raise ValueError(f"{path} is not valid json ({error}): fetch or write it again") from None
    except RecursionError:
        raise ValueError(f"{path} is not valid json (nested too deep): fetch or write it again") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a json {type(value).__name__}, expected an object")
    return value


def once(pairs: list) -> dict:
    """The pairs of a json object. Raises ValueError for a key that is there twice."""
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError(f"it has {repeated(name for name, _ in pairs)!r} twice in one object")
    return values


def repeated(names):
    """The first of many names that was there before, None where each is there once."""
    known = set()
    return next((name for name in names if name in known or known.add(name)), None)


def checked(cls, values: dict, where, prefix="", required=()):
    """A dataclass from a json object, by its annotations: int, float, bool, str, dict, list[...], tuple[..., ...],
    another dataclass, Literal["one", "other"], each also `| None`; numbers and lists also as Annotated[kind, least,
    greatest].

    A field that is missing takes its default, unless it is `required`; what the dataclass does not know is ignored, but
    for its FIXED: name -> values, of what this code does in these ways only. where: the file, prefix: the object's name
    in it, for errors. Raises ValueError "WHERE: field NAME is SEEN, expected KIND"."""
    kinds, given = get_type_hints(cls, include_extras=True), {}
    for name, ways in getattr(cls, "FIXED", {}).items():
        typed(values, name, Literal[ways] | None, where, None, prefix)
    for f in fields(cls):
        if f.name in values or f.name in required or f.default is f.default_factory is MISSING:
            given[f.name] = typed(values, f.name, kinds[f.name], where, prefix=prefix)
    try:
        return cls(**given)
    except ValueError as error:                                         # of __post_init__
        raise ValueError(f"{where}: {prefix}{error}") from None


def typed(values: dict, name: str, kind, where, default=MISSING, prefix=""):
    """One value of a json object, checked as `checked` checks a field; `default` where it is missing."""
    if name not in values and default is not MISSING:
        return default
    if name not in values:
        raise ValueError(f"{where}: field {prefix}{name} is missing, expected {expected(kind)}")
    return fitted(values[name], kind, where, f"{prefix}{name}")


def fitted(value, kind, where, name: str):
    """The value as `kind`; a whole number is good for a float, true is none for 1. Raises ValueError."""
    if value is None and type(None) in get_args(kind):
        return None
    base, least, greatest = unfolded(kind)
    container = get_origin(base) or base
    if is_dataclass(base) and type(value) is dict:
        return checked(base, value, where, f"{name}.")
    if container in (list, tuple) and type(value) is list and least <= len(value) <= greatest:
        each = (*get_args(base), object)[0]
        return container(fitted(item, each, where, f"{name}[{i}]") for i, item in enumerate(value))
    if base in LIMITS and type(value) in (int, base) and least <= value <= greatest:        # NaN is in no range
        return base(value)
    if base is object or base in (str, bool, dict) and type(value) is base or (
            container is Literal and value in get_args(base)):
        return value
    seen = f"{WORDS[type(value)]} of {len(value)}" if type(value) in (list, dict) else repr(value)[:60]
    raise ValueError(f"{where}: field {name} is {seen}, expected {expected(kind)}")


def unfolded(kind) -> tuple:
    """A kind, with or without `| None` -> its type, the least and the greatest value, or length of a list."""
    kind = get_args(kind)[0] if get_origin(kind) in (Union, UnionType) else kind
    return get_args(kind) if get_origin(kind) is Annotated else (kind, *LIMITS.get(kind, (0, sys.maxsize)))


def expected(kind) -> str:
    """A kind in words, for an error."""
    base, least, greatest = unfolded(kind)
    choices = "one of " + ", ".join(map(repr, get_args(base))) if get_origin(base) is Literal else ""
    bounded = (least, greatest) != LIMITS.get(base, (0, sys.maxsize))
    between = f" {'from' if base in LIMITS else 'of'} {least:.9g} to {greatest:.9g}" if bounded else ""
    null = " or null" if type(None) in get_args(kind) else ""
    return (choices or WORDS.get(get_origin(base) or base, "an object")) + between + null


@contextmanager
def writing(path):
    """An OSError of the system inside, of writing a file that has no name or a temporary one there, names `path`."""
    try:
        yield
    except OSError as error:
        theirs = error.filename is not None and Path(os.fsdecode(error.filename)).parent != Path(path).parent
        if error.errno is None or theirs or isinstance(error, BrokenPipeError):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None


@contextmanager
def replacing(path):
    """Yield a temporary path in the directory of `path`, renamed to it at the end, or removed if anything fails. Raises
    OSError, naming `path`."""
    path = Path(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        name = f".new.{os.getpid()}@{socket.gethostname()[:40]}.{os.urandom(6).hex()}"      # `path` may be very long
        temporary = path.parent / name
        open(temporary, "xb").close()
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def write_json(path, value) -> None:
    """Write a value as indented json, under a temporary name first. Raises ValueError for NaN and infinity, which json
    does not have, and OSError."""
    try:
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    except ValueError as error:
        raise ValueError(f"{path} cannot be written as json ({error})") from None
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")     # half characters: \udce9


@contextmanager
def locked(directory):
    """One process at a time is inside; the directory is made if there is none, with those above it; they are removed
    again if nothing was written to it. DIRECTORY/.lock has the pid and host of who is inside and is locked while that
    process lives: no kill leaves it taken. Where no such locks are known (some network file systems), the pid counts
    while such a process runs; Windows has neither.

    Raises ValueError naming who is inside, OSError where nothing can be written."""
    directory = Path(directory)
    lock, made = directory / ".lock", [path for path in (directory, *directory.parents) if not path.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    if os.path.lexists(lock):
        regular(lock, "the lock of a process")
    with open(lock, "a+", encoding="utf-8", errors="replace") as file:
        file.seek(0)
        inside = file.read().strip()
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            taken = not os.path.samestat(os.fstat(file.fileno()), os.stat(lock))    # the one before us has removed it
        except (BlockingIOError, FileNotFoundError):
            taken = True
        except (AttributeError, OSError):                               # no fcntl, or no locks there
            taken = _runs(inside)
        if taken:
            raise ValueError(f"{directory} is in use by process {inside or 'unknown'}: wait for its end or choose "
                             f"another directory; if there is no such process, remove {lock}")
        if hasattr(os, "register_at_fork"):                             # a worker that outlives us must not hold it
            os.register_at_fork(after_in_child=file.close)
        with writing(lock):
            file.truncate(0)
            os.write(file.fileno(), f"{os.getpid()} on {socket.gethostname()}".encode())    # not once more at the end
        for left in directory.glob(".new.*@*.*"):                       # of `replacing`, in a process that was killed
            pid, _, host = left.name[5:].rpartition(".")[0].partition("@")
            if not _runs(f"{pid} on {host}"):
                left.unlink(missing_ok=True)
        try:
            yield
        finally:
            with suppress(OSError):                                     # Windows removes no open file
                file.truncate(0)
                lock.unlink()
                for path in made:
                    path.rmdir()


def _runs(process: str) -> bool:
    """Whether "PID on HOST" still runs, as far as can be known: one of another host may."""
    pid, _, host = process.partition(" on ")
    if not pid.isdigit() or int(pid) == os.getpid():
        return False
    if host == socket.gethostname():
        if os.name == "nt":                                             # os.kill would end it
            return False
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            return False
        except OSError:                                                 # it is another user's
            return True
    return True
