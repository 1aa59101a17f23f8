"""The file format of prepared data, and the checks of its files. data.py writes and reads them.

The demo set and real corpora have the same format. One directory per split, written once, with random access:

    samples.jsonl   a row per sample: id, task, messages, answer, the [start, length] of each of its arrays (or absent),
                    and any other information (voice, phrasing, ...)
    audio.i16       16 kHz mono speech of the user, all clips concatenated; [start, samples]. A row's answer_audio, also
                    [start, samples], is the speech of its answer: never used in training, but to make units and faces
    units.u16       12.5 Hz speech units of the answers; [start, units]
    face.f16        30 Hz face tracks of the answers, 52 weights a frame in the order of face.arkit.ARKIT_NAMES;
                    [start, frames]
    manifest.json   the number of samples, the size and checksum of each file, and the speech tokenizer of the units.
                    Written last: a directory without it is not finished
    verified.json   size, times and checksum of each file when it was last read whole and checked, so that the next
                    start need not do so. Not part of the data; the reader writes it where it can
    samples.index   the fields that training needs of all rows, as memory-mapped columns (`COLUMNS`): five million rows
                    open in seconds. Made by the writer, or by the reader where it is missing or of other rows

Several samples may share an answer's arrays. Tasks: `asr` speech -> its words, `tts` text -> units, `face` text ->
units and face, `qa` a spoken or written question -> text, units, face, `chat` text -> text. messages is the
conversation so far, as for `tokenizer.Tokenizer.encode_chat`; without a system prompt the default one is added.
answer is the reply: only its text and the <|im_end|> after it have a loss. Numbers are little endian.

Shapes: U units, T face frames, K = 52 blendshapes.
"""
import json
import os
import time
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np

import disk
from tokenizer import SPEECH_ID, message_parts

ARRAYS = {"audio": ("audio.i16", "<i2", 1), "units": ("units.u16", "<u2", 1), "face": ("face.f16", "<f2", 52)}
NEEDS = {"asr": ["audio"], "tts": ["units"], "face": ["units", "face"], "qa": [], "chat": []}   # task -> its arrays
TASKS = tuple(NEEDS)
RANGES = {"units": (0, (1 << 16) - 1), "face": (-1, 2)}     # weights are in [0, 1], captures go a little beyond
MEMORY = "verified.json"
READY = ".ready"                # a directory of complete new files that are being moved to SPLIT
ROWS, INDEX = "samples.jsonl", "samples.index"
FILES = (ROWS, *(file for file, _, _ in ARRAYS.values()))
AGAIN = "copy the directory again, or remove it and run prepare.py again"
CHECKSUM_BYTES = 1 << 24        # read at once
BLOCK = 1 << 18                 # rows of an array that are checked at once
TICK = 2                        # s, the coarsest resolution of a file system's time stamps
Count = Annotated[int, 0, 1 << 62]
Vocabulary = Annotated[int, 1, 1 << 16] | None
# Field of a row -> the array that it points into.
ENTRIES = {name: name for name in ARRAYS} | {"answer_audio": "audio"}
# Types of a row's fields, checked where they are present. Other fields are not checked.
ROW = {"id": str, "task": Literal[TASKS], "answer": str, "messages": list} | dict.fromkeys(ENTRIES, list[Count])
LONGEST = (1 << 31) - 1         # largest length of one sample's array, 37 hours of sound
# The index is a head followed by whole columns. Lengths are -1 where a row lacks the field.
COLUMNS = {"offset": "<i8"} | {f"{name} start": "<i8" for name in ENTRIES} | {       # of the line in samples.jsonl
    f"{name} length": "<i4" for name in ENTRIES} | {
    "prompt": "<i4", "answer": "<i4",           # text bytes, plus MARKUP_BYTES per message: upper bounds of the tokens
    "task": "u1", "speech": "u1"}               # index in TASKS; number of speech parts in the messages
RECORD = np.dtype(list(COLUMNS.items()))
HEAD = np.dtype([("format", "<u8"), ("rows", "<u8"), ("bytes", "<u8"), ("crc32", "<u8"), ("own crc32", "<u8")])
FORMAT, MARKUP_BYTES = 1, 16    # HEAD has rows, bytes, crc32 of samples.jsonl, and own crc32 of the columns


@dataclass
class File:
    """A file's entry in the manifest."""
    bytes: Count
    crc32: Annotated[int, 0, (1 << 32) - 1]


