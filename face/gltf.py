"""The .glb format, glTF 2.0 in one binary file: the head with its 52 shapes and their animation written, scenes read.

    write_glb("answer.glb", make_head(), track)     # opens in Blender, in three.js, and where glTF is known
    scene, blob = open_glb("someone.glb")           # template.py makes a head of it

A GLB is a json scene and one block of numbers, in metres, +Y up, the face looking along +Z. The format has no sound:
keep the wav with the file. docs/spec/face.md 3.3.

T face frames, K = 52 shapes in the order of `arkit.ARKIT_NAMES`. Other letters: V vertices, F triangles, R rows of an
array of the file.
"""
import json
import struct
from pathlib import Path

import numpy as np

import disk
from face.arkit import ARKIT_NAMES, tidy
from face.head import Head
from face.render import normals

STILL = 1e-6                            # metres: a shape that moves a vertex less does not move it
UNTURNED = 0.02                         # change of a unit normal (1 degree) below which shading does not show it
PACKED = {"KHR_draco_mesh_compression", "EXT_meshopt_compression", "KHR_meshopt_compression", "EXT_mesh_gpu_instancing"}

MAGIC, JSON_CHUNK, BIN_CHUNK = 0x46546C67, 0x4E4F534A, 0x004E4942
DTYPES = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
CODES = {np.dtype(name): code for code, name in DTYPES.items()}
WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}
LARGEST = 1 << 22                           # rows of an accessor: a damaged file may ask for any number
VERTEX_DATA, INDEX_DATA = 34962, 34963      # what a bufferView is for


# Writing

