"""How wide standard output is taken to be."""

from __future__ import annotations

import io

import pytest

from runtime.console import PIPE_WIDTH, Console


def test_a_pipe_is_wide_and_a_number_that_is_given_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert Console(file=io.StringIO()).width == PIPE_WIDTH
    assert Console(file=io.StringIO(), width=40).width == 40
    monkeypatch.setenv("COLUMNS", "100")
    assert Console(file=io.StringIO()).width == 100


def test_a_terminal_has_its_own_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert Console(file=io.StringIO(), force_terminal=True).width != PIPE_WIDTH


def test_a_long_name_is_whole_in_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    out = io.StringIO()
    Console(file=out).print("blocks.0.attn.proj " * 6, markup=False)
    assert out.getvalue().count("\n") == 1
