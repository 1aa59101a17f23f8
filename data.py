"""Prepared data: `Writer` and `Split` write and read the files that prepared.py describes; `collate` makes batches.

Shapes: B batch, N tokens, W windows of sound, M mel bins, L mel frames, U units, T face frames, K = 52 blendshapes.
"""
import json
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

import disk
from face_decoder import frames_for_units
from prepared import (AGAIN, ARRAYS, BLOCK, ENTRIES, FILES, MARKUP_BYTES, NEEDS, ROWS, TASKS, Count, File, Rows,
                      RowsById, Vocabulary, changed_files, check_file, checksum, encode_array, finish_replacing,
                      make_index, map_array, open_index, parse_row, refuse_outside, write_verified)
from speech_generator import IGNORE
from tokenizer import SPEECH_ID, SYSTEM_PROMPT, message_parts, with_system
from whisper import SAMPLE_RATE, windows


class Writer:
    """Appends samples to a directory. After an interrupt it continues after the last complete sample.
    with Writer(directory) as out:
        if "q17" not in out:
            out.add({"id": "q17", "task": "qa", "messages": [...], "answer": "..."}, audio=waveform, units=units)
        out.finish(units="...")

    Instead of an array, the [start, length] of an earlier sample's may be given: both samples then share it.
    Raises ValueError where another process is writing there, or where the data is damaged, not just cut off at its end.
    """

    def __init__(self, directory):
        self.directory, self.files = Path(directory), {}
        with ExitStack() as stack:
            stack.enter_context(disk.locked(self.directory))
            self.finished = (self.directory / "manifest.json").exists()     # until a sample is added
            if self.finished:
                Split(directory)                            # raises ValueError if the data is damaged
            self.rows, ends = self.complete_rows()
            self.samples = stack.enter_context(open(self.directory / ROWS, "ab"))
            for name, (file, dtype, width) in ARRAYS.items():
                self.files[name] = stack.enter_context(open(self.directory / file, "ab"))
                if not self.finished:                       # remove the arrays of an incomplete last sample
                    self.files[name].truncate(ends[name] * np.dtype(dtype).itemsize * width)
                    self.files[name].seek(0, 2)
            self.opened = stack.pop_all()

    def complete_rows(self) -> tuple:
        """The complete rows of samples.jsonl, which is cut after them, and {array: the length that they use}. Raises
        ValueError where complete rows follow a broken one: an interrupt breaks only the last, a cut would lose them."""
        path, offsets, end, broken, ends = self.directory / ROWS, {}, 0, None, dict.fromkeys(ARRAYS, 0)
        if any((sizes := self.sizes()).values()) and not path.exists():
            raise ValueError(f"{path} is missing, but its arrays are there: {AGAIN}")
        with open(path, "a+b") as file:
            file.seek(0)
            for number, line in enumerate(file, 1):
                try:
                    row = parse_row(line, f"{path} line {number}", sizes)
                    if row["id"] in offsets:
                        raise ValueError(f"{path} line {number}, sample {row['id']}: an earlier line has the same id")
                except ValueError as error:
                    broken = broken or error
                    continue
                if broken:
                    raise ValueError(f"{broken}; line {number} is whole: {AGAIN}")
                offsets[row["id"]] = end
                end += len(line)
                for name in ENTRIES.keys() & row:
                    ends[ENTRIES[name]] = max(ends[ENTRIES[name]], sum(row[name]))
            file.truncate(end)
        return RowsById(path, offsets), ends

    def sizes(self) -> dict:
        """array -> its length, from the size of its file."""
        return {name: (self.directory / file).stat().st_size // (np.dtype(dtype).itemsize * width)
                if (self.directory / file).exists() else 0 for name, (file, dtype, width) in ARRAYS.items()}

    def __contains__(self, name: str) -> bool:
        return name in self.rows

    def add(self, row: dict, **arrays) -> dict:
        """Append one sample and return its row. audio and answer_audio (samples,) float in [-1, 1] or int16, units
        (U,) int, face (T, 52) float; or the [start, length] of an array written before. Raises ValueError for values
        that the format cannot hold, OSError, for example on a full disk, after closing the writer."""
        if row["task"] not in TASKS or row["id"] in self.rows:
            raise ValueError(f"sample {row['id']}, task {row['task']}: expected a new id and one of {', '.join(TASKS)}")
        arrays = {name: array if isinstance(array, list) else encode_array(ENTRIES[name], array)
                  for name, array in arrays.items() if array is not None}
        with self.writing():
            if self.finished:
                (self.directory / "manifest.json").unlink()
                self.finished = False
            row = row | {name: array if isinstance(array, list) else self.append(ENTRIES[name], array)
                         for name, array in arrays.items()}
            for file in self.files.values():
                file.flush()                                            # arrays before the row that points to them
            offset = self.samples.tell()
            self.samples.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
            self.samples.flush()
        self.rows.offsets[row["id"]] = offset
        return row

    def append(self, name: str, array) -> list:
        """Append an array from `encode_array` to its file. Returns its [start, length]."""
        file = self.files[name]
        start = file.tell() // (array.itemsize * ARRAYS[name][2])
        file.write(array)
        return [start, len(array)]

    @contextmanager
    def writing(self):
        """On an OSError inside, close the writer and raise an OSError that says how to continue."""
        try:
            yield
        except OSError as error:
            with suppress(OSError):
                self.opened.close()
            raise OSError(f"{self.directory} cannot be written ({error.strerror or error}): make room and run the "
                          "same command again, it goes on after the last whole sample") from None

    def finish(self, **about) -> dict:
        """Write the index and the manifest: the data is complete. about: more entries of the manifest."""
        with self.writing():
            files = {name: {"bytes": (self.directory / name).stat().st_size, "crc32": checksum(self.directory / name)}
                     for name in FILES}
            manifest = {"format": 1, "samples": len(self.rows), **about, "files": files}
            make_index(self.directory, self.sizes())
            disk.write_json(self.directory / "manifest.json", manifest)
            self.opened.close()
        return manifest

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.opened.close()


