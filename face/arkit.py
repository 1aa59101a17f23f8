"""The 52 ARKit names, other systems' names for them, and writers of tracks: json, csv, npy (docs/spec/face.md 2, 3).

A face track is a float32 array (T, K) of weights in [0, 1]: T face frames at 30 per second, frame t shown at t / 30 s;
K = 52 blendshapes in the order of ARKIT_NAMES. Left and right are the face's own. Columns are mapped by name, never by
position: Live Link Face writes JawRight before JawLeft, Apple lists JawLeft first. captures.py reads tracks.

Other letters: R rows of a file at any rate, C columns of a file.
"""
import csv
import io
import json
import re
import reprlib
from collections import Counter
from functools import lru_cache

import numpy as np

import disk
from face_decoder import FPS

# Alphabetical with tongueOut last: the order of the release's output, of EmoTalk, and of this project
# (docs/spec/face.md 2, column E).
ARKIT_NAMES = [
    "browDownLeft", "browDownRight", "browInnerUp", "browOuterUpLeft", "browOuterUpRight", "cheekPuff",
    "cheekSquintLeft", "cheekSquintRight", "eyeBlinkLeft", "eyeBlinkRight", "eyeLookDownLeft", "eyeLookDownRight",
    "eyeLookInLeft", "eyeLookInRight", "eyeLookOutLeft", "eyeLookOutRight", "eyeLookUpLeft", "eyeLookUpRight",
    "eyeSquintLeft", "eyeSquintRight", "eyeWideLeft", "eyeWideRight", "jawForward", "jawLeft", "jawOpen", "jawRight",
    "mouthClose", "mouthDimpleLeft", "mouthDimpleRight", "mouthFrownLeft", "mouthFrownRight", "mouthFunnel",
    "mouthLeft", "mouthLowerDownLeft", "mouthLowerDownRight", "mouthPressLeft", "mouthPressRight", "mouthPucker",
    "mouthRight", "mouthRollLower", "mouthRollUpper", "mouthShrugLower", "mouthShrugUpper", "mouthSmileLeft",
    "mouthSmileRight", "mouthStretchLeft", "mouthStretchRight", "mouthUpperUpLeft", "mouthUpperUpRight",
    "noseSneerLeft", "noseSneerRight", "tongueOut"]

# The order of Apple's documentation, of Audio2Face and of Live Link Face's network packets (column A).
APPLE_NAMES = [
    "eyeBlinkLeft", "eyeLookDownLeft", "eyeLookInLeft", "eyeLookOutLeft", "eyeLookUpLeft", "eyeSquintLeft",
    "eyeWideLeft", "eyeBlinkRight", "eyeLookDownRight", "eyeLookInRight", "eyeLookOutRight", "eyeLookUpRight",
    "eyeSquintRight", "eyeWideRight",
    "jawForward", "jawLeft", "jawRight", "jawOpen", "mouthClose", "mouthFunnel", "mouthPucker",
    "mouthLeft", "mouthRight", "mouthSmileLeft", "mouthSmileRight", "mouthFrownLeft", "mouthFrownRight",
    "mouthDimpleLeft", "mouthDimpleRight", "mouthStretchLeft", "mouthStretchRight", "mouthRollLower", "mouthRollUpper",
    "mouthShrugLower", "mouthShrugUpper", "mouthPressLeft", "mouthPressRight", "mouthLowerDownLeft",
    "mouthLowerDownRight", "mouthUpperUpLeft", "mouthUpperUpRight", "browDownLeft", "browDownRight", "browInnerUp",
    "browOuterUpLeft", "browOuterUpRight", "cheekPuff", "cheekSquintLeft", "cheekSquintRight", "noseSneerLeft",
    "noseSneerRight", "tongueOut"]

