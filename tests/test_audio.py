"""audio.py: what is odd about a recording, and which part of it is heard (files: test_whisper.py)."""
import contextlib
import io
import re
import warnings
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch

from audio import load_audio
from corpora.sound import Skip, Sound, read_sound
from whisper import WhisperConfig, spoken_parts, windows


def burst(seconds, seed=0):
    """Sound as loud as speech, in syllables of a fifth of a second."""
    t = torch.arange(round(seconds * 16_000)) / 16_000
    return 0.2 * torch.randn(len(t), generator=torch.Generator().manual_seed(seed)) * (0.1 + (10 * torch.pi * t).sin().abs())


@pytest.mark.parametrize("hiss", [0, 0.002, 0.01])
@pytest.mark.parametrize("before, after", [(0, 0), (4, 0), (1, 1), (0, 3), (20, 20)])
def test_silence_at_both_ends_is_left_out(before, after, hiss):
    speech, silence = burst(1.5), [torch.zeros(round(s * 16_000)) for s in (before, after)]
    sound = torch.cat([silence[0], speech, silence[1]])
    sound = sound + hiss * torch.randn(len(sound), generator=torch.Generator().manual_seed(1))
    part, = spoken_parts(sound, 5 * 16_000)
    start = part.storage_offset() / 16_000 - before
    assert -0.2 <= start <= 0.05 and 1.45 <= start + len(part) / 16_000 <= 1.7


def test_long_sound_is_cut_where_it_is_quiet():
    sound = torch.cat([torch.zeros(8_000), burst(3), torch.zeros(6_400), burst(4, 1), torch.zeros(6_400), burst(2, 2)])
    parts = spoken_parts(sound, 5 * 16_000)
    edges = [part.storage_offset() / 16_000 for part in parts[1:]]
    assert len(parts) == 3 and 3.5 <= edges[0] <= 3.9 and 7.9 <= edges[1] <= 8.3, edges
    assert all(len(part) <= 5 * 16_000 for part in parts)
    joined = torch.cat(parts)
    assert torch.equal(joined, sound[parts[0].storage_offset():][:len(joined)]), "nothing is lost at a cut"


def test_only_a_checkpoint_that_says_so_leaves_silence_out():
    config = WhisperConfig(80, 32, 2, 2, 64, 250)
    sound = torch.cat([torch.zeros(4 * 16_000), burst(1.5)])
    assert len(windows(sound, config)) == 2
    assert len(windows(sound, replace(config, quiet_cuts=True))) == 1


# ---------------------------------------------------------------- odd levels and channels

VOICE = burst(1, 5).numpy() / 2                                     # peaks below 0.6
NOISE = burst(1, 6).numpy() / 2


def changed(at: dict) -> np.ndarray:
    """VOICE with some samples replaced: index -> value."""
    voice = VOICE.copy()
    for index, value in at.items():
        voice[index] = value
    return voice


def hum(hertz):
    """Of the mains, one second."""
    return 0.4 * np.sin(2 * np.pi * hertz * np.arange(16_000) / 16_000)


def stereo(*channels):
    return np.stack(np.broadcast_arrays(*channels), axis=1)


@pytest.mark.parametrize("sound, gain, says", [
    (VOICE, 1, None), (VOICE * 2, 2, None), (stereo(VOICE, VOICE), 1, None), (stereo(VOICE, NOISE), None, None),
    (changed({3000: 1000}), 1, "single samples up to 1e"), (changed({0: -1e30, 9000: 1e18}), 1, "single samples"),
    (VOICE * 50, 50 / 128, "8-bit ones, divided by 128"), (VOICE * 2 ** 15, 1, "16-bit ones, divided by 32768"),
    (VOICE * 600, 600 / 2 ** 15, "16-bit ones"), (changed({7: 9}) * 2 ** 15, 1, "16-bit ones.*single samples"),
    (VOICE * 2 ** 23, 1, "24-bit ones"), (VOICE * 2 ** 31, 1, "32-bit ones"), (VOICE * 8, None, "turned down"),
    (np.concatenate([np.zeros(320_000, np.float32), VOICE * 2 ** 15]), 1, "16-bit ones"),
    (np.round(VOICE * 127) + 128, 127 / 128, "8-bit ones.*offset of 1.00"),
    (VOICE + 0.3, 1, "offset of 0.300 of full scale"), (VOICE - 0.05, 1, "offset of 0.05"), (VOICE + 0.005, 1, None),
    (stereo(VOICE, -VOICE), 1, "2 channels that cancel each other.*channel 1 alone"),
    (stereo(-VOICE / 2, VOICE / 2, VOICE * 0.6, -VOICE * 0.6), 0.6, "4 channels that cancel"),
    (stereo(VOICE * 0.8, -VOICE + NOISE / 100), None, "cancel each other.*channel 2 alone"),
    (stereo(VOICE, 0), 1, "in channel 2 of 2: left out"),
    (stereo(0, 0, VOICE, 0, 0, 0), 1, "channel 1, 2, 4, 5, 6 of 6"),
    (stereo(VOICE, np.nan), 1, "channel 2 of 2"), (stereo(changed({5: np.inf}), VOICE), 1, "channel 1 of 2"),
    (stereo(VOICE, 1), 1, "channel 2 of 2"), (VOICE * 0, 0, "is silent"), (VOICE * 0 + 0.5, 0, "is silent"),
    (VOICE * 1e-5, None, "is silent"), (VOICE * 1e-3, None, "very quiet.*turned up"), (VOICE * 0.02, 0.02, None),
    (VOICE * 1e-3 + 0.01, None, "very quiet.*offset of 0.010"), (VOICE * 50e-3, 50e-3, None),
    (stereo(VOICE, VOICE * np.where(np.arange(16_000) < 11_000, 1, -1)), 1, "2 channels that cancel.*channel 1 alone"),
    (stereo(VOICE * (np.arange(16_000) < 8_000), VOICE * (np.arange(16_000) >= 8_000)), 0.5, None),
    (VOICE + hum(50), None, None), (VOICE / 4 + hum(60), None, None), (hum(50)[:4_321], None, None)])
