"""What a TensorRT engine executes, layer by layer, read from the JSON that TensorRT's engine inspector gives.

That JSON is ``IEngineInspector.get_engine_information(JSON)`` of an engine built with detailed profiling verbosity, or
the file of ``trtexec --exportLayerInfo``. Both forms are read: 10.x has ``Bindings`` and one ``Format/Datatype`` a
tensor, 11.x has ``I/O Tensors``, and ``Format`` and ``Datatype`` apart (NVIDIA's migration guide). An inspector needs a
GPU, which no machine of ours had: the tests hold this reader to samples written by hand after the documented form and
NVIDIA's issue 4397, never to a real engine's.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from runtime.bundle import Bundle
from runtime.errors import IntvitError
from runtime.kernels.nodes import is_kernel
from runtime.manifest import Layer
from runtime.onnx_wire import INT4, INT8, Graph, read_graph
from toolchain.inspection import Inspection, LayerRow

UNKNOWN = "unknown type"
# How the two forms spell tensor types, in sentences ("Row major linear FP16 format") or alone ("Half").
_TYPES = {
    "int8": "INT8",
    "int4": "INT4",
    "fp8": "FP8",
    "float8": "FP8",
    "fp8e4m3": "FP8",
    "half": "FP16",
    "fp16": "FP16",
    "float16": "FP16",
    "bfloat16": "BF16",
    "bf16": "BF16",
    "float": "FP32",
    "fp32": "FP32",
    "float32": "FP32",
    "int32": "INT32",
    "int64": "INT64",
    "bool": "BOOL",
    "uint8": "UINT8",
}
# Types in the name of a tactic: of the factors and of the result, as in sm80_xmma_gemm_i8f16_i8i32_f32_tn.
_SHORT = {"i8": "INT8", "s8": "INT8", "e4m3": "FP8", "f16": "FP16", "bf16": "BF16", "f32": "FP32", "tf32": "FP32"}
_FACTORS = re.compile(rf"(?:^|_)({'|'.join(_SHORT)})(?:{'|'.join(_SHORT)}|i32)(?=_|$)")
_ONNX = re.compile(r"\[ONNX Layer: ([^\]]+)\]")
_GENERATED = re.compile(r"_myl\d+_\d+$")  # what TensorRT appends to the names of layers it made itself


@dataclass(frozen=True)
class EngineLayer:
    """One layer of an engine.

    Attributes:
        kind: TensorRT's LayerType. sources: names of the ONNX nodes in it. inputs, outputs: their types.
        tactic: the kernel's name, empty where TensorRT does not give one.
    """

    name: str
    kind: str
    sources: frozenset[str]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    tactic: str

    @property
    def computes(self) -> str:
        """The type its product multiplies: the factors' in the tactic's name, else the first input's."""
        named = _FACTORS.search(self.tactic)
        return _SHORT[named[1]] if named else next(iter(self.inputs), UNKNOWN)

    @property
    def reformats(self) -> bool:
        """Whether it only changes how a tensor lies in memory."""
        return self.kind == "Reformat" or self.name.startswith("Reformatting CopyNode")


def engine_layers(text: str, where: str = "engine inspector") -> list[EngineLayer]:
    """The layers of an engine from its inspector's JSON, in order.

    Raises:
        IntvitError: not that JSON, or an engine built without detailed profiling verbosity.
    """
    try:
        read = json.loads(text)
    except ValueError as error:
        raise IntvitError("the engine's layers are not JSON", where=where, why=str(error), next=_HINT) from error
    layers = read.get("Layers") if isinstance(read, dict) else None
    if not isinstance(layers, list) or not layers:
        raise IntvitError("no engine's layers", where=where, why="it holds no list 'Layers'", next=_HINT)
    if not all(isinstance(layer, dict) for layer in layers):
        raise IntvitError(
            "the engine tells its layers' names only",
            where=where,
            why="it was built without detailed profiling verbosity",
            next="build with ProfilingVerbosity.DETAILED (trtexec --profilingVerbosity=detailed)",
        )
    return [_layer(layer) for layer in layers]


_HINT = "give what IEngineInspector.get_engine_information(JSON) or trtexec --exportLayerInfo wrote"


