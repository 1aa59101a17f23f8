"""The times of the rows of a face capture, and its rate, from all that the file says about time.

- The first of these that moves forward gives the times: a column of seconds; the timecodes; a column of frame numbers;
  evenly spaced rows. Notes report what disagrees with it.
- Rows are sorted if that makes a clock even. Single faults in a clock are repaired, gaps are kept. A clock that still
  runs backwards is an error.
- How many frames timecodes count in a second is read from the step over its end (`..:29` to `..:00`: 30). If there is
  none, and for frame numbers and rows without times, the rate is the one that the file states, else the one in its name
  (`take_29_97fps`), else 30, or 60, 120, 240 if a frame number is higher. No rate is assumed if the file has a clock or
  a rate that is not understood.
- 01:02:03 may be MM:SS:FF, see `with_hours`.
- NTSC: if the file or its name says 29.97 (59.94, 23.976), timecodes that count 30 run 0.1 % slow; drop-frame timecodes
  always do.
- `--fps` overrides: the clock is stretched so that its frames come at that rate.

R: rows of a file.
"""
import re
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from face_decoder import FPS

MIN_FPS, MAX_FPS = 1, 1000              # frames per second
MAX_SECONDS = 4 * 3600
COUNTS = (5, 10, 12, 15, 20, 24, 25, 30, 48, 50, 60, 72, 75, 90, 100, 120, 240, 1000)       # usual frames per second
CODE = re.compile(r"(?:(\d{1,3}):)?(\d{1,3}):(\d{1,3})(?:([:;.,])(\d{1,9})\d*(?:[.,](\d{1,9})\d*)?)?", re.ASCII)
IN_NAME = re.compile(r"(?:(\d{1,9})([._]))?(\d{1,9})[ _-]?(?:fps|hz)", re.ASCII | re.IGNORECASE)
middle = partial(np.quantile, q=0.5, method="lower")    # the median; of an even number of values the lower
ADVICE = "give the rate with --fps, and --ignore-timecodes for rows at even times"


class Timing(NamedTuple):
    times: np.ndarray       # (R,) float64, seconds from 0, increasing
    length: float           # seconds: the last time plus one frame
    rate: float             # rows per second
    how: str                # where the times come from, in a phrase
    notes: tuple            # contradictions and repairs
    order: np.ndarray       # (R,) the row of the file that each time belongs to


class Clock(NamedTuple):
    seconds: np.ndarray     # (R,) float64: as in the file; after `in_order` increasing from 0
    count: float | None     # frames that it counts in a second; None: it counts no frames
    how: str


class Codes(NamedTuple):
    parts: np.ndarray       # (R, 3) float64: seconds; frames or fractions of a second; sub-frames in [0, 1)
    width: int              # digits of the frames or fractions
    point: bool             # a point or comma stands before them
    marked: bool            # a semicolon does: drop-frame


