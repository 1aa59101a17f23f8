"""The Qwen3 decoder-only transformer: token ids or embeddings in, hidden states after the final norm out.

Spec ex_omni 3. Ex-Omni uses it twice: as the language model, and, small, to write speech units. With a `KVCache` a
sequence is read in pieces, the last ones a token long; every row of a batch has its own length.

Shapes: B batch, N tokens, D width, H heads, G key/value heads, d head size. Parameter names in state_dict() are those of
Hugging Face checkpoints; in memory the projections of one input are packed into one matrix.
"""
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn


@dataclass
class Qwen3Config:
    """Field names are those of Hugging Face's config.json; the defaults are Qwen3-8B's, the paper's language model."""
    vocab_size: int = 151936
    hidden_size: int = 4096
    intermediate_size: int = 12288
    num_hidden_layers: int = 36
    num_attention_heads: int = 32
    num_key_value_heads: int = 8           # each serves heads / kv query heads
    head_dim: int = 128                    # heads * head_dim need not equal hidden_size
    rope_theta: float = 1e6
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 40960   # tokens, the longest context
    tie_word_embeddings: bool = False      # True: the output matrix is the embedding (0.6B, 1.7B, 4B)

    @classmethod
    def from_dict(cls, values: dict, where="config.json") -> "Qwen3Config":
        """From a Hugging Face config. Raises ValueError for a field that is missing or for what Qwen3 does not have."""
        values = values | (values.get("rope_parameters") or {})     # transformers 5 nests rope_theta in there
        asked = {"attention_bias": values.get("attention_bias"), "use_sliding_window": values.get("use_sliding_window"),
                 "rope_scaling": values.get("rope_scaling")}
        odd = [name for name, value in asked.items() if value] + [
            "hidden_act" for act in [values.get("hidden_act", "silu")] if act != "silu"] + [
            "rope_type" for kind in [values.get("rope_type", "default")] if kind != "default"]
        missing = [f.name for f in fields(cls) if f.name not in values and f.name not in ("tie_word_embeddings", "head_dim")]
        if odd or missing:
            raise ValueError(f"{where} is not a plain Qwen3 config: " + "; ".join(
                f"{what} {', '.join(names)}" for what, names in (("unsupported", odd), ("missing", missing)) if names))
        return cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})


# The published sizes (spec ex_omni 3).
SIZES = {
    "qwen3-0.6b": Qwen3Config(hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16,
                              tie_word_embeddings=True),
    "qwen3-1.7b": Qwen3Config(hidden_size=2048, intermediate_size=6144, num_hidden_layers=28, num_attention_heads=16,
                              tie_word_embeddings=True),
    "qwen3-4b": Qwen3Config(hidden_size=2560, intermediate_size=9728, tie_word_embeddings=True),
    "qwen3-8b": Qwen3Config(),
}


def project(x, weight):
    """x (..., in), weight (out, in) -> (..., out). One row on a CPU is a matrix-vector product, bound by reading the
    weight: torch.mv reads it up to a third faster than F.linear in bfloat16 (`python bench.py decode`). Layers call it
    with the weight of an nn.Linear: one call less."""
    if x.numel() == weight.shape[1] and x.device.type == "cpu":
        if x.ndim == 1 and x.dtype == weight.dtype:
            return torch.mv(weight, x)
        return torch.mv(weight, x.reshape(-1).to(weight.dtype)).to(x.dtype).view(*x.shape[:-1], -1)
    return F.linear(x.to(weight.dtype), weight).to(x.dtype)


def activation_dtype(weight) -> torch.dtype:
    """What is computed between the matrices: on a CPU float32, since half precision saves it no time there, only
    conversions; elsewhere the weights' own type."""
    return torch.promote_types(weight.dtype, torch.float32) if weight.device.type == "cpu" else weight.dtype


