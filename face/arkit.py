"""The 52 ARKit names, what other systems call them, and face tracks in files: json, csv, npy (docs/spec/face.md 2, 3).

A face track is a float32 array (T, K) of weights in [0, 1]: T face frames at 30 per second, frame t shown at t / 30 s;
K = 52 blendshapes in the order of ARKIT_NAMES. Left and right are the face's own. Columns are mapped by name, never by
position: Live Link Face's file has JawRight before JawLeft, Apple's list JawLeft before JawRight.

Other letters: R rows of a file at any rate, C columns of a file.
"""
import csv
import json
import re
from pathlib import Path

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

# A list in the official release's code, eyes first, without tongueOut; that code never uses it (column M).
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

# Columns that files hold beyond the 52: Audio2Face's tongue shapes and Live Link Face's rotations.
TONGUES = ["TongueTipUp", "TongueTipDown", "TongueTipLeft", "TongueTipRight", "TongueRollUp", "TongueRollDown",
           "TongueRollLeft", "TongueRollRight", "TongueUp", "TongueDown", "TongueLeft", "TongueRight", "TongueIn",
           "TongueStretch", "TongueWide", "TongueNarrow"]
ROTATIONS = [part + axis for part in ("Head", "LeftEye", "RightEye") for axis in ("Yaw", "Pitch", "Roll")]


def capital(name: str) -> str:
    return name[0].upper() + name[1:]


def swapped(names: list) -> list:
    """Right before left for the jaw and the mouth, as Live Link Face writes its file (column L)."""
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

PLAIN = {name.lower(): name for name in ARKIT_NAMES}
IGNORED = {name.lower() for name in ["_neutral", *TONGUES, *ROTATIONS]}       # known, and not among the 52


def bare(name: str) -> str:
    return name.lower().removeprefix("blendshapes.")


def match(name: str) -> str | None:
    """The ARKit name that the name of a column or a morph target stands for, or None.

    Upper and lower case are the same, `_L` and `_R` stand for Left and Right, a prefix `blendShapes.` is dropped:
    jawOpen, JawOpen, mouthSmile_L, blendShapes.MouthSmileLeft. No other spelling is known.
    """
    plain = bare(name)
    for ending, side in (("_l", "left"), ("_r", "right")):
        plain = plain.removesuffix(ending) + side if plain.endswith(ending) else plain
    return PLAIN.get(plain)


def first_few(names, most: int = 5) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def from_names(values, names: list, where: str = "the track") -> np.ndarray:
    """Values (R, C) of the columns called `names` -> (R, K) in the order of ARKIT_NAMES.

    tongueOut may be missing: then it is zero. Head and eye rotations, Audio2Face's tongue shapes and MediaPipe's
    _neutral are left out. `where` names the source in errors. Raises ValueError with the names that are missing,
    unknown or there twice.
    """
    values, ours = np.asarray(values, np.float32), [match(name) for name in names]
    if values.ndim != 2 or values.shape[1] != len(names):
        raise ValueError(f"{where} has shape {values.shape}, expected (frames, {len(names)}): one column for each name")
    unknown = [name for name, our in zip(names, ours) if our is None and bare(name) not in IGNORED]
    missing = [name for name in ARKIT_NAMES[:51] if name not in ours]
    twice = sorted({name for name in ours if name and ours.count(name) > 1})
    if unknown or missing or twice:
        wrong = {"unknown": unknown, "missing": missing, "twice": twice}
        raise ValueError(f"{where} is not a track of the 52 ARKit shapes: "
                         + "; ".join(f"{what}: {first_few(these)}" for what, these in wrong.items() if these))
    column = {our: i for i, our in enumerate(ours) if our}
    track = np.zeros((len(values), len(ARKIT_NAMES)), np.float32)
    for i, name in enumerate(ARKIT_NAMES):
        if name in column:
            track[:, i] = values[:, column[name]]
    return track


def to_names(track, convention: str) -> np.ndarray:
    """A track (T, K) -> (T, C) in the columns of CONVENTIONS[convention]; names that are not among the 52 get zeros."""
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


