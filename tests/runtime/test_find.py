"""--find names the very node that was changed, the kernel that swallowed it, and nothing in a clean bundle."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from runtime import cli
from runtime import parity as verb
from runtime.bundle import Bundle
from runtime.errors import IntvitError
from runtime.find import AT_A_TIME, FirstNode, find
from runtime.parity import TOLERANCE
from runtime.rungs import Model, rung
from tests.runtime.planted import CANONICAL, DIALECT, Change, attribute, number, plant, plant_in_engine
from tests.runtime.tiny import Spec, make_bundle


def looked_for(bundle: Bundle, upper: str, lower: str, tolerance: float = TOLERANCE) -> FirstNode | None:
    return find(bundle, rung(upper), rung(lower), tolerance=tolerance, threads=1).first


def scaled(factor: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda value: value * np.float32(factor)


def one_weight(weight: np.ndarray) -> np.ndarray:
    weight[3, 5] += 20 if weight[3, 5] < 0 else -20
    return weight


@pytest.mark.parametrize("pair", [("canonical", "dialect"), ("dialect", "engine"), ("canonical", "engine")])
@pytest.mark.parametrize("int4", [False, True])
def test_nothing_in_a_clean_bundle(tmp_path: Path, pair: tuple[str, str], int4: bool) -> None:
    bundle = Bundle.open(make_bundle(tmp_path, Spec(int4=int4, depth=3)))
    found = find(bundle, rung(pair[0]), rung(pair[1]), threads=1)
    assert found.first is None
    assert found.comparable > 20 and 0 < found.compared <= found.comparable


@pytest.mark.parametrize(
    ("change", "node", "op_type", "constants"),
    [
        (number("b1.fc1.wscale", scaled(1.02)), "b1.fc1.w/DequantizeLinear", "DequantizeLinear", {"b1.fc1.wscale"}),
        (number("b1.fc2.bias", lambda bias: bias + 0.1), "b1.fc2.out/Add", "Add", {"b1.fc2.bias"}),
        (number("b0.fc2.scale", scaled(1.02)), "b0.fc2.q/QuantizeLinear", "QuantizeLinear", {"b0.fc2.scale"}),
        (number("embed.w8", one_weight), "embed.w/DequantizeLinear", "DequantizeLinear", {"embed.w8"}),
        (attribute("b1.norm", "epsilon", 0.1), "b1.norm/LayerNormalization", "LayerNormalization", set()),
        (number("head.bias", lambda bias: bias + 0.1), "head.out/Add", "Add", {"head.bias"}),
        (number("gamma", scaled(1.02)), "b0.norm/LayerNormalization", "LayerNormalization", {"gamma"}),
    ],
)
def test_a_changed_node_of_the_dialect(
    tmp_path: Path, change: Change, node: str, op_type: str, constants: set[str]
) -> None:
    bundle = plant(make_bundle(tmp_path, Spec(int4=False, depth=3)), DIALECT, change)
    first = looked_for(bundle, "canonical", "dialect")
    assert first is not None
    assert (first.node, first.op_type, set(first.constants)) == (node, op_type, constants)
    assert not first.tensor.within and first.tensor.largest > 0 and first.tensor.relative > TOLERANCE
    assert all(one.within for one in first.inputs) and not first.fused
    assert looked_for(bundle, "dialect", "engine") is None  # the fault is above


@pytest.mark.parametrize("name", ["b1.fc1", "b2.fc2"])
def test_a_fused_kernel_of_the_engine(tmp_path: Path, name: str) -> None:
    root = make_bundle(tmp_path, Spec(int4=False, depth=3))
    bundle = plant_in_engine(root, number(f"{name}.wscale", scaled(1.02)))
    for upper in ("dialect", "canonical"):
        first = looked_for(bundle, upper, "engine")
        assert first is not None
        assert first.kernel == f"MatMulIntegerToFloat '{name}.product/MatMul' (com.microsoft)"
        assert f"MatMul {name}.product/MatMul" in first.fused and first.node == first.fused[-1].split()[1]
        assert {one.split()[0] for one in first.fused} >= {"DequantizeLinear", "MatMul"}
        assert first.golden == (name,) and first.inputs == ()
    assert looked_for(bundle, "canonical", "dialect") is None


def test_the_first_of_two_faults(tmp_path: Path) -> None:
    root = make_bundle(tmp_path, Spec(depth=3))
    plant(root, DIALECT, number("b2.fc1.bias", lambda bias: bias + 1))
    bundle = plant(root, DIALECT, number("b0.fc2.bias", lambda bias: bias + 1))
    first = looked_for(bundle, "canonical", "dialect")
    assert first is not None and first.node == "b0.fc2.out/Add"


def test_a_fault_of_the_canonical_graph_is_seen_from_there(tmp_path: Path) -> None:
    bundle = plant(make_bundle(tmp_path), CANONICAL, number("b0.fc1.bias", lambda bias: bias + 1))
    first = looked_for(bundle, "canonical", "engine")
    assert first is not None and first.node == "b0.fc1.out/Add"


def test_a_value_that_is_no_number(tmp_path: Path) -> None:
    bundle = plant(make_bundle(tmp_path), DIALECT, number("b0.fc1.bias", lambda bias: bias * np.float32(np.nan)))
    first = looked_for(bundle, "canonical", "dialect")
    assert first is not None and first.node == "b0.fc1.out/Add" and first.tensor.largest > 1e30


def test_the_tolerance_decides(tmp_path: Path) -> None:
    nudged = number("b0.fc2.bias", lambda bias: bias * np.float32(1 + 1e-5))
    bundle = plant(make_bundle(tmp_path), DIALECT, nudged)
    first = looked_for(bundle, "canonical", "dialect", 0.0)
    assert first is not None and first.node == "b0.fc2.out/Add" and 0 < first.tensor.relative < 1e-4
    assert looked_for(bundle, "canonical", "dialect", 1e-4) is None


def test_few_tensors_at_a_time_and_few_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A deep network: bisection holds a handful of tensors and needs far fewer runs than there are tensors."""
    exposed: list[int] = []
    run = Model.run

    def counted(self: Model, data: bytes, names: list[str], feeds: dict[str, object], threads: int) -> object:
        exposed.append(len(names))
        return run(self, data, names, feeds, threads)

    monkeypatch.setattr(Model, "run", counted)
    depth = 24
    root = make_bundle(tmp_path, Spec(int4=False, depth=depth))
    bundle = plant(root, DIALECT, number("head.bias", lambda bias: bias + 1))
    found = find(bundle, rung("canonical"), rung("dialect"), threads=1)
    assert found.first is not None and found.first.node == "head.out/Add"
    assert max(exposed) <= AT_A_TIME
    assert found.comparable > 10 * depth and found.compared < found.comparable / 2
    assert len(exposed) == 2 * found.runs and found.runs < found.comparable / 8


