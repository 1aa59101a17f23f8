"""Face metrics of a checkpoint on the validation data, against the teacher's tracks (for evaluate.py).

The faces are teacher-forced: reference units and the generator's hidden states -> face. The metrics are those of
metrics.py (docs/spec/face.md 1) and a few more: lag, jitter, lips closed in silence, rest at the end.

A track is (T, K): T face frames at 30 per second, K = 52 blendshapes in the order of arkit.ARKIT_NAMES.
"""
from pathlib import Path

import numpy as np
import torch

from data import Split, check, chunks, collate, rows_of
from face.arkit import ARKIT_NAMES
from face.metrics import closure_rate, common, lip_gap, lip_sync_lag, lve_l2, lve_sq, velocity_error
from face_decoder import FPS
from whisper import SAMPLE_RATE

BATCH = 32
CLOSED = 0.10                       # lips are closed below this share of the opening, as in metrics.closure_rate
STILL = 0.1                         # % of the interocular distance: lips whose gap varies less do not move
MOST_LAG = 5                        # frames: the largest lag to the teacher that is tried
EDGE = 0.1                          # seconds of a pause next to a phone, in which lips may still or already be open
SHUT = 0.3                          # an eye counts as closed from this weight of eyeBlink
SEAM = 6                            # frames: 0.2 s at either end of an answer, where the face leaves rest or returns
BLINKS = [ARKIT_NAMES.index("eyeBlink" + side) for side in ("Left", "Right")]
JAW, MOUTH = ARKIT_NAMES.index("jawOpen"), [name.startswith(("jaw", "mouth")) for name in ARKIT_NAMES]


def average(values, how=np.mean) -> float | None:
    """The mean (or `how`) of the values, None if there are none."""
    values = list(values)
    return float(how(values)) if values else None


def ratio(a, b) -> float | None:
    """a / b, None if b is zero, as for faces that do not move."""
    return float(a / b) if b else None


def correlation(a, b) -> float:
    """Pearson's correlation of two curves, 0 if one of them does not change."""
    return float(np.corrcoef(a, b)[0, 1]) if len(a) > 1 and min(np.ptp(a), np.ptp(b)) > 1e-6 else 0.0


def jaw_lag(track, reference) -> float | None:
    """The delay of jawOpen against the reference in ms: the shift that correlates best, None if none correlates."""
    a, b = (both[:, JAW] for both in common(track, reference))
    r = {shift: correlation(a[max(shift, 0):len(a) + min(shift, 0)], b[max(-shift, 0):len(b) - max(shift, 0)])
         for shift in sorted(range(-MOST_LAG, MOST_LAG + 1), key=abs)}
    best = max(r, key=r.get)
    return 1000 * best / FPS if r[best] > 0 else None


def sound_lag(track, sound, rate: int, head) -> float | None:
    """The delay of the lips against the sound (samples,) in ms; None if there is no sound, or one never changes."""
    moves = sound is not None and np.ptp(sound) > 0 and np.ptp(lip_gap(track, head)) > STILL
    return lip_sync_lag(track, sound, rate, head)[0] if moves else None


def silent_frames(phones: list, frames: int) -> np.ndarray:
    """Mask (T,) of the frames in a pause that are at least EDGE seconds from the phones beside it.

    phones: [(name, start, end), ...] in seconds, "pau" a pause. There is no margin at the start and end of the clip.
    """
    times, silent = np.arange(frames) / FPS, np.zeros(frames, bool)
    for n, (name, start, end) in enumerate(phones):
        first, last = start + EDGE * (n > 0), end - EDGE if n < len(phones) - 1 else np.inf
        silent |= (name == "pau") & (times >= first) & (times <= last)
    return silent


def shake(tracks) -> float:
    """Sum of |second differences| over the frames of all jaw and mouth weights of the tracks [(T, K), ...]."""
    return sum(float(np.abs(np.diff(track[:, MOUTH], 2, axis=0)).sum()) for track in tracks)


def endings(tracks: list, head) -> dict:
    """Shares of tracks [(T, K), ...], T > 0, whose last frame, which players hold, is not at rest; None without tracks.

    Closed eye: eyeBlink of at least SHUT. Parted lips: a gap of at least CLOSED of the track's own opening.
    """
    gaps = [lip_gap(track, head) for track in tracks]
    return {"ends with a closed eye": average(track[-1, BLINKS].max() >= SHUT for track in tracks),
            "ends with parted lips": average(gap[-1] >= max(CLOSED * np.percentile(gap, 95), STILL) for gap in gaps)}


