"""The TensorRT dialect: what it holds, what it refuses, and how far its FP16 is from the calibrated integers.

Numbers are ONNX Runtime's, which stores FP16 between operations as TensorRT does; no GPU has a part in this.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from runtime import cli
from runtime.bundle import Bundle
from runtime.errors import IntvitError
from runtime.kernels.in_onnx import written_out
from runtime.parity import sqnr_db
from runtime.rungs import Rung, levels_apart, open_rung
from tests.toolchain.nets import TINY, calibrated, noise, run, serialized, spec_of, tiny_canonical, vit
from toolchain.build import main
from toolchain.graph import canonical_graph, float_graph
from toolchain.onnx_file import read
from toolchain.passes.match import linears, set_constant
from toolchain.rules import findings
from toolchain.targets import ort, tensorrt
from toolchain.targets.choices import TensorRtOptions

SCHEMES = ["w8a8", "w4a8", "w4a16", "w4a4", "w3a8", "w8a8+attn8", "w8a8+res8"]
WIDE: dict[str, Any] = {"embed_dim": 128, "depth": 1}
HALF, BRAIN, FULL = TensorRtOptions("fp16"), TensorRtOptions("bf16"), TensorRtOptions("fp32")
KERNELS = TensorRtOptions(kernels="on")
FLOATS = {HALF: ir.DataType.FLOAT16, BRAIN: ir.DataType.BFLOAT16, FULL: ir.DataType.FLOAT}


def images(network: str, count: int = 3) -> dict[str, np.ndarray]:
    return {"images": noise(spec_of(TINY[network]()), count, seed=7).numpy()}


@pytest.mark.parametrize(
    ("network", "scheme", "options"),
    [
        *((network, scheme, HALF) for network in TINY for scheme in SCHEMES),
        *(("vit", scheme, options) for scheme in ("w8a8", "w4a16") for options in (BRAIN, FULL)),
    ],
)
def test_nothing_but_types_changes(network: str, scheme: str, options: TensorRtOptions, tmp_path: Path) -> None:
    canonical = tiny_canonical(network, scheme)
    before = serialized(canonical)
    dialect = tensorrt.lower(canonical, options)
    assert serialized(canonical) == before
    count = Counter(node.op_type for node in dialect.graph)
    count.subtract(Counter(node.op_type for node in canonical.graph))
    assert {name: extra for name, extra in count.items() if extra} == ({} if options is FULL else {"Cast": 2})
    floats = {value.dtype for value in dialect.graph.initializers.values()} - {ir.DataType.INT8, ir.DataType.INT64}
    assert floats - {ir.DataType.INT4} == {FLOATS[options]}
    assert (ir.DataType.INT4 in floats) == (scheme == "w4a16")
    onnx.checker.check_model(ir.serde.serialize_model(dialect), full_check=True)
    path = tmp_path / "model.onnx"
    path.write_bytes(serialized(dialect))
    assert {finding.rule for finding in findings(read(path), "tensorrt")} <= (
        {"int8-attention"} if scheme.endswith("+attn8") else set()
    )


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("network", TINY)
def test_in_float32_dialect_and_canonical_give_the_same_bits(network: str, scheme: str) -> None:
    canonical = tiny_canonical(network, scheme)
    wanted = run(canonical, images(network), optimize=False)
    assert (run(tensorrt.lower(canonical, FULL), images(network), optimize=False) == wanted).all()


@pytest.mark.parametrize(("scheme", "least"), [("w8a8", 30), ("w4a16", 50), ("w8a8+attn8", 28), ("w8a8+res8", 28)])
@pytest.mark.parametrize("network", TINY)
def test_fp16_is_near_the_canonical_graph(network: str, scheme: str, least: float) -> None:
    """A free run: roundings that flip spread (docs/parity.md); without quantizers FP16 alone is 50 dB and more."""
    canonical = tiny_canonical(network, scheme)
    wanted = run(canonical, images(network), optimize=False)
    assert sqnr_db(wanted, run(tensorrt.lower(canonical, HALF), images(network), optimize=False)) > least


def assert_few_flips(bundle: Bundle, rung: Rung) -> dict[str, float]:
    """Fed the golden integers, no tap is two levels off, few are one, and the logits are near: percents off by tap."""
    model, golden = open_rung(rung, bundle), bundle.golden()
    made = model.aligned(golden, threads=1)
    off = {}
    for quantizer in model.quantizers:
        reference = golden.taps[quantizer.tap.golden].astype(np.int16)
        worst, percent = levels_apart(quantizer.tap.name, quantizer.to_reference(made[quantizer.tensor]), reference)
        assert worst <= 1 and percent < 5, quantizer.tap.name
        off[quantizer.tap.name] = percent
    assert sqnr_db(golden.logits, made[bundle.manifest.output_name]) > 50
    return off


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8", "w8a8+attn8", "w8a8+res8"])
def test_fp16_flips_few_roundings_and_none_by_two(digits_bundle: Callable[[str], Path], scheme: str) -> None:
    """Every segment between two quantizers, fed the golden integers: what docs/tensorrt.md says of parity."""
    bundle = Bundle.open(digits_bundle(scheme))
    stored = bundle.file("graph", "tensorrt").read_bytes()
    assert_few_flips(bundle, Rung("dialect", "in FP16", "tensorrt", lambda _: stored, shifted=True))


INTEGER = [scheme for scheme in SCHEMES if scheme != "w4a16"]


@pytest.mark.parametrize("scheme", INTEGER)
@pytest.mark.parametrize("network", TINY)
def test_on_our_kernels_every_linear_layer_is_one_node(network: str, scheme: str, tmp_path: Path) -> None:
    """All but Swin's patch embedding, whose 12 channels are no multiple of 16; the linter has nothing to say."""
    canonical = tiny_canonical(network, scheme)
    native, made = tensorrt.lower(canonical), tensorrt.lower(canonical, KERNELS)
    nodes = [node for node in made.graph if node.domain == "intvit"]
    left = {linear.matmul.name for linear in linears(made)}
    assert left == ({"patch_embed.proj/MatMul"} if network == "swin" else set())
    assert {node.name for node in nodes} | left == {linear.matmul.name for linear in linears(native)}
    stored = {linear.matmul.name: linear.weight.inputs[0] for linear in linears(canonical)}
    for node in nodes:
        four = stored[node.name].dtype == ir.DataType.INT4
        assert node.attributes["bits"].as_int() == (4 if four else 8)
        assert node.inputs[1].name == stored[node.name].name
        fc1 = node.name.endswith("mlp.fc1/MatMul")
        begins = scheme == "w8a8+res8" and node.name.endswith("downsample.reduction/MatMul")  # a stream in integers
        assert node.op_type == ("linear_i8" if fc1 or begins else "linear_f16")
        if fc1:
            assert (node.attributes["gelu"].as_int(), node.attributes["affine"].as_int()) == (1, 1)
            (use,) = node.outputs[0].uses()
            assert (use.idx, use.node.name) == (0, node.name.replace("fc1", "fc2")) and use.node.domain == "intvit"
    assert not {"Gelu", "Sub"} & {node.op_type for node in made.graph}
    path = tmp_path / "model.onnx"
    path.write_bytes(serialized(made))
    onnx.checker.check_model(str(path), full_check=True)
    allowed = {"int8-attention"} if scheme.endswith("+attn8") else set()
    assert {finding.rule for finding in findings(read(path), "tensorrt")} <= allowed


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8", "w4a4"])
@pytest.mark.parametrize("network", TINY)
def test_the_kernels_are_as_near_the_canonical_graph_as_tensorrts_own(network: str, scheme: str) -> None:
    """A free run in float16 between the layers: within 3 dB of the dialect without them.

    Over 24 images: of three, one whose roundings fall the other way at 4 bits is worth 8 dB, to either side.
    """
    canonical, many = tiny_canonical(network, scheme), images(network, 24)
    wanted = run(canonical, many, optimize=False)
    made = ir.serde.deserialize_model(
        onnx.load_from_string(written_out(serialized(tensorrt.lower(canonical, KERNELS))))
    )
    native = sqnr_db(wanted, run(tensorrt.lower(canonical), many, optimize=False))
    assert sqnr_db(wanted, run(made, many, optimize=False)) > native - 3


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8"])
def test_our_kernels_flip_few_roundings_and_none_by_two(digits_bundle: Callable[[str], Path], scheme: str) -> None:
    """As the dialect without them: every segment between two quantizers, fed the golden integers. fc2's, which fc1's
    kernel makes without a float16 in between, are fewer there.
    """
    bundle = Bundle.open(digits_bundle(scheme))
    native = bundle.file("graph", "tensorrt").read_bytes()
    stored = serialized(tensorrt.lower(ir.load(bundle.file("canonical")), KERNELS))
    rung = Rung("dialect", "on kernels", "tensorrt", lambda _: stored, lambda _, data: written_out(data), shifted=True)
    before = assert_few_flips(bundle, Rung("dialect", "in FP16", "tensorrt", lambda _: native, shifted=True))
    after = assert_few_flips(bundle, rung)
    fc2 = [name for name in after if name.endswith("fc2")]
    assert len(fc2) == 3 and all(after[name] < before[name] for name in fc2)


