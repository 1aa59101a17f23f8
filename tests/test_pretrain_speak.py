"""Training of the small speech tokenizer and decoder: facts about its parts and runs of seconds on synthetic sound."""
import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import data
import disk
from flow import Flow, mel_frames
from hift import HiFT, speech_mel
from speech_decoder import SpeechDecoder, SpeechDecoderConfig
from speech_tokenizer import SpeechTokenizer, SpeechTokenizerConfig
from toy import clips, codebook, fit
from toy import pretrain_speak as speak

V, M = 24, 16                                                       # codes, mel bins of the decoder
TOKENIZER = SpeechTokenizerConfig(num_mel_bins=20, d_model=16, encoder_attention_heads=2, encoder_ffn_dim=32,
                                  max_source_positions=100, quantize_position=1, pooling_position=1,
                                  quantize_vocab_size=V)
DECODER = disk.checked(SpeechDecoderConfig, {
    "flow": {"vocab_size": V, "input_size": 16, "output_size": M, "spk_embed_dim": 8,
             "encoder": {"output_size": 16, "attention_heads": 2, "linear_units": 32, "num_blocks": 1,
                         "dropout_rate": 0.0},
             "decoder": {"estimator": {"channels": [32, 32], "n_blocks": 1, "num_mid_blocks": 1, "num_heads": 2,
                                       "attention_head_dim": 8}}},
    "hift": {"in_channels": M, "base_channels": 16, "resblock_kernel_sizes": [3], "resblock_dilation_sizes": [[1]],
             "source_resblock_kernel_sizes": [3, 3], "source_resblock_dilation_sizes": [[1], [1]],
             "f0_predictor": {"cond_channels": 8}},
    "sampling": {"steps": 1, "temperature": 0.0, "guidance": 0.0}}, "the test")
TONES = {"a": 110.0, "b": 220.0, "pau": 0.0}                        # Hz of each "phone"


def sound(names, seconds, rate=16_000):
    """Phones of 0.25 s each: harmonics of their tone, or faint noise."""
    t = torch.arange(round(0.25 * rate)) / rate
    hiss = 0.003 * torch.randn(len(t) * len(names), generator=torch.Generator().manual_seed(0))
    waves = [sum(0.1 / h * torch.sin(2 * torch.pi * h * TONES[name] * t) for h in range(1, 9)) for name in names]
    return (torch.cat(waves) + hiss)[:round(seconds * rate)]


@pytest.fixture(scope="module")
def voice(tmp_path_factory):
    """24 clips of 0.75 to 1.25 s."""
    directory, random = tmp_path_factory.mktemp("voice"), np.random.default_rng(0)
    with data.Writer(directory) as out:
        for i in range(24):
            names = random.choice(list(TONES), 3 + i % 3).tolist()
            out.add({"id": f"v{i}", "task": "tts", "messages": [], "answer": "x",
                     "phones": [[name, 0.25 * n, 0.25 * (n + 1)] for n, name in enumerate(names)]},
                    audio=sound(names, 0.25 * len(names)))
        out.finish()
    return data.Split(directory)


def train_tokenizer(voice, folder, steps=60):
    speak.train_tokenizer(voice, folder, steps, TOKENIZER, DECODER, total=60)


@pytest.fixture(scope="module")
def trained(voice, tmp_path_factory):
    """A folder with all three trained for a few seconds, and the flow as it was in training, before rounding."""
    folder, kept, write = tmp_path_factory.mktemp("trained"), {}, speak.write_half
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speak, "SEGMENT", 16)
        patch.setattr(speak, "write_half", lambda path, module: (kept.update({path.stem: module}), write(path, module)))
        train_tokenizer(voice, folder)
        speak.train_flow(voice, folder, 100, DECODER, total=30)
        speak.train_hift(voice, folder, 40, DECODER, rows=2)
    return folder, kept


def log(folder, part):
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [row for row in rows if row["part"] == part]


# ---- data -------------------------------------------------------------------------------------------------------

def test_a_batch_is_of_nearly_one_length_and_an_epoch_has_each_clip_once():
    lengths = sorted(torch.randint(5, 100, (300,), generator=torch.Generator().manual_seed(0)).tolist())
    groups = clips.batches(lengths, 200)
    assert [i for group in groups for i in range(300)[group]] == list(range(300))
    for group in groups:
        rows = lengths[group]
        assert rows[-1] <= 1.1 * rows[0] and len(rows) * rows[0] <= 200
    epochs = [[clips.group_at(step, groups) for step in range(n, n + len(groups))] for n in (0, len(groups))]
    assert epochs[0] != epochs[1] and all(sorted(g.start for g in e) == [g.start for g in groups] for e in epochs)


