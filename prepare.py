"""Makes checkpoints and training data: fetches, converts and generates.

    python prepare.py weights --preset tiny --out checkpoints/tiny              random, no download, seconds
    python prepare.py weights --preset qwen3-8b --out checkpoints/qwen3-8b      fetched from Hugging Face
    python prepare.py weights --release DIR --out checkpoints/release           the official Ex-Omni release
    python prepare.py demo --out data/demo                                      synthetic speech: see toy/demo.py
    python prepare.py demo --answers mini/data                                  without flite: answers from files
    python prepare.py demo --list                                               all its questions, as jsonl
    python prepare.py corpus librispeech LibriSpeech --out data/libri           a public corpus: see corpora/
    python prepare.py corpus table recordings.csv --out data/mine               your own sound, texts and faces
    python prepare.py speak data/mine --tts "piper -m voice.onnx -f {out}"      answers spoken by any program
    python prepare.py units data/mine --checkpoint mini                         speech units of the answers
    python prepare.py label data/mine --teacher audio2face3d DIR                their faces

`weights` makes a checkpoint directory for `ExOmni.from_pretrained` (corpora/published.py). `demo` and `corpus` make
prepared data for `train.py` (data.py); `speak`, `units` and `label` add to it. Each command is a pair of functions: one
adds its arguments, one does the work.
"""
import shutil
import signal
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import cli                                                      # before torch, which takes seconds

import torch

import disk
import saving
from checkpoint import MODEL_TYPE, TOKENIZER_FILES, ExOmniConfig, preset
from corpora import hub, readers
from corpora.label import add_label
from corpora.published import LLMS, SOURCES, convert_published
from corpora.speak import add_speak
from corpora.tally import Tally
from corpora.units import add_units
from flow import CFMConfig, EncoderConfig, EstimatorConfig, FlowConfig, MatchingConfig
from hift import F0Config, HiFTConfig
from model import ExOmni
from speech_decoder import SpeechDecoder, SpeechDecoderConfig
from speech_tokenizer import SpeechTokenizer, SpeechTokenizerConfig
from tokenizer_files import write_tiny

# The files of a checkpoint. Others in its directory are never touched.
CHECKPOINT_FILES = ("model*.safetensors*", "config.json", "generation_config.json", hub.RECORD, *TOKENIZER_FILES,
                    "*.tiktoken", "speech_tokenizer/*", "speech_decoder/*")
# Speech tokenizer and decoder of the tiny preset, with as many units as PRESETS["tiny"] has.
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
             "directory; what none of them holds is newly initialised. sources.json in it says which commits were "
             "fetched.")
    command = commands.add_parser("weights", help="published weights to one checkpoint directory", description=about)
    command.set_defaults(command=make_weights, interrupted="nothing was written, downloads are kept")
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
    add("--revision", nargs="+", default=[], metavar="PART=COMMIT", help="what to fetch of a repository, a "
        "commit, tag or branch; PART is llm, speech-encoder, ... (default: the newest; with --overwrite it must be the "
        "one of before)")
    add("--seed", type=cli.seed, default=0, help="of newly initialised modules (default: %(default)s)")
    add("--overwrite", action="store_true", help="replace the checkpoint in --out, once the new one is complete")


def make_weights(args) -> None:
    """`prepare.py weights`. Raises ValueError or OSError and then writes nothing."""
    if args.preset is None and args.release is None:
        raise ValueError("give --preset, the size to make, or --release, an official checkpoint")
    if args.release is not None and args.llm is not None:
        raise ValueError("--release holds the language model too: give it or --llm, not both")
    config = None if args.preset is None else preset(args.preset)
    given = [part for part in ("llm", "release", *SOURCES) if getattr(args, part) != SOURCES.get(part)]
    given += ["revision"] * bool(args.revision)
    if args.preset == "tiny" and given:
        raise ValueError(f"the tiny preset is random and takes no {', '.join(given)}: choose another preset")
    out, tally = Path(args.out or f"checkpoints/{args.preset or 'release'}"), Tally()
    with building(out, args.overwrite) as new:
        if args.preset == "tiny":
            torch.manual_seed(args.seed)
            make_tiny(new, replace(config, dtype=args.dtype or config.dtype), tally)
        else:
            convert_published(new, args, tally, hub.read_record(out))
        size = sum(path.stat().st_size for path in new.rglob("*") if path.is_file())
    tally.print_new(1 if args.preset == "tiny" else 2)
    print(f"wrote {out} ({size / 1e6:,.1f} MB): {tally}")


def make_tiny(out: Path, config: ExOmniConfig, tally: Tally) -> None:
    """Write a complete checkpoint with random weights."""
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
    """Replace a checkpoint atomically. Yields an empty directory in `out`, which becomes the checkpoint at the end, or
    is removed if anything fails. At any time either the old or the new checkpoint is complete (saving.py). Raises
    ValueError where `out` holds files that must not be replaced, or where another process is writing there."""
    cli.check_directory(out)
    fresh, new = not out.exists(), out / ".saving"
    try:
        with disk.locked(out):
            finished = (out / ".saved").is_dir()
            saving.recover(out)
            if finished and is_checkpoint(out) and not trained(out):
                remove_previous(out)
                if not overwrite:
                    raise ValueError(f"{out} holds a whole checkpoint: the command that made it was killed in its last "
                                     "move, which is done now; --overwrite makes it again")
            check_replaceable(out, overwrite)
            new.mkdir()
            try:
                yield new
                handler = signal.signal(signal.SIGINT, signal.SIG_IGN)      # the move is short: let it finish
                try:
                    replace_checkpoint(out)
                finally:
                    signal.signal(signal.SIGINT, handler)
            except BaseException:
                shutil.rmtree(new, ignore_errors=True)                      # after its commit it has another name
                raise
    except BaseException:
        if fresh and out.is_dir() and not any(path.name != ".lock" for path in out.iterdir()):
            shutil.rmtree(out)
        raise


