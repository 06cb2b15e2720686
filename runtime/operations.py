"""Which operations, in which order, make a tensor: two graphs that agree in that must agree in every bit."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from runtime.onnx_wire import Graph

_CONSTANT = "constant"


def operations(graph: Graph, leaves: Mapping[str, str], tensors: Sequence[str]) -> list[str]:
    """A digest for each of ``tensors`` of the operators and attributes it comes from, back to leaves and graph inputs.

    Constants count as constants whatever their values, and so does what is made of them alone: weights stored in four
    bits and in eight are the same operation.

    Args:
        graph: nodes in topological order.
        leaves: tensors whose readers see this text in place of what made them.
        tensors: names of tensors of the graph.
    """
    made: dict[str, str] = {name: name for name in graph.inputs} | dict.fromkeys(graph.constant, _CONSTANT)
    for node in graph.nodes:
        read = [leaves.get(name) or made.get(name, "") for name in node.inputs]
        if all(source in (_CONSTANT, "") for source in read):
            made |= dict.fromkeys(node.outputs, _CONSTANT)
            continue
        digest = hashlib.sha256(repr((node.op_type, node.domain, node.attributes, read)).encode()).hexdigest()
        made |= {name: f"{digest}:{index}" for index, name in enumerate(node.outputs)}
    return [made.get(name, "") for name in tensors]
