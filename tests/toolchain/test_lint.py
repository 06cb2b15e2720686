"""``toolchain.lint``: our graphs, graphs of other tools, bundles, and what bad input is answered with."""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from runtime import cli
from tests.toolchain.nets import TINY, from_text, noise, spec_of, tiny_canonical, vit
from tests.toolchain.rules import engines
from tests.toolchain.rules.planted import GOOD, MINUS_128, swap
from toolchain.graph import float_graph
from toolchain.lint import graph_of, main
from toolchain.onnx_file import read
from toolchain.rules import findings
from toolchain.targets import ort
from toolchain.targets.choices import TARGETS

# The warnings our own graphs may have. 4-bit weights with quantized activations stay INT4 in the canonical graph, so
# that one file serves every target; TensorRT builds it, in what arithmetic shows on a GPU. +attn8 is asked for by name.
ON_TENSORRT = {
    "w8a8": set[str](),
    "w4a8": {"int4-activations"},
    "w4a4": {"int4-activations"},
    "w4a16": set[str](),
    "w8a16+g16": set[str](),
    "w8a8+attn8": {"int8-attention"},
    "w8a8+res8": set(),
}


def counts(path: Path, target: str) -> dict[str, int]:
    """Findings by rule."""
    return dict(Counter(finding.rule for finding in findings(read(path), target)))


def saved(model: ir.Model, path: Path) -> Path:
    ir.save(model, path)
    return path


@pytest.mark.parametrize("scheme", ON_TENSORRT)
@pytest.mark.parametrize("network", TINY)
def test_our_own_graphs_break_no_rule(network: str, scheme: str, tmp_path: Path) -> None:
    canonical = tiny_canonical(network, scheme)
    found = findings(read(saved(canonical, tmp_path / "canonical.onnx")), "tensorrt")
    assert {finding.rule for finding in found} == ON_TENSORRT[scheme]
    assert {finding.severity for finding in found} <= {"warning"}
    dialect = saved(ort.lower(canonical), tmp_path / "ort.onnx")
    assert counts(dialect, "ort").keys() == ON_TENSORRT[scheme] & {"int8-attention"}
    assert counts(dialect, "openvino") == {}


@pytest.mark.parametrize("target", TARGETS)
def test_the_float_twin_breaks_no_rule(target: str, tmp_path: Path) -> None:
    module = vit()
    assert counts(saved(float_graph(module, spec_of(module)), tmp_path / "float.onnx"), target) == {}


# ---- graphs of other tools


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The float graph of a tiny ViT, for other tools to quantize."""
    module = vit()
    return saved(float_graph(module, spec_of(module)), tmp_path_factory.mktemp("exported") / "model.onnx")


def images() -> list[dict[str, np.ndarray]]:
    return [{"images": noise(spec_of(vit()), 1, seed=seed).numpy()} for seed in range(2)]


def quantize_static(source: Path, into: Path, **options: Any) -> Path:
    """ONNX Runtime's own static quantizer on two images of noise, one weight scale a channel."""
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left: Iterator[dict[str, np.ndarray]] = iter(images())

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.left, None)

    root, level = logging.getLogger(), logging.getLogger().level
    root.setLevel(logging.ERROR)  # it advises to preprocess the model
    try:
        quantization.quantize_static(source, into, Reader(), per_channel=True, **options)
    finally:
        root.setLevel(level)
    return into


def test_quantize_static_by_default_and_what_tensorrt_says(exported: Path, tmp_path: Path) -> None:
    path = quantize_static(exported, tmp_path / "qdq.onnx")
    found = findings(read(path), "tensorrt")
    assert Counter(finding.rule for finding in found).keys() == {
        "zero-point",
        "bias-int32",
        "int8-attention",
    }
    assert "Non-zero zero point is not supported" in engines.tensorrt(ir.load(path))


def test_the_advice_leads_to_a_graph_that_tensorrt_builds(exported: Path, tmp_path: Path) -> None:
    """Zero points away: the INT32 biases are refused. They away too: no error is left, and the engine is built."""
    symmetric = {"ActivationSymmetric": True, "WeightSymmetric": True}
    path = quantize_static(exported, tmp_path / "symmetric.onnx", extra_options=symmetric)
    errors = {finding.rule for finding in findings(read(path), "tensorrt") if finding.severity == "error"}
    assert errors == {"bias-int32"}
    assert "has type Int32 but must have type" in engines.tensorrt(ir.load(path))

    path = quantize_static(exported, tmp_path / "both.onnx", extra_options=symmetric | {"QuantizeBias": False})
    assert {finding.severity for finding in findings(read(path), "tensorrt")} == {"warning"}
    assert engines.tensorrt(ir.load(path)) == ""


