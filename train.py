"""The four stages of training (paper, Table 7), one table and one loop.

    python train.py --stage 1 --data data/demo --init-from runs/base --out out/stage1
    torchrun --nproc_per_node=8 train.py --stage 2 --data data/demo --init-from out/stage1 --out out/stage2
    python train.py --resume --out out/stage2

--data has train/ and val/, prepared by `prepare.py`. --out is a checkpoint like any other: `sample.py` opens it after
every stage (runs.py says what lies beside the weights). A resumed run is the run that was never stopped, bit for bit on
a CPU: the order of the data and the random numbers of each piece of a batch follow from --seed and the step alone. Any
number of processes makes the same step from the same global batch.

What Table 7 leaves open is decided here: AdamW's betas 0.9 and 0.95, no weight decay, gradients clipped at norm 1 (the
paper saw them explode in stage I), a cosine to zero after the warm-up, loss terms of equal weight, and a reply is
supervised with its <|im_end|>.
"""
import argparse
import os
import sys
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from math import cos, isfinite, pi
from pathlib import Path

import torch
import torch.distributed as dist
from torch.utils.checkpoint import checkpoint
from tqdm import tqdm

import weights
from batches import check, chunks, collate, draw, pieces, rows_of
from cli import one_line_errors
from data import Split
from model import LOSSES, ExOmni, loss_counts
from toy.muon import SharedOptimizer, add_up, place
from runs import begin, interrupts, memory_peak, predecessors, recover, save, tell

PARTS = {"encoder": ["speech_encoder"], "projector": ["speech_projector"], "llm": ["llm", "lm_head"],
         "generator": ["speech_generator"], "face": ["face_decoder"]}


@dataclass(frozen=True)
class Stage:
    """A row of the table."""
    tasks: tuple           # of the samples it learns from
    losses: tuple          # terms of `ExOmni.forward` that are added up
    rates: dict            # part -> learning rate; all other parts are frozen
    epochs: float
    batch: int             # samples a step, over all processes and accumulated pieces
    warmup: float          # share of the steps
    accumulate: int        # pieces of a batch that each process works through one after the other
    muon: bool = False     # trains the matrices, at the same rate; AdamW all else
    augment: bool = False  # each clip is heard in another voice every time (augment.py)


ASR, TTS, FACE, ALL = ("asr",), ("tts",), ("face",), ("qa", "chat")
STAGES = {
    "paper": {             # Table 7. It marks the projector of stage IV as trained, at rate 0: frozen here
        1: Stage(ASR, ("text",), {"projector": 1e-3}, 1, 128, 0.3, 1),
        2: Stage(TTS, ("units",), {"generator": 1e-4}, 3, 128, 0.1, 1),
        3: Stage(FACE, ("face",), {"face": 1e-3}, 10, 128, 0.1, 1),
        4: Stage(ALL, ("text", "units", "face"), {"llm": 2e-6, "generator": 5e-5, "face": 5e-5}, 3, 8, 0.1, 4)},
    # For a language model less than 512 wide, which has everything still to learn. Its stage IV keeps reading aloud too:
    # the answers of so small a world are too few to speak, and to move a face, in general.
    "mini": {
        1: Stage(ASR, ("text",), {"projector": 2e-3}, 0.4, 48, 0.1, 4, muon=True, augment=True),
        2: Stage(TTS, ("units",), {"generator": 2e-3}, 3.5, 16, 0.1, 4, muon=True),
        3: Stage(FACE, ("face",), {"face": 2e-3}, 3.5, 16, 0.1, 4, muon=True),
        4: Stage(ALL + FACE, ("text", "units", "face"),
                 {"projector": 2e-3, "llm": 2e-3, "generator": 5e-4, "face": 5e-4}, 2, 48, 0.1, 6, muon=True,
                 augment=True)}}
# Matrices that AdamW trains even so: those that map no states to states, and the generator's widest, whose orthogonal step
# would cost the mini model as much as all the others'.
NO_MUON = ("embed", "lm_head", "llm_decoder", "out_head", "input_proj.2")
# Ablation -> the part it changes, which the stage must train. config.json keeps it: so do the stages after.
ABLATIONS = {"velocity": "face", "speech-context": "face", "context": "generator", "tqgf": "generator"}
FIXED = ("init_from", "row", "epochs", "steps", "batch", "accumulate", "lr", "seed", "dtype", "ablate")


