"""Starting and resuming a training: from the command line to its state, its model and its data.

All errors that can be found before the first step are raised here, each as one line.
"""
import argparse
import os
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch

import cli
import disk
import saving
from checkpoint import ABLATIONS, ExOmniConfig
from face_decoder import FaceConfig
from loading import Mixture, Stream, fitting_numbers, mixed_rows, open_mixture
from model import ExOmni
from prepared import TASKS
from ranks import rank_and_world, stop_if_any_failed

# Options that stay the same for the whole training; --resume refuses other values.
FIXED = ("init_from", "recipe", "epochs", "steps", "seed", "dtype", "ablate")
LARGEST_BATCH, LARGEST_RATE = 1 << 20, 1000.0
Count = Annotated[int, 0, 1 << 40]


@dataclass
class SinceLog:
    """Totals of the steps since the last row of the log."""
    losses: dict                    # sums
    norms: float                    # sum
    count: Count                    # of all these steps
    skipped: Count = 0              # steps among them whose gradients were not finite
    in_a_row: Count = 0             # consecutive skipped steps up to now, also from before that row


@dataclass
class State:
    """trainer/state.json: the settings and the progress of a training. The rest of the code uses it as a dict."""
    stage: Annotated[int, 1, 4]
    data: list[str]                 # DIR or DIR=WEIGHT
    init_from: str
    recipe: str
    epochs: float
    steps: Annotated[int, 1, 1 << 40]
    batch: Annotated[int, 1, LARGEST_BATCH]
    accumulate: Annotated[int, 1, LARGEST_BATCH]
    seed: Annotated[int, 0, (1 << 63) - 1]
    dtype: Literal["float32", "bfloat16"]
    step: Count
    best: dict | None
    earlier: dict
    tasks: list[str]
    losses: list[Literal["text", "units", "face"]]
    rates: dict
    warmup: disk.Share
    replay: dict
    plain_mse: bool
    toy: bool
    files: list[dict]               # "files" of each training data directory's manifest
    since_log: SinceLog
    ablate: str | None = None
    seen: Count | None = None       # samples; not step x batch if --resume changed the batch
    changed: str = ""               # what the last --resume changed
    tokens: Annotated[int, 1, 1 << 40] | None = None


@dataclass
class Done:
    """The fields read from an earlier stage's entry in stages.json."""
    step: Count
    steps: Count
    recipe: str | None = None


def parse(argv, about: str, recipes, ablations) -> argparse.Namespace:
    """The command line of train.py."""
    p = cli.Parser(description=about)
    add, batch = p.add_argument, cli.whole(1, LARGEST_BATCH)
    add("--stage", type=int, help="which row of the table: 1 to 4, of v2 1 to 3")
    add("--data", action="append", metavar="DIR[=WEIGHT]", help="prepared data: a directory with train/ and val/; "
        "again for more. An epoch has each sample of it WEIGHT times (default: 1)")
    add("--init-from", metavar="CHECKPOINT", help="the last stage's --out, or what the first one starts from")
    add("--out", help="directory to write to, new or empty")
    add("--resume", nargs="?", const="yes", choices=["yes", "auto"], help="go on with --out as it was started, from "
        "where it was last saved; auto: or start, if nothing was saved yet (for torchrun --max-restarts)")
    add("--plan", type=cli.whole(1, 1 << 20), metavar="PROCESSES", help="only print where the memory of each of so "
        "many processes would go, and which micro-batch fits; --init-from may be a preset")
    add("--anyway", action="store_true", help="start although the checkpoint does not say it saw the earlier stages")
    add("--recipe", choices=recipes, help="v1 or v2 of the paper, or the toy's (default: v1, or mini for a language "
        "model less than 512 wide)")
    length = p.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=cli.number(1e-6, 1e6), help="in place of the table's")
    length.add_argument("--steps", type=cli.positive, help="in place of --epochs")
    add("--batch", type=batch, help="samples an optimizer step over all processes, in place of the table's")
    add("--accumulate", type=batch, help="micro-batches that each process works through, in place of the table's")
    add("--tokens", type=cli.positive, help="of a micro-batch at most, with padding: text, speech and units; it takes "
        "more of them where needed")
    add("--workers", type=cli.whole(0, 256), help="processes that read samples ahead of time (default: 4 on a GPU, "
        "else none)")
    add("--cache", metavar="DIR", help="compute what the frozen parts make of each sample once, and keep it there")
    add("--lr", nargs="+", action="extend", metavar="RATE", help="for all trained parts, or PART=RATE for some")
    add("--ablate", choices=ablations, help="leave something out: v1's Tables 6 and 8, v2's Table 6")
    add("--seed", type=cli.seed, help="of the order of samples and of dropout (default: 0)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:NUMBER, mps")
    add("--dtype", choices=["float32", "bfloat16"], help="to compute in (default: bfloat16 on a GPU, else float32)")
    add("--recompute", action=argparse.BooleanOptionalAction,
        help="recompute activations in the backward pass: slower, less memory (default: on a GPU)")
    add("--log-every", type=cli.positive, default=10, help="steps")
    add("--val-every", type=cli.positive, help="steps (default: up to five times in all)")
    add("--save-every", type=cli.positive, help="steps (default: up to ten times in all)")
    add("--stop-at", type=cli.positive, metavar="STEP", help="save and stop after this step; --resume goes on")
    args = p.parse_args(argv)
    if args.out is None and args.plan is None:
        p.error("the following arguments are required: --out")
    return args


