"""What a training writes: the terminal, log.jsonl, and its checkpoint, which is replaced as a whole.

    config.json, model*.safetensors, tokenizer, ...    as `ExOmni.from_pretrained` opens it
    stages.json            the stages it has been through: stage -> steps, rates, best validation, ...
    log.jsonl              a row per logged step, validation and start
    trainer/state.json     the stage, its row of the table, its data, the step it is at
    trainer/optimizer/     moments (and in bfloat16 the float32 weights), by torch.distributed.checkpoint: each process
                           writes its shards, any number of processes reads them
"""
import json
import os
import shutil
import signal
import sys
import time
import warnings
from contextlib import contextmanager
from math import isfinite
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.tensor import DTensor
from tqdm import tqdm

import disk
from data import mixed_rows
from runs import keep_rest, rank_and_world, sibling, sum_over_ranks


def announce(args, state: dict, model, parts: dict, splits, accumulate: int, device) -> None:
    """What is about to be done. parts: name -> its parameters."""
    world, batch = rank_and_world()[1], state["batch"]
    ablated = [part.ablate for part in (model.config.generator, model.config.face) if part.ablate]
    why = "asked for" if args.recipe else f"the language model is {model.config.llm.hidden_size} wide"
    print(f"stage {state['stage']} of {state['recipe']} ({why}): {' + '.join(state['tasks'])} samples, losses "
          f"{' + '.join(state['losses'])}" + (f", without {', '.join(ablated)}" if ablated else ""))
    counts = [len(mixed_rows(split, state["tasks"], replay, state["seed"]))
              for split, replay in zip(splits, (state["replay"], {}))]
    replayed = "".join(f", at most {count} {task} among them" for task, count in state["replay"].items())
    print(f"{counts[0]} samples in {splits[0].directory}{replayed}, {counts[1]} in {splits[1].directory}; "
          f"seed {state['seed']}")
    micro, epochs = batch / world / accumulate, state["steps"] * batch / counts[0]
    print(f"{batch} samples a step = {world} process{'es' * (world > 1)} x micro-batch {micro:.3g} x accumulation "
          f"{accumulate}; {state['steps']} steps, {epochs:.3g} epochs"
          + (f" (accumulation {state['accumulate']} in the table)" if accumulate != state["accumulate"] else ""))
    print(f"{'Muon for matrices, else ' * state['toy']}AdamW, betas 0.9 and 0.95, no weight decay; warm-up over "
          f"{state['warmup']:.0%} of the steps, then a cosine to zero; gradients clipped at norm 1"
          + "; face loss without its velocity term" * (model.config.face.velocity_weight == 0)
          + "; clips in altered voices" * state["toy"])
    for part, own in parts.items():
        print(f"  {part:<10}{sum(p.numel() for p in own.values()):>14,} parameters  "
              + (f"rate {state['rates'][part]:g}" if part in state["rates"] else "frozen"))
    found = "asked for" if args.device != "auto" else "found" if device.type == "cuda" else "no GPU found"
    print(f"{device} ({found}), {state['dtype']} ({'asked for' if args.dtype else 'the default there'})"
          + (f"; goes on after step {state['step']}" if state["step"] else ""))


