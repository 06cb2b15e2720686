"""Paths that stay inside a bundle, and files that are byte for byte what a listing says."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from runtime.errors import IntvitError
from runtime.files import sha256_bytes, sha256_file

_REMAKE = "copy the bundle again from where it was built, or build it again"
_MAY_BE_READ = "check that the file may be read, and the disk it lies on"
_LISTING_BYTES = 64 << 20
_DIGEST = re.compile(rb"[0-9a-f]{64}\n")


def safe_relative(path: str, *, where: str) -> PurePosixPath:
    """``path`` as a relative POSIX path that cannot leave its directory by its spelling.

    Raises:
        IntvitError: it is absolute or empty, or has "..", ".", a backslash, a drive letter or a control character.
    """
    parts = path.split("/")
    bad = (
        not path
        or "\\" in path
        or any(part in ("", ".", "..") for part in parts)
        or re.match(r"[A-Za-z]:", path) is not None
        or any(ord(character) < 32 or ord(character) == 127 for character in path)
    )
    if bad:
        raise IntvitError("a listed path leaves the bundle", where=where, why=f"path {path!r}", next=_REMAKE)
    return PurePosixPath(*parts)


def check_unique(paths: Iterable[str], *, where: str) -> None:
    """Refuse a path listed twice, also when only the case differs.

    Raises:
        IntvitError: naming the path.
    """
    seen: set[str] = set()
    for path in paths:
        if path.casefold() in seen:
            raise IntvitError("a file is listed twice", where=where, why=f"path {path!r}", next=_REMAKE)
        seen.add(path.casefold())


def _cannot_read(file: Path, error: OSError, mend: str) -> IntvitError:
    why = error.strerror or str(error)
    if isinstance(error, FileNotFoundError):
        return IntvitError("a file of the bundle is missing", where=str(file), why=why, next=mend)
    return IntvitError("cannot read a file of the bundle", where=str(file), why=why, next=_MAY_BE_READ)


def _regular_size(file: Path, mend: str) -> int:
    """The size in bytes of a file that is neither a folder nor a pipe or a device, which might never end."""
    try:
        status = file.stat()
    except OSError as error:
        raise _cannot_read(file, error, mend) from error
    if not stat.S_ISREG(status.st_mode):
        why = "it is a folder, a pipe or a device where the bundle has a file"
        raise IntvitError("not a regular file", where=str(file), why=why, next=mend)
    return status.st_size


def _listing_bytes(file: Path, mend: str) -> bytes:
    size = _regular_size(file, mend)
    if size > _LISTING_BYTES:
        why = f"{size} bytes, at most {_LISTING_BYTES} are read"
        raise IntvitError("a file of the bundle is too large", where=str(file), why=why, next=mend)
    try:
        return file.read_bytes()
    except OSError as error:
        raise _cannot_read(file, error, mend) from error


def check_file(root: Path, path: str, *, size: int, sha256: str, where: str) -> Path:
    """The absolute path of a listed file, once its place, kind, size (bytes) and sha256 are found right.

    Args:
        root: the bundle's directory.
        path: as listed, relative to ``root``.
        where: the listing's name, for the message.

    Raises:
        IntvitError: naming the file and what differs.
    """
    safe_relative(path, where=where)
    file = root / path
    base = root.resolve()
    end = Path(os.path.realpath(file))  # resolve() raises RuntimeError where links go round
    if not end.is_relative_to(base):
        raise IntvitError(
            "a listed path leaves the bundle", where=str(file), why=f"a symbolic link to {end}", next=_REMAKE
        )
    found_size = _regular_size(file, _REMAKE)
    if found_size != size:
        why = f"{found_size} bytes, {where} says {size}"
        raise IntvitError("a file of the bundle is truncated or altered", where=str(file), why=why, next=_REMAKE)
    try:
        found = sha256_file(file)
    except OSError as error:
        raise _cannot_read(file, error, _REMAKE) from error
    if found != sha256:
        why = f"sha256 {found[:16]}..., {where} says {sha256[:16]}..."
        raise IntvitError("a file of the bundle has been altered", where=str(file), why=why, next=_REMAKE)
    return file


def read_digested(listing: Path, digest: Path, *, mend: str = _REMAKE) -> bytes:
    """The bytes of ``listing``, once their sha256 is the one ``digest`` holds (64 hex digits and a newline).

    Raises:
        IntvitError: either file is missing, malformed, too large or no regular file, or they do not belong together.
    """
    data, expected = _listing_bytes(listing, mend), _listing_bytes(digest, mend)
    if _DIGEST.fullmatch(expected) is None:
        why = "it must hold 64 hex digits and a newline"
        raise IntvitError("a file of the bundle has been altered", where=str(digest), why=why, next=mend)
    found = sha256_bytes(data)
    if found != expected.decode("ascii").strip():
        why = f"its sha256 is {found[:16]}..., {digest.name} says {expected[:16].decode('ascii')}..."
        raise IntvitError("a file of the bundle has been altered", where=str(listing), why=why, next=mend)
    return data
