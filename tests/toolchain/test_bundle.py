"""What a bundle says of its network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from calib.models import describe
from calib.real_images import load_images
from runtime.images import load_image
from toolchain.bundle import preprocess_rule


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
def test_calibration_and_runtime_see_the_same_picture(tmp_path: Path, mode: str) -> None:
    spec = replace(describe("deit_t"), input_size=(3, 32, 32), crop_mode=mode)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 90, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    seen = load_image(tmp_path / "a.png", preprocess_rule(spec))
    np.testing.assert_allclose(load_images(tmp_path, spec, 1)[0].numpy(), seen, rtol=0, atol=1e-6)
