"""Rules on how nodes hang together: what a target fuses, and what keeps it from fusing."""

from __future__ import annotations

from collections.abc import Hashable, Iterator

import onnx_ir as ir

from toolchain.rules.graph import (
    DEQUANTIZE,
    LAYOUT,
    PRODUCTS,
    QUANTIZE,
    foldable,
    given,
    integer_type,
    nodes,
    producer,
    readers,
    stored,
)
from toolchain.rules.rule import Hit, error, rule, warning

_MOVED_PAST = ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Slice", "MaxPool")
_BEFORE_SOFTMAX = (*LAYOUT, "Add", "Mul", "Div", "Where")


@rule(
    "shared-quantizer",
    "one signed quantizer for several layers",
    next="give each reader its own QuantizeLinear and DequantizeLinear, with its own zero point initializer, or make "
    "one layer of the readers (q, k, v)",
    ort=error(
        "the signed quantizer is not made unsigned and its layers stay float MatMuls: DeiT-S 47.6 ms against 27.0; "
        "equal quantizers with one zero point initializer are merged first (ONNX Runtime 1.31.1)"
    ),
)
def shared_quantizer(model: ir.Model) -> Iterator[Hit]:
    """An INT8 QuantizeLinear of more than one reader, one of them a product, or equal to another one.

    An output of the model is a reader too.
    """
    seen: dict[Hashable, ir.Node] = {}
    for node in nodes(model, QUANTIZE):
        if integer_type(node) != ir.DataType.INT8 or foldable(node.inputs[0]):
            continue
        around = readers(node)
        dequantizers = [reader for reader in around if reader.op_type == DEQUANTIZE]
        behind = [user for reader in dequantizers for user in readers(reader)]
        if not any(user.op_type in PRODUCTS for user in behind):
            continue
        outputs = sum(maker.outputs[0].is_graph_output() for maker in (node, *dequantizers))
        count = max(len(around), len(behind)) + outputs
        if count > 1:
            yield Hit(node, f"its output feeds more than one layer: {count} readers")
        same = seen.setdefault(_identity(node), node)
        if same is not node:
            yield Hit(node, f"it equals {same.name or same.outputs[0].name}")


@rule(
    "moved-quantizer",
    "a signed quantizer in front of a Transpose, Reshape, Squeeze, Unsqueeze, Slice or MaxPool, from opset 21 on",
    next="put that node in front of the QuantizeLinear, quantize behind it too, or export opset 20",
    ort=error(
        "the model does not load: a copy of the quantizer is put behind the node, which is then made unsigned without "
        "its output_dtype: 'output_dtype INT8 does not match y_zero_point type UINT8' (ONNX Runtime 1.32.0)"
    ),
)
def moved_quantizer(model: ir.Model) -> Iterator[Hit]:
    """An INT8 QuantizeLinear with a zero point whose dequantized output is moved, and not quantized again."""
    if model.opset_imports.get("", 0) < 21:
        return
    for node in nodes(model, QUANTIZE):
        if node.domain or integer_type(node) != ir.DataType.INT8 or given(node, 2) is None or foldable(node.inputs[0]):
            continue
        dequantizers = [reader for reader in readers(node) if reader.op_type == DEQUANTIZE]
        mover = next((user for reader in dequantizers for user in _movers(reader)), None)
        if mover is not None:
            yield Hit(node, f"{mover.op_type} reads what it quantizes")


@rule(
    "int8-attention",
    "integers around the softmax",
    next="leave both attention products in float unless a measurement on the device says otherwise",
    ort=warning(
        "it gains nothing: DeiT-S 27.5 ms against 27.0, DeiT-B 73.2 against 67.6 (ONNX Runtime 1.31.1, 1 thread)"
    ),
    tensorrt=warning(
        "it can keep attention from fusing: TensorRT-RTX 1.7.1 has no fused INT8 attention for any head size or GPU "
        "tried; TensorRT documents it for head sizes 16, 32, 64 and 512 tokens at most"
    ),
)
def int8_attention(model: ir.Model) -> Iterator[Hit]:
    """A Softmax whose output or whose scores' factors are quantized; an Attention with dequantized inputs."""
    for node in nodes(model, "Softmax", "Attention"):
        if node.op_type == "Attention":
            if any(producer(given(node, index), DEQUANTIZE) for index in range(3)):
                yield Hit(node, "its inputs are dequantized")
        elif _quantized_scores(node.inputs[0]):
            yield Hit(node, "the product before it has quantized factors")
        elif _reaches_quantizer(node):
            yield Hit(node, "its output is quantized")


