"""captures.py: tracks of every recorder and tool are read, or refused in one line that names what is wrong.

Takes are ramps as in a_take: jawOpen at time t is t / seconds and all else 0.05, so that a value says the time it
belongs to.
"""
import csv
import gzip
import io
import json
import os
import warnings
import wave

import numpy as np
import pytest

from face import captures, tables
from face.__main__ import main
from face.arkit import ARKIT_NAMES, CONVENTIONS, ROTATIONS, to_names, write_csv
from face.captures import read_capture, read_track

JAW = ARKIT_NAMES.index("jawOpen")
LIVE = CONVENTIONS["livelink"]


def a_take(rows=60, rate=30):
    """Times (R,) and a track (R, K): a ramp."""
    times, track = np.arange(rows) / rate, np.full((rows, 52), 0.05, np.float32)
    track[:, JAW] = times * rate / rows
    return times, track


def assert_ramp(capture, seconds, atol=1e-3):
    """The track is the ramp of a_take, its last row held; all else is 0.05 or, the tongue, 0."""
    times = np.arange(len(capture.track)) / 30
    assert len(times) == round(seconds * 30) and abs(capture.length - seconds) < 0.01
    moved = times / seconds <= capture.track[:, JAW].max() + 1e-6
    np.testing.assert_allclose(capture.track[moved, JAW], (times / seconds)[moved], atol=atol)
    np.testing.assert_allclose(np.delete(capture.track, JAW, 1)[:, :50], 0.05, atol=1e-6)


def a_table(first, names=LIVE, more=(), rows=60, rate=30):
    """A table as lists of cells: header `first` names to function(time, row) -> cell, the shapes, then `more`."""
    times, track = a_take(rows, rate)
    values = to_names(track, "livelink")
    head = [*first, *names, *more]
    return [head] + [[*(cell(t, i) for cell in first.values()), *(f"{v:.6f}" for v in values[i]), *["0.1"] * len(more)]
                     for i, t in enumerate(times)]


def code(time, row):
    return f"07:44:{57 + int(time):02}:{round(time % 1 * 30):02}.000"


LIVE_LINK = {"Timecode": code, "BlendShapeCount": lambda t, i: "61"}


def text_of(table, delimiter=",", end="\n", quoted=csv.QUOTE_MINIMAL):
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter, lineterminator=end, quoting=quoted).writerows(table)
    return out.getvalue()


