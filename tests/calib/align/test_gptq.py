"""GPTQ against a form that solves for the rest after every channel, and against every possible rounding."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from calib.align.gptq import BLOCK, damped, flattened, gptq, second_moment
from calib.align.rounding import search_rounding
from calib.quant.grid import weight_grid
from calib.quant.linear import per_weight


def problem(seed: int, rows: int, width: int, tokens: int = 64) -> tuple[Tensor, Tensor]:
    """A weight (rows, width) and the second moment of inputs that are strongly correlated."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=generator) + torch.ones(width, width)
    inputs = torch.randn(tokens, width, generator=generator) @ mix
    return torch.randn(rows, width, generator=generator), second_moment(inputs)


def error(weight: Tensor, levels: Tensor, scale: Tensor, moment: Tensor) -> Tensor:
    """d H d^T of every row, in float64: (N,)."""
    left = (weight - levels * per_weight(scale, weight.shape[1])).double()
    return torch.einsum("nj,jk,nk->n", left, moment.double(), left)


def obvious(weight: Tensor, scale: Tensor, bits: int, moment: Tensor) -> Tensor:
    """The same rounding, row by row: after each channel the rest is solved for anew, by least squares."""
    grid, whole = weight_grid(bits), damped(moment.double())
    order = torch.argsort(moment.diagonal(), descending=True, stable=True).tolist()
    out = torch.zeros_like(weight)
    steps = per_weight(scale.double(), weight.shape[1]).expand_as(weight)
    for row, (original, step) in enumerate(zip(weight.double(), steps, strict=True)):
        current = original.clone()
        for place, j in enumerate(order):
            out[row, j] = grid.nearest(current[j] / step[j])
            done, rest = order[: place + 1], order[place + 1 :]
            off = original[done] - out[row, done].double() * step[done]
            if rest:  # the minimum of d H d^T over the rest of d
                current[rest] = original[rest] + torch.linalg.solve(whole[rest][:, rest], whole[rest][:, done] @ off)
    return out.to(torch.int8)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 9), st.sampled_from([2, 3, 4, 8]))
def test_it_is_the_rounding_that_solves_for_the_rest_each_time(seed: int, width: int, bits: int) -> None:
    weight, moment = problem(seed, 3, width)
    scale = search_rounding(weight, bits, moment.diagonal())[1]
    found, expected = gptq(weight, scale, bits, moment), obvious(weight, scale, bits, moment)
    ours, theirs = error(weight, found, scale, moment), error(weight, expected, scale, moment)
    same = (found == expected).all(1)  # a weight half-way between two levels may go either way
    assert bool((same | ((ours - theirs).abs() <= 0.5 * theirs + 1e-6)).all()) and same.float().mean() >= 1 / 3


def test_wider_than_a_block() -> None:
    weight, moment = problem(0, 4, BLOCK + 13, tokens=400)
    scale = search_rounding(weight, 4, moment.diagonal())[1]
    found, expected = gptq(weight, scale, 4, moment), obvious(weight, scale, 4, moment)
    assert (found == expected).float().mean() > 0.97


def test_between_the_best_of_all_roundings_and_the_nearest() -> None:
    """Width 5 at 2 bits: all 4^5 roundings tried. Over 40 rows GPTQ comes far closer to the best than rounding does."""
    best, mine, nearest = 0.0, 0.0, 0.0
    every = torch.tensor(list(itertools.product((-3, -1, 1, 3), repeat=5)))
    for seed in range(40):
        weight, moment = problem(seed, 1, 5)
        plain, scale = search_rounding(weight, 2, moment.diagonal())
        errors = error(weight.expand(len(every), -1), every, scale.expand(len(every)), moment)
        one = float(error(weight, gptq(weight, scale, 2, moment), scale, moment))
        assert one >= float(errors.min()) * (1 - 1e-6)
        best, mine = best + float(errors.min()), mine + one
        nearest += float(error(weight, plain, scale, moment))
    assert mine - best < 0.5 * (nearest - best)


def test_channels_that_have_nothing_to_do_with_each_other_are_rounded_to_the_nearest() -> None:
    weight = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    moment = torch.diag(torch.linspace(0.5, 2.0, 8))
    plain, scale = search_rounding(weight, 4, moment.diagonal())
    assert torch.equal(gptq(weight, scale, 4, moment), plain)


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_moments_without_full_rank_are_no_trouble(rank: int) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(max(rank, 1), 8, generator=generator) * (rank > 0)
    weight = torch.randn(4, 8, generator=generator)
    moment = second_moment(rows)
    moment[5] = moment[:, 5] = 0  # a channel that is never used
    plain, scale = search_rounding(weight, 3, moment.diagonal())
    found = gptq(weight, scale, 3, moment)
    assert found.dtype == torch.int8 and int(found.abs().max()) <= weight_grid(3).high
    assert torch.equal(found[:, 5], plain[:, 5])


