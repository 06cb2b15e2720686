"""The compiled kernels on arrays that a GPU holds: torch CUDA tensors, CuPy arrays, anything with
``__cuda_array_interface__``.

Neither torch nor CuPy is imported. Modules are loaded and kernels launched through the CUDA driver with cuda-python, in
the context that is current, torch's and CuPy's own: the device's primary one. Nothing is allocated, nothing waits.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from runtime.errors import IntvitError
from runtime.kernels.build import UNITS, require_built
from runtime.kernels.packing import padded
from runtime.kernels.tiles import DEFAULT_SHARED, SMS, Bits, Output, Tile, choose, kernel_name, output_name
from runtime.nvidia import install_cuda_python

_TYPES = {"int8": "|i1", "uint8": "|u1", "float16": "<f2", "float32": "<f4", "int32": "<i4"}


def driver_module() -> Any:
    """cuda-python's driver bindings.

    Raises:
        IntvitError: cuda-python is not installed.
    """
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise IntvitError(
            "the kernels cannot be launched", why="cuda-python is not installed", next=install_cuda_python()
        ) from error
    return driver


def kernels_by_context(folder: Path, driver: Any) -> Callable[[], Kernels]:
    """What gives the kernels of the CUDA context that is current, loaded at its first call: a module has one context.

    ``folder`` and ``driver`` as :class:`Kernels` takes them.
    """
    loaded: dict[int, Kernels] = {}

    def kernels() -> Kernels:
        context = int(driver.cuCtxGetCurrent()[1])
        if context not in loaded:
            loaded[context] = Kernels(folder, driver)
        return loaded[context]

    return kernels


class _Array:
    """Pointer, shape and type of a device array, checked to be dense and aligned to 16 bytes."""

    def __init__(self, array: Any, what: str, *types: str) -> None:
        interface = getattr(array, "__cuda_array_interface__", None)
        if interface is None:
            raise IntvitError(f"{what} is not on a GPU", why=f"a {type(array).__name__} gives no CUDA pointer")
        self.shape = tuple(int(size) for size in interface["shape"])
        self.type = str(interface["typestr"])
        self.pointer = int(interface["data"][0])
        wanted = [_TYPES[name] for name in types]
        if self.type not in wanted:
            raise IntvitError(f"{what} has the wrong type", why=f"{self.type}, not {' or '.join(types)}")
        strides = interface.get("strides")
        dense = [int(self.type[2]) * math.prod(self.shape[i + 1 :]) for i in range(len(self.shape))]
        if strides is not None and list(strides) != dense:
            raise IntvitError(f"{what} is not contiguous", next="make it so: .contiguous()")
        if self.pointer % 16:
            raise IntvitError(f"{what} does not start at a multiple of 16 bytes", next="copy it: .clone()")

    def must_be(self, what: str, *shape: int) -> None:
        if self.shape != shape:
            raise IntvitError(f"{what} has the wrong shape", why=f"{self.shape}, not {shape}")


def _vector(array: Any, what: str, size: int) -> _Array:
    """float32 (size,) on the device."""
    held = _Array(array, what, "float32")
    held.must_be(what, size)
    return held


def _same_elements(what: str, *arrays: _Array) -> None:
    if len({array.shape for array in arrays}) != 1:
        shapes = ", ".join(str(array.shape) for array in arrays)
        raise IntvitError(f"the arrays of {what} differ in shape", why=shapes)


class Kernels:
    """The kernels of a folder that ``runtime.kernels.build`` wrote, on the current device.

    A cubin of the device's own SM is taken where there is one, the PTX otherwise, which the driver compiles. Use it as
    a context manager, or call :meth:`close`, before the context goes.

    Args:
        folder: what ``make kernels`` wrote.
        driver: stands in for :func:`driver_module` in tests.

    Raises:
        IntvitError: nothing built there, built from other sources, no driver or no GPU, or a GPU before SM 8.0.
    """

    def __init__(self, folder: Path, driver: Any = None) -> None:
        require_built(folder)
        self._driver = driver_module() if driver is None else driver
        self._modules: list[Any] = []
        self._functions: dict[str, Any] = {}
        try:
            device = self._current_device()
        except RuntimeError as error:  # cuda-python raises this where there is no libcuda
            raise self._no_gpu(str(error)) from error
        attribute = self._driver.CUdevice_attribute
        major, minor, self.processors = (
            int(self._call("cuDeviceGetAttribute", name, device))
            for name in (
                attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
                attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
                attribute.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT,
            )
        )
        self.sm = f"{major}{minor}"
        if major < 8:
            raise IntvitError("this GPU is too old for the kernels", why=f"SM {major}.{minor}; they need 8.0")
        for unit in UNITS:
            cubin = folder / f"sm_{self.sm}" / f"{unit}.cubin"
            image = cubin.read_bytes() if cubin.is_file() else (folder / f"{unit}.ptx").read_bytes() + b"\0"
            self._modules.append(self._call("cuModuleLoadData", image))

    def _no_gpu(self, why: str) -> IntvitError:
        return IntvitError("no NVIDIA GPU to run the kernels on", why=why, next="run this where nvidia-smi lists one")

    def _call(self, name: str, *arguments: Any) -> Any:
        code, *values = getattr(self._driver, name)(*arguments)
        if int(code) != 0:
            raise IntvitError(f"the CUDA driver refused {name}", why=getattr(code, "name", str(code)))
        return values[0] if values else None

    def _current_device(self) -> Any:
        code = self._driver.cuInit(0)[0]
        if int(code) != 0:
            raise self._no_gpu(getattr(code, "name", str(code)))
        if int(self._call("cuCtxGetCurrent")) == 0:
            self._call("cuCtxSetCurrent", self._call("cuDevicePrimaryCtxRetain", self._call("cuDeviceGet", 0)))
        return self._call("cuCtxGetDevice")

    def _function(self, name: str, shared: int) -> Any:
        if name not in self._functions:
            unit = next((i for i, unit in enumerate(UNITS) if name.startswith(f"intvit_{unit}_")), len(UNITS) - 1)
            function = self._call("cuModuleGetFunction", self._modules[unit], name.encode())
            if shared > DEFAULT_SHARED:
                largest = self._driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
                self._call("cuFuncSetAttribute", function, largest, shared)
            self._functions[name] = function
        return self._functions[name]

    def _launch(
        self,
        name: str,
        arguments: Sequence[_Array | int | None],
        grid: tuple[int, int],
        threads: int,
        shared: int,
        stream: int,
    ) -> None:
        """None among the arguments is a null pointer."""
        values = tuple(item.pointer if isinstance(item, _Array) else item or 0 for item in arguments)
        types = tuple(ctypes.c_int if isinstance(item, int) else ctypes.c_void_p for item in arguments)
        function = self._function(name, shared)
        self._call("cuLaunchKernel", function, *grid, 1, threads, 1, 1, shared, stream, (values, types), 0)

    def choose(self, m: int, n: int, k: int, bits: Bits) -> Tile:
        """:func:`runtime.kernels.tiles.choose` for this device."""
        return choose(m, n, k, bits, self.sm if self.sm in SMS else "86", self.processors)

    def linear(
        self,
        a: Any,
        weights: Any,
        y: Any,
        scale: Any = None,
        bias: Any = None,
        *,
        gelu: bool = False,
        factor: Any = None,
        quantizer: Any = None,
        tile: Tile | None = None,
        stream: int = 0,
    ) -> None:
        """Launch a linear layer; the type of ``y`` says which: int32 raw sums, float16, or int8 with ``quantizer``.

        Args:
            a: int8 (..., k), k a multiple of 16. weights: uint8 (n, k' / 2) from ``pack_int4`` or int8 (n, k') from
                ``pack_int8``. y: (..., n), written.
            scale, bias: float32 (n,); not for int32. gelu: apply it before y is rounded.
            factor: float32 (n,); after GELU an int8 y is multiplied by it, and the quantizer's shift taken away.
            quantizer: float32 (4,) from ``pack_quantizer``, of an int8 y.
            tile: the default is :meth:`choose`'s. stream: a CUstream as an integer.

        Raises:
            IntvitError: a type, a shape or an alignment is wrong, or the driver refuses the launch.
        """
        inputs, packed = _Array(a, "a", "int8"), _Array(weights, "weights", "uint8", "int8")
        out = _Array(y, "y", "int32", "float16", "int8")
        k, n, m = inputs.shape[-1], packed.shape[0], math.prod(inputs.shape[:-1])
        bits: Bits = 4 if packed.type == "|u1" else 8
        if k % 16:
            raise IntvitError("k is not a multiple of 16", why=f"k is {k}", next="pad a with zeros; weights have them")
        packed.must_be("weights", n, padded(k) * bits // 8)
        out.must_be("y", *inputs.shape[:-1], n)
        arguments: list[_Array | int | None] = [inputs, packed]
        output: Output = "i32"
        if out.type != _TYPES["int32"]:
            output = output_name("i8" if out.type == _TYPES["int8"] else "f16", gelu=gelu, affine=factor is not None)
            arguments += [_vector(scale, "scale", n), _vector(bias, "bias", n)]
            if out.type == _TYPES["int8"]:
                arguments.append(None if factor is None else _vector(factor, "factor", n))
                arguments.append(_vector(quantizer, "quantizer", 4))
        elif gelu or factor is not None:
            raise IntvitError("raw sums have no GELU and no factor", next="give a float16 or int8 y")
        chosen = self.choose(m, n, k, bits) if tile is None else tile
        name = kernel_name(bits, output, chosen)
        arguments += [m, n, k, out]
        self._launch(name, arguments, chosen.grid(m, n), chosen.threads, chosen.shared_bytes(bits), stream)

    def layernorm(
        self, x: Any, branch: Any, gamma: Any, beta: Any, constants: Any, total: Any, q: Any, *, stream: int = 0
    ) -> None:
        """Launch ``total = x + branch`` and ``q = quantize(layer_norm(total))``.

        Args:
            x, branch, total: float16 (..., k), k a multiple of 8; branch and total may both be None: x alone.
            gamma, beta: float32 (k,). constants: float32 (2,): the step of q, and epsilon. q: int8 (..., k), written.

        Raises:
            IntvitError: as :meth:`linear`.
        """
        rows, out = _Array(x, "x", "float16"), _Array(q, "q", "int8")
        added = [None if one is None else _Array(one, "branch or total", "float16") for one in (branch, total)]
        _same_elements("layernorm", rows, out, *(one for one in added if one is not None))
        if (branch is None) != (total is None):
            raise IntvitError("branch and total go together", next="give both, or neither")
        k = rows.shape[-1]
        if k % 8:
            raise IntvitError("k is not a multiple of 8", why=f"k is {k}")
        vectors = (_vector(gamma, "gamma", k), _vector(beta, "beta", k), _vector(constants, "constants", 2))
        m = math.prod(rows.shape[:-1])
        arguments = [rows, added[0], *vectors, m, k, added[1], out]
        self._launch("intvit_layernorm_i8", arguments, (-(-m // 4), 1), 128, 0, stream)

    def quantize(self, x: Any, step: Any, q: Any, *, stream: int = 0) -> None:
        """Launch ``q = clamp(round(x / step))``: x float16, q int8 of the same shape, elements a multiple of 8.

        Raises:
            IntvitError: as :meth:`linear`.
        """
        values, out, scale = _Array(x, "x", "float16"), _Array(q, "q", "int8"), _vector(step, "step", 1)
        _same_elements("quantize", values, out)
        count = math.prod(values.shape)
        if count % 8:
            raise IntvitError("the number of elements is not a multiple of 8", why=f"it is {count}")
        self._launch("intvit_quantize_i8", [values, scale, count, out], (-(-count // 1024), 1), 128, 0, stream)

    def close(self) -> None:
        """Unload the modules; a second call does nothing."""
        self._functions.clear()
        while self._modules:
            self._call("cuModuleUnload", self._modules.pop())

    def __enter__(self) -> Kernels:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
