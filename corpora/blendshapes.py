"""A moving skin -> weights of blendshapes, as Audio2Face-3D does it: bounded least squares (docs/spec/paper.md, Data).

Weights x in [0, 1] minimise |D x - d|^2, plus terms that keep them small, left and right alike, and each frame near the
one before. D are the shapes' vertex offsets, d the offset of the skin from its neutral form; terms and factors are
those of NVIDIA's program. One difference: with the normal equations M x = b, NVIDIA minimises |M x - b|^2, we minimise
x M x / 2 - b x, the least squares themselves. Both give the same x if no bound is active.

Shapes: T face frames, K = 52 blendshapes, C coefficients of the skin, X vertices, A active shapes.
"""
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np

import disk
from disk import Positive, Scale, Size
from face.arkit import from_names, tidy

WHAT = "Audio2Face-3D v2.3 as NVIDIA publishes it"
PRECISION, ROUNDS = 1e-8, 20_000    # the solver stops at smaller changes of the weights, or after so many steps
Flags, Factors = Annotated[list[int], 1, 1024], Annotated[list[float], 1, 1024]


@dataclass
class Style:
    """config of model_config.json."""
    source_shot: str
    source_frame: Annotated[int, 0, 1 << 30]
    input_strength: Scale = 1.0
    skin_strength: Scale = 1.0
    lower_face_strength: Scale = 1.0
    upper_face_strength: Scale = 1.0
    face_mask_level: float = 0.6
    face_mask_softness: Positive = 0.0085
    eyelid_open_offset: float = 0.0
    lip_open_offset: float = 0.0


@dataclass
class Solver:
    """blendshape_params of bs_skin_config.json. Lists have a value per shape. Two shapes with the same number in
    ...CancelPoses exclude each other, in ...SymmetryPoses they should be alike; -1 stands for none."""
    numPoses: Size
    strengthL1regularization: Scale
    strengthL2regularization: Scale
    strengthTemporalSmoothing: Scale
    strengthSymmetry: Scale
    templateBBSize: Positive
    bsSolveActivePoses: Flags
    bsSolveCancelPoses: Flags
    bsSolveSymmetryPoses: Flags
    bsWeightMultipliers: Factors
    bsWeightOffsets: Factors


