"""The reader of MARS layout: what it reads, what it refuses, and how it says so."""

import os

import h5py
import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat, savemat
from scipy.sparse import csc_matrix

from vreid_course.data.mars import (
    MarsError,
    frame_names,
    query_rows,
    read_mars,
    write_info,
)

# (pid, camid, tracklet number, frames), in the order of MARS
TRAIN = [(1, 1, 1, 3), (1, 2, 3, 2), (7, 4, 1, 1)]
TEST = [(-1, 1, 1, 2), (0, 6, 1, 2), (2, 1, 1, 2), (2, 1, 2, 4), (2, 3, 3, 2), (9, 5, 1, 3)]


def make_set(root, train=TRAIN, test=TEST):
    """A set of small noise pictures; the upper half of frame k has brightness 10 k."""
    rng = np.random.default_rng(0)
    lists = [[frame_names(*row) for row in rows] for rows in (train, test)]
    for part, tracklets in zip(("train", "test"), lists, strict=True):
        for names in tracklets:
            folder = root / f"bbox_{part}" / names[0][:4]
            folder.mkdir(parents=True, exist_ok=True)
            for k, name in enumerate(names):
                pixels = rng.integers(0, 255, (16, 8, 3), dtype=np.uint8)
                pixels[:8] = 10 * k % 250
                Image.fromarray(pixels).save(folder / name, quality=95)
    write_info(root, *lists)
    return root


@pytest.fixture
def root(tmp_path):
    return make_set(tmp_path / "set")


def test_reads_what_was_written(root):
    mars = read_mars(str(root))
    for split, rows in ((mars.train, TRAIN), (mars.test, TEST)):
        pids, camids, _, lengths = np.array(rows).T
        np.testing.assert_array_equal(split.pids, pids)
        np.testing.assert_array_equal(split.camids, camids)
        np.testing.assert_array_equal(split.lengths, lengths)
        assert len(split) == len(rows)
        arrays = (split.pids, split.camids, split.first, split.last, split.lengths)
        assert {array.dtype for array in arrays} == {np.dtype(np.int64)}
    assert mars.query.tolist() == [3, 4]
    assert [mars.test.key(i) for i in (0, 3)] == ["00-1C1T0001", "0002C1T0002"]
    assert mars.test.paths(0)[1] == root / "bbox_test" / "00-1" / "00-1C1T0001F002.jpg"
    assert all(path.is_file() for path in mars.train.paths(1))


def test_index_needs_no_picture(root):
    for picture in root.glob("bbox_*/*/*.jpg"):
        picture.unlink()
    assert len(read_mars(root).test) == len(TEST)


def test_frames_are_rgb_in_the_order_asked_for(root):
    split = read_mars(root).test
    frames = split.frames(3)
    assert frames.shape == (4, 16, 8, 3) and frames.dtype == np.uint8
    assert abs(frames[:, :8].mean(axis=(1, 2, 3)) - [0, 10, 20, 30]).max() < 3
    np.testing.assert_array_equal(split.frames(3, [2, 0, 0]), frames[[2, 0, 0]])
    np.testing.assert_array_equal(split.frames(3, np.array([-1])), frames[[3]])
    pixels = np.zeros((16, 8, 3), np.uint8)
    pixels[:8], pixels[:, 4:] = (200, 100, 0), 0  # orange, upper left
    Image.fromarray(pixels).save(split.paths(3)[0], quality=95, subsampling=0)
    assert abs(split.frames(3, [0])[0].astype(int) - pixels).max() < 12


