"""The attribute annotation of MARS: `mars_attributes.csv` of yuange250/MARS-Attribute.

One row per tracklet of a real person (none for junk and distractors): person, camera, tracklet
number, then the columns of ATTRIBUTES. Value names without a documented order follow the
Market-1501 annotation.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .mars import MarsError, Split

KEYS = ("person-id", "camera", "tracklet")
NO_YES = ("no", "yes")
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "Tops.c": tuple("black purple green blue gray white yellow red complex".split()),
    "Bottoms.c": tuple("white purple black green gray pink yellow blue brown complex".split()),
    "Age": ("child", "teenager", "adult", "old"),
    "Tops.l": ("long sleeve", "short sleeve"),
    "Bottoms.l": ("long", "short"),
    "shoulder bag": NO_YES,
    "backpack": NO_YES,
    "hat": NO_YES,
    "handbag": NO_YES,
    "hair": ("short", "long"),
    "gender": ("male", "female"),
    "Bottoms.t": ("dress", "pants"),
}


@dataclass(frozen=True, eq=False)
class Attributes:
    """N annotated tracklets, all int64: keys (N,), and for each column of ATTRIBUTES (N,) values.

    A value is the place of its name in ATTRIBUTES[column]; -1 means not annotated.
    """

    pids: np.ndarray
    camids: np.ndarray
    tracklets: np.ndarray
    values: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.pids)

    def names(self, column: str) -> list[str]:
        """The value names of one column, N strings; "" where not annotated."""
        return [(*ATTRIBUTES[column], "")[value] for value in self.values[column]]

    def select(self, rows: np.ndarray) -> "Attributes":
        """Only these rows: row numbers, or a mask of shape (N,)."""
        values = {column: array[rows] for column, array in self.values.items()}
        return Attributes(self.pids[rows], self.camids[rows], self.tracklets[rows], values)


def read_attributes(path: str | Path, split: Split | None = None) -> Attributes:
    """Read an annotation file; columns are found by name, further columns are ignored.

    Without a split the rows come as in the file. With a (whole) split there is one row per
    tracklet of it, in its order, with -1 in all columns for junk and distractors. MarsError for a
    missing column, a value out of range (naming the line), or tracklets without annotation.
    """
    path = Path(path)
    columns = (*KEYS, *ATTRIBUTES)
    if not path.is_file():
        raise MarsError(f"{path}: no such file: copy it from yuange250/MARS-Attribute")
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as stream:
        reader = csv.DictReader(stream)
        if missing := [name for name in columns if name not in (reader.fieldnames or ())]:
            raise MarsError(
                f"{path}: has no column {missing[0]!r}: use the file with its header line"
            )
        rows = [_read_row(path, reader.line_num, row, columns) for row in reader]
    table = np.array(rows, np.int64).reshape(-1, len(columns)).T
    attributes = Attributes(*table[:3], dict(zip(ATTRIBUTES, table[3:], strict=True)))
    return attributes if split is None else _join(path, attributes, split)


def _read_row(path: Path, line: int, row: dict, columns: tuple[str, ...]) -> list[int]:
    """One line of the file as numbers in the order of `columns`."""
    for name in columns:
        text = (row[name] or "").strip()
        limit = len(ATTRIBUTES[name]) if name in ATTRIBUTES else 10_000
        if not (text.isascii() and text.isdigit() and int(text) < limit):
            fault = f"{name} is {text!r}, not a number in 0..{limit - 1}"
            raise MarsError(f"{path}: line {line}: {fault}: correct it")
    return [int(row[name]) for name in columns]


def _join(path: Path, attributes: Attributes, split: Split) -> Attributes:
    """Annotation in the order of the tracklets.

    Tracklets of real people stand in the order of (person, tracklet number), junk and distractors
    before them; so the file, sorted likewise, matches one to one. Persons and cameras must agree.
    """
    order = np.lexsort((attributes.tracklets, attributes.pids))
    found = attributes.select(order[np.isin(attributes.pids[order], split.pids)])
    real = np.flatnonzero(split.pids > 0)
    keys = np.stack([split.pids[real], split.camids[real]])
    if keys.shape != (2, len(found)) or (keys != (found.pids, found.camids)).any():
        fault = f"{len(found)} tracklets do not match the {len(real)} of {split.folder}"
        raise MarsError(f"{path}: {fault}: use the file of this set, and join before selecting")

    def spread(array: np.ndarray) -> np.ndarray:
        column = np.full(len(split), -1)
        column[real] = array
        return column

    values = {column: spread(array) for column, array in found.values.items()}
    return Attributes(split.pids, split.camids, spread(found.tracklets), values)


def write_attributes(path: str | Path, attributes: Attributes) -> None:
    """Write rows in the format of the real file; rows of junk and distractors are left out."""
    real = attributes.select(attributes.pids > 0)
    columns = [real.pids, real.camids, real.tracklets, *(real.values[c] for c in ATTRIBUTES)]
    with Path(path).open("w", newline="", encoding="ascii") as stream:
        writer = csv.writer(stream)
        writer.writerow((*KEYS, *ATTRIBUTES))
        writer.writerows(np.stack(columns, axis=1).tolist())
