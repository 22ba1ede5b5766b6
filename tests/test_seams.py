"""Where modules meet: what each says of itself is true of what the next one gets.

Exact values on small inputs, for faults that no shape shows: a seed that is dropped, a transform
that is ignored, labels in another order. `mutations.py` plants such faults and looks who sees them.
"""

import math
from dataclasses import replace
from functools import partial
from itertools import repeat
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import tiny_split
from torch import nn
from torchvision.models import ResNet50_Weights

from vreid_course import __main__, lessons, loader, nets, sampling, study, training
from vreid_course.data.mars import Mars
from vreid_course.loader import ClipBatches, FrameStore
from vreid_course.losses import batch_hard_triplet
from vreid_course.nets import Baseline, resnet
from vreid_course.scales import scale
from vreid_course.studies import backbone

SIZE = (32, 16)
PIDS = torch.tensor([0, 0, 1, 1])


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    return tiny_split(tmp_path_factory.mktemp("bbox_train"))


def seeded(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def move_norms(model: nn.Module) -> nn.Module:
    """Give batch norms statistics of their own: a new one in evaluation lets everything through."""
    for n, norm in enumerate(m for m in model.modules() if isinstance(m, nn.BatchNorm1d)):
        norm.running_mean.copy_(seeded(norm.num_features, seed=n))
        norm.running_var.copy_(seeded(norm.num_features, seed=n + 99).square() + 0.5)
    return model.eval()


# ------------------------------------------------------------------------------ pictures to clips


def test_mean_and_deviation_are_those_the_weights_were_trained_with():
    theirs = ResNet50_Weights.IMAGENET1K_V1.transforms()
    assert list(loader.IMAGENET_MEAN) == theirs.mean
    assert list(loader.IMAGENET_STD) == theirs.std
    red = torch.zeros(3, 4, 2, dtype=torch.uint8)
    red[0] = 255
    expected = (torch.tensor([1.0, 0, 0]) - torch.tensor(theirs.mean)) / torch.tensor(theirs.std)
    torch.testing.assert_close(loader.normalise(red)[:, 0, 0], expected)


def test_the_same_clips_are_drawn_anew_in_every_step(split):
    rows = SimpleNamespace(from_step=lambda start: repeat(np.arange(4)))
    sampler = partial(sampling.anywhere, frames=2)
    first, second = ClipBatches(FrameStore(split, SIZE), sampler, rows)(0, 2)
    assert torch.equal(first["rows"], second["rows"])
    assert not torch.equal(first["frames"], second["frames"])


@pytest.mark.parametrize("easy", [False, True])
def test_the_pose_is_mirrored_with_the_picture(easy):
    """View and phase are angles: a mirror turns the view's sine, and the legs half a cycle."""
    view, phase = np.radians(30), np.radians(70)
    angles = (view, phase, 2 * phase)
    pose = torch.tensor([[g(a) for a in angles for g in (math.sin, math.cos)]] * 40)
    pixels = torch.zeros(40, 3, 32, 16, dtype=torch.uint8)
    pixels[..., :8] = 200  # bright on the left
    image, turned = backbone.distort(pixels, pose, np.random.default_rng(0), easy)
    angles = (-view, phase + math.pi, 2 * (phase + math.pi))
    mirrored = torch.tensor([g(a) for a in angles for g in (math.sin, math.cos)])
    edge = image.float().mean(1)  # (N, H, W)
    flipped = edge[:, 14:18, 10:].mean((1, 2)) > edge[:, 14:18, :6].mean((1, 2))
    sure = (edge[:, 14:18, 10:].mean((1, 2)) - edge[:, 14:18, :6].mean((1, 2))).abs() > 60
    assert 8 < flipped[sure].sum() < sure.sum() - 8
    for i in sure.nonzero()[:, 0].tolist():
        torch.testing.assert_close(turned[i], mirrored if flipped[i] else pose[0].double().float())


# ---------------------------------------------------------------------------- networks and lessons


def test_the_baseline_gives_features_before_its_neck_and_compares_those_behind_it():
    model = move_norms(Baseline(5, resnet("course"), neck=True))
    clips = torch.rand(2, 3, 3, 64, 32)
    with torch.inference_mode():
        means = model.trunk(clips.flatten(0, 1)).mean((2, 3)).unflatten(0, (2, 3)).mean(1)
        features, logits = model(clips)
        torch.testing.assert_close(features, means)
        torch.testing.assert_close(logits, model.neck(means) @ model.classifier.weight.T)
        torch.testing.assert_close(model.embed(clips[0]), model.neck(means)[0])


def test_the_baselines_loss_and_rates():
    lesson = lessons.load("01_baseline")
    features, logits = seeded(4, 6), seeded(4, 3, seed=1)
    total, parts = lesson.loss(lambda clips: (features, logits), {"clips": None, "labels": PIDS})
    wanted = 0.9 * F.one_hot(PIDS, 3) + 0.1 / 3
    named = -(wanted * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(parts["cross entropy"], named)
    torch.testing.assert_close(total, named + batch_hard_triplet(features, PIDS, margin=0.3))
    model = lesson.build(5, resnet("course"))
    rates = {id(p): g["lr"] for g in lesson.optimiser(model).param_groups for p in g["params"]}
    assert {rates[id(p)] for p in model.trunk.parameters()} == {3e-4}
    assert rates[id(model.classifier.weight)] == rates[id(model.neck.weight)] == 3e-3
    model, frames = move_norms(model), torch.rand(3, 3, 64, 32)
    with torch.inference_mode():
        expected = F.normalize(model.neck(model.trunk(frames).mean((0, 2, 3))[None]))[0]
        torch.testing.assert_close(lesson.embed(model, frames), expected)


@pytest.mark.parametrize("name", [name for name in lessons.names() if "01" <= name[:2] <= "07"])
def test_every_lesson_gives_features_and_logits_of_the_tested_network(name, monkeypatch):
    """The contract: what stands before the classifier is what `embed` compares, of length 1."""
    monkeypatch.setenv("VREID_SCALE", "smoke")
    lesson, T = lessons.load(name), 2
    options = {"labels": np.zeros((5, len(lesson.LABELS)))} if name == "05_attributes" else {}
    options |= {"T": T, "size": (64, 32)} if name == "02_cosam" else {}
    options |= {"size": (64, 32)} if name == "07_related" else {}
    torch.manual_seed(0)
    model = move_norms(lesson.build(5, resnet("course"), **options))
    clips = seeded(2, T, 3, 64, 32)
    with torch.inference_mode():
        features, logits = lesson.features_and_logits(model, clips)
        assert features.ndim == 2 and len(features) == 2 and logits.shape == (2, 5)
        found = lesson.embed(model, clips[0])
        neck = getattr(getattr(model, "system", model), "neck", nn.Identity())
        direct = name in ("03_gltr", "06_vrstc")  # no neck, or the features are those behind it
        expected = features if direct else neck(features)
        torch.testing.assert_close(found, F.normalize(expected)[0], atol=1e-5, rtol=1e-4)


def test_the_labels_of_tkps_frames_are_those_of_their_clips():
    tkp = lessons.load("04_tkp")
    i, f = seeded(4, 3, 6), seeded(4, 3, 6, seed=1)

    class Two(nn.Module):
        neck = nn.Identity()
        classifier = nn.Linear(6, 2)

        def forward(self, clips):
            return i, f

    model = Two()
    parts = tkp.loss(model, {"clips": None, "labels": PIDS})[1]
    expected = 0.0
    for b in range(4):
        logits = [model.classifier(i[b, t]) for t in range(3)]
        expected -= sum(x.log_softmax(0)[PIDS[b]] for x in logits) / 12
        expected -= model.classifier(f[b].mean(0)).log_softmax(0)[PIDS[b]] / 4
    torch.testing.assert_close(parts["cross entropy"], expected)
    assert tkp.first_frame(7).tolist() == [0]


def test_the_networks_own_sigma_makes_the_weights():
    lesson = lessons.load("05_attributes")
    model = lesson.AttributeNet(resnet("course"), torch.zeros(2, len(lesson.LABELS)), sigma=0.3)
    vectors = 3 * seeded(2, 4, sum(model.widths))
    found = lesson.frame_weights(model, vectors)
    logits = lesson.predict(model, vectors)[..., : lesson.SIZES[0]]  # of the first group
    p = logits.sigmoid()
    c = torch.exp((p * p.log()).mean(-1) / 0.3**2)
    torch.testing.assert_close(found[..., 0], c / c.sum(1, keepdim=True), atol=1e-5, rtol=1e-4)
    model.sigma = 0.6
    assert not torch.allclose(lesson.frame_weights(model, vectors)[..., 0], found[..., 0])


def test_the_discriminator_calls_real_real_and_the_generator_wants_that_too():
    vrstc = lessons.load("06_vrstc")
    judge = nn.Sequential(nn.Flatten(), nn.Linear(2, 1), nn.Flatten(0))
    judge[1].weight.data, judge[1].bias.data = torch.tensor([[1.0, 2.0]]), torch.tensor([0.5])
    real, fake = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, -1.0]])  # logits 1.5 and -1.5
    wish, right = vrstc.adversarial(judge, real, fake)
    sure = -math.log(1 / (1 + math.exp(-1.5)))  # right with a margin of 1.5
    assert right.item() == pytest.approx(2 * sure)
    assert wish.item() == pytest.approx(1.5 + sure)