def _layer(layer: Mapping[str, Any]) -> EngineLayer:
    name, metadata = str(layer.get("Name", "")), str(layer.get("Metadata", ""))
    sources = _ONNX.findall(metadata) or re.split(r"\s*\+\s*", _GENERATED.sub("", name))
    return EngineLayer(
        name=name,
        kind=str(layer.get("LayerType", "")) or "unknown",
        sources=frozenset(sources),
        inputs=_types(layer.get("Inputs")),
        outputs=_types(layer.get("Outputs")),
        tactic=str(layer.get("TacticName", "")),
    )


def _types(tensors: Any) -> tuple[str, ...]:
    if not isinstance(tensors, list):
        return ()
    return tuple(_type(tensor) for tensor in tensors if isinstance(tensor, dict))


def _type(tensor: Mapping[str, Any]) -> str:
    for key in ("Datatype", "DataType", "Format/Datatype", "Format/DataType", "Format"):
        for word in re.findall(r"[A-Za-z]+\d*(?:[eE]\d[mM]\d)?", str(tensor.get(key, ""))):
            if word.lower() in _TYPES:
                return _TYPES[word.lower()]
    return UNKNOWN


def inspect(bundle: Bundle, text: str, where: str = "engine inspector") -> Inspection:
    """Find every layer of the bundle in an engine built from its TensorRT graph.

    ``operators`` counts layers by LayerType and type. ``notes`` say how many reformat layers there are and how many
    attentions run as one kernel.

    Args:
        text: the inspector's JSON. where: it comes from, for messages.

    Raises:
        IntvitError: the JSON cannot be read, or has none of the bundle's layers; the bundle has no TensorRT graph.
    """
    stored = read_graph(bundle.file("graph", "tensorrt").read_bytes())
    layers = engine_layers(text, where)
    rows = tuple(_row(layer, layers, stored) for layer in bundle.manifest.layers)
    if all(row.executed_as == _ABSENT for row in rows):
        raise IntvitError(
            "the engine has none of the bundle's layers",
            where=where,
            why=f"no layer of it names a node such as {bundle.manifest.layers[0].tensor}",
            next=f"inspect an engine that was built from {bundle.file('graph', 'tensorrt')}",
        )
    slow = [
        f"WARNING: {row.name} should run as integers: {row.executed_as}"
        for row in rows
        if row.activation_bits <= 8 and row.weight_bits <= 8 and not row.integer
    ]
    counts = Counter(f"{layer.kind} {layer.computes}" for layer in layers)
    notes = (_attention_note(layers, stored), f"{sum(layer.reformats for layer in layers)} reformat layers")
    return Inspection(rows, dict(sorted(counts.items())), tuple(slow), notes=notes)


_ABSENT = "not found in the engine"
_TWO_A_BYTE = "INT4, two a byte"


def _row(layer: Layer, layers: list[EngineLayer], stored: Graph) -> LayerRow:
    found = next((made for made in layers if layer.tensor in made.sources and not made.reformats), None)
    if found is None:
        return LayerRow.of(layer, stored, _ABSENT, integer=False)
    said = ", ".join(part for part in (found.kind, found.computes, found.tactic) if part)
    row = LayerRow.of(layer, stored, said, found.computes == "INT8")
    weights = stored.constant.get(f"{layer.name}.weight_q")
    if weights is None:
        return row
    as_int8 = "INT8" if layer.weight_bits == 8 else f"INT8, {layer.weight_bits}-bit values"
    if any(node.integers["bits"] == (4,) for node in stored.nodes if is_kernel(node) and weights.name in node.inputs):
        as_int8 = _TWO_A_BYTE  # our kernels' packing, in an INT8 tensor
    return replace(row, stored_as={INT8: as_int8, INT4: layer.stored_as}.get(weights.data_type, "FP8"))


def _attention_note(layers: list[EngineLayer], stored: Graph) -> str:
    """How many softmaxes run in one kernel with both products around them, and in which types."""
    kinds: list[str] = []
    softmaxes = [node.name for node in stored.nodes if node.op_type == "Softmax"]
    for name in softmaxes:
        site = name.rpartition("/")[0]
        both = {f"{site}.qk/MatMul", f"{site}.pv/MatMul"}
        kinds += [layer.computes for layer in layers if name in layer.sources and both <= layer.sources][:1]
    types = ", ".join(f"{count} {kind}" for kind, count in sorted(Counter(kinds).items()))
    return f"attention: {len(kinds)} of {len(softmaxes)} run as one kernel" + (f" ({types})" if types else "")
