"""Lesson 01: what colours, random weights, the start and training give on the proving ground."""

from dataclasses import replace

import numpy as np
import torch

from vreid_course import study
from vreid_course.histogram import tracklet_histograms
from vreid_course.metrics import evaluate
from vreid_course.nets import Baseline, resnet
from vreid_course.scales import Scale, scale
from vreid_course.studies import compare, gates, ground

STEPS = (400, 100, 200)
ROWS = [{"method": m, "steps": 0, "seed": 0}
        for m in ("no training", "colour histogram", "random weights")]  # fmt: skip
ROWS += [{"method": "baseline", "steps": s, "seed": seed} for seed in (0, 1, 2) for s in STEPS]


def network(row: dict, at: Scale) -> Baseline:
    """The network of a row; that of 400 steps is the one whose oracles `gates` measures."""
    if row["method"] == "baseline":
        at = replace(at, steps=row["steps"])
        return compare.trained("mean", "common", at, row["seed"]).eval()
    model = gates.network("untrained", row["seed"], at)
    if row["method"] == "random weights":
        torch.manual_seed(row["seed"])
        model = Baseline(1, resnet(at.backbone)).eval()
    return model


def measure(row: dict) -> dict:
    """Scores of whole tracklets, and `single`, `single_ap`: of one frame of each query instead.

    The frame, any of the query's, is searched among whole tracklets, as in `gates`.
    """
    at = ground.footing(scale())
    mars, rng = ground.ground(at).test, np.random.default_rng(0)
    if row["method"] == "colour histogram":
        whole, one = (tracklet_histograms(mars.test, n) for n in (at.T * ground.CLIPS, 1))
        one = one[mars.query]
    else:
        model = network(row, at)
        frames = gates.frames_of(model.trunk, ground.store("test", at))
        whole = gates.video_features(model, frames, None)
        picked = np.stack([frames[i][rng.integers(len(frames[i]))] for i in mars.query])
        one = gates.unit(model, torch.from_numpy(picked))
    columns = mars.test.pids, mars.test.camids
    single = evaluate(one, *(x[mars.query] for x in columns), whole, *columns)
    found = study.summary(study.search(whole, mars)) | {"scale": at.name}
    return found | {"single": f"{100 * single.mAP:.2f}", "single_ap": study.summary(single)["ap"]}
