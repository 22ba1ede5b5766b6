"""How lesson 02 scores a mask, shows it, and draws the clips that it is asked about."""

from collections.abc import Callable
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from scipy.ndimage import binary_erosion
from scipy.stats import rankdata
from torch import Tensor, nn

from vreid_course import show
from vreid_course.drawing.mini_mars import MiniMars, redraw, track_of
from vreid_course.drawing.render import PARTS
from vreid_course.drawing.tracklets import Change, Thing
from vreid_course.loader import augment
from vreid_course.sampling import spread

#: The same walk with nobody else, a steady box, no blur: a clip in which only the mask is asked.
CALM = Change(front=(), behind=(), box=(0.0, 0.0, 0.0), switched=False, smear=False)

#: Things that are put into a clip, twice each: they re-appear in the second version.
THINGS = ("passer-by, in frame 2", "passer-by, in all", "bag, in frame 2", "bag, in all",
          "background, moves", "background, stands")  # fmt: skip
PLACES = {"passer-by": "in front", "bag": "bag", "background": "background"}  # see `scene`


class FixedMask(nn.Module):
    """A control, in the place of a mask's module: one mask (h, w) whatever x (N, C, h, w) shows."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        return self.mask.to(x.dtype).expand(len(x), 1, -1, -1)


def others_mean(maps: np.ndarray) -> np.ndarray:
    """The fixed-map control: for each of N clips (N, T, h, w) the mean map of all others."""
    own = maps.mean(1)
    return (own.sum(0) - own) / (len(own) - 1)


def pixel_auc(score: np.ndarray, person: np.ndarray) -> float:
    """The chance that a pixel of the person scores higher than one beside it; both (..., H, W)."""
    ranks, n = rankdata(score.ravel()), person.sum()
    return float((ranks[person.ravel()].sum() - n * (n + 1) / 2) / (n * (person.size - n)))


def large(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Maps (T, h, w) at the size of the frames: (T, H, W)."""
    return F.interpolate(torch.from_numpy(maps)[:, None], size, mode="bilinear")[:, 0].numpy()


def coarse(mask: np.ndarray, cell: int = 16) -> np.ndarray:
    """A true mask (T, H, W) as the share of each cell of `cell` x `cell` pixels: (T, h, w)."""
    return F.avg_pool2d(torch.from_numpy(mask).float(), cell).numpy()


def weight(mask: np.ndarray, on: np.ndarray) -> float:
    """How many times the mean of its frames a mask (T, h, w) weighs what is `on` (T, H, W)."""
    wide = large(mask, on.shape[1:])
    return float(wide[on].mean() / wide.mean()) if on.any() else float("nan")


def cropped(mask: np.ndarray) -> np.ndarray:
    """A mask (T, H, W) bool, cropped as frames are in a test."""
    return augment(white(mask))[:, 0].numpy() > 127


def white(mask: np.ndarray) -> Tensor:
    """A mask (T, H, W) bool as pictures, white on black: uint8 (T, 3, H, W)."""
    return 255 * torch.from_numpy(mask).byte()[:, None].expand(-1, 3, -1, -1)


def scene(config: MiniMars, key: str, change: Change, T: int) -> tuple[Tensor, dict]:
    """T spread frames of a tracklet drawn anew: uint8 (T, 3, H, W), and where things are.

    The masks are bool (T, H, W): "person", "bag" (a handbag), "in front", "background".
    """
    frames, known = redraw(config, key, change)
    which = spread(len(frames), frames=T)
    parts, front = known.parts[which], known.occluder[which]
    masks = {"person": (parts > 0) & ~front, "in front": front, "background": (parts == 0) & ~front}
    masks["bag"] = (parts == PARTS.index("handbag")) & ~front
    clip = augment(torch.from_numpy(frames[which]).permute(0, 3, 1, 2))
    return clip, {name: cropped(mask) for name, mask in masks.items()}


def versions(config: MiniMars, key: str, T: int, seed: int) -> dict[str, tuple[Tensor, dict]]:
    """A calm tracklet with one thing put in, twice each: clips and where things are (see `scene`).

    A passer-by, and a bag in the person's hand: in frame 2 alone, or in all, so that frame 2 is the
    same picture. A background that moves or stands. seed: who passes. In the order of THINGS.
    """
    person = track_of(config, key).person
    hands = [person.attributes | {"handbag": n, "backpack": 0, "shoulder bag": 0} for n in (0, 1)]
    without, with_bag = (replace(CALM, person=replace(person, attributes=a)) for a in hands)
    somebody = Thing("person", start=-0.36, stop=-0.34, seed=seed)
    changes = (without, with_bag, replace(without, front=(somebody,)), replace(without, drift=0.12))
    bare, bag, passer, moving = (scene(config, key, change, T) for change in changes)
    once = [torch.cat([bare[0][:1], x[0][1:2], bare[0][2:]]) for x in (passer, bag)]
    clips = (once[0], passer[1]), passer, (once[1], bag[1]), bag, moving, bare
    return dict(zip(THINGS, clips, strict=True))


