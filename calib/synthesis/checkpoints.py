"""Checkpoints of a group in the making: written whole or not at all, and equal to the bit when read back."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

if TYPE_CHECKING:
    from calib.synthesis.state import GroupState


def _path(work: Path, first: int) -> Path:
    return work / f"group-{first:06d}.safetensors"


def _digest(tensors: dict[str, torch.Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].numpy().tobytes())
    return digest.hexdigest()


def save(work: Path, first: int, state: GroupState) -> None:
    """Write the state of the group named ``first`` under its final name, through a temporary one."""
    work.mkdir(parents=True, exist_ok=True)
    partial = work / f".group-{first:06d}.{os.getpid()}.partial"
    tensors = {
        "images": state.images.cpu().contiguous(),
        "first": state.first.cpu().contiguous(),
        "second": state.second.cpu().contiguous(),
        "step": torch.tensor(state.step),
        "generator": state.generator.get_state(),
    }
    kept = json.dumps({"history": state.history, "scales": state.scales, "since": state.since})
    # One entry only: the order of several is not fixed, and equal states shall be equal files.
    try:
        save_file(tensors, partial, {"state": json.dumps([_digest(tensors, kept), kept])})
        os.replace(partial, _path(work, first))
    finally:
        partial.unlink(missing_ok=True)


def restore(work: Path, first: int, fresh: GroupState) -> GroupState:
    """``fresh`` brought to where the last checkpoint left it; unchanged when there is none that is whole."""
    path = _path(work, first)
    if not path.is_file():
        return fresh
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in ("images", "first", "second", "step", "generator")}
            digest, text = json.loads(file.metadata()["state"])
        kept, step = json.loads(text), int(tensors["step"])
        history, scales, since = kept["history"], kept["scales"], int(kept["since"])
        if digest != _digest(tensors, text) or len(history) != step:
            raise ValueError("damaged")
        full, half = tuple(fresh.images.shape), (*fresh.images.shape[:2], *(n // 2 for n in fresh.images.shape[2:]))
        if tuple(tensors["images"].shape) not in (full, half):
            raise ValueError("a checkpoint of another group")
        fresh.generator.set_state(tensors["generator"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError):
        path.unlink(missing_ok=True)
        return fresh
    fresh.images, fresh.first, fresh.second = tensors["images"], tensors["first"], tensors["second"]
    fresh.step, fresh.since, fresh.history, fresh.scales = step, since, history, scales
    return fresh


def drop(work: Path, first: int) -> None:
    """Remove the checkpoint of the group named ``first``."""
    _path(work, first).unlink(missing_ok=True)
