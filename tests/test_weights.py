"""weights.py: strict, complete, and in little more memory than the model."""
import json
import os
import struct
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import checkpoint
import disk
import weights
from checkpoint import PRESETS
from model import ExOmni
from qwen3 import Qwen3Config

ROOT = Path(__file__).parent.parent


def module():
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))


@pytest.fixture
def saved(tmp_path):
    """A module and the file it was written to."""
    torch.manual_seed(0)
    original = module()
    weights.write_tensors(tmp_path / "model.safetensors", original.state_dict())
    return original, tmp_path / "model.safetensors"


def header(tensors: dict) -> bytes:
    """The start of a safetensors file."""
    text = json.dumps(tensors).encode()
    return struct.pack("<Q", len(text)) + text


def rewritten(path, edit):
    state = load_file(path)
    edit(state)
    save_file(state, path)
    return path


# ---- strict -----------------------------------------------------------------------------------------------------

def test_a_module_comes_back_from_one_file_or_several(saved, tmp_path):
    original, path = saved
    state = original.state_dict()
    parts = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for i, part in enumerate(parts):
        weights.write_tensors(part, {name: t for name, t in state.items() if name.startswith(f"{i}.")})
    weights.write_tensors(tmp_path / "c.safetensors", {"old": torch.ones(1)})
    parts.append(tmp_path / "c.safetensors")
    for files, summary in (([path], "loaded 4 tensors"), (parts, "loaded 4 tensors, ignored 1 (old)")):
        copy = weights.empty(module)
        assert weights.load(copy, files, lambda name: None if name == "old" else name) == summary
        assert all(torch.equal(t, state[name]) for name, t in copy.state_dict().items())
        assert not copy.training


def test_a_loaded_module_keeps_its_dtype(saved):
    original, path = saved
    copy = weights.empty(module, dtype=torch.bfloat16)
    weights.load(copy, [path])
    assert torch.equal(copy[0].weight, original[0].weight.bfloat16())


@pytest.mark.parametrize("edit, expected", [
    (lambda s: s.pop("0.bias"), "1 missing: 0.bias"),
    (lambda s: (s.pop("0.bias"), s.pop("1.weight")), "2 missing: 0.bias, 1.weight"),
    (lambda s: s.update({"2.weight": torch.ones(1)}), "1 left over: 2.weight"),
    (lambda s: s.update({f"x{i}": torch.ones(1) for i in range(9)}), "9 left over: x0, x1, x2, x3 and 5 more"),
    (lambda s: s.update({"0.weight": torch.ones(4, 5)}), "0.weight is [4, 5], expected [4, 3]"),
    (lambda s: s.update({"0.weight": torch.ones(12)}), "0.weight is [12], expected [4, 3]"),
    (lambda s: s.update({"again.0.bias": torch.ones(4)}), "stands twice"),
    (lambda s: (s.pop("0.bias"), s.update({"0.bais": torch.ones(4)})), "1 missing: 0.bias; 1 left over: 0.bais")],
    ids=["missing", "two missing", "left over", "many left over", "shape", "flat", "double", "misspelt"])
def test_what_does_not_fit_is_named_and_nothing_is_loaded(saved, edit, expected):
    original, path = saved
    rewritten(path, edit)
    copy = module()
    before = {name: t.clone() for name, t in copy.state_dict().items()}
    with pytest.raises(ValueError) as error:
        weights.load(copy, [path], lambda name: name.removeprefix("again."))
    assert expected in str(error.value) and str(path) in str(error.value)
    assert all(torch.equal(t, before[name]) for name, t in copy.state_dict().items())


def test_a_tensor_in_two_shards_is_an_error(saved, tmp_path):
    original, path = saved
    weights.write_tensors(tmp_path / "more.safetensors", {"0.bias": torch.ones(4)})
    with pytest.raises(ValueError, match="0.bias stands twice, in more.safetensors and as 0.bias in "):
        weights.load(module(), [path, tmp_path / "more.safetensors"])


# ---- damaged files ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("keep", [0, 4, 60, -1])
def test_a_truncated_file_is_named(saved, keep):
    path = saved[1]
    os.truncate(path, keep if keep >= 0 else path.stat().st_size - 1)
    with pytest.raises(ValueError, match="model.safetensors is not a complete safetensors file"):
        weights.load(module(), [path])


