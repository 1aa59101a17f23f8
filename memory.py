"""The memory that a training will need, computed from the configs alone (train.py --plan).

A process holds, in bytes per parameter:

                      one process              FSDP2, W processes
    weights           4 trained, c frozen      the same / W      float32, c: 2 in bfloat16, 4 in float32
    gradients         4 trained                the same / W
    AdamW's moments   8 trained                the same / W
    copies            2 trained in bfloat16    c gathered: the LLM's embedding and head, which stay gathered, and of
                                               the part that is running all but its blocks, and two blocks

and activations that are saved for the backward pass, in bytes per position (`block`): a trained matrix saves its input,
an elementwise product both factors, a norm its input, attention its queries, keys, values and output (never the N x N
scores). With recomputation a transformer block saves only its input; the rest exists for one block at a time. The text
loss saves float32 logits, and has three such tensors in its backward pass.

The peak is at one of these times (`plan`): after the forward pass; in the backward pass of a part; when FSDP2 gathers
the tensors that stay gathered (as received and in order: twice); when it reduces the gradients of tensors outside of
blocks: c bytes of each, 4 for the sum that is sent, 4 / W for the result.

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
CARDS, USABLE = (80, 96), 0.9   # GiB; the rest is for CUDA, NCCL and fragmentation
PARTS = ("encoder", "projector", "llm", "text", "generator", "units", "face")   # in the order of the forward pass
LENGTHS = (60, 120, 420)        # of a long sample: tokens of the prompt, tokens of the reply, units (34 s)


@dataclass(frozen=True)
class Case:
    """A training configuration."""
    config: ExOmniConfig
    tasks: tuple                    # as in train.Stage; samples are of the first task
    losses: tuple
    rates: dict
    world: int = 1                  # processes
    samples: int = 1                # per micro-batch
    lengths: tuple = LENGTHS
    dtype: str = "bfloat16"
    recompute: bool = True
    gpu: bool = True                # a GPU has fused norms, which save less

    @property
    def c(self) -> int:
        """Bytes per number in the compute dtype."""
        return 2 if self.dtype == "bfloat16" else 4

    @property
    def sound(self) -> bool:
        """Whether a sample has a window of sound."""
        return self.tasks[0] in ("asr", "qa")

    def reached(self, part: str) -> bool:
        """Whether gradients flow to or through a part: it, or one before it, is trained."""
        return any(other in self.rates for other in PARTS[:PARTS.index(part) + 1])


def block(case: Case, config: Qwen3Config, trained: bool) -> int:
    """Bytes that a Qwen3 block saves per position."""
    D, F = config.hidden_size, config.intermediate_size
    q, kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    x = case.c if case.world > 1 else 4                 # bytes per number of the residual stream
    norms = 2 * x * D + case.c * (q + kv) if case.gpu else \
        4 * (2 * D + q + kv) + trained * (2 * x * D + case.c * (q + kv))
    return norms + case.c * (2 * q + 2 * kv + (2 * D + 4 * F if trained else 3 * F))


def blocks(case: Case, config: Qwen3Config, trained: bool) -> int:
    """Bytes that all blocks and the last norm save per position."""
    block_input = config.hidden_size * (case.c if case.world > 1 else 4)
    each = block_input if case.recompute else block(case, config, trained)
    return config.num_hidden_layers * each + 4 * config.hidden_size * (1 if case.gpu or not trained else 2)


def fusion(case: Case, D: int, depth: int, inner: int, N: int, C: int) -> int:
    """Bytes that a trained TQGF of N queries and C context rows saves."""
    per_query = 4 * case.c * inner + 2 * (4 + case.c) * D + case.c * 8 * D
    return depth * (N * per_query + C * ((4 + case.c) * D + 2 * case.c * inner)) + 4 * N * D


def activations(case: Case) -> dict:
    """part -> bytes per sample that it saves in the forward pass for its backward pass; "text": float32 logits."""
    config, c, rates = case.config, case.c, case.rates
    prompt, R, U = case.lengths
    llm, g, face, saved = config.llm, config.generator, config.face, {}
    S = config.speech_encoder.max_source_positions // config.projector_stride * case.sound
    if "projector" in rates:
        saved["projector"] = c * S * (config.projector_stride * config.speech_encoder.d_model + config.projector_hidden)
    if case.reached("llm"):
        saved["llm"] = (S + prompt + R) * blocks(case, llm, "llm" in rates)
    if "text" in case.losses:
        saved["text"] = 4 * R * llm.vocab_size
    if case.reached("generator") and "units" in case.losses:
        D, rows = g.llm.hidden_size, R + U + 2
        saved["generator"] = (c * R * (llm.hidden_size + 2 * CONTEXT_VECTORS * D)
                              + fusion(case, D, g.tqgf_depth, g.tqgf_heads * g.tqgf_dim_head, R, CONTEXT_VECTORS * R)
                              + rows * blocks(case, g.llm, "generator" in rates) + c * (U + 1) * D)
        saved["units"] = 4 * (U + 1) * (g.unit_vocab + 3)
    if "face" in rates:
        D, T, inner = face.dim, frames_for_units(U), face.tqgf_heads * face.tqgf_dim_head
        layer = c * 9 * D + 2 * D * (4 if case.gpu else c) + (c * 4 * D + 4 * D if face.dropout else 0)
        saved["face"] = (fusion(case, D, face.tqgf_depth, inner, T, U + 1) + T * (face.layers * layer + 4 * c * D)
                         + U * c * (face.state_dim + face.unit_dim + D))
    return saved


def recomputed(case: Case) -> dict:
    """part -> bytes per sample while one block is recomputed, with its first gradient."""
    prompt, R, U = case.lengths
    S = case.config.speech_encoder.max_source_positions // case.config.projector_stride * case.sound
    rows = {"llm": (S + prompt + R, case.config.llm), "generator": (R + U + 2, case.config.generator.llm)}
    return {part: n * (block(case, config, part in case.rates) + case.c * config.intermediate_size) * case.recompute
            for part, (n, config) in rows.items()}


def sizes(config: ExOmniConfig) -> dict:
    """part -> number of parameters: all, those outside of transformer blocks, those of the largest block."""
    model = weights.skeleton(lambda: ExOmni(config))
    count = lambda modules: sum(p.numel() for module in modules if module is not None for p in module.parameters())
    parts = {"encoder": ([model.speech_encoder], model.speech_encoder.layers),
             "projector": ([model.speech_projector], []), "llm": ([model.llm, model.lm_head], model.llm.layers),
             "generator": ([model.speech_generator], model.speech_generator.llm.layers),
             "face": ([model.face_decoder], model.face_decoder.encoder)}
    return {part: (count(whole), count(whole) - count(blocks), max((count([b]) for b in blocks), default=0))
            for part, (whole, blocks) in parts.items()}


def plan(case: Case, counts: dict) -> dict:
    """Bytes per process at the peak, which is after the first micro-batch of a step: "weights", "gradients", "moments",
    "copies", "activations", their sum "peak", and "when" it is. counts: `sizes`."""
    c, world, B = case.c, case.world, case.samples
    whole, rest, largest = ({part: count[i] for part, count in counts.items()} for i in range(3))
    trained = sum(whole[part] for part in case.rates)
    frozen = sum(whole.values()) - trained
    fixed = {"weights": (4 * trained + c * frozen) / world, "gradients": 4 * trained / world,
             "moments": 8 * trained / world}
    copies = {part: c * (rest[part] * (part != "llm") + 2 * largest[part] + rest["llm"]) if world > 1 else
              2 * trained * (c == 2) for part in counts}
    saved = {part: B * size for part, size in activations(case).items()}
    again = {part: B * size for part, size in recomputed(case).items()}
    times, total = {"gather": (2 * c * rest["llm"] * (world > 1), 0)}, 0        # name -> bytes of copies, activations
    for part in PARTS:
        total += saved.get(part, 0)
        if part in saved:
            running = {"text": "llm", "units": "generator"}.get(part, part)
            more = 2 * saved[part] if part in ("text", "units") else again.get(part, 0)
            times[f"backward of {part}"] = copies[running], total + more
        if world > 1 and part in case.rates:
            gathered = c * rest["llm"] * (part != "llm" and case.reached("llm"))
            times[f"gradients of {part}"] = gathered + (c + 4 + 4 / world) * rest[part], total - saved.get(part, 0)
    times["losses"] = copies[running], total + saved.get("text", 0)
    when = max(times, key=lambda name: sum(times[name]))
    fixed |= {"copies": times[when][0], "activations": times[when][1]}
    return fixed | {"when": when, "peak": sum(fixed.values())}


def report(args, table: dict):
    """Yields the lines of train.py --plan. args: its arguments; table: train.STAGES. Raises ValueError or OSError."""
    if args.init_from is None:
        raise ValueError(f"--plan needs --init-from: a checkpoint, or one of {', '.join(PRESETS)}")
    config = PRESETS.get(args.init_from) or ExOmniConfig.from_dir(args.init_from)
    recipe, dtype = args.recipe or "v1", args.dtype or "bfloat16"
    if recipe == "mini":
        raise ValueError("--plan is for the recipes v1 and v2: mini is small, its log.jsonl says what it takes")
    (prompt, R, U), wanted = LENGTHS, ("weights", "gradients", "moments", "copies", "activations")
    counts = sizes(config)
    yield (f"{args.init_from}, {recipe}, {args.plan} processes, {dtype}; GiB of each process when most is needed. A "
           f"sample has {prompt} tokens that ask and, where it is spoken, a window of sound; {R} tokens, {U} units and "
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
