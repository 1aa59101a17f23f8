"""A stylised head, made by numpy without a data file: a mesh with the 52 ARKit shapes as linear deltas.

docs/spec/face.md 5.2. Units are metres, +Y up, +Z forward (the face looks at +Z), +X the face's own left. While the
head is built, here and in head_mesh.py, lengths are centimetres.

T face frames, K = 52 shapes in the order of `arkit.ARKIT_NAMES`. Other letters: V vertices, F triangles, J lip
vertices, C mouth columns.
"""
import functools
from dataclasses import dataclass, field

import numpy as np

from face.arkit import ARKIT_NAMES
from face.head_mesh import (BAG, EYE, HALF, brow, ear, eyeball, eyelids, hair, highlight, lid_points, mouth_and_skin,
                            neck, sew, shirt, teeth, tongue)
from face.mesh import Mesh, hill, join, mirrored, smooth

HINGE, JAW_ANGLE = np.array([0, -1.6, -1.6]), 0.34      # cm and radians: how jawOpen 1 turns the jaw


@dataclass(frozen=True, eq=False)
class Head:
    """A mesh with the 52 ARKit shapes: `vertices + tensordot(weights, deltas)` is the face with those weights."""
    vertices: np.ndarray            # (V, 3) float32, neutral
    faces: np.ndarray               # (F, 3) int32, counter-clockwise seen from outside
    colors: np.ndarray              # (V, 3) float32 in [0, 1], sRGB
    deltas: np.ndarray              # (K, V, 3) float32
    lips: np.ndarray                # (J,) vertices of the red of both lips, for the lip vertex error
    eyes: np.ndarray                # (2, 3) centres of the left and the right eyeball
    upper: np.ndarray | None        # (C,) inner rim of the upper lip from the right corner to the left ...
    lower: np.ndarray | None        # (C,) ... and of the lower lip, facing it; None for a head from a file
    parts: dict = field(default_factory=dict)   # name of a part -> its vertices; empty for a head from a file
    mirror: np.ndarray | None = None            # (V,) the vertex on the other side; itself on the middle line

    def pose(self, weights) -> np.ndarray:
        """weights (K,) or (T, K) -> vertices (V, 3) or (T, V, 3), float32."""
        return self.vertices + np.tensordot(np.asarray(weights, np.float32), self.deltas, axes=1)

    @property
    def interocular(self) -> float:
        """Metres between the centres of the eyeballs; metrics are in % of it."""
        return float(np.linalg.norm(self.eyes[0] - self.eyes[1]))


def rotation(axis, angle):
    """(3, 3) about the axis "x" or "y", by an angle in radians."""
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array({"x": [[1, 0, 0], [0, cos, -sin], [0, sin, cos]],
                     "y": [[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]]}[axis])


def move(weight, dx, dy, dz):
    """(V,) weights and three lengths, each a number or (V,) -> (V, 3)."""
    return np.stack(np.broadcast_arrays(weight * dx, weight * dy, weight * dz), -1)


class Masks:
    """Smooth weights (V,) that say where a shape acts; 0 on hard parts and behind the face."""

    def __init__(self, mesh: Mesh):
        self.x, self.y, z = mesh.points.T
        self.v = mesh.v
        self.skin, lids, bag = (mesh.part == name for name in ("skin", "lids", "bag"))
        self.mouth = self.skin | bag | (mesh.part == "lips")
        fade = [smooth(mesh.v / .8), np.clip((1 + mesh.v) / .95, 0, 1) ** 2, 1]
        self.soft = np.select([lids, bag, self.mouth], fade) * (z > 0)
        self.off_nose = np.maximum(smooth((-2.4 - self.y) / .9), smooth((np.abs(self.x) - 1.4) / 1.4))

    def around(self, reach):
        """1 on the lips, 0 from `reach` cm outside them."""
        return np.where(self.v > 1, smooth(1 - (self.v - 1) / reach) * self.off_nose, self.soft) * self.mouth

    def at(self, cx, cy, sx, sy):
        """A `mesh.hill` at (cx, cy) of half axes (sx, sy) on skin, lips and lids."""
        return hill(self.x, self.y, (cx, cy), (sx, sy)) * self.soft

    def both(self, cx, cy, sx, sy):
        """The same on both sides."""
        return hill(np.abs(self.x), self.y, (cx, cy), (sx, sy)) * self.soft


def jaw_weight(mesh):
    """How much each vertex moves with the jaw (V,): an almond-shaped opening of the lips, then chin and throat."""
    y, z = mesh.points[:, 1], mesh.points[:, 2]
    corner = np.abs(np.cos(mesh.u)) ** 4.5
    lip = np.where(mesh.u < 0, 1 - .67 * corner, .33 * corner)
    near = smooth(1 - (mesh.v - 1) / 4.5)
    skin = near * lip + (1 - near) * smooth((-3.4 - y) / 4.5) * smooth((z + 1.5) / 5)
    bag = lip * np.where(mesh.u < 0, 1 - smooth((-mesh.v - .4) / .6), np.clip(1 + mesh.v, 0, 1))
    return np.select([mesh.part == "lower teeth", mesh.part == "tongue", mesh.part == "bag",
                      np.isin(mesh.part, ["skin", "lips"])], [1, .85, bag, skin], 0)


