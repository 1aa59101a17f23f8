"""Muon, the optimizer of the mini model's matrices. Its other parameters, and all of the paper's stages, use AdamW.

Under FSDP2 (train.py on several processes) parameters, gradients and momentum are DTensors, sharded over the processes.
Momentum is updated shard by shard; for the orthogonal step whole matrices are gathered.
"""
from collections import defaultdict

import torch
from torch.distributed.tensor import DTensor, distribute_tensor

# Matrices that AdamW trains: embeddings and output layers, and the widest of the speech generator, whose orthogonal
# step would cost as much as those of all others together.
NOT_FOR_MUON = ("embed", "lm_head", "llm_decoder", "out_head", "input_proj.2")


def for_muon(name: str, parameter) -> bool:
    """Whether Muon trains this parameter of ExOmni."""
    return parameter.ndim == 2 and not any(part in name for part in NOT_FOR_MUON)


class Muon:
    """SGD with momentum whose update is orthogonalised (Jordan 2024): all directions of a matrix learn equally fast.
    Needs several times fewer steps than AdamW for transformers trained from scratch (docs/log.md).

    torch.optim.Muon does the same in bfloat16 and one matrix at a time, 2.6 times slower on a CPU without bfloat16
    units. The root mean square of an update is rate / 2, about that of AdamW.
    """

    def __init__(self, matrices: dict, momentum: float = 0.95, weight_decay: float = 0.01):
        """matrices: name -> parameter (out, in), or (out, in, kernel) of a convolution, used as (out, in kernel)."""
        self.matrices, self.momentum, self.weight_decay = matrices, momentum, weight_decay
        self.moments = {name: torch.zeros_like(p) for name, p in matrices.items()}

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """One step. Sets the gradients to None."""
        of_size = defaultdict(list)
        for name, p in self.matrices.items():
            gradient, moment = local(p.grad), local(self.moments[name])
            moment.lerp_(gradient, 1 - self.momentum)
            update = gathered(gradient.lerp(moment, self.momentum), p).flatten(1)   # Nesterov momentum
            wide = update.shape[0] <= update.shape[1]
            of_size[tuple(sorted(update.shape))].append((p, wide, update if wide else update.T))
            p.grad = None
        for (_, longest), updates in of_size.items():
            directions = orthogonal(torch.stack([update for _, _, update in updates]))
            for (p, wide, _), x in zip(updates, directions):
                x = shard_of((x if wide else x.T).reshape(p.shape), p)
                local(p).mul_(1 - rate * self.weight_decay).add_(x, alpha=-0.5 * rate * longest ** 0.5)


def local(tensor) -> torch.Tensor:
    """This process's shard of a DTensor; other tensors as they are."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gathered(shard, p) -> torch.Tensor:
    """This process's shard of a tensor that is sharded as p -> the whole tensor."""
    if not isinstance(p, DTensor):
        return shard
    return DTensor.from_local(shard, p.device_mesh, p.placements, shape=p.shape, stride=p.stride()).full_tensor()


def shard_of(whole, p) -> torch.Tensor:
    """A whole tensor -> this process's shard, sharded as p."""
    if not isinstance(p, DTensor):
        return whole
    return distribute_tensor(whole, p.device_mesh, p.placements, src_data_rank=None).to_local()


def orthogonal(x) -> torch.Tensor:
    """(B, r, c) with r <= c -> approximately the nearest matrices with orthonormal rows, by five Newton-Schulz steps
    with Jordan's coefficients: singular values end between 0.7 and 1.2.

    A step multiplies x by a polynomial of x x^T. Two or three steps are computed on these (r, r) matrices alone, which
    is cheaper; not all five, because small singular values amplify rounding errors of x x^T twelvefold per step."""
    def factor(square):
        p = torch.baddbmm(square, square, square, beta=-4.7750, alpha=2.0315)
        p.diagonal(dim1=1, dim2=2).add_(3.4445)
        return p

    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for more in (1, 2):
        square = x @ x.mT
        product = p = factor(square)
        for _ in range(more):
            square = p @ square @ p
            p = factor(square)
            product = p @ product
        x = product @ x
    return x
