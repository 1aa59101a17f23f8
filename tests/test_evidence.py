"""evidence.py: what a file says of its time, in the spellings of many tools, is used where its meaning is plain and
refused where it is not; no rate is assumed instead. Rows of several faces, and what is there twice, are refused.

Takes are ramps: jawOpen at time t is t / seconds, so that a value says the time it belongs to.
"""
import csv
import io
import json
import random

import numpy as np
import pytest

from face.arkit import ARKIT_NAMES, CONVENTIONS, to_names
from face.captures import read_capture
from face.words import kind_of, unit_of, words

JAW, LIVE = ARKIT_NAMES.index("jawOpen"), CONVENTIONS["livelink"]


def ramp(rows, rate):
    """Times (R,) and a track (R, K)."""
    track = np.full((rows, 52), 0.05, np.float32)
    track[:, JAW] = np.arange(rows) / rows
    return np.arange(rows) / rate, track


def table(folder, columns, rows=90, rate=60, order=None, above="", name="take.csv", faces=1):
    """A table in which `columns`, name -> function(time, row), stand before the shapes; its path. order: of its rows.
    faces: so many rows for each time; the others' jaws are open."""
    times, track = ramp(rows, rate)
    values = to_names(track, "livelink")
    lines = []
    for t, i in zip(times, range(rows)):
        for face in range(faces):
            cells = [cell(t, i) if faces == 1 else cell(t, face) for cell in columns.values()]
            lines.append([*cells, *(f"{value if not face else 0.9:.6f}" for value in values[i])])
    lines = lines if order is None else [lines[row] for row in order]
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([[*columns, *LIVE], *lines])
    path = folder / name
    path.write_text(above + out.getvalue(), encoding="utf-8")
    return path


def a2f(rows=90, rate=60, **facts):
    return facts | {"facsNames": ARKIT_NAMES, "weightMat": ramp(rows, rate)[1].tolist()}


def frames(rows=90, rate=60, **more):
    """An object of names and weights for each frame, after those of `more`, function(time, row)."""
    times, track = ramp(rows, rate)
    return [{key: value(t, i) for key, value in more.items()} | dict(zip(ARKIT_NAMES, row))
            for t, i, row in zip(times.tolist(), range(rows), track.tolist())]


def as_json(folder, value, name="take.json"):
    path = folder / name
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def assert_ramp(capture, rate, rows=90):
    """The track is the ramp of so many rows at that rate, the last row held; within a row and rounding."""
    jaw, seconds = capture.track[:, JAW], rows / rate
    assert capture.length == pytest.approx(seconds, abs=1.1 / rate), (capture.how, capture.notes)
    off = abs(jaw - np.arange(len(jaw)) / 30 / seconds)[:-1].max() * seconds
    assert off < 1.1 / rate + 1e-3, (off, capture.how, capture.notes)


# --- facts of json, and above a table --------------------------------------------------------------------------------

@pytest.mark.parametrize("rate", [60, 25])
@pytest.mark.parametrize("key, value", [
    ("sampleRate", lambda rate: rate), ("capture_frequency_hz", float), ("frames-per-sec", str),
    ("Frame Rate", lambda rate: f"{rate} fps"), ("frameRate", lambda rate: f"{rate * 1001}/1001"),
    ("frameRate", lambda rate: {"numerator": rate * 1000, "denominator": 1000}), ("speed", lambda rate: f"{rate}Hz"),
    ("frame_interval_ms", lambda rate: 1000 / rate), ("frameTimeUs", lambda rate: 1e6 / rate),
    ("samplingInterval", lambda rate: 1e9 / rate), ("time_per_frame", lambda rate: 1 / rate),
    ("deltaTime", lambda rate: f"{1000 / rate} ms"), ("fr", int), ("mspf", lambda rate: 1000 / rate),
    ("frame_time_ms", lambda rate: {"mean": 1000 / rate, "max": 99}),
    ("frameDuration", lambda rate: {"value": 1, "timescale": rate}),
    ("length_seconds", lambda rate: 90 / rate), ("durationMs", lambda rate: 90_000 / rate),
    ("take_length", lambda rate: 90 / rate), ("clip-duration", lambda rate: 90e6 / rate),
    ("Duration", lambda rate: f"00:00:{90 / rate:06.3f}")])
