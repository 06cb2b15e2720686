"""Train ``vit_digits``, the small reference model of the demo and the quick tests, on scikit-learn's digits.

Everything is decided before the test split is looked at: one seed, one schedule, the last epoch's weights. Writes
``calib/assets/vit_digits.safetensors`` and ``.json``. With ``--check`` it writes nothing: it trains again and says
whether the accuracy and the very bytes come out as committed.
"""

from __future__ import annotations

import json
import math
import platform
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import sklearn
import timm
import torch
import typer
from safetensors.torch import save
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn import functional

from benches.digits import SIDE, SPLIT_SEED, TEST_SIZE, load_split
from runtime.cli import run
from runtime.errors import IntvitError
from runtime.files import atomic_write_bytes, atomic_write_json, sha256_bytes

ASSETS = Path(__file__).resolve().parent.parent / "calib" / "assets"
NAME = "vit_digits"
KWARGS: dict[str, Any] = {
    "img_size": SIDE,
    "patch_size": 4,
    "in_chans": 3,
    "num_classes": 10,
    "embed_dim": 96,
    "depth": 3,
    "num_heads": 3,
}
MEAN, STD = 0.5, 0.5
# One thread: the bits then do not depend on the number of cores, and a busy machine does not slow the training down.
SEED, EPOCHS, BATCH, THREADS = 0, 60, 64, 1
PEAK_RATE, WEIGHT_DECAY, WARMUP, SMOOTHING, PLACE_SIZE = 1e-3, 0.05, 4, 0.05, 0.5
# Augmentation, uniform within +- these: degrees, pixels of SIDE, part of the size.
ROTATE, SHIFT, SCALE = 12.0, 3.0, 0.12
MINIMUM_TOP1 = 97.0


