"""The yardstick against plain loops, hand-computed lists and the rules of MARS."""

import numpy as np
import pytest
import torch

from vreid_course import metrics


def random_case(seed, queries=25, gallery=120, people=12, size=6):
    """Features, pids and camids of queries and gallery, with junk and distractors among them."""
    rng = np.random.default_rng(seed)
    pids = [rng.integers(1, people, queries), rng.integers(-1, people, gallery)]
    camids = [rng.integers(1, 4, queries), rng.integers(1, 4, gallery)]
    features = [rng.normal(size=(n, size)).astype(np.float32) for n in (queries, gallery)]
    return features[0], pids[0], camids[0], features[1], pids[1], camids[1]


def plain_loop(query, query_pids, query_camids, gallery, pids, camids, merge=False):
    """AP (step) and first rank of every query, (nan, 0) if it cannot be scored."""
    if merge:
        gallery = np.concatenate([query, gallery])
        pids, camids = np.append(query_pids, pids), np.append(query_camids, camids)
    found = []
    for feature, pid, camid in zip(query.astype(float), query_pids, query_camids, strict=True):
        nearest = sorted(range(len(gallery)), key=lambda j: np.linalg.norm(feature - gallery[j]))
        nearest = [j for j in nearest if pids[j] != -1]
        nearest = [pids[j] == pid for j in nearest if pids[j] != pid or camids[j] != camid]
        ranks = [rank for rank, right in enumerate(nearest, 1) if right]
        ap = [hit / rank for hit, rank in enumerate(ranks, 1)]
        found.append((np.mean(ap), ranks[0]) if ranks else (np.nan, 0))
    return [np.array(column) for column in zip(*found, strict=True)]


