"""Token-as-Query Gated Fusion (TQGF): cross-attention whose output passes a gate computed from the query.

Fuse(Q, C) = Q + sigmoid(G(Q)) * Attention(Q, C)    (arXiv 2602.07106; docs/spec/ex_omni.md 5.3)

The query is the sequence that has the right clock, and the output is as long as it is; the context only supplies keys
and values. It is used twice. In the speech generator the tokens of the reply are the query and the LLM's hidden states
the context; in the face decoder the speech units, at frame rate, and the speech generator's hidden states.

Shapes: B batch, N query tokens, C context rows, D width, H heads, d head size.
"""
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn


class GatedCrossAttention(nn.Module):
    """sigmoid(G(q)) * Attention(q, context): one gate per head and channel, computed from the query alone."""

    def __init__(self, dim: int, heads: int, dim_head: int):
        super().__init__()
        self.heads, inner = heads, heads * dim_head
        self.norm_text, self.norm_query = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_kv = nn.Linear(dim, 2 * inner, bias=False)          # keys first, then values
        self.gate_proj = nn.Linear(dim, inner, bias=False)
        self.to_out = nn.Linear(inner, dim, bias=False)

    def forward(self, query, context, mask=None):
        query, context = self.norm_query(query), self.norm_text(context)
        q, (k, v) = self.to_q(query), self.to_kv(context).chunk(2, dim=-1)
        q, k, v = (rearrange(x, "b n (h d) -> b h n d", h=self.heads) for x in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)                   # no positions, not causal
        gate = self.gate_proj(query).sigmoid()                                          # (B, N, H d), in (0, 1)
        return self.to_out(gate * rearrange(out, "b h n d -> b n (h d)"))


def feed_forward(dim: int) -> nn.Sequential:
    """LayerNorm, then an MLP with four times the width."""
    return nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 4 * dim, bias=False), nn.GELU(),
                         nn.Linear(4 * dim, dim, bias=False))


class TQGF(nn.Module):
    """query (B, N, D), context (B, C, D), context_mask (B, C) bool, True = visible -> (B, N, D).

    The context is the same in all layers. A sample whose context is wholly masked (an empty reply) sees all of it, as a
    softmax over nothing is NaN. Queries do not attend to each other, so query_mask is not needed.
    """

    def __init__(self, dim: int, depth: int = 2, heads: int = 16, dim_head: int = 256):
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleList([GatedCrossAttention(dim, heads, dim_head), feed_forward(dim)])
                                    for _ in range(depth))
        self.norm = nn.LayerNorm(dim)

    def forward(self, query, context, context_mask=None, query_mask=None):
        if context_mask is not None:
            context_mask = (context_mask | ~context_mask.any(1, keepdim=True))[:, None, None, :]      # (B, 1, 1, C)
        for attention, mlp in self.layers:
            query = query + attention(query, context, context_mask)
            query = query + mlp(query)
        return self.norm(query)


class Concatenation(nn.Module):
    """Replaces TQGF in the ablations (v1 Tables 6 and 8, v2 Table 6): self-attention over context and query together,
    without a gate. Arguments and shapes as for `TQGF`, except that the head size is dim / heads. That the layers are
    pre-norm is our reading."""

    def __init__(self, dim: int, depth: int = 2, heads: int = 16, dim_head: int = 256):
        super().__init__()
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(dim, heads, 4 * dim, 0.0, "gelu", batch_first=True,
                                                               norm_first=True) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)

    def forward(self, query, context, context_mask=None, query_mask=None):
        masks = [x.new_ones(x.shape[:2], dtype=torch.bool) if mask is None else mask
                 for x, mask in ((context, context_mask), (query, query_mask))]
        x, padding = torch.cat([context, query], dim=1), ~torch.cat(masks, dim=1)       # (B, C + N, D), (B, C + N)
        padding = padding & ~padding.all(1, keepdim=True)
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=padding)
        return self.norm(x[:, context.shape[1]:])
