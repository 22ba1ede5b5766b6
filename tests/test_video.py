"""A video and its boxes: reading, linking, cutting, what is counted, and what is refused."""

import csv
import os
import re
import shutil
import subprocess
import sys
import weakref

import cv2
import numpy as np
import pytest
import torch

from vreid_course.data import detect, tools, video
from vreid_course.data.__main__ import main
from vreid_course.data.boxes import link, overlap, read_boxes, to_pixels
from vreid_course.data.mars import MarsError, read_mars
from vreid_course.data.video import Shot, Video, from_video

COLOURS = {1: (200, 30, 30), 2: (30, 200, 30), 3: (30, 30, 200)}  # of three walkers, RGB
FRAMES, WIDTH, HEIGHT = 20, 160, 96


def place(walker, t):
    """Left, top, width, height in frame t (from 1); 1 and 2 pass each other, 3 leaves the scene."""
    left = {1: 4 + 6 * t, 2: 130 - 6 * t, 3: 60 + 8 * t}[walker]
    return left, {1: 8, 2: 44, 3: 24}[walker], 20, 40


def pictures():
    """The pictures of the three walkers, in OpenCV's order of colours."""
    for t in range(1, FRAMES + 1):
        picture = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
        for walker, colour in COLOURS.items():
            left, top, width, height = place(walker, t)
            picture[top : top + height, max(left, 0) : left + width] = colour[::-1]
        yield picture


@pytest.fixture(scope="module")
def street(tmp_path_factory):
    """A video of three walkers; motion JPEG, which every OpenCV writes."""
    path = tmp_path_factory.mktemp("street") / "street.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (WIDTH, HEIGHT))
    for picture in pictures():
        writer.write(picture)
    writer.release()
    return path


def one(street, boxes, out, boxes_size=None, **options):
    """A set of one camera."""
    return from_video([Shot(1, street, boxes, boxes_size)], out, **options)


