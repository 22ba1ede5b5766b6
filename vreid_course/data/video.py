"""Videos of one or more cameras, and boxes, become one set in MARS layout, to be searched.

Nobody knows who is who: every track is an identity of its own, and a query, until a table of
identities says which tracks are one person. `frames.csv` beside the set tells of each picture where
it comes from: camera, video, track, frame, second, box.
"""

import csv
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from . import mars
from .boxes import TINY, Boxes, link, read_boxes, to_pixels
from .mars import MarsError, read_text
from .tools import building, pictures_in

os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # our errors say it all, in one line
SIZE = (256, 128)  # rows and columns of a frame of MARS
MOST = 9999  # the largest identity that a name in MARS layout can hold


@dataclass(frozen=True)
class Shot:
    """What a camera saw: its number (from 1), its video and its boxes.

    boxes: a MOTChallenge file, or None: a person detector finds them. boxes_size: (width, height)
    of the picture that they were made for, by default the video's.
    """

    camera: int
    video: Path
    boxes: Path | None = None
    boxes_size: tuple[int, int] | None = None


@dataclass(eq=False)
class Tracks:
    """The boxes of a shot that show something: N rows of pixels, each with its track.

    tracks (N,) int64, numbered within the camera; pixels (N, 4) int64; corners as in `Boxes`, for
    the video's own size. fate: how many boxes became of what.
    """

    shot: Shot
    frames: np.ndarray
    tracks: np.ndarray
    corners: np.ndarray
    pixels: np.ndarray
    fate: dict[str, int]


def from_video(
    shots: Sequence[Shot],
    out: str | Path,
    shortest: int = 1,
    least: float | None = None,
    identities: str | Path | None = None,
) -> str:
    """Cut the tracks of one or more videos into a set in MARS layout: test part, all are queries.

    shortest: tracks with fewer boxes are left out. least: so are boxes of a smaller confidence.
    identities: a table camera,track,person with a header; its people are numbered as there, the
    other tracks otherwise. One picture of a video is in memory at a time; what was stopped goes on
    when called again. Returns a line that tells what became of the boxes. MarsError, in one line,
    for anything that cannot be used, or if `out` exists.
    """
    shots = [replace(s, video=Path(s.video).expanduser()) for s in shots]
    numbers = [shot.camera for shot in shots]
    if len(set(numbers)) < len(numbers) or not all(1 <= n <= MOST for n in numbers):
        fault = f"give each video a camera number of its own, in 1..{MOST}"
        raise MarsError(f"cameras {numbers}: {fault}")
    people = read_identities(identities) if identities else {}
    inputs = [p for s in shots for p in (s.video, s.boxes) if p] + [identities] * bool(identities)
    key = repr((shots, shortest, least, [_version(path) for path in inputs]))
    for shot in shots:  # before anything is detected, which can take hours
        Video(shot.video)
        if shot.boxes:
            read_boxes(shot.boxes, least)
    with building(out, key) as new:
        found = [find_tracks(shot, new, shortest, least) for shot in shots]
        pids = number_tracks(found, people)
        names = _names(found, pids)
        rows = [row for one in found for row in _cut(one, names, new)]
        _write_set(new, rows)
    return _summary(found)


def _version(path: str | Path) -> tuple:
    """Which file it is, so that a run that goes on notices that it is another."""
    path = Path(path).expanduser().resolve()
    return (str(path), path.stat().st_size, path.stat().st_mtime_ns) if path.exists() else (path,)


