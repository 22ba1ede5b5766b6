"""The proving ground: the world, the start, the budget and the rates that all claims are tested on.

They were fixed by `gates` and `budget`, on validation people, before any method was run.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from vreid_course import study
from vreid_course.data.mars import Mars, Split, query_rows
from vreid_course.drawing.mini_mars import STREET, MiniMars, cache_path, mini_mars
from vreid_course.drawing.truth import Truth
from vreid_course.loader import FrameStore
from vreid_course.nets import Trunk, resnet
from vreid_course.sampling import IdentityBatches, Rng, spread
from vreid_course.scales import Scale, course_data
from vreid_course.training import cosine, two_rates

STEPS = 400  # see `budget`
TRUNK_RATE = 3e-4
CLIPS = 4  # of each tracklet, at test


def footing(at: Scale) -> Scale:
    """What all rows share: 16 people x 2 clips x 4 frames a batch, the start, the steps."""
    weights = "identity" if at.weights == "course" else at.weights
    if at.name == "smoke":
        return replace(at, T=4, K=2, weights=weights)
    return replace(at, P=16, K=2, T=4, steps=STEPS, weights=weights)


@dataclass(frozen=True)
class Ground:
    """train: people to train on; validation: others, to choose rates on; test: others again.

    The three are seen by the same cameras. Validation people are the last 50 of the train part.
    """

    train: Split
    validation: Mars
    test: Mars


def world(at: Scale) -> MiniMars:
    """What is drawn: the street, at scale smoke a small set."""
    return at.mini_mars if at.name == "smoke" else replace(STREET, height=at.mini_mars.height)


@cache
def ground(at: Scale) -> Ground:
    """The drawn world (drawn first where it is missing), or what VREID_DATA names, in three."""
    mars = course_data(at) if os.environ.get("VREID_DATA") else mini_mars(world(at))
    people = np.unique(mars.train.pids)
    held = people[-min(50, len(people) // 4) :]
    mine = np.isin(mars.train.pids, held)
    part = mars.train.select(mine)
    validation = Mars(mars.root, part, part, query_rows(part.pids, part.camids))
    return Ground(mars.train.select(~mine), validation, mars)


truth = cache(Truth)  # of a split, read once a process


@cache
def store(split_of: str, at: Scale, kind: type = FrameStore) -> FrameStore:
    """The frames of "train", "validation" or "test", decoded once a process."""
    found = getattr(ground(at), split_of)
    return kind(found if split_of == "train" else found.test, at.size)


def runs() -> Path:
    """The folder of networks that several studies use; another one on other data."""
    named = os.environ.get("VREID_DATA")
    return cache_path() / "runs" / f"ground_{Path(named).resolve().name if named else STREET.name}"


def start(at: Scale) -> Trunk:
    """The backbone that all rows start from."""
    return resnet(at.backbone, at.weights).to(memory_format=torch.channels_last)


def parts(length: int, rng: Rng = None, frames: int = 4, part: int = 0) -> np.ndarray:
    """For testing: clip `part` of CLIPS, each of `frames` spread over the whole tracklet.

    Together they are CLIPS * frames spread frames, dealt out in turn. So a clip holds frames that
    show the person well and others, as in training, and a weight has something to choose from.
    """
    return spread(length, None, CLIPS * frames)[part::CLIPS]


def recipe(at: Scale, rate: float = 3e-3, old: Callable = nn.Module.parameters) -> study.Recipe:
    """One for all rows; rate: of what is new; old(model): the parameters that are not."""
    return study.Recipe(
        train_sampler=partial(spread, frames=at.T),
        test_sampler=partial(parts, frames=at.T),
        batches=lambda split, seed: IdentityBatches(split.pids, at.P, at.K, seed),
        optimiser=lambda model: two_rates(model, old(model), TRUNK_RATE, rate),
        schedule=partial(cosine, warmup=20),
        steps=at.steps,
    )