def weights(found: list[dict], masks: Callable) -> dict[str, np.ndarray]:
    """How much the masks of a network weigh the THINGS: for each slot (clips, 6), see `weight`.

    found: of each tracklet its `versions`; masks(clip, places) -> {slot: (T, h, w)}. Passer-by and
    bag in frame 2, the background in all frames.
    """
    table = {}
    for each in found:
        line = {}
        for name, (clip, places) in each.items():
            frames = slice(None) if "background" in name else slice(1, 2)
            on = places[PLACES[name.split(",")[0]]][frames]
            for slot, mask in masks(clip, places).items():
                line.setdefault(slot, []).append(weight(mask[frames], on))
        for slot, values in line.items():
            table.setdefault(slot, []).append(values)
    return {slot: np.array(values) for slot, values in table.items()}


def gaps(table: np.ndarray) -> np.ndarray:
    """Weights (clips, 6) -> (clips, 3), of PLACES: in all - in frame 2; stands - moves."""
    return table[:, 1::2] - table[:, ::2]


def pictures(clip: Tensor) -> np.ndarray:
    """A clip (T, 3, H, W) uint8 as pictures (T, H, W, 3)."""
    return clip.permute(0, 2, 3, 1).numpy()


def heat(values: np.ndarray, low: float, high: float, person: np.ndarray) -> np.ndarray:
    """A map (h, w) as colours, dark (low) to yellow (high), the person (H, W) outlined in white."""
    side = person.shape[0] // values.shape[0]
    scaled = np.clip((values - low) / (high - low), 0, 1).repeat(side, 0).repeat(side, 1)
    colours = (255 * plt.get_cmap("viridis")(scaled)[..., :3]).astype(np.uint8)
    edge = person & ~binary_erosion(person)
    return np.where(edge[..., None], np.uint8(255), colours)


def marked(image: np.ndarray, place: tuple[int, int], side: int) -> np.ndarray:
    """The image (H, W, 3) with one place of its map, `side` pixels wide, framed in white."""
    y, x = (side * n for n in place)
    framed = image.copy()
    cell = framed[y : y + side, x : x + side]
    framed[y : y + side, x : x + side] = show.framed(cell, (255, 255, 255))
    return framed


def grid(rows: list, columns: list[str], names: list[str], low: float, high: float, words: str):
    """Show pictures in rows, the columns labelled, with one colour bar (low to high) for all."""
    size = (1.1 * len(columns) + 1.6, 1.8 * len(rows) + 0.5)
    fig, axes = plt.subplots(len(rows), len(columns), figsize=size, dpi=80, layout="constrained")
    for r, line in enumerate(rows):
        for c, image in enumerate(line):
            axes[r, c].imshow(image)
            axes[r, c].set(xticks=[], yticks=[])
            axes[r, c].set_title(columns[c] if r == 0 else "", fontsize=8)
        axes[r, 0].set_ylabel(names[r], fontsize=8)
    fig.colorbar(ScalarMappable(Normalize(low, high), "viridis"), ax=axes, label=words)
    plt.show()


def diagram() -> None:
    """Where COSAM stands in the network, and what is inside, with shapes."""
    outer = ("clips\n(B, T, 3, H, W)", "maps\n(B·T, C, h, w)", "COSAM4", "COSAM5")
    outer += ("feature\n(B, D)", "logits\n(B, people)")
    inner = ("X\n(B·T, C, h, w)", "z\n(B, T, Q, D)", "costs\n(T-1)·Q a place")
    inner += ("mask M\n(B·T, 1, h, w)", "gate a\n(B·T, C, 1, 1)", "out\nX·M·(1 + a)")
    above = ("stages\n1 to 4", "", "stage 5", "mean over\nspace, time", "classifier")
    below = ("1x1 conv,\nstandardise", "correlate\nwith others", "two 1x1 convs,\nsigmoid")
    below += ("X·M, mean, MLP,\nmean over T", "")
    fig, ax = plt.subplots(figsize=(10.4, 2.5), layout="constrained")
    for y, names, arrows in ((2, outer, above), (0.55, inner, below)):
        for k, name in enumerate(names):
            colour = "#FBE3D2" if "COSAM" in name else "#DCEBF7" if y > 1 else "#E5F3E5"
            style = {"ha": "center", "va": "center", "fontsize": 8}
            ax.text(k, y, name, **style, bbox={"boxstyle": "round", "fc": colour})
            if k < 5:
                ax.annotate("", (k + 0.66, y), (k + 0.36, y), arrowprops={"arrowstyle": "->"})
                ax.text(k + 0.51, y + 0.33, arrows[k], **style)
    ax.text(-0.45, 1.25, "inside a COSAM:", fontsize=9)
    ax.set(xlim=(-0.5, 5.5), ylim=(0.2, 2.6))
    ax.axis("off")
    plt.show()
