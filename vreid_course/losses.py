"""The two losses that nearly every method trains with."""

import torch
import torch.nn.functional as F
from torch import Tensor


def batch_hard_triplet(
    anchors: Tensor,
    pids: Tensor,
    margin: float = 0.3,
    others: Tensor | None = None,
    other_pids: Tensor | None = None,
) -> Tensor:
    """Triplet loss with the hardest positive and the hardest negative of the batch.

    Mean over anchors of max(0, d(a, farthest of a's identity) - d(a, nearest other) + margin),
    with Euclidean d (Hermans et al., "In Defense of the Triplet Loss", 2017).

    anchors: (B, D) float; pids: (B,) int64. Positives and negatives are taken from `others`
    (M, D) with `other_pids` (M,), by default from the anchors; an anchor may then be its own
    positive, at distance 0. Several processes mine each its own share of the batch.
    Returns a scalar. An anchor without a positive or a negative is a ValueError on a CPU; on other
    devices, where to look would be to wait, the loss is then nan.
    """
    if others is None:
        others, other_pids = anchors, pids
    distances = torch.cdist(anchors.float(), others.float())  # (B, M)
    same = pids[:, None] == other_pids[None, :]  # (B, M)
    usable = same.any(1) & ~same.all(1)  # (B,)
    if usable.device.type == "cpu" and not usable.all():
        found = pids.unique().tolist()
        raise ValueError(f"no triplet for some anchor, identities {found}: sample two or more")
    hardest_positive = distances.masked_fill(~same, -torch.inf).amax(1)
    hardest_negative = distances.masked_fill(same, torch.inf).amin(1)
    terms = F.relu(hardest_positive - hardest_negative + margin)
    return terms.masked_fill(~usable, torch.nan).mean()


def smoothed_cross_entropy(logits: Tensor, labels: Tensor, epsilon: float = 0.1) -> Tensor:
    """Cross entropy against (1 - epsilon) * one-hot + epsilon / classes (Szegedy et al., 2016).

    logits: (B, classes) float; labels: (B,) int64 in 0..classes-1. Returns the mean, a scalar.
    """
    return F.cross_entropy(logits, labels, label_smoothing=epsilon)


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Share of rows of logits (B, classes) whose largest entry is at labels (B,); a scalar."""
    return (logits.argmax(dim=1) == labels).float().mean()
