"""checkpoint.py: what is saved comes back, under the official names, and every tensor is accounted for."""
import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import checkpoint
import disk
import weights
from checkpoint import ExOmniConfig, official_name, our_name
from decode import GREEDY
from face_decoder import frames_for_units
from model import ExOmni
from speech_decoder import SpeechDecoderConfig
from speech_tokenizer import SpeechTokenizerConfig
from tiny_model import CLIPS, CONFIG, END, PROMPTS, answer_all, answer_one, answers, build, model, same_answer, windows_of
from tokenizer import Tokenizer
from tokenizer_files import write_tiny


@pytest.fixture(scope="module")
def saved(tmp_path_factory, model):
    directory = tmp_path_factory.mktemp("saved")
    model.save_pretrained(directory)
    return directory


def copied(saved, directory, change):
    """A copy of the checkpoint with its tensors changed by change(dict)."""
    tensors = load_file(saved / "model.safetensors")
    tensors = change(tensors) or tensors
    save_file(tensors, directory / "model.safetensors")
    for name in ("config.json", "generation_config.json"):
        (directory / name).write_bytes((saved / name).read_bytes())
    return directory


def same_weights(seen, expected):
    state = seen.state_dict()
    assert state.keys() == expected.state_dict().keys()
    assert all(torch.equal(state[name], t) for name, t in expected.state_dict().items())


@pytest.mark.parametrize("turns", [0, 2, 20])
def test_a_checkpoint_says_how_many_turns_stay_in_the_prompt(tmp_path, turns):
    build(config=dataclasses.replace(CONFIG, past_turns=turns)).save_pretrained(tmp_path)
    assert ExOmni.from_pretrained(tmp_path).config.past_turns == turns


def test_a_checkpoint_says_how_units_are_drawn(tmp_path):
    """By default sampled; greedily where generation_config.json says so."""
    for greedy in (True, False):
        model = build(config=dataclasses.replace(CONFIG, greedy_units=greedy))
        model.save_pretrained(tmp_path / str(greedy))
        again = ExOmni.from_pretrained(tmp_path / str(greedy))
        assert again.config.greedy_units is greedy
        drawn = [again.generate([4, 5, 6], max_new_tokens=8, generator=torch.Generator().manual_seed(seed)).units.tolist()
                 for seed in range(3)]
        likeliest = again.generate([4, 5, 6], max_new_tokens=8, unit_sampler=GREEDY).units.tolist()
        assert (drawn == 3 * [likeliest]) == greedy


def test_a_saved_model_comes_back_and_answers_the_same(model, answers, saved, tmp_path):
    again = ExOmni.from_pretrained(saved)
    assert again.config == CONFIG and not again.training
    same_weights(again, model)
    same_answer(answer_one(again, 0), answers[0])
    again.save_pretrained(tmp_path / "twice")
    for name in ("model.safetensors", "config.json", "generation_config.json"):
        assert (tmp_path / "twice" / name).read_bytes() == (saved / name).read_bytes()


def test_the_tokenizer_goes_along(model, saved, tmp_path):
    directory = tmp_path / "one"
    directory.mkdir()
    write_tiny(copied(saved, directory, lambda t: t))
    ExOmni.from_pretrained(directory).save_pretrained(tmp_path / "two")
    assert ExOmni.from_pretrained(tmp_path / "two").tokenizer.encode("hi") == [104, 105]


def test_the_file_has_the_official_names(saved):
    names = set(load_file(saved / "model.safetensors"))
    for name in ("model.embed_tokens.weight", "lm_head.weight", "model.layers.1.self_attn.q_norm.weight", "model.norm.weight",
                 "model.speech_encoder.model.encoder.conv1.bias", "model.speech_encoder.model.encoder.embed_positions.weight",
                 "model.speech_encoder.model.encoder.layers.0.self_attn.k_proj.weight",
                 "model.speech_projector.linear2.bias", "model.speech_generator.input_proj.2.weight",
                 "model.speech_generator.tqgf.layers.0.0.gate_proj.weight", "model.speech_generator.tqgf.layers.1.1.3.weight",
                 "model.speech_generator.llm.model.model.layers.0.self_attn.q_proj.weight",
                 "model.speech_generator.llm.model.model.embed_tokens.weight", "model.speech_generator.llm_decoder.bias",
                 "model.speech_generator.llm_embedding.weight", "model.speech_generator.speech_embedding.weight",
                 "model.blendshape_generator.speech_token_projection.weight", "model.blendshape_generator.out_head.4.weight",
                 "model.blendshape_generator.transformer_encoder.transformer_encoder.layers.1.self_attn.in_proj_weight",
                 "model.blendshape_generator.tqgf.norm.bias"):
        assert name in names, name
    assert not [n for n in names if "qkv" in n or "gate_up" in n or "inv_freq" in n or "speech_decoder" in n]


