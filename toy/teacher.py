"""A rule-based face: the phones of a sentence with their times -> 52 ARKit weights, 30 frames per second.

It teaches the mini model's face decoder (docs/spec/face.md 6.2 to 6.5). Each phone has a target lip shape. Neighbouring
targets are blended by dominance functions (Cohen and Massaro 1993). Then what lip-readers need is enforced: closed lips
in /p b m/, lip to teeth in /f v/, a narrow jaw in /s z/. At last blinks, brows and gaze are added. Numpy only,
deterministic.

Input: phones with flite's names (ARPAbet in lower case, "pau" for a pause), start and end in seconds. flite's voiceless
stops include their silent closure: the first three fifths of a p are silent.
Shapes: T face frames, K = 52 weights in the order of arkit.ARKIT_NAMES, all in [0, 1]; P segments (a phone, or half a
diphthong), C = len(SHAPES) lip weights, left and right as one.
"""
import numpy as np

from face.arkit import ARKIT_NAMES
from face.metrics import loudness
from face_decoder import FPS

# Lip class -> its phones. Diphthongs have two classes, the first for 60 % of the time.
CLASSES = {
    "PP": "p b m em", "FF": "f v", "TH": "th dh", "DD": "t d dx", "nn": "n l nx", "kk": "k g ng hh", "SS": "s z",
    "CH": "ch jh sh zh", "RR": "r", "WW": "w", "aa": "aa ah", "ae": "ae", "E": "eh", "I": "iy y", "ih": "ih", "O": "ao",
    "U": "uw uh", "ax": "ax", "er": "er axr", "sil": "pau"}
PHONES = {phone: (name,) for name, phones in CLASSES.items() for phone in phones.split()} | {
    "ay": ("aa", "I"), "aw": ("aa", "U"), "ow": ("O", "U"), "ey": ("E", "I"), "oy": ("O", "I"), "el": ("ax", "nn"),
    "en": ("ax", "nn")}

# Targets (docs/spec/face.md 6.3), equal for left and right. In silence the lips are sealed: mouthClose equals jawOpen.
# Different from 6.3: the jaw of open vowels is a third wider, because blending lowers short ones (6.4, undershoot), and
# closed lips are pressed more (rolled, lower lip raised), because a model trained on this undershoots as well.
SHAPES = ("jawOpen", "mouthClose", "mouthFunnel", "mouthPucker", "mouthSmile", "mouthStretch", "mouthLowerDown",
          "mouthUpperUp", "mouthRollLower", "mouthRollUpper", "mouthPress", "mouthShrugLower", "tongueOut")
TARGETS = {
    #      jaw  close funnel pucker smile stretch lower upper rollL rollU press shrug tongue
    "sil": (.02, .02, 0,   0,   0,   0,   0,   0,   0,   0,   0,   0,   0),
    "PP":  (.10, .10, 0,   0,   0,   0,   0,   0,   .40, .25, .35, .25, 0),
    "FF":  (.08, 0,   0,   0,   0,   .05, 0,   .25, .55, 0,   0,   0,   0),
    "TH":  (.14, 0,   0,   0,   0,   0,   .15, .08, 0,   0,   0,   0,   .35),
    "DD":  (.12, 0,   0,   0,   0,   0,   .15, .08, 0,   0,   0,   0,   0),
    "nn":  (.12, 0,   0,   0,   0,   0,   .10, 0,   0,   0,   0,   0,   0),
    "kk":  (.16, 0,   0,   0,   0,   0,   .12, 0,   0,   0,   0,   0,   0),
    "SS":  (.05, 0,   0,   0,   .08, .20, .25, .12, 0,   0,   0,   0,   0),
    "CH":  (.10, 0,   .45, .30, 0,   0,   .15, .15, 0,   0,   0,   0,   0),
    "RR":  (.12, 0,   .20, .35, 0,   0,   0,   0,   0,   0,   0,   0,   0),
    "WW":  (.06, 0,   .15, .75, 0,   0,   0,   0,   0,   0,   0,   0,   0),
    "aa":  (.82, 0,   0,   0,   0,   0,   .20, .10, 0,   0,   0,   0,   0),
    "ae":  (.60, 0,   0,   0,   0,   .15, .25, .15, 0,   0,   0,   0,   0),
    "E":   (.40, 0,   0,   0,   0,   .15, .25, .12, 0,   0,   0,   0,   0),
    "I":   (.16, 0,   0,   0,   .35, .20, .20, .10, 0,   0,   0,   0,   0),
    "ih":  (.20, 0,   0,   0,   .18, .12, .15, 0,   0,   0,   0,   0,   0),
    "O":   (.48, 0,   .45, .30, 0,   0,   0,   0,   0,   0,   0,   0,   0),
    "U":   (.14, 0,   .25, .70, 0,   0,   0,   0,   0,   0,   0,   0,   0),
    "ax":  (.22, 0,   0,   0,   0,   0,   .12, 0,   0,   0,   0,   0,   0),
    "er":  (.18, 0,   .25, .25, 0,   0,   0,   0,   0,   0,   0,   0,   0),
}
# Dominance (docs/spec/face.md 6.4): strength alpha, reach tau in seconds, seconds by which it begins early (lips are
# rounded in advance).
VOWEL = (1, .075, 0)
DOMINANCE = {"sil": (1.5, .08, 0), "PP": (6, .045, 0), "FF": (4, .045, 0), "TH": (1.5, .05, 0), "DD": (.7, .045, 0),
             "nn": (.6, .045, 0), "kk": (.5, .045, 0), "SS": (1.6, .05, 0), "CH": (1.8, .09, .04), "RR": (1.2, .08, 0),
             "WW": (2.2, .11, .04), "O": (1, .075, .04), "U": (1, .075, .04)}
