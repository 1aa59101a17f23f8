"""How fast, against the physical limit and against peers: ratios within one call, as machines differ and are shared.

    python bench.py decode                          # greedy decoding of a Qwen3-0.6B-shaped random model, batch 1
    python bench.py decode --against transformers   # the same weights in transformers' generate, turn by turn
    python bench.py flow                            # 50 units -> mel at the published size, against the plain way

Each round gives both ways their turn; printed is the median round, by wall time and by process CPU time (which a busy
machine does not falsify). Decoding reads every weight once per token, so its limit is the speed at which a large
matrix-vector product reads its matrix, measured in every round. The last line is json.

Shapes: U units, L mel frames, M mel bins.
"""
import json
import platform
import resource
import time
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import NamedTuple

from cli import Parser, one_line_errors, threads, whole                 # before torch, which takes seconds

import torch
import torch.nn.functional as F

import weights
from decode import GREEDY, Decoder
from flow import cosine_time, mel_frames
from qwen3 import SIZES, Qwen3
from speech_decoder import SpeechDecoder, SpeechDecoderConfig

PROMPT, NEW = 32, 16            # tokens
ROUNDS = 9


class Clock(NamedTuple):
    """Seconds by both clocks: time that passed, and time that this process worked (all threads together)."""
    wall: float
    cpu: float

    @classmethod
    def now(cls) -> "Clock":
        return cls(time.perf_counter(), time.process_time())

    def since(self, begun: "Clock", parts: int = 1) -> "Clock":
        """From then to now, per part."""
        return Clock((self.wall - begun.wall) / parts, (self.cpu - begun.cpu) / parts)


def seconds(function) -> Clock:
    """How long function() takes."""
    begun = Clock.now()
    function()
    return Clock.now().since(begun)


def memory_peak() -> str:
    """Largest resident memory so far."""
    status = Path("/proc/self/status")
    if status.exists():
        kib = int(next(line for line in status.read_text().splitlines() if line.startswith("VmHWM")).split()[1])
        return f"{kib / 2 ** 20:.2f} GiB"
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2 ** 20:.2f} GiB"


def in_turn(ways: dict, rounds: int, each=lambda: None) -> dict:
    """name -> function that returns a Clock: each gets its turn in every round, after one to warm up, the first of one
    round being the last of the next. each() is called in every round. Returns name -> the Clocks of all rounds."""
    for way in ways.values():
        way()
    taken, order = {name: [] for name in ways}, list(ways)
    for _ in range(rounds):
        each()
        for name in order:
            taken[name].append(ways[name]())
        order.reverse()
    return taken


def ratios(slow: list, fast: list) -> dict:
    """Rounds of two ways -> how many times faster the second is by each clock, the median round."""
    return {clock: median(getattr(a, clock) / getattr(b, clock) for a, b in zip(slow, fast)) for clock in Clock._fields}


def bandwidth(matrix, vector) -> float:
    """Bytes per second at which the best of three matrix-vector products reads the matrix."""
    return max(matrix.nbytes / seconds(lambda: torch.mv(matrix, vector)).wall for _ in range(3))


def random_llm(size: str, dtype) -> Qwen3:
    """A language model of that shape with small random weights."""
    torch.manual_seed(0)
    model = weights.empty(lambda: Qwen3(SIZES[size]), dtype=dtype)
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(1) if p.ndim == 1 else p.copy_(torch.randn(p.shape) * 0.02)
    return model


def ours(model: Qwen3, ids):
    """A function that reads the prompt ids (1, PROMPT), decodes NEW tokens greedily and returns the Clock per token
    (but the first, which comes with the prompt)."""
    decoder = Decoder(model, model.embed_tokens, lambda states: F.linear(states, model.embed_tokens.weight), GREEDY, 1,
                      PROMPT + NEW, NEW)

    @torch.inference_mode()
    def decode() -> Clock:
        decoder.begin(model.embed_tokens(ids), torch.tensor([PROMPT]), torch.zeros(1), torch.full((1,), NEW), seed=0)
        begun = Clock.now()
        decoder.run()
        assert int(decoder.count) == NEW
        return Clock.now().since(begun, NEW - 1)
    return decode


def transformers(model: Qwen3, ids):
    """The same for transformers' generate on the same weights."""
    from transformers import GenerationConfig, Qwen3ForCausalLM
    from transformers import Qwen3Config as TheirConfig
    rope = {"rope_type": "default", "rope_theta": model.config.rope_theta}
    config = TheirConfig(**vars(model.config), rope_parameters=rope)
    with torch.device("meta"):
        peer = Qwen3ForCausalLM(config).eval()
    peer.model.rotary_emb = type(peer.model.rotary_emb)(config)     # its tables are not in the state dict
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    peer.load_state_dict(state | {"lm_head.weight": state["model.embed_tokens.weight"]}, assign=True)
    greedy = GenerationConfig(max_new_tokens=NEW, do_sample=False, eos_token_id=None, pad_token_id=0)

    class Streamer(list):
        """Notes the time of the prompt (put first) and of every token."""
        def put(self, _):
            self.append(Clock.now())

        def end(self):
            pass

    @torch.inference_mode()
    def decode() -> Clock:
        times = Streamer()
        peer.generate(ids, attention_mask=torch.ones_like(ids), generation_config=greedy, streamer=times)
        assert len(times) == 1 + NEW
        return times[-1].since(times[1], NEW - 1)
    return decode


