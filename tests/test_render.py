"""Images: what hides what, what moves, and that a video's face and sound keep time."""
import errno
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from face import gltf, render, viewer
from face.arkit import ARKIT_NAMES
from face.export import export
from face.head import Head, make_head

SIZE = 64
JAW = ARKIT_NAMES.index("jawOpen")


def mesh(vertices, faces, colors) -> Head:
    """A Head without any shape that moves."""
    vertices, faces, colors = np.array(vertices, np.float32), np.array(faces, np.int32), np.array(colors, np.float32)
    deltas = np.zeros((52, *vertices.shape), np.float32)
    return Head(vertices, faces, colors, deltas, np.arange(3), np.zeros((2, 3), np.float32), None, None)


def pose(**weights) -> np.ndarray:
    return np.array([weights.get(name, 0) for name in ARKIT_NAMES], np.float32)


def snap(frames, at=0) -> np.ndarray:
    """A track (frames, 52): the mouth is shut, and open from frame `at` on."""
    track = np.zeros((frames, 52), np.float32)
    track[at:, JAW] = 0.8
    return track


def clap(path, seconds, at=0.0, rate=16000):
    """A silent wav of this length with 1 ms of full noise at time `at`; its path."""
    wave = np.zeros(round(seconds * rate), np.float32)
    wave[round(at * rate):][:rate // 1000] = np.random.default_rng(0).choice([-0.9, 0.9], rate // 1000)
    soundfile.write(path, wave, rate)
    return path


@pytest.fixture(scope="module")
def ffmpeg():
    return pytest.importorskip("imageio_ffmpeg", reason="no imageio-ffmpeg: no videos").get_ffmpeg_exe()


@pytest.fixture
def pillow():
    return pytest.importorskip("PIL.Image", reason="no Pillow: no picture files")


def run(*command) -> bytes:
    return subprocess.run(command, capture_output=True, check=True).stdout


def images_of(ffmpeg, path) -> np.ndarray:
    """The video's images (T, SIZE, SIZE) in grey; image t is what it shows at t / 30 s."""
    grey = ["-map", "0:v", "-vf", "fps=30:start_time=0", "-f", "rawvideo", "-pix_fmt", "gray"]
    return np.frombuffer(run(ffmpeg, "-i", path, *grey, "-"), np.uint8).reshape(-1, SIZE, SIZE).astype(int)


def sound_of(ffmpeg, path) -> np.ndarray:
    """The video's sound at 16 kHz; sample t is what it plays at t / 16000 s."""
    mono = ["-map", "0:a", "-af", "aresample=16000:async=1:first_pts=0", "-ac", "1", "-f", "f32le"]
    return np.frombuffer(run(ffmpeg, "-i", path, *mono, "-"), np.float32)


# --- stills ---

def test_normals_are_unit_and_point_outwards():
    corners = np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1], [5, 5, 5]], np.float32)
    octahedron = np.array([[0, 2, 4], [2, 1, 4], [1, 3, 4], [3, 0, 4], [2, 0, 5], [1, 2, 5], [3, 1, 5], [0, 3, 5]])
    expected = np.where(np.arange(7)[:, None] < 6, corners, [0, 0, 1])          # the last corner belongs to no triangle
    np.testing.assert_allclose(render.normals(corners, octahedron), expected, atol=1e-6)


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_a_triangle_in_front_hides_one_behind(order):
    vertices = [[-1, -1, 0], [1, -1, 0], [0, 1, 0], [-1, -1, .1], [1, -1, .1], [0, 1, .1]]
    head = mesh(vertices, np.array([[0, 1, 2], [3, 4, 5]])[order], [[1, 0, 0]] * 3 + [[0, 0, 1]] * 3)
    red, _, blue = render.still(head, pose(), SIZE)[SIZE // 2, SIZE // 2].astype(int)
    assert blue > red + 100


def test_a_triangle_seen_from_behind_is_not_rendered():
    head = mesh([[-1, -1, 0], [1, -1, 0], [0, 1, 0]], [[0, 2, 1]], [[1, 0, 0]] * 3)
    assert (render.still(head, pose(), SIZE, background=(1, 2, 3)) == (1, 2, 3)).all()


def test_every_sample_of_a_triangle_has_the_colour_of_its_plane():
    rng, errors = np.random.default_rng(0), []
    for _ in range(20):
        points = np.column_stack([rng.uniform(-20, 84, (3, 2)), rng.uniform(-1e5, 1e5, 3)])
        colours = rng.uniform(2, 253, (3, 3))
        samples = np.full((64, 64), -1 << 63)
        for face in ([0, 1, 2], [0, 2, 1]):                                     # one of them faces the camera
            render._rasterize(samples, points, colours, np.array([face]))
        edges = np.column_stack([points[:, :2], np.ones(3)])
        row, column = np.mgrid[:64, :64] + 0.5
        shares = np.stack([column, row, np.ones_like(row)], axis=2) @ np.linalg.inv(edges)      # barycentric
        inside = shares.min(axis=2) > 1e-9
        np.testing.assert_array_equal(samples >> 44 != -1 << 19, inside)
        painted = np.stack([samples >> field & (1 << 13) - 1 for field in render.FIELDS], axis=2) / 32
        error = (painted - shares @ colours)[inside]
        # Slopes are whole 1/32: half of that, at most 104 columns and 104 rows away from the first corner
        assert abs(error).max(initial=0) < 208 / 64 + 0.1
        errors.append(error)
    assert abs(np.concatenate(errors).mean()) < 0.2


def test_triangles_that_share_edges_leave_no_hole_between_them():
    rng = np.random.default_rng(1)
    n = 12
    grid = np.stack(np.meshgrid(np.arange(n), np.arange(n)), axis=-1).astype(float)
    grid[1:-1, 1:-1] += rng.uniform(-0.4, 0.4, (n - 2, n - 2, 2))
    a = (np.arange(n - 1)[:, None] * n + np.arange(n - 1)).ravel()
    faces = np.concatenate([np.stack([a, a + 1, a + n + 1], 1), np.stack([a, a + n + 1, a + n], 1)])
    head = mesh(np.concatenate([grid.reshape(-1, 2), np.zeros((n * n, 1))], axis=1), faces, np.ones((n * n, 3)))
    edge = int(np.ceil(render.MARGIN * SIZE)) + 1
    assert len(np.unique(render.still(head, pose(), SIZE, background=(0, 0, 0))[edge:-edge, edge:-edge])) == 1


@pytest.mark.parametrize("slanted", [[.2, 1, 0], [1, .2, 0]])
def test_an_edge_is_smooth(slanted):
    """Between the triangle and the background pixels are covered in part: more than half of one can be."""
    head = mesh([[0, 0, 0], slanted, [1, 1, 0]], [[0, 1, 2] if slanted[0] == 1 else [0, 2, 1]], [[1, 1, 1]] * 3)
    assert len(np.unique(render.still(head, pose(), SIZE, background=(0, 0, 0))[..., 0])) > 3


def test_a_positive_yaw_turns_the_face_to_its_own_left():
    """The face's own left is on the picture's right; the nose is what stands out to the front."""
    vertices = [[-1, -1, 0], [1, -1, 0], [0, 1, 0], [-.1, -.1, 1], [.1, -.1, 1], [0, .1, 1]]
    head = mesh(vertices, [[0, 1, 2], [3, 4, 5]], [[0, 0, 1]] * 3 + [[1, 0, 0]] * 3)

    def nose(yaw):
        picture = render.still(head, pose(), SIZE, yaw).astype(int)
        return np.flatnonzero((picture[..., 0] > picture[..., 2] + 50).any(axis=0)).mean()

    assert nose(-0.5) < nose(0) - 5 and nose(0) + 5 < nose(0.5)


def test_the_outline_of_the_head_is_symmetric():
    covered = (render.still(make_head(), pose(), 2 * SIZE, background=(0, 255, 0)) != (0, 255, 0)).any(axis=2)
    assert 0.2 < covered.mean() < 0.9
    assert (covered != covered[:, ::-1]).mean() < 0.002         # a sample whose centre lies on an edge goes to one side


def test_opening_the_jaw_changes_only_what_is_below_the_eyes():
    head = make_head()
    changed = np.flatnonzero((render.still(head, pose(jawOpen=1)) != render.still(head, pose())).any(axis=(1, 2)))
    matrix, offset = render._camera(head, 512, 0.0, False)
    eyes = (head.eyes @ matrix + offset)[:, 1] / render.SAMPLES
    assert len(changed) > 50 and changed.min() > eyes.max()


def test_a_pose_looks_like_a_head_that_rests_in_it():
    """What a track does not move is rendered once, the rest cut out and rendered over it; that must not show."""
    head, track = make_head(), np.random.default_rng(2).uniform(0, 0.5, (3, 52)).astype(np.float32)
    track[:, [i for i, name in enumerate(ARKIT_NAMES) if not name.startswith(("mouth", "eyeBlink"))]] = 0
    for row, picture in zip(track, render.images(head, track, 128), strict=True):
        posed = replace(head, vertices=head.pose(row))
        for extreme in (np.min, np.max):                        # width and height are the same: so is the camera
            np.testing.assert_array_equal(extreme(posed.vertices, 0)[:2], extreme(head.vertices, 0)[:2])
        difference = abs(picture.astype(int) - render.still(posed, pose(), 128))
        # 1: a normal is a sum of the same triangles in another order; a sample on an edge may fall to the other side
        assert difference.max() <= 1 or (difference > 1).mean() < 1e-3
        assert abs(picture.astype(int) - render.still(head, pose(), 128)).max() > 50


def test_the_light_follows_on_what_borders_on_a_moving_vertex():
    """The middle of a plate rises; its eight neighbours stay, but their normals do not."""
    across, up = np.meshgrid(np.arange(5), np.arange(5))
    corner = (np.arange(4)[:, None] * 5 + np.arange(4)).ravel()
    faces = np.concatenate([corner + np.array([[0], [1], [6]]), corner + np.array([[0], [6], [5]])], axis=1).T
    plate = mesh(np.stack([across, up, 0 * up], axis=2).reshape(-1, 3), faces, np.full((25, 3), 0.5))
    plate.deltas[JAW, 12, 2] = 1
    raised = replace(plate, vertices=plate.pose(pose(jawOpen=1)))
    np.testing.assert_array_equal(render.still(plate, pose(jawOpen=1), SIZE), render.still(raised, pose(), SIZE))
    assert (render.still(plate, pose(jawOpen=1), SIZE) != render.still(plate, pose(), SIZE)).mean() > 0.5


def test_a_pose_that_is_held_is_rendered_once():
    pictures = list(render.images(make_head(), snap(12, 5), SIZE))
    assert len(pictures) == 12 and len({id(picture) for picture in pictures}) == 2
    assert (pictures[4] != pictures[5]).any()


def test_a_sheet_has_a_cell_and_a_label_for_each_pose(pillow, tmp_path):
    sheet = render.sheet(make_head(), [(name, pose(**{name: 1})) for name in ARKIT_NAMES[:5]], columns=3, size=100)
    strip = sheet.shape[0] // 2 - 100
    assert sheet.shape[1] == 300 and strip > 10
    labels = sheet[100:100 + strip]
    assert all((labels[:, left + 2:left + 98] < 100).any() for left in (0, 100, 200))
    assert not (labels[:, [0, 99, 100, 199, 200, 299]] < 100).any()             # none touches its neighbour
    assert (sheet[-strip - 100:, 200:] == render.BACKGROUND).all()              # the sixth cell is empty
    render.write_png(tmp_path / "sheet.png", sheet)
    np.testing.assert_array_equal(pillow.open(tmp_path / "sheet.png"), sheet)


# --- videos ---

def test_a_video_has_every_frame_and_the_sound(ffmpeg, tmp_path):
    render.write_video(tmp_path / "a.mp4", snap(15, 7), clap(tmp_path / "a.wav", 0.5), make_head(), SIZE)
    pictures, sound = images_of(ffmpeg, tmp_path / "a.mp4"), sound_of(ffmpeg, tmp_path / "a.mp4")
    assert pictures.shape == (15, SIZE, SIZE) and abs(sound).max() > 0.2
    assert abs(len(sound) / 16000 - 0.5) <= 1024 / 16000                        # AAC comes in blocks of 1024
    still = render.still(make_head(), snap(1)[0], SIZE).mean(axis=2)
    assert abs(pictures[-1] - still).mean() < 6                                 # grey from the mean of RGB is not luma


def test_a_video_needs_no_sound(ffmpeg, tmp_path):
    render.write_video(tmp_path / "a.mp4", snap(4, 2), None, make_head(), SIZE)
    assert len(images_of(ffmpeg, tmp_path / "a.mp4")) == 4


@pytest.mark.parametrize("rate", [16000, 22050])
def test_face_and_sound_keep_time_within_a_frame(ffmpeg, tmp_path, rate):
    """The jaw snaps open at frame 20 and a clap sounds at 20 / 30 s."""
    sound = clap(tmp_path / "a.wav", 1.5, at=20 / 30, rate=rate)
    render.write_video(tmp_path / "a.mp4", snap(45, 20), sound, make_head(), SIZE)
    pictures, wave = images_of(ffmpeg, tmp_path / "a.mp4"), sound_of(ffmpeg, tmp_path / "a.mp4")
    moved = abs(pictures - pictures[0]).mean(axis=(1, 2))
    snapped, clapped = np.argmax(moved > moved[-1] / 2) / 30, abs(wave).argmax() / 16000
    assert snapped == 20 / 30 and abs(clapped - snapped) < 0.01                 # a frame is 0.033 s


def test_the_last_frame_is_held_while_a_longer_sound_goes_on(ffmpeg, tmp_path):
    render.write_video(tmp_path / "a.mp4", snap(10, 5), clap(tmp_path / "a.wav", 0.75, at=0.7), make_head(), SIZE)
    pictures, sound = images_of(ffmpeg, tmp_path / "a.mp4"), sound_of(ffmpeg, tmp_path / "a.mp4")
    assert len(pictures) == 23 and abs(abs(sound).argmax() / 16000 - 0.7) < 0.01        # 0.75 s are 22.5 frames
    assert abs(pictures[-1] - pictures[9]).max() < 16 and abs(pictures[-1] - pictures[0]).max() > 32


def test_silence_follows_a_shorter_sound(ffmpeg, tmp_path):
    render.write_video(tmp_path / "a.mp4", snap(30, 5), clap(tmp_path / "a.wav", 0.3, at=0.1), make_head(), SIZE)
    pictures, sound = images_of(ffmpeg, tmp_path / "a.mp4"), sound_of(ffmpeg, tmp_path / "a.mp4")
    assert len(pictures) == 30 and abs(len(sound) / 16000 - 1) <= 1024 / 16000
    assert abs(sound[8000:]).max() < 1e-3


def test_a_missing_ffmpeg_is_named_and_what_works_without(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"pip install imageio-ffmpeg.*\.webp"):
        render.write_video(tmp_path / "a.mp4", snap(2), None, make_head(), SIZE)


@pytest.mark.parametrize("write", [
    lambda folder: render.write_video(folder / "a.webp", snap(2), None, make_head(), SIZE),
    lambda folder: render.write_png(folder / "a.png", np.zeros((2, 2, 3), np.uint8)),
    lambda folder: render.sheet(make_head(), [("rest", pose())], size=SIZE)])
def test_a_missing_pillow_is_named(monkeypatch, tmp_path, write):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ValueError, match="pip install Pillow"):
        write(tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_ffmpeg_that_refuses_is_quoted_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(render, "find_ffmpeg", lambda: sys.executable)              # knows none of these options
    with pytest.raises(ValueError, match=r"^ffmpeg could not write .*a\.mp4: .*python") as error:
        render.write_video(tmp_path / "a.mp4", snap(40), None, make_head(), SIZE)
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_an_interrupt_leaves_the_old_file_and_no_ffmpeg(ffmpeg, monkeypatch, tmp_path):
    started, popen = [], subprocess.Popen

    def interrupted(*_):
        yield from np.random.default_rng(0).integers(0, 256, (200, SIZE, SIZE, 3), dtype=np.uint8)
        raise KeyboardInterrupt

    monkeypatch.setattr(render, "images", interrupted)
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[-1])
    (tmp_path / "a.mp4").write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt):
        render.write_video(tmp_path / "a.mp4", snap(3), None, make_head(), SIZE)
    assert started[0].poll() not in (None, 0)                                   # ended, and not by finishing the file
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a.mp4", b"old")]


