"""Files in and out: what is read is a plain file and of a size that fits; what is written replaces the old one whole."""
import json
import os
import stat
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path

JSON_BYTES = 200 << 20          # of a json file at most: an hour of face track at 60 frames/s is half of it


def regular(path, what: str) -> Path:
    """The path of a plain file. what: what was expected there, for the error. Raises FileNotFoundError where there is
    none, ValueError where it is a directory, a pipe or a device: those may never end."""
    path = Path(path)
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{path} not found: expected {what}") from None
    if not stat.S_ISREG(mode):
        kind = "a directory" if stat.S_ISDIR(mode) else "a pipe or a device"
        raise ValueError(f"{path} is {kind}: expected {what}")
    return path


def read_json(path) -> dict:
    """The object in a json file (UTF-8, with or without a byte order mark). Raises FileNotFoundError, or ValueError where
    it is not a json object."""
    path = regular(path, f"a json file {Path(path).name}")
    if path.stat().st_size > JSON_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size >> 20} MiB, expected json of at most {JSON_BYTES >> 20}")
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid json ({error}): fetch or write it again") from None
    except RecursionError:
        raise ValueError(f"{path} is not valid json (nested too deep): fetch or write it again") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a json {type(value).__name__}, expected an object")
    return value


@contextmanager
def replacing(path):
    """Yield a temporary path in the directory of `path`, renamed to it at the end, or removed if anything fails."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".new.")    # short: `path` may be as long as names can be
    os.close(handle)
    try:
        yield Path(name)
        with suppress(OSError):                                         # a file system without permissions
            os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(path, value) -> None:
    """Write a value as indented json, under a temporary name first."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
