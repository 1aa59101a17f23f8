"""The face decoder: speech units and the generator's states -> 52 ARKit blendshape weights, 30 frames a second.

arXiv 2602.07106; docs/spec/ex_omni.md 6. The embedded units are resampled to the frame rate and become the query of
TQGF, whose context is the speech generator's hidden states. A periodic RoPE rotates the result, a causal transformer
makes the frames of it, all at once: nothing here is autoregressive.

Shapes: B batch, U units (12.5 per second), S states (U + 1: one per decoding step), T face frames (30 per second),
D width, K = 52 blendshape weights.
"""
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from tqgf import TQGF, Concatenation

UNIT_RATE = 12.5        # units per second
FPS = 30                # face frames per second: 2.4 per unit, so 5 units are exactly 12 frames
CHANNELS = 52           # K: the ARKit blendshapes, in the order of face/arkit.py
LONG = 1536             # frames, 51 s: above it attention runs without a (T, T) matrix


def frames_for_units(n):
    """Number of face frames for n units, floor(12 n / 5). n: an int or an integer tensor."""
    return 12 * n // 5


@dataclass
class FaceConfig:
    """The comments give the field's name in the release's config.json. Six layers, the TQGF's depth and the period are
    the paper's; the other sizes are not published, so they are ours."""
    state_dim: int = 1024          # width of the context: the speech generator's states
    unit_vocab: int = 16384        # speech_vocab_size: rows of the unit table, more than the largest unit id
    unit_dim: int = 256            # speech_embed_dim
    dim: int = 512                 # bs_decoder_dimension
    heads: int = 8                 # nhead
    layers: int = 6                # num_bs_decoder_layers
    dropout: float = 0.1           # dropout_rate
    channels: int = CHANNELS       # out_dim: ARKit weights, or 51 without tongueOut
    tqgf_depth: int = 2            # bs_tqgf_depth
    tqgf_heads: int = 8            # bs_tqgf_heads
    tqgf_dim_head: int = 64        # bs_tqgf_dim_head
    period: int = 25               # P, in frames: 25 in the paper, 30 is the release's default
    rope_scale: float = 1.0        # alpha in the paper
    velocity_weight: float = 0.5   # of the velocity term in the loss (from the release's disabled code); 0 in v2
    ablate: str = ""               # Table 6, see checkpoint.ABLATIONS. Removed parts are not built; "context" removes
                                   # all of TQGF, which is our reading


class PeriodicRoPE(nn.Module):
    """x (B, T, D) -> (B, T, D): feature pairs (2j, 2j + 1) of frame t are rotated by ((t mod period) / scale) w_j.

    w_j = 10000^(-2j / D). Positions repeat, so the angles stay bounded however long the reply is. Unlike the usual RoPE
    it rotates the features once, not queries and keys in each layer (docs/spec/ex_omni.md 6.2, step 5).
    """

    def __init__(self, dim: int, period: int = 25, scale: float = 1.0):
        super().__init__()
        self.dim, self.period, self.scale = dim, period, scale

    def forward(self, x):
        position = torch.arange(x.shape[1], device=x.device) % self.period / self.scale
        angle = position[:, None] * 10_000 ** (-torch.arange(0, self.dim, 2, device=x.device) / self.dim)
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)                     # (T, D / 2)
        even, odd = x[..., 0::2], x[..., 1::2]
        return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)


def stretch(x, lengths, frames):
    """x (B, U, D) -> (B, max(frames), D): each sample's lengths (B,) rows, linearly interpolated to frames (B,).

    Frame t reads unit position (t + 0.5) U / T - 0.5 (docs/spec/ex_omni.md 6.2, step 3). Padding repeats a sample's
    last frame; the result has at least one frame.
    """
    t = torch.arange(max(1, int(frames.max())), device=x.device)
    lengths, frames = lengths.clamp(min=1)[:, None], frames.clamp(min=1)[:, None]
    source = ((t + 0.5) * (lengths / frames) - 0.5).clamp(min=0)                        # (B, T)
    left = torch.minimum(source.floor().long(), lengths - 1)
    right = torch.minimum(left + 1, lengths - 1)
    weight = (source - left).clamp(max=1)[..., None].to(x.dtype)
    take = lambda index: x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))
    return take(left) * (1 - weight) + take(right) * weight


def release_frames(units) -> int:
    """The release's number of frames for a whole tensor of units (docs/spec/ex_omni.md 6.1): id 0 is not counted, and
    rounding errors lose a frame here and there (205 units -> 491 frames, not 492)."""
    return int(int((units > 0).sum()) * (1 / UNIT_RATE) * FPS)


def release_lengths(units, frames=None) -> tuple:
    """The release's lengths (B,) and frames (B,) for `stretch`, and its padding mask (B, T), True = hidden.

    It stretches every row of units (B, U), padding included, to the frame count of the whole batch, or to that of the
    longest label (docs/spec/ex_omni.md 6.2 and 8.2, items 1, 2, 5 and 11)."""
    if frames is None:
        total = release_frames(units)
        frames = (units >= 0).sum(1) * total // max(1, units.shape[1])
    else:
        total = int(frames.max())
    lengths, totals = (torch.full((len(units),), n, device=units.device) for n in (units.shape[1], total))
    return lengths, totals, torch.arange(max(1, total), device=units.device) >= frames.clamp(min=1)[:, None]


