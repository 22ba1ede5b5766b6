"""Lesson 02, COSAM: the numbers of its authors, fast beside slow, names, limits and errors."""

import re
from functools import partial

import numpy as np
import pytest
import torch
import torchvision
from cosam_official import load_official

from vreid_course import lessons
from vreid_course.nets import resnet
from vreid_course.scales import scale

cosam = lessons.load("02_cosam")


def fill(module):
    """Parameter k becomes 0.3 * sin(0.7 * i + k) over its elements i, in float64."""
    module.double()
    for k, parameter in enumerate(module.parameters()):
        i = torch.arange(parameter.numel(), dtype=torch.float64)
        parameter.data = (0.3 * torch.sin(0.7 * i + k)).view(parameter.shape)
    return module


def wave(*shape):
    """Element i is sin(0.3 * i)."""
    return torch.sin(0.3 * torch.arange(np.prod(shape), dtype=torch.float64)).view(shape)


def near(actual, expected, places=1e-8):
    actual = actual.detach().flatten() if isinstance(actual, torch.Tensor) else actual
    np.testing.assert_allclose(actual, expected, rtol=0, atol=places)


def test_golden_numbers_in_evaluation():
    out, gate, mask = fill(cosam.COSAM(8, T=3, size=(4, 2))).eval()(wave(6, 8, 4, 2))
    near(out.sum(), 10.60204659)
    near(out.abs().sum(), 249.42438246)
    near(out[0, 1, 0, 0], 0.60724864)
    near(out[5, 7, 3, 1], 1.26443789)
    expected = ".66908082 .66881989 .66870608 .66873067 .66888399 .66915756 .66954251 .67000954"
    near(mask[0], [float(x) for x in expected.split()])
    near(gate[0, :4], [0.86439144, 0.34365040, 0.06320738, 0.04767964])
    near(gate[3, :4], [0.88045277, 0.44398595, 0.09520121, 0.05647714])


def test_golden_numbers_in_training():
    out, _, mask = fill(cosam.COSAM(8, T=3, size=(4, 2))).train()(wave(6, 8, 4, 2))
    near(out.sum(), 11.28121470)
    near(out[5, 7, 3, 1], 1.63246921)
    near(mask[0].flatten()[:2], [0.73893094, 0.66115162])


def test_golden_numbers_of_the_variant_without_skip():
    module = fill(cosam.COSAM(8, T=3, size=(4, 2), residual=False)).eval()
    near(module(wave(6, 8, 4, 2))[0].sum(), 7.55005767)


def test_golden_numbers_of_the_pools():
    maps = wave(6, 8, 8, 4).unflatten(0, (2, 3))
    attention = fill(cosam.TemporalAttention(8, 8, 4))(maps)
    near(attention[0, :4], [0.04415003, -0.02871971, 0.01240987, 0.00428002])
    near(attention.sum(), 0.06611520)
    rnn = fill(cosam.TemporalRnn(8, 8, 4))(maps)
    near(rnn[0, :4], [0.06303005, 0.08067910, 0.32168395, 0.49070835])
    near(rnn.sum(), 203.35569798, 1e-7)


def slow_mask(module, x):
    """The mask by loops over frames and pixels, from the definition."""
    B, T, (H, W) = len(x) // module.T, module.T, module.size
    r = module.reduce(x).unflatten(0, (B, T)).flatten(3)  # (B, T, D, Q)
    costs = []
    for b in range(B):
        for t in range(T):
            rows = []
            for s in (s for s in range(T) if s != t):
                for q in range(H * W):
                    a, c = r[b, t], r[b, s, :, q]
                    za = (a - a.mean(0)) / (a.std(0) + 1e-4)
                    zc = (c - c.mean()) / (c.std() + 1e-4)
                    rows.append((za * zc[:, None]).mean(0))
            costs.append(torch.stack(rows).view(-1, H, W))
    return torch.sigmoid(module.summary(torch.stack(costs)))


