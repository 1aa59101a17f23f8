"""Everything fetched, converted or generated: weights, published parts to one checkpoint directory; data, the demo set.

    python prepare.py weights --preset tiny --out checkpoints/tiny              random, no download, seconds
    python prepare.py weights --preset qwen3-8b --out checkpoints/qwen3-8b      fetched from Hugging Face
    python prepare.py weights --release DIR --out checkpoints/release           the official Ex-Omni release
    python prepare.py demo --out data/demo                                      synthetic speech, made here: see demo.py
    python prepare.py demo --answers mini/data                                  without flite: answers from a file
    python prepare.py demo --list                                               what one can ask, as jsonl

A checkpoint has the layout of the release (spec ex_omni 7) with the speech tokenizer and the speech decoder beside it;
`ExOmni.from_pretrained` opens it. Every tensor is accounted for. What no published model holds (projector, generator
parts, face decoder) starts from random weights: `train.py` is for that.
"""
import argparse
import pickle
import re
import shutil
import tempfile
import zipfile
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import torch
from tqdm import tqdm

import speech_tokenizer
import weights
from cli import one_line_errors
from flow import CFMConfig, EncoderConfig, EstimatorConfig, FlowConfig, MatchingConfig
from hift import F0Config, HiFTConfig
from model import TOKENIZER_FILES, ExOmni, ExOmniConfig, official_name, our_name, preset, write_checkpoint
from qwen3 import Qwen3Config
from speech_decoder import SpeechDecoder, SpeechDecoderConfig
from speech_tokenizer import SpeechTokenizer, SpeechTokenizerConfig
from tokenizer import Tokenizer, write_tiny
from whisper import WhisperConfig

# Where the parts come from unless the command line says otherwise: Hugging Face repositories.
LLMS = {"qwen3-0.6b": "Qwen/Qwen3-0.6B", "qwen3-1.7b": "Qwen/Qwen3-1.7B", "qwen3-4b": "Qwen/Qwen3-4B",
        "qwen3-8b": "Qwen/Qwen3-8B"}
SOURCES = {"speech_encoder": "openai/whisper-large-v3", "speech_generator": "Qwen/Qwen3-0.6B",
           "speech_tokenizer": "THUDM/glm-4-voice-tokenizer", "speech_decoder": "THUDM/glm-4-voice-decoder"}
# What is fetched of a repository. Whisper's also has the same weights in other types and frameworks.
WANTED = ["*.json", "merges.txt", "*.tiktoken", "model.safetensors", "model-*.safetensors", "config.yaml", "*.pt"]

# The random parts of the tiny preset; their units are those of PRESETS["tiny"].
TINY_TOKENIZER = SpeechTokenizerConfig(num_mel_bins=80, d_model=32, encoder_attention_heads=2, encoder_ffn_dim=64,
                                       quantize_position=2, pooling_position=2, quantize_vocab_size=96)
TINY_DECODER = SpeechDecoderConfig(
    FlowConfig(96, 32, encoder=EncoderConfig(32, 4, 64, 2),
               decoder=MatchingConfig(CFMConfig(), EstimatorConfig([32, 32], 1, 2, 2, 12))),
    HiFTConfig(base_channels=32, f0_predictor=F0Config(24)))


@dataclass
class Tally:
    """What became of every tensor."""
    loaded: int = 0
    ignored: list = field(default_factory=list)     # names in the files, dropped on purpose
    new: dict = field(default_factory=dict)         # our name -> parameters, newly initialised

    def __str__(self):
        ignored = f" ({weights.few(self.ignored, 2)})" if self.ignored else ""
        return f"loaded {self.loaded}, ignored {len(self.ignored)}{ignored}, newly initialised {len(self.new)}"

    def print_new(self, depth: int) -> None:
        """One line per newly initialised module, named by the first `depth` parts of its tensors' names."""
        modules = Counter()
        for name, parameters in self.new.items():
            modules[".".join(name.split(".")[:depth])] += parameters
        for name, parameters in modules.items():
            print(f"new  {name:<42}{parameters:>14,} parameters")


# ---- name maps: a file's tensor name -> our parameter name, None for what is dropped on purpose. A name that no
# ---- parameter has is reported as left over. The official release's is model.our_name.

