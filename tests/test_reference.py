"""The course's methods against the numbers of other people's implementations, one test a file.

Each `.npz` of the folder that VREID_REFERENCE names (default: tests/reference) holds inputs,
weights and outputs of a published implementation. COMPARISONS says how a file is compared; a file
that nothing there matches fails. All sizes are read from the arrays, so that another set of the
same layout works.
"""

import os
import re
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

import cosam_official
import gltr_official
import numpy as np
import pytest
import torch

from vreid_course import lessons, losses, metrics
from vreid_course.non_local import NonLocal

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
    """Load `weight/...` by the map of names, strictly; counters are not in the file."""
    weights = {k[7:]: torch.from_numpy(v) for k, v in arrays.items() if k.startswith("weight/")}
    counters = {k[:-12] + "num_batches_tracked" for k in weights if k.endswith("running_mean")}
    weights |= {k: torch.tensor(0) for k in counters}
    cosam_official.load_official(module, weights)
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


def compare_non_local(arrays):
    """The non-local block, with the keys halved in height and width or not."""
    x = torch.from_numpy(arrays["input"]).transpose(1, 2)  # (B, T, C, H, W)
    module = NonLocal(x.shape[2], "weight/g.0.weight" in arrays, x.shape[1]).eval()
    state = {k[7:]: torch.from_numpy(v) for k, v in arrays.items() if k.startswith("weight/")}
    state["W.1.num_batches_tracked"] = torch.tensor(0)  # a counter, not in the file
    module.load_state_dict(lessons.load("04_tkp").translated(state))
    output = module(x.flatten(0, 1)).unflatten(0, x.shape[:2]).transpose(1, 2)
    close(output.detach(), arrays["output"])


def compare_tkp_losses(arrays):
    """Six losses, their sum, and its gradients; the teacher's frame features get none."""
    kinds = ("image", "frame", "video")
    i, f, v = (torch.tensor(arrays[f"{k}_features"], requires_grad=True) for k in kinds)
    pids = torch.from_numpy(arrays["pids"])
    clips = [x.unflatten(0, (len(pids), -1)) for x in (i, f)]  # (B, T, D)
    assert np.array_equal(arrays["image_pids"], np.repeat(pids, clips[0].shape[1]))
    parts = lessons.load("04_tkp").metric_losses(*clips, v, pids)
    assert len(parts) == 6
    for name, value in parts.items():
        name = {"TKP-F": "tkp_feature", "TKP-D": "tkp_distance"}.get(name, name)
        np.testing.assert_allclose(value.item(), arrays[name], rtol=1e-4, atol=1e-5)
    total = sum(parts.values())
    close(total.item(), arrays["total"])
    grads = torch.autograd.grad(total, (i, v, f), allow_unused=True)
    for grad, name in zip(grads, ("image", "video", "frame"), strict=True):
        expected = arrays[f"{name}_grad"]
        close(np.zeros_like(expected) if grad is None else grad, expected)
    assert grads[2] is None and not arrays["frame_grad"].any()


def compare_gltr(arrays):
    """Pyramid, self-attention, feature and logits of the temporal head."""
    lesson, weights = lessons.load("03_gltr"), {k: v for k, v in arrays.items() if "weight/" in k}
    weights = {k[7:]: torch.from_numpy(v) for k, v in weights.items()}
    counters = {k[:-12] + "num_batches_tracked" for k in weights if k.endswith("running_mean")}
    weights |= {k: torch.tensor(0) for k in counters}
    filters, _, _, d = weights["feat1.weight"].shape
    rates = range(1, 1 + sum(bool(re.match(r"feat\d", k)) for k in weights))
    inner = weights["Nonlocal_block0.theta.weight"].shape[0]
    share = partial(lesson.TSA, inner=inner)
    make = partial(lesson.Head, dilations=rates, filters=filters, share=share)
    model = lesson.Temporal(len(weights["classifier.weight"]), 1, d, make).eval()
    weights |= {f"feat.{k}": v for k, v in model.reduce.state_dict().items()}  # not in the file
    gltr_official.load_official(model, weights)
    with torch.no_grad():
        dtp = model.head.local(torch.from_numpy(arrays["input"]))
        tsa = model.head.share(dtp)
        close(dtp, arrays["dtp"])
        close(tsa, arrays["tsa"])
        close(tsa.mean(2), arrays["feature"])
        close(model.classifier(model.neck(tsa.mean(2)).relu()), arrays["logits"])


def weights_of(arrays):
    """The `weight/...` of a file, as tensors."""
    return {k[7:]: torch.from_numpy(v) for k, v in arrays.items() if k.startswith("weight/")}


def compare_m3d(arrays):
    """The residual block with its multi-scale temporal layer, with and without stride."""
    x = torch.from_numpy(arrays["input"]).unflatten(0, (int(arrays["clips"]), -1))
    block = lessons.load("07_related").load_m3d(weights_of(arrays), int(arrays["stride"]))
    output = block(x.transpose(1, 2)).transpose(1, 2)  # (B, T, C, H, W)
    close(output.flatten(0, 1).detach(), arrays["output"])


def compare_stmp(arrays):
    """Refining unit and integration: video feature and parts."""
    model = lessons.load("07_related").load_stmp(weights_of(arrays))
    x = torch.from_numpy(arrays["input"])
    close(model(x).detach(), arrays["video_feature"])
    close(model.parts(model.refine(x)).detach(), arrays["part_features"])


def compare_snippet(arrays):
    """Self pooling of the probe, cross pooling of the gallery by the probe's query."""
    pool, cross = lessons.load("07_related").load_snippet(weights_of(arrays))
    kinds = ("probe_base", "probe_value", "gallery_base", "gallery_value")
    p_base, p_value, g_base, g_value = (torch.from_numpy(arrays[k]) for k in kinds)
    pooled, query = pool(p_base, p_value)
    close(pooled.detach(), arrays["pooled_probe"])
    close(query.detach(), arrays["query"])
    close(cross(query, g_base, g_value).detach(), arrays["pooled_gallery"])


COMPARISONS = {  # pattern of the file's name without .npz: comparison, given its arrays
    "metrics_*": compare_metrics,
    "baseline_losses": compare_baseline_losses,
    "cosam_eval": partial(compare_cosam, training=False),
    "cosam_train": partial(compare_cosam, training=True),
    "temporal_attention": compare_temporal_attention,
    "gltr_eval": compare_gltr,
    "nonlocal3d_*": compare_non_local,
    "tkp_losses": compare_tkp_losses,
    "m3d_*": compare_m3d,
    "stmp_eval": compare_stmp,
    "snippet_eval": compare_snippet,
}


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.npz")), ids=lambda path: path.name)
def test_reference(path):
    found = [c for pattern, c in COMPARISONS.items() if fnmatchcase(path.stem, pattern)]
    assert found, f"{path.name}: no comparison in COMPARISONS of tests/test_reference.py"
    with np.load(path) as arrays:
        found[0](dict(arrays))


def test_there_are_references():
    assert list(FOLDER.glob("*.npz")), f"no .npz file in {FOLDER}: does VREID_REFERENCE name it?"