def test_one_flipped_bit_is_found_wherever_it_is(tmp_path):
    torch.manual_seed(0)
    module, path = nn.Sequential(nn.Linear(61, 71), nn.Linear(71, 3)).half(), tmp_path / "model.safetensors"
    weights.write_tensors(path, module.state_dict())
    whole = path.read_bytes()
    start, copy = 8 + int.from_bytes(whole[:8], "little"), weights.empty(lambda: module)
    for at in range(start, len(whole), 97):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1:])
        with pytest.raises(ValueError, match=r"safetensors is damaged, the checksum of [01]\.(weight|bias) differs"):
            weights.load(copy, [path])
    size = weights.PAGE
    path.write_bytes(whole[:start] + whole[start + size:start + 2 * size] + whole[start:start + size]
                     + whole[start + 2 * size:])                                    # two pages, one for the other
    with pytest.raises(ValueError, match="checksum"):
        weights.load(copy, [path])


def test_the_same_tensors_are_the_same_file_and_a_stranger_without_checksums_loads(saved, tmp_path):
    original, path = saved
    files = {(weights.write_tensors(path, original.state_dict()), path.read_bytes())[1] for _ in range(9)}
    assert len(files) == 1
    with weights.opened(path) as file:
        assert file.metadata()["format"] == "pt"
        assert weights.checksums(path, file).keys() == original.state_dict().keys()
    save_file(load_file(path), tmp_path / "plain.safetensors")
    assert weights.load(module(), [tmp_path / "plain.safetensors"]) == "loaded 4 tensors"
    save_file(load_file(path), tmp_path / "odd.safetensors", {"checksums": "[1]"})
    with pytest.raises(ValueError, match="odd.safetensors is damaged, its checksums cannot be read"):
        weights.load(module(), [tmp_path / "odd.safetensors"])


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="model.safetensors not found"):
        weights.load(module(), [tmp_path / "model.safetensors"])


