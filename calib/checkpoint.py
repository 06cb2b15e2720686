"""Weights from a file, never by running code: safetensors, or .pt/.pth through ``torch.load(weights_only=True)``."""

from __future__ import annotations

import hashlib
import re
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
WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model", "model_state_dict", "module")
_PREFIXES = re.compile(r"^((module|_orig_mod)\.)+")  # of data parallel and averaged models, and of compiled ones


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

    A wrapper such as ``{"model": {...}}``, and ``module.`` or ``_orig_mod.`` before every name, are taken off. Of
    several wrappers in one file the first in ``WRAPPERS`` that holds tensors is taken, as timm's own loader does:
    averaged weights (EMA) before those they are the mean of.

    Raises:
        IntvitError: no such file, an unknown suffix, a damaged file, or anything in it but plain tensors with values.
    """
    require_checkpoint(path)
    state = _read_safetensors(path) if path.suffix.lower() == ".safetensors" else _read_torch(path)
    state.pop("n_averaged", None)  # how many states torch's AveragedModel is the mean of
    return {_PREFIXES.sub("", name): tensor for name, tensor in state.items()}


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
    inner = loaded if isinstance(loaded, dict) else {}
    wrappers = [name for name in WRAPPERS if isinstance(inner.get(name), dict)]
    wrapper = next((name for name in wrappers if not _odd_parts(inner[name])), wrappers[0] if wrappers else None)
    state = loaded if wrapper is None else inner[wrapper]
    if odd := _odd_parts(state):
        raise IntvitError(
            "the checkpoint is not a mapping of names to tensors",
            where=str(path),
            why=f"found {odd}" + (f" under {wrapper!r}" if wrapper else ""),
            next="save the mapping alone, as torch.save(model.state_dict(), 'model.pth') does",
        )
    for name, tensor in state.items():
        if tensor.is_meta or tensor.layout != torch.strided:
            raise IntvitError(
                "the checkpoint holds more than plain tensors with values",
                where=f"{path}: {name}",
                why="it is on the meta device, without values" if tensor.is_meta else f"its layout is {tensor.layout}",
                next="save it from the model that holds the values" if tensor.is_meta else "save its to_dense()",
            )
    return dict(state)


def _odd_parts(state: Any) -> str:
    """What keeps ``state`` from being a mapping of names to tensors, in words; empty where it is one."""
    if not isinstance(state, dict):
        return type(state).__name__
    odd = [
        f"{name!r} ({type(part).__name__})"
        for name, part in state.items()
        if not (isinstance(name, str) and isinstance(part, Tensor))
    ]
    return "nothing" if not state else ", ".join(odd[:4]) + (", ..." if len(odd) > 4 else "")


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
