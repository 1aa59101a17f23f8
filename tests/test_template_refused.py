"""Heads from .glb and .npz files that cannot be read: one line that says why, before memory or time is spent."""
import io
import struct
import zipfile

import numpy as np
import pytest

from face import gltf, template
from face.arkit import ARKIT_NAMES
from test_gltf import small_head
from test_template import a_glb, load, save_npz


def without(head, *gone):
    kept = [k for k, name in enumerate(ARKIT_NAMES) if name not in gone]
    return a_glb(head, [ARKIT_NAMES[k] for k in kept], head.deltas[kept])


def test_a_template_without_needed_shapes_is_refused_by_their_names(tmp_path, capsys):
    with pytest.raises(ValueError, match="has 49 of the 52 ARKit shapes, it lacks jawOpen, mouthClose, tongueOut$"):
        load(tmp_path, *without(small_head(), "jawOpen", "mouthClose", "tongueOut"))
    read = load(tmp_path, *without(small_head(), "tongueOut"))
    assert "no tongueOut" in capsys.readouterr().err and not read.deltas[51].any()


@pytest.mark.parametrize("turned", [{"rotation": [0, 1, 0, 0]}, {"rotation": [0.5 ** 0.5, 0, 0, 0.5 ** 0.5]},
                                    {"scale": [-1, 1, 1]}, {"scale": [1, -1, 1]}, {"scale": [1, 1, -1]}])
def test_a_head_that_looks_elsewhere_is_refused(tmp_path, turned):
    scene, blob = a_glb(small_head())
    scene["nodes"][0] |= turned
    with pytest.raises(ValueError, match="does not look along \\+Z"):
        load(tmp_path, scene, blob)


@pytest.mark.parametrize("change, message", [
    ({"extensionsRequired": ["KHR_draco_mesh_compression"]}, "packed .KHR_draco"),
    ({"extensionsRequired": ["EXT_meshopt_compression"]}, "packed .EXT_meshopt"),
    ({"buffers": [{"uri": "head.bin", "byteLength": 4}]}, "outside .head.bin"),
    ({"scenes": [{"nodes": []}]}, "has 0 of the 52 ARKit shapes"),
    ({"nodes": [{"mesh": 0, "children": [0]}]}, "node 0 has two parents"),
    ({"nodes": [{"mesh": 1}]}, "damaged"),
    ({"bufferViews": []}, "damaged"),
    ({"meshes": []}, "damaged"),
    ({"nodes": 3}, r"names nodes\[0\], which is not there"),
    ({"nodes": [[]]}, r"nodes\[0\] is a list of 0, expected an object"),
    ({"nodes": [{"mesh": -1}]}, r"nodes\[0\].mesh is -1, expected a whole number"),
    ({"nodes": [{"mesh": 0, "scale": [1, float("nan"), 1]}]}, r"scale\[1\] is nan, expected a finite number"),
    ({"nodes": [{"mesh": 0, "scale": [1, 1]}]}, "scale is a list of 2, expected a list of 3 to 3"),
    ({"nodes": [{"mesh": 0, "scale": [1e300] * 3}]}, "NaN or infinite numbers, or lengths above"),
    ({"nodes": [{"mesh": 0}] * 3000, "scenes": [{"nodes": [*range(3000)]}]}, "asks for more than 256 MiB"),
    ({"nodes": [{"mesh": 0, "skin": 0}], "skins": [{"joints": [0] * 500_000}]}, "asks for more than 256 MiB"),
    ({"nodes": [{"mesh": 0, "skin": 0}], "skins": [{"joints": [7]}]}, r"bones of skins\[0\] are not in the scene"),
])
def test_a_glb_we_cannot_read_says_why(tmp_path, change, message):
    scene, blob = a_glb(small_head())
    with pytest.raises(ValueError, match=message):
        load(tmp_path, scene | change, blob)


