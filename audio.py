"""Sound files -> waveforms (samples,) at 16 kHz; and the check that numbers are finite, here and in every later stage.

A file is read forwards, block by block, mixed to mono and resampled on the way: what a header says about its length is
never trusted with memory.
"""
import os
import threading
import warnings
from contextlib import contextmanager

import numpy as np
import torch

from disk import regular

SAMPLE_RATE = 16_000                   # Hz, of the questions; the sound that is made has 22,050 Hz (flow.py)
MAX_SECONDS = 4096                     # 68 minutes: Qwen3's context of 40,960 tokens, 10 speech rows per second
MIN_SECONDS = 0.025                    # one window of the mel
RATES = 1_000, 1_000_000               # Hz, the least and the most that a file may claim
BLOCK = 1 << 18                        # samples read at a time, of all channels
UNKNOWN = 2 ** 63 - 1                  # frames, as libsndfile says it of a FLAC that was written to a pipe
INT16 = 32_768.0                       # full scale of 16-bit samples that somebody stored as floats
LOUD = 16.0                            # a float recording peaks below this (+24 dB), one at the scale of INT16 above
STDERR = threading.Lock()
DAMAGED = "its weights are damaged or do not fit together, fetch or train them again"


def load_audio(path) -> torch.Tensor:
    """Read any file that soundfile reads, at any rate and channel count, as (samples,) float32 at 16 kHz, mono.

    Channels are averaged, the rate is converted by soxr. A file that is cut off is read as far as it goes, and float
    samples at the scale of 16-bit ones are scaled, with a warning. Raises FileNotFoundError, or ValueError for a file
    that is not audio, shorter than MIN_SECONDS, longer than MAX_SECONDS, damaged, or holds NaN, infinite or absurd
    samples.
    """
    import soxr
    path = regular(path, "an audio file")
    if path.suffix.lower() in (".raw", ".pcm"):
        raise ValueError(f"{path} has no header that says its rate and format: convert it to wav, for example with "
                         "`ffmpeg -f s16le -ar 16000 -ac 1 -i IN.raw OUT.wav`")
    parts, count, bad, peak = [], 0, 0, 0.0
    with quiet(), open_sound(path) as file:
        resampler = soxr.ResampleStream(file.samplerate, SAMPLE_RATE, 1, dtype="float32")
        for block in mono_blocks(file, path):
            count, bad = count + len(block), bad + int((~np.isfinite(block)).sum())
            peak = max(peak, float(np.abs(block).max()))
            parts.append(resampler.resample_chunk(block))
        parts.append(resampler.resample_chunk(np.zeros(0, np.float32), last=True))
        claimed, rate = 0 if file.frames == UNKNOWN else file.frames, file.samplerate
    refuse_infinite(bad, count, path)
    if peak > 2 * INT16:
        raise ValueError(f"{path} has samples up to {peak:.3g}, expected -1 to 1: export it again")
    waveform = check_waveform(np.concatenate(parts), path)
    if len(waveform) < MIN_SECONDS * SAMPLE_RATE:
        raise ValueError(f"{path} holds {1000 * len(waveform) / SAMPLE_RATE:.1f} ms of sound, expected at least "
                         f"{1000 * MIN_SECONDS:.0f}: is it cut off?")
    if count < 0.9 * claimed:           # an mp3's header may only estimate it
        warnings.warn(f"{path} is cut off or damaged: its header says {claimed / rate:.1f} s, {count / rate:.1f} s can "
                      "be read", stacklevel=2)
    if peak > LOUD:
        warnings.warn(f"{path} has float samples up to {peak:.0f}, expected -1 to 1: taken as 16-bit ones, divided by "
                      f"{INT16:.0f}", stacklevel=2)
        waveform = waveform / INT16
    return waveform


def forwards(raw):
    """The soundfile.SoundFile of an open file. Raises soundfile.LibsndfileError where it is not audio."""
    import soundfile

    class Forwards(soundfile.SoundFile):
        """soundfile seeks after every read, which fails at the end of a FLAC of unknown length."""

        def seekable(self):
            return False

    return Forwards(raw)


