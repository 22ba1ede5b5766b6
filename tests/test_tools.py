"""Checking, cutting and converting sets, and the command line in front of it."""

import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from test_mars import BROKEN_FRAMES, make_set

from vreid_course.data import tools
from vreid_course.data.__main__ import main
from vreid_course.data.attributes import ATTRIBUTES, Attributes, read_attributes, write_attributes
from vreid_course.data.mars import MarsError, read_mars


@pytest.fixture
def root(tmp_path):
    return make_set(tmp_path / "set")


@pytest.fixture
def crowd(tmp_path):
    """10 + 10 people in two cameras, 20 distractors and 10 junk tracklets, with annotation."""
    train = [(pid, c, c, 1) for pid in range(1, 20, 2) for c in (1, 2)]
    people = [(pid, c, c, 1) for pid in range(2, 21, 2) for c in (3, 4)]
    others = [(-1, 1, t, 1) for t in range(1, 11)] + [(0, 1, t, 1) for t in range(1, 21)]
    root = make_set(tmp_path / "crowd", train, others + people)
    keys = np.array(train + people).T[:3]
    values = {c: keys[0] % len(names) for c, names in ATTRIBUTES.items()}
    write_attributes(root / "mars_attributes.csv", Attributes(*keys, values))
    return root


def test_check_prints_the_counts(root, capsys):
    assert tools.check(root, frames=True) == []
    text = " ".join(capsys.readouterr().out.split())
    assert "train 2 3 6 1 / 2 / 2.00 / 3 [1, 1, 0, 1, 0, 0]" in text
    assert "test 2 6 15 2 / 2 / 2.50 / 4 [3, 0, 1, 0, 1, 1]" in text
    assert "- people 2 4 11 2 / 2.5 / 2.75 / 4 [2, 0, 1, 0, 1, 0]" in text
    assert "- distractors - 1 2 2 / 2 / 2.00 / 2 [0, 0, 0, 0, 0, 1]" in text
    assert "- junk - 1 2 2 / 2 / 2.00 / 2 [1, 0, 0, 0, 0, 0]" in text
    assert "query 1 2 6 2 / 3 / 3.00 / 4 [1, 0, 1, 0, 0, 0]" in text
    assert "total frames: 21" in text
    # the query of camera 1 has no other match left once the query of camera 3 is taken out
    assert "another camera: 0; with the queries left out of the gallery: 1" in text


@pytest.mark.parametrize("how", BROKEN_FRAMES)
def test_check_opens_frames_on_request(root, how):
    path = read_mars(root).test.paths(3)[1]
    BROKEN_FRAMES[how](path)
    assert len(tools.check(root)) == (how in ("missing", "empty"))
    (fault,) = tools.check(root, frames=True)
    assert fault.startswith(f"{path}: ")


def test_check_sees_frames_of_other_sizes(root):
    Image.new("RGB", (9, 16)).save(read_mars(root).test.paths(3)[1])
    assert tools.check(root) == []
    (fault,) = tools.check(root, frames=True)
    assert "0002C1T0002 has frames of several sizes" in fault


def test_check_collects_faults_of_all_files(root, capsys):
    (root / "info" / "tracks_train_info.mat").unlink()
    (root / "info" / "query_IDX.mat").write_text("no")
    gone = pictures_of_test(root)[:3]
    for path in gone:
        path.unlink()
    faults = tools.check(root)
    assert "tracks_train_info.mat" in faults[0] and "query_IDX.mat" in faults[1]
    assert [fault.split(": ")[0] for fault in faults[2:]] == [str(path) for path in gone]
    assert capsys.readouterr().out.count("fault: ") == 5


def pictures_of_test(root):
    return sorted((root / "bbox_test").glob("*/*.jpg"))


def test_check_stops_at_ten_and_sees_shared_people(tmp_path, capsys):
    root = make_set(tmp_path / "set", [(2, 1, 1, 3)], [(2, 1, 1, 30)])
    assert "stand in train and in test" in tools.check(root)[0]
    for path in pictures_of_test(root):
        path.unlink()
    assert len(tools.check(root)) == len(tools.check(root, frames=True)) == 10


