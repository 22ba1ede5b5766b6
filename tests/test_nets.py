"""Trunks, pooling, the baseline model, and where weights come from."""

import json
import math
import os
import re
import subprocess
import sys

import pytest
import torch
import torchvision
from torch import nn

from vreid_course import nets
from vreid_course.nets import AttentionPool, Baseline, frame_features, resnet

SIZES = {  # parameters without pooling and classifier: torchvision, timm, our own
    "course": ([32, 32, 64, 128, 256], 2_798_880),
    "resnet18": ([64, 64, 128, 256, 512], 11_176_512),
    "resnet50": ([64, 256, 512, 1024, 2048], 23_508_032),
    "seresnet50": ([64, 256, 512, 1024, 2048], 26_039_024),
}


@pytest.fixture(scope="module")
def trunk():
    torch.manual_seed(0)
    return resnet("course").eval()


@pytest.mark.parametrize("name", SIZES)
def test_trunk(name):
    widths, parameters = SIZES[name]
    net = resnet(name).eval()
    assert net.widths == widths
    assert sum(p.numel() for p in net.parameters()) == parameters
    x = torch.zeros(1, 3, 64, 32)
    for stage, width, shrink in zip(net, widths, (4, 4, 8, 16, 16), strict=True):
        x = stage(x)
        assert x.shape == (1, width, 64 // shrink, 32 // shrink)
    with torch.no_grad():
        assert resnet(name, last_stride=2).eval()(torch.zeros(1, 3, 64, 32)).shape[2:] == (2, 1)


def test_trunk_is_torchvisions_network():
    theirs = torchvision.models.resnet18().eval()
    ours = resnet("resnet18", last_stride=2).eval()
    parts = (ours.stem[0], ours.stem[1], ours.layer1, ours.layer2, ours.layer3, ours.layer4)
    names = ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")
    for part, name in zip(parts, names, strict=True):
        part.load_state_dict(getattr(theirs, name).state_dict())
    frames = torch.randn(2, 3, 64, 64)
    expected = {}
    theirs.layer4.register_forward_hook(lambda m, i, o: expected.update(map=o))
    theirs(frames)
    torch.testing.assert_close(ours(frames), expected["map"])


def test_a_block_can_stand_behind_a_stage(trunk):
    frames = torch.randn(2, 3, 64, 32)
    with_block = resnet("course").eval()
    with_block.load_state_dict(trunk.state_dict())
    with_block.layer3 = nn.Sequential(with_block.layer3, nn.Identity())
    torch.testing.assert_close(with_block(frames), trunk(frames))


@pytest.mark.parametrize(
    ("name", "weights"), [("resnet34", None), ("course", "imagenet"), ("resnet50", "course")]
)
def test_no_such_backbone(name, weights):
    with pytest.raises(ValueError, match=f"no backbone '{name}'.*'course'"):
        resnet(name, weights)


def test_frame_features_do_not_depend_on_the_chunk(trunk):
    frames = torch.randn(7, 3, 64, 32)
    with torch.no_grad():
        expected = trunk(frames).mean((2, 3))
        for chunk in (1, 3, 7, 64):
            torch.testing.assert_close(frame_features(trunk, frames, chunk), expected)


@pytest.mark.parametrize("neck", [False, True])
@pytest.mark.parametrize("pool", [nets.mean_over_time, nets.max_over_time, AttentionPool(256)])
def test_baseline(trunk, pool, neck):
    torch.manual_seed(0)
    model = Baseline(9, trunk, pool, neck).eval()
    clips = torch.randn(2, 3, 3, 64, 32)
    features, logits = model(clips)
    assert features.shape == (2, 256) and logits.shape == (2, 9)
    cross_entropy = nn.functional.cross_entropy(logits, torch.tensor([0, 8]))
    assert cross_entropy.item() == pytest.approx(math.log(9), rel=0.02)
    frames = trunk(clips[0]).mean((2, 3))
    torch.testing.assert_close(features[:1], pool(frames[None]))
    embedded = model.embed(clips[0])
    torch.testing.assert_close(embedded, model.neck(features)[0])
    torch.testing.assert_close(logits[0], model.classifier(embedded))
    if neck:
        assert not model.neck.bias.requires_grad
        model.neck.running_mean += 1
        assert not torch.allclose(model.embed(clips[0]), embedded)


def test_attention_pool_with_equal_scores_is_the_mean():
    torch.manual_seed(0)
    frames, pool = torch.randn(2, 5, 8), AttentionPool(8)
    weights = pool.weights(frames)
    torch.testing.assert_close(weights.sum(1), torch.ones(2))
    expected = torch.stack(
        [sum(w * f for w, f in zip(weights[b], frames[b], strict=True)) for b in range(2)]
    )
    torch.testing.assert_close(pool(frames), expected)
    nn.init.zeros_(pool.score[2].weight)
    torch.testing.assert_close(pool(frames), nets.mean_over_time(frames))
    nn.init.zeros_(pool.score[0].weight)
    pool.score[0].weight.data[0, 0] = 1.0
    pool.score[2].weight.data[0, 0] = 1e6  # all weight to the frame with the largest channel 0
    best = frames[torch.arange(2), frames[:, :, 0].argmax(1)]
    torch.testing.assert_close(pool(frames), best)


def test_course_weights_come_back(tmp_path, trunk, monkeypatch):
    path = nets.save_weights(trunk, "course_backbone", "python -m made it", seed=5, folder=tmp_path)
    assert path.stat().st_size < 2.1 * SIZES["course"][1]
    assert json.loads((tmp_path / "course_backbone.json").read_text())["seed"] == 5
    monkeypatch.setattr(nets, "WEIGHTS_FOLDER", tmp_path)
    for stride in (1, 2):
        loaded = resnet("course", "course", last_stride=stride)
        for key, value in trunk.state_dict().items():
            back = loaded.state_dict()[key]
            assert back.dtype == value.dtype
            torch.testing.assert_close(back, value, rtol=1e-3, atol=1e-6)
    assert next(trunk.parameters()).dtype == torch.float32, "saving changed the trunk"


@pytest.mark.parametrize("fault", ["missing", "no hash", "cut", "other network"])
def test_broken_course_weights(tmp_path, trunk, fault):
    path = nets.save_weights(trunk, "course_backbone", "", 0, tmp_path)
    if fault == "missing":
        path.unlink()
    elif fault == "no hash":
        path.with_suffix(".json").write_text("{")
    elif fault == "cut":
        path.write_bytes(path.read_bytes()[:-1000])
    else:
        nets.save_weights(
            nets.Trunk(trunk.stem, [trunk.layer1] * 4, 1), "course_backbone", "", 0, tmp_path
        )
    with pytest.raises(ValueError, match=r"course_backbone\.pt.*restore data/weights") as info:
        nets.load_weights(trunk, "course_backbone", tmp_path)
    assert "\n" not in str(info.value)


@pytest.mark.parametrize("name", ["resnet18", "seresnet50"])
def test_imagenet_weights_from_a_file(tmp_path, monkeypatch, name):
    import timm

    makers = {"resnet18": torchvision.models.resnet18}
    maker = makers.get(name, lambda: timm.create_model("legacy_seresnet50"))
    torch.manual_seed(3)
    state = maker().state_dict()
    torch.save(state, tmp_path / f"{name}.pth")
    for named in (tmp_path, tmp_path / f"{name}.pth"):
        monkeypatch.setenv("VREID_WEIGHTS", str(named))
        loaded = resnet(name, "imagenet")
        key = "layer4.1.bn2.running_var"
        assert torch.equal(loaded.state_dict()[key], state[key])
        key = "layer4.1.conv2.weight"
        assert torch.equal(loaded.state_dict()[key], state[key])
    with pytest.raises(ValueError, match=f"{name}.pth: no ImageNet.*resnet50.*Missing key"):
        monkeypatch.setenv("VREID_WEIGHTS", str(tmp_path / f"{name}.pth"))
        resnet("resnet50", "imagenet")


def test_imagenet_weights_that_cannot_be_had(tmp_path, monkeypatch):
    monkeypatch.setenv("VREID_WEIGHTS", str(tmp_path))
    with pytest.raises(ValueError, match=re.escape(str(tmp_path)) + ".*VREID_WEIGHTS"):
        resnet("resnet18", "imagenet")
    (tmp_path / "resnet18.pth").write_bytes(b"no weights")
    with pytest.raises(ValueError, match=r"resnet18\.pth.*VREID_WEIGHTS") as info:
        resnet("resnet18", "imagenet")
    assert "\n" not in str(info.value)
    monkeypatch.delenv("VREID_WEIGHTS")

    def no_network(*args, **kwargs):
        raise OSError("no route\nto host")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", no_network)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", no_network)
    with pytest.raises(ValueError, match=r"no route to host.*VREID_WEIGHTS"):
        resnet("resnet18", "imagenet")


def test_a_torchvision_that_does_not_fit_is_said(tmp_path):
    (tmp_path / "torchvision").mkdir()
    broken = "raise RuntimeError('operator torchvision::nms does not exist')"
    (tmp_path / "torchvision" / "__init__.py").write_text(broken)
    command = [sys.executable, "-c", "import vreid_course.nets"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode and re.search(r"does not fit torch .*nms.*: install both again", last)