def written(folder, content, name="take.csv", encoding="utf-8"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    return path


# --- tables: how they are written ------------------------------------------------------------------------------------

def commas(table):
    return [table[0]] + [[cell.replace(".", ",") for cell in row] for row in table[1:]]


@pytest.mark.parametrize("form, encoding", [
    (text_of, "utf-8"), (text_of, "utf-8-sig"), (text_of, "utf-16"), (text_of, "utf-16-le"), (text_of, "utf-16-be"),
    (lambda t: text_of(t, ";"), "utf-8"), (lambda t: text_of(t, "\t", "\r\n"), "utf-16"),
    (lambda t: text_of(t, "|"), "ascii"),
    (lambda t: text_of(commas(t), ";", "\r\n"), "utf-8-sig"), (lambda t: text_of(commas(t), "\t"), "utf-8"),
    (lambda t: text_of(commas(t)), "utf-8"), (lambda t: text_of(t, quoted=csv.QUOTE_ALL), "utf-8"),
    (lambda t: text_of(t, end="\r"), "utf-8"), (lambda t: "sep=;\n" + text_of(t, ";"), "utf-8"),
    (lambda t: "# recorded, by hand\n\n" + text_of(t), "utf-8"), (lambda t: text_of(t) + ",,\n\n,,,\n", "utf-8"),
    (lambda t: text_of([row + ["", ""] for row in t]), "utf-8"),
    (lambda t: text_of([["", *row] for row in t]), "utf-8"),
    (lambda t: text_of([["Größe", *t[0]]] + [["1", *row] for row in t[1:]]), "cp1252"),
    (lambda t: text_of([t[0]] + [[f" {cell} " for cell in row] for row in t[1:]]), "utf-8")])
def test_a_table_is_read_however_it_is_written(tmp_path, form, encoding):
    content = form(a_table(LIVE_LINK)).encode(encoding)
    mark = {"utf-16-le": b"\xff\xfe", "utf-16-be": b"\xfe\xff"}.get(encoding, b"")
    name = {"utf-16-le": "take.TSV", "utf-16-be": "take.txt", "utf-8-sig": "Take_1_raw.csv"}.get(encoding, "a.csv")
    assert_ramp(read_capture(written(tmp_path, mark + content, name)), 2)


@pytest.mark.parametrize("first, rate", [
    ({"timeCode": lambda t, i: f"{t:.4f}"}, 30), ({"": lambda t, i: i, "timeCode": lambda t, i: f"{t:.4f}"}, 30),
    ({"frame": lambda t, i: i, "timestamp_ms": lambda t, i: f"{1000 * t:.1f}"}, 25),
    ({"timestamp": lambda t, i: f"{1000 * t:.1f}"}, 50), ({"timestamp": lambda t, i: f"{1.7e9 + t:.3f}"}, 50),
    ({"Time (s)": lambda t, i: f"{t:.6f}"}, 60), ({"t": lambda t, i: f"{12.5 + t:.4f}"}, 20),
    ({"elapsed_us": lambda t, i: round(t * 1e6)}, 20), ({"ts": lambda t, i: round(t * 1e9)}, 20),
    ({"frame_number": lambda t, i: 100 + i}, 30), ({"Unnamed: 0": lambda t, i: i, "index": lambda t, i: i}, 30),
    ({"time": lambda t, i: i}, 30), ({"frame": lambda t, i: f"img_{i}.png", "seconds": lambda t, i: f"{t:.3f}"}, 40),
    ({"datetime": lambda t, i: "", "timestamp": lambda t, i: f"2024-05-01T12:00:{t:06.3f}Z"}, 10), ({}, 30)])
def test_times_are_read_whatever_their_column_is_called(tmp_path, first, rate):
    capture = read_capture(written(tmp_path, text_of(a_table(first, rows=2 * rate, rate=rate))))
    assert capture.rate == pytest.approx(rate, rel=0.01)
    assert_ramp(capture, 2, atol=2e-3)


def test_other_columns_are_left_out_and_said(tmp_path):
    more = ["Angry", "age", "\x1b[31mred", "Neutral"]
    capture = read_capture(written(tmp_path, text_of(a_table(LIVE_LINK, more=more))))
    assert_ramp(capture, 2)
    assert any("left out" in note and "Angry, age, [31mred, Neutral" in note for note in capture.notes)


SIDEWAYS = {"jawleft", "jawright", "mouthleft", "mouthright"}


@pytest.mark.parametrize("spell, more", [
    (lambda name: "blendShapes." + name, ["blendShapes.TongueTipUp"]), (str.lower, []),
    (lambda name: "ARKit_" + name, []),
    (lambda name: name.replace("Left", "_L").replace("Right", "_R") if name.lower() not in SIDEWAYS else name, []),
    (lambda name: "head_geo|" + name, ["head_geo|smile"])])
def test_names_of_tables_are_read_in_other_spellings(tmp_path, spell, more):
    table = a_table({"time": lambda t, i: f"{t:.4f}"}, [*map(spell, LIVE)], more)
    capture = read_capture(written(tmp_path, text_of(table)))
    assert_ramp(capture, 2)
    assert all(any(name in note for note in capture.notes) for name in more)


def test_rows_without_a_face_are_joined_and_keep_their_time(tmp_path):
    table = a_table(LIVE_LINK)
    table[1] = [table[1][0], "0"]                                           # as the app writes it, and at the start
    table[20] = [table[20][0], "0", *["0"] * 52]
    table[21] = [table[21][0], "61", *[""] * 52]
    table[22] = [table[22][0], "61", *["nan"] * 52]
    capture = read_capture(written(tmp_path, text_of(table)))
    assert len(capture.track) == 60 and "4 of 60 rows have no face: those around them are joined" in capture.notes
    np.testing.assert_allclose(capture.track[1:, JAW], np.arange(1, 60) / 60, atol=1e-3)


def test_head_and_eye_rotations_are_kept_from_csv_to_csv_and_else_said(tmp_path, capsys):
    table = a_table(LIVE_LINK, more=ROTATIONS[:3])
    for i, row in enumerate(table[1:]):
        row[-3:] = [f"{i / 100:.4f}", "-0.2", "0"]
    path = written(tmp_path, text_of(table))
    for name in ("out.csv", "out.json", "out.npy"):
        main(["convert", str(path), str(tmp_path / name)])
    said = capsys.readouterr().err
    assert said.count("left out, as only .csv has them: HeadYaw, HeadPitch, HeadRoll, LeftEyeYaw") == 2
    assert "2.00 s, 30 frames per second: " in said and "timecodes" in said
    turned = read_capture(tmp_path / "out.csv")
    np.testing.assert_allclose(turned.rotations[:, :3], [[i / 100, -0.2, 0] for i in range(60)], atol=1e-4)
    assert not turned.rotations[:, 3:].any() and read_capture(tmp_path / "out.json").rotations is None
    np.testing.assert_allclose(turned.track, read_track(tmp_path / "out.json"), atol=1e-4)


def changed(row, column, cell):
    """The table of a_take with another cell; row as a spreadsheet counts, column by name."""
    table = a_table(LIVE_LINK)
    table[row - 1][table[0].index(column)] = cell
    return text_of(table)


TABLE = a_table(LIVE_LINK)


@pytest.mark.parametrize("content, says", [
    (changed(7, "JawOpen", "0_1"), "row 7, column JawOpen: the cell holds '0_1', expected a number"),
    (changed(22, "JawOpen", ""), "row 22, column JawOpen: the cell is blank, expected a number"),
    (changed(3, "TongueOut", "x"), "row 3, column TongueOut: the cell holds 'x'"),
    (changed(61, "EyeBlinkLeft", "nan"), "row 61, column EyeBlinkLeft: the cell holds 'nan'"),
    (changed(2, "EyeBlinkLeft", "inf"), "row 2, column EyeBlinkLeft: the cell holds 'inf'"),
    (changed(5, "JawOpen", "1.234,5"), "row 5, column JawOpen: the cell holds '1.234,5'"),
    ("\n\n" + changed(9, "JawOpen", ""), "row 11, column JawOpen"),
    (text_of(TABLE + TABLE), "row 62, column EyeBlinkLeft"),
    (changed(7, "Timecode", "soon"), "row 7, column Timecode: the cell holds 'soon', expected HH:MM:SS:FF"),
    (text_of(a_table({"time": lambda t, i: "x" if i == 9 else t})), "row 11, column time: the cell holds 'x'"),
    (changed(8, "Timecode", ""), "row 8, column Timecode: the cell is blank, expected HH"),
    (changed(9, "JawOpen", "80"), "if they are per cent"),
    (text_of([*TABLE[:9], TABLE[9] + ["1"]]), "row 10 has 55 cells, expected 54"),
    (text_of([*TABLE[:9], TABLE[9][:30]]), "row 10, column MouthDimpleRight: the cell is blank"),
    (text_of([row[:-2] for row in TABLE]), "missing: noseSneerRight"),
    (text_of(TABLE[:1]), "no face in any of its 0 rows"),
    (text_of([row + row[20:21] for row in TABLE]), "twice: MouthClose, MouthClose"),
    (text_of([row[:2] + row[:2] for row in TABLE]), "none of its first 50 lines holds names"),
    (text_of([[cell.replace("EyeBlink", "eyelid") for cell in row] for row in TABLE]),
     "missing: eyeBlinkLeft, eyeBlinkRight; other names: .*eyelidLeft"),
    (text_of([*TABLE[:5], ["y" * 200_000]]), "row 6 is no row of a table: field larger"),
    (text_of([row + [*map(str, range(3000))] for row in TABLE[:3]]), "has 3054 columns, expected at most 2000"),
    ("PK\x03\x04\0\0\xff" * 100, "none of its first 50 lines"), ("", "none of its first 50 lines"),
    (text_of([[f"{start}_{name}" for start in ("you", "me") for name in LIVE], ["0"] * 104]),
     "two tracks, named you_... and me_")])
def test_what_is_wrong_in_a_table_is_named(tmp_path, content, says):
    with pytest.raises(ValueError, match=says):
        read_capture(written(tmp_path, content))


def test_fps_and_ignore_timecodes_win(tmp_path):
    path = written(tmp_path, changed(7, "Timecode", "soon"))
    assert read_capture(path, ignore_timecodes=True).length == pytest.approx(2)
    assert read_capture(path, fps=60, ignore_timecodes=True).length == pytest.approx(1)
    assert read_capture(written(tmp_path, json.dumps(audio2face(exportFps="?")), "a.json"), fps=15).length == 4


# --- json ------------------------------------------------------------------------------------------------------------

def audio2face(rows=60, **changes):
    return {"exportFps": 30, "trackPath": "a.wav", "numPoses": 52, "numFrames": rows, "facsNames": ARKIT_NAMES,
            "weightMat": a_take(rows)[1].tolist(), "joints": [], "translations": [[0, 0, 0]]} | changes


def frames(**more):
    """One object of names and weights for each frame, and `more` of function(time, row)."""
    times, track = a_take()
    return [dict(zip(ARKIT_NAMES, row.tolist())) | {key: value(t, i) for key, value in more.items()}
            for i, (t, row) in enumerate(zip(times, track))]


def mediapipe(frame, name="categoryName"):
    return [{"index": i, "score": score, name: key, "displayName": ""} for i, (key, score) in enumerate(frame.items())]


def columns(track):
    return {name: column.tolist() for name, column in zip(ARKIT_NAMES, track.T)}


TIMES, TRACK = a_take()
FRAMES, WEIGHTS = frames(), TRACK.tolist()


@pytest.mark.parametrize("value", [
    audio2face(), audio2face(exportFps="30"), audio2face(facsNames=["Face_BS." + name for name in ARKIT_NAMES]),
    {"names": ARKIT_NAMES[:51],
     "frames": [{"weights": row[:51], "time": t, "rotation": []} for row, t in zip(WEIGHTS, TIMES)]},
    {"names": LIVE, "metadata": {"fps": 30},
     "frames": [{"weights": row} for row in to_names(TRACK, "livelink").tolist()]},
    {"blend_shape_keys": ARKIT_NAMES, "blend_shape_values": WEIGHTS, "timestamps": TIMES.tolist()},
    FRAMES, {"frameRate": 30, "frames": FRAMES}, frames(timestamp_ms=lambda t, i: 1000 * t),
    frames(frame=lambda t, i: i),
    [{"timecode": code(t, 0), "blendShapes": frame} for t, frame in zip(TIMES, FRAMES)],
    [{"t": t, "faceBlendshapes": [{"categories": mediapipe(frame), "headIndex": -1}],
      "faceLandmarks": [[{"x": 0.5}] * 3]} for t, frame in zip(TIMES, FRAMES)],
    [[mediapipe(frame, "category_name")] for frame in FRAMES], [mediapipe(frame) for frame in FRAMES],
    columns(TRACK), {"fps": 30, "blendshapes": columns(TRACK)},
    columns(TRACK) | {"time": TIMES.tolist(), "text": ["hi"]},
    WEIGHTS, {"fps": 30, "weights": WEIGHTS}, {"data": {"fps": 30, "data": FRAMES}}])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_json_of_all_shapes_is_read(tmp_path, value, encoding):
    if encoding == "utf-8" or value is FRAMES:
        value = json.loads(json.dumps(value, default=float))
        assert_ramp(read_capture(written(tmp_path, json.dumps(value), "take.json", encoding)), 2)


def test_lists_of_weights_are_not_said_to_be_left_out_where_they_are_nested(tmp_path):
    value = {"fps": 30, "weights": columns(TRACK)}
    capture = read_capture(written(tmp_path, json.dumps(value), "take.json"))
    assert not [note for note in capture.notes if "left out" in note]


def test_frames_without_a_face_and_single_frames(tmp_path):
    empty = [{"t": t, "faceBlendshapes": [] if i in (0, 5) else [{"categories": mediapipe(frame)}]}
             for i, (t, frame) in enumerate(zip(TIMES.tolist(), FRAMES))]
    capture = read_capture(written(tmp_path, json.dumps(empty), "take.json"))
    assert len(capture.track) == 60 and any("2 of 60 rows have no face" in note for note in capture.notes)
    for one in ({"faceBlendshapes": [{"categories": mediapipe(FRAMES[30])}]}, FRAMES[30], mediapipe(FRAMES[30])):
        track = read_track(written(tmp_path, json.dumps(one), "take.json"))
        assert track.shape == (1, 52) and track[0, JAW] == 0.5


def with_cell(cell):
    return [*FRAMES[:7], FRAMES[7] | {"jawOpen": cell}, *FRAMES[8:]]


@pytest.mark.parametrize("value, says", [
    (with_cell(None), "frame 7, column jawOpen: the cell is blank"),
    ([FRAMES[0], {"jawForward": 0}], "frame 1, column browDownLeft: the cell is blank"),
    (with_cell(float("nan")), "frame 7, column jawOpen: the cell holds 'nan'"),
    (with_cell([1]), r"frame 7, column jawOpen: the cell holds '\[1\]'"),
    (with_cell(10 ** 400), "frame 7, column jawOpen"), (with_cell("much"), "holds 'much'"), (with_cell(80), "per cent"),
    (audio2face(weightMat=[*WEIGHTS[:4], WEIGHTS[4][:51]]), "frame 4 has 51 weights, expected 52"),
    (audio2face(weightMat=[*WEIGHTS[:4], 5]), "frame 4 is 5"), (audio2face(weightMat=[]), "no frames"),
    (audio2face(exportFps=0), "states 0 frames per second"), (audio2face(exportFps=[30]), r"states \[30\] frames"),
    (audio2face(exportFps=True), "states True frames"), (audio2face(exportFps=1e-6), "1e-06"),
    (audio2face(exportFps=1e9), "states 1000000000.0 frames"),
    (audio2face(facsNames=3), "its names are 3, expected a list of names"),
    (audio2face(facsNames=[[]] * 52), "expected a list of names"),
    (audio2face(facsNames=[*ARKIT_NAMES[:51], "jawOpen"]), "names has jawOpen twice"),
    (audio2face(facsNames=[*ARKIT_NAMES[:51], "Jaw_Open"]), "twice: jawOpen, Jaw_Open"),
    (audio2face(timestamps=[1, 2]), "timestamps has 2 values, frames 60"),
    (columns(TRACK) | {"jawOpen": [1, 2]}, "jawOpen has 2 values, browDownLeft 60"),
    ([{"faceBlendshapes": [{"categories": mediapipe(FRAMES[0])}] * 2}], "frame 0 is .* the weights of one face"),
    ([{"blendshapes": FRAMES[0], "weights": FRAMES[0]}], "frame 0 has browDownLeft twice"),
    ([row[:51] for row in WEIGHTS], "51 columns without names: expected --order arkit or"),
    ({}, "missing: browDownLeft"), ([], "no frames"), (3, "no frames"), (None, "no frames"),
    ([1, 2], "frame 0 is 1"), ({"frames": 3}, "missing"), ({"frames": [[[[]]]]}, "missing")])
def test_what_is_wrong_in_json_is_named(tmp_path, value, says):
    with pytest.raises(ValueError, match=says):
        read_capture(written(tmp_path, json.dumps(value), "take.json"))


@pytest.mark.parametrize("content", [
    "{", "[" * 100_000, '{"data":' * 900 + "1" + "}" * 900, "\0", "1" + "0" * 5000, ""])
def test_what_is_no_json_is_refused(tmp_path, content):
    with pytest.raises(ValueError, match="take.json"):
        read_capture(written(tmp_path, content, "take.json"))


@pytest.mark.parametrize("key, fps", [
    (lambda t, i: i, 30), (lambda t, i: f"frame_{i:04}", 30), (lambda t, i: f"{t:.4f}", None),
    (lambda t, i: round(1000 * t), None), (lambda t, i: code(t, i)[:11], None)])
@pytest.mark.parametrize("listed", [False, True])
def test_frames_under_their_numbers_or_times_are_read(tmp_path, key, fps, listed):
    under = {str(key(t, i)): WEIGHTS[i] if listed else FRAMES[i] for i, t in enumerate(TIMES)}
    value = {"names": ARKIT_NAMES, "frames": under} if listed else under
    assert_ramp(read_capture(written(tmp_path, json.dumps(value), "take.json"), fps=fps), 2)


@pytest.mark.parametrize("name", ["take.json", "take.jsonl"])
@pytest.mark.parametrize("first", [[], [{"type": "header", "fps": 30}]])
def test_json_lines_are_read_whatever_their_name_and_case(tmp_path, name, first):
    rows = [{"TIMESTAMP": t, "BLENDSHAPES": {key.upper(): cell for key, cell in frame.items()}}
            for t, frame in zip(TIMES.tolist(), FRAMES)]
    lines = [*map(json.dumps, first + rows)]
    assert_ramp(read_capture(written(tmp_path, "\n".join(lines) + "\n\n", name)), 2)
    with pytest.raises(ValueError, match=f"{name} is not valid json"):
        read_capture(written(tmp_path, "\n".join(lines)[:-9], name))


# --- files -----------------------------------------------------------------------------------------------------------

def npy(values) -> bytes:
    out = io.BytesIO()
    np.save(out, values, allow_pickle=True)
    return out.getvalue()


ARRAY = npy(a_take()[1])

@pytest.mark.parametrize("ending", [".csv", ".json", ".npy", ".npz"])
def test_what_is_no_plain_file_of_its_size_is_refused(tmp_path, monkeypatch, ending):
    path = tmp_path / f"take{ending}"
    with pytest.raises(FileNotFoundError, match="not found: expected a face track"):
        read_capture(path)
    path.mkdir()
    with pytest.raises(ValueError, match="is a directory"):
        read_capture(path)
    os.mkfifo(tmp_path / f"pipe{ending}")
    with pytest.raises(ValueError, match="is a pipe"):
        read_capture(tmp_path / f"pipe{ending}")
    monkeypatch.setattr(captures, "MAX_BYTES", 1 << 20)
    with pytest.raises(ValueError, match="has 2 MiB, expected a face track of at most 1"):
        read_capture(written(tmp_path, bytes(2 << 20), f"big{ending}"))


@pytest.mark.parametrize("content", [gzip.compress(text_of(TABLE).encode()), ARRAY,
                                     b"PK\3\4" + bytes(range(256)) * 9])
@pytest.mark.parametrize("ending", ["csv", "json"])
def test_a_file_of_another_kind_is_refused_in_one_line(tmp_path, content, ending):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match="is it a table|is not valid json"):
            read_capture(written(tmp_path, content, f"take.{ending}"))


