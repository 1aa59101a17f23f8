"""fit.py: a loss falls, and an interrupted run ends where an uninterrupted one does."""
import json

import pytest
import torch
from torch import nn

from toy import fit


def problem():
    """A small module and its loss; the data of a step come from the step's generator."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))      # with buffers

    def loss(step, generator):
        x = torch.randn(16, 4, generator=generator)
        value = (module(x) - x.sum(1, keepdim=True)).square().mean()
        return value, {"half": value / 2}
    return module, loss


def test_the_loss_falls_and_is_logged(tmp_path):
    module, loss = problem()
    fit.fit("part", module, loss, 60, 1e-2, tmp_path, warmup=5, matrices=[module[0].weight])
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [20, 40, 60]
    assert lines[-1]["loss"] < 0.5 * lines[0]["loss"]
    assert not (tmp_path / "part.state.safetensors").exists()


def test_interrupted_training_goes_on_bit_for_bit(tmp_path, monkeypatch, capsys):
    whole, loss = problem()
    fit.fit("part", whole, loss, 30, 1e-2, tmp_path / "a", warmup=5, matrices=[whole[0].weight])
    monkeypatch.setattr(fit, "SAVE_SECONDS", 0)                     # save after every step
    broken, loss = problem()

    def interrupted(step, generator):
        if step == 17:
            raise KeyboardInterrupt
        return loss(step, generator)
    with pytest.raises(KeyboardInterrupt):
        fit.fit("part", broken, interrupted, 30, 1e-2, tmp_path / "b", warmup=5, matrices=[broken[0].weight])
    assert "step 17 of 30" in capsys.readouterr().out
    again, loss = problem()
    fit.fit("part", again, loss, 30, 1e-2, tmp_path / "b", warmup=5, matrices=[again[0].weight])
    for (name, a), b in zip(whole.state_dict().items(), again.state_dict().values()):
        assert torch.equal(a, b), name


def test_a_step_whose_gradient_is_not_finite_changes_nothing_and_says_so(tmp_path, capsys):
    module, loss = problem()
    before = {name: p.clone() for name, p in module.named_parameters()}

    def broken(step, generator):
        value, parts = loss(step, generator)
        return value * float("nan"), parts
    fit.fit("part", module, broken, 3, 1e-2, tmp_path, matrices=[module[0].weight])
    assert all(torch.equal(before[name], p) for name, p in module.named_parameters())
    assert "part, step 2: the gradient is nan, nothing was changed" in capsys.readouterr().out
    line, = (tmp_path / "log.jsonl").read_text().splitlines()
    assert "NaN" not in line and json.loads(line)["loss"] is None


def test_muon_steps_are_orthogonal_and_of_the_promised_size():
    random = torch.Generator().manual_seed(0)
    for size in ((6, 20), (20, 6), (6, 4, 5), (20, 3, 2)):
        p = nn.Parameter(torch.zeros(size))
        p.grad = torch.randn(size, generator=random) * torch.logspace(-1, 1, size[-1])        # directions 100 apart
        fit.Muon({"p": p}).step(1e-3)
        values = torch.linalg.svdvals(p.detach().flatten(1))
        assert values.max() / values.min() < 2                      # Jordan's coefficients: between .7 and 1.2
        rms = p.detach().square().mean().sqrt().item()
        assert 0.3e-3 < rms < 0.7e-3 and p.grad is None
        p.grad = -torch.sign(p.detach())
        before = p.detach().clone()
        fit.Muon({"p": p}).step(1e-3)
        assert ((p.detach() - before) * before).sum() > 0           # against the gradient


def test_a_state_of_another_size_is_refused(tmp_path):
    module, _ = problem()
    optimizer = torch.optim.AdamW(module.parameters())
    fit.weights.write_tensors(tmp_path / "part.state.safetensors",
                              fit.state_of(nn.Linear(3, 3), optimizer, fit.Muon({})) | {"step": torch.tensor(1)})
    with pytest.raises(ValueError, match="another size: remove it to start over"):
        fit.fit("part", *problem(), 3, 1e-2, tmp_path)


def test_the_rate_goes_up_in_a_line_and_down_to_zero():
    rates = [fit.warmup_cosine(step, 100, 10) for step in range(101)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == 1 == rates[10] and rates[100] == pytest.approx(0)
    assert all(a > b for a, b in zip(rates[10:], rates[11:]))
