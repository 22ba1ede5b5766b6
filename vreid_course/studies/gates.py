"""The gates of the proving ground: how many points of mAP each thing could give to whoever knew it.

Oracles replace what a method would have to find: which frames show the person, where it is in them,
what is hidden of which part, in what rhythm it walks. A claim about a thing is tested on a world in
which the oracle gains; where it gains nothing, no method can be seen to gain.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from vreid_course import lessons, study
from vreid_course.data.mars import Mars
from vreid_course.devices import in_bfloat16
from vreid_course.drawing.render import PARTS
from vreid_course.drawing.truth import Truth
from vreid_course.loader import FrameStore, augment, normalise
from vreid_course.metrics import bootstrap, distances, evaluate, evaluate_distances
from vreid_course.nets import Baseline
from vreid_course.sampling import clips
from vreid_course.scales import Scale, scale
from vreid_course.studies import compare, ground

GREY = np.uint8(116)  # about the mean of ImageNet: nothing after normalisation
SEEDS = (0, 1, 2)
#: Groups of the part map of a body (see `render.PARTS`): what a stripe of the picture shows.
BODY = (("head", "hair", "hat"), ("torso", "backpack"), ("arms", "handbag"), ("legs",),
        ("feet",), ("shoulder bag",))  # fmt: skip


@dataclass(frozen=True)
class Gate:
    """`of` minus `minus`, two rankings of `rankings`; required: points without which no test."""

    of: str
    minus: str = "mean"
    required: float | None = None


GATES = {
    "un-occluded frames": Gate("bare", required=5),
    "weights by true visibility": Gate("visible", required=4),
    "the same within the test clips": Gate("clips, visible", "clips"),
    "tracklet minus one frame as query": Gate("mean", "random frame", 12),
    "true mask, trained with": Gate("cut out, trained", required=3),
    "true mask, not trained with": Gate("cut out"),
    "without switched frames": Gate("unswitched"),
    "visibility and no switches": Gate("visible, unswitched"),
    "clean minus random query frame": Gate("clean frame", "random frame"),
    "random minus most hidden query frame": Gate("random frame", "hidden frame"),
    "visible pixels of each part": Gate("parts, visible", "parts, all"),
    "cadence known": Gate("cadence"),
}


class Bare(FrameStore):
    """The frames with nothing in front."""

    def _decode(self, row: int, which: np.ndarray) -> np.ndarray:
        return ground.truth(self.split).clean(row)[which]


class CutOut(FrameStore):
    """The frames with everything grey but what is to be seen of the person."""

    def _decode(self, row: int, which: np.ndarray) -> np.ndarray:
        mask = ground.truth(self.split).person(row)[which]
        return np.where(mask[..., None], super()._decode(row, which), GREY)


@cache
def network(kind: str, seed: int, at: Scale) -> Baseline:
    """The mean baseline: "untrained", "trained", or "cut out": trained on pictures so treated."""
    if kind == "trained":
        return compare.trained("mean", "common", at, seed).eval()
    lesson, people = lessons.load("01_baseline"), len(np.unique(ground.ground(at).train.pids))
    torch.manual_seed(seed)
    model = lesson.build(people, ground.start(at))
    if kind == "cut out":
        recipe = ground.recipe(at, compare.METHODS["mean"].rate, compare.known_parameters)
        store = ground.store("train", at, CutOut)
        folder = ground.runs() / f"cut_out_{seed}_{at.steps}"
        study.fit(model, in_bfloat16(lesson.loss), recipe, store, at, seed, folder)
    return model.eval()


def frames_of(trunk: nn.Module, store: FrameStore, maps: bool = False) -> list[np.ndarray]:
    """Features of all frames of N tracklets: N arrays (T, D), or their maps (T, D, h, w)."""
    found = []
    for row in range(len(store.split)):
        rows = []
        for which in clips(int(store.split.lengths[row]), frames=64):
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
                part = trunk(normalise(augment(store.read(row, which)))).float()
            rows.append((part if maps else part.mean((2, 3))).numpy())
        found.append(np.concatenate(rows))
    return found


def part_sums(maps: list[np.ndarray], truth: Truth) -> tuple[np.ndarray, np.ndarray]:
    """What the maps hold where each part is: sums (N, 2, P, D) and pixels (N, 2, P); all, visible.

    maps: N arrays (T, D, h, w). The true masks are averaged over the cells of the maps.
    """
    sums, counts = [], []
    for i, x in enumerate(maps):
        (T, _, h, w), labels, seen = x.shape, truth.parts(i), ~truth.occluder(i)
        which = [[PARTS.index(name) for name in names] for names in BODY]
        masks = np.stack([np.isin(labels, part) for part in which])  # (P, T, H, W)
        masks = np.stack([masks, masks & seen]).astype(np.float32)
        cells = masks.reshape(2, len(BODY), T, h, masks.shape[3] // h, w, -1).mean((4, 6))
        sums.append(np.einsum("vpthw,tdhw->vpd", cells, x))
        counts.append(cells.sum((2, 3, 4)))
    return np.stack(sums), np.stack(counts)


def part_distances(sums: np.ndarray, counts: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Mean distance, 0..2, over the parts that both have: (Q, N); sums (N, P, D), counts (N, P)."""
    total, weight = 0, 1e-6
    for p in range(sums.shape[1]):
        x = sums[:, p] / np.maximum(counts[:, p, None], 1e-6)
        x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-6)
        both = np.minimum(counts[q, p][:, None], counts[None, :, p]) ** 0.5
        total, weight = total + both * distances(x[q], x), weight + both
    return np.where(weight > 1e-3, total / weight, 2.0)  # nothing in common: as far as can be


