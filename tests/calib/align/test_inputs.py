"""The rows of a layer are all of its input and nothing else; held-out images stay apart."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from calib.align.inputs import Split, layer_inputs, require_finite, sample
from calib.errors import IntvitError
from calib.quant.families import Segment, segments
from calib.quant.surgery import prepare
from calib.scheme import parse
from tests.calib.networks import SWIN_SIDE, VIT_SIDE, pictures, tiny_swin, tiny_vit


@pytest.mark.parametrize(("count", "held"), [(1, 1), (15, 15), (16, 2), (128, 16), (130, 16)])
def test_one_image_in_eight_is_held_out(count: int, held: int) -> None:
    split = Split.of(count)
    assert len(split.held) == held
    if count >= 16:
        assert sorted([*split.fit.tolist(), *split.held.tolist()]) == list(range(count))
    else:
        assert torch.equal(split.fit, split.held)


def test_rows_go_with_their_images() -> None:
    rows = torch.arange(17).repeat_interleave(3)[:, None].float()
    fit, held = Split.of(17).rows(rows)
    assert held[:, 0].tolist() == [7.0] * 3 + [14.0] * 3
    assert fit[:, 0].tolist() == [i for i in range(17) if i not in (7, 14) for _ in range(3)]


@pytest.mark.parametrize("parts", [2, 3, 4, 8])
def test_every_part_of_a_mixture_is_held_out_as_often(parts: int) -> None:
    """Image i of a mixture is made by part ``i % parts``."""
    held = torch.bincount(Split.of(8 * 8 * parts).held % parts, minlength=parts)
    assert held.max() - held.min() <= 3 and held.min() > 0


def watched(student: Any, piece: Segment, stream: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """What every layer of a piece reads, by name, and what the piece gives."""
    seen: dict[str, Tensor] = {}
    hooks = [
        student.get_submodule(site.name).register_forward_pre_hook(
            lambda module, args, name=site.name: seen.__setitem__(name, args[0])
        )
        for site in piece.sites
    ]
    after = piece.run(stream)
    for hook in hooks:
        hook.remove()
    return seen, after


@pytest.mark.parametrize(("make", "side"), [(tiny_vit, VIT_SIDE), (tiny_swin, SWIN_SIDE)])
@torch.no_grad()
def test_they_are_what_the_layer_reads(make: Any, side: int) -> None:
    student, stream = prepare(make(), parse("w8a8")), pictures(3, side)
    for piece in segments(student):
        seen, after = watched(student, piece, stream)
        for site in piece.sites:
            layer = student.get_submodule(site.name)
            rows = layer_inputs(student, piece, site.name, stream, batch=2)
            if site.kind == "embed":
                unfolded = torch.nn.functional.unfold(seen[site.name], layer.patch, stride=layer.patch)
                expected = unfolded.transpose(1, 2).flatten(0, 1)
            else:
                expected = seen[site.name].flatten(0, -2)
            assert torch.allclose(rows, expected, atol=1e-5)
            assert len(rows) % 3 == 0 and not layer._forward_pre_hooks
        stream = after


def test_values_that_are_not_finite_name_their_layer() -> None:
    with pytest.raises(IntvitError, match="not finite") as caught:
        require_finite(torch.tensor([1.0, float("nan")]), "blocks.3")
    assert caught.value.where == "blocks.3"


def test_a_sample_is_of_different_rows() -> None:
    rows = torch.arange(100.0)[:, None]
    found = sample(rows, 30, torch.Generator().manual_seed(0))
    assert len(found.unique()) == 30
    assert torch.equal(found, sample(rows, 30, torch.Generator().manual_seed(0)))
    assert torch.equal(sample(rows, 100, torch.Generator()), rows)
