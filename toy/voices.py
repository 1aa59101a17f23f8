"""Synthetic voices that speak a text and say when: espeak-ng (robotic, many) and flite (natural, few).

Only `prepare.py demo` needs them. Both are optional and are looked for when first used: `pip install
espeakng-loader` (GPL-3, called through its C interface) and the program `flite` (Debian package of that name,
BSD-like). A clip is 16 kHz mono with the spans of its words and phones in seconds. Phones are named as their
synthesizer does: espeak-ng's mnemonics without stress marks, flite's ARPAbet in lower case; a pause is "pau" in both.

A waveform has shape (samples,).
"""
import _ctypes
import ctypes
import functools
import os
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import soxr

from toy.domain import spoken

RATE = 16_000
ANSWER_VOICE = "rms"                                            # flite: it answers, and asks too
NATURAL = ("awb", "rms", "kal16", "kal")                        # flite, in training in these shares
NATURAL_SHARES = (0.35, 0.3, 0.25, 0.1)
HELD_NATURAL = ("slt",)
ACCENTS = ("en-us", "en", "en-gb-x-rp", "en-gb-scotland", "en-029")
HELD_ACCENTS = ("en-us-nyc", "en-gb-x-gbclan")                  # with held-out variants only
VARIANTS = ("m1", "m2", "m3", "m4", "m5", "m6", "m7", "f1", "f2", "f3", "f5", "klatt", "klatt3", "klatt4", "Alex",
            "Annie", "Diogo", "linda")
HELD_VARIANTS = ("m8", "f4", "klatt2", "Andrea", "Michael", "Alicia")


class Clip(NamedTuple):
    audio: np.ndarray       # (samples,) float32 at 16 kHz
    words: list             # [(word, start, end), ...] seconds, in order
    phones: list            # [(name, start, end), ...] seconds, without gaps

    def later(self, seconds: float):
        """The same after that much silence."""
        first = round(seconds * RATE)
        moved = ([(name, start + seconds, end + seconds) for name, start, end in spans] for spans in self[1:])
        return Clip(np.concatenate([np.zeros(first, np.float32), self.audio]), *moved)


# ---- espeak-ng: docs/spec/face.md 6.1 -----------------------------------------------------------------------------

class Event(ctypes.Structure):
    """espeak_EVENT. The name of a phone lies in `name` itself, up to 8 bytes, not always with a zero after them."""
    _fields_ = [("type", ctypes.c_int), ("id", ctypes.c_uint), ("text_position", ctypes.c_int),
                ("length", ctypes.c_int), ("audio_position", ctypes.c_int), ("sample", ctypes.c_int),
                ("user_data", ctypes.c_void_p), ("name", ctypes.c_ubyte * 8)]


END, WORD, PHONE = 0, 1, 7                                      # espeak_EVENT_TYPE
SYNCHRONOUS, PHONE_EVENTS = 2, 1
RATE_WPM, PITCH, PITCH_RANGE = 1, 3, 4                          # espeak_PARAMETER
Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(Event))
# Their event is the release; the silent closure lies before it (docs/spec/face.md 6.1).
RELEASED = ("p", "t", "k", "tS", "t2")
CLOSURE = 0.04


@contextmanager
def espeak_library():
    """Yield (the library, its sample rate), loaded anew: its flutter and noise go on from sentence to sentence, and a
    clip should not depend on what was said before it. Raises OSError where it is not installed."""
    try:
        import espeakng_loader
    except ImportError:
        raise OSError("`pip install espeakng-loader` for the espeak-ng voices (GPL-3, to make data only)") from None
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    try:
        rate = library.espeak_Initialize(SYNCHRONOUS, 0, str(espeakng_loader.get_data_path()).encode(), PHONE_EVENTS)
        if rate <= 0:
            raise OSError(f"espeak-ng does not start (code {rate}): install espeakng-loader again")
        library.espeak_ng_SetRandSeed(ctypes.c_long(1))             # else the clock's
        yield library, rate
        library.espeak_Terminate()
    finally:
        (_ctypes.FreeLibrary if os.name == "nt" else _ctypes.dlclose)(library._handle)