def part_rankings(model: Baseline, at: Scale, mars: Mars, of: str) -> dict:
    """AP of every query, (Q,), when parts are compared with parts: all pixels, or visible ones."""
    maps = frames_of(model.trunk, ground.store(of, at), maps=True)
    sums, counts = part_sums(maps, Truth(mars.test))
    return {f"parts, {name}": ap_of(part_distances(sums[:, v], counts[:, v], mars.query), mars)
            for v, name in enumerate(("all", "visible"))}  # fmt: skip


def rankings(model: Baseline, at: Scale, mars: Mars, of: str, cut: Baseline) -> dict:
    """AP of every query, (Q,), for every other oracle; cut: the network of cut-out people."""
    truth, test = Truth(mars.test), mars.test
    raw = frames_of(model.trunk, ground.store(of, at))
    seen = [truth.frames(i) for i in range(len(test))]
    shown = [(1 - s.occluded) ** 4 + 1e-6 for s in seen]
    right = [(s.switched == 0) + 1e-6 for s in seen]
    video = {
        "mean": (model, raw, None),
        "visible": (model, raw, shown),
        "unswitched": (model, raw, right),
        "visible, unswitched": (model, raw, [a * b for a, b in zip(shown, right, strict=True)]),
        "bare": (model, frames_of(model.trunk, ground.store(of, at, Bare)), None),
        "cut out": (model, frames_of(model.trunk, ground.store(of, at, CutOut)), None),
        "cut out, trained": (cut, frames_of(cut.trunk, ground.store(of, at, CutOut)), None),
    }
    for name, w in (("clips", [np.ones(len(x)) for x in raw]), ("clips, visible", shown)):
        video[name] = (model, in_clips(raw, w, at), None)
    features = {name: video_features(*given) for name, given in video.items()}
    found = {name: study.search(x, mars).ap for name, x in features.items()}
    found |= one_frame(model, raw, seen, features["mean"], mars)
    away = distances(features["mean"][mars.query], features["mean"])
    found["cadence"] = ap_of(away + 0.5 * rhythm_gap(truth.cadence, mars.query), mars)
    return found


def in_clips(frames: list, weights: list, at: Scale) -> list[np.ndarray]:
    """Of N tracklets the test clips, each averaged by its frames' weights: N arrays (CLIPS, D)."""
    found = []
    for x, w in zip(frames, weights, strict=True):
        clips = [ground.parts(len(x), None, at.T, part) for part in range(ground.CLIPS)]
        found.append(np.stack([w[which] @ x[which] / w[which].sum() for which in clips]))
    return found


