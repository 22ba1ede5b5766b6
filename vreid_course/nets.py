"""Networks that several lessons share: ResNet trunks, pooling over time, the baseline model.

Letters: N frames, B clips, T frames of a clip, H W height and width, D feature size.
"""

import copy
import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

try:
    import timm
    import torchvision
    from torchvision.models.resnet import BasicBlock
except (ImportError, RuntimeError, OSError) as error:
    fault = f"torchvision does not fit torch {torch.__version__} ({error})"
    cure = 'install both again: see "CPU only" in README.md, or pip install -r requirements.txt'
    raise ImportError(f"{fault}: {cure}") from None

from vreid_course.files import DATA, one_line

WEIGHTS_FOLDER = DATA / "weights"
COURSE_WIDTHS = (32, 64, 128, 256)  # half of ResNet-18's


class Trunk(nn.Sequential):
    """Frames (N, 3, H, W) float32 -> feature map (N, D, h, w), stage by stage.

    The children are `stem`, `layer1` .. `layer4`; `widths` holds the channels behind each of the
    five. A lesson inserts a block by replacing a child with `nn.Sequential(child, block)`.
    """

    def __init__(self, stem: nn.Module, layers: list[nn.Module], last_stride: int) -> None:
        names = ("stem", "layer1", "layer2", "layer3", "layer4")
        super().__init__(OrderedDict(zip(names, (stem, *layers), strict=True)))
        for module in self.layer4[0].modules():
            if isinstance(module, nn.Conv2d) and last_stride == 1:
                module.stride = (1, 1)
        norms = [[m for m in stage.modules() if isinstance(m, nn.BatchNorm2d)] for stage in self]
        self.widths = [stage[-1].num_features for stage in norms]


def resnet(name: str, weights: str | None = None, last_stride: int = 1) -> Trunk:
    """A ResNet without pooling and classifier; at last_stride 1, (H, W) shrinks to (H/16, W/16).

    name: "course" (ResNet-18 of half the width), "resnet18", "resnet50" or "seresnet50" (the
    caffe-style SE-ResNet-50 that the COSAM code uses). weights: None (random), "identity" or
    "course" (see `backbone`) for "course", or "imagenet" for the others, which only the `paper`
    scale asks for: the file, or the
    `<name>.pth` in the folder, that the environment variable VREID_WEIGHTS names, else a download.
    Raises ValueError for an unknown name, and for missing or wrong weights.
    """
    makers = {"course": _course, "seresnet50": lambda: timm.create_model("legacy_seresnet50")}
    makers |= {name: getattr(torchvision.models, name) for name in ("resnet18", "resnet50")}
    known = ("identity", "course") if name == "course" else ("imagenet",)
    if name not in makers or weights not in (None, *known):
        raise ValueError(f"no backbone {name!r} with weights {weights!r}: names are {[*makers]}")
    if name == "course":
        trunk = _course(last_stride)
        return load_weights(trunk, f"{weights}_backbone") if weights else trunk
    model = makers[name]()
    if weights is not None:
        _load_imagenet(model, name)
    layers = [model.layer1, model.layer2, model.layer3, model.layer4]
    if name == "seresnet50":
        return Trunk(nn.Sequential(model.layer0, model.pool0), layers, last_stride)
    stem = nn.Sequential(model.conv1, model.bn1, model.relu, model.maxpool)
    return Trunk(stem, layers, last_stride)


def _course(last_stride: int = 1) -> Trunk:
    """ResNet-18 with `COURSE_WIDTHS` channels, from torchvision's blocks."""
    before = COURSE_WIDTHS[0]
    conv = nn.Conv2d(3, before, 7, stride=2, padding=3, bias=False)
    stem = nn.Sequential(conv, nn.BatchNorm2d(before), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1))
    layers = []
    for width in COURSE_WIDTHS:
        stride = 1 if width == before else 2
        conv = nn.Conv2d(before, width, 1, stride, bias=False)
        skip = nn.Sequential(conv, nn.BatchNorm2d(width)) if stride == 2 else None
        first = BasicBlock(before, width, stride, skip)
        layers.append(nn.Sequential(first, BasicBlock(width, width)))
        before = width
    return Trunk(stem, layers, last_stride)


def save_weights(
    model: nn.Module, name: str, command: str, seed: int, folder: Path | None = None
) -> Path:
    """Write `name`.pt, the weights as float16, and beside them their hash, command and seed."""
    path = (folder or WEIGHTS_FOLDER) / f"{name}.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({key: x.cpu() for key, x in copy.deepcopy(model).half().state_dict().items()}, path)
    made = {"sha256": _sha256(path), "command": command, "seed": seed}
    path.with_suffix(".json").write_text(json.dumps(made, indent=2) + "\n", "utf-8")
    return path