@rule(
    "decomposed-layernorm",
    "LayerNorm written out as ReduceMean, Sub, Pow, Sqrt, Div",
    next="export LayerNormalization (opset 17 or later)",
    tensorrt=warning(
        "only the one node is documented to fuse with the quantizer behind it; built, the seven nodes may stay apart"
    ),
)
def decomposed_layernorm(model: ir.Model) -> Iterator[Hit]:
    """Sqrt of a mean of squares of what was centred, with an epsilon."""
    for node in nodes(model, "Sqrt"):
        add = producer(given(node, 0), "Add")
        means = [producer(value, "ReduceMean") for value in add.inputs] if add is not None else []
        square = next((producer(mean.inputs[0], "Pow", "Mul") for mean in means if mean is not None), None)
        if square is not None and producer(square.inputs[0], "Sub") is not None:
            yield Hit(node, "it takes the root of a variance that other nodes compute")


@rule(
    "decomposed-gelu",
    "GELU written out with Erf or Tanh",
    next="export Gelu (opset 20 or later)",
    tensorrt=warning(
        "only the one node is documented to fuse, with the quantizer behind it, into the layer before it; written out "
        "it may stay apart"
    ),
)
def decomposed_gelu(model: ir.Model) -> Iterator[Hit]:
    """Erf or Tanh, plus one, times something."""
    for node in nodes(model, "Erf", "Tanh"):
        added = [user for user in _onward(node) if user.op_type == "Add"]
        plus_one = any(foldable(value) for user in added for value in user.inputs)
        if plus_one and any(user.op_type == "Mul" for add in added for user in _onward(add)):
            yield Hit(node, f"{node.op_type}, Add and Mul in place of one Gelu")


def _movers(node: ir.Node) -> Iterator[ir.Node]:
    """The nodes behind a DequantizeLinear past which ONNX Runtime moves it: it stops where a quantizer follows."""
    for user in readers(node):
        undone = _undone(user)
        if user.op_type == "Identity" or undone is not None:
            yield from _movers(undone or user)
        elif user.op_type in _MOVED_PAST and not _quantized_again(user):
            yield user


def _undone(node: ir.Node) -> ir.Node | None:
    """The Transpose that alone reads this one and turns it back; ONNX Runtime drops such pairs first."""
    behind = readers(node)
    if node.op_type != "Transpose" or len(behind) != 1 or behind[0].op_type != "Transpose":
        return None
    first, second = (one.attributes.get("perm") for one in (node, behind[0]))
    if first is None or second is None or node.outputs[0].is_graph_output():
        return None
    there, back = first.as_ints(), second.as_ints()
    if not sorted(there) == sorted(back) == list(range(len(there))):  # a malformed graph
        return None
    return behind[0] if [there[axis] for axis in back] == sorted(there) else None


def _quantized_again(node: ir.Node) -> bool:
    return any(
        user.op_type == QUANTIZE or (user.op_type in _MOVED_PAST and _quantized_again(user)) for user in readers(node)
    )


def _onward(node: ir.Node) -> list[ir.Node]:
    """Who reads the output, quantizers looked through."""
    found = []
    for user in readers(node):
        found += _onward(user) if user.op_type in (QUANTIZE, DEQUANTIZE) else [user]
    return found


def _identity(quantize: ir.Node) -> Hashable:
    """What ONNX Runtime compares: attributes, tensors by name, but a scale of one element by its value."""
    attributes = tuple(sorted((name, str(value.value)) for name, value in quantize.attributes.items()))
    value, scale, *rest = quantize.inputs
    number = stored(scale)
    return (
        id(value),
        float(number.item()) if number is not None and number.size == 1 else id(scale),
        *map(id, rest),
        attributes,
    )


def _quantized_scores(value: ir.Value | None) -> bool:
    """Whether the scores come from a MatMul of two dequantized, computed factors, through scale, mask and layout."""
    pending, seen = [value], set[int]()
    while pending:
        current = pending.pop()
        node = current.producer() if current is not None else None
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        if node.op_type == "MatMul":
            factors = [producer(factor, DEQUANTIZE) for factor in node.inputs]
            if all(factor is not None and not foldable(factor.inputs[0]) for factor in factors):
                return True
        elif node.op_type in (*_BEFORE_SOFTMAX, DEQUANTIZE, QUANTIZE):
            pending += node.inputs
    return False


def _reaches_quantizer(node: ir.Node) -> bool:
    """Whether the output is quantized, through layout nodes and a division or product by what scales a row."""
    return any(
        user.op_type == QUANTIZE or (user.op_type in (*LAYOUT, "Div", "Mul") and _reaches_quantizer(user))
        for user in readers(node)
    )
