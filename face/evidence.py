"""What a capture says about time: its columns and facts -> clocks and a rate, or why there is none (`Evidence`).

A recorder may call a column `DeviceTime`, `pts`, `tv_sec` and `tv_usec`, a fact `captureFps`, `frame_interval_ms` or
`length_seconds`. The words of a name (words.py) say what it may mean, the values what a column is: a clock rises, a
time step does not. If a name has no unit, we take the one that gives a usual rate (PLAIN_FPS) and agrees with the known
rates; if two units do, the time is unclear. `Evidence.unclear` holds what may state a rate but is not understood: then
timing.py assumes no rate. Columns of measurements (latency, exposure, ...) are ignored.

R: rows of a file. A column is (name, R cells), a fact (name, value); names of nested json are joined by dots.
"""
import math
import re
from dataclasses import dataclass, field

import numpy as np

from face.arkit import few, folded
from face.timing import CODE, COUNTS, FPS, MAX_FPS, MIN_FPS, evenly, middle, rates_said, run_lengths, typical
from face.words import (FRAME, MEASURED, PARTS, RATES, SOUND, STEP, TIME, UNITS, amount, blank, clean, coded, is_clock,
                        is_counter, is_group, kind_of, leaf_of, like_a_clock, number, plain, rates_in, readable, seen,
                        unit_of, words)

GUESSES = 1, 1e-3, 1e-6, 1e-7, 1e-9             # units to try if a name has none, in seconds; 1e-7: ticks of .NET
EPOCHS = 0, 2208988800, 11644473600, 62135596800        # seconds from 1970, 1900, 1601 and the year 1 to 1970
# Words in names of the capture's own rate, time step or duration (FILM), not of something else in it.
FILM = set("unscaled fr mspf measured actual current real frame rate fps hz hertz frequency per capture captured "
           "export sample sampling record recording recorded video camera source take file clip stream timeline "
           "animation anim data native update face mocap track tracking arkit in of updates samples images poses rows "
           "original avg average mean nominal effective sequence duration length total elapsed time interval period "
           "delta dt step between spf playback motion performance media output tick run runtime timestamp".split())


@dataclass
class Evidence:
    codes: list | None = None               # R timecodes
    stamps: np.ndarray | None = None        # (R,) seconds
    numbers: np.ndarray | None = None       # (R,) frame numbers
    stated: float | None = None             # the rate that the file states
    unclear: str = ""                       # what may state another rate
    wrong: str = ""                         # the error for a cell of a clock that is no time
    used: list = field(default_factory=list)            # names of the columns that are understood
    notes: list = field(default_factory=list)           # lines to print


# --- facts: what the file states once --------------------------------------------------------------------------------

def spans(facts: list) -> list:
    """Durations, as facts, from pairs such as startTime and endTime; an end without a start counts from 0."""
    found, times = [], {name: amount(value)[0] for name, value in facts if is_clock(name) or "end" in words(name)}
    for name, value in times.items():
        end = next((word for word in words(name) if word in ("end", "stop", "finish")), None)
        if end and "frame" not in words(name):
            twins = [tuple(start if word == end else word for word in words(name)) for start in ("start", "begin")]
            first = next((times[other] for other in times if words(other) in twins), 0.0)
            if value > first:
                found.append((re.sub("(?i)" + end, "duration ", name, count=1), value - first))
    return found


def in_a_second(value) -> float:
    """Ticks per second of a time scale, 600, or a time base, 1/600; 0 if the value is neither."""
    ticks = amount(value)[0]
    return ticks if 1 <= ticks < 1e10 else 1 / ticks if 1e-10 < ticks < 1 else 0.0


def rates_of(name: str, value, kind: str, rows: int) -> list:
    """The rates, in rows per second, that a fact may mean: several if its unit is open, none if no unit fits."""
    amounted, unit = amount(value)
    unit, rates = unit or unit_of(name), []
    for seconds in [amounted * each for each in ([unit] if unit else GUESSES)] if 1e-300 < amounted < math.inf else ():
        to_last = (rows - 1) / seconds                                      # a duration to the start of the last frame
        rates.append(amounted if kind == "rate" else 1 / seconds if kind == "period" else
                     to_last if standard(to_last) and not standard(rows / seconds) else rows / seconds)
    sure = unit or kind == "rate"
    return [rate for rate in dict.fromkeys(rates)
            if plain(rate) or sure and MIN_FPS * 0.999 <= rate <= MAX_FPS * 1.001]