def test_files_are_those_of_mars(root):
    """Types and shapes of the real .mat files; CR LF after every name; equal bytes every time."""
    info = root / "info"
    tracks = loadmat(info / "tracks_test_info.mat")["track_test_info"]
    assert tracks.dtype == np.int32 and tracks[:2].tolist() == [[1, 2, -1, 1], [3, 4, 0, 6]]
    query = loadmat(info / "query_IDX.mat")["query_IDX"]
    assert query.dtype == np.uint16 and query.tolist() == [[4, 5]]
    assert (info / "train_name.txt").read_bytes().startswith(b"0001C1T0001F001.jpg\r\n")
    assert (info / "train_name.txt").read_bytes().endswith(b"0007C4T0001F001.jpg\r\n")
    assert b"Created on" not in (info / "query_IDX.mat").read_bytes()  # the time of day
    before = {path.name: path.read_bytes() for path in info.iterdir()}
    make_set(root)
    assert before == {path.name: path.read_bytes() for path in info.iterdir()} and len(before) == 5


def test_line_ends_do_not_matter(root):
    names = root / "info" / "test_name.txt"
    names.write_bytes(names.read_bytes().replace(b"\r\n", b"\n").rstrip())
    assert read_mars(root).test.key(5) == "0009C5T0001"


@pytest.mark.parametrize(
    "save", [lambda text: b"\xef\xbb\xbf" + text, lambda text: text.decode().encode("utf-16")]
)
def test_a_byte_order_mark_does_not_matter(root, save):
    names = root / "info" / "test_name.txt"
    names.write_bytes(save(names.read_bytes()))
    assert read_mars(root).test.key(5) == "0009C5T0001"


@pytest.mark.parametrize(
    "folder", ["bbox_test\\{0}\\", "bbox_test/{0}/", "D:\\MARS\\bbox_test\\{0}\\"]
)
def test_folders_in_front_of_names_do_not_matter(root, folder):
    """As lists that were made anew, on Windows or elsewhere, have them."""
    lines(root / "info" / "test_name.txt", lambda a: [folder.format(name[:4]) + name for name in a])
    test = read_mars(root).test
    assert test.key(5) == "0009C5T0001" and test.frames(3).shape == (4, 16, 8, 3)


@pytest.mark.parametrize(
    "change", [csc_matrix, lambda a: a.astype(np.float32), lambda a: a.astype(np.int16)]
)
def test_matrices_of_other_kinds_are_read(root, change):
    before = read_mars(root)
    for name in (TEST_MAT, TRAIN_MAT, QUERY):
        edit_mat(root / name, change)
    after = read_mars(root)
    np.testing.assert_array_equal(before.query, after.query)
    np.testing.assert_array_equal(before.test.camids, after.test.camids)


def test_matlab_73_is_read(root):
    before = read_mars(root)
    for name in ("tracks_train_info", "tracks_test_info", "query_IDX"):
        to_v73(root / "info" / f"{name}.mat")
    after = read_mars(root)
    np.testing.assert_array_equal(before.query, after.query)
    for one, two in ((before.train, after.train), (before.test, after.test)):
        for column in ("first", "last", "pids", "camids"):
            np.testing.assert_array_equal(getattr(one, column), getattr(two, column))


def test_any_number_of_cameras(tmp_path):
    """DukeMTMC-VideoReID has 8, LS-VID 15."""
    test = [(3, 8, 1, 2), (3, 15, 2, 1), (4, 1, 1, 1), (4, 115, 2, 3), (5, 15, 1, 1), (5, 15, 2, 1)]
    mars = read_mars(make_set(tmp_path, [(1, 12, 1, 2), (1, 2, 2, 1)], test))
    assert mars.test.camids.tolist() == [8, 15, 1, 115, 15, 15]
    assert mars.test.key(3) == "0004C115T0002" and mars.train.camids.tolist() == [12, 2]
    assert mars.query.tolist() == [0, 1, 2, 3]  # a key of pid * 10 + camera would mix people up
    assert mars.test.frames(3).shape == (3, 16, 8, 3)
    names = tmp_path / "info" / "test_name.txt"
    names.write_text(names.read_text().replace("0003C8T", "0003C08T"))
    assert read_mars(tmp_path).test.key(0) == "0003C08T0001"


