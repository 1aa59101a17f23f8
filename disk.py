"""Reading and writing files: checks before reading, atomic replacement when writing, locks on directories.

Values from json files are validated by `checked` (a whole object, against a dataclass) or `typed` (one value). Errors
name the file, the field, what was seen and what was expected.
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

TEXT_BYTES = 200 << 20          # limit for json and text files; an hour of face track at 60 frames/s is half of it

# Types for dataclass annotations, with the least and the greatest value (for lists: length).
Size = Annotated[int, 1, 1 << 20]           # a width, a vocabulary, a length
Layers = Annotated[int, 1, 256]             # a number of layers
Share = Annotated[float, 0, 1]              # a probability
Scale = Annotated[float, 0, 1e6]
Sizes = Annotated[list[Size], 1, 64]
Positive = Annotated[float, 1e-12, 1e12]
LIMITS = {int: (-1 << 63, (1 << 63) - 1), float: (-sys.float_info.max, sys.float_info.max)}    # by default
WORDS = {int: "a whole number", float: "a finite number", bool: "true or false", str: "a text", list: "a list",
         tuple: "a list", dict: "an object"}


def regular(path, what: str) -> Path:
    """The path, after checking that it is a plain file that can be opened. what: the expected content, for the error.
    Raises FileNotFoundError where it does not exist, ValueError for a directory, a pipe or a device (reading those may
    never end), OSError where it cannot be opened."""
    path = Path(path)
    try:
        mode = path.stat().st_mode
        if stat.S_ISREG(mode):                                          # opening a pipe waits for its writer
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
    """The content of a plain file of at most TEXT_BYTES. what, errors raised: as `regular`."""
    path = regular(path, what)
    if path.stat().st_size > TEXT_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size >> 20} MiB, expected {what} of at most {TEXT_BYTES >> 20}")
    try:
        return path.read_bytes()
    except OSError as error:                                            # of a failing disk: its text lacks the path
        raise OSError(f"{path} cannot be read ({error.strerror}): expected {what}") from None


def encoding_of(path) -> str:
    """Guess the encoding of a text file of any size: by its byte order mark; else UTF-16 if every second byte at its
    start is zero; else UTF-8 if that decodes most of the characters that are not ASCII; else cp1252 (Windows). Warns
    about damaged UTF-8, and where it assumes cp1252."""
    with open(path, "rb") as file:
        head = file.read(4096)
        if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
            return "utf-16"
        if head[1:2] == b"\0" or head[:1] == b"\0":
            zeros = [head[start::2].count(0) for start in (0, 1)]       # ASCII in big, in little endian
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
    """Open a text file of any size in its own encoding (`encoding_of`)."""
    return open(path, encoding=encoding_of(path), errors="replace")


def refuse_to_replace(inputs, out) -> None:
    """Raises ValueError where `out` is the same file as one of the inputs (paths or None), links resolved."""
    for path in inputs:
        if path is not None and os.path.exists(out) and os.path.exists(path) and os.path.samefile(path, out):
            raise ValueError(f"{out} is read here and would be replaced: choose another name to write to")


def read_json(path) -> dict:
    """The object in a json file. Raises FileNotFoundError, or ValueError where it is not a json object."""
    data = read_bytes(path, f"a json file {Path(path).name}")
    try:
        value = json.loads(data, object_pairs_hook=unique_keys)        # UTF-8 or UTF-16, with or without a mark
    except ValueError as error:
        raise ValueError(f"{path} is not valid json ({error}): fetch or write it again") from None
    except RecursionError:
        raise ValueError(f"{path} is not valid json (nested too deep): fetch or write it again") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a json {type(value).__name__}, expected an object")
    return value


def unique_keys(pairs: list) -> dict:
    """object_pairs_hook for json.loads. Raises ValueError for a key that an object has twice."""
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError(f"it has {first_duplicate(name for name, _ in pairs)!r} twice in one object")
    return values


def first_duplicate(names):
    """The first name that occurs for the second time, or None."""
    seen = set()
    return next((name for name in names if name in seen or seen.add(name)), None)


def checked(cls, values: dict, where, prefix="", required=()):
    """Build a dataclass from a json object, validated by its annotations: int, float, bool, str, dict, list[...],
    tuple[..., ...], another dataclass, Literal["one", "other"], each also `| None`; numbers and lists also as
    Annotated[kind, least, greatest].

    A missing field takes its default, unless it is in `required`. Unknown fields are ignored, except those in the
    class's FIXED (name -> allowed values): settings that this code supports only with these values. where: the file,
    prefix: the object's name in it, for errors. Raises ValueError "WHERE: field NAME is SEEN, expected KIND"."""
    kinds, given = get_type_hints(cls, include_extras=True), {}
    for name, allowed in getattr(cls, "FIXED", {}).items():
        typed(values, name, Literal[allowed] | None, where, None, prefix)
    for f in fields(cls):
        if f.name in values or f.name in required or f.default is f.default_factory is MISSING:
            given[f.name] = typed(values, f.name, kinds[f.name], where, prefix=prefix)
    try:
        return cls(**given)
    except ValueError as error:                                         # from __post_init__
        raise ValueError(f"{where}: {prefix}{error}") from None


def typed(values: dict, name: str, kind, where, default=MISSING, prefix=""):
    """One value of a json object, validated like a field in `checked`. Returns `default` where it is missing."""
    if name not in values and default is not MISSING:
        return default
    if name not in values:
        raise ValueError(f"{where}: field {prefix}{name} is missing, expected {expected(kind)}")
    return converted(values[name], kind, where, f"{prefix}{name}")


