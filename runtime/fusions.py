"""What ONNX Runtime's optimizer leaves undone on a ViT, done on the graph's bytes: the same numbers in fewer passes.

The rewrites give the same bits (``runtime.compile`` compares them on the golden images, ``runtime.parity`` at every
tap). On 2 threads of a Xeon with AMX, ONNX Runtime 1.31.1, deit_s at batch 1: 16.8 ms as optimized, 15.9 with the
biases folded, 15.0 with fused attention too (medians of 150 interleaved runs); in another such run, 15.8 before and
15.4 after the qkv product went into the attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from runtime.onnx_edit import NewNode, replace_nodes
from runtime.onnx_wire import UINT8, Graph, Node, read_graph, standard_opset

VERSION = 2  # part of a compiled engine's key: raise it when the result of these rewrites changes
OWN_OPSET = 21  # of every graph toolchain.graph emits; what is older was not made by us, and stays as it is
ATTENTION_OPSET = 23  # https://onnx.ai/onnx/operators/onnx__Attention.html
_LAST_AXIS = ((-1,), (3,))
_BIAS = 6  # the optional input of com.microsoft.MatMulIntegerToFloat: A, B, two scales, two zero points, bias


def fuse_attention(model: bytes) -> bytes:
    """Every self-attention written in primitive operators as one ``Attention`` (opset 23), which ORT has from 1.24.

    What is matched is what toolchain.graph emits: a fused qkv (B, T, 3 H d), split into heads, the scale already in the
    query weights, an optional constant added to the scores, softmax, and the heads merged again. Quantized products
    (``+attn8``) and Swin's shifted windows, whose mask differs from window to window, stay as they are.

    Raises:
        IntvitError: the bytes are malformed.
    """
    if standard_opset(model) < OWN_OPSET:
        return model
    links = _Links(read_graph(model))
    places: dict[int, list[NewNode]] = {}
    for node in links.graph.nodes:
        found = _attention(links, node) if node.op_type == "Softmax" else None
        if found is not None:
            places |= {links.index[id(part)]: [] for part in found.parts}
            places[links.index[id(found.merge)]] = found.fused()
    return replace_nodes(model, places, least_opset=ATTENTION_OPSET) if places else model


def fold_biases(model: bytes) -> bytes:
    """Every ``MatMulIntegerToFloat`` followed by the addition of a constant row takes that row as its own bias.

    Raises:
        IntvitError: the bytes are malformed.
    """
    links = _Links(read_graph(model))
    constant = links.graph.constant
    places: dict[int, list[NewNode]] = {}
    flat = []
    for node in links.graph.nodes:
        add = (
            links.reader(node, "Add") if node.op_type == "MatMulIntegerToFloat" and len(node.inputs) <= _BIAS else None
        )
        if add is None or node.inputs[1] not in constant:
            continue
        bias = next(name for name in add.inputs if name != node.outputs[0])
        row = (1, 1, constant[node.inputs[1]].dims[-1])
        if bias not in constant or constant[bias].dims != row or len(links.readers[bias]) != 1:
            continue
        inputs = node.inputs + ("",) * (_BIAS - len(node.inputs)) + (bias,)
        places[links.index[id(node)]] = [NewNode(node.op_type, node.name, inputs, add.outputs, node.domain)]
        places[links.index[id(add)]] = []
        flat.append(bias)
    return replace_nodes(model, places, flatten=flat) if places else model


def join_qkv(model: bytes) -> bytes:
    """Every ``MatMulIntegerToFloat`` that is only split for an ``Attention`` joins it as one ``QAttention``.

    That contrib operator writes q, k and v where its attention reads them, so the split costs nothing. Its CPU kernel
    takes unsigned activations and no score bias; the scale of the scores must be 1, as toolchain.graph has it.
    https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.QAttention

    Raises:
        IntvitError: the bytes are malformed.
    """
    links = _Links(read_graph(model))
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


def _split_product(links: _Links, attention: Node) -> tuple[Node, Node] | None:
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
    if not fits or attention.floats.get("scale") != 1.0 or not _closed(links, (product, split, attention), attention):
        return None
    return product, split


@dataclass(frozen=True)
class _Links:
    """A graph with the way from each tensor to those who read it."""

    graph: Graph

    @cached_property
    def index(self) -> dict[int, int]:
        """Each node's number in file order, by ``id``."""
        return {id(node): number for number, node in enumerate(self.graph.nodes)}

    @cached_property
    def readers(self) -> dict[str, list[Node]]:
        """The nodes that read each tensor."""
        found: dict[str, list[Node]] = {}
        for node in self.graph.nodes:
            for name in node.inputs:
                found.setdefault(name, []).append(node)
        return found

    def maker(self, name: str, op_type: str, **integers: tuple[int, ...]) -> Node | None:
        """The node that makes ``name``, if it is of that type and has those attributes."""
        return _fitting(self.graph.producer.get(name), op_type, integers)

    def reader(self, node: Node, op_type: str, **integers: tuple[int, ...]) -> Node | None:
        """The only node that reads what ``node`` makes, if it is of that type and has those attributes."""
        found = self.readers.get(node.outputs[0], [])
        alone = len(found) == 1 and node.outputs[0] not in self.graph.outputs
        return _fitting(found[0], op_type, integers) if alone else None

    def integers(self, name: str) -> tuple[int, ...]:
        """The values of an int64 constant, empty for anything else."""
        return self.graph.constant[name].integers() if name in self.graph.constant else ()


