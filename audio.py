"""Sound files -> waveforms (samples,) at 16 kHz; and the check that numbers are finite, here and in every later stage.

A file is read twice, forwards, block by block: first to see what is odd about its levels and channels (`survey`),
then to mix it to mono and to resample it. What a header says about its length is never trusted with memory.
"""
import os
import threading
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch

from disk import regular

SAMPLE_RATE = 16_000                   # Hz, of the questions; the sound that is made has 22,050 Hz (flow.py)
MAX_SECONDS = 4096                     # 68 minutes: Qwen3's context of 40,960 tokens, 10 speech rows per second
MIN_SECONDS = 0.025                    # one window of the mel
RATES = 1_000, 1_000_000               # Hz, the least and the most that a file may claim
TELEPHONE = 8_000                      # Hz: a lower rate holds no band that speech is understood from
BLOCK = 1 << 18                        # samples read at a time, of all channels
UNKNOWN = 2 ** 63 - 1                  # frames, as libsndfile says it of a FLAC that was written to a pipe
SCALES = {1: "", 2 ** 7: "8", 2 ** 15: "16", 2 ** 23: "24", 2 ** 31: "32"}  # full scale of floats -> their bits, once
OVER = 1.5                             # full scales that a peak may have: filters and lossy formats overshoot
LOUD = 16.0                            # a float recording peaks below this (+24 dB), 8-bit samples above
SILENT, UNUSED, CANCELLED = 1e-4, 1e-3, 0.3         # of full scale; of the loudest channel; see `Levels.mix`
OFFSET = 0.02                          # of full scale: a microphone's, where it disturbs the levels
STDERR = threading.Lock()
DAMAGED = "its weights are damaged or do not fit together, fetch or train them again"


