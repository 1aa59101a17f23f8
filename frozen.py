"""A cache of the frozen parts' outputs for each sample, computed once: `train.py --cache DIR`.

    stage trains           cached for each sample                                   parts that need not run
    projector or LLM       the speech encoder's states of its sound (W S, D)        the encoder
    generator              the LLM's states of its reply (N, D)                     encoder, projector, LLM
    face decoder           the generator's states of its units (U + 1, D)           all of these and the generator

DIR/cache.json identifies the weights, data and settings; DIR/*.states are shards. A shard is written under another name
and then renamed, so an interrupted command continues after the last complete one, on any number of processes. Numbers
are bfloat16 if the stage computes in it, else float32. Each sample's states have a checksum, verified at each read.

Shapes: B batch, W windows of sound, S states (of a window, of a reply), N text tokens, U units, D width.
"""
import hashlib
import json
import time
import zlib
from pathlib import Path

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

import disk
from data import by_length, collate
from ranks import first_rank_first, rank_and_world, stop_if_any_failed

FORMAT = 1
SHARD_BYTES = 256 << 20         # a shard is written when it exceeds this size
BATCH = 16                      # samples that go through the frozen parts together
# A shard is a head, with the checksum of the records; one record per sample, with the byte offset, number of rows and
# checksum of its states; and the states.
HEAD = np.dtype([("format", "<u8"), ("made by", "<u8"), ("samples", "<u8"), ("crc32", "<u8")])
RECORD = np.dtype([("sample", "<u8"), ("start", "<u8"), ("rows", "<u4"), ("crc32", "<u4")])


def kind_of(state: dict, config) -> str:
    """The states to cache in this stage: "encoder", "reply" or "generator". Raises ValueError for a stage that augments
    the audio."""
    trained = state["rates"].keys()
    if trained & {"projector", "llm"}:
        if state["toy"]:
            raise ValueError(f"--cache: stage {state['stage']} of {state['recipe']} alters the voices anew in each "
                             "step, nothing stays the same: leave it out")
        return "encoder"
    return "generator" if "generator" not in trained and config.face.ablate != "speech-context" else "reply"


