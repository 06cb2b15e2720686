"""Generated tables: what they say, which texts are stale, and what a wrong marker is answered with."""

from __future__ import annotations

from pathlib import Path

import pytest

from benches import record, tables
from runtime.errors import IntvitError
from toolchain.rules import RULES

ACCURACY_ROW = {
    "scheme": "w4a8",
    "method": "psaq",
    "images": 968,
    "float_top1": 87.5,
    "fake_quant_top1": 80.04,
    "engine_top1": 80.16,
    "stderr": 0.949,
    "sqnr_db": 90.06,
    "free_sqnr_db": 20.06,
    "seconds": None,
}
LATENCY_ROW = {
    "model": "deit_s",
    "scheme": "w8a8",
    "batch": 1,
    "threads": 2,
    "float_ms": 50.0,
    "engine_ms": 20.0,
    "speedup": 2.5,
    "weights": "random",
}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    record.write_result("real_accuracy", {"rows": [ACCURACY_ROW]}, results=tmp_path / "results")
    return tmp_path / "results"


def test_a_table_says_what_was_measured_where_and_when(results: Path) -> None:
    text = tables.render("real_accuracy", results)
    caption, _, head, ruler, row = text.split("\n")
    assert record.describe_machine()["cpu"] in caption
    assert "numpy" in caption
    assert record.today() in caption
    assert head.count("|") == ruler.count("|") == row.count("|") == 11
    assert row == "| w4a8 | psaq | 968 | 87.5 | 80.0 | 80.2 | 0.95 | 90.1 | 20.1 | – |"


def test_random_weights_are_named_in_capitals(tmp_path: Path) -> None:
    record.write_result("cpu_latency", {"rows": [LATENCY_ROW]}, results=tmp_path)
    last = tables.render("cpu_latency", tmp_path).splitlines()[-1]
    assert last == "| deit_s | w8a8 | 1 | 2 | 50.00 | 20.00 | 2.50× | RANDOM |"


def test_another_machine_has_a_folder_and_the_same_tables(tmp_path: Path) -> None:
    record.write_result("cpu_latency", {"rows": [LATENCY_ROW | {"model": "there"}]}, results=tmp_path / "there")
    record.write_result("cpu_latency", {"rows": [LATENCY_ROW | {"model": "here"}]}, results=tmp_path)
    assert "| there |" in tables.render("cpu_latency@there", tmp_path)
    assert "| here |" in tables.render("cpu_latency", tmp_path)
    assert tables.NOT_MEASURED in tables.render("cpu_latency@nowhere", tmp_path)
    with pytest.raises(IntvitError, match="nonsense@there"):
        tables.render("nonsense@there", tmp_path)


@pytest.mark.parametrize("name", sorted(tables.TABLES))
def test_an_absent_record_reads_not_measured_yet(name: str, tmp_path: Path) -> None:
    assert tables.NOT_MEASURED in tables.render(name, tmp_path)


def test_update_finds_the_stale_text_writes_it_and_is_then_content(results: Path, tmp_path: Path) -> None:
    (tmp_path / "docs" / "deep").mkdir(parents=True)
    (tmp_path / "README.md").write_text("# no tables\n")
    text = tmp_path / "docs" / "deep" / "figures.md"
    text.write_text("before\n<!-- generated: real_accuracy -->\nold\n<!-- end: real_accuracy -->\nafter\n")
    assert tables.update(tmp_path, results, check=True) == [text]
    assert "old" in text.read_text("utf-8")
    assert tables.update(tmp_path, results) == [text]
    written = text.read_text("utf-8")
    assert "| w4a8 |" in written
    assert "old" not in written
    assert written.startswith("before\n<!-- generated")
    assert written.endswith("-->\nafter\n")
    assert tables.update(tmp_path, results, check=True) == []


def test_an_empty_region_is_filled(results: Path) -> None:
    text = "<!-- generated: real_accuracy -->\n<!-- end: real_accuracy -->\n"
    assert "| w4a8 |" in tables.refresh(text, "x.md", results)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- generated: nonsense -->\n<!-- end: nonsense -->\n", "nonsense"),
        ("<!-- generated: cpu_latency -->\nno end\n", "pair"),
        ("<!-- generated: cpu_latency -->\n<!-- end: real_accuracy -->\n", "closed as"),
        ("<!-- end: cpu_latency -->\n", "pair"),
    ],
)
def test_wrong_markers_are_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(IntvitError, match=message):
        tables.refresh(text, "x.md", tmp_path)


def test_check_exits_1_on_a_stale_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from runtime.cli import invoke

    (tmp_path / "README.md").write_text("<!-- generated: cpu_latency -->\n<!-- end: cpu_latency -->\n")
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    monkeypatch.setattr(tables.update, "__defaults__", (tmp_path, tmp_path, False))
    assert invoke(tables.main, ["--check"]) == 1
    assert "make docs" in capsys.readouterr().err
    assert invoke(tables.main, []) == 0
    assert invoke(tables.main, ["--check"]) == 0


def test_the_tables_of_this_repository_are_current() -> None:
    assert tables.update(check=True) == []


@pytest.mark.parametrize("name", sorted([*tables.TABLES, *tables.SOURCES]))
def test_every_table_is_shown_in_one_text_or_more(name: str) -> None:
    """A measured table that no text asks for would never be found stale."""
    if name in tables.TABLES and record.read_result(tables.RECORDS.get(name, name)) is None:
        pytest.skip("not measured yet")
    marker = f"<!-- generated: {name} -->"
    assert any(marker in path.read_text("utf-8") for path in tables.texts(tables.ROOT))


def test_every_record_of_another_machine_is_shown_in_a_text() -> None:
    shown = "".join(path.read_text("utf-8") for path in tables.texts(tables.ROOT))
    for path in record.RESULTS.glob("*/*.json"):
        names = [table for table in tables.TABLES if tables.RECORDS.get(table, table) == path.stem]
        assert any(f"<!-- generated: {name}@{path.parent.name} -->" in shown for name in names), path


def test_the_page_of_the_linter_has_every_rule(tmp_path: Path) -> None:
    text = tables.render("lint_rules", tmp_path)
    for rule in RULES:
        assert f"| `{rule.id}` | {rule.title} |" in text
        assert f"**{rule.id}.**" in text
    assert text in (tables.ROOT / "docs" / "lint.md").read_text("utf-8"), "make docs"
