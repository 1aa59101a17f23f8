"""GLB and npz heads: what we write obeys glTF and plays elsewhere, what others write is read as they meant it."""
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


# A second reader and a second writer, sharing nothing with gltf.py

def unpack(data: bytes) -> tuple[dict, bytes]:
    magic, version, total, size, kind = struct.unpack("<4sIII4s", data[:20])
    assert (magic, version, total, kind) == (b"glTF", 2, len(data), b"JSON") and size % 4 == 0
    length, kind = struct.unpack("<I4s", data[20 + size:28 + size])
    assert kind == b"BIN\0" and length % 4 == 0 and 28 + size + length == total
    return json.loads(data[20:20 + size]), data[28 + size:]


def pack(scene: dict, blob: bytes) -> bytes:
    text = json.dumps(scene).encode()
    text += b" " * (-len(text) % 4)
    blob += b"\0" * (-len(blob) % 4)
    return (struct.pack("<4sIII4s", b"glTF", 2, 28 + len(text) + len(blob), len(text), b"JSON") + text
            + struct.pack("<I4s", len(blob), b"BIN\0") + blob)


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
        place = (0.03 * side, -0.04, 0.09) if name[0] in "mjt" else (0.04 * side, 0.03 + 0.0003 * k, 0.08)
        near = np.linalg.norm(vertices - place, axis=1) < 0.035
        deltas[k, near] = vertices[near] * 0.1 + 0.001 * k
    colors = np.random.default_rng(0).integers(0, 256, vertices.shape) / 255
    lips = np.flatnonzero(np.linalg.norm(vertices - (0, -0.04, 0.09), axis=1) < 0.035)
    return Head(vertices=vertices.astype(np.float32), faces=faces.astype(np.int32), colors=colors.astype(np.float32),
                deltas=deltas.astype(np.float32), lips=lips, eyes=np.zeros((2, 3)), upper=None, lower=None)


def append(scene, blob, data, kind, count, shape, **more) -> tuple[bytes, int]:
    """The blob with one more accessor's numbers behind it, and the accessor's index."""
    scene["bufferViews"].append({"buffer": 0, "byteOffset": len(blob), "byteLength": len(data)} | more)
    scene["accessors"].append({"bufferView": len(scene["bufferViews"]) - 1, "componentType": kind, "count": count,
                               "type": shape})
    return blob + data + b"\0" * (-len(data) % 4), len(scene["accessors"]) - 1


def template(head: Head, names=ARKIT_NAMES, deltas=None, indices="<u2", stride=False, ubyte=False):
    """A GLB as other tools write it: dense targets, one primitive; with stride, position and colour share a row."""
    scene = {"asset": {"version": "2.0"}, "scenes": [{"nodes": [0]}], "nodes": [{"mesh": 0}], "buffers": [{}],
             "accessors": [], "bufferViews": []}
    blob = b""

    def add(data, kind, count, shape, **more):
        nonlocal blob
        blob, index = append(scene, blob, data, kind, count, shape, **more)
        return index

    count = len(head.vertices)
    light = np.where(head.colors <= 0.04045, head.colors / 12.92, ((head.colors + 0.055) / 1.055) ** 2.4)
    tint = np.rint(light * 255).astype("<u1") if ubyte else light.astype("<f4")
    tint = np.concatenate([tint, np.full((count, 1), 255 if ubyte else 1, tint.dtype)], 1)
    if stride:
        rows = np.concatenate([head.vertices.view("<u1"), np.ascontiguousarray(tint).view("<u1")], 1)
        position = add(rows.tobytes(), FLOAT, count, "VEC3", byteStride=rows.shape[1])
        color = len(scene["accessors"])
        scene["accessors"].append(scene["accessors"][position] | {"byteOffset": 12, "type": "VEC4"})
    else:
        position = add(head.vertices.tobytes(), FLOAT, count, "VEC3")
        color = add(tint.tobytes(), FLOAT, count, "VEC4")
    if ubyte:
        scene["accessors"][color] |= {"componentType": 5121, "normalized": True}
    deltas = head.deltas if deltas is None else deltas
    primitive = {"attributes": {"POSITION": position, "COLOR_0": color}, "targets": [
        {"POSITION": add(delta.astype("<f4").tobytes(), FLOAT, count, "VEC3")} for delta in deltas]}
    if indices:
        kind = {"<u1": 5121, "<u2": USHORT, "<u4": UINT}[indices]
        primitive["indices"] = add(head.faces.astype(indices).tobytes(), kind, head.faces.size, "SCALAR")
    scene["meshes"] = [{"primitives": [primitive], "extras": {"targetNames": list(names)}}]
    return scene, blob


