"""The .glb format, glTF 2.0 in one binary file: writes the head with its 52 shapes and their animation, reads scenes.

    write_glb("answer.glb", make_head(), track)     # opens in Blender, three.js and other glTF programs
    glb = open_glb("someone.glb")                   # template.py makes a head of it

A GLB is a json scene and a binary block of numbers. Lengths are metres, +Y up, the face looks along +Z. The format has
no sound: keep the wav with the file. docs/spec/face.md 3.3.

T face frames, K = 52 shapes in the order of `arkit.ARKIT_NAMES`. Other letters: V vertices, F triangles, R rows of an
array of the file.
"""
import json
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import numpy as np

import disk
from face.arkit import ARKIT_NAMES, tidy
from face.head import Head
from face.render import normals

STILL = 1e-6                            # metres: smaller moves of a vertex are left out
UNTURNED = 0.02                         # smaller changes of a unit normal (1 degree) are left out: shading hides them
PACKED = {"KHR_draco_mesh_compression", "EXT_meshopt_compression", "KHR_meshopt_compression", "EXT_mesh_gpu_instancing"}

MAGIC, JSON_CHUNK, BIN_CHUNK = 0x46546C67, 0x4E4F534A, 0x004E4942
DTYPES = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
CODES = {np.dtype(name): code for code, name in DTYPES.items()}
WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}
SCENE_BYTES = 8 << 20                       # largest json scene
ROOM = 256 << 20                            # largest head in memory, in bytes: 200,000 vertices with 52 shapes
VERTEX_DATA, INDEX_DATA = 34962, 34963      # targets of a bufferView


# Writing

def write_glb(path, head: Head, track=None, fps: int = 30) -> None:
    """Write `head` with its 52 morph targets, and `track` (T, K) as an animation with frame t at t / fps s.

    Targets are sparse: a shape stores only the vertices that it moves, and the normals that it turns. Few viewers
    compute normals of morph targets; without them an open jaw would be lit like a closed one. Raises ValueError for an
    invalid track (`arkit.tidy`), before anything is written.
    """
    gltf = {"asset": {"version": "2.0", "generator": "nanoExOmni"}, "scene": 0, "scenes": [{"nodes": [0]}],
            "nodes": [{"name": "face", "mesh": 0}],     # without a name, three.js makes up a new one each time
            "meshes": [], "accessors": [], "bufferViews": [],
            # Lids and neck are open sheets, visible from both sides.
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
    """Add a mesh with one primitive: positions, normals, linear colours, triangles, and a target per shape."""
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
    """Add an animation of the first node's 52 weights, linear between frames. track (T, K)."""
    track = tidy(track)
    times = (np.arange(len(track)) / fps).astype(np.float32)
    sampler = {"input": add(gltf, blob, times, bounds=True), "output": add(gltf, blob, track.reshape(-1)),
               "interpolation": "LINEAR"}
    gltf["animations"] = [{"name": "speech", "samplers": [sampler],
                           "channels": [{"sampler": 0, "target": {"node": 0, "path": "weights"}}]}]


def add_view(gltf: dict, blob: bytearray, array, target=None) -> int:
    """Append an array to the binary block, aligned to 4 bytes. Returns the index of its bufferView."""
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
    """sRGB colours, as screens use them -> linear ones, as glTF stores them."""
    srgb = np.asarray(srgb, np.float32)
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4).astype(np.float32)


def screen(light) -> np.ndarray:
    """The inverse of `linear`."""
    light = np.clip(light, 0, 1)
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055).astype(np.float32)


# Reading

Count = Annotated[int, 0, 1 << 31]          # of rows or bytes


@dataclass
class Span:
    """Where the numbers of a sparse accessor lie. For `values` the accessor's own componentType holds."""
    bufferView: Count
    byteOffset: Count = 0
    componentType: Literal[tuple(DTYPES)] = 5126


@dataclass
class Sparse:
    count: Count
    indices: Span
    values: Span


@dataclass
class Accessor:
    componentType: Literal[tuple(DTYPES)]
    type: Literal[tuple(WIDTHS)]
    count: Count
    bufferView: Count | None = None         # None: zeros
    byteOffset: Count = 0
    normalized: bool = False
    sparse: Sparse | None = None


@dataclass
class BufferView:
    buffer: Count
    byteLength: Count
    byteOffset: Count = 0
    byteStride: Annotated[int, 1, 1 << 16] | None = None


@dataclass
class Node:
    mesh: Count | None = None
    skin: Count | None = None
    children: list[Count] = field(default_factory=list)
    matrix: Annotated[list[float], 16, 16] | None = None
    rotation: Annotated[list[float], 4, 4] = (0, 0, 0, 1)
    scale: Annotated[list[float], 3, 3] = (1, 1, 1)
    translation: Annotated[list[float], 3, 3] = (0, 0, 0)


