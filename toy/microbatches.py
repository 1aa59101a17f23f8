"""Micro-batches for a world of short samples, where most of the work is padding (train.py, mini recipe)."""
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule

from data import by_length
from loading import cut
from toy.muon import local

PROMPT_UNITS = 50      # a sample's prompt and question take about as long as that many units


def like_length(split, rows, count: int) -> list:
    """rows of a Split or a Mixture in `count` lists of like length (`loading.cut`)."""
    rows = by_length(split, rows)
    lengths = PROMPT_UNITS + split.column("units length", rows).clip(0)
    return [rows[begin:end] for begin, end in cut(lengths[:, None], count)]


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
