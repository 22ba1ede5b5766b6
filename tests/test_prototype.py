"""Lesson 09: heads against plain loops, search in pieces against the whole matrix, its study.

And the two street cameras that it draws.
"""

import inspect
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from vreid_course import lessons, study
from vreid_course.__main__ import main
from vreid_course.data.boxes import read_boxes
from vreid_course.data.film import RATE, Walk, detected, film, passers_by, walks, who_is_who
from vreid_course.data.mars import read_mars
from vreid_course.data.video import Shot, Video, from_video
from vreid_course.drawing.mini_mars import MiniMars, draw
from vreid_course.metrics import bootstrap
from vreid_course.nets import resnet
from vreid_course.studies import prototype as studies

prototype = lessons.load("09_prototype")


def clip(B, T, D, seed=0):
    return torch.rand(B, T, D, generator=torch.Generator().manual_seed(seed))


# ----------------------------------------------------------------------------------------- heads


@pytest.mark.parametrize("name", prototype.HEADS)
@pytest.mark.parametrize(("B", "T", "D"), [(1, 1, 5), (3, 2, 4), (2, 40, 7), (1, 900, 3)])
def test_every_head_keeps_the_contract(name, B, T, D):
    head = prototype.HEADS[name](D).eval()
    found = head(clip(B, T, D))
    assert found.shape == (B, head.width) and found.isfinite().all()


@pytest.mark.parametrize("name", prototype.HEADS)
def test_a_head_has_twenty_lines_and_learns_from_one_frame_too(name):
    kind = prototype.HEADS[name]
    assert len(inspect.getsource(kind).strip().splitlines()) <= 20
    for T in (1, 16):
        head = kind(6)
        frames = clip(4, T, 6).requires_grad_()
        head(frames).square().sum().backward()
        for x in (frames, *head.parameters()):
            assert x.grad is None or x.grad.isfinite().all()


def test_mean_and_agreement():
    x = clip(3, 5, 4)
    mean = x.numpy().mean(1)
    np.testing.assert_allclose(
        prototype.Mean(4)(x), mean / np.linalg.norm(mean, axis=1, keepdims=True), rtol=1e-5
    )
    head = prototype.Agreement(4)
    for b in range(3):
        middle = np.median(x[b].numpy(), axis=0)
        cosines = [f @ middle / np.linalg.norm(f) / np.linalg.norm(middle) for f in x[b].numpy()]
        weights = np.exp(10 * np.array(cosines))
        weights /= weights.sum()
        np.testing.assert_allclose(head.weights(x)[b].detach(), weights, rtol=1e-4)
        mean = (weights[:, None] * x[b].numpy()).sum(0)
        np.testing.assert_allclose(head(x)[b].detach(), mean / np.linalg.norm(mean), rtol=1e-4)


def test_agreement_turns_away_from_an_outlier():
    x = torch.ones(1, 9, 4)
    x[0, 4] = torch.tensor([0.0, 0.0, 0.0, 5.0])
    weights = prototype.Agreement(4).weights(x)[0]
    assert weights.argmin() == 4 and weights[4] < 0.01


def test_rhythm_is_the_plain_loop():
    head = prototype.Rhythm(5, speeds=7, look=3).train()
    x = clip(4, 13, 5)
    found = head(x).detach().numpy()
    shares = []
    for b in range(4):
        moves = (x[b] - x[b].mean(0)) @ head.look.weight.T
        power = []
        for k in range(7):
            w = 2 * math.pi * 10 ** (-1.5 + k / 6)
            total = sum(
                math.sin(math.pi * (t + 1) / 14) ** 2
                * np.exp(1j * w * t)
                * moves[t].detach().numpy()
                for t in range(13)
            )
            power.append((np.abs(total) ** 2).sum())
        shares.append(np.sqrt(np.array(power) / sum(power)))
    shares = np.array(shares)
    normal = (shares - shares.mean(0)) / np.sqrt(shares.var(0) + 1e-5)
    np.testing.assert_allclose(found[:, 5:], 0.1 * 13 / 29 / 7**0.5 * normal, atol=2e-4)
    np.testing.assert_allclose(found[:, :5], prototype.Mean(5)(x), rtol=1e-5)


