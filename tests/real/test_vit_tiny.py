"""The main job on a real ImageNet ViT-Ti: every figure the README's table rests on, end to end through the verbs."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from runtime.bundle import Bundle
from runtime.parity import ENOUGH_FREE_DB, FREE_MARGIN_DB, sqnr_db
from runtime.rungs import Rung, open_rung
from tests.conftest import BACKENDS, NO_OPENVINO

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(2400)]
BLOCKS = 12


@dataclass(frozen=True)
class Built:
    """A bundle and what its manifest says was measured while it was built."""

    folder: Path
    reported: dict[str, Any]


def verb(module: str, *arguments: str, code: int = 0) -> str:
    """Run a verb as a person would; returns what it printed."""
    done = subprocess.run([sys.executable, "-m", module, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory, vit_tiny_checkpoint: Path, photographs: Path) -> Any:
    """Build vit_t at a scheme, once a scheme; all share the synthetic images through one cache."""
    root = tmp_path_factory.mktemp("real")
    done: dict[str, Built] = {}

    def at(scheme: str) -> Built:
        if scheme not in done:
            out = root / scheme
            arguments = ["--model", "vit_t", "--checkpoint", str(vit_tiny_checkpoint), "--bits", scheme]
            arguments += [
                "--method",
                "best",
                "--eval",
                str(photographs),
                "--target",
                "ort,openvino,tensorrt",
                "--out",
                str(out),
            ]
            verb("toolchain.build", *arguments, "--cache", str(root / "cache"))
            done[scheme] = Built(out, json.loads((out / "manifest.json").read_text())["reported"])
        return done[scheme]

    return at


def test_float_top1_proves_the_preprocessing(build: Any) -> None:
    assert abs(build("w8a8").reported["float_top1"] - 87.5) <= 0.3


def test_w8a8_top1_without_a_real_image(build: Any) -> None:
    built = build("w8a8")
    assert json.loads((built.folder / "manifest.json").read_text())["data_free"] is True
    assert built.reported["images"] == 1000
    assert built.reported["engine_top1"] >= 83.5


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8"])
def test_engine_and_fake_quant_agree_on_accuracy(build: Any, scheme: str) -> None:
    """0.3 points, or three paired standard errors: which borderline pictures flip is chance (docs/parity.md)."""
    reported = build(scheme).reported
    limit = max(0.3, 3 * reported["engine_minus_fake_quant_stderr"])
    assert abs(reported["engine_top1"] - reported["fake_quant_top1"]) <= limit


def test_openvino_and_fake_quant_agree_on_accuracy(build: Any, photographs: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason=NO_OPENVINO)
    built, out = build("w8a8"), tmp_path / "accuracy.json"
    verb("runtime.accuracy", str(built.folder), "--backend", "openvino", "--data", str(photographs), "--json", str(out))
    limit = max(0.3, 3 * built.reported["engine_minus_fake_quant_stderr"])
    assert abs(json.loads(out.read_text())["top1"] - built.reported["fake_quant_top1"]) <= limit


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scheme", ["w8a8", "w4a8"])
def test_parity(build: Any, scheme: str, backend: str, tmp_path: Path) -> None:
    where = str(tmp_path / "parity.json")
    verb("runtime.parity", str(build(scheme).folder), "--backend", backend, "--json", where)
    found = json.loads((tmp_path / "parity.json").read_text())
    assert found["ok"] and found["logits_sqnr_db"] >= 35
    assert found["taps"][0]["max_lsb"] == 0
    many = [tap for tap in found["taps"] if tap["values"] > 3000]  # of fewer, three may differ whatever their share
    assert len(many) > 4 * (BLOCKS - 1)
    assert all(tap["max_lsb"] <= 1 for tap in found["taps"]) and all(tap["mismatch_rate"] < 0.1 for tap in many)


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8"])
def test_tensorrt_fp16_stays_within_what_quantization_costs(build: Any, scheme: str) -> None:
    """docs/tensorrt.md: the dialect's FP16, under ONNX Runtime, against the fake-quant model."""
    bundle = Bundle.open(build(scheme).folder)
    stored = bundle.file("graph", "tensorrt").read_bytes()
    dialect = open_rung(Rung("dialect", "in FP16", "tensorrt", lambda _: stored, shifted=True), bundle)
    golden, name = bundle.golden(), bundle.manifest.output_name
    allowed = min(sqnr_db(golden.float_logits, golden.logits) - FREE_MARGIN_DB, ENOUGH_FREE_DB)
    assert sqnr_db(golden.logits, dialect.free(golden, 2)[name]) >= allowed
    assert sqnr_db(golden.logits, dialect.aligned(golden, 2)[name]) >= 50


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8"])
def test_the_ladder(build: Any, scheme: str, tmp_path: Path) -> None:
    out = tmp_path / "ladder.json"
    said = verb("runtime.parity", str(build(scheme).folder), "--ladder", "--find", "--json", str(out))
    assert "no rung parts" in said and "no node is beyond tolerance" in said
    dialect = next(rung for rung in json.loads(out.read_text())["rungs"] if rung["rung"] == "dialect")
    must = [tap for tap in dialect["taps"] if tap["must_be_exact"]]
    assert len(must) > BLOCKS and all(tap["exact"] for tap in must)


def test_four_integer_products_in_every_block(build: Any, tmp_path: Path) -> None:
    verb("toolchain.inspect", str(build("w8a8").folder), "--json", str(tmp_path / "inspect.json"))
    found = json.loads((tmp_path / "inspect.json").read_text())
    assert found["integer_mac_fraction"] == 1.0
    for block in range(BLOCKS):
        rows = [row for row in found["layers"] if row["name"].startswith(f"blocks.{block}.")]
        assert len(rows) == 4 and all(
            row["executed_as"].startswith(("MatMulIntegerToFloat", "QAttention")) for row in rows
        )


def test_an_8_bit_residual_stream_is_not_chance(vit_tiny_checkpoint: Path, photographs: Path, tmp_path: Path) -> None:
    """One step a point without units for the channels is: 0.1 % (docs/decisions/0030-residual-stream.md)."""
    out = tmp_path / "bundle"
    arguments = ["--model", "vit_t", "--checkpoint", str(vit_tiny_checkpoint), "--bits", "w8a8+res8"]
    arguments += ["--method", "procedural", "--images", "32", "--budget", "fast", "--eval", str(photographs)]
    arguments += ["--target", "ort,openvino", "--cache", str(tmp_path / "cache"), "--out", str(out)]
    verb("toolchain.build", *arguments)
    assert json.loads((out / "manifest.json").read_text())["reported"]["engine_top1"] >= 82
    assert "parity ok" in verb("runtime.parity", str(out))


def test_four_bit_weights_take_half_the_room(build: Any, tmp_path: Path) -> None:
    sizes = {}
    for scheme in ("w8a8", "w4a8"):
        verb("toolchain.inspect", str(build(scheme).folder), "--json", str(tmp_path / f"{scheme}.json"))
        sizes[scheme] = json.loads((tmp_path / f"{scheme}.json").read_text())["linear_weight_bytes"]
    assert sizes["w4a8"] <= 0.55 * sizes["w8a8"]
