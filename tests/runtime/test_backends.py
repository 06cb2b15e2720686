"""Engines: names, inputs, the numbers of the ONNX Runtime one against the numpy reference."""

from __future__ import annotations

import builtins
import importlib.machinery
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from runtime import machine
from runtime.backends import BACKENDS, backend_class, open_engine, openvino
from runtime.backends import ort as backend
from runtime.backends.trt import library as trt
from runtime.bundle import Bundle
from runtime.compile import compile_bundle
from runtime.errors import IntvitError
from runtime.onnx_wire import INT8, UINT8, read_graph
from runtime.parity import check
from runtime.registry import compile_key
from tests.runtime.tiny import Spec, reference, rehash
from tests.toolchain.nets import spec_of, vit, write_bundle


@pytest.fixture(scope="module")
def vit_bundle(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The bundle of a small ViT in a scheme, written once."""
    made: dict[str, Path] = {}

    def bundle(scheme: str) -> Path:
        if scheme not in made:
            module = vit()
            made[scheme] = write_bundle(module, spec_of(module), scheme, tmp_path_factory.mktemp("vit") / "bundle")
        return made[scheme]

    return bundle


def test_unknown_backend_lists_near_matches() -> None:
    with pytest.raises(IntvitError, match="unknown backend 'otr'") as caught:
        backend_class("otr")
    assert "ort" in caught.value.next
    assert "ort" in caught.value.why


def test_a_backend_whose_library_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKENDS, "absent", "runtime_of_nowhere:Engine")
    with pytest.raises(IntvitError, match="not installed") as caught:
        backend_class("absent")
    assert "pip install" in caught.value.next


def test_openvino_missing_says_how_to_install_it(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(IntvitError, match="OpenVINO is not installed") as caught:
        open_engine(Bundle.open(tiny_bundle), "openvino")
    assert caught.value.next == "pip install 'intvit[openvino]'"


def test_ctrl_c_during_the_import_of_onnxruntime_is_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its __init__ turns what stops the loading of its library into an ImportError."""
    real = builtins.__import__

    def stopped(name: str, *args: Any, **options: Any) -> Any:
        if name != "onnxruntime":
            return real(name, *args, **options)
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            raise ImportError("DLL load failed") from error

    monkeypatch.setattr(builtins, "__import__", stopped)
    with pytest.raises(KeyboardInterrupt):
        backend.library()


def test_ort_has_one_option(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    for wrong in ({"precision": "bf16"}, {"spin_wait": "perhaps"}):
        with pytest.raises(IntvitError, match="unknown option of the ort backend"):
            open_engine(bundle, options=wrong)
    for wrong, where in (
        ({"cuda_graph": "on"}, "--cuda-graph or --option cuda_graph"),
        ({"depth": "3"}, "--option depth"),
        ({"spin_wait": "perhaps"}, "--spin-wait or --option spin_wait"),
    ):
        with pytest.raises(IntvitError) as caught:
            open_engine(bundle, options=wrong)
        assert caught.value.where == where
    for value, spins in (("on", "1"), ("off", "0")):
        for twin in (False, True):
            engine = open_engine(bundle, threads=1, twin=twin, options={"spin_wait": value})
            about = engine.describe()
            assert about["options"]["session.intra_op.allow_spinning"] == spins
            assert about["timing"]["spin_wait"].startswith(value)
            engine.close()


@pytest.mark.parametrize("twin", [False, True])
@pytest.mark.parametrize("batch", [1, 3])
def test_logits_are_the_reference(tiny_bundle: Path, twin: bool, batch: int) -> None:
    bundle = Bundle.open(tiny_bundle)
    images = bundle.golden().images[:batch]
    engine = open_engine(bundle, threads=1, twin=twin)
    wanted, _ = reference(Spec(), images, quantize=not twin)
    assert engine.input_shape == (3, 8, 8) and engine.num_classes == 10
    np.testing.assert_allclose(engine.run(images), wanted, rtol=1e-4, atol=1e-5)
    about = engine.describe()
    assert about["threads"] == 1 and about["backend"] == "ort" and about["compiled"] == ""
    engine.close()
    with pytest.raises(IntvitError, match="closed"):
        engine.run(images)


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((1, 3, 8, 8), np.float64),
        np.zeros((3, 8, 8), np.float32),
        np.zeros((1, 3, 8, 9), np.float32),
        np.zeros((0, 3, 8, 8), np.float32),
    ],
)
def test_wrong_input_says_what_it_got(tiny_bundle: Path, images: np.ndarray) -> None:
    engine = open_engine(Bundle.open(tiny_bundle), threads=1)
    with pytest.raises(IntvitError, match="wrong input") as caught:
        engine.run(images)
    assert str(images.shape) in caught.value.why and str(images.dtype) in caught.value.why


