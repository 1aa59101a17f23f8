"""Autoregressive decoding: how an id is drawn, and the loop that draws one after another on the device.

The loop serves the language model (text ids) and the speech generator (speech units). Its step reads and writes
static tensors only and never asks the device anything, sampling included, so that one CUDA graph captures it on a GPU;
a CPU runs the same step as it is. Spec ex_omni 5.5, 8.2.

Shapes: B batch, V vocabulary, D width.
"""
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from qwen3 import KVCache

POLL = {"cpu": 1}      # steps between looks at whether all rows have ended; free on a CPU,
POLL_DEFAULT = 16      # a pause of the pipeline elsewhere
WINDOW = 10            # emitted ids a sampler is shown
ROUND = 128            # capacities are rounded up to this, so that the next prompt finds a decoder that fits


def draw(weights, generator=None):
    """weights (B, V) >= 0, not all zero in a row -> ids (B,), each drawn in proportion to its weight.

    The largest of weight / exponential noise wins: the same law as torch.multinomial, without its checks, which stop
    the device.
    """
    return (weights / torch.empty_like(weights).exponential_(generator=generator)).argmax(-1)


def nucleus(probs, top_p: float, top_k: int):
    """probs (B, V) -> the best ids whose preceding mass is below top_p, top_k at most: weights (B, k), best first, zero
    where left out, and their ids (B, k). The first is always kept."""
    weights, ids = probs.topk(min(top_k, probs.shape[-1]))
    before = F.pad(weights.cumsum(-1)[:, :-1], (1, 0))
    return weights * ((before < top_p) | (before == 0)), ids


@dataclass(frozen=True)
class TextSampler:
    """Temperature and top-p; temperature 0 takes the most likely id."""
    temperature: float = 0.0
    top_p: float = 1.0

    def __post_init__(self):
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ValueError(f"temperature {self.temperature} and top_p {self.top_p}: expected at least 0, and above 0 up "
                             "to 1")

    def __call__(self, logits, recent=None, generator=None):
        if self.temperature == 0:
            return logits.argmax(-1)
        probs = (logits / self.temperature).softmax(-1)
        if self.top_p >= 1:
            return draw(probs, generator)
        weights, ids = nucleus(probs, self.top_p, probs.shape[-1])
        return ids.gather(1, draw(weights, generator)[:, None])[:, 0]


GREEDY = TextSampler()


@dataclass(frozen=True)
class RepetitionAware:
    """Nucleus sampling that draws again, from everything, where the drawn id was emitted lately (spec 5.5, step 5)."""
    top_p: float = 0.8
    top_k: int = 25
    tau: float = 0.1       # share of the window from which an id counts as repeated

    def __call__(self, logits, recent, generator=None):
        probs = logits.softmax(-1)
        weights, ids = nucleus(probs, self.top_p, self.top_k)
        first = ids.gather(1, draw(weights, generator)[:, None])                        # (B, 1)
        repeated = (recent == first).sum(1) >= self.tau * WINDOW
        return torch.where(repeated, draw(probs, generator), first[:, 0])


def draw_seed(generator) -> int:
    """A seed for a device's own generator, from the caller's or from torch's."""
    return int(torch.randint(2 ** 62, (), generator=generator))


