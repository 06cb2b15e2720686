"""Reading an ONNX file for the linter: what a bad one is answered with, and what a good one keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime import cli
from runtime.errors import IntvitError
from tests.toolchain.nets import from_text, serialized
from tests.toolchain.rules.planted import GOOD, SIZE, WEIGHT_ONLY, other_type, swap
from toolchain.lint import main
from toolchain.onnx_file import read
from toolchain.rules import findings
from toolchain.targets.choices import TARGETS

BRANCHES = """<ir_version: 10, opset_import: ["" : 21]>
g (float[5] x, bool c) => (float[5] y) {
  y = If (c) <
    then_branch = then () => (float[5] t) <float[5] b = {1, 2, 3, 4, 5}> { t = Add(x, b) },
    else_branch = other () => (float[5] e) { e = Identity(x) }
  >
}"""

CONSTANT = """<ir_version: 10, opset_import: ["" : 21]>
g (float[1, 5] x) => (float[1, 5] y) {
  c = Constant<value = float {1}>()
  y = Add(x, c)
}"""
FUNCTION = """<ir_version: 10, opset_import: ["" : 21, "local" : 1]>
g (float[1, 5] x) => (float[1, 5] y) { y = local.plus(x) }
<opset_import: ["" : 21], domain: "local">
plus (x) => (y) {
  c = Constant<value = float {1}>()
  y = Add(x, c)
}"""


def saved(model: ir.Model, path: Path) -> Path:
    ir.save(model, path)
    return path


def rules(path: Path) -> list[str]:
    """What is found for TensorRT."""
    return [finding.rule for finding in findings(read(path), "tensorrt")]


def broken(path: Path, how: str) -> Path:
    """A file that is no whole ONNX model."""
    data = serialized(from_text(GOOD))
    if how == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "text":
        path.write_text("not a model\n")
    elif how == "directory":
        path.mkdir()
    elif how == "short tensor":
        proto = onnx.ModelProto.FromString(data)
        tensor = next(tensor for tensor in proto.graph.initializer if tensor.name == "w")
        tensor.raw_data, tensor.int32_data[:] = tensor.raw_data[:-1] or b"\0", []
        path.write_bytes(proto.SerializeToString())
    elif how in ("short tensor of a branch", "external data of a branch gone"):
        proto = onnx.parser.parse_model(BRANCHES)
        tensor = proto.graph.node[0].attribute[0].g.initializer[0]
        tensor.raw_data, tensor.float_data[:] = b"\0" * 19, []
        if how == "external data of a branch gone":
            onnx.external_data_helper.set_external_data(tensor, "weights.bin")
            tensor.ClearField("raw_data")
        path.write_bytes(proto.SerializeToString())
    elif how == "sparse":
        proto = onnx.ModelProto.FromString(data)
        bias = next(tensor for tensor in proto.graph.initializer if tensor.name == "b")
        proto.graph.initializer.remove(bias)
        bias.dims[:], bias.float_data[:] = [1], [0.5]
        place = onnx.numpy_helper.from_array(np.array([[0, 0, 3]]))
        proto.graph.sparse_initializer.append(onnx.helper.make_sparse_tensor(bias, place, [1, 1, SIZE]))
        path.write_bytes(proto.SerializeToString())
    elif how == "external data gone":
        ir.save(from_text(GOOD), path, external_data="weights.bin", size_threshold_bytes=0)
        (path.parent / "weights.bin").unlink()
    elif how == "dangling":
        proto = onnx.ModelProto.FromString(data)
        proto.graph.node[0].input[0] = "nowhere"
        path.write_bytes(proto.SerializeToString())
    elif how == "circle":
        proto = onnx.ModelProto.FromString(data)
        proto.graph.node[0].input[0] = proto.graph.node[1].output[0]
        path.write_bytes(proto.SerializeToString())
    elif how in ("data above", "data at the root"):  # onnxruntime and OpenVINO read nothing outside the model's folder
        ir.save(from_text(GOOD), path, external_data="weights.bin", size_threshold_bytes=0)
        outside = (path.parent / "weights.bin").rename(path.parent.parent / "weights.bin")
        proto = onnx.load(path, load_external_data=False)
        for tensor in proto.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = str(outside) if how == "data at the root" else "a/../../weights.bin"
        path.write_bytes(proto.SerializeToString())
    elif how.startswith("constant"):  # "constant data at /etc/hostname", "constant data in a function at gone.bin"
        text = FUNCTION if "function" in how else CONSTANT
        proto = onnx.parser.parse_model(text)
        node = (proto.functions[0] if "function" in how else proto.graph).node[0]
        tensor = node.attribute[0].t
        tensor.raw_data, tensor.float_data[:] = b"\0" * 4, []
        onnx.external_data_helper.set_external_data(tensor, how.rpartition(" ")[2], 0, 4)
        tensor.ClearField("raw_data")
        (path.parent / "link.bin").symlink_to("/etc/hostname")
        path.write_bytes(proto.SerializeToString())
    elif how in ("negative shape", "a name twice"):
        proto = onnx.ModelProto.FromString(data)
        tensor = next(tensor for tensor in proto.graph.initializer if tensor.name == "w")
        if how == "negative shape":
            tensor.dims[0] = -1
        else:
            proto.graph.initializer.append(tensor)
        path.write_bytes(proto.SerializeToString())
    elif how == "functions without end":
        double = """<opset_import: ["" : 21, "local" : 1], domain: "local">
        f{} (x) => (y) {{ t = local.f{}(x)  y = local.f{}(t) }}"""
        text = """<ir_version: 10, opset_import: ["" : 21, "local" : 1]>
        g (float[1, 5] x) => (float[1, 5] y) { y = local.f30(x) }
        <opset_import: ["" : 21], domain: "local"> f0 (x) => (y) { y = Relu(x) }"""
        text += "".join(double.format(n, n - 1, n - 1) for n in range(1, 31))
        path.write_bytes(onnx.parser.parse_model(text).SerializeToString())
    elif how in ("no opset", "no opset of a domain"):
        proto = onnx.ModelProto.FromString(data)
        if how == "no opset":
            del proto.opset_import[:]
        else:
            proto.graph.node[0].domain = "local"
        path.write_bytes(proto.SerializeToString())
    elif how == "function with a loose end":
        text = """<ir_version: 10, opset_import: ["" : 21, "local" : 1]>
        g (float[1, 5] x) => (float[1, 5] y) { y = local.broken(x) }
        <opset_import: ["" : 21], domain: "local"> broken (x) => (y) { y = Add(x, nowhere) }"""
        onnx.save(onnx.parser.parse_model(text), path)
    return path


@pytest.mark.parametrize(
    "how",
    [
        "absent",
        "cut",
        "empty",
        "text",
        "directory",
        "short tensor",
        "short tensor of a branch",
        "external data gone",
        "external data of a branch gone",
        "sparse",
        "data above",
        "data at the root",
        "dangling",
        "circle",
        "no opset",
        "no opset of a domain",
        "function with a loose end",
        "functions without end",
        "constant data at /etc/hostname",
        "constant data at ../model.onnx",
        "constant data at link.bin",
        "constant data at gone.bin",
        "constant data in a function at /etc/hostname",
        "constant data in a function at gone.bin",
        "negative shape",
        "a name twice",
    ],
)
def test_what_is_no_model_is_answered_readably(how: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = broken(tmp_path / "model.onnx", how)
    assert cli.invoke(main, [str(path), "--target", "ort", "--json", str(tmp_path / "lint.json")]) == 1
    said = capsys.readouterr().err
    assert "unexpected" not in said
    assert said.startswith("error: ")  # and nothing of what the readers of ONNX log
    assert str(path) in said
    assert not (tmp_path / "lint.json").exists()


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("short tensor of a branch", "a tensor of the model cannot be read"),
        ("external data of a branch gone", "a tensor of the model cannot be read"),
        ("sparse", "a tensor of the model is stored sparse, which is not read"),
    ],
)
def test_a_tensor_that_cannot_be_read_is_named(how: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(IntvitError, match=said) as caught:
        read(broken(tmp_path / "model.onnx", how))
    assert caught.value.where == f"{tmp_path / 'model.onnx'}: b"


def test_data_outside_the_folder_is_refused_where_the_path_names_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "inner").mkdir()
    path = broken(tmp_path / "inner/model.onnx", "data above")
    monkeypatch.chdir(path.parent)
    with pytest.raises(IntvitError, match="outside the base directory"):
        read(Path(path.name))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("= QuantizeLinear(x, s, z)", "= QuantizeLinear(x)", "has 1 inputs"),
        ("MatMul(xd, wd)", "MatMul(xd)", "has 1 inputs"),
        ("<axis = 1>", '<axis = "one">', "its attribute axis is STRING, not INT"),
    ],
)
def test_nodes_that_break_their_signature_are_refused(old: str, new: str, said: str, tmp_path: Path) -> None:
    path = saved(from_text(swap(GOOD, (old, new)), check=False), tmp_path / "model.onnx")
    with pytest.raises(IntvitError, match="not what ONNX defines") as caught:
        read(path)
    assert said in caught.value.why


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(places=st.lists(st.tuples(st.integers(0, 699), st.integers(0, 255)), min_size=1, max_size=4))
def test_changed_bytes_are_read_or_refused(places: list[tuple[int, int]], tmp_path: Path) -> None:
    """The nodes come first in the file: most changes hit a name, a type, an attribute or a length."""
    data = bytearray(serialized(from_text(swap(GOOD, other_type("int4")))))
    for place, byte in places:
        data[place] = byte
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    try:
        model = read(path)
    except IntvitError:
        return
    for target in TARGETS:
        findings(model, target)


def test_functions_and_constant_nodes_are_looked_into(tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["" : 21, "local" : 1]>
    g (float[1, 5] x) => (float[1, 5] y) { y = local.quantized(x) }
    <opset_import: ["" : 21], domain: "local">
    quantized (x) => (y) {
      s = Constant<value_float = 0.5>()
      z = Constant<value = int8 {3}>()
      q = QuantizeLinear(x, s, z)
      y = DequantizeLinear(q, s, z)
    }"""
    path = tmp_path / "model.onnx"
    onnx.save(onnx.parser.parse_model(text), path)
    assert rules(path) == ["zero-point", "zero-point"]


