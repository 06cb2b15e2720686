"""A calibration that is stopped goes on after its last whole piece, and ends in the same bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from calib.align.config import CalibrateConfig, LayerConfig, ReconstructConfig
from calib.calibrate import calibrate
from calib.calibrated import CalibratedModel
from calib.quant.surgery import prepare
from calib.resume import NAME, restore
from calib.scheme import parse
from tests.calib.networks import VIT_SIDE, pictures, spec_of, tiny_vit

CONFIG = CalibrateConfig(LayerConfig(rounding="gptq"), reconstruct=ReconstructConfig(iterations=3), batch=8)


class Stopped(Exception):
    pass


@pytest.fixture(autouse=True)
def _every_piece_is_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("calib.calibrate.SAVE_EVERY_S", 0.0)


def test_quick_pieces_are_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("calib.calibrate.SAVE_EVERY_S", 60.0)
    run(tmp_path / "work")
    assert not (tmp_path / "work").exists()


def test_a_state_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("calib.resume.save_file", full)
    with pytest.raises(OSError, match="no space left"):
        run(tmp_path / "work")
    assert not (tmp_path / "work").exists()


def run(
    folder: Path | None, stop: int | None = None, seen: list[str] | None = None, scheme: str = "w4a8"
) -> CalibratedModel:
    model = tiny_vit()

    def progress(done: int, total: int, name: str) -> None:
        if seen is not None:
            seen.append(name)
        if done == stop:
            raise Stopped

    images = pictures(16, VIT_SIDE)
    return calibrate(model, spec_of(model, VIT_SIDE), parse(scheme), images, CONFIG, progress, folder)


def numbers(made: CalibratedModel) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in made.module.state_dict().items()}


@pytest.mark.parametrize("stop", [0, 1, 2, 3])
def test_stopped_and_started_again(tmp_path: Path, stop: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(None)
    with pytest.raises(Stopped):
        run(tmp_path, stop)
    assert (tmp_path / NAME).is_file() == (stop > 0)
    made: list[str] = []
    inner = __import__("calib.calibrate", fromlist=["_quantize_piece"])._quantize_piece

    def counted(student: Any, piece: Any, *args: Any) -> Any:
        made.append(piece.name)
        return inner(student, piece, *args)

    monkeypatch.setattr("calib.calibrate._quantize_piece", counted)
    again = run(tmp_path)
    assert made == ["stem", "blocks.0", "blocks.1", "tail"][stop:]
    assert numbers(again) == numbers(whole) and again.report == whole.report


@pytest.mark.parametrize("scheme", ["w4a8+attn8", "w4a8+res8", "w4a8+int"])
def test_attention_products_and_integers_go_on_from_their_steps(tmp_path: Path, scheme: str) -> None:
    whole = run(None, scheme=scheme)
    with pytest.raises(Stopped):
        run(tmp_path, 2, scheme=scheme)
    again = run(tmp_path, scheme=scheme)
    assert numbers(again) == numbers(whole) and again.report == whole.report


@pytest.mark.parametrize("damage", ["cut", "flipped", "rubbish", "nested", "other"])
def test_what_is_damaged_or_anothers_is_removed(tmp_path: Path, damage: str) -> None:
    with pytest.raises(Stopped):
        run(tmp_path, 2)
    path = tmp_path / NAME
    data = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "flipped":
        data[-40] ^= 1
        path.write_bytes(data)
    elif damage == "rubbish":
        path.write_bytes(b"nothing")
    elif damage == "nested":
        save_file(load_file(path), path, {"state": "[" * 100_000})
    student = prepare(tiny_vit(embed_dim=48) if damage == "other" else tiny_vit(), parse("w4a8"))
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    report: list[dict[str, Any]] = []
    assert restore(tmp_path, student, report) == 0 and report == [] and not path.exists()
    assert all(torch.equal(before[name], tensor) for name, tensor in student.state_dict().items())