def table(root):
    """frames.csv, as dicts."""
    with (root / "frames.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def lines(ids=True, scale=1.0, walkers=COLOURS, frames=range(1, FRAMES + 1)):
    for t in frames:
        for walker in walkers:
            box = ",".join(f"{scale * value:.3f}" for value in place(walker, t))
            yield f"{t},{walker if ids else -1},{box},1,-1,-1,-1"


def write(tmp_path, rows):
    path = tmp_path / "boxes.txt"
    path.write_text("\n".join(rows) + "\n")
    return path


def colour_of(frames):
    """The mean colour of the middle of a tracklet, and its walker."""
    mean = frames[:, 100:150, 50:80].mean((0, 1, 2))
    return min(COLOURS, key=lambda walker: np.abs(mean - COLOURS[walker]).sum())


def test_tracks_with_ids_become_tracklets_of_those_ids(street, tmp_path):
    rows = [line.replace(",3,", ",777,", 1) for line in lines()]
    made = one(street, write(tmp_path, rows), tmp_path / "out")
    mars = read_mars(tmp_path / "out")
    assert len(mars.train) == 0 and mars.test.pids.tolist() == [1, 2, 777]
    assert set(mars.test.camids) == {1} and mars.query.tolist() == [0, 1, 2]
    assert mars.test.key(2) == "0777C1T0001"
    # walker 3 is clipped once it passes column 160, and outside from column 160 on
    lefts = np.array([place(3, t)[0] for t in range(1, FRAMES + 1)])
    assert mars.test.lengths.tolist() == [20, 20, (lefts < WIDTH).sum()]
    assert ((lefts >= WIDTH).sum(), ((lefts < WIDTH) & (lefts + 20 > WIDTH)).sum()) == (8, 2)
    assert made == (
        "3 tracks of 52 boxes; 2 clipped at the border, 8 wholly outside skipped,"
        " 0 tracks too short"
    )
    rows = table(tmp_path / "out")
    assert [row["picture"] for row in rows] == mars.test.names.tolist()
    last = rows[-1]  # walker 3 in frame 12, tenths of seconds apart
    assert [last[c] for c in ("camera", "video", "track", "frame")] == [
        "1",
        street.name,
        "777",
        "12",
    ]
    assert [float(last[c]) for c in ("second", "left", "width")] == [1.1, place(3, 12)[0], 20]
    assert mars.test.frames(0).shape == (20, 256, 128, 3)
    assert [colour_of(mars.test.frames(i)) for i in range(3)] == [1, 2, 3]
    assert tools.check(tmp_path / "out", frames=True) == []


def test_a_crop_is_the_box_and_nothing_else(street, tmp_path):
    one(street, write(tmp_path, lines(walkers=(1,), frames=(3, 4))), tmp_path / "out")
    frames = read_mars(tmp_path / "out").test.frames(0).astype(int)
    assert np.abs(frames[:, 8:-8, 8:-8] - COLOURS[1]).mean() < 12  # JPEG, twice


def test_boxes_of_another_picture_size_are_scaled(street, tmp_path):
    """The same boxes, given for a picture 1.6 times as wide and twice as high."""
    rows = []
    for t in range(1, FRAMES + 1):
        left, top, width, height = place(3, t)
        rows.append(f"{t},3,{1.6 * left},{2 * top},{1.6 * width},{2 * height}")
    made = one(street, write(tmp_path, rows), tmp_path / "a", (256, 192))
    plain = one(street, write(tmp_path, lines(walkers=(3,))), tmp_path / "b")
    assert made == plain
    a, b = (read_mars(tmp_path / name).test for name in "ab")
    assert (a.frames(0) == b.frames(0)).all()


def test_a_box_on_the_border_is_not_clipped_by_scaling():
    corners = np.array([[0, 0, 767.0, 576], [700, 500, 768, 576]])
    scaled = corners * np.tile(np.divide((480, 361), (768, 576)), 2)
    assert to_pixels(scaled, (480, 361))[:, 2:].tolist() == [[480, 361], [480, 361]]
    assert to_pixels(np.array([[-9, 5, 0, 9.0], [480, 5, 490, 9]]), (480, 361)).tolist() == [
        [0, 5, 0, 9],
        [480, 5, 480, 9],
    ]


def test_boxes_without_ids_are_linked(street, tmp_path):
    made = one(street, write(tmp_path, lines(ids=False)), tmp_path / "out")
    test = read_mars(tmp_path / "out").test
    assert made.startswith("3 tracks") and sorted(test.lengths) == [12, 20, 20]
    assert sorted(colour_of(test.frames(i)) for i in range(3)) == [1, 2, 3]


def test_known_ids_and_linked_ones_do_not_meet(street, tmp_path):
    rows = [*lines(walkers=(1,)), *lines(ids=False, walkers=(2,))]
    one(street, write(tmp_path, [r.replace(",1,", ",40,", 1) for r in rows]), tmp_path / "o")
    test = read_mars(tmp_path / "o").test
    assert test.pids.tolist() == [40, 41] and test.lengths.tolist() == [20, 20]
    assert {row["track"] for row in table(tmp_path / "o")} == {"40", "41"}


def test_lines_in_any_order_and_with_spaces(street, tmp_path):
    rows = list(lines())
    made = one(street, write(tmp_path, rows), tmp_path / "a")
    mixed = ["", *(rows[i].replace(",", " ") for i in np.random.default_rng(0).permutation(60))]
    assert one(street, write(tmp_path, mixed), tmp_path / "b") == made
    a, b = (read_mars(tmp_path / name).test for name in "ab")
    assert all((a.frames(i) == b.frames(i)).all() for i in range(3))


def test_short_tracks_are_left_out_and_counted(street, tmp_path):
    made = one(street, write(tmp_path, lines()), tmp_path / "out", shortest=13)
    assert made.startswith("2 tracks") and "1 tracks too short" in made


# -------------------------------------------------------------------------- what boxes can be


def test_marks_and_ends_of_lines_do_not_matter(street, tmp_path):
    text = "\r\n".join(lines())
    (tmp_path / "plain.txt").write_text("\n".join(lines()))
    made = one(street, tmp_path / "plain.txt", tmp_path / "plain")
    old = text.replace("\r\n", "\r").replace(",", "\t").encode()  # an old Mac, and tabs
    for i, data in enumerate((b"\xef\xbb\xbf" + text.encode(), text.encode("utf-16"), old)):
        (tmp_path / "boxes.txt").write_bytes(data)
        assert one(street, tmp_path / "boxes.txt", tmp_path / f"out{i}") == made


def test_ground_truth_keeps_people_that_count(tmp_path):
    """MOT17: flag 1 and class 1; cars, reflections, ignored people and standing ones are not."""
    path = write(
        tmp_path,
        ["1,1,5,5,10,20,1,1,0.9", "1,2,5,5,10,20,0,1,0.9", "1,3,5,5,10,20,1,3,1",
         "2,1,6,5,9,20,1,1,1", "1,4,5,5,10,20,0,7,1", "1,5,5,5,10,20,0,8,1",
         "1,6,5,5,10,20,0,12,1"],
    )  # fmt: skip
    boxes = read_boxes(path)
    assert boxes.ids.tolist() == [1, 1] and boxes.frames.tolist() == [1, 2]
    assert boxes.left_out == {"of another class": 4, "flagged as ignored": 1}


def test_numbers_may_be_written_otherwise(street, tmp_path):
    """Ids and classes as 1.0 or 0001, as tables of other tools have them."""
    rows = [
        f"{t},{w:04d},{','.join(map(str, place(w, t)))},1.0,1.0,0.5" for t in (1, 2) for w in (1, 2)
    ]
    boxes = read_boxes(write(tmp_path, [*rows, "1.0,7.0,5,5,10,20,1.0,3.0,0.5"]))
    assert boxes.ids.tolist() == [1, 2, 1, 2] and boxes.left_out == {"of another class": 1}


def test_ground_truth_of_2015_has_a_flag_and_no_class(tmp_path):
    rows = ["1,1,5,5,10,20,1,-1,-1,-1", "1,2,5,5,10,20,0,-1,-1,-1", "2,1,5,5,10,20,1,2.5,3,4"]
    boxes = read_boxes(write(tmp_path, rows))
    assert boxes.ids.tolist() == [1, 1] and boxes.left_out == {"flagged as ignored": 1}
    rows = [row.replace(",1,-1", ",0,-1") for row in rows[:2]]  # a tool that writes 0 for unknown
    assert len(read_boxes(write(tmp_path, rows)).ids) == 2


def test_classes_in_words_and_nothing_left(tmp_path):
    rows = ["1,1,5,5,10,20,0.9,person", "1,2,5,5,10,20,0.9,car", "1,3,5,5,10,20,1,Pedestrian,1"]
    assert read_boxes(write(tmp_path, rows)).ids.tolist() == [1, 3]
    with pytest.raises(MarsError, match=r"none is left \(1 of another class\)"):
        read_boxes(write(tmp_path, rows[1:2]))


def test_detections_below_the_least_confidence_are_left_out(street, tmp_path, capsys):
    rows = [f"{t},-1,{10 * t},5,10,20,{t / 10},-1,-1,-1" for t in range(1, 6)]
    boxes = read_boxes(write(tmp_path, rows), least=0.3)
    assert boxes.frames.tolist() == [3, 4, 5]
    assert boxes.left_out == {"below the least confidence": 2}
    made = one(street, write(tmp_path, rows), tmp_path / "out", least=0.3)
    assert "2 below the least confidence" in made
    assert len(read_boxes(write(tmp_path, rows)).frames) == 5
    with pytest.raises(MarsError, match="line 1 .* no confidence in its seventh column"):
        read_boxes(write(tmp_path, ["1,-1,5,5,10,20"]), least=0.3)


def test_boxes_without_area_and_boxes_twice_are_left_out_and_counted(street, tmp_path):
    rows = [*lines(walkers=(1,)), "3,1,5,5,0,20", "3,1,5,5,9,-2", next(lines(walkers=(1,)))]
    made = one(street, write(tmp_path, rows), tmp_path / "out")
    assert made.startswith("1 tracks of 20 boxes") and "2 without width or height" in made
    assert "1 there twice" in made
    loose = list(lines(ids=False, walkers=(1,)))
    made = one(street, write(tmp_path, [*loose, *loose]), tmp_path / "loose")
    assert made.startswith("1 tracks of 20 boxes") and "20 there twice" in made


def test_ids_of_any_size_and_very_many_short_tracks(street, tmp_path):
    """Names hold 9999 identities: they are given to what is kept, free numbers to the rest."""
    far = [
        f"{t},-1,{x},{y},1,1" for t in range(1, 21, 10) for x in range(120) for y in range(48, 92)
    ]
    big = [r.replace(",2,", ",1000000,", 1) for r in lines(walkers=(1, 2))]
    rows = [*[r.replace(",1,", ",9999,", 1) for r in big], *lines(ids=False, walkers=(3,)), *far]
    one(street, write(tmp_path, rows), tmp_path / "out", shortest=10)
    test = read_mars(tmp_path / "out").test
    assert test.pids.tolist() == [1, 2, 9999] and test.lengths.tolist() == [20, 12, 20]
    with pytest.raises(MarsError) as error:
        one(street, tmp_path / "boxes.txt", tmp_path / "all")
    assert f"{tmp_path}/boxes.txt: 10563 tracks, but" in str(error.value)
    assert "--shortest" in str(error.value) and not (tmp_path / "all").exists()


# --------------------------------------------------------------------------------- several cameras


@pytest.fixture(scope="module")
def mirror(street, tmp_path_factory):
    """A second camera: the same street from the other side, 4 frames a second."""
    path = tmp_path_factory.mktemp("mirror") / "mirror.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 4, (WIDTH, HEIGHT))
    for picture in pictures():
        writer.write(np.ascontiguousarray(picture[:, ::-1]))
    writer.release()
    return path


def mirrored(ids=True):
    for t in range(1, FRAMES + 1):
        for walker in (2, 1):
            left, top, width, height = place(walker, t)
            number = 3 - walker if ids else -1  # this camera calls 2 what the other calls 1
            yield f"{t},{number},{WIDTH - left - width},{top},{width},{height}"


def two_cameras(street, mirror, tmp_path, ids=True):
    a, b = tmp_path / "a.txt", tmp_path / "b.txt"
    a.write_text("\n".join(lines(ids, walkers=(1, 2))))
    b.write_text("\n".join(mirrored(ids)))
    return ["--camera", "1", str(street), str(a), "--camera", "12", str(mirror), str(b)]


@pytest.mark.parametrize("ids", [True, False])
def test_two_cameras_are_one_gallery(street, mirror, tmp_path, ids, capsys):
    command = ["from-video", *two_cameras(street, mirror, tmp_path, ids)]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "camera 1: 2 tracks of 40 boxes" in said and "camera 12: 2 tracks of 40" in said
    test = read_mars(tmp_path / "out").test
    assert test.pids.tolist() == [1, 2, 3, 4] and test.camids.tolist() == [1, 1, 12, 12]
    assert [colour_of(test.frames(i)) for i in range(4)] == ([1, 2, 2, 1] if ids else [1, 2, 2, 1])
    rows = table(tmp_path / "out")
    assert rows[45]["second"] == "1.250" and rows[45]["video"] == "mirror.avi"  # 4 a second
    assert tools.check(tmp_path / "out", frames=True) == []


def test_a_table_says_who_is_who(street, mirror, tmp_path, capsys):
    people = tmp_path / "people.csv"
    people.write_text("\ufeffcamera, track, person\n1,1,70\n12,2,70\n1,2,5\n\n12,1,5\n", "utf-8")
    command = ["from-video", *two_cameras(street, mirror, tmp_path), "--identities", str(people)]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    mars = read_mars(tmp_path / "out")
    assert [mars.test.key(i) for i in range(4)] == [
        "0005C1T0001", "0005C12T0002", "0070C1T0001", "0070C12T0002"]  # fmt: skip
    assert [colour_of(mars.test.frames(i)) for i in range(4)] == [2, 2, 1, 1]
    for text, fault in {
        "camera,track\n1,1": "has no column 'person': begin it with",
        "camera;track;person\n1;1;1": "begin it with the line camera,track,person",
        "camera,track,person\n1,1,anna": "line 2 is '1,1,anna': give camera, track and person",
        "camera,track,person\n1,1,0": "in 1..9999",
        "\n\ncamera,track,person\n\n1,1,0": "line 5 is",
        "Camera,Track,Person\n1,1,1": "begin it with the line camera,track,person",
        "camera,track,person\n1,1": "line 2",
        "camera,track,person\n1,1,4\n1,1,5": "track 1 of camera 1 has two persons",
        "camera,track,person\n1,9,4": "camera 1 has no track 9: take the numbers of frames.csv",
    }.items():
        people.write_text(text)
        assert main([*command, "--out", str(tmp_path / "bad")]) == 1
        assert fault in (error := capsys.readouterr().err.splitlines()[-1]), error
        assert not (tmp_path / "bad").exists()


def test_cameras_that_cannot_be_used(street, tmp_path, capsys):
    boxes = write(tmp_path, lines())
    for words, fault in {
        (): "name a video and its --boxes, or --camera N VIDEO BOXES",
        ("--camera", "x", "a.mp4"): "--camera x a.mp4: give its number, its video and its boxes",
        ("--camera", "1"): "--camera 1: give its number",
        ("--camera", "1", str(street), str(boxes), "--camera", "1", str(street), str(boxes)):
            "cameras [1, 1]: give each video a camera number of its own",
        ("--camera", "0", str(street), str(boxes)): "of its own, in 1..9999",
        ("--camera", "3000000000", str(street), str(boxes)): "cameras [3000000000]: give each",
        (str(street), "--boxes", str(boxes), "--least", "nan"): "--least: 'nan' is not a number",
        (str(street), "--camera", "2", str(street), str(boxes)): "name a video and its --boxes, or",
        (str(street), "--boxes", str(boxes), "--boxes-size", "9x9", "9x9"): "2 sizes for 1 cameras",
        ("--camera", "1", str(street), str(tmp_path / "no.txt")): "no text of boxes",
    }.items():  # fmt: skip
        try:
            assert main(["from-video", *words, "--out", str(tmp_path / "out")]) == 1
        except SystemExit as stop:
            assert stop.code == 2
        assert fault in capsys.readouterr().err.splitlines()[-1]
        assert not (tmp_path / "out").exists()


def test_what_was_stopped_goes_on(street, tmp_path, monkeypatch):
    """Ctrl-C in the middle leaves what was cut; the next run writes only the rest."""
    whole = write(tmp_path, lines())
    one(street, whole, tmp_path / "whole")
    real, written = video._write_crop, []

    def stop(crop, path):
        if len(written) == 30:
            raise KeyboardInterrupt
        written.append(path)
        real(crop, path)

    monkeypatch.setattr(video, "_write_crop", stop)
    with pytest.raises(KeyboardInterrupt):
        one(street, whole, tmp_path / "out")
    assert not (tmp_path / "out").exists() and len([*tmp_path.glob("out.part/*/*/*.jpg")]) == 30
    made, encode = [], cv2.imencode
    monkeypatch.setattr(video, "_write_crop", real)
    monkeypatch.setattr(video.cv2, "imencode", lambda *a: made.append(1) or encode(*a))
    one(street, whole, tmp_path / "out")
    assert len(made) == 22 and sorted(p.name for p in tmp_path.iterdir()) == [
        "boxes.txt", "out", "whole"]  # fmt: skip
    a, b = (sorted(p for p in (tmp_path / x).rglob("*") if p.is_file()) for x in ("whole", "out"))
    assert [p.read_bytes() for p in a] == [p.read_bytes() for p in b] and len(a) == 58


def test_what_was_stopped_is_begun_anew_with_other_boxes(street, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(video, "_write_set", stop)
        with pytest.raises(KeyboardInterrupt):
            one(street, write(tmp_path, lines()), tmp_path / "out")
    one(street, write(tmp_path, lines(walkers=(2,))), tmp_path / "out")
    test = read_mars(tmp_path / "out").test
    assert test.pids.tolist() == [2] and len([*tmp_path.glob("out/*/*/*.jpg")]) == 20


# --------------------------------------------------------------------------------------- linking


def boxes_of(*paths):
    """Frames and corners of boxes 10 wide, 20 high: for each path frame -> left."""
    rows = sorted((t, left) for path in paths for t, left in path.items())
    frames = np.array([t for t, _ in rows])
    return frames, np.array([(x, 0, x + 10, 20) for _, x in rows], float)


def test_overlap_is_that_of_counted_pixels():
    rng = np.random.default_rng(0)
    low = rng.integers(0, 12, (9, 2))
    boxes = np.concatenate([low, low + rng.integers(1, 9, (9, 2))], 1)
    masks = np.zeros((9, 24, 24), bool)
    for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
        mask[top:bottom, left:right] = True
    wanted = [[(a & b).sum() / (a | b).sum() for b in masks[4:]] for a in masks[:4]]
    np.testing.assert_allclose(overlap(boxes[:4], boxes[4:]), wanted)


def test_all_pairs_together_not_the_best_one_first():
    """The largest single overlap (6 with 4) would leave 0 without a successor."""
    frames, corners = boxes_of({1: 0, 2: 4}, {1: 6, 2: 10})
    assert overlap(corners[[1]], corners[[2]])[0, 0] > 0.6
    assert link(frames, corners).tolist() == [1, 2, 1, 2]


def test_a_gap_is_bridged_up_to_the_patience():
    frames, corners = boxes_of({t: t for t in (1, 2, 5, 6)})
    assert link(frames, corners, patience=2).tolist() == [1, 1, 1, 1]
    assert link(frames, corners, patience=1).tolist() == [1, 1, 2, 2]


def test_who_walks_is_expected_further_on():
    """Two people pass each other in one line; and one whose box is missing twice on the way."""
    frames, corners = boxes_of({t: 3 * t for t in range(12)}, {t: 33 - 3 * t for t in range(12)})
    found = link(frames, corners)
    right = np.where(np.isclose(corners[:, 0], 3 * frames), found[0], found[1])
    assert (found == right).all() and len(set(found)) == 2
    frames, corners = boxes_of({t: 4 * t for t in (0, 1, 2, 3, 6, 7)})
    assert link(frames, corners).tolist() == [1] * 6


def test_too_little_overlap_opens_a_new_track():
    frames, corners = boxes_of({1: 0, 2: 6})  # they share 4 of 16
    assert link(frames, corners, least=0.3).tolist() == [1, 2]
    assert link(frames, corners, least=0.2).tolist() == [1, 1]
    assert link(frames[:0], corners[:0]).tolist() == []


# -------------------------------------------------------------------------------------- refusals


def test_few_pictures_are_in_memory_at_a_time(street, tmp_path, monkeypatch):
    real, given, most = cv2.VideoCapture, [], []

    class Watched:
        def __init__(self, *arguments):
            self.capture = real(*arguments)

        def __getattr__(self, name):
            return getattr(self.capture, name)

        def read(self):
            good, picture = self.capture.read()
            given.extend([weakref.ref(picture)] if good else [])
            most.append(sum(one() is not None for one in given))
            return good, picture

    monkeypatch.setattr(video.cv2, "VideoCapture", Watched)
    one(street, write(tmp_path, lines()), tmp_path / "out")
    assert len(given) == FRAMES and max(most) <= 2


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("1,1,5,5", "not frame,id,left,top,width,height in numbers"),
        ("1,1,5,5,ten,20", "in numbers"),
        ("1,1,5,nan,10,20", "in numbers"),
        ("0,1,5,5,10,20", "counted from 1"),
        ("1.5,1,5,5,10,20", "counted from 1"),
        ("1,-2,5,5,10,20", "neither -1 (not known) nor a whole number"),
        ("1,2.5,5,5,10,20", "renumber"),
        ("2,1,5,6,10,20", "track 1 has two boxes in frame 2"),
        ("1,1,,60,41,121,1,1,1", "decimal point"),
        ("1,1,20,60,41,121,,1,1", "decimal point"),
        ("1 1 20,5 60,5 41 121", "decimal point"),
        ("1;1;20,5;60,5;41;121", "decimal point"),
        ("1,1,1_0,5,10,20", "decimal point"),
        ("1,1,1e300,5,10,20", "decimal point"),
        ("1,1,5,5,inf,20", "decimal point"),
        ("frame,id,left,top,width,height", "decimal point"),
        ("1e300,1,5,5,10,20", "counted from 1"),
    ],
)
def test_malformed_lines_are_named(tmp_path, line, fault):
    path = write(tmp_path, ["1,2,5,5,10,20", "2,1,5,5,10,20", line])
    with pytest.raises(MarsError) as info:
        read_boxes(path)
    text = str(info.value)
    assert f"{path}: line 3 is '{line}': " in text and fault in text and "\n" not in text


