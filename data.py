"""Prepared data: what `prepare.py` writes and `train.py` reads. The demo set and real corpora look the same.

One directory per split, written once, read at random:

    samples.jsonl   a row per sample: id, task, messages, answer, where its arrays lie ([start, length] each, or absent),
                    and anything else worth knowing about it (voice, phrasing, ...)
    audio.i16       16 kHz mono, what the user says, all clips one after another; [start, samples]
    units.u16       12.5 Hz speech units of the answers; [start, units]
    face.f16        30 Hz face tracks of the answers, 52 weights a frame, order of arkit.ARKIT_NAMES; [start, frames]
    manifest.json   the number of samples, the size and checksum of each file, and what the units mean (their tokenizer);
                    written last: a directory without it is not finished

Several samples may point to the same answer. Tasks: `asr` speech -> its words (stage 1), `tts` text -> units (2), `face`
units -> face (3), `qa` a spoken or written question -> text, units, face (4), `chat` text -> text (4). messages is the
conversation so far as `tokenizer.Tokenizer.encode_chat` takes it (the system prompt may be left out: it is put first),
answer the reply. Numbers are little endian.
"""
import json
import zlib
from pathlib import Path

import numpy as np

import weights

ARRAYS = {"audio": ("audio.i16", "<i2", 1), "units": ("units.u16", "<u2", 1), "face": ("face.f16", "<f2", 52)}
TASKS = ("asr", "tts", "face", "qa", "chat")
CHUNK = 1 << 24        # bytes read at once for a checksum


def checksum(path: Path) -> int:
    """CRC-32 of a file."""
    value = 0
    with open(path, "rb") as file:
        while block := file.read(CHUNK):
            value = zlib.crc32(block, value)
    return value