def llm_name(name: str, tied: bool) -> str | None:
    """Hugging Face's Qwen3. Files of a tied model may hold the output matrix a second time."""
    if name == "lm_head.weight":
        return None if tied else name
    return "llm." + name.removeprefix("model.")


def encoder_name(name: str) -> str | None:
    """Whisper, with its output layer (`model.encoder.`) or without (`encoder.`); the decoder is not needed."""
    name = name.removeprefix("model.")
    return None if name.startswith(("decoder.", "proj_out.")) else "speech_encoder." + name.removeprefix("encoder.")


def backbone_name(name: str) -> str | None:
    """The Qwen3 that the speech generator starts from; units have an output matrix of their own."""
    return None if name == "lm_head.weight" else "speech_generator.llm." + name.removeprefix("model.")


# ---- sources ----------------------------------------------------------------------------------------------------

def fetch(source: str, wanted=WANTED) -> Path:
    """A local directory as it is, or else a Hugging Face repository, downloaded into the hub's cache: what was
    fetched before, even in part, is not fetched again. Raises OSError with a hint where neither can be had."""
    if Path(source).is_dir():
        return Path(source)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        raise FileNotFoundError(f"{source} is not a directory here, nor is it named like a repository, owner/name")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise OSError(f"{source} is not a directory here: `pip install huggingface_hub` to download it") from None
    try:
        return Path(snapshot_download(source, allow_patterns=list(wanted)))
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise OSError(f"{source} is not a directory here and could not be downloaded ({reason}): give a local "
                      "directory, or run again to resume") from None