@pytest.mark.parametrize("content, expected", [
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "a git-lfs pointer: get the file itself"),
    (b"\n<!DOCTYPE html><html></html>", "a web page"), (b"", "it is empty"), (b"\xff" * 100, "complete"),
    (header({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}) + b"0" * 8, "complete"),
    (header({"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}), "complete"),
    (header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
             "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}) + b"0" * 12, "complete"),
    (header({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}) + b"0" * 8, "complete"),
    (header({"a": {"dtype": "F99", "shape": [2], "data_offsets": [0, 8]}}) + b"0" * 8, "complete"),
    (struct.pack("<Q", 100_000) + b"[" * 100_000, "complete")],
    ids=["git-lfs", "html", "empty", "noise", "short", "huge", "overlap", "shape", "type", "deep"])
def test_what_is_no_safetensors_file_says_what_it_is(tmp_path, content, expected):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="model.safetensors is not a complete safetensors file") as error:
        weights.load(module(), [tmp_path / "model.safetensors"])
    assert expected in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("dtype, name", [(torch.int64, "I64"), (torch.bool, "BOOL"), (torch.complex64, "C64"),
                                         (torch.uint8, "U8"), (torch.float8_e4m3fn, "F8_E4M3")])
def test_tensors_that_are_no_floating_point_numbers_are_refused(saved, dtype, name):
    path = rewritten(saved[1], lambda s: s.update({"0.bias": torch.ones(4).to(dtype)}))
    with pytest.raises(ValueError, match=f"0.bias is of type {name}, expected floating point numbers"):
        weights.load(module(), [path])
    weights.load(nn.ParameterDict({}), [path], lambda name: None)       # dropped on purpose: any type


@pytest.mark.parametrize("name, word", [
    ("0.qweight", "AWQ or GPTQ"), ("0.weight_scale_inv", "FP8"), ("0.weight.absmax", "bitsandbytes"),
    ("0.SCB", "bitsandbytes"), ("base_model.model.0.lora_A.weight", "LoRA adapter")])
def test_quantised_weights_and_adapters_are_refused_by_that_word(saved, name, word):
    path = rewritten(saved[1], lambda s: s.update({name: torch.ones(1)}))
    with pytest.raises(ValueError, match=f"model.safetensors is .*{word}.*{name}"):
        weights.load(module(), [path])


def shard(i, n=3):
    return f"model-{i:05}-of-{n:05}.safetensors"


@pytest.mark.parametrize("names, index, expected", [
    ([shard(1), shard(3)], None, "lacks model-00002-of-00003.safetensors of 3 shards"),
    ([shard(1), shard(2), shard(3)], [shard(3), "extra.safetensors"], "lacks extra.safetensors of 4 shards"),
    ([], [shard(1), shard(2)], "lacks model-00001-of-00003.safetensors, model-00002-of-00003.safetensors of 2"),
    (["model.safetensors", shard(1)], None, "has model.safetensors and model-00001-of-00003.safetensors"),
    (["pytorch_model.bin", "training_args.bin"], None, "only pytorch_model.bin, torch's own format: convert it to safe"),
    (["Qwen3-8B-Q4_K_M.gguf"], None, "only Qwen3-8B-Q4_K_M.gguf, made for llama.cpp: fetch the safetensors of"),
    (["model.fp16.safetensors"], None, "only model.fp16.safetensors, named otherwise: rename it to model.safetensors"),
    (["consolidated.00.pth"], None, "only consolidated.00.pth, torch's own format"),
    (["optimizer.pt", "training_args.bin"], None, "nor model-.*: fetch the weights again"),
    ([], None, "has no model.safetensors nor model-.*: fetch the weights again"),
    ([shard(1, 1)], [3], "field weight_map.tensor 0 is 3, expected a text"),
    ([shard(1, 1)], "a.safetensors", "field weight_map is 'a.safetensors', expected an object")])
def test_a_missing_shard_is_named_by_its_file(tmp_path, names, index, expected):
    for name in names:
        (tmp_path / name).touch()
    if index:
        weight_map = index if isinstance(index, str) else {f"tensor {i}": name for i, name in enumerate(index)}
        disk.write_json(tmp_path / "model.safetensors.index.json", {"weight_map": weight_map})
    with pytest.raises((FileNotFoundError, ValueError), match=expected):
        weights.files(tmp_path)


def test_the_files_of_a_checkpoint_are_found(tmp_path):
    (tmp_path / "model.fp32-00001-of-00002.safetensors").touch()        # another type of the same: not ours
    (tmp_path / "model.safetensors").touch()
    assert weights.files(tmp_path) == [tmp_path / "model.safetensors"]
    (tmp_path / "model.safetensors").unlink()
    for i in (3, 1, 2):
        (tmp_path / shard(i)).touch()
    assert weights.files(tmp_path) == [tmp_path / shard(i) for i in (1, 2, 3)]


def test_sizes_that_cannot_be_built_are_an_error_of_the_config():
    with pytest.raises(ValueError, match="config.json describes no model that can be built .embed_dim must be"):
        weights.skeleton(lambda: nn.TransformerEncoderLayer(10, 3), where="config.json")


def test_what_torch_thinks_of_odd_sizes_is_no_second_line():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        weights.skeleton(lambda: nn.Linear(4, 0))               # "Initializing zero-element tensors is a no-op"


@pytest.mark.parametrize("text, expected", [
    (b"{", "is not valid json"), (b"\xff\xfe", "is not valid json"), (b"[1]", "holds a json list, expected an object")])
def test_json_that_is_none_is_named(tmp_path, text, expected):
    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(ValueError, match=expected) as error:
        disk.read_json(tmp_path / "config.json")
    assert "config.json" in str(error.value)


def test_json_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="config.json not found"):
        disk.read_json(tmp_path / "config.json")


# ---- writing ----------------------------------------------------------------------------------------------------

def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "new" / "value.json"
    disk.write_json(path, {"a": "ü"})
    for failure in (OSError("the disk is full"), KeyboardInterrupt()):
        with pytest.raises(type(failure)), disk.replacing(path) as temporary:
            temporary.write_text("half of")
            raise failure
    with pytest.raises(TypeError):
        disk.write_json(path, {"a": object()})
    assert disk.read_json(path) == {"a": "ü"} and list(path.parent.iterdir()) == [path]


def test_files_are_readable_as_the_umask_says(tmp_path):
    before = os.umask(0o027)
    try:
        disk.write_json(tmp_path / "value.json", {})
    finally:
        os.umask(before)
    assert (tmp_path / "value.json").stat().st_mode & 0o777 == 0o640


def test_views_are_written_as_what_they_show(tmp_path):
    packed = torch.arange(12.).view(6, 2)
    weights.write_tensors(tmp_path / "t.safetensors", {"q": packed[:4], "k": packed[4:], "turned": packed.T})
    seen = load_file(tmp_path / "t.safetensors")
    assert torch.equal(seen["k"], packed[4:]) and torch.equal(seen["turned"], packed.T)


def python(program, *args):
    return subprocess.run([sys.executable, "-c", program, *args], cwd=ROOT, capture_output=True, text=True)


FULL_DISK = """
import resource, sys, torch, weights
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
try:
    weights.write_tensors(sys.argv[1], {"a": torch.zeros(1 << 20)})
except OSError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="file sizes cannot be limited there")
def test_a_full_disk_is_an_os_error_and_leaves_nothing(tmp_path):
    done = python(FULL_DISK, tmp_path / "a.safetensors")
    assert "a.safetensors" in done.stdout, done.stderr
    assert not list(tmp_path.iterdir())


# ---- memory -----------------------------------------------------------------------------------------------------

# Peak memory beyond what the process held before, in kB. The second way is what the first avoids.
MEASURE = """
import sys, torch
from pathlib import Path
from checkpoint import ExOmniConfig, our_name
from model import ExOmni
from safetensors.torch import load_file

def status(field):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(field))

