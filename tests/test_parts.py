"""checkpoint.py: parts that do not belong together, and files that are there but cannot be read, are named at once."""
import shutil

import pytest
from safetensors.torch import load_file, save_file

import disk
import weights
from model import ExOmni


def cut_units(directory):
    path = directory / "speech_decoder" / "flow.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"input_embedding.weight": tensors["input_embedding.weight"][:64].clone()}, path)
    put_into("speech_decoder/config.json", "flow", "vocab_size", 64)(directory)


def put_into(name, *keys):
    """An edit: the last of `keys` goes where the others lead in a json file."""
    def change(directory):
        values = inner = disk.read_json(directory / name)
        for key in keys[:-2]:
            inner = inner[key]
        inner[keys[-2]] = keys[-1]
        disk.write_json(directory / name, values)
    return change


def other_end(directory):
    (directory / "generation_config.json").unlink()
    put_into("config.json", "eos_token_id", 9)(directory)


SWAPPED = [{"id": 256 + n, "content": f"<|{name}|>", "special": True}
           for n, name in enumerate(("endoftext", "im_end", "im_start"))]


def no_directory(directory):
    shutil.rmtree(directory / "speech_decoder")
    (directory / "speech_decoder").touch()


@pytest.mark.parametrize("change, words", [
    (cut_units, "speech_decoder has 64 units, the model 96 .unit_vocab_size in config.json"),
    (put_into("speech_decoder/config.json", "flow", "vocab_size", 128), "has 128 units, the model 96"),
    (put_into("speech_tokenizer/config.json", "quantize_vocab_size", 48), "speech_tokenizer has 48 units, the model 9"),
    (no_directory, "speech_decoder is no directory: expected the speech decoder, or nothing"),
    (put_into("config.json", "speech_vocab_size", 95), "is 95, expected at least unit_vocab_size.*96"),
    (put_into("config.json", "speech_generator_config", "vocab_size", 300), "has 300 token ids, the language model 32"),
    (put_into("generation_config.json", "eos_token_id", [256]), r"<.im_end.> as 258, which is none of the stop ids"),
    (put_into("generation_config.json", "eos_token_id", [258, 65]), "has 'A' as 65, which is one of the stop ids"),
    (put_into("generation_config.json", "eos_token_id", [258, 300]), "as 300, which is one of the stop ids"),
    (other_end, r"<.im_end.> as 258, which is none of the stop ids \[9\]"),
    (put_into("tokenizer.json", "added_tokens", SWAPPED), "<.im_end.> as 257, which is none of the stop ids")])
def test_parts_of_different_models_are_refused_before_memory_is_taken(checkpoint, tmp_path, monkeypatch, change, words):
    directory = shutil.copytree(checkpoint, tmp_path / "copy")
    change(directory)
    monkeypatch.setattr(weights, "allocate", lambda *_: pytest.fail("memory was taken"))
    with pytest.raises(ValueError, match=words) as caught:
        ExOmni.from_pretrained(directory)
    assert str(directory) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["generation_config.json", "tokenizer.json", "model.safetensors", "config.json"])
@pytest.mark.parametrize("kind", ["a link to nothing", "a directory"])
def test_what_is_there_but_no_file_is_never_taken_for_missing(checkpoint, tmp_path, name, kind):
    path = shutil.copytree(checkpoint, tmp_path / "copy") / name
    path.unlink()
    path.mkdir() if kind == "a directory" else path.symlink_to("../blobs/0123")
    said = "is a directory" if kind == "a directory" else r"not found .it is a link to ../blobs/0123, where there is no"
    with pytest.raises((ValueError, OSError), match=f"{name} {said}"):
        ExOmni.from_pretrained(path.parent)