# From the official release's code, which never uses it: eyes first, no tongueOut (column M).
RELEASE_NAMES = [
    "eyeBlinkLeft", "eyeBlinkRight", "eyeSquintLeft", "eyeSquintRight", "eyeLookDownLeft", "eyeLookDownRight",
    "eyeLookInLeft", "eyeLookInRight", "eyeWideLeft", "eyeWideRight", "eyeLookOutLeft", "eyeLookOutRight",
    "eyeLookUpLeft", "eyeLookUpRight", "browDownLeft", "browDownRight", "browInnerUp", "browOuterUpLeft",
    "browOuterUpRight", "jawOpen", "mouthClose", "jawLeft", "jawRight", "jawForward", "mouthUpperUpLeft",
    "mouthUpperUpRight", "mouthLowerDownLeft", "mouthLowerDownRight", "mouthRollUpper", "mouthRollLower",
    "mouthSmileLeft", "mouthSmileRight", "mouthDimpleLeft", "mouthDimpleRight", "mouthStretchLeft", "mouthStretchRight",
    "mouthFrownLeft", "mouthFrownRight", "mouthPressLeft", "mouthPressRight", "mouthPucker", "mouthFunnel", "mouthLeft",
    "mouthRight", "mouthShrugLower", "mouthShrugUpper", "noseSneerLeft", "noseSneerRight", "cheekPuff",
    "cheekSquintLeft", "cheekSquintRight"]

# Rotations, in radians, that a Live Link Face file has after the 52 weights.
ROTATIONS = [part + axis for part in ("Head", "LeftEye", "RightEye") for axis in ("Yaw", "Pitch", "Roll")]


def capital(name: str) -> str:
    return name[0].upper() + name[1:]


def swapped(names: list) -> list:
    """jawLeft and jawRight, mouthLeft and mouthRight exchanged, as in Live Link Face's files (column L)."""
    swap = {"jawLeft": "jawRight", "jawRight": "jawLeft", "mouthLeft": "mouthRight", "mouthRight": "mouthLeft"}
    return [swap.get(name, name) for name in names]


# Convention -> its column names in order. "arkit" is ours.
CONVENTIONS = {
    "arkit": ARKIT_NAMES,
    "arkit51": ARKIT_NAMES[:51],
    "release51": RELEASE_NAMES,
    "apple": APPLE_NAMES,
    "audio2face": [*map(capital, APPLE_NAMES)],
    "livelink": [*map(capital, swapped(APPLE_NAMES))],
    "sided": [re.sub("Left$", "_L", re.sub("Right$", "_R", name)) for name in ARKIT_NAMES],
    "mediapipe": ["_neutral", *ARKIT_NAMES[:51]],
}

# --order -> the names of a bare array's columns, one list for each width. tongueOut and _neutral may be missing.
# UniTalker has 52 weights in EmoTalk's order, and 51 in an order that it does not publish: we take the list of 51 in
# Ex-Omni's code.
ORDERS = {
    "arkit": [ARKIT_NAMES],
    "apple": [APPLE_NAMES, APPLE_NAMES + ROTATIONS],
    "livelink": [CONVENTIONS["livelink"], CONVENTIONS["livelink"] + ROTATIONS],
    "mediapipe": [CONVENTIONS["mediapipe"]],
    "unitalker": [ARKIT_NAMES, RELEASE_NAMES],
}

# Left or right half -> the shape, for two shapes that some rigs split.
HALVES = {name + side: name for name in ("browInnerUp", "cheekPuff") for side in ("Left", "Right")}
# Texts in a file that say: weights are per cent; rotations are in degrees or radians; a name that ends in such a unit.
PERCENT = re.compile(r"(?i)\b(?:in|as|are|is|units?)\b\W*(?:%|per ?cent|pct)|(?<!time )\bscale: 100(?:\.0)?$|"
                     r"\b(?:weights?|values?|units?|shapes?|scale|range|coefficients?)\b\D{0,20}"
                     r"0(?:\.0)?\s*(?:-|\u2013|\.+|to|,)\s*100(?:\.0)?\b")
TURNED = re.compile(r"(?i)(?:yaw|pitch|roll|rotation|angle|euler|head|eye).*?(?:\b|_)(deg|rad)")
ANGLE = re.compile(r"(?i)((?:yaw|pitch|roll))[\s_(\[]*(?:degrees?|deg|\u00b0|radians?|rad)[)\]]*$")
LONGEST = 200               # characters of a name at most; longer ones match nothing


@lru_cache(4096)                # json repeats its keys in every frame
def folded(name: str) -> str:
    """A name in lower case, letters and digits only: `Mouth_Smile.L` -> mouthsmilel."""
    return re.sub("[^a-z0-9]", "", name.lower())


