"""Speech decoder: facts about lengths, blocks, padding, files and training, with tiny random weights."""
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.utils.parametrizations import weight_norm

import disk
import speech_decoder
import weights
from flow import OUTPUT_RATE, Flow, FlowConfig, cosine_time, mel_frames
from hift import HiFT, HiFTConfig, energy_distance, fold_weight_norm, hift_losses, speech_mel
from speech_decoder import OVERLAP, SamplingConfig, SpeechDecoder, SpeechDecoderConfig, Stream

M = 16                                                              # mel bins
TINY = {
    "flow": {"vocab_size": 50, "input_size": 16, "output_size": M, "spk_embed_dim": 8,
             "encoder": {"output_size": 16, "attention_heads": 2, "linear_units": 32, "num_blocks": 2},
             "decoder": {"estimator": {"channels": [16, 16], "n_blocks": 1, "num_mid_blocks": 1, "num_heads": 2,
                                       "attention_head_dim": 8}}},
    "hift": {"in_channels": M, "base_channels": 16, "resblock_kernel_sizes": [3], "resblock_dilation_sizes": [[1, 3]],
             "source_resblock_kernel_sizes": [7, 7], "source_resblock_dilation_sizes": [[1], [1]],
             "f0_predictor": {"cond_channels": 8}},
    "sampling": {"steps": 3}}


def build():
    torch.manual_seed(0)
    decoder = SpeechDecoder(disk.checked(SpeechDecoderConfig, TINY, "the test"))
    with torch.no_grad():
        decoder.hift.f0_predictor.classifier.bias.fill_(150.0)      # a voiced pitch
    return decoder


@pytest.fixture(scope="module")
def decoder():
    return build()


def some_units(count, seed=0):
    return torch.randint(0, 50, (count,), generator=torch.Generator().manual_seed(seed))


# ---- lengths ----------------------------------------------------------------------------------------------------

def test_mel_frames_are_6_890625_per_unit():
    assert [mel_frames(n) for n in (0, 1, 5, 10, 20, 35)] == [0, 6, 34, 68, 137, 241]
    assert all(mel_frames(n) == n * 441 // 64 for n in range(3000))


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 13])           # 2 and 13 units make an odd number of frames
def test_any_number_of_units_is_decoded(decoder, count):
    samples = decoder.decode(some_units(count))
    assert samples.shape == (256 * mel_frames(count),) and samples.isfinite().all()


@pytest.mark.parametrize("count", [0, 1, 4, 5, 6, 10, 20, 23, 41])
@pytest.mark.parametrize("sizes", [None, (1,), (4,), (7, 10), (25, 50)])
def test_joined_blocks_are_as_long_as_the_whole(decoder, count, sizes):
    blocks = list(decoder.stream(iter(some_units(count).tolist()), sizes))
    assert sum(map(len, blocks)) == 256 * mel_frames(count) and all(len(block) for block in blocks)


