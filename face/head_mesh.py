"""The neutral mesh of our head: skin with mouth and lids, eyes, brows, teeth, tongue, ears, hair, neck, shirt.

docs/spec/face.md 5.2. Lengths are centimetres, +Y up, +Z forward, +X the face's own left. Only the left half of each
part is made here; `head.make_head` mirrors it and adds the shapes. Letters: V vertices, R rows, C columns of a sheet.
"""
import numpy as np

from face.mesh import Mesh, gauss, grid, join, mix, smooth

SKULL = np.array([7.3, 10.6, 9.2])  # half axes of the skull
BOXY = 2.35                         # exponent of the skull's upright section: 2 is an ellipse, more is boxier
MOUTH_TILT = np.radians(27)         # angle of the mouth below the horizon, seen from the middle of the head
MOUTH = 2.35, 0.22                  # half width of the slit, and how far the red reaches past its corner
LIP = 0.58, 0.80                    # height of the red of the upper and the lower lip
EYE, EYE_RADIUS = np.array([3.2, 1.0, 5.75]), 1.90
HALF, RED, RINGS = 48, 6, 36        # columns of half a mouth; rings on the lips, and from there out to the scalp
# Rings inside the mouth, back to front: v, share of the full height, cm behind the face. The last one is close behind
# the slit: normals at the slit are means over it and the red of the lips, and must not turn away from the viewer.
BAG = np.array([(-1, 0, 4.5), (-.8, .5, 3.2), (-.6, .9, 2.1), (-.4, 1, 1.3), (-.2, .5, .7), (-.05, .02, .2)])

SKINTONE, BLUSH, LIPRED, INSIDE = (.95, .745, .62), (.93, .53, .46), (.81, .44, .41), (.36, .09, .10)
HAIR, HAIR_LIGHT, LASH, SHIRT = (.27, .165, .11), (.43, .27, .17), (.20, .12, .09), (.25, .46, .55)
EYEWHITE, IRIS, IRIS_RIM, PUPIL = (.97, .96, .94), (.36, .56, .58), (.12, .24, .30), (.03, .03, .04)
TOOTH, GUM, TONGUE = (.96, .94, .88), (.72, .32, .33), (.83, .42, .42)


# The surface of the face

def skull(direction):
    """Unit directions (…, 3) -> points of the bare skull: a rounded box, narrower towards the chin."""
    x, y, z = np.moveaxis(direction, -1, 0)
    size = (np.hypot(x, z) ** BOXY + np.abs(y) ** BOXY) ** (1 / BOXY)
    points = direction / size[..., None] * SKULL
    points[..., 0] *= taper(points[..., 1])
    points[..., 1] += 4.2 * smooth((-3 - points[..., 1]) / 7) * smooth((4.5 - points[..., 2]) / 10)     # jaw line, nape
    return points


def taper(y):
    """Width of the skull at height y, as a share of its width above the cheekbones."""
    return 1 - .20 * smooth((-1.0 - y) / 9)


def relief(x, y):
    """Height of the face over the skull, cm, at (x, y) seen from the front: nose, cheeks, chin and so on."""
    x = np.abs(x)
    down = np.clip((2.9 - y) / 4.5, 0, 1)
    nose = (.15 + 1.00 * down ** 1.2) * smooth((3.9 - y) / 2) * smooth((y + 3.1) / 1.6)
    return (nose * np.exp(-(x / (.62 + .38 * down)) ** 2)
            + .62 * gauss(x, y, (0, -1.45), (1.0, .85))             # tip
            + .60 * gauss(x, y, (1.00, -1.95), (.50, .50))          # wings
            - .25 * gauss(x, y, (.50, -2.50), (.28, .22))           # nostrils
            - 1.10 * gauss(x, y, (3.2, 1.15), (1.9, 1.35))          # eye sockets
            + .35 * gauss(x, y, (2.6, 3.5), (2.6, .9))              # brow ridge
            + .55 * gauss(x, y, (4.1, -2.0), (1.7, 1.7))            # cheeks
            + .75 * gauss(x, y, (0, -4.9), (2.6, 2.0))              # muzzle
            - .14 * gauss(x, y, (0, -3.55), (.32, .6))              # philtrum
            - .40 * gauss(x, y, (0, -6.75), (1.9, .55))             # under the lower lip
            + 1.75 * gauss(x, y, (0, -8.7), (2.3, 1.7)))            # chin


