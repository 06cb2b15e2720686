"""Loading and launching, against a driver that records: logic, not hardware."""

from __future__ import annotations

import ctypes
from ctypes.util import find_library
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.errors import IntvitError
from runtime.files import atomic_write_json
from runtime.kernels.build import UNITS, source_hash
from runtime.kernels.launch import Kernels, kernels_by_context
from runtime.kernels.tiles import TILES
from tests.runtime.kernels.fake_driver import CUresult, FakeArray, FakeDriver

F16, F32, I8, U8, I32 = np.float16, np.float32, np.int8, np.uint8, np.int32


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as ``make kernels`` leaves it, with words in the place of machine code, for SM 9.0 only."""
    (tmp_path / "sm_90").mkdir()
    for unit in UNITS:
        (tmp_path / f"{unit}.ptx").write_text(f"ptx of {unit}", "ascii")
        (tmp_path / "sm_90" / f"{unit}.cubin").write_text(f"cubin of {unit}", "ascii")
    atomic_write_json(tmp_path / "kernels.json", {"sources": source_hash()})
    return tmp_path


def arrays(bits: int = 4, m: int = 197, n: int = 384, k: int = 192) -> dict[str, Any]:
    weights = FakeArray(U8, n, k // 2, pointer=0x2000) if bits == 4 else FakeArray(I8, n, k, pointer=0x2000)
    return {
        "a": FakeArray(I8, m, k, pointer=0x1000),
        "weights": weights,
        "y": FakeArray(F16, m, n, pointer=0x5000),
        "scale": FakeArray(F32, n, pointer=0x3000),
        "bias": FakeArray(F32, n, pointer=0x4000),
    }


def test_the_devices_own_code_is_loaded(folder: Path) -> None:
    driver = FakeDriver()
    with Kernels(folder, driver) as kernels:
        assert (kernels.sm, kernels.processors) == ("90", 132)
        assert driver.of("cuModuleLoadData") == [(f"cubin of {unit}".encode(),) for unit in UNITS]
        assert "cuCtxSetCurrent" not in driver.names()  # torch's context is left as it is
    assert driver.of("cuModuleUnload") == [("module 3",), ("module 2",), ("module 1",)]
    kernels.close()
    assert len(driver.of("cuModuleUnload")) == 3


def test_another_device_gets_the_ptx_with_a_zero_behind_it(folder: Path) -> None:
    driver = FakeDriver((8, 6))
    Kernels(folder, driver)
    assert driver.of("cuModuleLoadData")[0] == (b"ptx of w4a8\0",)


def test_without_a_context_the_primary_one_is_taken(folder: Path) -> None:
    driver = FakeDriver(context=0)
    Kernels(folder, driver)
    assert driver.of("cuCtxSetCurrent") == [(42,)]
    assert driver.names().index("cuDevicePrimaryCtxRetain") < driver.names().index("cuCtxSetCurrent")


def test_each_context_has_modules_of_its_own(folder: Path) -> None:
    """Two engines of one process, on two GPUs: a function of the first's context cannot be launched in the second's."""
    driver = FakeDriver(context=7)
    kernels = kernels_by_context(folder, driver)
    assert driver.calls == []  # nothing before the first launch
    first = kernels()
    driver.context = 8
    second = kernels()
    assert first is not second and kernels() is second
    driver.context = 7
    assert kernels() is first and len(driver.of("cuModuleLoadData")) == 2 * len(UNITS)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_launch(folder: Path, bits: int) -> None:
    driver = FakeDriver()
    kernels = Kernels(folder, driver)
    kernels.linear(**arrays(bits), gelu=True, tile=TILES[1], stream=99)
    name = f"intvit_w{bits}a8_f16_gelu_128x128"
    module = "module 1" if bits == 4 else "module 2"
    assert driver.of("cuModuleGetFunction") == [(module, name.encode())]
    (launch,) = driver.of("cuLaunchKernel")
    values = (0x1000, 0x2000, 0x3000, 0x4000, 197, 384, 192, 0x5000)
    pointer, integer = ctypes.c_void_p, ctypes.c_int
    types = (pointer, pointer, pointer, pointer, integer, integer, integer, pointer)
    assert launch == (name, 3, 2, 1, 128, 1, 1, TILES[1].shared_bytes(bits), 99, (values, types), 0)
    assert "cuFuncSetAttribute" not in driver.names()
    kernels.linear(**arrays(bits), gelu=True, tile=TILES[1])
    assert len(driver.of("cuModuleGetFunction")) == 1


def test_the_largest_tile_asks_for_its_shared_memory_once(folder: Path) -> None:
    driver = FakeDriver()
    kernels = Kernels(folder, driver)
    for _ in range(2):
        kernels.linear(**arrays(8), tile=TILES[0])
    assert driver.of("cuFuncSetAttribute") == [("intvit_w8a8_f16_256x128", 8, TILES[0].shared_bytes(8))]


def test_outputs_choose_the_kernel(folder: Path) -> None:
    driver = FakeDriver()
    kernels = Kernels(folder, driver)
    sums = {**arrays(), "y": FakeArray(I32, 197, 384), "scale": None, "bias": None}
    kernels.linear(**sums, tile=TILES[3])
    levels = {**arrays(), "y": FakeArray(I8, 197, 384), "quantizer": FakeArray(F32, 4, pointer=0x7000)}
    kernels.linear(**levels, tile=TILES[3])
    kernels.linear(**levels, gelu=True, factor=FakeArray(F32, 384, pointer=0x6000), tile=TILES[3])
    names = [name.decode() for _, name in driver.of("cuModuleGetFunction")]
    assert names == ["intvit_w4a8_i32_64x64", "intvit_w4a8_i8_64x64", "intvit_w4a8_i8_gelu_affine_64x64"]
    _, plain, affine = (launch[9] for launch in driver.of("cuLaunchKernel"))
    assert plain[0] == (0x1000, 0x2000, 0x3000, 0x4000, 0, 0x7000, 197, 384, 192, 4096)  # no factor: a null pointer
    assert affine[0] == (0x1000, 0x2000, 0x3000, 0x4000, 0x6000, 0x7000, 197, 384, 192, 4096)
    assert plain[1] == affine[1] == (*[ctypes.c_void_p] * 6, *[ctypes.c_int] * 3, ctypes.c_void_p)


def test_tokens_in_batches_are_rows(folder: Path) -> None:
    driver = FakeDriver()
    kernels = Kernels(folder, driver)
    batched = {**arrays(), "a": FakeArray(I8, 2, 197, 192), "y": FakeArray(F16, 2, 197, 384)}
    kernels.linear(**batched)
    assert driver.of("cuLaunchKernel")[0][9][0][4:7] == (394, 384, 192)


def test_layernorm_and_quantize(folder: Path) -> None:
    driver = FakeDriver()
    kernels = Kernels(folder, driver)
    x, q = FakeArray(F16, 2, 5, 192, pointer=16), FakeArray(I8, 2, 5, 192, pointer=32)
    gamma, beta, constants = (FakeArray(F32, size, pointer=at) for size, at in ((192, 48), (192, 64), (2, 80)))
    kernels.layernorm(x, None, gamma, beta, constants, None, q)
    branch, total = FakeArray(F16, 2, 5, 192, pointer=96), FakeArray(F16, 2, 5, 192, pointer=112)
    kernels.layernorm(x, branch, gamma, beta, constants, total, q, stream=3)
    kernels.quantize(x, FakeArray(F32, 1, pointer=128), q)
    launches = driver.of("cuLaunchKernel")
    assert [launch[0] for launch in launches] == ["intvit_layernorm_i8"] * 2 + ["intvit_quantize_i8"]
    assert [launch[9][0] for launch in launches] == [
        (16, 0, 48, 64, 80, 10, 192, 0, 32),
        (16, 96, 48, 64, 80, 10, 192, 112, 32),
        (16, 128, 1920, 32),
    ]
    assert [launch[1:4] for launch in launches] == [(3, 1, 1), (3, 1, 1), (2, 1, 1)]
    assert launches[1][8] == 3
    assert {module for module, _ in driver.of("cuModuleGetFunction")} == {"module 3"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"a": np.zeros((197, 192), I8)}, "a is not on a GPU"),
        ({"a": FakeArray(F16, 197, 192)}, "a has the wrong type"),
        ({"a": FakeArray(I8, 197, 192, strides=(384, 1))}, "a is not contiguous"),
        ({"a": FakeArray(I8, 197, 192, pointer=8)}, "a does not start at a multiple of 16"),
        ({"a": FakeArray(I8, 197, 184)}, "k is not a multiple of 16"),
        ({"weights": FakeArray(U8, 384, 192)}, "weights has the wrong shape"),
        ({"y": FakeArray(F16, 197, 383)}, "y has the wrong shape"),
        ({"y": FakeArray(I8, 197, 384)}, "quantizer is not on a GPU"),
        ({"y": FakeArray(I8, 197, 384), "quantizer": FakeArray(F32, 1)}, "quantizer has the wrong shape"),
        ({"y": FakeArray(I8, 197, 384), "factor": FakeArray(F32, 384)}, "no kernel has such an output"),
        ({"gelu": True, "factor": FakeArray(F32, 384)}, "no kernel has such an output"),
        ({"y": FakeArray(I8, 197, 384), "gelu": True, "factor": FakeArray(F32, 1)}, "factor has the wrong shape"),
        ({"y": FakeArray(I32, 197, 384), "gelu": True}, "raw sums have no GELU"),
        ({"y": FakeArray(I32, 197, 384), "factor": FakeArray(F32, 384)}, "raw sums have no GELU and no factor"),
        ({"bias": FakeArray(F32, 383)}, "bias has the wrong shape"),
        ({"scale": FakeArray(F16, 384)}, "scale has the wrong type"),
    ],
)
def test_wrong_arrays_are_refused_before_a_launch(folder: Path, change: dict[str, Any], says: str) -> None:
    driver = FakeDriver()
    kernels = Kernels(folder, driver)
    with pytest.raises(IntvitError, match=says):
        kernels.linear(**{**arrays(), **change})
    assert "cuLaunchKernel" not in driver.names()


def test_a_contiguous_arrays_strides_are_accepted(folder: Path) -> None:
    driver = FakeDriver()
    Kernels(folder, driver).linear(**{**arrays(), "a": FakeArray(I8, 197, 192, strides=(192, 1))})
    assert "cuLaunchKernel" in driver.names()


def test_a_refused_launch_is_said(folder: Path) -> None:
    kernels = Kernels(folder, FakeDriver(fail="cuLaunchKernel"))
    with pytest.raises(IntvitError, match="refused cuLaunchKernel") as caught:
        kernels.linear(**arrays())
    assert CUresult.CUDA_ERROR_OUT_OF_MEMORY.name in str(caught.value)


def test_no_gpu_is_said(folder: Path) -> None:
    with pytest.raises(IntvitError, match="no NVIDIA GPU to run the kernels on"):
        Kernels(folder, FakeDriver(fail="cuInit"))


@pytest.mark.skipif(find_library("cuda") is not None, reason="there is a CUDA driver here")
def test_no_driver_is_said(folder: Path) -> None:
    """cuda-python itself, where there is no libcuda."""
    pytest.importorskip("cuda.bindings.driver")
    with pytest.raises(IntvitError, match="no NVIDIA GPU to run the kernels on"):
        Kernels(folder)


def test_an_old_gpu_is_said(folder: Path) -> None:
    with pytest.raises(IntvitError, match=r"SM 7\.5"):
        Kernels(folder, FakeDriver((7, 5)))


def test_nothing_built_or_built_from_other_sources_is_said(folder: Path) -> None:
    with pytest.raises(IntvitError, match="not built"):
        Kernels(folder / "nowhere", FakeDriver())
    atomic_write_json(folder / "kernels.json", {"sources": "0" * 64})
    with pytest.raises(IntvitError, match="other sources"):
        Kernels(folder, FakeDriver())
