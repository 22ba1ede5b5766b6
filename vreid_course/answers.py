"""Search from camera to camera: whom a track shows, looked for in all the other cameras.

The answers become a table and pages of pictures. Where the set was cut from videos
(`data.video.from_video`) an answer says camera, video, seconds and box.
"""

import csv
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from tqdm.auto import tqdm

from vreid_course import show
from vreid_course.data.mars import Mars, MarsError, Split, read_frames
from vreid_course.loader import FrameStore, augment
from vreid_course.metrics import average_precision, distances
from vreid_course.nets import frame_features
from vreid_course.sampling import whole
from vreid_course.scales import Scale
from vreid_course.training import computed_once, extract

COLUMNS = (
    "query query_camera query_from query_to rank answer camera video track from to frame"
    " left top width height distance right"
).split()
CHUNK = 256  # tracklets whose features are kept in one file: a stopped search goes on behind them


def mean_feature(trunk: nn.Module, frames: torch.Tensor) -> torch.Tensor:
    """The feature of a tracklet (T, 3, H, W) without any training: the mean, of length 1, (D,)."""
    return nn.functional.normalize(frame_features(trunk, frames).mean(0), dim=0)


def features_of(
    model: nn.Module, split: Split, at: Scale, embed: Callable = mean_feature,
    sampler: Callable = whole, transform: Callable = augment, root: Path | None = None,
) -> np.ndarray:  # fmt: skip
    """The feature of each tracklet of a split, float32 (N, D), computed once and kept in pieces.

    embed(model, frames (T, 3, H, W)) -> (D,); sampler, transform: see `training.extract`.
    """
    stamp, found = split.stamp(), []
    for first in tqdm(range(0, len(split), CHUNK), "features", unit=f"x{CHUNK}", delay=1):
        part = split.select(np.arange(first, min(first + CHUNK, len(split))))
        key = (split.folder.resolve(), stamp, first, at.size, embed.__module__, repr(sampler))

        def compute(part=part):
            yield extract(model, embed, FrameStore(part, at.size), sampler, transform)

        found.append(computed_once("search", key, compute, model, root))
    return np.concatenate(found)


@dataclass(frozen=True, eq=False)
class Answers:
    """Q queries and for each the rows of other cameras, nearest first.

    queries (Q,): rows of mars.test; found, far: Q arrays of rows and of their distances; known
    (Q,): whether the person is known to be in another camera, so that answers can be judged; where:
    of each tracklet of mars.test what `places` tells.
    """

    mars: Mars
    queries: np.ndarray
    found: list[np.ndarray]
    far: list[np.ndarray]
    known: np.ndarray
    where: list[dict[str, str]]

    def right(self, i: int) -> np.ndarray:
        """Which answers to query number i show its person."""
        pids = self.mars.test.pids
        return (pids[self.queries[i]] > 0) & (pids[self.found[i]] == pids[self.queries[i]])

    def ap(self) -> np.ndarray:
        """Average precision of each query, (Q,); nan where nobody can judge."""
        judged = zip(range(len(self.queries)), self.known, strict=True)
        ranks = [np.flatnonzero(self.right(i)) + 1 if known else None for i, known in judged]
        return np.array([np.nan if r is None else average_precision(r) for r in ranks])

    def __str__(self) -> str:
        """How good the answers are, or that nobody has said who is who."""
        n, total = int(self.known.sum()), len(self.queries)
        if not n:
            return f"{total} queries; not scored: no person is known in two cameras"
        rank1 = 100 * np.mean([self.right(i)[0] for i in np.flatnonzero(self.known)])
        score = f"mAP {100 * np.nanmean(self.ap()):.1f}, rank-1 {rank1:.1f}"
        return f"{score}; {n} of {total} queries scored, answers from other cameras only"


def search(features: np.ndarray, mars: Mars, camera: int | None = None) -> Answers:
    """Look for every test tracklet (of one camera, if it is named) in all the other cameras.

    features (N, D), one row a tracklet of mars.test. Junk (pid -1) neither asks nor answers.
    MarsError if there is no other camera, or nothing in the one that is named; ValueError for
    features that are no numbers.
    """
    split, queries, found, far = mars.test, askers(mars, camera), [], []
    good = split.pids != -1
    if not np.isfinite(features).all():
        bad = split.key(int(np.argmin(np.isfinite(features).all(1))))
        raise ValueError(f"the feature of {bad} is not finite: train again, or look at its frames")
    for q in queries:
        rows = np.flatnonzero((split.camids != split.camids[q]) & good)
        row = distances(features[q : q + 1], features[rows])[0]
        order = row.argsort(kind="stable")
        found.append(rows[order])
        far.append(row[order])
    pairs = zip(split.pids[queries], found, strict=True)
    known = np.array([pid > 0 and (split.pids[rows] == pid).any() for pid, rows in pairs])
    return Answers(mars, queries, found, far, known, places(mars))


