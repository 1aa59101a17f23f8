"""From prepared data to the micro-batches of a step: which samples, cut how, read by whom.

Which samples a step has is a function of the seed and of how many came before it, and of nothing else: a training goes
on in the middle of an epoch, on another number of processes, as if it had never stopped.

Shapes: n samples of a step, C kinds of lengths.
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

LOOKED_AT = 100                 # samples, for how many tokens a byte is
PADDING = 0.05                  # share of a step that may be padding, by estimated lengths: by true ones below 0.1
LARGE = 0.8                     # share of a process's part of the work at which a sample is left almost alone
EVEN = 1.01                     # the most work of a process against the mean: nothing is exchanged below
MANY = 1024                     # samples are cut at once: time and memory rise with their square
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
    """Splits as one: their samples are numbered one after the other. A weight is how often an epoch has each of a
    split's samples."""

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
        """A column of the index (prepared.COLUMNS), of these samples or of all."""
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
        """These samples by split, as row numbers of each."""
        return [numbers[(numbers >= start) & (numbers < end)] - start
                for start, end in zip(self.starts, self.starts[1:])]


def open_mixture(given: list, name: str) -> Mixture:
    """The splits of this name, train or val, of the directories that --data names. Raises ValueError or OSError."""
    directories, weights = zip(*parse_data(given))
    return Mixture([Split(directory / name) for directory in directories],
                   weights if name == "train" else [1.0] * len(weights))


def mixed_rows(split, tasks, replay: dict, seed: int) -> np.ndarray:
    """Numbers of the samples of these tasks and, of each task in `replay`, of as many as it says, by the seed."""
    rows = [rows_of(split, tasks)]
    for task, count in replay.items():
        found = rows_of(split, (task,))
        rows.append(np.random.default_rng(seed).permutation(found)[:count])
    return np.concatenate(rows)


def fitting_numbers(mixture: Mixture, numbers, model) -> tuple:
    """Those of the samples that can be learnt from, and why not the others, as `data.fitting` says it. Raises
    ValueError where there is none left of those there were."""
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
    """0 ... count - 1 in the order of an epoch."""
    return np.random.default_rng((seed, epoch)).permutation(count).astype(np.int32)


