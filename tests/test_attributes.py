"""The attribute annotation: its file format, its value names, and its join to the tracklets."""

import csv

import numpy as np
import pytest

from vreid_course.data.attributes import ATTRIBUTES, read_attributes, write_attributes
from vreid_course.data.mars import MarsError, frame_names, read_mars, write_info

HEADER = (
    "person-id,camera,tracklet,Tops.c,Bottoms.c,Age,Tops.l,Bottoms.l,shoulder bag,backpack,hat,"
    "handbag,hair,gender,Bottoms.t"
)
# sorted by person only, as the real file; 2 and 9 stand in test, 1 and 7 in train
ROWS = [
    "1,2,10,8,0,1,1,1,0,0,0,0,1,1,0",
    "1,1,9,5,0,1,1,1,0,0,0,0,1,1,0",
    "2,3,3,3,9,3,0,0,1,1,1,1,0,0,1",
    "2,1,2,2,8,2,0,0,1,1,1,1,0,0,1",
    "7,4,1,0,7,1,1,0,0,0,0,0,0,0,1",
    "9,5,12,1,6,0,1,1,0,0,0,1,1,1,0",
]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mars_attributes.csv"
    path.write_bytes("".join(f"{line}\r\n" for line in [HEADER, *ROWS]).encode())
    return path


@pytest.fixture
def mars(tmp_path):
    train = [(1, 1, 9, 2), (1, 2, 10, 1), (7, 4, 1, 1)]
    test = [(-1, 1, 1, 1), (0, 2, 1, 3), (2, 1, 2, 1), (2, 3, 3, 2), (9, 5, 12, 1)]
    for part in ("train", "test"):
        (tmp_path / f"bbox_{part}").mkdir()
    write_info(tmp_path, *([frame_names(*row) for row in rows] for rows in (train, test)))
    return read_mars(tmp_path)


def test_reads_named_columns(file):
    attributes = read_attributes(file)
    assert len(attributes) == 6 and list(attributes.values) == HEADER.split(",")[3:]
    assert attributes.tracklets.tolist() == [10, 9, 3, 2, 1, 12]
    assert attributes.names("Tops.c") == ["complex", "white", "blue", "green", "black", "purple"]
    assert attributes.names("Bottoms.c")[:3] == ["white", "white", "complex"]
    assert attributes.names("gender") == ["female", "female", "male", "male", "male", "female"]
    kinds = {array.dtype for array in attributes.values.values()}
    assert kinds == {np.dtype(np.int64)}


def test_every_label_has_a_name():
    """Nine binary columns; colours and age make 9 + 10 + 4 values: 32 labels."""
    sizes = {column: len(set(values)) for column, values in ATTRIBUTES.items()}
    assert sizes.pop("Tops.c") == 9 and sizes.pop("Bottoms.c") == 10 and sizes.pop("Age") == 4
    assert list(sizes.values()) == [2] * 9


def test_join_follows_the_tracklets(file, mars):
    joined = read_attributes(file, mars.test)
    assert joined.tracklets.tolist() == [-1, -1, 2, 3, 12]
    assert joined.values["Tops.c"].tolist() == [-1, -1, 2, 3, 1]
    assert joined.names("Age") == ["", "", "adult", "old", "child"]
    np.testing.assert_array_equal(joined.pids, mars.test.pids)
    assert read_attributes(file, mars.train).values["Tops.c"].tolist() == [5, 8, 0]
    assert joined.select(mars.test.pids > 0).values["hat"].tolist() == [1, 1, 0]


def test_written_file_is_the_real_format(file, mars, tmp_path):
    copy = tmp_path / "copy.csv"
    write_attributes(copy, read_attributes(file))
    assert copy.read_bytes() == file.read_bytes()
    write_attributes(copy, read_attributes(file, mars.test))  # junk and distractors are left out
    assert len(list(csv.reader(copy.open()))) == 1 + 3


def test_further_columns_are_ignored(file):
    text = file.read_text().splitlines()
    file.write_text("\n".join([f"action,{text[0]}", *(f"4,{line}" for line in text[1:])]))
    assert read_attributes(file).values["Tops.c"].tolist() == [8, 5, 3, 2, 0, 1]


BAD = {  # what is wrong: (text, its replacement, what the message says)
    "missing column": ("handbag", "purse", "has no column 'handbag'"),
    "out of range": ("7,4,1,0,7", "7,4,1,9,7", "line 6: Tops.c is '9', not a number in 0..8"),
    "negative": ("7,4,1,0,7", "7,4,1,-1,7", "line 6: Tops.c is '-1'"),
    "no number": ("7,4,1,0,7", "7,x,1,0,7", "line 6: camera is 'x'"),
    "short line": ("2,3,3,3,9,3,0,0,1,1,1,1,0,0,1", "2,3,3", "line 4: Tops.c is ''"),
    "other camera": ("2,3,3,3", "2,4,3,3", "3 tracklets do not match the 3"),
    "missing row": ("9,5,12,1,6,0,1,1,0,0,0,1,1,1,0\r\n", "", "2 tracklets do not match the 3"),
    "empty": ("", None, "has no column 'person-id'"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_file_gives_one_line(file, mars, what):
    old, new, message = BAD[what]
    text = file.read_bytes().decode()
    assert old in text
    file.write_bytes(b"" if new is None else text.replace(old, new, 1).encode())
    with pytest.raises(MarsError) as error:
        read_attributes(file, mars.test)
    assert str(error.value).startswith(f"{file}: ") and message in str(error.value)
    assert "\n" not in str(error.value)


def test_selected_tracklets_do_not_join(file, mars):
    with pytest.raises(MarsError, match="join before selecting"):
        read_attributes(file, mars.test.select(np.array([0, 2, 4])))


def test_missing_file_is_named(tmp_path):
    with pytest.raises(MarsError, match="none.csv: no such file"):
        read_attributes(tmp_path / "none.csv")
