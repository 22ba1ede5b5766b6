"""A pretend accelerator: to PyTorch "pretend:0" is another device, and the CPU computes for it.

A tensor on it is an ordinary tensor whose memory the CPU shares by DLPack: in the capsule only the
number of the device is changed. A boxed fallback runs every operation on the CPU, after it has
refused what a GPU refuses: tensors of two devices in one operation, `.numpy()`, a generator of the
CPU, products of integer matrices, use in a forked process. Nothing is faster, nothing runs later,
and there is one such device. Registration cannot be undone: it needs a process of its own
(`on_accelerator.py`, or a notebook's kernel), and comes before anything is computed.

PRETEND=t4 has float16 but no bfloat16 in hardware, as a T4; PRETEND=mac no float64, as Apple's MPS.
"""

import ctypes
import os
import re
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor
from torch._C import DispatchKey, DispatchKeySet
from torch.utils import backend_registration
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

NAME, CPU, PROCESS = "pretend", torch.device("cpu"), os.getpid()
KIND = os.environ.get("PRETEND", "")
ON_CPU, ELSEWHERE = 1, 12  # numbers of devices in DLPack: the CPU, an extension
MAY_MIX = {"copy_", "_copy_from", "_copy_from_and_resize", "set_"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
INDEX_TYPES = {torch.int64, torch.int32, torch.bool, torch.uint8}
TAKES_SCALARS = {"fill_", "masked_fill", "masked_fill_"}  # of the CPU; so does all pointwise
PRODUCTS = {"mm", "bmm", "addmm", "baddbmm", "mv", "addmv", "dot"}
VIEWS = ("as_strided", "view", "_reshape_alias", "unfold", "set_.source_Tensor",
         "set_.source_Storage", "set_.source_Storage_storage_offset")  # fmt: skip
NOT_COMPOSITE = ("copy_", "_copy_from", "_copy_from_and_resize", "convolution",
                 "convolution_backward", "_fused_sdp_choice")  # fmt: skip

_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype, _pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]


def seen_from(x: Tensor, device: int) -> Tensor:
    """The same memory as a tensor of the other device, ON_CPU or ELSEWHERE."""
    capsule = torch._C._to_dlpack(x)
    ctypes.c_int32.from_address(_pointer(capsule, b"dltensor") + 8).value = device
    return torch._C._from_dlpack(capsule)


def ours(x: object) -> bool:
    """Whether something is a tensor or a name of the pretend device."""
    where = x.device if isinstance(x, Tensor | torch.Generator) else x
    return isinstance(where, torch.device) and where.type == NAME


@cache
def _about(op) -> tuple[str, bool, list[str], list[int]]:
    """Name; may scalars of the CPU mix in; names of `out` arguments; places of tensors."""
    name, arguments = op._schema.name.removeprefix("aten::"), op._schema.arguments
    scalars = name in TAKES_SCALARS or name.startswith("_foreach") or torch.Tag.pointwise in op.tags
    outs = [a.name for a in arguments if a.is_out]
    return name, scalars, outs, [i for i, a in enumerate(arguments) if str(a.type) == "Tensor"]


def _fallback(op, *args, **kwargs):
    """Any operation: check, let the CPU compute, hand the results back."""
    name, scalars, outs, places = _about(op)
    if any(i < len(args) and not isinstance(args[i], Tensor) for i in places):
        op = op.overloadpacket  # PyTorch hands on a number for a tensor: let it choose again
    values, spec = tree_flatten((args, kwargs))
    named = [x for x in values if isinstance(x, torch.device)]
    here = ours(named[0]) if named else any(isinstance(x, Tensor) and ours(x) for x in values)
    _refuse(name, scalars, values)
    aliases = [_alias(x) for x in values]  # keeps them alive, so that each id stands for one
    args, kwargs = tree_unflatten(aliases, spec)
    back = {id(a): x for a, x in zip(aliases, values, strict=True) if isinstance(x, Tensor)}
    grown = {n: kwargs[n] for n in outs if kwargs.get(n) is not None and kwargs[n].numel() == 0}
    for n, x in grown.items():  # an empty `out` is resized, which shared memory cannot be
        kwargs[n] = torch.empty(0, dtype=x.dtype)
        back[id(kwargs[n])] = back[id(x)]
    with torch._C._ExcludeDispatchKeyGuard(DispatchKeySet(DispatchKey.AutocastCPU)):
        found = op(*args, **kwargs)
    for n, x in grown.items():
        _set(back[id(x)], seen_from(kwargs[n], ELSEWHERE))
    return tree_map(lambda x: back.get(id(x)) if id(x) in back else _handed(x, here), found)


