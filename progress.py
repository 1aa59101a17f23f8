"""The output of a training: on the terminal, in log.jsonl, and the files of its checkpoint (written by saving.py).

    config.json, model*.safetensors, tokenizer, ...    as `ExOmni.from_pretrained` opens it
    stages.json            the stages trained so far: stage -> steps, rates, best validation, ...
    log.jsonl              a row per logged step, validation and start
    trainer/state.json     the stage with its settings, the data, the current step (runs.State)
    trainer/optimizer/     moments (and in bfloat16 the float32 weights), by torch.distributed.checkpoint: each process
                           writes its shards, any number of processes can read them
    previous/              the checkpoint saved before this one
"""
import json
import signal
import sys
import time
from contextlib import contextmanager
from math import isfinite

import torch
import torch.distributed as dist
from tqdm import tqdm

import disk
from loading import Stream
from ranks import rank_and_world, stop_if_any_failed, sum_over_ranks

PATIENCE = 10           # the training stops after so many steps in a row with gradients that are not finite


def announce(args, state: dict, model, parts: dict, splits, accumulate: int, device) -> None:
    """Print the effective settings. parts: name -> its parameters. splits: (mixture, samples, skipped) of training and
    of validation, from `runs.open_training`."""
    world, batch = rank_and_world()[1], state["batch"]
    ablated = [part.ablate for part in (model.config.generator, model.config.face) if part.ablate]
    why = "asked for" if args.recipe else f"the language model is {model.config.llm.hidden_size} wide"
    print(f"stage {state['stage']} of {state['recipe']} ({why}): {' + '.join(state['tasks'])} samples, losses "
          f"{' + '.join(state['losses'])}" + (f", without {', '.join(ablated)}" if ablated else ""))
    (training, numbers, _), (validation, val_numbers, _) = splits
    replayed = "".join(f", at most {count} {task} among them" for task, count in state["replay"].items())
    print(f"{len(numbers)} samples in {training}{replayed}, {len(val_numbers)} in {validation}; seed {state['seed']}")
    for mixture, _, skipped in splits:
        for reason, (count, first) in skipped.items():
            print(f"left out of {mixture}: {count} {reason}; the first: {first}")
    micro, epochs = batch / world / accumulate, state["steps"] * batch / len(Stream(training, numbers, state["seed"]))
    print(f"{batch} samples a step = {world} process{'es' * (world > 1)} x micro-batch {micro:.3g} x accumulation "
          f"{accumulate}; {state['steps']} steps, {epochs:.3g} epochs"
          + (f" (accumulation {state['accumulate']} in the table)" if accumulate != state["accumulate"] else "")
          + ("" if state["toy"] else "; smaller ones where lengths differ"
             + (f" or above {state['tokens']} tokens" if state["tokens"] else "")))
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
    if state["changed"]:
        print(f"from there on: {state['changed']}; {state['steps']} steps as before")


