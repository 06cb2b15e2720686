"""Tensors that lie on the CPU and say "cuda": they compute as ever, and refuse what a real GPU refuses.

An operator that meets a tensor of the one kind and a tensor of the other is an error, but for CPU tensors without a
dimension, as in torch; so is a factory or a draw whose generator belongs to the other device. So code that forgets a
``.to(device)`` fails here as it would on a GPU. What this cannot show is how CUDA's kernels round.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
_BELOW = torch.device("meta")  # what autograd is told: it would ask CUDA itself for a queue
_PRODUCTS = (torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__)
_MAY_MIX = ("aten::_to_copy", "aten::copy_", "aten::set_.source_Tensor")


class Pretended(torch.Tensor):
    """A tensor on the pretended device; ``held`` has its numbers."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> Pretended:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=_BELOW,
            dispatch_device=True,
            requires_grad=False,
        )
        made.held = held
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return CUDA

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    def __deepcopy__(self, memo: dict[int, Any]) -> Pretended:
        made = Pretended(self.held.clone()).requires_grad_(self.requires_grad)
        if isinstance(self, torch.nn.Parameter):
            made._is_param = True  # type: ignore[attr-defined]
        memo[id(self)] = made
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _held(value: Any) -> Any:
    return value.held if isinstance(value, Pretended) else value


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    flat = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, torch.Tensor)]
    there = [value for value in flat if isinstance(value, Pretended)]
    alien = [value for value in flat if not isinstance(value, Pretended) and value.ndim > 0]
    name = func.name()
    wanted = kwargs.get("device")
    on_gpu = torch.device(wanted).type != "cpu" if wanted is not None else bool(there)
    indexed = name.startswith(("aten::index", "aten::_index_put")) and isinstance(args[0], Pretended)
    if there and alien and not (name.startswith(_MAY_MIX) or indexed):  # an index may lie on the CPU
        raise RuntimeError(f"{name}: tensors on cuda and on the CPU ({[tuple(one.shape) for one in alien]})")
    if kwargs.get("generator") is not None and on_gpu:
        raise RuntimeError(f"{name}: a generator of the CPU cannot draw on cuda")
    inner_kwargs = tree_map(_held, kwargs)
    if wanted is not None:
        inner_kwargs["device"] = CPU
    inner_kwargs.pop("pin_memory", None)
    found = func(*tree_map(_held, args), **inner_kwargs)
    if name.startswith("aten::copy_"):
        return args[0]
    known = {id(value.held): value for value in there}

    def shown(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or isinstance(value, Pretended):
            return value
        if id(value) in known:
            return known[id(value)]
        return Pretended(value) if on_gpu else value

    return tree_map(shown, found)


class _Factories(TorchDispatchMode):
    _mode_key = torch._C._TorchDispatchModeKey.FAKE  # torch starts no CUDA while a mode of this kind is on

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Literals(TorchFunctionMode):
    """What asks for a device before any dispatcher is reached: it would start CUDA, or see what lies below."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(kwargs or {})
        if func is torch.tensor and given.get("device") is not None:
            place = given.pop("device")
            return func(*args, **given).to(place)
        if func is torch.Tensor.new_tensor and isinstance(args[0], Pretended):
            return torch.tensor(args[1], dtype=given.get("dtype", args[0].dtype)).to(CUDA)
        if func is torch.Tensor.to and len(args) > 1 and isinstance(args[1], Pretended):
            return args[0].to(CUDA, args[1].dtype)
        if func in _PRODUCTS and [one.ndim for one in args] == [1, 2]:
            # torch would squeeze the result in place: what is held, and not what is shown
            return func(args[0].unsqueeze(0), args[1]).squeeze(0)
        return func(*args, **given)


@contextmanager
def pretended_cuda() -> Iterator[None]:
    """Inside the block ``device="cuda"`` and ``.to("cuda")`` give pretended tensors."""
    torch._C._ensureCUDADeviceGuardSet()
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # a parameter's data cannot be of another class
    try:
        with _Factories(), _Literals():
            yield
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)