def _alias(x):
    if isinstance(x, torch.device):
        return CPU
    return seen_from(x, ON_CPU) if isinstance(x, Tensor) and ours(x) else x


def _handed(x, here: bool):
    if not isinstance(x, Tensor) or not here:
        return x
    if x.dtype == torch.float64 and x.dim() and KIND == "mac":
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
    return seen_from(x, ELSEWHERE)


def _refuse(name: str, scalars: bool, values: list) -> None:
    """Raise what a GPU would raise."""
    if os.getpid() != PROCESS:
        raise RuntimeError("Cannot re-initialize CUDA in forked subprocess")
    if any(isinstance(x, torch.Generator) and not ours(x) for x in values):
        raise RuntimeError(f"Expected a '{NAME}' device type for generator but found 'cpu'")
    tensors = [x for x in values if isinstance(x, Tensor)]
    theirs, mine = [x for x in tensors if not ours(x)], [x for x in tensors if ours(x)]
    if name in INDEXING and ours(tensors[0]):  # the indices may be on the CPU
        theirs, scalars = [x for x in theirs if x.dtype not in INDEX_TYPES], True
    if mine and name not in MAY_MIX and any(x.dim() or not scalars for x in theirs):
        shapes = ", ".join(f"{x.device}{tuple(x.shape)}" for x in tensors)
        what = "Expected all tensors to be on the same device, but found at least two devices"
        raise RuntimeError(f"{what}, {NAME}:0 and cpu! ({name}: {shapes})")
    if name in PRODUCTS and not (mine[0].is_floating_point() or mine[0].is_complex()):
        raise RuntimeError(f'"{name}_cuda" not implemented for {mine[0].dtype}')


def _as_the_cpu(op, *args, **kwargs):
    """A view: the CPU's kernel only counts sizes and strides, whatever the device is."""
    return op.redispatch(DispatchKeySet(DispatchKey.CPU), *args, **kwargs)


def _set(x: Tensor, new: Tensor) -> None:
    place = new.untyped_storage(), new.storage_offset(), new.shape, new.stride()
    _as_the_cpu(_op("set_.source_Storage_storage_offset"), x, *place)


def _resize(x: Tensor, size, *, memory_format=None) -> Tensor:
    if tuple(x.shape) != tuple(size):
        new, old = torch.empty(tuple(size), dtype=x.dtype), seen_from(x, ON_CPU).flatten()
        n = min(new.numel(), old.numel())
        new.view(-1)[:n] = old[:n]
        _set(x, seen_from(new, ELSEWHERE))
    return x


def _lstm_cell(igates, hgates, cx, input_bias=None, hidden_bias=None):
    """What a GPU fuses: the next state of an LSTM, and what its gradient needs."""
    gates = igates + hgates
    if input_bias is not None:
        gates = gates + input_bias + hidden_bias
    i, f, g, o = gates.chunk(4, 1)
    i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
    cy = f * cx + i * g
    return o * cy.tanh(), cy, torch.cat([i, f, g, o], 1)


def _lstm_cell_backward(grad_hy, grad_cy, cx, cy, workspace, has_bias):
    i, f, g, o = workspace.chunk(4, 1)
    tanh = cy.tanh()
    grad_hy = torch.zeros_like(cy) if grad_hy is None else grad_hy
    total = grad_hy * o * (1 - tanh**2) + (0 if grad_cy is None else grad_cy)
    gates = [total * g * i * (1 - i), total * cx * f * (1 - f), total * i * (1 - g**2)]
    gates = torch.cat([*gates, grad_hy * tanh * o * (1 - o)], 1)
    return gates, total * f, gates.sum(0) if has_bias else torch.empty(0, device=cx.device)


def _autocast(op, policy: str, *args, **kwargs):
    """An operation under torch.autocast: its inputs in the type that CUDA would choose."""
    values, spec = tree_flatten((args, kwargs))
    fits = [
        isinstance(x, Tensor) and ours(x) and x.is_floating_point() and x.dtype != torch.float64
        for x in values
    ]
    types = {x.dtype for x, fit in zip(values, fits, strict=True) if fit}
    wanted = torch.get_autocast_dtype(NAME) if policy == "LOWER_PRECISION_FP" else torch.float32
    if (policy == "PROMOTE" and len(types) < 2) or kwargs.get("dtype"):
        fits = [False] * len(fits)
    with torch._C._ExcludeDispatchKeyGuard(DispatchKeySet(DispatchKey.AutocastPrivateUse1)):
        values = [x.to(wanted) if fit else x for x, fit in zip(values, fits, strict=True)]
        args, kwargs = tree_unflatten(values, spec)
        return op(*args, **kwargs)


