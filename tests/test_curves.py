"""curves.py: a log becomes a picture, anything else one line."""
import json

import numpy as np
import pytest

from docs import curves

pytest.importorskip("matplotlib")
ROWS = [{"step": 0, "start": {"stage": 1}}, {"step": 10, "text": 2.0, "norm": 1.0}, {"step": 20, "text": 1.0},
        {"step": 20, "val": {"text": 1.5, "text_accuracy": 0.5}}, {"step": 0, "start": {"stage": 4}},
        {"step": 10, "text": 0.5, "units": 3.0, "face": 0.01}]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_each_stage_has_its_losses_and_validation(tmp_path):
    parts = [{"part": "llm", "step": 20, "loss": 3.0}]                  # pretraining has no stage
    stages = curves.read(write(tmp_path / "log.jsonl", parts + ROWS))
    assert stages == {"stage 1": {"train": {"text": [(10, 2.0), (20, 1.0)]}, "val": {"text": [(20, 1.5)]}},
                      "stage 4": {"train": {"text": [(10, 0.5)], "units": [(10, 3.0)], "face": [(10, 0.01)]}, "val": {}}}


def test_the_picture_has_a_panel_for_each_stage(tmp_path, capsys):
    from matplotlib.image import imread
    curves.main([str(write(tmp_path / "log.jsonl", ROWS)), str(tmp_path / "out.png")])
    picture = imread(tmp_path / "out.png")[..., :3]
    assert picture.shape[1] > 2 * picture.shape[0]
    for half in (picture[:, :picture.shape[1] // 2], picture[:, picture.shape[1] // 2:]):
        assert (np.ptp(half, axis=2) > 0.3).any(), "a coloured line"
    assert "wrote" in capsys.readouterr().out


START = '{"start": {"stage": 1}}\n'


@pytest.mark.parametrize("text, message", [
    ("no json\n", "line 1 is not json"), ("{}\n", "holds no logged step"), ("3\n", "line 1 is not json of an object"),
    ('{"start": 1}\n', "line 1: field start is 1, expected"), ('{"start": {}}\n', "line 1: field stage is missing"),
    (START + '{"step": "x", "text": 1}\n', "line 2: field step is 'x'"),
    (START + '{"step": 1, "text": "x"}\n', "line 2: field text is 'x'"),
    (START + '{"step": 1, "val": 2}\n', "line 2: field val is 2"), (START + '{"step": 1, "text"', "line 2 is not json")])
def test_what_is_no_log_is_refused(tmp_path, capsys, text, message):
    (tmp_path / "log.jsonl").write_text(text)
    with pytest.raises(SystemExit) as stop:
        curves.main([str(tmp_path / "log.jsonl"), str(tmp_path / "out.png")])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and error.count("\n") == 1 and not (tmp_path / "out.png").exists()
