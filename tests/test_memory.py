"""memory.py: the planned bytes are those that train.py's own step takes, one process or one of eight."""
import json
from argparse import Namespace
from dataclasses import asdict, replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.profiler import ProfilerActivity, profile
from torch.testing._internal.distributed.fake_pg import FakeStore

import train
from checkpoint import PRESETS
from data import collate
from face_decoder import FaceConfig, frames_for_units
from memory import GIB, Case, activations, plan, report, sizes
from speech_generator import GeneratorConfig
from workload import random_model

TINY = PRESETS["tiny"]
SMALL = replace(TINY, llm=replace(TINY.llm, vocab_size=2000, hidden_size=128, intermediate_size=384, head_dim=32,
                                  num_hidden_layers=4), stop_ids=(1999, 1998),
                speech_encoder=replace(TINY.speech_encoder, max_source_positions=100),
                generator=GeneratorConfig(replace(TINY.generator.llm, vocab_size=2000, hidden_size=96, head_dim=24,
                                                  intermediate_size=256, num_hidden_layers=3), 400, 2, 2, 16),
                face=FaceConfig(96, 400, 24, 64, 4, 3, tqgf_heads=2, tqgf_dim_head=16, dropout=0.0))
WORDS = replace(SMALL, llm=replace(SMALL.llm, vocab_size=20000))        # most of it lies in no block


NOTHING = dict.fromkeys(("init_from", "recipe", "dtype", "plan", "stage", "recompute", "epochs", "batch", "accumulate",
                         "tokens", "lr", "ablate"))                     # a command line of train.py


def case_of(config, stage: int, *rest, **changed) -> Case:
    row = train.STAGES["v1"][stage]
    return Case(config, row.tasks, row.losses, row.rates, *rest, **{"gpu": False} | changed)


@pytest.fixture
def processes():
    """processes(W): this is the first of W, whose others do nothing: what it gathers is of the right size only."""
    def join(world: int) -> None:
        if world > 1:
            dist.init_process_group("fake", rank=0, world_size=world, store=FakeStore())
    yield join
    if dist.is_initialized():
        dist.destroy_process_group()


def batches_of(model, case: Case, always) -> list:
    """Two micro-batches of the case's lengths, without padding."""
    random, (asks, R, U) = np.random.default_rng(0), case.lengths
    text = lambda n: " ".join(map(str, random.integers(1, 1000, n)))
    sample = {"id": 0, "messages": [{"role": "system", "content": text(asks)}, *[
                  {"role": "user", "content": [{"type": "speech"}]}] * case.sound],
              "answer": text(R - 1), "units": random.integers(0, 400, U),
              "face": random.random((frames_for_units(U), 52)),
              "audio": random.random(8000, np.float32) if case.sound else None}
    batch = collate([sample] * case.samples, model, case.losses, always=always)
    return [(0, batch), (1, batch)]


def measured(case: Case, stage: int, directory) -> dict:
    """Bytes of weights and moments, and all at the peak of a step of train.py: as the allocator gave them out."""
    model = random_model(case.config, "cpu").to(getattr(torch, case.dtype))
    state = asdict(train.STAGES["v1"][stage]) | {"dtype": case.dtype, "seed": 0, "step": 0, "steps": 100}
    parts, adamw, _ = train.prepare(model, state, torch.device("cpu"), case.recompute)
    trained = [p for part in state["rates"] for p in parts[part].values()]
    batches = batches_of(model, case, ("units", "face", *["mel"] * case.sound) if case.world > 1 else ())
    autocast = partial(torch.autocast, "cpu", torch.bfloat16, enabled=case.dtype == "bfloat16")

    def step():
        train.backward(model, batches, train.count([batch for _, batch in batches]), state, None, autocast)
        train.step_optimizers(trained, adamw, [], None, state)
    step()                                                              # the moments are there from now on
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    profiler.export_chrome_trace(str(directory / "trace.json"))
    events = [e for e in json.loads((directory / "trace.json").read_text())["traceEvents"] if e["name"] == "[memory]"]
    taken = np.cumsum([e["args"]["Bytes"] for e in sorted(events, key=lambda e: e["ts"])])
    own = lambda tensors: sum((t.to_local() if isinstance(t, DTensor) else t).nbytes for t in tensors)
    weights, moments = own(model.parameters()), own(t for s in adamw.state.values() for t in s.values())
    return {"weights": weights, "moments": moments, "peak": weights + moments + int(taken.max())}


@pytest.mark.parametrize("config, stage, world, dtype, recompute, when", [
    (SMALL, 1, 1, "float32", False, "backward of text"), (SMALL, 2, 1, "bfloat16", True, "backward of generator"),
    (SMALL, 4, 1, "float32", False, "losses"), (SMALL, 4, 8, "bfloat16", True, "losses"),
    (SMALL, 3, 8, "bfloat16", False, "backward of face"), (WORDS, 1, 8, "bfloat16", True, "gather"),
    (WORDS, 4, 8, "float32", True, "gradients of llm")])
def test_the_plan_is_what_a_step_takes(config, stage, world, dtype, recompute, when, processes, tmp_path):
    processes(world)
    samples, lengths = (4, (60, 60, 200)) if config is SMALL else (1, (30, 10, 30))
    case = case_of(config, stage, world, samples, lengths, dtype, recompute)
    planned, found = plan(case, sizes(config)), measured(case, stage, tmp_path)
    assert planned["when"] == when
    assert planned["weights"] == pytest.approx(found["weights"], rel=0.02)
    assert planned["moments"] == pytest.approx(found["moments"], rel=0.02)
    assert planned["peak"] == pytest.approx(found["peak"], rel=0.1)


def test_attention_keeps_no_table_of_all_pairs():
    one, two = (activations(case_of(SMALL, 4, lengths=(n, n, n)))["llm"] for n in (1000, 2000))
    assert two < 2.1 * one


def test_the_largest_size_fits_eight_cards_at_every_stage():
    args = Namespace(**NOTHING | {"init_from": "qwen3-8b", "plan": 8})
    head, names, *rows = report(args, train.STAGES)
    assert "qwen3-8b, v1, 8 processes, bfloat16" in head and "fits 80 GiB  fits 96 GiB" in names
    rows = [row.split() for row in rows]
    assert [row[:2] for row in rows] == [[str(n), how] for n in (1, 2, 3, 4) for how in ("yes", "no")]
    for row in rows:
        *parts, all_ = map(float, row[3:9])
        assert sum(parts) == pytest.approx(all_, abs=0.05) and all_ < 0.9 * 80
        assert int(row[2]) <= int(row[9]) <= int(row[10])                       # the table's micro-batch fits
    whole = {part: count for part, (count, *_) in sizes(PRESETS["qwen3-8b"]).items()}
    weights = 2 * sum(whole.values()) + 2 * whole["projector"]                      # bfloat16, what is trained float32
    assert float(rows[0][3]) == pytest.approx(weights / 8 / GIB, abs=0.01)


@pytest.mark.parametrize("changed, reason", [({"init_from": None}, "needs --init-from"), ({"stage": 5}, "stage 5"),
                                             ({"recipe": "mini"}, "v1 and v2"), ({"init_from": "nowhere"}, "nowhere")])
def test_what_cannot_be_planned_is_refused(changed, reason):
    args = Namespace(**NOTHING | {"init_from": "tiny", "plan": 2} | changed)
    with pytest.raises((ValueError, OSError), match=reason):
        list(report(args, train.STAGES))