def test_an_unknown_rung() -> None:
    with pytest.raises(IntvitError, match="unknown rung 'dialekt'") as caught:
        rung("dialekt")
    assert "canonical, dialect, engine" in caught.value.why and "--between " in caught.value.next


def test_the_command(bundle_copy: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "find.json"
    options = [str(bundle_copy), "--find", "--json", str(out), "--threads", "1"]
    assert cli.invoke(verb.main, options) == 0
    assert json.loads(out.read_text())["find"]["first"] is None
    said = capfd.readouterr().out
    pasted = shlex.join(["python", "-m", "runtime.parity", str(bundle_copy)])
    assert "no node is beyond tolerance" in said and f"next: {pasted} --ladder\n" in said

    def swapped(model: onnx.ModelProto) -> None:
        next(node for node in model.graph.node if node.op_type == "Gelu").op_type = "Relu"

    plant(bundle_copy, DIALECT, swapped)
    assert cli.invoke(verb.main, [*options, "--between", "canonical", "dialect"]) == 1
    found = json.loads(out.read_text())
    assert found["ok"] is False and found["find"]["first"]["node"] == "b0.gelu/Gelu"
    said = capfd.readouterr().out
    assert "first node beyond tolerance: dialect's Relu 'b0.gelu/Gelu'" in said
    assert "dialect does in Relu b0.gelu/Gelu what canonical does in Gelu b0.gelu/Gelu" in said
    assert "input 'b0.fc1.out': within tolerance" in said
