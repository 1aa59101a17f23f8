"""Our head: what each shape moves, in which direction, and that the mesh stays whole (docs/spec/face.md 5.2)."""
from dataclasses import replace

import numpy as np
import pytest

from face import head, render
from face.arkit import ARKIT_NAMES

# Mouth targets of the phoneme classes (docs/spec/face.md 6.3), and the upper face
VISEMES = {
    "sil": dict(jawOpen=.02),
    "PP": dict(jawOpen=.1, mouthClose=.1, mouthRollLower=.25, mouthRollUpper=.15, mouthPress=.35),
    "FF": dict(jawOpen=.08, mouthStretch=.05, mouthUpperUp=.25, mouthRollLower=.55),
    "TH": dict(jawOpen=.14, mouthLowerDown=.15, mouthUpperUp=.08, tongueOut=.35),
    "DD": dict(jawOpen=.12, mouthLowerDown=.15, mouthUpperUp=.08), "nn": dict(jawOpen=.12, mouthLowerDown=.1),
    "kk": dict(jawOpen=.16, mouthLowerDown=.12),
    "SS": dict(jawOpen=.05, mouthSmile=.08, mouthStretch=.2, mouthLowerDown=.25, mouthUpperUp=.12),
    "CH": dict(jawOpen=.1, mouthFunnel=.45, mouthPucker=.3, mouthLowerDown=.15, mouthUpperUp=.15),
    "RR": dict(jawOpen=.12, mouthFunnel=.2, mouthPucker=.35), "WW": dict(jawOpen=.06, mouthFunnel=.15, mouthPucker=.75),
    "aa": dict(jawOpen=.6, mouthLowerDown=.2, mouthUpperUp=.1),
    "ae": dict(jawOpen=.45, mouthStretch=.15, mouthLowerDown=.25, mouthUpperUp=.15),
    "E": dict(jawOpen=.33, mouthStretch=.15, mouthLowerDown=.25, mouthUpperUp=.12),
    "I": dict(jawOpen=.16, mouthSmile=.35, mouthStretch=.2, mouthLowerDown=.2, mouthUpperUp=.1),
    "ih": dict(jawOpen=.2, mouthSmile=.18, mouthStretch=.12, mouthLowerDown=.15),
    "O": dict(jawOpen=.38, mouthFunnel=.45, mouthPucker=.3), "U": dict(jawOpen=.14, mouthFunnel=.25, mouthPucker=.7),
    "ax": dict(jawOpen=.22, mouthLowerDown=.12), "er": dict(jawOpen=.18, mouthFunnel=.25, mouthPucker=.25),
    "blink": dict(eyeBlink=1), "surprise": dict(browInnerUp=1, browOuterUp=1, eyeWide=1), "anger": dict(browDown=1),
    "smile": dict(mouthSmile=1, cheekSquint=1)}
LEFT = [name for name in ARKIT_NAMES if name.endswith("Left")]
MASKS = {"brow": {"brows", "skin", "lids"}, "eye": {"eyes", "lids", "lid rims", "skin"},
         "cheek": {"skin", "lids", "lid rims", "lips", "bag"},
         "nose": {"skin", "lids", "lips", "bag"}, "mouth": {"skin", "lids", "lips", "bag"},
         "jaw": {"skin", "lips", "bag", "tongue", "lower teeth"}, "tongue": {"tongue"}}


@pytest.fixture(scope="module")
def face():
    return head.make_head()


def weights(**values):
    """(52,) from names; a name without its side sets both."""
    plain = [name.replace("Left", "").replace("Right", "") for name in ARKIT_NAMES]
    return np.array([values.get(name, values.get(both, 0)) for name, both in zip(ARKIT_NAMES, plain)])


def part(face, delta_of, name):
    """(n, 3) delta of a shape on a part, metres."""
    return face.deltas[ARKIT_NAMES.index(delta_of)][face.parts[name]]


def gap(face, **values):
    """Metres between the lips, where they are furthest apart."""
    points = face.pose(weights(**values))
    return np.linalg.norm(points[face.upper] - points[face.lower], axis=1).max()


