"""Reading an index of MARS's size: 8298 + 12180 tracklets, 1,191,003 names, no pictures."""

import numpy as np
import pytest

from vreid_course.data.mars import frame_names, read_mars, write_info

SIZES = {"train": (8298, 509_914, 625), "test": (12_180, 681_089, 636)}


def tracklets(part, rng):
    """Names of random tracklets; of the test part 870 are junk and 3248 distractors."""
    count, frames, people = SIZES[part]
    lengths = np.full(count, 2) + rng.multinomial(frames - 2 * count, np.full(count, 1 / count))
    pids = np.sort(rng.integers(1, people, count)) * 2 - (part == "train")
    if part == "test":
        pids[:870], pids[870:4118] = -1, 0
    first = np.searchsorted(pids, pids)
    table = zip(pids.tolist(), first.tolist(), lengths.tolist(), strict=True)
    return [frame_names(p, i % 6 + 1, i - f + 1, n) for i, (p, f, n) in enumerate(table)]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("mars"), np.random.default_rng(0)
    for part in SIZES:
        (root / f"bbox_{part}").mkdir()
    write_info(root, tracklets("train", rng), tracklets("test", rng))
    return root


def test_read_index(benchmark, root):
    mars = benchmark.pedantic(read_mars, (root,), rounds=5)
    assert (len(mars.train), len(mars.test)) == (8298, 12_180)
    assert mars.train.lengths.sum() + mars.test.lengths.sum() == 1_191_003
    assert (mars.test.pids == -1).sum() == 870 and (mars.test.pids == 0).sum() == 3248
    assert benchmark.stats.stats.median <= 1.5
