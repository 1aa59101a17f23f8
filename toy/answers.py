"""The spoken answers without their sound: adds their units to a demo set, and packs units, phones and faces in a file.

    units = units_of("data/demo/voice", encode)         # {text: units}, by a speech tokenizer
    add_units("data/demo/train", units, 1024, name)     # into a finished split
    ship_answers("data/demo", "mini/data")              # units, phones and faces -> mini/data/answers.xz
    about, answers = read_answers("mini/data")          # and back: `prepare.py demo --answers mini/data`

Shapes: U units (12.5 per second), T face frames (30 per second), K = 52 blendshape weights.
"""
import json
import lzma
from pathlib import Path

import numpy as np
from tqdm import tqdm

import disk
from data import Split, checksum
from face_decoder import frames_for_units

ANSWERS = "answers.xz"
MOST_BYTES = 256 << 20          # limit of the unpacked file; 1.7 h of speech are 10 MB
UNITS_OF = ("unit_vocab", "speech_tokenizer")       # fields of a manifest that describe its units


# ---- units into a demo set ----------------------------------------------------------------------------------------

def units_of(voice, encode) -> dict:
    """{text: units (U,)} of all clips of the split in the directory `voice`.

    encode: waveform (1280 U,) float32 at 16 kHz -> units (U,). Raises ValueError if the split has no sound."""
    split = Split(voice)
    if not len(split.arrays["audio"]):
        raise ValueError(f"{voice} has no sound, it was made from --answers with the units of their speech tokenizer: "
                         "other units need `prepare.py demo` with flite")
    return {row["answer"]: np.asarray(encode(split[n]["audio"])) for n, row in
            enumerate(tqdm(split.rows, desc="units", unit="clip", disable=None))}


def add_units(directory, units: dict, unit_vocab: int, speech_tokenizer: str) -> int:
    """Add the units of the answers to a finished split, or replace them. Returns the number of samples with units.

    units: {answer: (U,) ids}, shared by all samples of an answer. The manifest gets unit_vocab, the number of ids, and
    speech_tokenizer, the fingerprint of the tokenizer that made them. Raises ValueError for an answer without units, or
    with a number of units that does not match the frames of its face."""
    directory, split = Path(directory), Split(directory)
    where, arrays, start, rows = {}, [], 0, []          # where: answer -> [first, count] in units.u16
    for row in split.rows:
        if "face" not in row:
            rows.append(row)
            continue
        answer = row["answer"]
        if answer not in where:
            if answer not in units:
                raise ValueError(f"{directory}: no units for {answer!r}: were they made from another demo set's voice?")
            ids = np.asarray(units[answer])
            frames = row["face"][1]
            if frames_for_units(len(ids)) != frames or not 0 <= ids.min() <= ids.max() < unit_vocab:
                raise ValueError(f"{directory}: {len(ids)} units from {ids.min()} to {ids.max()} for {answer!r}, "
                                 f"expected ids below {unit_vocab} that last as long as its face, {frames} frames")
            where[answer] = [start, len(ids)]
            arrays.append(ids)
            start += len(ids)
        rows.append(row | {"units": where[answer]})
    manifest = split.manifest | {"unit_vocab": unit_vocab, "speech_tokenizer": speech_tokenizer}
    (directory / "manifest.json").unlink()              # the split is unfinished until both files are complete
    def lines(rows) -> bytes:
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()

    # First rows without units: if the process is killed in between, no row points at wrong units.
    bare = lines({key: value for key, value in row.items() if key != "units"} for row in rows)
    for name, content in (("samples.jsonl", bare),
                          ("units.u16", np.concatenate([*arrays, np.zeros(0)]).astype("<u2").tobytes()),
                          ("samples.jsonl", lines(rows))):
        with disk.replacing(directory / name) as temporary:
            temporary.write_bytes(content)
        manifest["files"][name] = {"bytes": len(content), "crc32": checksum(directory / name)}
    disk.write_json(directory / "manifest.json", manifest)
    return sum("units" in row for row in rows)


# ---- answers as a file --------------------------------------------------------------------------------------------

