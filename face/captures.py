"""Face captures of other tools -> tracks: tables (.csv .tsv .txt), json, arrays (.npy .npz). docs/spec/face.md 2, 3.

Each kind has a reader that returns `Rows` (tables.py). `read_capture` does the rest: map names to the 52 shapes
(arkit.py), collect what the file says about time (evidence.py), find the times of the rows (timing.py), resample to 30
frames per second. A cell that is not understood raises an error; what is left out is listed in the notes. Left and
right are taken as the file names them: whether the camera mirrored the face cannot be seen in it.

Shapes: R rows of a file, C its columns, T face frames at 30 per second, K = 52 blendshapes.
"""
import io
import math
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import disk
from face.arkit import ORDERS, few, from_names, in_radians, ordered, resample, rotations_of, scaled, tidy
from face.evidence import evidence_of
from face.tables import MAX_ROWS, Rows, read_json, read_table
from face.timing import frame_times, run_lengths
from face.words import words

MAX_BYTES = 200 << 20               # of a file, and of an array once unpacked


@dataclass
class Capture:
    track: np.ndarray               # (T, K) in [0, 1]
    rotations: np.ndarray | None    # (T, 9) in radians, in the order of arkit.ROTATIONS; None if all are zero
    notes: list                     # lines to print
    how: str                        # how the rate was found, in a phrase
    rate: float                     # rows of the file per second
    length: float                   # seconds


def read_track(path, fps: float | None = None, order: str | None = None, ignore_timecodes: bool = False) -> np.ndarray:
    """`read_capture`, only its track (T, K)."""
    return read_capture(path, fps, order, ignore_timecodes).track


def read_capture(path, fps: float | None = None, order: str | None = None, ignore_timecodes: bool = False) -> Capture:
    """Read a capture and resample it to 30 frames per second.

    fps: overrides the rate that the file states. order: of the columns of a bare array, one of ORDERS.
    ignore_timecodes: ignore all times in the file; its rows are evenly spaced.
    Raises FileNotFoundError, or ValueError for a file that is no capture, with the row and the column at fault.
    """
    path = Path(path)
    if path.suffix.lower() not in READERS:
        raise ValueError(f"{path}: unknown ending, expected a face track: {', '.join(READERS)}")
    if order is not None and order not in ORDERS:
        raise ValueError(f"--order {order}: expected one of {', '.join(ORDERS)}")
    size = disk.regular(path, "a face track").stat().st_size
    if size > MAX_BYTES:
        raise ValueError(f"{path} has {size >> 20} MiB, expected a face track of at most {MAX_BYTES >> 20}")
    with warnings.catch_warnings(record=True) as warned:                # a refused file gives its error alone
        warnings.simplefilter("always")
        rows = READERS[path.suffix.lower()](path, order)
    for each in warned:
        warnings.warn(each.message, stacklevel=2)
    count, notes = len(rows.values), rows.notes
    seen = ~np.isnan(rows.values).all(axis=1)
    if not seen.any():
        raise ValueError(f"{path} has no face in any of its {count} rows: nothing to show")
    found = evidence_of(rows, seen, path, fps)
    if found.wrong and found.codes is None and found.stamps is None and not ignore_timecodes:
        raise ValueError(found.wrong)
    notes += found.notes
    unused = [name for name in rows.others if name not in found.used]
    if unused:
        notes.append(f"left out, as they are none of the 52 shapes: {few(unused)}")
    if order and not rows.bare:
        notes.append(f"--order {order} is not used: the file has names")
    if not seen.all():
        notes.append(f"{count - seen.sum()} of {count} rows have no face: those around them are joined")
    try:
        timing = frame_times(count, found.codes, found.stamps, found.numbers, path.stem, found.stated, fps,
                             ignore_timecodes, found.unclear)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if found.unclear and fps is None:
        notes.append(f"{found.unclear}: not used")
    values, seen = rows.values[timing.order], seen[timing.order]
    track = from_names(values[seen], rows.names, str(path))
    turned = rotations_of(values[seen], rows.names)
    texts = [f"{' '.join(words(name))}: {value}" for name, value in rows.facts
             if not isinstance(value, list) or len(value) == 2]
    track, turned = scaled(track, rows.names, texts, notes), in_radians(turned, rows.names + texts, notes)
    track = tidy(track, str(path))
    clocks = [each for each in (found.stamps, found.codes, found.numbers) if each is not None]
    clock = [clocks[0][row] for row in timing.order[seen]] if clocks and not ignore_timecodes else None
    problem = several_faces(track, clock)
    if problem:
        raise ValueError(f"{path}: {problem}; expected those of one face: write each into a file of its own")
    at_30 = lambda values: resample(values, timing.times[seen], timing.length)
    return Capture(at_30(track), at_30(turned) if turned.any() else None, [*notes, *timing.notes], timing.how,
                   timing.rate, timing.length)


