"""Search from camera to camera, its table and pages; commands on what strangers give them."""

import csv
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from test_mars import make_set, to_v73

from vreid_course import __main__ as cli
from vreid_course import answers
from vreid_course.data import tools
from vreid_course.data.__main__ import main as data_main
from vreid_course.data.mars import MarsError, read_mars
from vreid_course.nets import resnet
from vreid_course.scales import scale

# (pid, camera, tracklet, frames): persons 2 and 3 in two cameras, 4 in one, a distractor, junk
TEST = [(-1, 1, 1, 1), (0, 2, 1, 2), (2, 1, 1, 2), (2, 2, 2, 2), (3, 1, 1, 1), (3, 12, 2, 3)]
TEST += [(4, 2, 1, 1)]
PLACE = np.array([9.0, 1.0, 0.0, 0.5, 4.0, 5.5, 6.0])  # features on a line


@pytest.fixture
def mars(tmp_path):
    return read_mars(make_set(tmp_path / "set", test=TEST))


def test_answers_come_from_other_cameras_nearest_first(mars):
    found = answers.search(PLACE[:, None], mars)
    assert found.queries.tolist() == [1, 2, 3, 4, 5, 6]  # junk does not ask
    by_hand = {
        1: [2, 4, 5],  # at 1 in camera 2: 1, 3 and 4.5 away; junk and camera 2 do not answer
        2: [3, 1, 5, 6], 3: [2, 4, 5], 4: [5, 6, 1, 3], 5: [6, 4, 1, 3, 2], 6: [5, 4, 2],
    }  # fmt: skip
    assert {q: rows.tolist() for q, rows in zip(found.queries, found.found, strict=True)} == by_hand
    for q, rows, far in zip(found.queries, found.found, found.far, strict=True):
        np.testing.assert_allclose(far, abs(PLACE[rows] - PLACE[q]), atol=1e-3)
    assert found.known.tolist() == [False, True, True, True, True, False]
    np.testing.assert_allclose(found.ap()[1:5], [1, 1, 1, 1 / 2])
    assert np.isnan(found.ap()[[0, 5]]).all()
    assert "mAP 87.5, rank-1 75.0; 4 of 6 queries scored" in str(found)
    assert answers.search(PLACE[:, None], mars, camera=12).queries.tolist() == [5]


def test_features_that_are_no_numbers_are_refused(mars):
    place = PLACE.copy()
    place[3] = np.nan
    with pytest.raises(ValueError, match="the feature of 0002C2T0002 is not finite: train again"):
        answers.search(place[:, None], mars)


def test_a_search_needs_two_cameras(tmp_path, mars):
    with pytest.raises(MarsError, match=r"cameras \[1, 2, 12\]: name one of these"):
        answers.search(PLACE[:, None], mars, camera=3)
    alone = read_mars(make_set(tmp_path / "one", test=[(1, 3, 1, 1), (2, 3, 1, 1)]))
    with pytest.raises(MarsError, match=r"cameras \[3\]: a search needs two"):
        answers.search(PLACE[:2, None], alone)


def frames_csv(mars, rate=4):
    """frames.csv as from_video writes it: one picture every 1/4 second, from second 10 on."""
    with (mars.root / "frames.csv").open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow("picture camera video track frame second left top width height".split())
        for i, (first, last) in enumerate(zip(mars.test.first, mars.test.last, strict=True)):
            for t, name in enumerate(mars.test.names[first:last]):
                second = f"{10 + t / rate:.3f}"
                rows.writerow(
                    [name, mars.test.camids[i], "a.mp4", i, t + 1, second, 5, 6, 7, 8 + t]
                )


