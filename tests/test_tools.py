"""Checking, cutting and converting sets, and the command line in front of it."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from test_mars import BROKEN_FRAMES, make_set

from vreid_course.data import __main__ as data_main
from vreid_course.data import tools
from vreid_course.data.__main__ import main
from vreid_course.data.attributes import ATTRIBUTES, Attributes, read_attributes, write_attributes
from vreid_course.data.convert import convert
from vreid_course.data.known import same_set
from vreid_course.data.mars import MarsError, read_mars
from vreid_course.drawing.mini_mars import STREET, MiniMars, draw


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


def test_check_says_that_there_are_no_queries(root, capsys):
    savemat(root / "info" / "query_IDX.mat", {"query_IDX": np.zeros((1, 0))})
    (fault,) = tools.check(root)
    assert "query_IDX.mat: holds no queries: " in fault


def test_check_counts_any_number_of_cameras(tmp_path, capsys):
    make_set(tmp_path / "set", [], [(3, 8, 1, 2), (3, 15, 2, 1)])
    assert tools.check(tmp_path / "set") == []
    text = " ".join(capsys.readouterr().out.split())
    assert "tracklets of camera 1..15" in text
    assert "[0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1]" in text


def test_names_that_start_with_a_dot_are_no_data(crowd, tmp_path):
    (crowd / "._mars_attributes.csv").write_bytes(b"\0\5\x16")
    tools.subset(crowd, tmp_path / "small", ids=2)
    assert [p.name for p in (tmp_path / "small").glob("*.csv")] == ["mars_attributes.csv"]


# ------------------------------------------------------------------------------------ converting


def picture(path, brightness):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 128), (brightness,) * 3).save(path)


def ilids(src, people=(1, 2, 5, 300), suffix=".png"):
    for person in people:
        for camera, frames in ((1, 3), (2, 4)):
            folder = src / "sequences" / f"cam{camera}" / f"person{person:03d}"
            for frame in range(frames):
                shot = folder / f"cam{camera}_person{person:03d}_{frame + 99:05d}{suffix}"
                picture(shot, 40 * camera + 10 * frame)
            still = src / "images" / f"cam{camera}" / f"person{person:03d}"
            picture(still / f"cam{camera}_person{person:03d}.png", 255)
    return src


def test_convert_ilids_vid(tmp_path):
    src = ilids(tmp_path / "i-LIDS-VID")
    picture(src / "sequences" / "cam1" / "person007" / "cam1_person007_00001.png", 0)  # one camera
    for given in (src, src / "sequences", tmp_path):
        out = tmp_path / f"out_{given.name}"
        convert(given, out)
        assert tools.check(out, frames=True) == []
    mars = read_mars(out)
    assert sorted({*mars.train.pids, *mars.test.pids}) == [1, 2, 5, 300]
    assert len(mars.train) == len(mars.test) == 4
    assert mars.test.camids.tolist() == [1, 2, 1, 2] and mars.query.tolist() == [0, 2]
    assert mars.test.lengths.tolist() == [3, 4, 3, 4]
    frames = mars.test.frames(1)
    assert frames.shape == (4, 128, 64, 3)
    assert abs(frames.mean(axis=(1, 2, 3)) - [80, 90, 100, 110]).max() < 2


@pytest.mark.parametrize("suffix", [".PNG", ".jpg", ".JPEG", ".bmp"])
def test_convert_reads_other_kinds_of_pictures(tmp_path, suffix):
    src = ilids(tmp_path / "i-LIDS-VID", suffix=suffix)
    for litter in ("._cam1_person001_00099" + suffix, "Thumbs.db", ".DS_Store"):
        (src / "sequences" / "cam1" / "person001" / litter).write_bytes(b"litter")
    (src / "sequences" / "cam1" / "._person001").write_bytes(b"litter")
    (src / "sequences" / "cam1" / "readme.txt").write_bytes(b"litter")
    convert(src, tmp_path / "out")
    assert tools.check(tmp_path / "out", frames=True) == []
    assert read_mars(tmp_path / "out").test.lengths.tolist() == [3, 4, 3, 4]


def test_frames_are_sorted_by_number(tmp_path):
    for person in (1, 2):
        for camera in (1, 2):
            for frame in (1, 10, 2):
                picture(
                    tmp_path / f"sequences/cam{camera}/person{person:03d}/{frame}.png", frame * 9
                )
    convert(tmp_path, tmp_path / "out")
    means = read_mars(tmp_path / "out").test.frames(0).mean(axis=(1, 2, 3))
    assert abs(means - [9, 18, 90]).max() < 2


def prid(src, lengths, cameras=("cam_a", "cam_b")):
    for person, counts in lengths.items():
        for camera, count in zip(cameras, counts, strict=True):
            for frame in range(count):
                picture(src / f"{camera}/person_{person:04d}/{frame + 1:04d}.png", 100)


@pytest.mark.parametrize("place", ["multi_shot/cam_a", "multi_shot/cam1", "sequences/cam1", "cam1"])
def test_convert_prid_takes_people_of_enough_frames(tmp_path, place):
    """Its names tell, not its folders: above 200 the same number is not the same person."""
    *folder, camera = place.split("/")
    src = tmp_path.joinpath("prid_2011", *folder)
    cameras = ("cam_a", "cam_b") if camera == "cam_a" else ("cam1", "cam2")
    prid(src, {1: (27, 28), 2: (27, 26), 3: (30, 27), 201: (30, 30), 300: (27, 27)}, cameras)
    convert(tmp_path / "prid_2011", tmp_path / "out", seed=3)
    mars = read_mars(tmp_path / "out")
    assert sorted([*mars.train.pids, *mars.test.pids]) == [1, 1, 3, 3]
    assert {27, 28} in (set(mars.train.lengths), set(mars.test.lengths))


@pytest.mark.parametrize(
    "name", ["person002 (1)", "person002 copy", "person001_2", "person_02", "Person004", "person"]
)
def test_names_that_could_be_two_people_are_refused(tmp_path, name):
    src = ilids(tmp_path / "i-LIDS-VID")
    picture(src / "sequences" / "cam1" / name / "cam1_00001.png", 0)
    with pytest.raises(MarsError) as error:
        convert(src, tmp_path / "out")
    assert f"cam1/{name}: no name of a person" in str(error.value)
    assert "rename it, or take it away" in str(error.value) and not (tmp_path / "out").exists()


def test_names_of_two_sets_are_refused(tmp_path):
    src = ilids(tmp_path / "i-LIDS-VID")
    prid(src / "sequences", {7: (30, 30)}, ("cam1", "cam2"))
    with pytest.raises(MarsError, match="are names of two data sets: take one away"):
        convert(src, tmp_path / "out")


@pytest.mark.parametrize("name", ["cam1_person001_00099.jpg", "99.png", "00099 (1).png", "a.png"])
def test_frames_that_stand_twice_are_refused(tmp_path, name):
    src = ilids(tmp_path / "i-LIDS-VID")
    picture(src / "sequences" / "cam1" / "person001" / name, 0)
    with pytest.raises(MarsError) as error:
        convert(src, tmp_path / "out")
    assert "the same frame as" in str(error.value) or "ends in no frame number" in str(error.value)
    assert "away" in str(error.value) and not (tmp_path / "out").exists()


def test_convert_refusals(tmp_path):
    with pytest.raises(MarsError, match="no people of two cameras in sequences/cam1 and cam2"):
        convert(tmp_path, tmp_path / "out")
    for camera in (1, 2):
        for person in (1, 2):
            picture(tmp_path / f"sequences/cam{camera}/person{person:03d}/1.png", 9)
    (tmp_path / "sequences/cam2/person002/1.png").write_bytes(b"")
    with pytest.raises(MarsError, match="person002.1.png: not a whole picture"):
        convert(tmp_path, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["sequences"]


LS_TRAIN = [(7, 3, 2), (7, 12, 1), (9, 1, 2)]  # label, camera, frames
LS_TEST = [(0, 15, 3), (4, 2, 1), (-1, 2, 1), (0, 2, 2), (0, 15, 1), (4, 14, 12)]


def ls_vid(root, query=(1, 4, 6), version=1):
    """LS-VID as its authors give it (1), or the later edition with query.npy (2)."""
    for part, tracklets in (("train", LS_TRAIN), ("test", LS_TEST)):
        lines = []
        for i, (label, camera, frames) in enumerate(tracklets):
            prefix = f"tracklet_{part}/{abs(label):04d}/{abs(label):04d}_{i:d}"
            for frame in range(frames):
                picture(root / f"{prefix}_{camera:02d}_{frame + 1}.jpg", 20 * i + 3 * frame)
            lines.append(f"{prefix} {label}")
        path = root / "list_sequence" / f"list_seq_{part}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n")
    (root / "test" / "data").mkdir(parents=True, exist_ok=True)
    if version == 2:
        np.save(root / "test" / "query.npy", np.array(query))
    else:
        with h5py.File(root / "test" / "data" / "info_test.mat", "w") as file:
            file["query"] = np.array([query], float)
    return root


@pytest.mark.parametrize("version", [1, 2])
def test_convert_ls_vid(tmp_path, version):
    convert(ls_vid(tmp_path / "LS-VID", version=version), tmp_path / "out")
    assert tools.check(tmp_path / "out", frames=True) == []
    mars = read_mars(tmp_path / "out")
    assert mars.train.pids.tolist() == [1, 1, 2] and mars.train.camids.tolist() == [3, 12, 1]
    # label 0 and 4 become 3 and 4; -1 is junk; within a person by camera
    assert mars.test.pids.tolist() == [-1, 3, 3, 3, 4, 4]
    assert mars.test.camids.tolist() == [2, 2, 15, 15, 2, 14]
    assert mars.test.lengths.tolist() == [1, 2, 3, 1, 1, 12]
    assert [mars.test.key(q) for q in mars.query] == [
        "0003C2T0001", "0003C15T0002", "0004C14T0002"]  # fmt: skip
    means = [mars.test.frames(i)[0].mean() for i in range(6)]
    assert abs(np.array(means) - [40, 60, 0, 80, 20, 100]).max() < 3
    assert (np.diff(mars.test.frames(5).mean(axis=(1, 2, 3))) > 1).all()  # frame 10 behind 9


def test_prefixes_do_not_find_longer_ones(tmp_path):
    root = ls_vid(tmp_path / "LS-VID")
    picture(root / "tracklet_train/0007/0007_01_05_1.jpg", 9)  # of tracklet 01, not of 0
    convert(root, tmp_path / "out")
    assert read_mars(tmp_path / "out").train.lengths.tolist() == [2, 1, 2]


def test_lists_of_ls_vid_from_windows(tmp_path):
    """Backslashes, a byte order mark, CR LF, tabs, and what macOS leaves beside pictures."""
    convert(ls_vid(tmp_path / "plain"), tmp_path / "wanted")
    root = ls_vid(tmp_path / "LS-VID")
    for path in (root / "list_sequence").glob("*.txt"):
        text = path.read_bytes().replace(b"/", b"\\").replace(b" ", b"\t")
        path.write_bytes(b"\xef\xbb\xbf" + text.replace(b"\n", b"\r\n"))
    for path in [*root.glob("tracklet_t*/*/*.jpg")]:
        path.with_name("._" + path.name).write_bytes(b"litter")
    convert(root, tmp_path / "out")
    wanted, found = read_mars(tmp_path / "wanted"), read_mars(tmp_path / "out")
    assert (found.query == wanted.query).all() and (found.test.names == wanted.test.names).all()
    for i in range(len(found.test)):
        np.testing.assert_array_equal(found.test.frames(i), wanted.test.frames(i))


def test_queries_of_ls_vid_that_are_no_numbers(tmp_path):
    path = ls_vid(tmp_path / "LS-VID", version=2) / "test" / "query.npy"
    for spoil in (
        lambda: np.save(path, np.array(["a"])),
        lambda: np.save(path, np.array([{"a": 1}], dtype=object)),
        lambda: path.write_bytes(b"hello"),
        lambda: path.write_bytes(b""),
    ):
        spoil()
        with pytest.raises(MarsError, match=r"query\.npy: no numbers \(.*: unpack") as error:
            convert(tmp_path / "LS-VID", tmp_path / "out")
        assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_ls_vid_refusals(tmp_path, capsys):
    root = ls_vid(tmp_path / "LS-VID", query=(1, 7))
    with pytest.raises(MarsError, match="info_test.mat: no numbers of queries in 1..6"):
        convert(root, tmp_path / "out")
    (root / "test" / "data" / "info_test.mat").unlink()
    with pytest.raises(MarsError, match="info_test.mat: no such file"):
        convert(root, tmp_path / "out")
    path = root / "list_sequence" / "list_seq_test.txt"
    path.write_text(path.read_text() + "tracklet_test/0009/0009_9 9\n")
    with pytest.raises(MarsError, match="0009_9: no frames of this tracklet"):
        convert(root, tmp_path / "out")
    path.write_text("tracklet_test/0009/0009_9 nine\n")
    with pytest.raises(MarsError, match="list_seq_test.txt: no list of tracklets"):
        convert(root, tmp_path / "out")


# ---------------------------------------------------------------------------- the command line


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
    for command in (
        ["draw", "--out", "y", "--dial", "fog"],
        ["draw", "--out", "y", "--seed", "-1"],
        ["draw", "--out", "y", "--workers", "0"],
        ["draw", "--out", "y", "--height", "half"],
        ["draw", "--out", "y", "--world", "sea"],
        ["convert", "x", "y", "--seed", "-1"],
        ["subset", "x", "y", "--ids", "0"],
        ["subset", "x", "y", "--ids", "2", "--seed", "1.5"],
    ):
        with pytest.raises(SystemExit) as stop:
            main(command)
        error = capsys.readouterr().err
        assert stop.value.code == 2 and len(error.splitlines()) == 1 and command[-2] in error


@pytest.mark.slow
def test_every_command_prints_the_whole_path(crowd, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    ilids(tmp_path / "ilids")
    small = ["--ids", "0", "--test-ids", "1", "--workers", "1"]
    for command in (
        ["draw", "--world", "street", "--out", "a street", *small],
        ["subset", "crowd", "a subset", "--ids", "2"],
        ["convert", "ilids", "a converted set"],
    ):
        assert main(command) == 0
        (out,) = [word for word in command if word.startswith("a ")]
        assert f"VREID_DATA='{tmp_path}/{out}' makes" in capsys.readouterr().out
    street = replace(STREET, train_ids=0, test_ids=1)
    assert draw(street, tmp_path / "a street") and len(read_mars(tmp_path / "a street").test)
    with pytest.raises(MarsError, match="holds something else"):
        draw(MiniMars(0, 1), tmp_path / "a street")


def test_worlds(tmp_path, monkeypatch):
    """The street with its dials and shares, drawn where the studies look, and what is changed."""
    monkeypatch.setenv("VREID_CACHE", str(tmp_path))
    drawn = []
    monkeypatch.setattr(data_main, "draw", lambda *given: drawn.append(given) or tmp_path)
    main(["draw", "--world", "street"])
    main(["draw", "--world", "street", "--dial", "blur=0.5", "--seed", "7", "--out", "x"])
    main(["draw", "--workers", "3"])
    other = replace(STREET, seed=7, dials=STREET.dials | {"blur": 0.5})
    assert drawn == [
        (STREET, tmp_path / STREET.name, None),
        (other, Path("x"), None),
        (MiniMars(), tmp_path / MiniMars().name, 3),
    ]


def test_the_whole_path_is_printed_and_a_tilde_is_a_home(crowd, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert main(["subset", "crowd", "small set", "--ids", "2"]) == 0
    assert f"VREID_DATA='{tmp_path}/small set' makes" in capsys.readouterr().out
    assert main(["check", "~/small set"]) == 0
    assert main(["subset", "~/crowd", "~/other", "--ids=2"]) == 0
    assert f"VREID_DATA={tmp_path}/other makes" in capsys.readouterr().out
    name = os.fsdecode(b"caf\xe9")
    assert main(["subset", "~/crowd", name, "--ids=2"]) == 0
    assert read_mars(tmp_path / name).root == tmp_path / name


def test_results_know_their_set(root, tmp_path):
    """Another folder, another list, other pictures are refused; the same set is not."""
    mars, folder = read_mars(root), tmp_path / "run"
    folder.mkdir()
    same_set(folder, mars, write=False)
    assert [*folder.iterdir()] == []
    for _ in range(2):
        same_set(folder, read_mars(root))
    (tmp_path / "elsewhere").mkdir()
    other = shutil.copytree(root, tmp_path / "elsewhere" / root.name)
    with pytest.raises(MarsError, match="its results are of another folder .*name another folder"):
        same_set(folder, read_mars(other))
    path = mars.test.paths(3)[1]
    Image.new("RGB", (8, 16), "red").save(path)
    with pytest.raises(MarsError, match="older than the pictures, which changed since"):
        same_set(folder, read_mars(root))
    savemat(root / "info" / "query_IDX.mat", {"query_IDX": np.array([[4]])})
    with pytest.raises(MarsError, match="of another list of tracklets"):
        same_set(folder, read_mars(root))
    (folder / "data.json").write_text("{")
    with pytest.raises(MarsError, match="delete this one"):
        same_set(folder, mars)


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
