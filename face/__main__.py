"""Faces to watch, to use in other programs, and to measure.

    python -m face convert answer.json answer.glb         # from .json .csv .npy to any of these, .glb .html .mp4 .webp
    python -m face convert webcam.npy take.csv --order mediapipe --fps 25
    python -m face convert take_60fps.csv take.html --audio take.wav --text "What is said."
    python -m face head --out head.glb                    # our head alone, with the 52 ARKit shapes
    python -m face sheet --out sheet.png                  # a picture of each shape
    python -m face gallery answers/                       # one page of all answers in a folder
    python -m face measure mine.json reference.json       # lip vertex error, velocity error; with --audio the lag

Another head: --template head.glb (ARKit morph targets) or head.npz (EmoTalk's layout). captures.py reads the tracks.
"""
import argparse
import sys
from pathlib import Path

import cli
import disk
from audio import UNKNOWN, open_sound, quiet
from face.arkit import ORDERS, ROTATIONS, few, write_csv
from face.captures import Capture, read_capture
from face.export import EXPORTS, contact_sheet, export, gallery
from face.gltf import write_glb
from face.head import Head, make_head
from face.metrics import comparison
from face.render import write_png
from face.template import load_template
from face.timing import MAX_FPS, MIN_FPS
from face_decoder import FPS
from whisper import SAMPLE_RATE, load_audio

TRACK = (".csv .tsv .txt (Live Link Face, Audio2Face, MediaPipe recorders, ...), .json .jsonl (Audio2Face, BEAT, LAM, "
         "...) or .npy .npz (a bare array)")
ORDER = (f"of the columns of a bare array, one of {', '.join(ORDERS)}; without it 52 columns are arkit. unitalker: 52 "
         "columns as arkit, 51 with the eyes first")


def parse(argv=None) -> argparse.Namespace:
    """The arguments of the subcommand; see --help of each."""
    p = cli.Parser(prog="python -m face", description=__doc__.splitlines()[0])
    commands = p.add_subparsers(dest="command", required=True)
    one = commands.add_parser("convert", help="write a face track in another format")
    one.add_argument("track", help=TRACK)
    one.add_argument("out", help="." + ", .".join(EXPORTS))
    one.add_argument("--audio", help="the sound that belongs to it")
    one.add_argument("--text", default="", help="what is said (.html)")
    one.add_argument("--fps", type=cli.number(MIN_FPS, MAX_FPS),
                     help="frames per second of the track, whatever its file says")
    one.add_argument("--order", help=ORDER)
    one.add_argument("--ignore-timecodes", action="store_true", help="take its rows at an even rate")
    one = commands.add_parser("head", help="write the head alone")
    one.add_argument("--out", default="head.glb", help="file to write, .glb")
    one = commands.add_parser("sheet", help="write a picture of all 52 shapes")
    one.add_argument("--out", default="sheet.png", help="file to write, .png")
    one = commands.add_parser("measure", help="print metrics of a track against a reference")
    one.add_argument("track", help=TRACK)
    one.add_argument("reference", help="the track it should be: the same kinds of file")
    one.add_argument("--audio", help="the sound that belongs to both: adds the lag of the lips")
    for each in commands.choices.values():
        each.add_argument("--template", help="another head: .glb with ARKit morph targets, .npz in EmoTalk's layout")
    one = commands.add_parser("gallery", help="write one page of all answers in a folder")
    one.add_argument("folder", help="gallery.html is written here")
    return p.parse_args(argv)


def say(path, capture: Capture) -> None:
    """Print to stderr how the rate of a capture was found, and its notes."""
    found = f"{capture.length:.2f} s, {capture.rate:.6g} frames per second: {capture.how}"
    for line in (found, *capture.notes):
        print(f"{path}: {line}", file=sys.stderr)


def seconds_of(audio) -> float | None:
    """The length of a sound file as its header says; None if it does not, or if we cannot read the file."""
    try:
        with quiet(), open_sound(audio) as file:
            return None if file.frames == UNKNOWN else file.frames / file.samplerate
    except ValueError:                                      # .json needs only the name; ffmpeg reads more kinds
        return None


def convert(args, head: Head) -> None:
    """Write the capture args.track as args.out. Rotations of head and eyes are kept from .csv to .csv only."""
    capture = read_capture(args.track, args.fps, args.order, args.ignore_timecodes)
    if capture.rotations is not None and Path(args.out).suffix.lower() == ".csv":
        write_csv(args.out, capture.track, capture.rotations)
    else:
        export(args.out, capture.track, args.audio, args.text, head)
        if capture.rotations is not None:
            capture.notes.append(f"left out, as only .csv has them: {few(ROTATIONS, 9)}")
    say(args.track, capture)
    frames = len(capture.track)
    sound = seconds_of(args.audio) if args.audio else None
    if sound and abs(sound - frames / FPS) > max(0.2, 0.05 * sound):
        print(f"{args.track} lasts {frames / FPS:.2f} s, {args.audio} {sound:.2f} s: is the sound the track's, and its "
              "rate right?", file=sys.stderr)
    print(f"{args.track}: {frames} frames, {frames / FPS:.2f} s at {FPS} frames per second")


def measure(args, head: Head) -> None:
    """Print a table of the metrics that compare args.track with args.reference."""
    captures = [read_capture(args.track), read_capture(args.reference)]
    track, reference = (capture.track for capture in captures)
    sound = load_audio(args.audio).numpy() if args.audio else None
    figures = comparison(track, reference, head, sound, SAMPLE_RATE)
    figures = {"frames compared": min(len(track), len(reference)), "frames of the track": len(track),
               "frames of the reference": len(reference)} | figures
    for path, capture in zip((args.track, args.reference), captures):
        say(path, capture)
    width = max(map(len, figures))
    print(f"{args.track} against {args.reference}; % of the distance between the eyes")
    for name, value in figures.items():
        print(f"{name:{width}}  {value if isinstance(value, int) else f'{value:.4f}':>10}")


def run(args) -> None:
    """Run the subcommand. Raises ValueError or OSError where it cannot."""
    if args.command == "gallery":
        print(f"wrote {gallery(args.folder, make_head())}")
        return
    ending = {"head": ".glb", "sheet": ".png"}.get(args.command)
    if ending and Path(args.out).suffix.lower() != ending:
        raise ValueError(f"{args.out}: expected a path that ends in {ending}")
    if args.command != "measure":
        disk.refuse_to_replace([getattr(args, name, None) for name in ("track", "audio", "template")], args.out)
    head = load_template(args.template) if args.template else make_head()
    if args.command == "measure":
        measure(args, head)
        return
    if args.command == "head":
        write_glb(args.out, head)
    elif args.command == "sheet":
        write_png(args.out, contact_sheet(head))
    else:
        convert(args, head)
    print(f"wrote {args.out}")


def main(argv=None) -> None:
    args = parse(argv)
    with cli.one_line_errors(debug=args.debug):
        run(args)


if __name__ == "__main__":
    main()