def sample_order(rows, seed: int, first: int, count: int) -> list:
    """Numbers first ... first + count - 1 of an endless stream of rows: each epoch all of them, in another order."""
    n = len(rows)
    return [int(rows[shuffled(n, seed, number // n)[number % n]]) for number in range(first, first + count)]


class Stream:
    """The endless stream of samples that a training sees, each epoch in another order."""

    def __init__(self, mixture: Mixture, numbers, seed: int):
        """numbers: of all the samples it is made of."""
        self.seed, self.parts, self.ends = seed, [], []
        for part, (rows, weight) in enumerate(zip(mixture.own(numbers), mixture.weights)):
            size = round(weight * len(rows))
            if size % max(1, len(rows)):                            # an epoch has some of them: of the whole file
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
    """Samples in order, with lengths (n, C), cut into `count` lists such that what they cost, to this power, adds up to
    the least: little padding, and none much larger than the others. A list costs its samples times the sum of its
    longest lengths. Returns [(begin, end), ...].

    By dynamic programming: best[j] is the least for the first j samples in as many lists as were cut so far."""
    n, lengths = len(lengths), np.asarray(lengths, np.float64)
    powers = np.full((n, n + 1), np.inf)                            # of samples i ... j - 1
    for i in range(n):
        powers[i, i + 1:] = (np.maximum.accumulate(lengths[i:]).sum(1) * np.arange(1, n - i + 1)) ** power
    best, begins, ends = np.append(0.0, np.full(n, np.inf)), [], [n]
    for _ in range(count):
        totals = best[:n, None] + powers
        begins.append(totals.argmin(0))                             # of the last list of the first j samples
        best = totals.min(0)
    for begin in reversed(begins):
        ends.append(int(begin[ends[-1]]))
    return list(zip(ends[::-1], ends[-2::-1]))


def packed(lengths, world: int, accumulate: int, budget=None) -> list:
    """Samples in order, with lengths (n, C) -> lists of them, as many for each of `world` processes: `accumulate`, or
    the first larger number at which none costs more than the budget and little is padding. Returns [(begin, end), ...].

    Where the longest sample is almost a process's part of the work, or more, it is a list of its own, and so is each of
    the shortest, one by one, that its process needs to have as many lists as the others."""
    sizes = lengths.sum(1)
    for each in range(accumulate, len(lengths) // world + 1):
        first, last, others, lists = 0, len(lengths), world, []
        while others > 1 and (sizes[last - 1] + sizes[first:first + each - 1].sum()
                              > LARGE * sizes[first:last].sum() / others):
            lists += [(i, i + 1) for i in (*range(first, first + each - 1), last - 1)]
            first, last, others = first + each - 1, last - 1, others - 1
        lists += [(first + begin, first + end) for begin, end in cut(lengths[first:last], others * each, power=4)]
        costs = [cost(lengths[begin:end]) for begin, end in lists]
        if max(costs) <= (budget or np.inf) and (1 - PADDING) * sum(costs) <= sizes.sum():
            break
    return sorted(lists)


def cost(lengths) -> float:
    """Of a micro-batch of samples with lengths (n, C), with its padding: in tokens."""
    return len(lengths) * lengths.max(0).sum()


def token_rates(mixture: Mixture, numbers, tokenizer) -> tuple:
    """Tokens of the system prompt; tokens a byte of the messages and of the answer, in LOOKED_AT of the samples."""
    some = np.asarray(numbers)[np.linspace(0, len(numbers) - 1, min(LOOKED_AT, len(numbers))).astype(int)]
    rows = [mixture.row(number) for number in some]
    system = len(tokenizer.encode_chat(with_system([])))
    asked = sum(len(tokenizer.encode_chat(with_system(row["messages"]))) - system for row in rows)
    answered = sum(len(tokenizer.encode(row["answer"])) + 1 for row in rows)
    sizes = [max(1, int(mixture.column(name, some).sum())) for name in ("prompt", "answer")]
    return system, max(0, asked) / sizes[0], answered / sizes[1]


def lengths_of(mixture: Mixture, numbers, config, losses, rates) -> np.ndarray:
    """About how long samples are, (n, 2): tokens of the language model, speech among them, and of the generator.
    rates: of `token_rates`."""
    encoder, column = config.speech_encoder, lambda name: mixture.column(name, numbers).clip(0)
    rows = -(-column("audio length") // encoder.window) * (encoder.max_source_positions // config.projector_stride)
    answer, units = rates[2] * column("answer"), column("units length")
    spoken = answer + units if {"units", "face"} & set(losses) else 0 * answer
    return np.stack([rates[0] + rates[1] * column("prompt") + answer + rows, spoken], 1)


def micro_batches(mixture: Mixture, numbers: list, lengths, world: int, accumulate: int, budget) -> list:
    """The samples of a step as lists, as many for each of `world` processes: `accumulate`, or more where a list would
    have more than `budget` tokens or all of them too much padding. lengths(mixture, numbers): `lengths_of`."""
    found, lists = lengths(mixture, numbers), []
    sections = np.array_split(np.argsort(found.sum(1), kind="stable"), -(-len(numbers) // MANY))
    for order in sections:
        lists += [[numbers[i] for i in order[begin:end]]
                  for begin, end in packed(found[order], world, -(-accumulate // len(sections)), budget)]
    return lists


def shares(costs: list, world: int) -> list:
    """Which micro-batches each of `world` processes works through, as many on each: the costliest first, to the one
    that has the least so far. Then, while they are not even, the one that has the most exchanges one with another."""
    loads, own = [0.0] * world, [[] for _ in range(world)]
    for number in sorted(range(len(costs)), key=lambda number: -costs[number]):
        rank = min((rank for rank in range(world) if len(own[rank]) < len(costs) // world), key=loads.__getitem__)
        own[rank].append(number)
        loads[rank] += costs[number]
    for _ in range(world):
        top = max(range(world), key=loads.__getitem__)
        if loads[top] * world <= EVEN * sum(loads):
            break
        more, rank, a, b = min((max(loads[top] + costs[b] - costs[a], loads[rank] + costs[a] - costs[b]), rank, a, b)
                               for rank in range(world) if rank != top for a in own[top] for b in own[rank])
        if more >= loads[top]:
            break
        own[top][own[top].index(a)], own[rank][own[rank].index(b)] = b, a
        loads = [sum(costs[number] for number in numbers) for numbers in own]
    return [sorted(numbers) for numbers in own]


# ---------------------------------------------------------------- reading

class Steps(Dataset):
    """Item: a step of the training. Its value: this process's micro-batches, [(number, samples, batch), ...], as
    `data.assemble` makes them."""

    def __init__(self, mixture: Mixture, numbers, model, state: dict, group, lengths, always, rank: int, world: int,
                 cache=None):
        """group(mixture, samples of a step) -> lists of them, the micro-batches of all processes; lengths(mixture,
        samples): `lengths_of`; cache: what frozen parts make of them (frozen.Cache)."""
        self.mixture, self.stream = mixture, Stream(mixture, numbers, state["seed"])
        self.model = SimpleNamespace(tokenizer=model.tokenizer, config=model.config)        # no weights
        self.first, self.seen, self.batch, self.losses = (state[name] for name in ("step", "seen", "batch", "losses"))
        self.group, self.lengths, self.always, self.cache = group, lengths, always, cache
        self.rank, self.world = rank, world

    def __getitem__(self, step: int) -> list | Exception:
        try:
            return self.read(step)
        except (ValueError, OSError) as error:                      # DataLoader would make a traceback of it
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
    """A worker leaves Ctrl-C and SIGTERM, which all processes get, to the one that trains: it ends its workers."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def same(item):
    return item


def read_ahead(steps: Steps, last: int, workers: int, device):
    """Yields the steps up to `last`, in order, read by `workers` processes ahead of time (0: by this one, when they are
    asked for). Raises ValueError or OSError where a sample cannot be read, OSError where a worker was ended."""
    ahead = {"prefetch_factor": PREFETCH, "worker_init_fn": alone} if workers else {}
    on_end = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None
    reader = iter(DataLoader(steps, batch_size=None, sampler=range(steps.first, last), collate_fn=same,
                             num_workers=workers, pin_memory=device.type == "cuda", generator=torch.Generator(),
                             **ahead))
    if on_end is not None:                      # torch's handler raises wherever this process is: in a save, too
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
