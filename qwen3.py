"""The Qwen3 decoder-only transformer: token ids or embeddings in, hidden states after the final norm out.

Ex-Omni uses it twice: as the language model, and, small, in the speech generator (docs/spec/ex_omni.md 3). With a
`KVCache` the prompt is read at once and new tokens one by one; every sample of a batch has its own length.

Shapes: B batch, N tokens, D width, H heads, G key/value heads, d head size. Parameter names are those of Hugging Face
checkpoints.
"""
from dataclasses import dataclass, fields
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import nn

from disk import Layers, Positive, Size, checked, typed

QUANTISED = {"quantization_config", "compression_config"}       # fields that only quantised models have
# Fields of Hugging Face configs that select variants not built here -> (values that are supported, advice).
STRETCHED = (("default",), "set it to null, the model keeps the context that it was trained with")
PLAIN = {"attention_bias": ((False,), "Qwen3 has none, use a Qwen3"), "mlp_bias": ((False,), "Qwen3 has none"),
         "hidden_act": (("silu",), "use a plain Qwen3"),
         "use_sliding_window": ((False,), "set it to false, if the model was trained without"),
         "num_experts": ((0,), "mixtures of experts are not supported, use a dense Qwen3"),
         "num_local_experts": ((0,), "mixtures of experts are not supported, use a dense Qwen3"),
         "partial_rotary_factor": ((1, 1.0), "use a plain Qwen3"),
         "rope_scaling": STRETCHED, "rope_type": STRETCHED}


@dataclass
class Qwen3Config:
    """Field names are those of Hugging Face's config.json; the defaults are Qwen3-8B's, the paper's language model."""
    vocab_size: Size = 151936
    hidden_size: Size = 4096
    intermediate_size: Size = 12288
    num_hidden_layers: Layers = 36
    num_attention_heads: Size = 32
    num_key_value_heads: Size = 8          # each is shared by a group of query heads
    head_dim: Size = 128                   # heads * head_dim need not equal hidden_size
    rope_theta: Positive = 1e6
    rms_norm_eps: Annotated[float, 0, 0.01] = 1e-6
    max_position_embeddings: Size = 40960  # tokens, the longest context
    tie_word_embeddings: bool = False      # True: the embedding is also the output matrix (0.6B, 1.7B, 4B)

    def __post_init__(self):
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(f"num_attention_heads is {self.num_attention_heads}, expected a multiple of "
                             f"num_key_value_heads ({self.num_key_value_heads})")
        if self.head_dim % 2:
            raise ValueError(f"head_dim is {self.head_dim}, expected an even number")

    @classmethod
    def from_dict(cls, values: dict, where="config.json") -> "Qwen3Config":
        """From a Hugging Face config. Raises ValueError for missing or wrong fields and for variants not built here."""
        for name in QUANTISED & values.keys():
            if values[name]:
                method = typed(values, name, dict, where).get("quant_method", "by an unknown method")
                raise ValueError(f"{where}: the model is quantised ({method}, by {name}), expected weights in "
                                 "bfloat16, float16 or float32: use the checkpoint that it was made from")
        values = values | (typed(values, "rope_parameters", dict | None, where, None) or {})    # of transformers 5
        scaling, kind = values.get("rope_scaling"), str(values.get("model_type") or "qwen3")
        if isinstance(scaling, dict) and scaling.get("rope_type", scaling.get("type", "default")) == "default":
            values = values | {"rope_scaling": None}
        odd = [f"{name} is {values[name]!r:.60}: {advice}" for name, (plain, advice) in PLAIN.items()
               if values.get(name) not in (None, *plain)]
        if kind != "qwen3" and not kind.endswith("_qwen3"):
            odd.insert(0, f"model_type is {kind!r}, expected 'qwen3': use a dense Qwen3")
        if values.get("auto_map") and not kind.endswith("_qwen3"):
            odd.append("auto_map names code that comes with the model, which is not run: remove it where the weights "
                       "are a plain Qwen3's")
        if "sliding_attention" in str(values.get("layer_types")):
            odd.append("layer_types has sliding_attention, expected full_attention: use a plain Qwen3")
        optional = ("tie_word_embeddings", "head_dim")
        missing = [f.name for f in fields(cls) if f.name not in values and f.name not in optional]
        odd += [f"missing {', '.join(missing)}"] * bool(missing)
        if odd:
            raise ValueError(f"{where} is not a plain Qwen3 config: {odd[0]}"
                             + (f" (and {len(odd) - 1} more)" if len(odd) > 1 else ""))
        return checked(cls, values, where)


