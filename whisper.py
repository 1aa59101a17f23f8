"""Whisper's encoder: waveform -> log-mel -> states, 50 per second (docs/spec/ex_omni.md 1).

The published model uses whisper-large-v3's. `EncoderLayer` is used by the speech tokenizer too; audio.py reads files.

Shapes: B batch, W windows of sound, M mel bins, L mel frames (100 per second), D width, H heads, d head size.
"""
from dataclasses import dataclass, fields
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from audio import SAMPLE_RATE, check_finite, check_waveform, load_audio     # noqa: F401  re-exported
from disk import Layers, Size, checked

HOP = 160                              # samples, so 100 mel frames per second
N_FFT = 400                            # samples, 25 ms


@dataclass
class WhisperConfig:
    """Field names are those of Hugging Face's config.json; the defaults are whisper-large-v3's."""
    FIXED = {"model_type": ("whisper",), "activation_function": ("gelu",), "scale_embedding": (False,)}
    num_mel_bins: Size = 128           # 80 for every Whisper but large-v3
    d_model: Size = 1280
    encoder_layers: Layers = 32
    encoder_attention_heads: Size = 20
    encoder_ffn_dim: Size = 5120
    max_source_positions: Size = 1500  # encoder states per window, 50 per second: 1500 = 30 s
    quiet_cuts: bool = False           # ours, for short windows: see `spoken_parts`

    def __post_init__(self):
        if self.d_model % self.encoder_attention_heads:
            raise ValueError(f"d_model is {self.d_model}, expected a multiple of encoder_attention_heads "
                             f"({self.encoder_attention_heads})")

    @classmethod
    def from_dict(cls, values: dict, where="config.json") -> "WhisperConfig":
        """From a Hugging Face config. Raises ValueError for a field that is missing or wrong."""
        return checked(cls, values, where, required=[f.name for f in fields(cls) if f.name != "quiet_cuts"])

    @property
    def n_frames(self) -> int:
        """Mel frames per window."""
        return 2 * self.max_source_positions

    @property
    def window(self) -> int:
        """Samples per window."""
        return self.n_frames * HOP


