"""The kernel density's entropy against loops over points and values, and against autograd through the dense formula."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from calib.synthesis.priors import kernel_density
from calib.synthesis.priors.head_similarity import Scratch
from calib.synthesis.priors.kernel_density import kernel_entropy, similarity_entropy, triangle

# Range of the values of a row: the points 0.1, 0.04, 0.01, 0.001 and 1e-6 apart; the bandwidth is 0.01.
RANGES = (0.9, 0.36, 0.09, 0.009, 9e-6)


def slow_entropy(row: list[float]) -> float:
    """As published, in Python floats, with the row's own least and greatest value."""
    low, high = min(row), max(row)
    points = [low + (high - low) * index / 9 for index in range(10)]
    heights = []
    for point in points:
        kernels = [math.exp(-((point - value) ** 2) / (2 * 0.01**2)) for value in row]
        density = sum(kernels) / len(row) / (0.01 * math.sqrt(2 * math.pi)) + 1e-4
        heights.append(-density * math.log(density))
    return sum((points[m + 1] - points[m]) * (heights[m] + heights[m + 1]) / 2 for m in range(9))


def points_of(values: Tensor) -> Tensor:
    low, high = values.detach().amin(1, keepdim=True), values.detach().amax(1, keepdim=True)
    return low + (high - low) * torch.arange(10, dtype=values.dtype) / 9


def dense_entropy(values: Tensor, points: Tensor) -> Tensor:
    kernels = torch.exp(-((points[:, :, None] - values[:, None]) ** 2) / (2 * 0.01**2))
    density = kernels.mean(2) / (0.01 * math.sqrt(2 * math.pi)) + 1e-4
    return torch.trapezoid(-density * density.log(), points, dim=1)


def drawn(seed: int, rows: int, size: int, spread: float, top: float = 1.0) -> Tensor:
    values = torch.rand(rows, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    values[:, 0], values[:, 1] = 0, 1
    return top - spread * values


def gradient_of(function, inputs: Tensor, weights: Tensor) -> Tensor:
    leaf = inputs.clone().requires_grad_(True)
    return torch.autograd.grad((function(leaf) * weights).sum(), leaf)[0]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 3), st.integers(2, 40), st.sampled_from(RANGES), st.floats(-1, 1))
def test_equals_the_slow_form(seed: int, rows: int, size: int, spread: float, top: float) -> None:
    values = drawn(seed, rows, size, spread, top)
    expected = torch.tensor([slow_entropy(row) for row in values.tolist()], dtype=torch.float64)
    assert torch.allclose(kernel_entropy(values), expected, rtol=1e-9, atol=1e-14)
    single = values.float()
    expected = torch.tensor([slow_entropy(row) for row in single.tolist()], dtype=torch.float64)
    assert torch.allclose(kernel_entropy(single).double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("spread", RANGES)
@pytest.mark.parametrize("size", [10, 136, 1225])
def test_gradients_are_those_of_the_dense_form(spread: float, size: int) -> None:
    """With the points held; float32 against float64 relative to the whole gradient."""
    values, weights = drawn(size, 3, size, spread), torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    expected = gradient_of(lambda leaf: dense_entropy(leaf, points_of(leaf)), values, weights)
    assert torch.allclose(gradient_of(kernel_entropy, values, weights), expected, rtol=1e-9, atol=1e-11)
    single = values.float()
    expected = gradient_of(lambda leaf: dense_entropy(leaf, points_of(leaf)), single.double(), weights)
    found = gradient_of(kernel_entropy, single, weights.float())
    assert float((found - expected).norm()) < 1e-4 * float(expected.norm())


@pytest.mark.parametrize("spread", RANGES[:4])
def test_gradients_are_the_differences(spread: float) -> None:
    """The least and the greatest value stand still, and with them the points."""
    ends = drawn(0, 2, 2, spread)
    inner = drawn(1, 2, 6, 0.8 * spread, 1 - 0.1 * spread).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x: kernel_entropy(torch.cat((ends, x), 1)), inner, eps=1e-6 * spread)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_values_have_no_entropy_and_no_gradient(dtype: torch.dtype) -> None:
    values = torch.full((2, 50), 0.3, dtype=dtype)
    assert not kernel_entropy(values).any()
    assert not gradient_of(kernel_entropy, values, torch.ones(2, dtype=dtype)).any()


@pytest.mark.parametrize("patches", [1, 4, 16, 49, 196])
@pytest.mark.parametrize("spread", [1.0, 0.3, 0.05])
def test_products_of_patches(patches: int, spread: float) -> None:
    """Entropy and gradient of all N^2 products, from those above the diagonal."""
    generator = torch.Generator().manual_seed(patches)
    patch = 1 + spread * torch.randn(2, patches, 8, generator=generator, dtype=torch.float64)
    unit = (patch / patch.norm(dim=2, keepdim=True)).requires_grad_(True)
    products = (unit @ unit.mT).flatten(1)
    expected = dense_entropy(products, points_of(products))
    (wanted,) = torch.autograd.grad(expected.sum(), unit)
    scratch, gradient = Scratch(torch.float64, unit.device), torch.empty_like(unit)
    assert torch.allclose(similarity_entropy(unit.detach(), scratch, gradient), expected, rtol=1e-9, atol=1e-11)
    assert torch.allclose(gradient, wanted, rtol=1e-8, atol=1e-9)
    assert torch.allclose(similarity_entropy(unit.detach(), scratch, None), expected, rtol=1e-9, atol=1e-11)


def test_triangle() -> None:
    places, pairs = triangle(3, torch.device("cpu"))
    assert places.tolist() == [0, 4, 8, 1, 2, 5]
    assert pairs.tolist() == [0, 3, 4, 3, 1, 5, 4, 5, 2]


def test_rows_do_not_depend_on_one_another_nor_on_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.cat((drawn(0, 2, 40, 0.9), drawn(1, 3, 40, 0.01)))
    whole = kernel_entropy(values)
    for chunk in (1, 800, 1200):
        monkeypatch.setattr(kernel_density, "CHUNK_CPU", chunk)
        assert torch.allclose(kernel_entropy(values), whole, rtol=1e-12)
    assert torch.allclose(kernel_entropy(values[3:4]), whole[3:4], rtol=1e-12)


def test_far_values_stay_fast_to_compute_and_are_not_seen() -> None:
    """No kernel is denormal: two clusters have the entropy of their ends alone."""
    values = torch.tensor([[0.0] * 5 + [1.0] * 5])
    kernels = Scratch(values.dtype, values.device)
    found = kernel_density._entropy(values, 10, kernels, None)
    assert kernels.take("kernels", 1, 10, 10).min() > torch.finfo(torch.float32).tiny
    assert float(found) == pytest.approx(slow_entropy(values[0].tolist()), rel=1e-6)


def test_only_the_first_derivative() -> None:
    values = drawn(0, 1, 8, 0.5).requires_grad_(True)
    (first,) = torch.autograd.grad(kernel_entropy(values).sum(), values, create_graph=True)
    with pytest.raises(RuntimeError):
        first.sum().backward()
