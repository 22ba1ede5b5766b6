"""Acceptance tests of the drawn set: that what it claims to control is in the pixels."""

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import cache
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from filelock import FileLock
from scipy.io import loadmat

from vreid_course.data.attributes import read_attributes
from vreid_course.data.mars import Mars, MarsError, read_mars
from vreid_course.drawing import mini_mars as module
from vreid_course.drawing.figures import CADENCES
from vreid_course.drawing.mini_mars import (
    ATTRIBUTES_CSV,
    STREET_DIALS,
    MiniMars,
    draw,
    mini_mars,
    plan,
    redraw,
)
from vreid_course.drawing.render import FAR, PARTS, Cone, _hit
from vreid_course.drawing.tracklets import Change, Thing
from vreid_course.drawing.truth import Truth
from vreid_course.histogram import colour_histograms
from vreid_course.metrics import evaluate

CALM = {name: 0.0 for name in ("camera", "occlusion", "crowd", "jitter", "blur", "switch")}
TINY = MiniMars(train_ids=3, test_ids=2, frames=(4, 6), hard=0.0)


@cache
def drawn(root: Path, **settings) -> Mars:
    settings["dials"] = dict(settings.get("dials", ()))
    return mini_mars(MiniMars(**settings), root)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("drawn")


@pytest.fixture(scope="module")
def calm(root) -> Mars:
    """40 test people, seen by equal cameras, nothing in the way."""
    return drawn(root, train_ids=0, frames=(4, 6), dials=tuple(CALM.items()))


@pytest.fixture(scope="module")
def rough(root) -> Mars:
    """Something passes in front in most tracklets; else as calm."""
    dials = CALM | {"occlusion": 1.0}
    return drawn(
        root, train_ids=0, frames=(10, 14), hard=0.0, test_ids=24, dials=tuple(dials.items())
    )


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def score(mars: Mars, features: np.ndarray) -> np.ndarray:
    """AP of every query, queries merged into the gallery as MARS does."""
    test, query = mars.test, mars.query
    rest = np.setdiff1d(np.arange(len(test)), query)
    part = [
        x for rows in (query, rest) for x in (features[rows], test.pids[rows], test.camids[rows])
    ]
    return evaluate(*part, merge_queries=True).ap


@pytest.mark.parametrize("ends", [(0.3, 0.1), (0.1, 0.3), (0.2, 0.2)])
def test_a_ray_meets_the_cone_where_the_nearest_of_many_spheres_is(ends):
    """A rounded cone is what a sphere sweeps: here two thousand of them, each met by itself."""
    a, b = np.array([[-0.4, -0.2, 0.3]]), np.array([[0.5, 0.3, -0.1]])
    px, py = np.linspace(-1, 1, 41)[None, None, :], np.linspace(-0.8, 0.8, 33)[None, :, None]
    z, u = _hit(Cone(1, a, b, *ends), np.eye(3)[None], px, py)
    share = np.linspace(0, 1, 2001)[:, None, None]
    x, y, deep = ((a[0, i] + share * (b - a)[0, i]) for i in range(3))
    room = (ends[0] + share * (ends[1] - ends[0])) ** 2 - (px - x) ** 2 - (py - y) ** 2
    swept = np.where(room > 0, deep - np.sqrt(np.maximum(room, 0)), FAR)
    nearest, inside = swept.min(0), (room > 0.004).any(0)  # at the rim a root is steep
    assert (z[0] >= FAR / 2)[~(room > -1e-4).any(0)].all() and inside.sum() > 150
    np.testing.assert_allclose(z[0][inside], nearest[inside], atol=2e-3)
    np.testing.assert_allclose(u[0][inside], share[swept.argmin(0), 0, 0][inside], atol=0.05)


