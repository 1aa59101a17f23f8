"""Face tracks (T, K) -> files for other tools, chosen by their ending; the files of an answer; a gallery; a picture.

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
NEW, WHOLE, PLACING = ".answer.new", ".answer.whole", ".answer.placing"         # see `write_answers` and `finish`

# Ending -> the check that its optional package is there; raises ValueError with what to install.
NEEDS = {"mp4": find_ffmpeg, "webp": find_pillow}


def export(path, track, audio=None, text: str = "", head: Head | None = None) -> None:
    """Write a track (T, K) in the format that the ending of `path` says, one of EXPORTS.

    audio: the sound file of the track; .json gets its name, .html, .mp4 and .webp its sound. text: what is said, for
    .html. head: default `make_head()`. Raises ValueError for another ending, an unreadable sound or an invalid track
    (`arkit.tidy`), OSError for a missing sound.
    """
    ending = Path(path).suffix.lower().removeprefix(".")
    if ending not in EXPORTS:
        raise ValueError(f"{path}: unknown ending, expected one of .{', .'.join(EXPORTS)}")
    if audio is not None:
        disk.regular(audio, "a sound file")
    with tempfile.TemporaryDirectory() as folder:
        if audio is not None and ending in ("mp4", "webp"):             # they copy the sound as it is
            audio = mended_sound(audio, folder)
        EXPORTS[ending](path, tidy(track, str(path)), audio, text, head or make_head())


def mended_sound(audio, folder) -> Path:
    """The sound file; if its levels or channels are odd (audio.py), a mono wav of it, written into the folder."""
    if not survey(audio).notes:
        return audio
    wav = Path(folder) / "sound.wav"
    wav.write_bytes(read_sound(audio)[0])
    return wav


def formats(text: str) -> list:
    """"glb,csv" -> ["glb", "csv"]. Raises ValueError for an unknown ending, or one whose package is missing."""
    asked = [ending.strip().lower().removeprefix(".") for ending in text.split(",") if ending.strip()]
    unknown = [ending for ending in asked if ending not in EXPORTS]
    if unknown:
        raise ValueError(f"unknown format {', '.join(unknown)}: expected some of {', '.join(EXPORTS)}")
    for ending in NEEDS.keys() & set(asked):
        NEEDS[ending]()
    return asked


def unfit(head: Head, endings) -> dict:
    """{ending: reason} of the endings that cannot show this head. Each is tried with one frame."""
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
    """Raises ValueError or OSError if an answer cannot be written to the folder, or would replace one of `inputs`."""
    cli.check_directory(folder)
    folder = Path(folder).absolute()
    for target in (folder / f"answer.{ending}" for ending in ENDINGS):
        if target.is_dir():
            raise ValueError(f"{target} is a directory, and the answer needs that name: choose another --out")
        taken = [path for path in inputs if target.exists() and target.samefile(path)]
        if taken:
            raise ValueError(f"{taken[0]} would be replaced by the answer: choose another --out than {folder}")


def write_answers(out, answers: dict, rate: int, head: Head, endings=("html",)) -> tuple:
    """Write each answer as answer.txt, .wav, .json and these endings; for several also out/gallery.html.

    answers: {folder below `out`, "." for `out` itself: model.Answer with sound at `rate` Hz}. Returns the paths of each
    answer, and the gallery's or None. An answer without sound has no .wav, one without a face (an empty reply) none of
    `endings`. Raises ValueError for numbers that are not finite, or as `export`; OSError.

    The files are written to out/.answer.new, which is renamed to .answer.whole when it is complete; then `finish`
    removes the old files and moves the new ones. A command that fails or is killed before that leaves the old answers
    untouched; the next command completes one that is killed later. So files of two answers never mix. The caller holds
    disk.locked(out).
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    finish(out)
    new, page = out / NEW, False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")                         # about the sound: we made it ourselves
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
    """Write the files of an answer into a new folder. Returns their names."""
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
        wav = io.BytesIO()                                              # libsndfile does not report a full disk
        soundfile.write(wav, sound, rate, format="WAV", subtype="PCM_16")
        with disk.writing(new["wav"]):
            new["wav"].write_bytes(wav.getvalue())
    write_json(new["json"], track, "answer.wav")
    for ending in [ending for ending in present if ending not in ("txt", "wav", "json")]:
        export(new[ending], track, new.get("wav"), answer.text, head)
    return [path.name for path in new.values()]


def finish(out: Path) -> None:
    """Move the complete answers in out/.answer.whole to `out` and remove incomplete ones, out/.answer.new.

    If it is killed, it can simply be called again: it removes all old files, then renames .answer.whole to
    .answer.placing, then moves each file."""
    for _ in range(2):                                                  # first .placing of a killed call, then .whole
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
    """Write folder/gallery.html, a page of all answers in and below the folder, or of the folders `answers`. Returns
    its path.

    An answer is a folder with answer.json and maybe answer.wav and answer.txt. They are sorted by path; empty replies
    and hidden folders are left out. Raises ValueError if there is no answer.
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

    Two are shown with an open jaw: mouthClose, which alone pushes the lips through each other, and tongueOut, which
    needs the room.
    """
    poses, jaw = np.eye(52, dtype=np.float32), ARKIT_NAMES.index("jawOpen")
    labels = list(ARKIT_NAMES)
    for name, opened in (("mouthClose", 1), ("tongueOut", 0.5)):
        row = ARKIT_NAMES.index(name)
        poses[row, jaw], labels[row] = opened, f"{name} + jaw"
    return sheet(head, [("neutral", np.zeros(52)), *zip(labels, poses)])
