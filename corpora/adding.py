"""Shared by `prepare.py units`, `label` and `speak`: add an array to many rows of finished prepared data.

One or more processes compute the arrays, for hours or days; at the end all are put in at once. Until then they are in:

    SPLIT/.adding-NAME-KEY/RANK.bin     the arrays of a process, one after the other
    SPLIT/.adding-NAME-KEY/RANK.txt     a line "ROW LENGTH" per array, written after it

KEY is a checksum of the data and of what computes the arrays, so work for other data is never resumed. A killed command
resumes after its last complete array, with any number of processes, and ends with the same files, bit for bit.
"""
import json
import os
import shutil
import zlib
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import numpy as np

import disk
import ranks
import saving
from corpora.corpus import spoken
from data import Split
from prepared import ARRAYS, CHECKSUM_BYTES, ENTRIES, encode_array, replace_files

KEPT = "what was made is kept, the same command goes on from there"


# ---- rows ---------------------------------------------------------------------------------------------------------

def splits(data) -> list:
    """The splits in prepared data: `data` itself, or directories in it. Raises FileNotFoundError if there is none."""
    data = Path(data)
    found = [data] if (data / "samples.jsonl").exists() else sorted(p.parent for p in data.glob("*/samples.jsonl"))
    if not found:
        raise FileNotFoundError(f"{data} holds no prepared data: expected samples.jsonl in it, or in train/ and val/ "
                                "below it")
    return found


def sound_of(row: dict) -> list | None:
    """[start, length] in audio.i16 of the sound of a row's answer; None if it has none."""
    return row.get("answer_audio", row.get("audio") if row["task"] in ("tts", "face") else None)


def waveform(split: Split, sound: list) -> np.ndarray:
    """[start, length] -> waveform (samples,) float32."""
    return split.arrays["audio"][sound[0]:sum(sound)].astype(np.float32) / 32767


def to_read_aloud(split: Split) -> list:
    """Numbers of the `asr` rows that have no `tts` row of their own yet."""
    ids = {row["id"] for row in split.rows}
    return [n for n, row in enumerate(split.rows) if row["task"] == "asr" and row.get("answer", "").strip()
            and f"{row['id']}-tts" not in ids]


def read_aloud(row: dict, **arrays) -> dict:
    """The `tts` row for an `asr` row: it asks to read its text aloud. arrays: name -> [start, length] of the answer."""
    about = {name: value for name, value in row.items() if name not in ENTRIES}
    return about | {"id": f"{row['id']}-tts"} | spoken(row["id"], row["answer"]) | arrays


# ---- processes ----------------------------------------------------------------------------------------------------

@contextmanager
def processes(device):
    """Joins the processes of torchrun, if it started this one."""
    if "RANK" in os.environ:
        ranks.join(device, os.getppid())
    try:
        with ranks.named_rank():
            yield
    finally:
        if ranks.dist.is_initialized():
            ranks.dist.destroy_process_group()


@contextmanager
def together():
    """If one process fails inside, all raise after it: ValueError or OSError."""
    failure = None
    try:
        yield
    except (ValueError, OSError) as error:
        failure = error
    ranks.stop_if_any_failed(failure)


@contextmanager
def claimed(directory, name: str):
    """Yields the Split of a directory, locked against other writers; all processes call it together.

    At the end it removes all work directories of the array `name`, those of killed commands too."""
    with ExitStack() as stack:
        with together():
            if ranks.rank_and_world()[0] == 0:
                stack.enter_context(disk.locked(directory))
            split = Split(directory)
        yield split
        for left in split.directory.glob(f".adding-{name}-*") if ranks.rank_and_world()[0] == 0 else ():
            shutil.rmtree(left, ignore_errors=True)


# ---- arrays -------------------------------------------------------------------------------------------------------

def one_by_one(size):
    """A function for `Adding`'s batches: one row each, the largest first. size(row number) -> a number."""
    return lambda numbers: [[number] for number in sorted(numbers, key=size, reverse=True)]


