"""Golden outputs of the reference speech tokenizer, flow, vocoder and block streaming, to the tolerances of the set.

GOLDEN_DIR names a directory with another set of the same form; every size comes from its json. GOLDEN_DEVICE: where the
modules and the numbers are (default: cpu).
"""
import math
import os
import re
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import disk
from flow import OUTPUT_HOP, cosine_time, mel_frames
from speech_decoder import OVERLAP, SpeechDecoder, Stream
from speech_tokenizer import SpeechTokenizer
from whisper import SAMPLE_RATE, mel_filters, sinusoids

ROOT = Path(os.environ.get("GOLDEN_DIR", Path(__file__).parent / "fixtures")) / "glm4_voice"
DEVICE = os.environ.get("GOLDEN_DEVICE", "cpu")
SPEC = disk.read_json(ROOT / "glm4_voice.json")
BLOCKS = SPEC["stream_blocks"]
checked = set()                                         # "file/tensor": the last test asks for all of them


def tolerance(what: str) -> list:
    """The (absolute, relative) bounds in the line of the json's list that starts so; one per "abs" in it."""
    table = next(v for k, v in SPEC["tolerances"].items() if k.startswith("another"))
    text = next(v for k, v in table.items() if k.startswith(what))
    relative = re.search(r"([\d.]+e-?\d+) rel", text)
    return [(float(number), float(relative[1]) if relative else 0.0)
            for number in re.findall(r"([\d.]+e-?\d+) (?:Hz )?abs", text)]


TOLERANCES = {name: tolerance(line)[0] for name, line in {
    "hidden": "tokenizer hidden", "flow": "flow encoder", "mel": "flow 10-step mel", "f0": "f0", "wave": "hift wav",
    "source": "sine source", "own draws": "streaming with own"}.items()}
TOLERANCES["stream"], TOLERANCES["speech"] = tolerance("streaming with stored noise")       # mel, then sound
TOLERANCES["exact"] = (0.0, 0.0)


@lru_cache
def golden(file):
    return load_file(ROOT / f"{file}.safetensors", DEVICE)


def want(file, name):
    checked.add(f"{file}/{name}")
    return golden(file)[name]


def same(seen, file, name, kind):
    expected, (absolute, relative) = want(file, name), TOLERANCES[kind]
    seen = torch.as_tensor(seen)
    assert seen.numel() == expected.numel(), f"{name}: {tuple(seen.shape)}, expected {tuple(expected.shape)}"
    torch.testing.assert_close(seen.reshape(expected.shape).to(expected), expected, atol=absolute, rtol=relative,
                               msg=lambda text: f"{file} {name}: {text}")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    directory, config = tmp_path_factory.mktemp("tokenizer"), dict(SPEC["config"]["tokenizer"])
    disk.write_json(directory / "preprocessor_config.json", config.pop("feature_extractor"))
    disk.write_json(directory / "config.json", config)
    save_file(golden("tokenizer_weights"), directory / "model.safetensors")
    return SpeechTokenizer.from_pretrained(directory, DEVICE)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    directory = tmp_path_factory.mktemp("decoder")
    disk.write_json(directory / "config.json", {name: SPEC["config"][name] for name in ("flow", "hift")})
    for name in ("flow", "hift"):
        save_file(golden(f"{name}_weights"), directory / f"{name}.safetensors")
    return SpeechDecoder.from_pretrained(directory, DEVICE)


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def wave(name):
    return want("tokenizer_wav", f"{name}.pcm16").float() / 32768


# ---- tokenizer --------------------------------------------------------------------------------------------------

def test_mel_filters():
    same(mel_filters(SPEC["config"]["tokenizer"]["num_mel_bins"]).T, "tokenizer_io", "mel_filters", "hidden")


