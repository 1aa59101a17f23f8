"""Tables and json of other tools -> `Rows`: weights, and what may say something about time. docs/spec/face.md 2, 3.

A cell that is not understood raises an error that names it. evidence.py reads the columns and facts about time.

Letters: R rows of a file, C its columns.
"""
import csv
import itertools
import json
import math
import re
from array import array
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

import disk
from face.arkit import ROTATIONS, few, folded, listed, matches, ordered, sources
from face.timing import MAX_SECONDS, middle
from face.words import UNITS, blank, is_clock, kind_of, may_say_time, number, readable, seen

MAX_ROWS = MAX_SECONDS * 60         # the longest capture at a camera's 60 frames per second
MAX_COLUMNS = 2000
MAX_KEPT = 64                       # columns kept because they may say something about time
HEADER = 50, 100_000                # the names of a table are in its first 50 lines, in a line of 100,000 characters

# Keys of json, folded (arkit.folded).
NAMES = {"facsnames", "names", "blendshapenames", "blendshapekeys"}
SHAPE, SCORE = {"categoryname", "blendshape", "shape", "name"}, {"score", "weight", "value"}
WEIGHTS = {"weightmat", "frames", "weights", "blendshapes", "blendshapevalues", "blendshapeweights", "faceblendshapes",
           "categories", "coefficients", "values", "data"}


@dataclass
class Rows:
    """The content of a file, as its reader returns it."""
    values: np.ndarray                                  # (R, C) float32, weights and rotations; NaN: no face in the row
    names: list                                         # of the C columns
    columns: list = field(default_factory=list)         # (name, R cells) of others that may say something about time
    facts: list = field(default_factory=list)           # (name, value) that the file states once
    kind: str = "row"                                   # what a row is called in messages: row or frame
    where: list = field(default_factory=list)           # the number of each row in the file, for messages
    others: list = field(default_factory=list)          # names of all columns that are not among the C
    bare: bool = False                                  # the file has no names, `order` gave them
    notes: list = field(default_factory=list)           # lines to print


def numbers(cells: list, names: list, row: str) -> list:
    """The numbers in the cells. Raises ValueError for the first that is none; `row` names file and row."""
    try:
        values = [float(cell) for cell in cells]                            # the fast path
    except (TypeError, ValueError, OverflowError):
        values = [number(cell) for cell in cells]
    if not math.isfinite(sum(values)) or any("_" in cell for cell in cells if isinstance(cell, str)):
        for name, cell, value in zip(names, cells, values):
            if not math.isfinite(value) or not math.isfinite(number(cell)):
                raise ValueError(f"{row}, column {name}: the cell {seen(cell)}, expected a number")
    return values


