"""A tiny checkpoint, prepared data and the commands to train on it: for the tests of train.py."""
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

import disk
import train
from checkpoint import official_name
from data import Writer

WINDOW = 50                        # encoder states, 1 s: the tiny preset's own 30 s would be most of the work
SPEECH, TEXT = ([{"role": "user", "content": c}] for c in ([{"type": "speech"}], "Say it."))
LOSSES = {1: ["text"], 2: ["units"], 3: ["face"], 4: ["text", "units", "face"]}


def change(checkpoint, out, window=WINDOW, **config):
    """A copy of a checkpoint with another encoder window, and other fields in config.json."""
    shutil.copytree(checkpoint, out)
    values, tensors = disk.read_json(out / "config.json"), load_file(out / "model.safetensors")
    values["speech_encoder_config"]["max_source_positions"] = window
    disk.write_json(out / "config.json", values | config)
    table = official_name("speech_encoder.embed_positions.weight")
    save_file(tensors | {table: tensors[table][:window].clone()}, out / "model.safetensors", {"format": "pt"})
    return out


@pytest.fixture(scope="session")
def base(checkpoint, tmp_path_factory):
    return change(checkpoint, tmp_path_factory.mktemp("train") / "base")


def write_data(directory, count, seed, **about):
    """`count` answers, each as a sample of every task; tones and ramps that can be learnt."""
    random = np.random.default_rng(seed)
    with Writer(directory) as out:
        for i in range(count):
            answer, n = ["Yes.", "No!", "Two", "I am."][i % 4] * (1 + i // 4), 4 + 3 * (i % 4)
            units = (7 * i + np.arange(n)) % 96
            face = np.linspace(0, 1, 12 * n // 5)[:, None] * random.random(52)
            time = np.arange(6000 + 900 * i)
            sound = 0.5 * np.sin(0.1 * (1 + i) * time) + 0.01 * random.standard_normal(len(time))
            answered = {"units": units, "face": face}
            for task, messages, arrays in (
                    ("asr", SPEECH, {"audio": sound}), ("tts", TEXT, {"units": units}),
                    ("face", TEXT, answered), ("chat", TEXT, {}),
                    ("qa", SPEECH, answered | {"audio": sound}) if i % 2 else ("qa", TEXT, answered)):
                out.add({"id": f"{task}{i}", "task": task, "messages": messages, "answer": answer}, **arrays)
        out.finish(**{"unit_vocab": 96} | about)
    return directory


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    directory = tmp_path_factory.mktemp("data")
    write_data(directory / "train", 5, 0)
    write_data(directory / "val", 3, 1)
    return directory


def command(data, start, out, stage, *options):
    return ["--stage", str(stage), "--data", str(data), "--init-from", str(start), "--out", str(out), "--batch", "4",
            "--log-every", "1", "--val-every", "100", "--save-every", "100", *map(str, options)]


def go(base, data, out, *options, stage=2):
    train.main(command(data, base, out, stage, "--anyway", *options))


def step_in(directory) -> int:
    return disk.read_json(directory / "trainer" / "state.json")["step"]


def rows(out, key):
    """The rows of the log that have the key."""
    return [row for row in map(json.loads, (out / "log.jsonl").read_text().splitlines()) if key in row]


def optimizer_of(out):
    """What trainer/optimizer holds: name -> whole tensor."""
    path = out.parent / f"{out.name}.pt"
    dcp_to_torch_save(out / "trainer" / "optimizer", path)
    return torch.load(path, weights_only=True)


def same_training(one, other):
    """The same weights, optimizer and log, times apart."""
    for a, b in ([load_file(out / "model.safetensors") for out in (one, other)], map(optimizer_of, (one, other))):
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    kept = lambda out: [{key: row[key] for key in ("step", *LOSSES[4], "norm", "val") if key in row}
                        for row in rows(out, "step") if "start" not in row]
    assert kept(one) == kept(other)


def refuse(capsys, argv, *expected):
    """The command ends with 2 and one line on stderr that has all of these; nothing else was tried."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        train.main(argv)
    lines = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and len(lines) == 1 and lines[0].startswith("error: "), lines
    for text in expected:
        assert text in lines[0], lines[0]
