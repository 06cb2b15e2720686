"""Files are whole or absent, and a full disk is told in words."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path

import pytest

from runtime.errors import IntvitError
from runtime.files import (
    atomic_path,
    atomic_write_bytes,
    atomic_write_json,
    atomic_write_text,
    json_text,
    require_apart,
    require_writable,
    sha256_bytes,
    sha256_file,
    user_cache,
)


def test_written_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "made" / "a.bin"
    atomic_write_bytes(path, b"one")
    atomic_write_bytes(path, b"two")
    assert path.read_bytes() == b"two"
    assert os.listdir(path.parent) == ["a.bin"]
    assert sha256_file(path) == sha256_bytes(b"two")


def test_json_is_the_same_bytes_for_the_same_value(tmp_path: Path) -> None:
    assert json_text({"b": 1, "a": [2]}) == json_text({"a": [2], "b": 1}) == '{\n  "a": [\n    2\n  ],\n  "b": 1\n}\n'
    with pytest.raises(ValueError):
        atomic_write_json(tmp_path / "x.json", {"a": float("nan")})
    assert os.listdir(tmp_path) == []


def test_a_file_name_that_is_no_utf8_is_written_and_read_again(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    atomic_write_json(tmp_path / "x.json", {"path": name, "é": "é"})
    assert json.loads((tmp_path / "x.json").read_text("utf-8")) == {"path": name, "é": "é"}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def full(_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(IntvitError, match="disk is full") as caught:
        atomic_write_bytes(path, b"new")
    assert str(path) in caught.value.where
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_interrupt_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), atomic_path(tmp_path / "a") as temporary:
        temporary.write_bytes(b"half")
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def test_unwritable_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(IntvitError, match="cannot write") as caught:
        atomic_write_bytes(tmp_path / "file" / "a", b"")
    assert "file" in caught.value.where


def test_a_place_is_tried_before_anything_is_written(tmp_path: Path) -> None:
    require_writable(tmp_path / "new" / "deep" / "found.json")
    (tmp_path / "file").write_text("x")
    require_writable(tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_text() == "x"
    for wrong, why in ((tmp_path, "it is a folder"), (tmp_path / "file" / "found.json", "Not a directory")):
        with pytest.raises(IntvitError, match=why) as caught:
            require_writable(wrong)
        assert caught.value.where == str(wrong)


def test_an_output_that_is_an_input_is_refused(tmp_path: Path) -> None:
    source, folder = tmp_path / "folder/source", tmp_path / "folder"
    folder.mkdir()
    source.write_text("x")
    (tmp_path / "link").symlink_to(source)
    (tmp_path / "hard").hardlink_to(source)
    for out in (source, folder, tmp_path, tmp_path / "link", tmp_path / "hard", tmp_path / "folder/../folder/source"):
        with pytest.raises(IntvitError, match="would overwrite an input") as caught:
            require_apart(out, [tmp_path / "nothing", source])
        assert caught.value.where == str(out) and str(source) in caught.value.why
    for out in (folder / "new", tmp_path / "sour", Path("/dev/null")):
        require_apart(out, [tmp_path / "nothing", source, folder])


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    for link, target in (("old", "kept/old"), ("new", "kept/new")):  # the second points at nothing yet
        (tmp_path / link).symlink_to(target)
    (tmp_path / "kept/old").write_bytes(b"before")
    for link in ("old", "new"):
        require_writable(tmp_path / link)
        atomic_write_bytes(tmp_path / link, b"after")
        assert (tmp_path / link).is_symlink() and (tmp_path / "kept" / link).read_bytes() == b"after"
    assert sorted(os.listdir(tmp_path / "kept")) == ["new", "old"]
    (tmp_path / "round").symlink_to("round")
    with pytest.raises(IntvitError, match="cannot write the file") as caught:
        atomic_write_bytes(tmp_path / "round", b"x")
    assert caught.value.where == str(tmp_path / "round")


def test_a_pipe_is_written_into_not_replaced(tmp_path: Path) -> None:
    """Or a device: as root, ``--json /dev/null`` would leave a file in the place of /dev/null."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    require_writable(fifo)
    atomic_write_bytes(fifo, b"into it")
    assert os.read(reader, 99) == b"into it" and stat.S_ISFIFO(fifo.stat().st_mode)
    os.close(reader)
    incoming, outgoing = os.pipe()  # what a shell gives for >(command)
    require_writable(Path(f"/dev/fd/{outgoing}"))
    atomic_write_text(f"/dev/fd/{outgoing}", "into that")
    assert os.read(incoming, 99) == b"into that"
    os.close(incoming)
    with pytest.raises(IntvitError, match="Broken pipe"):
        atomic_write_text(f"/dev/fd/{outgoing}", "nobody reads")
    os.close(outgoing)
    assert os.listdir(tmp_path) == ["fifo"]


def test_where_files_that_can_be_made_again_lie(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("INTVIT_CACHE", str(tmp_path / "here"))
    assert user_cache() == tmp_path / "here"
    monkeypatch.delenv("INTVIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert user_cache() == tmp_path / "intvit"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_cache() == tmp_path / ".cache/intvit"
