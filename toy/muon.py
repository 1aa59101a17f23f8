"""The optimizer of a run, its work shared out over the processes (ZeRO, stage 1), with float32 master weights.

Every process holds all weights, in the type they are computed in, and owns a share of them: it sums their gradients in
the next wider type (their order then hardly matters: any number of processes makes the same step), keeps a float32 copy
and the two moments, updates, and hands the result to the others. In bfloat16 the copy is what learns: a step of 2e-6 is
lost on weights of 8 bits. 8B parameters on 8 processes need 16 GB for weights, 16 GB for gradients and 16 GB for the
rest on each. On one process in float32 it is torch.optim.AdamW, bit for bit, except for the matrices that Muon is to
train.
"""
from collections import defaultdict

import torch
import torch.distributed as dist


def place() -> tuple:
    """This process's number, and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def add_up(values: dict, device) -> dict:
    """name -> number, the same names on every process -> the sums over the processes."""
    if not dist.is_initialized():
        return values
    tensor = torch.tensor(list(map(float, values.values())), dtype=torch.float64, device=device)
    dist.all_reduce(tensor)
    return dict(zip(values, tensor.tolist()))


def share_out(sizes: list, world: int) -> list:
    """Sizes -> the owner of each, such that every process has about as much: the largest first, to whom has least."""
    loads, owner = [0] * world, [0] * len(sizes)
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        owner[i] = loads.index(min(loads))
        loads[owner[i]] += sizes[i]
    return owner


def wider(p) -> torch.dtype:
    """The type in which the gradients of p are added up; MPS has no float64."""
    return torch.float64 if p.dtype == torch.float32 and p.device.type != "mps" else torch.float32


class Muon:
    """Momentum whose step is made orthogonal (Jordan 2024): all directions of a matrix learn equally fast. Several times
    fewer steps than AdamW for transformers from nothing (docs/log.md).

    torch.optim.Muon does the same in bfloat16 and one matrix at a time, 2.6 times slower on a CPU without bfloat16 units.
    A step's root mean square is rate / 2, about AdamW's.
    """

    def __init__(self, matrices: dict, momentum: float = 0.95, weight_decay: float = 0.01):
        """matrices: name -> parameter (out, in), or a convolution's (out, in, kernel), which is (out, in kernel) here."""
        self.matrices, self.momentum, self.weight_decay = matrices, momentum, weight_decay
        self.moments = {name: torch.zeros_like(p) for name, p in matrices.items()}

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """One step; then the gradients are gone."""
        of_size = defaultdict(list)
        for name, p in self.matrices.items():
            moment = self.moments[name]
            moment.lerp_(p.grad, 1 - self.momentum)
            update = p.grad.lerp(moment, self.momentum).flatten(1)                  # Nesterov's
            wide = update.shape[0] <= update.shape[1]
            of_size[tuple(sorted(update.shape))].append((p, wide, update if wide else update.T))
            p.grad = None
        for (_, longest), updates in of_size.items():
            directions = orthogonal(torch.stack([update for _, _, update in updates]))
            for (p, wide, _), x in zip(updates, directions):
                p.mul_(1 - rate * self.weight_decay).add_((x if wide else x.T).reshape(p.shape),
                                                             alpha=-0.5 * rate * longest ** 0.5)


def orthogonal(x) -> torch.Tensor:
    """(N, r, c) with r <= c -> about the nearest matrices with orthonormal rows, by five of Newton and Schulz's steps with
    Jordan's coefficients: singular values end between 0.7 and 1.2.

    A step multiplies x by a polynomial of x x^T: of those (r, r) matrices alone several are the same in fewer products.
    Not all five: rounding errors of x x^T grow twelvefold in each where the singular values are small."""
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


