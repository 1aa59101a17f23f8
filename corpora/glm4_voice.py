"""GLM-4-Voice's published tokenizer and decoder -> a checkpoint's speech_tokenizer/ and speech_decoder/.

The tokenizer is a safetensors file; speech_tokenizer.py maps its names. The decoder is config.yaml (hyperpyyaml) with
flow.pt and hift.pt, which are read without importing or running the code that they name. Names of tensors:
docs/spec/glm4_voice.md 1.4, 2.7 and 3.3.
"""
import itertools
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

# Limits for config.yaml; the published one is a few pages.
YAML_BYTES, YAML_VALUES, YAML_DEPTH = 100_000, 10_000, 50
SHARED = 4                      # names that may share one tensor of a .pt file; each becomes a copy in memory


def convert_tokenizer(source: Path, out: Path, tally: Tally) -> int:
    """Write GLM-4-Voice's tokenizer to `out`, without tensors of its training. Returns the number of its units.

    One that we wrote is copied byte for byte, as prepared data records the file's checksum. Raises OSError or
    ValueError."""
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
    """Write GLM-4-Voice's decoder to `out`, its weight norm folded (docs/spec/glm4_voice.md 3.2). Returns the size of
    its unit table.

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
    except ValueError as error:                             # it may name a file in `out`, which will be removed
        raise ValueError(f"the speech decoder {source} cannot be converted: {error}") from None
    tally.loaded += len(decoder.state_dict())
    if ours:
        copy(source, out, "config.json", "flow.safetensors", "hift.safetensors")
    else:
        decoder.save_pretrained(out)
    return decoder.config.flow.vocab_size


def copy(source: Path, out: Path, *names) -> None:
    """Copy files of one directory into another, which is made if it does not exist."""
    out.mkdir(parents=True, exist_ok=True)
    for name in names:
        shutil.copy(source / name, out)


# ---- .pt files ----------------------------------------------------------------------------------------------------

def read_pt(path: Path) -> tuple:
    """A torch file of tensors, maybe under "state_dict" or "model" -> ({name: tensor}, names of other entries, such as
    the epoch). Only tensors are unpickled, and memory is limited by the size of the file. Raises FileNotFoundError or
    ValueError."""
    size = disk.regular(path, "config.yaml, flow.pt and hift.pt").stat().st_size
    try:
        mapped = zipfile.is_zipfile(path)                   # torch's older format cannot be memory-mapped
        if mapped:
            with zipfile.ZipFile(path) as archive:          # torch never compresses, and does not verify checksums
                members = archive.infolist()
                large = sum(member.file_size for member in members) > size
                if large or any(member.compress_type for member in members) or archive.testzip():
                    raise ValueError("a compressed or damaged member")
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:                              # a damaged pickle raises any kind
        code = re.search(r"GLOBAL (\S+)", str(error))
        problem = f"holds code ({code[1]}), not only tensors: it was not run, use another file" if code else \
            "is not a complete torch file: fetch it again"
        raise ValueError(f"{path} {problem}") from None
    for key in ("state_dict", "model"):
        state = state.get(key, state) if isinstance(state, dict) else state
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds a {type(state).__name__}, expected a dict of tensors")
    tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
    for name, tensor in tensors.items():
        if not isinstance(name, str) or tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise ValueError(f"{path}: {name!r} is {tensor.layout} on {tensor.device}, expected a name and an ordinary "
                             "tensor")
    if sum(tensor.nbytes for tensor in tensors.values()) > SHARED * size:
        raise ValueError(f"{path} has tensors larger than itself: it is damaged, fetch it again")
    return ({name: tensor.clone() for name, tensor in tensors.items()},
            [str(name) for name in state if name not in tensors])


# ---- hyperpyyaml --------------------------------------------------------------------------------------------------

class Reference(str):
    """`<key>` or `<key[inner]>`: a reference to another value of the same file."""


def read_hyperpyyaml(path: Path) -> dict:
    """A hyperpyyaml file as plain values. `!new:class`, `!name:function` and `!apply:function` become their arguments;
    nothing is imported or called. Raises OSError or ValueError."""
    try:
        import yaml
    except ImportError:
        raise OSError(f"`pip install pyyaml` to read {path}") from None
    size = disk.regular(path, "the sizes of the speech decoder, as published").stat().st_size
    if size > YAML_BYTES:
        raise ValueError(f"{path} has {size} bytes, expected at most {YAML_BYTES}: is it the decoder's config.yaml?")
    try:
        root = yaml.load(path.read_text(encoding="utf-8-sig"), hyperpyyaml_loader(yaml))
    except Exception as error:                            # PyYAML's own classes, and others for odd scalars
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ValueError(f"{path} is not valid yaml ({reason}): fetch it again") from None
    if not isinstance(root, dict):
        raise ValueError(f"{path} holds a yaml {type(root).__name__}, expected flow and hift")
    return resolve(root, path)


def hyperpyyaml_loader(yaml):
    """PyYAML's safe loader with hyperpyyaml's tags, which become a `Reference` or their arguments."""

    def tagged(loader, tag, node):
        if tag == "ref":
            return Reference(node.value)
        if isinstance(node, yaml.MappingNode):
            values = loader.construct_mapping(node, deep=True)
            return values.get("content", values) if tag == "new:omegaconf.DictConfig" else values
        return loader.construct_sequence(node, deep=True) if isinstance(node, yaml.SequenceNode) else node.value

    class Loader(yaml.SafeLoader):
        def compose_node(self, parent, index):
            """Refuses aliases (`*name`): ten lines of them can expand to more values than memory holds."""
            if self.check_event(yaml.AliasEvent):
                alias = self.peek_event()
                raise yaml.YAMLError(f"alias *{alias.anchor} in line {alias.start_mark.line + 1}, expected the values "
                                     "themselves")
            return super().compose_node(parent, index)

    Loader.add_multi_constructor("!", tagged)
    Loader.add_implicit_resolver("tag:yaml.org,2002:float",         # YAML 1.1 reads 1e-06, without a point, as text
                                 re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789"))
    return Loader


def resolve(root: dict, path: Path) -> dict:
    """The values with each `Reference` replaced by its target. Raises ValueError for one without a target, one that
    refers to itself, or too many values. path: for messages."""
    values = itertools.count()

    def walk(value, depth=0):
        if depth > YAML_DEPTH or next(values) > YAML_VALUES:
            raise ValueError(f"{path} refers to itself, or is nested deeper than {YAML_DEPTH}, or has more than "
                             f"{YAML_VALUES} values: is it the decoder's config.yaml?")
        if isinstance(value, Reference):
            target = root
            for key in re.findall(r"[^<>\[\]]+", value):
                if not isinstance(target, dict) or key not in target:
                    raise ValueError(f"{path} refers to {value}, which it does not hold")
                target = target[key]
            return walk(target, depth + 1)
        if isinstance(value, dict):
            return {key: walk(inner, depth + 1) for key, inner in value.items()}
        return [walk(inner, depth + 1) for inner in value] if isinstance(value, list) else value

    return walk(root)
