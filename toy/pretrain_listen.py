"""Trains the mini preset's language model and speech encoder from scratch: in place of what larger presets download.

    make_vocabulary(texts, "parts/llm")                 a byte-level BPE
    train_llm(split, config, "parts")                   Qwen3's architecture     -> parts/llm
    train_encoder(split, config, "parts")               Whisper's architecture   -> parts/encoder
    compose("parts", "runs/base")                       all parts, a random projector, generator and face decoder

Each part is a directory as Hugging Face has it, with the tensor names of Qwen3 and Whisper, so that `compose` is the
command that makes every other checkpoint: `prepare.py weights --preset mini --llm parts/llm ...`. By then there must be
parts/speech_tokenizer and parts/speech_decoder too (pretrain_speak.py). A part that is there is left alone.

split: prepared data (data.py) in which a row of each clip also says what sounds when: "words" and "phones", [[name,
start, end], ...] in seconds, and the "family" of the voice, in whose names the phones are.

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
    """Byte-level BPE with at most `merges` merges, written as folder/mini.tiktoken; the control tokens' ids follow. The
    tokenizer folds what users write (tokenizer.py): give their texts folded.

    Ties are broken by the bytes, so that the same texts give the same file. The words around every chat (roles, system
    prompt) count as often as there are texts: a prompt costs few tokens.
    """
    texts = list(texts)
    counts = Counter(piece for text in texts for piece in regex.findall(QWEN_PATTERN, text))
    for piece in regex.findall(QWEN_PATTERN, f"system\n{SYSTEM_PROMPT}\nuser\nassistant\n"):
        counts[piece] += len(texts)
    pieces = [(tuple(bytes([b]) for b in piece.encode()), count) for piece, count in counts.items()]
    tokens, pairs, places = [bytes([b]) for b in range(256)], Counter(), defaultdict(set)

    def tally(n, sign):
        """Add or take away the pairs of neighbours of the n-th piece."""
        piece, count = pieces[n]
        for pair in zip(piece, piece[1:]):
            pairs[pair] += sign * count
            places[pair].add(n)

    for n in range(len(pieces)):
        tally(n, 1)
    while len(tokens) < 256 + merges:
        best = max(pairs, key=lambda pair: (pairs[pair], pair), default=None)
        if best is None or not pairs[best]:
            break
        tokens.append(best[0] + best[1])
        for n in places.pop(best):
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
    """piece with each occurrence of the pair of neighbours made one, from the left."""
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
    """Token ids (S,), S <= most, in place of speech rows (`rate` per second): what a perfect encoder and projector
    would give.

    words: [[word, start, end], ...] in seconds. A word's tokens share the rows that it lasts, at least one each; in
    between, and for some time at the end, is the token `silence`. All is 0.8 to 1.3 times as long, begins up to half a
    second later, and one row in ten is lost."""
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
    """A sample as text alone -> (ids, labels, noisy), all (N,); noisy is True for tokens in place of its sound.

    Its sound, in which the words are said, becomes `spoken_tokens`, or once in four the bare words. One conversation in
    four begins with the system prompt, as all do in use: it costs more than the rest. Labels are the reply's."""
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
    """The replies of some `conversation`s -> (their summed cross-entropy, how many of their tokens are the likeliest,
    how many there are).

    Tokens in place of sound get noise, up to half the spread of the embeddings, which are the output matrix too."""
    ids, labels, noisy = (pad_sequence(column, batch_first=True, padding_value=value)
                          for column, value in zip(zip(*chats), (-1, IGNORE, False)))
    embeds = llm.embed_tokens(ids.clamp(min=0))
    level = 0.5 * torch.rand(len(chats), 1, 1, generator=generator) * embeds.detach().std()
    embeds = embeds + level * noisy[..., None] * torch.randn(embeds.shape, generator=generator)
    states = llm(embeds=embeds)                 # rows are padded on the right, where a causal model cannot look
    targets = F.pad(labels[:, 1:], (0, 1), value=IGNORE)
    supervised = targets != IGNORE
    logits, targets = F.linear(states[supervised], llm.embed_tokens.weight), targets[supervised]
    return F.cross_entropy(logits, targets, reduction="sum"), (logits.argmax(-1) == targets).sum(), len(targets)


