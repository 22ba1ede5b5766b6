"""Build, check and cut down sets in MARS layout."""

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
from tqdm import tqdm

from vreid_course.files import link_or_copy

from . import mars as layout
from .attributes import Attributes, read_attributes, write_attributes
from .mars import NO_QUERIES, PARTS, Mars, MarsError, Split

MOST_FAULTS = 10
PICTURES = (".jpg", ".jpeg", ".png", ".bmp")


@contextmanager
def building(out: str | Path, key: str = "") -> Iterator[Path]:
    """A folder to build a set in; it becomes `out` at the end, and is removed on any error.

    key: what it is built of; then a run that was stopped leaves it, for the next with this key to
    go on. MarsError if `out` holds something already or cannot be written.
    """
    out = Path(out).expanduser().resolve()
    part = out.with_name(out.name + ".part")
    plan = part / "plan.txt"
    _begin(out, part, plan, key)
    stays = False
    try:
        yield part
        plan.unlink(missing_ok=True)
        if out.exists():
            out.rmdir()
        part.rename(out)
    except OSError as error:
        raise MarsError(f"{out}: not written ({error}): mend that and start again") from error
    except KeyboardInterrupt:
        stays = bool(key)
        raise
    finally:
        if not stays:
            shutil.rmtree(part, ignore_errors=True)


def _begin(out: Path, part: Path, plan: Path, key: str) -> None:
    """Make the folder `part`, or take what a run with the same key has left there."""
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise MarsError(f"{out}: is there already: name a new folder")
        if key and plan.is_file() and plan.read_text("utf-8") != key:
            shutil.rmtree(part)  # of other videos, boxes or settings
        part.mkdir(parents=True, exist_ok=bool(key and plan.is_file()))
        if key:
            plan.write_text(key, "utf-8", errors="backslashreplace")
    except FileExistsError:
        fault = "left by a run that was killed, or in use by another: delete it and try again"
        raise MarsError(f"{part}: {fault}") from None
    except OSError as error:
        raise MarsError(f"{out}: cannot be made ({error.strerror}): name another folder") from error


def pictures_in(folder: Path) -> list[Path]:
    """The pictures of a folder, by the number at the end of their names, which must not have gaps.

    Other files, and those that start with a dot, are skipped. MarsError for a picture without a
    number, and for a number that stands twice.
    """
    found: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.suffix.lower() not in PICTURES:
            continue
        number = re.search(r"[0-9]+$", path.stem)
        if not number:
            raise MarsError(f"{path}: ends in no frame number: rename it, or take it away")
        if (other := found.setdefault(int(number[0]), path)) != path:
            fault = f"the same frame as {other.name}: take one of them away"
            raise MarsError(f"{path}: {fault}")
    return [found[number] for number in sorted(found)]


def check(root: str | Path, frames: bool = False) -> list[str]:
    """Print the counts of a set, or its first faults (at most 10, which are returned too).

    Verifies the index and that every frame file is there; `frames` opens every frame as well.
    """
    root, faults = Path(root).expanduser(), []

    def attempt(read: Callable, *arguments):
        try:
            return read(*arguments)
        except MarsError as error:
            faults.append(str(error))

    train, test = (attempt(layout.read_split, root, part) for part in PARTS)
    query = test and attempt(layout.read_query, root, test)
    if train and test and len(both := np.intersect1d(train.pids, test.pids)):
        faults.append(f"{root}: identities {both[:5]} stand in train and in test: renumber")
    if query is not None and not len(query):
        faults.append(f"{root / 'info' / 'query_IDX.mat'}: {NO_QUERIES}")
    for split in filter(None, (train, test)):
        faults += islice(_frame_faults(split, frames), MOST_FAULTS)
    faults = list(dict.fromkeys(faults))[:MOST_FAULTS]
    lines = [f"fault: {fault}" for fault in faults] or counts(Mars(root, train, test, query))
    print("\n".join(lines))
    return faults


def _frame_faults(split: Split, open_them: bool) -> Iterator[str]:
    """One line for each frame that is missing or, if they are opened, that cannot be read."""

    def faults(i: int) -> list[str]:
        paths, found, sizes = split.paths(i), [], set()
        if not open_them:
            return [f"{p}: {fault}" for p in paths if (fault := layout.frame_fault(p))]
        for path in paths:
            try:
                sizes.add(layout.read_frame(path).shape)
            except MarsError as error:
                found.append(str(error))
        if len(sizes) > 1:
            found.append(
                f"{paths[0].parent}: {split.key(i)} has frames of several sizes: resize it"
            )
        return found

    with ThreadPool() as pool:
        found = pool.imap(faults, range(len(split)), chunksize=8)
        for lines in tqdm(found, split.folder.name, len(split), unit="tracklet", delay=1):
            yield from lines