def parsed(header: list, rows, path: Path, kind: str, facts: list) -> Rows:
    """Column names, rows of cells and the facts of a file -> Rows.

    rows: (number, cells), the number for messages. A row whose shapes are all blank, or whose BlendShapeCount is 0, has
    no face. A line that is a comment or a sum is left out: most of its shapes are blank, and it has text where the
    other rows have numbers or times. Raises ValueError for a cell or names that are wrong.
    """
    if len(header) > MAX_COLUMNS:
        raise ValueError(f"{path} has {len(header)} columns, expected at most {MAX_COLUMNS}")
    ours, notes = matches(header), []
    shapes = {i for columns in sources(header, str(path)) for i in columns}
    rows = iter(rows)
    first = list(itertools.islice(rows, 20))
    filled_in = {i for i in shapes if any(not blank(cells[i]) for _, cells in first)}
    empty = shapes - filled_in if {ours[i] for i in shapes - filled_in} == {"tongueOut"} else set()
    shapes = sorted(shapes - empty)
    used = sorted({*shapes} | {i for i, our in enumerate(ours) if our in ROTATIONS})
    names = [header[i] for i in used]
    count = next((i for i, name in enumerate(header) if folded(name) == "blendshapecount"), None)
    unused = [i for i in range(len(header)) if i not in {*used, *empty, count}]
    kept = [i for i in unused if may_say_time(header[i], [cells[i] for _, cells in first])][:MAX_KEPT]
    numeric = sorted([*shapes, *(i for i in kept if sum(readable(cells[i]) for _, cells in first) > len(first) / 2)])
    columns = {i: [] for i in kept}
    flat, where, comments = array("f"), [], []
    for at, cells in itertools.chain(first, rows):
        if len(where) == MAX_ROWS:
            raise ValueError(f"{path} has more than {MAX_ROWS} rows, expected at most {MAX_SECONDS // 3600} hours")
        missing = sum(blank(cells[i]) for i in shapes) if blank(cells[shapes[-1]]) else 0
        if missing > len(shapes) / 2 and not all(blank(cells[i]) or readable(cells[i]) for i in numeric):
            comments.append((f"{kind} {at}", " ".join(str(cell) for cell in cells if not blank(cell))))
            continue
        for i in empty:
            if not blank(cells[i]):
                raise ValueError(f"{path}: {kind} {at}, column {header[i]} {seen(cells[i])}, before it is blank")
        if count is not None and number(cells[count]) == 0 or missing == len(shapes):
            flat.extend([math.nan] * len(used))
        else:
            flat.extend(numbers([cells[i] for i in used], names, f"{path}: {kind} {at}"))
        where.append(at)
        for i, column in columns.items():
            column.append(cells[i])
    notes += [f"{header[i]} is blank throughout: taken as 0" for i in empty]
    notes += [f"left out, as they are no {kind}s of weights: {few(map(': '.join, comments))}"] if comments else []
    others = [header[i] for i in unused if re.sub(r"^unnamed\d+$", "", folded(header[i]))]
    return Rows(np.array(flat, np.float32).reshape(len(where), len(used)), names,
                [(header[i], column) for i, column in columns.items()], facts + comments, kind, where, others,
                notes=notes)


def read_table(path: Path, order) -> Rows:
    """Read a table with one of the delimiters , ; tab and |.

    The line of names is the one, among the first (see HEADER), with most known names. Raises ValueError if there is
    none, or if a row is longer than it."""
    most = 0
    with disk.open_text(path) as text:
        for line, content in enumerate(itertools.islice(text, HEADER[0]), 1):
            for delimiter in ",;\t|" if len(content) <= HEADER[1] and "\0" not in content else "":
                names = [name.strip() for name in next(csv.reader([content], delimiter=delimiter), [])]
                known = sum(our is not None for our in matches(names, str(path)))
                if known > most:
                    most, header, form = known, names, (line, delimiter)
        if not most:
            raise ValueError(f"{path}: none of its first {HEADER[0]} lines holds names of ARKit shapes, such as "
                             "jawOpen: is it a table?")
        text.seek(0)
        above = [*itertools.islice(text, form[0] - 1)]
        rows = csv.reader(itertools.islice(text, 1, None), delimiter=form[1])
        rows = padded_rows(rows, form[0] + 1, len(header), path)
        return parsed(header, rows, path, "row", facts_above(above, form[1]))


def facts_above(lines: list, delimiter: str) -> list:
    """Facts in the lines above the names of a table: `# fps: 60`, `Frame Rate,60`, `FrameRate=60`, maybe several in a
    line; and each line as a whole."""
    facts = []
    for line in lines:
        cells = [cell.strip(" \t\r\n#%/\"';") for cell in re.split(f"[{re.escape(delimiter)};=]|:(?!\\d)|\t", line)]
        facts += [(name, value) for name, value in zip(cells, cells[1:]) if kind_of(name) or is_clock(name)]
        facts += [("above the names:", line.strip(" \t\r\n,;"))]
    return facts


def padded_rows(rows, start: int, width: int, path: Path):
    """Yield (row number, cells) of the rows that are not empty, padded with blank cells to `width`."""
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
    """Read json in one of these forms, each with or without a rate and times:

    a list of names and rows of weights (Audio2Face: facsNames, weightMat; BEAT, LAM: names, frames[].weights); an
    object {name: weight} per frame; MediaPipe's categories per frame; a list of weights per name; rows of weights
    without names, which are in `order`. Raises ValueError for any other form.
    """
    with disk.open_text(path) as file:
        text = file.read()
    try:
        return framed(unkeyed(values_of(text, path)), path, order)
    except (json.JSONDecodeError, RecursionError) as error:
        why = "nested too deep" if isinstance(error, RecursionError) else error
        raise ValueError(f"{path} is not valid json ({why}): fetch or write it again") from None


