"""The loop: learns, resumes bit for bit, survives being killed, says what is wrong; extraction."""

import errno
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from tiny import tiny_split
from torch import nn

from vreid_course import devices, files, losses, sampling, training
from vreid_course.files import CourseError
from vreid_course.loader import ClipBatches, FrameStore, augment, normalise
from vreid_course.nets import Baseline, resnet
from vreid_course.training import TrainingError, extract, extract_frames, train

SIZE = (32, 16)
TESTS = Path(__file__).parent


CPU = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}  # of other processes


@pytest.fixture(autouse=True, scope="module")
def on_the_cpu():
    """What these tests promise, they promise for the CPU, GPU or not, and a number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(int(CPU["OMP_NUM_THREADS"]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "device", lambda: torch.device("cpu"))
        AcceleratorState._reset_state(reset_partial_state=True)
        yield
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.set_num_threads(threads)


class Net(nn.Module):
    """A model with what makes a run depend on its history: batch norm, dropout, momentum."""

    def __init__(self, num_ids=4):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 5, stride=4)
        self.norm, self.drop = nn.BatchNorm2d(8), nn.Dropout(0.3)
        self.head = nn.Linear(8, num_ids)

    def forward(self, clips):
        maps = self.norm(self.conv(clips.flatten(0, 1))).relu()
        features = maps.mean((2, 3)).unflatten(0, clips.shape[:2]).mean(1)
        return features, self.head(self.drop(features))


def loss(model, batch):
    features, logits = model(batch["clips"])
    parts = {
        "cross entropy": losses.smoothed_cross_entropy(logits, batch["labels"]),
        "triplet": losses.batch_hard_triplet(features, batch["pids"]),
        "accuracy": losses.accuracy(logits, batch["labels"]),
    }
    return parts["cross entropy"] + parts["triplet"], parts


def run(split, steps, folder=None, loss=loss, lr=0.01, seed=0, P=2, **options):
    torch.manual_seed(5)
    model = Net()
    sampler = partial(sampling.consecutive, frames=3)
    people = sampling.IdentityBatches(split.pids, P, K=2, seed=seed)
    batches = ClipBatches(FrameStore(split, SIZE), sampler, people, seed=seed)
    optimiser = torch.optim.Adam(model.parameters(), lr=lr)
    schedule = training.cosine(40, warmup=4)
    options = {"schedule": schedule, "seed": seed, "folder": folder, "save_seconds": 0} | options
    return model, train(model, loss, optimiser, batches, steps, **options)


def same(one, two):
    pairs = zip(one.state_dict().values(), two.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    return tiny_split(tmp_path_factory.mktemp("bbox_train"))


@pytest.fixture(scope="module")
def whole(split):
    """An uninterrupted run of 16 steps."""
    return run(split, 16)


def test_it_learns(split, capfd):
    model, history = run(split, 40, lr=0.05, P=4)
    assert [row["step"] for row in history] == list(range(40))
    assert np.mean([row["cross entropy"] for row in history[-5:]]) < history[0]["loss"] - 0.5
    store = FrameStore(split, SIZE)
    logits = extract(model, lambda model, frames: model(frames[None])[1][0], store, sampling.whole)
    assert (logits.argmax(1) == [0, 0, 1, 1, 2, 2, 3, 3]).mean() > 0.8
    assert history[0]["lr"] == pytest.approx(0.05 / 4) and history[-1]["lr"] < 1e-3
    assert history[3]["lr"] == pytest.approx(0.05)
    row = history[7]
    assert row["loss"] == pytest.approx(row["cross entropy"] + row["triplet"], rel=1e-5)
    bar = capfd.readouterr().err
    assert "40/40" in bar and "accuracy=" in bar and "loss=" in bar and "<00:00" in bar


def test_the_seed_is_the_run(split, whole):
    model, history = run(split, 16)
    assert same(model, whole[0]) and history == whole[1]
    assert not same(run(split, 16, seed=1)[0], whole[0])


def test_training_is_left_in_training_mode_and_on(split, whole):
    assert whole[0].training and all(p.requires_grad for p in whole[0].parameters())


class Stop(Exception):
    pass


def stopping_at(step):
    seen = []

    def stopping(model, batch):
        seen.append(0)
        if len(seen) > step:
            raise Stop
        return loss(model, batch)

    return stopping


@pytest.mark.parametrize("stop", [3, 6, 12])
def test_resume_is_the_uninterrupted_run_bit_for_bit(split, whole, tmp_path, stop):
    with pytest.raises(Stop):
        run(split, 16, tmp_path, stopping_at(stop))
    assert training.load_checkpoint(tmp_path / "last.pt")["step"] == stop
    with (tmp_path / "history.jsonl").open("a") as file:
        file.write(
            '{"step": 99}\n{"ste'
        )  # killed after its last checkpoint, in the middle of a row
    torch.manual_seed(1234)  # what happens in between is no matter
    model, history = run(split, 16, tmp_path)
    assert same(model, whole[0]) and history == whole[1]
    again, history = run(split, 16, tmp_path, loss=None)  # done: nothing is left to train
    assert same(again, whole[0]) and history == whole[1]


@pytest.mark.slow
def test_killed_and_resumed(split, whole, tmp_path):
    """A process that is killed in the middle of a step, by the system."""
    script = textwrap.dedent(f"""
        import sys, time
        sys.path.insert(0, {str(TESTS)!r})
        from pathlib import Path
        import test_training as t
        def slow(model, batch):
            print("step", flush=True)
            time.sleep(0.05)
            return t.loss(model, batch)
        t.run(t.tiny_split(Path({str(tmp_path / "set")!r})), 16, {str(tmp_path / "run")!r}, slow)
    """)
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=CPU)
    for _ in range(7):
        assert process.stdout.readline() == b"step\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert training.load_checkpoint(tmp_path / "run" / "last.pt")["step"] in (5, 6)
    model, history = run(split, 16, tmp_path / "run")
    assert same(model, whole[0]) and history == whole[1]


def one_line(info):
    assert "\n" not in str(info.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run(split, tmp_path, value):
    steps = []

    def broken(model, batch):
        steps.append(0)
        total, parts = loss(model, batch)
        return (total * value if len(steps) == 6 else total), parts

    with pytest.raises(TrainingError, match=f"at step 5: .*{value}.*learning rate") as info:
        run(split, 16, tmp_path, broken)
    one_line(info)
    assert training.load_checkpoint(tmp_path / "last.pt")["step"] == 5


@pytest.mark.parametrize("damage", ["cut", "text", "empty", "code"])
def test_a_broken_checkpoint_is_named(split, tmp_path, damage):
    path = tmp_path / "last.pt"
    run(split, 4, tmp_path)
    if damage == "code":
        torch.save({"model": Path, "step": 1}, path)  # would run code when unpickled freely
    else:
        content = path.read_bytes()
        path.write_bytes({"cut": content[:-500], "text": b"hello", "empty": b""}[damage])
    with pytest.raises(TrainingError, match=r"last\.pt.*delete it") as info:
        run(split, 8, tmp_path)
    one_line(info)


def test_a_foreign_checkpoint_is_named(split, tmp_path):
    run(split, 8, tmp_path)
    for options, what in (({"seed": 1}, "seed 0"), ({}, "step 8 of now 4")):
        with pytest.raises(TrainingError, match=rf"last\.pt.*{what}.*delete it"):
            run(split, 4, tmp_path, **options)
    model = Net(num_ids=7)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(
        TrainingError, match=r"last\.pt.*another run.*size mismatch.*delete it"
    ) as info:
        train(model, loss, optimiser, None, 8, folder=tmp_path)
    one_line(info)


def test_a_checkpoint_is_whole_or_not_there(tmp_path, monkeypatch):
    path = tmp_path / "runs" / "last.pt"
    training.save_checkpoint(path, {"step": 1})

    def full_disk(state, where):
        Path(where).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(CourseError, match=r"last\.pt.*No space left.*free") as info:
        training.save_checkpoint(path, {"step": 2})
    one_line(info)
    assert training.load_checkpoint(path) == {"step": 1}
    assert [p.name for p in path.parent.iterdir()] == ["last.pt"]


def test_two_processes_may_write_the_same_file(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"

    def slow(part):
        part.write_text("first")
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: 1)
            files.write_whole(path, lambda part: part.write_text("second"))

    files.write_whole(path, slow)
    assert path.read_text() == "first" and [*tmp_path.iterdir()] == [path]


def test_a_full_gpu_is_explained(split):
    def full(model, batch):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 3 GiB")

    with pytest.raises(TrainingError, match=r"out of memory.*\(4, 3, 3, 32, 16\).*fewer") as info:
        run(split, 4, loss=full)
    one_line(info)
    with pytest.raises(TrainingError, match="out of memory"):
        extract(Net(), full, FrameStore(split, SIZE), sampling.whole)


def test_a_history_that_lost_rows_is_named(split, tmp_path):
    run(split, 4, tmp_path)
    path = tmp_path / "history.jsonl"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(TrainingError, match=r"last\.pt.*history\.jsonl has 4 of 4 steps.*delete"):
        run(split, 8, tmp_path)


def test_rows_that_no_checkpoint_knows_are_cut_off(tmp_path):
    end = training.append_history(tmp_path, [{"step": 0}], 0)
    training.append_history(tmp_path, [{"step": k} for k in range(1, 9)], end)  # then killed
    training.append_history(tmp_path, [{"step": 1}], end)
    assert (tmp_path / "history.jsonl").read_text() == '{"step": 0}\n{"step": 1}\n'


def test_checkpoints_are_as_far_apart_as_asked_for(split, tmp_path, monkeypatch):
    saved, clock = [], iter(range(0, 10_000, 10))  # ten seconds pass between two looks
    monkeypatch.setattr(training.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(
        training, "save_checkpoint", lambda path, state: saved.append(state["step"])
    )
    run(split, 9, tmp_path, save_seconds=35)
    assert saved == [4, 8, 9]  # 10, 20, 30 are too early
    assert len(training.read_history(tmp_path, 9)[0]) == 9


def test_a_model_comes_back_as_it_was(split):
    """Where it was is seen on the pretend accelerator (test_device); here the kernels' layout."""
    model, _ = run(split, 2)
    assert model.conv.weight.is_contiguous(memory_format=torch.channels_last)
    model.eval()
    extract(model, embed, FrameStore(split, SIZE), sampling.whole)
    assert not model.training and model.conv.weight.requires_grad


