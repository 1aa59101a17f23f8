"""Tiny random models, laid out on disk as Hugging Face's repositories are; what tests of `prepare.py weights` share."""
from pathlib import Path

import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file, save_file

import disk
import prepare
from speech_tokenizer import SpeechTokenizer, SpeechTokenizerConfig

GOLDEN = Path(__file__).parent / "fixtures" / "glm4_voice"
UNITS = 64                              # of the golden speech decoder


def scattered(model):
    """No weight of a fresh model may stay at a value that could be mistaken for another's."""
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.15) if p.ndim > 1 else torch.nn.init.uniform_(p, 0.5, 1.5)
    return model.eval()


def qwen(directory, tied, width=48, vocab=300, shard="1GB"):
    model = scattered(transformers.Qwen3ForCausalLM(transformers.Qwen3Config(
        vocab_size=vocab, hidden_size=width, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=256, tie_word_embeddings=tied,
        eos_token_id=[258, 256], bos_token_id=None, pad_token_id=None)))
    model.save_pretrained(directory, max_shard_size=shard)
    return model


def whisper(directory, kind=transformers.WhisperForConditionalGeneration):
    model = scattered(kind(transformers.WhisperConfig(
        vocab_size=60, num_mel_bins=128, d_model=24, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=40,
        decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=40, max_source_positions=50, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, decoder_start_token_id=1, begin_suppress_tokens=None)))
    model.save_pretrained(directory)
    # The real repository holds the same weights again in another type, under another name.
    save_file({"model.encoder.conv1.bias": torch.zeros(3)}, directory / "model.fp32-00001-of-00001.safetensors")
    return model


def speech_tokenizer(directory, units=UNITS, prefixed=True):
    """As published: Whisper's names, a decoder, a layer after the quantiser, and what only training needed."""
    model = SpeechTokenizer(SpeechTokenizerConfig(128, 32, 2, 64, 200, 2, 2, quantize_vocab_size=units))
    state, prefix = model.state_dict(), "model.encoder." if prefixed else ""
    extra = {prefix + "ema_count": torch.zeros(units), prefix + "layers.2.fc1.bias": torch.zeros(64),
             prefix + "layer_norm.weight": torch.zeros(32)}
    if prefixed:
        extra |= {"model.decoder.layer_norm.weight": torch.zeros(32), "proj_out.weight": torch.zeros(9, 32)}
    model.save_pretrained(directory)
    save_file({prefix + name: t for name, t in state.items()} | extra, directory / "model.safetensors")
    return model


def golden_decoder_config(units=UNITS):
    config = disk.read_json(GOLDEN / "glm4_voice.json")["config"]
    return {"flow": config["flow"] | {"vocab_size": units}, "hift": config["hift"]}


def golden_decoder_weights(units=UNITS):
    flow, hift = (load_file(GOLDEN / f"{part}_weights.safetensors") for part in ("flow", "hift"))
    table = flow["input_embedding.weight"]
    flow["input_embedding.weight"] = torch.cat([table, table])[:units].clone()
    return flow, hift


def as_hyperpyyaml(config) -> str:
    """The configuration written as the published config.yaml is: tags, references, and what else stands in there."""
    class Tagged(dict):
        pass

    class Dumper(yaml.SafeDumper):
        pass

    Dumper.add_representer(Tagged, lambda dumper, value: dumper.represent_mapping(value["tag"], value["body"]))
    new = lambda name, body: Tagged(tag=f"!new:cosyvoice.{name}", body=body)
    flow, hift = dict(config["flow"]), dict(config["hift"])
    decoder = dict(flow["decoder"])
    decoder["cfm_params"] = Tagged(tag="!new:omegaconf.DictConfig", body={"content": decoder["cfm_params"]})
    decoder["estimator"] = new("flow.decoder.ConditionalDecoder", decoder["estimator"])
    flow |= {"encoder": new("transformer.encoder.BlockConformerEncoder", flow["encoder"]),
             "length_regulator": new("flow.length_regulator.InterpolateRegulator", flow["length_regulator"]),
             "decoder": new("flow.flow_matching.ConditionalCFM", decoder), "spk_embed_dim": "REF<spk_embed_dim>"}
    hift |= {"f0_predictor": new("hifigan.f0_predictor.ConvRNNF0Predictor", hift["f0_predictor"]),
             "sampling_rate": "REF<rates[output]>"}
    text = yaml.dump({"flow": new("flow.flow.MaskedDiffWithXvec", flow), "hift": new("hifigan.HiFTGenerator", hift)},
                     Dumper=Dumper, sort_keys=False)
    text = text.replace("REF", "!ref ").replace("sigma_min: 1.0e-06", "sigma_min: 1e-06")
    assert "!ref <" in text and " 1e-06" in text
    return ("__set_seed1: !apply:random.seed [1986]\n__set_seed2: !apply:os.system [exit]\n"
            "spk_embed_dim: 192\nrates:\n  output: 22050\nsampler: !name:numpy.random.choice\n  size: 3\n" + text)


def speech_decoder(directory, units=UNITS, nested=None):
    flow, hift = golden_decoder_weights(units)
    directory.mkdir()
    (directory / "config.yaml").write_text(as_hyperpyyaml(golden_decoder_config(units)))
    torch.save({nested: flow} if nested else flow | {"epoch": 3}, directory / "flow.pt")
    torch.save(hift, directory / "hift.pt", _use_new_zipfile_serialization=nested is None)
    assert any(name.endswith("weight_v") for name in hift)


def refused(capsys, *args) -> str:
    """The error line of a command that is to fail with exit code 2 and nothing else."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        prepare.main(list(map(str, args)))
    assert stopped.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]


def files(directory) -> dict:
    return {path.relative_to(directory): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def change(directory, edit):
    path = next(directory.glob("model*.safetensors"))
    state = load_file(path)
    edit(state)
    save_file(state, path, {"format": "pt"})
