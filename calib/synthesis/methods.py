"""Methods as data: what each published name means, as numbers. Sources stand beside the numbers.

Where a paper leaves a number out, ours is marked "reconstruction"; every such number is an option here.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from calib.errors import IntvitError
from calib.synthesis.own_prior import OwnPrior


@dataclass(frozen=True)
class Round:
    """Part of a run: share of all iterations, and the most pixels (of 224) an image is rolled by."""

    share: float
    roll: int


@dataclass(frozen=True)
class Optimiser:
    """Adam (AdamW where ``weight_decay`` > 0) and its learning rate over the run.

    Attributes:
        rate, swin_rate: peak learning rates. betas. weight_decay: decoupled. warmup: share of a round with rising rate.
        floor: rate at the end of the cosine. restart: begin the rate anew with every round.
    """

    rate: float = 0.2
    swin_rate: float = 0.25
    betas: tuple[float, float] = (0.5, 0.9)
    weight_decay: float = 0.0
    warmup: float = 0.0
    floor: float = 0.0
    restart: bool = False


@dataclass(frozen=True)
class Priors:
    """Weights of the losses on what attention does; 0 = off.

    Attributes:
        entropy: patch similarity entropy. entropy_form: "kde" as published, or "gaussian", its closed form.
        heads: inter-head attention similarity. attention: alignment with random attention priors.
        components: most Gaussians in one attention prior. normalise: divide ``heads`` and ``attention`` by their own
        value at the first iteration, so that one weight fits every model. rows: number of patches the entropy and
        head losses look at, drawn anew each iteration; None = all. own: priors from files of the user's.
    """

    entropy: float = 0.0
    entropy_form: Literal["kde", "gaussian"] = "kde"
    heads: float = 0.0
    attention: float = 0.0
    components: int = 5
    normalise: bool = False
    rows: int | None = None
    own: tuple[OwnPrior, ...] = ()


@dataclass(frozen=True)
class Variation:
    """Total variation: ``target`` holds it near U(low, high), None makes it small. ``batch``: of the published norm."""

    weight: float = 0.0
    target: tuple[float, float] | None = (2500.0, 3000.0)
    batch: int = 32


@dataclass(frozen=True)
class Views:
    """What the network sees of the image at a step.

    Attributes:
        diagonal: roll both axes by the same number. flip: mirror at random. noise: standard deviation of a random
        colour offset at the start, falling to 0. colour: random colour shift and contrast. crops: smallest area share
        of the easy-to-hard crops; None = off. crop_ratio: narrowest aspect of a crop. patches: most semantic patches in
        an image, 0 = off. patch_sides: their sides as shares of the image's.
    """

    diagonal: bool = False
    flip: bool = False
    noise: float = 0.0
    colour: bool = False
    crops: float | None = None
    crop_ratio: float = 3 / 4
    patches: int = 0
    patch_sides: tuple[float, float] = (0.25, 0.5)


@dataclass(frozen=True)
class Targets:
    """Class targets: weight of the loss; ``soft``: intended classes have logits ~ U(low, high), others N(0, rest^2)."""

    weight: float = 0.0
    soft: bool = False
    low: float = 5.0
    high: float = 10.0
    rest: float = 1.0


@dataclass(frozen=True)
class SynthesisConfig:
    """One synthesis method.

    Attributes:
        method: its name. images: how many. batch: images optimised together; None = what fits the memory.
        iterations: in all, over all rounds; 0 = the images are only drawn. start: Gaussian noise (in normalised
        space) or procedural images. warm: share of the iterations run first at half resolution (a quarter of the
        patches), where the network can: ViT and DeiT with an even grid. mixture: where not empty, image i is made
        by ``mixture[i % n]``, and of the rest here only name, images and batch count.
    """

    method: str
    images: int = 32
    batch: int | None = None
    iterations: int = 0
    start: Literal["noise", "procedural"] = "noise"
    warm: float = 0.0
    rounds: tuple[Round, ...] = ()
    optimiser: Optimiser = Optimiser()
    priors: Priors = Priors()
    variation: Variation = Variation()
    views: Views = Views()
    targets: Targets = Targets()
    mixture: tuple[SynthesisConfig, ...] = ()


NOISE = SynthesisConfig("noise")
PROCEDURAL = SynthesisConfig("procedural", start="procedural")

# PSAQ-ViT's code: 32 images; Adam 0.20 (Swin 0.25), betas (0.5, 0.9); two rounds of 500, each with 100 warm-up
# iterations, then cosine to 0, Adam's moments kept; roll by up to 15 then 30, down as far as right; flip;
# L = L_PSE + CE + 0.05 |TV - tau|. Two differences: its densities are sampled between the extremes of the whole batch,
# here between each image's own, so that no image depends on its neighbours; and on Swin it estimates one density an
# image, over the pairs of all its windows, where here each window has its own and their mean counts.
PSAQ = SynthesisConfig(
    "psaq",
    iterations=1000,
    rounds=(Round(0.5, 15), Round(0.5, 30)),
    optimiser=Optimiser(0.2, 0.25, (0.5, 0.9), warmup=0.2, restart=True),
    priors=Priors(entropy=1.0),
    variation=Variation(0.05),
    views=Views(diagonal=True, flip=True),
    targets=Targets(1.0),
)

# MimiQ's code: N(0,1) start; AdamW 0.1, weight decay 1e-6, cosine to 0.001 over 2,000 iterations; batches of 16;
# roll by up to 8 in the first half and 16 in the second, each axis by itself; then noise, then colour;
# L = L_IHC + CE + 2.5e-5 TV.
MIMIQ = SynthesisConfig(
    "mimiq",
    iterations=2000,
    rounds=(Round(0.5, 8), Round(0.5, 16)),
    optimiser=Optimiser(0.1, 0.1, (0.9, 0.999), weight_decay=1e-6, floor=0.001),
    priors=Priors(heads=1.0),
    variation=Variation(2.5e-5, None, 16),
    views=Views(noise=0.5, colour=True),
    targets=Targets(1.0),
)

# DFQ-ViT: easy to hard on PSAQ-ViT's losses. The abstract is all that is published of it: crops whose smallest area
# falls from the whole image to 0.08 of it are our reconstruction, and so is everything taken over from PSAQ-ViT.
DFQ_VIT = SynthesisConfig(
    "dfq-vit",
    iterations=1000,
    rounds=(Round(1.0, 0),),
    optimiser=Optimiser(0.2, 0.25, (0.5, 0.9), warmup=0.1),
    priors=Priors(entropy=1.0),
    variation=Variation(0.05),
    views=Views(flip=True, crops=0.08),
    targets=Targets(1.0),
)

# SPDFQ / SARDFQ: Gaussian start, Adam, 1,000 iterations, L = alpha L_APA + L_SL + 0.05 L_TV, K_APA = 5, K_MSR = 4, soft
# logits U(5, 10). Reconstruction: the learning rate and the form of L_TV (PSAQ-ViT's), no roll (a prior has its
# place), and alpha: its authors search 1 .. 1e5 per model; here the term is divided by its own value at the start.
SPDFQ = SynthesisConfig(
    "spdfq",
    iterations=1000,
    rounds=(Round(1.0, 0),),
    optimiser=Optimiser(0.2, 0.25, (0.5, 0.9), warmup=0.1),
    priors=Priors(attention=1.0, normalise=True),
    variation=Variation(0.05),
    views=Views(patches=4),
    targets=Targets(1.0, soft=True),
)

# Ours. Procedural images are natural enough that a short run of small steps from them does more than a long one from
# noise (larger steps, 0.05, undo what is natural in them and cost W4A8 points), and different priors move different
# things: a quarter of the images each for the class alone and for one prior beside it.
_BASE = SynthesisConfig(
    "best: class",
    iterations=40,
    start="procedural",
    rounds=(Round(1.0, 16),),
    optimiser=Optimiser(0.012, 0.012, (0.5, 0.9), warmup=0.1),
    priors=Priors(entropy_form="gaussian", normalise=True),
    views=Views(flip=True),
    targets=Targets(1.0),
)
BEST = SynthesisConfig(
    "best",
    iterations=40,
    mixture=(
        replace(_BASE, method="best: attention", priors=replace(_BASE.priors, attention=1.0), rounds=(Round(1.0, 0),)),
        replace(_BASE, method="best: entropy", priors=replace(_BASE.priors, entropy=1.0)),
        replace(_BASE, method="best: heads", priors=replace(_BASE.priors, heads=1.0)),
        _BASE,
    ),
)

METHODS = {config.method: config for config in (NOISE, PROCEDURAL, PSAQ, MIMIQ, DFQ_VIT, SPDFQ, BEST)}


def find(name: str, *others: str) -> SynthesisConfig:
    """The method called ``name``; ``others`` are names that whoever asks knows besides.

    Raises:
        IntvitError: no such method; near matches are listed.
    """
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, n=3, cutoff=0.3) or list(METHODS)
        raise IntvitError(
            f"unknown method {name!r}",
            where="--method",
            why="known: " + ", ".join([*METHODS, *others]),
            next="near matches: " + ", ".join(near),
        )
    return METHODS[name]


def with_iterations(config: SynthesisConfig, iterations: int) -> SynthesisConfig:
    """The method run for another number of iterations; a mixture's parts in proportion (at least 1 each)."""
    if not config.iterations:
        return config
    parts = tuple(
        with_iterations(part, max(1, math.ceil(part.iterations * iterations / config.iterations)))
        for part in config.mixture
    )
    return replace(config, iterations=iterations, mixture=parts)


def as_record(config: SynthesisConfig) -> dict[str, Any]:
    """The method as JSON values, which name what it makes. A prior of one's own counts by its file's name and hash,
    wherever the file lies.
    """
    found = asdict(config)
    for part in (found, *found["mixture"]):
        part["priors"]["own"] = [own | {"file": Path(own["file"]).name} for own in part["priors"]["own"]]
    return found