def write_glb(path, head: Head, track=None, fps: int = 30) -> None:
    """Write `head` with its 52 morph targets, and `track` (T, K) as an animation with frame t at t / fps s.

    Targets are sparse: a shape stores only the vertices that it moves (positions) or turns (normals). Normals are
    stored for all 52, as few viewers compute them: without, an open jaw is lit like a closed one. Raises ValueError
    for a wrong track (`arkit.tidy`), before anything is written.
    """
    gltf = {"asset": {"version": "2.0", "generator": "nanoExOmni"}, "scene": 0, "scenes": [{"nodes": [0]}],
            "nodes": [{"name": "face", "mesh": 0}],     # without a name, three.js invents another each time
            "meshes": [], "accessors": [], "bufferViews": [],
            # Lids and neck are open sheets: both of their sides show.
            "materials": [{"name": "face", "doubleSided": True,
                           "pbrMetallicRoughness": {"metallicFactor": 0, "roughnessFactor": 0.6}}]}
    blob = bytearray()
    add_mesh(gltf, blob, head)
    if track is not None:
        add_animation(gltf, blob, track, fps)
    gltf["buffers"] = [{"byteLength": len(blob)}]
    text = json.dumps(gltf, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    with disk.replacing(path) as temporary:
        temporary.write_bytes(struct.pack("<III", MAGIC, 2, 12 + 8 + len(text) + 8 + len(blob))
                              + struct.pack("<II", len(text), JSON_CHUNK) + text
                              + struct.pack("<II", len(blob), BIN_CHUNK) + blob)


def add_mesh(gltf: dict, blob: bytearray, head: Head) -> None:
    """One mesh of one primitive: positions, normals, linear colours, triangles, and a target for each shape."""
    upright = normals(head.vertices, head.faces)
    index_type = "<u2" if len(head.vertices) <= 65535 else "<u4"    # 65535 as an index restarts a strip
    attributes = {"POSITION": add(gltf, blob, head.vertices, VERTEX_DATA, bounds=True),
                  "NORMAL": add(gltf, blob, upright, VERTEX_DATA),
                  "COLOR_0": add(gltf, blob, linear(head.colors), VERTEX_DATA)}
    targets = []
    for delta in head.deltas:
        turned = normals(head.vertices + delta, head.faces) - upright
        targets.append({"POSITION": add_sparse(gltf, blob, delta, STILL, bounds=True),
                        "NORMAL": add_sparse(gltf, blob, turned, UNTURNED)})
    gltf["meshes"].append({
        "name": "face", "weights": [0] * len(ARKIT_NAMES), "extras": {"targetNames": ARKIT_NAMES},
        "primitives": [{"attributes": attributes, "targets": targets, "material": 0,
                        "indices": add(gltf, blob, head.faces.reshape(-1).astype(index_type), INDEX_DATA)}]})


def add_animation(gltf: dict, blob: bytearray, track, fps: int) -> None:
    """All 52 weights of the first node over time, linear between frames. track (T, K)."""
    track = tidy(track)
    times = (np.arange(len(track)) / fps).astype(np.float32)
    sampler = {"input": add(gltf, blob, times, bounds=True), "output": add(gltf, blob, track.reshape(-1)),
               "interpolation": "LINEAR"}
    gltf["animations"] = [{"name": "speech", "samplers": [sampler],
                           "channels": [{"sampler": 0, "target": {"node": 0, "path": "weights"}}]}]


def add_view(gltf: dict, blob: bytearray, array, target=None) -> int:
    """Append an array to the block of numbers, aligned to 4 bytes. Returns the index of its bufferView."""
    data = np.ascontiguousarray(array).tobytes()
    gltf["bufferViews"].append({"buffer": 0, "byteOffset": len(blob), "byteLength": len(data)}
                               | ({"target": target} if target else {}))
    blob += data + b"\0" * (-len(data) % 4)
    return len(gltf["bufferViews"]) - 1


def add(gltf: dict, blob: bytearray, array, target=None, bounds: bool = False) -> int:
    """Append an array (R,) or (R, 3) with its accessor. Returns the accessor's index."""
    gltf["accessors"].append({"bufferView": add_view(gltf, blob, array, target), "count": len(array)}
                             | described(array) | (extremes(array) if bounds else {}))
    return len(gltf["accessors"]) - 1


def add_sparse(gltf: dict, blob: bytearray, delta, least: float, bounds: bool = False) -> int:
    """Append the rows of delta (V, 3) longer than `least`. Returns the index of an accessor that is zero elsewhere."""
    rows = np.flatnonzero(np.linalg.norm(delta, axis=1) > least)
    kept = np.zeros_like(delta)
    kept[rows] = delta[rows]
    accessor = {"count": len(delta)} | described(delta) | (extremes(kept) if bounds else {})
    if len(rows):
        index = rows.astype("<u2" if len(delta) <= 65536 else "<u4")
        accessor["sparse"] = {
            "count": len(rows), "values": {"bufferView": add_view(gltf, blob, delta[rows])},
            "indices": {"bufferView": add_view(gltf, blob, index), "componentType": CODES[index.dtype]}}
    gltf["accessors"].append(accessor)
    return len(gltf["accessors"]) - 1


def described(array) -> dict:
    return {"componentType": CODES[array.dtype], "type": "SCALAR" if array.ndim == 1 else f"VEC{array.shape[1]}"}


def extremes(array) -> dict:
    return {"min": np.atleast_1d(array.min(0)).tolist(), "max": np.atleast_1d(array.max(0)).tolist()}


def linear(srgb) -> np.ndarray:
    """Colours in sRGB, as screens take them -> proportional to light, as glTF stores them."""
    srgb = np.asarray(srgb, np.float32)
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4).astype(np.float32)


def screen(light) -> np.ndarray:
    """The inverse of `linear`."""
    light = np.clip(light, 0, 1)
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055).astype(np.float32)


# Reading

def open_glb(path) -> tuple[dict, memoryview]:
    """The json scene and the block of numbers of a GLB.

    Raises ValueError where the file is not one, is damaged, is compressed, or keeps numbers in other files.
    """
    data = memoryview(Path(path).read_bytes())
    if len(data) < 20 or struct.unpack_from("<II", data) != (MAGIC, 2):
        raise ValueError(f"{path} is no GLB (glTF 2.0 in one binary file): export it as that")
    total, = struct.unpack_from("<I", data, 8)
    chunks, offset = {}, 12
    while offset + 8 <= total <= len(data):
        size, kind = struct.unpack_from("<II", data, offset)
        chunks.setdefault(kind, data[offset + 8:offset + 8 + size])
        offset += 8 + size
    if offset != total:
        raise ValueError(f"{path} is cut short or damaged: {len(data)} bytes, its header says {total}")
    try:
        gltf = json.loads(bytes(chunks[JSON_CHUNK]))
        packed = PACKED & set(gltf.get("extensionsRequired", []))
        outside = [buffer["uri"] for buffer in gltf.get("buffers", []) if "uri" in buffer]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError(f"{path} is damaged: its first part is not a json scene") from None
    if packed:
        raise ValueError(f"{path} is packed ({', '.join(sorted(packed))}), which is not read here: export it without "
                         "mesh compression or instancing")
    if outside:
        raise ValueError(f"{path} keeps numbers outside ({str(outside[0])[:40]}): export it as one file")
    return gltf, chunks.get(BIN_CHUNK, memoryview(b""))