VOWELS = ("aa", "ae", "E", "I", "ih", "O", "U", "ax", "er")
COLUMN = {name: n for n, name in enumerate(SHAPES)}
JAW, CLOSE = COLUMN["jawOpen"], COLUMN["mouthClose"]
LOUD = [COLUMN[name] for name in ("mouthLowerDown", "mouthUpperUp", "mouthFunnel")]
JAW_MOST = .85
PRESSED = [COLUMN[name] for name in ("mouthRollLower", "mouthRollUpper", "mouthPress", "mouthShrugLower")]
ROUND = [COLUMN[name] for name in ("mouthPucker", "mouthSmile", "mouthStretch")]
UNSHAPED, UNSHAPED_SHARE = ("PP", "DD", "nn", "kk"), .15     # rounding and spreading mostly of their neighbours
SIBILANT_JAW, TEETH_JAW, LIPS_JAW = .25, .12, .25
SHORT_PAUSE, SHORT_PAUSE_ALPHA = .27, .2        # seconds: shorter pauses do not close the mouth
FROM_REST, TO_REST = .1, .2                     # seconds from and to the rest pose at both ends
DOWN, SHUT, UP = .08, .04, .16                  # seconds of the phases of a blink
AWAKE = .2, .3                                  # seconds at both ends without a blink


def face_track(phones: list, frames: int, sound=None, rate: int = 16_000, seed: int = 0) -> np.ndarray:
    """phones [(name, start, end), ...] seconds -> (T, K) float32 for T = `frames`; frame t is shown at t / 30 s.

    frames: face_decoder.frames_for_units of the speech's units, so that both clocks agree. sound (samples,): its
    waveform, if None constant loudness is assumed. seed: of blinks and gaze. The first and the last frame are the rest
    pose, all weights 0: lips sealed, eyes open and straight ahead. Raises ValueError for a phone that flite does not
    have, and without phones or frames.
    """
    if not len(phones) or frames < 1:
        raise ValueError(f"{len(phones)} phones in {frames} frames: a face needs at least one of each")
    pieces = segments(phones)
    loud = np.full(frames, .5) if sound is None else relative_loudness(sound, rate, frames)
    lips = constrain(blend(pieces, np.arange(frames) / FPS, .7 + .6 * loud), pieces)
    random = np.random.default_rng(seed)
    track = np.zeros((frames, len(ARKIT_NAMES)))
    for name, values in zip(SHAPES, lips.T):
        put(track, name, values)
    pauses = [(start, end) for name, start, end in pieces if name == "sil"]
    blink(track, pauses, random)
    brows(track, pieces, loud)
    gaze(track, random)
    times = np.arange(frames) / FPS
    awake = ease(times / FROM_REST) * ease((times[-1] - times) / TO_REST)   # keeps sealed lips sealed
    return (track * awake[:, None]).clip(0, 1).astype(np.float32)