def corners(face, **values):
    """Right and left corner of the mouth, (2, 3)."""
    return face.pose(weights(**values))[face.upper[[0, -1]]]


def normals(points, faces):
    a, b, c = (points[faces[:, k]].astype(np.float64) for k in range(3))
    return np.cross(b - a, c - a)


def test_sizes_types_and_ranges(face):
    count = len(face.vertices)
    assert count < 16000 and face.deltas.shape == (52, count, 3) and face.colors.shape == (count, 3)
    assert [a.dtype for a in (face.vertices, face.faces, face.colors, face.deltas)] == ["f4", "i4", "f4", "f4"]
    assert face.faces.min() == 0 and np.array_equal(np.unique(face.faces), np.arange(count))    # every vertex is used
    assert face.colors.min() >= 0 and face.colors.max() <= 1
    body = np.setdiff1d(np.arange(count), np.append(face.parts["shirt"], face.parts["neck"]))
    low, high = face.vertices[body].min(0), face.vertices[body].max(0)
    assert .21 < (high - low)[1] < .26 and np.abs(low + high).max() < .04       # chin to crown; around the origin
    assert .06 < face.interocular < .07
    assert sum(map(len, face.parts.values())) == count
    assert all(np.isfinite(a).all() for a in (face.vertices, face.deltas))


def test_two_builds_are_equal(face):
    again = head.make_head.__wrapped__()
    for name in ("vertices", "faces", "colors", "deltas", "lips", "upper", "lower", "mirror"):
        assert np.array_equal(getattr(face, name), getattr(again, name)), name


def test_deltas_are_sparse_and_every_shape_moves_something(face):
    length = np.linalg.norm(face.deltas, axis=-1)
    assert (length > 0).mean() <= .15
    assert length[length > 0].min() > 9e-6                              # dust was set to exactly zero (1e-5 per axis)
    assert (length.max(1) > .002).all() and length.max() < .06          # 2 mm: visible; 6 cm: a mistake


def test_lips_are_a_box_around_the_mouth_and_the_rims_face_each_other(face):
    lips, rims = face.vertices[face.lips], face.vertices[[face.upper, face.lower]]
    assert np.ptp(lips[:, 0]) < .06 and np.ptp(lips[:, 1]) < .03 and np.ptp(lips[:, 2]) < .03
    assert np.isin([face.upper, face.lower], face.lips).all()
    assert (np.diff(rims[..., 0], axis=1) > 0).all()                    # from the right corner to the left
    assert np.allclose(rims[0], rims[1], atol=1e-6)
    assert face.upper[0] == face.lower[0] and face.upper[-1] == face.lower[-1]
    assert not np.isin(face.upper[1:-1], face.lower).any()              # an opening needs two lips


def test_mouth_close_seals_the_opened_jaw(face):
    opened = gap(face, jawOpen=1)
    assert opened > .3 * face.interocular
    assert gap(face) < 1e-5
    for jaw in (.3, 1):
        assert gap(face, jawOpen=jaw, mouthClose=jaw) < .02 * opened
    chin = part(face, "jawOpen", "lower teeth")[:, 1].mean()
    assert chin < -.02 and np.abs(part(face, "mouthClose", "lower teeth")).max() == 0      # sealed lips, lowered jaw


@pytest.mark.parametrize("sealed", [
    {}, dict(jawOpen=1, mouthClose=1), dict(mouthRollLower=1), dict(mouthSmile=1), dict(mouthPress=1),
    dict(jawOpen=.25, mouthClose=.25, mouthRollLower=.4, mouthRollUpper=.25, mouthPress=.35, mouthShrugLower=.25)])
def test_the_inside_of_a_sealed_mouth_stays_behind_lips_and_skin(face, sealed):
    """The page renders both sides of a triangle, so both are here. Green is the bag, all else is black."""
    bag = face.faces[np.isin(face.faces, face.parts["bag"]).any(1)]
    colors = np.zeros_like(face.colors)
    colors[face.parts["bag"], 1] = 1
    picture = render.still(replace(face, colors=colors, faces=np.concatenate([face.faces, bag[:, ::-1]])),
                           weights(**sealed), 400, background=(0, 0, 0), close=True).astype(int)
    assert (picture[..., 1] > picture[..., 0] + 20).sum() == 0


