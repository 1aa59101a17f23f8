"""Published weights -> one checkpoint directory: Qwen3, Whisper and GLM-4-Voice, or the official Ex-Omni release.

The layout is the release's (docs/spec/ex_omni.md 7) plus speech_tokenizer/ and speech_decoder/;
`ExOmni.from_pretrained` opens it. Every tensor is accounted for. Parts that no published model has (projector, parts of
the generator, face decoder) get random weights, for `train.py` to train.
"""
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

import disk
import weights
from checkpoint import (TOKENIZER_FILES, ExOmniConfig, dtype_of, generation_fields, official_name, open_tokenizer,
                        our_name, preset, read_config, write_checkpoint)
from corpora import hub
from corpora.glm4_voice import convert_decoder, convert_tokenizer
from corpora.tally import Tally
from model import ExOmni
from qwen3 import Qwen3Config
from whisper import WhisperConfig

# Default sources of the parts: Hugging Face repositories.
LLMS = {"qwen3-0.6b": "Qwen/Qwen3-0.6B", "qwen3-1.7b": "Qwen/Qwen3-1.7B", "qwen3-4b": "Qwen/Qwen3-4B",
        "qwen3-8b": "Qwen/Qwen3-8B"}
SOURCES = {"speech_encoder": "openai/whisper-large-v3", "speech_generator": "Qwen/Qwen3-0.6B",
           "speech_tokenizer": "THUDM/glm-4-voice-tokenizer", "speech_decoder": "THUDM/glm-4-voice-decoder"}


def convert_published(out: Path, args, tally: Tally, before: dict) -> None:
    """Write a checkpoint to the empty directory `out` from published parts, or from the official release.

    args: the command line of `prepare.py weights`: preset, llm, release, the parts of SOURCES, revision, dtype, seed.
    before: hub.read_record of the checkpoint that is replaced. Raises ValueError or OSError."""
    names = {part: getattr(args, part) for part in SOURCES}
    if args.release is None:
        if args.llm is None and args.preset not in LLMS:
            raise ValueError(f"preset {args.preset!r} has no language model to fetch: give --llm")
        names = {"llm": args.llm or LLMS[args.preset]} | names
    else:
        names = {"release": args.release} | names
    asked, record = hub.revisions(args.revision, names), {}

    def fetch(part, wanted=hub.WANTED):
        return hub.fetch(part, names[part], asked.get(part), before, record, wanted)

    text = fetch("llm" if args.release is None else "release")
    decoder, tokenizer = fetch("speech_decoder"), fetch("speech_tokenizer")
    if args.release is None:
        encoder, generator = fetch("speech_encoder"), fetch("speech_generator")
    known = convert_decoder(decoder, out / "speech_decoder", tally)
    units = convert_tokenizer(tokenizer, out / "speech_tokenizer", tally)
    if args.release is None:
        config = published_config(preset(args.preset), text, encoder, generator, units)
        sources = [(text, ("llm.", "lm_head."), lambda name: llm_name(name, config.llm.tie_word_embeddings)),
                   (encoder, ("speech_encoder.",), encoder_name),
                   (generator, ("speech_generator.llm.",), backbone_name)]
    else:
        config = release_config(text, partial(fetch, wanted=["config.json"]))
        sources = [(text, ("",), lambda name: our_name(name, config.llm.tie_word_embeddings))]
    if not units == config.generator.unit_vocab == known:
        raise ValueError(f"the speech tokenizer has {units} units, the generator {config.generator.unit_vocab}, the "
                         f"speech decoder {known}: these do not belong together")
    config = replace(config, dtype=args.dtype or config.dtype)
    print(f"{'dtype':<18}{config.dtype}\n{'seed':<18}{args.seed}")
    copy_tokenizer(text, out, config)
    convert(out, config, sources, args.seed, tally)
    if record:
        disk.write_json(out / hub.RECORD, record)


# ---- name maps: a file's tensor name -> our parameter name, or None to drop it on purpose. A result that is no
# ---- parameter is reported as left over. The official release's map is checkpoint.our_name.

def llm_name(name: str, tied: bool) -> str | None:
    """Hugging Face's Qwen3. Files of a model with tied embeddings may hold the output matrix a second time."""
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


# ---- configurations -----------------------------------------------------------------------------------------------