def lean_layer(layer: nn.TransformerEncoderLayer, x):
    """layer(x) for x (B, T, D) under a causal mask, without the (B, H, T, T) matrix of PyTorch's own path, which takes
    gigabytes for a minute or two. For evaluation only: it has no dropout."""
    attn = layer.self_attn
    qkv = F.linear(x, attn.in_proj_weight, attn.in_proj_bias)
    q, k, v = rearrange(qkv, "b t (three h d) -> three b h t d", three=3, h=attn.num_heads)
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    x = layer.norm1(x + attn.out_proj(rearrange(out, "b h t d -> b t (h d)")))
    return layer.norm2(x + layer.linear2(F.relu(layer.linear1(x))))


class FaceDecoder(nn.Module):
    """units (B, U), padded with -100, and states (B, S, D) -> blendshape weights (B, T, K), not clipped."""

    def __init__(self, config: FaceConfig):
        super().__init__()
        self.config, D = config, config.dim
        if config.ablate != "context":
            self.speech_gen_projection = nn.Linear(config.state_dim, D)
        if config.ablate != "units":
            self.speech_token_embedding = nn.Embedding(config.unit_vocab, config.unit_dim)
            self.speech_token_projection = nn.Linear(config.unit_dim, D)
        if config.ablate != "context":
            fusion = Concatenation if config.ablate == "tqgf" else TQGF
            self.tqgf = fusion(D, config.tqgf_depth, config.tqgf_heads, config.tqgf_dim_head)
        self.rope = PeriodicRoPE(D, config.period, config.rope_scale)
        self.encoder = nn.ModuleList(
            nn.TransformerEncoderLayer(D, config.heads, 2 * D, config.dropout, batch_first=True)
            for _ in range(config.layers))
        self.out_head = nn.Sequential(nn.LayerNorm(D), nn.Linear(D, D // 2), nn.ReLU(), nn.Dropout(config.dropout),
                                      nn.Linear(D // 2, config.channels))

    def forward(self, units, states, states_mask=None, frames=None, release_quirks=False):
        """states_mask (B, S) bool, True = visible. frames (B,): how many to make of each row, by default
        frames_for_units of its units. The result is as long as the longest row; values past a row's end are undefined.
        release_quirks: the release's frame counts, see `release_lengths`. Raises ValueError for unknown unit ids.
        """
        lengths, padding = (units >= 0).sum(1), None                                    # (B,)
        if release_quirks:
            lengths, frames, padding = release_lengths(units, frames)
        elif frames is None:
            frames = frames_for_units(lengths)
        context = None if self.config.ablate == "context" else self.speech_gen_projection(states)   # (B, S, D)
        query = stretch(self.embed(units, context), lengths, frames)                    # (B, T, D)
        real = torch.arange(query.shape[1], device=query.device) < frames[:, None]
        x = self.rope(query if context is None else self.tqgf(query, context, states_mask, real))
        if x.shape[1] > LONG and not self.training and (padding is None or not padding.any()):
            for layer in self.encoder:
                x = lean_layer(layer, x)
            return self.out_head(x)
        future = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)      # True = hidden
        for layer in self.encoder:
            x = layer(x, src_mask=future, src_key_padding_mask=padding, is_causal=True)
        return self.out_head(x)[:, :int(frames.max())]

    def embed(self, units, context):
        """Units (B, U) -> embeddings (B, U, D), zero at padding. In the ablation without units (v2 Table 6, "hidden
        features only"; our reading) each unit is replaced by the state that predicted it."""
        units = F.pad(units, (0, int(units.shape[1] == 0)), value=-100)                 # U = 0 runs too
        if units.numel() and int(units.max()) >= self.config.unit_vocab:
            raise ValueError(f"unit {int(units.max())} is outside the face decoder's table of "
                             f"{self.config.unit_vocab}: were these units made by another speech tokenizer?")
        if self.config.ablate == "units":
            return context[:, :units.shape[1]] * (units >= 0)[..., None]
        return self.speech_token_projection(self.speech_token_embedding(units.clamp(min=0))) * (units >= 0)[..., None]


def face_loss(pred, target, lengths, velocity_weight: float = 0.5):
    """Mean squared error of the weights plus velocity_weight times that of their frame-to-frame differences (v1; v2 and
    the release leave out the velocity term: docs/spec/ex_omni.md 6.3).

    pred (B, T', K) is cut or zero-padded to target (B, T, K); lengths (B,) valid frames. Each term is averaged over the
    channels, then over a sample's valid frames (or pairs of them), then over the batch.
    """
    T = target.shape[1]
    pred = F.pad(pred[:, :T].float(), (0, 0, 0, max(0, T - pred.shape[1])))
    target = target.float()
    valid = torch.arange(T, device=pred.device) < lengths.clamp(max=T)[:, None]

    def masked(error, mask):
        return ((error ** 2).mean(-1) * mask).sum(1).div(mask.sum(1) + 1e-6).mean()

    loss = masked(pred - target, valid)
    if velocity_weight:
        loss = loss + velocity_weight * masked(pred.diff(dim=1) - target.diff(dim=1), valid[:, 1:])
    return loss
