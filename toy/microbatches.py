"""Micro-batches for a world of short samples, where most of the work is padding (train.py, mini recipe)."""
from contextlib import contextmanager

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule

from data import Split, by_length
from toy.muon import local

PROMPT_UNITS = 50      # a sample's prompt and question take about as long as that many units


def like_length(split: Split, rows, count: int) -> list:
    """rows cut into `count` lists by length, such that the squares of what they cost (samples times the longest one's
    length) add up to the least: little padding, and no micro-batch much larger than the others.

    By dynamic programming: best[j] is the least for the first j rows in as many lists as were cut so far."""
    rows = by_length(split, rows)
    lengths = np.array([PROMPT_UNITS + split.rows[i].get("units", (0, 0))[1] for i in rows])
    best, begins = np.append(0.0, np.full(len(rows), np.inf)), []
    for _ in range(count):
        costs = [best[:j] + ((j - np.arange(j)) * lengths[j - 1]) ** 2.0 for j in range(1, len(rows) + 1)]
        begins.append([0, *(int(cost.argmin()) for cost in costs)])     # of the last list of the first j rows
        best = np.append(np.inf, [cost.min() for cost in costs])
    ends = [len(rows)]
    for begin in reversed(begins):
        ends.append(begin[ends[-1]])
    ends.reverse()
    return [rows[i:j] for i, j in zip(ends, ends[1:])]


class Float64Sums:
    """Adds up the gradients of a step's micro-batches, and their squares for clipping, in float64 and rounds the sum
    once: then it is the same however many processes share them. Muon makes rounding errors larger, up to 485 times
    (toy/muon.py, `orthogonal`): without, the losses of stage I are 1.6e-4 apart after 20 steps.

    Under FSDP2 each process sums its own until the last, and the processes' sums are added with reduce_dtype float64.
    """

    def __init__(self, model, trained: list):
        """trained: the parameters."""
        self.sums, mps = {}, trained[0].device.type == "mps"
        self.wide = torch.float32 if mps else torch.float64         # MPS has no float64
        self.sharded = [module for module in model.modules()
                        if isinstance(module, FSDPModule) and any(p.requires_grad for p in module.parameters())]
        for p in () if self.sharded or mps else trained:
            p.register_post_accumulate_grad_hook(self.add)

    def add(self, p) -> None:
        self.sums[p] = self.sums[p].add_(p.grad) if p in self.sums else p.grad.double()
        p.grad = None

    @contextmanager
    def micro_batch(self, last: bool):
        """Around each backward pass; after the last the parameters have their gradients."""
        for module in self.sharded:
            module.set_requires_gradient_sync(last, recurse=False)
        yield
        if last:
            for p, total in self.sums.items():
                p.grad = total.to(p.dtype)
            self.sums = {}

    def clip(self, trained: list):
        """As torch.nn.utils.clip_grad_norm_ with norm 1."""
        squares = sum(local(p.grad).to(self.wide).square().sum() for p in trained)
        if self.sharded:
            dist.all_reduce(squares)
        norm = squares.sqrt().float()
        for p in trained:
            local(p.grad).mul_((1 / (norm + 1e-6)).clamp(max=1))
        return norm