def published_config(base: ExOmniConfig, llm: Path, encoder: Path, generator: Path, units: int) -> ExOmniConfig:
    """The preset with the sizes of the published parts. Raises ValueError if they do not fit together."""
    values = read_config(llm)
    text = Qwen3Config.from_dict(values, llm / "config.json")
    backbone = Qwen3Config.from_dict(read_config(generator), generator / "config.json")
    if text.vocab_size != backbone.vocab_size:
        raise ValueError(f"{llm} has {text.vocab_size} token ids, the speech generator's {generator} has "
                         f"{backbone.vocab_size}: expected the same, it reads the language model's ids")
    return replace(
        base, llm=text,
        speech_encoder=WhisperConfig.from_dict(read_config(encoder), encoder / "config.json"),
        generator=replace(base.generator, llm=backbone, unit_vocab=units),
        face=replace(base.face, state_dim=backbone.hidden_size, unit_vocab=units),
        **generation_fields(llm, values, text.vocab_size), dtype=dtype_of(values, llm / "config.json"))


def release_config(release: Path, fetch) -> ExOmniConfig:
    """The official config.json. It names directories with the sizes of Whisper and of the generator's backbone; if they
    are missing, fetch(part) returns a directory with a config.json."""
    values, given = read_config(release), {}
    for ours, named, part in (("speech_encoder_config", "pretrain_speech_encoder_weights", "speech_encoder"),
                              ("speech_generator_config", "pretrain_speech_generator_weights", "speech_generator")):
        if ours not in values and not (release / str(values.get(named)) / "config.json").is_file():
            given[ours] = read_config(fetch(part))
    return ExOmniConfig.from_dir(release, given)


def copy_tokenizer(source: Path, out: Path, config: ExOmniConfig) -> None:
    """Copy the text tokenizer's files, or print a note if there are none. Raises ValueError if the tokenizer does not
    fit the language model."""
    files = [path for name in (*TOKENIZER_FILES, "*.tiktoken") for path in source.glob(name)]
    if not files:
        print(f"note: {source} has no tokenizer files, the checkpoint will take token ids only")
        return
    open_tokenizer(source, config)
    for path in files:
        shutil.copy(path, out)


# ---- the model ----------------------------------------------------------------------------------------------------

def convert(out: Path, config: ExOmniConfig, sources: list, seed: int, tally: Tally) -> None:
    """Write config.json and the model's tensors, with one shard in memory at a time.

    sources: (directory, prefixes of the parameters in it, name map). Parameters without a source are initialised.
    Raises ValueError, before anything is written, for tensors that are missing, left over or of another shape.
    """
    dtype = getattr(torch, config.dtype)
    target = weights.skeleton(lambda: ExOmni(config), dtype, sources[0][0] / "config.json").state_dict()
    origin = {}                                             # our name -> (file, name in the file)
    for directory, prefixes, rename in sources:
        part = {name: t for name, t in target.items() if name.startswith(prefixes)}
        found = {path: weights.shapes(path) for path in weights.files(directory)}
        if config.llm.tie_word_embeddings:
            weights.check_tied(found, rename)
        matched, dropped = weights.plan(part, found, rename, str(directory))
        origin |= {name: (path, stored) for path, names in matched.items() for stored, name in names.items()}
        tally.ignored += dropped
    missing = [name for name in target if name not in origin]
    new = random_tensors(config, seed) if missing else {}
    tally.loaded += len(origin)
    tally.new |= {name: target[name].numel() for name in missing}

    bar = tqdm(total=sum(target[name].nbytes for name in origin), unit="B", unit_scale=True, desc="converting",
               disable=None)                                # None: no bar in a log file

    def read(shard) -> dict:
        """The tensors of a shard, by their official names."""
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


def random_tensors(config: ExOmniConfig, seed: int) -> dict:
    """{our name: random tensor} of the unpublished parts, from a model whose backbones have no layers."""
    def without_layers(llm):
        return replace(llm, num_hidden_layers=0, vocab_size=1)

    torch.manual_seed(seed)
    generator = replace(config.generator, llm=without_layers(config.generator.llm))
    encoder = replace(config.speech_encoder, encoder_layers=0)
    model = ExOmni(replace(config, llm=without_layers(config.llm), generator=generator, speech_encoder=encoder))
    return model.state_dict()
