"""Files of corpora, read piece by piece: json of any size, folders of sound files, tars.

A row is (where, make): where it is, for messages, and a function that returns it or raises Skip.
"""
import json
import os
import re
import tarfile
from functools import partial
from pathlib import Path, PurePosixPath
from unicodedata import normalize
from urllib.parse import unquote

from corpora.sound import Skip
from disk import open_text

BLOCK = 1 << 20             # characters that are read at once
LONGEST = 1 << 26           # characters of a row at most; longer ones are taken as damaged
HEAD = 1000                 # characters kept from block to block, so that a key and its list are found across two
SOUNDS = (".wav", ".flac", ".mp3", ".ogg", ".opus")
# Characters around a path that are invisible or not meant: spaces, quotes, Unicode's marks without width.
AROUND = "\"'`\u2018\u2019\u201c\u201d\xa0\u3000\u2060\ufeff" + "".join(
    map(chr, (*range(33), *range(0x200b, 0x2010), *range(0x202a, 0x202f))))


def find(source: Path, *endings):
    """Yield, in a fixed order, the files in or below a directory with one of these endings, in upper or lower case; or
    `source` itself if it is such a file."""
    fits = lambda name: name.lower().endswith(tuple(map(str.lower, endings)))
    if source.is_file() and fits(source.name):
        yield source
    for folder, folders, names in os.walk(source, followlinks=True):
        folders.sort()
        yield from (Path(folder, name) for name in sorted(names) if fits(name))


def located(cell: str, root: Path, column: str) -> Path:
    """The file that a cell of a table names, relative to `root`.

    Also tried: without invisible characters and quotes around the path, from a file:// address, with the backslashes of
    Windows as slashes, and in Unicode's forms NFC and NFD. Raises Skip with the paths that were tried."""
    plain = cell.strip(AROUND)
    plain = unquote(plain.removeprefix("file://")) if plain.startswith("file://") else os.path.expanduser(plain)
    slashes = plain.replace("\\", "/")
    names = cell, plain, slashes, normalize("NFC", slashes), normalize("NFD", slashes)
    tried = dict.fromkeys(root / name for name in names)
    found = next((path for path in tried if os.path.isfile(path)), None)
    if found is None:
        raise Skip("missing face" if column == "face" else "missing sound",
                   f"{column} is {cell!r:.150}, there is no file {' nor '.join(map(str, tried))}")
    return found


def fail(reason: str, detail):
    """The `make` of a row that cannot be read."""
    raise Skip(reason, detail)


def is_lines(file, name: str) -> bool:
    """Whether an open json file has a value per line: its first line is an object and another line follows, or its name
    ends in .jsonl and its first line does not begin a list of several lines."""
    lines = (line.strip() for line in iter(partial(file.readline, LONGEST), ""))
    first, more = (next(filter(None, lines), "") for _ in range(2))
    try:
        value = json.loads(first)
    except (ValueError, RecursionError):
        value = None
    if name.endswith(".jsonl"):
        return not first.startswith("[") or value is not None and bool(more)
    return isinstance(value, dict) and bool(more)


def json_row(line: str) -> dict:
    """A line of json -> its object. Raises Skip."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise Skip("bad row", f"no json: {error}") from None
    return checked_row(value)


def checked_row(value) -> dict:
    """The value, which must be an object. Raises Skip."""
    if not isinstance(value, dict):
        raise Skip("bad row", f"{json.dumps(value)[:60]}, expected an object")
    return value


def json_rows(path: Path, key: str | None = None):
    """Yield the rows of a jsonl file (see `is_lines`), or of a list in a json file of any size: the one under `key`, or
    the first. Where a json file is damaged it ends with a failing row, as the start of the next one is unknown."""
    name, count = path.name, 0
    with open_text(path) as file:
        lines = key is None and is_lines(file, name)
        file.seek(0)
        if lines:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield f"{name} line {number}", partial(json_row, line)
            return
        decoder, text = json.JSONDecoder(), ""
        head, found = re.compile(r'"%s"\s*:\s*\[' % key if key else r"\["), None
        while not found and (block := file.read(BLOCK)):
            text = text[-HEAD:] + block
            found = head.search(text)
        at = found.end() if found else len(text)
        while True:
            at = re.compile(r"[\s,]*").match(text, at).end()
            try:
                value, at = decoder.raw_decode(text, at)
            except (ValueError, RecursionError):
                if found and text[at:at + 1] == "]":
                    return
                block = file.read(max(BLOCK, len(text) - at))       # for a long row, twice as much each time
                text, at = text[at:] + block, 0
                if not block or len(text) > LONGEST:
                    yield f"{name} after row {count}", partial(fail, "bad row", "no json from here on: is it cut off?")
                    return
                continue
            count += 1
            yield f"{name} row {count}", partial(checked_row, value)


def tar_files(path: Path, mode="r:"):
    """Yield (name, member, the open tar) of the files in a tar, in order. A damaged tar ends with (name, the `make` of
    a failing row, None). mode: "r:" uncompressed, "r|*" a stream with any compression."""
    try:
        with tarfile.open(path, mode) as tar:
            for member in tar:
                if member.isfile():
                    yield PurePosixPath(member.name), member, tar
                tar.members = []                                    # else tarfile would keep them all in memory
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        yield PurePosixPath(path.name), partial(fail, "unreadable sound", f"{path}: {error}"), None
