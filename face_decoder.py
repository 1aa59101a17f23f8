"""The face decoder: speech units and the states that wrote them -> 52 ARKit blendshape weights, 30 frames per second.

Spec ex_omni 6 (arXiv 2602.07106). The units, stretched to the frames, ask the speech generator's states through TQGF; a
periodic rotation marks the beat; a causal transformer smooths it.

Shapes: B batch, U units (12.5 per second), S states (U + 1: one per decoding step), F frames (30 per second), D width,
K weights (52).
"""
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from tqgf import TQGF

UNIT_RATE = 12.5        # units per second
FPS = 30                # face frames per second: 2.4 per unit, the clocks meet every 5 units (12 frames)
CHANNELS = 52           # K: ARKit blendshape weights, in the order of face/arkit.py
VELOCITY_WEIGHT = 0.5   # of the velocity term in the loss


def frames_for_units(n):
    """Face frames that n units last: floor(12 n / 5), exact in integers. n: an int or an integer tensor."""
    return 12 * n // 5


def release_frames(units) -> int:
    """The release's count over a whole tensor (spec 6.1): id 0 is not counted, and floating point loses a frame here and
    there (205 units -> 491 frames, not 492)."""
    return int(int((units > 0).sum()) * (1 / UNIT_RATE) * FPS)


@dataclass
class FaceConfig:
    """Names in the release's config.json beside the fields; it publishes no defaults for those without one here."""
    state_dim: int = 1024          # width of the speech generator's states
    unit_vocab: int = 16384        # speech_vocab_size: rows of the unit table, more than the largest unit id
    unit_dim: int = 256            # speech_embed_dim
    dim: int = 512                 # bs_decoder_dimension
    heads: int = 8                 # nhead
    layers: int = 6                # num_bs_decoder_layers (paper: 6)
    dropout: float = 0.1           # dropout_rate
    channels: int = 52             # out_dim: ARKit weights, or 51 without tongueOut
    tqgf_depth: int = 2            # bs_tqgf_depth
    tqgf_heads: int = 8            # bs_tqgf_heads
    tqgf_dim_head: int = 64        # bs_tqgf_dim_head
    period: int = 25               # period, in frames: 25 in the paper, 30 is the release's default
    rope_scale: float = 1.0        # alpha in the paper
    ablate: str = ""               # for Table 6: "speech-context", "velocity" (train.py --ablate)


class PeriodicRoPE(nn.Module):
    """x (B, F, D) -> (B, F, D): the features of frame t, in pairs (2j, 2j + 1), turned by ((t mod period) / scale) w_j.

    w_j = 10000^(-2j / D). The features themselves are rotated, once, not queries and keys (spec 6.2, step 5).
    """

    def __init__(self, dim: int, period: int = 25, scale: float = 1.0):
        super().__init__()
        self.dim, self.period, self.scale = dim, period, scale

    def forward(self, x):
        position = torch.arange(x.shape[1], device=x.device) % self.period / self.scale
        angle = position[:, None] * 10_000 ** (-torch.arange(0, self.dim, 2, device=x.device) / self.dim)
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)                     # (F, D / 2)
        even, odd = x[..., 0::2], x[..., 1::2]
        return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)


def stretch(x, lengths, frames, total: int):
    """x (B, U, D), its first lengths (B,) rows stretched linearly to the first frames (B,) of `total` rows.

    Frame t reads unit position (t + 0.5) U / F - 0.5 (spec 6.2, step 3). Rows past a sample's frames repeat its last.
    """
    t = torch.arange(total, device=x.device)
    lengths, frames = lengths.clamp(min=1)[:, None], frames.clamp(min=1)[:, None]
    source = ((t + 0.5) * (lengths / frames) - 0.5).clamp(min=0)                        # (B, F)
    left = torch.minimum(source.floor().long(), lengths - 1)
    right = torch.minimum(left + 1, lengths - 1)
    weight = (source - left).clamp(max=1)[..., None].to(x.dtype)
    take = lambda index: x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))
    return take(left) * (1 - weight) + take(right) * weight


