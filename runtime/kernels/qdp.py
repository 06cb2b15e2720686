"""The kernels as quickly deployable TensorRT plugins, ahead of time: the kernel lies inside the plan.

For TensorRT 10.13 and later, where :mod:`tensorrt.plugin` has ``aot_impl``. After :func:`register` an ONNX node of
:mod:`runtime.kernels.nodes` is one of our kernels, and the engine that comes out needs neither Python nor this package:
trtexec runs it.

The tile is a tactic: TensorRT times each that needs no more than 48 KiB of shared memory, the most a launch may take
unasked, and keeps the fastest. TensorRT passes a kernel's arguments as inputs, int32 scalars, outputs: the kernels
are declared so.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from pathlib import Path
from types import GenericAlias
from typing import Any, cast

from runtime.errors import IntvitError
from runtime.kernels.build import entry
from runtime.kernels.nodes import ATTRIBUTES, INPUTS, LINEAR_F16, LINEAR_I8, NAMESPACE
from runtime.kernels.tiles import DEFAULT_SHARED, TILES, Bits, Output, Tile, kernel_name, output_name


def tactics(bits: int) -> list[int]:
    """The tiles a plugin may use, as TensorRT numbers them: from 1, since 0 is its default."""
    return [i + 1 for i, tile in enumerate(TILES) if tile.shared_bytes(_width(bits)) <= DEFAULT_SHARED]


def _width(bits: int) -> Bits:
    if bits not in (4, 8):
        raise IntvitError("the plugin has no such weights", why=f"bits is {bits}", next="bits is 4 or 8")
    return cast(Bits, bits)


def _tensorrt() -> tuple[Any, Any]:
    try:
        import tensorrt
        import tensorrt.plugin as plugin
    except ImportError as error:
        raise IntvitError(
            "this TensorRT has no quickly deployable plugins",
            why=str(error),
            next="use TensorRT 10.13 or later; JetPack 6 has 10.3: use runtime.kernels.plugin_v3 there",
        ) from error
    if not hasattr(plugin, "aot_impl"):
        raise IntvitError("this TensorRT has no ahead-of-time plugins", next="use TensorRT 10.13 or later")
    return tensorrt, plugin


def register(folder: Path) -> None:
    """Register both plugins with the TensorRT of this process, once.

    Args:
        folder: what ``make kernels`` wrote; the PTX there goes into the plans.

    Raises:
        IntvitError: no TensorRT with such plugins, or nothing built in ``folder``.
    """
    trt, trtp = _tensorrt()
    texts = {}
    for bits in (4, 8):
        try:
            texts[bits] = (folder / f"w{bits}a8.ptx").read_text("ascii")
        except OSError as error:
            raise IntvitError("the kernels are not built", where=str(folder), next="make kernels") from error

    def output_of(a: Any, w: Any, kind: Any) -> Any:
        leading = tuple(a.shape_expr[i] for i in range(a.ndim - 1))
        return trtp.from_shape_expr((*leading, w.shape_expr[0]), kind)

    def compiled(bits: int, output: Output, a: Any, w: Any, tactic: int) -> tuple[Any, Any, Any, Any]:
        tile: Tile = TILES[(tactic or tactics(bits)[0]) - 1]
        name = kernel_name(_width(bits), output, tile)
        m = functools.reduce(operator.mul, [a.shape_expr[i] for i in range(a.ndim - 1)])
        n, k = w.shape_expr[0], a.shape_expr[a.ndim - 1]
        launch = trtp.KernelLaunchParams()
        launch.grid_x, launch.grid_y = trtp.cdiv(n, tile.columns), trtp.cdiv(m, tile.rows)
        launch.block_x, launch.shared_mem = tile.threads, tile.shared_bytes(_width(bits))
        scalars = trtp.SymIntExprs.from_tuple([trtp.SymInt32(size) for size in (m, n, k)])
        return name, entry(texts[bits], name), launch, scalars

    def combination(kinds: str, bits: int) -> list[Any]:
        return [trtp.AutoTuneCombination(kinds, "LINEAR", tactics(bits))]

    def f16_desc(a: Any, w: Any, scale: Any, bias: Any, bits: int, gelu: int) -> Any:
        return output_of(a, w, trt.float16)

    def f16_autotune(a: Any, w: Any, scale: Any, bias: Any, bits: int, outputs: Any) -> Any:
        return combination("INT8, INT8, FP32, FP32, FP16", bits)

    def f16_kernel(a: Any, w: Any, scale: Any, bias: Any, bits: int, gelu: int, outputs: Any, tactic: int) -> Any:
        return compiled(bits, output_name("f16", gelu=bool(gelu), affine=False), a, w, tactic)

    def i8_desc(
        a: Any, w: Any, scale: Any, bias: Any, factor: Any, quantizer: Any, bits: int, gelu: int, affine: int
    ) -> Any:
        return output_of(a, w, trt.int8)

    def i8_autotune(a: Any, w: Any, scale: Any, bias: Any, factor: Any, quantizer: Any, bits: int, outputs: Any) -> Any:
        return combination("INT8, INT8, FP32, FP32, FP32, FP32, INT8", bits)

    def i8_kernel(
        a: Any,
        w: Any,
        scale: Any,
        bias: Any,
        factor: Any,
        quantizer: Any,
        bits: int,
        gelu: int,
        affine: int,
        outputs: Any,
        tactic: int,
    ) -> Any:
        return compiled(bits, output_name("i8", gelu=bool(gelu), affine=bool(affine)), a, w, tactic)

    def describe(function: Callable[..., Any], **annotations: Any) -> Callable[..., Any]:
        """tensorrt.plugin tells tensors from attributes by annotations, which it wants as its own types."""
        function.__annotations__ = annotations
        return function

    tensor = trtp.TensorDesc
    returned = GenericAlias(tuple, (str | bytes, str | bytes, trtp.KernelLaunchParams, trtp.SymExprs))
    for name, desc, autotune, kernel in (
        (LINEAR_F16, f16_desc, f16_autotune, f16_kernel),
        (LINEAR_I8, i8_desc, i8_autotune, i8_kernel),
    ):
        plugin_id = f"{NAMESPACE}::{name}"
        types = {**dict.fromkeys(INPUTS[name], tensor), **dict.fromkeys(ATTRIBUTES[name], int), "return": tensor}
        trtp.register(plugin_id)(describe(desc, **types))
        trtp.autotune(plugin_id)(describe(autotune))
        trtp.aot_impl(plugin_id)(describe(kernel, **{"return": returned}))
