"""Files that never end or ask for all memory, and odd arguments, for tests/fuzz.py; STRATEGIES has all kinds of input."""
import io
import json
import os
import zipfile
from pathlib import Path

import numpy as np
from hypothesis import strategies as st

import bench
import evaluate
import face.__main__
import prepare
import sample
import train
from face.arkit import ARKIT_NAMES, CONVENTIONS
from fuzz_captures import Case, arrays, captures, ramp
from fuzz_inputs import ASK, configs, copy, heads, old_answer, rows, sounds, tiny, weights

# ---------------------------------------------------------------- what never ends, or asks for all memory


def sparse(path: Path, size: int, head: bytes = b"") -> None:
    """A file of that size that takes no room on the disk: zeros after its first bytes."""
    with open(path, "wb") as file:
        file.write(head)
        file.truncate(size)


def wav_header(seconds: int) -> bytes:
    """Of a 16 kHz mono wav."""
    size = 32_000 * seconds
    return (
        b"RIFF"
        + (36 + size).to_bytes(4, "little")
        + b"WAVEfmt "
        + bytes.fromhex("10000000 0100 0100 803e0000 007d0000 0200 1000")
        + b"data"
        + size.to_bytes(4, "little")
    )


def array_header(rows: int) -> bytes:
    """Of an npy of float64 (rows, 52)."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (rows, 52)})
    return file.getvalue()


def zeros_npz(path: Path) -> None:
    """1 GB of zeros, packed into 1 MB."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("track.npy", "w") as member:
        member.write(array_header(2_500_000))
        for _ in range(250):
            member.write(bytes(4 << 20))


BOMBS = {  # name of the file -> ways to make one
    "take.csv": ["pipe", "zero", "folder", lambda p: sparse(p, 5 << 30, b"Timecode,jawOpen\n")],
    "take.json": [
        "pipe",
        "zero",
        lambda p: p.write_text("[" * 10**6),
        lambda p: sparse(p, 5 << 30, b"{"),
        lambda p: p.write_text(json.dumps({"exportFps": 1e-6, "facsNames": ARKIT_NAMES, "weightMat": [[0] * 52] * 9})),
    ],
    "take.npy": [
        "pipe",
        "zero",
        lambda p: p.write_bytes(array_header(10**9)),
        lambda p: sparse(p, 40 << 30, array_header(10**8)),
    ],
    "take.npz": ["zero", zeros_npz],
    "q.wav": [
        "pipe",
        "zero",
        "folder",
        lambda p: sparse(p, 32_000 * 10_800, wav_header(10_800)),
        lambda p: p.write_bytes(wav_header(60_000)),
    ],
    "head.glb": ["pipe", "zero", lambda p: sparse(p, 3 << 30, b"glTF\x02\0\0\0")],
    "head.npz": ["pipe", zeros_npz],
    "config.json": [
        "pipe",
        "zero",
        lambda p: p.write_text("[" * 10**6),
        lambda p: p.write_text(
            json.dumps(json.loads((tiny() / "checkpoint" / "config.json").read_text()) | {"num_hidden_layers": 10**6})
        ),
    ],
    "model.safetensors": [
        "pipe",
        "zero",
        lambda p: p.write_bytes((1 << 40).to_bytes(8, "little") + b"{}"),
        lambda p: sparse(p, 40 << 30, (2).to_bytes(8, "little") + b"{}"),
    ],
}


@st.composite
def bombs(draw):
    """A file that never ends, or whose size or header asks for more memory than there is."""
    name = draw(st.sampled_from(sorted(BOMBS)))
    number = draw(st.integers(0, len(BOMBS[name]) - 1))

    def make(folder: Path) -> Case:
        ckpt, make_one = copy(tiny() / "checkpoint", folder), BOMBS[name][number]
        path = ckpt / name if name in ("config.json", "model.safetensors") else folder / name
        path.unlink(missing_ok=True)
        if callable(make_one):
            make_one(path)
        else:
            {"pipe": os.mkfifo, "folder": os.mkdir, "zero": lambda p: os.symlink("/dev/zero", p)}[make_one](path)
        np.save(folder / "face.npy", ramp(10, slice(None)).astype(np.float32))
        main, argv = (
            (sample.main, ["--checkpoint", "checkpoint", *ASK])
            if path.parent == ckpt
            else (
                (sample.main, ["--checkpoint", "checkpoint", "--audio", name, *ASK[2:]])
                if name == "q.wav"
                else (
                    (face.__main__.main, ["convert", "face.npy", "out.glb", "--template", name])
                    if name.startswith("head")
                    else (face.__main__.main, ["convert", name, "out.json", "--order", "arkit"])
                )
            )
        )
        return Case("bombs", f"{name}, way {number}", main, argv, lambda: "it was read")

    return make


