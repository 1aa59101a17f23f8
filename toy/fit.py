"""One training loop for the parts of the mini preset that are trained from scratch (pretrain.py).

fit(part, module, loss, steps, rate, folder): AdamW, and Muon for the given matrices, warm-up, cosine decay, a log, and
a state file from which interrupted training resumes exactly. The four stages of Ex-Omni have their own loop: train.py.
"""
import json
import time
from math import cos, isfinite, pi
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from tqdm import tqdm

import weights
from toy.muon import Muon

SAVE_SECONDS = 60
LOG_STEPS = 20


def warmup_cosine(step: int, steps: int, warmup: int) -> float:
    """Share of the peak learning rate at a step: linear warm-up, then cosine decay to zero."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 + 0.5 * cos(pi * (step - warmup) / max(steps - warmup, 1))


def fit(part: str, module: nn.Module, loss, steps: int, rate: float, folder, warmup: int = 100, betas=(0.9, 0.98),
        weight_decay: float = 0.01, clip: float = 1.0, seed: int = 0, matrices=()) -> None:
    """Minimise `loss` over module's parameters: those in `matrices` (of layers and convolutions, not embeddings) with
    Muon, all others with AdamW. Every LOG_STEPS steps, means since the last line are appended to folder/log.jsonl.

    loss(step, generator) -> (scalar tensor, {name: number or tensor to log}). rate: the peak learning rate.
    All randomness of a step comes from the generator, seeded by the step, so that resumed training equals uninterrupted
    training. folder/<part>.state.safetensors holds parameters, buffers and optimizer states; it is removed at the end.
    Raises ValueError if that file belongs to a module of another size.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state_path, parameters = folder / f"{part}.state.safetensors", [p for p in module.parameters() if p.requires_grad]
    muon = Muon({str(i): p for i, p in enumerate(matrices)})
    optimizer = torch.optim.AdamW([p for p in parameters if not any(p is m for m in matrices)], lr=rate, betas=betas,
                                  weight_decay=weight_decay)
    first = restore(state_path, module, optimizer, muon) if state_path.exists() else 0
    generator, saved, sums, since = torch.Generator(), time.monotonic(), {}, first
    cpu = time.process_time()

    def save(step):
        weights.write_tensors(state_path, state_of(module, optimizer, muon) | {"step": torch.tensor(step)})

    bar = tqdm(range(first, steps), initial=first, total=steps, desc=part, disable=None)
    step = first
    try:
        for step in bar:
            learning_rate = rate * warmup_cosine(step, steps, warmup)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
            value, parts = loss(step, generator.manual_seed(seed * 1_000_003 + step))
            module.zero_grad(set_to_none=True)
            value.backward()
            norm = nn.utils.clip_grad_norm_(parameters, clip)
            if norm.isfinite():
                optimizer.step()
                muon.step(learning_rate)
            else:
                print(f"\n{part}, step {step + 1}: the gradient is {norm.item()}, nothing was changed")
            for name, number in ({"loss": value, "gradient": norm} | parts).items():
                sums[name] = sums.get(name, 0.0) + float(torch.as_tensor(number).detach())
            if (step + 1) % LOG_STEPS == 0 or step + 1 == steps:
                means = {name: round(total / (step + 1 - since), 5) if isfinite(total) else None
                         for name, total in sums.items()}                   # json has no nan
                with open(folder / "log.jsonl", "a", encoding="utf-8") as log:
                    log.write(json.dumps({"part": part, "step": step + 1, "steps": steps, **means,
                                          "cpu_s": round(time.process_time() - cpu, 1)}) + "\n")
                bar.set_postfix(means)
                sums, since = {}, step + 1
            if time.monotonic() - saved > SAVE_SECONDS:
                save(step + 1)
                saved = time.monotonic()
    except KeyboardInterrupt:
        print(f"\ninterrupted in {part} at step {step} of {steps}: the same command goes on from the last save")
        raise
    state_path.unlink(missing_ok=True)


def state_of(module, optimizer, muon) -> dict:
    """The named tensors from which training can resume."""
    tensors = {f"module.{name}": tensor for name, tensor in module.state_dict().items()}
    tensors |= {f"muon.{name}": moment for name, moment in muon.moments.items()}
    for i, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{name}": torch.as_tensor(value) for name, value in state.items()}
    return tensors


def restore(path, module, optimizer, muon) -> int:
    """Load a saved `state_of`. Returns the step to resume at. Raises ValueError for a module of another size."""
    tensors = load_file(path)
    try:
        module.load_state_dict({name[7:]: t for name, t in tensors.items() if name.startswith("module.")})
        muon.moments = {name: tensors[f"muon.{name}"] for name in muon.moments}
    except (RuntimeError, KeyError) as error:
        raise ValueError(f"{path} belongs to a run of another size: remove it to start over "
                         f"({str(error).splitlines()[-1].strip()})") from None
    saved = optimizer.state_dict()
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, i, key = name.split(".")
            saved["state"].setdefault(int(i), {})[key] = tensor
    optimizer.load_state_dict(saved)
    return int(tensors["step"])
