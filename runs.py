"""The directory of a training run: a checkpoint that is replaced as a whole, its log, and what --resume needs.

    config.json, model*.safetensors, tokenizer, ...    as `ExOmni.from_pretrained` opens it
    stages.json                      the stages it has been through: stage -> steps, rates, best validation, ...
    log.jsonl                        a row per logged step, validation and start
    trainer/state.json               the run: its stage, its row of the table, its data, the step it is at
    trainer/optimizer-R.safetensors  what process R owned of the optimizer's state (optim.py)
"""
import json
import os
import shutil
import signal
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist

import weights
from model import LOSSES
from toy.muon import add_up, place


def beside(out: Path, what: str) -> Path:
    return out.with_name(f".{out.name}.{what}")


def recover(out: Path) -> None:
    """A run that was killed between the two renames of `save` left the last checkpoint beside its place."""
    if place()[0] == 0 and not out.exists() and beside(out, "old").exists():
        os.replace(beside(out, "old"), out)
    if dist.is_initialized():
        dist.barrier()


def predecessors(source: Path, stage: int, anyway: bool) -> dict:
    """The earlier stages in stages.json. Raises ValueError where one is missing or unfinished."""
    path = source / "stages.json"
    record = weights.read_json(path) if path.is_file() else {}
    earlier = {n: record[n] for n in map(str, range(1, stage)) if n in record}
    missing = [str(n) for n in range(1, stage) if str(n) not in earlier]
    broken = [f"stage {n} stopped at step {done['step']} of {done['steps']}"
              for n, done in earlier.items() if done["step"] < done["steps"]]
    if (missing or broken) and not anyway:
        what = f"has not been through stage {', '.join(missing)}" if missing else f"is unfinished: {', '.join(broken)}"
        raise ValueError(f"{source} {what}: stage {stage} builds on it; train that first, or give --anyway where it "
                         "was trained elsewhere")
    return earlier


def begin(out: Path, run: dict, optimizer, resume: bool) -> None:
    """Make the directory ready: a new log, or the optimizer's state and the log as they were at the step saved last."""
    if resume:
        tensors = {}
        for path in (out / "trainer").glob("optimizer-*.safetensors"):
            names = [name for name in weights.shapes(path) if name.partition(".")[2] in optimizer.mine]
            tensors |= {name: tensor.clone() for name, tensor in weights.stream(path, names)}
        optimizer.load(tensors)
    if place()[0]:
        return
    shutil.rmtree(beside(out, "new"), ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    log = out / "log.jsonl"
    rows = log.read_text(encoding="utf-8").splitlines(keepends=True) if resume and log.exists() else []
    with weights.replacing(log) as temporary:
        temporary.write_text("".join(row for row in rows if json.loads(row)["step"] <= run["step"]), encoding="utf-8")
    write_log(out, {"step": run["step"], "start": run})


def write_log(out: Path, row: dict) -> None:
    with open(out / "log.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def tell(out: Path, row: dict, bar, steps: int) -> None:
    """A row of figures or of validation to log.jsonl and to the terminal, from the first process only."""
    if place()[0]:
        return
    write_log(out, row)
    show = lambda figures: "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
    if "val" in row:
        return bar.write(f"step {row['step']}  val: {show(row['val']) or 'no samples'}")
    left = round((steps - row["step"]) * row["ms"] / 1000)
    losses = {name: value for name, value in row.items() if name in (*LOSSES, "norm")}
    bar.write(f"step {row['step']}/{steps}  {show(losses)}  rate {show(row['rates'])}  {row['ms']:.0f} ms/step  "
              f"{row['tokens_per_s']:.0f} tokens/s  peak {row['memory_gib']:.2f} GiB  {left // 60}:{left % 60:02} left")


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


def save(out: Path, model, optimizer, run: dict, device) -> None:
    """Write everything to a new directory, then put it in the place of the old one: there always is a whole checkpoint.

    Raises OSError on the process that could not write, with the old checkpoint untouched; the others exit."""
    new, old, rank, failure = beside(out, "new"), beside(out, "old"), place()[0], None
    done = {name: run[name] for name in ("step", "steps", "table", "rates", "batch", "seed", "ablate", "best")}
    try:
        (new / "trainer").mkdir(parents=True, exist_ok=True)
        weights.write_tensors(new / "trainer" / f"optimizer-{rank}.safetensors", optimizer.state())
        if rank == 0:
            model.save_pretrained(new)
            weights.write_json(new / "stages.json", run["earlier"] | {str(run["stage"]): done})
            weights.write_json(new / "trainer" / "state.json", run)
    except OSError as error:
        failure = error
    if add_up({"failed": failure is not None}, device)["failed"]:
        shutil.rmtree(new, ignore_errors=True)
        if failure is None:
            sys.exit(2)
        kept = "the last checkpoint is untouched" if (out / "config.json").exists() else "nothing was saved before"
        raise OSError(f"step {run['step']} could not be saved in {out} ({failure}): {kept}; make room and go on "
                      "from there")
    if rank == 0:
        shutil.rmtree(old, ignore_errors=True)
        os.replace(out, old)
        os.replace(new, out)
        for path in old.iterdir():                                  # the log, and what a reader put there
            if not (out / path.name).exists() and not path.match("model*.safetensors"):
                os.replace(path, out / path.name)
        shutil.rmtree(old)
    model.directory = out