def _fitting(node: Node | None, op_type: str, integers: dict[str, tuple[int, ...]]) -> Node | None:
    if node is None or node.op_type != op_type or node.domain:
        return None
    return node if all(node.integers.get(name) == value for name, value in integers.items()) else None


@dataclass(frozen=True)
class _Attention:
    """One match: ``parts`` are all its nodes, ``merge`` the last of them; ``source`` is the fused qkv.

    ``first`` is the Slice that leaves the first query alone, in a network's last block.
    """

    name: str
    source: str
    heads: int
    mask: str
    first: Node | None
    merge: Node
    parts: tuple[Node, ...]

    def fused(self) -> list[NewNode]:
        q, k, v = (f"{self.name}.{part}" for part in "qkv")
        sections = {"axis": 2, "num_outputs": 3}
        nodes = [NewNode("Split", f"{self.name}/Split", (self.source,), (q, k, v), attributes=sections)]
        if self.first is not None:
            _, start, one, _ = self.first.inputs
            q = f"{self.name}.q1"
            # The tokens are axis 1 now: the constant that ends the slice is also the number of its axis.
            nodes.append(NewNode("Slice", self.first.name, (f"{self.name}.q", start, one, one), (q,)))
        inputs = (q, k, v, self.mask) if self.mask else (q, k, v)
        heads = {"q_num_heads": self.heads, "kv_num_heads": self.heads, "scale": 1.0}
        return [*nodes, NewNode("Attention", self.name, inputs, self.merge.outputs, attributes=heads)]


def _attention(links: _Links, softmax: Node) -> _Attention | None:
    """The self-attention around a Softmax, or None where it is not exactly the pattern."""
    added = links.maker(softmax.inputs[0], "Add")
    product, mask = _scores(links, softmax, added)
    scores, mixed = links.maker(product, "MatMul"), links.reader(softmax, "MatMul")
    if softmax.integers.get("axis", (-1,)) not in _LAST_AXIS or scores is None or mixed is None:
        return None
    turned = links.maker(scores.inputs[1], "Transpose", perm=(0, 1, 3, 2))
    middle = links.reader(mixed, "Transpose", perm=(0, 2, 1, 3))
    merge = links.reader(middle, "Reshape") if middle else None
    if turned is None or middle is None or merge is None:
        return None
    first = _first_query(links, scores.inputs[0])
    queries = first.inputs[0] if first else scores.inputs[0]
    picks = [links.maker(name, "Squeeze") for name in (queries, turned.inputs[0], mixed.inputs[1])]
    split = links.maker(picks[0].inputs[0], "Split", axis=(0,)) if picks[0] else None
    if split is None or tuple(pick.inputs[0] for pick in picks if pick) != split.outputs:
        return None
    heads_first = links.maker(split.inputs[0], "Transpose", perm=(2, 0, 3, 1, 4))
    unfold = links.maker(heads_first.inputs[0], "Reshape") if heads_first else None
    if unfold is None:
        return None
    shape, merged = links.integers(unfold.inputs[1]), links.integers(merge.inputs[1])
    if len(shape) != 5 or shape[2] != 3 or merged != (-1, 1 if first else shape[1], shape[3] * shape[4]):
        return None
    nodes = (unfold, heads_first, split, *picks, first, turned, scores, added, softmax, mixed, middle, merge)
    parts = tuple(node for node in nodes if node is not None)
    if not _closed(links, parts, merge):
        return None
    name = softmax.name.rpartition("/")[0] or softmax.name
    return _Attention(name, unfold.inputs[0], shape[3], mask, first, merge, parts)


def _first_query(links: _Links, queries: str) -> Node | None:
    """The Slice that makes ``queries`` of the first token's row, (B, H, 1, d) of (B, H, T, d), if there is one."""
    found = links.maker(queries, "Slice")
    bounds = [links.integers(name) for name in found.inputs[1:]] if found else []
    return found if bounds == [(0,), (1,), (2,)] else None


def _scores(links: _Links, softmax: Node, added: Node | None) -> tuple[str, str]:
    """The name of the product that softmax reads, and of the constant (1, H, T, T) added to it, if there is one."""
    if added is None:
        return softmax.inputs[0], ""
    mask = next((name for name in added.inputs if name in links.graph.constant), "")
    product = next(name for name in added.inputs if name != mask)
    fits = mask and len(links.graph.constant[mask].dims) == 4
    return (product, mask) if fits else ("", "")


def _closed(links: _Links, parts: tuple[Node, ...], last: Node) -> bool:
    """Nothing but these nodes reads what they make, apart from what ``last`` makes."""
    inside = {id(part) for part in parts}
    made = {name for part in parts if part is not last for name in part.outputs}
    read = {name for name in made for node in links.readers.get(name, ()) if id(node) not in inside}
    return not read and made.isdisjoint(links.graph.outputs)
