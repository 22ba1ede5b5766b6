"""Read and write a data set in the layout of MARS (Zheng et al., ECCV 2016).

bbox_train/0001/0001C1T0001F001.jpg   identity 1, camera 1, tracklet 1 of the identity, frame 1
bbox_test/00-1/  bbox_test/0000/      junk (pid -1) and distractors (pid 0)
info/train_name.txt  test_name.txt    one frame name per line
info/tracks_train_info.mat  tracks_test_info.mat  query_IDX.mat
"""

import csv
import hashlib
import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import loadmat, savemat
from scipy.sparse import issparse

from vreid_course.files import CourseError

PARTS = ("train", "test")
COPY = "copy info/ again, all of it from one source"
NO_QUERIES = "holds no queries: copy it again, or write the numbers of the tracklets to be searched"
KEY = re.compile(r"(00-1|[0-9]{4})C([0-9]+)T[0-9]+(?=F)")  # identity, camera and tracklet of a name
FRAMES = "picture camera video track frame second left top width height".split()  # frames.csv
HDF5 = b"\x89HDF\r\n\x1a\n"  # what MATLAB's v7.3 files are; behind a header of 512 bytes


MarsError = CourseError  # bad input or output; one line that names the file and the cure


def read_frame(path: Path) -> np.ndarray:
    """Decode one JPEG frame to uint8 (H, W, 3) RGB in 0..255; MarsError if that cannot be done."""
    try:
        with Image.open(path, formats=["JPEG"]) as picture:
            return np.asarray(picture.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise MarsError(f"{path}: {frame_fault(path, error)}") from None


def frame_fault(path: Path, error: Exception | None = None) -> str:
    """What is wrong with a frame's file and how to mend it; "" if it is there and was not read.

    error: what reading it raised, None if nobody tried.
    """
    cure = "copy it again, or skip it (--skip-bad of train and evaluate, in code skip_bad=True)"
    if any((folder / "settings.json").is_file() for folder in path.parents[2:3]):
        cure = f"delete {path.parents[2]}, it is drawn again"
    if not path.is_file():
        same = path.stem.lower()
        others = (p for p in path.parent.glob("*") if p != path)
        near = sorted(p.name for p in others if p.stem.lower() == same)
        other = f", but {near[0]} is there: give it the name that info/ has" if near else ""
        return "no such frame" + (other or f": {cure}")
    if path.stat().st_size == 0:
        return f"an empty frame: {cure}"
    if error is None:
        return ""
    try:
        with Image.open(path) as picture:
            kind = picture.format
    except (OSError, SyntaxError, ValueError):
        kind = "JPEG"
    if kind not in ("JPEG", "MPO"):
        return f"a {kind} picture that is called {path.suffix}: save it as JPEG"
    return f"not a whole JPEG ({type(error).__name__}): {cure}"


def read_text(path: str | Path) -> str:
    """The text of a UTF-8 file, or of a UTF-16 one with its byte order mark, as Windows writes.

    MarsError for other bytes, OSError for a file that cannot be opened.
    """
    data = Path(path).expanduser().read_bytes()
    try:
        return data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError as error:
        fault = f"no text in UTF-8 (byte {error.start} is none)"
        raise MarsError(f"{path}: {fault}: save it as UTF-8, or copy it again") from None


@dataclass(frozen=True, eq=False)
class Split:
    """The N tracklets of one part. Frame numbers are 0-based rows of `names`, half open.

    names: (F,) str; first, last, pids, camids: (N,) int64; pid -1 junk, 0 distractor; camid
    from 1 (MARS has 1..6).
    """

    folder: Path
    names: np.ndarray
    first: np.ndarray
    last: np.ndarray
    pids: np.ndarray
    camids: np.ndarray

    def __len__(self) -> int:
        return len(self.first)

    @property
    def lengths(self) -> np.ndarray:
        """Frames of each tracklet, (N,) int64."""
        return self.last - self.first

    def key(self, i: int) -> str:
        """What the frame names of tracklet i share, such as "0001C1T0001"."""
        return KEY.match(str(self.names[self.first[i]]))[0]

    def paths(self, i: int, which: Sequence[int] | None = None) -> list[Path]:
        """The files of tracklet i, of all its T frames or of frames `which` (each in 0..T-1)."""
        names = self.names[self.first[i] : self.last[i]]
        names = names if which is None else names[which]
        return [self.folder / str(name[:4]) / str(name) for name in names]

    def frames(
        self, i: int, which: Sequence[int] | None = None, skip_bad: bool = False
    ) -> np.ndarray:
        """Load frames of tracklet i (all, or `which`): uint8 (T, H, W, 3) RGB in 0..255.

        A frame that cannot be read is a MarsError. With skip_bad it is left out and a warning
        tells how many were, so fewer frames come back; one good frame must remain.
        """
        frames, faults = [], []
        for path in self.paths(i, which):
            try:
                frames.append(read_frame(path))
            except MarsError as error:
                if not skip_bad:
                    raise
                faults.append(str(error))
        if not frames:
            raise MarsError(faults[0] if faults else f"{self.key(i)}: no frames were asked for")
        if faults:
            message = f"{self.key(i)}: skipped {len(faults)} bad frames; the first: {faults[0]}"
            warnings.warn(message, stacklevel=2)
        if len({frame.shape for frame in frames}) > 1:
            raise MarsError(f"{self.folder}: {self.key(i)} has frames of several sizes: resize it")
        return np.stack(frames)

    def stamp(self) -> str:
        """A hash of names, tracklets, sizes and times of change: another where a picture changed.

        Of a drawn set the times do not count: it can be deleted, and is drawn again the same.
        """
        drawn, files = (self.folder.parent / "settings.json").is_file(), {}
        for folder in {folder_name(pid) for pid in self.pids.tolist()}:
            if (self.folder / folder).is_dir():
                with os.scandir(self.folder / folder) as entries:
                    files |= {e.name: (e.stat().st_size, e.stat().st_mtime_ns) for e in entries}
        found = hashlib.sha256(np.stack([self.first, self.last, self.pids, self.camids]).tobytes())
        for name in self.names.tolist():
            size, time = files.get(name, (-1, -1))
            found.update(f"{name} {size} {'' if drawn else time}\n".encode())
        return found.hexdigest()

    def select(self, rows: np.ndarray) -> "Split":
        """The split of some tracklets only: `rows` are row numbers, or a mask of shape (N,)."""
        columns = ("first", "last", "pids", "camids")
        part = replace(self, **{name: getattr(self, name)[rows] for name in columns})
        if len(part) == 0:
            raise MarsError(f"{self.folder}: no tracklets left after filtering: filter less")
        return part


@dataclass(frozen=True, eq=False)
class Mars:
    """A whole set; `query` (Q,) int64 holds 0-based rows of `test`."""

    root: Path
    train: Split
    test: Split
    query: np.ndarray


def read_mars(root: str | Path) -> Mars:
    """Read and verify the index of a set in MARS layout, without touching a picture.

    The train part may be empty; test may not. Raises MarsError at the first fault.
    """
    root = Path(root).expanduser()
    train, test = (read_split(root, part) for part in PARTS)
    return Mars(root, train, test, read_query(root, test))


def read_split(root: Path, part: str) -> Split:
    """Read one part ("train" or "test") of the set at `root`; MarsError at the first fault."""
    info, folder = root / "info", root / f"bbox_{part}"
    if not info.is_dir():
        fault = "no such folder: name the one that holds bbox_train, bbox_test and info"
        raise MarsError(f"{info}: {fault} (info comes with the MARS-evaluation code)")
    tracks_path, names_path = info / f"tracks_{part}_info.mat", info / f"{part}_name.txt"
    rows = read_mat(tracks_path, f"track_{part}_info", columns=4)
    try:
        lines = read_text(names_path).split()
    except OSError as error:
        fault = "no such file" if isinstance(error, FileNotFoundError) else f"no text ({error})"
        raise MarsError(f"{names_path}: {fault}: {COPY}") from error
    names = np.array([re.split(r"[/\\]", line)[-1] for line in lines], dtype=str)  # no folders
    if len(rows):
        _check_rows(tracks_path, rows, lowest_pid=1 if part == "train" else -1)
        _check_names(names_path, names, rows)
        if not folder.is_dir():
            raise MarsError(f"{folder}: no such folder: unpack the frames of the {part} part there")
    elif part == "test" or len(names):
        raise MarsError(f"{tracks_path}: holds no tracklets: {COPY}")
    return Split(folder, names, rows[:, 0] - 1, rows[:, 1], rows[:, 2], rows[:, 3])


def read_query(root: Path, test: Split) -> np.ndarray:
    """Read the queries, (Q,) int64 rows of `test`; MarsError if one is no row of a real person."""
    path = root / "info" / "query_IDX.mat"
    rows = read_mat(path, "query_IDX").ravel() - 1
    bad = (rows < 0) | (rows >= len(test))
    bad |= test.pids[np.where(bad, 0, rows)] < 1
    if len(np.unique(rows)) < len(rows):
        raise MarsError(f"{path}: a query stands there twice: {COPY}")
    if bad.any():
        fault = f"query index {rows[bad][0] + 1} is no tracklet of a person in 1..{len(test)}"
        raise MarsError(f"{path}: {fault}: {COPY}")
    return rows


def read_mat(path: Path, key: str, columns: int | None = None) -> np.ndarray:
    """One matrix of whole numbers in a .mat file, (N, columns) or (1, N), as int64."""
    if not path.is_file():
        raise MarsError(f"{path}: no such file: {COPY}")
    try:
        content = _load_mat(path)
    except Exception as error:  # the libraries raise many kinds on a broken file
        raise MarsError(f"{path}: no MATLAB file ({type(error).__name__}): {COPY}") from error
    if key not in content:
        found = ", ".join(name for name in content if not name.startswith("__"))
        raise MarsError(f"{path}: holds {found or 'nothing'}, not {key}: {COPY}")
    array = content[key]
    array = array.toarray() if issparse(array) else array
    if array.dtype.kind in "OUS":
        fault = f"{key} holds text or cells, not numbers"
        raise MarsError(f"{path}: {fault}: save it as one matrix of numbers (str2double)")
    if array.size == 0:
        return np.zeros((0, columns or 0), np.int64)
    right = array.shape[1:] == (columns,) if columns else 1 in array.shape
    plain = array.dtype.kind in "iuf" and right and (abs(array) < 2.0**53).all()
    if not plain or (array != np.round(array)).any():
        wanted = f"whole numbers (N, {columns})" if columns else "whole numbers (1, N)"
        raise MarsError(f"{path}: {key} is {array.dtype} {array.shape}, not {wanted}: {COPY}")
    return array.astype(np.int64)


def _load_mat(path: Path) -> dict[str, np.ndarray]:
    """The variables of a MATLAB file, also of one that was saved with -v7.3."""
    with path.open("rb") as stream:
        head = stream.read(520)
    if HDF5 not in (head[:8], head[512:]):
        return loadmat(path, appendmat=False)
    import h5py  # half a second, for the few files of this kind

    with h5py.File(path) as file:
        found = {name: x for name, x in file.items() if isinstance(x, h5py.Dataset)}
        text = {
            name for name, x in found.items() if x.attrs.get("MATLAB_class") in (b"char", b"cell")
        }
        empty = {name for name, x in found.items() if "MATLAB_empty" in x.attrs}
        found = {name: np.zeros(0) if name in empty else x[()].T for name, x in found.items()}
        return found | dict.fromkeys(text, np.array(["text"]))


def _check_rows(path: Path, rows: np.ndarray, lowest_pid: int) -> None:
    """Tracklets tile the name list from line 1 on; identities and cameras are in range."""
    first, last, pids, camids = rows.T
    checks = {
        "its frames do not follow the row before": first != np.append(1, last[:-1] + 1),
        "it has no frames": last < first,
        f"identity is not in {lowest_pid}..9999": (pids < lowest_pid) | (pids > 9999),
        "cameras are counted from 1": camids < 1,
    }
    for fault, bad in checks.items():
        if bad.any():
            row = int(bad.argmax())
            raise MarsError(f"{path}: row {row + 1} {rows[row].tolist()}: {fault}: {COPY}")


def _check_names(path: Path, names: np.ndarray, rows: np.ndarray) -> None:
    """There are as many names as the tracklets count, each of the identity and camera there."""
    if len(names) != rows[-1, 1]:
        fault = f"holds {len(names)} names, but the tracklets have {rows[-1, 1]} frames"
        raise MarsError(f"{path}: {fault}: {COPY}")
    listed = names.tolist()
    for row, (first, last, pid, camid) in enumerate(rows.tolist(), 1):
        key, line = KEY.match(listed[first - 1]), first
        if key and (key[1], int(key[2])) == (folder_name(pid), camid):
            others = (i for i in range(first, last) if not listed[i].startswith(key[0] + "F"))
            line = next(others, -1) + 1
        if line:
            wanted = f"{folder_name(pid)}C{camid}T0001F001.jpg"
            fault = f"line {line} is {listed[line - 1]!r}, where tracklet {row} has {wanted}"
            raise MarsError(f"{path}: {fault}: {COPY}")


def folder_name(pid: int) -> str:
    """The folder of an identity and the first four letters of its frames: "0001", "00-1"."""
    return "00-1" if pid == -1 else f"{pid:04d}"


def frame_names(pid: int, camid: int, tracklet: int, count: int) -> list[str]:
    """The frame names of one tracklet: pid -1..9999, camid from 1, tracklet 1..9999, count >= 1."""
    if not (-1 <= pid <= 9999 and 1 <= camid and 1 <= tracklet <= 9999 and count >= 1):
        raise MarsError(f"no MARS name for {pid=} {camid=} {tracklet=} {count=}: renumber them")
    key = f"{folder_name(pid)}C{camid}T{tracklet:04d}"
    return [f"{key}F{frame:03d}.jpg" for frame in range(1, count + 1)]


def read_frames(mars: Mars) -> list[dict[str, str]]:
    """The lines of frames.csv, a picture of the test part each; none without that file.

    MarsError if it is not whole, or tells of other pictures.
    """
    path = mars.root / "frames.csv"
    if not path.is_file():
        return []
    table = csv.DictReader(read_text(path).splitlines())
    rows = list(table)
    whole = set(FRAMES) <= set(table.fieldnames or ())
    if not whole or any(None in (*row, *row.values()) for row in rows):
        fault = f"not the table {','.join(FRAMES)}, or a line is cut off"
        raise MarsError(f"{path}: {fault}: cut the videos again, or save it with commas")
    if [row["picture"] for row in rows] != mars.test.names.tolist():
        raise MarsError(f"{path}: not the pictures of info/test_name.txt: cut the videos again")
    return rows


def query_rows(pids: np.ndarray, camids: np.ndarray, cameras: int = 2) -> np.ndarray:
    """MARS's queries, 0-based: the last row of each person and camera, people of >= 2 cameras.

    cameras=1 adds the people of a single camera, whose queries cannot be scored.
    """
    base = int(camids.max(initial=0)) + 1
    pairs = pids * base + camids
    kinds, from_end = np.unique(pairs[::-1], return_index=True)
    people, seen_by = np.unique(kinds // base, return_counts=True)
    rows = np.sort(len(pairs) - 1 - from_end)
    return rows[(pids[rows] > 0) & np.isin(pids[rows], people[seen_by >= cameras])]


def write_info(
    root: str | Path,
    train: list[list[str]],
    test: list[list[str]],
    query: np.ndarray | None = None,
) -> None:
    """Write info/ in MARS's own file formats; the same input gives the same bytes.

    train, test: for each tracklet its frame names, tracklets ordered by identity (-1, 0, 1 ...)
    and tracklet number. query: 0-based rows of test, by default those of `query_rows`.
    """
    info = Path(root) / "info"
    info.mkdir(parents=True, exist_ok=True)
    for part, tracklets in zip(PARTS, (train, test), strict=True):
        text = "".join(f"{name}\r\n" for names in tracklets for name in names)
        (info / f"{part}_name.txt").write_bytes(text.encode("ascii"))
        rows, last = [], 0
        for names in tracklets:
            folder, camid = KEY.match(names[0]).groups()
            pid = -1 if folder == folder_name(-1) else int(folder)
            rows.append((last + 1, last := last + len(names), pid, int(camid)))
        rows = np.array(rows, np.int32).reshape(-1, 4)
        _write_mat(info / f"tracks_{part}_info.mat", f"track_{part}_info", rows)
    if query is None:
        query = query_rows(rows[:, 2], rows[:, 3])
    kind = np.uint16 if len(test) < 2**16 else np.uint32
    _write_mat(info / "query_IDX.mat", "query_IDX", np.array([query], np.int64).astype(kind) + 1)


def _write_mat(path: Path, key: str, array: np.ndarray) -> None:
    """savemat with a constant header, for SciPy's own holds the time of day."""
    stream = BytesIO()
    savemat(stream, {key: array}, do_compression=True)
    header = b"MATLAB 5.0 MAT-file, written by vreid_course".ljust(116)
    path.write_bytes(header + stream.getvalue()[116:])
