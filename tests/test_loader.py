"""Frames, clips and batches: what comes out of files, memory, transforms and workers."""

from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_split

from vreid_course import sampling
from vreid_course.data.mars import MarsError
from vreid_course.loader import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ClipBatches,
    FrameStore,
    augment,
    load_frame,
    normalise,
)

SIZE = (32, 16)


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    return tiny_split(tmp_path_factory.mktemp("bbox_train"))


def pixels(split, row):
    return torch.from_numpy(split.frames(row)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("memory", [0, 2**20])
def test_store_gives_the_frames_asked_for(split, memory):
    store = FrameStore(split, SIZE, memory)
    assert store.fits == (memory > 0)
    for which in ([4, 0, 2, 2], [0, 1, 2], [6]):
        for row in (1, 3):
            frames = store.read(row, np.array(which))
            assert frames.shape == (len(which), 3, *SIZE) and frames.dtype == torch.uint8
            assert torch.equal(frames, pixels(split, row)[which])
    frames += 1
    assert torch.equal(store.read(3, np.array([6])), pixels(split, 3)[[6]]), "a copy is given"


def test_frames_in_memory_are_decoded_once(split, monkeypatch):
    store = FrameStore(split, SIZE)
    store.fill()
    assert store.filled.all()
    monkeypatch.setattr("vreid_course.loader.load_frame", None)
    for row in range(len(split)):
        which = np.arange(split.lengths[row])
        assert torch.equal(store.read(row, which), pixels(split, row))


def test_a_part_of_a_split_has_its_own_store(split):
    part = FrameStore(split.select(np.array([5, 2])), SIZE)
    assert torch.equal(part.read(0, np.arange(7)), pixels(split, 5))
    assert torch.equal(part.read(1, np.arange(3)), pixels(split, 2))
    assert part.filled.all() and len(part.pixels) == 10


@pytest.mark.parametrize("size", [(128, 64), (100, 48), (256, 128)])
def test_frames_come_at_the_size_asked_for(tmp_path, size):
    """A smooth picture looks the same, whether it is decoded at a half or resized after."""
    y, x = np.mgrid[0:256, 0:128]
    picture = np.stack([y, 2 * x, 255 - y], -1).astype(np.uint8)
    path = tmp_path / "0001C1T0001F001.jpg"
    Image.fromarray(picture).save(path, quality=95)
    expected = Image.open(path).resize(size[::-1], Image.Resampling.BILINEAR)
    frame = load_frame(path, size)
    assert frame.shape == (*size, 3)
    assert np.abs(frame.astype(int) - np.asarray(expected)).mean() < 2


def test_grey_frames_are_read_as_rgb(tmp_path):
    path = tmp_path / "0001C1T0001F001.jpg"
    Image.fromarray(np.full((8, 4), 77, np.uint8)).save(path)
    assert (load_frame(path, (8, 4)) == 77).all()


@pytest.mark.parametrize("fault", ["missing", "empty", "text", "cut"])
def test_bad_frames(tmp_path, fault):
    split = tiny_split(tmp_path / "bbox_train", lengths=(5, 3), pids=(1, 2))
    bad = split.paths(0)[2]
    content = bad.read_bytes()
    broken = {"empty": b"", "text": b"no picture", "cut": content[: len(content) // 2]}
    bad.unlink() if fault == "missing" else bad.write_bytes(broken[fault])
    with pytest.raises(MarsError, match=bad.name) as info:
        FrameStore(split, SIZE).read(0, np.arange(5))
    assert "\n" not in str(info.value)
    for memory in (0, 2**20):
        store = FrameStore(split, SIZE, memory, skip_bad=True)
        with pytest.warns(UserWarning, match=f"skipped 1 bad.*{bad.name}"):
            frames = store.read(0, np.arange(1, 5))
        assert store.skipped == 1
        assert torch.equal(frames[1], frames[0]) and not torch.equal(frames[2], frames[1])


def test_normalise():
    clips = torch.randint(0, 256, (2, 3, 3, 8, 4), dtype=torch.uint8)
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    expected = (clips / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    torch.testing.assert_close(normalise(clips), expected)
    before = clips.clone()
    last = clips.movedim(-3, -1).contiguous().movedim(-1, -3)  # as the loader gives them
    torch.testing.assert_close(normalise(last), expected)
    torch.testing.assert_close(normalise(clips[0, 0]), expected[0, 0])
    assert torch.equal(clips, before)


def gradient_clip(T=4, height=64, width=32):
    """Frames that are all the same; red is the row and green is the column, times 3."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    frame = torch.stack([3 * y, 3 * x, torch.zeros_like(x)]).to(torch.uint8)
    return frame.expand(T, 3, height, width).contiguous()


def test_augment_for_testing_crops_the_middle():
    clip = gradient_clip()
    out = augment(clip, None, zoom=1.125)
    assert out.shape == clip.shape and out.dtype == torch.uint8
    torch.testing.assert_close(
        out.float().mean((0, 2, 3)), clip.float().mean((0, 2, 3)), atol=1.5, rtol=0
    )
    assert out[0, 0, 0, 0] > clip[0, 0, 2, 0] and out[0, 0, -1, 0] < clip[0, 0, -3, 0]
    assert torch.equal(augment(clip, None, zoom=1.0), clip)


def test_augment_for_training_is_the_same_for_the_frames_of_a_clip():
    clip, flips, corners = gradient_clip(), 0, set()
    for seed in range(60):
        out = augment(clip, np.random.default_rng(seed))
        assert out.shape == clip.shape
        assert (out == out[:1]).all(), "one draw for the clip"
        assert torch.equal(out, augment(clip, np.random.default_rng(seed)))
        flips += bool(out[0, 1, 0, 0] > out[0, 1, 0, -1])
        corners.add((int(out[0, 0, 0, 0]), int(out[0, 1].min())))
    assert 15 < flips < 45 and len(corners) > 15


def test_augment_per_frame_draws_for_each():
    out = augment(gradient_clip(T=8), np.random.default_rng(0), per_frame=True)
    assert out.shape == (8, 3, 64, 32)
    assert len({tuple(frame.flatten().tolist()) for frame in out}) > 4


def test_augment_is_resize_and_crop():
    """Against the usual two steps, on a smooth picture: within two levels."""
    clip, rng = gradient_clip(), np.random.default_rng(1)
    out = augment(clip, rng)
    rng = np.random.default_rng(1)
    top, left = rng.integers(64 - 57 + 1), rng.integers(32 - 28 + 1)
    large = torch.nn.functional.interpolate(clip.float(), (72, 36), mode="bilinear")
    top, left = round(top * 72 / 64), round(left * 36 / 32)
    expected = large[..., top : top + 64, left : left + 32]
    if rng.random() < 0.5:
        expected = expected.flip(-1)
    assert (out.float() - expected).abs().mean() < 2


def batches(split, workers=0, memory=2**20, **options):
    sampler = partial(sampling.consecutive, frames=4)
    people = sampling.IdentityBatches(split.pids, P=2, K=2)
    return ClipBatches(FrameStore(split, SIZE, memory), sampler, people, workers=workers, **options)


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_batches_hold_what_they_say(split):
    none = partial(augment, zoom=1.0)
    for batch in batches(split, transform=lambda clip, rng: none(clip, None))(0, 5):
        assert batch["clips"].shape == (4, 4, 3, *SIZE) and batch["clips"].dtype == torch.uint8
        assert batch["frames"].shape == (4, 4)
        for i, row in enumerate(batch["rows"].tolist()):
            assert batch["pids"][i] == split.pids[row] and batch["camids"][i] == split.camids[row]
            assert batch["labels"][i] == {2: 0, 5: 1, 7: 2, 9: 3}[split.pids[row]]
            assert torch.equal(batch["clips"][i], pixels(split, row)[batch["frames"][i]])
        assert batch["labels"].dtype == torch.int64


@pytest.mark.parametrize("other", [{"workers": 2}, {"memory": 0}])
def test_batches_do_not_depend_on_workers_or_memory(split, other):
    expected, found = list(batches(split)(0, 4)), list(batches(split, **other)(0, 4))
    assert len(expected) == 4 and all(map(equal, expected, found))
    assert not equal(expected[0], next(batches(split, seed=1)(0, 1)))


def test_batches_can_be_taken_up_at_any_step(split):
    expected = list(batches(split)(0, 6))
    torch.manual_seed(99)
    assert all(map(equal, expected[3:], batches(split)(3, 6)))
    assert not list(batches(split)(6, 6))


def test_shares_make_the_batch(split):
    for batch, first, second in zip(
        *(batches(split)(0, 3, share) for share in ((0, 1), (0, 2), (1, 2))), strict=True
    ):
        assert len(set(first["pids"].tolist())) == 1, "an identity stays in one process"
        assert equal(batch, {key: torch.cat([first[key], second[key]]) for key in batch})
    with pytest.raises(ValueError, match="4 clips do not fit 3 processes"):
        next(batches(split)(0, 1, (0, 3)))


def test_the_loader_leaves_the_random_numbers_of_the_model_alone(split):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    list(batches(split)(0, 2))
    assert torch.equal(torch.rand(1), expected)
