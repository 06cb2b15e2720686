"""Where q, k and v come from in ONNX Runtime: one product inside the attention, or three products before it.

Both give the same bits. One product is faster on several threads, three on one (docs/decisions/0039-lanes.md).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from runtime.onnx_edit import NewNode, NewTensor, replace_nodes
from runtime.onnx_links import Links, closed
from runtime.onnx_wire import FLOAT, INT8, UINT8, Graph, Initializer, Node, read_graph

_BIAS = 6  # inputs of com.microsoft.MatMulIntegerToFloat: A, B, two scales, two zero points, bias
_WIDTH = {FLOAT: 4, UINT8: 1, INT8: 1}  # bytes an element of what is cut in three


def join_qkv(model: bytes) -> bytes:
    """Every ``MatMulIntegerToFloat`` that is only split for an ``Attention`` joins it as one ``QAttention``.

    That contrib operator writes q, k and v where its attention reads them, so the split costs nothing. Its CPU kernel
    takes unsigned activations and no score bias; the scale of the scores must be 1, as toolchain.graph has it.
    https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.QAttention

    Raises:
        IntvitError: the bytes are malformed.
    """
    links = Links(read_graph(model))
    places: dict[int, list[NewNode]] = {}
    for node in links.graph.nodes:
        parts = _split_product(links, node) if node.op_type == "Attention" and not node.domain else None
        if parts is None:
            continue
        product, split = parts
        a, w, a_scale, w_scale, a_zero, w_zero, bias = product.inputs
        heads = {"num_heads": node.integers["q_num_heads"][0], "scale": 1.0}
        inputs = (a, w, bias, a_scale, w_scale, "", a_zero, w_zero)
        joined = NewNode("QAttention", product.name, inputs, node.outputs, product.domain, heads)
        places |= {links.index[id(product)]: [], links.index[id(split)]: [], links.index[id(node)]: [joined]}
    return replace_nodes(model, places) if places else model


def part_qkv(model: bytes) -> bytes:
    """Every ``QAttention`` of :func:`join_qkv` as three ``MatMulIntegerToFloat`` and an ``Attention``.

    ``QAttention`` multiplies head by head and packs the activations anew for each; three products of the whole width
    do not, and there is no split between them and the attention. ``model`` itself where there is none.

    Raises:
        IntvitError: the bytes are malformed.
    """
    graph = read_graph(model)
    places: dict[int, list[NewNode]] = {}
    tensors: dict[str, NewTensor] = {}
    gone: set[str] = set()
    for number, node in enumerate(graph.nodes):
        if node.op_type != "QAttention" or not _parts_whole(graph, node):
            continue
        a, w, bias, a_scale, w_scale, _, a_zero, w_zero = node.inputs
        whole = {name: graph.constant[name] for name in (w, bias, w_scale, w_zero)}
        width = whole[bias].dims[0]
        wide = [name for name, constant in whole.items() if constant.dims and constant.dims[-1] == width]
        nodes, made = list[NewNode](), list[str]()
        for place, letter in enumerate("qkv"):
            names = {name: f"{name}/{letter}" if name in wide else name for name in whole}
            tensors |= {names[name]: _third(whole[name], names[name], place) for name in wide}
            inputs = (a, names[w], a_scale, names[w_scale], a_zero, names[w_zero], names[bias])
            made.append(f"{node.name}/{letter}:0")
            # The layer keeps its name with the first product.
            called = f"{node.name}/{letter}" if place else node.name
            nodes.append(NewNode("MatMulIntegerToFloat", called, inputs, (made[-1],), node.domain))
        count = node.integers["num_heads"][0]
        heads = {"q_num_heads": count, "kv_num_heads": count, "scale": 1.0}
        nodes.append(NewNode("Attention", f"{node.name}/Attention", tuple(made), node.outputs, attributes=heads))
        places[number] = nodes
        gone |= set(wide)
    if not places:
        return model
    kept = {name for number, node in enumerate(graph.nodes) if number not in places for name in node.inputs}
    return replace_nodes(model, places, drop=gone - kept, add=list(tensors.values()))


def carriers(node: Node, graph: Graph) -> Sequence[Node]:
    """The nodes of ``graph``, made by :func:`part_qkv`, that carry the layer which ``node`` carried before.

    Three for a ``QAttention`` that is parted there, else the one that makes the same tensor.
    """
    found = graph.producer[node.outputs[0]]
    if node.op_type == "QAttention" and found.op_type == "Attention":
        return [graph.producer[name] for name in found.inputs]
    return [found]


def _parts_whole(graph: Graph, node: Node) -> bool:
    """Whether all that has to be cut is there to cut: constants, stored raw, of three equal parts."""
    if len(node.inputs) != 8 or node.inputs[5] or node.floats.get("scale") != 1.0:
        return False
    found = [graph.constant.get(node.inputs[place]) for place in (1, 2, 4, 7)]
    if any(constant is None or constant.external for constant in found) or "num_heads" not in node.integers:
        return False
    constants = [constant for constant in found if constant is not None]
    width = constants[1].dims[0] if len(constants[1].dims) == 1 else 0
    wide = [constant for constant in constants if constant.dims and constant.dims[-1] == width]
    whole = all(len(one.raw) == _WIDTH.get(one.data_type, 0) * int(np.prod(one.dims)) for one in wide)
    return width > 0 and width % 3 == 0 and constants[0] in wide and whole


def _third(constant: Initializer, name: str, place: int) -> NewTensor:
    """Columns ``place`` / 3 to (``place`` + 1) / 3 of a constant."""
    rows, width = int(np.prod(constant.dims[:-1])), constant.dims[-1] // 3
    table = np.frombuffer(constant.raw, np.uint8).reshape(rows, 3, width * _WIDTH[constant.data_type])
    return NewTensor(name, (*constant.dims[:-1], width), constant.data_type, table[:, place].tobytes())


def _split_product(links: Links, attention: Node) -> tuple[Node, Node] | None:
    """The integer product and the Split that make q, k and v of an attention, where nobody else reads either."""
    split = links.maker(attention.inputs[0], "Split", axis=(2,))
    product = links.graph.producer.get(split.inputs[0]) if split else None
    if split is None or product is None or product.op_type != "MatMulIntegerToFloat":
        return None
    if attention.inputs != split.outputs or len(attention.outputs) != 1 or len(product.inputs) <= _BIAS:
        return None
    zero = links.graph.constant.get(product.inputs[4])
    heads = [attention.integers.get(name) for name in ("q_num_heads", "kv_num_heads")]
    fits = zero is not None and zero.data_type == UINT8 and heads[0] and heads[0] == heads[1]
    if not fits or attention.floats.get("scale") != 1.0 or not closed(links, (product, split, attention), attention):
        return None
    return product, split