def still(primitive: dict) -> dict:
    return {key: value for key, value in primitive.items() if key != "targets"}


def load(tmp_path, scene, blob) -> Head:
    (tmp_path / "head.glb").write_bytes(pack(scene, blob))
    return gltf.load_template(tmp_path / "head.glb")


def assert_same(read: Head, head: Head, atol=1e-7, colors=1e-6):
    """atol: float32 of lengths below 1 m; colors: float32 through the curve from sRGB to light and back."""
    np.testing.assert_array_equal(read.faces, head.faces)
    np.testing.assert_allclose(read.vertices, head.vertices, rtol=0, atol=atol)
    np.testing.assert_allclose(read.deltas, head.deltas, rtol=0, atol=atol)
    np.testing.assert_allclose(read.colors, head.colors, rtol=0, atol=colors)


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


def test_what_is_written_is_read_back(written):
    read, head = gltf.load_template(written), make_head()
    assert_same(read, head, atol=gltf.STILL)
    assert read.lips.size and abs(read.interocular / head.interocular - 1) < 0.05


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


# What we read

def test_names_of_other_rigs_are_understood(tmp_path):
    head = small_head()
    renamed = [n if n in ("jawLeft", "jawRight", "mouthLeft", "mouthRight") else
               n.replace("Left", "_L").replace("Right", "_R") if n.endswith(("Left", "Right")) else n[0].upper() + n[1:]
               for n in ARKIT_NAMES]
    assert {"JawOpen", "mouthSmile_L", "mouthLeft"} <= set(renamed)
    order = np.random.default_rng(1).permutation(52)
    scene, blob = template(head, [renamed[i] for i in order], head.deltas[order])
    assert_same(load(tmp_path, scene, blob), head)


def test_halves_of_a_shape_are_added(tmp_path):
    head = small_head()
    names, deltas = list(ARKIT_NAMES), list(head.deltas)
    for name in ("browInnerUp", "cheekPuff"):
        i = names.index(name)
        names[i:i + 1] = [name + "_L", name + "_R"]
        deltas[i:i + 1] = [deltas[i] * (head.vertices[:, :1] > 0), deltas[i] * (head.vertices[:, :1] <= 0)]
    assert_same(load(tmp_path, *template(head, names, np.stack(deltas))), head)


@pytest.mark.parametrize("indices", ["<u2", "<u4"])
def test_interleaved_rows_and_byte_colours_are_read(tmp_path, indices):
    scene, blob = template(small_head(), indices=indices, stride=True, ubyte=True)
    assert_same(load(tmp_path, scene, blob), small_head(), colors=0.06)     # a byte of linear light, near black


def test_triangles_without_indices_are_read(tmp_path):
    head, rows = small_head(), small_head().faces.reshape(-1)
    soup = dataclasses.replace(head, vertices=head.vertices[rows], colors=head.colors[rows],
                               deltas=head.deltas[:, rows], faces=np.arange(rows.size).reshape(-1, 3))
    assert_same(load(tmp_path, *template(soup, indices=None)), soup)


def test_parts_are_joined_where_their_nodes_place_them(tmp_path):
    """A face below two nodes that come to 1 cm up, and a still part, mirrored, half as large and lifted."""
    head = small_head()
    scene, blob = template(head)
    primitive, = scene["meshes"][0]["primitives"]
    scene["scenes"] = [{"nodes": [0, 2]}]
    quarter = np.array([[0, -1, 0, 0], [1, 0, 0, 0.1], [0, 0, 1, 0], [0, 0, 0, 1]])     # about +Z: x to y, then lifted
    lift = np.array([[1, 0, 0, 0], [0, 1, 0, 0.01], [0, 0, 1, 0], [0, 0, 0, 1]])
    child = np.linalg.inv(quarter @ np.diag([2, 4, 2, 1])) @ lift
    scene["nodes"] = [{"scale": [2, 4, 2], "rotation": [0, 0, 0.5 ** 0.5, 0.5 ** 0.5], "translation": [0, 0.1, 0],
                       "children": [1]}, {"mesh": 0, "matrix": child.T.reshape(-1).tolist()},
                      {"mesh": 1, "scale": [-0.5, 0.5, 0.5], "translation": [0, 0.2, 0]}]
    scene["meshes"].append({"primitives": [still(primitive)]})
    read, v = load(tmp_path, scene, blob), len(head.vertices)
    face = dataclasses.replace(read, vertices=read.vertices[:v] - np.float32([0, 0.01, 0]), colors=read.colors[:v],
                               deltas=read.deltas[:, :v], faces=read.faces[:len(head.faces)])
    assert_same(face, head)
    np.testing.assert_allclose(read.vertices[v:], head.vertices * (-0.5, 0.5, 0.5) + (0, 0.2, 0), atol=1e-7)
    assert not read.deltas[:, v:].any()
    np.testing.assert_array_equal(read.faces[len(head.faces):], head.faces[:, ::-1] + v)