def test_rhythm_finds_the_period_and_forgets_the_phase():
    head = prototype.Rhythm(2, look=2).eval()
    t = torch.arange(48)

    def wave(period, phase):
        angle = 2 * math.pi * t / period + phase
        return torch.stack([3 + angle.sin(), 2 + angle.cos()], 1)[None]

    periods = 2 * math.pi / head.speeds
    with torch.inference_mode():
        for period in (5, 7, 10, 14):
            found = head(wave(period, 0))[0, 2:]
            assert periods[found.argmax()] == pytest.approx(period, rel=0.1)
            torch.testing.assert_close(found, head(wave(period, 1.3))[0, 2:], atol=2e-3, rtol=0)
    assert head(wave(5, 0))[0, 2:].argmax() != head(wave(14, 0))[0, 2:].argmax()


def test_a_short_tracklet_is_trusted_less():
    head = prototype.Rhythm(2, look=2).eval()
    sizes = [float(head(clip(1, T, 2))[0, 2:].norm().detach()) for T in (4, 16, 64)]
    assert sizes == sorted(sizes)
    ratio = sizes[2] / sizes[0]  # the shares have the same norm 1, before batch norm moves them
    assert ratio == pytest.approx((64 / 80) / (4 / 20), rel=1e-3)


def test_learn_learns_and_is_the_seed():
    rng = np.random.default_rng(0)
    pids = np.repeat(np.arange(1, 6), 4)
    looks = rng.random((6, 8))
    frames = [(looks[p] + 0.1 * rng.random((20, 8))).astype(np.float32) for p in pids]
    one, history = prototype.learn(prototype.Rhythm, frames, pids, 30, seed=1)
    two, again = prototype.learn(prototype.Rhythm, frames, pids, 30, seed=1)
    assert history == again and history[-1]["loss"] < history[0]["loss"] / 2
    found = prototype.describe(one, frames)
    np.testing.assert_array_equal(found, prototype.describe(two, frames))
    assert found.shape == (20, 8 + 24)
    mixed = prototype.describe(one, frames, mix=3)
    np.testing.assert_allclose(mixed[:, :8], found[:, :8], atol=1e-6)
    assert np.abs(mixed - found).max() > 1e-5