def put(track, name: str, values) -> None:
    """Add `values` (T,) to a weight, or to its left and right version."""
    for full in (name, name + "Left", name + "Right"):
        if full in ARKIT_NAMES:
            track[:, ARKIT_NAMES.index(full)] += values


def segments(phones: list) -> list:
    """[(class, start, end)]: diphthongs are split, equal neighbours merged (in "top man" the lips close once)."""
    pieces = []
    for phone, start, end in phones:
        if phone not in PHONES:
            raise ValueError(f"phone {phone!r} is unknown: expected flite's, such as {', '.join(sorted(PHONES)[:6])}")
        classes, middle = PHONES[phone], start + .6 * (end - start)
        if phone == "p":                                    # so that its middle half ends with the closure
            parts = [("PP", start, start + .8 * (end - start))]
        elif len(classes) == 2:
            parts = [(classes[0], start, middle), (classes[1], middle, end)]
        else:
            parts = [(classes[0], start, end)]
        if pieces and pieces[-1][0] == parts[0][0]:
            parts[0] = (parts[0][0], pieces.pop()[1], parts[0][2])
        pieces += parts
    return pieces


def relative_loudness(sound, rate: int, frames: int) -> np.ndarray:
    """(T,) in [0, 1]: loudness smoothed over three frames, relative to the 95th percentile of the clip."""
    level = smooth(loudness(np.asarray(sound), rate, frames)[:, None])[:, 0]
    return (level / max(np.percentile(level, 95), 1e-6)).clip(0, 1)


def smooth(values) -> np.ndarray:
    """(T, C) -> (T, C), smoothed over frames with weights 1/4, 1/2, 1/4."""
    padded = np.pad(values, ((1, 1), (0, 0)), mode="edge")
    return .25 * padded[:-2] + .5 * padded[1:-1] + .25 * padded[2:]


def blend(pieces: list, times, gain) -> np.ndarray:
    """(T, C): average of the targets, weighted by dominance alpha exp(-(distance / tau)^1.5), where distance is that to
    the middle half of a segment. The opening of the mouth is then scaled by gain (T,)."""
    names = [name for name, _, _ in pieces]
    start, end = np.array([(start, end) for _, start, end in pieces]).T
    alpha, tau, early = np.array([DOMINANCE.get(name, VOWEL) for name in names]).T
    inside = np.arange(len(names)) % (len(names) - 1) > 0 if len(names) > 1 else np.zeros(1, bool)
    short = inside & (np.array(names) == "sil") & (end - start < SHORT_PAUSE)
    alpha = np.where(short, SHORT_PAUSE_ALPHA, alpha)
    first, last = start + (end - start) / 4 - early, end - (end - start) / 4
    distance = np.maximum(first - times[:, None], times[:, None] - last).clip(min=0)         # (T, P)
    weight = alpha * np.exp(-(distance / tau) ** 1.5) + 1e-9
    targets = np.array([TARGETS[name] for name in names])
    lips = weight @ targets / weight.sum(1, keepdims=True)
    weight = weight * np.where(np.isin(names, UNSHAPED), UNSHAPED_SHARE, 1)
    lips[:, ROUND] = (weight @ targets[:, ROUND]) / weight.sum(1, keepdims=True)
    opening = lips[:, JAW] - lips[:, CLOSE]
    lips[:, JAW] = lips[:, CLOSE] + (opening * gain).clip(0, JAW_MOST)
    lips[:, LOUD] *= gain[:, None]
    return lips


