"""The files that corpora come in, read a piece at a time: json of any size, lists of sound files, tars.

A row is (where, make): where it stands, for messages, and a function that gives it, which may fail.
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

BLOCK = 1 << 20             # letters that are read at once
LONGEST = 1 << 26           # letters of a row at most: what is longer is damaged
HEAD = 1000                 # letters that a key and its colon may be apart by
SOUNDS = (".wav", ".flac", ".mp3", ".ogg", ".opus")
# Around a path nobody sees these, or does not mean them: spaces, quotes, Unicode's marks without width.
AROUND = "\"'`\u2018\u2019\u201c\u201d\xa0\u3000\u2060\ufeff" + "".join(
    map(chr, (*range(33), *range(0x200b, 0x2010), *range(0x202a, 0x202f))))


def find(source: Path, *endings):
    """Yield the files in or below a directory whose names end so, in small or large letters, or `source` itself, in an
    order that does not change."""
    fits = lambda name: name.lower().endswith(tuple(map(str.lower, endings)))
    if source.is_file() and fits(source.name):
        yield source
    for folder, folders, names in os.walk(source, followlinks=True):
        folders.sort()
        yield from (Path(folder, name) for name in sorted(names) if fits(name))


def located(cell: str, root: Path, column: str) -> Path:
    """The file that a cell of a table names, from the directory `root`; also without what nobody sees around its path
    (spaces, quotes, marks of direction and byte order), from file://, with the backslashes of Windows, or with accents
    written in the other of Unicode's two ways. Raises Skip saying what was tried."""
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
    """A row that is none."""
    raise Skip(reason, detail)


def is_lines(file, name: str) -> bool:
    """Whether an open json file holds a value on each line, whatever its name says: the first line is an object and
    another line follows, or it is called .jsonl and its first line does not begin a list of several."""
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
    """The object on a line. Raises Skip."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise Skip("bad row", f"no json: {error}") from None
    return checked_row(value)


def checked_row(value) -> dict:
    """A row of json, which is an object. Raises Skip."""
    if not isinstance(value, dict):
        raise Skip("bad row", f"{json.dumps(value)[:60]}, expected an object")
    return value


def json_rows(path: Path, key: str | None = None):
    """Yield the rows of a jsonl file; or of the first list, or the list under `key`, in a json file of any size; what
    it holds decides, not its name. A json file that is damaged ends with a row that fails: where the next one would
    begin cannot be known."""
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
                block = file.read(max(BLOCK, len(text) - at))       # a row that is longer: twice as much each time
                text, at = text[at:] + block, 0
                if not block or len(text) > LONGEST:
                    yield f"{name} after row {count}", partial(fail, "bad row", "no json from here on: is it cut off?")
                    return
                continue
            count += 1
            yield f"{name} row {count}", partial(checked_row, value)


def tar_files(path: Path, mode="r:"):
    """Yield (name, member, the open tar) of the files in a tar, in their order; a row that fails, as the member, where
    it is damaged. mode: "r:" uncompressed, "r|*" compressed in any way, read once from start to end."""
    try:
        with tarfile.open(path, mode) as tar:
            for member in tar:
                if member.isfile():
                    yield PurePosixPath(member.name), member, tar
                tar.members = []                                    # tarfile keeps them all
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        yield PurePosixPath(path.name), partial(fail, "unreadable sound", f"{path}: {error}"), None