def resample(track, times, length: float) -> np.ndarray:
    """Rows (R, K) with their times (R,) in seconds -> (T, K) at 30 frames per second for `length` seconds.

    Times increase and begin at 0. Linear between rows; the last row is held.
    """
    frames = max(1, round(length * FPS))
    now = np.arange(frames) / FPS
    return np.stack([np.interp(now, times, column) for column in np.asarray(track).T], axis=1).astype(np.float32)


def at_rate(track, fps: float) -> np.ndarray:
    """Rows (R, K) at `fps` per second -> (T, K) at 30 frames per second, of the same length in seconds."""
    return track if fps == FPS else resample(track, np.arange(len(track)) / fps, len(track) / fps)


# --- files -----------------------------------------------------------------------------------------------------------

def audio2face(track, fps: int, audio: str) -> dict:
    """A track (T, K) -> the json object that Audio2Face writes and its readers expect (docs/spec/face.md 3.1).

    Weights are clipped to [0, 1]. audio: path of the sound that belongs to the track.
    """
    track = np.clip(np.asarray(track, dtype=np.float32), 0, 1)
    return {"exportFps": fps, "trackPath": str(audio), "numPoses": len(ARKIT_NAMES), "numFrames": len(track),
            "facsNames": ARKIT_NAMES, "weightMat": np.round(track.astype(np.float64), 5).tolist()}


def write_json(path, track, audio: str = "") -> None:
    """Write a track (T, K) as Audio2Face json. T may be 0: the answer of an empty reply."""
    with disk.replacing(path) as temporary:
        temporary.write_text(json.dumps(audio2face(track, FPS, audio)), encoding="utf-8")


def write_npy(path, track) -> None:
    """Write a track as a bare float32 array (T, K)."""
    with disk.replacing(path) as temporary, open(temporary, "wb") as file:
        np.save(file, np.asarray(track, np.float32))


def write_csv(path, track) -> None:
    """Write a track (T, K) as Live Link Face csv (docs/spec/face.md 3.2).

    30 frames per second from 00:00:00:00, the nine rotations zero.
    """
    with disk.replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(["Timecode", "BlendShapeCount", *CONVENTIONS["livelink"], *ROTATIONS])
        count, still = len(ARKIT_NAMES) + len(ROTATIONS), ["0.000000"] * len(ROTATIONS)
        for t, row in enumerate(to_names(track, "livelink")):
            seconds, frame = divmod(t, FPS)
            code = f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}:{frame:02}.000"
            out.writerow([code, count, *(f"{value:.6f}" for value in row), *still])


def read_track(path, fps: float | None = None) -> np.ndarray:
    """A face track in a file -> (T, K) at 30 frames per second.

    Read are .json as Audio2Face writes it, .csv as Live Link Face or Audio2Face's client writes it (column Timecode,
    the names of the 52 shapes in the spellings of `match`), and .npy with a bare array in the order of ARKIT_NAMES.
    fps: the rate of the file, where the file's own is missing or wrong. Without it a json has exportFps; a csv has its
    name (`take_60fps.csv`) or the highest frame number in its timecodes, else 30; an array counts as 30.
    Raises ValueError for any other file.
    """
    path = Path(path)
    readers = {".json": read_json, ".csv": read_csv, ".npy": read_npy}
    if path.suffix.lower() not in readers:
        raise ValueError(f"{path}: unknown ending, expected a face track: {', '.join(readers)}")
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    if fps is not None and not 0 < fps < float("inf"):
        raise ValueError(f"{fps} frames per second: expected a positive rate")
    return readers[path.suffix.lower()](path, fps)


def read_json(path: Path, fps) -> np.ndarray:
    """Audio2Face json -> (T, K) at 30 fps. fps replaces the file's exportFps. Raises ValueError for another file."""
    values = disk.read_json(path)
    missing = [key for key in ("exportFps", "facsNames", "weightMat") if key not in values]
    if missing:
        raise ValueError(f"{path} is not Audio2Face json: it has no {', '.join(missing)}")
    rate, names = fps or values["exportFps"], values["facsNames"]
    if not isinstance(rate, (int, float)) or not 0 < rate < float("inf"):
        raise ValueError(f"{path}: exportFps is {rate!r}, expected a positive number of frames per second")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path}: facsNames is not a list of names")
    return at_rate(tidy(from_names(table(values["weightMat"], path, len(names)), names, str(path)), str(path)), rate)


