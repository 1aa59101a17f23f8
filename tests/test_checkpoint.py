"""checkpoint.py: what is saved comes back, under the official names, and every tensor is accounted for."""
import dataclasses

import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoint import official_name, our_name
from decode import GREEDY
from face_decoder import frames_for_units
from model import ExOmni
from tiny_model import CLIPS, CONFIG, END, PROMPTS, answer_all, answer_one, answers, build, model, same_answer, windows_of
from tokenizer import Tokenizer, write_tiny


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
