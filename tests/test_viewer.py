"""The viewer page: what is in it. What it does in a browser: test_viewer_page.py."""
import base64
import json
import re
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import soundfile

from face import viewer
from face.arkit import ARKIT_NAMES
from face.head import make_head

QUESTION = Path(__file__).parent / "fixtures" / "question.wav"
TEXT = ("Hello, I am a head, and all of me is made of numbers. My mouth opens, closes and rounds with each sound. "
        "Turn me around, and watch my lips.")
# docs/spec/face.md 6.3; a name without a side stands for both.
VISEMES = {
    "sil": {"jawOpen": .02},
    "PP": {"jawOpen": .10, "mouthClose": .10, "mouthRollLower": .25, "mouthRollUpper": .15, "mouthPress": .35},
    "FF": {"jawOpen": .08, "mouthStretch": .05, "mouthUpperUp": .25, "mouthRollLower": .55},
    "DD": {"jawOpen": .12, "mouthLowerDown": .15, "mouthUpperUp": .08},
    "SS": {"jawOpen": .05, "mouthSmile": .08, "mouthStretch": .20, "mouthLowerDown": .25, "mouthUpperUp": .12},
    "CH": {"jawOpen": .10, "mouthFunnel": .45, "mouthPucker": .30, "mouthLowerDown": .15, "mouthUpperUp": .15},
    "WW": {"jawOpen": .06, "mouthFunnel": .15, "mouthPucker": .75},
    "aa": {"jawOpen": .60, "mouthLowerDown": .20, "mouthUpperUp": .10},
    "E": {"jawOpen": .33, "mouthStretch": .15, "mouthLowerDown": .25, "mouthUpperUp": .12},
    "I": {"jawOpen": .16, "mouthSmile": .35, "mouthStretch": .20, "mouthLowerDown": .20, "mouthUpperUp": .10},
    "O": {"jawOpen": .38, "mouthFunnel": .45, "mouthPucker": .30},
    "U": {"jawOpen": .14, "mouthFunnel": .25, "mouthPucker": .70}}
SENTENCE = "sil E DD O sil aa I PP E CH aa SS DD I DD U FF WW".split() + 6 * ["sil"]        # 4 s of 5 frames each


def weights_of(viseme: str) -> np.ndarray:
    targets = VISEMES[viseme]
    return np.array([targets.get(name, targets.get(name.removesuffix("Left").removesuffix("Right"), 0))
                     for name in ARKIT_NAMES], np.float32)


