"""Which arithmetic is fast: asked of torch, never guessed."""

from __future__ import annotations

import pytest
import torch

from calib.precision import has_fast_bf16


def test_bf16_is_known_of_the_devices_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(has_fast_bf16("cpu"), bool) and not has_fast_bf16("mps")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True, raising=False)
    assert has_fast_bf16("cpu")
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported")
    assert not has_fast_bf16("cpu")
