"""What the tests of rewritten ONNX graphs share: graphs from text, what is in them, what they give."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnxruntime as ort
import pytest
from onnx import numpy_helper, parser

from runtime.backends.ort import FUSED_ATTENTION, make_session
from runtime.onnx_wire import UINT8, read_graph

needs_attention = pytest.mark.skipif(
    tuple(int(part) for part in ort.__version__.split(".")[:2]) < FUSED_ATTENTION,
    reason=f"ONNX Runtime {ort.__version__} has no fused attention",
)


def model(text: str) -> bytes:
    """The parser stores lists, an exported or optimized graph raw values; the mask is drawn here."""
    made = parser.parse_model(text)
    for tensor in made.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
    mask = np.random.default_rng(0).standard_normal((1, 2, 5, 5)).astype(np.float32)
    made.graph.initializer.append(numpy_helper.from_array(mask, "mask"))
    return bytes(made.SerializeToString())


def kinds(data: bytes) -> Counter[str]:
    return Counter(node.op_type for node in read_graph(data).nodes)


def unsigned_activations(data: bytes) -> bool:
    """x86 makes the activations unsigned; elsewhere the product of q, k and v stays by itself."""
    graph = read_graph(data)
    zeros = [graph.constant[node.inputs[2]] for node in graph.nodes if node.op_type == "QuantizeLinear"]
    return any(zero.data_type == UINT8 for zero in zeros)


def outputs(data: bytes, feeds: dict[str, np.ndarray]) -> np.ndarray:
    found: np.ndarray = make_session(data, threads=1, optimize=False).run(None, feeds)[0]
    return found