def front(x, y):
    """Height z of the face, cm, at (x, y): the surface that brows and lids lie on."""
    inside = (1 - np.abs(y / SKULL[1]) ** BOXY) ** (2 / BOXY) - (x / SKULL[0] / taper(y)) ** 2
    return SKULL[2] * np.sqrt(np.maximum(inside, 0)) + relief(x, y)


def hair_depth(points):
    """How far inside the hair line points (…, 3) lie: 0 on it, 1 at the crown, negative outside."""
    x, y, z = np.moveaxis(points / SKULL, -1, 0)
    tilt = np.radians(25)                                           # the crown lies this far behind the top
    up, ahead = y * np.cos(tilt) - z * np.sin(tilt), y * np.sin(tilt) + z * np.cos(tilt)
    azimuth = np.arctan2(np.abs(x), ahead)
    return 1 - np.arctan2(np.hypot(x, ahead), up) / hair_rim(azimuth)


def hair_rim(azimuth):
    """Angle from the crown to the hair line: forehead, temple, whisker, ear, nape."""
    degrees = ([0, 22, 44, 60, 71, 77, 82, 87, 94, 104, 110, 118, 135, 180],
               [69, 71, 75, 74, 78, 90, 90, 77, 73, 75, 83, 93, 98, 100])
    return np.radians(np.interp(np.degrees(azimuth), *degrees))


def complexion(points):
    """Skin colours at points (…, 3): blush on cheeks, nose and chin, warmer lids, a soft hair line."""
    x, y = np.abs(points[..., 0]), points[..., 1]
    ahead = smooth(points[..., 2] / 4)
    blush = (.62 * gauss(x, y, (4.2, -1.9), (1.7, 1.4)) + .40 * gauss(x, y, (0, -1.9), (1.3, .9))
             + .15 * gauss(x, y, (0, -8.8), (1.5, 1.0)) + .28 * gauss(x, y, (3.2, 1.2), (2.2, 1.6))) * ahead
    color = mix(SKINTONE, BLUSH, np.clip(blush, 0, 1))
    color = mix(color, (.45, .20, .16), .8 * gauss(x, y, (.50, -2.44), (.27, .17)) * ahead)
    return mix(color, HAIR, smooth((hair_depth(points) - .02) / .04))


# The parts, each the left half only

def mouth_and_skin() -> Mesh:
    """Rings around the mouth: the bag inside it, the slit, the red of the lips, then the skin.

    u is the angle: -90 degrees at the chin, 0 at the corner, 90 at the nose. v runs from -1 at the back of the bag to 0
    at the slit and 1 at the edge of the red; on the skin it is 1 + the distance from there in cm. Upper and lower slit
    are different vertices that touch.
    """
    u = np.linspace(-np.pi / 2, np.pi / 2, HALF + 1)
    cos, sin = np.cos(u), np.sin(u)
    cos[[0, -1]] = 0                                                # exactly on the middle line
    (width, past), (upper, lower) = MOUTH, LIP
    bow = 1 - .16 * np.exp(-(cos / .16) ** 2) + .10 * np.exp(-((cos - .28) / .16) ** 2)
    red = np.where(sin > 0, upper * bow, -lower) * np.abs(sin) ** .9    # from the slit to the edge of the red
    slit = .16 * cos ** 2 - .07 * np.exp(-(cos / .25) ** 2)         # corners a little up, the middle a little down
    v, rows = [], []                                                # rows: x, y along the face and height over it
    for inwards, share, depth in BAG:
        v.append(inwards)
        rows.append(((width - .1 * inwards ** 2) * cos, slit + np.where(sin > 0, 1.2, 1.9) * share * sin, -depth))
    for t in np.linspace(0, 1, RED + 1):
        bulge = .32 * np.sin(np.pi * (.12 + .88 * t)) * np.abs(sin) ** .5
        v.append(t)
        rows.append(((width + past * t) * cos, slit + red * t, bulge - .12 + .12 * t))
    for far in 18.2 * np.expm1(2.3 * np.arange(1, RINGS + 1) / RINGS) / np.expm1(2.3):
        round_ = smooth(far / 4)                                    # near the lips rings follow them, then ellipses
        x = (1 - round_) * (width + past + far) + round_ * np.sqrt((far + .55) ** 2 + 6.2 * (1 - smooth(far / 16)))
        y = (1 - round_) * (slit + red + far * sin) + round_ * (far + upper) * sin
        v.append(1 + far)
        rows.append((x * cos, y, 0))
    points = wrapped(np.stack([np.stack(np.broadcast_arrays(*row), -1) for row in rows]))
    v = np.array(v)[:, None] + 0 * u
    lip = mix(LIPRED, (.64, .28, .27), np.clip(1 - np.abs(v) / .35, 0, 1))
    soft_edge = np.select([v > 1.001, v > .999], [1, .55], 0)
    color = mix(mix(lip, INSIDE, smooth(-v / .06)), complexion(points), soft_edge)
    mesh = grid(points, color, np.select([v < 0, v <= 1], ["bag", "lips"], "skin"), u, v)
    return mesh._replace(faces=mesh.faces[~(hair_depth(mesh.points) > .10)[mesh.faces].all(1)])     # hidden by hair