def askers(mars: Mars, camera: int | None = None) -> np.ndarray:
    """The rows of mars.test that ask, (Q,) int64: those of a camera, or all; none is junk.

    MarsError if there is no other camera, or nothing in the one that is named.
    """
    split = mars.test
    cameras, asks = np.unique(split.camids), split.pids != -1
    if camera:
        asks &= split.camids == camera
    if len(cameras) < 2 or not asks.any():
        fault = f"{split.folder}: has the cameras {cameras.tolist()}"
        cure = "name one of these" if len(cameras) > 1 else "a search needs two: add one"
        raise MarsError(f"{fault}: {cure}")
    return np.flatnonzero(asks)


def places(mars: Mars) -> list[dict[str, str]]:
    """Of each test tracklet camera, video, track, seconds (from, to), and a box in its middle.

    Without frames.csv, as in MARS itself, only the camera is known. MarsError if it is not whole,
    or tells of other pictures.
    """
    split = mars.test
    if not (rows := read_frames(mars)):
        return [{"camera": str(camid)} for camid in split.camids]
    ends = zip(split.first.tolist(), split.last.tolist(), strict=True)
    return [
        rows[(a + b) // 2] | {"from": rows[a]["second"], "to": rows[b - 1]["second"]}
        for a, b in ends
    ]


def write_table(path: Path, answers: Answers, top: int = 10) -> None:
    """The first `top` answers to every query as CSV: a line each, see COLUMNS; seconds, pixels."""
    split, where = answers.mars.test, answers.where
    with path.open("w", newline="", encoding="utf-8") as stream:
        table = csv.DictWriter(stream, COLUMNS, "", "ignore", lineterminator="\n")
        table.writeheader()
        for i, q in enumerate(answers.queries):
            asked = {"query": split.key(q), "query_camera": split.camids[q]}
            asked |= {f"query_{end}": where[q].get(end, "") for end in ("from", "to")}
            right = np.where(answers.right(i), "yes", "no") if answers.known[i] else [""] * top
            for rank, row in enumerate(answers.found[i][:top]):
                line = where[row] | asked | {"rank": rank + 1, "answer": split.key(row)}
                line |= {"distance": f"{answers.far[i][rank]:.4f}", "right": right[rank]}
                table.writerow(line)


def sheet(answers: Answers, which: Iterable[int], top: int = 8) -> np.ndarray:
    """A contact sheet (H, W, 3) uint8: for the queries number `which` a row each, answers behind.

    Below each picture its camera and second. The query is blue; where it can be judged right
    answers are green, wrong ones orange with a cross.
    """

    def face(row: int, colour=None, cross=False) -> np.ndarray:
        frame = answers.mars.test.frames(row, [answers.mars.test.lengths[row] // 2])[0]
        small = np.asarray(Image.fromarray(frame).resize((64, 128)))
        place = answers.where[row]
        words = f"camera {place['camera']}"
        if place.get("second"):
            words = f"{place['camera']}: {float(place['second']):.1f} s"
        return show.captioned(show.framed(small, colour, cross) if colour else small, words)

    rows = []
    for i in which:
        asked, pictures = face(answers.queries[i], show.QUERY), []
        for row, right in list(zip(answers.found[i], answers.right(i), strict=True))[:top]:
            marks = (show.RIGHT if right else show.WRONG, not right) if answers.known[i] else ()
            pictures.append(face(row, *marks))
        rows.append(show.row([asked, np.full((len(asked), 8, 3), 255, np.uint8), *pictures]))
    return show.stack(rows)


def write_points(path: Path, features: np.ndarray, answers: Answers) -> None:
    """Features (N, D) as JSON lines for a vector database: id, vector and payload of each point."""
    with path.open("w", encoding="utf-8") as stream:
        for i, (feature, place) in enumerate(zip(features, answers.where, strict=True)):
            vector = [round(float(x), 6) for x in feature]
            payload = {"tracklet": answers.mars.test.key(i)} | {k: v for k, v in place.items() if v}
            stream.write(json.dumps({"id": i, "vector": vector, "payload": payload}) + "\n")


def write_all(folder: Path, features: np.ndarray, answers: Answers, top: int = 8) -> None:
    """answers.csv, pages of 12 queries (page_001.png ...) and points.jsonl into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_table(folder / "answers.csv", answers, top)
    write_points(folder / "points.jsonl", features, answers)
    for first in tqdm(range(0, len(answers.queries), 12), "pages", delay=1):
        which = range(first, min(first + 12, len(answers.queries)))
        picture = Image.fromarray(sheet(answers, which, top))
        picture.save(folder / f"page_{first // 12 + 1:03d}.png")
