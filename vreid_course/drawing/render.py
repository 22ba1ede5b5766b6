"""Ray casting of drawn people: parallel rays against rounded cones, shaded, in batches of frames.

A rounded cone is the hull of two spheres. Its hit by a ray has a closed form; a figure is about 25
of them. A cone squashed along one axis (a torso is wider than deep) is hit in stretched space.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .figures import Person, joints

#: Labels of the part map: what a pixel of a person shows.
PARTS = (
    "background", "head", "hair", "torso", "arms", "legs", "feet",
    "backpack", "shoulder bag", "handbag", "hat",
)  # fmt: skip
HEAD, HAIR, TORSO, ARMS, LEGS, FEET, BACKPACK, SHOULDER_BAG, HANDBAG, HAT = range(1, 11)
FAR = np.float32(1e9)


@dataclass(frozen=True)
class Cone:
    """A rounded cone: ends a and b (T, 3) in the body's frame, radii in metres, depth < 1 if flat.

    `clip`, where given, is (T, 3) point and (3,) normal: the half space on that side is cut away.
    """

    part: int
    a: np.ndarray
    b: np.ndarray
    ra: float
    rb: float
    depth: float = 1.0
    surface: str = ""
    clip: tuple[np.ndarray, np.ndarray] | None = None


def body(p: Person, phase: np.ndarray) -> list[Cone]:
    """Return the cones of a person at the phases (T,) of the walk."""
    j, h, w = joints(p, phase), p.height, p.height * p.build
    up, skull = np.array([0, h, 0]), p.head * p.height
    waist, chest = j["hip"] + 0.09 * up, j["neck"] - 0.095 * up
    crown, chin = j["head"] + 0.020 * up, j["head"] - 0.018 * up
    cones = [
        Cone(LEGS, j["hip"] - 0.01 * up, waist, 0.98 * p.hips * w, 0.082 * w, 0.78, "bottom"),
        Cone(TORSO, waist, chest, 0.080 * w, 0.80 * p.shoulders * w, 0.70, "top"),
        Cone(HEAD, chest, j["head"], 0.034 * w, 0.034 * w, 1, "skin"),
        Cone(HEAD, chin, crown, 0.84 * skull, 0.95 * skull, 0.98, "face"),
    ]
    for s in "lr":
        hip, knee, ankle, toe = (j[name + s] for name in ("hip", "knee", "ankle", "toe"))
        shoulder, elbow, hand = (j[name + s] for name in ("shoulder", "elbow", "hand"))
        cones += [
            Cone(TORSO, shoulder - 0.012 * up, j["neck"], 0.034 * w, 0.040 * w, 1, "top"),
            Cone(LEGS, hip, knee, 0.058 * w, 0.040 * w, 1, "thigh"),
            Cone(LEGS, knee, ankle, 0.041 * w, 0.027 * w, 1, "shin"),
            Cone(FEET, ankle - 0.008 * up, toe, 0.026 * h, 0.021 * h, 1, "shoes"),
            Cone(ARMS, shoulder, elbow, 0.034 * w, 0.027 * w, 1, "sleeve"),
            Cone(ARMS, elbow, hand, 0.026 * w, 0.020 * w, 1, "forearm"),
            Cone(ARMS, hand, hand - 0.02 * up, 0.022 * h, 0.018 * h, 1, "skin"),
        ]
    if not p.attributes["Bottoms.t"]:  # a dress: cut off at the hem, wide enough for the stride
        hem = (j["kneel"] + j["kneer"]) / 2 + (0.06 if p.attributes["Bottoms.l"] else -0.08) * up
        wide = 0.09 * w + 0.12 * h * p.stride
        cones.append(Cone(LEGS, waist, hem, 0.085 * w, wide, 1, "bottom", (hem, -up / h)))
    return cones + _hair(p, j) + _carried(p, j)


def _hair(p: Person, j: dict[str, np.ndarray]) -> list[Cone]:
    h, skull, up, front = p.height, p.head * p.height, np.eye(3)[1], np.eye(3)[2]
    crown = j["head"] + skull * (0.38 * up - 0.18 * front)
    nape = j["head"] - skull * (0.25 * up + 0.32 * front)
    cones = [Cone(HAIR, crown, nape, 0.93 * skull, 0.80 * skull, 1, "hair")]
    if p.attributes["hair"]:
        low = j["neck"] - h * (0.085 * up + 0.055 * front)
        back = j["head"] - 0.45 * skull * front
        cones.append(Cone(HAIR, back, low, 0.95 * skull, 0.75 * skull, 0.55, "hair"))
    if p.attributes["hat"]:
        top, brim = j["head"] + 0.95 * skull * up, j["head"] + 0.52 * skull * up
        edge = (brim - 0.10 * skull * up, -up)
        cones += [
            Cone(HAT, brim, top, 1.12 * skull, 0.85 * skull, 1, "hat", (brim, -up)),
            Cone(HAT, brim, brim + 0.01, 1.25 * skull, 1.25 * skull, 1, "hat", edge),
        ]
    return cones


def _carried(p: Person, j: dict[str, np.ndarray]) -> list[Cone]:
    h, a, cones = p.height, p.attributes, []
    side, up, front = h * np.eye(3)
    if a["backpack"]:
        back = j["neck"] - 0.045 * front - 0.075 * p.build * front
        low, high = back - 0.235 * up, back - 0.07 * up
        cones.append(Cone(BACKPACK, low, high, 0.092 * h, 0.075 * h, 0.72, "backpack"))
    if a["shoulder bag"]:
        at = j["hip"] + (p.hips + 0.035) * p.build * side + 0.02 * up
        ends = at - 0.055 * front, at + 0.055 * front
        cones.append(Cone(SHOULDER_BAG, *ends, 0.055 * h, 0.055 * h, 1, "bag"))
    if a["handbag"]:
        at = j["handr"] - 0.095 * up
        ends = at - 0.05 * front, at + 0.05 * front
        cones.append(Cone(HANDBAG, *ends, 0.052 * h, 0.052 * h, 1, "handbag"))
    return cones


def to_camera(view: np.ndarray, tilt: float) -> np.ndarray:
    """Return (T, 3, 3) rotations from the body's frame to the camera's (right, up, away).

    view: (T,) radians, 0 when the person faces the camera, pi/2 when walking to the right.
    tilt: radians that the camera looks down.
    """
    c, s = np.cos(view), np.sin(view)
    zero, one = np.zeros_like(c), np.ones_like(c)
    turn = np.stack(
        [np.stack([c, zero, s], -1), np.stack([zero, one, zero], -1), np.stack([s, zero, -c], -1)],
        -2,
    )
    down = np.array([[1, 0, 0], [0, np.cos(tilt), np.sin(tilt)], [0, -np.sin(tilt), np.cos(tilt)]])
    return down @ turn


def _hit(cone: Cone, rot: np.ndarray, px: np.ndarray, py: np.ndarray):
    """Return (z, u) of the rays at px (T,1,w), py (T,h,1): depth (T,h,w), FAR if missed; 0..1.

    A rounded cone is what a sphere sweeps that moves from a along w = b - a while its radius goes
    from ra to ra - d, d = ra - rb. At a share u of the way a point q (counted from a) lies on it if
    |q - u w|^2 = (ra - u d)^2. On the surface the sphere that touches does not change to first
    order: the derivative by u is 0, so u (w.w - d^2) = w.q - d ra. Call the bracket g and the right
    side h. Put back into the first equation, u = h / g leaves g (|q|^2 - ra^2) = h^2. With
    q = o + t r, r of length 1, that is a quadratic equation for t, whose terms are
        t^2: g - (w.r)^2    2 t: g o.r - (w.o - d ra) w.r    1: g (|o|^2 - ra^2) - (w.o - d ra)^2
    and its smaller root counts if 0 < u < 1. Elsewhere the ray meets the first or the last sphere:
    t^2 + 2 t o.r + |o|^2 - ra^2 = 0, and the same from b with rb. That this body has a closed form
    is known from Inigo Quilez, "Ray - rounded cone intersection".
    """
    at = _products(cone, rot, px, py)
    first, last = np.float32(cone.ra), np.float32(cone.rb)
    shrinks = np.float32(cone.ra - cone.rb)
    bracket = np.maximum(at.w_w - shrinks * shrinks, 1e-6)
    square = np.maximum(bracket - at.w_r * at.w_r, 1e-7)
    half = bracket * at.o_r - at.w_o * at.w_r + at.w_r * (shrinks * first)
    rest = bracket * at.o_o - at.w_o * at.w_o + at.w_o * (2 * shrinks * first)
    rest = rest - at.w_w * (first * first)
    room = half * half - rest * square
    side = (-np.sqrt(np.maximum(room, 0)) - half) / square
    way = at.w_o - first * shrinks + side * at.w_r
    on_side = (room > 0) & (way > 0) & (way < bracket)
    near = _sphere(at.o_r, at.o_o, first)
    far = _sphere(at.o_r - at.w_r, at.o_o - 2 * at.w_o + at.w_w, last)
    t = np.where(on_side, side, np.minimum(near, far))
    u = np.where(on_side, way / bracket, (far < near).astype(np.float32))
    z = np.where(t < FAR / 2, t / at.length, FAR)
    return (z if cone.clip is None else _cut(cone.clip, rot, px, py, z)), u


def _sphere(o_r: np.ndarray, o_o: np.ndarray, radius: np.float32) -> np.ndarray:
    """Where a ray enters a sphere, FAR if it does not: o from its centre, r the unit ray."""
    room = o_r * o_r - o_o + radius * radius
    return np.where(room > 0, -o_r - np.sqrt(np.maximum(room, 0)), FAR)


class _Products(NamedTuple):
    """Dot products of w = b - a, the unit ray r and o, from a to the ray's start; length: of r
    before it was stretched to a unit. (T, 1, 1), or (T, h, w) where o is in it.
    """

    w_w: np.ndarray
    w_o: np.ndarray
    w_r: np.ndarray
    o_r: np.ndarray
    o_o: np.ndarray
    length: np.ndarray


def _products(cone: Cone, rot: np.ndarray, px: np.ndarray, py: np.ndarray) -> _Products:
    """In the stretched space, where the cone is round.

    o is linear in the pixel, so nothing has to be a vector per pixel.
    """
    flat = rot[:, :, 2]  # the body's forward axis, along which the cone is squashed
    stretch = np.eye(3) + (1 / cone.depth - 1) * flat[:, :, None] * flat[:, None, :]
    a = np.einsum("tij,tj->ti", stretch @ rot, cone.a)
    w = np.einsum("tij,tj->ti", stretch @ rot, cone.b) - a
    length = np.linalg.norm(stretch[:, :, 2], axis=1)[:, None]
    v = np.stack([w, stretch[:, :, 2] / length, stretch[:, :, 0], stretch[:, :, 1], a], 1)
    dots = (v @ v.transpose(0, 2, 1)).astype(np.float32)[:, :, :, None, None]
    w_, r_, x_, y_, a_ = dots.transpose(1, 2, 0, 3, 4)  # each [with which](T, 1, 1)
    column = (x_[2] * px - 2 * x_[4]) * px
    row = y_[3] * py * py - 2 * y_[4] * py + a_[4]
    return _Products(
        w_w=w_[0],
        w_o=w_[2] * px + (w_[3] * py - w_[4]),
        w_r=w_[1],
        o_r=r_[2] * px + (r_[3] * py - r_[4]),
        o_o=column + row + 2 * x_[3] * px * py,
        length=length.astype(np.float32)[:, :, None],
    )


def _cut(clip: tuple, rot: np.ndarray, px: np.ndarray, py: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Drop hits in the half space of the clip: its point (T, 3) and normal (3,) in the body."""
    point, normal = np.einsum("tij,tj->ti", rot, clip[0]), rot @ clip[1]
    n = normal.astype(np.float32)[:, :, None, None]
    at = np.einsum("ti,ti->t", normal, point).astype(np.float32)[:, None, None]
    return np.where(n[:, 0] * px + n[:, 1] * py + n[:, 2] * z > at, FAR, z)