class Decoder:
    """Decodes a batch on static tensors; rows end at different times. Get one from `decoder_for`.

    llm: a Qwen3. embed(ids (B,)) -> (B, D): what an emitted id looks like to it. head(states (B, D)) -> logits (B, V).
    sampler(logits (B, V) float32, recent ids (B, WINDOW), generator) -> ids (B,). stop (V,) bool: ids that end a row;
    keep_stop: whether they are emitted. reserved (V,) bool or None: ids that cannot be emitted: never drawn, or, with
    skip_reserved, skipped when drawn, and the last input fed again (the release's way, spec 8.2 item 7).

    After `run`: ids (B, steps + 1) with the first count (B,) emitted, states (B, steps, D) with the first ran (B,) the
    state that each step chose from. The next use overwrites them.
    """

    def __init__(self, llm, embed, head, sampler, stop, keep_stop, batch, capacity, steps, reserved=None,
                 skip_reserved=False):
        weight = llm.norm.weight
        self.llm, self.embed, self.head, self.sampler = llm, embed, head, sampler
        self.stop, self.keep_stop, self.reserved, self.skip_reserved = stop, keep_stop, reserved, skip_reserved
        self.device, self.steps = weight.device, steps

        def new(*shape, dtype=torch.long):
            return torch.zeros(shape, dtype=dtype, device=self.device)

        with torch.inference_mode(False):              # tensors that may be written to in any mode
            self.cache = KVCache(llm.config, batch, capacity, weight)
            self.x = new(batch, len(weight), dtype=weight.dtype)    # the last input
            self.state = torch.zeros_like(self.x)                   # the state the next id is chosen from
            self.ids, self.states = new(batch, steps + 1), new(batch, steps, len(weight), dtype=weight.dtype)
            self.step, self.count, self.ran = new(1), new(batch), new(batch)
            self.alive = new(batch, dtype=torch.bool)
            self.minimum, self.maximum = new(batch), new(batch)
        self.generator = torch.Generator(self.device)
        self.graph = None

    @torch.inference_mode()
    def begin(self, embeds, mask, minimum, maximum, seed: int) -> None:
        """Read the prompts embeds (B, N, D), right-padded as mask (B, N) says, and choose the first ids.

        minimum, maximum (B,): a row ends neither before nor after so many steps. Call `run` next.
        """
        if self.device.type == "cuda" and self.graph is None:
            self.capture()
        self.generator.manual_seed(seed)
        for tensor in (self.step, self.count, self.ran):
            tensor.zero_()
        self.cache.clear()
        self.minimum.copy_(minimum)
        self.maximum.copy_(maximum)
        self.alive.copy_(self.maximum > 0)
        full = bool(mask.all())                         # no padding: attention needs no mask, then or in the steps
        states = self.llm(embeds=embeds, mask=None if full else mask, cache=self.cache)
        last = (self.cache.lengths - 1).clamp(min=0)
        rows = torch.arange(len(last), device=self.device)
        self.x.copy_(embeds[rows, last])
        self.state.copy_(states[rows, last])
        self.choose()
        if self.graph is not None:
            self.cache.pin()

    def choose(self) -> None:
        """Choose an id from the state, emit it, and note which rows end."""
        self.states.index_copy_(1, self.step, self.state[:, None])
        logits = self.head(self.state).float()
        logits = logits.masked_fill(self.stop & (self.step < self.minimum)[:, None], -torch.inf)
        if self.reserved is not None and not self.skip_reserved:
            logits = logits.masked_fill(self.reserved, -torch.inf)
        back = self.count[:, None] - torch.arange(1, WINDOW + 1, device=self.device)
        recent = self.ids.gather(1, back.clamp(min=0)).masked_fill(back < 0, -1)
        chosen = self.sampler(logits, recent, self.generator)
        stop = self.stop[chosen]
        emit = self.alive if self.keep_stop else self.alive & ~stop
        if self.reserved is not None:
            emit = emit & ~self.reserved[chosen]
        self.ids.scatter_(1, self.count[:, None], chosen[:, None])      # past the count nothing counts
        self.x.copy_(torch.where(emit[:, None], self.embed(chosen), self.x))
        self.count += emit
        self.ran += self.alive
        self.step += 1
        self.alive &= ~stop & (self.step < self.maximum)

    def advance(self) -> None:
        """Feed the last ids and choose the next."""
        self.state.copy_(self.llm(embeds=self.x[:, None], cache=self.cache)[:, -1])
        self.choose()

    def capture(self) -> None:
        """Record `advance` as a CUDA graph. What the warm-up writes is overwritten by `begin`."""
        self.cache.pin()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                self.advance()
        torch.cuda.current_stream().wait_stream(side)
        self.step.zero_(), self.count.zero_(), self.cache.lengths.zero_()
        self.graph = torch.cuda.CUDAGraph()
        self.graph.register_generator_state(self.generator)
        with torch.cuda.graph(self.graph):
            self.advance()

    @torch.inference_mode()
    def run(self, each=None) -> None:
        """Step until all rows have ended. each(decoder) is called at every look at the device (POLL)."""
        advance = self.advance if self.graph is None else self.graph.replay
        poll = POLL.get(self.device.type, POLL_DEFAULT)
        for step in range(1, self.steps + 1):
            if step % poll == 0 or step == self.steps:
                if each is not None:
                    each(self)
                if not self.alive.any():
                    break
            advance()


def decoder_for(llm, embed, head, sampler, stop, keep_stop, batch, capacity, steps, reserved=None,
                skip_reserved=False) -> Decoder:
    """The decoder that llm used last, if it has the same size and rules, else a new one: capturing a graph takes longer
    than many a reply. Arguments as for `Decoder`; capacity and steps are rounded up."""
    capacity, steps = (-(-n // ROUND) * ROUND for n in (capacity, steps))
    key = (embed, head, sampler, keep_stop, batch, capacity, steps, skip_reserved, llm.norm.weight.device,
           llm.norm.weight.dtype)
    if getattr(llm, "decoder_key", None) != key:
        llm.decoder_key, llm.decoder = key, Decoder(llm, embed, head, sampler, stop, keep_stop, batch, capacity, steps,
                                                    reserved, skip_reserved)
    return llm.decoder
