"""Lesson 03: twins who differ in cadence alone. Do heads find it, and which layer still holds it?

Nothing else goes wrong in these pictures: nobody in front or behind, steady boxes, no blur. They
are drawn, run through the trained mean baseline (seed 0) and forgotten; its numbers are kept.
"""

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F

from vreid_course import lessons
from vreid_course.drawing.figures import CADENCES, draw_person, stream
from vreid_course.drawing.mini_mars import STREET
from vreid_course.drawing.tracklets import DIALS, Drawer, Track
from vreid_course.loader import augment, normalise
from vreid_course.metrics import bootstrap
from vreid_course.nets import Trunk
from vreid_course.scales import Scale
from vreid_course.studies import compare
from vreid_course.training import computed_once

SEED, FRAMES, STEPS = 7, 20, 300
GROUPS = {"train": 40, "test": 20}  # of four people each
TRACKLETS = {"train": 3, "test": 2}  # of each person, in the group's two cameras in turn
EASY = DIALS | {"camera": STREET.dials["camera"], "occlusion": 0, "crowd": 0, "jitter": 0}
EASY |= {"blur": 0, "switch": 0}
GRID = (16, 8)  # of the picture, for what the pixels hold
LAYERS = ("stem", "layer1", "layer2", "layer3", "layer4")
HEADS, SOME = ("mean", "DTP", "DTP+ReLU", "TSA", "GLTR"), ("mean", "DTP+ReLU", "GLTR")
INPUTS = ("features", "features and true phase", "true phase", "movement alone")


@dataclass(frozen=True)
class Twins:
    """N tracklets: kept numbers (N, T, columns), and (N,) person, camera, group and cadence.

    columns: name -> slice of the last axis.
    """

    kept: np.ndarray
    pids: np.ndarray
    camids: np.ndarray
    groups: np.ndarray
    levels: np.ndarray
    columns: dict[str, slice]

    def inputs(self, kind: str) -> list[np.ndarray]:
        """What a head is given: features of the trained network (T, D), or with the phase."""
        x = self.kept[..., self.columns["layer4"]]
        if kind == INPUTS[0]:
            return list(x)
        if kind == INPUTS[3]:  # what differs from the mean of the tracklet
            return list(x - x.mean(1, keepdims=True))
        turn = 2 * np.pi * self.kept[..., self.columns["phase"]]
        phase = np.concatenate([f(k * turn) for k in (1, 2) for f in (np.cos, np.sin)], -1)
        if kind == INPUTS[2]:
            return list(phase.astype(np.float32))
        size = 3 * x.reshape(-1, x.shape[-1]).std(0).mean()  # else the reduction drops it
        return list(np.concatenate([x, size * phase], -1).astype(np.float32))


def tracks_of(part: str, groups: int) -> list[Track]:
    """Of each group four people, seen by the same two cameras."""
    found = []
    for g in range(groups):
        base = draw_person(SEED, 10**6 * (2 + (part == "test")) + g)
        cameras = stream(SEED, part, g).choice(6, 2, replace=False) + 1
        for level, cadence in enumerate(CADENCES):
            person = replace(base, cadence=cadence)
            for number in range(TRACKLETS[part]):
                cam = int(cameras[number % 2])
                found.append(Track(part, 4 * g + level + 1, cam, number + 1, FRAMES, person))
    return found


