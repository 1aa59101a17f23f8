"""The speech generator: the reply's tokens and the LLM's hidden states -> speech units, 12.5 per second.

arXiv 2602.07106; docs/spec/ex_omni.md 5. TQGF fuses the embedded reply (the query) with the LLM's states (the context).
A small Qwen3 then reads [start, fused reply, task, units so far] and predicts the next unit.

Shapes: B batch, N text tokens of the reply, C context rows (one state per token, and the stop token's), U units (12.5
per second), D width of the generator, D_llm width of the LLM, V units in the vocabulary.
"""
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from decode import Decoder, decoder_for, seed_from
from qwen3 import SIZES, Qwen3, Qwen3Config
from tqgf import TQGF, Concatenation

IGNORE = -100                  # labels without loss; padding of units and text ids
CONTEXT_VECTORS = 4            # context vectors per LLM state (docs/spec/ex_omni.md 5.2)
MIN_UNITS, MAX_UNITS = 2, 20   # units per text token, at least and at most (docs/spec/ex_omni.md 5.5)
LONGEST = 7500                 # units of a reply, at most: ten minutes


@dataclass
class GeneratorConfig:
    """The comments give the names in the release's config.json; sg_* fields are optional there."""
    llm: Qwen3Config = field(default_factory=lambda: SIZES["qwen3-0.6b"])
    unit_vocab: int = 16384        # unit_vocab_size, V: ids 0..V-1 are units, V ends them, V+1 and V+2 are reserved
    tqgf_depth: int = 2            # sg_tqgf_depth
    tqgf_heads: int = 16           # sg_tqgf_heads
    tqgf_dim_head: int = 256       # sg_tqgf_dim_head
    ablate: str = ""               # Table 8: "tqgf", see checkpoint.ABLATIONS


@dataclass
class GeneratorOutput:
    """Result of teacher forcing."""
    losses: torch.Tensor       # (B,) mean cross-entropy over a sample's U + 1 targets
    states: torch.Tensor       # (B, U + 1, D) that predicted them: the same states as in decoding
    mask: torch.Tensor         # (B, U + 1) True = real, False = padding
    correct: torch.Tensor      # (B,) number of targets with the highest logit


