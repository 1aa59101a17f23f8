"""What a training writes: the terminal, log.jsonl, and its checkpoint, which is replaced as a whole (saving.py).

    config.json, model*.safetensors, tokenizer, ...    as `ExOmni.from_pretrained` opens it
    stages.json            the stages it has been through: stage -> steps, rates, best validation, ...
    log.jsonl              a row per logged step, validation and start
    trainer/state.json     the stage, its row of the table, its data, the step it is at (runs.State)
    trainer/optimizer/     moments (and in bfloat16 the float32 weights), by torch.distributed.checkpoint: each process
                           writes its shards, any number of processes reads them
    previous/              the checkpoint that was saved before this one
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
from ranks import agree, rank_and_world, sum_over_ranks

PATIENCE = 10           # steps in a row whose gradient is not finite: then it does not get better by itself


def announce(args, state: dict, model, parts: dict, chosen, accumulate: int, device) -> None:
    """What is about to be done. parts: name -> its parameters; chosen: of training and validation, as
    `runs.open_training` has it."""
    world, batch = rank_and_world()[1], state["batch"]
    ablated = [part.ablate for part in (model.config.generator, model.config.face) if part.ablate]
    why = "asked for" if args.recipe else f"the language model is {model.config.llm.hidden_size} wide"
    print(f"stage {state['stage']} of {state['recipe']} ({why}): {' + '.join(state['tasks'])} samples, losses "
          f"{' + '.join(state['losses'])}" + (f", without {', '.join(ablated)}" if ablated else ""))
    (training, numbers, _), (validation, checked, _) = chosen
    replayed = "".join(f", at most {count} {task} among them" for task, count in state["replay"].items())
    print(f"{len(numbers)} samples in {training}{replayed}, {len(checked)} in {validation}; seed {state['seed']}")
    for mixture, _, skipped in chosen:
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
    """log.jsonl and the terminal, from rank 0. A row of training has the means over the steps since the last one, but
    for those that were skipped. They are added up on the device, and nobody waits for it until the row is written."""

    def __init__(self, saver, state: dict, device, resumed: bool):
        """A new log.jsonl in OUT, or the old one up to the step that was saved last; written when the first step is
        done: a training that is refused leaves none. saver: `saving.Saver`."""
        self.saver, self.out, self.path, self.device = saver, saver.out, saver.out / "log.jsonl", device
        self.steps, first = state["steps"], rank_and_world()[0] == 0
        self.bar = tqdm(total=self.steps, initial=state["step"], unit="step", disable=None if first else True)
        self.in_a_row = torch.zeros((), device=device)              # steps skipped up to now, without one in between
        self.clear()
        if resumed:
            for name in ("norms", "count", "skipped", "in_a_row"):
                setattr(self, name, getattr(self, name) + state["since_log"][name])
            self.losses = state["since_log"]["losses"] if first else {}
        rows = disk.read_bytes(self.path, "a log").splitlines(True) if resumed and self.path.exists() else []
        rows = [row for row in rows if step_of(row) <= state["step"]]
        self.begin = rows, {"step": state["step"], "start": dict(state)}

    def clear(self) -> None:
        """Sums over steps, how many there were, and how many of them were skipped."""
        self.losses, self.norms, self.count, self.skipped = {}, 0.0, 0, torch.zeros((), device=self.device)
        self.tokens, self.timed, self.waited, self.begun = 0.0, 0, 0.0, time.perf_counter()

    def reading(self, reader):
        """Yields what the reader does, and counts how long that takes."""
        while True:
            begun = time.perf_counter()
            read = next(reader, None)
            self.waited += time.perf_counter() - begun
            if read is None:
                return
            yield read

    def add(self, losses: dict, norm, tokens: float) -> None:
        """One step. losses: this rank's share; norm and tokens: of all ranks together. A norm that is not finite: the
        step was skipped."""
        if self.begin:
            (rows, start), self.begin = self.begin, None
            if rank_and_world()[0] == 0:
                with disk.replacing(self.path) as temporary:
                    temporary.write_bytes(b"".join(rows))
            self.write(start)
        bad = ~norm.isfinite()
        only = lambda value: torch.where(bad, 0, value)
        self.losses = {name: self.losses.get(name, 0.0) + only(loss) for name, loss in losses.items()}
        self.norms, self.count = self.norms + only(norm), self.count + 1
        self.skipped, self.in_a_row = self.skipped + bad, (self.in_a_row + 1) * bad
        self.tokens, self.timed = self.tokens + tokens, self.timed + 1
        self.bar.update()

    def since(self) -> dict:
        """The steps since the last row, for --resume."""
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
        """Raises ValueError, on all ranks together; the save under way still gets to the disk."""
        self.saver.finish()
        agree(ValueError(f"{why}: {advice}; {self.out} holds "
                         + (f"step {self.saver.saved}" if self.saver.saved else "no checkpoint yet")))

    @contextmanager
    def pause(self):
        """What is done inside is not training time."""
        begun = time.perf_counter()
        yield
        self.begun += time.perf_counter() - begun

    def training(self, step: int, rates: dict) -> None:
        """The row of the steps since the last one."""
        skipped = int(self.skipped)
        done = self.count - skipped
        means = {name: loss / done for name, loss in sum_over_ranks(self.losses, self.device).items() if done}
        if done:
            means["norm"] = float(self.norms) / done
        seconds = time.perf_counter() - self.begun
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
        """Raises ValueError, on all ranks, where the last one is no number: then the training is worth nothing."""
        self.write({"step": step, "val": figures}, f"step {step}  val: {show(figures) or 'no samples'}")
        if step == self.steps and not all(map(isfinite, figures.values())):
            self.give_up(f"the validation at the end, step {step}, is not finite")

    def write(self, row: dict, line: str = "") -> None:
        if rank_and_world()[0] == 0:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(written(row), allow_nan=False) + "\n")
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
            f"; next: python train.py --stage {stage + 1} --init-from {out} "
            f"--data {' --data '.join(state['data'])} --out ..."
            if stage + 1 in stages else ""))
    if dist.is_initialized():
        dist.barrier()                                              # nobody leaves while another still writes


def written(value):
    """A row with null for what is not finite: json knows no NaN."""
    if isinstance(value, dict):
        return {name: written(item) for name, item in value.items()}
    return None if isinstance(value, float) and not isfinite(value) else value


def step_of(row: bytes) -> float:
    """The step of a row of log.jsonl; infinity for a torn one, which a power cut may leave, and for what is no row."""
    try:
        step = json.loads(row)["step"]
    except (ValueError, LookupError, TypeError, RecursionError):
        step = None
    return step if isinstance(step, int) and row.endswith(b"\n") else float("inf")


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
    """A list that Ctrl-C (or SIGTERM) fills: the loop looks at it between two steps. Asked again it stops at once (a
    save is still written), but not within two seconds: torchrun passes on what the terminal has sent to every process
    already."""
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
