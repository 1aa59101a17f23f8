"""tqgf.py: what the gate, the mask and the context do, and the module against explicit loops."""
import math

import pytest
import torch

from tqgf import TQGF


SUMS = {"atol": 1e-5, "rtol": 1e-5}        # float32 sums in another order; values are of order 1


@pytest.fixture(params=((24, 2, 3, 8), (16, 1, 2, 20)), ids=("inner = dim", "inner > dim"))
def tqgf(request):
    torch.manual_seed(0)
    module = TQGF(*request.param).eval()
    for p in module.parameters():
        torch.nn.init.normal_(p, mean=float(p.ndim == 1), std=0.3)
    return module


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def inputs(tqgf, batch=2, queries=5, rows=7):
    dim = tqgf.norm.weight.shape[0]
    return torch.randn(batch, queries, dim), torch.randn(batch, rows, dim)


def layer_norm(x, norm):
    """x: a list of numbers."""
    mean = sum(x) / len(x)
    variance = sum((v - mean) ** 2 for v in x) / len(x)
    return [(v - mean) / math.sqrt(variance + 1e-5) * w + b for v, w, b in zip(x, norm.weight.tolist(), norm.bias.tolist())]


def linear(x, layer):
    return [sum(a * b for a, b in zip(row, x)) for row in layer.weight.tolist()]


def reference(tqgf, query, context, visible):
    """One sample in plain Python, from the equations of spec 5.3: lists of numbers in, lists out."""
    query = [list(q) for q in query]
    for attention, feed_forward in tqgf.layers:
        keys_values = [linear(layer_norm(c, attention.norm_text), attention.to_kv) for c, v in zip(context, visible) if v]
        inner = len(keys_values[0]) // 2
        d = inner // attention.heads
        for i, x in enumerate(query):
            normed = layer_norm(x, attention.norm_query)
            q, gate = linear(normed, attention.to_q), linear(normed, attention.gate_proj)
            out = []
            for h in range(attention.heads):
                part = range(h * d, (h + 1) * d)
                scores = [math.exp(sum(q[j] * kv[j] for j in part) / math.sqrt(d)) for kv in keys_values]
                out += [sum(s * kv[inner + j] for s, kv in zip(scores, keys_values)) / sum(scores) for j in part]
            gated = [o / (1 + math.exp(-g)) for o, g in zip(out, gate)]
            x = [a + b for a, b in zip(x, linear(gated, attention.to_out))]
            wide = linear(layer_norm(x, feed_forward[0]), feed_forward[1])
            wide = [v * (1 + math.erf(v / math.sqrt(2))) / 2 for v in wide]
            query[i] = [a + b for a, b in zip(x, linear(wide, feed_forward[3]))]
    return [layer_norm(x, tqgf.norm) for x in query]


def test_module_equals_explicit_loops(tqgf):
    query, context = inputs(tqgf)
    mask = torch.tensor([[True] * 7, [True, False, True, True, False, False, True]])
    expected = [reference(tqgf, q.tolist(), c.tolist(), m.tolist()) for q, c, m in zip(query, context, mask)]
    torch.testing.assert_close(tqgf(query, context, mask), torch.tensor(expected), **SUMS)


def test_with_the_gate_at_zero_the_context_does_not_matter(tqgf):
    query, context = inputs(tqgf)
    for attention, _ in tqgf.layers:           # the normed query's first channel is 1, its gate -1e4: sigmoid is 0
        attention.norm_query.weight[0], attention.norm_query.bias[0] = 0, 1
        attention.gate_proj.weight.zero_()[:, 0] = -1e4
    seen, other = tqgf(query, context), tqgf(query, torch.randn_like(context))
    assert torch.equal(seen, other)
    for _, feed_forward in tqgf.layers:
        query = query + feed_forward(query)
    torch.testing.assert_close(seen, tqgf.norm(query), **SUMS)


def test_with_an_open_gate_the_context_matters(tqgf):
    query, context = inputs(tqgf)
    assert (tqgf(query, context) - tqgf(query, torch.randn_like(context))).abs().max() > 0.1


def test_padding_the_context_never_changes_a_row(tqgf):
    query, context = inputs(tqgf, batch=3)
    lengths = torch.tensor([7, 3, 1])
    mask = torch.arange(7) < lengths[:, None]
    seen = tqgf(query, context, mask)
    torch.testing.assert_close(seen, tqgf(query, context.masked_fill(~mask[..., None], 1e3), mask), **SUMS)
    for b, n in enumerate(lengths):
        torch.testing.assert_close(seen[b:b + 1], tqgf(query[b:b + 1], context[b:b + 1, :n]), **SUMS)


def test_the_order_of_the_context_does_not_matter(tqgf):
    query, context = inputs(tqgf)
    order, mask = torch.randperm(7), torch.arange(7)[None] < torch.tensor([[7], [4]])
    torch.testing.assert_close(tqgf(query, context[:, order], mask[:, order]), tqgf(query, context, mask), **SUMS)


def test_queries_do_not_see_each_other(tqgf):
    query, context = inputs(tqgf)
    torch.testing.assert_close(tqgf(query[:, 2:3], context), tqgf(query, context)[:, 2:3], **SUMS)


def test_a_wholly_masked_row_sees_everything_and_leaves_the_others_alone(tqgf):
    query, context = inputs(tqgf)
    mask = torch.tensor([[True] * 7, [False] * 7])
    seen = tqgf(query, context, mask)
    assert seen.isfinite().all()
    torch.testing.assert_close(seen, tqgf(query, context), **SUMS)
    with torch.enable_grad():
        tqgf(query, context, mask).sum().backward()
    assert all(p.grad.isfinite().all() for p in tqgf.parameters())