# The published sizes (docs/spec/ex_omni.md 3).
SIZES = {
    "qwen3-0.6b": Qwen3Config(hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16,
                              tie_word_embeddings=True),
    "qwen3-1.7b": Qwen3Config(hidden_size=2048, intermediate_size=6144, num_hidden_layers=28, num_attention_heads=16,
                              tie_word_embeddings=True),
    "qwen3-4b": Qwen3Config(hidden_size=2560, intermediate_size=9728, tie_word_embeddings=True),
    "qwen3-8b": Qwen3Config(),
}


class KVCache:
    """Keys and values of the tokens so far: per layer (B, G, capacity, d), allocated once.

    Token n of a row is in slot n. lengths (B,), on the device: the tokens of each row. Right padding is written beyond
    a row's length, where it is masked until the row's next tokens overwrite it.
    limit: attention reads this many slots, an upper bound of all lengths that the host knows without waiting for the
    device. With limit = capacity all steps have the same shapes, as a CUDA graph needs.
    """

    def __init__(self, config: Qwen3Config, batch: int, capacity: int, weight):
        """weight: any weight of the model, for its device and dtype."""
        shape = (config.num_hidden_layers, batch, config.num_key_value_heads, capacity, config.head_dim)
        self.capacity = capacity
        self.keys, self.values = (torch.zeros(shape, dtype=weight.dtype, device=weight.device) for _ in range(2))
        self.lengths = torch.zeros(batch, dtype=torch.long, device=weight.device)
        self.rows = torch.arange(batch, device=weight.device)[:, None]
        self.clear()

    def clear(self) -> None:
        """Forget all tokens."""
        self.lengths.zero_()
        self.limit = 0

    def extend(self, tokens: int, lengths=None):
        """Reserve slots for this number of new tokens per row, lengths (B,) of them real (None: all). Returns their
        positions (B, N). Raises ValueError for a prompt longer than the capacity."""
        self.empty = self.limit == 0
        if self.empty and tokens > self.capacity:
            raise ValueError(f"{tokens} tokens do not fit a cache of {self.capacity}: make a larger one")
        self.limit = min(self.limit + tokens, self.capacity)
        slots = self.lengths[:, None] + torch.arange(tokens, device=self.lengths.device)
        self.slots = slots.clamp(max=self.capacity - 1)     # ended samples run on until the host checks
        self.lengths += tokens if lengths is None else lengths
        return self.slots

    def update(self, layer: int, k, v) -> tuple:
        """Store k, v (B, G, N, d) of the new tokens. Returns the keys and values to attend to: only the new ones for a
        prompt, else all slots up to the limit."""
        keys, values = self.keys[layer], self.values[layer]
        keys[self.rows, :, self.slots] = k.transpose(1, 2)
        values[self.rows, :, self.slots] = v.transpose(1, 2)
        return (k, v) if self.empty else (keys[:, :, :self.limit], values[:, :, :self.limit])

    def mask(self):
        """Additive mask (B, 1, N, limit) of the new tokens: 0 = visible, -inf = hidden. None for a prompt, which is
        plainly causal."""
        if self.empty:
            return None
        hidden = torch.arange(self.limit, device=self.slots.device) > self.slots[:, None, :, None]
        return torch.zeros(hidden.shape, dtype=self.keys.dtype, device=hidden.device).masked_fill(hidden, -torch.inf)


def product_dtype(x) -> torch.dtype:
    """The dtype in which matrix products of x are computed: autocast's if it is on, else x's own."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


class RMSNorm(nn.RMSNorm):
    """x (..., D) -> (..., D) in the dtype of the matrix products that follow. Under autocast the weight is float32 and
    x may not be, but PyTorch's fused kernel needs one dtype; and a cast here is one cast for q, k and v together."""

    def forward(self, x):
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps).to(product_dtype(x))


