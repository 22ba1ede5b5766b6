"""Studies: rows are kept, a second run goes on, and what is read back is what was measured."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_mars import make_set
from torch import nn

from vreid_course import __main__, study
from vreid_course.data.mars import MarsError
from vreid_course.metrics import evaluate

ROWS = [{"method": m, "seed": s} for m in ("a", "b") for s in (0, 1)]


def test_a_stopped_study_goes_on_where_it_stopped(tmp_path, capsys):
    calls = []

    def measure(row):
        calls.append((row["method"], row["seed"]))
        if len(calls) == 3:
            raise KeyboardInterrupt
        extra = {"only b": 7} if row["method"] == "b" else {}
        return {"mAP": f"{len(calls)}", "ap": "0.5 " * 20} | extra

    with pytest.raises(KeyboardInterrupt):
        study.run("toy", ROWS, measure, tmp_path)
    assert [r["mAP"] for r in study.read("toy", tmp_path)] == ["1", "2"]
    study.run("toy", ROWS, measure, tmp_path)
    assert calls == [("a", 0), ("a", 1), ("b", 0), ("b", 0), ("b", 1)]
    rows = study.read("toy", tmp_path)
    assert [(r["method"], r["seed"]) for r in rows] == [(r["method"], str(r["seed"])) for r in ROWS]
    assert [r["only b"] for r in rows] == ["", "", "7", "7"], "a new column is empty in old rows"
    assert all(r["device"] and r["torch"] and r["python"] and r["seconds"] for r in rows)
    assert "0.5 0.5" not in capsys.readouterr().out, "the lists of all queries are not printed"
    assert [path.name for path in tmp_path.iterdir()] == ["toy.csv"]


def test_a_study_that_was_not_run(tmp_path):
    with pytest.raises(MarsError, match="python -m vreid_course study 90_none"):
        study.read("90_none", tmp_path)


def test_what_a_row_says_of_a_ranking_comes_back():
    rng = np.random.default_rng(0)
    query, gallery = rng.normal(size=(6, 3)), rng.normal(size=(30, 3))
    ids = np.array([1, 2, 3, 4, 5, 99]), 1 + np.arange(30) % 5  # nobody answers the last one
    found = evaluate(query, ids[0], np.zeros(6), gallery, ids[1], np.ones(30))
    row = study.summary(found)
    assert row["scored"] == "5" and float(row["mAP"]) == pytest.approx(100 * found.mAP, abs=0.005)
    kept = study.aps([row, row])
    assert kept.shape == (2, 6) and np.isnan(kept[:, 5]).all()
    np.testing.assert_allclose(kept[0], found.ap, atol=5e-4)


def test_cost_of_a_layer():
    found = study.cost(nn.Sequential(nn.Flatten(), nn.Linear(24, 10)), torch.zeros(2, 2, 3, 2, 2))
    assert (found["parameters"], found["GFLOPs"]) == (250, pytest.approx(2 * 2 * 24 * 10 / 1e9))
    assert found["ms"] > 0 and (torch.cuda.is_available() or np.isnan(found["MiB"]))


@pytest.mark.parametrize("cut", [1, 9, 30], ids=str)
def test_a_file_cut_off_in_its_last_row_is_named(tmp_path, cut):
    """A row without its last columns is not taken for a measured one."""
    path = study.run("toy", ROWS[:3], lambda row: {"mAP": "1.5"}, tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    for use in (
        lambda: study.read("toy", tmp_path),
        lambda: study.run("toy", ROWS, None, tmp_path),
    ):
        with pytest.raises(
            MarsError, match=r"toy\.csv: row 3 is cut off: delete that line"
        ) as info:
            use()
        assert "\n" not in str(info.value)
    path.write_bytes(whole[: whole[:-1].rindex(b"\n") + 1])  # the cure
    study.run("toy", ROWS, lambda row: {"mAP": "1.5"}, tmp_path)
    assert len(study.read("toy", tmp_path)) == 4


def test_two_studies_at_once_lose_no_row(tmp_path):
    def measure(row):
        if row == ROWS[1]:  # meanwhile another process measures this row and the next one
            study.run("toy", ROWS[:3], lambda row: {"mAP": "2"}, tmp_path)
        return {"mAP": "1"}

    study.run("toy", ROWS, measure, tmp_path)
    rows = study.read("toy", tmp_path)
    assert sorted((r["method"], r["seed"]) for r in rows) == [
        ("a", "0"),
        ("a", "1"),
        ("b", "0"),
        ("b", "1"),
    ]


def test_where_nothing_can_be_written_nothing_is_measured(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MarsError, match="file: cannot write there .*copy the course"):
        study.run("toy", ROWS, None, tmp_path / "file")


def test_runs_on_other_data_have_a_folder_of_their_own(tmp_path, monkeypatch):
    """Else a network of other people would be gone on with, or tested, in silence."""
    monkeypatch.setenv("VREID_CACHE", str(tmp_path))
    options, found = __main__._parser().parse_args(["train", "01_baseline"]), set()
    for data in ("", *(str(tmp_path / name) for name in ("MARS", "MARS50/", "other/MARS"))):
        monkeypatch.setenv("VREID_DATA", data)
        found.add(__main__._run_folder(options))
    assert len(found) == 4


def test_a_study_at_another_scale_or_on_other_data_leaves_the_committed_table_alone(
    tmp_path, monkeypatch
):
    """Its rows would pass for measured, and the lesson would mix them with its own."""
    monkeypatch.setenv("VREID_CACHE", str(tmp_path))
    lesson = SimpleNamespace(STUDY=ROWS[:1], measure=lambda row: {"mAP": "1"})
    monkeypatch.setattr(__main__.lessons, "load", lambda name: lesson)
    monkeypatch.setattr(study, "RESULTS", tmp_path / "committed")
    places = {("mini", ""): "committed", ("smoke", ""): "runs/study_smoke"}
    make_set(tmp_path / "x" / "MARS")
    places["mini", str(tmp_path / "x" / "MARS")] = "runs/study_mini_MARS_*"
    for (scale, data), place in places.items():
        monkeypatch.setenv("VREID_SCALE", scale)
        monkeypatch.setenv("VREID_DATA", data)
        assert __main__.main(["study", "90_toy"]) == 0
        (folder,) = tmp_path.glob(place)
        assert [p.name for p in folder.iterdir() if p.name != "data.json"] == ["90_toy.csv"]
