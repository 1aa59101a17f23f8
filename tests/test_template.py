"""Heads from .glb and .npz files are read as their maker meant them. What is refused: test_template_refused.py."""
import dataclasses
import json
import struct

import numpy as np
import pytest

from face import gltf, template
from face.arkit import ARKIT_NAMES
from face.head import Head, make_head
from test_gltf import FLOAT, UINT, USHORT, small_head


# A second writer, which shares nothing with gltf.py

def pack(scene: dict, blob: bytes) -> bytes:
    text = json.dumps(scene).encode()
    text += b" " * (-len(text) % 4)
    blob += b"\0" * (-len(blob) % 4)
    return (struct.pack("<4sIII4s", b"glTF", 2, 28 + len(text) + len(blob), len(text), b"JSON") + text
            + struct.pack("<I4s", len(blob), b"BIN\0") + blob)


def append(scene, blob, data, kind, count, shape, **more) -> tuple[bytes, int]:
    """The blob with one more accessor's numbers behind it, and the accessor's index."""
    scene["bufferViews"].append({"buffer": 0, "byteOffset": len(blob), "byteLength": len(data)} | more)
    scene["accessors"].append({"bufferView": len(scene["bufferViews"]) - 1, "componentType": kind, "count": count,
                               "type": shape})
    return blob + data + b"\0" * (-len(data) % 4), len(scene["accessors"]) - 1


def a_glb(head: Head, names=ARKIT_NAMES, deltas=None, indices="<u2", stride=False, ubyte=False):
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
    return template.load_template(tmp_path / "head.glb")


def assert_same(read: Head, head: Head, atol=1e-7, colors=1e-6):
    """atol: float32 of lengths below 1 m; colors: float32 through the curve from sRGB to light and back."""
    np.testing.assert_array_equal(read.faces, head.faces)
    np.testing.assert_allclose(read.vertices, head.vertices, rtol=0, atol=atol)
    np.testing.assert_allclose(read.deltas, head.deltas, rtol=0, atol=atol)
    np.testing.assert_allclose(read.colors, head.colors, rtol=0, atol=colors)


# What we read

def test_what_write_glb_writes_is_read_back(tmp_path):
    gltf.write_glb(tmp_path / "head.glb", make_head())
    read, head = template.load_template(tmp_path / "head.glb"), make_head()
    assert_same(read, head, atol=gltf.STILL)
    assert read.lips.size and abs(read.interocular / head.interocular - 1) < 0.05


def test_names_of_other_rigs_are_understood(tmp_path):
    head = small_head()
    renamed = [n if n in ("jawLeft", "jawRight", "mouthLeft", "mouthRight") else
               n.replace("Left", "_L").replace("Right", "_R") if n.endswith(("Left", "Right")) else n[0].upper() + n[1:]
               for n in ARKIT_NAMES]
    assert {"JawOpen", "mouthSmile_L", "mouthLeft"} <= set(renamed)
    order = np.random.default_rng(1).permutation(52)
    scene, blob = a_glb(head, [renamed[i] for i in order], head.deltas[order])
    assert_same(load(tmp_path, scene, blob), head)


def test_halves_of_a_shape_are_added(tmp_path):
    head = small_head()
    names, deltas = list(ARKIT_NAMES), list(head.deltas)
    for name in ("browInnerUp", "cheekPuff"):
        i = names.index(name)
        names[i:i + 1] = [name + "_L", name + "_R"]
        deltas[i:i + 1] = [deltas[i] * (head.vertices[:, :1] > 0), deltas[i] * (head.vertices[:, :1] <= 0)]
    assert_same(load(tmp_path, *a_glb(head, names, np.stack(deltas))), head)


@pytest.mark.parametrize("indices", ["<u2", "<u4"])
def test_interleaved_rows_and_byte_colours_are_read(tmp_path, indices):
    scene, blob = a_glb(small_head(), indices=indices, stride=True, ubyte=True)
    assert_same(load(tmp_path, scene, blob), small_head(), colors=0.06)     # a byte of linear light, near black


def test_triangles_without_indices_are_read(tmp_path):
    head, rows = small_head(), small_head().faces.reshape(-1)
    soup = dataclasses.replace(head, vertices=head.vertices[rows], colors=head.colors[rows],
                               deltas=head.deltas[:, rows], faces=np.arange(rows.size).reshape(-1, 3))
    assert_same(load(tmp_path, *a_glb(soup, indices=None)), soup)


def test_parts_are_joined_after_the_matrices_of_their_nodes(tmp_path):
    """A face below two nodes that come to 1 cm up, and a still part, mirrored, half as large and lifted."""
    head = small_head()
    scene, blob = a_glb(head)
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


