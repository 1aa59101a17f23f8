"""What only a GPU can show: golden numbers on it, speed of decoding, one answer at the paper's size, steps of training.

    python tests/gpu_check.py                                     # one GPU of 80 GB, at most 8 minutes; writes docs/gpu.md
    python tests/gpu_check.py --only decoding --out decoding.md   # one section
    python tests/gpu_check.py --device cpu --tiny --out tiny.md   # the same code on a CPU, in seconds: no speeds to learn

Every section is a process of its own with a time budget. One that fails or takes too long leaves its reason, what it had
measured, and the other sections; the exit code is 1 then, 2 without a GPU. The report is written anew after each section.
All weights are random and made on the device: no files but the golden ones are read, so speeds are real, answers are not.

Shapes: B batch, N tokens, S speech rows, U units (12.5 per second), T face frames (30 per second), M mel bins, L mel frames.
"""
import argparse
import os
import platform
import re
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from functools import partial
from math import isfinite
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))                           # the rest is imported where it is used: a section fails alone

import weights
from cli import one_line_errors

DATASHEET = {"H100 80GB HBM3": 989e12, "H200": 989e12, "A100": 312e12}      # FLOP/s, bfloat16, dense
PAPER = {"RTF": "2.158", "speech TTFT": "0.029", "face latency": "0.012"}   # v1 Table 10: one H20, trained weights


# ---------------------------------------------------------------- measuring