def standard(rate: float) -> bool:
    """Whether a rate is one of COUNTS, or 0.1 % below one, such as 29.97."""
    return any(abs(rate / count - 1) < 2e-4 or abs(rate * 1.001 / count - 1) < 2e-4 for count in COUNTS)


def ranked(facts: list, rows: int, found: Evidence, path, fps) -> tuple:
    """{rank: [(text, rates that it may mean), ...]} of the facts, and whether one gives another number of rows.

    Ranks: stated (rates and time steps), sentence, duration, doubt (maybe not of the rows). Adds notes and used names
    to `found`. Raises ValueError for an impossible rate named as in RATES, unless fps is given."""
    said, cut = {"stated": [], "sentence": [], "duration": [], "doubt": []}, False
    base = {words(name)[:-1]: number(value) for name, value in facts if words(name)[-2:] == ("fps", "base")}
    facts = [("fps", amount(value)[0] / base[words(name)]) if base.get(words(name), 0) > 0 else (name, value)
             for name, value in facts if words(name)[-2:] != ("fps", "base")]       # Blender's rate is fps / fps_base
    for name, value in facts + spans(facts):
        kind, amounted, leaf = kind_of(name), amount(value)[0], leaf_of(name)
        exact = kind == "rate" and folded(leaf) in RATES
        rank, rates = "doubt", []
        if isinstance(value, list) and len(value) < 20 and all(isinstance(each, str) for each in value):
            value = "; ".join(value)
        if kind == "" and isinstance(value, str):
            rates, sure = rates_in(f"{name} {value}")
            rank = "sentence" if sure and rates else rank
        elif kind == "scale":
            rates = [rate for rate in [in_a_second(value)] if plain(rate)]
        elif kind == "count" and isinstance(value, (int, float, str)) and number(value) > 0 and number(value) != rows:
            cut = True
            found.notes.append(f"{few([name])} says {number(value):g}, the file has {rows} rows: is it cut?")
            found.used.append(name)
        elif value in (None, ""):
            continue
        elif exact and fps is None and not MIN_FPS <= amounted <= MAX_FPS and not (
                "sampl" in folded(name) and amounted >= 8000):
            raise ValueError(f"{path} states {few([value])} frames per second in {few([name])}, expected {MIN_FPS} to "
                             f"{MAX_FPS}; --fps overrules it")
        elif kind in ("rate", "period", "duration"):
            nothing = amounted <= 0 or kind == "rate" and not 8000 > amounted >= MIN_FPS    # a switch, a rate of sound
            if nothing and amounted == amounted or isinstance(value, (bool, list, dict)) or not any(
                    map(str.isdigit, str(value))):
                continue
            rates = rates_of(name, value, kind, rows)
            if exact or {*words(leaf)} <= FILM | SOUND | {*UNITS}:
                rank = "duration" if kind == "duration" else "stated"
        if rates or rank != "doubt":
            said[rank].append((f"{few([name])} {few([value])}", rates))
    return said, cut


