"""How fast, against the physical limit and against peers: ratios within one run, memory peak beside each figure.

    python bench.py decode                          # greedy decoding of a Qwen3-0.6B-shaped random model, batch 1
    python bench.py decode --against transformers   # the same weights in transformers' generate, side by side
    python bench.py flow                            # 50 units -> mel at the published size, against the plain way

Decoding reads every weight once per token, so its limit is the speed at which a large matrix-vector product reads its
matrix, measured in the same run right before and after. The last line is json.
"""
import argparse
import json
import platform
import resource
import statistics
import time
from pathlib import Path

import torch

import weights
from decode import GREEDY, Decoder
from flow import mel_frames, schedule
from qwen3 import SIZES, Qwen3, fast_matvec_layout, project
from speech_decoder import SpeechDecoder, SpeechDecoderConfig

PROMPT, NEW = 32, 48            # tokens
ROUNDS = 5


def memory_peak() -> str:
    """Largest resident memory so far, or since `forget_peak` where Linux lets us."""
    status = Path("/proc/self/status")
    if status.exists():
        kib = int(next(line for line in status.read_text().splitlines() if line.startswith("VmHWM")).split()[1])
        return f"{kib / 2 ** 20:.2f} GiB"
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2 ** 20:.2f} GiB"


def forget_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


def seconds(run) -> float:
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def bandwidth(matrix, vector) -> float:
    """GB/s at which the best of three matrix-vector products reads the matrix."""
    return max(matrix.nbytes / seconds(lambda: torch.mv(matrix, vector)) / 1e9 for _ in range(3))


def random_llm(size: str, dtype) -> Qwen3:
    """A language model of that shape with small random weights, in the layout that `ExOmni.from_pretrained` gives it."""
    torch.manual_seed(0)
    with weights.shapes_only():
        model = Qwen3(SIZES[size]).to(dtype)
    if dtype == torch.bfloat16:
        fast_matvec_layout(model)
    weights.allocate(model, "cpu").eval()
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(1) if p.ndim == 1 else p.copy_(torch.randn(p.shape) * 0.02)
    return model


def ours(model, ids):
    """A function that reads the prompt and decodes NEW tokens greedily; it returns the seconds per new token."""
    stop = torch.zeros(model.config.vocab_size, dtype=torch.bool)
    head = lambda states: project(states, model.embed_tokens.weight)
    decoder = Decoder(model, model.embed_tokens, head, GREEDY, stop, True, 1, PROMPT + NEW, NEW)
    limits = torch.zeros(1), torch.full((1,), NEW)

    @torch.inference_mode()
    def run():
        decoder.begin(model.embed_tokens(ids), torch.ones_like(ids, dtype=torch.bool), *limits, 0)
        elapsed = seconds(decoder.run)
        assert int(decoder.count) == NEW
        return elapsed / (NEW - 1)                      # the first came with the prompt
    return run


def bare(model, ids):
    """The same for nothing but the matrix-vector products of a token: what our own loop adds is the difference."""
    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors = {w.shape[1]: torch.randn(w.shape[1]).to(w.dtype) for w in matrices}

    @torch.inference_mode()
    def run():
        return min(seconds(lambda: [torch.mv(w, vectors[w.shape[1]]) for w in matrices]) for _ in range(3))
    return run


def theirs(model, ids):
    """The same for transformers' generate on the same weights."""
    from transformers import GenerationConfig, Qwen3ForCausalLM
    from transformers import Qwen3Config as HFConfig
    c = model.config
    config = HFConfig(vocab_size=c.vocab_size, hidden_size=c.hidden_size, intermediate_size=c.intermediate_size,
                      num_hidden_layers=c.num_hidden_layers, num_attention_heads=c.num_attention_heads,
                      num_key_value_heads=c.num_key_value_heads, head_dim=c.head_dim, rms_norm_eps=c.rms_norm_eps,
                      rope_theta=c.rope_theta, max_position_embeddings=c.max_position_embeddings,
                      tie_word_embeddings=True)
    dtype = model.norm.weight.dtype
    with torch.device("meta"):
        peer = Qwen3ForCausalLM(config).to(dtype)
    peer.to_empty(device="cpu").eval()
    peer.model.rotary_emb = type(peer.model.rotary_emb)(config)     # its tables are not in the state dict
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    peer.load_state_dict(state | {"lm_head.weight": state["model.embed_tokens.weight"]})
    peer.tie_weights()
    greedy = dict(do_sample=False, eos_token_id=None, pad_token_id=0, use_cache=True)

    @torch.inference_mode()
    def generate(new):
        peer.generate(ids, attention_mask=torch.ones_like(ids),
                      generation_config=GenerationConfig(max_new_tokens=new, min_new_tokens=new, **greedy))

    def run():                                          # the prompt and its first token are not counted, as above
        return (seconds(lambda: generate(NEW)) - seconds(lambda: generate(1))) / (NEW - 1)
    return run