def test_names_map_there_and_back(model):
    for name in model.state_dict():
        assert our_name(official_name(name), tied=False) == name


PARTS = ("speech_encoder.", "speech_projector.", "speech_generator.", "blendshape_generator.")


@pytest.mark.parametrize("prefix", ("model.model.", ""))
def test_prefixed_variants_load(model, saved, tmp_path, prefix):
    def change(tensors):
        return {prefix + n.removeprefix("model.") if n.startswith(tuple("model." + p for p in PARTS)) else n: t
                for n, t in tensors.items()}
    directory = copied(saved, tmp_path, change)
    assert any(n.startswith(prefix + "speech_projector.") for n in load_file(directory / "model.safetensors"))
    same_weights(ExOmni.from_pretrained(directory), model)


def test_what_the_release_saves_without_need_is_ignored(model, saved, tmp_path):
    unused = {"model.blendshape_generator.rope.inv_freq": torch.ones(24),
              "model.blendshape_generator.transformer_encoder.rope.inv_freq": torch.ones(24),
              "model.speech_generator.llm.model.lm_head.weight": torch.ones(320, 48),
              "model.speech_encoder.model.decoder.layers.0.fc1.weight": torch.ones(2, 2)}
    again = ExOmni.from_pretrained(copied(saved, tmp_path, lambda tensors: tensors | unused))
    same_weights(again, model)
    assert "ignored 4" in again.summary and "inv_freq" in again.summary


def test_a_tied_output_matrix_is_not_stored_and_a_stored_copy_is_ignored(tmp_path):
    config = dataclasses.replace(CONFIG, llm=dataclasses.replace(CONFIG.llm, tie_word_embeddings=True))
    tied = build(config=config)
    tied.speech_generator.llm_decoder.bias.data[END] = 1e4     # few units, to save time
    one, two = tmp_path / "one", tmp_path / "two"
    two.mkdir()
    tied.save_pretrained(one)
    assert "lm_head.weight" not in load_file(one / "model.safetensors")
    copied(one, two, lambda tensors: tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()})
    for directory in (one, two):
        again = ExOmni.from_pretrained(directory)
        same_weights(again, tied)
        assert again.generate([1, 2], max_new_tokens=3, unit_sampler=GREEDY).text_ids == \
            tied.generate([1, 2], max_new_tokens=3, unit_sampler=GREEDY).text_ids
    embedding = load_file(one / "model.safetensors")["model.embed_tokens.weight"]
    for other in (embedding + 1, embedding.index_fill(0, torch.tensor([319]), 0.5), embedding[:9], embedding.half(),
                  torch.ones(())):
        copied(one, two, lambda tensors: tensors | {"lm_head.weight": other.clone()})
        with pytest.raises(ValueError, match="lm_head.weight differs from model.embed_tokens.weight, although config.j"):
            ExOmni.from_pretrained(two)


@pytest.mark.parametrize("name", ("model.layers.0.self_attn.v_proj.weight", "model.speech_projector.linear1.bias",
                                  "lm_head.weight"))
def test_a_missing_tensor_is_named(saved, tmp_path, name):
    directory = copied(saved, tmp_path, lambda tensors: {n: t for n, t in tensors.items() if n != name})
    with pytest.raises(ValueError, match="1 missing") as caught:
        ExOmni.from_pretrained(directory)
    assert our_name(name, tied=False) in str(caught.value) or name in str(caught.value)