# ---------------------------------------------------------------- the output directory

@contextmanager
def exclusive_out(args):
    """Lock --out for this run, and finish a save that was killed there. Called by all ranks. Raises ValueError or
    OSError where --out cannot be written to or holds other files."""
    out, failure = Path(args.out), None
    with ExitStack() as stack:
        try:
            if rank_and_world()[0] == 0:
                if out.exists() and not out.is_dir():
                    raise ValueError(f"--out {out} is a file: expected a directory")
                stack.enter_context(disk.locked(out))
                check_out(out, args.resume)
                saving.recover(out)
        except PermissionError as error:
            failure = OSError(f"--out {out} cannot be written to ({error.strerror}): choose another")
        except (ValueError, OSError) as error:
            failure = error
        stop_if_any_failed(failure)
        stop_if_any_failed(None if saving.shared(out / ".lock") else ValueError(
            f"--out {out} is not the same directory for all processes: it must be one that all nodes share"))
        yield


def check_out(out: Path, resume: str | None) -> None:
    """Raises ValueError or FileNotFoundError where --out holds what this run must not continue or replace."""
    saved = saving.holds_training(out)
    if resume == "yes" and not saved:
        raise FileNotFoundError(f"{out} has no trainer/ to resume from: start it without --resume")
    if saved and not resume or (out / "config.json").exists() and not saved:
        raise ValueError(f"{out} holds a checkpoint already: "
                         + "--resume goes on with it, or " * saved + "choose another --out")
    others = sorted(path.name for path in out.iterdir() if not path.name.startswith(".") and path.name != "lost+found")
    if others and not saved and not is_training_log(out / "log.jsonl"):
        raise ValueError(f"{out} is not empty ({', '.join(others[:3])}): choose a new directory for --out")


def is_training_log(log: Path) -> bool:
    """Whether a file is the log of a training, for example of one that stopped before its first save."""
    if not log.is_file():
        return False
    with open(log, "rb") as file:
        return file.read(20).startswith(b'{"step": 0, "start"')


# ---------------------------------------------------------------- start and resume

def open_training(args, stages: dict, device) -> tuple:
    """Returns the state, the model, (mixture, samples, skipped) of training and of validation as `fitting_numbers` has
    them, and whether the training is resumed. Raises ValueError or OSError."""
    resumed = args.resume is not None and saving.holds_training(Path(args.out))
    state, model, mixtures = resume(args, stages, device) if resumed else start(args, stages, device)
    if state["batch"] < rank_and_world()[1]:
        raise ValueError(f"a batch of {state['batch']} for {rank_and_world()[1]} processes: each needs a sample")
    splits = []
    for mixture, replay in zip(mixtures, (state["replay"], {})):
        numbers = mixed_rows(mixture, state["tasks"], replay, state["seed"])
        splits.append((mixture, *fitting_numbers(mixture, numbers, model)))
    if not resumed:
        epoch = len(Stream(*splits[0][:2], state["seed"]))
        state["steps"] = args.steps or max(1, round(state["epochs"] * epoch / state["batch"]))
    if args.stop_at is not None and not state["step"] <= args.stop_at <= state["steps"]:
        raise ValueError(f"--stop-at {args.stop_at}: this training is at step {state['step']} of {state['steps']}")
    return state, model, splits, resumed