def positive(text: str) -> int:
    """For argparse: a whole number above 0."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected a whole number above 0")
    return int(text)


def parse(argv=None) -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = p.add_argument
    add("--stage", type=int, help="1 to 4: which row of the table")
    add("--data", help="prepared data: a directory with train/ and val/")
    add("--init-from", metavar="CHECKPOINT", help="the last stage's --out, or what the first one starts from")
    add("--out", required=True, help="checkpoint to write")
    add("--resume", action="store_true", help="go on with --out as it was started, from where it was last saved")
    add("--anyway", action="store_true", help="start although the checkpoint does not say it saw the earlier stages")
    add("--row", choices=STAGES, help="the table's side (default: by the size of the language model)")
    add("--epochs", type=float, help="in place of the row's")
    add("--steps", type=positive, help="in place of --epochs")
    add("--batch", type=positive, help="samples a step over all processes, in place of the row's")
    add("--accumulate", type=positive, help="pieces of a batch that each process works through, in place of the row's")
    add("--lr", nargs="+", metavar="RATE", help="for all trained parts, or PART=RATE for some")
    add("--ablate", choices=ABLATIONS, help="leave something out: Tables 6 and 8")
    add("--seed", type=int, help="of the order of samples and of dropout (default: 0)")
    add("--device", default="auto", help="auto, cpu, cuda, mps (default: %(default)s)")
    add("--dtype", choices=["float32", "bfloat16"], help="(default: bfloat16 on a GPU, else float32)")
    add("--recompute", action=argparse.BooleanOptionalAction,
        help="recompute activations in the backward pass: slower, less memory (default: on a GPU)")
    add("--log-every", type=positive, default=10, help="steps (default: %(default)s)")
    add("--val-every", type=positive, help="steps (default: up to five times in all)")
    add("--save-every", type=positive, help="steps (default: up to ten times in all)")
    add("--stop-at", type=positive, metavar="STEP", help="save and stop after this step; --resume goes on")
    return p.parse_args(argv)


# ---------------------------------------------------------------- what is asked for

def settle(args) -> tuple:
    """The arguments -> what fixes the run (a dict, saved for --resume), the model, and the splits. Raises ValueError or
    OSError for everything that can be known to be wrong before the first step."""
    out = Path(args.out)
    recover(out)
    if args.resume:
        if not (out / "trainer").is_dir():
            raise FileNotFoundError(f"{out} has no trainer/ to resume from: start it without --resume")
        run = weights.read_json(out / "trainer" / "state.json")
        run["data"] = args.data or run["data"]                      # it may have moved
        given = [name for name in FIXED if getattr(args, name) is not None and getattr(args, name) != run.get(name)]
        if given or args.stage not in (None, run["stage"]):
            raise ValueError(f"{out} is resumed as it was started, stage {run['stage']}: leave out "
                             f"{', '.join('--' + name.replace('_', '-') for name in given or ['stage'])}")
        source = out
    else:
        needed = [name for name in ("stage", "data", "init_from") if getattr(args, name) is None]
        if needed:
            raise ValueError(f"{' and '.join('--' + n.replace('_', '-') for n in needed)} needed, or --resume")
        if args.stage not in STAGES["paper"]:
            raise ValueError(f"stage {args.stage} is unknown, expected 1, 2, 3 or 4")
        if (out / "config.json").exists():
            raise ValueError(f"{out} holds a checkpoint already: --resume goes on with it, or choose another --out")
        run = {name: getattr(args, name) for name in ("stage", "data", *FIXED)}
        run |= {"seed": args.seed or 0, "step": 0, "best": None}
        source = Path(args.init_from)
    device, world = pick_device(args.device), place()[1]
    dtype = run["dtype"] or ("bfloat16" if device.type == "cuda" else "float32")
    splits = [Split(Path(run["data"]) / name) for name in ("train", "val")]
    if not args.resume:
        run |= {"dtype": dtype, "earlier": predecessors(source, run["stage"], args.anyway)}
    model = open_model(source, device, dtype)
    if not args.resume:
        run |= choose_row(args, model.config, splits[0]) | {"files": splits[0].manifest["files"]}
    if run["files"] != splits[0].manifest["files"]:
        raise ValueError(f"{run['data']} is not the data that {out} was started with: put it back, or start again")
    if run["batch"] < world:
        raise ValueError(f"a batch of {run['batch']} for {world} processes: each needs a sample")
    for split in splits:
        check(split, rows_of(split, run["tasks"]), model)
    if run["ablate"]:
        getattr(model.config, ABLATIONS[run["ablate"]]).ablate = run["ablate"]
    return run, model, splits, device


def pick_device(asked: str) -> torch.device:
    """auto: a GPU if there is one. Under torchrun each process takes its own."""
    if asked == "auto":
        asked = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(asked, int(os.environ["LOCAL_RANK"])) if asked == "cuda" and "LOCAL_RANK" in os.environ \
        else torch.device(asked)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def open_model(source: Path, device, dtype: str) -> ExOmni:
    """The checkpoint, to be trained. Raises ValueError where it has no tokenizer."""
    model = ExOmni.from_pretrained(source, device=device, dtype=getattr(torch, dtype))
    model.speech_decoder = None                                     # not trained; its files go along
    if model.tokenizer is None:
        raise ValueError(f"{source} has no tokenizer files: add tokenizer.json")
    if model.tokenizer.im_end_id not in model.config.stop_ids:
        raise ValueError(f"{source}: <|im_end|> is {model.tokenizer.im_end_id}, which is none of the stop ids "
                         f"{model.config.stop_ids} in generation_config.json: a reply would never end")
    model.config.dtype = dtype                                      # what it is saved in
    for p in model.parameters():
        p.data = p.data.contiguous()                                # a CPU stores some bfloat16 matrices by columns
    return model


def choose_row(args, config, training: Split) -> dict:
    """The table's row with what the command line puts in its place. Raises ValueError."""
    table = args.row or ("mini" if config.llm.hidden_size < 512 else "paper")
    row = STAGES[table][args.stage]
    new = {name: getattr(args, name) for name in ("epochs", "batch", "accumulate") if getattr(args, name) is not None}
    row = replace(row, rates=row.rates | overridden(args.lr or [], row.rates), **new)
    if args.ablate and ABLATIONS[args.ablate] not in row.rates:
        raise ValueError(f"--ablate {args.ablate} changes the {ABLATIONS[args.ablate]}, stage {args.stage} trains "
                         f"{', '.join(row.rates)}: give it to the stage that trains it")
    samples, present = len(rows_of(training, row.tasks)), sorted({r["task"] for r in training.rows})
    if not samples:
        raise ValueError(f"{training.directory} has no samples of task {' or '.join(row.tasks)}, which stage "
                         f"{args.stage} learns from, only of {', '.join(present) or 'none'}")
    steps = args.steps or max(1, round(row.epochs * samples / row.batch))
    return asdict(row) | {"row": args.row, "table": table, "steps": steps}


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


