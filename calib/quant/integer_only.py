"""The modules of a network that computes in integers from the image's quantizer to the head's sums (``+int``).

Each is a float module until calibration has quantized its piece and ``settle`` has fixed its integers; then it takes
and gives float32 tensors that stand for integers: levels times a step. The step is a power of two in the residual
stream, where float32 additions of such numbers are exact; levels are at most 2^20 elsewhere, where ``round(x / step)``
finds them again. So timm's code runs unchanged between the modules, and every integer is the graph's.
"""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calib.errors import IntvitError
from calib.network import Network
from calib.quant import integers
from calib.quant.attention import IntProduct, QuantAttention, windows_added
from calib.quant.families import block_names, is_swin, reads_class_token, sites
from calib.quant.linear import QuantLinear
from calib.quant.quantizer import ActQuantizer, levels
from calib.quant.rescale import Limits, Rescale, whole

MOST_BIAS = float(1 << 28)  # of what is added to the scores, in their integer unit


class IntLayerNorm(nn.LayerNorm):
    """I-LayerNorm: reads integers of the residual stream, gives the next quantizer's levels.

    Attributes:
        in_step: () float32, the residual stream's. quantized: False = float LayerNorm.
    """

    in_step: Tensor

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__(norm.normalized_shape, eps=norm.eps)
        self.weight, self.bias = norm.weight, norm.bias
        self.register_buffer("in_step", torch.ones(()))
        self.rescale = Rescale(norm.normalized_shape[0])
        self.quantized = False

    @property
    def epsilon(self) -> int:
        """What is added to the sum of squares, in squared units of the residual stream."""
        found = self.normalized_shape[0] * self.eps / float(self.in_step) ** 2
        return min(max(round(found), 1), integers.MOST_OFFSET)

    def settle(self, in_step: Tensor, step: Tensor, limits: Limits) -> None:
        """Fix the integers: from levels of ``in_step`` to levels of ``step`` within ``limits``."""
        self.in_step.copy_(in_step)
        unit = self.weight.double() * math.sqrt(self.normalized_shape[0]) * 2.0 ** (integers.NORM_SHIFT - integers.NORM)
        self.rescale.fix(unit, step, limits, self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) to (..., C) float32."""
        if self.quantized and self.rescale.settled:
            out: Tensor = self.rescale(integers.normalised(whole(x, self.in_step), self.epsilon))
            return out
        return super().forward(x)


class ShiftGelu(nn.Module):
    """ShiftGELU: reads 16-bit integers, gives the next layer's levels, its scale per channel included.

    Attributes:
        in_step: () float32, of the 16-bit integers. quantized: False = exact GELU in float; True = its straight-line
        form in float, until ``settle`` has been called.
    """

    in_step: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("in_step", torch.ones(()))
        self.rescale = Rescale(channels)
        self.quantized = False

    @property
    def exponent(self) -> tuple[int, int]:
        """The dyadic number that makes an exponent of two of an integer."""
        return exponent_of(float(self.in_step) * integers.LOGISTIC)

    def settle(self, layer: QuantLinear) -> None:
        """Fix the integers: to the levels that ``layer`` reads."""
        quantizer = cast(ActQuantizer, layer.in_quant)
        gain = torch.ones(()) if layer.premul is None else layer.premul.double()
        unit = self.in_step.double() * 2.0**-integers.SIGMOID
        self.rescale.fix(unit, quantizer.scale / gain, levels(quantizer.bits), zero=quantizer.zero_point)

    def forward(self, x: Tensor) -> Tensor:
        """(..., N) to (..., N) float32."""
        if not self.quantized:
            return F.gelu(x)
        if not self.rescale.settled:
            return integers.straight_gelu(x)
        out: Tensor = self.rescale(integers.shift_gelu(whole(x, self.in_step), *self.exponent))
        return out


class IntAttention(QuantAttention):
    """A prepared attention with both products and Shiftmax in integers.

    Attributes:
        mix: from the mixed values to the levels that proj reads. quantized: as ShiftGelu's.
    """

    qk: IntProduct
    pv: IntProduct

    def __init__(self, attn: Network, bits: int) -> None:
        super().__init__(attn, bits)
        self.qk, self.pv = IntProduct(bits), IntProduct(bits, by_row=True)
        self.mix = Rescale()
        self.quantized = False

    @property
    def unit(self) -> Tensor:
        """() float32: the real number that 1 in the integer scores stands for."""
        return self.qk.left.scale * self.qk.right.scale

    @property
    def exponent(self) -> tuple[int, int]:
        """The dyadic number that makes an exponent of two of a distance of scores."""
        return exponent_of(float(self.unit))

    def settle(self) -> None:
        """Fix the integers: from the products of levels and values to the levels that proj reads."""
        bits = integers.FRACTION + 1 + integers.RECIPROCAL_SHIFT - integers.RECIPROCAL
        unit = self.pv.right.scale.double() / integers.PROBABILITY * 2.0**bits
        self.mix.fix(unit, self.proj.in_quant.scale, levels(self.proj.in_quant.bits))

    def bias_levels(self, bias: Tensor) -> Tensor:
        """What is added to the scores, any shape float32, as integers: |result| <= 2^28."""
        return (bias.double() / self.unit.double()).round().clamp(-MOST_BIAS, MOST_BIAS).long()

    def softmax(self, scores: Tensor) -> Tensor:
        """See :meth:`QuantAttention.softmax`: the straight-line form while the products are float or scaled."""
        return integers.straight_softmax(scores) if self.quantized else super().softmax(scores)

    def mixed(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """See :meth:`QuantAttention.mixed`."""
        self.qk.whole = self.pv.whole = self.quantized and self.mix.settled
        if not self.qk.whole:
            return super().mixed(query, key, value, mask)
        scores = self.qk(query, key.transpose(-2, -1)).long()
        if self.position_bias is not None:
            bias = self.position_bias if mask is None else self.position_bias + mask[:, None]
            scores = windows_added(scores, self.bias_levels(bias))
        probability, total = integers.shiftmax(scores, *self.exponent)
        products = self.pv(probability.float() * self.pv.left.scale, value).long()
        out: Tensor = self.mix(integers.mixed(products, total))
        return out


class IntMean(nn.Module):
    """The mean over rows and columns, from LayerNorm's levels to those the head reads.

    Attributes:
        in_step: () float32, of the levels read. quantized: False = float mean.
    """

    in_step: Tensor

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.register_buffer("in_step", torch.ones(()))
        self.rescale = Rescale()
        self.quantized = False

    def settle(self, in_step: Tensor, quantizer: ActQuantizer) -> None:
        """Fix the integers: from sums of levels of ``in_step`` to those of ``quantizer``."""
        self.in_step.copy_(in_step)
        self.rescale.fix(in_step.double() / self.tokens, quantizer.scale, levels(quantizer.bits))

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, C) float32."""
        if not (self.quantized and self.rescale.settled):
            return x.mean((1, 2))
        out: Tensor = self.rescale(whole(x, self.in_step).sum((1, 2)))
        return out