def test_a_scheme_without_quantizers_has_nothing_for_the_kernels() -> None:
    with pytest.raises(IntvitError, match="no layer of this scheme") as caught:
        tensorrt.lower(tiny_canonical("vit", "w4a16"), KERNELS)
    assert "w8a8 or w4a8" in caught.value.next


@pytest.mark.parametrize("other", [{"precision": "bf16"}, {"precision": "fp32"}, {"quantizers": "fp8"}])
def test_the_kernels_exclude_other_types(other: dict[str, str]) -> None:
    with pytest.raises(IntvitError, match="kernels=on goes with precision=fp16 and quantizers=int8 only"):
        TensorRtOptions.parse({"kernels": "on", **other})


@pytest.mark.parametrize(("scheme", "block"), [("w4a16+g64", 64), ("w3a16+g128", 128), ("w4a16", 128)])
def test_calibrated_groups_are_its_blocks(scheme: str, block: int) -> None:
    module = vit(**WIDE)
    spec = spec_of(module)
    canonical = canonical_graph(calibrated(module, spec, scheme))
    dialect = tensorrt.lower(canonical, FULL)
    feeds = {"images": noise(spec, 2, seed=7).numpy()}
    assert (run(dialect, feeds, optimize=False) == run(canonical, feeds, optimize=False)).all()
    four = [node for node in dialect.graph if node.op_type == "DequantizeLinear"
            and node.inputs[0].dtype == ir.DataType.INT4]  # fmt: skip
    assert [node.attributes.get_int("block_size") for node in four] == [block] * 5
    assert findings(tensorrt.lower(canonical), "tensorrt") == []


