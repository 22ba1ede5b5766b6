"""The study of lesson 08: its methods, losses, rates and costs, on the proving ground."""

import numpy as np
import pytest
import torch
from torch import nn

from vreid_course import lessons, study
from vreid_course.data.mars import MarsError
from vreid_course.scales import scale
from vreid_course.studies import compare, costs, ground


@pytest.fixture
def at(monkeypatch):
    monkeypatch.setenv("VREID_SCALE", "smoke")
    return ground.footing(scale())


@pytest.mark.parametrize("name", compare.METHODS)
def test_every_method_has_features_logits_and_both_losses(name, at):
    torch.manual_seed(0)
    model = compare.new_model(compare.METHODS[name], 8, at)
    labels = torch.arange(2).repeat_interleave(2)
    batch = {"clips": torch.randn(4, at.T, 3, *at.size), "labels": labels}
    forward = lessons.load(compare.METHODS[name].lesson).features_and_logits
    features, logits = forward(model.train(), batch["clips"])
    assert features.shape[0] == 4 and features.ndim == 2 and logits.shape == (4, 8)
    assert logits.std() < 0.1, "all begin with classes alike: another start is another footing"
    for column in ("common", "paper"):
        total = compare.loss_of(compare.METHODS[name], column)(model, batch)[0]
        assert total.ndim == 0 and torch.isfinite(total)
        with torch.inference_mode():
            found = compare.embed_of(name, column)(model.eval(), batch["clips"][0])
        assert found.ndim == 1 and torch.isfinite(found).all()
        model.train()


KNOWN = 2_798_880  # parameters of the backbone


@pytest.mark.parametrize(
    ("name", "known"),
    [("mean", KNOWN), ("TKP", 2 * KNOWN), ("VRSTC", KNOWN), ("STMP", KNOWN), ("P3D", KNOWN),
     ("M3D", KNOWN)],
)  # fmt: skip
def test_what_came_with_the_backbone_has_its_rate_and_all_else_the_other(name, known, at):
    model = compare.new_model(compare.METHODS[name], 8, at)
    recipe = ground.recipe(at, 5e-3, compare.known_parameters)
    old, new = recipe.optimiser(model).param_groups
    assert (old["lr"], new["lr"]) == (ground.TRUNK_RATE, 5e-3)
    found = [id(p) for group in (old, new) for p in group["params"]]
    assert set(found) >= {id(p) for p in model.parameters() if p.requires_grad}
    assert len(set(found)) == len(found)
    assert sum(p.numel() for p in old["params"]) == known


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
    assert costs.kept_for_backward(Square(), loss, batch) == pytest.approx(8, abs=0.01)


def test_turn_is_the_nearest_view_of_a_right_answer():
    pids, camids = np.array([1, 1, 1, 1, 2]), np.array([1, 2, 3, 1, 2])
    split = type("Split", (), {"pids": pids, "camids": camids})
    view = np.radians([350.0, 40.0, 100.0, 351.0, 350.0])
    assert compare.turn(split, view, 0) == pytest.approx(50)
    assert compare.turn(split, view, 2) == pytest.approx(60)
    assert np.isnan(compare.turn(split, view, 4)), "nobody else has this person"


def test_rows_in_order_of_value_and_every_method_under_both_losses_with_three_seeds():
    rows = [row for row in compare.ROWS if row["test"] == "trained"]
    assert len({tuple(row.items()) for row in rows}) == len(rows)
    seeds = [row["seed"] for row in rows]
    assert not any(seeds[: seeds.count(0)]), "first one seed of everything"
    for column in ("common", "paper"):
        seeds = [row["seed"] for row in rows if row["loss"] == column]
        assert seeds == sorted(seeds)
    for name, method in compare.METHODS.items():
        columns = {"common"} if method.own == "common" else {"common", "paper"}
        mine = [r for r in rows if r["method"] == name and r["rate"] == f"{method.rate:g}"]
        assert {(row["loss"], row["seed"]) for row in mine} == {
            (column, seed) for column in columns for seed in (0, 1, 2)
        }


def committed() -> list[dict[str, str]]:
    return study.read("compare")


def test_the_rate_of_each_method_is_the_best_on_the_validation_people():
    """Of those that were tried with all RATES; others wait."""
    tried: dict[str, dict[float, float]] = {}
    for row in committed():
        if row["test"] == "trained" and (row["seed"], row["loss"]) == ("0", "common"):
            value = float(row["validation mAP"] or -1)
            tried.setdefault(row["method"], {})[float(row["rate"])] = value
    whole = {name: found for name, found in tried.items() if set(found) == set(compare.RATES)}
    assert whole
    for name, found in whole.items():
        assert compare.METHODS[name].rate == max(found, key=found.get), (name, found)


def test_committed_rows_are_rows_of_the_study_and_ask_the_same_queries():
    rows, keys = committed(), [{k: str(v) for k, v in row.items()} for row in compare.ROWS]
    for row in rows:
        assert sum(key.items() <= row.items() for key in keys) == 1, row
    assert len(rows) == len(keys)
    scored = study.aps([row for row in rows if row["ap"]])
    assert (np.isnan(scored) == np.isnan(scored[0])).all()


def test_under_its_own_loss_sta_has_its_regulariser(at):
    model = compare.new_model(compare.METHODS["STA"], 8, at)
    assert model.system.head.steady > 0


def test_attributes_are_those_of_the_training_people(at):
    train = ground.ground(at).train
    labels = compare.annotated(len(np.unique(train.pids)), at)
    assert np.isfinite(labels).all() and set(np.unique(labels)) == {0.0, 1.0}
    assert np.isnan(compare.annotated(3, at)).all(), "of other people nothing is known"


def test_factors_of_a_set_without_truth_are_its_people_alone(at, monkeypatch):
    def none(split):
        raise MarsError("no truth")

    monkeypatch.setattr(compare, "Truth", none)
    mars = ground.ground(at).test
    assert list(compare.factors(mars)) == ["person"]
    assert len(compare.factors(mars)["person"].split()) == len(mars.query)