def converted(value, kind, where, name: str):
    """The value as `kind`. An int is accepted as a float, a bool not as an int. Raises ValueError."""
    if value is None and type(None) in get_args(kind):
        return None
    base, least, greatest = type_and_range(kind)
    container = get_origin(base) or base
    if is_dataclass(base) and type(value) is dict:
        return checked(base, value, where, f"{name}.")
    if container in (list, tuple) and type(value) is list and least <= len(value) <= greatest:
        each = (*get_args(base), object)[0]
        return container(converted(item, each, where, f"{name}[{i}]") for i, item in enumerate(value))
    if base in LIMITS and type(value) in (int, base) and least <= value <= greatest:        # False for NaN
        return base(value)
    if base is object or base in (str, bool, dict) and type(value) is base or (
            container is Literal and value in get_args(base)):
        return value
    seen = f"{WORDS[type(value)]} of {len(value)}" if type(value) in (list, dict) else repr(value)[:60]
    raise ValueError(f"{where}: field {name} is {seen}, expected {expected(kind)}")


def type_and_range(kind) -> tuple:
    """An annotation, with or without `| None` -> its type, the least and the greatest value (for lists: length)."""
    kind = get_args(kind)[0] if get_origin(kind) in (Union, UnionType) else kind
    return get_args(kind) if get_origin(kind) is Annotated else (kind, *LIMITS.get(kind, (0, sys.maxsize)))


def expected(kind) -> str:
    """An annotation in words, for an error."""
    base, least, greatest = type_and_range(kind)
    choices = "one of " + ", ".join(map(repr, get_args(base))) if get_origin(base) is Literal else ""
    bounded = (least, greatest) != LIMITS.get(base, (0, sys.maxsize))
    between = f" {'from' if base in LIMITS else 'of'} {least:.9g} to {greatest:.9g}" if bounded else ""
    null = " or null" if type(None) in get_args(kind) else ""
    return (choices or WORDS.get(get_origin(base) or base, "an object")) + between + null


@contextmanager
def writing(path):
    """An OSError inside, raised by the system without a file name or for a temporary file, is raised for `path`."""
    try:
        yield
    except OSError as error:
        elsewhere = error.filename is not None and Path(os.fsdecode(error.filename)).parent != Path(path).parent
        if error.errno is None or elsewhere or isinstance(error, BrokenPipeError):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None


@contextmanager
def replacing(path):
    """Replace a file atomically. Yields a temporary path in the same directory, which is renamed to `path` at the end,
    or removed if anything fails. Raises OSError, naming `path`."""
    path = Path(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        name = f".new.{os.getpid()}@{socket.gethostname()[:40]}.{os.urandom(6).hex()}"      # short: `path` may be long
        temporary = path.parent / name
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        mode = stat.S_IMODE(os.stat(temporary).st_mode)
        try:
            yield temporary
            with suppress(OSError):                         # safetensors makes a file that its owner alone may read
                os.chmod(temporary, mode)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def write_json(path, value) -> None:
    """Write a value as indented json, atomically. Raises OSError, and ValueError for NaN and infinity, which json does
    not have."""
    try:
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    except ValueError as error:
        raise ValueError(f"{path} cannot be written as json ({error})") from None
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")     # lone surrogates: \udce9


@contextmanager
def locked(directory):
    """Lock a directory for this process. It is made where it is missing, with its parents, and removed again if nothing
    was written to it. DIRECTORY/.lock holds the pid and host of the owner and an flock, which ends with the process,
    even if that is killed. Where flock does not exist (some network file systems), the lock counts while a process with
    that pid runs. Windows has neither. Temporary files of killed processes (`replacing`) are removed.

    Raises ValueError naming the owner, OSError where nothing can be written."""
    directory = Path(directory)
    lock, made = directory / ".lock", [path for path in (directory, *directory.parents) if not path.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    if os.path.lexists(lock):
        regular(lock, "the lock of a process")
    with open(lock, "a+", encoding="utf-8", errors="replace") as file:
        file.seek(0)
        owner = file.read().strip()
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            taken = not os.path.samestat(os.fstat(file.fileno()), os.stat(lock))    # its last owner removed our file
        except (BlockingIOError, FileNotFoundError):
            taken = True
        except (AttributeError, OSError):                               # no fcntl, or a file system without flock
            taken = _is_running(owner)
        if taken:
            raise ValueError(f"{directory} is in use by process {owner or 'unknown'}: wait for its end or choose "
                             f"another directory; if there is no such process, remove {lock}")
        if hasattr(os, "register_at_fork"):                             # a worker that outlives us must not keep it
            os.register_at_fork(after_in_child=file.close)
        with writing(lock):
            file.truncate(0)
            os.write(file.fileno(), f"{os.getpid()} on {socket.gethostname()}".encode())    # unbuffered
        for temporary in directory.glob(".new.*@*.*"):
            pid, _, host = temporary.name[5:].rpartition(".")[0].partition("@")
            if not _is_running(f"{pid} on {host}"):
                temporary.unlink(missing_ok=True)
        try:
            yield
        finally:
            with suppress(OSError):                                     # Windows cannot remove an open file
                file.truncate(0)
                lock.unlink()
                for path in made:
                    path.rmdir()


def _is_running(process: str) -> bool:
    """Whether process "PID on HOST" may still run. True for another host, where it cannot be checked."""
    pid, _, host = process.partition(" on ")
    if not pid.isdigit() or int(pid) == os.getpid():
        return False
    if host == socket.gethostname():
        if os.name == "nt":                                             # where os.kill would end the process
            return False
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            return False
        except OSError:                                                 # it belongs to another user
            return True
    return True
