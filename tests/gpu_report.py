"""What the course does on a GPU: one command, to be called again until it says that all is there.

    python tests/gpu_report.py              measures what is missing, for less than ten minutes
    python tests/gpu_report.py --list       what there is to measure, and what is done
    python tests/gpu_report.py --again speed-TKP ...

Pieces: the fast tests, every notebook by nbval at scale gpu, and for each method of lesson 08 what
`bench` says, pictures a second in training beside a plain float32 loop on the same batch, the share
of time spent waiting for data, and the peak of memory. The set is what VREID_DATA names (MARS or a
part of it), else a drawn one without its truth. Results are kept in the cache folder, a file a
piece; the table between the two marks in README.md is written from them.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from vreid_course import devices, lessons, study
from vreid_course.data.mars import read_mars
from vreid_course.drawing.mini_mars import MiniMars, draw
from vreid_course.files import cache_folder
from vreid_course.loader import ClipBatches, FrameStore
from vreid_course.sampling import IdentityBatches, consecutive
from vreid_course.scales import Scale, scale
from vreid_course.studies import compare, ground
from vreid_course.training import train

ROOT = Path(__file__).parents[1]
METHODS = [name for name in compare.METHODS if name != "one picture"]
PIECES = ["fast-tests", *lessons.names(), *(f"speed-{name}" for name in METHODS)]
STEPS, WARM = 30, 5
BEGUN = time.perf_counter()
MARKS = "<!-- measured on a GPU -->", "<!-- end -->"
#: A kernel that starts with this tells after each cell how much memory its tensors took at most.
WATCH = """
import json, os
from pathlib import Path
from vreid_course import devices
def tell(*_):
    Path(os.environ["GPU_REPORT"]).write_text(json.dumps(devices.peak_memory(devices.device())))
get_ipython().events.register("post_run_cell", tell)
"""


def folder() -> Path:
    """Where the pieces are kept, a folder for each device and scale."""
    name = "".join(c if c.isalnum() else "_" for c in f"{devices.name()}_{scale().name}")
    path = cache_folder() / "gpu_report" / name
    path.mkdir(parents=True, exist_ok=True)
    return path


def data() -> Path:
    """The set: what VREID_DATA names, else a drawn one in the role of real MARS."""
    if named := os.environ.get("VREID_DATA"):
        return Path(named)
    out = cache_folder() / "gpu_report" / f"drawn_{scale().height}"
    if not out.exists():
        draw(MiniMars(24, 12, seed=77, height=scale().mini_mars.height, frames=(8, 40)), out)
        for file in out.iterdir():
            if file.is_file():
                file.unlink()  # its truth
    return out


def run_pytest(*arguments: str, **environment: str) -> dict:
    """How pytest ended, and in how many seconds."""
    start, command = time.perf_counter(), [sys.executable, "-m", "pytest", "-q", "-x"]
    command += ["-c", str(ROOT / "pyproject.toml")]
    left = max(590 - (start - BEGUN), 60)
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider", *arguments], cwd=ROOT, env=os.environ | environment,
        capture_output=True, text=True, timeout=left,
    )  # fmt: skip
    last = (done.stdout.strip().splitlines() or ["nothing"])[-1]
    seconds = time.perf_counter() - start
    return {"passed": done.returncode == 0, "said": last, "seconds": round(seconds, 1)}


def fast_tests() -> dict:
    """The fast part of the tests, on the data they draw."""
    return run_pytest("-m", "not slow", VREID_DATA="", VREID_SCALE="")


def notebook(name: str) -> dict:
    """A lesson by nbval, with the peak of its kernel's memory."""
    profile, peak = folder() / "ipython", folder() / f"{name}_peak.json"
    start = profile / "profile_default" / "startup"
    start.mkdir(parents=True, exist_ok=True)
    first = os.environ.get("GPU_REPORT_FIRST", "")  # a line that registers a pretended device
    (start / "00_watch.py").write_text(first + WATCH, "utf-8")
    where = {"IPYTHONDIR": str(profile), "GPU_REPORT": str(peak), "VREID_DATA": str(data())}
    found = run_pytest(str(lessons.notebook(name)), VREID_SCALE=scale().name, **where)
    return found | {"MiB": json.loads(peak.read_text()) if peak.exists() else None}


class Waiting:
    """Batches that note how long the training waited for them, from step WARM on."""

    def __init__(self, batches: ClipBatches) -> None:
        self.batches, self.waited, self.start = batches, 0.0, 0.0

    def __call__(self, *steps) -> Iterator[dict[str, Tensor]]:
        batches = iter(self.batches(*steps))
        for step in range(STEPS):
            if step == WARM:
                devices.synchronise(devices.device())
                self.start = time.perf_counter()
            before = time.perf_counter()
            batch = next(batches)
            self.waited += (time.perf_counter() - before) * (step >= WARM)
            yield batch


