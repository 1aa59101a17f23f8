"""The benchmark sections of gpu_check.py: decoding, one answer at the paper's size, training steps.

Each is a generator of pieces of markdown. The project's modules are imported where they are used, so that an import
error fails one section only.

Shapes: B batch, N tokens, S speech rows, U units (12.5 per second), T face frames (30 per second), D width,
V vocabulary.
"""
import re
import resource
import time
from dataclasses import asdict, dataclass
from functools import partial
from math import isfinite
from statistics import median

import torch
import torch.nn.functional as F
from torch import nn

import weights

DATASHEET = {"H100 80GB HBM3": 989e12, "H200": 989e12, "A100": 312e12}      # FLOP/s, bfloat16, dense
PAPER = {"RTF": "2.158", "speech TTFT": "0.029", "face latency": "0.012"}   # v1 Table 10: one H20, trained weights


# ---------------------------------------------------------------- measuring

def wait(device: str) -> None:
    """Wait for the GPU."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(work, device: str, repeats: int = 1) -> float:
    """Seconds of work(), the mean of `repeats` calls in a row."""
    wait(device)
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    wait(device)
    return (time.perf_counter() - start) / repeats


def forget_peak(device: str) -> None:
    """Reset the peak memory (on a GPU)."""
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak(device: str) -> str:
    """Peak GiB of tensors since `forget_peak`; on a CPU, of the process since its start."""
    bytes_ = torch.cuda.max_memory_allocated() if device == "cuda" else \
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return f"{bytes_ / 2 ** 30:.2f}"


def bandwidth(device: str, tiny: bool) -> tuple:
    """GB/s of a large copy (bytes read and written) and of a matrix-vector product (bytes read), the best of three."""
    rows = 2 ** 10 if tiny else 2 ** 18
    a, vector = (torch.randn(shape, device=device, dtype=torch.bfloat16) for shape in ((rows, 4096), (4096,)))
    b, speeds = torch.empty_like(a), []
    for work, moved in ((lambda: b.copy_(a), 2 * a.nbytes), (lambda: torch.mv(a, vector), a.nbytes)):
        work()
        speeds.append(moved / min(seconds(work, device, 10) for _ in range(3)) / 1e9)
    return tuple(speeds)


def matmul_speed(device: str, tiny: bool) -> float:
    """FLOP/s of a large bfloat16 matrix product, the best of three."""
    n = 256 if tiny else 8192
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    a @ b
    return 2 * n ** 3 / min(seconds(lambda: a @ b, device, 5) for _ in range(3))


def random_model(build, device: str, dtype: torch.dtype) -> nn.Module:
    """build() on the device with small random weights; norms are one, biases zero."""
    model = weights.empty(build, device, dtype)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.normal_(std=0.02) if p.ndim > 1 else p.fill_(0 if name.endswith("bias") else 1)
    return model


def table(head: list, rows: list) -> str:
    """A markdown table with four digits per number. Raises ValueError for numbers that are not finite."""
    def cell(value):
        if isinstance(value, float) and not isfinite(value):
            raise ValueError(f"{value} was measured in the row of {row[0]}")
        return str(value) if not isinstance(value, float) else f"{value:.4g}" if value < 1000 else f"{value:,.0f}"

    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in rows:
        lines.append("| " + " | ".join(map(cell, row)) + " |")
    return "\n".join(lines)


# ---------------------------------------------------------------- decoding

def make_decoder(llm, weight, prompt: int, new: int, graph: bool = True):
    """A greedy decoder of exactly `new` tokens with output matrix weight (V, D), by default with a CUDA graph."""
    from decode import GREEDY, Decoder
    decoder = Decoder(llm, llm.embed_tokens, partial(F.linear, weight=weight), GREEDY, 1, prompt + new, new)
    if not graph:
        decoder.capture = lambda: None
    return decoder


@torch.inference_mode()
def decode(decoder, ids, new: int) -> float:
    """Read the prompt ids (1, N) and decode -> seconds per token, without the first, which comes with the prompt."""
    device = decoder.device.type
    lengths, maximum = torch.tensor([ids.shape[1]]), torch.full((1,), new)
    decoder.begin(decoder.llm.embed_tokens(ids), lengths, torch.zeros(1), maximum, 0)
    took = seconds(decoder.run, device)
    assert int(decoder.count) == new, f"{int(decoder.count)} tokens were decoded, expected {new}"
    return took / (new - 1)


def decoding(device: str, tiny: bool):
    """Greedy decoding at two sizes in bfloat16, with and without CUDA graph, as a share of the bandwidth."""
    from checkpoint import PRESETS
    from qwen3 import SIZES, Qwen3
    copied, read = bandwidth(device, tiny)
    yield (f"A large copy moves {copied:.0f} GB/s (bytes read and written), a matrix-vector product reads {read:.0f} "
           "GB/s; shares are of the larger. A token reads all weights once, but the embedding only where it is the "
           "output matrix too, and the whole KV cache. Batch 1; peak memory is of tensors, weights included.")
    config = PRESETS["tiny"].llm
    llm = random_model(lambda: Qwen3(config), device, torch.float32)
    ids = torch.arange(16, device=device)[None]
    pair = [make_decoder(llm, llm.embed_tokens.weight, 16, 100, graph) for graph in (True, False)]
    for decoder in pair:
        decode(decoder, ids, 100)
    assert torch.equal(pair[0].ids[:, :100], pair[1].ids[:, :100]), "the CUDA graph decodes other ids than eager code"
    yield ("Decoded twice in float32 at a small shape, with a CUDA graph where there are any and without, the 100 ids "
           "are the same.")
    sizes = {"tiny": config} if tiny else {name: SIZES[name] for name in ("qwen3-0.6b", "qwen3-8b")}
    for name, config in sizes.items():
        yield decoding_of(name, config, device, max(copied, read), *((16, 16, 16) if tiny else (128, 256, 64)))


def decoding_of(name: str, config, device: str, limit: float, prompt: int, new: int, new_eager: int) -> str:
    """The table of one size; limit: GB/s."""
    from qwen3 import Qwen3
    forget_peak(device)
    llm = random_model(lambda: Qwen3(config), device, torch.bfloat16)
    weight = llm.embed_tokens.weight if config.tie_word_embeddings else random_model(
        lambda: nn.Linear(config.hidden_size, config.vocab_size, bias=False), device, torch.bfloat16).weight
    ids, rows = torch.randint(0, config.vocab_size, (1, prompt), device=device), []
    for graph, count in ((True, new), (False, new_eager)) if device == "cuda" else ((False, new_eager),):
        decoder = make_decoder(llm, weight, prompt, count, graph)
        decode(decoder, ids, count)                     # warm-up, capture
        per_token = median(decode(decoder, ids, count) for _ in range(3))
        touched = sum(p.nbytes for p in (*llm.layers.parameters(), weight)) + decoder.cache.keys.nbytes * 2
        rows.append([name, "CUDA graph" if graph else "eager", prompt, count, 1e3 * per_token, 1 / per_token,
                     touched / 1e9, 100 * touched / per_token / 1e9 / limit, peak(device)])
    return table(["decoding, bfloat16", "how", "prompt", "new tokens", "ms per token", "tokens/s", "GB per token",
                  "% of bandwidth", "peak GiB"], rows)


# ---------------------------------------------------------------- one answer

FIGURES = {
    "RTF": "all, over the duration of the speech",
    "all": "s for the whole answer: text, units, face and waveform, one after the other",
    "first text token": "s: speech encoded, prompt read, first token chosen",
    "text": "s until the text is complete",
    "speech TTFT": "s from the question to the first unit, the text included",
    "first unit, after the text": "s from the complete text to the first unit (the paper does not say from when it "
                                  "counts)",
    "units": "s for all units",
    "units per second": "of the unit decoder, after the first",
    "face latency": "s for all face frames once units are there",
    "waveform": "s for all samples once units are there",
    "first block": "s for the samples of the first block of 10 units (0.8 s)",
    "first sound": "s from the question: text, first block of units, first block of samples; a sum of these, as "
                   "`generate` makes the sound last"}


@dataclass(frozen=True)
class EndsWhenAllowed:
    """A repetition-aware unit sampler that ends a reply as soon as the end is allowed, after 2 units per text id: with
    random weights it might never end."""
    end: int

    def __call__(self, logits, recent, generator=None):
        from decode import RepetitionAware
        return RepetitionAware()(logits, recent, generator).masked_fill(logits[:, self.end].isfinite(), self.end)


def watch(owner, name: str, device: str, spans: list) -> None:
    """Wrap owner.name so that each call appends (name, start, end) to spans, with the GPU idle at both times."""
    inner = getattr(owner, name)

    def outer(*args, **kwargs):
        wait(device)
        start = time.perf_counter()
        result = inner(*args, **kwargs)
        wait(device)
        spans.append((name, start, time.perf_counter()))
        return result
    setattr(owner, name, outer)


def whole_model(tiny: bool, device: str):
    """ExOmni at the paper's size in bfloat16 with GLM-4-Voice's decoder in float32; without stop tokens."""
    from checkpoint import PRESETS
    from model import ExOmni
    from speech_decoder import SpeechDecoder, SpeechDecoderConfig
    config, voice = PRESETS["qwen3-8b"], SpeechDecoderConfig()
    if tiny:
        from prepare import TINY_DECODER
        config, voice = PRESETS["tiny"], TINY_DECODER
    model = random_model(lambda: ExOmni(config), device, torch.bfloat16)
    model.speech_decoder = random_model(lambda: SpeechDecoder(voice), device, torch.float32)
    model.config.stop_ids = ()
    return model


def answer(device: str, tiny: bool):
    """Ten seconds of speech asked, 64 text tokens and 128 units (10.24 s) answered, with sound and face."""
    from decode import Decoder
    from tokenizer import SPEECH_ID
    tokens, asked = (6, 1) if tiny else (64, 10)
    forget_peak(device)
    model, spans, rows = whole_model(tiny, device), [], []
    yield table(["part", "million parameters"], [[name, sum(p.numel() for p in part.parameters()) / 1e6]
                                                 for name, part in model.named_children()])
    for owner, name in ((Decoder, "begin"), (model, "encode_clips"), (model, "write_text"), (model, "animate"),
                        (model.speech_generator, "generate"), (model.speech_decoder, "decode")):
        watch(owner, name, device, spans)
    prompt = [*range(20), SPEECH_ID, *range(20, 30)]
    sampler = EndsWhenAllowed(model.config.generator.unit_vocab)
    for _ in range(4):
        spans.clear()
        wait(device)
        start = time.perf_counter()
        reply = model.generate(prompt, torch.randn(16_000 * asked), tokens, unit_sampler=sampler,
                               generator=torch.Generator().manual_seed(0))
        wait(device)
        rows.append(latencies(reply, spans, start, time.perf_counter(), model.speech_decoder, device))
    U, T = len(reply.units), len(reply.face)
    assert (len(reply.text_ids), U) == (tokens, 2 * tokens), f"{len(reply.text_ids)} tokens, {U} units"
    assert reply.face.isfinite().all() and reply.waveform.isfinite().all(), "the answer holds NaN or infinite numbers"
    yield (f"{asked} s of speech asked; {tokens} text tokens, {U} units = {U / 12.5:.2f} s of speech, {T} face frames "
           f"and {len(reply.waveform)} samples answered. Batch 1, greedy text, repetition-aware units. Medians of "
           "three answers after a first one, in which the CUDA graphs are captured. Peak memory with all weights: "
           f"{peak(device)} GiB. The paper's figures are of trained weights on one H20 (v1 Table 10).")
    yield table(["figure", "what it is", "here", "paper"], [
        [name, what, median(row[name] for row in rows[1:]), PAPER.get(name, "-")] for name, what in FIGURES.items()])


def latencies(reply, spans: list, start: float, end: float, decoder, device: str) -> dict:
    """The values of FIGURES from the spans of one answer. `begin` is called for the text, then for the units."""
    first_text, first_unit = (b for name, a, b in spans if name == "begin")
    last = {name: (a, b) for name, a, b in spans}
    took = {name: b - a for name, (a, b) in last.items()}
    text, U, block = last["write_text"][1], len(reply.units), decoder.config.flow.encoder.block_size
    step = (last["generate"][1] - first_unit) / max(1, U - 1)
    first_block = median(seconds(lambda: next(iter(decoder.stream(reply.units[:block].tolist()))), device)
                         for _ in range(3))
    return {"RTF": (end - start) * 12.5 / U, "all": end - start, "first text token": first_text - start,
            "text": text - start, "speech TTFT": first_unit - start, "first unit, after the text": first_unit - text,
            "units": took["generate"], "units per second": 1 / step, "face latency": took["animate"],
            "waveform": took["decode"], "first block": first_block,
            "first sound": first_unit - start + (block - 1) * step + first_block}


# ---------------------------------------------------------------- training

def synthetic_batch(config, B: int, sizes: dict, device: str) -> dict:
    """A batch of `ExOmni.forward` with everything in it: one clip and one spoken reply with its face per sample."""
    from face_decoder import frames_for_units
    from speech_generator import IGNORE
    from tokenizer import SPEECH_ID
    N, reply, U, encoder = sizes["text"], sizes["reply"], sizes["units"], config.speech_encoder
    ids = torch.randint(0, min(config.stop_ids), (B, N), device=device)
    ids[:, -1], ids[:, 4] = config.stop_ids[0], SPEECH_ID
    labels = ids.clone()
    labels[:, :-reply] = IGNORE
    T = frames_for_units(U)
    return {"input_ids": ids, "labels": labels, "mask": torch.ones_like(ids, dtype=torch.bool),
            "mel": torch.randn(B, encoder.num_mel_bins, encoder.n_frames, device=device),
            "units": torch.randint(0, config.generator.unit_vocab, (B, U), device=device),
            "face": torch.rand(B, T, config.face.channels, device=device), "frames": torch.full((B,), T, device=device)}


def work_of(model, B: int, sizes: dict) -> float:
    """FLOP of a step by the formula in the report: factor x parameters x positions, without embeddings."""
    def size(module):
        tables = sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Embedding))
        return sum(p.numel() for p in module.parameters()) - tables

    config, generator, reply, U = model.config, model.speech_generator, sizes["reply"], sizes["units"]
    states = config.speech_encoder.max_source_positions
    S = states // config.projector_stride
    head = config.llm.hidden_size * config.llm.vocab_size
    return B * sum((2 * size(model.speech_encoder) * states, 2 * size(model.speech_projector) * S,
                    6 * size(model.llm) * (sizes["text"] - 1 + S), 6 * head * reply,
                    6 * size(generator.input_proj) * reply, 6 * size(generator.tqgf) * (reply - 1),
                    6 * size(generator.llm) * (reply + U + 2), 6 * size(generator.llm_decoder) * (U + 1),
                    6 * size(model.face_decoder) * (U * 12 // 5)))


def attention_kernels(step, device: str) -> tuple:
    """step() under the profiler -> rows (operation, calls, device ms) of attention, and the names of its kernels."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile
    with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device == "cuda")) as profiler:
        step()
        wait(device)
    rows, kernels = [], set()
    for event in profiler.key_averages():
        if event.key.startswith("aten::_scaled_dot_product"):
            rows.append([event.key.removeprefix("aten::_scaled_dot_product_"), event.count,
                         getattr(event, "device_time_total", 0) / 1e3])
        elif getattr(event, "device_type", None) == DeviceType.CUDA and re.search("flash|fmha|sdpa", event.key):
            kernels.add(re.split(r"[<(]", event.key.removeprefix("void "))[0])
    return sorted(rows), sorted(kernels)


