"""Prepared data -> the micro-batches of a training step: mixing, order, splitting among processes, reading.

The samples of a step depend only on the seed and on the number of samples before it. So a training can be resumed in
the middle of an epoch, and on another number of processes, as if it had never stopped.

Shapes: n samples of a step, C lengths per sample (tokens of the LLM, tokens of the generator).
"""
import signal
from bisect import bisect_right
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from data import Split, assemble, fitting, rows_of
from tokenizer import with_system

LOOKED_AT = 100                 # samples from which the tokens per byte are estimated
PADDING = 0.05                  # largest share of padding, by estimated lengths; by true lengths it stays below 0.1
LARGE = 0.8                     # a sample with this share of a process's work gets a micro-batch of its own
EVEN = 1.01                     # largest work of a process / mean work that counts as balanced
MANY = 1024                     # samples split at once: time and memory are quadratic in it
PREFETCH = 2                    # steps that each worker reads ahead


# ---------------------------------------------------------------- several directories

def parse_data(given: list) -> list:
    """["DIR", "DIR=WEIGHT", ...] -> [(path, weight), ...]. Raises ValueError."""
    found = []
    for text in given:
        directory, _, weight = text.rpartition("=") if "=" in text and not Path(text).exists() else (text, "", "1")
        try:
            weight = float(weight)
        except ValueError:
            weight = 0.0
        if not 0 < weight <= 1000:
            raise ValueError(f"--data {text}: expected DIRECTORY or DIRECTORY=WEIGHT, a weight above 0 and up to 1000")
        found.append((Path(directory), weight))
    return found


class Mixture:
    """Several splits, numbered one after the other. A split's weight is how often its samples occur in an epoch."""

    def __init__(self, splits: list, weights: list):
        self.splits, self.weights = splits, weights
        self.starts = [0, *np.cumsum([len(split) for split in splits]).tolist()]
        self.files = [split.manifest["files"] for split in splits]      # with their checksums

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, number: int) -> dict:
        part = bisect_right(self.starts, number) - 1
        return self.splits[part][number - self.starts[part]]

    def row(self, number: int) -> dict:
        part = bisect_right(self.starts, number) - 1
        return self.splits[part].rows[int(number) - self.starts[part]]

    def __str__(self) -> str:
        return " + ".join(f"{split.directory}" + f" x {weight:g}" * (weight != 1)
                          for split, weight in zip(self.splits, self.weights))

    def column(self, name: str, numbers=None) -> np.ndarray:
        """A column of the index (prepared.COLUMNS), for these samples or for all."""
        if numbers is None:
            return np.concatenate([split.column(name) for split in self.splits])
        numbers = np.asarray(numbers)
        parts, values = np.searchsorted(self.starts, numbers, "right") - 1, None
        for part in np.unique(parts):
            own = parts == part
            found = self.splits[part].column(name, numbers[own] - self.starts[part])
            values = np.empty(len(numbers), found.dtype) if values is None else values
            values[own] = found
        return np.zeros(0, np.int64) if values is None else values

    def own(self, numbers) -> list:
        """These samples by split: a list of row numbers for each split."""
        return [numbers[(numbers >= start) & (numbers < end)] - start
                for start, end in zip(self.starts, self.starts[1:])]


def open_mixture(given: list, name: str) -> Mixture:
    """The splits of this name, train or val, in the directories of --data. Raises ValueError or OSError."""
    directories, weights = zip(*parse_data(given))
    return Mixture([Split(directory / name) for directory in directories],
                   weights if name == "train" else [1.0] * len(weights))


def mixed_rows(split, tasks, replay: dict, seed: int) -> np.ndarray:
    """Numbers of all samples of these tasks, and of a random selection for each task in `replay` (task -> count)."""
    rows = [rows_of(split, tasks)]
    for task, count in replay.items():
        found = rows_of(split, (task,))
        rows.append(np.random.default_rng(seed).permutation(found)[:count])
    return np.concatenate(rows)


def fitting_numbers(mixture: Mixture, numbers, model) -> tuple:
    """The samples that fit the model, and the reasons for leaving out the others: reason -> [count, first message]
    (`data.fitting`). Raises ValueError if none is left."""
    kept, skipped = [], {}
    for split, rows, start in zip(mixture.splits, mixture.own(numbers), mixture.starts):
        good, reasons = fitting(split, rows, model)
        kept.append(good + np.int32(start))
        for reason, (count, first) in reasons.items():
            skipped[reason] = [skipped.get(reason, [0])[0] + count, skipped.get(reason, [0, first])[1]]
    if skipped and not any(map(len, kept)):
        raise ValueError(next(first for _, first in skipped.values()))
    return np.concatenate(kept), skipped


