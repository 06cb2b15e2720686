"""TensorRT takes every graph we emit for it: parsed and built by TensorRT-RTX, which needs neither a GPU nor a driver.

What is shown is that they compile, for the GPUs named; what they do on one is not.

Runs where ``tensorrt-rtx`` is installed: with the ``dev`` extra on Linux x86-64, or ``pip install 'intvit[rtx]'``.
"""

from __future__ import annotations

import pytest

from benches.trt_plans import CAPABILITIES, MODELS, SCHEMES, TWIN, graph, plan_bytes, rows_of
from calib.models import load
from runtime.errors import IntvitError
from tests.toolchain.nets import TINY, calibrated, digits, serialized, spec_of, tiny_canonical, vit
from tests.toolchain.rules.engines import refusal
from toolchain.graph import canonical_graph, float_graph
from toolchain.passes.match import set_constant
from toolchain.targets import ort, tensorrt
from toolchain.targets.choices import TensorRtOptions


@pytest.mark.parametrize("scheme", ["w4a8", "w4a16"])
@pytest.mark.parametrize("network", TINY)
def test_canonical_graphs_are_built(network: str, scheme: str) -> None:
    assert refusal(tiny_canonical(network, scheme)) == ""


def test_groups_are_built_and_stay_four_bits_wide() -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'intvit[rtx]'")
    module = vit(embed_dim=256, depth=1)
    sizes = {}
    for scheme in ("w4a16+g64", "w8a16+g64"):
        made = tensorrt.lower(canonical_graph(calibrated(module, spec_of(module), scheme, images=1)))
        sizes[scheme] = plan_bytes(serialized(made), "8.9")
    assert sizes["w8a16+g64"] - sizes["w4a16+g64"] > 0.4 * 12 * 256 * 256


@pytest.mark.parametrize("network", TINY)
def test_float_twins_are_built(network: str) -> None:
    module = TINY[network]()
    assert refusal(float_graph(module, spec_of(module))) == ""


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8+attn8", "w8a8+res8"])
def test_a_trained_network_is_built(scheme: str) -> None:
    module, spec = digits()
    assert refusal(canonical_graph(calibrated(module, spec, scheme))) == ""


def test_the_ort_dialect_is_refused() -> None:
    """So the test above can fail: that dialect has zero points."""
    assert "zero point" in refusal(ort.lower(tiny_canonical("vit", "w8a8")))


HALF = TensorRtOptions()
ATTENTION = {"w8a8+attn8": ["int8-attention"]}
HEAVY = [pytest.param(name, marks=pytest.mark.slow) for name in ("deit_s", "swin_t")]
HEAVY.append(pytest.param("vit_t", marks=[pytest.mark.real, pytest.mark.slow]))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("model", ["vit_digits", *HEAVY])
def test_every_graph_of_the_dialect_becomes_a_plan(
    model: str, scheme: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parsed and compiled for SM 8.6, 8.9 and 12.0, and the linter has nothing to say but of attention in integers."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'intvit[rtx]'")
    if model == "vit_t":
        monkeypatch.setitem(MODELS, model, str(request.getfixturevalue("vit_tiny_checkpoint")))
    rows = list(rows_of(model, scheme, HALF, list(CAPABILITIES)))
    assert [row["sm"] for row in rows] == list(CAPABILITIES)
    for row in rows:
        assert row["findings"] == ATTENTION.get(scheme, [])
        assert row["plan_bytes"] > row["graph_bytes"] / 2  # the weights are in it


@pytest.mark.parametrize(
    ("scheme", "precision"), [("w8a8", "bf16"), ("w4a16", "bf16"), (TWIN, "bf16"), ("w8a8", "fp32")]
)
def test_other_compute_types_become_plans(precision: str, scheme: str) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'intvit[rtx]'")
    assert plan_bytes(
        serialized(graph(load("vit_digits"), scheme, TensorRtOptions.parse({"precision": precision}))), "8.9"
    )


@pytest.mark.parametrize("network", TINY)
def test_scales_that_borrow_are_built(network: str) -> None:
    """The two scales of a Q/DQ pair may differ (toolchain/passes/balance_scales.py)."""
    canonical = tiny_canonical(network, "w8a8").clone()
    for name, value in canonical.graph.initializers.items():
        if name.endswith("weight_scale"):
            set_constant(value, value.const_value.numpy() / 512)
    dialect = tensorrt.lower(canonical)
    assert any(name.endswith(".balanced") for name in dialect.graph.initializers)
    assert refusal(dialect) == ""


def test_the_fp8_sibling_is_built_where_there_is_fp8() -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'intvit[rtx]'")
    made = serialized(graph(load("vit_digits"), "w8a8", TensorRtOptions("fp16", "fp8")))
    assert plan_bytes(made, "8.9") > 0 and plan_bytes(made, "12.0") > 0
    with pytest.raises(IntvitError, match="cannot build an engine") as caught:
        plan_bytes(made, "8.6")
    assert "fp8" in caught.value.why


def test_a_refused_graph_is_a_readable_error() -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'intvit[rtx]'")
    with pytest.raises(IntvitError, match="cannot read the graph") as caught:
        plan_bytes(serialized(ort.lower(tiny_canonical("vit", "w8a8"))), "8.6")
    assert "zero point" in caught.value.why
