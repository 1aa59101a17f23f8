"""Heads from files: a .glb with ARKit morph targets, or a .npz in EmoTalk's layout (docs/spec/face.md 5.1).

    head = load_template("someone.glb")

Such a file does not say which vertices are lips and eyes; they are found from what its shapes move.

K = 52 shapes in the order of `arkit.ARKIT_NAMES`. Other letters: V vertices, F triangles, J joints of a skeleton that
move one vertex, C shapes of an npz.
"""
import math
import sys
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np

import disk
import weights
from face.arkit import ARKIT_NAMES, HALVES, matches
from face.gltf import Count, Glb, open_glb, read_accessor, scene_meshes, screen
from face.head import Head

HEIGHT = 0.24                           # metres: a head without a unit is scaled to this
FILE_BYTES = 256 << 20                  # largest file, and largest content of an npz
FAR = 1e6                               # metres: positions further out are errors
SKIN = (0.80, 0.63, 0.54)               # sRGB, for templates without colours of their own
NPZ = ("meanshape", "faces", "blendshape", "bs_names")      # the arrays that are read from an npz
KINDS = {"fiu": "numbers", "iu": "whole numbers", "US": "texts"}        # numpy's kinds of their types, for messages
SHAPES = 4096                           # largest number of shapes in an npz
LANDMARKS = ("mouthRollLower", "mouthRollUpper", "mouthSmileLeft", "mouthSmileRight", "eyeBlinkLeft", "eyeBlinkRight")


def load_template(path) -> Head:
    """The head in a .glb or .npz file. Raises FileNotFoundError; ValueError for another ending, a file above
    FILE_BYTES, or as `read_glb` and `read_npz` do."""
    readers = {".npz": read_npz, ".glb": read_glb}
    if Path(path).suffix.lower() not in readers:
        raise ValueError(f"{path}: a template ends in .npz (meanshape, faces, blendshape, bs_names) or .glb (morph "
                         "targets with ARKit names)")
    size = disk.regular(path, "a .glb or .npz file").stat().st_size
    if size > FILE_BYTES:
        raise ValueError(f"{path} has {size >> 20} MiB, expected a head of at most {FILE_BYTES >> 20}: leave out "
                         "textures and bodies")
    with np.errstate(all="ignore"):     # `joined` refuses NaN and numbers that are too large
        return readers[Path(path).suffix.lower()](path)


@dataclass
class Primitive:
    """A part of a mesh in the json scene. Numbers, except for mode, are indices of accessors and materials."""
    attributes: dict
    targets: list[dict] = field(default_factory=list)
    indices: Count | None = None
    material: Count | None = None
    mode: int = 4
    extras: object = None


@dataclass
class Mesh:
    primitives: list
    extras: object = None


@dataclass
class Paint:
    baseColorFactor: Annotated[list[float], 4, 4] | None = None
    baseColorTexture: object = None


@dataclass
class Material:
    pbrMetallicRoughness: Paint = field(default_factory=Paint)


def read_glb(path) -> Head:
    """The head in a GLB: all meshes of its scene as one, placed by their nodes and the skeleton at rest.

    Lengths are metres, as in the format. Colours are COLOR_0 times the material's; textures are not read, such parts
    are skin coloured. Raises ValueError if the file is damaged, too large, compressed, spread over several files, or
    lacks shapes (see `joined`).
    """
    glb = open_glb(path)
    return joined([part for mesh, matrices in scene_meshes(glb) for part in primitives(glb, mesh, matrices)], path)


def primitives(glb: Glb, index: int, matrices):
    """Yield (vertices (V, 3), faces (F, 3), colors (V, 3), {index of the shape: delta (V, 3)}) of mesh `index`.

    matrices: as `gltf.scene_meshes` yields them. Raises ValueError for lines and points, and for triangles whose
    vertices are not there.
    """
    mesh = glb.entry("meshes", index, Mesh)
    for number in range(len(mesh.primitives)):
        where = f"meshes[{index}].primitives[{number}]"
        primitive = disk.converted(mesh.primitives[number], Primitive, glb.path, where)
        glb.spend(1024 * len(primitive.targets))
        if primitive.mode != 4:
            raise ValueError(f"{glb.path}: {where} has mode {primitive.mode}, expected triangles (4)")
        names = shape_names(glb, primitive.extras) or shape_names(glb, mesh.extras) if primitive.targets else []
        if len(names) > len(primitive.targets):
            raise ValueError(f"{glb.path}: {where} has {len(primitive.targets)} targets and {len(names)} names of them")
        shapes = shape_indices(names, glb.path)
        vertices = read_accessor(glb, attribute(glb, primitive.attributes, "POSITION"), ("VEC3",)).astype(np.float32)
        glb.spend((4096 + len(vertices)) * 4 * 3 * (len(shapes) + len(ARKIT_NAMES) + 4))   # here and in `joined`
        matrix = shared(glb, primitive.attributes, matrices, len(vertices))
        faces = triangles(glb, primitive, len(vertices), where)
        turn = matrix[:, :3, :3]
        if np.linalg.det(turn[0]) < 0:      # mirrored: the outside would become the inside
            faces = faces[:, ::-1]
        moves = {}
        for shape, members in shapes.items():
            delta = np.zeros_like(vertices)
            for target in (primitive.targets[i] for i in members if "POSITION" in primitive.targets[i]):
                delta += read_accessor(glb, attribute(glb, target, "POSITION"), ("VEC3",), len(vertices))
            moves[shape] = np.float32(turned(turn, delta))
        colors = colors_of(glb, primitive, len(vertices))
        yield turned(turn, vertices) + matrix[:, :3, 3], faces, colors, moves