def checksum(path: Path) -> int:
    """CRC-32 of a file."""
    with open(path, "rb") as file:
        return checksum_of_rest(file)


def checksum_of_rest(file) -> int:
    """CRC-32 of an open file from its current position on."""
    value = 0
    while block := file.read(CHECKSUM_BYTES):
        value = zlib.crc32(block, value)
    return value


def parse_row(line: bytes, where: str, sizes: dict) -> dict:
    """Parse and check a line of samples.jsonl. sizes: array -> its length. Raises ValueError."""
    try:
        row = json.loads(line, object_pairs_hook=disk.unique_keys)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not json ({error})") from None
    if not isinstance(row, dict) or not line.endswith(b"\n"):
        raise ValueError(f"{where} is not a json object on a line of its own")
    where = f"{where}, sample {disk.typed(row, 'id', str, where)}"
    for name, kind in ROW.items():
        if name in row or name == "task":
            disk.typed(row, name, kind, where)
    try:
        for message in row.get("messages", ()):
            message_parts(message)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    for name, array in ENTRIES.items():
        if name in row and (len(row[name]) != 2 or sum(row[name]) > sizes[array] or row[name][1] > LONGEST):
            raise ValueError(f"{where}: {name} is {row[name]}, expected [start, length] within the {sizes[array]} of "
                             f"{ARRAYS[array][0]}")
    return row


def first_outside(array, low, high) -> int | None:
    """Index of the first row of an array with NaN or a value outside [low, high]; None where there is none."""
    for start in range(0, len(array), BLOCK):
        block = array[start:start + BLOCK]
        fits = (block >= low) & (block <= high)             # False for NaN
        if not fits.all():
            return start + int(np.argmin(fits.reshape(len(block), -1).all(1)))
    return None


def encode_array(name: str, array) -> np.ndarray:
    """Convert an array to the dtype of its file. Raises ValueError for a wrong shape or values out of range."""
    _, dtype, width = ARRAYS[name]
    array = np.asarray(array)
    if array.shape != ((len(array), width) if width > 1 else (len(array),)) or not np.isfinite(array).all():
        raise ValueError(f"{name} of shape {array.shape}: expected finite numbers, (length{', 52' * (width > 1)})")
    if name == "audio" and array.dtype.kind == "f":
        array = np.round(array.clip(-1, 1) * 32767)
    if name in RANGES and first_outside(array, *RANGES[name]) is not None:
        what = "16-bit ids" if name == "units" else "weights from {} to {}".format(*RANGES[name])
        raise ValueError(f"{name} between {array.min()} and {array.max()}: expected {what}")
    return np.ascontiguousarray(array, dtype)


# ---- whole files ---------------------------------------------------------------------------------------------------

def checked_size(path: Path, stated: File) -> int:
    """The size of a file. Raises ValueError where the manifest has another."""
    size = disk.regular(path, "prepared data").stat().st_size if path.exists() else None
    if size != stated.bytes:
        raise ValueError(f"{path} has {'no' if size is None else size} bytes, expected {stated.bytes}: {AGAIN}")
    return size


def replace_files(new: Path) -> None:
    """Replace files in SPLIT by those in SPLIT/NEW, all or none: if this is killed, the next reader sees the old files
    or finishes the move. Raises OSError."""
    os.replace(new, new.parent / READY)                             # the commit point: from here on the new files count
    finish_replacing(new.parent)


def finish_replacing(directory: Path) -> None:
    """Finish a `replace_files` that was killed. Several readers may do so at the same time."""
    for path in (directory / READY).glob("*"):
        with suppress(FileNotFoundError):                           # another reader was faster
            os.replace(path, directory / path.name)
    with suppress(OSError):                                         # it does not exist
        (directory / READY).rmdir()


def map_array(directory: Path, name: str, files: dict) -> np.ndarray:
    """Memory-map an array. files: name -> File. Raises ValueError where its file has another size."""
    file, dtype, width = ARRAYS[name]
    size, item = checked_size(directory / file, files[file]), np.dtype(dtype).itemsize * width
    if size % item:
        raise ValueError(f"{directory / file} has {size} bytes, expected a multiple of {item}: {AGAIN}")
    array = np.memmap(directory / file, dtype, "r") if size else np.zeros(0, dtype)
    return array.reshape(-1, width) if width > 1 else array


