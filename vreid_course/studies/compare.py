"""Lesson 08: all methods on the proving ground, under one loss and under that of their paper.

Everything but the method is the same: backbone, frames, steps, people, evaluator. How fast what is
new learns was chosen for each method on the validation people (`budget`).
"""

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache, partial
from types import MethodType

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vreid_course import lessons, study
from vreid_course.data.mars import Mars, MarsError, Split
from vreid_course.devices import in_bfloat16
from vreid_course.drawing.truth import Truth
from vreid_course.loader import FrameStore
from vreid_course.losses import accuracy
from vreid_course.metrics import Result
from vreid_course.nets import AttentionPool, Baseline, Trunk
from vreid_course.non_local import non_local_blocks
from vreid_course.sampling import IdentityBatches, spread
from vreid_course.scales import Scale, scale
from vreid_course.studies import ground
from vreid_course.training import extract


@dataclass(frozen=True)
class Method:
    """A method: its lesson, what `build` of that lesson is told, and the loss of its paper.

    own: "lesson" for the lesson's loss, "names" for cross entropy alone, "common" where the paper
    uses the common loss anyway. rate: of what is new, that of RATES with the best validation mAP
    at seed 0 under the common loss.
    """

    lesson: str
    options: dict = field(default_factory=dict)
    own: str = "lesson"
    rate: float = 1e-3


METHODS = {
    "mean": Method("01_baseline", own="common"),
    "one picture": Method("01_baseline", own="common"),
    "attention": Method("01_baseline", {"pool": AttentionPool}, "common"),
    "LSTM": Method("07_related", {"system": "LSTM"}, "common"),
    "COSAM": Method("02_cosam", {"slots": (4, 5)}, "common"),
    "GLTR": Method("03_gltr", rate=3e-4),
    "TKP": Method("04_tkp"),
    "attributes": Method("05_attributes"),
    "VRSTC": Method("06_vrstc", own="names", rate=3e-3),
    "C3D": Method("07_related", {"system": "mean", "kind": "C3D"}, "names"),
    "P3D": Method("07_related", {"system": "mean", "kind": "P3D-C"}, "names"),
    "M3D": Method("07_related", {"system": "mean", "kind": "M3D"}, "names"),
    "STMP": Method("07_related", {"system": "STMP"}),
    "STA": Method("07_related", {"system": "STA+Reg"}),
    "Snippet": Method("07_related", {"system": "Snippet"}, rate=3e-3),
    "ASTPN": Method("07_related", {"system": "ASTPN"}, rate=3e-3),
}
RATES = (1e-3, 3e-3, 3e-4)
PAIRS = ("Snippet", "ASTPN")  # under their own loss they compare videos in pairs


def new_model(method: Method, people: int, at: Scale, column: str = "paper") -> nn.Module:
    """The network of a method on the start of the proving ground, for the loss of a column."""
    trunk, options = ground.start(at), dict(method.options)
    if "pool" in options:
        return Baseline(people, trunk, options["pool"](trunk.widths[-1]), neck=True)
    if "slots" in options:
        options |= {"T": at.T, "size": at.size}
    if method.lesson == "05_attributes":
        options["labels"] = annotated(people, at)
    model = lessons.load(method.lesson).build(people, trunk, **options)
    if "system" in options:
        model.train = MethodType(nn.Module.train, model)  # its lesson freezes the batch norms
    if options.get("system") == "Snippet" and column == "common":  # no table, no judge
        width = model.system.head.width
        model.system.neck = nn.BatchNorm1d(width)
        model.system.classifier = nn.Linear(width, people, bias=False)
        nn.init.normal_(model.system.classifier.weight, std=0.001)
    for trunk in trunks(model):
        if isinstance(trunk, Trunk):  # the 3-D ones have a layout of their own
            trunk.to(memory_format=torch.channels_last)
    return model


def annotated(people: int, at: Scale) -> np.ndarray:
    """The attributes of the training people, (people, L); nan where nobody knows them."""
    lesson, train = lessons.load("05_attributes"), ground.ground(at).train
    labels = lesson.by_person(lesson.annotated(train), train.pids)
    return labels if len(labels) == people else np.full((people, labels.shape[1]), np.nan)