def open_model(source: Path, device, dtype: str) -> ExOmni:
    """Load a checkpoint for training. Raises ValueError where it has no tokenizer."""
    model = ExOmni.from_pretrained(source, device=device, dtype=getattr(torch, dtype))
    model.speech_decoder = None                                     # never trained; saving copies its files
    if model.tokenizer is None:
        raise ValueError(f"{source} has no tokenizer files: add tokenizer.json")
    model.config.dtype = dtype                                      # of the saved weights
    return model


def start(args, stages: dict, device) -> tuple:
    """A fresh start. stages: train.py's table. Returns the state (a dict, saved for --resume) but for its "steps", the
    model, and the mixtures of training and validation. Checks first the arguments, then the data, then the weights,
    which take longest to read: raises ValueError or OSError."""
    needed = [name for name in ("stage", "data", "init_from") if getattr(args, name) is None]
    if needed:
        raise ValueError(f"{' and '.join('--' + n.replace('_', '-') for n in needed)} needed, or --resume")
    source, width = Path(args.init_from), ExOmniConfig.from_dir(args.init_from).llm.hidden_size
    state = {name: getattr(args, name) for name in ("stage", "data", "tokens", *FIXED)}
    state |= {"seed": args.seed or 0, "step": 0, "seen": 0, "best": None, "changed": "",
              "dtype": args.dtype or ("bfloat16" if device.type == "cuda" else "float32"),
              "recipe": args.recipe or ("mini" if width < 512 else "v1")}
    stage = choose_stage(args, stages[state["recipe"]], state["recipe"])
    state["earlier"] = earlier_stages(source, args.stage, state["recipe"], args.anyway)
    mixtures = [open_mixture(args.data, name) for name in ("train", "val")]
    check_tasks(mixtures[0], stage, args.stage)
    state |= asdict(stage) | {"files": mixtures[0].files}
    model = open_model(source, device, state["dtype"])
    if args.ablate:
        torch.manual_seed(state["seed"])                            # the replacement of the ablated part is random
        model.ablate(args.ablate)
    face = model.config.face
    face.velocity_weight = 0.0 if state["plain_mse"] or face.ablate == "velocity" else FaceConfig.velocity_weight
    return state, model, mixtures


def resume(args, stages: dict, device) -> tuple:
    """As `start`, from the last save."""
    out = Path(args.out)
    state = read_state(out / "trainer" / "state.json", stages)
    saving.check_saved(out)
    given = [name for name in FIXED if getattr(args, name) is not None and getattr(args, name) != state[name]]
    if given or args.stage not in (None, state["stage"]):
        raise ValueError(f"{out} is resumed as it was started, stage {state['stage']}: leave out "
                         f"{', '.join('--' + name.replace('_', '-') for name in given or ['stage'])}")
    new = {name: value for name in ("batch", "accumulate", "tokens") if (value := getattr(args, name)) is not None}
    new["rates"] = state["rates"] | parse_rates(args.lr or [], state["rates"])
    changed = [f"{name} {state[name]} -> {value}" for name, value in new.items() if value != state[name]]
    state |= new | {"changed": "; ".join(changed), "data": args.data or state["data"]}     # the data may have moved
    mixtures = [open_mixture(state["data"], name) for name in ("train", "val")]
    if state["files"] != mixtures[0].files:
        raise ValueError(f"{' and '.join(state['data'])} is not the data that {out} was started with: put it back, or "
                         "start again")
    return state, open_model(out, device, state["dtype"]), mixtures


def read_state(path: Path, stages: dict) -> dict:
    """Read trainer/state.json, checked against `State` and train.py's table. Raises ValueError."""
    values = disk.read_json(path)
    for name, kind in (("data", str), ("files", dict)):             # an earlier version had only one directory
        if isinstance(values.get(name), kind):
            values[name] = [values[name]]
    state = asdict(disk.checked(State, values, path))
    table = stages.get(state["recipe"], {}).get(state["stage"])
    if table is None or state["rates"].keys() != table.rates.keys() or not 0 <= state["step"] <= state["steps"]:
        raise ValueError(f"{path}: step {state['step']} of {state['steps']} of stage {state['stage']} of "
                         f"{state['recipe']!r}, training {', '.join(state['rates'])}: there is no such stage")
    best, losses = state["best"] and {"loss": state["best"].get("loss")}, state["since_log"]["losses"]
    for values, kind in ((state["rates"], disk.Positive), (state["replay"], int), (best or {}, float), (losses, float)):
        for name in values:
            disk.typed(values, name, kind, path)
    if state["seen"] is None:                                       # saved by an earlier version
        state["seen"] = state["step"] * state["batch"]
    return state