def several_faces(track, clock) -> str:
    """Why rows (R, K) must be of several faces, "" if they are of one. clock: R times or None.

    One of: a row is far from the previous one, but near the one before it; rows of the same time differ more from each
    other than from those of the next time; most times come back later."""
    in_turn = "the rows are of two or more faces in turn"
    far = lambda gap: float(np.abs(track[gap:] - track[:-gap]).sum(axis=1).mean())
    if len(track) > 5 and far(1) > 0.05 and far(1) > 2 * far(2):
        return in_turn
    if clock is None or len(track) < 6:
        return ""
    _, numbered, times = np.unique(clock, return_inverse=True, return_counts=True)
    runs = run_lengths(numbered)
    if len(runs) > 1.5 * len(times):
        return "most of its times are there twice or more, in rows far from each other: several faces or takes"
    ends, same, next_one = np.cumsum(runs), [], []
    for start, end, after in zip(ends - runs, ends, [*ends[1:], 0]):
        if end - start > 1 and after and after - end > 1 and after - start < 20:
            apart = lambda row, rows: np.abs(track[row] - track[rows]).sum(axis=1)
            same += [apart(row, [row - 1]).min() for row in range(start + 1, end)]
            next_one += [apart(row, range(end, after)).min() for row in range(start + 1, end)]
    return in_turn if len(same) > 2 and np.mean(same) > 0.05 and np.mean(same) > 2 * np.mean(next_one) else ""


def read_array(path: Path, order) -> Rows:
    """Read the array (R, C) in a .npy file, or the only one in a .npz; columns as in `ordered`. Nothing is unpickled.

    Raises ValueError for anything else, or where the header and the size of the file differ.
    """
    try:
        values = array_of(unpacked(path) if path.suffix.lower() == ".npz" else path.read_bytes())
    except Exception as error:                      # numpy and zipfile raise many kinds for damaged files
        raise ValueError(f"{path} is not a bare {path.suffix} array: {error or type(error).__name__}") from None
    if values.ndim != 2 or len(values) > MAX_ROWS:
        raise ValueError(f"{path} has shape {values.shape}, expected (frames, 52), at most {MAX_ROWS} frames")
    names, notes = ordered(values.shape[1], order, str(path))
    return Rows(values.astype(np.float32), names, bare=True, notes=notes)


def unpacked(path: Path) -> bytes:
    """The bytes of the only array in an npz file. Raises ValueError if there are more, or if it is too large."""
    with zipfile.ZipFile(path) as file:
        if len(file.infolist()) != 1 or not file.namelist()[0].endswith(".npy"):
            raise ValueError(f"it holds {few(file.namelist()) or 'nothing'}, expected one array")
        member, = file.infolist()
        if member.file_size > MAX_BYTES:
            raise ValueError(f"unpacked it has {member.file_size >> 20} MiB, expected at most {MAX_BYTES >> 20}")
        return file.read(member)


def array_of(data: bytes) -> np.ndarray:
    """The bytes of a .npy file -> its array. Raises ValueError if it has no numbers, or not as many as it says."""
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, by_column, kind = read(file)             # version 3 is as 2; only arrays with field names need it
    if kind.kind not in "fiub":
        raise ValueError(f"it holds {kind}, expected numbers")
    count, there = math.prod(shape), len(data) - file.tell()
    if min(shape, default=0) < 0 or count * kind.itemsize != there:
        raise ValueError(f"its header claims {shape} of {kind}, there are {there} bytes")
    return np.frombuffer(data, kind, count, file.tell()).reshape(shape, order="F" if by_column else "C")


READERS = {".csv": read_table, ".tsv": read_table, ".txt": read_table, ".json": read_json, ".jsonl": read_json,
           ".npy": read_array, ".npz": read_array}
