"""The engines compiled on this device: ``engines/registry.json`` and its digest, verified like the manifest.

The digest is removed before anything changes and written last. A registry without its digest is an update that was
cut short: it is ignored, so no engine it names is used and the next ``compile`` writes it anew.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from runtime.errors import IntvitError
from runtime.files import atomic_write_bytes, atomic_write_text, json_text, sha256_bytes, write_error
from runtime.manifest import Strict
from runtime.verify import check_file, check_unique, read_digested

ENGINES = "engines"
REGISTRY = "registry.json"
REGISTRY_DIGEST = "registry.sha256"
_MEND = "delete the bundle's engines/ directory and run `python -m runtime.compile` again"


class EngineRecord(Strict):
    """One compiled engine. ``key`` is the hash of ``inputs``: all that decides the compiled file's bytes."""

    backend: str
    key: str = Field(pattern=r"^[0-9a-f]{16}$")
    path: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)
    inputs: dict[str, Any]
    kernels: dict[str, int] = Field(default_factory=dict)


class Registry(Strict):
    """The list of compiled engines, version 1."""

    schema_version: Literal[1] = 1
    engines: list[EngineRecord]


def compile_key(inputs: dict[str, Any]) -> str:
    """A short name (16 hex digits) for all that decides a compiled engine's bytes."""
    return sha256_bytes(json_text(inputs).encode("utf-8"))[:16]


def find_engine(engines: Sequence[EngineRecord], backend: str, inputs: dict[str, Any]) -> EngineRecord | None:
    """The engine of ``backend`` that was compiled from exactly these ``inputs``, if there is one."""
    key = compile_key(inputs)
    return next((record for record in engines if record.backend == backend and record.key == key), None)


def load_registry(root: Path) -> Registry:
    """The verified registry of the bundle at ``root``; an empty one when nothing was compiled.

    Raises:
        IntvitError: the registry, its digest or an engine it lists is missing or altered.
    """
    listing, digest = root / ENGINES / REGISTRY, root / ENGINES / REGISTRY_DIGEST
    if not digest.exists():
        return Registry(engines=[])
    data = read_digested(listing, digest, mend=_MEND)
    try:
        registry = Registry.model_validate_json(data)
    except ValidationError as error:
        raise IntvitError("the engine registry is malformed", where=str(listing), why=str(error), next=_MEND) from error
    check_unique((record.path for record in registry.engines), where=str(listing))
    for record in registry.engines:
        try:
            check_file(root, record.path, size=record.bytes, sha256=record.sha256, where=f"{ENGINES}/{REGISTRY}")
        except IntvitError as error:
            raise IntvitError(error.what, where=error.where, why=error.why, next=_MEND) from error
    return registry


def forget_registry(root: Path) -> None:
    """Remove the digest, so that the registry and the engines it names are ignored until :func:`save_registry`.

    Raises:
        IntvitError: the directory cannot be written.
    """
    digest = root / ENGINES / REGISTRY_DIGEST
    try:
        digest.unlink(missing_ok=True)
    except OSError as error:
        raise write_error(digest, error) from error


def save_registry(root: Path, registry: Registry) -> None:
    """Write the registry and its digest; at no moment do a registry and a digest that disagree exist together.

    Raises:
        IntvitError: the directory cannot be written.
    """
    data = json_text(registry.model_dump(mode="json")).encode("utf-8")
    forget_registry(root)
    atomic_write_bytes(root / ENGINES / REGISTRY, data)
    atomic_write_text(root / ENGINES / REGISTRY_DIGEST, sha256_bytes(data) + "\n")


def difference(library: str, old: EngineRecord | None, inputs: dict[str, Any]) -> str:
    """Why an engine is built where ``old`` is: one line that names every input that differs."""
    if old is None:
        return f"no engine for {library} yet"
    changed = [
        f"{name} {_short(old.inputs.get(name))} -> {_short(inputs.get(name))}"
        for name in sorted({*old.inputs, *inputs})
        if old.inputs.get(name) != inputs.get(name)
    ]
    return "changed: " + "; ".join(changed) if changed else "--force"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:12] + "..."


def add_engine(
    root: Path,
    engines: Sequence[EngineRecord],
    record: EngineRecord,
    data: bytes,
    replaces: Callable[[EngineRecord], bool],
) -> list[EngineRecord]:
    """Write an engine and register it beside ``engines``, without those it ``replaces``, whose files are removed.

    Raises:
        IntvitError: the bundle cannot be written to; no engine of it is used then.
    """
    kept = [old for old in engines if old.key != record.key and not replaces(old)]
    forget_registry(root)
    atomic_write_bytes(root / record.path, data)
    save_registry(root, Registry(engines=[*kept, record]))
    used = {(root / one.path).parent.name for one in (*kept, record)}
    for folder in (root / ENGINES).iterdir():
        if folder.is_dir() and folder.name not in used:
            shutil.rmtree(folder, ignore_errors=True)
    return [*kept, record]
