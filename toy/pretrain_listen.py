"""Trains the mini preset's language model and speech encoder from scratch; larger presets download theirs.

    make_vocabulary(texts, "parts/llm")                 a byte-level BPE
    train_llm(split, config, "parts")                   Qwen3's architecture     -> parts/llm
    train_encoder(split, config, "parts")               Whisper's architecture   -> parts/encoder
    compose("parts", "runs/base")                       all parts, a random projector, generator and face decoder

Each part is a directory in the format of Hugging Face, with the tensor names of Qwen3 and Whisper. So `compose` uses
the same command as for every other checkpoint: `prepare.py weights --preset mini --llm parts/llm ...`. It also needs
parts/speech_tokenizer and parts/speech_decoder (pretrain_speak.py). Existing parts are not trained again.

split: prepared data (data.py); a row of each clip also has "words" and "phones", [[name, start, end], ...] in seconds,
and the "family" of the voice, which decides how phones are named.

Shapes: B batch, N tokens, S speech rows after the projector, M mel bins, L mel frames (100 per second), D width.
"""
import base64
import math
from collections import Counter, defaultdict
from dataclasses import asdict
from pathlib import Path

import numpy as np
import regex
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pad_sequence

import disk
import prepare
import weights
from checkpoint import ExOmniConfig
from data import Split
from qwen3 import Qwen3, Qwen3Config
from speech_generator import IGNORE
from tokenizer import SPEECH_ID, SYSTEM_PROMPT, Tokenizer
from tokenizer_files import QWEN_PATTERN
from toy.augment import augment
from toy.fit import fit
from whisper import HOP, SAMPLE_RATE, WhisperConfig, WhisperEncoder, log_mel

MEL_RATE = SAMPLE_RATE // HOP          # mel frames per second

# ---------------------------------------------------------------- the vocabulary

def make_vocabulary(texts, folder, merges: int = 1277) -> Tokenizer:
    """Byte-level BPE with at most `merges` merges, written as folder/mini.tiktoken; the ids of control tokens follow.
    texts: those of users folded (tokenizer.py), as the tokenizer will fold them.

    Ties are broken by the bytes, so that the same texts give the same file. The roles and the system prompt count as
    often as there are texts, so that they take few tokens.
    """
    texts = list(texts)
    counts = Counter(piece for text in texts for piece in regex.findall(QWEN_PATTERN, text))
    for piece in regex.findall(QWEN_PATTERN, f"system\n{SYSTEM_PROMPT}\nuser\nassistant\n"):
        counts[piece] += len(texts)
    pieces = [(tuple(bytes([b]) for b in piece.encode()), count) for piece, count in counts.items()]
    tokens, pairs, pieces_with = [bytes([b]) for b in range(256)], Counter(), defaultdict(set)

    def tally(n, sign):
        """Add (sign 1) or subtract (-1) the neighbouring pairs of the n-th piece."""
        piece, count = pieces[n]
        for pair in zip(piece, piece[1:]):
            pairs[pair] += sign * count
            pieces_with[pair].add(n)

    for n in range(len(pieces)):
        tally(n, 1)
    while len(tokens) < 256 + merges:
        best = max(pairs, key=lambda pair: (pairs[pair], pair), default=None)
        if best is None or not pairs[best]:
            break
        tokens.append(best[0] + best[1])
        for n in pieces_with.pop(best):
            tally(n, -1)
            pieces[n] = merged(pieces[n][0], best), pieces[n][1]
            tally(n, 1)
        del pairs[best]
    lines = [f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(tokens)]
    with disk.replacing(Path(folder) / "mini.tiktoken") as temporary:
        temporary.write_text("".join(lines), encoding="utf-8")
    disk.write_json(Path(folder) / "tokenizer_config.json", {"fold_user_text": True})
    return Tokenizer.from_pretrained(folder)


def merged(piece: tuple, pair: tuple) -> tuple:
    """piece with each occurrence of the pair merged into one token, from the left."""
    if pair not in zip(piece, piece[1:]):
        return piece
    tokens, n = [], 0
    while n < len(piece):
        width = 2 if piece[n:n + 2] == pair else 1
        tokens.append(b"".join(piece[n:n + width]))
        n += width
    return tuple(tokens)


# ---------------------------------------------------------------- the language model