def attribute(glb: Glb, attributes: dict, name: str) -> int:
    """The index of an accessor, from the attributes of a primitive or of a target."""
    return disk.typed(attributes, name, Count, glb.path)


def shape_names(glb: Glb, extras) -> list:
    """The names of the targets in the extras of a mesh or a primitive; [] if there are none. extras may be anything."""
    names = extras.get("targetNames") if isinstance(extras, dict) else None
    return disk.typed(extras, "targetNames", list[str], glb.path) if names else []


def triangles(glb: Glb, primitive: Primitive, count: int, where: str) -> np.ndarray:
    """The triangles (F, 3) int64 of a primitive with `count` vertices."""
    faces = np.arange(count) if primitive.indices is None else read_accessor(glb, primitive.indices, ("SCALAR",))
    glb.spend(16 * len(faces))
    if faces.dtype.kind == "f" or len(faces) % 3:
        raise ValueError(f"{glb.path}: {where} has {len(faces)} indices {faces.dtype}, expected whole numbers, three "
                         "for each triangle")
    if len(faces) and not 0 <= faces.min() <= faces.max() < count:
        raise ValueError(f"{glb.path}: {where} has {count} vertices, its triangles name {faces.min()} to {faces.max()}")
    return faces.astype(np.int64).reshape(-1, 3)


def shared(glb: Glb, attributes: dict, matrices, count: int) -> np.ndarray:
    """The matrix of each of `count` vertices (V, 4, 4), blended from those of its bones; or one for all (1, 4, 4)."""
    if len(matrices) == 1 or not count or "JOINTS_0" not in attributes or "WEIGHTS_0" not in attributes:
        return matrices[:1]
    glb.spend(count * 8 * 16 * 5)
    shares = read_accessor(glb, attribute(glb, attributes, "WEIGHTS_0"), ("VEC4",), count).astype(np.float64)
    shares /= np.maximum(shares.sum(1, keepdims=True), 1e-9)
    joints = read_accessor(glb, attribute(glb, attributes, "JOINTS_0"), ("VEC4",), count)
    if joints.dtype.kind != "u" or joints.max(initial=0) >= len(matrices):
        raise ValueError(f"{glb.path}: a mesh names bone {joints.max(initial=0)}, its skeleton has {len(matrices)}")
    return np.einsum("vj,vjab->vab", shares, matrices[joints])      # (V, J) and (V, J, 4, 4) -> (V, 4, 4)


def turned(turn, vectors) -> np.ndarray:
    """turn (1 or V, 3, 3) applied to each of vectors (V, 3)."""
    return (turn @ vectors[..., None])[..., 0]


def colors_of(glb: Glb, primitive: Primitive, count: int) -> np.ndarray:
    """Colours (V, 3), sRGB: the vertices' times the material's, or skin colour if the material is a texture."""
    paint = Paint() if primitive.material is None else (
        glb.entry("materials", primitive.material, Material).pbrMetallicRoughness)
    if "COLOR_0" in primitive.attributes:
        light = read_accessor(glb, attribute(glb, primitive.attributes, "COLOR_0"), ("VEC3", "VEC4"), count)[:, :3]
        return screen(light * (paint.baseColorFactor or np.ones(4))[:3])
    if paint.baseColorFactor is None or paint.baseColorTexture is not None:
        return np.broadcast_to(SKIN, (count, 3))
    return np.broadcast_to(screen(np.array(paint.baseColorFactor[:3])), (count, 3))