def rate_stated(facts: list, rows: int, found: Evidence, path, fps) -> float | None:
    """The rate that the facts of a file state, or None; then `found.unclear` may say why.

    The first rank (`ranked`) that has facts gives the rate; facts of a lower rank that disagree give a note. Raises
    ValueError as `ranked` does."""
    said, cut = ranked(facts, rows, found, path, fps)
    known = said["stated"] + said["sentence"] + said["duration"]
    chosen = said["stated"] or said["sentence"] or said["duration"]
    single = [rates[0] for _, rates in known if len(rates) == 1]
    for at, (text, rates) in enumerate(chosen):
        if len(rates) > 1:
            rates = [rate for rate in rates if any(abs(rate / other - 1) < 0.02 for other in single)] or rates
        if len(rates) != 1:
            found.unclear = f"{text} fits {'several rates' if rates else 'no rate'}"
            return None
        chosen[at] = text, rates
    rates = [each for _, (each,) in chosen]
    if not rates:
        far = [(text, each) for text, (each, *_) in said["doubt"] if abs(each / FPS - 1) > 0.02]
        found.unclear = "".join(f"{text} may say a rate of {each:.4g} frames/s" for text, each in far[-1:])
        return None
    if any(abs(rate / rates[0] - 1) > 0.01 for rate in rates):
        found.unclear = "it says " + " and ".join(f"{each:.4g} frames/s ({text})" for text, (each,) in chosen[:3])
        return None
    if chosen is said["duration"] and cut:
        found.unclear = f"{chosen[0][0]} is not of these {rows} rows"
        return None
    for text, others in known[len(chosen):]:
        if others and not any(abs(rates[0] / each - 1) < max(2.5 / rows, 0.03) for each in others):
            found.notes.append(f"{text} would be {others[0]:.4g} frames/s, the file says {rates[0]:.4g}: this is taken")
    return rates[0]


# --- columns ---------------------------------------------------------------------------------------------------------

def rises(values) -> bool:
    """Whether values (R,) are a clock: most steps rise, or sorting makes them even."""
    return len(values) > 1 and ((np.diff(values) >= 0).mean() >= 0.8 and values[-1] > values[0]
                                or evenly(values) is not None)


def row_step(values) -> float:
    """The usual step of a clock (R,) from row to row, 0 if it stands still."""
    values = np.sort(values)
    steps = np.diff(values)
    return typical(steps[steps > 0]) / middle(run_lengths(values)) if (steps > 0).any() else 0.0


def dated(first: float, unit: float) -> bool:
    """Whether a clock that begins at `first` units shows a year from 2000 to 2100, counted from one of EPOCHS."""
    return any(9.4e8 < first * unit - epoch < 4.1e9 for epoch in EPOCHS)


def seconds_of(name: str, values, step: float, scales: list, hints: list, fps) -> tuple:
    """(unit of a clock in seconds, or None; why there is none). step: between its rows, in that unit.

    scales: units that the file states. hints: known rates. fps: the user's rate; the unit that comes nearest wins."""
    terms, whole = {*words(name)}, (values % 1 == 0).all()
    if unit_of(name):
        return unit_of(name), ""
    for each in [*(scales if whole else ()), *([1e-7] if "tick" in terms else [])]:
        if plain(1 / (step * each)):
            return each, ""
    units = [*GUESSES, 86400, *([1 / 90000] if terms & {"pts", "dts", "rtp"} else [])]       # days: spreadsheets' dates
    rates = {each: 1 / (step * each) for each in units}
    for rate, _ in hints:
        near = [each for each in rates if abs(rates[each] / rate - 1) < 0.1 and MIN_FPS <= rates[each] <= MAX_FPS]
        if near:
            return near[0], ""
    if fps is not None:
        return min(rates, key=lambda each: abs(math.log(rates[each] / fps))), ""
    sure = [each for each in rates if plain(rates[each]) and dated(values[0], each)]
    fits = sure or [each for each in rates if plain(rates[each]) and values[0] * each < 9.4e8]  # 30 years
    if len(fits) == 1 and (sure or fits[0] != 1e-7):            # without a date: maybe microseconds, a tenth the rate
        return fits[0], ""
    return None, f"the column {few([name])} rises by {step:.6g} from row to row: " + (
        " or ".join(f"{rates[each]:.4g} frames/s in units of {each:g} s" for each in fits)
        or "in no usual unit is that a rate")


def odd_cell(column: str, cells: list, file, path) -> str:
    """The error for the first cell of a clock that is no number where most are numbers, or no timecode likewise."""
    numbers, codes = ([test(cell) for cell in cells] for test in (lambda cell: math.isfinite(number(cell)),
                                                                   lambda cell: bool(CODE.fullmatch(clean(cell)))))
    good = max(codes, numbers, key=sum)
    at = good.index(False)
    return (f"{path}: {file.kind} {file.where[at]}, column {few([column])}: the cell {seen(cells[at])}, expected "
            f"{'a number' if good is numbers else 'HH:MM:SS:FF or a number'}; --ignore-timecodes takes the rows at an "
            "even rate")


