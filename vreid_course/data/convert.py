"""iLIDS-VID, PRID-2011 (multi-shot) and LS-VID become sets in MARS layout."""

import re
from pathlib import Path

import numpy as np
from PIL import Image

from vreid_course.files import one_line

from . import mars as layout
from .mars import PARTS, MarsError, read_text
from .tools import link_or_copy, pictures_in, write_set

FOLDERS = ("sequences", "multi_shot")  # of iLIDS-VID and of PRID-2011
CAMERAS = (("cam1", "cam2"), ("cam_a", "cam_b"))
RULES = {  # of a name of a person: highest number and fewest frames that are taken
    r"person([0-9]{3})": (9999, 1),  # iLIDS-VID
    r"person_([0-9]{4})": (200, 27),  # PRID-2011
}
Tracklet = tuple[int, int, list[Path]]  # person, camera, frames


def convert(src: str | Path, out: str | Path, seed: int = 0) -> None:
    """Turn iLIDS-VID, PRID-2011 (multi-shot) or LS-VID into MARS layout, as JPEG.

    iLIDS-VID and PRID-2011: people of both cameras; of PRID the usual 178, that is persons 1..200
    with at least 27 frames in both. The seed sends half of them to train. Queries are the test
    tracklets of the first camera, so the gallery without queries is the second: the usual protocol.
    LS-VID has its own split and queries: people are numbered on from train to test, what it labels
    -1 is junk, and the seed changes nothing. MarsError, in one line, for anything else.
    """
    src = Path(src).expanduser()
    if lists := [p for p in (src, *src.glob("[!.]*")) if _list(p, "train").is_file()]:
        parts, query = _ls_vid(lists[0])
    else:
        parts, query = _two_cameras(src, seed)
    plan, order = {}, {}
    for part, tracklets in zip(PARTS, parts, strict=True):
        order[part] = sorted(range(len(tracklets)), key=lambda i, t=tracklets: t[i][:2])
        plan[part], numbers = [], {}
        for pid, camid, paths in (tracklets[i] for i in order[part]):
            numbers[pid] = numbers.get(pid, 0) + 1
            names = layout.frame_names(pid, camid, numbers[pid], len(paths))
            plan[part].append(list(zip(paths, names, strict=True)))
    query = np.flatnonzero(np.isin(order["test"], query))
    write_set(out, plan, query, _to_jpeg, {})


