"""What may be compared between two graphs, and how a difference is measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.bundle import Bundle
from runtime.comparable import CutModel, Item, changed_constants, comparable, compared
from runtime.errors import IntvitError
from runtime.rungs import open_rung, rung
from tests.runtime.planted import DIALECT, number, plant

FLOAT = Item("x", ("x", "x"))
values = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=20)


@given(values, st.floats(0, 1), st.floats(1e-6, 0.5))
def test_a_known_difference(numbers: list[float], share: float, tolerance: float) -> None:
    upper = np.array([*numbers, 1.0], np.float32)
    size = np.abs(upper).max()
    lower = upper.astype(np.float64)
    lower[-1] += share * size
    found = compared(FLOAT, upper, lower, tolerance)
    assert found.relative == pytest.approx(share, rel=1e-6) and found.largest == pytest.approx(share * size, rel=1e-6)
    assert found.within == (found.relative <= tolerance)


@pytest.mark.parametrize(
    ("upper", "lower", "same"),
    [
        ([0.0, -np.inf], [0.0, -np.inf], True),
        ([0.0, 0.0], [0.0, 0.0], True),
        ([0.0, 0.0], [0.0, 1e-30], False),  # nothing is small beside nothing
        ([1.0, np.nan], [1.0, 1.0], False),
        ([1.0, np.inf], [1.0, -np.inf], False),
        ([np.inf, 1.0], [1.0, 1.0], False),
    ],
)
def test_what_is_no_number(upper: list[float], lower: list[float], same: bool) -> None:
    found = compared(FLOAT, np.array(upper, np.float32), np.array(lower, np.float32), 0.5)
    assert found.within is same and np.isfinite([found.largest, found.relative]).all()


def test_other_shapes_are_refused() -> None:
    with pytest.raises(IntvitError, match="another shape"):
        compared(FLOAT, np.zeros((2, 3), np.float32), np.zeros((3, 2), np.float32), 1.0)


def test_items_are_floats_of_one_name_and_every_tap(bundle_copy: Path) -> None:
    bundle = plant(bundle_copy, DIALECT, number("b0.fc1.wscale", lambda scale: scale * 2))
    golden = bundle.golden()
    canonical, dialect, engine = (
        CutModel(open_rung(rung(n), bundle), golden) for n in ("canonical", "dialect", "engine")
    )
    items = {item.label: item for item in comparable(canonical, engine)}
    assert {"embed", "b0.fc1", "b0.fc2", "head"} == {item.label for item in items.values() if item.tap}
    assert {"b0.norm", "b0.gelu", "b0.out", "b0.fc1.out", "logits"} < items.keys()
    assert not {"b0.fc1.w", "b0.fc1.dq", "b0.fc1.q"} & items.keys()  # folded, fused, and under the tap's own name
    assert "b0.fc1.w" in {item.label for item in comparable(canonical, dialect)}
    read, nodes = engine.sources("b0.fc1.out", items)
    assert [node.op_type for node in nodes] == ["MatMulIntegerToFloat"] and "intvit_golden_1" in read
    assert "b0.fc1.product" not in items  # the engine's kernel adds the bias as well
    read, nodes = canonical.sources("b0.fc1.out", items)
    assert {node.op_type for node in nodes} == {"Cast", "DequantizeLinear", "MatMul", "Add"}
    changed = changed_constants(read, read, canonical.graph, dialect.graph)
    assert list(changed) == ["b0.fc1.wscale"]


def test_items_are_in_order(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    golden = bundle.golden()
    cuts = [CutModel(open_rung(rung(name), bundle), golden) for name in ("dialect", "engine")]
    places = [cuts[0].outputs[item.names[0]] for item in comparable(*cuts)]
    assert places == sorted(places) and len(places) > 10
