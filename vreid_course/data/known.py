"""A run knows its data: what was computed from one set is not taken for that of another."""

import hashlib
import json
import os
from pathlib import Path

from .mars import Mars, MarsError

WHAT = {
    "root": "are of another folder",
    "names": "are of another list of tracklets",
    "pictures": "are older than the pictures, which changed since",
}


def describe(mars: Mars) -> dict[str, str]:
    """Which set it is: its resolved folder, a hash of its names, a hash that knows its pictures."""
    names, pictures = hashlib.sha256(mars.query.tobytes()), hashlib.sha256()
    for split in (mars.train, mars.test):
        for array in (split.names, split.pids, split.camids, split.first, split.last):
            names.update(array.tobytes())
        pictures.update(split.stamp().encode())
    root = str(mars.root.resolve())
    return {"root": root, "names": names.hexdigest(), "pictures": pictures.hexdigest()}


def same_set(folder: Path, mars: Mars, write: bool = True) -> None:
    """MarsError if what `folder` holds is of another set; an empty folder belongs to this one.

    write: note the set in folder/data.json, where nothing is noted yet.
    """
    path, found = Path(folder) / "data.json", describe(mars)
    if path.is_file():
        try:
            noted = json.loads(path.read_text("utf-8"))
        except ValueError:
            noted = {}
        for key, fault in WHAT.items():
            if noted.get(key) != found[key]:
                first = f"{folder}: its results {fault} ({noted.get('root')}; now {found['root']})"
                raise MarsError(f"{first}: name another folder, or delete this one")
    elif write:
        part = path.with_suffix(f".{os.getpid()}.part")
        part.write_text(json.dumps(found, indent=1), "utf-8")
        part.replace(path)
