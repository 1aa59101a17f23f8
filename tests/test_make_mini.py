"""make.py: steps run once, in order, and go on after a failure; what is shipped is the checkpoint and its start."""
import json
import shutil
import time

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file

from checkpoint import official_name
from data import Writer
from model import ExOmni
from toy import make as make_mini
from toy import pretrain, pretrain_listen

SCRIPT = """import sys, time
open(sys.argv[1], 'a').write(sys.argv[2])
time.sleep(2 * (sys.argv[2] == 'slow'))
sys.exit(int(sys.argv[3]))
"""


@pytest.fixture
def planned(monkeypatch, tmp_path):
    """planned([{step: exit code}, ...]) makes that the plan. Returns the file to which each step appends its name."""
    (tmp_path / "script.py").write_text(SCRIPT)
    said = tmp_path / "said"

    def set_plan(plan):
        steps = [{name: [tmp_path / "script.py", said, name, code] for name, code in group.items()} for group in plan]
        monkeypatch.setattr(make_mini, "plan", lambda work, shipped: steps)
        return said
    return set_plan


def test_steps_run_in_order_and_once(planned, tmp_path, capsys):
    said = planned([{"a": 0}, {"b": 0}, {"c": 0}])
    make_mini.make(tmp_path / "work", None)
    make_mini.make(tmp_path / "work", None)
    assert said.read_text() == "abc"
    log = [json.loads(row) for row in (tmp_path / "work/steps.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log] == ["a", "b", "c"]
    assert "--- a: python " in capsys.readouterr().out


def test_a_failed_step_ends_the_run_and_the_same_command_goes_on(planned, tmp_path):
    said = planned([{"a": 0}, {"b": 3}, {"c": 0}])
    with pytest.raises(ValueError, match="b ended with code 3: mend what it says, then the same command goes on"):
        make_mini.make(tmp_path / "work", None)
    planned([{"a": 0}, {"b": 0}, {"c": 0}])
    make_mini.make(tmp_path / "work", None)
    assert said.read_text() == "abbc"


def test_a_damaged_line_of_the_log_of_steps_is_named(tmp_path):
    (tmp_path / "steps.jsonl").write_text('{"step": "data"}\n{"step": "ba')
    with pytest.raises(ValueError, match="steps.jsonl, line 2 is not json of an object: remove that line"):
        make_mini.make(tmp_path, None)


def test_each_of_two_steps_at_the_same_time_has_its_own_time(planned, tmp_path):
    planned([{"slow": 0, "b": 0}])
    make_mini.make(tmp_path / "work", None)
    seconds = {row["step"]: row["seconds"] for row in
               map(json.loads, (tmp_path / "work/steps.jsonl").read_text().splitlines())}
    assert seconds["slow"] > seconds["b"] + 1


def test_an_interrupt_is_passed_on_and_the_steps_are_waited_for(monkeypatch, tmp_path):
    code = """import pathlib, sys, time
ready, saved = map(pathlib.Path, sys.argv[1:])
try: ready.touch(), time.sleep(60)
except KeyboardInterrupt: saved.touch()"""
    monkeypatch.setattr(make_mini, "plan", lambda *_: [{"a": ["-c", code, tmp_path / "ready", tmp_path / "saved"]}])

    def interrupt(_, sleep=time.sleep):
        while not (tmp_path / "ready").exists():
            sleep(0.05)
        raise KeyboardInterrupt
    monkeypatch.setattr(make_mini.time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        make_mini.make(tmp_path, None)
    assert (tmp_path / "saved").exists()


def test_listening_ends_with_the_step_at_its_side_and_goes_on_in_the_next(monkeypatch, tmp_path):
    code = """import pathlib, sys, time
pathlib.Path(sys.argv[1]).touch()
time.sleep(60)"""
    wait = "import pathlib, sys, time\nwhile not pathlib.Path(sys.argv[1]).exists(): time.sleep(.05)"
    steps = [{"other": ["-c", wait, tmp_path / "ready"], make_mini.UNTIL_ALONE: ["-c", code, tmp_path / "ready"]},
             {"on": ["-c", "pass"]}]
    monkeypatch.setattr(make_mini, "plan", lambda *_: steps)
    make_mini.make(tmp_path, None)
    rows = [json.loads(row) for row in (tmp_path / "steps.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == ["other", make_mini.UNTIL_ALONE, "on"] and rows[1]["seconds"] < 50


def test_a_failed_step_ends_the_other_one_at_once(planned, tmp_path):
    planned([{"slow": 0, "b": 1}])
    with pytest.raises(ValueError, match="b ended with code 1"):
        make_mini.make(tmp_path / "work", None)
    assert not (tmp_path / "work/steps.jsonl").exists()


def test_an_interrupted_stage_is_resumed_and_the_shipped_start_needs_no_pretraining(tmp_path):
    def planned(shipped):
        return {name: list(map(str, arguments))
                for group in make_mini.plan(tmp_path, shipped) for name, arguments in group.items()}

    steps = planned(None)
    assert list(steps) == ["data", "speaking", make_mini.UNTIL_ALONE, "listening, two cores", "base", "stage1", "stage2",
                           "stage3", "stage4"]
    assert all(steps[f"stage{n}"][-2:] == ["--resume", "auto"] for n in range(1, 5)), "starts, or goes on"
    assert steps["stage3"][steps["stage3"].index("--init-from") + 1] == str(tmp_path / "stage2")
    shipped = planned("mini")
    assert list(shipped) == ["data", "base", "stage1", "stage2", "stage3", "stage4"]
    assert shipped["data"][-1] == "mini/data" and shipped["base"][-2:] == ["--from", "mini"]


@pytest.fixture
def work(checkpoint, tmp_path, monkeypatch):
    """A finished run at the tiny size."""
    work = tmp_path / "work"
    shutil.copytree(checkpoint, work / "stage4")
    (work / "stage4/tokenizer.json").unlink()
    pretrain_listen.make_vocabulary([], work / "stage4")            # the bytes
    (work / "stage4/stages.json").write_text("{}")
    model = ExOmni.from_pretrained(checkpoint)
    config = json.loads((work / "stage4/config.json").read_text())
    pretrain_listen.write_part(work / "parts/llm", config, "model", model.llm)
    shutil.copy(work / "stage4/mini.tiktoken", work / "parts/llm")
    (work / "parts/log.jsonl").write_text('{"part": "llm", "step": 20}\n')
    (work / "steps.jsonl").write_text('{"step": "data", "seconds": 1.5}\n')
    (work / "stage4/log.jsonl").write_text('{"step": 10, "text": 1.0}\n')
    speech, random = [{"role": "user", "content": [{"type": "speech"}]}], np.random.default_rng(0)
    for split in make_mini.QUESTIONS[:2]:
        with Writer(work / "data" / split) as out:
            for n, kind in enumerate(("color", "color", "day", "month", "legs")):
                out.add({"id": f"{split}-{n}", "task": "qa", "messages": speech, "answer": "A.", "text": "Q?",
                         "kind": kind, "voice": "v", "phrasing": "train"}, audio=random.normal(size=1600) * 0.1)
            out.finish()
    monkeypatch.setattr(make_mini.answers, "ship_answers", lambda data, out: out.mkdir(parents=True, exist_ok=True))
    return work


def test_what_is_shipped_is_the_checkpoint_in_16_bit_with_questions_and_logs(work, tmp_path, capsys):
    make_mini.ship(work, tmp_path / "mini")
    before, after = (load_file(path / "model.safetensors") for path in (work / "stage4", tmp_path / "mini"))
    assert all(torch.equal(tensor.half(), after[name]) for name, tensor in before.items())
    for name in ("mini.tiktoken", "tokenizer_config.json"):             # has more ids than the tiny model
        (tmp_path / "mini" / name).unlink()
    model = ExOmni.from_pretrained(tmp_path / "mini")
    assert model.llm.norm.weight.dtype == torch.float32 and model.speech_decoder is not None
    rows = [json.loads(row) for row in (tmp_path / "mini/questions/questions.jsonl").read_text().splitlines()]
    assert [row["kind"] for row in rows] == ["color", "day", "month", "legs"], "two of each split, each of its own kind"
    assert all(soundfile.info(tmp_path / f"mini/questions/{row['kind']}.wav").samplerate == 16_000 for row in rows)
    log = [json.loads(row) for row in (tmp_path / "mini/log.jsonl").read_text().splitlines()]
    assert log == [{"step": "data", "seconds": 1.5}, {"part": "llm", "step": 20},
                   {"stage": "stage4", "step": 10, "text": 1.0}]
    assert f"--checkpoint {tmp_path / 'mini'}" in capsys.readouterr().out


def test_a_model_that_does_not_fold_what_users_write_is_shipped_so(work, tmp_path):
    """The first mini model does not, and training from it gives another such one, in place of one that does."""
    make_mini.ship(work, tmp_path / "mini")
    configs = [tmp_path / "mini" / part / "tokenizer_config.json" for part in ("", "base")]
    assert not configs[1].exists() and json.loads(configs[0].read_text())["fold_user_text"] is True
    (work / "stage4/tokenizer_config.json").unlink()
    make_mini.ship(work, tmp_path / "mini")
    assert not configs[0].exists()


def test_the_parts_come_out_of_what_is_shipped(work, tmp_path):
    """In 16 bit: the encoder and the language model of before the stages; the speech parts byte for byte."""
    make_mini.ship(work, tmp_path / "mini")
    pretrain.unpack(tmp_path / "mini", tmp_path / "parts")
    shipped = load_file(work / "stage4/model.safetensors")
    for name, tensor in load_file(tmp_path / "parts/encoder/model.safetensors").items():
        assert torch.equal(tensor, shipped[official_name(name.replace("model.encoder", "speech_encoder"))].half())
    llm, base = (load_file(path / "model.safetensors") for path in (work / "parts/llm", tmp_path / "parts/llm"))
    assert llm.keys() == base.keys() and all(torch.equal(llm[name].half(), base[name]) for name in llm)
    for name in ("speech_tokenizer/model.safetensors", "speech_decoder/flow.safetensors"):
        assert (tmp_path / "parts" / name).read_bytes() == (work / "stage4" / name).read_bytes()
    assert (tmp_path / "parts/generator/model.safetensors").exists()
