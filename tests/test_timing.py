"""face/timing.py: takes whose true times are known, as recorders write them, and takes that are broken."""
import numpy as np
import pytest

from face.timing import MAX_SECONDS, Timing, frame_times


def clock(second: int) -> str:
    return f"{second // 3600 % 24:02}:{second // 60 % 60:02}:{second % 60:02}"


def framed(frames, count: int, start: int = 0) -> list:
    """HH:MM:SS:FF of frame numbers counted from midnight, `start` seconds later."""
    return [f"{clock(start + frame // count)}:{frame % count:02}" for frame in map(int, frames)]


def drop_frame(frames) -> list:
    """HH:MM:SS;FF of frames since 00:00:00;00 at 29.97 per second: SMPTE 12M's rule, written out minute by minute."""
    codes, minute, number = [], 0, 0
    for _ in range(int(max(frames)) + 1):
        codes.append(f"{clock(minute * 60 + number // 30)};{number % 30:02}")
        number += 1
        if number == 1800:
            minute += 1
            number = 2 if minute % 10 else 0
    return [codes[int(frame)] for frame in frames]


def check(timing: Timing, times, rate, within=1.1) -> None:
    """Every row's time and the length are right, to `within` frames."""
    assert timing.times[0] == 0 and (np.diff(timing.times) > 0).all()
    off = max(abs(timing.times - times).max(), abs(timing.length - times[-1] - 1 / rate)) * rate
    assert off <= within, (off, timing.length, timing.how, timing.notes)


def written(style: str, frames, rate: float, start: float) -> list:
    """The timecodes of the frames `frames` at `rate` per second, from `start` seconds after midnight."""
    count = round(rate)
    if style.startswith("frames"):
        codes = framed(frames + int(start % 1 * count), count, int(start))
        sub = {"frames": "", "frames.000": ".000", "frames.944": ".944"}
        return [code + sub.get(style, f".{frame % 1000:03}") for code, frame in zip(codes, frames)]
    stamps = [round((start + frame / rate) * 1000) for frame in frames]
    mark = {"point": ".", "comma": ",", "colon": ":"}[style]
    return [f"{clock(ms // 1000)}{mark}{ms % 1000:03}" for ms in stamps]


@pytest.mark.parametrize("style", ["frames", "frames.000", "frames.944", "frames.counter", "point", "comma", "colon"])
@pytest.mark.parametrize("rate", [10, 13, 15, 24, 25, 30, 48, 50, 60, 100, 120])
def test_a_take_has_its_times_whatever_it_is_called(style, rate):
    draw = np.random.default_rng(rate)
    for seconds, start, lost in ((1.5, 0, 0), (4, 27897.4, 0), (6, 59.9, 0.02), (8, 3599.6, 0.1)):
        frames = np.flatnonzero(draw.random(round(seconds * rate)) >= lost)
        codes = written(style, frames, rate, start)
        times = (frames - frames[0]) / rate
        check(frame_times(len(codes), codes, name="take"), times, rate)
        check(frame_times(len(codes), codes, name=f"take_{rate}fps"), times, rate)
        check(frame_times(len(codes), codes, fps=rate), times, rate)


