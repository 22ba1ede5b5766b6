"""Drawn people: who they are (`Person`), and where their limbs are at a phase of the walk."""

from dataclasses import dataclass, field, replace
from zlib import crc32

import numpy as np

SKINS = np.array([(0.93, 0.76, 0.65), (0.82, 0.62, 0.48), (0.62, 0.43, 0.31), (0.38, 0.26, 0.19)])
HAIRS = np.array([(0.07, 0.06, 0.06), (0.27, 0.17, 0.10), (0.62, 0.45, 0.24), (0.45, 0.20, 0.10)])
GREY_HAIR = np.array((0.72, 0.72, 0.72))
#: RGB of the colour names of the annotation, in its order; "complex" is two colours in a pattern.
TOP_RGB = np.array(
    [(0.07, 0.07, 0.08), (0.42, 0.18, 0.52), (0.13, 0.47, 0.22), (0.13, 0.25, 0.62),
     (0.48, 0.48, 0.50), (0.90, 0.90, 0.88), (0.88, 0.74, 0.16), (0.72, 0.10, 0.13)]
)  # fmt: skip
BOTTOM_RGB = np.array(
    [(0.88, 0.87, 0.84), (0.38, 0.18, 0.46), (0.06, 0.06, 0.07), (0.16, 0.36, 0.18),
     (0.45, 0.45, 0.46), (0.86, 0.52, 0.62), (0.82, 0.70, 0.20), (0.16, 0.24, 0.46),
     (0.42, 0.28, 0.16)]
)  # fmt: skip
TOP_SHARE = np.array((16, 4, 8, 9, 9, 22, 7, 10, 15)) / 100
BOTTOM_SHARE = np.array((8, 2, 32, 3, 14, 5, 2, 18, 9, 7)) / 100
#: The accessory columns of the annotation; each is 0 or 1.
ACCESSORIES = ("shoulder bag", "backpack", "hat", "handbag")
#: Gait cycles per frame of the four members of a group of gait twins (periods of 10 to 28 frames).
CADENCES = (1 / 10, 1 / 14, 1 / 20, 1 / 28)


def stream(seed: int, *keys: int | str) -> np.random.Generator:
    """Return the random stream of a named factor: equal arguments give equal numbers."""
    words = [crc32(k.encode()) if isinstance(k, str) else int(k) & 0xFFFFFFFF for k in keys]
    return np.random.default_rng([seed, *words])


@dataclass(frozen=True)
class Person:
    """One drawn person. Colours are RGB in 0..1, lengths in metres, angles in radians.

    `attributes` holds the twelve columns of the MARS annotation (integers). `group` is
    ("", 0), ("accessory", g) or ("twin", g): people of one group look alike.
    """

    attributes: dict[str, int]
    colours: dict[str, np.ndarray]
    height: float
    build: float
    head: float
    shoulders: float
    hips: float
    pattern: int
    pitch: float
    logo: bool
    cadence: float
    stride: float
    swing: float
    bounce: float
    lean: float
    group: tuple[str, int] = field(default=("", 0))


def _attributes(rng: np.random.Generator) -> dict[str, int]:
    woman = int(rng.random() < 0.45)
    dress = bool(woman and rng.random() < 0.35)
    # The share of each colour and accessory roughly follows MARS, so that many people are alike.
    return {
        "Tops.c": int(rng.choice(9, p=TOP_SHARE)),
        "Bottoms.c": int(rng.choice(10, p=BOTTOM_SHARE)),
        "Age": int(rng.choice(4, p=(0.06, 0.50, 0.34, 0.10))),
        "Tops.l": int(rng.random() < 0.6),
        "Bottoms.l": int(rng.random() < 0.4),
        "shoulder bag": int(rng.random() < 0.20),
        "backpack": int(rng.random() < 0.22),
        "hat": int(rng.random() < 0.10),
        "handbag": int(rng.random() < 0.14),
        "hair": int(rng.random() < (0.75 if woman else 0.06)),
        "gender": woman,
        "Bottoms.t": int(not dress),
    }


def _colours(rng: np.random.Generator, a: dict[str, int]) -> dict[str, np.ndarray]:
    def near(rgb: np.ndarray, width: float = 0.05) -> np.ndarray:
        return np.clip(rgb + rng.normal(0, width, 3), 0.02, 0.97).astype(np.float32)

    tops, bottoms = rng.choice(8, 2, replace=False), rng.choice(9, 2, replace=False)
    hair = near(HAIRS[rng.choice(4, p=(0.5, 0.28, 0.14, 0.08))], 0.03)
    bags = near(rng.random((3, 3)) * 0.75 + 0.08, 0.02)
    return {
        "skin": near(SKINS[rng.integers(4)], 0.02),
        "hair": near(GREY_HAIR, 0.04) if a["Age"] == 3 else hair,
        "top": near(TOP_RGB[tops[0] if a["Tops.c"] == 8 else a["Tops.c"]]),
        "top2": near(TOP_RGB[tops[1]]),
        "bottom": near(BOTTOM_RGB[bottoms[0] if a["Bottoms.c"] == 9 else a["Bottoms.c"]]),
        "bottom2": near(BOTTOM_RGB[bottoms[1]]),
        "shoes": near(rng.choice((0.08, 0.25, 0.85)) * np.ones(3), 0.04),
        "backpack": bags[0],
        "bag": bags[1],
        "hat": bags[2],
    }