def test_bones_at_rest_place_a_mesh_with_a_skin(tmp_path):
    """Equal shares (that add up to 0.4) of two bones whose places, less their bind pose, are 0.02 up and 0.04 up."""
    head = small_head()
    scene, blob = template(head)
    count, attributes = len(head.vertices), scene["meshes"][0]["primitives"][0]["attributes"]
    joints, shares = np.tile(np.array([0, 1, 0, 0], "<u1"), (count, 1)), np.tile(np.float32([.2, .2, 0, 0]), (count, 1))
    bind = np.stack([np.eye(4, dtype="<f4")] * 2)
    bind[1, 3, 1] = -1      # column by column: the second bone was bound at a height of 1 m
    blob, attributes["JOINTS_0"] = append(scene, blob, joints.tobytes(), 5121, count, "VEC4")
    blob, attributes["WEIGHTS_0"] = append(scene, blob, shares.tobytes(), FLOAT, count, "VEC4")
    blob, last = append(scene, blob, bind.tobytes(), FLOAT, 2, "MAT4")
    scene["nodes"] = [{"mesh": 0, "skin": 0, "translation": [9, 9, 9], "children": [1, 2]},
                      {"translation": [-9, -8.98, -9]}, {"translation": [-9, -7.96, -9]}]
    scene["skins"] = [{"joints": [1, 2], "inverseBindMatrices": last}]
    lifted = dataclasses.replace(head, vertices=head.vertices + np.float32([0, 0.03, 0]))
    assert_same(load(tmp_path, scene, blob), lifted, atol=1e-6)     # sums of lengths near 9


def test_quantised_positions_and_sparse_over_dense_are_read(tmp_path):
    head = small_head()
    scene, blob = template(head)
    count, unit = len(head.vertices), np.abs(head.vertices).max()
    whole = np.pad(np.rint(head.vertices / unit * 32767).astype("<i2"), ((0, 0), (0, 1))).tobytes()
    moved = np.array([[0, 0, 0], [32767, 0, -32768]], "<i2").tobytes()
    blob, position = append(scene, blob, whole, 5122, count, "VEC3", byteStride=8)
    blob, rows = append(scene, blob, np.array([3, 7], "<u2").tobytes(), USHORT, 2, "SCALAR")
    blob, places = append(scene, blob, moved, 5122, 2, "VEC3")
    scene["accessors"][position] |= {"normalized": True, "sparse": {
        "count": 2, "indices": scene["accessors"][rows], "values": scene["accessors"][places]}}
    scene["meshes"][0]["primitives"][0]["attributes"]["POSITION"] = position
    scene["nodes"][0]["scale"] = [float(unit)] * 3
    scene["extensionsRequired"] = ["KHR_mesh_quantization"]
    wanted = head.vertices.copy()
    wanted[[3, 7]] = (0, 0, 0), (unit, 0, -unit)
    read = load(tmp_path, scene, blob)
    np.testing.assert_allclose(read.vertices, wanted, rtol=0, atol=unit / 32767)     # half a step, and rounding
    np.testing.assert_allclose(read.deltas, head.deltas * unit, rtol=0, atol=1e-7)


def test_colours_come_from_the_material_or_are_skin(tmp_path):
    scene, blob = template(small_head())
    primitive, = scene["meshes"][0]["primitives"]
    del primitive["attributes"]["COLOR_0"]
    np.testing.assert_allclose(load(tmp_path, scene, blob).colors[0], gltf.SKIN, atol=1e-6)
    primitive["material"], paint = 0, {"baseColorFactor": [1, 0.21404, 0, 1]}
    scene["materials"] = [{"pbrMetallicRoughness": paint}]
    np.testing.assert_allclose(load(tmp_path, scene, blob).colors[0], [1, 0.5, 0], atol=1e-4)
    paint["baseColorTexture"] = {"index": 0}
    np.testing.assert_allclose(load(tmp_path, scene, blob).colors[0], gltf.SKIN, atol=1e-6)


