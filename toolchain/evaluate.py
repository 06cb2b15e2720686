"""Accuracy of all three forms on one labelled folder: float twin and engine by the runtime, fake-quant in torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from calib.calibrated import CalibratedModel
from calib.quant.surgery import set_quantized
from runtime.accuracy import evaluate
from runtime.bundle import Bundle
from runtime.dataset import Unreadable, load_folder
from runtime.paired import paired_stderr, percent
from runtime.predictions import predict


def measure(bundle: Bundle, model: CalibratedModel, data: Path, backend: str) -> dict[str, Any]:
    """Top-1 in percent of the float twin, the fake-quantized model and the engine on ``data``, with standard errors.

    Twin and engine run on ``backend``.

    Raises:
        IntvitError: whatever the runtime's accuracy raises.
    """
    result = evaluate(bundle, data, backend=backend)
    set_quantized(model.module, True)

    @torch.no_grad()
    def fake_quant(images: np.ndarray) -> np.ndarray:
        logits: np.ndarray = model.module(torch.from_numpy(images)).numpy()
        return logits

    samples = load_folder(data, bundle.classes())
    rule = bundle.manifest.preprocess
    answers = predict([[fake_quant]], samples, rule, Unreadable(), label="fake-quant accuracy")
    hits = answers.models[0].hits(answers.labels, 1)
    return {
        "images": result.images,
        "float_top1": result.baseline_top1,
        "fake_quant_top1": percent(hits),
        "engine_top1": result.top1,
        "engine_top5": result.top5,
        "agreement": result.agreement,
        "stderr": result.stderr,
        "fake_quant_stderr": paired_stderr(hits, result.baseline.hits(result.labels, 1)),
        "engine_minus_fake_quant_stderr": paired_stderr(result.engine.hits(result.labels, 1), hits),
    }
