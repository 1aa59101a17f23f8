"""qwen3.py against transformers' Qwen3 with the same random weights."""
import copy
import dataclasses

import pytest
import torch
import transformers

from qwen3 import KVCache, PackedLinear, Qwen3, Qwen3Config, fast_matvec_layout


# Same float32 arithmetic in another order over two layers: seen below 3e-6 on values of order 1.
CLOSE = {"atol": 2e-5, "rtol": 1e-4}
SHAPES = {      # heads * head_dim: 64 = hidden, one query head per key head; then 96 != 40, three per key head
    "plain": dict(hidden_size=64, num_attention_heads=4, num_key_value_heads=4, head_dim=16, tie_word_embeddings=False),
    "grouped": dict(hidden_size=40, num_attention_heads=6, num_key_value_heads=2, head_dim=16, tie_word_embeddings=True),
}
COMMON = dict(vocab_size=99, intermediate_size=72, num_hidden_layers=2, rms_norm_eps=1e-6, max_position_embeddings=128)


@pytest.fixture(params=SHAPES)
def pair(request):
    """(ours, transformers' causal LM) with the same weights, and norms that are not one."""
    torch.manual_seed(0)
    config = transformers.Qwen3Config(**COMMON, **SHAPES[request.param], attn_implementation="eager",
                                      rope_parameters={"rope_type": "default", "rope_theta": 1e4})
    theirs = transformers.Qwen3ForCausalLM(config).eval()
    for p in theirs.parameters():
        torch.nn.init.normal_(p, std=0.15) if p.ndim > 1 else torch.nn.init.uniform_(p, 0.5, 1.5)
    ours = Qwen3(Qwen3Config.from_dict(config.to_dict())).eval()
    ours.load_state_dict(theirs.model.state_dict())
    return ours, theirs


@pytest.fixture
def ours(pair):
    return pair[0]


def left_padded(lengths, longest):
    return torch.arange(longest) >= longest - torch.tensor(lengths)[:, None]


def right_padded(lengths, longest):
    return torch.arange(longest) < torch.tensor(lengths)[:, None]


def reference(theirs, ids):
    """States of one row (N,), uncached and unpadded."""
    return theirs.model(ids[None]).last_hidden_state[0]


def same(seen, expected):
    torch.testing.assert_close(seen, expected, **CLOSE)


@torch.no_grad()
def test_states_and_logits_equal_transformers(pair):
    ours, theirs = pair
    ids = torch.randint(99, (3, 17))
    expected = theirs(ids, output_hidden_states=True)
    assert expected.hidden_states[-1].std() > 0.3, "a comparison of nothing"
    same(ours(ids), expected.hidden_states[-1])
    same(ours(ids) @ theirs.lm_head.weight.T, expected.logits)


@torch.no_grad()
def test_embeddings_as_input_equal_their_ids(pair):
    ours, theirs = pair
    ids, free = torch.randint(99, (2, 9)), torch.randn(2, 9, ours.config.hidden_size)
    same(ours(embeds=ours.embed_tokens(ids)), ours(ids))
    same(ours(embeds=free), theirs.model(inputs_embeds=free).last_hidden_state)


@torch.no_grad()
@pytest.mark.parametrize("batch", (1, 3))
def test_token_by_token_with_a_cache_equals_all_at_once(pair, batch):
    ours, theirs = pair
    ids = torch.randint(99, (batch, 12))
    cache = KVCache(ours.config, batch, 12, ours.norm.weight)
    states = torch.cat([ours(token, cache=cache) for token in ids.split(1, dim=1)], dim=1)
    same(states, theirs.model(ids).last_hidden_state)
    assert cache.lengths.tolist() == [12] * batch and cache.bound == 12


@torch.no_grad()
@pytest.mark.parametrize("padded", (left_padded, right_padded))
def test_padding_on_either_side_changes_no_real_position(pair, padded):
    ours, theirs = pair
    lengths = [11, 4, 1, 7]
    ids, mask = torch.randint(99, (4, 11)), padded(lengths, 11)
    states, other = ours(ids, mask=mask), ours(ids.where(mask, 5), mask=mask)
    for b in range(4):
        same(states[b, mask[b]], reference(theirs, ids[b, mask[b]]))
    same(states[mask], other[mask])
    kwargs = dict(attention_mask=mask.long(), position_ids=(mask.cumsum(1) - 1).clamp(min=0))
    same(states[mask], theirs.model(ids, **kwargs).last_hidden_state[mask])