def video_features(model: Baseline, frames: list[np.ndarray], weights: list | None) -> np.ndarray:
    """Weighted means of frame features, behind the neck, of length 1: (N, D)."""
    weights = weights or [np.ones(len(x)) for x in frames]
    means = [w @ x / w.sum() for x, w in zip(frames, weights, strict=True)]
    return unit(model, torch.tensor(np.stack(means), dtype=torch.float32))


def unit(model: Baseline, means: Tensor) -> np.ndarray:
    """Means of frame features (N, D) as they are compared."""
    with torch.inference_mode():
        return nn.functional.normalize(model.neck(means), dim=1).numpy()


def one_frame(model: Baseline, raw: list, seen: list, whole: np.ndarray, mars: Mars) -> dict:
    """A frame of each query searched among tracklets: any, the least and the most hidden one."""
    rng, test, q = np.random.default_rng(0), mars.test, mars.query
    pick = {
        "random frame": [int(rng.integers(len(raw[i]))) for i in q],
        "clean frame": [int((seen[i].occluded + 2 * seen[i].switched).argmin()) for i in q],
        "hidden frame": [int((seen[i].occluded - 2 * seen[i].switched).argmax()) for i in q],
    }
    found = {}
    for name, frames in pick.items():
        one = torch.from_numpy(np.stack([raw[i][t] for i, t in zip(q, frames, strict=True)]))
        part = unit(model, one), test.pids[q], test.camids[q]
        found[name] = evaluate(*part, whole, test.pids, test.camids).ap
    return found


def rhythm_gap(cadence: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Octaves between the cadences, known to a quarter octave, (Q, N); unknown: their mean."""
    steps = np.round(4 * np.log2(cadence)) / 4
    gap = np.abs(steps[q][:, None] - steps)
    return np.where(np.isnan(gap), np.nanmean(gap), gap)


def ap_of(matrix: np.ndarray, mars: Mars) -> np.ndarray:
    """AP of every query by its distances (Q, N) to all test tracklets."""
    test, q = mars.test, mars.query
    labels = test.pids[q], test.camids[q], test.pids, test.camids
    return evaluate_distances(matrix, *labels).ap


ROWS = [{"network": network, "gate": gate} for network in ("trained", "untrained")
        for gate in GATES if network == "trained" or gate != "true mask, trained with"]  # fmt: skip


@cache
def all_rankings(kind: str, at: Scale, parts: bool) -> dict[str, np.ndarray]:
    """AP of every oracle (of parts, or all others) and seed on the test people: (seeds, Q)."""
    mars, each = ground.ground(at).test, []
    for seed in SEEDS if kind == "trained" else SEEDS[:1]:
        model = network(kind, seed, at)
        if parts:
            each.append(part_rankings(model, at, mars, "test"))
        else:
            each.append(rankings(model, at, mars, "test", network("cut out", seed, at)))
    return {name: np.stack([found[name] for found in each]) for name in each[0]}


def measure(row: dict) -> dict:
    """One gate: the oracle's mAP, what it is compared with, the difference and its interval."""
    at, gate = ground.footing(scale()), GATES[row["gate"]]
    found = all_rankings(row["network"], at, gate.of.startswith("parts"))
    mars = ground.ground(at).test
    of, minus = found[gate.of], found[gate.minus]
    people = mars.test.pids[mars.query]
    mean, low, high = bootstrap(of.mean(0), minus.mean(0), people=people)
    each = (np.nanmean(of, 1) - np.nanmean(minus, 1)) * 100
    filled = {"of": gate.of, "minus": gate.minus, "mAP": np.nanmean(of), "other": np.nanmean(minus),
              "difference": mean, "low": low, "high": high}  # fmt: skip
    filled = {k: v if isinstance(v, str) else f"{100 * v:.2f}" for k, v in filled.items()}
    holds = "" if gate.required is None else "holds" if 100 * mean >= gate.required else "fails"
    return filled | {
        "seeds": " ".join(f"{x:+.2f}" for x in each), "required": gate.required or "",
        "verdict": holds, "people": len(np.unique(people)), "steps": at.steps, "scale": at.name,
    }  # fmt: skip
