"""Checkpoints of a calibration: after every piece, all numbers of the network so far and the report."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from calib.calibrated import load_numbers
from calib.network import Network

NAME = "calibration.safetensors"


def _digest(state: dict[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()


def save(folder: Path, student: Network, report: list[dict[str, Any]], done: int) -> None:
    """Write the state after ``done`` pieces under its final name, through a temporary one."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.contiguous() for name, tensor in student.state_dict().items()}
    text = json.dumps({"done": done, "report": report})
    partial = folder / f".{NAME}.{os.getpid()}.partial"
    try:
        save_file(state, partial, {"state": json.dumps([_digest(state, text), text])})
        os.replace(partial, folder / NAME)
    except BaseException:
        partial.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            folder.rmdir()  # only where nothing was saved before
        raise


def restore(folder: Path, student: Network, report: list[dict[str, Any]]) -> int:
    """Bring ``student`` and ``report`` to where the last checkpoint left them; how many pieces are done.

    A checkpoint that is damaged or of another network is removed, and the answer is 0.
    """
    path = folder / NAME
    if not path.is_file():
        return 0
    try:
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            digest, text = json.loads(file.metadata()["state"])
        kept = json.loads(text)
        done, rows = int(kept["done"]), list(kept["report"])
        fresh = {name: tensor.shape for name, tensor in student.state_dict().items()}
        whole = all(name in state and state[name].shape == shape for name, shape in fresh.items())
        if digest != _digest(state, text) or not whole:
            raise ValueError("damaged, or of another network")
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RecursionError):
        path.unlink(missing_ok=True)
        return 0
    with torch.no_grad():
        load_numbers(student, state)
    report.extend(rows)
    return done