@pytest.mark.parametrize("summary", [cosam.two_layers, cosam.one_layer])
@pytest.mark.parametrize(("clips", "T", "size"), [(2, 2, (3, 2)), (1, 3, (2, 2)), (3, 5, (2, 1))])
def test_mask_equals_plain_loops(clips, T, size, summary):
    torch.manual_seed(0)
    module = cosam.SpatialMask(6, T, size, summary).double()
    x = torch.randn(clips * T, 6, *size, dtype=torch.float64, requires_grad=True)
    fast, slow = module(x), slow_mask(module, x)
    torch.testing.assert_close(fast, slow)
    weight = torch.randn_like(fast)
    grads = [torch.autograd.grad((m * weight).sum(), x)[0] for m in (fast, slow)]
    torch.testing.assert_close(*grads)


def test_cost_volume_and_its_convolution_agree():
    torch.manual_seed(0)
    z = cosam.standardise(torch.randn(2, 4, 6, 16, dtype=torch.float64))
    conv = torch.nn.Conv2d(18, 5, 1).double()
    expected = conv(cosam.cost_volume(z).flatten(0, 1)[..., None])[..., 0].unflatten(0, (2, 4))
    torch.testing.assert_close(cosam.convolve_cost(z, conv), expected)


def test_constant_descriptors_give_cost_zero_and_finite_gradients():
    module = cosam.COSAM(8, 2, (2, 2))
    x = torch.zeros(4, 8, 2, 2, requires_grad=True)
    module(x)[0].sum().backward()
    assert torch.isfinite(x.grad).all()
    assert all(torch.isfinite(p.grad).all() for p in module.parameters())
    assert cosam.cost_volume(cosam.standardise(torch.ones(1, 2, 3, 8))).abs().max() == 0


def test_equal_frames_get_equal_masks_and_order_matters():
    torch.manual_seed(0)
    module = cosam.COSAM(16, 3, (4, 2)).eval()
    frame = torch.rand(1, 16, 4, 2)
    _, _, mask = module(frame.repeat(3, 1, 1, 1))
    torch.testing.assert_close(mask[0], mask[1])
    torch.testing.assert_close(mask[0], mask[2])
    x = torch.rand(3, 16, 4, 2)
    assert (module(x)[2][0] - module(x[[0, 2, 1]])[2][0]).abs().max() > 1e-3
    near(module(x)[1][0], module(x[[0, 2, 1]])[1][0].detach().flatten(), 1e-2)


@pytest.mark.parametrize(
    ("channels", "size", "expected"),
    [(1024, (16, 8), 813_313), (2048, (16, 8), 1_600_769), (2048, (8, 4), 1_582_337)],
)
def test_sizes_of_the_module(channels, size, expected):
    assert sum(p.numel() for p in cosam.COSAM(channels, 4, size).parameters()) == expected


def official_r50(pool=""):
    """Names and shapes of the authors' ResNet-50 with COSAM behind layers 3 and 4, 625 people."""
    base = torchvision.models.resnet50().state_dict()
    stages = {"conv1": 0, "bn1": 1} | {f"layer{i}": i + 3 for i in range(1, 5)}
    names = {}
    for key, value in base.items():
        first, rest = key.split(".", 1)
        if first in stages:
            names[f"base.{stages[first]}.{rest}"] = value
    for slot, C in ((2, 1024), (3, 2048)):
        names |= official_cosam(slot, C, 96 if pool == "ta" and slot == 3 else 384)
    D = 512 if pool == "rnn" else 2048
    names |= {"classifier.weight": torch.rand(625, D), "classifier.bias": torch.rand(625)}
    shapes = {
        "ta": {"attention_conv.weight": (256, 2048, 8, 4), "attention_conv.bias": (256,),
               "attention_tconv.weight": (1, 256, 3), "attention_tconv.bias": (1,)},
        "rnn": {"lstm.weight_ih_l0": (2048, 2048), "lstm.weight_hh_l0": (2048, 512),
                "lstm.bias_ih_l0": (2048,), "lstm.bias_hh_l0": (2048,)},
    }  # fmt: skip
    return names | {f"aggregation.{k}": torch.rand(s) for k, s in shapes.get(pool, {}).items()}


