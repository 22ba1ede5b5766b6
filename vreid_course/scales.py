"""What changes between machines: one small frozen object; a lesson never asks for the hardware."""

import os
import warnings
from dataclasses import dataclass, replace

from vreid_course import devices
from vreid_course.data.mars import Mars, MarsError, read_mars
from vreid_course.drawing.mini_mars import STREET_DIALS, MiniMars, mini_mars
from vreid_course.nets import imagenet_on_disk


@dataclass(frozen=True)
class Scale:
    """Sizes of a run.

    height, width: pixels of a frame; backbone, weights: arguments of `nets.resnet`; people: train
    and test people of mini-MARS; P, K, T: identities, clips of each and frames of a clip in a
    batch; steps: of the live training; test_frames: frames of a tracklet looked at in a test.
    """

    name: str
    height: int
    backbone: str
    weights: str | None
    people: tuple[int, int]
    P: int
    K: int
    T: int
    steps: int
    test_frames: int

    @property
    def width(self) -> int:
        return self.height // 2

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)"""
        return self.height, self.width

    @property
    def mini_mars(self) -> MiniMars:
        """The drawn set of this scale."""
        height = 128 if self.height == 128 else 256
        return MiniMars(*self.people, height=height)

    @property
    def street(self) -> MiniMars:
        """A small set of this scale on which more goes wrong: the proving ground's dials."""
        return replace(self.mini_mars, hard=0.1, dials=STREET_DIALS)


SCALES = {
    scale.name: scale
    for scale in (
        Scale("smoke", 128, "course", "course", (8, 8), 4, 2, 2, 4, 2),
        Scale("mini", 128, "course", "course", (60, 40), 8, 4, 4, 40, 4),
        Scale("gpu", 256, "course", "course", (60, 40), 8, 4, 4, 400, 16),
        Scale("paper", 256, "resnet50", "imagenet", (60, 40), 8, 4, 4, 62_400, 64),
    )
}


def scale(name: str | None = None) -> Scale:
    """Return a scale: `name`, else what VREID_SCALE names, else "gpu" with a GPU, "mini" without.

    A Mac stays at "mini": its GPU is that of a notebook. ValueError for an unknown name.
    """
    default = "mini" if devices.device().type in ("cpu", "mps") else "gpu"
    found = name or os.environ.get("VREID_SCALE") or default
    if found not in SCALES:
        raise ValueError(f"VREID_SCALE={found!r}: choose one of {', '.join(SCALES)}")
    if not name and found in ("gpu", "paper") and default == "mini":
        slow = f"scale {found} without a GPU takes hours to weeks, mini minutes"
        warnings.warn(slow, stacklevel=2)
    return _with_imagenet(SCALES[found]) if found == "gpu" else SCALES[found]


def _with_imagenet(gpu: Scale) -> Scale:
    """Scale "gpu" on the best weights that need no network; it says which."""
    start = "the course backbone; with ImageNet weights named in VREID_WEIGHTS, from a ResNet-50"
    if imagenet_on_disk("resnet50"):
        gpu, start = replace(gpu, backbone="resnet50", weights="imagenet"), "ImageNet, a ResNet-50"
    warnings.warn(f"scale gpu starts from {start}", stacklevel=3)
    return gpu


def course_data(at: Scale, drawn: MiniMars | None = None) -> Mars:
    """Return the set a lesson trains and tests on: what VREID_DATA names, else a drawn one.

    drawn: which; default mini-MARS.
    """
    named = os.path.expanduser(os.environ.get("VREID_DATA", ""))
    if named and not os.path.isdir(named):
        raise MarsError(
            f"VREID_DATA={named}: no such folder: name a set in MARS layout, or unset it"
        )
    return read_mars(named) if named else mini_mars(drawn or at.mini_mars)
