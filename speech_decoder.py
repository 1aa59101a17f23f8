"""GLM-4-Voice speech decoder: units (12.5 per second) -> waveform at 22,050 Hz, whole or block by block.

    decoder = SpeechDecoder.from_pretrained("checkpoint/speech_decoder")
    samples = decoder.decode(units)                      # offline: (U,) -> (samples,)
    for block in decoder.stream(units): ...              # block by block, while units still arrive

`flow.Flow` turns units into a mel, `hift.HiFT` the mel into a waveform (docs/spec/glm4_voice.md 4).

Shapes: U units, L mel frames (86.13 per second, 6.890625 per unit, 256 samples each), M mel bins.
"""
import math
from dataclasses import asdict, dataclass, field
from itertools import chain, repeat
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import nn

import disk
import weights
from audio import check_finite
from disk import Scale
from flow import OUTPUT_HOP, OUTPUT_RATE, Flow, FlowConfig, mel_frames, random_tensor
from hift import HiFT, HiFTConfig, load_hift

OVERLAP = 34                  # mel frames cross-faded between two blocks: the length of 5 units
MEMORY = 320                  # units, 25.6 s: a multiple of 64 (exactly 441 mel frames) and of 10 (the encoder's block)


@dataclass
class SamplingConfig:
    """How mels are sampled; the defaults are the published values."""
    steps: Annotated[int, 1, 1000] = 10     # Euler steps
    temperature: Scale = 1.0        # of the noise that sampling starts from
    guidance: Scale | None = None   # None: the flow's inference_cfg_rate (0.7); 0 halves the work


@dataclass
class SpeechDecoderConfig:
    """Nested and named as the official yaml."""
    flow: FlowConfig = field(default_factory=FlowConfig)
    hift: HiFTConfig = field(default_factory=HiFTConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)