@pytest.mark.parametrize("merge", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_equals_a_plain_loop(seed, merge):
    case = random_case(seed, people=40 if seed == 0 else 12)
    result = metrics.evaluate(*case, merge_queries=merge)
    ap, first = plain_loop(*case, merge)
    np.testing.assert_allclose(result.ap, ap, atol=1e-6)
    np.testing.assert_array_equal(result.first_rank, first)
    assert result.mAP == pytest.approx(np.nanmean(ap))
    assert (result.scored, result.unscored) == ((first > 0).sum(), (first == 0).sum())
    assert seed or merge or result.unscored  # seed 0 has queries without a positive
    for rank in (1, 5, 20):
        hit = ((first > 0) & (first <= rank)).sum() / (first > 0).sum()
        assert result.cmc[rank - 1] == pytest.approx(hit)
    junk_free = (case[4] != -1).sum() + (len(ap) if merge else 0)
    assert result.gallery_size == junk_free
    for part in ("step AP", f"{result.scored} of {len(ap)} queries", f"gallery of {junk_free}"):
        assert part in str(result)


@pytest.mark.parametrize(
    ("right", "step", "trapezoid"),
    [
        ("1100", 1.0, 1.0),
        ("01", 0.5, 0.25),
        ("101", 0.833333, 0.791667),
        ("0101", 0.5, 0.333333),
        ("00111", 0.477778, 0.377778),
        ("100101", 0.666667, 0.622222),
    ],
)
def test_average_precision_of_known_lists(right, step, trapezoid):
    pids = np.array([7 if letter == "1" else 9 for letter in right])
    labels = [7], [1], pids, np.full(len(pids), 2)
    matrix = np.arange(len(pids))[None]
    for formula, expected in (("step", step), ("trapezoid", trapezoid)):
        result = metrics.evaluate_distances(matrix, *labels, ap=formula)
        assert result.mAP == pytest.approx(expected, abs=1e-6)


def test_whole_query_of_mars():
    people, cameras = [-1, 7, 0, 7, 9, 7], [2, 1, 3, 2, 1, 3]
    result = metrics.evaluate([[0.0]], [7], [1], np.arange(1.0, 7)[:, None], people, cameras)
    assert (result.cmc[:2] == [0, 1]).all() and result.ap == [0.5] and result.gallery_size == 5
    matrix = np.arange(6.0)[None]
    result = metrics.evaluate_distances(matrix, [7], [1], people, cameras, ap="trapezoid")
    assert result.mAP == pytest.approx(1 / 3)


def test_ties_keep_the_order_of_the_gallery():
    labels = [1], [1], [2, 1, 3, 1], [2, 2, 2, 2]
    result = metrics.evaluate_distances(np.zeros((1, 4), int), *labels)
    assert result.first_rank[0] == 2 and result.mAP == pytest.approx((1 / 2 + 2 / 4) / 2)
    ones = np.ones((2, 3))  # merged: the other query stands before the whole gallery
    result = metrics.evaluate(ones, [1, 1], [1, 2], ones, [2, 2], [3, 3], merge_queries=True)
    assert result.mAP == 1


def test_a_query_never_finds_itself_when_merged():
    case = [*random_case(1)[:3], np.full((3, 6), 99.0), [50, 51, 52], [1, 1, 1]]
    result = metrics.evaluate(*case, merge_queries=True)
    ap, first = plain_loop(case[0], *case[1:], merge=True)
    np.testing.assert_allclose(result.ap, ap, atol=1e-6)
    assert result.cmc[0] < 0.9


def test_what_cannot_be_scored_is_reported_and_not_averaged():
    gallery = np.array([[0.0], [1.0], [2.0]])
    result = metrics.evaluate(
        [[0.0], [0.0], [0.0], [0.0]], [5, 6, 0, -1], [1, 1, 1, 1], gallery, [5, 0, -1], [2, 2, 2]
    )
    assert result.scored == 1 and result.unscored == 3 and result.mAP == 1
    assert np.isnan(result.ap[1:]).all() and (result.first_rank == [1, 0, 0, 0]).all()
    assert len(result.cmc) == 50 and (result.cmc == 1).all()


def test_image_queries_search_videos():
    """A row of features is all that counts: pooled frames, single frames or both."""
    rng = np.random.default_rng(0)
    people = rng.normal(size=(10, 16))
    frames = (people[:, None] + rng.normal(size=(10, 12, 16))).astype(np.float32)  # (P, T, D)
    pids, cameras = np.arange(1, 11), np.ones(10, int)
    videos, images = frames[:, 6:].mean(axis=1), frames[:, 6]
    scores = [
        metrics.evaluate(query, pids, cameras, gallery, pids, cameras + 1).mAP
        for query, gallery in (
            (frames[:, :6].mean(axis=1), videos),
            (frames[:, 0], videos),
            (frames[:, 0], images),
        )
    ]
    assert scores[0] >= scores[1] > scores[2]


def test_tensors_lists_and_half_precision_are_accepted():
    case = random_case(3)
    expected = metrics.evaluate(*case)
    tensors = [torch.from_numpy(x) for x in case]
    tensors[0].requires_grad_()
    np.testing.assert_array_equal(metrics.evaluate(*tensors).ap, expected.ap)
    np.testing.assert_array_equal(metrics.evaluate(*(x.tolist() for x in case)).ap, expected.ap)
    half = [x.bfloat16() if x.is_floating_point() else x for x in tensors]
    assert metrics.evaluate(*half).mAP == pytest.approx(expected.mAP, abs=0.05)


def test_distances():
    query, gallery = random_case(4)[0], random_case(4)[3]
    expected = np.linalg.norm(query[:, None].astype(float) - gallery[None], axis=2)
    np.testing.assert_allclose(metrics.distances(query, gallery), expected, atol=1e-5)
    cosine = torch.cosine_similarity(torch.tensor(query)[:, None], torch.tensor(gallery)[None], -1)
    np.testing.assert_allclose(metrics.distances(query, gallery, "cosine"), 1 - cosine, atol=1e-6)
    scaled = gallery * np.linspace(0.1, 9, len(gallery))[:, None]
    case = [*random_case(4)]
    by_angle = metrics.evaluate(*case, distance="cosine").ap
    case[3] = scaled
    np.testing.assert_allclose(metrics.evaluate(*case, distance="cosine").ap, by_angle)


def spoil(case, at, value):
    case = list(case)
    case[at] = value(case[at].copy()) if callable(value) else value
    return case


def with_nan(features):
    features[4, 1] = np.nan
    return features


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (0, with_nan, r"query_features: 1 of 25 rows not finite, first row 4"),
        (3, with_nan, r"gallery_features: 1 of 120 rows"),
        (3, lambda x: x[:, :5], r"\(25, 6\), \(120, 5\)"),
        (3, lambda x: x[0], r"gallery_features must have two dimensions"),
        (1, lambda x: x[:-1], r"distances \(25, 120\), but pids \(24, 120\)"),
        (5, lambda x: x[:-1], r"camids \(25, 119\)"),
        (4, lambda x: x + 1000, r"no query has its person in another camera"),
    ],
)
def test_bad_input_is_named(at, value, message):
    with pytest.raises(ValueError, match=message):
        metrics.evaluate(*spoil(random_case(0), at, value))


@pytest.mark.parametrize("option", [{"ap": "rectangle"}, {"distance": "manhattan"}])
def test_unknown_options_are_named(option):
    with pytest.raises(ValueError, match=next(iter(option.values()))):
        metrics.evaluate(*random_case(0), **option)
    with pytest.raises(ValueError, match="not finite"):
        metrics.evaluate_distances(np.full((25, 120), np.nan), *random_case(0)[1:3], [1], [1])