class Adding:
    """Adds the array `name` (units, face or audio) to rows of a split.

    with Adding(split, "units", {7: "a", 9: "b", 12: "a"}, made_by, batches) as adding:
        for batch in adding.jobs:                   # only the first row of each key: 7 and 9
            for number in batch:
                adding.add(number, array)
        adding.finish(lambda row, where: [row | {"units": where}])

    keys: row number -> key; rows with equal keys share an array. made_by: json of all that determines the arrays.
    batches(row numbers) -> lists of row numbers that are computed together. Batches are dealt out to the processes. An
    interrupted batch is computed again as a whole, since the other rows of a batch may change the last digit of a
    number. Raises ValueError or OSError."""

    def __init__(self, split: Split, name: str, keys: dict, made_by, batches):
        self.split, self.name, self.keys, self.first = split, name, keys, {}
        self.file, dtype, self.width = ARRAYS[name]
        self.dtype = np.dtype(dtype)
        for number, key in keys.items():
            self.first.setdefault(key, number)
        known = json.dumps([made_by, split.manifest["files"]], sort_keys=True)
        self.directory = split.directory / f".adding-{name}-{zlib.crc32(known.encode()):08x}"
        rank, world = ranks.rank_and_world()
        for other in split.directory.glob(f".adding-{name}-*") if rank == 0 else ():
            if other != self.directory:
                shutil.rmtree(other, ignore_errors=True)
        self.before = self.made() if self.directory.exists() else {}
        self.jobs = [batch for batch in batches([*self.first.values()])[rank::world] if set(batch) - self.before.keys()]
        self.left = len({number for batch in self.jobs for number in batch} - self.before.keys())

    def __enter__(self):
        self.directory.mkdir(exist_ok=True)
        path = self.directory / f"{ranks.rank_and_world()[0]}.txt"
        end, rows = 0, 0
        if path.exists():
            _, end, rows = self.lines(path)
        with ExitStack() as stack:
            self.index, self.data = (stack.enter_context(open(p, "ab")) for p in (path, path.with_suffix(".bin")))
            self.index.truncate(end)                    # drop what a killed process left half written
            self.data.truncate(rows * self.dtype.itemsize * self.width)
            self.opened = stack.pop_all()
        return self

    def __exit__(self, *_):
        with suppress(OSError):                             # `add` has flushed everything, or raised
            self.opened.close()
        with suppress(OSError):                             # removed already, or it has files of other processes
            if not os.path.getsize(self.index.name):        # a command that made nothing leaves nothing
                for file in (self.index, self.data):
                    os.unlink(file.name)
                self.directory.rmdir()

    def lines(self, path: Path) -> tuple:
        """Read an index file -> {row number: (path of the .bin, first, length)}, the number of bytes of its complete
        lines, and the number of array rows that they list."""
        arrays, made, end, first = path.with_suffix(".bin"), {}, 0, 0
        there = arrays.stat().st_size // (self.dtype.itemsize * self.width) if arrays.exists() else 0
        with open(path, "rb") as file:
            for line in file:
                try:
                    number, length = map(int, line.split())
                except ValueError:
                    raise ValueError(f"{path} is damaged: remove {path.parent} and run the command again") from None
                if not line.endswith(b"\n") or first + length > there:
                    break
                made[number] = (arrays, first, length)
                end, first = end + len(line), first + length
        return made, end, first

    def made(self) -> dict:
        """`lines` of all processes together, only of the requested rows."""
        found = {}
        for path in self.directory.glob("*.txt"):
            found |= self.lines(path)[0]
        return {number: found[number] for number in sorted(found) if number in self.keys}

    def add(self, number: int, array) -> None:
        """Store the array of a row, unless it is stored already. Raises ValueError for what the format cannot hold,
        OSError if the disk is full."""
        if number in self.before:
            return
        array = encode_array(self.name, array)
        try:
            self.data.write(array)
            self.data.flush()
            self.index.write(b"%d %d\n" % (number, len(array)))     # never before the array is written
            self.index.flush()
        except OSError as error:
            raise OSError(f"{self.directory} cannot be written ({error.strerror or error}): make room and run the "
                          "same command again, it goes on from there") from None

    def finish(self, change, keep=True, **about) -> None:
        """Put the arrays of all processes into the data; one process calls it.

        change(row, [start, length]) -> the rows that replace the row. keep=False: drop the old content of the array.
        about: entries for the manifest. Even if it is killed, readers find either the old or the new data. Raises
        OSError."""
        if not self.made():
            return
        new = self.split.directory / ".new"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        manifest = self.split.manifest | about
        manifest["files"] = dict(manifest["files"])
        where, manifest["files"][self.file] = self.write_array(new / self.file, keep)
        count, written = 0, Checked(new / "samples.jsonl")
        for number, row in enumerate(self.split.rows):
            stored = where.get(self.first.get(self.keys.get(number)))
            for changed in [row] if stored is None else change(row, stored):
                line = json.dumps(changed, ensure_ascii=False) + "\n"
                written.write(line.encode(errors="backslashreplace"))           # lone surrogates, \ud800
                count += 1
        manifest["files"]["samples.jsonl"], manifest["samples"] = written.close(), count
        disk.write_json(new / "manifest.json", manifest)
        saving.flush(new)
        replace_files(new)

    def write_array(self, path: Path, keep: bool) -> tuple:
        """Write the new file of the array. Returns {row number: [start, length]} and the file's manifest entry."""
        where, out = {}, Checked(path)
        before = self.split.arrays[self.name] if keep else self.split.arrays[self.name][:0]
        step = CHECKSUM_BYTES // (self.dtype.itemsize * self.width)
        for start in range(0, len(before), step):
            out.write(np.ascontiguousarray(before[start:start + step]))
        start, opened = len(before), {}
        for number, (arrays, first, length) in self.made().items():
            if arrays not in opened:
                opened[arrays] = np.memmap(arrays, self.dtype, "r")
            out.write(opened[arrays][first * self.width:(first + length) * self.width])
            where[number] = [start, length]
            start += length
        return where, out.close()


class Checked:
    """Writes a file; `close` returns its manifest entry."""

    def __init__(self, path: Path):
        self.path, self.file, self.bytes, self.crc32 = path, open(path, "wb"), 0, 0

    def write(self, block) -> None:
        with disk.writing(self.path):
            self.bytes += self.file.write(block)
        self.crc32 = zlib.crc32(block, self.crc32)

    def close(self) -> dict:
        with disk.writing(self.path):
            self.file.close()
        return {"bytes": self.bytes, "crc32": self.crc32}
