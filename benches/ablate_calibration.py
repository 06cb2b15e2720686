"""What each step of the calibration is worth: ``python -m benches.ablate_calibration``.

The real ViT-Ti at W4A8 and W8A8, calibrated on 32 of the photographs (calibration is compared here, not synthesis) and
measured as the fake-quant model on every other one. One step is taken away, or made textbook, at a time.
"""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from typing import Annotated, Any

import torch
import typer

from benches.real_accuracy import CALIBRATION_IMAGES, CHECKPOINT
from benches.record import write_result
from benches.synthesis_sets import photographs
from calib.align.config import CorrectionConfig, LayerConfig
from calib.calibrate import calibrate
from calib.models import load
from calib.recipes import BUDGETS
from calib.scheme import parse
from runtime.cli import run

FAST = BUDGETS["fast"]
NO_CORRECTION = CorrectionConfig("none")
VARIANTS = {
    "all steps": BUDGETS["default"],
    "no reconstruction": FAST,
    "no reconstruction, not turned": replace(FAST, rotate=False),
    "no reconstruction, massive layers as narrow as all": replace(FAST, massive=None),
    "no reconstruction, neither turned nor wider": replace(FAST, rotate=False, massive=None),
    "no reconstruction, a scale after GELU wherever it helps": replace(FAST, gelu_scale=0.0),
    "no reconstruction, a scale after GELU above an error of 0.02": replace(FAST, gelu_scale=0.02),
    "no reconstruction, nearest rounding": replace(FAST, layer=LayerConfig()),
    "and tokens all alike": replace(FAST, layer=LayerConfig(weight_tokens=False)),
    "and no bias correction": replace(FAST, layer=LayerConfig(weight_tokens=False, correction=NO_CORRECTION)),
    "and no reparameterisation": replace(
        FAST, layer=LayerConfig(weight_tokens=False, correction=NO_CORRECTION), fold="off"
    ),
    "no reconstruction, GPTQ with tokens all alike": replace(
        FAST, layer=LayerConfig(rounding="gptq", weight_tokens=False)
    ),
}


def main(
    schemes: Annotated[list[str] | None, typer.Option("--scheme", help="Default: w4a4, w4a8 and w8a8.")] = None,
) -> None:
    """Measure every variant and write benches/results/ablate_calibration.json."""
    loaded = load("vit_t", str(CHECKPOINT))
    images, labels = photographs(loaded)
    spread = torch.arange(CALIBRATION_IMAGES) * len(images) // CALIBRATION_IMAGES
    rest = torch.ones(len(images), dtype=torch.bool)
    rest[spread] = False
    rows: list[dict[str, Any]] = []
    with torch.no_grad():
        floats = torch.cat([loaded.module(part) for part in images[rest].split(50)]).argmax(1) == labels[rest]
    for scheme in schemes or ["w4a4", "w4a8", "w8a8"]:
        for name, config in VARIANTS.items():
            start = time.monotonic()
            model = calibrate(loaded.module, loaded.spec, parse(scheme), images[spread], config)
            seconds = time.monotonic() - start
            hits = model.logits(images[rest], 50).argmax(1) == labels[rest]
            rows.append(
                {
                    "scheme": scheme,
                    "variant": name,
                    "config": asdict(config),
                    "images": len(hits),
                    "float_top1": 100 * float(floats.float().mean()),
                    "fake_quant_top1": 100 * float(hits.float().mean()),
                    "seconds": seconds,
                }
            )
            print(f"{scheme} {name}: {rows[-1]['fake_quant_top1']:.1f} ({seconds:.0f} s)", flush=True)
            write_result("ablate_calibration", {"rows": rows})


if __name__ == "__main__":
    run(main)
