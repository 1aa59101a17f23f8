"""teacher.py: lips close when they must, vowels open, nothing leaves [0, 1] or jumps."""
import numpy as np
import pytest

from face.arkit import ARKIT_NAMES
from face.head import make_head
from face.metrics import closure_rate, lip_gap, lip_sync_lag
from toy.teacher import face_track, segments
from toy.voices import parse_psdur

# What `flite -voice rms -psdur` printed.
SAID = {
    "My papa has five fish, and the blue moon.": """pau:0.174 m:0.261 ay:0.415 p:0.535 aa:0.688 p:0.768 ax:0.829
        hh:0.895 ae:0.979 z:1.070 f:1.177 ay:1.370 v:1.421 f:1.526 ih:1.678 sh:1.806 pau:1.893 ae:2.054 n:2.098 d:2.149
        dh:2.196 ax:2.230 b:2.366 l:2.493 uw:2.594 m:2.670 uw:2.817 n:2.926 pau:3.122""",
    "What is two plus two?": """pau:0.152 w:0.286 ah:0.388 t:0.416 ih:0.447 z:0.535 t:0.652 uw:0.705 p:0.842 l:0.896
        ah:0.983 s:1.077 t:1.174 uw:1.362 pau:1.579""",
}
PHONES = {text: parse_psdur(printed) for text, printed in SAID.items()}
PAPA = PHONES["My papa has five fish, and the blue moon."]
HEAD = make_head()


def track_of(phones, **how):
    return face_track(phones, round(30 * phones[-1][2]), **how)


def weight(track, name):
    return track[:, ARKIT_NAMES.index(name)]


def during(values, phones, names):
    """The frames shown while one of the phones is said."""
    return [values[round(30 * start):max(round(30 * end), round(30 * start) + 1)]
            for name, start, end in phones if name in names]


def buzz(phones, rate=16_000):
    """A sound as loud as a mouth would be open: loud vowels, soft consonants, silent pauses."""
    t, sound = np.arange(round(rate * phones[-1][2])) / rate, 0
    for name, start, end in phones:
        sound = np.where((t >= start) & (t < end), {"pau": 0}.get(name, 1 if name[0] in "aeiou" else 0.1), sound)
    return 0.3 * sound * np.sin(2 * np.pi * 120 * t)


@pytest.mark.parametrize("step", [None, .025])         # seconds: as exact as flite's, and as a neural voice's
@pytest.mark.parametrize("text", SAID)
def test_lips_close_in_p_b_m_and_touch_the_teeth_in_f_v(text, step):
    phones = [(name, *(time if step is None else round(time / step) * step for time in span))
              for name, *span in PHONES[text]]
    track = track_of(phones)
    for names, share in (("pbm", 0.10), ("fv", 0.35)):
        spans = [(start, end) for name, start, end in phones if name in names]
        assert not spans or closure_rate(track, spans, HEAD, share) == 1


def test_a_closure_shorter_than_a_frame_is_not_lost():
    phones = [("pau", 0, .2), ("aa", .2, .45), ("b", .45, .463), ("aa", .463, .7), ("pau", .7, 1)]
    assert closure_rate(track_of(phones), [(.45, .463)], HEAD) == 1


def test_open_vowels_open():
    jaw = weight(track_of(PAPA, sound=buzz(PAPA)), "jawOpen")
    assert all(frames.max() >= 0.5 for frames in during(jaw, PAPA, ("aa", "ay")))


