"""Types and shapes of a graph's inputs and outputs, written on the wire and read back by the onnx package."""

from __future__ import annotations

import onnx
from onnx import TensorProto

from runtime.onnx_boundary import boundary_types, with_fixed_inputs, with_typed_outputs
from runtime.onnx_wire import INT8, cut, with_extra_outputs
from tests.runtime.tiny import Spec, graph


def dims(value: onnx.ValueInfoProto) -> list[int | str]:
    return [dim.dim_value or dim.dim_param for dim in value.type.tensor_type.shape.dim]


def test_types_are_read() -> None:
    model = graph(Spec()).SerializeToString()
    assert boundary_types(model) == {"images": TensorProto.FLOAT, "logits": TensorProto.FLOAT}
    fed = cut(with_extra_outputs(model, ["head.q"]), {"embed.q": ("fed", INT8, (2, 4, 48))})
    assert boundary_types(fed) == {"images": TensorProto.FLOAT, "fed": INT8, "logits": TensorProto.FLOAT}


def test_outputs_without_a_type_get_one_and_others_keep_theirs() -> None:
    model = with_extra_outputs(graph(Spec()).SerializeToString(), ["embed.q", "head.q"])
    made = onnx.load_from_string(with_typed_outputs(model, {"embed.q": INT8, "logits": INT8, "absent": INT8}))
    found = {value.name: value.type.tensor_type.elem_type for value in made.graph.output}
    assert found == {"logits": TensorProto.FLOAT, "embed.q": TensorProto.INT8, "head.q": 0}


def test_a_batch_is_written_into_the_graph() -> None:
    model = graph(Spec()).SerializeToString()
    made = onnx.load_from_string(with_fixed_inputs(model, {"images": (4, 3, 8, 8), "absent": (1,)}))
    onnx.checker.check_model(made, full_check=True)
    assert [dims(value) for value in made.graph.input] == [[4, 3, 8, 8]]
    assert made.graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT
    assert with_fixed_inputs(model, {}) == with_typed_outputs(model, {})
    assert onnx.load_from_string(with_fixed_inputs(model, {})) == onnx.load_from_string(model)
