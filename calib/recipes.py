"""A method: where the calibration images come from, and which alignment steps follow. As data."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import cast

from calib.align.config import (
    FORMS,
    CalibrateConfig,
    CorrectionConfig,
    DistillConfig,
    Form,
    LayerConfig,
    ReconstructConfig,
)
from calib.errors import IntvitError
from calib.synthesis.methods import METHODS, SynthesisConfig, find
from calib.synthesis.own_prior import parse_prior, with_priors

DEFAULT_METHOD = "best"
REAL = "real"
# What calibration does beyond rounding to the nearest level; docs/calibration.md says how long each takes.
GPTQ = LayerConfig(rounding="gptq", flatten=0.8)  # docs/decisions/0029-flattened-moments.md
CLASS_SHARE = (0.1, 0.5)  # docs/decisions/0031-the-class-token.md
GELU_SCALE = 1e-3  # docs/decisions/0040-scales-after-gelu.md
# Rotation and massive layers: docs/decisions/0034-rotation-and-massive-layers.md
OWN = CalibrateConfig(rotate=True, massive=16.0, layer=GPTQ, gelu_scale=GELU_SCALE)
BUDGETS: dict[str, CalibrateConfig] = {
    "fast": OWN,
    "default": replace(OWN, reconstruct=ReconstructConfig(iterations=150, class_share=CLASS_SHARE)),
    "max": replace(OWN, reconstruct=ReconstructConfig(iterations=600, class_share=CLASS_SHARE)),
}
DEFAULT_BUDGET = "default"

# The published methods' own calibration, on our quantizers: per-channel symmetric weights, per-tensor activations,
# nearest rounding, no folding (docs/decisions/0036-published-ranges.md). PSAQ-ViT's ranges are min-max, those of
# activations with a zero point, and it has nothing else. DFQ-ViT adds its correction towards the float network, here in
# its additive form (docs/decisions/0009-the-form-of-the-correction.md). MimiQ starts its activations where LSQ does,
# and distils. SPDFQ, in QDrop's tradition, searches ranges and reconstructs blocks (section 3.3: Adam, 4e-5, 100
# iterations).
RANGES = CalibrateConfig(
    layer=LayerConfig(weight_tokens=False, ranges="minmax", correction=CorrectionConfig("none")), fold="shift"
)
SPDFQ_LEARNING = ReconstructConfig(
    iterations=100,
    batch=32,
    weight_rate=4e-5,
    scale_rate=4e-5,
    bias_rate=4e-5,
    norm_rate=0.0,
    beta2=0.999,
    drop=0.5,
    absolute=True,
)
PUBLISHED: dict[str, CalibrateConfig] = {
    "psaq": RANGES,
    "mimiq": replace(RANGES, layer=replace(RANGES.layer, ranges="lsq"), fold="off", distill=DistillConfig()),
    "dfq-vit": replace(RANGES, layer=replace(RANGES.layer, correction=CorrectionConfig("bias", "float"))),
    "spdfq": replace(RANGES, layer=replace(RANGES.layer, ranges="mse"), fold="off", reconstruct=SPDFQ_LEARNING),
}


@dataclass(frozen=True)
class Recipe:
    """``synthesis`` is None where real images are read instead. ``align`` are the options of the calibration."""

    method: str
    synthesis: SynthesisConfig | None
    align: CalibrateConfig

    @property
    def data_free(self) -> bool:
        """True when no real image is read."""
        return self.synthesis is not None


def recipe(method: str, budget: str = DEFAULT_BUDGET, correction: str | None = None) -> Recipe:
    """The recipe called ``method``: ``noise``, ``psaq``, ... or ``real``.

    The published methods bring their own calibration, whatever the budget; all others share ``best``'s, so that they
    differ in their images alone. ``correction`` replaces the form of the recipe's correction.

    Raises:
        IntvitError: no such method, budget or correction; near matches are listed.
    """
    _require_known(budget, BUDGETS, "budget")
    align = PUBLISHED.get(method) or BUDGETS[budget]
    if correction is not None:
        _require_known(correction, FORMS, "correction")
        changed = replace(align.layer.correction, form=cast(Form, correction))
        align = replace(align, layer=replace(align.layer, correction=changed))
    return Recipe(method, None if method == REAL else find(method, REAL), align)


def with_own_priors(chosen: Recipe, texts: Sequence[str]) -> Recipe:
    """The recipe with the priors of ``--prior`` in its synthesis.

    Raises:
        IntvitError: a text that is no prior, or a recipe that optimises no image.
    """
    if chosen.synthesis is None:
        raise IntvitError("a prior needs images that are synthesised", where="--prior", why="--method real reads them")
    return replace(chosen, synthesis=with_priors(chosen.synthesis, [parse_prior(text) for text in texts]))


def _require_known(name: str, known: Collection[str], what: str) -> None:
    if name in known:
        return
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise IntvitError(
        f"unknown {what} {name!r}",
        where=f"--{what}",
        why="it is not a known one",
        next=hint + "known: " + ", ".join(known),
    )


def methods() -> list[str]:
    """Every name ``recipe`` takes."""
    return [*METHODS, REAL]
