"""Where the memory of a training goes, by arithmetic: before anything is opened (train.py --plan).

A process holds, in bytes per parameter:

                      one process              FSDP2, W processes
    weights           4 trained, c frozen      the same / W      float32, c: 2 in bfloat16, 4 in float32
    gradients         4 trained                the same / W
    AdamW's moments   8 trained                the same / W
    copies            2 trained in bfloat16    c of what is gathered: what is no block of the LLM (its table, its head)
                                               stays, and of a part that is running the rest and two blocks

and what the backward pass needs of the forward pass, in bytes per position (`block`): a matrix keeps what it multiplied
if it is trained, a product both factors, a norm what came in, attention its queries, keys, values and output (never
the N x N scores). With recomputation a transformer block keeps what came in, and one block at a time the rest. The
text's loss keeps a float32 number for each token that it predicts and each id of the vocabulary, three at its backward.

The most is needed at one of these moments (`plan`): when the losses are there; in the backward pass of a part; where
FSDP2 gathers what then stays (as it comes in, and sorted: twice); where it adds up the gradients of what lies in no
block: c bytes of each, 4 for the sum that is sent, 4 / W for what comes back.

Shapes: B samples, N tokens, S speech rows, R tokens of the reply, C context rows, U units, T face frames, D width.
"""
from argparse import Namespace
from dataclasses import dataclass, replace

import weights
from checkpoint import PRESETS, ExOmniConfig
from face_decoder import frames_for_units
from model import ExOmni
from qwen3 import Qwen3Config
from runs import choose_stage
from speech_generator import CONTEXT_VECTORS

GIB = 2 ** 30
CARDS, USABLE = (80, 96), 0.9   # GiB; the rest is for CUDA, for NCCL and for gaps between what is there
PARTS = ("encoder", "projector", "llm", "text", "generator", "units", "face")   # in the order of the forward pass
LENGTHS = (60, 120, 420)        # of a long sample: tokens that ask, tokens of the reply, units (34 s)


@dataclass(frozen=True)
class Case:
    """What is trained how."""
    config: ExOmniConfig
    tasks: tuple                    # as of train.Stage; a sample is of the first
    losses: tuple
    rates: dict
    world: int = 1                  # processes
    samples: int = 1                # of a micro-batch
    lengths: tuple = LENGTHS
    dtype: str = "bfloat16"
    recompute: bool = True
    gpu: bool = True                # there a norm is one operation

    @property
    def c(self) -> int:
        """Bytes of a number that is computed."""
        return 2 if self.dtype == "bfloat16" else 4

    @property
    def sound(self) -> bool:
        """Whether a sample has a window of sound."""
        return self.tasks[0] in ("asr", "qa")

    def reached(self, part: str) -> bool:
        """Whether gradients flow to or through a part: it, or one before it, is trained."""
        return any(other in self.rates for other in PARTS[:PARTS.index(part) + 1])


def block(case: Case, config: Qwen3Config, trained: bool) -> int:
    """Bytes that a Qwen3 block keeps for each position."""
    D, F = config.hidden_size, config.intermediate_size
    asking, asked = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    came_in = case.c if case.world > 1 else 4
    norms = 2 * came_in * D + case.c * (asking + asked) if case.gpu else \
        4 * (2 * D + asking + asked) + trained * (2 * came_in * D + case.c * (asking + asked))
    return norms + case.c * (2 * asking + 2 * asked + (2 * D + 4 * F if trained else 3 * F))


def blocks(case: Case, config: Qwen3Config, trained: bool) -> int:
    """Bytes that all blocks and the last norm keep for each position."""
    came_in = config.hidden_size * (case.c if case.world > 1 else 4)
    each = came_in if case.recompute else block(case, config, trained)
    return config.num_hidden_layers * each + 4 * config.hidden_size * (1 if case.gpu or not trained else 2)


def fusion(case: Case, D: int, depth: int, inner: int, N: int, C: int) -> int:
    """Bytes that a trained TQGF of N queries and C context rows keeps."""
    asks = 4 * case.c * inner + 2 * (4 + case.c) * D + case.c * 8 * D
    return depth * (N * asks + C * ((4 + case.c) * D + 2 * case.c * inner)) + 4 * N * D


def activations(case: Case) -> dict:
    """part -> bytes that one sample keeps from the forward pass to its own backward pass; "text": float32 logits."""
    config, c, rates = case.config, case.c, case.rates
    asks, R, U = case.lengths
    llm, g, face, kept = config.llm, config.generator, config.face, {}
    S = config.speech_encoder.max_source_positions // config.projector_stride * case.sound
    if "projector" in rates:
        kept["projector"] = c * S * (config.projector_stride * config.speech_encoder.d_model + config.projector_hidden)
    if case.reached("llm"):
        kept["llm"] = (S + asks + R) * blocks(case, llm, "llm" in rates)
    if "text" in case.losses:
        kept["text"] = 4 * R * llm.vocab_size
    if case.reached("generator") and "units" in case.losses:
        D, rows = g.llm.hidden_size, R + U + 2
        kept["generator"] = (c * R * (llm.hidden_size + 2 * CONTEXT_VECTORS * D)
                             + fusion(case, D, g.tqgf_depth, g.tqgf_heads * g.tqgf_dim_head, R, CONTEXT_VECTORS * R)
                             + rows * blocks(case, g.llm, "generator" in rates) + c * (U + 1) * D)
        kept["units"] = 4 * (U + 1) * (g.unit_vocab + 3)
    if "face" in rates:
        D, T, inner = face.dim, frames_for_units(U), face.tqgf_heads * face.tqgf_dim_head
        layer = c * 9 * D + 2 * D * (4 if case.gpu else c) + (c * 4 * D + 4 * D if face.dropout else 0)
        kept["face"] = (fusion(case, D, face.tqgf_depth, inner, T, U + 1) + T * (face.layers * layer + 4 * c * D)
                        + U * c * (face.state_dim + face.unit_dim + D))
    return kept