def test_a_rate_is_found_under_any_key(tmp_path, key, value, rate):
    plain = a2f(rate=rate, **{key: value(rate)})
    if key != "speed":
        assert_ramp(read_capture(as_json(tmp_path, plain)), rate)
        assert_ramp(read_capture(as_json(tmp_path, {"info": {"x": plain.pop(key), key: value(rate)}} | plain)), rate)
    else:                                                                   # may be the rate of something else
        with pytest.raises(ValueError, match="speed .*--fps N"):
            read_capture(as_json(tmp_path, plain))


@pytest.mark.parametrize("facts", [
    {"fps": 60, "fps_base": 1.001}, {"scene": {"render": {"fps": 60, "fpsBase": 1.001}}}])
def test_blenders_rate_has_a_base(tmp_path, facts):
    capture = read_capture(as_json(tmp_path, a2f(**facts)))
    assert capture.rate == pytest.approx(60 / 1.001) and capture.length == pytest.approx(90 * 1.001 / 60)


def test_a_start_and_an_end_are_a_duration_and_sound_has_rates_of_its_own(tmp_path):
    assert_ramp(read_capture(as_json(tmp_path, a2f(startTime=10.0, endTime=11.5))), 60)
    assert_ramp(read_capture(as_json(tmp_path, a2f(begin_time="5", stop_time="6.5", tracks=[{"fps_source": "a"}]))), 60)
    assert_ramp(read_capture(as_json(tmp_path, a2f(tracks=[{"name": "a", "fps": 60}]))), 60)
    assert_ramp(read_capture(as_json(tmp_path, a2f(sampleRate=48_000, duration=1.5))), 60)
    assert_ramp(read_capture(as_json(tmp_path, a2f(rate=30, audio={"sampleRate": 16_000}))), 30)


@pytest.mark.parametrize("facts, says", [
    ({"fps": 30, "captureFps": 60}, "30 frames/s .*60 frames/s"), ({"pollInterval": 16.667}, "pollInterval"),
    ({"duration": 100}, "duration 100 fits no rate"), ({"frameInterval": 100_000}, "several rates"),
    ({"numFrames": 120, "duration": 2.0}, "is not of these 90 rows"), ({"tickRate": 60}, "tickRate 60 may say"),
    ({"time_base": "1/60"}, "time_base 1/60 may say"), ({"display": "1280x720 @ 60fps"}, "60fps may say")])
def test_a_rate_that_is_not_plain_is_refused_and_fps_decides(tmp_path, facts, says):
    path = as_json(tmp_path, a2f(**facts))
    with pytest.raises(ValueError, match=f"take.json: the rate is not known: .*{says}.*--fps N"):
        read_capture(path)
    assert_ramp(read_capture(path, fps=60), 60)
    timed = {"timestamps": [row / 60 for row in range(90)]}                 # nor are they in the way of a clock
    assert_ramp(read_capture(as_json(tmp_path, a2f(**facts) | timed)), 60)


@pytest.mark.parametrize("facts", [
    {"temperature": 0.7, "confidence": 0.9, "uuid": "a-1", "quality": 60}, {"createdAt": "2024-05-01T12:00:00Z"},
    {"timestamp": 1714560000}, {"heartRate": 60, "bitrate": 60, "audioSampleRate": 22_050}, {"fadeDuration": 0.2},
    {"exposure_ms": 16.7, "latency_ms": 16.7, "inference_time": 0.0167}, {"focalLength": 35, "blinkInterval": 4.2}])
def test_other_facts_are_not_in_the_way(tmp_path, facts):
    assert_ramp(read_capture(as_json(tmp_path, a2f(rate=30, **facts))), 30)


@pytest.mark.parametrize("above", [
    "# fps: 60\n", "Frame Rate,60\n\n", "FrameRate=60\n", "# frame interval: 16.6667 ms\n", "# fps 60\n",
    "Recorded with X (60 FPS)\n", "# video 1920x1080p60, iPhone 12\n", "# 2024-05-30, 60 frames per second\n",
    "# Frame rate: 60 (constant)\n", "# fps=60; device=x\n", "Frame Rate,60.00 fps NDF\n",
    "Format Version,1.23,Take Name,x,Capture Frame Rate,60.0\n"])
def test_the_lines_above_a_table_say_its_rate(tmp_path, above):
    assert_ramp(read_capture(table(tmp_path, {}, above=above)), 60)


