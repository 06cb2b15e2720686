"""The linear layers of the networks we measure: name, how many tokens an image has there, inputs k and outputs n."""

from __future__ import annotations

from typing import NamedTuple

VITS = {"deit_t": 192, "deit_s": 384, "deit_b": 768}  # DeiT, arXiv:2012.12877, table 1: channels
TOKENS = 197  # 14 x 14 patches of 16 x 16 pixels and the class token
SWIN_T = 96  # Swin, arXiv:2103.14030, section 3.3: channels of the first of four stages, doubled at each
SWIN_TOKENS = 56 * 56  # tokens of the first stage, a quarter at each later one


class Shape(NamedTuple):
    """One layer."""

    model: str
    layer: str
    tokens: int
    k: int
    n: int


def block(model: str, tokens: int, width: int, suffix: str = "") -> list[Shape]:
    """The four layers of a transformer block."""
    sizes = {"qkv": (width, 3 * width), "proj": (width, width), "fc1": (width, 4 * width), "fc2": (4 * width, width)}
    return [Shape(model, layer + suffix, tokens, k, n) for layer, (k, n) in sizes.items()]


def vit(model: str) -> list[Shape]:
    """The layers of a DeiT's blocks."""
    return block(model, TOKENS, VITS[model])


def swin_t() -> list[Shape]:
    """The layers of Swin-T's blocks and the reductions between its stages."""
    shapes = []
    for stage in range(4):
        width, tokens = SWIN_T << stage, SWIN_TOKENS >> 2 * stage
        shapes += block("swin_t", tokens, width, f", stage {stage + 1}")
        if stage < 3:
            shapes.append(Shape("swin_t", f"reduction {stage + 1}", tokens // 4, 4 * width, 2 * width))
    return shapes


def every() -> list[Shape]:
    """All of them: deit_t, deit_s, deit_b and swin_t."""
    return [shape for model in VITS for shape in vit(model)] + swin_t()
