"""The kernels as IPluginV3 plugins, for TensorRT 10.3, which has no quickly deployable ones (JetPack 6).

For the nodes of :mod:`runtime.kernels.nodes`, as :mod:`runtime.kernels.qdp`. The kernel is not in the plan: the
process that runs the engine calls :func:`register` before it deserializes, and every launch passes through Python.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from runtime.errors import IntvitError
from runtime.kernels.launch import Kernels, driver_module, kernels_by_context
from runtime.kernels.nodes import ATTRIBUTES, INPUTS, LINEAR_I8, NAMESPACE
from runtime.kernels.nodes import VERSION as NODES_VERSION
from runtime.kernels.tiles import DEFAULT_SHARED, TILES, Bits

_VERSION = str(NODES_VERSION)
_TYPESTR = {"int8": "|i1", "uint8": "|u1", "float16": "<f2", "float32": "<f4"}


class DeviceView:
    """Memory that TensorRT owns, as the launcher wants it."""

    def __init__(self, pointer: int, shape: tuple[int, ...], dtype: str) -> None:
        self.__cuda_array_interface__ = {
            "data": (pointer, False),
            "shape": shape,
            "typestr": _TYPESTR[dtype],
            "strides": None,
            "version": 3,
        }


def plugin_class(trt: Any, kernels: Callable[[], Kernels]) -> type[Any]:
    """The plugin for a TensorRT module. ``kernels`` is called at the first launch, when a context is there."""

    class Linear(
        trt.IPluginV3,  # type: ignore[misc]
        trt.IPluginV3OneCore,  # type: ignore[misc]
        trt.IPluginV3OneBuild,  # type: ignore[misc]
        trt.IPluginV3OneRuntime,  # type: ignore[misc]
    ):
        def __init__(self, name: str, bits: int, gelu: int, affine: int = 0) -> None:
            for base in (trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuild, trt.IPluginV3OneRuntime):
                base.__init__(self)
            self.plugin_name, self.plugin_namespace, self.plugin_version = name, NAMESPACE, _VERSION
            self.num_outputs = 1
            self.bits, self.gelu, self.affine, self.tactic = bits, gelu, affine, 0
            self.timing_cache_id = f"{name}-{bits}-{gelu}-{affine}"

        @property
        def int8(self) -> bool:
            return bool(self.plugin_name == LINEAR_I8)

        def get_capability_interface(self, kind: Any) -> Any:
            return self

        def get_output_data_types(self, input_types: Any) -> list[Any]:
            return [trt.int8 if self.int8 else trt.float16]

        def get_output_shapes(self, inputs: Any, shape_inputs: Any, builder: Any) -> list[Any]:
            out = trt.DimsExprs(inputs[0])
            out[len(out) - 1] = inputs[1][0]
            return [out]

        def get_fields_to_serialize(self) -> Any:
            # TensorRT keeps addresses of what it is given, in the collection too: all of it stays with the plugin.
            names, kind = ATTRIBUTES[self.plugin_name], trt.PluginFieldType.INT32
            self._values = [np.array([getattr(self, name)], np.int32) for name in names]
            self._parts = [trt.PluginField(*part, kind) for part in zip(names, self._values, strict=True)]
            self._fields = trt.PluginFieldCollection(self._parts)
            return self._fields

        def configure_plugin(self, inputs: Any, outputs: Any) -> None:
            return None

        def on_shape_change(self, inputs: Any, outputs: Any) -> None:
            return None

        def supports_format_combination(self, position: int, tensors: Any, inputs: int) -> bool:
            floats = [trt.float32] * (len(INPUTS[self.plugin_name]) - 2)
            types = [trt.int8, trt.int8, *floats, trt.int8 if self.int8 else trt.float16]
            desc = tensors[position].desc
            return bool(desc.format == trt.TensorFormat.LINEAR and desc.type == types[position])

        def get_valid_tactics(self) -> list[int]:
            width: Bits = 4 if self.bits == 4 else 8
            return [i + 1 for i, tile in enumerate(TILES) if tile.shared_bytes(width) <= DEFAULT_SHARED]

        def set_tactic(self, tactic: int) -> None:
            self.tactic = tactic

        def enqueue(
            self, inputs: Any, outputs: Any, pointers: Any, output_pointers: Any, workspace: int, stream: int
        ) -> None:
            shapes = [tuple(int(size) for size in desc.dims) for desc in inputs]
            types = ["int8", "uint8" if self.bits == 4 else "int8", *["float32"] * (len(shapes) - 2)]
            views = [DeviceView(*view) for view in zip(pointers, shapes, types, strict=True)]
            shape = tuple(int(size) for size in outputs[0].dims)
            y = DeviceView(output_pointers[0], shape, "int8" if self.int8 else "float16")
            kernels().linear(
                views[0],
                views[1],
                y,
                views[2],
                views[3],
                gelu=bool(self.gelu),
                factor=views[4] if self.affine else None,
                quantizer=views[5] if self.int8 else None,
                tile=TILES[self.tactic - 1] if self.tactic else None,
                stream=int(stream),
            )

        def attach_to_context(self, context: Any) -> Any:
            return self.clone()

        def clone(self) -> Any:
            other = Linear(self.plugin_name, self.bits, self.gelu, self.affine)
            other.tactic = self.tactic
            return other

    return Linear


def creator_class(trt: Any, plugin: type[Any]) -> type[Any]:
    """The creator of one of the two plugins, by name."""

    class Creator(trt.IPluginCreatorV3One):  # type: ignore[misc]
        def __init__(self, name: str) -> None:
            trt.IPluginCreatorV3One.__init__(self)
            self.name, self.plugin_namespace, self.plugin_version = name, NAMESPACE, _VERSION
            empty, kind = np.array([], np.int32), trt.PluginFieldType.INT32
            fields = [trt.PluginField(field, empty, kind) for field in ATTRIBUTES[name]]
            self.field_names = trt.PluginFieldCollection(fields)

        def create_plugin(self, name: str, fields: Any, phase: Any) -> Any:
            values = {field.name: int(np.asarray(field.data).reshape(-1)[0]) for field in fields}
            wrong = [one for one, allowed in ATTRIBUTES[self.name].items() if values.get(one) not in allowed]
            if wrong or values.get("affine", 0) > values["gelu"]:
                why, hint = f"its attributes are {values}", "bits 4 or 8, gelu 0 or 1, affine 0 or, behind GELU, 1"
                raise IntvitError(f"{self.name} cannot be made", where=name, why=why, next=hint)
            return plugin(self.name, *(values[one] for one in ATTRIBUTES[self.name]))

    return Creator


def register(folder: Path, *, trt: Any = None) -> list[Any]:
    """Register both plugins with the TensorRT of this process.

    Args:
        folder: what ``make kernels`` wrote. trt: stands in for the module ``tensorrt`` in tests.

    Returns:
        The creators. The registry does not keep them alive: hold them as long as engines are built or run.

    Raises:
        IntvitError: no TensorRT here, or one without IPluginV3 (before 10.0), or it refuses a creator; no cuda-python,
            which launches the kernels.
    """
    driver = driver_module()  # inside a launch TensorRT would swallow what is missing
    if trt is None:
        try:
            trt = importlib.import_module("tensorrt")
        except ImportError as error:
            raise IntvitError("there is no TensorRT here", why=str(error), next="install TensorRT 10.3") from error
    if not hasattr(trt, "IPluginV3"):
        raise IntvitError("this TensorRT has no IPluginV3", next="use TensorRT 10.3 or later")
    plugin = plugin_class(trt, kernels_by_context(folder, driver))
    creator, registry = creator_class(trt, plugin), trt.get_plugin_registry()
    creators = [creator(name) for name in INPUTS]
    for one in creators:
        if not registry.register_creator(one, NAMESPACE):
            raise IntvitError(f"TensorRT refuses the plugin {one.name}", why="one of that name is registered already")
    return creators
