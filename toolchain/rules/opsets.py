"""Rules on the opset a model declares: what its nodes use must be in it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping

import onnx
import onnx_ir as ir

from toolchain.rules.graph import nodes
from toolchain.rules.rule import Hit, error, rule, warning

_CONVERT = "export with the opset named, or convert: onnx.version_converter.convert_version"
_VARIADIC = onnx.defs.OpSchema.FormalParameterOption.Variadic


@rule(
    "opset",
    "operators and types that are not in the opset the model declares",
    next=_CONVERT,
    ort=error("the model does not load: INVALID_GRAPH (ONNX Runtime 1.31.1)"),
    openvino=warning("OpenVINO 2026.4.1 ran those that were tried, but ONNX does not define the graph"),
    tensorrt=warning(
        "TensorRT-RTX 1.7.1's parser takes them, but ONNX does not define the graph: other readers will not"
    ),
)
def opset(model: ir.Model) -> Iterator[Hit]:
    """A node of ONNX's own whose operator is younger or withdrawn, or has no such types there."""
    for node, declared, schema in _own(model):
        if schema is None or schema.deprecated:
            yield Hit(node, _told(node, declared, node.op_type, lambda later: not later.deprecated))
            continue
        kind = _foreign_type(node, schema)
        if kind:
            yield Hit(node, _told(node, declared, f"{node.op_type} of {kind}", functools.partial(_takes_types, node)))


@rule(
    "opset-attribute",
    "attributes and inputs that the operator does not have in the opset the model declares",
    next=_CONVERT,
    ort=error("the model does not load: INVALID_GRAPH (ONNX Runtime 1.32.0)"),
    openvino=error(
        "axis and block_size are refused; others may be ignored without a word, as Clip's min at opset 13, whose "
        "output was wrong by its own size (OpenVINO 2026.4.1)"
    ),
    tensorrt=warning("TensorRT-RTX 1.7.1's parser takes them, heeded or not: ONNX does not define the graph"),
)
def opset_attribute(model: ir.Model) -> Iterator[Hit]:
    """A node of ONNX's own with an attribute or an input that came later, or is gone."""
    for node, declared, schema in _own(model):
        if schema is None or schema.deprecated:
            continue
        name = next((name for name in node.attributes if name not in schema.attributes), None)
        if name is not None:
            what = f"the attribute {name} of {node.op_type}"
            yield Hit(node, _told(node, declared, what, functools.partial(_has_attribute, name)))
        elif len(node.inputs) > schema.max_input:
            what = f"{node.op_type} with {len(node.inputs)} inputs"
            yield Hit(node, _told(node, declared, what, functools.partial(_takes_inputs, len(node.inputs))))


@functools.lru_cache(maxsize=1)
def history() -> Mapping[str, list[onnx.defs.OpSchema]]:
    """Every operator of ONNX's own domain and its schemas, oldest first."""
    found: dict[str, list[onnx.defs.OpSchema]] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "":
            found.setdefault(schema.name, []).append(schema)
    return {name: sorted(schemas, key=lambda schema: schema.since_version) for name, schemas in found.items()}


def _own(model: ir.Model) -> Iterator[tuple[ir.Node, int, onnx.defs.OpSchema | None]]:
    """The nodes of ONNX's own, the opset the model declares, and the operator's schema there if it has one."""
    declared = model.opset_imports.get("", model.opset_imports.get("ai.onnx"))
    for node in nodes(model):
        if declared is None or node.domain not in ("", "ai.onnx") or node.op_type not in history():
            continue
        schemas = [schema for schema in history()[node.op_type] if schema.since_version <= declared]
        if not schemas and node.op_type == "LayerNormalization":
            continue  # ONNX Runtime has it from opset 1 on, and its optimizer writes it; both other engines read it
        yield node, declared, schemas[-1] if schemas else None


def _told(node: ir.Node, declared: int, what: str, fits: Callable[[onnx.defs.OpSchema], bool]) -> str:
    for schema in history()[node.op_type]:
        if schema.since_version > declared and fits(schema):
            return f"{what} needs opset {schema.since_version}, the model declares {declared}"
    return f"{what} is not in opset {declared} any more"


def _foreign_type(node: ir.Node, schema: onnx.defs.OpSchema) -> str:
    """The first type of an input or output that the operator does not take there; empty where there is none."""
    for values, parameters in ((node.inputs, schema.inputs), (node.outputs, schema.outputs)):
        for index, value in enumerate(values):
            if value is None or not isinstance(value.type, ir.TensorType) or not parameters:
                continue
            parameter = parameters[min(index, len(parameters) - 1)]
            if index >= len(parameters) and parameter.option != _VARIADIC:
                continue
            kind = value.type.dtype
            if kind != ir.DataType.UNDEFINED and f"tensor({kind.name.lower()})" not in parameter.types:
                return kind.name
    return ""


def _takes_types(node: ir.Node, schema: onnx.defs.OpSchema) -> bool:
    return not _foreign_type(node, schema)


def _has_attribute(name: str, schema: onnx.defs.OpSchema) -> bool:
    return name in schema.attributes


def _takes_inputs(count: int, schema: onnx.defs.OpSchema) -> bool:
    return count <= schema.max_input