def test_a_rate_in_a_sentence_is_weighed_like_others(tmp_path):
    codes = {"Timecode": lambda t, i: f"00:00:{3 + i // 60:02}:{i % 60:02}"}
    for words in ("Recorded with X (60 FPS)", "recorded at sixty fps"):
        assert_ramp(read_capture(as_json(tmp_path, a2f(comment=words))), 60)
    for path in (table(tmp_path, codes, above="# 30 fps\n"),
                 table(tmp_path, {}, above="# 60 fps\n", name="a_30fps.csv"),
                 as_json(tmp_path, a2f(exportFps=60, comment="the camera ran at 30 fps"))):
        capture = read_capture(path)
        assert_ramp(capture, 60)
        assert any("30" in note and "taken" in note for note in capture.notes)
    for above in ("# 60 fps\n# resampled to 30 fps\n", "# downsampled from 120 fps\n", "# 60 fps, now 30 fps\n"):
        with pytest.raises(ValueError, match="the rate is not known"):
            read_capture(table(tmp_path, {}, above=above))


@pytest.mark.parametrize("end, says", [
    ("# end of take\n", "row 92: # end of take"), ("Total frames,90\n", "row 92: Total frames 90"),
    ("# 90 frames, 1.5 s, ok\n", "row 92"), ("\nDuration,1.5\n", "row 93: Duration 1.5")])
@pytest.mark.parametrize("clock", ["time", "Timecode", "frame"])
def test_a_line_after_the_rows_is_no_frame(tmp_path, end, says, clock):
    cell = {"time": lambda t, i: f"{t:.4f}", "frame": lambda t, i: i,
            "Timecode": lambda t, i: f"00:00:{3 + i // 60:02}:{i % 60:02}"}[clock]
    path = table(tmp_path, {clock: cell}, name="take_60fps.csv")
    path.write_text(path.read_text() + end)
    capture = read_capture(path)
    assert_ramp(capture, 60)
    assert any(says in note for note in capture.notes)
    path.write_text(path.read_text() + "Average," + ",".join(["0.5"] * 52) + "\n")
    with pytest.raises(ValueError, match=f"row 9[345], column {clock}: the cell holds 'Average'"):
        read_capture(path)


@pytest.mark.parametrize("key", ["numFrames", "frame_count", "total_frames", "Frames"])
def test_a_count_that_the_rows_contradict_is_said(tmp_path, key):
    assert any(f"{key} says 120, the file has 90 rows" in note
               for note in read_capture(as_json(tmp_path, a2f(fps=60, **{key: 120}))).notes)
    assert not read_capture(as_json(tmp_path, a2f(fps=60, **{key: 90}))).notes
    stated = read_capture(as_json(tmp_path, a2f(fps=60, duration=9)))
    assert any("duration 9 would be 10 frames/s, the file says 60" in note for note in stated.notes)


# --- clocks ----------------------------------------------------------------------------------------------------------

def whole(t):
    return int(t + 1e-6)


def part(t, units):
    return int((t + 1e-6) % 1 * units)


@pytest.mark.parametrize("rate", [60, 24])
@pytest.mark.parametrize("columns", [
    {"DeviceTime": lambda t, i: f"{t + 3:.5f}"}, {"pts_time": lambda t, i: f"{t:.5f}"},
    {"media-time [ms]": lambda t, i: round(1000 * t)}, {"unix_ms": lambda t, i: round(1000 * t) + 1714560000000},
    {"time_µs": lambda t, i: round(1e6 * t)}, {"hostTimeNs": lambda t, i: round(1e9 * t)},
    {"timestamp": lambda t, i: round(1e7 * t) + 638500000000000000}, {"Ticks": lambda t, i: round(1e7 * t)},
    {"FileTime": lambda t, i: round(1e7 * t) + 133500000000000000},
    {"timestamp": lambda t, i: round(1e6 * t) + 1714560000000000},
    {"tv_sec": lambda t, i: whole(t) + 1714560000, "tv_usec": lambda t, i: part(t, 1e6)},
    {"stamp.secs": lambda t, i: whole(t), "stamp.nsecs": lambda t, i: part(t, 1e9)},
    {"minutes": lambda t, i: t / 60}, {"day": lambda t, i: t / 86400}, {"t": lambda t, i: f"{45000.4 + t / 86400:.9f}"},
    {"day": lambda t, i: 27, "time": lambda t, i: f"{t:.4f}"},
    {"frametime": lambda t, i: f"{t:.4f}"}, {"SMPTE": lambda t, i: None},
    {"Frame In Second": None},
    {"captured": lambda t, i: f"2024-05-01 12:00:{t + 3:09.6f}"}])
