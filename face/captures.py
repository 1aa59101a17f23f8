"""Face captures of other tools -> tracks: tables (.csv .tsv .txt), json, arrays (.npy .npz). docs/spec/face.md 2, 3.

One reader for each of the three kinds gives `Rows`; `read_capture` does the rest: names to the 52 shapes (arkit.py),
times (timing.py), 30 frames per second. What is not understood is refused with the cell at fault, what is left out is
said in the notes. Left and right are taken as the file names them: a mirrored picture cannot be known from it.

Shapes: R rows of a file, C its columns, T face frames at 30 per second, K = 52 blendshapes.
"""
import csv
import io
import itertools
import json
import math
import re
import zipfile
from array import array
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

import disk
from face.arkit import ROTATIONS, ORDERS, few, folded, from_names, listed, matches, ordered, resample, sources, tidy
from face.timing import MAX_SECONDS, frame_times

MAX_BYTES = 200 << 20               # of a file, and of an array once unpacked
MAX_ROWS = MAX_SECONDS * 60         # as long as a capture may be, at a camera's 60 frames per second
MAX_COLUMNS = 2000
HEADER = 50, 100_000                # so many first lines of a table may hold its names, in so many letters at most

# Columns that say when a row was, as `folded` writes their names. A unit at the end may be missing.
TIME = re.compile("(?:times?|timestamps?|timecodes?|ts|t|elapsed|elapsedtime)?(?:in)?"
                  "(?:(s|secs?|seconds?)|(ms|msecs?|millis|milliseconds?)|(us|microseconds?)|(ns|nanoseconds?))?")
FRAME = re.compile("(?:frame|index|idx)s?|frame(?:number|num|no|count|index|idx|id)")
CODE = re.compile(r"\d+(?:[:;.]\d+)+")
DATE = re.compile(r"^\d{4}-\d\d-\d\d[T ]|(?:Z|[+-]\d\d:\d\d)$")       # around the clock of an ISO date

# Keys of json, as `folded` writes them.
RATES = {"exportfps", "fps", "framerate", "framespersecond", "capturefps", "samplerate", "samplingrate"}
RATE_LIKE = re.compile("rate|fps|hertz|hz$|duration|interval|frametime|deltatime|timestep")
NAMES = {"facsnames", "names", "blendshapenames", "blendshapekeys"}
SHAPE, SCORE = {"categoryname", "blendshape", "shape", "name"}, {"score", "weight", "value"}
WEIGHTS = {"weightmat", "frames", "weights", "blendshapes", "blendshapevalues", "blendshapeweights", "faceblendshapes",
           "categories", "coefficients", "values", "data"}


@dataclass
class Capture:
    """A capture that was read. track (T, K) in [0, 1]; rotations (T, 9) in the order of ROTATIONS, None where the file
    has none but zeros; rate and length (seconds) of the file, and how they were found; notes to print."""
    track: np.ndarray
    rotations: np.ndarray | None
    notes: list
    how: str
    rate: float
    length: float


@dataclass
class Rows:
    """A file as its reader gives it: values (R, C) float32 of the columns `names`; rows without a face hold NaN.

    codes: timecodes; stamps (R,): times in seconds; numbers (R,): frame numbers; stated: the file's own rate. They are
    None where the file has none. wrong: what to say of the first timecode that is none. bare: `order` was needed."""
    values: np.ndarray
    names: list
    codes: list | None = None
    stamps: np.ndarray | None = None
    numbers: np.ndarray | None = None
    stated: object = None
    wrong: str = ""
    bare: bool = False
    notes: list = field(default_factory=list)


def read_track(path, fps: float | None = None, order: str | None = None, ignore_timecodes: bool = False) -> np.ndarray:
    """A face track in a file -> (T, K) at 30 frames per second: `read_capture` without the rest."""
    return read_capture(path, fps, order, ignore_timecodes).track