@pytest.mark.parametrize("number, change, message", [
    (0, {"count": -1}, r"accessors\[0\].count is -1, expected a whole number"),
    (0, {"count": 312.5}, "count is 312.5, expected a whole number"),
    (0, {"count": 313}, r"313 rows, each 12 bytes after the last, do not fit into bufferViews\[0\]"),
    (0, {"count": 1 << 31}, "asks for more than 256 MiB"),
    (0, {"type": "VEC2"}, "312 rows of VEC2, expected some of VEC3"),
    (0, {"componentType": True}, "componentType is True, expected one of"),
    (0, {"bufferView": 999}, r"names bufferViews\[999\]"),
    (2, {"count": 311}, "311 rows of VEC3, expected 312 of VEC3"),
    (2, {"sparse": {"count": 1 << 31, "indices": {"bufferView": 0}, "values": {"bufferView": 0}}}, "more than 256 MiB"),
    (2, {"sparse": {"count": 2, "indices": {"bufferView": 0, "componentType": 5125}, "values": {"bufferView": 0}}},
     "312 rows, its sparse part names others"),
    (-1, {"count": 7}, "7 indices uint16, expected whole numbers, three for each triangle"),
    (-1, {"bufferView": 0}, r"has 312 vertices, its triangles name \d+ to \d+")])
def test_an_accessor_that_the_file_does_not_hold_is_refused(tmp_path, number, change, message):
    scene, blob = a_glb(small_head())
    scene["accessors"][number] |= change
    with pytest.raises(ValueError, match=message):
        load(tmp_path, scene, blob)


def test_rows_without_bytes_count_together(tmp_path):
    """52 shapes of 400,000 zeros each: none alone is too many."""
    scene, blob = a_glb(small_head(), indices=None)
    for accessor in scene["accessors"]:
        del accessor["bufferView"]
        accessor["count"] = 400_000
    with pytest.raises(ValueError, match="asks for more than 256 MiB"):
        load(tmp_path, scene, blob)


@pytest.mark.parametrize("text, message", [
    (b'{"a":' * 100_000, "first part is not a json scene"), (b"[]", "first part is not a json scene"),
    (b'{"nodes":' + b" " * gltf.SCENE_BYTES + b"[]}", "json scene of 8 MiB, expected at most 8"),
    (b"", "no GLB"), (b'{"buffers":[1]}', r"buffers\[0\] is 1, expected an object")])
def test_a_json_scene_that_is_none_is_refused(tmp_path, text, message):
    (tmp_path / "head.glb").write_bytes(struct.pack("<4sIII4s", b"glTF", 2, 20 + len(text), len(text), b"JSON")[
        :20 if text else 12] + text)
    with pytest.raises(ValueError, match=message):
        template.load_template(tmp_path / "head.glb")


@pytest.mark.parametrize("ending", [".glb", ".npz"])
def test_a_device_a_directory_and_a_huge_file_are_refused(tmp_path, ending):
    path = tmp_path / ("head" + ending)
    for target, message in (("/dev/zero", "is a pipe or a device"), (tmp_path, "is a directory")):
        path.symlink_to(target)
        with pytest.raises(ValueError, match=message):
            template.load_template(path)
        path.unlink()
    with open(path, "wb") as file:
        file.truncate(template.FILE_BYTES + 1)      # no bytes on the disk
    with pytest.raises(ValueError, match="has 256 MiB, expected a head of at most 256: leave out"):
        template.load_template(path)


def test_a_damaged_glb_is_refused_or_read_but_never_crashes(tmp_path):
    path = tmp_path / "cut.glb"
    gltf.write_glb(path, small_head())
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for size in (0, 3, 11, 19, 20, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="no GLB|cut short"):
            template.read_glb(path)
    for _ in range(200):
        broken = bytearray(whole)
        for position in rng.integers(12, 2000, 3):
            broken[position] = rng.integers(32, 127)
        path.write_bytes(broken)
        try:
            template.read_glb(path)
        except ValueError:
            pass


