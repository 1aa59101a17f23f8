"""The stages of training: one table, one loop.

    python train.py --stage 1 --data data/demo --init-from runs/base --out out/stage1
    torchrun --nproc_per_node=8 train.py --stage 2 --data data/demo --init-from out/stage1 --out out/stage2
    python train.py --resume --out out/stage2

--data has train/ and val/, prepared by `prepare.py`; several may be given, each with a weight (loading.py). --cache DIR
keeps what the frozen parts make of each sample: all epochs train the rest alone (frozen.py). --out is a checkpoint like
any other: `sample.py` opens it after every stage (progress.py says what else is in it). A resumed training is the one
that was never stopped, bit for bit on one CPU: the order of the samples and the random numbers of each micro-batch
follow from --seed and the step alone.

Several processes: FSDP2. Each holds a shard of every weight, gradient and moment, and gathers a transformer block when
it runs. --dtype bfloat16 computes in bfloat16 (autocast) and learns in float32, on one process too: trained weights are
float32, frozen ones bfloat16. Only in float32 is the result the same on any number of processes.

What the paper's table leaves open is decided here: AdamW's betas 0.9 and 0.95, no weight decay, gradients clipped at
norm 1 (the paper saw them explode in stage I), a cosine to zero after the warm-up, and loss terms of equal weight.
"""
import os
import sys
import warnings
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from functools import partial
from math import cos, isfinite, pi
from pathlib import Path

PARENT = os.getppid()                                           # before torch, which takes seconds

import cli

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

from checkpoint import ABLATIONS
from data import assemble, chunks, on_device
from frozen import open_cache
from loading import Steps, lengths_of, micro_batches, read_ahead, token_rates
from memory import report
from model import LOSSES, loss_counts
from progress import Log, announce, conclude, interrupts, optimizer_tensors
from ranks import join, named_rank, rank_and_world, sum_over_ranks
from runs import claimed, open_training, parse
from saving import Saver, load_optimizer
from toy.augment import other_voice
from toy.microbatches import Float64Sums, like_length
from toy.muon import Muon, for_muon

PARTS = {"encoder": ["speech_encoder"], "projector": ["speech_projector"], "llm": ["llm", "lm_head"],
         "generator": ["speech_generator"], "face": ["face_decoder"]}


@dataclass(frozen=True)
class Stage:
    """A column of the paper's table. Parts without a rate are frozen; the speech encoder always is."""
    tasks: tuple           # of the samples it learns from
    losses: tuple          # terms of `ExOmni.forward` that are added up
    rates: dict            # part -> learning rate
    epochs: float
    batch: int             # samples an optimizer step: over all processes and accumulated micro-batches
    warmup: float          # share of the steps
    accumulate: int        # micro-batches that each process works through before a step
    replay: dict = field(default_factory=dict)  # task of an earlier stage -> how many of its samples are mixed in
    plain_mse: bool = False     # the face loss without its velocity term
    toy: bool = False      # toy/: Muon for matrices, micro-batches of like length, clips in other voices


ASR, TTS, FACE, QA, CHAT = ("asr",), ("tts",), ("face",), ("qa",), ("chat",)
STAGES = {
    # Table 7 of v1. Its stage IV says batch 8 with accumulation 4; v2's table calls the same 32. It marks the projector
    # of stage IV as trained at rate 0: frozen here.
    "v1": {
        1: Stage(ASR, ("text",), {"projector": 1e-3}, 1, 128, 0.3, 1),
        2: Stage(TTS, ("units",), {"generator": 1e-4}, 3, 128, 0.1, 1),
        3: Stage(FACE, ("face",), {"face": 1e-3}, 10, 128, 0.1, 1),
        4: Stage(QA + CHAT, LOSSES, {"llm": 2e-6, "generator": 5e-5, "face": 5e-5}, 3, 32, 0.1, 4)},
    # Table 2 of v2. A text-to-speech-face sample is a "face" one: a text, its units and its face.
    "v2": {
        1: Stage(ASR, ("text",), {"projector": 1e-3}, 1, 128, 0.3, 1),
        2: Stage(FACE, ("units", "face"), {"generator": 1e-4, "face": 1e-4}, 2, 128, 0.1, 2, plain_mse=True),
        3: Stage(QA, LOSSES, {"projector": 2e-5, "llm": 2e-6, "generator": 2e-5, "face": 2e-5}, 2, 32, 0.1, 4,
                 replay={"asr": 10_000, "face": 10_000}, plain_mse=True)},
    # For a language model less than 512 wide, which has everything still to learn. Its stage IV keeps reading aloud:
    # the answers of so small a world are too few to learn from them how to speak and to move a face. It keeps typed
    # conversations and transcription too, which it would forget.
    "mini": {
        1: Stage(ASR, ("text",), {"projector": 2e-3}, 0.4, 48, 0.1, 4, toy=True),
        2: Stage(TTS, ("units",), {"generator": 2e-3}, 10, 16, 0.1, 4, toy=True),
        3: Stage(FACE, ("face",), {"face": 2e-3}, 5, 16, 0.1, 4, toy=True),
        4: Stage(QA, LOSSES, {"projector": 2e-3, "llm": 2e-3, "generator": 5e-4, "face": 5e-4}, 1.6, 48, 0.1, 6,
                 replay={"chat": 8000, "face": 2000, "asr": 3000}, toy=True)}}


