"""TensorRT's plugin interfaces as far as our plugins touch them, recording. Tests with it claim logic, not hardware.

``plugin`` checks what tensorrt.plugin of 10.13 checks when functions are registered: annotations that are types, and
the return annotation of ``aot_impl``.
"""

from __future__ import annotations

import inspect
import types
from typing import Any, get_origin

import numpy as np


class TensorDesc:
    """A tensor's symbolic shape, here plain integers, and its type."""

    def __init__(self, shape: tuple[int, ...], dtype: str) -> None:
        self.shape_expr = list(shape)
        self.ndim = len(shape)
        self.dtype = dtype


class SymInt32:
    def __init__(self, value: int) -> None:
        self.value = value


class SymExprs:
    def __init__(self, items: list[SymInt32]) -> None:
        self.items = items


class SymIntExprs(SymExprs):
    @classmethod
    def from_tuple(cls, items: list[SymInt32]) -> SymIntExprs:
        assert all(type(item) is SymInt32 for item in items)
        return cls(items)


class KernelLaunchParams:
    """The seven launch parameters; nothing else may be set."""

    __slots__ = ("block_x", "block_y", "block_z", "grid_x", "grid_y", "grid_z", "shared_mem")


class AutoTuneCombination:
    def __init__(self, io_types: str, layouts: str, tactics: list[int]) -> None:
        self.io_types, self.layouts, self.tactics = io_types.split(", "), layouts, tactics


def plugin_module() -> types.ModuleType:
    """A new ``tensorrt.plugin``; ``registered`` maps "namespace::name" to its functions by role."""
    module = types.ModuleType("tensorrt.plugin")
    registered: dict[str, dict[str, Any]] = {}

    def keep(role: str) -> Any:
        def decorator(plugin_id: str) -> Any:
            def wrap(function: Any) -> Any:
                signature = inspect.signature(function)
                if role == "register":
                    kinds = {parameter.annotation for parameter in signature.parameters.values()}
                    assert kinds <= {TensorDesc, int}
                    assert signature.return_annotation is TensorDesc
                else:
                    attributes = inspect.signature(registered[plugin_id]["register"]).parameters
                    extra = {"outputs", "tactic"} if role == "aot_impl" else {"outputs"}
                    assert set(signature.parameters) - extra <= set(attributes)
                if role == "aot_impl":
                    assert get_origin(signature.return_annotation) is tuple
                registered.setdefault(plugin_id, {})[role] = function
                return function

            return wrap

        return decorator

    for role in ("register", "autotune", "aot_impl"):
        setattr(module, role, keep(role))
    for kind in (TensorDesc, SymInt32, SymExprs, SymIntExprs, KernelLaunchParams, AutoTuneCombination):
        setattr(module, kind.__name__, kind)
    module.from_shape_expr = lambda shape, dtype: TensorDesc(tuple(shape), dtype)  # type: ignore[attr-defined]
    module.cdiv = lambda first, second: -(-first // second)  # type: ignore[attr-defined]
    module.registered = registered  # type: ignore[attr-defined]
    return module


class _Interface:
    """What a plugin's bases are: their __init__ must have run."""

    def __init__(self) -> None:
        self.initialised = True


class Registry:
    def __init__(self, accepts: bool = True) -> None:
        self.creators: list[tuple[Any, str]] = []
        self.accepts = accepts

    def register_creator(self, creator: Any, namespace: str) -> bool:
        self.creators.append((creator, namespace))
        return self.accepts


class PluginField:
    def __init__(self, name: str, data: np.ndarray, kind: str) -> None:
        self.name, self.data, self.type = name, data, kind


def module(registry: Registry | None = None) -> types.ModuleType:
    """A new ``tensorrt`` with ``plugin``."""
    trt = types.ModuleType("tensorrt")
    for name in ("IPluginV3", "IPluginV3OneCore", "IPluginV3OneBuild", "IPluginV3OneRuntime", "IPluginCreatorV3One"):
        setattr(trt, name, type(name, (_Interface,), {}))
    for name in ("int8", "float16", "float32"):
        setattr(trt, name, name)
    trt.TensorFormat = types.SimpleNamespace(LINEAR="linear", CHW32="chw32")  # type: ignore[attr-defined]
    trt.PluginFieldType = types.SimpleNamespace(INT32="int32")  # type: ignore[attr-defined]
    trt.PluginField, trt.PluginFieldCollection, trt.DimsExprs = PluginField, list, list  # type: ignore[attr-defined]
    held = registry or Registry()
    trt.get_plugin_registry = lambda: held  # type: ignore[attr-defined]
    trt.plugin = plugin_module()  # type: ignore[attr-defined]
    return trt
