"""Captures and bare arrays for tests/fuzz.py, and how its inputs are damaged. A strategy draws a function
make(folder) -> Case, which writes the input into the folder; `Case.check()` looks at the output of a command that ended
with exit code 0.

Letters: R rows of a capture.
"""

import io
import json
import math
from pathlib import Path
from typing import Callable, NamedTuple

import numpy as np
from hypothesis import strategies as st

import face.__main__
from face.arkit import ARKIT_NAMES, capital

ODD = st.sampled_from(
    [
        None,
        -1,
        0,
        1,
        2,
        10**6,
        10**12,
        1.5,
        math.nan,
        math.inf,
        "x",
        "",
        "1",
        [],
        {},
        [1],
        [None],
        True,
        {"a": 1},
        "é",
        -(10**400),
        1e308,
    ]
)


class Case(NamedTuple):
    """A command, what was done to its input, and a check of its output: "" or what is wrong."""

    kind: str
    about: str
    main: Callable
    argv: list
    check: Callable


# ---------------------------------------------------------------- damage


@st.composite
def damages(draw):
    """A function bytes -> bytes, and what it does."""
    what, where, size = (
        draw(st.sampled_from(["flip", "cut", "insert", "double", "zeros"])),
        draw(st.floats(0, 1)),
        draw(st.integers(1, 40)),
    )
    extra = draw(st.binary(min_size=size, max_size=size))

    def damage(data: bytes) -> bytes:
        at = min(int(where * len(data)), max(0, len(data) - 1))
        return {
            "flip": lambda: data[:at] + bytes(255 ^ b for b in data[at : at + size]) + data[at + size :],
            "cut": lambda: data[:at],
            "insert": lambda: data[:at] + extra + data[at:],
            "double": lambda: data + data[at:],
            "zeros": lambda: data[:at] + bytes(size) + data[at + size :],
        }[what]()

    return damage, f"{what} at {where:.3f}, {size} bytes"