def wrapped(flat):
    """x and y in cm along the face from the middle of the mouth, and height over it (…, 3) -> points (…, 3)."""
    x, y = flat[..., 0] / 7.8, flat[..., 1] / 9.6
    angle = np.hypot(x, y)
    ratio = np.sinc(angle / np.pi)
    dx, dy, dz = x * ratio, y * ratio, np.cos(angle)
    cos, sin = np.cos(MOUTH_TILT), np.sin(MOUTH_TILT)
    points = skull(np.stack([dx, dy * cos - dz * sin, dy * sin + dz * cos], -1))
    points[..., 2] += relief(points[..., 0], points[..., 1]) * smooth((points[..., 2] + 1) / 5) + flat[..., 2]
    return points


LID_COLUMNS, LID_ROWS = 40, np.array([-.12, 0, .06, .13, .22, .33, .46, .60, .74, .88, 1])


def lid_plane(u, v):
    """Lid vertices seen from the front, cm from the eye's centre: v = 0 is the edge of the lid, 1 the outer rim."""
    cos, sin = np.cos(u), np.sin(u)
    edge_x, edge_y = 1.50 * cos, np.where(sin > 0, 1.04, .92) * np.abs(sin) ** .9 * np.sign(sin) + .10 * cos
    rim_x, rim_y = 2.35 * cos, np.where(sin > 0, 1.95, 1.75) * sin
    v = np.maximum(v, 0)
    return edge_x + (rim_x - edge_x) * v, edge_y + (rim_y - edge_y) * v


def lid_surface(x, y, skin, lift=0.0):
    """Points of a lid: the edge (skin = 0) is on the eyeball, the rim (skin = 1) on ball or face, whichever is in
    front."""
    ball = EYE[2] + np.sqrt(np.maximum((EYE_RADIUS + .12 + lift) ** 2 - x * x - y * y, 0))
    face = front(x + EYE[0], y + EYE[1])
    outer = (ball + face + np.hypot(ball - face, .30)) / 2
    return np.stack([x + EYE[0], y + EYE[1], ball + (outer - ball) * skin], -1)


def lid_points(u, v, upper=0.0, lower=0.0, lift=0.0):
    """Points of the lids. upper and lower move their edges along the eyeball: 0 neutral, 1 to the line where both meet.
    lift: cm in front of the eyeball."""
    x, y = lid_plane(u, v)
    _, top = lid_plane(np.abs(u), 0)
    _, bottom = lid_plane(-np.abs(u), 0)
    meet = bottom + (.22 + .28 * np.cos(u) ** 8) * (top - bottom)
    share = (1 - np.maximum(v, 0)) ** 1.6
    y = y + share * np.where(u > 0, upper * (meet - top), lower * (meet - bottom))
    points = lid_surface(x, y, smooth(v / .5), lift)
    above = np.clip(np.sin(u), 0, 1)
    points[..., 2] += .10 * above * (np.abs(v - .03) < .05)                                     # lashes
    points[..., 2] -= .16 * above * (1 - upper) * np.exp(-((v - .40) / .10) ** 2)               # fold
    inner = EYE + (points - EYE) * ((EYE_RADIUS - .06) / np.linalg.norm(points - EYE, axis=-1))[..., None]
    return np.where((v < 0)[..., None], inner, points)


