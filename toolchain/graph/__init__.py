"""CalibratedModel -> canonical QDQ graph, and the float32 twin, emitted node by node with onnx-ir."""

from toolchain.graph.emit import canonical_graph, float_graph

__all__ = ["canonical_graph", "float_graph"]