def official_cosam(slot, C, cost):
    shapes = {
        "dim_reduction.0.weight": (256, C, 1, 1), "dim_reduction.0.bias": (256,),
        "spatial_mask_summary.0.weight": (64, cost, 1, 1), "spatial_mask_summary.0.bias": (64,),
        "spatial_mask_summary.3.weight": (1, 64, 1, 1), "spatial_mask_summary.3.bias": (1,),
        "channelwise_attention.0.weight": (256, C), "channelwise_attention.0.bias": (256,),
        "channelwise_attention.2.weight": (C, 256), "channelwise_attention.2.bias": (C,),
    }  # fmt: skip
    for norm, D in (("dim_reduction.1", 256), ("spatial_mask_summary.1", 64)):
        shapes |= {f"{norm}.{k}": (D,) for k in ("weight", "bias", "running_mean", "running_var")}
        shapes[f"{norm}.num_batches_tracked"] = ()
    prefix = f"attention_modules.attention_modules.{slot}."
    return {prefix + k: torch.rand(shape) for k, shape in shapes.items()}


def network(name, pool=cosam.TemporalPooling, last_stride=1):
    backbone = resnet(name, last_stride=last_stride)
    return cosam.build(625, backbone, T=4, size=(256, 128), pool=pool, neck=False)


@pytest.mark.parametrize(
    ("kind", "pool", "last_stride", "size"),
    [
        ("tp", "TemporalPooling", 1, 27_202_739),
        ("ta", "TemporalAttention", 2, 43_962_548),
        ("rnn", "TemporalRnn", 1, 31_489_715),
    ],
)
def test_the_authors_resnet50_loads_strictly(kind, pool, last_stride, size):
    state = official_r50(kind)
    model = network("resnet50", getattr(cosam, pool), last_stride)
    assert sum(p.numel() for p in model.parameters()) == size
    if kind == "tp":
        assert len(state) == 360 and len(list(model.parameters())) == 189
    load_official(model, {"state_dict": state, "rank1": 0.0, "epoch": 1})
    mine = model.state_dict()
    assert len(mine) == len(state)
    here = "blocks.5.space.summary.0.weight", "trunk.layer4.0.downsample.0.weight"
    there = "attention_modules.attention_modules.3.spatial_mask_summary.0.weight"
    assert torch.equal(mine[here[0]], state[there])
    assert torch.equal(mine[here[1]], state["base.7.0.downsample.0.weight"])
    del state["classifier.bias"]
    with pytest.raises(RuntimeError, match=r"Missing key.*classifier.bias"):
        load_official(model, state)


def test_the_authors_se_resnet50_loads_strictly():
    model = network("seresnet50")
    assert sum(p.numel() for p in model.parameters()) == 29_733_731
    state = {}
    for key, value in model.trunk.state_dict().items():
        state["base." + re.sub(r"^stem\.0", "layer0", key)] = value
    assert "base.layer0.conv1.weight" in state and "base.layer3.0.se_module.fc1.bias" in state
    state |= official_cosam(3, 1024, 384) | official_cosam(4, 2048, 384)
    state |= {"classifier.weight": torch.rand(625, 2048), "classifier.bias": torch.rand(625)}
    assert len(state) == 424 and len(list(model.parameters())) == 253
    load_official(model, state)


def small(T=3, **options):
    torch.manual_seed(0)
    options = {"neck": False} | options
    return cosam.build(5, resnet("course"), T=T, size=(32, 16), **options)


@pytest.mark.parametrize("slots", [(), (2,), (3,), (4,), (5,), (4, 5), (1, 2, 3, 4, 5)])
def test_any_set_of_slots(slots):
    model = small(slots=slots)
    features, logits = model(torch.rand(2, 3, 3, 32, 16))
    assert features.shape == (2, 256) and logits.shape == (2, 5)
    maps, seen = cosam.attend(model, torch.rand(2, 3, 3, 32, 16))
    assert maps.shape == (2, 3, 256, 2, 1) and list(seen) == [str(s) for s in slots]
    for slot in slots:
        C, H, W = cosam.map_shapes(model.trunk, (32, 16))[slot - 1]
        gate, mask = seen[str(slot)]
        assert gate.shape == (6, C, 1, 1) and mask.shape == (6, 1, H, W)


@pytest.mark.parametrize(
    "option",
    [
        {"pool": cosam.TemporalRnn},
        {"pool": cosam.TemporalAttention},
        {"block": partial(cosam.COSAM, summary=cosam.one_layer, residual=False)},
        {"neck": True},
    ],
)
def test_every_variant_learns(option):
    model = small(**option)
    batch = {"clips": torch.rand(4, 3, 3, 32, 16), "labels": torch.tensor([0, 0, 1, 1])}
    total, parts = cosam.loss(model, batch)
    total.backward()
    assert all(p.grad is not None for p in model.parameters())
    assert set(parts) == {"cross entropy", "triplet", "accuracy"}