def test_the_lips_face_forward_up_to_the_seam(face):
    """Where a normal turns away from the viewer, the page takes the other side for lit: the seam would be jagged."""
    seam = render.normals(face.vertices, face.faces)[np.concatenate([face.upper, face.lower])]
    assert seam[:, 2].min() > 0


def test_the_neutral_head_is_its_own_mirror_image(face):
    flip, inner = np.float32([-1, 1, 1]), np.setdiff1d(np.arange(len(face.mirror)), face.parts["highlights"])
    assert np.array_equal(face.mirror[face.mirror], np.arange(len(face.mirror)))
    assert np.array_equal(face.vertices[face.mirror[inner]], face.vertices[inner] * flip)
    assert np.array_equal(face.colors[face.mirror], face.colors)


def test_right_shapes_are_exact_mirror_images_of_left_ones(face):
    flip = np.float32([-1, 1, 1])
    for name, delta in zip(ARKIT_NAMES, face.deltas):
        other = name.replace("Left", "Right") if name.endswith("Left") else name.replace("Right", "Left")
        assert np.array_equal(face.deltas[ARKIT_NAMES.index(other)], delta[face.mirror] * flip), name


def test_sided_shapes_stay_on_their_side(face):
    for name in LEFT:
        if name not in ("jawLeft", "mouthLeft"):                        # those two move everything to the left
            moved = np.abs(face.deltas[ARKIT_NAMES.index(name)]).max(-1) > 0
            assert face.vertices[moved, 0].min() > -.008, name          # 8 mm: shapes overlap in the middle of a lip


def test_nothing_moves_outside_its_mask(face):
    for name, delta in zip(ARKIT_NAMES, face.deltas):
        allowed = next(parts for start, parts in MASKS.items() if name.startswith(start))
        for label, index in face.parts.items():
            assert label in allowed or not delta[index].any(), (name, label)
        moved = face.vertices[np.abs(delta).max(-1) > 0, 1]
        if name.startswith(("brow", "eye")):
            assert moved.min() > -.02, name                             # above the nostrils
        if name.startswith(("mouth", "jaw", "cheekPuff")):
            assert moved.max() < .012, name                             # below the pupils


def test_jaw_open_lowers_the_lower_lip_and_teeth_and_leaves_the_upper_teeth(face):
    delta = face.deltas[ARKIT_NAMES.index("jawOpen")]
    middle = len(face.lower) // 2
    assert delta[face.lower[middle], 1] < -.02 and abs(delta[face.upper[middle], 1]) < .001
    assert (part(face, "jawOpen", "lower teeth")[:, 1] < -.015).all()       # the hindmost are nearest to the hinge
    assert part(face, "jawOpen", "tongue")[:, 1].mean() < -.01


def test_the_mouth_moves_the_way_its_names_say(face):
    width = lambda **values: np.ptp(corners(face, **values)[:, 0])
    rest = corners(face)
    smile = corners(face, mouthSmile=1)
    assert width(mouthSmile=1) > 1.2 * width() and (smile[:, 1] > rest[:, 1] + .005).all()
    assert (corners(face, mouthFrown=1)[:, 1] < rest[:, 1] - .005).all()
    assert width(mouthStretch=1) > 1.2 * width()
    assert width(mouthPucker=1) < .6 * width() and width(mouthFunnel=1) < .8 * width()
    assert gap(face, mouthFunnel=1) > .2 * gap(face, jawOpen=1)
    for name in ("mouthLeft", "jawLeft"):
        assert part(face, name, "lips")[:, 0].mean() > .002, name       # to the face's own left, +X
    assert part(face, "jawForward", "lower teeth")[:, 2].min() > .005
    front = lambda **values: face.pose(weights(**values))[face.parts["tongue"], 2].max()
    lips = face.vertices[face.lips, 2].max()
    assert front() < lips - .01 and front(tongueOut=1) > lips


