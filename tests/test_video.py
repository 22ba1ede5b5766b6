"""A video and its boxes: reading, linking, cutting, what is counted, and what is refused."""

import subprocess
import sys
import weakref

import cv2
import numpy as np
import pytest

from vreid_course.data import tools, video
from vreid_course.data.__main__ import main
from vreid_course.data.mars import MarsError, read_mars
from vreid_course.data.video import from_video, link, overlap, read_boxes, to_pixels

COLOURS = {1: (200, 30, 30), 2: (30, 200, 30), 3: (30, 30, 200)}  # of three walkers, RGB
FRAMES, WIDTH, HEIGHT = 20, 160, 96


def place(walker, t):
    """Left, top, width, height in frame t (from 1); 1 and 2 pass each other, 3 leaves the scene."""
    left = {1: 4 + 6 * t, 2: 130 - 6 * t, 3: 60 + 8 * t}[walker]
    return left, {1: 8, 2: 44, 3: 24}[walker], 20, 40


@pytest.fixture(scope="module")
def street(tmp_path_factory):
    """A video of three walkers; motion JPEG, which every OpenCV writes."""
    path = tmp_path_factory.mktemp("street") / "street.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (WIDTH, HEIGHT))
    for t in range(1, FRAMES + 1):
        picture = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
        for walker, colour in COLOURS.items():
            left, top, width, height = place(walker, t)
            picture[top : top + height, max(left, 0) : left + width] = colour[::-1]
        writer.write(picture)
    writer.release()
    return path


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
    made = from_video(street, write(tmp_path, rows), tmp_path / "out")
    mars = read_mars(tmp_path / "out")
    assert len(mars.train) == 0 and mars.test.pids.tolist() == [1, 2, 777]
    assert set(mars.test.camids) == {1} and mars.query.tolist() == [0, 1, 2]
    assert mars.test.key(2) == "0777C1T0001"
    # walker 3 is clipped once it passes column 160, and outside from column 160 on
    lefts = np.array([place(3, t)[0] for t in range(1, FRAMES + 1)])
    assert mars.test.lengths.tolist() == [20, 20, (lefts < WIDTH).sum()]
    assert made.outside == (lefts >= WIDTH).sum() == 8
    assert made.clipped == ((lefts < WIDTH) & (lefts + 20 > WIDTH)).sum() == 2
    assert (made.tracks, made.boxes, made.short) == (3, 52, 0)
    assert mars.test.frames(0).shape == (20, 256, 128, 3)
    assert [colour_of(mars.test.frames(i)) for i in range(3)] == [1, 2, 3]
    assert tools.check(tmp_path / "out", frames=True) == []


def test_a_crop_is_the_box_and_nothing_else(street, tmp_path):
    from_video(street, write(tmp_path, lines(walkers=(1,), frames=(3, 4))), tmp_path / "out")
    frames = read_mars(tmp_path / "out").test.frames(0).astype(int)
    assert np.abs(frames[:, 8:-8, 8:-8] - COLOURS[1]).mean() < 12  # JPEG, twice


def test_boxes_of_another_picture_size_are_scaled(street, tmp_path):
    """The same boxes, given for a picture 1.6 times as wide and twice as high."""
    rows = []
    for t in range(1, FRAMES + 1):
        left, top, width, height = place(3, t)
        rows.append(f"{t},3,{1.6 * left},{2 * top},{1.6 * width},{2 * height}")
    made = from_video(street, write(tmp_path, rows), tmp_path / "a", (256, 192))
    plain = from_video(street, write(tmp_path, lines(walkers=(3,))), tmp_path / "b")
    assert made == plain
    one, two = (read_mars(tmp_path / name).test for name in "ab")
    assert (one.frames(0) == two.frames(0)).all()


def test_a_box_on_the_border_is_not_clipped_by_scaling():
    corners = np.array([[0, 0, 767.0, 576], [700, 500, 768, 576]])
    scaled = corners * np.tile(np.divide((480, 361), (768, 576)), 2)
    assert to_pixels(scaled, (480, 361))[:, 2:].tolist() == [[480, 361], [480, 361]]
    assert to_pixels(np.array([[-9, 5, 0, 9.0], [480, 5, 490, 9]]), (480, 361)).tolist() == [
        [0, 5, 0, 9],
        [480, 5, 480, 9],
    ]


def test_boxes_without_ids_are_linked(street, tmp_path):
    made = from_video(street, write(tmp_path, lines(ids=False)), tmp_path / "out")
    test = read_mars(tmp_path / "out").test
    assert made.tracks == 3 and sorted(test.lengths) == [12, 20, 20]
    assert sorted(colour_of(test.frames(i)) for i in range(3)) == [1, 2, 3]


def test_known_ids_and_linked_ones_do_not_meet(street, tmp_path):
    rows = [*lines(walkers=(1,)), *lines(ids=False, walkers=(2,))]
    from_video(street, write(tmp_path, [r.replace(",1,", ",40,", 1) for r in rows]), tmp_path / "o")
    test = read_mars(tmp_path / "o").test
    assert test.pids.tolist() == [40, 41] and test.lengths.tolist() == [20, 20]


def test_lines_in_any_order_and_with_spaces(street, tmp_path):
    rows = list(lines())
    one = from_video(street, write(tmp_path, rows), tmp_path / "a")
    mixed = ["", *(rows[i].replace(",", " ") for i in np.random.default_rng(0).permutation(60))]
    two = from_video(street, write(tmp_path, mixed), tmp_path / "b")
    assert one == two
    a, b = (read_mars(tmp_path / name).test for name in "ab")
    assert all((a.frames(i) == b.frames(i)).all() for i in range(3))


def test_short_tracks_are_left_out_and_counted(street, tmp_path):
    made = from_video(street, write(tmp_path, lines()), tmp_path / "out", shortest=13)
    assert (made.tracks, made.short) == (2, 1) and "1 tracks too short" in str(made)


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
    from_video(street, write(tmp_path, lines()), tmp_path / "out")
    assert len(given) == FRAMES and max(most) <= 2


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("1,1,5,5", "not frame,id,left,top,width,height in numbers"),
        ("1,1,5,5,ten,20", "in numbers"),
        ("1,1,5,nan,10,20", "in numbers"),
        ("0,1,5,5,10,20", "counted from 1"),
        ("1.5,1,5,5,10,20", "counted from 1"),
        ("1,0,5,5,10,20", "neither -1 nor in 1..9999"),
        ("1,10000,5,5,10,20", "renumber"),
        ("1,1,5,5,0,20", "above 0"),
        ("2,1,5,5,10,20", "track 1 has two boxes in frame 2"),
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
    assert main(["from-video", str(street), "--boxes", str(boxes), "--out", str(out), *more]) == 1
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
    assert "3 tracks of 52 boxes; 2 boxes clipped at the border, 8 wholly outside" in said
    assert len(read_mars(tmp_path / "out").test) == 3
    with pytest.raises(SystemExit):
        main([*command, "--boxes-size", "large"])
