"""Weight-only bundles have no taps; their logits are compared all the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime import cli
from runtime.bundle import Bundle
from runtime.parity import check
from tests.conftest import BACKENDS
from toolchain.build import main


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scheme", ["w4a16", "w8a16", "w4a16+g32"])
def test_logits_without_taps(scheme: str, backend: str, tmp_path: Path) -> None:
    out = tmp_path / scheme
    arguments = [
        "--model",
        "vit_digits",
        "--bits",
        scheme,
        "--method",
        "noise",
        "--images",
        "4",
        "--budget",
        "fast",
        "--target",
        backend,
        "--out",
        str(out),
    ]
    assert cli.invoke(main, arguments) == 0
    found = check(Bundle.open(out), backend=backend)
    assert found.taps == () and found.ok and found.logits_sqnr_db > 80
