"""Speed against the hardware's limit and against other implementations, as ratios measured in one process.

    python bench.py decode                          # greedy decoding of a Qwen3-0.6B-shaped random model, batch 1
    python bench.py decode --against transformers   # also the same weights in transformers' generate
    python bench.py flow                            # 50 units -> mel at the published size, against plain code
    python bench.py train --preset mini             # steps of every stage of train.py, on random samples
    python bench.py train --preset qwen3-0.6b --layers 8 --against transformers     # the LLM's part only
    python bench.py train --preset small --stage 3 --cache      # with and without train.py --cache

Each round runs both variants; the median round is printed, by wall time and by CPU time of the process (which other
load on the machine hardly changes). Decoding reads every weight once per token, so its limit is the bandwidth of a
large matrix-vector product, measured in every round. Training is compared with the speed of a large matrix product
(`workload.step_flop`). The last line is json.

Shapes: U units, L mel frames, M mel bins.
"""
import json
import platform
import resource
import tempfile
import time
from argparse import BooleanOptionalAction
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import NamedTuple

from cli import Parser, one_line_errors, pick_device, positive, threads, whole    # before torch, which takes seconds

import torch
import torch.distributed as dist
import torch.nn.functional as F

import train
from checkpoint import PRESETS, ExOmniConfig
from data import collate
from decode import GREEDY, Decoder
from flow import cosine_time, mel_frames
from model import ExOmni
from qwen3 import SIZES, Qwen3, Qwen3Config
from speech_decoder import SpeechDecoder, SpeechDecoderConfig
from toy.microbatches import Float64Sums
from workload import SMALL, cached_read, casting, made_up, random_model, random_weights, step_flop

PROMPT, NEW = 32, 16            # tokens
ROUNDS = 9
DTYPES = ["float32", "bfloat16"]
SHAPES = PRESETS | {"small": SMALL}


class Clock(NamedTuple):
    """Seconds of wall time, and of CPU time of this process (all threads together)."""
    wall: float
    cpu: float

    @classmethod
    def now(cls) -> "Clock":
        return cls(time.perf_counter(), time.process_time())

    def since(self, start: "Clock", parts: int = 1) -> "Clock":
        """The time from start to this one, divided by parts."""
        return Clock((self.wall - start.wall) / parts, (self.cpu - start.cpu) / parts)


def seconds(function) -> Clock:
    """The time of function()."""
    start = Clock.now()
    function()
    return Clock.now().since(start)


def memory_peak() -> str:
    """Peak memory since `forget_peak`, or the start: of tensors on the GPU if it was used, else of this process."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return f"{torch.cuda.max_memory_allocated() / 2 ** 30:.2f} GiB"
    status = Path("/proc/self/status")
    if status.exists():
        kib = int(next(line for line in status.read_text().splitlines() if line.startswith("VmHWM")).split()[1])
        return f"{kib / 2 ** 20:.2f} GiB"
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2 ** 20:.2f} GiB"


def forget_peak() -> None:
    """Reset the peak memory, if the system can."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


def in_turn(variants: dict, rounds: int, each=lambda: None) -> dict:
    """variants: name -> function that returns a Clock. After a warm-up, every round calls all of them, in reverse order
    in every second round, and each(). Returns name -> the Clocks of all rounds."""
    for variant in variants.values():
        variant()
    taken, order = {name: [] for name in variants}, list(variants)
    for _ in range(rounds):
        each()
        for name in order:
            taken[name].append(variants[name]())
        order.reverse()
    return taken


def ratios(slow: list, fast: list) -> dict:
    """Clocks of two variants -> speed of the second relative to the first, by each clock, the median round."""
    return {clock: median(getattr(a, clock) / getattr(b, clock) for a, b in zip(slow, fast)) for clock in Clock._fields}


def bandwidth(matrix, vector) -> float:
    """Bytes per second that a matrix-vector product reads, the best of three."""
    return max(matrix.nbytes / seconds(lambda: torch.mv(matrix, vector)).wall for _ in range(3))


def ours(model: Qwen3, ids):
    """A function that reads the prompt ids (1, PROMPT), decodes NEW tokens greedily and returns the Clock per token,
    without the first one, which comes with the prompt."""
    decoder = Decoder(model, model.embed_tokens, lambda states: F.linear(states, model.embed_tokens.weight), GREEDY, 1,
                      PROMPT + NEW, NEW)

    @torch.inference_mode()
    def decode() -> Clock:
        decoder.begin(model.embed_tokens(ids), torch.tensor([PROMPT]), torch.zeros(1), torch.full((1,), NEW), seed=0)
        start = Clock.now()
        decoder.run()
        assert int(decoder.count) == NEW
        return Clock.now().since(start, NEW - 1)
    return decode


