"""What OpenVINO executes, layer by layer, read from its runtime model and profile, and why a layer is not integer."""

from __future__ import annotations

from runtime import machine
from runtime.backends.openvino import OpenVinoOptions, compiled_model, fixed, load, properties
from runtime.backends.openvino_nodes import ExecutedNode, executed_nodes, executing, execution
from runtime.bundle import Bundle
from runtime.execution import warnings
from runtime.manifest import Layer
from runtime.onnx_wire import INT4, Graph, read_graph
from toolchain.inspection import Inspection, LayerRow


def inspect(bundle: Bundle, threads: int | None = None) -> Inspection:
    """Compile the bundle's graph as its engine does for one image, run it, and find every layer in what ran.

    Raises:
        IntvitError: OpenVINO is not installed, or the bundle has no graph for it that loads.
    """
    path = bundle.file("graph", "openvino")
    source = path.read_bytes()
    config = properties(threads or machine.available_cores(), OpenVinoOptions()) | {"PERF_COUNT": "YES"}
    compiled = compiled_model(fixed(load(source, where=str(path)), 1), config, where=str(path))
    nodes = executed_nodes(compiled, bundle.golden().images[:1], timed=True)
    stored = read_graph(source)
    rows = tuple(_row(layer, nodes, stored) for layer in bundle.manifest.layers)
    found = execution(nodes, bundle.manifest.layers)
    reasons = [
        f"{row.name}: {_reason(layer, stored)}"
        for layer, row in zip(bundle.manifest.layers, rows, strict=True)
        if layer.activation_bits <= 8 and not row.integer
    ]
    return Inspection(
        layers=rows,
        operators=dict(sorted(found.operators.items())),
        warnings=(*warnings(found), *reasons),
        milliseconds=sum(node.milliseconds or 0.0 for node in nodes),
    )


def _row(layer: Layer, nodes: list[ExecutedNode], stored: Graph) -> LayerRow:
    node = executing(layer, nodes)
    if node is None:
        return LayerRow.of(layer, stored, "not found in the runtime model", integer=False)
    return LayerRow.of(layer, stored, node.kernel, node.integer, node.milliseconds)


def _reason(layer: Layer, stored: Graph) -> str:
    """Why a layer that should be integer is not, as far as the stored graph and the machine tell."""
    product = next((node for node in stored.nodes if node.name == layer.tensor), None)
    if product is None:
        return f"the graph has no node {layer.tensor!r}"
    producers = [stored.producer.get(name) for name in product.inputs]
    if any(node is None or node.op_type != "DequantizeLinear" for node in producers):
        return "an operand of its product is not dequantized from integers"
    sources = [stored.constant.get(node.inputs[0]) for node in producers if node is not None]
    if any(constant is not None and constant.data_type == INT4 for constant in sources):
        return "its INT4 weights are dequantized directly; a Cast to INT8 is missing"
    if machine.saturating_u8s8():
        return "this CPU has neither VNNI nor AMX; int8 products are not exact there, so it runs in float"
    return "OpenVINO chose a float kernel; the runtime model gives no reason"