def spellings(name: str) -> list:
    """All spellings of a name, folded: mouthSmileLeft, mouthSmile_L, left_mouthSmile, L_mouthSmile."""
    base, side = re.fullmatch("(.+?)(Left|Right)?", name).groups()
    return [folded(name)] + [folded(both) for s in ([side, side[0]] if side else []) for both in (base + s, s + base)]


# Folded spelling -> the name. Only whole names match: the r of mouthRollLower is not taken for a side.
KNOWN = {spelling: name for name in [*ARKIT_NAMES, *ROTATIONS, *HALVES] for spelling in spellings(name)}


def readings(name: str, separators: str) -> dict:
    """Each way to read a name as a prefix and a known name: {prefix, digits replaced by #: known name}.

    A prefix is empty or ends in one of the separators. The unit of a rotation, as in HeadYaw (deg), is dropped."""
    name = ANGLE.sub(r"\1", name)
    starts = [0] + [found.end() for found in re.finditer(f"[{separators}]", name)] if len(name) <= LONGEST else []
    rests = {re.sub(r"\d+", "#", name[:start]).lower(): KNOWN.get(folded(name[start:])) for start in starts}
    return {prefix: known for prefix, known in rests.items() if known}


def match(name: str) -> str | None:
    """One name, of a morph target for instance -> the ARKit name that it stands for, or None.

    Case, spaces and punctuation are ignored; a side may be `Left`, `_L`, `.L` or `L`, at the end or in front: JawOpen,
    jaw_open, mouthSmile_L, Left_mouthSmile. A prefix that ends in a dot, colon, slash or bar is dropped:
    blendShapes.JawOpen. Nothing is guessed.
    """
    known = next(iter(readings(name, ".:/|").values()), None)
    return known if known in ARKIT_NAMES else None


def matches(names: list, where: str = "the track") -> list:
    """For each of the names of a file the one of KNOWN that it stands for, or None.

    Like `match`, but the names may also share one prefix that ends in a space, an underscore or a hyphen, with or
    without a number: ARKit_jawOpen, A25_Jaw_Open. Raises ValueError if two prefixes give two complete sets of names.
    """
    read = [readings(name, "-.:/|_ ") for name in names]
    counts = Counter(prefix for prefixes in read for prefix, known in prefixes.items() if known in ARKIT_NAMES)
    counts[""] += 1                                                         # no prefix wins a tie
    best = max(counts, key=lambda prefix: (counts[prefix], prefix == ""))
    rival = next((p for p in counts if p != best and counts[p] >= 51
                  and not any(p in prefixes and best in prefixes for prefixes in read)), None)
    if best and rival:
        raise ValueError(f"{where} holds two tracks, named {best}... and {rival}...: take one out")
    return [prefixes.get(best, prefixes.get("")) for prefixes in read]


def few(names, most: int = 5) -> str:
    """The first `most` names as a text for messages; unprintable characters are dropped and long names cut."""
    texts = [name if isinstance(name, str) else reprlib.repr(name) for name in names]
    shown = ["".join(filter(str.isprintable, text[:80]))[:40] for text in texts]
    return ", ".join(shown[:most]) + (f" and {len(shown) - most} more" if len(shown) > most else "")


def sources(names: list, where: str = "the track") -> list:
    """For each of the K shapes the indices of its columns in `names`: one; two if it is split into halves, whose mean
    is taken; none for a missing tongueOut.

    Raises ValueError with the names that are missing or there twice. A shape beside its own halves is there twice.
    """
    ours = matches(names, where)
    split = {HALVES[half] for half in HALVES} - {HALVES[half] for half in HALVES if half not in ours}
    missing = [name for name in ARKIT_NAMES[:51] if name not in ours and name not in split]
    twice = [name for name, our in zip(names, ours) if our and (ours.count(our) > 1 or HALVES.get(our, "") in ours)]
    unknown = [name for name, our in zip(names, ours) if our is None and folded(name)]
    if missing or twice:
        wrong = {"missing": missing, "other names": unknown if missing else [], "twice": twice}
        raise ValueError(f"{where} is not a track of the 52 ARKit shapes: "
                         + "; ".join(f"{what}: {few(these)}" for what, these in wrong.items() if these))
    wholes = [HALVES.get(our, our) for our in ours]
    return [[i for i, whole in enumerate(wholes) if whole == name] for name in ARKIT_NAMES]