def announce(run, model, splits, device, args, accumulate, world) -> None:
    """What is about to happen."""
    ablated = [part.ablate for part in (model.config.generator, model.config.face) if part.ablate]
    why = "asked for" if run["row"] else f"the language model is {model.config.llm.hidden_size} wide"
    samples = [len(rows_of(split, run["tasks"])) for split in splits]
    print(f"stage {run['stage']}: {' + '.join(run['tasks'])} samples, losses {' + '.join(run['losses'])}, row "
          f"{run['table']!r} of the table ({why})" + (f", without {', '.join(ablated)}" if ablated else ""))
    print(f"{samples[0]} samples in {splits[0].directory}, {samples[1]} in {splits[1].directory}")
    print(f"{run['steps']} steps of {run['batch']} samples, {run['steps'] * run['batch'] / samples[0]:.3g} epochs; "
          f"seed {run['seed']}; processes: {world}, pieces of a batch one after the other: {accumulate}"
          + (f" (not {run['accumulate']}: each needs a sample)" if accumulate < run["accumulate"] else ""))
    print(f"{'Muon for matrices, else ' * run['muon']}AdamW, betas 0.9 and 0.95, no weight decay; warm-up over "
          f"{run['warmup']:.0%} of the steps, then a cosine to zero; gradients clipped at norm 1"
          + "; clips augmented" * run["augment"])
    for part in PARTS:
        count = sum(p.numel() for p in parameters(model, part).values())
        note = " (trained at rate 0 in Table 7)" if run["stage"] == 4 and part == "projector" else ""
        print(f"  {part:<10}{count:>14,} parameters  "
              + (f"rate {run['rates'][part]:g}" if part in run["rates"] else f"frozen{note}"))
    found = "asked for" if args.device != "auto" else "found" if device.type == "cuda" else "no GPU found"
    print(f"{device} ({found}), {run['dtype']} ({'asked for' if args.dtype else 'the default there'})"
          + (f"; goes on after step {run['step']}" if run["step"] else ""))


# ---------------------------------------------------------------- pieces of the loop

