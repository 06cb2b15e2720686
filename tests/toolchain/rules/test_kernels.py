"""Nodes of our kernels: what the plugins cannot take is found before TensorRT is asked."""

from __future__ import annotations

import pytest

from tests.toolchain.nets import from_text
from tests.toolchain.rules.planted import HEAD, Case, cases, check_found, numbers, same, swap
from toolchain.rules import findings

N, K = 8, 48
OPSETS = HEAD.replace('"" : 21', '"" : 21, "intvit" : 1')
ATTRIBUTES = 'plugin_namespace = "intvit", plugin_version = "1", aot = 1, bits = 4, gelu = 0'
NODE = f"[fc1] y = intvit.linear_f16<{ATTRIBUTES}>(xq, w, scale, bias)"
TO_INT8 = (
    f"[fc1] yq = intvit.linear_i8<{ATTRIBUTES}, affine = 0>(xq, w, scale, bias, factor, quantizer)\n"
    "  y = DequantizeLinear(yq, h, z)"
)
BEHIND_GELU = TO_INT8.replace("gelu = 0, affine = 0", "gelu = 1, affine = 1")
TEXT = f"""{OPSETS}
g (float[1, 5, {K}] x) => (float16[1, 5, {N}] y)
<float h = {{0.25}}, int8 z = {{0}}, int8[{N}, 32] w = {numbers(32 * N, -128, 127)},
 float[{N}] scale = {same(N, "0.01")}, float[{N}] bias = {same(N, "0.5")}, float[{N}] factor = {same(N, "1")},
 float[4] quantizer = {{0.25, 0, -128, 127}}>
{{
  xq = QuantizeLinear(x, h, z)
  {NODE}
}}"""


def planted(name: str, *changes: tuple[str, str]) -> Case:
    return Case(name, "kernel-node", "fc1", swap(TEXT, *changes), valid=False)


CASES = [
    planted("no namespace", ('plugin_namespace = "intvit", ', "")),
    planted("another namespace", ('plugin_namespace = "intvit"', 'plugin_namespace = "trt"')),
    planted("another version", ('plugin_version = "1"', 'plugin_version = "2"')),
    planted("not ahead of time", ("aot = 1", "aot = 0")),
    planted("three bits", ("bits = 4", "bits = 3")),
    planted("another GELU", ("gelu = 0", "gelu = 2")),
    planted("no bias", (", bias)\n}", ")\n}")),
    planted("float activations", ("(xq, w", "(x, w")),
    planted("weights of another type", (f"int8[{N}, 32] w", f"int16[{N}, 32] w")),
    planted("a scale of integers", (f"float[{N}] scale = {same(N, '0.01')}", f"int32[{N}] scale = {same(N, '1')}")),
    planted("one scale for all", (f"float[{N}] scale = {same(N, '0.01')}", "float[1] scale = {0.01}")),
    planted("rows for other bits", ("bits = 4", "bits = 8")),
    planted("rows of 40 channels", (f"5, {K}] x", "5, 40] x")),
    planted("no quantizer", (NODE, TO_INT8.replace(", quantizer)", ")"))),
    planted(
        "a step alone", (NODE, TO_INT8), ("float[4] quantizer = {0.25, 0, -128, 127}", "float[1] quantizer = {0.5}")
    ),
    planted("a step of 0", (NODE, TO_INT8), ("{0.25, 0, -128", "{0, 0, -128")),
    planted("levels beyond INT8", (NODE, TO_INT8), ("-128, 127}>", "-128, 255}>")),
    planted("half a level", (NODE, TO_INT8), ("-128, 127}>", "-128, 7.5}>")),
    planted(
        "one factor for all", (NODE, BEHIND_GELU), (f"float[{N}] factor = {same(N, '1')}", "float[1] factor = {2}")
    ),
    planted("no affine", (NODE, TO_INT8.replace(", affine = 0", ""))),
    planted("a factor without GELU", (NODE, BEHIND_GELU.replace("gelu = 1", "gelu = 0"))),
    planted("a shift that is left out", (NODE, TO_INT8), ("{0.25, 0, -128", "{0.25, 1, -128")),
    planted("a factor that is left out", (NODE, TO_INT8), (f"factor = {same(N, '1')}", f"factor = {same(N, '2')}")),
]


@cases(CASES)
def test_the_planted_fault_is_the_only_finding(case: Case) -> None:
    check_found(case)


@pytest.mark.parametrize("node", [NODE, TO_INT8, BEHIND_GELU])
def test_the_nodes_without_a_fault_are_clean(node: str) -> None:
    text = swap(TEXT, (NODE, node))
    if node is BEHIND_GELU:
        text = swap(text, (f"factor = {same(N, '1')}", f"factor = {same(N, '2')}"), ("{0.25, 0, -128", "{0.25, 1, -8"))
    assert findings(from_text(text, check=False), "tensorrt") == []


def test_rows_are_held_to_whole_steps_where_k_is_not_known() -> None:
    text = swap(TEXT, (f"5, {K}] x", "5, T] x"))
    assert findings(from_text(text, check=False), "tensorrt") == []
    short = swap(text, (f"int8[{N}, 32] w = {numbers(32 * N, -128, 127)}", f"int8[{N}, 24] w = {numbers(24 * N)}"))
    (found,) = findings(from_text(short, check=False), "tensorrt")
    assert "rows of 24 bytes" in found.what


def test_other_names_of_the_namespace_have_no_importer() -> None:
    (found,) = findings(from_text(swap(TEXT, ("intvit.linear_f16", "intvit.linear_f32")), check=False), "tensorrt")
    assert (found.rule, found.node) == ("tensorrt-operator", "fc1")
