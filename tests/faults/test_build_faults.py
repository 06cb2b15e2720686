"""kill -9, Ctrl-C, a full disk and damaged leftovers in every stage of a build: a clean resume or a clear error."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from calib.synthesis import engine
from runtime import cli
from runtime.bundle import Bundle
from tests.conftest import REPO
from toolchain import assemble, pipeline
from toolchain.build import main

ITERATIONS = 10
GROUPS = 5  # of at most eight images
SYNTHESIS = ["--model", "vit_digits", "--bits", "w4a8", "--method", "psaq"]
SYNTHESIS += ["--iterations", str(ITERATIONS), "--images", "34"]
NOISE = ["--model", "vit_digits", "--bits", "w4a8", "--method", "noise", "--images", "8", "--budget", "fast"]
PATIENCE_S = 60.0


def files(root: Path) -> dict[str, bytes]:
    """Every file's bytes, but for what one run took."""
    found = {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    for name in ("cost.json", "report.html"):
        found.pop(name, None)
    return found


def leftovers(root: Path) -> list[str]:
    """Half-made folders, under whatever name."""
    return sorted(path.name for path in root.iterdir() if path.name.startswith((".partial", ".work")))


def stages(cache: Path) -> list[str]:
    return sorted(path.name.rsplit("-", 1)[0] for path in cache.iterdir() if not path.name.startswith("."))


@dataclass
class Runs:
    """Builds in processes of their own, all into ``root/out`` from ``root/cache``, with this process's thread count."""

    root: Path
    options: list[str]
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def out(self) -> Path:
        return self.root / "out"

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    @property
    def iterations(self) -> int:
        """How many synthesis iterations were run so far, by all processes together."""
        path = self.root / "iterations"
        return path.stat().st_size if path.exists() else 0

    def start(self, mode: str) -> subprocess.Popen[str]:
        (self.root / "reached").unlink(missing_ok=True)
        command = [sys.executable, str(REPO / "tests/faults/build_driver.py"), mode, str(self.root), *self.options]
        command += ["--cache", str(self.cache), "--out", str(self.out)]
        environment = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": str(torch.get_num_threads())}
        process = subprocess.Popen(command, cwd=self.root, env=environment, stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, text=True)  # fmt: skip
        self.started.append(process)
        return process

    def finish(self) -> str:
        """Run to the end; returns what was printed."""
        process = self.start("plain")
        said, errors = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, errors
        return said

    def wait_for(self, process: subprocess.Popen[str], there: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE_S
        while not there():
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < end, "the build did not get there"
            time.sleep(0.005)

    def kill(self, process: subprocess.Popen[str]) -> None:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL

    def checkpoints(self) -> list[Path]:
        return sorted(self.cache.glob(".work-synthesise-*/group-*.safetensors"))


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Callable[..., Runs]]:
    made: list[Runs] = []

    def make(name: str, options: list[str]) -> Runs:
        (tmp_path / name).mkdir()
        made.append(Runs(tmp_path / name, options))
        return made[-1]

    yield make
    for one in made:
        for process in one.started:
            process.kill()
            process.communicate()


@pytest.mark.timeout(300)
def test_killed_twice_in_synthesis_it_resumes_to_the_same_bytes(runs: Callable[..., Runs]) -> None:
    cut, whole = runs("cut", SYNTHESIS), runs("whole", SYNTHESIS)
    process = cut.start("slow")
    cut.wait_for(process, lambda: len(cut.checkpoints()) >= 1)
    cut.kill(process)
    first = cut.iterations
    assert 0 < first < GROUPS * ITERATIONS
    assert not cut.out.exists()
    assert stages(cut.cache) == []

    process = cut.start("slow")
    cut.wait_for(process, lambda: len(cut.checkpoints()) >= 4)
    cut.kill(process)
    second = cut.iterations - first
    assert 0 < second < GROUPS * ITERATIONS
    assert not cut.out.exists()
    assert stages(cut.cache) == []
    assert 4 <= len(cut.checkpoints()) <= GROUPS

    cut.finish()
    third = cut.iterations - first - second
    assert 0 < third <= 3 * ITERATIONS  # two threads: at least two groups had been finished
    # at most the iterations between a checkpoint and its kill were done again
    assert GROUPS * ITERATIONS <= cut.iterations < 2 * GROUPS * ITERATIONS
    assert leftovers(cut.cache) == []

    whole.finish()
    assert whole.iterations == GROUPS * ITERATIONS
    assert files(cut.out) == files(whole.out)
    assert {"ort/model.onnx", "canonical/model.onnx", "float/model.onnx"} < files(cut.out).keys()


def test_ctrl_c_in_synthesis_is_exit_code_130_and_clean(runs: Callable[..., Runs]) -> None:
    one = runs("one", SYNTHESIS)
    process = one.start("slow")
    one.wait_for(process, lambda: bool(one.checkpoints()))
    process.send_signal(signal.SIGINT)
    said, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert "stopped by Ctrl-C" in errors and "the same command goes on from here" in said
    assert "Traceback" not in said + errors
    assert not one.out.exists()
    assert stages(one.cache) == []
    assert not list(one.cache.glob(".partial*"))
    assert one.checkpoints()  # what was reached is kept


PLACES = {
    "in-calibration": ["synthesise"],
    "in-lowering": ["calibrate", "synthesise"],
    "in-assembling": ["calibrate", "lower", "synthesise"],
}


@pytest.mark.parametrize("place", PLACES)
def test_killed_later_the_next_run_completes(
    runs: Callable[..., Runs], place: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    one = runs("one", NOISE)
    process = one.start(place)
    one.wait_for(process, (one.root / "reached").exists)
    one.kill(process)
    assert not one.out.exists()
    assert stages(one.cache) == PLACES[place]
    assert cli.invoke(main, [*NOISE, "--cache", str(one.cache), "--out", str(one.out)]) == 0
    assert leftovers(one.cache) == []
    Bundle.open(one.out)
    assert cli.invoke(main, [*NOISE, "--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "out")]) == 0
    assert files(one.out) == files(tmp_path / "out")


def test_ctrl_c_while_measuring_leaves_the_old_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, cache = tmp_path / "out", tmp_path / "cache"
    assert build(cache, out) == 0
    before = files(out)

    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(assemble, "write_manifest", interrupted)
    assert build(cache, out, "--seed", "5") == 130
    assert files(out) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "out"]


def build(cache: Path, out: Path, *options: str) -> int:
    return cli.invoke(main, [*NOISE, "--cache", str(cache), "--out", str(out), *options])


@contextlib.contextmanager
def no_file_over(size: int) -> Iterator[None]:
    """Writing past ``size`` bytes of any file fails, as on a disk that is used up."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ("done", "size"),
    [([], 20_000), (["synthesise"], 100_000), (["calibrate", "synthesise"], 100_000)],
    ids=["synthesis", "calibration", "lowering"],
)
def test_a_write_that_fails_is_told_and_leaves_nothing(
    done: list[str], size: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache, out = tmp_path / "cache", tmp_path / "out"
    assert build(cache, tmp_path / "whole") == 0
    for folder in cache.iterdir():
        if folder.is_dir() and folder.name.rsplit("-", 1)[0] not in done:
            folder.rename(tmp_path / folder.name)
    capsys.readouterr()
    with no_file_over(size):
        assert build(cache, out) == 1
    said = capsys.readouterr().err
    assert "cannot write" in said
    assert "File too large" in said
    assert str(cache) in said
    assert "Traceback" not in said and "fault of intvit" not in said
    assert stages(cache) == done
    assert leftovers(cache) == []
    assert not out.exists()
    assert build(cache, out) == 0
    assert files(out) == files(tmp_path / "whole")


def test_a_write_that_fails_at_the_very_end_leaves_the_old_bundle(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache, out = tmp_path / "cache", tmp_path / "out"
    assert build(cache, out) == 0
    assert build(cache, tmp_path / "other", "--seed", "5") == 0  # its stages are in the cache now
    before = files(out)
    capsys.readouterr()
    with no_file_over(100_000):
        assert build(cache, out, "--seed", "5") == 1
    assert "cannot write" in capsys.readouterr().err
    assert files(out) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "other", "out"]


@pytest.mark.parametrize("name", ["save_images", "write_golden", "write_side_files"])
def test_a_full_disk_is_called_by_its_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pipeline, name, full)
    assert build(tmp_path / "cache", tmp_path / "out") == 1
    said = capsys.readouterr().err
    assert said.splitlines()[-4:][0].startswith("error: the disk is full")
    assert "free some space" in said
    assert not (tmp_path / "out").exists()
    assert leftovers(tmp_path / "cache") == []


def test_a_disk_that_is_full_for_the_bundle_alone_is_called_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(source: Path, place: Path, **options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(assemble.shutil, "copyfile", full)
    assert build(tmp_path / "cache", tmp_path / "out") == 1
    said = capsys.readouterr().err
    assert "error: the disk is full" in said and str(tmp_path / "out") in said and "free some space" in said
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_a_truncated_checkpoint_is_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cache, out = tmp_path / "cache", tmp_path / "out"
    options = ["--model", "vit_digits", "--bits", "w4a8", "--method", "psaq", "--iterations", "3", "--images", "4"]

    def run(cache: Path, out: Path) -> int:
        return cli.invoke(main, [*options, "--cache", str(cache), "--out", str(out)])

    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "drop", interrupted)  # all iterations done and saved, but no result yet
        assert run(cache, out) == 130
    (checkpoint,) = cache.glob(".work-synthesise-*/group-*.safetensors")
    data = checkpoint.read_bytes()
    for damaged in (data[: len(data) // 2], data[:5], b"", b"\xff" * 64):
        checkpoint.parent.mkdir(exist_ok=True)
        checkpoint.write_bytes(damaged)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(engine, "drop", interrupted)
            assert run(cache, out) == 130
        assert checkpoint.read_bytes() == data  # made again from the start, to the same bytes
    assert run(cache, out) == 0
    assert run(tmp_path / "other-cache", tmp_path / "other") == 0
    assert files(out) == files(tmp_path / "other")


@pytest.mark.parametrize(
    ("stage", "file"),
    [
        ("synthesise", "images.safetensors"),
        ("calibrate", "model.safetensors"),
        ("calibrate", "model.json"),
        ("lower", "ort/model.onnx"),
        ("lower", "golden/golden.safetensors"),
    ],
)
def test_a_damaged_stage_is_made_again(
    stage: str, file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache, out = tmp_path / "cache", tmp_path / "out"
    assert build(cache, out) == 0
    before = files(out)
    (folder,) = cache.glob(f"{stage}-*")
    data = bytearray((folder / file).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / file).write_bytes(bytes(data))
    capsys.readouterr()
    assert build(cache, out) == 0
    said = capsys.readouterr().out
    assert (said.count(": made "), said.count(": reused ")) == (1, 2)
    assert files(out) == before


@pytest.mark.parametrize("where", ["cache", "out"])
def test_a_place_that_cannot_be_written(where: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("in the way")
    places = {"cache": tmp_path / "cache", "out": tmp_path / "out"} | {where: tmp_path / "file" / "below"}
    assert build(places["cache"], places["out"]) == 1
    said = capsys.readouterr().err
    assert "cannot write" in said
    assert str(tmp_path / "file") in said
    assert "Traceback" not in said and "fault of intvit" not in said
    assert (tmp_path / "file").read_text() == "in the way"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]  # told before any stage was made