def parameters(model, part: str) -> dict:
    """name -> parameter of a part."""
    return {name: p for name, p in model.named_parameters() if name.split(".")[0] in PARTS[part]}


def set_training(model, trained) -> None:
    """Trained parts in training mode (dropout), all others never."""
    model.eval()
    for name in (name for part in trained for name in PARTS[part]):
        if getattr(model, name) is not None:                        # a tied model has no lm_head
            getattr(model, name).train()


def schedule(step: int, steps: int, warmup: float) -> float:
    """What the rates are multiplied by in step 0 ... steps - 1: a ramp up to 1, then half a cosine down to 0."""
    ramp = round(warmup * steps)
    if step < ramp:
        return (step + 1) / ramp
    return 0.5 + 0.5 * cos(pi * (step - ramp) / max(1, steps - ramp))


def tally(batches: list) -> dict:
    """What the terms of `ExOmni.forward` are means over, in all these batches; their clips, text ids and units."""
    counts = dict.fromkeys((*LOSSES, "text_accuracy", "units_accuracy", "clips", "tokens"), 0)
    for batch in batches:
        own = {name: int(n) for name, n in loss_counts(batch).items()} | {"clips": len(batch.get("mel", ()))}
        own["tokens"] = int(batch["mask"].sum()) + own.get("units_accuracy", 0)
        counts = {name: n + own.get(name, 0) for name, n in counts.items()}
    return counts


@torch.no_grad()
def validate(model, split, run, size: int, device) -> dict:
    """Each loss and accuracy over all the split's samples, `size` at a time; the same on every process."""
    rows, (rank, world), counts = rows_of(split, run["tasks"]), place(), tally([])
    terms = [*run["losses"], *(f"{name}_accuracy" for name in run["losses"] if name != "face")]
    sums = dict.fromkeys(terms, 0.0)
    set_training(model, ())
    for chunk in chunks(split, rows, size)[rank::world]:
        batch = collate([split[i] for i in chunk], model, run["losses"], device)
        for name, value in model(batch, dict.fromkeys(terms, 1)).items():
            sums[name] += value.item()
        counts = {name: counts[name] + n for name, n in tally([batch]).items()}
    set_training(model, run["rates"])
    sums, counts = add_up(sums, device), add_up(counts, device)
    return {name: sums[name] / counts[name] for name in terms if counts[name]}


def assert_trained(model, reached: set, trained, device) -> None:
    """Exactly the trained parts had gradients, on the processes together."""
    found = {part for part, n in add_up({part: part in reached for part in PARTS}, device).items() if n}
    assert found == set(trained), f"gradients reached {sorted(found)}, expected {sorted(trained)}"


# ---------------------------------------------------------------- the loop

