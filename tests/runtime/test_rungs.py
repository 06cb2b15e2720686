"""Rungs are data: the graphs they read, the taps found in each, what runs them, and room for another backend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from runtime import ladder, rungs
from runtime.bundle import Bundle
from runtime.errors import IntvitError
from runtime.find import find
from runtime.rungs import RUNGS, Rung, levels_apart, open_rung, run_ort, rung, rungs_of
from tests.runtime.planted import DIALECT, number, plant, plant_in_engine


def test_the_graphs_of_the_rungs(bundle_copy: Path) -> None:
    bundle = plant(bundle_copy, DIALECT, number("head.bias", lambda bias: bias + 1))
    models = {one.name: open_rung(one, bundle) for one in rungs_of("ort")}
    assert list(models) == ["canonical", "dialect", "engine"]
    assert models["canonical"].data == (bundle_copy / "canonical/model.onnx").read_bytes()
    assert models["dialect"].data == (bundle_copy / "ort/model.onnx").read_bytes()
    assert "MatMulIntegerToFloat" in models["engine"].graph.op_histogram()
    assert [one.tap.name for one in models["engine"].quantizers] == ["embed", "b0.fc1", "b0.fc2", "head"]


def test_the_engine_is_the_compiled_one_where_there_is_one(bundle_copy: Path) -> None:
    bundle = plant_in_engine(bundle_copy, number("head.bias", lambda bias: bias + 1))
    (path,) = bundle_copy.glob("engines/ort-*/model.onnx")
    assert open_rung(rung("engine"), bundle).data == path.read_bytes()


def test_a_rung_that_reads_another_file_is_refused(bundle_copy: Path) -> None:
    def outside(model: onnx.ModelProto) -> None:
        tensor = onnx.TensorProto(name="leak", data_type=onnx.TensorProto.FLOAT, dims=[10])
        tensor.data_location = onnx.TensorProto.EXTERNAL
        model.graph.node.append(onnx.helper.make_node("Constant", [], ["leak"], value=tensor))

    with pytest.raises(IntvitError, match="not verified"):
        open_rung(rung("engine"), plant_in_engine(bundle_copy, outside))
    with pytest.raises(IntvitError, match="not verified"):
        open_rung(rung("dialect"), plant(bundle_copy, DIALECT, outside))


def test_aligned_and_free(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    golden, model = bundle.golden(), open_rung(rung("dialect"), bundle)
    aligned, free = model.aligned(golden, 1), model.free(golden, 1)
    assert aligned.keys() == free.keys() == {"logits", "embed.q", "b0.fc1.q", "b0.fc2.q", "head.q"}
    for name in ("embed", "b0.fc1"):
        assert (aligned[f"{name}.q"] == golden.taps[f"tap.{name}"]).all()


def test_aligned_feeds_golden_integers_and_free_does_not(bundle_copy: Path) -> None:
    bundle = plant(bundle_copy, DIALECT, number("embed.w8", lambda weight: weight // 2))
    golden, model = bundle.golden(), open_rung(rung("dialect"), bundle)
    reference = golden.taps["tap.b0.fc2"]
    assert (model.aligned(golden, 1)["b0.fc2.q"] == reference).all()
    assert (model.free(golden, 1)["b0.fc2.q"] != reference).any()


def test_another_backend_joins_with_one_entry(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own runner, its own graph: nothing but the table knows of it."""
    ran: list[str] = []

    def slightly_wrong(
        model: bytes, names: Sequence[str], feeds: Mapping[str, Any], *, threads: int, where: str
    ) -> dict[str, Any]:
        ran.append(where)
        return {
            name: value ^ np.int8(2) if value.dtype == np.int8 and name == "b0.fc2.q" else value
            for name, value in run_ort(model, names, feeds, threads=threads, where=where).items()
        }

    other = Rung("other engine", "for this test", "other", lambda bundle: bundle.file("graph", "ort").read_bytes(),
                 run=slightly_wrong)  # fmt: skip
    monkeypatch.setattr(rungs, "RUNGS", (*RUNGS, other))
    monkeypatch.setattr(rungs, "backend_class", lambda name: None)
    assert [one.name for one in rungs_of("other")] == ["canonical", "other engine"]
    assert [one.name for one in rungs_of("ort")] == ["canonical", "dialect", "engine"]
    bundle = Bundle.open(tiny_bundle)
    result = ladder.climb(bundle, backend="other", threads=1)
    assert result.verdict.startswith("other engine parts from canonical at tap 'b0.fc2': 2 LSB, 100.0000 %")
    first = find(bundle, rung("canonical"), rung("other engine", "other"), threads=1).first
    assert first is not None and first.node == "b0.fc2.q/QuantizeLinear" and first.tensor.largest == 2
    assert len(ran) > 2 and all("other engine" in where for where in ran)


def test_a_backend_without_rungs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rungs, "backend_class", lambda name: None)
    with pytest.raises(IntvitError, match="does not reach backend 'new'") as caught:
        rungs_of("new")
    assert "ort" in caught.value.why


def test_a_graph_that_fails_while_running(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    model = open_rung(rung("dialect"), bundle)
    with pytest.raises(IntvitError, match="failed while running") as caught:
        model.run(model.data, ["logits"], {"images": np.zeros((1, 3, 4, 4), np.float32)}, 1)
    assert "(dialect)" in caught.value.where


def test_levels_apart() -> None:
    reference = np.array([[1, 2, 3, 4]], np.int16)
    assert levels_apart("tap", reference + np.array([[0, 0, -3, 1]], np.int16), reference) == (3, 50.0)
    with pytest.raises(IntvitError, match="another shape"):
        levels_apart("tap", reference[0], reference)