def values_of(text: str, path: Path):
    """The value in a json text; if it holds several (json lines), a list of them. If the first of several objects has
    no key of the second, it is a header: then the header, with the others under "frames"."""
    integer = lambda digits: int(digits) if len(digits) < 400 else math.inf     # int() refuses thousands of digits
    decoder = json.JSONDecoder(parse_int=integer, object_pairs_hook=partial(unique, where=path))
    space, found = re.compile(r"\s*"), []
    at = space.match(text).end()
    while not found or at < len(text):
        value, at = decoder.raw_decode(text, at)
        at = space.match(text, at).end()
        found.append(value)
    if len(found) > 2 and all(isinstance(value, dict) for value in found[:2]) and not {*found[0]} & {*found[1]}:
        return found[0] | {"frames": found[1:]}
    return found if len(found) > 1 else found[0]


def unkeyed(value):
    """Frames in an object under their numbers, times or timecodes, {"0": {...}, "1": {...}} -> a list of the frames and
    a list of these keys."""
    if not isinstance(value, dict):
        return value
    parts = {key: part for key, part in value.items() if part and isinstance(part, (dict, list))}
    for name, form in (("frame", r"(\D*)(\d+)"), ("time", r"()([\d:;.,]+)")):
        found = [match for match in (re.fullmatch(form, key) for key in parts) if match]
        if len(found) > max(1, len(parts) / 2) and len({match[1] for match in found}) == 1:
            keys = [int(match[2]) if name == "frame" else match[2] for match in found]
            plain = name == "time" or found[0][1] or middle(np.diff(sorted(keys))) == 1
            frames = [value.pop(match[0]) for match in found]
            return value | {name if plain else "time": keys, "frames": frames}
    return {key: unkeyed(part) for key, part in value.items()}


