"""Which device computes, and how exactly: the one place where the course asks for the hardware."""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps

import torch
from torch import Tensor, nn

Device = torch.device


def device() -> Device:
    """The accelerator of this machine (CUDA, Apple's MPS, Intel's XPU, ...), else the CPU.

    Of several processes each has its own, by its LOCAL_RANK. VREID_DEVICE=cpu stays on the CPU.
    """
    found = torch.accelerator.current_accelerator(check_available=True)
    if found is None or os.environ.get("VREID_DEVICE") == "cpu":
        return Device("cpu")
    return Device(found.type, int(os.environ.get("LOCAL_RANK", 0)))


def processes() -> int:
    """How many processes share this run: what torchrun and `accelerate launch` say."""
    return int(os.environ.get("WORLD_SIZE", 1))


def half(where: Device) -> torch.dtype:
    """The type that is fast on a device: bfloat16 where the hardware has it, else float16.

    float32 where neither helps. A CPU is said to have bfloat16: what it lacks, PyTorch imitates.
    """
    if where.type == "cpu":
        return torch.bfloat16
    module = torch.get_device_module(where.type)
    has_bfloat16 = getattr(module, "is_bf16_supported", lambda **_: False)  # MPS says nothing
    if has_bfloat16(including_emulation=False):
        return torch.bfloat16
    capable = getattr(module, "get_device_capability", lambda: (0, 0))  # of a T4 (7, 5)
    return torch.float16 if capable() >= (7, 0) else torch.float32


def in_half(where: Device) -> AbstractContextManager:
    """A context that computes in `half(where)`; with float32 it changes nothing."""
    kind = half(where)
    return nullcontext() if kind == torch.float32 else torch.autocast(where.type, kind)


def in_bfloat16(function: Callable) -> Callable:
    """`function(model, ...)`, a loss or an embedding, in `half` of the device of the model.

    A tensor comes back as float32. The training loop does this by itself, but not on a CPU.
    """

    @wraps(function)
    def fast(model: nn.Module, *values):
        with in_half(next(model.parameters()).device):
            found = function(model, *values)
        return found.float() if isinstance(found, Tensor) else found

    return fast


def channels_last(model: nn.Module) -> nn.Module:
    """Lay the kernels of a network out as convolutions like them best; in place, returns it."""
    layouts = {4: torch.channels_last, 5: torch.channels_last_3d}
    for p in model.parameters():
        if p.dim() in layouts:
            p.data = p.data.contiguous(memory_format=layouts[p.dim()])
    return model


def name() -> str:
    """What the device calls itself, such as "NVIDIA H200"; "cpu" for the CPU."""
    where = device()
    if where.type == "cpu":
        return "cpu"
    module = torch.get_device_module(where.type)
    return module.get_device_name() if hasattr(module, "get_device_name") else where.type


def synchronise(where: Device) -> None:
    """Wait until the device has done all that it was told, before a clock is read."""
    if where.type != "cpu":
        torch.accelerator.synchronize()


def peak_memory(where: Device, reset: bool = False) -> float:
    """MiB that tensors took at most since the last reset; nan where nothing counts them."""
    if where.type in ("cpu", "mps"):
        return float("nan")
    if reset:
        torch.accelerator.reset_peak_memory_stats()
    return torch.accelerator.max_memory_allocated() / 2**20