def test_clocks_are_found_whatever_their_name_and_unit(tmp_path, columns, rate):
    if "SMPTE" in columns:
        columns = {"SMPTE": lambda t, i: f"01:02:{7 + i // rate:02}:{i % rate:02}"}
    if "Frame In Second" in columns:
        columns = {"Hour": lambda t, i: 12, "Minute": lambda t, i: 5, "Second": lambda t, i: 3 + i // rate,
                   "Frame": lambda t, i: i % rate}
    assert_ramp(read_capture(table(tmp_path, columns, rate=rate)), rate)


@pytest.mark.parametrize("rate", [60, 24])
@pytest.mark.parametrize("columns", [
    {"deltatime": lambda rate, i: 1 / rate}, {"dt_ms": lambda rate, i: 1000 / rate + (i % 2) - 0.5},
    {"frameTime": lambda rate, i: 1000 / rate + (i % 2) - 0.5}, {"delta": lambda rate, i: 1 / rate if i else 0},
    {"fps": lambda rate, i: rate}, {"Measured FPS": lambda rate, i: rate + 0.3 * (i % 3 - 1)}])
def test_steps_and_rates_in_columns(tmp_path, columns, rate):
    columns = {name: lambda t, i, cell=cell: cell(rate, i) for name, cell in columns.items()}
    assert_ramp(read_capture(table(tmp_path, columns, rate=rate)), rate)
    in_frames = frames(rate=rate, **columns)
    assert_ramp(read_capture(as_json(tmp_path, in_frames)), rate)


@pytest.mark.parametrize("rate", [60, 24])
@pytest.mark.parametrize("more", [
    {"timestamp": lambda t, i: {"seconds": 1714560000 + whole(t), "nanos": part(t, 1e9)}},
    {"header": lambda t, i: {"seq": i, "stamp": {"sec": whole(t), "nanosec": part(t, 1e9)}}},
    {"time": lambda t, i: {"value": round(600 * t), "timescale": 600}}, {"systemTimeNs": lambda t, i: round(1e9 * t)}])
def test_times_in_the_frames_of_json(tmp_path, more, rate):
    assert_ramp(read_capture(as_json(tmp_path, frames(rate=rate, **more))), rate)


def test_ticks_in_a_second_and_lists_of_times_apart_from_the_frames(tmp_path):
    ticks = {"timescale": 600, "frames": frames(time=lambda t, i: round(600 * t))}
    assert_ramp(read_capture(as_json(tmp_path, ticks)), 60)
    apart = {"timing": {"frameTimes": [row / 60 for row in range(90)]}} | a2f()
    assert_ramp(read_capture(as_json(tmp_path, apart)), 60)


@pytest.mark.parametrize("columns, rate, says", [
    ({"timestamp": lambda t, i: round(1e6 * t)}, 10, "10 frames/s in units of 1e-06 s or 100 frames/s"),
    ({"time": lambda t, i: round(1e7 * t)}, 60, "time rises by 166667"),
    ({"timestamp": lambda t, i: round(1000 * t)}, 1, "timestamp rises by 1000 .*no usual unit"),
    ({"playhead": lambda t, i: f"{t:.4f}"}, 60, "playhead rises as a clock of 60 frames/s"),
    ({"time_left, countdown": lambda t, i: f"{9 - t:.4f}"}, 60, "countdown rises as a clock of 60"),
    ({"time": lambda t, i: int((3.9e9 + t) * 2 ** 32)}, 60, "no usual unit"),
    ({"local": lambda t, i: f"Wed May 01 12:00:{t:06.3f} 2024"}, 60, "has times such as Wed May 01 12:00:00.000"),
    ({"time": lambda t, i: 7}, 60, "stand still"), ({"clock": lambda t, i: (7 * i) % 11}, 60, "clock does not rise")])