@pytest.mark.parametrize("seconds", [None, 0.5, 2.0])
def test_a_webp_has_every_frame_at_its_time_and_the_sound_in_a_wav(pillow, tmp_path, seconds):
    track = snap(10)
    track[:, JAW] = np.linspace(0, 1, 10)                                       # all different: equal ones become one
    sound = seconds and clap(tmp_path / "speech.flac", seconds)
    render.write_video(tmp_path / "a.webp", track, sound, make_head(), SIZE)
    durations = []
    with pillow.open(tmp_path / "a.webp") as image:
        for i in range(image.n_frames):
            image.seek(i)
            image.load()
            durations.append(image.info["duration"])
    assert image.size == (SIZE, SIZE) and durations[:9] == [33, 34, 33, 33, 34, 33, 33, 34, 33]
    assert sum(durations) == (2000 if seconds == 2 else 500 if seconds else 333)
    assert (tmp_path / "a.wav").exists() == bool(seconds)
    if seconds:
        assert soundfile.info(tmp_path / "a.wav").duration == seconds


@pytest.mark.parametrize("name, track, size, problem", [
    ("a.mp4", np.zeros((3, 51)), SIZE, r"\(3, 51\).*\(frames, 52\)"),
    ("a.mp4", np.zeros((0, 52)), SIZE, r"\(0, 52\).*\(frames, 52\)"),
    ("a.mp4", np.full((3, 52), np.nan), SIZE, "finite"),
    ("a.mp4", np.zeros((3, 52)), 65, "even"),
    ("a.avi", np.zeros((3, 52)), SIZE, r"a\.avi.*\.mp4 or \.webp"),
])
def test_wrong_input_is_named(tmp_path, name, track, size, problem):
    with pytest.raises(ValueError, match=problem):
        render.write_video(tmp_path / name, track, None, make_head(), size)
    assert not list(tmp_path.iterdir())