def ship_answers(data, folder) -> Path:
    """Write units, phones and faces of all answers, which the four stages need, to folder/answers.xz: 1 MB for 1.7 h.
    data: a demo set with units. Returns the file's path. Raises ValueError or FileNotFoundError for another `data`.

    The file is one xz stream, which includes a checksum. Its content, in order:
    - a json line {"format": 1, "answers": their number, seed, size, unit_vocab, speech_tokenizer};
    - a json line per answer {"text", "units": their number, "phones": [[name, milliseconds], ...] from 0 without gaps};
    - the units of all answers, 16 bits each, little endian;
    - the blendshape weights of all frames, 8 bits each: the difference of round(255 w) to the frame before, modulo 256;
      all frames of the first of the K weights, then of the second, and so on.
    An answer of U units has frames_for_units(U) frames."""
    voice = Split(Path(data) / "voice", verify=True)
    if any("units" not in row for row in voice.rows) or not {*UNITS_OF} <= voice.manifest.keys():
        raise ValueError(f"{voice.directory} has no units to ship: run `python -m toy pretrain units` first")
    lines = [{"format": 1, "answers": len(voice)} | {key: voice.manifest[key] for key in ("seed", "size", *UNITS_OF)}]
    for row in voice.rows:
        phones = [[name, round(1000 * end) - round(1000 * start)] for name, start, end in row["phones"]]
        lines.append({"text": row["answer"], "units": row["units"][1], "phones": phones})
    samples = [voice[n] for n in range(len(voice))]
    units = np.concatenate([sample["units"] for sample in samples]).astype("<u2")
    faces = np.round(255 * np.concatenate([sample["face"] for sample in samples])).astype(np.uint8)
    steps = np.diff(faces.T, prepend=np.uint8(0))
    content = "".join(json.dumps(line) + "\n" for line in lines).encode() + units.tobytes() + steps.tobytes()
    path = Path(folder) / ANSWERS
    with disk.replacing(path) as temporary:
        temporary.write_bytes(lzma.compress(content))
    return path


def read_answers(folder) -> tuple:
    """Read the file of `ship_answers` -> (its first line, {text: answer}). An answer is {"phones": [[name, start, end],
    ...] in seconds, "units": (U,), "face": (T, K) float32, rounded by at most 1/510}. Raises FileNotFoundError, or
    ValueError if the file is damaged."""
    path = disk.regular(Path(folder) / ANSWERS, "shipped answers, such as those in mini/data")
    try:
        reader = lzma.LZMADecompressor(memlimit=MOST_BYTES)
        content = reader.decompress(path.read_bytes(), MOST_BYTES)
        if not reader.eof:
            raise ValueError(f"no end within {MOST_BYTES} bytes")
        return unpacked(content)
    except (lzma.LZMAError, ValueError, LookupError, TypeError, EOFError, RecursionError) as error:
        raise ValueError(f"{path} is truncated, damaged or something else ({error}): fetch it again") from None


def unpacked(content: bytes) -> tuple:
    """The unpacked file -> as `read_answers`. Raises ValueError, LookupError or TypeError for other content."""
    first, rest = content.split(b"\n", 1)
    about = json.loads(first)
    if about["format"] != 1 or not {"seed", "size", *UNITS_OF} <= about.keys():
        raise ValueError(f"format {about['format']} with {', '.join(about)}, expected 1 with seed, size, "
                         f"{', '.join(UNITS_OF)}")
    *lines, numbers = rest.split(b"\n", about["answers"])
    rows = [json.loads(line) for line in lines]
    units = np.cumsum([0, *(row["units"] for row in rows)])
    frames = np.cumsum([0, *(frames_for_units(row["units"]) for row in rows)])
    ids = np.frombuffer(numbers, "<u2", units[-1])
    steps = np.frombuffer(numbers, np.uint8, offset=ids.nbytes).reshape(-1, frames[-1])
    faces = np.cumsum(steps, axis=1, dtype=np.uint8).T
    answers = {}
    for n, row in enumerate(rows):
        ends = np.cumsum([0, *(length for _, length in row["phones"])]).tolist()
        spans = [[name, start / 1000, end / 1000] for (name, _), start, end in zip(row["phones"], ends, ends[1:])]
        answers[row["text"]] = {"phones": spans, "units": ids[units[n]:units[n + 1]],
                                "face": faces[frames[n]:frames[n + 1]] / np.float32(255)}
    return about, answers
