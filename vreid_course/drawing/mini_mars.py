"""mini-MARS: a set in MARS layout, drawn from a seed, with the truth beside it.

`mini_mars()` gives the default set, drawn on first use and cached; `draw` makes any other one.
"""

import errno
import json
import os
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from multiprocessing import current_process, get_context, parent_process
from pathlib import Path
from threading import Thread
from zipfile import is_zipfile

import numpy as np
from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from vreid_course.data.attributes import ATTRIBUTES, Attributes, write_attributes
from vreid_course.data.mars import (
    KEY,
    Mars,
    MarsError,
    folder_name,
    frame_names,
    query_rows,
    read_mars,
    write_info,
)
from vreid_course.files import cache_folder, cache_path

from .figures import Person, draw_person, population, stream
from .tracklets import DIALS, Change, Drawer, Drawn, Track
from .truth import pack, write_archive

VERSION = 1  # of the drawing: a new number means new pictures
ATTRIBUTES_CSV = "mini_mars_attributes.csv"
GUARD = 'put what it does under `if __name__ == "__main__":`'


@dataclass(frozen=True)
class MiniMars:
    """What is drawn: people, seed, picture height (128 or 256 rows), and how hard it is.

    hard: share of the people who are gait twins; as many are in accessory groups. long: number of
    test people whose tracklets have 2-6 and 200-900 frames in turn. dials: see `tracklets.DIALS`.
    """

    train_ids: int = 60
    test_ids: int = 40
    seed: int = 0
    height: int = 128
    frames: tuple[int, int] = (2, 60)
    hard: float = 0.2
    long: int = 0
    dials: dict[str, float] = field(default_factory=dict)

    def __post_init__(self):
        if self.height not in (128, 256):
            raise MarsError(f"height {self.height}: choose 128 or 256 rows")
        for name, value in self.dials.items():
            if name not in DIALS or not 0 <= value <= 1:
                raise MarsError(f"dial {name}={value}: choose 0..1 for one of {', '.join(DIALS)}")
        if max(self.train_ids, self.test_ids) > 4999 or self.test_ids < 1 or self.train_ids < 0:
            raise MarsError(
                f"{self.train_ids} + {self.test_ids} people: at most 4999 each, 1 to test"
            )

    @property
    def name(self) -> str:
        """A folder name that tells sets apart: equal settings give equal names."""
        settings = json.dumps([VERSION, asdict(self)], sort_keys=True)
        return f"mini_mars_{self.height}_{sha256(settings.encode()).hexdigest()[:8]}"


#: What goes wrong on the street: more than by default. Set by oracles (`studies.gates`).
STREET_DIALS = {
    "occlusion": 1, "crowd": 1, "jitter": 1, "blur": 1, "switch": 0.6, "camera": 0.7,
    "cross": 0.7, "slip": 1,
}  # fmt: skip
#: The proving ground: few look-alikes, and people enough to tell small differences apart.
STREET = MiniMars(350, 150, hard=0.1, dials=STREET_DIALS)


def plan(config: MiniMars) -> list[Track]:
    """Return all tracklets to be drawn, in MARS's order: the train part, then the test part."""
    train, test = (
        population(config.seed, np.arange(n) * 2 + odd, config.hard, first)
        for n, odd, first in ((config.train_ids, 1, 0), (config.test_ids, 2, 10_000))
    )
    tracks = []
    for pid, person in train.items():
        tracks += _person_tracks(config, "bbox_train", pid, person, single=False)
    tracks += _others(config, -1, list(test.values())) + _others(config, 0, [])
    for i, (pid, person) in enumerate(test.items()):
        tracks += _person_tracks(config, "bbox_test", pid, person, i % 20 == 19, i < config.long)
    return tracks


def _person_tracks(
    config: MiniMars, folder: str, pid: int, person: Person, single: bool, long: bool = False
) -> list[Track]:
    rng = stream(config.seed, "plan", folder, pid)
    count = int(rng.choice((4, 5, 6), p=(0.9, 0.08, 0.02)))
    seen = 1 if single else int(rng.choice((2, 3), p=(0.6, 0.4)))
    cameras = rng.choice(6, seen, replace=False) + 1
    where = np.sort(np.concatenate([cameras, rng.choice(cameras, count - seen)]))
    low, high = config.frames
    low = min(max(low, 32), high) if person.group[0] == "twin" else low
    usual = rng.triangular(8, 28, 41, count)  # most; some are very short, some long
    extreme = np.where(
        rng.random(count) < 0.65, rng.uniform(2, 8, count), rng.uniform(42, 60, count)
    )
    lengths = np.where(rng.random(count) < 0.12, extreme, usual).round().astype(int)
    lengths = np.clip(lengths, low, high)
    if person.group[0] == "twin":
        lengths = np.minimum(lengths + rng.integers(0, 9, count), high)
    if long:
        lengths = np.where(
            np.arange(count) % 2, rng.integers(2, 7, count), rng.integers(200, 901, count)
        )
    return [
        Track(folder, pid, int(camid), i + 1, int(length), person)
        for i, (camid, length) in enumerate(zip(where, lengths, strict=True))
    ]