class SharedOptimizer:
    """parts: name -> (rate, {parameter name: parameter}). matrices: the names of those that Muon trains, AdamW all others.

    loss.backward(); collect() for each piece of a batch, on every process; then step(factor). Gradients add up over
    pieces and processes: each loss is divided by the count of the whole batch beforehand. clip: the largest norm that
    all gradients together may have.
    """

    def __init__(self, parts: dict, betas=(0.9, 0.95), weight_decay: float = 0.0, clip: float = 1.0, matrices=()):
        rank, world = place()
        self.params = {name: p for _, params in parts.values() for name, p in params.items()}
        self.owner = dict(zip(self.params, share_out([p.numel() for p in self.params.values()], world)))
        self.world, self.clip, self.sums = world, clip, {}
        self.mine = {name: p if p.dtype == torch.float32 else p.detach().float()
                     for name, p in self.params.items() if self.owner[name] == rank}
        groups = [{"params": [self.mine[name] for name in params if name in self.mine and name not in matrices],
                   "lr": rate, "rate": rate} for rate, params in parts.values()]
        self.adamw = torch.optim.AdamW(groups, betas=betas, weight_decay=weight_decay)
        self.muons = [(rate, Muon({name: self.mine[name] for name in params if name in self.mine and name in matrices},
                                  weight_decay=weight_decay)) for rate, params in parts.values()]

    def collect(self) -> None:
        """Take the gradients of the last backward pass off the parameters; each owner adds up its own."""
        for name, p in self.params.items():
            grad, p.grad = torch.zeros_like(p) if p.grad is None else p.grad, None
            if self.world > 1:
                grad = grad.to(wider(p))
                dist.reduce(grad, self.owner[name])
            if name in self.mine:
                self.sums[name] = self.sums[name].add_(grad) if name in self.sums else grad.to(wider(p))

    def step(self, factor: float) -> float:
        """Update with factor times each part's rate; the norm of all gradients, before clipping. Where it is not a
        number nothing changes."""
        first = next(iter(self.params.values()))
        norm = torch.nn.utils.get_total_norm(self.sums.values()).to(first.device, wider(first))
        if self.world > 1:
            norm = norm ** 2
            dist.all_reduce(norm)
            norm = norm.sqrt()
        if norm.isfinite():
            scale = (self.clip / (norm + 1e-6)).clamp(max=1)
            for name, master in self.mine.items():
                master.grad = self.sums[name].mul_(scale).float()
            for group in self.adamw.param_groups:
                group["lr"] = factor * group["rate"]
            self.adamw.step()
            for rate, muon in self.muons:
                muon.step(factor * rate)
            self.adamw.zero_grad()
            self.hand_out()
        self.sums = {}
        return norm.item()

    @torch.no_grad()
    def hand_out(self) -> None:
        """Each owner's weights to everybody."""
        for name, p in self.params.items():
            if name in self.mine and self.mine[name] is not p:
                p.copy_(self.mine[name])
        if self.world > 1:
            for handle in [dist.broadcast(p.data, self.owner[name], async_op=True) for name, p in self.params.items()]:
                handle.wait()

    def state(self) -> dict:
        """Name -> tensor of what this process owns: "exp_avg.NAME", "exp_avg_sq.NAME", "step.NAME", or "moment.NAME" of
        Muon, and "master.NAME" where the weights themselves are of another type."""
        tensors = {f"{what}.{name}": value for name, master in self.mine.items() if master in self.adamw.state
                   for what, value in self.adamw.state[master].items()}
        tensors |= {f"moment.{name}": moment for _, muon in self.muons for name, moment in muon.moments.items()}
        masters = {name: master for name, master in self.mine.items() if master is not self.params[name]}
        return tensors | {f"master.{name}": master for name, master in masters.items()}

    @torch.no_grad()
    def load(self, tensors: dict) -> None:
        """Take back what `state` gave, at least of what this process owns now."""
        moments = {name: moment for _, muon in self.muons for name, moment in muon.moments.items()}
        for name, master in self.mine.items():
            if name in moments:
                moments[name].copy_(tensors[f"moment.{name}"])
            else:
                kinds = ("exp_avg", "exp_avg_sq")
                self.adamw.state[master] = {what: tensors[f"{what}.{name}"].to(master.device) for what in kinds}
                self.adamw.state[master]["step"] = tensors[f"step.{name}"].clone()  # AdamW keeps it on the CPU
            if master is not self.params[name]:
                master.copy_(tensors[f"master.{name}"])