@contextmanager
def open_sound(path):
    """The soundfile.SoundFile of a path. Raises ValueError where it is not audio, or of an absurd rate."""
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


def mono_blocks(file, path):
    """Yield the samples of an open file as blocks (n,), float32, mono. Raises ValueError where it is damaged or beyond
    MAX_SECONDS, by its header or in fact."""
    import soundfile

    def check_length(frames):
        if frames > MAX_SECONDS * file.samplerate:
            raise ValueError(f"{path} holds {frames / file.samplerate:.0f} s of sound or more, expected at most "
                             f"{MAX_SECONDS}: cut it into pieces")

    count = 0
    check_length(0 if file.frames == UNKNOWN else file.frames)
    while True:
        try:
            block = file.read(max(1, BLOCK // file.channels), dtype="float32", always_2d=True)
        except soundfile.LibsndfileError:
            raise ValueError(f"{path} is damaged or cut off after {count / file.samplerate:.1f} s of sound: export or "
                             "fetch it again") from None
        if not len(block):
            return
        count += len(block)
        check_length(count)
        yield block.mean(axis=1)


@contextmanager
def quiet():
    """Nothing on stderr meanwhile: libmpg123 prints its remarks about a damaged mp3 there, past Python. One thread at a
    time: stderr belongs to the process."""
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
    """(samples,) as a float32 tensor. Raises ValueError where it is empty, not one-dimensional or not finite."""
    waveform = torch.as_tensor(waveform, dtype=torch.float32)
    if waveform.ndim != 1 or len(waveform) == 0:
        raise ValueError(f"{name} has shape {tuple(waveform.shape)}, expected (samples,) with at least one sample")
    refuse_infinite(int((~waveform.isfinite()).sum()), len(waveform), name)
    return waveform


def spoken_parts(waveform: torch.Tensor, longest: int) -> list:
    """(samples,) at 16 kHz -> what is spoken in it, as pieces of at most `longest` samples in order: the silence at both
    ends is left out, what is longer is cut where it is quietest in the last two fifths. Silence alone is one piece.

    Loudness is taken over 50 ms. Speech is what is 35 % of the way, in dB, from the quiet tenth to the loudest 0.3 s, and
    at most 40 dB below the latter. A margin of 0.15 s keeps the soft sounds that words begin and end with.
    """
    hop, margin = SAMPLE_RATE // 100, 15
    count = len(waveform) // hop
    if not count:
        return [waveform]
    power = waveform[:count * hop].view(count, hop).square().mean(1)
    smooth = torch.nn.functional.avg_pool1d(power[None], 5, 1, 2, count_include_pad=False)[0]
    level = 10 * (smooth + 1e-10).log10()
    low, high = level.quantile(0.1), level.topk(min(30, len(level))).values[-1]
    loud = (level > torch.maximum(high - 40, low + 0.35 * (high - low))).nonzero()[:, 0]
    if high - low < 6 or not len(loud):                     # silence, or noise, or nothing else than speech
        first, last = 0, len(waveform)
    else:
        first, last = max(0, int(loud[0]) - margin) * hop, min(len(waveform), (int(loud[-1]) + 1 + margin) * hop)
    parts = []
    while last - first > longest:
        early, late = (first + longest * 3 // 5) // hop, (first + longest) // hop
        cut = (early + int(level[early:late].argmin())) * hop
        parts, first = [*parts, waveform[first:cut]], cut
    return [*parts, waveform[first:last]]


def refuse_infinite(bad: int, count: int, name) -> None:
    """Raises ValueError where `bad` of `count` samples are NaN or infinite."""
    if bad:
        raise ValueError(f"{name} has {bad} samples that are NaN or infinite of {count}: "
                         "expected finite samples, record or export it again")


def check_finite(x: torch.Tensor, what: str, cause=DAMAGED) -> torch.Tensor:
    """x, of any shape, unless it holds NaN or infinite numbers: then ValueError. Waits for the device: once a stage."""
    bad = int((~x.isfinite()).sum())
    if bad:
        raise ValueError(f"{what}: {bad} of {x.numel()} numbers are NaN or infinite: {cause}")
    return x