def test_a_frame_under_another_name_is_pointed_out(root):
    path = read_mars(root).test.paths(3)[1]
    path.rename(path.with_suffix(".JPG"))
    with pytest.raises(MarsError, match="no such frame, but 0002C1T0002F002.JPG is there: give it"):
        read_mars(root).test.frames(3)
    path.with_suffix(".JPG").rename(path.with_suffix(".png"))
    with pytest.raises(MarsError, match="but 0002C1T0002F002.png is there"):
        read_mars(root).test.frames(3)
    path.with_suffix(".png").unlink()
    path.symlink_to("nowhere.jpg")  # and nothing else of that name
    with pytest.raises(MarsError, match="no such frame: copy it again"):
        read_mars(root).test.frames(3)


def test_a_stamp_knows_names_and_pictures(root):
    first = read_mars(root).test.stamp()
    assert first == read_mars(root).test.stamp() != read_mars(root).train.stamp()
    assert read_mars(root).test.select([0, 1]).stamp() != first
    path = read_mars(root).test.paths(3)[1]
    os.utime(path, ns=(0, 10**18))
    assert (second := read_mars(root).test.stamp()) != first
    (root / "settings.json").write_text("{}")  # a drawn set: times do not count, sizes do
    drawn = read_mars(root).test.stamp()
    os.utime(path, ns=(0, 10**17))
    assert read_mars(root).test.stamp() == drawn != second
    path.write_bytes(path.read_bytes() + b" ")
    assert read_mars(root).test.stamp() != drawn
    path.unlink()
    assert len({first, second, drawn, read_mars(root).test.stamp()}) == 4


def test_queries_are_the_last_tracklets_of_people_in_two_cameras():
    pids = np.array([-1, -1, 0, 0, 2, 2, 2, 2, 5, 5, 9, 9])
    camids = np.array([1, 2, 1, 2, 1, 1, 4, 4, 3, 3, 1, 2])
    assert query_rows(pids, camids).tolist() == [5, 7, 10, 11]
    assert query_rows(pids, camids, cameras=1).tolist() == [5, 7, 9, 10, 11]


def test_train_part_may_be_empty_and_tracklets_long(tmp_path):
    mars = read_mars(make_set(tmp_path, train=[], test=[(3, 1, 1, 1002)]))
    assert len(mars.train) == 0 and len(mars.query) == 0
    assert mars.test.paths(0)[-1].name == "0003C1T0001F1002.jpg"


def test_select(root):
    split = read_mars(root).test
    people = split.select(split.pids > 0)
    assert people.pids.tolist() == [2, 2, 2, 9] and people.key(0) == "0002C1T0001"
    np.testing.assert_array_equal(people.frames(3), split.frames(5))
    assert split.select(np.array([4, 2])).camids.tolist() == [3, 1]
    with pytest.raises(MarsError, match="no tracklets left"):
        split.select(split.pids > 100)


BROKEN_FRAMES = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-30]),
    "text": lambda path: path.write_text("no picture"),
    "png": lambda path: Image.new("RGB", (8, 16)).save(path, "png"),
}


@pytest.mark.parametrize("how", BROKEN_FRAMES)
def test_broken_frame_is_named_or_skipped_and_counted(root, how):
    split = read_mars(root).test
    path = split.paths(3)[1]
    whole = split.frames(3)
    BROKEN_FRAMES[how](path)
    with pytest.raises(MarsError) as error:
        split.frames(3)
    assert_one_line(error.value, path, "save it as JPEG" if how == "png" else "copy it again")
    with pytest.warns(UserWarning, match=f"skipped 1 bad frames.*{path.name}"):
        np.testing.assert_array_equal(split.frames(3, skip_bad=True), whole[[0, 2, 3]])
    with pytest.raises(MarsError, match=path.name):
        split.frames(3, [1], skip_bad=True)


def test_frames_of_two_sizes_are_refused(root):
    split = read_mars(root).test
    Image.new("RGB", (9, 16)).save(split.paths(3)[2])
    with pytest.raises(MarsError, match="0002C1T0002 has frames of several sizes"):
        split.frames(3)


