"""Planted wrong answers to the exercises: the check cell of each must turn every one of them away.

The key is the notebook and the exercise; each answer is a whole solution cell.
"""

WRONG_ANSWERS = {
    ("00_tour", "average-precision"): [
        # the share of right answers in the whole list
        "def average_precision(hits):\n    return float(np.mean(hits))",
        # ranks counted from 0 where they should be counted from 1
        """def average_precision(hits):
    ranks = np.flatnonzero(hits)
    return float(np.mean(np.arange(1, len(ranks) + 1) / np.maximum(ranks, 1)))""",
        # the first right answer alone
        "def average_precision(hits):\n    return 1 / (1 + int(np.argmax(hits)))",
        # divided by the length of the list, not by the number of right answers
        """def average_precision(hits):
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return float((precision * hits).sum() / len(hits))""",
        # the precision at all ranks, also at those of wrong answers
        """def average_precision(hits):
    return float(np.mean(np.cumsum(hits) / np.arange(1, len(hits) + 1)))""",
        # the trapezoid formula of MARS's MATLAB code
        """def average_precision(hits):
    ranks = np.flatnonzero(hits) + 1
    found = np.arange(1, len(ranks) + 1)
    before = np.where(ranks == 1, 1, (found - 1) / np.maximum(ranks - 1, 1))
    return float((found / ranks + before).mean() / 2)""",
    ],
    ("01_baseline", "identity-batch"): [
        # tracklets first, so that people with many of them come too often
        """def identity_batch(pids, P, K, rng):
    return rng.choice(len(pids), P * K, replace=False)""",
        # one person twice
        """def identity_batch(pids, P, K, rng):
    people = rng.choice(pids, P)
    rows = [np.flatnonzero(pids == person) for person in people]
    return np.concatenate([rng.choice(r, K, replace=len(r) < K) for r in rows])""",
        # always with putting back
        """def identity_batch(pids, P, K, rng):
    people = rng.choice(np.unique(pids), P, replace=False)
    return np.concatenate([rng.choice(np.flatnonzero(pids == p), K) for p in people])""",
        # the first people and tracklets, never any other
        """def identity_batch(pids, P, K, rng):
    rows = [np.flatnonzero(pids == person) for person in np.unique(pids)[:P]]
    return np.concatenate([np.resize(r, K) for r in rows])""",
        # the people, not the rows
        """def identity_batch(pids, P, K, rng):
    return np.repeat(rng.choice(np.unique(pids), P, replace=False), K)""",
        # shuffled in the end
        """def identity_batch(pids, P, K, rng):
    people = rng.choice(np.unique(pids), P, replace=False)
    rows = [np.flatnonzero(pids == person) for person in people]
    rows = [rng.choice(r, K, replace=len(r) < K) for r in rows]
    return rng.permutation(np.concatenate(rows))""",
        # who has too few is left out
        """def identity_batch(pids, P, K, rng):
    people, counts = np.unique(pids, return_counts=True)
    people = rng.choice(people[counts >= K], P, replace=False)
    return np.concatenate([rng.choice(np.flatnonzero(pids == p), K, False) for p in people])""",
    ],
    ("01_baseline", "smoothed-cross-entropy"): [
        # not smoothed
        "def my_cross_entropy(logits, labels, epsilon=0.1):\n"
        "    return F.cross_entropy(logits, labels)",
        # the mass goes to the others only
        """def my_cross_entropy(logits, labels, epsilon=0.1):
    N = logits.shape[1]
    hot = F.one_hot(labels, N)
    target = (1 - epsilon) * hot + epsilon / (N - 1) * (1 - hot)
    return -(target * logits.log_softmax(1)).sum(1).mean()""",
        # averaged over the classes as well
        """def my_cross_entropy(logits, labels, epsilon=0.1):
    N = logits.shape[1]
    target = (1 - epsilon) * F.one_hot(labels, N) + epsilon / N
    return -(target * logits.log_softmax(1)).mean()""",
        # normalised over the batch, not over the people
        """def my_cross_entropy(logits, labels, epsilon=0.1):
    N = logits.shape[1]
    target = (1 - epsilon) * F.one_hot(labels, N) + epsilon / N
    return -(target * logits.log_softmax(0)).sum(1).mean()""",
        # overflows
        """def my_cross_entropy(logits, labels, epsilon=0.1):
    N = logits.shape[1]
    target = (1 - epsilon) * F.one_hot(labels, N) + epsilon / N
    p = logits.exp() / logits.exp().sum(1, keepdim=True)
    return -(target * p.log()).sum(1).mean()""",
        # epsilon as it stands in most papers, whatever was asked for
        """def my_cross_entropy(logits, labels, epsilon=0.1):
    return F.cross_entropy(logits, labels, label_smoothing=0.1)""",
    ],
    ("01_baseline", "batch-hard-triplet"): [
        # squared distances
        """def my_triplet(features, pids, margin=0.3):
    d = torch.cdist(features, features) ** 2
    same = pids[:, None] == pids
    positive = d.masked_fill(~same, -torch.inf).amax(1)
    negative = d.masked_fill(same, torch.inf).amin(1)
    return (positive - negative + margin).clamp(min=0).mean()""",
        # the easiest instead of the hardest
        """def my_triplet(features, pids, margin=0.3):
    d = torch.cdist(features, features)
    same = pids[:, None] == pids
    negative = d.masked_fill(same, -torch.inf).amax(1)
    positive = d.masked_fill(~same, torch.inf).amin(1)
    return (positive - negative + margin).clamp(min=0).mean()""",
        # 0 in place of infinity: the nearest other is always at 0
        """def my_triplet(features, pids, margin=0.3):
    d = torch.cdist(features, features)
    same = pids[:, None] == pids
    return ((d * same).amax(1) - (d * ~same).amin(1) + margin).clamp(min=0).mean()""",
        # no hinge
        """def my_triplet(features, pids, margin=0.3):
    d = torch.cdist(features, features)
    same = pids[:, None] == pids
    positive = d.masked_fill(~same, -torch.inf).amax(1)
    negative = d.masked_fill(same, torch.inf).amin(1)
    return (positive - negative + margin).mean()""",
        # the sum over the batch
        """def my_triplet(features, pids, margin=0.3):
    d = torch.cdist(features, features)
    same = pids[:, None] == pids
    positive = d.masked_fill(~same, -torch.inf).amax(1)
    negative = d.masked_fill(same, torch.inf).amin(1)
    return (positive - negative + margin).clamp(min=0).sum()""",
        # the hinge after the mean
        """def my_triplet(features, pids, margin=0.3):
    d = torch.cdist(features, features)
    same = pids[:, None] == pids
    positive = d.masked_fill(~same, -torch.inf).amax(1)
    negative = d.masked_fill(same, torch.inf).amin(1)
    return (positive - negative + margin).mean().clamp(min=0)""",
        # the margin that most papers use, whatever was asked for
        """def my_triplet(features, pids, margin=0.3):
    d = torch.cdist(features, features)
    same = pids[:, None] == pids
    positive = d.masked_fill(~same, -torch.inf).amax(1)
    negative = d.masked_fill(same, torch.inf).amin(1)
    return (positive - negative + 0.3).clamp(min=0).mean()""",
        # all pairs instead of the hardest
        """def my_triplet(features, pids, margin=0.3):
    d = torch.cdist(features, features)
    same = (pids[:, None] == pids).float()
    positive = (d * same).sum(1) / same.sum(1)
    negative = (d * (1 - same)).sum(1) / (1 - same).sum(1)
    return (positive - negative + margin).clamp(min=0).mean()""",
    ],
    ("01_baseline", "ranked-hits"): [
        # nothing is removed
        """def ranked_hits(distance, pids, camids, pid, camid):
    return (pids[np.argsort(distance)] == pid).astype(int)""",
        # junk stays
        """def ranked_hits(distance, pids, camids, pid, camid):
    order = np.argsort(distance)
    pids, camids = pids[order], camids[order]
    return (pids[~((pids == pid) & (camids == camid))] == pid).astype(int)""",
        # the own camera stays
        """def ranked_hits(distance, pids, camids, pid, camid):
    pids = pids[np.argsort(distance)]
    return (pids[pids != -1] == pid).astype(int)""",
        # everybody in the own camera goes
        """def ranked_hits(distance, pids, camids, pid, camid):
    order = np.argsort(distance)
    pids, camids = pids[order], camids[order]
    return (pids[(pids != -1) & (camids != camid)] == pid).astype(int)""",
        # distractors go as well
        """def ranked_hits(distance, pids, camids, pid, camid):
    order = np.argsort(distance)
    pids, camids = pids[order], camids[order]
    return (pids[(pids > 0) & ~((pids == pid) & (camids == camid))] == pid).astype(int)""",
        # the farthest first
        """def ranked_hits(distance, pids, camids, pid, camid):
    order = np.argsort(-distance)
    pids, camids = pids[order], camids[order]
    removed = (pids == -1) | ((pids == pid) & (camids == camid))
    return (pids[~removed] == pid).astype(int)""",
        # not sorted
        """def ranked_hits(distance, pids, camids, pid, camid):
    removed = (pids == -1) | ((pids == pid) & (camids == camid))
    return (pids[~removed] == pid).astype(int)""",
        # sorted, but the masks are not
        """def ranked_hits(distance, pids, camids, pid, camid):
    order = np.argsort(distance)
    removed = (pids == -1) | ((pids == pid) & (camids == camid))
    return (pids[order][~removed] == pid).astype(int)""",
    ],
    ("01_baseline", "attention-pool"): [
        # the plain mean
        "def attend(frames, scores):\n    return frames.mean(1)",
        # softmax over the batch
        """def attend(frames, scores):
    return torch.einsum("bt,btd->bd", scores.softmax(dim=0), frames)""",
        # scores used as weights
        """def attend(frames, scores):
    return torch.einsum("bt,btd->bd", scores, frames)""",
        # divided by T once more
        """def attend(frames, scores):
    return (scores.softmax(1)[..., None] * frames).mean(1)""",
        # sigmoid instead of softmax
        """def attend(frames, scores):
    weights = scores.sigmoid()
    return torch.einsum("bt,btd->bd", weights / weights.sum(1, keepdim=True), frames)""",
        # the best frame alone
        """def attend(frames, scores):
    return frames[torch.arange(len(frames)), scores.argmax(1)]""",
        # the published ReLU on the score
        """def attend(frames, scores):
    return torch.einsum("bt,btd->bd", scores.relu().softmax(dim=1), frames)""",
    ],
    ("02_cosam", "correlate"): [
        # the cosine: the mean is not taken away
        """def correlate(a, b):
    return F.normalize(a, dim=1) @ F.normalize(b, dim=1).T""",
        # not divided by D
        """def correlate(a, b):
    a, b = ((x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-4) for x in (a, b))
    return a @ b.T""",
        # the other way round
        """def correlate(a, b):
    a, b = ((x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-4) for x in (a, b))
    return b @ a.T / a.shape[1]""",
        # the deviation over the places instead of the channels
        """def correlate(a, b):
    a, b = ((x - x.mean(0)) / (x.std(0) + 1e-4) for x in (a, b))
    return a @ b.T / a.shape[1]""",
        # a constant descriptor divides by zero
        """def correlate(a, b):
    a, b = ((x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True) for x in (a, b))
    return a @ b.T / a.shape[1]""",
        # the biased deviation
        """def correlate(a, b):
    std = partial(torch.std, dim=1, correction=0, keepdim=True)
    a, b = ((x - x.mean(1, keepdim=True)) / (std(x) + 1e-4) for x in (a, b))
    return a @ b.T / a.shape[1]""",
    ],
    ("02_cosam", "order-free"): [
        # the mean over everything
        "def order_free(cost, Q):\n    return cost.mean(0)",
        # the largest over everything
        "def order_free(cost, Q):\n    return cost.amax(0)",
        # frames and places mixed up
        "def order_free(cost, Q):\n    return cost.view(Q, -1, cost.shape[1]).amax(0).mean(0)",
        # mean over the places, largest over the frames
        "def order_free(cost, Q):\n    return cost.view(-1, Q, cost.shape[1]).mean(1).amax(0)",
        # the first frame only
        "def order_free(cost, Q):\n    return cost[:Q].amax(0)",
    ],
    ("02_cosam", "agree"): [
        # no agreement
        "def agree(gates, T):\n    return gates",
        # clips and frames mixed up
        """def agree(gates, T):
    return gates.unflatten(0, (T, -1)).mean(0).repeat(T, 1)""",
        # clips repeated in turns
        "def agree(gates, T):\n    return gates.unflatten(0, (-1, T)).mean(1).repeat(T, 1)",
        # all clips share one gate
        "def agree(gates, T):\n    return gates.mean(0).expand_as(gates)",
        # the largest in place of the mean
        """def agree(gates, T):
    return gates.unflatten(0, (-1, T)).amax(1).repeat_interleave(T, 0)""",
    ],
}