def load_weights(model: nn.Module, name: str, folder: Path | None = None) -> nn.Module:
    """Fill the model with the weights of `save_weights`, as float32; returns it.

    Raises ValueError if a file is missing, or the weights are not those of the hash beside them.
    """
    path = (folder or WEIGHTS_FOLDER) / f"{name}.pt"
    try:
        made = json.loads(path.with_suffix(".json").read_text("utf-8"))
        if made["sha256"] != _sha256(path):
            raise ValueError(f"it is not the file whose hash is in {path.stem}.json")
        model.load_state_dict(torch.load(path, weights_only=True))
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        what, cure = name.replace("_", " "), "restore data/weights with `git checkout data/weights`"
        raise ValueError(f"{path}: no {what} ({one_line(error)}): {cure}") from None
    return model


def imagenet_on_disk(name: str) -> bool:
    """Whether ImageNet weights for a backbone can be had without a network."""
    if named := os.environ.get("VREID_WEIGHTS", ""):
        return Path(named).is_file() or Path(named, f"{name}.pth").is_file()
    address = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"].url
    return Path(torch.hub.get_dir(), "checkpoints", address.rpartition("/")[2]).is_file()


def _load_imagenet(model: nn.Module, name: str) -> None:
    """Fill the model with torchvision's (or timm's) ImageNet weights, from disk or the network."""
    named = os.path.expanduser(os.environ.get("VREID_WEIGHTS", ""))
    path = Path(named, f"{name}.pth") if Path(named).is_dir() else Path(named)
    try:
        if named:
            state = torch.load(path, map_location="cpu", weights_only=True)
        elif name == "seresnet50":
            state = timm.create_model("legacy_seresnet50", pretrained=True).state_dict()
        else:
            state = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"].get_state_dict()
        model.load_state_dict(state)
    except Exception as error:  # each library has its own kinds for "no network", "no such file"
        fault = f"{path if named else 'download'}: no ImageNet weights for {name}"
        cure = "save them as a file and name it in VREID_WEIGHTS, or leave the `paper` scale"
        raise ValueError(f"{fault} ({one_line(error)}): {cure}") from None


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def frame_features(trunk: nn.Module, frames: Tensor, chunk: int = 64) -> Tensor:
    """Spatially averaged trunk features of T frames, `chunk` frames at a time to bound memory.

    frames: (T, 3, H, W) float32, normalised. Returns (T, D).
    """
    return torch.cat([trunk(part).mean(dim=(2, 3)) for part in frames.split(chunk)])


def mean_over_time(frames: Tensor) -> Tensor:
    """Average frame features (B, T, D) to video features (B, D)."""
    return frames.mean(dim=1)


def max_over_time(frames: Tensor) -> Tensor:
    """Keep the largest value of each channel: (B, T, D) -> (B, D)."""
    return frames.amax(dim=1)


class AttentionPool(nn.Module):
    """Average of frame features, weighted by one learned score a frame: (B, T, D) -> (B, D)."""

    def __init__(self, dim: int, hidden: int = 64) -> None:
        super().__init__()
        self.score = nn.Sequential(nn.Linear(dim, hidden), nn.Tanh(), nn.Linear(hidden, 1))

    def weights(self, frames: Tensor) -> Tensor:
        """Frame features (B, T, D) -> weights (B, T), each row in 0..1 with sum 1."""
        return self.score(frames).squeeze(-1).softmax(dim=1)

    def forward(self, frames: Tensor) -> Tensor:
        return torch.einsum("bt,btd->bd", self.weights(frames), frames)


class Baseline(nn.Module):
    """Trunk, spatial mean, pooling over time, classifier: every method is measured against it.

    pool: (B, T, D) -> (B, D). neck: batch norm without shift in front of the classifier (Luo et
    al., "Bag of Tricks", 2019); the triplet loss then takes the feature before it, the test the
    feature behind it.
    """

    def __init__(
        self, num_ids: int, trunk: Trunk, pool: Callable = mean_over_time, neck: bool = False
    ) -> None:
        super().__init__()
        dim = trunk.widths[-1]
        self.trunk, self.pool = trunk, pool
        self.neck = nn.BatchNorm1d(dim) if neck else nn.Identity()
        if neck:
            self.neck.bias.requires_grad_(False)
        self.classifier = nn.Linear(dim, num_ids, bias=False)
        nn.init.normal_(self.classifier.weight, std=0.001)  # so the first loss is log(num_ids)

    def forward(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        """Clips (B, T, 3, H, W) -> video features before the neck (B, D), logits (B, num_ids)."""
        B, T, C, H, W = clips.shape
        maps = self.trunk(clips.flatten(0, 1))  # (B*T, D, h, w)
        frames = maps.mean(dim=(2, 3)).unflatten(0, (B, T))  # (B, T, D)
        features = self.pool(frames)
        return features, self.classifier(self.neck(features))

    def embed(self, frames: Tensor) -> Tensor:
        """Any number of frames (T, 3, H, W) -> the feature that is compared at test, (D,)."""
        features = frame_features(self.trunk, frames)  # (T, D)
        return self.neck(self.pool(features[None]))[0]