def test_bones_at_rest_move_a_mesh_with_a_skin(tmp_path):
    """Equal shares (that add up to 0.4) of two bones that, relative to their bind pose, are 0.02 and 0.04 up."""
    head = small_head()
    scene, blob = a_glb(head)
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
    scene, blob = a_glb(head)
    count, unit = len(head.vertices), np.abs(head.vertices).max()
    whole = np.pad(np.rint(head.vertices / unit * 32767).astype("<i2"), ((0, 0), (0, 1))).tobytes()
    moved = np.array([[0, 0, 0], [32767, 0, -32768]], "<i2").tobytes()
    blob, position = append(scene, blob, whole, 5122, count, "VEC3", byteStride=8)
    blob, rows = append(scene, blob, np.array([3, 7], "<u2").tobytes(), USHORT, 2, "SCALAR")
    blob, new = append(scene, blob, moved, 5122, 2, "VEC3")
    scene["accessors"][position] |= {"normalized": True, "sparse": {
        "count": 2, "indices": scene["accessors"][rows], "values": scene["accessors"][new]}}
    scene["meshes"][0]["primitives"][0]["attributes"]["POSITION"] = position
    scene["nodes"][0]["scale"] = [float(unit)] * 3
    scene["extensionsRequired"] = ["KHR_mesh_quantization"]
    wanted = head.vertices.copy()
    wanted[[3, 7]] = (0, 0, 0), (unit, 0, -unit)
    read = load(tmp_path, scene, blob)
    np.testing.assert_allclose(read.vertices, wanted, rtol=0, atol=unit / 32767)     # half a step, and rounding
    np.testing.assert_allclose(read.deltas, head.deltas * unit, rtol=0, atol=1e-7)


def test_colours_come_from_the_material_or_are_skin(tmp_path):
    scene, blob = a_glb(small_head())
    primitive, = scene["meshes"][0]["primitives"]
    del primitive["attributes"]["COLOR_0"]
    np.testing.assert_allclose(load(tmp_path, scene, blob).colors[0], template.SKIN, atol=1e-6)
    primitive["material"], paint = 0, {"baseColorFactor": [1, 0.21404, 0, 1]}
    scene["materials"] = [{"pbrMetallicRoughness": paint}]
    np.testing.assert_allclose(load(tmp_path, scene, blob).colors[0], [1, 0.5, 0], atol=1e-4)
    paint["baseColorTexture"] = {"index": 0}
    np.testing.assert_allclose(load(tmp_path, scene, blob).colors[0], template.SKIN, atol=1e-6)


def test_a_whole_person_is_cut_below_the_neck(tmp_path):
    """A still copy of the ball, 1 m below: the feet."""
    scene, blob = a_glb(small_head())
    scene["scenes"], scene["nodes"] = [{"nodes": [0, 1]}], [{"mesh": 0}, {"mesh": 1, "translation": [0, -1, 0]}]
    scene["meshes"].append({"primitives": [still(scene["meshes"][0]["primitives"][0])]})
    read = load(tmp_path, scene, blob)
    assert -0.2 < read.vertices[:, 1].min() and len(read.faces) <= len(small_head().faces)


def test_lips_and_eyes_of_a_template_are_found(tmp_path):
    head = make_head()
    read = load(tmp_path, *a_glb(head, indices="<u4"))
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
    following = load(tmp_path, *a_glb(head, deltas=deltas, indices="<u4"))
    np.testing.assert_allclose(following.eyes, load(tmp_path, *a_glb(head, indices="<u4")).eyes, atol=1e-6)
    deltas[[k for k, name in enumerate(ARKIT_NAMES) if name.startswith("eyeLook")]] = 0
    still = load(tmp_path, *a_glb(head, deltas=deltas, indices="<u4"))
    assert still.interocular == pytest.approx(head.interocular, rel=0.02)


def save_npz(path, head, **changes):
    np.savez(path, **{"meanshape": head.vertices, "faces": head.faces, "blendshape": head.deltas,
                      "bs_names": np.array(ARKIT_NAMES)} | changes)
    return path


@pytest.mark.parametrize("changes", [
    {}, {"faces": small_head().faces + 1}, {"bs_names": np.array(ARKIT_NAMES, "S")},
    {"bs_names": np.array(ARKIT_NAMES[::-1]), "blendshape": small_head().deltas[::-1]},
    {"meanshape": small_head().vertices * 100 + 7, "blendshape": small_head().deltas * 100}])
def test_an_npz_template_is_scaled_to_a_head_of_24_cm(tmp_path, changes):
    head, read = small_head(), template.load_template(save_npz(tmp_path / "head.npz", small_head(), **changes))
    scale = template.HEIGHT / np.ptp(head.vertices[:, 1])
    np.testing.assert_allclose(read.vertices, head.vertices * scale, atol=1e-6)     # float32 of numbers near 7
    np.testing.assert_allclose(read.deltas, head.deltas * scale, atol=1e-6)
    np.testing.assert_array_equal(read.faces, head.faces)
    assert read.vertices.dtype == read.deltas.dtype == np.float32 and read.faces.dtype == np.int32


def test_quads_of_an_npz_are_split(tmp_path):
    quads = np.column_stack([small_head().faces[:288], small_head().faces[288:, 2]])
    read = template.load_template(save_npz(tmp_path / "head.npz", small_head(), faces=quads))
    np.testing.assert_array_equal(read.faces[[0, 288]], quads[0][[[0, 1, 2], [0, 2, 3]]])
