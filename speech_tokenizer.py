"""GLM-4-Voice speech tokenizer: waveform at 16 kHz -> 12.5 units per second.

The first `quantize_position` layers of a Whisper encoder with causal convolutions and block-causal attention. Its
states are pooled by 4, and each becomes the id of the nearest of 16384 code vectors: 16 kHz -> 100 Hz log-mel -> 50 Hz
states -> 12.5 Hz units, 1280 samples each (docs/spec/glm4_voice.md 1).

Shapes: B batch, M mel bins, L mel frames, N states (L/2, then U), U units, D width, H heads, V codes.
"""
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

import disk
import weights
from audio import check_finite
from disk import Layers, Size
from whisper import HOP, N_FFT, SAMPLE_RATE, EncoderLayer, check_waveform, log_mel, sinusoids

MAX_SECONDS = 30                              # a longer recording is cut into pieces of this length
BATCH = 128                                   # pieces padded to one length
CHUNK = 16                                    # pieces computed at once: bounds memory, does not change results


@dataclass
class SpeechTokenizerConfig:
    """Field names are those of the checkpoint's config.json; the defaults are the published values."""
    FIXED = {"activation_function": ("gelu",), "scale_embedding": (False,), "encoder_causal_attention": (False,),
             "quantize_causal_encoder": (False,)}
    num_mel_bins: Size = 128
    d_model: Size = 1280
    encoder_attention_heads: Size = 20
    encoder_ffn_dim: Size = 5120
    max_source_positions: Size = 1500         # states per piece, 50 per second
    quantize_position: Layers = 16            # layers before the quantiser; Whisper's later ones are not built
    pooling_position: Layers = 16             # layers before pooling, at most quantize_position
    pooling_kernel_size: Size = 4             # states per unit
    pooling_type: Literal["avg", "max"] = "avg"
    quantize_vocab_size: Size = 16384         # codes
    quantize_causal_block_size: Size | None = 200   # states per attention block (4 s); None: all in one block
    encoder_causal_convolution: Literal[True] = True

    def __post_init__(self):
        if self.d_model % self.encoder_attention_heads:
            raise ValueError(f"d_model is {self.d_model}, expected a multiple of encoder_attention_heads "
                             f"({self.encoder_attention_heads})")
        if (self.quantize_causal_block_size or self.pooling_kernel_size) < self.pooling_kernel_size:
            raise ValueError(f"quantize_causal_block_size is {self.quantize_causal_block_size}, expected at least "
                             f"pooling_kernel_size ({self.pooling_kernel_size})")
        if not 0 < self.pooling_position <= self.quantize_position:
            raise ValueError(f"pooling_position is {self.pooling_position}, expected 1 to quantize_position "
                             f"({self.quantize_position})")

    @property
    def samples_per_unit(self) -> int:
        """1280 at the published size: 2 mel frames per state, 4 states per unit."""
        return 2 * self.pooling_kernel_size * HOP

    @property
    def max_samples(self) -> int:
        """Samples per piece: 30 s, or less with fewer positions."""
        return min(MAX_SECONDS * SAMPLE_RATE, 2 * self.max_source_positions * HOP)


