"""Heads as files: a GLB with the 52 shapes and their animation (written, read), and the EmoTalk npz template (read).

    write_glb("answer.glb", make_head(), track)     # opens in Blender, in three.js, and where glTF is known
    head = load_template("someone.glb")             # any head whose morph targets carry ARKit names

glTF 2.0, written by hand: a json scene and one block of numbers, in metres, +Y up, the face looking along +Z. Sound
does not fit in: keep the wav beside the file. Spec face 3.3 (GLB) and 5.1 (templates).
Shapes: V vertices, T triangles, K = 52 shapes in the order of `arkit.ARKIT_NAMES`, F frames.
"""
import json
import re
import struct
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np

import weights
from face.arkit import ARKIT_NAMES, match, tidy
from face.head import Head
from face.render import normals

HEIGHT = 0.24                           # metres: what a head without a unit is scaled to
SKIN = (0.80, 0.63, 0.54)               # sRGB, for templates without colours of their own
STILL = 1e-6                            # metres: what a shape moves less than that, it does not move
UNTURNED = 0.02                         # change of a unit normal (1 degree) below which shading does not show it
SPLIT = ("browInnerUp", "cheekPuff")    # ARKit has one shape for both sides, many rigs have one for each ...
SIDE = re.compile("_?(l|r|left|right)$", re.IGNORECASE)     # ... whose name ends so
LANDMARKS = ("mouthRollLower", "mouthRollUpper", "mouthSmileLeft", "mouthSmileRight", "eyeBlinkLeft", "eyeBlinkRight")
PACKED = {"KHR_draco_mesh_compression", "EXT_meshopt_compression", "KHR_meshopt_compression", "EXT_mesh_gpu_instancing"}

MAGIC, JSON_CHUNK, BIN_CHUNK = 0x46546C67, 0x4E4F534A, 0x004E4942
DTYPES = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
CODES = {np.dtype(name): code for code, name in DTYPES.items()}
WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}
LARGEST = 1 << 22                           # rows of an accessor: a damaged file may ask for any number
VERTEX_DATA, INDEX_DATA = 34962, 34963      # what a bufferView is for


# Writing

def write_glb(path, head: Head, track=None, fps: int = 30) -> None:
    """Write `head` with its 52 morph targets, and `track` (F, 52) as an animation with frame t at t / fps s.

    Targets are sparse: a shape stores the vertices that it moves (positions) or turns (normals), the others cost
    nothing. Normals are stored for all 52, as few viewers derive them: without, an open jaw is lit like a closed one.
    Raises ValueError where the track is none (`arkit.tidy`), before anything is written.
    """
    gltf = {"asset": {"version": "2.0", "generator": "nanoExOmni"}, "scene": 0, "scenes": [{"nodes": [0]}],
            "nodes": [{"name": "face", "mesh": 0}],     # without a name, three.js makes up another each time
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
    with weights.replacing(path) as temporary:
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
    """All 52 weights of the first node over time, linear in between."""
    track = tidy(track)
    times = (np.arange(len(track)) / fps).astype(np.float32)
    sampler = {"input": add(gltf, blob, times, bounds=True), "output": add(gltf, blob, track.reshape(-1)),
               "interpolation": "LINEAR"}
    gltf["animations"] = [{"name": "speech", "samplers": [sampler],
                           "channels": [{"sampler": 0, "target": {"node": 0, "path": "weights"}}]}]


def add_view(gltf: dict, blob: bytearray, array, target=None) -> int:
    """Append an array to the block of numbers, aligned to 4 bytes; the index of its bufferView."""
    data = np.ascontiguousarray(array).tobytes()
    gltf["bufferViews"].append({"buffer": 0, "byteOffset": len(blob), "byteLength": len(data)}
                               | ({"target": target} if target else {}))
    blob += data + b"\0" * (-len(data) % 4)
    return len(gltf["bufferViews"]) - 1


def add(gltf: dict, blob: bytearray, array, target=None, bounds: bool = False) -> int:
    """Append an array (n,) or (n, 3) with its accessor; the index of that."""
    gltf["accessors"].append({"bufferView": add_view(gltf, blob, array, target), "count": len(array)}
                             | described(array) | (extremes(array) if bounds else {}))
    return len(gltf["accessors"]) - 1


def add_sparse(gltf: dict, blob: bytearray, delta, least: float, bounds: bool = False) -> int:
    """Append the rows of delta (V, 3) that are longer than `least`; the index of an accessor that is zero elsewhere."""
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
    """Colours as a screen takes them -> proportional to light, which is what glTF stores."""
    srgb = np.asarray(srgb, np.float32)
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4).astype(np.float32)