def steps_of(config, sizes: dict, state: dict, device: str, most: int, recompute: bool) -> dict:
    """Measures five training steps of two micro-batches, each of as many samples as fit, up to `most`."""
    import train
    from model import ExOmni
    forget_peak(device)
    model = random_model(lambda: ExOmni(config), device, torch.bfloat16)
    parts, adamw, _ = train.prepare(model, state, torch.device(device), recompute)
    trained = [p for part in state["rates"] for p in parts[part].values()]
    autocast = partial(torch.autocast, device, torch.bfloat16)

    def step(batch):
        adamw.zero_grad()                               # gradients of a step that ran out of memory
        losses = train.backward(model, [(0, batch), (1, batch)], train.count([batch] * 2), state, None, autocast)
        return {**losses, "norm": train.step_optimizers(trained, adamw, [], None, state)[0]}

    B, first = largest_batch(lambda B: step(synthetic_batch(config, B, sizes, device)), device, most)
    forget_peak(device)
    batch = synthetic_batch(config, B, sizes, device)
    took = median(seconds(lambda: step(batch), device) for _ in range(5))
    return {"B": B, "first": first, "s": took, "peak": peak(device), "work": 2 * work_of(model, B, sizes),
            "kernels": attention_kernels(lambda: step(batch), device),
            "billions": [sum(p.numel() for p in part) / 1e9 for part in (trained, model.parameters())]}


