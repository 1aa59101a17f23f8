"""Sound files -> waveforms (samples,) at 16 kHz; and the check for NaN and infinite numbers that all stages use.

A file is read twice, block by block: first for its levels and channels (`survey`), then to mix it to mono and to
resample it. Memory is never allocated by the length that a header states.
"""
import os
import threading
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch

from containers import UNKNOWN, forwards, notes_of
from disk import regular

SAMPLE_RATE = 16_000                   # Hz, of the input; the output has 22,050 Hz (flow.py)
MAX_SECONDS = 4096                     # 68 minutes: Qwen3's context of 40,960 tokens, 10 speech rows per second
MIN_SECONDS = 0.025                    # one window of the mel
RATES = 1_000, 1_000_000               # Hz, the lowest and the highest sample rate of a file
BLOCK = 1 << 18                        # samples read at a time, all channels together
SCALES = {1: "", 2 ** 7: "8", 2 ** 15: "16", 2 ** 23: "24", 2 ** 31: "32"}  # full scale of floats -> original bits
OVER = 1.5                             # highest peak, in full scales: filters and lossy formats overshoot
LOUD = 16.0                            # floats up to here (+24 dB) are a loud recording, above it 8-bit samples
SILENT, QUIET, USUAL, OFFSET = 1e-4, 5e-3, 0.25, 0.02       # shares of full scale: levels, and a microphone's offset
UNUSED, HEARD, CANCELLED = 1e-3, 0.1, 0.3                   # shares of the loudest channel; see `Levels.mix`
STDERR = threading.Lock()
DAMAGED = "its weights are damaged or do not fit together, fetch or train them again"


def load_audio(path) -> torch.Tensor:
    """Read any file that soundfile reads, at any rate and channel count, as (samples,) float32 at 16 kHz, mono.

    Channels are averaged, soxr resamples. Faults are repaired as in `Levels.mix`, with a warning; a truncated file is
    read up to its end. Raises FileNotFoundError, or ValueError for a file that is not audio, is shorter than
    MIN_SECONDS or longer than MAX_SECONDS, is damaged, or has NaN, infinite or absurdly large samples.
    """
    import soxr
    path = regular(path, "an audio file")
    if path.suffix.lower() in (".raw", ".pcm"):
        raise ValueError(f"{path} has no header that says its rate and format: convert it to wav, for example with "
                         "`ffmpeg -f s16le -ar 16000 -ac 1 -i IN.raw OUT.wav`")
    mix, parts = survey(path), []
    with quiet(), open_sound(path) as file:
        resampler = soxr.ResampleStream(file.samplerate, SAMPLE_RATE, 1, dtype="float32")
        for block in blocks(file, path):
            parts.append(resampler.resample_chunk(mix(block)))
        parts.append(resampler.resample_chunk(np.zeros(0, np.float32), last=True))
    waveform = check_waveform(np.concatenate(parts), path)
    if len(waveform) < MIN_SECONDS * SAMPLE_RATE:
        raise ValueError(f"{path} holds {1000 * len(waveform) / SAMPLE_RATE:.1f} ms of sound, expected at least "
                         f"{1000 * MIN_SECONDS:.0f}: is it cut off?")
    return waveform


# ---- faults of a recording ----------------------------------------------------------------------------------------

@dataclass
class Mix:
    """Maps blocks (n, channels) to mono (n,): the mean of some `channels` (None: all) minus their offset, divided by
    scale, and clipped to -1 .. 1 if `cut`. notes: kind of fault -> message."""
    channels: np.ndarray | None = None
    offset: np.ndarray | None = None
    scale: float = 1
    cut: bool = False
    notes: dict = field(default_factory=dict)

    def __call__(self, block: np.ndarray) -> np.ndarray:
        block = block if self.channels is None else block[:, self.channels]
        mono = (block if self.offset is None else block - self.offset).mean(axis=1)
        mono = mono if self.scale == 1 else mono / np.float32(self.scale)
        return mono.clip(-1, 1) if self.cut else mono


