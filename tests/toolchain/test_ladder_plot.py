"""The picture of a ladder: every rung and tap is in it, and what is missing is said."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from PIL import Image

from runtime import cli
from runtime.bundle import Bundle
from runtime.errors import IntvitError
from runtime.ladder import climb
from tests.runtime.planted import DIALECT, number, plant
from tests.runtime.tiny import make_bundle
from toolchain.ladder_plot import main, plot


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    figures: list[Figure] = []
    save = Figure.savefig

    def keep(self: Figure, *args: Any, **options: Any) -> None:
        figures.append(self)
        save(self, *args, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


def test_every_rung_and_tap_is_drawn(tmp_path: Path, drawn: list[Figure]) -> None:
    bundle = plant(make_bundle(tmp_path / "b"), DIALECT, number("b0.fc1.bias", lambda bias: bias * 1.5))
    ladder = climb(bundle, threads=1).to_json()
    plot(ladder, tmp_path / "ladder.png")
    with Image.open(tmp_path / "ladder.png") as picture:
        picture.verify()
        assert picture.format == "PNG"
    above, below = drawn[0].axes
    assert [text.get_text() for text in above.get_xticklabels()] == ["embed", "b0.fc1", "b0.fc2", "head"]
    lines = {line.get_label(): list(line.get_ydata()) for line in above.lines}
    rates = [tap["mismatch_rate"] for tap in ladder["rungs"][3]["taps"]]
    assert lines["dialect against canonical"][2] == rates[2] > 0.1
    assert {"canonical against fake-quant", "engine against dialect", "limit"} < lines.keys()
    worst = ladder["rungs"][3]["taps"][2]["max_lsb"]
    assert f"{worst} LSB" in [text.get_text() for text in above.texts]
    assert [text.get_text() for text in below.get_xticklabels()] == [rung["rung"] for rung in ladder["rungs"]]
    heights = [bar.get_height() for bar in below.patches]
    assert heights[:5] == [rung["logits_sqnr_db"] for rung in ladder["rungs"]]
    assert drawn[0].get_suptitle() == ladder["verdict"]


def test_the_command(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from runtime import parity

    record, out = tmp_path / "ladder.json", tmp_path / "ladder.png"
    root = make_bundle(tmp_path / "b")
    assert cli.invoke(parity.main, [str(root), "--ladder", "--json", str(record), "--threads", "1"]) == 0
    assert cli.invoke(main, [str(record), str(out)]) == 0 and out.stat().st_size > 1000
    assert cli.invoke(parity.main, [str(root), "--json", str(record), "--threads", "1"]) == 0
    out.unlink()
    older = tmp_path / "older.json"
    older.write_text('{"rungs": [{"taps": [{"lsb": 1}]}]}')
    for path, said in (
        (record, "holds no ladder"),
        (older, "not what this version writes: KeyError: 'name'"),
        (root / "preview.png", "not a JSON file"),
        (tmp_path, "runtime.parity BUNDLE"),
    ):
        assert cli.invoke(main, [str(path), str(out)]) == 1
        captured = capfd.readouterr().err
        assert said in captured and "Traceback" not in captured and "unexpected" not in captured
        assert f"--json {path}" not in captured  # pasted, that would write over what the file is
    assert not out.exists()


def test_the_picture_does_not_overwrite_the_ladder(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    record = tmp_path / "ladder.json"
    record.write_text("{}")
    assert cli.invoke(main, [str(record), str(record)]) == 1
    assert "would overwrite an input" in capfd.readouterr().err and record.read_text() == "{}"


def test_a_ladder_without_taps(tmp_path: Path) -> None:
    bundle = Bundle.open(make_bundle(tmp_path / "b"))
    ladder = climb(bundle, threads=1).to_json()
    for rung in ladder["rungs"]:
        rung["taps"] = []
    plot(ladder, tmp_path / "ladder.png")
    assert (tmp_path / "ladder.png").stat().st_size > 1000


def test_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def blocked(name: str, *args: Any, **options: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(f"{name} is blocked")
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", blocked)
    with pytest.raises(IntvitError, match="cannot draw the ladder") as caught:
        plot({"rungs": [], "verdict": ""}, tmp_path / "ladder.png")
    assert "intvit[build]" in caught.value.next
    assert not (tmp_path / "ladder.png").exists()


def test_the_json_is_plain(tmp_path: Path) -> None:
    """The plot needs nothing but the file."""
    ladder = climb(Bundle.open(make_bundle(tmp_path / "b")), threads=1).to_json()
    assert json.loads(json.dumps(ladder, allow_nan=False))["verdict"] == ladder["verdict"]