def _window(cone: Cone, rot: np.ndarray, px: np.ndarray, py: np.ndarray) -> tuple[slice, slice]:
    """Return the rows and columns of the image that the cone may cover in any frame."""
    ends = np.stack([np.einsum("tij,tj->ti", rot, e) for e in (cone.a, cone.b)])
    r = max(cone.ra, cone.rb)
    low, high = ends.min(0) - r, ends.max(0) + r
    in_x = ((px >= low[:, :1]) & (px <= high[:, :1])).any(0).nonzero()[0]
    in_y = ((py >= low[:, 1:2]) & (py <= high[:, 1:2])).any(0).nonzero()[0]
    if not len(in_x) or not len(in_y):
        return slice(0, 0), slice(0, 0)
    return slice(in_y[0], in_y[-1] + 1), slice(in_x[0], in_x[-1] + 1)


def cast(
    cones: list[Cone], rot: np.ndarray, px: np.ndarray, py: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cast one ray a pixel at all cones.

    rot: (T, 3, 3) from `to_camera`; px (T, W), py (T, H): where the ray of each column and row
    stands, in metres right and up of the person's ground point. Returns depth z (T, H, W) (FAR
    where nothing is hit), the index of the cone hit (uint8, 255 for none) and the place u in 0..1
    along it.
    """
    shape = (len(px), py.shape[1], px.shape[1])
    z, u = np.full(shape, FAR), np.zeros(shape, np.float32)
    hit = np.full(shape, 255, np.uint8)
    for i, cone in enumerate(cones):
        rows, cols = _window(cone, rot, px, py)
        if rows.stop == 0 or cols.stop == 0:
            continue
        zi, ui = _hit(cone, rot, px[:, None, cols], py[:, rows, None])
        near = zi < z[:, rows, cols]
        np.copyto(z[:, rows, cols], zi, where=near)
        np.copyto(u[:, rows, cols], ui, where=near)
        np.copyto(hit[:, rows, cols], np.uint8(i), where=near)
    return z, hit, u


def _albedo(p: Person, surface: str, u: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Return the colour (N, 3) of points of a surface; u along the cone, at (N, 3) in the body."""
    c, a, h = p.colours, p.attributes, p.height
    x, y, z = at.T / h
    if surface == "face":
        return _face(p, x, y, z)
    if surface == "thigh":
        return _mix(c["bottom"], c["skin"], a["Bottoms.l"] * (u > 0.72) if a["Bottoms.t"] else True)
    if surface == "shin":
        bare = a["Bottoms.l"] or not a["Bottoms.t"]
        return _mix(c["bottom"], c["skin"], bare)
    if surface == "bottom":
        return _mix(c["bottom"], c["bottom2"], (a["Bottoms.c"] == 9) & ((x * 24) % 2 < 1))
    if surface in ("top", "sleeve", "forearm"):
        bare = a["Tops.l"] and (u > 0.55 if surface == "sleeve" else surface == "forearm")
        return _mix(_cloth(p, surface, x, y, z), c["skin"], bare)
    if surface in ("handbag", "bag"):
        clasp = (np.abs(y % 0.05) < 0.008) | (surface == "bag") & (u > 0.45) & (u < 0.55)
        return _mix(c["bag"], 0.5 * c["bag"], clasp)
    if surface == "backpack":
        return _mix(c["backpack"], 0.55 * c["backpack"], (u < 0.35) | (np.abs(x) < 0.006))
    return c[surface][None]