def test_one_batch_is_enough(split):
    """`batches` may be any callable, and float clips are taken as they are."""
    model, seen = Net(), []
    batch = {"clips": torch.randn(4, 2, 3, 32, 16), "labels": torch.arange(4)}

    def plain(model, batch):
        seen.append(batch["clips"])
        return nn.functional.cross_entropy(model(batch["clips"])[1], batch["labels"]), {}

    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    history = train(model, plain, optimiser, lambda *_: [batch] * 3, 3)
    assert len(history) == 3 and all(torch.equal(clips, batch["clips"]) for clips in seen)


# ------------------------------------------------------------------------------------ extraction


def embed(model, frames):
    assert not model.training and frames.dtype == torch.float32
    return model(frames[None])[0][0]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    "sampler",
    [
        sampling.whole,
        partial(sampling.clips, frames=4),
        partial(sampling.clips, frames=4, pad=True),
        partial(sampling.spread, frames=3),
    ],
    ids=str,
)
def test_extract_is_the_plain_loop(split, sampler, workers):
    model = Net()
    found = extract(model, embed, FrameStore(split, SIZE), sampler, workers=workers)
    assert found.shape == (8, 8) and found.dtype == np.float32 and model.training
    model.eval()
    for row in range(len(split)):
        picked = sampler(int(split.lengths[row]), None)
        features = []
        for which in picked if isinstance(picked, list) else [picked]:
            frames = torch.from_numpy(split.frames(row, which)).permute(0, 3, 1, 2)
            frames = normalise(augment(frames))
            features += [embed(model, frames).detach().numpy()] * len(which)
        np.testing.assert_allclose(found[row], np.mean(features, 0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sampler", [sampling.whole, partial(sampling.clips, frames=32)], ids=str)
def test_a_long_tracklet_is_bounded_in_memory(tmp_path, sampler):
    """No more than 64 of 920 frames are in the network at once, even in one pass over them all."""
    split, sizes = tiny_split(tmp_path, (920,), (1,), size=SIZE), []
    model = Baseline(4, resnet("course"))
    model.trunk.stem.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    store = FrameStore(split, SIZE, memory=0)
    features = extract(model, Baseline.embed, store, sampler)
    assert features.shape == (1, 256) and max(sizes) <= 64 and sum(sizes) == 920


def test_all_frames_of_all_tracklets(tmp_path):
    """Each frame as it would be alone, in the split's order, however long its tracklet."""
    split, sizes = tiny_split(tmp_path / "set", (3, 70, 1), (1, 1, 2), size=SIZE), []
    trunk = resnet("course")
    trunk.stem.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    found = extract_frames(trunk, FrameStore(split, SIZE, memory=0), tmp_path)
    assert [x.shape for x in found] == [(3, 256), (70, 256), (1, 256)] and max(sizes) <= 64
    assert trunk.training and found[0].dtype == np.float32
    trunk.eval()
    for row, t in ((0, 2), (1, 0), (1, 69), (2, 0)):
        frame = torch.from_numpy(split.frames(row, [t])).permute(0, 3, 1, 2)
        with torch.no_grad():
            alone = trunk(normalise(augment(frame))).mean((2, 3))[0]
        np.testing.assert_allclose(found[row][t], alone, rtol=1e-4, atol=1e-5)


def test_frame_features_are_computed_once_for_each_network_and_set(tmp_path):
    split = tiny_split(tmp_path / "set", (3, 2), (1, 2), size=SIZE)
    store, trunk, cache = FrameStore(split, SIZE), resnet("course"), tmp_path / "cache"
    first = extract_frames(trunk, store, cache)
    trunk.forward = None  # cannot be used any more
    for a, b in zip(first, extract_frames(trunk, store, cache), strict=True):
        np.testing.assert_array_equal(a, b)
    extract_frames(resnet("course"), store, cache)
    extract_frames(resnet("course"), FrameStore(split.select([True, False]), SIZE), cache)
    Image.new("RGB", SIZE[::-1], "red").save(split.paths(1)[1])  # replaced under its old name
    del trunk.forward
    again = extract_frames(trunk, FrameStore(split, SIZE), cache)
    assert (again[1][1] != first[1][1]).any() and (again[0] == first[0]).all()
    assert len(list(cache.glob("frames_*.npy"))) == 4 and not list(cache.glob("*.part"))


def test_other_weights_have_another_hash():
    net = Net()
    optimiser = torch.optim.SGD(net.parameters(), 1.0)
    for change in (
        lambda: (net(torch.rand(4, 2, 3, 32, 16))[1].sum().backward(), optimiser.step()),
        lambda: net.norm.running_mean.add_(1),
        lambda: net.load_state_dict(Net().state_dict()),
    ):
        before = training._fingerprint(net)
        assert training._fingerprint(devices.channels_last(net)) == before
        change()
        assert training._fingerprint(net) != before
    same = Net()
    same.load_state_dict(net.state_dict())
    assert training._fingerprint(same) == training._fingerprint(net)


def test_what_is_computed_once_depends_on_its_key_and_weights(tmp_path):
    calls = []

    def parts():
        calls.append(1)
        return (np.full((n, 2), n) for n in (1, 3))

    keys = [(("a", 1),), (("a", 2),), (("a", 1), Net()), (("a", 1), Net())]
    for key, *net in keys * 2:
        found = training.computed_once("x", key, parts, *net or [None], tmp_path)
        assert found[:, 0].tolist() == [1, 3, 3, 3] and found.flags.writeable
    assert len(calls) == 4 == len(list(tmp_path.glob("x_*.npy")))


def test_a_broken_file_and_a_full_disk_are_said(tmp_path, monkeypatch):
    def once():
        return training.computed_once("x", ("a",), lambda: [np.ones((50, 2))], None, tmp_path)

    once()
    (file,) = tmp_path.glob("x_*.npy")
    for content in (b"", file.read_bytes()[:200], b"no array at all"):
        file.write_bytes(content)
        with pytest.raises(TrainingError, match=rf"{file.name}: broken .*: delete it"):
            once()
    file.unlink()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(CourseError, match="cannot write .*No space left.*: free some space"):
        once()
    assert not list(tmp_path.glob("x_*.[np]*")), "something half written was left"


TWO = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
import torch
import test_training as t
from vreid_course.nets import Baseline, resnet
from vreid_course.training import extract

class Frozen(t.Net):
    def __init__(self):
        super().__init__()
        self.drop = torch.nn.Identity()
    def train(self, mode=True):
        super().train(mode)
        self.norm.eval()
        return self

def cross_entropy(model, batch):
    value = t.losses.smoothed_cross_entropy(model(batch["clips"])[1], batch["labels"])
    return value, {{}}

t.Net = Frozen
split = t.tiny_split(Path({folder!r}, "set" + sys.argv[1]))
model, history = t.run(split, 12, Path({folder!r}) / sys.argv[1], cross_entropy)
features = extract(model, t.embed, t.FrameStore(split, t.SIZE), t.sampling.whole)
assert features.shape == (8, 8)
torch.save({{"features": torch.from_numpy(features)}}, Path({folder!r}) / sys.argv[1] / "f.pt")
"""


@pytest.mark.slow
def test_two_processes_are_one(tmp_path):
    """The same global batch, frozen batch norm, cross entropy: equal weights and features."""
    script = tmp_path / "script.py"
    script.write_text(TWO.format(tests=str(TESTS), folder=str(tmp_path)), "utf-8")
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    tiny_split(tmp_path / "settwo")  # so that the two do not write it at the same moment
    for name, how in (("one", []), ("two", launch)):
        command = [sys.executable, *how, str(script), name]
        done = subprocess.run(command, env=CPU, capture_output=True, text=True)
        assert done.returncode == 0, (done.returncode, done.stdout[-500:], done.stderr[-3000:])
    one, two = (training.load_checkpoint(tmp_path / name / "last.pt") for name in ("one", "two"))
    for a, b in zip(one["model"].values(), two["model"].values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    one, two = (training.read_history(tmp_path / name, 12)[0] for name in ("one", "two"))
    for a, b in zip(one, two, strict=True):
        assert a == pytest.approx(b, abs=1e-5)
    features = (
        training.load_checkpoint(tmp_path / name / "f.pt")["features"] for name in ("one", "two")
    )
    torch.testing.assert_close(*features, rtol=0, atol=1e-5)


KILLED = """
import os, pickle, sys, time
sys.path.insert(0, {tests!r})
from pathlib import Path
import test_training as t

folder, name, pause = Path({folder!r}), sys.argv[1], float(sys.argv[2])
(folder / f"{{name}}_{{os.environ['RANK']}}.pid").write_text(str(os.getpid()))

def slow(model, batch):
    time.sleep(pause)
    return t.loss(model, batch)

t.run(pickle.loads((folder / "split").read_bytes()), 12, folder / name, slow, P=4)
"""


@pytest.mark.slow
def test_two_processes_killed_and_resumed(tmp_path):
    """Both killed by the system in the middle: the same command then gives the unbroken run.

    With dropout, batch norm, momentum and triplets; bit for bit, for a sum of two numbers does not
    depend on which process adds first.
    """
    (tmp_path / "split").write_bytes(pickle.dumps(tiny_split(tmp_path / "set")))
    (tmp_path / "script.py").write_text(KILLED.format(tests=str(TESTS), folder=str(tmp_path)))
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
    ]
    command = [*launch, str(tmp_path / "script.py")]
    path = tmp_path / "broken" / "last.pt"
    process = subprocess.Popen([*command, "broken", "0.3"], env=CPU, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    time.sleep(0.4)  # on the way to the next step
    for pid in (process.pid, *(int(p.read_text()) for p in tmp_path.glob("broken_*.pid"))):
        os.kill(pid, signal.SIGKILL)
    process.wait()
    assert 1 <= training.load_checkpoint(path)["step"] <= 4
    for name in ("broken", "whole"):
        done = subprocess.run([*command, name, "0"], env=CPU, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = (training.load_checkpoint(tmp_path / n / "last.pt") for n in ("broken", "whole"))
    assert one["step"] == two["step"] == 12
    one_, two_ = (training.read_history(tmp_path / n, 12) for n in ("broken", "whole"))
    assert one_ == two_
    for a, b in zip(one["model"].values(), two["model"].values(), strict=True):
        assert torch.equal(a, b)
    for key, state in one["optimiser"]["state"].items():
        assert all(torch.equal(state[k], two["optimiser"]["state"][key][k]) for k in state)


def test_two_rates_keep_the_order_of_the_parameters_and_leave_none_out():
    """A resumed optimiser matches its state to parameters by their place."""
    model = Baseline(4, resnet("course"))
    old, new = training.two_rates(model, model.trunk.parameters(), 1e-4, 1e-3).param_groups
    assert [id(p) for p in old["params"]] == [id(p) for p in model.trunk.parameters()]
    assert len(old["params"]) + len(new["params"]) == len([*model.parameters()])
    assert (old["lr"], new["lr"]) == (1e-4, 1e-3)
    (alone,) = training.two_rates(model, ()).param_groups
    assert [id(p) for p in alone["params"]] == [id(p) for p in model.parameters()]
