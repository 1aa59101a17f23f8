"""The vocoder of the GLM-4-Voice speech decoder: log-mel (86.13 frames per second) -> waveform at 22,050 Hz (HiFT).

The pitch is predicted from the mel; sines at its harmonics are the source. An upsampling network filters the source and
predicts a spectrum, and the inverse STFT turns that into sound (docs/spec/glm4_voice.md 3). The modules have the names
of the official checkpoint; the training losses are at the end.

Shapes: B batch, L mel frames (256 samples each), M mel bins, C channels, R positions at any rate between the two.
"""
import math
from dataclasses import dataclass, field
from itertools import chain
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import nn

import weights
from disk import Layers, Scale, Share, Size, Sizes
from flow import OUTPUT_HOP, OUTPUT_RATE, random_tensor
from whisper import mel_filters

Dilations = Annotated[list[Layers], 1, 64]
LINES = {1: 0.2, 8: 0.1, 64: 0.05}      # multiple of the mel's frame rate -> weight of its line in `sound_features`


@dataclass
class F0Config:
    """Predicts the pitch from the mel."""
    cond_channels: Size = 512


@dataclass
class STFTConfig:
    """Of the source and of the output; sizes in samples."""
    n_fft: Size = 16
    hop_len: Size = 4


@dataclass
class HiFTConfig:
    """Nested and named as the official yaml; the defaults are the published values."""
    in_channels: Size = 80          # M
    base_channels: Size = 512
    nb_harmonics: Layers = 8        # overtones, not counting the fundamental
    sampling_rate: Size = OUTPUT_RATE
    nsf_alpha: Scale = 0.1          # amplitude of each sine
    nsf_sigma: Scale = 0.003        # amplitude of the noise in voiced frames
    nsf_voiced_threshold: Scale = 10.0      # Hz; below it a frame is unvoiced
    upsample_rates: Sizes = field(default_factory=lambda: [8, 8])
    upsample_kernel_sizes: Sizes = field(default_factory=lambda: [16, 16])
    istft_params: STFTConfig = field(default_factory=STFTConfig)
    resblock_kernel_sizes: Sizes = field(default_factory=lambda: [3, 7, 11])
    resblock_dilation_sizes: list[Dilations] = field(default_factory=lambda: [[1, 3, 5]] * 3)
    source_resblock_kernel_sizes: Sizes = field(default_factory=lambda: [7, 11])
    source_resblock_dilation_sizes: list[Dilations] = field(default_factory=lambda: [[1, 3, 5]] * 2)
    lrelu_slope: Share = 0.1
    audio_limit: Annotated[float, 0.01, 1] = 0.99
    f0_predictor: F0Config = field(default_factory=F0Config)

    def __post_init__(self):
        hop = math.prod(self.upsample_rates) * self.istft_params.hop_len
        for name, size in (("upsample_kernel_sizes", len(self.upsample_rates)),
                           ("source_resblock_kernel_sizes", len(self.upsample_rates)),
                           ("source_resblock_dilation_sizes", len(self.upsample_rates)),
                           ("resblock_dilation_sizes", len(self.resblock_kernel_sizes))):
            if len(getattr(self, name)) != size:
                raise ValueError(f"{name} has {len(getattr(self, name))} entries, expected {size}")
        if self.base_channels % 2 ** len(self.upsample_rates):
            raise ValueError(f"base_channels is {self.base_channels}, expected a multiple of "
                             f"{2 ** len(self.upsample_rates)}: it is halved for each of the upsample_rates")
        if (hop, self.sampling_rate) != (OUTPUT_HOP, OUTPUT_RATE):
            raise ValueError(f"upsample_rates make {hop} samples per frame at {self.sampling_rate} Hz, "
                             f"expected {OUTPUT_HOP} at {OUTPUT_RATE}")


class Snake(nn.Module):
    """x + sin(alpha x)^2 / alpha, one alpha per channel."""

    def __init__(self, channels: int):
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(channels))

    def forward(self, x):
        alpha = self.alpha[:, None]
        return torch.addcmul(x, torch.sin(x * alpha).square(), 1 / (alpha + 1e-9))


