"""A calibrated model: a network whose every quantizer is explicit, stored as safetensors + JSON."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from calib.models import ModelSpec
from calib.quant.linear import QuantLinear
from calib.quant.quantizer import ActQuantizer
from calib.quant.surgery import linears, prepare, quantizers, set_quantized
from calib.scheme import Scheme, parse
from calib.taps import reading

WEIGHTS, CONFIG = "model.safetensors", "model.json"


@dataclass(frozen=True)
class CalibratedModel:
    """What calibration makes and lowering reads.

    Attributes:
        module: the prepared network, quantizers set. spec: the architecture. scheme: its bit widths.
        report: one row a layer: the fold chosen, the step, the errors (for people; nothing is read from it).
        seconds: that each kind of step took; not saved, since the same seed gives the same files.
    """

    module: nn.Module
    spec: ModelSpec
    scheme: Scheme
    report: list[dict[str, Any]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def layers(self) -> dict[str, QuantLinear]:
        """Quantizable layers by name, in execution order."""
        return linears(self.module)

    def quantizers(self) -> dict[str, ActQuantizer]:
        """Activation quantizers by the name of their layer or attention operand, in execution order."""
        return quantizers(self.module)

    @torch.no_grad()
    def logits(self, images: Tensor, batch: int = 16) -> Tensor:
        """Fake-quantized logits (B, classes) of normalised images (B, 3, H, W)."""
        set_quantized(self.module, True)
        return torch.cat([self.module(chunk) for chunk in images.split(batch)])

    @torch.no_grad()
    def taps(self, images: Tensor) -> dict[str, Tensor]:
        """The integers at every quantizer, int8, by its name, for normalised images (B, 3, H, W)."""
        set_quantized(self.module, True)
        found: dict[str, Tensor] = {}

        def read(name: str, _read: Tensor, out: Tensor) -> None:
            found[name] = out.to(torch.int8)

        with reading(self.quantizers(), read):
            self.module(images)
        return found

    def save(self, folder: Path) -> None:
        """Write model.safetensors and model.json into an existing ``folder``."""
        state = {name: tensor.contiguous() for name, tensor in self.module.state_dict().items()}
        save_file(state, folder / WEIGHTS)
        layers = self.layers().items()
        config = {
            "spec": asdict(self.spec),
            "scheme": str(self.scheme),
            "weight_bits": {name: layer.weight_bits for name, layer in layers},
            "act_bits": {name: layer.act_bits for name, layer in layers},
            "report": self.report,
        }
        (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> CalibratedModel:
        """Read what ``save`` wrote."""
        root = Path(folder)
        config = json.loads((root / CONFIG).read_text("utf-8"))
        raw: dict[str, Any] = config["spec"]
        fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in raw.items()}
        spec = ModelSpec(**fields)
        scheme = parse(config["scheme"])
        module = prepare(spec.build(), scheme, config["weight_bits"], config["act_bits"])
        state = load_file(root / WEIGHTS)
        load_numbers(module, state)
        set_quantized(module, True)
        return cls(module, spec, scheme, config["report"])


def load_numbers(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Give a prepared network the numbers of ``state``, a state dict of another like it; in place.

    A layer's ``premul`` is there only where calibration put one, so it may be new to ``module``.
    """
    for name, layer in linears(module).items():
        if f"{name}.premul" in state:
            layer.premul = state[f"{name}.premul"].to(layer.weight.device, copy=True)
    module.load_state_dict(state)