def bench_decode(args) -> dict:
    """Greedy decoding of a random model as a share of the memory bandwidth, and against a peer."""
    ids = torch.randint(0, 1000, (1, PROMPT), generator=torch.Generator().manual_seed(0))
    matrix, vector, results = torch.randn(2 ** 17, 1024), torch.randn(1024), {}         # 0.5 GB: far beyond any cache
    for dtype in args.dtype:
        model, limits = random_llm(args.size, getattr(torch, dtype)), []
        read = sum(p.nbytes for p in model.parameters())
        ways = {"ours": ours(model, ids)} | ({"transformers": transformers(model, ids)} if args.against else {})
        taken = in_turn(ways, args.rounds, lambda: limits.append(bandwidth(matrix, vector)))
        for name, clocks in taken.items():
            wall, cpu = (median(values) for values in zip(*clocks))
            share = median(read / clock.wall / limit for clock, limit in zip(clocks, limits))
            print(f"{args.size} {dtype:9} {name:12} {1 / wall:6.2f} tokens/s, {1000 * cpu:6.1f} ms CPU per token, "
                  f"{100 * share:3.0f} % of {median(limits) / 1e9:.1f} GB/s, peak {memory_peak()}")
            results[f"{dtype} {name}"] = {"tokens_per_s": 1 / wall, "cpu_s_per_token": cpu, "share": share}
        if args.against:
            faster = results[f"{dtype} times transformers"] = ratios(taken["transformers"], taken["ours"])
            print(f"{args.size} {dtype:9} {faster['wall']:.2f} times transformers' speed by wall time, "
                  f"{faster['cpu']:.2f} by CPU time (medians of {args.rounds} rounds of {NEW} tokens)")
        del model, ways
    return results


def plain_mel(decoder: SpeechDecoder, units, noise):
    """Units (U,) -> mel (M, L) the plain way: per step the whole network twice, once with and once without conditions,
    with the mask of ones that the reference passes."""
    flow, guidance = decoder.flow, decoder.flow.decoder.config.inference_cfg_rate
    mu, spk = flow.mu(units[None]), flow.speaker()
    x, cond, mask = noise[None], torch.zeros_like(mu), torch.ones(1, 1, mu.shape[2])
    times = cosine_time(torch.linspace(0, 1, decoder.config.sampling.steps + 1))
    for now, then in zip(times, times[1:]):
        v = flow.decoder.estimator(x, mask, mu, now[None], spk, cond)
        free = flow.decoder.estimator(x, mask, mu * 0, now[None], spk * 0, cond)
        x = x + (then - now) * ((1 + guidance) * v - guidance * free)
    return x[0]


@torch.inference_mode()
def bench_flow(args) -> dict:
    """Units -> mel of a random model against `plain_mel`."""
    torch.manual_seed(0)
    decoder = SpeechDecoder(SpeechDecoderConfig())
    units = torch.randint(0, decoder.config.flow.vocab_size, (args.units,))
    noise = torch.randn(decoder.config.flow.output_size, mel_frames(args.units))
    difference = (decoder.mel(units, noise) - plain_mel(decoder, units, noise)).abs().max()
    assert difference < 1e-3, difference
    taken = in_turn({"plain": lambda: seconds(lambda: plain_mel(decoder, units, noise)),
                     "here": lambda: seconds(lambda: decoder.mel(units, noise))}, args.rounds)
    faster = ratios(taken["plain"], taken["here"])
    wall, cpu = (median(values) for values in zip(*taken["here"]))
    print(f"{args.units} units ({args.units / 12.5:.1f} s) -> mel: {wall:.2f} s, {cpu:.2f} s CPU; {faster['wall']:.2f} "
          f"times as fast as the plain way by wall time, {faster['cpu']:.2f} by CPU time, peak {memory_peak()}")
    return {"seconds": wall, "cpu_s": cpu, "times plain": faster}


def parser() -> Parser:
    """The command line."""
    p = Parser(description=__doc__.splitlines()[0])
    p.add_argument("what", choices=["decode", "flow"], help="what to time")
    p.add_argument("--against", choices=["transformers"], help="decode: a peer to compare with on the same weights")
    p.add_argument("--size", default="qwen3-0.6b", choices=[n for n, c in SIZES.items() if c.tie_word_embeddings],
                   help="decode: shape of the model")
    p.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"],
                   help="decode: of the weights, one after the other")
    p.add_argument("--units", type=whole(1, 3000), default=50, help="flow: how many, 12.5 for each second of speech")
    p.add_argument("--rounds", type=whole(1, 1000), default=ROUNDS, help="how often each way gets its turn")
    p.add_argument("--threads", type=threads, default=2, help="of the processor")
    return p


def main(argv=None) -> None:
    """The command."""
    args = parser().parse_args(argv)
    with one_line_errors(debug=args.debug):
        if args.what == "flow" and args.against:
            raise ValueError("--against is for decode: flow is compared with its own plain way")
        if args.against and find_spec(args.against) is None:
            raise ValueError("--against transformers: that package is not installed: `pip install transformers`")
        torch.set_num_threads(args.threads)
        print(f"{platform.processor() or platform.machine()}, {args.threads} threads, torch {torch.__version__}")
        print(json.dumps({args.what: {"decode": bench_decode, "flow": bench_flow}[args.what](args)}))


if __name__ == "__main__":
    main()