def exponent_of(unit: float) -> tuple[int, int]:
    """The dyadic (m, e) that takes integers of ``unit`` to exponents of two with 15 bits behind the point."""
    ratio = unit * math.log2(math.e) * 2.0**integers.FRACTION
    multiplier, shift = integers.dyadic(torch.tensor(ratio, dtype=torch.float64))
    return int(multiplier), shift


IntPart = IntLayerNorm | ShiftGelu | IntAttention | IntMean


def require_integer_form(network: Network) -> None:
    """Check that ``network`` (a timm ViT or Swin, prepared or not) can do without float.

    Raises:
        IntvitError: it averages over tokens outside Swin's head, or has more channels than the bounds allow.
    """
    widest = max(part.normalized_shape[0] for part in network.modules() if isinstance(part, nn.LayerNorm))
    pooled = not is_swin(network) and not reads_class_token(network)
    if pooled or widest > integers.MOST_CHANNELS:
        raise IntvitError(
            "this network has no integer-only form",
            where="+int",
            why="its head averages over tokens" if pooled else f"LayerNorm over {widest} channels may overflow int64",
            next="leave out +int; +attn8 has both attention products in integers",
        )


def install(student: Network) -> None:
    """Put integer modules in the place of LayerNorm, GELU, attention and Swin's mean, and a Rescale after each layer.

    ``student`` is prepared, and still computes what it did.

    Raises:
        IntvitError: see :func:`require_integer_form`.
    """
    require_integer_form(student)
    norms = {name: part for name, part in student.named_modules() if isinstance(part, nn.LayerNorm)}
    for site in sites(student):
        layer = student.get_submodule(site.name)
        if site.kind != "head":
            layer.rescale = Rescale(layer.out_features)
    for name, norm in norms.items():
        student.set_submodule(name, IntLayerNorm(norm))
    for name in block_names(student):
        block = student.get_submodule(name)
        block.mlp.act = ShiftGelu(block.mlp.fc1.out_features)
        block.attn = IntAttention(block.attn, 8)
    if is_swin(student):
        side = student.layers[-1].output_resolution
        student.head.global_pool = IntMean(side[0] * side[1])
    student.register_buffer("residual_step", torch.ones(()))


def integer_parts(model: Network, piece: str = "") -> list[IntPart]:
    """The modules that ``install`` put in, of the whole network or of one of its pieces; none without ``+int``."""
    under = {"stem": ("patch_embed.", "norm_pre"), "tail": ("norm", "head.")}.get(
        piece, (f"{piece}." if piece else "",)
    )
    return [part for name, part in model.named_modules() if isinstance(part, IntPart) and name.startswith(under)]