def test_the_network_is_the_head_on_the_means_over_space():
    torch.manual_seed(0)
    model = prototype.build(5, resnet("course")).eval()
    frames = torch.randn(70, 3, 32, 16)  # more than are taken at once
    with torch.inference_mode():
        feature = prototype.embed(model, frames)
        features, logits = model(frames[None])
        kept = model.trunk(frames).mean((2, 3))
        torch.testing.assert_close(feature, features[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(feature, model.named.head(kept[None])[0], rtol=1e-4, atol=1e-5)
    assert logits.shape == (1, 5)
    batch = {"clips": torch.randn(4, 3, 3, 32, 16), "labels": torch.tensor([0, 0, 1, 1])}
    total, parts = prototype.loss(model, batch)
    assert total.isfinite() and {"cross entropy", "triplet"} <= set(parts)


def test_clips_are_runs_of_kept_frames_and_do_not_depend_on_the_start():
    frames = [
        np.arange(20 * i, 20 * i + n, dtype=np.float32)[:, None]
        for i, n in enumerate((9, 3, 12, 5))
    ]
    clips = prototype.KeptClips(frames, np.array([4, 4, 8, 8]), 2, T=6, seed=1)
    whole_run, later = list(clips(0, 4, (0, 1))), list(clips(2, 4, (0, 1)))
    for one, two in zip(whole_run[2:], later, strict=True):
        assert all(torch.equal(one[key], two[key]) for key in one)
    batch = whole_run[0]
    assert (
        batch["clips"].shape == (8, 6, 1) and sorted(batch["labels"].tolist()) == [0] * 4 + [1] * 4
    )
    for clip, label in zip(batch["clips"][..., 0].tolist(), batch["labels"].tolist(), strict=True):
        row = int(clip[0] // 20)
        assert label == row // 2
        steps = np.diff(np.array(clip) - 20 * row) % len(frames[row])
        assert (steps == 1 % len(frames[row])).all()


# ------------------------------------------------------------------------------------ the street


def test_everybody_needs_seven_to_eight_seconds():
    walked = walks(40, 300, seed=1)
    assert {w.camera for w in walked} == {1, 2} and len({w.person for w in walked}) == 40
    for person in range(40):
        mine = [w for w in walked if w.person == person]
        assert 1 <= len(mine) <= 3 and len({(w.lane, w.direction) for w in mine}) == 1
        for one, two in zip(mine, mine[1:], strict=False):
            assert one.camera != two.camera and 7 * RATE <= two.first - one.first <= 8 * RATE


def test_looks_are_shared_in_fours():
    people = passers_by(7, alike=5)
    assert len(people) == 7 and people[0].colours is people[3].colours
    assert people[4].colours is not people[0].colours
    assert len({str(p.attributes) for p in people[:4]}) == 4


@pytest.fixture(scope="module")
def street(tmp_path_factory):
    """Two small films, their true boxes and those of a detector."""
    place = tmp_path_factory.mktemp("film")
    people, walked = passers_by(3, alike=0), walks(3, 70, seed=2)
    boxes = {c: film(people, walked, c, 70, place / f"{c}.avi") for c in (1, 2)}
    for c in (1, 2):
        detected(boxes[c], place / f"{c}.txt", seed=c)
    return place, walked, boxes


def test_films_show_who_their_boxes_say(street):
    place, walked, boxes = street
    for c in (1, 2):
        pictures = [picture.astype(int) for picture, _ in Video(place / f"{c}.avi")]
        assert len(pictures) == 70 and {walked[i].camera for _, i, *_ in boxes[c]} == {c}
        empty = np.median(pictures, 0)
        for frame, _, x, y, w, h in boxes[c]:
            if x > 0 and x + w < 480:
                change = np.abs(pictures[frame - 1] - empty).max(2) > 40
                assert change[y : y + h, x : x + w].mean() > 0.2
                assert change[y : y + h].sum() < 3 * w * h
        found = read_boxes(place / f"{c}.txt")
        assert 0.9 * len(boxes[c]) < len(found.ids) <= len(boxes[c]) and set(found.ids) == {-1}


def test_the_truth_makes_a_table_of_identities(street, tmp_path):
    place, walked, boxes = street
    shots = [Shot(c, place / f"{c}.avi", place / f"{c}.txt") for c in (1, 2)]
    from_video(shots, tmp_path / "tracks", shortest=8)
    who_is_who(tmp_path / "tracks", walked, boxes, tmp_path / "people.csv")
    from_video(shots, tmp_path / "known", shortest=8, identities=tmp_path / "people.csv")
    test = read_mars(tmp_path / "known").test
    seen = {(w.person + 1, w.camera) for w in walked if w.first < 40}
    assert seen <= {*zip(test.pids.tolist(), test.camids.tolist(), strict=True)}


def test_a_track_is_whom_its_boxes_overlap_most_often(tmp_path):
    """Two people are in every frame; track 7 follows the second, but for one frame."""
    walked = [Walk(4, 1, 0, 1, 0), Walk(2, 1, 1, 1, 0)]
    boxes = {1: [(t, i, 100 * i, 0, 10, 20) for t in (1, 2, 3) for i in (0, 1)]}
    rows = [(7, 1, 101), (7, 2, 98), (7, 3, 2), (8, 1, 1), (8, 2, 3)]  # track, frame, left
    lines = [f"1,{track},{frame},{left},0,10,20" for track, frame, left in rows]
    text = "camera,track,frame,left,top,width,height"
    (tmp_path / "frames.csv").write_text("\n".join([text, *lines]))
    who_is_who(tmp_path, walked, boxes, tmp_path / "people.csv")
    assert (tmp_path / "people.csv").read_text() == "camera,track,person\n1,7,3\n1,8,5\n"


# ---------------------------------------------------------------------------------------- search


def whole(queries, gallery, k):
    """All distances, and a stable sort."""
    squares = (queries[:, None].double() - torch.from_numpy(gallery).double()).square().sum(2)
    order = squares.sort(dim=1, stable=True)
    return order.values[:, :k].sqrt().float(), order.indices[:, :k]


@pytest.mark.parametrize("kind", [np.float16, np.float32])
@pytest.mark.parametrize("pieces", [1, 7, 100, 499, 500, 10_000])
def test_pieces_give_the_whole_with_ties_in_order(kind, pieces):
    rng = np.random.default_rng(0)
    gallery = rng.integers(0, 3, (500, 4)).astype(kind)  # 81 kinds of rows: nothing but ties
    queries = torch.from_numpy(rng.integers(0, 3, (9, 4)).astype(np.float32))
    far, rows = prototype.nearest(queries, gallery, 60, pieces)
    wanted, order = whole(queries, gallery, 60)
    assert torch.equal(rows, order)
    torch.testing.assert_close(far, wanted, rtol=1e-6, atol=0)


def test_keys_are_ordered_as_distances_are():
    values = torch.tensor([[0.0, -0.0, 1e-45, 1e-20, 0.5, 1.0, 1.0000001, 3e38, math.inf]])
    keys = prototype.keys_of(values, 2**31)
    assert (keys.diff() > 0).all() and ((keys & (2**32 - 1))[0] == 2**31 + torch.arange(9)).all()
    torch.testing.assert_close((keys >> 32).int().view(torch.float32), values, rtol=0, atol=0)
    assert prototype.keys_of(torch.tensor([[-1e-9]]), 5).item() == 5  # rounded below zero


def test_a_gallery_smaller_than_k_and_a_real_one():
    rng = np.random.default_rng(1)
    gallery = rng.standard_normal((300, 16), np.float32)
    queries = torch.from_numpy(rng.standard_normal((5, 16), np.float32))
    far, rows = prototype.nearest(queries, gallery[:3], 10)
    assert far.shape == rows.shape == (5, 3)
    far, rows = prototype.nearest(queries, gallery, 10, 64)
    wanted, order = whole(queries, gallery, 10)
    assert torch.equal(rows, order)
    torch.testing.assert_close(far, wanted, rtol=1e-4, atol=1e-4)


def test_only_one_piece_is_read_at_a_time(tmp_path):
    class Counted:
        def __init__(self, array):
            self.array, self.sizes = array, []

        def __len__(self):
            return len(self.array)

        def __getitem__(self, rows):
            part = self.array[rows]
            self.sizes.append(len(part))
            return part

    np.save(tmp_path / "g.npy", np.random.default_rng(0).random((1000, 4)).astype(np.float16))
    gallery = Counted(np.load(tmp_path / "g.npy", mmap_mode="r"))
    prototype.nearest(torch.rand(3, 4), gallery, 5, 300)
    assert gallery.sizes == [300, 300, 300, 100]


# ----------------------------------------------------------------------------------------- study


def committed(footing):
    rows, wanted = study.read("09_prototype"), studies.ROWS
    assert len(rows) == len(wanted)
    for row in wanted:
        assert any({k: str(v) for k, v in row.items()}.items() <= r.items() for r in rows), row
    return [row for row in rows if row["footing"] == footing]


def test_the_committed_study_is_whole():
    (facts,) = committed("queries")
    queries = len(facts["kind"].split())
    assert queries == len(facts["hidden"].split())
    for row in committed("kept"):
        values = np.array(row["ap"].split(), float)
        assert len(values) == queries and row["scale"] == "mini"
        assert np.nanmean(values) * 100 == pytest.approx(float(row["mAP"]), abs=0.05)


def test_what_the_lesson_says_of_the_study():
    """Agreement changes nothing; the rhythm gains on twins; untrained trust costs the others."""
    kind = np.array(committed("queries")[0]["kind"].split())

    def ap(head, column="ap"):
        mine = [r for r in committed("kept") if r["head"] == head]
        assert len(mine) == 3
        return np.mean([np.array(r[column].split(), float) for r in mine], 0)

    mean, rhythm, twins = ap("mean"), ap("rhythm"), kind == "twin"
    assert abs(np.nanmean(ap("agreement") - mean)) < 0.003
    assert bootstrap(rhythm[twins], mean[twins])[1] > 0
    fixed = ap("rhythm, fixed weight")[kind == "-"]
    assert np.nanmean(fixed) < np.nanmean(rhythm[kind == "-"])
    shuffled = ap("rhythm", "shuffled ap")
    assert np.nanmean(shuffled[twins]) < np.nanmean(rhythm[twins])


def test_what_the_lesson_says_of_the_index():
    """More lists, more recall and more time; always faster than exact, never quite it."""
    for rows in ("100000", "1000000"):
        exact, *lists = [r for r in committed("index") if r["rows"] == rows]
        assert exact["head"] == "exact" and float(exact["recall"]) == 1
        recall, spent = ([float(r[c]) for r in lists] for c in ("recall", "ms a query"))
        assert recall == sorted(recall) and spent == sorted(spent) and max(recall) < 1
        assert max(spent) < float(exact["ms a query"])


def test_an_index_of_all_lists_is_exact(monkeypatch):
    monkeypatch.setenv("VREID_SCALE", "smoke")
    few, many = (studies.measure_index(f"IVF, {n} lists", 200_000) for n in (1, 44))
    assert float(many["recall"]) == 1 > float(few["recall"]) > 0.05
    assert studies.measure_index("exact", 200_000)["recall"] == "1.000"
    features, asked = studies.gallery(2000)
    rows = studies.exact(2000)[1]
    for q in range(5):
        far = ((features - asked[q]) ** 2).sum(1)
        assert set(rows[q]) == set(far.argsort()[:10])


@pytest.mark.slow
def test_a_row_can_be_measured_on_a_set_without_truth(tmp_path, monkeypatch):
    draw(MiniMars(8, 8, seed=5, frames=(2, 6)), tmp_path / "set", 1)
    for path in (tmp_path / "set").glob("truth_*"):
        path.unlink()
    monkeypatch.setenv("VREID_DATA", str(tmp_path / "set"))
    monkeypatch.setenv("VREID_SCALE", "smoke")
    monkeypatch.setenv("VREID_CACHE", str(tmp_path))
    studies.kept.cache_clear()
    assert studies.measure({"footing": "queries"}) == {"scale": "smoke"}
    for head in ("rhythm", "rhythm, fixed weight"):
        row = studies.measure({"footing": "kept", "head": head, "seed": 0})
        assert float(row["mAP"]) > 0 and float(row["shuffled mAP"]) > 0
    assert row["learned"] == "0.1000"
    studies.kept.cache_clear()


# ----------------------------------------------------------------------------------- the command

METHODS = [name for name in lessons.names() if name[:2] not in ("00", "08")]


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_every_lesson_trains_and_tests_by_the_same_command(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VREID_SCALE", "smoke")
    assert main(["train", name, "--folder", str(tmp_path)]) == 0
    assert (tmp_path / "last.pt").is_file()
    assert main(["evaluate", name, "--folder", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "trained 4 steps" in said and "queries scored" in said


@pytest.mark.slow
def test_two_processes_train_the_prototype(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", "2", "-m", "vreid_course", "train", "09_prototype"]
    circumstances = os.environ | {"VREID_SCALE": "smoke", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--folder", str(tmp_path)], env=circumstances, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "last.pt").is_file()
