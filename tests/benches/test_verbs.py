"""What every bench does with its options: lists of names, numbers and schemes, and a readable error for a wrong one."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from benches.verbs import numbers, schemes
from runtime import cli
from runtime.errors import IntvitError
from tests.conftest import REPO


def test_lists_of_numbers_and_of_schemes() -> None:
    assert numbers("8, 1", "--batches") == [8, 1] and numbers("0", "--seeds", 0) == [0]
    assert schemes("w4a8, w8a8+attn8") == ["w4a8", "w8a8+attn8"]


@pytest.mark.parametrize(("given", "least"), [("", 1), ("x", 1), ("1,,2", 1), ("0", 1), ("1,-1", 0), ("1.5", 0)])
def test_what_is_no_list_of_numbers_is_refused(given: str, least: int) -> None:
    with pytest.raises(IntvitError, match="no list of numbers") as caught:
        numbers(given, "--batches", least)
    assert caught.value.where == "--batches" and f"{least} or more" in caught.value.next


@pytest.mark.parametrize(
    ("bench", "options", "said"),
    [
        ("cpu_engines", ["--batches", "x"], "where: --batches"),
        ("synthesis_accuracy", ["--images", "abc"], "where: --images"),
        ("synthesis_accuracy", ["--seeds", "x"], "where: --seeds"),
        ("synthesis_accuracy", ["--schemes", "foo"], "where: --schemes"),
        ("synthesis_accuracy", ["--device", "foo"], "unknown device 'foo'"),
        ("calibration_accuracy", ["--images", "x"], "where: --images"),
        ("calibration_accuracy", ["--seeds", "-1"], "where: --seeds"),
        ("calibration_accuracy", ["--schemes", "foo"], "where: --schemes"),
        ("calibration_accuracy", ["--device", "foo"], "unknown device 'foo'"),
        ("head_similarity", ["--device", "foo"], "unknown device 'foo'"),
        ("synthesis_speed", ["--device", "foo"], "unknown device 'foo'"),
        ("gpu_bench", ["--device", "cpu"], "this bench does not run on 'cpu'"),
    ],
)
def test_a_wrong_option_of_a_bench_is_one_readable_error(
    bench: str, options: list[str], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.invoke(importlib.import_module(f"benches.{bench}").main, options) == 1
    printed = capfd.readouterr()
    assert said in printed.err and "next: " in printed.err
    assert "fault of intvit" not in printed.err and printed.out == ""


def test_threads_below_none_are_a_wrong_command_line(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.invoke(importlib.import_module("benches.cpu_engines").main, ["--threads", "-1"]) == 2
    assert "--threads" in capfd.readouterr().err


def test_the_worker_has_help() -> None:
    command = [sys.executable, "-m", "benches.engine_process", "--help"]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr) == (0, "") and "Usage" in done.stdout
