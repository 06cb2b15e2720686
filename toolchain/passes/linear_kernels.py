"""Integer products become nodes of our own CUDA kernels (``runtime/kernels``), which TensorRT runs as plugins.

``Q -> DQ -> MatMul <- DQ <- weights``, the Add of the bias, a Gelu and the next layer's quantizer behind it, as far as
they follow one another, are one node. A quantizer is ``[Mul factor] -> [Sub shift] -> [Clip] -> QuantizeLinear``, the
first two behind a Gelu only. All numbers of a node are float32. Steps and shifts of quantizers that stay, which compute
in float16, are taken as float16 holds them; those that go into a node are exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from runtime.kernels.nodes import K_MULTIPLE, LINEAR_F16, LINEAR_I8, NAMESPACE, VERSION
from runtime.kernels.packing import LEVELS, pack_int4, pack_int8, pack_quantizer
from toolchain.passes.match import Linear, constant, drop, forget, linears, new_constant, only_consumer, set_constant
from toolchain.passes.shift import Shift, shifts


@dataclass(frozen=True)
class _Quantizer:
    """What makes the next layer's levels: its nodes, the last a QuantizeLinear, and its numbers."""

    nodes: list[ir.Node]
    factor: np.ndarray
    step: np.float32
    shift: np.float32
    levels: tuple[int, int]

    @property
    def affine(self) -> bool:
        return any(node.op_type in ("Mul", "Sub") for node in self.nodes)


@dataclass(frozen=True)
class _Layer:
    """A product that a kernel computes, with what follows it. ``levels`` are int8 [K, N]."""

    linear: Linear
    add: ir.Node
    gelu: ir.Node | None
    quantizer: _Quantizer | None
    bits: int
    levels: np.ndarray
    weight_scale: np.ndarray
    step: np.float32
    bias: np.ndarray

    @property
    def nodes(self) -> list[ir.Node]:
        found = [node for node in (self.linear.matmul, self.add, self.gelu) if node is not None]
        return found + (self.quantizer.nodes if self.quantizer is not None else [])


class LinearKernels(ir.passes.InPlacePass):
    """Every product of stored INT4 or INT8 weights with INT8 activations, K a multiple of 16, becomes a kernel's node.

    Packed weights take the name of the weights' initializer; the node takes the MatMul's name and the output's.
    """

    def requires(self, model: ir.Model) -> None:
        """There is such a product, and every weight is one that the packing takes."""
        found = [layer for linear in linears(model) if (layer := _match(linear)) is not None]
        if not found:
            raise ir.passes.PreconditionError("no layer multiplies stored integers with quantized activations")
        for layer in found:
            low, high = LEVELS[layer.bits]
            if int(layer.levels.min()) < low or int(layer.levels.max()) > high:
                raise ir.passes.PreconditionError(f"{layer.linear.matmul.name}: weights are not in {low}..{high}")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replace the products in the order of the graph: a node may take the next layer's quantizer with it."""
        moved = {id(shift.matmul): shift for shift in shifts(model)}
        going = {id(linear.activation) for linear in linears(model) if _match(linear) is not None}
        changed = False
        for linear in linears(model):
            layer = _match(linear)
            if layer is not None:
                _replace(model, layer, moved.get(id(linear.matmul)), going)
                changed = True
        if changed:
            model.graph.opset_imports[NAMESPACE] = VERSION
        return ir.passes.PassResult(model, changed)

    def ensures(self, model: ir.Model) -> None:
        """No such product is left."""
        for linear in linears(model):
            if _match(linear) is not None:
                raise ir.passes.PostconditionError(f"{linear.matmul.name} is still a product of TensorRT's own")


def _match(linear: Linear) -> _Layer | None:
    weight, activation = linear.weight, linear.activation
    stored, scale = weight.inputs[0], constant(weight.inputs[1])
    add = _next(linear.matmul, "Add")
    if activation is None or add is None or stored is None or scale is None:
        return None
    step, levels, bias = constant(activation.inputs[1]), constant(stored), _bias(linear.matmul, add)
    if step is None or step.size != 1 or levels is None or levels.ndim != 2 or bias is None:
        return None
    per_channel = scale.ndim == 1 and weight.attributes.get_int("axis", 1) == 1
    if not per_channel or "block_size" in weight.attributes or not (_centred(weight) and _centred(activation)):
        return None
    if not _int8(activation.inputs[0]) or len(list(stored.uses())) > 1 or levels.shape[0] % K_MULTIPLE:
        return None
    if stored.dtype not in (ir.DataType.INT4, ir.DataType.INT8) or bias.size != levels.shape[1]:
        return None
    gelu = _next(add, "Gelu")
    if gelu is not None and gelu.attributes.get_string("approximate", "none") != "none":
        gelu = None
    bits = 4 if stored.dtype == ir.DataType.INT4 else 8
    wide = levels.astype(np.int8)
    quantizer = _quantizer(gelu or add, bias.size)
    return _Layer(linear, add, gelu, quantizer, bits, wide, scale.astype(np.float32), np.float32(step), bias)


def _next(node: ir.Node, op_type: str) -> ir.Node | None:
    """The ``op_type`` that alone reads what ``node`` makes."""
    made = node.outputs[0]
    return None if made.is_graph_output() else only_consumer(made, op_type)


def _bias(matmul: ir.Node, add: ir.Node) -> np.ndarray | None:
    """What ``add`` adds to the product, float64 (n,), where it is stored."""
    stored = _other(matmul, add)
    return None if stored is None else stored.astype(np.float64).reshape(-1)


