"""Loading and saving of safetensors: strict and memory-mapped.

Files are memory-mapped, each tensor is copied once into its parameter, and mappings are reopened regularly, so that
loading needs little more memory than the model itself. A tensor that is missing, left over, of another shape or not of
floating point numbers is an error, raised before memory is allocated.

Files written here have a checksum of each tensor in their metadata, so that a single flipped bit is an error. In other
files only regions that were never written (zeros, after an interrupted download) are detected.
"""
import json
import os
import re
import warnings
import zlib
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.overrides import TorchFunctionMode

import disk

FLOATS = ("F32", "BF16", "F16", "F64")
# Parts of tensor names in files that cannot be loaded -> what such a file is.
FOREIGN = {"lora_A": "a LoRA adapter, to be merged into its model first", "qweight": "quantised with AWQ or GPTQ",
           "weight_scale_inv": "quantised to FP8", "weight_scale": "quantised to FP8 or int8",
           "weight_packed": "quantised with compressed-tensors", "W_q": "quantised with HQQ",
           "absmax": "quantised with bitsandbytes", "SCB": "quantised with bitsandbytes",
           "weight_format": "quantised with bitsandbytes"}
# File names' endings of weights in other formats -> what to do with them.
OTHERS = {".gguf": "made for llama.cpp: fetch the safetensors of the model that it was made from",
          ".bin": "torch's own format: convert it to safetensors, or fetch those",
          ".pt": "torch's own format: convert it to safetensors, or fetch those",
          ".pth": "torch's own format: convert it to safetensors, or fetch those",
          ".h5": "Keras's: fetch the safetensors", ".msgpack": "Flax's: fetch the safetensors",
          ".onnx": "a graph of operations: fetch the safetensors",
          ".safetensors": "named otherwise: rename it to model.safetensors if it holds the whole model"}
UNWRITTEN = "was its download or copy interrupted? Fetch it again"
TRAINERS = "training_args|optimizer|scheduler|scaler|rng_state"     # files with OTHERS' endings that are no weights
ZEROS = ("pos_bias_u", "pos_bias_v", "embed_positions2.weight")     # matrices that may be zero: initialised so here
TABLES = ("embed", "codebook")      # tables with unused rows, which may be zero
PLACES, HOLE = 64, 4     # samples taken of a matrix; so many consecutive ones of zeros: it was not fully written
TAIL_BYTES = 1 << 16     # so many zeros at the end of a file: likewise
PAGE = 4096              # bytes that are summed before the CRC
MAPPED_BYTES = 16 << 20  # a mapping is reopened after so many bytes: its pages count as memory of this process


def write_tensors(path, tensors: dict) -> None:
    """Write name -> tensor as safetensors, atomically. Raises OSError, for example on a full disk."""
    tensors = {name: t.detach().contiguous() for name, t in tensors.items()}
    sums = json.dumps({name: checksum(t) for name, t in tensors.items()})
    with disk.replacing(path) as temporary:
        try:
            save_file(tensors, temporary, {"format": "pt", "checksums": sums})
        except SafetensorError as error:
            raise OSError(f"{path} could not be written ({error})") from None
        with open(temporary, "r+b") as file:                # sort the metadata: the same tensors give the same file
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
            header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
            file.seek(8)
            file.write(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(size))


