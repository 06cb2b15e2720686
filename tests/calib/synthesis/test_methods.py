"""Methods as data: the published numbers, and refusals with near matches."""

from __future__ import annotations

import pytest

from calib.errors import IntvitError
from calib.synthesis.methods import METHODS, NOISE, PSAQ, find
from tests.calib.networks import complete


def test_psaq_has_the_published_numbers() -> None:
    assert PSAQ.iterations == 1000 and PSAQ.warmup == 0.2  # two rounds of 500, 100 of them warming up
    assert [(part.share, part.roll) for part in PSAQ.rounds] == [(0.5, 15), (0.5, 30)]
    assert (PSAQ.learning_rate, PSAQ.swin_learning_rate, PSAQ.betas) == (0.2, 0.25, (0.5, 0.9))
    assert (PSAQ.entropy, PSAQ.class_loss, PSAQ.tv, PSAQ.tv_target) == (1.0, 1.0, 0.05, (2500.0, 3000.0))


def test_noise_optimises_nothing() -> None:
    assert NOISE.iterations == 0 and not NOISE.rounds


@pytest.mark.parametrize("config", METHODS.values(), ids=METHODS)
def test_rounds_are_the_whole(config) -> None:
    assert bool(config.iterations) == bool(config.rounds)
    assert not config.rounds or sum(part.share for part in config.rounds) == pytest.approx(1)
    assert find(config.method) is config


@pytest.mark.parametrize(("text", "near"), [("psaqq", "psaq"), ("nois", "noise"), ("xyzzy", "psaq"), ("", "noise")])
def test_near_matches(text: str, near: str) -> None:
    with pytest.raises(IntvitError, match="unknown method") as caught:
        find(text)
    error = complete(caught.value)
    assert near in error.next
    assert error.why == "known: noise, psaq, real"
