"""The .glb that we write obeys glTF 2.0, plays in three.js, and holds the head and the track as they were."""
import dataclasses
import functools
import json
import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest

from face import gltf
from face.arkit import ARKIT_NAMES
from face.head import Head, make_head

WEB = Path(__file__).parent / "web"
FLOAT, USHORT, UINT = 5126, 5123, 5125
FRAMES = 45


def track() -> np.ndarray:
    """(45, 52) weights in [0, 1], another curve for each shape."""
    time = np.arange(FRAMES)[:, None] / 30
    return (0.5 + 0.5 * np.sin(time * (1 + np.arange(52) / 9) + np.arange(52))).astype(np.float32)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """answer.glb: our head, speaking."""
    path = tmp_path_factory.mktemp("glb") / "answer.glb"
    gltf.write_glb(path, make_head(), track())
    return path


# A second reader, which shares nothing with gltf.py

def unpack(data: bytes) -> tuple[dict, bytes]:
    magic, version, total, size, kind = struct.unpack("<4sIII4s", data[:20])
    assert (magic, version, total, kind) == (b"glTF", 2, len(data), b"JSON") and size % 4 == 0
    length, kind = struct.unpack("<I4s", data[20 + size:28 + size])
    assert kind == b"BIN\0" and length % 4 == 0 and 28 + size + length == total
    return json.loads(data[20:20 + size]), data[28 + size:]


def block(scene, blob, view, kind, count) -> np.ndarray:
    view = scene["bufferViews"][view]
    assert view["byteOffset"] % 4 == 0 and "byteStride" not in view
    return np.frombuffer(blob, {FLOAT: "<f4", USHORT: "<u2", UINT: "<u4"}[kind], count, view["byteOffset"])


def values(scene, blob, index) -> np.ndarray:
    accessor = scene["accessors"][index]
    width = {"SCALAR": 1, "VEC3": 3}[accessor["type"]]
    assert ("bufferView" in accessor) + ("sparse" in accessor) < 2
    out = np.zeros((accessor["count"], width), np.float32)
    if "bufferView" in accessor:
        out = block(scene, blob, accessor["bufferView"], accessor["componentType"], out.size).reshape(out.shape)
    elif "sparse" in accessor:
        sparse = accessor["sparse"]
        rows = block(scene, blob, sparse["indices"]["bufferView"], sparse["indices"]["componentType"], sparse["count"])
        assert (np.diff(rows.astype(int)) > 0).all() and rows[-1] < accessor["count"]
        for part in (sparse["indices"], sparse["values"]):
            assert "target" not in scene["bufferViews"][part["bufferView"]]
        out[rows] = block(scene, blob, sparse["values"]["bufferView"], FLOAT, rows.size * width).reshape(-1, width)
    if "min" in accessor:
        assert accessor["min"] == out.min(0).tolist() and accessor["max"] == out.max(0).tolist()
    return out


@functools.cache
def small_head() -> Head:
    """A ball of 12 x 24 vertices that looks along +Z; each shape pushes a round patch of it outwards."""
    u, v = np.meshgrid(np.linspace(0.05, np.pi - 0.05, 13), np.arange(24) * np.pi / 12, indexing="ij")
    vertices = 0.1 * np.stack([np.sin(u) * np.sin(v), np.cos(u), np.sin(u) * np.cos(v)], -1).reshape(-1, 3)
    a, b = np.arange(12 * 24), np.arange(12 * 24) // 24 * 24 + (np.arange(12 * 24) + 1) % 24
    faces = np.concatenate([np.stack([a, a + 24, b], 1), np.stack([b, a + 24, b + 24], 1)])
    deltas = np.zeros((52, *vertices.shape))
    for k, name in enumerate(ARKIT_NAMES):
        side = name.endswith("Left") * 1 - name.endswith("Right")
        centre = (0.03 * side, -0.04, 0.09) if name[0] in "mjt" else (0.04 * side, 0.03 + 0.0003 * k, 0.08)
        near = np.linalg.norm(vertices - centre, axis=1) < 0.035
        deltas[k, near] = vertices[near] * 0.1 + 0.001 * k
    colors = np.random.default_rng(0).integers(0, 256, vertices.shape) / 255
    lips = np.flatnonzero(np.linalg.norm(vertices - (0, -0.04, 0.09), axis=1) < 0.035)
    return Head(vertices=vertices.astype(np.float32), faces=faces.astype(np.int32), colors=colors.astype(np.float32),
                deltas=deltas.astype(np.float32), lips=lips, eyes=np.zeros((2, 3)), upper=None, lower=None)