def evidence_of(file, faces, path, fps) -> Evidence:
    """The columns and facts of a file (tables.Rows) -> its Evidence.

    faces (R,): which rows have a face. fps: the user's rate or None. Raises ValueError for an impossible rate, or rows
    of several faces or takes."""
    found, facts, numeric, rows = Evidence(), [*file.facts], {}, len(faces)
    for column, cells in file.columns:                                      # a column with one value is a fact
        values, filled = np.array([number(cell) for cell in cells]), [cell for cell in cells if not blank(cell)]
        if rows and np.isfinite(values).all():
            numeric[column] = values
        ids = [*dict.fromkeys(str(cell) for cell, face in zip(cells, faces) if face and not blank(cell))]
        if is_group(column) and 1 < len(ids) <= max(1, sum(faces) // 2):
            raise ValueError(f"{path}: the rows are of several faces or takes: {few([column])} is {few(ids)}; expected "
                             "one: write each into a file of its own")
        measured = values[~np.isnan(values)] if kind_of(column) == "rate" else np.empty(0)
        same = bool(filled) and all(cell == filled[0] for cell in filled) and (rows > 1 or len(measured))
        steady = len(measured) and measured.min() > 0 and measured.std() < 0.2 * measured.mean() and not rises(values)
        if kind_of(column) and (same or steady):
            facts.append((column, filled[0] if same else float(np.median(measured))))
            found.used.append(column)
    scales = [1 / in_a_second(value) for fact, value in facts if kind_of(fact) == "scale" and in_a_second(value) > 1]
    found.stated = rate_stated(facts, rows, found, path, fps)
    if rows < 2:
        return found
    clocks, counters, broken = [], [], []
    joined(numeric, found)
    for column, cells in file.columns:
        values, terms = numeric.get(column), {*words(column)}
        known = bool(terms) and terms <= TIME
        if column in found.used or all(map(blank, cells)):
            continue
        if values is None:
            codes = coded(cells)
            last_is_none = is_counter(column) and not readable(cells[-1]) and sum(map(readable, cells)) > 0.9 * rows
            if codes and (is_clock(column) or all(code.count(":") > 1 for code in codes)):
                found.codes, found.used = found.codes or codes, [*found.used, column]
            elif last_is_none or is_clock(column) and (known or any(cell != cells[0] for cell in cells)):
                found.wrong = found.wrong or odd_cell(column, cells, file, path)        # also: a sum in the last row
            elif len({*map(str, cells)}) > 1 and all(map(like_a_clock, cells)):
                found.unclear = f"the column {few([column])} has times such as {few(cells[:1])}"
        elif terms & {"remaining", "countdown"}:                             # sorted, it would run backwards
            found.unclear = found.unclear or not_plain(column, values)
        elif is_counter(column) and (values % 1 == 0).all() and np.ptp(values):
            counters.append((not terms or not terms <= FRAME, column, values))
        elif is_clock(column) or kind_of(column) in ("period", "duration"):
            stepped = terms & {*STEP, "frame"}
            if rises(values) and not (stepped and len({*values}) <= rows / 3):
                clocks.append((not known, column, values))
            elif stepped and (values >= 0).all() and (values > 0).mean() > 0.7:
                clocks.append((2, column, np.r_[0, np.cumsum(values[1:])]))
            elif known:
                broken.append(values)
            elif np.ptp(values):
                found.unclear = found.unclear or not_plain(column, values)
        elif not terms & MEASURED and rows > 9 and evenly(values) is not None and rises(values):
            found.unclear = found.unclear or not_plain(column, values)
    hints = rates_said(path.stem, found.stated, fps, [])
    take_clock(sorted(clocks, key=lambda each: each[0]), scales, hints, fps, found)
    if found.stamps is None and broken:
        found.stamps = broken[0]                                            # timing.py reports what is wrong with it
    for _, column, values in sorted(counters, key=lambda each: each[0]):
        if found.numbers is not None or found.codes is not None:
            break
        codes = rolling(values)
        if codes or rises(values):
            found.codes, found.numbers = codes, None if codes else values
            found.used.append(column)
            if not codes and evenly(values) is None and (np.diff(values) < 0).any():
                found.unclear = found.unclear or f"the numbers in {few([column])} begin again"
    return found


def not_plain(column: str, values) -> str:
    """What is unclear about a column that may be a clock, "" if it cannot change the rate."""
    step = row_step(values)
    rates = [1 / (step * each) for each in GUESSES if step and plain(1 / (step * each))]
    if is_clock(column) and not rises(values):
        return f"the column {few([column])} does not rise as a clock does"
    if not rates or step == 1 or any(abs(rate / FPS - 1) < 0.02 for rate in rates):
        return ""
    return f"the column {few([column])} rises as a clock of {rates[0]:.4g} frames/s does"


def take_clock(clocks: list, scales: list, hints: list, fps, found: Evidence) -> None:
    """Set found.stamps to the first of the clocks (rank, name, values) whose unit is known, or found.numbers if it
    counts frames; later clocks that disagree give a note. The best clock is first."""
    for _, column, values in clocks:
        step = row_step(values)
        if not step:
            continue
        unit, why = seconds_of(column, values, step, scales, hints, fps)
        counts = step == 1 and not scales or unit is None and any(rate / step >= 5 for rate, _ in hints)
        if counts and (values % 1 == 0).all() and unit_of(column) is None:      # frame numbers, maybe every second one
            if found.numbers is None:
                found.numbers = values
                found.used.append(column)
            continue
        if unit is None:
            found.unclear = found.unclear or why
            continue
        found.used.append(column)
        seconds = values * unit
        if found.stamps is None:
            found.stamps, taken = seconds, column
        elif abs(np.ptp(seconds) / np.ptp(found.stamps) - 1) > 0.02:
            found.notes.append(f"by {few([column])} the take lasts {np.ptp(seconds):.4g} s, by {few([taken])} "
                               f"{np.ptp(found.stamps):.4g} s: these are taken")


def joined(numeric: dict, found: Evidence) -> None:
    """Set found.codes if a clock is spread over columns: hours, minutes, whole seconds, and a fraction or a frame."""
    groups = {}
    for column, values in numeric.items():
        terms = words(column)
        if terms and (values % 1 == 0).all():
            part = PARTS.get(terms[-1]) or UNITS.get(terms[-1])
            groups.setdefault(terms[:-1], {}).setdefault(part, (column, values))
    for parts in groups.values():
        unit = next((unit for unit in (1e-3, 1e-6, 1e-7, 1e-9, "frame") if unit in parts), None)
        whole = {part: parts[part] for part in ("hour", "minute", 1) if part in parts}
        if 1 not in whole or unit is None:
            continue
        second = sum(values * {"hour": 3600, "minute": 60, 1: 1}[part] for part, (_, values) in whole.items())
        column, inside = parts[unit]
        if inside.min() < 0 or inside.max() >= (240 if unit == "frame" else 1 / unit):
            continue
        if unit == "frame" and np.ptp(second) and (np.diff(inside) >= 0).all():
            continue                                                        # it does not begin again each second
        ends = [f":{int(n):02}" if unit == "frame" else f".{round(n * unit * 1e9):09}" for n in inside]
        found.codes = [f"{s // 3600}:{s // 60 % 60:02}:{s % 60:02}{end}"
                       for s, end in zip(second.astype(np.int64) % 86400, ends)]
        found.used += [name for name, _ in whole.values()] + [column]


def rolling(numbers) -> list | None:
    """Frame numbers (R,) that begin again each second -> timecodes. None if they do not: then there are numbers left
    out, or seconds of different lengths."""
    starts = np.flatnonzero(np.diff(numbers) < 0) + 1
    low, count = numbers.min(), int(np.ptp(numbers)) + 1
    if len(starts) < 2 or not plain(count) or (numbers[starts] != low).any() or \
            (np.diff(starts) != count).any() or (np.diff(numbers)[np.diff(numbers) >= 0] != 1).any():
        return None
    second = np.searchsorted(starts, np.arange(len(numbers)), side="right")
    return [f"{s // 3600}:{s // 60 % 60:02}:{s % 60:02}:{int(n - low):02}" for s, n in zip(second, numbers)]