def counts(mars: Mars) -> list[str]:
    """The table of identities, tracklets, frames, lengths and cameras, line by line."""
    test = mars.test
    groups = {
        "train": (mars.train, mars.train.pids > 0),
        "test": (test, test.pids > -2),
        "- people": (test, test.pids > 0),
        "- distractors": (test, test.pids == 0),
        "- junk": (test, test.pids == -1),
        "query": (test, mars.query),
    }
    form = "{:14}{:>6}{:>10}{:>10}   {:26}{}"
    last = max(6, test.camids.max(), mars.train.camids.max(initial=0))
    title = ("", "ids", "tracklets", "frames", "min / median / mean / max")
    lines = [form.format(*title, f"tracklets of camera 1..{last}")]
    for name, (split, rows) in groups.items():
        pids, lengths, spread = split.pids[rows], split.lengths[rows], ""
        if len(pids):
            spread = f"{lengths.min()} / {np.median(lengths):g} / {lengths.mean():.2f}"
            spread += f" / {lengths.max()}"
        ids = len(np.unique(pids[pids > 0])) or "-"
        cameras = np.bincount(split.camids[rows], minlength=last + 1)[1:].tolist()
        lines.append(form.format(name, ids, len(pids), lengths.sum(), spread, cameras))
    everyone = np.ones(len(test), bool)
    others = ~np.isin(np.arange(len(test)), mars.query)
    return lines + [
        f"total frames: {mars.train.lengths.sum() + test.lengths.sum()}",
        f"queries without a match in another camera: {_unmatched(mars, everyone)};"
        f" with the queries left out of the gallery: {_unmatched(mars, others)}",
    ]


def _unmatched(mars: Mars, gallery: np.ndarray) -> int:
    """How many queries find no tracklet of their person from another camera in the gallery."""
    pids, camids = mars.test.pids, mars.test.camids
    return sum(
        not (gallery & (pids == pids[row]) & (camids != camids[row])).any() for row in mars.query
    )


def subset(src: str | Path, out: str | Path, ids: int, seed: int = 0) -> None:
    """Cut `ids` people of train and `ids` of test, drawn by the seed, out of a set.

    Junk and distractors are kept in proportion, the annotation is cut likewise, identities keep
    their numbers. Frames are hard links where the disk allows them, else copies. MarsError if
    there are fewer people, or if `out` holds something.
    """
    mars, rng = layout.read_mars(src), np.random.default_rng(seed)
    chosen, plan = [], {}
    for part, split in zip(PARTS, (mars.train, mars.test), strict=True):
        people = np.unique(split.pids[split.pids > 0])
        if len(people) and not 1 <= ids <= len(people):
            raise MarsError(f"{split.folder}: has {len(people)} people: ask for 1..{len(people)}")
        chosen += rng.permutation(people)[:ids].tolist()
        rows = [np.flatnonzero(np.isin(split.pids, chosen))]
        for pid in (-1, 0):
            others = np.flatnonzero(split.pids == pid)
            share = np.ceil(len(others) * ids / max(len(people), ids))
            rows.append(rng.permutation(others)[: int(share)])
        rows = np.sort(np.concatenate(rows))
        plan[part] = [[(path, path.name) for path in split.paths(row)] for row in rows]
    annotations = {}
    for path in mars.root.glob("[!.]*_attributes.csv"):
        whole = read_attributes(path)
        annotations[path.name] = whole.select(np.isin(whole.pids, chosen))
    query = np.flatnonzero(np.isin(rows, mars.query))
    write_set(out, plan, query, link_or_copy, annotations)


def write_set(
    out: str | Path,
    plan: dict[str, list[list[tuple[Path, str]]]],
    query: np.ndarray,
    save: Callable[[Path, Path], None],
    annotations: dict[str, Attributes],
) -> None:
    """Build a set from, for each part and tracklet, the source and MARS name of its frames."""
    with building(out) as new:
        for part, tracklets in plan.items():
            for source, name in (pair for pairs in tqdm(tracklets, part) for pair in pairs):
                folder = new / f"bbox_{part}" / name[:4]
                folder.mkdir(parents=True, exist_ok=True)
                save(source, folder / name)
        names = [[[name for _, name in pairs] for pairs in plan[part]] for part in PARTS]
        layout.write_info(new, *names, query=query)
        for file, annotation in annotations.items():
            write_attributes(new / file, annotation)