def frame_times(rows: int, codes=None, stamps=None, numbers=None, name: str = "", stated: float | None = None,
                fps: float | None = None, ignore_timecodes: bool = False, unclear: str = "") -> Timing:
    """The times of the rows of a capture, by the rules at the top of this file. Arguments that the file lacks are None.

    codes: R timecodes, HH:MM:SS with :FF or ;FF (frames; a fraction .sss of a frame may follow), .mmm ,mmm or :mmm
    (fractions of a second) or nothing. stamps, numbers: (R,) columns of seconds and of frame numbers. name: the file's.
    stated: the rate that the file states. fps: the user's rate. ignore_timecodes: ignore codes, stamps and numbers.
    unclear: what in the file may state a rate but is not understood.
    Raises ValueError for an invalid timecode, a clock that runs backwards, a rate outside MIN_FPS to MAX_FPS, more than
    MAX_SECONDS, or if a rate would be assumed although the file has something unclear or a clock that stands still.
    """
    if rows < 1:
        raise ValueError("no rows: expected at least one")
    notes = []
    hints = rates_said(name, stated, fps, notes)
    rate, who = hints[0] if hints else (FPS, "assumed")
    if ignore_timecodes and not hints:
        try:
            rate, who = frame_times(rows, codes, stamps, numbers).rate, "as by the file's clock"
        except ValueError:                                              # no usable clock: keep the assumed rate
            pass
    times, frame, how = np.arange(rows) / rate, 1 / rate, f"rows at an even {rate:.6g} per second ({who})"
    order, found = np.arange(rows), []
    if not ignore_timecodes and rows > 1:
        codes = codes and parsed(with_hours(codes, hints))
        order = row_order(rows, stamps, codes and counted(codes), numbers)
        if (np.diff(order) != 1).any():
            notes.append("the rows are not in the order of their times: they were sorted")
            codes = codes and codes._replace(parts=codes.parts[order])
            stamps, numbers = (None if each is None else np.asarray(each)[order] for each in (stamps, numbers))
        found = clocks(codes, stamps, numbers, hints, notes)
        unused = next((note for note in notes if note.endswith("not used") and not found), "")
        if not hints and (not found or "assumed" in found[0].how) and (unclear or unused):
            raise ValueError(f"the rate is not known: {unclear or unused}; give it with --fps N")
    if not found:
        notes += [f"{other_who} says {other:g} frames/s, {who} {rate:g}: this is taken"
                  for other, other_who in hints[1:] if abs(other / rate - 1) > 0.01]
    if found:
        times, how = found[0].seconds * stretch(found[0], hints, fps, notes), found[0].how
        frame = typical(np.diff(times))
        notes += [f"{other.how} the take lasts {other.seconds[-1]:.4g} s, {how} {times[-1]:.4g} s: these are taken"
                  for other in found[1:] if abs(other.seconds[-1] / times[-1] - 1) > 0.02]
    length = float(times[-1] + frame)
    if not 0.999 * MIN_FPS <= 1 / frame <= 1.001 * MAX_FPS or length > MAX_SECONDS:
        raise ValueError(f"{length:.6g} s with {1 / frame:.4g} rows per second ({how}), expected {MAX_SECONDS} s at "
                         f"most with {MIN_FPS} to {MAX_FPS} rows per second: {ADVICE}")
    return Timing(times, length, 1 / frame, how, tuple(notes), order)


def row_order(rows: int, *keys) -> np.ndarray:
    """The order (R,) of the rows by the first clock that is in order, or that sorting makes even."""
    for key in keys:
        if key is None or not np.ptp(key):
            continue
        if (np.diff(key) >= 0).all():
            break
        order = evenly(key)
        if order is not None:
            return order
    return np.arange(rows)


def parsed(codes: list) -> Codes:
    """Timecodes -> their parts; seconds go on past midnight. Raises ValueError for an invalid one."""
    found = [CODE.fullmatch(code.strip()) for code in codes]
    if None in found:
        row = found.index(None)
        raise ValueError(f"row {row}: timecode {codes[row]!r}, expected HH:MM:SS:FF or HH:MM:SS.mmm; or "
                         "--ignore-timecodes for rows at even times")
    hours, minutes, whole, marks, parts, subs = zip(*(match.groups() for match in found))
    second = np.array([int(h or 0) * 3600 + int(m) * 60 + int(s) for h, m, s in zip(hours, minutes, whole)])
    second = np.unwrap(second, discont=23 * 3600, period=24 * 3600)
    point = not {":", ";"} & {*marks}                                   # 1.5 is half a second, 1:05 the frame 5
    width = max(len(part or "") for part in parts)
    frame = [int((part or "").ljust(width, "0") or 0) if point else int(part or 0) for part in parts]
    sub = np.array([float(f"0.{part or 0}") for part in subs])
    return Codes(np.stack([second, frame, sub], axis=1), width, point, ";" in marks)


def counted(codes: Codes) -> np.ndarray:
    """(R,) the timecodes as numbers, in frames: they rise evenly where the timecodes do."""
    second, frame, _ = codes.parts.T
    sorted_codes = codes._replace(parts=codes.parts[np.lexsort((frame, second))])
    return second * max(frames_in_a_second(sorted_codes, [], []), frame.max() + 1) + frame