def test_map_shapes_leave_the_network_as_it_was():
    trunk = resnet("course").train()
    before = {k: v.clone() for k, v in trunk.state_dict().items()}
    assert cosam.map_shapes(trunk, (128, 64))[1:] == [
        (32, 32, 16), (64, 16, 8), (128, 8, 4), (256, 8, 4)
    ]  # fmt: skip
    assert trunk.training and all(torch.equal(v, before[k]) for k, v in trunk.state_dict().items())


def test_embedding_is_the_mean_over_clips_whatever_their_number():
    model = small().eval()
    frames = torch.rand(3 * 40, 3, 32, 16)
    with torch.inference_mode():
        each = torch.stack([cosam.embed(model, clip) for clip in frames.split(3)])
        torch.testing.assert_close(cosam.embed(model, frames), each.mean(0), rtol=1e-4, atol=1e-5)
        assert small(neck=True).eval().neck.running_var.shape == (256,)
        assert cosam.embed(small(neck=True).eval(), frames).norm().item() == pytest.approx(1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: small(T=1), r"T=1: a frame is compared with the others of its clip"),
        (lambda: small()(torch.rand(2, 2, 3, 32, 16)), r"\(2, 2, 3, 32, 16\).*T=3 frames.*pad"),
        (lambda: small()(torch.rand(2, 3, 3, 64, 16)), r"maps of \(4, 1\) in a mask.*\(2, 1\)"),
        (lambda: cosam.embed(small(), torch.rand(1, 3, 32, 16)), r"1 frames are not whole .*T=3"),
        (lambda: cosam.embed(small(), torch.rand(0, 3, 32, 16)), r"0 frames are not whole .*T=3"),
        (lambda: cosam.embed(small(), torch.rand(5, 3, 32, 16)), r"5 frames .*pad=True"),
    ],
)
def test_clips_that_do_not_fit_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_snippets_cover_the_tracklet():
    parts = cosam.snippets(10, frames=4)
    assert [p.tolist() for p in parts] == [[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 8, 9]]
    assert [len(p) for p in cosam.snippets(900, frames=4)] == [64] * 14 + [4]
    assert np.array_equal(np.concatenate(cosam.snippets(900, frames=4)), np.arange(900))
    assert [p.tolist() for p in cosam.snippets(2, frames=4)] == [[0, 1, 0, 1]]


def test_interleaved_clips_reach_over_the_whole_tracklet():
    assert cosam.interleaved(8).tolist() == [0, 2, 4, 6, 1, 3, 5, 7]
    long = cosam.interleaved(900, frames=4, most=8).reshape(8, 4)
    assert (np.ptp(long, axis=1) > 600).all() and len(np.unique(long)) == 32
    assert cosam.interleaved(2).tolist() == [0, 0, 1, 1]


def test_recipes():
    for name, clips in (("smoke", 1), ("mini", 1), ("gpu", 4)):
        at = scale(name)
        recipe = cosam.recipe(at)
        picked = recipe.test_sampler(300, None)
        assert len(picked) == clips * at.T and np.ptp(picked[: at.T]) > 100
        assert np.ptp(recipe.train_sampler(300, np.random.default_rng(0))) > 100
    paper = cosam.recipe(scale("paper"))
    assert sum(map(len, paper.test_sampler(900, None))) == 900
    rates = [paper.schedule(62_400)(step) for step in (0, 15_599, 15_600, 62_399)]
    np.testing.assert_allclose(rates, [1, 1, 0.1, 1e-3])
    in_a_row = paper.train_sampler(300, np.random.default_rng(0))
    assert np.diff(in_a_row).tolist() == [1, 1, 1]


def test_the_authors_augmentation_is_drawn_for_each_frame():
    frame = torch.arange(8 * 4, dtype=torch.uint8).view(1, 1, 8, 4).expand(1, 3, 8, 4)
    clip = cosam.each_frame(frame.repeat(40, 1, 1, 1), np.random.default_rng(0))
    flipped = (clip == frame.flip(3)).flatten(1).all(1)
    same = (clip == frame).flatten(1).all(1)
    assert 4 <= flipped.sum() <= 18 and 4 <= same.sum() <= 18
    assert torch.equal(cosam.each_frame(frame), frame)
