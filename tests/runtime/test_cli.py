"""Errors without a traceback, ``--debug`` with one, and the exit codes."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer

from calib.errors import IntvitError as CalibError
from runtime import cli
from runtime.errors import IntvitError

ROOT = Path(__file__).resolve().parents[2]


def _command(error: BaseException) -> object:
    def main() -> None:
        """A command that fails."""
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (IntvitError("it broke", where="here", why="since", next="do that"), 1, "error: it broke\nwhere: here\n"),
        (CalibError("it broke", why="since"), 1, "error: it broke\n  why: since\n"),
        (ModuleNotFoundError("No module named 'torch'", name="torch"), 1, "torch is not installed"),
        (KeyboardInterrupt(), 130, "Ctrl-C"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/x/y"), 1, "the disk is full"),
        (PermissionError(errno.EACCES, "Permission denied", "/x/y"), 1, "/x/y"),
        (ValueError("surprise"), 1, "unexpected ValueError: surprise"),
        (MemoryError(), 1, "out of memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate\nmore"), 1, "error: out of memory\n"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 1, "error: out of memory\n"),
        (RuntimeError("surprise"), 1, "unexpected RuntimeError: surprise"),
        (typer.Exit(3), 3, ""),
    ],
)
def test_exit_codes(capfd: pytest.CaptureFixture[str], error: BaseException, code: int, said: str) -> None:
    assert cli.invoke(_command(error), []) == code  # type: ignore[arg-type]
    captured = capfd.readouterr()
    assert said in captured.err and "Traceback" not in captured.err and captured.out == ""


@pytest.mark.parametrize("name", ["", "file/found.json"])
def test_a_result_that_cannot_be_written_is_told_before_the_work(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def main(json: cli.JsonOption = None) -> None:
        """A command that takes long."""
        print("worked")

    (tmp_path / "file").write_text("")
    assert cli.invoke(main, ["--json", str(tmp_path / name)]) == 1
    captured = capfd.readouterr()
    assert "cannot write the file" in captured.err and captured.out == ""
    assert cli.invoke(main, ["--json", str(tmp_path / "found.json")]) == 0
    assert not (tmp_path / "found.json").exists()


def test_debug_shows_the_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.invoke(_command(IntvitError("it broke")), ["--debug"]) == 1  # type: ignore[arg-type]
    said = capfd.readouterr().err
    assert "Traceback" in said and said.rstrip().endswith("error: it broke")


def test_wrong_command_line() -> None:
    assert cli.invoke(_command(IntvitError("x")), ["--nonsense"]) == 2  # type: ignore[arg-type]


@pytest.mark.parametrize("verb", ["compile", "bench", "accuracy", "parity", "doctor"])
def test_every_verb_has_help(verb: str) -> None:
    import importlib

    assert cli.invoke(importlib.import_module(f"runtime.{verb}").main, ["--help"]) == 0


def test_ctrl_c_ends_a_verb_with_130(tiny_bundle: Path) -> None:
    command = [sys.executable, "-m", "runtime.bench", str(tiny_bundle), "--seconds", "60"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        time.sleep(3.0)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 130, said
    assert "Ctrl-C" in said and "Traceback" not in said


def test_options() -> None:
    assert cli.parse_options(None) == {}
    assert cli.parse_options(["precision=bf16", "cache_dir=a=b"]) == {"precision": "bf16", "cache_dir": "a=b"}
    for text in ("precision", "=bf16"):
        with pytest.raises(IntvitError, match="not an option"):
            cli.parse_options([text])