class ResBlock(nn.Module):
    """(B, C, R) -> (B, C, R), residual: two convolutions per dilation."""

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
    """Log-mel (B, M, L) and source (B, 1, 256 L) -> waveform (B, 256 L).

    The convolutions have plain weights; `load_hift` folds in the weight norm of the official files.
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
            down = math.prod(rates[i + 1:])             # from the spectrum's rate to the rate after this upsampling
            self.source_downs.append(nn.Conv1d(bins, c, 1) if down == 1 else
                                     nn.Conv1d(bins, c, 2 * down, down, padding=down // 2))
            self.source_resblocks.append(ResBlock(c, config.source_resblock_kernel_sizes[i],
                                                  config.source_resblock_dilation_sizes[i]))
            for kernel, dilations in zip(config.resblock_kernel_sizes, config.resblock_dilation_sizes):
                self.resblocks.append(ResBlock(c, kernel, dilations))
        self.conv_post = nn.Conv1d(c, bins, 7, padding=3)

    def f0(self, mel):
        """(B, M, L) -> pitch (B, L) in Hz."""
        x = self.f0_predictor.condnet(mel.to(self.f0_predictor.classifier.weight.dtype))
        return self.f0_predictor.classifier(x.transpose(1, 2)).squeeze(-1).abs().float()

    def phases(self, generator=None, device="cpu"):
        """(1, harmonics, 1) radians: 0 for the fundamental, random for its overtones."""
        phase = math.pi * (2 * random_tensor(torch.rand, (1, self.config.nb_harmonics + 1, 1), generator, device) - 1)
        phase[:, 0] = 0
        return phase

    def source(self, f0, phase=None, noise=None, generator=None):
        """Pitch (B, L) in Hz -> source (B, 1, 256 L), float32: harmonics of the pitch, noise in unvoiced frames.

        phase: (B, harmonics, 1) at the start, in radians. noise: (B, harmonics, 256 L). Both are random by default.
        """
        config, n = self.config, self.config.nb_harmonics + 1
        phase = self.phases(generator, f0.device) if phase is None else phase
        f0 = f0.float().repeat_interleave(OUTPUT_HOP, dim=1)[:, None]                              # (B, 1, 256 L)
        cycles = torch.cumsum(f0 * torch.arange(1, n + 1, device=f0.device)[:, None] / OUTPUT_RATE, dim=2)
        if noise is None:
            noise = random_tensor(torch.randn, cycles.shape, generator, f0.device)
        voiced = f0 > config.nsf_voiced_threshold
        noise_amplitude = torch.where(voiced, config.nsf_sigma, config.nsf_alpha / 3)
        sines = config.nsf_alpha * torch.sin(2 * math.pi * (cycles % 1) + phase) * voiced + noise_amplitude * noise
        mix = self.m_source.l_linear
        return torch.tanh(F.linear(sines.transpose(1, 2), mix.weight.float(), mix.bias.float())).transpose(1, 2)

    def spectrum(self, source):
        """STFT of the source: (B, 1, 256 L) -> (B, 18, 64 L + 1), real parts, then imaginary parts."""
        stft = self.config.istft_params
        window = torch.hann_window(stft.n_fft, device=source.device)
        spectrum = torch.stft(source.squeeze(1).float(), stft.n_fft, stft.hop_len, window=window, return_complex=True)
        return torch.cat([spectrum.real, spectrum.imag], dim=1)

    def forward(self, mel, source):
        """Log-mel (B, M, L) and source (B, 1, 256 L) -> waveform (B, 256 L), float32."""
        config, stft = self.config, self.config.istft_params
        dtype, kernels = self.conv_pre.weight.dtype, len(config.resblock_kernel_sizes)
        x, spectrum = self.conv_pre(mel.to(dtype)), self.spectrum(source).to(dtype)
        for i, up in enumerate(self.ups):
            x = up(F.leaky_relu(x, config.lrelu_slope))
            if i == len(self.ups) - 1:
                x = F.pad(x, (1, 0), mode="reflect")    # the spectrum has one frame more
            x = x + self.source_resblocks[i](self.source_downs[i](spectrum))
            x = sum(block(x) for block in self.resblocks[i * kernels:(i + 1) * kernels]) / kernels
        x = self.conv_post(F.leaky_relu(x)).float()     # slope 0.01 here, as in the release
        magnitude, phase = x.chunk(2, dim=1)
        magnitude, phase = magnitude.clamp(max=math.log(100)).exp(), phase.sin()    # clamped for finite gradients
        window = torch.hann_window(stft.n_fft, device=x.device)
        wave = torch.istft(torch.polar(magnitude, phase), stft.n_fft, stft.hop_len, window=window)
        return wave.clamp(-config.audio_limit, config.audio_limit)


def fold_weight_norm(gain, direction):
    """W = g v / |v|, the norm over all dimensions but the first (for a transposed convolution the INPUT channel)."""
    return gain * direction / direction.flatten(1).norm(dim=1).view_as(gain)


def load_hift(hift: HiFT, path, device="cpu") -> None:
    """`weights.load` for a vocoder file. Official files have weight_g and weight_v, ours plain weights
    (docs/spec/glm4_voice.md 3.2). Raises ValueError if a tensor is missing, left over or of another shape."""
    shapes = weights.shapes(path)
    for name, (shape, kind) in shapes.items():
        gain = name[:-1] + "g"
        fits, seen = ((*shape[:1], 1, 1), kind), shapes.get(gain, "missing")
        if name.endswith(".weight_v") and seen != fits:
            raise ValueError(f"{path}: {gain} is {seen}, expected {fits} for {name}")

    def rename(name):
        return None if name.endswith(".weight_g") else name.removesuffix("_v")

    matched, gains = weights.plan(hift.state_dict(), {path: shapes}, rename, str(path))
    target = weights.allocate(hift, device).state_dict()
    gains = {name: tensor.clone() for name, tensor in weights.stream(path, gains)}
    with torch.no_grad():
        for name, tensor in weights.stream(path, matched[path]):
            if name.endswith(".weight_v"):
                tensor = fold_weight_norm(gains[name[:-1] + "g"].float(), tensor.float())
            target[matched[path][name]].copy_(tensor)


def speech_mel(waveform, n_mels=80):
    """(..., samples) at 22,050 Hz -> natural log-mel (..., M, samples // 256), from -11.5 (silence) to 2
    (docs/spec/glm4_voice.md 3.4). Raises ValueError for fewer than 385 samples."""
    margin = (1024 - OUTPUT_HOP) // 2
    if waveform.shape[-1] <= margin:
        raise ValueError(f"waveform has {waveform.shape[-1]} samples, expected more than {margin}: use a longer clip")
    rows = waveform.reshape(-1, waveform.shape[-1])
    padded = F.pad(rows[:, None], (margin, margin), mode="reflect")[:, 0]
    spectrum = torch.stft(padded, 1024, OUTPUT_HOP, window=torch.hann_window(1024, device=rows.device), center=False,
                          return_complex=True)
    magnitude = (spectrum.real.square() + spectrum.imag.square() + 1e-9).sqrt()
    mel = mel_filters(n_mels, 1024, OUTPUT_RATE).to(rows.device) @ magnitude
    return mel.clamp(min=1e-5).log().reshape(*waveform.shape[:-1], n_mels, -1)


def log_spectra(waveform, size: int):
    """(B, samples) -> log magnitudes of the STFT (B, size // 2 + 1, frames), hop size // 4."""
    window = torch.hann_window(size, device=waveform.device)
    spectrum = torch.stft(waveform, size, size // 4, window=window, return_complex=True)
    return (spectrum.real.square() + spectrum.imag.square()).clamp(min=1e-7).log() / 2


def sound_features(waveform, n_mels: int, lines: dict, sizes=(128, 512, 1024, 2048, 4096)) -> list:
    """[(weight, features), ...] of (B, samples). Their weighted L1 distances add up to the distance of two sounds.

    Log spectra at several resolutions, the log-mel, and once more those bins of the finest spectrum where upsampling
    networks leave tones: multiples of 1, 8 and 64 times the mel's frame rate (the last is 5,512 Hz).
    """
    spectra = [log_spectra(waveform, size) for size in sizes]
    finest, step = spectra[-1], sizes[-1] // OUTPUT_HOP
    return [*((1 / len(sizes), x) for x in spectra), (2.0, speech_mel(waveform, n_mels)),
            *((weight, finest[:, step * rate:-1:step * rate]) for rate, weight in lines.items())]


def energy_distance(a, b, true, n_mels: int, lines: dict = LINES):
    """Generalised energy distance (arXiv 2008.01160) of sounds (B, samples): d(a, true) + d(b, true) - d(a, b).

    A scalar. a and b are generated from the same mel with different noise. The minimum is reached when generated sounds
    vary as true ones do. d(a, true) alone would be minimal for the median sound, which has tones instead of noise.
    """
    distance = 0
    for weight, features in sound_features(torch.cat([a, b, true]), n_mels, lines):
        of_a, of_b, wanted = features.chunk(3)
        distance = distance + weight * (F.l1_loss(of_a, wanted) + F.l1_loss(of_b, wanted) - F.l1_loss(of_a, of_b))
    return distance


def hift_losses(hift: HiFT, mel, waveform, f0, generator=None, lines: dict = LINES) -> dict:
    """Loss terms of the vocoder for mel (B, M, L), waveform (B, 256 L), f0 (B, L) in Hz, 0 where unvoiced.

    The sources use the true pitch; the predictor is trained separately. A weighting that has worked: energy + f0 / 50.
    """
    sources = torch.cat([hift.source(f0, generator=generator) for _ in range(2)])       # different phases and noise
    a, b = hift(mel.repeat(2, 1, 1), sources).chunk(2)
    return {"energy": energy_distance(a, b, waveform, mel.shape[1], lines), "f0": F.l1_loss(hift.f0(mel), f0)}
