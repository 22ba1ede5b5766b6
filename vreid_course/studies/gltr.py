"""Lesson 03: temporal heads on kept frame features, people and hidden frames (twins: `twins`).

The image networks are those of the mean baseline on the proving ground, trained and then kept as
they are: the first of the paper's two stages. Only what is behind the frame features learns here,
for every head with the same clips of 16 adjacent frames, steps and choice of rates; whole tracklets
are tested. The rate of a head is the one with the best validation mAP at seed 0 (`RATES`).
"""

from dataclasses import replace
from functools import cache, partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vreid_course import lessons, study
from vreid_course.drawing.mini_mars import STREET, track_of
from vreid_course.drawing.tracklets import DIALS, Change, Drawer, Thing, Track
from vreid_course.drawing.truth import Truth
from vreid_course.loader import augment, normalise
from vreid_course.metrics import distances, evaluate
from vreid_course.nets import Trunk, frame_features
from vreid_course.scales import Scale, scale
from vreid_course.studies import compare, gates, ground, twins
from vreid_course.training import computed_once, extract_frames

STEPS, RATES, SEEDS = 400, (1e-3, 3e-3, 3e-4), (0, 1, 2)
REDUCED = 64  # numbers a frame behind the linear layer: a quarter, to be quick
#: The rate of each head, by validation mAP at seed 0.
HEADS = {
    "mean": 1e-3, "DTP": 1e-3, "TSA": 3e-4, "GLTR": 1e-3, "attention": 1e-3,
    "GLTR, undilated": 3e-4, "GLTR, pooled": 1e-3, "GLTR, uniform": 1e-3,
    "GLTR, shuffled in training": 1e-3,
}  # fmt: skip
LONGER = {"mean, 1200 steps": 1e-3, "GLTR, 1200 steps": 1e-3}  # is the curve still?
T, COVERS, ASKED = 16, (0, 2, 4, 6, 8, 10, 12, 14, 16), 60