def test_bootstrap_covers_the_mean_and_pairs_the_queries():
    rng = np.random.default_rng(0)
    ap = rng.random(400)
    mean, low, high = metrics.bootstrap(np.append(ap, np.nan), seed=1)
    assert mean == pytest.approx(ap.mean())
    error = 1.96 * ap.std() / 20
    assert (mean - low, high - mean) == (pytest.approx(error, rel=0.1),) * 2
    assert metrics.bootstrap(np.append(ap, np.nan), seed=1) == (mean, low, high)
    other = ap - 0.02 + 0.01 * rng.normal(size=400)  # a small gain, but on every query
    mean, low, high = metrics.bootstrap(ap, other)
    assert low > 0.015 and high < 0.025
    with pytest.raises(ValueError, match="not the same queries"):
        metrics.bootstrap(ap, other[:-1])


@pytest.mark.parametrize("by, star", [(0.02, "*"), (-0.02, "*"), (0.0, "")])
def test_gain_is_the_bootstrap_in_points(by, star):
    rng = np.random.default_rng(0)
    other = rng.random(400)
    ap = other + by + 0.01 * rng.normal(size=400)
    mean, low, high = (100 * v for v in metrics.bootstrap(ap, other))
    assert metrics.gain(ap, other) == f"{mean:+.1f} ({low:+.1f} to {high:+.1f}){star}"


def rerank_loop(features, queries, k1, k2, lam):
    """k-reciprocal re-ranking as its paper says it, with Python sets."""
    plain = np.array([[((a - b) ** 2).sum() for b in features] for a in features])
    plain /= plain.max(axis=1, keepdims=True)
    count, order = len(features), plain.argsort(axis=1, kind="stable")

    def reciprocal(i, k):
        return {j for j in order[i, : k + 1] if i in order[j, : k + 1]}

    weights = np.zeros_like(plain)
    for i in range(count):
        mine = reciprocal(i, k1)
        members = set(mine)
        for j in mine:
            theirs = reciprocal(j, round(k1 / 2))
            if len(theirs & mine) > 2 / 3 * len(theirs):
                members |= theirs
        for j in members:
            weights[i, j] = np.exp(-plain[i, j])
        weights[i] /= weights[i].sum()
    weights = np.array([weights[order[i, :k2]].mean(axis=0) for i in range(count)])
    result = np.zeros((queries, count))
    for i in range(queries):
        for j in range(count):
            least = np.minimum(weights[i], weights[j]).sum()
            most = np.maximum(weights[i], weights[j]).sum()
            result[i, j] = (1 - lam) * (1 - least / most) + lam * plain[i, j]
    return result


@pytest.mark.parametrize("sizes", [(20, 6, 0.3), (7, 3, 0.5), (4, 1, 0.0)])
def test_rerank_equals_a_plain_loop(sizes):
    features = np.random.default_rng(5).normal(size=(60, 3)).astype(np.float32)
    expected = rerank_loop(features.astype(float), 8, *sizes)
    result = metrics.rerank(features[:8], features[8:], *sizes)
    assert result.shape == (8, 60)
    np.testing.assert_allclose(result, expected, atol=2e-5)


def test_rerank_helps_where_neighbours_agree():
    rng = np.random.default_rng(0)
    people = np.repeat(np.arange(1, 31), 8)
    features = rng.normal(size=(31, 8))[people] + 0.8 * rng.normal(size=(240, 8))
    asked = np.arange(240) % 8 == 0
    labels = people[asked], np.ones(30), people[~asked], np.full(210, 2)
    before = metrics.evaluate_distances(
        metrics.distances(features[asked], features[~asked]), *labels
    )
    matrix = metrics.rerank(features[asked], features[~asked], k1=7, k2=3)
    after = metrics.evaluate_distances(matrix, *labels, merge_queries=True)
    assert matrix.shape == (30, 240) and after.mAP > before.mAP + 0.03
    assert metrics.evaluate_distances(matrix[:, 30:], *labels).mAP > before.mAP


def test_ranked_rows_give_the_ap_of_evaluate():
    rng = np.random.default_rng(3)
    features, pids = rng.random((40, 5)), rng.integers(-1, 6, 40)
    camids = rng.integers(1, 4, 40)
    queries = np.flatnonzero(pids > 0)
    result = metrics.evaluate(
        features[queries], pids[queries], camids[queries], features, pids, camids
    )
    for q, ap in zip(queries, result.ap, strict=True):
        rows = metrics.ranked(features, pids, camids, q)
        hits = np.flatnonzero(pids[rows] == pids[q]) + 1
        assert len(hits) == 0 and np.isnan(ap) or metrics.average_precision(hits) == ap
