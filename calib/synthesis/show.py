"""The pictures that stand beside a set: losses, confidence, what the priors did to attention."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from calib.models import ModelSpec
from calib.quant.families import block_names
from calib.synthesis.engine import SyntheticSet
from calib.synthesis.figures import attention_maps, confidence_histogram, head_agreement, loss_curves
from calib.synthesis.measures import measure


def show(made: SyntheticSet, before: Tensor, model: nn.Module, spec: ModelSpec, folder: Path) -> dict[str, Any]:
    """Write losses.png, confidence.png, heads.png and attention.png; what was measured of the whole set, as JSON.

    Args:
        before: (B', 3, H, W) in [0, 1], what the first B' images started from. model: the float network, on the CPU.
    """
    model = model.cpu()
    whole = measure(model, spec, made.images, made.classes)
    first, last = measure(model, spec, before, None), measure(model, spec, made.images[: len(before)], None)
    loss_curves(made.history, folder / "losses.png")
    if whole.agreement is not None:
        confidence_histogram(whole, folder / "confidence.png")
    head_agreement(first, last, folder / "heads.png")
    block = len(block_names(model)) * 2 // 3
    attention_maps(model, spec, before[0], made.images[0].float(), block, folder / "attention.png")
    return asdict(whole)
