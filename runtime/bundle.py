"""A bundle opened: every byte verified before anything in it is used."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from runtime.classes import Classes, load_classes
from runtime.errors import IntvitError
from runtime.files import atomic_write_bytes, atomic_write_text, json_text, sha256_bytes, sha256_file, write_error
from runtime.golden import Golden, load_golden
from runtime.machine import version_of
from runtime.manifest import MANIFEST, MANIFEST_DIGEST, SCHEMA_VERSION, FileEntry, Manifest
from runtime.registry import EngineRecord, load_registry
from runtime.verify import check_file, check_unique, read_digested, safe_relative

Role = Literal["graph", "float_twin", "canonical", "golden", "preview", "classes", "report", "other"]
_AGAIN = "build the bundle again with this version of intvit"


def _check_version(raw: Any, where: str) -> None:
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if type(version) is int and version == SCHEMA_VERSION:  # not True, which equals 1
        return
    if type(version) is not int or version < SCHEMA_VERSION:
        raise IntvitError(
            "the manifest has no known schema version", where=where, why=f"schema_version {version!r}", next=_AGAIN
        )
    provenance = raw.get("provenance")
    made_by = str(provenance.get("intvit", "")) if isinstance(provenance, dict) else ""
    needed = f"intvit {made_by} or later" if made_by else f"an intvit that reads schema version {version}"
    raise IntvitError(
        f"the bundle needs {needed}",
        where=where,
        why=f"schema version {version}; this intvit {version_of('intvit') or '(not installed)'} reads {SCHEMA_VERSION}",
        next=f"pip install --upgrade 'intvit{'>=' + made_by if made_by else ''}'",
    )


def _load_manifest(root: Path) -> tuple[Manifest, str]:
    path = root / MANIFEST
    data = read_digested(path, root / MANIFEST_DIGEST)
    try:
        raw = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise IntvitError("the manifest is not JSON", where=str(path), why=str(error), next=_AGAIN) from error
    _check_version(raw, str(path))
    try:
        return Manifest.model_validate_json(data), sha256_bytes(data)
    except ValidationError as error:
        raise IntvitError(
            "the manifest does not follow its schema",
            where=str(path),
            why=str(error),
            next=_AGAIN,
        ) from error


@dataclass(frozen=True)
class Bundle:
    """A verified bundle. Make one with :meth:`open`.

    Attributes:
        root: the bundle's directory.
        manifest: what the bundle says of itself.
        sha256: the digest of ``manifest.json``, and so of every file of the bundle.
        engines: the engines compiled from it on this device.
    """

    root: Path
    manifest: Manifest
    sha256: str
    engines: tuple[EngineRecord, ...]

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Bundle:
        """Verify the bundle at ``path`` (a directory): manifest, digests, sizes and places of every listed file.

        Raises:
            IntvitError: naming the first file that is missing, altered, listed twice or outside the bundle.
        """
        root = Path(path)
        if not any((root / name).exists() for name in (MANIFEST, MANIFEST_DIGEST)):
            why = "it is a file" if root.exists() else "there is no such directory"
            why = f"there is no {MANIFEST} in it" if root.is_dir() else why
            hint = "give the directory that `python -m toolchain.build` made"
            raise IntvitError("not a bundle", where=str(root), why=why, next=hint)
        manifest, digest = _load_manifest(root)
        check_unique((entry.path for entry in manifest.files), where=MANIFEST)
        for entry in manifest.files:
            check_file(root, entry.path, size=entry.bytes, sha256=entry.sha256, where=MANIFEST)
        return cls(root, manifest, digest, tuple(load_registry(root).engines))

    @property
    def targets(self) -> list[str]:
        """The targets it has a graph for, sorted."""
        return sorted(entry.target for entry in self.manifest.files if entry.role == "graph")

    def entry(self, role: Role, target: str = "") -> FileEntry:
        """The manifest's entry of that role and target.

        Raises:
            IntvitError: there is none, or more than one.
        """
        found = [entry for entry in self.manifest.files if entry.role == role and entry.target == target]
        targets = sorted({entry.target for entry in self.manifest.files if entry.role == role})
        if role == "graph" and not found:
            why = f"it was built for {', '.join(targets) or 'no target'}"
            hint = f"build it again with --target {','.join([*targets, target])}"
            hint = f"--backend {' or '.join(targets)}; or {hint}" if targets else hint
            raise IntvitError(f"the bundle has no graph for {target}", where=str(self.root), why=why, next=hint)
        if len(found) != 1:
            label = f"{role!r} for target {target!r}" if target else repr(role)
            why = f"{len(found)} entries; targets of that role: {', '.join(map(repr, targets)) or 'none'}"
            raise IntvitError(f"the bundle has no single file of role {label}", where=str(self.root), why=why)
        return found[0]

    def file(self, role: Role, target: str = "") -> Path:
        """The path of the file :meth:`entry` finds.

        Raises:
            IntvitError: there is none, or more than one.
        """
        return self.root / self.entry(role, target).path

    def golden(self) -> Golden:
        """The golden vectors, checked against the manifest.

        Raises:
            IntvitError: a tensor is missing, or its shape or type is wrong.
        """
        return load_golden(self.file("golden"), self.manifest)

    def classes(self) -> Classes:
        """The class ids and names in logit order.

        Raises:
            IntvitError: the file is malformed or does not have ``num_classes`` entries.
        """
        return load_classes(self.file("classes"), self.manifest.num_classes)


def entry_for(directory: str | os.PathLike[str], relpath: str, role: Role, target: str = "") -> FileEntry:
    """The manifest entry of the file ``relpath`` (forward slashes) that lies in ``directory`` now.

    Raises:
        IntvitError: the path leaves the directory or the file cannot be read.
    """
    safe_relative(relpath, where=str(directory))
    path = Path(directory) / relpath
    try:
        return FileEntry(path=relpath, sha256=sha256_file(path), bytes=path.stat().st_size, role=role, target=target)
    except OSError as error:
        raise IntvitError("cannot read a file for the bundle", where=str(path), why=error.strerror or "") from error


def write_manifest(directory: str | os.PathLike[str], manifest: Manifest) -> None:
    """Write ``manifest.json`` and ``manifest.sha256``; equal manifests give equal bytes.

    The old digest is removed first, so a cut in the middle leaves a bundle that is refused, never one half trusted.

    Raises:
        IntvitError: the directory cannot be written.
    """
    root = Path(directory)
    data = json_text(manifest.model_dump(mode="json")).encode("utf-8")
    try:
        (root / MANIFEST_DIGEST).unlink(missing_ok=True)
    except OSError as error:
        raise write_error(root / MANIFEST_DIGEST, error) from error
    atomic_write_bytes(root / MANIFEST, data)
    atomic_write_text(root / MANIFEST_DIGEST, sha256_bytes(data) + "\n")
