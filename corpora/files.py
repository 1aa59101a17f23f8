"""The files that corpora come in, read a piece at a time: json of any size, lists of sound files, tars.

A row is (where, make): where it stands, for messages, and a function that gives it, which may fail.
"""
import json
import os
import re
import tarfile
from functools import partial
from pathlib import Path, PurePosixPath

from corpora.sound import Skip

BLOCK = 1 << 20             # letters that are read at once
LONGEST = 1 << 26           # letters of a row at most: what is longer is damaged
HEAD = 1000                 # letters that a key and its colon may be apart by
SOUNDS = (".wav", ".flac", ".mp3", ".ogg", ".opus")


def find(source: Path, *endings):
    """Yield the files in or below a directory whose names end so, or `source` itself, in an order that does not
    change."""
    if source.is_file() and source.name.endswith(endings):
        yield source
    for folder, folders, names in os.walk(source, followlinks=True):
        folders.sort()
        yield from (Path(folder, name) for name in sorted(names) if name.endswith(endings))


def fail(reason: str, detail):
    """A row that is none."""
    raise Skip(reason, detail)


def text_of(path: Path):
    """A text file, opened. Bytes that are not UTF-8 become a mark."""
    return open(path, encoding="utf-8-sig", errors="replace")


def json_rows(path: Path, key: str | None = None):
    """Yield the rows of a jsonl file; or of the first list, or the list under `key`, in a json file of any size. A json
    file that is damaged ends with a row that fails: where the next one would begin cannot be known."""
    name, count = path.name, 0
    with text_of(path) as file:
        if path.suffix == ".jsonl":
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield f"{name} line {number}", partial(json.loads, line)
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
            yield f"{name} row {count}", partial(dict, value)


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