def from_names(values, names: list, where: str = "the track") -> np.ndarray:
    """Values (R, C) with column names -> track (R, K) in the order of ARKIT_NAMES.

    A missing tongueOut is zero. Columns that are no shapes are left out. `where` names the source in errors. Raises
    ValueError as `sources` does, or for another number of columns.
    """
    values = np.asarray(values, np.float32)
    if values.ndim != 2 or values.shape[1] != len(names):
        raise ValueError(f"{where} has shape {values.shape}, expected (frames, {len(names)}): one column for each name")
    track = np.zeros((len(values), len(ARKIT_NAMES)), np.float32)
    for k, columns in enumerate(sources(names, where)):
        if columns:
            track[:, k] = values[:, columns].mean(axis=1)
    return track


def ordered(width: int, order: str | None, where: str) -> tuple[list, list]:
    """Names for `width` columns that have none, from an order of ORDERS, and notes to print.

    52 columns without an order are taken as "arkit", with a note; other widths need one. Raises ValueError if the order
    has no such width. `where` names the source.
    """
    fits = {key: names for key, lists in ORDERS.items() for full in lists
            for names in ([name for name in full if folded(name) not in ("tongueout", "neutral")], full)
            if len(names) == width}
    if order is None and width == len(ARKIT_NAMES):
        return ARKIT_NAMES, [f"52 columns without names: taken in the order arkit (--order: {', '.join(fits)})"]
    if order in fits:
        return fits[order], []
    raise ValueError(f"{where} has {width} columns without names{f', not of the order {order}' if order else ''}: "
                     + (f"expected --order {' or '.join(fits)}" if fits else "expected 52, or 51 with --order"))


def to_names(track, convention: str) -> np.ndarray:
    """Track (T, K) -> (T, C), the columns of CONVENTIONS[convention]; columns that are none of the 52 are zero."""
    ours, zeros = [match(name) for name in CONVENTIONS[convention]], np.zeros(len(track), np.float32)
    return np.stack([track[:, ARKIT_NAMES.index(our)] if our else zeros for our in ours], axis=1)


def tidy(track, where: str = "the track") -> np.ndarray:
    """Check a track (T, 52), or (T, 51) without tongueOut, and give it as float32 (T, K) in [0, 1].

    Values a little outside are clipped (Audio2Face and linear output layers overshoot). `where` names the source in
    errors. Raises ValueError for another width, no frames, values that are not finite, or values below -1 or above 2:
    then the scale must be another one.
    """
    track = np.asarray(track)
    if track.ndim != 2 or track.shape[1] not in (51, 52) or track.dtype.kind not in "fiub":
        raise ValueError(f"{where} has shape {track.shape} and type {track.dtype}, expected numbers (frames, 52), or "
                         "51 without tongueOut, in the order of arkit.ARKIT_NAMES")
    track = track.astype(np.float32)
    if not len(track):
        raise ValueError(f"{where} has no frames: nothing to show")
    if not np.isfinite(track).all():
        frame, column = np.argwhere(~np.isfinite(track))[0]
        raise ValueError(f"{where} has {track[frame, column]} at frame {frame}, {ARKIT_NAMES[column]}: expected "
                         "numbers in [0, 1]")
    if track.min() < -1 or track.max() > 2:
        raise ValueError(f"{where} has weights between {track.min():g} and {track.max():g}, expected [0, 1]: if they "
                         "are per cent, divide by 100")
    return np.pad(track, ((0, 0), (0, 52 - track.shape[1]))).clip(0, 1)


def scaled(track, names: list, texts: list, notes: list) -> np.ndarray:
    """Track (R, K) as in its file -> the same with per cent divided by 100. Odd values are reported in `notes`."""
    said = [name for name in names if "%" in name]
    said = said[:1] if len(said) > 25 else [text for text in texts if PERCENT.search(text)]
    if said and track.max() > 1.1:
        track = track / 100
        notes.append(f"weights are per cent, divided by 100 ({few(said, 1)})")
    elif said and track.any():
        notes.append(f"{few(said, 1)} may say per cent, but no weight is above 1.1: they are taken as they are")
    if -1 <= track.min() < -0.1 or 2 >= track.max() > 1.1:
        notes.append(f"weights between {track.min():.3g} and {track.max():.3g} are clipped to 0 and 1")
    if len(track) > 1 and track.any() and np.isin(track, (0, 1)).all():
        notes.append("all weights are 0 or 1, nothing between: were they rounded?")
    return track


