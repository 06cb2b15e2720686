"""Errors of the command in words, with honest exit codes."""

from __future__ import annotations

import errno

import pytest

from calib.command import as_message, run
from calib.errors import IntvitError


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (IntvitError("no", where="here", why="because", next="go"), "go"),
        (OSError(errno.ENOSPC, "No space left on device", "/x"), "--out"),
        (OSError(errno.EACCES, "Permission denied", "/x"), "Permission denied"),
        (MemoryError("cannot get 1 GiB"), "--batch"),
        (RuntimeError("CUDA out of memory. Tried to allocate\nmore"), "--batch"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate"), "--batch"),
        (RuntimeError("odd"), "fault of intvit"),
        (ValueError("odd"), "fault of intvit"),
    ],
)
def test_messages(error: Exception, text: str) -> None:
    shown = as_message(error).render()
    assert text in shown and "Traceback" not in shown


@pytest.mark.parametrize(("raised", "code"), [(None, 0), (IntvitError("no"), 1), (KeyboardInterrupt(), 130)])
def test_exit_codes(
    raised: BaseException | None, code: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def command() -> None:
        if raised is not None:
            raise raised

    monkeypatch.setattr("sys.argv", ["calib"])
    with pytest.raises(SystemExit) as stop:
        run(command)
    assert (stop.value.code or 0) == code
    assert "Traceback" not in capsys.readouterr().err


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def command() -> None:
        raise ValueError("odd")

    monkeypatch.setattr("sys.argv", ["calib", "--debug"])
    with pytest.raises(SystemExit) as stop:
        run(command)
    assert stop.value.code == 1
    assert "Traceback" in capsys.readouterr().err