def test_the_twin_is_the_float_network_in_fp16(tmp_path: Path) -> None:
    module = TINY["vit"]()
    floating = float_graph(module, spec_of(module))
    made = tensorrt.twin(floating)
    wanted = run(floating, images("vit"), optimize=False)
    assert sqnr_db(wanted, run(made, images("vit"), optimize=False)) > 50
    assert {value.dtype for value in made.graph.initializers.values()} == {ir.DataType.FLOAT16, ir.DataType.INT64}


def test_a_bundle_holds_the_graph_and_its_twin(digits_bundle: Callable[[str], Path]) -> None:
    bundle = Bundle.open(digits_bundle("w4a8"))
    assert bundle.entry("graph", "tensorrt").path == "tensorrt/model.onnx"
    assert bundle.entry("float_twin", "tensorrt").path == "tensorrt/float.onnx"
    assert bundle.manifest.provenance["options"] == {
        "tensorrt": {"precision": "fp16", "quantizers": "int8", "kernels": "off"}
    }
    assert ir.load(bundle.file("float_twin", "tensorrt")).graph.initializers["head.weight"].dtype == ir.DataType.FLOAT16


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8", "w8a8+attn8"])
@pytest.mark.parametrize("network", TINY)
def test_the_fp8_sibling_is_as_near_to_float_as_fp8_can_be(network: str, scheme: str) -> None:
    """Four significant bits a value: worse than INT8 where ranges fit, and nowhere broken."""
    module, canonical = TINY[network](), tiny_canonical(network, scheme)
    made = tensorrt.lower(canonical, TensorRtOptions("fp32", "fp8"))
    types = {node.inputs[0].dtype for node in made.graph if node.op_type == "DequantizeLinear"}
    assert types == {ir.DataType.FLOAT8E4M3FN}
    assert {finding.rule for finding in findings(made, "tensorrt")} <= {"int8-attention"}
    floating = run(float_graph(module, spec_of(module)), images(network))
    integer = sqnr_db(floating, run(canonical, images(network), optimize=False))
    assert sqnr_db(floating, run(made, images(network), optimize=False)) > min(integer - 10, 15)


@pytest.mark.parametrize(
    ("scheme", "why"), [("w4a4", "fewer than 8 bits"), ("w4a16", "no quantizers"), ("w8a8+res8", "slices no FP8")]
)
def test_schemes_without_an_fp8_form_are_refused(scheme: str, why: str) -> None:
    with pytest.raises(IntvitError, match="no FP8 form") as caught:
        tensorrt.lower(tiny_canonical("vit", scheme), TensorRtOptions("fp16", "fp8"))
    assert why in caught.value.why