def in_radians(turned, texts: list, notes: list) -> np.ndarray:
    """Rotations (R, 9) in the unit of their file -> in radians.

    The unit is the one that the names or texts say; but radians above a full turn must be degrees. If none is said,
    values above a quarter turn are degrees."""
    most = float(abs(turned).max())
    said = {match[1].lower() for match in map(TURNED.search, texts) if match}
    degrees = most > (2 * np.pi if said == {"rad"} else np.pi / 2) if said != {"deg"} else True
    if not degrees or not most:
        return turned
    notes.append(f"head and eyes turn by up to {most:.3g}: taken as degrees" + (
        ", as the file says" if said == {"deg"} else ", although the file says radians" * ("rad" in said)))
    return np.radians(turned)


def rotations_of(values, names: list) -> np.ndarray:
    """Values (R, C) with column names -> (R, 9) in the order of ROTATIONS; missing ones are zero."""
    ours, zero = matches(names), np.zeros(len(values), np.float32)
    return np.stack([values[:, ours.index(name)] if name in ours else zero for name in ROTATIONS], axis=1)


def resample(track, times, length: float) -> np.ndarray:
    """Rows (R, K) at times (R,) in seconds -> (T, K) at 30 frames per second for `length` seconds.

    Times increase from 0. Linear interpolation; the last row is held.
    """
    frames = max(1, round(length * FPS))
    now = np.arange(frames) / FPS
    return np.stack([np.interp(now, times, column) for column in np.asarray(track).T], axis=1).astype(np.float32)


# --- written ---------------------------------------------------------------------------------------------------------

def listed(facts: dict):
    """The first list among an object's values of which most items are names of shapes, or None. Its key may be any."""
    return next((part for part in facts.values() if isinstance(part, list) and part and all(
        isinstance(name, str) for name in part) and sum(map(bool, matches(part))) > len(part) / 2), None)


def audio2face(track, fps: int, audio: str) -> dict:
    """Track (T, K) -> the json object that Audio2Face writes (docs/spec/face.md 3.1).

    Weights are clipped to [0, 1]. audio: path of the sound that belongs to the track.
    """
    track = np.clip(np.asarray(track, dtype=np.float32), 0, 1)
    return {"exportFps": fps, "trackPath": str(audio), "numPoses": len(ARKIT_NAMES), "numFrames": len(track),
            "facsNames": ARKIT_NAMES, "weightMat": np.round(track.astype(np.float64), 5).tolist()}


def write_json(path, track, audio: str = "") -> None:
    """Write a track (T, K) as Audio2Face json. T may be 0, for an empty reply."""
    with disk.replacing(path) as temporary:
        temporary.write_text(json.dumps(audio2face(track, FPS, audio)), encoding="utf-8")


def write_npy(path, track) -> None:
    """Write a track as a bare float32 array (T, K)."""
    content = io.BytesIO()                                  # np.save does not report a full disk
    np.save(content, np.asarray(track, np.float32))
    with disk.replacing(path) as temporary:
        temporary.write_bytes(content.getvalue())


def write_csv(path, track, rotations=None) -> None:
    """Write a track (T, K) as Live Link Face csv (docs/spec/face.md 3.2): 30 frames per second from 00:00:00:00.

    rotations: (T, 9) in radians, in the order of ROTATIONS; zero if None.
    """
    rotations = np.zeros((len(track), len(ROTATIONS))) if rotations is None else rotations
    with disk.replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(["Timecode", "BlendShapeCount", *CONVENTIONS["livelink"], *ROTATIONS])
        for t, row in enumerate(np.concatenate([to_names(track, "livelink"), rotations], axis=1)):
            seconds, frame = divmod(t, FPS)
            code = f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}:{frame:02}.000"
            out.writerow([code, len(row), *(f"{value:.6f}" for value in row)])
