"""Micro-batches of similar length, for short samples: else most of the work is padding (train.py, mini recipe)."""
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule

from data import by_length
from loading import cut
from toy.muon import local

PROMPT_UNITS = 50      # the cost of a sample's prompt and question, expressed in units


def like_length(split, rows, count: int) -> list:
    """rows of a Split or a Mixture -> `count` lists of samples of similar length (`loading.cut`)."""
    rows = by_length(split, rows)
    lengths = PROMPT_UNITS + split.column("units length", rows).clip(0)
    return [rows[begin:end] for begin, end in cut(lengths[:, None], count)]


class Float64Sums:
    """Sums the gradients of a step's micro-batches, and their squares for clipping, in float64 and rounds once: the
    result does not depend on the number of processes. Muon amplifies rounding errors, up to 485 times (toy/muon.py,
    `orthogonal`): with float32 sums the losses of stage I differ by 1.6e-4 after 20 steps.

    Under FSDP2 each process sums its own gradients; after the last micro-batch they are reduced in float64.
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
        """Context of each backward pass; after the last one the parameters have their gradients."""
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
