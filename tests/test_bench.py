"""bench.py train: its figures are there and mean what they say; its count of FLOP is PyTorch's own."""
import json
from dataclasses import asdict
from math import isfinite

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import bench
import train
from checkpoint import PRESETS
from data import collate
from workload import cached_read, made_up, random_model, step_flop

TINY = ["train", "--preset", "tiny", "--samples", "1", "--rounds", "1", "--threads", "1", "--device", "cpu"]
MATRICES = ("aten.mm", "aten.addmm", "aten.convolution")


def results(capsys, *options) -> dict:
    """What the last line of a benchmark says."""
    bench.main([*TINY, *options])
    return json.loads(capsys.readouterr().out.splitlines()[-1])["train"]


@pytest.mark.parametrize("stage", train.STAGES["v1"])
def test_work_is_what_pytorch_counts(stage):
    """All matrix products of a sample without padding; the gradient of what the first trained matrix is given is not
    needed, and is counted all the same."""
    config, device = PRESETS["tiny"], torch.device("cpu")
    state = asdict(train.STAGES["v1"][stage]) | {"dtype": "float32", "seed": 0, "step": 0, "steps": 100}
    model = random_model(config, device)
    batch = collate(made_up(state["tasks"][0], 1, config), model, state["losses"], device)
    step, = bench.our_steps(model, state, device, False, [lambda: batch])
    with FlopCounterMode(display=False) as counter:
        step()
    counted = sum(n for op, n in counter.get_flop_counts()["Global"].items() if str(op) in MATRICES)
    assert step_flop(model, batch, state)[0] == pytest.approx(counted, rel=0.05)


def test_a_frozen_part_costs_less_than_a_trained_one():
    config = PRESETS["tiny"]
    model = random_model(config, "cpu")
    batch = collate(made_up("qa", 2, config), model, ("text",))
    flop = lambda *trained: step_flop(model, batch, {"losses": ("text",), "rates": dict.fromkeys(trained, 1e-3)})[0]
    assert flop("llm") > flop("projector") > flop("generator")          # gradients pass through a frozen LLM, or do not


@pytest.mark.parametrize("options, names", [
    (["--stage", "2", "--recompute"], ["float32 stage 2 of v1"]),
    (["--recipe", "mini", "--stage", "2"], ["float32 stage 2 of mini"]),
    (["--layers", "1", "--stage", "1", "--dtype", "bfloat16"], ["bfloat16 stage 1 of v1"])])
def test_every_stage_has_its_figures(options, names, capsys):
    found = results(capsys, *options)
    assert list(found) == names
    for stage in found.values():
        figures = stage["ours"]
        assert all(isfinite(value) and value >= 0 for value in figures.values())
        assert figures["tokens_per_s"] > 0 and 0 < figures["mfu"] < 1.5 and figures["waiting"] < 1


def test_the_peer_does_the_same_work(capsys):
    pytest.importorskip("transformers")
    found, = results(capsys, "--against", "transformers").values()
    assert found["ours"]["flop"] == found["transformers"]["flop"] > 0
    assert found["times transformers"]["cpu"] > 0 and not torch.distributed.is_initialized()


@pytest.mark.parametrize("stage, name, left_out", [(1, "encoded", "mel"), (3, "unit_states", "mel")])
def test_what_is_kept_does_the_same_work(stage, name, left_out, tmp_path, capsys):
    """The losses are compared in the benchmark itself."""
    found, = results(capsys, "--stage", str(stage), "--cache").values()
    assert list(found) == ["ours", "kept", "times ours"] and found["times ours"]["cpu"] > 0
    assert found["ours"]["tokens"] == found["kept"]["tokens"] and "mfu" not in found["kept"]
    config, state = PRESETS["tiny"], asdict(train.STAGES["v1"][stage]) | {"dtype": "float32"}
    task, model = state["tasks"][0], random_model(config, "cpu")
    batch = cached_read(model, made_up(task, 2, config), task, state, torch.device("cpu"), tmp_path)()
    assert name in batch and left_out not in batch


@pytest.mark.parametrize("options, reason", [
    (["--recipe", "mini", "--stage", "4", "--cache"], "alters the voices anew"),
    (["--cache", "--against", "transformers"], "--cache is not for --against"), (["--stage", "5"], "stage 5 is unknown"),
    (["--samples", "0"], "--samples"), (["--preset", "huge"], "huge"), (["--units", "9"], "--units is not for train"),
    (["--layers", "0"], "--layers")])
def test_wrong_options_are_one_line(options, reason, capsys):
    with pytest.raises(SystemExit) as stop:
        bench.main([*TINY, *options])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and reason in error
