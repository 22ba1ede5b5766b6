"""What the course does on an accelerator, seen on the pretend one; `test_device` runs this file.

In a process of its own, for the device cannot be unregistered. What is computed wrongly is for
other tests: here tensors have to be on the device that they are needed on.
"""

from dataclasses import replace

import numpy as np
import pretend_accelerator as pretend

HERE = pretend.register()  # before anything is computed

import pytest  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from test_device import test_train_resume_extract  # noqa: E402, F401
from tiny import tiny_split  # noqa: E402
from torch import nn  # noqa: E402

from vreid_course import devices, lessons, losses, sampling, study, training  # noqa: E402
from vreid_course.loader import FrameStore  # noqa: E402
from vreid_course.nets import Baseline, resnet  # noqa: E402
from vreid_course.scales import SCALES, scale  # noqa: E402
from vreid_course.studies import compare  # noqa: E402

METHODS = [name for name, method in compare.METHODS.items() if name != "one picture"]
AT = replace(scale("smoke"), height=64, P=2, T=2, weights=None)


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    return tiny_split(tmp_path_factory.mktemp("bbox_train"), size=(64, 32))


def model_is_on(model):
    return {x.device.type for x in model.state_dict().values()}


# ------------------------------------------------------------------------ the device is a device


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        (lambda a, b: a + b, "same device"),
        (lambda a, b: a @ b.T, "same device"),
        (lambda a, b: torch.cat([a, b]), "same device"),
        (lambda a, b: F.cross_entropy(a, torch.tensor([0, 1])), "same device"),
        (lambda a, b: nn.Linear(3, 4)(a), "same device"),
        (lambda a, b: b[a.long()[:, 0]], "device"),
        (lambda a, b: a.numpy(), "can't convert|Numpy|numpy"),
        (lambda a, b: torch.randn(3, device=HERE, generator=torch.Generator()), "generator"),
        (lambda a, b: a.long() @ a.long().T, "not implemented"),
    ],
)
def test_it_refuses_what_a_gpu_refuses(operation, message):
    a, b = torch.rand(2, 3).to(HERE), torch.rand(2, 3)
    with pytest.raises((RuntimeError, TypeError), match=message):
        operation(a, b)


@pytest.mark.parametrize(
    "operation",
    [
        lambda x, w: F.conv2d(x, w, padding=1),
        lambda x, w: F.max_pool2d(x, 3, 2, 1)[:, :, 1:].transpose(2, 3).reshape(len(x), -1) * 2 + 1,
        lambda x, w: F.scaled_dot_product_attention(x, x, x),
        lambda x, w: torch.cdist(x.flatten(1), x.flatten(1)).topk(2).values,
        lambda x, w: nn.BatchNorm2d(3).to(x.device)(x),
        lambda x, w: torch.manual_seed(1) and nn.LSTM(8, 6).to(x.device)(x[0])[0],
        lambda x, w: x[x > 0].sum() + x.amax() + x.std(),
    ],
)
def test_it_computes_what_the_cpu_computes(operation):
    generator = torch.Generator().manual_seed(0)
    inputs = (
        torch.randn(2, 3, 8, 8, generator=generator),
        torch.randn(4, 3, 3, 3, generator=generator),
    )
    sides = [[x.detach().to(where).requires_grad_() for x in inputs] for where in ("cpu", HERE)]
    here, there = (operation(*side) for side in sides)
    assert there.device == HERE and here.stride() == there.stride()
    for value in (here, there):
        value.square().sum().backward()
    torch.testing.assert_close(there.cpu(), here, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sides[1][0].grad.cpu(), sides[0][0].grad, rtol=1e-3, atol=1e-3)


def test_autocast_has_the_lists_of_cuda():
    x = torch.rand(4, 4).to(HERE)
    with torch.autocast(HERE.type, torch.bfloat16):
        assert (x @ x).dtype == torch.bfloat16
        for exact in (F.softmax, F.normalize):
            assert exact(x @ x, dim=1).dtype == torch.float32
        assert torch.cdist(x.bfloat16(), x.bfloat16()).dtype == torch.float32


# --------------------------------------------------------------------------------------- the course


def test_it_is_found_and_named():
    assert devices.device() == HERE and devices.name() == "pretend accelerator"
    assert devices.half(HERE) == (torch.float16 if pretend.KIND == "t4" else torch.bfloat16)
    assert devices.peak_memory(HERE) > 0
    with pytest.warns(UserWarning, match="scale gpu starts from"):
        assert scale().name == "gpu"