def screen(light) -> np.ndarray:
    """The inverse of `linear`."""
    light = np.clip(light, 0, 1)
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055).astype(np.float32)


# Reading

def load_template(path) -> Head:
    """Another head, from a .npz or a .glb file. Raises ValueError where it is neither, and as its reader does."""
    readers = {".npz": read_npz, ".glb": read_glb}
    if Path(path).suffix.lower() not in readers:
        raise ValueError(f"{path}: a template ends in .npz (meanshape, faces, blendshape, bs_names) or .glb (morph "
                         "targets with ARKit names)")
    return readers[Path(path).suffix.lower()](path)


def read_glb(path) -> Head:
    """The head in a GLB: every mesh of its scene in one, as the nodes and the skeleton at rest place it.

    Lengths are taken as metres, as the format has them. Colours are COLOR_0 times the material's; a picture wrapped
    around the head is not read, such parts are skin coloured. Raises ValueError where the file is damaged, compressed,
    spread over several files, or lacks shapes (see `joined`).
    """
    gltf, blob = open_glb(path)
    try:
        parts = [part for mesh, placed in meshes(gltf, blob) for part in primitives(gltf, blob, mesh, placed)]
    except (KeyError, IndexError, TypeError, AttributeError, OverflowError, MemoryError) as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__}: {error}): export it again") from None
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    return joined(parts, path)


def read_npz(path) -> Head:
    """The head in an npz {meanshape (V, 3), faces (T, 3 or 4), blendshape (S, V, 3), bs_names (S,)}: EmoTalk's layout.

    blendshape holds differences to meanshape; faces count from 1 where none names vertex 0, as the release's reader
    has it. The file has no unit: the head is scaled to 0.24 m from its lowest to its highest point and centred.
    Raises ValueError where the file is damaged, holds pickled objects, disagrees with itself or lacks shapes.
    """
    mean, faces, shapes, names = open_npz(path)
    if (mean.ndim, mean.shape[-1:]) != (2, (3,)) or shapes.shape != (len(names), *mean.shape):
        raise ValueError(f"{path}: meanshape {list(mean.shape)}, blendshape {list(shapes.shape)}, {len(names)} bs_names"
                         ": expected [V, 3], [S, V, 3] and S names")
    if faces.ndim != 2 or faces.shape[1] not in (3, 4) or not len(faces) or faces.dtype.kind not in "iu":
        raise ValueError(f"{path}: faces {list(faces.shape)} {faces.dtype}: expected whole numbers [T, 3] or [T, 4]")
    faces = faces.astype(np.int64) - (faces.min() == 1)
    if faces.shape[1] == 4:
        faces = np.concatenate([faces[:, [0, 1, 2]], faces[:, [0, 2, 3]]])
    if faces.min() < 0 or faces.max() >= len(mean):
        raise ValueError(f"{path}: faces name vertices {faces.min()} to {faces.max()}, there are {len(mean)}")
    low, high = mean.min(0), mean.max(0)
    if not high[1] > low[1]:
        raise ValueError(f"{path}: meanshape spans {low[1]} to {high[1]} in y: expected a head, +Y up")
    if np.median(np.abs(shapes - mean)) < 0.01 * (high[1] - low[1]):
        raise ValueError(f"{path}: blendshape holds whole heads, expected differences: subtract meanshape from each")
    scale = HEIGHT / (high[1] - low[1])
    moves = {k: shapes[members].sum(0) * scale for k, members in shape_indices(names).items()}
    return joined([((mean - (low + high) / 2) * scale, faces, np.broadcast_to(SKIN, mean.shape), moves)], path)


def open_npz(path) -> tuple:
    """(meanshape, faces, blendshape, list of names) as they stand in the file."""
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = {"meanshape", "faces", "blendshape", "bs_names"} - set(file.files)
            if missing:
                raise ValueError(f"no {', '.join(sorted(missing))} in it, there is {weights.few(file.files)}")
            mean, shapes = (np.asarray(file[name], np.float64) for name in ("meanshape", "blendshape"))
            names = [name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)
                     for name in file["bs_names"].tolist()]
            return mean, np.asarray(file["faces"]), shapes, names
    except (ValueError, TypeError, AttributeError, EOFError, MemoryError, RuntimeError,     # what numpy and zipfile say
            zipfile.BadZipFile, zlib.error) as error:
        why = ("it holds Python objects: save bs_names as np.array(names, dtype=str)" if "Object arrays" in str(error)
               else "not an npz file, or cut short" if "pickle" in str(error) else error)
        raise ValueError(f"{path} is no template ({why})") from None


