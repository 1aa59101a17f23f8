"""GLM-4-Voice speech decoder: units (12.5 per second) -> log-mel by flow matching -> waveform at 22050 Hz by HiFT.

    decoder = SpeechDecoder.from_pretrained("checkpoint/speech_decoder")
    samples = decoder.decode(units)                      # offline: (U,) -> (samples,)
    for block in decoder.stream(units): ...              # block by block, while units still arrive

Spec glm4_voice 2 (flow), 3 (vocoder), 4 (streaming). The modules carry the names of the official checkpoint.

Shapes: B batch, U units, F mel frames (86.13 per second, 6.890625 per unit), M mel bins, D width of the unit encoder,
C width of the U-Net, T positions at either rate of the U-Net (F or F/2), H heads, S samples (256 per frame).
"""
import math
from collections import OrderedDict
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from itertools import chain, repeat
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

import weights
from whisper import mel_filters

SAMPLE_RATE = 22_050          # Hz
UNIT_RATE = 12.5              # units per second
HOP = 256                     # samples per mel frame
OVERLAP = 34                  # mel frames of one block faded into the next: what 5 units last


@dataclass
class EncoderConfig:
    output_size: int = 512          # D
    attention_heads: int = 8
    linear_units: int = 2048        # feed-forward width
    num_blocks: int = 6             # layers
    block_size: int = 10            # units that see each other, 0.8 s; also the default block of stream()
    dropout_rate: float = 0.1       # in training


@dataclass
class RegulatorConfig:
    sampling_ratios: list = field(default_factory=lambda: [1, 1, 1, 1])     # one convolution each


@dataclass
class EstimatorConfig:
    channels: list = field(default_factory=lambda: [256, 256])              # C of each level, halving the rate
    n_blocks: int = 4               # transformer blocks behind each Resnet
    num_mid_blocks: int = 12
    num_heads: int = 8
    attention_head_dim: int = 64


@dataclass
class CFMConfig:
    sigma_min: float = 1e-6
    training_cfg_rate: float = 0.2  # how often training drops all conditions
    inference_cfg_rate: float = 0.7     # guidance
    t_scheduler: str = "cosine"     # the only one known here

    def __post_init__(self):
        if self.t_scheduler != "cosine":
            raise ValueError(f"t_scheduler is {self.t_scheduler!r}, expected 'cosine'")


@dataclass
class MatchingConfig:
    cfm_params: CFMConfig = field(default_factory=CFMConfig)
    estimator: EstimatorConfig = field(default_factory=EstimatorConfig)


@dataclass
class FlowConfig:
    """Nested and named as the official yaml; the defaults are the published values (spec 2)."""
    vocab_size: int = 16384
    input_size: int = 512           # width of the unit embedding
    output_size: int = 80           # M
    spk_embed_dim: int = 192
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    length_regulator: RegulatorConfig = field(default_factory=RegulatorConfig)
    decoder: MatchingConfig = field(default_factory=MatchingConfig)


@dataclass
class F0Config:
    cond_channels: int = 512


@dataclass
class STFTConfig:
    n_fft: int = 16
    hop_len: int = 4


@dataclass
class HiFTConfig:
    in_channels: int = 80           # M
    base_channels: int = 512
    nb_harmonics: int = 8           # overtones; the fundamental comes on top
    sampling_rate: int = SAMPLE_RATE
    nsf_alpha: float = 0.1          # amplitude of each sine
    nsf_sigma: float = 0.003        # noise on voiced frames
    nsf_voiced_threshold: float = 10.0      # Hz; below it a frame is unvoiced
    upsample_rates: list = field(default_factory=lambda: [8, 8])
    upsample_kernel_sizes: list = field(default_factory=lambda: [16, 16])
    istft_params: STFTConfig = field(default_factory=STFTConfig)
    resblock_kernel_sizes: list = field(default_factory=lambda: [3, 7, 11])
    resblock_dilation_sizes: list = field(default_factory=lambda: [[1, 3, 5]] * 3)
    source_resblock_kernel_sizes: list = field(default_factory=lambda: [7, 11])
    source_resblock_dilation_sizes: list = field(default_factory=lambda: [[1, 3, 5]] * 2)
    lrelu_slope: float = 0.1
    audio_limit: float = 0.99
    f0_predictor: F0Config = field(default_factory=F0Config)

    def __post_init__(self):
        hop = math.prod(self.upsample_rates) * self.istft_params.hop_len
        if (hop, self.sampling_rate) != (HOP, SAMPLE_RATE):
            raise ValueError(f"the vocoder makes {hop} samples per frame at {self.sampling_rate} Hz, "
                             f"expected {HOP} at {SAMPLE_RATE}")


@dataclass
class SamplingConfig:
    """How mels are sampled; the defaults are the published way."""
    steps: int = 10                 # Euler steps
    temperature: float = 1.0        # scale of the noise that sampling starts from
    guidance: float = None          # None: the flow's inference_cfg_rate (0.7); 0 halves the work

    def __post_init__(self):
        if self.steps < 1:
            raise ValueError(f"sampling steps are {self.steps}, expected 1 or more")


@dataclass
class SpeechDecoderConfig:
    flow: FlowConfig = field(default_factory=FlowConfig)
    hift: HiFTConfig = field(default_factory=HiFTConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)


def pick(cls, values: dict):
    """A config from a json object, nested ones too. Fields of the official yaml that change nothing are left out."""
    known = {f.name: f.type for f in fields(cls)}
    return cls(**{name: pick(known[name], value) if is_dataclass(known[name]) else value
                  for name, value in values.items() if name in known})


