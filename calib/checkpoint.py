"""Weights from a file, never by running code: safetensors, or .pt/.pth through ``torch.load(weights_only=True)``."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from calib.errors import IntvitError
from calib.given import require_checkpoint

_COPY = "it is probably truncated or altered: copy or download it again and compare its size"
WRAPPERS = ("model", "state_dict", "model_state_dict", "model_ema", "module")


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(stream)


def _digest(stream: Any) -> str:
    digest = hashlib.sha256()
    while chunk := stream.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Tensors of a checkpoint by name, on the CPU.

    A wrapper such as ``{"model": {...}}`` or a ``module.`` prefix is taken off.

    Raises:
        IntvitError: no such file, an unknown suffix, a damaged file, or anything in it but plain tensors.
    """
    require_checkpoint(path)
    state = _read_safetensors(path) if path.suffix.lower() == ".safetensors" else _read_torch(path)
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise IntvitError(
            "the checkpoint is not a readable safetensors file",
            where=str(path),
            why=str(error).splitlines()[0],
            next=_COPY,
        ) from error


def _is_torchscript(path: Path) -> bool:
    """Whether it is the archive of a compiled program, which alone has a table of constants."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except Exception:  # on a damaged file Python's reader raises nearly anything too; torch's says what is wrong
        return False


def _read_torch(path: Path) -> dict[str, Tensor]:
    if _is_torchscript(path):
        raise IntvitError(
            "the checkpoint is a TorchScript program, not a mapping of names to tensors",
            where=str(path),
            why="its weights come with code, and code is never run",
            next="where you trust its source, save the weights alone: torch.save(torch.jit.load(F).state_dict(), "
            "'model.pt')",
        )
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # on a damaged file torch's reader raises nearly anything: IndexError, struct.error, ...
        if type(error).__name__ != "UnpicklingError":
            raise IntvitError("the checkpoint is damaged", where=str(path), why=reason(error), next=_COPY) from error
        raise IntvitError(
            "the checkpoint is damaged or holds more than plain tensors, and nothing else is ever unpickled",
            where=str(path),
            why=reason(error),
            next="where you trust its source, open it once with torch.load(F, weights_only=False) and write its state "
            "dict with safetensors.torch.save_file(state, 'model.safetensors')",
        ) from error
    for wrapper in WRAPPERS:
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
            break
    if (
        not isinstance(loaded, dict)
        or not loaded
        or not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in loaded.items())
    ):
        raise IntvitError(
            "the checkpoint is not a mapping of names to tensors",
            where=str(path),
            why=f"found {type(loaded).__name__}",
            next="save model.state_dict(), not the model",
        )
    return loaded


def reason(error: Exception) -> str:
    """The sentence of another library's error that says what it met; torch puts advice in front of it and behind."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if line.startswith("WeightsUnpickler error:")] or lines or ["no detail"]
    sentence = telling[0].removeprefix("WeightsUnpickler error: ").split(". ")[0]
    return f"{type(error).__name__}: {sentence[:300]}"


def load_into(model: nn.Module, state: dict[str, Tensor], where: str) -> None:
    """Copy a checkpoint into ``model``, every name and shape exactly.

    Raises:
        IntvitError: a name is missing or unexpected, a shape differs, or a value is not a finite float.
    """
    wanted = model.state_dict()
    missing = sorted(set(wanted) - set(state))
    extra = sorted(set(state) - set(wanted))
    if missing or extra:
        raise IntvitError(
            "the checkpoint is of another model",
            where=where,
            why="; ".join(
                f"{len(names)} tensors {what}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
                for what, names in (("missing", missing), ("unexpected", extra))
                if names
            ),
            next="check --model against the checkpoint; any full timm tag can be given",
        )
    for name, tensor in state.items():
        if tensor.shape != wanted[name].shape:
            raise IntvitError(
                "the checkpoint is of another model",
                where=f"{where}: {name}",
                why=f"shape {tuple(tensor.shape)}, the model has {tuple(wanted[name].shape)}",
                next="check --model: the size (tiny, small, base) or the number of classes differs",
            )
        if wanted[name].is_floating_point() and not tensor.is_floating_point():
            raise IntvitError(
                "the checkpoint does not hold floating-point weights",
                where=f"{where}: {name}",
                why=f"it is {str(tensor.dtype).removeprefix('torch.')}",
                next="use the float checkpoint the network was trained to, not a quantized one",
            )
        if tensor.is_floating_point() and not torch.isfinite(tensor.float()).all():
            raise IntvitError(
                "the checkpoint holds values that are not finite",
                where=f"{where}: {name}",
                why="the file is damaged or the training diverged",
                next="use another checkpoint",
            )
    model.load_state_dict(state)
