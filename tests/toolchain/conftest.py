"""Bundles of vit_digits, made once a session by the command line itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from runtime import cli
from toolchain.build import main


@pytest.fixture(scope="session")
def digits_bundle(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``digits_bundle("w4a8")``: the bundle of vit_digits in that scheme, calibrated on noise. Nobody writes to it."""
    made: dict[str, Path] = {}

    def bundle(scheme: str) -> Path:
        if scheme not in made:
            root = tmp_path_factory.mktemp("digits")
            out = root / scheme
            options = [
                "--method",
                "noise",
                "--images",
                "8",
                "--budget",
                "fast",
                "--target",
                "ort,openvino,tensorrt",
                "--cache",
                str(root / "cache"),
                "--out",
                str(out),
            ]
            assert cli.invoke(main, ["--model", "vit_digits", "--bits", scheme, *options]) == 0
            made[scheme] = out
        return made[scheme]

    return bundle
