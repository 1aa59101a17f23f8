"""Everything fetched, converted or generated: the weights of a checkpoint, prepared data, the demo set.

    python prepare.py weights --preset tiny --out checkpoints/tiny              random, no download, seconds
    python prepare.py weights --preset qwen3-8b --out checkpoints/qwen3-8b      fetched from Hugging Face
    python prepare.py weights --release DIR --out checkpoints/release           the official Ex-Omni release
    python prepare.py demo --out data/demo                                      synthetic speech: see toy/demo.py
    python prepare.py demo --answers mini/data                                  without flite: answers from a file
    python prepare.py demo --list                                               what one can ask, as jsonl

`weights` makes a checkpoint directory that `ExOmni.from_pretrained` opens (corpora/published.py). `demo` makes what
`train.py` reads (data.py). Each command is a pair of functions here: one adds its arguments, one does the work.
"""
import argparse
import tempfile
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from checkpoint import ExOmniConfig, preset
from cli import one_line_errors
from corpora.published import LLMS, SOURCES, convert_published
from corpora.tally import Tally
from flow import CFMConfig, EncoderConfig, EstimatorConfig, FlowConfig, MatchingConfig
from hift import F0Config, HiFTConfig
from model import ExOmni
from speech_decoder import SpeechDecoder, SpeechDecoderConfig
from speech_tokenizer import SpeechTokenizer, SpeechTokenizerConfig
from tokenizer import write_tiny

# The speech parts of the tiny preset; their units are those of PRESETS["tiny"].
TINY_TOKENIZER = SpeechTokenizerConfig(num_mel_bins=80, d_model=32, encoder_attention_heads=2, encoder_ffn_dim=64,
                                       quantize_position=2, pooling_position=2, quantize_vocab_size=96)
TINY_DECODER = SpeechDecoderConfig(
    FlowConfig(96, 32, encoder=EncoderConfig(32, 4, 64, 2),
               decoder=MatchingConfig(CFMConfig(), EstimatorConfig([32, 32], 1, 2, 2, 12))),
    HiFTConfig(base_channels=32, f0_predictor=F0Config(24)))


# ---- weights ------------------------------------------------------------------------------------------------------

def add_weights(commands) -> None:
    """The arguments of `prepare.py weights`."""
    about = ("Published weights to one checkpoint directory. A source is a Hugging Face repository or a local "
             "directory; what none of them holds is newly initialised.")
    command = commands.add_parser("weights", help="published weights to one checkpoint directory", description=about)
    command.set_defaults(command=make_weights)
    add = command.add_argument
    add("--preset", help=f"tiny (random, no sources) or a size: {', '.join(LLMS)}")
    add("--out", help="directory to write (default: checkpoints/PRESET, or checkpoints/release)")
    add("--release", help="official Ex-Omni checkpoint, in place of the language model, speech encoder and generator")
    add("--llm", help=f"the language model, a Qwen3 (default: by preset, {LLMS['qwen3-8b']} for qwen3-8b)")
    for part, what in (("speech_encoder", "a Whisper"), ("speech_generator", "the Qwen3 that it starts from"),
                       ("speech_tokenizer", "GLM-4-Voice's"), ("speech_decoder", "GLM-4-Voice's")):
        add(f"--{part.replace('_', '-')}", help=f"{what} (default: %(default)s)", default=SOURCES[part])
    add("--dtype", choices=["bfloat16", "float16", "float32"],
        help="of the model on disk (default: the language model's, or the release's)")
    add("--seed", type=int, default=0, help="of newly initialised modules (default: %(default)s)")
    add("--overwrite", action="store_true", help="replace the checkpoint in --out, once the new one is complete")


