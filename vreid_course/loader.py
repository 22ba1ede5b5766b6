"""From JPEG frames to batches of clips that never keep the model waiting.

A frame is uint8 from its file to the batch; only the batch becomes float, on the device of the
model. Each clip draws from a generator of its own, seeded with (seed, step, place in the batch): so
batches do not depend on the number of workers or processes, nor on where a run was interrupted.
"""

import multiprocessing
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision.transforms.v2 import functional as F

from vreid_course import devices
from vreid_course.data.mars import MarsError, Split, read_frame
from vreid_course.sampling import IdentityBatches, Rng

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def load_frame(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Decode one JPEG to uint8 (H, W, 3) RGB of `size` (H, W); MarsError names a bad frame."""
    height, width = size
    try:
        with Image.open(path, formats=["JPEG"]) as picture:
            picture.draft("RGB", (width, height))  # a large frame is decoded at 1/2, 1/4 or 1/8
            picture = picture if picture.mode == "RGB" else picture.convert("RGB")
            if picture.size != (width, height):
                picture = picture.resize((width, height), Image.Resampling.BILINEAR)
            return np.asarray(picture)
    except (OSError, SyntaxError, ValueError):
        read_frame(path)  # says what is wrong with it
        raise


class FrameStore:
    """The frames of a split at one size; each is decoded once where `memory` bytes hold them all.

    skip_bad: a frame that cannot be read is counted in `skipped`, with a warning, and replaced by
    the one before it in the clip (or by black); without it, it is a MarsError that names the frame.
    """

    def __init__(
        self, split: Split, size: tuple[int, int], memory: int = 2**30, skip_bad: bool = False
    ) -> None:
        self.split, self.size, self.skip_bad = split, tuple(size), skip_bad
        self._skipped = multiprocessing.Value("q")  # workers count as well
        self.offsets = np.concatenate([[0], np.cumsum(split.lengths)])
        frames = int(self.offsets[-1])
        self.fits = frames * size[0] * size[1] * 3 <= memory
        kept = frames if self.fits else 0
        self.pixels = np.empty((kept, *size, 3), np.uint8)  # no memory before use
        self.filled = np.zeros(frames, bool)

    @property
    def skipped(self) -> int:
        """How often a frame that cannot be read was replaced, in all processes."""
        return self._skipped.value

    def read(self, row: int, which: np.ndarray) -> Tensor:
        """Frames `which` (T,) of tracklet `row`: uint8 (T, 3, H, W) RGB, in memory (T, H, W, 3)."""
        if not self.fits:
            return torch.from_numpy(self._decode(row, which)).permute(0, 3, 1, 2)
        first = self.offsets[row]
        missing = np.unique(which[~self.filled[first + which]])
        if len(missing):
            self.pixels[first + missing] = self._decode(row, missing)
            self.filled[first + missing] = True
        return torch.from_numpy(self.pixels[first + which]).permute(0, 3, 1, 2)

    def fill(self) -> None:
        """Decode everything now, so that workers forked from this process share one copy."""
        for row in range(len(self.split) if self.fits else 0):
            self.read(row, np.arange(self.split.lengths[row]))

    def _decode(self, row: int, which: np.ndarray) -> np.ndarray:
        frames = np.zeros((len(which), *self.size, 3), np.uint8)
        for t, path in enumerate(self.split.paths(row, which)):
            try:
                frames[t] = load_frame(path, self.size)
            except MarsError as error:
                if not self.skip_bad:
                    raise
                with self._skipped.get_lock():
                    self._skipped.value += 1
                warnings.warn(f"skipped {self.skipped} bad frames; the last: {error}", stacklevel=2)
                frames[t] = frames[max(t - 1, 0)]
        return frames


def augment(clip: Tensor, rng: Rng = None, zoom: float = 1.125, per_frame: bool = False) -> Tensor:
    """Crop 1/zoom of the height and width and resize it back; in training at random, and flip.

    clip: uint8 (T, 3, H, W); returns the same shape and type. rng: a generator (training), or None
    (testing: the middle is cropped, nothing is flipped). It is the usual resize to zoom * (H, W)
    with a crop of (H, W), in one step. One draw for the clip, or per_frame one for each frame.
    """
    if per_frame and rng is not None:
        return torch.cat([augment(frame, rng, zoom) for frame in clip.split(1)])
    height, width = clip.shape[-2:]
    h, w = round(height / zoom), round(width / zoom)
    top, left = (height - h) // 2, (width - w) // 2
    if rng is not None:
        top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
    if (h, w) != (height, width):
        clip = F.resized_crop(clip, top, left, h, w, [height, width], antialias=True)
    if rng is not None and rng.random() < 0.5:
        clip = F.horizontal_flip(clip)
    return clip


def normalise(clips: Tensor) -> Tensor:
    """uint8 (..., 3, H, W) in 0..255 -> float32 with ImageNet's mean and deviation taken out."""
    width = clips.shape[-1]
    shift, scale = _lines(width, clips.device)
    lines = clips.movedim(-3, -1).flatten(-2).float()  # (..., H, W*3), as it lies in memory:
    torch.addcmul(shift, lines, scale, out=lines)  # on a CPU 4 ms faster than by channels
    return lines.unflatten(-1, (width, 3)).movedim(-1, -3)


@cache  # copied to a device once, for each copy would wait for what the device still does
def _lines(width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """What a line of pixels (W*3,) is shifted and scaled by."""
    with torch.inference_mode(False):  # kept for a training as well
        mean, std = torch.tensor(IMAGENET_MEAN * width), torch.tensor(IMAGENET_STD * width)
        return (-mean / std).to(device), (1 / (255 * std)).to(device)


class ClipBatches(Dataset):
    """The batches of a training: `batches(start, stop)` gives those of steps start..stop-1.

    A batch is a dict: clips (B, T, 3, H, W) uint8; int64 (B,) labels (0..identities-1), pids,
    camids and rows (of the split); frames (B, T), their numbers in the tracklet.
    """

    def __init__(
        self,
        store: FrameStore,
        clip_sampler: Callable[[int, Rng], np.ndarray],
        batch_sampler: IdentityBatches,
        transform: Callable[[Tensor, Rng], Tensor] = augment,
        seed: int = 0,
        workers: int = 0,
    ) -> None:
        self.store, self.clip_sampler, self.batch_sampler = store, clip_sampler, batch_sampler
        self.transform, self.seed, self.workers = transform, seed, workers
        self.labels = np.unique(store.split.pids, return_inverse=True)[1]

    def __call__(
        self, start: int, stop: int, share: tuple[int, int] = (0, 1)
    ) -> Iterator[dict[str, Tensor]]:
        """share (i, n): only the i-th of n equal parts of each batch, for process i of n."""
        if self.workers:
            self.store.fill()
        fork = self.workers and sys.platform == "linux"  # then workers share the store's memory
        loader = DataLoader(
            self,
            batch_sampler=self._keys(start, stop, *share),
            collate_fn=collate,
            num_workers=self.workers,
            multiprocessing_context="fork" if fork else None,
            pin_memory=devices.device().type not in ("cpu", "mps"),
            generator=torch.Generator(),  # else it would draw from the model's
        )
        return map(_raised, loader)

    def _keys(self, start: int, stop: int, part: int, parts: int) -> Iterator[list[tuple]]:
        """(step, place in the batch, row) of each clip; a part is a run, so it keeps identities."""
        batches = islice(self.batch_sampler.from_step(start), stop - start)
        for step, rows in enumerate(batches, start):
            if len(rows) % parts:
                raise ValueError(f"{len(rows)} clips do not fit {parts} processes: choose P or K")
            keys = [(step, place, int(row)) for place, row in enumerate(rows)]
            size = len(keys) // parts
            yield keys[part * size :][:size]

    def __getitem__(self, key: tuple[int, int, int]) -> dict | MarsError:
        try:
            return self._item(*key)
        except MarsError as error:  # raised in a worker it would come as a traceback
            return error

    def _item(self, step: int, place: int, row: int) -> dict:
        rng = np.random.default_rng((self.seed, step, place))
        split = self.store.split
        which = self.clip_sampler(int(split.lengths[row]), rng)
        clip = self.transform(self.store.read(row, which), rng)
        item = {"clips": clip.permute(0, 2, 3, 1), "frames": which, "rows": row}  # T, H, W, 3
        item |= {"pids": int(split.pids[row]), "camids": int(split.camids[row])}
        return item | {"labels": int(self.labels[row])}


def _raised(batch: dict | MarsError) -> dict:
    if isinstance(batch, MarsError):
        raise batch
    return batch


def collate(items: list[dict]) -> dict[str, Tensor]:
    """Stack clips to the batch that ClipBatches describes, keeping their layout in memory.

    A frame that could not be read is its error, which is given on.
    """
    if errors := [item for item in items if isinstance(item, MarsError)]:
        return errors[0]
    batch = default_collate(items)
    return batch | {"clips": batch["clips"].permute(0, 1, 4, 2, 3)}  # (B, T, 3, H, W)