def unique(pairs: list, where) -> dict:
    """(key, value) pairs -> dict. Raises ValueError for a key that is there twice; `where` names the file."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = disk.first_duplicate(key for key, _ in pairs)
        raise ValueError(f"{where} has {few([twice])} twice in one object: which one holds?")
    return found


def framed(value, path: Path, order) -> Rows:
    """A json value as `read_json` describes it -> Rows."""
    names, notes, facts = None, [], []
    if isinstance(value, dict):
        facts = [*leaves(value)]
    while isinstance(value, dict):                                          # descend to the frames
        for part in (value, *(part for part in value.values() if isinstance(part, dict))):
            names = entry(part, NAMES, listed(part)) if names is None else names
        lists = {key: part for key, part in value.items() if isinstance(part, list)}
        shapes = {key: part for (key, part), our in zip(lists.items(), matches([*lists])) if our}
        inner = entry({key: part for key, part in value.items() if isinstance(part, (list, dict))}, WEIGHTS)
        if shapes:                                                          # a list of weights per name
            same_length(shapes, path)
            used = {*map(id, shapes.values())}                      # weights, so neither times nor other columns
            facts = [(key, part) for key, part in facts if id(part) not in used]
            names, value = [*shapes], [*map(list, zip(*shapes.values()))]
        else:
            value = [value] if inner is None else inner
    if not isinstance(value, list) or not value:
        raise ValueError(f"{path} has no frames: nothing to show")
    value = [value] if category(value[0]) else value                          # MediaPipe's categories of a single frame
    times = {key: part for key, part in facts if isinstance(part, list) and part is not names
             and not any(isinstance(cell, (list, dict)) for cell in part)
             and (len(part) == len(value) or is_clock(key.split(".")[-1]) and len(part) > 1)}
    same_length({"frames": value} | times, path)
    row = next((row for row in value if row), None)
    bare = names is None and isinstance(row, list) and not any(isinstance(cell, (list, dict)) for cell in row)
    if bare:
        names, notes = ordered(len(row), order, str(path))
    elif names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise ValueError(f"{path}: its names are {few([names])}, expected a list of names")
    unique([(name, None) for name in names or ()], f"{path}: its list of names")
    frame = lambda i: cells_of(value[i], names, f"{path}: frame {i}") | {key: part[i] for key, part in times.items()}
    header = {}
    for i in range(len(value)):
        header.update(frame(i))
    facts = [(key, part) for key, part in facts if key not in times]
    result = parsed([*header], ((i, [*map(frame(i).get, header)]) for i in range(len(value))), path, "frame", facts)
    result.bare, result.notes = bare, notes + result.notes
    return result


def leaves(value: dict, above: str = ""):
    """Yield (name, value) of the numbers, texts and lists in an object, nested ones as `outer.inner`.

    Objects that stand for one number are yielded as one: {"numerator": 30000, "denominator": 1001}, {"value": 1001,
    "timescale": 30000}, {"sec": 12, "nanosec": 33000000}. For the last two the name gets the unit, " s"."""
    for key, part in value.items():
        name = above + key
        if isinstance(part, list) and 0 < len(part) < 5 and all(isinstance(item, dict) for item in part):
            for item in part:
                yield from leaves(item, name + ".")
        elif not isinstance(part, dict):
            yield name, part
        if not isinstance(part, dict):
            continue
        keys = {folded(each): each for each in part}
        numeric = {each: part[key] for each, key in keys.items() if type(part[key]) in (int, float)}
        top, under = (next((numeric[each] for each in spelled if each in numeric), None) for spelled in (
            ("numerator", "num", "value"), ("denominator", "den", "timescale")))
        if top is not None and under:
            yield name + " s" * ("timescale" in numeric), top / under
        elif numeric and {*numeric} == {*keys} <= {*UNITS}:
            yield name + " s", sum(number * UNITS[each] for each, number in numeric.items())
        else:
            yield from leaves(part, name + ".")


def entry(values: dict, keys: set, missing=None):
    """The first value whose folded key is one of `keys`, or `missing`."""
    return next((value for key, value in values.items() if folded(key) in keys), missing)


def same_length(lists: dict, path: Path) -> None:
    """Raises ValueError naming a list whose length differs from the first one's."""
    first = next(iter(lists))
    for name, part in lists.items():
        if len(part) != len(lists[first]):
            raise ValueError(f"{path}: {few([name])} has {len(part)} values, {few([first])} {len(lists[first])}")


def category(item) -> tuple | None:
    """{"categoryName": "jawOpen", "score": 0.1} -> ("jawOpen", 0.1); None for anything else."""
    if not isinstance(item, dict) or entry(item, SCORE, item) is item or not isinstance(entry(item, SHAPE), str):
        return None
    return entry(item, SHAPE), entry(item, SCORE)


def cells_of(frame, names, where: str) -> dict:
    """{name: cell} of a frame of json, which is an object, maybe with weights nested under a key of WEIGHTS; a list of
    weights in the order of `names`; or a list of categories. Raises ValueError otherwise; `where` names the frame."""
    if isinstance(frame, list) and len(frame) == 1 and isinstance(frame[0], (list, dict)) and not category(frame[0]):
        return cells_of(frame[0], names, where)                             # MediaPipe: a list of faces
    pairs = []
    if isinstance(frame, dict):
        for key, value in frame.items():
            nested = isinstance(value, (list, dict)) and folded(key) in WEIGHTS
            pairs += cells_of(value, names, where).items() if nested else (
                leaves({key: value}) if isinstance(value, dict) else [(key, value)])
    elif isinstance(frame, list) and names is not None and frame and not category(frame[0]):
        if len(frame) != len(names):
            raise ValueError(f"{where} has {len(frame)} weights, expected {len(names)}")
        pairs = [*zip(names, frame)]
    elif isinstance(frame, list):
        pairs = [*map(category, frame)]
    if not isinstance(frame, (dict, list, type(None))) or not all(pairs):
        raise ValueError(f"{where} is {few([frame])}, expected the weights of one face, with their names")
    return unique(pairs, where)


