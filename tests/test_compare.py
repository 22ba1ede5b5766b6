"""Lesson 08: its footing, its losses, its costs and the factors of the queries."""

import numpy as np
import pytest
import torch
from torch import nn

from vreid_course import lessons, study
from vreid_course.scales import scale

lesson = lessons.load("08_compare")


@pytest.fixture
def at(monkeypatch):
    monkeypatch.setenv("VREID_SCALE", "smoke")
    return lesson.footing(scale())


def test_the_halves_cover_both_ends_and_need_few_frames():
    assert lesson.halves(40, frames=8, part=0).tolist() == list(range(6, 14))
    assert lesson.halves(40, frames=8, part=1).tolist() == list(range(26, 34))
    for length in range(1, 30):
        for part in (0, 1):
            picked = lesson.halves(length, None, 8, part)
            assert len(picked) == 8 and picked.min() >= 0 and picked.max() < length


@pytest.mark.parametrize("name", lesson.NAMES)
def test_every_method_has_features_logits_and_both_losses(name, at):
    torch.manual_seed(0)
    model = lesson.new_model(lesson.METHODS[name], 8, at)
    labels = torch.arange(2).repeat_interleave(2)
    batch = {"clips": torch.randn(4, at.T, 3, *at.size), "labels": labels}
    features, logits = lesson.both(model.train(), batch["clips"])
    assert features.shape[0] == 4 and features.ndim == 2 and logits.shape == (4, 8)
    for column in ("common", "paper"):
        total = lesson.loss_of(lesson.METHODS[name], column)(model, batch)[0]
        assert total.ndim == 0 and torch.isfinite(total)
        with torch.inference_mode():
            found = lesson.embed_of(name, column)(model.eval(), batch["clips"][0])
        assert found.ndim == 1 and torch.isfinite(found).all()
        model.train()


@pytest.mark.parametrize("name", ["mean", "TKP", "VRSTC", "STMP"])
def test_the_backbone_learns_slowly_and_nothing_is_left_out(name, at):
    model = lesson.new_model(lesson.METHODS[name], 8, at)
    old, new = lesson.optimiser(model).param_groups
    assert old["lr"] < new["lr"]
    trainable = {id(p) for p in model.parameters() if p.requires_grad}
    found = [id(p) for group in (old, new) for p in group["params"]]
    assert set(found) == trainable and len(found) == len(trainable)
    backbones = 2 if name == "TKP" else 1  # image and video network
    assert sum(p.numel() for p in old["params"]) == backbones * 2_798_880


def test_what_is_kept_for_the_backward_pass():
    class Square(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4))

        def forward(self, x):
            return (x * self.weight).square()

    def loss(model, batch):
        return model(batch["clips"]).sum(), {}

    batch = {"clips": torch.ones(2**18, 4)}  # 4 MiB: kept for the weight; its product once more
    assert lesson.kept_for_backward(Square(), loss, batch) == pytest.approx(8, abs=0.01)


def test_turn_is_the_nearest_view_of_a_right_answer():
    pids, camids = np.array([1, 1, 1, 1, 2]), np.array([1, 2, 3, 1, 2])
    split = type("Split", (), {"pids": pids, "camids": camids})
    view = np.radians([350.0, 40.0, 100.0, 351.0, 350.0])
    assert lesson.turn(split, view, 0) == pytest.approx(50)
    assert lesson.turn(split, view, 2) == pytest.approx(60)
    assert np.isnan(lesson.turn(split, view, 4)), "nobody else has this person"


def test_the_study_has_every_method_under_both_losses_with_three_seeds():
    rows = [row for row in lesson.STUDY if row["test"] == "people"]
    assert len({tuple(row.items()) for row in rows}) == len(rows)
    for name, method in lesson.METHODS.items():
        columns = {"common"} if method.own == "common" else {"common", "paper"}
        mine = [row for row in rows if row["method"] == name]
        assert {(row["loss"], row["seed"]) for row in mine} == {
            (column, seed) for column in columns for seed in (0, 1, 2)
        }


def test_the_committed_study_is_whole():
    """Every row of STUDY once, as far as its key goes; the APs of one query everywhere."""
    rows = study.read("08_compare")
    keys = [{k: str(v) for k, v in row.items()} for row in lesson.STUDY]
    for key in keys:
        assert sum(key.items() <= row.items() for row in rows) == 1, key
    assert len(rows) == len(keys)
    scored = study.aps([row for row in rows if row["ap"]])
    assert (np.isnan(scored) == np.isnan(scored[0])).all()


def test_under_its_own_loss_sta_has_its_regulariser(at):
    model = lesson.new_model(lesson.METHODS["STA"], 8, at)
    assert model.system.head.steady > 0


def test_the_rate_of_what_is_new_reaches_the_optimiser(at):
    model = lesson.new_model(lesson.METHODS["LSTM"], 8, at)
    for rate in (3e-3, 3e-4):
        groups = lesson.recipe(at, rate).optimiser(model).param_groups
        assert [group["lr"] for group in groups] == [1e-4, rate]
