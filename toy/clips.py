"""Training data for pretrain_speak.py from the answer voice's clips: whole units, batches, phone labels and pitch.

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
    """(samples,) -> padded with silence to a multiple of `stride`, the samples of a unit."""
    waveform = torch.as_tensor(waveform)
    return F.pad(waveform, (0, -len(waveform) % stride))


def at_output_rate(waveform) -> torch.Tensor:
    """(samples,) at 16 kHz -> resampled to 22050 Hz."""
    return torch.from_numpy(soxr.resample(waveform.numpy(), SAMPLE_RATE, OUTPUT_RATE))


def waveforms(voice: Split, stride: int) -> list:
    """[(row, waveform)] of a split, padded to whole units, shortest first, without the rows marked `held`, which are
    for evaluation. Raises ValueError if there are none."""
    rows = [(row, whole_units(row["audio"], stride)) for row in map(voice.__getitem__, range(len(voice)))
            if row["audio"] is not None and not row.get("held")]
    if not rows:
        raise ValueError(f"{voice.directory} has no sound: expected the answer voice, run prepare.py demo again")
    return sorted(rows, key=lambda row: len(row[1]))


def batches(lengths: list, total: int) -> list:
    """Lengths in units, ascending -> slices of about `total` units each, whose lengths differ by at most 10 %."""
    groups, first = [], 0
    for i, length in enumerate(lengths):
        if i > first and ((i + 1 - first) * lengths[first] > total or length > 1.1 * lengths[first]):
            groups.append(slice(first, i))
            first = i
    return [*groups, slice(first, len(lengths))]


def group_at(step: int, groups: list) -> slice:
    """The group of a step: each group once per epoch, in random order."""
    epoch, n = divmod(step, len(groups))
    return groups[torch.randperm(len(groups), generator=torch.Generator().manual_seed(epoch))[n]]


def stack(arrays: list) -> torch.Tensor:
    """Arrays (..., time) -> (B, ..., time), cut to the shortest, so that no padding or mask is needed."""
    shortest = min(array.shape[-1] for array in arrays)
    return torch.stack([array[..., :shortest] for array in arrays])


def phone_ids(spans: list, names: list, count: int) -> torch.Tensor:
    """[[name, start, end], ...] in seconds -> (count,) phone ids, one per 20 ms: at its middle; then the last."""
    ends = torch.tensor([end for _, _, end in spans])
    middles = (torch.arange(count) + 0.5) / (12.5 * PHONES_PER_UNIT)
    return torch.tensor([names.index(name) for name, _, _ in spans])[
        torch.searchsorted(ends, middles, right=True).clamp(max=len(spans) - 1)]


def pitch(waveform, low=60.0, high=300.0) -> torch.Tensor:
    """(samples,) at 22050 Hz -> pitch (L,) in Hz, L = samples // 256, 0 where unvoiced: by the first high peak of the
    autocorrelation."""
    window, margin = torch.hann_window(1024), (1024 - OUTPUT_HOP) // 2
    frames = F.pad(waveform, (margin, margin)).unfold(0, 1024, OUTPUT_HOP) * window             # as in speech_mel

    def correlation(x):
        return torch.fft.irfft(torch.fft.rfft(x, 2048).abs().square())[..., :1024]

    r, shape = correlation(frames), correlation(window)
    power = r[:, 0]
    r = r / power.clamp(min=1e-9)[:, None] / (shape / shape[0])
    first, last = int(OUTPUT_RATE / high), int(OUTPUT_RATE / low)
    r = r[:, first - 1:last + 2]
    r, before, after = r[:, 1:-1], r[:, :-2], r[:, 2:]
    best = r.max(1, keepdim=True).values
    peak = (r >= 0.9 * best) & (r >= before) & (r >= after)     # later peaks are multiples of the period
    f0 = OUTPUT_RATE / (first + peak.int().argmax(1))
    f0 = f0 * (best[:, 0] > 0.5) * (power > 1e-4 * power.max())
    return F.pad(f0[None], (2, 2), mode="replicate")[0].unfold(0, 5, 1).median(1).values
