"""The proving ground: its people, its test clips, its oracles, the verdicts of the contrasts."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from vreid_course import study
from vreid_course.drawing.mini_mars import mini_mars
from vreid_course.drawing.truth import Truth
from vreid_course.scales import scale
from vreid_course.studies import contrasts, gates, ground, readouts
from vreid_course.training import Diverged


@pytest.fixture(scope="module")
def at():
    return ground.footing(scale("smoke"))


def test_training_validation_and_test_people_are_different(at):
    found = ground.ground(at)
    people = [set(part.pids[part.pids > 0]) for part in
              (found.train, found.validation.test, found.test.test)]  # fmt: skip
    assert all(people) and not (people[0] & people[1]) and not (people[2] & (people[0] | people[1]))
    assert set(found.validation.test.pids[found.validation.query]) <= people[1]


def test_the_test_clips_share_the_tracklet_out_and_each_covers_it():
    clips = [ground.parts(48, None, 4, part) for part in range(ground.CLIPS)]
    assert sorted(np.concatenate(clips).tolist()) == list(range(1, 48, 3))
    for clip in clips:
        assert clip[0] < 12 and clip[-1] > 36 and (np.diff(clip) > 0).all()
    for length in range(1, 40):
        for part in range(ground.CLIPS):
            picked = ground.parts(length, None, 4, part)
            assert len(picked) == 4 and picked.min() >= 0 and picked.max() < length


def test_bare_and_cut_out_frames_are_those_of_the_truth(at):
    split = ground.ground(at).test.test
    truth = Truth(split)
    row = max(range(len(split)), key=lambda i: (truth.frames(i).occluded > 0.2).sum())
    which = np.array([int(truth.frames(row).occluded.argmax()), 0])
    bare = gates.Bare(split, at.size).read(row, which).permute(0, 2, 3, 1).numpy()
    assert (bare == truth.clean(row)[which]).all() and (bare != split.frames(row, which)).any()
    cut = gates.CutOut(split, at.size).read(row, which).permute(0, 2, 3, 1).numpy()
    mask = truth.person(row)[which]
    assert (cut[~mask] == gates.GREY).all() and (cut[mask] == split.frames(row, which)[mask]).all()


def test_part_sums_are_the_maps_under_the_masks():
    """Against plain loops over the pixels of one frame with a map that is constant in a cell."""
    parts = np.zeros((1, 8, 4), np.uint8)
    parts[0, :2, :] = 1  # head
    parts[0, 2:4, :2] = 3  # torso
    occluder = np.zeros((1, 8, 4), bool)
    occluder[0, 0, :] = True
    truth = type("Truth", (), {"parts": lambda s, i: parts, "occluder": lambda s, i: occluder})()
    maps = np.random.default_rng(0).normal(size=(1, 3, 4, 2)).astype(np.float32)  # cells of 2 x 2
    sums, counts = gates.part_sums([maps], truth)
    big = maps.repeat(2, 2).repeat(2, 3)[0] / 4  # a pixel is a quarter of a cell
    for p, label in ((0, 1), (1, 3)):
        for v, mask in enumerate((parts[0] == label, (parts[0] == label) & ~occluder[0])):
            assert np.allclose(sums[0, v, p], (big * mask).sum((1, 2)), atol=1e-5)
            assert np.isclose(counts[0, v, p], mask.sum() / 4)


def test_parts_that_one_of_two_does_not_show_do_not_count():
    sums = np.array([[[1.0, 0], [0, 5]], [[0, 1.0], [0, 3]], [[9.0, 0], [0, 0]]])  # (3, P=2, D=2)
    counts = np.array([[1.0, 5], [1, 3], [9, 0]])
    found = gates.part_distances(sums, counts, np.array([0]))[0]
    assert found[2] == pytest.approx(0, abs=1e-3), "the same head, and no second part"
    assert 0 < found[1] < np.sqrt(2), "another head, the same second part"


def test_rhythms_are_compared_in_octaves_and_unknown_ones_do_not_stand_out():
    gap = gates.rhythm_gap(np.array([0.1, 0.05, 0.1, np.nan]), np.array([0]))[0]
    assert gap.tolist() == [0, 1, 0, pytest.approx(1 / 3)]


def test_weights_of_one_kind_are_the_mean_and_of_one_frame_that_frame():
    model = type("Model", (), {"neck": torch.nn.Identity()})()
    frames = [np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)]
    mean = frames[0].mean(0)
    found = gates.video_features(model, frames, None)[0]
    assert np.allclose(found, mean / np.linalg.norm(mean), atol=1e-6)
    one = gates.video_features(model, frames, [np.eye(5)[2]])[0]
    assert np.allclose(one, frames[0][2] / np.linalg.norm(frames[0][2]), atol=1e-6)


def test_the_gates_of_the_committed_world_hold_or_say_so():
    rows = study.read("gates")
    for row in rows:
        needed = gates.GATES[row["gate"]].required
        if needed is None:
            assert row["verdict"] == ""
        else:
            assert row["verdict"] == ("holds" if float(row["difference"]) >= needed else "fails")
            assert float(row["low"]) <= float(row["difference"]) <= float(row["high"])


def test_a_linear_read_out_finds_what_is_linear_and_no_more():
    rng = np.random.default_rng(0)
    x, asked = rng.normal(size=(400, 6)), rng.normal(size=(200, 6))
    weights = rng.normal(size=(6, 2))
    said = readouts.ridge(x, x @ weights, asked, penalty=1e-6)
    assert np.allclose(said, asked @ weights, atol=1e-2)
    noise = readouts.ridge(x, rng.normal(size=(400, 1)), asked)
    assert np.abs(noise).max() < 0.6


@pytest.mark.parametrize(
    ("mean", "low", "high", "each", "published", "verdict"),
    [
        (2.0, 0.5, 3.5, [1, 2, 3], 1.0, "agrees"),
        (2.0, 0.5, 3.5, [1, 2, 3], -1.0, "disagrees"),
        (2.0, -0.5, 4.5, [1, 2, 3], 1.0, "cannot be told"),
        (2.0, 0.5, 3.5, [-1, 3, 4], 1.0, "cannot be told"),
        (-2.0, -3.5, -0.5, [-1, -2, -3], -7.5, "agrees"),
    ],
)
def test_verdicts(mean, low, high, each, published, verdict):
    assert contrasts.verdict_of(mean, low, high, np.array(each), published) == verdict


def test_the_score_counts_what_was_decided_with_room():
    rows = [
        {"ours": "1", "difference": "2", "verdict": "agrees"},
        {"ours": "-1", "difference": "1", "verdict": "disagrees"},
        {"ours": "0.1", "difference": "1.5", "verdict": "cannot be told"},
        {"ours": "3", "difference": "3", "verdict": "no room"},
        {"ours": "", "difference": "3", "verdict": "not measured"},
    ]
    text = contrasts.score(rows)
    assert (
        "5 published differences, 3 measured with room: 2 decided, 1 of them as published" in text
    )
    assert "rank correlation +1.00" in text


def test_all_published_differences_are_there_and_each_is_what_its_two_numbers_say():
    rows = contrasts.published()
    assert len(rows) == len({row["id"] for row in rows}) == 44
    for row in rows:
        of, minus = (float(row[k].split()[-1]) for k in ("what is compared", "with"))
        assert of - minus == pytest.approx(float(row["difference"]), abs=0.051), row["id"]
    assert set(contrasts.OURS) <= {row["id"] for row in rows}


def _diverges(row):
    raise Diverged("at step 3: loss nan: lower the learning rate")


def _counts(row):
    return {"mAP": row["seed"], "threads": torch.get_num_threads()}


def test_a_row_that_diverged_says_so_and_is_not_measured_again(tmp_path):
    path = study.run("a", [{"seed": 0}], _diverges, tmp_path)
    (row,) = study.read("a", tmp_path)
    assert "at step 3" in row["diverged"]
    study.run("a", [{"seed": 0}], lambda row: pytest.fail("measured again"), tmp_path)
    assert path.exists()


@pytest.mark.slow
def test_two_rows_at_a_time_have_one_thread_each_and_are_all_kept(tmp_path, capsys):
    study.run("a", [{"seed": n} for n in range(3)], _counts, tmp_path, jobs=2)
    rows = sorted(study.read("a", tmp_path), key=lambda row: row["seed"])
    assert [(row["mAP"], row["threads"]) for row in rows] == [("0", "1"), ("1", "1"), ("2", "1")]
    assert "minutes left" in capsys.readouterr().out


def _waits(row):
    Path(f"begun{row['seed']}").touch()
    time.sleep(600)


@pytest.mark.slow
def test_when_a_study_alone_is_killed_its_rows_end_too(tmp_path):
    script = "import test_ground as t; rows = [{'seed': 0}, {'seed': 1}]; "
    script += "t.study.run('a', rows, t._waits, t.Path(), jobs=2)"
    job = subprocess.Popen(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": f"{Path(__file__).parent}{os.pathsep}{Path.cwd()}"},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
    )
    end = time.monotonic() + 120
    while time.monotonic() < end and len(list(tmp_path.glob("begun*"))) < 2:
        time.sleep(0.1)
    job.kill()
    job.communicate(timeout=30)  # which waits for all that can still write


def test_the_small_street_has_the_dials_of_the_proving_ground():
    from vreid_course.drawing.mini_mars import STREET

    assert scale("mini").street.dials == STREET.dials
    assert scale("mini").street.train_ids == scale("mini").people[0]
    assert mini_mars(scale("smoke").mini_mars).root.name == scale("smoke").mini_mars.name
