"""whisper.py against transformers' Whisper, and audio files of many kinds (audio.py)."""
import os

import numpy as np
import pytest
import soundfile
import soxr
import torch
import transformers

import audio
import whisper

from whisper import (HOP, SAMPLE_RATE, WhisperConfig, WhisperEncoder, check_waveform, load_audio, log_mel, log_mels,
                     mel_filters, sinusoids, windows)


SHAPES = {"80 mels, 30 s": WhisperConfig(80, 32, 2, 2, 64), "128 mels, 4 s": WhisperConfig(128, 48, 2, 3, 80, 200)}


@pytest.fixture(params=SHAPES)
def pair(request):
    """(our encoder, transformers' encoder) with the same random weights."""
    config = SHAPES[request.param]
    torch.manual_seed(0)
    theirs = transformers.WhisperModel(transformers.WhisperConfig(
        **vars(config), decoder_layers=1, decoder_attention_heads=1, decoder_ffn_dim=8, vocab_size=60, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, decoder_start_token_id=1)).eval().encoder
    for name, p in theirs.named_parameters():
        if "embed_positions" not in name:
            torch.nn.init.normal_(p, mean=float(p.ndim == 1 and "norm" in name and "weight" in name), std=0.2)
    ours = WhisperEncoder(config).eval()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@torch.no_grad()
def test_encoder_equals_transformers(pair):
    ours, theirs = pair
    mel = torch.randn(2, ours.config.num_mel_bins, ours.config.n_frames)
    expected = theirs(mel).last_hidden_state
    assert expected.shape == (2, ours.config.max_source_positions, ours.config.d_model) and expected.std() > 0.5
    # float32 sums in another order, through two layers of weights with std 0.2
    torch.testing.assert_close(ours(mel), expected, atol=5e-5, rtol=1e-4)


def test_position_table_is_whispers(pair):
    ours, theirs = pair
    ours.init_weights()
    torch.testing.assert_close(ours.embed_positions.weight, theirs.embed_positions.weight, atol=1e-4, rtol=0)
    assert not ours.embed_positions.weight.requires_grad
    assert torch.equal(sinusoids(torch.arange(7), 8)[0], torch.tensor([0., 0, 0, 0, 1, 1, 1, 1]))


@pytest.mark.parametrize("n_mels", (80, 128))
@pytest.mark.parametrize("seconds", (0.05, 3.21, 30, 33))
def test_log_mel_equals_transformers(n_mels, seconds):
    extractor = transformers.WhisperFeatureExtractor(feature_size=n_mels)
    t = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    noise = np.random.default_rng(0).standard_normal(len(t))
    wave = (0.3 * np.sin(2 * np.pi * (200 + 100 * t) * t) + 0.01 * noise).astype(np.float32)
    expected = torch.from_numpy(extractor(wave, sampling_rate=SAMPLE_RATE, return_tensors="np").input_features[0])
    seen = log_mel(torch.from_numpy(wave), n_mels)
    assert seen.shape == expected.shape == (n_mels, 3000)
    # they transform in float64, we in float32: 1e-3 in units of log10 / 4 is 0.04 dB, at the quietest bins
    torch.testing.assert_close(seen, expected, atol=1e-3, rtol=0)
    assert (seen - expected).abs().mean() < 1e-5


@pytest.mark.parametrize("n_mels", (80, 128))
def test_mel_filters_equal_transformers(n_mels):
    expected = transformers.WhisperFeatureExtractor(feature_size=n_mels).mel_filters.T
    np.testing.assert_allclose(mel_filters(n_mels).numpy(), expected, atol=1e-7)


def test_wrong_mel_shape_raises_with_both_shapes():
    encoder = WhisperEncoder(SHAPES["128 mels, 4 s"])
    for shape in ((1, 128, 399), (1, 80, 400), (128, 400), (2, 128, 3000)):
        with pytest.raises(ValueError, match=r"expected \(B, 128, 400\)"):
            encoder(torch.zeros(shape))


# ---------------------------------------------------------------- files

def sine(rate, seconds=1.0, frequency=1000.0, amplitude=0.5):
    return (amplitude * np.sin(2 * np.pi * frequency * np.arange(round(rate * seconds)) / rate)).astype(np.float32)


def loudest(waveform):
    """(frequency in Hz, amplitude) of the loudest tone in the middle of a waveform."""
    middle = waveform[len(waveform) // 4:3 * len(waveform) // 4].numpy()
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle)))) * 4 / len(middle)
    return np.argmax(spectrum) * SAMPLE_RATE / len(middle), spectrum.max()