@pytest.mark.parametrize("rate", [10, 15, 24, 25, 50, 60, 120])
@pytest.mark.parametrize("said", [{"name": "take_{}fps"}, {"name": "{}fps-2"}, {"stated": 0}, {"fps": 0}])
def test_takes_inside_one_second_get_the_rate_that_is_said(rate, said):
    said = {key: value.format(rate) if key == "name" else rate for key, value in said.items()}
    for frames in (np.arange(rate * 9 // 10), np.arange(3, 3 + rate // 3)):
        check(frame_times(len(frames), framed(frames, rate), **said), (frames - frames[0]) / rate, rate)


@pytest.mark.parametrize("highest, rate", [(29, 30), (39, 60), (59, 60), (80, 120)])
def test_takes_inside_one_second_are_guessed_from_the_highest_frame_number(highest, rate):
    timing = frame_times(highest + 1, framed(range(highest + 1), rate))
    check(timing, np.arange(highest + 1) / rate, rate)
    assert bool(timing.notes) == (highest + 1 < rate)                   # said where it is a guess


@pytest.mark.parametrize("rate", [23.976, 29.97, 59.94])
@pytest.mark.parametrize("said", ["name", "name.", "stated", "fps"])
def test_a_count_that_is_a_thousandth_slow(rate, said):
    frames = np.arange(int(60 * rate))
    known = {"name": {"name": f"take_{rate}fps".replace(".", "_")}, "name.": {"name": f"take_{rate}fps"}}
    check(frame_times(len(frames), framed(frames, round(rate)), **known.get(said, {said: rate})), frames / rate, rate)
    assert abs(frame_times(len(frames), framed(frames, round(rate))).length - len(frames) / round(rate)) < 1e-6


@pytest.mark.parametrize("first, known", [(0, {}), (1795, {}), (17975, {"name": "take_29.97fps"}), (0, {"fps": 29.97})])
@pytest.mark.parametrize("mark", ";:")
def test_drop_frame(first, known, mark):
    frames = np.arange(first, first + 4000)
    codes = [code.replace(";", mark) for code in drop_frame(frames)]
    timing = frame_times(len(codes), codes, **known)
    check(timing, (frames - first) / 29.97, 29.97)
    assert "drop-frame" in timing.how
    full = framed(frames, 30)                                           # no number is left out: the semicolon is wrong
    assert "drop" not in frame_times(len(full), [code[:8] + ";" + code[9:] for code in full]).how


def test_every_code_twice_and_every_second_code():
    for fps in (None, 30, 60):                                          # of the count, or of the rows: the same take
        check(frame_times(180, framed(np.arange(180) // 2, 30), fps=fps), np.arange(180) / 60, 60)
        check(frame_times(120, framed(np.arange(120) * 2, 60), fps=fps), np.arange(120) / 30, 30)
    check(frame_times(180, framed(np.arange(180) // 2, 30), name="take_59.94fps"), np.arange(180) / 59.94, 59.94)
    check(frame_times(240, framed(np.arange(240) * 0.8, 24)), np.arange(240) / 30, 30)
    check(frame_times(240, framed(np.arange(240) * 2.5, 60)), np.arange(240) / 24, 24)
    halves = [f"{code}.{row % 2 * 500:03}" for row, code in enumerate(framed(np.arange(180) // 2, 30))]
    check(frame_times(180, halves), np.arange(180) / 60, 60, within=0.01)


def test_sub_frames_count_where_they_make_the_steps_even():
    ticks = np.arange(3000) * 1.001 + 2.944                             # 29.97 rows stamped by a clock of 30
    codes = [f"{code}.{round(tick % 1 * 1000) % 1000:03}" for code, tick in zip(framed(ticks + 5e-4, 30), ticks)]
    check(frame_times(3000, codes), np.arange(3000) * 1.001 / 30, 29.97, within=0.02)


def broken(change) -> list:
    """300 rows at 30 per second from 00:03:53:10, their numbers changed."""
    frames = np.arange(300) + 7000
    change(frames)
    return framed(frames, 30)


def put(rows, values):
    return lambda frames: frames.__setitem__(rows, values)


def set_back(frames):
    frames[150:] -= 40


@pytest.mark.parametrize("change, says", [
    (put(100, 7099), "300 rows have 299 times"), (put(100, 0), "out of order: 1, the first is row 100"),
    (put(slice(100, 102), 2_000_000), "out of order: 2"), (put(slice(100, 102), [7099, 7098]), "out of order: 2"),
    (put(slice(100, 130), 7100), "a gap"), (set_back, "goes back 1.3 s after row 149"), (put(299, 0), "goes back"),
    (put(slice(0, 300), np.arange(300) + 24 * 3600 * 30 - 150), None)])
def test_single_faults_are_repaired_and_midnight_is_none(change, says):
    timing = frame_times(300, broken(change))
    check(timing, np.arange(300) / 30, 30)
    assert not timing.notes if says is None else any(says in note for note in timing.notes)


def test_gaps_are_kept():
    frames = np.r_[0:38, 70:120]
    timing = frame_times(len(frames), framed(frames, 30))
    check(timing, frames / 30, 30, within=0.01)
    assert "a gap of 1.1 s after row 37: kept" in timing.notes


KNOWN = [({}, 30), ({"name": "take_60fps"}, 60), ({"stated": 25, "name": "take_60fps"}, 25),
         ({"numbers": np.arange(300), "stated": 50}, 50), ({"stamps": np.arange(300) / 24}, 24)]


@pytest.mark.parametrize("known, rate", KNOWN)
def test_a_clock_that_stands_still_is_passed_over_but_no_rate_assumed(known, rate):
    codes = broken(put(slice(0, 300), 7000))
    if known:
        timing = frame_times(300, codes, **known)
        check(timing, np.arange(300) / rate, rate)
        assert any("not used" in note for note in timing.notes) or "stamps" in known
    else:
        with pytest.raises(ValueError, match="the rate is not known: .* stand still .*--fps N"):
            frame_times(300, codes)


@pytest.mark.parametrize("rows", [np.arange(300)[::-1], np.random.default_rng(0).permutation(300),
                                  np.array(sorted(range(300), key=str)), np.r_[150:300, :150],
                                  np.r_[:100, 101, 100, 102:300]])
def test_rows_in_another_order_are_sorted(rows):
    for frames in (rows + 7000, rows + 24 * 3600 * 30 - 150):               # over midnight, too
        timing = frame_times(300, framed(frames, 30))
        check(timing, np.arange(300) / 30, 30, within=1e-6)
        assert (timing.order == np.argsort(rows)).all() and "they were sorted" in timing.notes[0]
    for known in ({"stamps": rows / 60}, {"numbers": rows, "fps": 60}):
        timing = frame_times(300, **known)
        check(timing, np.arange(300) / 60, 60, within=1e-6)
        assert (timing.order == np.argsort(rows)).all()


def test_a_clock_that_runs_backwards_and_cannot_be_sorted_is_refused():
    stamps = np.random.default_rng(0).uniform(0, 10, 300)
    for known in ({}, {"name": "take_30fps"}, {"fps": 30}):
        with pytest.raises(ValueError, match="and sorted they are not even: .*--ignore-timecodes"):
            frame_times(300, stamps=stamps, **known)
        assert frame_times(300, stamps=stamps, numbers=np.arange(300), **known).rate == 30
    assert (frame_times(300, stamps=stamps, fps=30, ignore_timecodes=True).order == np.arange(300)).all()


@pytest.mark.parametrize("start", [3, 6])                                   # MM:SS:FF or SS:FF
@pytest.mark.parametrize("rate", [24, 25, 30, 50, 90, 120])
def test_timecodes_without_hours(start, rate):
    frames = np.arange(3 * rate)
    codes = [code[start:] for code in framed(frames, rate)]
    check(frame_times(len(codes), codes), frames / rate, rate)
    check(frame_times(len(codes), codes[::-1]), frames / rate, rate)
    short = codes[:rate // 2]                                               # the end of no second shows
    check(frame_times(len(short), short, stated=rate), frames[:rate // 2] / rate, rate)
    with pytest.raises(ValueError, match="may be HH:MM:SS at 1 rows per second, or MM:SS:FF: give the rate"):
        frame_times(len(short), short)


def test_timecodes_without_hours_at_60_are_refused_and_seconds_are_seconds():
    codes = [code[3:] for code in framed(range(180), 60)]
    with pytest.raises(ValueError, match="or MM:SS:FF"):
        frame_times(180, codes)
    check(frame_times(180, codes, fps=60), np.arange(180) / 60, 60)
    for rate in (10, 30):                                                   # HH:MM:SS, many rows in each
        coarse = [clock(27_898 + row // rate) for row in range(6 * rate)]
        check(frame_times(len(coarse), coarse), np.arange(6 * rate) / rate, rate)


def test_no_rate_is_assumed_beside_what_is_not_understood():
    for known in ({}, {"numbers": np.arange(90)}):
        with pytest.raises(ValueError, match="the rate is not known: speed 60; give it with --fps N"):
            frame_times(90, unclear="speed 60", **known)
    for known in ({"name": "a_60fps"}, {"stated": 60}, {"fps": 60}, {"stamps": np.arange(90) / 60},
                  {"codes": framed(range(90), 60)}):
        check(frame_times(90, unclear="speed 60", **known), np.arange(90) / 60, 60)


def test_columns_of_seconds_and_of_frame_numbers():
    times = np.cumsum(np.random.default_rng(0).uniform(0.03, 0.05, 200)) + 1.7e9
    check(frame_times(200, stamps=times), times - times[0], 25, within=0.05)
    check(frame_times(200, framed(range(200), 25), stamps=np.arange(200) / 25), np.arange(200) / 25, 25)
    assert any("7.96 s" in note for note in frame_times(200, framed(range(200), 25), stamps=np.arange(200) / 5.0).notes)
    check(frame_times(50, stamps=np.arange(50) * 33.0, fps=30), np.arange(50) / 30, 30)         # a wrong unit
    numbers = np.r_[5:40, 50:60]
    check(frame_times(45, numbers=numbers, name="a_60fps"), (numbers - 5) / 60, 60, within=1e-6)
    check(frame_times(45, numbers=numbers), (numbers - 5) / 30, 30, within=1e-6)


@pytest.mark.parametrize("name, rate", [
    ("take_29_97fps", 29.97), ("take_59.94fps", 59.94), ("take-60FPS_b", 60), ("take_2_60fps", 60), ("24 fps", 24),
    ("take_0fps", 30), ("take_100000fps", 30), ("take", 30), ("23_976fps", 23.976), ("12.5fps", 12.5)])
def test_the_rate_in_a_name(name, rate):
    assert frame_times(90, name=name).rate == pytest.approx(rate)
    assert frame_times(90, name=name).length == pytest.approx(90 / rate)
    assert any("ignored" in note for note in frame_times(90, name=name).notes) == ("0fps" in name and rate == 30)


def test_contradictions_are_said_and_fps_wins():
    codes = framed(range(300), 30)
    timing = frame_times(300, codes, name="take_60fps", stated=24)
    check(timing, np.arange(300) / 30, 30)
    assert [note.split(" frames/s")[0] for note in timing.notes] == ["the file says 24", "the name says 60"]
    timing = frame_times(300, codes, name="take_30fps", fps=24)
    check(timing, np.arange(300) / 24, 24)
    assert "1.25 times as long" in timing.notes[0]


def test_rows_at_even_times():
    for known, rate in (({"fps": 48}, 48), ({"stated": 50, "name": "take_60fps"}, 50), ({"name": "take_60fps"}, 60),
                        ({}, 25)):
        timing = frame_times(100, framed(np.arange(100) ** 2, 25), ignore_timecodes=True, **known)
        np.testing.assert_array_equal(timing.times, np.arange(100) / timing.rate)
        assert timing.rate == rate or not known
    assert frame_times(2, ["soon", "later"], ignore_timecodes=True).length == pytest.approx(2 / 30)
    for codes in (["00:00:00:07"], None):
        assert frame_times(1, codes, fps=50).length == 0.02


@pytest.mark.parametrize("rows, known, says", [
    (0, {}, "no rows"), (9, {"fps": 1e-9}, "--fps says 1e-09"), (9, {"fps": float("nan")}, "expected 1 to 1000"),
    (9, {"stated": 1e-6}, "the file says 1e-06.*--fps"), (9, {"stamps": np.arange(9) * 33.0}, "0.0303 rows.*--fps"),
    (MAX_SECONDS * 30 + 1, {}, "14400 s at most"), (2, {"codes": ["00:00:00:00", "soon"]}, "row 1: timecode 'soon'"),
    (9, {"codes": framed(np.arange(9) + 2_000_000 * (np.arange(9) > 4), 30)}, "at most.*--ignore-timecodes"),
    (9, {"codes": ["99999999999999999999:00:00:00"] * 9}, "expected HH:MM:SS:FF")])
def test_nonsense_is_refused_by_what_was_seen(rows, known, says):
    with pytest.raises(ValueError, match=says):
        frame_times(rows, **known)
