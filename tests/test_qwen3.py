"""qwen3.py against transformers' Qwen3 with the same random weights."""
import dataclasses

import pytest
import torch
import transformers

from qwen3 import KVCache, Qwen3, Qwen3Config


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
    assert cache.lengths.tolist() == [12] * batch and cache.limit == 12


@torch.no_grad()
def test_padding_on_the_right_changes_no_real_position(pair):
    ours, theirs = pair
    lengths = torch.tensor([11, 4, 1, 7])
    ids, real = torch.randint(99, (4, 11)), torch.arange(11) < lengths[:, None]
    states, other = ours(ids), ours(ids.where(real, 5))
    for b, n in enumerate(lengths):
        same(states[b, :n], reference(theirs, ids[b, :n]))
    assert torch.equal(states[real], other[real])
    same(states[real], theirs.model(ids, attention_mask=real.long()).last_hidden_state[real])


@torch.no_grad()
def test_a_padded_prompt_continues_token_by_token(pair):
    ours, theirs = pair
    prompt, more, lengths = torch.randint(99, (3, 8)), torch.randint(99, (3, 6)), torch.tensor([8, 3, 5])
    cache = KVCache(ours.config, 3, 14, ours.norm.weight)
    ours(prompt, cache=cache, lengths=lengths)
    states = torch.cat([ours(token, cache=cache) for token in more.split(1, dim=1)], dim=1)
    for b, n in enumerate(lengths):
        same(states[b], reference(theirs, torch.cat([prompt[b, :n], more[b]]))[-6:])


@torch.no_grad()
def test_a_prompt_read_in_chunks_of_different_lengths_equals_one_reading(pair):
    ours, theirs = pair
    chunks = [(torch.randint(99, (3, max(lengths))), torch.tensor(lengths))
              for lengths in ([5, 2, 4], [1, 6, 3], [2, 1, 1], [1, 1, 1])]
    cache = KVCache(ours.config, 3, 14, ours.norm.weight)
    states = [ours(ids, cache=cache, lengths=lengths) for ids, lengths in chunks]
    for b in range(3):
        seen = torch.cat([s[b, :lengths[b]] for s, (_, lengths) in zip(states, chunks)])
        same(seen, reference(theirs, torch.cat([ids[b, :lengths[b]] for ids, lengths in chunks])))
    assert cache.lengths.tolist() == [9, 10, 9]


@torch.no_grad()
def test_reading_the_whole_cache_changes_nothing(ours):
    ids, growing, static = torch.randint(99, (2, 9)), *(KVCache(ours.config, 2, 20, ours.norm.weight) for _ in range(2))
    for cache in (growing, static):
        ours(ids[:, :5], cache=cache, lengths=torch.tensor([5, 3]))
    static.limit = static.capacity
    for token in ids[:, 5:].split(1, dim=1):
        same(ours(token, cache=static), ours(token, cache=growing))
    assert (growing.limit, static.limit) == (9, 20)


@torch.no_grad()
def test_a_cleared_cache_is_as_new(ours):
    first, second = torch.randint(99, (2, 2, 7))
    used, new = (KVCache(ours.config, 2, 7, ours.norm.weight) for _ in range(2))
    ours(first, cache=used)
    used.clear()
    for part in second.split((4, 1, 1, 1), dim=1):
        assert torch.equal(ours(part, cache=used), ours(part, cache=new))


@torch.no_grad()
def test_a_prompt_longer_than_the_cache_is_refused(ours):
    with pytest.raises(ValueError, match="9 tokens do not fit a cache of 8"):
        ours(torch.randint(99, (1, 9)), cache=KVCache(ours.config, 1, 8, ours.norm.weight))


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
    seen = {name: p.grad for name, p in ours.named_parameters()}
    for name, p in theirs.model.named_parameters():
        assert p.grad.abs().max() > 0, name
        # relative to the tensor's largest gradient: float32 sums in another order
        torch.testing.assert_close(seen[name], p.grad, atol=1e-4 * p.grad.abs().max().item(), rtol=1e-3, msg=name)


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


# ---------------------------------------------------------------- the config

VALUES = dataclasses.asdict(Qwen3Config())


def test_config_from_dict_takes_transformers_4_and_5():
    new = {k: v for k, v in VALUES.items() if k != "rope_theta"} | {
        "rope_parameters": {"rope_type": "default", "rope_theta": 123.0}}
    old = VALUES | {"rope_scaling": None, "attention_bias": False, "hidden_act": "silu", "model_type": "qwen3"}
    assert Qwen3Config.from_dict(old) == Qwen3Config()
    plain = {"rope_scaling": {"rope_type": "default"}, "use_sliding_window": False, "sliding_window": 4096,
             "layer_types": ["full_attention"] * 36, "num_experts": 0}
    assert Qwen3Config.from_dict(old | plain) == Qwen3Config()
    assert Qwen3Config.from_dict(old | {"model_type": "llava_her_qwen3", "auto_map": {"A": "b"}}) == Qwen3Config()
    assert Qwen3Config.from_dict(new) == Qwen3Config(rope_theta=123.0)


@pytest.mark.parametrize("change, named", (
    ({"attention_bias": True}, "attention_bias is True: Qwen3 has none"),
    ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_scaling is {'type': 'yarn', 'factor': 4.0}: set "),
    ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope_scaling is {'rope_type': 'linear', .*: set it to"),
    ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6}}, "rope_type is 'yarn': set it to null"),
    ({"use_sliding_window": True}, "use_sliding_window is True: set it to false"),
    ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types has sliding_attention"),
    ({"hidden_act": "gelu"}, "hidden_act is 'gelu': use a plain Qwen3"),
    ({"model_type": "qwen2"}, "model_type is 'qwen2', expected 'qwen3': use a dense Qwen3"),
    ({"model_type": "qwen3_moe", "num_experts": 128}, r"model_type is 'qwen3_moe', .* \(and 1 more\)"),
    ({"num_experts": 128}, "num_experts is 128: mixtures of experts are not supported"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    ({"model_type": "qwen3", "auto_map": {"AutoModel": "a.B"}}, "auto_map names code that comes with the model")))
def test_config_from_dict_refuses_what_qwen3_does_not_have(change, named):
    with pytest.raises(ValueError, match=f"here.json is not a plain Qwen3 config: {named}"):
        Qwen3Config.from_dict(VALUES | change, "here.json")


@pytest.mark.parametrize("change, method", [
    ({"quantization_config": {"quant_method": "fbgemm_fp8"}}, "fbgemm_fp8, by quantization_config"),
    ({"quantization_config": {"quant_method": "compressed-tensors", "format": "packed"}}, "compressed-tensors,"),
    ({"quantization_config": {"load_in_4bit": True}}, "by an unknown method, by quantization_config"),
    ({"compression_config": {"quant_method": "sparseml"}}, "sparseml, by compression_config")])
def test_a_quantised_model_is_refused_by_its_method(change, method):
    with pytest.raises(ValueError, match=rf"here.json: the model is quantised \({method}.*use the checkpoint that it"):
        Qwen3Config.from_dict(VALUES | change, "here.json")
    assert Qwen3Config.from_dict(VALUES | dict.fromkeys(change)) == Qwen3Config()


@pytest.mark.parametrize("name", ("hidden_size", "rope_theta", "num_key_value_heads", "rms_norm_eps"))
def test_config_from_dict_names_a_missing_field(name):
    with pytest.raises(ValueError, match=f"missing {name}"):
        Qwen3Config.from_dict({k: v for k, v in VALUES.items() if k != name})