def draw_person(seed: int, pid: int) -> Person:
    """Draw a person at random from the stream (seed, pid)."""
    rng = stream(seed, "person", pid)
    a = _attributes(rng)
    woman, child = a["gender"], a["Age"] == 0
    return Person(
        attributes=a,
        colours=_colours(rng, a),
        height=float(rng.normal(1.66 if woman else 1.77, 0.07) * (0.78 if child else 1)),
        build=float(np.clip(rng.normal(1.0, 0.13), 0.75, 1.4)),
        head=float(rng.normal(0.066, 0.002) * (1.22 if child else 1)),
        shoulders=float(rng.normal(0.112 if woman else 0.124, 0.005)),
        hips=float(rng.normal(0.098 if woman else 0.090, 0.004)),
        pattern=int(rng.integers(1, 5)) if a["Tops.c"] == 8 else 0,
        pitch=float(rng.uniform(0.05, 0.12)),
        logo=bool(rng.random() < 0.35),
        cadence=float(rng.uniform(1 / 28, 1 / 12)),
        stride=float(rng.uniform(0.34, 0.56)),
        swing=float(rng.uniform(0.2, 0.7)),
        bounce=float(rng.uniform(0.012, 0.035)),
        lean=float(rng.normal(0.04, 0.04)),
    )


def accessory_group(seed: int, group: int) -> list[Person]:
    """Return four people in the same clothes who differ in what they carry or wear alone."""
    rng = stream(seed, "accessory group", group)
    base = draw_person(seed, int(rng.integers(2**31)))
    worn = [ACCESSORIES[i] for i in rng.permutation(4)[:3]]
    members = []
    for only in (None, *worn):
        carried = {name: int(name == only) for name in ACCESSORIES}
        members.append(
            replace(base, attributes={**base.attributes, **carried}, group=("accessory", group))
        )
    return members


def twin_group(seed: int, group: int) -> list[Person]:
    """Return four people who share everything, the size of every movement too, but the cadence."""
    rng = stream(seed, "twin group", group)
    base = draw_person(seed, int(rng.integers(2**31)))
    base = replace(base, stride=0.48, swing=0.5, bounce=0.035, group=("twin", group))
    return [replace(base, cadence=c) for c in CADENCES]


def population(
    seed: int, pids: np.ndarray, hard: float = 0.2, first_group: int = 0
) -> dict[int, Person]:
    """Draw one person per pid; a share `hard` are gait twins, as many in accessory groups."""
    groups = int(round(len(pids) * hard / 4))
    people: list[Person] = []
    for g in range(first_group, first_group + groups):
        people += twin_group(seed, g) + accessory_group(seed, g)
    people += [draw_person(seed, int(pid)) for pid in pids[len(people) :]]
    order = stream(seed, "population", first_group, len(pids)).permutation(len(pids))
    return {int(pid): people[i] for pid, i in zip(pids, order, strict=True)}


def _turn(length: float, angle: np.ndarray) -> np.ndarray:
    """Return (T, 3) offsets of a bone of `length` hanging down, swung forward by `angle` (T,)."""
    zero = np.zeros_like(angle)
    return np.stack([zero, -length * np.cos(angle), length * np.sin(angle)], -1)


def joints(p: Person, phase: np.ndarray) -> dict[str, np.ndarray]:
    """Return the joints of a walking person in the body's frame.

    phase: (T,) position in the gait cycle, in cycles (0..1). Returns name -> (T, 3) float64 in
    metres: x to the person's left, y up from the ground, z forward. Left is side "l".
    """
    h, a = p.height, 2 * np.pi * phase
    rise = p.bounce * h * np.cos(2 * a)
    hip = np.stack([0.012 * h * np.sin(a), 0.515 * h + rise, np.zeros_like(a)], -1)
    neck = hip + np.stack(
        [-0.006 * h * np.sin(a), np.full_like(a, 0.315 * h), np.full_like(a, 0.3 * h * p.lean)], -1
    )
    out = {"hip": hip, "neck": neck}
    out["head"] = neck + np.array([0.0, 0.095 * h, 0.012 * h])
    for side, x, shift in (("l", 1.0, 0.0), ("r", -1.0, np.pi)):
        s = a + shift
        thigh = p.stride * np.sin(s) + 0.04
        knee = 0.10 + 1.05 * p.stride * np.clip(np.cos(s), 0, None) ** 1.5 * 1.6
        out["hip" + side] = hip + np.array([0.5 * p.hips * h * x, 0, 0])
        out["knee" + side] = out["hip" + side] + _turn(0.245 * h, thigh)
        out["ankle" + side] = out["knee" + side] + _turn(0.235 * h, thigh - knee)
        toe = thigh - knee + 0.25
        out["toe" + side] = out["ankle" + side] + np.stack(
            [0 * a + 0.01 * x, 0.085 * h * np.sin(toe - 0.15) - 0.012, 0.085 * h * np.cos(toe)], -1
        )
        arm = -p.swing * np.sin(s) + p.lean
        out["shoulder" + side] = neck + np.array([p.shoulders * h * x, -0.005 * h, 0])
        spread = np.array([0.022 * h * x * p.build, 0, 0])
        out["elbow" + side] = out["shoulder" + side] + _turn(0.165 * h, arm) + spread
        bend = 0.22 + 0.45 * p.swing * np.clip(-np.sin(s), 0, None)
        out["hand" + side] = out["elbow" + side] + _turn(0.15 * h, arm + bend) + 0.3 * spread
    return out