def test_what_is_odd_about_levels_and_channels_is_mended_and_said(tmp_path, sound, gain, says):
    """gain: of what is heard over VOICE, None: not asked. A corpus hears the same."""
    soundfile.write(tmp_path / "a.wav", sound, 16_000, subtype="FLOAT")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        heard = load_audio(tmp_path / "a.wav").numpy()
    caught = [str(one.message) for one in caught if one.category is UserWarning]
    said = " ".join(line.removeprefix(f"{tmp_path / 'a.wav'} ") for line in caught)
    assert re.search(says, said) if says else not said, said
    assert np.abs(heard).max() <= 1.5
    if "turned up" in said:
        assert np.corrcoef(heard, VOICE)[0, 1] > 0.999 and 0.2 < np.abs(heard).max() < 0.4
    if gain is not None:                    # but around the spikes, and what float32 has lost above an offset
        voice = heard[-len(VOICE):]
        off = np.abs(voice - gain * VOICE) > 0.01 * max(gain, 1e-4)
        assert off.sum() <= ("single samples" in said) * 2
    notes = {}
    assert np.array_equal(read_sound(Sound(tmp_path / "a.wav"), 30, notes), heard) and len(notes) == len(caught)


@pytest.mark.parametrize("sound, says", [
    (np.zeros(0), "holds no sound"), (VOICE * 1e15, "samples up to .*, expected -1 to 1"),
    (changed({3: np.nan}), "1 samples that are NaN"),
    (stereo(changed({3: np.nan}), changed({4: np.inf})), "2 samples")])
def test_what_cannot_be_mended_is_refused(tmp_path, sound, says):
    soundfile.write(tmp_path / "a.wav", sound, 16_000, subtype="FLOAT")
    with pytest.raises(ValueError, match=says):
        load_audio(tmp_path / "a.wav")


@pytest.mark.parametrize("kind", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ALAW", "ULAW",
                                  "IMA_ADPCM"])
@pytest.mark.parametrize("rate", [8_000, 768_000])
def test_every_kind_of_wav_is_heard_without_a_word(tmp_path, kind, rate, recwarn):
    soundfile.write(tmp_path / "a.wav", np.repeat(VOICE, 3), rate, subtype=kind)
    heard = load_audio(tmp_path / "a.wav")
    assert abs(len(heard) - len(VOICE) * 3 * 16_000 / rate) < 1000 and heard.abs().max() > 0.05 and not recwarn


@pytest.mark.parametrize("riff", [0, 36, 0xffffffff, None])
@pytest.mark.parametrize("stated", [0, 1000, 7999, 31_000, 32_000, 32_036, 0x7f000000, 0x7fffffff, 0xffffffff])
def test_the_length_in_a_wavs_header_is_not_believed(tmp_path, riff, stated):
    """As a recorder leaves it that was killed, or that writes to a pipe; or that counts the header, too."""
    file = io.BytesIO()
    soundfile.write(file, VOICE, 16_000, format="WAV", subtype="PCM_16")
    data = bytearray(file.getvalue())
    data[40:44] = stated.to_bytes(4, "little")
    if riff is not None:
        data[4:8] = riff.to_bytes(4, "little")
    (tmp_path / "a.wav").write_bytes(data)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert len(load_audio(tmp_path / "a.wav")) == len(VOICE)
    said = " ".join(str(one.message) for one in caught)
    assert "another length in its header" in said if stated < 32_000 else not said
    assert len(read_sound(Sound("a.wav", data=bytes(data)), 30)) == len(VOICE)


def test_other_parts_of_a_wav_are_no_sound(tmp_path, recwarn):
    soundfile.write(tmp_path / "a.wav", VOICE, 16_000)
    data = (tmp_path / "a.wav").read_bytes()
    for tail in (b"LIST\x04\0\0\0INFO", b"ID3\x03\0" + b"x" * 90, b"TAG" + b"y" * 125):
        (tmp_path / "a.wav").write_bytes(data + tail)
        assert len(load_audio(tmp_path / "a.wav")) == len(VOICE) and not recwarn