# ---------------------------------------------------------------- arguments

NUMBERS = ["-1", "0", "nan", "inf", "1e-320", "x", "", "1e400", "99999999999999999999", "0.5", "-0"]
PATHS = ["", "nosuch", ".", "/dev/zero", "/dev/null", "x" * 300, "a\0b"[:1], "\udce9.json", "~/x", "nosuch/../x"]
# Command -> what it is given in any case, its numbers, its paths or words. Every value must be refused or do little.
COMMANDS = {
    "sample": (
        sample.main,
        ["--text", "hi", "--max-new-tokens", "2", "--device", "cpu"],
        ["--max-new-tokens", "--temperature", "--top-p", "--seed"],
        ["--checkpoint", "--audio", "--export", "--template", "--device", "--dtype", "--out"],
    ),
    "train": (
        train.main,
        [
            "--stage",
            "3",
            "--data",
            "DATA",
            "--init-from",
            "TINY",
            "--out",
            "out",
            "--steps",
            "1",
            "--batch",
            "4",
            "--anyway",
            "--device",
            "cpu",
        ],
        [
            "--stage",
            "--epochs",
            "--batch",
            "--accumulate",
            "--lr",
            "--seed",
            "--log-every",
            "--val-every",
            "--save-every",
            "--stop-at",
        ],
        ["--data", "--init-from", "--recipe", "--ablate", "--device", "--dtype"],
    ),
    "evaluate": (
        evaluate.main,
        ["answers", "--data", "nosuch", "--device", "cpu"],
        ["--answers", "--epochs", "--steps", "--max-new-tokens", "--seed", "--threads"],
        ["--checkpoint", "--out", "--asr", "--init-from", "--device", "--dtype"],
    ),
    "bench": (bench.main, ["decode", "--rounds", "x"], ["--units", "--threads"], ["--against", "--size", "--dtype"]),
    "prepare": (
        prepare.main,
        ["weights", "--preset", "tiny", "--out", "made"],
        ["--seed"],
        ["--preset", "--release", "--llm", "--dtype"],
    ),
    "convert": (
        face.__main__.main,
        ["convert", "take.json", "out.json"],
        ["--fps"],
        ["--order", "--template", "--audio"],
    ),
    "measure": (face.__main__.main, ["measure", "take.json", "take.json"], [], ["--audio", "--template"]),
}


@st.composite
def arguments(draw):
    """A command with one to three options that have odd values."""
    name = draw(st.sampled_from(sorted(COMMANDS)))
    main, given, numbers, words = COMMANDS[name]
    chosen = draw(st.lists(st.sampled_from(numbers + words), min_size=1, max_size=3, unique=True))
    more = [
        text for option in chosen for text in (option, draw(st.sampled_from(NUMBERS if option in numbers else PATHS)))
    ]
    drop = draw(st.integers(0, 12)) == 0

    def make(folder: Path) -> Case:
        known = {"DATA": str(tiny() / "data"), "TINY": str(tiny() / "checkpoint")}
        argv = [known.get(text, text) for text in given]
        if name == "sample" and "--checkpoint" not in more:
            argv += ["--checkpoint", known["TINY"]]
        argv = [*argv[: -1 if drop else None], *more]
        (folder / "take.json").write_text(
            json.dumps(
                {"exportFps": 30, "facsNames": CONVENTIONS["arkit"], "weightMat": ramp(10, slice(None)).tolist()}
            )
        )
        old_answer(folder)
        return Case("arguments", f"{name} {argv}", main, argv, lambda: "")

    return make


STRATEGIES = {
    "captures": captures,
    "arrays": arrays,
    "configs": configs,
    "weights": weights,
    "rows": rows,
    "sounds": sounds,
    "heads": heads,
    "bombs": bombs,
    "arguments": arguments,
}
KINDS = [*STRATEGIES]


def cases(kinds):
    """Any case of these kinds; captures twice as often."""
    return st.one_of([STRATEGIES[kind]() for kind in [*kinds, *["captures"] * ("captures" in kinds)]])
