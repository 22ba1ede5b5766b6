"""Study of lesson 09: heads on kept features, and searches in a million rows.

Rows "kept": a head of the lesson on frame features of the untrained backbone, in order and with the
frames of the test shuffled. Rows "index": a gallery searched exactly, and by FAISS's inverted file.
"""

import math
import tempfile
import time
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import nn

from vreid_course import lessons
from vreid_course.data.mars import MarsError
from vreid_course.drawing.truth import Truth
from vreid_course.loader import FrameStore
from vreid_course.nets import resnet
from vreid_course.scales import Scale, scale
from vreid_course.study import search, study_data, summary
from vreid_course.training import extract_frames

HEADS = ("mean", "agreement", "rhythm", "rhythm, fixed weight")
DIM, QUERIES, NEAREST = 64, 256, 10
ROWS = [
    {"footing": "queries"},
    *[{"footing": "kept", "head": head, "seed": seed} for seed in (0, 1, 2) for head in HEADS],
    *[{"footing": "index", "head": head, "rows": rows} for rows in (100_000, 1_000_000)
      for head in ("exact", *(f"IVF, {probes} lists" for probes in (1, 4, 16, 64)))],
]  # fmt: skip


def measure(row: dict) -> dict:
    """Fill a row of ROWS."""
    if row["footing"] == "queries":
        return {"scale": scale().name} | kinds(study_data(scale())[1])
    if row["footing"] == "kept":
        return measure_kept(row["head"], row["seed"])
    return measure_index(row["head"], row["rows"])


def kinds(mars) -> dict[str, str]:
    """What is known of each query, in the order of the APs: look-alikes, and how much is hidden."""
    try:
        truth = Truth(mars.test)
    except MarsError:  # a set without truth
        return {}
    hidden = [f"{truth.frames(q).occluded.mean():.3f}" for q in mars.query]
    return {"kind": " ".join(truth.kind[q] or "-" for q in mars.query), "hidden": " ".join(hidden)}


@cache
def kept(at: Scale) -> tuple:
    """Training split with its frame features, test set with its own, of the untrained backbone."""
    split, mars = study_data(at)
    trunk = resnet(at.backbone, at.weights)
    parts = [extract_frames(trunk, FrameStore(s, at.size, memory=0)) for s in (split, mars.test)]
    return split, parts[0], mars, parts[1]


def fixed(dim: int) -> nn.Module:
    """A rhythm head whose weight stays where it starts."""
    head = lessons.load("09_prototype").Rhythm(dim)
    head.weight.requires_grad_(False)
    return head


def learned_number(head: nn.Module) -> str:
    """The one number that a head learns, beta or the weight of the rhythm; nan without one."""
    return f"{next((p.item() for p in head.parameters() if p.dim() == 0), math.nan):.4f}"


def measure_kept(name: str, seed: int) -> dict:
    """A head on the workbench: in order, and with the frames of the test shuffled."""
    lesson, at = lessons.load("09_prototype"), scale()
    split, mine, mars, theirs = kept(at)
    make = fixed if name == "rhythm, fixed weight" else lesson.HEADS[name]
    model, _ = lesson.learn(make, mine, split.pids, 4 if at.name == "smoke" else 300, seed)
    mixed = summary(search(lesson.describe(model, theirs, mix=seed), mars))
    found = {"scale": at.name, "learned": learned_number(model.head)}
    found |= summary(search(lesson.describe(model, theirs), mars))
    return found | {"shuffled mAP": mixed["mAP"], "shuffled ap": mixed["ap"]}


@cache
def gallery(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features (rows, DIM) of people with ten tracklets each, and QUERIES further tracklets."""
    rng = np.random.default_rng(seed)
    people = rng.standard_normal((max(rows // 10, 1), DIM), np.float32)
    found = np.repeat(people, 10, 0)[:rows]
    found += 0.7 * rng.standard_normal(found.shape, np.float32)
    asked = people[rng.integers(len(people), size=QUERIES)]
    return found, asked + 0.7 * rng.standard_normal(asked.shape, np.float32)


def measure_index(how: str, rows: int) -> dict:
    """CPU seconds of one thread to build an index and to ask, and how many of the ten it finds.

    CPU time, for a search waits for nothing and other work on the machine would count otherwise.
    """
    rows = rows if scale().name != "smoke" else rows // 100
    seconds, right = exact(rows)
    found = {"scale": scale().name, "build s": "0", "recall": "1.000"}
    if how != "exact":
        index, built = inverted_file(rows)
        index.nprobe, start = int(how.split()[1]), time.process_time()
        answers = index.search(gallery(rows)[1], NEAREST)[1]
        seconds = time.process_time() - start
        recall = np.mean([len(np.intersect1d(a, b)) for a, b in zip(answers, right, strict=True)])
        found |= {"build s": f"{built:.1f}", "recall": f"{recall / NEAREST:.3f}"}
    return found | {"ms a query": f"{1000 * seconds / QUERIES:.3f}"}


@cache
def exact(rows: int) -> tuple[float, np.ndarray]:
    """CPU seconds and rows (QUERIES, NEAREST) of the lesson's exact search in a file."""
    lesson, (features, asked) = lessons.load("09_prototype"), gallery(rows)
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder, "gallery.npy"), features)
        kept_rows = np.load(Path(folder, "gallery.npy"), mmap_mode="r")
        start = time.process_time()
        found = lesson.nearest(torch.from_numpy(asked), kept_rows, NEAREST)[1]
        return time.process_time() - start, found.numpy()


@cache
def inverted_file(rows: int) -> tuple:
    """FAISS's IVF-Flat over the gallery, and the CPU seconds to build it on one thread."""
    import faiss  # optional: pip install faiss-cpu

    faiss.omp_set_num_threads(1)
    features, lists = gallery(rows)[0], int(rows**0.5)
    start = time.process_time()
    index = faiss.IndexIVFFlat(faiss.IndexFlatL2(DIM), DIM, lists)
    index.train(features[np.random.default_rng(1).permutation(rows)[: 40 * lists]])
    index.add(features)
    return index, time.process_time() - start
