"""``python -m toolchain.sensitivity``: a table, a file, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from calib import memory
from runtime import cli
from toolchain.sensitivity import main

DIGITS = ["--model", "vit_digits", "--bits", "w4a8", "--images", "16"]


def test_it_ranks_every_layer_of_a_real_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "found.json"
    assert cli.invoke(main, [*DIGITS, "--cache", str(tmp_path / "cache"), "--json", str(out)]) == 0
    rows = json.loads(out.read_text())
    assert len(rows) == 14 and {"patch_embed.proj", "blocks.0.mlp.fc2", "head"} < {row["layer"] for row in rows}
    assert all(row["weight_bits"] == (8 if row["layer"] == "patch_embed.proj" else 4) for row in rows)
    assert rows[0]["layer"] in capsys.readouterr().out


def test_a_place_for_the_figures_that_cannot_be_written_is_told_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.invoke(main, [*DIGITS, "--cache", str(tmp_path / "cache"), "--json", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert said.out == "" and "it is a folder" in said.err and not (tmp_path / "cache").exists()


def test_a_number_of_images_beyond_reason_is_a_wrong_command_line(tmp_path: Path) -> None:
    assert cli.invoke(main, [*DIGITS, "--images", "1000000000", "--cache", str(tmp_path)]) == 2


def test_more_images_than_the_memory_holds_are_refused_before_any(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "physical_memory", lambda: 15 * 4 * 3 * 32 * 32)
    assert cli.invoke(main, [*DIGITS, "--cache", str(tmp_path)]) == 1
    assert "15 at the very most" in capsys.readouterr().err and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (["--bits", "w1a8"], "weights take 2 to 8 bits"),
        (["--method", "real"], "reads no real images"),
        (["--model", "no_such_model"], "no_such_model"),
        (["--bits", "w4a16+g128"], "groups of 128 do not divide"),
        (["--seed", str(10**15)], "2147483647"),
    ],
)
def test_bad_input_is_refused(
    changed: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.invoke(main, [*DIGITS, *changed, "--cache", str(tmp_path)]) != 0
    assert list(tmp_path.iterdir()) == [], "refused before an image is made"
    assert said in " ".join(capsys.readouterr().err.split())