@pytest.mark.parametrize("name", ["a", "b"])
def test_a_single_recording(tokenizer, name):
    mel, mask = tokenizer.features([wave(name)])
    same(mel, "tokenizer_io", f"{name}.input_features", "hidden")
    same(mask, "tokenizer_io", f"{name}.attention_mask", "exact")
    if f"{name}.conv_out" in golden("tokenizer_io"):
        same(tokenizer.convolve(mel), "tokenizer_io", f"{name}.conv_out", "hidden")
    same(tokenizer.hidden(mel, mask), "tokenizer_io", f"{name}.hidden_before_vq", "hidden")
    same(tokenizer.encode(wave(name)), "tokenizer_io", f"{name}.ids", "exact")
    same(tokenizer.encode(wave(name)), "tokenizer_wav", f"{name}.ids", "exact")


def test_two_recordings_in_one_batch(tokenizer):
    pair = [wave("a"), wave("b")]
    mel, mask = tokenizer.features(pair)
    layers = []
    handle = tokenizer.layers[0].register_forward_hook(lambda _m, _i, out: layers.append(out))
    hidden = tokenizer.hidden(mel, mask)
    handle.remove()
    ids = tokenizer.quantise(hidden)
    states = tokenizer.codebook(ids) + tokenizer.embed_positions2.weight[:ids.shape[1]]
    same(mel, "tokenizer_io", "ab.input_features", "hidden")
    same(mask, "tokenizer_io", "ab.attention_mask", "exact")
    same(layers[0], "tokenizer_io", "ab.layer0_out", "hidden")
    same(hidden, "tokenizer_io", "ab.hidden_before_vq", "hidden")
    same(ids, "tokenizer_io", "ab.quantized_token_ids", "exact")
    same(states, "tokenizer_io", "ab.last_hidden_state", "hidden")
    for file in ("tokenizer_io", "tokenizer_wav"):
        for name, row in zip("ab", tokenizer.encode_batch(pair)):
            same(row, file, f"ab.ids_{name}", "exact")