class Levels:
    """Statistics of windows of 10 ms: mean and half range (max - min) / 2 of each channel and of the channels' mean. A
    spike affects only its window; an offset does not affect the half range."""

    def __init__(self, rate: int, channels: int):
        self.window, self.count, self.peak = max(2, rate // 100), 0, 0.0
        self.bad = np.zeros(channels, np.int64)                     # number of NaN or infinite samples
        self.means, self.halves = [], []                            # (windows, channels + 1) of each block

    def add(self, block: np.ndarray) -> None:
        """block: (n, channels); n is a multiple of the window, except in the last block."""
        finite = np.isfinite(block)
        if not finite.all():
            self.bad += (~finite).sum(axis=0)
            block = np.where(finite & (self.bad == 0), block, 0)
        self.count += len(block)
        block = np.concatenate([block, block.mean(axis=1, keepdims=True)], axis=1)
        starts = np.arange(0, len(block), self.window)
        high, low = np.maximum.reduceat(block, starts), np.minimum.reduceat(block, starts)
        self.peak = max([self.peak, *high.max(axis=0), *-low.min(axis=0)])
        self.halves.append(high / 2 - low / 2)
        self.means.append(np.add.reduceat(block, starts, dtype=np.float64) / np.diff([*starts, len(block)])[:, None])

    def mix(self, name) -> Mix:
        """The mix that repairs the recording's faults, with a note for each:

        - a channel with NaN, or silent while others are not, is left out;
        - if the mean of the channels is much quieter than the loudest one, even in a part of the recording, they cancel
          each other, as when one is inverted: only the loudest is used;
        - an offset is subtracted: the median of means over 0.1 s, whole periods of mains hum;
        - floats at the scale of 8 to 32 bits are divided by that scale. It is found from the level: the half range that
          at least three windows, and one in a thousand, reach. Single samples above it are clipped;
        - a quiet recording is amplified, as Whisper would take it for silence;
        - a silent one is only noted.

        Raises ValueError if no channel is finite, or the level is above any scale."""
        channels, notes = len(self.bad), {}
        if not self.count:
            raise ValueError(f"{name} holds no sound: its header says so, or nothing follows it; export it again")
        if self.bad.all():
            refuse_infinite(int(self.bad.sum()), self.count * channels, name)
        halves, means = np.concatenate(self.halves), np.concatenate(self.means)
        level = np.sort(halves[:, :channels], axis=0)[-min(len(halves), max(3, len(halves) // 1000))]
        level[self.bad > 0] = 0
        kept = np.flatnonzero((self.bad == 0) & (level >= UNUSED * level.max()))
        if len(kept) < channels:
            left = ", ".join(str(n + 1) for n in range(channels) if n not in kept)
            notes["channel left out"] = f"has no sound, or NaN samples, in channel {left} of {channels}: left out"
        starts = np.arange(0, max(1, len(halves) - 9), 10)          # groups of 10 windows, up to 19 in the last one
        halves, means = np.maximum.reduceat(halves, starts), np.add.reduceat(means, starts)
        means /= np.diff([*starts, sum(map(len, self.means))])[:, None]
        loud = halves[:, kept].max(axis=1)
        spoken = loud > HEARD * level.max()
        cancelled = spoken & (halves[:, -1] * channels < CANCELLED * loud)
        if cancelled.sum() > min(2, 0.02 * spoken.sum()):
            kept = level.argmax(keepdims=True)
            notes["channels cancel"] = (f"has {channels} channels that cancel each other, as where one is inverted: "
                                        f"channel {kept[0] + 1} alone is taken")
        offset = np.median(means[:, kept], axis=0) * (len(self.means[0]) > 9)       # less may be half a period
        loudest, shift = level.max(), abs(offset).max()
        full = next((scale for scale in SCALES if max(loudest, shift) <= OVER * scale), None)
        if full is None:
            raise ValueError(f"{name} has samples up to {self.peak:.3g}, expected -1 to 1: export it again")
        if full == 2 ** 7 and loudest <= LOUD:
            full = min(self.peak, OVER * loudest)
        if full != 1:
            taken = f"taken as {SCALES[full]}-bit ones, divided by {full}" if full in SCALES else "turned down"
            notes["scaled"] = f"has float samples up to {loudest:.5g}, expected -1 to 1: {taken}"
        scale = full
        if loudest < SILENT * full:
            notes["silence"] = "is silent: nothing can be heard in it"
        elif loudest < QUIET * full:
            scale = loudest / USUAL
            notes["quiet"] = f"is very quiet, {loudest / full:.1g} of full scale: turned up {full / scale:.0f} times"
        if shift <= min(OFFSET * full, max(loudest, SILENT * full)):
            shift = 0
        else:
            notes["offset"] = f"has an offset of {shift / full:.3f} of full scale: taken away"
        cut = self.peak > OVER * scale + shift
        if cut:
            notes["spikes"] = f"has single samples up to {self.peak / full:.3g} times full scale: cut"
        return Mix(None if len(kept) == channels else kept, offset.astype(np.float32) if shift else None, scale, cut,
                   notes)


def survey(path) -> Mix:
    """The mix for a file; its faults are issued as warnings. Raises as `load_audio`."""
    with quiet(), open_sound(path) as file:
        levels = Levels(file.samplerate, file.channels)
        for block in blocks(file, path):
            levels.add(block)
        odd = notes_of(file, levels.count)
    mix = levels.mix(path)
    mix.notes.update(odd)
    for note in mix.notes.values():
        warnings.warn(f"{path} {note}", stacklevel=3)
    return mix


# ---- files --------------------------------------------------------------------------------------------------------

@contextmanager
def open_sound(path):
    """The soundfile.SoundFile of a path. Raises ValueError if it is not audio, or for a rate outside RATES."""
    import soundfile
    with open(path, "rb") as raw:           # opened here: soundfile cannot encode every file name
        try:
            file = forwards(raw)
        except soundfile.LibsndfileError as error:
            raise ValueError(f"{path} is not audio that can be read ({error.error_string.rstrip('.')}): "
                             "give a wav, flac, ogg or mp3 file") from None
        with file:
            if not RATES[0] <= file.samplerate <= RATES[1]:
                raise ValueError(f"{path} says it has {file.samplerate} samples per second, expected {RATES[0]} to "
                                 f"{RATES[1]}: export it again")
            yield file


def blocks(file, path):
    """Yield the samples of an open file as float32 blocks (n, channels), multiples of the window of `Levels`.
    Raises ValueError if it is damaged, or longer than MAX_SECONDS in its header or in fact."""
    import soundfile

    def check_length(frames):
        if frames > MAX_SECONDS * file.samplerate:
            raise ValueError(f"{path} holds {frames / file.samplerate:.0f} s of sound or more, expected at most "
                             f"{MAX_SECONDS}: cut it into pieces")

    window = max(2, file.samplerate // 100)
    size, count = max(1, BLOCK // file.channels // window) * window, 0
    check_length(0 if file.frames == UNKNOWN else file.frames)
    while True:
        try:
            block = file.read(size, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError:
            raise ValueError(f"{path} is damaged or cut off after {count / file.samplerate:.1f} s of sound: export or "
                             "fetch it again") from None
        if not len(block):
            return
        count += len(block)
        check_length(count)
        yield block


@contextmanager
def quiet():
    """Suppress stderr, where libmpg123 prints about damaged mp3 files without asking Python. A lock, as stderr belongs
    to the whole process."""
    with STDERR:
        try:
            kept = os.dup(2)
        except OSError:                     # a process without stderr
            yield
            return
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def check_waveform(waveform, name="the waveform") -> torch.Tensor:
    """(samples,) as a float32 tensor. Raises ValueError if it is empty, not one-dimensional or not finite."""
    waveform = torch.as_tensor(waveform, dtype=torch.float32)
    if waveform.ndim != 1 or len(waveform) == 0:
        raise ValueError(f"{name} has shape {tuple(waveform.shape)}, expected (samples,) with at least one sample")
    refuse_infinite(int((~waveform.isfinite()).sum()), len(waveform), name)
    return waveform


def refuse_infinite(bad: int, count: int, name) -> None:
    """Raises ValueError if `bad`, the number of NaN or infinite samples among `count`, is not 0."""
    if bad:
        raise ValueError(f"{name} has {bad} samples that are NaN or infinite of {count}: "
                         "expected finite samples, record or export it again")


def check_finite(x: torch.Tensor, what: str, cause=DAMAGED) -> torch.Tensor:
    """Returns x (any shape). Raises ValueError if it has NaN or infinite numbers. Waits for the device."""
    bad = int((~x.isfinite()).sum())
    if bad:
        raise ValueError(f"{what}: {bad} of {x.numel()} numbers are NaN or infinite: {cause}")
    return x
