"""Prepared data: `Writer` and `Split` for the files that prepared.py describes, and how samples become batches.

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
from prepared import (AGAIN, ARRAYS, BLOCK, ENTRIES, FILES, MARKS, NEEDS, ROWS, TASKS, Count, File, Rows, Vocabulary,
                      Written, check_file, checksum, encoded, finish_replacing, make_index, mapped, open_index,
                      parse_row, refuse_outside, remember, unread)
from speech_generator import IGNORE
from tokenizer import SPEECH_ID, SYSTEM_PROMPT, message_parts, with_system
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
            if self.finished:
                Split(directory)                            # damaged data is not added to
            self.rows, ends = self.whole_rows()
            self.samples = stack.enter_context(open(self.directory / ROWS, "ab"))
            for name, (file, dtype, width) in ARRAYS.items():
                self.files[name] = stack.enter_context(open(self.directory / file, "ab"))
                if not self.finished:                       # what the last, broken sample left behind
                    self.files[name].truncate(ends[name] * np.dtype(dtype).itemsize * width)
                    self.files[name].seek(0, 2)
            self.opened = stack.pop_all()

    def whole_rows(self) -> tuple:
        """The whole rows of samples.jsonl, which is cut after them, and where their arrays end: name -> length. Raises
        ValueError where whole rows follow a broken one: an interrupt breaks only the end, and a cut would lose them."""
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
        return Written(path, offsets), ends

    def sizes(self) -> dict:
        """name -> how long each array is, in its file."""
        return {name: (self.directory / file).stat().st_size // (np.dtype(dtype).itemsize * width)
                if (self.directory / file).exists() else 0 for name, (file, dtype, width) in ARRAYS.items()}

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
            offset = self.samples.tell()
            self.samples.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
            self.samples.flush()
        self.rows.offsets[row["id"]] = offset
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
            raise OSError(f"{self.directory} cannot be written ({error.strerror or error}): make room and run the "
                          "same command again, it goes on after the last whole sample") from None

    def finish(self, **about) -> dict:
        """Write the manifest: the directory is complete. about: what a reader must know, as the units' tokenizer."""
        with self.writing():
            files = {name: {"bytes": (self.directory / name).stat().st_size, "crc32": checksum(self.directory / name)}
                     for name in FILES}
            manifest = {"format": 1, "samples": len(self.rows), **about, "files": files}
            make_index(self.directory, self.sizes())
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

    audio (samples,) float32, units (U,) int64, face (T, 52) float32, each copied from its file; None where absent.
    split.column(name): what is asked of all rows at once (prepared.COLUMNS). Sizes, the index and where arrays lie are
    checked every time; checksums, rows and values where a file is not as verified.json says, or verify=True.
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
        self.arrays = {name: mapped(self.directory, name, files) for name in ARRAYS}
        self.sizes = {name: len(array) for name, array in self.arrays.items()}
        now, changed = unread(self.directory, files, vocab)
        changed = FILES if verify else changed
        self.rows = Rows(self)
        self.columns = self.open_index(files[ROWS], ROWS in changed, verify)
        if len(self.rows) != count:
            raise ValueError(f"{directory} has {len(self.rows)} samples, its manifest says {count}: {AGAIN}")
        for name in changed:
            if name != ROWS:
                check_file(self, name, files[name], vocab)
        if changed:
            remember(self.directory, now)

    def open_index(self, stated: File, changed: bool, verify: bool):
        """A function that returns the columns of samples.index; it is made where it was not made of this data yet."""
        try:
            if changed:
                check_file(self, ROWS, stated, None)
        except ValueError:
            make_index(self.directory, self.sizes, keep=False)      # names the line that is broken
            raise
        columns = None if verify else open_index(self.directory, stated, self.sizes)
        if columns is not None:
            return columns
        made = make_index(self.directory, self.sizes)
        return open_index(self.directory, stated, self.sizes) or (lambda: made)             # a read-only directory

    def __len__(self) -> int:
        return len(self.rows)

    def column(self, name: str, rows=None) -> np.ndarray:
        """A column of the index (prepared.COLUMNS), of these rows or of all."""
        return self.columns()[name][slice(None) if rows is None else rows].copy()

    def __reduce__(self):
        return Split, (self.directory,)                     # another process opens the files itself

    def __getitem__(self, index: int) -> dict:
        row = self.rows[index]
        found = {name: self.read(name, *row[name]) for name in ARRAYS if name in row}
        wide = {"audio": lambda audio: audio.astype(np.float32) / 32767, "units": lambda units: units.astype(np.int64),
                "face": lambda face: face.astype(np.float32)}
        return row | {name: convert(found[name]) if name in found else None for name, convert in wide.items()}

    def read(self, name: str, start: int, length: int) -> np.ndarray:
        """A part of an array. Read, not mapped: a mapping's pages would count as this process's memory, and a file that
        is cut meanwhile would end it without a word."""
        file, dtype, width = ARRAYS[name]
        offset = start * width * np.dtype(dtype).itemsize
        part = np.fromfile(self.directory / file, dtype, length * width, offset=offset)
        if len(part) != length * width:
            raise ValueError(f"{self.directory / file} has become shorter since it was opened: {AGAIN}")
        return part.reshape(-1, width) if width > 1 else part


