"""Checkpoints on disk <-> modules: safetensors, strict and memory-mapped.

A file is mapped, each tensor is copied once into its parameter, and the mapping is closed now and then, so that opening
a checkpoint needs little more memory than the model itself. Every tensor is accounted for: one that is missing, left
over or of another shape is an error.
"""
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.overrides import TorchFunctionMode

import disk

MAPPED_BYTES = 16 << 20  # pages of a mapped file count as ours until it is closed: do so after so many


def write_tensors(path, tensors: dict) -> None:
    """Write name -> tensor as safetensors, under a temporary name first.

    Raises OSError where it cannot be written, for example on a full disk.
    """
    with disk.replacing(path) as temporary:
        try:
            save_file({name: t.detach().contiguous() for name, t in tensors.items()}, temporary, {"format": "pt"})
        except SafetensorError as error:
            raise OSError(f"{path} could not be written ({error})") from None


@contextmanager
def opened(path):
    """safe_open with a readable error: the file is mapped, not read. Raises FileNotFoundError or ValueError."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} not found")
    try:
        handle = safe_open(path, framework="pt")
    except SafetensorError as error:
        raise ValueError(f"{path} is not a complete safetensors file ({error}): fetch it again") from None
    with handle as file:
        yield file


def shapes(path) -> dict:
    """name -> shape of every tensor in a safetensors file, from its header alone."""
    with opened(path) as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}


def stream(path, names):
    """Yield (name, tensor) for the given names. The tensor is a view of the mapped file: copy it before going on."""
    names = list(names)
    while names:
        with opened(path) as file:
            mapped = 0
            while names and mapped < MAPPED_BYTES:
                name = names.pop(0)
                tensor = file.get_tensor(name)
                mapped += tensor.nbytes
                yield name, tensor
                del tensor


def few(names, count=4) -> str:
    """The first few of many names, for an error line."""
    names = sorted(names)
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")


def plan(target: dict, sources: dict, rename, where: str) -> tuple[dict, list]:
    """Match file tensors to parameters by name and shape, from headers alone.

    target: name -> tensor of the module; sources: path -> {file name: shape}; rename(file name) -> name in the
    module, or None for a tensor that is dropped on purpose. Returns path -> {file name: name} and the dropped names.
    Raises ValueError naming the first few tensors that are missing, left over, double or of another shape.
    """
    matched, dropped, extra, odd, seen = {}, [], [], [], {}
    for path, tensors in sources.items():
        for file_name, shape in tensors.items():
            name = rename(file_name)
            if name is None:
                dropped.append(file_name)
            elif name not in target:
                extra.append(file_name)
            elif name in seen:
                odd.append(f"{file_name} stands twice ({seen[name]} too)")
            elif shape != tuple(target[name].shape):
                odd.append(f"{file_name} is {list(shape)}, expected {list(target[name].shape)}")
            else:
                matched.setdefault(path, {})[file_name] = name
                seen[name] = file_name
    touched = set(seen) | {rename(n) for tensors in sources.values() for n in tensors}
    missing = set(target) - touched
    problems = [f"{len(group)} {what}: {few(group)}" for what, group in
                (("missing", missing), ("left over", extra), ("not fitting", odd)) if group]
    if problems:
        raise ValueError(f"{where} does not match the model: " + "; ".join(problems)
                         + ". Is it the right checkpoint for this config.json?")
    return matched, dropped


def load(module: torch.nn.Module, paths, rename=lambda name: name) -> str:
    """Fill every tensor of `module` from safetensors files; each is read once. Device and dtype are the module's.

    rename(file name) -> the name in module.state_dict(), or None to drop a tensor on purpose. Returns a summary
    line. Raises FileNotFoundError or ValueError (see `plan`) before anything is copied.
    """
    paths = [Path(p) for p in paths]
    target = module.state_dict()
    where = ", ".join(map(str, paths[:2])) + (" ..." if len(paths) > 2 else "")
    matched, dropped = plan(target, {path: shapes(path) for path in paths}, rename, where)
    with torch.no_grad():
        for path, names in matched.items():
            for file_name, tensor in stream(path, names):
                target[names[file_name]].copy_(tensor)
    return f"loaded {len(target)} tensors" + (f", ignored {len(dropped)} ({few(dropped, 2)})" if dropped else "")


class Unfilled(TorchFunctionMode):
    """Skips normal_ initialisation: of a tensor on the meta device it changes nothing, but imports 800 modules of
    torch (70 MB, 2 s)."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (torch.nn.init.normal_, torch.Tensor.normal_):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


@contextmanager
def shapes_only():
    """Modules built inside have shapes, but neither memory nor values."""
    with torch.device("meta"), Unfilled():
        yield


def empty(build, device="cpu", dtype=torch.float32) -> torch.nn.Module:
    """build() in evaluation mode, its tensors allocated but not initialised: `load` is about to fill them."""
    with shapes_only():
        module = build().to(dtype=dtype)
    # As module.to_empty(device=device) does, which would import sympy: 30 MB and half a second.
    return module._apply(lambda t: torch.empty(t.shape, dtype=t.dtype, device=device)).eval()
