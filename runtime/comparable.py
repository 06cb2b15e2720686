"""What can be compared between two graphs of one network, and how it compares.

Both graphs are cut at their taps, so that whoever reads a tap is fed the golden integers. A tensor can be compared
where both graphs make a float tensor of that name; a tap, wherever it lies in either.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from runtime.backends.ort import make_session
from runtime.errors import IntvitError
from runtime.golden import Golden
from runtime.onnx_wire import Graph, Node, read_graph, with_extra_outputs
from runtime.parity import within_limits
from runtime.quantizers import Quantizer
from runtime.rungs import Model, levels_apart

_PRODUCTS = ("MatMul", "Gemm", "Conv")
_NOT_FINITE = float(np.finfo(np.float32).max)  # what a difference that is infinite or no number counts as

Shape: TypeAlias = tuple["int | str | None", ...]


@dataclass(frozen=True)
class Compared:
    """One tensor in both graphs.

    Attributes:
        name: of the tensor, or of the tap.
        within: whether the two agree within tolerance.
        largest: the largest difference: absolute, or in LSB at a tap.
        relative: that difference over the tensor's largest absolute value; at a tap, percent of values that differ.
        tap: whether it is one.
    """

    name: str
    within: bool
    largest: float
    relative: float
    tap: bool

    def __str__(self) -> str:
        state = "within tolerance" if self.within else "BEYOND tolerance"
        if self.tap:
            return f"tap {self.name!r}: {state}, {self.largest:.0f} LSB, {self.relative:.4f} % of the values differ"
        return f"{self.name!r}: {state}, largest difference {self.largest:.3g} ({self.relative:.1e} of the largest)"


@dataclass(frozen=True)
class Item:
    """A tensor of both graphs: its name in each, and for a tap its quantizers there."""

    label: str
    names: tuple[str, str]
    tap: tuple[Quantizer, Quantizer] | None = None


class CutModel:
    """A rung's graph cut at its taps."""

    def __init__(self, model: Model, golden: Golden) -> None:
        self.model = model
        self.data, self.feeds = model.fed(golden)
        self.graph: Graph = read_graph(self.data)

    @cached_property
    def outputs(self) -> dict[str, int]:
        """Where, in topological order, each tensor is made."""
        return {name: index for index, node in enumerate(self.graph.nodes) for name in node.outputs if name}

    def floats(self, names: Sequence[str]) -> dict[str, Shape]:
        """Those of ``names`` that are float tensors, with their shapes as ONNX Runtime infers them; nothing is run."""
        data = with_extra_outputs(self.data, names)
        session = make_session(data, threads=1, optimize=False, where=self.model.where)
        wanted = ("tensor(float)", "tensor(float16)", "tensor(double)")
        return {value.name: tuple(value.shape or ()) for value in session.get_outputs() if value.type in wanted}

    def sources(self, tensor: str, stop: dict[str, Any]) -> tuple[list[str], list[Node]]:
        """What ``tensor`` is made of: tensors of ``stop``, graph inputs and constants, and the nodes in between."""
        read: dict[str, None] = {}
        nodes: dict[int, Node] = {}
        waiting = [tensor]
        while waiting:
            at = self.outputs[waiting.pop()]
            if at in nodes:
                continue
            nodes[at] = self.graph.nodes[at]
            for name in filter(None, self.graph.nodes[at].inputs):
                if name in stop or name not in self.outputs:
                    read[name] = None
                else:
                    waiting.append(name)
        return list(read), [nodes[at] for at in sorted(nodes)]


def comparable(upper: CutModel, lower: CutModel) -> list[Item]:
    """Everything that can be compared, in the upper graph's order."""
    pairs = list(zip(upper.model.quantizers, lower.model.quantizers, strict=True))
    taps = {high.tensor: Item(high.tap.name, (high.tensor, low.tensor), (high, low)) for high, low in pairs}
    apart = {*taps, *(low.tensor for _, low in pairs), *_shifted(upper.model.graph, pairs)}
    names = [name for name in upper.outputs if name in lower.outputs and name not in apart]
    first, second = upper.floats(names), lower.floats(names)
    items = [Item(name, (name, name)) for name in names if _alike(first.get(name), second.get(name))]
    return sorted([*items, *taps.values()], key=lambda item: upper.outputs[item.names[0]])


def _alike(first: Shape | None, second: Shape | None) -> bool:
    """Both are known as float tensors, of shapes that can be the same."""
    if first is None or second is None or len(first) != len(second):
        return False
    return all(a == b or not (isinstance(a, int) and isinstance(b, int)) for a, b in zip(first, second, strict=True))


def _shifted(graph: Graph, pairs: Sequence[tuple[Quantizer, Quantizer]]) -> Iterator[str]:
    """Tensors that differ on purpose: where one graph has a tap's zero point as a shift, from the shift to the bias."""
    for high, low in pairs:
        if high.tap.zero_point == low.tap.zero_point:
            continue
        yield from graph.producer[high.tensor].inputs[:1]
        values = {name for node in graph.nodes if high.tensor in node.inputs for name in node.outputs}
        for node in graph.nodes:
            if node.op_type in _PRODUCTS and values & set(node.inputs):
                values |= set(node.outputs)
        yield from values


def compared(item: Item, upper: npt.NDArray[Any], lower: npt.NDArray[Any], tolerance: float) -> Compared:
    """Hold one tensor of both graphs against ``tolerance``, or a tap against the limits of :mod:`runtime.parity`.

    Raises:
        IntvitError: the shapes differ.
    """
    if item.tap is not None:
        levels = [side.to_reference(value) for side, value in zip(item.tap, (upper, lower), strict=True)]
        worst, rate = levels_apart(item.label, levels[1], levels[0])
        return Compared(item.label, within_limits(worst, rate, levels[0].size), float(worst), rate, True)
    if upper.shape != lower.shape:
        why = f"{upper.shape} and {lower.shape}"
        raise IntvitError("a tensor has another shape in the other graph", where=item.label, why=why)
    with np.errstate(invalid="ignore"):
        apart = np.abs(upper.astype(np.float64) - lower.astype(np.float64))
    apart[upper == lower] = 0.0  # equal infinities
    apart = np.nan_to_num(apart, nan=_NOT_FINITE, posinf=_NOT_FINITE)
    largest = float(apart.max(initial=0.0))
    size = float(np.abs(upper[np.isfinite(upper)]).max(initial=0.0))
    relative = 0.0 if largest == 0.0 else min(largest / size, _NOT_FINITE) if size else _NOT_FINITE
    return Compared(item.label, relative <= tolerance, largest, relative, False)


def changed_constants(read: Sequence[str], below: Sequence[str], upper: Graph, lower: Graph) -> Iterator[str]:
    """Constants that both graphs read under one name with other values."""
    for name in read:
        one, other = upper.constant.get(name), lower.constant.get(name)
        if name not in below or one is None or other is None or one.data_type != other.data_type:
            continue
        if one.raw and other.raw and one.raw != other.raw:
            yield name