def test_a_constant_beside_the_model_is_read_wherever_the_command_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, kind in enumerate(("constant data", "constant data in a function")):
        (tmp_path / str(number)).mkdir()
        path = broken(tmp_path / str(number) / "model.onnx", f"{kind} at weights.bin")
        (path.parent / "weights.bin").write_bytes(np.float32(2).tobytes())
        monkeypatch.chdir(path.parent.parent)
        (constant,) = read(path.relative_to(path.parent.parent)).graph.initializers.values()
        assert constant.const_value is not None and constant.const_value.numpy() == 2


def test_a_range_of_constants_is_not_written_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing out 1e11 values, as onnx does to know the shapes that depend on them, takes all memory there is."""
    asked = []
    real = onnx.shape_inference.infer_shapes

    def infer(*arguments: Any, data_prop: bool, **options: Any) -> onnx.ModelProto:
        asked.append(data_prop)
        return real(*arguments, data_prop=False, **options)

    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", infer)
    for end in (1000, 10**11):
        text = f"""<ir_version: 10, opset_import: ["" : 21]> g () => (float[N] y)
        <int64 a = {{0}}, int64 b = {{{end}}}, int64 c = {{1}}> {{ r = Range(a, b, c)  y = Cast<to = 1>(r) }}"""
        onnx.save(onnx.parser.parse_model(text), tmp_path / "model.onnx")
        read(tmp_path / "model.onnx")
    assert asked == [True, False]


def test_a_missing_model_is_one_of_our_errors(tmp_path: Path) -> None:
    with pytest.raises(IntvitError, match="no such model"):
        read(tmp_path / "model.onnx")


def test_int4_weights_survive_the_file(tmp_path: Path) -> None:
    model = from_text(swap(WEIGHT_ONLY, other_type("int4")))
    assert rules(saved(model, tmp_path / "model.onnx")) == []