def mel_frames(units: int) -> int:
    """Mel frames of so many units; float32 throughout, as in the reference (spec 2.2)."""
    return int(torch.tensor(units, dtype=torch.int32) / UNIT_RATE * SAMPLE_RATE / HOP)


def named(**modules) -> nn.Sequential:
    """Modules under the names they have in the checkpoint."""
    return nn.Sequential(OrderedDict(modules))


# ---- units -> mu, the mean path ---------------------------------------------------------------------------------

class RelativeAttention(nn.Module):
    """Transformer-XL attention: logits (q_i + u) k_j + (q_i + v) W_pos P[i - j], over sqrt(d) (spec 2.1)."""

    def __init__(self, dim: int, heads: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.linear_q, self.linear_k, self.linear_v = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.linear_out, self.linear_pos = nn.Linear(dim, dim), nn.Linear(dim, dim, bias=False)
        self.pos_bias_u = nn.Parameter(torch.zeros(heads, dim // heads))
        self.pos_bias_v = nn.Parameter(torch.zeros(heads, dim // heads))

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
    def __init__(self, config: EncoderConfig):
        super().__init__()
        D = config.output_size
        self.norm_mha, self.norm_ff = nn.LayerNorm(D), nn.LayerNorm(D)
        self.self_attn = RelativeAttention(D, config.attention_heads, config.dropout_rate)
        self.feed_forward = nn.ModuleDict({"w_1": nn.Linear(D, config.linear_units),
                                           "w_2": nn.Linear(config.linear_units, D)})
        self.dropout = nn.Dropout(config.dropout_rate)

    def forward(self, x, positions, visible):
        x = x + self.dropout(self.self_attn(self.norm_mha(x), positions, visible))
        inner = F.silu(self.feed_forward.w_1(self.norm_ff(x)))
        return x + self.dropout(self.feed_forward.w_2(self.dropout(inner)))


class UnitEncoder(nn.Module):
    """(B, U, input_size) embedded units -> (B, U, D). Blocks of block_size units; a block sees itself and the past."""

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
    """(B, U, M) at the unit rate -> (B, F, M) at the mel rate. GroupNorm sees all frames: not causal (spec 2.2)."""

    def __init__(self, channels: int, convolutions: int):
        super().__init__()
        layers = [(nn.Conv1d(channels, channels, 3, padding=1), nn.GroupNorm(1, channels), nn.Mish())
                  for _ in range(convolutions)]
        self.model = nn.Sequential(*chain(*layers), nn.Conv1d(channels, channels, 1))

    def forward(self, x, frames: int):
        return self.model(F.interpolate(x.transpose(1, 2), size=frames, mode="nearest")).transpose(1, 2)


# ---- mu and noise -> mel, the U-Net -----------------------------------------------------------------------------

def attend(q, k, v, bias=None):
    """Softmax attention of (B, H, T, d), with `bias` added to the logits -> (B, T, H, d)."""
    if q.is_cpu and bias is None and q.shape[2] <= 256 and not torch.is_grad_enabled():
        # While T is short, plain products row by row, which copy nothing, take half the time of the CPU's fused kernel.
        rows = [(torch.baddbmm(q.new_zeros(()), q, k.transpose(1, 2), beta=0, alpha=q.shape[2] ** -0.5).softmax(-1) @ v)
                for q, k, v in zip(q, k, v)]
        return torch.stack([row.transpose(0, 1) for row in rows])
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2)


class Attention(nn.Module):
    """Self-attention with q, k and v in one matrix; in a state dict they are to_q, to_k and to_v."""
    PARTS = ("to_q.weight", "to_k.weight", "to_v.weight")

    def __init__(self, dim: int, heads: int, head_dim: int):
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Linear(dim, 3 * heads * head_dim, bias=False)
        self.to_out = nn.Sequential(nn.Linear(heads * head_dim, dim))
        self.register_state_dict_post_hook(self.unpack)
        self.register_load_state_dict_pre_hook(self.pack)

    @staticmethod
    def unpack(module, state, prefix, _metadata):
        """Replace to_qkv by views of its thirds: what is copied into them arrives in the packed matrix."""
        packed = state.pop(prefix + "to_qkv.weight")
        state.update(zip((prefix + name for name in Attention.PARTS), packed.chunk(3)))

    @staticmethod
    def pack(module, state, prefix, *_):
        if all(prefix + name in state for name in Attention.PARTS):
            state[prefix + "to_qkv.weight"] = torch.cat([state.pop(prefix + name) for name in Attention.PARTS])

    def forward(self, x, bias=None):
        q, k, v = self.to_qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)       # (B, H, T, d) each
        return self.to_out(attend(q, k, v, bias).flatten(2))


class TransformerBlock(nn.Module):
    """(B, T, C) -> (B, T, C), pre-norm. It does not see the time."""

    def __init__(self, dim: int, config: EstimatorConfig):
        super().__init__()
        self.norm1, self.norm3 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn1 = Attention(dim, config.num_heads, config.attention_head_dim)
        self.ff = named(net=nn.Sequential(named(proj=nn.Linear(dim, 4 * dim)), nn.GELU(), nn.Linear(4 * dim, dim)))

    def forward(self, x, bias=None):
        x = x + self.attn1(self.norm1(x), bias)
        return x + self.ff(self.norm3(x))


class Block1D(nn.Module):
    """(B, c, T) -> (B, C, T): convolution, GroupNorm, mish."""

    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.block = nn.Sequential(nn.Conv1d(c_in, c_out, 3, padding=1), nn.GroupNorm(8, c_out), nn.Mish())

    def forward(self, x, mask=None):
        return masked(self.block(masked(x, mask)), mask)


class Resnet(nn.Module):
    """(B, c, T) -> (B, C, T), with a bias (1 or B, C) that tells the time (see Estimator.time_biases)."""

    def __init__(self, c_in: int, c_out: int, time_dim: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Mish(), nn.Linear(time_dim, c_out))
        self.block1, self.block2 = Block1D(c_in, c_out), Block1D(c_out, c_out)
        self.res_conv = nn.Conv1d(c_in, c_out, 1)

    def forward(self, x, time_bias, mask=None):
        h = self.block1(x, mask) + time_bias[:, :, None]
        return self.block2(h, mask) + self.res_conv(masked(x, mask))


def masked(x, mask):
    return x if mask is None else x * mask


class Estimator(nn.Module):
    """The 1-D U-Net f(x, mask, mu, t, spk, cond) -> velocity, all (B, M, F) but spk (B, M) and t (1 or B) (spec 2.4).

    mask (B, 1, F): 1 = frame, 0 = padding; None without padding, which is faster and the same. As in the release it
    is ADDED to the attention logits (+1 between frames), so padding is attended to, only less: a padded batch and
    single utterances differ.
    """

    def __init__(self, n_mels: int, config: EstimatorConfig):
        super().__init__()
        channels, self.time_dim = config.channels, 4 * n_mels
        embedding = 4 * channels[0]
        self.time_mlp = named(linear_1=nn.Linear(self.time_dim, embedding), act=nn.SiLU(),
                              linear_2=nn.Linear(embedding, embedding))

        def level(c_in, c_out, *resample):
            blocks = nn.ModuleList(TransformerBlock(c_out, config) for _ in range(config.n_blocks))
            return nn.ModuleList([Resnet(c_in, c_out, embedding), blocks, *resample])

        self.down_blocks, self.mid_blocks, self.up_blocks = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        last = len(channels) - 1
        for i, (c_in, C) in enumerate(zip([4 * n_mels, *channels], channels)):
            halve = nn.Conv1d(C, C, 3, padding=1) if i == last else named(conv=nn.Conv1d(C, C, 3, stride=2, padding=1))
            self.down_blocks.append(level(c_in, C, halve))
        for _ in range(config.num_mid_blocks):
            self.mid_blocks.append(level(channels[-1], channels[-1]))
        for i, (c_in, C) in enumerate(zip(channels[::-1], [*channels[-2::-1], channels[0]])):
            double = nn.Conv1d(C, C, 3, padding=1) if i == last else named(
                conv=nn.ConvTranspose1d(C, C, 4, stride=2, padding=1))
            self.up_blocks.append(level(2 * c_in, C, double))
        self.final_block = Block1D(channels[0], channels[0])
        self.final_proj = nn.Conv1d(channels[0], n_mels, 1)

    def time_embedding(self, t):
        """(K,) times in [0, 1] -> (K, 4M), sines then cosines, float32."""
        half = self.time_dim // 2
        frequencies = torch.exp(torch.arange(half, device=t.device) * (-math.log(10_000.0) / (half - 1)))
        angles = 1000 * t[:, None].float() * frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    def time_biases(self, t) -> list:
        """(K,) times -> what each Resnet adds at each of them, (K, C) per Resnet in the order they run.

        Only the time enters, so all steps of a call are worked out at once.
        """
        embedding = self.time_mlp(self.time_embedding(t).to(self.final_proj.weight.dtype))
        return [level[0].mlp(embedding) for level in chain(self.down_blocks, self.mid_blocks, self.up_blocks)]

    def forward(self, x, mask, mu, t, spk, cond):
        return self.unet(conditions(x, mu, spk, cond), self.time_biases(t), mask)

    def unet(self, x, time_biases, mask=None):
        """x (B, 4M, F): noisy mel and conditions; time_biases: (1 or B, C) per Resnet. -> velocity (B, M, F)."""
        biases, masks, skips = iter(time_biases), [mask], []

        def run(level, x, mask):
            """Resnet and transformer blocks of one level."""
            x = level[0](x, next(biases), mask)
            bias = None if mask is None else mask[:, :, :, None] * mask[:, :, None, :]      # (B, 1, T, T)
            x = x.transpose(1, 2).contiguous()
            for block in level[1]:
                x = block(x, bias)
            return x.transpose(1, 2)

        for i, level in enumerate(self.down_blocks):
            x = run(level, x, masks[-1])
            skips.append(x)
            x = level[2](masked(x, masks[-1]))
            if i < len(self.down_blocks) - 1:
                masks.append(None if mask is None else masks[-1][:, :, ::2])
        for level in self.mid_blocks:
            x = run(level, x, masks[-1])
        for level in self.up_blocks:
            skip, mask = skips.pop(), masks.pop()
            x = run(level, torch.cat([x[:, :, :skip.shape[2]], skip], dim=1), mask)         # odd F: one frame too many
            x = level[2](masked(x, mask))
        return masked(self.final_proj(masked(self.final_block(x, mask), mask)), mask)


def conditions(x, mu, spk, cond):
    """Noisy mel, mu, speaker and prompt one above the other: (B, 4M, F)."""
    return torch.cat([x, mu, spk[:, :, None].expand(-1, -1, x.shape[2]), cond], dim=1)


def schedule(u):
    """Progress u in [0, 1] -> time: slow at the noisy end."""
    return 1 - torch.cos(u * 0.5 * math.pi)


class FlowMatching(nn.Module):
    """Carries noise to mel along the estimator's velocity (spec 2.5, 2.6)."""

    def __init__(self, n_mels: int, config: MatchingConfig):
        super().__init__()
        self.config = config.cfm_params
        self.estimator = Estimator(n_mels, config.estimator)

    @torch.no_grad()
    def sample(self, noise, mu, spk, cond, steps=10, guidance=None):
        """noise, mu, cond (B, M, F), spk (B, M) -> mel (B, M, F), float32. Rows must be of one length.

        Euler steps with classifier-free guidance: v = (1 + g) f(conditions) - g f(zeros), both in one batch.
        """
        guidance = self.config.inference_cfg_rate if guidance is None else guidance
        x, dtype = noise.float(), mu.dtype
        times = schedule(torch.linspace(0, 1, steps + 1, device=x.device))
        biases = self.estimator.time_biases(times[:-1])
        inputs = conditions(x.to(dtype), mu, spk, cond)                                     # (B, 4M, F)
        if guidance:
            inputs = torch.cat([inputs, torch.zeros_like(inputs)])
        rows, M = inputs.unflatten(0, (-1, len(x))), x.shape[1]                             # a view: (1 or 2, B, 4M, F)
        for k in range(steps):
            rows[:, :, :M] = x.to(dtype)
            v = self.estimator.unet(inputs, [bias[k, None] for bias in biases]).float()
            if guidance:
                v, unguided = v.chunk(2)
                v = (1 + guidance) * v - guidance * unguided
            x = x + (times[k + 1] - times[k]) * v
        return x

    def noisy(self, x1, z, t):
        """Mel x1 and noise z (B, M, F), t (B,) -> the point between them at time t, and the velocity there."""
        keep = 1 - self.config.sigma_min
        return (1 - keep * t[:, None, None]) * z + t[:, None, None] * x1, x1 - keep * z

    def loss(self, x1, mu, spk, cond, mask=None, t=None, z=None, keep=None, generator=None):
        """Flow-matching loss, a scalar: mean squared error of the velocity over the frames of mask (B, 1, F).

        x1, mu, cond, z (B, M, F), spk (B, M). Drawn where not given: time t (B,), noise z, and keep (B,) bool, False
        for rows that learn without any condition (training_cfg_rate of them).
        """
        B, device = len(x1), x1.device
        t = schedule(draw(torch.rand, (B,), generator, device)) if t is None else t
        z = draw(torch.randn, x1.shape, generator, device) if z is None else z
        keep = draw(torch.rand, (B,), generator, device) >= self.config.training_cfg_rate if keep is None else keep
        y, target = self.noisy(x1, z, t)
        mu, cond, spk = mu * keep[:, None, None], cond * keep[:, None, None], spk * keep[:, None]
        error = masked((self.estimator(y, mask, mu, t, spk, cond) - target).square(), mask)
        return error.sum() / ((B * x1.shape[2] if mask is None else mask.sum()) * x1.shape[1])


def draw(random, shape, generator, device):
    """torch.rand or torch.randn from a generator that may live on another device."""
    return random(shape, generator=generator, device=generator.device if generator else device).to(device)


class Flow(nn.Module):
    """Units -> mel: unit encoder, length regulator, then flow matching conditioned on their output mu."""

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
        """Units (B, U) -> mu (B, M, F), the mean path. lengths (B,) units per row, None where no row is padded.

        frames (B,) mel frames per row, None: what the units last. Negative ids, as padding may have, count as 0.
        """
        x = self.input_embedding(units.clamp(min=0))                                        # (B, U, input_size)
        if lengths is not None:
            x = x * (torch.arange(units.shape[1], device=x.device) < lengths[:, None])[:, :, None]
            if frames is None:
                frames = torch.tensor([mel_frames(n) for n in lengths.tolist()], device=x.device)
        h = self.encoder_proj(self.encoder(x, lengths))                                     # (B, U, M)
        longest = mel_frames(units.shape[1]) if frames is None else int(frames.max())
        mu = self.length_regulator(h, longest).transpose(1, 2)                              # (B, M, F)
        return mu if frames is None else mu * (torch.arange(longest, device=mu.device) < frames[:, None])[:, None]

    def speaker(self, embedding=None):
        """(B, spk_embed_dim) -> (B, M), direction only. None: the zero vector that the release always passes."""
        layer = self.spk_embed_affine_layer
        return layer.bias[None] if embedding is None else layer(F.normalize(embedding))

    def loss(self, units, mel, lengths=None, frames=None, speaker=None, generator=None):
        """Flow-matching loss of units (B, U) and log-mels (B, M, F); lengths and frames (B,) where rows are padded.

        Half of the rows see the first k frames of their mel as a prompt, k uniform in [0, 0.8 F] (spec 2.6).
        """
        B, F_ = len(mel), mel.shape[2]
        counts = torch.full((B,), F_, device=mel.device) if frames is None else frames
        index = torch.arange(F_, device=mel.device)
        mask = None if frames is None else (index < frames[:, None])[:, None].to(mel.dtype)
        prompt = (draw(torch.rand, (B,), generator, mel.device) * (0.8 * counts + 1)).long()
        prompt = prompt * (draw(torch.rand, (B,), generator, mel.device) < 0.5)
        cond = mel * (index < prompt[:, None])[:, None]
        spk = self.speaker(speaker).expand(B, -1)
        return self.decoder.loss(mel, self.mu(units, lengths, counts), spk, cond, mask, generator=generator)


# ---- mel -> waveform --------------------------------------------------------------------------------------------

class Snake(nn.Module):
    """x + sin(alpha x)^2 / alpha, one alpha per channel."""

    def __init__(self, channels: int):
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(channels))

    def forward(self, x):
        alpha = self.alpha[:, None]
        return torch.addcmul(x, torch.sin(x * alpha).square(), 1 / (alpha + 1e-9))


class ResBlock(nn.Module):
    """(B, c, T) -> (B, c, T), two convolutions per dilation."""

    def __init__(self, channels: int, kernel: int, dilations: list):
        super().__init__()
        self.convs1 = nn.ModuleList(nn.Conv1d(channels, channels, kernel, dilation=d, padding=(kernel - 1) * d // 2)
                                    for d in dilations)
        self.convs2 = nn.ModuleList(nn.Conv1d(channels, channels, kernel, padding=kernel // 2) for _ in dilations)
        self.activations1 = nn.ModuleList(Snake(channels) for _ in dilations)
        self.activations2 = nn.ModuleList(Snake(channels) for _ in dilations)

    def forward(self, x):
        for snake1, conv1, snake2, conv2 in zip(self.activations1, self.convs1, self.activations2, self.convs2):
            x = x + conv2(snake2(conv1(snake1(x))))
        return x


class HiFT(nn.Module):
    """Log-mel (B, M, F) -> waveform (B, 256 F): a sine source at the predicted pitch, filtered (spec 3).

    The convolutions hold plain weights; the weight norm of the official files is folded in by `load_hift`.
    """

    def __init__(self, config: HiFTConfig):
        super().__init__()
        self.config, c0 = config, config.base_channels
        rates, bins = config.upsample_rates, config.istft_params.n_fft + 2
        f0 = config.f0_predictor.cond_channels
        widths = [config.in_channels, f0, f0, f0, f0]
        self.f0_predictor = nn.ModuleDict({
            "condnet": nn.Sequential(*chain(*((nn.Conv1d(c, f0, 3, padding=1), nn.ELU()) for c in widths))),
            "classifier": nn.Linear(f0, 1)})
        self.m_source = nn.ModuleDict({"l_linear": nn.Linear(config.nb_harmonics + 1, 1)})
        self.conv_pre = nn.Conv1d(config.in_channels, c0, 7, padding=3)
        self.ups, self.source_downs = nn.ModuleList(), nn.ModuleList()
        self.source_resblocks, self.resblocks = nn.ModuleList(), nn.ModuleList()
        for i, (rate, kernel) in enumerate(zip(rates, config.upsample_kernel_sizes)):
            c = c0 >> (i + 1)
            self.ups.append(nn.ConvTranspose1d(2 * c, c, kernel, rate, padding=(kernel - rate) // 2))
            down = math.prod(rates[i + 1:])             # from the rate of the spectrum to the one after this step
            self.source_downs.append(nn.Conv1d(bins, c, 1) if down == 1 else
                                     nn.Conv1d(bins, c, 2 * down, down, padding=down // 2))
            self.source_resblocks.append(ResBlock(c, config.source_resblock_kernel_sizes[i],
                                                  config.source_resblock_dilation_sizes[i]))
            for kernel, dilations in zip(config.resblock_kernel_sizes, config.resblock_dilation_sizes):
                self.resblocks.append(ResBlock(c, kernel, dilations))
        self.conv_post = nn.Conv1d(c, bins, 7, padding=3)

    def f0(self, mel):
        """(B, M, F) -> pitch (B, F) in Hz."""
        x = self.f0_predictor.condnet(mel.to(self.f0_predictor.classifier.weight.dtype))
        return self.f0_predictor.classifier(x.transpose(1, 2)).squeeze(-1).abs().float()

    def phases(self, generator=None, device="cpu"):
        """(1, harmonics, 1) radians: 0 for the fundamental, random for its overtones."""
        phase = math.pi * (2 * draw(torch.rand, (1, self.config.nb_harmonics + 1, 1), generator, device) - 1)
        phase[:, 0] = 0
        return phase

    def source(self, f0, phase=None, noise=None, generator=None):
        """Pitch (B, F) in Hz -> source (B, 1, S), float32: harmonics of the pitch, noise where there is none.

        phase (B, harmonics, 1) at the start, in radians, and noise (B, harmonics, S) are drawn where not given.
        """
        config, n = self.config, self.config.nb_harmonics + 1
        phase = self.phases(generator, f0.device) if phase is None else phase
        f0 = f0.float().repeat_interleave(HOP, dim=1)[:, None]                              # (B, 1, S)
        turns = torch.cumsum(f0 * torch.arange(1, n + 1, device=f0.device)[:, None] / SAMPLE_RATE, dim=2)
        if noise is None:
            noise = draw(torch.randn, turns.shape, generator, f0.device)
        voiced = f0 > config.nsf_voiced_threshold
        amplitude = torch.where(voiced, config.nsf_sigma, config.nsf_alpha / 3)
        sines = config.nsf_alpha * torch.sin(2 * math.pi * (turns % 1) + phase) * voiced + amplitude * noise
        mix = self.m_source.l_linear
        return torch.tanh(F.linear(sines.transpose(1, 2), mix.weight.float(), mix.bias.float())).transpose(1, 2)

    def spectrum(self, source):
        """(B, 1, S) -> (B, 18, S/4 + 1), real parts above imaginary ones."""
        stft = self.config.istft_params
        window = torch.hann_window(stft.n_fft, device=source.device)
        spectrum = torch.stft(source.squeeze(1).float(), stft.n_fft, stft.hop_len, window=window, return_complex=True)
        return torch.cat([spectrum.real, spectrum.imag], dim=1)

    def forward(self, mel, source):
        """Log-mel (B, M, F) and source (B, 1, 256 F) -> waveform (B, 256 F), float32."""
        config, stft = self.config, self.config.istft_params
        dtype, kernels = self.conv_pre.weight.dtype, len(config.resblock_kernel_sizes)
        x, spectrum = self.conv_pre(mel.to(dtype)), self.spectrum(source).to(dtype)
        for i, up in enumerate(self.ups):
            x = up(F.leaky_relu(x, config.lrelu_slope))
            if i == len(self.ups) - 1:
                x = F.pad(x, (1, 0), mode="reflect")    # the spectrum has one frame more than the mel makes
            x = x + self.source_resblocks[i](self.source_downs[i](spectrum))
            x = sum(block(x) for block in self.resblocks[i * kernels:(i + 1) * kernels]) / kernels
        x = self.conv_post(F.leaky_relu(x)).float()     # slope 0.01 here, as in the release
        magnitude, phase = x.chunk(2, dim=1)
        magnitude, phase = magnitude.exp().clamp(max=100), phase.sin()
        window = torch.hann_window(stft.n_fft, device=x.device)
        wave = torch.istft(torch.polar(magnitude, phase), stft.n_fft, stft.hop_len, window=window)
        return wave.clamp(-config.audio_limit, config.audio_limit)


def fold_weight_norm(gain, direction):
    """W = g v / |v|, the norm over every dimension but the first (the INPUT channel of a transposed convolution)."""
    return gain * direction / direction.flatten(1).norm(dim=1).view_as(gain)


def load_hift(hift: HiFT, path) -> None:
    """`weights.load` for a vocoder file: official ones hold weight_g and weight_v, ours plain weights."""
    shapes, target = weights.shapes(path), hift.state_dict()
    for name, shape in shapes.items():
        gain = name[:-1] + "g"
        if name.endswith(".weight_v") and shapes.get(gain) != (shape[0], 1, 1):
            raise ValueError(f"{path}: {gain} is {shapes.get(gain, 'missing')}, expected {(shape[0], 1, 1)} for {name}")

    def rename(name):
        return None if name.endswith(".weight_g") else name.removesuffix("_v")

    matched, gains = weights.plan(target, {path: shapes}, rename, str(path))
    gains = {name: tensor.clone() for name, tensor in weights.stream(path, gains)}
    with torch.no_grad():
        for name, tensor in weights.stream(path, matched[path]):
            if name.endswith(".weight_v"):
                tensor = fold_weight_norm(gains[name[:-1] + "g"].float(), tensor.float())
            target[matched[path][name]].copy_(tensor)


# ---- what training a small decoder needs ------------------------------------------------------------------------

def speech_mel(waveform, n_mels=80):
    """(..., S) samples at 22050 Hz -> natural log-mel (..., n_mels, S // 256), -11.5 (silence) to 2 (spec 3.4).

    Raises ValueError for fewer than 385 samples.
    """
    margin = (1024 - HOP) // 2
    if waveform.shape[-1] <= margin:
        raise ValueError(f"waveform has {waveform.shape[-1]} samples, expected more than {margin}: use a longer clip")
    rows = waveform.reshape(-1, waveform.shape[-1])
    padded = F.pad(rows[:, None], (margin, margin), mode="reflect")[:, 0]
    spectrum = torch.stft(padded, 1024, HOP, window=torch.hann_window(1024, device=rows.device), center=False,
                          return_complex=True)
    magnitude = (spectrum.real.square() + spectrum.imag.square() + 1e-9).sqrt()
    mel = mel_filters(n_mels, 1024, SAMPLE_RATE).to(rows.device) @ magnitude
    return mel.clamp(min=1e-5).log().reshape(*waveform.shape[:-1], n_mels, -1)


def stft_loss(waveform, target, sizes=(256, 512, 1024, 2048)):
    """Multi-resolution STFT loss of (B, S) samples: spectral convergence + L1 of the log magnitudes, a scalar."""
    loss = 0
    for size in sizes:
        window = torch.hann_window(size, device=waveform.device)
        both = torch.stft(torch.cat([waveform, target]), size, size // 4, window=window, return_complex=True)
        seen, wanted = (both.real.square() + both.imag.square()).clamp(min=1e-7).sqrt().chunk(2)
        loss = loss + (wanted - seen).norm() / wanted.norm() + F.l1_loss(seen.log(), wanted.log())
    return loss / len(sizes)


def hift_losses(hift: HiFT, mel, waveform, f0, generator=None) -> dict:
    """Terms to train a vocoder: mel (B, M, F), waveform (B, 256 F), f0 (B, F) in Hz, 0 where unvoiced.

    The waveform is made with the true pitch; the predictor learns it on the side. A weighting that has worked:
    stft + 2 mel + f0 / 50.
    """
    made = hift(mel, hift.source(f0, generator=generator))
    return {"stft": stft_loss(made, waveform), "f0": F.l1_loss(hift.f0(mel), f0),
            "mel": F.l1_loss(speech_mel(made, mel.shape[1]), speech_mel(waveform, mel.shape[1]))}


# ---- units -> waveform ------------------------------------------------------------------------------------------

class SpeechDecoder(nn.Module):
    """Units to sound, whole or in blocks. Always in evaluation mode: train a `Flow` or a `HiFT` by itself.

    Randomness comes from the `generator` of a call and nowhere else; without one, from a private generator seeded
    with 0, so that the same units give the same sound.
    """

    def __init__(self, config: SpeechDecoderConfig):
        super().__init__()
        if config.flow.output_size != config.hift.in_channels:
            raise ValueError(f"the flow makes {config.flow.output_size} mel bins, the vocoder expects "
                             f"{config.hift.in_channels}: these two do not belong together")
        self.config = config
        self.flow, self.hift = Flow(config.flow), HiFT(config.hift)
        self.eval()

    def train(self, mode=True):
        """Stay in evaluation mode (the release forgets to, and decodes with dropout)."""
        return super().train(False)

    @classmethod
    def from_pretrained(cls, directory, device="cpu", dtype=torch.float32) -> "SpeechDecoder":
        """Read config.json, flow.safetensors and hift.safetensors. Raises FileNotFoundError or ValueError."""
        directory = Path(directory)
        values = weights.read_json(directory / "config.json")
        if not {"flow", "hift"} <= values.keys():
            raise ValueError(f"{directory / 'config.json'} has {sorted(values)}, expected at least flow and hift")
        decoder = weights.empty(lambda: cls(pick(SpeechDecoderConfig, values)), device, dtype)
        decoder.hift.f0_predictor.float()       # half precision would detune: 1 part in 256 of the pitch
        weights.load(decoder.flow, [directory / "flow.safetensors"])
        load_hift(decoder.hift, directory / "hift.safetensors")
        return decoder

    def save_pretrained(self, directory) -> None:
        directory = Path(directory)
        weights.write_json(directory / "config.json", asdict(self.config))
        weights.write_tensors(directory / "flow.safetensors", self.flow.state_dict())
        weights.write_tensors(directory / "hift.safetensors", self.hift.state_dict())

    @property
    def device(self):
        return self.hift.conv_pre.weight.device

    def seeded(self, generator=None) -> torch.Generator:
        """The generator of a call, or a new one seeded with 0."""
        return torch.Generator(self.device).manual_seed(0) if generator is None else generator

    def check_units(self, units) -> torch.Tensor:
        """Any sequence of ids -> (U,) int64 on the device. Raises ValueError for other shapes, types and ids."""
        units, V = torch.as_tensor(units, device=self.device), self.config.flow.vocab_size
        if units.ndim != 1 or (len(units) and (units.is_floating_point() or units.dtype == torch.bool)):
            raise ValueError(f"units have shape {tuple(units.shape)} and type {units.dtype}, expected integers (U,)")
        if len(units) and not (0 <= int(units.min()) and int(units.max()) < V):
            raise ValueError(f"units range from {int(units.min())} to {int(units.max())}, expected 0 to {V - 1}: "
                             "remove end and padding tokens, and use the tokenizer that belongs to this decoder")
        return units.long()

    @torch.no_grad()
    def mel(self, units, noise=None, prompt_units=(), prompt_mel=None, generator=None, speaker=None):
        """Units (U,) -> log-mel (M, F), float32, of exactly these units.

        prompt_units (Up,) and their mel (M, Fp) come before and are continued. noise (M, frames of all units),
        speaker (spk_embed_dim,). Raises ValueError for ids or shapes that do not fit.
        """
        units, prompt_units = self.check_units(units), self.check_units(prompt_units)
        M, sampling = self.config.flow.output_size, self.config.sampling
        total = mel_frames(len(units) + len(prompt_units))
        prompt = torch.zeros(M, 0, device=self.device) if prompt_mel is None else prompt_mel.to(self.device)
        P = prompt.shape[1]
        if len(units) == 0 and total == P:
            return torch.zeros(M, 0, device=self.device)
        if prompt.shape[0] != M or P >= total:
            raise ValueError(f"prompt_mel is {tuple(prompt.shape)}, expected ({M}, fewer than {total} frames)")
        if noise is None:
            noise = draw(torch.randn, (1, M, total), self.seeded(generator), self.device) * sampling.temperature
        elif noise.shape[-2:] != (M, total):
            raise ValueError(f"noise is {tuple(noise.shape)}, expected ({M}, {total}) for {len(units)} units after "
                             f"{len(prompt_units)}")
        mu = self.flow.mu(torch.cat([prompt_units, units])[None])                           # (1, M, F)
        cond = F.pad(prompt.to(mu.dtype), (0, total - P))[None]
        spk = self.flow.speaker(speaker if speaker is None else speaker.to(mu)[None])
        noise = noise.reshape(1, M, total).to(self.device)
        return self.flow.decoder.sample(noise, mu, spk, cond, sampling.steps, sampling.guidance)[0, :, P:]

    @torch.no_grad()
    def waveform(self, mel, source=None, generator=None):
        """Log-mel (M, F) -> samples (256 F,) at 22050 Hz. source (1, 256 F) replaces the one made from the pitch."""
        if mel.shape[1] == 0:
            return torch.zeros(0, device=self.device)
        mel = mel.to(self.device)[None]
        if source is None:
            source = self.hift.source(self.hift.f0(mel), generator=self.seeded(generator))
        return self.hift(mel, source.reshape(1, 1, -1).to(self.device))[0]

    def decode(self, units, generator=None):
        """Units (U,) -> samples at 22050 Hz, 256 per mel frame, 1764 per unit on average; (0,) for no units."""
        generator = self.seeded(generator)
        return self.waveform(self.mel(units, generator=generator), generator=generator)

    def stream(self, units, block_sizes=None, generator=None, release_quirks=False):
        """Units from any iterator, one by one -> yields blocks of samples, each as soon as it can be spoken.

        block_sizes: units per block, the last size repeats; None: the encoder's block. Small first blocks speak
        sooner, larger later ones cost less, since each block solves the flow over all that came before. Blocks that
        are multiples of the encoder's block keep the encoder's earlier outputs unchanged. See `Stream`.
        """
        sizes = tuple(block_sizes or (self.config.flow.encoder.block_size,))
        if min(sizes) < 1:
            raise ValueError(f"block_sizes are {sizes}, expected 1 or more units each")
        voice, sizes, block = Stream(self, generator, release_quirks), chain(sizes, repeat(sizes[-1])), []
        size = next(sizes)
        for unit in units:
            block.append(int(unit))
            if len(block) == size:
                samples, block, size = voice.push(block), [], next(sizes)
                if len(samples):
                    yield samples
        samples = voice.push(block, final=True)
        if len(samples):
            yield samples


class Stream:
    """One utterance spoken block by block (spec 4.1).

    The mel spoken so far is the prompt of the next block. The last 34 frames of a block are held back and faded
    into the next one's view of them; the vocoder hears the last frame spoken once more, with its source, and only
    then speaks it. Joined, the blocks are exactly as long as the offline waveform.

    release_quirks=True does as the release: a fade that adds up to 1.06-1.08, every block's repeated frame left in
    the prompt (one frame lost per block from the third on), new noise and new phases for each block. The default
    fades with weights that add up to 1, keeps the noise of frames already solved and lets the harmonics run on.
    """

    def __init__(self, decoder: SpeechDecoder, generator=None, release_quirks=False):
        self.decoder, self.quirks, self.generator = decoder, release_quirks, decoder.seeded(generator)
        device, M = decoder.device, decoder.config.flow.output_size
        window = torch.hamming_window(2 * OVERLAP, periodic=False, dtype=torch.float64) if release_quirks else \
            torch.hann_window(2 * OVERLAP, dtype=torch.float64)
        self.rise, self.fall = window.float().to(device).chunk(2)
        self.units = torch.zeros(0, dtype=torch.long, device=device)
        self.waiting = self.units                                  # given, but too few to be spoken yet
        self.mel = self.noise = torch.zeros(M, 0, device=device)   # spoken frames; noise of the frames solved so far
        self.tail = self.last_frame = self.mel                     # solved but held back; to be vocoded once more
        self.last_source = torch.zeros(1, 1, 0, device=device)     # of last_frame
        self.phase = None                                          # of the harmonics at the end of last_source

    @torch.no_grad()
    def push(self, units, final=False, noise=None, source=None) -> torch.Tensor:
        """New units (U,) -> samples that can be spoken now; none where the units do not outlast the fade yet.

        final=True speaks all that is left. noise (M, frames of all units) and source (1, S) replace drawn ones.
        """
        decoder, hift = self.decoder, self.decoder.hift
        self.waiting = torch.cat([self.waiting, decoder.check_units(units)])
        total = mel_frames(len(self.units) + len(self.waiting))
        if not final and total - self.mel.shape[1] <= OVERLAP:
            return self.mel.new_zeros(0)
        mel = self.solve(total, noise) if len(self.waiting) else self.tail
        speakable = mel if final else mel[:, :-OVERLAP]
        heard = torch.cat([self.last_frame, speakable], dim=1)     # what the vocoder hears
        if heard.shape[1] == 0:
            return self.mel.new_zeros(0)
        if source is None:
            source = self.make_source(heard)
        source = source.reshape(1, 1, -1).to(decoder.device)
        source = torch.cat([self.last_source, source[:, :, self.last_source.shape[2]:]], dim=2)
        samples = hift(heard[None], source)[0]
        self.mel = torch.cat([self.mel, heard if self.quirks else speakable], dim=1)
        if final:
            return samples
        self.tail, self.last_frame, self.last_source = mel[:, -OVERLAP:], heard[:, -1:], source[:, :, -HOP:]
        return samples[:-HOP]

    def solve(self, total: int, noise=None):
        """Flow over all units so far -> mel (M, frames) after the spoken ones, the held-back frames faded in."""
        decoder = self.decoder
        if noise is None and not self.quirks:
            new = draw(torch.randn, (len(self.noise), total - self.noise.shape[1]), self.generator, decoder.device)
            noise = self.noise = torch.cat([self.noise, new * decoder.config.sampling.temperature], dim=1)
        mel = decoder.mel(self.waiting, noise, self.units, self.mel, self.generator)
        self.units, self.waiting = torch.cat([self.units, self.waiting]), self.waiting[:0]
        if self.tail.shape[1]:
            mel[:, :OVERLAP] = mel[:, :OVERLAP] * self.rise + self.tail * self.fall
        return mel

    def make_source(self, mel):
        """(M, F) -> source (1, 1, S); its harmonics go on where last_source ends, except in the release."""
        hift = self.decoder.hift
        f0 = hift.f0(mel[None])
        if self.quirks:
            return hift.source(f0, generator=self.generator)
        harmonics = torch.arange(1, hift.config.nb_harmonics + 2)[:, None]
        advance = 2 * math.pi * HOP / SAMPLE_RATE * f0[:, None].cpu().double() * harmonics  # (1, harmonics, F) radians
        if self.phase is None:
            start = hift.phases(self.generator).double()
        else:
            start = self.phase - advance[:, :, :1]                 # so that last_frame ends where it ended before
        self.phase = (start + advance.sum(2, keepdim=True)) % (2 * math.pi)
        return hift.source(f0, (start % (2 * math.pi)).to(f0), generator=self.generator)
