"""Readers of speech with face tracks: BEAT, UniTalker's A2F-Bench, your own folders. See corpus.py.

A clip becomes a tts and a face sample if its text is known, else a face sample with an empty answer. Its sound is that
of the answer; `prepare.py units` makes the units from it.
"""
from functools import partial
from pathlib import Path

import disk
from corpora.corpus import spoken
from corpora.files import SOUNDS, find, json_rows
from corpora.sound import Clip, Skip, Sound
from face.captures import READERS

TRACKS = [ending for ending in READERS if ending != ".txt"]     # a .txt next to a sound is its text


def face_clip(name: str, text: str, sound: Sound, face: Path, **options) -> Clip:
    """The clip of a sound with its face track. Raises Skip if the track is missing."""
    if not face.is_file():
        raise Skip("missing face", face)
    tasks = ("tts", "face") if text.strip() else ("face",)
    return Clip(name, [spoken(name, text.strip(), task) for task in tasks], answer_audio=sound, face=face, **options)


def words(path: Path) -> str:
    """The text in the file beside a sound, "" if there is no such file."""
    if not path.is_file():
        return ""
    with disk.open_text(path) as file:
        return " ".join(file.read().split())


def faces(source: Path, args):
    """Folders of one's own recordings.

        SOURCE/**/NAME.wav (.flac .mp3 .ogg .opus)      the sound
        SOURCE/**/NAME.csv (.tsv .json .npy .npz)       its face track, as `python -m face convert` reads it
        SOURCE/**/NAME.txt                              what is said, if it is known

    --fps and --order as `python -m face convert` takes them.
    """
    for path in find(source, *SOUNDS):
        yield str(path.relative_to(source)), partial(recording, path, source, {"fps": args.fps, "order": args.order})


def recording(path: Path, source: Path, form: dict) -> Clip:
    tracks = [path.with_suffix(ending) for ending in TRACKS]
    track = next((track for track in tracks if track.is_file()), tracks[0])
    name = path.relative_to(source).with_suffix("").as_posix()
    return face_clip(name, words(path.with_suffix(".txt")), Sound(path), track, face_form=form)


def beat(source: Path, args):
    """BEAT v1 (pantomatrix.github.io/BEAT): ARKit weights at 60 frames per second.

        SOURCE/SPEAKER/NAME.wav
        SOURCE/SPEAKER/NAME.json    {"names": [51 shapes], "frames": [{"weights": [...], "time": SECONDS}, ...]}
        SOURCE/SPEAKER/NAME.txt     the words, if they are there

    The speaker is kept with each sample. Its long conversations exceed --longest-answer.
    """
    for path in find(source, ".wav"):
        speaker = path.parent.name
        yield path.name, partial(face_clip, f"{speaker}/{path.stem}", words(path.with_suffix(".txt")), Sound(path),
                                 path.with_suffix(".json"), face_form={"fps": 60}, about={"speaker": speaker})


def unitalker(source: Path, args):
    """UniTalker's data, A2F-Bench (github.com/X-niper/UniTalker): of its sets, those that have 51 or 52 ARKit weights.

        SOURCE/**/train.json, val.json, test.json       {"info": ..., "data": [{"audio_path", "annot_path", "id", "fps",
                                                        "annot_type", "dataset"}, ...]}
        audio_path (.wav, or .npy at 16 kHz) and annot_path (.npy) start from the directory of the json

    Sets of vertices are skipped. The columns are in the order `unitalker` (face/arkit.py).
    """
    for path in find(source, "train.json", "val.json", "test.json"):
        for where, load in json_rows(path, "data"):
            yield where, partial(unitalker_clip, load, path, source)


def unitalker_clip(load, path: Path, source: Path) -> Clip:
    row = load()
    sound, face = (path.parent / disk.typed(row, key, str, path.name) for key in ("audio_path", "annot_path"))
    about = {key: row[key] for key in ("dataset", "annot_type") if key in row} | {"speaker": str(row.get("id", ""))}
    if "blendshape" not in str(row.get("annot_type", "blendshape")):
        raise Skip("no ARKit weights", row["annot_type"])
    name = face.relative_to(source).with_suffix("").as_posix()
    return face_clip(name, "", Sound(sound), face, split=path.stem, about=about,
                     face_form={"fps": disk.typed(row, "fps", float, path.name), "order": "unitalker"})
