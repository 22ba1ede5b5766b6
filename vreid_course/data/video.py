"""A video and the boxes of the people in it become a set in MARS layout, to be searched.

Boxes are in MOTChallenge's text format, one a line: frame (from 1), track id (-1: not known), left,
top, width, height in pixels; what follows is not read. Boxes without id are linked by overlap.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from scipy.optimize import linear_sum_assignment
from tqdm import tqdm

from . import mars
from .mars import MarsError
from .tools import building

os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # our errors say it all, in one line
SIZE = (256, 128)  # rows and columns of a frame of MARS
TINY = 1e-6  # pixels: what scaling may add to a box that ends at the border
MOST = 9999  # the largest number of a track that a name in MARS layout can hold


@dataclass(frozen=True)
class Made:
    """What `from_video` counted: kept and cut boxes, boxes that show nothing, tracks too short."""

    tracks: int
    boxes: int
    clipped: int
    outside: int
    short: int

    def __str__(self) -> str:
        return (
            f"{self.tracks} tracks of {self.boxes} boxes; {self.clipped} boxes clipped at the"
            f" border, {self.outside} wholly outside skipped; {self.short} tracks too short"
        )


def from_video(
    video: str | Path,
    boxes: str | Path,
    out: str | Path,
    boxes_size: tuple[int, int] | None = None,
    shortest: int = 1,
) -> Made:
    """Cut the tracks of a video into a set in MARS layout: test part only, camera 1, all queries.

    boxes_size: (width, height) of the picture that the boxes were made for, by default the video's.
    shortest: tracks with fewer boxes are left out. One picture of the video is in memory at a time.
    MarsError, in one line, for a video or a line of boxes that cannot be used, or if `out` exists.
    """
    frames, ids, corners = read_boxes(boxes)
    with building(out) as new:
        reader = Video(video)
        corners = corners * np.tile(np.divide(reader.size, boxes_size or reader.size), 2)
        pixels = to_pixels(corners, reader.size)
        inside = (pixels[:, 2:] > pixels[:, :2]).all(1)
        clipped = (corners[:, :2] < -TINY).any(1) | (
            corners[:, 2:] > np.add(reader.size, TINY)
        ).any(1)
        loose = inside & (ids == -1)
        ids[loose] = link(frames[loose], corners[loose]) + max(ids.max(), 0)
        tracks, counts = np.unique(ids[inside], return_counts=True)
        kept = inside & np.isin(ids, tracks[counts >= shortest])
        if not kept.any():
            fault = f"of {len(ids)} boxes {(~inside).sum()} are wholly outside the picture"
            raise MarsError(f"{boxes}: {fault}, and no track has {shortest} of the others")
        _cut(reader, boxes, frames[kept], ids[kept], pixels[kept], new)
    found = (counts >= shortest).sum(), kept.sum(), clipped[kept].sum(), (~inside).sum()
    return Made(*map(int, (*found, (counts < shortest).sum())))


def read_boxes(path: str | Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read a MOTChallenge file, in the order of its frames.

    Returns frames (N,) int64 from 1, ids (N,) int64, -1 or 1..9999, and corners (N, 4) float64:
    left, top, right, bottom. MarsError names the first line that is wrong.
    """
    rows, seen = [], set()
    try:
        lines = Path(path).expanduser().read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise MarsError(f"{path}: no text of boxes ({error}): name a MOTChallenge file") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        row, fault = _row(line)
        if not fault and row[1] != -1 and tuple(row[:2]) in seen:
            fault = f"track {row[1]:.0f} has two boxes in frame {row[0]:.0f}"
        if fault:
            raise MarsError(f"{path}: line {number} is {line[:60]!r}: {fault}")
        seen.add(tuple(row[:2]))
        rows.append(row)
    if not rows:
        raise MarsError(f"{path}: holds no boxes: one a line, as frame,id,left,top,width,height")
    rows = np.array(sorted(rows, key=lambda row: row[0]))
    corners = np.concatenate([rows[:, 2:4], rows[:, 2:4] + rows[:, 4:6]], 1)
    return rows[:, 0].astype(np.int64), rows[:, 1].astype(np.int64), corners


def _row(line: str) -> tuple[list[float], str]:
    """The six numbers of a line, and what is wrong with them."""
    try:
        row = [float(word) for word in line.replace(",", " ").split()[:6]]
    except ValueError:
        row = []
    if len(row) < 6 or not np.isfinite(row).all():
        return row, "not frame,id,left,top,width,height in numbers"
    if row[0] < 1 or row[0] % 1:
        return row, "frames are counted from 1"
    if row[1] % 1 or not (row[1] == -1 or 1 <= row[1] <= MOST):
        return row, f"the track id is neither -1 nor in 1..{MOST}: renumber"
    return row, "" if min(row[4:]) > 0 else "width and height must be above 0"