def find_tracks(shot: Shot, folder: Path, shortest: int, least: float | None) -> Tracks:
    """The tracks of a shot: boxes are read (or detected, kept in `folder`), clipped and linked."""
    reader, path = Video(shot.video), shot.boxes
    if path is None:
        from .detect import detect  # PyTorch: only where there are no boxes

        path = detect(reader, folder / f"boxes_camera{shot.camera}.txt", least or 0.5)
    boxes = read_boxes(path, least if shot.boxes else None)
    scale = np.divide(reader.size, shot.boxes_size or reader.size)
    corners = boxes.corners * np.tile(scale, 2)
    pixels = to_pixels(corners, reader.size)
    inside = (pixels[:, 2:] > pixels[:, :2]).all(1)
    over = (corners[:, :2] < -TINY) | (corners[:, 2:] > np.add(reader.size, TINY))
    tracks = _linked(boxes, corners, inside)
    _, where, counts = np.unique(tracks[inside], return_inverse=True, return_counts=True)
    kept = np.zeros(len(tracks), bool)
    kept[inside] = counts[where] >= shortest
    if not kept.any():
        fault = f"of {len(tracks)} boxes {(~inside).sum()} are wholly outside the picture"
        raise MarsError(f"{path}: {fault}, and no track has {shortest} of the others")
    fate = {"tracks": (counts >= shortest).sum(), "boxes": kept.sum()}
    fate |= {"clipped at the border": over.any(1)[kept].sum()}
    fate |= {
        "wholly outside skipped": (~inside).sum(),
        "tracks too short": (counts < shortest).sum(),
    }
    fate = {name: int(count) for name, count in fate.items()} | boxes.left_out
    return Tracks(shot, boxes.frames[kept], tracks[kept], corners[kept], pixels[kept], fate)


