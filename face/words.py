"""Names of columns and json keys -> what they may say about time; cells -> numbers, units and timecodes.

A name is split into words, so that all of frame_interval_ms, frameIntervalMs and FrameIntervalMS mean the same.
"""
import math
import re
from functools import lru_cache

import numpy as np

from face.arkit import few, folded
from face.timing import CODE

UNITS = {word: factor for factor, spelled in (
    (86400, "day days"), (3600, "hour hours"), (60, "minute minutes"), (1, "s sec secs second seconds"),
    (1e-3, "ms msec msecs milli millis millisec millisecs millisecond milliseconds mspf"),
    (1e-6, "us usec usecs micro micros microsec microsecs microsecond microseconds"), (1e-7, "100ns filetime"),
    (1e-9, "ns nsec nsecs nano nanos nanosec nanosecs nanosecond nanoseconds")) for word in spelled.split()}

# A column whose words are all in TIME gives the times of the rows, before all others; all in FRAME: their numbers.
TIME = {"time", "timestamp", "timecode", "ts", "t", "elapsed", "in", *UNITS} - {
    "hour", "minute", "hours", "minutes", "days"}
FRAME = {"frame", "index", "idx", "number", "num", "no", "count", "id", "framenum", "frameno", "frameidx", "frameid"}
RATES = {"exportfps", "fps", "framerate", "framespersecond", "capturefps", "samplerate", "samplingrate"}
DATE = re.compile(r"^\d{1,4}[-/.]\d\d?[-/.]\d{1,4}[T ]+|(?:Z|[+-]\d\d:?\d\d)$")       # a date before, a zone after

# Words that are also found at the end of a longer word: devicetime, frametimems.
LONG = ("timestamp|timecode|time|stamp|frame|delta|elapsed|duration|interval|length|clock|epoch|millisecond|"
        "millis|microsecond|micros|nanosecond|nanos|second|tick|index|number|count|sampling|sample|capture|rate|"
        "fps|period|step|scale|base|diff")
GLUED = re.compile(f"((?:[a-z]{{3,}})??)((?:{LONG})+)s?(ms|us|ns|secs?)?|(t|ts|dt|pts)()(ms|us|ns|secs?)")
CLOCK = {"time", "timestamp", "timecode", "stamp", "ts", "t", "pts", "dts", "elapsed", "clock", "epoch", "tick", "tc",
         "filetime", "datetime", "smpte"}
STEP = {"delta", "dt", "interval", "step", "diff", "period", "duration", "spf", "mspf", "between"}
COUNTER = {"frame", "index", "idx", "id", "no", "nr", "num", "number", "count", "counter", "seq", "sequence", "row",
           "sample", "n", "unnamed"}
FACE = {"face", "person", "actor", "subject", "user", "player", "speaker", "performer", "character", "track", "body",
        "head", "participant", "human", "avatar", "skeleton", "take", "clip", "recording", "session", "video", "file",
        "slate", "shot", "scene", "reel"}
LABEL = {"source", "id", "index", "idx", "no", "nr", "number", "name", "label", "key", "uid", "guid", "uuid"}
PARTS = {word: part for part, spelled in (("hour", "h hh hr hour hours"), ("minute", "m mm min mins minute minutes"),
                                          ("frame", "f ff frame frames")) for word in spelled.split()}

# Measurements and settings: their times and rates are not those of the rows.
OTHER = set("exposure inference latency processing process proc render rendering compute cpu gpu delay shutter "
            "detection detect solve solver response reaction blink blinks hold attack release fade bit bitrate heart "
            "learning success error drop dropped loss pulse breath breathing decay smoothing smooth filter focal wave "
            "path blend transition timeout lag offset drift bpm save autosave baud zone warmup budget pitch f0 noise "
            "progress percent phase creation created modified".split())
MEASURED = OTHER | set("temperature temp humidity battery distance depth position pos rotation angle yaw roll size "
                       "width height area bytes score confidence quality volume energy level gain brightness light lux "
                       "weight value landmark gaze head eye mouth jaw age".split())
SOUND = {"audio", "sound", "wav", "mic", "speech", "voice"}

