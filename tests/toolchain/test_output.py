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
    with filling(out, "x") as partial:
        (partial / "a").write_text("new")
        assert not out.exists()
    assert (out / "a").read_text() == "new" and hidden(out.parent) == []


def bundle(folder: Path) -> Path:
    """What passes for a bundle, a damaged one."""
    folder.mkdir(parents=True)
    for name, text in (("manifest.json", "{}"), ("manifest.sha256", ""), ("a", "old")):
        (folder / name).write_text(text)
    return folder


def test_a_failure_leaves_the_old_one(tmp_path: Path) -> None:
    out = bundle(tmp_path / "out")
    with pytest.raises(RuntimeError), filling(out, "x", force=True) as partial:
        (partial / "a").write_text("new")
        raise RuntimeError
    assert (out / "a").read_text() == "old" and hidden(tmp_path) == []


def test_what_a_killed_build_left_is_cleared(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "stale").write_text("half")
    with filling(out, "x") as partial:
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


def test_of_two_builds_one_is_refused_and_the_other_is_whole(tmp_path: Path) -> None:
    """The second would have emptied the first one's hidden folder, and put a bundle without graphs in its place."""
    out = tmp_path / "out"
    with filling(out, "x") as partial:
        for begin in (lambda: check_out(out, "x", True), lambda: filling(out, "x", True).__enter__()):
            with pytest.raises(IntvitError, match="another build is writing this bundle"):
                begin()
        (partial / "a").write_text("first")
    assert (out / "a").read_text() == "first" and hidden(tmp_path) == []
    check_out(tmp_path / "other", "x", False)  # the lock went with the build


def test_what_came_in_between_is_not_replaced(tmp_path: Path) -> None:
    check_out(tmp_path / "out", "x", False)
    out = bundle(tmp_path / "out")
    with pytest.raises(IntvitError, match="another bundle"), filling(out, "x"):
        pass
    assert (out / "a").read_text() == "old" and hidden(tmp_path) == []


@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_one_and_what_it_points_at_is_replaced(tmp_path: Path, there: bool) -> None:
    place = tmp_path / "elsewhere" / "place"
    link = tmp_path / "out"
    link.symlink_to(place)
    if there:
        bundle(place)
    for text in ("first", "second"):
        check_out(link, "x", True)
        with filling(link, "x", force=True) as partial:
            for name in ("manifest.json", "manifest.sha256", "a"):
                (partial / name).write_text(text)
        assert link.is_symlink() and (place / "a").read_text() == text
    assert hidden(tmp_path) == hidden(place.parent) == []