way, directory = sys.argv[1], Path(sys.argv[2])
torch.ones(8, 8) @ torch.ones(8, 8)
before = status("VmRSS:")
if way == "from_pretrained":
    model = ExOmni.from_pretrained(directory)
else:
    state = load_file(directory / "model.safetensors")
    state = {our_name(name, False): tensor for name, tensor in state.items()}
    model = ExOmni(ExOmniConfig.from_dir(directory)).bfloat16()
    model.load_state_dict(state)
print(status("VmHWM:") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs /proc to measure")
@pytest.mark.parametrize("shard", [4 << 30, 50_000_000], ids=["one file", "shards"])
def test_opening_a_checkpoint_takes_little_more_memory_than_its_size(tmp_path, monkeypatch, shard):
    monkeypatch.setattr(checkpoint, "SHARD_BYTES", shard)
    llm = Qwen3Config(20_000, 1024, 3072, 8, 16, 8, 128)
    generator = PRESETS["tiny"].generator
    generator = replace(generator, llm=replace(generator.llm, vocab_size=llm.vocab_size))
    config = replace(PRESETS["tiny"], llm=llm, generator=generator, dtype="bfloat16")
    model = weights.empty(lambda: ExOmni(config), dtype=torch.bfloat16)
    for tensor in model.state_dict().values():
        tensor.fill_(1)                                     # any values will do but zeros
    model.save_pretrained(tmp_path)
    files = list(tmp_path.glob("model*.safetensors"))
    size = sum(path.stat().st_size for path in files)
    assert size > 300e6 and (len(files) > 1) == (shard < size)

    def peak(way):
        done = python(MEASURE, way, tmp_path)
        assert done.returncode == 0, done.stderr
        return 1024 * int(done.stdout)

    assert size <= peak("from_pretrained") <= 1.15 * size
    if len(files) == 1:
        assert peak("load_state_dict") > 1.15 * size, "the measurement does not see what it should"


# ---- files that were never written to their end -------------------------------------------------------------------

@pytest.fixture
def stack(tmp_path):
    """A module of several matrices, and its file."""
    torch.manual_seed(0)
    original = nn.Sequential(*(nn.Linear(128, 128) for _ in range(12)))
    weights.write_tensors(tmp_path / "model.safetensors", original.state_dict())
    return original, tmp_path / "model.safetensors"


@pytest.mark.parametrize("begin, end", [(0, 1), (2 / 3, 1), (0.4, 0.5), (0.95, 1)])
def test_weights_that_were_never_written_are_refused(stack, begin, end):
    original, path = stack
    data = bytearray(path.read_bytes())
    start = 8 + struct.unpack("<Q", data[:8])[0]
    first, last = (start + int(share * (len(data) - start)) for share in (begin, end))
    data[first:last] = bytes(last - first)
    path.write_bytes(data)
    with pytest.raises(ValueError, match="model.safetensors.* zero .*interrupted. Fetch it again"):
        weights.load(weights.empty(lambda: original), [path])


def test_zeros_that_belong_there_are_no_damage(tmp_path):
    biases, table = nn.Linear(64, 64), nn.Embedding(64, 16)
    with torch.no_grad():
        biases.bias.zero_()
        table.weight[20:] = 0                               # ids that no text has
    module = nn.ModuleDict({"linear": biases, "embed": table})
    weights.write_tensors(tmp_path / "a.safetensors", module.state_dict())
    weights.load(module, [tmp_path / "a.safetensors"])
    with torch.no_grad():
        table.weight.zero_()
    weights.write_tensors(tmp_path / "a.safetensors", module.state_dict())
    with pytest.raises(ValueError, match="embed.weight .* is zero"):
        weights.load(module, [tmp_path / "a.safetensors"])
    norm = nn.LayerNorm(64)
    nn.init.zeros_(norm.weight)
    weights.write_tensors(tmp_path / "a.safetensors", norm.state_dict())
    with pytest.raises(ValueError, match="weight .* is zero"):
        weights.load(norm, [tmp_path / "a.safetensors"])


def test_who_may_read_other_new_files_may_read_weights(tmp_path):
    (tmp_path / "plain").touch()
    weights.write_tensors(tmp_path / "a.safetensors", {"x": torch.zeros(2)})
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode
