"""Prepared samples -> the padded batches of `ExOmni.forward`, in an order that a seed fixes.

data.Split gives the samples; here it is checked that they fit the checkpoint, the chat becomes token ids, the sound
becomes a log-mel, and a row's reply alone is supervised: the answer's ids and the <|im_end|> after it.
"""
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from toy.augment import other_voice
from data import ARRAYS, Split, checksum
from face_decoder import frames_for_units
from speech_generator import IGNORE
from tokenizer import SPEECH_ID, with_system
from whisper import SAMPLE_RATE, log_mel

NEEDS = {"asr": ["audio"], "tts": ["units"], "face": ["units", "face"], "qa": [], "chat": []}   # a task's arrays


def rows_of(split: Split, tasks) -> np.ndarray:
    """Indices of the rows of these tasks."""
    return np.array([i for i, row in enumerate(split.rows) if row["task"] in tasks], dtype=np.int64)


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
    """Of the speech tokenizer that came with a checkpoint, as `speech_tokenizer` in the manifest of data with its units;
    None where it has none."""
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


@lru_cache(2)
def order(count: int, seed: int, epoch: int) -> np.ndarray:
    """The samples of an epoch in the order they are drawn."""
    return np.random.default_rng((seed, epoch)).permutation(count)


def draw(rows, seed: int, first: int, count: int) -> list:
    """Numbers first ... first + count - 1 of an endless stream of rows: each epoch all of them, in another order."""
    n = len(rows)
    return [int(rows[order(n, seed, number // n)[number % n]]) for number in range(first, first + count)]


def by_length(split: Split, rows) -> list:
    """rows, those of similar length together: in one piece they need little padding."""
    return sorted(rows, key=lambda i: tuple(split.rows[i].get(name, (0, 0))[1] for name in ("units", "audio")))


def chunks(split: Split, rows, size: int) -> list:
    """rows in lists of `size`, the last may be shorter."""
    rows = by_length(split, rows)
    return [rows[i:i + size] for i in range(0, len(rows), size)]


BESIDE = 50            # a sample's prompt and question take about as long as that many units


def pieces(split: Split, rows, count: int) -> list:
    """rows cut into `count` lists by length, such that the squares of what they cost (samples times the longest one's
    length) add up to the least: little padding, and no piece much larger than the others."""
    rows = by_length(split, rows)
    lengths = np.array([BESIDE + split.rows[i].get("units", (0, 0))[1] for i in rows])
    best, begins = np.append(0.0, np.full(len(rows), np.inf)), []   # best[j]: the least for the first j rows
    for _ in range(count):
        costs = [best[:j] + ((j - np.arange(j)) * lengths[j - 1]) ** 2.0 for j in range(1, len(rows) + 1)]
        begins.append([0, *(int(cost.argmin()) for cost in costs)])     # of the last piece of the first j rows
        best = np.append(np.inf, [cost.min() for cost in costs])
    ends = [len(rows)]
    for begin in reversed(begins):
        ends.append(begin[ends[-1]])
    ends.reverse()
    return [rows[i:j] for i, j in zip(ends, ends[1:])]


def collate(samples: list, model, terms, device="cpu", seeds=None) -> dict:
    """Samples of a Split -> the batch of `ExOmni.forward` with what the loss terms need, on the device. seeds: of the
    other voice in which each sample is heard, None for as it is.

    Raises ValueError for messages that do not ask for exactly the sound that is there."""
    ids, labels, mels, tokenizer, encoder = [], [], [], model.tokenizer, model.config.speech_encoder
    for n, sample in enumerate(samples):
        prompt = tokenizer.encode_chat(with_system(sample["messages"]))
        answer = tokenizer.encode(sample["answer"]) + [tokenizer.im_end_id]
        if prompt.count(SPEECH_ID) != (sample["audio"] is not None):
            raise ValueError(f"sample {sample['id']}: its messages have {prompt.count(SPEECH_ID)} speech parts, "
                             f"expected {int(sample['audio'] is not None)}: one if it has audio, else none")
        ids.append(torch.tensor(prompt + answer))
        labels.append(torch.tensor([IGNORE] * len(prompt) + answer))
        if sample["audio"] is not None:
            mel = log_mel(torch.from_numpy(sample["audio"]).to(device), encoder.num_mel_bins, encoder.n_frames)
            mels.append(mel if seeds is None else other_voice(mel.cpu(), seeds[n]))
    batch = {"input_ids": pad_sequence(ids, batch_first=True),
             "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORE),
             "mask": pad_sequence([torch.ones(len(row), dtype=torch.bool) for row in ids], batch_first=True)}
    if mels:
        batch["mel"] = torch.stack(mels)
    if {"units", "face"} & set(terms) and any(sample["units"] is not None for sample in samples):
        units = [torch.as_tensor([] if s["units"] is None else s["units"], dtype=torch.long) for s in samples]
        batch["units"] = pad_sequence(units, batch_first=True, padding_value=IGNORE)
    if "face" in terms and any(sample["face"] is not None for sample in samples):
        empty = np.zeros((0, ARRAYS["face"][2]), np.float32)
        tracks = [torch.from_numpy(empty if s["face"] is None else s["face"]) for s in samples]
        batch["face"] = pad_sequence(tracks, batch_first=True)[..., :model.config.face.channels]
        batch["frames"] = torch.tensor([len(track) for track in tracks])
    return {name: tensor.to(device) for name, tensor in batch.items()}