def changed_files(directory: Path, files: dict, vocab) -> tuple:
    """name -> status (size, times, manifest entry, vocab) of each file; and the names of the files whose status differs
    from that in verified.json. files: name -> File, vocab: the number of different units."""
    now, verified = {}, {}
    for name, file in files.items():
        status = disk.regular(directory / name, "prepared data").stat()
        now[name] = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, file.bytes, file.crc32, vocab]
    with suppress(OSError, ValueError):                             # missing or damaged: all files count as changed
        verified = disk.read_json(directory / MEMORY)
    return now, [name for name in files if verified.get(name) != now[name]]


def write_verified(directory: Path, now: dict) -> None:
    """Write verified.json, except for files so new that another change might not alter their time stamp."""
    with suppress(OSError):                                         # a read-only directory
        disk.write_json(directory / MEMORY, {name: status for name, status in now.items()
                                             if time.time() - status[1] / 1e9 > TICK})


def check_file(split, name: str, stated: File, vocab) -> None:
    """Read a file of a Split and check its size, its checksum and the range of its values. Raises ValueError."""
    path = split.directory / name
    checked_size(path, stated)
    if checksum(path) != stated.crc32:
        raise ValueError(f"{path} is damaged (its checksum differs): {AGAIN}")
    if name == ARRAYS["face"][0]:
        refuse_outside(split, "face", *RANGES["face"])
    if name == ARRAYS["units"][0] and vocab:
        refuse_outside(split, "units", 0, vocab - 1)


def refuse_outside(split, name: str, low, high, mend=AGAIN) -> None:
    """Raises ValueError, naming the sample, where an array of a Split has NaN or a value outside [low, high]. mend: the
    advice in the error."""
    array = split.arrays[name]
    at = first_outside(array, low, high)
    if at is not None:
        since = at - split.column(f"{name} start")
        owners = np.flatnonzero((since >= 0) & (since < split.column(f"{name} length")))
        owner = split.rows[owners[0]]["id"] if len(owners) else "none"
        bad = np.extract(~((array[at] >= low) & (array[at] <= high)), array[at])[0]
        raise ValueError(f"{split.directory}: sample {owner} has {bad} among its {name}, expected {low} to {high}: "
                         f"{mend}")


# ---- the index -----------------------------------------------------------------------------------------------------

def record(row: dict, offset: int) -> tuple:
    """The index entries (`COLUMNS`) of a row whose line starts at byte `offset`."""
    parts = [part for message in row.get("messages", ()) for part in message_parts(message)]
    texts = sum(len(part.encode(errors="replace")) for part in parts if part != SPEECH_ID)
    prompt = texts + MARKUP_BYTES * len(row["messages"]) if "messages" in row else -1
    answer = len(row["answer"].encode(errors="replace")) if "answer" in row else -1
    starts, lengths = zip(*(row.get(name, (0, -1)) for name in ENTRIES))
    return (offset, *starts, *lengths, min(prompt, LONGEST), min(answer, LONGEST), TASKS.index(row["task"]),
            min(parts.count(SPEECH_ID), 255))


def columns_of(body, count: int) -> dict:
    """name -> column (rows,), views of an index without its head, given as bytes."""
    columns, at = {}, 0
    for name, dtype in COLUMNS.items():
        end = at + count * np.dtype(dtype).itemsize
        columns[name], at = body[at:end].view(dtype), end
    return columns


def make_index(directory: Path, sizes: dict, keep=True) -> dict:
    """Read and check all of samples.jsonl, and return the columns of its index. They are written to samples.index,
    unless the directory is read-only, or keep is False (rows that do not match the manifest). sizes: array -> its
    length. Raises ValueError naming a broken line."""
    path, crc, size, at = directory / ROWS, 0, 0, 0
    with open(path, "rb") as file:
        count = sum(1 for _ in file)
        body, hashes = np.zeros(count * RECORD.itemsize, "u1"), np.zeros(count, "<i8")
        columns, block = columns_of(body, count), []
        file.seek(0)
        for number, line in enumerate(file, 1):
            try:
                row = parse_row(line, f"{path} line {number}", sizes)
            except ValueError as error:
                raise ValueError(f"{error}: {AGAIN}") from None
            block.append(record(row, size))
            hashes[number - 1] = hash(row["id"])
            size, crc = size + len(line), zlib.crc32(line, crc)
            if len(block) == BLOCK >> 4 or number == count:
                records = np.array(block, RECORD)
                for name, column in columns.items():
                    column[at:at + len(block)] = records[name]
                at, block = at + len(block), []
    refuse_duplicates(path, columns["offset"], hashes)
    if not keep:
        return columns
    head = np.array((FORMAT, count, size, crc, zlib.crc32(body)), HEAD)
    with suppress(OSError), disk.replacing(directory / INDEX) as temporary:         # a read-only directory
        with open(temporary, "wb") as file:
            file.write(head.tobytes())
            file.write(body)
    return columns


