"""Starting and resuming a training: from the command line to its state, its model and its data.

Everything that can be known to be wrong is said here, before the first step, in one line.
"""
import argparse
import os
import shutil
import sys
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

import disk
from checkpoint import ABLATIONS
from data import Split, check, mixed_rows
from face_decoder import FaceConfig
from model import ExOmni

# What a training keeps to the end; --resume refuses other values.
FIXED = ("init_from", "recipe", "epochs", "steps", "batch", "accumulate", "lr", "seed", "dtype", "ablate")


def positive(text: str) -> int:
    """For argparse: a whole number above 0."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected a whole number above 0")
    return int(text)


def parse(argv, about: str, recipes, ablations) -> argparse.Namespace:
    """The command line of train.py."""
    p = argparse.ArgumentParser(description=about)
    add = p.add_argument
    add("--stage", type=int, help="which row of the table: 1 to 4, of v2 1 to 3")
    add("--data", help="prepared data: a directory with train/ and val/")
    add("--init-from", metavar="CHECKPOINT", help="the last stage's --out, or what the first one starts from")
    add("--out", required=True, help="checkpoint to write")
    add("--resume", nargs="?", const="yes", choices=["yes", "auto"], help="go on with --out as it was started, from "
        "where it was last saved; auto: or start, if nothing was saved yet (for torchrun --max-restarts)")
    add("--anyway", action="store_true", help="start although the checkpoint does not say it saw the earlier stages")
    add("--recipe", choices=recipes, help="v1 or v2 of the paper, or the toy's (default: v1, or mini for a language "
        "model less than 512 wide)")
    add("--epochs", type=float, help="in place of the table's")
    add("--steps", type=positive, help="in place of --epochs")
    add("--batch", type=positive, help="samples an optimizer step over all processes, in place of the table's")
    add("--accumulate", type=positive, help="micro-batches that each process works through, in place of the table's")
    add("--lr", nargs="+", metavar="RATE", help="for all trained parts, or PART=RATE for some")
    add("--ablate", choices=ablations, help="leave something out: v1's Tables 6 and 8, v2's Table 6")
    add("--seed", type=int, help="of the order of samples and of dropout (default: 0)")
    add("--device", default="auto", help="auto, cpu, cuda, mps (default: %(default)s)")
    add("--dtype", choices=["float32", "bfloat16"], help="to compute in (default: bfloat16 on a GPU, else float32)")
    add("--recompute", action=argparse.BooleanOptionalAction,
        help="recompute activations in the backward pass: slower, less memory (default: on a GPU)")
    add("--log-every", type=positive, default=10, help="steps (default: %(default)s)")
    add("--val-every", type=positive, help="steps (default: up to five times in all)")
    add("--save-every", type=positive, help="steps (default: up to ten times in all)")
    add("--stop-at", type=positive, metavar="STEP", help="save and stop after this step; --resume goes on")
    return p.parse_args(argv)


def join(device) -> None:
    """One of torchrun's processes meets the others. After a restart (--max-restarts) the addresses of those that ended
    are still in the store: the prefix keeps them apart."""
    store, rank, world = next(dist.rendezvous("env://"))
    store = dist.PrefixStore(f"restart {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    on_gpu = device.type == "cuda"
    dist.init_process_group("nccl" if on_gpu else "gloo", store=store, rank=rank, world_size=world,
                            device_id=device if on_gpu else None,
                            timeout=timedelta(hours=1))             # rank 0 writes the weights while the others wait


def rank_and_world() -> tuple:
    """This process's number, and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def sum_over_ranks(values: dict, device) -> dict:
    """name -> number or scalar tensor, the same names on every rank -> the sums over the ranks, floats."""
    wide = torch.float32 if device.type == "mps" else torch.float64
    tensor = torch.stack([torch.as_tensor(value, dtype=wide, device=device) for value in values.values()])
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return dict(zip(values, tensor.tolist()))