@pytest.mark.parametrize("rate", (8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000))
@pytest.mark.parametrize("channels", (1, 2, 6))
def test_a_1_khz_sine_stays_one_at_any_rate_and_channel_count(tmp_path, rate, channels):
    soundfile.write(tmp_path / "a.wav", np.stack([sine(rate)] * channels, axis=1), rate)
    waveform = load_audio(tmp_path / "a.wav")
    frequency, amplitude = loudest(waveform)
    assert waveform.dtype == torch.float32 and waveform.shape == (SAMPLE_RATE,)
    assert abs(frequency - 1000) <= 2 and abs(amplitude - 0.5) < 0.01       # 2 Hz per bin; flat in the pass band


def test_what_16_khz_cannot_hold_does_not_come_back_as_another_tone(tmp_path):
    soundfile.write(tmp_path / "a.wav", sine(48_000, frequency=11_000), 48_000)
    assert load_audio(tmp_path / "a.wav")[1000:-1000].abs().max() < 1e-3    # folded, it would be 5 kHz at 0.5


@pytest.mark.parametrize("name, kind, tolerance", (
    ("a.wav", "PCM_16", 2 ** -15), ("a.wav", "PCM_24", 2 ** -23), ("a.wav", "FLOAT", 0), ("a.wav", "PCM_U8", 2 ** -7),
    ("a.flac", "PCM_24", 2 ** -23), ("a.ogg", "VORBIS", 0.1)))              # half a step of the format; Vorbis is lossy
def test_formats_give_the_samples_that_were_written(tmp_path, name, kind, tolerance):
    wave = sine(SAMPLE_RATE)
    soundfile.write(tmp_path / name, wave, SAMPLE_RATE, subtype=kind)
    seen = load_audio(tmp_path / name)
    assert seen.shape == (SAMPLE_RATE,)
    assert (seen - torch.from_numpy(wave)).abs().max() <= tolerance


def test_channels_are_averaged(tmp_path):
    both = np.stack([sine(16_000), sine(16_000, frequency=300)], axis=1)
    soundfile.write(tmp_path / "a.wav", both, 16_000, subtype="FLOAT")
    np.testing.assert_allclose(load_audio(str(tmp_path / "a.wav")).numpy(), both.mean(axis=1), atol=1e-7)


@pytest.mark.parametrize("rate", (8_000, 16_000, 96_000))
def test_fifty_milliseconds_are_a_clip(tmp_path, rate):
    soundfile.write(tmp_path / "a.wav", sine(rate, 0.05), rate)
    waveform = load_audio(tmp_path / "a.wav")
    assert waveform.shape == (800,) and waveform.abs().max() > 0.4
    assert windows(waveform, WhisperConfig(80)).shape == (1, 80, 3000)


def message(error_type, path):
    with pytest.raises(error_type) as caught:
        load_audio(path)
    text = str(caught.value)
    assert "\n" not in text and str(path) in text
    return text


def test_errors_are_one_line_and_name_the_file(tmp_path):
    assert "not found" in message(FileNotFoundError, tmp_path / "none.wav")
    assert "is a directory" in message(ValueError, tmp_path)
    (tmp_path / "text.wav").write_text("hello\nthere")
    assert "not audio" in message(ValueError, tmp_path / "text.wav")
    (tmp_path / "nothing.wav").write_bytes(b"")
    message(ValueError, tmp_path / "nothing.wav")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0, np.float32), 16_000)
    assert "holds no sound" in message(ValueError, tmp_path / "empty.wav")
    for value in (np.nan, np.inf):
        wave = sine(16_000)
        wave[[5, 7]] = value
        soundfile.write(tmp_path / "nan.wav", wave, 16_000, subtype="FLOAT")
        assert "2 samples that are NaN or infinite of 16000" in message(ValueError, tmp_path / "nan.wav")


def test_a_file_too_short_for_one_sample_at_16_khz_is_refused(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.ones(2, np.float32) / 2, 96_000)
    assert "at least one sample" in message(ValueError, tmp_path / "a.wav")


def test_a_truncated_wav_is_read_or_refused_in_one_line(tmp_path):
    soundfile.write(tmp_path / "a.wav", sine(16_000), 16_000)
    (tmp_path / "half.wav").write_bytes((tmp_path / "a.wav").read_bytes()[:1000])
    assert 0 < len(load_audio(tmp_path / "half.wav")) < 500
    (tmp_path / "head.wav").write_bytes((tmp_path / "a.wav").read_bytes()[:20])
    message(ValueError, tmp_path / "head.wav")


def with_bytes(path, **changes):
    """The bytes of a file, some of them replaced: at24=b"..."."""
    data = bytearray(path.read_bytes())
    for at, new in changes.items():
        data[int(at[2:]):int(at[2:]) + len(new)] = new
    return bytes(data)


