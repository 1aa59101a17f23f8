"""One clip of a corpus -> its arrays: the slow part, which the worker processes of corpus.py do.

Each clip opens its file anew and reads only its own span. So its samples do not depend on what was read before, and a
long recording is decoded once, however many clips are cut from it.

Shapes: U units, T face frames, K = 52 blendshapes.
"""
import io
import re
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from audio import MIN_SECONDS, RATES, SAMPLE_RATE, Levels, quiet
from containers import UNKNOWN, forwards, notes_of
from face.captures import read_capture
from face_decoder import FPS, UNIT_RATE, frames_for_units
from prepared import encode_array

UNIT_SAMPLES = round(SAMPLE_RATE / UNIT_RATE)       # 1280 samples per unit; a last, shorter piece gets a unit too
WARM = 0.5                  # seconds decoded before a span: after a seek, Opus needs a while to decode correctly
APART = 1.0                 # seconds by which a face track may be longer or shorter than its sound
KIND = 40                   # notes on faces that begin with the same 40 characters are of one kind
LACKING = 0.9               # a span is refused if the file holds less than this share of it


class Skip(Exception):
    """Why a row or text has no sample or sound. reason: one of a few, which are counted; detail: about this one."""

    def __init__(self, reason: str, detail=""):
        super().__init__(reason, detail)
        self.reason, self.detail = reason, " ".join(str(detail).split())[:300]


class Sound(NamedTuple):
    """Where to find a sound; it is not loaded yet."""
    path: Path | str                # the file, or the tar that it is in; also for messages
    begin: float = 0.0              # seconds from the start of the file
    end: float | None = None        # None: to its end
    member: tuple | None = None     # (offset, bytes) of the file in an uncompressed tar
    data: bytes | None = None       # the content of the file, if it came from a compressed tar or a table


@dataclass
class Clip:
    """An utterance or turn of a corpus: the samples that it becomes, and where to find their sound and face."""
    id: str
    rows: list                              # a dict per sample: task, messages, answer
    audio: Sound | None = None              # what the user says
    answer_audio: Sound | None = None       # the answer, spoken
    units: Path | None = None               # (U,) units of the answer, .npy
    face: Path | None = None                # the answer's face track, as face.captures.read_track reads it
    face_form: dict = field(default_factory=dict)       # its arguments: fps, order
    group: str = ""                         # speaker or dialogue; it goes to train or val as a whole. "": the id
    split: str | None = None                # train, val or test, if the corpus says so
    about: dict = field(default_factory=dict)           # kept with each sample


def decode(clip: Clip, longest: dict):
    """The arrays of a clip, as the files of prepared data hold them: audio and answer_audio (samples,), units (U,),
    face (T, K), and notes {kind: note} on its sounds and its face; or a Skip. longest: most seconds of audio and of
    answer_audio."""
    try:
        arrays = {"notes": {}}
        for name in ("audio", "answer_audio"):
            if (sound := getattr(clip, name)) is not None:
                arrays[name] = encode_array("audio", read_sound(sound, longest[name], arrays["notes"]))
        if clip.units is not None:
            arrays["units"] = read_units(clip.units)
        if clip.face is not None:
            arrays["face"] = read_face(clip, arrays)
        return arrays
    except Skip as skip:
        return skip
    except MemoryError:
        raise
    except Exception as error:              # one damaged file must not end the import
        return Skip("unreadable", f"{type(error).__name__}: {error}")


# ---- sound --------------------------------------------------------------------------------------------------------

def read_sound(sound: Sound, longest: float, notes: dict | None = None) -> np.ndarray:
    """A sound as (samples,) float32 at 16 kHz, mixed to mono by `audio.Levels.mix`; adds to `notes` what is odd. Raises
    Skip if it is missing, unreadable, cut off, or not MIN_SECONDS to `longest` seconds long. Never reads more than
    that."""
    notes = {} if notes is None else notes
    with opened(sound) as raw:
        samples, rate = read_numpy(raw) if str(sound.path).endswith(".npy") else read_span(raw, sound, longest, notes)
    if len(samples) > longest * rate:
        raise Skip("too long", f"{sound.path} is more than {longest:g} s")
    if len(samples) < MIN_SECONDS * rate:
        raise Skip("too short", f"{sound.path} has {len(samples) / rate:.3f} s")
    levels = Levels(rate, samples.shape[1])
    levels.add(samples)
    try:
        mix = levels.mix(sound.path)
    except ValueError as error:
        raise Skip("unreadable sound", error) from None
    samples = mix(samples)
    notes.update(mix.notes)
    import soxr                             # here, like soundfile below, as some commands of prepare.py need no sound
    samples = samples if rate == SAMPLE_RATE else soxr.resample(samples, rate, SAMPLE_RATE)
    return samples[:round(longest * SAMPLE_RATE)]                   # resampling may round up