def wait(device: str) -> None:
    """Until the device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(work, device: str, repeats: int = 1) -> float:
    """Of one call of work(), the mean of `repeats` calls in a row."""
    wait(device)
    begun = time.perf_counter()
    for _ in range(repeats):
        work()
    wait(device)
    return (time.perf_counter() - begun) / repeats


def forget_peak(device: str) -> None:
    """Start measuring the peak of the memory again (on a GPU)."""
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak(device: str) -> str:
    """GiB that tensors took at most since `forget_peak`; on a CPU the process, ever."""
    bytes_ = torch.cuda.max_memory_allocated() if device == "cuda" else \
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return f"{bytes_ / 2 ** 30:.2f}"


def bandwidth(device: str, tiny: bool) -> tuple:
    """GB/s of a large copy, read and written bytes, and of a matrix-vector product, read bytes; the best of three."""
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
    """build() with small random weights, made on the device; norms start at one, biases at zero."""
    model = weights.empty(build, device, dtype)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.normal_(std=0.02) if p.ndim > 1 else p.fill_(0 if name.endswith("bias") else 1)
    return model


def table(head: list, rows: list) -> str:
    """A markdown table. Numbers are written with four digits. Raises ValueError for one that is not finite."""
    def cell(value):
        if isinstance(value, float) and not isfinite(value):
            raise ValueError(f"{value} was measured in the row of {row[0]}")
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in rows:
        lines.append("| " + " | ".join(map(cell, row)) + " |")
    return "\n".join(lines)


# ---------------------------------------------------------------- 1. golden numbers

class Outcomes:
    """A pytest plugin: the reports that count, and what is wrong in the failed ones."""

    def __init__(self):
        self.reports = []

    def pytest_runtest_logreport(self, report):
        if report.when == "call" or report.outcome != "passed":     # set-up and clean-up count where they are all there is
            self.reports.append(report)

    def pytest_collectreport(self, report):
        if report.failed:
            self.reports.append(report)

    def count(self, outcome: str) -> int:
        return sum(report.outcome == outcome for report in self.reports)

    def failures(self) -> list:
        """'test: reason' of each failed one."""
        lines = []
        for report in self.reports:
            if report.failed:
                crash = getattr(report.longrepr, "reprcrash", None)
                reason = " ".join((crash.message if crash else str(report.longrepr)).split())
                lines.append(f"{report.nodeid.rpartition('::')[2]}: {reason[:400]}")
        return lines


def golden(device: str, tiny: bool):
    """The golden tests with modules and numbers on the device, float32 sums without TF32, tolerances as on a CPU."""
    os.environ["GOLDEN_DEVICE"] = device                # tests/test_golden_*.py read it when they are imported
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    torch.backends.cudnn.allow_tf32 = False             # of matrix products it is off by default
    import pytest
    rows, failures = [], []
    for name in ("test_golden_ex_omni.py", "test_golden_glm4_voice.py"):
        outcomes, begun = Outcomes(), time.perf_counter()
        code = pytest.main(["-q", "-p", "no:cacheprovider", str(ROOT / "tests" / name)]
                           + ["-k", "tqgf or projector or speaker"] * tiny, plugins=[outcomes])
        rows.append([name, *map(outcomes.count, ("passed", "failed", "skipped")), time.perf_counter() - begun])
        failures += outcomes.failures() or [f"{name}: pytest ended with code {int(code)}"] * (int(code) != 0)
        yield table(["golden tests in float32", "passed", "failed", "skipped", "s"], rows[-1:])
    if failures:
        yield "\n".join(f"- {line}" for line in failures)
    assert not failures, f"{len(failures)} golden tests fail, the first is {failures[0]}"


# ---------------------------------------------------------------- 2. decoding

def make_decoder(llm, weight, prompt: int, new: int, graph: bool = True):
    """A greedy decoder of exactly `new` tokens with logits by weight (V, D), as a CUDA graph where that is possible."""
    from decode import GREEDY, Decoder
    decoder = Decoder(llm, llm.embed_tokens, partial(F.linear, weight=weight), GREEDY, 1, prompt + new, new)
    if not graph:
        decoder.capture = lambda: None
    return decoder


@torch.inference_mode()
def decode(decoder, ids, new: int) -> float:
    """Read the prompt ids (1, N) and decode -> seconds per token. The first came with the prompt and is not counted."""
    device = decoder.device.type
    lengths, maximum = torch.tensor([ids.shape[1]]), torch.full((1,), new)
    decoder.begin(decoder.llm.embed_tokens(ids), lengths, torch.zeros(1), maximum, 0)
    took = seconds(decoder.run, device)
    assert int(decoder.count) == new, f"{int(decoder.count)} tokens were decoded, expected {new}"
    return took / (new - 1)


def decoding(device: str, tiny: bool):
    """Greedy decoding of one sequence at two sizes in bfloat16, with and without CUDA graph, as a share of the bandwidth."""
    from checkpoint import PRESETS
    from qwen3 import SIZES, Qwen3
    copied, read = bandwidth(device, tiny)
    yield (f"A large copy moves {copied:.0f} GB/s (bytes read and written), a matrix-vector product reads {read:.0f} GB/s; "
           "shares are of the larger. A token reads all weights, but not the embedding where the output matrix is "
           "another one, and the whole KV cache, once. Batch 1; peak memory is of tensors, weights included.")
    config = PRESETS["tiny"].llm
    llm = random_model(lambda: Qwen3(config), device, torch.float32)
    ids = torch.arange(16, device=device)[None]
    pair = [make_decoder(llm, llm.embed_tokens.weight, 16, 100, graph) for graph in (True, False)]
    for decoder in pair:
        decode(decoder, ids, 100)
    assert torch.equal(pair[0].ids[:, :100], pair[1].ids[:, :100]), "the CUDA graph decodes other ids than eager code"
    yield "In float32 at a small shape the graph and the eager code decode the same 100 ids."
    sizes = {"tiny": config} if tiny else {name: SIZES[name] for name in ("qwen3-0.6b", "qwen3-8b")}
    for name, config in sizes.items():
        yield decoding_of(name, config, device, max(copied, read), *((16, 16, 16) if tiny else (128, 256, 64)))


def decoding_of(name: str, config, device: str, limit: float, prompt: int, new: int, new_eager: int) -> str:
    """The table of one size; limit: GB/s."""
    from qwen3 import Qwen3
    forget_peak(device)
    parts = {"llm": lambda: Qwen3(config)} | ({} if config.tie_word_embeddings else {
        "head": lambda: nn.Linear(config.hidden_size, config.vocab_size, bias=False)})
    model = random_model(lambda: nn.ModuleDict({part: build() for part, build in parts.items()}), device, torch.bfloat16)
    llm, weight = model["llm"], (model["llm"].embed_tokens if config.tie_word_embeddings else model["head"]).weight
    ids, rows = torch.randint(0, config.vocab_size, (1, prompt), device=device), []
    for graph, count in ((True, new), (False, new_eager)) if device == "cuda" else ((False, new_eager),):
        decoder = make_decoder(llm, weight, prompt, count, graph)
        decode(decoder, ids, count)                     # warm-up, capture
        per_token = median(decode(decoder, ids, count) for _ in range(3))
        touched = sum(p.nbytes for p in (*llm.layers.parameters(), weight)) + decoder.cache.keys.nbytes * 2
        rows.append([name, "CUDA graph" if graph else "eager", prompt, count, 1e3 * per_token, 1 / per_token, touched / 1e9,
                     100 * touched / per_token / 1e9 / limit, peak(device)])
    return table(["decoding, bfloat16", "how", "prompt", "new tokens", "ms per token", "tokens/s", "GB per token",
                  "% of bandwidth", "peak GiB"], rows)


# ---------------------------------------------------------------- 3. one answer

@dataclass(frozen=True)
class EndsWhenAllowed:
    """A unit sampler that ends a reply as soon as that is allowed, after 2 units per text id: random weights would go on.
    Until then repetition-aware sampling, as in use."""
    end: int

    def __call__(self, logits, recent, generator=None):
        from decode import RepetitionAware
        return RepetitionAware()(logits, recent, generator).masked_fill(logits[:, self.end].isfinite(), self.end)


def watch(owner, name: str, device: str, spans: list) -> None:
    """From now on every call of owner.name adds (name, begin, end) to spans, with the device waited for at both."""
    inner = getattr(owner, name)

    def outer(*args, **kwargs):
        wait(device)
        begun = time.perf_counter()
        result = inner(*args, **kwargs)
        wait(device)
        spans.append((name, begun, time.perf_counter()))
        return result
    setattr(owner, name, outer)


def whole_model(tiny: bool, device: str):
    """ExOmni at the paper's size in bfloat16 with GLM-4-Voice's decoder in float32; nothing ends its text."""
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
        begun = time.perf_counter()
        reply = model.generate(prompt, torch.randn(16_000 * asked), tokens, unit_sampler=sampler,
                               generator=torch.Generator().manual_seed(0))
        wait(device)
        rows.append(latencies(reply, spans, begun, time.perf_counter(), model.speech_decoder, device))
    U, T = len(reply.units), len(reply.face)
    assert (len(reply.text_ids), U) == (tokens, 2 * tokens), f"{len(reply.text_ids)} tokens, {U} units"
    assert reply.face.isfinite().all() and reply.waveform.isfinite().all(), "the answer holds NaN or infinite numbers"
    yield (f"{asked} s of speech asked; {tokens} text tokens, {U} units = {U / 12.5:.2f} s of speech, {T} face frames and "
           f"{len(reply.waveform)} samples answered. Batch 1, greedy text, repetition-aware units. Medians of three "
           "answers after a first one, in which the CUDA graphs are captured. Peak memory with all weights: "
           f"{peak(device)} GiB. The paper's figures are of trained weights on one H20 (v1 Table 10).")
    yield table(["figure", "what it is", "here", "paper"], [
        [name, what, median(row[name] for row in rows[1:]), PAPER.get(name, "-")] for name, what in FIGURES.items()])


FIGURES = {
    "RTF": "all, over the duration of the speech",
    "all": "s for the whole answer: text, units, face and waveform, one after the other",
    "first text token": "s: speech encoded, prompt read, first token chosen",
    "text": "s until the text is complete",
    "speech TTFT": "s from the complete text to the first unit",
    "first unit": "s from the question to the first unit",
    "units": "s for all units",
    "units per second": "of the unit decoder, after the first",
    "face latency": "s for all face frames once units are there",
    "waveform": "s for all samples once units are there",
    "first block": "s for the samples of the first block of 10 units (0.8 s)",
    "first sound": "s from the question: text, first block of units, first block of samples; a sum, as `generate` makes the "
                   "sound last"}


def latencies(reply, spans: list, begun: float, ended: float, decoder, device: str) -> dict:
    """The figures of FIGURES from the spans of one answer. The first "begin" is of the text, the second of the units."""
    (_, first_text), (_, first_unit) = ((a, b) for name, a, b in spans if name == "begin")
    last = {name: (a, b) for name, a, b in spans}
    took = {name: b - a for name, (a, b) in last.items()}
    text, U, block = last["write_text"][1], len(reply.units), decoder.config.flow.encoder.block_size
    step = (last["generate"][1] - first_unit) / max(1, U - 1)
    first_block = median(seconds(lambda: next(iter(decoder.stream(reply.units[:block].to(decoder.device)))), device)
                         for _ in range(3))
    return {"RTF": (ended - begun) * 12.5 / U, "all": ended - begun, "first text token": first_text - begun,
            "text": text - begun, "speech TTFT": first_unit - text, "first unit": first_unit - begun,
            "units": took["generate"], "units per second": 1 / step, "face latency": took["animate"],
            "waveform": took["decode"], "first block": first_block,
            "first sound": first_unit - begun + (block - 1) * step + first_block}


# ---------------------------------------------------------------- 4. training

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
    """FLOP of a step by the formula in the report: factor x parameters x positions, lookups in tables are free."""
    def size(module):
        tables = sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Embedding))
        return sum(p.numel() for p in module.parameters()) - tables

    config, generator, reply, U = model.config, model.speech_generator, sizes["reply"], sizes["units"]
    states = config.speech_encoder.max_source_positions
    rows = states // config.projector_stride
    head = config.llm.hidden_size * config.llm.vocab_size
    return B * sum((2 * size(model.speech_encoder) * states, 2 * size(model.speech_projector) * rows,
                    6 * size(model.llm) * (sizes["text"] - 1 + rows), 6 * head * reply,
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


def training(device: str, tiny: bool):
    """Steps of stage IV (v1) with an LLM of 1.7B, as train.py makes them on one GPU."""
    import train
    from checkpoint import PRESETS
    from model import ExOmni
    config = PRESETS["tiny" if tiny else "qwen3-1.7b"]
    sizes = {"text": 24, "reply": 8, "units": 20} if tiny else {"text": 300, "reply": 80, "units": 250}
    state = asdict(train.STAGES["v1"][4]) | {"dtype": "bfloat16", "seed": 0, "step": 0}
    forget_peak(device)
    model = random_model(lambda: ExOmni(config), device, torch.float32)
    adamw, _ = train.prepare(model, state, torch.device(device), True)
    trained = [p for group in adamw.param_groups for p in group["params"]]
    autocast = partial(torch.autocast, device, torch.bfloat16)

    def step(batch):
        losses = train.backward(model, [(0, batch)], train.count([batch]), state, autocast)
        norm = train.clip(trained)
        adamw.step()
        adamw.zero_grad()
        return {**losses, "norm": norm}

    B, figures = largest_batch(lambda B: step(synthetic_batch(config, B, sizes, device)), device, 2 if tiny else 8)
    forget_peak(device)
    batch = synthetic_batch(config, B, sizes, device)
    took = median(seconds(lambda: step(batch), device) for _ in range(5))
    speed, name = matmul_speed(device, tiny), torch.cuda.get_device_name() if device == "cuda" else ""
    known = next((value for key, value in DATASHEET.items() if key in name), None)
    work, N = work_of(model, B, sizes), sizes["text"] - 1 + config.speech_encoder.max_source_positions // 5
    yield (f"LLM, generator and face decoder are trained, {sum(p.numel() for p in trained) / 1e9:.3g} of "
           f"{sum(p.numel() for p in model.parameters()) / 1e9:.3g} billion parameters; bfloat16 compute, float32 weights, "
           f"activations recomputed, fused AdamW. One micro-batch of {B} samples: {N} LLM positions ({sizes['text']} text "
           f"tokens with the speech placeholder, {sizes['reply']} of them the reply; the rest speech rows), {sizes['units']} "
           "units. MFU = FLOP / step time / FLOP/s, with 6 FLOP per parameter and position of a trained part and 2 of a "
           "frozen one, not counting tables, attention scores and recomputation; FLOP/s of an 8192-wide bfloat16 matrix "
           "product in the same process. Losses of the first step: "
           + ", ".join(f"{key} {float(value):.3g}" for key, value in figures.items()) + ".")
    yield table(["training, stage IV", "ms per step", "LLM positions/s", "units/s", "TFLOP per step", "TFLOP/s of a product",
                 "MFU %", "of the datasheet %", "peak GiB"],
                [[f"{B} samples", 1e3 * took, B * N / took, B * sizes["units"] / took, work / 1e12, speed / 1e12,
                  100 * work / took / speed, 100 * work / took / known if known else "-", peak(device)]])
    rows, kernels = attention_kernels(lambda: step(batch), device)
    yield table(["attention in one step", "calls", "device ms"], rows)
    yield "Kernels: " + (", ".join(f"`{kernel}`" for kernel in kernels) or "none seen by the profiler") + "."
    flash = sum(row[1] for row in rows if re.match("(flash|cudnn)_attention", row[0]) and "backward" not in row[0])
    layers = config.llm.num_hidden_layers + config.generator.llm.num_hidden_layers
    assert flash >= layers, f"{flash} calls of flash attention in one step, expected at least one for each of {layers} layers"


def largest_batch(step, device: str, B: int) -> tuple:
    """The first of B, B / 2, ... samples that fit, and what step(B) returned. step leaves nothing behind but its gradients."""
    while True:
        try:
            return B, step(B)
        except torch.cuda.OutOfMemoryError:
            if B == 1:
                raise
        forget_peak(device)                             # outside of the handler, which holds the tensors of the failed step
        B //= 2


# ---------------------------------------------------------------- the report

SECTIONS = {            # name: function, title, budget in seconds
    "golden": (golden, "Golden numbers", 110),
    "decoding": (decoding, "Decoding", 90),
    "answer": (answer, "One answer at the paper's size", 110),
    "training": (training, "Training steps of stage IV", 130)}


def machine(device: str) -> str:
    """What it was measured on."""
    versions = f"torch {torch.__version__}, Python {platform.python_version()}, {time.strftime('%Y-%m-%d')}"
    if device != "cuda":
        return f"- {platform.machine()} CPU; {versions}"
    try:
        driver = subprocess.run(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True,
                                text=True, timeout=20).stdout.split()[0]
    except (OSError, IndexError, subprocess.TimeoutExpired):
        driver = "unknown"
    memory = torch.cuda.get_device_properties(0).total_memory / 2 ** 30
    return (f"- {torch.cuda.get_device_name()}, {memory:.0f} GiB; driver {driver}, CUDA {torch.version.cuda}, cuDNN "
            f"{torch.backends.cudnn.version()}; {versions}")


def section(name: str, args) -> tuple:
    """One section in a process of its own -> its markdown, and the reason why it failed, if it did."""
    _, title, budget = SECTIONS[name]
    begun, reason = time.perf_counter(), None
    with tempfile.TemporaryDirectory() as directory:
        into = Path(directory) / "section.md"
        command = [sys.executable, __file__, "--section", name, "--out", str(into), "--device", args.device]
        try:
            done = subprocess.run(command + ["--tiny"] * args.tiny, cwd=ROOT, stderr=subprocess.PIPE, text=True,
                                  timeout=budget)
            sys.stderr.write(done.stderr)
            if done.returncode:
                reason = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        except subprocess.TimeoutExpired:
            reason = f"stopped after its budget of {budget} s"
        text = into.read_text(encoding="utf-8") if into.exists() else ""
    took = f"{time.perf_counter() - begun:.0f} s of {budget} s"
    print(f"{name}: {took}, {reason or 'done'}", flush=True)
    return f"## {title}\n\n" + (f"**Failed:** {reason}\n\n" if reason else "") + f"{text}\n\n{took}.", reason


def measure(args) -> None:
    """The section named in args, in this process: every part of its report is written when it is known."""
    parts = []
    for part in SECTIONS[args.section][0](args.device, args.tiny):
        parts.append(part)
        Path(args.out).write_text("\n\n".join(parts), encoding="utf-8")


def report(args) -> int:
    """All sections asked for, one after the other -> the exit code."""
    head = ["# On a GPU", "Written by `python tests/gpu_check.py`. Random weights: the speeds are real, the answers are not.",
            f"{machine(args.device)}\n- `python tests/gpu_check.py {' '.join(sys.argv[1:])}`".replace(" `", " `", 1)]
    done, failed = {name: f"## {SECTIONS[name][1]}\n\nNot measured yet." for name in args.only}, 0
    for name in args.only:
        done[name], reason = section(name, args)
        failed += reason is not None
        with weights.replacing(args.out) as temporary:
            temporary.write_text("\n\n".join([*head, *done.values()]) + "\n", encoding="utf-8")
    print(f"wrote {args.out}; {failed} of {len(done)} sections failed")
    return 1 if failed else 0


def main(argv=None) -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="(default: %(default)s)")
    p.add_argument("--tiny", action="store_true", help="tiny shapes: whether the code works, not how fast it is")
    p.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="these sections (default: all)")
    p.add_argument("--out", help="(default: docs/gpu.md on a GPU)")
    p.add_argument("--section", choices=SECTIONS, help=argparse.SUPPRESS)
    args = p.parse_args(argv)
    if args.section:
        return measure(args)
    with one_line_errors():
        if args.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("no GPU that torch can use was found: nothing was measured; --device cpu --tiny --out FILE "
                             "goes through the same code")
        if args.out is None and args.device != "cuda":
            raise ValueError("give --out: docs/gpu.md is for figures of a GPU")
        args.out = Path(args.out or ROOT / "docs" / "gpu.md").resolve()
        code = report(args)
    sys.exit(code)


if __name__ == "__main__":
    main()