def tensor_files(directory: Path) -> list:
    """The safetensors files of a checkpoint, as Hugging Face names them."""
    whole = directory / "model.safetensors"
    files = [whole] if whole.is_file() else sorted(directory.glob("model-*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{directory} has no model.safetensors nor model-*.safetensors: fetch it again")
    return files


def published_config(base: ExOmniConfig, llm: Path, encoder: Path, generator: Path, units: int) -> ExOmniConfig:
    """The preset's own parts around the geometry of the published ones. Raises ValueError where they do not fit."""
    values, heard = weights.read_json(llm / "config.json"), weights.read_json(encoder / "config.json")
    missing = [f.name for f in fields(WhisperConfig) if f.name not in heard]
    if missing:
        raise ValueError(f"{encoder / 'config.json'} is not a Whisper config: missing {', '.join(missing)}")
    text = Qwen3Config.from_dict(values, str(llm / "config.json"))
    backbone = Qwen3Config.from_dict(weights.read_json(generator / "config.json"), str(generator / "config.json"))
    if text.vocab_size != backbone.vocab_size:
        raise ValueError(f"{llm} has {text.vocab_size} token ids, the speech generator's {generator} has "
                         f"{backbone.vocab_size}: expected the same, it reads the language model's ids")
    path = llm / "generation_config.json"
    generation = weights.read_json(path) if path.is_file() else {}
    stop = generation.get("eos_token_id", values.get("eos_token_id"))
    stop = base.stop_ids if stop is None else tuple(stop) if isinstance(stop, list) else (stop,)
    whisper = WhisperConfig(**{f.name: heard[f.name] for f in fields(WhisperConfig)})
    speaker = replace(base.generator, llm=backbone, unit_vocab=units)
    face = replace(base.face, state_dim=backbone.hidden_size, unit_vocab=units)
    dtype = values.get("torch_dtype") or values.get("dtype") or "float32"
    return replace(base, llm=text, speech_encoder=whisper, generator=speaker, face=face, stop_ids=stop,
                   top_p=generation.get("top_p") or 1.0, dtype=dtype)


def release_config(release: Path, encoder: str, generator: str) -> ExOmniConfig:
    """The official config.json. Where the directories it names for the geometry of Whisper and of the generator's
    backbone did not come along, `encoder` and `generator` give it."""
    values, given = weights.read_json(release / "config.json"), {}
    for ours, named, source in (("speech_encoder_config", "pretrain_speech_encoder_weights", encoder),
                                ("speech_generator_config", "pretrain_speech_generator_weights", generator)):
        if ours not in values and not (release / str(values.get(named)) / "config.json").is_file():
            given[ours] = weights.read_json(fetch(source, ["config.json"]) / "config.json")
    return ExOmniConfig.from_dir(release, given)


# ---- the model --------------------------------------------------------------------------------------------------

def fresh(config: ExOmniConfig, seed: int) -> dict:
    """Name -> random tensor of what no published model holds, from modules whose backbones have no layers."""
    def hollow(llm):
        return replace(llm, num_hidden_layers=0, vocab_size=1)

    torch.manual_seed(seed)
    generator = replace(config.generator, llm=hollow(config.generator.llm))
    encoder = replace(config.speech_encoder, encoder_layers=0)
    return ExOmni(replace(config, llm=hollow(config.llm), generator=generator, speech_encoder=encoder)).state_dict()


def convert(out: Path, config: ExOmniConfig, sources: list, seed: int, tally: Tally) -> None:
    """Write config.json and the model's tensors, shard by shard: one shard is all that memory holds of them.

    sources: (directory, prefixes of the parameters it gives, name map). Parameters of no source are initialised.
    Raises ValueError, before anything is written, for tensors that are missing, left over or of another shape.
    """
    dtype = getattr(torch, config.dtype)
    with weights.shapes_only():
        target = ExOmni(config).to(dtype).state_dict()
    origin = {}                                             # our name -> (file, name in the file)
    for directory, prefixes, rename in sources:
        part = {name: t for name, t in target.items() if name.startswith(prefixes)}
        found = {path: weights.shapes(path) for path in tensor_files(directory)}
        matched, dropped = weights.plan(part, found, rename, str(directory))
        origin |= {name: (path, stored) for path, names in matched.items() for stored, name in names.items()}
        tally.ignored += dropped
    missing = [name for name in target if name not in origin]
    new = fresh(config, seed) if missing else {}
    tally.loaded += len(origin)
    tally.new |= {name: target[name].numel() for name in missing}

    bar = tqdm(total=sum(target[name].nbytes for name in origin), unit="B", unit_scale=True, desc="converting",
               disable=None)                                # no bar in a log file

    def read(shard) -> dict:
        tensors = {official_name(name): new[name].to(dtype) for name in missing if official_name(name) in shard}
        files = {}
        for name, (path, stored) in origin.items():
            if official_name(name) in shard:
                files.setdefault(path, {})[stored] = official_name(name)
        for path, names in files.items():
            for stored, tensor in weights.stream(path, names):
                tensors[names[stored]] = tensor.to(dtype, copy=True)
                bar.update(tensors[names[stored]].nbytes)
        return tensors

    with bar:
        write_checkpoint(out, config, {official_name(name): tensor for name, tensor in target.items()}, read)


def copy_tokenizer(source: Path, out: Path, vocab: int) -> None:
    files = [path for name in (*TOKENIZER_FILES, "*.tiktoken") for path in source.glob(name)]
    if not files:
        print(f"note: {source} has no tokenizer files, the checkpoint will take token ids only")
        return
    size = Tokenizer.from_pretrained(source).n_vocab
    if size > vocab:
        raise ValueError(f"the tokenizer in {source} has {size} ids, its model {vocab}: these do not belong together")
    for path in files:
        shutil.copy(path, out)


def copy(source: Path, out: Path, *names) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for name in names:
        shutil.copy(source / name, out)


# ---- speech tokenizer and speech decoder ------------------------------------------------------------------------

def convert_tokenizer(source: Path, out: Path, tally: Tally) -> int:
    """GLM-4-Voice's tokenizer, without what only its training needed; one of ours byte for byte, for data prepared with
    it know it by its file. Returns the number of its units."""
    tokenizer = SpeechTokenizer.from_pretrained(source)
    stored = weights.shapes(source / "model.safetensors")
    tally.loaded += len(tokenizer.state_dict())
    tally.ignored += [name for name in stored if speech_tokenizer.rename(name, tokenizer.config) is None]
    if stored.keys() == tokenizer.state_dict().keys():
        copy(source, out, "config.json", "model.safetensors")
    else:
        tokenizer.save_pretrained(out)
    return tokenizer.config.quantize_vocab_size


def convert_decoder(source: Path, out: Path, tally: Tally) -> int:
    """GLM-4-Voice's decoder: config.yaml, flow.pt and hift.pt, or a speech_decoder directory of ours. Weight norm is
    folded. Returns the number of units it knows. Raises OSError or ValueError."""
    ours = (source / "flow.safetensors").is_file()
    if not ours:
        values = read_hyperpyyaml(source / "config.yaml")
        if not {"flow", "hift"} <= values.keys():
            raise ValueError(f"{source / 'config.yaml'} has {', '.join(values) or 'nothing'}, expected flow and hift")
        for part in ("flow", "hift"):
            state, ignored = read_pt(source / f"{part}.pt")
            weights.write_tensors(out / f"{part}.safetensors", state)
            tally.ignored += ignored
        weights.write_json(out / "config.json", {part: values[part] for part in ("flow", "hift")})
    try:
        decoder = SpeechDecoder.from_pretrained(source if ours else out)
    except ValueError as error:                             # may speak of the copy in `out`, which is about to vanish
        raise ValueError(f"the speech decoder {source} cannot be converted: {error}") from None
    tally.loaded += len(decoder.state_dict())
    if ours:
        copy(source, out, "config.json", "flow.safetensors", "hift.safetensors")
    else:
        decoder.save_pretrained(out)
    return decoder.config.flow.vocab_size


def read_pt(path: Path) -> tuple:
    """A torch file of tensors, bare or under "state_dict" or "model" -> name -> tensor, and the names of other entries
    (epoch, step). Nothing but tensors is unpickled. Raises FileNotFoundError or ValueError."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} not found: expected config.yaml, flow.pt and hift.pt")
    try:                                                    # the older of torch's two formats cannot be mapped
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        code = re.search(r"GLOBAL (\S+)", str(error))
        problem = f"holds code ({code[1]}), not only tensors: it was not run, use another file" if code else \
            "is not a complete torch file: fetch it again"
        raise ValueError(f"{path} {problem}") from None
    for key in ("state_dict", "model"):
        state = state.get(key, state) if isinstance(state, dict) else state
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds a {type(state).__name__}, expected a dict of tensors")
    tensors = {name: value.clone() for name, value in state.items() if isinstance(value, torch.Tensor)}
    return tensors, [str(name) for name in state if name not in tensors]


class Reference(str):
    """`<key>` or `<key[inner]>`: stands for another value of the same hyperpyyaml file."""


def read_hyperpyyaml(path: Path) -> dict:
    """A hyperpyyaml file as plain values: of `!new:class`, `!name:function` and `!apply:function` only the arguments
    remain, nothing is imported or called. Raises FileNotFoundError or ValueError."""
    try:
        import yaml
    except ImportError:
        raise OSError(f"`pip install pyyaml` to read {path}") from None

    def tagged(loader, tag, node):
        if tag == "ref":
            return Reference(node.value)
        if isinstance(node, yaml.MappingNode):
            values = loader.construct_mapping(node, deep=True)
            return values.get("content", values) if tag == "new:omegaconf.DictConfig" else values
        return loader.construct_sequence(node, deep=True) if isinstance(node, yaml.SequenceNode) else node.value

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_multi_constructor("!", tagged)
    Loader.add_implicit_resolver("tag:yaml.org,2002:float",         # YAML 1.1 takes 1e-06, without a point, for a word
                                 re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789"))
    if not path.is_file():
        raise FileNotFoundError(f"{path} not found: it holds the sizes of the speech decoder, fetch it again")
    try:
        root = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid yaml ({' '.join(str(error).split())}): fetch it again") from None
    if not isinstance(root, dict):
        raise ValueError(f"{path} holds a yaml {type(root).__name__}, expected flow and hift")

    def resolve(value):
        if isinstance(value, Reference):
            target = root
            for key in re.findall(r"[^<>\[\]]+", value):
                if not isinstance(target, dict) or key not in target:
                    raise ValueError(f"{path} refers to {value}, which it does not hold")
                target = target[key]
            return resolve(target)
        if isinstance(value, dict):
            return {key: resolve(inner) for key, inner in value.items()}
        return [resolve(inner) for inner in value] if isinstance(value, list) else value

    return resolve(root)


# ---- the command ------------------------------------------------------------------------------------------------

@contextmanager
def building(out: Path, overwrite: bool):
    """Yield an empty directory that takes the place of `out` at the end, or vanishes if anything fails. What stood
    there before is removed last. Raises ValueError where `out` holds files that are not to be replaced."""
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


def make_published(new: Path, args, tally: Tally) -> None:
    """Published parts, or the official release, to a checkpoint."""
    names = {part: getattr(args, part) for part in SOURCES}
    if args.release is None:
        if args.llm is None and args.preset not in LLMS:
            raise ValueError(f"preset {args.preset!r} has no language model to fetch: give --llm")
        names = {"llm": args.llm or LLMS[args.preset]} | names
    else:
        names = {"release": args.release} | names
    for part, source in names.items():
        print(f"{part:<18}{source}")
    text = fetch(names.get("llm") or args.release)
    voice, ears = fetch(args.speech_decoder), fetch(args.speech_tokenizer)
    if args.release is None:
        encoder, generator = fetch(args.speech_encoder), fetch(args.speech_generator)
    known = convert_decoder(voice, new / "speech_decoder", tally)
    units = convert_tokenizer(ears, new / "speech_tokenizer", tally)
    if args.release is None:
        config = published_config(preset(args.preset), text, encoder, generator, units)
        sources = [(text, ("llm.", "lm_head."), lambda name: llm_name(name, config.llm.tie_word_embeddings)),
                   (encoder, ("speech_encoder.",), encoder_name),
                   (generator, ("speech_generator.llm.",), backbone_name)]
    else:
        config = release_config(text, args.speech_encoder, args.speech_generator)
        sources = [(text, ("",), lambda name: our_name(name, config.llm.tie_word_embeddings))]
    if not units <= config.generator.unit_vocab <= known:
        raise ValueError(f"the speech tokenizer has {units} units, the generator {config.generator.unit_vocab}, the "
                         f"speech decoder {known}: these do not belong together")
    config = replace(config, dtype=args.dtype or config.dtype)
    print(f"{'dtype':<18}{config.dtype}\n{'seed':<18}{args.seed}")
    copy_tokenizer(text, new, config.llm.vocab_size)
    convert(new, config, sources, args.seed, tally)


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
            make_published(new, args, tally)
        size = sum(path.stat().st_size for path in new.rglob("*") if path.is_file())
    tally.print_new(1 if args.preset == "tiny" else 2)
    print(f"wrote {out} ({size / 1e6:,.1f} MB): {tally}")


def make_demo(args) -> None:
    """`prepare.py demo`."""
    from toy.demo import command        # here, because other commands need neither the head nor the voices
    command(args)


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Fetch, convert and generate what the model needs.")
    commands = parser.add_subparsers(required=True, metavar="command")
    about = ("Published weights to one checkpoint directory. A source is a Hugging Face repository or a local "
             "directory; what none of them holds is newly initialised.")
    command = commands.add_parser("weights", help="published weights to one checkpoint directory", description=about)
    command.set_defaults(run=make_weights)
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

    about = ("The closed spoken domain as prepared data: questions in many voices, answers in one, their faces. Needs "
             "espeakng-loader, and flite or --answers. A run that was interrupted goes on; a second one does nothing.")
    command = commands.add_parser("demo", help="synthetic speech and faces for the mini model", description=about)
    command.set_defaults(run=make_demo)
    add = command.add_argument
    add("--out", default="data/demo", help="directory to write (default: %(default)s)")
    add("--seed", type=int, default=0, help="of held-out phrasings, voices and all else (default: %(default)s)")
    add("--size", choices=["small", "full"], default="full", help="small: to look at, a minute (default: %(default)s)")
    add("--answers", help="directory with shipped answers, units and faces: espeak-ng alone asks, flite is not needed "
                          "(default: mini/data where flite is not installed)")
    add("--list", action="store_true", help="only print every phrasing, its answer, its kind and its split")
    return parser


def main(argv=None) -> None:
    args = arguments().parse_args(argv)
    with one_line_errors("interrupted: nothing was written, downloads are kept"):
        args.run(args)


if __name__ == "__main__":
    main()
