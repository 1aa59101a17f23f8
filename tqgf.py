"""Token-as-Query Gated Fusion (TQGF): tokens ask, a context answers, a gate decides how much of it to take.

Spec ex_omni 5.3 (TQGF in arXiv 2602.07106). In the speech generator the embedded reply asks the language model's states;
in the face decoder the embedded units ask the speech generator's states.

Shapes: B batch, Q query tokens, K context rows, D width, H heads, d head size.
"""
import torch.nn.functional as F
from einops import rearrange
from torch import nn


class GatedCrossAttention(nn.Module):
    """out = to_out(sigmoid(gate(q)) * attention(q, context)): one gate per head and channel, from the query alone."""

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
        return self.to_out(rearrange(out, "b h n d -> b n (h d)") * self.gate_proj(query).sigmoid())


class TQGF(nn.Module):
    """query (B, Q, D), context (B, K, D), context_mask (B, K) bool, True = visible -> (B, Q, D).

    The context itself is never updated. A row of the batch whose context is wholly masked (an empty reply) sees all
    of it instead of becoming NaN, as it does in the release.
    """

    def __init__(self, dim: int, depth: int = 2, heads: int = 16, dim_head: int = 256):
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleList([
            GatedCrossAttention(dim, heads, dim_head),
            nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 4 * dim, bias=False), nn.GELU(),
                          nn.Linear(4 * dim, dim, bias=False)),
        ]) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)

    def forward(self, query, context, context_mask=None):
        if context_mask is not None:
            context_mask = (context_mask | ~context_mask.any(1, keepdim=True))[:, None, None, :]      # (B, 1, 1, K)
        for attention, feed_forward in self.layers:
            query = query + attention(query, context, context_mask)
            query = query + feed_forward(query)
        return self.norm(query)
