"""The bundle's place is either the old bundle or the new one, whatever happens on the way."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.errors import IntvitError
from toolchain.output import check_out, filling


def hidden(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.name.startswith("."))


def test_the_folder_takes_its_name_only_at_the_end(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with filling(out) as partial:
        (partial / "a").write_text("new")
        assert not out.exists()
    assert (out / "a").read_text() == "new" and hidden(out.parent) == []


def test_a_failure_leaves_the_old_one(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "a").write_text("old")
    with pytest.raises(RuntimeError), filling(out) as partial:
        (partial / "a").write_text("new")
        raise RuntimeError
    assert (out / "a").read_text() == "old" and hidden(tmp_path) == []


def test_what_a_killed_build_left_is_cleared(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "stale").write_text("half")
    with filling(out) as partial:
        assert list(partial.iterdir()) == []
    assert hidden(tmp_path) == []


def test_a_build_that_died_between_its_renames(tmp_path: Path) -> None:
    """The old bundle stood aside and nothing had taken its place: it comes back."""
    out = tmp_path / "out"
    aside = tmp_path / ".out.old"
    aside.mkdir()
    (aside / "notes.txt").write_text("old")
    with pytest.raises(IntvitError, match="no bundle"):
        check_out(out, "x", force=True)
    assert (out / "notes.txt").read_text() == "old" and hidden(tmp_path) == []


def test_a_folder_with_a_manifest_of_something_else_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(IntvitError, match="no bundle"):
        check_out(tmp_path, "x", force=True)
    assert (tmp_path / "manifest.json").read_text() == "{}"