def speed(name: str) -> dict:
    """Training of a method by the course's loop and by a plain one; what `bench` says."""
    at, split = ground.footing(scale()), read_mars(data()).train
    method, people = compare.METHODS[name], len(set(split.pids.tolist()))
    torch.manual_seed(0)
    model, loss = compare.new_model(method, people, at), compare.loss_of(method, "paper")
    rows = IdentityBatches(split.pids, at.P, at.K)
    sampler, workers = partial(consecutive, frames=at.T), min(8, (os.cpu_count() or 2) - 1)
    batches = Waiting(ClipBatches(FrameStore(split, at.size), sampler, rows, workers=workers))
    sgd = torch.optim.SGD(model.parameters(), 1e-4)
    devices.peak_memory(devices.device(), reset=True)
    train(model, loss, sgd, batches, STEPS)
    devices.synchronise(devices.device())
    seconds = time.perf_counter() - batches.start
    pictures = at.P * at.K * at.T * (STEPS - WARM)
    found = {"pictures a second": pictures / seconds, "waiting": batches.waited / seconds}
    found["training MiB"] = devices.peak_memory(devices.device())
    found["plain pictures a second"] = plain(model, loss, next(batches.batches(0, 1)), at)
    cost = study.cost(model.to(devices.device()), torch.zeros(1, at.T, 3, *at.size))
    return {key: round(float(value), 4) for key, value in (found | cost).items()}


def plain(model, loss, batch: dict[str, Tensor], at: Scale) -> float:
    """Pictures a second of a float32 loop of a few lines on one batch that is on the device."""
    where = devices.device()
    sgd = torch.optim.SGD(model.to(where).train().parameters(), 1e-4)
    batch = {key: x.to(where) for key, x in batch.items()}
    batch["clips"] = batch["clips"].float() / 255 - 0.5
    for step in range(STEPS):
        if step == WARM:
            devices.synchronise(where)
            start = time.perf_counter()
        sgd.zero_grad()
        loss(model, batch)[0].backward()
        sgd.step()
    devices.synchronise(where)
    return at.P * at.K * at.T * (STEPS - WARM) / (time.perf_counter() - start)


def measure(piece: str) -> dict:
    """One piece; what it raises is its result too, so that the next ones are measured."""
    try:
        if piece == "fast-tests":
            return fast_tests()
        return speed(piece.removeprefix("speed-")) if "speed-" in piece else notebook(piece)
    except (RuntimeError, ValueError, OSError, subprocess.TimeoutExpired) as error:
        return {"passed": False, "said": " ".join(str(error).split())[:300]}


def known() -> dict[str, dict]:
    """What was measured so far."""
    files = {piece: folder() / f"{piece}.json" for piece in PIECES}
    return {piece: json.loads(f.read_text("utf-8")) for piece, f in files.items() if f.exists()}


def table(found: dict[str, dict]) -> str:
    """The rows for README.md; a piece that is missing was "not measured"."""
    none = "not measured"
    lines = [f"On {devices.name()}, torch {torch.__version__}, scale {scale().name}:", ""]
    lines += ["| lesson | runs | GiB |", "|---|---|---|"]
    for name in lessons.names():
        row = found.get(name, {})
        runs = f"{row['seconds']:.0f} s" if row.get("passed") else row.get("said", none)
        lines.append(f"| {name} | {runs} | {(row.get('MiB') or 0) / 1024:.1f} |" if row
                     else f"| {name} | {none} | {none} |")  # fmt: skip
    heads = ("pictures a second", "plain pictures a second", "waiting", "training MiB", "ms")
    lines += ["", f"| method | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for name in METHODS:
        row = found.get(f"speed-{name}", {})
        values = [f"{row[head]:.3g}" if head in row else row.get("said", none) for head in heads]
        lines.append(f"| {name} | {' | '.join(values)} |")
    return "\n".join(lines)


def write(path: Path, found: dict[str, dict]) -> None:
    """Put the table between the marks of a text."""
    head, rest = path.read_text("utf-8").split(MARKS[0])
    tail = rest.split(MARKS[1], 1)[1]
    path.write_text(f"{head}{MARKS[0]}\n{table(found)}\n{MARKS[1]}{tail}", "utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Measure what is missing; 0 if all is there, 1 if it has to be called again."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=4, help="then no other piece is begun")
    parser.add_argument("--again", nargs="*", default=[], help="pieces to measure anew")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    options = parser.parse_args(arguments)
    os.environ.setdefault("VREID_SCALE", "gpu")
    measured = 0
    for piece in PIECES:
        if piece in known() and piece not in options.again:
            continue
        late = measured and time.perf_counter() - BEGUN > 60 * options.minutes
        if options.list or late:
            print(f"{piece}: missing")
            continue
        found, measured = measure(piece), measured + 1
        (folder() / f"{piece}.json").write_text(json.dumps(found), "utf-8")
        print(f"{piece}: {found}", flush=True)
    if not options.list and devices.device().type != "cpu":
        write(options.readme, known())
    return int(len(known()) < len(PIECES))


if __name__ == "__main__":
    sys.exit(main())
