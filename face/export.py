"""A face track (T, K) -> a file that other tools open, by its ending; an answer's files; a page of many; a picture.

Shapes: T face frames at 30 per second, K = 52 blendshapes in the order of arkit.ARKIT_NAMES.
"""
import io
import os
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

import cli

import numpy as np

import disk
from audio import survey
from face.arkit import ARKIT_NAMES, tidy, write_csv, write_json, write_npy
from face.captures import read_track
from face.gltf import write_glb
from face.head import Head, make_head
from face.render import find_ffmpeg, find_pillow, sheet, write_video
from face.viewer import read_sound, write_gallery, write_viewer
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

ENDINGS = ("txt", "wav", *EXPORTS)                  # of an answer's files
PAGE = "gallery.html"
NEW, WHOLE, PLACING = ".answer.new", ".answer.whole", ".answer.placing"         # in the order of `finish`

# Ending -> the check that its optional package is there; raises ValueError with what to install.
NEEDS = {"mp4": find_ffmpeg, "webp": find_pillow}


def export(path, track, audio=None, text: str = "", head: Head | None = None) -> None:
    """Write a track (T, K) in the format that the ending of `path` says, one of EXPORTS.

    audio: the sound file that belongs to the track; its name goes into .json, its sound into .html, .mp4 and .webp.
    text: what is said, for .html. head: `make_head()` unless given. Raises ValueError for another ending, a sound that
    is none (OSError where it is not there), or a track that is not one (`arkit.tidy`).
    """
    ending = Path(path).suffix.lower().removeprefix(".")
    if ending not in EXPORTS:
        raise ValueError(f"{path}: unknown ending, expected one of .{', .'.join(EXPORTS)}")
    if audio is not None:
        disk.regular(audio, "a sound file")
    with tempfile.TemporaryDirectory() as folder:
        if audio is not None and ending in ("mp4", "webp"):             # written by programs that take it as it is
            audio = fair_sound(audio, folder)
        EXPORTS[ending](path, tidy(track, str(path)), audio, text, head or make_head())


def fair_sound(audio, folder) -> Path:
    """The sound file itself; or a mono wav in the folder, where its levels or channels are odd (audio.py)."""
    if not survey(audio).notes:
        return audio
    wav = Path(folder) / "sound.wav"
    wav.write_bytes(read_sound(audio)[0])
    return wav


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
    cli.check_directory(folder)
    folder = Path(folder).absolute()
    for target in (folder / f"answer.{ending}" for ending in ENDINGS):
        if target.is_dir():
            raise ValueError(f"{target} is a directory, and the answer needs that name: choose another --out")
        taken = [path for path in inputs if target.exists() and target.samefile(path)]
        if taken:
            raise ValueError(f"{taken[0]} would be replaced by the answer: choose another --out than {folder}")


def write_answers(out, answers: dict, rate: int, head: Head, endings=("html",)) -> tuple:
    """Answers (name of a folder in `out` -> model.Answer, its sound at `rate` Hz; "." is `out` itself) as answer.txt,
    .wav, .json and these endings; of several also out/gallery.html -> the paths of each, and of the page or None.

    All are written to out/.answer.new, which is renamed once they are whole; then they take their places, after what
    was there before is removed. So one that fails or is killed before leaves the earlier answers as they were, and one
    that is killed later is finished by the next (`finish`): files of two answers are never side by side. Without sound
    (no speech decoder) or without a face (an empty reply) there are no such files. The caller holds disk.locked(out).
    Raises ValueError for numbers that are not finite, or as `export`; OSError.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    finish(out)
    new, page = out / NEW, False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")                         # what is odd about a sound that we made ourselves
            written = {name: write_files(new / name, answer, rate, head, endings) for name, answer in answers.items()}
            if len(answers) > 1 and "html" in endings and any(len(answer.face) for answer in answers.values()):
                try:
                    gallery(new, head, [new / name for name in answers])
                    page = True
                except ValueError as error:                         # such as more than a page can hold
                    print(f"no {PAGE}: {str(error).replace(str(new), str(out))}", file=sys.stderr)
        os.replace(new, out / WHOLE)
    except BaseException as error:
        shutil.rmtree(new, ignore_errors=True)
        if isinstance(error, OSError) and error.filename is not None:
            error.filename = str(error.filename).replace(str(new), str(out))
        elif isinstance(error, ValueError):
            raise ValueError(str(error).replace(str(new), str(out))) from None
        raise
    try:
        finish(out)
    except KeyboardInterrupt:
        finish(out)
        raise
    return [[out / name / file for file in files] for name, files in written.items()], out / PAGE if page else None


def write_files(folder: Path, answer, rate: int, head: Head, endings) -> list:
    """The files of an answer, in a folder that is made for them -> their names."""
    import soundfile
    track, sound = answer.face.float().numpy(), answer.waveform
    sound = None if sound is None else sound.float().numpy()
    if not all(np.isfinite(values).all() for values in (track, sound) if values is not None):
        raise ValueError("the answer has numbers that are not finite, nothing is written: is the checkpoint damaged?")
    track = track.clip(0, 1)                                            # the decoder's last layer is linear
    present = dict.fromkeys(["txt", *["wav"] * (sound is not None), "json", *(endings if len(track) else ())])
    folder.mkdir(parents=True)
    new = {ending: folder / f"answer.{ending}" for ending in present}
    with disk.writing(new["txt"]):
        new["txt"].write_text(answer.text + "\n", encoding="utf-8", errors="replace")
    if sound is not None:
        wav = io.BytesIO()                                              # libsndfile does not say that a disk is full
        soundfile.write(wav, sound, rate, format="WAV", subtype="PCM_16")
        with disk.writing(new["wav"]):
            new["wav"].write_bytes(wav.getvalue())
    write_json(new["json"], track, "answer.wav")
    for ending in [ending for ending in present if ending not in ("txt", "wav", "json")]:
        export(new[ending], track, new.get("wav"), answer.text, head)
    return [path.name for path in new.values()]


def finish(out: Path) -> None:
    """Answers that are whole, in out/.answer.whole, take their places; what is left of others is removed. It may be
    called again wherever it was killed: first all old files go, then .answer.whole becomes .answer.placing, then each
    new file is moved."""
    for _ in range(2):                                                  # .placing of an earlier one, then .whole
        placing, whole = out / PLACING, out / WHOLE
        if placing.is_dir():
            for path in sorted(path for path in placing.rglob("*") if path.is_file()):
                os.replace(path, out / path.relative_to(placing))
            shutil.rmtree(placing)
        if whole.is_dir():
            folders = [out / path.parent.relative_to(whole) for path in whole.rglob("answer.txt")]
            for folder in folders:
                folder.mkdir(exist_ok=True)
                for ending in ENDINGS:
                    (folder / f"answer.{ending}").unlink(missing_ok=True)
            if len(folders) > 1:
                (out / PAGE).unlink(missing_ok=True)
            os.replace(whole, placing)
    shutil.rmtree(out / NEW, ignore_errors=True)


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
    write_gallery(folder / PAGE, entries, FPS, head)
    return folder / PAGE


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