def test_a_graph_with_zero_points_is_refused() -> None:
    with pytest.raises(IntvitError, match="breaks a rule of the tensorrt target"):
        tensorrt.check(ort.lower(tiny_canonical("vit", "w8a8")))


def test_a_network_beyond_fp16_is_refused_with_the_way_out() -> None:
    canonical = tiny_canonical("vit", "w8a8").clone()
    bias = canonical.graph.initializers["blocks.0.mlp.fc2.bias"]
    set_constant(bias, np.full_like(bias.const_value.numpy(), 1e6))
    with pytest.raises(IntvitError) as caught:
        tensorrt.lower(canonical)
    assert "blocks.0.mlp.fc2.bias reaches 1e+06" in caught.value.why
    assert "precision=bf16" in caught.value.next
    tensorrt.lower(canonical, BRAIN)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"residual-q": "1"}, "the residual stream in 8 bits is part of the scheme: --bits w8a8+res8"),
        ({"attn8": "1"}, "--bits w8a8+attn8"),
        ({"speed": "max"}, "not one of its options"),
        ({"precision": "int8"}, ""),
        ({"quantizers": "fp4"}, ""),
        ({"kernels": "yes"}, ""),
    ],
)
def test_other_options_are_refused(given: dict[str, str], why: str) -> None:
    with pytest.raises(IntvitError) as caught:
        TensorRtOptions.parse(given)
    assert why in caught.value.why and "fp16" in caught.value.next


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--option", "precision=bf16"], ["no chosen target has an option 'precision'", "--target tensorrt"]),
        (["--target", "tensorrt", "--option", "residual-q=1"], ["no option 'residual-q'", "--bits w8a8+res8"]),
        (["--target", "tensorrt", "--option", "precision=int8"], ["unknown precision 'int8'", "fp16|bf16|fp32"]),
        (["--target", "tensorrt", "--option", "bf16"], ["not an option: 'bf16'"]),
    ],
)
def test_the_command_line_refuses_before_any_work(
    options: list[str], said: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = ["--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache")]
    assert cli.invoke(main, ["--model", "vit_digits", "--bits", "w8a8", *options, *places]) == 1
    printed = capsys.readouterr().err
    assert all(text in printed for text in said), printed
    assert list(tmp_path.iterdir()) == []


def test_the_options_are_part_of_the_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A cached graph of other options is not taken, and the bundle says which ones it has."""

    def built(option: str) -> tuple[Bundle, ir.Graph]:
        arguments = ["--model", "vit_digits", "--bits", "w8a8", "--method", "noise", "--images", "4"]
        arguments += ["--budget", "fast", "--target", "tensorrt", "--option", option]
        places = ["--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache")]
        assert cli.invoke(main, [*arguments, *places]) == 0
        bundle = Bundle.open(tmp_path / "out")
        assert [entry.target for entry in bundle.manifest.files if entry.role == "graph"] == ["tensorrt"]
        name, _, value = option.partition("=")
        assert bundle.manifest.provenance["options"]["tensorrt"][name] == value
        return bundle, ir.load(bundle.file("graph", "tensorrt")).graph

    for precision, dtype in (("fp32", ir.DataType.FLOAT), ("bf16", ir.DataType.BFLOAT16)):
        _, graph = built(f"precision={precision}")
        assert graph.initializers["head.bias"].dtype == dtype
    bundle, graph = built("kernels=on")
    kernels = Counter((node.name.split(".")[-1], node.op_type) for node in graph if node.domain == "intvit")
    assert kernels.pop(("fc1/MatMul", "linear_i8")) == 3 == kernels[("fc2/MatMul", "linear_f16")]
    assert kernels.total() == 11 and {op_type for _, op_type in kernels} == {"linear_f16"}
    assert findings(read(bundle.file("graph", "tensorrt")), "tensorrt") == []
    assert "tensorrt graph" in capsys.readouterr().out


def test_options_are_read() -> None:
    assert TensorRtOptions.parse({}) == HALF
    assert TensorRtOptions.parse({"precision": "bf16"}) == BRAIN
    assert TensorRtOptions.parse({"quantizers": "fp8"}) == TensorRtOptions("fp16", "fp8")
    assert TensorRtOptions.parse({"kernels": "on"}) == KERNELS