def refuse_duplicates(path: Path, offsets, hashes) -> None:
    """Raises ValueError where two lines have the same id. hashes (rows,): of the ids. Only ids with equal hashes are
    read."""
    order = np.argsort(hashes, kind="stable")
    equal = np.flatnonzero(hashes[order][1:] == hashes[order][:-1])
    seen = set()
    with open(path, "rb") as file:
        for i in np.unique(order[np.concatenate([equal, equal + 1])]):
            file.seek(offsets[i])
            name = json.loads(file.readline())["id"]
            if name in seen:
                raise ValueError(f"{path} line {i + 1}, sample {name}: an earlier line has the same id: {AGAIN}")
            seen.add(name)


def open_index(directory: Path, stated: File, sizes: dict):
    """Check samples.index. Returns a function that memory-maps it and returns its columns (a mapping that stays open
    would count as this process's memory), or None where there is no index or it is not of the manifest's rows.
    sizes: array -> its length. Raises ValueError where it is damaged, or a row points beyond an array's end."""
    path = directory / INDEX
    if not path.exists():
        return None
    size = disk.regular(path, "the index of samples.jsonl").stat().st_size
    count, made_of = (size - HEAD.itemsize) // RECORD.itemsize, (stated.bytes, stated.crc32)
    with open(path, "rb") as file:
        head = np.frombuffer(file.read(HEAD.itemsize).ljust(HEAD.itemsize), HEAD)[0].item()
        if head[0] != FORMAT or head[2:4] != made_of:
            return None
        own = checksum_of_rest(file)
    if head != (FORMAT, count, *made_of, own) or size != HEAD.itemsize + count * RECORD.itemsize:
        raise ValueError(f"{path} is damaged (its checksum differs): remove it, it is made again of {ROWS}")
    file = open(path, "rb")                         # stays open: the same file, even if another process replaces it
    columns = lambda: columns_of(np.memmap(file, "u1", "r", HEAD.itemsize) if count else np.zeros(0, "u1"), count)
    for name, array in ENTRIES.items():
        index = columns()
        beyond = np.flatnonzero(index[f"{name} start"] + index[f"{name} length"] > sizes[array])
        if len(beyond):
            row_at(directory, index, beyond[0], sizes)          # raises the error
    return columns


def row_at(directory: Path, columns: dict, number: int, sizes: dict) -> dict:
    """Read row `number` of samples.jsonl. Raises ValueError where it differs from its entry in the index."""
    path = directory / ROWS
    with open(path, "rb") as file:
        file.seek(columns["offset"][number])
        line = file.readline()
    where = f"{path} line {number + 1}"
    try:
        row = parse_row(line, where, sizes)
        known = tuple(column[number] for column in columns.values())
        if record(row, known[0]) != known:
            raise ValueError(f"{where}, sample {row['id']} is not what it was when it was read through")
    except ValueError as error:
        raise ValueError(f"{error}: {AGAIN}") from None
    return row


class Rows(Sequence):
    """The rows of a Split as a sequence. Each access reads and parses the line."""

    def __init__(self, split):
        self.split = split

    def __len__(self) -> int:
        return len(self.split.columns()["offset"])

    def __getitem__(self, number: int) -> dict:
        split, columns = self.split, self.split.columns()
        count = len(columns["offset"])
        if not -count <= number < count:
            raise IndexError(f"row {number} of {count}")
        return row_at(split.directory, columns, number % count, split.sizes)

    def __iter__(self):
        with open(self.split.directory / ROWS, "rb") as file:
            yield from map(json.loads, file)


class RowsById(Mapping):
    """id -> row, for a Writer. Only the offset of each line is in memory."""

    def __init__(self, path: Path, offsets: dict):
        self.path, self.offsets = path, offsets

    def __len__(self) -> int:
        return len(self.offsets)

    def __iter__(self):
        return iter(self.offsets)

    def __getitem__(self, name: str) -> dict:
        with open(self.path, "rb") as file:
            file.seek(self.offsets[name])
            return json.loads(file.readline())