def test_a_rate_below_that_of_a_telephone_is_said(tmp_path):
    soundfile.write(tmp_path / "a.wav", VOICE, 4_000)
    with pytest.warns(UserWarning, match="4000 samples per second, too few"):
        load_audio(tmp_path / "a.wav")


# ---------------------------------------------------------------- sounds that are cut off

SYLLABLES = burst(2.5, 7).numpy()


@pytest.mark.parametrize("kind, subtype", [
    ("WAV", "PCM_16"), ("WAV", "IMA_ADPCM"), ("WAVEX", "PCM_24"), ("RF64", "FLOAT"), ("W64", "PCM_16"),
    ("AIFF", "PCM_16"), ("AIFF", "DWVW_16"), ("AU", "PCM_16"), ("AU", "ULAW"), ("CAF", "FLOAT"), ("NIST", "PCM_16"),
    ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III"), ("FLAC", "PCM_16")])
def test_a_sound_that_is_cut_off_anywhere_is_said_to_be_and_is_not_trained_on(kind, subtype, tmp_path):
    """The whole one is read without a word."""
    file, path = io.BytesIO(), tmp_path / "a"
    soundfile.write(file, SYLLABLES, 16_000, format=kind, subtype=subtype)
    for share in (1, 0.97, 0.8, 0.5, 0.2):
        data = file.getvalue()[:round(share * len(file.getvalue()))]
        path.write_bytes(data)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                heard = load_audio(path)
                assert len(heard) < 40_000 or share == 1
            except ValueError as error:
                caught.append(warnings.WarningMessage(error, UserWarning, "", 0))
        said = " ".join(str(one.message) for one in caught)
        if share == 1:
            assert not said and len(heard) >= 40_000 and len(read_sound(Sound(path), 30)) == len(heard)
        else:
            assert re.search("cut off|no sound|malformed", said), (share, said)
            with pytest.raises(Skip, match="cut off|no sound|malformed|lost sync"):
                read_sound(Sound("a", data=data), 30)


def test_a_span_before_the_cut_is_whole():
    file = io.BytesIO()
    soundfile.write(file, SYLLABLES, 16_000, format="WAV")
    data = file.getvalue()[:50_044]
    assert len(read_sound(Sound("a.wav", 0.2, 1.5, data=data), 30)) == 20_800
    with pytest.raises(Skip, match="cut off"):
        read_sound(Sound("a.wav", 0.2, 1.6, data=data), 30)


@pytest.mark.parametrize("kind, at, size", [("AU", 8, 4), ("AIFF", -1, 4), ("W64", -1, 8)])
def test_other_headers_that_say_too_little_are_mended(tmp_path, kind, at, size):
    file = io.BytesIO()
    soundfile.write(file, VOICE, 16_000, format=kind, subtype="PCM_16")
    data = bytearray(file.getvalue())
    at = at if at > 0 else max(data.find(b"SSND") + 4, data.rfind(b"data", 0, 5000) + (16 if kind == "W64" else 4))
    data[at:at + size] = (9_000).to_bytes(size, "little" if kind == "W64" else "big")
    (tmp_path / "a").write_bytes(data)
    with pytest.warns(UserWarning, match="another length in its header"):
        assert len(load_audio(tmp_path / "a")) == len(VOICE)


def test_a_chunk_that_states_no_size_is_no_endless_loop(tmp_path):
    for kind, at in (("W64", 56), ("WAV", 16)):
        soundfile.write(tmp_path / "a", VOICE, 16_000, format=kind)
        data = bytearray((tmp_path / "a").read_bytes())
        data[at:at + 8] = bytes(8)
        (tmp_path / "a").write_bytes(data)
        with contextlib.suppress(ValueError):
            load_audio(tmp_path / "a")


def test_an_mp3_whose_length_is_guessed_too_short_is_said(tmp_path):
    """Without the tag in its first frame, one of changing bit rate looks shorter than it is."""
    sound = np.concatenate([SYLLABLES, np.zeros(80_000, np.float32)])
    soundfile.write(tmp_path / "a.mp3", sound, 16_000, bitrate_mode="VARIABLE", compression_level=0.5)
    assert len(load_audio(tmp_path / "a.mp3")) == len(sound)
    data = (tmp_path / "a.mp3").read_bytes()
    (tmp_path / "a.mp3").write_bytes(data[data.index(data[:2], 100):])
    with pytest.warns(UserWarning, match="s can be read"):
        load_audio(tmp_path / "a.mp3")


def test_a_second_ogg_stream_is_said_to_be_left_out(tmp_path):
    streams = []
    for seed in (0, 1):
        soundfile.write(tmp_path / f"{seed}.ogg", burst(1, seed).numpy(), 16_000)
        streams.append((tmp_path / f"{seed}.ogg").read_bytes())
    assert streams[0][14:18] != streams[1][14:18]           # their serial numbers
    (tmp_path / "both.ogg").write_bytes(b"".join(streams))
    with pytest.warns(UserWarning, match="is cut off: another stream follows after 1.0"):
        load_audio(tmp_path / "both.ogg")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_audio(tmp_path / "0.ogg")
