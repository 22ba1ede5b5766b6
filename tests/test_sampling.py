"""Which frames and tracklets are sampled: every rule on many lengths, against its definition."""

from functools import partial

import numpy as np
import pytest

from vreid_course import sampling
from vreid_course.sampling import IdentityBatches

SAMPLERS = [
    partial(sampling.consecutive, frames=4),
    partial(sampling.strided, frames=4, stride=8),
    partial(sampling.strided, frames=4, stride=8, short="repeat"),
    partial(sampling.spread, frames=8),
    partial(sampling.anywhere, frames=8),
]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_every_length_gives_frames_of_the_tracklet(sampler):
    T = sampler.keywords["frames"]
    for length in [1, 2, 3, 4, 7, 8, 25, 31, 32, 33, 100]:
        for seed in range(5):
            which = sampler(length, np.random.default_rng(seed))
            assert which.shape == (T,) and which.dtype == np.int64
            assert which.min() >= 0 and which.max() < length
            np.testing.assert_array_equal(which, sampler(length, np.random.default_rng(seed)))
        np.testing.assert_array_equal(sampler(length), sampler(length))


def seen(sampler, length, draws=600):
    rng = np.random.default_rng(0)
    return [tuple(sampler(length, rng).tolist()) for _ in range(draws)]


def test_consecutive_reaches_every_start_and_repeats_short_tracklets():
    expected = {tuple(range(s, s + 4)) for s in range(7)}
    assert set(seen(SAMPLERS[0], 10)) == expected  # the last frame included
    assert SAMPLERS[0](3, np.random.default_rng(0)).tolist() == [0, 1, 2, 0]
    assert SAMPLERS[0](10).tolist() == [3, 4, 5, 6]


def test_strided():
    assert set(seen(SAMPLERS[1], 32)) == {tuple(range(s, s + 25, 8)) for s in range(8)}
    for frames in seen(SAMPLERS[1], 12):
        assert len(set(frames)) == 4 and list(frames) == sorted(frames)
    assert any(len(set(frames)) < 3 for frames in seen(SAMPLERS[1], 3))
    expected = {tuple((s + 8 * t) % 12 for t in range(4)) for s in range(8)}
    assert set(seen(SAMPLERS[2], 12)) == expected
    assert seen(SAMPLERS[2], 32) == seen(SAMPLERS[1], 32)
    with pytest.raises(ValueError, match="short='cycle'.*repeat"):
        sampling.strided(9, None, short="cycle")


def test_spread_draws_one_frame_of_each_chunk():
    for length in (8, 9, 17, 30):
        bounds = [t * length // 8 for t in range(9)]
        draws = np.array(seen(SAMPLERS[3], length))
        for t in range(8):
            assert set(draws[:, t]) == set(range(bounds[t], bounds[t + 1]))
            assert bounds[t] <= SAMPLERS[3](length)[t] < bounds[t + 1]
    assert SAMPLERS[3](24).tolist() == [1, 4, 7, 10, 13, 16, 19, 22]  # the middle of three
    assert SAMPLERS[3](3).tolist() == [0, 0, 0, 1, 1, 1, 2, 2]


def test_anywhere_is_distinct_where_possible():
    assert all(len(set(frames)) == 8 for frames in seen(SAMPLERS[4], 9))
    assert len(set(seen(SAMPLERS[4], 9))) == 9
    assert set(seen(SAMPLERS[4], 8)) == {tuple(range(8))}


def test_test_clips_cover_each_frame_once():
    for length in (1, 3, 4, 31, 32, 33, 920):
        for T in (4, 32):
            cut = sampling.clips(length, frames=T)
            np.testing.assert_array_equal(np.concatenate(cut), np.arange(length))
            padded = sampling.clips(length, frames=T, pad=True)
            assert all(len(which) == T for which in padded) and len(padded) == len(cut)
            assert set(padded[-1]) == set(cut[-1])  # its own frames
        assert sampling.whole(length).tolist() == list(range(length))
    assert sampling.clips(7, frames=4, pad=True)[-1].tolist() == [4, 5, 6, 4]


PIDS = np.repeat(np.arange(100, 113), [1, 2, 3, 4, 5, 6, 7, 8, 4, 4, 4, 4, 9])  # 13 people


def test_identity_batches():
    sampler = IdentityBatches(PIDS, P=4, K=4, seed=3)
    left_out = set()
    for epoch in range(20):
        batches = sampler.epoch(epoch)
        assert len(batches) == 3 and all(batch.shape == (16,) for batch in batches)
        people = np.concatenate([PIDS[batch].reshape(4, 4) for batch in batches])
        assert (people == people[:, :1]).all(), "the K tracklets of an identity stand together"
        assert len(set(people[:, 0])) == 12, "an identity comes once an epoch"
        left_out |= set(PIDS) - set(people[:, 0])
        for rows in np.concatenate(batches).reshape(-1, 4):
            expected = min(4, (PIDS == PIDS[rows[0]]).sum())
            assert len(set(rows)) == expected or expected < 4
    assert len(left_out) > 5, "not always the same is left out"
    same = IdentityBatches(PIDS, P=4, K=4, seed=3).epoch(7)
    np.testing.assert_array_equal(np.stack(same), np.stack(sampler.epoch(7)))
    assert not np.array_equal(np.stack(same), np.stack(sampler.epoch(8)))


def test_hard_groups_stay_together():
    groups = PIDS.copy()
    groups[np.isin(PIDS, [101, 104, 109, 112])] = 1
    groups[np.isin(PIDS, [100, 111])] = 2
    sampler = IdentityBatches(PIDS, P=6, K=2, groups=groups)
    met = 0
    for epoch in range(20):
        for batch in sampler.epoch(epoch):
            people = set(PIDS[batch])
            assert len(people) == 6
            for group in ({101, 104, 109, 112}, {100, 111}):
                assert people >= group or not people & group
                met += people >= group
    assert met > 20


def test_what_cannot_be_sampled():
    with pytest.raises(ValueError, match="P=14 does not fit 13 identities"):
        IdentityBatches(PIDS, P=14, K=4)
    with pytest.raises(ValueError, match="P=2 does not fit.*groups of up to 13"):
        IdentityBatches(PIDS, P=2, K=4, groups=np.zeros_like(PIDS))
    with pytest.raises(ValueError, match="fill no batch of P=5"):
        IdentityBatches(np.arange(6), P=5, K=2, groups=np.repeat([0, 1], 3)).epoch(0)


def test_every_tracklet_once():
    sampler = IdentityBatches(np.arange(10), P=3, K=1, seed=1)
    rows = np.concatenate(sampler.epoch(0))
    assert len(rows) == len(set(rows)) == 9
    assert set(np.concatenate([np.concatenate(sampler.epoch(e)) for e in range(9)])) == {*range(10)}


@pytest.mark.parametrize("start", [0, 1, 3, 4, 11])
def test_batches_can_be_taken_up_at_any_step(start):
    sampler = IdentityBatches(PIDS, P=4, K=2)
    stream, later = sampler.from_step(0), sampler.from_step(start)
    whole = [next(stream) for _ in range(start + 5)]
    np.testing.assert_array_equal(whole[start:], [next(later) for _ in range(5)])
    np.testing.assert_array_equal(whole[:3], sampler.epoch(0))
