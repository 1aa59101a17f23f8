"""Prepared data: what `prepare.py` writes and `train.py` reads, and how its samples become batches.

The demo set and real corpora look the same. One directory per split, written once, read at random:

    samples.jsonl   a row per sample: id, task, messages, answer, where its arrays lie ([start, length] each, or
                    absent), and anything else worth knowing about it (voice, phrasing, ...)
    audio.i16       16 kHz mono, what the user says, all clips one after another; [start, samples]
    units.u16       12.5 Hz speech units of the answers; [start, units]
    face.f16        30 Hz face tracks of the answers, 52 weights a frame in the order of face.arkit.ARKIT_NAMES;
                    [start, frames]
    manifest.json   the number of samples, the size and checksum of each file, and what the units mean (their
                    tokenizer); written last: a directory without it is not finished

Several samples may point to the same answer. Tasks: `asr` speech -> its words, `tts` text -> units, `face` text ->
units and face, `qa` a spoken or written question -> text, units, face, `chat` text -> text. messages is the
conversation so far as `tokenizer.Tokenizer.encode_chat` takes it (the system prompt may be left out: it is put first).
answer is the reply: the only text that is supervised, with the <|im_end|> after it. Numbers are little endian.

Shapes: B batch, N tokens, W windows of sound, M mel bins, L mel frames, U units, T face frames, K = 52 blendshapes.
"""
import json
import zlib
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

import disk
from face_decoder import frames_for_units
from speech_generator import IGNORE
from tokenizer import SPEECH_ID, with_system
from whisper import SAMPLE_RATE, log_mel

ARRAYS = {"audio": ("audio.i16", "<i2", 1), "units": ("units.u16", "<u2", 1), "face": ("face.f16", "<f2", 52)}
NEEDS = {"asr": ["audio"], "tts": ["units"], "face": ["units", "face"], "qa": [], "chat": []}   # task -> its arrays
TASKS = tuple(NEEDS)
CHECKSUM_BYTES = 1 << 24        # read at once


