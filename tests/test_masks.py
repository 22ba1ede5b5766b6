"""Lesson 02's study: what its networks are told, their controls, scores and scenes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from vreid_course import lessons, study
from vreid_course.drawing.mini_mars import mini_mars
from vreid_course.drawing.tracklets import Thing
from vreid_course.drawing.truth import Truth
from vreid_course.loader import augment, normalise
from vreid_course.scales import scale
from vreid_course.studies import compare, contrasts, cosam, ground, masks


@pytest.fixture(scope="module")
def at():
    return ground.footing(scale("smoke"))


def test_masks_are_cropped_and_flipped_with_their_frames(at):
    """Checked with the masks in the place of the frames."""
    split = ground.ground(at).train
    store, which = cosam.WithMasks(split, at.size), np.array([0, 1])
    found = store.read(0, which)
    assert found.shape == (4, 3, *at.size) and found.dtype == torch.uint8
    assert (found[2:, 0].numpy() > 127).tolist() == Truth(split).person(0)[which].tolist()
    painted = torch.cat([found[2:], found[2:]])
    for seed in range(4):
        out = augment(painted, np.random.default_rng(seed))
        assert torch.equal(out[:2], out[2:])


@pytest.mark.parametrize("name", list(cosam.KINDS))
def test_every_network_has_features_and_learns(name, at, monkeypatch):
    monkeypatch.setenv("VREID_SCALE", "smoke")
    kind = cosam.KINDS[name]
    torch.manual_seed(0)
    model = cosam.new_model(name, 5, at).train()
    frames = torch.rand(4, at.T, 3, *at.size)
    clips = torch.cat([frames, normalise(torch.full_like(frames, 255).byte())], 1)
    clips = clips if kind.told else frames
    batch = {"clips": clips, "labels": torch.tensor([0, 0, 1, 1])}
    total, _ = cosam._loss(name, at, model, batch)
    total.backward()
    for part, parameter in model.named_parameters():
        frozen = kind.start == "frozen" and part.startswith("blocks")
        idle = kind.start == "identity" and part.startswith("blocks") and parameter.grad is not None
        assert (parameter.grad is None) == frozen or idle, part


def test_what_a_seat_is_told(at):
    person = torch.zeros(2, 1, *at.size)
    person[:, :, :, : at.size[1] // 4] = 1
    assert torch.equal(cosam.told("true", person, at), person)
    assert torch.allclose(cosam.told("share", person, at), torch.full_like(person, 0.25))
    constant = cosam.told("constant", person, at)
    assert constant.min() == constant.max() == cosam.CONSTANT
    centre = cosam.told("centre", person, at)[0, 0]
    assert centre.max() <= 1 and centre[at.size[0] // 2, at.size[1] // 2] > 5 * centre[0, 0]
    split = ground.ground(at).train
    each = [Truth(split).person(row).mean(0) for row in range(len(split))]
    assert np.allclose(cosam.mean_mask(at)[0, 0].numpy(), np.mean(each, 0), atol=1e-6)


def test_a_network_that_is_told_the_true_mask_sees_the_person_alone(at):
    """What is outside the mask's cells cannot reach the feature from the last seat on."""
    torch.manual_seed(0)
    model = cosam.new_model("true mask", 5, at).eval()
    picture = torch.rand(1, at.T, 3, *at.size)
    mask = torch.zeros(1, at.T, 3, *at.size, dtype=torch.uint8)
    mask[..., 32:64, 16:48] = 255
    with torch.inference_mode():
        cosam.forward("true mask", at, model, torch.cat([picture, normalise(mask)], 1))
    seat = model.blocks["5"].mask
    expected = masks.coarse(mask[0, :, 0].numpy() > 0)
    assert np.allclose(seat[:, 0].numpy(), expected, atol=1e-5)


def test_the_identity_start_is_the_identity():
    lesson = lessons.load("02_cosam")
    torch.manual_seed(0)
    block = lesson.COSAM(16, 3, (4, 2)).eval()
    cosam.start_as_identity(block)
    x = torch.rand(6, 16, 4, 2)
    torch.testing.assert_close(block(x)[0], x)
    (block(x)[0] * torch.rand(6, 16, 4, 2)).sum().backward()
    assert block.space.summary[-1].weight.grad.abs().sum() > 0
    assert block.channel.layers[-2].weight.grad.abs().sum() > 0