def jaw_shapes(mesh: Mesh, slit, across, masks: Masks) -> dict:
    """{name: delta (V, 3) cm} of the jaw, of mouthClose and of the tongue. slit, across: as for `shapes`.

    mouthClose closes the lips of an open jaw: jawOpen 1 + mouthClose 1 is a closed mouth (docs/spec/face.md 2).
    """
    p, u = mesh.points, mesh.u
    jaw = jaw_weight(mesh)
    opened = (p - HINGE) @ (rotation("x", JAW_ANGLE) - np.eye(3)).T * jaw[:, None]
    top, bottom = np.where(u >= 0, (slit, across), (across, slit))
    meeting = .6 * (p + opened)[top] + .4 * (p + opened)[bottom]
    tongue = (mesh.part == "tongue") * np.clip(1 - mesh.v, 0, 1) ** .7
    return {
        "jawOpen": opened,
        "mouthClose": (meeting - (p + opened)[slit]) * masks.around(3.6)[:, None],
        "jawForward": move(jaw, 0, 0, .9),
        "jawLeft": move(jaw, .9, 0, -.1),
        "tongueOut": move(tongue, 0, 1.2, 4.0),
    }


def lip_shapes(mesh: Mesh, masks: Masks) -> dict:
    """{name: delta (V, 3) cm} of the lips, of cheekPuff and of noseSneer."""
    x, u, v = mesh.points[:, 0], mesh.u, mesh.v
    around, at, both = masks.around, masks.at, masks.both
    cos = np.abs(np.cos(u))
    almond, left, red = 1 - cos ** 4, smooth((x + .7) / 1.4), np.clip(v, 0, 1)
    upper, lower = almond * (u > 0), almond * (u < 0)
    part = upper - lower                                            # up or down, away from the slit
    corner = around(4.2) * cos ** 2.4 * (x > 0)
    apple = at(4.2, -2.4, 2.7, 2.4)                                 # of the cheek
    chin = both(0, -8.2, 2.6, 1.8) * masks.skin
    return {
        "mouthFunnel": move(around(2.8), -.32 * x, .75 * part * (.7 + .3 * red), 1.0),
        "mouthPucker": move(around(2.8), -.50 * x, .22 * part * (.3 + .7 * red), 1.15),
        "mouthRollLower": move(around(1.6) * lower, 0, .12 + .38 * red, -.85),
        "mouthRollUpper": move(around(1.3) * upper, 0, -.08 - .30 * red, -.70),
        "mouthShrugLower": move(around(1.8) * lower, 0, .45, .25) + move(chin, 0, .35, .15),
        "mouthShrugUpper": move(around(1.4) * upper, 0, .40, .30),
        "mouthPressLeft": move(around(1.3) * left, 0, -.22 * part * red, -.18 * (upper + lower)),
        "mouthLowerDownLeft": move(around(2.2) * lower * left, .10, -.85, .05),
        "mouthUpperUpLeft": move(around(1.7) * upper * left, .05, .72, .12),
        "mouthSmileLeft": move(corner, .90, .88, -.45) + move(apple, .12, .42, .25),
        "mouthFrownLeft": move(corner, .10, -.95, -.10),
        "mouthStretchLeft": move(corner, 1.0, -.25, -.50),
        "mouthDimpleLeft": move(at(2.6, -4.8, 1.9, 1.9), .60, .10, -.60),
        "mouthLeft": move(both(0, -4.9, 4.6, 2.4), 1.0, .04 * x, -.06 * x),
        "cheekPuff": move(both(4.3, -4.7, 2.3, 2.4), .75 * np.sign(x), 0, .60),
        "noseSneerLeft": move(at(1.3, -2.0, 1.2, 1.6), .10, .45, .20)
        + move(around(1.2) * upper * left, 0, .30, .05),
    }