def pipe_flac(path, wave, rate=SAMPLE_RATE):
    """A FLAC as it is written into a pipe: its header does not say how long it is."""
    soundfile.write(path, wave, rate)
    path.write_bytes(with_bytes(path, at21=bytes([path.read_bytes()[21] & 0xf0]), at22=bytes(4)))
    assert soundfile.info(path).frames == audio.UNKNOWN


def test_a_flac_of_unknown_length_is_read_to_its_end(tmp_path):
    pipe_flac(tmp_path / "a.flac", sine(SAMPLE_RATE, 1.2345))
    wave = torch.from_numpy(sine(SAMPLE_RATE, 1.2345))
    torch.testing.assert_close(load_audio(tmp_path / "a.flac"), wave, atol=2e-5, rtol=0)


@pytest.mark.parametrize("rate, channels, name", ((4_000, 1, "a.wav"), (44_100, 3, "a.flac"), (48_000, 2, "a.ogg"),
                                                 (48_000, 1, "a.mp3"), (384_000, 7, "a.wav")))
def test_reading_in_blocks_changes_no_bit(tmp_path, monkeypatch, rate, channels, name):
    noise = 0.1 * np.random.default_rng(0).standard_normal((rate // 4 + 17, channels))
    soundfile.write(tmp_path / name, noise, rate)
    whole = soundfile.read(tmp_path / name, dtype="float32", always_2d=True)[0].mean(axis=1)
    monkeypatch.setattr(audio, "BLOCK", 1001)
    assert np.array_equal(load_audio(tmp_path / name).numpy(), soxr.resample(whole, rate, SAMPLE_RATE))


def test_a_file_that_is_too_long_is_refused_by_its_header_or_on_the_way(tmp_path, monkeypatch):
    monkeypatch.setattr(audio, "MAX_SECONDS", 2)
    pipe_flac(tmp_path / "a.flac", sine(SAMPLE_RATE, 2.1))
    assert "expected at most 2" in message(ValueError, tmp_path / "a.flac")
    soundfile.write(tmp_path / "a.wav", sine(SAMPLE_RATE, 3), SAMPLE_RATE)
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda *args, **kwargs: pytest.fail("it was read"))
    assert "3 s of sound" in message(ValueError, tmp_path / "a.wav")


@pytest.mark.parametrize("rate, said", ((1, "1 samples per second"), (2 ** 31 - 1, "samples per second"),
                                        (2 ** 31, "not audio"), (0, "not audio")))
def test_absurd_rates_are_refused(tmp_path, rate, said):
    soundfile.write(tmp_path / "a.wav", sine(SAMPLE_RATE), SAMPLE_RATE)
    (tmp_path / "a.wav").write_bytes(with_bytes(tmp_path / "a.wav", at24=rate.to_bytes(4, "little")))
    assert said in message(ValueError, tmp_path / "a.wav")


def test_what_is_no_sound_file_is_refused(tmp_path):
    soundfile.write(tmp_path / "a.wav", sine(SAMPLE_RATE), SAMPLE_RATE)
    data = (tmp_path / "a.wav").read_bytes()
    for name in ("a.raw", "a.PCM"):
        (tmp_path / name).write_bytes(data[44:])
        assert "convert it to wav" in message(ValueError, tmp_path / name)
    (tmp_path / "cut.wav").write_bytes(data[:60])
    assert "is it cut off?" in message(ValueError, tmp_path / "cut.wav")
    assert "a pipe or a device" in message(ValueError, os.devnull)
    soundfile.write(tmp_path / "huge.wav", 1e18 * sine(SAMPLE_RATE), SAMPLE_RATE, subtype="FLOAT")
    assert "samples up to 5e+17" in message(ValueError, tmp_path / "huge.wav")


def test_floats_at_the_scale_of_16_bits_are_scaled_and_that_is_said(tmp_path):
    soundfile.write(tmp_path / "a.wav", 32768 * sine(SAMPLE_RATE), SAMPLE_RATE, subtype="FLOAT")
    with pytest.warns(UserWarning, match="a.wav has float samples up to 16384"):
        waveform = load_audio(tmp_path / "a.wav")
    assert torch.equal(waveform, torch.from_numpy(sine(SAMPLE_RATE)))
    soundfile.write(tmp_path / "a.wav", 2.8 * sine(SAMPLE_RATE), SAMPLE_RATE, subtype="FLOAT")
    assert load_audio(tmp_path / "a.wav").max() == np.float32(1.4), "somewhat above full scale it stays as it is"


def test_a_file_that_is_cut_off_is_said_to_be(tmp_path, capfd):
    soundfile.write(tmp_path / "a.mp3", sine(SAMPLE_RATE, 3), SAMPLE_RATE)
    data = (tmp_path / "a.mp3").read_bytes()
    (tmp_path / "a.mp3").write_bytes(data[:len(data) // 2])
    with pytest.warns(UserWarning, match="of 3.00 s can be read"):
        assert len(load_audio(tmp_path / "a.mp3")) < 2 * SAMPLE_RATE
    soundfile.write(tmp_path / "a.flac", np.random.default_rng(0).uniform(-1, 1, SAMPLE_RATE), SAMPLE_RATE)
    (tmp_path / "a.flac").write_bytes((tmp_path / "a.flac").read_bytes()[:6000])
    assert "damaged or cut off" in message(ValueError, tmp_path / "a.flac")
    assert capfd.readouterr().err == "", "libmpg123 is kept quiet"


@pytest.mark.skipif(os.name == "nt" or os.uname().sysname == "Darwin", reason="file names are Unicode there")
def test_a_latin_1_file_name_is_no_obstacle(tmp_path):
    path = os.fsencode(tmp_path) + b"/caf\xe9.wav"
    soundfile.write(tmp_path / "a.wav", sine(SAMPLE_RATE), SAMPLE_RATE)
    os.rename(tmp_path / "a.wav", path)
    assert len(load_audio(os.fsdecode(path))) == SAMPLE_RATE


@pytest.mark.parametrize("waveform", (torch.zeros(0), torch.zeros(2, 100), torch.tensor([0.0, float("nan")])))
def test_check_waveform_refuses(waveform):
    with pytest.raises(ValueError, match="the waveform has"):
        check_waveform(waveform)


def test_check_waveform_takes_numpy_lists_and_integers():
    for waveform in (np.ones(3), [1, 1, 1], torch.ones(3, dtype=torch.int16)):
        assert torch.equal(check_waveform(waveform), torch.ones(3))


# ---------------------------------------------------------------- windows

@pytest.mark.parametrize("seconds, count", ((0.01, 1), (29.99, 1), (30, 1), (31, 2), (60, 2), (180, 6)))
def test_windows_of_30_seconds_cover_the_recording(seconds, count):
    assert windows(torch.zeros(round(seconds * SAMPLE_RATE)), WhisperConfig(80)).shape == (count, 80, 3000)


def test_a_click_at_second_45_is_heard_in_the_middle_of_window_2():
    waveform = torch.zeros(70 * SAMPLE_RATE)
    waveform[45 * SAMPLE_RATE] = 1.0
    mel = windows(waveform, WhisperConfig(80))
    silent = [m.max() == m.min() for m in mel]
    assert silent == [True, False, True]
    assert abs(int(mel[1].mean(0).argmax()) - 1500) <= 1                    # 100 frames per second, 15 s into the window


def test_every_sample_is_in_exactly_one_window():
    torch.manual_seed(0)
    config = WhisperConfig(80, max_source_positions=200)                   # 4 s windows
    waveform = torch.randn(9 * SAMPLE_RATE + 123)
    mel = windows(waveform, config)
    parts = [waveform[i * config.window:(i + 1) * config.window] for i in range(3)]
    assert config.window == 4 * SAMPLE_RATE == config.n_frames * HOP and sum(map(len, parts)) == len(waveform)
    assert all(torch.equal(m, log_mel(part, 80, 400)) for m, part in zip(mel, parts, strict=True))


def test_windows_are_counted_before_any_mel_is_computed(monkeypatch):
    config = WhisperConfig(80, max_source_positions=200)                   # 4 s windows
    clip, mel = torch.zeros(9 * SAMPLE_RATE), torch.zeros(4, 80, 400)
    assert [len(part) for part in log_mels([clip, mel], config, 4)] == [3, 4]
    monkeypatch.setattr(whisper, "log_mel", lambda *args: pytest.fail("a mel was computed"))
    for long in (clip, mel):
        with pytest.raises(ValueError, match="a clip of 1[26] s is too long, at most 8 s fit"):
            log_mels([torch.zeros(9), long], config, 2)


@pytest.mark.parametrize("loudness", (0, 1e-30, 1e4, 3e8))
def test_silence_and_extreme_sound_have_a_finite_mel(loudness):
    assert log_mels([loudness * torch.randn(16_000)], WhisperConfig(80), 1)[0].isfinite().all()


def test_sound_beyond_float32_is_refused_after_the_mel():
    with pytest.raises(ValueError, match="log-mel.*NaN or infinite"):
        log_mels([torch.full((16_000,), 1e30)], WhisperConfig(80), 1)