def their_llm(config: Qwen3Config, state: dict, head):
    """transformers' Qwen3ForCausalLM sharing our tensors: state, of a Qwen3, and head, its output matrix."""
    from transformers import Qwen3Config as TheirConfig
    from transformers import Qwen3ForCausalLM
    rope = {"rope_type": "default", "rope_theta": config.rope_theta}
    config = TheirConfig(**vars(config), rope_parameters=rope, use_cache=False)
    with torch.device("meta"):
        peer = Qwen3ForCausalLM(config)
    peer.model.rotary_emb = type(peer.model.rotary_emb)(config).to(head.device)  # not in the state dict
    state = {f"model.{name}": tensor.detach() for name, tensor in state.items()}
    peer.load_state_dict(state | {"lm_head.weight": head.detach()}, assign=True)
    peer.tie_weights()
    return peer


def transformers(model: Qwen3, ids):
    """As `ours`, for transformers' generate on the same weights."""
    from transformers import GenerationConfig
    peer = their_llm(model.config, model.state_dict(), model.embed_tokens.weight).eval()
    greedy = GenerationConfig(max_new_tokens=NEW, do_sample=False, eos_token_id=None, pad_token_id=0)

    class Streamer(list):
        """Records the time of the prompt (put first) and of every token."""
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
    """Greedy decoding of a random model, as a share of the memory bandwidth and against transformers."""
    ids = torch.randint(0, 1000, (1, PROMPT), generator=torch.Generator().manual_seed(0))
    matrix, vector, results = torch.randn(2 ** 17, 1024), torch.randn(1024), {}         # 0.5 GB: far beyond any cache
    for dtype in args.dtype or DTYPES:
        model, limits = random_weights(lambda: Qwen3(SIZES[args.size]), dtype=getattr(torch, dtype)), []
        read = sum(p.nbytes for p in model.parameters())
        variants = {"ours": ours(model, ids)} | ({"transformers": transformers(model, ids)} if args.against else {})
        taken = in_turn(variants, args.rounds, lambda: limits.append(bandwidth(matrix, vector)))
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
        del model, variants
    return results


def plain_mel(decoder: SpeechDecoder, units, noise):
    """Units (U,) -> mel (M, L) as in the reference: each step runs the network twice, with and without conditions, and
    with a mask of ones."""
    flow, guidance = decoder.flow, decoder.flow.decoder.config.inference_cfg_rate
    mu, spk = flow.mu(units[None]), flow.speaker()
    x, cond, mask = noise[None], torch.zeros_like(mu), torch.ones(1, 1, mu.shape[2])
    times = cosine_time(torch.linspace(0, 1, decoder.config.sampling.steps + 1))
    for now, then in zip(times, times[1:]):
        v = flow.decoder.estimator(x, mask, mu, now[None], spk, cond)
        unconditional = flow.decoder.estimator(x, mask, mu * 0, now[None], spk * 0, cond)
        x = x + (then - now) * ((1 + guidance) * v - guidance * unconditional)
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


# ---------------------------------------------------------------- training

def product_speed(device, dtype) -> Clock:
    """FLOP per second of a large matrix product by each clock, the best of five."""
    n = 8192 if device.type == "cuda" else 1536
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    return Clock(*(2 * n ** 3 / min(values) for values in zip(*(seconds(lambda: done(a @ b)) for _ in range(5)))))


def done(tensor) -> None:
    """Wait for the GPU."""
    if tensor.is_cuda:
        torch.cuda.synchronize()


def our_steps(model: ExOmni, state: dict, device, recompute, reads) -> list:
    """For each `read` of reads a function that runs a training step of train.py on the batch read() and returns its
    Clock. Its attributes: loss, before the last step; waited, the seconds of each read."""
    parts, adamw, muons = train.prepare(model, state, device, recompute)
    trained = [p for part in state["rates"] for p in parts[part].values()]
    sums = Float64Sums(model, trained) if state["toy"] else None

    def step_on(read):
        def step() -> Clock:
            start = Clock.now()
            batch = read()
            step.waited.append(Clock.now().since(start).wall)
            losses = train.backward(model, [(0, batch)], train.count([batch]), state, sums, casting(state, device))
            done(train.step_optimizers(trained, adamw, muons, sums, state)[0])
            step.loss = float(sum(losses.values()))
            return Clock.now().since(start)
        step.waited = []
        return step
    return [step_on(read) for read in reads]


