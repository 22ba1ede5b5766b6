"""Lesson 03, GLTR: order, the first step, the authors' numbers, limits, kept features, studies."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from gltr_official import load_official

from vreid_course import lessons
from vreid_course import study as tables
from vreid_course.nets import resnet
from vreid_course.scales import scale
from vreid_course.studies import gltr as study
from vreid_course.studies import twins

gltr = lessons.load("03_gltr")


def fill(shape, a, s, base=0.0):
    """Element i is base + a * sin(0.7 * i + s), row by row, in float64."""
    i = torch.arange(int(np.prod(shape)), dtype=torch.float64)
    return (base + a * torch.sin(0.7 * i + s)).view(shape)


def golden_state():
    """The authors' names and shapes, with filled weights; the classifier is made up."""
    state = {f"feat{r}.weight": fill((128, 1, 3, 128), 0.05, r) for r in (1, 2, 3)}
    layers = {
        "g": (256, 512, 1),
        "W.0": (512, 256, 1),
        "theta": (256, 512, 1),
        "phi": (256, 512, 1),
    }
    for j, (name, shape) in enumerate(layers.items()):
        state[f"Nonlocal_block0.{name}.weight"] = fill(shape, 0.05, 10 + j)
        state[f"Nonlocal_block0.{name}.bias"] = fill(shape[:1], 0.05, 20 + j)
    values = {"weight": (0.1, 30, 1), "bias": (0.1, 31), "running_mean": (0.1, 32)}
    for name, value in (values | {"running_var": (0.5, 33, 1)}).items():
        state[f"Nonlocal_block0.W.1.{name}"] = fill((512,), *value)
        state[f"feat_bn.{name}"] = torch.ones(512, dtype=torch.float64)
    for norm in ("Nonlocal_block0.W.1", "feat_bn"):
        state[f"{norm}.num_batches_tracked"] = torch.tensor(0)
    state |= {"feat.weight": torch.zeros(128, 2048), "feat.bias": torch.zeros(128)}
    return state | {"classifier.weight": torch.zeros(9, 512), "classifier.bias": torch.zeros(9)}


@pytest.fixture(scope="module")
def golden():
    model = gltr.Temporal(9, 2048).double().eval()
    load_official(model, golden_state())
    return model.head


def near(actual, expected, places=1.1e-6):
    np.testing.assert_allclose(actual.detach().flatten(), expected, rtol=0, atol=places)


PICKED = [0, 127, 128, 256, 384, 511]


def test_golden_numbers(golden):
    x = torch.sin(0.37 * torch.arange(6 * 128, dtype=torch.float64)).view(1, 6, 128)
    local = golden.local(x)
    near(local[0, PICKED, 2], [0.454865, -0.331913, -0.049542, 0.110881, -0.004239, 0.097502])
    A = golden.share.attention(local)[0]
    near(A[0], [0.18767, 0.04919, 0.28525, 0.03231, 0.42043, 0.02515], 1.1e-5)
    near(A.sum(0), [0.87474, 0.69257, 0.94171, 0.85440, 1.36354, 1.27305], 1.1e-5)
    f = golden(x)[0]
    near(f[PICKED], [-0.355599, -0.049233, 0.076017, 0.329187, -0.299217, -0.254604])
    near(torch.stack([f.norm(), f.sum()]), [5.834992, 0.838442], 2e-6)


def test_golden_numbers_of_a_single_frame(golden):
    f = golden(torch.sin(0.37 * torch.arange(128, dtype=torch.float64)).view(1, 1, 128))[0]
    near(f[PICKED], [-0.265060, -0.014243, 0.089852, 0.390895, -0.210051, -0.260741])
    near(f.norm()[None], [9.929904], 2e-6)


def awake(name, d=32):
    """A head with weights as large as trained ones, in float64."""
    torch.manual_seed(0)
    head = gltr.HEADS[name](d)
    for p in head.parameters():
        torch.nn.init.normal_(p, std=0.1)
    return head.double().eval()


ORDERS = {"all": torch.randperm(16, generator=torch.Generator().manual_seed(3))}
ORDERS["inner"] = torch.cat([torch.arange(3), 3 + torch.randperm(10), torch.arange(13, 16)])


