"""Faces to watch, to take elsewhere, and to measure.

    python -m face convert answer.json answer.glb         # any of .json .csv .npy into any of those, .glb .html .mp4 .webp
    python -m face convert take_60fps.csv take.html --audio take.wav --text "What is said."
    python -m face head --out head.glb                    # our head alone, with the 52 ARKit shapes
    python -m face sheet --out sheet.png                  # a picture of each of them
    python -m face gallery answers/                       # one page for all answers in a folder
    python -m face measure mine.json reference.json       # lip vertex error, velocity error; with --audio the lag to the sound

Another head: --template head.glb (ARKit morph targets) or file.npz (the EmoTalk layout).
"""
import argparse
from pathlib import Path

from cli import one_line_errors
from face.arkit import read_track
from face.export import EXPORTS, contact_sheet, export, gallery
from face.gltf import load_template, write_glb
from face.head import make_head
from face.render import write_png
from face_decoder import FPS


def parse(argv=None) -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    what = p.add_subparsers(dest="what", required=True)
    one = what.add_parser("convert", help="a face track into another format")
    one.add_argument("track", help=".json (Audio2Face), .csv (Live Link Face) or .npy")
    one.add_argument("out", help="." + ", .".join(EXPORTS))
    one.add_argument("--audio", help="the sound that belongs to it")
    one.add_argument("--text", default="", help="what is said (.html)")
    one.add_argument("--fps", type=float, help="rate of the input where the file does not tell, or tells wrongly")
    for name, ending, purpose in (("head", ".glb", "the head alone"), ("sheet", ".png", "a picture of all 52 shapes")):
        two = what.add_parser(name, help=purpose)
        two.add_argument("--out", default=name + ending)
    for each in what.choices.values():
        each.add_argument("--template", help="another head: .glb with ARKit morph targets, .npz in the EmoTalk layout")
    what.add_parser("gallery", help="one page for all answers in a folder").add_argument("folder")
    return p.parse_args(argv)


def run(args) -> None:
    """Do what the command line asks. Raises ValueError or OSError where it cannot."""
    if args.what == "gallery":
        print(f"wrote {gallery(args.folder, make_head())}")
        return
    ending = {"head": ".glb", "sheet": ".png"}.get(args.what)
    if ending and Path(args.out).suffix.lower() != ending:
        raise ValueError(f"{args.out}: expected a path that ends in {ending}")
    head = load_template(args.template) if args.template else make_head()
    if args.what == "head":
        write_glb(args.out, head)
    elif args.what == "sheet":
        write_png(args.out, contact_sheet(head))
    else:
        track = read_track(args.track, args.fps)
        export(args.out, track, args.audio, args.text, head)
        print(f"{args.track}: {len(track)} frames, {len(track) / FPS:.2f} s at {FPS} frames per second")
    print(f"wrote {args.out}")


def main(argv=None) -> None:
    args = parse(argv)
    with one_line_errors():
        run(args)


if __name__ == "__main__":
    main()
