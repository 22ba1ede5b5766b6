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
    ("01_baseline", "query-ap"): [
        # nothing is removed
        """def query_ap(distance, pids, camids, pid, camid):
    ranks = np.flatnonzero(pids[np.argsort(distance)] == pid) + 1
    return float(np.mean(np.arange(1, len(ranks) + 1) / ranks)) if len(ranks) else float("nan")""",
        # junk stays
        """def query_ap(distance, pids, camids, pid, camid):
    order = np.argsort(distance)
    pids, camids = pids[order], camids[order]
    ranks = np.flatnonzero(pids[~((pids == pid) & (camids == camid))] == pid) + 1
    return float(np.mean(np.arange(1, len(ranks) + 1) / ranks)) if len(ranks) else float("nan")""",
        # the own camera stays
        """def query_ap(distance, pids, camids, pid, camid):
    pids = pids[np.argsort(distance)]
    ranks = np.flatnonzero(pids[pids != -1] == pid) + 1
    return float(np.mean(np.arange(1, len(ranks) + 1) / ranks)) if len(ranks) else float("nan")""",
        # the own camera counts as wrong instead of not at all
        """def query_ap(distance, pids, camids, pid, camid):
    order = np.argsort(distance)
    pids, camids = pids[order], camids[order]
    pids, camids = pids[pids != -1], camids[pids != -1]
    ranks = np.flatnonzero((pids == pid) & (camids != camid)) + 1
    return float(np.mean(np.arange(1, len(ranks) + 1) / ranks)) if len(ranks) else float("nan")""",
        # everybody in the own camera goes
        """def query_ap(distance, pids, camids, pid, camid):
    order = np.argsort(distance)
    pids, camids = pids[order], camids[order]
    ranks = np.flatnonzero(pids[(pids != -1) & (camids != camid)] == pid) + 1
    return float(np.mean(np.arange(1, len(ranks) + 1) / ranks)) if len(ranks) else float("nan")""",
        # distractors go as well
        """def query_ap(distance, pids, camids, pid, camid):
    order = np.argsort(distance)
    pids, camids = pids[order], camids[order]
    ranks = np.flatnonzero(pids[(pids > 0) & ~((pids == pid) & (camids == camid))] == pid) + 1
    return float(np.mean(np.arange(1, len(ranks) + 1) / ranks)) if len(ranks) else float("nan")""",
        # the farthest first
        """def query_ap(distance, pids, camids, pid, camid):
    order = np.argsort(-distance)
    pids, camids = pids[order], camids[order]
    removed = (pids == -1) | ((pids == pid) & (camids == camid))
    ranks = np.flatnonzero(pids[~removed] == pid) + 1
    return float(np.mean(np.arange(1, len(ranks) + 1) / ranks)) if len(ranks) else float("nan")""",
        # sorted, but the masks are not
        """def query_ap(distance, pids, camids, pid, camid):
    order = np.argsort(distance)
    removed = (pids == -1) | ((pids == pid) & (camids == camid))
    ranks = np.flatnonzero(pids[order][~removed] == pid) + 1
    return float(np.mean(np.arange(1, len(ranks) + 1) / ranks)) if len(ranks) else float("nan")""",
        # 0 where there is nothing to find
        """def query_ap(distance, pids, camids, pid, camid):
    order = np.argsort(distance)
    pids, camids = pids[order], camids[order]
    removed = (pids == -1) | ((pids == pid) & (camids == camid))
    ranks = np.flatnonzero(pids[~removed] == pid) + 1
    return float(np.mean(np.arange(1, len(ranks) + 1) / ranks)) if len(ranks) else 0.0""",
        # the trapezoid formula
        """def query_ap(distance, pids, camids, pid, camid):
    order = np.argsort(distance)
    pids, camids = pids[order], camids[order]
    removed = (pids == -1) | ((pids == pid) & (camids == camid))
    ranks = np.flatnonzero(pids[~removed] == pid) + 1
    n = np.arange(1, len(ranks) + 1)
    before = np.where(ranks == 1, 1, (n - 1) / np.maximum(ranks - 1, 1))
    return float(np.mean(n / ranks + before) / 2) if len(ranks) else float("nan")""",
    ],
    ("01_baseline", "counter-example"): [
        # the first wins both
        "def counter_example():\n    return [1, 1], [0, 1, 1]",
        # the second wins both
        "def counter_example():\n    return [0, 1, 1], [1, 1]",
        # the other way round
        "def counter_example():\n    return [0, 1, 1], [1, 0, 0, 0, 0, 0, 0, 0, 0, 1]",
        # the first is right at once, but not far enough behind afterwards
        "def counter_example():\n    return [1, 0, 0, 1], [0, 1, 1]",
        # not the same number of right answers
        "def counter_example():\n    return [1, 0, 0, 0, 1], [0, 1, 1, 1, 1, 1, 1]",
        # a draw
        "def counter_example():\n    return [1, 0, 1], [1, 0, 1]",
    ],
    ("02_cosam", "cost-volume"): [
        # the cosine: the mean is not taken away
        """def costs_of(r):
    z = F.normalize(r, dim=-1)
    T = len(z)
    others = [torch.cat([z[s] for s in range(T) if s != t]) for t in range(T)]
    return torch.stack([others[t] @ z[t].T for t in range(T)])""",
        # not divided by D
        """def costs_of(r):
    z = (r - r.mean(-1, keepdim=True)) / (r.std(-1, keepdim=True) + 1e-4)
    T = len(z)
    others = [torch.cat([z[s] for s in range(T) if s != t]) for t in range(T)]
    return torch.stack([others[t] @ z[t].T for t in range(T)])""",
        # own place first
        """def costs_of(r):
    z = (r - r.mean(-1, keepdim=True)) / (r.std(-1, keepdim=True) + 1e-4)
    T, Q, D = z.shape
    others = [torch.cat([z[s] for s in range(T) if s != t]) for t in range(T)]
    return torch.stack([(z[t] @ others[t].T).reshape(-1, Q) / D for t in range(T)])""",
        # the other frames from the last to the first
        """def costs_of(r):
    z = (r - r.mean(-1, keepdim=True)) / (r.std(-1, keepdim=True) + 1e-4)
    T, Q, D = z.shape
    others = [torch.cat([z[s] for s in reversed(range(T)) if s != t]) for t in range(T)]
    return torch.stack([others[t] @ z[t].T / D for t in range(T)])""",
        # the own frame is compared too
        """def costs_of(r):
    z = (r - r.mean(-1, keepdim=True)) / (r.std(-1, keepdim=True) + 1e-4)
    T, Q, D = z.shape
    return torch.stack([z.flatten(0, 1) @ z[t].T / D for t in range(T)])""",
        # the deviation over the places instead of the channels
        """def costs_of(r):
    z = (r - r.mean(1, keepdim=True)) / (r.std(1, keepdim=True) + 1e-4)
    T, Q, D = z.shape
    others = [torch.cat([z[s] for s in range(T) if s != t]) for t in range(T)]
    return torch.stack([others[t] @ z[t].T / D for t in range(T)])""",
        # a constant descriptor divides by zero
        """def costs_of(r):
    z = (r - r.mean(-1, keepdim=True)) / r.std(-1, keepdim=True)
    T, Q, D = z.shape
    others = [torch.cat([z[s] for s in range(T) if s != t]) for t in range(T)]
    return torch.stack([others[t] @ z[t].T / D for t in range(T)])""",
        # the biased deviation
        """def costs_of(r):
    z = (r - r.mean(-1, keepdim=True)) / (r.std(-1, correction=0, keepdim=True) + 1e-4)
    T, Q, D = z.shape
    others = [torch.cat([z[s] for s in range(T) if s != t]) for t in range(T)]
    return torch.stack([others[t] @ z[t].T / D for t in range(T)])""",
    ],
    ("02_cosam", "sum-of-costs"): [
        # by way of the volume: it does not fit
        "def sum_of_costs(own, other, w):\n    return own @ other.T @ w / own.shape[1]",
        # not divided by D
        "def sum_of_costs(own, other, w):\n    return own @ (w @ other)",
        # the weights are of the own places
        "def sum_of_costs(own, other, w):\n    return w * (own @ other.sum(0)) / own.shape[1]",
        # divided by the number of places
        "def sum_of_costs(own, other, w):\n    return own @ (w @ other) / len(own)",
        # the frames the other way round
        "def sum_of_costs(own, other, w):\n    return other @ (w @ own) / own.shape[1]",
        # each place with its like only
        "def sum_of_costs(own, other, w):\n    return w * (own * other).mean(1)",
    ],
    ("02_cosam", "identity-start"): [
        # a mask near 1 and a gate near 0: hardly any slope
        "def identity_biases():\n    return 16.0, -16.0",
        # as it comes: three quarters
        "def identity_biases():\n    return 0.0, 0.0",
        # the gate forgotten
        "def identity_biases():\n    return 4.0, 0.0",
        # the values, not the biases
        "def identity_biases():\n    return 2 / 3, 0.5",
        # the two changed over
        "def identity_biases():\n    return 0.0, float(np.log(2))",
        # the identity with a mask that hardly learns
        "def identity_biases():\n    return float(np.log(9)), float(-np.log(8))",
    ],
    ("02_cosam", "fixed-map"): [
        # the own clip is in it
        """def fixed_maps(maps):
    return np.broadcast_to(maps.mean((0, 1)), (len(maps), *maps.shape[2:]))""",
        # the own clip only
        "def fixed_maps(maps):\n    return maps.mean(axis=1)",
        # the sum, not the mean
        """def fixed_maps(maps):
    own = maps.mean(axis=1)
    return own.sum(axis=0) - own""",
        # divided by all
        """def fixed_maps(maps):
    own = maps.mean(axis=1)
    return (own.sum(axis=0) - own) / len(own)""",
        # the other frames instead of the other clips
        """def fixed_maps(maps):
    return (maps.sum(1) - maps[:, 0]) / max(maps.shape[1] - 1, 1)""",
    ],
    ("04_tkp", "one-look"): [
        # scaled as in a transformer
        """def one_look(q, keys, values):
    return (keys @ q / len(q) ** 0.5).softmax(0) @ values""",
        # the mean of all values
        "def one_look(q, keys, values):\n    return values.mean(0)",
        # the best key only
        "def one_look(q, keys, values):\n    return values[(keys @ q).argmax()]",
        # no softmax
        """def one_look(q, keys, values):
    return (keys @ q) @ values / len(keys)""",
        # overflows
        """def one_look(q, keys, values):
    weights = (keys @ q).exp()
    return weights @ values / weights.sum()""",
    ],
    ("04_tkp", "fold"): [
        # frame by frame, not clip by clip
        """def fold(clips, pids):
    return clips.permute(2, 0, 1, 3, 4).flatten(0, 1), pids.repeat(clips.shape[2])""",
        # channels taken for frames
        """def fold(clips, pids):
    B, C, T, H, W = clips.shape
    return clips.reshape(B * T, C, H, W), pids.repeat_interleave(T)""",
        # people in turns
        """def fold(clips, pids):
    return clips.transpose(1, 2).flatten(0, 1), pids.repeat(clips.shape[2])""",
        # a person for each clip, not for each frame
        """def fold(clips, pids):
    return clips.transpose(1, 2).flatten(0, 1), pids""",
    ],
    ("04_tkp", "image-to-video"): [
        # videos as anchors
        """def image_to_video(i, v, image_pids, pids):
    d, same = torch.cdist(v, i), pids[:, None] == image_pids
    own, other = d.masked_fill(~same, 0).amax(1), d.masked_fill(same, torch.inf).amin(1)
    return (own - other + 0.3).relu().mean()""",
        # the nearest of the same person
        """def image_to_video(i, v, image_pids, pids):
    d, same = torch.cdist(i, v), image_pids[:, None] == pids
    own, other = d.masked_fill(~same, torch.inf).amin(1), d.masked_fill(same, torch.inf).amin(1)
    return (own - other + 0.3).relu().mean()""",
        # no margin
        """def image_to_video(i, v, image_pids, pids):
    d, same = torch.cdist(i, v), image_pids[:, None] == pids
    own, other = d.masked_fill(~same, 0).amax(1), d.masked_fill(same, torch.inf).amin(1)
    return (own - other).relu().mean()""",
        # easy anchors counted below 0
        """def image_to_video(i, v, image_pids, pids):
    d, same = torch.cdist(i, v), image_pids[:, None] == pids
    own, other = d.masked_fill(~same, 0).amax(1), d.masked_fill(same, torch.inf).amin(1)
    return (own - other + 0.3).mean()""",
        # squared distances
        """def image_to_video(i, v, image_pids, pids):
    d, same = torch.cdist(i, v) ** 2, image_pids[:, None] == pids
    own, other = d.masked_fill(~same, 0).amax(1), d.masked_fill(same, torch.inf).amin(1)
    return (own - other + 0.3).relu().mean()""",
    ],
    ("05_attributes", "sure"): [
        # the sum over the labels in place of the mean
        """def sure(p, sigma):
    return torch.exp((p * p.clamp(min=1e-6).log()).sum(1) / sigma**2)""",
        # divided by sigma, not by its square
        """def sure(p, sigma):
    return torch.exp((p * p.clamp(min=1e-6).log()).mean(1) / sigma)""",
        # the entropy with its usual sign: vague frames count most
        """def sure(p, sigma):
    return torch.exp(-(p * p.clamp(min=1e-6).log()).mean(1) / sigma**2)""",
        # nan where a probability is 0
        """def sure(p, sigma):
    return torch.exp((p * p.log()).mean(1) / sigma**2)""",
        # the entropy with both terms
        """def sure(p, sigma):
    q = 1 - p
    ent = (p * p.clamp(min=1e-6).log() + q * q.clamp(min=1e-6).log()).mean(1)
    return torch.exp(ent / sigma**2)""",
        # over the frames instead of the labels
        """def sure(p, sigma):
    ent = (p * p.clamp(min=1e-6).log()).mean(0)
    return torch.exp(ent / sigma**2).mean().expand(len(p))""",
    ],
    ("05_attributes", "combine"): [
        # all frames alike
        "def combine(vectors, conf, widths):\n    return vectors.mean(0)",
        # weights that do not sum to 1
        """def combine(vectors, conf, widths):
    *parts, free = vectors.split(widths, dim=1)
    return torch.cat([*[conf[:, n] @ part for n, part in enumerate(parts)], free.mean(0)])""",
        # normalised over the groups instead of the frames
        """def combine(vectors, conf, widths):
    *parts, free = vectors.split(widths, dim=1)
    w = conf / conf.sum(1, keepdim=True)
    return torch.cat([*[w[:, n] @ part for n, part in enumerate(parts)], free.mean(0)])""",
        # a softmax of the confidences
        """def combine(vectors, conf, widths):
    *parts, free = vectors.split(widths, dim=1)
    w = conf.softmax(0)
    return torch.cat([*[w[:, n] @ part for n, part in enumerate(parts)], free.mean(0)])""",
        # the free segment gets the last group's weights
        """def combine(vectors, conf, widths):
    w = conf / conf.sum(0)
    parts = vectors.split(widths, dim=1)
    return torch.cat([w[:, min(n, w.shape[1] - 1)] @ x for n, x in enumerate(parts)])""",
        # one weight a frame for all segments
        """def combine(vectors, conf, widths):
    w = conf.mean(1) / conf.mean(1).sum()
    *parts, free = vectors.split(widths, dim=1)
    return torch.cat([*[w @ part for part in parts], free.mean(0)])""",
        # the surest frame alone
        """def combine(vectors, conf, widths):
    *parts, free = vectors.split(widths, dim=1)
    best = conf.argmax(0)
    return torch.cat([*[part[best[n]] for n, part in enumerate(parts)], free.mean(0)])""",
    ],
    ("05_attributes", "rare"): [
        # no weights
        """def rare(p, y, r, s):
    return -(y * p.log() + (1 - y) * (1 - p).log()).mean()""",
        # common labels count more
        """def rare(p, y, r, s):
    yes, no = torch.exp(r / s**2), torch.exp((1 - r) / s**2)
    return -(yes * y * p.log() + no * (1 - y) * (1 - p).log()).mean()""",
        # s without its square
        """def rare(p, y, r, s):
    yes, no = torch.exp((1 - r) / s), torch.exp(r / s)
    return -(yes * y * p.log() + no * (1 - y) * (1 - p).log()).mean()""",
        # the sum over the labels
        """def rare(p, y, r, s):
    yes, no = torch.exp((1 - r) / s**2), torch.exp(r / s**2)
    return -(yes * y * p.log() + no * (1 - y) * (1 - p).log()).sum(1).mean()""",
        # only the 1s are weighted
        """def rare(p, y, r, s):
    yes = torch.exp((1 - r) / s**2)
    return -(yes * y * p.log() + (1 - y) * (1 - p).log()).mean()""",
        # the sign
        """def rare(p, y, r, s):
    yes, no = torch.exp((1 - r) / s**2), torch.exp(r / s**2)
    return (yes * y * p.log() + no * (1 - y) * (1 - p).log()).mean()""",
    ],
    ("05_attributes", "apart"): [
        # the distance of the means
        "def apart(a, b, width):\n    return (a.mean(0) - b.mean(0)).square().sum()",
        # the distance in place of its square
        """def apart(a, b, width):
    def k(x, y):
        return torch.exp(-torch.cdist(x, y) / (2 * width**2)).mean()

    return k(a, a) + k(b, b) - 2 * k(a, b)""",
        # the pairs across count once
        """def apart(a, b, width):
    def k(x, y):
        return torch.exp(-torch.cdist(x, y) ** 2 / (2 * width**2)).mean()

    return k(a, a) + k(b, b) - k(a, b)""",
        # a vector with itself left out
        """def apart(a, b, width):
    def k(x, y):
        return torch.exp(-torch.cdist(x, y) ** 2 / (2 * width**2))

    n, m = len(a), len(b)
    inside = (k(a, a).sum() - n) / (n * (n - 1)) + (k(b, b).sum() - m) / (m * (m - 1))
    return inside - 2 * k(a, b).mean()""",
        # sums in place of means
        """def apart(a, b, width):
    def k(x, y):
        return torch.exp(-torch.cdist(x, y) ** 2 / (2 * width**2)).sum()

    return k(a, a) + k(b, b) - 2 * k(a, b)""",
        # the width without its factor of 2
        """def apart(a, b, width):
    def k(x, y):
        return torch.exp(-torch.cdist(x, y) ** 2 / width**2).mean()

    return k(a, a) + k(b, b) - 2 * k(a, b)""",
    ],
    ("03_gltr", "response"): [
        # taps of the wrong order: -1 looks ahead
        """def response(weight, r, frames):
    T = len(frames)
    padded = F.pad(frames, (0, 0, r, r))
    return sum(padded[(2 - k) * r : (2 - k) * r + T] @ weight[:, :, k].T for k in range(3))""",
        # as if r were 1
        """def response(weight, r, frames):
    T = len(frames)
    padded = F.pad(frames, (0, 0, 1, 1))
    return sum(padded[k : k + T] @ weight[:, :, k].T for k in range(3))""",
        # the ends wrap round
        """def response(weight, r, frames):
    shifted = [frames.roll((1 - k) * r, 0) for k in range(3)]
    return sum(shifted[k] @ weight[:, :, k].T for k in range(3))""",
    ],
    ("03_gltr", "mean-response"): [
        # the ends do not matter
        """def mean_response(weight, r, frames):
    return weight.sum(2) @ frames.mean(0)""",
        # first and last exchanged
        """def mean_response(weight, r, frames):
    S = frames.sum(0)
    before, after = S - frames[:r].sum(0), S - frames[-r:].sum(0)
    return (weight[..., 0] @ before + weight[..., 1] @ S + weight[..., 2] @ after) / len(frames)""",
        # one frame at each end, whatever r is
        """def mean_response(weight, r, frames):
    S = frames.sum(0)
    y = weight[..., 0] @ (S - frames[-1]) + weight[..., 1] @ S + weight[..., 2] @ (S - frames[0])
    return y / len(frames)""",
    ],
    ("03_gltr", "shared"): [
        # every frame gives, not takes, a share of 1
        """def shared(x, theta, phi, g, out):
    A = ((theta @ x).T @ (phi @ x)).softmax(dim=0)
    return x + out @ (g @ x) @ A.T""",
        # the residual is forgotten
        """def shared(x, theta, phi, g, out):
    A = ((theta @ x).T @ (phi @ x)).softmax(dim=1)
    return out @ (g @ x) @ A.T""",
        # divided by the root of the size
        """def shared(x, theta, phi, g, out):
    A = ((theta @ x).T @ (phi @ x) / len(theta) ** 0.5).softmax(dim=1)
    return x + out @ (g @ x) @ A.T""",
        # A is used transposed
        """def shared(x, theta, phi, g, out):
    A = ((theta @ x).T @ (phi @ x)).softmax(dim=1)
    return x + out @ (g @ x) @ A""",
    ],
    ("03_gltr", "pooled"): [
        # the mean is blind
        """def pooled(y):
    return y.mean(dim=2)""",
        # a step that comes too late
        """def pooled(y):
    return y.mean(dim=2).relu()""",
        # moments are not treated alike
        """def pooled(y):
    return (y * torch.arange(y.shape[2])).mean(dim=2)""",
        # one moment
        """def pooled(y):
    return y[:, :, y.shape[2] // 2]""",
    ],
    ("07_related", "left-over"): [
        # frame 0 gets the weight of any other
        """def left_over(z, bad, T):
    return [z * (1 - z) ** (t - bad) if t >= bad else 0.0 for t in range(T)]""",
        # the roles of z and 1 - z exchanged
        """def left_over(z, bad, T):
    first = 1.0 if bad == 0 else 1 - z
    return [first * z ** (t - bad) if t >= bad else 0.0 for t in range(T)]""",
        # always halved
        """def left_over(z, bad, T):
    return [0.5 ** (t - bad + 1) if t >= bad else 0.0 for t in range(T)]""",
    ],
    ("07_related", "spoiled"): [
        # the norm in place of the energy
        """def spoiled(f, N, K):
    share = f / (f + K - 1)
    return share / (share + (N - 1) / K)""",
        # not normalised in each frame
        """def spoiled(f, N, K):
    return f**2 / (f**2 + N - 1)""",
        # frames and stripes exchanged
        """def spoiled(f, N, K):
    share = f**2 / (f**2 + N - 1)
    return share / (share + (K - 1) / N)""",
    ],
    ("07_related", "all-pairs"): [
        # an array of n x m x d
        """def all_pairs(p, g, v, c):
    return (v * (p[:, None] - g[None]) ** 2).sum(2) + c""",
        # the scales on the product alone
        """def all_pairs(p, g, v, c):
    return (p**2).sum(1)[:, None] + (g**2).sum(1) - 2 * (p * v) @ g.T + c""",
        # the mixed term once
        """def all_pairs(p, g, v, c):
    return (p**2 @ v)[:, None] + g**2 @ v - (p * v) @ g.T + c""",
        # the scales squared away: they may be negative
        """def all_pairs(p, g, v, c):
    v = abs(v)
    return (p**2 @ v)[:, None] + g**2 @ v - 2 * (p * v) @ g.T + c""",
    ],
    ("06_vrstc", "scores"): [
        # the mean over the features, not over the frames
        """def cosine_with_mean(features):
    mean = features.mean(dim=1, keepdim=True)
    return F.cosine_similarity(features, mean.expand_as(features), dim=1)""",
        # not divided by the lengths
        """def cosine_with_mean(features):
    return features @ features.mean(dim=0)""",
        # compared with the first frame
        """def cosine_with_mean(features):
    return F.cosine_similarity(features, features[:1].expand_as(features), dim=1)""",
    ],
    ("06_vrstc", "neighbours"): [
        # a frame is its own neighbour
        """def neighbours_of(t, clean):
    left = [s for s in range(t + 1) if clean[s]]
    right = [s for s in range(t, len(clean)) if clean[s]]
    before = left[-1] if left else (right[0] if right else -1)
    return before, right[0] if right else before""",
        # the first clean frame instead of the nearest
        """def neighbours_of(t, clean):
    left = [s for s in range(t) if clean[s]]
    right = [s for s in range(t + 1, len(clean)) if clean[s]]
    before = left[0] if left else (right[0] if right else -1)
    return before, right[0] if right else before""",
        # one side does not stand in for the other
        """def neighbours_of(t, clean):
    left = [s for s in range(t) if clean[s]]
    right = [s for s in range(t + 1, len(clean)) if clean[s]]
    return left[-1] if left else -1, right[0] if right else -1""",
    ],
    ("06_vrstc", "attention"): [
        # no softmax: the best one only
        """def attend_one(patch, patches, scale):
    return patches[F.cosine_similarity(patch[None], patches, dim=1).argmax()]""",
        # dot products in place of cosines
        """def attend_one(patch, patches, scale):
    return (scale * patches @ patch).softmax(dim=0) @ patches""",
        # the scale is forgotten
        """def attend_one(patch, patches, scale):
    return F.cosine_similarity(patch[None], patches, dim=1).softmax(dim=0) @ patches""",
    ],
    ("06_vrstc", "masked"): [
        # divided by all values
        """def masked_difference(painted, x, mask):
    return ((painted - x).abs() * mask).mean()""",
        # the three channels are forgotten
        """def masked_difference(painted, x, mask):
    return ((painted - x).abs() * mask).sum() / mask.sum()""",
        # each frame by its own mask, then the mean
        """def masked_difference(painted, x, mask):
    d = ((painted - x).abs() * mask).flatten(1).sum(1) / (3 * mask.flatten(1).sum(1))
    return d.mean()""",
    ],
    ("08_compare", "margins"): [
        # the best and the worst single rival
        "def margins(ours, rivals, count):\n    return ours - max(rivals), ours - min(rivals)",
        # the wrong way round
        """def margins(ours, rivals, count):
    ranked = sorted(rivals)
    return ours - ranked[count - 1], ours - ranked[-1]""",
        # the count best ones only
        """def margins(ours, rivals, count):
    best = sorted(rivals)[-count:]
    return ours - best[-1], ours - best[0]""",
    ],
    ("08_compare", "exact"): [
        # one side only
        """def exact_test(sums):
    n = len(sums)
    signs = 1 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
    return float((signs @ sums >= sums.sum() - 1e-12).mean())""",
        # the observed pattern does not count
        """def exact_test(sums):
    n = len(sums)
    signs = 1 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
    return float((np.abs(signs @ sums) > abs(sums.sum()) + 1e-12).mean())""",
        # the share of units with the same sign
        "def exact_test(sums):\n    return float((np.sign(sums) == np.sign(sums.sum())).mean())",
    ],
    ("08_compare", "adjust"): [
        # Bonferroni
        "def adjust(p):\n    return np.minimum(p * len(p), 1)",
        # no minimum over those behind
        """def adjust(p):
    order = np.argsort(p)
    found = np.empty(len(p))
    found[order] = np.minimum(p[order] * len(p) / np.arange(1, len(p) + 1), 1)
    return found""",
        # in the order of size, not in the given one
        """def adjust(p):
    raised = np.sort(p) * len(p) / np.arange(1, len(p) + 1)
    return np.minimum.accumulate(raised[::-1])[::-1].clip(max=1)""",
    ],
    ("09_prototype", "trust"): [
        # the ratio of the agreements
        """def trust_ratio(agree, beta):
    return agree.amax(1) / agree.amin(1)""",
        # of all clips together
        """def trust_ratio(agree, beta):
    return (beta * (agree.amax() - agree.amin())).exp().expand(len(agree))""",
        # beta is forgotten
        """def trust_ratio(agree, beta):
    return (agree.amax(1) - agree.amin(1)).exp()""",
    ],
    ("09_prototype", "possible"): [
        # the one direction only
        """def possible(asked, found, fastest, slowest):
    gap = found.mean(1)[None] - asked.mean(1)[:, None]
    return (gap >= fastest) & (gap <= slowest)""",
        # from the end of one to the start of the other
        """def possible(asked, found, fastest, slowest):
    gap = np.abs(found[:, 0][None] - asked[:, 1][:, None])
    return (gap >= fastest) & (gap <= slowest)""",
        # no lower end
        """def possible(asked, found, fastest, slowest):
    return np.abs(asked.mean(1)[:, None] - found.mean(1)[None]) <= slowest""",
        # rows and columns changed
        """def possible(asked, found, fastest, slowest):
    gap = np.abs(found.mean(1)[:, None] - asked.mean(1)[None])
    return (gap >= fastest) & (gap <= slowest)""",
    ],
    ("09_prototype", "control"): [
        # reversed: the rhythm is the same
        "def control(frames, seed):\n    return frames[::-1].copy()",
        # begins elsewhere: another phase, the same rhythm
        "def control(frames, seed):\n    return np.roll(frames, seed + 1, axis=0)",
        # other frames: drawn with replacement
        """def control(frames, seed):
    return frames[np.random.default_rng(seed).integers(len(frames), size=len(frames))]""",
        # every channel in an order of its own: no frame is left
        """def control(frames, seed):
    return np.random.default_rng(seed).permuted(frames, axis=0)""",
        # the seed is forgotten
        """def control(frames, seed):
    return frames[np.random.default_rng(0).permutation(len(frames))]""",
        # changes the tracklet itself
        """def control(frames, seed):
    np.random.default_rng(seed).shuffle(frames)
    return frames""",
    ],
    ("09_prototype", "overlap"): [
        # divided by the smaller box
        """def overlap_of(a, b):
    wide = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    high = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    return wide * high / min((x[2] - x[0]) * (x[3] - x[1]) for x in (a, b))""",
        # boxes apart in both directions: minus times minus
        """def overlap_of(a, b):
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    areas = [(x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)]
    return wide * high / (sum(areas) - wide * high)""",
        # the shared part is counted twice
        """def overlap_of(a, b):
    wide = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    high = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    return wide * high / sum((x[2] - x[0]) * (x[3] - x[1]) for x in (a, b))""",
    ],
    ("09_prototype", "merge"): [
        # the new piece in front: ties in the wrong order
        """def merge(best, best_rows, distances, first, k):
    rows = torch.arange(first, first + distances.shape[1]).expand(distances.shape)
    values, order = torch.cat([distances, best], 1).sort(dim=1, stable=True)
    return values[:, :k], torch.cat([rows, best_rows], 1).gather(1, order)[:, :k]""",
        # rows counted from 0 in every piece
        """def merge(best, best_rows, distances, first, k):
    rows = torch.arange(distances.shape[1]).expand(distances.shape)
    values, order = torch.cat([best, distances], 1).sort(dim=1, stable=True)
    return values[:, :k], torch.cat([best_rows, rows], 1).gather(1, order)[:, :k]""",
        # what was best before is forgotten
        """def merge(best, best_rows, distances, first, k):
    values, order = distances.sort(dim=1, stable=True)
    return values[:, :k], (order + first)[:, :k]""",
        # the farthest
        """def merge(best, best_rows, distances, first, k):
    rows = torch.arange(first, first + distances.shape[1]).expand(distances.shape)
    values, order = torch.cat([best, distances], 1).sort(dim=1, stable=True, descending=True)
    return values[:, :k], torch.cat([best_rows, rows], 1).gather(1, order)[:, :k]""",
    ],
}
