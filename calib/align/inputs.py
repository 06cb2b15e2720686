"""What reaches a layer: every row of its quantizer's input, split into what steps fit and what judges them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from calib.errors import IntvitError
from calib.network import Network
from calib.quant.families import Segment
from calib.quant.linear import QuantLinear, QuantPatchConv, patches

EVERY = 8  # one image in so many is held out
FEWEST = 16  # with fewer images none is held out: steps are then judged on what they were fitted to


@dataclass(frozen=True)
class Split:
    """Indices of the images that steps are fitted to, and of those that only judge them: (F,) and (H,) int64."""

    fit: Tensor
    held: Tensor

    @classmethod
    def of(cls, count: int) -> Split:
        """The split of ``count`` images: one of every eight is held out, none where there are fewer than 16.

        Each time it is the one before that of last time, so that all parts of a mixture that takes turns are held out.
        """
        every = torch.arange(count)
        if count < FEWEST:
            return cls(every, every)
        held = (every + every // EVERY) % EVERY == EVERY - 1
        return cls(every[~held], every[held])

    def rows(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Rows (T, K), image after image, as those to fit (F T / B, K) and those held out (H T / B, K)."""
        count = int(max(self.fit.max(), self.held.max())) + 1
        images = rows.unflatten(0, (count, -1))
        return images[self.fit].flatten(0, 1), images[self.held].flatten(0, 1)


def in_batches(run: Callable[[Tensor], Tensor], values: Tensor, batch: int) -> Tensor:
    """``run`` on ``values`` (B, ...), ``batch`` of them at a time, as one tensor."""
    return torch.cat([run(chunk) for chunk in values.split(batch)])


class _Reached(Exception):
    pass


def arguments(student: Network, piece: Segment, name: str, stream: Tensor, batch: int) -> Iterator[tuple[Tensor, ...]]:
    """What module ``name`` of ``piece`` is called with, one batch of ``stream`` (B, ...) after the other.

    The piece is run only as far as that module, which must not be called before the last batch has been read.
    """

    def read(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        found.append(args)
        raise _Reached

    found: list[tuple[Tensor, ...]] = []
    hook = student.get_submodule(name).register_forward_pre_hook(read)
    try:
        for chunk in stream.split(batch):
            try:
                piece.run(chunk)
            except _Reached:
                yield found.pop()
    finally:
        hook.remove()


def layer_inputs(student: Network, piece: Segment, name: str, stream: Tensor, batch: int) -> Tensor:
    """Every row that reaches layer ``name`` of ``piece``: its quantizer's input (T, K) float32, image after image.

    The piece is run on ``stream`` (B, ...) only as far as that layer. All of one layer's rows are in memory, never
    those of two.

    Raises:
        IntvitError: a value is not finite.
    """
    layer: QuantLinear = student.get_submodule(name)
    found = []
    for (x,) in arguments(student, piece, name, stream, batch):
        rows = patches(x, layer.patch) if isinstance(layer, QuantPatchConv) else x
        found.append(layer.scaled(rows).flatten(0, -2))
    rows = torch.cat(found)
    require_finite(rows, name)
    return rows


def point_inputs(student: Network, piece: Segment, name: str, stream: Tensor, batch: int) -> Tensor:
    """Every row (T, C) float32 that reaches point ``name`` of the residual stream; else as :func:`layer_inputs`."""
    return torch.cat([x.flatten(0, -2) for (x,) in arguments(student, piece, name, stream, batch)])


def require_finite(values: Tensor, where: str) -> None:
    """Raises IntvitError when ``values`` (any shape), met at ``where``, holds NaN or an infinity."""
    if not torch.isfinite(values).all():
        raise IntvitError("activations are not finite", where=where, next="check the checkpoint and the images")


def sample(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """At most ``count`` different rows of (T, K), drawn with ``generator``."""
    if rows.shape[0] <= count:
        return rows
    return rows[torch.randperm(rows.shape[0], generator=generator)[:count].to(rows.device)]