def demo_track(frames: int) -> np.ndarray:
    """(frames, 52): the sentence over and over, a viseme each five frames, soft changes, blinks and raised brows."""
    keys = np.stack([weights_of(SENTENCE[i % len(SENTENCE)]) for i in range(-(-frames // 5))])
    track = np.repeat(keys, 5, axis=0)[:frames]
    kernel = np.hanning(7)[1:-1] / np.hanning(7).sum()
    padded = np.pad(track, ((2, 2), (0, 0)), mode="edge")
    track = sum(weight * padded[i:i + frames] for i, weight in enumerate(kernel)).astype(np.float32)
    lid = np.interp(np.arange(frames) % 95, [60, 62, 63, 68], [0, .95, .95, 0])
    brow = .2 * np.clip(np.sin(np.arange(frames) / 17), 0, 1)
    for name, curve in (("eyeBlinkLeft", lid), ("eyeBlinkRight", lid), ("browInnerUp", brow), ("browOuterUpLeft", brow),
                        ("browOuterUpRight", brow), ("mouthSmileLeft", .12), ("mouthSmileRight", .12)):
        track[:, ARKIT_NAMES.index(name)] += curve
    return track


def demo_sound(path: Path, seconds: float) -> Path:
    """The fixture's second of speech at 22.05 kHz, three times and then a second of silence, over and over."""
    speech, rate = soundfile.read(QUESTION)
    clip = np.interp(np.arange(0, 1, 1 / 22050), np.arange(len(speech)) / rate, speech)
    line = np.concatenate([clip, clip, clip, np.zeros(22050)])
    soundfile.write(path, np.resize(line, round(seconds * 22050)), 22050, subtype="PCM_16")
    return path


HOSTILE = ("Nice. </script><img src=x onerror=\"window.hurt=1\"><script>window.hurt=1</script> <!-- {{data}} & "
           "\u2028 \ud83d end")


def data_of(path: Path) -> dict:
    return json.loads(re.search(r'id="data">(.*?)</script>', path.read_text(encoding="utf-8"), re.DOTALL)[1])


def write_hostile(folder) -> Path:
    """A page of 10 s whose text and title try to be markup."""
    viewer.write_viewer(folder / "hostile.html", demo_track(300), audio=demo_sound(folder / "10s.wav", 10),
                        text=HOSTILE, title="</title><script>window.hurt=1</script>{{data}}")
    return folder / "hostile.html"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("viewer")


@pytest.fixture(scope="module")
def hostile(folder):
    return write_hostile(folder)


def test_ten_seconds_weigh_less_than_two_and_a_half_megabytes(hostile):
    assert hostile.stat().st_size < 2.5e6


def test_text_never_becomes_markup(hostile):
    page = hostile.read_text(encoding="utf-8")
    assert len(re.findall("<script", page)) == len(re.findall("</script", page)) == 2 and "<img" not in page
    assert "\u2028" not in page
    assert "".join(piece for _, piece in data_of(hostile)["answers"][0]["sentences"]) == HOSTILE


def test_page_names_no_address_and_admits_only_its_own_code(hostile):
    page = hostile.read_text(encoding="utf-8")
    policy = re.search('http-equiv="Content-Security-Policy" content="(.*?)"', page)[1]
    assert policy.startswith("default-src 'none'; script-src 'sha256-") and "unsafe" not in policy
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\(", page)


def test_shapes_survive_packing_within_a_twentieth_of_a_millimetre():
    head = make_head()
    packed = viewer.pack_head(head)
    raw, at = zlib.decompress(base64.b64decode(packed["packed"])), 0

    def take(kind, *shape):
        nonlocal at
        part = np.frombuffer(raw, kind, int(np.prod(shape)), at).reshape(shape)
        at += part.nbytes
        return part

    V, F, Q = packed["vertices"], packed["triangles"], packed["moves"]
    vertices = packed["low"] + packed["step"] * take("<u2", V, 3)
    faces, counts, gaps, moves = take("<u2", F, 3), take("<u2", 52), take("<u2", Q), take("<i2", 3, Q)
    colors = take("u1", V, 4)[:, :3] / 255
    deltas = np.zeros_like(head.deltas)
    for shape, part in enumerate(np.split(np.arange(Q), np.cumsum(counts)[:-1])):
        deltas[shape, np.cumsum(gaps[part].astype(int))] = packed["step"] * moves[:, part].T
    assert at == len(raw) and (faces == head.faces).all()
    assert abs(vertices - head.vertices).max() < 5e-5 and abs(deltas - head.deltas).max() < 5e-5
    assert abs(colors - head.colors).max() <= 0.5001 / 255


def test_page_lasts_as_long_as_the_longer_of_sound_and_face(folder):
    sound = demo_sound(folder / "2s.wav", 2)
    for frames, seconds in ((30, 2), (90, 3)):
        viewer.write_viewer(folder / "length.html", demo_track(frames), audio=sound)
        answer, = data_of(folder / "length.html")["answers"]
        assert answer["seconds"] == seconds and answer["heard"] == 2 and answer["frames"] == frames


@pytest.mark.parametrize("track, message", [
    (np.zeros((0, 52)), r"\(0, 52\), expected"), (np.zeros((9, 51)), r"\(9, 51\), expected"),
    (np.full((9, 52), np.nan), "frame 0 .* not a number")])
def test_a_track_it_cannot_show_is_one_clear_line(folder, track, message):
    with pytest.raises(ValueError, match=message):
        viewer.write_viewer(folder / "none.html", track)
    assert not (folder / "none.html").exists()


def test_what_is_no_sound_and_an_empty_gallery_are_errors(folder):
    (folder / "not.wav").write_text("hello")
    with pytest.raises(ValueError, match="not.wav is not audio that can be read"):
        viewer.write_viewer(folder / "none.html", demo_track(3), audio=folder / "not.wav")
    with pytest.raises(ValueError, match="gallery of no answers"):
        viewer.write_gallery(folder / "none.html", [])


@pytest.mark.parametrize("answers, message", [
    ([("one", demo_track(90), None, "")] * 4, "none.html would have more than 0 MiB with one"),
    ([("one", demo_track(3), QUESTION, "")], "question.wav holds more than 0 minutes of sound, too much for a page"),
    ([("one", demo_track(3), None, "x" * 40_000)], "would have more than 0 MiB")])
def test_a_page_has_a_size_at_most(folder, monkeypatch, answers, message):
    monkeypatch.setattr(viewer, "PAGE_BYTES", 40_000)       # three tracks of 90 frames fit, 0.5 s of sound do not
    with pytest.raises(ValueError, match=message):
        viewer.write_gallery(folder / "none.html", answers)
    assert not (folder / "none.html").exists()


@pytest.mark.parametrize("fps", [0, 1e-300, np.nan, 1e9])
def test_a_rate_that_is_none_is_refused(folder, fps):
    with pytest.raises(ValueError, match="frames per second, expected 1 to 1000"):
        viewer.write_viewer(folder / "none.html", demo_track(3), fps)


def test_many_sentences_and_pauses_take_no_time(folder):
    levels = np.tile(np.repeat([1.0, 0.0], 25), 4000)       # 4,000 pauses
    assert np.diff(viewer.sentence_starts(["ab. "] * 8000, levels, 2000.0)).min() >= 0


def test_any_sound_becomes_a_mono_wav_of_16_bits(folder):
    square = np.tile([0.5, -0.5], 400)
    both = np.stack([square, np.zeros(800)], axis=1)
    soundfile.write(folder / "stereo.wav", both, 8000, subtype="FLOAT")
    with pytest.warns(UserWarning, match="in channel 2 of 2: left out"):
        wav, levels, seconds = viewer.read_sound(folder / "stereo.wav")
    assert (soundfile.info(BytesIO(wav)).subtype, soundfile.info(BytesIO(wav)).channels, seconds) == ("PCM_16", 1, 0.1)
    assert abs(soundfile.read(BytesIO(wav))[0] - square).max() < 1e-4 and len(levels) == 10 and (levels == 1).all()


def test_sentences_join_to_the_text():
    for text, count in (("One. Two!  \"Three?\" Pi is 3.14 today.\nFive", 5), ("你好。再见！好", 3), ("", 0), ("...", 1)):
        pieces = viewer.sentences(text)
        assert "".join(pieces) == text and len(pieces) == count


def test_a_sentence_starts_where_a_pause_ends():
    levels = np.concatenate([np.ones(100), np.zeros(30), np.ones(170)])
    assert viewer.sentence_starts(["a" * 12, "b" * 16], levels, 3.0) == [0, 1.3]      # by characters alone: 1.46 s
    assert viewer.sentence_starts(["a" * 12, "b" * 18], np.zeros(0), 3.0) == [0, 1.2]     # no sound: by characters
    assert viewer.sentence_starts([], levels, 3.0) == []


def test_curves_are_jaw_and_the_four_strongest_without_mirror_twins():
    track = np.zeros((10, 52))
    for strength, name in enumerate(("eyeBlinkLeft", "mouthSmileRight", "mouthSmileLeft", "mouthLeft", "mouthRight",
                                     "cheekPuff")):
        track[:, ARKIT_NAMES.index(name)] = 0.9 - 0.04 * strength - 0.3 * (name == "mouthRight")
    shown = [ARKIT_NAMES[column] for column in viewer.lanes(track)]
    assert shown == ["jawOpen", "eyeBlinkLeft", "mouthSmileRight", "mouthLeft", "cheekPuff"]