def espeak(text: str, voice: str = "en-us", wpm: int = 165, pitch: int = 50, pitch_range: int = 50) -> Clip:
    """voice: an accent, or accent+variant such as "en-us+f2"; pitch and its range 0 to 100. Not for several threads.
    Raises ValueError for an unknown voice, OSError without the library."""
    sound, reported = [], []

    @Callback
    def collect(samples, count, events):
        if samples and count:
            sound.append(np.ctypeslib.as_array(samples, (count,)).copy())
        n = 0
        while events[n].type != END:
            event = events[n]
            if event.type in (WORD, PHONE):
                name = bytes(event.name).partition(b"\0")[0]
                reported.append((event.type, event.text_position - 1, event.sample, name))
            n += 1
        return 0

    with espeak_library() as (library, rate):
        if library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise ValueError(f"espeak-ng has no voice {voice!r}: expected an accent such as en-us, variants after a +")
        for parameter, value in ((RATE_WPM, wpm), (PITCH, pitch), (PITCH_RANGE, pitch_range)):
            library.espeak_SetParameter(parameter, value, 0)
        library.espeak_SetSynthCallback(collect)
        data = text.encode()
        library.espeak_Synth(data, len(data) + 1, 0, 1, 0, 1, None, None)
    audio = np.concatenate(sound).astype(np.float32) / 32768
    seconds = len(audio) / rate
    names = [name.decode().lstrip("',") for kind, _, _, name in reported if kind == PHONE]
    starts = [sample / rate for kind, _, sample, _ in reported if kind == PHONE]
    for n in range(1, len(names)):
        if names[n] in RELEASED:
            starts[n] = max(starts[n] - CLOSURE, (starts[n - 1] + starts[n]) / 2)
    phones = spans(["pau" if name.startswith("_") else name for name in names], starts, seconds)
    words = espeak_words(text, [(position, sample / rate) for kind, position, sample, _ in reported if kind == WORD],
                         [start for name, start, _ in phones if name == "pau"] + [seconds])
    return Clip(soxr.resample(audio, rate, RATE), words, phones)


def spans(names, starts, seconds: float) -> list:
    """Names and when they start -> [(name, start, end)], each until the next; nothing of no length."""
    ends = [*starts[1:], seconds]
    return [(name, start, end) for name, start, end in zip(names, starts, ends) if end > start]


def espeak_words(text: str, events: list, pauses: list) -> list:
    """events: (position in the text, start) where the synthesizer begins a word. One written word may begin twice; two
    said as one ("of a", "that the") begin once and share the time by their letters. A word lasts until the next, or a
    pause."""
    groups, position = [], 0                                    # [words said as one, start]
    for written in text.split():
        position = text.index(written, position)
        inside = [start for at, start in events if position <= at < position + len(written)]
        position += len(written)
        if inside and spoken(written):
            groups.append(([spoken(written)], min(inside)))
        elif groups and spoken(written):
            groups[-1][0].append(spoken(written))
    found = []
    for (words, start), limit in zip(groups, [start for _, start in groups[1:]] + [pauses[-1]]):
        end = min([limit, *(pause for pause in pauses if pause > start)])
        edges = start + (end - start) * np.cumsum([0, *map(len, words)]) / sum(map(len, words))
        found += zip(words, edges[:-1].tolist(), edges[1:].tolist())
    return found


# ---- flite --------------------------------------------------------------------------------------------------------

def run_flite(*arguments) -> str:
    """What flite prints. Raises OSError where it is not installed or fails."""
    program = shutil.which("flite")
    if program is None:
        raise OSError("flite is not installed: `apt-get install flite` for the natural voices (to make data only)")
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"flite failed: {' '.join(done.stderr.split()) or f'code {done.returncode}'}")
    return done.stdout


def parse_psdur(printed: str) -> list:
    """"pau:0.152 w:0.286 ..." (each phone with its end) -> [(name, start, end)] in seconds. Raises ValueError."""
    try:
        pairs = [(name, float(end)) for name, end in (part.rsplit(":", 1) for part in printed.split())]
    except ValueError:
        raise ValueError(f"flite -psdur printed {printed[:60]!r}, expected phone:end ...") from None
    starts = [0.0, *(end for _, end in pairs[:-1])]
    return [(name, start, end) for (name, end), start in zip(pairs, starts) if end > start]


def flite(text: str, voice: str = ANSWER_VOICE, stretch: float = 1.0, hertz: float | None = None,
          warp: float = 1.0) -> Clip:
    """stretch: how much longer than usual. hertz: mean pitch, which rms does not follow. warp: the spectrum times this,
    pitch included, at the same length: another speaker. Raises OSError."""
    options = ["--setf", f"duration_stretch={stretch * warp:.4f}"]
    options += [] if hertz is None else ["--setf", f"int_f0_target_mean={hertz:.1f}"]
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "said.wav"
        phones = parse_psdur(run_flite("-voice", voice, *options, "-psdur", "-t", text, "-o", path))
        audio, rate = soundfile.read(path, dtype="float32")
    audio = soxr.resample(audio, rate * warp, RATE)
    seconds = len(audio) / RATE
    phones = [(name, start / warp, min(end / warp, seconds)) for name, start, end in phones if start / warp < seconds]
    words = spoken(text).split()
    return Clip(audio, word_spans(words, [pronunciation(word) for word in words], phones), phones)


@functools.cache
def pronunciation(word: str) -> tuple:
    """The phones of a word said alone."""
    return tuple(name for name in run_flite("-voice", "kal", "-ps", "-t", word, "none").split() if name != "pau")


