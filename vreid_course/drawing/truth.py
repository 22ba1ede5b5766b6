"""The truth about a drawn set: what every pixel and every frame of mini-MARS shows.

One file a part, `truth_train.npz` and `truth_test.npz`: an ordinary NumPy archive with the arrays
"group", "kind", "cadence" (one row a tracklet) and, for each tracklet such as "0001C1T0001",
"KEY/parts", "KEY/occluder" (packed bits), "KEY/frames", "KEY/clean_at" and "KEY/clean" (JPEGs).
"""

import zipfile
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from vreid_course.data.mars import MarsError, Split

from .render import PARTS
from .tracklets import Drawn


@dataclass(frozen=True)
class FrameTruth:
    """What is known of the T frames of a tracklet, each (T,) float32.

    view: degrees, 0 front, 90 walking to the right, 180 back. phase: gait cycle, 0..1. occluded:
    hidden share of the person, 0..1. right, up: metres the box is off; zoom: log of its scale.
    switched: 1 where another person is shown.
    """

    view: np.ndarray
    phase: np.ndarray
    occluded: np.ndarray
    right: np.ndarray
    up: np.ndarray
    zoom: np.ndarray
    switched: np.ndarray


class Truth:
    """The truth of one split; tracklets are numbered as in the split.

    kind (N,): "", "accessory" or "twin"; group (N,): number of the hard group, -1 for none;
    cadence (N,): gait cycles per frame, nan where there is no person. MarsError without truth.
    """

    def __init__(self, split: Split):
        name = split.folder.name.replace("bbox_", "truth_") + ".npz"
        path = split.folder.parent / name
        if not path.is_file():
            raise MarsError(f"{path}: no such file: only drawn sets have a truth, use mini-MARS")
        try:
            self.split, self._file = split, np.load(path)  # arrays are read when asked for
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            cure = f"delete {path.parent}, it is drawn again"
            raise MarsError(f"{path}: broken ({error}): {cure}") from None
        rows = {key: i for i, key in enumerate(self._file["keys"])}
        mine = np.array([rows[split.key(i)] for i in range(len(split))], int)
        self.kind, self.group, self.cadence = (
            self._file[column][mine] for column in ("kind", "group", "cadence")
        )

    def _get(self, i: int, what: str) -> np.ndarray:
        return self._file[f"{self.split.key(i)}/{what}"]

    def parts(self, i: int) -> np.ndarray:
        """Part labels (T, H, W) uint8 of the whole person, hidden or not: see `render.PARTS`."""
        return self._get(i, "parts")

    def occluder(self, i: int) -> np.ndarray:
        """Where something stands in front, bool (T, H, W)."""
        shape = self._get(i, "shape")
        return np.unpackbits(self._get(i, "occluder"), count=shape.prod()).reshape(shape) > 0

    def person(self, i: int, visible: bool = True) -> np.ndarray:
        """The person's mask, bool (T, H, W): what can be seen of it, or all of it."""
        whole = self.parts(i) > 0
        return whole & ~self.occluder(i) if visible else whole

    def visible(self, i: int, part: str) -> np.ndarray:
        """Pixels of a named part that can be seen in each frame, (T,) int64."""
        mask = (self.parts(i) == PARTS.index(part)) & ~self.occluder(i)
        return mask.sum((1, 2))

    def frames(self, i: int) -> FrameTruth:
        """View, phase, occlusion, jitter and switch of every frame."""
        return FrameTruth(*self._get(i, "frames"))

    def clean(self, i: int) -> np.ndarray:
        """The frames of tracklet i with nothing in front: uint8 (T, H, W, 3)."""
        frames = self.split.frames(i)
        blob, at = self._get(i, "clean"), self._get(i, "clean_at")
        for frame, start, stop in at:
            with Image.open(BytesIO(blob[start:stop].tobytes())) as picture:
                frames[frame] = np.asarray(picture)
        return frames


def pack(key: str, drawn: Drawn) -> dict[str, np.ndarray]:
    """The arrays that `Truth` reads for one tracklet."""
    blob = b"".join(drawn.clean.values())
    ends = np.cumsum([len(jpeg) for jpeg in drawn.clean.values()], dtype=np.int64)
    at = np.stack([np.array(list(drawn.clean), np.int64), np.r_[0, ends][:-1], ends], 1)
    columns = (drawn.view, drawn.phase, drawn.occluded, *drawn.jitter.T, drawn.switched)
    return {
        f"{key}/parts": drawn.parts,
        f"{key}/shape": np.array(drawn.parts.shape),
        f"{key}/occluder": np.packbits(drawn.occluder),
        f"{key}/frames": np.stack(columns).astype(np.float32),
        f"{key}/clean_at": at,
        f"{key}/clean": np.frombuffer(blob, np.uint8),
    }


def write_archive(path: Path, arrays: dict[str, np.ndarray], parts: list[Path] = ()) -> None:
    """Write `arrays` and all arrays of the archives `parts` as one; the same bytes every time."""
    with zipfile.ZipFile(path, "w") as out:
        for part in parts:
            with zipfile.ZipFile(part) as source:
                for info in source.infolist():
                    out.writestr(zipfile.ZipInfo(info.filename), source.read(info), 8, 6)
        for name, array in arrays.items():
            stream = BytesIO()
            np.lib.format.write_array(stream, np.ascontiguousarray(array), allow_pickle=False)
            out.writestr(zipfile.ZipInfo(name + ".npy"), stream.getvalue(), 8, 6)
