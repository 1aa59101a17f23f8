"""Faces to watch, to take elsewhere, and to measure.

    python face.py convert answer.json answer.glb            # any of .json .csv .npy into any of those, .glb .html .mp4 .webp
    python face.py convert take_60fps.csv take.html --audio take.wav --text "What is said."
    python face.py head --out head.glb                       # our head alone, with the 52 ARKit shapes
    python face.py sheet --out sheet.png                     # a picture of each of them
    python face.py --gallery answers/                        # one page for all answers in a folder

Another head: --template head.glb (ARKit morph targets) or file.npz (the EmoTalk layout). The metrics below compare tracks
on a head, in per cent of its interocular distance (spec face 1). A track is (F, 52), 30 frames per second: see arkit.py.
"""
import argparse
from pathlib import Path

import numpy as np

import weights
from arkit import ARKIT_NAMES, read_track, tidy, write_csv, write_json, write_npy
from cli import one_line_errors
from face_decoder import FPS
from gltf import load_template, write_glb
from head import Head, make_head
from render import find_ffmpeg, find_pillow, sheet, write_png, write_video
from viewer import write_gallery, write_viewer

# --- metrics: spec face 1 ------------------------------------------------------------------------------------------------


def common(track, reference) -> tuple:
    """Two tracks cut to the shorter one's frames: the length rule of all comparisons here. Report len / len beside them."""
    track, reference = tidy(track, "the track"), tidy(reference, "the reference")
    frames = min(len(track), len(reference))
    return track[:frames], reference[:frames]


def lip_errors(track, reference, head: Head) -> np.ndarray:
    """Distance of every lip vertex from where the reference has it: (F, L), in % of the interocular distance.

    Deltas are linear, so the neutral mesh cancels (spec face 1.2).
    """
    track, reference = common(track, reference)
    apart = np.tensordot(track - reference, head.deltas[:, head.lips], axes=1)
    return 100 / head.interocular * np.linalg.norm(apart, axis=-1)


def lve_l2(track, reference, head: Head) -> float:
    """Lip vertex error: per frame the farthest lip vertex, averaged over frames, in % of the interocular distance.

    What Ex-Omni's paper describes (5.1) and UniTalker's code calls LVD.
    """
    return float(lip_errors(track, reference, head).max(1).mean())


def lve_sq(track, reference, head: Head) -> float:
    """The same with the distance squared, in square %: what UniTalker's and CodeTalker's code print as LVE."""
    return float((lip_errors(track, reference, head).max(1) ** 2).mean())


# Name prefixes of the groups that the velocity error is told by.
GROUPS = {"jaw": "jaw", "lips": "mouth", "brows": "brow", "lids": ("eyeBlink", "eyeSquint", "eyeWide")}


def velocity_error(track, reference) -> dict:
    """Mean absolute difference of the changes from frame to frame, per second, over each group of weights and over all."""
    track, reference = common(track, reference)
    apart = FPS * np.abs(np.diff(track, axis=0) - np.diff(reference, axis=0))
    groups = {name: [n.startswith(start) for n in ARKIT_NAMES] for name, start in GROUPS.items()} | {"all": [True] * 52}
    return {name: float(apart[:, chosen].mean()) if len(apart) else 0.0 for name, chosen in groups.items()}


def lip_gap(track, head: Head) -> np.ndarray:
    """Height of the mouth opening (F,), in % of the interocular distance: the widest of the columns of the slit, with the
    lips pressed through each other counted as closed. Raises ValueError for a head that does not tell its lips apart."""
    if head.upper is None:
        raise ValueError("this head does not say which vertices are the rims of its lips: measure the gap on make_head()")
    height = (head.vertices[head.upper] - head.vertices[head.lower])[:, 1]
    height = height + tidy(track) @ (head.deltas[:, head.upper] - head.deltas[:, head.lower])[:, :, 1]
    return 100 / head.interocular * height.max(1).clip(min=0)


def closure_rate(track, segments, head: Head, share: float = 0.10) -> float:
    """Share of `segments` [(start, end) in s, ...] in which the lips close: where the least gap is below `share` of the
    track's 95th percentile. For /p b m/; for /f v/ take share=0.35. A segment between two frames counts by the nearest.
    Raises ValueError without segments."""
    if not len(segments):
        raise ValueError("no segments: the rate of closure needs at least one /p b m/")
    gap = lip_gap(track, head)
    limit, last = share * np.percentile(gap, 95), len(gap) - 1
    closed = 0
    for start, end in segments:
        first = min(round(start * FPS), last)
        closed += gap[first:max(first + 1, min(round(end * FPS), last) + 1)].min() < limit
    return closed / len(segments)


def loudness(sound, rate: int, frames: int) -> np.ndarray:
    """A waveform (T,) -> root mean square (frames,) of the 1/30 s around each frame's time."""
    edges = np.clip(((np.arange(frames + 1) - 0.5) * rate / FPS).round().astype(int), 0, len(sound))
    total = np.concatenate([[0], np.cumsum(np.square(sound, dtype=np.float64))])
    return np.sqrt((total[edges[1:]] - total[edges[:-1]]) / np.maximum(np.diff(edges), 1))