def test_a_strided_array_is_taken(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    engine, images = open_engine(bundle, threads=1), bundle.golden().images
    np.testing.assert_array_equal(engine.run(images[::2]), engine.run(images[::2].copy()))


def test_a_graph_that_does_not_load(bundle_copy: Path) -> None:
    model = onnx.load(bundle_copy / "ort/model.onnx")
    model.graph.node[3].op_type = "NoSuchOperator"
    onnx.save(model, bundle_copy / "ort/model.onnx")
    rehash(bundle_copy)
    with pytest.raises(IntvitError, match="cannot load the graph") as caught:
        open_engine(Bundle.open(bundle_copy))
    assert "ort/model.onnx" in caught.value.where and "NoSuchOperator" in caught.value.why


def test_other_inputs_are_refused(bundle_copy: Path) -> None:
    rehash(bundle_copy, input_name="pictures")
    with pytest.raises(IntvitError, match="other inputs or outputs"):
        open_engine(Bundle.open(bundle_copy))


def test_other_outputs_are_refused(bundle_copy: Path) -> None:
    rehash(bundle_copy, num_classes=11)
    with pytest.raises(IntvitError, match="other outputs"):
        open_engine(Bundle.open(bundle_copy)).run(np.zeros((1, 3, 8, 8), np.float32))


def test_weights_in_another_file_are_refused(bundle_copy: Path) -> None:
    path = bundle_copy / "ort/model.onnx"
    onnx.save(
        onnx.load(path),
        path,
        save_as_external_data=True,
        location="outside.bin",
        size_threshold=0,
        convert_attribute=False,
    )
    rehash(bundle_copy)
    with pytest.raises(IntvitError, match="not verified"):
        open_engine(Bundle.open(bundle_copy))


@pytest.mark.parametrize("twin", [False, True])
def test_a_constant_that_lies_in_another_file_is_refused(bundle_copy: Path, twin: bool) -> None:
    path = bundle_copy / ("float/model.onnx" if twin else "ort/model.onnx")
    (bundle_copy / "ort/outside.bin").write_bytes(bytes(40))
    model, tensor = onnx.load(path), onnx.TensorProto(name="leak", data_type=onnx.TensorProto.FLOAT, dims=[10])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="outside.bin")
    model.graph.node.append(onnx.helper.make_node("Constant", [], ["leak"], value=tensor))
    path.write_bytes(model.SerializeToString())
    rehash(bundle_copy)
    with pytest.raises(IntvitError, match="not verified") as caught:
        open_engine(Bundle.open(bundle_copy), twin=twin)
    assert "'leak'" in caught.value.why


def test_the_key_follows_everything_that_decides_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    def key(graph: str = "a") -> str:
        return compile_key(backend.compile_inputs(graph))

    base = key()
    assert key() == base != key("b")
    monkeypatch.setattr(machine, "integer_flags", lambda: ["avx2"])
    other_cpu = key()
    monkeypatch.setattr(machine, "saturating_u8s8", lambda: True)
    other_options = key()
    monkeypatch.setattr(onnxruntime, "__version__", "0.0")
    assert len({base, other_cpu, other_options, key()}) == 4


