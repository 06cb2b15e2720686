"""Paths that stay inside a bundle, and files that are byte for byte what a listing says."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from runtime.errors import IntvitError
from runtime.files import sha256_bytes, sha256_file

_REMAKE = "copy the bundle again from where it was built, or build it again"
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
    if not file.resolve().is_relative_to(base):
        raise IntvitError(
            "a listed path leaves the bundle", where=str(file), why=f"a symbolic link to {file.resolve()}", next=_REMAKE
        )
    try:
        status = file.stat()
    except OSError as error:
        why = error.strerror or str(error)
        raise IntvitError("a file of the bundle is missing", where=str(file), why=why, next=_REMAKE) from error
    if not stat.S_ISREG(status.st_mode):
        raise IntvitError("not a regular file", where=str(file), why=f"{where} lists it as a file", next=_REMAKE)
    if status.st_size != size:
        why = f"{status.st_size} bytes, {where} says {size}"
        raise IntvitError("a file of the bundle is truncated or altered", where=str(file), why=why, next=_REMAKE)
    try:
        found = sha256_file(file)
    except OSError as error:
        why = error.strerror or str(error)
        raise IntvitError("cannot read a file of the bundle", where=str(file), why=why) from error
    if found != sha256:
        why = f"sha256 {found[:16]}..., {where} says {sha256[:16]}..."
        raise IntvitError("a file of the bundle has been altered", where=str(file), why=why, next=_REMAKE)
    return file


def read_digested(listing: Path, digest: Path, *, mend: str = _REMAKE) -> bytes:
    """The bytes of ``listing``, once their sha256 is the one ``digest`` holds (64 hex digits and a newline).

    Raises:
        IntvitError: either file is missing or malformed, or they do not belong together.
    """
    try:
        data, expected = listing.read_bytes(), digest.read_bytes()
    except OSError as error:
        why = error.strerror or str(error)
        raise IntvitError(
            "a file of the bundle is missing", where=str(error.filename or listing), why=why, next=mend
        ) from error
    if _DIGEST.fullmatch(expected) is None:
        why = "it must hold 64 hex digits and a newline"
        raise IntvitError("a file of the bundle has been altered", where=str(digest), why=why, next=mend)
    found = sha256_bytes(data)
    if found != expected.decode("ascii").strip():
        why = f"its sha256 is {found[:16]}..., {digest.name} says {expected[:16].decode('ascii')}..."
        raise IntvitError("a file of the bundle has been altered", where=str(listing), why=why, next=mend)
    return data