def test_a_model_comes_back_to_where_it_was(split):
    store = FrameStore(split, AT.size)
    for where in ("cpu", HERE.type):
        model = Baseline(4, resnet("course"), neck=True).to(where)
        training.extract(model, Baseline.embed, store, sampling.whole)
        training.extract_frames(model.trunk, store, split.folder.parent / where)
        assert model_is_on(model) == {where}


def test_no_triplet_is_no_number_here():
    """To look for it would be to wait for the device at every step."""
    x = torch.rand(2, 3).to(HERE)
    assert losses.batch_hard_triplet(x, torch.ones(2, device=HERE)).isnan()


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_and_describes(name, split, monkeypatch):
    monkeypatch.setenv("VREID_SCALE", "smoke")
    monkeypatch.setitem(SCALES, "smoke", AT)
    torch.manual_seed(0)
    method = compare.METHODS[name]
    model = compare.new_model(method, 4, AT)
    sgd = lambda model: torch.optim.SGD(model.parameters(), 1e-3)  # noqa: E731
    recipe = replace(lessons.load("01_baseline").recipe(AT), steps=1, optimiser=sgd)
    history = study.fit(model, compare.loss_of(method, "paper"), recipe, split, AT, 0)
    assert len(history) == 1 and model_is_on(model) == {"cpu"}
    few = split.select(np.arange(len(split)) < 1)
    embed = devices.in_bfloat16(compare.embed_of(name, "paper"))
    found = training.extract(model, embed, FrameStore(few, AT.size), recipe.test_sampler)
    assert len(found) == 1 and np.isfinite(found).all() and model_is_on(model) == {"cpu"}


def test_the_cost_of_a_method():
    model = Baseline(4, resnet("course")).to(HERE)
    found = study.cost(model, torch.zeros(1, 2, 3, 64, 32), repeats=1)
    assert found["MiB"] == 1 and found["GFLOPs"] > 0.01


def test_the_stages_of_the_completed_set(split, monkeypatch):
    """Lesson 06: scoring, painting, and the network that is loaded for it."""
    monkeypatch.setenv("VREID_SCALE", "smoke")
    vrstc = lessons.load("06_vrstc")
    mars = vrstc.Mars(split.folder.parent, split, split, np.array([0]))
    stc = vrstc.stcnet(mars, scale("smoke"))
    assert model_is_on(stc) == {HERE.type}
    store = FrameStore(split, (128, 64))
    scores = vrstc.score_split(resnet("course").to(HERE), store)
    assert [len(x) for x in scores] == split.lengths.tolist()
    guider = vrstc.build(4, resnet("course"), None, neck=True)
    completion = vrstc.Completion(vrstc.STCnet(2), guider, (64, 32), 2)
    batches = vrstc.CleanTriples(store, [x < -1 for x in scores], 4)
    assert len(vrstc.train_stc(completion, batches, 2)) == 2
    flagged = np.zeros((5, 3), bool)
    flagged[2, 1] = True
    frames = store.read(0, np.arange(5))
    done = vrstc.repaint(stc, frames, flagged)
    assert done.device.type == "cpu" and not torch.equal(done[2], frames[2])


def test_heads_on_kept_maps(split, monkeypatch):
    """Lesson 07's own loop and its pairs; lesson 03's on kept features."""
    monkeypatch.setenv("VREID_CACHE", str(split.folder.parent))
    related = lessons.load("07_related")
    kept = related.kept_maps(trunk := resnet("course"), split, AT.size)
    assert model_is_on(trunk) == {"cpu"}
    mars = related.Mars(split.folder.parent, split, split, np.array([0, 2, 4]))
    for name in ("STMP", "Snippet", "ASTPN"):
        model = related.System(4, name, *kept[0].shape[1:]).to(HERE)
        related.fit(model, kept, split.pids, 2, K=2)
        assert related.ranks(model, related.describe(model, kept, 2), mars).scored
    gltr = lessons.load("03_gltr")
    frames = training.extract_frames(trunk, FrameStore(split, AT.size), split.folder.parent)
    temporal = gltr.start_from_pca(gltr.Temporal(4, 256, 16), frames)
    gltr.fit_head(temporal, gltr.FeatureClips(frames, split.pids, B=4), 2)
    assert gltr.describe(temporal, frames).shape == (8, 64)
