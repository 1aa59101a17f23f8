"""Metrics that compare face tracks on a head, in % of its interocular distance (docs/spec/face.md 1).

A track is (T, K): T face frames at 30 per second, K = 52 blendshapes in the order of arkit.ARKIT_NAMES. Two tracks are
compared over the frames that both have. Other letter: J lip vertices.
"""
import numpy as np

from face.arkit import ARKIT_NAMES, tidy
from face.head import Head, make_head
from face_decoder import FPS

# Group of the velocity error -> prefix of its blendshapes' names.
GROUPS = {"jaw": "jaw", "lips": "mouth", "brows": "brow", "lids": ("eyeBlink", "eyeSquint", "eyeWide")}


def common(track, reference) -> tuple:
    """Two tracks cut to the shorter one's length, as in all comparisons here."""
    track, reference = tidy(track, "the track"), tidy(reference, "the reference")
    frames = min(len(track), len(reference))
    return track[:frames], reference[:frames]


def lip_errors(track, reference, head: Head) -> np.ndarray:
    """Distance of every lip vertex from its position in the reference: (T, J), in % of the interocular distance.

    The head is linear in the weights, so the neutral mesh cancels (docs/spec/face.md 1.2).
    """
    track, reference = common(track, reference)
    apart = np.tensordot(track - reference, head.deltas[:, head.lips], axes=1)
    return 100 / head.interocular * np.linalg.norm(apart, axis=-1)


def lve_l2(track, reference, head: Head) -> float:
    """Lip vertex error: each frame's largest distance of a lip vertex, averaged over frames, in % of the interocular.

    As the text of Ex-Omni's paper describes it (5.1). UniTalker's code calls it LVD.
    """
    return float(lip_errors(track, reference, head).max(1).mean())


def lve_sq(track, reference, head: Head) -> float:
    """`lve_l2` with squared distances, in square %: what the code of UniTalker and CodeTalker prints as LVE."""
    return float((lip_errors(track, reference, head).max(1) ** 2).mean())


def velocity_error(track, reference) -> dict:
    """{group, or "all" 52 weights: mean absolute difference of the two tracks' velocities, per second}."""
    track, reference = common(track, reference)
    apart = FPS * np.abs(np.diff(track, axis=0) - np.diff(reference, axis=0))
    groups = {name: [n.startswith(start) for n in ARKIT_NAMES] for name, start in GROUPS.items()}
    groups["all"] = [True] * len(ARKIT_NAMES)
    return {name: float(apart[:, chosen].mean()) if len(apart) else 0.0 for name, chosen in groups.items()}


def lip_gap(track, head: Head) -> np.ndarray:
    """The largest vertical gap between the lips (T,), in % of the interocular distance; 0 if they overlap.

    Raises ValueError for a head that does not know the rims of its lips.
    """
    if head.upper is None:
        raise ValueError("this head does not say which vertices are the rims of its lips: measure the gap on "
                         "make_head()")
    height = (head.vertices[head.upper] - head.vertices[head.lower])[:, 1]
    height = height + tidy(track) @ (head.deltas[:, head.upper] - head.deltas[:, head.lower])[:, :, 1]
    return 100 / head.interocular * height.max(1).clip(min=0)


def closure_rate(track, segments, head: Head, share: float = 0.10) -> float:
    """Share of the segments in which the lips close: the smallest gap is below `share` of the track's 95th percentile.

    segments: [(start, end) in seconds, ...] of /p b m/, or with share=0.35 of /f v/. If no frame lies in a segment, the
    nearest one counts. Raises ValueError without segments.
    """
    if not len(segments):
        raise ValueError("no segments: the rate of closure needs at least one /p b m/")
    gap = lip_gap(track, head)
    limit, last = share * np.percentile(gap, 95), len(gap) - 1
    closed = 0
    for start, end in segments:
        first = min(round(start * FPS), last)
        closed += gap[first:max(first + 1, min(round(end * FPS), last) + 1)].min() < limit
    return closed / len(segments)


def loudness(sound, rate: int, frames: int) -> np.ndarray:
    """Waveform (samples,) at `rate` Hz -> root mean square (frames,) of the 1/30 s around each frame."""
    edges = np.clip(((np.arange(frames + 1) - 0.5) * rate / FPS).round().astype(int), 0, len(sound))
    total = np.concatenate([[0], np.cumsum(np.square(sound, dtype=np.float64))])
    return np.sqrt((total[edges[1:]] - total[edges[:-1]]) / np.maximum(np.diff(edges), 1))


def lip_sync_lag(track, sound, rate: int, head: Head, most: float = 0.3) -> tuple:
    """The delay of the lips after the sound: (ms, correlation) of the shift at which lip gap and loudness correlate
    best. Negative: the lips lead.

    sound: waveform (samples,) at `rate` Hz. Tries shifts up to +-`most` seconds, in steps of one frame. Raises
    ValueError if the mouth or the sound never changes.
    """
    gap = lip_gap(track, head)
    loud, best = loudness(np.asarray(sound), rate, len(gap)), None
    for shift in range(-round(most * FPS), round(most * FPS) + 1):
        lips, level = (gap[shift:], loud[:len(loud) - shift]) if shift >= 0 else (gap[:shift], loud[-shift:])
        if len(lips) > 1 and lips.std() > 0 and level.std() > 0:
            r = float(np.corrcoef(lips, level)[0, 1])
            best = max(best or (r, shift), (r, shift))
    if best is None:
        raise ValueError("no lag to measure: the mouth or the sound never changes")
    return 1000 * best[1] / FPS, best[0]


def comparison(track, reference, head: Head, sound=None, rate: int = 0) -> dict:
    """{metric: value} of a track against a reference; with a sound (samples,) at `rate` Hz also the lag.

    The lag is measured on `make_head()`, as a head from a file does not know the rims of its lips.
    """
    figures = {"LVE, % (lve_l2)": lve_l2(track, reference, head),
               "LVE squared, %^2 (lve_sq)": lve_sq(track, reference, head)}
    figures |= {f"velocity error, {group}": error for group, error in velocity_error(track, reference).items()}
    if sound is not None:
        ms, correlation = lip_sync_lag(track, sound, rate, make_head())
        figures |= {"lips' lag to the sound, ms": ms, "correlation at that lag": correlation}
    return figures
