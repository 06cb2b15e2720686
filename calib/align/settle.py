"""Fix the integers of a network that is to compute without float (``+int``), once its quantizers are set.

Two kinds of steps are chosen here, from the largest values the float network shows on the calibration images: one
power of two for the residual stream, and one step a block for what GELU reads, 16 bits. All other numbers follow from
the quantizers that calibration has set.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from calib.align.inputs import in_batches
from calib.network import Network
from calib.quant import integers
from calib.quant.families import Segment, block_names, is_swin, sites
from calib.quant.integer_only import IntLayerNorm, integer_parts
from calib.quant.quantizer import levels
from calib.quant.rescale import Rescale
from calib.taps import reading

HEADROOM = 2  # a hidden value or a residual branch may be that much larger than calibration saw
STREAM_NORMS = ("norm_pre", "patch_embed.norm")  # LayerNorms that write into the residual stream
POOL_LEVELS = 1 << 20  # of the LayerNorm before Swin's mean, whose bound is known without data
BRANCHES = ("embed", "proj", "fc2", "reduction")  # layers that do


@torch.no_grad()
def set_ranges(student: Network, teacher: Network, images: Tensor, batch: int) -> None:
    """Fix ``student``'s residual step and the steps of its GELUs from what ``teacher``, float, does with ``images``."""
    largest: dict[str, float] = {}

    def read(name: str, _read: Tensor, out: Tensor) -> None:
        largest[name] = max(largest.get(name, 1e-8), float(out.abs().max()))

    wanted = [site.name for site in sites(teacher) if site.kind in (*BRANCHES, "fc1")]
    wanted += [name for name in STREAM_NORMS if isinstance(_part(teacher, name), nn.LayerNorm)]
    with reading({name: teacher.get_submodule(name) for name in wanted}, read):
        in_batches(teacher, images, batch)
    for block in block_names(student):
        act = student.get_submodule(f"{block}.mlp.act")
        act.in_step.fill_(HEADROOM * largest.pop(f"{block}.mlp.fc1") / integers.MOST_HIDDEN)
    most = max(*largest.values(), *(float(token.abs().max()) for token in _tokens(student)))
    student.residual_step.fill_(2.0 ** math.ceil(math.log2(HEADROOM * most / branch_limit(student))))


def branch_limit(model: Network) -> int:
    """The largest level a branch may add to the residual stream, so that no sum exceeds 2^23."""
    return integers.MOST_RESIDUAL // (2 * len(block_names(model)) + 2)


@torch.no_grad()
def settle(student: Network, piece: Segment) -> None:
    """Fix every integer of one piece, in place; its quantizers and weights are set. Again, where they have changed."""
    stream, limit = student.residual_step, branch_limit(student)
    edges = -limit, limit
    if piece.name == "stem":
        for token in _tokens(student):
            token.copy_((token / stream).round() * stream)
        for name in STREAM_NORMS:
            if isinstance(norm := _part(student, name), IntLayerNorm):
                norm.settle(stream, stream, edges)
    for site in piece.sites:
        layer, parent = student.get_submodule(site.name), site.name.rpartition(".")[0]
        reads, unit = layer.in_quant, layer.in_quant.scale.double() * layer.weight_scale.double()
        if site.kind in BRANCHES:
            layer.rescale.fix(unit, stream, edges, layer.bias)
        if site.kind == "qkv":
            attn = student.get_submodule(parent)
            steps = torch.stack([attn.qk.left.scale, attn.qk.right.scale, attn.pv.right.scale])
            layer.rescale.fix(unit, steps.repeat_interleave(len(unit) // 3), levels(attn.qk.left.bits), layer.bias)
        elif site.kind == "proj":
            student.get_submodule(parent).settle()
        elif site.kind == "fc1":
            most = integers.MOST_HIDDEN
            layer.rescale.fix(unit, student.get_submodule(f"{parent}.act").in_step, (-most, most), layer.bias)
        elif site.kind == "fc2":
            student.get_submodule(f"{parent}.act").settle(layer)
        if site.kind == "head" and is_swin(student):
            norm, most = student.norm, POOL_LEVELS
            bound = norm.weight.abs().double() * math.sqrt(len(norm.weight)) + norm.bias.abs().double()
            norm.settle(stream, bound.max() / most, (-most, most))
            student.head.global_pool.settle(norm.rescale.step[0], reads)
        elif site.norm:
            student.get_submodule(site.norm).settle(stream, reads.scale, levels(reads.bits))


def unsettle(student: Network) -> None:
    """Give every module its float form back, for gradients to pass."""
    for part in student.modules():
        if isinstance(part, Rescale):
            part.shift.fill_(-1)


def begin(student: Network, piece: Segment) -> None:
    """Let softmax and GELU of one piece take their straight-line form while its layers are quantized."""
    for part in integer_parts(student, piece.name):
        part.quantized = True


def _part(model: Network, name: str) -> nn.Module | None:
    return dict(model.named_modules()).get(name)


def _tokens(model: Network) -> list[Tensor]:
    """Class and register tokens and position embedding, where the network has them."""
    found = (getattr(model, name, None) for name in ("cls_token", "reg_token", "pos_embed"))
    return [token for token in found if isinstance(token, Tensor)]
