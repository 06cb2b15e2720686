"""Patch similarity entropy against loops over images, tokens and channels; gradients against differences."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from calib.synthesis.priors import kernel_density
from calib.synthesis.priors.patch_entropy import Form, patch_entropy, patch_entropy_loss
from tests.calib.synthesis.priors.test_kernel_density import dense_entropy, points_of, slow_entropy

FORMS: tuple[Form, ...] = ("gaussian", "kde")
forms = pytest.mark.parametrize("form", FORMS)


def slow_cosines(image: list, prefix: int) -> list[float]:
    heads, tokens, width = len(image), len(image[0]), len(image[0][0])
    means = [[sum(image[h][t][c] for h in range(heads)) / heads for c in range(width)] for t in range(prefix, tokens)]
    cosines = []
    for one in means:
        for two in means:
            dot = sum(a * b for a, b in zip(one, two, strict=True))
            cosines.append(dot / math.sqrt(sum(a * a for a in one)) / math.sqrt(sum(b * b for b in two)))
    return cosines


def slow_gaussian(cosines: list[float]) -> float:
    mean = sum(cosines) / len(cosines)
    variance = sum((value - mean) ** 2 for value in cosines) / len(cosines)
    return 0.5 * math.log(2 * math.pi * math.e * (variance + 1e-8))


def slow_loss(outputs: list[Tensor], prefix: int, form: Form) -> float:
    """As the paper tells it, in Python floats."""
    entropy, loss = {"gaussian": slow_gaussian, "kde": slow_entropy}[form], 0.0
    for output in outputs:
        entropies = [entropy(slow_cosines(image, prefix)) for image in output.double().tolist()]
        loss -= sum(entropies) / len(entropies)
    return loss


def dense(output: Tensor, prefix: int, form: Form) -> Tensor:
    """The same through autograd, with the N x N similarities: (B,)."""
    patches = output[:, :, prefix:].mean(1)
    unit = patches / patches.norm(dim=2, keepdim=True)
    cosines = (unit @ unit.mT).flatten(1)
    if form == "kde":
        return dense_entropy(cosines, points_of(cosines))
    return 0.5 * torch.log(2 * math.pi * math.e * (cosines.var(1, unbiased=False) + 1e-8))


def drawn(seed: int, shape: tuple[int, ...], spread: float = 2.0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Attention outputs: the smaller the spread, the more equal the patches."""
    generator = torch.Generator().manual_seed(seed)
    return (1 + spread * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)


def gradient_of(function, output: Tensor) -> tuple[Tensor, Tensor]:
    leaf = output.clone().requires_grad_(True)
    value = function(leaf)
    return value.detach(), torch.autograd.grad((value * torch.arange(1, len(value) + 1)).sum(), leaf)[0]


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(FORMS), st.integers(0, 1000), st.integers(0, 3), st.integers(1, 2), st.integers(1, 3))
def test_equals_the_slow_form(form: Form, seed: int, prefix: int, images: int, heads: int) -> None:
    shapes = [(images, heads, prefix + 5, 4), (images, heads, prefix + 5, 4), (2 * images, heads, prefix + 3, 6)]
    layers = [drawn(seed + index, shape) for index, shape in enumerate(shapes)]
    expected = slow_loss(layers, prefix, form)
    assert float(patch_entropy_loss(layers, prefix, form)) == pytest.approx(expected, rel=1e-5, abs=1e-5)
    exact = [layer.double() for layer in layers]
    assert float(patch_entropy_loss(exact, prefix, form)) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@forms
@pytest.mark.parametrize("patches", [4, 16, 49, 196])
@pytest.mark.parametrize("spread", [2.0, 0.3, 0.1, 0.01, 1e-4])
def test_equals_the_dense_form(form: Form, patches: int, spread: float) -> None:
    """Down to patches so equal that 1 - cosine is 1e-8; for the kernels, the points then lie closer than h."""
    output = drawn(patches, (3, 2, patches + 1, 32), spread, torch.float64)
    entropy, gradient = gradient_of(lambda x: patch_entropy(x, 1, form), output)
    expected, wanted = gradient_of(lambda x: dense(x, 1, form), output)
    assert torch.allclose(entropy, expected, rtol=1e-9, atol=1e-11)
    assert float((gradient - wanted).norm()) < (1e-9 if spread > 0.001 else 1e-5) * float(wanted.norm())


@forms
@pytest.mark.parametrize("patches", [4, 16, 49, 196])
@pytest.mark.parametrize("spread", [2.0, 0.3, 0.1])
def test_float32(form: Form, patches: int, spread: float) -> None:
    """With a spread of 0.1 the cosines cover 0.04, and the points are 0.004 apart."""
    output = drawn(patches, (3, 2, patches + 1, 32), spread)
    entropy, gradient = gradient_of(lambda x: patch_entropy(x, 1, form), output)
    expected, wanted = gradient_of(lambda x: dense(x, 1, form), output.double())
    assert entropy.dtype == gradient.dtype == torch.float32
    assert torch.allclose(entropy.double(), expected, rtol=1e-5, atol=1e-6)
    assert float((gradient - wanted).norm()) < 2e-4 * float(wanted.norm())