def evenly(key) -> np.ndarray | None:
    """The order (R,) that makes a clock even, or None. Even: all times differ, 70 % of the steps are about as long as
    the median one, and the whole takes at most twice as long as that many median steps.

    None too for a clock that was set back a few times: sorting would mix the rows before and after."""
    key = np.asarray(key, np.float64)
    if not np.isfinite(key).all() or len(key) < 2:
        return None
    if (np.diff(key) <= 0).all() and np.ptp(key):
        return np.arange(len(key))[::-1]                                # the same time in several rows, too
    order = np.argsort(key, kind="stable")
    steps, written = np.diff(key[order]), np.diff(key)
    usual = middle(steps)
    even = usual > 0 and steps.min() > 0 and (abs(steps / usual - 1) < 0.6).mean() >= 0.7
    if not even or np.ptp(key) > 2 * len(key) * usual:
        return None
    few_back = 0 < (written < 0).sum() <= len(key) / 5
    return None if few_back and np.median(abs(written)) > 1.5 * usual else order


def rates_said(name: str, stated, fps, notes: list) -> list:
    """[(rate, its source)], the best first: --fps alone, else what the file states, then what its name says."""
    said = [(fps, "--fps")] if fps is not None else [(stated, "the file")] if stated is not None else []
    for rate, who in said:
        if not MIN_FPS <= rate <= MAX_FPS:
            raise ValueError(f"{who} says {rate:g} frames per second, expected {MIN_FPS} to {MAX_FPS}: {ADVICE}")
    for whole, point, part in IN_NAME.findall(name) if fps is None else []:
        rate = float(f"{whole}.{part}") if point else float(part)
        rate = float(part) if point == "_" and not ntsc(rate) else rate     # take_2_60fps is the second take
        if MIN_FPS <= rate <= MAX_FPS:
            said.append((rate, "the name"))
        else:
            notes.append(f"the name says {rate:g} frames/s: ignored, as no rate")
    return said


def clocks(codes, stamps, numbers, hints: list, notes: list) -> list:
    """The usable clocks of a file, the best first. Raises ValueError if there is none because one runs backwards."""
    found = [] if stamps is None else [Clock(np.asarray(stamps, np.float64), None, "by the column of seconds")]
    found += [] if codes is None else [clock_of_codes(codes, hints, notes)]
    usable = [clock for clock in (in_order(clock, notes) for clock in found) if clock]
    if not usable and numbers is not None:
        rate, who = hints[0] if hints else (FPS, "assumed")
        how = f"by the frame numbers, {rate:.6g} per second ({who})"
        usable = [clock for clock in [in_order(Clock(np.asarray(numbers) / rate, rate, how), notes)] if clock]
    backwards = [note for note in notes if note.endswith("again: they are not used")]
    if backwards and not usable:
        raise ValueError(f"{backwards[0].removesuffix(': they are not used')}, and sorted they are not even: the order "
                         f"of the rows is not known; {ADVICE}")
    return usable