@torch.no_grad()
@pytest.mark.parametrize("padded", (left_padded, right_padded))
def test_a_padded_prompt_continues_token_by_token(pair, padded):
    ours, theirs = pair
    prompt, more, mask = torch.randint(99, (3, 8)), torch.randint(99, (3, 6)), padded([8, 3, 5], 8)
    cache = KVCache(ours.config, 3, 14, ours.norm.weight)
    ours(prompt, mask=mask, cache=cache)
    states = torch.cat([ours(token, cache=cache) for token in more.split(1, dim=1)], dim=1)
    for b in range(3):
        same(states[b], reference(theirs, torch.cat([prompt[b, mask[b]], more[b]]))[-6:])


@torch.no_grad()
@pytest.mark.parametrize("padded", (left_padded, right_padded))
def test_a_prompt_read_in_chunks_of_different_lengths_equals_one_reading(pair, padded):
    ours, theirs = pair
    chunks = [(torch.randint(99, (3, longest)), padded(lengths, longest))
              for lengths, longest in (([5, 2, 4], 5), ([1, 6, 3], 6), ([2, 1, 1], 2), ([1, 1, 1], 1))]
    cache = KVCache(ours.config, 3, 14, ours.norm.weight)
    states = [ours(ids, mask=mask, cache=cache) for ids, mask in chunks]
    for b in range(3):
        seen = torch.cat([s[b, mask[b]] for s, (_, mask) in zip(states, chunks)])
        same(seen, reference(theirs, torch.cat([ids[b, mask[b]] for ids, mask in chunks])))
    assert cache.lengths.tolist() == [9, 10, 9]


@torch.no_grad()
def test_a_bound_at_the_capacity_changes_nothing(ours):
    ids, growing, static = torch.randint(99, (2, 9)), *(KVCache(ours.config, 2, 20, ours.norm.weight) for _ in range(2))
    mask = right_padded([5, 3], 5)
    ours(ids[:, :5], mask=mask, cache=growing), ours(ids[:, :5], mask=mask, cache=static)
    for token in ids[:, 5:].split(1, dim=1):
        static.bound = static.capacity
        same(ours(token, cache=static), ours(token, cache=growing))


def test_state_dict_has_hugging_face_names_and_shapes_and_comes_back(pair):
    ours, theirs = pair
    expected = theirs.model.state_dict()
    state = ours.state_dict()
    assert {n: t.shape for n, t in state.items()} == {n: t.shape for n, t in expected.items()}
    assert all(torch.equal(state[n], expected[n]) for n in expected)
    other = Qwen3(ours.config)
    assert str(other.load_state_dict(state)) == "<All keys matched successfully>"
    assert all(torch.equal(t, state[n]) for n, t in other.state_dict().items())


def test_load_state_dict_names_a_missing_projection(ours):
    state = ours.state_dict()
    del state["layers.1.self_attn.k_proj.weight"]
    with pytest.raises(RuntimeError, match="layers.1.self_attn"):
        ours.load_state_dict(state)


def test_gradients_equal_transformers(pair):
    ours, theirs = pair
    ids = torch.randint(99, (2, 10))
    head = theirs.lm_head.weight.detach().clone()
    ((ours(ids) @ head.T).log_softmax(-1)[..., 7].mean()).backward()
    ((theirs.model(ids).last_hidden_state @ head.T).log_softmax(-1)[..., 7].mean()).backward()
    assert all(p.grad is not None for p in ours.parameters())
    gradients = copy.deepcopy(ours)                    # its state_dict gives the gradients Hugging Face's names
    for into, p in zip(gradients.parameters(), ours.parameters()):
        into.data = p.grad
    for name, p in theirs.model.named_parameters():
        seen = gradients.state_dict()[name]
        assert p.grad.abs().max() > 0, name
        # relative to the tensor's largest gradient: float32 sums in another order
        torch.testing.assert_close(seen, p.grad, atol=1e-4 * p.grad.abs().max().item(), rtol=1e-3, msg=name)


