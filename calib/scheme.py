"""The recipe grammar: what ``--bits`` means. Parsed once here, printed back the same way everywhere.

``w<W>a<A>[+attn8][+res8][+g<G>][+int][+uniform]`` with W in 2..8 weight bits, A in 2..8 or 16 activation bits (16 =
activations stay float), ``auto:<AVG>`` gives each layer 4-bit or 8-bit weights, AVG bits a weight on average, 8-bit
activations. ``+attn8`` for 8-bit attention products, ``+res8`` for an 8-bit residual stream, ``+g64`` for weight groups
of 64 input channels (with float activations only), ``+int`` for integers from the image's quantizer to the head's sums:
attention products, softmax, GELU, LayerNorm and the residual stream. ``+uniform`` holds every layer but the patch
embedding to W and A: else those with massive activations keep 8 bits (``calib.align.massive``), so that the network can
be turned (``calib.align.rotate``).
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, replace

from calib.errors import IntvitError

COMMON = (
    *("w8a8", "w4a8", "w4a4", "w3a8", "w6a6", "w4a16", "w4a16+g64", "w8a16"),
    *("w8a8+attn8", "w4a8+attn8", "w8a8+res8", "w8a8+attn8+res8", "w8a8+int"),
)
GROUPS = (16, 32, 64, 128)
_BASE = re.compile(r"w(\d+)a(\d+)")
_AUTO = re.compile(r"auto:(\d+(?:\.\d+)?)")
AUTO_LIMITS = (4.0, 8.0)


@dataclass(frozen=True)
class Scheme:
    """Bit widths of a quantized model.

    Attributes:
        weight_bits: 2..8, signed, zero point 0, a scale per output channel, or per group of each.
        act_bits: 2..8, or 16 for float activations (weight-only).
        attn_bits: 8 when both attention products are quantized, else None.
        group: input channels that share a weight scale, or None for one scale per output channel.
        integer: True when softmax, GELU, LayerNorm and the residual stream are integers too; ``attn_bits`` is then 8.
        average: mean bits a weight where each layer gets 4 or 8 of its own; ``weight_bits`` is then the fewest.
        residual_bits: 8 when the residual stream is quantized at every point, else None.
        uniform: True when no layer may be wider than ``weight_bits`` and ``act_bits``; the network is then not turned
            either, since a layer with massive activations bears that only with 8 bits.
    """

    weight_bits: int
    act_bits: int
    attn_bits: int | None = None
    group: int | None = None
    integer: bool = False
    average: float | None = None
    residual_bits: int | None = None
    uniform: bool = False

    def __post_init__(self) -> None:
        if self.integer:
            object.__setattr__(self, "attn_bits", 8)

    @property
    def float_activations(self) -> bool:
        """True for weight-only schemes (``a16``)."""
        return self.act_bits == 16

    @property
    def narrow(self) -> bool:
        """True where weights or activations have fewer than 8 bits."""
        return self.weight_bits < 8 or self.act_bits < 8

    @property
    def turns(self) -> bool:
        """True where a rotation is worth it: fewer than 8 bits, or a quantized stream, and not ``+uniform``."""
        return (self.narrow or self.residual_bits is not None) and not self.uniform

    @property
    def widens(self) -> bool:
        """True where single layers may be given 8 bits: integer layers of fewer, not ``+uniform``, not ``auto``."""
        return self.narrow and not (self.float_activations or self.uniform or self.average is not None)

    def __str__(self) -> str:
        text = f"w{self.weight_bits}a{self.act_bits}" if self.average is None else f"auto:{self.average:g}"
        if self.attn_bits is not None and not self.integer:
            text += f"+attn{self.attn_bits}"
        if self.residual_bits is not None:
            text += f"+res{self.residual_bits}"
        if self.group is not None:
            text += f"+g{self.group}"
        return text + ("+int" if self.integer else "") + ("+uniform" if self.uniform else "")


def parse(text: str) -> Scheme:
    """Read a scheme such as ``w4a8``.

    Raises:
        IntvitError: the text is not in the grammar or a width is out of range; near matches are listed.
    """
    base, *extras = text.strip().lower().split("+")
    if (automatic := _AUTO.fullmatch(base)) is not None and not extras:
        average = float(automatic[1])
        if not AUTO_LIMITS[0] <= average <= AUTO_LIMITS[1]:
            raise _bad(text, f"an average of 4 to 8 bits a weight can be met with 4 and 8, not {average:g}")
        return Scheme(4, 8, average=average)
    match = _BASE.fullmatch(base)
    if match is None:
        raise _bad(
            text,
            "a scheme is w<weight bits>a<activation bits>, then options such as +attn8; or auto:<average weight bits>",
        )
    weight_bits, act_bits = int(match[1]), int(match[2])
    if not 2 <= weight_bits <= 8:
        raise _bad(text, f"weights take 2 to 8 bits, not {weight_bits}")
    if not (2 <= act_bits <= 8 or act_bits == 16):
        raise _bad(text, f"activations take 2 to 8 bits, or 16 for float, not {act_bits}")
    attn_bits, residual_bits, group, integer, uniform = None, None, None, False, False
    for extra in extras:
        if extra == "attn8":
            attn_bits = 8
        elif extra == "res8":
            residual_bits = 8
        elif extra == "int":
            integer = True
        elif extra == "uniform":
            uniform = True
        elif extra in {f"g{size}" for size in GROUPS}:
            if group is not None:
                raise _bad(text, f"one group size only, not +g{group} and +{extra}")
            group = int(extra[1:])
        else:
            known = ", ".join(["+attn8", "+res8", "+int", "+uniform", *(f"+g{size}" for size in GROUPS)])
            raise _bad(text, f"unknown option +{extra}; known: {known}")
    found = Scheme(weight_bits, act_bits, attn_bits, group, integer, residual_bits=residual_bits)
    if uniform and not found.widens:
        raise _bad(text, f"+uniform says nothing here: no layer of {found} has other bits")
    return replace(found, uniform=uniform)


def require_buildable(scheme: Scheme) -> None:
    """Refuse what the grammar can say but no target can run, before any work is done.

    Raises:
        IntvitError: the scheme asks for weight groups beside integer activations, for integers alone with float
            activations, or for two kinds of integers in the residual stream.
    """
    if scheme.group is not None and not scheme.float_activations:
        attn_bits = None if scheme.integer else scheme.attn_bits
        weight_only = replace(scheme, act_bits=16, attn_bits=attn_bits, integer=False)
        raise IntvitError(
            f"+g{scheme.group} cannot be built with {scheme.act_bits}-bit activations",
            where=f"--bits {scheme}",
            why=f"every {scheme.group} products would need an integer sum of their own; no target has such a kernel",
            next=f"build --bits {replace(scheme, group=None)}: one scale for each output channel; or {weight_only}: "
            "float activations",
        )
    if scheme.integer and scheme.float_activations:
        raise IntvitError(
            "+int cannot be built with float activations",
            where=f"--bits {scheme}",
            why="a16 leaves the inputs of every layer in float, and +int leaves nothing there",
            next=f"build --bits {replace(scheme, act_bits=8, group=None)}",
        )
    if scheme.integer and scheme.residual_bits is not None:
        raise IntvitError(
            "+res8 cannot be built with +int",
            where=f"--bits {scheme}",
            why="+int has the residual stream in integers already: up to 24 bits and one step, so that sums are exact",
            next=f"build --bits {replace(scheme, residual_bits=None)}; or {replace(scheme, integer=False)}: "
            "8 bits a point, with float between them",
        )


def _bad(text: str, why: str) -> IntvitError:
    bits = re.fullmatch(r"\D*(\d)\D*", text)  # int8, w8, 8-bit: no more is said than the width of the weights
    near = [known for known in COMMON if bits is not None and known.startswith(f"w{bits[1]}a")][:3]
    near = near or difflib.get_close_matches(text.lower(), COMMON, n=3, cutoff=0.4) or list(COMMON[:4])
    return IntvitError(f"unknown scheme {text!r}", where="--bits", why=why, next="near matches: " + ", ".join(near))
