"""A face track (T, K) -> a file that other tools open, by its ending; an answer's files; a page of many; a picture.

Shapes: T face frames at 30 per second, K = 52 blendshapes in the order of arkit.ARKIT_NAMES.
"""
import os
import tempfile
from pathlib import Path

import numpy as np

import disk
from face.arkit import ARKIT_NAMES, tidy, write_csv, write_json, write_npy
from face.captures import read_track
from face.gltf import write_glb
from face.head import Head, make_head
from face.render import find_ffmpeg, find_pillow, sheet, write_video
from face.viewer import write_gallery, write_viewer
from face_decoder import FPS

# Ending -> its writer: function(path, track, path of the sound or None, text, head).
EXPORTS = {
    "json": lambda path, track, audio, text, head: write_json(path, track, Path(audio).name if audio else ""),
    "csv": lambda path, track, audio, text, head: write_csv(path, track),
    "npy": lambda path, track, audio, text, head: write_npy(path, track),
    "glb": lambda path, track, audio, text, head: write_glb(path, head, track, FPS),
    "html": lambda path, track, audio, text, head: write_viewer(path, track, FPS, audio, text, head),
    "mp4": lambda path, track, audio, text, head: write_video(path, track, audio, head),
    "webp": lambda path, track, audio, text, head: write_video(path, track, audio, head),
}

# Ending -> the check that its optional package is there; raises ValueError with what to install.
NEEDS = {"mp4": find_ffmpeg, "webp": find_pillow}


def export(path, track, audio=None, text: str = "", head: Head | None = None) -> None:
    """Write a track (T, K) in the format that the ending of `path` says, one of EXPORTS.

    audio: the sound file that belongs to the track; its name goes into .json, its sound into .html, .mp4 and .webp.
    text: what is said, for .html. head: `make_head()` unless given. Raises ValueError for another ending, a sound that
    is not there, or a track that is not one (`arkit.tidy`).
    """
    ending = Path(path).suffix.lower().removeprefix(".")
    if ending not in EXPORTS:
        raise ValueError(f"{path}: unknown ending, expected one of .{', .'.join(EXPORTS)}")
    if audio is not None and not Path(audio).is_file():
        raise ValueError(f"{audio}: no such sound file")
    EXPORTS[ending](path, tidy(track, str(path)), audio, text, head or make_head())


def formats(text: str) -> list:
    """"glb,csv" -> ["glb", "csv"]. Raises ValueError for another ending, or one whose package is missing."""
    asked = [ending.strip().lower().removeprefix(".") for ending in text.split(",") if ending.strip()]
    unknown = [ending for ending in asked if ending not in EXPORTS]
    if unknown:
        raise ValueError(f"unknown format {', '.join(unknown)}: expected some of {', '.join(EXPORTS)}")
    for ending in NEEDS.keys() & set(asked):
        NEEDS[ending]()
    return asked


def unfit(head: Head, endings) -> dict:
    """Of these endings those that cannot show the head -> why. Each is tried on one frame."""
    why = {}
    with tempfile.TemporaryDirectory() as folder:
        for ending in endings:
            try:
                export(Path(folder) / f"answer.{ending}", np.ones((1, len(ARKIT_NAMES))), head=head)
            except ValueError as error:
                why[ending] = str(error).replace(f"{folder}{os.sep}", "")
    return why


# ---- an answer's files ---------------------------------------------------------------------------------------------

def check_folder(folder, inputs=()) -> None:
    """Raises ValueError or OSError where an answer cannot be written to a folder, or would replace one of the files
    that it is made from."""
    folder = Path(folder).absolute()
    for target in (folder / f"answer.{ending}" for ending in ("txt", "wav", *EXPORTS)):
        if target.is_dir():
            raise ValueError(f"{target} is a directory, and the answer needs that name: choose another --out")
        taken = [path for path in inputs if target.exists() and target.samefile(path)]
        if taken:
            raise ValueError(f"{taken[0]} would be replaced by the answer: choose another --out than {folder}")
    there = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    if not there.is_dir():
        raise ValueError(f"--out {there} is no directory: choose another")
    try:
        with tempfile.TemporaryDirectory(dir=there, prefix=".answer."):
            pass
    except OSError as error:
        raise OSError(f"{there} cannot be written to ({error.strerror}): choose another --out") from None


