"""Device memory of other libraries (torch, CuPy, pycuda), without copies: DLPack, else ``__cuda_array_interface__``."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from runtime.errors import IntvitError

# dlpack.h: DLDeviceType kDLCUDA, kDLCUDAManaged; DLDataTypeCode kDLFloat.
_CUDA_DEVICES, _FLOAT_CODE = (2, 13), 2
_FRESH, _USED = b"dltensor", b"used_dltensor"  # a capsule keeps the pointer to its name: these must stay
_STREAM_VERSION = 3  # __cuda_array_interface__ names the stream of its data from this version on


class _DLTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _DLManagedTensor(ctypes.Structure):
    pass


_DELETER = ctypes.CFUNCTYPE(None, ctypes.POINTER(_DLManagedTensor))
_DLManagedTensor._fields_ = (("tensor", _DLTensor), ("manager", ctypes.c_void_p), ("deleter", _DELETER))


@dataclass(frozen=True)
class Foreign:
    """A contiguous float32 array in device memory.

    Attributes:
        address: of its first element.
        shape: its sizes.
        device: number of the GPU; -1 where the owner does not say.
        settled: work enqueued on our stream sees the data; otherwise the GPU has to be waited for first.
        release: to be called when the memory is not needed any more.
    """

    address: int
    shape: tuple[int, ...]
    device: int
    settled: bool
    release: Callable[[], None]


def foreign(array: Any, stream: int, *, what: str) -> Foreign:
    """The device memory of ``array``, ready for work on ``stream``.

    Args:
        array: an object with ``__dlpack__`` or ``__cuda_array_interface__``: float32, contiguous, on a GPU.
        stream: the CUDA stream that will read or write it.
        what: the argument's name, for messages.

    Raises:
        IntvitError: it is neither, or of another type, not contiguous, or not on a GPU.
    """
    if hasattr(array, "__dlpack__") and hasattr(array, "__dlpack_device__"):
        kind, number = (int(part) for part in array.__dlpack_device__())
        if kind not in _CUDA_DEVICES:
            raise _refused(what, f"it lies on device type {kind}, not on an NVIDIA GPU")
        try:
            capsule = array.__dlpack__(stream=stream)
        except Exception as error:  # torch: a tensor that requires a gradient
            raise _refused(what, str(error)) from error
        return _from_dlpack(capsule, number, what)
    if hasattr(array, "__cuda_array_interface__"):
        return _from_interface(array, what)
    raise _refused(what, f"{type(array).__name__} has neither __dlpack__ nor __cuda_array_interface__")


def _from_interface(array: Any, what: str) -> Foreign:
    about: dict[str, Any] = array.__cuda_array_interface__
    shape = tuple(int(size) for size in about["shape"])
    if about["typestr"] not in ("<f4", "=f4"):
        raise _refused(what, f"its type is {about['typestr']}")
    strides = about.get("strides")
    if strides is not None and not _contiguous(shape, tuple(int(step) // 4 for step in strides)):
        raise _refused(what, f"its strides are {tuple(strides)} bytes")
    settled = about.get("version", 0) >= _STREAM_VERSION and about.get("stream") is None

    def release(owner: Any = array) -> None:  # holds the owner until then
        del owner

    return Foreign(int(about["data"][0]), shape, -1, settled, release)


def _from_dlpack(capsule: Any, number: int, what: str) -> Foreign:
    api = ctypes.pythonapi
    api.PyCapsule_GetPointer.restype, api.PyCapsule_GetPointer.argtypes = (
        ctypes.c_void_p,
        (ctypes.py_object, ctypes.c_char_p),
    )
    api.PyCapsule_SetName.argtypes = (ctypes.py_object, ctypes.c_char_p)
    address = api.PyCapsule_GetPointer(capsule, _FRESH)
    managed = ctypes.cast(address, ctypes.POINTER(_DLManagedTensor))
    tensor = managed.contents.tensor
    shape = tuple(int(tensor.shape[axis]) for axis in range(tensor.ndim))
    if (tensor.code, tensor.bits, tensor.lanes) != (_FLOAT_CODE, 32, 1):
        raise _refused(what, f"its DLPack type is (code {tensor.code}, {tensor.bits} bits, {tensor.lanes} lanes)")
    if tensor.strides and not _contiguous(shape, tuple(int(tensor.strides[axis]) for axis in range(tensor.ndim))):
        raise _refused(what, "it is not contiguous")
    api.PyCapsule_SetName(capsule, _USED)  # from here on we call the deleter, not the capsule

    def release() -> None:
        if managed.contents.deleter:
            managed.contents.deleter(managed)

    return Foreign(int(tensor.data or 0) + int(tensor.byte_offset), shape, number, True, release)


def _contiguous(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether strides in elements are those of a contiguous array; along an axis of size 1 they do not matter."""
    wanted = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    return all(size == 1 or step == right for size, step, right in zip(shape, strides, wanted, strict=True))


def _refused(what: str, why: str) -> IntvitError:
    return IntvitError(
        f"{what} cannot be used where it lies",
        where="backend 'tensorrt'",
        why=why,
        next="pass a contiguous float32 array on the engine's GPU, or numpy arrays to `run`",
    )