def test_a_recording_longer_than_a_piece(tokenizer):
    pieces = wave("c").split(tokenizer.config.max_samples)
    mel, mask = tokenizer.features(pieces)
    same(mask, "tokenizer_io", "c.attention_mask", "exact")
    same(mask[:, ::tokenizer.config.samples_per_unit * 100 // SAMPLE_RATE], "tokenizer_io", "c.token_mask", "exact")
    same(tokenizer.hidden(mel, mask), "tokenizer_io", "c.hidden_before_vq", "hidden")
    same(tokenizer.encode(wave("c")), "tokenizer_wav", "c.ids", "exact")


# ---- flow -------------------------------------------------------------------------------------------------------

def test_unit_encoder_and_regulator_of_a_padded_batch(decoder):
    flow, seen = decoder.flow, {}
    lengths, tokens = want("flow_io", "enc.token_len"), want("flow_io", "enc.tokens")
    for name, module in {"embed_out": flow.encoder.embed, "layer0_out": flow.encoder.encoders[0],
                         "encoder_out": flow.encoder, "proj_out": flow.encoder_proj}.items():
        module.register_forward_hook(lambda _m, _i, out, name=name: seen.update({name: out}))
    mu = flow.mu(tokens, lengths)
    D = flow.config.encoder.output_size
    same(seen["embed_out"] * math.sqrt(D), "flow_io", "enc.embed_out", "flow")
    same(flow.encoder.positions(tokens.shape[1], D), "flow_io", "enc.pos_emb", "flow")
    for name in ("layer0_out", "encoder_out", "proj_out"):
        same(seen[name], "flow_io", f"enc.{name}", "flow")
    same([mel_frames(n) for n in lengths.tolist()], "flow_io", "enc.feat_len", "exact")
    same(mu.transpose(1, 2), "flow_io", "enc.mu", "flow")


def test_regulator_rounds_as_float32(decoder):
    units = want("flow_io", "reg16.in")
    same(mel_frames(units.shape[1]), "flow_io", "reg16.feat_len", "exact")
    same(decoder.flow.length_regulator(units, mel_frames(units.shape[1])), "flow_io", "reg16.mu", "flow")


def test_speaker(decoder):
    embedding = want("flow_io", "spk.in")
    same(decoder.flow.speaker(embedding), "flow_io", "spk.out", "flow")
    same(decoder.flow.speaker(), "flow_io", "spk.zeros_out", "flow")
    same(decoder.flow.speaker(torch.zeros_like(embedding[:1])), "flow_io", "spk.zeros_out", "flow")


def test_time_embedding(decoder):
    estimator, t = decoder.flow.decoder.estimator, want("flow_io", "time.t")
    sinusoid = sinusoids(1000 * t.float(), estimator.time_dim)
    same(sinusoid, "flow_io", "time.sinusoid", "flow")
    same(estimator.time_mlp(sinusoid), "flow_io", "time.mlp", "flow")


@pytest.mark.parametrize("case", ["est1", "est2", "est3"])
def test_estimator(decoder, case):
    estimator = decoder.flow.decoder.estimator
    x, mask, mu, t, spk, cond = (want("flow_io", f"{case}.{name}") for name in ("x", "mask", "mu", "t", "spk", "cond"))
    same(estimator(x, mask, mu, t, spk, cond), "flow_io", f"{case}.out", "flow")
    if mask.all():
        same(estimator(x, None, mu, t, spk, cond), "flow_io", f"{case}.out", "flow")


@pytest.mark.parametrize("case", ["full", "full_spk"])
def test_units_to_mel(decoder, case):
    flow, tokens, embedding = decoder.flow, want("flow_io", f"{case}.tokens"), want("flow_io", f"{case}.embedding")
    times = want("flow_io", f"{case}.t_span")
    same(flow.mu(tokens), "flow_io", f"{case}.mu", "flow")
    same(flow.speaker(embedding), "flow_io", f"{case}.spk", "flow")
    same(cosine_time(torch.linspace(0, 1, len(times))), "flow_io", f"{case}.t_span", "flow")
    mel = decoder.mel(tokens[0], noise=want("flow_io", f"{case}.noise"), speaker=embedding[0])
    same(mel, "flow_io", f"{case}.mel", "mel")


def test_prompted_units_to_mel(decoder):
    prompt, tokens = want("flow_io", "prompt.prompt_tokens")[0], want("flow_io", "prompt.tokens")[0]
    prompt_mel, cond = want("flow_io", "prompt.prompt_feat")[0].T, torch.zeros_like(want("flow_io", "prompt.cond"))
    cond[0, :, :prompt_mel.shape[1]] = prompt_mel
    same(cond, "flow_io", "prompt.cond", "exact")
    same(decoder.flow.mu(torch.cat([prompt, tokens])[None]), "flow_io", "prompt.mu", "flow")
    embedding = want("flow_io", "prompt.embedding")
    same(decoder.flow.speaker(embedding), "flow_io", "prompt.spk", "flow")
    same(cosine_time(torch.linspace(0, 1, len(want("flow_io", "prompt.t_span")))), "flow_io", "prompt.t_span", "flow")
    mel = decoder.mel(tokens, want("flow_io", "prompt.noise"), prompt, prompt_mel, speaker=embedding[0])
    same(mel, "flow_io", "prompt.mel", "mel")


def test_flow_matching_loss(decoder):
    x1, mu, spk, cond, mask, z = (want("flow_io", f"loss.{name}") for name in ("x1", "mu", "spk", "cond", "mask", "z"))
    t = cosine_time(want("flow_io", "loss.t_uniform"))
    matching = decoder.flow.decoder
    same(matching.noisy(x1, z, t)[0], "flow_io", "loss.y", "flow")
    keep = want("flow_io", "loss.keep_cond")
    same(matching.loss(x1, mu, spk, cond, mask, t, z, keep), "flow_io", "loss.loss", "flow")


# ---- vocoder ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("case", ["a", "b", "c"])
def test_vocoder(decoder, case):
    hift, io = decoder.hift, golden("hift_io")
    mel, phase, source = want("hift_io", f"{case}.mel"), want("hift_io", f"{case}.phase"), io[f"{case}.source"]
    phase = torch.cat([torch.zeros_like(phase[:, :1]), phase[:, 1:]], dim=1)
    seen = {}
    for name, module in {"conv_pre": hift.conv_pre, "source_down0": hift.source_downs[0], "ups0": hift.ups[0],
                         "conv_post": hift.conv_post}.items():
        module.register_forward_hook(lambda _m, _i, out, name=name: seen.update({name: out}))
    made = hift.source(hift.f0(mel), phase, want("hift_io", f"{case}.noise"))
    if f"{case}.cache_source" in io:
        cache = want("hift_io", f"{case}.cache_source")
        made[:, :, :cache.shape[2]] = cache
    same(hift.f0(mel), "hift_io", f"{case}.f0", "f0")
    same(made, "hift_io", f"{case}.source", "source")
    same(hift(mel, source), "hift_io", f"{case}.wav", "wave")
    seen["source_stft"] = hift.spectrum(source)
    for name, value in seen.items():
        if f"{case}.{name}" in io:
            same(value, "hift_io", f"{case}.{name}", "wave")


# ---- streaming --------------------------------------------------------------------------------------------------

def test_constants_and_fade_window(decoder):
    voice = Stream(decoder, release_quirks=True)
    assert SPEC["constants"] == {"mel_overlap_len": OVERLAP, "source_cache_len": OUTPUT_HOP}
    same(torch.cat([voice.rise, voice.fall]), "stream_io", "fade_window", "flow")


@pytest.mark.parametrize("case", list(BLOCKS))
def test_blocks_as_the_release(decoder, case):
    units, joined, mels = want("stream_io", "tokens")[0], [], []
    voice = Stream(decoder, release_quirks=True)
    for i, block in enumerate(BLOCKS[case]):
        start, count = block["n_prompt"], block["tokens"][-1]
        new, noise = units[start:start + count], want("stream_io", f"{case}.{i}.noise")
        if f"{case}.{i}.flow_mel" in golden("stream_io"):
            prompt = torch.cat(mels, dim=2)[0] if mels else None
            same(decoder.mel(new, noise, units[:start], prompt), "stream_io", f"{case}.{i}.flow_mel", "stream")
        before = voice.mel.shape[1]
        samples = voice.push(new, i == len(BLOCKS[case]) - 1, noise, want("stream_io", f"{case}.{i}.source"))
        same(voice.mel[:, before:], "stream_io", f"{case}.{i}.mel", "stream")
        if f"{case}.{i}.speech" in golden("stream_io"):
            same(samples, "stream_io", f"{case}.{i}.speech", "speech")
        mels.append(golden("stream_io")[f"{case}.{i}.mel"])
        joined.append(samples)
    same(torch.cat(joined), "stream_io", f"{case}.speech", "speech")


@pytest.mark.parametrize("case", list(BLOCKS))
def test_blocks_with_the_draws_of_the_release(decoder, case):
    units, joined, generator = want("stream_io", "tokens")[0], [], torch.Generator()
    voice = Stream(decoder, generator, release_quirks=True)
    for i, block in enumerate(BLOCKS[case]):
        generator.manual_seed(42)
        new = units[block["n_prompt"]:block["n_prompt"] + block["tokens"][-1]]
        joined.append(voice.push(new, i == len(BLOCKS[case]) - 1))
    same(torch.cat(joined), "stream_io", f"{case}.speech", "own draws")


def test_every_golden_tensor_was_compared(request):
    chosen = {item.function.__name__ for item in request.session.items if item.module is request.module}
    if chosen != {name for name in vars(request.module) if name.startswith("test_")}:
        pytest.skip("only some of the tests were chosen")
    listed = {f"{file.removesuffix('.safetensors')}/{name}" for file, tensors in SPEC["tensors"].items()
              for name in tensors if "weights" not in file}
    assert listed <= checked, f"not compared: {sorted(listed - checked)}"
