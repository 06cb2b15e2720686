"""Inter-head similarity: equal to a loop written from the definition, its gradient right, whatever the shape."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from calib.synthesis.priors import head_similarity as module
from calib.synthesis.priors.head_similarity import head_similarity, head_similarity_loss


def maps(images: int, heads: int, tokens: int, width: int = 8, seed: int = 0, dtype: torch.dtype = torch.float64):
    """Queries and keys with a common part, so that heads are neither equal nor unrelated."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(2, images, 1, tokens, width, generator=generator, dtype=torch.float64)
    own = torch.randn(2, images, heads, tokens, width, generator=generator, dtype=torch.float64)
    q, k = (shared + 0.7 * own + 0.3).to(dtype)
    return q, k


def loop(q: Tensor, k: Tensor, prefix: int, rows: list[int] | None = None) -> Tensor:
    """The definition: image by image, query by query, pair by pair; float64, (B,) of 1 - SSIM^2."""
    found = []
    for image_q, image_k in zip(q.double()[:, :, prefix:], k.double()[:, :, prefix:], strict=True):
        terms = []
        for n in range(image_q.shape[1]) if rows is None else rows:
            stretched = []
            for head in range(image_q.shape[0]):
                s = image_k[head] @ image_q[head, n]
                stretched.append((s - s.min()) / (s.max() - s.min() + 1e-8))
            for a in stretched:
                for b in stretched:
                    covariance = (a * b).mean() - a.mean() * b.mean()
                    above = (2 * a.mean() * b.mean() + 0.01**2) * (2 * covariance + 0.03**2)
                    below = (a.mean() ** 2 + b.mean() ** 2 + 0.01**2) * (
                        a.var(unbiased=False) + b.var(unbiased=False) + 0.03**2
                    )
                    terms.append(1 - (above / below) ** 2)
        found.append(torch.stack(terms).mean())
    return torch.stack(found)


SHAPES = [(2, 1, 9, 0), (2, 2, 10, 1), (1, 3, 14, 5), (1, 12, 7, 0), (6, 3, 4, 0), (1, 4, 2, 1)]


