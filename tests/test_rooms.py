"""rooms.py: what is done to a clip is what it says, and a voice stays where it was in time."""
import numpy as np
import pytest

from toy import rooms


def said(seed: int = 0, seconds: float = 2.0):
    """Something as uneven as speech: 1.5 s of bursts of noise between silences."""
    random = np.random.default_rng(seed)
    sound = np.zeros(round(seconds * rooms.RATE), np.float32)
    for start in np.arange(0.3, seconds - 0.4, 0.25):
        first, last = round(start * rooms.RATE), round((start + 0.15) * rooms.RATE)
        sound[first:last] = random.standard_normal(last - first) * random.uniform(0.05, 0.2)
    return sound


CLIP, OTHERS = said(), [said(n, 1.2) for n in (1, 2)]


def lag(changed, clip) -> int:
    """By how many samples a sound is later in `changed`."""
    size = 1 << (len(clip) + len(changed)).bit_length()
    related = np.fft.irfft(np.fft.rfft(changed, size) * np.conj(np.fft.rfft(clip, size)), size)
    at = int(related.argmax())
    return at - size if at > size // 2 else at


def power(audio, low, high) -> float:
    """The share of a sound's power between two frequencies."""
    spectrum = np.abs(np.fft.rfft(audio)) ** 2
    frequencies = np.fft.rfftfreq(len(audio), 1 / rooms.RATE)
    return spectrum[(frequencies >= low) & (frequencies < high)].sum() / spectrum.sum()


def test_on_the_way_a_voice_keeps_its_length_and_its_place_and_follows_the_generator():
    changed = [rooms.degraded(CLIP, np.random.default_rng(n), OTHERS) for n in range(120)]
    np.testing.assert_array_equal(changed[7], rooms.degraded(CLIP, np.random.default_rng(7), OTHERS))
    for audio in changed:
        assert audio.shape == CLIP.shape and audio.dtype == np.float32 and 0 < np.abs(audio).max() <= 1
        assert abs(lag(audio, CLIP)) <= 2                       # a codec may move it by a sample
    clean = [audio for audio in changed if np.corrcoef(audio, CLIP)[0, 1] > 0.99999]
    assert 0.25 < len(clean) / len(changed) < 0.5               # a third, and a few more to which little happened
    gains = [20 * np.log10(rooms.loudness(audio) / rooms.loudness(CLIP)) for audio in clean]
    assert min(gains) >= -12.1 and max(gains) <= 6.1 and max(gains) - min(gains) > 9


def test_without_others_nobody_babbles():
    assert rooms.degraded(CLIP, np.random.default_rng(0)).shape == CLIP.shape


def test_each_condition_is_what_its_name_says():
    random = np.random.default_rng(0)
    changed = {name: change(CLIP, random, OTHERS) for name, change in rooms.CONDITIONS.items()}
    assert all(audio.dtype == np.float32 and np.abs(audio).max() <= 1 for audio in changed.values())
    np.testing.assert_allclose(changed["half gain"] * 2, CLIP)
    np.testing.assert_allclose(changed["double gain"], np.clip(CLIP * 2, -1, 1))
    for name in ("white noise at 20 dB", "babble at 20 dB"):
        below = 20 * np.log10(rooms.loudness(CLIP) / rooms.loudness(changed[name] - CLIP))
        assert below == pytest.approx(20, abs=0.1), name        # but for the few samples that are cut off
    assert power(CLIP, 300, 3500) < 0.5 < 0.99 < power(changed["telephone"], 250, 3700)
    assert np.mean(np.abs(changed["clipping +12 dB"]) == 1) > 0.05
    before, both = changed["4 s of silence before"], changed["1 s of silence on both sides"]
    assert len(before) == len(CLIP) + 64000 and not before[:64000].any()
    assert len(both) == len(CLIP) + 32000 and not both[:16000].any() and not both[-16000:].any()
    for name in ("telephone", "mp3 24 kbit/s", "reverb .5 s", "clipping +12 dB"):
        assert len(changed[name]) == len(CLIP) and abs(lag(changed[name], CLIP)) <= 1, name
        assert np.corrcoef(changed[name], CLIP)[0, 1] < 0.999, name


@pytest.mark.parametrize("seconds", [0.2, 0.6])
def test_a_room_dies_away_by_60_dB_in_its_time(seconds):
    knock = np.zeros(rooms.RATE, np.float32)
    knock[0] = 1
    wet = rooms.reverb(knock, seconds, 1, np.random.default_rng(0))
    left = 10 * np.log10(np.cumsum(wet[::-1] ** 2)[::-1] / np.sum(wet ** 2) + 1e-12)       # Schroeder's integral
    first, last = (np.flatnonzero(left < level)[0] / rooms.RATE for level in (-10, -30))
    assert 3 * (last - first) == pytest.approx(seconds, rel=0.2)                        # 20 dB of it, three times
    assert wet[0] == pytest.approx(1, abs=1e-4)


def test_every_codec_keeps_length_and_place():
    for number in range(len(rooms.CODECS)):
        audio = rooms.coded(CLIP, number)
        assert len(audio) == len(CLIP) and abs(lag(audio, CLIP)) <= 1, rooms.CODECS[number]


def test_noises_have_their_length_level_and_colour():
    random = np.random.default_rng(0)
    for kind in rooms.NOISES:
        several = [rooms.noise(kind, 1.5, random, OTHERS) for _ in range(6)]
        levels = [20 * np.log10(rooms.loudness(audio)) for audio in several]
        assert all(audio.shape == (24000,) and audio.dtype == np.float32 for audio in several)
        low, high = {"silence": (-101, -69), "babble": (-56, -34)}.get(kind, (-61, -14))
        assert low < min(levels) < max(levels) < high, kind
    low = {colour: power(rooms.coloured(colour, 48000, random), 20, 200) for colour in rooms.COLOURS}
    assert low["white"] == pytest.approx(180 / 8000, rel=0.3)
    assert low["pink"] == pytest.approx(np.log(10) / np.log(400), rel=0.15)          # equal power per octave
    assert low["brown"] > 0.85