class Writer:
    """Appends samples to a directory; one that was interrupted goes on after its last whole sample.

    with Writer(directory) as out:
        if "q17" not in out:
            out.add({"id": "q17", "task": "qa", "messages": [...], "answer": "..."}, audio=waveform, units=units)
        out.finish(units="...")

    `where` (name -> [start, length]) of an earlier sample may be passed in place of an array: both then share it.
    """

    def __init__(self, directory):
        self.directory = Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        (self.directory / "manifest.json").unlink(missing_ok=True)      # unfinished from now on
        rows = self.whole_rows()
        self.rows = {row["id"]: row for row in rows}
        self.files = {name: open(self.directory / file, "ab") for name, (file, _, _) in ARRAYS.items()}
        self.samples = open(self.directory / "samples.jsonl", "ab")
        for name, (_, dtype, width) in ARRAYS.items():                  # what the last, broken sample left behind
            end = max((sum(row[name]) for row in rows if name in row), default=0)
            self.files[name].truncate(end * np.dtype(dtype).itemsize * width)
            self.files[name].seek(0, 2)

    def whole_rows(self) -> list:
        """The rows of samples.jsonl whose arrays are complete; the file is cut after them."""
        path, rows, end = self.directory / "samples.jsonl", [], 0
        sizes = {name: (self.directory / file).stat().st_size // (np.dtype(dtype).itemsize * width)
                 if (self.directory / file).exists() else 0 for name, (file, dtype, width) in ARRAYS.items()}
        for line in path.read_bytes().splitlines(keepends=True) if path.exists() else []:
            try:
                row = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                row = None
            if row is None or any(sum(row[name]) > size for name, size in sizes.items() if name in row):
                break
            rows.append(row)
            end += len(line)
        if path.exists():
            with open(path, "r+b") as file:
                file.truncate(end)
        return rows

    def __contains__(self, name: str) -> bool:
        return name in self.rows

    def add(self, row: dict, **arrays) -> dict:
        """Append one sample and return its row. audio (T,) float in [-1, 1] or int16, units (U,) int, face (F, 52) float;
        or the [start, length] of an array that is already here. Raises ValueError for what the format cannot hold."""
        if row["task"] not in TASKS or row["id"] in self.rows:
            raise ValueError(f"sample {row['id']}, task {row['task']}: expected a new id and one of {', '.join(TASKS)}")
        row = row | {name: array if isinstance(array, list) else self.append(name, array)
                     for name, array in arrays.items() if array is not None}
        for file in self.files.values():
            file.flush()                                                # a row never points to what is not there
        self.samples.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        self.samples.flush()
        self.rows[row["id"]] = row
        return row

    def append(self, name: str, array) -> list:
        """Write one array; its [start, length]."""
        _, dtype, width = ARRAYS[name]
        array = np.asarray(array)
        if name == "audio" and array.dtype.kind == "f":
            array = np.round(array.clip(-1, 1) * 32767)
        if array.shape != ((len(array), width) if width > 1 else (len(array),)) or not np.isfinite(array).all():
            raise ValueError(f"{name} of shape {array.shape}: expected finite numbers, (length{', 52' * (width > 1)})")
        if name == "units" and len(array) and not 0 <= array.min() <= array.max() < 1 << 16:
            raise ValueError(f"units between {array.min()} and {array.max()}: expected 16-bit ids")
        file = self.files[name]
        start = file.tell() // (np.dtype(dtype).itemsize * width)
        file.write(np.ascontiguousarray(array, dtype))
        return [start, len(array)]

    def finish(self, **about) -> dict:
        """Write the manifest: the directory is complete. about: what a reader must know, such as the units' tokenizer."""
        self.close()
        names = ["samples.jsonl", *(file for file, _, _ in ARRAYS.values())]
        files = {name: {"bytes": (self.directory / name).stat().st_size, "crc32": checksum(self.directory / name)}
                 for name in names}
        manifest = {"format": 1, "samples": len(self.rows), **about, "files": files}
        weights.write_json(self.directory / "manifest.json", manifest)
        return manifest

    def close(self) -> None:
        for file in (*self.files.values(), self.samples):
            file.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Split:
    """A finished directory: len(split), split.rows (the json), split[i] -> the row with its arrays in place.

    audio (T,) float32, units (U,) int64, face (F, 52) float32, each copied from the memory-mapped file; None where absent.
    verify=True also checks the checksums, which reads everything once. Raises ValueError or FileNotFoundError where the
    directory is unfinished, truncated or damaged.
    """

    def __init__(self, directory, verify: bool = False):
        self.directory = Path(directory)
        if not (self.directory / "manifest.json").exists():
            raise FileNotFoundError(f"{directory} is not finished prepared data: it has no manifest.json; run prepare.py again")
        self.manifest = weights.read_json(self.directory / "manifest.json")
        if self.manifest.get("format") != 1:
            raise ValueError(f"{directory}: format {self.manifest.get('format')}, expected 1: run prepare.py again")
        for name, file in self.manifest["files"].items():
            path = self.directory / name
            size = path.stat().st_size if path.exists() else None
            if size != file["bytes"]:
                raise ValueError(f"{path} has {'no' if size is None else size} bytes, expected {file['bytes']}: copy it again or run prepare.py again")
            if verify and checksum(path) != file["crc32"]:
                raise ValueError(f"{path} is damaged (its checksum differs): copy it again or run prepare.py again")
        self.rows = [json.loads(line) for line in (self.directory / "samples.jsonl").read_bytes().splitlines()]
        self.arrays = {name: self.map(*how) for name, how in ARRAYS.items()}

    def map(self, file: str, dtype: str, width: int):
        path = self.directory / file
        shape = (-1, width) if width > 1 else (-1,)
        return (np.memmap(path, dtype, "r") if path.stat().st_size else np.zeros(0, dtype)).reshape(shape)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        row = self.rows[index]
        audio, units, face = (self.arrays[name][row[name][0]:sum(row[name])] if name in row else None for name in ARRAYS)
        return row | {"audio": None if audio is None else audio.astype(np.float32) / 32767,
                      "units": None if units is None else units.astype(np.int64),
                      "face": None if face is None else face.astype(np.float32)}