def test_exact_kernels_where_products_saturate(monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    images = bundle.golden().images
    plain = open_engine(bundle, threads=1).run(images)
    monkeypatch.setattr(machine, "saturating_u8s8", lambda: True)
    graph = read_graph(backend.executed_bytes(bundle))
    weights = {
        node.name: graph.constant[node.inputs[1]].data_type
        for node in graph.nodes
        if node.op_type == "MatMulIntegerToFloat"
    }
    assert set(weights.values()) == {INT8, UINT8}, weights  # of 4 bits, which fit, and of 8
    np.testing.assert_allclose(open_engine(bundle, threads=1).run(images), plain, rtol=1e-5, atol=1e-5)


def test_the_optimizer_runs_once_for_a_graph(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the tapped graph, the engine and every lane: a second engine, and parity, reuse what the first one made."""
    calls, optimize = [], backend.optimized_bytes

    def counted(model: bytes, *, where: str = "") -> bytes:
        calls.append(where)
        return optimize(model, where=where)

    bundle = Bundle.open(tiny_bundle)
    backend._executed.cache_clear()
    monkeypatch.setattr(backend, "optimized_bytes", counted)
    assert check(bundle, threads=1).ok
    engines = [open_engine(bundle, threads=1) for _ in range(2)]
    assert calls == [str(bundle.file("graph", "ort"))]
    np.testing.assert_array_equal(*(engine.run(bundle.golden().images) for engine in engines))
    monkeypatch.setattr(machine, "integer_flags", lambda: ["avx2"])  # another processor's graph is another graph
    open_engine(bundle, threads=1)
    assert len(calls) == 2


@pytest.mark.parametrize(("scheme", "twin"), [("w8a8", False), ("w4a16", False), ("w8a8", True)])
def test_an_engine_holds_the_sessions_that_its_calls_have_run(
    vit_bundle: Callable[[str], Path], scheme: str, twin: bool
) -> None:
    """One for lanes and one with all threads, each made at its first call; the same bits where products are integer."""

    def same(found: np.ndarray, wanted: np.ndarray) -> None:
        if scheme == "w8a8" and not twin:
            np.testing.assert_array_equal(found, wanted)
        else:  # a float product of one image may sum in another order than one of two
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)

    bundle = Bundle.open(vit_bundle(scheme))
    images = bundle.golden().images
    engine = open_engine(bundle, threads=2, twin=twin)
    assert isinstance(engine, backend.OrtEngine)
    assert list(engine._sessions) == [False]
    many = engine.run(images)
    assert list(engine._sessions) == [True]  # the other had not run yet
    few = np.concatenate([engine.run(images[at : at + 1]) for at in range(len(images))])
    assert engine._sessions.keys() == {False, True}
    odd = engine.run(images[:7])  # six in lanes, one with all threads
    same(few, many)
    same(odd, many[:7])
    held = dict(engine._sessions)
    engine.run(images)
    assert engine._sessions == held
    alone = open_engine(bundle, threads=1, twin=twin)
    assert isinstance(alone, backend.OrtEngine)
    for count in (1, 5):
        same(alone.run(images[:count]), many[:count])
    assert list(alone._sessions) == [True]
    engine.close()
    engine.close()
    for count in (1, 2):
        with pytest.raises(IntvitError, match="has been closed"):
            engine.run(images[:count])


def test_a_compiled_engine_that_is_gone_by_its_first_call_in_lanes(bundle_copy: Path) -> None:
    compile_bundle(Bundle.open(bundle_copy))
    bundle = Bundle.open(bundle_copy)
    engine = open_engine(bundle, threads=2)
    assert isinstance(engine, backend.OrtEngine) and engine.describe()["compiled"]
    engine.run(bundle.golden().images[:1])
    engine._path.unlink()
    with pytest.raises(IntvitError, match="cannot read the graph") as caught:
        engine.run(bundle.golden().images)
    assert str(engine._path) in caught.value.where and "compile" in caught.value.next


def test_callers_that_make_their_first_calls_at_once(vit_bundle: Callable[[str], Path]) -> None:
    bundle = Bundle.open(vit_bundle("w8a8"))
    images = bundle.golden().images
    engine = open_engine(bundle, threads=2)
    with ThreadPoolExecutor(4) as pool:
        said = list(pool.map(lambda count: engine.run(images[:count]), [1, 8, 2, 8, 1, 8, 3, 8]))
    whole = open_engine(bundle, threads=1).run(images)
    for logits in said:
        np.testing.assert_array_equal(logits, whole[: len(logits)])


@pytest.mark.parametrize(
    ("name", "opens", "what"),
    [("openvino", openvino.library, "OpenVINO is not installed"), ("tensorrt", trt.library, "TensorRT is not inst")],
)
def test_a_folder_of_that_name_is_no_library(
    name: str, opens: Callable[[], object], what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a bundle, whose folders are called so, Python imports them when the library is not installed."""
    (tmp_path / name).mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr(sys, "meta_path", [importlib.machinery.PathFinder])
    for module in [module for module in sys.modules if module.split(".")[0] in (name, "tensorrt_rtx")]:
        monkeypatch.delitem(sys.modules, module)
    try:
        with pytest.raises(IntvitError, match=what) as refused:
            opens()
    finally:
        sys.modules.pop(name, None)  # the folder; what was there before comes back by itself
    assert "folder" in refused.value.why