def _linked(boxes: Boxes, corners: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """The track of each box: its id, or the number of the chain that it was linked to."""
    tracks, loose = boxes.ids.copy(), inside & (boxes.ids == -1)
    tracks[loose] = link(boxes.frames[loose], corners[loose]) + max(tracks.max(), 0)
    return tracks


def read_identities(path: str | Path) -> dict[tuple[int, int], int]:
    """Who is who: {(camera, track): person}, from a table with these three columns and a header.

    A track is numbered as in the boxes or, where they are linked, as in frames.csv of a set made
    before. MarsError names the line that is wrong.
    """
    try:
        lines = read_text(path).splitlines()
    except OSError as error:
        raise MarsError(f"{path}: no table of identities ({error}): name a CSV file") from None
    blank = next((n for n, line in enumerate(lines) if line.strip()), 0)  # lines before the header
    table, found = csv.DictReader(lines[blank:], skipinitialspace=True), {}
    if missing := [c for c in ("camera", "track", "person") if c not in (table.fieldnames or ())]:
        fault = f"has no column {missing[0]!r}: begin it with the line camera,track,person"
        raise MarsError(f"{path}: {fault}")
    for row in table:
        words = [(row[column] or "").strip() for column in ("camera", "track", "person")]
        numbers = [int(w) if w.isdecimal() else -1 for w in words]
        if min(numbers) < 0 or not 1 <= numbers[2] <= MOST:
            fault = f"is {','.join(words)!r}: give camera, track and person in 1..{MOST}"
            raise MarsError(f"{path}: line {blank + table.line_num} {fault}")
        camera, track, person = numbers
        if found.setdefault((camera, track), person) != person:
            raise MarsError(f"{path}: track {track} of camera {camera} has two persons: correct it")
    return found


def number_tracks(
    found: Sequence[Tracks], people: dict[tuple[int, int], int]
) -> dict[tuple[int, int], int]:
    """The identity of each (camera, track): the table's, else the track's own number if it is free.

    The others get the free numbers, from 1 on. MarsError if there are more than names can hold.
    """
    keys = [(one.shot.camera, int(t)) for one in found for t in np.unique(one.tracks)]
    if lost := sorted(set(people) - set(keys)):
        fault = f"camera {lost[0][0]} has no track {lost[0][1]}"
        raise MarsError(f"the table of identities: {fault}: take the numbers of frames.csv")
    pids = {key: people[key] for key in keys if key in people}
    taken = set(pids.values())
    for key in keys:
        if key not in pids and 1 <= key[1] <= MOST and key[1] not in taken:
            taken.add(pids.setdefault(key, key[1]))
    free = iter(n for n in range(1, MOST + 1) if n not in taken)
    left = [key for key in keys if key not in pids]
    pids |= dict(zip(left, free, strict=False))
    if len(pids) < len(keys):
        files = ", ".join(str(one.shot.boxes or one.shot.video) for one in found)
        fault = f"{len(keys)} tracks, but names in MARS layout count {MOST} identities"
        raise MarsError(f"{files}: {fault}: leave out short tracks with --shortest")
    return pids


def _names(found: Sequence[Tracks], pids: dict) -> dict[tuple[int, int], Iterator[str]]:
    """The names of the pictures of each (camera, track); tracklets of a person are counted."""
    names, count = {}, {}
    for one in found:
        for track, length in zip(*np.unique(one.tracks, return_counts=True), strict=True):
            pid = pids[one.shot.camera, int(track)]
            count[pid] = count.get(pid, 0) + 1
            listed = mars.frame_names(pid, one.shot.camera, count[pid], int(length))
            names[one.shot.camera, int(track)] = iter(listed)
    return names


class Video:
    """The pictures of a video file or of a folder (MOTChallenge's img1), one after the other.

    size is (width, height). A picture that cannot be decoded counts, and comes as None.
    """

    def __init__(self, path: str | Path) -> None:
        self.path, self.count, self.damaged = Path(path).expanduser(), 0, 0
        self.gaps: dict[int, int] = {}  # picture: how many behind it are lost, by the times
        if self.path.is_dir():
            self._open_folder()
            return
        if not self.path.is_file():
            raise MarsError(f"{path}: no such video: name a file, or a folder of pictures")
        try:
            str(self.path.resolve()).encode("utf-8")
        except UnicodeEncodeError:  # OpenCV would crash
            fault = "a name that is no UTF-8: rename the video or its folder"
            raise MarsError(f"{ascii(str(self.path))}: {fault}") from None
        level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
        self.capture = cv2.VideoCapture(str(self.path.resolve()), cv2.CAP_FFMPEG)
        cv2.utils.logging.setLogLevel(level)
        if not self.capture.isOpened():
            raise MarsError(f"{path}: not a video that OpenCV can read: convert it to MP4 (H.264)")
        sides = cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT
        self.size = tuple(int(self.capture.get(side)) for side in sides)
        self.told = max(int(self.capture.get(cv2.CAP_PROP_FRAME_COUNT)), 0)
        self.exact = self.path.suffix.lower() in (".avi", ".mp4", ".mov")  # others guess it

    def _open_folder(self) -> None:
        self.files = pictures_in(self.path)
        if not self.files:
            raise MarsError(f"{self.path}: a folder without pictures: name the video, or img1")
        self.told, self.exact, first = len(self.files), True, cv2.imread(str(self.files[0]))
        if first is None:
            raise MarsError(f"{self.files[0]}: not a whole picture: copy it again")
        self.size, info = first.shape[1::-1], self.path.parent / "seqinfo.ini"  # MOTChallenge's
        rate = re.search(r"frameRate\s*=\s*([\d.]+)", read_text(info)) if info.is_file() else None
        self.rate = float(rate[1]) if rate else math.nan

    def __iter__(self) -> Iterator[tuple[np.ndarray | None, float]]:
        """Pictures uint8 (H, W, 3), in OpenCV's order of colours: blue, green, red; and seconds."""
        for picture, second in self._folder() if self.path.is_dir() else self._file():
            self.count += 1
            self.damaged += picture is None
            yield picture, second
        if self.count == self.damaged:
            raise MarsError(f"{self.path}: a video without frames: record or convert it again")

    def _folder(self) -> Iterator[tuple[np.ndarray | None, float]]:
        for number, path in enumerate(self.files):
            picture = cv2.imread(str(path))
            whole = picture is not None and picture.shape[1::-1] == self.size
            yield (picture if whole else None), number / self.rate

    def _file(self) -> Iterator[tuple[np.ndarray | None, float]]:
        """Behind a damaged picture the next can be whole: the end is where many fail in a row.

        A decoder that runs ahead fails early: where the picture is missing, the times tell.
        """
        lost, failed, start, before = 0, 0, None, None
        rate = self.capture.get(cv2.CAP_PROP_FPS)
        while failed <= 100 or self.count + failed < min(self.told, self.count + 10**4):
            good, picture = self.capture.read()
            if not good:
                failed += 1
                continue
            now = self.capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
            start, before = (now, now) if start is None else (start, before)
            lost, failed = lost + failed, 0
            gap = max(round((now - before) * rate) - 1, 0) if now > before else lost
            missing = min(gap, lost)
            if gap > missing:
                self.gaps[self.count] = gap - missing
            yield from [(None, now - start)] * missing
            yield picture, now - start
            lost, before = lost - missing, now
        yield from [(None, before - start)] * lost if start is not None else ()
        self.capture.release()
        if self.exact and self.gaps and self.count + sum(self.gaps.values()) == self.told:
            fault = f"damaged, behind picture {next(iter(self.gaps))} pictures are lost"
            cure = "cut it there into two videos, with boxes of their own, or copy it again"
            raise MarsError(f"{self.path}: {fault}: {cure}")


def _cut(one: Tracks, names: dict, new: Path) -> Iterator[tuple]:
    """Write the pictures of all tracks of a shot; yields their rows of frames.csv."""
    reader, shot = Video(one.shot.video), one.shot
    bar = tqdm(reader, f"camera {shot.camera}", reader.told or None, unit="frame", delay=1)
    lost = 0
    for number, (picture, second) in enumerate(bar, 1):
        first, last = np.searchsorted(one.frames, (number, number + 1))
        lost += (last - first) * (picture is None)
        for row in range(first, last) if picture is not None else ():
            left, top, right, bottom = one.pixels[row].tolist()
            name = next(names[shot.camera, int(one.tracks[row])])
            _write_crop(picture[top:bottom, left:right], new / "bbox_test" / name[:4] / name)
            low, high = one.corners[row].reshape(2, 2)
            place = [f"{x:.2f}" for x in (*low, *(high - low))]
            when = "" if math.isnan(second) else f"{second:.3f}"
            yield name, shot.camera, shot.video.name, int(one.tracks[row]), number, when, *place
    one.fate |= {"on damaged pictures skipped": int(lost)} if lost else {}
    if reader.exact and reader.count < reader.told:
        one.fate[_lost(reader, shot.boxes)] = reader.told - reader.count
    if one.frames[-1] > reader.count:
        fault = f"has boxes for frame {one.frames[-1]}, but {shot.video} has {reader.count} frames"
        if one.frames[-1] <= reader.told:
            fault += f" that can be read of {reader.told}: convert it again, or name another video"
        raise MarsError(f"{shot.boxes}: {fault}: name the boxes of this video")


def _lost(reader: Video, boxes: Path | None) -> str:
    """What follows from pictures that the file counts and nobody can read.

    The times of an AVI are counted anew, so they do not tell which: only a file that is shorter
    than it says has lost its end.
    """
    with reader.path.open("rb") as file:
        head = file.read(8)
    cut_off = head[:4] == b"RIFF" and 8 + int.from_bytes(head[4:], "little")
    if cut_off > reader.path.stat().st_size:
        why = "the file is cut off at its end"
    elif boxes is None:
        why = "nobody can tell which, and seconds behind them are too early"
    else:
        why = "nobody can tell which: boxes that count them are cut out of later pictures"
    return f"of {reader.told} pictures lost, {why}"


def _write_crop(crop: np.ndarray, path: Path) -> None:
    """Write a picture at MARS's size, unless a run that was stopped has done so."""
    if path.is_file():
        return
    how = cv2.INTER_AREA if crop.shape[0] > SIZE[0] else cv2.INTER_LINEAR
    crop = cv2.resize(crop, SIZE[::-1], interpolation=how)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_bytes(cv2.imencode(".jpg", crop, [cv2.IMWRITE_JPEG_QUALITY, 95])[1])
    part.replace(path)


def _write_set(new: Path, rows: list[tuple]) -> None:
    """The index, and frames.csv in the order of its names."""
    numbers = {row[0]: [*map(int, re.findall(r"[0-9]+", row[0]))] for row in rows}
    rows.sort(key=lambda row: (numbers[row[0]][0], *numbers[row[0]][2:]))  # person, tracklet, frame
    tracklets: dict[str, list[str]] = {}
    for name, *_ in rows:
        tracklets.setdefault(mars.KEY.match(name)[0], []).append(name)
    (new / "bbox_train").mkdir(exist_ok=True)
    mars.write_info(new, [], list(tracklets.values()), query=np.arange(len(tracklets)))
    with (new / "frames.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, lineterminator="\n").writerows([mars.FRAMES, *rows])


def _summary(found: Sequence[Tracks]) -> str:
    """One line a camera: what became of its boxes."""
    lines = []
    for one in found:
        fate = dict(one.fate)
        start = f"{fate.pop('tracks')} tracks of {fate.pop('boxes')} boxes; "
        lines.append(start + ", ".join(f"{count} {what}" for what, count in fate.items()))
    many = len(found) > 1
    cameras = [f"camera {one.shot.camera}: " * many for one in found]
    return "\n".join(map("".join, zip(cameras, lines, strict=True)))
