"""Train, test and compare lessons: what the command line runs, and committed tables come from.

A lesson exports build, loss, embed and recipe. Its study stands in `vreid_course.studies`: `ROWS`,
a list of keys such as {"method": "baseline", "seed": 0} in order of value, and
`measure(row) -> dict`, which fills a row. (Lessons 02 to 07 export theirs, as `STUDY`, `measure`.)
"""

import csv
import importlib.util
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass
from io import StringIO
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from filelock import FileLock
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vreid_course import devices, lessons
from vreid_course.data.mars import NO_QUERIES, Mars, MarsError, Split
from vreid_course.drawing.mini_mars import MiniMars, end_with_parent, mini_mars
from vreid_course.files import cache_folder, writable, write_whole
from vreid_course.loader import ClipBatches, FrameStore, augment
from vreid_course.metrics import Result, evaluate
from vreid_course.nets import resnet
from vreid_course.sampling import IdentityBatches
from vreid_course.scales import Scale, course_data
from vreid_course.training import Diverged, extract, train

RESULTS = Path(__file__).parents[1] / "data" / "results"


@dataclass(frozen=True)
class Recipe:
    """How a method is trained and tested.

    train_sampler, test_sampler: see `sampling`; batches(split, seed): which tracklets make a batch;
    optimiser(model); schedule(steps): factor of the learning rate by step; transform: of a clip;
    people: so many identities the loss has to see together, 1 if it compares none (see `fitting`).
    """

    train_sampler: Callable
    test_sampler: Callable
    batches: Callable[[Split, int], IdentityBatches]
    optimiser: Callable[[nn.Module], torch.optim.Optimizer]
    schedule: Callable[[int], Callable[[int], float]]
    steps: int
    transform: Callable = augment
    people: int = 2

    def fitting(self, split: Split) -> list[int]:
        """The numbers of processes that can share a batch: each gets as many clips, at least two.

        Where identities are compared each gets `people` or more of them, with all their clips.
        """
        batches = self.batches(split, 0)
        P, K = batches.P, batches.K
        if self.people == 1:
            return [n for n in range(1, P * K // 2 + 1) if P * K % n == 0]
        return [n for n in range(1, P // self.people + 1) if P % n == 0]


def fit(
    model: nn.Module, loss: Callable, recipe: Recipe, split: Split | FrameStore, at: Scale,
    seed: int, folder: Path | None = None, workers: int = 0, save_seconds: float = 300,
    skip_bad: bool = False,
) -> list[dict[str, float]]:  # fmt: skip
    """Train a model on a split, or its frames, by its recipe; returns the history of `train`.

    skip_bad: see `FrameStore`; how many frames it replaced is printed. ValueError, before a frame
    is read, for a number of processes that the recipe does not fit.
    """
    plain = isinstance(split, Split)  # else it is a store already
    store = FrameStore(split, at.size, skip_bad=skip_bad) if plain else split
    numbers, processes = recipe.fitting(store.split), devices.processes()
    if processes not in numbers:
        known = ", ".join(map(str, numbers))
        raise ValueError(f"{processes} processes do not fit its batches: start {known}")
    rows = recipe.batches(store.split, seed)
    batches = ClipBatches(store, recipe.train_sampler, rows, recipe.transform, seed, workers)
    optimiser, schedule = recipe.optimiser(model), recipe.schedule(recipe.steps)
    history = train(
        model, loss, optimiser, batches, recipe.steps, schedule, seed, folder, save_seconds
    )
    _say_skipped(store)
    return history


def _say_skipped(store: FrameStore) -> None:
    if store.skipped:
        print(f"replaced a frame that cannot be read {store.skipped} times")


def new_model(lesson: ModuleType, split: Split, at: Scale, seed: int) -> nn.Module:
    """Build a lesson's network for the people of a split, on the backbone of the scale."""
    if len(split) == 0:
        raise MarsError(f"{split.folder}: no training people: name a set with a train part")
    torch.manual_seed(seed)
    return lesson.build(len(np.unique(split.pids)), resnet(at.backbone, at.weights))


def extract_features(
    model: nn.Module, embed: Callable, recipe: Recipe, split: Split, at: Scale, skip_bad=False
) -> np.ndarray:
    """Return the feature of every tracklet of a split, float32 (N, D); skip_bad: see `fit`."""
    store = FrameStore(split, at.size, skip_bad=skip_bad)
    features = extract(model, embed, store, recipe.test_sampler, recipe.transform)
    _say_skipped(store)
    return features


def search(features: np.ndarray, mars: Mars, merge_queries: bool = True) -> Result:
    """Score a feature (N, D) of every test tracklet: all queries of the set, as MARS does."""
    if not len(mars.query):
        raise MarsError(f"{mars.root / 'info' / 'query_IDX.mat'}: {NO_QUERIES}")
    query, rest = mars.query, np.setdiff1d(np.arange(len(mars.test)), mars.query)
    columns = features, mars.test.pids, mars.test.camids
    part = [column[rows] for rows in (query, rest) for column in columns]
    return evaluate(*part, merge_queries=merge_queries)


def study_data(at: Scale) -> tuple[Split, Mars]:
    """Return what studies train on and test on: 60 and 150 drawn people, or what VREID_DATA names.

    The 150 are seen by the same six cameras; 40 people could not resolve a few points of mAP.
    """
    mars = course_data(at)
    if os.environ.get("VREID_DATA") or at.name == "smoke":
        return mars.train, mars
    return mars.train, mini_mars(MiniMars(0, 150, height=at.mini_mars.height))


def summary(result: Result) -> dict[str, str]:
    """The columns of a study's row that say how good a ranking is; `ap` lists every query's AP."""
    ranks = {f"rank{k}": f"{100 * result.cmc[k - 1]:.2f}" for k in (1, 5, 20)}
    ap = " ".join(f"{value:.3f}" for value in result.ap)
    return {"mAP": f"{100 * result.mAP:.2f}", **ranks, "scored": str(result.scored), "ap": ap}


def find(name: str) -> tuple[list[dict], Callable[[dict], dict]]:
    """Rows and `measure` of a study: "gates", or a lesson's, "01_baseline"; ValueError: none."""
    lesson = lessons.load(name) if name[:1].isdigit() else None
    if hasattr(lesson, "STUDY"):
        return lesson.STUDY, lesson.measure
    module = f"vreid_course.studies.{name.lstrip('0123456789_')}"
    if not importlib.util.find_spec(module):
        raise ValueError(f"no study {name!r}: name a lesson that has one, or gates, compare, ...")
    found = importlib.import_module(module)
    if not hasattr(found, "ROWS"):
        raise ValueError(f"{name} has no rows to measure: its tables are made from others")
    return found.ROWS, found.measure


def run(
    name: str,
    rows: Iterable[dict],
    measure: Callable[[dict], dict],
    folder: Path = RESULTS,
    jobs: int = 1,
) -> Path:
    """Measure the rows that `folder`/`name`.csv does not hold yet; every finished row is kept.

    jobs: rows at a time, each in a process of its own with one thread; 1: in this process. A row
    whose training diverged is kept, with the reason in its column "diverged". Stop it at any time
    and call it again: it goes on with the next row. Returns the file's path.
    """
    path, rows = folder / f"{name}.csv", list(rows)
    keys = [{column: str(value) for column, value in row.items()} for row in rows]
    old = _done(path)
    todo = [row for row, key in zip(rows, keys, strict=True)
            if not any(key.items() <= known.items() for known in old)]  # fmt: skip
    begun, count = time.perf_counter(), len(todo)
    if todo:
        writable(folder, "copy the course to a folder of your own")  # before hours are spent
    for n, (key, new) in enumerate(_measured(todo, measure, jobs), 1):
        print({k: v for k, v in new.items() if len(v) < 40}, flush=True)  # no lists of queries
        _add(path, key, new)
        left = (time.perf_counter() - begun) / n * (count - n)
        print(f"row {n} of {count}; about {left / 60:.0f} minutes left", flush=True)
    return path


def _measured(todo: list[dict], measure: Callable, jobs: int):
    """The rows of `todo`, as they become ready."""
    if jobs == 1 or len(todo) < 2:
        yield from (_fill(row, measure) for row in todo)
        return
    os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that are started now
    with ProcessPoolExecutor(jobs, get_context("spawn"), _one_thread) as pool:
        waiting = iter(todo)
        running = {pool.submit(_fill, row, measure) for row in islice(waiting, jobs)}
        try:
            while running:
                ready, running = wait(running, return_when=FIRST_COMPLETED)
                running |= {pool.submit(_fill, row, measure) for row in islice(waiting, len(ready))}
                yield from (job.result() for job in ready)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _one_thread() -> None:
    end_with_parent()
    torch.set_num_threads(1)


def _fill(row: dict, measure: Callable[[dict], dict]) -> tuple[dict[str, str], dict[str, str]]:
    """The row's key, and the row."""
    start = time.perf_counter()
    try:
        found = measure(row)
    except Diverged as error:
        found = {"diverged": str(error)}
    key, found = ({k: str(v) for k, v in part.items()} for part in (row, found))
    found |= {"seconds": f"{time.perf_counter() - start:.1f}", **_circumstances()}
    return key, key | found


def _add(path: Path, key: dict[str, str], new: dict[str, str]) -> None:
    """Put a row into the file, in which others may have put rows meanwhile, the same one too."""
    with FileLock(cache_folder() / f"study_{path.stem}.lock"):
        _write(path, [*(old for old in _done(path) if not key.items() <= old.items()), new])


def _done(path: Path) -> list[dict[str, str]]:
    return read(path.stem, path.parent) if path.exists() else []


def read(name: str, folder: Path = RESULTS) -> list[dict[str, str]]:
    """Read a study's rows; numbers are still text. MarsError if it has not been run."""
    path = folder / f"{name}.csv"
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        cure = f"run `python -m vreid_course study {name}`, or restore it from git"
        raise MarsError(f"{path}: no such study: {cure}") from None
    rows = list(csv.DictReader(StringIO(text, newline="")))
    bad = [i for i, row in enumerate(rows, 1) if None in (*row, *row.values())]
    if bad or not text.endswith("\n"):
        cure = "delete that line, then it is measured again, or restore the file from git"
        raise MarsError(f"{path}: row {[*bad, len(rows)][0]} is cut off: {cure}")
    return rows


def aps(rows: list[dict[str, str]], column: str = "ap") -> np.ndarray:
    """AP of every query in every row, (rows, Q) in 0..1; nan for a query that was not scored."""
    return np.array([row[column].split() for row in rows], float)


def _write(path: Path, rows: list[dict]) -> None:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    text = StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, lambda part: part.write_text(text.getvalue(), "utf-8", newline=""))


def _circumstances() -> dict[str, str]:
    """Device, versions and commit, for the row."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    here = Path(__file__).parent
    commit = subprocess.run(command, cwd=here, capture_output=True, text=True).stdout.strip()
    found = {"device": devices.name(), "torch": torch.__version__}
    return found | {"python": platform.python_version(), "commit": commit or "unknown"}


def cost(model: nn.Module, clips: torch.Tensor, repeats: int = 5) -> dict[str, float]:
    """Return parameters, and for one pass over clips (B, T, 3, H, W): GFLOPs, milliseconds, MiB.

    On the model's device. MiB is the peak of its memory, nan on a CPU. A multiply-add counts as two
    operations.
    """
    where = next(model.parameters()).device
    model, clips = model.eval(), clips.to(where)
    with torch.inference_mode():
        with FlopCounterMode(display=False) as counter:
            model(clips)
        devices.peak_memory(where, reset=True)
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            model(clips)
            devices.synchronise(where)
            times.append(time.perf_counter() - start)
    size = sum(p.numel() for p in model.parameters())
    return {"parameters": size, "GFLOPs": counter.get_total_flops() / 1e9,
            "ms": 1000 * float(np.median(times)), "MiB": devices.peak_memory(where)}  # fmt: skip
