"""The fused non-local block beside the explicit softmax product: time and peak memory.

One clip at 256 x 128 of a ResNet-50: the block behind layer2, 512 channels, maps of 32 x 16; T = 4
forward and backward, T = 32 forward, as at test.
"""

import time

import pytest
import torch
from test_cosam import peak

from vreid_course.non_local import NonLocal

C, SIZE = 512, (32, 16)


def explicit(block, x):
    """The block with the table of all weights in memory."""
    q, k, v = (block.tokens(part(x)) for part in (block.theta, block.phi, block.g))
    y = (q @ k.transpose(2, 3)).softmax(3) @ v  # (1, 1, T*H*W, C/2)
    y = y.reshape(len(x), *x.shape[2:], -1).permute(0, 3, 1, 2)
    return x + block.W(y)


@pytest.mark.parametrize("T", [4, 32])
def test_fused_beside_explicit(T, benchmark, capsys):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    block = NonLocal(C, T=T).eval().to(device)
    torch.nn.init.ones_(block.W[1].weight)
    x = 0.1 * torch.randn(T, C, *SIZE, device=device)
    training = T == 4
    x.requires_grad_(training)

    def step(way):
        with torch.set_grad_enabled(training):
            z = way(block, x)
            if training:
                z.sum().backward()
        if x.is_cuda:
            torch.cuda.synchronize()

    ways = {"fused": lambda b, x: b(x), "explicit": explicit}
    with torch.no_grad():
        torch.testing.assert_close(block(x), explicit(block, x), rtol=1e-3, atol=1e-3)
    held = {name: peak(lambda way=way: step(way)) for name, way in ways.items()}
    times = {name: [] for name in ways}
    for _ in range(6):
        for name, way in ways.items():
            start = time.perf_counter()
            step(way)
            times[name].append(1000 * (time.perf_counter() - start))
    benchmark.pedantic(step, (ways["fused"],), rounds=2)
    with capsys.disabled():
        print(f"\nT={T}, {'forward and backward' if training else 'forward'} ({device})")
        for name in ways:
            print(f"{name:9} {min(times[name][1:]):8.1f} ms {held[name]:8.1f} MiB")
    assert held["fused"] < held["explicit"]
