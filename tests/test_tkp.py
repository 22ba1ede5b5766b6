"""Lesson 04, TKP: golden numbers, names, the start, where gradients go, searches, sampling."""

import numpy as np
import pytest
import torch
import torchvision
from tiny import tiny_split

from vreid_course import lessons
from vreid_course.data.mars import Mars
from vreid_course.losses import batch_hard_triplet
from vreid_course.metrics import evaluate_distances
from vreid_course.nets import resnet
from vreid_course.non_local import NonLocal, non_local_blocks
from vreid_course.scales import scale

tkp = lessons.load("04_tkp")
PIDS = torch.tensor([0, 0, 1, 1])


def golden():
    """Student, teacher (4, 2, 4) and the clips' means (4, 4) of the golden numbers."""
    n = torch.arange(32, dtype=torch.float64)
    i, f = (0.3 * n).sin().view(4, 2, 4), (0.5 * n).cos().view(4, 2, 4)
    return i, f, f.mean(1)


def test_golden_numbers():
    parts = tkp.metric_losses(*golden(), PIDS)
    expected = {
        "i2v": 1.17693391, "v2i": 1.92494494, "i2i": 2.70083670, "v2v": 0.89972400,
        "TKP-F": 4.00940904, "TKP-D": 1.89680479,
    }  # fmt: skip
    assert list(parts) == list(expected) and set(tkp.TERMS) == {*expected, "cross entropy"}
    for name, value in expected.items():
        assert float(parts[name]) == pytest.approx(value, abs=1e-6), name
    paper = tkp.metric_losses(*golden(), PIDS, paper=True)["TKP-D"]
    assert float(paper) == pytest.approx(15.17443835, abs=1e-6)


def test_golden_number_of_the_trapezoid():
    labels = np.array([1]), np.array([0]), np.array([1, 2, 1, 3, 1]), np.array([0, 1, 1, 1, 1])
    found = evaluate_distances(np.arange(5)[None] / 10, *labels, ap="trapezoid")
    assert found.mAP == pytest.approx(1 / 3) and found.cmc[:3].tolist() == [0, 1, 1]


def test_gradients_stop_at_the_teacher_unless_let_through():
    for stop in (True, False):
        i, f, v = (x.clone().requires_grad_() for x in golden())
        parts = tkp.metric_losses(i, f, v, PIDS, stop)
        value = parts["TKP-F"] + parts["TKP-D"]
        grads = torch.autograd.grad(value, (i, f, v), allow_unused=True)
        assert grads[0].abs().max() > 0 and (grads[1] is None) == stop and grads[2] is None


def test_equal_frames_give_finite_gradients():
    i = torch.ones(4, 2, 4, requires_grad=True)
    sum(tkp.metric_losses(i, torch.ones(4, 2, 4), i.mean(1), PIDS).values()).backward()
    assert torch.isfinite(i.grad).all()


def small(**options):
    torch.manual_seed(0)
    return tkp.build(5, resnet("course"), **({"neck": False} | options))