def spoken_tokens(words: list, tokenizer: Tokenizer, most: int, silence: int, rate: float, generator) -> list:
    """Token ids (S,), S <= most, that stand for speech rows (`rate` per second): the output of a perfect encoder and
    projector.

    words: [[word, start, end], ...] in seconds. The tokens of a word share the rows of its duration, at least one each;
    in between, and for a random time at the end, is the token `silence`. At random the duration is scaled by 0.8 to
    1.3, the start delayed by up to half a second, and one row in ten replaced by `silence`."""
    pace, late, rest, *lost = torch.rand(3 + most, generator=generator).tolist()
    ids, free = [silence] * most, 0
    for word, start, end in words:
        tokens = tokenizer.encode(f" {word}")
        first, last = (round((time * (0.8 + 0.5 * pace) + late / 2) * rate) for time in (start, end))
        first = max(first, free)
        free = max(last, first + len(tokens))
        for n in range(first, min(free, most)):
            ids[n] = tokens[(n - first) * len(tokens) // (free - first)]
    ids = [silence if loss < 0.1 else i for i, loss in zip(ids, lost)]
    return ids[:round(min(free, most) + rest * max(most - free, 0))]


def conversation(row: dict, words: list, tokenizer: Tokenizer, most: int, rate: float, generator) -> tuple:
    """A sample as text alone -> (ids, labels, noisy), all (N,); noisy is True for tokens that stand for its sound.

    The sound, with the given words, becomes `spoken_tokens`, or in one of four samples the plain words. One in four
    also begins with the system prompt; in use all do, but it is longer than the rest. Only the reply has labels."""
    bare, prompted = (torch.rand(2, generator=generator) < 0.25).tolist()
    prompted = prompted and row["messages"][0]["role"] != "system"
    messages = [{"role": "system", "content": SYSTEM_PROMPT}] * prompted + row["messages"]
    ids, noisy = [], []
    for i in tokenizer.encode_chat(messages):
        if i != SPEECH_ID:
            said = [i]
        elif bare:
            said = tokenizer.encode("".join(f" {word}" for word, _, _ in words))
        else:
            said = spoken_tokens(words, tokenizer, most, tokenizer.stop_ids[-1], rate, generator)
        ids, noisy = ids + said, noisy + [i == SPEECH_ID] * len(said)
    reply = tokenizer.encode(row["answer"]) + [tokenizer.im_end_id]
    return (torch.tensor(ids + reply), torch.tensor([IGNORE] * len(ids) + reply),
            torch.tensor(noisy + [False] * len(reply)))


def reply_loss(llm: Qwen3, chats: list, generator: torch.Generator) -> tuple:
    """Several `conversation`s -> (summed cross-entropy of the reply tokens, number predicted right, number of all).

    Embeddings of tokens that stand for sound get noise, up to half the standard deviation of the embedding matrix,
    which is the output matrix too."""
    ids, labels, noisy = (pad_sequence(column, batch_first=True, padding_value=value)
                          for column, value in zip(zip(*chats), (-1, IGNORE, False)))
    embeds = llm.embed_tokens(ids.clamp(min=0))
    level = 0.5 * torch.rand(len(chats), 1, 1, generator=generator) * embeds.detach().std()
    embeds = embeds + level * noisy[..., None] * torch.randn(embeds.shape, generator=generator)
    states = llm(embeds=embeds)                 # right padding needs no mask: the model is causal
    targets = F.pad(labels[:, 1:], (0, 1), value=IGNORE)
    supervised = targets != IGNORE
    logits, targets = F.linear(states[supervised], llm.embed_tokens.weight), targets[supervised]
    return F.cross_entropy(logits, targets, reduction="sum"), (logits.argmax(-1) == targets).sum(), len(targets)


INIT = 0.06            # std of the initial weights: with Qwen3's 0.02 so narrow a model starts to learn later
# Shares of the tasks in training. Reading aloud is a task of other parts, but the language model reads its prompts.
TASK_SHARES = {"chat": 0.5, "qa": 0.27, "asr": 0.18, "tts": 0.05}


def shares(kinds: list, wanted: dict) -> np.ndarray:
    """The probability of each sample, given its kind, such that the kinds have their wanted shares, relative to each
    other if some are missing. Raises ValueError if no sample is of a wanted kind."""
    counts = Counter(kinds)
    likely = np.array([wanted.get(kind, 0) / counts[kind] for kind in kinds])
    if not likely.sum():
        raise ValueError(f"nothing to learn from: expected samples of {', '.join(wanted)}, found {dict(counts)}; "
                         "make the data with `prepare.py demo`")
    return likely / likely.sum()


def train_llm(split: Split, config: ExOmniConfig, folder, steps: int = 2300, batch: int = 48, rate: float = 4e-3,
              seed: int = 0) -> None:
    """Train the language model on the domain's text, with folder/llm's vocabulary: to answer, and to repeat its input.

    For a sample with sound its input is that of a perfect encoder and projector (`spoken_tokens`), so that stage I can
    train the projector to it with the language model frozen. Also writes folder/generator."""
    out = Path(folder) / "llm"
    if (out / "model.safetensors").exists():
        return
    tokenizer = Tokenizer.from_pretrained(out)
    llm = untrained(config.llm, INIT, seed)
    most = config.speech_encoder.max_source_positions // config.projector_stride
    speech_rate = MEL_RATE / 2 / config.projector_stride
    likely = torch.from_numpy(shares([row["task"] for row in split.rows], TASK_SHARES))
    words = {tuple(row["audio"]): row["words"] for row in split.rows if {"audio", "words"} <= row.keys()}

    def loss(step, generator):
        picked = torch.multinomial(likely, batch, replacement=True, generator=generator).tolist()
        rows = [split.rows[i] for i in picked]
        chats = [conversation(row, words.get(tuple(row.get("audio", ()))), tokenizer, most, speech_rate, generator)
                 for row in rows]
        chats.sort(key=lambda chat: len(chat[0]))                   # two halves, to save padding
        halves = [reply_loss(llm, half, generator) for half in (chats[:batch // 2], chats[batch // 2:])]
        total, right, count = (sum(column) for column in zip(*halves))
        return total / count, {"accuracy": right / count}

    fit("llm", llm, loss, steps, rate, folder, seed=seed, matrices=layer_matrices(llm))
    write_generator(config, folder)
    write_part(out, asdict(llm.config) | {"eos_token_id": list(tokenizer.stop_ids)}, "model", llm)


def untrained(config: Qwen3Config, std: float, seed: int) -> Qwen3:
    """A Qwen3 with random weights of standard deviation `std`."""
    torch.manual_seed(seed)
    model = Qwen3(config)
    model.init_weights(std)
    return model


def write_generator(config: ExOmniConfig, folder, seed: int = 0) -> None:
    """folder/generator: the untrained Qwen3 that the speech generator starts from."""
    backbone = untrained(config.generator.llm, 0.02, seed)
    write_part(Path(folder) / "generator", asdict(backbone.config), "model", backbone)


def write_part(folder: Path, config: dict, prefix: str, module: nn.Module) -> None:
    """Write a part in the format of Hugging Face. The tensors come last: with their file the part is done."""
    disk.write_json(folder / "config.json", config)
    weights.write_tensors(folder / "model.safetensors", {f"{prefix}.{n}": t for n, t in module.state_dict().items()})


# ---------------------------------------------------------------- the encoder

class EncoderWithHeads(nn.Module):
    """The encoder with two heads for training: mel (B, M, L) -> logits (B, L / 2, phones), (B, L / 2, words).

    L is at most the encoder's window. Short clips are not padded to it in training, which halves the work."""

    def __init__(self, config: WhisperConfig, phones: int, words: int):
        super().__init__()
        self.encoder = WhisperEncoder(config)
        self.encoder.init_weights()
        with torch.no_grad():                   # else the positions are 20 times larger than the sound
            self.encoder.conv1.weight.mul_(3)
            self.encoder.conv2.weight.mul_(4)
        look_around(self.encoder)
        self.phones, self.words = nn.Linear(config.d_model, phones), nn.Linear(config.d_model, words)

    def forward(self, mel):
        encoder = self.encoder
        x = F.gelu(encoder.conv2(F.gelu(encoder.conv1(mel)))).transpose(1, 2)
        x = x + encoder.embed_positions.weight[:x.shape[1]]
        for layer in encoder.layers:
            x = layer(x)
        x = encoder.layer_norm(x)
        return self.phones(x), self.words(x)


NEAR = (2, 1, 3)       # distance, in states, at which half of a layer's heads attend, cycling over layers; others: * 3


@torch.no_grad()
def look_around(encoder: WhisperEncoder, sharpness: float = 2.0) -> None:
    """Initialise the attention heads such that each attends at a fixed distance, half of them backwards: they need not
    learn from scratch how to use the sinusoidal positions. The random query and key weights are scaled down.

    A position's (sine, cosine) pair, rotated by frequency times distance, is the pair of the position at that distance.
    So the key weights of each pair are the query's, rotated."""
    D, heads = encoder.config.d_model, encoder.config.encoder_attention_heads
    dim = D // heads
    frequencies = torch.exp(-math.log(10_000) * torch.arange(D // 2) / (D // 2 - 1))       # of `whisper.sinusoids`
    usable = (frequencies > 0.02).nonzero()[:, 0]                  # slower ones hardly change within a word
    sines = usable[torch.arange(dim // 2) * len(usable) // (dim // 2)]
    for n, layer in enumerate(encoder.layers):
        q, k = layer.self_attn.q_proj.weight.mul_(0.3), layer.self_attn.k_proj.weight.mul_(0.3)
        for head in range(heads):
            distance = NEAR[n % len(NEAR)] * (1, 3)[head // 2 % 2] * (-1, 1)[head % 2]
            turn = frequencies[sines] * distance
            sine_rows, cosine_rows = head * dim + torch.arange(0, dim - 1, 2), head * dim + torch.arange(1, dim, 2)
            q[sine_rows, sines] += sharpness
            q[cosine_rows, D // 2 + sines] += sharpness
            k[sine_rows, sines] += sharpness * turn.cos()
            k[sine_rows, D // 2 + sines] -= sharpness * turn.sin()
            k[cosine_rows, D // 2 + sines] += sharpness * turn.cos()
            k[cosine_rows, sines] += sharpness * turn.sin()


def layer_matrices(module: nn.Module) -> list:
    """The matrices of the transformer layers, which Muon trains."""
    return [p for name, p in module.named_parameters() if p.ndim == 2 and "layers." in name]


# Families whose phones have the same names and, within 10 ms, the same timing (tests/test_voices.py) share classes.
SAME_PHONES = {"kokoro": "flite", "hibari": "flite"}


def phone_names(row: dict) -> list:
    """[((family, phone), start, end), ...] of a row without pauses. espeak-ng gives the same names to other phones."""
    family = SAME_PHONES.get(row["family"], row["family"])
    return [((family, name), start, end) for name, start, end in row["phones"] if name != "pau"]


def classes(split: Split, spoken: list) -> tuple:
    """The classes of the two heads: {(family, phone): class}, {word: class}, from 1; 0 is silence in both."""
    rows = [split.rows[i] for i in spoken]
    phones = sorted({phone for row in rows for phone, _, _ in phone_names(row)})
    words = sorted({word for row in rows for word, _, _ in row["words"]})
    return {phone: n for n, phone in enumerate(phones, 1)}, {word: n for n, word in enumerate(words, 1)}


def frame_labels(spans: list, frames: int) -> torch.Tensor:
    """[(class, start, end)] in seconds -> (L,) class of each mel frame, 0 outside all spans. frames: L."""
    labels = torch.zeros(frames, dtype=torch.long)
    for n, start, end in spans:
        labels[round(start * MEL_RATE):round(end * MEL_RATE)] = n
    return labels


def spliced(a: tuple, b: tuple, cuts: tuple) -> tuple:
    """The first part of clip a and the last part of clip b, (mel, phones, words) each, cut at mel frames between words:
    a sequence of words that no sentence pattern predicts. At most as long as the longer clip."""
    return tuple(torch.cat([x[..., :cuts[0]], y[..., cuts[1]:]], -1)[..., :max(x.shape[-1], y.shape[-1])]
                 for x, y in zip(a, b))


# Shares of the families in training. Noise has no words: all its labels are 0.
FAMILY_SHARES = {"espeak": 0.28, "flite": 0.24, "kokoro": 0.29, "hibari": 0.15, "noise": 0.04}
POOL = 32              # batches whose clips are sampled together and sorted by length, to save padding


def train_encoder(split: Split, config: ExOmniConfig, folder, steps: int, batch: int = 16, rate: float = 2e-3,
                  seed: int = 0, start: Path | None = None) -> None:
    """Train the encoder to classify the phone and the word of each frame; the heads are then discarded. start: a
    directory with an encoder of this size to start from, instead of random weights.

    The augmentation grows to full strength over the first 40 % of the steps; with `start` it is full at once. At full
    strength half of the clips are `spliced`. Log-mels are computed once and kept in memory, 0.6 GB for 10 hours."""
    out = Path(folder) / "encoder"
    if (out / "model.safetensors").exists():
        return
    encoder = config.speech_encoder
    spoken = [i for i, row in enumerate(split.rows) if {"audio", "words", "phones", "family"} <= row.keys()]
    likely = shares([split.rows[i]["family"] for i in spoken], FAMILY_SHARES)
    lengths = [split.rows[i]["audio"][1] for i in spoken]
    phones, words = classes(split, spoken)
    torch.manual_seed(seed)
    model, clips = EncoderWithHeads(encoder, 1 + len(phones), 1 + len(words)), {}
    if start is not None:
        path = Path(start) / "model.safetensors"
        tensors = weights.stream(path, list(weights.shapes(path)))
        model.encoder.load_state_dict({name.removeprefix("model.encoder."): tensor.float() for name, tensor in tensors})

    def clip(i) -> tuple:
        """mel (M, L), phones (L,), words (L,) of a sample, cut to the window."""
        if i not in clips:
            row = split[spoken[i]]
            frames = min(len(row["audio"]) // HOP // 2 * 2, encoder.n_frames)
            mel = log_mel(torch.from_numpy(row["audio"]), encoder.num_mel_bins, frames)
            named = [(phones[phone], start, end) for phone, start, end in phone_names(row)]
            said = [(words[word], start, end) for word, start, end in row["words"]]
            clips[i] = mel.half(), frame_labels(named, frames).short(), frame_labels(said, frames).short()
        return clips[i]

    def cut(i, generator) -> int:
        """A mel frame of a clip at which a word starts."""
        starts = [round(start * MEL_RATE) for _, start, _ in split.rows[spoken[i]]["words"]] or [0]
        return starts[int(torch.randint(len(starts), (), generator=generator))]

    def loss(step, generator):
        random, width = np.random.default_rng((seed, step // POOL)), 1 if start else min(1, step / (0.4 * steps))
        pool = sorted(random.choice(len(spoken), POOL * batch, p=likely), key=lambda i: lengths[i])
        first = random.permutation(POOL)[step % POOL] * batch
        picked = pool[first:first + batch]
        batch_clips = [clip(i) for i in picked]
        for n, i in enumerate(picked):
            if torch.rand((), generator=generator) < 0.5 * width:
                other = int(torch.randint(batch, (), generator=generator))
                cuts = cut(i, generator), cut(picked[other], generator)
                batch_clips[n] = spliced(batch_clips[n], clip(picked[other]), cuts)
        longest = max(mel.shape[1] for mel, _, _ in batch_clips)
        mel = torch.stack([F.pad(m.float(), (0, longest - m.shape[1]), value=float(m.min())) for m, *_ in batch_clips])
        labels = [torch.stack([F.pad(c[k], (0, longest - len(c[k]))) for c in batch_clips]) for k in (1, 2)]
        mel, labels = augment(mel, torch.stack(labels).long(), width, generator)
        logits = model(mel)
        losses = [F.cross_entropy(x.flatten(0, 1), y.flatten()) for x, y in zip(logits, labels)]
        right = [((x.argmax(-1) == y) & (y > 0)).sum() / (y > 0).sum().clamp(min=1) for x, y in zip(logits, labels)]
        return losses[0] + 0.5 * losses[1], {"phones": losses[0], "words": losses[1], "phones_right": right[0],
                                             "words_right": right[1]}

    fit("encoder", model, loss, steps, rate, folder, warmup=50, seed=seed, matrices=layer_matrices(model.encoder))
    write_part(out, asdict(encoder), "model.encoder", model.encoder)


# ---------------------------------------------------------------- the checkpoint

def compose(folder, out, seed: int = 0) -> None:
    """folder/{llm, encoder, generator, speech_tokenizer, speech_decoder} -> the checkpoint that the stages start from.
    Raises ValueError or OSError, before anything is written, for a part that is missing or does not fit."""
    sources = {"--llm": "llm", "--speech-encoder": "encoder", "--speech-generator": "generator",
               "--speech-tokenizer": "speech_tokenizer", "--speech-decoder": "speech_decoder"}
    given = [text for flag, part in sources.items() for text in (flag, str(Path(folder) / part))]
    prepare.make_weights(prepare.arguments().parse_args(
        ["weights", "--preset", "mini", "--out", str(out), "--seed", str(seed), "--overwrite", *given]))
