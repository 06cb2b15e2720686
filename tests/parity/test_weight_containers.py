"""Four bits in the file or eight, the engine computes the same bits: networks of full size.

tests/parity/test_digits.py has small ones in the quick set.
"""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest

from calib.align.config import CalibrateConfig, CorrectionConfig, LayerConfig
from calib.calibrate import calibrate
from calib.models import load
from calib.scheme import parse
from tests.toolchain.nets import noise, run, stored_as, with_wide_weights
from toolchain.graph import canonical_graph
from toolchain.targets import ort

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
# Ranges and rounding to nearest: the bits do not care how the weights were chosen.
QUICK = CalibrateConfig(layer=LayerConfig(ranges="minmax", correction=CorrectionConfig("none")), fold="off")


def bit_exact(network: str, checkpoint: str, scheme: str) -> None:
    """Lower one network twice, its weights in INT4 and in INT8, and compare every bit of the logits."""
    loaded = load(network, checkpoint)
    loaded.module.requires_grad_(False)
    model = calibrate(loaded.module, loaded.spec, parse(scheme), noise(loaded.spec, 1), QUICK)
    packed, wide = ort.lower(canonical_graph(model)), ort.lower(with_wide_weights(model))
    assert stored_as(packed, ir.DataType.INT4) == len(model.layers()) - 1  # the patch embedding has 8 bits
    assert stored_as(wide, ir.DataType.INT4) == 0
    images = {"images": noise(loaded.spec, 2, seed=3).numpy()}
    logits = run(packed, images)
    assert (logits == run(wide, images)).all()
    assert (logits[0] != logits[1]).any()


@pytest.mark.parametrize("scheme", ["w4a8", "w4a4", "w3a8", "w4a8+attn8"])
def test_swin_t(scheme: str) -> None:
    bit_exact("swin_t", "random", scheme)


@pytest.mark.real
@pytest.mark.parametrize("scheme", ["w4a8", "w4a4", "w3a8", "w4a8+attn8"])
def test_vit_t(scheme: str, vit_tiny_checkpoint: Path) -> None:
    bit_exact("vit_t", str(vit_tiny_checkpoint), scheme)