def test_a_sound_of_another_length_is_said(tmp_path, capsys):
    write_csv(tmp_path / "take.csv", a_take()[1])
    for seconds, said in ((2.05, False), (4, True)):
        with wave.open(str(tmp_path / "a.wav"), "wb") as sound:
            sound.setparams((1, 2, 16_000, 0, "NONE", ""))
            sound.writeframes(bytes(2 * int(16_000 * seconds)))
        main(["convert", str(tmp_path / "take.csv"), str(tmp_path / "o.json"), "--audio", str(tmp_path / "a.wav")])
        assert ("take.csv lasts 2.00 s, " in capsys.readouterr().err) == said


@pytest.mark.parametrize("content, name", [(text_of(TABLE), "a.csv"), (json.dumps(FRAMES), "a.json"), (ARRAY, "a.npy")])
def test_more_than_four_hours_are_refused(tmp_path, monkeypatch, content, name):
    monkeypatch.setattr(captures, "MAX_ROWS", 59)
    monkeypatch.setattr(tables, "MAX_ROWS", 59)
    with pytest.raises(ValueError, match="59"):
        read_capture(written(tmp_path, content, name))


@pytest.mark.parametrize("arguments, says", [
    (["take.csv", "--order", "nosuch"], "--order nosuch"), (["take.csv", "--fps", "1e-9"], "--fps"),
    (["take.csv", "--fps", "nan"], "--fps"), (["bad.csv"], "row 22, column JawOpen"), (["take.bvh"], "unknown ending"),
    (["none.csv"], "not found"), (["take.csv", "--template", "none.glb"], "none.glb not found")])
def test_a_refusal_is_one_line_and_writes_nothing(tmp_path, monkeypatch, capsys, arguments, says):
    monkeypatch.chdir(tmp_path)
    write_csv("take.csv", a_take()[1])
    written(tmp_path, changed(22, "JawOpen", ""), "bad.csv")
    with pytest.raises(SystemExit) as stop:
        main(["convert", arguments[0], "out.json", *arguments[1:]])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.count("\n") == 1 and says in said and not (tmp_path / "out.json").exists()


def test_names_are_found_under_any_key(tmp_path):
    """Columns in another order than ours, under a key that no list of ours has."""
    names, path = [*reversed(ARKIT_NAMES)], tmp_path / "take.json"
    rows = [[0.0] * 27 + [1.0] + [0.0] * 24] * 30
    path.write_text(json.dumps({"rig": {"curves": names}, "weightMat": rows}))
    assert names[27] == "jawOpen" and (read_track(path)[:, ARKIT_NAMES.index("jawOpen")] == 1).all()
