"""An ONNX file, whoever wrote it, as the rules of ``toolchain.lint`` want it; and what is wrong with a bad one."""

from __future__ import annotations

import contextlib
import graphlib
import itertools
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common

from runtime.errors import IntvitError
from toolchain.rules.graph import DEQUANTIZE, QUANTIZE

_READ_HINT = "check that it is the whole .onnx file, with its external data beside it"
MOST_NODES = 1_000_000  # with every function in its place
LONG_RANGE = 1_000_000  # values; onnx writes a Range out to know shapes that depend on it


def read(path: Path) -> ir.Model:
    """An ONNX file as the rules want it: functions inlined, Constant nodes as initializers, shapes inferred.

    Raises:
        IntvitError: there is no such file, it is not ONNX, it holds no graph, a tensor's bytes are missing, lie outside
            the model's folder or are stored sparse, its shape is negative, two tensors have one name, a node reads a
            tensor that nothing makes or is of a domain for which the model declares no opset, a function cannot be put
            in its place or makes too many nodes, or a node depends on itself.
    """
    if not path.is_file():
        raise IntvitError("there is no such model", where=str(path), next="give an .onnx file or a bundle's directory")
    with _quiet():  # what onnx-ir notes while reading is raised below; where inference gives up, known types do
        model = _load(path)
        _check_whole(model, path)
        if model.functions:
            _inline(model, path)
        _sort(model, path)
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        values_too = not any(_long_range(node) for node in model.graph.all_nodes())
        common.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=values_too)(model)
    return model


def _load(path: Path) -> ir.Model:
    try:
        proto = onnx.load(path, load_external_data=False)
        model = ir.from_proto(proto)
    except OSError as error:
        raise IntvitError("cannot read the model", where=str(path), why=error.strerror or str(error)) from error
    except Exception as error:  # protobuf, onnx and onnx-ir each have their own on bytes that are no model
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise IntvitError("the file is not an ONNX model", where=str(path), why=why, next=_READ_HINT) from error
    if not len(model.graph):
        raise IntvitError("the model holds no graph", where=str(path), why="no node in it", next=_READ_HINT)
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        ir.external_data.set_base_dir(graph, path.absolute().parent)  # without one, external data may lie anywhere
    if twice := [name for name, times in Counter(each.name for each in proto.graph.initializer).items() if times > 1]:
        raise IntvitError("two tensors of the model have one name", where=f"{path}: {twice[0]}", next=_READ_HINT)
    return model


def _inline(model: ir.Model, path: Path) -> None:
    if _inlined_nodes(model) > MOST_NODES:
        raise IntvitError(
            "the functions of the model make too many nodes",
            where=str(path),
            why=f"with each in its place there are more than {MOST_NODES}",
            next="export the model without functions that call each other many times over",
        )
    try:
        common.InlinePass()(model)
    except Exception as error:  # a RuntimeError around whatever was met: its first cause says what that was
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise IntvitError(
            "a function of the model cannot be put in its place", where=str(path), why=str(cause), next=_READ_HINT
        ) from error


def _inlined_nodes(model: ir.Model) -> int:
    """How many nodes the graph, or a function, has once every function stands in its place, as far as MOST_NODES + 1;
    0 where they call in a circle, which the inliner says itself.
    """
    used = {name: _operators(function.all_nodes()) for name, function in model.functions.items()}
    try:
        order = list(
            graphlib.TopologicalSorter(
                {name: used.keys() & found.keys() for name, found in used.items()}
            ).static_order()
        )
    except graphlib.CycleError:
        return 0
    sizes: dict[ir.OperatorIdentifier, int] = {}
    for name in order:
        size = sum(times * sizes.get(called, 1) for called, times in used[name].items())
        sizes[name] = min(size, MOST_NODES + 1)
    main = _operators(model.graph.all_nodes())
    return max(sum(times * sizes.get(called, 1) for called, times in main.items()), *sizes.values())


def _operators(nodes: Iterable[ir.Node]) -> Counter[ir.OperatorIdentifier]:
    return Counter(node.op_identifier() for node in nodes)


def _long_range(node: ir.Node) -> bool:
    """Whether the node counts further than the inference of shapes should be made to write out."""
    if node.op_type != "Range" or len(node.inputs) != 3:
        return False
    ends = [value.const_value for value in node.inputs if value is not None and value.const_value is not None]
    if len(ends) != 3 or any(end.size != 1 or end.numpy().dtype.kind not in "iuf" for end in ends):
        return False
    start, limit, delta = (float(end.numpy().item()) for end in ends)
    return not abs(limit - start) <= LONG_RANGE * abs(delta)


