"""frozen.py: a training that keeps what its frozen parts make is the training that makes it anew; caches of others and
damaged ones are refused."""
import os
from types import SimpleNamespace

import pytest
import torch

import disk
import frozen
from model import ExOmni
from tiny_training import LOSSES, base, change, command, data, go, refuse, rows


def close(one, other, tolerance=1e-5):
    kept = lambda out: [{name: row[name] for name in (*LOSSES[4], "norm") if name in row} for row in rows(out, "norm")]
    assert len(kept(one)) == len(kept(other)) > 0
    for a, b in zip(kept(one), kept(other)):
        assert b == pytest.approx(a, abs=tolerance, rel=tolerance)


@pytest.fixture(scope="module")
def still(base, tmp_path_factory):
    """Without dropout, so that all is the same."""
    return change(base, tmp_path_factory.mktemp("still") / "base", dropout_rate=0.0)


@pytest.fixture
def never(monkeypatch):
    """Parts that must not run in training; validation is not affected."""
    def forbid(*names):
        forward = ExOmni.forward

        def watched(self, batch, counts=None):
            hooks = [getattr(self, name).register_forward_pre_hook(lambda *_: pytest.fail("ran"))
                     for name in names if torch.is_grad_enabled()]
            try:
                return forward(self, batch, counts)
            finally:
                for hook in hooks:
                    hook.remove()
        monkeypatch.setattr(ExOmni, "forward", watched)
    return forbid


CASES = {"v1 1": ("encoder", ["speech_encoder"]), "v1 2": ("reply", ["speech_encoder", "llm"]),
         "v1 3": ("generator", ["speech_encoder", "llm", "speech_generator"]), "v1 4": ("encoder", ["speech_encoder"]),
         "mini 3": ("generator", ["llm", "speech_generator"]), "v2 2": ("reply", ["llm"])}


@pytest.mark.parametrize("case", CASES)
def test_losses_are_the_same_with_what_was_kept(still, data, tmp_path, never, case):
    """And the frozen parts do not run."""
    recipe, stage = case.split()
    options = ("--recipe", recipe, "--steps", 3)
    go(still, data, tmp_path / "without", *options, stage=int(stage))
    never(*CASES[case][1])
    go(still, data, tmp_path / "with", *options, "--cache", tmp_path / "cache", stage=int(stage))
    close(tmp_path / "without", tmp_path / "with")
    assert disk.read_json(tmp_path / "cache/cache.json")["kind"] == CASES[case][0]


def test_ablated_context_needs_the_replys_states(still, data, tmp_path):
    options = ("--recipe", "v1", "--steps", 2, "--ablate", "speech-context")
    for name, more in (("without", ()), ("with", ("--cache", tmp_path / "cache"))):
        go(still, data, tmp_path / name, *options, *more, stage=3)
    close(tmp_path / "without", tmp_path / "with")


def test_a_filled_cache_is_used_again_and_a_part_of_one_is_completed(still, data, tmp_path, monkeypatch):
    made, cache = [], tmp_path / "cache"
    states_of = frozen.states_of
    monkeypatch.setattr(frozen, "BATCH", 2)
    monkeypatch.setattr(frozen, "SHARD_BYTES", 1)

    def dying(kind, model, samples, device):
        if len(made) == 2 and not (tmp_path / "again").exists():
            (tmp_path / "again").mkdir()
            raise KeyboardInterrupt
        made.append(len(samples))
        return states_of(kind, model, samples, device)
    monkeypatch.setattr(frozen, "states_of", dying)
    options = ("--recipe", "v1", "--steps", 1, "--cache", cache)
    with pytest.raises(SystemExit):
        go(still, data, tmp_path / "one", *options)
    assert len(list(cache.glob("*.states"))) == 2
    for name in ("two", "three"):
        go(still, data, tmp_path / name, *options)
    assert made == [2, 2, 1] and len(list(cache.glob("*.states"))) == 3 and not list(cache.glob(".new*"))
    close(tmp_path / "two", tmp_path / "three", 0)


@pytest.fixture(scope="module")
def filled(still, data, tmp_path_factory):
    work = tmp_path_factory.mktemp("filled")
    go(still, data, work / "out", "--recipe", "v1", "--steps", 1, "--cache", work / "cache")
    return work / "cache"


def test_bfloat16_is_kept_where_the_stage_computes_in_it(still, data, filled, tmp_path):
    for name, more in (("without", ()), ("with", ("--cache", tmp_path / "cache"))):
        go(still, data, tmp_path / name, "--recipe", "v1", "--steps", 2, "--dtype", "bfloat16", *more)
    close(tmp_path / "without", tmp_path / "with", 2e-2)
    size = lambda cache: sum(path.stat().st_size for path in cache.glob("*.states"))
    head = frozen.HEAD.itemsize + 5 * frozen.RECORD.itemsize
    assert size(filled) - head == 2 * (size(tmp_path / "cache") - head)


def test_anothers_cache_is_refused(still, base, data, filled, tmp_path, capsys):
    options = ("--anyway", "--recipe", "v1", "--steps", 1, "--cache", filled)
    refuse(capsys, command(data, still, tmp_path / "a", 3, *options), "was made by other weights, data or settings")
    other = change(base, tmp_path / "other")
    model = ExOmni.from_pretrained(other)
    model.llm.norm.weight.data[0] += 1
    model.save_pretrained(tmp_path / "changed")
    refuse(capsys, command(data, tmp_path / "changed", tmp_path / "b", 2, *options), "other weights")
    refuse(capsys, command(data, still, tmp_path / "c", 2, *options, "--dtype", "bfloat16"), "other weights")
    refuse(capsys, command(data, still, tmp_path / "d", 2, *options[:-1], other), "has no cache.json")
    refuse(capsys, [*command(data, still, tmp_path / "e", 1, "--anyway", "--cache", tmp_path / "new")],
           "alters the voices anew in each step")


@pytest.mark.parametrize("at", [0, 9, frozen.HEAD.itemsize + 3, -1], ids=["format", "maker", "records", "states"])
def test_a_damaged_cache_is_named(still, data, filled, tmp_path, capsys, at):
    path, = filled.glob("*.states")
    whole = path.read_bytes()
    changed = bytearray(whole)
    changed[at] ^= 1
    path.write_bytes(changed)
    try:
        options = ("--anyway", "--recipe", "v1", "--steps", 3, "--cache", filled)
        refuse(capsys, command(data, still, tmp_path / "out", 2, *options), f"{path} is damaged", "it is made again")
    finally:
        path.write_bytes(whole)


def test_a_pipe_in_a_cache_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "0.states")
    with pytest.raises(ValueError, match="0.states is a pipe"):
        frozen.Cache.scan(SimpleNamespace(directory=tmp_path, mixture=[]))
