"""Files that are there whole or not at all, folders that can be written, and where things lie."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryFile

DATA = Path(__file__).resolve().parents[1] / "data"


class CourseError(ValueError):
    """Bad input or output; the message is one line that names the place and the cure."""


def one_line(error: Exception) -> str:
    """The message of an error, on one line and not too long."""
    return " ".join(str(error).split())[:150] or type(error).__name__


def writable(folder: Path, cure: str) -> Path:
    """The folder, made where missing; CourseError, with the cure, if it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder) as file:
            file.write(bytes(2**20))  # a full disk still makes empty files
    except OSError as error:
        fault = f"{folder}: cannot write there ({error.strerror or error})"
        raise CourseError(f"{fault}: {cure}") from None
    return folder


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a file, which gets its name only when it is whole; CourseError if not."""
    part = path.with_suffix(f".{os.getpid()}.part")  # two may write the same file at once
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(part)
        os.replace(part, path)
    except (OSError, RuntimeError) as error:
        part.unlink(missing_ok=True)
        cure = "free some space, or name another folder"
        raise CourseError(f"{path}: cannot write ({one_line(error)}): {cure}") from None


def link_or_copy(source: Path, target: Path) -> None:
    """Make `target` the same file as `source`, or a copy where the disk has no links."""
    try:
        os.link(source, target)
    except OSError:  # another disk, or a disk without links
        shutil.copyfile(source, target)


def cache_path(root: Path | None = None) -> Path:
    """The folder of what is drawn or computed once, for what only reads: not made, not tried.

    It is `root`, else what VREID_CACHE names, else data/ of the course's own folder. CourseError
    where the package was installed without that folder.
    """
    named = root or os.environ.get("VREID_CACHE", "")
    if not named and not DATA.is_dir():
        cure = "run `pip install -e .` in the course's own folder, or name one with VREID_CACHE"
        raise CourseError(f"{DATA}: no such folder: {cure}")
    return Path(named or DATA).expanduser()


def cache_folder(root: Path | None = None) -> Path:
    """The same folder, made where missing; CourseError where it cannot be written."""
    return writable(cache_path(root), "name another folder with --out or VREID_CACHE")