def test_a_wrong_shape_is_named(saved, tmp_path):
    name = "model.speech_generator.llm_decoder.weight"
    directory = copied(saved, tmp_path, lambda tensors: tensors | {name: torch.zeros(5, 48)})
    with pytest.raises(ValueError, match=rf"1 not fitting: {name} is \[5, 48\], expected \[99, 48\]"):
        ExOmni.from_pretrained(directory)


@pytest.mark.parametrize("name", ("model.layers.2.self_attn.q_proj.weight", "model.speech_generator.extra.weight", "other"))
def test_a_left_over_tensor_is_named(saved, tmp_path, name):
    directory = copied(saved, tmp_path, lambda tensors: tensors | {name: torch.zeros(2)})
    with pytest.raises(ValueError, match=f"1 left over: {name}"):
        ExOmni.from_pretrained(directory)


def test_a_checkpoint_without_weights_or_config_says_so(saved, tmp_path):
    with pytest.raises(FileNotFoundError, match="not a directory"):
        ExOmni.from_pretrained(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="config.json"):
        ExOmni.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_bytes((saved / "config.json").read_bytes())
    with pytest.raises(FileNotFoundError, match="no model"):
        ExOmni.from_pretrained(tmp_path)


def test_shards_are_written_read_and_replaced(model, saved, tmp_path, monkeypatch):
    monkeypatch.setattr("checkpoint.SHARD_BYTES", 200_000)
    model.save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 3 and not (tmp_path / "model.safetensors").exists()
    same_weights(ExOmni.from_pretrained(tmp_path), model)
    monkeypatch.undo()
    model.save_pretrained(tmp_path)
    assert [p.name for p in tmp_path.glob("*.safetensors")] == ["model.safetensors"]
    same_weights(ExOmni.from_pretrained(tmp_path), model)


