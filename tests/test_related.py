"""Lesson 07: golden numbers, limit cases and plain loops for the cores of seven systems."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny import tiny_split
from torch import nn

from vreid_course import lessons, losses
from vreid_course.nets import resnet
from vreid_course.scales import scale

related = lessons.load("07_related")


def fill(shape, a, s, base=0.0):
    n = int(np.prod(shape))
    return (base + a * torch.sin(0.7 * torch.arange(n, dtype=torch.float64) + s)).view(shape)


def xs(shape, w):
    return torch.sin(w * torch.arange(int(np.prod(shape)), dtype=torch.float64)).view(shape)


def near(actual, expected, places=1.1e-6):
    expected = np.asarray(expected).ravel()
    np.testing.assert_allclose(actual.detach().flatten(), expected, rtol=0, atol=places)


def golden_multiscale(stride):
    layer = related.Multiscale(4, 3, stride).double().eval()
    for i, (conv, norm, _) in enumerate(layer.branches, 1):
        conv.weight.data = fill((4, 4, 3, 1, 1), 0.3, i)
        norm.weight.data, norm.bias.data = fill((4,), 0.1, 29 + i, 1), fill((4,), 0.1, 39 + i)
        norm.running_mean.data = fill((4,), 0.1, 49 + i)
        norm.running_var.data = fill((4,), 0.5, 59 + i, 1)
    return layer


def test_golden_numbers_of_m3d():
    x = xs((1, 4, 8, 2, 1), 0.37)
    wave = [0, 0.152293, 0.496157, 0.780883, 0.871608, 0.503750, 0.116302, 0.056990]
    for stride, total in ((1, 16.566565), (2, 7.922099)):
        added = golden_multiscale(stride)(x) - related.mean_of_neighbours(x, stride)
        near(added[0, 0, :, 0, 0], wave[::stride])
        near(added.sum()[None], [total], 2e-6)


def test_published_start_never_learns_and_ours_does():
    x = torch.randn(2, 4, 8, 3, 2)
    for start, learns in (("published", False), ("awake", True)):
        layer = related.Multiscale(4, 3, 1, start)
        layer(x).square().sum().backward()
        assert all(bool(p.grad.any()) == learns for p in layer.parameters())
        assert torch.equal(layer(x), x) != learns


def test_weights_of_the_middles():
    count = {
        name: sum(p.numel() for p in related.convolutions(make(6, 6)).values()) // 36
        for name, make in related.MIDDLES.items()
    }
    assert count == {"2D": 9, "C3D": 27, "P3D-A": 12, "P3D-B": 12, "P3D-C": 12, "M3D": 18}
    m3d = sum(p.numel() for c, n in ((64, 3), (64, 3), (128, 3), (256, 2), (512, 1))
              for p in related.Multiscale(c, n).parameters())  # fmt: skip
    assert m3d == 1_404_416


def in_space(x, weight):
    """(B, C, T, H, W) by (C, C, n, 3, 3): one frame and one tap at a time."""
    T, r = x.shape[2], weight.shape[2] // 2
    frames = []
    for t in range(T):
        taps = [k for k in range(weight.shape[2]) if 0 <= t + k - r < T]
        frames.append(sum(F.conv2d(x[:, :, t + k - r], weight[:, :, k], padding=1) for k in taps))
    return torch.stack(frames, 2)


def in_time(x, weight):
    """(B, C, T, H, W) by (C, C, 3, 1, 1): the sum over shifted clips."""
    padded = F.pad(x, (0, 0, 0, 0, 1, 1))
    T, w = x.shape[2], weight[..., 0, 0]
    return sum(
        torch.einsum("oc,bcthw->bothw", w[:, :, k], padded[:, :, k : k + T]) for k in range(3)
    )


def with_norm(x, norm):
    return norm(x).relu()


def awake(module):
    for m in module.modules():
        if isinstance(m, nn.BatchNorm3d):
            for p in (m.weight.data, m.bias.data, m.running_mean, m.running_var):
                nn.init.uniform_(p, 0.5, 1.5)
    return module.eval()


def test_c3d_is_three_convolutions_added():
    block, x = awake(related.MIDDLES["C3D"](5, 5)), torch.randn(2, 5, 4, 6, 3)
    torch.testing.assert_close(block(x), with_norm(in_space(x, block[0].weight), block[1]))


@pytest.mark.parametrize("kind", "ABC")
def test_p3d(kind):
    block, x = awake(related.P3D(5, 5, kind=kind)), torch.randn(2, 5, 4, 6, 3)
    space, time = block.space, block.time
    s = with_norm(in_space(x, space[0].weight), space[1])
    t = with_norm(in_time(x if kind == "B" else s, time[0].weight), time[1])
    torch.testing.assert_close(block(x), t if kind == "A" else s + t)


@pytest.mark.parametrize("kind", related.MIDDLES)
@pytest.mark.parametrize("name", ["course", "resnet50"])
def test_inflated_networks_start_as_the_trunk(kind, name):
    trunk = resnet(name).eval()
    x = torch.randn(1, 3, 3, 64, 32)
    with torch.inference_mode():
        right = torch.stack([trunk(frame) for frame in x.unbind(2)], 2)
        found = related.inflate(trunk, kind).eval()(x)
    assert found.shape == right.shape
    off = ((found - right).norm() / right.norm()).item()
    assert off < (1e-4 if kind in ("2D", "C3D", "P3D-A") else 0.2)
    assert off > 1e-6 or kind in ("2D", "C3D", "P3D-A")


def test_a_still_clip_stays_still():
    """Weights shared by the frames: without motion, and away from the ends, the 2-D network."""
    trunk = resnet("course").eval()
    x = torch.randn(1, 3, 1, 64, 32).expand(1, 3, 9, 64, 32)
    with torch.inference_mode():
        right = trunk(x[:, :, 0])
        for kind in ("C3D", "P3D-A"):
            found = related.inflate(trunk, kind, ("layer3", "layer4"), "still").eval()(x)[:, :, 4]
            torch.testing.assert_close(found, right, rtol=1e-3, atol=1e-3)


def test_flow_starts_without_effect_and_learns():
    stem = related.TwoStreams(nn.Conv3d(3, 4, (1, 7, 7), (1, 2, 2), (0, 3, 3), bias=False))
    x = torch.randn(2, 5, 2, 16, 8)
    torch.testing.assert_close(stem(x), stem.colour(x[:, :3]))
    stem(x).square().sum().backward()
    assert stem.flow.weight.grad.any()


def test_flow_of_a_shifted_picture():
    pytest.importorskip("cv2")
    noise = np.random.default_rng(0).integers(0, 255, (1, 3, 72, 48), np.uint8)
    big = F.interpolate(torch.from_numpy(noise).float(), scale_factor=4, mode="bicubic")
    picture = big.clamp(0, 255).byte().numpy()
    frames = np.concatenate([picture[:, :, 20:148, 20 - 3 * t : 84 - 3 * t] for t in range(3)])
    found = related.with_flow(frames)
    assert found.shape == (3, 5, 128, 64) and found.dtype == np.uint8
    np.testing.assert_array_equal(found[:, :3], frames)
    clips = related.pixels(torch.from_numpy(found)[None])
    inner = clips[0, :, 3:, 20:-20, 12:-12].mean((2, 3))
    np.testing.assert_allclose(inner, [[3, 0]] * 3, atol=0.3)  # it moves to the right
    assert related.with_flow(frames[:1])[0, 3:].tolist() == np.full((2, 128, 64), 128).tolist()


def test_golden_numbers_of_stmp():
    model = related.STMP(16, 8, 8).double().eval()
    gate = model.refine.gate
    convs = (gate.reduce[0], gate.place[0], gate.place[2], gate.channel)
    for s, conv in enumerate((*convs, model.integrate[0], model.integrate[3])):
        conv.weight.data = fill(conv.weight.shape, 0.3, s)
    x = xs((1, 3, 16, 8, 8), 0.37)
    refined = model.refine(x)
    parts = model.parts(refined)
    first = [0.265289, -0.266814, 0.259704, -0.243463, 0.218136, -0.184523, 0.144176, -0.099135]
    near(parts[0, 0], first)
    near(parts.norm()[None], [2.177128])
    z = gate(x[:, 0], x[:, 1], x[:, 0])
    near(torch.stack([z.min(), z.max()]), [0.4641, 0.5358], 6e-5)
    video = model(x)[0]
    near(video[:4], [0.117933, 0.111108, 0.095857, 0.078789])
    near(video.norm()[None], [1.315552])


def test_a_constant_clip_is_refined_to_itself():
    model = related.RRU(6, 4, 2, hidden=5, places=7)
    x = torch.randn(2, 1, 6, 4, 2).expand(2, 5, 6, 4, 2)
    torch.testing.assert_close(model(x), x)


def test_full_size_counts():
    assert sum(p.numel() for p in related.STMP(2048, 8, 8).parameters()) == 3_884_544
    assert sum(p.numel() for p in related.SelfPooling(2048, 128).parameters()) == 525_056


def test_golden_numbers_of_sta():
    maps = xs((3, 4, 8, 2), 0.37).abs()[None]
    g = related.energy_shares(maps)
    scores = related.stripe_scores(g, 4)
    rows = [[0.20494, 0.43148, 0.21692, 0.41660], [0.57210, 0.15046, 0.57978, 0.15664]]
    near(scores[0], [*rows, [0.22297, 0.41806, 0.20329, 0.42676]], 6e-6)
    assert scores[0].argmax(0).tolist() == [1, 0, 1, 2]
    fused = [0.784957, 0.899691, 0.897051, 0.777381, 0.704516, 0.745769, 0.740606, 0.689721]
    near(related.fuse(maps, scores), fused)
    near(related.regulariser(g), [0.253791])


@pytest.mark.parametrize(("factor", "cell"), [(0.3, 0.0374), (2.0, 0.4324)])
def test_closed_form_of_sta(factor, cell):
    maps = torch.ones(1, 4, 3, 8, 2)
    maps[0, 2, :, 4:6] *= factor
    scores = related.stripe_scores(related.energy_shares(maps), 4)
    assert scores[0, 2, 2].item() == pytest.approx(cell, abs=6e-5)
    torch.testing.assert_close(scores.sum(1), torch.ones(1, 4))
    if factor == 0.3:
        assert scores[0, 2, 0].item() == pytest.approx(0.3014, abs=6e-5)
        assert scores[0, 0, 2].item() == pytest.approx(0.3209, abs=6e-5)


def linear(D, d, s):
    layer = nn.Linear(D, d)
    layer.weight.data, layer.bias.data = fill((d, D), 0.5, s), fill((d,), 0.1, s)
    return layer


def test_golden_numbers_of_snippet():
    pool, cross = related.SelfPooling(8, 4), related.CrossPooling(8, 4)
    pool.key.linear, pool.query[0], cross.key.linear = (linear(8, 4, s) for s in range(3))
    pool, cross = pool.double().eval(), cross.double().eval()
    pooled, query = pool(xs((1, 3, 8), 0.53), xs((1, 3, 4), 0.37))
    near(pooled, [0.379000, 0.378962, 0.332921, 0.212243])
    near(query, [0.022700, 0.033847, 0.027673, 0.007630])
    found = cross(query, xs((1, 3, 8), 0.29), xs((1, 3, 4), 0.61))
    near(found, [-0.111941, -0.015647, 0.075457, 0.154945])


def test_vote_is_the_mean_of_the_best():
    distances = torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(0))
    for share in (0.0, 0.2, 0.5, 1.0):
        found = related.vote(distances, share)
        for row, value in zip(distances.flatten(1).numpy(), found, strict=True):
            assert value.item() == pytest.approx(row[row <= np.quantile(row, share)].mean())


def test_distances_of_many_pairs_are_those_of_each():
    torch.manual_seed(0)
    head = related.Snippet(6, 2, 2, width=5).eval()
    nn.init.normal_(head.pairs.linear.weight)
    p, g = torch.randn(2, 3, 5), torch.randn(4, 2, 5)
    found = related.pair_distances(head, p, g)
    for i in range(2):
        for j in range(4):
            wanted = related.distance(head, p[i], g[j]).item()
            assert found[i, j].item() == pytest.approx(wanted, rel=1e-5)


def test_pair_pooling():
    pool, p, g = related.PairPooling(6), torch.randn(4, 6), torch.randn(5, 6)
    nn.init.normal_(pool.U)
    U = pool.U.detach()
    A = torch.tensor([[torch.tanh(a @ U @ b) for b in g] for a in p])
    a, b = A.max(1)[0].exp(), A.max(0)[0].exp()
    expected = (a / a.sum()) @ p, (b / b.sum()) @ g
    for found, right in zip(pool(p, g), expected, strict=True):
        torch.testing.assert_close(found, right)
    same = pool(p, torch.zeros(5, 6))[0]
    torch.testing.assert_close(same, p.mean(0))  # nothing to compare with: the plain mean


@pytest.mark.parametrize("options", [{}, {"kind": "C3D"}], ids=["2D trunk", "C3D trunk"])
@pytest.mark.parametrize("name", related.SYSTEMS)
def test_systems_learn_and_describe(name, options):
    """On a trunk, with the statistics of its batch norms as they were."""
    torch.manual_seed(0)
    model = related.build(7, resnet("course"), name, size=(64, 32), **options)
    model.keep = bool(options)
    model.train()
    batch = {"clips": torch.rand(4, 3, 3, 64, 32), "labels": torch.tensor([0, 0, 3, 3])}
    before = {k: x.clone() for k, x in model.trunk.state_dict().items()}
    total, parts = related.loss(model, batch)
    total.backward()
    assert torch.isfinite(total) and set(parts) == {"accuracy"}
    same = [torch.equal(x, before[k]) for k, x in model.trunk.state_dict().items()]
    assert all(same) == bool(options)  # statistics of batch norms
    model.eval()
    with torch.inference_mode():
        for T in (1, 2, 5):
            f = related.embed(model, torch.rand(T, 3, 64, 32))
            assert f.norm().item() == pytest.approx(1, abs=1e-4)


def test_fit_and_describe_on_maps():
    rng = np.random.default_rng(0)
    maps = [rng.random((t, 8, 4, 2), np.float32).astype(np.float16) for t in (3, 9, 12, 20) * 2]
    for name, width in (("STA", 256), ("Snippet", 128)):
        model = related.System(4, name, 8, 4, 2)
        history = related.fit(model, maps, np.repeat(np.arange(4), 2), 3)
        assert len(history) == 3 and all(h["gradient"] > 0 for h in history)
        assert related.describe(model, maps).shape == (8, 3, width)
    model = related.System(4, "ASTPN", 8, 4, 2)
    assert related.describe(model, maps, 2).shape == (8, 16, 128)


@pytest.mark.parametrize("kind", ["maps", "flow"])
def test_what_is_kept_is_of_these_pictures(tmp_path, monkeypatch, kind):
    """A picture that was replaced under its old name is looked at again."""
    monkeypatch.setenv("VREID_CACHE", str(tmp_path / "cache"))
    split, trunk = tiny_split(tmp_path / "set", (3, 2), (1, 2)), resnet("course").eval()

    def kept():
        if kind == "maps":
            return related.kept_maps(trunk, split, (32, 16))
        return related.kept_frames(split, (32, 16))

    before = kept()
    Image.new("RGB", (16, 32), "red").save(split.paths(1)[1])
    after = kept()
    assert (before[0] == after[0]).all() and (before[1] != after[1]).any()
    assert len([*(tmp_path / "cache").glob(f"{kind}_*.npy")]) == 2


def test_distances_of_astpn_are_those_of_each_pair():
    model = related.System(4, "ASTPN", 8, 4, 2)
    nn.init.normal_(model.head.pool.U)
    p, g = torch.randn(2, 6, 128), torch.randn(3, 6, 128)
    found = related.pair_distances(model.head, p, g)
    for i in range(2):
        for j in range(3):
            a, b = model.head.pool(p[i], g[j])
            assert found[i, j].item() == pytest.approx((a - b).norm().item(), rel=1e-4)


def test_look_up_is_the_formula():
    table = related.LookUp(3, 4)
    values, labels = F.normalize(torch.randn(5, 3), dim=1), torch.tensor([1, 0, 1, 1, 3])
    slow = torch.zeros(4, 3)
    for v, y in zip(values, labels, strict=True):
        mixed = 0.5 * slow[y] + 0.5 * v
        slow[y] = mixed / mixed.norm()
    logits = table(values)
    table.remember(values, labels)
    assert not logits.any()  # the step's own logits are those of the table before
    torch.testing.assert_close(table.table, slow)
    torch.testing.assert_close(table(values), 30 * values @ slow.T)
    assert not list(table.parameters())


def test_pairs_of_other_people_weigh_three_times_as_much():
    logits, p, g = torch.randn(2, 3, 2), torch.tensor([0, 1]), torch.tensor([0, 1, 2])
    each = [[-logits[i, j].log_softmax(0)[int(p[i] == g[j])] for j in range(3)] for i in range(2)]
    same = each[0][0] + each[1][1]
    other = each[0][1] + each[0][2] + each[1][0] + each[1][2]
    expected = (same + 3 * 2 / 4 * other) / (2 + 3 * 2)
    torch.testing.assert_close(related.pair_loss(logits, p, g), expected)


def test_losses_have_the_terms_of_the_sheet():
    """STMP: the triplets of its rows; STA: its regulariser; ASTPN: distances of pairs."""
    labels, maps = torch.tensor([0, 0, 1, 1]), torch.rand(4, 3, 8, 4, 2)
    batch = {"clips": maps, "labels": labels}
    torch.manual_seed(0)
    stmp = related.System(2, "STMP", 8, 4, 2).eval()
    features, logits = stmp(maps)
    rows = stmp.head.refine(maps).mean((1, 4))
    triplet = losses.batch_hard_triplet
    expected = losses.smoothed_cross_entropy(logits, labels) + triplet(features, labels, 0.4)
    expected = expected + sum(triplet(rows[:, :, h], labels, 0.4) for h in range(4)) / 4
    torch.testing.assert_close(related.loss(stmp, batch)[0], expected)
    sta = related.System(2, "STA+Reg", 8, 4, 2).eval()
    with_it = related.loss(sta, batch | {"clips": maps[:, :2]})[0]
    sta.head.steady = 0.0
    g = related.energy_shares(maps[:, :2])
    without = related.loss(sta, batch | {"clips": maps[:, :2]})[0]
    torch.testing.assert_close(with_it - without, (g[:, 0] - g[:, 1]).flatten(1).norm(dim=1).mean())
    astpn = related.System(2, "ASTPN", 8, 4, 2).eval()
    frames = astpn.head.frames(maps)
    d = torch.zeros(4, 4)
    for i, j in np.ndindex(4, 4):
        a, b = astpn.head.pool(frames[i], frames[j])
        d[i, j] = (a - b).norm()
    far = torch.stack([d[0, 1], d[1, 0], d[2, 3], d[3, 2]])
    near = torch.stack([d[0, 2:].min(), d[1, 2:].min(), d[2, :2].min(), d[3, :2].min()])
    expected = (
        losses.smoothed_cross_entropy(astpn(maps)[1], labels) + F.relu(far - near + 0.3).mean()
    )
    torch.testing.assert_close(related.loss(astpn, batch)[0], expected)


def test_recipe():
    for name in ("smoke", "mini", "paper"):
        recipe = related.recipe(scale(name))
        T = 2 if name == "smoke" else 8
        assert len(recipe.train_sampler(40, np.random.default_rng(0))) == T
        assert all(len(c) == T for c in recipe.test_sampler(21))
