"""The command: what it writes, what it refuses, and the same bytes from one process, from two, and after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from calib import memory
from calib.synthesize import main
from runtime.cli import invoke

SMALL = ["--model", "vit_digits", "--method", "psaq", "--images", "6", "--batch", "2", "--iterations", "4"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def command(*arguments: str, processes: int = 1) -> list[str]:
    start = [sys.executable, "-m", "calib.synthesize"]
    if processes > 1:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        start = [*launcher, "-m", "calib.synthesize"]
    return [*start, *arguments]


def run(*arguments: str, processes: int = 1) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments, processes=processes), capture_output=True, text=True, check=False, env=ENVIRONMENT
    )


def content(folder: Path) -> bytes:
    return (folder / "images.safetensors").read_bytes()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small set made by one process."""
    out = tmp_path_factory.mktemp("alone") / "set"
    done = run(*SMALL, "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert "6 images" in done.stdout
    return out


def test_what_is_written(alone: Path) -> None:
    tensors = load_file(alone / "images.safetensors")
    assert tensors["pixels"].shape == (6, 3, 32, 32) and tensors["pixels"].dtype == torch.float16
    assert float(tensors["pixels"].min()) >= 0 and float(tensors["pixels"].max()) <= 1
    assert tensors["labels"].tolist() == tensors["classes"][:, 0].tolist()
    about = json.loads((alone / "images.json").read_text())
    assert about["config"]["method"] == "psaq" and about["seed"] == 0 and about["config"]["iterations"] == 4
    assert len(about["history"]) == 3 * 4 and len(about["measures"]["confidence"]) == 6
    pictures = sorted(path.name for path in alone.glob("*.png"))
    assert "preview.png" in pictures and len(pictures) >= 4
    for name in pictures:
        with Image.open(alone / name) as picture:
            picture.verify()
    assert [path.name for path in alone.parent.iterdir()] == ["set"]  # neither checkpoints nor half-written folders


def test_two_processes_make_the_same_bytes(alone: Path, tmp_path: Path) -> None:
    done = run(*SMALL, "--out", str(tmp_path / "set"), processes=2)
    assert done.returncode == 0, done.stderr
    assert content(tmp_path / "set") == content(alone)
    assert json.loads((tmp_path / "set/images.json").read_text())["processes"] == 2


def test_two_processes_agree_on_a_batch_of_their_own(tmp_path: Path) -> None:
    """The first decides: its groups are those that it would make alone."""
    arguments = [*SMALL[: SMALL.index("--batch")], *SMALL[SMALL.index("--batch") + 2 :]]
    for name, processes in (("alone", 1), ("shared", 2)):
        done = run(*arguments, "--out", str(tmp_path / name), processes=processes)
        assert done.returncode == 0, done.stderr
    assert content(tmp_path / "shared") == content(tmp_path / "alone")


def test_through_a_link_the_set_it_points_at_is_replaced(alone: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(alone)
    before = (alone / "images.json").read_bytes()
    arguments = [*SMALL, "--seed", "0", "--out", str(tmp_path / "link")]
    assert run(*arguments).returncode == 1 and (alone / "images.json").read_bytes() == before
    done = run(*arguments, "--force")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "link").is_symlink() and [path.name for path in alone.parent.iterdir()] == ["set"]


def test_killed_and_resumed_makes_the_same_bytes(alone: Path, tmp_path: Path) -> None:
    """Killed with SIGKILL once the first group is whole on disk; what was done is not done again."""
    out = tmp_path / "set"
    slow = [*SMALL[:-1], "60"]
    whole = run(*slow, "--out", str(tmp_path / "whole"))
    assert whole.returncode == 0, whole.stderr
    process = subprocess.Popen(command(*slow, "--out", str(out)), env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(".set.*.work/group-*.safetensors")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    again = run(*slow, "--out", str(out))
    assert again.returncode == 0, again.stderr
    assert content(out) == content(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set", "whole"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--method", "psaqq"], "near matches: psaq"),
        (["--method", "real"], "known: noise, procedural, psaq, mimiq, dfq-vit, spdfq, best\n"),
        (["--model", "deit_z"], "unknown model"),
        (["--device", "tpu"], "unknown device"),
        (["--device", "cuda"], "no CUDA device"),
        (["--checkpoint", "/nowhere.pt"], "/nowhere.pt"),
    ],
)
def test_bad_input(arguments: list[str], text: str, tmp_path: Path) -> None:
    done = run(*SMALL, "--out", str(tmp_path / "set"), *arguments)
    assert done.returncode == 1
    assert text in done.stderr and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_absurd_number_of_images_is_refused_at_once(tmp_path: Path) -> None:
    done = run(*SMALL, "--out", str(tmp_path / "set"), "--images", "1000000000")
    assert done.returncode == 2 and "--images" in done.stderr and list(tmp_path.iterdir()) == []


def test_more_images_than_the_memory_holds_are_refused_before_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(memory, "physical_memory", lambda: 5 * 4 * 3 * 32 * 32)
    assert invoke(main, [*SMALL, "--out", str(tmp_path / "set")]) == 1
    assert "do not fit the memory" in capsys.readouterr().err and list(tmp_path.iterdir()) == []


def test_out_is_not_overwritten_unawares(tmp_path: Path, alone: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("dear")
    for extra in ([], ["--force"]):
        done = run(*SMALL, "--out", str(tmp_path / "mine"), *extra)
        assert done.returncode == 1 and "Traceback" not in done.stderr
    assert (tmp_path / "mine/letter.txt").read_text() == "dear"
    assert run(*SMALL, "--out", str(alone)).returncode == 1
    before = content(alone)
    (alone.parent / ".set.0123456789abcdef.work").mkdir()  # of a run that failed
    done = run(*SMALL, "--out", str(alone), "--force")
    assert done.returncode == 0, done.stderr
    assert content(alone) == before
    assert [path.name for path in alone.parent.iterdir()] == ["set"]