def test_a_whole_person_is_cut_below_the_neck(tmp_path):
    """A still copy of the ball, 1 m below: the feet."""
    scene, blob = template(small_head())
    scene["scenes"], scene["nodes"] = [{"nodes": [0, 1]}], [{"mesh": 0}, {"mesh": 1, "translation": [0, -1, 0]}]
    scene["meshes"].append({"primitives": [still(scene["meshes"][0]["primitives"][0])]})
    read = load(tmp_path, scene, blob)
    assert -0.2 < read.vertices[:, 1].min() and len(read.faces) <= len(small_head().faces)


def test_lips_and_eyes_of_a_template_are_found(tmp_path):
    head = make_head()
    read = load(tmp_path, *template(head, indices="<u4"))
    assert len(np.intersect1d(head.lips, read.lips)) > 0.7 * len(head.lips)
    for end in (np.min, np.max):     # no further than the skin that moves with the lips, and not into the mouth
        np.testing.assert_allclose(end(read.vertices[read.lips], 0), end(head.vertices[head.lips], 0), atol=0.006)
    np.testing.assert_allclose(read.eyes, head.eyes, atol=0.01)     # ours have no back half: 1 cm too far in front
    assert read.interocular == pytest.approx(head.interocular, rel=0.01)
    assert read.upper is None and read.lower is None


def test_eyes_are_found_where_lids_follow_a_glance_and_where_only_bones_turn_them(tmp_path):
    head, deltas = make_head(), make_head().deltas.copy()
    look, blink = ([ARKIT_NAMES.index(shape + side) for side in ("Left", "Right")]
                   for shape in ("eyeLookIn", "eyeBlink"))
    deltas[look] += 0.6 * deltas[blink]
    following = load(tmp_path, *template(head, deltas=deltas, indices="<u4"))
    np.testing.assert_allclose(following.eyes, load(tmp_path, *template(head, indices="<u4")).eyes, atol=1e-6)
    deltas[[k for k, name in enumerate(ARKIT_NAMES) if name.startswith("eyeLook")]] = 0
    still = load(tmp_path, *template(head, deltas=deltas, indices="<u4"))
    assert still.interocular == pytest.approx(head.interocular, rel=0.02)


# What we refuse

def without(head, *gone):
    kept = [k for k, name in enumerate(ARKIT_NAMES) if name not in gone]
    return template(head, [ARKIT_NAMES[k] for k in kept], head.deltas[kept])


def test_a_template_without_needed_shapes_is_refused_by_their_names(tmp_path, capsys):
    with pytest.raises(ValueError, match="has 49 of the 52 ARKit shapes, it lacks jawOpen, mouthClose, tongueOut$"):
        load(tmp_path, *without(small_head(), "jawOpen", "mouthClose", "tongueOut"))
    read = load(tmp_path, *without(small_head(), "tongueOut"))
    assert "no tongueOut" in capsys.readouterr().err and not read.deltas[51].any()


@pytest.mark.parametrize("turned", [{"rotation": [0, 1, 0, 0]}, {"rotation": [0.5 ** 0.5, 0, 0, 0.5 ** 0.5]},
                                    {"scale": [-1, 1, 1]}, {"scale": [1, -1, 1]}, {"scale": [1, 1, -1]}])
def test_a_head_that_looks_elsewhere_is_refused(tmp_path, turned):
    scene, blob = template(small_head())
    scene["nodes"][0] |= turned
    with pytest.raises(ValueError, match="does not look along \\+Z"):
        load(tmp_path, scene, blob)


@pytest.mark.parametrize("change, message", [
    ({"extensionsRequired": ["KHR_draco_mesh_compression"]}, "packed .KHR_draco"),
    ({"extensionsRequired": ["EXT_meshopt_compression"]}, "packed .EXT_meshopt"),
    ({"buffers": [{"uri": "head.bin", "byteLength": 4}]}, "outside .head.bin"),
    ({"scenes": [{"nodes": []}]}, "has 0 of the 52 ARKit shapes"),
    ({"nodes": [{"mesh": 0, "children": [0]}]}, "node 0 hangs in two places"),
    ({"nodes": [{"mesh": 1}]}, "damaged"),
    ({"bufferViews": []}, "damaged"),
    ({"meshes": []}, "damaged"),
])
def test_a_glb_we_cannot_read_says_why(tmp_path, change, message):
    scene, blob = template(small_head())
    with pytest.raises(ValueError, match=message):
        load(tmp_path, scene | change, blob)


