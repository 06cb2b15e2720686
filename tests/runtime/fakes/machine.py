"""A machine with a fake GPU: TensorRT of a version and a library for GPU memory, put in the place of the real ones."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.backends.tensorrt import TensorRtEngine
from runtime.bundle import Bundle
from runtime.errors import IntvitError
from runtime.nvidia import GpuDevice
from tests.runtime.fakes.cuda import fake_cuda_python, fake_pycuda
from tests.runtime.fakes.tensorrt import FakeTensorRT
from tests.runtime.fakes.world import GPU_NAME, SM, World

Machine = Callable[..., World]
GPU = GpuDevice(index=0, name=GPU_NAME, sm=SM, memory_bytes=8 << 30, integrated=True, driver="12.6")


def install(patch: pytest.MonkeyPatch, version: str, cuda: str = "pycuda", gpu: GpuDevice = GPU) -> World:
    """Install the fakes: TensorRT of ``version``, and ``cuda``, "pycuda", "cuda-python", "both" or "none"."""
    world = World()
    module = FakeTensorRT(version, world)
    patch.setitem(sys.modules, "tensorrt", None)
    patch.setitem(sys.modules, "tensorrt_rtx", None)
    patch.setitem(sys.modules, module.__name__, module)
    for name in ("pycuda", "pycuda.driver", "cuda", "cuda.bindings", "cuda.bindings.runtime"):
        patch.setitem(sys.modules, name, None)
    made = {
        "pycuda": {**fake_pycuda(world)},
        "cuda-python": {**fake_cuda_python(world)},
        "both": {**fake_pycuda(world), **fake_cuda_python(world)},
        "none": {},
    }
    for name, fake in made[cuda].items():
        patch.setitem(sys.modules, name, fake)

    def require_device(index: int = 0) -> GpuDevice:
        if not world.driver:
            raise IntvitError("no NVIDIA GPU can be used here", why="no driver in this world")
        return gpu

    patch.setattr("runtime.backends.tensorrt.require_device", require_device)
    return world


def opened(root: Path, *, twin: bool = False, **options: str) -> TensorRtEngine:
    """The engine of the bundle at ``root``."""
    return TensorRtEngine.open(Bundle.open(root), twin=twin, options=options)


def pictures(count: int = 8) -> np.ndarray:
    """Images for the tiny bundle."""
    return np.random.default_rng(3).normal(size=(count, 3, 8, 8)).astype(np.float32)


def raised(action: Callable[[], Any]) -> IntvitError:
    """The error an action ends with, without the frames that would keep its objects alive."""
    with pytest.raises(IntvitError) as caught:
        action()
    error = caught.value
    while error.__context__ is not None and error.__context__.__traceback__ is not None:
        traceback.clear_frames(error.__context__.__traceback__)
        error.__context__ = None
    traceback.clear_frames(caught.tb)
    error.__traceback__ = error.__cause__ = None
    return error