class FaceDecoder(nn.Module):
    """units (B, U), padded with -100, and states (B, S, D) -> blendshape weights (B, F, K), not clipped."""

    def __init__(self, config: FaceConfig):
        super().__init__()
        self.config, D = config, config.dim
        self.speech_gen_projection = nn.Linear(config.state_dim, D)
        self.speech_token_embedding = nn.Embedding(config.unit_vocab, config.unit_dim)
        self.speech_token_projection = nn.Linear(config.unit_dim, D)
        self.tqgf = TQGF(D, config.tqgf_depth, config.tqgf_heads, config.tqgf_dim_head)
        self.rope = PeriodicRoPE(D, config.period, config.rope_scale)
        self.encoder = nn.ModuleList(nn.TransformerEncoderLayer(D, config.heads, 2 * D, config.dropout, batch_first=True)
                                     for _ in range(config.layers))
        self.out_head = nn.Sequential(nn.LayerNorm(D), nn.Linear(D, D // 2), nn.ReLU(), nn.Dropout(config.dropout),
                                      nn.Linear(D // 2, config.channels))

    def forward(self, units, states, states_mask=None, frames=None, release_quirks=False):
        """states_mask (B, S) bool, True = visible. frames (B,): the frames to make for each row, by default
        frames_for_units of its units; the result is as long as the longest, and means nothing past a row's own.

        release_quirks: count frames as the release does, over the whole batch and without id 0, and stretch the
        padded units to the padded length (spec 8.2, items 1, 2, 5 and 11). Raises ValueError for units outside
        the table.
        """
        if units.numel() and int(units.max()) >= self.config.unit_vocab:
            raise ValueError(f"unit {int(units.max())} is outside the face decoder's table of {self.config.unit_vocab}: "
                             "were these units made by another speech tokenizer?")
        real = units >= 0                                                               # (B, U)
        lengths = real.sum(1)
        if release_quirks:
            counts = torch.full_like(lengths, units.shape[1])
            total = release_frames(units) if frames is None else int(frames.max())
            valid = (lengths * total // counts).clamp(1, total) if frames is None else frames
            stretched_to = torch.full_like(lengths, total)
        else:
            counts, valid = lengths, frames_for_units(lengths) if frames is None else frames
            total, stretched_to = int(valid.max()), valid
        if total == 0:
            return states.new_zeros(len(units), 0, self.config.channels)
        query = self.speech_token_projection(self.speech_token_embedding(units.clamp(min=0))) * real[..., None]
        query = stretch(query, counts, stretched_to, total)                             # (B, F, D)
        if self.config.ablate == "speech-context":
            states = torch.zeros_like(states)
        x = self.rope(self.tqgf(query, self.speech_gen_projection(states), states_mask))
        t = torch.arange(total, device=x.device)
        future = t[None, :] > t[:, None]                                                # (F, F) True = hidden
        padding = t >= valid.clamp(min=1)[:, None]                                      # (B, F) True = hidden
        for layer in self.encoder:
            x = layer(x, src_mask=future, src_key_padding_mask=padding)
        return self.out_head(x)


def face_loss(pred, target, lengths, velocity_weight: float = VELOCITY_WEIGHT):
    """Blendshape loss plus velocity_weight times the loss of frame-to-frame differences (paper; spec 6.3).

    pred (B, F', K) is cut or zero-padded to target (B, F, K); lengths (B,) valid frames. Each term is averaged over the
    channels, then over a sample's valid frames (or pairs of them), then over the batch. The release has the velocity
    term switched off: velocity_weight=0.
    """
    frames = target.shape[1]
    pred = F.pad(pred[:, :frames].float(), (0, 0, 0, max(0, frames - pred.shape[1])))
    target = target.float()
    valid = torch.arange(frames, device=pred.device) < lengths.clamp(max=frames)[:, None]

    def masked(error, mask):
        return ((error ** 2).mean(-1) * mask).sum(1).div(mask.sum(1) + 1e-6).mean()

    loss = masked(pred - target, valid)
    if velocity_weight:
        loss = loss + velocity_weight * masked(pred.diff(dim=1) - target.diff(dim=1), valid[:, 1:])
    return loss