def test_a_damaged_glb_is_refused_or_read_but_never_crashes(tmp_path):
    path = tmp_path / "cut.glb"
    gltf.write_glb(path, small_head())
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for size in (0, 3, 11, 19, 20, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="no GLB|cut short"):
            gltf.read_glb(path)
    for _ in range(200):
        broken = bytearray(whole)
        for place in rng.integers(12, 2000, 3):
            broken[place] = rng.integers(32, 127)
        path.write_bytes(broken)
        try:
            gltf.read_glb(path)
        except ValueError:
            pass


def save_npz(path, head, **changes):
    np.savez(path, **{"meanshape": head.vertices, "faces": head.faces, "blendshape": head.deltas,
                      "bs_names": np.array(ARKIT_NAMES)} | changes)
    return path


@pytest.mark.parametrize("changes", [
    {}, {"faces": small_head().faces + 1}, {"bs_names": np.array(ARKIT_NAMES, "S")},
    {"bs_names": np.array(ARKIT_NAMES[::-1]), "blendshape": small_head().deltas[::-1]},
    {"meanshape": small_head().vertices * 100 + 7, "blendshape": small_head().deltas * 100}])
def test_an_npz_template_is_scaled_to_a_head_of_24_cm(tmp_path, changes):
    head, read = small_head(), gltf.load_template(save_npz(tmp_path / "head.npz", small_head(), **changes))
    scale = gltf.HEIGHT / np.ptp(head.vertices[:, 1])
    np.testing.assert_allclose(read.vertices, head.vertices * scale, atol=1e-6)     # float32 of numbers near 7
    np.testing.assert_allclose(read.deltas, head.deltas * scale, atol=1e-6)
    np.testing.assert_array_equal(read.faces, head.faces)
    assert read.vertices.dtype == read.deltas.dtype == np.float32 and read.faces.dtype == np.int32


def test_quads_of_an_npz_are_split(tmp_path):
    quads = np.column_stack([small_head().faces[:288], small_head().faces[288:, 2]])
    read = gltf.load_template(save_npz(tmp_path / "head.npz", small_head(), faces=quads))
    np.testing.assert_array_equal(read.faces[[0, 288]], quads[0][[[0, 1, 2], [0, 2, 3]]])


@pytest.mark.parametrize("changes, message", [
    ({"bs_names": np.array(ARKIT_NAMES, dtype=object)}, "Python objects: save bs_names as"),
    ({"bs_names": np.array(ARKIT_NAMES[:51])}, r"blendshape \[52, \d+, 3\], 51 bs_names"),
    ({"bs_names": np.array(ARKIT_NAMES[:51] + ["x"]), "faces": small_head().faces + 5}, "faces name vertices 5 to"),
    ({"bs_names": np.array(["x"] + ARKIT_NAMES[1:])}, "lacks browDownLeft$"),
    ({"faces": small_head().faces[:, :2]}, r"expected whole numbers \[T, 3\]"),
    ({"faces": small_head().faces / 2}, "float64: expected whole numbers"),
    ({"meanshape": small_head().vertices * (1, 0, 1)}, "expected a head"),
    ({"blendshape": small_head().deltas + small_head().vertices}, "whole heads, expected differences"),
    ({"blendshape": small_head().deltas * np.nan}, "NaN or infinite"),
    ({"blendshape": small_head().deltas * 0}, "mouthRollLower.* move nothing"),
])
def test_a_wrong_npz_says_what_is_wrong(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        gltf.load_template(save_npz(tmp_path / "head.npz", small_head(), **changes))


def test_a_file_that_is_no_template_is_refused(tmp_path):
    with pytest.raises(ValueError, match="ends in .npz .* or .glb"):
        gltf.load_template(tmp_path / "head.fbx")
    save_npz(tmp_path / "head.npz", small_head())
    data = (tmp_path / "head.npz").read_bytes()
    for size in (0, 10, len(data) // 2, len(data) - 8):
        (tmp_path / "head.npz").write_bytes(data[:size])
        with pytest.raises(ValueError, match="is no template"):
            gltf.load_template(tmp_path / "head.npz")
    np.save(tmp_path / "head.npy", small_head().vertices)
    (tmp_path / "head.npy").rename(tmp_path / "head.npz")
    with pytest.raises(ValueError, match="is no template"):
        gltf.load_template(tmp_path / "head.npz")
    np.savez(tmp_path / "head.npz", meanshape=small_head().vertices)
    with pytest.raises(ValueError, match="no blendshape, bs_names, faces in it, there is meanshape"):
        gltf.load_template(tmp_path / "head.npz")
