"""The names that GLTR's authors give their layers, and how those become the lesson's."""

import re

from torch import Tensor, nn

NAMES = [  # of the authors' state dict, and of the lesson's network
    (r"^feat(\d+)\.", lambda m: f"temporal.head.local.branches.{int(m[1]) - 1}."),
    (r"^feat\.", "temporal.reduce."),
    (r"^feat_bn\.", "temporal.neck."),
    (r"^classifier\.", "temporal.classifier."),
    (r"^Nonlocal_block0\.theta\.", "temporal.head.share.query."),
    (r"^Nonlocal_block0\.phi\.", "temporal.head.share.key."),
    (r"^Nonlocal_block0\.g\.", "temporal.head.share.value."),
    (r"^Nonlocal_block0\.W\.0\.", "temporal.head.share.out."),
    (r"^Nonlocal_block0\.W\.1\.", "temporal.head.share.norm."),
    (r"^conv1\.", "trunk.stem.0."),
    (r"^bn1\.", "trunk.stem.1."),
    (r"^layer", "trunk.layer"),
]


def load_official(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Load the authors' state dict, strictly: of a network, or of what is behind its trunk.

    Their pyramid is a two-dimensional convolution of kernel (3, d) over an image of T x d, which
    slides in time only: the same convolution with its axes laid out otherwise.
    """
    renamed = {}
    for key, value in state.items():
        if re.match(r"feat\d", key):  # (n, 1, 3, d)
            value = value.squeeze(1).transpose(1, 2)  # (n, d, 3)
        for pattern, new in NAMES:
            key = re.sub(pattern, new, key)
        renamed[key if hasattr(model, "trunk") else key.removeprefix("temporal.")] = value
    model.load_state_dict(renamed)
