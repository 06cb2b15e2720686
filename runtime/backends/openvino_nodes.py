"""What OpenVINO really executes, read back from a compiled model: kernel, precision and time of every node."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from runtime.backends.base import Images
from runtime.execution import Execution, Fallback
from runtime.manifest import Layer

PRODUCTS = frozenset({"FullyConnected", "MatMul", "Convolution"})
_NOT_RUN = frozenset({"Const", "Input", "Output"})
_WARM_UP, _TIMED = 3, 15


@dataclass(frozen=True)
class ExecutedNode:
    """One node of OpenVINO's runtime model.

    Attributes:
        name: OpenVINO's own name for it.
        kind: "FullyConnected", "MVN", "Subgraph" and so on.
        kernel: the primitive, as in ``brgemm_avx512_amx_i8``; it ends in the type of the activations it reads.
        sources: the nodes of the ONNX file it was fused from.
        milliseconds: median over the timed calls; None where it was not timed.
    """

    name: str
    kind: str
    kernel: str
    sources: tuple[str, ...]
    milliseconds: float | None = None

    @property
    def integer(self) -> bool:
        """Whether it multiplies integers. Its weights' type would not tell: INT4 ones are decompressed to float."""
        return self.kind in PRODUCTS and self.kernel.rpartition("_")[2].lower() in ("i8", "u8")


def executed_nodes(compiled: Any, images: Images, *, timed: bool = False) -> list[ExecutedNode]:
    """The nodes that an ``openvino.CompiledModel`` runs on ``images`` (N, C, H, W), in order.

    The primitives are chosen at the first call, so there is one, and some more where ``timed``; the model must
    then have been compiled with PERF_COUNT.
    """
    request = compiled.create_infer_request()
    times: dict[str, list[float]] = {}
    for call in range(_WARM_UP + _TIMED if timed else 1):
        request.infer({0: np.ascontiguousarray(images)})
        if timed and call >= _WARM_UP:
            for entry in request.profiling_info:
                times.setdefault(entry.node_name, []).append(entry.real_time.total_seconds() * 1e3)
    found = []
    for operation in compiled.get_runtime_model().get_ordered_ops():
        about = {key: value.astype(str) for key, value in operation.get_rt_info().items() if key in _KEYS}
        name, kind = operation.get_friendly_name(), about.get("layerType", "")
        if kind not in _NOT_RUN:
            sources = tuple(filter(None, about.get("originalLayersNames", "").split(",")))
            spent = statistics.median(times[name]) if name in times else None
            found.append(ExecutedNode(name, kind, about.get("primitiveType", ""), sources, spent))
    return found


_KEYS = frozenset({"layerType", "primitiveType", "originalLayersNames"})


def executing(layer: Layer, nodes: Sequence[ExecutedNode]) -> ExecutedNode | None:
    """The node that carries a layer's product: fused from its MatMul, or from its Add where that was fused first."""
    stem = layer.tensor.rpartition("/")[0]
    for node in nodes:
        if node.kind not in PRODUCTS:
            continue
        for source in (node.name, *node.sources):
            if source == layer.tensor or source.startswith(f"{layer.tensor}/") or source == f"{stem}/Add":
                return node
    return None


def execution(nodes: Sequence[ExecutedNode], layers: Sequence[Layer]) -> Execution:
    """Judge what OpenVINO executes against the layers of the manifest."""
    fallbacks = []
    for layer in layers:
        node = executing(layer, nodes)
        if layer.activation_bits <= 8 and layer.weight_bits <= 8 and node is not None and not node.integer:
            fallbacks.append(Fallback(node.name, f"{node.kind} {node.kernel}", f"{layer.name}.input_q"))
    return Execution(
        operators=_counted(f"{node.kind} {node.kernel}" for node in nodes),
        integer_kernels=_counted(f"{node.kind} {node.kernel}" for node in nodes if node.integer),
        expected=sum(layer.activation_bits <= 8 and layer.weight_bits <= 8 for layer in layers),
        fallbacks=tuple(fallbacks),
    )


def _counted(names: Any) -> dict[str, int]:
    return dict(sorted(Counter(names).items(), key=lambda item: (-item[1], item[0])))