class SpeechDecoder(nn.Module):
    """Units -> waveform, whole or in blocks. Always in evaluation mode: train `Flow` and `HiFT` separately.

    All randomness comes from the `generator` of a call. Without one a new generator with seed 0 is used, so that the
    same units give the same sound.
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
        """Stay in evaluation mode (the release does not, and decodes with dropout)."""
        return super().train(False)

    @classmethod
    def from_pretrained(cls, directory, device="cpu", dtype=torch.float32) -> "SpeechDecoder":
        """Read config.json, flow.safetensors and hift.safetensors. Raises FileNotFoundError or ValueError."""
        directory = Path(directory)
        path = directory / "config.json"
        config = disk.checked(SpeechDecoderConfig, disk.read_json(path), path, required=("flow", "hift"))
        decoder = weights.skeleton(lambda: cls(config), dtype, path)
        decoder.hift.f0_predictor.float()       # bfloat16 would be off by up to 1/256 of the pitch
        weights.load(decoder.flow, [directory / "flow.safetensors"], device=device)
        load_hift(decoder.hift, directory / "hift.safetensors", device)
        return decoder

    def save_pretrained(self, directory) -> None:
        """Write config.json, flow.safetensors and hift.safetensors into the directory."""
        directory = Path(directory)
        disk.write_json(directory / "config.json", asdict(self.config))
        weights.write_tensors(directory / "flow.safetensors", self.flow.state_dict())
        weights.write_tensors(directory / "hift.safetensors", self.hift.state_dict())

    @property
    def device(self) -> torch.device:
        return self.hift.conv_pre.weight.device

    def seeded(self, generator=None) -> torch.Generator:
        """The generator of a call, or a new one seeded with 0."""
        return torch.Generator(self.device).manual_seed(0) if generator is None else generator

    def check_units(self, units) -> torch.Tensor:
        """A sequence of ids -> (U,) int64 on the device. Raises ValueError for wrong shapes, types and ids."""
        units, V = torch.as_tensor(units, device=self.device), self.config.flow.vocab_size
        if units.ndim != 1 or (len(units) and (units.is_floating_point() or units.dtype == torch.bool)):
            raise ValueError(f"units have shape {tuple(units.shape)} and type {units.dtype}, expected integers (U,)")
        if len(units) and not (0 <= int(units.min()) and int(units.max()) < V):
            raise ValueError(f"units range from {int(units.min())} to {int(units.max())}, expected 0 to {V - 1}: "
                             "remove end and padding tokens, and use the tokenizer that belongs to this decoder")
        return units.long()

    @torch.no_grad()
    def mel(self, units, noise=None, prompt_units=(), prompt_mel=None, generator=None, speaker=None):
        """Units (U,) -> their log-mel (M, L), float32.

        The mel continues prompt_mel, the mel of prompt_units; the prompt itself is not returned. noise: (M, frames of
        prompt and units). speaker: (spk_embed_dim,). Raises ValueError for ids or shapes that do not fit, or a mel
        that is not finite.
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
            noise = random_tensor(torch.randn, (1, M, total), self.seeded(generator), self.device)
            noise = noise * sampling.temperature
        elif noise.shape[-2:] != (M, total):
            raise ValueError(f"noise is {tuple(noise.shape)}, expected ({M}, {total}) for {len(units)} units after "
                             f"{len(prompt_units)}")
        mu = self.flow.mu(torch.cat([prompt_units, units])[None])                           # (1, M, L)
        cond = F.pad(prompt.to(mu.dtype), (0, total - P))[None]
        spk = self.flow.speaker(speaker if speaker is None else speaker.to(mu)[None])
        noise = noise.reshape(1, M, total).to(self.device)
        mel = self.flow.decoder.sample(noise, mu, spk, cond, sampling.steps, sampling.guidance)[0, :, P:]
        return check_finite(mel, "the speech decoder's mel")

    @torch.no_grad()
    def waveform(self, mel, source=None, generator=None):
        """Log-mel (M, L) -> samples (256 L,) at 22,050 Hz. source (1, 256 L): default, made from the predicted pitch.
        Raises ValueError if the result is not finite."""
        if mel.shape[1] == 0:
            return torch.zeros(0, device=self.device)
        mel = mel.to(self.device)[None]
        if source is None:
            source = self.hift.source(self.hift.f0(mel), generator=self.seeded(generator))
        return check_finite(self.hift(mel, source.reshape(1, 1, -1).to(self.device))[0], "the waveform")

    def decode(self, units, generator=None):
        """Units (U,) -> samples at 22,050 Hz, 256 per mel frame, 1764 per unit on average; (0,) for no units.

        The flow's time and memory are quadratic in the length, so more than 2 MEMORY units are decoded in blocks.
        """
        generator = self.seeded(generator)
        if len(units) > 2 * MEMORY:
            return torch.cat(list(self.stream(self.check_units(units).tolist(), (MEMORY,), generator)))
        return self.waveform(self.mel(units, generator=generator), generator=generator)

    def stream(self, units, block_sizes=None, generator=None, release_quirks=False):
        """An iterator of units -> yields blocks of samples, each as soon as its units have arrived. See `Stream`.

        block_sizes: units per block, the last size repeats; None: the encoder's block. A small first block gives an
        early start; large later blocks cost less, as each block computes the flow over the earlier ones again. With
        multiples of the encoder's block, new units do not change the encoder's earlier outputs.
        """
        sizes = tuple(block_sizes or (self.config.flow.encoder.block_size,))
        if min(sizes) < 1:
            raise ValueError(f"block_sizes are {sizes}, expected 1 or more units each")
        stream, sizes, block = Stream(self, generator, release_quirks), chain(sizes, repeat(sizes[-1])), []
        size = next(sizes)
        for unit in units:
            block.append(int(unit))
            if len(block) == size:
                samples, block, size = stream.push(block), [], next(sizes)
                if len(samples):
                    yield samples
        samples = stream.push(block, final=True)
        if len(samples):
            yield samples