@pytest.mark.parametrize("name", gltr.HEADS)
def test_who_sees_order(name):
    head = awake(name, 32)
    x = torch.randn(4, 16, 32, dtype=torch.float64)
    changed = {k: float((head(x) - head(x[:, o])).abs().max()) > 1e-9 for k, o in ORDERS.items()}
    expected = {"mean": "", "attention": "", "TSA": "", "DTP": "all"}.get(name, "all inner")
    assert {k for k, v in changed.items() if v} == set(expected.split())


@pytest.mark.parametrize("r", [1, 2, 3])
def test_the_mean_of_a_response_is_three_sums(r):
    pyramid = gltr.DTP(5, (r,), keep=False).double()
    x = torch.randn(1, 9, 5, dtype=torch.float64)
    W, S = pyramid.branches[0].weight, x[0].sum(0)
    y = W[..., 0] @ (S - x[0, -r:].sum(0)) + W[..., 1] @ S + W[..., 2] @ (S - x[0, :r].sum(0))
    torch.testing.assert_close(pyramid(x)[0].mean(1), y / 9)


def test_a_response_sees_its_taps_only():
    for dilations, reach in (
        ((1, 2, 3), {-3, -2, -1, 0, 1, 2, 3}),
        ((1, 2, 4), {-4, -2, -1, 0, 1, 2, 4}),
    ):
        pyramid, x = gltr.DTP(4, dilations, keep=False), torch.randn(1, 20, 4, requires_grad=True)
        pyramid(x)[0, :, 10].abs().sum().backward()
        assert set((x.grad[0].abs().sum(1).nonzero()[:, 0] - 10).tolist()) == reach


def test_the_first_step():
    """f is the mean and little else; of the attention the scale alone gets a gradient."""
    torch.manual_seed(0)
    head = gltr.Head(128).double()
    x, neck = torch.randn(16, 16, 128, dtype=torch.float64), torch.nn.BatchNorm1d(512).double()
    local = head.local(x)
    assert torch.equal(head.share(local), local)
    energy = local.square().mean((0, 2)).unflatten(0, (4, 128)).mean(1)
    np.testing.assert_allclose(energy[1:].detach() / energy[0].detach(), 3 * 128e-6, rtol=0.15)
    weight = torch.randn(512, 7, dtype=torch.float64)
    F.cross_entropy(neck(head(x)) @ weight, torch.arange(16) % 7).backward()
    share = head.share
    for module in (share.query, share.key, share.value, share.out):
        assert all(not p.grad.any() for p in module.parameters())
    assert share.norm.weight.grad.abs().max() > 1e-4 > 1e-9 > share.norm.bias.grad.abs().max() / 10


def test_any_length_and_bounded_trunk():
    model = gltr.build(7, resnet("course")).eval()
    with torch.inference_mode():
        for T in (1, 2, 5, 70):
            f = gltr.embed(model, torch.rand(T, 3, 32, 16))
            assert f.shape == (512,) and f.norm() == pytest.approx(1, abs=1e-5)
        features, logits = model(torch.rand(2, 3, 3, 32, 16))
    assert features.shape == (2, 512) and logits.shape == (2, 7)


def test_branches_rates_and_size_are_arguments():
    model = gltr.build(7, resnet("course"), d=24, dilations=(1, 2, 4, 8, 16))
    assert model(torch.rand(2, 9, 3, 32, 16))[0].shape == (2, 24 * 6)
    count = sum(p.numel() for p in gltr.build(625, resnet("resnet50")).parameters())
    assert count == 24_766_001  # as in the authors' training network
    parts = gltr.Head(128)
    assert sum(p.numel() for p in parts.parameters()) == 674_048


def test_the_official_state_dict_loads_strictly():
    model = gltr.build(9, resnet("resnet50"))
    resnet50 = {
        k: v for k, v in torchvision.models.resnet50().state_dict().items() if k[:3] != "fc."
    }
    state = golden_state() | resnet50
    load_official(model, state)
    assert torch.equal(model.trunk.layer4[2].conv3.weight, state["layer4.2.conv3.weight"])
    with pytest.raises(RuntimeError, match="Missing"):
        load_official(model, {k: v for k, v in state.items() if k != "feat.bias"})
    with pytest.raises(RuntimeError, match="Unexpected"):
        load_official(model, state | {"feat4.weight": torch.zeros(128, 1, 3, 128)})


