"""Files that are either whole or absent: written under a temporary name, synced, then renamed.

A link stays one, and what it points at is written; a pipe or a device (``/dev/null``, a shell's ``>(command)``) is
written into, once the whole is there.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from runtime.errors import IntvitError


def disk_full(error: OSError) -> bool:
    """Whether the error says that a disk or a quota is used up."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def write_error(path: Path, error: OSError) -> IntvitError:
    """The readable form of an ``OSError`` met while writing ``path``; a full disk is told apart from the rest."""
    if disk_full(error):
        return IntvitError(
            "the disk is full",
            where=str(path),
            why="nothing was left behind: the unfinished file has been removed",
            next=f"free some space under {path.parent} and run the same command again",
        )
    if isinstance(error, IsADirectoryError):
        return IntvitError("cannot write the file", where=str(path), why="it is a folder", next="name a file in it")
    return IntvitError(
        "cannot write the file",
        where=str(path),
        why=error.strerror or str(error),
        next=f"check that {path.parent} exists and may be written to",
    )


def _destination(path: Path) -> tuple[Path, bool]:
    """Where what is written to ``path`` ends, links followed, and whether that is no file: a pipe or a device.

    Raises:
        OSError: it is a folder, or links that lead nowhere.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return path.resolve(), False
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    return (path.resolve(), False) if stat.S_ISREG(mode) else (path, True)


def require_writable(path: Path) -> None:
    """Refuse a ``path`` that no file can be written at, before the work whose result it is to hold; nothing is left.

    Raises:
        IntvitError: it is a folder, a pipe or device that may not be written to, or nothing can be made in the nearest
            folder above it that exists.
    """
    try:
        final, stream = _destination(path)
        if stream:
            if not os.access(final, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            return
        above = final.parent
        while not above.exists():
            above = above.parent
        os.rmdir(tempfile.mkdtemp(prefix=".intvit-", dir=above))
    except OSError as error:
        raise write_error(path, error) from error


def require_apart(out: Path, inputs: Iterable[Path]) -> None:
    """Refuse an ``out`` that is one of ``inputs``, files or folders, or a folder around one; links are followed.

    Raises:
        IntvitError: naming the input.
    """
    final = Path(os.path.realpath(out))
    for path in filter(os.path.exists, inputs):
        same = os.path.exists(final) and os.path.samefile(final, path)
        if same or final in Path(os.path.realpath(path)).parents:
            hint = "name another place for what is written"
            why = f"the command reads {path}" + ("" if same else ", which lies in it")
            raise IntvitError("the output would overwrite an input", where=str(out), why=why, next=hint)


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; it takes the name ``path`` when the block ends without an exception.

    The parent directory is made when missing. On any exception the temporary file is removed. Where ``path`` is a pipe
    or a device, the temporary file lies elsewhere, and its bytes go into ``path`` at the end.

    Raises:
        IntvitError: the file cannot be written (no space, no permission).
    """
    temporary: Path | None = None
    try:
        final, stream = _destination(Path(path))
        folder = Path(tempfile.gettempdir()) if stream else final.parent
        temporary = folder / f".{final.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp"
        folder.mkdir(parents=True, exist_ok=True)
        yield temporary
        if stream:
            with open(temporary, "rb") as made, open(final, "wb") as sink:
                shutil.copyfileobj(made, sink)
        else:
            os.replace(temporary, final)
    except OSError as error:
        raise write_error(Path(path), error) from error
    finally:
        with contextlib.suppress(OSError):
            if temporary is not None:
                temporary.unlink(missing_ok=True)


def atomic_write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write ``data`` to ``path`` so that a reader sees the old file or the new one, never a part.

    Raises:
        IntvitError: the file cannot be written; nothing is left behind.
    """
    with atomic_path(path) as temporary, open(temporary, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def atomic_write_text(path: str | os.PathLike[str], text: str) -> None:
    """:func:`atomic_write_bytes` of ``text`` in UTF-8, line ends kept as they are.

    A byte of a file name that is no UTF-8, which Python reads as half of a surrogate pair, becomes ``\\udcXX``: in JSON
    an escape that is read as that half again.
    """
    atomic_write_bytes(path, text.encode("utf-8", "backslashreplace"))


def json_text(value: Any) -> str:
    """``value`` as JSON with sorted keys, indent 2 and a trailing newline: the same value gives the same bytes."""
    return json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def atomic_write_json(path: str | os.PathLike[str], value: Any) -> None:
    """:func:`atomic_write_bytes` of :func:`json_text` of ``value``."""
    atomic_write_text(path, json_text(value))


def sha256_bytes(data: bytes) -> str:
    """The sha256 of ``data`` as 64 lower-case hex digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: str | os.PathLike[str]) -> str:
    """The sha256 of a file's bytes as 64 lower-case hex digits, read a MiB at a time.

    Raises:
        OSError: the file cannot be read.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def user_cache() -> Path:
    """Where this user's files that can be made again lie: ``$INTVIT_CACHE``, ``$XDG_CACHE_HOME/intvit``, or
    ``~/.cache/intvit``.
    """
    chosen = os.environ.get("INTVIT_CACHE")
    return Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "intvit"
