"""The colour histogram: a feature without learning, the floor that every network must beat."""

import numpy as np

from vreid_course.data.mars import Split
from vreid_course.sampling import spread


def colour_histograms(
    frames: np.ndarray, masks: np.ndarray | None = None, stripes: int = 6, bins: int = 4
) -> np.ndarray:
    """Return one histogram per frame: RGB counts in horizontal stripes, square-rooted (Hellinger).

    frames: (T, H, W, 3) uint8; masks: bool (T, H, W), pixels to count, default all. Returns
    (T, stripes * bins**3) float32 of length 1; 0 for a frame whose mask is empty.
    """
    T, H, W, _ = frames.shape
    level = frames.astype(np.int64) * bins // 256
    colour = (level[..., 0] * bins + level[..., 1]) * bins + level[..., 2]  # (T, H, W)
    stripe = (np.arange(H) * stripes // H)[None, :, None]
    frame = np.arange(T)[:, None, None]
    index = (frame * stripes + stripe) * bins**3 + colour
    size = T * stripes * bins**3
    index = index.ravel() if masks is None else index[masks]
    counts = np.bincount(index, minlength=size).reshape(T, -1)
    total = np.maximum(counts.sum(1, keepdims=True), 1)
    return np.sqrt(counts / total).astype(np.float32)


def tracklet_histograms(split: Split, count: int) -> np.ndarray:
    """The colour feature of every tracklet: (N, 384) float32.

    The mean histogram of `count` frames spread over the tracklet, of the middle half of the width,
    for the background is at the sides.
    """
    features = []
    for i, length in enumerate(split.lengths):
        frames = split.frames(i, spread(int(length), frames=count))
        quarter = frames.shape[2] // 4
        features.append(colour_histograms(frames[:, :, quarter : 3 * quarter]).mean(0))
    return np.stack(features)
