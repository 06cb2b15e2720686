"""The engine registry: verified when whole, ignored when its digest is gone, refused when it lies."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.errors import IntvitError
from runtime.files import sha256_bytes
from runtime.registry import EngineRecord, Registry, forget_registry, load_registry, save_registry


def _registry(root: Path, path: str = "engines/ort-0/model.onnx") -> Registry:
    file = root / "engines/ort-0/model.onnx"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"engine")
    record = EngineRecord(backend="ort", key="0" * 16, path=path, sha256=sha256_bytes(b"engine"), bytes=6, inputs={})
    return Registry(engines=[record])


def test_round_trip(tmp_path: Path) -> None:
    assert load_registry(tmp_path).engines == []
    registry = _registry(tmp_path)
    save_registry(tmp_path, registry)
    assert load_registry(tmp_path) == registry


def test_without_its_digest_no_engine_is_used(tmp_path: Path) -> None:
    save_registry(tmp_path, _registry(tmp_path))
    forget_registry(tmp_path)
    assert load_registry(tmp_path).engines == []


@pytest.mark.parametrize("name", ["registry.json", "ort-0/model.onnx"])
def test_a_missing_part_is_named(tmp_path: Path, name: str) -> None:
    save_registry(tmp_path, _registry(tmp_path))
    (tmp_path / "engines" / name).unlink()
    with pytest.raises(IntvitError, match="missing") as caught:
        load_registry(tmp_path)
    assert name in caught.value.where
    assert "engines/" in caught.value.next


def test_an_engine_outside_is_refused(tmp_path: Path) -> None:
    save_registry(tmp_path, _registry(tmp_path, "../engines/ort-0/model.onnx"))
    with pytest.raises(IntvitError, match="leaves the bundle"):
        load_registry(tmp_path)


def test_a_malformed_registry_is_refused(tmp_path: Path) -> None:
    save_registry(tmp_path, _registry(tmp_path))
    data = b'{"engines": 1}'
    (tmp_path / "engines/registry.json").write_bytes(data)
    (tmp_path / "engines/registry.sha256").write_text(sha256_bytes(data) + "\n")
    with pytest.raises(IntvitError, match="malformed"):
        load_registry(tmp_path)