@dataclass
class Skin:
    joints: list[Count]
    inverseBindMatrices: Count | None = None


@dataclass
class Scene:
    nodes: list[Count] = field(default_factory=list)


@dataclass
class Glb:
    """A file that was read."""
    path: object
    scene: dict             # its json
    blob: memoryview        # its binary block
    room: int = ROOM        # bytes that reading may still take

    def entry(self, kind: str, index: int, cls):
        """Entry `index` of the scene's list `kind` as a `cls`. Raises ValueError if it is missing or damaged."""
        entries = self.listed(kind)
        if index >= len(entries):
            raise ValueError(f"{self.path} is damaged: it names {kind}[{index}], which is not there: export it again")
        entry = entries[index]
        lists = [value for value in entry.values() if isinstance(value, list)] if isinstance(entry, dict) else []
        self.spend(8192 + 1024 * sum(map(len, lists)))      # an overestimate: it also limits the time for checking
        return disk.converted(entry, cls, self.path, f"{kind}[{index}]")

    def listed(self, kind: str) -> list:
        return self.scene[kind] if isinstance(self.scene.get(kind), list) else []

    def spend(self, size: int) -> None:
        """Reserve `size` bytes before reading them. Raises ValueError if the file needs more than ROOM in all."""
        self.room -= size
        if self.room < 0:
            raise ValueError(f"{self.path} asks for more than {ROOM >> 20} MiB, expected a head of at most 200,000 "
                             "vertices or so: decimate it, or leave out the body")


def open_glb(path) -> Glb:
    """Read a GLB. Raises ValueError if the file is none, is damaged, is compressed, or keeps numbers in other files."""
    data = memoryview(Path(path).read_bytes())
    if len(data) < 20 or struct.unpack_from("<II", data) != (MAGIC, 2):
        raise ValueError(f"{path} is no GLB (glTF 2.0 in one binary file): export it as that")
    total, size, kind = struct.unpack_from("<III", data, 8)
    end, blob = 20 + size, memoryview(b"")
    if end + 8 <= total <= len(data):
        length, bin_kind = struct.unpack_from("<II", data, end)
        blob = data[end + 8:end + 8 + length] if bin_kind == BIN_CHUNK else blob
        end += 8 + length
    if not end <= total <= len(data):
        raise ValueError(f"{path} is cut short or damaged: {len(data)} bytes, its header says {total}, its parts {end}")
    if size > SCENE_BYTES:
        raise ValueError(f"{path} has a json scene of {size >> 20} MiB, expected at most {SCENE_BYTES >> 20}")
    try:
        scene = json.loads(bytes(data[20:20 + size])) if kind == JSON_CHUNK else None
    except (ValueError, RecursionError):
        scene = None
    if not isinstance(scene, dict):
        raise ValueError(f"{path} is damaged: its first part is not a json scene")
    packed = PACKED & set(disk.typed(scene, "extensionsRequired", list[str], path, []))
    if packed:
        raise ValueError(f"{path} is packed ({', '.join(sorted(packed))}), which is not read here: export it without "
                         "mesh compression or instancing")
    outside = [buffer["uri"] for buffer in disk.typed(scene, "buffers", list[dict], path, []) if "uri" in buffer]
    if outside:
        raise ValueError(f"{path} keeps numbers outside ({str(outside[0])[:40]}): export it as one file")
    return Glb(path, scene, blob)


def read_accessor(glb: Glb, index: int, types: tuple, rows: int | None = None) -> np.ndarray:
    """Accessor -> array (R,) or (R, width): integers as stored, normalised ones and floats as float32.

    types: allowed types, keys of WIDTHS. rows: the required number of rows, if the caller knows it; then it must have
    called `spend` for them. Raises ValueError for another type or number, or if the numbers are not in the file.
    """
    accessor = glb.entry("accessors", index, Accessor)
    width, count, dtype = WIDTHS[accessor.type], accessor.count, np.dtype(DTYPES[accessor.componentType])
    if accessor.type not in types or rows not in (None, count):
        raise ValueError(f"{glb.path}: accessors[{index}] has {count} rows of {accessor.type}, expected "
                         f"{'some' if rows is None else rows} of {' or '.join(types)}")
    glb.spend(4 * count * width if rows is None else 0)
    array = (np.zeros((count, width), dtype) if accessor.bufferView is None
             else read_view(glb, accessor.bufferView, accessor.byteOffset, (count, width), dtype))
    if accessor.sparse:
        some, where, what = accessor.sparse.count, accessor.sparse.indices, accessor.sparse.values
        glb.spend(8 * some * width)
        index_type = np.dtype(DTYPES[where.componentType])
        moved = read_view(glb, where.bufferView, where.byteOffset, (some, 1), index_type)[:, 0]
        if index_type.kind != "u" or moved.max(initial=0) >= max(count, 1):
            raise ValueError(f"{glb.path}: accessors[{index}] has {count} rows, its sparse part names others")
        array = array.copy()
        array[moved] = read_view(glb, what.bufferView, what.byteOffset, (some, width), dtype)
    if accessor.normalized and dtype.kind != "f":
        array = np.maximum(array / np.float32(np.iinfo(dtype).max), -1)
    return array[:, 0] if width == 1 else array