def _autocast_lists():
    """(list, operation) of CUDA, from the headers that come with this PyTorch."""
    text = Path(torch.__file__).with_name("include") / "ATen" / "autocast_mode.h"
    blocks = re.findall(r"#define AT_FORALL_(\w+)\(_\)(.*?)\n\n", text.read_text(), re.DOTALL)
    for policy, block in blocks:
        for name, overload in re.findall(r"_\((\w+)(?:, (\w+))?\)", block):
            yield policy, f"{name}.{overload}".rstrip(".")
    yield from (("FP32_SET_OPT_DTYPE", name) for name in ("norm.Scalar", "norm.ScalarOpt_dim"))
    yield from (("PROMOTE", name) for name in ("cat", "stack"))


class _Module(backend_registration._DummyBackendModule):
    """torch.pretend"""

    def get_amp_supported_dtype(self):
        return [torch.bfloat16, torch.float16]

    def is_bf16_supported(self, including_emulation=True):
        return KIND != "t4" or including_emulation

    def get_device_capability(self, device=None):
        return (7, 5) if KIND == "t4" else (8, 0)

    def get_device_name(self, device=None):
        return "pretend accelerator"

    def set_device(self, device):
        pass

    def get_rng_state(self, device=None):
        return torch.default_generator.get_state()

    def set_rng_state(self, state, device=None):
        torch.default_generator.set_state(state)


def _op(name: str):
    packet, _, overload = name.partition(".")
    return getattr(getattr(torch.ops.aten, packet), overload or "default")


def register() -> torch.device:
    """Make the device known to PyTorch and Accelerate; a second call does nothing."""
    if hasattr(torch, NAME):
        return torch.device(NAME, 0)
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
    every, aten = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    register.kept = every, aten
    every.fallback(_fallback, "PrivateUse1")
    every.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    for name in VIEWS:
        aten.impl(name, partial(_as_the_cpu, _op(name)), "PrivateUse1")
    for name in NOT_COMPOSITE:
        aten.impl(name, partial(_fallback, _op(name)), "PrivateUse1")
    for policy, name in _autocast_lists():
        if not name.startswith("_convolution"):
            aten.impl(name, partial(_autocast, _op(name), policy), "AutocastPrivateUse1")
    aten.impl("resize_", _resize, "PrivateUse1")
    aten.impl("_thnn_fused_lstm_cell", _lstm_cell, "PrivateUse1")
    aten.impl("_thnn_fused_lstm_cell_backward_impl", _lstm_cell_backward, "PrivateUse1")
    aten.impl("_pin_memory", lambda x, device=None: x.clone(), "CPU")
    _patch_storages()
    _patch_modules()
    _patch_accelerators()
    return torch.device(NAME, 0)


def _patch_storages() -> None:
    """PyTorch cannot allocate on this device: storages are copied by way of the CPU."""
    kind, clone, to = torch.UntypedStorage, torch.UntypedStorage.clone, torch.UntypedStorage.to

    def copied(self):
        flat = torch.empty(0, dtype=torch.uint8, device=self.device).set_(self)
        return seen_from(flat.cpu().clone(), ELSEWHERE).untyped_storage()

    def moved(self, *, device, non_blocking=False):
        if torch.device(device).type == NAME != self.device.type:
            return copied(self)
        return to(self, device=device, non_blocking=non_blocking)

    kind.clone = lambda self: copied(self) if self.device.type == NAME else clone(self)
    kind.to = moved


def _patch_modules() -> None:
    """Module.to changes each Parameter in place, as for a GPU, so that optimisers follow."""
    apply, future = torch.nn.Module._apply, torch.__future__

    def patched(self, fn, recurse=True):
        before = future.get_swap_module_params_on_conversion()
        future.set_swap_module_params_on_conversion(True)
        try:
            return apply(self, fn, recurse)
        finally:
            future.set_swap_module_params_on_conversion(before)

    torch.nn.Module._apply = patched


def _patch_accelerators() -> None:
    """What torch.accelerator and Accelerate ask of a device."""
    from accelerate import PartialState

    nothing = lambda *_: None  # noqa: E731
    torch.accelerator.synchronize = torch.accelerator.reset_peak_memory_stats = nothing
    torch.accelerator.max_memory_allocated = lambda *_: 2**20
    PartialState.default_device = property(lambda self: torch.device(NAME, 0))