@pytest.mark.parametrize("changes, message", [
    ({"bs_names": np.array(ARKIT_NAMES, dtype=object)}, "Python objects: save bs_names as"),
    ({"bs_names": np.array(ARKIT_NAMES[:51])}, r"blendshape \[52, \d+, 3\], bs_names \[51\]"),
    ({"bs_names": np.array(ARKIT_NAMES[:51] + ["x"]), "faces": small_head().faces + 5}, "faces name vertices 5 to"),
    ({"bs_names": np.array(["x"] + ARKIT_NAMES[1:])}, "lacks browDownLeft$"),
    ({"faces": small_head().faces[:, :2]}, r"faces \[576, 2\]: expected \[F, 3\]"),
    ({"faces": small_head().faces / 2}, "faces is float64, expected whole numbers"),
    ({"meanshape": small_head().vertices * (1, 0, 1)}, "expected a head"),
    ({"blendshape": small_head().deltas + small_head().vertices}, "whole heads, expected differences"),
    ({"blendshape": small_head().deltas * np.nan}, "NaN or infinite"),
    ({"blendshape": small_head().deltas * 0}, "mouthRollLower.* move nothing"),
])
def test_a_wrong_npz_says_what_is_wrong(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        template.load_template(save_npz(tmp_path / "head.npz", small_head(), **changes))


def header(shape, descr="<f4") -> bytes:
    """The beginning of an npy file that claims such an array."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
    return file.getvalue()


@pytest.mark.parametrize("name, data, message", [
    ("blendshape", header((10 ** 9, 312, 3)), "has 0 bytes, expected 3744000000000: it is damaged"),
    ("blendshape", header((-52, -312, 3)), "has 0 bytes"),
    ("blendshape", header((52, 312, 3), "|O"), "blendshape holds Python objects"),
    ("meanshape", b"\x93NUMPY\x01\x00" + b"cos\nsystem\n(S'touch hurt'\ntR.", "is no template"),
    ("meanshape", b"\x93NUMPY\x01\x00\x28\x23" + b"(" * 9000, "is no template"),
    ("meanshape", header((0, 3)), r"meanshape \[0, 3\].*: expected \[V, 3\]"),
    ("faces", header((0, 3), "<i4"), r"faces \[0, 3\]: expected")])
def test_an_array_that_an_npz_does_not_hold_is_refused_before_it_is_read(tmp_path, name, data, message):
    path = save_npz(tmp_path / "head.npz", small_head())
    with zipfile.ZipFile(path) as file:
        members = {member: file.read(member) for member in file.namelist()} | {name + ".npy": data}
    with zipfile.ZipFile(path, "w") as file:
        for member, content in members.items():
            file.writestr(member, content)
    with pytest.raises(ValueError, match=message):
        template.load_template(path)


def test_an_npz_of_zeros_that_unpacks_to_gigabytes_is_refused(monkeypatch, tmp_path):
    """By its headers alone: here the limit is lowered, not the file made large."""
    path = save_npz(tmp_path / "head.npz", small_head())
    monkeypatch.setattr(template, "FILE_BYTES", 300_000)
    monkeypatch.setattr(template, "read_npy", lambda *_: pytest.fail("read"))
    with pytest.raises(ValueError, match="52 shapes of 312 vertices, 0 MiB, expected at most"):
        template.load_template(path)


def test_a_file_that_is_no_template_is_refused(tmp_path):
    with pytest.raises(ValueError, match="ends in .npz .* or .glb"):
        template.load_template(tmp_path / "head.fbx")
    save_npz(tmp_path / "head.npz", small_head())
    data = (tmp_path / "head.npz").read_bytes()
    for size in (0, 10, len(data) // 2, len(data) - 8):
        (tmp_path / "head.npz").write_bytes(data[:size])
        with pytest.raises(ValueError, match="is no template"):
            template.load_template(tmp_path / "head.npz")
    np.save(tmp_path / "head.npy", small_head().vertices)
    (tmp_path / "head.npy").rename(tmp_path / "head.npz")
    with pytest.raises(ValueError, match="is no template"):
        template.load_template(tmp_path / "head.npz")
    np.savez(tmp_path / "head.npz", meanshape=small_head().vertices)
    with pytest.raises(ValueError, match="no blendshape, bs_names, faces in it, there is meanshape"):
        template.load_template(tmp_path / "head.npz")