def test_table_and_pages(mars, tmp_path):
    frames_csv(mars)
    found = answers.search(PLACE[:, None], mars)
    answers.write_all(tmp_path / "out", PLACE[:, None], found, top=3)
    with (tmp_path / "out" / "answers.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 3 * 6 and list(rows[0]) == answers.COLUMNS
    (row,) = [r for r in rows if r["query"] == "0003C1T0001" and r["rank"] == "1"]
    assert row["answer"] == "0003C12T0002" and row["camera"] == "12" and row["right"] == "yes"
    assert (row["from"], row["to"], row["frame"], row["height"]) == ("10.000", "10.500", "2", "9")
    assert (row["query_from"], row["query_to"], row["distance"]) == ("10.000", "10.000", "1.5000")
    assert {r["right"] for r in rows if r["query"] == "0004C2T0001"} == {""}
    assert [r["right"] for r in rows if r["query"] == "0003C12T0002"] == ["no", "yes", "no"]
    page = np.asarray(Image.open(tmp_path / "out" / "page_001.png"))
    assert page.shape[0] > 6 * 128 and page.shape[1] > 4 * 64
    colours = {tuple(c) for c in page.reshape(-1, 3)}
    assert {answers.show.RIGHT, answers.show.WRONG, answers.show.QUERY} <= colours
    points = [json.loads(x) for x in (tmp_path / "out" / "points.jsonl").read_text().splitlines()]
    assert [p["id"] for p in points] == list(range(7)) and points[5]["vector"] == [5.5]
    assert points[5]["payload"]["camera"] == "12" and points[5]["payload"]["from"] == "10.000"


def test_frames_of_another_set_are_refused(mars):
    frames_csv(mars)
    path = mars.root / "frames.csv"
    path.write_text(path.read_text().replace("0003C12T0002F001", "0003C13T0002F001"))
    with pytest.raises(MarsError, match="frames.csv: not the pictures of info"):
        answers.search(PLACE[:, None], mars)


@pytest.mark.parametrize("how", ["semicolons", "another title", "cut", "no lines", "Latin-1"])
def test_a_table_of_frames_that_was_spoiled(mars, how):
    frames_csv(mars)
    path = mars.root / "frames.csv"
    text = path.read_text()
    changed = {
        "semicolons": text.replace(",", ";"),  # as some editors of tables save it
        "another title": text.replace("second", "time"),
        "cut": text[:-9],
        "no lines": "",
        "Latin-1": text.replace("a.mp4", "é.mp4"),
    }[how]
    path.write_bytes(changed.encode("latin-1"))
    with pytest.raises(MarsError) as error:
        answers.places(mars)
    fault = "save it as UTF-8" if how == "Latin-1" else "not the table picture,camera,video"
    assert f"{path}: " in str(error.value) and fault in str(error.value)
    path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert answers.places(mars)[5]["from"] == "10.000"


def test_a_set_without_times_has_cameras(mars):
    assert answers.places(mars)[5] == {"camera": "12"}


def test_features_are_kept_in_pieces(mars, tmp_path, monkeypatch):
    monkeypatch.setattr(answers, "CHUNK", 3)
    trunk, at, calls = resnet("course"), scale("smoke"), []
    real = answers.extract

    def counted(*arguments):
        if len(calls) == 2:
            calls.append(0)
            raise KeyboardInterrupt
        calls.append(len(arguments[2].split))
        return real(*arguments)

    monkeypatch.setattr(answers, "extract", counted)
    with pytest.raises(KeyboardInterrupt):
        answers.features_of(trunk, mars.test, at, root=tmp_path)
    found = answers.features_of(trunk, mars.test, at, root=tmp_path)
    assert calls == [3, 3, 0, 1] and found.shape == (7, 256)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    one = real(trunk, answers.mean_feature, answers.FrameStore(mars.test, at.size), answers.whole)
    np.testing.assert_allclose(found, one, atol=1e-6)
    os.utime(mars.test.paths(5)[0], ns=(0, 0))  # a picture was changed: nothing old is taken
    answers.features_of(trunk, mars.test, at, root=tmp_path)
    assert calls[4:] == [3, 3, 1]


# ------------------------------------------------------------------------------------ the command


@pytest.fixture
def small(tmp_path, monkeypatch, strangers):
    """A drawn set in the role of one's own, and a cache."""
    strangers(5, tmp_path / "a" / "MARS")
    monkeypatch.setenv("VREID_SCALE", "smoke")
    monkeypatch.setenv("VREID_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("VREID_DATA", str(tmp_path / "a" / "MARS"))
    return tmp_path


def said(command, capsys, status=1):
    """The one line that a command says at its end, on stderr if it fails."""
    capsys.readouterr()
    assert cli.main([str(word) for word in command]) == status
    text = capsys.readouterr()
    lines = text.err.splitlines() if status else text.out.splitlines()
    errors = [x for x in lines if x.startswith("error: ")] if status else lines
    assert len(errors) == 1 or not status
    return errors[-1]


def test_the_search_command(small, capsys):
    own = small / "a" / "MARS"
    said(["search", own, "--out", small / "out"], capsys, 0)
    assert {p.name for p in (small / "out").iterdir()} >= {"answers.csv", "page_001.png"}
    assert "is there already" in said(["search", own, "--out", small / "out"], capsys)
    assert "name both" in said(["search", own, "--out", small / "b", "--lesson", "x"], capsys)
    said(["train", "01_baseline", "--steps", 2, "--folder", small / "run"], capsys, 0)
    more = ["--lesson", "01_baseline", "--folder", small / "run", "--camera", 2, "--top", 2]
    said(["search", own, "--out", small / "trained", *more], capsys, 0)
    with (small / "trained" / "answers.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {r["query_camera"] for r in rows} == {"2"} and "2" not in {r["camera"] for r in rows}
    error = said(["search", own, "--out", small / "c", *more[:2], "--folder", small], capsys)
    assert "last.pt: nothing trained yet" in error


def test_a_search_that_cannot_be_is_refused_before_anything_is_computed(small, monkeypatch, capsys):
    own = small / "a" / "MARS"
    monkeypatch.setattr(answers, "features_of", None)
    error = said(["search", own, "--out", small / "out", "--camera", 9], capsys)
    assert "name one of these" in error
    (own / "frames.csv").write_text("picture;camera\n")
    assert "frames.csv: not the table" in said(["search", own, "--out", small / "out"], capsys)
    assert not (small / "out").exists()


def test_checkpoints_of_something_else(small, capsys):
    own, run = small / "a" / "MARS", small / "run"
    said(["train", "01_baseline", "--steps", 1, "--folder", run], capsys, 0)
    search = ["search", own, "--out", small / "out", "--folder", run, "--lesson"]
    fault = "last.pt: of another lesson than {}, other data or another scale: train again"
    for lesson in ("05_attributes", "07_related"):
        assert fault.format(lesson) in said([*search, lesson], capsys)
    for state in ([1], {"model": {}}, {"model": 3}, {"step": 1}):
        torch.save(state, run / "last.pt")
        assert fault.format("01_baseline") in said([*search, "01_baseline"], capsys)
        evaluate = ["evaluate", "01_baseline", "--folder", run]
        assert fault.format("01_baseline") in said(evaluate, capsys)


def test_reading_a_set_writes_nothing_into_it(small, capsys):
    """So that it may lie on a disk that is read only."""
    own = small / "a" / "MARS"

    def state():
        return {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in (own, *own.rglob("*"))}

    before = state()
    for command in (["train", "01_baseline", "--steps", 1], ["evaluate", "01_baseline"]):
        said(command, capsys, 0)
    said(["search", own, "--out", small / "out"], capsys, 0)
    assert data_main(["check", str(own), "--frames"]) == 0
    assert data_main(["subset", str(own), str(small / "sub"), "--ids", "2"]) == 0
    assert state() == before


def test_evaluate_can_skip_bad_frames(small, capsys):
    said(["train", "01_baseline", "--steps", 1, "--folder", small / "run"], capsys, 0)
    (small / "run" / "data.json").unlink()  # as if the pictures had been broken before
    for path in read_mars(small / "a" / "MARS").test.paths(5):
        path.write_bytes(b"")
    command = ["evaluate", "01_baseline", "--folder", small / "run"]
    error = said(command, capsys)
    assert "an empty frame: copy it again, or skip it (--skip-bad of train and evaluate" in error
    assert cli.main([*map(str, command), "--skip-bad"]) == 0
    replaced, score = capsys.readouterr().out.splitlines()
    assert replaced.startswith("replaced a frame that cannot be read") and score.startswith("mAP")


@pytest.mark.slow
def test_studies_of_two_sets_of_one_name_do_not_meet(small, strangers, monkeypatch, capsys):
    seen = []
    lesson = SimpleNamespace(STUDY=[{"row": 1}], measure=lambda row: seen.append(row) or {"mAP": 1})
    monkeypatch.setattr(cli.lessons, "load", lambda name: lesson)
    strangers(6, small / "b" / "MARS")
    for name in "abab":
        monkeypatch.setenv("VREID_DATA", str(small / name / "MARS"))
        said(["study", "90_toy"], capsys, 0)
    assert len(seen) == 2
    read_mars(small / "b" / "MARS").test.paths(0)[0].write_bytes(b"changed")
    assert "pictures, which changed since" in said(["study", "90_toy"], capsys)


def test_runs_of_two_sets_of_one_name_do_not_meet(small, strangers, monkeypatch, capsys):
    train, evaluate = ["train", "01_baseline", "--steps", 2], ["evaluate", "01_baseline"]
    said(train, capsys, 0)
    said(evaluate, capsys, 0)
    strangers(6, small / "b" / "MARS")
    monkeypatch.setenv("VREID_DATA", str(small / "b" / "MARS"))
    assert "nothing trained yet" in said(evaluate, capsys)
    said([*train, "--folder", small / "run"], capsys, 0)
    monkeypatch.setenv("VREID_DATA", str(small / "a" / "MARS"))
    for command in (train, evaluate):
        error = said([*command, "--folder", small / "run"], capsys)
        assert "its results are of another folder" in error and "name another folder" in error
    read_mars(small / "a" / "MARS").train.paths(0)[0].write_bytes(b"changed")
    for command in (train, evaluate):
        assert "pictures, which changed since" in said(command, capsys)


def test_few_people_and_a_tilde(small, monkeypatch, capsys):
    tools.subset(small / "a" / "MARS", small / "three", ids=3)
    monkeypatch.setenv("HOME", str(small))
    monkeypatch.setenv("VREID_DATA", "~/three")
    command = ["train", "01_baseline", "--steps", 1]
    assert cli.main([str(x) for x in command]) == 0
    assert "P=4 people a batch are more than the set has: P=3" in capsys.readouterr().out


def test_no_queries_is_said(small, capsys):
    said(["train", "01_baseline", "--steps", 1], capsys, 0)
    path = small / "a" / "MARS" / "info" / "query_IDX.mat"
    savemat(path, {"query_IDX": np.zeros((1, 0))})
    assert "query_IDX.mat: holds no queries" in said(["evaluate", "01_baseline"], capsys)
    to_v73(path)
    assert "query_IDX.mat: holds no queries" in said(["evaluate", "01_baseline"], capsys)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_frame_is_the_same_line_with_workers_and_can_be_skipped(
    small, monkeypatch, capsys, workers
):

    class Large(cli.study.FrameStore):
        """A set that does not fit in memory: workers read the pictures."""

        def __init__(self, split, size, skip_bad=False):
            super().__init__(split, size, memory=0, skip_bad=skip_bad)

    monkeypatch.setattr(cli.study, "FrameStore", Large)
    for path in read_mars(small / "a" / "MARS").train.paths(0):
        path.write_bytes(path.read_bytes()[:-300])
    command = ["train", "01_baseline", "--steps", 6, "--workers", workers]
    error = said(command, capsys)
    assert "F00" in error and "not a whole JPEG" in error and "--skip-bad" in error
    assert cli.main([*map(str, command), "--skip-bad"]) == 0
    assert "replaced a frame that cannot be read" in capsys.readouterr().out


def test_features_with_workers_name_the_frame(small):
    mars = read_mars(small / "a" / "MARS")
    mars.test.paths(2)[0].write_bytes(b"")
    with pytest.raises(MarsError) as error:
        store = answers.FrameStore(mars.test, (128, 64))
        answers.extract(resnet("course"), answers.mean_feature, store, answers.whole, workers=2)
    assert "an empty frame" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("command", "text"),
    [
        (["train", "01_baseline", "--steps", "0"], "--steps: '0' is not a whole number from 1 on"),
        (["train", "01_baseline", "--steps", "many"], "--steps: 'many'"),
        (["train", "01_baseline", "--workers", "-1"], "--workers: '-1'"),
        (
            ["train", "01_baseline", "--minutes", "nan"],
            "--minutes: 'nan' is not a number from 0 on",
        ),
        (["train", "01_baseline", "--minutes", "-1"], "--minutes: '-1'"),
        (["train", "01_baseline", "--seed", "-1"], "--seed: '-1'"),
        (["search", "x", "--out", "y", "--top", "0"], "--top: '0'"),
        (["trian", "01_baseline"], "trian"),
    ],
)
def test_numbers_out_of_range_are_one_line(command, text, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(command)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and len(error.splitlines()) == 1 and text in error


@pytest.mark.parametrize(
    ("command", "text"),
    [
        (["study", "00_tour"], "00_tour has no study"),
        (["study", "90_none"], "no lesson '90_none'"),
        (["make", "01_baseline"], "01_baseline has nothing to make"),
        (["train", "notebooks/01_baseline.ipynb"], "there are 00_tour, 01_baseline"),
    ],
)
def test_lessons_without_what_is_asked_for_say_so(small, capsys, command, text):
    assert text in said(command, capsys)


@pytest.mark.parametrize("lesson", ["00_tour", "08_compare"])
@pytest.mark.parametrize("command", ["train", "evaluate", "bench"])
def test_lessons_that_train_nothing_say_so(small, capsys, lesson, command):
    error = said([command, lesson], capsys)
    assert f"{lesson}: this lesson trains nothing" in error and "01_baseline" in error


@pytest.mark.slow
def test_a_script_without_a_guard_ends_with_a_line(tmp_path):
    script = tmp_path / "script.py"
    lines = [
        "from pathlib import Path",
        "from vreid_course.drawing.mini_mars import MiniMars, draw",
    ]
    lines += [f"draw(MiniMars(4, 4, seed=3, frames=(2, 4)), Path({str(tmp_path / 'set')!r}), 2)"]
    script.write_text("\n".join(lines))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and 'if __name__ == "__main__":' in done.stderr.splitlines()[-1]
    guarded = lines[:2] + ['if __name__ == "__main__":', f"    {lines[2]}"]
    script.write_text("\n".join(guarded))
    subprocess.run([sys.executable, script], check=True, timeout=120)
    assert len(read_mars(tmp_path / "set").test) and torch.__version__