PLAIN_FPS = 4.9, 245                # a unit that is not stated must give a number of rows per second in this range
RATE_FORMS = "p", "df", "ndf", "frames", "frame"                # what may follow the number of a rate
PROSE = re.compile(r"(?i)(?<![^\W_])(?<!\d[-.:/])(\d{1,3}(?:[.,]\d+)?|\d{5}/1001) ?"
                   r"(?:fps|f/s|hz|frames?(?: per | a |/)s)|"
                   r"\b(?:fps|frame ?rate)(?: is| of|[ :=@])*(\d{1,3}(?:\.\d+)?)\b|"
                   r"\d{3}p(?: ?[/@] ?)?(\d{2,3}(?:\.\d+)?)\b")
SPELLED = {"twenty four": "24", "twenty five": "25", "thirty": "30", "fifty": "50", "sixty": "60"}
HEDGED = re.compile(r"(?i)hz\b|\b(?:from|not|max|maximum|up to|render|display|monitor|screen|playback|target)\b")


@lru_cache(4096)
def words(name: str) -> tuple:
    """A name -> its words in lower case: frame_interval_ms and frameIntervalMs -> frame, interval, ms."""
    found = []
    for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", re.sub("[\u00b5\u03bc]", "u", name[:200])):
        word = word.lower()
        if found and found[-1] in ("u", "n", "m", "100") and found[-1] + word in UNITS:         # uS, 100 ns
            found[-1] += word
            continue
        glued = GLUED.fullmatch(word)
        parts = [word]
        if glued and word not in UNITS and not (glued[1] and glued[2] == "rate"):               # not: accu-rate
            parts = [glued[1] or glued[4], *re.findall(LONG, glued[2] or ""), glued[3] or glued[6]]
        found += [part for part in parts if part]
    return tuple(found)


def unit_of(name: str) -> float | None:
    """The unit in a name, in seconds; None if it has none, or two."""
    factors = {UNITS[word] for word in words(name) if word in UNITS}
    return factors.pop() if len(factors) == 1 else None


def is_clock(name: str) -> bool:
    """Whether a column of this name may hold times or time steps."""
    terms = {*words(name)}
    units = terms & {*UNITS} - {"s"}
    return not terms & OTHER and bool(terms & (CLOCK | STEP - {"duration", "step", "diff"}) or units or terms == {"s"})


def is_group(name: str) -> bool:
    """Whether a column of this name tells apart the rows of several faces or takes."""
    terms = {word for word in words(name) if not word.isdigit()}
    return bool(terms & FACE) and terms <= FACE | LABEL or terms == {"id"}


def is_counter(name: str) -> bool:
    """Whether a column of this name may number the rows."""
    return {word for word in words(name) if not word.isdigit()} <= COUNTER | FRAME


def may_say_time(name: str, cells: list) -> bool:
    """Whether a column may say something about time, by its name or its first cells."""
    if is_clock(name) or is_group(name) or is_counter(name) or kind_of(name):
        return True
    values = np.array([number(cell) for cell in cells])
    return len(cells) > 2 and (bool((np.diff(values) > 0).all()) or bool(cells) and all(map(like_a_clock, cells)))


def number(cell) -> float:
    """A cell -> its number, with a decimal point or comma; NaN if it is none."""
    if isinstance(cell, bool) or isinstance(cell, str) and "_" in cell:        # float() accepts "1_000"
        return math.nan
    try:
        return float(cell.replace(",", ".") if isinstance(cell, str) else cell)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def blank(cell) -> bool:
    """Whether a cell holds nothing: empty, null, or NaN as pandas writes it."""
    return cell is None or cell != cell or isinstance(cell, str) and cell.lower() in ("", "nan")


def seen(cell) -> str:
    """What to say about a cell in an error message: that it is blank, or what it holds."""
    return "is blank" if cell in (None, "") else f"holds {cell[:40] if isinstance(cell, str) else few([cell])!r}"


def clean(cell) -> str:
    """A timecode without a date before it and a time zone after it."""
    return DATE.sub("", str(cell).strip()).strip().replace(",", ".")


