"""Boxes of people: read from MOTChallenge's text, linked to tracks where they have no ids.

One box a line: frame (from 1), track id (-1: not known), left, top, width, height in pixels, then,
where there are more columns, the confidence; a line of eight or nine columns is ground truth, and
its seventh and eighth are a flag (0: to be ignored) and the class (1: a person).
Source: Leal-Taixé et al., arXiv 1504.01942; Milan et al., arXiv 1603.00831 (classes).
"""

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy.optimize import linear_sum_assignment

from .mars import MarsError, read_text

TINY = 1e-6  # pixels: what scaling may add to a box that ends at the border
LARGEST = 1e6  # pixels; nothing that a camera gives is larger
FORMAT = "not frame,id,left,top,width,height in numbers with a decimal point: write them so"
NO_BOXES = "holds no boxes: one a line, as frame,id,left,top,width,height"


@dataclass(eq=False)
class Boxes:
    """N boxes in the order of their frames, and how many lines were left out, by reason.

    frames (N,) int64 from 1; ids (N,) int64, -1 not known; corners (N, 4) float64: left, top,
    right, bottom.
    """

    frames: np.ndarray
    ids: np.ndarray
    corners: np.ndarray
    left_out: dict[str, int] = field(default_factory=dict)


def read_boxes(path: str | Path, least: float | None = None) -> Boxes:
    """Read a MOTChallenge file; MarsError names the first line that is wrong.

    Left out and counted: ground truth that is no person or flagged as ignored, boxes without width
    or height, the same box twice, and with `least` what has a smaller confidence.
    """
    try:
        lines = read_text(path).splitlines()
    except OSError as error:
        raise MarsError(f"{path}: no text of boxes ({error}): name a MOTChallenge file") from None
    rows, seen, left_out = [], {}, {}
    parsed = [(n, line, *_row(line, least)) for n, line in enumerate(lines, 1) if line.strip()]
    flagged = {row[6] for _, _, row, _ in parsed if len(row) > 6 and row[1] != -1} == {0.0, 1.0}
    for number, line, row, fault in parsed:
        reason = "" if fault else _left_out(row, least, flagged)
        if not fault and not reason and (known := seen.setdefault(_key(row), row)) is not row:
            same, reason = known[:6] == row[:6], "there twice"
            fault = "" if same else f"track {row[1]:.0f} has two boxes in frame {row[0]:.0f}"
            fault += "" if same else ": give each person an id of its own"
        if fault:
            raise MarsError(f"{path}: line {number} is {line[:60]!r}: {fault}")
        if reason:
            left_out[reason] = left_out.get(reason, 0) + 1
        else:
            rows.append(row[:6])
    if not rows:
        why = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
        raise MarsError(f"{path}: " + (f"of its boxes none is left ({why})" if why else NO_BOXES))
    rows = np.array(sorted(rows, key=lambda row: row[0]))
    corners = np.concatenate([rows[:, 2:4], rows[:, 2:4] + rows[:, 4:6]], 1)
    return Boxes(rows[:, 0].astype(np.int64), rows[:, 1].astype(np.int64), corners, left_out)


def _key(row: list) -> tuple:
    """What may stand once only: a track in a frame; of boxes without id the box."""
    return tuple(row[:6]) if row[1] == -1 else tuple(row[:2])


def _row(line: str, least: float | None) -> tuple[list, str]:
    """Six numbers of a line, with what follows of confidence and class, and what is wrong."""
    comma = "," in line
    words = [w.strip() for w in line.strip().rstrip(",").split(",")] if comma else line.split()
    try:
        row = [_number(word) for word in words[:6]]
    except ValueError:
        return [], FORMAT
    if len(row) < 6 or "" in words or not all(abs(x) <= LARGEST for x in row[2:]):
        return [], FORMAT
    if not 1 <= row[0] < 2**53 or row[0] % 1:
        return [], "frames are counted from 1: renumber them"
    if row[1] % 1 or not -1 <= row[1] < 2**53:
        return [], "the track id is neither -1 (not known) nor a whole number from 0 on: renumber"
    try:
        more = [_number(word) for word in words[6:7]]
    except ValueError:
        more = []
    if least is not None and not more:
        return [], "has no confidence in its seventh column: leave the least confidence out"
    return row + more + (words[7:8] if more and len(words) in (8, 9) else []), ""


def _number(word: str) -> float:
    if "_" in word or not math.isfinite(float(word)):  # Python reads 1_000 as a number
        raise ValueError(word)
    return float(word)


def _left_out(row: list, least: float | None, flagged: bool) -> str:
    """Why a line shows no person that counts; "" if it does."""
    kind = row[7].lower() if len(row) > 7 else "-1"
    try:
        kind = "person" if float(kind) == 1 else "" if float(kind) < 0 else "other"
    except ValueError:
        kind = "person" if kind in ("person", "pedestrian") else "other"
    if kind == "other":
        return "of another class"
    if (kind or flagged) and len(row) > 6 and row[6] == 0:
        return "flagged as ignored"
    if least is not None and row[6] < least:
        return "below the least confidence"
    return "" if min(row[4:6]) > 0 else "without width or height"


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
