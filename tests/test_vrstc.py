"""Lesson 06: scoring, patch attention, painting, the losses, and the completed set on disk."""

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vreid_course import lessons, study
from vreid_course.data.mars import read_mars
from vreid_course.drawing.mini_mars import MiniMars, mini_mars
from vreid_course.loader import FrameStore
from vreid_course.nets import resnet
from vreid_course.scales import scale

vrstc = lessons.load("06_vrstc")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    config = MiniMars(3, 2, frames=(4, 8), dials={"occlusion": 1.0})
    return mini_mars(config, tmp_path_factory.mktemp("drawn"))


def test_scores_are_cosines_with_the_mean_over_time():
    bands = torch.rand(5, 3, 4, generator=torch.Generator().manual_seed(0)).double()
    found = vrstc.band_scores(bands)
    for k in range(3):
        mean = bands[:, k].mean(0)
        for t in range(5):
            v = bands[t, k]
            wanted = float(v @ mean) / math.sqrt(float(v @ v) * float(mean @ mean))
            assert math.isclose(float(found[t, k]), wanted, rel_tol=1e-9)
    equal = vrstc.band_scores(F.normalize(torch.rand(2, 3, 6), dim=2))
    torch.testing.assert_close(equal[0], equal[1])  # two frames: nobody can say which is hidden


def test_bands_are_those_of_the_painting_network():
    assert vrstc.band_edges(128) == [0, 42, 86, 128]
    assert vrstc.band_edges(256) == [0, 86, 170, 256]
    flags = torch.tensor([[True, False, True], [False, False, False]])
    for height in (128, 256):
        large = vrstc.band_mask(flags, height, 4)
        _, first, second, _ = vrstc.band_edges(height)
        rows = large[0, 0, :, 0].nonzero()[:, 0]
        assert large.shape == (2, 1, height, 4) and large[1].sum() == 0
        assert rows.tolist() == [*range(first), *range(second, height)]
        half = vrstc.small_mask(flags, height // 2, 2)
        assert torch.equal(half.repeat_interleave(2, 2).repeat_interleave(2, 3), large)
    assert vrstc.small_mask(flags, 128, 1)[0, 0, :, 0].sum() == 43 + 43  # rows 0-43, 85-128


def test_clean_neighbours_against_a_loop():
    rng = np.random.default_rng(0)
    for T in (1, 2, 7, 30):
        for rate in (0.0, 0.3, 0.9, 1.0):
            flags = rng.random((T, 3)) < rate
            clean = [t for t in range(T) if not flags[t].any()]
            for t, (before, after) in enumerate(zip(*vrstc.clean_neighbours(flags), strict=True)):
                left, right = [c for c in clean if c < t], [c for c in clean if c > t]
                wanted = left[-1] if left else (right[0] if right else -1)
                assert before == wanted
                assert after == (right[0] if right else wanted)


@pytest.mark.parametrize("factor", [1.0, 10.0])
def test_patch_attention_against_a_loop(factor):
    g = torch.Generator().manual_seed(1)
    x, R = torch.randn(2, 2, 3, 4, 5, generator=g).double()
    found, weights = vrstc.patch_attention(x, R, factor)
    padded = [F.pad(y, (1, 1, 1, 1)) for y in (x, R)]
    places = [(a, b) for a in range(4) for b in range(5)]
    for n in range(2):
        f, r = ([y[n, :, a : a + 3, b : b + 3].flatten() for a, b in places] for y in padded)
        total, count = torch.zeros(3, 6, 7).double(), torch.zeros(6, 7).double()
        for i, (a, b) in enumerate(places):
            s = torch.stack([f[i] @ q / (f[i].norm() * q.norm()) for q in r])
            w = (factor * s).softmax(0)
            torch.testing.assert_close(weights[n, i], w)
            total[:, a : a + 3, b : b + 3] += sum(v * q for v, q in zip(w, r, strict=True)).view(
                3, 3, 3
            )
            count[a : a + 3, b : b + 3] += 1
        torch.testing.assert_close(found[n], (total / count)[:, 1:-1, 1:-1])


def test_attention_finds_a_shift_and_its_temperature_matters():
    R = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    best = vrstc.patch_attention(R.roll((0, 2), (2, 3)), R)[1].argmax(2).view(8, 8)
    assert all(int(best[i, j]) == 8 * i + j - 2 for i in range(1, 7) for j in range(4, 7))
    same = [vrstc.patch_attention(R, R, s)[1].amax(2).mean() for s in (1.0, 10.0)]
    assert same[0] < 0.1 < 0.5 < same[1]


def test_sizes_of_the_networks():
    count = lambda module: sum(p.numel() for p in module.parameters())  # noqa: E731
    assert count(vrstc.encoder(64)) == 3_468_800
    assert count(vrstc.encoder(64)) + count(vrstc.decoder(256, 64)) == 4_126_083
    assert count(vrstc.TemporalGenerator(64)) == 12_112_259
    assert count(vrstc.STCnet(16)) == 258_915 + 759_395


@pytest.mark.parametrize(
    "options", [{}, {"neighbours": "concatenate"}, {"neighbours": "none"}, {"temporal": False}]
)
def test_nothing_changes_outside_the_mask(options):
    net, x = vrstc.STCnet(4, **options), torch.rand(3, 3, 64, 32) * 2 - 1
    mask = vrstc.small_mask(torch.eye(3) > 0, 64, 32)
    x1, x2 = net(x, mask, x.flip(0), x)
    for painted in (x1, x2):
        outside = mask.expand_as(x) == 0
        assert torch.equal(painted[outside], x[outside]) and not torch.equal(painted, x)
    hidden = torch.where(mask > 0, torch.rand_like(x), x)  # what is under the mask is not seen
    torch.testing.assert_close(net(hidden, mask, x.flip(0), x)[1] * mask, x2 * mask)


def completion(c=4):
    torch.manual_seed(0)
    guider = vrstc.ReidNet(4, resnet("course"))
    nn.init.normal_(guider.classifier.weight, std=0.1)
    model = vrstc.Completion(vrstc.STCnet(c), guider, (64, 32), c).train()
    bands = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]]) > 0
    return model, {
        "clips": torch.randn(4, 3, 3, 128, 64),
        "labels": torch.arange(4),
        "bands": bands,
    }


