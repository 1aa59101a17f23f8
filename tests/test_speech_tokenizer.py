"""Speech tokenizer: facts about units, blocks, padding and files, with tiny random weights."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

import disk
import weights
from speech_tokenizer import SpeechTokenizer, SpeechTokenizerConfig

TINY = dict(num_mel_bins=80, d_model=32, encoder_attention_heads=4, encoder_ffn_dim=64, quantize_position=3,
            pooling_position=3, quantize_vocab_size=64)


def build(**changes):
    torch.manual_seed(0)
    tokenizer = SpeechTokenizer(SpeechTokenizerConfig(**{**TINY, **changes})).eval()
    tokenizer.init_weights(0.1)
    return tokenizer


def noise(samples, seed=0):
    return 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("samples", [1, 160, 1280, 1281, 16000, 480_000, 480_001])
def test_a_unit_per_1280_samples_begun(samples):
    units = build().encode(noise(samples))
    assert units.shape == (-(-samples // 1280),) and units.dtype == torch.int64
    assert 0 <= int(units.min()) and int(units.max()) < TINY["quantize_vocab_size"]


def test_whole_units_do_not_depend_on_the_batch():
    tokenizer, clips = build(), [noise(12800), noise(38400, 1), noise(5000, 2)]
    for clip, units in zip(clips, tokenizer.encode_batch(clips)):
        torch.testing.assert_close(units[:-1], tokenizer.encode(clip)[:-1])


def test_units_of_a_block_do_not_change_when_sound_follows():
    tokenizer = build(quantize_causal_block_size=16)                # 16 states, 4 units, 5120 samples
    mel, _ = tokenizer.features([noise(20480)])
    with torch.no_grad():
        torch.testing.assert_close(tokenizer.hidden(mel[:, :, :64])[:, :8], tokenizer.hidden(mel)[:, :8])
        later = mel.clone()
        later[:, :, 40:] += 1                                       # second block: states 16-31
        changed = (tokenizer.hidden(later) != tokenizer.hidden(mel)).any(-1)[0]
    assert not changed[:4].any() and changed[4:].any()


def test_without_blocks_the_first_unit_hears_the_last():
    tokenizer = build(quantize_causal_block_size=None)
    mel, _ = tokenizer.features([noise(40960)])
    later = mel.clone()
    later[:, :, -8:] += 1
    with torch.no_grad():
        assert (tokenizer.hidden(later)[0, 0] != tokenizer.hidden(mel)[0, 0]).any()


@pytest.mark.parametrize("kind", ["avg", "max"])
def test_pooling_before_later_layers(kind):
    tokenizer = build(pooling_position=1, pooling_type=kind, quantize_causal_block_size=16)
    mel, _ = tokenizer.features([noise(10240)])                     # 32 states, 8 units, blocks of 4 units
    with torch.no_grad():
        x = tokenizer.convolve(mel) + tokenizer.embed_positions.weight[:32]
        i = torch.arange(32)
        x = tokenizer.layers[0](x, i < (i[:, None] // 16 + 1) * 16).unflatten(1, (8, 4))
        x = x.mean(2) if kind == "avg" else x.amax(2)
        i = torch.arange(8)
        for layer in tokenizer.layers[1:]:
            x = layer(x, i < (i[:, None] // 4 + 1) * 4)
        torch.testing.assert_close(tokenizer.hidden(mel), x)


def test_quantise_finds_the_nearest_code_and_the_first_of_equals():
    tokenizer = build()
    with torch.no_grad():
        tokenizer.codebook.weight[9] = tokenizer.codebook.weight[5]
        assert tokenizer.quantise(tokenizer.codebook.weight[None])[0].tolist() == [*range(9), 5, *range(10, 64)]


def test_gradients_reach_every_layer():
    tokenizer = build().train()
    mel, mask = tokenizer.features([noise(12800), noise(6400)])
    F.mse_loss(tokenizer.hidden(mel, mask), torch.ones(2, 10, 32)).backward()
    without = {name for name, p in tokenizer.named_parameters() if p.grad is None}
    assert without == {"codebook.weight", "embed_positions2.weight"}


def test_saved_and_loaded_is_the_same(tmp_path):
    tokenizer = build()
    tokenizer.save_pretrained(tmp_path)
    again = SpeechTokenizer.from_pretrained(tmp_path)
    assert again.config == tokenizer.config and not again.training
    torch.testing.assert_close(dict(again.state_dict()), dict(tokenizer.state_dict()), rtol=0, atol=0)
    half = SpeechTokenizer.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.encode(noise(16000)).shape == (13,)


def test_a_full_checkpoint_loads_by_its_encoder(tmp_path):
    tokenizer = build()
    tokenizer.save_pretrained(tmp_path)
    tensors = {f"model.encoder.{name}": t.clone() for name, t in tokenizer.state_dict().items()}
    tensors |= {f"model.encoder.{name}": torch.zeros(2) for name in
                ("ema_count", "ema_weight", "layer_norm.weight", "layers.3.fc1.bias", "layers.12.fc1.bias")}
    tensors |= {"model.decoder.layers.0.fc1.bias": torch.zeros(2), "proj_out.weight": torch.zeros(2)}
    save_file(tensors, tmp_path / "model.safetensors")
    again = SpeechTokenizer.from_pretrained(tmp_path)
    torch.testing.assert_close(again.encode(noise(16000)), tokenizer.encode(noise(16000)))


def test_files_that_do_not_fit_are_refused(tmp_path):
    build().save_pretrained(tmp_path)
    disk.write_json(tmp_path / "preprocessor_config.json", {"feature_size": 128})
    with pytest.raises(ValueError, match="feature_size = 128, expected 80"):
        SpeechTokenizer.from_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({name: t for name, t in tensors.items() if name != "layers.1.fc1.bias"}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="missing: layers.1.fc1.bias"):
        SpeechTokenizer.from_pretrained(tmp_path)
    save_file({**tensors, "conv1.bias": torch.zeros(3)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"conv1.bias is \[3\], expected \[32\]"):
        SpeechTokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize("waveform", [torch.zeros(0), torch.zeros(2, 100), torch.tensor([0.0, float("nan")])])
def test_what_is_not_a_waveform_is_refused(waveform):
    with pytest.raises(ValueError, match="expected"):
        build().encode(waveform)
