"""TensorRT takes every graph we emit for it: parsed and built by TensorRT-RTX, which needs neither a GPU nor a driver.

Runs where ``tensorrt-rtx`` is installed: with the ``dev`` extra on Linux x86-64, or ``pip install 'intvit[rtx]'``.
"""

from __future__ import annotations

import pytest

from tests.toolchain.nets import TINY, calibrated, digits, spec_of, tiny_canonical
from tests.toolchain.rules.engines import refusal
from toolchain.graph import canonical_graph, float_graph
from toolchain.targets import ort


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8", "w4a4", "w4a16", "w8a8+attn8"])
@pytest.mark.parametrize("network", TINY)
def test_canonical_graphs_are_built(network: str, scheme: str) -> None:
    assert refusal(tiny_canonical(network, scheme)) == ""


@pytest.mark.parametrize("network", TINY)
def test_float_twins_are_built(network: str) -> None:
    module = TINY[network]()
    assert refusal(float_graph(module, spec_of(module))) == ""


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8+attn8"])
def test_a_trained_network_is_built(scheme: str) -> None:
    module, spec = digits()
    assert refusal(canonical_graph(calibrated(module, spec, scheme))) == ""


def test_the_ort_dialect_is_refused() -> None:
    """So the test above can fail: that dialect has zero points."""
    assert "zero point" in refusal(ort.lower(tiny_canonical("vit", "w8a8")))
