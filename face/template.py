"""Other people's heads: a .glb with ARKit morph targets, or a .npz in EmoTalk's layout (docs/spec/face.md 5.1).

    head = load_template("someone.glb")

A head from a file names neither its lips nor its eyes; they are found from what its shapes move.

K = 52 shapes in the order of `arkit.ARKIT_NAMES`. Other letters: V vertices, F triangles, J joints of a skeleton that
move one vertex, C shapes of an npz.
"""
import re
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np

import weights
from face.arkit import ARKIT_NAMES, match
from face.gltf import open_glb, read_accessor, scene_meshes, screen
from face.head import Head

HEIGHT = 0.24                           # metres: what a head without a unit is scaled to
SKIN = (0.80, 0.63, 0.54)               # sRGB, for templates without colours of their own
SPLIT = ("browInnerUp", "cheekPuff")    # ARKit has one shape for both sides, many rigs have one for each side ...
SIDE = re.compile("_?(l|r|left|right)$", re.IGNORECASE)     # ... with such an ending
LANDMARKS = ("mouthRollLower", "mouthRollUpper", "mouthSmileLeft", "mouthSmileRight", "eyeBlinkLeft", "eyeBlinkRight")


def load_template(path) -> Head:
    """The head in a .glb or .npz file. Raises ValueError for another ending, and as `read_glb` and `read_npz` do."""
    readers = {".npz": read_npz, ".glb": read_glb}
    if Path(path).suffix.lower() not in readers:
        raise ValueError(f"{path}: a template ends in .npz (meanshape, faces, blendshape, bs_names) or .glb (morph "
                         "targets with ARKit names)")
    return readers[Path(path).suffix.lower()](path)


def read_glb(path) -> Head:
    """The head in a GLB: all meshes of its scene as one, moved by their nodes and the skeleton at rest.

    Lengths are metres, as the format says. Colours are COLOR_0 times the material's; textures are not read, such parts
    are skin coloured. Raises ValueError where the file is damaged, compressed, spread over several files, or lacks
    shapes (see `joined`).
    """
    gltf, blob = open_glb(path)
    try:
        parts = [part for mesh, matrices in scene_meshes(gltf, blob)
                 for part in primitives(gltf, blob, mesh, matrices)]
    except (KeyError, IndexError, TypeError, AttributeError, OverflowError, MemoryError) as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__}: {error}): export it again") from None
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    return joined(parts, path)


def primitives(gltf: dict, blob, mesh: dict, matrices):
    """Yield (vertices (V, 3), faces (F, 3), colors (V, 3), {index of the shape: delta (V, 3)}) of a mesh.

    matrices: as `gltf.scene_meshes` yields them. Raises ValueError for lines, points and triangles without vertices.
    """
    for primitive in mesh["primitives"]:
        if primitive.get("mode", 4) != 4:
            raise ValueError(f"mesh {mesh.get('name')} has mode {primitive['mode']}, expected triangles (4)")
        attributes, targets = primitive["attributes"], primitive.get("targets", [])
        vertices = read_accessor(gltf, blob, attributes["POSITION"]).astype(np.float32)
        faces = read_accessor(gltf, blob, primitive["indices"]) if "indices" in primitive else np.arange(len(vertices))
        faces = faces.astype(np.int64).reshape(-1, 3)
        if len(faces) and faces.max() >= len(vertices):
            raise ValueError(f"mesh {mesh.get('name')} has {len(vertices)} vertices, a triangle names {faces.max()}")
        if "JOINTS_0" in attributes and "WEIGHTS_0" in attributes and len(matrices) > 1:
            shares = read_accessor(gltf, blob, attributes["WEIGHTS_0"], len(vertices)).astype(np.float64)
            shares /= np.maximum(shares.sum(1, keepdims=True), 1e-9)
            bones = matrices[read_accessor(gltf, blob, attributes["JOINTS_0"], len(vertices))]
            matrix = np.einsum("vj,vjab->vab", shares, bones)           # (V, J) and (V, J, 4, 4) -> (V, 4, 4)
        else:
            matrix = matrices[:1]
        turn = matrix[:, :3, :3]
        if np.linalg.det(turn[0]) < 0:      # mirrored: the outside would become the inside
            faces = faces[:, ::-1]
        names = [(owner.get("extras") or {}).get("targetNames") for owner in (primitive, mesh)]
        moves = {}
        for shape, members in shape_indices(names[0] or names[1] or []).items():
            accessors = [targets[i]["POSITION"] for i in members if "POSITION" in targets[i]]
            deltas = [read_accessor(gltf, blob, accessor, len(vertices)) for accessor in accessors]
            moves[shape] = turned(turn, sum(deltas, np.zeros_like(vertices)))
        yield turned(turn, vertices) + matrix[:, :3, 3], faces, colors_of(gltf, blob, primitive, len(vertices)), moves


def turned(turn, vectors) -> np.ndarray:
    """turn (1 or V, 3, 3) applied to each of vectors (V, 3)."""
    return (turn @ vectors[..., None])[..., 0]