def test_quantize_static_in_operator_form(exported: Path, tmp_path: Path) -> None:
    from onnxruntime.quantization import QuantFormat

    path = quantize_static(exported, tmp_path / "operators.onnx", quant_format=QuantFormat.QOperator)
    found = findings(read(path), "tensorrt")
    named = {finding.op_type for finding in found if finding.rule == "tensorrt-operator"}
    assert {"QLinearMatMul", "QLinearAdd", "QLinearSoftmax"} <= named
    assert (
        counts(path, "ort")["s8s8-operator"] == 2 * 6 + 2
    )  # four linear layers and two products a block; patches, head
    assert engines.tensorrt(ir.load(path)) != ""


def test_nncf_and_what_tensorrt_and_onnxruntime_say(exported: Path, tmp_path: Path) -> None:
    nncf = pytest.importorskip("nncf", reason="NNCF is not a dependency: pip install nncf")
    model = nncf.quantize(
        onnx.load(exported), nncf.Dataset(images()), subset_size=2, model_type=nncf.ModelType.TRANSFORMER
    )
    path = tmp_path / "nncf.onnx"
    onnx.save(model, path)
    found = Counter(finding.rule for finding in findings(read(path), "tensorrt") if finding.severity == "error")
    assert found.keys() == {"zero-point"}
    assert "Non-zero zero point is not supported" in engines.tensorrt(ir.load(path))
    on_ort = counts(path, "ort")
    assert on_ort == {"moved-quantizer": 3}  # a Transpose or a Slice reads what was quantized: no session
    assert engines.onnxruntime(ir.load(path)) == "refused"
    assert counts(path, "openvino") == {}  # it is OpenVINO's own quantizer


# ---- the command


def run(*arguments: str | Path) -> int:
    return cli.invoke(main, [str(argument) for argument in arguments])


def test_a_clean_graph_exits_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(from_text(GOOD), tmp_path / "model.onnx")
    assert run(path, "--target", "tensorrt") == 0
    assert "0 errors, 0 warnings" in capsys.readouterr().out


def test_an_error_exits_1_and_is_told_with_its_node_and_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved(from_text(swap(GOOD, ("int8 z = {0}", "int8 z = {3}"))), tmp_path / "model.onnx")
    out = tmp_path / "lint.json"
    assert run(path, "--target", "tensorrt", "--json", out) == 1
    shown = capsys.readouterr().out
    for word in ("zero-point", "quantize", "2 errors, 0 warnings"):
        assert word in shown
    found = json.loads(out.read_text())
    assert (found["target"], found["errors"], found["warnings"]) == ("tensorrt", 2, 0)
    assert found["findings"][0] == {
        "rule": "zero-point",
        "target": "tensorrt",
        "severity": "error",
        "node": "quantize",
        "op_type": "QuantizeLinear",
        "what": "its zero point is 3",
        "why": found["findings"][0]["why"],
        "next": found["findings"][0]["next"],
    }
    assert run(path, "--target", "ort") == 0


@pytest.mark.parametrize("name", ["run[/x].onnx", "model[red].onnx"])
def test_names_are_shown_as_they_are(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = from_text(swap(GOOD, ("int8 z = {0}", "int8 z = {3}")))
    model.graph.node(0).name = "blk[0]\\[red]q"
    (tmp_path / name).parent.mkdir(exist_ok=True)  # "run[/x].onnx" lies in a folder
    assert run(saved(model, tmp_path / name), "--target", "tensorrt") == 1
    shown, said = capsys.readouterr()
    assert said == ""
    cells = re.sub(r"[\s│┃]", "", shown)
    assert cells.count(re.sub(r"\s", "", f"{tmp_path / name} on tensorrt")) == 2  # the title and the last line
    assert "blk[0]\\[red]q" in cells


def test_the_result_does_not_overwrite_the_graph(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(from_text(GOOD), tmp_path / "model.onnx")
    before = path.read_bytes()
    assert run(path, "--target", "tensorrt", "--json", path) == 1
    assert "would overwrite an input" in capsys.readouterr().err and path.read_bytes() == before


def test_a_warning_exits_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(saved(from_text(swap(GOOD, MINUS_128)), tmp_path / "model.onnx"), "--target", "tensorrt") == 0
    assert "0 errors, 1 warnings" in capsys.readouterr().out


def test_a_bundle_gives_its_graph_of_that_target_or_the_canonical_one(
    digits_bundle: Callable[[str], Path], tmp_path: Path
) -> None:
    bundle, out = digits_bundle("w4a8"), tmp_path / "lint.json"
    for target in ("ort", "tensorrt"):
        assert run(bundle, "--target", target, "--json", out) == 0
        assert json.loads(out.read_text())["model"] == str(bundle / target / "model.onnx")
    assert graph_of(bundle, "a target it was not built for") == bundle / "canonical/model.onnx"


def test_an_unknown_target_is_answered_with_those_there_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(saved(from_text(GOOD), tmp_path / "model.onnx"), "--target", "tpu") == 1
    assert "ort, openvino, tensorrt" in capsys.readouterr().err
