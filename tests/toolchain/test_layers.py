"""The layer report: one row a step, in decibels."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from toolchain.layers import decibels, layer_steps, report_layers

REPORT: list[dict[str, Any]] = [
    {"step": "reparameterise", "layer": "a", "strength": None, "error_off": 0.1, "error": 0.1},
    {"step": "reparameterise", "layer": "b", "strength": 0.5, "error_off": 0.1, "error": 0.01},
    {
        **{
            "step": "quantize",
            "layer": "b",
            "weight_bits": 4,
            "rejected": ["bias"],
            "error": 0.01,
            "error_gptq": 0.001,
        },
        **{"correction": "bias", "error_uncorrected": 0.001, "error_corrected": 0.002},
    },
    {"step": "quantize", "layer": "c", "weight_bits": 4, "rejected": [], "error": 0.01},
    {"step": "quantize", "layer": "attn.qk", "scales": [0.1, 0.2], "rejected": [], "error": 0.001},
    {"step": "reconstruct", "layer": "block", "before": 0.01, "after": 0.005, "accepted": True},
    {"step": "distill", "before": 0.5, "after": 0.5, "accepted": False},
]


def test_every_step_is_a_row_with_what_was_before_and_after() -> None:
    found = [tuple(row.values()) for row in layer_steps(REPORT)]
    assert found == [
        ("a", "reparameterise", 10.0, 10.0, False),
        ("b", "reparameterise", 10.0, 20.0, True),
        ("b", "round", None, 20.0, True),
        ("b", "gptq", 20.0, 30.0, True),
        ("b", "correct (bias)", 30.0, 26.99, False),
        ("c", "round", None, 20.0, True),
        ("attn.qk", "round", None, 30.0, True),
        ("block", "reconstruct", 20.0, 23.01, True),
        ("network", "distill", 3.01, 3.01, False),
    ]


def test_decibels() -> None:
    assert decibels(None) is None and decibels(1.0) == 0.0 and decibels(0.0) == 200.0
    assert decibels(0.5) == pytest.approx(3.01)


def test_the_table_and_the_file_say_the_same(tmp_path: Path) -> None:
    shown = io.StringIO()
    report_layers(REPORT, tmp_path / "x-layers.json", Console(file=shown, width=120))
    assert json.loads((tmp_path / "x-layers.json").read_text()) == layer_steps(REPORT)
    assert "put back" in shown.getvalue() and "correct (bias)" in shown.getvalue() and "27.0" in shown.getvalue()