def training(device: str, tiny: bool):
    """Steps of stage IV (v1) with an LLM of 1.7B, as train.py makes them on one GPU."""
    import memory
    import train
    from checkpoint import PRESETS
    config = PRESETS["tiny" if tiny else "qwen3-1.7b"]
    sizes = {"text": 24, "reply": 8, "units": 20} if tiny else {"text": 300, "reply": 80, "units": 250}
    row = train.STAGES["v1"][4]
    state = asdict(row) | {"dtype": "bfloat16", "seed": 0, "step": 0, "steps": 1000}
    speed, name = matmul_speed(device, tiny), torch.cuda.get_device_name() if device == "cuda" else ""
    known = next((value for key, value in DATASHEET.items() if key in name), None)
    S = config.speech_encoder.max_source_positions // config.projector_stride
    N, counts = sizes["text"] - 1 + S, memory.sizes(config)
    lengths, rows = (sizes["text"] - sizes["reply"], sizes["reply"], sizes["units"]), []
    for recompute in (False, True):
        found = steps_of(config, sizes, state, device, 2 if tiny else 32, recompute)
        B, took, work = found["B"], found["s"], found["work"]
        case = memory.Case(config, row.tasks, row.losses, row.rates, 1, B, lengths, recompute=recompute)
        rows.append([f"{B} samples", "recomputed" if recompute else "kept", 1e3 * took, 2 * B * N / took,
                     2 * B * sizes["units"] / took, work / 1e12, speed / 1e12, 100 * work / took / speed,
                     100 * work / took / known if known else "-", found["peak"],
                     memory.plan(case, counts)["peak"] / memory.GIB])
    trained, everything = found["billions"]
    yield (f"LLM, generator and face decoder are trained, {trained:.3g} of {everything:.3g} billion parameters; "
           "bfloat16 compute, float32 weights of what is trained, fused AdamW. Activations are kept, then recomputed "
           "as train.py does by default on a GPU. Two micro-batches a step, of 32 samples each, halved until they fit. "
           f"A sample has {sizes['text'] - 1} text tokens, {sizes['reply']} of them the reply, "
           f"{S} speech rows, {sizes['units']} units. MFU = FLOP / step time / FLOP/s: 6 FLOP per parameter and "
           "position of a trained part and 2 of a frozen one, not counting tables, attention scores and recomputation; "
           "FLOP/s of a large bfloat16 matrix product in the same process, or of the datasheet. Planned is what "
           "train.py --plan reckons. The first step of the last row: "
           + ", ".join(f"{key} {float(value):.3g}" for key, value in found["first"].items()) + ".")
    yield table(["training, stage IV", "activations", "ms per step", "LLM positions/s", "units/s", "TFLOP per step",
                 "TFLOP/s of a product", "MFU %", "of the datasheet %", "peak GiB", "planned GiB"], rows)
    rows, kernels = found["kernels"]
    yield table(["attention in one step", "calls", "device ms"], rows)
    yield "Kernels: " + (", ".join(f"`{kernel}`" for kernel in kernels) or "none seen by the profiler") + "."
    flash = sum(row[1] for row in rows if re.match("(flash|cudnn)_attention", row[0]) and "backward" not in row[0])
    layers = config.llm.num_hidden_layers + config.generator.llm.num_hidden_layers
    assert flash >= layers, f"{flash} calls of flash attention in a step, expected one or more for each of {layers}"


def largest_batch(step, device: str, B: int) -> tuple:
    """The first of B, B / 2, ... that fits into memory, and what step(B) returned."""
    while True:
        try:
            return B, step(B)
        except torch.cuda.OutOfMemoryError:
            if B == 1:
                raise
        forget_peak(device)                             # here, as the handler holds the tensors of the failed step
        B //= 2