def open_glb(path) -> tuple[dict, memoryview]:
    """The json scene and the block of numbers of a GLB. Raises ValueError where it is none, or one we cannot read."""
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


def read(gltf: dict, blob, index: int, expected: int | None = None) -> np.ndarray:
    """Accessor -> array (n,) or (n, width): whole numbers as stored, normalised ones and floats as float32.

    Raises ValueError where it has another number of rows than expected, or more than any head would.
    """
    accessor = gltf["accessors"][index]
    width, count = WIDTHS[accessor["type"]], accessor["count"]
    if expected is not None and count != expected or count > LARGEST:
        raise ValueError(f"accessor {index} has {count} rows, expected {expected or f'at most {LARGEST}'}")
    if "bufferView" in accessor:
        array = stored(gltf, blob, accessor, count, width)
    else:
        array = np.zeros((count, width), DTYPES[accessor["componentType"]])
    if "sparse" in accessor:
        sparse, array = accessor["sparse"], array.copy()
        rows = stored(gltf, blob, sparse["indices"], sparse["count"], 1)[:, 0]
        array[rows] = stored(gltf, blob, sparse["values"] | {"componentType": accessor["componentType"]},
                             sparse["count"], width)
    if accessor.get("normalized"):
        array = np.maximum(array / np.float32(np.iinfo(array.dtype).max), -1)
    return array[:, 0] if width == 1 else array


def stored(gltf: dict, blob, where: dict, count: int, width: int) -> np.ndarray:
    """The numbers (count, width) that an accessor or a part of a sparse one points to; rows may lie apart."""
    view = gltf["bufferViews"][where["bufferView"]]
    if view["buffer"] != 0:
        raise ValueError(f"bufferView {where['bufferView']} lies in buffer {view['buffer']}: export it as one file")
    begin, dtype = view.get("byteOffset", 0), np.dtype(DTYPES[where["componentType"]])
    strides = view.get("byteStride", width * dtype.itemsize), dtype.itemsize
    block = blob[begin:begin + view["byteLength"]]
    return np.ndarray((count, width), dtype, block, where.get("byteOffset", 0), strides)


def meshes(gltf: dict, blob):
    """Yield (mesh, matrices) of the scene: (1, 4, 4), which places the mesh, or one per bone where it has a skin."""
    nodes = gltf.get("nodes", [])
    children = {child for node in nodes for child in node.get("children", [])}
    scenes = gltf.get("scenes") or [{"nodes": sorted(set(range(len(nodes))) - children)}]
    world, todo = {}, [(index, np.eye(4)) for index in scenes[gltf.get("scene", 0)].get("nodes", [])]
    while todo:
        index, parent = todo.pop()
        if index in world:
            raise ValueError(f"node {index} hangs in two places: export it again")
        world[index] = parent @ local(nodes[index])
        todo += [(child, world[index]) for child in nodes[index].get("children", [])]
    for index in sorted(world):
        node = nodes[index]
        if "mesh" not in node:
            continue
        matrices = world[index][None]
        if "skin" in node:      # the bones place a mesh with a skin, its own node does not
            skin = gltf["skins"][node["skin"]]
            matrices = np.stack([world[joint] for joint in skin["joints"]])
            if "inverseBindMatrices" in skin:
                unbound = read(gltf, blob, skin["inverseBindMatrices"]).reshape(-1, 4, 4)
                matrices = matrices @ unbound[:len(matrices)].swapaxes(1, 2)
        yield gltf["meshes"][node["mesh"]], matrices


def local(node: dict) -> np.ndarray:
    """A node's own 4 x 4 matrix: given as such, column by column, or as scale, then rotation, then translation."""
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