# ---------------------------------------------------------------- who learns, and how

def parameters(model, part: str) -> dict:
    """name -> parameter of a part."""
    return {name: p for name, p in model.named_parameters() if name.split(".")[0] in PARTS[part]}


def freeze(model, trained) -> None:
    """Gradients and training mode (dropout) for the trained parts, neither for all others."""
    model.eval()
    for part, names in PARTS.items():
        for module in (getattr(model, name) for name in names):
            if module is not None:                                  # a tied model has no lm_head
                module.requires_grad_(part in trained).train(part in trained)


def shard(model, state: dict, device) -> None:
    """FSDP2: a group for each transformer block, then for what is left of each part, then of the model (the LLM's
    embedding, last norm and head). All weights of a group are of one part, so of one type. Gradients are summed in
    float32, the toy's in float64 (`Float64Sums`)."""
    mesh = init_device_mesh(device.type, (rank_and_world()[1],))
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16 if state["dtype"] == "bfloat16" else None,
                                  reduce_dtype=torch.float64 if state["toy"] else torch.float32,
                                  cast_forward_inputs=False)
    blocks = (*model.speech_encoder.layers, *model.llm.layers, *model.speech_generator.llm.layers,
              *model.face_decoder.encoder)
    parts = (model.speech_encoder, model.speech_projector, model.speech_generator, model.face_decoder)
    for module in (*blocks, *parts, model):
        fully_shard(module, mesh=mesh, mp_policy=policy)


def optimizers(model, state: dict) -> tuple:
    """AdamW with a group for each trained part; the toy's Muon for its matrices: a list of (rate, Muon)."""
    groups, muons = [], []
    for part, rate in state["rates"].items():
        own = parameters(model, part)
        matrices = {name: p for name, p in own.items() if state["toy"] and for_muon(name, p)}
        groups.append({"params": [p for name, p in own.items() if name not in matrices], "lr": rate, "rate": rate})
        muons += [(rate, Muon(matrices))] if matrices else []
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0, fused=True), muons


def schedule(step: int, steps: int, warmup: float) -> float:
    """What the rates are multiplied by in step 0 ... steps - 1: a ramp up to 1, then half a cosine down to 0."""
    ramp = round(warmup * steps)
    if step < ramp:
        return (step + 1) / ramp
    return 0.5 + 0.5 * cos(pi * (step - ramp) / max(1, steps - ramp))


# ---------------------------------------------------------------- batches