def edit_mat(path, change):
    """Save the one matrix of a .mat file again after `change`."""
    key, array = next((k, v) for k, v in loadmat(path).items() if not k.startswith("__"))
    savemat(path, {key: change(array.astype(np.int64))})


def to_v73(path, as_text=False):
    """Save the one matrix of a .mat file again as MATLAB's -v7.3 does: HDF5, columns first."""
    key, array = next((k, v) for k, v in loadmat(path).items() if not k.startswith("__"))
    with h5py.File(path, "w", userblock_size=512) as file:
        file[key] = array.T.astype(np.float64 if not as_text else np.uint16)
        file[key].attrs["MATLAB_class"] = np.bytes_("char" if as_text else "double")
        if array.size == 0:
            file[key].attrs["MATLAB_empty"] = 1
    with path.open("r+b") as stream:
        stream.write(b"MATLAB 7.3 MAT-file".ljust(124) + b"\0\2IM")


def put(row, column, value):
    """A change that sets one number of a matrix."""

    def change(array):
        array[row, column] = value
        return array

    return change


def with_infinity(array):
    return np.where(array == 9, np.inf, array)


def lines(path, change):
    path.write_text("".join(f"{line}\r\n" for line in change(path.read_text().split())))


TEST_MAT, TRAIN_MAT = "info/tracks_test_info.mat", "info/tracks_train_info.mat"
QUERY, NAMES = "info/query_IDX.mat", "info/test_name.txt"
BAD_INPUT = {  # what is wrong: file that is named, how it is broken, what the message says
    "no info folder": ("info", lambda p: p.rename(p.with_name("x")), "name the one that holds"),
    "no tracks": (TRAIN_MAT, lambda p: p.unlink(), "no such file"),
    "no names": (NAMES, lambda p: p.unlink(), "no such file"),
    "no queries": (QUERY, lambda p: p.unlink(), "no such file"),
    "no frames folder": ("bbox_test", lambda p: p.rename(p.with_name("x")), "unpack the frames"),
    "mat is text": (TEST_MAT, lambda p: p.write_text("hello"), "no MATLAB file"),
    "mat is empty": (TEST_MAT, lambda p: p.write_bytes(b""), "no MATLAB file"),
    "mat is cut": (TEST_MAT, lambda p: p.write_bytes(p.read_bytes()[:150]), "no MATLAB file"),
    "wrong key": (TEST_MAT, lambda p: savemat(p, {"a": np.eye(4)}), "holds a, not track_test_info"),
    "wrong shape": (
        TEST_MAT,
        lambda p: edit_mat(p, lambda a: a[:, :3]),
        "not whole numbers (N, 4)",
    ),
    "infinite": (TEST_MAT, lambda p: edit_mat(p, with_infinity), "float64 (6, 4), not whole"),
    "transposed": (TEST_MAT, lambda p: edit_mat(p, np.transpose), "(4, 6), not whole numbers (N"),
    "structure": (TEST_MAT, lambda p: savemat(p, {"track_test_info": {"a": 1}}), "not whole"),
    "complex": (TEST_MAT, lambda p: edit_mat(p, lambda a: a + 1j), "complex128 (6, 4), not whole"),
    "query of huge numbers": (QUERY, lambda p: edit_mat(p, lambda a: a * 1e300), "not whole"),
    "query twice": (QUERY, lambda p: edit_mat(p, put(0, 1, 4)), "a query stands there twice"),
    "fractions": (TEST_MAT, lambda p: edit_mat(p, lambda a: a + 0.5), "not whole numbers"),
    "letters": (TEST_MAT, lambda p: savemat(p, {"track_test_info": ["abcd"]}), "save it as one"),
    "cells": (
        TEST_MAT,
        lambda p: savemat(p, {"track_test_info": np.array([["1", 2]], object)}),
        "holds text or cells, not numbers: save it as one matrix of numbers",
    ),
    "text in v7.3": (TEST_MAT, lambda p: to_v73(p, as_text=True), "holds text or cells"),
    "v7.3 cut": (TEST_MAT, lambda p: (to_v73(p), p.write_bytes(p.read_bytes()[:900])), "no MATLAB"),
    "query of two rows": (QUERY, lambda p: edit_mat(p, lambda a: np.eye(2)), "numbers (1, N)"),
    "no test tracklets": (TEST_MAT, lambda p: edit_mat(p, lambda a: a[:0]), "no tracklets"),
    "gap": (TEST_MAT, lambda p: edit_mat(p, put(2, 0, 6)), "row 3 [6, 6, 2, 1]"),
    "not from 1": (TEST_MAT, lambda p: edit_mat(p, put(0, 0, 2)), "row 1 [2, 2, -1, 1]"),
    "camera 0": (TEST_MAT, lambda p: edit_mat(p, put(3, 3, 0)), "cameras are counted from 1"),
    "camera 15 in the table alone": (TEST_MAT, lambda p: edit_mat(p, put(3, 3, 15)), "line 7"),
    "pid -2": (TEST_MAT, lambda p: edit_mat(p, put(0, 2, -2)), "identity is not in -1..9999"),
    "junk in train": (
        TRAIN_MAT,
        lambda p: edit_mat(p, put(0, 2, -1)),
        "identity is not in 1..9999",
    ),
    "names cut": (
        NAMES,
        lambda p: lines(p, lambda a: a[:-1]),
        "14 names, but the tracklets have 15",
    ),
    "names empty": (NAMES, lambda p: p.write_bytes(b""), "holds 0 names"),
    "names bytes": (NAMES, lambda p: p.write_bytes(b"\xff\xd8\xff"), "no text"),
    "names Latin-1": (
        NAMES,
        lambda p: p.write_bytes(b"#\xe9" + p.read_bytes()),
        "save it as UTF-8",
    ),
    "names under a title": (NAMES, lambda p: lines(p, lambda a: ["names", *a]), "holds 16 names"),
    "short names": (NAMES, lambda p: lines(p, lambda a: ["x"] * 15), "line 1 is 'x'"),
    "swapped names": (NAMES, lambda p: lines(p, lambda a: a[2:4] + a[:2] + a[4:]), "line 1"),
    "camera differs": (TEST_MAT, lambda p: edit_mat(p, put(3, 3, 2)), "line 7"),
    "pid differs": (TEST_MAT, lambda p: edit_mat(p, put(5, 2, 8)), "line 13"),
    "query 0": (QUERY, lambda p: edit_mat(p, put(0, 0, 0)), "query index 0 is no"),
    "query too high": (QUERY, lambda p: edit_mat(p, put(0, 1, 7)), "query index 7 is no"),
    "junk query": (QUERY, lambda p: edit_mat(p, put(0, 0, 1)), "query index 1 is no"),
}


@pytest.mark.parametrize("what", BAD_INPUT)
def test_bad_input_gives_one_line_that_names_file_and_cure(root, what):
    file, spoil, message = BAD_INPUT[what]
    spoil(root / file)
    with pytest.raises(MarsError) as error:
        read_mars(root)
    named = NAMES if message in ("line 7", "line 13") else file
    assert_one_line(error.value, root / named, message)


def assert_one_line(error, path, message):
    text = str(error)
    assert text.startswith(f"{path}: ") and message in text and "\n" not in text, text
    assert text.count(": ") >= 2, f"no cure in {text!r}"


def test_missing_root_is_named(tmp_path):
    with pytest.raises(MarsError, match="nowhere"):
        read_mars(tmp_path / "nowhere")


def test_names_out_of_range_are_refused():
    for row in ((-2, 1, 1, 1), (10_000, 1, 1, 1), (1, 0, 1, 1), (1, 1, 10_000, 1), (1, 1, 1, 0)):
        with pytest.raises(MarsError, match="no MARS name"):
            frame_names(*row)