def load_audio(path) -> torch.Tensor:
    """Read any file that soundfile reads, at any rate and channel count, as (samples,) float32 at 16 kHz, mono.

    Channels are averaged, the rate is converted by soxr. What is odd about a file is mended as `Levels.mix` says, with
    a warning; one that is cut off is read as far as it goes. Raises FileNotFoundError, or ValueError for a file that is
    not audio, shorter than MIN_SECONDS, longer than MAX_SECONDS, damaged, or holds NaN, infinite or absurd samples.
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


# ---- what is odd about a sound ------------------------------------------------------------------------------------

@dataclass
class Mix:
    """How the blocks (n, channels) of a sound become mono (n,): the mean of some `channels` (None: of all), without
    their offset, divided by scale; cut: to -1 .. 1. notes: kind -> what to say of it."""
    channels: list | None = None
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
    """What the samples of a sound are like, from windows of 10 ms: mean and half range of each channel, half range of
    all channels' mean. So a spike spoils one window, and an offset no half range."""

    def __init__(self, rate: int, channels: int):
        self.window, self.count, self.peak = max(2, rate // 100), 0, 0.0
        self.bad = np.zeros(channels, np.int64)                     # samples that are NaN or infinite
        self.windows = []                                           # (windows, 2 * channels + 1)

    def add(self, block: np.ndarray) -> None:
        """block: (n, channels); n is a multiple of the window, but for the last one."""
        finite = np.isfinite(block)
        if not finite.all():
            self.bad += (~finite).sum(axis=0)
            block = np.where(finite, block, 0)
        self.count += len(block)
        whole = len(block) // self.window * self.window
        for part in (block[:whole].reshape(-1, self.window, block.shape[1]), block[None, whole:]):
            if part.size:
                high, low, mono = part.max(axis=1), part.min(axis=1), part.mean(axis=2)
                self.peak = max(self.peak, float(high.max()), -float(low.min()))
                half = np.concatenate([high / 2 - low / 2, (mono.max(axis=1) / 2 - mono.min(axis=1) / 2)[:, None]], 1)
                self.windows.append(np.concatenate([part.mean(axis=1, dtype=np.float64), half], axis=1))

    def mix(self, name) -> Mix:
        """How the sound is to be mixed, with a note of everything unusual:

        - a channel with NaN, or without sound where others have some, is left out;
        - channels whose mean is much quieter than the loudest of them cancel each other, as where one is inverted: then
          the loudest is heard alone;
        - an offset is taken away;
        - floats at the scale of 8 to 32 bits are divided by it. Their level decides, which is the half range that three
          windows, and one in a thousand, reach: single samples above it are cut;
        - silence is only said.

        Raises ValueError where no channel is finite, or the level is above any scale."""
        channels, notes = len(self.bad), {}
        if not self.count:
            raise ValueError(f"{name} holds no sound: its header says so, or nothing follows it; export it again")
        if self.bad.all():
            refuse_infinite(int(self.bad.sum()), self.count * channels, name)
        windows = np.concatenate(self.windows)
        level = np.sort(windows, axis=0)[-min(len(windows), max(3, len(windows) // 1000)), channels:]
        level, mixed = level[:-1], level[-1]
        kept = [n for n in range(channels) if not self.bad[n] and level[n] >= UNUSED * level[self.bad == 0].max()]
        if len(kept) < channels:
            left = ", ".join(str(n + 1) for n in range(channels) if n not in kept)
            notes["channel left out"] = f"has no sound, or NaN samples, in channel {left} of {channels}: left out"
        mixed *= channels / len(kept)
        if mixed < CANCELLED / len(kept) * level[kept].max():
            kept, mixed = [int(level.argmax())], level.max()
            notes["channels cancel"] = (f"has {channels} channels that cancel each other, as where one is inverted: "
                                        f"channel {kept[0] + 1} alone is taken")
        offset = np.median(windows[:, kept], axis=0) * (len(windows) > 4)       # a shorter one may be half a wave
        loudest = max(mixed, abs(offset).max())
        scale = next((scale for scale in SCALES if loudest <= OVER * scale), None)
        if scale is None:
            raise ValueError(f"{name} has samples up to {self.peak:.3g}, expected -1 to 1: export it again")
        if scale == 2 ** 7 and loudest <= LOUD:
            scale = min(self.peak, OVER * loudest)
        if scale != 1:
            taken = f"taken as {SCALES[scale]}-bit ones, divided by {scale}" if scale in SCALES else "turned down"
            notes["scaled"] = f"has float samples up to {loudest:.5g}, expected -1 to 1: {taken}"
        far = abs(offset).max() > OFFSET * scale
        if far:
            notes["offset"] = f"has an offset of {abs(offset).max() / scale:.2f} of full scale: taken away"
        cut = self.peak > OVER * scale + abs(offset).max() * far
        if cut:
            notes["spikes"] = f"has single samples up to {self.peak / scale:.3g} times full scale: cut"
        if mixed < SILENT * scale:
            notes["silence"] = "is silent: nothing can be heard in it"
        return Mix(None if len(kept) == channels else kept, offset.astype(np.float32) if far else None, scale, cut,
                   notes)


def survey(path) -> Mix:
    """How the sound in a file is to be mixed; what is odd about it is said as warnings. Raises as `load_audio`."""
    with quiet(), open_sound(path) as file:
        levels, rate = Levels(file.samplerate, file.channels), file.samplerate
        for block in blocks(file, path):
            levels.add(block)
        claimed, mended = 0 if file.frames == UNKNOWN else file.frames, file.mended
    mix = levels.mix(path)
    notes = [*mix.notes.values()]
    if levels.count < 0.9 * claimed and not mended:         # an mp3's header may only estimate it
        notes.append(f"is cut off or damaged: its header says {claimed / rate:.1f} s, {levels.count / rate:.1f} s can "
                     "be read")
    if mended:
        notes.append(f"has another length in its header than it has: all {levels.count / rate:.1f} s are taken")
    if rate < TELEPHONE:
        notes.append(f"has {rate} samples per second, too few to understand speech: expected {TELEPHONE} or more")
    for note in notes:
        warnings.warn(f"{path} {note}", stacklevel=3)
    return mix


# ---- files --------------------------------------------------------------------------------------------------------

class Mended:
    """An open wav whose data has a wrong length in its header: the four bytes of it, at `at`, are read as "unknown",
    which libsndfile takes for "until the end"."""

    def __init__(self, raw, at: int):
        self.raw, self.at, self.seek, self.tell = raw, at, raw.seek, raw.tell

    def read(self, count=-1) -> bytes:
        begin = self.raw.tell()
        data = bytearray(self.raw.read(count))
        for n in range(max(self.at, begin), min(self.at + 4, begin + len(data))):
            data[n - begin] = 0xff
        return bytes(data)


def wrong_length(raw) -> int | None:
    """Where an open wav states the length of its data, if that ends before the sound does: a recorder that streams, or
    was killed, has written 0 or an earlier length there. None where all is well, or it is no wav."""
    raw.seek(0)
    head, at = raw.read(12), 12
    end = raw.seek(0, 2)
    while head[:4] == b"RIFF" and head[8:] == b"WAVE" and at + 8 <= end:
        raw.seek(at)
        name, size = raw.read(4), int.from_bytes(raw.read(4), "little")
        after = at + 8 + size + size % 2
        if name == b"data":
            raw.seek(after)
            follows, length = raw.read(4), int.from_bytes(raw.read(4), "little")
            chunk = follows.isascii() and follows.decode().isprintable() and after + 8 + length <= end + 1
            tagged = follows[:3] in (b"ID3", b"TAG", b"APE")        # of music players
            return at + 4 if after + 8 < end and not chunk and not tagged else None
        at = after
    return None


def forwards(raw):
    """The soundfile.SoundFile of an open file; mended: whether its header was wrong about its length. Raises
    soundfile.LibsndfileError where it is not audio."""
    import soundfile

    class Forwards(soundfile.SoundFile):
        """soundfile seeks after every read, which fails at the end of a FLAC of unknown length."""

        def seekable(self):
            return False

    at = wrong_length(raw)
    raw.seek(0)
    file = Forwards(raw if at is None else Mended(raw, at))
    file.mended = at is not None
    return file


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


def blocks(file, path):
    """Yield the samples of an open file as blocks (n, channels), float32, of whole windows of `Levels` but the last.
    Raises ValueError where it is damaged or beyond MAX_SECONDS, by its header or in fact."""
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
    """(samples,) at 16 kHz -> what is spoken in it, as pieces of at most `longest` samples in order: the silence at
    both ends is left out, what is longer is cut where it is quietest in the last two fifths. Silence alone is one piece.

    Loudness is taken over 50 ms. Speech is what is 35 % of the way, in dB, from the quiet tenth to the loudest 0.3 s,
    and at most 40 dB below the latter. A margin of 0.15 s keeps the soft sounds that words begin and end with.
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
