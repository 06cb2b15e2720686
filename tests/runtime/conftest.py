"""Fixtures: a tiny bundle made once a session, copies of it to spoil, and machines with a fake GPU."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.fakes.machine import GPU, install
from tests.runtime.fakes.world import World
from tests.runtime.tensorrt_names import VERSIONS
from tests.runtime.tiny import make_bundle


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole bundle; nobody writes to it."""
    return make_bundle(tmp_path_factory.mktemp("tiny") / "bundle")


@pytest.fixture
def bundle_copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the bundle to write to."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    """Each version of TensorRT that there is a list of names of."""
    return str(request.param)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., World]]:
    """Makes a machine with a fake GPU, TensorRT of a version and a library for memory; no rule is broken at its end."""
    monkeypatch.setenv("INTVIT_CACHE", str(tmp_path / "cache"))
    worlds = []

    def make(version: str = "10.3", cuda: str = "pycuda", **changes: Any) -> World:
        worlds.append(install(monkeypatch, version, cuda, replace(GPU, **changes)))
        return worlds[-1]

    yield make
    for world in worlds:
        assert world.broken == []
