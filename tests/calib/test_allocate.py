"""Bits a layer: within the average, where they help most."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calib import calibrate as calibration
from calib.align.config import CalibrateConfig, LayerConfig
from calib.allocate import allocate
from calib.calibrate import calibrate
from calib.errors import IntvitError
from calib.scheme import Scheme, parse
from calib.sensitivity import Sensitivity
from tests.calib.networks import VIT_SIDE, pictures, spec_of, tiny_vit


def layer(name: str, weights: int, divergence: float) -> Sensitivity:
    return Sensitivity(name, weights, 4, 8, divergence, 20.0, 0.0)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 50), st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=7),
    st.floats(4, 8),
)
def test_the_average_is_kept_and_no_single_layer_would_have_been_a_better_choice(
    layers: list[tuple[int, float, float]], average: float
) -> None:
    low = [layer(str(k), weights, cost) for k, (weights, cost, _) in enumerate(layers)]
    high = [layer(str(k), weights, cost) for k, (weights, _, cost) in enumerate(layers)]
    bits = allocate(low, high, average)
    total = sum(weights for weights, *_ in layers)
    assert sum(bits[each.layer] * each.weights for each in low) / total <= average + 1e-4
    gains = {str(k): max(cost - wide, 0) for k, (_, cost, wide) in enumerate(layers)}
    found = sum(gains[name] for name, width in bits.items() if width == 8)
    best = 0.0
    for chosen in product((0, 1), repeat=len(layers)):
        if sum(w * c for (w, *_), c in zip(layers, chosen, strict=True)) <= (average - 4) / 4 * total + 1e-6:
            best = max(best, sum(gains[str(k)] * c for k, c in enumerate(chosen)))
    single = max((gains[each.layer] for each in low if each.weights <= (average - 4) / 4 * total), default=0.0)
    assert found <= best + 1e-9 and 2 * max(found, single) >= best - 1e-9  # Dantzig's bound for the greedy knapsack


def test_the_ends_of_the_range_are_plain_schemes() -> None:
    low, high = [layer("a", 10, 1.0), layer("b", 20, 2.0)], [layer("a", 10, 0.1), layer("b", 20, 0.1)]
    assert set(allocate(low, high, 4.0).values()) == {4} and set(allocate(low, high, 8.0).values()) == {8}


def test_the_grammar() -> None:
    assert parse("auto:5.5") == Scheme(4, 8, average=5.5) and str(parse("AUTO:5")) == "auto:5"
    assert parse(str(parse("auto:4.25"))).average == 4.25
    for wrong in ("auto:3", "auto:9", "auto:", "auto:5+attn8", "auto"):
        with pytest.raises(IntvitError):
            parse(wrong)


def test_a_mixed_model_calibrates_saves_and_loads(tmp_path: Path) -> None:
    model, images = tiny_vit(), pictures(16, VIT_SIDE)
    config = CalibrateConfig(LayerConfig(rows=256), fold_rows=256)
    made = calibrate(model, spec_of(model, VIT_SIDE), parse("auto:6"), images, config)
    bits = {name: each.weight_bits for name, each in made.layers().items()}
    assert bits["patch_embed.proj"] == 8 and {4, 8} == set(bits.values())
    linear = {name: each.weight.numel() for name, each in made.layers().items() if name != "patch_embed.proj"}
    mean = sum(bits[name] * count for name, count in linear.items()) / sum(linear.values())
    assert 5 < mean <= 6
    rows = {row["layer"]: row["weight_bits"] for row in made.report if row["step"] == "allocate"}
    assert rows == {name: bits[name] for name in linear} and "allocate" in made.seconds
    for each in made.layers().values():
        low, high = {4: (-8, 7), 8: (-127, 127)}[each.weight_bits]
        assert low <= int(each.weight_q.min()) and int(each.weight_q.max()) <= high
    made.save(tmp_path)
    kept = json.loads((tmp_path / "model.json").read_text())
    assert kept["weight_bits"] == bits and kept["scheme"] == "auto:6"


def test_a_resumed_calibration_reports_every_layer_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = tiny_vit(), pictures(16, VIT_SIDE)
    config = CalibrateConfig(LayerConfig(rows=256), fold_rows=256)
    whole = calibrate(model, spec_of(model, VIT_SIDE), parse("auto:6"), images, config)
    monkeypatch.setattr(calibration, "SAVE_EVERY_S", 0.0)

    def stop(done: int, _total: int, _name: str) -> None:
        if done == 2:
            raise KeyboardInterrupt

    arguments = (model, spec_of(model, VIT_SIDE), parse("auto:6"), images, config)
    with pytest.raises(KeyboardInterrupt):
        calibrate(*arguments, progress=stop, checkpoints=tmp_path / "work")
    assert calibrate(*arguments, checkpoints=tmp_path / "work").report == whole.report
