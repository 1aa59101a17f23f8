"""How good a face is: metrics that compare blendshape tracks on a head, in % of its interocular distance.

docs/spec/face.md 1. A track is (T, 52), 30 frames per second, see arkit.py; here it has to be cut to the shorter of two.

Shapes: T face frames, J lip vertices.
"""
import numpy as np

from face.arkit import ARKIT_NAMES, tidy
from face.head import Head
from face_decoder import FPS


def common(track, reference) -> tuple:
    """Two tracks cut to the shorter one's frames: the length rule of all comparisons here. Report len / len beside them."""
    track, reference = tidy(track, "the track"), tidy(reference, "the reference")
    frames = min(len(track), len(reference))
    return track[:frames], reference[:frames]


def lip_errors(track, reference, head: Head) -> np.ndarray:
    """Distance of every lip vertex from where the reference has it: (F, L), in % of the interocular distance.

    Deltas are linear, so the neutral mesh cancels (spec face 1.2).
    """
    track, reference = common(track, reference)
    apart = np.tensordot(track - reference, head.deltas[:, head.lips], axes=1)
    return 100 / head.interocular * np.linalg.norm(apart, axis=-1)


def lve_l2(track, reference, head: Head) -> float:
    """Lip vertex error: per frame the farthest lip vertex, averaged over frames, in % of the interocular distance.

    What Ex-Omni's paper describes (5.1) and UniTalker's code calls LVD.
    """
    return float(lip_errors(track, reference, head).max(1).mean())


def lve_sq(track, reference, head: Head) -> float:
    """The same with the distance squared, in square %: what UniTalker's and CodeTalker's code print as LVE."""
    return float((lip_errors(track, reference, head).max(1) ** 2).mean())


# Name prefixes of the groups that the velocity error is told by.
GROUPS = {"jaw": "jaw", "lips": "mouth", "brows": "brow", "lids": ("eyeBlink", "eyeSquint", "eyeWide")}


def velocity_error(track, reference) -> dict:
    """Mean absolute difference of the changes from frame to frame, per second, over each group of weights and over all."""
    track, reference = common(track, reference)
    apart = FPS * np.abs(np.diff(track, axis=0) - np.diff(reference, axis=0))
    groups = {name: [n.startswith(start) for n in ARKIT_NAMES] for name, start in GROUPS.items()} | {"all": [True] * 52}
    return {name: float(apart[:, chosen].mean()) if len(apart) else 0.0 for name, chosen in groups.items()}


def lip_gap(track, head: Head) -> np.ndarray:
    """Height of the mouth opening (F,), in % of the interocular distance: the widest of the columns of the slit, with the
    lips pressed through each other counted as closed. Raises ValueError for a head that does not tell its lips apart."""
    if head.upper is None:
        raise ValueError("this head does not say which vertices are the rims of its lips: measure the gap on make_head()")
    height = (head.vertices[head.upper] - head.vertices[head.lower])[:, 1]
    height = height + tidy(track) @ (head.deltas[:, head.upper] - head.deltas[:, head.lower])[:, :, 1]
    return 100 / head.interocular * height.max(1).clip(min=0)


def closure_rate(track, segments, head: Head, share: float = 0.10) -> float:
    """Share of `segments` [(start, end) in s, ...] in which the lips close: where the least gap is below `share` of the
    track's 95th percentile. For /p b m/; for /f v/ take share=0.35. A segment between two frames counts by the nearest.
    Raises ValueError without segments."""
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
    """A waveform (T,) -> root mean square (frames,) of the 1/30 s around each frame's time."""
    edges = np.clip(((np.arange(frames + 1) - 0.5) * rate / FPS).round().astype(int), 0, len(sound))
    total = np.concatenate([[0], np.cumsum(np.square(sound, dtype=np.float64))])
    return np.sqrt((total[edges[1:]] - total[edges[:-1]]) / np.maximum(np.diff(edges), 1))


def lip_sync_lag(track, sound, rate: int, head: Head, most: float = 0.3) -> tuple:
    """How long after the sound (T,) the lips move: (ms, correlation there), the shift within +-`most` s at which mouth
    opening and loudness correlate best. Negative: the lips lead. Resolution one frame. Raises ValueError for silence."""
    gap = lip_gap(track, head)
    loud, best = loudness(np.asarray(sound), rate, len(gap)), None
    for shift in range(-round(most * FPS), round(most * FPS) + 1):
        lips, heard = (gap[shift:], loud[:len(loud) - shift]) if shift >= 0 else (gap[:shift], loud[-shift:])
        if len(lips) > 1 and lips.std() > 0 and heard.std() > 0:
            r = float(np.corrcoef(lips, heard)[0, 1])
            best = max(best or (r, shift), (r, shift))
    if best is None:
        raise ValueError("no lag to measure: the mouth or the sound never changes")
    return 1000 * best[1] / FPS, best[0]