@pytest.mark.slow
def test_same_seed_same_bytes(tmp_path):
    one = draw(TINY, tmp_path / "one", workers=1)
    two = draw(TINY, tmp_path / "two", workers=2)
    assert files(one) == files(two)
    other = draw(MiniMars(3, 2, seed=1, frames=(4, 6), hard=0.0), tmp_path / "other", workers=1)
    assert files(one) != files(other)


def test_a_dial_changes_its_own_factor_only():
    still, shaken = (plan(MiniMars(dials={"jitter": dial})) for dial in (0.0, 1.0))
    assert [(t.pid, t.camid, t.length) for t in still] == [
        (t.pid, t.camid, t.length) for t in shaken
    ]


def test_default_set_is_as_promised():
    tracks = plan(MiniMars())
    people = {part: {t.pid for t in tracks if t.folder == part and t.pid > 0}
              for part in ("bbox_train", "bbox_test")}  # fmt: skip
    assert len(people["bbox_train"]) == 60 and len(people["bbox_test"]) == 40
    assert not people["bbox_train"] & people["bbox_test"]
    assert {t.pid for t in tracks} > {-1, 0} and {t.camid for t in tracks} == set(range(1, 7))
    lengths = np.array([t.length for t in tracks if t.pid > 0])
    assert lengths.min() >= 2 and lengths.max() <= 60 and 26 <= np.median(lengths) <= 34
    each = np.unique([t.pid for t in tracks if t.pid > 0], return_counts=True)[1]
    assert each.min() >= 4 and each.max() <= 6
    twins = [t for t in tracks if t.person and t.person.group[0] == "twin" and t.pid > 0]
    assert min(t.length for t in twins) >= 32
    assert {t.person.cadence for t in twins} == set(CADENCES)


def test_scipy_and_the_name_lists_read_it_unchanged(calm):
    info = calm.root / "info"
    tracks = loadmat(info / "tracks_test_info.mat")["track_test_info"]
    names = (info / "test_name.txt").read_text().split()
    query = loadmat(info / "query_IDX.mat")["query_IDX"]
    assert tracks.dtype == np.int32 and query.dtype == np.uint16 and len(query) == 1
    for first, last, pid, camid in tracks:
        for name in names[first - 1 : last]:
            folder = "00-1" if pid == -1 else f"{pid:04d}"
            assert name[:4] == folder and int(name[5]) == camid
    assert all((calm.root / "bbox_test" / name[:4] / name).is_file() for name in names)
    assert (tracks[query[0].astype(int) - 1, 2] > 0).all()
    pairs = {tuple(row[2:]) for row in tracks.tolist() if row[2] > 0}
    assert len(pairs) == query.size  # one query for each person and camera


def test_some_queries_have_no_match(calm):
    ap = score(calm, np.random.default_rng(0).random((len(calm.test), 4)))
    assert 1 <= np.isnan(ap).sum() <= 6


def test_clothes_tell_people_apart_but_not_twins(calm):
    truth = Truth(calm.test)
    features = np.stack([
        colour_histograms(calm.test.frames(i), truth.person(i)).mean(0)
        for i in range(len(calm.test))
    ])  # fmt: skip
    ap, kind = score(calm, features), truth.kind[calm.query]
    assert np.nanmean(ap[kind == ""]) > 0.85
    assert np.nanmean(ap[kind == "twin"]) < 0.45  # one in four looks like this


@pytest.mark.slow
def test_cadence_tells_twins_apart_in_ordered_frames_only(root):
    mars = drawn(
        root, train_ids=0, test_ids=8, hard=0.5, frames=(32, 33), dials=tuple(CALM.items())
    )
    truth, rng = Truth(mars.test), np.random.default_rng(0)
    twins = np.flatnonzero(truth.kind == "twin")

    def right(shuffled: bool) -> float:
        hits = []
        for i in twins:
            phase = truth.frames(i).phase
            steps = np.diff(rng.permutation(phase) if shuffled else phase)
            cadence = np.median(steps % 1)
            hits.append(np.abs(cadence - np.array(CADENCES)).argmin())
        return np.mean(np.array(CADENCES)[hits] == truth.cadence[twins])

    assert len(twins) >= 16 and right(shuffled=False) == 1.0
    assert right(shuffled=True) < 0.6


