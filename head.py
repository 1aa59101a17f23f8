"""A stylised head made by numpy: its mesh and the 52 ARKit shapes as linear deltas. No data file, the same every time.

Spec face 5.2. Units are metres, +Y up, +Z forward (the face looks at +Z), +X the face's own left.
Shapes: V vertices, T triangles, K = 52 shapes in the order of `arkit.ARKIT_NAMES`, L lip vertices, C columns of the mouth.
"""
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Head:
    """A mesh with the 52 ARKit shapes: `vertices + tensordot(weights, deltas)` is the face with those weights."""
    vertices: np.ndarray            # (V, 3) float32, neutral
    faces: np.ndarray               # (T, 3) int32, counter-clockwise seen from outside
    colors: np.ndarray              # (V, 3) float32 in [0, 1], sRGB
    deltas: np.ndarray              # (K, V, 3) float32
    lips: np.ndarray                # (L,) vertices of the red of the lips, both lips: what the lip vertex error looks at
    eyes: np.ndarray                # (2, 3) centres of the left and the right eyeball
    upper: np.ndarray | None        # (C,) inner rim of the upper lip from the right corner to the left ...
    lower: np.ndarray | None        # (C,) ... and of the lower lip, facing it; None where a template does not tell

    def pose(self, weights) -> np.ndarray:
        """weights (K,) or (F, K) -> vertices (V, 3) or (F, V, 3), float32."""
        return self.vertices + np.tensordot(np.asarray(weights, np.float32), self.deltas, axes=1)

    @property
    def interocular(self) -> float:
        """Metres from eyeball centre to eyeball centre: what errors are divided by."""
        return float(np.linalg.norm(self.eyes[0] - self.eyes[1]))