@torch.no_grad()
def test_bfloat16_is_as_close_to_float32_as_transformers_is(pair):
    ours, theirs = pair
    ids = torch.randint(99, (2, 12))
    exact = ours(ids)
    error = lambda states: ((states.float() - exact).norm() / exact.norm()).item()
    seen, expected = error(ours.bfloat16()(ids)), error(theirs.bfloat16().model(ids).last_hidden_state)
    assert seen < 0.03, "2^-8 per rounding, a few dozen of them in a row"
    assert seen < 1.5 * expected, "no rounding that transformers does without"


@torch.no_grad()
def test_bfloat16_cached_decoding_is_close_to_uncached(ours):
    ours = ours.bfloat16()
    ids, cache = torch.randint(99, (1, 12)), KVCache(ours.config, 1, 12, ours.norm.weight)
    states = torch.cat([ours(token, cache=cache) for token in ids.split(1, dim=1)], dim=1).float()
    exact = ours(ids).float()
    assert (states - exact).norm() / exact.norm() < 0.03


@torch.no_grad()
def test_fast_matvec_layout_changes_strides_only(ours):
    fast = copy.deepcopy(ours.bfloat16())
    fast_matvec_layout(fast)
    plain, state = ours.state_dict(), fast.state_dict()
    assert any(not p.is_contiguous() for p in fast.parameters()), "nothing was laid out anew"
    assert list(state) == list(plain) and all(torch.equal(state[n], plain[n]) for n in plain)
    for ids in (torch.randint(99, (2, 9)), torch.randint(99, (1, 1))):          # a matrix product, a matrix-vector product
        seen, expected = fast(ids).float(), ours(ids).float()
        assert (seen - expected).norm() / expected.norm() < 0.02, "beyond bfloat16 rounding (2^-8 a step)"
    again = Qwen3(ours.config).bfloat16()
    fast_matvec_layout(again)
    layout = [p.stride() for p in again.parameters()]
    again.load_state_dict(state)
    assert [p.stride() for p in again.parameters()] == layout
    assert all(torch.equal(t, plain[n]) for n, t in again.state_dict().items())
    assert torch.equal(again(torch.tensor([[1, 2, 3]])), fast(torch.tensor([[1, 2, 3]])))


def test_packed_parts_are_views_of_one_parameter(ours):
    packed = [m for m in ours.modules() if isinstance(m, PackedLinear)]
    assert len(packed) == 2 * ours.config.num_hidden_layers
    assert sum(p.numel() for p in ours.parameters()) == sum(t.numel() for t in ours.state_dict().values())
    ours.state_dict()["layers.0.mlp.up_proj.weight"].zero_()
    assert (ours.layers[0].mlp.gate_up.weight[ours.config.intermediate_size:] == 0).all()


# ---------------------------------------------------------------- the config

VALUES = dataclasses.asdict(Qwen3Config())


def test_config_from_dict_takes_transformers_4_and_5():
    new = {k: v for k, v in VALUES.items() if k != "rope_theta"} | {
        "rope_parameters": {"rope_type": "default", "rope_theta": 123.0}}
    old = VALUES | {"rope_scaling": None, "attention_bias": False, "hidden_act": "silu"}
    assert Qwen3Config.from_dict(old) == Qwen3Config()
    assert Qwen3Config.from_dict(new) == Qwen3Config(rope_theta=123.0)


@pytest.mark.parametrize("change, named", (
    ({"attention_bias": True}, "unsupported attention_bias"),
    ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "unsupported rope_scaling"),
    ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6}}, "unsupported rope_type"),
    ({"use_sliding_window": True}, "unsupported use_sliding_window"),
    ({"hidden_act": "gelu"}, "unsupported hidden_act")))
def test_config_from_dict_refuses_what_qwen3_does_not_have(change, named):
    with pytest.raises(ValueError, match=f"here.json is not a plain Qwen3 config: {named}"):
        Qwen3Config.from_dict(VALUES | change, "here.json")


@pytest.mark.parametrize("name", ("hidden_size", "rope_theta", "num_key_value_heads", "rms_norm_eps"))
def test_config_from_dict_names_a_missing_field(name):
    with pytest.raises(ValueError, match=f"missing {name}"):
        Qwen3Config.from_dict({k: v for k, v in VALUES.items() if k != name})