def choose_stage(args, stages: dict, recipe: str):
    """A recipe's stage with the values that the command line overrides. Raises ValueError."""
    if args.stage not in stages:
        raise ValueError(f"stage {args.stage} is unknown, {recipe} has {', '.join(map(str, stages))}")
    stage = stages[args.stage]
    new = {name: getattr(args, name) for name in ("epochs", "batch", "accumulate") if getattr(args, name) is not None}
    stage = replace(stage, rates=stage.rates | parse_rates(args.lr or [], stage.rates), **new)
    if args.ablate and ABLATIONS[args.ablate] not in stage.rates:
        raise ValueError(f"--ablate {args.ablate} changes the {ABLATIONS[args.ablate]}, stage {args.stage} trains "
                         f"{', '.join(stage.rates)}: give it to the stage that trains it")
    if args.tokens and stage.toy:
        raise ValueError(f"--tokens: the {recipe} recipe cuts each batch into as many pieces: give --accumulate")
    if args.ablate == "velocity" and stage.plain_mse:
        raise ValueError(f"--ablate velocity: stage {args.stage} of v2 has no velocity term to leave out")
    return stage


def check_tasks(training: Mixture, stage, number: int) -> None:
    """Raises ValueError where the mixture has no sample of the tasks of this stage."""
    tasks = sorted(TASKS[n] for n in np.unique(training.column("task")))
    if not set(stage.tasks) & set(tasks):
        raise ValueError(f"{training} has no samples of task {' or '.join(stage.tasks)}, which stage {number} learns "
                         f"from, only of {', '.join(tasks) or 'none'}")


def parse_rates(given: list, rates: dict) -> dict:
    """--lr, ["1e-3"] or ["llm=1e-4", ...] -> {part: rate}. rates: those of the stage. Raises ValueError."""
    try:
        if len(given) == 1 and "=" not in given[0]:
            new = dict.fromkeys(rates, float(given[0]))
        else:
            new = {part: float(rate) for part, rate in (text.split("=") for text in given)}
    except ValueError:
        raise ValueError(f"--lr {' '.join(given)}: expected a number, or PART=RATE ...") from None
    if len(new) < len(given):
        raise ValueError(f"--lr {' '.join(given)}: a part has two rates, expected one")
    if not all(0 < rate <= LARGEST_RATE for rate in new.values()):  # NaN is neither
        raise ValueError(f"--lr {' '.join(given)}: expected rates above 0 and up to {LARGEST_RATE:g}")
    if not new.keys() <= rates.keys():
        raise ValueError(f"--lr for {', '.join(new.keys() - rates.keys())}: this stage trains {', '.join(rates)}")
    return new


def earlier_stages(source: Path, stage: int, recipe: str, anyway: bool) -> dict:
    """The entries of stages.json before this stage. Raises ValueError, unless `anyway`, where one is missing or
    unfinished, or where either it or this stage, but not both, is of v2, whose stages train other parts."""
    path = source / "stages.json"
    record = disk.read_json(path) if os.path.lexists(path) else {}
    earlier = {n: record[n] for n in map(str, range(1, stage)) if n in record}
    for n in earlier:
        disk.typed(earlier, n, Done, path)
    missing = [str(n) for n in range(1, stage) if str(n) not in earlier]
    broken = [f"stage {n} stopped at step {done['step']} of {done['steps']}"
              for n, done in earlier.items() if done["step"] < done["steps"]]
    other = [n for n, done in earlier.items() if (done.get("recipe") == "v2") != (recipe == "v2")]
    if (missing or broken or other) and not anyway:
        what = (f"has not been through stage {', '.join(missing)}" if missing else f"is unfinished: {', '.join(broken)}"
                if broken else f"has been through stage {', '.join(other)} of another recipe")
        raise ValueError(f"{source} {what}: stage {stage} of {recipe} builds on it; train that first, or give --anyway "
                         "where it was trained elsewhere")
    return earlier