def test_a_webp_leaves_another_sound_of_its_name_alone(pillow, monkeypatch, tmp_path):
    """Refused before anything is rendered; what an earlier run wrote may be written again."""
    one, other = clap(tmp_path / "one.wav", 0.2), clap(tmp_path / "other.flac", 0.3)
    for _ in range(2):
        render.write_video(tmp_path / "a.webp", snap(2), one, make_head(), SIZE)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(render, "images", lambda *_: pytest.fail("rendered"))
    with pytest.raises(ValueError, match=r"a\.wav holds another sound and would be overwritten"):
        render.write_video(tmp_path / "a.webp", snap(2), other, make_head(), SIZE)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_webp_of_one_frame_is_that_frame(pillow, tmp_path):
    render.write_video(tmp_path / "a.webp", snap(1), None, make_head(), SIZE)
    shown = np.asarray(pillow.open(tmp_path / "a.webp").convert("RGB")).astype(int)
    assert abs(shown - render.still(make_head(), snap(1)[0], SIZE)).mean() < 4          # WebP loses a little


def test_a_killed_ffmpeg_is_one_line_and_leaves_nothing(monkeypatch, tmp_path):
    (tmp_path / "ffmpeg").write_text("#!/bin/sh\nkill -9 $$\n")
    (tmp_path / "ffmpeg").chmod(0o755)
    monkeypatch.setattr(render, "find_ffmpeg", lambda: str(tmp_path / "ffmpeg"))
    with pytest.raises(ValueError, match=r"a\.mp4: it ended with -9 and gave no reason$"):
        render.write_video(tmp_path / "a.mp4", snap(40), None, make_head(), SIZE)
    assert [path.name for path in tmp_path.iterdir()] == ["ffmpeg"]


