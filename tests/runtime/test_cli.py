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
from runtime.bundle import Bundle
from runtime.errors import IntvitError
from runtime.registry import Registry, save_registry

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
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), 1, "error: standard output, or a file, cannot be written\n"),
        (MemoryError(), 1, "out of memory"),
        (MemoryError(), 1, "--images or --limit, where the command has one"),
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


def _writes(json: cli.JsonOption = None, bundle: Path | None = None, checkpoint: str | None = None) -> None:
    """A command that writes its result over whatever is there."""
    assert json is not None
    json.write_text("result")


@pytest.mark.parametrize("name", ["manifest.json", "manifest.sha256", "ort/model.onnx", "engines/registry.json"])
def test_an_output_does_not_overwrite_the_bundle_that_is_read(
    name: str, bundle_copy: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    save_registry(bundle_copy, Registry(engines=[]))
    before = (bundle_copy / name).read_bytes()
    assert cli.invoke(_writes, ["--json", str(bundle_copy / name), "--bundle", str(bundle_copy)]) == 1
    assert "would overwrite an input" in capfd.readouterr().err and (bundle_copy / name).read_bytes() == before
    for new in ("new.json", "report.html", "reports/parity.json", *2 * ["engines/layers.json"]):
        (bundle_copy / "reports").mkdir(exist_ok=True)
        assert cli.invoke(_writes, ["--json", str(bundle_copy / new), "--bundle", str(bundle_copy)]) == 0
    Bundle.open(bundle_copy)


def test_an_output_does_not_overwrite_the_weights_that_are_read(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / "w.safetensors"
    weights.write_text("weights")
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert cli.invoke(_writes, ["--json", "random", "--checkpoint", "random"]) == 0
    assert cli.invoke(_writes, ["--json", str(weights), "--checkpoint", str(weights)]) == 1
    assert "would overwrite an input" in capfd.readouterr().err and weights.read_text() == "weights"
    assert cli.invoke(_writes, ["--json", str(tmp_path / "new"), "--checkpoint", "random"]) == 0


def test_debug_shows_the_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.invoke(_command(IntvitError("it broke")), ["--debug"]) == 1  # type: ignore[arg-type]
    said = capfd.readouterr().err
    assert "Traceback" in said and said.rstrip().endswith("error: it broke")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has it")
def test_a_full_standard_output_is_told_and_no_file_spoken_of() -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "runtime.doctor"]
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1 and "standard output, or a file, cannot be written" in done.stderr
    assert "left behind" not in done.stderr and "where:" not in done.stderr and "Traceback" not in done.stderr


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


def test_more_threads_than_any_machine_has_are_a_wrong_command_line(capfd: pytest.CaptureFixture[str]) -> None:
    def main(threads: cli.ThreadsOption = None) -> None:
        """A command with an engine."""

    assert cli.invoke(main, ["--threads", "1024"]) == 0
    assert cli.invoke(main, ["--threads", "100000"]) == 2
    assert "--threads" in capfd.readouterr().err


def test_options() -> None:
    assert cli.parse_options(None) == {}
    assert cli.parse_options(["precision=bf16", "cache_dir=a=b"]) == {"precision": "bf16", "cache_dir": "a=b"}
    for text in ("precision", "=bf16"):
        with pytest.raises(IntvitError, match="not an option"):
            cli.parse_options([text])