def test_bfloat16_answers_with_speech_and_face(saved):
    half = ExOmni.from_pretrained(saved, dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    for a in answer_all(half, [0, 1], max_new_tokens=4):
        assert a.text_ids and a.face.isfinite().all() and a.face.shape == (frames_for_units(len(a.units)), 52)


def test_bfloat16_states_are_close_to_float32(model, saved):
    half = ExOmni.from_pretrained(saved, dtype=torch.bfloat16)
    with torch.no_grad():
        mel, ids = windows_of(CLIPS[0]), torch.tensor([PROMPTS[3]])
        for seen, exact in ((half.encode_speech(mel), model.encode_speech(mel)), (half.llm(ids), model.llm(ids))):
            assert (seen.float() - exact).norm() / exact.norm() < 0.05      # some dozen roundings of 2^-8


# ---- what config.json may say -------------------------------------------------------------------------------------

def edited(saved, directory, name, change):
    """A copy of the checkpoint whose file `name` has the json values change(dict) returns or leaves behind."""
    copied(saved, directory, lambda tensors: tensors)
    values = json.loads((saved / name).read_text())
    values = change(values) or values
    (directory / name).write_text(json.dumps(values))
    return directory


def put(*keys):
    """An edit: the last of `keys` goes where the others lead."""
    def change(values):
        for key in keys[:-2]:
            values = values[key]
        values[keys[-2]] = keys[-1]
    return change


@pytest.mark.parametrize("name, change, words", [
    ("config.json", lambda v: v.pop("hidden_size") and None, "missing hidden_size"),
    ("config.json", lambda v: v.pop("nhead") and None, "field nhead is missing, expected a whole number from 1 to"),
    ("config.json", put("hidden_size", "64"), "field hidden_size is '64', expected a whole number"),
    ("config.json", put("hidden_size", 64.0), "field hidden_size is 64.0, expected a whole number"),
    ("config.json", put("hidden_size", True), "field hidden_size is True, expected a whole number"),
    ("config.json", put("hidden_size", -64), "field hidden_size is -64, expected a whole number from 1 to"),
    ("config.json", put("hidden_size", 10 ** 9), "field hidden_size is 1000000000, expected a whole number from 1 to"),
    ("config.json", put("hidden_size", 1 << 20), r"model.embed_tokens.weight is \[320, 64\], expected \[320, 1048576"),
    ("config.json", put("num_hidden_layers", 10 ** 6), "field num_hidden_layers is 1000000, expected .* from 1 to 256"),
    ("config.json", put("num_hidden_layers", 200), "missing: llm.layers.10"),
    ("config.json", put("num_hidden_layers", 1), "left over: model.layers.1"),
    ("config.json", put("num_key_value_heads", 3), "num_attention_heads is 4, expected a multiple of num_key_value_he"),
    ("config.json", put("head_dim", 15), "head_dim is 15, expected an even number"),
    ("config.json", put("rope_theta", float("nan")), "field rope_theta is nan, expected a finite number"),
    ("config.json", put("rope_theta", 10 ** 400), "field rope_theta is 1000.*, expected a finite number"),
    ("config.json", put("rope_parameters", [1]), "field rope_parameters is a list of 1, expected an object or null"),
    ("config.json", put("tie_word_embeddings", 1), "field tie_word_embeddings is 1, expected true or false"),
    ("config.json", put("quantization_config", {"quant_method": "awq"}), r"is quantised \(awq, by"),
    ("config.json", put("speech_encoder_config", None), "field speech_encoder_config is None, expected an object"),
    ("config.json", put("speech_encoder_config", "d_model", [32]), "speech_encoder_config: field d_model is a list of"),
    ("config.json", lambda v: v["speech_encoder_config"].pop("d_model") and None, "field d_model is missing"),
    ("config.json", put("speech_encoder_config", "encoder_attention_heads", 3), "d_model is 32, expected a multiple o"),
    ("config.json", put("speech_generator_config", "vocab_size", 0), "speech_generator_config: field vocab_size is 0"),
    ("config.json", lambda v: v.pop("speech_generator_config") and None, "has neither speech_generator_config nor"),
    ("config.json", put("nhead", 5), "bs_decoder_dimension is 48, expected an even number that nhead"),
    ("config.json", put("bs_ablate", "face"), "field bs_ablate is 'face', expected one of '', 'velocity'"),
    ("config.json", put("dropout_rate", 1.5), "field dropout_rate is 1.5, expected a finite number from 0 to 0.9"),
    ("config.json", put("torch_dtype", "float8_e4m3fn"), "field torch_dtype is 'float8_e4m3fn', expected one of 'bflo"),
    ("config.json", put("torch_dtype", 16), "field torch_dtype is 16, expected a text or null"),
    ("config.json", lambda v: [v], "holds a json list, expected an object"),
    ("generation_config.json", put("eos_token_id", "258"), r"field eos_token_id\[0\] is '258', expected a whole numbe"),
    ("generation_config.json", put("eos_token_id", [258, 320]), r"field eos_token_id\[1\] is 320, .* from 0 to 319"),
    ("generation_config.json", put("eos_token_id", []), "field eos_token_id is a list of 0, expected a list of 1 to"),
    ("generation_config.json", put("top_p", "0.9"), "field top_p is '0.9', expected a finite number from 0 to 1"),
    ("generation_config.json", put("top_p", -1), "field top_p is -1, expected a finite number from 0 to 1"),
    ("generation_config.json", put("unit_do_sample", "no"), "field unit_do_sample is 'no', expected true or false"),
    ("generation_config.json", put("past_turns", -1), "field past_turns is -1, expected a whole number from 0 to 20"),
])
def test_a_wrong_value_is_one_line_that_names_file_and_field(saved, tmp_path, name, change, words):
    with pytest.raises(ValueError, match=words) as caught:
        ExOmni.from_pretrained(edited(saved, tmp_path, name, change))
    line = str(caught.value)
    assert "\n" not in line and (name in line or "model.safetensors" in line), line


def test_the_error_comes_before_memory_is_taken(saved, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "allocate", lambda *_: pytest.fail("memory was taken"))
    with pytest.raises(ValueError, match="1048576"):
        ExOmni.from_pretrained(edited(saved, tmp_path, "config.json", put("vocab_size", 1 << 20)))


@pytest.mark.parametrize("stored, expected", [
    ("auto", "bfloat16"), ("torch.bfloat16", "bfloat16"), ("bf16", "bfloat16"), ("half", "float16"),
    ("fp16", "float16"), ("float", "float32"), (None, "float32")])
def test_the_ways_to_write_a_dtype(saved, tmp_path, stored, expected):
    edited(saved, tmp_path, "config.json", put("torch_dtype", stored))
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(saved / "model.safetensors").items()}
    save_file(tensors, tmp_path / "model.safetensors")
    assert ExOmniConfig.from_dir(tmp_path).dtype == expected