def checksum(tensor) -> int:
    """CRC-32 of the sums of each 4 KiB of a tensor. It adds a few percent to the time of loading; a CRC of all bytes
    would triple it."""
    data = tensor.cpu().reshape(-1).view(torch.uint8).numpy()
    whole = len(data) // PAGE * PAGE
    return zlib.crc32(data[whole:], zlib.crc32(data[:whole].view("<u8").reshape(-1, PAGE // 8).sum(1)))


@contextmanager
def opened(path):
    """safe_open, which memory-maps the file, with readable errors. Raises OSError or ValueError."""
    path = disk.regular(path, "a safetensors file")
    try:
        handle = safe_open(path, framework="pt")
    except SafetensorError as error:
        with open(path, "rb") as file:
            start = file.read(100).lstrip()
        pointer = start.startswith(b"version https://git-lfs")
        reason = ("it is empty" if not start else "a web page" if start.startswith(b"<") else
                  "a git-lfs pointer: get the file itself with `git lfs pull`" if pointer else error)
        raise ValueError(f"{path} is not a complete safetensors file ({reason}): fetch it again") from None
    except OSError as error:                                # its own text, "no such file", would be wrong
        raise OSError(f"{path} is there but cannot be mapped into memory ({error})") from None
    with handle as file:
        yield file


def files(directory) -> list:
    """The safetensors files of a checkpoint, named as Hugging Face does: model.safetensors or model-0000I-of-0000N.
    Raises FileNotFoundError where there are none or a shard is missing, ValueError where there are both."""
    directory = Path(directory)
    there = sorted(os.listdir(directory))                   # glob would hide a PermissionError
    names = {name for name in there if re.fullmatch(r"model(-\d{5}-of-\d{5})?\.safetensors", name)}
    index, whole = directory / "model.safetensors.index.json", "model.safetensors" in names
    counts = {int(name[-17:-12]) for name in names if "-of-" in name}
    wanted = {f"model-{i + 1:05}-of-{n:05}.safetensors" for n in counts for i in range(min(n, 10_000))}
    if index.name in there and not whole:
        names_of = disk.typed(disk.read_json(index), "weight_map", dict, index)
        wanted |= {disk.typed(names_of, tensor, str, index, prefix="weight_map.") for tensor in names_of}
    if whole and wanted:
        raise ValueError(f"{directory} has model.safetensors and {few(names - {'model.safetensors'}, 2)}: expected the "
                         "one or the others, remove those that are older")
    if wanted - names:
        raise FileNotFoundError(f"{directory} lacks {few(wanted - names)} of {len(wanted)} shards: fetch them again")
    if not names:
        others = [name for name in there if Path(name).suffix in OTHERS and not re.match(TRAINERS, name)]
        raise FileNotFoundError(f"{directory} has no model.safetensors nor model-*-of-*.safetensors" + (
            f", only {few(others, 2)}, {OTHERS[Path(others[0]).suffix]}" if others else ": fetch the weights again"))
    return [directory / name for name in sorted(names)]


def check_tied(paths, rename) -> None:
    """Check the files of a model with tied embeddings: if they also store lm_head.weight, it must equal the embedding.
    rename: as for `plan`. Raises ValueError."""
    where = {name: path for path in paths for name in shapes(path)}
    embedding = next((name for name in where if rename(name) == "llm.embed_tokens.weight"), None)
    if embedding is None or "lm_head.weight" not in where:
        return
    with opened(where["lm_head.weight"]) as one, opened(where[embedding]) as other:
        a, b = one.get_slice("lm_head.weight"), other.get_slice(embedding)
        same = a.get_shape() == b.get_shape() and a.get_dtype() == b.get_dtype() and len(a.get_shape()) == 2
        rows = 1 if not same else max(1, MAPPED_BYTES // (8 * a.get_shape()[1] + 1))
        same = same and all(torch.equal(a[at:at + rows].view(torch.uint8), b[at:at + rows].view(torch.uint8))
                            for at in range(0, a.get_shape()[0], rows))
    if not same:
        raise ValueError(f"{where['lm_head.weight']}: lm_head.weight differs from {embedding}, although config.json "
                         "says tie_word_embeddings: true: set it to false to use both, or remove lm_head.weight")


def shapes(path) -> dict:
    """name -> (shape, type) of every tensor in a safetensors file, from its header. Types are those of safetensors,
    such as "BF16". Raises FileNotFoundError, or ValueError also for quantised weights, adapters, and files whose
    end was never written."""
    with opened(path) as file:
        slices = {name: file.get_slice(name) for name in file.keys()}
        found = {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}
    for name in found:
        for what in FOREIGN.keys() & name.split("."):
            raise ValueError(f"{path} is {FOREIGN[what]} ({name}): expected a model's own weights, not quantised")
    size = os.path.getsize(path)
    tail = max(TAIL_BYTES, size >> 10)                      # more than the zero embeddings of unused ids take
    with open(path, "rb") as file:
        file.seek(max(0, size - tail))
        if size > 8 * tail and not any(file.read()):
            raise ValueError(f"{path} ends with {tail:,} zero bytes or more: {UNWRITTEN}")
    return found


def check_written(path, name: str, tensor) -> None:
    """Raises ValueError where a contiguous sixteenth of a matrix is zero, or a whole table, or the whole weight of a
    norm. Training never produces this, but an interrupted download into a preallocated file does. Looks at 64 bytes in
    each of PLACES."""
    norm = tensor.ndim == 1 and name.endswith("weight")
    if not (tensor.ndim > 1 or norm) or not tensor.numel() or name.endswith(ZEROS):
        return
    data = tensor.reshape(-1).view(torch.uint8)
    step = min(len(data), max(64, len(data) // PLACES))
    filled = data[:len(data) // step * step].view(-1, step)[:, :64].any(1).tolist()
    hole = len(filled) if norm or any(part in name for part in TABLES) else min(HOLE, len(filled))
    if "0" * hole in "".join("01"[one] for one in filled):
        raise ValueError(f"{path}: {name} {list(tensor.shape)} is zero in large part: {UNWRITTEN}")


def stream(path, names):
    """Yield (name, tensor) for the given names. The tensor is a view of the mapped file: copy it before the next one.
    Raises ValueError for a tensor that was never written, or whose checksum, if there is one, differs."""
    names = list(names)
    while names:
        with opened(path) as file:
            mapped, sums = 0, checksums(path, file)
            while names and mapped < MAPPED_BYTES:
                name = names.pop(0)
                tensor = file.get_tensor(name)
                mapped += tensor.nbytes
                check_written(path, name, tensor)
                if name in sums and checksum(tensor) != sums[name]:
                    raise ValueError(f"{path} is damaged, the checksum of {name} differs: copy or fetch it again")
                yield name, tensor
                del tensor


def checksums(path, file) -> dict:
    """name -> `checksum`, from the metadata of an open file; {} for files of other programs. Raises ValueError."""
    try:
        return dict(json.loads((file.metadata() or {}).get("checksums", "{}")))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged, its checksums cannot be read ({error}): copy or fetch it again") from None


def few(names, count=4) -> str:
    """The first few names and the number of the others, for an error line."""
    names = sorted(names)
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")


def plan(target: dict, sources: dict, rename, where: str) -> tuple[dict, list]:
    """Match file tensors to parameters by name and shape, from headers alone.

    target: name -> tensor of the module; sources: path -> its `shapes`; rename(name in the file) -> name in the module,
    or None for a tensor that is not used. Returns path -> {name in the file: name} and the unused names. Raises
    ValueError naming the first few tensors that are missing, left over, duplicate, of another shape or not of floats.
    """
    matched, dropped, extra, odd, seen = {}, [], [], [], {}
    for path, tensors in sources.items():
        for file_name, (shape, kind) in tensors.items():
            name = rename(file_name)
            if name is None:
                dropped.append(file_name)
            elif name not in target:
                extra.append(file_name)
            elif name in seen:
                odd.append(f"{file_name} stands twice, in {os.path.basename(path)} and as {seen[name]}")
            elif shape != tuple(target[name].shape):
                odd.append(f"{file_name} is {list(shape)}, expected {list(target[name].shape)}")
            elif kind not in FLOATS:
                odd.append(f"{file_name} is of type {kind}, expected floating point numbers ({', '.join(FLOATS)})")
            else:
                matched.setdefault(path, {})[file_name] = name
                seen[name] = f"{file_name} in {os.path.basename(path)}"
    missing = set(target) - {rename(name) for tensors in sources.values() for name in tensors}
    problems = [f"{len(group)} {what}: {few(group)}" for what, group in
                (("missing", missing), ("left over", extra), ("not fitting", odd)) if group]
    if problems:
        raise ValueError(f"{where} does not match the model: " + "; ".join(problems)
                         + ". Is it the right checkpoint for this config.json?")
    return matched, dropped


def load(module: torch.nn.Module, paths, rename=lambda name: name, device="cpu") -> str:
    """Fill every tensor of `module` from safetensors files. Tensors keep the module's dtype and device; those of a
    `skeleton` are allocated on `device`.

    rename(name in the file) -> name in module.state_dict(), or None for a tensor that is not used. Returns a summary
    line. Raises FileNotFoundError or ValueError (see `plan`) before anything is allocated or copied.
    """
    paths = [Path(p) for p in paths]
    where = ", ".join(map(str, paths[:2])) + (" ..." if len(paths) > 2 else "")
    matched, dropped = plan(module.state_dict(), {path: shapes(path) for path in paths}, rename, where)
    target = allocate(module, device).state_dict()
    with torch.no_grad():
        for path, names in matched.items():
            for file_name, tensor in stream(path, names):
                target[names[file_name]].copy_(tensor)
    return f"loaded {len(target)} tensors" + (f", ignored {len(dropped)} ({few(dropped, 2)})" if dropped else "")


class Unfilled(TorchFunctionMode):
    """Skips normal_ initialisation: on the meta device it has no effect but to import 800 modules of torch (70 MB,
    2 s)."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (torch.nn.init.normal_, torch.Tensor.normal_):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


@contextmanager
def shapes_only():
    """Modules built inside are on the meta device: they have shapes, but neither memory nor values."""
    with torch.device("meta"), Unfilled():
        yield


def skeleton(build, dtype=torch.float32, where="the config") -> torch.nn.Module:
    """build() on the meta device and in evaluation mode, for `load` to fill. where: the file of its config, for errors.
    Raises ValueError where it cannot be built, for example because the heads do not divide the width."""
    try:
        with shapes_only(), warnings.catch_warnings():
            warnings.simplefilter("ignore")                 # torch's, for example of tensors without elements
            return build().to(dtype=dtype).eval()
    except (ArithmeticError, AssertionError, LookupError, RuntimeError, ValueError) as error:
        raise ValueError(f"{where} describes no model that can be built ({' '.join(str(error).split())})") from None


def allocate(module: torch.nn.Module, device="cpu") -> torch.nn.Module:
    """Allocate the module's meta tensors, without initialising them."""
    # As module.to_empty(device=device) does, which would import sympy: 30 MB and half a second.
    return module._apply(lambda t: torch.empty(t.shape, dtype=t.dtype, device=device) if t.is_meta else t)


def empty(build, device="cpu", dtype=torch.float32) -> torch.nn.Module:
    """build() in evaluation mode, its tensors allocated but not initialised."""
    return allocate(skeleton(build, dtype), device)
