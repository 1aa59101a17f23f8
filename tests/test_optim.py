"""optim.py on one process; test_train.py has two."""
import copy

import pytest
import torch

from toy.muon import SharedOptimizer, orthogonal, share_out


@pytest.fixture
def net():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.GELU(), torch.nn.Linear(16, 4))


def parts_of(net):
    parameters = dict(net.named_parameters())
    return {"first": (1e-2, {name: p for name, p in parameters.items() if name[0] == "0"}),
            "last": (1e-3, {name: p for name, p in parameters.items() if name[0] == "2"})}


def loss_of(net, step):
    x = torch.randn(6, 8, generator=torch.Generator().manual_seed(step), dtype=torch.float32)
    return (net(x.to(net[0].weight.dtype)).float() ** 2).sum()


def test_one_process_in_float32_is_adamw_bit_for_bit(net):
    """With the gradients clipped in float64."""
    plain = copy.deepcopy(net)
    ours = SharedOptimizer(parts_of(net), weight_decay=0.1)
    theirs = torch.optim.AdamW([{"params": plain[i].parameters()} for i in (0, 2)], betas=(0.9, 0.95), weight_decay=0.1)
    for step in range(5):
        loss_of(net, step).backward()
        ours.collect()
        norm = ours.step(0.5)
        loss_of(plain, step).backward()
        grads = [p.grad.double() for p in plain.parameters()]
        expected = torch.nn.utils.get_total_norm(grads)
        for p, grad in zip(plain.parameters(), grads):
            p.grad = (grad / (expected + 1e-6)).float()
        for group, rate in zip(theirs.param_groups, (1e-2, 1e-3)):
            group["lr"] = 0.5 * rate
        theirs.step()
        theirs.zero_grad()
        assert norm == expected.item() and norm > 1, "clipping has something to do"
        assert all(torch.equal(a, b) for a, b in zip(net.parameters(), plain.parameters()))


def test_gradients_add_up_over_pieces(net):
    plain = copy.deepcopy(net)
    pieces, whole = SharedOptimizer(parts_of(net)), SharedOptimizer(parts_of(plain))
    for step in range(3):
        loss_of(net, step).backward()
        pieces.collect()
    sum(loss_of(plain, step) for step in range(3)).backward()
    whole.collect()
    assert pieces.step(1.0) == pytest.approx(whole.step(1.0), rel=1e-5)
    for a, b in zip(net.parameters(), plain.parameters()):
        torch.testing.assert_close(a, b)


def test_small_steps_on_bfloat16_weights_are_not_lost():
    """1100 steps of 2e-6 move a weight of 1 by 2.2e-3, over half of bfloat16's spacing below 1: it ends one below."""
    p = torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    optimizer = SharedOptimizer({"all": (2e-6, {"p": p})})
    for step in range(1100):
        p.grad = torch.ones_like(p)
        optimizer.collect()
        optimizer.step(1.0)
    assert p.dtype == torch.bfloat16 and torch.equal(p, torch.full_like(p, 1 - 2 ** -8))
    assert optimizer.mine["p"][0].item() == pytest.approx(1 - 1100 * 2e-6, abs=4e-5)    # 1100 roundings of 3e-8


def test_muon_trains_the_matrices_it_is_told_of_and_adamw_the_rest(net):
    plain, before = copy.deepcopy(net), copy.deepcopy(net)
    ours, theirs = SharedOptimizer(parts_of(net), matrices={"0.weight"}), SharedOptimizer(parts_of(plain))
    for model, optimizer in ((net, ours), (plain, theirs)):
        loss_of(model, 0).backward()
        optimizer.collect()
        optimizer.step(0.5)
    for name, p in net.named_parameters():
        assert torch.equal(p, plain.get_parameter(name)) == (name != "0.weight")
    step = (net[0].weight - before[0].weight).detach()
    values = torch.linalg.svdvals(step)
    assert values[0] < 2 * values[3]                  # orthogonal, about; six samples make at most six directions
    assert step.square().mean().sqrt().item() == pytest.approx(0.5 * 1e-2 / 2, rel=0.4)


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("matrices", [(), ("0.weight", "2.weight")])
def test_a_loaded_state_goes_on_exactly(net, dtype, matrices):
    net = net.to(dtype)
    optimizer = SharedOptimizer(parts_of(net), matrices=matrices)

    def run(net, optimizer, steps):
        for step in steps:
            loss_of(net, step).backward()
            optimizer.collect()
            optimizer.step(1.0)
    run(net, optimizer, range(2))
    again = copy.deepcopy(net)
    loaded = SharedOptimizer(parts_of(again), matrices=matrices)
    loaded.load({name: tensor.clone() for name, tensor in optimizer.state().items()})
    run(net, optimizer, range(2, 4))
    run(again, loaded, range(2, 4))
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters()))
    assert all(torch.equal(tensor, loaded.state()[name]) for name, tensor in optimizer.state().items())
    assert any(name.startswith("master.") for name in optimizer.state()) == (dtype == torch.bfloat16)


def test_a_gradient_that_is_not_a_number_changes_nothing(net):
    optimizer, before = SharedOptimizer(parts_of(net)), copy.deepcopy(net.state_dict())
    (loss_of(net, 0) * float("nan")).backward()
    optimizer.collect()
    assert torch.tensor(optimizer.step(1.0)).isnan()
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_shares_are_about_equal_and_leave_nothing_out():
    sizes = [622, 622, 50, 50, 50, 12, 3, 1, 0, 600, 300, 300]
    owner = share_out(sizes, 4)
    loads = [sum(size for size, o in zip(sizes, owner) if o == rank) for rank in range(4)]
    assert sum(loads) == sum(sizes) and max(loads) - min(loads) <= 65
    assert share_out([5, 5], 3) in ([0, 1],)