def test_units_phones_and_mels_of_whole_units_agree_in_length(voice):
    for row, waveform in clips.waveforms(voice, TOKENIZER.samples_per_unit):
        units = len(waveform) // 1280
        assert len(waveform) == 1280 * units and len(waveform) - len(row["audio"]) in range(1280)
        said = clips.at_output_rate(waveform)
        assert speech_mel(said).shape[1] == mel_frames(units) == len(clips.pitch(said))


def test_a_phone_is_the_one_in_the_middle_of_its_20_ms():
    spans = [["pau", 0.0, 0.05], ["a", 0.05, 0.0701], ["b", 0.0701, 0.09]]
    assert clips.phone_ids(spans, ["a", "b", "pau"], 6).tolist() == [2, 2, 0, 0, 1, 1]  # .01 .03 .05 .07 .09 .11 s


@pytest.mark.parametrize("hertz", [70.0, 102.0, 180.0, 250.0])
def test_pitch_of_a_tone_is_found_and_noise_has_none(hertz):
    t = torch.arange(22_050) / 22_050
    tone = sum(0.1 * torch.sin(2 * torch.pi * h * hertz * t) for h in range(1, 8))
    hiss = 0.05 * torch.randn(22_050, generator=torch.Generator().manual_seed(0))
    f0 = clips.pitch(torch.cat([tone, hiss]))
    assert (f0[3:80] / hertz - 1).abs().max() < 0.02                # half a sample of the shortest period is 0.6 %
    assert (f0[92:] > 0).float().mean() < 0.1


# ---- codebook ---------------------------------------------------------------------------------------------------

def quantised():
    torch.manual_seed(0)
    return codebook.Quantised(TOKENIZER, DECODER.flow, 3)


def test_k_means_finds_clusters():
    generator = torch.Generator().manual_seed(0)
    true = 10 * torch.randn(8, 4, generator=generator)
    states = true.repeat(50, 1) + 0.01 * torch.randn(400, 4, generator=generator)
    centres, sizes = codebook.k_means(states, 32, generator)
    assert sizes.sum() == 400 and torch.cdist(true, centres).min(1).values.max() < 0.05


def test_codes_follow_the_mean_of_their_states(monkeypatch):
    monkeypatch.setattr(codebook, "DECAY", 0.9)
    model, states = quantised(), torch.randn(3, 16)
    model.set_codes(torch.zeros(V, 16), slice(None), torch.ones(V))
    for _ in range(150):                                            # .9 ** 150 = 1e-7
        model.follow(states, torch.tensor([5, 5, 7]))
    torch.testing.assert_close(model.tokenizer.codebook.weight[[5, 7]], torch.stack([states[:2].mean(0), states[2]]),
                               rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.count[[5, 7, 0]], torch.tensor([2.0, 1, 0]), rtol=1e-3, atol=1e-5)


def test_only_dead_codes_restart_and_as_states_of_the_batch():
    model, states = quantised(), torch.randn(40, 16)
    model.set_codes(torch.zeros(V, 16), slice(None), torch.full((V,), 1.0))
    model.count[[3, 9]] = 0.01
    assert model.restart(states, torch.Generator().manual_seed(0)) == 2
    codes = model.tokenizer.codebook.weight
    assert (codes[[3, 9], None] == states).all(-1).any(1).all() and (model.count > 0.9).all()
    assert (codes.norm(dim=1) > 0).nonzero()[:, 0].tolist() == [3, 9]
    assert model.restart(states, torch.Generator().manual_seed(0)) == 0


def test_perplexity_counts_the_codes_in_use():
    model = quantised()
    assert model.perplexity() == 0
    model.count[:6] = 0.7
    assert model.perplexity() == pytest.approx(6, rel=1e-5)


# ---- training ---------------------------------------------------------------------------------------------------

def test_each_loss_falls(trained):
    folder, _ = trained
    losses = {"speech_tokenizer": ["mu", "detail", "phones"], "flow": ["mu", "landed"], "hift": ["energy"]}
    for part, names in losses.items():
        rows = log(folder, part)                                    # means of 20 steps
        for name in names:
            assert rows[-1][name] < 0.96 * rows[0][name], (part, name, [row[name] for row in rows])


def test_the_codebook_begins_after_a_quarter_and_is_used(trained):
    rows = log(trained[0], "speech_tokenizer")
    assert rows[0]["commitment"] > 0 and rows[-1]["perplexity"] > V / 3


def test_units_are_the_same_in_16_bits(trained, voice):
    folder, kept = trained
    encode = speak.unit_encoder(folder)
    rows = [w for _, w in clips.waveforms(voice, TOKENIZER.samples_per_unit)]
    assert all(t.dtype == torch.float16 for t in load_file(folder / "speech_tokenizer" / "model.safetensors").values())
    same = torch.cat([encode(w) == kept["model"].encode(w) for w in rows])
    assert same.float().mean() >= 0.99
    assert len(torch.cat([encode(w) for w in rows]).unique()) > V / 3