WRITERS = {"png": lambda path, sound: render.write_png(path, np.zeros((2, 2, 3), np.uint8)),
           "glb": lambda path, sound: gltf.write_glb(path, make_head(), snap(2)),
           "html": lambda path, sound: viewer.write_viewer(path, snap(2), audio=sound),
           "webp": lambda path, sound: render.write_video(path, snap(2), sound, make_head(), SIZE),
           "mp4": lambda path, sound: render.write_video(path, snap(2), sound, make_head(), SIZE)}


@pytest.mark.filterwarnings("ignore")       # they name the file, which pytest-xdist cannot pass on
@pytest.mark.parametrize("ending", WRITERS)
def test_every_writer_takes_long_and_latin_1_names_and_new_folders(pillow, ffmpeg, tmp_path, ending):
    folder, sound = tmp_path / os.fsdecode(b"caf\xe9"), tmp_path / os.fsdecode(b"l\xe4rm.wav")
    clap(tmp_path / "sound.wav", 0.1).rename(sound)
    names = ["a" * (254 - len(ending)) + "." + ending, os.fsdecode(b"t\xeate.") + ending]
    for name in names:
        WRITERS[ending](folder / name, sound)
    wavs = [Path(name).stem + ".wav" for name in names if ending == "webp"]
    assert sorted(path.name for path in folder.iterdir()) == sorted(names + wavs)


