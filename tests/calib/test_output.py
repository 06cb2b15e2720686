"""The place of a set of images: what is refused, what is replaced, and what a killed run left there."""

from __future__ import annotations

import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from calib import output
from calib.errors import IntvitError
from calib.output import META, check_out, filling


def a_set(folder: Path, text: str = "old") -> Path:
    """What passes for a set of images."""
    folder.mkdir(parents=True)
    (folder / META).write_text(text)
    return folder


def hidden(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.name.startswith("."))


def make(out: Path, force: bool = False) -> None:
    with filling(out, force) as partial:
        (partial / META).write_text("new")


def test_the_folder_takes_its_name_only_at_the_end(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "set"
    with filling(out, False) as partial:
        assert partial.parent == out.parent and not out.exists()
        (partial / META).write_text("new")
    assert (out / META).read_text() == "new" and hidden(out.parent) == []


def test_an_old_set_is_replaced_only_by_force(tmp_path: Path) -> None:
    out = a_set(tmp_path / "set")
    (out / "more").write_text("old")
    with pytest.raises(IntvitError, match="already"):
        make(out)
    assert (out / META).read_text() == "old" and hidden(tmp_path) == []
    make(out, force=True)
    assert (out / META).read_text() == "new" and not (out / "more").exists() and hidden(tmp_path) == []


@pytest.mark.parametrize("force", [False, True])
def test_what_appears_meanwhile_stays(tmp_path: Path, force: bool) -> None:
    out = tmp_path / "set"
    check_out(out, force)
    with pytest.raises(IntvitError) as caught, filling(out, force):
        out.mkdir()
        (out / "letter.txt").write_text("dear")
    assert ("only replaces a set" if force else "already") in caught.value.what
    assert (out / "letter.txt").read_text() == "dear" and hidden(tmp_path) == []


@pytest.mark.parametrize("apart", [False, True])
def test_what_a_link_points_at_is_replaced_and_the_link_stays(tmp_path: Path, apart: bool) -> None:
    real = a_set(tmp_path / "apart" / "real" if apart else tmp_path / "real")
    link = tmp_path / "link"
    link.symlink_to(real)
    with pytest.raises(IntvitError, match="already"):
        check_out(link, False)
    check_out(link, True)
    make(link, force=True)
    assert link.is_symlink() and (link / META).read_text() == (real / META).read_text() == "new"
    assert hidden(tmp_path) == hidden(real.parent) == []


@pytest.mark.parametrize("target", ["nowhere", "link"])
def test_a_link_that_leads_nowhere_is_refused(tmp_path: Path, target: str) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / target)
    for force in (False, True):
        with pytest.raises(IntvitError):
            check_out(link, force)
    assert link.is_symlink()


def test_a_failure_leaves_the_old_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = a_set(tmp_path / "set")
    with pytest.raises(ZeroDivisionError), filling(out, True):
        raise ZeroDivisionError
    assert (out / META).read_text() == "old" and hidden(tmp_path) == []
    replace, moved = os.replace, []

    def failing(one: Path, two: Path) -> None:
        moved.append(two)
        if len(moved) == 2:  # the old set stands aside
            raise OSError("no")
        replace(one, two)

    monkeypatch.setattr(output.os, "replace", failing)
    with pytest.raises(OSError, match="no"):
        make(out, force=True)
    assert (out / META).read_text() == "old" and hidden(tmp_path) == []


def test_a_run_killed_between_its_renames_is_put_right_by_the_next(tmp_path: Path) -> None:
    out = tmp_path / "set"
    a_set(tmp_path / ".set.old")
    with pytest.raises(IntvitError, match="already"):
        check_out(out, False)
    assert (out / META).read_text() == "old" and hidden(tmp_path) == []


def test_a_run_killed_while_it_wrote_or_removed_is_cleared_by_the_next(tmp_path: Path) -> None:
    out = a_set(tmp_path / "set")
    for left in (".set.old", ".set.partial"):
        (tmp_path / left / "half").mkdir(parents=True)
    with filling(out, True) as partial:
        assert list(partial.iterdir()) == []
        (partial / META).write_text("new")
    assert (out / META).read_text() == "new" and hidden(tmp_path) == []


def test_a_kill_while_the_old_set_is_removed_leaves_the_new_one_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, remove, seen = a_set(tmp_path / "set"), shutil.rmtree, []

    def watched(path: Path, *args: Any, **kwargs: Any) -> None:
        if Path(path).exists():
            seen.append((Path(path).name, (out / META).read_text()))
        remove(path, *args, **kwargs)

    monkeypatch.setattr(shutil, "rmtree", watched)
    make(out, force=True)
    assert seen == [(".set.old", "new")]


def test_one_run_at_a_time_is_at_the_place(tmp_path: Path) -> None:
    """Another waits until the set is there, and then sees it."""
    out, told = tmp_path / "set", []

    def second() -> None:
        try:
            make(out)
        except IntvitError as error:
            told.append(error.what)

    with filling(out, False) as partial:
        other = threading.Thread(target=second)
        other.start()
        time.sleep(0.2)
        assert other.is_alive()
        (partial / META).write_text("first")
    other.join(30)
    assert told == ["there is something at --out already"]
    assert (out / META).read_text() == "first" and hidden(tmp_path) == []