def _two_cameras(src: Path, seed: int) -> tuple[list[list[Tracklet]], list[int]]:
    """The tracklets of both parts of iLIDS-VID or PRID, and which of the test part are queries."""
    people = _people_of(src)
    order = np.random.default_rng(seed).permutation(sorted(people)).tolist()
    halves = order[: len(order) // 2], order[len(order) // 2 :]
    parts = [
        [(pid, camid, paths) for pid in half for camid, paths in enumerate(people[pid], 1)]
        for half in halves
    ]
    return parts, [i for i, (_, camid, _) in enumerate(parts[1]) if camid == 1]


def _people_of(src: Path) -> dict[int, list[list[Path]]]:
    """Person number -> the pictures of the first and of the second camera."""
    for root in (
        src,
        *(src / f for f in FOLDERS),
        *(p for f in FOLDERS for p in src.glob(f"*/{f}")),
    ):
        for cameras in CAMERAS:
            people = _people_in([root / camera for camera in cameras])
            if len(people) >= 2:
                return people
    fault = "no people of two cameras in sequences/cam1 and cam2 (iLIDS-VID) or multi_shot/cam_a"
    fault += " and cam_b (PRID-2011), and no list_sequence/list_seq_train.txt (LS-VID)"
    raise MarsError(f"{src}: {fault}: name the unpacked folder")


def _people_in(cameras: list[Path]) -> dict[int, list[list[Path]]]:
    """The people with pictures in both folders, by the rule of the set that their names tell."""
    folders: list[dict[int, Path]] = []
    rules = {}
    for camera in cameras:
        folders.append({})
        for path in sorted(camera.glob("[!.]*")) if camera.is_dir() else ():
            if not path.is_dir() or not path.name.lower().startswith("person"):
                continue
            rule = next((r for r in RULES if re.fullmatch(r, path.name)), None)
            if rule is None:
                fault = "no name of a person (person001 in iLIDS-VID, person_0001 in PRID-2011)"
                raise MarsError(f"{path}: {fault}: rename it, or take it away")
            rules[rule] = path
            folders[-1][int(re.fullmatch(rule, path.name)[1])] = path
    if len(rules) > 1:
        names = " and ".join(path.name for path in rules.values())
        raise MarsError(f"{cameras[0]}: {names} are names of two data sets: take one away")
    last, fewest = RULES[next(iter(rules))] if rules else (0, 1)
    both = [
        number for number in sorted(folders[0].keys() & folders[1].keys()) if 0 < number <= last
    ]
    people = {number: [pictures_in(folder[number]) for folder in folders] for number in both}
    return {n: shots for n, shots in people.items() if min(map(len, shots)) >= fewest}


def _list(root: Path, part: str) -> Path:
    """The list of the tracklets of LS-VID, where its versions have it."""
    name = f"list_sequence/list_seq_{part}.txt"
    return next((p for p in (root / name, root / "info" / name) if p.is_file()), root / name)


def _ls_vid(root: Path) -> tuple[list[list[Tracklet]], list[int]]:
    """The tracklets of both parts of LS-VID in the order of its lists, and its queries."""
    parts, people = [], 0
    for part in PARTS:
        listed = _lines(_list(root, part))
        labels = sorted({label for _, label in listed if label >= 0})
        pids = {label: people + i for i, label in enumerate(labels, 1)} | {-1: -1}
        people += len(labels)
        folders: dict[Path, list[Path]] = {}
        found = []
        for prefix, label in listed:
            paths = _frames_of(root / prefix, folders)
            camera = re.fullmatch(r".*_c?0*([1-9][0-9]*)_[0-9]+", paths[0].stem)
            if not camera:
                fault = "no name like 0001_0002_03_0004.jpg, whose third number is the camera"
                raise MarsError(f"{paths[0]}: {fault}: unpack LS-VID again")
            found.append((pids[label], int(camera[1]), paths))
        parts.append(found)
    return parts, _ls_queries(root, parts[1])


def _lines(path: Path) -> list[tuple[str, int]]:
    """Prefix of the frames and label of the person, of each line of a list of LS-VID."""
    try:
        lines = [line.rsplit(maxsplit=1) for line in read_text(path).splitlines() if line.strip()]
        return [(prefix.replace("\\", "/"), int(label)) for prefix, label in lines]
    except (OSError, ValueError) as error:
        raise MarsError(f"{path}: no list of tracklets ({error}): unpack LS-VID again") from None


def _frames_of(prefix: Path, folders: dict[Path, list[Path]]) -> list[Path]:
    """The frames whose names start with a prefix (or that lie in a folder of that name)."""
    place = prefix if prefix.is_dir() else prefix.parent
    if place not in folders:
        files = place.iterdir() if place.is_dir() else ()
        folders[place] = [p for p in files if p.suffix.lower() in (".jpg", ".jpeg", ".png")]
    start = "" if place == prefix else prefix.name
    rest = [(p.stem[len(start) :], p) for p in folders[place] if p.stem.startswith(start)]
    rest = [(end, p) for end, p in rest if end and p.name[0] != "."]
    whole = not start or start[-1] == "_"  # else 12 would also find the frames of 123
    rest = [(re.search(r"[0-9]+$", end), p) for end, p in rest if whole or not end[0].isdigit()]
    found = [p for number, p in sorted((int(m[0]), p) for m, p in rest if m)]
    if not found:
        raise MarsError(f"{prefix}: no frames of this tracklet: unpack LS-VID again")
    return found


def _ls_queries(root: Path, test: list[Tracklet]) -> list[int]:
    """The rows of the test part that are queries, by test/data/info_test.mat or test/query.npy."""
    files = ("test/data/info_test.mat", "info/data/info_test.mat", "test/query.npy")
    path = next((root / f for f in files if (root / f).is_file()), root / files[0])
    rows = _npy(path) if path.suffix == ".npy" else layout.read_mat(path, "query")
    rows = rows.ravel() - 1
    bad = (rows < 0) | (rows >= len(test))
    if bad.any() or not len(rows):
        raise MarsError(f"{path}: no numbers of queries in 1..{len(test)}: unpack LS-VID again")
    return [int(row) for row in rows if test[row][0] > 0]


def _npy(path: Path) -> np.ndarray:
    """The numbers of a file of NumPy, as int64."""
    try:
        return np.load(path).astype(np.int64)
    except (ValueError, EOFError) as error:
        raise MarsError(f"{path}: no numbers ({one_line(error)}): unpack LS-VID again") from None


def _to_jpeg(source: Path, target: Path) -> None:
    """The picture as JPEG of quality 95; one that is JPEG already as it is."""
    try:
        with Image.open(source) as picture:
            whole, kind = picture.convert("RGB"), picture.format
    except (OSError, SyntaxError, ValueError) as error:
        raise MarsError(f"{source}: not a whole picture ({error}): unpack it again") from error
    if kind == "JPEG":
        link_or_copy(source, target)
    else:
        whole.save(target, quality=95)
