"""What a backbone knows before a lesson begins: linear read-outs on people it has never seen.

A ridge regression from the feature of one frame, fitted on the training people of the proving
ground and tested on its test people, in frames that show the person well.
"""

import numpy as np

from vreid_course import study
from vreid_course.data.attributes import ATTRIBUTES, read_attributes
from vreid_course.data.mars import Split
from vreid_course.drawing.mini_mars import ATTRIBUTES_CSV
from vreid_course.drawing.truth import Truth
from vreid_course.nets import Baseline, Trunk, resnet
from vreid_course.scales import Scale, scale
from vreid_course.studies import gates, ground

ROWS = [{"backbone": name} for name in ("identity", "course", "random weights")]


def measure(row: dict) -> dict:
    """Balanced accuracy of each attribute (chance 50 or less), degrees off in view and phase."""
    at = ground.footing(scale())
    trunk = resnet("course", None if row["backbone"] == "random weights" else row["backbone"])
    known, asked = (samples(trunk.eval(), part, at) for part in ("train", "test"))
    found = {"scale": at.name}
    for name in ATTRIBUTES:
        classes = np.unique(known[name])
        said = ridge(known["features"], known[name][:, None] == classes, asked["features"])
        right = classes[said.argmax(1)] == asked[name]
        each = [right[asked[name] == c].mean() for c in np.unique(asked[name])]
        found[name] = f"{100 * np.mean(each):.1f}"
    for name in ("view", "phase"):
        circle = np.stack([np.sin(known[name]), np.cos(known[name])], 1)
        said = ridge(known["features"], circle, asked["features"])
        off = np.angle(np.exp(1j * (np.arctan2(*said.T) - asked[name])))
        found[name] = f"{np.degrees(np.abs(off)).mean():.1f}"
    return found | {
        "frames": len(known["view"]),
        "asked": len(asked["view"]),
        "mAP": alone(trunk, at),
    }


def alone(trunk: Trunk, at: Scale) -> str:
    """mAP of the mean of all frames of the test people, nothing trained."""
    model = Baseline(1, trunk).eval()
    frames = gates.frames_of(trunk, ground.store("test", at))
    found = study.search(gates.video_features(model, frames, None), ground.ground(at).test)
    return f"{100 * found.mAP:.2f}"


def samples(trunk: Trunk, part: str, at: Scale) -> dict[str, np.ndarray]:
    """Two frames of each tracklet of a real person, little hidden: features, labels, radians."""
    store = ground.store(part, at)
    split, truth = store.split, Truth(store.split)
    real = np.flatnonzero(split.pids > 0)
    seen = [truth.frames(i) for i in real]
    best = [np.argsort(s.occluded + 2 * s.switched, kind="stable")[:2] for s in seen]
    frames = gates.frames_of(trunk, store)
    found = {"features": np.concatenate([frames[i][b] for i, b in zip(real, best, strict=True)])}
    for name, turn in (("view", 360), ("phase", 1)):
        values = [getattr(s, name)[b] for s, b in zip(seen, best, strict=True)]
        found[name] = 2 * np.pi * np.concatenate(values) / turn
    rows = np.repeat(real, [len(b) for b in best])
    return found | attributes(split, rows)


def attributes(split: Split, rows: np.ndarray) -> dict[str, np.ndarray]:
    """The columns of the annotation for tracklets `rows` (M,)."""
    table = read_attributes(split.folder.parent / ATTRIBUTES_CSV)
    where = {(p, t): i for i, (p, t) in enumerate(zip(table.pids, table.tracklets, strict=True))}
    pick = [where[int(split.pids[i]), int(split.key(i)[7:11])] for i in rows]
    return {name: table.values[name][pick] for name in ATTRIBUTES}


def ridge(x: np.ndarray, y: np.ndarray, asked: np.ndarray, penalty: float = 0.1) -> np.ndarray:
    """Fit y (M, k) on features x (M, D), each put to mean 0 and deviation 1; predict (A, k)."""
    mean, deviation = x.mean(0), x.std(0) + 1e-6
    x, asked = (np.c_[(z - mean) / deviation, np.ones(len(z))] for z in (x, asked))
    gram = x.T @ x + penalty * len(x) * np.eye(x.shape[1])
    return asked @ np.linalg.solve(gram, x.T @ y.astype(float))