def rows_of(split: Split, tasks) -> np.ndarray:
    """Indices of the rows of these tasks."""
    numbers = [TASKS.index(task) for task in tasks]
    return np.flatnonzero(np.isin(split.column("task"), numbers)).astype(np.int32)


# ---------------------------------------------------------------- samples that fit a checkpoint

def check(split: Split, rows, model) -> None:
    """Raises ValueError, naming the sample, where rows of a split cannot be what this checkpoint learns from."""
    for _, first in fitting(split, rows, model)[1].values():
        raise ValueError(first)


def fitting(split: Split, rows, model) -> tuple:
    """Those of the rows that this checkpoint can learn from; and why not the others: reason -> [how many, what is wrong
    with the first of them]. Raises ValueError where the units are another checkpoint's."""
    kept, skipped = [], {}
    for some in np.array_split(np.asarray(rows, np.int32), -(-len(rows) // BLOCK) or 1):
        good = np.ones(len(some), bool)
        for reason, bad, of in unfit(split, some, model):
            bad = bad & good
            good &= ~bad
            if bad.any():
                row = split.rows[some[bad.argmax()]]
                skipped.setdefault(reason, [0, f"{split.directory}: sample {row['id']}{of(row)}"])[0] += int(bad.sum())
        kept.append(some[good])
    kept = np.concatenate(kept)
    if (split.column("units length", kept) >= 0).any():
        check_units(split, model)
    return kept, skipped


def unfit(split: Split, rows, model):
    """Yields what makes a sample one that cannot be learnt from: (reason, mask over the rows, row -> what to say)."""
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
    """As `unfit`: sound, or text and sound and units, beyond the checkpoint's context. Bytes are no fewer than tokens:
    only texts that could be too long are tokenized."""
    encoder, limit = model.config.speech_encoder, model.config.llm.max_position_embeddings
    window_rows, most = encoder.max_source_positions // model.config.projector_stride, model.config.generator.llm
    longest = limit // window_rows * encoder.window
    column = lambda name: split.column(name, rows).clip(0)
    audio, units, answer = column("audio length"), column("units length"), column("answer")
    yield "too long", audio > longest, lambda row: (
        f" has {row['audio'][1] / SAMPLE_RATE:.1f} s of speech, the checkpoint's context holds "
        f"{longest / SAMPLE_RATE:.1f} s: leave it out or cut it")
    shortest = encoder.window * 3 // 5 if encoder.quiet_cuts else encoder.window    # of the windows but the last
    heard = -(-audio // shortest) * window_rows
    bound = heard + column("prompt") + answer + len(SYSTEM_PROMPT) + 2 * MARKS
    suspects = (bound > limit) | (answer + units + 3 > most.max_position_embeddings)

    beyond = np.zeros(len(rows), bool)
    for i in np.flatnonzero(suspects & (audio <= longest) & (answer > 0)):
        row = split.rows[rows[i]]
        asked, reply = model.tokenizer.encode_chat(with_system(row["messages"])), model.tokenizer.encode(row["answer"])
        beyond[i] = (len(asked) - (audio[i] > 0) + heard[i] + len(reply) + 1 > limit    # with the reply's end
                     or len(reply) + units[i] + 3 > most.max_position_embeddings)
    yield "too long", beyond, lambda row: (
        f" has more tokens, with its speech and its units, than the checkpoint's context of {limit}: leave it out")


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
    if stated is None:                                      # else it was looked at when the file was read through
        refuse_outside(split, "units", 0, vocab - 1, "prepare the data with this checkpoint's speech tokenizer")
    stated, own = split.manifest.get("speech_tokenizer"), fingerprint(model.directory)
    if None not in (stated, own) and stated != own:
        raise ValueError(f"{other} those of the speech tokenizer {stated}, the checkpoint's is {own}: prepare the data "
                         "with it")


# ---------------------------------------------------------------- batches

def by_length(split: Split, rows) -> list:
    """rows, those of similar length together: in one micro-batch they need little padding."""
    units, audio = (split.column(f"{name} length", rows).clip(0) for name in ("units", "audio"))
    return np.asarray(rows)[np.lexsort((audio, units))].tolist()


def chunks(split: Split, rows, size: int) -> list:
    """rows in lists of `size`, those of similar length together; the last may be shorter."""
    rows = by_length(split, rows)
    return [rows[i:i + size] for i in range(0, len(rows), size)]


def collate(samples: list, model, losses, device="cpu", always=(), augment=None) -> dict:
    """Samples of a Split -> the right-padded batch of `ExOmni.forward`, on the device: `assemble`, then `on_device`."""
    return on_device(assemble(samples, model, losses, always), model.config.speech_encoder, device, augment)


def assemble(samples: list, model, losses, always=()) -> dict:
    """Samples of a Split -> a right-padded batch as `ExOmni.forward` takes it, but for its sound: "sound", the
    waveforms (samples,), and "owners", the number of the sample that each belongs to. model: its tokenizer and config.

    It has units and face where the losses ask for them and a sample has them. always: of "mel", "units", "face" those
    that it has in any case, of no length or as one silent window: several processes must run the same modules. Raises
    ValueError for messages that do not ask for exactly the sound that is there."""
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
    """A batch of `assemble` on the device, its sound as log-mel: mel (W, M, L), and windows (clips,) where there are
    clips. augment(log-mel (M, L), n): another log-mel for a window of sample n."""
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
