"""From recordings to a model that talks, as README.md says it ("Your own data"), in three layouts."""
import shlex
import shutil

import numpy as np
import pytest
import soundfile

import prepare
import sample
import train
from data import Split
from face.arkit import write_csv
from made_corpora import faces, librispeech
from test_docs import README, ROOT, fenced, section
from tiny_training import base    # noqa: F401  a fixture

OWN = section(README, "Your own data: your voice, your language")


def test_the_table_and_the_commands_of_the_readme(base, tmp_path, monkeypatch, capsys):
    """Its rows, as they stand there; its commands with a tiny checkpoint and without the two that need other programs."""
    table, commands = fenced(OWN, "text")
    (tmp_path / "mine.csv").write_text(table)
    for name, clip in (("ask1", "capital"), ("noon", "day"), ("morning", "plus"), ("street", "month")):
        shutil.copy(ROOT / f"mini/questions/{clip}.wav", tmp_path / f"{name}.wav")
    seconds = soundfile.info(tmp_path / "morning.wav").duration
    write_csv(tmp_path / "morning.csv", np.full((round(30 * seconds), 52), 0.5))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/stage1").symlink_to(base)
    mains = {"prepare.py": prepare.main, "train.py": train.main, "sample.py": sample.main}
    done = []
    for line in commands.splitlines():
        _, name, *arguments = shlex.split(line.partition(" #")[0].replace("checkpoints/qwen3-8b", str(base)))
        if arguments[0] not in ("speak", "label"):
            more = ["--steps", "1", "--batch", "1", "--anyway"] if name == "train.py" else []
            mains[name]([*arguments, *more])
            done.append(arguments[0])
    assert done == ["corpus", "units", "--stage", "--stage", "--checkpoint"]
    split = Split(tmp_path / "data/mine/train")
    assert sorted(row["task"] for row in split.rows) == ["asr", "face", "qa", "tts"]
    assert (tmp_path / "answer/answer.html").is_file()


@pytest.mark.parametrize("layout, options, stages", [(librispeech, ["--from-asr"], (1, 2)), (faces, [], (2, 3))])
def test_a_published_layout_trains(base, tmp_path, layout, options, stages):
    source, data, start = tmp_path / "source", tmp_path / "data", base
    layout(source)
    prepare.main(["corpus", layout.__name__, str(source), "--out", str(data)])
    prepare.main(["units", str(data), "--checkpoint", str(base), *options])
    for stage in stages:
        out = tmp_path / f"stage{stage}"
        train.main(["--stage", str(stage), "--data", str(data), "--init-from", str(start), "--out", str(out), "--steps",
                    "1", "--batch", "2", "--anyway"])
        start = out
    assert (start / "model.safetensors").is_file()


def test_code_of_the_readme_writes_a_sample(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, = fenced(OWN, "python")
    exec(compile(code, "README.md", "exec"), {})
    assert Split("data/mine/train")[0]["units"].tolist() == [17, 4, 99]