INIT = 0.06            # spread of the untrained weights: with Qwen3's 0.02 so narrow a model starts to learn later
# How often a sample is of each task. Reading aloud and the face are other parts' work, but their prompts are read here.
TASK_SHARES = {"chat": 0.5, "qa": 0.27, "asr": 0.18, "tts": 0.05}


def shares(kinds: list, wanted: dict) -> np.ndarray:
    """The probability of each sample, given its kind, such that the kinds that are there have their wanted shares.
    Raises ValueError where no sample is of a wanted kind."""
    counts = Counter(kinds)
    likely = np.array([wanted.get(kind, 0) / counts[kind] for kind in kinds])
    if not likely.sum():
        raise ValueError(f"nothing to learn from: expected samples of {', '.join(wanted)}, found {dict(counts)}; "
                         "make the data with `prepare.py demo`")
    return likely / likely.sum()


def train_llm(split: Split, config: ExOmniConfig, folder, steps: int = 2300, batch: int = 48, rate: float = 4e-3,
              seed: int = 0) -> None:
    """Teach the language model the domain's text, in folder/llm's vocabulary: to answer, and to repeat what it reads.

    Where a sample has sound, the model reads what a perfect encoder and projector would give (`spoken_tokens`): stage I
    can then teach that to the projector with the language model frozen. Also writes folder/generator."""
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
        chats.sort(key=lambda chat: len(chat[0]))                   # the short half is not padded to the long one
        halves = [reply_loss(llm, half, generator) for half in (chats[:batch // 2], chats[batch // 2:])]
        total, right, count = (sum(column) for column in zip(*halves))
        return total / count, {"accuracy": right / count}

    fit("llm", llm, loss, steps, rate, folder, seed=seed, matrices=layer_matrices(llm))
    write_generator(config, folder)
    write_part(out, asdict(llm.config) | {"eos_token_id": list(tokenizer.stop_ids)}, "model", llm)


def untrained(config: Qwen3Config, spread: float, seed: int) -> Qwen3:
    """A Qwen3 with random weights of standard deviation `spread`."""
    torch.manual_seed(seed)
    model = Qwen3(config)
    model.init_weights(spread)
    return model


def write_generator(config: ExOmniConfig, folder, seed: int = 0) -> None:
    """folder/generator: the untrained Qwen3 that the speech generator starts from."""
    backbone = untrained(config.generator.llm, 0.02, seed)
    write_part(Path(folder) / "generator", asdict(backbone.config), "model", backbone)


def write_part(folder: Path, config: dict, prefix: str, module: nn.Module) -> None:
    """A part as Hugging Face has it. The tensors come last: the file says that the part is done."""
    disk.write_json(folder / "config.json", config)
    weights.write_tensors(folder / "model.safetensors", {f"{prefix}.{n}": t for n, t in module.state_dict().items()})


# ---------------------------------------------------------------- the encoder

class EncoderWithHeads(nn.Module):
    """The encoder and the two heads that teach it: mel (B, M, L) -> (B, L / 2, phones), (B, L / 2, words) logits.

    L is at most the encoder's window: in training short clips are not padded to it, which would double the work."""

    def __init__(self, config: WhisperConfig, phones: int, words: int):
        super().__init__()
        self.encoder = WhisperEncoder(config)
        self.encoder.init_weights()
        with torch.no_grad():                   # else the sound is 20 times fainter than the positions it is added to
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


NEAR = (2, 1, 3)       # how many states away half of a layer's heads look, layers in turn; the others 3 times as far


@torch.no_grad()
def look_around(encoder: WhisperEncoder, sharpness: float = 2.0) -> None:
    """Make untrained heads look at a fixed distance, each at its own, half of them back: attention then need not learn
    from scratch what sinusoids are good for. The rest of the query and key weights is made fainter.

    A sinusoid's (sine, cosine), turned by its angle times a distance, is that sinusoid the distance away. So the key of
    each pair is the query's, turned."""
    D, heads = encoder.config.d_model, encoder.config.encoder_attention_heads
    dim = D // heads
    frequencies = torch.exp(-math.log(10_000) * torch.arange(D // 2) / (D // 2 - 1))       # of `whisper.sinusoids`
    usable = (frequencies > 0.02).nonzero()[:, 0]                  # slower ones are as good as constant over a word
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
    """The weights of all linear layers in its transformer layers: what Muon is for."""
    return [p for name, p in module.named_parameters() if p.ndim == 2 and "layers." in name]


# Families that name their phones alike, and say when within 10 ms alike (tests/test_voices.py), share classes.
SAME_PHONES = {"kokoro": "flite", "hibari": "flite"}


def phone_names(row: dict) -> list:
    """[((family, phone), start, end), ...] of a row's phones but for the pauses. espeak-ng names other ones alike."""
    family = SAME_PHONES.get(row["family"], row["family"])
    return [((family, name), start, end) for name, start, end in row["phones"] if name != "pau"]


def classes(split: Split, spoken: list) -> tuple:
    """The classes of the two heads: {(family, phone): class}, {word: class}, from 1 on; 0 is silence in both."""
    rows = [split.rows[i] for i in spoken]
    phones = sorted({phone for row in rows for phone, _, _ in phone_names(row)})
    words = sorted({word for row in rows for word, _, _ in row["words"]})
    return {phone: n for n, phone in enumerate(phones, 1)}, {word: n for n, word in enumerate(words, 1)}


def frame_labels(spans: list, frames: int) -> torch.Tensor:
    """[(class, start, end)] in seconds -> (L,) class of each mel frame, 0 where there is none. frames: L."""
    labels = torch.zeros(frames, dtype=torch.long)
    for n, start, end in spans:
        labels[round(start * MEL_RATE):round(end * MEL_RATE)] = n
    return labels


def spliced(a: tuple, b: tuple, cuts: tuple) -> tuple:
    """The first part of one clip and the last of another, (mel, phones, words) each, cut at mel frames between words:
    an order of words that no sentence pattern predicts. As long as the longer one at most."""
    return tuple(torch.cat([x[..., :cuts[0]], y[..., cuts[1]:]], -1)[..., :max(x.shape[-1], y.shape[-1])]
                 for x, y in zip(a, b))


# How often a clip is of each family; noise has no words: all its labels are 0.
FAMILY_SHARES = {"espeak": 0.28, "flite": 0.24, "kokoro": 0.29, "hibari": 0.15, "noise": 0.04}
POOL = 32              # batches whose clips are sampled together, sorted by length and dealt out


def train_encoder(split: Split, config: ExOmniConfig, folder, steps: int, batch: int = 16, rate: float = 2e-3,
                  seed: int = 0, start: Path | None = None) -> None:
    """Teach the encoder to hear which phone and which word sounds at each moment; the heads are thrown away. start: a
    directory with an encoder of this size to go on from, in place of random weights.

    The augmentation starts lightly and is at its widest after the first 40 % of the steps, from a start at once; then
    half of the clips go on as another one from some word on. Log-mels are computed once and kept in memory, 0.6 GB for
    10 hours."""
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


# ---------------------------------------------------------------- together

def compose(folder, out, seed: int = 0) -> None:
    """folder/{llm, encoder, generator, speech_tokenizer, speech_decoder} -> the checkpoint that the stages start from.
    Raises ValueError or OSError for a part that is missing or does not fit; then nothing is written."""
    sources = {"--llm": "llm", "--speech-encoder": "encoder", "--speech-generator": "generator",
               "--speech-tokenizer": "speech_tokenizer", "--speech-decoder": "speech_decoder"}
    given = [text for flag, part in sources.items() for text in (flag, str(Path(folder) / part))]
    prepare.make_weights(prepare.arguments().parse_args(
        ["weights", "--preset", "mini", "--out", str(out), "--seed", str(seed), "--overwrite", *given]))