def test_subset_is_a_smaller_set_of_the_same_kind(crowd, tmp_path):
    tools.subset(crowd, tmp_path / "small", ids=3, seed=1)
    small, whole = read_mars(tmp_path / "small"), read_mars(crowd)
    assert tools.check(small.root, frames=True) == []
    for split, old in ((small.train, whole.train), (small.test, whole.test)):
        people = np.unique(split.pids[split.pids > 0])
        assert len(people) == 3
        keys = {old.key(i) for i in np.flatnonzero(np.isin(old.pids, people))}
        assert keys == {split.key(i) for i in np.flatnonzero(split.pids > 0)}
    assert (small.test.pids == 0).sum() == 6 and (small.test.pids == -1).sum() == 3
    assert {small.test.key(q) for q in small.query} <= {whole.test.key(q) for q in whole.query}
    assert len(small.query) == 6
    source = {whole.test.key(i): i for i in range(len(whole.test))}
    for i in range(len(small.test)):
        same = whole.test.frames(source[small.test.key(i)])
        np.testing.assert_array_equal(small.test.frames(i), same)
    for split in (small.train, small.test):
        values = read_attributes(small.root / "mars_attributes.csv", split).values["Bottoms.c"]
        np.testing.assert_array_equal(values[split.pids > 0], split.pids[split.pids > 0] % 10)


def test_subset_is_drawn_by_the_seed(crowd, tmp_path):
    pids = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        tools.subset(crowd, tmp_path / name, ids=4, seed=seed)
        pids.append(read_mars(tmp_path / name).test.pids.tolist())
    assert pids[0] == pids[1] != pids[2]


def test_subset_copies_where_it_cannot_link(crowd, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("other disk")

    monkeypatch.setattr(os, "link", refuse)
    tools.subset(crowd, tmp_path / "small", ids=2)
    assert tools.check(tmp_path / "small", frames=True) == []


def test_subset_refusals(crowd, tmp_path):
    for ids in (0, 11):
        with pytest.raises(MarsError, match="has 10 people: ask for 1..10"):
            tools.subset(crowd, tmp_path / "small", ids=ids)
    with pytest.raises(MarsError, match="is there already"):
        tools.subset(crowd, crowd, ids=2)
    (tmp_path / "file").write_text("")
    with pytest.raises(MarsError, match="cannot be made"):
        tools.subset(crowd, tmp_path / "file" / "small", ids=2)
    read_mars(crowd).train.paths(0)[0].unlink()
    with pytest.raises(MarsError, match="not written .*No such file.*0001C1T0001F001.jpg"):
        tools.subset(crowd, tmp_path / "small", ids=10)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["crowd", "file"]


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        (OSError(28, "No space left on device"), "small: not written .*No space left on device"),
        (KeyboardInterrupt(), "stopped, and nothing passes"),
    ],
)
def test_full_disk_and_ctrl_c_leave_nothing(crowd, tmp_path, monkeypatch, capsys, trouble, message):
    def stop(*_, query):
        raise trouble

    monkeypatch.setattr(tools.layout, "write_info", stop)
    assert main(["subset", str(crowd), str(tmp_path / "small"), "--ids", "2"]) == 1
    assert re.search(message, capsys.readouterr().err.splitlines()[-1])
    assert [path.name for path in tmp_path.iterdir()] == ["crowd"]


def test_set_appears_at_once_or_not_at_all(tmp_path):
    out = tmp_path / "new"
    with pytest.raises(KeyboardInterrupt), tools.building(out) as part:
        (part / "info").mkdir()
        assert not out.exists()
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    with tools.building(out) as part:
        (part / "info").mkdir()
    assert [path.name for path in tmp_path.rglob("*")] == ["new", "info"]
    (tmp_path / "other.part").mkdir()  # as a killed run leaves it
    other = tools.building(tmp_path / "other")
    with pytest.raises(MarsError, match="other.part: left by a run"), other:
        pass
    assert (tmp_path / "other.part").is_dir()


def picture(path, brightness):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 128), (brightness,) * 3).save(path)


