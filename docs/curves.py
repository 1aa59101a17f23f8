"""Plots the loss curves of a training: `python docs/curves.py mini/log.jsonl docs/curves.png`.

Lines: training losses, averaged between two rows of the log. Dots: validation. Needs matplotlib.
"""
import json
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))              # run as a script: the modules are one directory up

from cli import Parser, check_directory, one_line_errors                         # before torch, which takes seconds

import disk
from model import LOSSES

COLOURS = dict(zip(LOSSES, ("tab:blue", "tab:orange", "tab:green")))


def read(path) -> dict:
    """Read a log -> {stage: {"train" or "val": {loss: [(step, value), ...]}}}. Raises ValueError or OSError."""
    stages, stage, what = {}, None, "the log.jsonl of train.py"
    for number, line in enumerate(disk.regular(path, what).read_bytes().splitlines(), 1):
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise ValueError(f"{where} is not json of an object: expected {what}")
        if "start" in row:
            stage = f"stage {disk.typed(disk.typed(row, 'start', dict, where), 'stage', int, where)}"
        elif stage and "step" in row and "part" not in row:
            kind, figures = ("val", disk.typed(row, "val", dict, where)) if "val" in row else ("train", row)
            for name in LOSSES:
                value = disk.typed(figures, name, float | None, where, None)
                if value is not None:
                    curves = stages.setdefault(stage, {"train": {}, "val": {}})[kind]
                    curves.setdefault(name, []).append((disk.typed(row, "step", int, where), value))
    if not stages:
        raise ValueError(f"{path} holds no logged step: expected the log.jsonl of train.py")
    return stages


def plot(stages: dict, out) -> None:
    """Draw one panel per stage. Raises OSError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise OSError("`pip install matplotlib` for the picture") from None
    logging.getLogger("matplotlib").setLevel(logging.ERROR)         # hides "building the font cache"
    figure = Figure(figsize=(4 * len(stages), 3.2), layout="constrained")
    for axes, (stage, curves) in zip(figure.subplots(1, len(stages), squeeze=False)[0], stages.items()):
        for name, points in curves["train"].items():
            axes.plot(*zip(*points), color=COLOURS[name], lw=1, label=name)
        for name, points in curves["val"].items():
            axes.plot(*zip(*points), "o", color=COLOURS[name], ms=4, label=f"{name}, validation")
        axes.set(title=stage, xlabel="step", yscale="log")
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize=8)
    with disk.replacing(out) as temporary:
        figure.savefig(temporary, format=Path(out).suffix.lower().removeprefix(".") or "png", dpi=100)


def main(argv=None) -> None:
    p = Parser(description=__doc__.splitlines()[0])
    p.add_argument("log", help="log.jsonl of train.py, or of a mini model (mini/log.jsonl)")
    p.add_argument("out", help="picture to write: .png or .svg")
    args = p.parse_args(argv)
    with one_line_errors(debug=args.debug):
        if Path(args.out).suffix.lower() not in (".png", ".svg"):
            raise ValueError(f"{args.out}: expected a path that ends in .png or .svg")
        disk.refuse_to_replace([args.log], args.out)
        check_directory(Path(args.out).parent, "OUT in")
        plot(read(args.log), args.out)
        print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
