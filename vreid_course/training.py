"""One training loop and one feature extraction, for one process or several (through Accelerate).

Several processes (`torchrun` or `accelerate launch`) share each batch: the gradients are averaged,
so a mean over clips, such as cross entropy, is that of one process. A loss that compares clips with
each other sees its own share only: each process mines its own triplets. So does batch norm.
"""

import ctypes
import hashlib
import math
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from weakref import WeakKeyDictionary

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from filelock import FileLock
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from vreid_course.data.mars import MarsError
from vreid_course.drawing.mini_mars import cache_folder, cache_path
from vreid_course.loader import FrameStore, augment, normalise
from vreid_course.nets import Trunk, frame_features, one_line
from vreid_course.sampling import Rng, clips

Batch = dict[str, Tensor]
Loss = Callable[[nn.Module, Batch], tuple[Tensor, dict[str, Tensor]]]
_FINGERPRINTS: WeakKeyDictionary = WeakKeyDictionary()  # network: (versions of its weights, hash)


class TrainingError(RuntimeError):
    """A run that cannot go on; the message is one line that says where and what to do."""


class Diverged(TrainingError):
    """A loss that is no number any more."""


class _Objective(nn.Module):
    """The loss as a `forward`, so that processes average the gradients of all that it calls."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return self.loss(self.model, batch)


def train(
    model: nn.Module,
    loss: Loss,
    optimiser: torch.optim.Optimizer,
    batches: Callable[[int, int, tuple[int, int]], Iterator[Batch]],
    steps: int,
    schedule: Callable[[int], float] = lambda step: 1.0,
    seed: int = 0,
    folder: Path | None = None,
    save_every: int = 100,
) -> list[dict[str, float]]:
    """Train `model` in place, in bfloat16 on a GPU; returns step, lr, loss and its parts per step.

    loss(model, batch) -> (total, parts): a scalar, and scalars to show ("accuracy", ...).
    batches(start, stop, (process, processes)) -> the batches of those steps (see ClipBatches);
    uint8 clips are normalised here. schedule(step) scales the learning rates of the optimiser.
    folder: keeps `last.pt`, from which the same call goes on where it stopped; on a CPU the result
    is that of an uninterrupted run. Raises TrainingError for a loss that is not finite, a broken or
    foreign checkpoint, and a full GPU.
    """
    accelerator = _accelerator()
    process = (accelerator.process_index, accelerator.num_processes)
    objective, stepper = accelerator.prepare(_Objective(model, loss), optimiser)
    start, history = _resume(folder, model, optimiser, seed, steps)
    objective.train()
    with tqdm(total=steps, initial=start, unit="step", disable=process[0] > 0) as bar:
        for step, batch in enumerate(batches(start, steps, process), start):
            torch.manual_seed(10**9 * seed + 1000 * step + process[0])  # for dropout
            for group in optimiser.param_groups:
                group["lr"] = group.setdefault("initial_lr", group["lr"]) * schedule(step)
            values = _step(accelerator, objective, stepper, batch, step)
            history.append({"step": step, "lr": group["lr"]} | values)
            bar.set_postfix({k: f"{value:.3g}" for k, value in values.items()}, refresh=False)
            bar.update()
            if folder and process[0] == 0 and ((step + 1) % save_every == 0 or step + 1 == steps):
                state = {"step": step + 1, "seed": seed, "history": history}
                state |= {"model": model.state_dict(), "optimiser": optimiser.state_dict()}
                save_checkpoint(Path(folder, "last.pt"), state)
    return history


def _step(
    accelerator: Accelerator, objective: nn.Module, optimiser: object, batch: Batch, step: int
) -> dict[str, float]:
    """Forward, backward, update; returns the loss and its parts, averaged over the processes."""
    with _memory_advice(batch["clips"].shape):
        batch = {key: x.to(accelerator.device, non_blocking=True) for key, x in batch.items()}
        if batch["clips"].dtype == torch.uint8:
            batch["clips"] = normalise(batch["clips"])
        total, parts = objective(batch)
        values = [torch.as_tensor(x, device=total.device).detach() for x in parts.values()]
        values = accelerator.reduce(torch.stack([total.detach(), *values]).float(), "mean").tolist()
        values = dict(zip(("loss", *parts), values, strict=True))
        if not math.isfinite(values["loss"]):
            raise Diverged(f"at step {step}: {values}: lower the learning rate")
        optimiser.zero_grad()
        accelerator.backward(total)
        optimiser.step()
    return values


def two_rates(model: nn.Module, known: Iterable[nn.Parameter], rate=3e-4, new_rate=3e-3):
    """AdamW for short runs: `known`, what came with weights, learns at `rate`, all else faster."""
    old = dict.fromkeys(known)
    new = [p for p in model.parameters() if p not in old]
    groups = {"params": [*old], "lr": rate}, {"params": new, "lr": new_rate}
    return torch.optim.AdamW([g for g in groups if g["params"]], weight_decay=5e-4)


def in_bfloat16(function: Callable) -> Callable:
    """`function(model, ...)`, a loss or an embedding, computed in bfloat16 on the model's device.

    A tensor comes back as float32. The training loop does this by itself on a GPU only.
    """

    @wraps(function)
    def fast(model: nn.Module, *values):
        with torch.autocast(next(model.parameters()).device.type, torch.bfloat16):
            found = function(model, *values)
        return found.float() if isinstance(found, Tensor) else found

    return fast


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


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a file, which gets its name only when it is whole."""
    part = path.with_suffix(f".{os.getpid()}.part")  # two may write the same file at once
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(part)
        os.replace(part, path)
    except (OSError, RuntimeError) as error:
        part.unlink(missing_ok=True)
        cure = "free some space, or name another folder"
        raise TrainingError(f"{path}: cannot write ({one_line(error)}): {cure}") from None