def test_twins_move_in_the_pixels_as_the_truth_says(root):
    """Also from the front: the row of the head's top rises twice a cycle."""
    mars = drawn(
        root, train_ids=0, test_ids=8, hard=0.5, frames=(32, 33), dials=tuple(CALM.items())
    )
    truth = Truth(mars.test)
    for i in np.flatnonzero(truth.kind == "twin"):
        top = truth.parts(i).any(2).argmax(1).astype(float)
        rise = np.cos(4 * np.pi * truth.frames(i).phase)
        assert np.corrcoef(-top, rise)[0, 1] > 0.7, mars.test.key(i)


def test_gait_is_the_same_in_all_cameras(calm):
    truth = Truth(calm.test)
    for pid in np.unique(calm.test.pids[calm.test.pids > 0]):
        rows = np.flatnonzero(calm.test.pids == pid)
        steps = [np.median(np.diff(truth.frames(i).phase) % 1) for i in rows]
        np.testing.assert_allclose(steps, truth.cadence[rows], atol=1e-4)


def test_occluders_hide_what_the_masks_say(rough):
    truth, seen = Truth(rough.test), 0
    for i in range(len(rough.test)):
        mask = truth.occluder(i)
        if rough.test.pids[i] < 1 or not mask.any():
            continue
        change = np.abs(rough.test.frames(i).astype(int) - truth.clean(i)).mean(-1)
        far = ~np.stack([_grown(m, 8) for m in mask])  # JPEG spreads a change within 16 pixels
        assert change[far].mean() < 2 if far.any() else True
        assert change[mask].mean() > 4 * change[~mask].mean()
        person = truth.person(i, visible=False)
        hidden = (person & mask).sum((1, 2)) / np.maximum(person.sum((1, 2)), 1)
        np.testing.assert_allclose(truth.frames(i).occluded, hidden, atol=1e-3)
        seen += 1
    assert seen > 30


def _grown(mask: np.ndarray, by: int) -> np.ndarray:
    rows, cols = np.nonzero(mask)
    grown = mask.copy()
    if len(rows):
        grown[
            max(rows.min() - by, 0) : rows.max() + by, max(cols.min() - by, 0) : cols.max() + by
        ] = True
    return grown


def test_weighting_by_visibility_helps_when_people_are_hidden_only(rough, calm):
    gain = {}
    for name, mars in (("rough", rough), ("calm", calm)):
        truth = Truth(mars.test)
        plain, weighted = [], []
        for i in range(len(mars.test)):
            frames = colour_histograms(mars.test.frames(i), truth.parts(i) > 0)  # occluder too
            weight = (1 - truth.frames(i).occluded) ** 4 + 1e-6
            plain.append(frames.mean(0))
            weighted.append(np.average(frames, 0, weight))
        gain[name] = np.nanmean(score(mars, np.stack(weighted)) - score(mars, np.stack(plain)))
    assert gain["rough"] > 0.01
    assert abs(gain["calm"]) < 0.002


def test_background_tells_the_camera_not_the_person(calm):
    truth = Truth(calm.test)
    real = np.flatnonzero(calm.test.pids > 0)
    features = np.stack([
        colour_histograms(calm.test.frames(i), ~truth.person(i)).mean(0)
        for i in range(len(calm.test))
    ])  # fmt: skip
    camids = calm.test.camids[real]
    half = np.arange(len(real)) % 2 == 0
    means = np.stack([features[real[half & (camids == c)]].mean(0) for c in range(1, 7)])
    guess = ((features[real[~half], None] - means) ** 2).sum(-1).argmin(1) + 1
    assert (guess == camids[~half]).mean() > 0.9
    chance = score(calm, np.random.default_rng(0).random((len(calm.test), 8)))
    assert np.nanmean(score(calm, features)) < np.nanmean(chance) + 0.05