def primitives(gltf: dict, blob, mesh: dict, matrices):
    """Yield (vertices (V, 3), faces (T, 3), colors (V, 3), {index of the shape: delta (V, 3)}) of a placed mesh."""
    for primitive in mesh["primitives"]:
        if primitive.get("mode", 4) != 4:
            raise ValueError(f"mesh {mesh.get('name')} is drawn in mode {primitive['mode']}, not as triangles (4)")
        attributes, targets = primitive["attributes"], primitive.get("targets", [])
        vertices = read(gltf, blob, attributes["POSITION"]).astype(np.float32)
        faces = read(gltf, blob, primitive["indices"]) if "indices" in primitive else np.arange(len(vertices))
        faces = faces.astype(np.int64).reshape(-1, 3)
        if len(faces) and faces.max() >= len(vertices):
            raise ValueError(f"mesh {mesh.get('name')} has {len(vertices)} vertices, a triangle names {faces.max()}")
        if "JOINTS_0" in attributes and "WEIGHTS_0" in attributes and len(matrices) > 1:
            shares = read(gltf, blob, attributes["WEIGHTS_0"], len(vertices)).astype(np.float64)
            shares /= np.maximum(shares.sum(1, keepdims=True), 1e-9)
            bones = matrices[read(gltf, blob, attributes["JOINTS_0"], len(vertices))]
            placed = np.einsum("vj,vjab->vab", shares, bones)
        else:
            placed = matrices[:1]
        turn = placed[:, :3, :3]
        if np.linalg.det(turn[0]) < 0:      # mirrored: the outside would become the inside
            faces = faces[:, ::-1]
        names = [(owner.get("extras") or {}).get("targetNames") for owner in (primitive, mesh)]
        moves = {}
        for shape, members in shape_indices(names[0] or names[1] or []).items():
            accessors = [targets[i]["POSITION"] for i in members if "POSITION" in targets[i]]
            deltas = [read(gltf, blob, accessor, len(vertices)) for accessor in accessors]
            moves[shape] = moved(turn, sum(deltas, np.zeros_like(vertices)))
        yield moved(turn, vertices) + placed[:, :3, 3], faces, surface(gltf, blob, primitive, len(vertices)), moves


def moved(turn, vectors) -> np.ndarray:
    """turn (1 or V, 3, 3) applied to each of vectors (V, 3)."""
    return (turn @ vectors[..., None])[..., 0]


def surface(gltf: dict, blob, primitive: dict, count: int) -> np.ndarray:
    """Colours (V, 3), sRGB: of the vertices and the material, or skin where a picture would be wrapped around."""
    material = gltf["materials"][primitive["material"]] if "material" in primitive else {}
    paint = material.get("pbrMetallicRoughness", {})
    if "COLOR_0" in primitive["attributes"]:
        light = read(gltf, blob, primitive["attributes"]["COLOR_0"], count)[:, :3]
        return screen(light * paint.get("baseColorFactor", np.ones(4))[:3])
    if "baseColorFactor" not in paint or "baseColorTexture" in paint:
        return np.broadcast_to(SKIN, (count, 3))
    return np.broadcast_to(screen(np.array(paint["baseColorFactor"][:3])), (count, 3))


def shape_indices(names) -> dict[int, list]:
    """Which of the shapes called `names` make up each ARKit shape: {its index: [index in names, ...]}.

    One each, but for browInnerUp and cheekPuff, which may come as two halves to be added (spec face 5.1).
    """
    found = {}
    for i, name in enumerate(names):
        if match(name):
            found.setdefault(ARKIT_NAMES.index(match(name)), [i])
    for shape in SPLIT:
        halves = [i for i, name in enumerate(names) if match(SIDE.sub("", name)) == shape]
        if halves:
            found.setdefault(ARKIT_NAMES.index(shape), halves)
    return found


