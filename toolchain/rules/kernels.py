"""Rules on the nodes of our own CUDA kernels."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from runtime.kernels.nodes import ATTRIBUTES, INPUTS, K_MULTIPLE, NAMESPACE, VERSION, is_kernel
from runtime.kernels.packing import padded
from toolchain.passes.match import constant
from toolchain.rules.graph import nodes
from toolchain.rules.rule import Hit, error, rule


@rule(
    "kernel-node",
    "nodes of our kernels (intvit.linear_f16, intvit.linear_i8) that the plugins cannot take",
    next="let the toolchain write them: --target tensorrt --option kernels=on of toolchain.build",
    tensorrt=error(
        "the parser finds no plugin of that name, namespace and version, or the kernel would read another layout than "
        "the one that is stored (runtime/kernels/nodes.py)"
    ),
)
def kernel_node(model: ir.Model) -> Iterator[Hit]:
    """Attributes, types and shapes that differ from :mod:`runtime.kernels.nodes`, each fault once."""
    for node in nodes(model, *INPUTS):
        if is_kernel(node):
            fault = _attributes(node) or _operands(node)
            if fault:
                yield Hit(node, fault)


def _attributes(node: ir.Node) -> str:
    allowed: dict[str, tuple[int | str, ...]] = {
        "plugin_namespace": (NAMESPACE,),
        "plugin_version": (str(VERSION),),
        "aot": (1,),
        **ATTRIBUTES[node.op_type],
    }
    for name, values in allowed.items():
        attribute = node.attributes.get(name)
        if attribute is None:
            return f"it has no attribute {name}"
        if attribute.value not in values:
            return f"its {name} is {attribute.value!r}, not {' or '.join(map(repr, values))}"
    if node.attributes.get_int("affine", 0) > node.attributes.get_int("gelu", 0):
        return "its affine is 1 without a GELU: no kernel has a factor and a shift there"
    return ""


def _operands(node: ir.Node) -> str:
    names = INPUTS[node.op_type]
    if len(node.inputs) != len(names) or any(value is None for value in node.inputs):
        return f"it has {sum(value is not None for value in node.inputs)} inputs, not {len(names)}"
    a, w, *vectors = node.inputs
    assert a is not None and w is not None
    if a.dtype is not None and a.dtype != ir.DataType.INT8:
        return f"its activations are {a.dtype.name}, not INT8: the output of a QuantizeLinear, not dequantized"
    stored = constant(w)
    if stored is None or w.dtype != ir.DataType.INT8 or stored.ndim != 2:
        return "its weights are not a stored INT8 matrix"
    rows, columns = stored.shape
    stored_as: dict[str, np.ndarray] = {}
    for name, value in zip(names[2:], vectors, strict=True):
        held = constant(value)
        size = 4 if name == "quantizer" else rows
        if held is None or value is None or value.dtype != ir.DataType.FLOAT or held.shape != (size,):
            return f"its {name} is not a stored FLOAT vector of {size}"
        stored_as[name] = held
    fault = _requantization(node, **stored_as) if "quantizer" in stored_as else ""
    return fault or _depth(node, a, columns)


def _requantization(node: ir.Node, factor: np.ndarray, quantizer: np.ndarray, **_: np.ndarray) -> str:
    """What is wrong with the numbers between the layer's output and its levels."""
    step, shift, low, high = quantizer.tolist()
    if not (step > 0 and -128 <= low <= high <= 127 and low == round(low) and high == round(high)):
        return f"its quantizer has the step {step:g} and the levels {low:g} to {high:g}: no INT8"
    if not node.attributes.get_int("affine", 0) and (shift != 0 or (factor != 1).any()):
        return "its affine is 0: the kernel leaves out the factor and the shift that are stored"
    return ""


def _depth(node: ir.Node, a: ir.Value, columns: int) -> str:
    """What is wrong with k, as far as the graph tells it: rows of the packed weights hold k levels, padded."""
    bits = node.attributes.get_int("bits", 0)
    k = a.shape[-1] if a.shape is not None and len(a.shape) else None
    if not isinstance(k, int):
        whole = padded(1) * bits // 8
        return "" if columns % whole == 0 else f"its packed weights have rows of {columns} bytes, not of whole {whole}"
    if k % K_MULTIPLE:
        return f"it sums over {k} channels, no multiple of {K_MULTIPLE}"
    wanted = padded(k) * bits // 8
    return "" if columns == wanted else f"its packed weights have rows of {columns} bytes; {k} channels need {wanted}"
