"""What every test may use: where the measuring data is, and an environment that leaves the user's files alone."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

REPO = Path(__file__).resolve().parent.parent
SHARED = REPO.parent / "shared"
NO_OPENVINO = "OpenVINO is not installed: pip install 'intvit[openvino]'"
_OPENVINO = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason=NO_OPENVINO)
BACKENDS = ("ort", pytest.param("openvino", marks=_OPENVINO))


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Stages that tests compute go to a folder of this session, never to the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INTVIT_CACHE", str(tmp_path_factory.mktemp("intvit-cache")))
        yield


@pytest.fixture(autouse=True, scope="session")
def _two_threads() -> None:
    """Torch takes two threads at most, one beside other test processes; without torch there is nothing to set."""
    if importlib.util.find_spec("torch") is not None:
        import torch

        torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else min(2, os.cpu_count() or 1))


def pyproject() -> dict[str, Any]:
    """The tables of pyproject.toml."""
    toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    tables: dict[str, Any] = toml.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))
    return tables


def _shared(relative: str) -> Path:
    path = SHARED / relative
    if not path.exists():
        pytest.skip(f"the measuring data is not here: {path}")
    return path


@pytest.fixture(scope="session")
def vit_tiny_checkpoint() -> Path:
    """ImageNet-1k ViT-Ti/16 as safetensors with timm's names."""
    return _shared("data/vit_tiny_patch16_224.augreg_in21k_ft_in1k/model.safetensors")


@pytest.fixture(scope="session")
def photographs() -> Path:
    """1,000 labelled photographs, ``<wnid>/*.jpg``."""
    return _shared("data/imagenet-ccby/val")
