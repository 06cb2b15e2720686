"""The OpenVINO engine: numbers against the numpy reference, options, batch sizes, threads, compiling, what it runs."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest

from runtime import bench, cli, machine
from runtime import compile as verb
from runtime.backends import open_engine
from runtime.backends.openvino import (
    KEPT_BATCHES,
    OpenVinoEngine,
    OpenVinoOptions,
    compiled_model,
    fixed,
    graph_options,
    load,
    properties,
)
from runtime.backends.openvino_nodes import executed_nodes, execution
from runtime.bundle import Bundle
from runtime.compile import compile_bundle
from runtime.errors import IntvitError
from runtime.parity import check
from tests.conftest import NO_OPENVINO
from tests.runtime.tiny import Spec, make_bundle, reference, rehash

pytest.importorskip("openvino", reason=NO_OPENVINO)
ROOT = Path(__file__).resolve().parents[2]


def opened(bundle: Path, **options: str) -> OpenVinoEngine:
    return OpenVinoEngine.open(Bundle.open(bundle), threads=1, options=options)


@pytest.mark.parametrize("twin", [False, True])
def test_logits_are_the_reference(tiny_bundle: Path, twin: bool) -> None:
    bundle = Bundle.open(tiny_bundle)
    images = bundle.golden().images
    engine = open_engine(bundle, "openvino", threads=1, twin=twin)
    assert engine.input_shape == (3, 8, 8) and engine.num_classes == 10
    for batch in (1, 3, 8, 1, 2, 3):
        wanted, _ = reference(Spec(), images[:batch], quantize=not twin)
        np.testing.assert_allclose(engine.run(images[:batch]), wanted, rtol=1e-4, atol=1e-5)
        assert len(engine._requests) <= KEPT_BATCHES  # type: ignore[attr-defined]
    about = engine.describe()
    assert (about["backend"], about["threads"], about["compiled"]) == ("openvino", 1, "")
    assert about["options"]["INFERENCE_PRECISION_HINT"] == "f32"
    engine.close()
    engine.close()
    with pytest.raises(IntvitError, match="closed"):
        engine.run(images)


@pytest.mark.parametrize("threads", [2, 3])
def test_lanes_give_every_image_its_own_logits(tiny_bundle: Path, threads: int) -> None:
    bundle = Bundle.open(tiny_bundle)
    images = np.concatenate([bundle.golden().images, -bundle.golden().images])
    wanted, _ = reference(Spec(), images, quantize=True)
    engine = open_engine(bundle, "openvino", threads=threads)
    assert isinstance(engine, OpenVinoEngine)
    for count in (1, 2, 3, 7, 8, 12, 16):
        np.testing.assert_allclose(engine.run(images[:count]), wanted[:count], rtol=1e-4, atol=1e-5)
        assert len(engine._requests) <= KEPT_BATCHES
    assert any(lanes == threads for _, lanes in engine._requests)


def test_requests_that_may_be_busy_are_not_met_again(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    images = bundle.golden().images[:4]
    engine = open_engine(bundle, "openvino", threads=2)
    assert isinstance(engine, OpenVinoEngine)
    wanted = engine.run(images)

    class Broken:
        def start_async(self, *_: object, **__: object) -> None:
            raise RuntimeError("no such luck")

    engine._requests[2, 2][1] = Broken()
    with pytest.raises(IntvitError, match="OpenVINO failed while running") as caught:
        engine.run(images)
    assert "no such luck" in caught.value.why
    np.testing.assert_array_equal(engine.run(images), wanted)


def test_the_result_is_the_callers_own(tiny_bundle: Path) -> None:
    engine, images = opened(tiny_bundle), Bundle.open(tiny_bundle).golden().images
    first = engine.run(images[:1])
    kept = first.copy()
    engine.run(images[1:2])
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_array_equal(engine.run(images[::2]), engine.run(images[::2].copy()))


def test_wrong_input_says_what_it_got(tiny_bundle: Path) -> None:
    with pytest.raises(IntvitError, match="wrong input") as caught:
        opened(tiny_bundle).run(np.zeros((1, 3, 8, 9), np.float32))
    assert "(1, 3, 8, 9)" in caught.value.why


def test_a_graph_that_does_not_load(bundle_copy: Path) -> None:
    model = onnx.load(bundle_copy / "openvino/model.onnx")
    model.graph.node[3].op_type = "NoSuchOperator"
    onnx.save(model, bundle_copy / "openvino/model.onnx")
    rehash(bundle_copy)
    with pytest.raises(IntvitError, match="cannot load the graph") as caught:
        opened(bundle_copy)
    assert "openvino/model.onnx" in caught.value.where and "NoSuchOperator" in caught.value.why


def test_other_inputs_and_outputs_are_refused(bundle_copy: Path) -> None:
    rehash(bundle_copy, num_classes=11)
    with pytest.raises(IntvitError, match="other outputs"):
        opened(bundle_copy).run(np.zeros((1, 3, 8, 8), np.float32))
    rehash(bundle_copy, input_name="pictures")
    with pytest.raises(IntvitError, match="other inputs or outputs"):
        opened(bundle_copy)


@pytest.mark.parametrize("changes", [{"input_name": "pictures"}, {"output_name": "answers"}])
def test_parity_with_names_that_the_graph_lacks_is_refused(bundle_copy: Path, changes: dict[str, str]) -> None:
    rehash(bundle_copy, **changes)
    with pytest.raises(IntvitError, match="other inputs than" if "input_name" in changes else "failed while running"):
        check(Bundle.open(bundle_copy), backend="openvino")


def test_weights_in_another_file_are_refused(bundle_copy: Path) -> None:
    path = bundle_copy / "openvino/model.onnx"
    outside = {"location": "outside.bin", "size_threshold": 0, "convert_attribute": False}
    onnx.save(onnx.load(path), path, save_as_external_data=True, **outside)
    rehash(bundle_copy)
    with pytest.raises(IntvitError, match="not verified"):
        opened(bundle_copy)


def test_a_bundle_without_a_graph_for_it(bundle_copy: Path) -> None:
    rehash(bundle_copy)
    bundle = Bundle.open(bundle_copy)
    others = [entry for entry in bundle.manifest.files if entry.target != "openvino"]
    without = Bundle(bundle.root, bundle.manifest.model_copy(update={"files": others}), bundle.sha256, ())
    with pytest.raises(IntvitError, match="no graph for openvino") as caught:
        open_engine(without, "openvino")
    assert "built for ort" in caught.value.why and "--target ort,openvino" in caught.value.next


def test_options_are_typed() -> None:
    assert OpenVinoOptions.parse({}) == OpenVinoOptions("f32", "")
    assert OpenVinoOptions.parse({"precision": "bf16", "cache_dir": "c"}) == OpenVinoOptions("bf16", "c")
    with pytest.raises(IntvitError, match="unknown option 'transfers'") as caught:
        OpenVinoOptions.parse({"transfers": "on"})
    assert caught.value.where == "--transfers or --option transfers"
    with pytest.raises(IntvitError, match="unknown option 'precison'") as caught:
        OpenVinoOptions.parse({"precison": "bf16"})
    assert "precision" in caught.value.next
    with pytest.raises(IntvitError, match="unknown precision 'int8'") as caught:
        OpenVinoOptions.parse({"precision": "int8"})
    assert "bf16" in caught.value.next


def test_a_cache_that_cannot_be_written_is_told_before_anything_is_compiled(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(IntvitError, match="cannot keep its cache there") as caught:
        OpenVinoOptions.parse({"cache_dir": str(tmp_path / "file")})
    assert "cache_dir" in caught.value.where and caught.value.next
    assert properties(3, OpenVinoOptions(cache_dir="c")) == {
        **graph_options(OpenVinoOptions()),
        "INFERENCE_NUM_THREADS": "3",
        "NUM_STREAMS": "1",
        "CACHE_DIR": "c",
    }


def test_the_cache_directory_is_used(tiny_bundle: Path, tmp_path: Path) -> None:
    images = Bundle.open(tiny_bundle).golden().images
    wanted = opened(tiny_bundle).run(images)
    for _ in range(2):
        np.testing.assert_array_equal(opened(tiny_bundle, cache_dir=str(tmp_path / "cache")).run(images), wanted)
    assert list((tmp_path / "cache").iterdir())


@pytest.mark.skipif(
    "avx512_bf16" not in machine.cpu_flags() and "amx_bf16" not in machine.cpu_flags(), reason="this CPU has no bf16"
)
def test_bf16_is_a_choice_that_parity_can_tell(tiny_bundle: Path) -> None:
    images = Bundle.open(tiny_bundle).golden().images
    exact, fast = opened(tiny_bundle).run(images), opened(tiny_bundle, precision="bf16").run(images)
    difference = np.abs(exact - fast).max()
    assert 1e-5 < difference < 0.05 * np.abs(exact).max()


def test_threads_wait_for_each_other_and_for_close(tiny_bundle: Path) -> None:
    engine, images = opened(tiny_bundle), Bundle.open(tiny_bundle).golden().images
    wanted = {batch: engine.run(images[:batch]) for batch in (1, 2, 3)}
    wrong: list[str] = []
    done = threading.Event()

    def work(batch: int) -> None:
        while not done.is_set():
            try:
                if not np.array_equal(engine.run(images[:batch]), wanted[batch]):
                    wrong.append(f"batch {batch} differs")
            except IntvitError as error:
                if "closed" not in error.what:
                    wrong.append(error.what)
                return

    workers = [threading.Thread(target=work, args=(batch,)) for batch in (1, 2, 3, 1)]
    for worker in workers:
        worker.start()
    done.wait(0.3)
    engine.close()
    for worker in workers:
        worker.join(20)
    assert not any(worker.is_alive() for worker in workers)
    assert wrong == []


def test_every_linear_runs_as_an_integer_product(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    model = fixed(load(bundle.file("graph", "openvino").read_bytes(), where=""), 8)
    compiled = compiled_model(model, properties(1, OpenVinoOptions()) | {"PERF_COUNT": "YES"}, where="")
    nodes = executed_nodes(compiled, bundle.golden().images, timed=True)
    found = execution(nodes, bundle.manifest.layers)
    assert sum(found.integer_kernels.values()) == found.expected == 4
    assert all(node.milliseconds is not None and node.milliseconds > 0 for node in nodes if node.integer)
    assert any("Gelu" in source for node in nodes if node.integer for source in node.sources)  # fused epilogue


def test_both_paths_give_the_same_bits(bundle_copy: Path) -> None:
    images = np.random.default_rng(5).normal(size=(4, 3, 8, 8)).astype(np.float32)
    wanted = np.concatenate([opened(bundle_copy).run(image[None]) for image in images])
    done = compile_bundle(Bundle.open(bundle_copy), backend="openvino")
    assert done.built and done.execution.as_expected and "OpenVINO" in done.reason
    assert done.record.path.endswith("model.blob")
    engine = opened(bundle_copy)
    assert engine.describe()["compiled"] == done.record.key
    np.testing.assert_array_equal(np.concatenate([engine.run(image[None]) for image in images]), wanted)
    again = compile_bundle(Bundle.open(bundle_copy), backend="openvino")
    assert not again.built and again.record == done.record and again.execution == done.execution
    assert check(Bundle.open(bundle_copy), backend="openvino").ok


def test_each_backend_keeps_its_own_engine(bundle_copy: Path) -> None:
    for backend in ("ort", "openvino", "ort"):
        compile_bundle(Bundle.open(bundle_copy), backend=backend, force=True)
    assert sorted(record.backend for record in Bundle.open(bundle_copy).engines) == ["openvino", "ort"]


def test_a_compiled_engine_serves_only_its_own_options(bundle_copy: Path) -> None:
    compile_bundle(Bundle.open(bundle_copy), backend="openvino")
    assert opened(bundle_copy, precision="bf16").describe()["compiled"] == ""
    path = next((bundle_copy / "engines").glob("openvino-*/model.blob"))
    path.write_bytes(path.read_bytes()[:-1] + b"\\0")
    with pytest.raises(IntvitError):
        opened(bundle_copy)


def test_an_engine_that_computes_other_numbers_is_not_kept(
    bundle_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = (make_bundle(tmp_path / "other", Spec(seed=3)) / "openvino/model.onnx").read_bytes()
    exported = verb.openvino.exported_bytes
    monkeypatch.setattr(verb.openvino, "exported_bytes", lambda graph, where: exported(other, where=where))
    with pytest.raises(IntvitError, match="other numbers"):
        compile_bundle(Bundle.open(bundle_copy), backend="openvino")
    assert not (bundle_copy / "engines").exists()


def test_the_verbs_take_it(tiny_bundle: Path, bundle_copy: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.invoke(verb.main, [str(bundle_copy), "--backend", "openvino"]) == 0
    assert "4 integer kernels for 4 integer layers" in capfd.readouterr().out
    times = [str(tiny_bundle), "--backend", "openvino", "--seconds", "0", "--threads", "1"]
    assert cli.invoke(bench.main, [*times, "--option", "precision=f32"]) == 0
    assert "W4A8 (openvino)" in capfd.readouterr().out
    assert cli.invoke(bench.main, [*times, "--option", "precision=f23"]) == 1
    assert "unknown precision 'f23'" in capfd.readouterr().err


EMULATE = """
import sys
from runtime import machine
from runtime.bundle import Bundle
from runtime.parity import check
if sys.argv[2] == "told":
    machine.saturating_u8s8 = lambda: True
result = check(Bundle.open(sys.argv[1]), backend="openvino", threads=1)
print("parity", result.ok, result.logits_sqnr_db)
"""


@pytest.mark.skipif(
    "avx512_vnni" not in machine.cpu_flags(), reason="needs a CPU with VNNI to take it away from oneDNN"
)
@pytest.mark.parametrize(("told", "right"), [("told", "True"), ("untold", "False")])
def test_without_vnni_the_products_run_in_float_because_int8_ones_are_not_exact(
    tmp_path: Path, told: str, right: str
) -> None:
    """oneDNN without VNNI; ``untold`` shows what happens where the engine does not know."""
    bundle = make_bundle(tmp_path / "bundle", Spec(int4=False))
    done = subprocess.run(
        [sys.executable, "-c", EMULATE, str(bundle), told],
        cwd=ROOT,
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert f"parity {right}" in done.stdout, done.stdout + done.stderr
