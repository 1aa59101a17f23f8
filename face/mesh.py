"""Meshes under construction, and the smooth functions that shapes and colours are made of.

Used by head_mesh.py and head.py. Lengths are centimetres. Letters: V vertices, F triangles, R rows and C columns of a
sheet.
"""
from typing import NamedTuple

import numpy as np


class Mesh(NamedTuple):
    """A part under construction. u, v: the part's own coordinates, such as column and row, or angle and distance."""
    points: np.ndarray              # (V, 3) cm
    faces: np.ndarray               # (F, 3)
    colors: np.ndarray              # (V, 3) sRGB
    part: np.ndarray                # (V,) name of the part
    u: np.ndarray                   # (V,)
    v: np.ndarray                   # (V,)


def smooth(x):
    """0 below 0, 1 above 1, smooth in between."""
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)


def hill(x, y, centre, size):
    """1 at the centre, 0 outside the ellipse of half axes `size`, which keeps the deltas sparse."""
    square = ((x - centre[0]) / size[0]) ** 2 + ((y - centre[1]) / size[1]) ** 2
    return np.clip(1 - square, 0, 1) ** 2


def gauss(x, y, centre, size):
    """1 at the centre, 1/e at the ellipse of half axes `size`, never 0."""
    return np.exp(-((x - centre[0]) / size[0]) ** 2 - ((y - centre[1]) / size[1]) ** 2)


def mix(a, b, weight):
    """Colours a (…, 3) and b, blended by weight (…)."""
    weight = np.asarray(weight)[..., None]
    return np.asarray(a) * (1 - weight) + np.asarray(b) * weight


def grid(points, colors, part, u=0.0, v=0.0, wrap=False) -> Mesh:
    """The mesh of a sheet of points (R, C, 3). Seen from outside, rows run down and columns run right. wrap: join the
    last column to the first."""
    shape = points.shape[:2]
    index = np.arange(shape[0] * shape[1]).reshape(shape)
    for row in (0, -1):
        if np.ptp(points[row], axis=0).max() < 1e-9:                 # a pole: one vertex instead of a ring
            index[row] = index[row, 0]
    right = np.roll(index, -1, axis=1) if wrap else index[:, 1:]
    left = index[:, :right.shape[1]]
    faces = np.stack([left[:-1], left[1:], right[1:], left[:-1], right[1:], right[:-1]], -1).reshape(-1, 3)
    faces = faces[(faces != np.roll(faces, 1, axis=1)).all(1)]
    part, u, v = (np.broadcast_to(values, shape).ravel() for values in (part, u, v))
    return Mesh(points.reshape(-1, 3), faces, np.broadcast_to(colors, points.shape).reshape(-1, 3), part, u, v)


def join(meshes) -> Mesh:
    """Several meshes as one, in order."""
    starts = np.cumsum([0] + [len(mesh.points) for mesh in meshes])
    columns = list(zip(*meshes))
    columns[1] = [faces + start for faces, start in zip(columns[1], starts)]
    return Mesh(*(np.concatenate(column) for column in columns))


def mirrored(half: Mesh) -> tuple[Mesh, np.ndarray]:
    """The half x >= 0 -> the whole mesh, and mirror (V,): the opposite vertex of each. Both halves share x = 0."""
    n, middle = len(half.points), half.points[:, 0] == 0
    twin = np.where(middle, np.arange(n), n - 1 + np.cumsum(~middle))
    points, colors, part, u, v = (np.concatenate([half[k], half[k][~middle]]) for k in (0, 2, 3, 4, 5))
    points[n:, 0] *= -1
    faces = np.concatenate([half.faces, twin[half.faces][:, ::-1]])
    return Mesh(points, faces, colors, part, u, v), np.concatenate([twin, np.flatnonzero(~middle)])
