"""The mini model's speech units: a tokenizer with a VQ codebook, and heads that are needed in training only.

pretrain_speak.py trains `Quantised` and keeps two parts of it: the speech tokenizer and the flow's unit encoder.

Shapes: B batch, U units (12.5 per second), L mel frames (86.13 per second), M mel bins, D width of units, V codes.
"""
import torch
import torch.nn.functional as F
from torch import nn

from flow import Flow, FlowConfig
from speech_tokenizer import SpeechTokenizer, SpeechTokenizerConfig
from toy.clips import PHONES_PER_UNIT

DECAY = 0.99                    # of the moving averages of the codebook


class Detail(nn.Module):
    """Unit encoder output (B, U, D) -> mel (B, M, L), 7 slots per unit: a shorter path for gradients than mu."""

    def __init__(self, dim: int, n_mels: int, slots=7, channels=96):
        super().__init__()
        self.slots, self.spread = slots, nn.Linear(dim, slots * channels)
        self.model = nn.Sequential(nn.Conv1d(channels, channels, 5, padding=2), nn.Mish(),
                                   nn.Conv1d(channels, n_mels, 5, padding=2))

    def forward(self, x, frames: int):
        x = self.spread(x).unflatten(2, (self.slots, -1)).flatten(1, 2).transpose(1, 2)         # (B, channels, 7 U)
        return self.model(F.mish(F.interpolate(x, size=frames, mode="nearest")))


class Quantised(nn.Module):
    """Speech tokenizer -> code vectors -> the flow's unit encoder, with two heads for training: mel and phones.

    The codebook is learned by exponential moving averages of the hidden states (VQ-VAE). The flow's unit embedding is a
    linear map of it, computed at the end (`table`), so that both parts have the published format.
    """

    def __init__(self, config: SpeechTokenizerConfig, flow: FlowConfig, phones: int):
        super().__init__()
        D, V = config.d_model, config.quantize_vocab_size
        self.tokenizer, self.flow = SpeechTokenizer(config), Flow(flow)
        self.tokenizer.init_weights(0.1)        # larger ones would dominate the states that are quantised
        self.tokenizer.codebook.weight.requires_grad_(False)
        self.embed = nn.Linear(D, flow.input_size)
        self.phones = nn.Linear(D, PHONES_PER_UNIT * phones)
        self.detail = Detail(flow.encoder.output_size, flow.output_size)
        self.register_buffer("count", torch.zeros(V))           # moving averages: the uses of a code per batch,
        self.register_buffer("total", torch.zeros(V, D))        # and the sum of the states assigned to it

    def forward(self, codes, frames: int):
        """Code vectors (B, U, D) -> mu and the detail head's mel, (B, M, L) each, and phone logits (B, 4 U, phones)."""
        h = self.flow.encoder(self.embed(codes))
        mu = self.flow.length_regulator(self.flow.encoder_proj(h), frames).transpose(1, 2)
        return mu, self.detail(h, frames), self.phones(codes).unflatten(2, (PHONES_PER_UNIT, -1)).flatten(1, 2)

    def quantise(self, states) -> tuple:
        """Hidden states (B, U, D) -> code vectors (B, U, D), with straight-through gradients to the states, and the
        commitment loss. Updates the codebook."""
        ids = self.tokenizer.quantise(states.detach())
        codes = self.tokenizer.codebook(ids)
        commitment = F.mse_loss(states, codes)
        self.follow(states.detach().flatten(0, 1), ids.flatten())
        return states + (codes - states).detach(), commitment

    @torch.no_grad()
    def follow(self, states, ids) -> None:
        """Update the codebook with one batch: states (B U, D) and their codes (B U,)."""
        self.count.mul_(DECAY).index_add_(0, ids, torch.ones(len(ids)), alpha=1 - DECAY)
        self.total.mul_(DECAY).index_add_(0, ids, states, alpha=1 - DECAY)
        self.tokenizer.codebook.weight.copy_(self.total / self.count.clamp(min=1e-9)[:, None])

    @torch.no_grad()
    def set_codes(self, codes, at, count) -> None:
        """Set the entries `at` of the codebook to `codes` (n, D), as if each were used `count` times per batch."""
        self.tokenizer.codebook.weight[at], self.count[at] = codes, count
        self.total[at] = codes * self.count[at, None]

    def start(self, states, units: int, generator) -> None:
        """Initialise the codebook with the k-means centres of states (n, D). units: their number per batch."""
        centres, sizes = k_means(states, len(self.count), generator)
        self.set_codes(centres, slice(None), sizes / sizes.sum() * units)

    @torch.no_grad()
    def restart(self, states, generator, least=0.05) -> int:
        """Replace codes used less than `least` times per batch by some of the states (B U, D). Returns their number."""
        dead = (self.count < least).nonzero()[:, 0][:len(states)]
        if len(dead):
            chosen = torch.randperm(len(states), generator=generator)[:len(dead)]
            self.set_codes(states[chosen], dead, self.count.mean())
        return len(dead)

    def perplexity(self) -> float:
        """exp of the entropy of the code frequencies, the effective number of codes; 0 before there is a codebook."""
        share = self.count / self.count.sum().clamp(min=1e-9)
        return torch.special.entr(share).sum().exp().item() if self.count.any() else 0.0

    def table(self) -> torch.Tensor:
        """(V, input_size): the flow's embedding of each unit."""
        return self.embed(self.tokenizer.codebook.weight).detach()


def k_means(states, count: int, generator, rounds=12):
    """States (n, D) -> centres (count, D) and the number of states of each (count,)."""
    centres = states[torch.randperm(len(states), generator=generator)[:count]]
    for _ in range(rounds):
        nearest = (centres.square().sum(1) - 2 * states @ centres.T).argmin(1)
        sizes = torch.bincount(nearest, minlength=count)
        sums = torch.zeros_like(centres).index_add_(0, nearest, states)
        spare = states[torch.randperm(len(states), generator=generator)[:count]]
        centres = torch.where(sizes[:, None] > 0, sums / sizes.clamp(min=1)[:, None], spare)
    return centres, sizes