def batch(B=4, T=3):
    torch.manual_seed(1)
    return {"clips": torch.rand(B, T, 3, 64, 32), "labels": torch.arange(B) // 2}


@pytest.mark.parametrize("training", [True, False])
def test_both_networks_agree_at_step_zero(training):
    model = small().train(training)
    i, f = model(batch()["clips"])
    assert i.shape == f.shape == (4, 3, 256)
    torch.testing.assert_close(f, i, rtol=1e-4, atol=1e-4)
    parts = tkp.loss(model, batch())[1]
    assert parts["TKP-F"] < 1e-6 and parts["TKP-D"] < 1e-6


def test_video_feature_ignores_the_order_of_frames_and_of_chunks():
    model = small().eval()
    for block in non_local_blocks(model.video):
        torch.nn.init.constant_(block.W[1].weight, 0.1)
    frames = torch.rand(5, 3, 64, 32)
    with torch.inference_mode():
        whole = tkp.embed(model, frames)
        torch.testing.assert_close(tkp.embed(model, frames[[3, 1, 4, 0, 2]]), whole)
        long = frames.repeat(7, 1, 1, 1)[:33]  # a clip of 32 and one of 1
        parts = [
            tkp.clip_maps(model.video, p[None])[0].mean((2, 3)) for p in (long[:32], long[32:])
        ]
        expected = torch.cat(parts).mean(0)
        torch.testing.assert_close(tkp.embed(model, long), expected / expected.norm())
        expected = model.image(frames).mean((0, 2, 3))
        torch.testing.assert_close(tkp.embed_image(model, frames), expected / expected.norm())


def test_the_loss_is_the_sum_of_the_terms_that_are_asked_for():
    model = small().eval()
    total, parts = tkp.loss(model, batch())
    assert set(parts) == {*tkp.TERMS, "accuracy"}
    torch.testing.assert_close(total, sum(parts[name] for name in tkp.TERMS))
    some, _ = tkp.loss(model, batch(), terms=("i2v", "TKP-D"))
    torch.testing.assert_close(some, parts["i2v"] + parts["TKP-D"])
    i, f = model(batch()["clips"])
    labels = batch()["labels"]
    frames = i.flatten(0, 1), labels.repeat_interleave(3)
    expected = batch_hard_triplet(*frames, 0.3, f.mean(1), labels)
    torch.testing.assert_close(parts["i2v"], expected)
    assert parts["cross entropy"].item() == pytest.approx(2 * np.log(5), abs=0.01)


def test_the_teacher_may_be_the_clip():
    model = small(places={}).eval()
    parts = tkp.loss(model, batch(), target="clip")[1]
    i, f = model(batch()["clips"])
    expected = (i - f.mean(1, keepdim=True)).square().sum(2).mean()
    torch.testing.assert_close(parts["TKP-F"], expected)
    assert not non_local_blocks(model.video)


@pytest.mark.parametrize("name", tkp.VARIANTS)
def test_every_variant_learns(name):
    build, loss = tkp.VARIANTS[name]
    model = small(neck=True, **build)
    tkp.loss(model, batch(), **loss)[0].backward()
    networks = [*model.image.parameters(), *model.video.parameters()]
    assert all(p.grad is not None for p in networks)
    unused = {"four triplets", "i2v triplet"}
    assert (model.classifier.weight.grad is None) == (name in unused)


def official(num_ids=625):
    """Names and shapes of the authors' checkpoint, on ResNet-50."""
    base = torchvision.models.resnet50().state_dict()
    image, video = {}, {}
    stages = {"conv1": "base.0", "bn1": "base.1"} | {f"layer{n}": f"base.{n + 3}" for n in range(5)}
    moved = {2: [0, 1, 3, 4], 3: [0, 1, 3, 4, 6, 7]}
    for key, value in base.items():
        first, rest = key.split(".", 1)
        if first == "fc":
            continue
        image[f"{stages[first]}.{rest}"] = value
        if first[-1] in "23" and first.startswith("layer"):
            number, rest = rest.split(".", 1)
            rest = f"{moved[int(first[-1])][int(number)]}.{rest}"
        video[f"{first}.{rest}"] = value[:, :, None] if value.dim() == 4 else value
    for place, C in (("2.2", 512), ("2.5", 512), ("3.2", 1024), ("3.5", 1024), ("3.8", 1024)):
        shapes = {f"{p}.weight": (C // 2, C, 1, 1, 1) for p in ("g.0", "theta", "phi.0")}
        shapes |= {f"{p}.bias": (C // 2,) for p in ("g.0", "theta", "phi.0")}
        shapes |= {"W.0.weight": (C, C // 2, 1, 1, 1), "W.0.bias": (C,)}
        shapes |= {f"W.1.{p}": (C,) for p in ("weight", "bias", "running_mean", "running_var")}
        shapes["W.1.num_batches_tracked"] = ()
        video |= {f"layer{place}.{k}": torch.rand(s) for k, s in shapes.items()}
    names = {"classifier.weight": torch.rand(num_ids, 2048), "classifier.bias": torch.rand(num_ids)}
    return {"img_model_state_dict": image, "vid_model_state_dict": video,
            "classifier_state_dict": names, "rank1": 0.0, "epoch": 1}  # fmt: skip


def test_the_authors_checkpoint_loads_strictly():
    state = official()
    assert len(state["img_model_state_dict"]) == 318
    assert len(state["vid_model_state_dict"]) == 383
    model = tkp.build(625, resnet("resnet50"), neck=False)
    tkp.load_official(model, state)
    theirs = state["vid_model_state_dict"]["layer3.8.phi.0.weight"][:, :, 0]
    assert torch.equal(model.video.layer3[8].phi[0].weight, theirs)
    assert torch.equal(model.classifier.bias, state["classifier_state_dict"]["classifier.bias"])
    del state["vid_model_state_dict"]["layer2.5.W.1.bias"]
    with pytest.raises(RuntimeError, match=r"Missing key.*layer2.5.W.1.bias"):
        tkp.load_official(model, state)


def test_four_searches_put_the_queries_into_the_gallery(tmp_path):
    split = tiny_split(tmp_path / "bbox_test")
    mars = Mars(tmp_path, split, split, np.array([0, 3]))
    images = np.random.default_rng(0).normal(size=(8, 4))
    found = tkp.four_searches(images, 2 * images, mars)
    assert list(found) == ["I2V", "I2I", "V2I", "V2V"]
    for result in found.values():
        assert result.gallery_size == 8 and result.mAP == found["I2I"].mAP


def test_recipes():
    short, paper = tkp.recipe(scale("mini")), tkp.recipe(scale("paper"))
    assert paper.test_sampler(70, None).tolist() == list(range(70))
    assert len(short.test_sampler(70, None)) == scale("mini").test_frames
    rates = [paper.schedule(70_500)(s) for s in (0, 28_199, 28_200, 56_399, 56_400, 70_499)]
    np.testing.assert_allclose(rates, [1, 1, 0.1, 0.1, 0.01, 0.01])
    rng = np.random.default_rng(0)
    assert np.diff(paper.train_sampler(60, rng)).tolist() == [8, 8, 8]
    assert (
        len(set(paper.train_sampler(9, rng))) == 4
        and paper.train_sampler(1, rng).tolist() == [0] * 4
    )
    clip = torch.arange(2 * 3 * 4 * 2, dtype=torch.uint8).view(2, 3, 4, 2)
    for _ in range(8):
        out = paper.transform(clip, rng)
        assert torch.equal(out, clip) or torch.equal(out, clip.flip(3))
    model = small()
    rates = {g["lr"]: len(g["params"]) for g in tkp.optimiser(model).param_groups}
    assert sum(rates.values()) == len(list(model.parameters()))
    assert rates[3e-3] == 2 + 10 * len(non_local_blocks(model.video))


def test_pairs_and_windows_of_two_cameras(tmp_path):
    split = tiny_split(tmp_path, lengths=(5, 21, 3, 8), pids=(2, 2, 5, 5))
    people = tkp.pairs(split)
    assert people.tolist() == [[0, 1], [2, 3]]
    learn = tkp.windows(split, people)
    assert learn.lengths.tolist() == [1, 1, 8, 8, 8, 8, 5, 8]
    assert learn.pids.tolist() == [2, 5, 2, 2, 2, 2, 2, 5]
    starts = learn.first[2:7] - split.first[1]
    assert starts.tolist() == [0, 4, 8, 12, 16] and learn.last[6] == split.last[1]


def test_shares_of_the_blocks_are_noted_in_training_only():
    model = small()
    seen = tkp.watch(model)
    tkp.loss(model, batch())
    model.eval()(batch()["clips"])
    assert tkp.shares(seen).tolist() == [[0, 0, 0, 0]]
    block = non_local_blocks(model.video)[0]
    assert isinstance(block, NonLocal)
    torch.nn.init.ones_(block.W[1].weight)
    tkp.loss(model.train(), batch())
    assert tkp.shares(seen).shape == (2, 4) and tkp.shares(seen)[1, 0] > 0.1


def test_rows_of_the_study_differ_and_are_known():
    keys = {tuple(sorted(row.items())) for row in tkp.STUDY}
    assert len(keys) == len(tkp.STUDY) == 53
    assert {row["variant"] for row in tkp.STUDY} == set(tkp.VARIANTS)
