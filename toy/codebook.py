"""How the mini model's speech units are learned: the tokenizer with its codebook, and heads that only training needs.

`Quantised` is trained by pretrain_speak.py; what remains of it are the speech tokenizer and the flow's unit encoder.

Shapes: B batch, U units (12.5 per second), L mel frames (86.13 per second), M mel bins, D width of units, V codes.
"""
import torch
import torch.nn.functional as F
from torch import nn

from flow import Flow, FlowConfig
from speech_tokenizer import SpeechTokenizer, SpeechTokenizerConfig
from toy.clips import PHONES_PER_UNIT

DECAY = 0.99                    # of the codebook's moving averages


class Detail(nn.Module):
    """What the unit encoder knows (B, U, D) -> mel (B, M, L), 7 slots a unit: a shorter way for gradients than mu."""

    def __init__(self, dim: int, n_mels: int, slots=7, channels=96):
        super().__init__()
        self.slots, self.spread = slots, nn.Linear(dim, slots * channels)
        self.model = nn.Sequential(nn.Conv1d(channels, channels, 5, padding=2), nn.Mish(),
                                   nn.Conv1d(channels, n_mels, 5, padding=2))

    def forward(self, x, frames: int):
        x = self.spread(x).unflatten(2, (self.slots, -1)).flatten(1, 2).transpose(1, 2)         # (B, channels, 7 U)
        return self.model(F.mish(F.interpolate(x, size=frames, mode="nearest")))


class Quantised(nn.Module):
    """Speech tokenizer -> code vectors -> the flow's unit encoder, and what only their training needs.

    The codebook follows the hidden states by moving averages; the flow's table of units is a linear map of it, computed
    at the end (`table`), so that both files have the published form.
    """

    def __init__(self, config: SpeechTokenizerConfig, flow: FlowConfig, phones: int):
        super().__init__()
        D, V = config.d_model, config.quantize_vocab_size
        self.tokenizer, self.flow = SpeechTokenizer(config), Flow(flow)
        self.tokenizer.init_weights(0.1)        # larger ones would be most of what the codebook sees
        self.tokenizer.codebook.weight.requires_grad_(False)
        self.embed = nn.Linear(D, flow.input_size)
        self.phones = nn.Linear(D, PHONES_PER_UNIT * phones)
        self.detail = Detail(flow.encoder.output_size, flow.output_size)
        self.register_buffer("count", torch.zeros(V))           # moving average of how often a batch uses a code,
        self.register_buffer("total", torch.zeros(V, D))        # and of the sum of the states there

    def forward(self, codes, frames: int):
        """Code vectors (B, U, D) -> mu and the detail head's mel, (B, M, L) each, and phone logits (B, 4 U, phones)."""
        h = self.flow.encoder(self.embed(codes))
        mu = self.flow.length_regulator(self.flow.encoder_proj(h), frames).transpose(1, 2)
        return mu, self.detail(h, frames), self.phones(codes).unflatten(2, (PHONES_PER_UNIT, -1)).flatten(1, 2)

    def quantise(self, states) -> tuple:
        """Hidden states (B, U, D) -> code vectors (B, U, D), through which gradients pass to the states, and the
        commitment loss. The codebook then follows these states."""
        ids = self.tokenizer.quantise(states.detach())
        codes = self.tokenizer.codebook(ids)
        commitment = F.mse_loss(states, codes)
        self.follow(states.detach().flatten(0, 1), ids.flatten())
        return states + (codes - states).detach(), commitment

    @torch.no_grad()
    def follow(self, states, ids) -> None:
        """Moving averages of one batch: states (B U, D) and their codes (B U,)."""
        self.count.mul_(DECAY).index_add_(0, ids, torch.ones(len(ids)), alpha=1 - DECAY)
        self.total.mul_(DECAY).index_add_(0, ids, states, alpha=1 - DECAY)
        self.tokenizer.codebook.weight.copy_(self.total / self.count.clamp(min=1e-9)[:, None])

    @torch.no_grad()
    def set_codes(self, codes, at, count) -> None:
        """Make `codes` (n, D) the entries `at` of the codebook, as if each were used `count` times a batch."""
        self.tokenizer.codebook.weight[at], self.count[at] = codes, count
        self.total[at] = codes * self.count[at, None]

    def start(self, states, units: int, generator) -> None:
        """The first codebook: the centres of states (n, D) by k-means. units: how many a batch has."""
        centres, sizes = k_means(states, len(self.count), generator)
        self.set_codes(centres, slice(None), sizes / sizes.sum() * units)

    @torch.no_grad()
    def restart(self, states, generator, least=0.05) -> int:
        """Codes used less than `least` times a batch become states (B U, D) of this batch. Returns how many."""
        dead = (self.count < least).nonzero()[:, 0][:len(states)]
        if len(dead):
            chosen = torch.randperm(len(states), generator=generator)[:len(dead)]
            self.set_codes(states[chosen], dead, self.count.mean())
        return len(dead)

    def perplexity(self) -> float:
        """How many codes are in use, were all used alike; 0 before there is a codebook."""
        share = self.count / self.count.sum().clamp(min=1e-9)
        return torch.special.entr(share).sum().exp().item() if self.count.any() else 0.0

    def table(self) -> torch.Tensor:
        """(V, input_size): what the flow's unit encoder reads for each unit."""
        return self.embed(self.tokenizer.codebook.weight).detach()


def k_means(states, count: int, generator, rounds=12):
    """States (n, D) -> centres (count, D) and how many states each has (count,)."""
    centres = states[torch.randperm(len(states), generator=generator)[:count]]
    for _ in range(rounds):
        nearest = (centres.square().sum(1) - 2 * states @ centres.T).argmin(1)
        sizes = torch.bincount(nearest, minlength=count)
        sums = torch.zeros_like(centres).index_add_(0, nearest, states)
        spare = states[torch.randperm(len(states), generator=generator)[:count]]
        centres = torch.where(sizes[:, None] > 0, sums / sizes.clamp(min=1)[:, None], spare)
    return centres, sizes
