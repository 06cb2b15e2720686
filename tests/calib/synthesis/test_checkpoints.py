"""A batch's checkpoint: equal to the bit when read back, whole or absent, and never half believed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from calib.synthesis import checkpoints
from calib.synthesis.checkpoints import drop, restore, save
from calib.synthesis.engine import BatchState


def state(seed: int, step: int = 0) -> BatchState:
    generator = torch.Generator().manual_seed(seed)
    images, first, second = (torch.randn(2, 3, 4, 4, generator=generator) for _ in range(3))
    history = [{"batch": 0, "step": i + 1, "total": 0.1 * seed + i / 3} for i in range(step)]
    return BatchState(images, torch.tensor([1, 2]), 5.0, first, second, step, generator, history)


def same(one: BatchState, two: BatchState) -> bool:
    tensors = all(
        torch.equal(getattr(one, name), getattr(two, name)) for name in ("images", "first", "second", "labels")
    )
    generators = torch.equal(one.generator.get_state(), two.generator.get_state())
    return tensors and generators and (one.step, one.history) == (two.step, two.history)


def test_read_back_to_the_bit(tmp_path: Path) -> None:
    saved = state(1, step=4)
    torch.rand(3, generator=saved.generator)
    save(tmp_path / "made", 7, saved)
    assert os.listdir(tmp_path / "made") == ["batch-00007.safetensors"]
    found = restore(tmp_path / "made", 7, state(2))
    assert same(found, saved)
    assert torch.equal(torch.rand(5, generator=found.generator), torch.rand(5, generator=saved.generator))


def test_history_keeps_integers_and_every_bit_of_a_float(tmp_path: Path) -> None:
    saved = state(1, step=2)
    saved.history[1]["total"] = 0.1 + 0.2
    save(tmp_path, 0, saved)
    found = restore(tmp_path, 0, state(2)).history
    assert found == saved.history and isinstance(found[0]["step"], int)


def test_each_batch_has_its_own(tmp_path: Path) -> None:
    save(tmp_path, 0, state(1, step=1))
    assert same(restore(tmp_path, 1, state(2)), state(2))
    drop(tmp_path, 1)
    assert same(restore(tmp_path, 0, state(2)), state(1, step=1))
    drop(tmp_path, 0)
    assert os.listdir(tmp_path) == []


def test_a_write_that_fails_leaves_the_last_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 0, state(1, step=1))

    def full(tensors: object, path: Path, metadata: object) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(OSError, match="No space"):
        save(tmp_path, 0, state(2, step=2))
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["batch-00000.safetensors"]
    assert same(restore(tmp_path, 0, state(3)), state(1, step=1))


@pytest.mark.parametrize("missing", ["images", "first", "second", "step", "generator"])
def test_a_checkpoint_without_a_part_is_removed_and_nothing_of_it_used(tmp_path: Path, missing: str) -> None:
    save(tmp_path, 0, state(1, step=2))
    path = tmp_path / "batch-00000.safetensors"
    tensors = load_file(path)
    del tensors[missing]
    save_file(tensors, path, {"history": '[{"batch": 0}, {"batch": 0}]'})
    assert same(restore(tmp_path, 0, state(2)), state(2))
    assert not path.exists()


@pytest.mark.parametrize("metadata", [None, {}, {"history": "no"}, {"history": "[]"}, {"history": "3"}], ids=str)
def test_a_checkpoint_whose_history_does_not_fit_is_not_used(tmp_path: Path, metadata: dict | None) -> None:
    save(tmp_path, 0, state(1, step=2))
    path = tmp_path / "batch-00000.safetensors"
    save_file(load_file(path), path, metadata)
    assert same(restore(tmp_path, 0, state(2)), state(2))


def test_a_generator_state_that_torch_refuses(tmp_path: Path) -> None:
    save(tmp_path, 0, state(1, step=2))
    path = tmp_path / "batch-00000.safetensors"
    tensors = load_file(path)
    tensors["generator"] = torch.zeros(3, dtype=torch.uint8)
    save_file(tensors, path, {"history": '[{"batch": 0}, {"batch": 0}]'})
    assert same(restore(tmp_path, 0, state(2)), state(2))
