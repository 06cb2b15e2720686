"""What ONNX Runtime's optimizer leaves undone on a ViT, done on the graph's bytes: the same numbers in fewer passes.

The rewrites give the same bits on x86; on ARM64 a bias that is part of a product is added before that is rounded, so
last bits differ (``runtime.compile`` compares them on the golden images, ``runtime.parity`` at every tap). On 2 threads
of a Xeon with AMX, ONNX Runtime 1.31.1, deit_s at batch 1: 16.8 ms as optimized, 15.9 with the biases folded, 15.0 with
fused attention too (medians of 150 interleaved runs). What follows is :mod:`runtime.qkv`.
"""

from __future__ import annotations

from dataclasses import dataclass

from runtime.onnx_edit import NewNode, replace_nodes
from runtime.onnx_links import Links, closed
from runtime.onnx_wire import Node, read_graph, standard_opset

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
    links = Links(read_graph(model))
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
    links = Links(read_graph(model))
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


def _attention(links: Links, softmax: Node) -> _Attention | None:
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
    if not closed(links, parts, merge):
        return None
    name = softmax.name.rpartition("/")[0] or softmax.name
    return _Attention(name, unfold.inputs[0], shape[3], mask, first, merge, parts)


def _first_query(links: Links, queries: str) -> Node | None:
    """The Slice that makes ``queries`` of the first token's row, (B, H, 1, d) of (B, H, T, d), if there is one."""
    found = links.maker(queries, "Slice")
    bounds = [links.integers(name) for name in found.inputs[1:]] if found else []
    return found if bounds == [(0,), (1,), (2,)] else None


def _scores(links: Links, softmax: Node, added: Node | None) -> tuple[str, str]:
    """The name of the product that softmax reads, and of the constant (1, H, T, T) added to it, if there is one."""
    if added is None:
        return softmax.inputs[0], ""
    mask = next((name for name in added.inputs if name in links.graph.constant), "")
    product = next(name for name in added.inputs if name != mask)
    fits = mask and len(links.graph.constant[mask].dims) == 4
    return (product, mask) if fits else ("", "")