def test_attributes_are_visible(calm):
    truth = Truth(calm.test)
    table = read_attributes(calm.root / ATTRIBUTES_CSV, calm.test)
    for name in ("backpack", "shoulder bag", "handbag", "hat"):
        for i in np.flatnonzero(calm.test.pids > 0):
            seen, value = truth.visible(i, name).max(), table.values[name][i]
            assert value == 1 or seen == 0, f"{calm.test.key(i)} shows a {name}"
        worn = np.flatnonzero(table.values[name] == 1)
        assert np.mean([truth.visible(i, name).max() > 10 for i in worn]) > 0.75
    backpack = np.flatnonzero(table.values["backpack"] == 1)
    view = np.concatenate([truth.frames(i).view for i in backpack])
    seen = np.concatenate([truth.visible(i, "backpack") for i in backpack])
    front, back = np.abs((view + 180) % 360 - 180) < 40, np.abs(view - 180) < 40
    assert front.any() and back.any() and seen[back].mean() > 5 * seen[front].mean()


def test_colours_are_those_of_the_annotation(calm):
    truth, table = Truth(calm.test), read_attributes(calm.root / ATTRIBUTES_CSV, calm.test)
    names = np.array(table.names("Tops.c"))
    torso = {}
    for name in ("red", "blue", "white", "black"):
        pixels = [
            calm.test.frames(i, [0])[truth.parts(i)[:1] == 3] for i in np.flatnonzero(names == name)
        ]
        torso[name] = np.concatenate(pixels).mean(0)
    assert torso["red"].argmax() == 0 and torso["blue"].argmax() == 2
    assert torso["white"].min() > 2 * torso["black"].max()


def test_long_tracklets_on_request():
    lengths = [t.length for t in plan(MiniMars(0, 12, long=12)) if t.pid > 0]
    assert all(2 <= n <= 6 or 200 <= n <= 900 for n in lengths) and max(lengths) >= 200


@pytest.mark.slow
def test_height_256(tmp_path):
    mars = mini_mars(MiniMars(0, 1, height=256, frames=(2, 3), hard=0.0), tmp_path)
    assert mars.test.frames(0).shape[1:] == (256, 128, 3)
    assert Truth(mars.test).parts(0).shape[1:] == (256, 128)


@pytest.mark.slow
def test_what_was_stopped_is_finished_later(tmp_path, monkeypatch):
    whole = files(draw(TINY, tmp_path / "whole", workers=1))
    out = tmp_path / "stopped"

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, "_finish", full)
        with pytest.raises(
            MarsError, match="No space left on device: free some space and run again"
        ):
            draw(TINY, out, workers=1)
    assert not out.exists()
    frames = {p: p.stat().st_mtime_ns for p in out.with_name("stopped.partial").rglob("*.jpg")}
    with pytest.raises(MarsError, match="no such folder"):
        read_mars(out)
    assert files(draw(TINY, out, workers=1)) == whole
    kept = {p: p.stat().st_mtime_ns for p in out.rglob("*.jpg")}
    assert sorted(kept.values()) == sorted(frames.values())  # nothing was drawn twice


def _begun(folder: Path, **options) -> subprocess.Popen:
    """A process of its own that draws, and has drawn three people."""
    script = folder / "script.py"
    script.write_text(f"""
from pathlib import Path
from threading import Thread
from vreid_course.drawing.mini_mars import MiniMars, draw
if __name__ == "__main__":
    draw(MiniMars(12, 6, frames=(8, 10), hard=0.0), Path({str(folder / "set")!r}), workers=1)
""")
    job = subprocess.Popen([sys.executable, str(script)], **options)
    parts = folder / "set.partial" / "parts"
    end = time.monotonic() + 60
    while time.monotonic() < end and len(list(parts.glob("*.npz"))) < 3:
        time.sleep(0.02)
    return job