def read_npy(path: Path, fps) -> np.ndarray:
    """A bare array (R, 52 or 51), 30 rows per second unless `fps` is given -> (T, K). Raises ValueError otherwise."""
    try:
        track = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is not a bare .npy array: {error}") from None
    return at_rate(tidy(track, str(path)), fps or FPS)


def table(rows, path, width: int) -> np.ndarray:
    """A list of rows of numbers -> (R, width), or a ValueError that names the row at fault."""
    if not isinstance(rows, list):
        raise ValueError(f"{path}: the weights are not a list of rows")
    for i, row in enumerate(rows):
        size = len(row) if isinstance(row, list) else "no"
        if size != width:
            raise ValueError(f"{path}: row {i} has {size} values, expected {width}")
    try:
        return np.array(rows, np.float32).reshape(len(rows), width)
    except (TypeError, ValueError):
        raise ValueError(f"{path}: the weights are not all numbers") from None


def read_csv(path: Path, fps) -> np.ndarray:
    """Live Link Face csv -> (T, K) at 30 fps, each row at the time of its timecode.

    fps: how many frames the timecodes count per second, else `rate_of`. Raises ValueError for another file.
    """
    try:
        rows = list(csv.reader(path.read_text(encoding="utf-8-sig").splitlines()))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is not a csv file: {error}") from None
    header, rows = ([name.strip() for name in rows[0]], [row for row in rows[1:] if row]) if rows else ([], [])
    known = {name.lower(): i for i, name in enumerate(header)}
    if "timecode" not in known:
        raise ValueError(f"{path} is not a Live Link Face csv: its first line has no column Timecode")
    count = known.get("blendshapecount")
    rows = [row for row in rows if count is None or row[min(count, len(row) - 1)] != "0"]    # 0: no face in that frame
    extra = {known["timecode"], count}
    columns = [i for i in range(len(header)) if i not in extra]
    short = next((i for i, row in enumerate(rows) if len(row) != len(header)), None)
    if short is not None:
        raise ValueError(f"{path}: row {short} has {len(rows[short])} values, expected {len(header)}")
    values = table([[row[i] for i in columns] for row in rows], path, len(columns))
    track = tidy(from_names(values, [header[i] for i in columns], str(path)), str(path))
    codes = [row[known["timecode"]] for row in rows]
    rate = fps or rate_of(path, codes)
    times = np.array([seconds(code, rate, path) for code in codes])
    times -= times[0]
    if len(times) > 1 and (np.diff(times) <= 0).any():              # midnight, or codes that repeat: by row then
        times = np.arange(len(times)) / rate
    step = float(np.median(np.diff(times))) if len(times) > 1 else 1 / rate
    return resample(track, times, times[-1] + step)


def rate_of(path: Path, codes: list) -> float:
    """Frames per second of a Live Link Face csv: from its name, or from the highest frame number of its timecodes.

    The latter only if the timecodes pass a full second, as a shorter file may not reach its highest number; else 30.
    """
    named = re.search(r"(\d+(?:\.\d+)?)_?fps", path.stem, re.IGNORECASE)
    if named:
        return float(named[1])
    parts = [code.split(":") for code in codes]
    if any(len(part) != 4 for part in parts) or len({part[2] for part in parts}) < 2:
        return FPS
    highest = max(int(float(part[3])) for part in parts if part[3].replace(".", "", 1).isdigit())
    return next((rate for rate in (24, 25, 30, 50, 60, 100, 120) if rate > highest), FPS)


def seconds(code: str, rate: float, path) -> float:
    """A timecode -> seconds: `HH:MM:SS:FF.sss` with FF counting `rate` frames per second, or plain seconds."""
    try:
        *clock, frame = map(float, code.split(":"))
    except ValueError:
        clock = None
    if clock == []:
        return frame
    if clock is None or len(clock) != 3:
        raise ValueError(f"{path}: timecode {code!r}, expected HH:MM:SS:FF.sss or seconds")
    return clock[0] * 3600 + clock[1] * 60 + clock[2] + frame / rate
