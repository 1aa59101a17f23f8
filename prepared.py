"""The files of prepared data, and what a sound one is. data.py writes and reads them.

The demo set and real corpora look the same. One directory per split, written once, read at random:

    samples.jsonl   a row per sample: id, task, messages, answer, where its arrays lie ([start, length] each, or
                    absent), and anything else worth knowing about it (voice, phrasing, ...)
    audio.i16       16 kHz mono, what the user says, all clips one after another; [start, samples]. A row's
                    answer_audio, [start, samples] too, is the sound of its answer: no stage learns from it, units and
                    faces are made from it
    units.u16       12.5 Hz speech units of the answers; [start, units]
    face.f16        30 Hz face tracks of the answers, 52 weights a frame in the order of face.arkit.ARKIT_NAMES;
                    [start, frames]
    manifest.json   the number of samples, the size and checksum of each file, and what the units mean (their
                    tokenizer); written last: a directory without it is not finished
    verified.json   size, times and checksum of each file when it was last read through: the next start need not read it
                    again. Not part of the data; the reader writes it where it can
    samples.index   what a training asks of all rows at once, in columns that are memory-mapped (`COLUMNS`): five
                    million rows are open in seconds. Made by the writer; by the reader where it is missing or was made
                    of other rows

Several samples may point to the same answer. Tasks: `asr` speech -> its words, `tts` text -> units, `face` text ->
units and face, `qa` a spoken or written question -> text, units, face, `chat` text -> text. messages is the
conversation so far as `tokenizer.Tokenizer.encode_chat` takes it (the system prompt may be left out: it is put first).
answer is the reply: the only text that is supervised, with the <|im_end|> after it. Numbers are little endian.

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
RANGES = {"units": (0, (1 << 16) - 1), "face": (-1, 2)}     # a weight is in [0, 1]; captures go a little beyond
MEMORY = "verified.json"
READY = ".ready"                # a directory of new files that are being moved to their place
ROWS, INDEX = "samples.jsonl", "samples.index"
FILES = (ROWS, *(file for file, _, _ in ARRAYS.values()))
AGAIN = "copy the directory again, or remove it and run prepare.py again"
CHECKSUM_BYTES = 1 << 24        # read at once
BLOCK = 1 << 18                 # rows of an array that are checked at once
TICK = 2                        # s: no file system's clock is coarser
Count = Annotated[int, 0, 1 << 62]
Vocabulary = Annotated[int, 1, 1 << 16] | None
# Entry of a row -> the array that it points into.
ENTRIES = {name: name for name in ARRAYS} | {"answer_audio": "audio"}
# What is checked of a row, where it has it; what else it has is for those who put it there.
ROW = {"id": str, "task": Literal[TASKS], "answer": str, "messages": list} | dict.fromkeys(ENTRIES, list[Count])
LONGEST = (1 << 31) - 1         # of an array of one sample: 37 hours of sound
# The index after its head, a column for all rows after the other. Lengths are -1 where a row lacks an entry.
COLUMNS = {"offset": "<i8"} | {f"{name} start": "<i8" for name in ENTRIES} | {       # of the line in samples.jsonl
    f"{name} length": "<i4" for name in ENTRIES} | {
    "prompt": "<i4", "answer": "<i4",           # bytes of the texts, of messages with MARKS each; no fewer than tokens
    "task": "u1", "speech": "u1"}               # number in TASKS; how many speech parts the messages have
RECORD = np.dtype(list(COLUMNS.items()))
HEAD = np.dtype([("format", "<u8"), ("rows", "<u8"), ("bytes", "<u8"), ("crc32", "<u8"), ("own crc32", "<u8")])
FORMAT, MARKS = 1, 16           # HEAD: rows and checksum of samples.jsonl, and of the columns


@dataclass
class File:
    """What the manifest says of a file."""
    bytes: Count
    crc32: Annotated[int, 0, (1 << 32) - 1]


def checksum(path: Path) -> int:
    """CRC-32 of a file."""
    with open(path, "rb") as file:
        return checksum_of_rest(file)


def checksum_of_rest(file) -> int:
    """CRC-32 of what follows in an open file."""
    value = 0
    while block := file.read(CHECKSUM_BYTES):
        value = zlib.crc32(block, value)
    return value


def parse_row(line: bytes, where: str, sizes: dict) -> dict:
    """A line of samples.jsonl -> its row. sizes: array -> its length. Raises ValueError."""
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


def outside(array, low, high) -> int | None:
    """The first row of an array that holds NaN or a value outside [low, high]; None where none does."""
    for start in range(0, len(array), BLOCK):
        block = array[start:start + BLOCK]
        fits = (block >= low) & (block <= high)             # NaN does neither
        if not fits.all():
            return start + int(np.argmin(fits.reshape(len(block), -1).all(1)))
    return None


def encoded(name: str, array) -> np.ndarray:
    """An array as its file holds it. Raises ValueError for what it cannot hold."""
    _, dtype, width = ARRAYS[name]
    array = np.asarray(array)
    if array.shape != ((len(array), width) if width > 1 else (len(array),)) or not np.isfinite(array).all():
        raise ValueError(f"{name} of shape {array.shape}: expected finite numbers, (length{', 52' * (width > 1)})")
    if name == "audio" and array.dtype.kind == "f":
        array = np.round(array.clip(-1, 1) * 32767)
    if name in RANGES and outside(array, *RANGES[name]) is not None:
        what = "16-bit ids" if name == "units" else "weights from {} to {}".format(*RANGES[name])
        raise ValueError(f"{name} between {array.min()} and {array.max()}: expected {what}")
    return np.ascontiguousarray(array, dtype)


# ---- whole files ---------------------------------------------------------------------------------------------------

def sized(path: Path, stated: File) -> int:
    """The size of a file. Raises ValueError where the manifest states another."""
    size = disk.regular(path, "prepared data").stat().st_size if path.exists() else None
    if size != stated.bytes:
        raise ValueError(f"{path} has {'no' if size is None else size} bytes, expected {stated.bytes}: {AGAIN}")
    return size


def replace_files(new: Path) -> None:
    """The files in SPLIT/NEW, a directory, replace those in SPLIT, all or none: where this is killed, the next reader
    finds the old ones or finishes it. Raises OSError."""
    os.replace(new, new.parent / READY)                             # this decides
    finish_replacing(new.parent)


def finish_replacing(directory: Path) -> None:
    """Move what `replace_files` has left over. Several readers may do so at once."""
    for path in (directory / READY).glob("*"):
        with suppress(FileNotFoundError):                           # another reader was faster
            os.replace(path, directory / path.name)
    with suppress(OSError):                                         # there is none
        (directory / READY).rmdir()


def mapped(directory: Path, name: str, files: dict) -> np.ndarray:
    """An array, memory-mapped. files: name -> File. Raises ValueError where its file has another size."""
    file, dtype, width = ARRAYS[name]
    size, item = sized(directory / file, files[file]), np.dtype(dtype).itemsize * width
    if size % item:
        raise ValueError(f"{directory / file} has {size} bytes, expected a multiple of {item}: {AGAIN}")
    array = np.memmap(directory / file, dtype, "r") if size else np.zeros(0, dtype)
    return array.reshape(-1, width) if width > 1 else array


def unread(directory: Path, files: dict, vocab) -> tuple:
    """What there is to know of each file without reading it; and the names of those of which that is not what it was
    when they were last read through. files: name -> File, vocab: how many units there are."""
    now, known = {}, {}
    for name, file in files.items():
        status = disk.regular(directory / name, "prepared data").stat()
        now[name] = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, file.bytes, file.crc32, vocab]
    with suppress(OSError, ValueError):                             # missing or damaged: nothing is known
        known = disk.read_json(directory / MEMORY)
    return now, [name for name in files if known.get(name) != now[name]]


def remember(directory: Path, now: dict) -> None:
    """Write verified.json, without files so new that they may change again and keep their time."""
    with suppress(OSError):                                         # a read-only directory
        disk.write_json(directory / MEMORY, {name: seen for name, seen in now.items()
                                             if time.time() - seen[1] / 1e9 > TICK})


def check_file(split, name: str, stated: File, vocab) -> None:
    """Read a file of a Split through: its checksum, and whether the values of its array can be. Raises ValueError."""
    path = split.directory / name
    sized(path, stated)
    if checksum(path) != stated.crc32:
        raise ValueError(f"{path} is damaged (its checksum differs): {AGAIN}")
    if name == ARRAYS["face"][0]:
        refuse_outside(split, "face", *RANGES["face"])
    if name == ARRAYS["units"][0] and vocab:
        refuse_outside(split, "units", 0, vocab - 1)


def refuse_outside(split, name: str, low, high, mend=AGAIN) -> None:
    """Raises ValueError, naming the sample, where an array of a Split holds NaN or a value outside [low, high]. mend:
    what to do then."""
    array = split.arrays[name]
    at = outside(array, low, high)
    if at is not None:
        since = at - split.column(f"{name} start")
        owners = np.flatnonzero((since >= 0) & (since < split.column(f"{name} length")))
        owner = split.rows[owners[0]]["id"] if len(owners) else "none"
        bad = np.extract(~((array[at] >= low) & (array[at] <= high)), array[at])[0]
        raise ValueError(f"{split.directory}: sample {owner} has {bad} among its {name}, expected {low} to {high}: "
                         f"{mend}")


# ---- the index -----------------------------------------------------------------------------------------------------

def record(row: dict, offset: int) -> tuple:
    """A row, whose line starts at this byte, as the index has it."""
    parts = [part for message in row.get("messages", ()) for part in message_parts(message)]
    texts = sum(len(part.encode(errors="replace")) for part in parts if part != SPEECH_ID)
    prompt = texts + MARKS * len(row["messages"]) if "messages" in row else -1
    answer = len(row["answer"].encode(errors="replace")) if "answer" in row else -1
    starts, lengths = zip(*(row.get(name, (0, -1)) for name in ENTRIES))
    return (offset, *starts, *lengths, min(prompt, LONGEST), min(answer, LONGEST), TASKS.index(row["task"]),
            min(parts.count(SPEECH_ID), 255))


def columns_of(body, count: int) -> dict:
    """name -> column (rows,) of an index without its head, an array of bytes."""
    columns, at = {}, 0
    for name, dtype in COLUMNS.items():
        end = at + count * np.dtype(dtype).itemsize
        columns[name], at = body[at:end].view(dtype), end
    return columns


def make_index(directory: Path, sizes: dict, keep=True) -> dict:
    """Read samples.jsonl through, each row in full; the columns of its index, written to samples.index where that can
    be, unless keep is False (rows that are not the manifest's). sizes: array -> its length. Raises
    ValueError naming the line that is broken."""
    path, crc, size, at = directory / ROWS, 0, 0, 0
    with open(path, "rb") as file:
        count = sum(1 for _ in file)
        body, names = np.zeros(count * RECORD.itemsize, "u1"), np.zeros(count, "<i8")
        columns, block = columns_of(body, count), []
        file.seek(0)
        for number, line in enumerate(file, 1):
            try:
                row = parse_row(line, f"{path} line {number}", sizes)
            except ValueError as error:
                raise ValueError(f"{error}: {AGAIN}") from None
            block.append(record(row, size))
            names[number - 1] = hash(row["id"])
            size, crc = size + len(line), zlib.crc32(line, crc)
            if len(block) == BLOCK >> 4 or number == count:
                records = np.array(block, RECORD)
                for name, column in columns.items():
                    column[at:at + len(block)] = records[name]
                at, block = at + len(block), []
    refuse_twice(path, columns["offset"], names)
    if not keep:
        return columns
    head = np.array((FORMAT, count, size, crc, zlib.crc32(body)), HEAD)
    with suppress(OSError), disk.replacing(directory / INDEX) as temporary:         # not in a read-only directory
        with open(temporary, "wb") as file:
            file.write(head.tobytes())
            file.write(body)
    return columns


def refuse_twice(path: Path, offsets, names) -> None:
    """Raises ValueError where two lines have the same id. names (rows,): a hash of each."""
    order = np.argsort(names, kind="stable")
    again = np.flatnonzero(names[order][1:] == names[order][:-1])
    known = {}
    with open(path, "rb") as file:
        for i in np.unique(order[np.concatenate([again, again + 1])]):
            file.seek(offsets[i])
            name = json.loads(file.readline())["id"]
            if name in known:
                raise ValueError(f"{path} line {i + 1}, sample {name}: an earlier line has the same id: {AGAIN}")
            known[name] = i


def open_index(directory: Path, stated: File, sizes: dict):
    """A function that maps samples.index into memory and returns its columns: pages of a mapping that stays open would
    add up to the process's memory. None where there is no index or it was made of other rows than the manifest states.
    sizes: array -> its length. Raises ValueError where it is damaged, or a row points outside."""
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
    file = open(path, "rb")                         # stays open: the same file, whoever makes a new one meanwhile
    columns = lambda: columns_of(np.memmap(file, "u1", "r", HEAD.itemsize) if count else np.zeros(0, "u1"), count)
    for name, array in ENTRIES.items():
        index = columns()
        beyond = np.flatnonzero(index[f"{name} start"] + index[f"{name} length"] > sizes[array])
        if len(beyond):
            row_at(directory, index, beyond[0], sizes)
    return columns


def row_at(directory: Path, columns: dict, number: int, sizes: dict) -> dict:
    """Row `number` of samples.jsonl, from its line. Raises ValueError where that is not what the index was made of."""
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
    """The rows of a Split, each parsed when it is asked for."""

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


class Written(Mapping):
    """id -> row of what a Writer has written; in memory is only where the line of each starts."""

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