@pytest.mark.slow
def test_killed_half_way_leaves_no_set(tmp_path):
    job = _begun(tmp_path, start_new_session=True)
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()
    parts = tmp_path / "set.partial" / "parts"
    assert not (tmp_path / "set").exists() and len(list(parts.glob("*.npz"))) >= 3
    again = draw(MiniMars(12, 6, frames=(8, 10), hard=0.0), tmp_path / "set", workers=2)
    whole = draw(MiniMars(12, 6, frames=(8, 10), hard=0.0), tmp_path / "whole", workers=2)
    assert files(again) == files(whole)


@pytest.mark.slow
def test_when_it_alone_is_killed_the_processes_that_draw_end_too(tmp_path):
    job = _begun(tmp_path, stdout=subprocess.PIPE)
    job.kill()
    job.communicate(timeout=30)  # which waits for all that can still write


def _draw_and_stamp(out: Path, results) -> None:
    draw(TINY, out, workers=1)
    results.put(sorted(p.stat().st_mtime_ns for p in out.rglob("*.jpg")))


@pytest.mark.slow
def test_two_at_once_draw_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    jobs = [context.Process(target=_draw_and_stamp, args=(tmp_path / "set", results)) for _ in "12"]
    [job.start() for job in jobs]
    first, second = results.get(timeout=120), results.get(timeout=120)
    [job.join() for job in jobs]
    assert first == second and len(first) > 10


@pytest.mark.slow
def test_who_waits_for_another_drawing_says_so(tmp_path, capfd):
    with FileLock(tmp_path / "set.lock"):
        job = Thread(target=draw, args=(TINY, tmp_path / "set", 1))
        job.start()
        job.join(3)
        assert job.is_alive() and not (tmp_path / "set").exists()
    job.join(60)
    assert f"{tmp_path / 'set'}: another process is drawing it: waiting" in capfd.readouterr().out
    assert (tmp_path / "set").is_dir()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dials": {"fog": 1.0}}, "dial fog=1.0: choose 0..1 for one of camera"),
        ({"dials": {"jitter": 2.0}}, "dial jitter=2.0"),
        ({"train_ids": 5000}, "at most 4999"),
        ({"test_ids": 0}, "1 to test"),
        ({"height": 100}, "height 100: choose 128 or 256"),
    ],
)
def test_impossible_settings(settings, message):
    with pytest.raises(MarsError, match=message):
        MiniMars(**settings)


