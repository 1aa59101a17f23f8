"""Autoregressive decoding: samplers, and the loop that both the LLM and the speech generator use.

One step of the loop, sampling included, reads and writes only tensors that are allocated once, and never waits for the
device. So a GPU can capture it as one CUDA graph; a CPU runs the same code (docs/spec/ex_omni.md 5.5).

Shapes: B batch, N tokens, V vocabulary, D width.
"""
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from audio import DAMAGED
from qwen3 import KVCache

POLL = {"cpu": 1}      # steps between two checks whether all samples have ended. The check is free on a CPU;
POLL_DEFAULT = 16      # elsewhere it waits for the device
WINDOW = 10            # number of recent ids that a sampler gets
ROUND = 128            # capacities are rounded up to a multiple of this, so that a decoder can be reused more often
COLDEST = 1e-5         # lowest temperature above 0: logits divided by less may overflow float32


def sample_from(weights, generator=None):
    """Sample ids (B,) in proportion to weights (B, V) >= 0, not all zero in a row.

    argmax of weight / exponential noise has the distribution of torch.multinomial, whose checks wait for the device.
    """
    return (weights / torch.empty_like(weights).exponential_(generator=generator)).argmax(-1)


def nucleus(probs, top_p: float, top_k: int):
    """Top-p and top-k: probs (B, V) -> weights (B, k), sorted, zero for ids that are left out, and their ids (B, k).
    An id is kept if those before it add up to less than top_p; the first is always kept."""
    weights, ids = probs.topk(min(top_k, probs.shape[-1]))
    before = F.pad(weights.cumsum(-1)[:, :-1], (1, 0))
    return weights * ((before < top_p) | (before == 0)), ids


def check_share(name: str, value: float) -> None:
    """Raises ValueError for a value outside (0, 1], NaN included."""
    if not 0 < value <= 1:
        raise ValueError(f"{name} is {value}, expected a number above 0, at most 1")


@dataclass(frozen=True)
class TextSampler:
    """logits (B, V) -> ids (B,) by temperature and top-p; temperature 0 takes the most likely id.

    Raises ValueError for a temperature that is neither 0 nor a finite one from COLDEST on, or a top_p outside (0, 1].
    """
    temperature: float = 0.0
    top_p: float = 1.0

    def __post_init__(self):
        if not (self.temperature == 0 or COLDEST <= self.temperature < math.inf):
            raise ValueError(f"temperature is {self.temperature}, expected 0 or a finite number from {COLDEST} on")
        check_share("top_p", self.top_p)

    def __call__(self, logits, recent=None, generator=None):
        if self.temperature == 0:
            return logits.argmax(-1)
        probs = (logits / self.temperature).softmax(-1)
        if self.top_p >= 1:
            return sample_from(probs, generator)
        weights, ids = nucleus(probs, self.top_p, probs.shape[-1])
        return ids.gather(1, sample_from(weights, generator)[:, None])[:, 0]


GREEDY = TextSampler()


@dataclass(frozen=True)
class RepetitionAware:
    """logits (B, V), recent ids (B, WINDOW) with -1 for none -> ids (B,). Nucleus sampling; an id that repeats recent
    ones is replaced by one sampled from the whole distribution (docs/spec/ex_omni.md 5.5, step 5). Raises ValueError
    for a top_p or tau outside (0, 1], or a top_k below 1."""
    top_p: float = 0.8
    top_k: int = 25
    tau: float = 0.1       # an id is a repetition if it fills at least this share of the window

    def __post_init__(self):
        check_share("top_p", self.top_p)
        check_share("tau", self.tau)
        if self.top_k < 1:
            raise ValueError(f"top_k is {self.top_k}, expected at least 1")

    def __call__(self, logits, recent, generator=None):
        probs = logits.softmax(-1)
        weights, ids = nucleus(probs, self.top_p, self.top_k)
        first = ids.gather(1, sample_from(weights, generator)[:, None])                 # (B, 1)
        repeated = (recent == first).sum(1) >= self.tau * WINDOW
        return torch.where(repeated, sample_from(probs, generator), first[:, 0])


def seed_from(generator) -> int:
    """A seed for the device's generator, taken from `generator` or, if None, from torch's global one."""
    return int(torch.randint(2 ** 62, (), generator=generator))