def pick_device(asked: str) -> torch.device:
    """auto: a GPU if there is one. Under torchrun each process takes its own."""
    if asked == "auto":
        asked = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(asked)
    if device.type == "cuda":
        if device.index is None:
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    return device


def open_training(args, stages: dict, device) -> tuple:
    """The state, the model, the splits, and whether they are resumed. Raises ValueError or OSError on rank 0."""
    out, (rank, world) = Path(args.out), rank_and_world()
    recover(out)
    try:
        resumed = args.resume == "yes" or args.resume == "auto" and (out / "trainer").is_dir()
        state, model, splits = resume(args, device) if resumed else start(args, stages, device)
        if state["batch"] < world:
            raise ValueError(f"a batch of {state['batch']} for {world} processes: each needs a sample")
        for split in splits:
            check(split, mixed_rows(split, state["tasks"], state["replay"], state["seed"]), model)
    except (ValueError, OSError) as error:
        if rank:                                                    # a wrong value is wrong on all ranks: said once
            if isinstance(error, OSError):
                print(f"rank {rank}: {error}", file=sys.stderr)
            sys.exit(2)
        raise
    return state, model, splits, resumed


def open_model(source: Path, device, dtype: str) -> ExOmni:
    """The checkpoint, to be trained. Raises ValueError where it has no tokenizer."""
    model = ExOmni.from_pretrained(source, device=device, dtype=getattr(torch, dtype))
    model.speech_decoder = None                                     # not trained; its files are copied
    if model.tokenizer is None:
        raise ValueError(f"{source} has no tokenizer files: add tokenizer.json")
    if model.tokenizer.im_end_id not in model.config.stop_ids:
        raise ValueError(f"{source}: <|im_end|> is {model.tokenizer.im_end_id}, which is none of the stop ids "
                         f"{model.config.stop_ids} in generation_config.json: a reply would never end")
    model.config.dtype = dtype                                      # what it is saved in
    return model


def start(args, stages: dict, device) -> tuple:
    """A fresh start; stages: train.py's table -> the state of the training (a dict, saved for --resume), the model, the
    splits. Raises ValueError or OSError for what can be known to be wrong before the first step."""
    out = Path(args.out)
    needed = [name for name in ("stage", "data", "init_from") if getattr(args, name) is None]
    if needed:
        raise ValueError(f"{' and '.join('--' + n.replace('_', '-') for n in needed)} needed, or --resume")
    if (out / "config.json").exists():
        raise ValueError(f"{out} holds a checkpoint already: --resume goes on with it, or choose another --out")
    state = {name: getattr(args, name) for name in ("stage", "data", *FIXED)}
    state |= {"seed": args.seed or 0, "step": 0, "best": None,
              "dtype": args.dtype or ("bfloat16" if device.type == "cuda" else "float32")}
    splits = [Split(Path(args.data) / name) for name in ("train", "val")]
    model = open_model(Path(args.init_from), device, state["dtype"])
    state["recipe"] = args.recipe or ("mini" if model.config.llm.hidden_size < 512 else "v1")
    stages = stages[state["recipe"]]
    if args.stage not in stages:
        raise ValueError(f"stage {args.stage} is unknown, {state['recipe']} has {', '.join(map(str, stages))}")
    state["earlier"] = earlier_stages(Path(args.init_from), args.stage, state["recipe"], args.anyway)
    state |= choose_stage(args, stages, splits[0]) | {"files": splits[0].manifest["files"]}
    if args.ablate:
        torch.manual_seed(state["seed"])                            # of what takes the place of the part
        model.ablate(args.ablate)
    face = model.config.face
    face.velocity_weight = 0.0 if state["plain_mse"] or face.ablate == "velocity" else FaceConfig.velocity_weight
    return state, model, splits


