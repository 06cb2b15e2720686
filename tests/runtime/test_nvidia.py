"""The driver asked through ctypes: absent, broken, and a made-up one that answers as cuda.h says."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from runtime import nvidia
from runtime.errors import IntvitError


def test_no_driver_and_no_cuda_in_a_library() -> None:
    absent = nvidia.nvidia_driver("libno_such_driver.so.1")
    assert not absent["found"] and absent["devices"] == 0 and absent["error"]
    no_cuda = nvidia.nvidia_driver("libc.so.6")
    assert not no_cuda["found"] and "cuInit" in no_cuda["error"]
    assert nvidia.no_gpu_reason("libno_such_driver.so.1") == absent["error"]
    with pytest.raises(IntvitError, match="no NVIDIA GPU") as caught:
        nvidia.require_device(0, "libno_such_driver.so.1")
    assert caught.value.why == absent["error"] and "--backend ort" in caught.value.next


def driver(init: int = 0, devices: int = 2) -> Callable[[str], Any]:
    """A libcuda of ``devices`` GPUs that answers ``cuInit`` with a code."""

    def put(value: int) -> Callable[..., int]:
        def answer(target: Any, *_: Any) -> int:
            target._obj.value = value
            return 0

        return answer

    def attribute(target: Any, which: int, device: Any) -> int:
        target._obj.value = {75: 8, 76: 7, 18: 1}[which]
        return 0

    def name(buffer: Any, length: int, device: Any) -> int:
        buffer.value = b"Orin"
        return 0

    made = SimpleNamespace(
        cuInit=lambda flags: init,
        cuDriverGetVersion=put(12060),
        cuDeviceGetCount=put(devices),
        cuDeviceGet=put(0),
        cuDeviceGetName=name,
        cuDeviceTotalMem_v2=put(8 << 30),
        cuDeviceGetAttribute=attribute,
    )
    return lambda path: made


def test_a_device_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvidia.ctypes, "CDLL", driver())
    assert nvidia.no_gpu_reason() == ""
    assert nvidia.require_device(1) == nvidia.GpuDevice(1, "Orin", "8.7", 8 << 30, True, "12.6")
    assert nvidia.require_device().describe()["sm"] == "8.7"
    with pytest.raises(IntvitError, match="no GPU number 2") as caught:
        nvidia.require_device(2)
    assert "2 device(s)" in caught.value.why


@pytest.mark.parametrize(
    ("init", "devices", "said"),
    [(35, 1, "CUDA error 35"), (100, 0, "no CUDA device"), (34, 0, "stub library"), (0, 0, "sees no device")],
)
def test_a_driver_that_does_not_work(monkeypatch: pytest.MonkeyPatch, init: int, devices: int, said: str) -> None:
    monkeypatch.setattr(nvidia.ctypes, "CDLL", driver(init, devices))
    assert said in nvidia.no_gpu_reason()
    with pytest.raises(IntvitError, match="no NVIDIA GPU"):
        nvidia.require_device()


@pytest.mark.parametrize(
    ("driver", "command"),
    [
        ("12.6", "pip install 'cuda-python==12.*'"),
        ("13.2", "pip install 'cuda-python==13.*'"),
        ("", "pip install cuda-python"),
    ],
)
def test_cuda_python_is_that_of_the_driver(driver: str, command: str) -> None:
    """13 on a driver for CUDA 12, as JetPack 6 has, is cudaError 35."""
    assert nvidia.install_cuda_python(driver) == command


def test_where_a_gpu_sits(monkeypatch: pytest.MonkeyPatch) -> None:
    class Driver:
        code = 0

        def cuInit(self, flags: int) -> int:
            return 0

        def cuDeviceGet(self, handle: Any, index: int) -> int:
            handle._obj.value = 7 + index
            return 0

        def cuDeviceGetPCIBusId(self, text: Any, size: int, handle: Any) -> int:
            text.value = f"0000:0{handle.value}:00.0".encode()
            return self.code

    monkeypatch.setattr(nvidia.ctypes, "CDLL", lambda _: Driver())
    assert nvidia.pci_bus_id(1) == "0000:08:00.0"
    monkeypatch.setattr(Driver, "code", 101)
    assert nvidia.pci_bus_id(1) == ""
    monkeypatch.undo()
    assert nvidia.pci_bus_id(0, "no-such-library.so") == ""