class Decoder:
    """Decodes a batch whose samples may end at different times. Get one from `decoder_for`.

    llm: a Qwen3. embed: nn.Embedding (V, D) of the ids. head(states (B, D)) -> logits (B, V).
    sampler(logits (B, V) float32, recent ids (B, WINDOW), generator) -> ids (B,). Three tuples of ids: `stop` end a
    sample; `banned` are never sampled; `skipped` are not emitted, and the previous input is fed once more.

    Results after `run`: `ids` (B, steps + 1), of which the first `count` (B,) were emitted; `states` (B, steps + 1, D),
    of which the first `state_count` (B,) predicted an id, skipped ones included; `log_probability` (B,), the sum over
    the chosen ids at temperature 1. The next use overwrites them.
    """

    def __init__(self, llm, embed, head, sampler, batch, capacity, steps, stop=(), banned=(), skipped=()):
        weight = llm.norm.weight
        self.llm, self.embed, self.head, self.sampler = llm, embed, head, sampler
        self.device, self.steps = weight.device, steps

        def zeros(*shape, dtype=torch.long):
            return torch.zeros(shape, dtype=dtype, device=self.device)

        with torch.inference_mode(False):              # so that the tensors can be written to outside of it too
            vocabulary = torch.arange(embed.num_embeddings)
            self.stop, self.banned, self.skipped = (
                torch.isin(vocabulary, torch.tensor(ids, dtype=torch.long)).to(self.device)
                for ids in (stop, banned, skipped))
            self.cache = KVCache(llm.config, batch, capacity, weight)
            self.last_input = zeros(batch, len(weight), dtype=weight.dtype)
            self.ids, self.count = zeros(batch, steps + 1), zeros(batch)
            self.states, self.state_count = zeros(batch, steps + 1, len(weight), dtype=weight.dtype), zeros(batch)
            self.unfinished, self.finite = zeros(batch, dtype=torch.bool), zeros(batch, dtype=torch.bool)
            self.minimum, self.maximum = zeros(batch), zeros(batch)
            self.log_probability = zeros(batch, dtype=torch.float32)
            self.rows = torch.arange(batch, device=self.device)
        self.generator = torch.Generator(self.device)
        self.graph = None

    @torch.inference_mode()
    def begin(self, embeds, lengths, minimum, maximum, seed: int) -> None:
        """Read the right-padded prompts embeds (B, N, D) of lengths (B,) and choose the first ids.

        minimum, maximum (B,): the least and the most steps of each sample. Call `run` next.
        """
        if self.device.type == "cuda" and self.graph is None:
            self.capture()
        self.generator.manual_seed(seed)
        self.cache.clear()
        self.count.zero_(), self.state_count.zero_(), self.finite.fill_(True), self.log_probability.zero_()
        self.minimum.copy_(minimum), self.maximum.copy_(maximum)
        self.unfinished.copy_(self.maximum > 0)
        lengths = lengths.to(self.device)
        states = self.llm(embeds=embeds, cache=self.cache, lengths=lengths)
        last = (lengths - 1).clamp(min=0)
        self.last_input.copy_(embeds[self.rows, last])
        self.choose(states[self.rows, last])
        if self.graph is not None:
            self.cache.limit = self.cache.capacity      # as when the graph was captured

    def choose(self, state) -> None:
        """Choose an id from each state (B, D), emit it, and mark the samples that end."""
        self.states[self.rows, self.state_count] = state                # ended samples write beyond their counts
        early = self.state_count < self.minimum
        logits = self.head(state).float()
        self.finite &= logits.sum(1).isfinite()         # False if any logit is NaN or infinite
        logits = logits.masked_fill(self.banned | self.stop & early[:, None], -torch.inf)
        chosen = self.sampler(logits, self.recent(), self.generator)
        self.log_probability += logits.log_softmax(1)[self.rows, chosen] * self.unfinished
        emit = self.unfinished & ~self.skipped[chosen]
        self.ids[self.rows, self.count] = chosen
        self.last_input.copy_(torch.where(emit[:, None], self.embed(chosen), self.last_input))
        self.count += emit
        self.state_count += self.unfinished
        self.unfinished &= ~self.stop[chosen] & (self.state_count < self.maximum)

    def recent(self):
        """The last WINDOW ids emitted (B, WINDOW), newest first, -1 for none."""
        index = self.count[:, None] - torch.arange(1, WINDOW + 1, device=self.device)
        return self.ids.gather(1, index.clamp(min=0)).masked_fill(index < 0, -1)

    def advance(self) -> None:
        """One decoding step."""
        self.choose(self.llm(embeds=self.last_input[:, None], cache=self.cache)[:, 0])

    def capture(self) -> None:
        """Capture `advance` as a CUDA graph. `begin` overwrites what the warm-up steps wrote."""
        self.cache.limit = self.cache.capacity          # all steps have the same shapes
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                self.advance()
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        self.graph.register_generator_state(self.generator)
        with torch.cuda.graph(self.graph):
            self.advance()

    @torch.inference_mode()
    def run(self, each=None) -> None:
        """Step until all samples have ended. each(decoder) is called at every check (POLL)."""
        advance = self.advance if self.graph is None else self.graph.replay
        poll = POLL.get(self.device.type, POLL_DEFAULT)
        for step in range(1, self.steps + 1):
            if step in (1, self.steps) or step % poll == 0:
                ended = not self.unfinished.any()       # waits for the device, so `each` sees finished steps
                if each is not None:
                    each(self)
                if ended:
                    break
            advance()

    def check(self, what: str) -> None:
        """Raises ValueError if any logit was NaN or infinite. Waits for the device."""
        if not self.finite.all():
            raise ValueError(f"{what}: logits are NaN or infinite: {DAMAGED}")

    def emitted(self) -> tuple:
        """For each sample the ids (n,) emitted so far, and the states (m, D) that predicted them; views of buffers."""
        return ([row[:n] for row, n in zip(self.ids, self.count.tolist())],
                [row[:n] for row, n in zip(self.states, self.state_count.tolist())])


def decoder_for(llm, embed, head, sampler, batch, capacity, steps, stop=(), banned=(), skipped=()) -> Decoder:
    """The decoder that llm used last if the arguments are the same, else a new one: allocating and capturing a graph
    can take longer than a reply. Arguments as for `Decoder`; capacity and steps are rounded up."""
    capacity, steps = (-(-n // ROUND) * ROUND for n in (capacity, steps))
    arguments = (embed, head, sampler, batch, capacity, steps, stop, banned, skipped)
    key = (*arguments, llm.norm.weight.data_ptr(), llm.norm.weight.device, llm.norm.weight.dtype)
    if getattr(llm, "decoder_key", None) != key:
        llm.decoder_key, llm.decoder = key, Decoder(llm, *arguments)
    return llm.decoder