def _mix(first: np.ndarray, second: np.ndarray, where: np.ndarray) -> np.ndarray:
    return np.where(np.reshape(where, (-1, 1)), second, first)


def _face(p: Person, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    level = (y - y.mean()) / p.head if len(y) else y
    eyes = (np.abs(np.abs(x) / p.head - 0.36) < 0.15) & (np.abs(level - 0.1) < 0.13) & (z > 0)
    mouth = (np.abs(x) / p.head < 0.3) & (np.abs(level + 0.48) < 0.09) & (z > 0)
    skin = _mix(p.colours["skin"], 0.25 * p.colours["skin"], eyes)
    return _mix(skin, p.colours["skin"] * np.array([0.85, 0.5, 0.5]), mouth)


def _cloth(p: Person, surface: str, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    c, k = p.colours, 1 / p.pitch
    second = {
        0: np.zeros(len(y), bool),
        1: (y * k * 2) % 2 < 1,  # stripes across
        2: ((x * k * 2) % 2 < 1) & (surface == "top"),  # stripes down
        3: ((y * k * 2) % 2 < 1) ^ ((x * k * 2) % 2 < 1),  # check
        4: (y < 0.70) if surface == "top" else np.zeros(len(y), bool),  # two halves
    }[p.pattern]
    rgb = _mix(c["top"], c["top2"], second)
    if p.logo and surface == "top":
        spot = (np.hypot(x, (y - 0.73) * 1.2) < 0.033) & (z > 0)
        rgb = _mix(rgb, c["top2"], spot)
    if p.attributes["shoulder bag"] and surface == "top":
        strap = np.abs(y - 0.69 + 0.9 * x) < 0.014
        rgb = _mix(rgb, 0.6 * c["bag"], strap)
    return rgb


def _normals(cone: Cone, rot: np.ndarray, frame: np.ndarray, at: np.ndarray, u: np.ndarray):
    """Return unit normals (N, 3), in the camera's frame, of points `at` (N, 3) of the body's."""
    a, b = cone.a.astype(np.float32)[frame], cone.b.astype(np.float32)[frame]
    n = at - a - (b - a) * u[:, None]
    n = n * np.array([1, 1, 1 / cone.depth**2], np.float32)
    n = np.einsum("nij,nj->ni", rot[frame], n)
    return n / np.maximum(np.linalg.norm(n, axis=1, keepdims=True), 1e-9)


def draw_figure(
    p: Person, phase: np.ndarray, view: np.ndarray, tilt: float, px: np.ndarray, py: np.ndarray,
    light: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Draw a person in T frames.

    phase, view: (T,) cycles and radians; px (T, W), py (T, H): metres of each column and row;
    light: (3,) direction to the light in the camera's frame. Returns colour (T, H, W, 3) float32 in
    0..1 (0 where there is nobody) and the part map (T, H, W) uint8, labels as in `PARTS`.
    """
    cones, rot = body(p, phase), to_camera(view, tilt)
    z, hit, u = cast(cones, rot, px.astype(np.float32), py.astype(np.float32))
    turn, light = rot.astype(np.float32), light.astype(np.float32)
    colour = np.zeros((*z.shape, 3), np.float32)
    parts = np.zeros(z.shape, np.uint8)
    seen = np.nonzero(hit.ravel() != 255)[0]
    which = hit.ravel()[seen]
    for i, cone in enumerate(cones):
        flat = seen[which == i]
        frame, row, col = np.unravel_index(flat, z.shape)
        at = np.stack([px[frame, col], py[frame, row], z.ravel()[flat]], -1).astype(np.float32)
        at = np.einsum("nji,nj->ni", turn[frame], at)
        ui = u.ravel()[flat]
        normal = _normals(cone, turn, frame, at, ui)
        shade = 0.50 + 0.55 * np.clip(normal @ light, 0, 1) - 0.12 * (1 - np.abs(normal[:, 2])) ** 2
        folds = 1 + 0.03 * np.sin(45 * at[:, 1] + 60 * at[:, 0]) * (cone.part in (TORSO, LEGS))
        rgb = _albedo(p, cone.surface, ui, at) * (shade * folds)[:, None]
        colour.reshape(-1, 3)[flat] = np.clip(rgb, 0, 1)
        parts.ravel()[flat] = cone.part
    return colour, parts