def fingerprint(kind: str, model, mixture, dtype: str) -> str:
    """A hash of all that the states depend on: the frozen parts' weights and config, the data, the dtype."""
    parts = ["speech_encoder"] + ["speech_projector", "llm"] * (kind != "encoder") + ["speech_generator"] * (
        kind == "generator")
    config = [repr(getattr(model.config, name)) for name in ("speech_encoder", "projector_stride", "llm", "generator")]
    numbers = lambda tensor: tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
    weights = {name: zlib.crc32(numbers(tensor)) for name, tensor in model.state_dict().items()
               if name.split(".")[0] in parts}
    text = json.dumps([FORMAT, kind, dtype, config, weights, mixture.files], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Cache:
    """The states of samples by their number. Raises ValueError for a directory with other files, or a damaged one."""

    def __init__(self, directory, kind: str, model, mixture, dtype: str):
        config = model.config
        self.directory, self.kind, self.mixture = Path(directory), kind, mixture
        self.made_by = fingerprint(kind, model, mixture, dtype)
        self.width = {"encoder": config.speech_encoder.d_model, "reply": config.llm.hidden_size,
                      "generator": config.generator.llm.hidden_size}[kind]
        self.window, self.dtype = config.speech_encoder.max_source_positions, getattr(torch, dtype)
        path = self.directory / "cache.json"
        about = {"format": FORMAT, "kind": kind, "dtype": dtype, "made_by": self.made_by}
        if not path.exists():
            if self.directory.exists() and any(path.name[0] != "." for path in self.directory.iterdir()):
                raise ValueError(f"--cache {directory} is not empty and has no cache.json: choose a new directory")
            disk.write_json(path, about)
        if disk.read_json(path) != about:
            raise ValueError(f"--cache {directory} was made by other weights, data or settings: remove it, or choose "
                             "another directory")
        self.scan()

    def scan(self) -> None:
        """Read the records of all shards."""
        count = len(self.mixture)
        self.shards, self.shard = sorted(self.directory.glob("*.states")), np.full(count, -1, np.int32)
        self.records = np.zeros(count, RECORD)
        for n, path in enumerate(self.shards):
            with open(disk.regular(path, "states of samples"), "rb") as file:
                head = np.frombuffer(file.read(HEAD.itemsize).ljust(HEAD.itemsize), HEAD)[0].item()
                found = file.read(min(head[2], count) * RECORD.itemsize)
            if head != (FORMAT, int(self.made_by, 16), len(found) // RECORD.itemsize, zlib.crc32(found)):
                raise ValueError(f"{path} is damaged (its checksum differs): remove it, it is made again")
            found = np.frombuffer(found, RECORD)
            self.records[found["sample"]], self.shard[found["sample"]] = found, n

    def missing(self, numbers) -> np.ndarray:
        """Those of the samples that are not cached yet."""
        return np.asarray(numbers)[self.shard[numbers] < 0]

    def read(self, number: int) -> torch.Tensor:
        """States (rows, D) of a sample. Raises ValueError if they are damaged."""
        _, start, rows, crc32 = self.records[number].item()
        path = self.shards[self.shard[number]]
        content = np.fromfile(path, "u1", rows * self.width * self.dtype.itemsize, offset=start)
        if zlib.crc32(content) != crc32:
            raise ValueError(f"{path} is damaged (the checksum of sample {number} differs): remove it, it is made "
                             "again")
        return torch.from_numpy(content).view(self.dtype).view(rows, self.width)

    def write(self, name: str, states: dict) -> None:
        """Write a shard. states: sample -> (rows, D)."""
        records, start = np.zeros(len(states), RECORD), HEAD.itemsize + len(states) * RECORD.itemsize
        contents = [rows.contiguous().view(-1).view(torch.uint8).numpy() for rows in states.values()]
        for record, number, rows, content in zip(records, states, states.values(), contents):
            record["sample"], record["start"], record["rows"] = number, start, len(rows)
            record["crc32"] = zlib.crc32(content)
            start += len(content)
        head = np.array((FORMAT, int(self.made_by, 16), len(states), zlib.crc32(records.tobytes())), HEAD)
        with disk.replacing(self.directory / f"{name}.states") as temporary, open(temporary, "wb") as file:
            for part in (head.tobytes(), records.tobytes(), *contents):
                file.write(part)

    def put(self, batch: dict, numbers: list) -> dict:
        """In a batch of `data.assemble`, replace the inputs of the frozen parts by these samples' states, as
        `ExOmni.forward` takes them."""
        batch = {name: value for name, value in batch.items() if name != "sound"}
        if self.kind == "encoder":
            clips = [self.read(numbers[n]).view(-1, self.window, self.width) for n in batch.get("owners", ())]
            if "owners" in batch:                                   # without clips: silence, with weight zero
                batch["encoded"] = torch.cat(clips or [torch.zeros(1, self.window, self.width, dtype=self.dtype)])
            if clips:
                batch["windows"] = torch.tensor([len(clip) for clip in clips])
            return batch
        rows = [self.read(number) for number in numbers]
        name = {"reply": "reply_states", "generator": "unit_states"}[self.kind]
        batch[name] = pad_sequence(rows, batch_first=True)
        batch[f"{name}_mask"] = pad_sequence([torch.ones(len(row), dtype=torch.bool) for row in rows], batch_first=True)
        return batch


# ---------------------------------------------------------------- filling

@torch.no_grad()
def states_of(kind: str, model, samples: list, device) -> list:
    """States (rows, D) of each sample, recorded by forward hooks while `ExOmni` runs."""
    caught = {}
    hooks = [model.speech_encoder.register_forward_hook(lambda _, given, out: caught.update(encoder=out)),
             model.speech_generator.register_forward_hook(lambda _, given, out: caught.update(
                 reply=given[:2], generator=(out.states, out.mask)))]
    batch = collate(samples, model, ("units",), device, always=("units",))
    if kind == "encoder":
        model.encode_speech(batch["mel"])
    else:
        model(batch, {"units": 1})
    for hook in hooks:
        hook.remove()
    if kind == "encoder":
        return [part.flatten(0, 1) for part in caught["encoder"].split(batch["windows"].tolist())]
    states, mask = caught[kind]
    return [row[keep] for row, keep in zip(states, mask)]


def open_cache(directory, state: dict, model, mixture, numbers, device, autocast) -> Cache:
    """The cache with all of these samples: missing states are computed, divided among the processes. To be called on
    all processes; if one fails, all raise ValueError or OSError."""
    cache = first_rank_first(lambda: Cache(directory, kind_of(state, model.config), model, mixture, state["dtype"]))
    if cache.kind == "encoder":
        numbers = numbers[mixture.column("audio length", numbers) >= 0]
    missing, failure = by_length(mixture, np.unique(cache.missing(numbers))), None
    rank, world = rank_and_world()
    try:
        fill(cache, missing[rank::world], model.eval(), device, autocast)
    except (ValueError, OSError) as error:
        failure = error
    stop_if_any_failed(failure)
    cache.scan()
    lost = len(cache.missing(numbers))
    stop_if_any_failed(ValueError(f"--cache {directory}: {lost} samples that other processes have made are not there: it "
                                  "must be a directory that all of them see") if lost else None)
    return cache


def fill(cache: Cache, numbers: list, model, device, autocast) -> None:
    """Compute and write the states of these samples."""
    states, size, rank = {}, 0, rank_and_world()[0]
    for at in tqdm(range(0, len(numbers), BATCH), desc=f"{cache.kind} states", disable=True if rank else None):
        some = numbers[at:at + BATCH]
        with autocast():
            made = states_of(cache.kind, model, [cache.mixture[i] for i in some], device)
        states |= {number: rows.to("cpu", cache.dtype) for number, rows in zip(some, made)}
        size += sum(rows.numel() * cache.dtype.itemsize for rows in made)
        if size > SHARD_BYTES or at + BATCH >= len(numbers):
            cache.write(f"{time.time_ns()}-{rank}", states)
            states, size = {}, 0