def read_accessor(gltf: dict, blob, index: int, expected: int | None = None) -> np.ndarray:
    """Accessor -> array (R,) or (R, width): whole numbers as stored, normalised ones and floats as float32.

    Raises ValueError where it has another number of rows than `expected`, or more than any head would.
    """
    accessor = gltf["accessors"][index]
    width, count = WIDTHS[accessor["type"]], accessor["count"]
    if expected is not None and count != expected or count > LARGEST:
        raise ValueError(f"accessor {index} has {count} rows, expected {expected or f'at most {LARGEST}'}")
    if "bufferView" in accessor:
        array = read_view(gltf, blob, accessor, count, width)
    else:
        array = np.zeros((count, width), DTYPES[accessor["componentType"]])
    if "sparse" in accessor:
        sparse, array = accessor["sparse"], array.copy()
        rows = read_view(gltf, blob, sparse["indices"], sparse["count"], 1)[:, 0]
        array[rows] = read_view(gltf, blob, sparse["values"] | {"componentType": accessor["componentType"]},
                             sparse["count"], width)
    if accessor.get("normalized"):
        array = np.maximum(array / np.float32(np.iinfo(array.dtype).max), -1)
    return array[:, 0] if width == 1 else array


def read_view(gltf: dict, blob, where: dict, count: int, width: int) -> np.ndarray:
    """The numbers (count, width) that an accessor or a part of a sparse one points to; rows may have gaps between."""
    view = gltf["bufferViews"][where["bufferView"]]
    if view["buffer"] != 0:
        raise ValueError(f"bufferView {where['bufferView']} lies in buffer {view['buffer']}: export it as one file")
    begin, dtype = view.get("byteOffset", 0), np.dtype(DTYPES[where["componentType"]])
    strides = view.get("byteStride", width * dtype.itemsize), dtype.itemsize
    block = blob[begin:begin + view["byteLength"]]
    return np.ndarray((count, width), dtype, block, where.get("byteOffset", 0), strides)


def scene_meshes(gltf: dict, blob):
    """Yield (mesh, matrices) of the scene: its node's matrix to the scene's coordinates (1, 4, 4).

    A mesh with a skin has one matrix per bone, of the skeleton at rest. Raises ValueError where a node has two parents.
    """
    nodes = gltf.get("nodes", [])
    children = {child for node in nodes for child in node.get("children", [])}
    scenes = gltf.get("scenes") or [{"nodes": sorted(set(range(len(nodes))) - children)}]
    world, todo = {}, [(index, np.eye(4)) for index in scenes[gltf.get("scene", 0)].get("nodes", [])]
    while todo:
        index, parent = todo.pop()
        if index in world:
            raise ValueError(f"node {index} has two parents: export it again")
        world[index] = parent @ local_matrix(nodes[index])
        todo += [(child, world[index]) for child in nodes[index].get("children", [])]
    for index in sorted(world):
        node = nodes[index]
        if "mesh" not in node:
            continue
        matrices = world[index][None]
        if "skin" in node:      # then the node's own matrix does not count, only those of the bones
            skin = gltf["skins"][node["skin"]]
            matrices = np.stack([world[joint] for joint in skin["joints"]])
            if "inverseBindMatrices" in skin:
                unbound = read_accessor(gltf, blob, skin["inverseBindMatrices"]).reshape(-1, 4, 4)
                matrices = matrices @ unbound[:len(matrices)].swapaxes(1, 2)
        yield gltf["meshes"][node["mesh"]], matrices


def local_matrix(node: dict) -> np.ndarray:
    """A node's own matrix (4, 4): stored as such, column by column, or as scale, then rotation, then translation."""
    if "matrix" in node:
        return np.reshape(node["matrix"], (4, 4)).T
    x, y, z, w = node.get("rotation", (0, 0, 0, 1))
    matrix = np.eye(4)
    matrix[:3, :3] = np.multiply([[1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
                                  [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
                                  [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)]],
                                 node.get("scale", (1, 1, 1)))
    matrix[:3, 3] = node.get("translation", (0, 0, 0))
    return matrix