@lru_cache
def mel_filters(n_mels: int, n_fft: int = N_FFT, rate: int = SAMPLE_RATE, f_max: float = 8000.0) -> torch.Tensor:
    """(M, n_fft // 2 + 1) triangular filters on the Slaney mel scale, each of unit area (docs/spec/ex_omni.md 1.1).

    The scale is linear below 1 kHz (200/3 Hz per mel) and logarithmic above (27 mels per factor 6.4).
    """
    top = 15 + 27 * np.log(f_max / 1000) / np.log(6.4)
    mels = np.linspace(0, top, n_mels + 2)
    edges = np.where(mels < 15, mels * 200 / 3, 1000 * np.exp((mels - 15) * np.log(6.4) / 27))      # Hz
    bins = np.linspace(0, rate / 2, n_fft // 2 + 1)                                                 # Hz
    left, centre, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    triangles = np.minimum((bins - left) / (centre - left), (right - bins) / (right - centre)).clip(0)
    return torch.from_numpy((triangles * 2 / (right - left)).astype(np.float32))


def log_mel(waveform: torch.Tensor, n_mels: int, n_frames: int = 3000) -> torch.Tensor:
    """(samples,) at 16 kHz -> log-mel (M, L), L = n_frames, 100 per second (docs/spec/ex_omni.md 1.1).

    The waveform is cut or zero-padded at its end to exactly n_frames. Values more than 80 dB (2 units) below the
    loudest bin of the window are raised to that floor.
    """
    waveform = torch.as_tensor(waveform)
    waveform = F.pad(waveform[:n_frames * HOP], (0, max(0, n_frames * HOP - len(waveform))))
    window = torch.hann_window(N_FFT, device=waveform.device)
    spectrum = torch.stft(waveform, N_FFT, HOP, window=window, return_complex=True)                 # (201, L + 1)
    power = spectrum[:, :-1].abs() ** 2
    log = (mel_filters(n_mels).to(waveform.device) @ power).clamp(min=1e-10).log10()
    return (log.clamp(min=log.max() - 8) + 4) / 4


def spoken_parts(waveform: torch.Tensor, longest: int) -> list:
    """(samples,) at 16 kHz -> its pieces, in order, of at most `longest` samples: silence at both ends is removed, and
    longer speech is cut at its quietest point in the last two fifths of a piece. A silent waveform is one piece.

    The level is measured over 50 ms. Speech is louder than a threshold, 35 % of the way in dB from the level of the
    quietest tenth to that of the loudest 0.3 s, and at most 40 dB below the latter. A margin of 0.15 s keeps the soft
    sounds at the start and end of words.
    """
    hop, margin = SAMPLE_RATE // 100, 15                    # samples, hops
    count = len(waveform) // hop
    if not count:
        return [waveform]
    power = waveform[:count * hop].view(count, hop).square().mean(1)
    smooth = F.avg_pool1d(power[None], 5, 1, 2, count_include_pad=False)[0]
    level = 10 * (smooth + 1e-10).log10()
    low, high = level.quantile(0.1), level.topk(min(30, len(level))).values[-1]
    loud = (level > torch.maximum(high - 40, low + 0.35 * (high - low))).nonzero()[:, 0]
    if high - low < 6 or not len(loud):                     # only silence, only noise or only speech
        first, last = 0, len(waveform)
    else:
        first, last = max(0, int(loud[0]) - margin) * hop, min(len(waveform), (int(loud[-1]) + 1 + margin) * hop)
    parts = []
    while last - first > longest:
        early, late = (first + longest * 3 // 5) // hop, (first + longest) // hop
        cut = (early + int(level[early:late].argmin())) * hop
        parts, first = [*parts, waveform[first:cut]], cut
    return [*parts, waveform[first:last]]


def windows(waveform: torch.Tensor, config: WhisperConfig) -> torch.Tensor:
    """(samples,) -> log-mel (W, M, L), consecutive windows. The release instead drops everything after 30 s."""
    parts = spoken_parts(waveform, config.window) if config.quiet_cuts else waveform.split(config.window)
    return torch.stack([log_mel(part, config.num_mel_bins, config.n_frames) for part in parts])


def log_mels(clips: list, config: WhisperConfig, most: int) -> list:
    """Waveforms (samples,) at 16 kHz, or log-mels (W, M, L), kept as they are -> log-mel (W, M, L) of each clip.

    Raises ValueError for a clip of more than `most` windows, before any is computed, and for NaN or infinite values.
    """
    clips = [check_waveform(clip) if torch.as_tensor(clip).ndim == 1 else torch.as_tensor(clip) for clip in clips]
    seconds = config.window / SAMPLE_RATE
    for clip in clips:
        count = -(-len(clip) // config.window) if clip.ndim == 1 else len(clip)
        if count > most:
            raise ValueError(f"a clip of {count * seconds:.0f} s is too long, at most {most * seconds:.0f} s fit into "
                             "the model's context: shorten it")
    return [check_finite(windows(clip, config) if clip.ndim == 1 else clip, "the log-mel of the speech",
                         "expected samples from -1 to 1") for clip in clips]


class SelfAttention(nn.Module):
    """Multi-head self-attention of (B, N, D); the key projection has no bias."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj = nn.Linear(dim, dim), nn.Linear(dim, dim, bias=False)
        self.v_proj, self.out_proj = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, x, mask=None):
        q, k, v = (rearrange(proj(x), "b n (h d) -> b h n d", h=self.heads)
                   for proj in (self.q_proj, self.k_proj, self.v_proj))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out_proj(rearrange(out, "b h n d -> b n (h d)"))


class EncoderLayer(nn.Module):
    """Pre-norm block: (B, N, D) -> (B, N, D). mask: bool, broadcasts to (B, H, N, N), True = visible; or None."""

    def __init__(self, dim: int, heads: int, ffn: int):
        super().__init__()
        self.self_attn_layer_norm, self.self_attn = nn.LayerNorm(dim), SelfAttention(dim, heads)
        self.final_layer_norm = nn.LayerNorm(dim)
        self.fc1, self.fc2 = nn.Linear(dim, ffn), nn.Linear(ffn, dim)

    def forward(self, x, mask=None):
        x = x + self.self_attn(self.self_attn_layer_norm(x), mask)
        return x + self.fc2(F.gelu(self.fc1(self.final_layer_norm(x))))


def sinusoids(positions: torch.Tensor, dim: int) -> torch.Tensor:
    """positions (N,) -> (N, dim): the first half of the channels sine, the second cosine (docs/spec/ex_omni.md 1.2)."""
    # On the CPU: a GPU's exp rounds differently, and an error is multiplied by positions of up to 1500.
    frequencies = torch.exp(torch.arange(dim // 2) * (-np.log(10_000) / (dim // 2 - 1)))
    angles = positions[:, None] * frequencies.to(positions.device)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class WhisperEncoder(nn.Module):
    """Log-mel (B, M, L) of whole windows -> states (B, L/2, D). There is no padding mask, as in Whisper.

    Raises ValueError for a log-mel of another size than the config's windows.
    """

    def __init__(self, config: WhisperConfig):
        super().__init__()
        self.config, D = config, config.d_model
        self.conv1 = nn.Conv1d(config.num_mel_bins, D, 3, padding=1)
        self.conv2 = nn.Conv1d(D, D, 3, stride=2, padding=1)
        self.embed_positions = nn.Embedding(config.max_source_positions, D)
        self.embed_positions.requires_grad_(False)
        self.layers = nn.ModuleList(EncoderLayer(D, config.encoder_attention_heads, config.encoder_ffn_dim)
                                    for _ in range(config.encoder_layers))
        self.layer_norm = nn.LayerNorm(D)

    def init_weights(self) -> None:
        """Fill the position table, which is not trained."""
        with torch.no_grad():
            positions = torch.arange(self.config.max_source_positions)
            self.embed_positions.weight.copy_(sinusoids(positions, self.config.d_model))

    def forward(self, mel):
        if mel.shape[1:] != (self.config.num_mel_bins, self.config.n_frames):
            raise ValueError(f"mel has shape {tuple(mel.shape)}, expected (B, {self.config.num_mel_bins}, "
                             f"{self.config.n_frames}): make it with whisper.windows(waveform, config)")
        x = F.gelu(self.conv1(mel))                                                                 # (B, D, L)
        x = F.gelu(self.conv2(x)).transpose(1, 2)                                                   # (B, L/2, D)
        x = x + self.embed_positions.weight
        for layer in self.layers:
            x = layer(x)
        return self.layer_norm(x)