def to_pixels(corners: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Clip corners (N, 4) to a picture (width, height): int64, right and bottom excluded.

    A box wholly outside comes back without pixels: right <= left or bottom <= top.
    """
    low = np.maximum(np.floor(corners[:, :2] + TINY), 0)
    high = np.minimum(np.ceil(corners[:, 2:] - TINY), size)
    return np.concatenate([low, high], 1).astype(np.int64)


def overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes (N, 4) and (M, 4), as corners: (N, M) in 0..1."""
    low, high = np.maximum(a[:, None, :2], b[:, :2]), np.minimum(a[:, None, 2:], b[:, 2:])
    shared = np.clip(high - low, 0, None).prod(-1)
    area = [(x[:, 2:] - x[:, :2]).prod(1) for x in (a, b)]
    return shared / (area[0][:, None] + area[1] - shared)


def link(
    frames: np.ndarray, corners: np.ndarray, least: float = 0.3, patience: int = 5
) -> np.ndarray:
    """Join boxes of successive frames to tracks: numbers (N,) int64 from 1.

    frames (N,) in order; corners (N, 4). A track is expected where its last box would be if it went
    on as it did. In every frame the boxes and the tracks are paired so that the sum of their
    overlaps is largest; pairs below `least` do not count. A track without a box for more than
    `patience` frames is closed, a box without a track opens one.
    """
    ids, speed, last, count = np.zeros(len(frames), np.int64), np.zeros((len(frames), 4)), {}, 0
    starts = np.flatnonzero(np.diff(frames, prepend=-1))
    for rows in np.split(np.arange(len(frames)), starts)[1:]:
        last = {t: i for t, i in last.items() if frames[rows[0]] - frames[i] <= patience + 1}
        tracks, before = list(last), np.array(list(last.values()), np.int64)
        gaps = frames[rows[0]] - frames[before]
        score = overlap(corners[before] + gaps[:, None] * speed[before], corners[rows])
        score[score < least] = 0
        for a, b in zip(*linear_sum_assignment(score, maximize=True), strict=True):
            if score[a, b]:
                ids[rows[b]] = tracks[a]
                moved = _shift(corners[before[a]], corners[rows[b]]) / gaps[a]
                speed[rows[b]] = (speed[before[a]] + moved) / 2
        for row in rows:
            if not ids[row]:
                ids[row] = count = count + 1
            last[ids[row]] = row  # a track's last box
    return ids


def _shift(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """How far the middle of a box moved: (dx, dy, dx, dy), to be added to its corners."""
    return np.tile((new - old).reshape(2, 2).mean(0), 2)


class Video:
    """The pictures of a video file, one after the other; `size` is (width, height)."""

    def __init__(self, path: str | Path) -> None:
        self.path, self.count = Path(path).expanduser(), 0
        if not self.path.is_file():
            raise MarsError(f"{path}: no such video")
        level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
        self.capture = cv2.VideoCapture(str(self.path), cv2.CAP_FFMPEG)
        cv2.utils.logging.setLogLevel(level)
        if not self.capture.isOpened():
            raise MarsError(f"{path}: not a video that OpenCV can read: convert it to MP4 (H.264)")
        sides = cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT
        self.size = tuple(int(self.capture.get(side)) for side in sides)

    def __iter__(self) -> Iterator[np.ndarray]:
        """uint8 (H, W, 3), in OpenCV's order of colours: blue, green, red."""
        good, picture = self.capture.read()
        while good:
            self.count += 1
            yield picture
            good, picture = self.capture.read()
        self.capture.release()
        if not self.count:
            raise MarsError(f"{self.path}: a video without frames: record or convert it again")


def _cut(reader: Video, boxes, frames, ids, pixels, new: Path) -> None:
    """Write the frames of all tracks, and the index, in the order of ids and frames."""
    names = {
        int(i): iter(mars.frame_names(int(i), 1, 1, n))
        for i, n in zip(*np.unique(ids, return_counts=True), strict=True)
    }
    written: dict[int, list[str]] = {i: [] for i in names}
    for number, picture in enumerate(tqdm(reader, "video", unit="frame", delay=1), 1):
        first, last = np.searchsorted(frames, (number, number + 1))
        for i, (left, top, right, bottom) in zip(ids[first:last], pixels[first:last], strict=True):
            how = cv2.INTER_AREA if bottom - top > SIZE[0] else cv2.INTER_LINEAR
            crop = cv2.resize(picture[top:bottom, left:right], SIZE[::-1], interpolation=how)
            written[int(i)].append(name := next(names[int(i)]))
            path = new / "bbox_test" / name[:4] / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(cv2.imencode(".jpg", crop, [cv2.IMWRITE_JPEG_QUALITY, 95])[1])
    if frames[-1] > reader.count:
        fault = f"has boxes for frame {frames[-1]}, but {reader.path} has {reader.count} frames"
        raise MarsError(f"{boxes}: {fault}: name the boxes of this video")
    (new / "bbox_train").mkdir()
    mars.write_info(new, [], list(written.values()), query=np.arange(len(written)))
