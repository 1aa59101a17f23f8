"""Training: one table of stages, one loop.

    python train.py --stage 1 --data data/demo --init-from runs/base --out out/stage1
    torchrun --nproc_per_node=8 train.py --stage 2 --data data/demo --init-from out/stage1 --out out/stage2
    python train.py --resume --out out/stage2

--data has train/ and val/, made by `prepare.py`; it may be given several times, each with a weight (loading.py).
--cache DIR computes the outputs of the frozen parts once per sample, for all epochs (frozen.py). --out is a checkpoint
like any other: `sample.py` opens it after every stage (progress.py lists its files). A resumed training equals one that
was never stopped, bit for bit on one CPU: the order of the samples and the random numbers of each micro-batch depend
only on --seed and the step.

Several processes use FSDP2: each holds a shard of every weight, gradient and optimizer moment, and gathers one
transformer block at a time. --dtype bfloat16 is mixed precision, also on one process: compute in bfloat16 (autocast),
trained weights in float32, frozen ones in bfloat16. Only in float32 is the result the same on any number of processes.

The paper's table leaves open, and we chose: AdamW's betas 0.9 and 0.95, no weight decay, gradients clipped at norm 1
(the paper reports exploding gradients in stage I), cosine decay to zero after the warm-up, equal weights of all losses.
"""
import os
import sys
import warnings
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from functools import partial
from math import cos, isfinite, pi
from pathlib import Path

PARENT = os.getppid()                                           # torchrun's pid, read before the slow import of torch

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
from ranks import first_rank_first, join, named_rank, rank_and_world, sum_over_ranks
from runs import exclusive_out, open_training, parse
from saving import Saver, load_optimizer
from toy.augment import other_voice
from toy.microbatches import Float64Sums, like_length
from toy.muon import Muon, for_muon

PARTS = {"encoder": ["speech_encoder"], "projector": ["speech_projector"], "llm": ["llm", "lm_head"],
         "generator": ["speech_generator"], "face": ["face_decoder"]}


@dataclass(frozen=True)
class Stage:
    """A column of the paper's table. Parts without a rate are frozen, the speech encoder always."""
    tasks: tuple           # of the training samples
    losses: tuple          # the losses of `ExOmni.forward` that are summed
    rates: dict            # part -> learning rate
    epochs: float
    batch: int             # samples per optimizer step, over all processes and accumulated micro-batches
    warmup: float          # share of the steps
    accumulate: int        # gradient accumulation: micro-batches per process and step
    replay: dict = field(default_factory=dict)  # task of an earlier stage -> number of its samples that are mixed in
    plain_mse: bool = False     # the face loss without its velocity term
    toy: bool = False      # toy/: Muon for matrices, micro-batches of similar length, voice augmentation


ASR, TTS, FACE, QA, CHAT = ("asr",), ("tts",), ("face",), ("qa",), ("chat",)
STAGES = {
    # Table 7 of v1. Its stage IV has batch 8 with accumulation 4, which v2's table calls batch 32. The projector of
    # stage IV is marked as trained, at rate 0: frozen here.
    "v1": {
        1: Stage(ASR, ("text",), {"projector": 1e-3}, 1, 128, 0.3, 1),
        2: Stage(TTS, ("units",), {"generator": 1e-4}, 3, 128, 0.1, 1),
        3: Stage(FACE, ("face",), {"face": 1e-3}, 10, 128, 0.1, 1),
        4: Stage(QA + CHAT, LOSSES, {"llm": 2e-6, "generator": 5e-5, "face": 5e-5}, 3, 32, 0.1, 4)},
    # Table 2 of v2. Its text-to-speech-face samples have the task "face": a text, its units and its face.
    "v2": {
        1: Stage(ASR, ("text",), {"projector": 1e-3}, 1, 128, 0.3, 1),
        2: Stage(FACE, ("units", "face"), {"generator": 1e-4, "face": 1e-4}, 2, 128, 0.1, 2, plain_mse=True),
        3: Stage(QA, LOSSES, {"projector": 2e-5, "llm": 2e-6, "generator": 2e-5, "face": 2e-5}, 2, 32, 0.1, 4,
                 replay={"asr": 10_000, "face": 10_000}, plain_mse=True)},
    # For language models less than 512 wide. Stage IV replays reading aloud ("face"): the answers alone are too few to
    # learn speech and face from. It also replays typed conversations and transcription, which it would forget.
    "mini": {
        1: Stage(ASR, ("text",), {"projector": 2e-3}, 0.4, 48, 0.1, 4, toy=True),
        2: Stage(TTS, ("units",), {"generator": 2e-3}, 10, 16, 0.1, 4, toy=True),
        3: Stage(FACE, ("face",), {"face": 2e-3}, 5, 16, 0.1, 4, toy=True),
        4: Stage(QA, LOSSES, {"projector": 2e-3, "llm": 2e-3, "generator": 5e-4, "face": 5e-4}, 1.7, 48, 0.1, 6,
                 replay={"chat": 12000, "face": 2000, "asr": 4000}, toy=True)}}