def _others(config: MiniMars, pid: int, people: list[Person]) -> list[Track]:
    """Return junk (pid -1: boxes that slip off test people) or distractors (pid 0: strangers)."""
    rng = stream(config.seed, "plan", pid)
    count = max(2, config.test_ids * (3 if pid else 6) // 10)
    where = np.sort(rng.integers(1, 7, count))
    lengths = np.clip(
        np.round(rng.lognormal(np.log(13), 0.5, count)).astype(int), 2, config.frames[1]
    )
    tracks = []
    for i in range(count):
        who = people[rng.integers(len(people))] if people else None
        if pid == 0 and i % 3:  # the third ones are boxes around no person at all
            who = draw_person(config.seed, 3 * 10**8 + i)
        tracks.append(Track("bbox_test", pid, int(where[i]), i + 1, int(lengths[i]), who))
    return tracks


def mini_mars(config: MiniMars | None = None, root: Path | None = None) -> Mars:
    """Read mini-MARS; draw it first where it is not there yet (about a minute for the default).

    root: the folder that holds such sets; default `data/`, or what VREID_CACHE names. MarsError
    if that folder cannot be written.
    """
    config = config or MiniMars()
    out = draw(config, cache_path(root) / config.name)
    try:
        return read_mars(out)
    except MarsError as error:
        raise MarsError(f"{error}; or delete {out}, it is drawn again") from None


def _stop_without_guard() -> None:
    if getattr(current_process(), "_inheriting", False):  # a worker that is importing the script
        sys.exit(f"error: drawing starts processes, which run the script again: {GUARD}")


def redraw(config: MiniMars, key: str, change: Change) -> tuple[np.ndarray, Drawn]:
    """Draw one tracklet of a set again, with something changed: an experiment on one cause.

    key: the tracklet's, such as "0002C1T0001" (`Split.key`). Returns its frames uint8 (T, H, W, 3),
    encoded and decoded as those of the set, and the truth about them; with `Change()` both are the
    set's own. ValueError: no such tracklet.
    """
    track = track_of(config, key)
    drawn = Drawer(config.seed, config.height, DIALS | config.dials, change).draw(track)
    return drawn.frames(), drawn


def track_of(config: MiniMars, key: str) -> Track:
    """The plan of a tracklet of a set, by its key (`Split.key`). ValueError: no such tracklet."""
    tracks = {_key(track): track for track in plan(config)}
    if key not in tracks:
        raise ValueError(f"{key!r} is no tracklet of {config.name}: see `Split.key`")
    return tracks[key]


def _names(track: Track) -> list[str]:
    return frame_names(track.pid, track.camid, track.number, track.length)


def _key(track: Track) -> str:
    return KEY.match(frame_names(track.pid, track.camid, track.number, 1)[0])[0]


def draw(config: MiniMars, out: Path, workers: int | None = None) -> Path:
    """Draw a set into the folder `out`, unless it is there; return `out`.

    It is drawn in `out`.partial and renamed when complete; a drawing that was stopped goes on where
    it stopped. Two processes that want the same set draw it once. MarsError if the disk is full.
    """
    out, partial = Path(out), Path(out).with_name(Path(out).name + ".partial")
    _stop_without_guard()
    try:
        if not out.exists():
            cache_folder(out.parent)
            lock = FileLock(out.with_name(out.name + ".lock"))
            try:
                held = lock.acquire(timeout=1)
            except Timeout:
                print(f"{out}: another process is drawing it: waiting", flush=True)
                held = lock.acquire()
            with held:
                if not out.exists():
                    _draw_frames(config, partial, workers or min(os.cpu_count() or 1, 8))
                    _finish(config, partial)
                    partial.rename(out)
    except BrokenProcessPool:
        fault = "a process that draws ended, for want of memory or of a guard in the script"
        cure = f"run again, it goes on where it stopped; in a script {GUARD}"
        raise MarsError(f"{partial}: {fault}: {cure}") from None
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        cure = "free some space and run again: it goes on where it stopped"
        cure = cure if full else "name another folder with --out or VREID_CACHE"
        raise MarsError(f"{partial}: {error.strerror or error}: {cure}") from error
    settings = out / "settings.json"
    if not settings.is_file() or settings.read_text() != _settings(config):
        raise MarsError(f"{out}: holds something else: name a new folder, or delete it")
    return out


def _settings(config: MiniMars) -> str:
    return json.dumps({"version": VERSION, **asdict(config)}, indent=1)


def _draw_frames(config: MiniMars, partial: Path, workers: int) -> None:
    """Draw every person whose part file is missing; a part file is written when all else is."""
    partial.mkdir(exist_ok=True)
    settings = partial / "settings.json"
    if settings.is_file() and settings.read_text() != _settings(config):
        raise MarsError(f"{partial}: left from other settings: delete it and run again")
    settings.write_text(_settings(config))
    (partial / "parts").mkdir(exist_ok=True)
    tasks: dict[Path, list[Track]] = {}
    for track in plan(config):
        part = partial / "parts" / f"{track.folder}-{folder_name(track.pid)}.npz"
        tasks.setdefault(part, []).append(track)
    total = sum(track.length for tracks in tasks.values() for track in tracks)
    todo = {part: tracks for part, tracks in tasks.items() if not is_zipfile(part)}
    left = sum(track.length for tracks in todo.values() for track in tracks)
    bar = tqdm(total=total, initial=total - left, unit="frame", desc="drawing mini-MARS",
               disable=left == 0, file=sys.stdout)  # fmt: skip
    start = (config.seed, config.height, DIALS | config.dials)
    with bar, ProcessPoolExecutor(workers, get_context("spawn"), _start, start) as pool:
        jobs = {pool.submit(_draw_person, partial, part, ts): ts for part, ts in todo.items()}
        try:
            for job in as_completed(jobs):
                job.result()
                bar.update(sum(track.length for track in jobs[job]))
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


_drawer: Drawer  # one a worker process


def _start(seed: int, height: int, dials: dict[str, float]) -> None:
    global _drawer
    end_with_parent()
    _drawer = Drawer(seed, height, dials)


def end_with_parent() -> None:
    """In a process of a pool: end when its parent does, else it would go on and wait for ever."""

    def watch() -> None:
        parent_process().join()
        os._exit(1)

    Thread(target=watch, daemon=True).start()


def _draw_person(root: Path, part: Path, tracks: list[Track]) -> None:
    arrays = {}
    for track in tracks:
        drawn = _drawer.draw(track)
        names = _names(track)
        folder = root / track.folder / names[0][:4]
        folder.mkdir(parents=True, exist_ok=True)
        for name, jpeg in zip(names, drawn.jpegs, strict=True):
            (folder / name).write_bytes(jpeg)
        arrays |= pack(_key(track), drawn)
    write_archive(part.with_suffix(".tmp"), arrays)
    part.with_suffix(".tmp").replace(part)


def _finish(config: MiniMars, partial: Path) -> None:
    """Write index, attributes and truth, and drop the part files."""
    tracks = {f: [t for t in plan(config) if t.folder == f] for f in ("bbox_train", "bbox_test")}
    names = {f: [_names(track) for track in ts] for f, ts in tracks.items()}
    parts = partial / "parts"
    for folder, ts in tracks.items():
        (partial / folder).mkdir(exist_ok=True)
        files = sorted(parts.glob(f"{folder}-*.npz"))
        keys = np.array([_key(track) for track in ts], dtype="U11")
        rows = {"keys": keys, **_tracklet_columns(ts)}
        write_archive(partial / f"{folder.replace('bbox', 'truth')}.npz", rows, files)
    _write_attributes(partial / ATTRIBUTES_CSV, sum(tracks.values(), []))
    pids, camids = (
        np.array([getattr(t, c) for t in tracks["bbox_test"]]) for c in ("pid", "camid")
    )
    # Unlike MARS also people of a single camera are queries: some queries cannot be scored.
    query = query_rows(pids, camids, cameras=1)
    write_info(partial, names["bbox_train"], names["bbox_test"], query)
    for file in parts.iterdir():
        file.unlink()
    parts.rmdir()


def _tracklet_columns(tracks: list[Track]) -> dict[str, np.ndarray]:
    people = [track.person if track.pid > 0 else None for track in tracks]
    return {
        "kind": np.array([p.group[0] if p else "" for p in people], dtype="U9"),
        "group": np.array([p.group[1] if p and p.group[0] else -1 for p in people], np.int64),
        "cadence": np.array([p.cadence if p else np.nan for p in people], np.float64),
    }


def _write_attributes(path: Path, tracks: list[Track]) -> None:
    real = [track for track in tracks if track.pid > 0]
    keys = (np.array([getattr(t, k) for t in real], np.int64) for k in ("pid", "camid", "number"))
    values = {c: np.array([t.person.attributes[c] for t in real], np.int64) for c in ATTRIBUTES}
    write_attributes(path, Attributes(*keys, values))