def joined(parts: list, path) -> Head:
    """Parts as `primitives` yields them -> one head, without vertices that no triangle needs.

    Raises ValueError where a shape but tongueOut is missing (that one then stays still, and a line says so), where a
    number is not finite, or as `located` does.
    """
    shapes = {k for *_, moves in parts for k in moves}
    missing = [name for k, name in enumerate(ARKIT_NAMES) if k not in shapes]
    if missing == ["tongueOut"]:
        print(f"{path} has no tongueOut: the tongue stays still", file=sys.stderr)
    elif missing:
        raise ValueError(f"{path} has {len(shapes)} of the 52 ARKit shapes, it lacks {', '.join(missing)}")
    starts = np.cumsum([0] + [len(vertices) for vertices, *_ in parts])
    vertices = np.concatenate([vertices for vertices, *_ in parts]).astype(np.float32)
    faces = np.concatenate([faces + start for start, (_, faces, _, _) in zip(starts, parts)])
    colors = np.concatenate([colors for _, _, colors, _ in parts]).astype(np.float32)
    deltas = np.zeros((len(ARKIT_NAMES), *vertices.shape), np.float32)
    for start, (rows, _, _, moves) in zip(starts, parts):
        for k, delta in moves.items():
            deltas[k, start:start + len(rows)] = delta
    if not (np.isfinite(vertices).all() and np.isfinite(deltas).all()):
        raise ValueError(f"{path} holds NaN or infinite positions: export it again")
    used, faces = np.unique(above_shoulders(vertices, deltas, faces), return_inverse=True)
    return located(vertices[used], faces.reshape(-1, 3).astype(np.int32), colors[used], deltas[:, used], path)


def located(vertices, faces, colors, deltas, path) -> Head:
    """The head with the lips and the eyes that its shapes tell of.

    Raises ValueError where these shapes move nothing, or where the head does not look along +Z with +Y up.
    """
    still = [name for name in LANDMARKS if not lengths(deltas, name).any()]
    if still:
        raise ValueError(f"{path}: {', '.join(still)} move nothing that shows; they tell where lips and eyes are")
    eyes = np.stack([eye(vertices, deltas, side) for side in ("Left", "Right")])
    lips = find_lips(vertices, deltas)
    if not len(lips):
        raise ValueError(f"{path}: mouthSmile pulls elsewhere than where mouthRoll rolls: are its shapes misnamed?")
    mouth = vertices[lips].mean(0)
    if not (eyes[0, 0] > eyes[1, 0] and eyes[:, 1].min() > mouth[1] and mouth[2] > vertices[:, 2].mean()):
        raise ValueError(f"{path} does not look along +Z with +Y up and its left on +X: eyes at "
                         f"{np.round(eyes, 3).tolist()}, mouth at {np.round(mouth, 3).tolist()}; turn it, export again")
    return Head(vertices, faces, colors, deltas, lips, eyes, upper=None, lower=None)


def above_shoulders(vertices, deltas, faces) -> np.ndarray:
    """The triangles (T, 3) of head and neck, where a whole person came: three times as high as the part that moves."""
    reach = np.abs(deltas).max((0, 2))
    moving = vertices[reach >= 0.05 * reach.max(), 1]
    height = np.ptp(moving)
    if np.ptp(vertices[:, 1]) < 3 * height:
        return faces
    return faces[(vertices[faces, 1] > moving.min() - 0.4 * height).all(1)]


def lengths(deltas, *names) -> np.ndarray:
    """How far (V,) the named shapes move each vertex, added up."""
    return sum(np.linalg.norm(deltas[ARKIT_NAMES.index(name)], axis=1) for name in names)


def find_lips(vertices, deltas) -> np.ndarray:
    """Vertices of the red of the lips and a little around it, after spec face 1.2.

    Those that rolling the lips moves by a quarter of the most, in a box around the corners of the mouth, which are
    where a smile pulls most of them.
    """
    roll = lengths(deltas, "mouthRollLower", "mouthRollUpper")
    rolled = roll > 0.25 * roll.max()
    corners = vertices[[np.argmax(lengths(deltas, shape) * rolled) for shape in ("mouthSmileLeft", "mouthSmileRight")]]
    x, y, _ = np.abs((vertices - corners.mean(0)) / np.ptp(corners[:, 0])).T     # in mouth widths
    return np.flatnonzero(rolled & (x < 0.6) & (y < 0.25))


def eye(vertices, deltas, side: str) -> np.ndarray:
    """The middle of an eyeball, (3,): of what a glance to the side moves, and moves further than closing the lids does.

    Where only bones turn the eyes, the middle of the lids: in front of the eyeball's, but as far from the other one.
    """
    blink, look = lengths(deltas, "eyeBlink" + side), lengths(deltas, "eyeLookIn" + side, "eyeLookOut" + side)
    lids = vertices[blink > 0.25 * blink.max()]
    ball = vertices[(look > 0.25 * look.max()) & (look > blink)]
    middle = (lids.min(0) + lids.max(0)) / 2
    if len(ball) and np.abs(ball - middle).max() < 2 * np.ptp(lids, axis=0).max():
        middle = (ball.min(0) + ball.max(0)) / 2
    return middle
