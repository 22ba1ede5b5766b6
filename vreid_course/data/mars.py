"""Read and write a data set in the layout of MARS (Zheng et al., ECCV 2016).

bbox_train/0001/0001C1T0001F001.jpg   identity 1, camera 1, tracklet 1 of the identity, frame 1
bbox_test/00-1/  bbox_test/0000/      junk (pid -1) and distractors (pid 0)
info/train_name.txt  test_name.txt    one frame name per line
info/tracks_train_info.mat  tracks_test_info.mat  query_IDX.mat
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import loadmat, savemat

from vreid_course.files import CourseError
from vreid_course.files import writable as writable  # where data/ and others look for it

PARTS = ("train", "test")
COPY = "copy info/ again, all of it from one source"


MarsError = CourseError  # bad input or output; one line that names the file and the cure


def read_frame(path: Path) -> np.ndarray:
    """Decode one JPEG frame to uint8 (H, W, 3) RGB in 0..255; MarsError if that cannot be done."""
    try:
        with Image.open(path, formats=["JPEG"]) as picture:
            return np.asarray(picture.convert("RGB"))
    except FileNotFoundError:
        fault = "no such frame"
    except (OSError, SyntaxError, ValueError) as error:
        empty = path.is_file() and path.stat().st_size == 0
        fault = "an empty frame" if empty else f"not a whole JPEG ({type(error).__name__})"
    cure = "copy it again, or read with skip_bad=True"
    if any((folder / "settings.json").is_file() for folder in path.parents[2:3]):
        cure = f"delete {path.parents[2]}, it is drawn again"
    raise MarsError(f"{path}: {fault}: {cure}")


@dataclass(frozen=True, eq=False)
class Split:
    """The N tracklets of one part. Frame numbers are 0-based rows of `names`, half open.

    names: (F,) str; first, last, pids, camids: (N,) int64; pid -1 junk, 0 distractor; camid 1..6.
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
        return str(self.names[self.first[i]][:11])

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
    rows = _read_mat(tracks_path, f"track_{part}_info", columns=4)
    try:
        names = np.array(names_path.read_text("ascii").split(), dtype=str)
    except (OSError, UnicodeDecodeError) as error:
        fault = "no such file" if isinstance(error, FileNotFoundError) else f"no text ({error})"
        raise MarsError(f"{names_path}: {fault}: {COPY}") from error
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
    rows = _read_mat(path, "query_IDX").ravel() - 1
    bad = (rows < 0) | (rows >= len(test))
    bad |= test.pids[np.where(bad, 0, rows)] < 1
    if bad.any():
        fault = f"query index {rows[bad][0] + 1} is no tracklet of a person in 1..{len(test)}"
        raise MarsError(f"{path}: {fault}: {COPY}")
    return rows


def _read_mat(path: Path, key: str, columns: int | None = None) -> np.ndarray:
    """One matrix of whole numbers in a .mat file, (N, columns) or (1, N), as int64."""
    if not path.is_file():
        raise MarsError(f"{path}: no such file: {COPY}")
    try:
        content = loadmat(path, appendmat=False)
    except Exception as error:  # SciPy raises many kinds on a broken file
        raise MarsError(f"{path}: no MATLAB file ({type(error).__name__}): {COPY}") from error
    if key not in content:
        found = ", ".join(name for name in content if not name.startswith("__"))
        raise MarsError(f"{path}: holds {found or 'nothing'}, not {key}: {COPY}")
    array = content[key]
    if array.size == 0:
        return np.zeros((0, columns or 0), np.int64)
    right = array.shape[1:] == (columns,) if columns else 1 in array.shape
    if array.dtype.kind not in "iuf" or not right or (array != np.round(array)).any():
        wanted = f"whole numbers (N, {columns})" if columns else "whole numbers (1, N)"
        raise MarsError(f"{path}: {key} is {array.dtype} {array.shape}, not {wanted}: {COPY}")
    return array.astype(np.int64)


def _check_rows(path: Path, rows: np.ndarray, lowest_pid: int) -> None:
    """Tracklets tile the name list from line 1 on; identities and cameras are in range."""
    first, last, pids, camids = rows.T
    checks = {
        "its frames do not follow the row before": first != np.append(1, last[:-1] + 1),
        "it has no frames": last < first,
        f"identity is not in {lowest_pid}..9999": (pids < lowest_pid) | (pids > 9999),
        "camera is not in 1..6": (camids < 1) | (camids > 6),
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
    names = names if names.dtype.itemsize >= 4 * 12 else names.astype("U12")
    letters = names.view(np.uint32).reshape(len(names), -1)  # one code point a column
    lengths = rows[:, 1] - rows[:, 0] + 1
    good = letters[:, 5] == np.repeat(rows[:, 3] + ord("0"), lengths)
    folders = np.array([folder_name(pid) for pid in rows[:, 2]]).view(np.uint32).reshape(-1, 4)
    for column in range(4):
        good &= letters[:, column] == np.repeat(folders[:, column], lengths)
    for column, letter in ((4, "C"), (6, "T"), (11, "F")):
        good &= letters[:, column] == ord(letter)
    if not good.all():
        line = int(good.argmin())
        row = int(np.searchsorted(rows[:, 1], line + 1))
        wanted = f"{folder_name(rows[row, 2])}C{rows[row, 3]}T0001F001.jpg"
        fault = f"line {line + 1} is {str(names[line])!r}, where tracklet {row + 1} has {wanted}"
        raise MarsError(f"{path}: {fault}: {COPY}")


def folder_name(pid: int) -> str:
    """The folder of an identity and the first four letters of its frames: "0001", "00-1"."""
    return "00-1" if pid == -1 else f"{pid:04d}"


def frame_names(pid: int, camid: int, tracklet: int, count: int) -> list[str]:
    """The frame names of one tracklet: pid -1..9999, camid 1..6, tracklet 1..9999, count >= 1."""
    if not (-1 <= pid <= 9999 and 1 <= camid <= 6 and 1 <= tracklet <= 9999 and count >= 1):
        raise MarsError(f"no MARS name for {pid=} {camid=} {tracklet=} {count=}: renumber them")
    key = f"{folder_name(pid)}C{camid}T{tracklet:04d}"
    return [f"{key}F{frame:03d}.jpg" for frame in range(1, count + 1)]


def query_rows(pids: np.ndarray, camids: np.ndarray, cameras: int = 2) -> np.ndarray:
    """MARS's queries, 0-based: the last row of each person and camera, people of >= 2 cameras.

    cameras=1 adds the people of a single camera, whose queries cannot be scored.
    """
    pairs = pids * 10 + camids
    kinds, from_end = np.unique(pairs[::-1], return_index=True)
    people, seen_by = np.unique(kinds // 10, return_counts=True)
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
            pid = -1 if names[0][:4] == folder_name(-1) else int(names[0][:4])
            rows.append((last + 1, last := last + len(names), pid, int(names[0][5])))
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
