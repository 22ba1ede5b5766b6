"""Non-local blocks: every place of a clip looks at the places of all its frames.

Source: Wang et al., "Non-local Neural Networks", CVPR 2018. Lesson 04 builds the block by hand.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from vreid_course.nets import Trunk


class NonLocal(nn.Module):
    """Embedded-Gaussian block: z = x + W(softmax(theta(x)^T phi(x)) g(x)), in space and time.

    Maps (B*T, C, H, W), the T frames of a clip together, -> the same shape. There is no scaling
    factor in the softmax. subsample: phi and g are halved in height and width, so that T*H*W
    queries meet a fourth as many keys. `T` is set by `clip_maps`, as clips of any length will do.
    W's batch norm starts with scale and shift 0: a new block changes nothing. The parts are named
    as in most published code. Raises ValueError if x does not hold whole clips.
    """

    def __init__(self, channels: int, subsample: bool = True, T: int | None = None) -> None:
        super().__init__()
        self.T, inner = T, channels // 2
        self.g = _embedding(channels, inner, subsample)
        self.theta = nn.Conv2d(channels, inner, 1)
        self.phi = _embedding(channels, inner, subsample)
        self.W = nn.Sequential(nn.Conv2d(inner, channels, 1), nn.BatchNorm2d(channels))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=(2 / module.out_channels) ** 0.5)
        nn.init.zeros_(self.W[1].weight)
        nn.init.zeros_(self.W[1].bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.change(x)

    def change(self, x: Tensor) -> Tensor:
        """What the block adds to the maps x (B*T, C, H, W): W(y), of the same shape."""
        q, k, v = (self.tokens(part(x)) for part in (self.theta, self.phi, self.g))
        y = F.scaled_dot_product_attention(q, k, v, scale=1.0)  # (B, 1, T*H*W, C/2)
        H, W = x.shape[2:]
        return self.W(y.reshape(len(x), H, W, -1).permute(0, 3, 1, 2))

    def tokens(self, maps: Tensor) -> Tensor:
        """Maps (B*T, C, H, W) -> one vector for each place of a clip, (B, 1, T*H*W, C)."""
        if not self.T or len(maps) == 0 or len(maps) % self.T:
            fault = f"{len(maps)} frames are not whole clips of T={self.T}"
            raise ValueError(f"{fault}: call non_local.clip_maps(trunk, clips)")
        return maps.permute(0, 2, 3, 1).reshape(len(maps) // self.T, 1, -1, maps.shape[1])


def _embedding(channels: int, inner: int, subsample: bool) -> nn.Module:
    conv = nn.Conv2d(channels, inner, 1)
    return nn.Sequential(conv, nn.MaxPool2d(2)) if subsample else conv


def usual_places(trunk: Trunk) -> dict[str, tuple[int, ...]]:
    """Blocks of layer2 and layer3, counted from 0: every second one, or all where there are two."""
    sizes = {stage: len(getattr(trunk, stage)) for stage in ("layer2", "layer3")}
    return {
        stage: tuple(range(n)) if n <= 2 else tuple(range(1, n, 2)) for stage, n in sizes.items()
    }


def insert_non_local(trunk: Trunk, after: dict[str, tuple[int, ...]] | None = None) -> Trunk:
    """Put a new NonLocal behind some residual blocks of a trunk, in place; returns the trunk.

    after: the blocks by stage, such as {"layer2": (1, 3)}; default `usual_places`, five blocks in
    a ResNet-50. Raises ValueError for a stage or a block that is not there.
    """
    after = usual_places(trunk) if after is None else after
    for stage, places in after.items():
        blocks = list(getattr(trunk, stage, []))
        if stage == "stem" or not set(places) <= set(range(len(blocks))):
            raise ValueError(f"no blocks {places} in {stage}, which has {len(blocks)}")
        channels = trunk.widths[list(dict(trunk.named_children())).index(stage)]
        layers = []
        for i, block in enumerate(blocks):
            layers += [block, NonLocal(channels)] if i in places else [block]
        setattr(trunk, stage, nn.Sequential(*layers))
    return trunk


def non_local_blocks(trunk: nn.Module) -> list[NonLocal]:
    """The blocks of a trunk, from the input to the output."""
    return [module for module in trunk.modules() if isinstance(module, NonLocal)]


def clip_maps(trunk: nn.Module, clips: Tensor) -> Tensor:
    """Maps of the frames of clips (B, T, 3, H, W), each having seen its clip: (B, T, D, h, w)."""
    for block in non_local_blocks(trunk):
        block.T = clips.shape[1]
    return trunk(clips.flatten(0, 1)).unflatten(0, clips.shape[:2])