VOWELS = "aeiou"


def word_spans(words: list, expected: list, phones: list) -> list:
    """[(word, start, end)] from the phones each word has alone and those that were said, by the cheapest alignment: the
    program does not print words, and in a sentence they sound a little otherwise ("the", "a", linked sounds)."""
    said = [phone for phone in phones if phone[0] != "pau"]
    owner = [n for n, names in enumerate(expected) for _ in names]
    alone = [name for names in expected for name in names]
    cost = np.zeros((len(alone) + 1, len(said) + 1))
    cost[:, 0], cost[0] = np.arange(len(alone) + 1), np.arange(len(said) + 1)

    def change(i, j):
        a, b = alone[i - 1], said[j - 1][0]
        return 0 if a == b else 0.6 if (a[0] in VOWELS) == (b[0] in VOWELS) else 1.6

    for i in range(1, len(alone) + 1):
        for j in range(1, len(said) + 1):
            cost[i, j] = min(cost[i - 1, j - 1] + change(i, j), cost[i - 1, j] + 1, cost[i, j - 1] + 1)
    i, j, found = len(alone), len(said), {}
    while j:
        if i and cost[i, j] == cost[i - 1, j - 1] + change(i, j):
            i, j = i - 1, j - 1
            of = owner[i]
        elif i and cost[i, j] == cost[i - 1, j] + 1:
            i -= 1
            continue
        else:
            j -= 1
            of = owner[max(i - 1, 0)]
        found[of] = (said[j][1], found.get(of, (0, said[j][2]))[1])
    return [(word, *found[n]) for n, word in enumerate(words) if n in found]


# ---- how a clip is spoken, and what happens to it on the way ------------------------------------------------------

def sample_voice(family: str, random: np.random.Generator, held: bool = False) -> dict:
    """Who says it and how, at random, as arguments of `speak`. family: espeak or flite; held: one of the voices that
    training never hears."""
    if family == "espeak":
        accents = ACCENTS + HELD_ACCENTS if held else ACCENTS
        voice = f"{random.choice(accents)}+{random.choice(HELD_VARIANTS if held else VARIANTS)}"
        return {"family": family, "voice": voice, "wpm": int(random.integers(135, 196)),
                "pitch": int(random.integers(25, 76)), "pitch_range": int(random.integers(30, 71))}
    if held:
        return {"family": family, "voice": str(random.choice(HELD_NATURAL)),
                "stretch": round(random.uniform(0.9, 1.1), 3)}
    voice = str(random.choice(NATURAL, p=NATURAL_SHARES))
    return {"family": family, "voice": voice, "stretch": round(random.uniform(0.85, 1.15), 3),
            "warp": round(random.uniform(0.9, 1.25), 3),
            "hertz": None if voice == "rms" else round(random.uniform(90, 170), 1)}


def speak(text: str, family: str, **how) -> Clip:
    """The text, spoken by `espeak` or `flite` with their arguments `how`."""
    return {"espeak": espeak, "flite": flite}[family](text, **how)


def augment(audio, random: np.random.Generator) -> np.ndarray:
    """A waveform (samples,) as a microphone in a room may record it, as long as before: for 2 in 5 an echo, for half a
    hiss 12 to 35 dB below the voice, always a gain of -6 to 6 dB. The direct sound stays where it is, so that spans
    still hold."""
    audio = np.asarray(audio, np.float32)
    if random.random() < 0.4:
        audio = echo(audio, random)
    if random.random() < 0.5:
        hiss = np.fft.rfft(random.standard_normal(len(audio)))
        slope = np.maximum(np.arange(len(hiss)), 1) ** -random.uniform(0, 0.5)          # white to pink
        hiss = np.fft.irfft(hiss * slope, len(audio))
        level = np.sqrt(np.mean(audio ** 2) + 1e-12) * 10 ** (-random.uniform(12, 35) / 20)
        audio = audio + hiss * (level / (hiss.std() + 1e-12))
    audio = audio * 10 ** (random.uniform(-6, 6) / 20)
    return (audio * min(1, 0.99 / max(np.abs(audio).max(), 1e-6))).astype(np.float32)


def echo(audio, random: np.random.Generator) -> np.ndarray:
    """audio (samples,) in a small room: noise that dies away by 60 dB in 0.1 to 0.4 s follows the direct sound."""
    seconds = random.uniform(0.1, 0.4)
    t = np.arange(round(seconds * RATE)) / RATE
    response = random.standard_normal(len(t)) * 10 ** (-3 * t / seconds) * (t > random.uniform(0.002, 0.01))
    response *= random.uniform(0.2, 0.7) / np.sqrt(np.sum(response ** 2))
    response[0] = 1
    size = 1 << (len(audio) + len(t)).bit_length()
    return np.fft.irfft(np.fft.rfft(audio, size) * np.fft.rfft(response, size), size)[:len(audio)]
