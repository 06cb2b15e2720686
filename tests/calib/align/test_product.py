"""An attention product's steps: searched on the images to fit, wide enough for all, judged on those held out."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from calib.align.config import LayerConfig
from calib.align.product import BATCH_ROWS, _Operand, quantize_product
from calib.align.ranges import CLIPS_8BIT, search_range
from calib.align.rounding import relative_error
from calib.errors import IntvitError
from calib.quant.attention import QuantProduct

MINMAX = LayerConfig(ranges="minmax")
Calls = list[tuple[Tensor, Tensor]]


def calls(seed: int, batches: int = 2, by_row: bool = False) -> Calls:
    """Operands (2, 3, 11, 6) and (2, 3, 6, 5), batch after batch; some channels larger than others."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.exp(torch.randn(6, generator=generator))
    made = []
    for _ in range(batches):
        left = torch.randn(2, 3, 11, 6, generator=generator) * sizes
        right = torch.randn(2, 3, 6, 5, generator=generator) / sizes[:, None]
        made.append((left.softmax(-1) if by_row else left, right))
    return made


def quantized(
    fit: Calls, held: Calls, config: LayerConfig | None = None, by_row: bool = False
) -> tuple[QuantProduct, dict]:
    product = QuantProduct(8, by_row)

    def stream(made: Calls) -> Iterator[tuple[Tensor, ...]]:
        yield from made

    row = quantize_product(
        product, "blocks.0.attn.qk", stream(fit), stream(held), config or LayerConfig(), torch.Generator()
    )
    return product, row


def test_minmax_reaches_the_largest_value_of_all_images() -> None:
    fit, held = calls(0), calls(1)
    held[1][0][0, 0, 0, 0], held[0][1][1, 2, 3, 4] = -50.0, 70.0
    product, _ = quantized(fit, held, MINMAX)
    assert float(product.left.scale) == pytest.approx(50 / 127)
    assert float(product.right.scale) == pytest.approx(70 / 127)
    assert int(product.left.zero_point) == int(product.right.zero_point) == 0


def test_the_steps_are_those_of_least_error_in_the_product() -> None:
    """An operand's error counts by the other operand's energy in the same channel."""
    fit, held = calls(0), calls(1)
    product, _ = quantized(fit, held)
    left, right = (torch.cat(part) for part in zip(*fit, strict=True))
    weights = right.square().mean((0, 1, 3)), left.square().mean((0, 1, 2))
    rows = left.flatten(0, -2), right.transpose(-2, -1).flatten(0, -2)
    for quantizer, own, weight, index in (
        (product.left, rows[0], weights[0], 0),
        (product.right, rows[1], weights[1], 1),
    ):
        every = torch.cat([own.flatten(), *(pair[index].flatten() for pair in held)])
        wanted = search_range(own, 8, weight, ends=(float(every.min()), float(every.max())))
        assert float(quantizer.scale) == pytest.approx(wanted.scale)
        assert any(float(quantizer.scale) == pytest.approx(float(every.abs().max()) * c / 127) for c in CLIPS_8BIT)


def test_a_short_last_batch_counts_as_much_as_it_has() -> None:
    """The same images in one batch, and in two of which the second has one image: the same steps."""
    (left, right), (more, loud) = calls(0)
    whole = [(torch.cat([left, more[:1]]), torch.cat([right, 30 * loud[:1]]))]
    parted = [(left, right), (more[:1], 30 * loud[:1])]
    found = [quantized(fit, calls(1))[0] for fit in (whole, parted)]
    for side in ("left", "right"):
        assert float(getattr(found[0], side).scale) == pytest.approx(float(getattr(found[1], side).scale))
    operand = _Operand()
    for rows in (torch.ones(3, 1000, 4), 10 * torch.ones(1, 1000, 4)):
        operand.read(rows, torch.Generator())
    assert [len(kept) for kept in operand.kept] == [BATCH_ROWS, 171]  # 512 / 3, rounded up
    assert torch.equal(operand.mean_square(), torch.full((4,), (3 + 100) / 4))


@pytest.mark.parametrize("by_row", [False, True])
def test_the_row_of_the_report(by_row: bool) -> None:
    held = calls(1, by_row=by_row)
    product, row = quantized(calls(0, by_row=by_row), held, by_row=by_row)
    assert product.quantized
    assert row["scales"] == [float(product.left.scale), float(product.right.scale)]
    assert row["scales"][0] == pytest.approx(1 / 127) or not by_row
    made, wanted = product(*held[0]).flatten(0, -2), (held[0][0] @ held[0][1]).flatten(0, -2)
    assert row["error"] == pytest.approx(relative_error(made, wanted))
    assert 0 < row["error"] < 1e-2
    assert (row["step"], row["layer"], row["rejected"]) == ("quantize", "blocks.0.attn.qk", [])


def test_a_sample_of_each_batch_is_enough_and_the_seed_decides_it() -> None:
    generator = torch.Generator().manual_seed(3)
    many = [(torch.randn(4, 3, BATCH_ROWS, 6, generator=generator), torch.randn(4, 3, 6, 8, generator=generator))]
    one, two = (quantized(many, many)[0] for _ in range(2))
    assert float(one.left.scale) == float(two.left.scale)
    assert float(one.left.scale) * 127 <= float(many[0][0].abs().max()) * (1 + 1e-6)


def test_values_that_are_not_finite_are_refused() -> None:
    fit = calls(0)
    fit[0][1][0, 0, 0, 0] = float("nan")
    with pytest.raises(IntvitError, match="not finite") as caught:
        quantized(fit, calls(1))
    assert caught.value.where == "blocks.0.attn.qk"
