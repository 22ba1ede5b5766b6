"""One training loop and one feature extraction, for one process or several (through Accelerate).

Several processes (`torchrun` or `accelerate launch`) share each batch: the gradients are averaged,
so a mean over clips, such as cross entropy, is that of one process. A loss that compares clips with
each other sees its own share only: each process mines its own triplets. So does batch norm.
"""

import atexit
import ctypes
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    InitProcessGroupKwargs,
    gather_object,
)
from filelock import FileLock
from torch import Tensor, distributed, nn
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from vreid_course import devices
from vreid_course.data.mars import MarsError
from vreid_course.files import CourseError, cache_folder, cache_path, one_line, write_whole
from vreid_course.loader import FrameStore, augment, normalise
from vreid_course.nets import Trunk, frame_features
from vreid_course.sampling import Rng, clips

Batch = dict[str, Tensor]
Loss = Callable[[nn.Module, Batch], tuple[Tensor, dict[str, Tensor]]]


class TrainingError(CourseError):
    """A run that cannot go on; the message is one line that says where and what to do."""


class Diverged(TrainingError):
    """A loss that is no number any more."""


class _Objective(nn.Module):
    """The loss as a `forward`, so that processes average the gradients of all that it calls."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        total, parts = self.loss(self.model, batch)
        shown = {key: torch.as_tensor(x, device=total.device).detach() for key, x in parts.items()}
        return total, shown


def train(
    model: nn.Module, loss: Loss, optimiser: torch.optim.Optimizer,
    batches: Callable[[int, int, tuple[int, int]], Iterator[Batch]], steps: int,
    schedule: Callable[[int], float] = lambda step: 1.0, seed: int = 0,
    folder: Path | None = None, save_seconds: float = 300,
) -> list[dict[str, float]]:  # fmt: skip
    """Train `model` in place, on an accelerator if there is one; returns a row for each step.

    A row: step, lr (of the optimiser's last group), loss and its parts.

    loss(model, batch) -> (total, parts): a scalar, and scalars to show ("accuracy", ...). On an
    accelerator it runs in `devices.half`. batches(start, stop, (process, processes)) -> the batches
    of those steps (see ClipBatches); uint8 clips are normalised here. schedule(step) scales the
    learning rates of the optimiser. folder: keeps `last.pt`, written every `save_seconds` and at
    the end, and `history.jsonl`, a line a step; from these the same call goes on where it stopped;
    on a CPU the result is that of an uninterrupted run. The model comes back to where it was.
    Raises TrainingError for a loss that is not finite, a broken or foreign checkpoint, a full GPU.
    """
    here = accelerator()
    process = (here.process_index, here.num_processes)
    with moved(model, here.device):
        run = _Run(here, model, loss, optimiser, folder, seed)
        start = run.resume(steps)
        with tqdm(total=steps, initial=start, unit="step", disable=process[0] > 0) as bar:
            for step, batch in enumerate(batches(start, steps, process), start):
                torch.manual_seed(10**9 * seed + 1000 * step + process[0])  # for dropout
                for group in optimiser.param_groups:
                    group["lr"] = group.setdefault("initial_lr", group["lr"]) * schedule(step)
                run.step(step, group["lr"], batch)
                bar.set_postfix(run.shown(), refresh=False)
                bar.update()
                if time.monotonic() - run.saved > save_seconds:
                    run.save(step + 1)
        if run.waiting:
            run.save(step + 1)
    return run.history


class _Run:
    """The state of one call of `train`: steps, what they gave, and its files."""

    def __init__(self, accelerator, model, loss, optimiser, folder, seed: int) -> None:
        self.accelerator, self.model, self.optimiser = accelerator, model, optimiser
        self.objective = accelerator.prepare(_Objective(model, loss)).train()
        self.where = accelerator.device
        self.fast = self.where.type != "cpu"  # on a CPU a loss asks for it itself
        scaled = self.fast and devices.half(self.where) == torch.float16
        self.scaler = torch.amp.GradScaler(self.where.type, enabled=scaled)
        self.folder, self.seed, self.saved = folder and Path(folder), seed, time.monotonic()
        self.history, self.written, self.end, self.waiting = [], 0, 0, None

    def step(self, step: int, lr: float, batch: Batch) -> None:
        """Forward, backward, update; what they gave is read one step later, without a wait."""
        with _memory_advice(batch["clips"].shape):
            batch = {key: x.to(self.where, non_blocking=True) for key, x in batch.items()}
            if batch["clips"].dtype == torch.uint8:
                batch["clips"] = normalise(batch["clips"])
            with devices.in_half(self.where) if self.fast else nullcontext():
                total, parts = self.objective(batch)
            self.optimiser.zero_grad()
            self.scaler.scale(total).backward()
            self.scaler.step(self.optimiser)
            self.scaler.update()
            values = torch.stack([x.detach().float() for x in (total, *parts.values())])
            values = self.accelerator.reduce(values, "mean")
        before, self.waiting = self.waiting, (step, lr, ("loss", *parts), values)
        self.read(before)

    def read(self, waiting: tuple | None) -> None:
        """Note what a step gave; the mean over the processes."""
        if waiting is None:
            return
        step, lr, names, values = waiting
        values = dict(zip(names, values.tolist(), strict=True))
        if not math.isfinite(values["loss"]):
            cure = "lower the learning rate, or give each process clips of two people or more"
            raise Diverged(f"at step {step}: {values}: {cure}")
        self.history.append({"step": step, "lr": lr} | values)

    def shown(self) -> dict[str, str]:
        """The last values known, for the bar."""
        last = self.history[-1] if self.history else {}
        return {k: f"{v:.3g}" for k, v in last.items() if k not in ("step", "lr")}

    def save(self, step: int) -> None:
        """Read what is waiting; the first process then writes the history and the checkpoint."""
        self.read(self.waiting)
        self.waiting, self.saved = None, time.monotonic()
        if self.folder is None or not self.accelerator.is_main_process:
            return
        self.end = append_history(self.folder, self.history[self.written :], self.end)
        self.written = len(self.history)
        state = {"step": step, "seed": self.seed, "scaler": self.scaler.state_dict()}
        state |= {"model": self.model.state_dict(), "optimiser": self.optimiser.state_dict()}
        save_checkpoint(self.folder / "last.pt", state)

    def resume(self, steps: int) -> int:
        """Load the checkpoint where there is one; returns the steps done."""
        path = Path(self.folder or "", "last.pt")
        if self.folder is None or not path.exists():
            return 0
        state = load_checkpoint(path)
        try:
            if state["seed"] != self.seed or state["step"] > steps:
                raise ValueError(f"seed {state['seed']}, step {state['step']} of now {steps}")
            self.model.load_state_dict(state["model"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.scaler.load_state_dict(state["scaler"])
            self.history, self.end = read_history(self.folder, state["step"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            fault = f"{path}: from another run ({one_line(error)})"
            raise TrainingError(f"{fault}: delete it, or name another folder") from None
        self.written = len(self.history)
        return state["step"]


def append_history(folder: Path, rows: list[dict], end: int) -> int:
    """Write rows at byte `end` of the history in a folder, and nothing behind; the new end.

    What a killed run wrote after its last checkpoint goes. CourseError for a full disk.
    """
    path = folder / "history.jsonl"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.touch()
        with path.open("r+b") as file:
            file.truncate(end)
            file.seek(end)
            file.write(b"".join(json.dumps(row).encode() + b"\n" for row in rows))
            return file.tell()
    except OSError as error:
        cure = "free some space, or name another folder"
        raise CourseError(f"{path}: cannot write ({one_line(error)}): {cure}") from None


def read_history(folder: Path, steps: int) -> tuple[list[dict[str, float]], int]:
    """The first `steps` rows of what `train` keeps in a folder, and the byte where they end.

    TrainingError if there are less.
    """
    path = Path(folder, "history.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)[:steps] if path.exists() else []
    if len(lines) < steps or not all(line.endswith(b"\n") for line in lines[-1:]):
        raise TrainingError(f"{path.name} has {len(lines)} of {steps} steps")
    return [json.loads(line) for line in lines], sum(map(len, lines))


def two_rates(model: nn.Module, known: Iterable[nn.Parameter], rate=3e-4, new_rate=3e-3):
    """AdamW for short runs: `known`, what came with weights, learns at `rate`, all else faster."""
    old = dict.fromkeys(known)
    new = [p for p in model.parameters() if p not in old]
    groups = {"params": [*old], "lr": rate}, {"params": new, "lr": new_rate}
    return torch.optim.AdamW([g for g in groups if g["params"]], weight_decay=5e-4)


def cosine(steps: int, warmup: int = 0) -> Callable[[int], float]:
    """A schedule that rises to 1 over `warmup` steps and falls to 0 at `steps` along a cosine."""

    def scale(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 + 0.5 * math.cos(math.pi * (step - warmup) / max(steps - warmup, 1))

    return scale


def save_checkpoint(path: Path, state: dict) -> None:
    """Write tensors, numbers and containers of them; a file of that name is there whole or not."""
    write_whole(path, lambda part: torch.save(state, part))


def load_checkpoint(path: Path) -> dict:
    """Read what `save_checkpoint` wrote, to the CPU, running no code that the file may hold."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch has many kinds for a broken file
        cure = "delete it to start again"
        raise TrainingError(f"{path}: no checkpoint ({one_line(error)}): {cure}") from None


class Tracklets(Dataset):
    """The test clips of each tracklet: (row, [uint8 (T, 3, H, W), ...])."""

    def __init__(self, store: FrameStore, sampler: Callable, transform: Callable) -> None:
        self.store, self.sampler, self.transform = store, sampler, transform

    def __getitem__(self, row: int) -> tuple[int, list[Tensor] | MarsError]:
        picked = self.sampler(int(self.store.split.lengths[row]), None)
        picked = picked if isinstance(picked, list) else [picked]
        try:
            return row, [self.transform(self.store.read(row, which), None) for which in picked]
        except MarsError as error:  # raised in a worker it would come as a traceback
            return row, error


def extract(
    model: nn.Module,
    embed: Callable[[nn.Module, Tensor], Tensor],
    store: FrameStore,
    sampler: Callable[[int, Rng], np.ndarray | list[np.ndarray]],
    transform: Callable[[Tensor, Rng], Tensor] = augment,
    workers: int = 0,
) -> np.ndarray:
    """The feature of each of the N tracklets of the store, float32 (N, D), in the split's order.

    embed(model, frames (T, 3, H, W) float32, normalised) -> (D,). A sampler that gives several
    clips gives their mean, weighted by their frames. The tracklets are shared by all processes and
    each process gets all features. Memory holds one clip on the device (and a few tracklets as
    uint8); what the model computes is bounded by `embed`, see nets.frame_features.
    """
    here = accelerator()
    rows = range(len(store.split))[here.process_index :: here.num_processes]
    tracklets = Tracklets(store, sampler, transform)
    loader = DataLoader(tracklets, batch_size=None, sampler=rows, num_workers=workers)
    features, where = [], here.device
    with moved(model, where), _testing(model):
        for row, clips in tqdm(loader, unit="tracklet", disable=not here.is_main_process):
            if isinstance(clips, MarsError):
                raise clips
            total = 0
            for clip in clips:
                with _memory_advice(clip.shape):
                    total += len(clip) * embed(model, normalise(clip.to(where))).float()
            features.append((row, total.cpu().numpy() / sum(map(len, clips))))
    everyone = dict(gather_object(features))
    return np.stack([everyone[row] for row in range(len(everyone))])


@contextmanager
def moved(model: nn.Module, where: torch.device) -> Iterator[None]:
    """The model on a device, laid out for convolutions, and then where it was before."""
    home = next((p.device for p in model.parameters()), where)
    devices.channels_last(model).to(where)
    try:
        yield
    finally:
        model.to(home)


@contextmanager
def _testing(model: nn.Module) -> Iterator[None]:
    """In evaluation mode, without gradients."""
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(training)


def extract_frames(trunk: Trunk, store: FrameStore, root: Path | None = None) -> list[np.ndarray]:
    """The features of all frames of the N tracklets of a store: N arrays (T_i, D), float32.

    Pictures are cropped as in testing (`augment`) and averaged over space (`nets.frame_features`),
    64 frames at a time. See `computed_once` for where they are kept.
    """
    key = (store.split.folder.resolve(), store.size, store.split.stamp())
    found = computed_once("frames", key, lambda: _all_frames(trunk, store), trunk, root)
    return np.split(found, store.offsets[1:-1])


def computed_once(
    kind: str,
    key: tuple,
    parts: Callable[[], Iterable[np.ndarray]],
    weights: nn.Module | None = None,
    root: Path | None = None,
) -> np.ndarray:
    """The arrays of parts() in one, computed once for a key (and the weights of a network).

    It is kept as `kind`_*.npy in the folder `root` (default: the cache folder) and read from there
    as it is needed; of several processes one computes, the others wait for the file. The key holds
    what the arrays depend on: folders, sizes, `Split.stamp` (names and files). Raises TrainingError
    for a broken file and a full disk.
    """
    known = repr((*map(str, key), weights is not None and _fingerprint(weights)))
    path = cache_path(root) / f"{kind}_{hashlib.sha256(known.encode()).hexdigest()[:12]}.npy"
    if not path.exists():
        with FileLock(cache_folder(root) / path.with_suffix(".lock").name):
            if not path.exists():
                array = np.concatenate([*parts()])
                write_whole(path, lambda part: _save_array(part, array))
    try:
        return np.load(path, mmap_mode="c")
    except (OSError, ValueError, EOFError) as error:
        fault = f"{path}: broken ({one_line(error)})"
        raise TrainingError(f"{fault}: delete it, it is computed again") from None


def _save_array(path: Path, array: np.ndarray) -> None:
    with path.open("wb") as stream:  # given a name, NumPy adds .npy to it
        np.save(stream, array)


def _fingerprint(model: nn.Module) -> str:
    """A hash of all weights."""
    found = hashlib.sha256()
    for x in model.state_dict().values():
        found.update(x.cpu().numpy().tobytes())
    return found.hexdigest()


def _all_frames(trunk: Trunk, store: FrameStore) -> list[np.ndarray]:
    where, found = accelerator().device, []
    with moved(trunk, where), _testing(trunk):
        for row in tqdm(range(len(store.split)), unit="tracklet"):
            rows = []
            for which in clips(int(store.split.lengths[row]), frames=64):
                clip = normalise(augment(store.read(row, which)).to(where))
                rows.append(frame_features(trunk, clip).float().cpu().numpy())
            found.append(np.concatenate(rows))
    return found


def _keep_freed_memory() -> None:
    """Have glibc keep what is freed: to ask the system for it anew costs up to half of a step."""
    with suppress(OSError, AttributeError):  # other C libraries
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        for parameter, size in ((-3, 2**30), (-1, 2**31 - 1), (-2, 2**28)):
            mallopt(parameter, size)  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_TOP_PAD


def accelerator() -> Accelerator:
    """Accelerate's view of this run: its device, which of how many processes this one is."""
    on_cpu = devices.device().type == "cpu"
    if on_cpu:
        _keep_freed_memory()
    together = [
        InitProcessGroupKwargs(timeout=timedelta(hours=3)),  # one may prepare for all
        DistributedDataParallelKwargs(
            find_unused_parameters=True
        ),  # not every loss uses every head
    ]
    return Accelerator(mixed_precision="no", cpu=on_cpu, kwargs_handlers=together)


@atexit.register
def _leave_group() -> None:
    """End the group before Python ends: a thread of it that still works then aborts the process."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


@contextmanager
def _memory_advice(shape: torch.Size) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError:
        advice = "stop what else uses the GPU, set VREID_SCALE=mini, or use fewer clips or frames"
        advice += " (P, K, T, test_frames in vreid_course/scales.py)"
        raise TrainingError(f"GPU out of memory at clips of {tuple(shape)}: {advice}") from None
