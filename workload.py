"""For bench.py: random training samples of typical lengths, and the FLOP of a training step on them.

SMALL is a shape between mini and the paper's: an LLM of 38 M and a generator of 48 M parameters, mini's face decoder.

Shapes: B samples, N tokens, S speech rows, U units, T face frames, D width, V vocabulary.
"""
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

import weights
from checkpoint import PRESETS, ExOmniConfig
from data import Split, Writer, assemble, on_device
from face_decoder import frames_for_units
from frozen import open_cache
from loading import Mixture
from model import ExOmni
from qwen3 import Qwen3Config
from speech_generator import CONTEXT_VECTORS, IGNORE, GeneratorConfig
from tokenizer import SPEECH_ID, message_parts
from whisper import SAMPLE_RATE

QUESTION_SECONDS, QUESTION_TOKENS, REPLY_TOKENS, UNITS_PER_TOKEN = 8.0, 40, 60, 3.5         # of a mean sample
TRUNK = Qwen3Config(960, 512, 1536, 12, 8, 4, 64, max_position_embeddings=4096, tie_word_embeddings=True)
SMALL = replace(PRESETS["mini"], llm=TRUNK, generator=GeneratorConfig(TRUNK, 1024, 1, 8, 64),
                face=replace(PRESETS["mini"].face, state_dim=TRUNK.hidden_size))


class Numbers:
    """Replaces a tokenizer: its texts are token ids, written as decimal numbers."""

    def __init__(self, config: ExOmniConfig):
        self.im_end_id, self.size = config.stop_ids[0], min(config.stop_ids)

    def encode(self, text: str) -> list:
        return [int(word) % self.size if word.isdigit() else 0 for word in text.split()]

    def encode_chat(self, messages: list) -> list:
        parts = [part for message in messages for part in message_parts(message)]
        return [i for part in parts for i in ([SPEECH_ID] if part == SPEECH_ID else self.encode(part))]


def made_up(task: str, B: int, config: ExOmniConfig, asked: int = QUESTION_TOKENS) -> list:
    """B random samples of a task, in the form of `data.Split`. Answers have 0.5 to 1.5 times the mean length, evenly
    spaced. asked: tokens of a question that is not spoken."""
    random, samples = np.random.default_rng(0), []
    text = lambda n: " ".join(map(str, random.integers(1, 1 << 30, n)))
    for scale in random.permutation(np.linspace(0.5, 1.5, B) if B > 1 else np.ones(1)):
        reply, spoken = round(REPLY_TOKENS * scale), task in ("asr", "qa")
        U, question = round(reply * UNITS_PER_TOKEN), [{"type": "speech"}] if spoken else text(asked)
        count = min(config.speech_encoder.window, round(scale * QUESTION_SECONDS * SAMPLE_RATE))
        samples.append({
            "id": len(samples), "messages": [{"role": "user", "content": question}],
            "answer": text(reply), "units": random.integers(0, config.generator.unit_vocab, U),
            "audio": 0.1 * random.standard_normal(count, np.float32) if spoken else None,
            "face": random.random((frames_for_units(U), 52), np.float32)})
    return samples


def on_disk(samples: list, task: str, config: ExOmniConfig, directory) -> Mixture:
    """Write samples of `made_up` as prepared data and open it, in the same order."""
    with Writer(Path(directory)) as out:
        for sample in samples:
            out.add({name: sample[name] for name in ("messages", "answer")} | {"id": str(sample["id"]), "task": task},
                    **{name: sample[name] for name in ("audio", "units", "face")})
        out.finish(unit_vocab=config.generator.unit_vocab)
    return Mixture([Split(Path(directory))], [1.0])


def random_weights(build, device="cpu", dtype=torch.float32) -> nn.Module:
    """build() with small random weights; norms are one, biases zero."""
    model = weights.empty(build, device, dtype)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.normal_(std=0.02) if p.ndim > 1 else p.fill_(0 if name.endswith("bias") else 1)
    return model


def random_model(config: ExOmniConfig, device) -> ExOmni:
    """ExOmni with random weights in float32, and `Numbers` for a tokenizer."""
    model = random_weights(lambda: ExOmni(config), device)
    model.tokenizer = Numbers(config)
    return model


def casting(state: dict, device) -> partial:
    """The autocast of train.py."""
    return partial(torch.autocast, device.type, torch.bfloat16, enabled=state["dtype"] == "bfloat16")


def cached_read(model: ExOmni, samples: list, task: str, state: dict, device, directory):
    """Fill a cache of the frozen parts' states in the directory. Returns a function that reads the samples as a batch
    with these states, as train.py --cache does. Raises ValueError for a stage that augments the audio."""
    mixture, numbers = on_disk(samples, task, model.config, Path(directory) / "data"), np.arange(len(samples))
    cache = open_cache(Path(directory) / "states", state, model, mixture, numbers, device, casting(state, device))
    return lambda: on_device(cache.put(assemble(samples, model, state["losses"]), numbers),
                             model.config.speech_encoder, device)


def step_flop(model: ExOmni, batch: dict, state: dict) -> tuple:
    """FLOP of a training step on this batch, and its number of text tokens, speech rows and units together.

    A matrix of P numbers costs 2 P per position in the forward pass; in the backward pass 2 P for the gradient of its
    input (in trained parts and those after them), and 2 P for its own gradient (in trained parts). Padding, embeddings,
    attention scores and recomputation are not counted."""
    tables = lambda module: sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Embedding))
    size = lambda module: sum(p.numel() for p in module.parameters() if p.ndim > 1) - tables(module)
    encoder, generator, face = model.speech_encoder, model.speech_generator, model.face_decoder
    windows, (B, _) = len(batch.get("mel", ())), batch["input_ids"].shape
    S = windows * encoder.config.max_source_positions // model.config.projector_stride
    N = int(batch["mask"].sum() - (batch["input_ids"] == SPEECH_ID).sum()) + S
    reply, loss = int((batch["labels"] != IGNORE).sum()), state["losses"]
    frames = windows * encoder.config.max_source_positions              # conv1 runs at twice this rate
    rows = [("encoder", size(encoder) + size(encoder.conv1), frames),
            ("projector", size(model.speech_projector), S), ("llm", size(model.llm), N),
            ("llm", model.config.llm.hidden_size * model.config.llm.vocab_size, reply * ("text" in loss))]
    U = int((batch["units"] >= 0).sum()) if "units" in batch else 0
    fused = lambda tqgf: sum(size(m) for name, m in tqgf.named_modules() if name.endswith("to_kv"))
    if U:
        spoken, own = reply - B, fused(generator.tqgf)
        rows += [("generator", size(generator.input_proj), reply), ("generator", own, CONTEXT_VECTORS * reply),
                 ("generator", size(generator.tqgf) - own, spoken),
                 ("generator", size(generator.llm), spoken + U + 3 * B),
                 ("generator", size(generator.llm_decoder), U + B)]
    if "face" in batch:
        own, T = fused(face.tqgf) + size(face.speech_gen_projection), int(batch["frames"].sum())
        rows += [("face", own, U + B), ("face", size(face.speech_token_projection), U),
                 ("face", size(face) - own - size(face.speech_token_projection), T)]
    flop, reached = 0, False
    for part, numbers, positions in rows:
        reached |= part in state["rates"]
        flop += 2 * numbers * positions * (1 + reached + (part in state["rates"]))
    return flop, N + U