def test_each_loss_reaches_only_what_it_trains():
    model, batch = completion()
    guider = {k: v.clone() for k, v in model.guider.state_dict().items()}
    for name in ("guider", "local D", "global D"):
        model.zero_grad()
        total, parts = vrstc.stc_loss(model, batch, {"L1": 0.0, name: 1.0})
        (total - parts.get(f"{name} itself", 0.0)).backward()
        grown = {
            p.split(".")[0]
            for p, v in model.named_parameters()
            if v.grad is not None and v.grad.any()
        }
        assert grown == {"stc"}, name
    for name, judge in (("local D", "band"), ("global D", "whole")):
        model.zero_grad()
        vrstc.stc_loss(model, batch, {"L1": 0.0, name: 1.0})[1][f"{name} itself"].backward()
        grown = {
            p.split(".")[0]
            for p, v in model.named_parameters()
            if v.grad is not None and v.grad.any()
        }
        assert grown == {judge}
    assert all(torch.equal(v, model.guider.state_dict()[k]) for k, v in guider.items())


def test_total_is_the_weighted_sum():
    model, batch = completion()
    total, parts = vrstc.stc_loss(model, batch)
    itself = parts["local D itself"] + parts["global D itself"]
    wanted = parts["L1"] + 0.001 * (parts["local D"] + parts["global D"]) + 0.1 * parts["guider"]
    torch.testing.assert_close(total, wanted + itself)


def test_painting_format_and_back():
    frames = torch.randint(0, 256, (2, 3, 64, 32), dtype=torch.uint8)
    frames = frames.repeat_interleave(2, 2).repeat_interleave(2, 3)
    small = vrstc.to_paint(vrstc.normalise(frames))
    torch.testing.assert_close(
        (small + 1) * 127.5, frames[..., ::2, ::2].float(), atol=1e-3, rtol=0
    )
    flat = torch.full((1, 3, 128, 64), 100, dtype=torch.uint8)
    back = vrstc.to_reid(vrstc.to_paint(vrstc.normalise(flat)))
    torch.testing.assert_close(back, vrstc.normalise(flat), atol=1e-5, rtol=1e-5)


def test_training_triples_are_clean_and_near(drawn):
    store = FrameStore(drawn.train, (128, 64))
    rng = np.random.default_rng(0)
    flags = [rng.random((n, 3)) < 0.1 for n in drawn.train.lengths]
    data = vrstc.CleanTriples(store, flags, size=64)
    batch = next(iter(data(0, 1)))
    assert batch["clips"].shape == (64, 3, 3, 128, 64) and batch["clips"].dtype == torch.uint8
    assert set(batch["bands"].sum(1).tolist()) <= {1, 2}
    again = next(iter(data(0, 1)))
    assert torch.equal(batch["clips"], again["clips"])
    halves = [next(iter(data(0, 1, (i, 2)))) for i in range(2)]
    assert len(halves[0]["labels"]) == 32
    with pytest.raises(ValueError, match="lower threshold"):
        vrstc.CleanTriples(store, [np.ones((n, 3), bool) for n in drawn.train.lengths])


