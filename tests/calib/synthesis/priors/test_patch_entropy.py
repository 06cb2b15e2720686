"""Patch similarity entropy against loops over images, tokens and channels; gradients against differences."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from calib.synthesis.priors.patch_entropy import gaussian_entropy, patch_entropy_loss, patch_similarity


def slow_loss(outputs: list[Tensor], prefix: int) -> float:
    """As the paper tells it, in Python floats."""
    loss = 0.0
    for output in outputs:
        entropies = []
        for image in output.double().tolist():
            heads, tokens, width = len(image), len(image[0]), len(image[0][0])
            means = [
                [sum(image[h][t][c] for h in range(heads)) / heads for c in range(width)] for t in range(prefix, tokens)
            ]
            cosines = []
            for one in means:
                for two in means:
                    dot = sum(a * b for a, b in zip(one, two, strict=True))
                    cosines.append(dot / math.sqrt(sum(a * a for a in one)) / math.sqrt(sum(b * b for b in two)))
            mean = sum(cosines) / len(cosines)
            variance = sum((value - mean) ** 2 for value in cosines) / len(cosines)
            entropies.append(0.5 * math.log(2 * math.pi * math.e * (variance + 1e-8)))
        loss -= sum(entropies) / len(entropies)
    return loss


def outputs(seed: int, shapes: list[tuple[int, ...]], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) + 0.5 for shape in shapes]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(0, 3), st.integers(1, 2), st.integers(1, 3))
def test_equals_the_slow_form(seed: int, prefix: int, images: int, heads: int) -> None:
    drawn = outputs(
        seed, [(images, heads, prefix + 5, 4), (images, heads, prefix + 5, 4), (2 * images, heads, prefix + 3, 6)]
    )
    assert float(patch_entropy_loss(drawn, prefix)) == pytest.approx(slow_loss(drawn, prefix), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("prefix", [0, 2])
def test_gradients(prefix: int) -> None:
    drawn = [x.requires_grad_(True) for x in outputs(0, [(2, 2, 5, 3), (1, 3, 6, 2)], torch.float64)]
    assert patch_entropy_loss(drawn, prefix).dtype == torch.float64
    assert torch.autograd.gradcheck(lambda *xs: patch_entropy_loss(xs, prefix), drawn)
    (gradient,) = torch.autograd.grad(patch_entropy_loss(drawn[:1], prefix), drawn[:1])
    assert not gradient[:, :, :prefix].any() and gradient[:, :, prefix:].abs().min() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lower_precisions_are_computed_in_float32(dtype: torch.dtype) -> None:
    (drawn,) = outputs(0, [(2, 2, 7, 4)], dtype)
    assert patch_similarity(drawn, 1).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(patch_similarity(drawn, 1), patch_similarity(drawn, 1).float())
        inside = patch_similarity(drawn.float(), 1)
    assert torch.allclose(inside, patch_similarity(drawn.float(), 1), atol=1e-6)


def test_similarities() -> None:
    tokens = torch.tensor([[[[9.0, 9.0], [1.0, 0.0], [0.0, 3.0], [-2.0, 0.0], [1.0, 1.0]]]])
    half = 0.5**0.5
    expected = [[1, 0, -1, half], [0, 1, 0, half], [-1, 0, 1, -half], [half, half, -half, 1]]
    assert torch.allclose(patch_similarity(tokens, 1), torch.tensor([expected]), atol=1e-6)


def test_heads_are_averaged_first() -> None:
    heads = torch.tensor([[[[2.0, 0.0], [0.0, 1.0]], [[0.0, 2.0], [0.0, 1.0]]]])
    assert float(patch_similarity(heads, 0)[0, 0, 1]) == pytest.approx(0.5**0.5)


def test_entropy_rises_with_the_spread() -> None:
    narrow, wide = torch.tensor([[[0.1, 0.2], [0.2, 0.1]]]), torch.tensor([[[-1.0, 1.0], [1.0, -1.0]]])
    assert gaussian_entropy(wide) > gaussian_entropy(narrow)
    assert float(gaussian_entropy(wide)) == pytest.approx(0.5 * math.log(2 * math.pi * math.e), rel=1e-5)
    assert float(gaussian_entropy(torch.ones(1, 3, 3))) == pytest.approx(0.5 * math.log(2 * math.pi * math.e * 1e-8))


def test_silent_patches_give_finite_gradients() -> None:
    x = torch.randn(1, 1, 4, 3)
    x[0, 0, 2] = 0
    x.requires_grad_(True)
    (gradient,) = torch.autograd.grad(patch_entropy_loss([x], 0), x)
    assert torch.isfinite(gradient).all()