def resume(args, device) -> tuple:
    """As `start`, from what was saved last."""
    out = Path(args.out)
    if not (out / "trainer").is_dir():
        raise FileNotFoundError(f"{out} has no trainer/ to resume from: start it without --resume")
    state = disk.read_json(out / "trainer" / "state.json")
    given = [name for name in FIXED if getattr(args, name) is not None and getattr(args, name) != state.get(name)]
    if given or args.stage not in (None, state["stage"]):
        raise ValueError(f"{out} is resumed as it was started, stage {state['stage']}: leave out "
                         f"{', '.join('--' + name.replace('_', '-') for name in given or ['stage'])}")
    state["data"] = args.data or state["data"]                      # it may have moved
    splits = [Split(Path(state["data"]) / name) for name in ("train", "val")]
    if state["files"] != splits[0].manifest["files"]:
        raise ValueError(f"{state['data']} is not the data that {out} was started with: put it back, or start again")
    return state, open_model(out, device, state["dtype"]), splits


def choose_stage(args, stages: dict, training: Split) -> dict:
    """A recipe's stage with what the command line puts in its place. Raises ValueError."""
    stage = stages[args.stage]
    new = {name: getattr(args, name) for name in ("epochs", "batch", "accumulate") if getattr(args, name) is not None}
    stage = replace(stage, rates=stage.rates | overridden(args.lr or [], stage.rates), **new)
    if args.ablate and ABLATIONS[args.ablate] not in stage.rates:
        raise ValueError(f"--ablate {args.ablate} changes the {ABLATIONS[args.ablate]}, stage {args.stage} trains "
                         f"{', '.join(stage.rates)}: give it to the stage that trains it")
    if args.ablate == "velocity" and stage.plain_mse:
        raise ValueError(f"--ablate velocity: stage {args.stage} of v2 has no velocity term to leave out")
    tasks = sorted({row["task"] for row in training.rows})
    if not set(stage.tasks) & set(tasks):
        raise ValueError(f"{training.directory} has no samples of task {' or '.join(stage.tasks)}, which stage "
                         f"{args.stage} learns from, only of {', '.join(tasks) or 'none'}")
    samples = len(mixed_rows(training, stage.tasks, stage.replay, args.seed or 0))
    return asdict(stage) | {"steps": args.steps or max(1, round(stage.epochs * samples / stage.batch))}


def overridden(given: list, rates: dict) -> dict:
    """["1e-3"] or ["llm=1e-4", ...] -> part -> rate. Raises ValueError."""
    try:
        if len(given) == 1 and "=" not in given[0]:
            return dict.fromkeys(rates, float(given[0]))
        new = {part: float(rate) for part, rate in (text.split("=") for text in given)}
    except ValueError:
        raise ValueError(f"--lr {' '.join(given)}: expected a number, or PART=RATE ...") from None
    if not new.keys() <= rates.keys():
        raise ValueError(f"--lr for {', '.join(new.keys() - rates.keys())}: this stage trains {', '.join(rates)}")
    return new


def earlier_stages(source: Path, stage: int, recipe: str, anyway: bool) -> dict:
    """The stages before this one in stages.json. Raises ValueError where one is missing or unfinished, or where one was
    v2's and this one is not, or the other way round: v2 cuts the work into other stages."""
    path = source / "stages.json"
    record = disk.read_json(path) if path.is_file() else {}
    earlier = {n: record[n] for n in map(str, range(1, stage)) if n in record}
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


def sibling(out: Path, name: str) -> Path:
    """A hidden directory next to `out`: the checkpoint that is being written, or the one that is being replaced."""
    return out.with_name(f".{out.name}.{name}")


def keep_rest(old: Path, out: Path) -> None:
    """Move what the old directory has beside its checkpoint, the log and what a reader put there, to the new one."""
    for path in old.iterdir():
        if not (out / path.name).exists() and not path.match("model*.safetensors"):
            os.replace(path, out / path.name)
    shutil.rmtree(old)


def recover(out: Path) -> None:
    """A training that was killed while `save` renamed left its last checkpoint, or its log, next to `out`."""
    old = sibling(out, "old")
    if rank_and_world()[0] == 0 and old.exists():
        keep_rest(old, out) if out.exists() else os.replace(old, out)
    if dist.is_initialized():
        dist.barrier()
