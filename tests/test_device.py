"""Training and extraction on whatever this machine has, and on an accelerator that it pretends."""

import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from tiny import tiny_split
from torch import nn

from vreid_course import devices, losses, sampling
from vreid_course.drawing.mini_mars import MiniMars, draw
from vreid_course.loader import ClipBatches, FrameStore
from vreid_course.nets import Baseline, resnet
from vreid_course.training import extract, train

TESTS = Path(__file__).parent


def loss(model, batch):
    features, logits = model(batch["clips"])
    assert batch["clips"].device.type == devices.device().type
    total = losses.smoothed_cross_entropy(logits, batch["labels"])
    total = total + losses.batch_hard_triplet(features, batch["pids"])
    return total, {"accuracy": losses.accuracy(logits, batch["labels"])}


def test_train_resume_extract(tmp_path):
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.manual_seed(0)
    store = FrameStore(tiny_split(tmp_path / "bbox_train", size=(64, 32)), (64, 32))
    people = sampling.IdentityBatches(store.split.pids, P=4, K=2)
    batches = ClipBatches(store, partial(sampling.spread, frames=2), people)
    model = Baseline(4, resnet("course"), neck=True)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    for steps in (6, 12):  # the second call goes on from the checkpoint of the first
        history = train(model, loss, optimiser, batches, steps, folder=tmp_path)
        assert [row["step"] for row in history] == list(range(steps))
    assert history[-1]["loss"] < history[0]["loss"]
    assert next(model.parameters()).dtype == torch.float32
    assert next(model.parameters()).device.type == "cpu", "it comes back"
    features = extract(model, Baseline.embed, store, sampling.whole)
    assert features.shape == (8, 256) and np.isfinite(features).all()
    AcceleratorState._reset_state(reset_partial_state=True)


BEGUN = {}  # processes that run already, by what they were asked


def begin(kind, *options):
    """Start on_accelerator.py in a process of its own; see conftest.py."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options]
    environment = {k: v for k, v in os.environ.items() if k not in ("VREID_SCALE", "VREID_DATA")}
    environment |= {"PRETEND": kind, "CUDA_VISIBLE_DEVICES": "", "VREID_WEIGHTS": str(TESTS)}
    environment |= {} if kind else {"OMP_NUM_THREADS": "1"}  # it runs beside other tests
    command.append(str(TESTS / "on_accelerator.py"))
    BEGUN[kind, options] = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def on_the_pretend_accelerator(kind, *options):
    """How many tests of on_accelerator.py pass."""
    if (kind, options) not in BEGUN:
        begin(kind, *options)
    process = BEGUN.pop((kind, options))
    said = process.communicate()[0]
    assert process.returncode == 0, said[-6000:]
    return int(re.search(r"(\d+) passed", said)[1])


def test_on_an_accelerator():
    """Every method, lessons 03, 06 and 07's own loops: each tensor where it is needed."""
    assert on_the_pretend_accelerator("") > 35


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "some"),
    [("t4", "resume or named or mean"), ("mac", "every_method or stages or cost")],
)
def test_on_an_accelerator_that_has_less(kind, some):
    """A T4 computes in float16, with a loss that is scaled; a Mac has no float64."""
    assert on_the_pretend_accelerator(kind, "-k", some) >= 3


REPORT = """
import sys
sys.path.insert(0, {tests!r})
import pretend_accelerator
pretend_accelerator.register()
import gpu_report
gpu_report.PIECES, gpu_report.STEPS, gpu_report.WARM = ["00_tour", "speed-TKP"], 3, 1
gpu_report.lessons.notebook = lambda name: {notebook!r}  # a small one in its place
sys.exit(gpu_report.main(["--minutes", "0", "--readme", {readme!r}]))
"""


@pytest.mark.slow
def test_the_report_of_a_gpu_goes_on_piece_by_piece(tmp_path):
    """Tried on the pretend accelerator: a notebook by nbval, then a method's speed."""
    readme = tmp_path / "README.md"
    readme.write_text("<!-- measured on a GPU -->\n<!-- end -->\n")
    first = REPORT.split("import gpu_report")[0].format(tests=str(TESTS))
    data = draw(MiniMars(6, 4, frames=(3, 8)), tmp_path / "set")
    here = {"VREID_CACHE": str(tmp_path), "VREID_SCALE": "smoke", "GPU_REPORT_FIRST": first}
    here["VREID_DATA"] = str(data)
    code = "from vreid_course import devices\nassert devices.device().type == 'pretend'"
    small = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    nbformat.write(small, tmp_path / "small.ipynb")
    names = {"readme": str(readme), "notebook": str(tmp_path / "small.ipynb")}
    script = REPORT.format(tests=str(TESTS), **names)
    for missing in (1, 0):
        done = subprocess.run(
            [sys.executable, "-c", script], env=os.environ | here, capture_output=True, text=True
        )
        assert done.returncode == missing, done.stdout[-3000:] + done.stderr[-3000:]
    found = readme.read_text()
    assert re.search(r"^\| 00_tour \| \d+ s \| 0\.0 \|$", found, re.M), found
    assert re.search(r"^\| TKP \| [\d.e+]+ \| [\d.e+]+ \| [\d.e-]+ \| 1 \| \d+", found, re.M)
    assert "pretend accelerator" in found and "| 01_baseline | not measured |" in found


def test_what_is_fast_where(monkeypatch):
    """float16 for a T4, which imitates bfloat16; float32 where neither is in the hardware."""
    known = {}
    monkeypatch.setattr(torch, "get_device_module", lambda kind: known[kind])
    known["xpu"] = SimpleNamespace(is_bf16_supported=lambda including_emulation: True)
    known["mps"] = SimpleNamespace()
    for capability, kind in (
        ((9, 0), torch.bfloat16),
        ((7, 5), torch.float16),
        ((6, 1), torch.float32),
    ):
        known["cuda"] = SimpleNamespace(
            is_bf16_supported=lambda including_emulation, c=capability: (
                including_emulation or c >= (8, 0)
            ),
            get_device_capability=lambda c=capability: c,
        )
        assert devices.half(torch.device("cuda", 0)) == kind
    assert devices.half(torch.device("xpu", 0)) == torch.bfloat16
    assert devices.half(torch.device("mps", 0)) == torch.float32
    assert devices.half(torch.device("cpu")) == torch.bfloat16


def test_kernels_of_2d_and_3d_convolutions_are_laid_out_anew():
    model = nn.ModuleList([nn.Conv2d(3, 4, 3), nn.Conv3d(3, 4, 3), nn.Linear(3, 4)])
    before, parameters = [p.clone() for p in model.parameters()], [*model.parameters()]
    assert devices.channels_last(model) is model
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert model[1].weight.is_contiguous(memory_format=torch.channels_last_3d)
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before, parameters, strict=True))


def test_in_bfloat16_computes_so_and_gives_float32_back():
    seen = []

    def embed(model, frames):
        seen.append(model(frames).dtype)
        return model(frames)

    def loss(model, batch):
        return model(batch).sum(), {"accuracy": 1}

    model, x = nn.Linear(3, 2), torch.rand(4, 3)
    fast = devices.in_bfloat16(embed)(model, x)
    assert seen == [torch.bfloat16] and fast.dtype == torch.float32
    torch.testing.assert_close(fast, model(x), atol=0.02, rtol=0.02)
    assert not torch.equal(fast, model(x))
    assert devices.in_bfloat16(loss)(model, x)[1] == {"accuracy": 1}
