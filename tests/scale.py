"""Figures of data at scale, on this machine.

    python tests/scale.py index DIR             a made-up split of five million rows (10,000 hours): seconds, memory
    python tests/scale.py balance               padding and balance of micro-batches on log-normal lengths

DIR needs 4 GB; its sound and faces are files of the right size without content.
"""
import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

import disk
import prepared
from checkpoint import PRESETS
from data import Split
from face_decoder import frames_for_units
from loading import Mixture, Stream, cost, fitting_numbers, mixed_rows, packed, shares

ROWS = 5_000_000


def make(directory: Path) -> None:
    """A split of ROWS samples of about 6 s that counts as read through."""
    directory.mkdir(parents=True)
    seconds = np.random.default_rng(0).lognormal(np.log(6), 0.6, ROWS).clip(0.5, 30)
    lengths = {"audio": (16_000 * seconds).astype(int), "units": np.round(12.5 * seconds).astype(int)}
    lengths["face"] = frames_for_units(lengths["units"])
    starts = {name: np.append(0, np.cumsum(n)) for name, n in lengths.items()}
    with open(directory / prepared.ROWS, "wb") as file:
        for i in range(ROWS):
            text = "the quick brown fox jumps over " * int(1 + seconds[i] / 2)
            user = [{"type": "speech"}] if i % 2 else f"Read aloud: {text}"
            row = {"id": f"clip-{i:08d}", "task": "qa" if i % 2 else "face", "answer": text,
                   "messages": [{"role": "user", "content": user}]}
            row |= {name: [int(starts[name][i]), int(lengths[name][i])] for name in lengths if i % 2 or name != "audio"}
            file.write(json.dumps(row).encode() + b"\n")
    for name, (file, dtype, width) in prepared.ARRAYS.items():
        with open(directory / file, "wb") as array:
            array.truncate(int(starts[name][-1]) * np.dtype(dtype).itemsize * width)
    began = time.perf_counter()
    prepared.make_index(directory, {name: int(starts[name][-1]) for name in lengths})
    print(f"the index was made in {time.perf_counter() - began:.0f} s")
    files = {name: {"bytes": (directory / name).stat().st_size, "crc32": 0} for name in prepared.FILES}
    files[prepared.ROWS]["crc32"] = prepared.checksum(directory / prepared.ROWS)
    disk.write_json(directory / "manifest.json", {"format": 1, "samples": ROWS, "unit_vocab": 16384, "files": files})
    time.sleep(prepared.TICK + 1)
    now, _ = prepared.changed_files(directory, {name: prepared.File(**file) for name, file in files.items()}, 16384)
    prepared.write_verified(directory, now)


def memory() -> dict:
    """MiB of this process: resident, and the most so far. Linux only."""
    lines = dict(line.split(":") for line in open("/proc/self/status"))
    return {name: int(lines[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM")}


def index(directory: Path) -> None:
    if not (directory / "manifest.json").exists():
        make(directory)
    before, began = memory(), time.perf_counter()
    mixture = Mixture([Split(directory)], [1.0])
    opened = time.perf_counter() - began
    model = SimpleNamespace(config=PRESETS["qwen3-8b"], tokenizer=None, directory=directory)
    numbers, skipped = fitting_numbers(mixture, mixed_rows(mixture, ("face", "qa"), {}, 0), model)
    stream = Stream(mixture, numbers, 0)
    stream.at(0, 128)
    print(f"{len(numbers):,} samples: open in {opened:.1f} s, all checked and the first step chosen in "
          f"{time.perf_counter() - began:.1f} s")
    for step in range(1, 1000):
        mixture.column("units length", stream.at(128 * step, 128))
    after = memory()
    print(", ".join(f"{name} {after[name] - before[name]:.0f} MiB more" for name in before) + " after 1000 steps")


def balance() -> None:
    for sigma in (0.5, 0.8):
        for batch, world, accumulate in ((128, 8, 1), (128, 2, 1), (32, 8, 1), (32, 8, 4), (32, 2, 4)):
            random, real, padded, even, count = np.random.default_rng(0), 0, 0, [], []
            for _ in range(40):
                seconds = random.lognormal(np.log(6), sigma, batch).clip(0.5, 60)
                text = np.round(3 * seconds * random.normal(1, 0.15, batch).clip(0.5, 1.5))
                lengths = np.stack([40 + text, np.round(12.5 * seconds) + text], 1)
                lengths = lengths[lengths.sum(1).argsort()]
                lists = packed(lengths, world, accumulate)
                costs = [cost(lengths[i:j]) for i, j in lists]
                loads = [sum(costs[n] for n in own) for own in shares(costs, world)]
                real, padded = real + lengths.sum(), padded + sum(costs)
                even, count = [*even, np.mean(loads) / max(loads)], [*count, len(lists) / world]
            print(f"sigma {sigma}, batch {batch}, {world} processes, accumulation from {accumulate}: "
                  f"{np.mean(count):.1f} micro-batches each, padding {1 - real / padded:.1%}, balance "
                  f"{np.mean(even):.2f}")


if __name__ == "__main__":
    index(Path(sys.argv[2])) if sys.argv[1] == "index" else balance()