def test_a_clock_without_a_plain_unit_is_refused_and_fps_decides(tmp_path, columns, rate, says):
    path = table(tmp_path, columns, rate=rate)
    with pytest.raises(ValueError, match=f"take.csv: the rate is not known: .*{says}.*--fps N"):
        read_capture(path)
    if rate > 1:
        assert_ramp(read_capture(path, fps=rate), rate)
    capture = read_capture(table(tmp_path, columns, rate=max(rate, 5), name=f"take_{max(rate, 5)}fps.csv"))
    assert_ramp(capture, max(rate, 5))
    if "no usual unit" in says and rate > 1:
        assert any("no usual unit" in note and note.endswith("not used") for note in capture.notes)


@pytest.mark.parametrize("column", [
    ("temperature", lambda t, i: 36.5 + 0.01 * i), ("confidence", lambda t, i: 0.9), ("uuid", lambda t, i: f"u{i}"),
    ("quality", lambda t, i: i % 5), ("latency_ms", lambda t, i: 12 + i % 3), ("pitch_hz", lambda t, i: 120 + i % 9),
    ("inference_time_ms", lambda t, i: 9 + i % 4), ("image", lambda t, i: f"img_{i}.png"), ("face_id", lambda t, i: 0),
    ("num_faces", lambda t, i: 1), ("subject", lambda t, i: "me"), ("phoneme", lambda t, i: "ab"[i // 20 % 2])])
def test_other_columns_are_not_in_the_way(tmp_path, column):
    name, cell = column
    assert_ramp(read_capture(table(tmp_path, {name: cell}, rate=30)), 30)
    assert_ramp(read_capture(table(tmp_path, {name: cell, "time": lambda t, i: f"{t:.4f}"}, rate=24)), 24)


# --- the order of rows, and whose they are ---------------------------------------------------------------------------

@pytest.mark.parametrize("columns", [
    {"time": lambda t, i: f"{t:.4f}"}, {"timestamp_ms": lambda t, i: round(1000 * t)}, {"fps": 60, "frame": None},
    {"fps": 60, "": None}, {"tc": lambda t, i: f"00:00:{i // 60}:{i % 60}"}])
@pytest.mark.parametrize("order", ["reversed", "text", "shuffled"])
def test_rows_in_another_order_are_sorted_and_that_is_said(tmp_path, columns, order):
    columns = {name: (lambda t, i: 60) if cell == 60 else cell or (lambda t, i: i) for name, cell in columns.items()}
    rows = {"reversed": range(90)[::-1], "text": sorted(range(90), key=str),
            "shuffled": random.Random(0).sample(range(90), 90)}[order]
    capture = read_capture(table(tmp_path, columns, order=rows))
    assert_ramp(capture, 60)
    assert "the rows are not in the order of their times: they were sorted" in capture.notes


def test_an_order_that_no_clock_makes_even_is_refused(tmp_path):
    rows = random.Random(0).sample(range(90), 90)
    path = table(tmp_path, {"time": lambda t, i: f"{t * t:.4f}"}, order=rows, name="take_60fps.csv")
    with pytest.raises(ValueError, match="backwards again and again, and sorted they are not even.*--ignore-timecodes"):
        read_capture(path)
    assert read_capture(path, ignore_timecodes=True).rate == 60


@pytest.mark.parametrize("name, labels", [
    ("face_id", (0, 1)), ("PersonName", ("ann", "bob")), ("actor", "AB"), ("subject", ("P1", "P2")),
    ("trackID", (7, 9)), ("user", (1, 2)), ("id", (0, 1)), ("avatar_uuid", "xy"), ("take", (1, 2))])
@pytest.mark.parametrize("order", [None, [*range(0, 60, 2), *range(1, 60, 2)]])
def test_rows_of_several_faces_are_refused_with_their_names(tmp_path, name, labels, order):
    columns = {"time": lambda t, face: f"{t:.4f}", name: lambda t, face: labels[face]}
    with pytest.raises(ValueError, match=f"several faces or takes: {name} is {labels[0]}, {labels[1]}"):
        read_capture(table(tmp_path, columns, 30, 30, order=order, faces=2))


@pytest.mark.parametrize("columns", [
    {"time": lambda t, face: f"{t:.4f}"}, {"Timecode": lambda t, face: f"00:00:{whole(t):02}:{part(t, 30):02}"},
    {"frame": lambda t, face: round(30 * t)}, {"time": lambda t, face: f"{t:.4f}", "role": lambda t, face: face}])
@pytest.mark.parametrize("faces", [2, 4])
def test_rows_of_several_faces_are_found_without_names_too(tmp_path, columns, faces):
    with pytest.raises(ValueError, match="two or more faces in turn"):
        read_capture(table(tmp_path, columns, 30, 30, faces=faces))
    apart = [row for face in range(faces) for row in range(face, 30 * faces, faces)]
    if "frame" not in columns or faces == 2:                                # else they may begin again each second
        with pytest.raises(ValueError, match="twice or more, .*: several faces or takes|numbers in frame begin again"):
            read_capture(table(tmp_path, columns, 30, 30, faces=faces, order=apart))


def test_rows_of_one_face_twice_at_each_time_are_kept(tmp_path):
    columns = {"Timecode": lambda t, i: f"00:00:{i // 60:02}:{i // 2 % 30:02}"}
    assert_ramp(read_capture(table(tmp_path, columns)), 60)


@pytest.mark.parametrize("change, says", [
    (lambda text: text.replace('"jawOpen": 0.1', '"jawOpen": 0.9, "jawOpen": 0.1', 1), "jawOpen twice in one object"),
    (lambda text: text.replace('[{', '[{"Jaw_Open": 0.9, ', 1), "Jaw_Open, jawOpen"),
    (lambda text: '{"fps": 60, "frames": ' + text + ', "fps": 30}', "has fps twice in one object")])
def test_what_is_there_twice_in_json_is_refused_by_name(tmp_path, change, says):
    with pytest.raises(ValueError, match=says):
        read_capture(as_json(tmp_path, change(json.dumps(frames(rows=10)))))


@pytest.mark.parametrize("name", ["Slate", "shot", "Scene", "TakeName", "source_file"])
def test_several_takes_in_one_table_are_refused_with_their_names(tmp_path, name):
    columns = {name: lambda t, i: "AB"[i >= 45], "time": lambda t, i: f"{t:.4f}"}
    with pytest.raises(ValueError, match=f"several faces or takes: {name} is A, B"):
        read_capture(table(tmp_path, columns))
    assert_ramp(read_capture(table(tmp_path, columns | {name: lambda t, i: "A"})), 60)


@pytest.mark.parametrize("column", [
    {"time": lambda t, i: f"{max(t - 1, 0):.4f}"}, {"timestamp_ms": lambda t, i: round(1000 * max(t - 1, 0))},
    {"Timecode": lambda t, i: f"00:00:{3 + max(i - 60, 0) // 60:02}:{max(i - 60, 0) % 60:02}"}])
def test_a_clock_that_stands_still_at_first_costs_no_time(tmp_path, column):
    capture = read_capture(table(tmp_path, column, rows=240))
    assert_ramp(capture, 60, rows=240)
    assert any("the clock stands still for 61 rows after row 0" in note for note in capture.notes)


def test_the_words_of_names():
    for name, expected in (("frame_interval_ms", "frame interval ms"), ("DeviceTime", "device time"), ("dtms", "dt ms"),
                           ("frametimeNs", "frame time ns"), ("TIMESTAMPS", "timestamp"), ("accurate", "accurate"),
                           ("Time (µs)", "time us"), ("params", "params"), ("timescale", "time scale")):
        assert words(name) == tuple(expected.split())
    for name, kind in (("frames_per_second", "rate"), ("seconds per frame", "period"), ("meta.duration", "duration"),
                       ("heart_rate", ""), ("nFrames", "count")):
        assert kind_of(name) == kind
    assert unit_of("time_per_frame_ms") == 1e-3 and unit_of("stamp") is None


def test_frames_under_numbers_that_skip_some_take_their_time(tmp_path):
    times, track = ramp(60, 12)                             # of 24 frames per second each second one
    frames = {str(1 + 2 * i): dict(zip(ARKIT_NAMES, map(float, row))) for i, row in enumerate(track)}
    (tmp_path / "take.json").write_text(json.dumps({"fps": 24, "frames": frames}))
    capture = read_capture(tmp_path / "take.json")
    assert (capture.rate, capture.length) == (pytest.approx(12), pytest.approx(5)) and "frame numbers" in capture.how


def test_what_a_cell_holds_is_shown_although_it_cannot_be_seen(tmp_path):
    path = table(tmp_path, {})
    path.write_bytes(path.read_bytes().rstrip() + bytes(64))
    with pytest.raises(ValueError, match=r"the cell holds '0\.\d+.*\\x00.*expected a number"):
        read_capture(path)
