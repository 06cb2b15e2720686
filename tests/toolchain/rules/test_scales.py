"""Scales: each fault planted, found, and held against the engines."""

from __future__ import annotations

import pytest

from tests.toolchain.nets import calibrated, spec_of, vit
from tests.toolchain.rules import engines
from tests.toolchain.rules.planted import (
    BLOCKS,
    GEMM,
    GOOD,
    PRODUCT,
    SCALE,
    SIZE,
    WEIGHT_ONLY,
    WEIGHT_SCALE,
    ZERO,
    Case,
    cases,
    check_found,
    check_onnxruntime,
    check_openvino,
    check_tensorrt,
    half,
    numbers,
    other_type,
    same,
    steps,
    swap,
)
from toolchain.graph import canonical_graph
from toolchain.rules import findings
from toolchain.targets.choices import TARGETS

OWN_SCALE = ("(x, s, z)", "(x, t, z)"), ("(xq, s, z)", "(xq, t, z)"), (SCALE, "float t = {0.02}")
PER_CHANNEL = (
    (f"{SCALE}, {ZERO}", f"float[{SIZE}] s = {steps(SIZE)}, int8[{SIZE}] z = {same(SIZE, '0')}"),
    ("QuantizeLinear(x,", "QuantizeLinear<axis = 2>(x,"),
    ("DequantizeLinear(xq,", "DequantizeLinear<axis = 2>(xq,"),
)
CAST_WEIGHT = (PRODUCT, "wc = Cast<to = 10>(wd)\n  [product] p = MatMul(xd, wc)")
CASES = [
    Case(
        "FP32 weight scales in an FP16 layer",
        "scale-dtype",
        "weight",
        GOOD,
        change=half("ws"),
        tensorrt="must have same input types",
    ),
    Case(
        "FP32 weight scales behind a Cast",
        "scale-dtype",
        "weight",
        swap(GOOD, CAST_WEIGHT),
        change=half("ws"),
        tensorrt="type mismatch between matmul operand scales",
    ),
    Case("weight-only", "scale-dtype", "weight", WEIGHT_ONLY, change=half("ws"), tensorrt="must have same input types"),
    Case("of both factors", "scale-half", "product", GOOD, change=half(), onnxruntime="float"),
    Case("of a Gemm", "scale-half", "product", GEMM, change=half(), onnxruntime="float"),
    Case(
        "the model's input",
        "scale-constant",
        "weight",
        swap(GOOD, (f"{WEIGHT_SCALE}, ", ""), (f"{SIZE}] x)", f"{SIZE}] x, float[{SIZE}] ws)")),
        tensorrt="",
        openvino="float",
    ),
    Case(
        "negative",
        "scale-positive",
        "quantize",
        swap(GOOD, ("(x, s, z)", "(x, t, z)"), (SCALE, f"{SCALE}, float t = {{-0.02}}")),
        tensorrt="Scale coefficients must all be positive",
    ),
    Case(
        "behind an Identity",
        "scale-positive",
        "quantize",
        swap(
            GOOD,
            ("(x, s, z)", "(x, t, z)"),
            (SCALE, f"{SCALE}, float t0 = {{-0.02}}"),
            ("{\n", "{\n  t = Identity(t0)\n"),
        ),
        tensorrt="",
        openvino="wrong",
    ),
    Case(
        "zero",
        "scale-positive",
        "dequantize",
        swap(GOOD, ("(xq, s, z)", "(xq, t, z)"), (SCALE, f"{SCALE}, float t = {{0.0}}")),
        tensorrt="Scale coefficients must all be positive",
    ),
    Case(
        "negative",
        "weight-scale-positive",
        "weight",
        swap(GOOD, ("ws = {0.005", "ws = {-0.005")),
        tensorrt="Scale coefficients must all be positive",
        onnxruntime="integer",
        openvino="integer",
    ),
    Case(
        "zero",
        "weight-scale-positive",
        "weight",
        swap(GOOD, ("ws = {0.005000", "ws = {0.000000")),
        tensorrt="Scale coefficients must all be positive",
        onnxruntime="integer",
        openvino="integer",
    ),
    Case(
        "negative, of INT8 blocks",
        "weight-scale-positive",
        "weight",
        swap(WEIGHT_ONLY, *BLOCKS, ("ws = {0.001", "ws = {-0.001")),
        tensorrt="Scale coefficients must all be positive",
    ),
    Case(
        "of a MatMul",
        "weight-axis",
        "weight",
        swap(GOOD, ("axis = 1", "axis = 0")),
        tensorrt="",
        onnxruntime="wrong",
        openvino="float",
    ),
    Case(
        "counted from the end",
        "weight-axis",
        "weight",
        swap(GOOD, ("axis = 1", "axis = -2")),
        onnxruntime="wrong",
        openvino="float",
    ),
    Case(
        "behind a Transpose",
        "weight-axis",
        "weight",
        swap(GOOD, (PRODUCT, "wt = Transpose<perm = [1, 0]>(wd)\n  [product] p = MatMul(xd, wt)")),
        openvino="float",
    ),
    Case(
        "of a Gemm with transB",
        "weight-axis",
        "weight",
        swap(GEMM, ("Gemm(xd, wd)", "Gemm<transB = 1>(xd, wd)")),
        tensorrt="",
        openvino="float",
    ),
    Case(
        "three columns wide",
        "weight-axis",
        "weight",
        swap(
            GOOD,
            ("axis = 1", "axis = 0"),
            (f"int8[{SIZE}, {SIZE}] w = {numbers(SIZE * SIZE)}", f"int8[{SIZE}, 3] w = {numbers(3 * SIZE)}"),
            (f"float[1, 1, {SIZE}] b = {same(SIZE, '0.5')}", f"float[1, 1, 3] b = {same(3, '0.5')}"),
            (f"5, {SIZE}] y", "5, 3] y"),
        ),
        onnxruntime="fails",
    ),
    Case(
        "along the summed axis",
        "activation-per-channel",
        "quantize",
        swap(GOOD, *PER_CHANNEL),
        tensorrt="",
        onnxruntime="float",
        openvino="float",
    ),
    Case(
        "INT8",
        "block-activations",
        "weight",
        swap(GOOD, *BLOCKS),
        tensorrt="CHECK(is_constant()) failed",
        onnxruntime="fails",
        openvino="float",
    ),
    Case(
        "INT4",
        "block-activations",
        "weight",
        swap(GOOD, other_type("int4"), *BLOCKS),
        tensorrt="CHECK(is_constant()) failed",
        onnxruntime="float",
        openvino="float",
    ),
    Case("16", "block-size", "weight", swap(WEIGHT_ONLY, other_type("int4"), *BLOCKS), tensorrt=""),
    Case(
        "24 in 32",
        "block-short",
        "weight",
        swap(WEIGHT_ONLY, *BLOCKS, (f"block_size = {SIZE // 2}", "block_size = 24")),
        openvino="refused",
    ),
]