def _other(before: ir.Node, node: ir.Node) -> np.ndarray | None:
    """The operand of ``node`` that ``before`` does not make, where it is stored."""
    return constant(next((value for value in node.inputs if value is not before.outputs[0]), None))


def _centred(node: ir.Node) -> bool:
    """Whether the zero point of a quantizer is an INT8 or INT4 0, or left out."""
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    if zero is None:
        return True
    stored = constant(zero)
    return zero.dtype in (ir.DataType.INT4, ir.DataType.INT8) and stored is not None and not stored.any()


def _int8(value: ir.Value | None) -> bool:
    """Whether ``value`` is what a kernel, or a QuantizeLinear with an INT8 zero point of 0 and one step, makes."""
    node = value.producer() if value is not None else None
    if node is None:
        return False
    return (node.domain, node.op_type) == (NAMESPACE, LINEAR_I8) or _quantizes(node)


def _quantizes(node: ir.Node) -> bool:
    if node.op_type != "QuantizeLinear" or len(node.inputs) < 3 or node.inputs[2] is None:
        return False
    step = constant(node.inputs[1])
    return step is not None and step.size == 1 and node.inputs[2].dtype == ir.DataType.INT8 and _centred(node)


def _quantizer(node: ir.Node, channels: int) -> _Quantizer | None:
    """The quantizer to INT8 that alone reads what ``node`` makes, if all of it is what a kernel computes."""
    nodes = [node]
    factor, shift = np.ones(channels, np.float32), np.float32(0)
    if node.op_type == "Gelu":
        mul = _next(node, "Mul")
        by = _other(node, mul) if mul is not None else None
        if mul is not None and by is not None and by.size == channels and by.shape[-1:] == (channels,):
            nodes.append(mul)
            factor = by.astype(np.float32).reshape(-1)
        sub = _next(nodes[-1], "Sub")
        less = constant(sub.inputs[1]) if sub is not None else None
        if sub is not None and less is not None and less.size == 1:
            nodes.append(sub)
            shift = np.float32(less.item())
    clip = _next(nodes[-1], "Clip")
    quantize = _next(clip or nodes[-1], "QuantizeLinear")
    if quantize is None or not _quantizes(quantize):
        return None
    step = constant(quantize.inputs[1])
    assert step is not None
    levels = (-128, 127) if clip is None else _levels(clip, step.item())
    if levels is None:
        return None
    nodes += [quantize] if clip is None else [clip, quantize]
    return _Quantizer(nodes[1:], factor, np.float32(step.item()), shift, levels)


def _levels(clip: ir.Node, step: float) -> tuple[int, int] | None:
    """The bounds of ``clip`` in steps, where both are whole levels of INT8."""
    bounds = [constant(value) for value in clip.inputs[1:]]
    steps = [bound.item() / step for bound in bounds if bound is not None and bound.size == 1]
    if len(steps) != 2 or not all(abs(one) <= 128 and abs(one - round(one)) < 1e-3 for one in steps):
        return None
    low, high = (round(one) for one in steps)
    return (low, high) if low <= high <= 127 else None


def _replace(model: ir.Model, layer: _Layer, shift: Shift | None, going: set[int]) -> None:
    graph, matmul, weight = model.graph, layer.linear.matmul, layer.linear.weight
    activation, stored = layer.linear.activation, weight.inputs[0]
    assert activation is not None and stored is not None and stored.name is not None
    source = activation.inputs[0]
    assert source is not None
    step, bias = layer.step, layer.bias
    if (made_by := source.producer()) is not None and made_by.op_type == "QuantizeLinear":
        step = _half(step)
        if shift is not None:
            sums = layer.levels.astype(np.float64).sum(0) * layer.weight_scale.astype(np.float64)
            bias = bias + (float(_half(np.float32(shift.shift))) - shift.shift) * sums
    packed = pack_int4(layer.levels.T).view(np.int8) if layer.bits == 4 else pack_int8(layer.levels.T)
    name = stored.name
    inputs = [
        source,
        stored,
        new_constant(graph, f"{name}.scale", step * layer.weight_scale),
        new_constant(graph, f"{name}.bias", bias.astype(np.float32)),
    ]
    attributes: dict[str, str | int] = {
        "plugin_namespace": NAMESPACE,
        "plugin_version": str(VERSION),
        "aot": 1,
        "bits": layer.bits,
        "gelu": int(layer.gelu is not None),
    }
    op_type, dtype, after = LINEAR_F16, ir.DataType.FLOAT16, layer.quantizer
    if after is not None:
        op_type, dtype = LINEAR_I8, ir.DataType.INT8
        exact = all(id(use.node) in going for use in after.nodes[-1].outputs[0].uses())
        numbers = pack_quantizer(float(after.step if exact else _half(after.step)), float(after.shift), after.levels)
        inputs += [new_constant(graph, f"{name}.factor", after.factor)]
        inputs += [new_constant(graph, f"{name}.quantizer", numbers)]
        attributes["affine"] = int(after.affine)
    out = ir.Value()
    node = ir.Node(
        NAMESPACE, op_type, inputs, ir.convenience.convert_attributes(attributes), outputs=[out], name=matmul.name
    )
    old = layer.nodes
    read = [value for one in old for value in one.inputs]
    ir.convenience.replace_nodes_and_values(graph, old[-1], old, [node], [old[-1].outputs[0]], [out])
    out.type = ir.TensorType(dtype)
    for one in (weight, activation):
        if not one.outputs[0].uses():
            drop(graph, one)
    forget(graph, read)  # the bias, and the step and zero point of a quantizer that went
    set_constant(stored, packed)


def _half(number: np.float32) -> np.float32:
    return np.float32(np.float16(number))
