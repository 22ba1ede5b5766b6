"""Lesson 02: what a mask is worth in COSAM's seat, from none to the true one; its heads and clips.

On the footing of `ground`. All networks are the lesson's `CosamNet`; the rungs of the ladder differ
in what multiplies the maps behind stages 4 and 5. The row without a mask is "mean" of `compare`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache, partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vreid_course import lessons, study
from vreid_course.devices import in_bfloat16
from vreid_course.drawing.mini_mars import STREET
from vreid_course.loader import IMAGENET_MEAN, IMAGENET_STD, FrameStore, augment, normalise
from vreid_course.metrics import bootstrap
from vreid_course.nets import AttentionPool
from vreid_course.sampling import spread
from vreid_course.scales import Scale, scale
from vreid_course.studies import compare, ground, masks
from vreid_course.studies.masks import FixedMask, large, others_mean, pixel_auc
from vreid_course.training import extract

LESSON = "02_cosam"
FRAMES = 16  # of each tracklet, at test, whatever T is
CONSTANT = 0.75  # an untrained COSAM: a mask of 1/2, times 1 + a gate of 1/2


class OverTime(nn.Module):
    """A head on frame vectors in the place of the lesson's: maps (B, T, C, H, W) -> (B, dim)."""

    def __init__(self, C: int, H: int, W: int, head: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.head = head(C)
        self.dim = getattr(self.head, "width", C)

    def forward(self, maps: Tensor) -> Tensor:
        return self.head(maps.mean((3, 4)))


class Seat(nn.Module):
    """Where a COSAM would stand, a mask that it is told: X (N, C, h, w) -> X * mask, None, mask."""

    def __init__(self, channels: int, T: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.size, self.mask = tuple(size), None

    def forward(self, x: Tensor) -> tuple[Tensor, None, Tensor]:
        mask = self.mask.to(x.dtype).expand(len(x), -1, -1, -1)
        return x * mask, None, mask


class WithMasks(FrameStore):
    """Frames, and behind them as many pictures of what can be seen of the person, white on black.

    So whatever crops and flips a frame crops and flips its mask alike.
    """

    def read(self, row: int, which: np.ndarray) -> Tensor:
        """uint8 (2 * T, 3, H, W): T frames, T masks."""
        frames, mask = super().read(row, which), seen(self.split, row)[which]
        both = torch.cat([frames, masks.white(mask)])
        return both.contiguous(memory_format=torch.channels_last)


def seen(split, row: int) -> np.ndarray:
    """The mask (T, H, W) bool of what can be seen of the person of a tracklet."""
    bits, shape = _packed(split, row)
    return np.unpackbits(bits, count=int(np.prod(shape))).reshape(shape) > 0


@cache
def _packed(split, row: int) -> tuple[np.ndarray, tuple]:
    mask = ground.truth(split).person(row)
    return np.packbits(mask), mask.shape


@dataclass(frozen=True)
class Kind:
    """A network of the study. told: the mask it is told (see `told`), "" for a COSAM of its own.

    All have one rate of what is new: that which `compare` chose for COSAM, and for the mean too.
    """

    slots: tuple[int, ...] = (4, 5)
    told: str = ""
    start: str = ""
    head: Callable | None = None
    T: int = 4


def lstm(C: int) -> nn.Module:
    """The LSTM that `compare` measures alone."""
    return lessons.load("03_gltr").HEADS["LSTM"](C)


KINDS = {
    "true mask": Kind(told="true"),
    "COSAM4,5": Kind(),  # the network of `compare`
    "untrained COSAM": Kind(start="frozen"),
    "no mask, bias": Kind(()),
    "mean mask": Kind(told="mean"),
    "COSAM4": Kind((4,)),
    "COSAM5": Kind((5,)),
    "identity start": Kind(start="identity"),
    "constant": Kind(told="constant"),
    "centre": Kind(told="centre"),
    "true share": Kind(told="share"),
    "COSAM3": Kind((3,)),
    "COSAM2": Kind((2,)),
    "COSAM4,5, T=2": Kind(T=2),
    "COSAM4,5, T=8": Kind(T=8),
    "COSAM4,5, attention": Kind(head=AttentionPool),
    "COSAM4,5, LSTM": Kind(head=lstm),
}
RATE = compare.METHODS["COSAM"].rate

#: The rungs of the ladder, and what they are compared with.
LADDER = ("no mask", "no mask, bias", "constant", "centre", "mean mask", "untrained COSAM",
          "COSAM4", "COSAM5", "COSAM4,5", "identity start", "true share", "true mask")  # fmt: skip
ROWS = [
    {"network": name, "seed": seed, "rate": f"{RATE:g}"} for seed in (0, 1, 2) for name in KINDS
]


def new_model(name: str, people: int, at: Scale) -> nn.Module:
    """A network of KINDS on the start of the proving ground."""
    kind = KINDS[name]
    options = {"slots": kind.slots, "T": at.T, "size": at.size}
    if kind.told:
        options["block"] = Seat
    if kind.head:
        options["pool"] = partial(OverTime, head=kind.head)
    model = lessons.load(LESSON).build(people, ground.start(at), **options)
    for block in model.blocks.values() if kind.start else ():
        if kind.start == "identity":
            start_as_identity(block)
        else:
            block.requires_grad_(False)
    return model


def start_as_identity(block: nn.Module) -> None:
    """Have a COSAM begin as out = x, whatever x is: a mask of 2/3 times 1 + a gate of 1/2."""
    for last, bias in ((block.space.summary[-1], np.log(2)), (block.channel.layers[-2], 0.0)):
        nn.init.zeros_(last.weight)
        nn.init.constant_(last.bias, bias)


def told(what: str, masks: Tensor, at: Scale) -> Tensor:
    """What the seats are told for frames with true masks (N, 1, H, W): (N or 1, 1, H, W) in 0..1.

    "true": those; "share": the share of the frame that they fill, everywhere; "mean": their mean
    over the training people; "centre": highest in the middle of the box; "constant": CONSTANT.
    """
    if what == "true":
        return masks
    if what == "share":
        return masks.mean((2, 3), keepdim=True).expand_as(masks)
    if what == "mean":
        return mean_mask(at).to(masks)
    if what == "centre":
        y, x = (torch.linspace(-1, 1, n, device=masks.device) for n in at.size)
        return torch.exp(-2 * (x[None, :] ** 2 + y[:, None] ** 2))[None, None]
    return torch.full((1, 1, *at.size), CONSTANT, device=masks.device)


@cache
def mean_mask(at: Scale) -> Tensor:
    """Where the people of the train part are, on average: (1, 1, H, W) in 0..1."""
    split = ground.ground(at).train
    each = [seen(split, row).mean(0) for row in range(len(split))]
    return torch.from_numpy(np.mean(each, 0)).float()[None, None]


def forward(name: str, at: Scale, model: nn.Module, clips: Tensor) -> tuple[Tensor, Tensor]:
    """Clips -> features, logits; of a network that is told, clips (B, 2 * T, ...) of WithMasks."""
    if KINDS[name].told:
        clips, masks = clips.chunk(2, dim=1)
        masks = masks.flatten(0, 1)[:, :1] * IMAGENET_STD[0] + IMAGENET_MEAN[0]
        mask = told(KINDS[name].told, masks.float().clamp(0, 1), at)
        for seat in model.blocks.values():
            seat.mask = F.adaptive_avg_pool2d(mask, seat.size)
    return model(clips)


def store(name: str, part: str, at: Scale) -> FrameStore:
    """The frames of "train", "validation" or "test" as a network of KINDS wants them."""
    return ground.store(part, at, WithMasks if KINDS[name].told else FrameStore)


def trained(name: str, seed: int, at: Scale) -> nn.Module:
    """A network after training; it is kept in `ground.runs()`."""
    if name == "COSAM4,5":
        return compare.trained("COSAM", "common", at, seed).eval()
    people = len(np.unique(ground.ground(at).train.pids))
    torch.manual_seed(seed)
    model = new_model(name, people, at)
    loss = partial(_loss, name, at)
    recipe = ground.recipe(at, RATE, compare.known_parameters)
    label = name.replace(" ", "_").replace(",", "")
    folder = ground.runs() / f"02_cosam_{label}_{seed}_{recipe.steps}_{RATE:g}"
    study.fit(model, in_bfloat16(loss), recipe, store(name, "train", at), at, seed, folder)
    return model.eval()


def _loss(name: str, at: Scale, model: nn.Module, batch: dict) -> tuple[Tensor, dict]:
    baseline = lessons.load("01_baseline").loss
    return baseline(lambda clips: forward(name, at, model, clips), batch)


def searched(name: str, model: nn.Module, at: Scale, part: str = "test"):
    """Search by the mean feature of the test clips, FRAMES frames in all, dealt out in turn."""
    clips = max(1, FRAMES // at.T)

    def embed(model: nn.Module, frames: Tensor) -> Tensor:
        halves = frames.chunk(2) if KINDS[name].told else (frames,)
        each = [torch.stack([half[i::clips] for i in range(clips)]) for half in halves]
        features = forward(name, at, model, torch.cat(each, 1))[0]  # (clips, D)
        return F.normalize(model.neck(features.float()), dim=1).mean(0)

    sampler = partial(spread, frames=clips * at.T)
    features = extract(model, in_bfloat16(embed), store(name, part, at), sampler)
    return study.search(features, getattr(ground.ground(at), part))


def masks_of(name: str, model: nn.Module, at: Scale, part: str, rows: Iterable) -> tuple:
    """Masks of one clip of each of N tracklets, by slot: {slot: (N, T, h, w)}, and true ones.

    The true ones are bool (N, T, H, W). Frames are cropped as in a test.
    """
    frames, found, people = ground.store(part, at, WithMasks), {}, []
    sampler = partial(ground.parts, frames=at.T)
    for row in rows:
        clip = augment(frames.read(row, sampler(int(frames.split.lengths[row]))))
        x = normalise(clip)[None]
        with torch.inference_mode():
            forward(name, at, model, x) if KINDS[name].told else None
            attended = lessons.load(LESSON).attend(model, x[:, : at.T])[1]
        for slot, (_, mask) in attended.items():
            found.setdefault(slot, []).append(mask[:, 0].expand(at.T, -1, -1).numpy())
        people.append(clip[at.T :, 0].numpy() > 127)
    return {slot: np.stack(maps) for slot, maps in found.items()}, np.stack(people)


def scores(name: str, model: nn.Module, at: Scale) -> dict[str, str]:
    """Of each slot: pixel AUC of the masks, of the fixed map, and the mask on and off the person.

    One clip of every second test tracklet of a person; clips that show nothing of it are left out.
    """
    test, columns = ground.ground(at).test.test, {}
    maps, people = masks_of(name, model, at, "test", np.flatnonzero(test.pids > 0)[::2])
    clear = people.any((1, 2, 3))
    for slot, found in maps.items():
        fixed = np.repeat(others_mean(found)[:, None], at.T, 1)
        table = []
        for own, rest, person in zip(found[clear], fixed[clear], people[clear], strict=True):
            own, rest = large(own, at.size), large(rest, at.size)
            aucs = pixel_auc(own, person), pixel_auc(rest, person)
            table.append((*aucs, own[person].mean(), own[~person].mean()))
        for what, value in zip(("AUC", "fixed AUC", "on", "off"), np.mean(table, 0), strict=True):
            columns[f"{what} {slot}"] = f"{value:.4f}"
    return columns


def with_fixed_masks(name: str, model: nn.Module, at: Scale) -> nn.Module:
    """The same network, each COSAM's mask replaced by its mean over clips of training people."""
    train = ground.ground(at).train
    maps, _ = masks_of(name, model, at, "train", range(0, len(train), 4))
    for slot, found in maps.items():
        mean = torch.from_numpy(found.mean((0, 1)))
        model.blocks[slot].space = FixedMask(mean)
    return model


def reappearing(name: str, model: nn.Module, at: Scale) -> dict[str, str]:
    """Of each slot, how much more a mask weighs each of `masks.PLACES` where it re-appears.

    Lists over 16 test tracklets that are drawn anew (see `masks.versions`); of a drawn set only.
    """
    test, columns = ground.ground(at).test, {}
    streets = at.mini_mars, replace(STREET, height=at.mini_mars.height)
    config = next((c for c in streets if c.name == test.root.name), None)
    if config is None:
        return {}
    split = test.test
    rows = np.flatnonzero((split.pids > 0) & (split.lengths >= 10) & (split.lengths <= 34))[:48:3]
    found = [masks.versions(config, split.key(i), at.T, int(i)) for i in rows]
    by_slot = masks.weights(found, lambda clip, _: masks_of_clip(model, clip))
    for slot, table in by_slot.items():
        for thing, values in zip(masks.PLACES, masks.gaps(table).T, strict=True):
            columns[f"{thing} {slot}"] = " ".join(f"{x:.4f}" for x in values)
    return columns


def masks_of_clip(model: nn.Module, clip: Tensor) -> dict[str, np.ndarray]:
    """The masks of a clip (T, 3, H, W) uint8 by slot: each (T, h, w)."""
    with torch.inference_mode():
        attended = lessons.load(LESSON).attend(model, normalise(clip)[None])[1]
    return {slot: mask[:, 0].float().numpy() for slot, (_, mask) in attended.items()}


def measure(row: dict) -> dict:
    """Fill a row of ROWS: test people; masks and their fixed control; mAP."""
    name, seed = row["network"], row["seed"]
    kind = KINDS[name]
    at = replace(ground.footing(scale()), T=kind.T)
    model = trained(name, seed, at)
    found = {"scale": at.name, "steps": at.steps, "T": at.T, "precision": "bfloat16"}
    found |= study.summary(searched(name, model, at)) | scores(name, model, at)
    if kind.slots and not kind.told:
        found |= reappearing(name, model, at)
        fixed = study.summary(searched(name, with_fixed_masks(name, model, at), at))
        found |= {"fixed mAP": fixed["mAP"], "fixed ap": fixed["ap"]}
    return found


def chosen(name: str) -> list[dict]:
    """The measured rows of a network, one a seed; "no mask": the mean of `compare`."""
    none = name == "no mask"
    wanted = compare.chosen("mean") if none else {"network": name}
    rows = study.read("compare" if none else LESSON)
    return sorted((r for r in rows if wanted.items() <= r.items()), key=lambda r: r["seed"])


def difference(of: list, minus: list, people: np.ndarray, column: str = "ap") -> tuple:
    """mAP of one network minus that of another in points, low, high, and the number of seeds.

    of, minus: rows of `chosen`; people: see `bootstrap`; column: which APs of the other.
    """
    a, b = ({r["seed"]: r for r in rows} for rows in (of, minus))
    seeds = sorted(a.keys() & b.keys())
    pair = study.aps([a[s] for s in seeds]), study.aps([b[s] for s in seeds], column)
    return *(100 * x for x in bootstrap(*(x.mean(0) for x in pair), people=people)), len(seeds)
