"""A GPU without a GPU: tensors that are on a device "simulated:0" and keep their values in the CPU's memory.

Whole trainings run on it, with all that depends on values: the loop, evaluation, checkpoints, the search for words.
As on a real GPU, an operation that is given tensors of both devices fails, a tensor must come back to the CPU before
NumPy or a file can have it, and numbers that are drawn at random on the device are not those of the CPU. Its kernels
are those of the CPU.

The device is PyTorch's "PrivateUse1" with a back end in Python. What is not simulated is CUDA's own: its kernels, its
rounding, its memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "simulated"
aten = torch.ops.aten
COPIES = {aten._to_copy.default, aten.copy_.default}
# What autocast runs in low precision on the CPU, as far as the trainings use it.
LOW_PRECISION = ("linear", "matmul", "bmm", "addmm", "baddbmm", "conv2d", "conv_transpose2d.input")
AUTOCAST_KEY = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)
drawn_there = torch.Generator()
lowered: list[str] = []  # the operations that autocast has run in low precision here


class Remote(Tensor):
    """A tensor on the device.

    Args:
        local: a plain tensor with its values.
    """

    local: Tensor

    @staticmethod
    def __new__(cls, local: Tensor) -> Remote:
        layout = {"strides": local.stride(), "storage_offset": local.storage_offset(), "dtype": local.dtype}
        with torch.inference_mode(False):  # the view of a parameter stays an ordinary tensor in inference mode too
            return Tensor._make_wrapper_subclass(cls, local.shape, **layout, device=torch.device(NAME, 0))

    def __init__(self, local: Tensor) -> None:
        self.local = local

    def __repr__(self) -> str:
        return f"{NAME} {self.local}"

    def tolist(self) -> Any:
        return self.local.tolist()

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["local"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], _meta: None, _shape: Any, _strides: Any) -> Remote:
        return Remote(inner["local"])

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return operate(func, args, kwargs or {})


class Arrivals(TorchDispatchMode):
    """Sees the operations that make a tensor on the device from none there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return operate(func, args, kwargs or {})


def operate(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Do one of PyTorch's operations where its tensors are, or where it is told to."""
    if composite(func):
        with Arrivals():
            return func.decompose(*args, **kwargs)
    tensors: list[Tensor] = []
    local_args, local_kwargs = replaced((args, kwargs), lambda tensor: tensors.append(tensor) or local(tensor))
    remote, target = any(isinstance(tensor, Remote) for tensor in tensors), kwargs.get("device")
    there = remote if target is None else torch.device(target).type == NAME
    if not remote and not there:
        return func(*args, **kwargs)
    if func is aten._fused_sdp_choice.default:
        return 0  # attention by its formula: a GPU's fused kernels are not here
    strangers = [tuple(t.shape) for t in tensors if t.ndim and not isinstance(t, Remote)]
    if remote and strangers and func not in COPIES:
        raise RuntimeError(f"{func}: all tensors should be on {NAME}, but those of shapes {strangers} are on the CPU")
    if target is not None:
        local_kwargs["device"] = torch.device("cpu")
    with own_randomness(func):
        result = func(*local_args, **local_kwargs)
    if func is aten.copy_.default:
        return args[0]
    if not there:
        return result
    result = replaced(result, Remote)
    return return_and_correct_aliasing(func, args, kwargs, result) if remote else result


def replaced(nested: Any, replacement: Callable[[Tensor], Any]) -> Any:
    """The same tuples, lists and dictionaries with other tensors."""
    if isinstance(nested, Tensor):
        return replacement(nested)
    if isinstance(nested, dict):
        return {key: replaced(value, replacement) for key, value in nested.items()}
    return type(nested)(replaced(value, replacement) for value in nested) if type(nested) in (tuple, list) else nested


def local(tensor: Tensor) -> Tensor:
    """The plain tensor with the values."""
    return tensor.local if isinstance(tensor, Remote) else tensor


@cache
def composite(func: Any) -> bool:
    """Whether an operation is made of others; such ones come here in inference mode alone."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")


@contextmanager
def own_randomness(func: Any) -> Iterator[None]:
    """Inside, what the operation draws comes from the device's own generator."""
    if torch.Tag.nondeterministic_seeded not in func.tags:
        yield
        return
    before = torch.get_rng_state()
    torch.set_rng_state(drawn_there.get_state())
    yield
    drawn_there.set_state(torch.get_rng_state())
    torch.set_rng_state(before)


class Backend:
    """What PyTorch asks the module of a device, ``torch.simulated``."""

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def manual_seed_all(self, seed: int) -> None:
        drawn_there.manual_seed(seed + 1)

    def _is_in_bad_fork(self) -> bool:
        return False

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


def low_precision(operator: Any) -> Callable:
    """The operator as it is within autocast."""

    def cast(tensor: Tensor) -> Tensor:
        return tensor.to(torch.get_autocast_dtype(NAME)) if tensor.dtype == torch.float32 else tensor

    def kernel(*args: Any, **kwargs: Any) -> Any:
        lowered.append(operator.name())
        with torch._C._ExcludeDispatchKeyGuard(AUTOCAST_KEY):
            args, kwargs = replaced((args, kwargs), cast)
            return operator(*args, **kwargs)

    return kernel


@cache
def register() -> tuple[torch.library.Library, ...]:
    """Make the device known to PyTorch, once in a process."""
    _setup_privateuseone_for_python_backend(NAME, backend_module=Backend())
    everything, some = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    everything.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    for name in LOW_PRECISION:
        packet, _, overload = name.partition(".")
        some.impl(name, low_precision(getattr(getattr(aten, packet), overload or "default")), "AutocastPrivateUse1")
    return everything, some


@contextmanager
def simulated_gpu() -> Iterator[str]:
    """Inside, the device exists; yields its name."""
    register()
    torch.__future__.set_swap_module_params_on_conversion(True)  # else a module's tensors change their identity
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device=...) is a copy from the CPU then
    try:
        with Arrivals(), torch.autograd.set_multithreading_enabled(False):
            yield NAME
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
        torch._C._set_only_lift_cpu_tensors(False)