def eyelids() -> Mesh:
    """Rings around the eye from behind the edge of the lids to the skin; u the angle, v as in `lid_plane`."""
    u = np.linspace(-np.pi, np.pi, LID_COLUMNS, endpoint=False)[None] + 0 * LID_ROWS[:, None]
    v = LID_ROWS[:, None] + 0 * u
    points = lid_points(u, v)
    upper = smooth(np.sin(u) * 3 + .3)
    color = mix(complexion(points), mix((.80, .50, .43), LASH, upper), smooth((.20 - v) / .14) * (.35 + .65 * upper))
    return grid(points, color, np.where(v < 0, "lid rims", "lids"), u, v, wrap=True)


def sew(skin: Mesh, patch: Mesh) -> Mesh:
    """Cut a hole into the skin where the patch lies, and join its rim to the last row of the patch."""
    x, y, z = skin.points.T
    inside = (((x - EYE[0]) / 2.6) ** 2 + ((y - EYE[1]) / 2.0) ** 2 < 1) & (z > 0)
    cut = inside[skin.faces].any(1)
    edges = {tuple(edge) for edge in skin.faces[cut][:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2).tolist()}
    following = {a: b for a, b in edges if (b, a) not in edges}
    rim = [min(following)]
    while following[rim[-1]] != rim[0]:
        rim.append(following[rim[-1]])
    mesh = join([skin._replace(faces=skin.faces[~cut]), patch])
    row = np.arange(len(mesh.points) - LID_COLUMNS, len(mesh.points))
    return mesh._replace(faces=np.concatenate([mesh.faces, zipped(mesh.points, np.array(rim), row)]))


def zipped(points, outer, inner):
    """Triangles between two loops of vertices around the left eye, both counter-clockwise, in order of their angle."""
    loops, angles = [], []
    for loop in (outer, inner):
        angle = np.arctan2(points[loop, 1] - EYE[1], points[loop, 0] - EYE[0])
        first = np.argmin(angle)
        loops.append(np.roll(loop, -first).tolist())
        angles.append(np.unwrap(np.append(np.roll(angle, -first), angle[first] + 2 * np.pi)))
    (outer, inner), (outer_angles, inner_angles) = [loop + loop[:1] for loop in loops], angles
    i = j = 0
    faces = []
    while i + 1 < len(outer) or j + 1 < len(inner):
        if j + 1 == len(inner) or (i + 1 < len(outer) and outer_angles[i + 1] < inner_angles[j + 1]):
            faces.append((outer[i], outer[i + 1], inner[j]))
            i += 1
        else:
            faces.append((outer[i], inner[j + 1], inner[j]))
            j += 1
    return np.array(faces)


def eyeball() -> Mesh:
    """Rings around the line of sight: pupil, iris with a dark rim, white."""
    ring = np.radians([0, 6, 11.5, 13, 20, 26, 28.5, 31, 40, 55, 75, 100])[:, None]
    around = np.linspace(0, 2 * np.pi, 28, endpoint=False)[None]
    x, y, z = np.sin(ring) * np.cos(around), np.sin(ring) * np.sin(around), np.cos(ring) + 0 * around
    iris = mix(IRIS, (.62, .80, .78), smooth((.6 - np.sin(around)) / 1.6))
    color = np.concatenate([np.tile(PUPIL, (3, 28, 1)), np.tile(iris, (3, 1, 1)), np.tile(IRIS_RIM, (1, 28, 1)),
                            np.tile(EYEWHITE, (5, 28, 1))])
    color = mix(color, (.70, .62, .60), .55 * smooth((y - .30) / .45))      # shade of the upper lid
    return grid(EYE + EYE_RADIUS * np.stack([x, y, z], -1), color, "eyes", around, ring, wrap=True)