class Pooled(nn.Module):
    """Means over 3, 5 and 7 frames, a linear layer on each, F first: (B, T, d) -> (B, 4 d, T).

    The control of the paper's figure 6: windows as long as those of the pyramid, without filters.
    """

    def __init__(self, d: int) -> None:
        super().__init__()
        self.maps, self.width = (
            nn.ModuleList(nn.Conv1d(d, d, 1, bias=False) for _ in range(3)),
            4 * d,
        )
        for layer in self.maps:
            nn.init.normal_(layer.weight, std=0.001)

    def forward(self, frames: Tensor) -> Tensor:
        x = frames.transpose(1, 2)  # (B, d, T)
        means = [F.avg_pool1d(x, w, 1, w // 2) for w in (3, 5, 7)]
        return torch.cat([x, *(f(y) for f, y in zip(self.maps, means, strict=True))], dim=1)


def head_of(name: str, d: int) -> nn.Module:
    """A head of the lesson, or one of the controls beside it."""
    lesson, kind = lessons.load("03_gltr"), name.split(", ")[-1]
    if kind == "undilated":
        return lesson.Head(d, dilations=(1, 1, 1), widths=(3, 5, 7))
    head = lesson.HEADS[name.split(", ")[0]](d)
    if kind == "pooled":
        head.local = Pooled(d)
    if kind == "uniform":
        head.share.attention = lambda x: torch.full((len(x), *x.shape[2:] * 2), 1 / x.shape[2])
    return head


def network(seed: int, at: Scale) -> Trunk:
    """The image network: the trained mean baseline's."""
    return compare.trained("mean", "common", at, seed).eval().trunk


@cache
def frames_of(part: str, seed: int, at: Scale) -> list[np.ndarray]:
    """Features (T_i, D) of all frames of "train", "validation" or "test"."""
    return extract_frames(network(seed, at), ground.store(part, at))


def shuffled(clip: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A clip (T, D) in another order."""
    return clip[rng.permutation(len(clip))]


def fitted(name: str, seed: int, rate: float, at: Scale) -> nn.Module:
    """A head behind the features of `network`, trained on the people of the proving ground."""
    lesson, frames = lessons.load("03_gltr"), frames_of("train", seed, at)
    pids = ground.ground(at).train.pids
    change = shuffled if "shuffled" in name else lesson.as_it_is
    batches = lesson.FeatureClips(frames, pids, T=T, seed=seed, change=change)
    temporal, steps = fresh(name, seed, at), 1200 if name in LONGER else STEPS
    folder = ground.runs() / f"head_{name}_{seed}_{steps}_{rate:g}"
    lesson.fit_head(temporal, batches, steps, rate, folder)
    return temporal.eval()


def fresh(name: str, seed: int, at: Scale) -> nn.Module:
    """The same before training: a random head behind the principal axes of the features."""
    lesson, frames = lessons.load("03_gltr"), frames_of("train", seed, at)
    people = len(np.unique(ground.ground(at).train.pids))
    torch.manual_seed(seed)
    make = partial(head_of, name)
    temporal = lesson.Temporal(people, frames[0].shape[1], REDUCED, make)
    return lesson.start_from_pca(temporal, frames).eval()


def measure_head(name: str, seed: int, rate: float, at: Scale) -> dict:
    """Test people in order and shuffled, the mAP on validation people, and what attention does."""
    lesson, place = lessons.load("03_gltr"), ground.ground(at)
    temporal, frames = fitted(name, seed, rate, at), frames_of("test", seed, at)
    result = study.search(lesson.describe(temporal, frames), place.test)
    mixed = study.search(lesson.describe(temporal, frames, mix=seed), place.test)
    found = study.summary(result) | {"steps": 1200 if name in LONGER else STEPS}
    found["hit"] = " ".join("nan" if r == 0 else str(int(r == 1)) for r in result.first_rank)
    if seed == 0:  # what the rates are chosen by
        features = lesson.describe(temporal, frames_of("validation", seed, at))
        chosen = study.search(features, place.validation).mAP
        found["validation mAP"] = f"{100 * chosen:.2f}"
    found["shuffled"], found["shuffled ap"] = f"{100 * mixed.mAP:.2f}", study.summary(mixed)["ap"]
    return found | attention_columns(temporal, frames, at)


def attention_columns(temporal: nn.Module, frames: list[np.ndarray], at: Scale) -> dict[str, str]:
    """Mean m of hidden and of clear frames, and TSA's share of the energy of f, in per cent."""
    lesson, test, found = lessons.load("03_gltr"), ground.ground(at).test.test, {}
    shares = isinstance(getattr(temporal.head, "share", None), lesson.TSA)
    if np.isnan(lesson.received(temporal, frames[0])).any():  # nothing in it weighs frames
        return found
    truth, people = Truth(test), np.flatnonzero(test.pids > 0)
    hidden = {i: truth.frames(i).occluded for i in people}
    some = [i for i in people if 2 <= (hidden[i] > 0.3).sum() <= len(hidden[i]) - 4]
    m = {i: lesson.received(temporal, frames[i]) for i in some}
    pairs = [(m[i][hidden[i] > 0.3].mean(), m[i][hidden[i] < 0.05].mean()) for i in some
             if (hidden[i] < 0.05).any()]  # fmt: skip
    found["m hidden"], found["m clear"] = (f"{x:.3f}" for x in np.mean(pairs, 0))
    if shares:
        energy = [lesson.share_of_energy(temporal, frames[i]) for i in people]
        found["TSA share"] = f"{100 * np.mean(energy):.2f}"
    return found


# --------------------------------------------------------------------------- hidden on purpose


@cache
def asked(at: Scale) -> tuple[np.ndarray, list[Track]]:
    """One tracklet of each of `ASKED` test people, to be covered: rows of the split, and tracks."""
    test = ground.ground(at).test.test
    rows = np.flatnonzero((test.pids > 0) & (test.lengths >= T))
    rows = rows[np.unique(test.pids[rows], return_index=True)[1]][:ASKED]
    return rows, [replace(track_of(STREET, test.key(int(i))), length=T) for i in rows]


def covered_frames(seed: int, at: Scale) -> np.ndarray:
    """Features of T frames drawn clean, and with a board over the body: (2, ASKED, T, D)."""
    trunk, tracks = network(seed, at), asked(at)[1]

    def parts():
        for board in (False, True):
            for n, track in enumerate(tracks):
                front = (Thing("board", span=(0.35, 1.6), half=0.5, seed=n),) if board else ()
                change = Change(front=front, box=(0.0, 0.0, 0.0), switched=False)
                drawer = Drawer(STREET.seed, at.height, DIALS | STREET.dials, change)
                frames = torch.from_numpy(drawer.draw(track).frames()).permute(0, 3, 1, 2)
                with torch.inference_mode():
                    yield frame_features(trunk, normalise(augment(frames))).numpy()[None]

    key = ("boards", STREET.name, seed, at.size, at.steps)
    found = computed_once("frames", key, parts, trunk)
    return found.reshape(2, len(tracks), T, -1)


def in_the_middle(clean: np.ndarray, covered: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Clips (N, T, D) with the k middle frames covered, and which they are, bool (T,)."""
    hidden = np.zeros(T, bool)
    hidden[(T - k) // 2 : (T - k) // 2 + k] = True
    return np.where(hidden[None, :, None], covered, clean).astype(np.float32), hidden


def drifts(describe, clean: np.ndarray, covered: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How far a video feature moves when k frames are covered: (COVERS, N), and its features.

    describe(clips (N, T, D), hidden (T,)) -> (N, C) of length 1; hidden says which frames are, for
    an oracle. In units of the mean distance between clean features of different people.
    """
    features = [describe(*in_the_middle(clean, covered, k)) for k in COVERS]
    between = distances(features[0], features[0])
    unit = between[~np.eye(len(between), dtype=bool)].mean()
    away = [np.linalg.norm(x - features[0], axis=1) / unit for x in features]
    return np.array(away), np.array(features)


def measure_repair(name: str, seed: int, at: Scale) -> dict:
    """Drift and mAP against the number of covered frames; m of the covered ones."""
    lesson, place = lessons.load("03_gltr"), ground.ground(at).test
    base, oracle = name.removesuffix(", untrained"), name == "oracle"
    head = "mean" if oracle else base
    make = fresh if name.endswith("untrained") else partial(fitted, rate=rate_of(head))
    temporal = make(head, seed, at=at)

    def describe(clips: np.ndarray, hidden: np.ndarray) -> np.ndarray:
        keep = ~hidden if oracle and not hidden.all() else slice(None)
        return lesson.describe(temporal, list(clips[:, keep]))

    clean, covered = covered_frames(seed, at)
    away, features = drifts(describe, clean, covered)
    gallery = lesson.describe(temporal, frames_of("test", seed, at))
    rows, pids, camids = asked(at)[0], place.test.pids, place.test.camids
    labels = pids[rows], camids[rows], pids, camids
    ap = [evaluate(x, *labels[:2], gallery, *labels[2:]).ap for x in features]
    found = {"drift": " ".join(f"{x:.4f}" for x in away.mean(1))}
    found["drift 6"] = " ".join(f"{x:.4f}" for x in away[COVERS.index(6)])
    found["mAP covered"] = " ".join(f"{100 * np.nanmean(x):.2f}" for x in ap)
    clips, hidden = in_the_middle(clean, covered, 6)  # those of "drift 6"
    m = np.mean([lesson.received(temporal, x) for x in clips], 0)
    if np.isfinite(m).all():
        found |= {"m hidden": f"{m[hidden].mean():.3f}", "m clear": f"{m[~hidden].mean():.3f}"}
    return found


def rate_of(name: str) -> float:
    """The chosen rate of a head."""
    return (HEADS | LONGER)[name]


def _rows(test: str, seed: int, rates=(None,), names=HEADS) -> list[dict]:
    row = {"test": test, "seed": seed}
    return [row | {"head": name, "rate": f"{rate or rate_of(name):g}"} for rate in rates
            for name in names]  # fmt: skip


CORE = ("mean", "DTP", "TSA", "GLTR", "GLTR, undilated")  # of the published differences
CONTROLS = [name for name in HEADS if name not in CORE]
REPAIRED = ("mean", "attention", "DTP", "TSA", "GLTR")
REPAIRED += ("oracle", "GLTR, untrained", "attention, untrained")
ROWS = [{"test": "people", "seed": seed, "head": "no training", "rate": ""} for seed in SEEDS]
ROWS += _rows("people", 0, RATES)
ROWS += [row for seed in (1, 2) for row in _rows("people", seed, names=CORE)]
ROWS += [{"test": "covered", "seed": seed, "head": name} for seed in SEEDS for name in REPAIRED]
ROWS += [row for seed in (1, 2) for row in _rows("people", seed, names=CONTROLS)]
ROWS += _rows("people", 0, names=LONGER)
ROWS += twins.ROWS
ROWS = list({tuple(row.items()): row for row in ROWS}.values())


def measure(row: dict) -> dict:
    """Fill a row of ROWS."""
    at, name = ground.footing(scale()), row.get("head")
    found = {"scale": at.name}
    if row["test"] not in ("people", "covered"):
        return found | twins.measure(row, at)
    if row["test"] == "covered":
        return found | measure_repair(name, row["seed"], at)
    if name != "no training":
        return found | measure_head(name, row["seed"], float(row["rate"]), at)
    model, frames = gates.network("trained", row["seed"], at), frames_of("test", row["seed"], at)
    return found | study.summary(
        study.search(gates.video_features(model, frames, None), ground.ground(at).test)
    )