def test_nearly_equal_patches_in_float32() -> None:
    """The variance of the cosines, some 1e-9 to 1e-13, is far below what float32 leaves of E[g^2] - E[g]^2."""
    for spread in (0.03, 0.01, 1e-3):
        output = drawn(0, (2, 1, 49, 16), spread)
        assert torch.allclose(patch_entropy(output, 0).double(), dense(output.double(), 0, "gaussian"), rtol=1e-5)


@forms
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_patches(form: Form, dtype: torch.dtype) -> None:
    output = torch.ones(2, 3, 10, 4, dtype=dtype)
    entropy, gradient = gradient_of(lambda x: patch_entropy(x, 1, form), output)
    least = 0.0 if form == "kde" else 0.5 * math.log(2 * math.pi * math.e * 1e-8)
    assert torch.allclose(entropy, torch.tensor(least, dtype=dtype), atol=1e-6) and gradient.abs().max() < 1e-6


@pytest.mark.parametrize("prefix", [0, 2])
def test_gradients(prefix: int) -> None:
    layers = [drawn(0, shape, dtype=torch.float64).requires_grad_(True) for shape in [(2, 2, 5, 3), (1, 3, 6, 2)]]
    assert patch_entropy_loss(layers, prefix).dtype == torch.float64
    assert torch.autograd.gradcheck(lambda *xs: patch_entropy_loss(xs, prefix), layers)
    (gradient,) = torch.autograd.grad(patch_entropy_loss(layers[:1], prefix), layers[:1])
    assert not gradient[:, :, :prefix].any() and gradient[:, :, prefix:].abs().min() > 0


@forms
def test_chosen_patches(form: Form) -> None:
    """Rows count from the first patch, may be in any order, and the others have no gradient; twice counts twice."""
    output, rows = drawn(0, (2, 2, 9, 4), dtype=torch.float64), torch.tensor([5, 0, 3, 3])
    found, gradient = gradient_of(lambda x: -patch_entropy_loss([x], 2, form, rows).expand(1), output)
    expected, wanted = gradient_of(lambda x: dense(x[:, :, rows + 2], 0, form).mean().expand(1), output)
    assert torch.allclose(found, expected, rtol=1e-9) and torch.allclose(gradient, wanted, rtol=1e-7, atol=1e-9)
    assert not gradient[:, :, [0, 1, 3, 4, 6, 8]].any()


@forms
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_lower_precisions_are_computed_in_float32(form: Form, dtype: torch.dtype) -> None:
    output = drawn(0, (2, 2, 7, 4), dtype=dtype)
    entropy, gradient = gradient_of(lambda x: patch_entropy(x, 1, form), output)
    expected, wanted = gradient_of(lambda x: patch_entropy(x, 1, form), output.float())
    assert torch.equal(entropy, expected) and gradient.dtype == dtype and torch.equal(gradient, wanted.to(dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside, within = gradient_of(lambda x: patch_entropy(x, 1, form), output.float())
    assert torch.equal(inside, expected) and torch.equal(within, wanted)


@forms
def test_heads_are_averaged_first_and_lengths_do_not_count(form: Form) -> None:
    heads = torch.tensor([[[[2.0, 0.0], [0.0, 1.0]], [[0.0, 2.0], [0.0, 1.0]]]])
    mean = torch.tensor([[[[3.0, 3.0], [0.0, 0.1]]]])
    assert float(patch_entropy(heads, 0, form)) == pytest.approx(float(patch_entropy(mean, 0, form)), rel=1e-6)


@forms
def test_entropy_rises_with_the_spread(form: Form) -> None:
    entropies = [float(patch_entropy(drawn(0, (1, 1, 196, 32), spread), 0, form)) for spread in (0.5, 1.0, 2.0)]
    assert entropies == sorted(entropies)


@forms
def test_silent_patches_give_finite_gradients(form: Form) -> None:
    output = drawn(0, (1, 1, 4, 3))
    output[0, 0, 2] = 0
    entropy, gradient = gradient_of(lambda x: patch_entropy(x, 0, form), output)
    assert torch.isfinite(entropy).all() and torch.isfinite(gradient).all()


@forms
def test_the_same_from_many_threads_and_nearly_so_in_other_chunks(form: Form, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit by bit from call to call; the chunks change the order of some sums, no more."""
    outputs = [drawn(seed, (5, 2, 50, 8)) for seed in range(8)]

    def once(output: Tensor) -> tuple[Tensor, Tensor]:
        return gradient_of(lambda x: patch_entropy(x, 1, form), output)

    alone = [once(output) for output in outputs]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(once, outputs))
    for one, two in zip(alone, together, strict=True):
        assert torch.equal(one[0], two[0]) and torch.equal(one[1], two[1])
    monkeypatch.setattr(kernel_density, "CHUNK_CPU", 1)
    entropy, gradient = once(outputs[0])
    assert torch.allclose(entropy, alone[0][0], rtol=1e-5)
    assert float((gradient - alone[0][1]).norm()) < 1e-4 * float(alone[0][1].norm())


def test_unknown_form() -> None:
    with pytest.raises(ValueError, match="gaussian, not 'normal'"):
        patch_entropy_loss([torch.ones(1, 1, 3, 2)], 1, "normal")  # type: ignore[arg-type]