class SpeechTokenizer(nn.Module):
    """Log-mel (B, M, L) -> pooled states (B, U, D) -> unit ids (B, U)."""

    def __init__(self, config: SpeechTokenizerConfig):
        super().__init__()
        self.config, D = config, config.d_model
        self.conv1 = nn.Conv1d(config.num_mel_bins, D, 3)
        self.conv2 = nn.Conv1d(D, D, 3, stride=2)
        self.embed_positions = nn.Embedding(config.max_source_positions, D)
        self.layers = nn.ModuleList(EncoderLayer(D, config.encoder_attention_heads, config.encoder_ffn_dim)
                                    for _ in range(config.quantize_position))
        self.codebook = nn.Embedding(config.quantize_vocab_size, D)
        self.embed_positions2 = nn.Embedding(-(-config.max_source_positions // config.pooling_kernel_size), D)

    @classmethod
    def from_pretrained(cls, directory, device="cpu", dtype=torch.float32) -> "SpeechTokenizer":
        """Read config.json and model.safetensors, whose names may start with `model.encoder.`. Returns eval mode.

        Not loaded: the decoder of a full checkpoint, layers after the quantiser, tensors that only training needs.
        Raises FileNotFoundError or ValueError for files that are missing or do not fit.
        """
        directory = Path(directory)
        path = directory / "config.json"
        config = disk.checked(SpeechTokenizerConfig, disk.read_json(path), path)
        check_features(directory / "preprocessor_config.json", config)
        tokenizer = weights.skeleton(lambda: cls(config), dtype, path)
        weights.load(tokenizer, [directory / "model.safetensors"], lambda name: rename(name, config), device)
        return tokenizer

    def save_pretrained(self, directory) -> None:
        """Write config.json and model.safetensors into the directory."""
        disk.write_json(Path(directory) / "config.json", asdict(self.config))
        weights.write_tensors(Path(directory) / "model.safetensors", self.state_dict())

    def init_weights(self, scale=1.0) -> None:
        """Set the position table to `scale` times Whisper's, before training from scratch."""
        with torch.no_grad():
            positions = torch.arange(self.config.max_source_positions)
            self.embed_positions.weight.copy_(scale * sinusoids(positions, self.config.d_model))

    def features(self, waveforms: list) -> tuple[torch.Tensor, torch.Tensor]:
        """B pieces of (samples,) -> log-mel (B, M, L) and its mask (B, L) bool, True = sound.

        Waveforms are zero-padded to the longest and to whole units. Each has its own loudness floor
        (docs/spec/glm4_voice.md 1.1).
        """
        stride, device = self.config.samples_per_unit, self.codebook.weight.device
        n_frames = -(-max(map(len, waveforms)) // stride) * stride // HOP
        mel = torch.stack([log_mel(w.to(device), self.config.num_mel_bins, n_frames) for w in waveforms])
        lengths = torch.tensor([-(-len(w) // HOP) for w in waveforms], device=device)
        return mel, torch.arange(n_frames, device=device) < lengths[:, None]

    def convolve(self, mel):
        """(B, M, L) -> (B, L/2, D) by two causal convolutions."""
        x = F.gelu(self.conv1(F.pad(mel, (2, 0))))
        return F.gelu(self.conv2(F.pad(x, (2, 0)))).transpose(1, 2)

    def pool(self, x):
        """(B, N, D) -> (B, N/4, D). A last, incomplete group is pooled with zeros, as in the reference."""
        kernel = self.config.pooling_kernel_size
        x = F.pad(x.transpose(1, 2), (0, -x.shape[1] % kernel))
        x = F.avg_pool1d(x, kernel) if self.config.pooling_type == "avg" else F.max_pool1d(x, kernel)
        return x.transpose(1, 2)

    def hidden(self, mel, mask=None):
        """Log-mel (B, M, L) -> states before the quantiser (B, U, D), U = L/8; differentiable.

        mask (B, L) bool, True = sound; None = no padding.
        """
        config = self.config
        x = self.convolve(mel.to(self.conv1.weight.dtype))                                          # (B, L/2, D)
        x = x + self.embed_positions.weight[:x.shape[1]]
        valid, block = None if mask is None else mask[:, ::2], config.quantize_causal_block_size
        visible = attention_mask(x.shape[1], block, valid, x.device)
        for index, layer in enumerate(self.layers, start=1):
            x = layer(x, visible)
            if index == config.pooling_position:
                x = self.pool(x)                                                                    # (B, U, D)
                if index < config.quantize_position:    # the mask at the unit rate, for the remaining layers
                    kernel = config.pooling_kernel_size
                    valid, block = None if valid is None else valid[:, ::kernel], block and block // kernel
                    visible = attention_mask(x.shape[1], block, valid, x.device)
        return x

    def quantise(self, x):
        """States (B, U, D) -> ids (B, U) of the nearest code vectors, the lowest id where several are."""
        x, codes = x.float(), self.codebook.weight.float()
        distance = codes.square().sum(1) + x.square().sum(-1, keepdim=True) - 2 * x @ codes.T       # (B, U, V)
        return distance.argmin(-1)

    @torch.no_grad()
    def encode_batch(self, waveforms: list) -> list:
        """Recordings of (samples,) at 16 kHz -> a list of (U,) int64 ids, U = ceil(samples / 1280) per piece.

        As in the reference, recordings are cut into pieces of 30 s, and batches of 128 pieces are padded to their
        longest, so the last unit of a recording can depend on its batch. Raises ValueError for a waveform that is
        empty, not (samples,) or not finite, or for states that are not finite.
        """
        waveforms = [check_waveform(w, f"waveform {i}") for i, w in enumerate(waveforms)]
        pieces = [(i, piece) for i, w in enumerate(waveforms) for piece in w.split(self.config.max_samples)]
        ids = [[] for _ in waveforms]
        for start in range(0, len(pieces), BATCH):
            batch = pieces[start:start + BATCH]
            mel, mask = self.features([piece for _, piece in batch])
            states = [self.hidden(*part) for part in zip(mel.split(CHUNK), mask.split(CHUNK))]
            units = torch.cat([self.quantise(check_finite(part, "the speech tokenizer")) for part in states])
            for (i, piece), own in zip(batch, units):
                ids[i].append(own[:-(-len(piece) // self.config.samples_per_unit)])
        return [torch.cat(parts) for parts in ids]

    def encode(self, waveform) -> torch.Tensor:
        """(samples,) at 16 kHz -> (U,) int64 ids, 12.5 per second. Raises ValueError (see encode_batch)."""
        return self.encode_batch([waveform])[0]


def attention_mask(length: int, block, valid, device):
    """Mask for N = length states, bool, True = visible, broadcasts to (B, H, N, N); or None if all are visible.

    State i sees j if j is not padding (valid (B, N)) and j's block of `block` states is i's or an earlier one
    (docs/spec/glm4_voice.md 1.2).
    """
    if valid is not None and bool(valid.all()):
        valid = None                                      # without a mask attention has a faster kernel
    mask = None if valid is None else valid[:, None, None, :]
    if block is not None and block < length:
        blocks = torch.arange(length, device=device) // block
        causal = blocks[None, :] <= blocks[:, None]
        mask = causal if mask is None else causal & mask
    return mask


def rename(name: str, config: SpeechTokenizerConfig):
    """A tensor's name in the file -> its name here, or None for one that is not needed."""
    if name.startswith(("model.decoder.", "decoder.", "proj_out.")):
        return None
    name = name.removeprefix("model.encoder.")
    layer = re.match(r"layers\.(\d+)\.", name)
    beyond = layer and int(layer[1]) >= config.quantize_position
    return None if beyond or name in ("ema_count", "ema_weight") or name.startswith("layer_norm") else name


def check_features(path: Path, config: SpeechTokenizerConfig) -> None:
    """Raises ValueError if preprocessor_config.json exists and asks for other features than are computed here."""
    if not path.is_file():
        return
    expected = {"feature_size": config.num_mel_bins, "sampling_rate": SAMPLE_RATE, "hop_length": HOP, "n_fft": N_FFT}
    seen = disk.read_json(path)
    for name, value in expected.items():
        if seen.get(name, value) != value:
            raise ValueError(f"{path} says {name} = {seen[name]}, expected {value}: not the features of this model")
