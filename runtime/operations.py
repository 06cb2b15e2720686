"""Which operations, in which order, make a tensor: two graphs that agree in that must agree in every bit.

Two things count as the same, because no number depends on them: a quantizer before and after the Reshapes and
Transposes that lead to it, and constants of other values. One constant does count: a quantizer whose step is 1 divides
nothing, which is another operation than a division.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from runtime.onnx_wire import FLOAT, Graph, Node
from runtime.quantizers import MOVES

_CONSTANT = "constant"


@dataclass(frozen=True)
class _Made:
    """What makes a tensor: a digest of the operations, and the moves of single elements after the last of them."""

    digest: str
    moves: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " ".join((self.digest, *self.moves))


def operations(graph: Graph, leaves: Mapping[str, str], tensors: Sequence[str]) -> list[str]:
    """A digest for each of ``tensors`` of the operators and attributes it comes from, back to leaves and graph inputs.

    Constants count as constants whatever their values, and so does what is made of them alone: weights stored in four
    bits and in eight are the same operation.

    Args:
        graph: nodes in topological order.
        leaves: tensors whose readers see this text in place of what made them.
        tensors: names of tensors of the graph.
    """
    made = {name: _Made(name) for name in graph.inputs} | dict.fromkeys(graph.constant, _Made(_CONSTANT))
    for node in graph.nodes:
        read = [_Made(leaves[name]) if name in leaves else made.get(name, _Made("")) for name in node.inputs]
        if all(source.digest in (_CONSTANT, "") for source in read):
            made |= dict.fromkeys(node.outputs, _Made(_CONSTANT))
        elif node.op_type in MOVES:
            made[node.outputs[0]] = _Made(read[0].digest, (*read[0].moves, _digest(node, read[1:])))
        elif _by_element(node, graph):
            digest = _digest(node, [_Made(read[0].digest), *read[1:]], _divides_nothing(node, graph))
            made[node.outputs[0]] = _Made(digest, read[0].moves)
        else:
            digest = _digest(node, read)
            made |= {name: _Made(f"{digest}:{index}") for index, name in enumerate(node.outputs)}
    return [str(made[name]) if name in made else "" for name in tensors]


def _digest(node: Node, read: Sequence[_Made], *more: object) -> str:
    about = (node.op_type, node.domain, node.attributes, [str(source) for source in read], *more)
    return hashlib.sha256(repr(about).encode()).hexdigest()


def _by_element(node: Node, graph: Graph) -> bool:
    """A quantizer, or the Clip of one, with one number a tensor: it may go before a move or behind it."""
    numbers = [graph.constant.get(name) for name in node.inputs[1:]]
    single = all(number is not None and math.prod(number.dims) == 1 for number in numbers)
    return single and node.op_type in ("QuantizeLinear", "Clip")


def _divides_nothing(node: Node, graph: Graph) -> bool:
    step = graph.constant.get(node.inputs[1]) if node.op_type == "QuantizeLinear" else None
    return step is not None and step.data_type == FLOAT and bytes(step.raw) == struct.pack("<f", 1.0)