def test_the_folder_opens_and_makes_the_mel_and_sound_of_training(trained, voice):
    folder, kept = trained
    decoder = SpeechDecoder.from_pretrained(folder / "speech_decoder")
    units = speak.unit_encoder(folder)(voice[3]["audio"])
    assert asdict(decoder.config) == asdict(DECODER)
    assert asdict(SpeechTokenizer.from_pretrained(folder / "speech_tokenizer").config) == asdict(TOKENIZER)
    exact = SpeechDecoder(DECODER)
    exact.flow, exact.hift = kept["flow"].eval(), kept["hift"].eval()
    mel = decoder.mel(units)
    torch.testing.assert_close(mel, exact.mel(units), rtol=0, atol=0.05)    # natural log; 11-bit weights
    samples = decoder.decode(units)
    assert samples.shape == (256 * mel_frames(len(units)),) and samples.abs().max() > 0.001
    torch.testing.assert_close(samples, exact.decode(units), rtol=0, atol=0.05)


def test_the_flows_table_says_what_the_code_vectors_said():
    model, ids = quantised().eval(), torch.randint(0, V, (2, 7))
    with torch.no_grad():
        mu = model(model.tokenizer.codebook(ids), mel_frames(7))[0]
        model.flow.input_embedding.weight.copy_(model.table())
        torch.testing.assert_close(model.flow.mu(ids), mu)


@pytest.mark.parametrize("frames", [10, 81])
def test_a_new_u_net_begins_as_a_copy_of_mu_at_any_loudness(frames):
    torch.manual_seed(0)
    flow, average = Flow(DECODER.flow), torch.linspace(-7, -4, M)
    speak.begin_as_copy(flow.decoder.estimator, average)
    zero = torch.zeros(1, M, frames)
    for loudness in (-2, 0, 2):
        mu = average[:, None] + 2 * torch.randn(1, M, frames) + loudness
        with torch.no_grad():
            made = flow.decoder.estimator(zero, None, mu, torch.zeros(1), flow.speaker(), zero)
        assert (made - mu).abs().mean() < 0.1                       # of values that vary by 2


def test_a_constant_stays_a_constant_in_the_vocoders_upsampling():
    def spread(up):
        return up(torch.ones(1, up.in_channels, 6))[0, :, 8:-8].std(1).mean().item()

    torch.manual_seed(0)
    smooth, even = HiFT(DECODER.hift), HiFT(DECODER.hift)
    sizes = [up.weight.std().item() for up in smooth.ups]
    assert all(spread(up) > 0.01 for up in smooth.ups)
    speak.begin_smooth(smooth)
    speak.even_phases(even)
    assert all(spread(up) < 1e-6 for up in [*smooth.ups, *even.ups])            # rounding of sums near 1
    assert [up.weight.std().item() for up in smooth.ups] == pytest.approx(sizes, rel=0.2)   # of 128 numbers at least


def test_an_interrupted_run_ends_as_an_uninterrupted_one(voice, tmp_path, monkeypatch):
    train_tokenizer(voice, tmp_path / "a", 24)
    monkeypatch.setattr(fit, "SAVE_SECONDS", 0)
    follow, calls = codebook.Quantised.follow, []

    def interrupted(self, *args):
        calls.append(1)
        if len(calls) == 16:                                        # step 21: k-means was at 6, the restart at 20
            raise KeyboardInterrupt
        follow(self, *args)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(codebook.Quantised, "follow", interrupted)
        train_tokenizer(voice, tmp_path / "b", 24)
    train_tokenizer(voice, tmp_path / "b", 24)
    for name in ("speech_tokenizer/model.safetensors", "speech_decoder/flow.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_data_that_cannot_train_a_tokenizer_is_refused_in_one_line(voice, tmp_path):
    with pytest.raises(ValueError, match="312 units for 4096 codes: expected an hour"):
        config = SpeechTokenizerConfig(**asdict(TOKENIZER) | {"quantize_vocab_size": 4096})
        speak.train_tokenizer(voice, tmp_path, 2, config, DECODER)
    with data.Writer(tmp_path / "mute") as out:
        out.add({"id": "q", "task": "tts", "messages": [], "answer": "x"}, audio=sound("ab", 0.5))
        out.finish()
    with pytest.raises(ValueError, match="q has no phones"):
        speak.train_tokenizer(data.Split(tmp_path / "mute"), tmp_path, 2, TOKENIZER, DECODER)
