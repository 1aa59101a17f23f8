"""A face track (T, K) -> a file that other tools open, chosen by its ending; a page of many answers; a contact sheet.

Shapes: T face frames at 30 per second, K = 52 blendshapes in the order of arkit.ARKIT_NAMES.
"""
from pathlib import Path

import numpy as np

import disk
from face.arkit import ARKIT_NAMES, read_track, tidy, write_csv, write_json, write_npy
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


def write_answer(directory: Path, answer, rate: int, head: Head, more=()) -> list:
    """An answer (model.Answer; its sound at `rate` Hz) as answer.txt, .wav, .json, .html and the endings in `more`, each
    under a temporary name first -> their paths.

    Without sound (no speech decoder) or without a face (an empty reply) there are no such files; those that an earlier
    answer left in the directory would not belong to this one and are removed.
    """
    import soundfile
    track, sound = answer.face.float().clamp(0, 1).numpy(), answer.waveform      # the decoder's last layer is linear
    present = ["txt", *["wav"] * (sound is not None), "json", *dict.fromkeys(["html", *more] if len(track) else [])]
    files = {ending: directory / f"answer.{ending}" for ending in dict.fromkeys(["wav", "html", *more, *present])}
    for ending in set(files) - set(present):
        files[ending].unlink(missing_ok=True)
    with disk.replacing(files["txt"]) as temporary:
        temporary.write_text(answer.text + "\n", encoding="utf-8")
    if sound is not None:
        with disk.replacing(files["wav"]) as temporary:
            soundfile.write(temporary, sound.float().numpy(), rate, format="WAV", subtype="PCM_16")
    write_json(files["json"], track, "answer.wav")
    for ending in present[present.index("json") + 1:]:
        export(files[ending], track, files["wav"] if sound is not None else None, answer.text, head)
    return [files[ending] for ending in present]


def gallery(folder, head: Head) -> Path:
    """Write folder/gallery.html, one page of all answers in the folder and below it, and return its path.

    An answer is a folder with an answer.json and, where there are any, its answer.wav and answer.txt. They are sorted
    by path; empty replies are left out. Raises ValueError where there is no answer.
    """
    folder, answers = Path(folder), []
    for found in sorted(folder.rglob("answer.json")):
        if disk.read_json(found).get("weightMat") == []:
            continue
        sound, said = found.with_suffix(".wav"), found.with_suffix(".txt")
        text = said.read_text(encoding="utf-8").strip() if said.exists() else ""
        answers.append((found.parent.name, read_track(found), sound if sound.exists() else None, text))
    if not answers:
        raise ValueError(f"{folder} holds no answer.json, nor does any folder in it: answer something with sample.py "
                         "first")
    write_gallery(folder / "gallery.html", answers, FPS, head)
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