def test_neighbours_of_a_training_triple_are_at_most_8_frames_away():
    asked = []

    def read(row, which):
        asked.append(which)
        return torch.zeros(3, 3, 128, 64, dtype=torch.uint8)

    flags = [np.zeros((100, 3), bool)]
    split = SimpleNamespace(pids=np.zeros(1, int), lengths=np.array([100]))
    data = vrstc.CleanTriples(SimpleNamespace(split=split, read=read), flags)
    rng = np.random.default_rng(0)
    for _ in range(300):
        vrstc.clean_triple(data, rng)
    before, middle, after = np.array(asked).T
    assert set(middle - before) == set(after - middle) == set(range(1, 9))


def test_repainting_keeps_clean_frames_and_clean_bands():
    net, frames = vrstc.STCnet(4), torch.randint(0, 256, (70, 3, 128, 64), dtype=torch.uint8)
    flags = np.zeros((70, 3), bool)
    flags[3, 1] = flags[5, :] = flags[9, 0] = flags[66, 2] = True
    done = vrstc.repaint(net, frames, flags)
    same = (done == frames).all(1).all(2)  # (T, H): rows that did not change
    edges = vrstc.band_edges(128)
    for t in range(70):
        painted = [] if flags[t].all() else np.flatnonzero(flags[t])
        for k in range(3):
            assert same[t, edges[k] : edges[k + 1]].all() == (k not in painted)
    nothing_clean = vrstc.repaint(net, frames[:4], np.tile([True, False, False], (4, 1)))
    assert not torch.equal(nothing_clean, frames[:4])


def test_a_completed_set_is_a_set_and_leaves_the_first_alone(drawn, tmp_path):
    flags = {}
    for split in (drawn.train, drawn.test):
        flags[split.folder.name] = [np.zeros((n, 3), bool) for n in split.lengths]
        flags[split.folder.name][0][1, 2] = True
    before = {p: p.read_bytes() for p in drawn.root.rglob("*.jpg")}
    at = replace(scale("smoke"))
    new = vrstc.write_version(drawn, tmp_path / "new", vrstc.repainted(vrstc.STCnet(4), flags, at))
    assert np.array_equal(new.query, drawn.query)
    for old, split in ((drawn.train, new.train), (drawn.test, new.test)):
        assert split.lengths.tolist() == old.lengths.tolist()
        for i in range(len(old)):
            changed = (old.frames(i) != split.frames(i)).any((1, 2, 3))
            assert changed.tolist() == flags[split.folder.name][i].any(1).tolist()
    assert all(p.read_bytes() == data for p, data in before.items())
    assert read_mars(new.root).test.names.tolist() == drawn.test.names.tolist()
    fewer = vrstc.write_version(drawn, tmp_path / "few", vrstc.dropped(flags))
    assert fewer.train.lengths[0] == drawn.train.lengths[0] - 1


def test_writing_goes_on_where_it_was_stopped(drawn, tmp_path):
    seen = []

    def changes(split, i):
        seen.append((split.folder.name, i))
        if len(seen) == 5:
            raise KeyboardInterrupt
        return {0: np.full_like(split.frames(i, [0])[0], 7)}

    with pytest.raises(KeyboardInterrupt):
        vrstc.write_version(drawn, tmp_path / "new", changes)
    assert not (tmp_path / "new").exists()
    new = vrstc.write_version(drawn, tmp_path / "new", changes)
    assert len(seen) == 1 + len(drawn.train) + len(drawn.test), "only the fifth is asked for twice"
    assert not list(Path(new.root).glob("done"))
    vrstc.write_version(drawn, tmp_path / "new", changes)
    assert len(seen) == 1 + len(drawn.train) + len(drawn.test)


def test_hidden_shares_count_the_body(drawn):
    truth = vrstc.Truth(drawn.test)
    i = int(np.argmax([truth.frames(i).occluded.max() for i in range(len(drawn.test))]))
    body, occluder = truth.parts(i) > 0, truth.occluder(i)
    found, edges = vrstc.hidden_shares(truth, i), vrstc.band_edges(128)
    for t in range(len(body)):
        for k in range(3):
            b, o = (m[t, edges[k] : edges[k + 1]] for m in (body, occluder))
            assert math.isclose(found[t, k], (b & o).sum() / max(b.sum(), 1))
    assert found.max() > 0.1


@pytest.mark.parametrize("places", [None, "usual", {"layer3": (1,)}])
def test_reid_networks(places):
    model = vrstc.build(5, resnet("course"), places)
    features, logits = model(torch.rand(2, 3, 3, 128, 64))
    assert features.shape == (2, 256) and logits.shape == (2, 5)
    model.eval()  # one clip has no batch statistics
    assert math.isclose(
        float(vrstc.embed(model, torch.rand(3, 3, 128, 64)).detach().norm()), 1, rel_tol=1e-5
    )