# ---------------------------------------------------------------- trained and frozen parts, FSDP2, optimizers

def parameters(model, part: str) -> dict:
    """The parameters of a part, by name."""
    return {name: p for name, p in model.named_parameters() if name.split(".")[0] in PARTS[part]}


def freeze(model, trained) -> None:
    """The trained parts get gradients and training mode (dropout), all others neither."""
    model.eval()
    for part, names in PARTS.items():
        for module in (getattr(model, name) for name in names):
            if module is not None:                                  # a tied model has no lm_head
                module.requires_grad_(part in trained).train(part in trained)


def shard(model, state: dict, device) -> None:
    """FSDP2 with one group per transformer block, one for the rest of each part, and one for the rest of the model (the
    LLM's embedding, last norm and head). So all weights of a group belong to one part and have one dtype. Gradients are
    summed in float32, the toy's in float64 (`Float64Sums`)."""
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
    """AdamW with a parameter group per trained part, and a list of (rate, Muon) for the toy's matrices."""
    groups, muons = [], []
    for part, rate in state["rates"].items():
        own = parameters(model, part)
        matrices = {name: p for name, p in own.items() if state["toy"] and for_muon(name, p)}
        groups.append({"params": [p for name, p in own.items() if name not in matrices], "lr": rate, "rate": rate})
        muons += [(rate, Muon(matrices))] if matrices else []
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0, fused=True), muons


def schedule(step: int, steps: int, warmup: float) -> float:
    """Factor of the learning rates in step 0 ... steps - 1: linear warm-up to 1, then a cosine down to 0."""
    ramp = round(warmup * steps)
    if step < ramp:
        return (step + 1) / ramp
    return 0.5 + 0.5 * cos(pi * (step - ramp) / max(1, steps - ramp))


# ---------------------------------------------------------------- batches