def test_the_discriminator_judges_in_float32():
    """In bfloat16 a stride of 2 down to maps of 2x1 gives numbers up to 1e37 on some CPUs."""
    vrstc = lessons.load("06_vrstc")
    torch.manual_seed(0)
    judge, x = vrstc.Discriminator((64, 32)), torch.rand(4, 3, 64, 32)
    plain = vrstc.adversarial(judge, x, 1 - x)
    with torch.autocast("cpu", torch.bfloat16):
        fast = vrstc.adversarial(judge, x.bfloat16().float(), (1 - x).bfloat16())
    torch.testing.assert_close(fast, plain, atol=0.02, rtol=0)
    assert fast[0].dtype == torch.float32


# ------------------------------------------------------------------------------------- the studies


def recipe(**changes):
    """A recipe whose every part can be told from the others."""
    plain = study.Recipe(
        train_sampler=partial(sampling.consecutive, frames=2),
        test_sampler=sampling.whole,
        batches=lambda split, seed: sampling.IdentityBatches(split.pids, 2, 2, seed),
        optimiser=lambda model: torch.optim.SGD(model.parameters(), 0.1),
        schedule=lambda steps: lambda step: 1.0,
        steps=3,
        transform=lambda clip, rng: clip // 2,
    )
    return replace(plain, **changes)


