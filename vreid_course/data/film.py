"""Two street cameras, drawn: people walk from one to the other, and the truth is known.

For lesson 09 and for who wants to try `from-video` without a video of real people.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from vreid_course.drawing.figures import Person, accessory_group, draw_person
from vreid_course.drawing.render import draw_figure
from vreid_course.drawing.scene import Camera, backdrop, camera, panorama, respond

from .boxes import overlap

WIDTH, HEIGHT, RATE = 480, 240, 6  # pixels, and pictures a second
PACE = 0.24  # metres a picture
LANES = ((170, 40), (222, 52))  # row of the feet, pixels a metre: far and near
TURN = {1: 0.0, 2: 0.6}  # radians: camera 2 sees people a little from behind, or from the front


@dataclass(frozen=True)
class Walk:
    """A person who crosses what a camera sees: lane 0 (far) or 1; to the right (1) or left (-1)."""

    person: int
    camera: int
    lane: int
    direction: int
    first: int  # picture, from 0


def passers_by(count: int, alike: int = 8, seed: int = 9) -> list[Person]:
    """The people of the street: the first `alike` in fours who wear the same, the others anything.

    People of one four differ in what they carry.
    """
    groups = [p for group in range(-(-alike // 4)) for p in accessory_group(seed, group)][:alike]
    return groups + [draw_person(seed, 100 + number) for number in range(count - len(groups))]


def walks(people: int, frames: int, seed: int = 4) -> list[Walk]:
    """Who passes which camera and when: most from 1 to 2, some in one only, some come back.

    From one camera to the same place in the other everybody needs 7 to 8 seconds.
    """
    rng, found = np.random.default_rng(seed), []
    for person in range(people):
        kind, way, lane = rng.random(), rng.permutation([1, 2]), int(rng.integers(2))
        seen = way[:1] if kind < 0.15 else way if kind < 0.85 else [*way, way[0]]
        direction = 1 if way[0] == 1 else -1
        first = int(rng.integers(-10, max(frames - 50 * len(seen), 1)))
        for number in seen:
            found.append(Walk(person, int(number), lane, direction, first))
            first += int(rng.integers(7 * RATE, 8 * RATE + 1))
    return found


def film(
    people: list[Person], walked: list[Walk], camid: int, frames: int, path: Path, seed: int = 3
) -> list[tuple]:
    """Draw what a camera sees into a video; returns its boxes: (frame, walk, x, y, w, h).

    Frames are counted from 1, walks are rows of `walked`, pixels may lie outside of the picture.
    """
    cam, rng, boxes = camera(seed, camid), np.random.default_rng((seed, camid)), []
    column, row = np.arange(WIDTH)[None] / 45, (HEIGHT - 70 - np.arange(HEIGHT))[None] / 45
    around = panorama(seed, camid, 40)
    behind = 0.3 + 0.7 * backdrop(around, column, np.clip(row, -1.15, 2.7))[0]
    mine = sorted((w.lane, i) for i, w in enumerate(walked) if w.camera == camid)  # far ones first
    drawn = {i: _crossing(people[walked[i].person], walked[i], cam) for _, i in mine}
    codec = cv2.VideoWriter_fourcc(*"MJPG")
    writer = cv2.VideoWriter(str(path), codec, RATE, (WIDTH, HEIGHT))
    for t in range(frames):
        picture = behind.copy()
        for _, i in mine:
            if t in drawn[i]:
                boxes.append((t + 1, i, *_paste(picture, *drawn[i][t])))
        grain = 0.3 * rng.standard_normal(picture.shape).astype(np.float32)
        writer.write(np.ascontiguousarray(respond(cam, picture, grain)[..., ::-1]))
    writer.release()
    return boxes


def _crossing(person: Person, walk: Walk, cam: Camera) -> dict[int, tuple]:
    """For each picture with the person: left and top of a patch, its colours and its mask."""
    feet, metre = LANES[walk.lane]
    t = np.arange((WIDTH + 60) / (PACE * metre))
    x = PACE * t * metre * walk.direction + (-30 if walk.direction > 0 else WIDTH + 30)
    px = np.tile(np.arange(1.6 * metre) / metre - 0.8, (len(t), 1))
    py = np.tile(2.1 - np.arange(2.2 * metre) / metre, (len(t), 1))
    view = np.full(len(t), walk.direction * np.pi / 2 + TURN[walk.camera])
    phase = (2.7 * person.cadence * t + 0.3 * walk.first) % 1
    colours, parts = draw_figure(person, phase, view, 0.15, px, py, cam.light)[:2]
    corners = [(int(a - 0.8 * metre), int(feet - 2.1 * metre)) for a in x]
    return {walk.first + i: (*corners[i], colours[i], parts[i] > 0) for i in range(len(t))}


def _paste(picture: np.ndarray, left: int, top: int, colour, mask) -> tuple[int, int, int, int]:
    """Put a patch into the picture, as far as it is inside; the box of its mask: x, y, w, h."""
    (ys, xs), (h, w) = np.nonzero(mask), mask.shape
    a, b, c, d = max(left, 0), max(top, 0), min(left + w, WIDTH), min(top + h, HEIGHT)
    if a < c and b < d:
        part = np.s_[b - top : d - top, a - left : c - left]
        picture[b:d, a:c][mask[part]] = colour[part][mask[part]]
    return left + xs.min(), top + ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1


def detected(boxes: list[tuple], path: Path, seed: int = 6) -> None:
    """What a detector would give: boxes a little off, some missing, none with an id."""
    rng, lines = np.random.default_rng(seed), []
    for frame, _, *box in boxes:
        x, y, w, h = np.array(box) + rng.normal(0, 1.2, 4)
        if rng.random() < 0.99:
            lines.append(f"{frame},-1,{x:.1f},{y:.1f},{w:.1f},{h:.1f},{rng.uniform(0.6, 1):.2f}\n")
    path.write_text("".join(lines), "utf-8")


def who_is_who(root: Path, walked: list[Walk], boxes: dict[int, list[tuple]], out: Path) -> None:
    """Write the table camera,track,person of a set that was cut from these videos, by the truth.

    boxes: of each camera what `film` returned. A track is the person whose true boxes its own
    overlap most often; people are numbered from 1.
    """
    true: dict[tuple[int, int], list[tuple]] = {}
    for camid, rows in boxes.items():
        for frame, walk, x, y, w, h in rows:
            true.setdefault((camid, frame), []).append((walked[walk].person, x, y, x + w, y + h))
    votes: dict[tuple[int, int], list[int]] = {}
    with (root / "frames.csv").open(newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            x, y, w, h = (float(row[name]) for name in ("left", "top", "width", "height"))
            near = true[int(row["camera"]), int(row["frame"])]
            shared = overlap(np.array([[x, y, x + w, y + h]]), np.array(near)[:, 1:].astype(float))
            person = near[int(shared.argmax())][0] + 1
            votes.setdefault((int(row["camera"]), int(row["track"])), []).append(person)
    lines = [f"{camid},{track},{np.bincount(v).argmax()}\n" for (camid, track), v in votes.items()]
    out.write_text("camera,track,person\n" + "".join(lines), "utf-8")
