"""Every recipe end to end on vit_digits: what its own steps leave in the bundle, and that the engine agrees with it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from calib import recipes
from calib.align.config import FORMS, DistillConfig
from calib.models import load
from runtime import cli
from runtime.bundle import Bundle
from runtime.parity import check
from toolchain.build import main

SMALL = ["--model", "vit_digits", "--iterations", "2", "--images", "16", "--budget", "fast"]
OWN_STEP = {"psaq": None, "mimiq": "distill", "dfq-vit": None, "spdfq": "reconstruct"}


def built(root: Path, *options: str) -> Bundle:
    arguments = [*SMALL, *options, "--out", str(root / "out"), "--cache", str(root / "cache")]
    assert cli.invoke(main, arguments) == 0
    return Bundle.open(root / "out")


def report(bundle: Bundle) -> list[dict[str, Any]]:
    return bundle.manifest.provenance["calibration"]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("scheme", ["w4a8", pytest.param("w4a4", marks=pytest.mark.slow)])
@pytest.mark.parametrize("method", list(OWN_STEP))
def test_the_engine_of_every_published_recipe_has_the_integers_of_its_model(
    method: str, scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What they learn is cut short: the engine has to follow wherever it leads."""
    spdfq = replace(recipes.PUBLISHED["spdfq"], reconstruct=replace(recipes.SPDFQ_LEARNING, iterations=5))
    monkeypatch.setitem(recipes.PUBLISHED, "spdfq", spdfq)
    mimiq = replace(recipes.PUBLISHED["mimiq"], distill=DistillConfig(epochs=3))
    monkeypatch.setitem(recipes.PUBLISHED, "mimiq", mimiq)
    bundle = built(tmp_path, "--bits", scheme, "--method", method)
    assert check(bundle).ok
    steps = {row["step"] for row in report(bundle)} - {"reparameterise", "quantize"}
    assert steps == ({OWN_STEP[method]} if OWN_STEP[method] else set())
    assert {row.get("correction") for row in report(bundle) if row["step"] == "quantize"} == (
        {"bias"} if method == "dfq-vit" else {None}
    )


@pytest.mark.timeout(300)
@pytest.mark.parametrize("form", [form for form in FORMS if form != "bias"])
def test_the_engine_of_every_correction_has_the_integers_of_its_model(form: str, tmp_path: Path) -> None:
    bundle = built(tmp_path, "--bits", "w4a8", "--method", "procedural", "--correction", form)
    assert check(bundle).ok
    found = {row.get("correction") for row in report(bundle) if row["step"] == "quantize"}
    assert found == ({None} if form == "none" else {form})


def test_the_layers_are_reported_when_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    built(tmp_path, "--bits", "w4a8", "--method", "noise", "--report-layers")
    rows = json.loads((tmp_path / "out-layers.json").read_text())
    assert {row["step"] for row in rows} == {"reparameterise", "round", "gptq", "correct (bias)"}
    assert next(row["layer"] for row in rows if row["step"] == "round") == "patch_embed.proj"
    assert all(row["after_db"] > 0 for row in rows)
    assert "SQNR on held-out images" in capsys.readouterr().out


def test_bits_chosen_layer_by_layer_run_as_chosen(tmp_path: Path) -> None:
    bundle = built(tmp_path, "--bits", "auto:6", "--method", "noise")
    assert check(bundle).ok and bundle.manifest.scheme == "auto:6"
    assert {layer.weight_bits for layer in bundle.manifest.layers} == {4, 8}
    chosen = {row["layer"]: row["weight_bits"] for row in report(bundle) if row["step"] == "allocate"}
    assert {layer.name: layer.weight_bits for layer in bundle.manifest.layers if layer.name in chosen} == chosen


@pytest.mark.timeout(300)
def test_a_layer_behind_a_massive_neuron_runs_in_eight_bits_and_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = load("vit_digits").module.state_dict()
    state["blocks.1.mlp.fc1.weight"][3] *= 300
    save_file(state, tmp_path / "massive.safetensors")
    options = ["--method", "procedural", "--checkpoint", str(tmp_path / "massive.safetensors")]
    bundle = built(tmp_path, "--bits", "w4a4", "--target", "ort,openvino,tensorrt", *options)
    (row,) = [row for row in report(bundle) if row["step"] == "widen"]
    assert row["layer"] == "blocks.1.mlp.fc2" and row["channel"] == 3
    widths = {layer.name: (layer.weight_bits, layer.activation_bits) for layer in bundle.manifest.layers}
    assert [name for name, bits in widths.items() if bits == (8, 8)] == ["patch_embed.proj", row["layer"]]
    assert check(bundle).ok and check(bundle, backend="openvino").ok
    said = capsys.readouterr().out
    assert "blocks.1.mlp.fc2 keeps 8 bits" in said and "w4a4+uniform leaves none wider" in said
