"""How the two backbones are made: small ResNets, trained on single frames of other drawn people.

They stand in for ImageNet weights, on sets with other people, cameras and backgrounds than the
course's own. "identity" learns whom a frame shows and nothing else, on easy pictures: nobody in
front or behind, steady boxes, no motion blur, no erasing. So attributes, view, gait and robustness
are left to be learned. "course", where lessons 02 to 07 and 09 start, learns whom a frame
shows, the twelve attributes, the view and the phase of the gait.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vreid_course.data.attributes import ATTRIBUTES, read_attributes
from vreid_course.data.mars import Split
from vreid_course.devices import in_bfloat16
from vreid_course.drawing.mini_mars import ATTRIBUTES_CSV, MiniMars, mini_mars
from vreid_course.drawing.truth import Truth
from vreid_course.files import cache_folder
from vreid_course.losses import accuracy, batch_hard_triplet, smoothed_cross_entropy
from vreid_course.nets import resnet, save_weights
from vreid_course.training import cosine, train

SETS = [
    MiniMars(200, 20, seed, frames=(6, 10), hard=0.0, dials={"camera": 0.8})
    for seed in range(1001, 1006)
]
EASY = [
    MiniMars(
        100, 4, seed, frames=(6, 10), hard=0.0,
        dials={"camera": 0.8, "occlusion": 0, "crowd": 0, "jitter": 0, "blur": 0, "switch": 0},
    )
    for seed in range(2001, 2006)
]  # fmt: skip
COMMAND = "python -m vreid_course backbone"
SIZES = [len(values) for values in ATTRIBUTES.values()]


@dataclass(frozen=True)
class Frames:
    """N single frames with their labels, in memory.

    pixels: uint8 (N, H, W, 3); labels, tracklets: int64 (N,), numbered over all sets from 0;
    attributes: int64 (N, 12); pose: float32 (N, 6), sine and cosine of view, phase, twice phase.
    """

    pixels: np.ndarray
    labels: np.ndarray
    tracklets: np.ndarray
    attributes: np.ndarray
    pose: np.ndarray


def read_frames(split: Split) -> Frames:
    """Load all frames of the training part of a drawn set with their truth."""
    truth, table = Truth(split), read_attributes(split.folder.parent / ATTRIBUTES_CSV)
    rows = {(p, t): i for i, (p, t) in enumerate(zip(table.pids, table.tracklets, strict=True))}
    values = np.stack([table.values[c] for c in ATTRIBUTES], 1)
    pick = [rows[int(split.pids[i]), int(split.key(i)[7:11])] for i in range(len(split))]
    frames = [truth.frames(i) for i in range(len(split))]
    view = np.radians(np.concatenate([f.view for f in frames]))
    phase = 2 * np.pi * np.concatenate([f.phase for f in frames])
    pose = np.stack([g(a) for a in (view, phase, 2 * phase) for g in (np.sin, np.cos)], 1)
    labels = np.unique(split.pids, return_inverse=True)[1]
    return Frames(
        pixels=np.concatenate([split.frames(i) for i in range(len(split))]),
        labels=np.repeat(labels, split.lengths),
        tracklets=np.repeat(np.arange(len(split)), split.lengths),
        attributes=np.repeat(values[pick], split.lengths, 0),
        pose=pose.astype(np.float32),
    )


def join(parts: list[Frames]) -> Frames:
    """Put sets together; identities and tracklets of different sets stay different."""
    people = np.cumsum([0] + [part.labels.max() + 1 for part in parts])
    tracks = np.cumsum([0] + [part.tracklets.max() + 1 for part in parts])
    return Frames(
        pixels=np.concatenate([part.pixels for part in parts]),
        labels=np.concatenate([p.labels + n for p, n in zip(parts, people, strict=False)]),
        tracklets=np.concatenate([p.tracklets + n for p, n in zip(parts, tracks, strict=False)]),
        attributes=np.concatenate([part.attributes for part in parts]),
        pose=np.concatenate([part.pose for part in parts]),
    )


class FrameBatches:
    """Batches of P people with K frames each; those of step s depend on (seed, s) alone."""

    def __init__(self, frames: Frames, P: int, K: int, seed: int, easy: bool = False) -> None:
        self.frames, self.P, self.K, self.seed, self.easy = frames, P, K, seed, easy
        self.rows = [np.flatnonzero(frames.labels == i) for i in range(frames.labels.max() + 1)]

    def __call__(self, start: int, stop: int, share=(0, 1)) -> Iterator[dict[str, Tensor]]:
        f = self.frames
        for step in range(start, stop):
            rng = np.random.default_rng((self.seed, step, share[0]))
            people = rng.choice(len(self.rows), self.P, replace=False)
            rows = np.concatenate([rng.choice(self.rows[i], self.K, replace=False) for i in people])
            pixels = torch.from_numpy(f.pixels[rows]).permute(0, 3, 1, 2)
            pose = torch.from_numpy(f.pose[rows])
            clips, pose = distort(pixels, pose, rng, self.easy)
            labels = torch.from_numpy(f.labels[rows])
            attributes = torch.from_numpy(f.attributes[rows])
            yield {
                "clips": clips[:, None],
                "labels": labels,
                "attributes": attributes,
                "pose": pose,
            }


def distort(
    pixels: Tensor, pose: Tensor, rng: np.random.Generator, easy: bool = False
) -> tuple[Tensor, Tensor]:
    """Flip, tint and, unless easy, crop and cover frames (N, 3, H, W) uint8 at random.

    The pose (N, 6) follows the flip.
    """
    N = len(pixels)
    flip = torch.from_numpy(rng.random(N) < 0.5)
    image = torch.where(flip[:, None, None, None], pixels.flip(3), pixels).float() / 255
    # In a mirror a walk to the right is one to the left, and left leg forward is half a cycle off.
    mirror = torch.tensor([-1.0, 1, -1, -1, 1, 1])
    pose = torch.where(flip[:, None], pose * mirror, pose)
    if not easy:
        image = _crop(image, rng)
    gain = np.exp(rng.normal(0, 0.2, (N, 1, 1, 1)) + rng.normal(0, 0.1, (N, 3, 1, 1)))
    gamma = np.exp(rng.normal(0, 0.2, (N, 1, 1, 1)))
    gain, gamma = (torch.from_numpy(x).float() for x in (gain, gamma))
    image = (image * gain).clamp(1e-3, 1) ** gamma
    if not easy:
        image = _cover(image, rng)
    return (image * 255).round().to(torch.uint8), pose


def _crop(image: Tensor, rng: np.random.Generator) -> Tensor:
    N, _, H, W = image.shape
    zoom, shift = rng.uniform(0.85, 1.05, (N, 1, 1)), rng.uniform(-0.1, 0.1, (N, 2, 1))
    affine = np.concatenate([zoom * np.eye(2), shift], 2).astype(np.float32)
    grid = F.affine_grid(torch.from_numpy(affine), [N, 3, H, W], align_corners=False)
    return F.grid_sample(image, grid, padding_mode="border", align_corners=False)


def _cover(image: Tensor, rng: np.random.Generator) -> Tensor:
    N, _, H, W = image.shape
    top, left = rng.uniform(-0.3, 1, (2, N, 1))
    rows, cols = (np.arange(H) + 0.5) / H, (np.arange(W) + 0.5) / W
    tall, wide = rng.uniform(0.15, 0.5, (2, N, 1)) * (rng.random((N, 1)) < 0.4)
    hole = ((rows > top) & (rows < top + tall))[:, :, None] & (
        (cols > left) & (cols < left + wide)
    )[:, None]
    paint = torch.from_numpy(rng.random((N, 3, 1, 1))).float()
    return torch.where(torch.from_numpy(hole)[:, None], paint, image)


class Pupil(nn.Module):
    """The trunk with a head for each thing to learn; the heads are thrown away afterwards."""

    def __init__(self, people: int) -> None:
        super().__init__()
        self.trunk = resnet("course")
        dim = self.trunk.widths[-1]
        self.neck = nn.BatchNorm1d(dim)
        self.identity = nn.Linear(dim, people, bias=False)
        self.attributes = nn.Linear(dim, sum(SIZES))
        self.pose = nn.Linear(dim, 6)

    def forward(self, clips: Tensor) -> Tensor:
        """Frames (N, 1, 3, H, W) float32 -> features (N, D)."""
        return self.trunk(clips[:, 0]).mean((2, 3))


def identity_loss(model: Pupil, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Whom a frame shows, and nothing else: cross entropy and triplet."""
    total, parts, _ = _named(model, batch)
    return total, parts


