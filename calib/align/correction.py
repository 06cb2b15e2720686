"""The activation correction matrix: ``y' = C y + c`` on a quantized layer's output, in closed form and folded.

DFQ-ViT (arXiv 2507.14481, abstract) pulls a quantized model's activations towards the float model's with a matrix and
no fine-tuning; neither its shape nor its solver is published. Reconstruction: C is the identity (``bias``), diagonal
(``diag``), a matrix a head on the values and diagonal elsewhere (``head``) or full (``full``, also at low rank), each
by ridge regression towards the identity:

    (S_yy + lambda m I) C^T = S_yt + lambda m I,  c = mean(t) - C mean(y)

with S the second moments about the means over tokens weighted by ``1 / |t|^2`` (as everywhere here: a few massive
tokens would own them), m the mean diagonal of S_yy. Lambda is the one of least error on held-out rows, and nothing at
all where no correction lowers it.

Folded, a correction costs nothing at inference: c goes into the bias and a diagonal C into the steps of the weights,
exactly, the integers untouched. A full C mixes rows, so that the weights become C W and are rounded again.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from calib.align.bias import bias_correction, token_weights
from calib.align.config import CorrectionConfig, Form
from calib.align.rounding import relative_error

GAIN_LIMITS = (0.25, 4.0)  # of a diagonal: steps stay positive, and a dead channel cannot ask for more


@dataclass(frozen=True)
class Correction:
    """``y' = C y + c``.

    Attributes:
        gain: C, (N,) where it is diagonal, else (N, N). offset: c, (N,).
    """

    gain: Tensor
    offset: Tensor

    @property
    def mixes(self) -> bool:
        """True where C is not diagonal, so that it cannot be folded without rounding again."""
        return self.gain.ndim == 2

    def __call__(self, values: Tensor) -> Tensor:
        """(..., N) to (..., N)."""
        scaled = values @ self.gain.T if self.mixes else values * self.gain
        return scaled + self.offset

    def fold(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """The float layer with the correction in it: C W (N, K) and C b + c (N,)."""
        folded = self.gain @ weight if self.mixes else self.gain[:, None] * weight
        return folded, self(bias)


def fit_correction(
    made: Tensor,
    target: Tensor,
    form: Form,
    ridge: float,
    heads: int = 1,
    rank: int | None = None,
    weighted: bool = True,
) -> Correction:
    """The ridge solution for one lambda.

    Args:
        made: (T, N), what the quantized layer gives. target: (T, N), what it should give.
        form: bias, diag, head (made is then queries, keys and values side by side, N = 3 H d) or full.
        ridge: lambda >= 0, as a share of the mean variance. heads: H, for ``head``. rank: of C - I, for ``full``.
    """
    if form == "bias":
        return Correction(torch.ones_like(made[0]), bias_correction(made, target, weighted))
    share = token_weights(target, weighted)
    made_mean, target_mean = share @ made, share @ target
    left, wanted = made - made_mean, target - target_mean
    if form == "full":
        gain = _solve(left, wanted, share, ridge, rank)
        return Correction(gain, target_mean - gain @ made_mean)
    variance = share @ left.square()
    pull = ridge * variance.mean()
    diagonal = ((share @ (left * wanted) + pull) / (variance + pull).clamp_min(1e-20)).clamp(*GAIN_LIMITS)
    if form == "diag":
        return Correction(diagonal, target_mean - diagonal * made_mean)
    gain = torch.diag(diagonal)
    first = 2 * made.shape[1] // 3
    width = (made.shape[1] - first) // heads
    for head in range(heads):
        own = slice(first + head * width, first + (head + 1) * width)
        gain[own, own] = _solve(left[:, own], wanted[:, own], share, ridge, None)
    return Correction(gain, target_mean - gain @ made_mean)


def search_correction(
    fit: tuple[Tensor, Tensor],
    held: tuple[Tensor, Tensor],
    config: CorrectionConfig,
    heads: int = 1,
    weighted: bool = True,
) -> Correction | None:
    """The correction of least error on held-out rows; None where none lowers it.

    Args:
        fit, held: (made, target) each (T, N). heads: of the layer's attention, where it is qkv; else 0.
    """
    form = config.form
    if form == "none":
        return None
    if form == "head" and not heads:
        form = "diag"
    best, least = None, relative_error(*held)
    for ridge in (0.0,) if form == "bias" else config.ridges:
        found = fit_correction(*fit, form, ridge, heads, config.rank, weighted)
        error = relative_error(found(held[0]), held[1])
        if error < least:
            best, least = found, error
    return best


def _solve(made: Tensor, wanted: Tensor, share: Tensor, ridge: float, rank: int | None) -> Tensor:
    """C (N, N) for centred rows (T, N) of weight ``share`` (T,)."""
    moment = (made.T @ (made * share[:, None])).double()
    cross = (made.T @ (wanted * share[:, None])).double()
    identity = torch.eye(len(moment), dtype=moment.dtype, device=moment.device)
    pull = ridge * moment.diagonal().mean().clamp_min(1e-20) * identity
    left = moment + pull
    gain = torch.linalg.solve(left, cross + pull).T
    if rank is not None and rank < len(moment):
        gain = identity + _reduce(gain - identity, left, rank)
    return gain.to(made.dtype)


def _reduce(change: Tensor, moment: Tensor, rank: int) -> Tensor:
    """The matrix of that rank nearest to ``change`` (N, N) in the metric of its inputs' second moment (N, N).

    Reduced-rank regression (Izenman 1975): truncate the singular values of ``change R`` with ``R R^T = moment``.
    """
    root = torch.linalg.cholesky(moment)
    left, values, right = torch.linalg.svd(change @ root)
    kept = (left[:, :rank] * values[:rank]) @ right[:rank]
    return torch.linalg.solve_triangular(root, kept, upper=False, left=False)
