"""A split of a few small tracklets in MARS layout, for tests that need no good pictures."""

from pathlib import Path

import numpy as np
from PIL import Image

from vreid_course.data.mars import Split, frame_names


def tiny_split(
    folder: Path,
    lengths=(5, 9, 3, 8, 12, 7, 6, 10),
    pids=(2, 2, 5, 5, 7, 7, 9, 9),
    size=(32, 16),
    quality=95,
) -> Split:
    """Write tracklets of the given lengths and identities; frames of one person look alike."""
    names: list[str] = []
    for i, (length, pid) in enumerate(zip(lengths, pids, strict=True)):
        look = np.random.default_rng(pid).integers(0, 256, (4, 2, 3))
        for t, name in enumerate(frame_names(pid, i % 6 + 1, i + 1, length)):
            pixels = look.copy()
            pixels[0] = 8 * t  # the top tells which frame it is
            picture = Image.fromarray(pixels.astype(np.uint8)).resize(size[::-1], 0)
            (folder / name[:4]).mkdir(parents=True, exist_ok=True)
            picture.save(folder / name[:4] / name, quality=quality)
            names.append(name)
    last = np.cumsum(lengths)
    camids = np.arange(len(pids)) % 6 + 1
    return Split(folder, np.array(names), last - lengths, last, np.array(pids), camids)