def eye_shapes(mesh: Mesh, masks: Masks) -> dict:
    """{name: delta (V, 3) cm} of lids, eyes and brows, and of the cheek below the lids."""
    p, u, v = mesh.points, mesh.u, mesh.v
    x, at, both = p[:, 0], masks.at, masks.both
    brows, left_eye = mesh.part == "brows", (mesh.part == "eyes") & (x > 0)
    left_lids = np.isin(mesh.part, ["lids", "lid rims"]) & (x > 0)
    inner, outer = np.clip(1 - u, 0, 1) ** 1.2 * brows, np.clip(u, 0, 1) ** .8 * brows * (x > 0)

    def lid(**edges):
        moved = np.zeros_like(p)
        moved[left_lids] = lid_points(u[left_lids], v[left_lids], **edges) - lid_points(u[left_lids], v[left_lids])
        return moved

    def gaze(axis, degrees, **edges):
        turn = rotation(axis, np.radians(degrees)) - np.eye(3)
        return (p - EYE) @ turn.T * left_eye[:, None] + lid(**edges)

    return {
        "cheekSquintLeft": move(at(4.0, -1.2, 2.2, 1.7), .05, .50, .35) + lid(lower=.7),
        "browInnerUp": move(inner, 0, 1.0, .05) + move(both(1.2, 4.3, 2.6, 2.1), 0, .58, 0),
        "browOuterUpLeft": move(outer, 0, .95, -.10) + move(at(4.3, 4.2, 2.6, 2.1), 0, .52, 0),
        "browDownLeft": move((.45 * brows + .55 * inner) * (x > 0), -.22, -.80, .12)
        + move(at(2.3, 3.6, 2.3, 2.1), -.10, -.40, .10),
        "eyeBlinkLeft": lid(upper=1, lower=1, lift=.03) + move(left_eye, 0, 0, -.12),   # back, not to pierce the lid
        "eyeSquintLeft": lid(upper=.22, lower=1.1) + move(at(3.4, -.6, 2.0, 1.2), 0, .2, .1),
        "eyeWideLeft": lid(upper=-.26, lower=-.35),
        "eyeLookUpLeft": gaze("x", -18, upper=-.14, lower=.15),
        "eyeLookDownLeft": gaze("x", 20, upper=.36, lower=-.25),
        "eyeLookInLeft": gaze("y", -24),
        "eyeLookOutLeft": gaze("y", 24),
    }


def shapes(mesh: Mesh, slit, across) -> dict:
    """{name: delta (V, 3) cm} of the left and the middle shapes.

    slit, across (V,): for a vertex of the mouth or the skin, the slit vertex of its own column, and the opposite vertex
    on the other lip.
    """
    masks = Masks(mesh)
    return jaw_shapes(mesh, slit, across, masks) | lip_shapes(mesh, masks) | eye_shapes(mesh, masks)


def both_sides(deltas: dict, mirror):
    """{name: delta (V, 3)} of left and middle shapes -> (K, V, 3) of all.

    Right shapes are mirrored left ones; middle shapes are made symmetric.
    """
    flip = np.array([-1, 1, 1])
    for name, delta in list(deltas.items()):
        if name.endswith("Left"):
            deltas[name.replace("Left", "Right")] = delta[mirror] * flip
        else:
            deltas[name] = (delta + delta[mirror] * flip) / 2
    return np.stack([deltas[name] for name in ARKIT_NAMES])


@functools.cache
def make_head() -> Head:
    """Our head, about 0.24 m from chin to crown. Built once per process (0.2 s); do not write into its arrays."""
    skin = mouth_and_skin()
    half = join([sew(skin, eyelids()), eyeball(), brow(), teeth(True), teeth(False), tongue(), ear(), hair(), neck(),
                 shirt()])
    mesh, mirror = mirrored(half)
    own = np.arange(len(half.points))
    column, row = own % (HALF + 1), len(BAG) * (HALF + 1)           # the slit comes after the bag in the first grid
    slit, across = (np.where(own < len(skin.points), row + index, own) for index in (column, HALF - column))
    slit, across = (np.append(index, mirror[index[mirror[len(half.points):]]]) for index in (slit, across))
    deltas = both_sides(shapes(mesh, slit, across), mirror)
    line = row + np.arange(HALF // 2 + 1)                           # lower lip, from the middle to the left corner
    lower, upper = (np.append(mirror[rim[:0:-1]], rim) for rim in (line, row + HALF - np.arange(HALF // 2 + 1)))

    whole = join([mesh, highlight(1), highlight(-1)])               # no shape moves them, and they are not mirrored
    still = np.arange(len(mesh.points), len(whole.points))
    deltas = np.pad(deltas, ((0, 0), (0, len(still)), (0, 0))) * .01
    deltas[np.abs(deltas).max(-1) < 1e-5] = 0
    used = np.unique(whole.faces)
    new = np.zeros(len(whole.points), np.int32)
    new[used] = np.arange(len(used))
    part = whole.part[used]
    return Head(vertices=np.float32(whole.points[used] * .01), faces=new[whole.faces],
                colors=np.float32(whole.colors[used]), deltas=np.float32(deltas[:, used]),
                lips=np.flatnonzero(part == "lips"), eyes=np.float32([EYE * .01, EYE * (-.01, .01, .01)]),
                upper=new[upper], lower=new[lower],
                parts={str(name): np.flatnonzero(part == name) for name in np.unique(part)},
                mirror=new[np.append(mirror, still)[used]])
