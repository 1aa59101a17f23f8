"""What tests/fuzz.py gives to the commands besides captures (fuzz_captures.py): edited configs and weights, prepared
data, sounds and heads.
"""

import atexit
import json
import math
import os
import shutil
import tempfile
import zlib
from functools import lru_cache
from pathlib import Path

import numpy as np
from hypothesis import strategies as st

import face.__main__
import prepare
import sample
import train
from face.gltf import write_glb
from fuzz_captures import Case, damages, edits, finite, ramp, wrong_track
from test_gltf import small_head
from tiny_training import change, write_data

# ---------------------------------------------------------------- a tiny checkpoint, tiny data


@lru_cache
def tiny() -> Path:
    """A random checkpoint that hears one second; and data/ beside it."""
    root = Path(tempfile.mkdtemp())
    prepare.main(["weights", "--preset", "tiny", "--out", str(root / "whole")])
    change(root / "whole", root / "checkpoint")
    for name, count in (("train", 5), ("val", 3)):
        write_data(root / "data" / name, count, 0)
    atexit.register(shutil.rmtree, root)
    return root


def copy(source: Path, folder: Path) -> Path:
    return Path(shutil.copytree(source, folder / source.name))


def wrong_answer(folder: Path) -> str:
    """What is wrong with answer/ of sample.py."""
    said = folder / "answer" / "answer.json"
    if said.is_file() and not finite(json.loads(said.read_text(encoding="utf-8"))):
        return "answer.json has a number that is not finite"
    return (
        ""
        if not said.is_file() or json.loads(said.read_text(encoding="utf-8"))["weightMat"] == []
        else wrong_track(said)
    )


def old_answer(folder: Path) -> None:
    """An answer of before, which a refused command must leave alone."""
    (folder / "answer").mkdir()
    for ending in ("json", "wav", "txt", "glb"):
        (folder / "answer" / f"answer.{ending}").write_text("before")


ASK = ["--text", "hi", "--max-new-tokens", "4", "--device", "cpu"]


@st.composite
def configs(draw):
    """One json file of a checkpoint edited or damaged."""
    name = draw(
        st.sampled_from(
            ["config.json"] * 4
            + ["generation_config.json", "tokenizer.json", "speech_decoder/config.json", "speech_tokenizer/config.json"]
        )
    )
    change, hurt = draw(edits()), draw(damages()) if draw(st.integers(0, 5)) == 0 else None
    deep = draw(st.integers(0, 30)) == 0

    def make(folder: Path) -> Case:
        path = copy(tiny() / "checkpoint", folder) / name
        if deep:
            path.write_text("[" * 100_000)
        elif hurt:
            path.write_bytes(hurt[0](path.read_bytes()))
        elif path.is_file():
            path.write_text(json.dumps(change[0](json.loads(path.read_text(encoding="utf-8")))), encoding="utf-8")
        old_answer(folder)
        about = f"{name}: " + ("nested" if deep else hurt[1] if hurt else " ".join(change[1]))
        return Case("configs", about, sample.main, ["--checkpoint", "checkpoint", *ASK], lambda: wrong_answer(folder))

    return make


def edit_header(data: bytes, edit) -> bytes:
    """A safetensors file with its header edited."""
    size = int.from_bytes(data[:8], "little")
    header = json.dumps(edit(json.loads(data[8 : 8 + size]))).encode()
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


@st.composite
def weights(draw):
    """A safetensors file of a checkpoint with its header edited, its bytes damaged, NaN in it, or gone."""
    name = draw(
        st.sampled_from(["model.safetensors", "speech_decoder/flow.safetensors", "speech_decoder/hift.safetensors"])
    )
    how, change, hurt = (
        draw(st.sampled_from(["header", "bytes", "nan", "gone", "pipe", "text"])),
        draw(edits()),
        draw(damages()),
    )
    where = draw(st.floats(0, 1))

    def make(folder: Path) -> Case:
        path = copy(tiny() / "checkpoint", folder) / name
        data = path.read_bytes()
        path.unlink()
        if how == "pipe":
            os.mkfifo(path)
        elif how != "gone":
            at = len(data) // 4 + int(where * (len(data) // 2)) // 4 * 4
            path.write_bytes(
                {
                    "header": lambda: edit_header(data, change[0]),
                    "bytes": lambda: hurt[0](data),
                    "nan": lambda: data[:at] + b"\xff" * 64 + data[at + 64 :],
                    "text": lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
                }[how]()
            )
        old_answer(folder)
        return Case(
            "weights",
            f"{name} {how} {change[1]} {hurt[1]} {where:.3f}",
            sample.main,
            ["--checkpoint", "checkpoint", *ASK],
            lambda: wrong_answer(folder),
        )

    return make


