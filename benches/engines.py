"""Run a calibrated model as the integer engine it becomes, in this process."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from torch import Tensor

from calib.calibrated import CalibratedModel
from runtime.backends.ort import make_session, optimized_bytes
from runtime.machine import available_cores
from toolchain.graph import canonical_graph
from toolchain.targets.ort import lower


def engine_logits(model: CalibratedModel, images: Tensor, threads: int = 0, batch: int = 4) -> np.ndarray:
    """Logits (B, classes) float32 of ONNX Runtime's integer engine on normalised ``images`` (B, 3, H, W).

    Args:
        threads: of the engine; 0 = as many as cores.
    """
    graph = ir.serde.serialize_model(lower(canonical_graph(model))).SerializeToString()
    session = make_session(optimized_bytes(graph), threads=threads or available_cores(), optimize=False)
    parts = [session.run(None, {"images": part.numpy()})[0] for part in images.split(batch)]
    return np.concatenate(parts)
