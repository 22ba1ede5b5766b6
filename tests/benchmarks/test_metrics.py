"""Scoring at the size of MARS, 2048-d features, distances included, beside a loop over the queries.

Run with `pytest tests/benchmarks --benchmark-only`.
"""

import time

import numpy as np
import pytest

from vreid_course import metrics


@pytest.fixture(scope="module")
def mars_sized():
    """Made-up features of 12180 tracklets, with junk, distractors and queries as in MARS."""
    rng = np.random.default_rng(0)
    pids = np.concatenate([np.full(870, -1), np.zeros(3248, int), rng.integers(1, 627, 8062)])
    camids = rng.integers(1, 7, len(pids))
    centres = rng.normal(size=(627, 2048)).astype(np.float32)
    features = 0.03 * centres[pids] + rng.normal(size=(len(pids), 2048)).astype(np.float32)
    queries = np.zeros(len(pids), bool)
    queries[4118 + rng.permutation(8062)[:1980]] = True
    return features, pids, camids, queries


def loop_over_queries(query, query_pids, query_camids, gallery, pids, camids):
    """Mean step AP the plain way: distances, a full sort and a scan for each query."""
    total = []
    for feature, pid, camid in zip(query, query_pids, query_camids, strict=True):
        order = np.linalg.norm(gallery - feature, axis=1).argsort(kind="stable")
        order = order[(pids[order] != -1) & ~((pids[order] == pid) & (camids[order] == camid))]
        ranks = np.flatnonzero(pids[order] == pid) + 1
        if len(ranks):
            total.append((np.arange(1, len(ranks) + 1) / ranks).mean())
    return np.mean(total)


@pytest.mark.parametrize(("rows", "limit"), [(9330, 1.0), (12180, 1.3)])
def test_evaluate_at_mars_size(benchmark, mars_sized, rows, limit, capsys):
    features, pids, camids, queries = mars_sized
    kept = ~queries & (pids != -1) if rows == 9330 else np.ones(len(pids), bool)
    case = [x[side] for side in (queries, kept) for x in (features, pids, camids)]
    assert (len(case[0]), len(case[3])) == (1980, rows)
    result = benchmark.pedantic(metrics.evaluate, args=case, rounds=5, warmup_rounds=1)
    some = slice(None, None, 20)  # every twentieth query, and its time twenty times
    start = time.perf_counter()
    expected = loop_over_queries(case[0][some], case[1][some], case[2][some], *case[3:])
    loop = 20 * (time.perf_counter() - start)
    took = benchmark.stats.stats.min
    with capsys.disabled():
        print(f"\n1980 x {rows}: {took:.2f} s (limit {limit} s), loop over queries {loop:.0f} s")
    assert np.nanmean(result.ap[some]) == pytest.approx(expected, abs=1e-4)
    assert took < limit


def test_rerank_at_mars_size(benchmark, mars_sized):
    features, pids, _, queries = mars_sized
    sides = features[queries, :256], features[~queries & (pids != -1), :256]
    assert benchmark.pedantic(metrics.rerank, args=sides, rounds=1).shape == (1980, 11310)
