"""Make-believe devices: a tensor says that it lies on one of them, and an operation on tensors of two is an error.

The numbers are computed by the CPU. They are what a test of several devices needs on a machine that has one.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "privateuseone"  # the kind of device that torch keeps free for others
COPIES = (torch.ops.aten._to_copy, torch.ops.aten.to)


class Placed(Tensor):
    """What `held`, a tensor on the CPU, is on a device."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor, device: torch.device) -> "Placed":
        how: Any = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype, "device": device}
        with torch.inference_mode(False):  # such a tensor could not be changed in place
            placed = Tensor._make_wrapper_subclass(cls, held.size(), **how)
        placed.held = held
        return placed

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})

    def __repr__(self) -> str:  # type: ignore[override]
        return f"{self.held} on {self.device}"


@contextmanager
def make_believe_devices() -> Iterator[None]:
    """Inside, tensors can be made on and moved to privateuseone:0, privateuseone:1 and so on."""
    if not hasattr(torch, NAME):
        _setup_privateuseone_for_python_backend()
        torch.privateuseone.get_amp_supported_dtype = lambda: [torch.bfloat16]  # type: ignore[attr-defined]
    with _Dispatch(), _Construct():
        yield


class _Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})


class _Construct(TorchFunctionMode):
    """What a dispatch mode does not see: `torch.tensor`, which is filled on the CPU, then, and `tolist`."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.tensor and (device := kwargs.pop("device", None)) is not None:
            return func(*args, **kwargs).to(device)
        if func is Tensor.tolist:
            return _on_cpu(args[0]).tolist()
        return func(*args, **kwargs)


def _compute(func: Any, args: Any, kwargs: Any) -> Any:
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    found = {t.device for t in tensors if t.dim() > 0 or isinstance(t, Placed)}  # numbers on the CPU go with all devices
    named = next((v for v in (*args, *kwargs.values()) if isinstance(v, torch.device)), None)
    if func.overloadpacket is torch.ops.aten._has_compatible_shallow_copy_type:
        return False
    if func.overloadpacket is torch.ops.aten.copy_:
        _on_cpu(args[0]).copy_(_on_cpu(args[1]))
        return args[0]
    copies = func.overloadpacket in COPIES
    if len(found) > 1 and not copies:
        raise RuntimeError(f"{func} on tensors of {' and '.join(map(str, found))}")
    device = named or next(iter(found), torch.device("cpu"))
    results = func(*tree_map(_on_cpu, args), **tree_map(_on_cpu, kwargs))

    def placed(result: Any) -> Any:
        if not isinstance(result, Tensor):
            return result
        for tensor in tensors:
            if _on_cpu(tensor) is result:  # changed in place, or moved to where it was
                if tensor.device == device:
                    return tensor
                result = result.clone()
        return result if device.type == "cpu" else Placed(result, device)

    return tree_map(placed, results)


def _on_cpu(value: Any) -> Any:
    if isinstance(value, torch.device):
        return torch.device("cpu")
    return value.held if isinstance(value, Placed) else value