# What we write

def test_a_glb_is_our_head_with_52_named_sparse_targets(written):
    scene, blob = unpack(written.read_bytes())
    head, mesh, node = make_head(), scene["meshes"][0], scene["nodes"][0]
    primitive, = mesh["primitives"]
    assert node["name"] and node["mesh"] == 0 and scene["scenes"][scene["scene"]]["nodes"] == [0]
    assert mesh["extras"]["targetNames"] == ARKIT_NAMES and mesh["weights"] == [0] * 52
    material = scene["materials"][primitive["material"]]["pbrMetallicRoughness"]
    assert material["metallicFactor"] == 0 and 0.5 <= material["roughnessFactor"] <= 0.7
    position = scene["accessors"][primitive["attributes"]["POSITION"]]
    assert {"min", "max"} <= position.keys() and scene["bufferViews"][position["bufferView"]]["target"] == 34962
    index = scene["accessors"][primitive["indices"]]
    assert scene["bufferViews"][index["bufferView"]]["target"] == 34963
    np.testing.assert_array_equal(values(scene, blob, primitive["attributes"]["POSITION"]), head.vertices)
    np.testing.assert_array_equal(values(scene, blob, primitive["indices"]).reshape(-1, 3), head.faces)
    normal = values(scene, blob, primitive["attributes"]["NORMAL"])
    np.testing.assert_allclose(np.linalg.norm(normal, axis=1), 1, atol=1e-6)
    assert len(primitive["targets"]) == 52
    for target, delta in zip(primitive["targets"], head.deltas):
        accessor = scene["accessors"][target["POSITION"]]
        assert "bufferView" not in accessor and {"min", "max"} <= accessor.keys()
        np.testing.assert_allclose(values(scene, blob, target["POSITION"]), delta, rtol=0, atol=gltf.STILL)


def test_colours_are_stored_linear(written):
    scene, blob = unpack(written.read_bytes())
    color = values(scene, blob, scene["meshes"][0]["primitives"][0]["attributes"]["COLOR_0"])
    np.testing.assert_allclose(color, make_head().colors ** 2.2, atol=0.02)     # 2.2: sRGB's curve to within 0.02
    np.testing.assert_allclose(gltf.linear([0, 0.5, 1]), [0, 0.21404, 1], atol=1e-5)


def test_normal_targets_turn_the_normals_with_the_jaw(written):
    scene, blob = unpack(written.read_bytes())
    primitive, head, jaw = scene["meshes"][0]["primitives"][0], make_head(), ARKIT_NAMES.index("jawOpen")
    turned = (values(scene, blob, primitive["attributes"]["NORMAL"])
              + values(scene, blob, primitive["targets"][jaw]["NORMAL"]))
    posed, wanted = head.pose(np.eye(52)[jaw]).astype(np.float64), np.zeros(head.vertices.shape)
    across = np.cross(*(posed[head.faces[:, i]] - posed[head.faces[:, 0]] for i in (1, 2)))
    for corner in range(3):
        np.add.at(wanted, head.faces[:, corner], across)
    length = np.linalg.norm(wanted, axis=1)
    far = np.linalg.norm(turned - wanted / np.maximum(length, 1e-12)[:, None], axis=1)[length > 1e-12]
    assert (far < gltf.UNTURNED + 1e-3).all(), far.max()     # 1e-3: float32 sums over triangles that nearly cancel