def highlight(side) -> Mesh:
    """A white spot on the eye, up and to the viewer's left on both eyes. It does not move when the eye turns."""
    ring, around = np.array([0, .6, 1])[:, None], np.linspace(0, 2 * np.pi, 12, endpoint=False)[None]
    x, y = -.30 + .19 * ring * np.cos(around), .36 + .22 * ring * np.sin(around)
    z = np.sqrt((EYE_RADIUS + .035) ** 2 - x * x - y * y) + 0 * x
    points = np.stack([x, y, z], -1) + EYE * (side, 1, 1)
    return grid(points, (1., 1., 1.), "highlights", wrap=True)


def brow() -> Mesh:
    """A tapered tube on the brow ridge, from the nose outwards; u runs along it from 0 to 1."""
    u, around = np.linspace(0, 1, 15)[:, None], np.linspace(0, 2 * np.pi, 8, endpoint=False)[None]
    x, y = 1.25 + 3.9 * u, 3.25 + .75 * np.sin(np.pi * (.12 + .68 * u)) - .35 * u
    thick = .36 * np.sqrt(np.clip(4.2 * (u + .02) * (1.04 - u) ** 1.4, .002, 1))
    y = y + thick * np.cos(around)
    x = x + 0 * y
    z = front(x, y) + .02 + .38 * thick / .36 * np.sin(around)
    return grid(np.stack([x, y, z], -1)[:, ::-1], HAIR, "brows", u, wrap=True)


def teeth(upper: bool) -> Mesh:
    """A row of teeth on an arc with its gum, open at the back; the rows run over the front and under the edge."""
    u = np.linspace(0, 1.5, 29)[None]                              # angle along the arc: 0 the middle
    tooth = np.abs(np.sin(np.pi * u / 1.5 * 7)) ** .5              # 0 between two teeth
    profile = np.array([(-.45, .95), (-.05, .68), (0, .40), (0, .12), (-.06, .02), (-.25, 0), (-.40, .25)])
    depth, rise = profile[:, :1] - .03 * (1 - tooth), profile[:, 1:] + .02 * (1 - tooth) * (profile[:, 1:] < .3)
    radius = 2.45 if upper else 2.3
    x, z = (radius + depth) * np.sin(u), (radius + .8 + depth) * np.cos(u) + (6.90 - radius - (0 if upper else .12))
    x[:, 0] = 0
    y = -5.14 + rise if upper else -5.12 - rise
    color = mix(mix((.86, .81, .75), TOOTH, tooth), GUM, 1. * (profile[:, 1:] > .6) + 0 * u)
    points = np.stack(np.broadcast_arrays(x, y, z), -1)
    return grid(points if upper else points[::-1], color if upper else color[::-1],
                "upper teeth" if upper else "lower teeth")


def tongue() -> Mesh:
    """A flat ellipsoid with a groove; v runs from the tip (0) to the root (1)."""
    v, around = np.linspace(0, 1, 12)[:, None], np.linspace(-np.pi / 2, np.pi / 2, 11)[None]
    round_ = np.sqrt(np.clip(1 - (1 - v / .45).clip(0) ** 2, 0, 1))
    x, y = 1.35 * round_ * np.cos(around), .48 * round_ * np.sin(around)
    x[:, [0, -1]] = 0
    y = y - .16 * round_ * np.exp(-(x / .3) ** 2) * (y > 0) - 5.9 + .35 * np.sin(np.pi * v)
    points = np.stack(np.broadcast_arrays(x, y, 6.75 - 4.2 * v), -1)
    return grid(points, TONGUE, "tongue", 0, v)