class Log:
    """Writes log.jsonl and the terminal's lines, on rank 0. A training row has means over the steps since the last row,
    without skipped ones. The sums stay on the device: it is synchronized only when a row is written."""

    def __init__(self, saver, state: dict, device, resumed: bool):
        """Starts a new log.jsonl in OUT, or cuts the old one after the last saved step. Nothing is written before the
        first step is done, so that a training that fails to start leaves no log. saver: `saving.Saver`."""
        self.saver, self.out, self.path, self.device = saver, saver.out, saver.out / "log.jsonl", device
        self.steps, first = state["steps"], rank_and_world()[0] == 0
        self.bar = tqdm(total=self.steps, initial=state["step"], unit="step", disable=None if first else True)
        self.in_a_row = torch.zeros((), device=device)              # consecutive skipped steps up to now
        self.clear()
        if resumed:
            for name in ("norms", "count", "skipped", "in_a_row"):
                setattr(self, name, getattr(self, name) + state["since_log"][name])
            self.losses = state["since_log"]["losses"] if first else {}
        rows = disk.read_bytes(self.path, "a log").splitlines(True) if resumed and self.path.exists() else []
        rows = [row for row in rows if step_of(row) <= state["step"]]
        self.first_rows = rows, {"step": state["step"], "start": dict(state)}

    def clear(self) -> None:
        """Reset the sums, counts and times of the next row. `timed` leaves out steps before a resume."""
        self.losses, self.norms, self.count, self.skipped = {}, 0.0, 0, torch.zeros((), device=self.device)
        self.tokens, self.timed, self.waited, self.start = 0.0, 0, 0.0, time.perf_counter()

    def reading(self, reader):
        """Yields the reader's items, and measures the time spent waiting for them."""
        while True:
            start = time.perf_counter()
            item = next(reader, None)
            self.waited += time.perf_counter() - start
            if item is None:
                return
            yield item

    def add(self, losses: dict, norm, tokens: float) -> None:
        """Add one step. losses: this rank's share. norm, tokens: of all ranks together. The step was skipped if the
        norm is not finite."""
        if self.first_rows:
            (rows, start), self.first_rows = self.first_rows, None
            if rank_and_world()[0] == 0:
                with disk.replacing(self.path) as temporary:
                    temporary.write_bytes(b"".join(rows))
            self.write(start)
        skipped = ~norm.isfinite()
        unless_skipped = lambda value: torch.where(skipped, 0, value)
        self.losses = {name: self.losses.get(name, 0.0) + unless_skipped(loss) for name, loss in losses.items()}
        self.norms, self.count = self.norms + unless_skipped(norm), self.count + 1
        self.skipped, self.in_a_row = self.skipped + skipped, (self.in_a_row + 1) * skipped
        self.tokens, self.timed = self.tokens + tokens, self.timed + 1
        self.bar.update()

    def since(self) -> dict:
        """The totals since the last row (runs.SinceLog), for --resume."""
        losses = sum_over_ranks(self.losses, self.device) if self.losses else {}
        return {"losses": losses, "norms": float(self.norms), "count": self.count, "skipped": int(self.skipped),
                "in_a_row": int(self.in_a_row)}

    def check(self, step: int, in_a_row: float) -> None:
        """Raises ValueError on all ranks where too many steps in a row were skipped."""
        if in_a_row >= PATIENCE:
            self.give_up(f"the gradients were not finite in {PATIENCE} steps in a row, up to step {step}",
                         "the weights of --init-from or the data may hold NaN: fetch or make them again"
                         if step == PATIENCE else "start again with a lower --lr")

    def give_up(self, why: str, advice: str = "start again with a lower --lr") -> None:
        """Raises ValueError, on all ranks together, after finishing the save in progress."""
        self.saver.finish()
        stop_if_any_failed(ValueError(f"{why}: {advice}; {self.out} holds "
                                      + (f"step {self.saver.saved}" if self.saver.saved else "no checkpoint yet")))

    @contextmanager
    def pause(self):
        """The time inside does not count as training time."""
        start = time.perf_counter()
        yield
        self.start += time.perf_counter() - start

    def training(self, step: int, rates: dict) -> None:
        """Write the row of the steps since the last one."""
        skipped = int(self.skipped)
        done = self.count - skipped
        means = {name: loss / done for name, loss in sum_over_ranks(self.losses, self.device).items() if done}
        if done:
            means["norm"] = float(self.norms) / done
        seconds = time.perf_counter() - self.start
        ms, left = 1000 * seconds / self.timed, round((self.steps - step) * seconds / self.timed)
        row = {"step": step, **means, "rates": rates, "ms": ms, "tokens_per_s": self.tokens / seconds,
               "waiting": self.waited / seconds, "memory_gib": memory_peak(self.device)}
        row |= {"skipped": skipped} if skipped else {}
        self.write(row, f"step {step}/{self.steps}  {show(means)}  rate {show(rates)}  {ms:.0f} ms/step  "
                        f"{row['tokens_per_s']:.0f} tokens/s  {row['waiting']:.0%} waiting for data  "
                        f"peak {row['memory_gib']:.2f} GiB  "
                        f"{left // 60}:{left % 60:02} left"
                        + (f"  skipped {skipped} of {self.count} steps: gradients not finite" if skipped else ""))
        self.clear()

    def validation(self, step: int, figures: dict) -> None:
        """Write a validation row. Raises ValueError, on all ranks, where that of the last step is not finite."""
        self.write({"step": step, "val": figures}, f"step {step}  val: {show(figures) or 'no samples'}")
        if step == self.steps and not all(map(isfinite, figures.values())):
            self.give_up(f"the validation at the end, step {step}, is not finite")

    def write(self, row: dict, line: str = "") -> None:
        if rank_and_world()[0] == 0:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(without_nan(row), allow_nan=False) + "\n")
            if line:
                self.bar.write(line)


def conclude(log: Log, state: dict, stages: dict) -> None:
    """Print the last lines: the result, and the next command. stages: those of the recipe."""
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
            f"; next: python train.py --stage {stage + 1} --init-from {out} "
            f"--data {' --data '.join(state['data'])} --out ..."
            if stage + 1 in stages else ""))
    if dist.is_initialized():
        dist.barrier()                                              # no rank exits while another still writes


def without_nan(value):
    """A row with None for numbers that are not finite, which json does not have."""
    if isinstance(value, dict):
        return {name: without_nan(item) for name, item in value.items()}
    return None if isinstance(value, float) and not isfinite(value) else value


def step_of(row: bytes) -> float:
    """The step of a row of log.jsonl; infinity for an incomplete row, as after a power cut, or an invalid one."""
    try:
        step = json.loads(row)["step"]
    except (ValueError, LookupError, TypeError, RecursionError):
        step = None
    return step if isinstance(step, int) and row.endswith(b"\n") else float("inf")


def show(figures: dict) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in figures.items())


def memory_peak(device) -> float:
    """Peak memory in GiB, of the GPU or else of this process; NaN on Windows."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2 ** 30
    try:
        import resource
    except ImportError:                                             # Windows
        return float("nan")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2 ** (30 if sys.platform == "darwin" else 20)


@contextmanager
def interrupts():
    """Yields a list of the times of Ctrl-C and SIGTERM, which the training loop checks after each step. A second signal
    stops at once (a save is still finished), unless within two seconds of the first: torchrun sends a Ctrl-C once more
    to its processes, which already got it from the terminal."""
    times, handlers = [], {}

    def note(number, _):
        if times and time.monotonic() > times[0] + 2:
            raise KeyboardInterrupt
        times.append(time.monotonic())
    for number in (signal.SIGINT, signal.SIGTERM):
        handlers[number] = signal.signal(number, note)
    try:
        yield times
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def optimizer_tensors(parts: dict, adamw, muons: list, state: dict) -> dict:
    """name -> tensor, for what an optimizer step changes beside the checkpoint's weights: the moments (zeros before the
    first step) and, where the checkpoint is in bfloat16, the float32 weights. parts: name -> its parameters."""
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
