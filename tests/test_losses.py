"""The losses against plain loops, golden numbers and limit cases."""

import math

import pytest
import torch

from vreid_course.losses import accuracy, batch_hard_triplet, smoothed_cross_entropy


def loop_triplet(anchors, pids, others, other_pids, margin):
    """The definition, one pair at a time."""
    total = 0.0
    for a, pid in zip(anchors, pids, strict=True):
        d = [((a - b) ** 2).sum().sqrt().item() for b in others]
        same = [x for x, p in zip(d, other_pids, strict=True) if p == pid]
        rest = [x for x, p in zip(d, other_pids, strict=True) if p != pid]
        total += max(0.0, max(same) - min(rest) + margin)
    return total / len(anchors)


@pytest.mark.parametrize("seed", range(5))
def test_triplet_is_the_loop(seed):
    generator = torch.Generator().manual_seed(seed)
    B, M, D = 8 + seed, 30, 5
    anchors = torch.randn(B, D, generator=generator, dtype=torch.float64).float()
    others = torch.randn(M, D, generator=generator)
    pids, other_pids = torch.arange(B) % 3, torch.arange(M) % 3
    expected = loop_triplet(anchors, pids, others, other_pids, 0.7)
    assert batch_hard_triplet(anchors, pids, 0.7, others, other_pids).item() == pytest.approx(
        expected, rel=1e-5
    )
    expected = loop_triplet(anchors, pids, anchors, pids, 0.3)
    assert batch_hard_triplet(anchors, pids).item() == pytest.approx(expected, rel=1e-5)


def test_golden_numbers():
    """The numbers that the COSAM authors' losses give for these sines."""
    features = torch.sin(0.3 * torch.arange(32.0)).view(8, 4)
    pids = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    assert batch_hard_triplet(features, pids).item() == pytest.approx(2.70083670, abs=1e-5)
    logits = torch.sin(0.9 * torch.arange(20.0)).view(4, 5)
    labels = torch.arange(4)
    assert smoothed_cross_entropy(logits, labels).item() == pytest.approx(2.33941085, abs=1e-6)
    assert smoothed_cross_entropy(logits, labels, 0.0).item() == pytest.approx(2.39869938, abs=1e-6)


def test_limit_cases():
    far = torch.tensor([[0.0, 0.0], [0.0, 1.0], [9.0, 0.0], [9.0, 1.0]], requires_grad=True)
    pids = torch.tensor([3, 3, 5, 5])
    assert batch_hard_triplet(far, pids, margin=0.3) == 0
    same = torch.zeros(4, 2, requires_grad=True)
    loss = batch_hard_triplet(same, pids, margin=0.3)
    loss.backward()
    assert loss.item() == pytest.approx(0.3) and same.grad.isfinite().all()
    assert smoothed_cross_entropy(torch.zeros(3, 7), torch.arange(3)).item() == pytest.approx(
        math.log(7)
    )
    assert accuracy(torch.eye(4), torch.tensor([0, 1, 2, 2])).item() == 0.75


def test_half_precision_features_are_compared_in_float32():
    features = torch.randn(8, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    pids = torch.arange(8) // 2
    assert batch_hard_triplet(features, pids) == batch_hard_triplet(features.float(), pids)


@pytest.mark.parametrize("other_pids", [[1, 1, 1], [2, 3, 2]])
def test_no_triplet_is_an_error(other_pids):
    with pytest.raises(ValueError, match=r"no triplet for some anchor.*\[1\].*sample"):
        batch_hard_triplet(
            torch.zeros(2, 4),
            torch.tensor([1, 1]),
            others=torch.zeros(3, 4),
            other_pids=torch.tensor(other_pids),
        )