def read_capture(path, fps: float | None = None, order: str | None = None, ignore_timecodes: bool = False) -> Capture:
    """A capture in a file -> its track at 30 frames per second, and what there is to say of it.

    fps: the rate of the file, before whatever it says itself. order: of the columns of a bare array, one of ORDERS.
    ignore_timecodes: the rows follow each other at an even rate, whatever their times are.
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
    rows = READERS[path.suffix.lower()](path, order)
    count, notes = len(rows.values), rows.notes
    if rows.wrong and not ignore_timecodes:
        raise ValueError(rows.wrong)
    stated = None if fps is not None or rows.stated is None else number(rows.stated)
    if stated is not None and not 0 < stated < math.inf:
        raise ValueError(f"{path} states {few([rows.stated])} frames per second, expected a positive number; --fps "
                         "overrules it")
    if order and not rows.bare:
        notes.append(f"--order {order} is not used: the file has names")
    seen = ~np.isnan(rows.values).all(axis=1)
    if not seen.any():
        raise ValueError(f"{path} has no face in any of its {count} rows: nothing to show")
    if not seen.all():
        notes.append(f"{count - seen.sum()} of {count} rows have no face: those around them are joined")
    track = tidy(from_names(rows.values[seen], rows.names, str(path)), str(path))
    turned = rotations_of(rows.values[seen], rows.names)
    timing = frame_times(count, rows.codes, rows.stamps, rows.numbers, path.stem, stated, fps, ignore_timecodes)
    at_30 = lambda values: resample(values, timing.times[seen], timing.length)
    return Capture(at_30(track), at_30(turned) if turned.any() else None, [*notes, *timing.notes], timing.how,
                   timing.rate, timing.length)


def rotations_of(values, names: list) -> np.ndarray:
    """Values (R, C) of the columns called `names` -> (R, 9) in the order of ROTATIONS, zero where there are none."""
    ours, zero = matches(names), np.zeros(len(values), np.float32)
    return np.stack([values[:, ours.index(name)] if name in ours else zero for name in ROTATIONS], axis=1)


def opened(path: Path) -> io.TextIOWrapper:
    """The text of a file: UTF-16 where its first bytes say so, else UTF-8, else as Windows writes it (cp1252)."""
    data = path.read_bytes()
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        data.decode(encoding)
    except UnicodeDecodeError:
        encoding = "cp1252"
    return io.TextIOWrapper(io.BytesIO(data), encoding, errors="replace", newline="")


# --- rows of named cells: what tables and json have in common --------------------------------------------------------

def number(cell) -> float:
    """A cell -> its number, with a decimal point or comma; NaN where it is none."""
    try:
        return float(cell.replace(",", ".") if isinstance(cell, str) else math.nan if isinstance(cell, bool) else cell)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def blank(cell) -> bool:
    """Whether a cell holds nothing: empty, null, or NaN as pandas writes it."""
    return cell is None or cell != cell or isinstance(cell, str) and cell.lower() in ("", "nan")


def numbers(cells: list, names: list, row: str) -> list:
    """The numbers in the cells. Raises ValueError for the first that holds none; `row` names file and row."""
    try:
        values = [float(cell) for cell in cells]                            # fast, where all is well
    except (TypeError, ValueError, OverflowError):
        values = [number(cell) for cell in cells]
    if not math.isfinite(sum(values)):
        for name, cell, value in zip(names, cells, values):
            if not math.isfinite(value):
                seen = "is blank" if cell in (None, "") else f"holds {few([cell])!r}"
                raise ValueError(f"{row}, column {name}: the cell {seen}, expected a number")
    return values


def parsed(header: list, rows, path: Path, kind: str) -> Rows:
    """Rows of cells under their names -> Rows.

    rows: (number, cells), the number as `kind` (row, frame) of the file is counted. A row whose shapes are all blank,
    or whose BlendShapeCount is 0, has no face. Raises ValueError for a cell or names that are wrong (`sources`).
    """
    if len(header) > MAX_COLUMNS:
        raise ValueError(f"{path} has {len(header)} columns, expected at most {MAX_COLUMNS}")
    shapes = {i for columns in sources(header, str(path)) for i in columns}
    used = sorted(shapes | {i for i, our in enumerate(matches(header)) if our in ROTATIONS})
    names, plain = [header[i] for i in used], [re.sub(r"^unnamed\d+$", "", folded(name)) for name in header]
    first = lambda fits: next((i for i, name in enumerate(plain) if name and i not in used and fits(name)), None)
    code, faces, counted = first("timecode".__eq__), first("blendshapecount".__eq__), first(FRAME.fullmatch)
    time = first(lambda name: name != "timecode" and TIME.fullmatch(name))
    clocks = {i: [] for i in (code, time, counted) if i is not None}
    flat, where = array("f"), []
    for at, cells in rows:
        if len(where) == MAX_ROWS:
            raise ValueError(f"{path} has more than {MAX_ROWS} rows, expected at most {MAX_SECONDS // 3600} hours")
        if faces is not None and number(cells[faces]) == 0 or all(blank(cells[i]) for i in shapes):
            flat.extend([math.nan] * len(used))
        else:
            flat.extend(numbers([cells[i] for i in used], names, f"{path}: {kind} {at}"))
        where.append(at)
        for i, column in clocks.items():
            column.append(cells[i])
    result = Rows(np.array(flat, np.float32).reshape(len(where), len(used)), names)
    for i, column in clocks.items():
        what, times = timed(header[i], column, i == counted)
        if what and getattr(result, what) is None:
            setattr(result, what, times)
            used.append(i)
    result.wrong = next((f"{path}: {kind} {at} has the timecode {text[:40]!r}, expected HH:MM:SS:FF or a number; "
                         "--ignore-timecodes takes the rows at an even rate"
                         for at, text in zip(where, result.codes or []) if not CODE.fullmatch(text)), "")
    left = [name for i, name in enumerate(header) if plain[i] and i not in (*used, faces)]
    if left:
        result.notes.append(f"left out, as they are none of the 52 shapes: {few(left)}")
    odd = [name for name in left if re.search("time|pts|tick|sec|fps|rate|stamp", folded(name))]
    if odd and result.codes is None and result.stamps is None and result.numbers is None:
        result.notes.append(f"not understood as times: {few(odd)}; if one of them is, call it `time`, or give --fps")
    return result


def timed(name: str, cells: list, is_number: bool) -> tuple:
    """A column of times or frame numbers -> the field of Rows that it fills, "" for none, and its values for that.

    Times without a unit count what makes a step between rows less than a second: 33.3 is milliseconds; steps of exactly
    1 are frame numbers. What is no number is a timecode.
    """
    values = np.array([number(cell) for cell in cells])
    if not np.isfinite(values).all():
        codes = [DATE.sub("", str(cell).strip()).replace(",", ".") for cell in cells]
        return ("", None) if is_number else ("codes", codes)
    step = abs(float(np.median(np.diff(values)))) if len(values) > 1 else 0
    units = () if is_number else TIME.fullmatch(folded(name)).groups()
    unit = next((k for k, said in enumerate(units) if said), None)
    if is_number or unit is None and step == 1:
        return "numbers", values
    return "stamps", values / 1000 ** (next((k for k in range(3) if step < 1000 ** k), 3) if unit is None else unit)


# --- the three readers -----------------------------------------------------------------------------------------------

def read_table(path: Path, order) -> Rows:
    """A table as recorders and spreadsheets write it, with one of the delimiters , ; tab and |.

    Its names are the line, among the first of HEADER, that holds most of them. Raises ValueError where none does, or
    for a row that is longer than that one."""
    text, most = opened(path), 0
    for line, content in enumerate(itertools.islice(text, HEADER[0]), 1):
        for delimiter in ",;\t|" if len(content) <= HEADER[1] and "\0" not in content else "":
            names = [name.strip() for name in next(csv.reader([content], delimiter=delimiter), [])]
            known = sum(our is not None for our in matches(names, str(path)))
            if known > most:
                most, header, form = known, names, (line, delimiter)
    if not most:
        raise ValueError(f"{path}: none of its first {HEADER[0]} lines holds names of ARKit shapes, such as jawOpen")
    text.seek(0)
    rows = csv.reader(itertools.islice(text, form[0], None), delimiter=form[1])
    return parsed(header, filled(rows, form[0] + 1, len(header), path), path, "row")


def filled(rows, start: int, width: int, path: Path):
    """The rows of a table that are not empty, as (row number, its cells, blank ones added to the width)."""
    at = start - 1
    try:
        for at, cells in enumerate(rows, start):
            cells = [cell.strip() for cell in cells]
            if any(cells[width:]):
                raise ValueError(f"{path}: row {at} has {len(cells)} cells, expected {width}, one for each name")
            if any(cells):
                yield at, cells + [""] * (width - len(cells))
    except csv.Error as error:
        raise ValueError(f"{path}: row {at + 1} is no row of a table: {error}") from None


def read_json(path: Path, order) -> Rows:
    """Json in one of these shapes, each with or without a rate (RATES) and times:

    a list of names and rows of weights (Audio2Face: facsNames, weightMat; BEAT, LAM: names, frames[].weights); an
    object of names and weights for each frame; MediaPipe's categories for each frame; a list of weights for each name;
    rows of weights alone, for which `order` holds. Raises ValueError for another one.
    """
    try:
        try:
            value = json.loads(opened(path).read())
        except ValueError as error:
            raise ValueError(f"{path} is not valid json ({error}): fetch or write it again") from None
        return framed(value, path, order)
    except RecursionError:
        raise ValueError(f"{path} is not valid json (nested too deep): fetch or write it again") from None


def framed(value, path: Path, order) -> Rows:
    """A json value as `read_json` describes it -> Rows."""
    stated, names, times, notes = None, None, {}, []
    while isinstance(value, dict):                                          # down to the frames
        for facts in (value, *(part for part in value.values() if isinstance(part, dict))):
            stated = entry(facts, RATES) if stated is None else stated
            names = entry(facts, NAMES, listed(facts)) if names is None else names
            notes += [f"{key} {fact} is not understood: if it says the rate, give --fps" for key, fact in facts.items()
                      if RATE_LIKE.search(folded(key)) and folded(key) not in RATES and type(fact) in (int, float)]
        lists = {key: part for key, part in value.items() if isinstance(part, list)}
        times |= {key: part for key, part in lists.items() if TIME.fullmatch(folded(key))}
        shapes = {key: part for (key, part), our in zip(lists.items(), matches([*lists])) if our}
        inner = entry({key: part for key, part in value.items() if isinstance(part, (list, dict))}, WEIGHTS)
        if shapes:                                                          # a list for each name
            rows = len(next(iter(shapes.values())))
            lists = {key: part for key, part in lists.items() if key in shapes or len(part) == rows}
            same_length(lists, path)
            names, value = [*lists], [*map(list, zip(*lists.values()))]
        else:
            value = [value] if inner is None else inner
    if not isinstance(value, list) or not value:
        raise ValueError(f"{path} has no frames: nothing to show")
    value = [value] if scored(value[0]) else value                          # MediaPipe's categories of a single frame
    same_length({"frames": value} | times, path)
    row = next((row for row in value if row), None)
    bare = names is None and isinstance(row, list) and not any(isinstance(cell, (list, dict)) for cell in row)
    if bare:
        names, said = ordered(len(row), order, str(path))
        notes += said
    elif names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)
                                    and len(set(names)) == len(names)):
        raise ValueError(f"{path}: its names are {few([names])}, expected a list of different names")
    frame = lambda i: cells_of(value[i], names, f"{path}: frame {i}") | {key: part[i] for key, part in times.items()}
    header = {}
    for i in range(len(value)):
        header.update(frame(i))
    result = parsed([*header], ((i, [*map(frame(i).get, header)]) for i in range(len(value))), path, "frame")
    result.stated, result.bare, result.notes = stated, bare, notes + result.notes
    return result


def entry(values: dict, keys: set, missing=None):
    """The first value of an object whose key is one of `keys`, or `missing`."""
    return next((value for key, value in values.items() if folded(key) in keys), missing)


def same_length(lists: dict, path: Path) -> None:
    """Raises ValueError with the name of a list that has another length than the first one."""
    first = next(iter(lists))
    for name, part in lists.items():
        if len(part) != len(lists[first]):
            raise ValueError(f"{path}: {few([name])} has {len(part)} values, {few([first])} {len(lists[first])}")


def scored(item) -> tuple | None:
    """(name, weight) of an object such as {"categoryName": "jawOpen", "score": 0.1}, None for anything else."""
    if not isinstance(item, dict) or entry(item, SCORE, item) is item or not isinstance(entry(item, SHAPE), str):
        return None
    return entry(item, SHAPE), entry(item, SCORE)


def cells_of(frame, names, where: str) -> dict:
    """Name -> cell of a frame of json: an object, with what is nested under the keys of WEIGHTS, a list of weights in
    the order of `names`, or a list of categories. Raises ValueError otherwise; `where` names file and frame."""
    if isinstance(frame, list) and len(frame) == 1 and isinstance(frame[0], (list, dict)) and not scored(frame[0]):
        return cells_of(frame[0], names, where)                             # MediaPipe: the first of one face
    pairs = []
    if isinstance(frame, dict):
        for key, value in frame.items():
            nested = isinstance(value, (list, dict)) and folded(key) in WEIGHTS
            pairs += cells_of(value, names, where).items() if nested else [(key, value)]
    elif isinstance(frame, list) and names is not None and frame and not scored(frame[0]):
        if len(frame) != len(names):
            raise ValueError(f"{where} has {len(frame)} weights, expected {len(names)}")
        pairs = [*zip(names, frame)]
    elif isinstance(frame, list):
        pairs = [*map(scored, frame)]
    if not isinstance(frame, (dict, list, type(None))) or not all(pairs):
        raise ValueError(f"{where} is {few([frame])}, expected the weights of one face, with their names")
    cells = dict(pairs)
    if len(cells) < len(pairs):
        raise ValueError(f"{where} has the same name twice")
    return cells


def read_array(path: Path, order) -> Rows:
    """The array (R, C) in a .npy file, or the only one in a .npz: numbers, columns as `ordered`. Nothing is unpickled.

    Raises ValueError for another array, or one that is larger or smaller than its own header says.
    """
    try:
        values = array_of(unpacked(path) if path.suffix.lower() == ".npz" else path.read_bytes())
    except Exception as error:                      # numpy and zipfile raise many kinds at damaged files
        raise ValueError(f"{path} is not a bare {path.suffix} array: {error or type(error).__name__}") from None
    if values.ndim != 2 or len(values) > MAX_ROWS:
        raise ValueError(f"{path} has shape {values.shape}, expected (frames, 52), at most {MAX_ROWS} frames")
    names, notes = ordered(values.shape[1], order, str(path))
    return Rows(values.astype(np.float32), names, bare=True, notes=notes)


def unpacked(path: Path) -> bytes:
    """The only member of an npz file. Raises ValueError where there are more, or where it is too large."""
    with zipfile.ZipFile(path) as file:
        member, *others = file.infolist()
        if others:
            raise ValueError(f"it holds {few(file.namelist())}, expected one array")
        if member.file_size > MAX_BYTES:
            raise ValueError(f"unpacked it has {member.file_size >> 20} MiB, expected at most {MAX_BYTES >> 20}")
        return file.read(member)


def array_of(data: bytes) -> np.ndarray:
    """The array in the bytes of a .npy file, which must hold all of it. Raises ValueError otherwise."""
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, by_column, kind = read(file)             # version 3 is for names in Unicode, which numbers have not
    if kind.kind not in "fiub":
        raise ValueError(f"it holds {kind}, expected numbers")
    count, there = math.prod(shape), len(data) - file.tell()
    if min(shape, default=0) < 0 or count * kind.itemsize != there:
        raise ValueError(f"its header claims {shape} of {kind}, there are {there} bytes")
    return np.frombuffer(data, kind, count, file.tell()).reshape(shape, order="F" if by_column else "C")


READERS = {".csv": read_table, ".tsv": read_table, ".txt": read_table, ".json": read_json, ".npy": read_array,
           ".npz": read_array}