def colors_of(gltf: dict, blob, primitive: dict, count: int) -> np.ndarray:
    """Colours (V, 3), sRGB: of the vertices and the material, or of skin where the material is a texture."""
    material = gltf["materials"][primitive["material"]] if "material" in primitive else {}
    paint = material.get("pbrMetallicRoughness", {})
    if "COLOR_0" in primitive["attributes"]:
        light = read_accessor(gltf, blob, primitive["attributes"]["COLOR_0"], count)[:, :3]
        return screen(light * paint.get("baseColorFactor", np.ones(4))[:3])
    if "baseColorFactor" not in paint or "baseColorTexture" in paint:
        return np.broadcast_to(SKIN, (count, 3))
    return np.broadcast_to(screen(np.array(paint["baseColorFactor"][:3])), (count, 3))


def read_npz(path) -> Head:
    """The head in an npz {meanshape (V, 3), faces (F, 3 or 4), blendshape (C, V, 3), bs_names (C,)}: EmoTalk's layout.

    blendshape holds differences to meanshape; faces count from 1 where none names vertex 0, as the release's reader
    has it. The file has no unit: the head is scaled to 0.24 m from its lowest to its highest point and centred.
    Raises ValueError where the file is damaged, holds pickled objects, contradicts itself or lacks shapes.
    """
    mean, faces, shapes, names = open_npz(path)
    if (mean.ndim, mean.shape[-1:]) != (2, (3,)) or shapes.shape != (len(names), *mean.shape):
        raise ValueError(f"{path}: meanshape {list(mean.shape)}, blendshape {list(shapes.shape)}, {len(names)} bs_names"
                         ": expected [V, 3], [C, V, 3] and C names")
    if faces.ndim != 2 or faces.shape[1] not in (3, 4) or not len(faces) or faces.dtype.kind not in "iu":
        raise ValueError(f"{path}: faces {list(faces.shape)} {faces.dtype}: expected whole numbers [F, 3] or [F, 4]")
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
    """(meanshape, faces, blendshape, list of names) of the file. Raises ValueError where it cannot be read."""
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = {"meanshape", "faces", "blendshape", "bs_names"} - set(file.files)
            if missing:
                raise ValueError(f"no {', '.join(sorted(missing))} in it, there is {weights.few(file.files)}")
            mean, shapes = (np.asarray(file[name], np.float64) for name in ("meanshape", "blendshape"))
            names = [name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)
                     for name in file["bs_names"].tolist()]
            return mean, np.asarray(file["faces"]), shapes, names
    except (ValueError, TypeError, AttributeError, EOFError, MemoryError, RuntimeError,     # of numpy, zipfile
            zipfile.BadZipFile, zlib.error) as error:
        why = ("it holds Python objects: save bs_names as np.array(names, dtype=str)" if "Object arrays" in str(error)
               else "not an npz file, or cut short" if "pickle" in str(error) else error)
        raise ValueError(f"{path} is no template ({why})") from None


def shape_indices(names) -> dict[int, list]:
    """Index of an ARKit shape -> indices in `names` of the shapes that it is the sum of.

    One each, but browInnerUp and cheekPuff may come as two halves, left and right (docs/spec/face.md 5.1).
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

    A missing tongueOut is printed and stays still. Raises ValueError where another shape is missing, where a number is
    not finite, or as `located` does.
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
    """The head with its lips and eyes, found from what the LANDMARKS shapes move.

    Raises ValueError where these shapes move nothing, or where the head does not look along +Z with +Y up.
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
    """The triangles (F, 3) of head and neck only, where the file holds a whole person.

    That is one three times as high as the part that moves.
    """
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

    Those that rolling the lips moves by more than a quarter of the largest such move, in a box around the corners of
    the mouth. A corner is the one of them that a smile moves most.
    """
    roll = lengths(deltas, "mouthRollLower", "mouthRollUpper")
    rolled = roll > 0.25 * roll.max()
    corners = vertices[[np.argmax(lengths(deltas, shape) * rolled) for shape in ("mouthSmileLeft", "mouthSmileRight")]]
    x, y, _ = np.abs((vertices - corners.mean(0)) / np.ptp(corners[:, 0])).T     # in mouth widths
    return np.flatnonzero(rolled & (x < 0.6) & (y < 0.25))


def eye(vertices, deltas, side: str) -> np.ndarray:
    """The middle of an eyeball, (3,): of the vertices that looking sideways moves, and further than a blink does.

    Where only bones turn the eyes, the middle of the lids: it lies in front of the eyeball's, but the distance between
    both eyes is the same.
    """
    blink, look = lengths(deltas, "eyeBlink" + side), lengths(deltas, "eyeLookIn" + side, "eyeLookOut" + side)
    lids = vertices[blink > 0.25 * blink.max()]
    ball = vertices[(look > 0.25 * look.max()) & (look > blink)]
    middle = (lids.min(0) + lids.max(0)) / 2
    if len(ball) and np.abs(ball - middle).max() < 2 * np.ptp(lids, axis=0).max():
        middle = (ball.min(0) + ball.max(0)) / 2
    return middle