def make_weights(args) -> None:
    """`prepare.py weights`. Raises ValueError or OSError; then nothing is written."""
    if args.preset is None and args.release is None:
        raise ValueError("give --preset, the size to make, or --release, an official checkpoint")
    if args.release is not None and args.llm is not None:
        raise ValueError("--release holds the language model too: give it or --llm, not both")
    config = None if args.preset is None else preset(args.preset)
    given = [part for part in ("llm", "release", *SOURCES) if getattr(args, part) != SOURCES.get(part)]
    if args.preset == "tiny" and given:
        raise ValueError(f"the tiny preset is random and takes no {', '.join(given)}: choose another preset")
    out, tally = Path(args.out or f"checkpoints/{args.preset or 'release'}"), Tally()
    with building(out, args.overwrite) as new:
        if args.preset == "tiny":
            torch.manual_seed(args.seed)
            make_tiny(new, replace(config, dtype=args.dtype or config.dtype), tally)
        else:
            convert_published(new, args, tally)
        size = sum(path.stat().st_size for path in new.rglob("*") if path.is_file())
    tally.print_new(1 if args.preset == "tiny" else 2)
    print(f"wrote {out} ({size / 1e6:,.1f} MB): {tally}")


def make_tiny(out: Path, config: ExOmniConfig, tally: Tally) -> None:
    """A complete random checkpoint. Its sound and face are noise."""
    model = ExOmni(config)
    model.speech_encoder.init_weights()
    model.llm.init_weights()
    model.speech_generator.llm.init_weights()
    model.to(getattr(torch, config.dtype)).save_pretrained(out)
    write_tiny(out)
    tokenizer, decoder = SpeechTokenizer(TINY_TOKENIZER), SpeechDecoder(TINY_DECODER)
    tokenizer.init_weights()
    tokenizer.save_pretrained(out / "speech_tokenizer")
    decoder.save_pretrained(out / "speech_decoder")
    for prefix, module in (("", model), ("speech_tokenizer.", tokenizer), ("speech_decoder.", decoder)):
        tally.new |= {prefix + name: tensor.numel() for name, tensor in module.state_dict().items()}


@contextmanager
def building(out: Path, overwrite: bool):
    """Yield an empty directory that replaces `out` at the end, or vanishes if anything fails. What was in `out` before
    is removed last. Raises ValueError where `out` holds files that are not to be replaced."""
    out = out.resolve()
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file, expected a directory: choose another --out")
    if out.exists() and any(out.iterdir()):
        if not overwrite:
            raise ValueError(f"{out} already holds files: choose another --out, or replace it with --overwrite")
        if not (out / "config.json").is_file():
            raise ValueError(f"{out} holds files but no config.json, so it is no checkpoint: choose another --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
        new, old = Path(scratch) / "new", Path(scratch) / "old"
        new.mkdir()
        yield new
        try:
            if out.exists():
                out.rename(old)
            new.rename(out)
        except BaseException:
            if old.exists() and not out.exists():
                old.rename(out)
            raise


# ---- demo ---------------------------------------------------------------------------------------------------------

def add_demo(commands) -> None:
    """The arguments of `prepare.py demo`."""
    about = ("The closed spoken domain as prepared data: questions in many voices, answers in one, their faces. Needs "
             "espeakng-loader, and flite or --answers. An interrupted one goes on; a second one does nothing.")
    command = commands.add_parser("demo", help="synthetic speech and faces for the mini model", description=about)
    command.set_defaults(command=make_demo)
    add = command.add_argument
    add("--out", default="data/demo", help="directory to write (default: %(default)s)")
    add("--seed", type=int, default=0, help="of held-out phrasings, voices and all else (default: %(default)s)")
    add("--size", choices=["small", "full"], default="full", help="small: to look at, a minute (default: %(default)s)")
    add("--answers", help="directory with shipped answers, units and faces: espeak-ng alone asks, flite is not needed "
                          "(default: mini/data where flite is not installed)")
    add("--list", action="store_true", help="only print every phrasing, its answer, its kind and its split")


def make_demo(args) -> None:
    """`prepare.py demo`. Raises ValueError or OSError; what was made until then is kept, and used the next time."""
    from toy.demo import command        # here, because other commands need neither the head nor the voices
    command(args)


# ---- the command --------------------------------------------------------------------------------------------------

def arguments() -> argparse.ArgumentParser:
    """The parser of the whole command line; a parsed one's `command` is the function that does the work."""
    parser = argparse.ArgumentParser(description="Fetch, convert and generate what the model needs.")
    commands = parser.add_subparsers(required=True, metavar="command")
    for add in (add_weights, add_demo):
        add(commands)
    return parser


def main(argv=None) -> None:
    args = arguments().parse_args(argv)
    with one_line_errors("interrupted: nothing was written, downloads are kept"):
        args.command(args)


if __name__ == "__main__":
    main()