def test_first_loss_is_the_logarithm_of_the_identities():
    torch.manual_seed(0)
    model = gltr.build(625, resnet("course"))
    total, parts = gltr.loss(
        model, {"clips": torch.rand(8, 2, 3, 32, 16), "labels": torch.arange(8)}
    )
    assert total.item() == pytest.approx(np.log(625), abs=0.05) and set(parts) == {"accuracy"}


def made_up(n=12, D=20):
    rng = np.random.default_rng(0)
    return [rng.standard_normal((t + 3, D)).astype(np.float32) + i for i, t in enumerate(range(n))]


def test_the_reduction_starts_at_the_principal_axes_with_one_scale():
    frames = made_up()
    temporal = gltr.start_from_pca(gltr.Temporal(4, 20, d=8), frames)
    with torch.no_grad():
        reduced = temporal.reduce(torch.from_numpy(np.concatenate(frames))).numpy()
    values = np.linalg.eigvalsh(np.cov(np.concatenate(frames).astype(float).T))[::-1][:8]
    np.testing.assert_allclose(np.cov(reduced.T), np.diag(values / values.mean()), atol=2e-3)
    np.testing.assert_allclose(reduced.mean(0), 0, atol=1e-4)
    wide = gltr.start_from_pca(gltr.Temporal(4, 20, d=32), frames).reduce
    assert not wide.weight[20:].any() and wide.weight[:20].any(1).all()


def test_clips_are_adjacent_frames_and_depend_on_the_step_alone():
    frames, labels = made_up(), np.repeat([7, 3], 6)
    batches = gltr.FeatureClips(frames, labels, B=6, T=4, seed=1)
    first, second = list(batches(0, 2))
    assert first["clips"].shape == (6, 4, 20) and first["clips"].dtype == torch.float32
    assert torch.equal(next(batches(1, 2))["clips"], second["clips"])
    halves = [next(batches(0, 1, (i, 2)))["clips"] for i in (0, 1)]
    assert torch.equal(torch.stack(halves, 1).flatten(0, 1), first["clips"])
    for clip, label in zip(first["clips"].numpy(), first["labels"].tolist(), strict=True):
        windows = [(i, x[(s + np.arange(4)) % len(x)]) for i, x in enumerate(frames)
                   for s in range(max(len(x) - 3, 1))]  # fmt: skip
        (found,) = [i for i, window in windows if np.array_equal(window, clip)]
        assert label == (labels[found] == 7)
    backwards = gltr.FeatureClips(frames, labels, 6, 4, 1, lambda clip, rng: clip[::-1])
    assert torch.equal(next(backwards(0, 1))["clips"].flip(1), first["clips"])


def test_a_feature_is_of_length_one_and_knows_a_new_order_only_where_the_head_does():
    frames = made_up(4)
    for name in ("mean", "GLTR"):
        torch.manual_seed(0)
        temporal = gltr.Temporal(4, 20, 8, gltr.HEADS[name])
        for p in temporal.head.parameters():
            torch.nn.init.normal_(p, std=0.3)
        f, mixed = gltr.describe(temporal, frames), gltr.describe(temporal, frames, mix=1)
        np.testing.assert_allclose(np.linalg.norm(f, axis=1), 1, rtol=1e-5)
        assert np.allclose(f, mixed, atol=1e-5) == (name == "mean")


def test_what_is_received_and_the_share_of_attention_in_the_feature():
    x = np.random.default_rng(0).standard_normal((6, 20)).astype(np.float32)
    make = lambda name: gltr.Temporal(4, 20, 8, gltr.HEADS[name]).eval()  # noqa: E731
    assert np.isnan(gltr.received(make("DTP"), x)).all()
    for name in ("attention", "TSA", "GLTR"):
        assert gltr.received(make(name), x).sum() == pytest.approx(6, rel=1e-5)
    temporal = make("TSA")
    assert gltr.share_of_energy(temporal, x) == 0, "the scale of the norm starts at 0"
    torch.nn.init.ones_(temporal.head.share.norm.weight)
    with torch.no_grad():
        local = temporal.head.local(temporal.reduce(torch.from_numpy(x)[None]))
        a = local.mean(2).square().sum()
        b = (temporal.head.share(local).mean(2) - local.mean(2)).square().sum()
    assert gltr.share_of_energy(temporal, x) == pytest.approx(float(b / (a + b)), rel=1e-5)


