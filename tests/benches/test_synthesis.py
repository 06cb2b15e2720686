"""The synthesis benches: which rows are measured, how sets are named and kept, what the tables say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benches import exam as exams
from benches import synthesis_accuracy, synthesis_sets, synthesis_tables
from benches.exam import Exam, answers, drawn
from benches.synthesis_ablation import ABLATION
from benches.synthesis_accuracy import Cell, cells, configuration
from benches.synthesis_speed import METHODS as SINGLE
from benches.synthesis_speed import iteration, plain, timed
from calib.align.config import CalibrateConfig
from calib.calibrate import calibrate
from calib.models import load
from calib.recipes import BUDGETS
from calib.synthesis.methods import BEST, METHODS, PSAQ, with_iterations
from tests.calib.networks import pictures


def test_cells_come_seed_by_seed() -> None:
    made = list(cells(["noise", "real"], [32, 128], [0, 1], ["w4a8"]))
    assert len(made) == 8
    assert made[0] == Cell("noise", 32, 0, "w4a8") and [cell.seed for cell in made] == [0] * 4 + [1] * 4


def test_configurations() -> None:
    assert configuration("psaq", None) is PSAQ
    assert configuration("psaq", 50) == with_iterations(PSAQ, 50)
    assert configuration("spdfq: APA", None) is ABLATION["spdfq: APA"]


def test_every_ablation_row_differs_from_its_method_in_what_it_says() -> None:
    assert not ABLATION["spdfq: APA"].views.patches and ABLATION["spdfq: APA"].priors.attention
    assert not ABLATION["spdfq: MSR + SL"].priors.attention and ABLATION["spdfq: MSR + SL"].targets.soft
    assert ABLATION["dfq-vit: no E2H"].views.crops is None
    assert not ABLATION["mimiq: no IHC"].priors.heads
    assert len(set(map(str, ABLATION.values()))) == len(ABLATION)


def test_a_set_is_made_once_and_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthesis_sets, "SETS", tmp_path)
    digits = load("vit_digits")
    config = with_iterations(replace(PSAQ, images=4, batch=2), 2)
    four = synthesis_sets.get(digits, config, 0)
    monkeypatch.setattr(synthesis_sets, "synthesise", None)  # from here on nothing may be made
    two = synthesis_sets.get(digits, replace(config, images=2), 0)
    assert torch.equal(two.pixels, four.pixels[:2]) and two.about["images"] == 4
    assert synthesis_sets.name_of(digits, config, 0) != synthesis_sets.name_of(digits, config, 1)
    assert synthesis_sets.name_of(digits, config, 0) != synthesis_sets.name_of(digits, with_iterations(config, 3), 0)
    row = synthesis_sets.claims(digits, four, 0, replace(METHODS["spdfq"], images=4))
    assert 0 <= row["agreement"] <= 1 and 0 < row["head_similarity"] < 1 and row["prior_distance"] > 0


def test_claims_of_images_without_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthesis_sets, "SETS", tmp_path)
    digits = load("vit_digits")
    noise = synthesis_sets.get(digits, replace(METHODS["noise"], images=2), 0)
    assert synthesis_sets.claims(digits, noise, 0, METHODS["spdfq"])["agreement"] is None


def test_photographs_are_a_set_like_others(monkeypatch: pytest.MonkeyPatch) -> None:
    digits, photos, labels = load("vit_digits"), pictures(20, 32).clamp(-1, 1), torch.arange(20) % 10
    monkeypatch.setattr(exams, "photographs", lambda loaded: (photos, labels))
    found = exams.photograph_set(digits, 4, 7)
    chosen = drawn(20, 4, 7)
    assert found.classes[:, 0].tolist() == labels[chosen].tolist()
    expected = digits.spec.denormalise(photos[chosen]).clamp(0, 1)
    assert found.pixels.dtype == torch.float16 and torch.allclose(found.pixels.float(), expected, atol=1e-3)
    row = synthesis_sets.claims(digits, found, 7, METHODS["spdfq"])
    assert row["method"] == "real" and row["images"] == 4 and 0 <= row["agreement"] <= 1


@pytest.mark.parametrize("method", SINGLE)
def test_an_iteration_moves_the_images(method: str) -> None:
    digits = load("vit_digits")
    calls = {"plain": plain(digits.module, digits, 2, "cpu"), "ours": iteration(digits, SINGLE[method], 2, "cpu")}
    times = timed(calls, 3, "cpu")
    assert times.keys() == calls.keys() and all(len(each) == 3 and min(each) > 0 for each in times.values())


def test_best_is_in_the_table_in_its_place() -> None:
    common = {"iterations": 60, "images": 32, "scheme": "w4a8"}
    rows = [
        {**common, "method": method, "seed": seed, "top1": top1, "divergence": divergence}
        for method, seed, top1, divergence in [
            ("real", 0, 81.0, 0.25),
            ("best", 0, 80.0, 0.25),
            ("best", 1, 82.0, 0.5),
            ("noise", 0, 60.0, 1.0),
        ]
    ]
    rows.append({**rows[0], "images": 128})
    text = synthesis_tables.accuracy({"rows": rows, "float_top1": 87.5, "budget": "fast"})
    assert "87.5" in text and "fast" in text
    lines = text.splitlines()[-3:]
    assert [line.split("|")[1].strip() for line in lines] == ["noise", "best", "real"]
    assert lines[1].endswith("| 81.0 ± 1.4 (2); 0.375 | – |") and lines[2].endswith("| 81.0; 0.250 | 81.0; 0.250 |")


@pytest.mark.parametrize("given", [False, True])
def test_a_row_is_the_fixed_calibration_on_these_images(given: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    digits, photos = load("vit_digits"), pictures(20, 32).clamp(-1, 1)
    exam = Exam(photos, digits.module(photos).argmax(1).detach(), answers(digits.module, photos))
    asked: list[CalibrateConfig] = []

    def noted(*arguments: Any) -> Any:
        asked.append(arguments[-1])
        return calibrate(*arguments)

    monkeypatch.setattr(synthesis_accuracy, "calibrate", noted)
    pixels = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(5)).half() if given else None
    row = synthesis_accuracy.measure(digits, exam, Cell("noise" if given else "real", 4, 7, "w8a8"), pixels)
    assert asked == [replace(BUDGETS["fast"], seed=7, gelu_scale=0.0)]
    assert row["top1"] == 100 * row["hits"].count("1") / 20 and row["top1"] > 50 and row["divergence"] > 0
    unseen = [hit == "1" for hit, seen in zip(row["hits"], drawn(20, 4, 7).tolist(), strict=True) if not seen]
    assert row.get("unseen_top1") == (None if given else 100 * sum(unseen) / 16)


def test_sets_and_speed_tables() -> None:
    entry = {
        "method": BEST.method, "iterations": 60, "seed": 0, "images": 128, "agreement": 0.96, "head_similarity": 0.5,
        "patch_entropy": -0.1, "prior_distance": 1.5e-3, "seconds": 99.5,
    }  # fmt: skip
    last = synthesis_tables.sets({"sets": [entry]}).splitlines()[-1]
    assert last == "| best | 60 | 0 | 128 | 96.0 | 0.500 | -0.100 | 1.500e-3 | 100 |"
    row = {"device": "cpu", "threads": 1, "model": "vit_t", "batch": 16, "method": "psaq", "ms": 400.0, "ratio": 1.5}
    text = synthesis_tables.speed({"rows": [{**row, "images_per_minute": 2.4}]})
    assert text.splitlines()[-1] == "| cpu, 1 thread | vit_t | 16 | psaq | 400.0 | 1.50 | 2.40 |"