def read_npz(path) -> Head:
    """The head in an npz {meanshape (V, 3), faces (F, 3 or 4), blendshape (C, V, 3), bs_names (C,)}: EmoTalk's layout.

    blendshape holds differences to meanshape. As in the release's reader, faces count from 1 if no face has vertex 0.
    The file has no unit: the head is centred and scaled to a height of 0.24 m. Raises ValueError if the file is
    damaged, holds pickled objects, contradicts itself or lacks shapes.
    """
    mean, faces, shapes, names = open_npz(path)
    faces = faces.astype(np.int64) - (faces.min() == 1)
    if faces.shape[1] == 4:
        faces = np.concatenate([faces[:, [0, 1, 2]], faces[:, [0, 2, 3]]])
    if faces.min() < 0 or faces.max() >= len(mean):
        raise ValueError(f"{path}: faces name vertices {faces.min()} to {faces.max()}, there are {len(mean)}")
    low, high = mean.min(0), mean.max(0)
    if not high[1] > low[1]:
        raise ValueError(f"{path}: meanshape spans {low[1]} to {high[1]} in y: expected a head, +Y up")
    some = slice(None, None, 1 + len(mean) // 1000)     # a thousand vertices are enough for this check
    if np.median(np.abs(shapes[:, some] - mean[some])) < 0.01 * (high[1] - low[1]):
        raise ValueError(f"{path}: blendshape holds whole heads, expected differences: subtract meanshape from each")
    scale = HEIGHT / (high[1] - low[1])
    moves = {k: np.float32(shapes[members].sum(0, np.float64) * scale)
             for k, members in shape_indices(names, path).items()}
    return joined([((mean - (low + high) / 2) * scale, faces, np.broadcast_to(SKIN, mean.shape), moves)], path)


def open_npz(path) -> tuple:
    """(meanshape, faces, blendshape, list of names) of the file. Raises ValueError if it cannot be read; also, before
    its numbers are read, if they are too many or its arrays are not those of a head."""
    try:
        with zipfile.ZipFile(path) as file:
            there = [name.removesuffix(".npy") for name in file.namelist()]
            missing = set(NPZ) - set(there)
            if missing:
                raise ValueError(f"no {', '.join(sorted(missing))} in it, there is {weights.few(there)}")
            check_npz({name: npy_header(file, name) for name in NPZ})
            mean, faces, shapes, names = (read_npy(file, name) for name in NPZ)
    except Exception as error:      # zipfile, zlib and numpy raise many kinds for damaged files, OSError among them
        why = "not an npz file, or cut short" if isinstance(error, zipfile.BadZipFile) else error
        raise ValueError(f"{path} is no template ({why})") from None
    names = [name.decode("utf-8", "replace") if isinstance(name, bytes) else name for name in names.tolist()]
    return mean.astype(np.float64), faces, shapes, names


def npy_header(file: zipfile.ZipFile, name: str) -> tuple:
    """(shape, dtype) of an array in an npz. Raises ValueError if its size is not the one in its header."""
    with file.open(name + ".npy") as array:
        version = np.lib.format.read_magic(array)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in read:
            raise ValueError(f"{name} has npy version {version}, expected 1.0 or 2.0")
        shape, _, dtype = read[version](array)
        size, stored = math.prod(shape) * dtype.itemsize, file.getinfo(name + ".npy").file_size - array.tell()
    if dtype.hasobject:
        raise ValueError(f"{name} holds Python objects: save bs_names as np.array(names, dtype=str)")
    if min(shape, default=0) < 0 or size != stored:
        raise ValueError(f"{name} {list(shape)} {dtype} has {stored} bytes, expected {size}: it is damaged")
    return shape, dtype


def check_npz(headers: dict) -> None:
    """Raises ValueError if headers {name: (shape, dtype)} are not those of a head, or too large."""
    (mean, faces, shapes, names), kinds = zip(*((shape, dtype.kind) for shape, dtype in headers.values()))
    if len(mean) != 2 or not mean[0] or mean[1] != 3 or len(names) != 1 or shapes != (*names, *mean):
        raise ValueError(f"meanshape {list(mean)}, blendshape {list(shapes)}, bs_names {list(names)}: expected [V, 3], "
                         "[C, V, 3] and [C]")
    if len(faces) != 2 or faces[1] not in (3, 4) or not faces[0]:
        raise ValueError(f"faces {list(faces)}: expected [F, 3] or [F, 4]")
    for name, kind, known in zip(NPZ, kinds, ("fiu", "iu", "fiu", "US")):
        if kind not in known:
            raise ValueError(f"{name} is {headers[name][1]}, expected {KINDS[known]}")
    size = sum(math.prod(shape) * max(dtype.itemsize, 8) for shape, dtype in headers.values())
    if size > FILE_BYTES or names[0] > SHAPES:
        raise ValueError(f"{names[0]} shapes of {mean[0]} vertices, {size >> 20} MiB, expected at most {SHAPES} and "
                         f"{FILE_BYTES >> 20} MiB: decimate the head")


def read_npy(file: zipfile.ZipFile, name: str) -> np.ndarray:
    with file.open(name + ".npy") as array:
        return np.lib.format.read_array(array, allow_pickle=False)


def shape_indices(names: list, where) -> dict[int, list]:
    """{index of an ARKit shape: indices in `names` of the shapes whose sum it is}.

    That is one shape, or two for browInnerUp and cheekPuff if they are split into left and right (docs/spec/face.md
    5.1).
    """
    first = {}
    for i, name in enumerate(matches(names, str(where))):
        first.setdefault(name, i)
    halves = {shape: [first[half] for half in HALVES if HALVES[half] == shape and half in first]
              for shape in HALVES.values()}
    return {k: members for k, shape in enumerate(ARKIT_NAMES)
            if (members := [first[shape]] if shape in first else halves.get(shape))}


def joined(parts: list, path) -> Head:
    """Parts as `primitives` yields them -> one head, without vertices that no triangle needs.

    A missing tongueOut is reported and moves nothing. Raises ValueError if another shape is missing, if a number is not
    finite, or as `located` does.
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
        while moves:                    # popped one by one, as two copies of all would take much memory
            k, delta = moves.popitem()
            deltas[k, start:start + len(rows)] = delta
    if not all(np.abs(array).max(initial=0) < FAR for array in (vertices, deltas, colors)):
        raise ValueError(f"{path} holds NaN or infinite numbers, or lengths above {FAR:g} m: export it again")
    used, faces = np.unique(above_shoulders(vertices, deltas, faces), return_inverse=True)
    return located(vertices[used], faces.reshape(-1, 3).astype(np.int32), colors[used], deltas[:, used], path)


def located(vertices, faces, colors, deltas, path) -> Head:
    """The head with its lips and eyes, found from what the LANDMARKS shapes move.

    Raises ValueError if these shapes move nothing, or if the head does not look along +Z with +Y up.
    """
    still = [name for name in LANDMARKS if not lengths(deltas, name).any()]
    if still:
        raise ValueError(f"{path}: {', '.join(still)} move nothing; lips and eyes are found by what they move")
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
    """The triangles (F, 3), without the body if there is one: if the mesh is three times as high as what moves."""
    reach = np.abs(deltas).max((0, 2))
    moving = vertices[reach >= 0.05 * reach.max(), 1]
    height = np.ptp(moving)
    if np.ptp(vertices[:, 1]) < 3 * height:
        return faces
    return faces[(vertices[faces, 1] > moving.min() - 0.4 * height).all(1)]


def lengths(deltas, *names) -> np.ndarray:
    """How far (V,) the named shapes move each vertex, summed over the shapes."""
    return sum(np.linalg.norm(deltas[ARKIT_NAMES.index(name)], axis=1) for name in names)


def find_lips(vertices, deltas) -> np.ndarray:
    """Vertices of the red of the lips and a little around it (docs/spec/face.md 1.2).

    These are the vertices that mouthRoll moves by more than a quarter of its largest move, in a box around the corners
    of the mouth. A corner is the rolled vertex that mouthSmile moves most.
    """
    roll = lengths(deltas, "mouthRollLower", "mouthRollUpper")
    rolled = roll > 0.25 * roll.max()
    corners = vertices[[np.argmax(lengths(deltas, shape) * rolled) for shape in ("mouthSmileLeft", "mouthSmileRight")]]
    x, y, _ = np.abs((vertices - corners.mean(0)) / np.ptp(corners[:, 0])).T     # in mouth widths
    return np.flatnonzero(rolled & (x < 0.6) & (y < 0.25))


def eye(vertices, deltas, side: str) -> np.ndarray:
    """The centre of an eyeball (3,): of the vertices that eyeLookIn and eyeLookOut move further than a blink does.

    If no shape moves the eyeball (bones do), the centre of the lids: it lies in front of the eyeball's, but the
    distance between both eyes is the same.
    """
    blink, look = lengths(deltas, "eyeBlink" + side), lengths(deltas, "eyeLookIn" + side, "eyeLookOut" + side)
    lids = vertices[blink > 0.25 * blink.max()]
    ball = vertices[(look > 0.25 * look.max()) & (look > blink)]
    middle = (lids.min(0) + lids.max(0)) / 2
    if len(ball) and np.abs(ball - middle).max() < 2 * np.ptp(lids, axis=0).max():
        middle = (ball.min(0) + ball.max(0)) / 2
    return middle
