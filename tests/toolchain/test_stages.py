"""Stages: done once for the same inputs and code, whole or absent, one process at a time."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from safetensors import SafetensorError

from runtime.errors import IntvitError
from tests.conftest import REPO
from toolchain import stages
from toolchain.locks import alone
from toolchain.stages import StageResult, StageStore, code_digest, default_store, store_at

CODE = ("work.py", "folder")


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A source tree of two files that the stage's code digest is taken over."""
    root = tmp_path / "tree"
    (root / "folder/deep").mkdir(parents=True)
    (root / "work.py").write_text("a = 1\n")
    (root / "folder/deep/more.py").write_text("b = 2\n")
    monkeypatch.setattr(stages, "ROOT", root)
    return root


class Counting:
    """A store whose work writes two files and counts how often it is called."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.calls = 0

    def work(self, folder: Path, checkpoints: Path) -> None:
        self.calls += 1
        (folder / "a.txt").write_text("first")
        (folder / "sub").mkdir()
        (folder / "sub/b.txt").write_text("second")

    def run(self, force: bool = False, **inputs: object) -> StageResult:
        return StageStore(self.root, force).run("stage", {"seed": 0, **inputs}, CODE, self.work)


@pytest.fixture
def counting(tree: Path, tmp_path: Path) -> Counting:
    return Counting(tmp_path / "store")


def visible(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if not path.name.startswith("."))


def hidden(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.name.startswith((".partial", ".work")))


def test_the_same_inputs_are_done_once(counting: Counting) -> None:
    first = counting.run()
    assert (first.reused, first.folder.name) == (False, f"stage-{first.key}")
    assert len(first.key) == 16
    assert (first.folder / "sub/b.txt").read_text() == "second"
    again = counting.run()
    assert (again.reused, again.key, again.folder) == (True, first.key, first.folder)
    assert counting.calls == 1
    assert visible(counting.root) == [first.folder.name]
    assert hidden(counting.root) == []


def test_the_order_of_the_inputs_does_not_matter(counting: Counting) -> None:
    store = StageStore(counting.root)
    one = store.run("stage", {"a": 1, "b": [2]}, CODE, counting.work)
    two = store.run("stage", {"b": [2], "a": 1}, CODE, counting.work)
    assert (one.key, two.reused) == (two.key, True)


@pytest.mark.parametrize("inputs", [{"seed": 1}, {"more": None}, {"nested": {"rate": 0.1}}])
def test_other_inputs_are_another_stage(counting: Counting, inputs: dict[str, object]) -> None:
    first = counting.run()
    second = counting.run(**inputs)
    assert (second.reused, counting.calls) == (False, 2)
    assert first.key != second.key
    assert first.folder.exists() and second.folder.exists()


def test_another_stage_name_is_another_stage(counting: Counting) -> None:
    first = counting.run()
    second = StageStore(counting.root).run("other", {"seed": 0}, CODE, counting.work)
    assert (second.reused, first.key != second.key) == (False, True)


@pytest.mark.parametrize("file", ["work.py", "folder/deep/more.py"])
def test_changed_code_is_another_stage(counting: Counting, tree: Path, file: str) -> None:
    first = counting.run()
    (tree / file).write_text("changed = True\n")
    second = counting.run()
    assert (second.reused, counting.calls) == (False, 2)
    assert first.key != second.key


def test_code_digest_sees_new_renamed_and_only_python_files(tree: Path) -> None:
    before = code_digest(CODE)
    (tree / "folder/notes.txt").write_text("not code")
    assert code_digest(CODE) == before
    (tree / "folder/deep/more.py").rename(tree / "folder/deep/other.py")
    renamed = code_digest(CODE)
    assert renamed != before
    (tree / "folder/new.py").write_text("")
    assert code_digest(CODE) not in (before, renamed)


@pytest.mark.parametrize("file", ["a.txt", "sub/b.txt"])
def test_a_flipped_byte_in_a_result_is_done_again(counting: Counting, file: str) -> None:
    first = counting.run()
    path = first.folder / file
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    again = counting.run()
    assert (again.reused, again.key, counting.calls) == (False, first.key, 2)
    assert (again.folder / "a.txt").read_text() == "first"
    assert (again.folder / "sub/b.txt").read_text() == "second"


RECORDS = [
    None,
    b"",
    b"{",
    b"[]",
    b"{}",
    b'{"files": {}}',
    b'{"files": [1]}',
    b'{"files": {"a.txt": 3}}',
    pytest.param(b"[" * 100_000, id="nested"),
]


@pytest.mark.parametrize("record", RECORDS)
def test_a_result_without_a_sound_record_is_done_again(counting: Counting, record: bytes | None) -> None:
    first = counting.run()
    path = first.folder / "stage.json"
    path.unlink() if record is None else path.write_bytes(record)
    assert counting.run().reused is False
    assert counting.run().reused is True
    assert counting.calls == 2


def test_a_missing_file_is_done_again(counting: Counting) -> None:
    (counting.run().folder / "sub/b.txt").unlink()
    assert counting.run().reused is False
    assert counting.calls == 2


def test_force_does_it_again_without_the_checkpoints(counting: Counting) -> None:
    first = counting.run()
    checkpoints = counting.root / f".work-{first.folder.name}"
    checkpoints.mkdir()
    (checkpoints / "old").write_text("")
    seen = []

    def work(folder: Path, given: Path) -> None:
        seen.append(given.exists())
        counting.work(folder, given)

    again = StageStore(counting.root, force=True).run("stage", {"seed": 0}, CODE, work)
    assert (again.reused, again.key, counting.calls, seen) == (False, first.key, 2, [False])


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), IntvitError("no")], ids=repr)
def test_an_exception_leaves_no_result_but_keeps_the_checkpoints(counting: Counting, error: BaseException) -> None:
    places = []

    def fails(folder: Path, checkpoints: Path) -> None:
        (folder / "half.txt").write_text("half")
        checkpoints.mkdir()
        (checkpoints / "step").write_text("17")
        places.append(checkpoints)
        raise error

    store = StageStore(counting.root)
    with pytest.raises(type(error)):
        store.run("stage", {"seed": 0}, CODE, fails)
    assert visible(counting.root) == []
    assert hidden(counting.root) == [places[0].name]

    def resumes(folder: Path, checkpoints: Path) -> None:
        assert checkpoints == places[0]
        assert (checkpoints / "step").read_text() == "17"
        counting.work(folder, checkpoints)

    assert store.run("stage", {"seed": 0}, CODE, resumes).reused is False
    assert hidden(counting.root) == []


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "the disk is full"),
        (OSError(errno.EFBIG, "File too large"), "cannot write"),
        (SafetensorError("Error while serializing: I/O error: No space left (os error 28)"), "the disk is full"),
        (SafetensorError("Error while serializing: I/O error: File too large (os error 27)"), "cannot write"),
    ],
)  # fmt: skip
def test_a_failed_write_is_told_readably(counting: Counting, error: Exception, said: str) -> None:
    def fails(folder: Path, checkpoints: Path) -> None:
        raise error

    with pytest.raises(IntvitError, match=said) as caught:
        StageStore(counting.root).run("stage", {}, CODE, fails)
    assert str(counting.root) in caught.value.where
    assert caught.value.next
    assert visible(counting.root) == hidden(counting.root) == []


def test_a_safetensors_error_that_is_no_write_error_stays_what_it_is(counting: Counting) -> None:
    def fails(folder: Path, checkpoints: Path) -> None:
        raise SafetensorError("Error while deserializing header: header too large")

    with pytest.raises(SafetensorError, match="header"):
        StageStore(counting.root).run("stage", {}, CODE, fails)


def test_a_store_that_is_a_file_is_told_readably(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "store").write_text("in the way")
    with pytest.raises(IntvitError, match="cannot write") as caught:
        Counting(tmp_path / "store").run()
    assert "store" in caught.value.where
    with pytest.raises(IntvitError, match="cannot write"):
        Counting(tmp_path / "store/below").run()


def test_the_default_store_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("INTVIT_CACHE", str(tmp_path / "here"))
    assert default_store() == tmp_path / "here/stages"
    monkeypatch.delenv("INTVIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_store() == tmp_path / "xdg/intvit/stages"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_store() == tmp_path / "home/.cache/intvit/stages"


def test_a_cache_that_cannot_be_written_is_told_at_once_with_what_to_type(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    for name in ("INTVIT_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / "file"))
        with pytest.raises(IntvitError, match="cannot write to the cache") as caught:
            store_at(None)
        assert str(tmp_path / "file") in caught.value.where and "--cache DIR, or INTVIT_CACHE" in caught.value.next
        monkeypatch.delenv(name)
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    with pytest.raises(IntvitError, match="no home"):
        store_at(None)
    with pytest.raises(IntvitError, match="cannot write to the cache"):
        store_at(tmp_path / "file/below")
    assert store_at(tmp_path / "new/stages") == tmp_path / "new/stages"

    def refuse(path: Path) -> None:
        raise IntvitError("cannot write the file", where=str(path), why="Read-only file system")

    monkeypatch.setattr(stages, "require_writable", refuse)
    with pytest.raises(IntvitError, match="Read-only"):
        store_at(tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_read_only_cache_that_holds_stages_will_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(path: Path) -> None:
        raise AssertionError(path)

    (tmp_path / "images-0123").mkdir()
    (tmp_path / "images-0123/stage.json").write_text("{}")
    monkeypatch.setattr(stages, "require_writable", refuse)
    assert store_at(tmp_path) == tmp_path


HOLDER = """
import sys
from pathlib import Path
from toolchain import stages
stages.ROOT = Path(sys.argv[1])
def work(folder, checkpoints):
    (folder / "a.txt").write_text("half")
    print("working", flush=True)
    sys.stdin.read()
    (folder / "a.txt").write_text("whole")