def checksum(path: Path) -> int:
    """CRC-32 of a file."""
    value = 0
    with open(path, "rb") as file:
        while block := file.read(CHECKSUM_BYTES):
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
        """Append one sample and return its row. audio (samples,) float in [-1, 1] or int16, units (U,) int,
        face (T, 52) float; or the [start, length] of an array that is already here. Raises ValueError for what the
        format cannot hold."""
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
        """Write the manifest: the directory is complete. about: what a reader must know, as the units' tokenizer."""
        self.close()
        names = ["samples.jsonl", *(file for file, _, _ in ARRAYS.values())]
        files = {name: {"bytes": (self.directory / name).stat().st_size, "crc32": checksum(self.directory / name)}
                 for name in names}
        manifest = {"format": 1, "samples": len(self.rows), **about, "files": files}
        disk.write_json(self.directory / "manifest.json", manifest)
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

    audio (samples,) float32, units (U,) int64, face (T, 52) float32, each copied from the memory-mapped file; None
    where absent. verify=True also checks the checksums, which reads everything once. Raises ValueError or
    FileNotFoundError where the directory is unfinished, truncated or damaged.
    """

    def __init__(self, directory, verify: bool = False):
        self.directory = Path(directory)
        if not (self.directory / "manifest.json").exists():
            raise FileNotFoundError(f"{directory} is not finished prepared data: it has no manifest.json; "
                                    "run prepare.py again")
        self.manifest = disk.read_json(self.directory / "manifest.json")
        if self.manifest.get("format") != 1:
            raise ValueError(f"{directory}: format {self.manifest.get('format')}, expected 1: run prepare.py again")
        for name, file in self.manifest["files"].items():
            path = self.directory / name
            size = path.stat().st_size if path.exists() else None
            if size != file["bytes"]:
                raise ValueError(f"{path} has {'no' if size is None else size} bytes, expected {file['bytes']}: "
                                 "copy it again or run prepare.py again")
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
        audio, units, face = (self.arrays[name][row[name][0]:sum(row[name])] if name in row else None
                              for name in ARRAYS)
        return row | {"audio": None if audio is None else audio.astype(np.float32) / 32767,
                      "units": None if units is None else units.astype(np.int64),
                      "face": None if face is None else face.astype(np.float32)}

# ---------------------------------------------------------------- samples that fit a checkpoint

def rows_of(split: Split, tasks) -> np.ndarray:
    """Indices of the rows of these tasks."""
    return np.array([i for i, row in enumerate(split.rows) if row["task"] in tasks], dtype=np.int64)


def mixed_rows(split: Split, tasks, replay: dict, seed: int) -> np.ndarray:
    """Indices of the rows of these tasks and, of each task in `replay`, of as many as it says, chosen by the seed."""
    rows = [rows_of(split, tasks)]
    for task, count in replay.items():
        found = rows_of(split, (task,))
        rows.append(np.random.default_rng(seed).permutation(found)[:count])
    return np.concatenate(rows)


def check(split: Split, rows, model) -> None:
    """Raises ValueError, naming the sample, where rows of a split cannot be what this checkpoint learns from."""
    window = model.config.speech_encoder.window
    for row in (split.rows[i] for i in rows):
        needed = ["messages", "answer", *NEEDS[row["task"]], *["units"] * ("face" in row)]
        lacking = [name for name in dict.fromkeys(needed) if name not in row]
        length = {name: row[name][1] if name in row else 0 for name in ARRAYS}
        where = f"{split.directory}: sample {row['id']}"
        if lacking:
            raise ValueError(f"{where}, task {row['task']}, lacks {', '.join(lacking)}: run prepare.py again")
        if length["audio"] > window:
            raise ValueError(f"{where} has {length['audio'] / SAMPLE_RATE:.1f} s of speech, the checkpoint hears "
                             f"{window / SAMPLE_RATE:.1f} s at once: leave it out or cut it")
        if length["face"] and length["face"] != frames_for_units(length["units"]):
            raise ValueError(f"{where} has {length['face']} face frames, its {length['units']} units at 30 fps need "
                             f"{frames_for_units(length['units'])}: was the face prepared at another fps?")
    if any("units" in split.rows[i] for i in rows):
        check_units(split, model)


def fingerprint(checkpoint) -> str | None:
    """Of the speech tokenizer that came with a checkpoint, as `speech_tokenizer` in the manifest of data with its
    units; None where it has none."""
    path = Path(checkpoint) / "speech_tokenizer" / "model.safetensors"
    return f"{checksum(path):08x}" if path.is_file() else None


def check_units(split: Split, model) -> None:
    """The units are the checkpoint's own: of its vocabulary (the manifest's `unit_vocab`) and, where both sides say, of
    its speech tokenizer. Raises ValueError."""
    vocab, stated = model.config.generator.unit_vocab, split.manifest.get("unit_vocab")
    largest = int(split.arrays["units"].max(initial=0))
    other = f"{split.directory} was made for another preset: its units are"
    if stated not in (None, vocab) or largest >= vocab:
        raise ValueError(f"{other} of {stated or f'{largest + 1} or more'} kinds, the checkpoint's of {vocab}: prepare "
                         "the data with this checkpoint's speech tokenizer")
    stated, own = split.manifest.get("speech_tokenizer"), fingerprint(model.directory)
    if None not in (stated, own) and stated != own:
        raise ValueError(f"{other} those of the speech tokenizer {stated}, the checkpoint's is {own}: prepare the data "
                         "with it")


# ---------------------------------------------------------------- batches

@lru_cache(2)
def shuffled(count: int, seed: int, epoch: int) -> np.ndarray:
    """0 ... count - 1 in the order of an epoch."""
    return np.random.default_rng((seed, epoch)).permutation(count)


def sample_order(rows, seed: int, first: int, count: int) -> list:
    """Numbers first ... first + count - 1 of an endless stream of rows: each epoch all of them, in another order."""
    n = len(rows)
    return [int(rows[shuffled(n, seed, number // n)[number % n]]) for number in range(first, first + count)]


def by_length(split: Split, rows) -> list:
    """rows, those of similar length together: in one micro-batch they need little padding."""
    return sorted(rows, key=lambda i: tuple(split.rows[i].get(name, (0, 0))[1] for name in ("units", "audio")))


def chunks(split: Split, rows, size: int) -> list:
    """rows in lists of `size`, those of similar length together; the last may be shorter."""
    rows = by_length(split, rows)
    return [rows[i:i + size] for i in range(0, len(rows), size)]


def collate(samples: list, model, losses, device="cpu", always=(), augment=None) -> dict:
    """Samples of a Split -> the right-padded batch of `ExOmni.forward`, on the device.

    It has units and face where the losses ask for them and a sample has them. always: of "mel", "units", "face" those
    that it has in any case, of no length or as one silent window: several processes must run the same modules.
    augment(log-mel (M, L), n): another log-mel for sample n.

    Raises ValueError for messages that do not ask for exactly the sound that is there."""
    ids, labels, mels = [], [], []
    tokenizer, encoder = model.tokenizer, model.config.speech_encoder
    mel_of = lambda audio: log_mel(torch.from_numpy(audio).to(device), encoder.num_mel_bins, encoder.n_frames)
    for n, sample in enumerate(samples):
        prompt = tokenizer.encode_chat(with_system(sample["messages"]))
        answer = tokenizer.encode(sample["answer"]) + [tokenizer.im_end_id]
        if prompt.count(SPEECH_ID) != (sample["audio"] is not None):
            raise ValueError(f"sample {sample['id']}: its messages have {prompt.count(SPEECH_ID)} speech parts, "
                             f"expected {int(sample['audio'] is not None)}: one if it has audio, else none")
        ids.append(torch.tensor(prompt + answer))
        labels.append(torch.tensor([IGNORE] * len(prompt) + answer))
        if sample["audio"] is not None:
            mels.append(mel_of(sample["audio"]) if augment is None else augment(mel_of(sample["audio"]), n))
    if "mel" in always and not mels:
        mels.append(mel_of(np.zeros(0, np.float32)))
    batch = {"input_ids": pad_sequence(ids, batch_first=True),
             "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORE),
             "mask": pad_sequence([torch.ones(len(row), dtype=torch.bool) for row in ids], batch_first=True)}
    if mels:
        batch["mel"] = torch.stack(mels)
    has = lambda name: name in always or any(sample[name] is not None for sample in samples)
    if {"units", "face"} & set(losses) and has("units"):
        units = [torch.as_tensor([] if s["units"] is None else s["units"], dtype=torch.long) for s in samples]
        batch["units"] = pad_sequence(units, batch_first=True, padding_value=IGNORE)
    if "face" in losses and has("face"):
        none = np.zeros((0, ARRAYS["face"][2]), np.float32)
        tracks = [torch.from_numpy(none if s["face"] is None else s["face"]) for s in samples]
        batch["face"] = pad_sequence(tracks, batch_first=True)[..., :model.config.face.channels]
        batch["frames"] = torch.tensor([len(track) for track in tracks])
    return {name: tensor.to(device) for name, tensor in batch.items()}