class SpeechGenerator(nn.Module):
    """The reply's token ids and the LLM's states -> speech units."""

    def __init__(self, config: GeneratorConfig, llm_dim: int):
        super().__init__()
        self.config, D, V = config, config.llm.hidden_size, config.unit_vocab
        self.input_proj = nn.Sequential(nn.Linear(llm_dim, CONTEXT_VECTORS * D), nn.GELU(),
                                        nn.Linear(CONTEXT_VECTORS * D, CONTEXT_VECTORS * D))
        fusion = Concatenation if config.ablate == "tqgf" else TQGF
        self.tqgf = fusion(D, config.tqgf_depth, config.tqgf_heads, config.tqgf_dim_head)
        self.llm = Qwen3(config.llm)
        self.llm_embedding = nn.Embedding(2, D)                     # 0: start and end, 1: task
        self.speech_embedding = nn.Embedding(V + 3, D)
        self.llm_decoder = nn.Linear(D, V + 3)
        nn.init.normal_(self.llm_embedding.weight, std=0.02)
        nn.init.normal_(self.speech_embedding.weight, std=0.02)

    def prefixes(self, states, mask, text_ids) -> list:
        """states (B, C, D_llm) with mask (B, C), text_ids (B, N) padded with -100 -> for each sample the embeddings
        [start, fused reply, task], (N_b + 2, D)."""
        text_ids = F.pad(text_ids, (0, int(text_ids.shape[1] == 0)), value=IGNORE)          # N = 0 runs too
        text = self.llm.embed_tokens(text_ids.clamp(min=0))                                 # (B, N, D) the query
        context = rearrange(self.input_proj(states), "b c (d j) -> b (c j) d", j=CONTEXT_VECTORS)
        text = self.tqgf(text, context, mask.repeat_interleave(CONTEXT_VECTORS, dim=1), text_ids >= 0)
        start, task = self.llm_embedding.weight[:, None]
        return [torch.cat([start, row[:n], task]) for row, n in zip(text, (text_ids >= 0).sum(1).tolist())]

    def forward(self, states, mask, text_ids, units) -> GeneratorOutput:
        """Teacher forcing: states, mask, text_ids as above, units (B, U) padded with -100 (docs/spec/ex_omni.md 5.4).

            input    start  y_1 ... y_N  task  u_1 ... u_U  end
            target                       u_1   u_2 ...  V             the state in each column predicts this
        """
        prefixes, lengths = self.prefixes(states, mask, text_ids), (units >= 0).sum(1).tolist()
        end = self.llm_embedding.weight[:1]
        sequences = [torch.cat([prefix, self.speech_embedding(row[:n]), end])
                     for prefix, row, n in zip(prefixes, units, lengths)]
        hidden = self.llm(embeds=pad_sequence(sequences, batch_first=True))
        states = pad_sequence([row[len(prefix) - 1:len(prefix) + n]                         # from the task vector on
                               for row, prefix, n in zip(hidden, prefixes, lengths)], batch_first=True)
        targets = F.pad(units, (0, 1), value=IGNORE)
        targets[torch.arange(len(units)), lengths] = self.config.unit_vocab                 # V: the end
        targets = targets[:, :states.shape[1]]                                              # (B, U + 1)
        logits, mask = self.llm_decoder(states).float(), targets != IGNORE
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none", ignore_index=IGNORE)
        return GeneratorOutput(loss.view(targets.shape).sum(1) / mask.sum(1), states, mask,
                               (logits.argmax(-1) == targets).sum(1))

    def check_length(self, words: int) -> None:
        """Raises ValueError for too many text ids: [start, reply, task, MIN_UNITS per id] must fit into the context."""
        most = min(LONGEST // MIN_UNITS, (self.config.llm.max_position_embeddings - 2) // (1 + MIN_UNITS))
        if words > most:
            raise ValueError(f"a reply of {words} tokens is too long to be spoken, expected at most {most}: lower "
                             "max_new_tokens")

    def generate(self, states, mask, text_ids, sampler, generator=None, release_quirks=False, each=None) -> Decoder:
        """states (B, C, D_llm), mask (B, C), text_ids (B, N) -> the decoder after its last step, with units and states.

        Each sample gets 2 to 20 units per text id (docs/spec/ex_omni.md 5.5), but at most LONGEST and what the context
        holds. The end is not emitted. Reserved ids are never sampled; with release_quirks they are sampled, then
        skipped. Raises ValueError for too much text, or logits that are not finite.
        """
        V, prefixes = self.config.unit_vocab, self.prefixes(states, mask, text_ids)
        embeds, lengths = pad_sequence(prefixes, batch_first=True), torch.tensor([len(p) for p in prefixes])
        words, room = lengths - 2, min(LONGEST, self.config.llm.max_position_embeddings - embeds.shape[1])
        self.check_length(int(words.max()))
        steps = max(1, min(room, MAX_UNITS * int(words.max())))
        end, reserved = (V,), (V + 1, V + 2)
        banned, skipped = ((), end + reserved) if release_quirks else (reserved, end)
        decoder = decoder_for(self.llm, self.speech_embedding, self.llm_decoder, sampler, len(prefixes),
                              embeds.shape[1] + steps, steps, end, banned, skipped)
        decoder.begin(embeds, lengths, MIN_UNITS * words, (MAX_UNITS * words).clamp(max=room), seed_from(generator))
        decoder.run(each)
        decoder.check("the speech generator")
        return decoder


def gather_rows(x, mask, fill=0) -> tuple:
    """The rows of x (B, N, ...) where mask (B, N) is True, moved to the front, padded with `fill`; and their mask."""
    rows = [row[keep] for row, keep in zip(x, mask)]
    real = [torch.ones(len(row), dtype=torch.bool, device=x.device) for row in rows]
    return pad_sequence(rows, batch_first=True, padding_value=fill), pad_sequence(real, batch_first=True)