def pupil_loss(model: Pupil, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Identity as above, attributes (cross entropy) and pose (square error)."""
    identity, parts, necked = _named(model, batch)
    pieces = model.attributes(necked).split(SIZES, 1)
    named = [F.cross_entropy(x, y) for x, y in zip(pieces, batch["attributes"].T, strict=True)]
    pose = (model.pose(necked) - batch["pose"]).square().mean()
    attributes = torch.stack(named).mean()
    parts |= {"attributes": attributes, "pose": pose}
    return identity + attributes + 2 * pose, parts


def _named(model: Pupil, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    features = in_bfloat16(Pupil.forward)(model, batch["clips"])  # 3 times as fast on new CPUs
    necked = model.neck(features)
    logits = model.identity(necked)
    triplet = batch_hard_triplet(features, batch["labels"])
    parts = {"accuracy": accuracy(logits, batch["labels"]), "triplet": triplet}
    return smoothed_cross_entropy(logits, batch["labels"]) + triplet, parts, necked


def make(kind: str = "identity", steps: int = 0, seed: int = 0, root: Path | None = None) -> Path:
    """Draw the sets, train (resumable), and write data/weights/`kind`_backbone.pt.

    kind: "identity" (700 steps by default) or "course" (2000).
    """
    easy = kind == "identity"
    steps = steps or (700 if easy else 2000)
    frames = join([read_frames(mini_mars(c, root).train) for c in (EASY if easy else SETS)])
    torch.manual_seed(seed)
    model = Pupil(int(frames.labels.max()) + 1)
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.02)
    batches = FrameBatches(frames, P=32, K=4, seed=seed, easy=easy)
    folder = cache_folder(root) / f"backbone_{kind}_{steps}_{seed}"
    schedule = cosine(steps, warmup=min(100, math.ceil(steps / 10)))
    loss = identity_loss if easy else pupil_loss
    train(model, loss, optimiser, batches, steps, schedule=schedule, seed=seed, folder=folder)
    return save_weights(model.trunk, f"{kind}_backbone", f"{COMMAND} {kind}", seed)