def constrain(lips, pieces: list) -> np.ndarray:
    """Enforce what each class requires while it lasts, then smooth all frames but the closed ones."""
    lips, closed = lips.copy(), np.zeros(len(lips), bool)
    for name, start, end in pieces:
        first, last = start + (end - start) / 4, end - (end - start) / 4
        if name == "PP":                                    # closed from the start, until the release
            first, last = start, end - (end - start) / 8
        here = slice(round(first * FPS), max(round(last * FPS), round(first * FPS)) + 1)        # at least one frame
        if name in ("SS", "CH"):
            lips[here, JAW] = np.minimum(lips[here, JAW], SIBILANT_JAW)
        elif name == "FF":
            lips[here, JAW] = np.minimum(lips[here, JAW], TEETH_JAW)
            lips[here, COLUMN["mouthLowerDown"]] = 0
            lips[here, COLUMN["mouthRollLower"]] = np.maximum(lips[here, COLUMN["mouthRollLower"]], .45)
        elif name == "PP":
            closed[here] = True
            lips[here, [COLUMN["mouthLowerDown"], COLUMN["mouthUpperUp"]]] = 0
            lips[here, JAW] = np.minimum(lips[here, JAW], LIPS_JAW)
            lips[here, CLOSE] = lips[here, JAW]
            lips[here, PRESSED] = np.take(TARGETS["PP"], PRESSED)
    lips = np.where(closed[:, None], lips, smooth(lips))
    lips[:, CLOSE] = np.minimum(lips[:, CLOSE], lips[:, JAW])
    return lips


# ---- blinks, brows, gaze (docs/spec/face.md 6.5) --------------------------------------------------

def ease(x) -> np.ndarray:
    """0 below 0, 1 above 1, a raised cosine in between."""
    return (1 - np.cos(np.pi * np.clip(x, 0, 1))) / 2


def hump(times, start: float, rise: float, hold: float, fall: float) -> np.ndarray:
    """At times (T,): from 0 at `start` up to 1 within `rise` seconds, constant for `hold`, down within `fall`."""
    return ease((times - start) / rise) - ease((times - start - rise - hold) / fall)


def blink(track, pauses: list, random: np.random.Generator) -> None:
    """A blink about every 3.5 s (log-normal, 1.2 to 7), moved to a pause within half a second. The eyes are open at
    both ends of a clip, because a player may hold its last frame."""
    times, gap = np.arange(len(track)) / FPS, lambda: float(np.exp(random.normal(np.log(3.5), .4)).clip(1.2, 7))
    first, last = AWAKE[0], len(track) / FPS - AWAKE[1] - (DOWN + SHUT + UP)
    at = first + gap() * random.random()
    while at < last:
        near = min((max(start, min(at, end)) for start, end in pauses), key=lambda pause: abs(pause - at), default=at)
        near = min(max(near, first), last)
        shut = hump(times, near if abs(near - at) < .5 else at, DOWN, SHUT, UP)
        put(track, "eyeBlink", .95 * shut)
        put(track, "eyeSquint", .1 * shut)
        at += gap()


def brows(track, pieces: list, loud) -> None:
    """Raise the brows on vowels louder than their neighbours, at most once in 0.8 s: up within 120 ms before the
    middle, down within 300 ms."""
    times = np.arange(len(track)) / FPS
    middles = [(start + end) / 2 for name, start, end in pieces if name in VOWELS]
    levels, free = np.interp(middles, times, loud), 0.0
    for n, (middle, level) in enumerate(zip(middles, levels)):
        if middle >= free and level >= .6 and level == max(levels[max(n - 1, 0):n + 2]):
            raised = hump(times, middle - .12, .12, 0, .3)
            put(track, "browInnerUp", (.15 + .15 * (level - .6) / .4) * raised)
            put(track, "browOuterUp", (.10 + .10 * (level - .6) / .4) * raised)
            free = middle + .8


def gaze(track, random: np.random.Generator) -> None:
    """Every 0.5 to 2 s both eyes look in a new direction, by up to 0.05; the movement takes two frames."""
    frame, looks = 0, [n for n, name in enumerate(ARKIT_NAMES) if name.startswith("eyeLook")]
    while frame < len(track):
        until = frame + round(FPS * random.uniform(.5, 2))
        across, up = random.uniform(-.05, .05, 2)
        for left, right, value in (("OutLeft", "InRight", across), ("InLeft", "OutRight", -across),
                                   ("UpLeft", "UpRight", up), ("DownLeft", "DownRight", -up)):
            for side in (left, right):
                track[frame:until, ARKIT_NAMES.index("eyeLook" + side)] = max(value, 0)
        frame = until
    track[1:, looks] = (track[1:, looks] + track[:-1, looks]) / 2