stages.StageStore(Path(sys.argv[2])).run("stage", {"seed": 0}, ("work.py", "folder"), work)
"""


@pytest.fixture
def holder(counting: Counting, tree: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Starts a second process that is in the middle of the same stage, until its standard input closes."""
    started: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-c", HOLDER, str(tree), str(counting.root)]
        process = subprocess.Popen(command, cwd=REPO, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "working\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_second_process_is_told_to_wait_and_then_reuses(
    counting: Counting, holder: Callable[[], subprocess.Popen[str]]
) -> None:
    process = holder()
    with pytest.raises(IntvitError, match="another process") as caught:
        counting.run()
    assert ".lock-stage-" in caught.value.where
    assert counting.calls == 0
    assert visible(counting.root) == []
    assert counting.run(seed=1).reused is False  # something else may be built meanwhile
    process.communicate("")
    assert process.returncode == 0
    result = counting.run()
    assert (result.reused, (result.folder / "a.txt").read_text()) == (True, "whole")


def test_whoever_only_reads_a_finished_stage_waits_for_nobody(counting: Counting) -> None:
    made = counting.run()
    with alone(counting.root / f".lock-stage-{made.key}", "another reader's moment"):
        assert counting.run().reused


def test_a_killed_process_holds_no_lock_and_leaves_nothing_for_long(
    counting: Counting, holder: Callable[[], subprocess.Popen[str]]
) -> None:
    process = holder()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert visible(counting.root) == []
    result = counting.run()
    assert (result.reused, counting.calls) == (False, 1)
    assert hidden(counting.root) == []