def lip_sync_lag(track, sound, rate: int, head: Head, most: float = 0.3) -> tuple:
    """How long after the sound (T,) the lips move: (ms, correlation there), the shift within +-`most` s at which mouth
    opening and loudness correlate best. Negative: the lips lead. Resolution one frame. Raises ValueError for silence."""
    gap = lip_gap(track, head)
    loud, best = loudness(np.asarray(sound), rate, len(gap)), None
    for shift in range(-round(most * FPS), round(most * FPS) + 1):
        lips, heard = (gap[shift:], loud[:len(loud) - shift]) if shift >= 0 else (gap[:shift], loud[-shift:])
        if len(lips) > 1 and lips.std() > 0 and heard.std() > 0:
            r = float(np.corrcoef(lips, heard)[0, 1])
            best = max(best or (r, shift), (r, shift))
    if best is None:
        raise ValueError("no lag to measure: the mouth or the sound never changes")
    return 1000 * best[1] / FPS, best[0]


# --- files ---------------------------------------------------------------------------------------------------------------

# What an ending stands for: function(path, track, audio path or None, text, head).
EXPORTS = {
    "json": lambda path, track, audio, text, head: write_json(path, track, Path(audio).name if audio else ""),
    "csv": lambda path, track, audio, text, head: write_csv(path, track),
    "npy": lambda path, track, audio, text, head: write_npy(path, track),
    "glb": lambda path, track, audio, text, head: write_glb(path, head, track, FPS),
    "html": lambda path, track, audio, text, head: write_viewer(path, track, FPS, audio, text, head),
    "mp4": lambda path, track, audio, text, head: write_video(path, track, audio, head),
    "webp": lambda path, track, audio, text, head: write_video(path, track, audio, head),
}

# Endings that need an optional package; each function raises ValueError with what to install.
NEEDS = {"mp4": find_ffmpeg, "webp": find_pillow}


def export(path, track, audio=None, text: str = "", head: Head | None = None) -> None:
    """Write a track (F, 52) as what the ending of `path` says. audio: the sound file that belongs to it; its name goes
    into .json, its sound into .html, .mp4 and .webp. Raises ValueError for another ending or a track that is none."""
    ending = Path(path).suffix.lower().removeprefix(".")
    if ending not in EXPORTS:
        raise ValueError(f"{path}: unknown ending, expected one of .{', .'.join(EXPORTS)}")
    if audio is not None and not Path(audio).is_file():
        raise ValueError(f"{audio}: no such sound file")
    EXPORTS[ending](path, tidy(track, str(path)), audio, text, head or make_head())


def gallery(folder, head: Head) -> Path:
    """One page, folder/gallery.html, for every folder below `folder` that holds an answer.json, in order of name, with
    the answer.wav and answer.txt beside it; empty replies are left out. Returns its path. Raises ValueError where there
    is nothing to show."""
    folder, answers = Path(folder), []
    for found in sorted(folder.rglob("answer.json")):
        if weights.read_json(found).get("weightMat") == []:
            continue
        sound, words = found.with_suffix(".wav"), found.with_suffix(".txt")
        text = words.read_text(encoding="utf-8").strip() if words.exists() else ""
        answers.append((found.parent.name, read_track(found), sound if sound.exists() else None, text))
    if not answers:
        raise ValueError(f"{folder} holds no answer.json, nor does any folder in it: answer something with sample.py first")
    write_gallery(folder / "gallery.html", answers, FPS, head)
    return folder / "gallery.html"


def contact_sheet(head: Head) -> np.ndarray:
    """A picture (h, w, 3) uint8 of the neutral face and of each of the 52 shapes at weight 1, two of them with an open
    jaw: mouthClose closes the lips of one (alone it pushes them through each other), tongueOut needs the room."""
    poses, jaw = np.eye(52, dtype=np.float32), ARKIT_NAMES.index("jawOpen")
    labels = list(ARKIT_NAMES)
    for name, opened in (("mouthClose", 1), ("tongueOut", 0.5)):
        row = ARKIT_NAMES.index(name)
        poses[row, jaw], labels[row] = opened, f"{name} + jaw"
    return sheet(head, [("neutral", np.zeros(52)), *zip(labels, poses)])


def parse(argv=None) -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--gallery", metavar="DIR", help="one page for all answers in a folder")
    what = p.add_subparsers(dest="what")
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
    args = p.parse_args(argv)
    if bool(args.gallery) == bool(args.what):
        p.error("expected one of convert, head, sheet, or --gallery DIR")
    return args


def run(args) -> None:
    """Do what the command line asks. Raises ValueError or OSError where it cannot."""
    if args.gallery:
        print(f"wrote {gallery(args.gallery, make_head())}")
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
