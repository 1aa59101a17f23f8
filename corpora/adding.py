"""What `prepare.py units`, `label` and `speak` share: an array for many rows of finished prepared data, made in hours
or days by one or more processes, and put in at the end, all at once.

    SPLIT/.adding-NAME-KEY/RANK.bin     what a process made so far, one array after the other
    SPLIT/.adding-NAME-KEY/RANK.txt     a line "ROW LENGTH" for each of them, written after it

KEY is a checksum of the data and of what makes the arrays: work for other data is never taken up. A killed command goes
on after its last whole array, with any number of processes, and ends with the same files, bit for bit.
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
    """Directories of prepared data: `data` itself, or those in it. Raises FileNotFoundError where there is none."""
    data = Path(data)
    found = [data] if (data / "samples.jsonl").exists() else sorted(p.parent for p in data.glob("*/samples.jsonl"))
    if not found:
        raise FileNotFoundError(f"{data} holds no prepared data: expected samples.jsonl in it, or in train/ and val/ "
                                "below it")
    return found


def sound_of(row: dict) -> list | None:
    """[start, length] of the sound of a row's answer, in audio.i16; None where it has none."""
    return row.get("answer_audio", row.get("audio") if row["task"] in ("tts", "face") else None)


def waveform(split: Split, sound: list) -> np.ndarray:
    """(samples,) float32 of a [start, length]."""
    return split.arrays["audio"][sound[0]:sum(sound)].astype(np.float32) / 32767


def to_read_aloud(split: Split) -> list:
    """Numbers of the `asr` rows whose text is not yet read aloud by a `tts` row of their own."""
    ids = {row["id"] for row in split.rows}
    return [n for n, row in enumerate(split.rows) if row["task"] == "asr" and row.get("answer", "").strip()
            and f"{row['id']}-tts" not in ids]


def read_aloud(row: dict, **arrays) -> dict:
    """The `tts` row that asks for the text of an `asr` row; arrays: name -> [start, length] of its answer."""
    about = {name: value for name, value in row.items() if name not in ENTRIES}
    return about | {"id": f"{row['id']}-tts"} | spoken(row["id"], row["answer"]) | arrays


# ---- processes ----------------------------------------------------------------------------------------------------

@contextmanager
def processes(device):
    """Those of torchrun meet; without it there is one."""
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
    """Where one process fails inside, all end after it. Raises ValueError or OSError."""
    failure = None
    try:
        yield
    except (ValueError, OSError) as error:
        failure = error
    ranks.agree(failure)


@contextmanager
def claimed(directory, name: str):
    """Yields the Split of a directory; nobody else writes there meanwhile. On all processes together. name: of the
    array that is added: when all is done, what was made for it, now or by commands that were killed, is removed."""
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
    """Batches of one row, the largest first. size(row number): a number."""
    return lambda numbers: [[number] for number in sorted(numbers, key=size, reverse=True)]


class Adding:
    """Adds the array `name` (units, face or audio) to rows of a split.

    with Adding(split, "units", {7: "a", 9: "b", 12: "a"}, made_by, batches) as adding:
        for batch in adding.jobs:                   # of rows with the same key only the first: 7 and 9
            for number in batch:
                adding.add(number, array)
        adding.finish(lambda row, where: [row | {"units": where}])

    keys: row number -> key. made_by: json of what decides the arrays. batches(row numbers) -> lists of them, what is
    computed together; processes take turns, and a batch that was interrupted is computed again as a whole: its company
    may be seen in the last digit of a number. Raises ValueError or OSError."""

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
            self.index.truncate(end)                    # what a kill left half written
            self.data.truncate(rows * self.dtype.itemsize * self.width)
            self.opened = stack.pop_all()
        return self

    def __exit__(self, *_):
        with suppress(OSError):                             # `add` has written everything, or said why not
            self.opened.close()
        with suppress(OSError):                             # it is gone, or other processes' files are there
            if not os.path.getsize(self.index.name):        # a refused command leaves nothing
                for file in (self.index, self.data):
                    os.unlink(file.name)
                self.directory.rmdir()

    def lines(self, path: Path) -> tuple:
        """An index -> {row number: (path of its arrays, first, length)}, the bytes of its whole lines and the rows of
        the arrays that they name."""
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
        """What all processes have made so far, of the rows that are asked for."""
        found = {}
        for path in self.directory.glob("*.txt"):
            found |= self.lines(path)[0]
        return {number: found[number] for number in sorted(found) if number in self.keys}

    def add(self, number: int, array) -> None:
        """Keep the array of a row, unless it was kept before. Raises ValueError for what the format cannot hold,
        OSError where the disk is full."""
        if number in self.before:
            return
        array = encode_array(self.name, array)
        try:
            self.data.write(array)
            self.data.flush()
            self.index.write(b"%d %d\n" % (number, len(array)))     # never before the array is there
            self.index.flush()
        except OSError as error:
            raise OSError(f"{self.directory} cannot be written ({error.strerror or error}): make room and run the "
                          "same command again, it goes on from there") from None

    def finish(self, change, keep=True, **about) -> None:
        """Put in what was made, by all processes; called by one. change(row, [start, length]) -> the rows that replace
        the row. keep=False: what the array held before is left out. about: for the manifest.

        At any moment, whatever is killed, a reader finds the old data or the new data. Raises OSError."""
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
            lies = where.get(self.first.get(self.keys.get(number)))
            for changed in [row] if lies is None else change(row, lies):
                line = json.dumps(changed, ensure_ascii=False) + "\n"
                written.write(line.encode(errors="backslashreplace"))           # half a character: \ud800
                count += 1
        manifest["files"]["samples.jsonl"], manifest["samples"] = written.close(), count
        disk.write_json(new / "manifest.json", manifest)
        saving.flush(new)
        replace_files(new)

    def write_array(self, path: Path, keep: bool) -> tuple:
        """{row number: [start, length]} in the new file of the array, and what the manifest says of it."""
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
    """A file that is written, and what the manifest says of it."""

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