@pytest.mark.slow
def test_a_part_that_was_cut_off_is_drawn_again(tmp_path, monkeypatch):
    whole = files(draw(TINY, tmp_path / "whole", workers=1))
    with monkeypatch.context() as patch:
        patch.setattr(module, "_finish", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            draw(TINY, tmp_path / "set", workers=1)
    first, second, *_ = sorted((tmp_path / "set.partial" / "parts").glob("*.npz"))
    first.write_bytes(first.read_bytes()[:-40])
    second.write_bytes(b"")
    assert files(draw(TINY, tmp_path / "set", workers=1)) == whole


def test_a_drawing_process_that_is_killed_is_said(tmp_path, monkeypatch):
    def killed(*_):
        raise BrokenProcessPool("A child process terminated abruptly")

    monkeypatch.setattr(module, "_draw_frames", killed)
    with pytest.raises(MarsError, match="a process that draws ended.*run again, it goes on"):
        draw(TINY, tmp_path / "set")


def test_damage_to_a_drawn_set_names_the_cure(tmp_path):
    """Not that of MARS, to copy it again: it can be drawn again."""
    mars = mini_mars(TINY, tmp_path)
    frame, index = mars.test.paths(0)[0], mars.root / "info" / "query_IDX.mat"
    frame.write_bytes(b"")
    with pytest.raises(MarsError, match=f"an empty frame: delete {mars.root}, it is drawn again"):
        mars.test.frames(0)
    truth = mars.root / "truth_test.npz"
    whole = truth.read_bytes()
    for content in (b"", whole[:60], whole[:-60]):
        truth.write_bytes(content)
        with pytest.raises(MarsError, match=f"broken .*: delete {mars.root}, it is drawn again"):
            Truth(mars.test)
    index.write_bytes(index.read_bytes()[:100])
    with pytest.raises(
        MarsError, match=f"no MATLAB file.*; or delete {mars.root}, it is drawn"
    ) as e:
        mini_mars(TINY, tmp_path)
    assert "\n" not in str(e.value)


def test_unwritable_cache(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MarsError, match="name another folder with --out or VREID_CACHE"):
        mini_mars(TINY, tmp_path / "file")


@pytest.mark.slow
def test_other_settings_in_the_folder(tmp_path):
    draw(TINY, tmp_path / "set", workers=1)
    with pytest.raises(MarsError, match="holds something else"):
        draw(MiniMars(2, 2, frames=(4, 6)), tmp_path / "set", workers=1)


def test_truth_is_for_drawn_sets_only(calm, tmp_path):
    (tmp_path / "bbox_test").symlink_to(calm.test.folder)
    (tmp_path / "info").symlink_to(calm.root / "info")
    (tmp_path / "bbox_train").mkdir()
    with pytest.raises(MarsError, match="only drawn sets have a truth"):
        Truth(read_mars(tmp_path).test)


def test_progress_is_shown_while_there_is_something_to_draw(tmp_path, capsys):
    draw(TINY, tmp_path / "set", workers=1)
    assert "drawing mini-MARS: 100%" in capsys.readouterr().out
    draw(TINY, tmp_path / "set", workers=1)
    assert capsys.readouterr().out == ""


STREET_TINY = MiniMars(2, 6, frames=(10, 14), hard=0.0, dials=STREET_DIALS)


def some_tracklet(mars: Mars) -> int:
    return int(np.flatnonzero(mars.test.pids > 0)[1])


def test_redrawn_without_a_change_a_tracklet_is_the_sets_own(root):
    mars = mini_mars(STREET_TINY, root)
    i = some_tracklet(mars)
    frames, drawn = redraw(STREET_TINY, mars.test.key(i), Change())
    assert (frames == mars.test.frames(i)).all()
    assert (drawn.parts == Truth(mars.test).parts(i)).all()
    with pytest.raises(ValueError, match="'9999C1T0001' is no tracklet"):
        redraw(STREET_TINY, "9999C1T0001", Change())


def test_what_stands_in_front_is_what_was_asked_for_and_the_truth_knows_it(root):
    mars = mini_mars(STREET_TINY, root)
    key, steady = mars.test.key(some_tracklet(mars)), {"behind": (), "box": (0, 0, 0)}
    open_, nothing = redraw(STREET_TINY, key, Change(front=(), switched=False, **steady))
    assert not nothing.occluder.any() and not nothing.switched.any() and not nothing.jitter.any()
    legs = Thing("board", first=2, last=6, span=(0.0, 0.8), half=1.0)
    frames, drawn = redraw(STREET_TINY, key, Change(front=(legs,), switched=False, **steady))
    assert drawn.occluder.any((1, 2)).nonzero()[0].tolist() == [2, 3, 4, 5]
    feet, head = PARTS.index("feet"), PARTS.index("head")
    assert drawn.occluder[3][drawn.parts[3] == feet].all()
    assert not drawn.occluder[3][drawn.parts[3] == head].any()
    assert (frames[0] == open_[0]).all() and (frames[3] != open_[3]).any()


@pytest.mark.parametrize("kind", ["pole", "bench", "car", "person"])
def test_everything_that_can_be_put_in_front_moves_and_hides(kind, root):
    mars = mini_mars(STREET_TINY, root)
    key = mars.test.key(some_tracklet(mars))
    item = Thing(kind, first=1, start=-3.0, stop=3.0, seed=3)
    drawn = redraw(STREET_TINY, key, Change(front=(item,), behind=(), box=(0, 0, 0)))[1]
    there = drawn.occluder.any((1, 2)).nonzero()[0]
    assert drawn.occluded.max() > 0.02 and not {0, len(drawn.occluder) - 1} & {*there}
    columns = [np.nonzero(drawn.occluder[t].any(0))[0] for t in (there[0], there[-1])]
    assert columns[0].min() < 32 < columns[1].max(), "it comes from the left"


def test_a_bag_taken_off_another_backdrop_another_cadence(root):
    mars = mini_mars(STREET_TINY, root)
    key = mars.test.key(some_tracklet(mars))
    track = next(t for t in plan(STREET_TINY) if t.pid > 0 and t.folder == "bbox_test")
    bare = {"backpack": 0, "shoulder bag": 0, "handbag": 0, "hat": 0}
    calm = {"front": (), "behind": (), "switched": False}
    with_bag, without = (
        redraw(STREET_TINY, key, Change(
            person=replace(track.person, attributes=track.person.attributes | bare | more), **calm
        ))[1]
        for more in ({"handbag": 1}, {})
    )  # fmt: skip
    assert (with_bag.parts == PARTS.index("handbag")).any()
    assert not (without.parts == PARTS.index("handbag")).any()
    one, other = (redraw(STREET_TINY, key, Change(background=b, **calm)) for b in (1, 9))
    same = one[1].parts > 0
    assert (one[1].parts == other[1].parts).all()
    moved = np.abs(one[0].astype(int) - other[0]).mean(-1)
    assert moved[~same].mean() > 4 * moved[same].mean()
    slow = replace(track.person, cadence=1 / 40)
    phase = redraw(STREET_TINY, key, Change(person=slow, **calm))[1].phase
    assert np.allclose(np.diff(np.unwrap(2 * np.pi * phase)), 2 * np.pi / 40, atol=1e-4)


def test_a_moment_stands_still_while_a_board_slides(root):
    mars = mini_mars(STREET_TINY, root)
    key = mars.test.key(some_tracklet(mars))
    board = Thing("board", start=-1.5, span=(0.0, 2.4))
    whole = redraw(STREET_TINY, key, Change(front=(), behind=(), switched=False))
    frames, drawn = redraw(
        STREET_TINY, key, Change(front=(board,), behind=(), switched=False, still=2)
    )
    assert (drawn.parts == whole[1].parts[2]).all() and (drawn.view == whole[1].view[2]).all()
    assert (np.diff(drawn.occluded) >= 0).all() and drawn.occluded[0] < 0.1 < drawn.occluded[-1]
    assert np.abs(frames[0].astype(int) - whole[0][2]).mean() < 6, "the same picture but for grain"


@pytest.mark.slow
def test_people_cross_and_boxes_slip_only_where_the_dials_say_so(root):
    calm = dict(train_ids=0, test_ids=8, frames=(10, 14), hard=0.0)
    still, cross, slip = (
        drawn(root, **calm, dials=tuple((CALM | more).items()))
        for more in ({}, {"cross": 1.0}, {"slip": 1.0})
    )
    seen = [
        [Truth(mars.test).frames(i) for i in np.flatnonzero(mars.test.pids > 0)]
        for mars in (still, cross, slip)
    ]
    hidden, off = (
        [np.concatenate([getattr(s, name) for s in part]) for part in seen]
        for name in ("occluded", "right")
    )
    assert hidden[0].max() == 0 and (hidden[1] > 0.1).mean() > 0.1 and hidden[2].max() == 0
    assert not off[0].any() and not off[1].any()
    assert 0.05 < (np.abs(off[2]) > 0.15).mean() < 0.5