def grouping(state: dict, model, training, samples) -> tuple:
    """The least number of micro-batches per process and step; a function (mixture, samples of a step) -> the
    micro-batches of all processes, lists of samples; and one -> the samples' lengths. In the toy's recipe the total
    number of micro-batches does not depend on the number of processes."""
    world, toy = rank_and_world()[1], state["toy"]
    accumulate = min(-(-state["accumulate"] // world) if toy else state["accumulate"], state["batch"] // world)
    lengths = partial(lengths_of, config=model.config, losses=state["losses"],
                      rates=token_rates(training, samples, model.tokenizer))
    group = partial(like_length, count=world * accumulate) if toy else partial(
        micro_batches, lengths=lengths, world=world, accumulate=accumulate, budget=state["tokens"])
    return accumulate, group, lengths


def to_device(loaded: list, model, state: dict, device) -> list:
    """The micro-batches of a step, loaded by `loading.Steps` -> [(number, batch), ...] on the device."""
    def augment(samples):
        seeds = [hash((state["seed"], state["step"], n)) for n in samples]
        return (lambda mel, n: other_voice(mel.cpu(), seeds[n]).to(device)) if state["toy"] else None
    return [(number, on_device(batch, model.config.speech_encoder, device, augment(samples)))
            for number, samples, batch in loaded]


def count(batches: list) -> dict:
    """For all these batches together: the counts that each loss and accuracy of `ExOmni.forward` is divided by, the
    number of clips, and that of tokens and units."""
    counts = dict.fromkeys((*LOSSES, "text_accuracy", "units_accuracy", "clips", "tokens"), 0)
    for batch in batches:
        for name, n in loss_counts(batch).items():
            counts[name] += int(n)
        counts["clips"] += len(batch.get("owners", ()))
        counts["tokens"] += int(batch["mask"].sum())
    counts["tokens"] += counts["units_accuracy"]
    return counts


@torch.no_grad()
def validate(model, mixture, numbers, state: dict, size: int, always, device, autocast) -> dict:
    """Each loss and accuracy, averaged over these samples, in batches of `size`; the same result on every rank. All
    ranks run equally many batches: surplus ones are repeats and not counted. Updates state["best"]."""
    rank, world = rank_and_world()
    terms = [*state["losses"], *(f"{name}_accuracy" for name in state["losses"] if name != "face")]
    sums, counts = dict.fromkeys(terms, 0.0), count([])
    batches = chunks(mixture, numbers, size)
    model.eval()
    for n in range(rank, -(-len(batches) // world) * world, world):
        batch = assemble([mixture[i] for i in batches[n % len(batches)]], model, state["losses"], always)
        with autocast():
            values = model(on_device(batch, model.config.speech_encoder, device), dict.fromkeys(terms, 1))
        if n < len(batches):
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
    """Forward and backward of each micro-batch -> this rank's share of the losses. Losses are divided by the counts
    of the whole batch, so that micro-batches and ranks add up. FSDP averages over the ranks: hence times their number.
    """
    divisors, losses = {name: max(1, counts[name]) for name in state["losses"]}, dict.fromkeys(state["losses"], 0.0)
    for number, batch in batches:
        torch.manual_seed(hash((state["seed"], state["step"], number)))         # for dropout
        with autocast():
            terms = model(batch, divisors)
        with sums.micro_batch(last=number == batches[-1][0]) if sums else nullcontext():
            (rank_and_world()[1] * sum(terms.values())).backward()
        losses |= {name: losses[name] + term.detach() for name, term in terms.items()}
    return losses


def assert_trained(parts: dict, trained) -> bool:
    """Assert that exactly the trained parts have gradients; returns True."""
    reached = {part for part, own in parts.items() if any(p.grad is not None for p in own.values())}
    assert reached == set(trained), f"gradients reached {sorted(reached)}, expected {sorted(trained)}"
    return True


def step_optimizers(trained: list, adamw, muons: list, sums: Float64Sums | None, state: dict) -> tuple:
    """Clip the gradients to norm 1 and update the weights. Returns the norm before clipping, and the rate of each part.
    Where the norm is not finite, weights and moments are left unchanged."""
    for p in trained:
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad  # None: no sample of the batch used this part
    norm = sums.clip(trained) if sums else torch.nn.utils.clip_grad_norm_(trained, 1.0)
    norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
    skipped, factor = ~norm.isfinite(), schedule(state["step"], state["steps"], state["warmup"])
    for group in adamw.param_groups:
        group["lr"] = factor * group["rate"]
    adamw.found_inf = skipped.float()               # fused AdamW skips its update where this is 1, on the device
    adamw.step()
    for rate, muon in muons:
        if not skipped:                                             # waits for the device: in the toy's recipe alone
            muon.step(factor * rate)
    for p in trained:
        p.grad = None
    return norm, {part: factor * rate for part, rate in state["rates"].items()}


def prepare(model, state: dict, device, recompute) -> tuple:
    """Freeze, checkpoint activations, shard over the processes. Returns {part: its parameters} and the optimizers."""
    freeze(model, state["rates"])
    if recompute or recompute is None and device.type == "cuda":
        for layer in (*model.llm.layers, *model.speech_generator.llm.layers):
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    for module in (getattr(model, name) for part in state["rates"] for name in PARTS[part]):
        if module is not None:
            module.float()                              # an optimizer step is below the resolution of bfloat16
    if rank_and_world()[1] > 1:
        shard(model, state, device)
    return {part: parameters(model, part) for part in PARTS}, *optimizers(model, state)


def train(args) -> None:
    device, (rank, world) = cli.pick_device(args.device), rank_and_world()
    warnings.filterwarnings("ignore", "This DataLoader will create")        # --workers may exceed the cores
    # Rank 0 goes first: data that it has verified, the others do not verify again.
    state, model, splits, resumed = first_rank_first(lambda: open_training(args, STAGES, device))
    (training, samples, _), (validation, val_samples, _) = splits
    autocast = partial(torch.autocast, device.type, torch.bfloat16, enabled=state["dtype"] == "bfloat16")
    cache = open_cache(args.cache, state, model, training, samples, device, autocast) if args.cache else None
    parts, adamw, muons = prepare(model, state, device, args.recompute)
    trained = [p for part in state["rates"] for p in parts[part].values()]
    sums = Float64Sums(model, trained) if state["toy"] else None
    accumulate, group, lengths = grouping(state, model, training, samples)
    has_sound = lambda mixture, numbers: bool((mixture.column("audio length", numbers) >= 0).any())
    needed = [*state["losses"], *["clips"] * has_sound(training, samples)]      # if > 0, all parts get gradients
    always = ()
    if world > 1:                                                               # FSDP: the same modules on each rank
        always = ("units", "face", *["mel"] * ("clips" in needed or has_sound(validation, val_samples)))
    if rank == 0:
        announce(args, state, model, parts, splits, accumulate, device)
    tensors = optimizer_tensors(parts, adamw, muons, state)
    if resumed:
        load_optimizer(Path(args.out), tensors)
    saver, gradients_checked = Saver(Path(args.out), model, tensors, state["step"]), False
    log = Log(saver, state, device, resumed)
    steps, last = state["steps"], args.stop_at or state["steps"]
    reader = read_ahead(Steps(training, samples, model, state, group, lengths, always, rank, world, cache), last,
                        4 * (device.type == "cuda") if args.workers is None else args.workers, device)

    with interrupts() as interrupted, closing(saver):
        for loaded in log.reading(reader):
            batches = to_device(loaded, model, state, device)
            counts = sum_over_ranks(count([batch for *_, batch in loaded])
                                    | {"stop": len(interrupted), "skipped": log.in_a_row / world,
                                       "writing": saver.writing()}, device)
            with log.pause():
                if not counts["writing"]:                       # no rank still writes the last checkpoint
                    saver.finish()
            log.check(state["step"], counts["skipped"])
            if counts["stop"]:
                break
            losses = backward(model, batches, counts, state, sums, autocast)
            if not gradients_checked and all(counts[name] for name in needed):
                gradients_checked = assert_trained(parts, state["rates"])
            norm, rates = step_optimizers(trained, adamw, muons, sums, state)
            state["seen"], state["step"] = state["seen"] + state["batch"], state["step"] + 1
            done = state["step"]
            log.add(losses, norm, counts["tokens"])
            if done % args.log_every == 0 or done == steps:
                log.training(done, rates)
            with log.pause():
                if done % (args.val_every or -(-steps // 5)) == 0 or done == steps:
                    size = -(-state["batch"] // (world * accumulate))
                    figures = validate(model, validation, val_samples, state, size, always, device, autocast)
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
    distributed = "RANK" in os.environ and not dist.is_initialized()        # started by torchrun
    try:
        with cli.one_line_errors(debug=args.debug), named_rank():
            if args.plan:
                print(*report(args, STAGES), sep="\n")
                return
            if distributed:
                join(cli.pick_device(args.device), PARENT)
            with exclusive_out(args):
                train(args)
    finally:
        if distributed and dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "__main__":
    main()
