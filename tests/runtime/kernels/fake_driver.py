"""A CUDA driver that records what it is asked, in the form of cuda-python's ``cuda.bindings.driver``.

Tests with it claim the order and the arguments of calls, nothing about a GPU.
"""

from __future__ import annotations

import enum
from typing import Any

import numpy as np


class CUresult(enum.IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_NO_DEVICE = 100


class CUdevice_attribute(enum.IntEnum):
    CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT = 16
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76


class CUfunction_attribute(enum.IntEnum):
    CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8


class FakeDriver:
    """Answers as a GPU of the given compute capability and 132 multiprocessors would."""

    CUdevice_attribute = CUdevice_attribute
    CUfunction_attribute = CUfunction_attribute

    def __init__(self, capability: tuple[int, int] = (9, 0), context: int = 7, fail: str = "") -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.context = context
        self.fail = fail
        self.capability = capability

    def _answer(self, name: str, arguments: tuple[Any, ...], *values: Any) -> tuple[Any, ...]:
        self.calls.append((name, arguments))
        return (CUresult.CUDA_ERROR_OUT_OF_MEMORY if name == self.fail else CUresult.CUDA_SUCCESS, *values)

    def names(self) -> list[str]:
        return [name for name, _ in self.calls]

    def of(self, name: str) -> list[tuple[Any, ...]]:
        return [arguments for called, arguments in self.calls if called == name]

    def cuInit(self, flags: int) -> tuple[Any, ...]:
        return self._answer("cuInit", (flags,))

    def cuCtxGetCurrent(self) -> tuple[Any, ...]:
        return self._answer("cuCtxGetCurrent", (), self.context)

    def cuCtxSetCurrent(self, context: int) -> tuple[Any, ...]:
        self.context = context
        return self._answer("cuCtxSetCurrent", (context,))

    def cuCtxGetDevice(self) -> tuple[Any, ...]:
        return self._answer("cuCtxGetDevice", (), 0)

    def cuDeviceGet(self, ordinal: int) -> tuple[Any, ...]:
        return self._answer("cuDeviceGet", (ordinal,), 0)

    def cuDevicePrimaryCtxRetain(self, device: int) -> tuple[Any, ...]:
        return self._answer("cuDevicePrimaryCtxRetain", (device,), 42)

    def cuDeviceGetAttribute(self, attribute: CUdevice_attribute, device: int) -> tuple[Any, ...]:
        values = {75: self.capability[0], 76: self.capability[1], 16: 132}
        return self._answer("cuDeviceGetAttribute", (attribute, device), values[int(attribute)])

    def cuModuleLoadData(self, image: bytes) -> tuple[Any, ...]:
        return self._answer("cuModuleLoadData", (image,), f"module {len(self.of('cuModuleLoadData')) + 1}")

    def cuModuleGetFunction(self, module: str, name: bytes) -> tuple[Any, ...]:
        return self._answer("cuModuleGetFunction", (module, name), name.decode())

    def cuFuncSetAttribute(self, function: str, attribute: int, value: int) -> tuple[Any, ...]:
        return self._answer("cuFuncSetAttribute", (function, attribute, value))

    def cuLaunchKernel(self, *arguments: Any) -> tuple[Any, ...]:
        return self._answer("cuLaunchKernel", arguments)

    def cuModuleUnload(self, module: str) -> tuple[Any, ...]:
        return self._answer("cuModuleUnload", (module,))


class FakeArray:
    """Says it is on a GPU; ``pointer`` is any number."""

    def __init__(self, dtype: Any, *shape: int, pointer: int = 4096, strides: tuple[int, ...] | None = None) -> None:
        self.__cuda_array_interface__ = {
            "shape": shape,
            "typestr": np.dtype(dtype).str,
            "data": (pointer, False),
            "strides": strides,
            "version": 3,
        }