def ear() -> Mesh:
    """Rings from behind the ear over its rim into the bowl."""
    rows = [(.72, -.7), (.98, .05), (1.02, .40), (.95, .62), (.82, .58), (.70, .34), (.45, .12), (.2, .05), (0, .08)]
    scale, out = np.array(rows).T[:, :, None]
    around = np.linspace(0, 2 * np.pi, 24, endpoint=False)[None]
    y = 1.85 * np.sin(around)
    z = 1.12 * np.cos(around) * (1 + .22 * np.sin(around)) - .25 * np.sin(around)
    lobe = smooth((-np.sin(around) - .45) / .4)
    out = out * (1 - .35 * lobe * (scale > .5)) + .12 * lobe * (scale < .8) * (scale > 0)
    swing = np.radians(28)                                          # the rear edge stands off the head
    along, across = -scale * z, out + 0 * z
    points = np.stack([7.05 + across * np.cos(swing) + along * np.sin(swing) * .9,
                       .15 + scale * y, -1.0 - along * np.cos(swing) + across * np.sin(swing) * .3], -1)
    color = mix(SKINTONE, BLUSH, .35 + .35 * smooth((.75 - scale) / .2) + 0 * z)
    color = mix(color, (.62, .30, .25), .55 * smooth((.5 - scale) / .3) + 0 * z)
    return grid(points, color, "ears", wrap=True)


def hair() -> Mesh:
    """A cap with volume: rows from under the skin over a rounded rim to the crown."""
    depth = np.array([-.035, 0, .012, .035, .07, .12, .18, .26, .35, .46, .58, .7, .82, .92, 1])[:, None]
    azimuth = np.linspace(0, np.pi, 49)[None]
    angle = (1 - depth) * hair_rim(azimuth)
    up, ahead, x = np.cos(angle), np.sin(angle) * np.cos(azimuth), np.sin(angle) * np.sin(azimuth)
    x[:, [0, -1]] = 0
    x[-1] = 0
    tilt = np.radians(25)
    y, z = up * np.cos(tilt) + ahead * np.sin(tilt), ahead * np.cos(tilt) - up * np.sin(tilt)
    points = skull(np.stack([x, y, z], -1))
    rim = np.interp(depth, [-.035, 0, .012, .035, .07, .15, 1], [-.6, -.02, .30, .55, .72, .85, .95])
    quiff = .9 * smooth((ahead - .15) / .5) * smooth(depth / .12) * (1 - smooth((depth - .3) / .5))
    strands = .07 * np.sin(azimuth * 26 + 5 * depth) * smooth(depth / .05) * (1 - depth)
    thick = rim * (.75 + .45 * smooth((up + .1) / .6)) + quiff + strands
    points = points * (1 + thick / np.linalg.norm(points, axis=-1))[..., None]
    shine = .45 + .35 * np.sin(azimuth * 26 + 5 * depth) - .4 * (1 - smooth(depth / .08))
    return grid(points[:, ::-1], mix(HAIR, HAIR_LIGHT, np.clip(shine, 0, 1))[:, ::-1], "hair")


def turned(rows, part, colors) -> Mesh:
    """A surface of revolution around the neck, wider than deep: rows (radius, height) and one colour for each."""
    radius, y = np.array(rows).T[:, :, None]
    around = np.linspace(0, np.pi, 25)[None]
    x, z = radius * np.sin(around), radius * .82 * np.cos(around) - 1.3
    x[:, [0, -1]] = 0
    points = np.stack(np.broadcast_arrays(x, y, z), -1)
    return grid(points, np.asarray(colors)[:, None] + 0 * points, part)


def neck() -> Mesh:
    """The neck. Its upper end stays behind the mouth, or it would show when the mouth is open."""
    return turned([(4.0, -4.0), (4.5, -7), (4.6, -10.5), (4.8, -12.4)], "neck", [mix(SKINTONE, BLUSH, .10)] * 4)


def shirt() -> Mesh:
    """A rolled collar, from its inside over the roll, and the shoulders."""
    rows = [(4.65, -12.6), (4.9, -11.6), (5.25, -11.4), (5.6, -11.6), (5.7, -12.3), (6.3, -12.7), (7.5, -13.2),
            (8.4, -14.0), (8.7, -15.0)]
    return turned(rows, "shirt", mix(SHIRT, (0, 0, 0), np.array([.2, .2, .15, .2, .4, .1, 0, 0, 0])))