def test_every_token_counts_alike_in_the_moment() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(10, 4, generator=generator)
    grown = rows * torch.tensor([1000.0] + [1.0] * 9)[:, None]
    slow = sum(torch.outer(row, row) / row.dot(row) for row in rows) / 10
    assert torch.allclose(second_moment(rows), slow, rtol=1e-5, atol=1e-6)
    assert torch.allclose(second_moment(grown), slow, rtol=1e-5, atol=1e-6)
    assert torch.allclose(second_moment(rows, weighted=False), rows.T @ rows / 10, rtol=1e-5)
    assert torch.isfinite(second_moment(torch.zeros(2, 3))).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4), st.sampled_from([2, 3]), st.sampled_from([2, 3, 4]))
def test_groups_keep_their_scales_in_any_order_of_channels(seed: int, groups: int, size: int, bits: int) -> None:
    weight, moment = problem(seed, 3, groups * size)
    scale = search_rounding(weight, bits, moment.diagonal(), group=size)[1]
    found, expected = gptq(weight, scale, bits, moment), obvious(weight, scale, bits, moment)
    ours, theirs = error(weight, found, scale, moment), error(weight, expected, scale, moment)
    same = (found == expected).all(1)
    assert bool((same | ((ours - theirs).abs() <= 0.5 * theirs + 1e-6)).all()) and same.float().mean() >= 1 / 3


def test_with_groups_too_it_is_between_the_best_of_all_roundings_and_the_nearest() -> None:
    """Two groups of two weights at 3 bits: all 8^4 roundings tried, as above. There is less to gain than in a row."""
    best, mine, nearest = 0.0, 0.0, 0.0
    every = torch.tensor(list(itertools.product(range(-7, 8, 2), repeat=4)))
    for seed in range(200):
        weight, moment = problem(seed, 1, 4)
        plain, scale = search_rounding(weight, 3, moment.diagonal(), group=2)
        errors = error(weight.expand(len(every), -1), every, scale.expand(len(every), -1), moment)
        one = float(error(weight, gptq(weight, scale, 3, moment), scale, moment))
        assert one >= float(errors.min()) * (1 - 1e-6)
        best, mine = best + float(errors.min()), mine + one
        nearest += float(error(weight, plain, scale, moment))
    assert mine - best < 0.7 * (nearest - best)


@given(st.integers(0, 10_000), st.sampled_from([2, 4, 8]))
def test_one_group_of_all_channels_changes_no_bit(seed: int, bits: int) -> None:
    weight, moment = problem(seed, 4, 12)
    scale = search_rounding(weight, bits, moment.diagonal())[1]
    assert torch.equal(gptq(weight, scale[:, None], bits, moment), gptq(weight, scale, bits, moment))


@given(st.integers(0, 10_000), st.integers(1, 12), st.floats(0, 1))
def test_flattening_raises_the_eigenvalues_to_a_power_and_keeps_trace_and_directions(
    seed: int, width: int, exponent: float
) -> None:
    moment = problem(seed, 1, width)[1].double()
    moment = (moment + moment.T) / 2  # some processors' float32 products part from their transpose in the last bit
    found = flattened(moment, exponent)
    values, vectors = torch.linalg.eigh(moment)
    powers = values.clamp_min(0) ** exponent
    assert torch.allclose(found @ vectors, vectors * powers * moment.trace() / powers.sum(), atol=1e-9)
    assert torch.allclose(found.trace(), moment.trace()) and flattened(moment, 1.0) is moment


def test_directions_without_any_energy_get_none_by_flattening() -> None:
    moment = torch.diag(torch.tensor([4.0, 1.0, 0.0]))
    assert torch.allclose(flattened(moment, 0.5), torch.diag(torch.tensor([10.0, 5.0, 0.0]) / 3), atol=1e-5)
    assert torch.equal(flattened(torch.zeros(2, 2), 0.8), torch.zeros(2, 2))


def test_a_flattened_moment_serves_inputs_with_a_flatter_spectrum_better() -> None:
    """Calibrated on inputs that overuse their main directions, judged on inputs that use the others more."""
    generator = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(48, 48, generator=generator))[0]
    spread = torch.linspace(0, -3, 48).exp()
    steep, flat = (second_moment(torch.randn(4000, 48, generator=generator) * spread**p @ turn) for p in (1.5, 1.0))
    weight = torch.randn(64, 48, generator=generator)
    scale = search_rounding(weight, 3, steep.diagonal())[1]
    as_measured, flattened_first = (
        float(error(weight, gptq(weight, scale, 3, flattened(steep, exponent)), scale, flat).sum())
        for exponent in (1.0, 2 / 3)
    )
    assert flattened_first < 0.95 * as_measured