class Stream:
    """One utterance, decoded block by block (docs/spec/glm4_voice.md 4.1).

        block 1    |<-------- output -------->|<- 34 held back ->|
        block 2    |<-------- prompt -------->|<-- cross-fade -->|<---- new, output ---->|<- 34 held back ->|

    Each block computes the flow over the units so far, with the mel frames already output as its prompt. Only the last
    MEMORY units or more are kept, so that the cost of a block does not grow with the utterance. The last 34 frames
    (OVERLAP) still depend on what follows: they are held back, and cross-faded with the next block's version of them.
    The vocoder has an edge too: the sound of its last frame is held back, and the next block computes that frame again
    from the same source. Joined, the blocks are exactly as long as the offline waveform.

    With release_quirks the fade's weights add up to 1.06-1.08, the repeated frame of each block stays in the prompt
    (one frame is lost per block from the third on), and each block has new noise and phases. By default the weights
    add up to 1, frames keep their noise, and the harmonics continue.
    """

    def __init__(self, decoder: SpeechDecoder, generator=None, release_quirks=False):
        self.decoder, self.quirks, self.generator = decoder, release_quirks, decoder.seeded(generator)
        device, M = decoder.device, decoder.config.flow.output_size
        make_window = torch.hamming_window if release_quirks else torch.hann_window
        window = make_window(2 * OVERLAP, periodic=not release_quirks, dtype=torch.float64).float().to(device)
        self.rise, self.fall = window.chunk(2)                      # weights of the new and of the held-back frames
        self.units = torch.zeros(0, dtype=torch.long, device=device)    # that the flow has seen
        self.waiting = self.units                                   # units that it has not seen yet
        self.mel = torch.zeros(M, 0, device=device)                 # frames that were output
        self.noise = self.mel                                       # of frames output or held back
        self.held_back = self.mel                                   # (M, OVERLAP) frames computed, not output yet
        self.last_frame = self.mel                                  # (M, 1) the last of mel, to be vocoded again
        self.last_source = torch.zeros(1, 1, 0, device=device)      # (1, 1, OUTPUT_HOP) its source
        self.phase = None                                           # of the harmonics at the end of last_source

    @torch.no_grad()
    def push(self, units, final=False, noise=None, source=None) -> torch.Tensor:
        """New units (U,) -> the samples that can be output now; (0,) while the units are shorter than the overlap.

        final=True outputs all that is left. noise (M, frames of all kept units) and source (1, samples) replace random
        ones. Raises ValueError for ids that do not fit, or a mel or waveform that is not finite.
        """
        while len(self.units) >= 2 * MEMORY and not self.quirks:
            frames = mel_frames(MEMORY)
            self.units, self.mel, self.noise = self.units[MEMORY:], self.mel[:, frames:], self.noise[:, frames:]
        self.waiting = torch.cat([self.waiting, self.decoder.check_units(units)])
        total = mel_frames(len(self.units) + len(self.waiting))
        if not final and total - self.mel.shape[1] <= OVERLAP:
            return self.mel.new_zeros(0)
        mel = self.solve(total, noise) if len(self.waiting) else self.held_back
        ready = mel if final else mel[:, :-OVERLAP]
        vocoded = torch.cat([self.last_frame, ready], dim=1)
        if vocoded.shape[1] == 0:
            return self.mel.new_zeros(0)
        source = (self.make_source(vocoded) if source is None else source).reshape(1, 1, -1).to(self.decoder.device)
        source = torch.cat([self.last_source, source[:, :, self.last_source.shape[2]:]], dim=2)
        samples = check_finite(self.decoder.hift(vocoded[None], source)[0], "the waveform")
        self.mel = torch.cat([self.mel, vocoded if self.quirks else ready], dim=1)
        if final:
            return samples
        self.held_back = mel[:, -OVERLAP:]
        self.last_frame, self.last_source = vocoded[:, -1:], source[:, :, -OUTPUT_HOP:]
        return samples[:-OUTPUT_HOP]

    def solve(self, total: int, noise=None):
        """Compute the flow over all units, `total` frames -> mel (M, L) after the prompt, cross-faded at its start."""
        decoder = self.decoder
        if noise is None and not self.quirks:
            shape = len(self.noise), total - self.noise.shape[1]
            new = random_tensor(torch.randn, shape, self.generator, decoder.device)
            noise = self.noise = torch.cat([self.noise, new * decoder.config.sampling.temperature], dim=1)
        mel = decoder.mel(self.waiting, noise, self.units, self.mel, self.generator)
        self.units, self.waiting = torch.cat([self.units, self.waiting]), self.waiting[:0]
        if self.held_back.shape[1] == 0:
            return mel
        faded = mel[:, :OVERLAP] * self.rise + self.held_back * self.fall
        return torch.cat([faded, mel[:, OVERLAP:]], dim=1)

    def make_source(self, mel):
        """Mel (M, L) -> source (1, 1, 256 L). Its phases continue those of last_source, except with release_quirks."""
        hift = self.decoder.hift
        f0 = hift.f0(mel[None])                                     # (1, L) Hz
        if self.quirks:
            return hift.source(f0, generator=self.generator)
        harmonics = torch.arange(1, hift.config.nb_harmonics + 2)[:, None]
        advance = 2 * math.pi * OUTPUT_HOP / OUTPUT_RATE * f0[:, None].cpu().double() * harmonics   # radians a frame
        if self.phase is None:
            start = hift.phases(self.generator).double()
        else:
            start = self.phase - advance[:, :, :1]                  # at the start of last_frame, which is repeated
        self.phase = (start + advance.sum(2, keepdim=True)) % (2 * math.pi)
        return hift.source(f0, (start % (2 * math.pi)).to(f0), generator=self.generator)
