"""Find the layers that one hidden channel dominates, which few bits cannot serve.

In trained ViTs a single neuron behind GELU can fire a hundred times as strongly as all others, on the handful of tokens
that attention uses as registers (Sun et al., "Massive Activations in Large Language Models", 2024, section 5; Darcet et
al., "Vision Transformers Need Registers", ICLR 2024). The layer behind it has to hold that product and all the ordinary
ones in one range: at 4 bits it loses either. Clipping the neuron is no way out, the network needs it. Such a layer
keeps 8 bits (docs/decisions/0034-rotation-and-massive-layers.md).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from calib.align.inputs import in_batches
from calib.network import Network
from calib.quant.families import sites
from calib.taps import reading

WIDE = 8  # bits of the weights and of the input of such a layer


@torch.no_grad()
def massive_layers(network: Network, images: Tensor, ratio: float, batch: int = 16) -> list[dict[str, Any]]:
    """The layers behind GELU whose largest input channel exceeds ``ratio`` times the median one; rows for the report.

    A channel's size is its largest magnitude over all tokens of ``images``.

    Args:
        network: prepared and float. images: (B, 3, H, W) normalised. ratio: > 1.
    """
    layers = {site.name: network.get_submodule(site.name) for site in sites(network) if site.gelu}
    largest: dict[str, Tensor] = {}

    def read(name: str, x: Tensor, _out: Tensor) -> None:
        found = x.abs().flatten(0, -2).amax(0)
        largest[name] = torch.maximum(largest[name], found) if name in largest else found

    with reading(layers, read):
        in_batches(network, images, batch)
    report = []
    for name, sizes in largest.items():
        top, middle = float(sizes.max()), float(sizes.median())
        if top > ratio * middle:
            channel = int(sizes.argmax())
            report.append({"step": "widen", "layer": name, "channel": channel, "largest": top, "median": middle})
    return report
