"""Checkpoints of a batch in the making: written whole or not at all, and equal to the bit when read back."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

if TYPE_CHECKING:
    from calib.synthesis.engine import BatchState


def _path(work: Path, index: int) -> Path:
    return work / f"batch-{index:05d}.safetensors"


def save(work: Path, index: int, state: BatchState) -> None:
    """Write batch ``index``'s state under its final name, through a temporary one."""
    work.mkdir(parents=True, exist_ok=True)
    partial = work / f".batch-{index:05d}.{os.getpid()}.partial"
    tensors = {
        "images": state.images,
        "first": state.first,
        "second": state.second,
        "labels": state.labels,
        "step": torch.tensor(state.step),
        "generator": state.generator.get_state(),
    }
    history = {"history": json.dumps(state.history)}
    try:
        save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, partial, history)
        os.replace(partial, _path(work, index))
    finally:
        partial.unlink(missing_ok=True)


def restore(work: Path, index: int, fresh: BatchState) -> BatchState:
    """``fresh`` brought to where the last checkpoint left it; unchanged when there is none that can be read."""
    path = _path(work, index)
    if not path.is_file():
        return fresh
    try:
        with safe_open(path, framework="pt") as file:
            images, first, second = (file.get_tensor(name) for name in ("images", "first", "second"))
            step = int(file.get_tensor("step"))
            history = json.loads(file.metadata()["history"])
            if not images.shape == first.shape == second.shape == fresh.images.shape or len(history) != step:
                raise ValueError("a checkpoint of another batch")
            fresh.generator.set_state(file.get_tensor("generator"))
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError):
        path.unlink(missing_ok=True)
        return fresh
    fresh.images, fresh.first, fresh.second, fresh.step, fresh.history = images, first, second, step, history
    return fresh


def drop(work: Path, index: int) -> None:
    """Remove batch ``index``'s checkpoint."""
    _path(work, index).unlink(missing_ok=True)