def their_step(model: ExOmni, state: dict, device, batch: dict):
    """As `our_steps`, for the LLM in transformers on the same weights, with DistributedDataParallel on one process."""
    peer = their_llm(model.config.llm, model.llm.state_dict(), (model.lm_head or model.llm.embed_tokens).weight).train()
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", store=dist.HashStore(), rank=0, world_size=1)
    peer = torch.nn.parallel.DistributedDataParallel(peer)
    adamw = torch.optim.AdamW(peer.parameters(), lr=0.0, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    asked = {"input_ids": batch["input_ids"], "attention_mask": batch["mask"].long(), "labels": batch["labels"]}

    def step() -> Clock:
        start = Clock.now()
        with torch.autocast(device.type, torch.bfloat16, enabled=state["dtype"] == "bfloat16"):
            loss = peer(**asked).loss
        loss.backward()
        done(torch.nn.utils.clip_grad_norm_(peer.parameters(), 1.0))
        adamw.step()
        adamw.zero_grad()
        step.loss = float(loss.detach())
        return Clock.now().since(start)
    return step


def bench_train(args) -> dict:
    """Training steps of train.py's stages on random samples, or of the LLM alone against transformers."""
    config, device, results = SHAPES[args.preset], pick_device(args.device), {}
    if args.layers:
        shallow = lambda part: replace(part, num_hidden_layers=min(args.layers, part.num_hidden_layers))
        encoder = replace(config.speech_encoder, encoder_layers=min(args.layers, config.speech_encoder.encoder_layers))
        generator = replace(config.generator, llm=shallow(config.generator.llm))
        config = replace(config, llm=shallow(config.llm), generator=generator, speech_encoder=encoder)
    table = train.STAGES[args.recipe]
    if unknown := sorted({*(args.stage or [])} - {*table}):
        raise ValueError(f"stage {unknown[0]} is unknown, {args.recipe} has {', '.join(map(str, table))}")
    for dtype in args.dtype or [DTYPES[device.type == "cuda"]]:
        limit = product_speed(device, getattr(torch, dtype))
        for number in [max(table)] if args.against else args.stage or table:
            state = asdict(table[number]) | {"stage": number, "recipe": args.recipe, "dtype": dtype, "seed": 0,
                                             "step": 0, "steps": 1 << 20}
            name, task = f"stage {number} of {args.recipe}", state["tasks"][0]
            if args.against:
                name, task = f"the LLM in stage {number}", "chat"
                state |= {"losses": ("text",), "rates": {"llm": state["rates"]["llm"]}, "toy": False}
            results[f"{dtype} {name}"] = bench_stage(args, config, device, state, name, task, limit)
    return results


def bench_stage(args, config: ExOmniConfig, device, state: dict, name: str, task: str, limit: Clock) -> dict:
    """One stage: `state`, a row of train.STAGES, on samples of this task; limit: `product_speed`.

    MFU = FLOP per second / limit; on a CPU by CPU time, as other processes may be using it too."""
    forget_peak()
    model = random_model(config, device).to(getattr(torch, state["dtype"]))
    rows = config.speech_encoder.max_source_positions // config.projector_stride
    samples = made_up(task, args.samples, config, *[rows] * bool(args.against))         # as long as a spoken question
    reads = {"ours": lambda: collate(samples, model, state["losses"], device)}
    with tempfile.TemporaryDirectory() as directory:
        if args.cache:
            reads["kept"] = cached_read(model, samples, task, state, device, directory)
        variants = dict(zip(reads, our_steps(model, state, device, args.recompute, reads.values())))
        (flop, tokens), results = step_flop(model, reads["ours"](), state), {}
        if args.against:
            variants["transformers"] = their_step(model, state, device, reads["ours"]())
        taken = in_turn(variants, args.rounds)
    if args.against:
        dist.destroy_process_group()
    losses = {variant: step.loss for variant, step in variants.items()}
    assert max(losses.values()) < 1.01 * min(losses.values()), f"not the same work: losses {losses}"
    for variant, clocks in taken.items():
        wall, cpu = (median(values) for values in zip(*clocks))
        waited = getattr(variants[variant], "waited", [0.0] * (1 + args.rounds))[1:]
        results[variant] = {"tokens_per_s": tokens / wall, "tokens_per_cpu_s": tokens / cpu, "tokens": tokens,
                        "waiting": median(some / clock.wall for some, clock in zip(waited, clocks))}
        used = ""
        if variant != "kept":                                       # with the cache most of the FLOP are left out
            mfu = flop / cpu / limit.cpu if device.type == "cpu" else flop / wall / limit.wall
            results[variant] |= {"flop": flop, "mfu": mfu}
            used = f"MFU {100 * mfu:.0f} % of {limit.wall / 1e9:,.0f} GFLOP/s, "
        print(f"{args.preset} {state['dtype']} {name}, {variant}: {tokens / wall:,.0f} tokens/s, "
              f"{tokens / cpu:,.0f} per CPU s, {1000 * wall:,.0f} ms a step, {used}"
              f"{100 * results[variant]['waiting']:.1f} % waiting for data, peak {memory_peak()}")
    for slow, fast, says in (("transformers", "ours", "the tokens/s of transformers with DDP"),
                             ("ours", "kept", "the speed with the frozen parts' states kept")):
        if slow in taken and fast in taken:
            faster = results[f"times {slow}"] = ratios(taken[slow], taken[fast])
            print(f"{args.preset} {state['dtype']} {name}: {faster['wall']:.2f} times {says} by wall time, "
                  f"{faster['cpu']:.2f} by CPU time (medians of {args.rounds} rounds)")
    return results


BENCHES = {"decode": bench_decode, "flow": bench_flow, "train": bench_train}
OPTIONS = {"decode": {"against", "size", "dtype"}, "flow": {"units"},              # besides those of all
           "train": {"against", "dtype", "preset", "cache", "layers", "recipe", "stage", "samples", "recompute",
                     "device"}}


def parser() -> Parser:
    p = Parser(description=__doc__.splitlines()[0])
    p.add_argument("what", choices=BENCHES, help="what to time")
    p.add_argument("--against", choices=["transformers"],
                   help="decode, train: a peer to compare with on the same weights; train: the language model's part")
    p.add_argument("--size", default="qwen3-0.6b", choices=[n for n, c in SIZES.items() if c.tie_word_embeddings],
                   help="decode: shape of the model")
    p.add_argument("--dtype", nargs="+", choices=DTYPES,
                   help="decode: of the weights, one after the other; train: to compute in (default: both for decode, "
                   "as train.py for train)")
    p.add_argument("--units", type=whole(1, 3000), default=50, help="flow: how many, 12.5 for each second of speech")
    p.add_argument("--preset", default="mini", choices=SHAPES, help="train: shape of the model")
    p.add_argument("--cache", action="store_true", help="train: also with what train.py --cache keeps of the samples")
    p.add_argument("--layers", type=positive, help="train: at most so many in each transformer of the preset")
    p.add_argument("--recipe", default="v1", choices=train.STAGES, help="train: whose stages")
    p.add_argument("--stage", nargs="+", type=positive, help="train: which of them (default: all)")
    p.add_argument("--samples", type=whole(1, 4096), default=4, help="train: of the micro-batch that is a step")
    p.add_argument("--recompute", action=BooleanOptionalAction, help="train: recompute activations, as train.py does")
    p.add_argument("--device", default="auto", help="train: auto, cpu, cuda, cuda:NUMBER, mps")
    p.add_argument("--rounds", type=whole(1, 1000), default=ROUNDS, help="how often each way gets its turn")
    p.add_argument("--threads", type=threads, default=2, help="of the processor")
    return p


def main(argv=None) -> None:
    args = parser().parse_args(argv)
    with one_line_errors(debug=args.debug):
        for name in sorted({*OPTIONS["decode"], *OPTIONS["flow"], *OPTIONS["train"]} - OPTIONS[args.what]):
            if getattr(args, name) != parser().get_default(name):
                raise ValueError(f"--{name} is not for {args.what}: leave it out")
        if args.cache and args.against:
            raise ValueError("--cache is not for --against: whatever is compared is one thing")
        if args.against and find_spec(args.against) is None:
            raise ValueError("--against transformers: that package is not installed: `pip install transformers`")
        torch.set_num_threads(args.threads)
        print(f"{platform.processor() or platform.machine()}, {args.threads} threads, torch {torch.__version__}")
        print(json.dumps({args.what: BENCHES[args.what](args)}))


if __name__ == "__main__":
    main()