def _sort(model: ir.Model, path: Path) -> None:
    try:
        model.graph.sort()  # stable: nothing moves where the nodes are in ONNX's order
    except ValueError as error:
        raise IntvitError("the nodes of the model form a circle", where=str(path), next=_READ_HINT) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    log = logging.getLogger("onnx_ir")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)


def _check_whole(model: ir.Model, path: Path) -> None:
    for graph in model.graphs():
        _check_stored(graph, path)
    for node in itertools.chain(model.graph.all_nodes(), *(each.all_nodes() for each in model.functions.values())):
        _check_attributes(node, path)
    opset = model.opset_imports.get("", onnx.defs.onnx_opset_version())
    domains = {_alias(domain) for domain in model.opset_imports}
    for node in model.graph.all_nodes():
        fault = _malformed(node, opset)
        if not fault and _alias(node.domain) not in domains:
            fault = f"the model declares no opset for {node.domain or 'ai.onnx'}, whose {node.op_type} it is"
        if fault:
            label = f"{path}: {node.name or node.op_type}"
            raise IntvitError("a node is not what ONNX defines", where=label, why=fault, next=_READ_HINT)
        for value in node.inputs:
            if value is None or value.producer() is not None or value.is_graph_input() or value.is_initializer():
                continue
            if value.name in _sparse(path):
                raise IntvitError(
                    "a tensor of the model is stored sparse, which is not read",
                    where=f"{path}: {value.name}",
                    next="store it dense, as an initializer of the graph",
                )
            raise IntvitError(
                "a node reads a tensor that nothing makes",
                where=f"{path}: {node.name or node.op_type}",
                why=f"{value.name!r} is no input, no initializer and no node's output",
                next=_READ_HINT,
            )


def _check_stored(graph: ir.Graph, path: Path) -> None:
    for name, stored in graph.initializers.items():
        if stored.const_value is None:
            raise IntvitError("a tensor of the model has no values", where=f"{path}: {name}", next=_READ_HINT)
        _check_tensor(stored.const_value, f"{path}: {name}")


def _check_attributes(node: ir.Node, path: Path) -> None:
    for name, attribute in node.attributes.items():
        if not attribute.is_ref() and attribute.type in (ir.AttributeType.TENSOR, ir.AttributeType.TENSORS):
            one = attribute.type == ir.AttributeType.TENSOR
            for tensor in [attribute.as_tensor()] if one else attribute.as_tensors():
                _check_tensor(tensor, f"{path}: {name} of {node.name or node.op_type}")


def _check_tensor(tensor: ir.TensorProtocol, label: str) -> None:
    try:
        shape = tensor.numpy().shape
        if shape != tuple(tensor.shape):
            raise ValueError(f"its shape is {list(tensor.shape)}")
    except Exception as error:  # a missing file, too few bytes, an unknown type: each reader has its own
        raise IntvitError(
            "a tensor of the model cannot be read", where=label, why=str(error), next=_READ_HINT
        ) from error


def _sparse(path: Path) -> set[str]:
    """The names of the graph's sparse initializers, which onnx-ir drops."""
    return {tensor.values.name for tensor in onnx.load(path, load_external_data=False).graph.sparse_initializer}


def _alias(domain: str) -> str:
    """ONNX's own domain has two names."""
    return "" if domain == "ai.onnx" else domain


def _malformed(node: ir.Node, opset: int) -> str:
    """How a node of ONNX's own breaks its operator's signature, as far as the rules rely on it; empty where not."""
    texts = [node.op_type, node.domain, node.name or "", *(value.name or "" for value in node.outputs)]
    if not all(isinstance(text, str) for text in texts):
        return "one of its names is not UTF-8"
    if not onnx.defs.has(node.op_type) or (node.domain and node.op_type not in (QUANTIZE, DEQUANTIZE)):
        return ""
    try:
        schema = onnx.defs.get_schema(node.op_type, opset)
    except onnx.defs.SchemaError:  # younger than the opset, which is a rule's business
        schema = onnx.defs.get_schema(node.op_type)
    if len(node.inputs) < schema.min_input or not node.outputs:
        return f"{node.op_type} has {len(node.inputs)} inputs and {len(node.outputs)} outputs"
    for name, attribute in node.attributes.items():
        declared = schema.attributes.get(name)
        kind = str(declared.type).rsplit(".", 1)[-1] if declared is not None else attribute.type.name
        if kind != attribute.type.name:
            return f"its attribute {name} is {attribute.type.name}, not {kind}"
    return ""