def test_loud_vowels_open_more():
    sound = buzz(PAPA)
    sound[:len(sound) // 2] *= 0.2
    jaws = [weight(track_of(PAPA, sound=each), "jawOpen")[:40].max() for each in (buzz(PAPA), sound)]
    assert jaws[1] < 0.8 * jaws[0]


def test_rounded_and_spread_vowels_look_so():
    track = track_of(PAPA)
    assert all(frames.max() > 0.35 for frames in during(weight(track, "mouthPucker"), PAPA, ("uw",)))
    see = [("pau", 0, .2), ("s", .2, .32), ("iy", .32, .52), ("pau", .52, .8)]
    smile, pucker = (weight(track_of(see), name)[10:15].max() for name in ("mouthSmileLeft", "mouthPucker"))
    assert smile > 0.2 > pucker


@pytest.mark.parametrize("text", SAID)
def test_the_mouth_is_shut_in_silence(text):
    gap = lip_gap(track_of(PHONES[text]), HEAD)
    start, end = PHONES[text][-1][1:]
    shut = 3            # % of the interocular distance, 2 mm; jawOpen 1 is 60. Lips start before the sound
    assert gap[0] < shut and gap[round(30 * (start + end) / 2)] < shut


@pytest.mark.parametrize("text", SAID)
def test_weights_stay_in_range_and_do_not_jump(text):
    track = track_of(PHONES[text], sound=buzz(PHONES[text]), seed=5)
    assert track.dtype == np.float32 and track.shape == (round(30 * PHONES[text][-1][2]), 52)
    assert 0 <= track.min() and track.max() <= 1
    assert (weight(track, "mouthClose") <= weight(track, "jawOpen") + 1e-6).all()
    lids = [name.startswith("eye") for name in ARKIT_NAMES]
    assert np.abs(np.diff(track[:, ~np.array(lids)], axis=0)).max() < 0.35  # open next to closed: 3 frames


@pytest.mark.parametrize("silence", [0, .05, .2, 1])   # seconds after the last sound
@pytest.mark.parametrize("text", SAID)
def test_a_take_begins_and_ends_at_rest(text, silence):
    end = PHONES[text][-2][2]
    phones = [*PHONES[text][:-1], ("pau", end, end + silence)]
    for seed in range(20):
        track = track_of(phones, sound=buzz(phones), seed=seed)
        assert not track[[0, -1]].any()
        shut = np.flatnonzero(weight(track, "eyeBlinkLeft") > 0) / 30
        assert ((shut >= .2) & (shut < len(track) / 30 - .3)).all()
        edges = np.abs(np.diff(np.concatenate([track[:6], track[-6:]])[:, ARKIT_NAMES.index("jawOpen")], axis=0))
        assert edges.max() < .25
        looks = [name.startswith("eyeLook") for name in ARKIT_NAMES]
        assert np.abs(np.diff(track[:, looks], axis=0)).max() < .051          # a way of 0.1 takes two frames


def test_lips_move_with_the_sound():
    ms, r = lip_sync_lag(track_of(PAPA, sound=buzz(PAPA)), buzz(PAPA), 16_000, HEAD)
    assert abs(ms) <= 1000 / 30 + 1e-9 and r > 0.5                      # one frame


def test_the_frame_count_is_the_callers():
    for frames in (1, 12, 93, 200):
        assert face_track(PAPA, frames).shape == (frames, 52)


def test_the_seed_moves_eyes_only_and_equal_seeds_are_equal():
    one, same, other = (track_of(PAPA * 1, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    changed = {ARKIT_NAMES[n] for n in np.nonzero(np.abs(one - other).max(0))[0]}
    assert changed and all(name.startswith("eye") for name in changed)


def test_a_long_silence_blinks_every_few_seconds():
    lids = weight(face_track([("pau", 0, 60)], 1800, seed=3), "eyeBlinkLeft")
    blinks = ((lids[1:] > 0.5) & (lids[:-1] <= 0.5)).sum()
    assert 8 <= blinks <= 40 and lids.max() > 0.9


def test_equal_neighbours_are_one_closure_and_diphthongs_two_shapes():
    phones = [("aa", 0, .1), ("m", .1, .2), ("p", .2, .3), ("ay", .3, .5)]
    assert [(name, round(start, 3), round(end, 3)) for name, start, end in segments(phones)] == [
        ("aa", 0, .1), ("PP", .1, .28), ("aa", .3, .42), ("I", .42, .5)]


def test_unknown_phones_and_nothing_to_say_are_refused():
    with pytest.raises(ValueError, match="phone 'q' is unknown"):
        face_track([("q", 0, 1)], 30)
    with pytest.raises(ValueError, match="0 phones in 30 frames"):
        face_track([], 30)