def test_fixed_masks_are_the_mean_and_the_same_for_all(at, monkeypatch):
    monkeypatch.setenv("VREID_SCALE", "smoke")
    torch.manual_seed(0)
    model = cosam.new_model("COSAM4", 5, at).eval()
    rows = range(0, len(ground.ground(at).train), 4)
    found, _ = cosam.masks_of("COSAM4", model, at, "train", rows)
    fixed = cosam.with_fixed_masks("COSAM4", model, at)
    clips = torch.rand(2, at.T, 3, *at.size)
    with torch.inference_mode():
        _, mask = lessons.load("02_cosam").attend(fixed, clips)[1]["4"]
    assert np.allclose(mask[:, 0].numpy(), found["4"].mean((0, 1)), atol=1e-6)


def test_scores_against_plain_loops():
    rng = np.random.default_rng(0)
    score, person = rng.random((2, 4, 3)).round(1), rng.random((2, 4, 3)) < 0.4
    on, off = score[person], score[~person]
    wins = np.mean([[(a > b) + 0.5 * (a == b) for b in off] for a in on])
    assert masks.pixel_auc(score, person) == pytest.approx(wins)
    maps = rng.random((3, 2, 4, 2))
    for n, found in enumerate(masks.others_mean(maps)):
        rest = [maps[m, t] for m in range(3) if m != n for t in range(2)]
        assert np.allclose(found, np.mean(rest, 0))
    flat = np.ones((2, 4, 2), np.float32)
    there = np.zeros((2, 64, 32), bool)
    assert np.isnan(masks.weight(flat, there))
    there[:, :16] = True
    assert masks.weight(flat, there) == pytest.approx(1)
    flat[:, 0] = 3  # the upper quarter: 3 / 1.5, and less at its lower edge
    assert 1.8 < masks.weight(flat, there) < 2


def test_a_scene_knows_where_things_are():
    config = scale("smoke").street
    test = mini_mars(config).test
    row = int(np.flatnonzero((test.pids > 0) & (test.lengths >= 8))[0])
    calm, where = masks.scene(config, test.key(row), masks.CALM, 4)
    assert not where["in front"].any() and where["person"].any((1, 2)).all()
    assert ((where["person"] ^ where["background"]) | where["bag"]).all()
    somebody = replace(masks.CALM, front=(Thing("person", start=-0.4, stop=-0.38),))
    busy, there = masks.scene(config, test.key(row), somebody, 4)
    changed = ((calm.int() - busy.int()).abs().amax(1) > 30).numpy()  # JPEG changes the rest a bit
    assert there["in front"].any((1, 2)).all() and changed[there["in front"]].mean() > 0.8
    assert changed[~there["in front"]].mean() < 0.05


def test_rows_are_known_and_in_order_of_value():
    keys = [tuple(row.items()) for row in cosam.ROWS]
    assert len(set(keys)) == len(keys)
    assert [row["seed"] for row in cosam.ROWS] == sorted(row["seed"] for row in cosam.ROWS)
    assert set(cosam.LADDER) - {"no mask"} <= set(cosam.KINDS)
    for row in study.read("02_cosam"):
        assert row["network"] in cosam.KINDS and row["scale"] == "mini"


def test_the_contrasts_of_the_lesson_compare_what_they_say():
    """Differences of the committed rows, by hand."""
    rows = study.read("02_cosam")
    assert {row["rate"] for row in rows} == {
        f"{compare.METHODS[x].rate:g}" for x in ("COSAM", "mean")
    }
    for name in cosam.KINDS:
        seeds = [row["seed"] for row in cosam.chosen(name)]
        assert seeds == sorted(r["seed"] for r in rows if r["network"] == name)
    assert {f"c{n}" for n in range(1, 10)} <= set(contrasts.OURS)
    ours = contrasts.OURS["c8"]
    assert ours.study == "compare" and ours.other == "02_cosam" and "T=2" in ours.minus["network"]


def test_differences_are_paired_by_seed():
    one = [{"seed": s, "ap": a} for s, a in (("0", "0.2 0.4"), ("1", "0.4 0.6"))]
    other = [{"seed": "1", "ap": "0.3 0.3"}]
    middle, low, high, seeds = cosam.difference(one, other, np.array([1, 2]))
    assert middle == pytest.approx(20) and seeds == 1 and low <= middle <= high