def load_checkpoint(path: Path) -> dict:
    """Read what `save_checkpoint` wrote, to the CPU, running no code that the file may hold."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch has many kinds for a broken file
        cure = "delete it to start again"
        raise TrainingError(f"{path}: no checkpoint ({one_line(error)}): {cure}") from None


def _resume(
    folder: Path | None, model: nn.Module, optimiser: torch.optim.Optimizer, seed: int, steps: int
) -> tuple[int, list]:
    """Load the checkpoint where there is one; returns the steps done and their history."""
    path = Path(folder or "", "last.pt")
    if folder is None or not path.exists():
        return 0, []
    state = load_checkpoint(path)
    try:
        if state["seed"] != seed or state["step"] > steps:
            raise ValueError(f"seed {state['seed']}, step {state['step']} of now {steps}")
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        fault = f"{path}: from another run ({one_line(error)})"
        raise TrainingError(f"{fault}: delete it, or name another folder") from None
    return state["step"], state["history"]


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
    accelerator = _accelerator()
    rows = range(len(store.split))[accelerator.process_index :: accelerator.num_processes]
    tracklets = Tracklets(store, sampler, transform)
    loader = DataLoader(tracklets, batch_size=None, sampler=rows, num_workers=workers)
    training, features = model.training, []
    model.eval().to(accelerator.device)
    with torch.inference_mode():
        for row, clips in tqdm(loader, unit="tracklet", disable=not accelerator.is_main_process):
            if isinstance(clips, MarsError):
                raise clips
            total = 0
            for clip in clips:
                with _memory_advice(clip.shape):
                    total += len(clip) * embed(model, normalise(clip.to(accelerator.device)))
            feature = total.float().cpu().numpy() / sum(map(len, clips))
            features.append((row, feature))
    model.train(training)
    everyone = dict(gather_object(features))
    return np.stack([everyone[row] for row in range(len(everyone))])


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
    """A hash of all weights, computed again only after one of them was written."""
    tensors = model.state_dict().values()
    written = tuple((x.data_ptr(), x._version) for x in tensors)
    if _FINGERPRINTS.get(model, ("",))[0] != written:
        found = hashlib.sha256()
        for x in tensors:
            found.update(x.cpu().numpy().tobytes())
        _FINGERPRINTS[model] = written, found.hexdigest()
    return _FINGERPRINTS[model][1]


def _all_frames(trunk: Trunk, store: FrameStore) -> list[np.ndarray]:
    device, training = _accelerator().device, trunk.training
    trunk.eval().to(device)
    found = []
    with torch.inference_mode():
        for row in tqdm(range(len(store.split)), unit="tracklet"):
            rows = []
            for which in clips(int(store.split.lengths[row]), frames=64):
                clip = normalise(augment(store.read(row, which)).to(device))
                rows.append(frame_features(trunk, clip).float().cpu().numpy())
            found.append(np.concatenate(rows))
    trunk.train(training)
    return found


def _keep_freed_memory() -> None:
    """Have glibc keep what is freed: to ask the system for it anew costs up to half of a step."""
    with suppress(OSError, AttributeError):  # other C libraries
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        for parameter, size in ((-3, 2**30), (-1, 2**31 - 1), (-2, 2**28)):
            mallopt(parameter, size)  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_TOP_PAD


def _accelerator() -> Accelerator:
    cuda = torch.cuda.is_available()
    if not cuda:
        _keep_freed_memory()
    return Accelerator(mixed_precision="bf16" if cuda else "no", cpu=not cuda)


@contextmanager
def _memory_advice(shape: torch.Size) -> Iterator[None]:
    try:
        yield
    except torch.cuda.OutOfMemoryError:
        advice = "stop what else uses the GPU, set VREID_SCALE=mini, or use fewer clips or frames"
        advice += " (P, K, T, test_frames in vreid_course/scales.py)"
        raise TrainingError(f"GPU out of memory at clips of {tuple(shape)}: {advice}") from None
