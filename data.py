"""Prepared data: `Writer` and `Split` for the files that prepared.py describes, and how samples become batches.

Shapes: B batch, N tokens, W windows of sound, M mel bins, L mel frames, U units, T face frames, K = 52 blendshapes.
"""
import json
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

import disk
from face_decoder import frames_for_units
from prepared import (AGAIN, ARRAYS, ENTRIES, FILES, NEEDS, TASKS, Count, File, Vocabulary, check_file, checksum,
                      encoded, finish_replacing, mapped, parse_row, read_rows, refuse_outside, remember, unread)
from speech_generator import IGNORE
from tokenizer import SPEECH_ID, message_parts, with_system
from whisper import SAMPLE_RATE, windows


class Writer:
    """Appends samples to a directory; one that was interrupted goes on after its last whole sample.

    with Writer(directory) as out:
        if "q17" not in out:
            out.add({"id": "q17", "task": "qa", "messages": [...], "answer": "..."}, audio=waveform, units=units)
        out.finish(units="...")

    `where` (name -> [start, length]) of an earlier sample may be passed in place of an array: both then share it.
    Raises ValueError where another process writes there, or where something is broken that no interrupt breaks.
    """

    def __init__(self, directory):
        self.directory, self.files = Path(directory), {}
        with ExitStack() as stack:
            stack.enter_context(disk.locked(self.directory))
            self.finished = (self.directory / "manifest.json").exists()     # until a sample is added
            self.rows = {row["id"]: row for row in Split(directory).rows} if self.finished else self.whole_rows()
            self.samples = stack.enter_context(open(self.directory / "samples.jsonl", "ab"))
            for name, (file, dtype, width) in ARRAYS.items():
                self.files[name] = stack.enter_context(open(self.directory / file, "ab"))
                end = max((sum(row[entry]) for row in self.rows.values() for entry in ENTRIES
                           if ENTRIES[entry] == name and entry in row), default=0)
                if not self.finished:                       # what the last, broken sample left behind
                    self.files[name].truncate(end * np.dtype(dtype).itemsize * width)
                    self.files[name].seek(0, 2)
            self.opened = stack.pop_all()

    def whole_rows(self) -> dict:
        """id -> row of the whole rows of samples.jsonl, which is cut after them. Raises ValueError where whole rows
        follow a broken one: an interrupt breaks only the end, and a cut would lose them."""
        path, rows, end, broken = self.directory / "samples.jsonl", {}, 0, None
        sizes = {name: (self.directory / file).stat().st_size // (np.dtype(dtype).itemsize * width)
                 if (self.directory / file).exists() else 0 for name, (file, dtype, width) in ARRAYS.items()}
        if any(sizes.values()) and not path.exists():
            raise ValueError(f"{path} is missing, but its arrays are there: {AGAIN}")
        with open(path, "a+b") as file:
            file.seek(0)
            for number, line in enumerate(file, 1):
                try:
                    row = parse_row(line, f"{path} line {number}", rows, sizes)
                except ValueError as error:
                    broken = broken or error
                    continue
                if broken:
                    raise ValueError(f"{broken}; line {number} is whole: {AGAIN}")
                rows[row["id"]] = row
                end += len(line)
            file.truncate(end)
        return rows

    def __contains__(self, name: str) -> bool:
        return name in self.rows

    def add(self, row: dict, **arrays) -> dict:
        """Append one sample and return its row. audio and answer_audio (samples,) float in [-1, 1] or int16, units
        (U,) int, face (T, 52) float; or the [start, length] of an array that is already here. Raises ValueError for
        what the format cannot hold, OSError where the disk is full: the writer is closed then."""
        if row["task"] not in TASKS or row["id"] in self.rows:
            raise ValueError(f"sample {row['id']}, task {row['task']}: expected a new id and one of {', '.join(TASKS)}")
        arrays = {name: array if isinstance(array, list) else encoded(ENTRIES[name], array)
                  for name, array in arrays.items() if array is not None}
        with self.writing():
            if self.finished:
                (self.directory / "manifest.json").unlink()
                self.finished = False
            row = row | {name: array if isinstance(array, list) else self.append(ENTRIES[name], array)
                         for name, array in arrays.items()}
            for file in self.files.values():
                file.flush()                                            # a row never points to what is not there
            self.samples.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
            self.samples.flush()
        self.rows[row["id"]] = row
        return row

    def append(self, name: str, array) -> list:
        """Write what `encoded` made of an array; its [start, length]."""
        file = self.files[name]
        start = file.tell() // (array.itemsize * ARRAYS[name][2])
        file.write(array)
        return [start, len(array)]

    @contextmanager
    def writing(self):
        """An OSError inside closes the writer and says how to go on."""
        try:
            yield
        except OSError as error:
            with suppress(OSError):
                self.close()
            raise OSError(f"{self.directory} cannot be written ({error}): make room and run the same command again, it "
                          "goes on after the last whole sample") from None

    def finish(self, **about) -> dict:
        """Write the manifest: the directory is complete. about: what a reader must know, as the units' tokenizer."""
        with self.writing():
            files = {name: {"bytes": (self.directory / name).stat().st_size, "crc32": checksum(self.directory / name)}
                     for name in FILES}
            manifest = {"format": 1, "samples": len(self.rows), **about, "files": files}
            disk.write_json(self.directory / "manifest.json", manifest)
            self.close()
        return manifest

    def close(self) -> None:
        self.opened.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Split:
    """A finished directory: len(split), split.rows (the json), split[i] -> the row with its arrays in place.

    audio (samples,) float32, units (U,) int64, face (T, 52) float32, each copied from the memory-mapped file; None
    where absent. Sizes and where arrays lie are checked every time; checksums, rows and values where a file is not as
    verified.json says, or verify=True. Raises ValueError or FileNotFoundError where the directory is unfinished,
    truncated or damaged.
    """

    def __init__(self, directory, verify: bool = False):
        self.directory = Path(directory)
        path = self.directory / "manifest.json"
        finish_replacing(self.directory)
        if not path.exists():
            raise FileNotFoundError(f"{directory} is not finished prepared data: it has no manifest.json; "
                                    "run prepare.py again")
        self.manifest = disk.read_json(path)
        if self.manifest.get("format") != 1:
            raise ValueError(f"{directory}: format {self.manifest.get('format')}, expected 1: run prepare.py again")
        disk.typed(self.manifest, "speech_tokenizer", str | None, path, None)
        vocab = disk.typed(self.manifest, "unit_vocab", Vocabulary, path, None)
        count = disk.typed(self.manifest, "samples", Count, path)
        stated = disk.typed(self.manifest, "files", dict, path)
        files = {name: disk.typed(stated, name, File, path, prefix="files.") for name in FILES}
        self.arrays = {name: mapped(self.directory, name, files) for name in ARRAYS}
        now, changed = unread(self.directory, files, vocab)
        changed = FILES if verify else changed
        self.rows = read_rows(self.directory / "samples.jsonl", self.arrays, "samples.jsonl" in changed)
        if len(self.rows) != count:
            raise ValueError(f"{directory} has {len(self.rows)} samples, its manifest says {count}: {AGAIN}")
        for name in changed:
            check_file(self, name, files[name], vocab)
        if changed:
            remember(self.directory, now)

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
    encoder, limit = model.config.speech_encoder, model.config.llm.max_position_embeddings
    longest = limit // (encoder.max_source_positions // model.config.projector_stride) * encoder.window
    for row in (split.rows[i] for i in rows):
        needed = ["messages", "answer", *NEEDS[row["task"]], *["units"] * ("face" in row)]
        lacking = [name for name in dict.fromkeys(needed) if name not in row]
        length = {name: row[name][1] if name in row else 0 for name in ARRAYS}
        where = f"{split.directory}: sample {row['id']}"
        if lacking:
            raise ValueError(f"{where}, task {row['task']}, lacks {', '.join(lacking)}: `prepare.py units`, "
                             "`label` and `speak` make what is missing; or leave it out")
        if length["audio"] > longest:
            raise ValueError(f"{where} has {length['audio'] / SAMPLE_RATE:.1f} s of speech, the checkpoint's context "
                             f"holds {longest / SAMPLE_RATE:.1f} s: leave it out or cut it")
        if length["face"] and length["face"] != frames_for_units(length["units"]):
            raise ValueError(f"{where} has {length['face']} face frames, its {length['units']} units at 30 fps need "
                             f"{frames_for_units(length['units'])}: was the face prepared at another fps?")
        spoken = sum(message_parts(message).count(SPEECH_ID) for message in row["messages"])
        if spoken != ("audio" in row):
            raise ValueError(f"{where}: its messages have {spoken} speech parts, expected {int('audio' in row)}: "
                             "one if it has audio, else none")
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
    other = f"{split.directory} was made for another preset: its units are"
    if stated not in (None, vocab):
        raise ValueError(f"{other} of {stated} kinds, the checkpoint's of {vocab}: prepare the data with this "
                         "checkpoint's speech tokenizer")
    refuse_outside(split, "units", 0, vocab - 1, "prepare the data with this checkpoint's speech tokenizer")
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
    augment(log-mel (M, L), n): another log-mel for a window of sample n.

    Raises ValueError for messages that do not ask for exactly the sound that is there."""
    ids, labels, mels = [], [], []
    tokenizer, encoder = model.tokenizer, model.config.speech_encoder
    for n, sample in enumerate(samples):
        prompt = tokenizer.encode_chat(with_system(sample["messages"]))
        answer = tokenizer.encode(sample["answer"]) + [tokenizer.im_end_id]
        if prompt.count(SPEECH_ID) != (sample["audio"] is not None):
            raise ValueError(f"sample {sample['id']}: its messages have {prompt.count(SPEECH_ID)} speech parts, "
                             f"expected {int(sample['audio'] is not None)}: one if it has audio, else none")
        ids.append(torch.tensor(prompt + answer))
        labels.append(torch.tensor([IGNORE] * len(prompt) + answer))
        if sample["audio"] is not None:
            mel = windows(torch.from_numpy(sample["audio"]).to(device), encoder)
            mels.append(mel if augment is None else torch.stack([augment(window, n) for window in mel]))
    counts = torch.tensor([len(mel) for mel in mels], dtype=torch.long)
    if "mel" in always and not mels:
        mels.append(windows(torch.zeros(0, device=device), encoder))
    batch = {"input_ids": pad_sequence(ids, batch_first=True),
             "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORE),
             "mask": pad_sequence([torch.ones(len(row), dtype=torch.bool) for row in ids], batch_first=True)}
    if mels:
        batch["mel"] = torch.cat(mels)
    if len(counts):
        batch["windows"] = counts
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
