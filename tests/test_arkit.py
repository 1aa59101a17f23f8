"""arkit.py: the 52 names in every convention, and tracks that come back from a file as they went in."""
import csv
import json

import numpy as np
import pytest

from face.arkit import (APPLE_NAMES, ARKIT_NAMES, CONVENTIONS, KNOWN, ORDERS, ROTATIONS, from_names, match, matches,
                        ordered, resample, spellings, tidy, to_names, write_csv, write_json, write_npy)
from face.captures import read_track


def a_track(frames=95, seed=0):
    return np.random.default_rng(seed).random((frames, 52)).astype(np.float32)


# Rows of the table in docs/spec/face.md 2: name -> columns E, M, A and L; L counts from the file's first column.
TABLE = {"browDownLeft": (0, 14, 41, 43), "eyeBlinkLeft": (8, 0, 0, 2), "eyeBlinkRight": (9, 1, 7, 9),
         "jawForward": (22, 23, 14, 16), "jawLeft": (23, 21, 15, 18), "jawOpen": (24, 19, 17, 19),
         "jawRight": (25, 22, 16, 17), "mouthClose": (26, 20, 18, 20), "mouthFunnel": (31, 41, 19, 21),
         "mouthLeft": (32, 42, 21, 24), "mouthRight": (38, 43, 22, 23), "mouthSmileRight": (44, 31, 24, 26),
         "mouthUpperUpRight": (48, 25, 40, 42), "noseSneerRight": (50, 47, 50, 52), "tongueOut": (51, None, 51, 53)}


def test_the_orders_are_the_specifications():
    assert ARKIT_NAMES == sorted(ARKIT_NAMES[:51]) + ["tongueOut"]
    assert sorted(APPLE_NAMES) == sorted(ARKIT_NAMES) and sorted(CONVENTIONS["release51"]) == ARKIT_NAMES[:51]
    for name, (ours, release, apple, live) in TABLE.items():
        assert ARKIT_NAMES.index(name) == ours and APPLE_NAMES.index(name) == apple
        assert match(CONVENTIONS["livelink"][live - 2]) == name
        assert release is None or CONVENTIONS["release51"][release] == name
    assert CONVENTIONS["mediapipe"][1:] == ARKIT_NAMES[:51]


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_a_track_goes_to_every_convention_and_back(convention):
    track = a_track()
    there = to_names(track, convention)
    assert there.shape == (len(track), len(CONVENTIONS[convention]))
    back, whole = from_names(there, CONVENTIONS[convention]), "tongueOut" in map(match, CONVENTIONS[convention])
    np.testing.assert_array_equal(back[:, :51], track[:, :51])
    np.testing.assert_array_equal(back[:, 51], track[:, 51] if whole else 0)


def test_live_links_file_has_right_before_left_for_jaw_and_mouth():
    track = np.zeros((1, 52), np.float32)
    track[0, ARKIT_NAMES.index("jawLeft")], track[0, ARKIT_NAMES.index("mouthRight")] = 0.25, 0.75
    row = dict(zip(["JawForward", "JawRight", "JawLeft"], to_names(track, "livelink")[0, 14:17]))
    assert row == {"JawForward": 0, "JawRight": 0, "JawLeft": 0.25}
    assert to_names(track, "livelink")[0, 21] == 0.75 and to_names(track, "livelink")[0, 22] == 0


@pytest.mark.parametrize("spelling, name", [
    ("MouthSmile_L", "mouthSmileLeft"), ("mouthSmile_R", "mouthSmileRight"), ("blendShapes.JawOpen", "jawOpen"),
    ("TONGUEOUT", "tongueOut"), ("mouthSmile.L", "mouthSmileLeft"), ("eyeBlinkR", "eyeBlinkRight"),
    ("left_eye_blink", "eyeBlinkLeft"), ("R_browDown", "browDownRight"), ("Eye Look-In (Left)", "eyeLookInLeft"),
    ("mouth_left", "mouthLeft"), ("jaw_R", "jawRight"), ("mouth_roll_lower", "mouthRollLower"),
    ("mesh:head|jawOpen", "jawOpen"), ("blendShape1.jawOpen", "jawOpen"),
    ("HeadYaw", None), ("smile", None), ("mouthSmile", None), ("eyeBlink", None), ("jawOpen_mouthClose", None),
    ("mouthRollLeft", None), ("browInnerUp_L", None), ("", None),
    ("CTRL_L_eye_blink", None), ("x." * 1000 + "jawOpen", None)])
def test_a_name_matches_in_each_spelling_that_is_known(spelling, name):
    assert match(spelling) == name


def test_no_spelling_stands_for_two_names():
    names = set(KNOWN.values())
    assert len(KNOWN) == len({spelling for name in names for spelling in spellings(name)})
    assert all(KNOWN[spelling] == name for name in names for spelling in spellings(name))


