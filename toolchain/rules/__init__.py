"""The rules a graph is held to on each target: one file a family, one small function a rule."""

from __future__ import annotations

import onnx_ir as ir

from toolchain.rules import bias, integers, kernels, operators, opsets, scales, structure, zero_points
from toolchain.rules.rule import Finding, Rule, Verdict

RULES: tuple[Rule, ...] = (
    zero_points.zero_point,
    integers.uint8,
    zero_points.weight_zero_point,
    zero_points.computed_zero_point,
    zero_points.zero_point_missing,
    zero_points.zero_point_input,
    integers.int16,
    integers.uint4,
    integers.integer_scalar,
    integers.int4_cast,
    integers.int4_activations,
    integers.weight_minus_128,
    scales.scale_dtype,
    scales.scale_half,
    scales.scale_constant,
    scales.scale_positive,
    scales.weight_scale_positive,
    scales.weight_axis,
    scales.activation_per_channel,
    scales.block_activations,
    scales.block_size_documented,
    scales.block_short,
    bias.bias_int32,
    bias.bias_shape,
    bias.gemm_bias,
    bias.quantized_constant,
    operators.tensorrt_operator,
    operators.openvino_operator,
    operators.openvino_float_operator,
    operators.s8s8_operator,
    operators.u8u8_operator,
    opsets.opset,
    opsets.opset_attribute,
    kernels.kernel_node,
    structure.shared_quantizer,
    structure.moved_quantizer,
    structure.int8_attention,
    structure.decomposed_layernorm,
    structure.decomposed_gelu,
)


def findings(model: ir.Model, target: str) -> list[Finding]:
    """Everything in ``model`` that breaks a rule of ``target``, one of the toolchain's, errors first."""
    found = [finding for rule in RULES for finding in rule.check(model, target)]
    return sorted(found, key=lambda finding: finding.severity != "error")


__all__ = ["RULES", "Finding", "Rule", "Verdict", "findings"]