def test_eyes_look_where_the_names_say(face):
    eye = face.parts["eyes"]
    eye = eye[face.vertices[eye, 0] > 0]
    pupil = eye[np.argmax(face.vertices[eye, 2])]
    inwards, out, up, down = (face.deltas[ARKIT_NAMES.index(f"eyeLook{name}Left"), pupil]
                              for name in ("In", "Out", "Up", "Down"))
    assert inwards[0] < -.005 and out[0] > .005                         # in is towards the nose: the face's right
    assert up[1] > .004 and down[1] < -.004


def test_a_blink_covers_the_eye_all_the_way_down(face):
    """The eyeball never pierces the lids (their way is a straight line); from the front, no gap is left at 1."""
    side = lambda index: index[face.vertices[index, 0] > 0]
    lids, ball = side(face.parts["lids"]), side(face.parts["eyes"])
    for amount in (.25, .5, .75, 1):
        points = face.pose(weights(eyeBlink=amount))
        centre = face.eyes[0] + (points[ball] - face.vertices[ball]).mean(0)
        radius = np.linalg.norm(face.vertices[ball] - face.eyes[0], axis=1).max()
        depth = np.linalg.norm(points[lids] - centre, axis=1)
        assert depth.min() > radius, amount
    x = np.linspace(-.012, .012, 9) + face.eyes[0, 0]
    triangles = points[face.faces[np.isin(face.faces, lids).all(1)]][..., :2].astype(np.float64)
    for y in np.linspace(-.008, .009, 35) + face.eyes[0, 1]:
        for point in np.stack([x, np.full_like(x, y)], -1):
            a, b, c = (triangles[:, k] - point for k in range(3))
            cross = lambda p, q: p[:, 0] * q[:, 1] - p[:, 1] * q[:, 0]
            signs = np.stack([cross(a, b), cross(b, c), cross(c, a)])
            assert ((signs >= -1e-12).all(0) | (signs <= 1e-12).all(0)).any(), point


def test_no_triangle_is_degenerate_and_closed_parts_face_outwards(face):
    areas = np.linalg.norm(normals(face.vertices, face.faces), axis=1) / 2
    assert areas.min() > 1e-9                                           # a thousandth of a square millimetre
    for name in ("eyes", "brows", "tongue", "hair", "ears", "neck", "shirt", "upper teeth", "lower teeth", "bag"):
        inside = face.faces[np.isin(face.faces, face.parts[name]).all(1)]
        inside = inside[face.vertices[inside, 0].mean(1) > 0] if name in ("eyes", "brows", "ears") else inside
        centre = face.eyes[0] if name == "eyes" else face.vertices[inside].mean((0, 1))
        outward = np.einsum("td,td->t", normals(face.vertices, inside), face.vertices[inside].mean(1) - centre)
        outward *= -1 if name == "bag" else 1                           # which is seen from inside
        assert outward.sum() > 0 and (name not in ("eyes", "neck") or outward.min() > 0), name
    skin = face.faces[np.isin(face.faces, np.append(face.parts["skin"], face.parts["lips"])).all(1)]
    ahead = skin[face.vertices[skin, 2].min(1) > .06]
    assert (normals(face.vertices, ahead)[:, 2] > 0).mean() > .97       # the face looks at +Z


@pytest.mark.parametrize("name", VISEMES)
def test_no_triangle_of_the_skin_flips(face, name):
    skin = face.faces[np.isin(face.faces, np.concatenate([face.parts["skin"], face.parts["lids"]])).all(1)]
    points = face.pose(weights(**VISEMES[name]))
    turned = np.einsum("td,td->t", normals(face.vertices, skin), normals(points, skin))
    assert (turned > 0).all(), f"{(turned <= 0).sum()} triangles"


def test_visemes_give_different_lips(face):
    """Every two of these differ by more than 2.5 mm somewhere on the lips: one pixel of a 200 pixel picture is 1.5."""
    shapes = [face.pose(weights(**VISEMES[name]))[face.lips] for name in ("PP", "aa", "U", "I", "FF", "CH", "sil")]
    for i, one in enumerate(shapes):
        for two in shapes[:i]:
            assert np.linalg.norm(one - two, axis=1).max() > .0025