class Split:
    """Reads finished data: len(split), split.rows (the json objects), split[i] -> a row with its arrays filled in.

    audio (samples,) float32, units (U,) int64, face (T, 52) float32 are copies; None where absent. split.column(name):
    one field of all rows (prepared.COLUMNS). Opening always checks file sizes, the index and the arrays' bounds. It
    reads a file whole, to check its checksum and values, if it changed since verified.json was written, or if verify.
    Raises ValueError or FileNotFoundError where the directory is unfinished, truncated or damaged.
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
            raise ValueError(f"{directory}: format {self.manifest.get('format')!r}, expected 1: run prepare.py again")
        disk.typed(self.manifest, "speech_tokenizer", str | None, path, None)
        vocab = disk.typed(self.manifest, "unit_vocab", Vocabulary, path, None)
        count = disk.typed(self.manifest, "samples", Count, path)
        stated = disk.typed(self.manifest, "files", dict, path)
        files = {name: disk.typed(stated, name, File, path, prefix="files.") for name in FILES}
        self.arrays = {name: map_array(self.directory, name, files) for name in ARRAYS}
        self.sizes = {name: len(array) for name, array in self.arrays.items()}
        status, changed = changed_files(self.directory, files, vocab)
        changed = FILES if verify else changed
        self.rows = Rows(self)
        self.columns = self.open_index(files[ROWS], ROWS in changed, verify)
        if len(self.rows) != count:
            raise ValueError(f"{directory} has {len(self.rows)} samples, its manifest says {count}: {AGAIN}")
        for name in changed:
            if name != ROWS:
                check_file(self, name, files[name], vocab)
        if changed:
            write_verified(self.directory, status)

    def open_index(self, stated: File, changed: bool, verify: bool):
        """A function that returns the columns of samples.index, which is made again if it is not of this data."""
        try:
            if changed:
                check_file(self, ROWS, stated, None)
        except ValueError:
            make_index(self.directory, self.sizes, keep=False)      # its error names the broken line, if there is one
            raise
        columns = None if verify else open_index(self.directory, stated, self.sizes)
        if columns is not None:
            return columns
        columns = make_index(self.directory, self.sizes)
        return open_index(self.directory, stated, self.sizes) or (lambda: columns)          # a read-only directory

    def __len__(self) -> int:
        return len(self.rows)

    def column(self, name: str, rows=None) -> np.ndarray:
        """A column of the index (prepared.COLUMNS), of these rows or of all."""
        return self.columns()[name][slice(None) if rows is None else rows].copy()

    def __reduce__(self):
        return Split, (self.directory,)                     # pickling: a worker process opens the files itself

    def __getitem__(self, index: int) -> dict:
        row = self.rows[index]
        dtypes = {"audio": np.float32, "units": np.int64, "face": np.float32}
        row |= {name: self.read(name, *row[name]).astype(dtype) if name in row else None
                for name, dtype in dtypes.items()}
        if row["audio"] is not None:
            row["audio"] /= 32767
        return row

    def read(self, name: str, start: int, length: int) -> np.ndarray:
        """Read a slice of an array. It is not memory-mapped: mapped pages would count as memory of this process, and
        access to a file that was truncated meanwhile would crash it."""
        file, dtype, width = ARRAYS[name]
        offset = start * width * np.dtype(dtype).itemsize
        part = np.fromfile(self.directory / file, dtype, length * width, offset=offset)
        if len(part) != length * width:
            raise ValueError(f"{self.directory / file} has become shorter since it was opened: {AGAIN}")
        return part.reshape(-1, width) if width > 1 else part


def rows_of(split: Split, tasks) -> np.ndarray:
    """Indices of the rows with these tasks."""
    return np.flatnonzero(np.isin(split.column("task"), [TASKS.index(task) for task in tasks])).astype(np.int32)


# ---------------------------------------------------------------- samples that a checkpoint can be trained on

def check(split: Split, rows, model) -> None:
    """Raises ValueError, naming the sample, where this checkpoint cannot be trained on one of the rows."""
    for _, first in fitting(split, rows, model)[1].values():
        raise ValueError(first)


def fitting(split: Split, rows, model) -> tuple:
    """The rows that this checkpoint can be trained on, and why the others cannot be used: reason -> [number of rows,
    description of the first]. Raises ValueError where the units are another checkpoint's."""
    kept, skipped = [], {}
    for some in np.array_split(np.asarray(rows, np.int32), -(-len(rows) // BLOCK) or 1):
        good = np.ones(len(some), bool)
        for reason, bad, describe in unfit(split, some, model):
            bad = bad & good
            good &= ~bad
            if bad.any():
                row = split.rows[some[bad.argmax()]]
                first = f"{split.directory}: sample {row['id']}{describe(row)}"
                skipped.setdefault(reason, [0, first])[0] += int(bad.sum())
        kept.append(some[good])
    kept = np.concatenate(kept)
    if (split.column("units length", kept) >= 0).any():
        check_units(split, model)
    return kept, skipped


def unfit(split: Split, rows, model):
    """Yields (reason, mask over the rows, function row -> description) for each reason not to train on a sample."""
    column = lambda name: split.column(name, rows)
    length, task, answer = {name: column(f"{name} length") for name in ARRAYS}, column("task"), column("answer")
    needs = lambda row: dict.fromkeys(["messages", "answer", *NEEDS[row["task"]], *["units"] * ("face" in row)])
    incomplete = (column("prompt") < 0) | (answer < 0) | (length["face"] >= 0) & (length["units"] < 0)
    for name in ARRAYS:
        incomplete |= np.isin(task, [n for n, kind in enumerate(TASKS) if name in NEEDS[kind]]) & (length[name] < 0)
    yield "incomplete", incomplete, lambda row: (
        f", task {row['task']}, lacks {', '.join(n for n in needs(row) if n not in row)}: `prepare.py units`, `label` "
        "and `speak` make what is missing; or leave it out")
    empty = (answer == 0) | (length["audio"] == 0) | (length["units"] == 0) | (length["face"] == 0)
    yield "empty", empty, lambda row: " has an empty " + (
        "answer" if not row["answer"] else next(name for name in ARRAYS if name in row and not row[name][1]))
    yield from too_long(split, rows, model)
    frames = frames_for_units(length["units"].clip(0))
    yield "face unlike its units", (length["face"] > 0) & (length["face"] != frames), lambda row: (
        f" has {row['face'][1]} face frames, its {row['units'][1]} units at 30 fps need "
        f"{frames_for_units(row['units'][1])}: was the face prepared at another fps?")
    spoken = lambda row: sum(message_parts(message).count(SPEECH_ID) for message in row["messages"])
    yield "speech without sound", column("speech") != (length["audio"] >= 0), lambda row: (
        f": its messages have {spoken(row)} speech parts, expected {int('audio' in row)}: one if it has audio, else "
        "none")


def too_long(split: Split, rows, model):
    """Part of `unfit`: samples whose sound, or text, sound and units together, exceed the checkpoint's context. A text
    has at most as many tokens as bytes: only those that could be too long are tokenized."""
    encoder, limit = model.config.speech_encoder, model.config.llm.max_position_embeddings
    window_rows = encoder.max_source_positions // model.config.projector_stride     # speech rows of a window
    longest, speech_limit = limit // window_rows * encoder.window, model.config.generator.llm.max_position_embeddings
    column = lambda name: split.column(name, rows).clip(0)
    audio, units, answer = column("audio length"), column("units length"), column("answer")
    yield "too long", audio > longest, lambda row: (
        f" has {row['audio'][1] / SAMPLE_RATE:.1f} s of speech, the checkpoint's context holds "
        f"{longest / SAMPLE_RATE:.1f} s: leave it out or cut it")
    shortest = encoder.window * 3 // 5 if encoder.quiet_cuts else encoder.window    # of all windows but the last
    speech_rows = -(-audio // shortest) * window_rows
    bound = speech_rows + column("prompt") + answer + len(SYSTEM_PROMPT) + 2 * MARKUP_BYTES
    suspects = (bound > limit) | (answer + units + 3 > speech_limit)

    beyond = np.zeros(len(rows), bool)
    for i in np.flatnonzero(suspects & (audio <= longest) & (answer > 0)):
        row = split.rows[rows[i]]
        prompt, reply = model.tokenizer.encode_chat(with_system(row["messages"])), model.tokenizer.encode(row["answer"])
        beyond[i] = (len(prompt) - (audio[i] > 0) + speech_rows[i] + len(reply) + 1 > limit     # + 1: <|im_end|>
                     or len(reply) + units[i] + 3 > speech_limit)
    yield "too long", beyond, lambda row: (
        f" has more tokens, with its speech and its units, than the checkpoint's context of {limit}: leave it out")


def fingerprint(checkpoint) -> str | None:
    """Checksum of a checkpoint's speech tokenizer, None where it has none. The manifest of data with units has it as
    `speech_tokenizer`."""
    path = Path(checkpoint) / "speech_tokenizer" / "model.safetensors"
    return f"{checksum(path):08x}" if path.is_file() else None


def check_units(split: Split, model) -> None:
    """Raises ValueError where the units are not the checkpoint's: of another vocabulary size (`unit_vocab` in the
    manifest) or, where both are known, of another speech tokenizer."""
    vocab, stated = model.config.generator.unit_vocab, split.manifest.get("unit_vocab")
    other = f"{split.directory} was made for another preset: its units are"
    if stated not in (None, vocab):
        raise ValueError(f"{other} of {stated} kinds, the checkpoint's of {vocab}: prepare the data with this "
                         "checkpoint's speech tokenizer")
    if stated is None:                                      # else checked when the file was last read whole
        refuse_outside(split, "units", 0, vocab - 1, "prepare the data with this checkpoint's speech tokenizer")
    stated, own = split.manifest.get("speech_tokenizer"), fingerprint(model.directory)
    if None not in (stated, own) and stated != own:
        raise ValueError(f"{other} those of the speech tokenizer {stated}, the checkpoint's is {own}: prepare the data "
                         "with it")


# ---------------------------------------------------------------- batches

def by_length(split: Split, rows) -> list:
    """rows sorted by length: neighbours need little padding in one micro-batch."""
    units, audio = (split.column(f"{name} length", rows).clip(0) for name in ("units", "audio"))
    return np.asarray(rows)[np.lexsort((audio, units))].tolist()


def chunks(split: Split, rows, size: int) -> list:
    """rows sorted by length, in lists of `size`; the last may be shorter."""
    rows = by_length(split, rows)
    return [rows[i:i + size] for i in range(0, len(rows), size)]


def collate(samples: list, model, losses, device="cpu", always=(), augment=None) -> dict:
    """Samples of a Split -> the right-padded batch of `ExOmni.forward`, on the device: `assemble`, then `on_device`."""
    return on_device(assemble(samples, model, losses, always), model.config.speech_encoder, device, augment)


def assemble(samples: list, model, losses, always=()) -> dict:
    """Samples of a Split -> the right-padded batch of `ExOmni.forward` on the CPU. In place of the mel it has "sound",
    the waveforms (samples,), and "owners", the index of the sample that each belongs to. model: has tokenizer, config.

    Units and face are included if the losses need them and a sample has them. always: those of "mel", "units", "face"
    to include in any case, with length 0 or as one silent window, because several processes must run the same modules.
    Raises ValueError for messages whose speech parts do not match the sample's audio."""
    ids, labels, tokenizer = [], [], model.tokenizer
    for sample in samples:
        prompt = tokenizer.encode_chat(with_system(sample["messages"]))
        answer = tokenizer.encode(sample["answer"]) + [tokenizer.im_end_id]
        if prompt.count(SPEECH_ID) != (sample["audio"] is not None):
            raise ValueError(f"sample {sample['id']}: its messages have {prompt.count(SPEECH_ID)} speech parts, "
                             f"expected {int(sample['audio'] is not None)}: one if it has audio, else none")
        ids.append(torch.tensor(prompt + answer))
        labels.append(torch.tensor([IGNORE] * len(prompt) + answer))
    batch = {"input_ids": pad_sequence(ids, batch_first=True),
             "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORE),
             "mask": pad_sequence([torch.ones(len(row), dtype=torch.bool) for row in ids], batch_first=True)}
    owners = [n for n, sample in enumerate(samples) if sample["audio"] is not None]
    if owners or "mel" in always:
        batch["owners"] = owners
        batch["sound"] = [torch.from_numpy(samples[n]["audio"]) for n in owners] or [torch.zeros(0)]
    has = lambda name: name in always or any(sample[name] is not None for sample in samples)
    if {"units", "face"} & set(losses) and has("units"):
        units = [torch.as_tensor([] if s["units"] is None else s["units"], dtype=torch.long) for s in samples]
        batch["units"] = pad_sequence(units, batch_first=True, padding_value=IGNORE)
    if "face" in losses and has("face"):
        none = np.zeros((0, ARRAYS["face"][2]), np.float32)
        tracks = [torch.from_numpy(none if s["face"] is None else s["face"]) for s in samples]
        batch["face"] = pad_sequence(tracks, batch_first=True)[..., :model.config.face.channels]
        batch["frames"] = torch.tensor([len(track) for track in tracks])
    return batch


def on_device(batch: dict, encoder, device, augment=None) -> dict:
    """Move a batch of `assemble` to the device. Its sound becomes mel (W, M, L) and, if there are clips, windows
    (clips,). augment(log-mel (M, L) of a window, index of its sample) returns an augmented log-mel."""
    moved = {}
    for name, value in batch.items():
        if torch.is_tensor(value):
            moved[name] = value.to(device, non_blocking=True)
        if name == "sound":
            mels = [windows(sound.to(device, non_blocking=True), encoder) for sound in value]
            if augment is not None:
                mels = [torch.stack([augment(window, n) for window in mel])
                        for mel, n in zip(mels, batch["owners"])] or mels
            moved["mel"] = torch.cat(mels)
            if batch["owners"]:
                moved["windows"] = torch.tensor([len(mel) for mel in mels], device=device)
    return moved
