"""toy/muon.py on one process; test_train.py has two."""
import copy

import pytest
import torch

from toy.muon import Muon, for_muon, orthogonal


@pytest.fixture
def net():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.GELU(), torch.nn.Linear(16, 4))


def backward(net, step):
    (net(torch.randn(6, 8, generator=torch.Generator().manual_seed(step))) ** 2).sum().backward()


def test_a_step_is_orthogonal_and_of_the_promised_size(net):
    before, muon = copy.deepcopy(net), Muon({"0.weight": net[0].weight})
    backward(net, 0)
    muon.step(1e-2)
    step = (net[0].weight - before[0].weight).detach()
    values = torch.linalg.svdvals(step)
    assert values[0] < 2 * values[3]                  # orthogonal, about; six samples make at most six directions
    assert step.square().mean().sqrt().item() == pytest.approx(1e-2 / 2, rel=0.4)
    assert net[0].weight.grad is None and torch.equal(net[2].weight, before[2].weight)


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 24, 150)])
def test_orthogonal_is_five_of_jordans_steps(shape):
    """In float32 as the steps on whole matrices in float64, however small the smallest singular value is."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * torch.logspace(0, -6, shape[1])[:, None]
    expected = x.double() / x.double().norm(dim=(1, 2), keepdim=True)
    for _ in range(5):
        square = expected @ expected.mT
        expected = 3.4445 * expected - 4.7750 * square @ expected + 2.0315 * square @ square @ expected
    # A rounding of 6e-8 grows up to 3.4445^5 = 485 times where the singular values are small.
    torch.testing.assert_close(orthogonal(x).double(), expected, rtol=0, atol=3e-5)
    values = torch.linalg.svdvals(orthogonal(torch.randn(2, 8, 64, generator=torch.Generator().manual_seed(1))))
    assert (values > 0.6).all() and (values < 1.3).all()


def test_restored_moments_go_on_exactly(net):
    matrices = lambda net: {name: p for name, p in net.named_parameters() if p.ndim == 2}
    muon = Muon(matrices(net))
    for step in range(2):
        backward(net, step)
        muon.step(1e-2)
    again = copy.deepcopy(net)
    again.zero_grad()
    restored = Muon(matrices(again))
    restored.moments = {name: moment.clone() for name, moment in muon.moments.items()}
    for model, optimizer in ((net, muon), (again, restored)):
        model.zero_grad()
        for step in range(2, 4):
            backward(model, step)
            optimizer.step(1e-2)
    assert all(torch.equal(a, b) for a, b in zip(matrices(net).values(), matrices(again).values()))


def test_muon_trains_the_matrices_between_hidden_states():
    matrix, vector = torch.zeros(3, 3), torch.zeros(3)
    assert for_muon("llm.layers.0.mlp.up_proj.weight", matrix) and for_muon("speech_projector.linear1.weight", matrix)
    for name, parameter in (("llm.norm.weight", vector), ("llm.embed_tokens.weight", matrix), ("lm_head.weight", matrix),
                            ("speech_generator.input_proj.2.weight", matrix), ("face_decoder.out_head.4.weight", matrix),
                            ("speech_generator.llm_decoder.weight", matrix)):
        assert not for_muon(name, parameter)