def slots(value, path=()):
    """The paths of all values in a json value, outermost first."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value[:3]) if isinstance(value, list) else ()
    for key, item in inner:
        yield from slots(item, (*path, key))


@st.composite
def edits(draw):
    """A function json value -> json value with one value replaced or removed, and what it does."""
    which, odd, remove = draw(st.floats(0, 1)), draw(ODD), draw(st.booleans())
    done = []

    def edit(value):
        paths = list(slots(value))[1:]
        if not paths:
            return odd
        *outer, last = paths[min(int(which * len(paths)), len(paths) - 1)]
        holder = value
        for key in outer:
            holder = holder[key]
        done.append(f"{'.'.join(map(str, (*outer, last)))} {'removed' if remove else f'= {odd!r:.40}'}")
        if remove:
            del holder[last]
        else:
            holder[last] = odd
        return value

    return edit, done


def finite(value) -> bool:
    """Whether a json value has no NaN, no infinity."""
    if isinstance(value, (list, tuple)):
        return all(map(finite, value))
    if isinstance(value, dict):
        return all(map(finite, value.values()))
    return not isinstance(value, float) or math.isfinite(value)


def wrong_track(path: Path, seconds: float | None = None, slack: float = 0.0) -> str:
    """What is wrong with a face track on disk. seconds: the length of a take whose jaw opens from 0 to 1; slack:
    seconds that a frame may be off."""
    if not path.is_file():
        return f"no {path.name} although the exit code is 0"
    track = json.loads(path.read_text(encoding="utf-8"))
    weights = np.array(track["weightMat"], dtype=float).reshape(-1, 52)
    if not np.isfinite(weights).all() or weights.min(initial=0) < 0 or weights.max(initial=0) > 1:
        return "weights that are not in [0, 1]"
    if seconds is None or not len(weights):
        return ""
    length, jaw = len(weights) / track["exportFps"], weights[:, track["facsNames"].index("jawOpen")]
    off = np.abs(jaw[:-1] - np.arange(len(jaw) - 1) / 30 / seconds).max(initial=0) * seconds
    if abs(length - seconds) > slack + 0.05 or off > slack + 0.01:
        return f"{length:.3f} s instead of {seconds:.3f}, frames off by up to {off:.3f} s"
    return ""


# ---------------------------------------------------------------- captures


def ramp(count: int, keep) -> np.ndarray:
    """(R, 52): the jaw opens from 0 to 1 over `count` rows, all else is .05; only the rows `keep`."""
    track = np.full((count, 52), 0.05)
    track[:, ARKIT_NAMES.index("jawOpen")] = np.arange(count) / count
    return track[keep]


SPELLINGS = {
    "plain": lambda n: n,
    "capital": capital,
    "upper": str.upper,
    "dot": lambda n: (
        n.replace("Left", ".L").replace("Right", ".R")
        if n.endswith(("Left", "Right")) and n not in ("jawLeft", "jawRight", "mouthLeft", "mouthRight")
        else n
    ),
    "prefix": lambda n: f"blendShapes.{capital(n)}",
    "snake": lambda n: "".join("_" + c.lower() if c.isupper() else c for c in n),
}


def clock(seconds: float, style: str, rate: float) -> str:
    """A time as a recorder writes it."""
    if style == "seconds":
        return f"{seconds:.6f}"
    if style == "ms":
        return f"{1000 * seconds:.3f}"
    whole, part = divmod(seconds + 1e-9, 1)
    base = f"{int(whole) // 3600:02}:{int(whole) // 60 % 60:02}:{int(whole) % 60:02}"
    frame, sub = divmod(part * rate, 1)
    return {
        "frames": f"{base}:{int(frame):02}.{int(sub * 1000):03}",
        "plain frames": f"{base}:{int(frame):02}",
        "milliseconds": f"{base}.{int(part * 1000):03}",
    }[style]


@st.composite
def captures(draw):
    """A take of known length in one of many layouts; half of them damaged afterwards."""
    style = draw(st.sampled_from(["frames", "plain frames", "milliseconds", "seconds", "ms", "json", "named"]))
    by_frames = style in ("frames", "plain frames")
    rate = draw(st.sampled_from([10, 15, 24, 25, 30, 50, 60] + [] * by_frames or [12.5, 23.976, 29.97, 59.94]))
    count = round(rate * draw(st.floats(2.2, 6))) if by_frames else draw(st.integers(3, 200))
    start = (
        draw(st.sampled_from([0, 0, 1, 3599, 86390]))
        if by_frames or style == "milliseconds"
        else draw(st.sampled_from([0, 0, 12.5]))
    )
    dropped = draw(st.sampled_from([0, 0, 0, 0.03]))
    keep = np.random.default_rng(count).random(count) >= dropped
    keep[[0, -1]] = True
    spelling, delimiter, decimal = draw(st.sampled_from(sorted(SPELLINGS))), draw(st.sampled_from(",,;\t")), "."
    if delimiter == ";" and draw(st.booleans()):
        decimal = ","
    encoding = draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]))
    extra, index, blank = draw(st.booleans()), draw(st.booleans()), draw(st.integers(0, 2))
    order = draw(st.permutations(range(52)))
    hurt = draw(damages()) if draw(st.booleans()) else None
    change = draw(edits()) if style in ("json", "named") and draw(st.booleans()) else None
    option = draw(
        st.sampled_from(
            [
                [],
                [],
                [],
                ["--fps", "30"],
                ["--ignore-timecodes"],
                ["--fps", "1e-9"],
                ["--fps", "nan"],
                ["--order", "arkit"],
            ]
        )
    )

    def make(folder: Path) -> Case:
        names, track = [SPELLINGS[spelling](ARKIT_NAMES[i]) for i in order], ramp(count, keep)[:, order]
        times = np.arange(count)[keep] / rate
        if style in ("json", "named"):
            path = folder / "take.json"
            held = np.maximum.accumulate(np.where(keep, np.arange(count), 0))
            value = (
                {"exportFps": rate, "facsNames": names, "weightMat": ramp(count, held)[:, order].tolist()}
                if (style == "json")
                else {
                    "names": names,
                    "frames": [{"weights": row.tolist(), "time": float(t)} for row, t in zip(track, times)],
                }
            )
            value = change[0](value) if change else value
            path.write_text(json.dumps(value), encoding=encoding)
        else:
            path = folder / "take.csv"
            head = (
                ["Timecode", "BlendShapeCount"]
                if style not in ("seconds", "ms")
                else ["timestamp_ms" if style == "ms" else "time"]
            )
            head = [""] * index + head + names + ["Happy"] * extra
            number = lambda value: f"{value:.6f}".replace(".", decimal)
            lines = [delimiter.join(head)]
            for i, (t, row) in enumerate(zip(times, track)):
                code = clock((t + start) % 86400, style, rate)
                first = [str(i)] * index + [code if style not in ("seconds", "ms") else code.replace(".", decimal)]
                first += ["61"] * (style not in ("seconds", "ms"))
                lines.append(delimiter.join([*first, *map(number, row), *["0"] * extra]))
            lines += [delimiter * (len(head) - 1)] * blank
            path.write_text("\n".join(lines) + "\n", encoding=encoding)
        if hurt:
            path.write_bytes(hurt[0](path.read_bytes()))
        (folder / "out.json").write_text("{}")
        known = not (hurt or change or option) and not (style == "json" and dropped)
        about = (
            f"{style}, {rate} fps, {count} rows from {start} s, dropped {dropped}, {spelling}, {delimiter!r} {decimal} "
            f"{encoding}, extra {extra}, index {index}, {option}, {hurt and hurt[1]}, {change and change[1]}"
        )
        seconds = count / rate if known else None
        return Case(
            "captures",
            about,
            face.__main__.main,
            ["convert", str(path), "out.json", *option],
            lambda: wrong_track(folder / "out.json", seconds, 1.1 / rate),
        )

    return make


@st.composite
def arrays(draw):
    """A bare array of another shape, type, order or scale; or a damaged one."""
    shape = draw(
        st.sampled_from([(30, 52), (30, 51), (0, 52), (52,), (30, 61), (30, 68), (2, 3, 52), (1, 52), (30, 53)])
    )
    kind = draw(st.sampled_from(["<f4", "<f8", "<f2", ">f4", "<i8", "|b1", "<c8", "|O", "<U3"]))
    scale = draw(st.sampled_from([1, 1, 1, 100, 1e18, math.nan, -1]))
    order = draw(st.sampled_from([None, "arkit", "livelink", "mediapipe", "unitalker", "nosuch"]))
    ending, hurt = draw(st.sampled_from(["npy", "npy", "npz"])), draw(damages()) if draw(st.booleans()) else None

    def make(folder: Path) -> Case:
        values = np.random.default_rng(0).random(shape) * scale
        with np.errstate(all="ignore"):
            values = values.astype(kind)
        blob = io.BytesIO()
        np.save(blob, values) if ending == "npy" else np.savez_compressed(blob, track=values)
        path = folder / f"take.{ending}"
        path.write_bytes(hurt[0](blob.getvalue()) if hurt else blob.getvalue())
        return Case(
            "arrays",
            f"{shape} {kind} x {scale}, {order}, {hurt and hurt[1]}",
            face.__main__.main,
            ["convert", str(path), "out.json", *(["--order", order] if order else [])],
            lambda: wrong_track(folder / "out.json"),
        )

    return make