@pytest.mark.parametrize("text", [b"[" * 100_000, b"{" + b'"a":{' * 100_000, b'{"a": \xff}', b"", b"<html>"])
def test_what_is_no_json_is_one_line(saved, tmp_path, text):
    (copied(saved, tmp_path, lambda tensors: tensors) / "config.json").write_bytes(text)
    with pytest.raises(ValueError, match="config.json is not valid json"):
        ExOmniConfig.from_dir(tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_does_no_harm(saved, tmp_path, encoding):
    text = (copied(saved, tmp_path, lambda tensors: tensors) / "config.json").read_text()
    (tmp_path / "config.json").write_text(text, encoding=encoding)
    assert ExOmniConfig.from_dir(tmp_path) == CONFIG


def test_a_directory_that_is_being_saved_and_an_adapter_are_refused(saved, tmp_path):
    (copied(saved, tmp_path, lambda tensors: tensors) / ".saved").mkdir()
    with pytest.raises(ValueError, match="is being saved, or a save was killed: try again, or run the command"):
        ExOmni.from_pretrained(tmp_path)
    (tmp_path / ".saved").rmdir()
    (tmp_path / "config.json").rename(tmp_path / "adapter_config.json")
    with pytest.raises(ValueError, match="is a LoRA adapter"):
        ExOmni.from_pretrained(tmp_path)


@pytest.mark.parametrize("name, content", [("adapter_config.json", b"{}"), ("adapter_model.safetensors", b"")])
def test_an_adapter_beside_its_model_is_not_left_out_in_silence(saved, tmp_path, name, content):
    (copied(saved, tmp_path, lambda tensors: tensors) / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"is a LoRA adapter, to be merged .*: it has {name}"):
        ExOmni.from_pretrained(tmp_path)


def test_a_file_that_may_not_be_read_says_so(saved, tmp_path, monkeypatch):
    """For root, who may read all, this is what the system would say to others."""
    path = copied(saved, tmp_path, lambda tensors: tensors) / "model.safetensors"

    def refusing(file, *args, **kwargs):
        if Path(file) == path:
            raise PermissionError(13, "Permission denied", str(file))
        return open(file, *args, **kwargs)
    monkeypatch.setattr(disk, "open", refusing, raising=False)
    with pytest.raises(OSError, match="model.safetensors cannot be opened .Permission denied.: expected a safetensors"):
        ExOmni.from_pretrained(tmp_path)


def test_a_tokenizer_of_another_model_is_refused(saved, tmp_path):
    write_tiny(copied(saved, tmp_path, lambda tensors: tensors))
    spec = json.loads((tmp_path / "tokenizer.json").read_text())
    spec["added_tokens"].append(spec["added_tokens"][0] | {"id": 320, "content": "more"})
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    with pytest.raises(ValueError, match="has ids up to 320, its model 320 of them"):
        ExOmni.from_pretrained(tmp_path)


@pytest.mark.parametrize("config, change, words", [
    (SpeechTokenizerConfig, put("d_model", None), "field d_model is None, expected a whole number from 1 to"),
    (SpeechTokenizerConfig, put("encoder_attention_heads", 7), "d_model is 1280, expected a multiple of"),
    (SpeechTokenizerConfig, put("quantize_position", 10 ** 6), "field quantize_position is 1000000, expected .* 1 to"),
    (SpeechTokenizerConfig, put("pooling_type", "mean"), "field pooling_type is 'mean', expected one of 'avg', 'max'"),
    (SpeechTokenizerConfig, put("quantize_causal_block_size", 3), "expected at least pooling_kernel_size"),
    (SpeechTokenizerConfig, put("encoder_causal_convolution", False), "encoder_causal_convolution is False, expected"),
    (SpeechDecoderConfig, put("flow", 1), "field flow is 1, expected an object"),
    (SpeechDecoderConfig, put("flow", "encoder", "num_blocks", "6"), "field flow.encoder.num_blocks is '6', expected"),
    (SpeechDecoderConfig, put("flow", "encoder", "attention_heads", 3), "flow.encoder.output_size is 512, expected a"),
    (SpeechDecoderConfig, put("flow", "decoder", "estimator", "channels", []), "is a list of 0, expected a list of 1"),
    (SpeechDecoderConfig, put("flow", "decoder", "cfm_params", "t_scheduler", "x"), "t_scheduler is 'x', expected one"),
    (SpeechDecoderConfig, put("hift", "resblock_dilation_sizes", 0, 1, 10 ** 6), r"_sizes\[0\]\[1\] is 1000000, expec"),
    (SpeechDecoderConfig, put("hift", "base_channels", 1), "hift.base_channels is 1, expected a multiple of 4"),
    (SpeechDecoderConfig, put("hift", "base_channels", 6), "hift.base_channels is 6, expected a multiple of 4"),
    (SpeechDecoderConfig, put("hift", "upsample_kernel_sizes", [16]), "upsample_kernel_sizes has 1 entries, expected 2"),
    (SpeechDecoderConfig, put("hift", "resblock_dilation_sizes", [[1]]), "dilation_sizes has 1 entries, expected 3"),
    (SpeechDecoderConfig, put("hift", "upsample_rates", [2, 2]), "hift.upsample_rates make 16 samples per frame"),
    (SpeechDecoderConfig, put("hift", "nsf_alpha", float("inf")), "field hift.nsf_alpha is inf, expected a finite num"),
    (SpeechDecoderConfig, put("sampling", "steps", 0), "field sampling.steps is 0, expected a whole number from 1 to"),
    (SpeechDecoderConfig, put("sampling", "guidance", "0"), "field sampling.guidance is '0', expected .* or null"),
])
def test_a_wrong_value_of_the_speech_parts_is_named(config, change, words):
    values = dataclasses.asdict(config())
    assert disk.checked(config, values, "config.json") == config()
    change(values)
    with pytest.raises(ValueError, match=words) as caught:
        disk.checked(config, values, "config.json")
    assert str(caught.value).startswith("config.json: ")


@pytest.mark.parametrize("change, says", [
    ({"speech_projector_type": "qformer"}, "speech_projector_type is 'qformer', expected one of 'linear'"),
    ({"speech_generator_type": "nar"}, "speech_generator_type is 'nar', expected one of 'ar', 'ctc'"),
    ({"speech_encoder_config": dataclasses.asdict(CONFIG.speech_encoder) | {"activation_function": "relu"}},
     "speech_encoder_config: field activation_function is 'relu', expected one of 'gelu'")])
def test_what_a_config_says_of_another_model_is_refused(tmp_path, change, says):
    disk.write_json(tmp_path / "config.json", CONFIG.to_dict() | change)
    with pytest.raises(ValueError, match=says):
        ExOmniConfig.from_dir(tmp_path)


def test_ways_of_sampling_that_are_not_here_are_said(tmp_path):
    disk.write_json(tmp_path / "config.json", CONFIG.to_dict())
    disk.write_json(tmp_path / "generation_config.json", {"top_k": 20, "repetition_penalty": 1.0, "num_beams": 4})
    with pytest.warns(UserWarning, match="generation_config.json: top_k, num_beams not used here"):
        ExOmniConfig.from_dir(tmp_path)


def test_top_p_of_0_is_the_likeliest_and_not_everything(tmp_path):
    for written, top_p in (("0", 1e-6), ("0.8", 0.8), ("null", 1.0)):
        (tmp_path / "generation_config.json").write_text(f'{{"top_p": {written}}}')
        assert checkpoint.generation_fields(tmp_path, {}, 320)["top_p"] == top_p


def test_a_full_disk_is_one_error_when_speech_parts_are_copied(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")
    (tmp_path / "speech_decoder").mkdir()
    for name in "ab":
        (tmp_path / "speech_decoder" / name).touch()
    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(OSError, match="^.Errno 28. No space left on device$"):
        checkpoint.copy_companions(tmp_path, tmp_path / "out")
