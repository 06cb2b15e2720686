"""Every option of the calibration, as plain data: recipes are made of these before torch is imported."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

Form = Literal["none", "bias", "diag", "head", "full"]
FORMS: tuple[Form, ...] = get_args(Form)
Target = Literal["own", "float"]
Rounding = Literal["nearest", "gptq"]
Ranges = Literal["mse", "minmax", "lsq"]
DAMPING = 0.01  # of GPTQ: of the mean diagonal of H


@dataclass(frozen=True)
class CorrectionConfig:
    """Options of the correction.

    Attributes:
        form: none, bias, diag, head or full. target: own, the layer's float output on what the quantized network feeds
        it; or float, that of the float network (own is taken for qkv, whose rows folding has changed). ridges: the
        lambdas tried. rank: of C - I for ``full``; None = any.
    """

    form: Form = "bias"
    target: Target = "own"
    ridges: tuple[float, ...] = (0.01, 0.1, 1.0, 10.0)
    rank: int | None = None


@dataclass(frozen=True)
class LayerConfig:
    """How a layer is quantized.

    Attributes:
        rows: most token rows a search looks at. weight_tokens: every token counts by the inverse of its energy
        (False: all alike, the textbook form, for ablations). ranges: of weights and inputs, mse (searched) or minmax;
        lsq is minmax for weights, and for inputs where LSQ begins to learn (``ranges.lsq_range``). rounding: of the
        weights. damping: of GPTQ. flatten: exponent of the eigenvalues of GPTQ's second moment, 1 = as measured.
        correction: of the layer's output.
    """

    rows: int = 4096
    weight_tokens: bool = True
    ranges: Ranges = "mse"
    rounding: Rounding = "nearest"
    damping: float = DAMPING
    flatten: float = 1.0
    correction: CorrectionConfig = field(default_factory=CorrectionConfig)


@dataclass(frozen=True)
class ReconstructConfig:
    """Options of the reconstruction.

    Attributes:
        iterations: Adam steps a block. batch: images a step. weight_rate: weight steps an iteration. scale_rate: of the
        logarithms of all steps. bias_rate: in units of the layer's output. norm_rate: relative; 0 leaves LayerNorm
        as it is. All rates fall to 0 along a cosine. beta1, beta2: Adam's. suffix: blocks this close to the end (1 =
        the last alone) also learn from the logits; 0 = none. local_weight: of the block's own error beside the
        logits'. drop: share of the activations below 8 bits that a step leaves unrounded. absolute: weight_rate is in
        units of the weights, not of their steps. class_share: of the class token in a block's error, where the head
        reads it alone: in the first block and in the last, rising evenly between; None = every token counts alike.
    """

    iterations: int = 150
    batch: int = 16
    weight_rate: float = 0.004
    scale_rate: float = 0.01
    bias_rate: float = 0.003
    norm_rate: float = 0.003
    beta1: float = 0.9
    beta2: float = 0.99
    suffix: int = 0
    local_weight: float = 2.0
    drop: float = 0.0
    absolute: bool = False
    class_share: tuple[float, float] | None = None


@dataclass(frozen=True)
class DistillConfig:
    """Options of the fine-tuning; constants of the published code (MimiQ) where it gives them.

    Attributes:
        epochs: passes over the images. frozen_epochs: the first ones, in which weights stay. batch: images a step.
        rate: SGD's, falling along a cosine to a hundredth. momentum: Nesterov's. temperature: of the softened logits.
        head_weight: gamma; 0 leaves the attention out. augment: crop, flip, jitter, grey and blur every image anew.
    """

    epochs: int = 20
    frozen_epochs: int = 2
    batch: int = 16
    rate: float = 1e-3
    momentum: float = 0.9
    temperature: float = 5.0
    head_weight: float = 10.0
    augment: bool = True


@dataclass(frozen=True)
class CalibrateConfig:
    """Options of the calibration.

    Attributes:
        layer: how one layer is quantized. fold: of scales and shifts, searched; or one shift a tensor, which is
        asymmetric quantization in symmetric integers; or off. fold_rows: most token rows the search for a fold looks
        at. gelu_scale: a layer behind GELU, whose scales the engine has to multiply by, gets them only where its
        relative error without exceeds this. reconstruct: block reconstruction, or None. distill: of the whole network
        at last, or None. layer_images: most images, evenly spaced among all, that the steps before reconstruction look
        at. batch: images a forward pass. seed: of the choice of rows, the order of images and the rotations. rotate:
        turn the residual stream and the values of every head first, where it is worth it for the scheme
        (``Scheme.turns``). massive: layers behind GELU whose largest channel exceeds this many times the median one
        keep 8 bits, where the scheme has fewer; None = none does.
    """

    layer: LayerConfig = field(default_factory=LayerConfig)
    fold: Literal["search", "shift", "off"] = "search"
    fold_rows: int = 1024
    gelu_scale: float = 0.0
    reconstruct: ReconstructConfig | None = None
    distill: DistillConfig | None = None
    layer_images: int = 256
    batch: int = 16
    seed: int = 0
    rotate: bool = False
    massive: float | None = None