def common_loss(forward: Callable, model: nn.Module, batch: dict[str, Tensor]):
    """Smoothed cross entropy plus batch-hard triplets, as in lesson 01."""
    return lessons.load("01_baseline").loss(partial(forward, model), batch)


def names_only(forward: Callable, model: nn.Module, batch: dict[str, Tensor]):
    """Cross entropy and nothing else."""
    logits = forward(model, batch["clips"])[1].float()
    hits = accuracy(logits, batch["labels"])
    return F.cross_entropy(logits, batch["labels"]), {"accuracy": hits}


def loss_of(method: Method, column: str) -> Callable:
    """The loss of a column, "paper" or "common", of (model, batch)."""
    lesson, kind = lessons.load(method.lesson), "common" if column == "common" else method.own
    if kind == "lesson":
        return lesson.loss
    known = {"common": common_loss, "names": names_only}
    return partial(known[kind], lesson.features_and_logits)


def trunks(model: nn.Module) -> list[nn.Module]:
    """The backbones in a model: two in TKP, one elsewhere."""
    return [getattr(model, x) for x in ("trunk", "image", "video") if hasattr(model, x)]


def known_parameters(model: nn.Module) -> list[nn.Parameter]:
    """What came with the backbone; all else is new: non-local blocks, filters in time, heads."""
    new = {p for block in non_local_blocks(model) for p in block.parameters()}
    named = [x for trunk in trunks(model) for x in trunk.named_parameters()]
    return [
        p for name, p in named if p not in new and not {"time", "branches"} & {*name.split(".")}
    ]


def trained(
    name: str, column: str, at: Scale, seed: int, rate: float | None = None, repaired=False
) -> nn.Module:
    """Train a method on the people of the proving ground, in bfloat16 on every device.

    The network is kept in `ground.runs()`: other studies ask for it again.
    """
    method, store = METHODS[name], ground.store("train", at)
    if repaired:
        store = FrameStore(repainted(at).train, at.size)
    torch.manual_seed(seed)
    model = new_model(method, len(np.unique(store.split.pids)), at, column)
    recipe = ground.recipe(at, rate or method.rate, known_parameters)
    if name == "one picture":  # as many pictures a batch
        recipe = replace(
            recipe,
            train_sampler=partial(spread, frames=1),
            batches=lambda split, seed: IdentityBatches(split.pids, at.P, at.K * at.T, seed),
        )
    folder = ground.runs() / f"{name}_{column}_{seed}_{recipe.steps}_{rate or method.rate:g}"
    study.fit(model, in_bfloat16(loss_of(method, column)), recipe, store, at, seed, folder)
    return model


def embed_of(name: str, column: str) -> Callable:
    """What makes a feature (D,) of a clip (T, 3, H, W); for pairs what the gallery stores."""
    if column == "paper" and name == "Snippet":
        return lambda model, frames: model(frames[None])[0][0]
    if column == "paper" and name == "ASTPN":
        return lambda model, frames: model.system.head.frames(model.maps(frames[None])).flatten()
    return lessons.load(METHODS[name].lesson).embed


def features_of(model: nn.Module, embed: Callable, store: FrameStore, at: Scale) -> np.ndarray:
    """Features of all test clips of N tracklets: (N, CLIPS, D)."""
    parts = [partial(ground.parts, frames=at.T, part=part) for part in range(ground.CLIPS)]
    fast = in_bfloat16(embed)
    return np.stack([extract(model, fast, store, part) for part in parts], axis=1)


def searched(name: str, column: str, model: nn.Module, at: Scale, part="test", repaired=False):
    """Search the "test" or "validation" people: by the mean feature, or by pairs as PAIRS do."""
    mars, store = getattr(ground.ground(at), part), ground.store(part, at)
    if repaired:
        mars = repainted(at)
        store = FrameStore(mars.test, at.size)
    features = features_of(model, embed_of(name, column), store, at)
    return ranking(name, column, model, features, mars)


def ranking(name: str, column: str, model: nn.Module, features: np.ndarray, mars: Mars) -> Result:
    """Search by features (N, CLIPS, D): by their mean, or by pairs."""
    if column == "paper" and name in PAIRS:
        stored = torch.from_numpy(features).reshape(len(features), -1, model.system.head.width)
        return lessons.load("07_related").ranks(model.system, stored, mars)
    return study.search(features.mean(axis=1), mars)


