"""The Audio2Face-3D teacher, on a made-up network with its interface: windows, emotion, least squares, `label`."""
import argparse
import json
import shutil

import numpy as np
import pytest

from corpora import label
from corpora.audio2face import Audio2Face
from corpora.blendshapes import bounded, smooth
from data import Split, Writer
from face.arkit import APPLE_NAMES, ARKIT_NAMES
from face_decoder import frames_for_units

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

LENGTH, BEFORE, IMPLICIT, NAMES = 8320, 4160, 3, ["anger", "joy"]
C, VERTICES = 5, 200
SAY = [{"role": "user", "content": "Read aloud: so"}]
PLAIN = {"strengthL1regularization": 0, "strengthL2regularization": 0, "strengthTemporalSmoothing": 0,
         "strengthSymmetry": 0, "templateBBSize": 10.0}


def network(path, window=LENGTH):
    """result = the mean square of the window's centre, then the emotion vector: what was fed can be seen in it."""
    make, kind = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    around = np.zeros((window, 1), np.float32)
    around[BEFORE - 100:BEFORE + 100] = 1 / 200
    nodes = [onnx.helper.make_node("Mul", ["input", "input"], ["power"]),
             onnx.helper.make_node("MatMul", ["power", "around"], ["loud"]),
             onnx.helper.make_node("Concat", ["loud", "emotion"], ["result"], axis=2)]
    graph = onnx.helper.make_graph(
        nodes, "a2f", [make("input", kind, ["batch", 1, window]), make("emotion", kind, ["batch", 1, 5])],
        [make("result", kind, ["batch", 1, 6])], [onnx.numpy_helper.from_array(around, "around")])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9), path)


def shapes_of(random):
    """The 52 shapes' offsets, in Apple's order, each of its own vertices' directions."""
    return {name: random.standard_normal((VERTICES, 3)).astype(np.float32) for name in APPLE_NAMES}


def write_teacher(directory, config=PLAIN, style=(), **options):
    """A directory as NVIDIA publishes it. Coefficient 0 moves jawOpen, 1 mouthFunnel, 2 the smiles, 3 and 4 the brow."""
    directory.mkdir(parents=True)
    random = np.random.default_rng(0)
    shapes, neutral = shapes_of(random), random.standard_normal((VERTICES, 3)).astype(np.float32)
    moves = [shapes["jawOpen"], shapes["mouthFunnel"], shapes["mouthSmileLeft"] + shapes["mouthSmileRight"],
             shapes["browInnerUp"], shapes["browInnerUp"]]
    np.savez(directory / "bs_skin.npz", poseNames=np.array(["neutral", *APPLE_NAMES], "S32"), neutral=neutral,
             frontalMask=np.arange(0, VERTICES, 2, dtype=np.int32), **shapes)
    np.savez(directory / "model_data.npz", shapes_mean_skin=neutral, shapes_matrix_skin=np.stack(moves),
             eye_close_pose_delta=shapes["eyeBlinkLeft"].ravel(), lip_open_pose_delta=shapes["mouthPucker"].ravel())
    np.savez(directory / "implicit_emo_db.npz", emo_db=np.arange(12, dtype=np.float32).reshape(4, 3) / 100,
             emo_spec_names=np.array(["other", "neutral"], "S16"), emo_spec_start=[0, 2], emo_spec_size=[2, 2])
    inactive = [name for name in APPLE_NAMES if name.startswith("eyeLook") or name == "tongueOut"]
    params = {"numPoses": 52, "bsSolveActivePoses": [int(name not in inactive) for name in APPLE_NAMES],
              "bsSolveCancelPoses": [-1] * 52, "bsSolveSymmetryPoses": [-1] * 52, "bsWeightMultipliers": [1.0] * 52,
              "bsWeightOffsets": [0.0] * 52} | config | options
    info = {"id": {"type": "regression"}, "params": {"implicit_emotion_len": IMPLICIT, "explicit_emotions": NAMES,
            "default_emotion": [0.0, 0.0], "num_shapes_skin": C, "num_shapes_tongue": 1},
            "audio_params": {"buffer_len": LENGTH, "buffer_ofs": BEFORE, "samplerate": 16_000}}
    style = {"source_shot": "neutral", "source_frame": 1} | dict(style)
    for name, value in {"bs_skin_config": {"blendshape_params": params}, "network_info": info,
                        "model_config": {"config": style}}.items():
        (directory / f"{name}.json").write_text(json.dumps(value))
    network(directory / "network.onnx")
    return directory


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_teacher(tmp_path_factory.mktemp("teacher") / "mark")


