"""The calibration bench: what a row holds, and what the table makes of rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benches import calibration_accuracy
from benches.calibration_accuracy import measure
from benches.calibration_tables import accuracy, accuracy_before, headline, published
from benches.engines import engine_logits
from benches.exam import Exam, answers, drawn
from calib.align.config import CalibrateConfig
from calib.calibrate import calibrate
from calib.models import load
from calib.recipes import BUDGETS, Recipe
from calib.scheme import parse
from tests.calib.networks import pictures


def row(**changes: Any) -> dict[str, Any]:
    base = {"scheme": "w4a8", "method": "best", "images": 128, "budget": "default", "correction": None, "seed": 0}
    return base | {"top1": 84.0, "calibrate_seconds": 100.0, "peak_gib": 2.0} | changes


def test_the_table_takes_means_over_seeds_and_puts_wide_weights_first() -> None:
    rows = [
        row(scheme="w3a8", top1=70.0),
        row(top1=84.0, divergence=0.1, fake_quant_top1=84.5),
        row(top1=86.0, seed=1, calibrate_seconds=200.0, peak_gib=3.0, divergence=0.2, fake_quant_top1=85.5),
        row(method="real", top1=85.0, unseen_top1=84.5),
        {key: value for key, value in row(correction="diag", images=32).items() if key != "calibrate_seconds"},
        row(method="psaq", iterations=100),
    ]
    lines = accuracy({"float_top1": 87.54, "rows": rows}).splitlines()
    assert lines[0].endswith("87.5.")
    assert lines[4] == "| w4a8 | best | 32 | default | diag | 1 | 84.0 | – | – | – | – | 2.0 |"
    assert lines[5] == "| w4a8 | best | 128 | default | own | 2 | 85.0 ± 1.4 | 0.150 | 85.0 ± 0.7 | – | 150 | 3.0 |"
    assert lines[6] == "| w4a8 | real | 128 | default | own | 1 | 85.0 | – | – | 84.5 | 100 | 2.0 |"
    assert lines[7].startswith("| w3a8 | best") and len(lines) == 8


def test_published_recipes_stand_in_the_order_of_their_papers() -> None:
    base = {"iterations": 100, "images": 32}
    rows = [
        row(method="dfq-vit", **base, correction="full", top1=5.0),
        row(method="dfq-vit", **base, top1=60.0),
        row(method="dfq-vit", **base, correction="none", top1=30.0, calibrate_seconds=8.0),
        row(method="dfq-vit", **base, correction="none", scheme="w4a4", top1=1.0, divergence=5.0),
        row(method="spdfq", **base, top1=45.0, divergence=2.0),
        row(method="spdfq", **base, top1=47.0, divergence=2.5, seed=1),
        row(method="spdfq: APA", **base, top1=44.0),
        row(method="an own one", **base, top1=3.0),
        row(method="spdfq (symmetric levels)", **base, top1=42.0),
        row(top1=85.0),
    ]
    lines = published({"float_top1": 87.54, "rows": rows}).splitlines()
    assert lines[2] == "| recipe | correction | images | iterations | w4a8 | w4a4 | calibration s |"
    assert lines[4:] == [
        "| spdfq: APA | own | 32 | 100 | 44.0 | – | 100 to 100 |",
        "| spdfq | own | 32 | 100 | 46.0 ± 1.4 (2.25) | – | 100 to 100 |",
        "| dfq-vit | none | 32 | 100 | 30.0 | 1.0 (5.00) | 8 to 100 |",
        "| dfq-vit | own | 32 | 100 | 60.0 | – | 100 to 100 |",
        "| dfq-vit | full | 32 | 100 | 5.0 | – | 100 to 100 |",
        "| an own one | own | 32 | 100 | 3.0 | – | 100 to 100 |",
    ]


def test_rows_of_what_was_given_up_have_a_table_of_their_own() -> None:
    record = {"float_top1": 87.54, "rows": [row(), row(method="best (not turned)", top1=83.0)]}
    now, before = accuracy(record).splitlines(), accuracy_before(record).splitlines()
    assert now[4:] == ["| w4a8 | best | 128 | default | own | 1 | 84.0 | – | – | – | 100 | 2.0 |"]
    assert before[4:] == ["| w4a8 | best (not turned) | 128 | default | own | 1 | 83.0 | – | – | – | 100 | 2.0 |"]


def test_the_headline_leaves_out_what_is_not_comparable() -> None:
    rows = [
        row(top1=84.0),
        row(top1=86.0, seed=1),
        row(method="real", top1=85.0),
        row(scheme="w3a8", top1=70.0),
        *(row(top1=1.0, **other) for other in ({"images": 512}, {"budget": "fast"}, {"correction": "none"})),
        *(row(top1=1.0, **other) for other in ({"method": "psaq"}, {"method": "best", "iterations": 9})),
    ]
    lines = headline({"float_top1": 87.54, "rows": rows}).splitlines()
    assert lines[2:] == ["| w4a8 | 87.5 | 85.0 ± 1.4 (2) | 85.0 (1) |", "| w3a8 | 87.5 | 70.0 (1) | – |"]


def test_photographs_are_drawn_by_seed() -> None:
    one, again, other = drawn(50, 8, 0), drawn(50, 8, 0), drawn(50, 8, 1)
    assert torch.equal(one, again) and not torch.equal(one, other) and one.shape == (50,) and int(one.sum()) == 8


@pytest.mark.parametrize("method", ["noise", "real"])
def test_a_row_is_the_engine_on_every_picture(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    digits, photos = load("vit_digits"), pictures(20, 32).clamp(-1, 1)
    labels = digits.module(photos).argmax(1).detach()

    def plain(name: str, budget: str, correction: str | None) -> Recipe:
        found = calibration_accuracy.methods().index(name)
        assert found >= 0 and budget in BUDGETS
        from calib.synthesis.methods import NOISE

        return Recipe(name, None if name == "real" else NOISE, CalibrateConfig())

    monkeypatch.setattr(calibration_accuracy, "recipe", plain)
    asked = {"scheme": "w8a8", "method": method, "images": 4, "iterations": None}
    asked |= {"budget": "fast", "correction": None, "seed": 0}
    made = measure(digits, Exam(photos, labels, answers(digits.module, photos)), asked, "cpu")
    assert made["top1"] == 100 * made["hits"].count("1") / 20 and made["top1"] > 50
    assert ("unseen_top1" in made) == (method == "real") and made["blocks"] == 0 and made["peak_gib"] > 0
    assert abs(made["fake_quant_top1"] - made["top1"]) <= 10 and 0 < made["divergence"] < 1


def test_the_divergence_is_that_of_the_definition() -> None:
    ours, theirs = torch.tensor([[0.0, 1.0], [2.0, 0.0]]), torch.tensor([[1.0, 0.0], [2.0, 0.0]])
    p, q = theirs.double().softmax(1), ours.double().softmax(1)
    by_hand = sum(float(a * (a / b).log()) for a, b in zip(p.flatten(), q.flatten(), strict=True)) / 2
    assert Exam(torch.empty(2, 0), torch.tensor([1, 0]), theirs).divergence(ours) == pytest.approx(by_hand)


def test_engine_logits_are_the_engines() -> None:
    digits, images = load("vit_digits"), pictures(5, 32)
    model = calibrate(digits.module, digits.spec, parse("w8a8"), images)
    found = torch.from_numpy(engine_logits(model, images, threads=1, batch=2))
    assert found.shape == (5, 10)
    assert torch.allclose(found, model.logits(images), atol=0.05 * float(found.abs().max()))
