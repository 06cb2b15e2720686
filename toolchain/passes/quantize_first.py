"""A quantizer goes before the Reshapes and Transposes that lead to it, with the Clip of a narrow one.

Element by element, so the integers are the same to the last bit; what is moved then has one byte an element instead of
four, and the quantizer stands beside the arithmetic that makes its input, where a runtime can fuse the two.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from runtime.quantizers import MOVES
from toolchain.passes.match import constant, only_consumer


class QuantizeFirst(ir.passes.InPlacePass):
    """``Reshape -> Transpose -> [Clip] -> Q`` becomes ``[Clip] -> Q -> Reshape -> Transpose``.

    The tensor that the quantizer made keeps its name and its shape: the last of the moved nodes makes it now.

    Args:
        where: whether to, by the value that would be quantized; default: always.
    """

    def __init__(self, where: Callable[[ir.Value], bool] = lambda source: True) -> None:
        self.where = where

    def requires(self, model: ir.Model) -> None:
        """A quantizer that is to go first has one step a tensor: no axis follows it through a move."""
        for quantize in model.graph:
            if self._moves(quantize):
                sizes = [array.size for array in map(constant, quantize.inputs[1:]) if array is not None]
                if len(sizes) != len(quantize.inputs) - 1 or any(size != 1 for size in sizes):
                    raise ir.passes.PreconditionError(f"{quantize.name} has no single constant step")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every quantizer that reads a move."""
        found = [(node, moves) for node in model.graph if (moves := self._moves(node))]
        for quantize, moves in found:
            _exchange(model.graph, quantize, moves)
        return ir.passes.PassResult(model, bool(found))

    def ensures(self, model: ir.Model) -> None:
        """No quantizer of those that were to go first reads a move whose result nothing else reads."""
        for node in model.graph:
            if self._moves(node):
                raise ir.passes.PostconditionError(f"{node.name} still quantizes what a move made")

    def _moves(self, node: ir.Node) -> list[ir.Node]:
        moves = _moves_before(node)
        source = moves[0].inputs[0] if moves else None
        return moves if source is not None and self.where(source) else []


def _clip_before(quantize: ir.Node) -> ir.Node | None:
    value = quantize.inputs[0]
    clip = value.producer() if value is not None else None
    if value is None or clip is None or only_consumer(value, "QuantizeLinear") is None:
        return None
    return clip if clip.op_type == "Clip" else None


def _moves_before(quantize: ir.Node) -> list[ir.Node]:
    """The moves that make the input of a quantizer, or of its Clip, and nothing else's; in order, the nearest last."""
    if quantize.op_type != "QuantizeLinear":
        return []
    moves: list[ir.Node] = []
    value = (_clip_before(quantize) or quantize).inputs[0]
    while value is not None and len(list(value.uses())) == 1 and not value.is_graph_output():
        move = value.producer()
        if move is None or move.op_type not in MOVES:
            break
        moves.insert(0, move)
        value = move.inputs[0]
    return moves


def _exchange(graph: ir.Graph, quantize: ir.Node, moves: list[ir.Node]) -> None:
    source, levels, last = moves[0].inputs[0], quantize.outputs[0], moves[-1].outputs[0]
    going = [node for node in (_clip_before(quantize), quantize) if node is not None]
    going[0].replace_input_with(0, source)
    levels.replace_all_uses_with(last)
    moves[0].replace_input_with(0, levels)
    for node in going:
        graph.remove(node)
        moves[0].prepend(node)
    last.name, levels.name = levels.name, f"{quantize.name}:0"
    for value in (node.outputs[0] for node in (*going, *moves)):
        value.shape = None
    for move in moves:
        move.outputs[0].type = levels.type
