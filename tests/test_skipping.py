"""train.py: steps whose gradients are not finite, and errors of one process among several."""
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

import ranks
import train
from model import ExOmni
from tiny_training import base, command, data, go, optimizer_of, refuse, rows, same_training, step_in


@pytest.mark.parametrize("messages, raises", [
    (["no room", None, "no room"], 0), ([None, "gone", "other"], 1), (["a", "b", None], 0), ([None, None, None], None)])
def test_an_error_ends_all_ranks_and_is_raised_where_it_is_new(monkeypatch, messages, raises):
    monkeypatch.setattr(ranks.dist, "all_gather_object", lambda into, own: into.__setitem__(slice(None), messages))
    for rank, message in enumerate(messages):
        monkeypatch.setattr(ranks, "rank_and_world", lambda: (rank, len(messages)))
        own = None if message is None else OSError(message)
        if raises is None:
            ranks.stop_if_any_failed(own)
            continue
        with pytest.raises(OSError if message is not None and message not in messages[:rank] else SystemExit):
            ranks.stop_if_any_failed(own)


def test_an_error_says_on_which_rank(monkeypatch):
    for world, said in (("1", "here"), ("4", "rank 2: here")):
        monkeypatch.setenv("WORLD_SIZE", world)
        monkeypatch.setenv("RANK", "2")
        for error in (ValueError("here"), RuntimeError("here"), FileNotFoundError("here")):
            with pytest.raises((ValueError, RuntimeError, OSError)) as seen, ranks.named_rank():
                raise error
            assert str(seen.value) == said


def exploding(monkeypatch, *steps):
    """The gradients of these steps, counted from 0, are no numbers."""
    backward = train.backward

    def exploded(model, batches, counts, state, *rest):
        losses = backward(model, batches, counts, state, *rest)
        for p in model.parameters():
            if p.grad is not None and state["step"] in steps:
                p.grad.fill_(float("nan"))
        return losses
    monkeypatch.setattr(train, "backward", exploded)


@pytest.mark.parametrize("recipe", ["v1", "mini"])
def test_a_step_without_finite_gradients_is_skipped_and_counted(base, data, tmp_path, monkeypatch, capsys, recipe):
    """Weights and moments are what they were; stopped in between it is the same training."""
    outs = [tmp_path / name for name in ("once", "twice")]
    exploding(monkeypatch, 1, 2)
    options = ("--recipe", recipe, "--steps", 4, "--log-every", 2, "--save-every", 1)
    go(base, data, outs[0], *options)
    log = rows(outs[0], "rates")
    assert [row.get("skipped") for row in log] == [1, 1] and all(row["norm"] > 0 for row in log)
    assert "skipped 1 of 2 steps: gradients not finite" in capsys.readouterr().out
    assert step_in(outs[0] / "previous") == 1, "nothing is saved while steps are skipped"
    go(base, data, outs[1], *options, "--stop-at", 2)
    first, second = (load_file(out / "model.safetensors") for out in (outs[1], outs[1] / "previous"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    moments = optimizer_of(outs[1])
    shutil.move(outs[1] / "previous", tmp_path / "before")
    assert all(torch.equal(tensor, moments[name]) for name, tensor in optimizer_of(tmp_path / "before").items())
    train.main(["--resume", "--out", str(outs[1]), "--log-every", "2", "--val-every", "100"])
    same_training(*outs)


def test_ten_in_a_row_end_the_run(base, data, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    exploding(monkeypatch, *range(2, 99))
    refuse(capsys, [*command(data, base, out, 2, "--steps", 50, "--save-every", 1), "--anyway"],
           "not finite in 10 steps in a row, up to step 12", "lower --lr", "holds step 2")
    assert step_in(out) == 2 and ExOmni.from_pretrained(out)
    assert all("NaN" not in line for line in (out / "log.jsonl").read_text().splitlines())
    assert json.loads((out / "log.jsonl").read_text().splitlines()[-1])["skipped"] == 1


def test_a_run_that_never_had_a_finite_gradient_is_not_told_to_lower_the_rate(base, data, tmp_path, monkeypatch, capsys):
    exploding(monkeypatch, *range(99))
    refuse(capsys, [*command(data, base, tmp_path / "out", 2, "--steps", 50), "--anyway"],
           "up to step 10: the weights of --init-from or the data may hold NaN", "no checkpoint yet")


def test_a_validation_that_is_no_number_at_the_end_is_no_result(base, data, tmp_path, monkeypatch, capsys):
    validate = train.validate
    monkeypatch.setattr(train, "validate", lambda *args: dict.fromkeys(validate(*args), float("nan")))
    refuse(capsys, [*command(data, base, tmp_path / "out", 2, "--steps", 2), "--anyway"],
           "the validation at the end, step 2, is not finite", "no checkpoint yet")
    assert rows(tmp_path / "out", "val")[-1]["val"]["units"] is None
