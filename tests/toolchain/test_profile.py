"""Time by layer and kernel, as ONNX Runtime's own profiler gives it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runtime import cli
from runtime.bundle import Bundle
from runtime.errors import IntvitError
from runtime.manifest import Layer
from runtime.onnx_wire import Graph, Node
from toolchain import profile as module
from toolchain.inspect import main
from toolchain.profile import NOT_FOUND, Profile, profile

DigitsBundle = Callable[[str], Path]
BLOCKS = 3


def by_name(layer: Layer, graph: Graph) -> Node | None:
    return next((node for node in graph.nodes if node.name == layer.tensor), None)


def check_sums(found: Profile) -> None:
    for rows in (found.rows, found.kernels):
        assert sum(row.share for row in rows) == pytest.approx(100)
        assert sum(row.ms for row in rows) == pytest.approx(found.kernels_ms)
        assert all(row.ms >= 0 and row.share == pytest.approx(100 * row.ms / found.kernels_ms) for row in rows)
    assert sum(row.nodes for row in found.rows) == sum(row.nodes for row in found.kernels)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("scheme", "kernels"), [("w8a8", {"MatMulIntegerToFloat", "QAttention"}), ("w4a16", set())])
def test_every_layer_and_the_float_rest(
    digits_bundle: DigitsBundle, scheme: str, kernels: set[str], threads: int
) -> None:
    bundle = Bundle.open(digits_bundle(scheme))
    found = profile(bundle, by_name, threads=threads)
    check_sums(found)
    layers = [row for row in found.rows if row.layer]
    assert {row.name for row in layers} >= {layer.name for layer in bundle.manifest.layers}
    assert (found.batch, found.threads, found.runs) == (1, threads, module.RUNS) and found.run_ms > 0
    rest = {row.name: row.nodes for row in found.rows if not row.layer}
    joined = sum(row.kernel == "QAttention" for row in layers)
    assert rest.get("Softmax", 0) + rest.get("Attention", 0) + joined == BLOCKS  # fused where this ONNX Runtime can
    assert (rest["Gelu"], rest["LayerNormalization"]) == (BLOCKS, 2 * BLOCKS + 1)
    assert rest["Add"] > 0 and rest["Transpose"] > 0
    if kernels:
        assert {row.kernel for row in layers} <= kernels and all(row.ms > 0 for row in layers)
        assert not kernels & rest.keys() and rest["QuantizeLinear"] == len(layers)
        nodes = sum(row.nodes for row in layers)
        assert sum(row.nodes for row in found.kernels if row.kernel in kernels) == nodes
        thirds = [row.name for row in layers if row.nodes == 3]  # of q, k and v, where one thread works
        assert nodes == len(layers) + 2 * len(thirds) and all(name.endswith("attn.qkv") for name in thirds)
        assert (len(thirds), joined) in ((0, BLOCKS - 1), (0, 0)) if threads > 1 else joined == 0


def test_a_layer_that_is_not_there_and_two_in_one_node(digits_bundle: DigitsBundle) -> None:
    bundle = Bundle.open(digits_bundle("w8a8"))

    def odd(layer: Layer, graph: Graph) -> Node | None:
        if layer.name == "head":
            return None
        return by_name(layer.model_copy(update={"tensor": layer.tensor.replace("mlp.fc1", "mlp.fc2")}), graph)

    found = profile(bundle, odd, threads=1)
    check_sums(found)
    rows = {row.name: row for row in found.rows}
    assert (rows["head"].kernel, rows["head"].nodes, rows["head"].ms) == (NOT_FOUND, 0, 0)
    assert rows["blocks.0.mlp.fc1 + blocks.0.mlp.fc2"].nodes == 1
    left = next(row for row in found.rows if not row.layer and row.kernel == "MatMulIntegerToFloat")
    assert left.nodes == BLOCKS + 1  # every fc1 and the head


def test_the_command(digits_bundle: DigitsBundle, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "inspect.json"
    options = [str(digits_bundle("w4a8")), "--profile", "--batch", "11", "--threads", "1", "--json", str(out)]
    assert cli.invoke(main, options) == 0
    found: dict[str, Any] = json.loads(out.read_text())
    assert found["profile"]["batch"] == 11 and found["profile"]["threads"] == 1
    layers = [row["name"] for row in found["profile"]["rows"] if row["layer"]]
    assert layers == [row["name"] for row in found["layers"]]  # the rows of inspect, in its order
    assert sum(row["share"] for row in found["profile"]["rows"]) == pytest.approx(100)
    said = capfd.readouterr().out
    assert "time by kernel" in said and "time by layer" in said
    assert cli.invoke(main, [str(digits_bundle("w4a8")), "--json", str(out)]) == 0
    assert "profile" not in json.loads(out.read_text())


@pytest.mark.parametrize("text", [None, "not json", "[]", '[{"cat": "Session", "name": "model_run", "dur": 3}]'])
def test_a_profile_that_cannot_be_read(
    digits_bundle: DigitsBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None
) -> None:
    path = tmp_path / "run.json"
    if text is not None:
        path.write_text(text)

    class Session:
        def run(self, names: None, feeds: dict[str, Any]) -> list[Any]:
            return []

        def end_profiling(self) -> str:
            return str(path)

    monkeypatch.setattr(module, "make_session", lambda *args, **options: Session())
    with pytest.raises(IntvitError, match="cannot read the profile"):
        profile(Bundle.open(digits_bundle("w8a8")), by_name, threads=1)