def face_figures(tracks: list, references: list, voices: list, head) -> dict:
    """{metric: value} of tracks [(T, K), ...] against the teacher's.

    voices: for each track the sample of split `voice` with the same answer (its audio and phones), or None. A metric
    without anything to measure is None. Raises ValueError without tracks, or for an invalid one (`tidy`).
    """
    if not len(tracks) == len(references) == len(voices) > 0:
        raise ValueError(f"{len(tracks)} tracks, {len(references)} references, {len(voices)} voices: expected as many "
                         "of each, and one at least")
    pairs = [common(*pair) for pair in zip(tracks, references)]
    sizes, figures = [len(track) for track, _ in pairs], {}
    over_frames = lambda values: float(np.average(list(values), weights=sizes))
    figures["LVE, % (lve_l2)"] = over_frames(lve_l2(*pair, head) for pair in pairs)
    figures["LVE squared, %^2 (lve_sq)"] = over_frames(lve_sq(*pair, head) for pair in pairs)
    said = [(track, voice, lip_gap(track, head)) for (track, _), voice in zip(pairs, voices) if voice is not None]
    moving = [(track, voice, gap) for track, voice, gap in said if np.ptp(gap) > STILL]     # lips at rest do not close
    openings = [[np.percentile(lip_gap(track, head), 95) for track in both] for both in pairs]
    figures["opening (95 % of frames below), over the teacher's"] = ratio(*np.sum(openings, axis=0))
    for name, phones, share in (("/p b m/", "pbm", CLOSED), ("/f v/", "fv", 0.35)):
        spans = lambda voice: [span[1:] for span in voice["phones"] if span[0] in phones]
        closed = [closure_rate(track, spans(voice), head, share) * len(spans(voice))
                  for track, voice, _ in moving if spans(voice)]
        asked = sum(len(spans(voice)) for _, voice, _ in said)
        figures[f"lips close in {name}"] = sum(closed) / asked if asked else None
    figures["jaw correlation"] = average(correlation(track[:, JAW], reference[:, JAW]) for track, reference in pairs)
    lags = [lag for pair in pairs if (lag := jaw_lag(*pair)) is not None]
    figures["jaw lag to the teacher, ms"] = average(lags)
    figures["jaw lag within one frame"] = sum(abs(lag) < 1500 / FPS for lag in lags) / len(pairs)
    figures["lips' lag to the sound, ms (median)"] = average(
        (lag for track, voice, _ in moving
         if (lag := sound_lag(track, voice["audio"], SAMPLE_RATE, head)) is not None), np.median)
    figures["closed in silence"] = average(
        closed for _, voice, gap in said
        for closed in (gap < CLOSED * np.percentile(gap, 95))[silent_frames(voice["phones"], len(gap))])
    speeds = [velocity_error(*pair) for pair in pairs]
    for group in speeds[0]:
        figures[f"velocity error, {group}"] = over_frames(speed[group] for speed in speeds)
    for name, part in (("jitter", np.s_[:]), (f"jitter, first {SEAM} frames", np.s_[:SEAM]),
                       (f"jitter, last {SEAM} frames", np.s_[-SEAM:])):
        figures[name] = ratio(*(shake(track[part] for track in side) for side in zip(*pairs)))
    return figures | endings([track for track, _ in pairs], head)


# --- faces of a checkpoint -------------------------------------------------------------------------------------------

def own_voice(data, texts: list) -> list:
    """For each text the sample of split `voice` in which the model's voice says it, or None.

    Such a sample has units, phones and face, and audio if the data was made with sound.
    """
    if not (Path(data) / "voice").exists():
        return [None] * len(texts)
    voice = Split(Path(data) / "voice")
    index = {row["answer"]: n for n, row in enumerate(voice.rows)}
    return [voice[index[text]] if text in index else None for text in texts]


@torch.no_grad()
def teacher_forced(model, split: Split, rows) -> list:
    """Teacher-forced tracks [(T, K), ...] for these rows of the split.

    A hook on the face decoder collects them, as `ExOmni.forward` returns only the losses.
    """
    tracks, made = {}, []
    hook = model.face_decoder.register_forward_hook(lambda module, given, result: made.append(result))
    try:
        for chunk in chunks(split, rows, BATCH):
            batch = collate([split[i] for i in chunk], model, ("face",), model.llm.norm.weight.device)
            model(batch, {"face": 1})
            for i, track, frames in zip(chunk, made.pop(), batch["frames"].tolist()):
                tracks[i] = track[:frames].float().clamp(0, 1).cpu().numpy()        # as sample.py writes it
    finally:
        hook.remove()
    return [tracks[i] for i in rows]


def held_out_faces(model, data, head) -> dict:
    """{column: `face_figures`} of our faces, the teacher's own, and the teacher's mean face held still.

    data: a prepared directory with a split `val`. Raises ValueError if val has no samples of task face.
    """
    split = Split(Path(data) / "val")
    rows = rows_of(split, ("face",))
    if not len(rows):
        raise ValueError(f"{split.directory} has no samples of task face: the face is measured on them")
    check(split, rows, model)
    references = [split[i]["face"] for i in rows]
    voices = own_voice(data, [split.rows[i]["answer"] for i in rows])
    still = np.concatenate(references).mean(0)
    columns = {"ours": teacher_forced(model, split, rows), "teacher": references,
               "mean": [np.tile(still, (len(track), 1)) for track in references]}
    return {name: face_figures(tracks, references, voices, head) for name, tracks in columns.items()}
