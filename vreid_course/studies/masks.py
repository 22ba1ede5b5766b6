"""How lesson 02 scores a mask, shows it, and draws the clips that it is asked about."""

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from scipy.stats import rankdata
from torch import Tensor, nn

from vreid_course import show
from vreid_course.drawing.mini_mars import MiniMars, redraw
from vreid_course.drawing.render import PARTS
from vreid_course.drawing.tracklets import Change
from vreid_course.loader import augment
from vreid_course.sampling import spread

#: The same walk with nobody else, a steady box, no blur: a clip in which only the mask is asked.
CALM = Change(front=(), behind=(), box=(0.0, 0.0, 0.0), switched=False, smear=False)


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
    white = 255 * torch.from_numpy(mask).byte()[:, None].expand(-1, 3, -1, -1)
    return augment(white)[:, 0].numpy() > 127


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


def pictures(clip: Tensor) -> np.ndarray:
    """A clip (T, 3, H, W) uint8 as pictures (T, H, W, 3)."""
    return clip.permute(0, 2, 3, 1).numpy()


def heat(image: np.ndarray, values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Lay a map (h, w) over a grey copy of an image (H, W, 3), from dark (low) to yellow (high)."""
    side = image.shape[0] // values.shape[0]
    scaled = np.clip((values - low) / (high - low), 0, 1).repeat(side, 0).repeat(side, 1)
    colour = 255 * plt.get_cmap("viridis")(scaled)[..., :3]
    return (0.45 * image.mean(2, keepdims=True) + 0.55 * colour).astype(np.uint8)


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
    fig, axes = plt.subplots(len(rows), len(columns), figsize=size, layout="constrained")
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
    outer = (
        "clips\n(B, T, 3, H, W)",
        "maps\n(B·T, C, h, w)",
        "COSAM4",
        "COSAM5",
        "feature\n(B, D)",
    )
    inner = ("X\n(B·T, C, h, w)", "z\n(B, T, Q, D)", "costs\n(T-1)·Q a place")
    inner += ("mask M\n(B·T, 1, h, w)", "gate a\n(B·T, C, 1, 1)", "out\nX·M·(1 + a)")
    above = ("stages\n1 to 4", "", "stage 5", "mean over\nspace, time", "classifier")
    below = ("1x1 conv,\nstandardise", "correlate\nwith others", "two 1x1 convs,\nsigmoid")
    below += ("X·M, mean, MLP,\nmean over T", "")
    fig, ax = plt.subplots(figsize=(10.4, 3), layout="constrained")
    for y, names, arrows in ((2, outer, above), (0.55, inner, below)):
        for k, name in enumerate(names):
            colour = "#FBE3D2" if "COSAM" in name else "#DCEBF7" if y > 1 else "#E5F3E5"
            style = {"ha": "center", "va": "center", "fontsize": 8}
            ax.text(k, y, name, **style, bbox={"boxstyle": "round", "fc": colour})
            if k < 5:
                ax.annotate("", (k + 0.66, y), (k + 0.36, y), arrowprops={"arrowstyle": "->"})
                ax.text(k + 0.51, y + 0.38, arrows[k], **style)
    ax.text(-0.45, 1.25, "inside a COSAM:", fontsize=9)
    ax.set(xlim=(-0.5, 5.5), ylim=(0.1, 2.6))
    ax.axis("off")
    plt.show()
