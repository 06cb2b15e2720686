"""The layer of buffers and streams: which library is taken, what it touches, and arrays of other libraries.

Under fakes, but for one test that holds the names we use against the real ``cuda.bindings``.
"""

from __future__ import annotations

import ast
import ctypes
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.backends.gpu.device import LIBRARIES, open_device
from runtime.backends.gpu.foreign import _DLManagedTensor, foreign
from runtime.backends.tensorrt import TensorRtEngine
from runtime.bundle import Bundle
from runtime.errors import IntvitError
from tests.runtime.fakes.machine import install
from tests.runtime.fakes.world import World
from tests.runtime.tiny import Spec, reference

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("there", "chosen", "capture", "taken"),
    [
        ("both", "auto", False, "pycuda"),
        ("both", "auto", True, "cuda-python"),
        ("both", "cuda-python", False, "cuda-python"),
        ("pycuda", "auto", True, "pycuda"),
        ("cuda-python", "auto", False, "cuda-python"),
    ],
)
def test_which_library_is_taken(
    monkeypatch: pytest.MonkeyPatch, there: str, chosen: str, capture: bool, taken: str
) -> None:
    install(monkeypatch, "10.3", there)
    device = open_device(0, chosen, capture=capture)
    assert device.name == taken and device.captures == (taken == "cuda-python")
    device.close()
    device.close()
    with pytest.raises(IntvitError, match="closed"), device.current():
        pass


@pytest.mark.parametrize(("there", "chosen"), [("none", "auto"), ("pycuda", "cuda-python"), ("cuda-python", "pycuda")])
def test_no_library(monkeypatch: pytest.MonkeyPatch, there: str, chosen: str) -> None:
    install(monkeypatch, "10.3", there)
    with pytest.raises(IntvitError, match="GPU memory is installed") as caught:
        open_device(0, chosen)
    assert "pip install" in caught.value.next


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_buffer_there_and_back(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    world = install(monkeypatch, "10.3", name)
    device = open_device(0)
    with device.current():
        stream, address = device.create_stream(), device.allocate(64)
        page, other = device.pinned((4, 4), np.float32), device.pinned((4, 4), np.float32)
        assert not page.any()
        page[...] = np.arange(16).reshape(4, 4)
        device.copy_in(address, page, stream)
        device.copy_out(other, address, stream)
        device.synchronize(stream)
        np.testing.assert_array_equal(other, page)
        device.unpin(page)
        device.free(address)
        device.destroy_stream(stream)
        del stream
    with device.current():
        device.allocate(8)  # one that is left is given back by close
    device.close()
    assert world.broken == [] and world.memory == {} and world.streams == set()


def test_a_gpus_context_outlives_its_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """pycuda leaves a context pushed on the thread that gives the last reference up, and modules go with it."""
    world = install(monkeypatch, "10.3", "pycuda")
    for _ in range(3):
        device = open_device(0)
        with device.current():
            device.allocate(8)
        device.close()
        del device
    assert [call for call in world.log if "retain_primary_context" in str(call)] == ["retain_primary_context"]


@pytest.mark.skipif(importlib.util.find_spec("cuda") is None, reason="cuda-python is not installed")
def test_the_names_of_cuda_python_are_real() -> None:
    from cuda.bindings import runtime

    tree = ast.parse((ROOT / "runtime/backends/gpu/with_cuda_python.py").read_text("utf-8"))
    used = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("cuda") and len(node.attr) > 6:
            used.add(ast.unparse(node))
    assert len(used) > 20
    for path in used:
        value: Any = runtime
        for part in path.split("_cuda.")[-1].removeprefix("runtime.").split("."):
            value = getattr(value, part)


# --- arrays of other libraries


class Interface:
    """An array in the fake's device memory, as CuPy shows one."""

    def __init__(self, address: int, shape: tuple[int, ...], **changes: Any) -> None:
        about = {"shape": shape, "typestr": "<f4", "data": (address, False), "version": 3, "stream": None}
        self.__cuda_array_interface__ = {**about, **changes}


class DlPack:
    """The same, as torch shows one; ``deleted`` counts how often it was given back."""

    def __init__(
        self, address: int, shape: tuple[int, ...], *, bits: int = 32, device: int = 2, number: int = 0, offset: int = 0
    ) -> None:
        self.deleted, self.asked, self.device = 0, list[int](), (device, number)
        self.managed = _DLManagedTensor()
        tensor = self.managed.tensor
        tensor.data, tensor.byte_offset, tensor.ndim = address - offset, offset, len(shape)
        tensor.device_type, tensor.device_id, tensor.code, tensor.bits, tensor.lanes = device, number, 2, bits, 1
        self.shape = (ctypes.c_int64 * len(shape))(*shape)
        tensor.shape = ctypes.cast(self.shape, ctypes.POINTER(ctypes.c_int64))
        deleter = dict(_DLManagedTensor._fields_)["deleter"]
        self.managed.deleter = deleter(self._delete)

    def _delete(self, _: Any) -> None:
        self.deleted += 1

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device

    def __dlpack__(self, stream: int | None = None) -> Any:
        assert stream is not None
        self.asked.append(stream)
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
        return new(ctypes.addressof(self.managed), b"dltensor", None)


def put(world: World, array: np.ndarray) -> int:
    address = int(next(world.addresses))
    world.memory[address] = bytearray(array.tobytes())
    return address


@pytest.mark.parametrize("kind", [Interface, DlPack])
@pytest.mark.parametrize("name", LIBRARIES)
def test_nothing_is_copied(
    monkeypatch: pytest.MonkeyPatch, bundle_copy: Path, name: str, kind: Callable[..., Any]
) -> None:
    world = install(monkeypatch, "10.3", name)
    engine = TensorRtEngine.open(Bundle.open(bundle_copy), options={"batch": "2"})
    images = np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)
    source, target = put(world, images), put(world, np.zeros((2, 10), np.float32))
    given, made = kind(source, images.shape), kind(target, (2, 10))
    world.log.clear()
    engine.run_device(given, made)
    assert not {"copy_in", "copy_out", "Context.synchronize"} & set(world.log)
    assert world.log.index("IExecutionContext.execute_async_v3") < world.log.index("synchronize")
    wanted, _ = reference(Spec(), images)
    found = np.frombuffer(world.memory[target], np.float32).reshape(2, 10)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    if kind is DlPack:
        assert given.deleted == made.deleted == 1 and given.asked == made.asked != [0]
    np.testing.assert_allclose(engine.run(images), wanted, rtol=1e-4, atol=1e-5)  # its own buffers are back
    engine.close()
    del world.memory[source], world.memory[target]
    world.check_empty()