def cutting(state: dict, model, training, samples) -> tuple:
    """How many micro-batches, at least, each process works through in a step; (mixture, samples) -> the lists of
    samples that are the micro-batches of all processes, and -> their lengths. The toy's are as many in all, however
    many processes share them."""
    world, toy = rank_and_world()[1], state["toy"]
    accumulate = min(-(-state["accumulate"] // world) if toy else state["accumulate"], state["batch"] // world)
    lengths = partial(lengths_of, config=model.config, losses=state["losses"],
                      rates=token_rates(training, samples, model.tokenizer))
    cut = partial(like_length, count=world * accumulate) if toy else partial(
        micro_batches, lengths=lengths, world=world, accumulate=accumulate, budget=state["tokens"])
    return accumulate, cut, lengths


def moved(read: list, model, state: dict, device) -> list:
    """A step's micro-batches as `loading.Steps` has read them, on the device: [(number, batch), ...]."""
    def altered(samples):
        seeds = [hash((state["seed"], state["step"], n)) for n in samples]
        return (lambda mel, n: other_voice(mel.cpu(), seeds[n]).to(device)) if state["toy"] else None
    return [(number, on_device(batch, model.config.speech_encoder, device, altered(samples)))
            for number, samples, batch in read]


def count(batches: list) -> dict:
    """What the terms of `ExOmni.forward` are means over, in all these batches; their clips; their tokens and units."""
    counts = dict.fromkeys((*LOSSES, "text_accuracy", "units_accuracy", "clips", "tokens"), 0)
    for batch in batches:
        own = {name: int(n) for name, n in loss_counts(batch).items()} | {"clips": len(batch.get("owners", ()))}
        own["tokens"] = int(batch["mask"].sum()) + own.get("units_accuracy", 0)
        counts = {name: n + own.get(name, 0) for name, n in counts.items()}
    return counts


@torch.no_grad()
def validate(model, mixture, numbers, state: dict, size: int, always, device, autocast) -> dict:
    """Each loss and accuracy over these samples, `size` at a time; the same on every rank. All ranks work
    through as many chunks: what is left over is repeated and not counted."""
    rank, world = rank_and_world()
    terms = [*state["losses"], *(f"{name}_accuracy" for name in state["losses"] if name != "face")]
    sums, counts = dict.fromkeys(terms, 0.0), count([])
    parts = chunks(mixture, numbers, size)
    model.eval()
    for n in range(rank, -(-len(parts) // world) * world, world):
        batch = assemble([mixture[i] for i in parts[n % len(parts)]], model, state["losses"], always)
        with autocast():
            values = model(on_device(batch, model.config.speech_encoder, device), dict.fromkeys(terms, 1))
        if n < len(parts):
            sums = {name: sums[name] + values.get(name, 0.0) for name in terms}
            counts = {name: counts[name] + value for name, value in count([batch]).items()}
    freeze(model, state["rates"])
    sums, counts = sum_over_ranks(sums, device), sum_over_ranks(counts, device)
    figures = {name: sums[name] / counts[name] for name in terms if counts[name]}
    loss = sum(figures.get(name, 0.0) for name in state["losses"])
    if figures and isfinite(loss) and (state["best"] is None or loss < state["best"]["loss"]):
        state["best"] = {"step": state["step"], "loss": loss, **figures}
    return figures


# ---------------------------------------------------------------- the loop

def backward(model, batches: list, counts: dict, state: dict, sums: Float64Sums | None, autocast) -> dict:
    """Forward and backward of each micro-batch -> this rank's share of the losses. Each loss is divided by the count of
    the whole batch, so that micro-batches and ranks add up; FSDP takes the mean over the ranks, hence `world`."""
    means, losses = {name: max(1, counts[name]) for name in state["losses"]}, dict.fromkeys(state["losses"], 0.0)
    for number, batch in batches:
        torch.manual_seed(hash((state["seed"], state["step"], number)))         # of the dropout
        with autocast():
            terms = model(batch, means)
        with sums.micro_batch(last=number == batches[-1][0]) if sums else nullcontext():
            (rank_and_world()[1] * sum(terms.values())).backward()
        losses |= {name: losses[name] + term.detach() for name, term in terms.items()}
    return losses


def assert_trained(parts: dict, trained) -> bool:
    """Exactly the trained parts have gradients; True."""
    reached = {part for part, own in parts.items() if any(p.grad is not None for p in own.values())}
    assert reached == set(trained), f"gradients reached {sorted(reached)}, expected {sorted(trained)}"
    return True


def step_optimizers(trained: list, adamw, muons: list, sums: Float64Sums | None, state: dict) -> tuple:
    """Clip the gradients to norm 1 and change the weights -> the norm before clipping, part -> the rate. Where the norm
    is not finite, weights and moments stay as they are."""
    for p in trained:
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad  # of a part that the batch has nothing for
    norm = sums.clip(trained) if sums else torch.nn.utils.clip_grad_norm_(trained, 1.0)
    norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
    skipped, factor = ~norm.isfinite(), schedule(state["step"], state["steps"], state["warmup"])
    for group in adamw.param_groups:
        group["lr"] = factor * group["rate"]
    adamw.found_inf = skipped.float()                               # then it changes nothing; decided on the device
    adamw.step()
    for rate, muon in muons:
        if not skipped:                                             # waits for the device: the toy's only
            muon.step(factor * rate)
    for p in trained:
        p.grad = None
    return norm, {part: factor * rate for part, rate in state["rates"].items()}


def prepare(model, state: dict, device, recompute) -> tuple:
    """Freeze, recompute activations, shard over the processes -> part -> its parameters; the optimizers."""
    freeze(model, state["rates"])
    if recompute or recompute is None and device.type == "cuda":
        for layer in (*model.llm.layers, *model.speech_generator.llm.layers):
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    for module in (getattr(model, name) for part in state["rates"] for name in PARTS[part]):
        if module is not None:
            module.float()                              # a step of the optimizer is too small for bfloat16
    if rank_and_world()[1] > 1:
        shard(model, state, device)
    return {part: parameters(model, part) for part in PARTS}, *optimizers(model, state)


def train(args) -> None:
    device, (rank, world) = cli.pick_device(args.device), rank_and_world()
    warnings.filterwarnings("ignore", "This DataLoader will create")        # as many readers as were asked for
    state, model, chosen, resumed = open_training(args, STAGES, device)
    (training, samples, _), (validation, checks, _) = chosen
    autocast = partial(torch.autocast, device.type, torch.bfloat16, enabled=state["dtype"] == "bfloat16")
    cache = open_cache(args.cache, state, model, training, samples, device, autocast) if args.cache else None
    parts, adamw, muons = prepare(model, state, device, args.recompute)
    trained = [p for part in state["rates"] for p in parts[part].values()]
    sums = Float64Sums(model, trained) if state["toy"] else None
    accumulate, cut, lengths = cutting(state, model, training, samples)
    has_sound = lambda mixture, numbers: bool((mixture.column("audio length", numbers) >= 0).any())
    needed = [*state["losses"], *["clips"] * has_sound(training, samples)]
    always = ()
    if world > 1:                                                               # the same modules on each rank
        always = ("units", "face", *["mel"] * ("clips" in needed or has_sound(validation, checks)))
    if rank == 0:
        announce(args, state, model, parts, chosen, accumulate, device)
    tensors = optimizer_tensors(parts, adamw, muons, state)
    if resumed:
        load_optimizer(Path(args.out), tensors)
    saver, checked = Saver(Path(args.out), model, tensors, state["step"]), False
    log = Log(saver, state, device, resumed)
    steps, last = state["steps"], args.stop_at or state["steps"]
    reader = read_ahead(Steps(training, samples, model, state, cut, lengths, always, rank, world, cache), last,
                        4 * (device.type == "cuda") if args.workers is None else args.workers, device)

    with interrupts() as asked, closing(saver):
        for read in log.reading(reader):
            batches = moved(read, model, state, device)
            counts = sum_over_ranks(count([batch for *_, batch in read])
                                    | {"stop": len(asked), "skipped": log.in_a_row / world,
                                       "writing": saver.writing()}, device)
            with log.pause():
                if not counts["writing"]:                       # on no rank
                    saver.finish()
            log.check(state["step"], counts["skipped"])
            if counts["stop"]:
                break
            losses = backward(model, batches, counts, state, sums, autocast)
            if not checked and all(counts[name] for name in needed):
                checked = assert_trained(parts, state["rates"])
            norm, rates = step_optimizers(trained, adamw, muons, sums, state)
            state["seen"], state["step"] = state["seen"] + state["batch"], state["step"] + 1
            done = state["step"]
            log.add(losses, norm, counts["tokens"])
            # Now and then: log, validate, save.
            if done % args.log_every == 0 or done == steps:
                log.training(done, rates)
            with log.pause():
                if done % (args.val_every or -(-steps // 5)) == 0 or done == steps:
                    size = -(-state["batch"] // (world * accumulate))
                    figures = validate(model, validation, checks, state, size, always, device, autocast)
                    log.validation(done, figures)
                due = done % (args.save_every or -(-steps // 10)) == 0 and not log.in_a_row
                if due or done == last:
                    saver.start(state | {"since_log": log.since()})
        saver.finish()
        if saver.saved < state["step"]:                             # interrupted
            saver.start(state | {"since_log": log.since()})
            saver.finish()
    conclude(log, state, STAGES[state["recipe"]])
    if state["step"] < last:
        sys.exit(130)


def main(argv=None) -> None:
    args = parse(argv, __doc__.splitlines()[0], STAGES, ABLATIONS)
    joins = "RANK" in os.environ and not dist.is_initialized()      # one of torchrun's processes
    try:
        with cli.one_line_errors(debug=args.debug), named_rank():
            if args.plan:
                print(*report(args, STAGES), sep="\n")
                return
            if joins:
                join(cli.pick_device(args.device), PARENT)
            with claimed(args):
                train(args)
    finally:
        if joins and dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "__main__":
    main()