@contextmanager
def opened(sound: Sound):
    """The file of a sound, opened. Raises Skip if it is missing or cut off."""
    try:
        raw = io.BytesIO(sound.data) if sound.data is not None else open(sound.path, "rb")
    except OSError as error:
        missing = isinstance(error, (FileNotFoundError, NotADirectoryError))
        raise Skip("missing sound" if missing else "unreadable sound", f"{sound.path} cannot be opened "
                   f"({error.strerror})") from None
    with raw:
        if sound.member is None:
            yield raw
            return
        offset, size = sound.member
        raw.seek(offset)
        data = raw.read(size)
        if len(data) < size:
            raise Skip("unreadable sound", f"{sound.path} is cut off")
        yield io.BytesIO(data)


def read_span(raw, sound: Sound, longest: float, notes: dict) -> tuple:
    """The span of an open sound file -> (samples, channels) float32, and its rate. Adds to `notes` what is odd. Raises
    Skip, also if the file is cut off within the span."""
    import soundfile
    bad = lambda why: Skip("unreadable sound", f"{sound.path} {why}")
    try:
        with quiet(), forwards(raw) as file:
            rate, begin = file.samplerate, round(sound.begin * file.samplerate)
            if not RATES[0] <= rate <= RATES[1]:
                raise bad(f"says it has {rate} samples per second")
            stated = file.frames - begin if sound.end is None else round(sound.end * rate) - begin
            known = sound.end is not None or file.frames != UNKNOWN
            if known and stated > longest * rate:
                raise Skip("too long", f"{stated / rate:.1f} s")
            if known and stated <= 0 or begin > file.frames:
                raise bad(f"has no sound from {sound.begin:g} s to {sound.end or file.frames / rate:g} s")
            warm = min(begin, round(WARM * rate))
            if begin:
                file.seek(begin - warm)
            samples = file.read(warm + (stated if known else int(longest * rate) + 1), "float32", always_2d=True)[warm:]
            if sound.end is None or len(samples) < stated:          # a file cut off after the span is no problem
                notes.update(notes_of(file, begin + len(samples)))
    except soundfile.LibsndfileError as error:
        raise bad(f"({error.error_string.rstrip('.')})") from None
    if "cut off" in notes:
        raise bad(notes["cut off"])
    if known and len(samples) < LACKING * stated:
        raise bad(f"is shorter than the span: {len(samples) / rate:.1f} of {stated / rate:.1f} s")
    return samples, rate


def read_numpy(raw) -> tuple:
    """A .npy file of sound at 16 kHz -> (samples, 1) float32, and the rate. Raises Skip."""
    samples = np.load(raw, allow_pickle=False)
    if samples.size != max(samples.shape, default=0) or samples.dtype.kind not in "fi":
        raise Skip("unreadable sound", f"an array of {samples.dtype} of shape {samples.shape}, expected (samples,)")
    scale = float(1 << samples.dtype.itemsize * 8 - 1) if samples.dtype.kind == "i" else 1.0
    return (samples / scale).reshape(-1, 1).astype(np.float32), SAMPLE_RATE


# ---- units and face -----------------------------------------------------------------------------------------------

def read_units(path: Path) -> np.ndarray:
    """(U,) units in a .npy file. Raises Skip."""
    try:
        return encode_array("units", np.load(path, allow_pickle=False).reshape(-1))
    except (OSError, ValueError) as error:
        raise Skip("unreadable units", f"{path}: {error}") from None


def read_face(clip: Clip, arrays: dict) -> np.ndarray:
    """The face track (T, K) of a clip, cut to the frames of its units, or padded with its last frame. Adds its notes;
    those that differ only in numbers are of one kind. Raises Skip if it is unreadable, or if its length and the sound's
    differ by more than APART."""
    try:
        capture = read_capture(clip.face, **clip.face_form)
    except (OSError, ValueError) as error:
        raise Skip("unreadable face", error) from None
    track = capture.track
    arrays["notes"] |= {"face: " + re.sub(r"[\d.:]+", "N", note)[:KIND]: note for note in capture.notes}
    units = len(arrays["units"]) if "units" in arrays else -(-len(arrays["answer_audio"]) // UNIT_SAMPLES)
    frames = frames_for_units(units)
    if abs(len(track) - frames) > APART * FPS:
        raise Skip("face and sound differ", f"{clip.face} has {len(track) / FPS:.1f} s, its sound {frames / FPS:.1f}")
    return encode_array("face", np.pad(track[:frames], ((0, max(0, frames - len(track))), (0, 0)), mode="edge"))
