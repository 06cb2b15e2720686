"""The ablation rows of the synthesis table: a method with one part taken away, or alone."""

from __future__ import annotations

from dataclasses import replace

from calib.synthesis.methods import DFQ_VIT, MIMIQ, SPDFQ, SynthesisConfig

NO_PATCHES = replace(SPDFQ.views, patches=0)
HARD = replace(SPDFQ.targets, soft=False)
NO_ATTENTION = replace(SPDFQ.priors, attention=0.0)

ABLATION: dict[str, SynthesisConfig] = {
    "spdfq: class and TV only": replace(SPDFQ, priors=NO_ATTENTION, views=NO_PATCHES, targets=HARD),
    "spdfq: APA": replace(SPDFQ, views=NO_PATCHES, targets=HARD),
    "spdfq: APA + SL": replace(SPDFQ, views=NO_PATCHES),
    "spdfq: APA + MSR": replace(SPDFQ, targets=HARD),
    "spdfq: MSR + SL": replace(SPDFQ, priors=NO_ATTENTION),
    "dfq-vit: no E2H": replace(DFQ_VIT, views=replace(DFQ_VIT.views, crops=None)),
    "mimiq: no IHC": replace(MIMIQ, priors=replace(MIMIQ.priors, heads=0.0)),
}