def refused(street, boxes, out, capsys, *more):
    """The error line of the command, which leaves no folder behind."""
    before = sorted(out.parent.iterdir())
    given = ["--boxes", str(boxes)] if boxes else []
    assert main(["from-video", str(street), *given, "--out", str(out), *more]) == 1
    assert sorted(out.parent.iterdir()) == before
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    return line


def test_videos_that_cannot_be_used(street, tmp_path, capsys):
    boxes, out = write(tmp_path, lines()), tmp_path / "out"
    assert "no such video" in refused(tmp_path / "none.mp4", boxes, out, capsys)
    for content in (b"", b"hello", bytes(5000)):
        (tmp_path / "bad.mp4").write_bytes(content)
        assert "not a video that OpenCV" in refused(tmp_path / "bad.mp4", boxes, out, capsys)
    size = (WIDTH, HEIGHT)
    cv2.VideoWriter(str(tmp_path / "no.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, size).release()
    error = refused(tmp_path / "no.avi", boxes, out, capsys)
    assert "without frames" in error or "not a video" in error


def damaged(street, tmp_path, header=8):
    """The video with its ninth picture overwritten by zeros, all or (header 0) with its header."""
    data = bytearray(street.read_bytes())
    starts = [m.start() for m in re.finditer(b"00dc", data) if m.start() > data.index(b"movi")]
    data[starts[8] + header : starts[9]] = bytes(starts[9] - starts[8] - header)
    (tmp_path / "damaged.avi").write_bytes(data)
    return tmp_path / "damaged.avi"


def test_one_damaged_picture_counts_and_is_skipped(street, tmp_path):
    made = one(damaged(street, tmp_path), write(tmp_path, lines()), tmp_path / "out")
    test = read_mars(tmp_path / "out").test
    assert test.lengths.tolist() == [19, 19, 11] and "3 on damaged pictures skipped" in made
    assert [colour_of(test.frames(i)) for i in range(3)] == [1, 2, 3]
    frames = [row["frame"] for row in table(tmp_path / "out")][:19]
    assert frames == [str(t) for t in range(1, 21) if t != 9]


def test_pictures_that_vanish_are_said(street, tmp_path):
    """Boxes of later frames are cut out of other pictures, and nobody can tell from which on."""
    boxes = write(tmp_path, lines(frames=range(1, 15)))
    made = one(damaged(street, tmp_path, header=0), boxes, tmp_path / "out")
    assert "1 of 20 pictures lost, nobody can tell which: boxes that" in made


def test_pictures_lost_at_the_end_are_said_to_be_there(street, tmp_path):
    data = street.read_bytes()
    (tmp_path / "cut.avi").write_bytes(data[: len(data) // 2])
    boxes = write(tmp_path, lines(frames=range(1, 4)))
    made = one(tmp_path / "cut.avi", boxes, tmp_path / "out")
    assert "of 20 pictures lost, the file is cut off at its end" in made
    assert read_mars(tmp_path / "out").test.lengths.tolist() == [3, 3, 3]


def test_boxes_of_the_own_detector_count_the_pictures_that_are_there(street, tmp_path, monkeypatch):
    monkeypatch.setattr(detect, "detector", finder)
    made = one(damaged(street, tmp_path, header=0), None, tmp_path / "out")
    assert "1 of 20 pictures lost, nobody can tell which, and seconds behind" in made
    test = read_mars(tmp_path / "out").test
    assert [colour_of(test.frames(i)) for i in range(len(test))] == [1, 2]


def test_gaps_in_the_times_of_an_mp4_are_said(street, tmp_path, monkeypatch):
    """A container that counts 20 pictures gives 19, and jumps behind the eighth."""
    real = cv2.VideoCapture

    class Jumps:
        def __init__(self, *arguments):
            self.capture, self.count = real(*arguments), 0

        def __getattr__(self, name):
            return getattr(self.capture, name)

        def read(self):
            self.count += 1
            return self.capture.read() if self.count != 9 else (self.capture.read(), self.read())[1]

    monkeypatch.setattr(video.cv2, "VideoCapture", Jumps)
    with pytest.raises(MarsError, match="damaged, behind picture 8 pictures are lost: cut it"):
        one(street, write(tmp_path, lines(frames=range(1, 15))), tmp_path / "out")


def test_a_video_of_one_picture(street, tmp_path, capsys):
    size = (WIDTH, HEIGHT)
    writer = cv2.VideoWriter(str(tmp_path / "one.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, size)
    writer.write(next(pictures()))
    writer.release()
    made = one(tmp_path / "one.avi", write(tmp_path, lines(frames=(1,))), tmp_path / "out")
    assert (
        made.startswith("3 tracks of 3 boxes") and table(tmp_path / "out")[0]["second"] == "0.000"
    )
    error = refused(tmp_path / "one.avi", write(tmp_path, lines()), tmp_path / "no", capsys)
    assert "boxes for frame 20, but" in error and "has 1 frames" in error


def test_a_video_that_is_cut_off(street, tmp_path, capsys):
    data = street.read_bytes()
    (tmp_path / "cut.avi").write_bytes(data[: len(data) // 2])
    error = refused(tmp_path / "cut.avi", write(tmp_path, lines()), tmp_path / "out", capsys)
    assert "boxes for frame 20, but" in error and "frames that can be read of 20: convert" in error


def test_names_that_are_no_utf8_or_have_a_colon(street, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    boxes = write(tmp_path, lines())
    shutil.copy(street, "2024-01-01T12:30:00.avi")
    one("2024-01-01T12:30:00.avi", boxes, tmp_path / "out")
    shutil.copy(street, "Straße\u202f8 名.avi")
    one("Straße\u202f8 名.avi", boxes, tmp_path / "out2")
    name = os.fsdecode(b"caf\xe9.avi")
    shutil.copy(street, name)
    assert "no UTF-8: rename" in refused(name, boxes, tmp_path / "out3", capsys)


def test_a_folder_of_pictures_is_a_video(street, tmp_path, capsys):
    """MOTChallenge's own form: img1/000001.jpg beside seqinfo.ini."""
    folder = tmp_path / "sequence" / "img1"
    folder.mkdir(parents=True)
    for t, picture in enumerate(pictures(), 1):
        cv2.imwrite(str(folder / f"{t:06d}.png"), picture)
    for litter in ("._000001.png", "Thumbs.db"):
        (folder / litter).write_bytes(b"litter")
    boxes = write(tmp_path, lines())
    one(folder, boxes, tmp_path / "out")
    test = read_mars(tmp_path / "out").test
    assert test.lengths.tolist() == [20, 20, 12]
    assert [colour_of(test.frames(i)) for i in range(3)] == [1, 2, 3]
    assert {row["second"] for row in table(tmp_path / "out")} == {""}
    (folder.parent / "seqinfo.ini").write_text("[Sequence]\nframeRate=20\nseqLength=20\n")
    (folder / "000005.png").write_bytes(b"")
    assert "3 on damaged pictures" in one(folder, boxes, tmp_path / "again")
    assert table(tmp_path / "again")[18]["second"] == "0.950"
    (folder / "5.jpg").write_bytes(b"")
    error = refused(folder, boxes, tmp_path / "no", capsys)
    assert "the same frame as 000005.png: take one of them away" in error
    (folder / "5.jpg").rename(folder / "readme.jpg")
    assert "ends in no frame number" in refused(folder, boxes, tmp_path / "no", capsys)
    assert "a folder without pictures" in refused(
        tmp_path / "again", boxes, tmp_path / "no", capsys
    )


def test_a_bad_video_is_one_line_of_the_whole_process(tmp_path):
    """The libraries below have their own say on broken files; nothing of it is seen."""
    (tmp_path / "bad.mp4").write_bytes(b"hello" * 999)
    command = [sys.executable, "-m", "vreid_course.data", "from-video", str(tmp_path / "bad.mp4")]
    command += ["--boxes", str(write(tmp_path, lines())), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and "not a video that OpenCV" in done.stderr


def test_boxes_that_cannot_be_used(street, tmp_path, capsys):
    out = tmp_path / "out"
    assert "no text of boxes" in refused(street, tmp_path / "none.txt", out, capsys)
    assert "holds no boxes" in refused(street, write(tmp_path, [""]), out, capsys)
    assert "line 1 is 'x'" in refused(street, write(tmp_path, ["x"]), out, capsys)
    words = write(tmp_path, ["1,person_1,5,5,20,40"])
    assert "line 1 is '1,person_1" in refused(street, words, out, capsys)
    words.write_bytes("größe\n1,1,5,5,20,40".encode("latin-1"))
    assert "no text in UTF-8 (byte 2 is none): save it as" in refused(street, words, out, capsys)
    words.write_bytes("\n".join(lines()).encode("utf-16-le"))  # without its mark
    assert "line 1 is '1" in refused(street, words, out, capsys)
    assert "no text of boxes" in refused(street, tmp_path, out, capsys)
    late = write(tmp_path, [*lines(), "21,1,5,5,20,40"])
    error = refused(street, late, out, capsys)
    assert "boxes for frame 21, but" in error and "has 20 frames" in error
    far = write(tmp_path, ["1,1,500,5,20,40", "2,1,-90,5,20,40"])
    assert "of 2 boxes 2 are wholly outside" in refused(street, far, out, capsys)
    error = refused(street, write(tmp_path, lines()), out, capsys, "--shortest", "99")
    assert "no track has 99" in error


def test_a_folder_that_exists_is_left_alone(street, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    assert "is there already" in refused(street, write(tmp_path, lines()), tmp_path / "out", capsys)
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"


def test_the_command(street, tmp_path, capsys):
    command = ["from-video", str(street), "--boxes", str(write(tmp_path, lines(scale=2)))]
    command += ["--boxes-size", f"{2 * WIDTH}x{2 * HEIGHT}", "--out", str(tmp_path / "out")]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "3 tracks of 52 boxes; 2 clipped at the border, 8 wholly outside" in said
    assert f"VREID_DATA={tmp_path}/out makes" in said
    assert len(read_mars(tmp_path / "out").test) == 3
    for more in (["--boxes-size", "large"], ["--shortest", "-3"], ["--shortest", "0"]):
        with pytest.raises(SystemExit):
            main([*command, *more])
        error = capsys.readouterr().err
        assert len(error.splitlines()) == 1 and more[0] in error and "--help" in error


# -------------------------------------------------------------------------------- without boxes


@pytest.fixture(scope="module")
def untrained():
    """The real network with weights drawn at random, on small pictures: its boxes mean nothing."""
    torch.manual_seed(0)
    make = getattr(detect.detection, detect.NAME)
    small = {"min_size": 96, "max_size": 160, "box_score_thresh": 0.0}
    small |= {"box_detections_per_img": 10**4, "rpn_post_nms_top_n_test": 20}
    return make(weights=None, weights_backbone=None, **small)


def test_the_network_finds_boxes(street, tmp_path, untrained):
    path = detect.detect(Video(street), tmp_path / "boxes.txt", 0.0, untrained)
    boxes = read_boxes(path)
    assert set(boxes.ids) == {-1} and 1 <= boxes.frames.min() and boxes.frames.max() <= FRAMES
    assert (boxes.corners[:, :2] >= 0).all() and (boxes.corners[:, 2:] <= [160.01, 96.01]).all()
    with pytest.raises(MarsError, match="no person of confidence 0.99 in 20 pictures: lower"):
        detect.detect(Video(street), tmp_path / "none.txt", 0.99, untrained)


def finder(seen=None, stop_at=None):
    """A detector that finds walkers 1 and 2 by their colours, as class 1, and walker 3 as a dog."""

    class Finder(torch.nn.Module):
        count = 0

        def forward(self, pictures):
            (picture,) = pictures
            type(self).count += 1
            if self.count == stop_at:
                raise KeyboardInterrupt
            boxes = []
            for colour in COLOURS.values():
                near = (picture * 255 - torch.tensor(colour)[:, None, None]).abs().amax(0) < 60
                ys, xs = torch.nonzero(near, as_tuple=True)
                ends = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) if len(xs) else (0, 0, 1, 1)
                boxes.append([float(x) for x in ends])
            scores = torch.tensor([0.9, 0.6, 0.9])
            return [{"boxes": torch.tensor(boxes), "labels": torch.tensor([1, 1, 18]),
                     "scores": scores}]  # fmt: skip

    return Finder()


def test_a_video_without_boxes(street, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(detect, "detector", finder)
    assert main(["from-video", str(street), "--out", str(tmp_path / "out")]) == 0
    test = read_mars(tmp_path / "out").test
    assert [colour_of(test.frames(i)) for i in range(len(test))] == [1, 2]
    assert test.lengths.tolist() == [20, 20]
    assert len(read_boxes(tmp_path / "out" / "boxes_camera1.txt").frames) == 40
    assert main(["from-video", str(street), "--least", "0.7", "--out", str(tmp_path / "few")]) == 0
    assert len(read_mars(tmp_path / "few").test) == 1


def test_the_detector_computes_where_the_course_does(street, tmp_path, monkeypatch):
    monkeypatch.setattr(detect.devices, "device", lambda: torch.device("meta"))
    seen = []

    class Looks(torch.nn.Module):
        def forward(self, pictures):
            seen.append(pictures[0].device.type)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        detect.detect(Video(street), tmp_path / "boxes.txt", 0.5, Looks())
    assert seen == ["meta"]


def test_detection_goes_on_where_it_stopped(street, tmp_path, monkeypatch):
    monkeypatch.setattr(detect, "detector", lambda: finder(stop_at=12))
    with pytest.raises(KeyboardInterrupt):
        one(street, None, tmp_path / "out")
    part = tmp_path / "out.part" / "boxes_camera1.txt"
    part.write_text(part.read_text() + "12,-1,5.0,")  # as a killed process leaves it
    again = finder()
    monkeypatch.setattr(detect, "detector", lambda: again)
    one(street, None, tmp_path / "out")
    assert again.count == 9 and read_mars(tmp_path / "out").test.lengths.tolist() == [20, 20]


def test_a_detector_without_weights_is_one_line(
    street, tmp_path, tmp_path_factory, monkeypatch, capsys
):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path_factory.mktemp("hub")))
    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    monkeypatch.delenv("VREID_WEIGHTS", raising=False)
    error = refused(street, None, tmp_path / "out", capsys)
    assert "download: no weights for the person detector" in error and "VREID_WEIGHTS" in error
    assert "--boxes" in error
    monkeypatch.setenv("VREID_WEIGHTS", str(tmp_path / "none.pth"))
    assert "none.pth: no weights" in refused(street, None, tmp_path / "out", capsys)
    (tmp_path / f"{detect.NAME}.pth").write_bytes(b"no weights")
    monkeypatch.setenv("VREID_WEIGHTS", str(tmp_path))
    assert f"{detect.NAME}.pth: no weights" in refused(street, None, tmp_path / "out", capsys)


def offline(*_, **__):
    raise OSError("Network is unreachable")


def test_weights_from_disk(tmp_path, monkeypatch):
    model = getattr(detect.detection, detect.NAME)(weights=None, weights_backbone=None)
    torch.save(model.state_dict(), tmp_path / f"{detect.NAME}.pth")
    monkeypatch.setenv("VREID_WEIGHTS", str(tmp_path))
    found = detect.detector().state_dict()
    assert all((found[name] == x).all() for name, x in model.state_dict().items())