def bench_decode(args) -> dict:
    """Greedy decoding of a random model as a share of the memory bandwidth, each way in turn; the median round."""
    ids = torch.randint(0, 1000, (1, PROMPT), generator=torch.Generator().manual_seed(0))
    matrix = torch.randn(SIZES["qwen3-0.6b"].vocab_size, 1024)                      # 0.6 GB: far beyond any cache
    vector, results = torch.randn(1024), {}
    for dtype in args.dtype:
        forget_peak()
        model = random_llm(args.size, getattr(torch, dtype))
        read = sum(p.nbytes for p in model.parameters())
        runs = {"products": bare(model, ids), "ours": ours(model, ids)}
        if args.against:
            runs[args.against] = theirs(model, ids)
        shares = {name: [] for name in runs}
        for run in runs.values():
            run()                                       # warm-up
        for _ in range(args.rounds):
            for name, run in runs.items():
                before = bandwidth(matrix, vector)
                per_token = run()
                limit = statistics.mean([before, bandwidth(matrix, vector)])
                shares[name].append((read / per_token / 1e9 / limit, 1 / per_token, limit))
        for name, rows in shares.items():
            share, speed, limit = sorted(rows)[len(rows) // 2]
            print(f"{args.size} {dtype:9} {name:12} {speed:6.2f} tokens/s, {100 * share:3.0f} % of {limit:.1f} GB/s "
                  f"(rounds: {' '.join(f'{100 * r[0]:.0f}' for r in rows)}), peak {memory_peak()}")
            results[f"{dtype} {name}"] = {"tokens_per_s": speed, "share": share, "bandwidth_GBps": limit}
        del model, runs
    return results


def plain_mel(decoder: SpeechDecoder, units, noise):
    """Units (U,) -> mel (M, F) the plain way: per step the whole network twice, once with and once without conditions,
    its time embedding worked out each time, with the mask of ones that the reference passes."""
    flow, guidance = decoder.flow, decoder.flow.decoder.config.inference_cfg_rate
    mu, spk = flow.mu(units[None]), flow.speaker()
    x, cond, mask = noise[None], torch.zeros_like(mu), torch.ones(1, 1, mu.shape[2])
    times = schedule(torch.linspace(0, 1, decoder.config.sampling.steps + 1))
    for now, then in zip(times, times[1:]):
        v = flow.decoder.estimator(x, mask, mu, now[None], spk, cond)
        free = flow.decoder.estimator(x, mask, mu * 0, now[None], spk * 0, cond)
        x = x + (then - now) * ((1 + guidance) * v - guidance * free)
    return x[0]


@torch.inference_mode()
def bench_flow(args) -> dict:
    """Units -> mel of a random model against `plain_mel`, in turn; the median round."""
    torch.manual_seed(0)
    decoder = SpeechDecoder(SpeechDecoderConfig())
    units = torch.randint(0, decoder.config.flow.vocab_size, (args.units,))
    noise = torch.randn(decoder.config.flow.output_size, mel_frames(args.units))
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    difference = (decoder.mel(units, noise) - plain_mel(decoder, units, noise)).abs().max()         # also the warm-up
    assert difference < 1e-3, difference
    forget_peak()
    rows = []
    for _ in range(args.rounds):
        plain, fast = seconds(lambda: plain_mel(decoder, units, noise)), seconds(lambda: decoder.mel(units, noise))
        rows.append((plain / fast, plain, fast, 2 * 2048 ** 3 / min(seconds(lambda: a @ b) for _ in range(3)) / 1e9))
    ratio, plain, fast, gflops = sorted(rows)[len(rows) // 2]
    print(f"{args.units} units -> mel: plain {plain:.2f} s, here {fast:.2f} s, {ratio:.2f} times faster "
          f"(rounds: {' '.join(f'{r[0]:.2f}' for r in rows)}), matrix product {gflops:.0f} GFLOP/s, peak {memory_peak()}")
    return {"plain_s": plain, "seconds": fast, "ratio": ratio, "matmul_GFLOPs": gflops}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("what", choices=["decode", "flow"])
    p.add_argument("--against", choices=["transformers"], help="decode: a peer to run on the same weights")
    p.add_argument("--size", default="qwen3-0.6b", choices=[n for n, c in SIZES.items() if c.tie_word_embeddings])
    p.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
    p.add_argument("--units", type=int, default=50, help="flow: how many")
    p.add_argument("--rounds", type=int, default=ROUNDS)
    p.add_argument("--threads", type=int, default=2)
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    print(f"{platform.processor() or platform.machine()}, {args.threads} threads, torch {torch.__version__}")
    print(json.dumps({args.what: {"decode": bench_decode, "flow": bench_flow}[args.what](args)}))


if __name__ == "__main__":
    main()