def write_answer(folder: Path, answer, rate: int, head: Head, endings=("html",)) -> list:
    """An answer (model.Answer; its sound at `rate` Hz) as answer.txt, .wav, .json and these endings -> their paths.

    All are written to a hidden directory inside the folder, then renamed: one that fails leaves an earlier answer as it
    was. Without sound (no speech decoder) or without a face (an empty reply) there are no such files; what an earlier
    answer has beyond these is removed. Raises ValueError for numbers that are not finite, or as `export`.
    """
    import soundfile
    track, sound = answer.face.float().numpy(), answer.waveform
    sound = None if sound is None else sound.float().numpy()
    if not all(np.isfinite(values).all() for values in (track, sound) if values is not None):
        raise ValueError("the answer has numbers that are not finite, nothing is written: is the checkpoint damaged?")
    track = track.clip(0, 1)                                            # the decoder's last layer is linear
    present = dict.fromkeys(["txt", *["wav"] * (sound is not None), "json", *(endings if len(track) else ())])
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".answer.", ignore_cleanup_errors=True) as hidden:
        new = {ending: Path(hidden) / f"answer.{ending}" for ending in present}
        new["txt"].write_text(answer.text + "\n", encoding="utf-8", errors="replace")
        if sound is not None:
            soundfile.write(os.fsencode(new["wav"]), sound, rate, format="WAV", subtype="PCM_16")
        write_json(new["json"], track, "answer.wav")
        for ending in [ending for ending in present if ending not in ("txt", "wav", "json")]:
            export(new[ending], track, new.get("wav"), answer.text, head)
        for path in new.values():
            os.replace(path, folder / path.name)
    for ending in {"txt", "wav", *EXPORTS} - present.keys():
        (folder / f"answer.{ending}").unlink(missing_ok=True)
    return [folder / f"answer.{ending}" for ending in present]


def gallery(folder, head: Head, answers=None) -> Path:
    """Write folder/gallery.html, one page of all answers in the folder and below it, and return its path. answers: the
    folders of those that are wanted.

    An answer is a folder with an answer.json and, where there are any, its answer.wav and answer.txt. They are sorted
    by path; empty replies and hidden folders are left out. Raises ValueError where there is no answer.
    """
    folder, entries = Path(folder), []
    found = sorted(folder.rglob("answer.json")) if answers is None else [one / "answer.json" for one in answers]
    for path in found:
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if hidden or disk.read_json(path).get("weightMat") == []:
            continue
        sound, said = path.with_suffix(".wav"), path.with_suffix(".txt")
        text = disk.read_bytes(said, "a text").decode("utf-8", "replace").strip() if said.exists() else ""
        entries.append((path.parent.name, read_track(path), sound if sound.exists() else None, text))
    if not entries:
        raise ValueError(f"{folder} holds no answer.json, nor does any folder in it: answer something with sample.py "
                         "first")
    write_gallery(folder / "gallery.html", entries, FPS, head)
    return folder / "gallery.html"


def contact_sheet(head: Head) -> np.ndarray:
    """A picture (height, width, 3) uint8 of the neutral face and of each of the 52 shapes at weight 1.

    Two of them have an open jaw: mouthClose, as alone it pushes the lips through each other, and tongueOut, as the
    tongue needs the room.
    """
    poses, jaw = np.eye(52, dtype=np.float32), ARKIT_NAMES.index("jawOpen")
    labels = list(ARKIT_NAMES)
    for name, opened in (("mouthClose", 1), ("tongueOut", 0.5)):
        row = ARKIT_NAMES.index(name)
        poses[row, jaw], labels[row] = opened, f"{name} + jaw"
    return sheet(head, [("neutral", np.zeros(52)), *zip(labels, poses)])