def read_view(glb: Glb, index: int, offset: int, shape: tuple, dtype) -> np.ndarray:
    """The numbers at `offset` of a bufferView as an array of `shape` (R, width); there may be gaps between rows. Raises
    ValueError if the file does not have them."""
    view = glb.entry("bufferViews", index, BufferView)
    if view.buffer != 0:
        raise ValueError(f"{glb.path}: bufferViews[{index}] lies in buffer {view.buffer}: export it as one file")
    row = shape[1] * dtype.itemsize
    stride = view.byteStride or row
    needed = offset + (shape[0] - 1) * stride + row if shape[0] else 0
    if stride < row or needed > view.byteLength or view.byteOffset + view.byteLength > len(glb.blob):
        raise ValueError(f"{glb.path} is damaged: {shape[0]} rows, each {stride} bytes after the last, do not fit into "
                         f"bufferViews[{index}], or that not into the file: export it again")
    return np.ndarray(shape, dtype, glb.blob, view.byteOffset + offset if shape[0] else 0, (stride, dtype.itemsize))


def scene_meshes(glb: Glb):
    """Yield (index, matrices) of each mesh in the scene; matrices (1, 4, 4) map the mesh to scene coordinates.

    A mesh with a skin has one matrix per bone, for the skeleton at rest. Raises ValueError if a node has two parents.
    """
    world, nodes = {}, {}
    todo = [(index, np.eye(4)) for index in roots(glb)]
    while todo:
        index, parent = todo.pop()
        if index in world:
            raise ValueError(f"{glb.path}: node {index} has two parents: export it again")
        nodes[index] = glb.entry("nodes", index, Node)
        world[index] = parent @ local_matrix(nodes[index])
        todo += [(child, world[index]) for child in nodes[index].children]
    for index, node in sorted(nodes.items()):
        if node.mesh is not None:       # with a skin only the matrices of the bones count, not the node's
            yield node.mesh, world[index][None] if node.skin is None else bones(glb, node.skin, world)


def roots(glb: Glb) -> list:
    """Indices of the nodes at the top of the scene."""
    if glb.scene.get("scenes"):
        return glb.entry("scenes", disk.typed(glb.scene, "scene", Count, glb.path, 0), Scene).nodes
    count = len(glb.listed("nodes"))
    children = {child for index in range(count) for child in glb.entry("nodes", index, Node).children}
    return sorted(set(range(count)) - children)


def bones(glb: Glb, index: int, world: dict) -> np.ndarray:
    """The matrix of each bone of a skin (J, 4, 4), for the skeleton at rest. world: {index of a node: its matrix}."""
    skin = glb.entry("skins", index, Skin)
    if not skin.joints or not world.keys() >= set(skin.joints):
        raise ValueError(f"{glb.path} is damaged: the bones of skins[{index}] are not in the scene: export it again")
    glb.spend(512 * len(skin.joints))
    matrices = np.stack([world[joint] for joint in skin.joints])
    if skin.inverseBindMatrices is None:
        return matrices
    unbound = read_accessor(glb, skin.inverseBindMatrices, ("MAT4",)).reshape(-1, 4, 4)
    if len(unbound) < len(matrices):
        raise ValueError(f"{glb.path}: skins[{index}] has {len(matrices)} bones and {len(unbound)} matrices for them")
    return matrices @ unbound[:len(matrices)].swapaxes(1, 2)


def local_matrix(node: Node) -> np.ndarray:
    """A node's matrix (4, 4) relative to its parent, from a stored matrix or from scale, rotation and translation."""
    if node.matrix is not None:
        return np.reshape(node.matrix, (4, 4)).T
    x, y, z, w = node.rotation
    matrix = np.eye(4)
    matrix[:3, :3] = np.multiply([[1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
                                  [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
                                  [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)]], node.scale)
    matrix[:3, 3] = node.translation
    return matrix
