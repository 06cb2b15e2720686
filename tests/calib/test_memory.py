"""How much memory there is, and what is too much for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from calib import memory
from calib.errors import IntvitError
from calib.memory import out_of_memory, physical_memory, require_room

PAGES = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1000}


@pytest.mark.parametrize(
    ("v2", "v1", "found"),
    [
        (None, None, 4_096_000),
        ("max\n", None, 4_096_000),
        ("1048576\n", None, 1_048_576),
        (None, "9223372036854771712\n", 4_096_000),  # v1 has no word for "none"
        (None, "2097152\n", 2_097_152),
        ("", "no number", 4_096_000),
    ],
)
def test_a_containers_limit_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, v2: str | None, v1: str | None, found: int
) -> None:
    for name, text in (("v2", v2), ("v1", v1)):
        if text is not None:
            (tmp_path / name).write_text(text)
    monkeypatch.setattr(memory, "_LIMITS", (str(tmp_path / "v2"), str(tmp_path / "v1")))
    monkeypatch.setattr(memory.os, "sysconf", PAGES.__getitem__)
    assert physical_memory() == found


def test_there_is_some_here() -> None:
    assert 1 << 28 < physical_memory() < 1 << 50


def test_more_images_than_fit_are_refused_with_how_many_would(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "physical_memory", lambda: 10 * 4 * 3 * 8 * 8)
    require_room(10, (3, 8, 8))
    with pytest.raises(IntvitError, match="--images 11") as refused:
        require_room(11, (3, 8, 8))
    assert "3 x 8 x 8" in refused.value.why and "10 at the very most" in refused.value.next


def test_which_errors_tell_of_memory() -> None:
    assert out_of_memory(MemoryError()) and out_of_memory(RuntimeError("CUDA out of memory. Tried ..."))
    assert out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"))
    assert not out_of_memory(ValueError("out of memory")) and not out_of_memory(RuntimeError("no"))
