"""Targets are distributions with an intended class on top; their loss equals a loop and its gradient differences."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from calib.synthesis.targets import hard_targets, soft_targets, target_loss


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@st.composite
def views(draw: st.DrawFn) -> tuple[int, list[list[int]]]:
    """A number of classes, and for each of some views at least one of them."""
    count = draw(st.integers(2, 40))
    one = st.lists(st.integers(0, count - 1), min_size=1, max_size=min(count, 4), unique=True)
    return count, draw(st.lists(one, min_size=1, max_size=5))


@settings(max_examples=50, deadline=None)
@given(views())
def test_hard_targets_spread_the_mass_evenly(drawn: tuple[int, list[list[int]]]) -> None:
    count, classes = drawn
    rows = hard_targets(classes, count).tolist()
    assert [len(row) for row in rows] == [count] * len(classes)
    for row, mine in zip(rows, classes, strict=True):
        assert row == pytest.approx([1 / len(mine) if label in mine else 0.0 for label in range(count)])


@settings(max_examples=50, deadline=None)
@given(views(), st.integers(0, 2**31), st.sampled_from([0.0, 1.0, 30.0]))
def test_soft_targets_are_distributions_with_an_intended_class_on_top(
    drawn: tuple[int, list[list[int]]], seed: int, rest: float
) -> None:
    """Also where the others would be far above: no other class comes within a logit of the top."""
    count, classes = drawn
    targets = soft_targets(classes, count, 5.0, 10.0, rest, generator(seed))
    assert targets.shape == (len(classes), count) and targets.dtype == torch.float32
    assert targets.sum(1).tolist() == pytest.approx([1.0] * len(classes), abs=1e-5)
    for row, mine in zip(targets, classes, strict=True):
        assert int(row.argmax()) in mine
        others = [label for label in range(count) if label not in mine]
        if others:
            assert float(row[others].max()) <= float(row.max()) * math.exp(-1) * 1.0001


def test_the_logits_of_the_intended_classes_are_uniform_in_5_to_10() -> None:
    """Beside others that are all 0, a logit is log T_c - log T_other."""
    targets = soft_targets([[3, 8]] * 500, 10, 5.0, 10.0, 0.0, generator())
    logits = (targets[:, [3, 8]].log() - targets[:, :1].log()).flatten().sort().values
    assert 5 <= float(logits[0]) < 5.05 and 9.95 < float(logits[-1]) <= 10.0001
    assert torch.allclose(logits, torch.linspace(5, 10, 1000), atol=0.25)
    assert float((targets[:, 3].log() - targets[:, 8].log()).abs().min()) > 0  # each has a draw of its own


def test_the_other_logits_are_normal() -> None:
    targets = soft_targets([[0]] * 200, 1000, 5.0, 10.0, 1.0, generator())
    logits = targets[:, 1:].log()
    logits = logits - logits.mean(1, keepdim=True)
    assert float(logits.std()) == pytest.approx(1, abs=0.02) and float(logits.abs().median()) == pytest.approx(
        0.6745, abs=0.02
    )


def slow(logits: list, targets: list) -> float:
    total = 0.0
    for row, target in zip(logits, targets, strict=True):
        whole = math.log(sum(math.exp(value) for value in row))
        total -= sum(share * (value - whole) for share, value in zip(target, row, strict=True))
    return total / len(logits)


def random_logits(rows: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return 3 * torch.randn(rows, 9, generator=generator(rows), dtype=dtype)


def test_the_loss_equals_the_slow_form() -> None:
    logits = random_logits(6)
    targets = soft_targets([[1], [2, 5], [0], [8], [3, 4, 6], [7]], 9, 5.0, 10.0, 1.0, generator())
    expected = slow(logits.double().tolist(), targets.double().tolist())
    assert float(target_loss(logits, targets)) == pytest.approx(expected, rel=1e-5)


def test_for_one_class_the_loss_is_cross_entropy() -> None:
    logits = random_logits(4)
    expected = F.cross_entropy(logits, torch.tensor([1, 0, 8, 4]))
    assert torch.allclose(target_loss(logits, hard_targets([[1], [0], [8], [4]], 9)), expected, rtol=1e-6)


def test_the_gradient_is_that_of_differences() -> None:
    logits = random_logits(3, torch.float64).requires_grad_(True)
    targets = soft_targets([[1], [2, 5], [0]], 9, 5.0, 10.0, 1.0, generator()).double()
    assert torch.autograd.gradcheck(lambda x: target_loss(x, targets), (logits,))
