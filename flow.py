"""The flow of the GLM-4-Voice speech decoder: units (12.5 per second) -> log-mel (86.13 frames per second).

A block-causal transformer encodes the units and a length regulator resamples them to mel frames: mu. Flow matching: a
1-D U-Net, conditioned on mu, predicts the velocity that carries noise to a mel. The modules have the names of the
official checkpoint (docs/spec/glm4_voice.md 2).

Shapes: B batch, U units, L mel frames (6.890625 per unit), M mel bins, H heads, d head size; D is the width of the unit
encoder, C that of the U-Net.
"""
import math
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from disk import Layers, Scale, Share, Size, Sizes
from face_decoder import UNIT_RATE
from whisper import sinusoids

OUTPUT_RATE = 22_050          # Hz, of the output; the input has 16 kHz (audio.py)
OUTPUT_HOP = 256              # output samples per mel frame


@dataclass
class EncoderConfig:
    FIXED = {"normalize_before": (True,), "use_cnn_module": (False,), "macaron_style": (False,),
             "input_layer": ("linear",), "pos_enc_layer_type": ("rel_pos_espnet",),
             "selfattention_layer_type": ("block_rel_selfattn",)}
    output_size: Size = 512         # D
    attention_heads: Size = 8
    linear_units: Size = 2048       # feed-forward width
    num_blocks: Layers = 6          # layers
    block_size: Size = 10           # units per attention block, 0.8 s; also the default block of stream()
    dropout_rate: Share = 0.1       # in training

    def __post_init__(self):
        if self.output_size % self.attention_heads:
            raise ValueError(f"output_size is {self.output_size}, expected a multiple of attention_heads "
                             f"({self.attention_heads})")


@dataclass
class RegulatorConfig:
    sampling_ratios: Sizes = field(default_factory=lambda: [1, 1, 1, 1])    # one convolution per entry


@dataclass
class EstimatorConfig:
    FIXED = {"act_fn": ("gelu",)}
    channels: Sizes = field(default_factory=lambda: [256, 256])             # C of each level; each halves the rate
    n_blocks: Layers = 4            # transformer blocks after each Resnet
    num_mid_blocks: Layers = 12
    num_heads: Size = 8
    attention_head_dim: Size = 64


@dataclass
class CFMConfig:
    FIXED = {"solver": ("euler",)}
    sigma_min: Share = 1e-6
    training_cfg_rate: Share = 0.2  # how often training drops all conditions
    inference_cfg_rate: Scale = 0.7     # guidance
    t_scheduler: Literal["cosine"] = "cosine"


@dataclass
class MatchingConfig:
    cfm_params: CFMConfig = field(default_factory=CFMConfig)
    estimator: EstimatorConfig = field(default_factory=EstimatorConfig)


@dataclass
class FlowConfig:
    """Nested and named as the official yaml; the defaults are the published values."""
    FIXED = {"input_frame_rate": (UNIT_RATE,), "output_type": ("mel",)}
    vocab_size: Size = 16384
    input_size: Size = 512          # width of the unit embedding
    output_size: Size = 80          # M
    spk_embed_dim: Size = 192
    encoder: EncoderConfig = field(default_factory=EncoderConfig)               # the transformer over units
    length_regulator: RegulatorConfig = field(default_factory=RegulatorConfig)  # from units to mel frames
    decoder: MatchingConfig = field(default_factory=MatchingConfig)             # flow matching and its U-Net


def mel_frames(units: int) -> int:
    """Mel frames of this many units, in float32 as in the reference (docs/spec/glm4_voice.md 2.2)."""
    return int(torch.tensor(units, dtype=torch.int32) / UNIT_RATE * OUTPUT_RATE / OUTPUT_HOP)


def named(**modules) -> nn.Sequential:
    """nn.Sequential with the checkpoint's names for its modules."""
    return nn.Sequential(OrderedDict(modules))


def random_tensor(kind, shape, generator, device):
    """kind: torch.rand or torch.randn. The generator may be on another device."""
    return kind(shape, generator=generator, device=generator.device if generator else device).to(device)


def masked(x, mask):
    """x * mask; mask None = no padding."""
    return x if mask is None else x * mask