def to_input(pictures: np.ndarray) -> Tensor:
    """Pictures (N, H, W, 3) uint8 to brightness in [0, 1], (N, 3, H, W) float32."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255


def jitter(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Rotate, scale and shift every picture of (B, 3, H, W) by its own random amount; black comes in at the edges."""
    count = pixels.shape[0]
    draw = torch.rand((4, count), generator=generator) * 2 - 1
    angle, size = draw[0] * math.radians(ROTATE), 1 + draw[1] * SCALE
    shift = draw[2:] * (2 * SHIFT / SIDE)
    cos, sin = torch.cos(angle) / size, torch.sin(angle) / size
    rows = torch.stack([torch.stack([cos, -sin, shift[0]], 1), torch.stack([sin, cos, shift[1]], 1)], 1)
    grid = functional.affine_grid(rows, list(pixels.shape), align_corners=False)
    return functional.grid_sample(pixels, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def place_code(width: int, side: int) -> Tensor:
    """A place code to start from, (side * side, width): sines and cosines of row and column, a quarter of it each."""
    waves = torch.exp(torch.linspace(0.0, -math.log(side), width // 4))
    at = torch.arange(side, dtype=torch.float32)[:, None] * waves * (math.pi / 2)
    code = torch.cat([at.sin(), at.cos()], 1)
    return torch.cat([code.repeat_interleave(side, 0), code.repeat(side, 1)], 1)


def rate(step: int, steps: int, warmup: int) -> float:
    """The learning rate at ``step``: a linear rise, then half a cosine down to 0."""
    if step < warmup:
        return PEAK_RATE * (step + 1) / warmup
    return PEAK_RATE * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def train(seed: int = SEED, epochs: int = EPOCHS) -> VisionTransformer:
    """A freshly trained network in eval mode; the same arguments give the same bits on the same machine."""
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = VisionTransformer(**KWARGS).train()
    places = model.pos_embed
    assert places is not None
    with torch.no_grad():  # timm starts places at 0.02, far below the patches: learning would first have to find them
        places[:, 1:] = PLACE_SIZE * place_code(KWARGS["embed_dim"], SIDE // KWARGS["patch_size"])
    pictures, targets = load_split("train")
    pixels, labels = to_input(pictures), torch.from_numpy(targets)
    groups: list[dict[str, Any]] = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups)
    per_epoch = len(labels) // BATCH
    for epoch in range(epochs):
        order, total = torch.randperm(len(labels), generator=generator), 0.0
        for index in range(per_epoch):
            for group in optimizer.param_groups:
                group["lr"] = rate(epoch * per_epoch + index, epochs * per_epoch, WARMUP * per_epoch)
            chosen = order[index * BATCH : (index + 1) * BATCH]
            logits = model((jitter(pixels[chosen], generator) - MEAN) / STD)
            loss = functional.cross_entropy(logits, labels[chosen], label_smoothing=SMOOTHING)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            total += float(loss.detach())
        print(f"epoch {epoch + 1:3d}/{epochs}  loss {total / per_epoch:.4f}", flush=True)
    return model.eval()


@torch.no_grad()
def top1(model: VisionTransformer) -> float:
    """Percent of the test split classified correctly."""
    pictures, labels = load_split("test")
    logits = model((to_input(pictures) - MEAN) / STD)
    return round(float((logits.argmax(1).numpy() == labels).mean() * 100), 4)


def describe(weights: bytes, accuracy: float, seed: int, epochs: int) -> dict[str, Any]:
    """What ``calib/assets/vit_digits.json`` says: how to build, feed and train the network again."""
    return {
        "timm_class": "VisionTransformer",
        "kwargs": KWARGS,
        "pretrained_cfg": {
            "input_size": [3, SIDE, SIDE],
            "mean": [MEAN] * 3,
            "std": [STD] * 3,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
        },
        "classes": [str(digit) for digit in range(10)],
        "test_top1": accuracy,
        "sha256": sha256_bytes(weights),
        "train": {
            "script": "benches/train_reference.py",
            "data": "sklearn.datasets.load_digits",
            "seed": seed,
            "epochs": epochs,
            "split": {"test_size": TEST_SIZE, "stratified": True, "random_state": SPLIT_SEED},
            "threads": THREADS,
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "timm": timm.__version__,
                "numpy": np.__version__,
                "scikit-learn": sklearn.__version__,
            },
        },
    }


def main(
    check: Annotated[bool, typer.Option("--check", help="Write nothing; compare with the committed weights.")] = False,
    seed: Annotated[int, typer.Option("--seed", help="Of the initial weights, the order and the augmentation.")] = SEED,
    epochs: Annotated[int, typer.Option("--epochs", min=WARMUP + 1, help="Passes over the training split.")] = EPOCHS,
) -> None:
    """Train the reference model of the demo and the quick tests."""
    start = time.perf_counter()
    model = train(seed, epochs)
    accuracy = top1(model)
    weights = save({key: value.contiguous() for key, value in model.state_dict().items()})
    card = describe(weights, accuracy, seed, epochs)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{time.perf_counter() - start:.0f} s, {parameters:,} parameters, {len(weights):,} bytes")
    print(f"test top-1 {accuracy:.2f} %, sha256 {card['sha256']}")
    if accuracy < MINIMUM_TOP1:
        raise IntvitError(f"test top-1 is {accuracy:.2f} %, under {MINIMUM_TOP1:.0f} %", where=NAME)
    if not check:
        atomic_write_bytes(ASSETS / f"{NAME}.safetensors", weights)
        atomic_write_json(ASSETS / f"{NAME}.json", card)
        return
    committed = json.loads((ASSETS / f"{NAME}.json").read_text("utf-8"))
    same = committed["sha256"] == card["sha256"]
    print(f"committed: test top-1 {committed['test_top1']:.2f} %; {'the same bytes' if same else 'other bytes'}")
    if abs(committed["test_top1"] - accuracy) > 1.0:
        raise IntvitError("the test accuracy is more than a point away from the committed one", where=NAME)


if __name__ == "__main__":
    run(main)