@cache
def repainted(at: Scale) -> Mars:
    """The proving ground as VRSTC repaints it (drawn once, some minutes)."""
    found = ground.ground(at)
    return lessons.load("06_vrstc").version("scored", replace(found.test, train=found.train), at)


def factors(mars: Mars) -> dict[str, str]:
    """What makes each query hard, a list in each column, in the order of the APs of the rows.

    kind: "-", "accessory" or "twin"; hidden: mean share of the person that is hidden; jitter:
    metres by which the box is off; frames; turn: degrees between the view of the query and the
    nearest view of a right answer, nan without one. Of a set without truth only the person.
    """
    test, lists = mars.test, {"person": [str(mars.test.pids[q]) for q in mars.query]}
    with suppress(MarsError):
        truth = Truth(test)
        seen = [truth.frames(i) for i in range(len(test))]
        off = [np.hypot(s.right, s.up).mean() for s in seen]
        view = np.array([np.angle(np.exp(1j * np.radians(s.view)).mean()) for s in seen])
        lists["kind"] = [truth.kind[q] or "-" for q in mars.query]
        lists["hidden"] = [f"{seen[q].occluded.mean():.3f}" for q in mars.query]
        lists["switched"] = [f"{seen[q].switched.mean():.3f}" for q in mars.query]
        lists["jitter"] = [f"{off[q]:.3f}" for q in mars.query]
        lists["frames"] = [str(test.lengths[q]) for q in mars.query]
        lists["turn"] = [f"{turn(test, view, q):.0f}" for q in mars.query]
    return {name: " ".join(values) for name, values in lists.items()}


def turn(test: Split, view: np.ndarray, q: int) -> float:
    """Degrees from the view (N,) of query q to the nearest view of a right answer."""
    right = (test.pids == test.pids[q]) & (test.camids != test.camids[q])
    away = np.abs(np.angle(np.exp(1j * (view[right] - view[q]))))
    return float(np.degrees(away.min())) if right.any() else float("nan")


def chosen(name: str, column: str = "common") -> dict[str, str]:
    """What the rows of a method at its chosen rate have in common (seed 0 was run at others)."""
    rate = f"{METHODS[name].rate:g}"
    return {"test": "trained", "loss": column, "method": name, "rate": rate}


NAMES = sorted(METHODS, key=lambda name: name == "VRSTC")  # last: its frames are repainted first


def _rows(seed: int, column: str, rates: Iterable = (), names: Iterable = NAMES) -> list[dict]:
    names = [n for n in names if column == "common" or METHODS[n].own != "common"]
    row = {"test": "trained", "loss": column, "seed": seed}
    return [row | {"method": n, "rate": f"{rate or METHODS[n].rate:g}"}
            for rate in rates or [None] for n in names]  # fmt: skip


ROWS = [
    {"test": "queries"},
    *_rows(0, "common", RATES, ["mean"]),
    *[{"test": "no training", "method": name, "loss": "common", "seed": 0} for name in NAMES],
    *_rows(0, "common", RATES),
    *_rows(0, "paper"),
    *[row for column in ("common", "paper") for seed in (1, 2) for row in _rows(seed, column)],
]
ROWS = list({tuple(row.items()): row for row in ROWS}.values())  # some are there already


def measure(row: dict) -> dict:
    """Fill a row of ROWS: test people, and the mAP on the validation people."""
    at = ground.footing(scale())
    common = {"scale": at.name, "steps": at.steps, "precision": "bfloat16"}
    if row["test"] == "queries":
        return common | factors(ground.ground(at).test)
    name, column = row["method"], row["loss"]
    repaired = name == "VRSTC" and row["test"] == "trained"
    if row["test"] == "trained":
        model = trained(name, column, at, row["seed"], float(row["rate"]), repaired)
    else:
        torch.manual_seed(row["seed"])
        people = len(np.unique(ground.ground(at).train.pids))
        model = new_model(METHODS[name], people, at, column)
    if (column, row["seed"]) == ("common", 0):  # what rates are chosen by
        found = searched(name, column, model, at, "validation")
        common["validation mAP"] = f"{100 * found.mAP:.2f}"
    return common | study.summary(searched(name, column, model, at, repaired=repaired))