def test_convert_ilids_vid(tmp_path):
    src = tmp_path / "i-LIDS-VID"
    for person in (1, 2, 5, 300):
        for camera, frames in ((1, 3), (2, 4)):
            folder = src / "sequences" / f"cam{camera}" / f"person{person:03d}"
            for frame in range(frames):
                shot = folder / f"cam{camera}_person{person:03d}_{frame + 99:05d}.png"
                picture(shot, 40 * camera + 10 * frame)
            picture(src / "images" / f"cam{camera}" / f"person{person:03d}" / "shot.png", 255)
    picture(src / "sequences" / "cam1" / "person007" / "cam1_person007_00001.png", 0)  # one camera
    for given in (src, src / "sequences", tmp_path):
        out = tmp_path / f"out_{given.name}"
        tools.convert(given, out)
        assert tools.check(out, frames=True) == []
    mars = read_mars(out)
    assert sorted({*mars.train.pids, *mars.test.pids}) == [1, 2, 5, 300]
    assert len(mars.train) == len(mars.test) == 4
    assert mars.test.camids.tolist() == [1, 2, 1, 2] and mars.query.tolist() == [0, 2]
    assert mars.test.lengths.tolist() == [3, 4, 3, 4]
    frames = mars.test.frames(1)
    assert frames.shape == (4, 128, 64, 3)
    assert abs(frames.mean(axis=(1, 2, 3)) - [80, 90, 100, 110]).max() < 2


def test_convert_prid_takes_people_of_enough_frames(tmp_path):
    src = tmp_path / "prid_2011" / "multi_shot"
    lengths = {1: (27, 28), 2: (27, 26), 3: (30, 27), 201: (30, 30)}
    for person, counts in lengths.items():
        for camera, count in zip("ab", counts, strict=True):
            for frame in range(count):
                picture(src / f"cam_{camera}/person_{person:04d}/{frame + 1:04d}.png", 100)
    tools.convert(tmp_path / "prid_2011", tmp_path / "out", seed=3)
    mars = read_mars(tmp_path / "out")
    assert sorted([*mars.train.pids, *mars.test.pids]) == [1, 1, 3, 3]
    assert {27, 28} in (set(mars.train.lengths), set(mars.test.lengths))


def test_convert_refusals(tmp_path):
    with pytest.raises(MarsError, match="no people in sequences/cam1"):
        tools.convert(tmp_path, tmp_path / "out")
    for camera in (1, 2):
        for person in (1, 2):
            picture(tmp_path / f"sequences/cam{camera}/person{person:03d}/a.png", 9)
    (tmp_path / "sequences/cam2/person002/a.png").write_bytes(b"")
    with pytest.raises(MarsError, match="person002.a.png: not a whole picture"):
        tools.convert(tmp_path, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["sequences"]


def test_command_line(crowd, tmp_path, capsys):
    small = tmp_path / "small"
    assert main(["subset", str(crowd), str(small), "--ids", "2"]) == 0
    assert f"VREID_DATA={small}" in capsys.readouterr().out
    assert main(["check", str(small), "--frames"]) == 0
    assert main(["subset", str(crowd), str(small), "--ids", "2"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == f"error: {small}: is there already: name a new folder"
    assert main(["check", str(tmp_path / "nowhere")]) == 1
    assert "fault: " in capsys.readouterr().out
    assert main(["convert", str(crowd), str(tmp_path / "x")]) == 1
    assert main(["draw", "--out", str(tmp_path / "y"), "--dial", "fog=1"]) == 1
    assert "fog" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["draw", "--out", "y", "--dial", "fog"])


@pytest.mark.parametrize("command", [[], ["draw"], ["check"], ["subset"], ["convert"]])
def test_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    assert stop.value.code == 0 and "usage: python -m vreid_course.data" in capsys.readouterr().out


@pytest.mark.slow
def test_killed_subset_is_never_taken_for_complete(tmp_path):
    """SIGKILL at a random moment: the folder is whole, or not there, and the next run says why."""
    rows = [(pid, c, c, 20) for pid in range(1, 60) for c in (1, 2)]
    make_set(tmp_path / "set", rows, [(pid + 100, *rest) for pid, *rest in rows])
    out = tmp_path / "out"
    command = [sys.executable, "-m", "vreid_course.data", "subset", "--ids", "59"]
    process = subprocess.Popen([*command, str(tmp_path / "set"), str(out)])
    deadline = time.monotonic() + 60
    while not (tmp_path / "out.part" / "bbox_train").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    again = subprocess.run([*command, str(tmp_path / "set"), str(out)], capture_output=True)
    assert again.returncode == 1 and b"out.part: left by a run" in again.stderr
    assert b"Traceback" not in again.stderr
