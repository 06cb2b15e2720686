"""A clean bundle parts nowhere; a fault in one graph parts the ladder at that graph's rung, at the tap after it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from runtime import cli
from runtime import parity as verb
from runtime.bundle import Bundle, write_manifest
from runtime.errors import IntvitError
from runtime.ladder import climb
from tests.runtime.planted import CANONICAL, DIALECT, FLOAT, Change, attribute, number, plant, plant_in_engine
from tests.runtime.tiny import Spec, make_bundle, rehash

TAPS = ["embed", "b0.fc1", "b0.fc2", "head"]


def scaled(factor: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda value: value * np.float32(factor)


@pytest.mark.parametrize("int4", [False, True])
def test_a_clean_bundle_parts_nowhere(tmp_path: Path, int4: bool) -> None:
    result = climb(Bundle.open(make_bundle(tmp_path, Spec(int4=int4, depth=2))), threads=1)
    assert result.ok and result.verdict.startswith("no rung parts")
    assert [step.rung for step in result.steps] == ["float", "fake-quant", "canonical", "dialect", "engine"]
    assert [step.against for step in result.steps][1:] == [step.rung for step in result.steps][:-1]
    float_step, fake_quant, canonical, dialect, engine = result.steps
    assert float_step.logits_sqnr_db > 100 and 0 < fake_quant.logits_sqnr_db < 60
    assert not float_step.taps and not fake_quant.taps
    for step in (canonical, dialect, engine):
        assert [tap.name for tap in step.taps] == ["embed", "b0.fc1", "b0.fc2", "b1.fc1", "b1.fc2", "head"]
        assert step.logits_sqnr_db > 80
    assert dialect.exact and all(tap.must_be_exact for tap in dialect.taps)  # its graph is the canonical one here
    assert [tap.must_be_exact for tap in engine.taps] == [True, *[False] * 5]


@pytest.mark.parametrize(
    ("graph", "change", "rung", "tap"),
    [
        (DIALECT, number("b0.fc1.wscale", scaled(1.02)), "dialect", "b0.fc2"),
        (DIALECT, number("b0.fc2.scale", scaled(1.02)), "dialect", "b0.fc2"),
        (DIALECT, number("embed.bias", scaled(1.5)), "dialect", "b0.fc1"),
        (DIALECT, attribute("b0.norm", "epsilon", 0.1), "dialect", "b0.fc1"),
        (DIALECT, number("head.w8", lambda weight: -weight), "dialect", "logits"),
        (CANONICAL, number("b0.fc2.bias", scaled(1.5)), "canonical", "head"),
        (CANONICAL, number("embed.w8", lambda weight: weight // 2), "canonical", "b0.fc1"),
        (FLOAT, number("embed.w", scaled(1.01)), "float", "logits"),
    ],
)
def test_a_fault_in_one_graph(bundle_copy: Path, graph: str, change: Change, rung: str, tap: str) -> None:
    result = climb(plant(bundle_copy, graph, change), threads=1)
    assert not result.ok
    first = next(step for step in result.steps if step.parts_at)
    assert (first.rung, first.parts_at) == (rung, tap)
    assert result.verdict.startswith(f"{rung} parts from {first.against} at ")
    if tap != "logits":
        found = next(one for one in first.taps if one.name == tap)
        assert f"{found.max_lsb} LSB" in result.verdict and repr(tap) in result.verdict
        assert all(one.ok for one in first.taps[: TAPS.index(tap)])


@pytest.mark.parametrize(
    ("change", "tap"),
    [(number("b0.fc1.wscale", scaled(1.02)), "b0.fc2"), (number("head.bias", lambda bias: bias + 1), "logits")],
)
def test_a_fault_in_the_compiled_engine(bundle_copy: Path, change: Change, tap: str) -> None:
    """What parts is what ONNX Runtime executes: the graphs in the bundle are as they were."""
    result = climb(plant_in_engine(bundle_copy, change), threads=1)
    assert [step.parts_at for step in result.steps] == ["", "", "", "", tap]
    assert result.verdict.startswith("engine parts from dialect at ")


def test_one_lsb_is_too_much_where_the_operations_are_the_same(tmp_path: Path) -> None:
    """A change too small for the general limits, in a bundle with enough values for 0.1 % to be many."""
    root = make_bundle(tmp_path, Spec(width=256, hidden=512), images=16)
    nudged = number("embed.bias", lambda bias: bias * np.float32(1 + 2e-5))
    result = climb(plant(root, DIALECT, nudged), threads=1)
    dialect = result.steps[3]
    assert {tap.max_lsb for tap in dialect.taps} == {0, 1}
    assert all(tap.mismatch_rate < 0.1 for tap in dialect.taps)
    assert dialect.parts_at == "b0.fc1" and "it must be exact" in dialect.verdict


def test_free_figures_carry_a_fault_on(bundle_copy: Path) -> None:
    fault = number("embed.w8", lambda weight: weight // 2)
    dialect = climb(plant(bundle_copy, DIALECT, fault), threads=1).steps[3]
    taps = {tap.name: tap for tap in dialect.taps}
    assert taps["b0.fc2"].max_lsb == 0 and taps["b0.fc2"].free_max_lsb > 1
    assert dialect.free_logits_sqnr_db < dialect.logits_sqnr_db


def test_without_a_canonical_graph(bundle_copy: Path) -> None:
    """A bundle may lack it; one that lists it and has lost it is refused when it is opened."""
    manifest = Bundle.open(bundle_copy).manifest
    (bundle_copy / CANONICAL).unlink()
    with pytest.raises(IntvitError, match="missing"):
        Bundle.open(bundle_copy)
    files = [entry for entry in manifest.files if entry.role != "canonical"]
    write_manifest(bundle_copy, manifest.model_copy(update={"files": files}))
    with pytest.raises(IntvitError, match="no canonical graph") as caught:
        climb(Bundle.open(bundle_copy), threads=1)
    assert "build the bundle again" in caught.value.render()


def test_no_taps_and_an_unknown_backend(bundle_copy: Path) -> None:
    with pytest.raises(IntvitError, match="unknown backend"):
        climb(Bundle.open(bundle_copy), backend="orr")
    rehash(bundle_copy, taps=[])
    with pytest.raises(IntvitError, match="no taps"):
        climb(Bundle.open(bundle_copy))


def test_the_command(bundle_copy: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "ladder.json"
    assert cli.invoke(verb.main, [str(bundle_copy), "--ladder", "--json", str(out), "--threads", "1"]) == 0
    found = json.loads(out.read_text())
    assert found["ok"] is True and found["bundle"] == Bundle.open(bundle_copy).sha256
    assert [rung["rung"] for rung in found["rungs"]] == ["float", "fake-quant", "canonical", "dialect", "engine"]
    assert found["rungs"][3]["exact"] is True and found["rungs"][3]["taps"][0]["exact"] is True
    assert "no rung parts" in capfd.readouterr().out
    plant(bundle_copy, DIALECT, number("b0.fc1.wscale", scaled(1.02)))
    assert cli.invoke(verb.main, [str(bundle_copy), "--ladder", "--json", str(out), "--threads", "1"]) == 1
    assert json.loads(out.read_text())["rungs"][3]["parts_at"] == "b0.fc2"
    said = capfd.readouterr().out
    assert "dialect parts from canonical at tap 'b0.fc2'" in said
    pasted = shlex.join(["python", "-m", "runtime.parity", str(bundle_copy)])
    assert f"next: {pasted} --find --between canonical dialect\n" in said
    assert cli.invoke(verb.main, [str(bundle_copy), "--ladder", "--find", "--threads", "1"]) == 1  # both at once
    assert "next:" not in capfd.readouterr().out