def test_short_runs_have_a_neck_and_the_paper_has_none(monkeypatch):
    for name, neck in (("mini", nn.BatchNorm1d), ("paper", nn.Identity)):
        monkeypatch.setenv("VREID_SCALE", name)
        model = vrstc.build(5, resnet("course"), None)
        assert type(model.neck) is neck
    monkeypatch.setenv("VREID_SCALE", "mini")
    model, clips = vrstc.build(5, resnet("course"), None).eval(), torch.rand(2, 3, 3, 128, 64)
    with torch.no_grad():
        model.neck.running_mean.uniform_(), model.neck.weight.uniform_(1, 2)
        means = model.trunk(clips.flatten(0, 1)).unflatten(0, (2, 3)).mean((1, 3, 4))
        features, logits = model(clips)
        wanted = (means - model.neck.running_mean) / (1 + 1e-5) ** 0.5 * model.neck.weight
        torch.testing.assert_close(features, wanted, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(logits, model.classifier(features))
    new = {id(p) for p in vrstc.optimiser(model).param_groups[1]["params"]}
    assert {id(p) for p in (*model.neck.parameters(), *model.classifier.parameters())} == new


def test_rows_of_the_study_differ():
    keys = {tuple(row.items()) for row in vrstc.STUDY}
    assert len(keys) == len(vrstc.STUDY) == 3 * (15 + 6 + 2 + 1)
    assert {row["network"] for row in vrstc.STUDY} == set(vrstc.NETWORKS)


def test_the_committed_study_holds_every_row():
    rows = {tuple(row[c] for c in ("network", "rung", "seed")) for row in study.read("06_vrstc")}
    assert rows == {tuple(str(v) for v in row.values()) for row in vrstc.STUDY}


def test_each_variant_is_another_network_or_loss():
    nets = [vrstc.STCnet(4, **options) for options, _ in vrstc.VARIANTS.values()]
    assert [net.temporal and net.temporal.neighbours for net in nets] == [
        None, "none", "concatenate", *["attention"] * 4,
    ]  # fmt: skip
    assert [len(weights) for _, weights in vrstc.VARIANTS.values()] == [0, 0, 0, 0, 1, 2, 3]
    assert vrstc.VARIANTS["+ guider"] == ({}, vrstc.WEIGHTS)
    files = {vrstc.stc_file(Path("x"), name) for name in (None, *vrstc.VARIANTS)}
    assert len(files) == 8


def test_both_versions_of_the_train_tracklets(drawn, tmp_path):
    flags = {}
    for split in (drawn.train, drawn.test):
        flags[split.folder.name] = [np.zeros((n, 3), bool) for n in split.lengths]
    flags["bbox_train"][0][1, 2] = True
    changes = vrstc.repainted(vrstc.STCnet(4), flags, scale("smoke"))
    done = vrstc.write_version(drawn, tmp_path / "done", changes)
    for _ in range(2):  # the second time it finds the links
        both = vrstc.both_versions(drawn.train, done.train, tmp_path / "both")
    n = len(drawn.train)
    assert len(both) == 2 * n and both.pids.tolist() == 2 * drawn.train.pids.tolist()
    assert len({both.key(i) for i in range(2 * n)}) == 2 * n
    for i in range(n):
        assert np.array_equal(both.frames(i), drawn.train.frames(i))
        assert np.array_equal(both.frames(n + i), done.train.frames(i))
    assert not np.array_equal(both.frames(0), both.frames(n))


def test_only_hidden_pixels_are_taken(drawn, tmp_path):
    black = vrstc.write_version(
        drawn, tmp_path / "black", lambda split, i: {0: 0 * split.frames(i, [0])[0]}
    )
    truth = vrstc.Truth(drawn.test)
    i = int(np.argmax([truth.occluder(i)[0].sum() for i in range(len(drawn.test))]))
    found = vrstc.only_hidden(black)(drawn.test, i)
    hidden, raw = truth.occluder(i)[0], drawn.test.frames(i, [0])[0]
    assert list(found) == [0] and hidden.any()
    assert found[0][hidden].max() < 8 and np.array_equal(found[0][~hidden], raw[~hidden])


def test_errors_are_those_of_the_body(drawn, tmp_path):
    raw = vrstc.errors(drawn.test, drawn.test)
    assert float(raw["hidden error"]) > 10 and float(raw["visible error"]) < 3
    clean = vrstc.write_version(drawn, tmp_path / "clean", vrstc.unoccluded)
    assert max(map(float, vrstc.errors(clean.test, drawn.test).values())) < 3  # JPEG once more