class PackedLinear(nn.Module):
    """Bias-free linear maps of the same input in one matrix: (..., in) -> (..., all outs), one after the other.

    self.qkv = PackedLinear(self, 1024, q_proj=2048, k_proj=1024) stands for self.q_proj and self.k_proj: state_dict()
    has the tensors `q_proj.weight` and `k_proj.weight`, as views into the one parameter, and loads them.
    """

    def __init__(self, parent: nn.Module, dim: int, **parts: int):
        super().__init__()
        self.parts = parts
        self.weight = nn.Parameter(torch.empty(sum(parts.values()), dim))
        nn.init.kaiming_uniform_(self.weight, a=5 ** 0.5)           # as nn.Linear starts
        parent.register_state_dict_post_hook(unpack_names)
        parent.register_load_state_dict_pre_hook(pack_names)

    def forward(self, x):
        return project(x, self.weight)


def packed_children(parent, prefix):
    """(key of the packed weight, its parts: checkpoint key -> rows) for each packed child."""
    for name, child in parent.named_children():
        if isinstance(child, PackedLinear):
            yield f"{prefix}{name}.weight", {f"{prefix}{part}.weight": rows for part, rows in child.parts.items()}


def unpack_names(parent, state, prefix, _):
    for key, parts in packed_children(parent, prefix):
        state.update(zip(parts, state.pop(key).split(list(parts.values()))))


def pack_names(parent, state, prefix, *_):
    for key, parts in packed_children(parent, prefix):
        if all(part in state for part in parts):
            state[key] = torch.cat([state.pop(part) for part in parts])


class RMSNorm(nn.RMSNorm):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis, the mean in float32.

    On a CPU a token is so little work that the number of operations is what costs: these are half of F.rms_norm's.
    """

    def __init__(self, dim: int, eps: float):
        super().__init__(dim, eps=eps)
        self.eps_on_cpu = torch.tensor(eps, device="cpu")

    def unit(self, x):
        """x without the weight: every vector of unit mean square."""
        if x.device.type != "cpu":
            return F.rms_norm(x, self.normalized_shape, None, self.eps)
        wide = x if x.dtype == torch.float32 else x.float()
        length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        unit = wide * torch.addcmul(self.eps_on_cpu, length, length, value=1 / x.shape[-1]).rsqrt()
        return unit if x.dtype == torch.float32 else unit.to(x.dtype)

    def forward(self, x):
        return self.unit(x) * self.weight if x.device.type == "cpu" else super().forward(x)


class KVCache:
    """Keys and values of what has been read: preallocated, each row with its own length.

    lengths (B,) lives on the device; `bound` is what the host knows without asking it: no row is longer. Attention
    reads up to the bound; `pin` it to the capacity and every step has the same shapes (for a CUDA graph).
    """

    def __init__(self, config: Qwen3Config, batch: int, capacity: int, weight):
        """weight: any of the model's, for its device and type."""
        self.capacity, device, dtype = capacity, weight.device, activation_dtype(weight)
        slots = capacity + 1                                        # the last one takes what padding writes
        shape = (2, config.num_hidden_layers, batch, config.num_key_value_heads, slots, config.head_dim)
        self.stored = torch.zeros(shape, device=device, dtype=dtype)
        self.keys, self.values = (layers.unbind() for layers in self.stored)
        self.lengths = torch.zeros(batch, dtype=torch.long, device=device)
        self.rows = torch.arange(batch, device=device)[:, None]
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self.lengths.zero_()
        self.bound, self.exact = 0, True                            # exact: every row is as long as the bound
        self.scales = None                                          # the model's, from the first token alone on

    def pin(self) -> None:
        """From now on attention reads the whole capacity, masked."""
        self.bound, self.exact = self.capacity, False

    def advance(self, tokens: int, mask) -> None:
        """tokens more per row, or as many as mask (B, N) has."""
        self.bound = min(self.bound + tokens, self.capacity)
        self.exact = self.exact and mask is None
        self.lengths += tokens if mask is None else mask.sum(1)

    def write(self, layer: int, k, v, slots) -> None:
        """Store k, v (B, N, G, d) at slots (B, N)."""
        for stored, new in ((self.keys[layer], k), (self.values[layer], v)):
            stored.transpose(1, 2).index_put_((self.rows, slots), new)

    def read(self, layer: int) -> tuple:
        """The keys and values (B, G, bound, d) to attend to."""
        return self.keys[layer][:, :, :self.bound], self.values[layer][:, :, :self.bound]

    def alone(self) -> list:
        """For each layer, of the only row: where the newest key and value go (G, d), and all of them (1, G, bound, d)."""
        seen = self.stored[..., :self.bound, :]
        (new_keys, new_values), (keys, values) = (map(torch.unbind, kind) for kind in (seen[:, :, 0, :, -1], seen))
        return list(zip(new_keys, new_values, keys, values))