def test_the_animation_is_the_track_frame_by_frame(written):
    scene, blob = unpack(written.read_bytes())
    animation, = scene["animations"]
    channel, = animation["channels"]
    sampler = animation["samplers"][channel["sampler"]]
    assert channel["target"] == {"node": 0, "path": "weights"} and sampler["interpolation"] == "LINEAR"
    assert {"min", "max"} <= scene["accessors"][sampler["input"]].keys()
    times = values(scene, blob, sampler["input"])[:, 0]
    np.testing.assert_allclose(times, np.arange(FRAMES) / 30, rtol=1e-7)
    np.testing.assert_array_equal(values(scene, blob, sampler["output"]).reshape(FRAMES, 52), track())


def test_weights_are_clipped(tmp_path):
    gltf.write_glb(tmp_path / "x.glb", small_head(), np.full((2, 52), 1.5))
    scene, blob = unpack((tmp_path / "x.glb").read_bytes())
    assert (values(scene, blob, scene["animations"][0]["samplers"][0]["output"]) == 1).all()


def test_a_head_alone_has_no_animation_and_is_the_same_every_time(tmp_path):
    for name in ("a.glb", "b.glb"):
        gltf.write_glb(tmp_path / name, small_head())
    assert (tmp_path / "a.glb").read_bytes() == (tmp_path / "b.glb").read_bytes()
    assert "animations" not in unpack((tmp_path / "a.glb").read_bytes())[0]


@pytest.mark.parametrize("bad", [np.zeros((0, 52)), np.zeros((4, 50)), np.zeros(52), np.full((2, 52), np.nan)])
def test_a_track_that_is_none_is_refused_and_leaves_no_file(tmp_path, bad):
    with pytest.raises(ValueError, match="the track has"):
        gltf.write_glb(tmp_path / "x.glb", small_head(), bad)
    assert not list(tmp_path.iterdir())


# What others make of it

def need_package(name):
    if not (WEB / "node_modules" / name).is_dir():
        pytest.skip(f"{name} missing: npm install --prefix tests/web")


def test_khronos_validator_finds_nothing(written, tmp_path):
    need_package("gltf-validator")
    if not shutil.which("node"):
        pytest.skip("node missing")
    gltf.write_glb(tmp_path / "still.glb", dataclasses.replace(small_head(), deltas=np.zeros_like(small_head().deltas)))
    for path in (written, tmp_path / "still.glb"):
        out = subprocess.run(["node", WEB / "validate.js", path], capture_output=True, text=True, check=True).stdout
        assert not json.loads(out)["issues"]["messages"]      # no error, no warning, no information, no hint


def test_three_js_plays_the_track(written):
    need_package("three")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright missing: pip install playwright")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("chromium missing")

    def serve(route):      # every request ends here: the page needs no server and no network
        path = route.request.url.split("/", 3)[3]
        route.fulfill(path=written if path == "head.glb" else WEB / path)

    times = [0, 0.51, (FRAMES - 1) / 30]
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page, errors = browser.new_page(), []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.route("**/*", serve)
        page.goto("http://head.test/three.html")
        shown = page.evaluate("times => window.weightsAt(times)", times)
        browser.close()
    assert not errors
    assert shown["names"] == ARKIT_NAMES and shown["tracks"] == ["face.morphTargetInfluences"]
    assert set(shown["attributes"]) == {"position", "normal"}
    assert shown["duration"] == pytest.approx((FRAMES - 1) / 30, abs=1e-6)
    wanted = np.stack([np.interp(times, np.arange(FRAMES) / 30, curve) for curve in track().T], 1)
    np.testing.assert_allclose(shown["weights"], wanted, atol=1e-5)     # times and weights are float32 in the file