def check_replaceable(out: Path, overwrite: bool) -> None:
    """Raises ValueError where a directory holds files that a new checkpoint must not replace."""
    if not any(path.name != ".lock" for path in out.iterdir()):
        return
    if not overwrite:
        raise ValueError(f"{out} already holds files: choose another --out, or replace it with --overwrite")
    if not is_checkpoint(out):
        raise ValueError(f"{out} holds files but no checkpoint of this program: choose another --out")
    if trained(out):
        raise ValueError(f"{out} holds a checkpoint that was trained, which nothing brings back: choose another --out, "
                         "or remove it yourself")


def trained(out: Path) -> bool:
    """Whether the checkpoint was written by train.py."""
    return (out / "stages.json").exists() or saving.holds_training(out)


def is_checkpoint(directory: Path) -> bool:
    """Whether a directory holds a checkpoint of `weights`: our config.json, and weights or speech parts."""
    try:
        kind = disk.read_json(directory / "config.json").get("model_type")
    except (ValueError, OSError):
        return False
    parts = [directory / "speech_tokenizer" / "config.json", directory / "speech_decoder" / "config.json"]
    return kind == MODEL_TYPE and any(path.is_file() for path in [*directory.glob("model*.safetensors"), *parts])


def replace_checkpoint(out: Path) -> None:
    """Replace the checkpoint in `out` by out/.saving. Raises OSError."""
    found = [path.relative_to(out).as_posix() for pattern in CHECKPOINT_FILES for path in out.glob(pattern)]
    if found:                                                       # list them: commit moves the listed files
        disk.write_json(out / saving.FILES, {"files": sorted({*saving.files_of(out), *found})})
    saving.commit(out)
    remove_previous(out)


def remove_previous(out: Path) -> None:
    """Remove the replaced checkpoint, which commit has moved to out/previous."""
    previous = out / "previous"
    for name in [*saving.files_of(previous), saving.FILES]:
        (previous / name).unlink(missing_ok=True)
    saving.remove_empty(previous)


# ---- demo ---------------------------------------------------------------------------------------------------------

def add_demo(commands) -> None:
    """The arguments of `prepare.py demo`."""
    about = ("The closed spoken domain as prepared data: questions in many voices, answers in one, their faces. Needs "
             "espeakng-loader, and flite or --answers; more voices (README.md) are used where they are installed. An "
             "interrupted one goes on; a second one does nothing.")
    command = commands.add_parser("demo", help="synthetic speech and faces for the mini model", description=about)
    command.set_defaults(command=make_demo, interrupted="what was made is kept, the same command goes on from there")
    add = command.add_argument
    add("--out", default="data/demo", help="directory to write (default: %(default)s)")
    add("--seed", type=cli.seed, default=0, help="of held-out phrasings, voices and all else (default: %(default)s)")
    add("--size", choices=["small", "full"], default="full", help="small: to look at, a minute (default: %(default)s)")
    add("--answers", help="directory with shipped answers, units and faces: flite is not needed, what they lack is "
                          "left out (default: mini/data where flite is not installed)")
    add("--list", action="store_true", help="only print every phrasing, its answer, its kind and its split")


def make_demo(args) -> None:
    """`prepare.py demo`. Raises ValueError or OSError; the next run continues with the files made so far."""
    from toy.demo import command        # imported here: other commands need neither the head nor the voices
    command(args)


# ---- corpus -------------------------------------------------------------------------------------------------------

def add_corpus(commands) -> None:
    """The arguments of `prepare.py corpus`."""
    about = ("A public corpus, or recordings of your own, as prepared data. Uses all cores, skips and counts what is "
             "of no use. An interrupted one goes on.")
    command = commands.add_parser("corpus", help="a public corpus, or your own recordings", description=about)
    command.set_defaults(command=readers.command, interrupted="what was written is kept, the same command goes on")
    readers.add_arguments(command)


# ---- the command --------------------------------------------------------------------------------------------------

def arguments() -> cli.Parser:
    """The parser of the command line. Parsed arguments have `command`, the function that does the work, and
    `interrupted`, the message after Ctrl-C."""
    parser = cli.Parser(description="Fetch, convert and generate what the model needs.")
    commands = parser.add_subparsers(required=True, metavar="command")
    for add in (add_weights, add_demo, add_corpus, add_speak, add_units, add_label):
        add(commands)
    return parser


def main(argv=None) -> None:
    args = arguments().parse_args(argv)
    with cli.one_line_errors(f"interrupted: {args.interrupted}", args.debug):
        args.command(args)


if __name__ == "__main__":
    main()
