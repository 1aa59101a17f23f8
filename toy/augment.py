"""Augmentation of log-mels: other voices, microphones and rooms, for a model whose training data has few voices.

    mel, labels = augment(mel, labels, width, generator)    # a batch with frame labels (pretrain_listen.py)
    mel = other_voice(mel, seed)                            # one clip, at full strength (the four stages of `mini`)

Shapes: B batch, M mel bins, L mel frames (100 per second), C kinds of labels (phones, words).
"""
import math

import numpy as np
import torch
import torch.nn.functional as F

from whisper import SAMPLE_RATE, mel_filters


def uniform(generator, batch: int, low: float, high: float) -> torch.Tensor:
    """(B, 1, 1) random numbers, uniform between low and high."""
    return low + (high - low) * torch.rand(batch, 1, 1, generator=generator)


def mel_centres(n_mels: int) -> torch.Tensor:
    """(M,) the centre of each mel band in Hz."""
    filters = mel_filters(n_mels)
    return filters @ torch.linspace(0, SAMPLE_RATE / 2, filters.shape[1]) / filters.sum(1)


def room(power, generator) -> torch.Tensor:
    """power (B, M, L) of mel bands, with the reverberation of a random room added: it falls by 60 dB in 0.15 to 0.7 s
    and has 0.05 to 0.8 of the energy of the direct sound. Phases are left out: powers are added."""
    B, M, L = power.shape
    frames = 70                                                     # 0.7 s
    fall = 10 ** (-6 / (100 * uniform(generator, B, 0.15, 0.7)) * torch.arange(1, frames + 1))    # (B, 1, frames)
    fall = fall / fall.sum(-1, keepdim=True) * uniform(generator, B, 0.05, 0.8)
    before = F.pad(power, (frames, 0))[..., :-1].transpose(0, 1)    # (M, B, L + frames - 1)
    return power + F.conv1d(before, fall.flip(-1), groups=B).transpose(0, 1)


def augment(mel, labels, width: float, generator) -> tuple:
    """mel (B, M, L), labels (C, B, L), L even -> mel (B, M, L) changed at random, and labels (C, B, L / 2), one per
    encoder state. width: strength, from 0 (weak) to 1.

    Time is stretched by up to 10 %, labels included. Frequencies are scaled by 0.96 ... 1.05 at width 0, 0.84 ... 1.2
    at width 1: a longer or shorter vocal tract. Then gain (+-12 dB) and a smooth frequency response, 4 dB (width 1) of
    standard deviation; in a third of the clips a `room`; in a quarter noise that follows the voice 5 to 20 dB below it,
    as clipping and codecs make; in half hiss, at least 20 dB (width 0) or 6 dB (width 1) below the voice; and one
    frequency band and one time span are masked (SpecAugment)."""
    B, M, L = mel.shape
    centres = mel_centres(M).numpy()
    pace = uniform(generator, B, 0.9, 1.1)
    low, high = math.log(0.96 - 0.12 * width), math.log(1.05 + 0.15 * width)
    stretch = uniform(generator, B, low, high).exp().flatten().tolist()
    bands = np.stack([np.interp(centres * s, centres, np.arange(M)) for s in stretch])      # (B, M) source bands
    moments = (torch.arange(L) * pace).clamp(max=L - 1)                                     # (B, 1, L) source frames
    grid = torch.stack([(moments * 2 / (L - 1) - 1).expand(B, M, L),
                        torch.from_numpy(bands).float()[..., None].expand(B, M, L) * 2 / (M - 1) - 1], -1)
    mel = F.grid_sample(mel[:, None], grid, padding_mode="border", align_corners=True)[:, 0]
    labels = labels.gather(2, moments[:, 0, ::2].round().long().expand(len(labels), -1, -1))

    response = F.interpolate(torch.randn(B, 1, 7, generator=generator), M, mode="linear", align_corners=True)
    mel = mel + uniform(generator, B, -0.3, 0.3) + 0.1 * width * response.mT    # Whisper's scale: 0.25 is 10 dB
    power = 10 ** (4 * mel - 4)
    power = torch.where(uniform(generator, B, 0, 1) < 0.35 * width, room(power, generator), power)
    below = uniform(generator, B, 0.5, 2) + uniform(generator, B, 0.5, 2.5) * torch.linspace(0, 1, M)[:, None]
    follows = (uniform(generator, B, 0, 1) < 0.25 * width) * 10 ** -below * power.mean(1, keepdim=True)
    power = power - follows * torch.rand(B, M, L, generator=generator).clamp(min=1e-6).log()
    level = power.mean((1, 2), keepdim=True).log10() - uniform(generator, B, 2 - 1.4 * width, 4)
    tilt = uniform(generator, B, -1.5, 0.5) * torch.linspace(0, 1, M)[:, None]
    hiss = -torch.rand(2, B, M, L, generator=generator).clamp(min=1e-6).log().mean(0)
    hiss = hiss * 10 ** (level + tilt - tilt.mean(1, keepdim=True)) * (uniform(generator, B, 0, 1) < 0.5)
    mel = ((power + hiss).log10() + 4) / 4
    for axis, size, longest in ((torch.arange(M)[:, None], M, M // 8), (torch.arange(L), L, 15)):
        start, length = uniform(generator, B, 0, size), uniform(generator, B, 0, longest)
        mel = torch.where((axis >= start) & (axis < start + length), mel.mean((1, 2), keepdim=True), mel)
    return mel, labels


def other_voice(mel, seed: int) -> torch.Tensor:
    """mel (M, L), L even -> (M, L), augmented at full strength; the same for the same seed."""
    no_labels = torch.zeros(0, 1, mel.shape[1], dtype=torch.long)
    return augment(mel[None], no_labels, 1, torch.Generator().manual_seed(seed))[0][0]
