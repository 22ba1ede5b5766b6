"""The non-local block: golden numbers, slow beside fast, the start, the order, errors."""

import numpy as np
import pytest
import torch

from vreid_course.nets import resnet
from vreid_course.non_local import (
    NonLocal,
    clip_maps,
    insert_non_local,
    non_local_blocks,
    usual_places,
)


def filled(channels, T, subsample=True):
    """A block in float64 whose parameter k is 0.3 * sin(0.7 * i + k) over its elements i."""
    block = NonLocal(channels, subsample, T).double()
    for k, parameter in enumerate(block.parameters()):
        i = torch.arange(parameter.numel(), dtype=torch.float64)
        parameter.data = (0.3 * torch.sin(0.7 * i + k)).view(parameter.shape)
    return block


def golden():
    """sin(0.3 * i) over (1, 8, 2, 4, 4) = (B, C, T, H, W), with the frames in front."""
    i = torch.arange(8 * 2 * 4 * 4, dtype=torch.float64)
    return torch.sin(0.3 * i).view(8, 2, 4, 4).transpose(0, 1)


def explicit(block, x):
    """The block with the table of all weights, clip by clip."""
    out = []
    for clip in x.split(block.T):
        q, k, v = (
            part(clip).transpose(0, 1).flatten(1) for part in (block.theta, block.phi, block.g)
        )  # (C/2, places)
        y = v @ (q.T @ k).softmax(1).T  # (C/2, T*H*W)
        out.append(y.unflatten(1, (block.T, *x.shape[2:])).transpose(0, 1))
    return x + block.W(torch.cat(out))


def test_golden_numbers():
    z = filled(8, 2).eval()(golden()).detach().transpose(0, 1)  # (C, T, H, W)
    found = z.sum(), z.abs().sum(), z[0, 0, 0, 0], z[1, 0, 0, 0], z[7, 1, 3, 3]
    expected = 2.19764409, 168.39760213, 0.21226017, -0.20104892, 1.18786751
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-8)
    z = filled(8, 2).train()(golden()).detach().transpose(0, 1)
    expected = -6.16784570, 162.95074200, -0.21699023
    np.testing.assert_allclose((z.sum(), z.abs().sum(), z[1, 0, 0, 0]), expected, atol=1e-8)


@pytest.mark.parametrize("subsample", [True, False])
@pytest.mark.parametrize(("B", "T", "C", "H", "W"), [(2, 3, 6, 4, 2), (1, 1, 4, 5, 3)])
def test_fused_equals_explicit(B, T, C, H, W, subsample):
    torch.manual_seed(0)
    block = filled(C, T, subsample)
    x = torch.randn(B * T, C, H, W, dtype=torch.float64, requires_grad=True)
    weight = torch.randn_like(x)
    grads = []
    for z in (block(x), explicit(block, x)):
        grads.append(torch.autograd.grad((z * weight).sum(), [x, *block.parameters()]))
    torch.testing.assert_close(block(x), explicit(block, x))
    torch.testing.assert_close(*grads)
    like_photos = x.detach().to(memory_format=torch.channels_last)
    torch.testing.assert_close(block(like_photos), block(x))


def test_a_new_block_changes_nothing_and_has_the_right_spread():
    torch.manual_seed(0)
    block, x = NonLocal(64, T=2), torch.randn(4, 64, 8, 4)
    assert torch.equal(block(x), x)
    for conv in (block.theta, block.phi[0], block.g[0], block.W[0]):
        assert conv.weight.std().item() == pytest.approx((2 / conv.out_channels) ** 0.5, rel=0.05)


def test_what_a_block_costs():
    assert sum(p.numel() for p in NonLocal(512).parameters()) == 526_592
    assert sum(p.numel() for p in NonLocal(1024).parameters()) == 2_101_760


def test_places_in_a_trunk():
    assert usual_places(resnet("course")) == {"layer2": (0, 1), "layer3": (0, 1)}
    assert usual_places(resnet("resnet50")) == {"layer2": (1, 3), "layer3": (1, 3, 5)}
    trunk = insert_non_local(resnet("resnet50"))
    assert sum(p.numel() for p in trunk.parameters()) == 30_866_496
    assert len(list(trunk.parameters())) == 209 and len(trunk.state_dict()) == 383
    where = [name for name, module in trunk.named_modules() if isinstance(module, NonLocal)]
    assert where == ["layer2.2", "layer2.5", "layer3.2", "layer3.5", "layer3.8"]
    assert [block.theta.in_channels for block in non_local_blocks(trunk)] == [512] * 2 + [1024] * 3


@pytest.mark.parametrize("training", [True, False])
def test_step_zero_and_the_order_of_frames(training):
    torch.manual_seed(0)
    plain = resnet("course", "course").double().train(training)
    trunk = insert_non_local(resnet("course", "course")).double().train(training)
    clips = torch.rand(2, 3, 3, 64, 32, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(
            clip_maps(trunk, clips).flatten(0, 1), plain(clips.flatten(0, 1))
        )
        for block in non_local_blocks(trunk):
            torch.nn.init.ones_(block.W[1].weight)
        order = [2, 0, 1]
        maps, shuffled = clip_maps(trunk, clips), clip_maps(trunk, clips[:, order])
        torch.testing.assert_close(shuffled, maps[:, order])
        assert (maps.flatten(0, 1) - plain(clips.flatten(0, 1))).abs().max() > 0.01
        assert clip_maps(trunk, clips[:, :1]).shape == (2, 1, 256, 4, 2)


def test_faults_are_named():
    with pytest.raises(ValueError, match="5 frames are not whole clips of T=2: call .*clip_maps"):
        NonLocal(4, T=2)(torch.rand(5, 4, 2, 2))
    with pytest.raises(ValueError, match="4 frames are not whole clips of T=None"):
        NonLocal(4)(torch.rand(4, 4, 2, 2))
    for after in ({"layer2": (2,)}, {"layer9": (0,)}, {"stem": (0,)}):
        with pytest.raises(ValueError, match="no blocks .* in (layer2|layer9|stem)"):
            insert_non_local(resnet("course"), after)