class Place(NamedTuple):
    """Where the new tokens stand and what they may see; the same for every layer."""
    rope: tuple                    # cos, sin (B, N, 1, d), or (1, d)
    scales: tuple                  # for each layer the weights (H + G, d) of the query and key norms
    visible: torch.Tensor | None   # (B, 1, N, K) bool, or None: all that came before, and themselves
    slots: torch.Tensor            # (B, N) where the cache keeps them
    fresh: bool                    # nothing was read before: the new tokens need only each other
    alone: list | None             # `KVCache.alone` for one token of one row on a CPU, where the number of operations
                                   # is what costs: the layers work on vectors (D,) then


def rotary(positions, dim: int, theta: float, dtype) -> tuple:
    """positions (B, N) -> cos, sin (B, N, 1, d); the sine carries the sign of the half-split rotation."""
    half = theta ** (-torch.arange(0, dim, 2, device=positions.device) / dim)
    angles = positions[:, :, None, None] * half
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    return torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)


def rotate(x, cos, sin):
    """x (B, N, H, d) turned by its position; element j pairs with j + d/2."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


class Attention(nn.Module):
    """Causal grouped-query attention with RMS-normalised queries and keys. x (B, N, D), or one token alone (D,)."""

    def __init__(self, config: Qwen3Config):
        super().__init__()
        H, G, d = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.heads, self.kv_heads, self.head_dim = H, G, d
        self.qkv = PackedLinear(self, config.hidden_size, q_proj=H * d, k_proj=G * d, v_proj=G * d)
        self.q_norm, self.k_norm = (RMSNorm(d, config.rms_norm_eps) for _ in range(2))
        self.o_proj = nn.Linear(H * d, config.hidden_size, bias=False)

    def forward(self, x, place: Place, cache: KVCache | None, layer: int):
        H, G = self.heads, self.kv_heads
        qkv = project(x, self.qkv.weight).unflatten(-1, (-1, self.head_dim))                    # (B, N, heads, d)
        qk, v = qkv.split([H + G, G], dim=-2)
        q, k = rotate(self.q_norm.unit(qk) * place.scales[layer], *place.rope).split([H, G], dim=-2)
        if x.ndim == 1:
            return project(self.attend_alone(q, k, v, *place.alone[layer]), self.o_proj.weight)
        if cache is not None:
            cache.write(layer, k, v, place.slots)
        k, v = (k.transpose(1, 2), v.transpose(1, 2)) if place.fresh else cache.read(layer)
        return project(self.attend(q, k, v, place.visible).flatten(-2), self.o_proj.weight)

    def attend(self, q, k, v, visible):
        """q (B, N, H, d), k, v (B, G, K, d) -> (B, N, H, d)."""
        if q.shape[1] == 1:                                         # one token: the heads of a group act as queries
            groups = q.view(q.shape[0], self.kv_heads, -1, self.head_dim)
            return F.scaled_dot_product_attention(groups, k, v, visible).view(q.shape)
        out = F.scaled_dot_product_attention(q.transpose(1, 2), k, v, visible, is_causal=visible is None, enable_gqa=True)
        return out.transpose(1, 2)

    def attend_alone(self, q, k, v, new_key, new_value, keys, values):
        """q (H, d), k, v (G, d), and the layer's of `KVCache.alone` -> (H d,)."""
        new_key.copy_(k), new_value.copy_(v)
        return F.scaled_dot_product_attention(q.view(1, self.kv_heads, -1, self.head_dim), keys, values).view(-1)


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: Qwen3Config):
        super().__init__()
        self.gate_up = PackedLinear(self, config.hidden_size, gate_proj=config.intermediate_size,
                                    up_proj=config.intermediate_size)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x):
        gate, up = project(x, self.gate_up.weight).chunk(2, dim=-1)
        return project(F.silu(gate) * up, self.down_proj.weight)


