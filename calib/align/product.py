"""Quantize one attention product: a step for each operand, from samples of its rows, judged on held-out images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from calib.align.config import LayerConfig
from calib.align.inputs import require_finite, sample
from calib.align.ranges import choose_range
from calib.align.rounding import relative_error
from calib.quant.attention import QuantProduct
from calib.quant.quantizer import ActQuantizer

BATCH_ROWS = 512  # rows kept of an operand a whole batch: all of P would be T times larger than any layer's input


class _Operand:
    """One operand as rows over what the product sums over: (..., K)."""

    def __init__(self) -> None:
        self.kept: list[Tensor] = []
        self.energies: list[Tensor] = []
        self.counts: list[int] = []
        self.ends = (0.0, 0.0)

    def read(self, rows: Tensor, generator: torch.Generator) -> None:
        """Keep a sample of the rows, of a shorter batch as much shorter, and the energy of every channel."""
        flat = rows.flatten(0, -2)
        self.counts.append(len(flat))
        share = -(-BATCH_ROWS * len(flat) // self.counts[0])
        self.kept.append(sample(flat, min(share, BATCH_ROWS), generator).clone())
        self.energies.append(flat.square().sum(0))
        self.widen(rows)

    def mean_square(self) -> Tensor:
        """Of every channel, over all rows read: (K,)."""
        return torch.stack(self.energies).sum(0) / sum(self.counts)

    def widen(self, rows: Tensor) -> None:
        """Take in the smallest and the largest value."""
        self.ends = min(self.ends[0], float(rows.min())), max(self.ends[1], float(rows.max()))

    def set_step(
        self, quantizer: ActQuantizer, other: _Operand, config: LayerConfig, generator: torch.Generator
    ) -> None:
        """Search the step; an error in channel k costs the mean square of the other operand's channel k."""
        rows = sample(torch.cat(self.kept), config.rows, generator)
        quantizer.set(choose_range(rows, quantizer.bits, other.mean_square(), config.ranges, ends=self.ends).scale)


def quantize_product(
    product: QuantProduct,
    name: str,
    fit: Iterator[tuple[Tensor, ...]],
    held: Iterator[tuple[Tensor, ...]],
    config: LayerConfig,
    generator: torch.Generator,
) -> dict[str, Any]:
    """Fix both quantizers of a product, in place, and switch it to integers; the row for the report.

    Its error is that of the first batch held out.

    Args:
        fit, held: (left, right) (..., M, K) and (..., K, N) float32, batch after batch, of the images to fit and of
            those held out. The step of a ``by_row`` left operand is fixed and stays.

    Raises:
        IntvitError: a value is not finite.
    """
    left, right = _Operand(), _Operand()
    for a, b in fit:
        require_finite(a, name)
        require_finite(b, name)
        left.read(a, generator)
        right.read(b.transpose(-2, -1), generator)
    judged: tuple[Tensor, ...] | None = None
    for a, b in held:
        left.widen(a)
        right.widen(b)
        judged = judged or (a, b)
    assert judged is not None
    if not product.by_row:
        left.set_step(product.left, right, config, generator)
    right.set_step(product.right, left, config, generator)
    product.quantized = True
    made, wanted = product.integer_output(*judged), judged[0] @ judged[1]
    return {
        "step": "quantize",
        "layer": name,
        "scales": [float(product.left.scale), float(product.right.scale)],
        "error": relative_error(made.flatten(0, -2), wanted.flatten(0, -2)),
        "rejected": [],
    }
