"""Progress without a terminal: few lines, the last one always."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from runtime import progress


def test_lines_are_few_and_the_last_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    out = io.StringIO()
    with progress.task("work", 100, console=Console(file=out, force_terminal=False)) as advance:
        for step in range(100):
            now[0] += 1.0
            advance(note=f"step {step}")
    lines = out.getvalue().splitlines()
    assert len(lines) == 10
    assert lines[0] == "work: 10/100 (10 %), 00:10 spent, 01:30 left, step 9"
    assert lines[-1] == "work: 100/100 (100 %), 01:40 spent, 00:00 left, step 99"


def test_fast_work_prints_one_line() -> None:
    out = io.StringIO()
    with progress.task("work", 1000, console=Console(file=out)) as advance:
        for _ in range(1000):
            advance()
    assert len(out.getvalue().splitlines()) == 1


def test_a_bar_on_a_terminal() -> None:
    out = io.StringIO()
    with progress.task("work", 3, console=Console(file=out, force_terminal=True, width=100)) as advance:
        advance(3, "done")
    assert "3/3" in out.getvalue() and "work" in out.getvalue()


def test_hours() -> None:
    assert progress._clock(3 * 3600 + 62) == "3:01:02"