class Layer(nn.Module):
    """Pre-norm block: attention, then SwiGLU."""

    def __init__(self, config: Qwen3Config):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x, place: Place, cache: KVCache | None, layer: int):
        x = x + self.self_attn(self.input_layernorm(x), place, cache, layer)
        return x + self.mlp(self.post_attention_layernorm(x))


class Qwen3(nn.Module):
    """ids (B, N) or embeds (B, N, D) -> (B, N, D) hidden states after the final norm.

    mask (B, N) bool, True = a real token: rows may be padded on the left or on the right; what comes out at padding
    means nothing. With a cache the tokens follow what it holds.
    """

    def __init__(self, config: Qwen3Config):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def init_weights(self, std: float = 0.02) -> None:
        """Normal weights; norms start at one."""
        for name, p in self.named_parameters():
            nn.init.ones_(p) if p.ndim == 1 else nn.init.normal_(p, std=std)

    def forward(self, ids=None, embeds=None, mask=None, cache: KVCache | None = None):
        x = self.embed_tokens(ids) if embeds is None else embeds
        shape, dtype = x.shape, x.dtype
        x = x.to(activation_dtype(self.norm.weight))
        place = self.place(x, mask, cache)
        if place.alone is not None:
            x = x.view(-1)
        for i, layer in enumerate(self.layers):
            x = layer(x, place, cache, i)
        return self.norm(x).view(shape).to(dtype)

    def place(self, x, mask, cache) -> Place:
        """Positions, masks and cache slots of the new tokens x (B, N, D). Advances the cache's lengths."""
        B, N = x.shape[:2]
        count = torch.arange(N, device=x.device).expand(B, N) if mask is None else mask.long().cumsum(1) - 1
        fresh, visible = cache is None or cache.bound == 0, None
        positions = (count if fresh else count + cache.lengths[:, None]).clamp(min=0)
        if cache is not None:
            cache.advance(N, mask)
        if not fresh and not (N == 1 and cache.exact):
            visible = torch.arange(cache.bound, device=x.device) <= positions[:, None, :, None]
        elif fresh and mask is not None:
            visible = (positions[:, None, None, :] <= positions[:, None, :, None]) & mask[:, None, None, :]
        slots = positions if mask is None else positions.masked_fill(~mask, -1 if cache is None else cache.capacity)
        rope = rotary(positions, self.config.head_dim, self.config.rope_theta, x.dtype)
        if B == N == 1 and not fresh and visible is None and x.device.type == "cpu":
            cache.scales = cache.scales or self.scales()
            return Place(tuple(table.view(1, -1) for table in rope), cache.scales, visible, slots, fresh, cache.alone())
        return Place(rope, self.scales(), visible, slots, fresh, None)

    def scales(self) -> tuple:
        """For each layer the weights (H + G, d) of the query and the key norm, one row a head: all made at once."""
        c = self.config
        norms = [(getattr(layer.self_attn, name), heads) for layer in self.layers
                 for name, heads in (("q_norm", c.num_attention_heads), ("k_norm", c.num_key_value_heads))]
        rows = torch.cat([norm.weight.expand(heads, c.head_dim) for norm, heads in norms])
        return rows.view(len(self.layers), -1, c.head_dim).unbind()


def fast_matvec_layout(module: nn.Module) -> None:
    """Store wide matrices (out >= 2 in) column by column; call it before weights are loaded, on a CPU in bfloat16.

    torch.mv reads a wide bfloat16 matrix about a third faster this way round; tall ones are better as they are
    (`python bench.py decode` shows the outcome). Shapes, values and state_dict() stay as they were.
    """
    for p in module.parameters():
        if p.ndim == 2 and p.shape[0] >= 2 * p.shape[1]:
            p.data = torch.empty_like(p.t(), memory_format=torch.contiguous_format).copy_(p.t()).t()
