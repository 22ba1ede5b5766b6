"""Check a set in MARS layout, cut a smaller one out of it, convert iLIDS-VID and PRID-2011."""

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from vreid_course.files import link_or_copy

from . import mars as layout
from .attributes import Attributes, read_attributes, write_attributes
from .mars import PARTS, Mars, MarsError, Split

MOST_FAULTS = 10
SOURCES = (  # folder, its cameras, highest person number and fewest frames that are taken
    ("sequences", ("cam1", "cam2"), 9999, 1),  # iLIDS-VID
    ("multi_shot", ("cam_a", "cam_b"), 200, 27),  # PRID-2011
)


@contextmanager
def building(out: str | Path) -> Iterator[Path]:
    """A folder to build a set in; it becomes `out` at the end, and is removed on any error.

    MarsError if `out` holds something already or cannot be written.
    """
    out = Path(out).expanduser().resolve()
    part = out.with_name(out.name + ".part")
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise MarsError(f"{out}: is there already: name a new folder")
        part.mkdir(parents=True)
    except FileExistsError:
        fault = "left by a run that was killed, or in use by another: delete it and try again"
        raise MarsError(f"{part}: {fault}") from None
    except OSError as error:
        raise MarsError(f"{out}: cannot be made ({error.strerror}): name another folder") from error
    try:
        yield part
        if out.exists():
            out.rmdir()
        part.rename(out)
    except OSError as error:
        raise MarsError(f"{out}: not written ({error}): mend that and start again") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


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
            return [f"{p}: {fault}: copy it again" for p in paths if (fault := _no_frame(p))]
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


def _no_frame(path: Path) -> str:
    try:
        return "" if path.stat().st_size else "an empty frame"
    except OSError:
        return "no such frame"


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
    spread = "min / median / mean / max"
    lines = [form.format("", "ids", "tracklets", "frames", spread, "tracklets of camera 1..6")]
    for name, (split, rows) in groups.items():
        pids, lengths, spread = split.pids[rows], split.lengths[rows], ""
        if len(pids):
            spread = f"{lengths.min()} / {np.median(lengths):g} / {lengths.mean():.2f}"
            spread += f" / {lengths.max()}"
        ids = len(np.unique(pids[pids > 0])) or "-"
        cameras = np.bincount(split.camids[rows], minlength=7)[1:].tolist()
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
    for path in mars.root.glob("*_attributes.csv"):
        whole = read_attributes(path)
        annotations[path.name] = whole.select(np.isin(whole.pids, chosen))
    query = np.flatnonzero(np.isin(rows, mars.query))
    _write_set(out, plan, query, link_or_copy, annotations)


def convert(src: str | Path, out: str | Path, seed: int = 0) -> None:
    """Turn iLIDS-VID or PRID-2011 (multi-shot) into MARS layout: frames as JPEG of quality 95.

    People of both cameras only; of PRID the usual 178, that is persons 1..200 with at least 27
    frames in both. The seed sends half of them to train. Queries are the test tracklets of the
    first camera, so the gallery without queries is the second camera: the usual protocol.
    """
    people = _people_of(Path(src).expanduser())
    order = np.random.default_rng(seed).permutation(sorted(people)).tolist()
    plan = {}
    for part, pids in zip(PARTS, (order[: len(order) // 2], order[len(order) // 2 :]), strict=True):
        plan[part] = [
            list(zip(paths, layout.frame_names(pid, camid, camid, len(paths)), strict=True))
            for pid in sorted(pids)
            for camid, paths in enumerate(people[pid], start=1)
        ]
    _write_set(out, plan, np.arange(0, len(plan["test"]), 2), _to_jpeg, {})


def _people_of(src: Path) -> dict[int, list[list[Path]]]:
    """Person number -> the pictures of the first and of the second camera."""
    for folder, cameras, last, fewest in SOURCES:
        for root in (src, src / folder, *src.glob(f"*/{folder}")):
            people = {}
            for person in sorted(root.glob(f"{cameras[0]}/person*")):
                number = int(re.sub(r"\D", "", person.name) or 0)
                shots = [sorted(root.glob(f"{c}/{person.name}/*.png")) for c in cameras]
                if 1 <= number <= last and min(map(len, shots)) >= fewest:
                    people[number] = shots
            if len(people) >= 2:
                return people
    fault = "no people in sequences/cam1 and cam2 (iLIDS-VID) or multi_shot/cam_a and cam_b (PRID)"
    raise MarsError(f"{src}: {fault}: name the unpacked folder")


def _write_set(
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


def _to_jpeg(source: Path, target: Path) -> None:
    try:
        picture = Image.open(source).convert("RGB")
    except OSError as error:
        raise MarsError(f"{source}: not a whole picture ({error}): unpack it again") from error
    picture.save(target, quality=95)
