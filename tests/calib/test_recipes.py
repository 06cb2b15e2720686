"""Methods by name."""

from __future__ import annotations

from dataclasses import replace

import pytest

from calib.align.config import CorrectionConfig
from calib.errors import IntvitError
from calib.recipes import BUDGETS, DEFAULT_BUDGET, DEFAULT_METHOD, PUBLISHED, REAL, methods, recipe
from calib.synthesis.methods import METHODS
from tests.calib.networks import complete


def test_every_method_has_a_recipe() -> None:
    assert methods() == [*METHODS, "real"]
    for name in methods():
        made = recipe(name)
        assert made.method == name
        assert made.align == PUBLISHED.get(name, BUDGETS[DEFAULT_BUDGET])
        assert made.synthesis is (None if name == REAL else METHODS[name])


def test_only_real_reads_real_images() -> None:
    assert [name for name in methods() if not recipe(name).data_free] == ["real"]
    assert recipe(DEFAULT_METHOD).data_free


def test_an_unknown_method_lists_near_matches() -> None:
    with pytest.raises(IntvitError, match="unknown method 'psak'") as caught:
        recipe("psak")
    assert "psaq" in caught.value.next and "real" in caught.value.why


def test_a_budget_buys_steps_of_calibration() -> None:
    fast, default, most = (recipe("best", name).align for name in ("fast", "default", "max"))
    assert fast.reconstruct is None and fast.layer.rounding == "gptq"
    assert default.reconstruct is not None and most.reconstruct is not None
    assert most.reconstruct.iterations > default.reconstruct.iterations
    assert replace(default, reconstruct=None) == fast
    assert recipe("psaq", "max").align == recipe("psaq", "fast").align == PUBLISHED["psaq"]
    assert recipe("real", "max").align == most


def test_an_unknown_budget_is_refused_with_the_known_ones() -> None:
    with pytest.raises(IntvitError, match="unknown budget 'fats'") as caught:
        recipe("best", "fats")
    assert "did you mean fast?" in complete(caught.value).next and "max" in caught.value.next


def test_a_published_method_adds_its_own_step_and_no_other() -> None:
    base = PUBLISHED["psaq"]
    assert base.fold == "shift" and base.layer.rounding == "nearest" and base.layer.ranges == "minmax"
    assert base.layer.correction.form == "none" and base.reconstruct is None and base.distill is None
    mimiq, dfq, spdfq = (recipe(name).align for name in ("mimiq", "dfq-vit", "spdfq"))
    assert mimiq.distill is not None and mimiq.layer.ranges == "lsq" and mimiq.fold == "off"
    assert replace(mimiq, distill=None, fold="shift", layer=base.layer) == base
    assert replace(mimiq.layer, ranges="minmax") == base.layer
    assert spdfq.reconstruct is not None and spdfq.fold == "off"
    assert replace(spdfq, reconstruct=None, fold="shift", layer=base.layer) == base
    assert replace(spdfq.layer, ranges="minmax") == base.layer and spdfq.layer.ranges == "mse"
    corrected = replace(dfq.layer, correction=base.layer.correction)
    assert dfq.layer.correction == CorrectionConfig("bias", "float") and replace(dfq, layer=corrected) == base


def test_a_correction_can_be_asked_for_by_name() -> None:
    plain, chosen = recipe("dfq-vit").align, recipe("dfq-vit", correction="diag").align
    assert chosen.layer.correction == replace(plain.layer.correction, form="diag")
    assert recipe("best", correction="none").align.layer.correction.form == "none"
    with pytest.raises(IntvitError, match="unknown correction 'diagg'") as caught:
        recipe("best", correction="diagg")
    assert "did you mean diag?" in complete(caught.value).next
