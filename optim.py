"""AdamW whose work is shared out over the processes of a run (ZeRO, stage 1), with float32 master weights.

Every process holds all weights, in the type they are computed in, and owns a share of them: it sums their gradients in
float32, keeps a float32 copy and the two moments, updates, and hands the result to the others. In bfloat16 the copy is
what learns: a step of 2e-6 is lost on weights of 8 bits. 8B parameters on 8 processes need 16 GB for weights, 16 GB for
gradients and 16 GB for the rest on each. On one process in float32 it is torch.optim.AdamW, bit for bit.
"""
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


class SharedAdamW:
    """parts: name -> (rate, {parameter name: parameter}).

    loss.backward(); collect() for each piece of a batch, on every process; then step(factor). Gradients add up over
    pieces and processes: each loss is divided by the count of the whole batch beforehand. clip: the largest norm that
    all gradients together may have.
    """

    def __init__(self, parts: dict, betas=(0.9, 0.95), weight_decay: float = 0.0, clip: float = 1.0):
        rank, world = place()
        self.params = {name: p for _, params in parts.values() for name, p in params.items()}
        self.owner = dict(zip(self.params, share_out([p.numel() for p in self.params.values()], world)))
        self.world, self.clip, self.sums = world, clip, {}
        self.mine = {name: p if p.dtype == torch.float32 else p.detach().float()
                     for name, p in self.params.items() if self.owner[name] == rank}
        groups = [{"params": [self.mine[name] for name in params if name in self.mine], "lr": rate, "rate": rate}
                  for rate, params in parts.values()]
        self.adamw = torch.optim.AdamW(groups, betas=betas, weight_decay=weight_decay)

    def collect(self) -> None:
        """Take the gradients of the last backward pass off the parameters; each owner adds up its own."""
        grads = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in self.params.items()}
        if self.world > 1:
            for handle in [dist.reduce(grad, self.owner[name], async_op=True) for name, grad in grads.items()]:
                handle.wait()
        for name, p in self.params.items():
            p.grad = None
            if name in self.mine:
                grad = grads[name].float()
                self.sums[name] = self.sums[name].add_(grad) if name in self.sums else grad

    def step(self, factor: float) -> float:
        """Update with factor times each part's rate; the norm of all gradients, before clipping. Where it is not a
        number nothing changes."""
        norm = torch.nn.utils.get_total_norm(self.sums.values()).to(next(iter(self.params.values())).device)
        if self.world > 1:
            norm = norm ** 2
            dist.all_reduce(norm)
            norm = norm.sqrt()
        if norm.isfinite():
            scale = (self.clip / (norm + 1e-6)).clamp(max=1)
            for name, master in self.mine.items():
                master.grad = self.sums[name].mul_(scale)
            for group in self.adamw.param_groups:
                group["lr"] = factor * group["rate"]
            self.adamw.step()
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
        """Name -> tensor of what this process owns: "exp_avg.NAME", "exp_avg_sq.NAME", "step.NAME", and "master.NAME"
        where the weights themselves are of another type."""
        tensors = {f"{what}.{name}": value for name, master in self.mine.items()
                   for what, value in self.adamw.state[master].items()}
        masters = {name: master for name, master in self.mine.items() if master is not self.params[name]}
        return tensors | {f"master.{name}": master for name, master in masters.items()}

    @torch.no_grad()
    def load(self, tensors: dict) -> None:
        """Take back what `state` gave, at least of what this process owns now."""
        for name, master in self.mine.items():
            kinds = ("exp_avg", "exp_avg_sq")
            self.adamw.state[master] = {what: tensors[f"{what}.{name}"].to(master.device) for what in kinds}
            self.adamw.state[master]["step"] = tensors[f"step.{name}"].clone()      # AdamW keeps it on the CPU
            if master is not self.params[name]:
                master.copy_(tensors[f"master.{name}"])
