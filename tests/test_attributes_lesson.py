"""Lesson 05, attributes: formulas against loops, limit cases, labels from both kinds of file."""

import math

import numpy as np
import pytest
import torch
from tiny import tiny_split

from vreid_course import lessons
from vreid_course.data.attributes import ATTRIBUTES, KEYS
from vreid_course.nets import resnet

lesson = lessons.load("05_attributes")


def random(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(sizes=(2, 3), widths=(4, 4, 2), people=3, **options):
    torch.manual_seed(0)
    labels = torch.zeros(people, len(lesson.LABELS))
    return lesson.AttributeNet(resnet("course"), labels, sizes=sizes, widths=widths, **options)


@pytest.mark.parametrize("sigma", [0.3, 0.5, 1.2])
@pytest.mark.parametrize("shape", [(1, 2, 1), (2, 5, 4), (3, 8, 21)])
def test_weights_equal_plain_loops(shape, sigma):
    p = random(*shape)
    found = lesson.shares(lesson.confidence(p, sigma))
    for b in range(shape[0]):
        conf = [
            math.exp(sum(float(x) * math.log(float(x)) for x in p[b, t]) / shape[2] / sigma**2)
            for t in range(shape[1])
        ]
        np.testing.assert_allclose(found[b], np.array(conf) / sum(conf), rtol=1e-6)


def test_limits_of_the_confidence():
    assert lesson.confidence(torch.zeros(3)) == 1 and lesson.confidence(torch.ones(3)) == 1
    grid = torch.linspace(0, 1, 100_001, dtype=torch.float64)[:, None]
    lowest = lesson.confidence(grid)
    assert float(grid[lowest.argmin()]) == pytest.approx(1 / math.e, abs=1e-4)
    for sigma, ratio in ((0.3, 59.6), (0.5, 4.36), (0.9, 1.58), (1.2, 1.29)):
        found = float(1 / lesson.confidence(grid, sigma).min())
        assert found == pytest.approx(ratio, rel=5e-3)  # the table of the method sheet


def test_equal_confidence_is_the_mean_and_a_certain_frame_takes_all():
    same = lesson.shares(lesson.confidence(torch.full((2, 5, 3), 0.3)))
    torch.testing.assert_close(same, torch.full((2, 5), 0.2))
    p = torch.full((1, 4, 2), 0.5)
    p[0, 2] = 0.9999
    assert lesson.shares(lesson.confidence(p, sigma=0.1))[0, 2] > 0.999


@pytest.mark.parametrize(("sizes", "widths"), [((2, 3), (4, 4, 2)), ((5,), (6,)), ((), (7,))])
def test_merge_equals_plain_loops(sizes, widths):
    model = network(sizes, widths)
    vectors = 3 * random(2, 4, sum(widths)).float() - 1
    with torch.inference_mode():
        merged, weights = lesson.merge(model, vectors), lesson.frame_weights(model, vectors)
        place = 0
        for n, width in enumerate(widths):
            for b in range(2):
                part = vectors[b, :, place : place + width]
                conf = [1.0] * 4
                if n < len(sizes):
                    conf = [
                        lesson.confidence(model.predictors[n](x).sigmoid()).item() for x in part
                    ]
                conf = np.array(conf) / np.sum(conf)
                np.testing.assert_allclose(weights[b, :, n], conf, rtol=1e-5)
                np.testing.assert_allclose(
                    merged[b, place : place + width], conf @ part.numpy(), rtol=1e-4, atol=1e-6
                )
            place += width


def test_weights_are_constants_for_the_gradient():
    model, vectors = network(), random(1, 3, 10).float().requires_grad_()
    weights = lesson.frame_weights(model, vectors)
    assert not weights.requires_grad
    lesson.merge(model, vectors)[0, :4].sum().backward()
    expected = weights[0, :, :1].expand(3, 4)
    torch.testing.assert_close(vectors.grad[0, :, :4], expected)
    assert all(head.weight.grad is None for head in model.predictors)


def test_without_sigma_all_frames_count_alike():
    vectors = random(2, 5, 10).float()
    torch.testing.assert_close(lesson.merge(network(sigma=None), vectors), vectors.mean(1))


@pytest.mark.parametrize("variant", [*lesson.VARIANTS])
def test_every_variant_trains_and_embeds(variant, monkeypatch):
    monkeypatch.setenv("VREID_SCALE", "smoke")
    torch.manual_seed(0)
    labels = np.random.default_rng(0).integers(0, 2, (3, len(lesson.LABELS))).astype(np.float32)
    model = lesson.build(3, resnet("course"), labels, variant=variant)
    clips = torch.rand(2, 4, 3, 64, 32)
    video, logits, named = model(clips)
    assert video.shape == (2, 192) and logits.shape == (2, 3)
    assert named.shape == (2, 0 if variant == "plain" else len(lesson.LABELS))
    total, parts = lesson.loss(model, {"clips": clips, "labels": torch.tensor([0, 2])})
    total.backward()
    values = {name: value.item() for name, value in parts.items()}
    expected = values["identity"] + model.share * values.get("labels", 0)
    assert total.item() == pytest.approx(expected)
    with torch.inference_mode():
        feature = lesson.embed(model.eval(), clips[0])
    assert feature.shape == (192,) and float(feature.norm()) == pytest.approx(1, abs=1e-5)


def test_embed_is_the_forward_pass(monkeypatch):
    monkeypatch.setenv("VREID_SCALE", "smoke")
    model = lesson.build(3, resnet("course"), np.zeros((3, len(lesson.LABELS)))).eval()
    clips = torch.rand(2, 3, 3, 64, 32)
    with torch.inference_mode():
        expected = lesson.finish(model, model(clips)[0])
        found = torch.stack([lesson.embed(model, clip) for clip in clips])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_label_loss_equals_loops_and_leaves_out_what_is_unknown():
    logits, wanted = random(3, len(lesson.LABELS)) * 4 - 2, random(3, len(lesson.LABELS), seed=1)
    wanted = (wanted < 0.3).double()
    wanted[0, 3] = wanted[2, 20] = torch.nan
    expected, place = 0.0, 0
    for size in lesson.SIZES:
        terms = []
        for b in range(3):
            for i in range(place, place + size):
                p, y = 1 / (1 + math.exp(-float(logits[b, i]))), float(wanted[b, i])
                if not math.isnan(y):
                    terms.append(-math.log(p if y else 1 - p))
        expected += sum(terms) / len(terms)
        place += size
    assert float(lesson.label_loss(logits, wanted)) == pytest.approx(expected, rel=1e-6)
    unknown = torch.full_like(wanted, torch.nan)
    assert lesson.label_loss(logits.requires_grad_(), unknown).item() == 0


def test_rare_loss_equals_loops():
    p, y, r = random(4, 5), (random(4, 5, seed=1) < 0.5).double(), random(5, seed=2)
    expected = 0.0
    for n in range(4):
        for i in range(5):
            if y[n, i]:
                expected -= math.exp((1 - r[i]) / 0.64) * math.log(p[n, i]) / 20
            else:
                expected -= math.exp(r[i] / 0.64) * math.log(1 - p[n, i]) / 20
    assert float(lesson.rare_loss(p.logit(), y, r, s=0.8)) == pytest.approx(expected, rel=1e-6)


def test_mmd_equals_loops_and_its_trap():
    a, b = random(3, 2), random(5, 2, seed=1) + 0.4
    expected = 0.0
    for x, y, factor in ((a, a, 1), (b, b, 1), (a, b, -2)):
        pairs = [math.exp(-float((u - v).square().sum()) / 0.5) for u in x for v in y]
        expected += factor * sum(pairs) / len(pairs)
    assert float(lesson.mmd(a, b)) == pytest.approx(expected, rel=1e-9)
    assert float(lesson.mmd(a, a)) == pytest.approx(0, abs=1e-12)
    far = [100 * random(32, 256, seed=s) for s in (1, 2)]  # as long as raw features may be
    assert float(lesson.mmd(*far)) == pytest.approx(2 / 32)


def annotation(folder, rows, name="mars_attributes.csv"):
    """A file in the real form: person, camera, tracklet, twelve values."""
    lines = [",".join((*KEYS, *ATTRIBUTES))] + [",".join(map(str, row)) for row in rows]
    (folder / name).write_text("\n".join(lines) + "\n")


def test_labels_come_from_the_real_annotation_beside_the_set(tmp_path):
    split = tiny_split(tmp_path / "bbox_train", lengths=(3, 2, 4), pids=(2, 2, 5))
    values = {2: (8, 5, 1, 1, 0, 0, 1, 0, 0, 1, 1, 0), 5: (0, 2, 3, 0, 1, 1, 0, 1, 0, 0, 0, 1)}
    annotation(tmp_path, [(p, i + 1, i + 1, *values[p]) for i, p in enumerate((2, 2, 5))])
    labels = lesson.annotated(split)
    assert labels.shape == (3, len(lesson.LABELS)) and not np.isnan(labels).any()
    found = [name for name, value in zip(lesson.LABELS, labels[0], strict=True) if value]
    assert sorted(found) == sorted(
        "gender: female,Age: teenager,hair: long,Tops.l: short sleeve,Tops.c: complex,"
        "Bottoms.c: pink,backpack: yes".split(",")
    )
    people = lesson.by_person(labels, split.pids)
    assert people.shape == (2, len(lesson.LABELS)) and (people[1] == labels[2]).all()


def test_a_set_without_annotation_has_unknown_labels(tmp_path):
    split = tiny_split(tmp_path / "bbox_train", lengths=(3, 2), pids=(2, 5))
    assert np.isnan(lesson.annotated(split)).all()
    values = {column: np.array([-1, 0]) for column in ATTRIBUTES}
    found = lesson.targets(values)
    assert np.isnan(found[0]).all() and not np.isnan(found[1]).any()


def test_every_label_has_its_place():
    assert sum(lesson.SIZES) == len(lesson.LABELS) == len(set(lesson.LABELS)) == 32
    assert sorted(sum(lesson.PLACES.values(), [])) == list(range(32))
    assert set(lesson.COLUMNS) == set(ATTRIBUTES)


def test_balanced_accuracy():
    wanted = np.array([[1, 1], [0, 1], [0, 1], [0, 1]])
    assert lesson.balanced(np.zeros((4, 2), bool), wanted)[0] == 0.5
    assert np.isnan(lesson.balanced(np.ones((4, 2), bool), wanted)[1])
    guess = np.array([[1, 0], [1, 0], [0, 0], [0, 0]]) > 0
    assert lesson.balanced(guess, wanted)[0] == pytest.approx(0.5 * (1 + 2 / 3))


def test_weights_from_the_truth():
    seen = np.zeros((1, 4, 5))
    seen[0, :, 0] = (1, 3, 0, 0)
    weights = lesson.truth_weights(seen)
    torch.testing.assert_close(weights[0, :, 0], torch.tensor([0.25, 0.75, 0, 0]))
    torch.testing.assert_close(weights[0, :, 1:], torch.full((4, 5), 0.25))


def test_the_transfer_learns_labels_and_the_matching_brings_the_sets_together():
    torch.manual_seed(0)
    source = torch.randn(200, 16)
    labels = (source[:, :1] > 0).float().expand(-1, len(lesson.LABELS)).clone()
    target = torch.randn(200, 16) + 0.7
    away = {}
    for kind in ("BCE", "BCE + MMD"):
        net = lesson.transfer(source, labels, target, kind, seed=0, steps=150)
        with torch.inference_mode():
            features = [torch.nn.functional.normalize(net(x)[0], dim=1) for x in (source, target)]
            assert ((net(source)[1] > 0) == (labels > 0.5)).float().mean() > 0.9
        away[kind] = float(lesson.mmd(*features))
    assert away["BCE + MMD"] < 0.7 * away["BCE"]


def test_the_look_of_the_source_is_flat_and_yellow():
    clip = torch.randint(0, 256, (2, 3, 16, 8), generator=torch.Generator().manual_seed(0))
    styled = lesson.restyle(clip.to(torch.uint8))
    assert styled.shape == clip.shape and styled.dtype == torch.uint8
    assert styled.float().std() < 0.5 * clip.float().std()
    assert styled[:, 0].float().mean() > styled[:, 2].float().mean()


def test_rank_correlation():
    assert lesson.rank_correlation(np.arange(5), np.arange(5) ** 3) == pytest.approx(1)
    assert lesson.rank_correlation(np.arange(5), -np.arange(5)) == pytest.approx(-1)
    assert np.isnan(lesson.rank_correlation(np.arange(5), np.ones(5)))