def clock_of_codes(codes: Codes, hints: list, notes: list) -> Clock:
    """Timecodes -> their clock."""
    second, frame, sub = codes.parts.T
    count = frames_in_a_second(codes, hints, notes)
    if count == 10 ** codes.width and (codes.point or codes.width > 2):
        return Clock(second + frame / count, None, "by the timecodes, in seconds")
    lost = frames_left_out(second, frame, count, codes.marked, hints)
    ticks = second * count + frame - lost * (second // 60 - second // 600)
    # Sub-frames of some recorders are mere counters: they are added only if that makes the steps more even.
    ticks = min(ticks, ticks + sub, key=lambda ticks: np.diff(ticks).std())
    rate = count / 1.001 if lost else count
    return Clock(ticks / rate, rate, f"by the timecodes, {count} frames in each second{', drop-frame' * bool(lost)}")


def with_hours(codes: list, hints: list) -> list:
    """Timecodes, with 00 for the hours and minutes that MM:SS:FF and SS:FF leave out.

    These look like HH:MM:SS and MM:SS. If the last part counts seconds, it goes up to 59 and a second has several rows;
    if it counts frames, it stays below the rate. Raises ValueError if both are possible and no rate is known.
    """
    parts = [re.fullmatch(r"(\d{1,3}:)?(\d{1,3}):(\d{1,9})", code.strip()) for code in codes]
    if None in parts or len(codes) < 2:
        return codes
    more = ["00:" + code if match[1] else "00:00:" + code for code, match in zip(map(str.strip, codes), parts)]
    every = [[int((match[1] or "0:")[:-1]) * 1000 + int(match[2]), int(match[3])] for match in parts]
    (lead, last), shared = (each.T for each in np.unique(every, axis=0, return_counts=True))
    inside, top = np.diff(last)[np.diff(lead) == 0], last.max()
    step = middle(inside) if len(inside) else 1
    rate = float(middle(shared) / step)                                 # rows in each second, as HH:MM:SS
    if top > 59 or lead[0] != lead[-1] and top + step < 60:
        return more
    if 4.9 <= rate <= 245:
        return codes
    if hints:
        return codes if abs(np.log(rate / hints[0][0])) < 0.1 else more
    raise ValueError(f"the timecodes {codes[0]} to {codes[-1]} may be HH:MM:SS at {rate:.3g} rows per second, "
                     f"or MM:SS:FF: {ADVICE}")


def frames_in_a_second(codes: Codes, hints: list, notes: list) -> int:
    """How many frames (or fractions) the timecodes count in a second. Each row that begins a new second shows it: from
    `:29` to `:00`, in steps of 1, are 30."""
    (second, frame, _), (_, width, point, _) = codes.parts.T, codes
    passed, steps, top = np.diff(second), np.diff(frame), int(frame.max())
    inside = steps[(passed == 0) & (steps > 0)]
    step = typical(inside) if len(inside) else 1
    ends = np.sort(step - steps[passed == 1])
    if not width or width > 2 and (point or top >= 240 or not len(ends) and step > 1) or point and not len(ends):
        return 10 ** width
    repeats = middle(run_lengths(second + frame / 1e9))                 # rows that have the same code
    said = [round(rate / share) for rate, _ in hints for share in (repeats, 1)]
    if not len(ends):
        count = next((count for count in (*said, FPS, 60, 120, 240) if count > top), top + 1)
        if count not in said and len(inside) and count > top + step:
            notes.append(f"no timecode passes the end of a second: {count} frames/s are a guess, as the highest frame "
                         f"number is {top}; --fps sets another rate")
        return count
    count = ends[int(0.75 * (len(ends) - 1) + 0.5)]                     # lost frames make some too small
    if len(ends) < 3:
        count = max(count, top + 1)
        likely = said if (inside == step).all() else [*said, *COUNTS]   # uneven: frames were lost, perhaps here too
        near = [each for each in likely if top < each and 0.98 * count <= each <= 1.1 * count + 1]
        if near:
            return near[0]
    nearest = min(COUNTS, key=lambda each: abs(each - count))
    return nearest if abs(nearest - count) <= 0.04 * nearest and nearest > top else round(count)


def frames_left_out(second, frame, count: int, marked: bool, hints: list) -> int:
    """How many frame numbers drop-frame timecodes skip in each minute that is no multiple of ten; 0 if they are not
    drop-frame. Without the semicolon, two minutes must show the skip, or one minute and a rate such as 29.97."""
    lost = count // 15
    opens = (second % 60 == 0) & (second // 60 % 10 != 0)
    if count not in (30, 60, 120) or (frame[opens] < lost).any():
        return 0
    skips = opens[1:] & (np.diff(second) == 1) & (frame[1:] == lost) & (frame[:-1] == count - 1)
    return lost if marked or skips.sum() + any(ntsc(rate) for rate, _ in hints) >= 2 else 0


def in_order(clock: Clock, notes: list) -> Clock | None:
    """The clock made to increase from 0, with its gaps; None, and a note, if it cannot be trusted.

    One or two rows out of line get times between their neighbours'. Where the clock was set back, the rows go on
    without a gap. Rows that share a time are spread up to the next time, a frame apart at most.
    """
    seconds, rows, lengths = clock.seconds, len(clock.seconds), run_lengths(clock.seconds)
    if not (abs(seconds) < 1e12).all() or len(lengths) < 3 and max(lengths) > 3 or seconds.max() == seconds[0]:
        notes.append(f"the times {clock.how} stand still or are no numbers: they are not used")
        return None
    steps, usual = np.diff(seconds), middle(lengths)
    row = typical(steps[steps > 0]) / usual
    line = np.arange(rows) * row
    near = line + np.median(sliding_window_view(np.pad(seconds - line, 2, mode="edge"), 5), axis=1)
    back = np.convolve(np.r_[False, steps < 0], np.ones(5))[2:-2] > 0   # two rows around each step back
    stray = back & (abs(seconds - near) > 0.99 * row)
    steps = np.diff(np.where(stray, near, seconds))
    back = np.flatnonzero(steps < -0.01 * row)
    if stray.sum() + len(back) > rows / 5 or (steps[back] < -2 * row).sum() > 3:
        notes.append(f"the times {clock.how} run backwards again and again: they are not used")
        return None
    if stray.any():
        notes.append(f"rows out of order: {stray.sum()}, the first is row {stray.argmax()}; they get times between")
    if len(back):
        notes.append(f"the clock goes back {-steps[back[0]]:.3g} s after row {back[0]}: the rows go on without a gap")
    steps[back] = row
    if steps.max() > max(0.5, 2.5 * row * usual):
        notes.append(f"a gap of {steps.max():.3g} s after row {steps.argmax()}: kept")
    seconds = np.r_[0, np.cumsum(np.maximum(steps, 0))]
    lengths = run_lengths(seconds)
    if len(lengths) < rows:
        notes.append(f"{rows} rows have {len(lengths)} times: rows of the same time get times up to the next")
    first = np.cumsum(lengths) - lengths                                # the first row of each time
    room = np.diff(np.r_[seconds[first], np.inf])
    apart = np.minimum(room / lengths, row)
    start = seconds[first]
    stuck = (lengths > 3 * usual) & (room < 0.5 * lengths * row)
    if stuck.any():
        notes.append(f"the clock stands still for {lengths[stuck][0]} rows after row {first[stuck][0]}" + (
            ": they get even times before the others" if stuck[0] else ""))
    if stuck[0]:
        apart[0], start[0] = row, start[1] - lengths[0] * row
    elif lengths[0] < usual and room[0] < 1.5 * usual * row:            # the take begins within the rows of a time
        start[0] = start[1] - lengths[0] * apart[0]
    within = np.arange(rows) - np.repeat(first, lengths)
    return clock._replace(seconds=np.repeat(start, lengths) + within * np.repeat(apart, lengths) - start[0])


def stretch(clock: Clock, hints: list, fps, notes: list) -> float:
    """The factor by which --fps, or an NTSC rate such as 29.97, lengthens the clock; other rates only give notes."""
    steps = np.diff(clock.seconds)
    row = typical(steps)
    average = len(steps) / clock.seconds[-1]
    own = [1 / row]                                                     # rates that the clock itself may mean
    if clock.count:                                                     # several frames per row, or rows per frame
        share = row * clock.count
        own = [clock.count, clock.count / round(share) if share > 1 else clock.count * round(1 / share)]
    for rate, who in hints:
        if not clock.count and abs(row * rate - 1) < 0.15:              # a coarse clock: frames in each of its steps
            own = [np.maximum(1, np.round(steps * rate)).sum() / clock.seconds[-1]]
        near = [each for each in (*own, average) if abs(each / rate - 1) < 0.04]
        clocked = near[0] if near else min(own, key=lambda each: abs(np.log(each / rate)))
        factor = clocked / rate
        if fps is not None or near and clock.count and ntsc(rate) and abs(factor - 1) < 0.002:
            if not clock.count and abs(factor - 1) < 0.01:
                return 1.0                                              # measured times that agree are kept
            if abs(factor - 1) > 5e-4:
                notes.append(f"{who} says {rate:g} frames/s, the clock {clocked:.4g}: the take lasts {factor:.4g} "
                             "times as long as by the clock")
            return factor
        if not near:
            notes.append(f"{who} says {rate:g} frames/s, the times {clock.how} {1 / row:.4g}: these are taken; "
                         f"--fps {rate:g} takes the other")
    return 1.0


def ntsc(rate: float) -> bool:
    """Whether a rate is an NTSC one, 0.1 % below a whole number: 29.97, 59.94, 23.976, 23.98, ..."""
    return any(abs(rate * 1.001 - count) < 0.006 for count in (24, 30, 48, 60, 120))


def typical(steps) -> float:
    """The mean of the steps that are near the median one: evens out rounding, ignores gaps."""
    return float(steps[abs(steps / middle(steps) - 1) < 0.6].mean())


def run_lengths(values):
    """Values (R,) -> the length of each run of equal values."""
    return np.diff(np.r_[0, np.flatnonzero(np.diff(values)) + 1, len(values)])
