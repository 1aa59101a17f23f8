"""The speech generator: a text reply, steered by the language model's states, -> 12.5 Hz speech units.

Spec ex_omni 5 (arXiv 2602.07106). The embedded reply asks the language model's states through TQGF; a small Qwen3 reads
[start, reply, task, units so far] and writes the next unit.

Shapes: B batch, N states, L text ids, U units (12.5 per second), H width of the language model, D our width, V units.
"""
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from decode import Decoder, decoder_for, draw_seed
from qwen3 import SIZES, Qwen3, Qwen3Config, project
from tqgf import TQGF

IGNORE = -100                  # a label without loss, a padded unit or text id
CONTEXT_VECTORS = 4            # context vectors per text state (spec 5.2)
MIN_UNITS, MAX_UNITS = 2, 20   # units per text token, at least and at most (spec 5.5)


@dataclass
class GeneratorConfig:
    """The speech generator. sg_* fields of the release's config.json are optional there, with these defaults."""
    llm: Qwen3Config = field(default_factory=lambda: SIZES["qwen3-0.6b"])
    unit_vocab: int = 16384        # unit_vocab_size: ids below are units, this one ends them, two more are reserved
    tqgf_depth: int = 2            # sg_tqgf_depth
    tqgf_heads: int = 16           # sg_tqgf_heads
    tqgf_dim_head: int = 256       # sg_tqgf_dim_head
    ablate: str = ""               # for Table 8: "context", "tqgf" (train.py --ablate, `SpeechGenerator.fuse`)


@dataclass
class GeneratorOutput:
    """Teacher-forced pass of the speech generator."""
    losses: torch.Tensor       # (B,) mean cross-entropy over a sample's U + 1 targets
    states: torch.Tensor       # (B, U + 1, D) from the task vector to the last unit: what decoding would have recorded
    mask: torch.Tensor         # (B, U + 1) True = a real one
    right: torch.Tensor        # (B,) targets whose unit is the likeliest


class SpeechGenerator(nn.Module):
    """Text ids, steered by the language model's states, -> speech units (spec 5).

    The embedded reply asks the states through TQGF; a small Qwen3 reads [start, reply, task, units so far] and writes
    the next unit. Ids: 0..V-1 units, V the end, V + 1 and V + 2 reserved.
    """

    def __init__(self, config: GeneratorConfig, width: int):
        super().__init__()
        self.config, D, V = config, config.llm.hidden_size, config.unit_vocab
        self.input_proj = nn.Sequential(nn.Linear(width, CONTEXT_VECTORS * D), nn.GELU(),
                                        nn.Linear(CONTEXT_VECTORS * D, CONTEXT_VECTORS * D))
        self.tqgf = TQGF(D, config.tqgf_depth, config.tqgf_heads, config.tqgf_dim_head)
        self.llm = Qwen3(config.llm)
        self.llm_embedding = nn.Embedding(2, D)                     # row 0: start and end, row 1: task
        self.speech_embedding = nn.Embedding(V + 3, D)
        self.llm_decoder = nn.Linear(D, V + 3)
        nn.init.normal_(self.llm_embedding.weight, std=0.02)
        nn.init.normal_(self.speech_embedding.weight, std=0.02)

    def prefixes(self, states, mask, text_ids) -> list:
        """states (B, N, H) of the reply with mask (B, N), text_ids (B, L) padded with -100 -> B embeddings
        (L_b + 2, D): start, the fused reply, task."""
        text = self.llm.embed_tokens(text_ids.clamp(min=0))
        if text.shape[1]:
            text = self.fuse(text, states, mask)
        start, task = self.llm_embedding.weight[:, None]
        return [torch.cat([start, row[:n], task]) for row, n in zip(text, (text_ids >= 0).sum(1).tolist())]

    def fuse(self, text, states, mask):
        """The embedded reply (B, L, D) steered by the states (B, N, H) -> (B, L, D).

        Ablations, our reading of Table 8: "context" shows TQGF zeros in place of the states; "tqgf" adds to each token
        the mean of the four context vectors of the state that predicted it.
        """
        if self.config.ablate == "context":
            states = torch.zeros_like(states)
        context = rearrange(self.input_proj(states), "b n (d j) -> b (n j) d", j=CONTEXT_VECTORS)
        if self.config.ablate == "tqgf":
            return text + rearrange(context, "b (n j) d -> b n j d", j=CONTEXT_VECTORS).mean(2)[:, :text.shape[1]]
        return self.tqgf(text, context, mask.repeat_interleave(CONTEXT_VECTORS, dim=1))

    def forward(self, states, mask, text_ids, units) -> GeneratorOutput:
        """Teacher forcing: states, mask, text_ids as above, target units (B, U) padded with -100 (spec 5.4)."""
        end = self.llm_embedding.weight[:1]
        lengths = (units >= 0).sum(1).tolist()
        prefixes = self.prefixes(states, mask, text_ids)
        sequences = [torch.cat([prefix, self.speech_embedding(row[:n]), end])
                     for prefix, row, n in zip(prefixes, units, lengths)]
        real = pad_sequence([torch.ones(len(s), dtype=torch.bool, device=units.device) for s in sequences], True)
        hidden = self.llm(embeds=pad_sequence(sequences, batch_first=True), mask=real)
        rows = [h[len(p) - 1:len(p) + n] for h, p, n in zip(hidden, prefixes, lengths)]     # task ... last unit
        states = pad_sequence(rows, batch_first=True)
        targets = F.pad(units, (0, 1), value=IGNORE)
        targets[torch.arange(len(units)), lengths] = self.config.unit_vocab
        targets = targets[:, :states.shape[1]]
        logits = self.llm_decoder(states).float()
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none", ignore_index=IGNORE)
        mask = targets != IGNORE
        return GeneratorOutput(loss.view(targets.shape).sum(1) / mask.sum(1), states, mask,
                               (logits.argmax(-1) == targets).sum(1))

    def ids_like(self, *ids) -> torch.Tensor:
        """(V + 3,) bool, True at the given ids."""
        flags = torch.zeros(self.config.unit_vocab + 3, dtype=torch.bool, device=self.llm_decoder.weight.device)
        flags[list(ids)] = True
        return flags

    def logits(self, states):
        """States (..., D) -> (..., V + 3)."""
        return project(states, self.llm_decoder.weight) + self.llm_decoder.bias

    def generate(self, states, mask, text_ids, sampler, generator=None, release_quirks=False, each=None) -> Decoder:
        """States (B, N, H), mask (B, N), text_ids (B, L) -> the finished unit decoder: ids, count, states, ran.

        Spec 5.5: between 2 and 20 units per text id, none for a row without text. The end is not emitted; reserved ids
        are never drawn or, as in the release, skipped when drawn.
        """
        V = self.config.unit_vocab
        prefixes = self.prefixes(states, mask, text_ids)
        lengths = torch.tensor([len(p) - 2 for p in prefixes])
        steps = max(1, MAX_UNITS * int(lengths.max()))
        embeds = pad_sequence(prefixes, batch_first=True)
        real = torch.arange(embeds.shape[1]) < lengths[:, None] + 2
        decoder = decoder_for(self.llm, self.speech_embedding, self.logits, sampler, self.ids_like(V), False,
                              len(prefixes), embeds.shape[1] + steps, steps, self.ids_like(V + 1, V + 2), release_quirks)
        decoder.begin(embeds, real.to(embeds.device), MIN_UNITS * lengths, MAX_UNITS * lengths, draw_seed(generator))
        decoder.run(each)
        return decoder
