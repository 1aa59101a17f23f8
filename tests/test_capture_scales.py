"""captures.py: bare arrays; the scale of weights, the unit of rotations, a tongue that is not there."""
import io
import json

import numpy as np
import pytest

from face import captures
from face.arkit import ARKIT_NAMES, CONVENTIONS, RELEASE_NAMES, ROTATIONS
from face.captures import read_capture
from test_captures import ARRAY, JAW, LIVE, TABLE, TRACK, WEIGHTS, a_table, a_take, assert_ramp, npy, text_of, written


# --- scale ------------------------------------------------------------------------------------------------------------

def times_100(names=LIVE, above="", most=100, more=()):
    table = a_table({"time": lambda t, i: f"{t:.4f}"}, names, more)
    return above + text_of([table[0]] + [[row[0], *(f"{float(cell) * most:.4f}" for cell in row[1:53]), *row[53:]]
                                         for row in table[1:]])


@pytest.mark.parametrize("content, name", [
    (times_100([f"{name} (%)" for name in LIVE]), "a.csv"), (times_100(above="# values in percent\n"), "a.csv"),
    (times_100(above="# unit: %\n"), "a.csv"), (times_100(above="# weights 0-100\n"), "a.csv"),
    (json.dumps({"fps": 30, "unit": "percent", "names": ARKIT_NAMES, "frames": (TRACK * 100).tolist()}), "a.json"),
    (json.dumps({"fps": 30, "range": [0, 100], "names": ARKIT_NAMES, "frames": (TRACK * 100).tolist()}), "a.json")])
def test_a_scale_that_the_file_states_is_used(tmp_path, content, name):
    capture = read_capture(written(tmp_path, content, name))
    assert_ramp(capture, 2)
    assert any("weights are per cent, divided by 100" in note for note in capture.notes)


def test_weights_in_per_cent_below_two_are_no_weights_and_others_are_not_divided(tmp_path):
    small = read_capture(written(tmp_path, times_100([f"{name} (%)" for name in LIVE], most=1.6)))
    np.testing.assert_allclose(small.track[:, JAW], np.arange(60) / 60 * 0.016, atol=1e-4)
    assert_ramp(read_capture(written(tmp_path, times_100(above="# tracked in 98 % of frames\n", most=1))), 2)


def test_what_is_clipped_or_rounded_is_said_and_a_small_overshoot_is_not(tmp_path):
    for values, says in ((TRACK * 1.6, "weights between 0 and 1.57 are clipped"), (TRACK > 0.5, "0 or 1"),
                         (TRACK - 0.5, "weights between -0.5"), ((TRACK > 0.5).astype("u1"), "0 or 1")):
        assert any(says in note for note in read_capture(written(tmp_path, npy(values), "a.npy")).notes)
    assert len(read_capture(written(tmp_path, npy(TRACK * 1.1 - 0.05), "a.npy")).notes) == 1    # of the order


@pytest.mark.parametrize("unit, above, most, degrees", [
    ("", "", 25, True), ("", "", 0.6, False), (" (deg)", "", 1.2, True), (" [rad]", "", 3.1, False),
    ("", "# rotations in degrees\n", 1.2, True), (" (rad)", "", 40, True)])
def test_rotations_in_degrees_become_radians(tmp_path, unit, above, most, degrees):
    content = times_100(above=above, most=1, more=[name + unit for name in ROTATIONS])
    lines = [",".join(line.split(",")[:-9] + [str(most)] * 9) if line[0].isdigit() else line
             for line in content.splitlines()]
    capture = read_capture(written(tmp_path, "\n".join(lines)))
    np.testing.assert_allclose(capture.rotations, np.radians(most) if degrees else most, rtol=1e-5)
    assert any("taken as degrees" in note for note in capture.notes) == degrees


def test_a_tongue_that_is_blank_throughout_is_still(tmp_path):
    blank = [row[:-1] + [""] for row in TABLE[1:]]
    capture = read_capture(written(tmp_path, text_of([TABLE[0], *blank])))
    assert_ramp(capture, 2)
    assert not capture.track[:, 51].any() and "TongueOut is blank throughout: taken as 0" in capture.notes
    with pytest.raises(ValueError, match="row 61, column TongueOut holds '0.050000', before it is blank"):
        read_capture(written(tmp_path, text_of([TABLE[0], *blank[:-1], TABLE[-1]])))


# --- arrays ----------------------------------------------------------------------------------------------------------

def npz(**members) -> bytes:
    out = io.BytesIO()
    np.savez_compressed(out, **members)
    return out.getvalue()