@pytest.mark.parametrize("count", [23, 35, 61])
def test_the_release_loses_a_frame_per_block(decoder, count):
    blocks = list(decoder.stream(some_units(count), release_quirks=True))
    assert sum(map(len, blocks)) == 256 * (mel_frames(count) + 2 - -(-count // 10))


def test_the_first_block_is_spoken_after_ten_units(decoder):
    taken = []
    blocks = decoder.stream(taken.append(u) or u for u in some_units(40).tolist())
    assert len(next(blocks)) == 256 * (68 - 34 - 1) and len(taken) == 10


def test_long_units_are_decoded_in_blocks_of_a_bounded_size(decoder, monkeypatch):
    monkeypatch.setattr(speech_decoder, "MEMORY", 64)
    sizes, sample = [], decoder.flow.decoder.sample
    monkeypatch.setattr(decoder.flow.decoder, "sample", lambda *args: sizes.append(args[0].shape[2]) or sample(*args))
    for count, expected in ((128, [128]), (283, [64, 128, 128, 128, 91])):
        samples = decoder.decode(some_units(count))
        assert samples.shape == (256 * mel_frames(count),) and sizes == list(map(mel_frames, expected))
        sizes.clear()


def test_what_is_forgotten_does_not_move_what_is_kept(decoder, monkeypatch):
    units, streams = some_units(200), [Stream(decoder), Stream(decoder)]
    for block in units.split(50):
        for stream, memory in zip(streams, (64, 10_000)):
            monkeypatch.setattr(speech_decoder, "MEMORY", memory)
            stream.push(block)
    short, long = streams
    assert len(short.units) == 200 - 64 and torch.equal(short.units, long.units[64:])
    spoken = mel_frames(150) - OVERLAP - 441                        # before anything was forgotten
    assert short.mel.shape[1] == long.mel.shape[1] - 441
    assert torch.equal(short.mel[:, :spoken], long.mel[:, 441:441 + spoken])


# ---- what may and what may not depend on what -------------------------------------------------------------------

def test_the_same_units_give_the_same_sound_and_leave_the_global_generator_alone(decoder):
    state, units = torch.get_rng_state(), some_units(12)
    torch.testing.assert_close(decoder.decode(units), decoder.decode(units), rtol=0, atol=0)
    torch.testing.assert_close(list(decoder.stream(units)), list(decoder.stream(units)), rtol=0, atol=0)
    other = decoder.decode(units, torch.Generator().manual_seed(1))
    assert (other != decoder.decode(units)).any() and torch.equal(state, torch.get_rng_state())


def test_blocks_of_the_unit_encoder_do_not_change_when_units_follow(decoder):
    encoder, x = decoder.flow.encoder, torch.randn(1, 30, 16)
    with torch.no_grad():
        torch.testing.assert_close(encoder(x[:, :20]), encoder(x)[:, :20])
        assert (encoder(x[:, :25])[:, 20:] - encoder(x)[:, 20:25]).abs().max() > 1e-3


def test_padding_never_changes_a_row_of_the_unit_encoder(decoder):
    encoder, x = decoder.flow.encoder, torch.randn(2, 27, 16)
    with torch.no_grad():
        torch.testing.assert_close(encoder(x, torch.tensor([27, 18]))[1, :18], encoder(x[1:, :18])[0])


def test_a_block_keeps_the_noise_of_the_one_before(decoder):
    stream = Stream(decoder)
    stream.push(some_units(10))
    first = stream.noise
    stream.push(some_units(10, 1))
    torch.testing.assert_close(stream.noise[:, :68], first, rtol=0, atol=0)


def test_the_fade_adds_up_to_one_and_the_harmonics_run_on(decoder):
    stream = Stream(decoder)
    torch.testing.assert_close(stream.rise + stream.fall, torch.ones(OVERLAP))
    hift, mel = decoder.hift, torch.randn(M, 30)
    hift.config.nsf_sigma, sigma = 0.0, hift.config.nsf_sigma       # sines without noise
    try:
        with torch.no_grad():
            first, second = stream.make_source(mel[:, :20]), stream.make_source(mel[:, 19:])
    finally:
        hift.config.nsf_sigma = sigma
    joined = torch.cat([first[0, 0, -40:], second[0, 0, 256:296]])
    assert (joined[40] - joined[39]).abs() < 2 * (joined[:40].diff().abs().max())


def test_it_cannot_be_put_in_training_mode(decoder):
    assert not any(module.training for module in decoder.train().modules())


# ---- sampling ---------------------------------------------------------------------------------------------------

def test_sampling_equals_the_network_run_twice_per_step(decoder):
    flow, units = decoder.flow, some_units(9)
    noise = torch.randn(1, M, mel_frames(9))
    with torch.no_grad():
        mu, spk, x, times = flow.mu(units[None]), flow.speaker(), noise, cosine_time(torch.linspace(0, 1, 4))
        zero, ones = torch.zeros_like(mu), torch.ones(1, 1, mu.shape[2])
        for now, then in zip(times, times[1:]):
            f = flow.decoder.estimator
            v = 1.7 * f(x, ones, mu, now[None], spk, zero) - 0.7 * f(x, ones, zero, now[None], 0 * spk, zero)
            x = x + (then - now) * v
    torch.testing.assert_close(decoder.mel(units, noise), x[0], atol=1e-5, rtol=1e-5)


def test_guidance_temperature_and_steps_are_settings():
    decoder, units = build(), some_units(6)
    decoder.config.sampling = SamplingConfig(steps=1, temperature=0.0, guidance=0.0)
    calm = decoder.mel(units)
    torch.testing.assert_close(decoder.mel(units, generator=torch.Generator().manual_seed(7)), calm, rtol=0, atol=0)
    decoder.config.sampling.guidance = 0.7
    assert (decoder.mel(units) != calm).any()


@pytest.mark.parametrize("units", [[50], [-1], [0.5], [[1, 2]]])
def test_units_out_of_the_vocabulary_are_refused(decoder, units):
    with pytest.raises(ValueError, match="expected"):
        decoder.decode(units)


@pytest.mark.parametrize("part, named", (("flow.decoder.estimator.final_proj.bias", "the speech decoder's mel"),
                                         ("hift.conv_pre.weight", "the waveform"),
                                         ("hift.f0_predictor.classifier.bias", "the waveform")))
def test_the_part_whose_numbers_are_not_finite_is_named(part, named):
    decoder = build()
    decoder.get_parameter(part).data.fill_(float("nan"))
    for made in (decoder.decode, lambda units: list(decoder.stream(units))):
        with pytest.raises(ValueError, match=f"^{named}: .*NaN or infinite"):
            made(some_units(12))


def test_shapes_that_do_not_fit_are_refused(decoder):
    with pytest.raises(ValueError, match="noise is"):
        decoder.mel(some_units(5), noise=torch.zeros(M, 3))
    with pytest.raises(ValueError, match="prompt_mel is"):
        decoder.mel(some_units(5), prompt_mel=torch.zeros(M, 34))
    with pytest.raises(ValueError, match="block_sizes"):
        list(decoder.stream(some_units(5), (0,)))


# ---- files ------------------------------------------------------------------------------------------------------

def test_saved_and_loaded_is_the_same(tmp_path):
    decoder, units = build(), some_units(8)
    decoder.save_pretrained(tmp_path)
    again = SpeechDecoder.from_pretrained(tmp_path)
    assert again.config == decoder.config
    torch.testing.assert_close(dict(again.state_dict()), dict(decoder.state_dict()), rtol=0, atol=0)
    torch.testing.assert_close(again.decode(units), decoder.decode(units))
    half = SpeechDecoder.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.decode(units).dtype == torch.float32 and half.hift.f0(torch.zeros(1, M, 3)).dtype == torch.float32


def test_published_sizes():
    with torch.device("meta"):
        flow, hift = Flow(FlowConfig()), HiFT(HiFTConfig())
    assert len(flow.state_dict()) == 1185
    assert round(sum(p.numel() for p in flow.parameters()) / 1e6, 2) == 111.17
    gains = sum(m.weight.shape[0] for name, m in hift.named_modules()
                if isinstance(m, (torch.nn.Conv1d, torch.nn.ConvTranspose1d)) and "source_downs" not in name)
    assert round((sum(p.numel() for p in hift.parameters()) + gains) / 1e6, 2) == 20.46


@pytest.mark.parametrize("conv", [torch.nn.Conv1d(4, 6, 3), torch.nn.ConvTranspose1d(4, 6, 8)])
def test_folded_weight_norm_is_the_weight(conv):
    conv = weight_norm(conv)
    with torch.no_grad():
        conv.parametrizations.weight.original0.mul_(1.7)
    gain, direction = conv.parametrizations.weight.original0, conv.parametrizations.weight.original1
    torch.testing.assert_close(fold_weight_norm(gain, direction), conv.weight)


def normed(tensors):
    """A vocoder's tensors as the official files hold them, with weight_g and weight_v."""
    out = {}
    for name, t in tensors.items():
        if t.ndim == 3 and not name.startswith("source_downs"):
            norm = t.flatten(1).norm(dim=1).view(-1, 1, 1)
            out |= {name + "_g": norm, name + "_v": 3 * t}
        else:
            out[name] = t.clone()
    return out


def test_a_vocoder_with_weight_norm_loads(tmp_path):
    decoder = build()
    decoder.save_pretrained(tmp_path)
    save_file(normed(decoder.hift.state_dict()), tmp_path / "hift.safetensors")
    again = SpeechDecoder.from_pretrained(tmp_path)
    torch.testing.assert_close(dict(again.hift.state_dict()), dict(decoder.hift.state_dict()))


def test_files_that_do_not_fit_are_refused(tmp_path):
    decoder = build()
    decoder.save_pretrained(tmp_path)
    tensors = normed(decoder.hift.state_dict())

    def load(file, tensors):
        save_file(tensors, tmp_path / file)
        return SpeechDecoder.from_pretrained(tmp_path)

    for name, text in {"ups.0.weight_g": "ups.0.weight_g is missing", "conv_pre.weight_v": "missing: conv_pre.weight",
                       "m_source.l_linear.bias": "missing: m_source"}.items():
        with pytest.raises(ValueError, match=text):
            load("hift.safetensors", {key: t for key, t in tensors.items() if key != name})
    with pytest.raises(ValueError, match="left over: extra"):
        load("hift.safetensors", {**tensors, "extra": torch.zeros(1)})
    load("hift.safetensors", tensors)
    flow = load_file(tmp_path / "flow.safetensors")
    with pytest.raises(ValueError, match=r"encoder_proj.bias is \[3\], expected \[16\]"):
        load("flow.safetensors", {**flow, "encoder_proj.bias": torch.zeros(3)})
    disk.write_json(tmp_path / "config.json", {"flow": TINY["flow"]})
    with pytest.raises(ValueError, match="config.json: field hift is missing, expected an object"):
        SpeechDecoder.from_pretrained(tmp_path)


# ---- training ---------------------------------------------------------------------------------------------------

def test_speech_mel_has_a_frame_per_256_samples_and_a_floor():
    for count in (1, 5, 13):
        mel = speech_mel(torch.zeros(2, 1764 * count), M)
        assert mel.shape == (2, M, mel_frames(count))
        torch.testing.assert_close(mel, torch.full_like(mel, -11.5129), atol=1e-3, rtol=0)
    with pytest.raises(ValueError, match="use a longer clip"):
        speech_mel(torch.zeros(384))


def test_flow_loss_falls():
    decoder = build()
    flow = decoder.flow.train()
    units, mel = some_units(10)[None].expand(4, -1), torch.randn(1, M, 68).cumsum(2).expand(4, -1, -1) / 4
    optimizer, losses = torch.optim.Adam(flow.parameters(), 3e-3), []
    for _ in range(25):
        loss = flow.loss(units, mel, generator=torch.Generator().manual_seed(0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_the_flow_loss_does_not_read_padding(decoder):
    units, mel, losses = some_units(20).view(2, 10), torch.randn(2, M, 68), []
    lengths, frames = torch.tensor([10, 8]), torch.tensor([68, 55])
    for filler in (0, 9):
        units[1, 8:], mel[1, :, 55:] = filler, filler
        losses.append(decoder.flow.loss(units, mel, lengths, frames, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(*losses)


def test_vocoder_losses_fall():
    hift = build().hift.train()
    time = torch.arange(256 * 16) / OUTPUT_RATE
    waveform, f0 = 0.3 * torch.sin(2 * torch.pi * 200 * time)[None], torch.full((1, 16), 200.0)
    mel, optimizer, totals = speech_mel(waveform, M), torch.optim.Adam(hift.parameters(), 3e-3), []
    for _ in range(12):
        terms = hift_losses(hift, mel, waveform, f0, torch.Generator().manual_seed(0))
        total = terms["energy"] + terms["f0"] / 50
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert totals[-1] < 0.9 * totals[0] and all(p.grad is not None for p in hift.parameters())


def test_the_energy_distance_is_least_for_noise_that_varies_as_the_true_one():
    noise = 0.1 * torch.randn(12, 8192, generator=torch.Generator().manual_seed(0))
    a, b, true = noise.chunk(3)
    hum = 0.02 * (torch.arange(8192) % 256 == 0)                # lines at the mel's frame rate
    least = energy_distance(a, b, true, M)
    for other_a, other_b in [(a, a), (0.7 * a, 0.7 * b), (a + 30 * hum, b + 30 * hum)]:
        assert energy_distance(other_a, other_b, true, M) > 1.1 * least
    assert energy_distance(true, true, true, M) == 0


def test_a_magnitude_beyond_all_numbers_is_cut_off_and_leaves_gradients_finite():
    hift = build().hift
    with torch.no_grad():
        hift.conv_post.bias[0] = 1000.0                             # exp of it is inf
    mel, f0 = torch.randn(1, M, 16), torch.full((1, 16), 200.0)
    terms = hift_losses(hift, mel, torch.randn(1, 256 * 16), f0, torch.Generator().manual_seed(0))
    terms["energy"].backward()
    assert terms["energy"].isfinite() and all(p.grad is None or p.grad.isfinite().all() for p in hift.parameters())