class RelativeAttention(nn.Module):
    """Transformer-XL's: logits ((q_i + u) k_j + (q_i + v) W_pos P[i - j]) / sqrt(d) (docs/spec/glm4_voice.md 2.1)."""

    def __init__(self, dim: int, heads: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.linear_q, self.linear_k, self.linear_v, self.linear_out = (nn.Linear(dim, dim) for _ in range(4))
        self.linear_pos = nn.Linear(dim, dim, bias=False)
        self.pos_bias_u, self.pos_bias_v = (nn.Parameter(torch.zeros(heads, dim // heads)) for _ in range(2))

    def forward(self, x, positions, visible):
        """x (B, U, D); positions (1, 2U-1, D), row 0 = offset U-1; visible bool, broadcasts to (B, H, U, U)."""
        U, split = x.shape[1], "b u (h d) -> b h u d"
        q, k, v = (rearrange(p(x), split, h=self.heads) for p in (self.linear_q, self.linear_k, self.linear_v))
        p = rearrange(self.linear_pos(positions), split, h=self.heads)                          # (1, H, 2U-1, d)
        by_offset = (q + self.pos_bias_v[:, None]) @ p.transpose(2, 3) * q.shape[3] ** -0.5     # (B, H, U, 2U-1)
        i = torch.arange(U, device=x.device)
        bias = by_offset.gather(3, (U - 1 - i[:, None] + i).expand(*q.shape[:2], U, U))         # (B, H, U, U)
        out = F.scaled_dot_product_attention(q + self.pos_bias_u[:, None], k, v, bias.masked_fill(~visible, -math.inf),
                                             dropout_p=self.dropout if self.training else 0.0)
        return self.linear_out(rearrange(out, "b h u d -> b u (h d)"))


class UnitEncoderLayer(nn.Module):
    """Pre-norm block: x (B, U, D) -> (B, U, D); positions and visible are those of `RelativeAttention`."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        D = config.output_size
        self.norm_mha, self.norm_ff = nn.LayerNorm(D), nn.LayerNorm(D)
        self.self_attn = RelativeAttention(D, config.attention_heads, config.dropout_rate)
        self.feed_forward = named(w_1=nn.Linear(D, config.linear_units), act=nn.SiLU(),
                                  dropout=nn.Dropout(config.dropout_rate), w_2=nn.Linear(config.linear_units, D))
        self.dropout = nn.Dropout(config.dropout_rate)

    def forward(self, x, positions, visible):
        x = x + self.dropout(self.self_attn(self.norm_mha(x), positions, visible))
        return x + self.dropout(self.feed_forward(self.norm_ff(x)))


class UnitEncoder(nn.Module):
    """Embedded units (B, U, input_size) -> (B, U, D). Block-causal: a block of units sees itself and earlier blocks."""

    def __init__(self, config: EncoderConfig, input_size: int):
        super().__init__()
        D, self.block_size = config.output_size, config.block_size
        self.embed = named(out=nn.Sequential(nn.Linear(input_size, D), nn.LayerNorm(D)))
        self.dropout = nn.Dropout(config.dropout_rate)
        self.encoders = nn.ModuleList(UnitEncoderLayer(config) for _ in range(config.num_blocks))
        self.after_norm = nn.LayerNorm(D)

    @staticmethod
    def positions(length: int, dim: int, device="cpu") -> torch.Tensor:
        """(1, 2U-1, D) table of offsets U-1 ... -(U-1), sine and cosine interleaved; float32."""
        offsets = torch.arange(length - 1, -length, -1, device=device, dtype=torch.float32)
        frequencies = torch.exp(torch.arange(0, dim, 2, device=device) * (-math.log(10_000.0) / dim))
        angles = offsets[:, None] * frequencies
        return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[None]

    def forward(self, x, lengths=None):
        x = self.embed(x)
        U, D = x.shape[1:]
        x = self.dropout(x * D ** 0.5)
        positions = self.dropout(self.positions(U, D, x.device).to(x.dtype))
        index = torch.arange(U, device=x.device)
        visible = index // self.block_size <= index[:, None] // self.block_size                 # (U, U), [i, j]
        if lengths is not None:
            visible = visible & (index < lengths[:, None])[:, None, None, :]                    # (B, 1, U, U)
        for layer in self.encoders:
            x = layer(x, positions, visible)
        return self.after_norm(x)


class LengthRegulator(nn.Module):
    """(B, U, M) at the unit rate -> (B, L, M) at the mel rate. Not causal: GroupNorm averages over all frames."""

    def __init__(self, channels: int, convolutions: int):
        super().__init__()
        layers = [layer for _ in range(convolutions) for layer in (
            nn.Conv1d(channels, channels, 3, padding=1), nn.GroupNorm(1, channels), nn.Mish())]
        self.model = nn.Sequential(*layers, nn.Conv1d(channels, channels, 1))

    def forward(self, x, frames: int):
        return self.model(F.interpolate(x.transpose(1, 2), size=frames, mode="nearest")).transpose(1, 2)


class Attention(nn.Module):
    """Multi-head self-attention of (B, L, C); bias (B, 1, L, L) is added to the logits."""

    def __init__(self, dim: int, heads: int, head_dim: int):
        super().__init__()
        self.heads, inner = heads, heads * head_dim
        self.to_q, self.to_k, self.to_v = (nn.Linear(dim, inner, bias=False) for _ in range(3))
        self.to_out = nn.Sequential(nn.Linear(inner, dim))

    def forward(self, x, bias=None):
        q, k, v = (rearrange(p(x), "b l (h d) -> b h l d", h=self.heads) for p in (self.to_q, self.to_k, self.to_v))
        return self.to_out(rearrange(F.scaled_dot_product_attention(q, k, v, bias), "b h l d -> b l (h d)"))


class TransformerBlock(nn.Module):
    """Pre-norm block: (B, L, C) -> (B, L, C). It is not conditioned on the time t."""

    def __init__(self, dim: int, config: EstimatorConfig):
        super().__init__()
        self.norm1, self.norm3 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn1 = Attention(dim, config.num_heads, config.attention_head_dim)
        self.ff = named(net=nn.Sequential(named(proj=nn.Linear(dim, 4 * dim)), nn.GELU(), nn.Linear(4 * dim, dim)))

    def forward(self, x, bias=None):
        x = x + self.attn1(self.norm1(x), bias)
        return x + self.ff(self.norm3(x))


class Block1D(nn.Module):
    """(B, C_in, L) -> (B, C, L): convolution, GroupNorm, mish."""

    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.block = nn.Sequential(nn.Conv1d(c_in, c_out, 3, padding=1), nn.GroupNorm(8, c_out), nn.Mish())

    def forward(self, x, mask=None):
        return masked(self.block(masked(x, mask)), mask)


class Resnet(nn.Module):
    """x (B, C_in, L), time (1 or B, 4 C) -> (B, C, L): two blocks with the time embedding added in between."""

    def __init__(self, c_in: int, c_out: int, time_dim: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Mish(), nn.Linear(time_dim, c_out))
        self.block1, self.block2 = Block1D(c_in, c_out), Block1D(c_out, c_out)
        self.res_conv = nn.Conv1d(c_in, c_out, 1)

    def forward(self, x, time, mask=None):
        h = self.block1(x, mask) + self.mlp(time)[:, :, None]
        return self.block2(h, mask) + self.res_conv(masked(x, mask))


class Level(nn.ModuleList):
    """[Resnet, transformer blocks], in down and up blocks followed by a convolution that may change the rate."""

    def __init__(self, c_in: int, c_out: int, config: EstimatorConfig, *resample):
        blocks = nn.ModuleList(TransformerBlock(c_out, config) for _ in range(config.n_blocks))
        super().__init__([Resnet(c_in, c_out, 4 * config.channels[0]), blocks, *resample])

    def forward(self, x, time, mask=None):
        """(B, C_in, L) -> (B, C, L), without that convolution."""
        x = self[0](x, time, mask).transpose(1, 2).contiguous()                             # (B, L, C)
        # As in the release the 0/1 mask is ADDED to the logits: padding is attended to, only less.
        bias = None if mask is None else mask[:, :, :, None] * mask[:, :, None, :]          # (B, 1, L, L)
        for block in self[1]:
            x = block(x, bias)
        return x.transpose(1, 2)


class Estimator(nn.Module):
    """The 1-D U-Net: x, mu, cond (B, M, L), spk (B, M), t (1 or B,) -> velocity (B, M, L).

    mask (B, 1, L): 1 = frame, 0 = padding; None = no padding, the same but faster. As in the release, the result for an
    utterance depends on its padding (`Level`; docs/spec/glm4_voice.md 2.4).
    """

    def __init__(self, n_mels: int, config: EstimatorConfig):
        super().__init__()
        channels, self.time_dim = config.channels, 4 * n_mels
        embedding, last = 4 * channels[0], len(channels) - 1
        self.time_mlp = named(linear_1=nn.Linear(self.time_dim, embedding), act=nn.SiLU(),
                              linear_2=nn.Linear(embedding, embedding))
        self.down_blocks, self.mid_blocks, self.up_blocks = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for i, (c_in, C) in enumerate(zip([4 * n_mels, *channels], channels)):
            conv = nn.Conv1d(C, C, 3, padding=1) if i == last else named(conv=nn.Conv1d(C, C, 3, 2, padding=1))
            self.down_blocks.append(Level(c_in, C, config, conv))
        for _ in range(config.num_mid_blocks):
            self.mid_blocks.append(Level(channels[-1], channels[-1], config))
        for i, (c_in, C) in enumerate(zip(channels[::-1], [*channels[-2::-1], channels[0]])):
            conv = nn.Conv1d(C, C, 3, padding=1) if i == last else named(conv=nn.ConvTranspose1d(C, C, 4, 2, padding=1))
            self.up_blocks.append(Level(2 * c_in, C, config, conv))
        self.final_block = Block1D(channels[0], channels[0])
        self.final_proj = nn.Conv1d(channels[0], n_mels, 1)

    def forward(self, x, mask, mu, t, spk, cond):
        time = self.time_mlp(sinusoids(1000 * t.float(), self.time_dim).to(x.dtype))        # (1 or B, 4 C)
        x = torch.cat([x, mu, spk[:, :, None].expand(-1, -1, x.shape[2]), cond], dim=1)     # (B, 4M, L)
        skips, masks = [], [None if mask is None else mask[:, :, ::2 ** i] for i in range(len(self.down_blocks))]
        for level, mask in zip(self.down_blocks, masks):
            skips.append(level(x, time, mask))
            x = level[2](masked(skips[-1], mask))
        for level in self.mid_blocks:
            x = level(x, time, masks[-1])
        for level, skip, mask in zip(self.up_blocks, skips[::-1], masks[::-1]):
            x = level(torch.cat([x[:, :, :skip.shape[2]], skip], dim=1), time, mask)        # for odd L, x is one longer
            x = level[2](masked(x, mask))
        return masked(self.final_proj(masked(self.final_block(x, mask), mask)), mask)


def cosine_time(progress):
    """The cosine schedule: progress in [0, 1] -> time of the flow, slow at the start, where all is noise."""
    return 1 - torch.cos(progress * 0.5 * math.pi)


class FlowMatching(nn.Module):
    """Integrates the estimator's velocity from noise to a mel (docs/spec/glm4_voice.md 2.5, 2.6)."""

    def __init__(self, n_mels: int, config: MatchingConfig):
        super().__init__()
        self.config = config.cfm_params
        self.estimator = Estimator(n_mels, config.estimator)

    @torch.no_grad()
    def sample(self, noise, mu, spk, cond, steps=10, guidance=None):
        """noise, mu, cond (B, M, L), spk (B, M) -> mel (B, M, L), float32. No padding.
        Euler steps with classifier-free guidance g: v = (1 + g) f(conditions) - g f(zeros), both in one batch."""
        guidance = self.config.inference_cfg_rate if guidance is None else guidance
        if guidance:
            mu, spk, cond = (torch.cat([c, torch.zeros_like(c)]) for c in (mu, spk, cond))
        x, copies = noise.float(), len(mu) // len(noise)
        times = cosine_time(torch.linspace(0, 1, steps + 1, device=x.device))
        for now, then in zip(times, times[1:]):
            v = self.estimator(x.to(mu.dtype).repeat(copies, 1, 1), None, mu, now[None], spk, cond).float()
            if guidance:
                conditional, unconditional = v.chunk(2)
                v = (1 + guidance) * conditional - guidance * unconditional
            x = x + (then - now) * v
        return x

    def noisy(self, x1, z, t):
        """Mel x1 and noise z (B, M, L), t (B,) -> the point between them at time t, and the velocity there."""
        t, k = t[:, None, None], 1 - self.config.sigma_min
        return (1 - k * t) * z + t * x1, x1 - k * z

    def loss(self, x1, mu, spk, cond, mask=None, t=None, z=None, keep=None, generator=None):
        """Flow-matching loss, a scalar: mean squared error of the velocity over the frames of mask (B, 1, L).

        x1, mu, cond (B, M, L), spk (B, M). Random by default: time t (B,), noise z (B, M, L), and keep (B,) bool, False
        for samples trained without conditions (a share of training_cfg_rate).
        """
        B, device = len(x1), x1.device
        t = cosine_time(random_tensor(torch.rand, (B,), generator, device)) if t is None else t
        z = random_tensor(torch.randn, x1.shape, generator, device) if z is None else z
        if keep is None:
            keep = random_tensor(torch.rand, (B,), generator, device) >= self.config.training_cfg_rate
        y, target = self.noisy(x1, z, t)
        mu, cond, spk = mu * keep[:, None, None], cond * keep[:, None, None], spk * keep[:, None]
        error = masked((self.estimator(y, mask, mu, t, spk, cond) - target).square(), mask)
        return error.sum() / ((B * x1.shape[2] if mask is None else mask.sum()) * x1.shape[1])


class Flow(nn.Module):
    """Units -> mel: unit encoder, length regulator, and flow matching conditioned on their output mu."""

    def __init__(self, config: FlowConfig):
        super().__init__()
        self.config, M = config, config.output_size
        self.input_embedding = nn.Embedding(config.vocab_size, config.input_size)
        self.spk_embed_affine_layer = nn.Linear(config.spk_embed_dim, M)
        self.encoder = UnitEncoder(config.encoder, config.input_size)
        self.encoder_proj = nn.Linear(config.encoder.output_size, M)
        self.length_regulator = LengthRegulator(M, len(config.length_regulator.sampling_ratios))
        self.decoder = FlowMatching(M, config.decoder)

    def mu(self, units, lengths=None, frames=None):
        """Units (B, U) -> mu (B, M, L). lengths (B,) of the units, None = no padding; frames (B,) mel frames of each,
        None = as long as the units. Negative ids, used for padding, are read as 0."""
        x = self.input_embedding(units.clamp(min=0))                                        # (B, U, input_size)
        if lengths is not None:
            x = x * (torch.arange(units.shape[1], device=x.device) < lengths[:, None])[:, :, None]
            if frames is None:
                frames = torch.tensor([mel_frames(n) for n in lengths.tolist()], device=x.device)
        h = self.encoder_proj(self.encoder(x, lengths))                                     # (B, U, M)
        L = mel_frames(units.shape[1]) if frames is None else int(frames.max())
        mu = self.length_regulator(h, L).transpose(1, 2)                                    # (B, M, L)
        return mu if frames is None else mu * (torch.arange(L, device=mu.device) < frames[:, None])[:, None]

    def speaker(self, embedding=None):
        """Speaker embedding (B, spk_embed_dim), normalised -> (B, M). None: zeros, which the release always passes."""
        layer = self.spk_embed_affine_layer
        return layer.bias[None] if embedding is None else layer(F.normalize(embedding))

    def loss(self, units, mel, lengths=None, frames=None, speaker=None, generator=None):
        """Flow-matching loss of units (B, U) with lengths (B,), and log-mels (B, M, L) with frames (B,).
        Half of the samples get the first k frames of their mel as a prompt, k uniform in [0, 0.8 L]."""
        (B, _, L), device = mel.shape, mel.device
        counts = torch.full((B,), L, device=device) if frames is None else frames
        index = torch.arange(L, device=device)
        mask = None if frames is None else (index < frames[:, None])[:, None].to(mel.dtype)
        prompt = (random_tensor(torch.rand, (B,), generator, device) * (0.8 * counts + 1)).long()
        prompt = prompt * (random_tensor(torch.rand, (B,), generator, device) < 0.5)
        cond = mel * (index < prompt[:, None])[:, None]
        spk = self.speaker(speaker).expand(B, -1)
        return self.decoder.loss(mel, self.mu(units, lengths, counts), spk, cond, mask, generator=generator)
