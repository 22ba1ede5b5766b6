"""What each method of lesson 08 costs: parameters, operations, milliseconds, memory."""

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from vreid_course.scales import Scale, scale
from vreid_course.studies import compare, ground
from vreid_course.study import cost

ROWS = [{"method": name} for name in compare.METHODS if name != "one picture"]


class Tested(nn.Module):
    """What is run at test: clips (1, T, 3, H, W) -> feature (D,)."""

    def __init__(self, model: nn.Module, embed: Callable) -> None:
        super().__init__()
        self.model, self.embed = model, embed
        if hasattr(model, "image"):
            model.image = nn.Identity()  # TKP searches videos with its video network

    def forward(self, clips: Tensor) -> Tensor:
        return self.embed(self.model, clips[0])


def kept_for_backward(model: nn.Module, loss: Callable, batch: dict[str, Tensor]) -> float:
    """MiB that the forward pass keeps for the backward pass, besides the weights."""
    sizes, weights = {}, {p.data_ptr() for p in model.parameters()}

    def pack(x: Tensor) -> Tensor:
        if x.data_ptr() not in weights:
            sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        loss(model.train(), batch)
    return sum(sizes.values()) / 2**20


def training_seconds(model: nn.Module, loss: Callable, batch: dict, repeats: int = 3) -> float:
    """Median time of forward, backward and update, float32, on the CPU."""
    optimiser, times = torch.optim.AdamW(model.parameters()), []
    for _ in range(repeats + 1):  # the first one only warms up
        start = time.perf_counter()
        loss(model.train(), batch)[0].backward()
        optimiser.step()
        optimiser.zero_grad()
        times.append(time.perf_counter() - start)
    return float(np.median(times[1:]))


def measure(row: dict) -> dict:
    """A clip at test and a training step of 4 clips, float32."""
    at: Scale = ground.footing(scale())
    name = row["method"]
    torch.manual_seed(0)
    method = compare.METHODS[name]
    model, loss = compare.new_model(method, 300, at), compare.loss_of(method, "paper")
    labels = torch.arange(2).repeat_interleave(2)
    batch = {"clips": torch.randn(4, at.T, 3, *at.size), "labels": labels}
    found = {"MiB a clip": kept_for_backward(model, loss, batch) / 4}
    found["training ms a clip"] = 1000 * training_seconds(model, loss, batch) / 4
    tested = Tested(model, compare.embed_of(name, "paper"))
    with sdpa_kernel(SDPBackend.MATH):  # of the fused attention nothing would be counted
        flops = cost(tested, batch["clips"][:1], repeats=1)["GFLOPs"]
    found |= cost(tested, batch["clips"][:1]) | {"GFLOPs": flops}
    threads = {"scale": at.name, "threads": torch.get_num_threads()}
    return threads | {key: f"{value:.4g}" for key, value in found.items() if value == value}
