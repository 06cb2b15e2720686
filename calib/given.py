"""What a command line says of the network and the machine, checked as far as that goes without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from calib.errors import IntvitError

SHORT_NAMES = {
    "deit_t": "deit_tiny_patch16_224.fb_in1k",
    "deit_s": "deit_small_patch16_224.fb_in1k",
    "deit_b": "deit_base_patch16_224.fb_in1k",
    "vit_t": "vit_tiny_patch16_224.augreg_in21k_ft_in1k",
    "vit_s": "vit_small_patch16_224.augreg_in21k_ft_in1k",
    "vit_b": "vit_base_patch16_224.augreg_in21k_ft_in1k",
    "swin_t": "swin_tiny_patch4_window7_224.ms_in1k",
    "swin_s": "swin_small_patch4_window7_224.ms_in1k",
    "swin_b": "swin_base_patch4_window7_224.ms_in22k_ft_in1k",
}
PACKAGED = ("vit_digits",)
RANDOM = "random"
SUFFIXES = (".safetensors", ".pt", ".pth")
DEVICES = ("auto", "cpu", "cuda")

ModelOption = Annotated[
    str, typer.Option("--model", help=", ".join([*SHORT_NAMES, *PACKAGED]) + ", or a timm tag of a ViT, DeiT or Swin.")
]
CheckpointOption = Annotated[
    str | None,
    typer.Option("--checkpoint", help=f"Weights: a {', '.join(SUFFIXES)} file, or '{RANDOM}'; default: timm's."),
]
IMAGE_LIMIT = 1_000_000  # a set is planned and held as one; no calibration needs a hundredth of it
SEED_LIMIT = (1 << 31) - 1  # steps draw from seeds of their own, up to a million times as large: they fit 64 bits
DeviceOption = Annotated[
    str, typer.Option("--device", help=", ".join(DEVICES) + ": what images and calibration run on.")
]


def require_checkpoint(checkpoint: str | Path | None) -> None:
    """Refuse what ``--checkpoint`` cannot name; None and ``random`` name no file.

    Raises:
        IntvitError: no such file, an unknown suffix, or a file that cannot be opened.
    """
    if checkpoint is None or checkpoint == RANDOM:
        return
    path = Path(checkpoint).expanduser()
    if not path.is_file():
        raise IntvitError(
            "no such checkpoint",
            where=str(path),
            why="it is a folder" if path.is_dir() else "there is no file of that name",
            next="give --checkpoint the path of an existing file",
        )
    if path.suffix.lower() not in SUFFIXES:
        raise IntvitError(
            "a checkpoint ends in " + ", ".join(SUFFIXES[:-1]) + f" or {SUFFIXES[-1]}",
            where=str(path),
            why=f"this one ends in {path.suffix}" if path.suffix else "this one has no suffix",
            next="save it with safetensors.torch.save_file(model.state_dict(), 'model.safetensors')",
        )
    try:
        path.open("rb").close()
    except OSError as error:
        raise IntvitError(
            "the checkpoint cannot be opened",
            where=str(path),
            why=error.strerror or str(error),
            next="check its permissions",
        ) from error


def require_device(choice: str) -> None:
    """Refuse what is no choice of ``--device``.

    Raises:
        IntvitError: it is none.
    """
    if choice not in DEVICES:
        raise IntvitError(f"unknown device {choice!r}", where="--device", next=", ".join(DEVICES[:-1]) + " or cuda")


def device_of(choice: str) -> str:
    """The torch device of a choice: ``auto`` is a GPU where torch sees one.

    Raises:
        IntvitError: the choice is unknown, or ``cuda`` where torch sees none.
    """
    require_device(choice)
    if choice == "cpu":
        return choice
    import torch  # not above: what else is wrong with a command line is said without it

    if torch.cuda.is_available():
        return "cuda"
    if choice == "cuda":
        raise IntvitError(
            "torch sees no CUDA device", where="--device cuda", next="--device cpu, or see python -m runtime.doctor"
        )
    return "cpu"