def train(args) -> None:
    out, (rank, world) = Path(args.out), place()
    try:
        run, model, (training, validation), device = settle(args)
    except (ValueError, OSError):
        if rank:                                                    # what is wrong is the same everywhere: told once
            sys.exit(2)
        raise
    trained = {part: (rate, parameters(model, part)) for part, rate in run["rates"].items()}
    for part in PARTS:
        for p in parameters(model, part).values():
            p.requires_grad_(part in trained)
    if args.recompute or args.recompute is None and device.type == "cuda":
        for layer in (*model.llm.layers, *model.speech_generator.llm.layers):
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    matrices = {name for _, params in trained.values() for name, p in params.items()
                if run["muon"] and p.ndim == 2 and not any(no in name for no in NO_MUON)}
    optimizer = SharedOptimizer(trained, matrices=matrices)
    accumulate = min(run["accumulate"], run["batch"] // world)      # each piece of a batch has a sample
    if rank == 0:
        announce(run, model, (training, validation), device, args, accumulate, world)
    begin(out, run, optimizer, args.resume)
    rows, steps, saved = rows_of(training, run["tasks"]), run["steps"], run["step"]
    last = min(args.stop_at or steps, steps)
    speech = model.config.speech_encoder.max_source_positions // model.config.projector_stride     # rows a clip becomes
    reached, checked, since, seconds, tokens = set(), False, 0, 0.0, 0
    set_training(model, trained)
    bar = tqdm(total=steps, initial=saved, unit="step", disable=None if rank == 0 else True)

    with interrupts() as asked:
        for step in range(run["step"], last):
            # The batch, in pieces: process r works through pieces r, r + world, ...
            begun = time.perf_counter()
            parts = pieces(training, draw(rows, run["seed"], step * run["batch"], run["batch"]), world * accumulate)
            mine = range(rank, len(parts), world)
            seeds = [[hash((run["seed"], step, i)) for i in part] if run["augment"] else None for part in parts]
            batches = [collate([training[i] for i in parts[m]], model, run["losses"], device, seeds[m]) for m in mine]
            counts = add_up(tally(batches) | {"stop": len(asked)}, device)
            if counts["stop"]:
                break
            # Each loss is divided by the count of the whole batch: pieces and processes add up.
            means, losses = {name: max(1, counts[name]) for name in run["losses"]}, dict.fromkeys(run["losses"], 0.0)
            for m, batch in zip(mine, batches):
                torch.manual_seed(hash((run["seed"], step, m)))     # of the dropout
                terms = model(batch, means)
                sum(terms.values()).backward()
                losses = {name: loss + terms[name].detach() if name in terms else loss for name, loss in losses.items()}
                if not checked:
                    reached |= {part for part in PARTS
                                if any(p.grad is not None for p in parameters(model, part).values())}
                optimizer.collect()
            if not checked and all(map(counts.get, means)) and (counts["clips"] or "projector" not in trained):
                assert_trained(model, reached, trained, device)
                checked = True
            factor = schedule(step, steps, run["warmup"])
            norm = optimizer.step(factor)
            if not isfinite(norm):
                if rank:
                    sys.exit(2)
                raise ValueError(f"the gradients' norm is {norm} in step {step + 1}: start again with a lower --lr; "
                                 f"{out} holds " + (f"step {saved}" if saved else "no checkpoint yet"))
            run["step"] = done = step + 1
            bar.update()
            since, tokens = since + 1, tokens + counts["tokens"] + counts["clips"] * (speech - 1)
            seconds += time.perf_counter() - begun
            # Now and then: log, validate, save.
            if done % args.log_every == 0 or done == steps:
                losses = {name: float(loss) for name, loss in add_up(losses, device).items()}
                rates = {part: rate * factor for part, (rate, _) in trained.items()}
                tell(out, {"step": done, **losses, "norm": norm, "rates": rates, "ms": 1000 * seconds / since,
                           "tokens_per_s": tokens / seconds, "memory_gib": memory_peak(device)}, bar, steps)
                since, seconds, tokens = 0, 0.0, 0
            if done % (args.val_every or -(-steps // 5)) == 0 or done == steps:
                figures = validate(model, validation, run, -(-run["batch"] // len(parts)), device)
                loss = sum(figures.get(name, 0.0) for name in run["losses"])
                if figures and (run["best"] is None or loss < run["best"]["loss"]):
                    run["best"] = {"step": done, "loss": loss, **figures}
                tell(out, {"step": done, "val": figures}, bar, steps)
            if done % (args.save_every or -(-steps // 10)) == 0 or done == last:
                save(out, model, optimizer, run, device)
                saved = done
        interrupted = run["step"] < last
        if interrupted and saved < run["step"]:
            save(out, model, optimizer, run, device)
    bar.close()
    if rank == 0:
        conclude(out, run)
    if dist.is_initialized():
        dist.barrier()                                              # nobody leaves while another still writes
    if interrupted:
        sys.exit(130)


def conclude(out: Path, run: dict) -> None:
    """The last lines: what there is, and how to go on."""
    if run["step"] < run["steps"]:
        again = f"python train.py --resume --out {out}" if run["step"] else "the same command, nothing is saved yet"
        return print(f"stopped after step {run['step']} of {run['steps']}; go on with: {again}")
    best = f"; best validation loss {run['best']['loss']:.4g} at step {run['best']['step']}" if run["best"] else ""
    print(f"stage {run['stage']} is done, {run['steps']} steps{best}; wrote {out}, log in {out / 'log.jsonl'}")
    print(f"try it: python sample.py --checkpoint {out} --text 'Hello'" + (
        f"; next: python train.py --stage {run['stage'] + 1} --init-from {out} --data {run['data']} --out ..."
        if run["stage"] < 4 else ""))


def main(argv=None) -> None:
    args = parse(argv)
    joins = "RANK" in os.environ and not dist.is_initialized()      # one of torchrun's processes
    try:
        with one_line_errors():
            if joins:
                device = pick_device(args.device)
                on_gpu = device.type == "cuda"
                dist.init_process_group("nccl" if on_gpu else "gloo", device_id=device if on_gpu else None)
            train(args)
    finally:
        if joins:
            dist.destroy_process_group()


if __name__ == "__main__":
    main()
