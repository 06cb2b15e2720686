"""Methods as data: the published numbers, and refusals with near matches."""

from __future__ import annotations

from dataclasses import replace

import pytest

from calib.errors import IntvitError
from calib.synthesis.methods import (
    BEST,
    DFQ_VIT,
    METHODS,
    MIMIQ,
    NOISE,
    PROCEDURAL,
    PSAQ,
    SPDFQ,
    Round,
    SynthesisConfig,
    Views,
    find,
    with_iterations,
)
from tests.calib.networks import complete

SINGLE = {config.method: config for whole in METHODS.values() for config in whole.mixture or (whole,)}


def test_psaq_has_the_published_numbers() -> None:
    """Two rounds of 500, 100 of them warming up; nothing beside the three losses."""
    assert (PSAQ.images, PSAQ.iterations, PSAQ.start) == (32, 1000, "noise")
    assert PSAQ.rounds == (Round(0.5, 15), Round(0.5, 30))
    optimiser = PSAQ.optimiser
    assert (optimiser.rate, optimiser.swin_rate, optimiser.betas) == (0.2, 0.25, (0.5, 0.9))
    assert (optimiser.warmup, optimiser.restart, optimiser.floor, optimiser.weight_decay) == (0.2, True, 0.0, 0.0)
    assert (PSAQ.priors.entropy, PSAQ.priors.entropy_form, PSAQ.priors.rows) == (1.0, "kde", None)
    assert (PSAQ.priors.heads, PSAQ.priors.attention) == (0.0, 0.0)
    assert (PSAQ.variation.weight, PSAQ.variation.target, PSAQ.variation.batch) == (0.05, (2500.0, 3000.0), 32)
    assert (PSAQ.targets.weight, PSAQ.targets.soft) == (1.0, False)
    assert PSAQ.views == Views(diagonal=True, flip=True)


def test_mimiq_has_the_published_numbers() -> None:
    assert (MIMIQ.iterations, MIMIQ.start) == (2000, "noise")
    assert MIMIQ.rounds == (Round(0.5, 8), Round(0.5, 16))
    optimiser = MIMIQ.optimiser
    assert (optimiser.rate, optimiser.swin_rate, optimiser.betas) == (0.1, 0.1, (0.9, 0.999))
    assert (optimiser.weight_decay, optimiser.floor) == (1e-6, 0.001)
    assert (optimiser.warmup, optimiser.restart) == (0.0, False)
    assert (MIMIQ.priors.heads, MIMIQ.priors.normalise, MIMIQ.priors.rows) == (1.0, False, None)
    assert (MIMIQ.priors.entropy, MIMIQ.priors.attention) == (0.0, 0.0)
    assert (MIMIQ.variation.weight, MIMIQ.variation.target, MIMIQ.variation.batch) == (2.5e-5, None, 16)
    assert (MIMIQ.targets.weight, MIMIQ.targets.soft) == (1.0, False)
    assert MIMIQ.views == Views(noise=0.5, colour=True)  # the flip is off


def test_spdfq_has_the_published_numbers() -> None:
    assert (SPDFQ.images, SPDFQ.iterations, SPDFQ.start) == (32, 1000, "noise")
    assert SPDFQ.priors.components == 5 and SPDFQ.priors.attention > 0
    assert (SPDFQ.priors.entropy, SPDFQ.priors.heads) == (0.0, 0.0)
    assert SPDFQ.views.patches == 4
    assert (SPDFQ.targets.soft, SPDFQ.targets.low, SPDFQ.targets.high) == (True, 5.0, 10.0)
    assert (SPDFQ.targets.weight, SPDFQ.variation.weight) == (1.0, 0.05)
    assert SPDFQ.optimiser.weight_decay == 0.0  # Adam


def test_dfq_vit_is_psaqs_losses_from_easy_to_hard() -> None:
    assert (DFQ_VIT.iterations, DFQ_VIT.views.crops, DFQ_VIT.views.crop_ratio) == (1000, 0.08, 0.75)
    assert (DFQ_VIT.priors, DFQ_VIT.variation, DFQ_VIT.targets) == (PSAQ.priors, PSAQ.variation, PSAQ.targets)


def test_noise_and_procedural_images_are_drawn_only() -> None:
    for config, begun in ((NOISE, "noise"), (PROCEDURAL, "procedural")):
        assert (config.iterations, config.rounds, config.start) == (0, (), begun)


def test_the_best_has_no_part_that_optimises_nothing() -> None:
    assert len(BEST.mixture) > 1
    for part in BEST.mixture:
        assert part.iterations and not part.mixture
        assert part.targets.weight or part.priors.entropy or part.priors.heads or part.priors.attention
    assert len({part.method for part in BEST.mixture}) == len(BEST.mixture)


@pytest.mark.parametrize("config", SINGLE.values(), ids=SINGLE)
def test_rounds_are_the_whole(config: SynthesisConfig) -> None:
    assert bool(config.iterations) == bool(config.rounds)
    assert not config.rounds or sum(part.share for part in config.rounds) == pytest.approx(1)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_found_by_its_name(name: str) -> None:
    assert find(name) is METHODS[name] and METHODS[name].method == name


@pytest.mark.parametrize(
    ("text", "near"),
    [("psaqq", "psaq"), ("nois", "noise"), ("mimic", "mimiq"), ("dfqvit", "dfq-vit"), ("xyzzy", "psaq"), ("", "noise")],
)
def test_near_matches(text: str, near: str) -> None:
    with pytest.raises(IntvitError, match="unknown method") as caught:
        find(text)
    error = complete(caught.value)
    assert near in error.next
    assert error.why == "known: " + ", ".join(METHODS)


def test_other_iterations_change_nothing_else() -> None:
    assert with_iterations(PSAQ, 10) == replace(PSAQ, iterations=10)
    for config in (NOISE, PROCEDURAL):
        assert with_iterations(config, 10) is config


def test_a_mixtures_parts_are_scaled_in_proportion_and_keep_one_iteration_at_least() -> None:
    long, short, none = (replace(PSAQ, method=str(count), iterations=count) for count in (60, 20, 0))
    whole = replace(PSAQ, iterations=60, mixture=(long, short, none))

    def parts(iterations: int) -> list[int]:
        changed = with_iterations(whole, iterations)
        assert changed.iterations == iterations
        assert replace(changed, iterations=60, mixture=whole.mixture) == whole
        return [part.iterations for part in changed.mixture]

    assert parts(60) == [60, 20, 0] and parts(30) == [30, 10, 0] and parts(120) == [120, 40, 0]
    assert parts(4) == [4, 2, 0] and parts(1) == [1, 1, 0]  # what is only drawn stays so