class Log:
    """log.jsonl and the terminal, from rank 0. A row of training has the means over the steps since the last one. They
    are added up on the device, and nobody waits for it until the row is written."""

    def __init__(self, out: Path, state: dict, device, resumed: bool):
        """A new log.jsonl, or the old one up to the step that was saved last."""
        self.out, self.path, self.device = out, out / "log.jsonl", device
        self.steps, self.saved, first = state["steps"], state["step"], rank_and_world()[0] == 0
        self.bar = tqdm(total=self.steps, initial=state["step"], unit="step", disable=None if first else True)
        self.clear()
        if resumed:
            self.norms, self.count = state["since_log"]["norms"], state["since_log"]["count"]
            self.losses = state["since_log"]["losses"] if first else {}
        if first:
            shutil.rmtree(sibling(out, "new"), ignore_errors=True)
            out.mkdir(parents=True, exist_ok=True)
            rows = self.path.read_text(encoding="utf-8").splitlines(True) if resumed and self.path.exists() else []
            with disk.replacing(self.path) as temporary:
                kept = "".join(row for row in rows if json.loads(row)["step"] <= state["step"])
                temporary.write_text(kept, encoding="utf-8")
        self.write({"step": state["step"], "start": state})

    def clear(self) -> None:
        self.losses, self.norms, self.count = {}, 0.0, 0            # sums over steps, and how many
        self.tokens, self.timed, self.begun = 0.0, 0, time.perf_counter()

    def add(self, losses: dict, norm, tokens: float) -> None:
        """One step. losses: this rank's share; norm and tokens: of all ranks together."""
        self.losses = {name: self.losses.get(name, 0.0) + loss for name, loss in losses.items()}
        self.norms, self.count = self.norms + norm, self.count + 1
        self.tokens, self.timed = self.tokens + tokens, self.timed + 1
        self.bar.update()

    def since(self) -> dict:
        """The steps since the last row, for --resume."""
        losses = sum_over_ranks(self.losses, self.device) if self.losses else {}
        return {"losses": losses, "norms": float(self.norms), "count": self.count}

    def check(self, step: int) -> None:
        """Raises ValueError on rank 0 if a gradient since the last row was not finite; the other ranks exit."""
        if not isfinite(norm := float(self.norms)):
            if rank_and_world()[0]:
                sys.exit(2)
            raise ValueError(f"the gradients' norm is {norm} by step {step}: start again with a lower --lr; "
                             f"{self.out} holds " + (f"step {self.saved}" if self.saved else "no checkpoint yet"))

    @contextmanager
    def pause(self):
        """What is done inside is not training time."""
        begun = time.perf_counter()
        yield
        self.begun += time.perf_counter() - begun

    def training(self, step: int, rates: dict) -> None:
        """The row of the steps since the last one."""
        self.check(step)
        means = {name: loss / self.count for name, loss in sum_over_ranks(self.losses, self.device).items()}
        means["norm"] = float(self.norms) / self.count
        seconds = time.perf_counter() - self.begun
        ms, left = 1000 * seconds / self.timed, round((self.steps - step) * seconds / self.timed)
        row = {"step": step, **means, "rates": rates, "ms": ms, "tokens_per_s": self.tokens / seconds,
               "memory_gib": memory_peak(self.device)}
        self.write(row, f"step {step}/{self.steps}  {show(means)}  rate {show(rates)}  {ms:.0f} ms/step  "
                        f"{row['tokens_per_s']:.0f} tokens/s  peak {row['memory_gib']:.2f} GiB  "
                        f"{left // 60}:{left % 60:02} left")
        self.clear()

    def validation(self, step: int, figures: dict) -> None:
        self.write({"step": step, "val": figures}, f"step {step}  val: {show(figures) or 'no samples'}")

    def write(self, row: dict, line: str = "") -> None:
        if rank_and_world()[0] == 0:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            if line:
                self.bar.write(line)


def conclude(log: Log, state: dict, stages: dict) -> None:
    """The last lines: what there is, and how to go on. stages: those of the recipe."""
    log.bar.close()
    out, stage, best = log.out, state["stage"], state["best"]
    if rank_and_world()[0] == 0 and state["step"] < state["steps"]:
        again = f"python train.py --resume --out {out}" if state["step"] else "the same command, nothing is saved yet"
        print(f"stopped after step {state['step']} of {state['steps']}; go on with: {again}")
    elif rank_and_world()[0] == 0:
        print(f"stage {stage} is done, {state['steps']} steps" + (
            f"; best validation loss {best['loss']:.4g} at step {best['step']}" if best else "")
            + f"; wrote {out}, log in {out / 'log.jsonl'}")
        print(f"try it: python sample.py --checkpoint {out} --text 'Hello'" + (
            f"; next: python train.py --stage {stage + 1} --init-from {out} --data {state['data']} --out ..."
            if stage + 1 in stages else ""))
    if dist.is_initialized():
        dist.barrier()                                              # nobody leaves while another still writes


def show(figures: dict) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in figures.items())