class Seen(nn.Module):
    """A network that notes what it is given."""

    def __init__(self):
        super().__init__()
        self.weight, self.clips, self.labels = nn.Parameter(torch.zeros(())), [], []

    def loss(self, model, batch):
        self.clips.append(batch["clips"].clone())
        self.labels.append(batch["rows"].tolist())
        return model.weight * batch["clips"].mean(), {}


def fitted(split, seed=0, **changes):
    model, at = Seen(), replace(scale("smoke"), height=32)
    study.fit(model, model.loss, recipe(**changes), split, at, seed)
    return model


def test_a_study_trains_by_its_recipe(split):
    model = fitted(split)
    assert len(model.clips) == 3 and all(x.shape == (4, 2, 3, *SIZE) for x in model.clips)
    plain = fitted(split, transform=lambda clip, rng: clip)
    assert model.labels == plain.labels
    brighter = torch.cat(plain.clips).mean() - torch.cat(model.clips).mean()
    assert brighter > 0.2, "the recipe's transform halves the pixels"
    other = fitted(split, seed=1)
    assert model.labels != other.labels, "the seed draws the batches"
    rows = lambda split, seed: SimpleNamespace(  # noqa: E731
        P=2, K=2, from_step=lambda start: repeat(np.arange(4))
    )
    one, two = (fitted(split, seed, batches=rows) for seed in (0, 1))
    assert not torch.equal(one.clips[0], two.clips[0]), "and the frames of the clips"


def test_a_study_tests_by_its_recipe(split):
    lengths = []

    def embed(model, frames):
        lengths.append(len(frames))
        return frames.mean((0, 2, 3))

    at = replace(scale("smoke"), height=32)
    found = study.extract_features(Seen(), embed, recipe(), split, at)
    assert lengths == split.lengths.tolist(), "whole tracklets, as the test sampler says"
    bright = study.extract_features(
        Seen(), embed, recipe(transform=lambda clip, rng: clip), split, at
    )
    assert (bright - found).mean() > 0.2


