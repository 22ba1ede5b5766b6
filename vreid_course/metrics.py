"""CMC and mAP with the rules of MARS, intervals over queries, and k-reciprocal re-ranking.

Nothing here asks where a feature comes from: a row of query features is searched in the rows of
gallery features, be it a video among videos, an image among videos or an image among images.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse

Array = np.ndarray | torch.Tensor


@dataclass(frozen=True, eq=False)
class Result:
    """What `evaluate` found: shares and precisions in 0..1; print for a line with its protocol."""

    mAP: float  # mean AP of the scored queries
    cmc: np.ndarray  # (max(50, G),) float64: cmc[k - 1] is the share of scored queries hit by k
    ap: np.ndarray  # (Q,) float64, nan where the query cannot be scored
    first_rank: np.ndarray  # (Q,) int64, rank of the first right answer from 1, 0 if not scored
    scored: int  # queries with a right answer in another camera
    unscored: int  # queries without one, left out of every average
    gallery_size: int  # rows searched: junk left out, queries counted if merged
    formula: str  # of AP: "step" or "trapezoid"

    def __str__(self) -> str:
        hits = ", ".join(f"rank-{k} {100 * self.cmc[k - 1]:.1f}" for k in (1, 5, 10, 20))
        asked = f"{self.scored} of {len(self.ap)} queries scored, gallery of {self.gallery_size}"
        return f"mAP {100 * self.mAP:.1f} ({self.formula} AP), {hits}; {asked}"


def evaluate(
    query_features: Array, query_pids: Array, query_camids: Array,
    gallery_features: Array, gallery_pids: Array, gallery_camids: Array, *,
    merge_queries: bool = False, ap: str = "step", distance: str = "euclidean",
) -> Result:  # fmt: skip
    """Search every query in the gallery and score the ranked lists by the rules of MARS.

    features: (Q, D) and (G, D), arrays or tensors, compared in float32. pids: int (Q,) and (G,);
    -1 is junk (removed), 0 a distractor (wrong; not scored as a query). camids: int (Q,) and (G,).
    Gallery rows of the query's own person and camera are removed; ties keep the gallery's order.
    merge_queries puts the queries in front of the gallery, as MARS does: a query then also finds
    those of other cameras. ap: "step" (most Python code) or "trapezoid" (the authors' MATLAB).
    distance: see `distances`. ValueError: features not finite, sizes that disagree, nothing to
    score. Source: Zheng et al., "MARS", ECCV 2016.
    """
    query = _finite(query_features, "query_features", np.float32)
    gallery = _finite(gallery_features, "gallery_features", np.float32)
    if merge_queries and query.shape[1] == gallery.shape[1]:
        gallery = np.concatenate([query, gallery])
    matrix = distances(query, gallery, distance)
    labels = (query_pids, query_camids, gallery_pids, gallery_camids)
    return evaluate_distances(matrix, *labels, merge_queries=merge_queries, ap=ap)


def evaluate_distances(
    matrix: Array, query_pids: Array, query_camids: Array, gallery_pids: Array,
    gallery_camids: Array, *, merge_queries: bool = False, ap: str = "step",
) -> Result:  # fmt: skip
    """As `evaluate`, from known distances (Q, G): re-ranked, or those of a query-dependent method.

    With merge_queries the matrix is (Q, Q + G), whose first columns are the queries themselves.
    """
    labels = [_array(x) for x in (query_pids, query_camids, gallery_pids, gallery_camids)]
    matrix, (query_pids, query_camids, pids, camids) = _finite(matrix, "distances"), labels
    if merge_queries:
        pids, camids = np.append(query_pids, pids), np.append(query_camids, camids)
    sizes = (*query_pids.shape, *pids.shape), (*query_camids.shape, *camids.shape)
    if sizes != (matrix.shape, matrix.shape):
        raise ValueError(f"distances {matrix.shape}, but pids {sizes[0]} and camids {sizes[1]}")
    aps, first = np.full(len(matrix), np.nan), np.zeros(len(matrix), np.int64)
    for i, row in enumerate(matrix):
        same = (pids == query_pids[i]) & (query_pids[i] > 0)
        ranks = _ranks(row, (pids == -1) | same & (camids == query_camids[i]), same)
        if len(ranks):
            aps[i], first[i] = average_precision(ranks, ap), ranks[0]
    if not (scored := np.count_nonzero(first)):
        raise ValueError("no query has its person in another camera: look at pids and camids")
    cmc = np.bincount(first, minlength=max(50, len(pids)) + 1)[1:].cumsum() / scored
    return Result(
        mAP=float(np.nanmean(aps)), cmc=cmc, ap=aps, first_rank=first, scored=scored,
        unscored=len(first) - scored, gallery_size=np.count_nonzero(pids != -1), formula=ap,
    )  # fmt: skip


def ranked(features, pids, camids, q: int) -> np.ndarray:
    """Rows (M,) of the tracklets that count for the query in row q, nearest first; ties in order.

    features (N, D), pids and camids (N,) of all tracklets. Junk and the query's own person in its
    own camera are left out, as in `evaluate` with all rows in the gallery.
    """
    order = np.argsort(distances(features[q : q + 1], features)[0], kind="stable")
    own_camera = (pids == pids[q]) & (camids == camids[q])
    return order[~(own_camera | (pids == -1))[order]]


def average_precision(ranks: Array, formula: str = "step") -> float:
    """AP in 0..1 of a query whose m right answers stand at ranks (m,), sorted, counted from 1."""
    hits, ranks = np.arange(1, len(ranks) + 1), np.asarray(ranks)
    if formula == "step":
        return float((hits / ranks).mean())
    if formula != "trapezoid":
        raise ValueError(f'ap={formula!r} is not known: give "step" or "trapezoid"')
    before = np.where(ranks == 1, 1, (hits - 1) / np.maximum(ranks - 1, 1))  # just before the hit
    return float((hits / ranks + before).mean() / 2)


def distances(query_features: Array, gallery_features: Array, kind="euclidean") -> np.ndarray:
    """Distances (Q, G), float32, between features (Q, D) and (G, D).

    kind: "euclidean", or "cosine" for 1 - cosine similarity, 0..2. ValueError: sizes disagree.
    """
    query, gallery = _array(query_features, np.float32), _array(gallery_features, np.float32)
    if query.ndim != 2 or gallery.ndim != 2 or query.shape[1] != gallery.shape[1]:
        raise ValueError(f"features must be (Q, D) and (G, D), not {query.shape}, {gallery.shape}")
    if kind not in ("euclidean", "cosine"):
        raise ValueError(f'distance {kind!r} is not known: give "euclidean" or "cosine"')
    squares = [np.einsum("nd,nd->n", x, x) for x in (query, gallery)]
    result = query @ gallery.T
    if kind == "cosine":
        result /= np.maximum(np.sqrt(squares[0]), 1e-12)[:, None]
        result /= -np.maximum(np.sqrt(squares[1]), 1e-12)
        return np.add(result, 1, out=result)
    result *= -2  # |q - g|^2 = |q|^2 - 2 q.g + |g|^2
    result += squares[0][:, None]
    result += squares[1]
    return np.sqrt(np.maximum(result, 0, out=result), out=result)


def bootstrap(
    ap: np.ndarray,
    ap_other: np.ndarray | None = None,
    *,
    people: np.ndarray | None = None,
    seed: int = 0,
    draws: int = 2000,
) -> tuple[float, float, float]:
    """Mean of per-query values and its 95 % interval (low, high), by redrawing the queries.

    ap: (Q,) float, nan where not scored. With ap_other (Q,), another method on the same queries,
    the values are ap - ap_other: if 0 lies inside, other queries might turn the result round.
    people (Q,): whom each query shows; then people are redrawn, each with all of their queries.
    """
    values = np.asarray(ap, np.float64)
    if ap_other is not None:
        if np.shape(ap_other) != values.shape:
            raise ValueError(f"not the same queries: {len(values)} and {len(ap_other)} of them")
        values = values - np.asarray(ap_other, np.float64)
    known = ~np.isnan(values)
    values, units = values[known], np.arange(known.sum())
    if people is not None:
        units = np.unique(np.asarray(people)[known], return_inverse=True)[1]
    sums, counts = np.bincount(units, values), np.bincount(units)
    picks = np.random.default_rng(seed).integers(len(sums), size=(draws, len(sums)))
    means = sums[picks].sum(axis=1) / counts[picks].sum(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(values.mean()), float(low), float(high)


def gain(ap: np.ndarray, ap_other: np.ndarray) -> str:
    """Mean of ap - ap_other, both (Q,) in 0..1, and its interval in points: "+1.2 (+0.3 to +2.1)*".

    The interval is that of `bootstrap`; a star says that 0 lies outside of it.
    """
    mean, low, high = (100 * v for v in bootstrap(ap, ap_other))
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f})" + "*" * (low > 0 or high < 0)


def rerank(query_features: Array, gallery_features: Array, k1=20, k2=6, lam=0.3) -> np.ndarray:
    """Re-ranked distances (Q, Q + G), float32: the columns are the queries, then the gallery.

    Pass them to `evaluate_distances` with merge_queries, or drop the first Q columns. Features are
    (Q, D) and (G, D), more than k1 in all; lam in 0..1 weighs the plain distance. Needs 8 (Q + G)^2
    bytes. Source: Zhong et al., CVPR 2017; plain = squared Euclidean over the row's maximum.
    """
    queries = _finite(query_features, "query_features", np.float32)
    everyone = np.concatenate([queries, _finite(gallery_features, "gallery_features", np.float32)])
    plain = distances(everyone, everyone) ** 2  # (N, N)
    plain /= plain.max(axis=1, keepdims=True)
    order = torch.from_numpy(plain).topk(k1 + 1, largest=False).indices.numpy()

    def neighbours(k: int) -> sparse.csr_array:  # (N, N): 1 at the row itself and its k nearest
        at = np.repeat(np.arange(len(order)), k + 1), order[:, : k + 1].ravel()
        return sparse.csr_array((np.ones(len(at[0])), at), shape=plain.shape)

    wide, narrow = (a * a.T for a in map(neighbours, (k1, round(k1 / 2))))  # reciprocal ones only
    shared = wide * (wide @ narrow)  # of a neighbour's neighbours, how many are ours as well:
    trusted = 3 * shared > wide * (2 * narrow.sum(axis=1))  # more than two thirds to be trusted
    at = (wide + trusted @ narrow).nonzero()
    weights = sparse.csr_array((np.exp(-plain[at]), at), shape=plain.shape)
    weights = sparse.diags_array(1 / weights.sum(axis=1)) @ weights
    weights = neighbours(k2 - 1) @ weights / k2  # local query expansion: the mean of k2 rows
    columns, result = weights.tocsc(), lam * plain[: len(queries)]
    for i in range(len(queries)):
        mine = weights[[i]]
        theirs = columns[:, mine.indices]
        least = np.minimum(theirs.data, np.repeat(mine.data, np.diff(theirs.indptr)))
        common = np.bincount(theirs.indices, least, minlength=len(plain))
        result[i] += (1 - lam) * (1 - common / (2 - common))  # Jaccard distance
    return result


def _ranks(row: np.ndarray, removed: np.ndarray, same: np.ndarray) -> np.ndarray:
    """Sorted ranks from 1 of the right answers: what is nearer, or as near and earlier, counted."""
    row = row.astype(np.result_type(row, np.float32))  # a copy
    row[removed] = np.nan  # neither nearer nor equal to anything
    at, count = np.flatnonzero(same & ~removed), np.count_nonzero
    ranks = [count(row[:j] <= row[j]) + count(row[j:] < row[j]) + 1 for j in at]
    return np.sort(ranks).astype(np.int64)


def _array(values, dtype=None) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        values = (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    return np.asarray(values, dtype)


def _finite(values, name: str, dtype=None) -> np.ndarray:
    values = _array(values, dtype)
    if values.ndim != 2:
        raise ValueError(f"{name} must have two dimensions, not the shape {values.shape}")
    if len(bad := np.flatnonzero(~np.isfinite(values).all(axis=1))):
        raise ValueError(f"{name}: {len(bad)} of {len(values)} rows not finite, first row {bad[0]}")
    return values