def memory_peak(device) -> float:
    """GiB: of the GPU, else of this process; NaN where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2 ** 30
    try:
        import resource
    except ImportError:                                             # Windows
        return float("nan")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2 ** (30 if sys.platform == "darwin" else 20)


@contextmanager
def interrupts():
    """A list that Ctrl-C (or SIGTERM) fills: the loop looks at it between two steps. Asked again it stops at once, but
    not within two seconds: torchrun passes on what the terminal has sent to every process already."""
    asked, before = [], {}

    def note(number, _):
        if asked and time.monotonic() > asked[0] + 2:
            raise KeyboardInterrupt
        asked.append(time.monotonic())
    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, note)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# ---------------------------------------------------------------- the checkpoint

def optimizer_tensors(parts: dict, adamw, muons: list, state: dict) -> dict:
    """name -> tensor of all that an optimizer step changes and the checkpoint does not hold: the moments and, where the
    checkpoint is in bfloat16, the float32 weights. Zeros before the first step. parts: name -> its parameters."""
    tensors = {f"moment.{name}": moment for _, muon in muons for name, moment in muon.moments.items()}
    names = {p: name for part in state["rates"] for name, p in parts[part].items()}
    for p in (p for group in adamw.param_groups for p in group["params"]):
        if not adamw.state[p]:
            adamw.state[p] = {"step": torch.zeros((), device=p.device), "exp_avg": torch.zeros_like(p),
                              "exp_avg_sq": torch.zeros_like(p)}
        tensors |= {f"{what}.{names[p]}": tensor for what, tensor in adamw.state[p].items()}
    if state["dtype"] != "float32":
        tensors |= {f"weight.{name}": p.detach() for p, name in names.items()}
    return tensors


@contextmanager
def single_process():
    """torch.distributed.checkpoint warns that there is one process: we know."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        yield


def load_optimizer(out: Path, tensors: dict) -> None:
    """Fill name -> tensor, as `save` was given it, with what was saved last."""
    with single_process():
        dcp.load(tensors, checkpoint_id=out / "trainer" / "optimizer", no_dist=not dist.is_initialized())


def whole_weights(model, dtype: torch.dtype) -> dict:
    """name -> tensor on the CPU, on rank 0; each gathered from all ranks in turn."""
    whole = {}
    for name, tensor in model.state_dict().items():
        tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if rank_and_world()[0] == 0:
            whole[name] = tensor.to("cpu", dtype)
    return whole


def save(out: Path, model, state: dict, tensors: dict, log: Log, device) -> None:
    """Write everything to a new directory, then rename it to `out`: at any time there is a whole checkpoint.

    Raises OSError on rank 0, with the old checkpoint untouched; the other ranks exit. ValueError as `Log.check`."""
    log.check(state["step"])
    new, rank, failure = sibling(out, "new"), rank_and_world()[0], None
    whole, state["since_log"] = whole_weights(model, getattr(torch, state["dtype"])), log.since()
    try:
        if rank == 0:
            write(new, model, state, whole)
    except OSError as error:
        failure = error
    failed = sum_over_ranks({"failed": failure is not None}, device)["failed"]
    try:
        if not failed:
            with single_process():
                dcp.save(tensors, checkpoint_id=new / "trainer" / "optimizer", no_dist=not dist.is_initialized())
    except CheckpointException as error:                            # on every rank, with what went wrong on some
        failed, failure = True, next(iter(error.failures.values()))[0]
    if failed:
        if rank:
            sys.exit(2)
        shutil.rmtree(new, ignore_errors=True)
        kept = "the last checkpoint is untouched" if (out / "config.json").exists() else "nothing was saved before"
        raise OSError(f"step {state['step']} could not be saved in {out} ({failure}): {kept}; make room and go on "
                      "from there")
    if rank == 0:
        exchange(out, new)
    model.directory, log.saved = out, state["step"]


def write(directory: Path, model, state: dict, whole: dict) -> None:
    """A checkpoint without the optimizer."""
    done = {name: state[name] for name in ("step", "steps", "recipe", "rates", "batch", "seed", "ablate", "best")}
    directory.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(directory, whole)
    disk.write_json(directory / "stages.json", state["earlier"] | {str(state["stage"]): done})
    disk.write_json(directory / "trainer" / "state.json", state)


def exchange(out: Path, new: Path) -> None:
    """The new directory takes the place of the old one. What the old one has beside the checkpoint is kept."""
    old = sibling(out, "old")
    shutil.rmtree(old, ignore_errors=True)
    os.replace(out, old)
    os.replace(new, out)
    keep_rest(old, out)