def test_queries_find_each_other_only_where_they_are_in_the_gallery(tmp_path):
    split = tiny_split(tmp_path, lengths=(2, 2, 2), pids=(1, 1, 1))  # cameras 1, 2, 3
    mars = Mars(tmp_path, split, split, np.array([0, 1]))
    features = np.array([[0.0, 0], [1, 0], [5, 0]], np.float32)
    merged, apart = study.search(features, mars), study.search(features, mars, merge_queries=False)
    assert (merged.gallery_size, apart.gallery_size) == (3, 1)


def test_the_start_of_a_network_depends_on_the_seed(split):
    lesson, at = lessons.load("01_baseline"), scale("smoke")
    a, b, c = (study.new_model(lesson, split, at, s).classifier.weight for s in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c) and a.shape[0] == 4


def test_evaluate_tests_the_weights_that_train_left(tmp_path, monkeypatch, capsys):
    """The command line, on a set of four people whose order only trained weights can tell."""
    split = tiny_split(tmp_path / "bbox_test")
    mars = Mars(tmp_path, split, split, np.arange(0, 8, 2))
    seen = []

    def embed(model, frames):
        seen.append(model.weight.item())
        return frames.mean((0, 2, 3))

    lesson = SimpleNamespace(
        build=lambda num_ids, trunk: Seen(), embed=embed, recipe=lambda at: recipe(),
        loss=lambda model, batch: (model.weight.square() - model.weight, {}),
    )  # fmt: skip
    monkeypatch.setattr(__main__, "course_data", lambda at: mars)
    monkeypatch.setattr(lessons, "load", lambda name: lesson)
    monkeypatch.setenv("VREID_SCALE", "smoke")
    command = ["90_none", "--folder", str(tmp_path / "run"), "--seed", "3"]
    assert __main__.main(["train", *command, "--steps", "2"]) == 0
    assert __main__.main(["evaluate", *command]) == 0
    assert seen == pytest.approx([0.1 + 0.1 * 0.8] * 8)
    assert training.load_checkpoint(tmp_path / "run" / "last.pt")["seed"] == 3
    assert "processes that can share its batches: 1\n" in capsys.readouterr().out


# -------------------------------------------------------------------------------- several processes


@pytest.mark.parametrize(
    ("P", "K", "people", "numbers"),
    [(8, 4, 2, [1, 2, 4]), (4, 4, 2, [1, 2]), (10, 1, 1, [1, 2, 5]), (3, 4, 2, [1]),
     (4, 2, 1, [1, 2, 4])],
)  # fmt: skip
def test_numbers_of_processes_that_a_recipe_fits(split, P, K, people, numbers):
    batches = lambda split, seed: SimpleNamespace(P=P, K=K)  # noqa: E731
    assert recipe(batches=batches, people=people).fitting(split) == numbers


def test_a_number_that_does_not_fit_is_refused_before_a_frame_is_read(split, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setattr(FrameStore, "read", None)
    with pytest.raises(ValueError, match="3 processes do not fit its batches: start 1, 2") as info:
        fitted(split, people=1)
    assert "\n" not in str(info.value)


@pytest.mark.parametrize("name", [name for name in lessons.names() if "01" <= name[:2] <= "07"])
def test_losses_that_compare_people_say_so(name):
    lesson = lessons.load(name)
    compares = "batch_hard_triplet" in vars(lesson)
    assert lesson.recipe(scale("mini")).people == 1 + compares


def test_imagenet_weights_are_found_without_a_network(tmp_path, monkeypatch):
    monkeypatch.setenv("VREID_WEIGHTS", str(tmp_path))
    assert not nets.imagenet_on_disk("resnet50")
    (tmp_path / "resnet50.pth").write_bytes(b"")
    assert nets.imagenet_on_disk("resnet50")
    with pytest.warns(UserWarning, match="scale gpu starts from ImageNet, a ResNet-50"):
        assert (scale("gpu").backbone, scale("gpu").weights) == ("resnet50", "imagenet")
    monkeypatch.setenv("VREID_WEIGHTS", str(tmp_path / "none"))
    with pytest.warns(UserWarning, match="scale gpu starts from the course backbone"):
        assert (scale("gpu").backbone, scale("gpu").weights) == ("course", "course")