@pytest.mark.parametrize("spell", [lambda name: "ARKit_" + name, lambda name: f"A{len(name)}_{name}",
                                   lambda name: "head_geo|" + name, lambda name: "Face_BS." + name,
                                   lambda name: "my head/" + name.replace("Left", "_L").replace("Right", "_R")])
def test_a_prefix_that_all_names_share_is_dropped(spell):
    assert matches([*map(spell, ARKIT_NAMES), "Timecode", "Happy"]) == [*ARKIT_NAMES, None, None]


def test_of_two_sets_of_names_the_plain_one_is_taken_or_none():
    plain, other, third = ([start + name for name in ARKIT_NAMES] for start in ("", "speed_", "ref."))
    assert matches([*other, *plain]) == [None] * 52 + ARKIT_NAMES
    with pytest.raises(ValueError, match="holds two tracks, named speed_... and ref...."):
        matches([*other, *third])


def test_missing_and_doubled_names_are_listed_and_others_left_out():
    with pytest.raises(ValueError, match="missing: jawOpen; other names: wink, grin"):
        from_names(np.zeros((1, 53)), ["wink", "grin", *(n for n in ARKIT_NAMES if n != "jawOpen")])
    with pytest.raises(ValueError, match="twice: jawOpen, Jaw_Open"):
        from_names(np.zeros((1, 53)), [*ARKIT_NAMES, "Jaw_Open"])
    with pytest.raises(ValueError, match=r"shape \(1, 3\), expected \(frames, 2\)"):
        from_names(np.zeros((1, 3)), ["jawOpen", "jawLeft"])
    with pytest.raises(ValueError, match="missing: browDownLeft, .* and 45 more"):
        from_names(np.zeros((1, 1)), ["jawOpen"])
    track = a_track(3)
    np.testing.assert_array_equal(from_names(np.pad(track, ((0, 0), (1, 0))), ["happy", *ARKIT_NAMES]), track)


def test_halves_of_a_shape_are_averaged_and_half_a_shape_is_missing():
    names = ["browInnerUp_L", "browInnerUp_R", *(n for n in ARKIT_NAMES if n != "browInnerUp")]
    track = from_names(np.arange(53)[None], names)
    assert track[0, ARKIT_NAMES.index("browInnerUp")] == 0.5
    with pytest.raises(ValueError, match="missing: browInnerUp"):
        from_names(np.zeros((1, 52)), names[1:])
    with pytest.raises(ValueError, match="twice: browInnerUp_L"):
        from_names(np.zeros((1, 54)), [*names, "browInnerUp"])


@pytest.mark.parametrize("order, width, first, last", [
    (None, 52, "browDownLeft", "tongueOut"), ("arkit", 51, "browDownLeft", "noseSneerRight"),
    ("apple", 52, "eyeBlinkLeft", "tongueOut"), ("livelink", 61, "EyeBlinkLeft", "RightEyeRoll"),
    ("mediapipe", 52, "_neutral", "noseSneerRight"), ("mediapipe", 51, "browDownLeft", "noseSneerRight"),
    ("unitalker", 51, "eyeBlinkLeft", "cheekSquintRight"), ("unitalker", 52, "browDownLeft", "tongueOut")])
def test_columns_without_names_are_in_an_order(order, width, first, last):
    names, notes = ordered(width, order, "a.npy")
    assert (len(names), names[0], names[-1]) == (width, first, last)
    assert bool(notes) == (order is None) and all(order in notes[0] for order in [*ORDERS] if notes)


@pytest.mark.parametrize("order, width, says", [
    (None, 51, "expected --order arkit or apple or livelink or mediapipe or unitalker"),
    (None, 61, "expected --order apple or livelink"), (None, 60_000, "expected 52, or 51 with --order"),
    ("arkit", 61, "not of the order arkit: expected --order apple")])
def test_columns_of_another_number_are_refused(order, width, says):
    with pytest.raises(ValueError, match=says):
        ordered(width, order, "a.npy")


