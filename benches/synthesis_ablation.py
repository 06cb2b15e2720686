"""The ablation rows of the synthesis table: a method with one part taken away, or alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from calib.synthesis.methods import BEST, DFQ_VIT, MIMIQ, PROCEDURAL, SPDFQ, SynthesisConfig

NO_PATCHES = replace(SPDFQ.views, patches=0)
HARD = replace(SPDFQ.targets, soft=False)
NO_ATTENTION = replace(SPDFQ.priors, attention=0.0)


def _every(**changes: Any) -> SynthesisConfig:
    """``best`` with every part changed."""
    return replace(BEST, mixture=tuple(replace(part, **changes) for part in BEST.mixture))


ABLATION: dict[str, SynthesisConfig] = {
    "spdfq: class and TV only": replace(SPDFQ, priors=NO_ATTENTION, views=NO_PATCHES, targets=HARD),
    "spdfq: APA": replace(SPDFQ, views=NO_PATCHES, targets=HARD),
    "spdfq: APA + SL": replace(SPDFQ, views=NO_PATCHES),
    "spdfq: APA + MSR": replace(SPDFQ, targets=HARD),
    "spdfq: MSR + SL": replace(SPDFQ, priors=NO_ATTENTION),
    "dfq-vit: no E2H": replace(DFQ_VIT, views=replace(DFQ_VIT.views, crops=None)),
    "mimiq: no IHC": replace(MIMIQ, priors=replace(MIMIQ.priors, heads=0.0)),
} | {
    # What the mixture is made of: each part alone, from noise, with larger steps, and half of it left as drawn.
    **{f"{part.method} only": replace(BEST, mixture=(part,)) for part in BEST.mixture},
    "best: from noise": _every(start="noise"),
    "best: larger steps": _every(optimiser=replace(BEST.mixture[0].optimiser, rate=0.05, swin_rate=0.05)),
    "best: half as drawn": replace(BEST, mixture=tuple(each for part in BEST.mixture for each in (part, PROCEDURAL))),
}
