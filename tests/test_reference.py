"""The course's methods against the numbers of other people's implementations, one test a file.

Each `.npz` of the folder that VREID_REFERENCE names (default: tests/reference) holds inputs,
weights and outputs of a published implementation. COMPARISONS says how a file is compared; a file
that nothing there matches fails. All sizes are read from the arrays, so that another set of the
same layout works.
"""

import os
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from vreid_course import lessons, losses, metrics

FOLDER = Path(os.environ.get("VREID_REFERENCE", Path(__file__).parent / "reference"))


def close(actual, expected, relative=1e-4):
    """Equal to `relative`, of each number or of the largest in the array."""
    expected = np.asarray(expected)
    np.testing.assert_allclose(
        actual, expected, rtol=relative, atol=relative * np.abs(expected).max(initial=0)
    )


def compare_metrics(arrays):
    """CMC, mAP and the number of scored queries: queries in or out, step or trapezoid AP."""
    labels = ("features", "pids", "camids")
    sides = [[arrays[f"{side}_{what}"] for what in labels] for side in ("query", "gallery")]
    for protocol, merge in (("query_excluded", False), ("query_included", True)):
        if f"{protocol}/mAP" in arrays:
            result = metrics.evaluate(*sides[0], *sides[1], merge_queries=merge)
            assert result.scored == arrays[f"{protocol}/valid_queries"]
            cmc = arrays[f"{protocol}/cmc"]
            close(result.cmc[: len(cmc)], cmc[: len(result.cmc)])
            close(result.mAP, arrays[f"{protocol}/mAP"])
    if "matlab/mAP" in arrays:
        rows = arrays["matlab/query_rows"]
        result = metrics.evaluate(*sides[0], *sides[1], merge_queries=True, ap="trapezoid")
        assert result.first_rank[rows].all(), "a query that was scored there is not scored here"
        cmc = [(result.first_rank[rows] <= k + 1).mean() for k in range(len(arrays["matlab/cmc"]))]
        close(cmc, arrays["matlab/cmc"])
        close(result.ap[rows].mean(), arrays["matlab/mAP"])
    assert {"matlab/mAP", "query_included/mAP"} & set(arrays), "no score in the file"


def compare_baseline_losses(arrays):
    """Batch-hard triplet, margin 0.3, and cross entropy smoothed by 0.1, with their gradients."""
    pids = torch.from_numpy(arrays["pids"])
    features, logits = (torch.tensor(arrays[k], requires_grad=True) for k in ("features", "logits"))
    triplet = losses.batch_hard_triplet(features, pids, margin=0.3)
    cross_entropy = losses.smoothed_cross_entropy(logits, pids, epsilon=0.1)
    (triplet + cross_entropy).backward()
    close(triplet.item(), arrays["triplet"])
    close(cross_entropy.item(), arrays["cross_entropy_smoothed"])
    close(features.grad, arrays["features_grad"])
    close(logits.grad, arrays["logits_grad"])


def load_weights(arrays, module):
    """Load `weight/...` by the lesson's map of names, strictly; counters are not in the file."""
    weights = {k[7:]: torch.from_numpy(v) for k, v in arrays.items() if k.startswith("weight/")}
    counters = {k[:-12] + "num_batches_tracked" for k in weights if k.endswith("running_mean")}
    weights |= {k: torch.tensor(0) for k in counters}
    lessons.load("02_cosam").load_official(module, weights)
    return module


def compare_cosam(arrays, training):
    """Output, both masks and the gradient at the input."""
    x = torch.tensor(arrays["input"], requires_grad=True)
    module = lessons.load("02_cosam").COSAM(x.shape[1], int(arrays["frames"]), x.shape[2:])
    load_weights(arrays, module).train(training)
    output, gate, mask = module(x)
    output.backward(torch.from_numpy(arrays["output_grad"]))
    close(output.detach(), arrays["output"])
    close(gate.detach(), arrays["channel_mask"])
    close(mask.detach(), arrays["spatial_mask"])
    close(x.grad, arrays["input_grad"])


def compare_temporal_attention(arrays):
    """The attention pooling head."""
    clips, frames = int(arrays["clips"]), int(arrays["frames"])
    maps = torch.from_numpy(arrays["input"]).unflatten(0, (clips, frames))
    pool = load_weights(arrays, lessons.load("02_cosam").TemporalAttention(*maps.shape[2:]))
    close(pool(maps).detach(), arrays["output"])


COMPARISONS = {  # pattern of the file's name without .npz: comparison, given its arrays
    "metrics_*": compare_metrics,
    "baseline_losses": compare_baseline_losses,
    "cosam_eval": partial(compare_cosam, training=False),
    "cosam_train": partial(compare_cosam, training=True),
    "temporal_attention": compare_temporal_attention,
}


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.npz")), ids=lambda path: path.name)
def test_reference(path):
    found = [c for pattern, c in COMPARISONS.items() if fnmatchcase(path.stem, pattern)]
    assert found, f"{path.name}: no comparison in COMPARISONS of tests/test_reference.py"
    with np.load(path) as arrays:
        found[0](dict(arrays))


def test_there_are_references():
    assert list(FOLDER.glob("*.npz")), f"no .npz file in {FOLDER}: does VREID_REFERENCE name it?"