@pytest.mark.parametrize("order, names", [
    (None, ARKIT_NAMES), ("arkit", ARKIT_NAMES), ("arkit", ARKIT_NAMES[:51]), ("apple", CONVENTIONS["apple"]),
    ("livelink", LIVE), ("livelink", LIVE + ROTATIONS), ("mediapipe", CONVENTIONS["mediapipe"]),
    ("unitalker", RELEASE_NAMES), ("unitalker", ARKIT_NAMES)])
@pytest.mark.parametrize("kind", ["npy", "npz", "json"])
def test_a_bare_array_is_read_in_its_order(tmp_path, order, names, kind):
    track = a_take()[1]
    values = np.stack([track[:, JAW if name in ("jawOpen", "JawOpen") else 0] for name in names], axis=1)
    write = {"npy": lambda: npy(values.astype(">f8")), "npz": lambda: npz(a=np.asfortranarray(values)),
             "json": lambda: json.dumps(values.tolist())}
    capture = read_capture(written(tmp_path, write[kind](), f"take.{kind}"), order=order)
    assert_ramp(capture, 2)
    assert (order is None) == any("taken in the order arkit" in note for note in capture.notes)
    assert (capture.rotations is not None) == (len(names) == 61)


def test_an_order_for_a_file_with_names_is_not_used_and_an_unknown_one_refused(tmp_path):
    path = written(tmp_path, text_of(TABLE))
    assert "--order mediapipe is not used: the file has names" in read_capture(path, order="mediapipe").notes
    with pytest.raises(ValueError, match="--order x: expected one of arkit, apple, livelink, mediapipe, unitalker"):
        read_capture(path, order="x")


def claiming(shape, dtype="<f4", data=b"\0" * 208):
    """An npy whose header says another shape than its data has."""
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"shape": shape, "fortran_order": False, "descr": dtype})
    return out.getvalue() + data


@pytest.mark.parametrize("content, says", [
    (npy(np.zeros((3, 52), complex)), "it holds complex128, expected numbers"),
    (npy(np.full((3, 52), None)), "it holds object, expected numbers"),
    (npy(np.zeros(3, [("jawOpen", "f4")])), "expected numbers"), (npy(np.full((3, 52), "a")), "expected numbers"),
    (npy(np.zeros((3, 52), "M8[s]")), "expected numbers"), (npy(np.zeros((2, 3, 52))), r"has shape \(2, 3, 52\)"),
    (npy(np.zeros(52)), r"has shape \(52,\)"), (npy(np.array(5.0)), r"has shape \(\)"),
    (npy(np.zeros((0, 52))), "no face in any of its 0 rows"),
    (npy(np.zeros((3, 51))), "has 51 columns without names: expected --order arkit or apple or livelink or mediapipe"),
    (npy(np.zeros((3, 53))), "expected 52"), (npy(np.full((3, 52), 80.0)), "per cent"),
    (npy(np.where(np.eye(52)[:9], np.nan, 0)), "nan at frame 0, browDownLeft"),
    (claiming((10 ** 12, 52)), "header claims"), (claiming((-1, 52)), "header claims"),
    (claiming((10 ** 30, 0), data=b""), "not a bare"), (claiming((10 ** 9, 0), data=b""), "at most 864000 frames"),
    (ARRAY[:-1], "header claims"), (ARRAY + b"\0", "header claims"), (ARRAY[:20], "not a bare .npy array"),
    (b"", "not a bare"), (b"nonsense", "not a bare"), (ARRAY.replace(b"(60, 52)", b"((((((52"), "not a bare"),
    (ARRAY.replace(b"<f4", b"<z4"), "not a bare")])
def test_what_is_no_bare_array_is_refused(tmp_path, content, says):
    with pytest.raises(ValueError, match=says):
        read_capture(written(tmp_path, content, "take.npy"))


CUT = npz(a=TRACK)


@pytest.mark.parametrize("content, says", [
    (npz(a=np.zeros((1 << 18, 8))), "unpacked it has 16 MiB, expected at most 1"),      # of 16 kB
    (npz(a=WEIGHTS, b=WEIGHTS), "holds a.npy, b.npy, expected one array"), (CUT[:-30], "not a bare .npz array"),
    (CUT[:200] + b"\xff" * 9 + CUT[209:], "not a bare .npz array"), (b"", "not a bare .npz"),
    (npz(), "it holds nothing, expected one array")])
def test_npz_files_that_are_refused(tmp_path, monkeypatch, content, says):
    monkeypatch.setattr(captures, "MAX_BYTES", 1 << 20)
    with pytest.raises(ValueError, match=says):
        read_capture(written(tmp_path, content, "take.npz"))