@lru_cache(2)
def shuffled(count: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of 0 ... count - 1 for this epoch."""
    return np.random.default_rng((seed, epoch)).permutation(count).astype(np.int32)


def sample_order(rows, seed: int, first: int, count: int) -> list:
    """Items first ... first + count - 1 of the endless stream of rows: all of them once per epoch, shuffled."""
    n = len(rows)
    return [int(rows[shuffled(n, seed, number // n)[number % n]]) for number in range(first, first + count)]


class Stream:
    """The endless stream of samples of a training, shuffled anew in each epoch."""

    def __init__(self, mixture: Mixture, numbers, seed: int):
        """numbers: the samples to use."""
        self.seed, self.parts, self.ends = seed, [], []
        for part, (rows, weight) in enumerate(zip(mixture.own(numbers), mixture.weights)):
            size = round(weight * len(rows))
            if size % max(1, len(rows)):                            # part of a split: take it from all of the file
                rows = np.random.default_rng((seed, part)).permutation(rows)
            self.parts.append((rows, mixture.starts[part], size))
            self.ends.append(size + sum(self.ends[-1:]))
        if not self.ends[-1]:
            raise ValueError(f"{mixture}: an epoch has no sample, expected larger weights")

    def __len__(self) -> int:
        """Samples of an epoch."""
        return self.ends[-1]

    def at(self, first: int, count: int) -> list:
        """Samples first ... first + count - 1 of the stream."""
        found = []
        for number, slot in enumerate(sample_order(range(len(self)), self.seed, first, count), first):
            part = bisect_right(self.ends, slot)
            rows, start, size = self.parts[part]
            before = self.ends[part] - size
            found.append(start + int(rows[(number // len(self) * size + slot - before) % len(rows)]))
        return found


# ---------------------------------------------------------------- micro-batches

def cut(lengths, count: int, power=2) -> list:
    """Split samples, sorted, with lengths (n, C), into `count` lists such that the sum of `cost` ** power is minimal:
    so there is little padding, and the lists are of similar cost. Returns [(begin, end), ...].

    Dynamic programming: best[j] is the minimum for the first j samples with the number of lists so far."""
    n, lengths = len(lengths), np.asarray(lengths, np.float64)
    powers = np.full((n, n + 1), np.inf)                            # cost ** power of samples i ... j - 1
    for i in range(n):
        powers[i, i + 1:] = (np.maximum.accumulate(lengths[i:]).sum(1) * np.arange(1, n - i + 1)) ** power
    best, begins, ends = np.append(0.0, np.full(n, np.inf)), [], [n]
    for _ in range(count):
        totals = best[:n, None] + powers
        begins.append(totals.argmin(0))                             # begin of the last list, for each j
        best = totals.min(0)
    for begin in reversed(begins):
        ends.append(int(begin[ends[-1]]))
    return list(zip(ends[::-1], ends[-2::-1]))


def packed(lengths, world: int, accumulate: int, budget=None) -> list:
    """Split samples, sorted, with lengths (n, C), into the same number of lists for each of `world` processes:
    `accumulate`, or the next larger number for which no list costs more than the budget and padding is below PADDING.
    Returns [(begin, end), ...].

    A sample that is (almost) all of a process's work becomes a list of its own. To have as many lists as the others,
    that process also gets the shortest samples, one per list."""
    sizes = lengths.sum(1)
    for count in range(accumulate, len(lengths) // world + 1):      # lists per process
        first, last, processes, lists = 0, len(lengths), world, []  # samples and processes that are left
        while processes > 1 and (sizes[last - 1] + sizes[first:first + count - 1].sum()
                                 > LARGE * sizes[first:last].sum() / processes):
            lists += [(i, i + 1) for i in (*range(first, first + count - 1), last - 1)]
            first, last, processes = first + count - 1, last - 1, processes - 1
        lists += [(first + begin, first + end) for begin, end in cut(lengths[first:last], processes * count, power=4)]
        costs = [cost(lengths[begin:end]) for begin, end in lists]
        if max(costs) <= (budget or np.inf) and (1 - PADDING) * sum(costs) <= sizes.sum():
            break
    return sorted(lists)


def cost(lengths) -> float:
    """Tokens of a micro-batch of samples with lengths (n, C), padding included."""
    return len(lengths) * lengths.max(0).sum()


def token_rates(mixture: Mixture, numbers, tokenizer) -> tuple:
    """Tokens of the system prompt, tokens per byte of the messages and of the answer, from LOOKED_AT samples."""
    some = np.asarray(numbers)[np.linspace(0, len(numbers) - 1, min(LOOKED_AT, len(numbers))).astype(int)]
    rows = [mixture.row(number) for number in some]
    system = len(tokenizer.encode_chat(with_system([])))
    prompts = sum(len(tokenizer.encode_chat(with_system(row["messages"]))) - system for row in rows)
    answers = sum(len(tokenizer.encode(row["answer"])) + 1 for row in rows)
    sizes = [max(1, int(mixture.column(name, some).sum())) for name in ("prompt", "answer")]        # bytes
    return system, max(0, prompts) / sizes[0], answers / sizes[1]


def lengths_of(mixture: Mixture, numbers, config, losses, rates) -> np.ndarray:
    """Estimated lengths (n, 2) of samples: tokens of the LLM, speech rows included, and of the speech generator.
    rates: from `token_rates`."""
    encoder, column = config.speech_encoder, lambda name: mixture.column(name, numbers).clip(0)
    rows = -(-column("audio length") // encoder.window) * (encoder.max_source_positions // config.projector_stride)
    answer, units = rates[2] * column("answer"), column("units length")
    spoken = answer + units if {"units", "face"} & set(losses) else 0 * answer
    return np.stack([rates[0] + rates[1] * column("prompt") + answer + rows, spoken], 1)


def micro_batches(mixture: Mixture, numbers: list, lengths, world: int, accumulate: int, budget) -> list:
    """The samples of a step as micro-batches, `accumulate` for each of `world` processes, or more if one would have
    more than `budget` tokens, or all together too much padding. lengths(mixture, numbers): `lengths_of`."""
    sizes, lists = lengths(mixture, numbers), []
    sections = np.array_split(np.argsort(sizes.sum(1), kind="stable"), -(-len(numbers) // MANY))
    for order in sections:
        lists += [[numbers[i] for i in order[begin:end]]
                  for begin, end in packed(sizes[order], world, -(-accumulate // len(sections)), budget)]
    return lists


def shares(costs: list, world: int) -> list:
    """Distribute micro-batches with these costs over `world` processes, the same number to each: the costliest first,
    to the process with the least work. Then, until balanced, the process with the most swaps one with another."""
    loads, own = [0.0] * world, [[] for _ in range(world)]
    for number in sorted(range(len(costs)), key=lambda number: -costs[number]):
        rank = min((rank for rank in range(world) if len(own[rank]) < len(costs) // world), key=loads.__getitem__)
        own[rank].append(number)
        loads[rank] += costs[number]
    for _ in range(world):
        top = max(range(world), key=loads.__getitem__)
        if loads[top] * world <= EVEN * sum(loads):
            break
        # Swap a of `top` and b of another rank such that the larger of their two loads becomes the smallest.
        load, rank, a, b = min((max(loads[top] + costs[b] - costs[a], loads[rank] + costs[a] - costs[b]), rank, a, b)
                               for rank in range(world) if rank != top for a in own[top] for b in own[rank])
        if load >= loads[top]:
            break
        own[top][own[top].index(a)], own[rank][own[rank].index(b)] = b, a
        loads = [sum(costs[number] for number in numbers) for numbers in own]
    return [sorted(numbers) for numbers in own]


# ---------------------------------------------------------------- reading

class Steps(Dataset):
    """Item `step`: this process's micro-batches of that step, [(number, samples, batch), ...], by `data.assemble`."""

    def __init__(self, mixture: Mixture, numbers, model, state: dict, group, lengths, always, rank: int, world: int,
                 cache=None):
        """group(mixture, samples of a step) -> the micro-batches of all processes, lists of samples. lengths(mixture,
        samples): `lengths_of`. cache: frozen.Cache or None."""
        self.mixture, self.stream = mixture, Stream(mixture, numbers, state["seed"])
        self.model = SimpleNamespace(tokenizer=model.tokenizer, config=model.config)        # no weights
        self.first, self.seen, self.batch, self.losses = (state[name] for name in ("step", "seen", "batch", "losses"))
        self.group, self.lengths, self.always, self.cache = group, lengths, always, cache
        self.rank, self.world = rank, world

    def __getitem__(self, step: int) -> list | Exception:
        try:
            return self.read(step)
        except (ValueError, OSError) as error:                      # raised by read_ahead: DataLoader would wrap it
            return error

    def read(self, step: int) -> list:
        chosen = self.stream.at(self.seen + (step - self.first) * self.batch, self.batch)
        lists = self.group(self.mixture, chosen)
        lengths = [self.lengths(self.mixture, some) for some in lists]
        own = shares([cost(some) for some in lengths], self.world)[self.rank]
        batches = [(number, lists[number], assemble([self.mixture[i] for i in lists[number]], self.model, self.losses,
                                                    self.always)) for number in own]
        return batches if self.cache is None else [(*rest, self.cache.put(batch, rest[1])) for *rest, batch in batches]


def alone(_) -> None:
    """Workers ignore Ctrl-C and SIGTERM, which all processes get: the training process ends its workers itself."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def same(item):
    return item


def read_ahead(steps: Steps, last: int, workers: int, device):
    """Yields the steps before `last`, in order, read ahead by `workers` processes (0: by this one, without reading
    ahead). Raises ValueError or OSError if a sample cannot be read, OSError if a worker was killed."""
    ahead = {"prefetch_factor": PREFETCH, "worker_init_fn": alone} if workers else {}
    on_end = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None
    reader = iter(DataLoader(steps, batch_size=None, sampler=range(steps.first, last), collate_fn=same,
                             num_workers=workers, pin_memory=device.type == "cuda", generator=torch.Generator(),
                             **ahead))
    if on_end is not None:                      # torch's handler could raise at any time, during a save too
        signal.signal(signal.SIGCHLD, on_end)
    try:
        for read in reader:
            if isinstance(read, Exception):
                raise read
            yield read
    except RuntimeError as error:
        if "exited unexpectedly" not in str(error):
            raise
        raise OSError("a process that reads samples was ended (for want of memory?): --resume goes on from the last "
                      "checkpoint, --workers takes fewer") from None
