"""Clips of 256x128 JPEG frames, beside opening, augmenting and normalising frame by frame.

Both run on one thread, in turns, in one process: `pytest tests/benchmarks --benchmark-only`.
"""

import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torchvision.transforms import v2

from vreid_course import sampling
from vreid_course.loader import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ClipBatches,
    FrameStore,
    normalise,
)

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny import tiny_split  # noqa: E402

STEPS, P, K, T = 4, 4, 4, 4
FRAME_BY_FRAME = v2.Compose(
    [
        v2.Resize((288, 144)),
        v2.RandomCrop((256, 128)),
        v2.RandomHorizontalFlip(),
        v2.PILToTensor(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(IMAGENET_MEAN, IMAGENET_STD),
    ]
)


@pytest.fixture
def split(tmp_path):
    """Eight people with four tracklets of 16 frames; about 9 kB a frame, as a real one."""
    split = tiny_split(tmp_path, (16,) * 32, np.repeat(np.arange(1, 9), 4), size=(256, 128))
    noise = np.random.default_rng(0).integers(0, 256, (256, 128, 3), dtype=np.uint8)
    noise = Image.fromarray(noise).filter(ImageFilter.GaussianBlur(1.2))
    for row in range(32):
        for path in split.paths(row):
            Image.blend(Image.open(path), noise, 0.4).save(path, quality=90)
    return split


def test_clips_beside_frame_by_frame(benchmark, split, capsys):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    sampler = partial(sampling.strided, frames=T, stride=4)
    store = FrameStore(split, (256, 128), memory=0)
    batches = ClipBatches(store, sampler, sampling.IdentityBatches(split.pids, P, K))

    def ours():
        return [normalise(batch["clips"]) for batch in batches(0, STEPS)]

    def frame_by_frame():
        for batch in rows:
            clips = [
                torch.stack([FRAME_BY_FRAME(Image.open(path)) for path in split.paths(row, which)])
                for row, which in batch
            ]
            torch.stack(clips)

    rows = [
        list(zip(batch["rows"].tolist(), batch["frames"].numpy(), strict=True))
        for batch in batches(0, STEPS)
    ]
    times = {ours: [], frame_by_frame: []}
    for _ in range(5):
        for way, spent in times.items():
            start = time.process_time()
            way()
            spent.append(time.process_time() - start)
    benchmark.pedantic(ours, rounds=3)
    torch.set_num_threads(threads)
    frames = STEPS * P * K * T
    fast, slow = (1000 * min(spent) / frames for spent in times.values())
    with capsys.disabled():
        print(f"\n{slow:.2f} ms a frame, frame by frame; {fast:.2f} ours: {slow / fast:.1f} x")
    assert slow / fast >= 1.5
