"""The answer voice's recordings as pretrain_speak.py learns from them: whole units, batches, phones and pitch.

Shapes: B batch, U units (12.5 per second), L mel frames (86.13 per second), M mel bins. A waveform is (samples,).
"""
import soxr
import torch
import torch.nn.functional as F

from data import Split
from flow import OUTPUT_HOP, OUTPUT_RATE
from whisper import SAMPLE_RATE

PHONES_PER_UNIT = 4             # one per 20 ms


def whole_units(waveform, stride: int) -> torch.Tensor:
    """(samples,) -> the same with silence up to whole units of `stride` samples."""
    waveform = torch.as_tensor(waveform)
    return F.pad(waveform, (0, -len(waveform) % stride))


def at_output_rate(waveform) -> torch.Tensor:
    """(samples,) at 16 kHz -> the same sound at 22050 Hz."""
    return torch.from_numpy(soxr.resample(waveform.numpy(), SAMPLE_RATE, OUTPUT_RATE))


def waveforms(voice: Split, stride: int) -> list:
    """[(row, waveform)] of a split in whole units, the shortest first, without the rows marked `held`, on which it is
    measured. Raises ValueError where there is none."""
    rows = [(row, whole_units(row["audio"], stride)) for row in map(voice.__getitem__, range(len(voice)))
            if row["audio"] is not None and not row.get("held")]
    if not rows:
        raise ValueError(f"{voice.directory} has no sound: expected the answer voice, run prepare.py demo again")
    return sorted(rows, key=lambda row: len(row[1]))


def batches(lengths: list, total: int) -> list:
    """Lengths in units, in rising order -> slices of about `total` units each, of nearly one length (within 10 %)."""
    groups, first = [], 0
    for i, length in enumerate(lengths):
        if i > first and ((i + 1 - first) * lengths[first] > total or length > 1.1 * lengths[first]):
            groups.append(slice(first, i))
            first = i
    return [*groups, slice(first, len(lengths))]


def group_at(step: int, groups: list) -> slice:
    """The group of a step: each once per epoch, in another order."""
    epoch, n = divmod(step, len(groups))
    return groups[torch.randperm(len(groups), generator=torch.Generator().manual_seed(epoch))[n]]


def stack(arrays: list) -> torch.Tensor:
    """Arrays (..., time) -> (B, ..., time), cut to the shortest: no padding, no masks."""
    shortest = min(array.shape[-1] for array in arrays)
    return torch.stack([array[..., :shortest] for array in arrays])


def phone_ids(spans: list, names: list, count: int) -> torch.Tensor:
    """[[name, start, end], ...] in seconds -> (count,) ids, one per 20 ms: the phone in its middle, else the last."""
    ends = torch.tensor([end for _, _, end in spans])
    middles = (torch.arange(count) + 0.5) / (12.5 * PHONES_PER_UNIT)
    return torch.tensor([names.index(name) for name, _, _ in spans])[
        torch.searchsorted(ends, middles, right=True).clamp(max=len(spans) - 1)]


def pitch(waveform, low=60.0, high=300.0) -> torch.Tensor:
    """(samples,) at 22050 Hz -> pitch (L,) in Hz, L = samples // 256, 0 where unvoiced: the autocorrelation's first
    high peak."""
    window, margin = torch.hann_window(1024), (1024 - OUTPUT_HOP) // 2
    frames = F.pad(waveform, (margin, margin)).unfold(0, 1024, OUTPUT_HOP) * window             # those of speech_mel

    def correlation(x):
        return torch.fft.irfft(torch.fft.rfft(x, 2048).abs().square())[..., :1024]

    r, shape = correlation(frames), correlation(window)
    power = r[:, 0]
    r = r / power.clamp(min=1e-9)[:, None] / (shape / shape[0])
    first, last = int(OUTPUT_RATE / high), int(OUTPUT_RATE / low)
    r = r[:, first - 1:last + 2]
    r, before, after = r[:, 1:-1], r[:, :-2], r[:, 2:]
    best = r.max(1, keepdim=True).values
    peak = (r >= 0.9 * best) & (r >= before) & (r >= after)     # a later one is a multiple of the period
    f0 = OUTPUT_RATE / (first + peak.int().argmax(1))
    f0 = f0 * (best[:, 0] > 0.5) * (power > 1e-4 * power.max())
    return F.pad(f0[None], (2, 2), mode="replicate")[0].unfold(0, 5, 1).median(1).values