def like_a_clock(cell) -> bool:
    """Whether a text holds a time of day, or a date with a time, in any notation."""
    return isinstance(cell, str) and bool(re.search(r"\d:\d\d|\dT\d{6}", cell))


def readable(cell) -> bool:
    """Whether a cell holds a number or a time."""
    return math.isfinite(number(cell)) or like_a_clock(cell)


def coded(cells: list) -> list | None:
    """Cells -> their timecodes; None if any is none."""
    codes = [clean(cell) for cell in cells]
    return codes if all(CODE.fullmatch(code) for code in codes) else None


def leaf_of(name: str) -> str:
    """The last part of a fact's dotted name; the one before if the last is a word such as mean: frameTime.mean."""
    *above, leaf = name.split(".")
    return above[-1] if above and folded(leaf) in ("mean", "avg", "average", "median", "nominal", "value") else leaf


def kind_of(name: str) -> str:
    """What a fact of this name is: "scale" (ticks in a second), "rate", "period" (of a frame), "duration", "count" (of
    frames), or "" for anything else."""
    ordered, all_words = words(leaf_of(name)), {*words(name)}
    terms = {*ordered}
    both = lambda *two: {*two} <= terms
    if all_words & OTHER:
        return ""
    if terms & {"timescale", "timebase"} or both("time", "scale") or both("time", "base") or both("tick", "per") or \
            both("tick", "rate"):
        return "scale"
    if "per frame" in " ".join(ordered):
        return "period"
    if terms & {"fps", "hz", "hertz", "rate", "frequency"} or terms == {"fr"} or "frame per" in " ".join(ordered) or \
            "per" in terms and terms & {"s", "sec", "second"}:
        return "" if all_words & SOUND else "rate"
    frames = {"frame", "row", "rows", "keyframe", "keyframes"}
    if terms & frames and terms <= frames | {"num", "number", "n", "total", "count", "of", "nr"}:
        return "count"
    if not terms & {"frame", "sample"} and (
            terms & {"duration", "length"} or both("total", "time") or both("run", "time")):
        return "duration"
    steps = terms & (STEP - {"step", "diff"})
    return "period" if steps or both("time", "step") or both("frame", "time") or both("frame", "length") else ""


def amount(value) -> tuple:
    """A fact's value -> (number, its unit in seconds or None): 60, "60 fps", "16.7 ms", "30000/1001", "00:00:02.5".
    The number is NaN if the value has none."""
    if not isinstance(value, str):
        return number(value), None
    text = value.strip()
    ratio = re.fullmatch(r"(\d+)\s*[/:]\s*(\d+)(?:\s*[a-zA-Z]+)?", text)
    if ratio and "/" in text and int(ratio[2]):
        return int(ratio[1]) / int(ratio[2]), None
    if re.fullmatch(r"(\d+:)?\d+:\d+(\.\d+)?", text):
        return sum(float(part) * 60 ** i for i, part in enumerate(reversed(text.split(":")))), 1
    found = re.fullmatch(r"([-+.,\deE]*\d\.?)\s*([^\d\s(]*)\D*", text)           # 29.97 fps NDF
    unit = found[2].lower().rstrip(".,") if found else ""
    if not found or unit and unit not in (*UNITS, "fps", "hz", "f/s", "%", *RATE_FORMS):
        return math.nan, None
    return number(found[1]), UNITS.get(unit)


def plain(rate: float) -> bool:
    """Whether a rate is in the range of usual ones."""
    return PLAIN_FPS[0] <= rate <= PLAIN_FPS[1]


def rates_in(text: str) -> tuple:
    """Rates, in frames per second, in a sentence, and whether they are surely those of the rows: "Recorded with X (60
    FPS)", "fps 60", "1080p60" are, "downsampled from 120 fps" is not."""
    text = re.sub(f"(?i)\\b({'|'.join(SPELLED).replace(' ', '[ -]')})\\b",
                  lambda found: SPELLED[found[0].lower().replace("-", " ")], text)
    rates = [amount(next(filter(None, found)))[0] for found in PROSE.findall(text)]
    return [rate for rate in rates if rate >= 1], not HEDGED.search(text)