class Shapes:
    """Skin coefficients -> weights of the 52 shapes. As the skin is linear in the coefficients, they are projected onto
    the shapes without computing vertices."""

    def __init__(self, directory: Path, style: Style, coefficients: int):
        path = directory / "bs_skin_config.json"
        self.options = disk.typed(disk.read_json(path), "blendshape_params", Solver, path)
        skin = read_npz(directory / "bs_skin.npz")
        self.where, poses = directory / "bs_skin.npz", texts(skin.get("poseNames", []))
        self.names = [name for name in poses if name != "neutral"]
        lacking = [name for name in ["neutral", "frontalMask", *self.names] if name not in skin]
        if lacking or not self.names:
            raise ValueError(f"{self.where} has no {(lacking or ['poseNames'])[0]}: expected {WHAT}")
        form, vertices, count = skin["neutral"].shape, skin["frontalMask"].astype(int), len(self.names)
        if any(skin[name].shape != form for name in self.names) or vertices.min() < 0 or vertices.max() >= form[0]:
            raise ValueError(f"{self.where} has shapes or vertices that do not fit its skin {form}: fetch it again")
        lists = [value for value in vars(self.options).values() if isinstance(value, list)]
        if self.options.numPoses != count or any(len(value) != count for value in lists):
            raise ValueError(f"{path} has {self.options.numPoses} shapes and {sorted(set(map(len, lists)))} values for "
                             f"them, bs_skin.npz has {count} shapes")
        self.active = np.flatnonzero(self.options.bsSolveActivePoses)
        if not len(self.active):
            raise ValueError(f"{path} has no active shape: fetch it again")
        offsets = np.stack([skin[self.names[k]][vertices] for k in self.active]).reshape(len(self.active), -1)
        self.project(directory / "model_data.npz", style, skin["neutral"], vertices, offsets, coefficients)
        size = np.linalg.norm(skin["neutral"].max(0) - skin["neutral"].min(0))
        self.regularise(offsets.astype(float), (size / self.options.templateBBSize) ** 2)

    def project(self, path: Path, style: Style, neutral, vertices, offsets, coefficients: int) -> None:
        """Set self.basis (C, A) and self.base (A,): the skin of coefficients c, projected, is c @ basis + base."""
        data = read_npz(path, "shapes_matrix_skin", "shapes_mean_skin", "eye_close_pose_delta", "lip_open_pose_delta")
        mean, moves = data["shapes_mean_skin"], data["shapes_matrix_skin"]
        if mean.shape != neutral.shape or moves.size != coefficients * mean.size:
            raise ValueError(f"{path}: a skin {mean.shape} that moves by {moves.shape}, expected {neutral.shape}, "
                             f"moved by {coefficients} coefficients")
        moves = moves.reshape(coefficients, *mean.shape)
        height = (mean[:, 1] - mean[:, 1].min()) / np.ptp(mean[:, 1])
        lower = 1 / (1 + np.exp(np.clip((height - style.face_mask_level) / style.face_mask_softness, -500, 500)))
        gain = style.upper_face_strength * (1 - lower) + style.lower_face_strength * lower
        gain = gain[vertices, None]                                                     # (X, 1)
        rest = data["lip_open_pose_delta"] * style.lip_open_offset - (data["eye_close_pose_delta"]
                                                                      * style.eyelid_open_offset)
        flat = lambda moved: np.asarray(moved, float).reshape(*moved.shape[:-2], -1)    # (..., X, 3) -> (..., 3 X)
        self.basis = flat(style.skin_strength * gain * moves[:, vertices]) @ offsets.T
        self.base = flat((mean - neutral)[vertices] + gain * rest.reshape(mean.shape)[vertices]) @ offsets.T

    def regularise(self, offsets, scale: float) -> None:
        """Set self.matrix (A, A) of the least squares; self.temporal, the factor of the previous frame's weights on the
        right-hand side; and self.exclusive, pairs of shapes. All factors are NVIDIA's."""
        o, n = self.options, len(offsets)
        apart = np.zeros((n, n))
        for one, other in self.pairs(o.bsSolveSymmetryPoses):
            apart += np.outer(row := np.eye(n)[one] - np.eye(n)[other], row)
        self.matrix = offsets @ offsets.T + scale * (
            0.25 * o.strengthL1regularization ** 2 + 10 * o.strengthSymmetry * apart
            + (10 * o.strengthL2regularization + 100 * o.strengthTemporalSmoothing) * np.eye(n))
        self.temporal = scale * o.strengthTemporalSmoothing
        self.exclusive = self.pairs(o.bsSolveCancelPoses)

    def pairs(self, numbers: list) -> list:
        """Pairs of active shapes, by position, that have the same number."""
        own = [numbers[k] for k in self.active]
        found = [[i for i, number in enumerate(own) if number == pair] for pair in sorted(set(own) - {-1})]
        return [pair for pair in found if len(pair) == 2]

    def track(self, coefficients) -> np.ndarray:
        """Coefficients (T, C) -> track (T, K). Raises ValueError if they are not finite."""
        target = coefficients.astype(float) @ self.basis + self.base                    # (T, A)
        if not np.isfinite(target).all():
            raise ValueError("the network's coefficients are not finite")
        upper = np.ones_like(target)
        x = smooth(self.matrix, target, upper, self.temporal)
        for one, other in self.exclusive:
            upper[np.arange(len(x)), np.where(x[:, one] >= x[:, other], other, one)] = 0
        x = smooth(self.matrix, target, upper, self.temporal) if self.exclusive else x
        weights = np.zeros((len(x), len(self.names)))
        weights[:, self.active] = x
        weights = weights * self.options.bsWeightMultipliers + self.options.bsWeightOffsets
        return tidy(from_names(weights.clip(0, 1), self.names, self.where))


# ---- bounded least squares ----------------------------------------------------------------------------------------

def smooth(matrix, target, upper, temporal: float) -> np.ndarray:
    """As `bounded`, with `temporal` times the previous frame's x added to each target. All frames are solved at once,
    again and again until nothing changes; as temporal is at most a hundredth of the matrix, that is soon."""
    x = np.zeros_like(target)
    for _ in range(10):
        before = np.vstack([np.zeros_like(x[:1]), x[:-1]])
        x, last = bounded(matrix, target + temporal * before, upper, x), x
        if np.abs(x - last).max() < PRECISION or not temporal:
            break
    return x


def bounded(matrix, target, upper, x) -> np.ndarray:
    """For each row the x in [0, upper] (T, A) that minimises x M x / 2 - target x; M (A, A) is symmetric. x: a first
    guess. Accelerated projected gradient (Nesterov)."""
    least, most = np.linalg.eigvalsh(matrix)[[0, -1]]
    root = np.sqrt(max(least / most, 1e-8))
    momentum, ahead = (1 - root) / (1 + root), x
    for _ in range(ROUNDS):
        x, last = np.clip(ahead - (ahead @ matrix - target) / most, 0, upper), x
        if np.abs(x - last).max() < PRECISION * root:
            break
        ahead = x + momentum * (x - last)
    return x


# ---- files -------------------------------------------------------------------------------------------------------

def read_npz(path: Path, *names) -> dict:
    """Arrays of an npz file, all if none is named. Raises FileNotFoundError or ValueError."""
    try:
        with np.load(disk.regular(path, WHAT), allow_pickle=False) as file:
            return {name: file[name] for name in names or file.files}
    except FileNotFoundError:
        raise
    except Exception as error:                              # a damaged zip raises any kind
        raise ValueError(f"{path} cannot be read ({error}): expected {WHAT}, fetch it again") from None


def texts(names) -> list:
    """An array of bytes or texts -> list of str."""
    return [name.decode(errors="replace") if isinstance(name, bytes) else str(name) for name in names]
