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
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np

import disk
from tokenizer import message_parts

ARRAYS = {"audio": ("audio.i16", "<i2", 1), "units": ("units.u16", "<u2", 1), "face": ("face.f16", "<f2", 52)}
NEEDS = {"asr": ["audio"], "tts": ["units"], "face": ["units", "face"], "qa": [], "chat": []}   # task -> its arrays
TASKS = tuple(NEEDS)
RANGES = {"units": (0, (1 << 16) - 1), "face": (-1, 2)}     # a weight is in [0, 1]; captures go a little beyond
MEMORY = "verified.json"
READY = ".ready"                # a directory of new files that are being moved to their place
FILES = ("samples.jsonl", *(file for file, _, _ in ARRAYS.values()))
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


@dataclass
class File:
    """What the manifest says of a file."""
    bytes: Count
    crc32: Annotated[int, 0, (1 << 32) - 1]


def checksum(path: Path) -> int:
    """CRC-32 of a file."""
    value = 0
    with open(path, "rb") as file:
        while block := file.read(CHECKSUM_BYTES):
            value = zlib.crc32(block, value)
    return value


def parse_row(line: bytes, where: str, ids, sizes: dict, anew=True) -> dict:
    """A line of samples.jsonl -> its row. ids: of the rows before; sizes: array -> its length. anew=False: it was
    checked before, only where its arrays lie is checked again. Raises ValueError."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not json ({error})") from None
    if not isinstance(row, dict) or not line.endswith(b"\n"):
        raise ValueError(f"{where} is not a json object on a line of its own")
    where = f"{where}, sample {disk.typed(row, 'id', str, where)}"
    for name, kind in ROW.items() if anew else ():
        if name in row or name == "task":
            disk.typed(row, name, kind, where)
    if row["id"] in ids:
        raise ValueError(f"{where}: an earlier line has the same id")
    try:
        for message in row.get("messages", ()) if anew else ():
            message_parts(message)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    for name, array in ENTRIES.items():
        if name in row and (len(row[name]) != 2 or sum(row[name]) > sizes[array]):
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


def read_rows(path: Path, arrays: dict, anew: bool) -> list:
    """The rows of a samples.jsonl. anew: as `parse_row` takes it. Raises ValueError naming the line that is broken."""
    rows, sizes = {}, {name: len(array) for name, array in arrays.items()}
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                row = parse_row(line, f"{path} line {number}", rows, sizes, anew)
            except ValueError as error:
                raise ValueError(f"{error}: {AGAIN}") from None
            rows[row["id"]] = row
    return list(rows.values())


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
        owners = (row["id"] for row in split.rows if name in row and row[name][0] <= at < sum(row[name]))
        bad = np.extract(~((array[at] >= low) & (array[at] <= high)), array[at])[0]
        raise ValueError(f"{split.directory}: sample {next(owners, 'none')} has {bad} among its {name}, expected {low} "
                         f"to {high}: {mend}")
