"""A set of images made and written: what it takes the place of, and which checkpoints go with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from calib import image_set
from calib.errors import IntvitError
from calib.image_set import synthesise_to
from calib.models import LoadedModel
from calib.output import IMAGES, META
from calib.synthesis.methods import NOISE
from calib.synthesis.processes import Place
from calib.synthesis.show import show

SMALL = replace(NOISE, images=2, batch=2)


def make(digits: LoadedModel, out: Path, seed: int = 0, force: bool = False) -> None:
    synthesise_to(digits, SMALL, seed, "cpu", out, Place(), force)


def content(out: Path) -> bytes:
    return (out / IMAGES).read_bytes()


def test_a_set_that_was_there_before_is_replaced_also_through_a_link(digits: LoadedModel, tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    make(digits, real)
    before = content(real)
    link.symlink_to(real)
    with pytest.raises(IntvitError, match="already"):
        make(digits, link, seed=1)
    make(digits, link, seed=1, force=True)
    assert link.is_symlink() and content(real) == content(link) != before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]


def test_a_set_that_appears_meanwhile_is_not_replaced(
    digits: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "set"

    def meanwhile(*args: object) -> object:
        out.mkdir()
        (out / META).write_text("of another run")
        return show(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(image_set, "show", meanwhile)
    with pytest.raises(IntvitError, match="already"):
        make(digits, out)
    assert (out / META).read_text() == "of another run"
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_only_the_checkpoints_of_this_name_go(digits: LoadedModel, tmp_path: Path) -> None:
    ours = [".images.0123456789abcdef.work", ".images.fedcba9876543210.work"]
    others = [".images.v2.0123456789abcdef.work", ".images.mine.work", ".imagesx.0123456789abcdef.work"]
    for name in (*ours, *others):
        (tmp_path / name).mkdir()
    make(digits, tmp_path / "images")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["images", *others])