def layer_means(trunk: Trunk, x: torch.Tensor) -> np.ndarray:
    """Of frames (T, 3, H, W), behind every stage, the means of map and of its lower half."""
    found = []
    with torch.inference_mode():
        for stage in trunk:
            x = stage(x)
            found += [x.mean((2, 3)), x[:, :, x.shape[2] // 2 :].mean((2, 3))]
    return torch.cat(found, 1).numpy()


@cache
def twins(part: str, at: Scale) -> Twins:
    """The "train" or "test" twins, drawn and embedded once (some minutes)."""
    groups = GROUPS[part] if at.name != "smoke" else 2
    tracks = tracks_of(part, groups)
    trunk = compare.trained("mean", "common", at, 0).eval().trunk

    def parts():
        drawer = Drawer(SEED, at.height, EASY)
        for track in tracks:
            drawn = drawer.draw(track)
            frames = augment(torch.from_numpy(drawn.frames()).permute(0, 3, 1, 2))
            x = normalise(frames)
            grid = F.adaptive_avg_pool2d(x.mean(1, keepdim=True), GRID).flatten(1).numpy()
            row = np.concatenate([grid, layer_means(trunk, x), drawn.phase[:, None]], 1)
            yield row.astype(np.float32)[None]

    key = ("twins", part, SEED, FRAMES, groups, at.size, str(EASY))
    kept = computed_once("frames", key, parts, trunk)
    pids = np.array([t.pid for t in tracks])
    return Twins(kept, pids, np.array([t.camid for t in tracks]), (pids - 1) // 4, (pids - 1) % 4,
                 _columns(trunk))  # fmt: skip


def _columns(trunk: Trunk) -> dict[str, slice]:
    found, end = {"pixels": slice(0, GRID[0] * GRID[1])}, GRID[0] * GRID[1]
    for layer, width in zip(LAYERS, trunk.widths, strict=True):
        for half in ("", ", lower half"):
            found[f"{layer}{half}"] = slice(end, end + width)
            end += width
    return found | {"phase": slice(end, end + 1)}


def first_right(features: np.ndarray, part: Twins) -> np.ndarray:
    """1 where a tracklet's nearest among the four twins in the other camera is its own: (N,).

    Chance is 25 %. The own camera is left out, for there everybody looks more alike.
    """
    found = np.full(len(features), np.nan)
    for q in range(len(features)):
        rows = np.flatnonzero((part.groups == part.groups[q]) & (part.camids != part.camids[q]))
        away = np.linalg.norm(features[rows] - features[q], axis=1)
        found[q] = part.pids[rows[away.argmin()]] == part.pids[q]
    return found


def measure_twins(row: dict, at: Scale) -> dict:
    """A head taught names, or cadence: share of twins found, in order and shuffled."""
    lesson, train, test = lessons.load("03_gltr"), twins("train", at), twins("test", at)
    mine, theirs = train.inputs(row["input"]), test.inputs(row["input"])
    labels = train.levels if row["taught"] == "cadence" else train.pids
    torch.manual_seed(row["seed"])
    make, D = lesson.HEADS[row["head"]], mine[0].shape[1]
    temporal = lesson.Temporal(len(np.unique(labels)), D, min(64, 4 * D), make)
    lesson.start_from_pca(temporal, mine)
    found = {}
    if row["taught"] != "nothing":
        batches = lesson.FeatureClips(mine, labels, seed=row["seed"])
        history = lesson.fit_head(temporal, batches, STEPS, float(row["rate"]))
        right = np.mean([h["accuracy"] for h in history[-50:]])
        found = {"steps": STEPS, "accuracy": f"{right:.3f}"}
    for name, mix in (("found", None), ("found shuffled", row["seed"])):
        features = lesson.describe(temporal, theirs, mix=mix)
        found |= _interval(name, first_right(features, test), test)
    if row["taught"] == "cadence":
        with torch.inference_mode():
            said = temporal.eval()(torch.from_numpy(np.stack(theirs)))[1].argmax(1).numpy()
        found |= _interval("named", (said == test.levels).astype(float), test)
    return found


def _interval(name: str, values: np.ndarray, test: Twins) -> dict[str, str]:
    """Mean in per cent and its interval over groups of twins."""
    columns = zip(("", " low", " high"), bootstrap(values, people=test.groups), strict=True)
    return {f"{name}{end}": f"{100 * x:.2f}" for end, x in columns}


def powers(x: np.ndarray) -> np.ndarray:
    """Of numbers (N, T, C) the share of their variation at the twins' step frequencies: (N, 4 C).

    A step is half a cycle, so the frequencies are twice the cadences.
    """
    x = x - x.mean(1, keepdims=True)
    turns = np.exp(-4j * np.pi * np.outer(CADENCES, np.arange(x.shape[1])))
    strong = np.abs(np.einsum("ft,ntc->nfc", turns, x)) ** 2
    return (strong / (x.shape[1] * np.square(x).sum(1, keepdims=True) + 1e-9)).reshape(len(x), -1)


def measure_layer(row: dict, at: Scale) -> dict:
    """Share of test tracklets whose cadence a linear read-out names, of one layer's numbers."""
    train, test = twins("train", at), twins("test", at)
    a, b = (powers(x.kept[..., x.columns[row["layer"]]].astype(np.float64)) for x in (train, test))
    middle, size = a.mean(0), a.std(0) + 1e-9
    a, b = (a - middle) / size, (b - middle) / size
    target = np.eye(4)[train.levels] - 0.25
    weights = np.linalg.solve(a.T @ a + len(a) * np.eye(a.shape[1]), a.T @ target)
    right = (b @ weights).argmax(1) == test.levels
    return _interval("named", right.astype(float), test)


def _row(taught: str, given: str, head: str, seed: int, rate: float = 1e-3) -> dict:
    return {"test": "twins", "taught": taught, "input": given, "head": head, "seed": seed,
            "rate": f"{rate:g}"}  # fmt: skip


_NAMES = ["pixels", *(f"{x}{half}" for x in LAYERS for half in ("", ", lower half"))]
ROWS = [{"test": "layers", "layer": name} for name in _NAMES]
TAUGHT, QUICK = ("names", "cadence"), 3e-3
ROWS += [_row(taught, given, head, 0) for taught in TAUGHT for given in INPUTS[:2]
         for head in HEADS]  # fmt: skip
ROWS += [_row(taught, INPUTS[2], head, 0, QUICK) for taught in TAUGHT[::-1] for head in HEADS]
ROWS += [_row(taught, given, head, 0, QUICK) for taught in TAUGHT for given in INPUTS[:2]
         for head in ("DTP+ReLU", "GLTR")]  # fmt: skip
ROWS += [_row(taught, INPUTS[3], head, 0, QUICK) for taught in TAUGHT[::-1] for head in SOME[::-1]]
ROWS += [_row("nothing", given, head, 0) for given in INPUTS for head in SOME]
ROWS += [_row(taught, given, head, seed, QUICK) for seed in (1, 2)
         for taught, given in (("cadence", INPUTS[2]), ("names", INPUTS[0]), ("cadence", INPUTS[0]))
         for head in SOME]  # fmt: skip
ROWS = list({tuple(row.items()): row for row in ROWS}.values())


def measure(row: dict, at: Scale) -> dict:
    """Fill a row of ROWS."""
    return (measure_layer if row["test"] == "layers" else measure_twins)(row, at)