def rotary_tables(positions, dim: int, theta: float, dtype) -> tuple:
    """positions (B, N) -> cos, sin (B, 1, N, d) for `rotate`. The first half of sin is negated."""
    frequencies = theta ** (-torch.arange(0, dim, 2, device=positions.device) / dim)
    angles = positions[:, None, :, None] * frequencies
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def rotate(x, cos, sin):
    """Rotary embedding of x (B, H, N, d): elements j and j + d/2 are one pair."""
    return x * cos + x.roll(x.shape[-1] // 2, dims=-1) * sin


def attend(q, k, v, mask=None):
    """Grouped-query attention: q (B, H, N, d), k and v (B, G, slots, d) -> (B, H, N, d).

    mask (B, 1, N, slots) is added to the attention logits; None: causal.
    """
    if q.shape[2] == 1 and mask is not None:            # one token: the H / G query heads of a group as H / G tokens,
        groups = q.view(len(q), k.shape[1], -1, q.shape[-1])        # a form that every fused kernel takes with a mask
        return F.scaled_dot_product_attention(groups, k, v, mask).reshape(q.shape)
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, enable_gqa=True)


class Attention(nn.Module):
    """Causal grouped-query attention; RMSNorm on queries and keys before RoPE."""

    def __init__(self, config: Qwen3Config):
        super().__init__()
        D, H, G, d = (config.hidden_size, config.num_attention_heads, config.num_key_value_heads, config.head_dim)
        self.head_dim = d
        self.q_proj = nn.Linear(D, H * d, bias=False)
        self.k_proj = nn.Linear(D, G * d, bias=False)
        self.v_proj = nn.Linear(D, G * d, bias=False)
        self.q_norm = RMSNorm(d, config.rms_norm_eps)
        self.k_norm = RMSNorm(d, config.rms_norm_eps)
        self.o_proj = nn.Linear(H * d, D, bias=False)

    def forward(self, x, cos, sin, mask=None, cache: KVCache | None = None, layer: int = 0):
        q, k, v = (proj(x).view(*x.shape[:2], -1, self.head_dim) for proj in (self.q_proj, self.k_proj, self.v_proj))
        q = rotate(self.q_norm(q).transpose(1, 2), cos, sin)                # (B, H, N, d)
        k = rotate(self.k_norm(k).transpose(1, 2), cos, sin)                # (B, G, N, d)
        v = v.transpose(1, 2)
        if cache is not None:
            k, v = cache.update(layer, k, v)
        return self.o_proj(attend(q, k, v, mask).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: Qwen3Config):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """Pre-norm block: attention, then SwiGLU."""

    def __init__(self, config: Qwen3Config):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x, cos, sin, mask=None, cache: KVCache | None = None, layer: int = 0):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask, cache, layer)
        return x + self.mlp(self.post_attention_layernorm(x))


class Qwen3(nn.Module):
    """ids (B, N) or embeds (B, N, D) -> (B, N, D) hidden states after the final norm.

    Rows are padded on the right, so causal attention needs no padding mask; outputs at padding are meaningless. With a
    cache the tokens continue what it holds; lengths (B,): how many of the N tokens are real (None: all).
    """

    def __init__(self, config: Qwen3Config):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def init_weights(self, std: float = 0.02) -> None:
        """Normal weights; norms start at one."""
        for p in self.parameters():
            nn.init.ones_(p) if p.ndim == 1 else nn.init.normal_(p, std=std)

    def forward(self, ids=None, embeds=None, cache: KVCache | None = None, lengths=None):
        x = self.embed_tokens(ids) if embeds is None else embeds
        if cache is None:
            positions, mask = torch.arange(x.shape[1], device=x.device)[None], None
        else:
            positions = cache.extend(x.shape[1], lengths)
            mask = cache.mask()
        cos, sin = rotary_tables(positions, self.config.head_dim, self.config.rope_theta, product_dtype(x))
        for i, layer in enumerate(self.layers):
            x = layer(x, cos, sin, mask, cache, i)
        return self.norm(x)
