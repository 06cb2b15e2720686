"""Small questions about a graph that several passes ask."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir


def constant(value: ir.Value | None) -> np.ndarray | None:
    """The array behind an initializer, or None."""
    return None if value is None or value.const_value is None else value.const_value.numpy()


def only_consumer(value: ir.Value, op_type: str) -> ir.Node | None:
    """The node that reads ``value`` if it is the only one and an ``op_type``."""
    uses = list(value.uses())
    if len(uses) != 1:
        return None
    node = uses[0].node
    return node if node.op_type == op_type else None


def set_constant(value: ir.Value, array: np.ndarray) -> None:
    """Give an initializer other numbers (and their shape and type)."""
    tensor = ir.tensor(np.array(array, order="C"), name=value.name)
    value.const_value = tensor
    value.shape = ir.Shape(array.shape)
    value.type = ir.TensorType(tensor.dtype)


def new_constant(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """A further initializer of the graph."""
    value = ir.Value(name=name)
    set_constant(value, array)
    graph.register_initializer(value)
    return value


def drop(graph: ir.Graph, node: ir.Node) -> None:
    """Remove a node nobody reads, and the initializers nobody reads after it."""
    inputs = list(node.inputs)
    graph.remove(node, safe=True)
    forget(graph, inputs)


def forget(graph: ir.Graph, values: Iterable[ir.Value | None]) -> None:
    """Remove those of ``values`` that are initializers nobody reads."""
    for value in values:
        if value is None or value.name is None or value.uses():
            continue
        if value.is_initializer() and value.name in graph.initializers:
            del graph.initializers[value.name]


@dataclass(frozen=True)
class Linear:
    """A MatMul with stored weights [K, N], their DequantizeLinear, and that of the activation where it has one."""

    matmul: ir.Node
    weight: ir.Node
    activation: ir.Node | None


def linears(model: ir.Model) -> list[Linear]:
    """Every MatMul of the graph whose right factor is dequantized from an initializer."""
    found = []
    for node in model.graph:
        if node.op_type != "MatMul":
            continue
        left, right = (_dequantizer(value) for value in node.inputs)
        if right is not None and right.inputs[0] is not None and right.inputs[0].is_initializer():
            found.append(Linear(node, right, left))
    return found


def _dequantizer(value: ir.Value | None) -> ir.Node | None:
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == "DequantizeLinear" else None
