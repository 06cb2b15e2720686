"""A thin writer over onnx-ir: named nodes, named constants, shapes and types on every value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

OPSET = 21
IR_VERSION = 10
BATCH = "batch"


class Builder:
    """Collects nodes and initializers of one graph. ``scope`` prefixes the names of nodes made inside it."""

    def __init__(self, name: str, input_name: str, input_shape: tuple[int, int, int]) -> None:
        self.name = name
        self.scope = ""
        self._nodes: list[ir.Node] = []
        self._constants: dict[str, ir.Value] = {}
        self._names: set[str] = set()
        self.input = ir.Value(
            name=input_name, shape=ir.Shape([BATCH, *input_shape]), type=ir.TensorType(ir.DataType.FLOAT)
        )

    def _unique(self, name: str) -> str:
        candidate, count = name, 1
        while candidate in self._names:
            count += 1
            candidate = f"{name}_{count}"
        self._names.add(candidate)
        return candidate

    def const(self, name: str, values: Any, dtype: ir.DataType | None = None) -> ir.Value:
        """An initializer called ``name`` (made once a name) from an array or a list."""
        if name not in self._constants:
            array = np.array(values, order="C")
            tensor = ir.tensor(array, dtype=dtype, name=name)
            self._constants[name] = ir.Value(
                name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
            )
        return self._constants[name]

    def ints(self, values: Sequence[int]) -> ir.Value:
        """An int64 vector shared by everything that needs the same numbers (shapes, axes)."""
        label = "_".join(str(v).replace("-", "m") for v in values)
        return self.const(f"shape_{label}", np.asarray(values, dtype=np.int64))

    def op(
        self,
        op_type: str,
        inputs: Sequence[ir.Value],
        attributes: dict[str, Any] | None = None,
        *,
        output: str | None = None,
        dtype: ir.DataType | None = None,
        outputs: int = 1,
    ) -> Any:
        """Append a node; returns its output value, or a tuple of them when ``outputs`` > 1.

        Args:
            dtype: of the outputs; default: the first input's.
        """
        dtype = dtype or inputs[0].dtype
        assert dtype is not None
        name = self._unique(f"{self.scope}/{op_type}" if self.scope else op_type)
        values = [
            ir.Value(name=output if output and outputs == 1 else f"{name}:{i}", type=ir.TensorType(dtype))
            for i in range(outputs)
        ]
        attrs = ir.convenience.convert_attributes(attributes or {})
        self._nodes.append(ir.Node("", op_type, list(inputs), attrs, outputs=values, name=name))
        return values[0] if outputs == 1 else tuple(values)

    def drop(self, node: ir.Node) -> None:
        """Take back a node that nobody reads."""
        self._nodes.remove(node)
        for index in range(len(node.inputs)):
            node.replace_input_with(index, None)

    def finish(self, output: ir.Value, output_name: str, width: int) -> ir.Model:
        """Close the graph with ``output`` renamed, shape (batch, width)."""
        output.name = output_name
        output.shape = ir.Shape([BATCH, width])
        graph = ir.Graph(
            [self.input],
            [output],
            nodes=self._nodes,
            initializers=list(self._constants.values()),
            opset_imports={"": OPSET},
            name=self.name,
        )
        return ir.Model(graph, ir_version=IR_VERSION, producer_name="intvit")