def loud(frames=24, samples=20_480):
    """Sound that gets louder at 0.4 s: frame 12."""
    sound = np.full(samples, 0.2)
    sound[16_000 * 4 // 10:] = 0.6
    return sound


def column(track, name):
    return track[:, ARKIT_NAMES.index(name)]


# ---- the teacher --------------------------------------------------------------------------------------------------

def test_a_window_is_centred_on_its_frame_and_columns_are_mapped_by_name(files):
    track = Audio2Face(files).track(loud(), 38)
    assert track.shape == (38, 52) and track.dtype == np.float32
    expected = np.r_[[0.5 * 0.04], [0.04] * 11, [0.5 * 0.04 + 0.5 * 0.36], [0.36] * 25]     # silence before frame 0
    np.testing.assert_allclose(column(track, "jawOpen"), expected, atol=2e-3)
    implicit = [0.09, 0.10, 0.11]                           # row 2 + 1 of the database
    np.testing.assert_allclose(column(track, "mouthFunnel"), implicit[0], atol=1e-5)
    np.testing.assert_allclose(column(track, "mouthSmileLeft"), implicit[1], atol=1e-5)
    np.testing.assert_allclose(column(track, "browInnerUp"), implicit[2], atol=1e-5)
    moved = {"jawOpen", "mouthFunnel", "mouthSmileLeft", "mouthSmileRight", "browInnerUp"}
    assert all(column(track, name).max() < 1e-5 for name in ARKIT_NAMES if name not in moved)


def test_an_emotion_is_fed_by_its_name(files):
    one, other = Audio2Face(files), Audio2Face(files, {"anger": 0.5})
    assert other.emotion.tolist() == one.emotion.tolist()[:3] + [0.5, 0.0]
    assert column(other.track(loud(), 5), "browInnerUp")[0] == pytest.approx(0.61, abs=1e-5)    # coefficients 3 and 4
    with pytest.raises(ValueError, match="emotion 'rage' is unknown, expected some of anger, joy"):
        Audio2Face(files, {"rage": 1})


def test_how_strongly_the_skin_moves(tmp_path):
    style = {"input_strength": 1.5, "skin_strength": 0.5, "lower_face_strength": 2.0, "upper_face_strength": 2.0,
             "lip_open_offset": 0.2, "eyelid_open_offset": -0.1}
    track = Audio2Face(write_teacher(tmp_path / "a", style=style)).track(loud(), 10)
    assert column(track, "jawOpen")[5] == pytest.approx(0.04 * 2.25, abs=1e-4)
    assert column(track, "mouthFunnel")[5] == pytest.approx(0.09, abs=1e-4)
    assert column(track, "mouthPucker")[5] == pytest.approx(0.4, abs=1e-4)
    assert column(track, "eyeBlinkLeft")[5] == pytest.approx(0.2, abs=1e-4)


def test_coefficients_are_projected_as_the_skin_that_they_move(tmp_path):
    style = {"skin_strength": 1.2, "lower_face_strength": 1.5, "upper_face_strength": 0.7, "lip_open_offset": 0.1,
             "eyelid_open_offset": 0.3, "face_mask_level": 0.4, "face_mask_softness": 0.1}
    solver = Audio2Face(write_teacher(tmp_path / "a", style=style)).solver
    coefficients = np.random.default_rng(3).standard_normal((4, C))
    with np.load(tmp_path / "a" / "bs_skin.npz") as shapes, np.load(tmp_path / "a" / "model_data.npz") as data:
        mean = data["shapes_mean_skin"].astype(float)
        height = (mean[:, 1] - mean[:, 1].min()) / (mean[:, 1].max() - mean[:, 1].min())
        mask = 1 / (1 + np.exp(-(0.4 - height) / 0.1))[:, None]
        moved = (1.2 * np.einsum("tc,cxd->txd", coefficients, data["shapes_matrix_skin"])
                 - 0.3 * data["eye_close_pose_delta"].reshape(-1, 3) + 0.1 * data["lip_open_pose_delta"].reshape(-1, 3))
        skin = mean + 0.7 * (1 - mask) * moved + 1.5 * mask * moved                         # (T, X, 3)
        some, apart = shapes["frontalMask"], skin - shapes["neutral"]
        expected = [[(shapes[APPLE_NAMES[k]][some] * frame[some]).sum() for k in solver.active] for frame in apart]
    np.testing.assert_allclose(coefficients @ solver.basis + solver.base, expected, rtol=1e-4, atol=1e-3)


def test_multipliers_and_offsets_of_the_weights(tmp_path):
    at = APPLE_NAMES.index("jawOpen")
    times, plus = [1.0] * 52, [0.0] * 52
    times[at], plus[at] = 2.0, 0.25
    files = write_teacher(tmp_path / "a", bsWeightMultipliers=times, bsWeightOffsets=plus)
    track = Audio2Face(files).track(loud(), 30)
    assert column(track, "jawOpen")[5] == pytest.approx(0.04 * 2 + 0.25, abs=1e-4)
    assert column(track, "jawOpen").max() <= 1


# ---- least squares ------------------------------------------------------------------------------------------------

def problem(seed=1, frames=40, shapes=12):
    """A symmetric matrix and targets that run into both bounds; rows of a walk."""
    random = np.random.default_rng(seed)
    offsets = random.standard_normal((shapes, 30)) * np.linspace(0.3, 3, shapes)[:, None]
    matrix = offsets @ offsets.T + 0.2 * np.eye(shapes)
    return matrix, (0.5 + np.cumsum(random.standard_normal((frames, shapes)) * 0.3, 0)) @ matrix


def test_bounded_least_squares_is_lsq_linears():
    optimize = pytest.importorskip("scipy.optimize")
    matrix, target = problem()
    factor = np.linalg.cholesky(matrix).T
    expected = [optimize.lsq_linear(factor, np.linalg.solve(factor.T, row), (0, 1), "bvls", tol=1e-12).x
                for row in target]
    np.testing.assert_allclose(bounded(matrix, target, 1.0, np.zeros_like(target)), expected, atol=1e-6)


def test_bounded_least_squares_meets_the_conditions_of_an_optimum():
    matrix, target = problem()
    x = bounded(matrix, target, 1.0, np.zeros_like(target))
    slope, low, high = x @ matrix - target, x == 0, x == 1
    assert low.any() and high.any() and (~low & ~high).any()
    assert abs(slope[~low & ~high]).max() < 1e-5 and slope[low].min() > -1e-5 and slope[high].max() < 1e-5


def test_all_frames_at_once_are_one_after_the_other():
    matrix, target = problem()
    matrix += 100 * 0.05 * np.eye(len(matrix))
    x, before = smooth(matrix, target, np.ones_like(target), 0.05), np.zeros(len(matrix))
    for row, seen in zip(target, x):
        before = bounded(matrix, (row + 0.05 * before)[None], 1.0, before[None])[0]
        np.testing.assert_allclose(seen, before, atol=1e-6)


def test_regularisation_has_nvidias_terms(tmp_path):
    pair = [-1] * 52
    for name in ("mouthSmileLeft", "mouthSmileRight"):
        pair[APPLE_NAMES.index(name)] = 7
    strengths = {"strengthL1regularization": 0.5, "strengthL2regularization": 0.3, "strengthTemporalSmoothing": 0.2,
                 "strengthSymmetry": 4.0, "templateBBSize": 2.0}
    plain = Audio2Face(write_teacher(tmp_path / "a")).solver
    other = Audio2Face(write_teacher(tmp_path / "b", strengths, bsSolveSymmetryPoses=pair)).solver
    with np.load(tmp_path / "a" / "bs_skin.npz") as skin:
        scale = (np.linalg.norm(np.ptp(skin["neutral"], axis=0)) / 2) ** 2
    more, n = other.matrix - plain.matrix, len(plain.matrix)
    left, right = (list(plain.active).index(APPLE_NAMES.index(f"mouthSmile{side}")) for side in ("Left", "Right"))
    expected = 0.25 * 0.25 * np.ones((n, n)) + (10 * 0.3 + 100 * 0.2) * np.eye(n)
    expected[[left, right], [left, right]] += 10 * 4
    expected[[left, right], [right, left]] -= 10 * 4
    np.testing.assert_allclose(more, scale * expected, rtol=1e-4, atol=1e-6)
    assert other.temporal == pytest.approx(0.2 * scale, rel=1e-5)


def test_of_two_shapes_that_exclude_each_other_the_weaker_stays_at_rest(tmp_path):
    pair = [-1] * 52
    for name in ("mouthFunnel", "mouthSmileLeft"):
        pair[APPLE_NAMES.index(name)] = 0
    track = Audio2Face(write_teacher(tmp_path / "a", bsSolveCancelPoses=pair)).track(loud(), 10)
    assert column(track, "mouthFunnel").max() == 0 and column(track, "mouthSmileLeft").min() > 0.05


# ---- files that are not it ----------------------------------------------------------------------------------------

def change(path, **values):
    content = json.loads(path.read_text())
    for name, value in values.items():
        part = next(part for part in content.values() if name in part)
        part[name] = value
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("damage, expected", [
    (lambda d: (d / "network.onnx").unlink(), "network.onnx not found"),
    (lambda d: (d / "network.onnx").write_bytes(b"no network"), "network.onnx cannot be opened by onnxruntime"),
    (lambda d: network(d / "network.onnx", window=9000), "network.onnx has .*9000.*, expected .*8320"),
    (lambda d: (d / "bs_skin.npz").write_bytes((d / "bs_skin.npz").read_bytes()[:9000]), "bs_skin.npz cannot be read"),
    (lambda d: np.savez(d / "bs_skin.npz", poseNames=["jawOpen"]), "bs_skin.npz has no neutral"),
    (lambda d: np.savez(d / "model_data.npz", x=1), "model_data.npz cannot be read"),
    (lambda d: change(d / "model_config.json", source_frame=9), "has no frame 9 of neutral"),
    (lambda d: change(d / "bs_skin_config.json", numPoses=51), "has 51 shapes"),
    (lambda d: change(d / "bs_skin_config.json", bsSolveActivePoses=[0] * 52), "no active shape"),
    (lambda d: change(d / "bs_skin_config.json", strengthSymmetry="big"), "field blendshape_params.strengthSymmetry"),
    (lambda d: change(d / "network_info.json", samplerate=8000), "audio_params.samplerate is 8000"),
    (lambda d: change(d / "network_info.json", num_shapes_skin=4), "moved by 4 coefficients"),
    (lambda d: (d / "network_info.json").write_text('{"params": {"identities": ["Mark"]}}'), "diffusion network of v3"),
])
def test_a_directory_that_is_not_the_teacher_is_one_line(tmp_path, files, damage, expected):
    shutil.copytree(files, tmp_path / "it")
    damage(tmp_path / "it")
    with pytest.raises((ValueError, FileNotFoundError), match=expected) as error:
        Audio2Face(tmp_path / "it")
    assert str(tmp_path) in str(error.value)


# ---- prepare.py label ---------------------------------------------------------------------------------------------

def run(*words):
    parser = argparse.ArgumentParser()
    label.add_label(parser.add_subparsers())
    args = parser.parse_args(["label", *map(str, words)])
    args.command(args)


def write_data(directory):
    with Writer(directory) as out:
        row = {"task": "tts", "messages": SAY, "answer": "So."}
        shared = out.add(row | {"id": "t"}, answer_audio=loud(), units=np.arange(16))
        where = {name: shared[name] for name in ("answer_audio", "units")}
        out.add(row | {"id": "q", "task": "qa"}, **where)
        out.add(row | {"id": "short", "task": "face"}, answer_audio=loud()[:3000], units=np.arange(3))
        out.add(row | {"id": "seen", "task": "face"}, **where, face=np.full((38, 52), 0.5))
        out.add(row | {"id": "unitless", "task": "qa"}, answer_audio=loud())
        out.finish(unit_vocab=96)
    return directory


def test_label_gives_each_answer_its_frames_and_a_second_time_does_nothing(tmp_path, files, capsys):
    data = write_data(tmp_path / "train")
    run(tmp_path, "--teacher", "audio2face3d", files, "--emotion", "joy=.5")
    assert "faces for 3 answers" in capsys.readouterr().out
    split = Split(data, verify=True)
    samples = {row["id"]: split[n] for n, row in enumerate(split.rows)}
    expected = Audio2Face(files, {"joy": 0.5})
    for name, units in (("q", 16), ("t-face", 16), ("short", 3)):
        assert samples[name]["face"].shape == (frames_for_units(units), 52)
    np.testing.assert_allclose(samples["q"]["face"], expected.track(loud(), 38), atol=1e-3)         # float16, int16
    np.testing.assert_allclose(samples["t-face"]["face"], samples["q"]["face"])
    assert samples["t-face"]["task"] == "face" and samples["t"]["face"] is None and samples["t"]["task"] == "tts"
    assert (samples["seen"]["face"] == 0.5).all() and samples["unitless"]["face"] is None
    assert len(split.arrays["face"]) == 2 * 38 + 7, "an answer that is shared is labelled once"
    assert split.manifest["face_teacher"]["emotion"] == {"joy": 0.5} and split.manifest["unit_vocab"] == 96
    before = (data / "face.f16").read_bytes(), (data / "samples.jsonl").read_bytes()
    run(tmp_path, "--teacher", "audio2face3d", files)
    assert before == ((data / "face.f16").read_bytes(), (data / "samples.jsonl").read_bytes())


def test_interrupted_it_goes_on(tmp_path, files, monkeypatch):
    data, whole = write_data(tmp_path / "a" / "train"), write_data(tmp_path / "b" / "train")
    run(tmp_path / "b", "--teacher", "audio2face3d", files)
    track, calls = Audio2Face.track, []

    def interrupted(self, sound, frames):
        calls.append(frames)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return track(self, sound, frames)
    monkeypatch.setattr(Audio2Face, "track", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "a", "--teacher", "audio2face3d", files)
    assert "face" not in Split(data).rows[0]
    run(tmp_path / "a", "--teacher", "audio2face3d", files)
    assert len(calls) == 3, "the first track is not made again"
    for name in ("face.f16", "samples.jsonl", "manifest.json"):
        assert (data / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.parametrize("words, expected", [
    (["--teacher", "emotalk", "x"], "--teacher emotalk is unknown, expected audio2face3d"),
    (["--teacher", "audio2face3d", "nowhere"], "network_info.json not found"),
])
def test_wrong_arguments_are_one_line(tmp_path, words, expected):
    write_data(tmp_path / "train")
    with pytest.raises((ValueError, FileNotFoundError), match=expected):
        run(tmp_path, *words)


def test_sound_that_the_network_makes_no_numbers_of_is_named(tmp_path, files, monkeypatch):
    write_data(tmp_path / "train")
    monkeypatch.setattr(Audio2Face, "coefficients", lambda self, sound, frames: np.full((frames, C), np.nan))
    with pytest.raises(ValueError, match="sample t: the network's coefficients are not finite"):
        run(tmp_path, "--teacher", "audio2face3d", files)