@cases(CASES)
def test_the_planted_fault_is_the_only_finding(case: Case) -> None:
    check_found(case)


@cases(CASES, "tensorrt")
def test_tensorrt_does_what_the_rule_says(case: Case) -> None:
    check_tensorrt(case)


@cases(CASES, "onnxruntime")
def test_onnxruntime_does_what_the_rule_says(case: Case) -> None:
    check_onnxruntime(case)


@cases(CASES, "openvino")
def test_openvino_does_what_the_rule_says(case: Case) -> None:
    check_openvino(case)


def test_an_fp16_layer_with_fp16_scales_is_clean_and_builds() -> None:
    model = Case("", "", "", GOOD, change=half()).model()
    assert findings(model, "tensorrt") == []
    assert engines.tensorrt(model) == ""


def test_a_quantizer_of_another_type_than_its_scale_is_found() -> None:
    found = findings(Case("", "", "", GOOD, change=half("s", "ws")).model(), "tensorrt")
    assert [(finding.rule, finding.node) for finding in found] == [("scale-dtype", "quantize")]


def test_int4_blocks_without_quantized_activations_are_fine() -> None:
    model = Case("", "", "", swap(WEIGHT_ONLY, other_type("int4"), *BLOCKS)).model()
    for target in ("ort", "openvino"):
        assert findings(model, target) == []
    canonical = canonical_graph(calibrated(vit(embed_dim=64, depth=1), spec_of(vit()), "w4a16+g64", images=1))
    for target in TARGETS:
        assert findings(canonical, target) == []
    assert engines.tensorrt(canonical) == ""


@pytest.mark.parametrize("scale", ["-0.001000", "0.000000"])
def test_4_bit_weights_may_have_scales_that_are_not_positive(scale: str) -> None:
    """MatMulNBitsQuantizer makes about half of them negative, and those of a block of zeros 0."""
    wide = swap(
        WEIGHT_ONLY,
        (f"int8[{SIZE}, {SIZE}] w = {numbers(SIZE * SIZE)}", f"int4[64, {SIZE}] w = {numbers(64 * SIZE)}"),
        (f"float[1, 5, {SIZE}] x", "float[1, 5, 64] x"),
        (WEIGHT_SCALE, f"float[1, {SIZE}] ws = {steps(SIZE, 0.001)}"),
        ("<axis = 1>", "<axis = 0, block_size = 64>"),
        ("ws = {0.001000", f"ws = {{{scale}"),
    )
    model = Case("", "", "", wide).model()
    for target in TARGETS:
        assert findings(model, target) == []
    assert engines.tensorrt(model) == ""
    assert engines.openvino(model) == "float"  # and not wrong


def test_scales_computed_from_constants_are_constants() -> None:
    text = swap(
        GOOD,
        (SCALE, "float s0 = {0.2}, float s1 = {0.1}"),
        ("{\n  [quantize]", "{\n  s = Mul(s0, s1)\n  [quantize]"),
    )
    for target in TARGETS:
        assert findings(Case("", "", "", text).model(), target) == []


def test_a_scale_of_one_element_is_one_scale() -> None:
    text = swap(GOOD, (f"{SCALE}, {ZERO}", "float[1] s = {0.02}, int8[1] z = {0}"))
    for target in TARGETS:
        assert findings(Case("", "", "", text).model(), target) == []


def test_openvino_is_wrong_with_a_negative_activation_scale() -> None:
    model = Case("", "", "", swap(GOOD, (SCALE, "float s = {-0.02}"))).model()
    assert [finding.node for finding in findings(model, "openvino")] == ["quantize", "dequantize"]
    assert engines.openvino(model) == "wrong"
