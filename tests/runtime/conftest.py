"""Fixtures: a tiny bundle made once a session, and copies of it to spoil."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.runtime.tiny import make_bundle


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole bundle; nobody writes to it."""
    return make_bundle(tmp_path_factory.mktemp("tiny") / "bundle")


@pytest.fixture
def bundle_copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the bundle to write to."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