@pytest.mark.parametrize("name", study.HEADS)
def test_heads_of_the_study(name):
    """Controls reach as far as the pyramid; fixed attention gives the mean of the values."""
    torch.manual_seed(0)
    head = study.head_of(name, 8).eval()
    for p in head.parameters():
        torch.nn.init.normal_(p, std=0.3)
    x = torch.randn(1, 20, 8)
    assert head(x).shape == (1, head.width)
    if not hasattr(head, "local"):
        return
    base = head.local(x).detach()
    moved = [s for s in range(20) if (head.local(x + torch.eye(20)[s][None, :, None]) - base)
             [0, :, 10].abs().max() > 1e-5]  # fmt: skip
    pyramid = "DTP" in name or "GLTR" in name
    assert moved == ([7, 8, 9, 10, 11, 12, 13] if pyramid else [10])
    if "uniform" in name:
        assert torch.equal(head.share.attention(base), torch.full((1, 20, 20), 1 / 20))


def test_drift_is_measured_in_distances_between_people():
    N, D = 5, 4
    clean = np.eye(N, D + 1)[:, None].repeat(16, 1)
    covered = -clean

    def describe(clips, hidden):
        assert hidden.sum() in study.COVERS and (clips[:, hidden] <= 0).all()
        return clips[:, ~hidden].mean(1) if not hidden.all() else clips.mean(1)

    away, features = study.drifts(describe, clean, covered)
    assert away.shape == (9, N) and features.shape == (9, N, D + 1)
    np.testing.assert_allclose(away[:-1], 0, atol=1e-12)
    np.testing.assert_allclose(away[-1], 2 / np.sqrt(2))


def test_the_spectrum_names_the_step_frequency():
    t = np.arange(20)
    waves = [np.cos(4 * np.pi * c * t + 1)[:, None] for c in twins.CADENCES]
    found = twins.powers(np.stack(waves) + 3)  # (4, 4)
    assert (found.argmax(1) == range(4)).all() and found.max() < 1


def test_twins_differ_in_cadence_alone():
    tracks = twins.tracks_of("train", 2)
    assert len(tracks) == 2 * 4 * twins.TRACKLETS["train"]
    first = [t.person for t in tracks if (t.pid - 1) // 4 == 0]
    assert {p.cadence for p in first} == set(twins.CADENCES)
    assert len({repr(replace(p, cadence=0)) for p in first}) == 1
    cameras = {pid: {t.camid for t in tracks if t.pid == pid} for pid in range(1, 5)}
    assert all(len(c) == 2 and c == cameras[1] for c in cameras.values())
    other = [t.person for t in twins.tracks_of("test", 1)]
    assert repr(replace(other[0], cadence=0)) != repr(replace(first[0], cadence=0))


def test_recipe():
    for name in ("smoke", "mini", "paper"):
        recipe = gltr.recipe(scale(name))
        T = 2 if name == "smoke" else 16
        assert len(recipe.train_sampler(40, np.random.default_rng(0))) == T
        assert recipe.test_sampler(920).tolist() == list(range(920))
    assert recipe.schedule(1)(0) == 1 and recipe.schedule(1)(120 * 830) == pytest.approx(0.1)


def test_the_committed_study_is_whole_and_its_rates_are_those_of_the_validation_people():
    rows = tables.read("03_gltr")
    keys = [{k: str(v) for k, v in row.items()} for row in study.ROWS]
    assert all(sum(key.items() <= row.items() for row in rows) == 1 for key in keys)
    assert len(rows) == len(keys)
    for name, rate in study.HEADS.items():
        mine = [r for r in rows if (r["test"], r["head"], r["seed"]) == ("people", name, "0")]
        assert len(mine) == len(study.RATES)
        assert max(mine, key=lambda r: float(r["validation mAP"]))["rate"] == f"{rate:g}"
