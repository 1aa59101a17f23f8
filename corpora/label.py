"""`prepare.py label`: a teacher makes face tracks from the sound of answers; the paper's is Audio2Face-3D.

    python prepare.py label data/mine --teacher audio2face3d models/Audio2Face-3D-v2.3-Mark
    python prepare.py label data/mine --teacher audio2face3d models/Audio2Face-3D-v2.3-Mark --emotion joy=.5

A track has exactly the frames of the answer's units. A `tts` row stays, and a `face` row with its units and its face is
added after it: v1 learns speech from the first (stage II) and the face from the second (stage III).
"""
from argparse import ArgumentTypeError

import cli

from tqdm import tqdm

from corpora import adding
from corpora.audio2face import FILES, Audio2Face
from data import Split
from disk import regular
from face_decoder import FPS, frames_for_units
from prepared import checksum
from ranks import rank_and_world

TEACHERS = {"audio2face3d": Audio2Face}


def emotion(text: str) -> tuple:
    """An argparse type: joy=.5 -> ("joy", 0.5)."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise ArgumentTypeError(f"{text[:40]!r}: expected NAME=STRENGTH, such as joy=.5")
    return name, cli.number(0, 1)(value)


def add_label(commands) -> None:
    """The arguments of `prepare.py label`."""
    about = ("Adds face tracks to prepared data, for every answer that has sound and units. Runs under torchrun too; "
             "an interrupted one goes on, a second one does nothing.")
    command = commands.add_parser("label", help="face tracks of the answers in prepared data", description=about)
    command.set_defaults(command=make_labels, interrupted=adding.KEPT)
    add = command.add_argument
    add("data", metavar="DATA", help="prepared data: a split, or a directory with train/ and val/")
    add("--teacher", nargs=2, required=True, metavar=("NAME", "DIR"),
        help=f"who sees the face: {', '.join(TEACHERS)}, and the directory of its files")
    add("--emotion", nargs="+", type=emotion, default=[], metavar="NAME=STRENGTH",
        help="of all answers, joy=.5 say; others have the network's default (default: none)")
    add("--device", default="cpu", help="auto, cpu, cuda")


def make_labels(args) -> None:
    """`prepare.py label`. Raises ValueError or OSError; what was made until then is kept."""
    name, directory = args.teacher
    if name not in TEACHERS:
        raise ValueError(f"--teacher {name} is unknown, expected {', '.join(TEACHERS)} and its directory")
    device, feelings = cli.pick_device(args.device), dict(args.emotion)
    with adding.processes(device):
        with adding.together():
            teacher = TEACHERS[name](directory, feelings, device)
            made_by = {"teacher": name, "emotion": feelings, "files": {
                file: f"{checksum(regular(f'{directory}/{file}', 'a file of the teacher')):08x}" for file in FILES}}
        for folder in adding.splits(args.data):
            with adding.claimed(folder, "face") as split:
                label(split, teacher, made_by)


def label(split: Split, teacher, made_by: dict) -> None:
    """Add the faces to a split and print a summary. teacher.track(sound, frames) -> (frames, 52)."""
    ids = {row["id"] for row in split.rows}
    sounds = {n: tuple(sound) for n, row in enumerate(split.rows)
              if (sound := adding.sound_of(row)) and "units" in row and "face" not in row
              and not (row["task"] == "tts" and face_id(row) in ids)}
    frames = lambda number: frames_for_units(split.rows[number]["units"][1])
    keys = {n: (*sound, frames(n)) for n, sound in sounds.items() if frames(n)}
    before = make(split, teacher, sounds, keys, frames, made_by) if keys else 0
    if rank_and_world()[0] == 0:
        hours = sum(length for *_, length in set(keys.values())) / FPS / 3600
        lacking = sum("face" not in row and ("units" not in row or adding.sound_of(row) is None)
                      and row["task"] in ("face", "qa") for row in split.rows)
        print(f"{split.directory}: faces for {len(keys)} answers, {hours:.2f} h"
              + f" ({before} tracks of it were made before)" * bool(before)
              + f"; {lacking} answers have no sound or no units: `prepare.py units` first" * bool(lacking))


def make(split: Split, teacher, sounds: dict, keys: dict, frames, made_by: dict) -> int:
    """Make the tracks with all processes and put them in. Returns how many an earlier command had made."""
    with adding.Adding(split, "face", keys, made_by, adding.one_by_one(frames)) as work:
        with adding.together():
            for number, in tqdm(work.jobs, desc=f"faces of {split.directory}", unit="clip", disable=None):
                try:
                    work.add(number, teacher.track(adding.waveform(split, sounds[number]), frames(number)))
                except ValueError as error:
                    raise ValueError(f"{split.directory}: sample {split.rows[number]['id']}: {error}") from None
        with adding.together():
            if rank_and_world()[0] == 0:
                work.finish(with_face, face_teacher=made_by)
        return len(work.before)


def face_id(row: dict) -> str:
    """The id of the `face` row of a `tts` row."""
    return f"{row['id']}-face"


def with_face(row: dict, where: list) -> list:
    """The rows that replace a row: the same with its face; for a `tts` row itself and the `face` row."""
    if row["task"] == "tts":
        return [row, row | {"id": face_id(row), "task": "face", "face": where}]
    return [row | {"face": where}]