@pytest.mark.parametrize("ending", WRITERS)
def test_a_writer_that_cannot_write_loses_nothing(pillow, ffmpeg, monkeypatch, tmp_path, ending):
    """A path below a file, a directory of that name, and a disk that is full when the new file replaces the old."""
    sound, old = clap(tmp_path / "sound.wav", 0.1), tmp_path / f"old.{ending}"
    old.write_bytes(b"old")
    (tmp_path / f"folder.{ending}").mkdir()
    before = sorted(tmp_path.iterdir())
    for path in (old / f"a.{ending}", tmp_path / f"folder.{ending}"):
        with pytest.raises((OSError, ValueError)):
            WRITERS[ending](path, sound)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        WRITERS[ending](old, sound)
    assert old.read_bytes() == b"old" and sorted(tmp_path.iterdir()) == before


def test_a_head_of_too_many_long_triangles_is_refused():
    corners = np.array([[-1, -1, 0], [1, -1, 0], [0, 1, 0]])
    head = mesh(corners, np.tile([0, 1, 2], (render.LAYERS * 4 * SIZE, 1)), np.ones((3, 3)))
    with pytest.raises(ValueError, match="8192 triangles are too many and too long to render"):
        render.still(head, pose(), SIZE)


def test_a_sound_that_is_none_is_named(ffmpeg, tmp_path):
    (tmp_path / "a.wav").write_text("not a sound")
    with pytest.raises(ValueError, match=r"a\.wav is not audio that can be read"):
        render.write_video(tmp_path / "a.mp4", snap(2), tmp_path / "a.wav", make_head(), SIZE)


def test_a_sound_of_odd_levels_is_mended_for_a_video_too(tmp_path):
    """The wav beside a .webp is that of an ordinary recording, not cut to full scale."""
    pytest.importorskip("PIL")
    voice = (0.3 * np.sin(np.arange(4_000) / 9)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", voice * 32768, 16_000, subtype="FLOAT")
    with pytest.warns(UserWarning, match="16-bit ones"):
        export(tmp_path / "out.webp", np.zeros((2, 52), np.float32), tmp_path / "a.wav")
    heard, rate = soundfile.read(tmp_path / "out.wav", dtype="float32")
    assert rate == 16_000 and abs(heard - voice).max() < 1e-3