@st.composite
def rows(draw):
    """Prepared data with an array, the manifest or a row damaged; a row also with the manifest's checksum mended."""
    name = draw(
        st.sampled_from(["audio.i16", "units.u16", "face.f16", "manifest.json", "samples.jsonl", "samples.jsonl"])
    )
    line, change, hurt, mended = draw(st.integers(0, 24)), draw(edits()), draw(damages()), draw(st.booleans())
    field = draw(st.sampled_from([None, "units", "audio", "face"]))
    span = draw(st.sampled_from([[-1, 3], [10**9, 3], [0, 10**9], [0, -3], [0.5, 3], [0], "x", [0, "3"], [None, 1]]))

    def make(folder: Path) -> Case:
        path = copy(tiny() / "data", folder) / "train" / name
        before, bad_span = path.read_bytes(), False
        if name == "samples.jsonl":
            lines = before.decode().splitlines()
            row = json.loads(lines[line])
            bad_span = field in row
            row = row | {field: span} if bad_span else change[0](row)
            lines[line] = json.dumps(row)
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        elif name == "manifest.json":
            path.write_text(json.dumps(change[0](json.loads(before))), encoding="utf-8")
        else:
            path.write_bytes(hurt[0](before))
        if mended and name == "samples.jsonl":
            manifest = json.loads((path.parent / "manifest.json").read_text())
            manifest["files"][name] = {"bytes": path.stat().st_size, "crc32": zlib.crc32(path.read_bytes())}
            (path.parent / "manifest.json").write_text(json.dumps(manifest))
        must = (
            name != "manifest.json"
            and path.read_bytes() != before
            and (not mended or name != "samples.jsonl" or bad_span)
        )
        argv = [
            "--stage",
            "3",
            "--data",
            str(folder / "data"),
            "--init-from",
            str(tiny() / "checkpoint"),
            "--out",
            "out",
            "--batch",
            "4",
            "--steps",
            "1",
            "--anyway",
            "--device",
            "cpu",
        ]
        about = f"{name} line {line} {f'{field} = {span}' if bad_span else change[1]} mended {mended} {hurt[1]}"
        return Case("rows", about, train.main, argv, lambda: "damaged data trained" if must else "")

    return make


# ---------------------------------------------------------------- sounds and heads


@st.composite
def sounds(draw):
    """A recording in an odd form, or damaged."""
    form = draw(
        st.sampled_from(
            [
                ("WAV", "PCM_16"),
                ("WAV", "FLOAT"),
                ("WAV", "DOUBLE"),
                ("WAV", "PCM_U8"),
                ("FLAC", "PCM_24"),
                ("OGG", "VORBIS"),
                ("MP3", "MPEG_LAYER_III"),
                ("RAW", "PCM_16"),
                ("AIFF", "PCM_16"),
                ("W64", "PCM_16"),
                ("AU", "ULAW"),
                ("OGG", "OPUS"),
            ]
        )
    )
    rate, channels = draw(st.sampled_from([8000, 16000, 22050, 44100, 48000])), draw(st.integers(1, 2))
    seconds, scale = draw(st.sampled_from([0.0, 1e-4, 0.05, 0.7, 2.5])), draw(
        st.sampled_from([0.3, 0.3, 0, 30000, 1e18, math.nan, math.inf])
    )
    hurt = draw(damages()) if draw(st.booleans()) else None

    def make(folder: Path) -> Case:
        import soundfile

        count = round(seconds * rate)
        values = np.sin(np.arange(count) * 0.05)[:, None].repeat(channels, 1)
        with np.errstate(all="ignore"):
            values = values * (scale if form[1] in ("FLOAT", "DOUBLE") else 0.3)  # their encoders abort at others
        path = folder / f"q.{form[0].lower()}"
        try:
            soundfile.write(path, values, rate, format=form[0], subtype=form[1])
        except (soundfile.LibsndfileError, ValueError):
            path.write_bytes(b"")
        if hurt:
            path.write_bytes(hurt[0](path.read_bytes()))
        old_answer(folder)
        about = f"{form} {rate} Hz, {channels} channels, {seconds} s x {scale}, {hurt and hurt[1]}"
        return Case(
            "sounds",
            about,
            sample.main,
            ["--checkpoint", str(tiny() / "checkpoint"), "--audio", str(path), *ASK[2:]],
            lambda: wrong_answer(folder),
        )

    return make


def edit_glb(data: bytes, edit) -> bytes:
    """A GLB with its json chunk edited."""
    size = int.from_bytes(data[12:16], "little")
    text = json.dumps(edit(json.loads(data[20 : 20 + size]))).encode()
    text += b" " * (-len(text) % 4)
    rest = data[20 + size :]
    return (
        data[:8]
        + (20 + len(text) + len(rest)).to_bytes(4, "little")
        + len(text).to_bytes(4, "little")
        + b"JSON"
        + text
        + rest
    )


@st.composite
def heads(draw):
    """A small head as .glb with its json edited, or its bytes damaged."""
    change, hurt = draw(edits()), draw(damages()) if draw(st.integers(0, 2)) == 0 else None
    out = draw(st.sampled_from(["out.glb", "out.html"]))

    def make(folder: Path) -> Case:
        path = folder / "head.glb"
        write_glb(path, small_head())
        data = path.read_bytes()
        path.write_bytes(hurt[0](data) if hurt else edit_glb(data, change[0]))
        np.save(folder / "take.npy", ramp(10, slice(None)).astype(np.float32))
        (folder / out).write_text("before")
        return Case(
            "heads",
            f"{out} {hurt[1] if hurt else change[1]}",
            face.__main__.main,
            ["convert", "take.npy", out, "--template", "head.glb"],
            lambda: "" if (folder / out).stat().st_size > 100 else "nothing was written",
        )

    return make