@pytest.mark.parametrize("ending, write", [("json", write_json), ("csv", write_csv), ("npy", write_npy)])
def test_a_full_disk_is_said_with_the_file(tmp_path, ending, write):
    """Numpy's own words are of bytes requested and written."""
    resource = pytest.importorskip("resource")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9000, limit[1]))
    try:
        with pytest.raises(OSError) as error:
            write(tmp_path / f"a.{ending}", np.full((60, 52), 0.123456, np.float32))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert error.value.errno and error.value.filename == str(tmp_path / f"a.{ending}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("frames", [1, 7, 95, 3700])
@pytest.mark.parametrize("ending, write", [("json", write_json), ("csv", write_csv), ("npy", write_npy)])
def test_a_file_gives_back_its_track(tmp_path, ending, write, frames):
    track, path = a_track(frames), tmp_path / f"take.{ending}"
    write(path, track)
    back = read_track(path)
    assert back.shape == track.shape and back.dtype == np.float32           # the same frames: not a millisecond off
    assert np.abs(back - track).max() < 1e-4


def test_the_json_has_what_audio2face_readers_expect(tmp_path):
    write_json(tmp_path / "a.json", a_track(4) * 3 - 1, "a.wav")
    face = json.loads((tmp_path / "a.json").read_text())
    assert list(face) == ["exportFps", "trackPath", "numPoses", "numFrames", "facsNames", "weightMat"]
    assert (face["exportFps"], face["trackPath"], face["numPoses"], face["numFrames"]) == (30, "a.wav", 52, 4)
    assert isinstance(face["exportFps"], int) and 0 == np.min(face["weightMat"]) < np.max(face["weightMat"]) == 1


def test_the_csv_is_live_links(tmp_path):
    write_csv(tmp_path / "a.csv", a_track(31))
    rows = list(csv.reader((tmp_path / "a.csv").open()))
    assert len(rows) == 32 and {len(row) for row in rows} == {63}
    assert rows[0][:3] == ["Timecode", "BlendShapeCount", "EyeBlinkLeft"] and rows[0][54:] == ROTATIONS
    assert rows[0][19] == "JawOpen" and rows[30][:2] == ["00:00:00:29.000", "61"] and rows[31][0] == "00:00:01:00.000"


def live_link(path, times, values, rate, count="BlendShapeCount"):
    """A capture as the app writes it: the clock of the day, sub-frames, no rotations; jawOpen holds the values."""
    names = CONVENTIONS["livelink"]
    with open(path, "w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["Timecode", count, *names])
        for time, value in zip(times, values):
            clock, frame = divmod(7 * 3600 + 44 * 60 + 57 + time, 1)
            code = f"{int(clock) // 3600:02}:{int(clock) // 60 % 60:02}:{int(clock) % 60:02}:{frame * rate:06.3f}"
            out.writerow([code, 61, *(value if name == "JawOpen" else 0 for name in names)])


@pytest.mark.parametrize("rate, name", [(60, "take.csv"), (25, "take.csv"), (50, "take_50fps.csv"),
                                        (60, "take-60fps.csv")])
def test_a_capture_at_another_rate_is_resampled_by_time(tmp_path, rate, name):
    times = np.arange(3 * rate) / rate + 0.0
    live_link(tmp_path / name, times, times / 4, rate, "BlendshapeCount")
    track = read_track(tmp_path / name)
    assert len(track) == 90
    expected = np.minimum(np.arange(90) / 30, times[-1]) / 4                # the last row is held
    np.testing.assert_allclose(track[:, ARKIT_NAMES.index("jawOpen")], expected, atol=1e-4)


def test_a_capture_with_gaps_keeps_its_times(tmp_path):
    times = np.delete(np.arange(120) / 60, [30, 31, 32, 90])
    live_link(tmp_path / "take.csv", times, times / 2, 60)
    np.testing.assert_allclose(read_track(tmp_path / "take.csv")[:59, 24], np.arange(59) / 60, atol=1e-4)


def test_rows_without_a_face_are_bridged(tmp_path):
    times = np.arange(90) / 30
    live_link(tmp_path / "take.csv", times, times / 4, 30)
    lines = (tmp_path / "take.csv").read_text().splitlines()
    lines[40] = lines[40].split(",")[0] + ",0"
    (tmp_path / "take.csv").write_text("\n".join(lines))
    np.testing.assert_allclose(read_track(tmp_path / "take.csv")[:, 24], times / 4, atol=1e-4)


def test_51_columns_get_a_still_tongue_and_small_overshoot_is_clipped():
    track = tidy(np.full((3, 51), 1.25))
    assert track.shape == (3, 52) and (track[:, :51] == 1).all() and (track[:, 51] == 0).all()


def test_resampling_keeps_the_length_in_time():
    assert len(resample(a_track(250), np.arange(250) / 25, 10)) == 300
    np.testing.assert_array_equal(resample(a_track(), np.arange(95) / 30, 95 / 30), a_track())


@pytest.mark.parametrize("track, says", [
    (np.zeros((0, 52)), "no frames"), (np.zeros((3, 50)), r"shape \(3, 50\)"), (np.zeros(52), r"shape \(52,\)"),
    (np.full((3, 52), np.nan), "nan at frame 0, browDownLeft"), (np.full((3, 52), 80.0), "divide by 100"),
    (np.full((3, 52), "a"), "expected numbers")])
def test_what_is_no_track_is_refused(track, says):
    with pytest.raises(ValueError, match=says):
        tidy(track)