def again(case: Case) -> dict:
    """part -> bytes that one sample takes while a block is computed again, with the first gradient in it."""
    asks, R, U = case.lengths
    S = case.config.speech_encoder.max_source_positions // case.config.projector_stride * case.sound
    rows = {"llm": (S + asks + R, case.config.llm), "generator": (R + U + 2, case.config.generator.llm)}
    return {part: n * (block(case, config, part in case.rates) + case.c * config.intermediate_size) * case.recompute
            for part, (n, config) in rows.items()}


def sizes(config: ExOmniConfig) -> dict:
    """part -> its parameters, those of them in no transformer block, and those of its largest block."""
    model = weights.skeleton(lambda: ExOmni(config))
    count = lambda modules: sum(p.numel() for module in modules if module is not None for p in module.parameters())
    parts = {"encoder": ([model.speech_encoder], model.speech_encoder.layers),
             "projector": ([model.speech_projector], []), "llm": ([model.llm, model.lm_head], model.llm.layers),
             "generator": ([model.speech_generator], model.speech_generator.llm.layers),
             "face": ([model.face_decoder], model.face_decoder.encoder)}
    return {part: (count(whole), count(whole) - count(blocks), max((count([b]) for b in blocks), default=0))
            for part, (whole, blocks) in parts.items()}


def plan(case: Case, counts: dict) -> dict:
    """What -> bytes of a process, from the second micro-batch of a step on; "when": the moment that takes the most, and
    "peak": all that is there then. counts: `sizes`."""
    c, world, B = case.c, case.world, case.samples
    whole, rest, largest = ({part: count[i] for part, count in counts.items()} for i in range(3))
    trained = sum(whole[part] for part in case.rates)
    frozen = sum(whole.values()) - trained
    fixed = {"weights": (4 * trained + c * frozen) / world, "gradients": 4 * trained / world,
             "moments": 8 * trained / world}
    copies = {part: c * (rest[part] * (part != "llm") + 2 * largest[part] + rest["llm"]) if world > 1 else
              2 * trained * (c == 2) for part in counts}
    kept = {part: B * size for part, size in activations(case).items()}
    redo = {part: B * size for part, size in again(case).items()}
    moments, so_far = {"gather": (2 * c * rest["llm"] * (world > 1), 0)}, 0     # name -> copies, activations
    for part in PARTS:
        so_far += kept.get(part, 0)
        if part in kept:
            runs = {"text": "llm", "units": "generator"}.get(part, part)
            more = 2 * kept[part] if part in ("text", "units") else redo.get(part, 0)
            moments[f"backward of {part}"] = copies[runs], so_far + more
        if world > 1 and part in case.rates:
            stays = c * rest["llm"] * (part != "llm" and case.reached("llm"))
            moments[f"gradients of {part}"] = stays + (c + 4 + 4 / world) * rest[part], so_far - kept.get(part, 0)
    moments["losses"] = copies[runs], so_far + kept.get("text", 0)
    when = max(moments, key=lambda name: sum(moments[name]))
    fixed |= {"copies": moments[when][0], "activations": moments[when][1]}
    return fixed | {"when": when, "peak": sum(fixed.values())}


def report(args, table: dict):
    """Yields the lines of train.py --plan. args: its command line; table: train.STAGES. Raises ValueError, OSError."""
    if args.init_from is None:
        raise ValueError(f"--plan needs --init-from: a checkpoint, or one of {', '.join(PRESETS)}")
    config = PRESETS.get(args.init_from) or ExOmniConfig.from_dir(args.init_from)
    recipe, dtype = args.recipe or "v1", args.dtype or "bfloat16"
    if recipe == "mini":
        raise ValueError("--plan is for the recipes v1 and v2: mini is small, its log.jsonl says what it takes")
    counts, (asks, R, U), wanted = sizes(config), LENGTHS, ("weights", "gradients", "moments", "copies", "activations")
    yield (f"{args.init_from}, {recipe}, {args.plan} processes, {dtype}; GiB of each process when most is needed. A "
           f"sample has {asks} tokens that ask and, where it is spoken, a window of sound; {R} tokens, {U} units and "
           f"{frames_for_units(U)} frames of a reply. Fits: samples of a micro-batch at most, in {USABLE:.0%} of it.")
    yield f"{'stage':6}{'recompute':>10}{'samples':>8}" + "".join(
        f"{what:>12}" for what in (*wanted, "all")) + "".join(f"  fits {card} GiB" for card in CARDS) + "  most at"
    for number in [args.stage] if args.stage else table[recipe]:
        stage = choose_stage(Namespace(**vars(args) | {"stage": number}), table[recipe], recipe)
        for recompute in (True, False) if args.recompute is None else (args.recompute,):
            case = Case(config, stage.tasks, stage.losses, stage.rates, args.plan,
                        max(1, stage.batch // args.plan // stage.accumulate), dtype=dtype, recompute=recompute)
            taken = plan(case, counts)
            yield f"{number:<6}{'yes' if recompute else 'no':>10}{case.samples:8}" + "".join(
                f"{taken[what] / GIB:12.2f}" for what in (*wanted, "peak")) + "".join(
                f"{largest(case, counts, card * GIB * USABLE):13}" for card in CARDS) + f"  {taken['when']}"


def largest(case: Case, counts: dict, room: float) -> int:
    """The largest micro-batch whose peak is within `room` bytes; 0 where none is."""
    fits = lambda B: plan(replace(case, samples=B), counts)["peak"] <= room
    low, high = 0, 1 << 16
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