@pytest.mark.parametrize(("images", "heads", "tokens", "prefix"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_the_loop(images: int, heads: int, tokens: int, prefix: int, dtype: torch.dtype) -> None:
    q, k = maps(images, heads, tokens, dtype=dtype)
    expected = loop(q, k, prefix)
    loss = head_similarity_loss([q], [k], prefix)
    assert loss.dtype == dtype and loss.shape == ()
    torch.testing.assert_close(loss.double(), expected.mean(), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(head_similarity(q, k, prefix).double(), 1 - expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("images", "heads", "tokens", "prefix"), SHAPES)
def test_gradient_is_that_of_finite_differences(images: int, heads: int, tokens: int, prefix: int) -> None:
    q, k = (tensor.requires_grad_() for tensor in maps(images, heads, tokens, width=3))
    assert torch.autograd.gradcheck(lambda q, k: head_similarity_loss([q], [k], prefix), (q, k))


@pytest.mark.parametrize("rows", [[0], [5, 1, 2], [3, 3, 0]])
def test_sampled_rows(rows: list[int]) -> None:
    q, k = (tensor.requires_grad_() for tensor in maps(2, 3, 8, width=3))
    positions = torch.tensor(rows)
    loss = head_similarity_loss([q], [k], 1, positions)
    torch.testing.assert_close(loss, loop(q, k, 1, rows).mean(), rtol=1e-10, atol=0)
    assert torch.autograd.gradcheck(lambda q, k: head_similarity_loss([q], [k], 1, positions), (q, k))


def test_gradient_equals_that_of_the_loop_in_float32() -> None:
    q, k = (tensor.requires_grad_() for tensor in maps(2, 3, 17, dtype=torch.float32))
    ours = torch.autograd.grad(head_similarity_loss([q], [k], 1), (q, k))
    slow = torch.autograd.grad(loop(q, k, 1).mean(), (q, k))
    for mine, its in zip(ours, slow, strict=True):
        assert (mine - its).norm() < 1e-5 * its.norm()
        assert not mine[:, :, 0].any()


def test_mean_over_layers_of_different_shapes_and_scaled_gradient() -> None:
    layers = [maps(4, 2, 9, seed=1), maps(1, 4, 6, seed=2)]
    queries, keys = ([pair[part].requires_grad_() for pair in layers] for part in (0, 1))
    loss = head_similarity_loss(queries, keys, 0)
    apart = [head_similarity_loss([q], [k], 0) for q, k in layers]
    torch.testing.assert_close(loss, (apart[0] + apart[1]) / 2)
    together = torch.autograd.grad(3 * loss, [*queries, *keys])
    alone = torch.autograd.grad(1.5 * (apart[0] + apart[1]), [*queries, *keys])
    for mine, other in zip(together, alone, strict=True):
        torch.testing.assert_close(mine, other)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k = (tensor.requires_grad_() for tensor in maps(5, 3, 9))
    whole = head_similarity_loss([q], [k], 0)
    expected = torch.autograd.grad(whole, (q, k))
    monkeypatch.setattr(module, "CHUNK_CPU", 2 * 3 * 9 * 9)  # two images, two images, one
    loss = head_similarity_loss([q], [k], 0)
    torch.testing.assert_close(loss, whole)
    for mine, other in zip(torch.autograd.grad(loss, (q, k)), expected, strict=True):
        torch.testing.assert_close(mine, other)


def test_bf16_under_autocast() -> None:
    q, k = (tensor.requires_grad_() for tensor in maps(2, 3, 50, width=16, dtype=torch.bfloat16))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = head_similarity_loss([q], [k], 1)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), loop(q, k, 1).mean(), rtol=1e-5, atol=0)
    dq, dk = torch.autograd.grad(loss, (q, k))
    assert dq.dtype == dk.dtype == torch.bfloat16
    exact = [tensor.detach().double().requires_grad_() for tensor in (q, k)]
    for mine, its in zip((dq, dk), torch.autograd.grad(loop(*exact, 1).mean(), exact), strict=True):
        assert (mine.double() - its).norm() < 5e-3 * its.norm()


def test_extremes() -> None:
    q, k = maps(1, 1, 6)
    same_q, same_k = q.expand(1, 3, 6, 8), k.expand(1, 3, 6, 8)
    torch.testing.assert_close(head_similarity_loss([same_q], [5 * same_k], 0).item(), 0.0, rtol=0, atol=1e-12)
    zero = torch.zeros(1, 2, 6, 8, requires_grad=True)
    loss = head_similarity_loss([zero], [torch.ones(1, 2, 6, 8)], 0)
    loss.backward()
    assert zero.grad is not None and zero.grad.isfinite().all() and loss.item() == pytest.approx(0.0, abs=1e-6)


def test_repeats_and_threads_give_the_same_bits() -> None:
    cases = [maps(3, 3, 12 + seed, seed=seed, dtype=torch.float32) for seed in range(4)]

    def step(case: tuple[Tensor, Tensor]) -> list[Tensor]:
        q, k = (tensor.clone().requires_grad_() for tensor in case)
        loss = head_similarity_loss([q] * 3, [k] * 3, 1)
        return [loss.detach(), *torch.autograd.grad(loss, (q, k))]

    expected = [step(case) for case in cases] * 4
    with ThreadPoolExecutor(4) as pool:
        for mine, alone in zip(pool.map(step, cases * 4), expected, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(mine, alone, strict=True))


def test_views_of_a_joint_projection_and_one_sided_gradient() -> None:
    joint = torch.randn(2, 7, 3, 2, 4, dtype=torch.float64, requires_grad=True)
    q, k, _ = joint.permute(2, 0, 3, 1, 4).unbind(0)
    head_similarity_loss([q], [k], 1).backward()
    assert joint.grad is not None
    copied = q.detach().clone().requires_grad_()
    head_similarity_loss([copied], [k.detach()], 1).backward()
    torch.testing.assert_close(joint.grad.permute(2, 0, 3, 1, 4)[0], copied.grad)
    assert not joint.grad[:, :, 2].any() and joint.grad[:, :, 1].any()


def test_one_head_is_alike_with_itself() -> None:
    """Exactly 0, without a gradient: float32 leaves -4e-8, which a weight over its first value would make a signal."""
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(2, 1, 17, 8, generator=generator).requires_grad_(True) for _ in range(2))
    loss = head_similarity_loss([q], [k], 1)
    slopes = torch.autograd.grad(loss, (q, k), allow_unused=True)
    assert loss.dtype == torch.float32 and float(loss.detach()) == 0
    assert all(slope is None or not bool(slope.any()) for slope in slopes)
    many, keys = (torch.randn(2, 3, 17, 8, generator=generator) for _ in range(2))
    both = head_similarity_loss([q.detach(), many], [k.detach(), keys], 1)
    assert float(both) == pytest.approx(float(head_similarity_loss([many], [keys], 1)) / 2)
