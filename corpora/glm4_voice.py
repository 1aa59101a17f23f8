"""GLM-4-Voice's tokenizer and decoder, as published -> a checkpoint's speech_tokenizer/ and speech_decoder/.

The tokenizer is a safetensors file whose names speech_tokenizer.py knows. The decoder is config.yaml (hyperpyyaml) with
flow.pt and hift.pt; they are read without importing or running anything that they name. Names of tensors:
docs/spec/glm4_voice.md 1.4, 2.7 and 3.3.
"""
import pickle
import re
import shutil
import zipfile
from pathlib import Path

import torch

import disk
import speech_tokenizer
import weights
from corpora.tally import Tally
from speech_decoder import SpeechDecoder
from speech_tokenizer import SpeechTokenizer


def convert_tokenizer(source: Path, out: Path, tally: Tally) -> int:
    """Write GLM-4-Voice's tokenizer to `out`, without what only its training needed. Returns the number of its units.

    One that we wrote is copied byte for byte, because prepared data knows its tokenizer by the file's checksum. Raises
    OSError or ValueError."""
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
    """Write GLM-4-Voice's decoder to `out`, its weight norm folded (docs/spec/glm4_voice.md 3.2). Returns the number of
    units it knows.

    source: config.yaml, flow.pt and hift.pt, or a speech_decoder directory of ours. Raises OSError or ValueError."""
    ours = (source / "flow.safetensors").is_file()
    if not ours:
        values = read_hyperpyyaml(source / "config.yaml")
        if not {"flow", "hift"} <= values.keys():
            raise ValueError(f"{source / 'config.yaml'} has {', '.join(values) or 'nothing'}, expected flow and hift")
        for part in ("flow", "hift"):
            state, ignored = read_pt(source / f"{part}.pt")
            weights.write_tensors(out / f"{part}.safetensors", state)
            tally.ignored += ignored
        disk.write_json(out / "config.json", {part: values[part] for part in ("flow", "hift")})
    try:
        decoder = SpeechDecoder.from_pretrained(source if ours else out)
    except ValueError as error:                             # it may name a file in `out`, which is about to vanish
        raise ValueError(f"the speech decoder {source} cannot be converted: {error}") from None
    tally.loaded += len(decoder.state_dict())
    if ours:
        copy(source, out, "config.json", "flow.safetensors", "hift.safetensors")
    else:
        decoder.save_pretrained(out)
    return decoder.config.flow.vocab_size


def copy(source: Path, out: Path, *names) -> None:
    """Copy files of one directory into another, which is made where it does not exist."""
    out.mkdir(parents=True, exist_ok=True)
    for name in names:
        shutil.copy(source / name, out)


# ---- .pt files ----------------------------------------------------------------------------------------------------

def read_pt(path: Path) -> tuple:
    """A torch file of tensors, bare or under "state_dict" or "model" -> ({name: tensor}, names of other entries, such
    as the epoch). Nothing but tensors is unpickled. Raises FileNotFoundError or ValueError."""
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


# ---- hyperpyyaml --------------------------------------------------------------------------------------------------

class Reference(str):
    """`<key>` or `<key[inner]>`: stands for another value of the same file."""


def read_hyperpyyaml(path: Path) -> dict:
    """A hyperpyyaml file as plain values: of `!new:class`, `!name:function` and `!apply:function` only the arguments
    remain, nothing is imported or called. Raises OSError or ValueError."""
    try:
        import yaml
    except ImportError:
        raise OSError(f"`pip install pyyaml` to read {path}") from None
    if not path.is_file():
        raise FileNotFoundError(f"{path} not found: it holds the sizes of the speech decoder, fetch it again")
    try:
        root = yaml.load(path.read_text(encoding="utf-8"), hyperpyyaml_loader(yaml))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid yaml ({' '.join(str(error).split())}): fetch it again") from None
    if not isinstance(root, dict):
        raise ValueError(f"{path} holds a yaml {type(root).__name__}, expected flow and hift")
    return resolve(root, root, path)


def hyperpyyaml_loader(yaml):
    """PyYAML's safe loader with hyperpyyaml's tags, each read as a `Reference` or as its arguments alone."""

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
    Loader.add_implicit_resolver("tag:yaml.org,2002:float",         # YAML 1.1 reads 1e-06, without a point, as a word
                                 re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789"))
    return Loader


def resolve(value, root: dict, path: Path):
    """`value` with each `Reference` in it replaced by what it stands for in `root`, the whole file at `path`. Raises
    ValueError for one that stands for nothing."""
    if isinstance(value, Reference):
        target = root
        for key in re.findall(r"[^<>\[\]]+", value):
            if not isinstance(target, dict) or key not in target:
                raise ValueError(f"{path} refers to {value}, which it does not hold")
            target = target[key]
        return resolve(target, root, path)
    if isinstance(value, dict):
        return {key: resolve(inner, root, path) for key, inner in value.items()}
    return [resolve(inner, root, path) for inner in value] if isinstance(value, list) else value