@pytest.mark.parametrize("changes", [{"version": 2}, {"stream": 1}])
def test_an_owner_that_does_not_order_its_work_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, bundle_copy: Path, changes: dict[str, int]
) -> None:
    world = install(monkeypatch, "10.3")
    engine = TensorRtEngine.open(Bundle.open(bundle_copy))
    source, target = put(world, np.zeros((1, 3, 8, 8), np.float32)), put(world, np.zeros((1, 10), np.float32))
    engine.run_device(Interface(source, (1, 3, 8, 8), **changes), Interface(target, (1, 10)))
    assert world.log.index("Context.synchronize") < world.log.index("IExecutionContext.execute_async_v3")
    assert world.broken == []


@pytest.mark.parametrize(
    ("given", "made", "said"),
    [
        (lambda a: Interface(a, (2, 3, 8, 8)), lambda a: Interface(a, (1, 10)), "the engine takes"),
        (lambda a: Interface(a, (1, 3, 8, 8)), lambda a: Interface(a, (1, 11)), "the engine writes"),
        (lambda a: Interface(a + 4, (1, 3, 8, 8)), lambda a: Interface(a, (1, 10)), "no multiple of 256"),
        (lambda a: Interface(a, (1, 3, 8, 8), typestr="<f2"), lambda a: Interface(a, (1, 10)), "its type is <f2"),
        (
            lambda a: Interface(a, (1, 3, 8, 8), strides=(768, 4, 96, 12)),
            lambda a: Interface(a, (1, 10)),
            "its strides are",
        ),
        (lambda a: DlPack(a, (1, 3, 8, 8), bits=16), lambda a: Interface(a, (1, 10)), "16 bits"),
        (lambda a: DlPack(a, (1, 3, 8, 8), number=3), lambda a: Interface(a, (1, 10)), "GPU 3, the engine on 0"),
        (lambda a: DlPack(a, (1, 3, 8, 8), device=1), lambda a: Interface(a, (1, 10)), "device type 1"),
        (lambda a: np.zeros((1, 3, 8, 8), np.float32), lambda a: Interface(a, (1, 10)), "device type 1"),
        (lambda a: [1.0], lambda a: Interface(a, (1, 10)), "list has neither"),
    ],
)
def test_arrays_that_are_refused(
    monkeypatch: pytest.MonkeyPatch, bundle_copy: Path, given: Any, made: Any, said: str
) -> None:
    world = install(monkeypatch, "10.3")
    engine = TensorRtEngine.open(Bundle.open(bundle_copy))
    source, target = put(world, np.zeros((4, 3, 8, 8), np.float32)), put(world, np.zeros((1, 11), np.float32))
    with pytest.raises(IntvitError) as caught:
        engine.run_device(given(source), made(target))
    assert said in caught.value.why
    assert "IExecutionContext.execute_async_v3" not in world.log
    engine.close()
    assert world.broken == []


def test_an_offset_and_axes_of_one_element() -> None:
    found = foreign(DlPack(0x1000, (2, 3), offset=16), 7, what="x")
    assert (found.address, found.shape, found.device, found.settled) == (0x1000, (2, 3), 0, True)
    odd = foreign(Interface(0x1000, (1, 4), strides=(4, 4)), 7, what="x")
    assert odd.shape == (1, 4)
