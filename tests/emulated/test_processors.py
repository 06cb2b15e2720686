"""The engines on processors that are not here: the integers that were calibrated, whatever kernels a runtime takes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import BACKENDS
from tests.emulated.processors import AVX2, AVX2_IN_DISGUISE, DOT_PRODUCT, I8MM, SSE4, Processor, emulate
from tests.parity.test_digits import NETWORKS
from tests.toolchain.nets import write_bundle

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
PROCESSORS = [AVX2, SSE4, DOT_PRODUCT, I8MM]
CASES = [
    ("vit_digits", "w8a8"),
    ("vit_digits", "w4a8"),
    ("vit_digits", "w4a4"),
    ("vit_digits", "w8a8+attn8"),
    ("vit_digits", "w8a8+res8"),
    ("vit_digits", "w8a8+int"),
    ("vit_digits", "w4a16+g16"),
    ("swin", "w8a8"),
]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """The bundle of a network in a scheme, written once."""
    made: dict[tuple[str, str], Path] = {}

    def write(network: str, scheme: str) -> Path:
        if (network, scheme) not in made:
            module, spec = NETWORKS[network]()
            targets = ["ort"] if scheme.endswith("+int") else ["ort", "openvino"]
            folder = tmp_path_factory.mktemp("emulated") / "bundle"
            made[network, scheme] = write_bundle(module, spec, scheme, folder, targets=targets)
        return made[network, scheme]

    return write


def parity(processor: Processor, bundle: Path, folder: Path, *options: str) -> tuple[int, dict[str, Any]]:
    """The exit code of ``runtime.parity`` there, and what it found."""
    out = folder / "parity.json"
    arguments = ["-m", "runtime.parity", str(bundle), "--threads", "1", "--json", str(out), *options]
    done = emulate(processor, arguments, folder / "root")
    assert out.is_file(), done.stdout + done.stderr
    return done.returncode, json.loads(out.read_text(encoding="utf-8"))


@pytest.mark.parametrize("processor", PROCESSORS, ids=lambda processor: processor.name)
@pytest.mark.parametrize(("network", "scheme"), CASES)
def test_onnx_runtime_computes_what_was_calibrated(
    network: str, scheme: str, processor: Processor, bundle: Callable[[str, str], Path], tmp_path: Path
) -> None:
    code, found = parity(processor, bundle(network, scheme), tmp_path)
    assert code == 0 and found["ok"], found["failures"]
    assert all(tap["max_lsb"] <= 1 and tap["mismatch_rate"] < 0.1 for tap in found["taps"])


@pytest.mark.parametrize("processor", [AVX2, DOT_PRODUCT], ids=lambda processor: processor.name)
@pytest.mark.parametrize("scheme", ["w8a8", "w4a8"])
@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_openvino_computes_what_was_calibrated(
    backend: str, scheme: str, processor: Processor, bundle: Callable[[str, str], Path], tmp_path: Path
) -> None:
    code, found = parity(processor, bundle("vit_digits", scheme), tmp_path, "--backend", backend)
    assert code == 0 and found["ok"], found["failures"]
    assert all(tap["max_lsb"] <= 1 for tap in found["taps"])


@pytest.mark.parametrize("processor", [AVX2, DOT_PRODUCT], ids=lambda processor: processor.name)
def test_compiled_engines(processor: Processor, bundle: Callable[[str, str], Path], tmp_path: Path) -> None:
    """Refused on both once: saturation in the graph it was compared with, and ARM's fused multiply-add."""
    copy = shutil.copytree(bundle("vit_digits", "w8a8"), tmp_path / "bundle")
    done = emulate(processor, ["-m", "runtime.compile", str(copy)], tmp_path / "root")
    assert done.returncode == 0, done.stdout + done.stderr
    code, found = parity(processor, copy, tmp_path)
    assert code == 0 and found["ok"], found["failures"]


@pytest.mark.parametrize("processor", [AVX2, DOT_PRODUCT], ids=lambda processor: processor.name)
@pytest.mark.parametrize("scheme", ["w8a8", "w8a8+int"])
def test_every_rung_of_the_ladder_holds(
    scheme: str, processor: Processor, bundle: Callable[[str, str], Path], tmp_path: Path
) -> None:
    """Its rungs run without the optimizer: with ``+int``, whose products are explicit there, they saturated on x86."""
    code, found = parity(processor, bundle("vit_digits", scheme), tmp_path, "--ladder")
    assert code == 0 and found["ok"], found["verdict"]
    assert [rung["rung"] for rung in found["rungs"]] == ["float", "fake-quant", "canonical", "dialect", "engine"]


def test_these_tests_would_see_products_that_saturate(bundle: Callable[[str, str], Path], tmp_path: Path) -> None:
    """The emulated processor saturates, and parity says so where intvit is made to believe that it does not."""
    code, found = parity(AVX2_IN_DISGUISE, bundle("vit_digits", "w8a8"), tmp_path)
    assert code == 1 and not found["ok"]
    assert max(tap["max_lsb"] for tap in found["taps"]) > 10


@pytest.mark.parametrize(
    ("processor", "kernels"), [(AVX2, {"u8 x u8"}), (DOT_PRODUCT, {"s8 x s8"}), (I8MM, {"s8 x s8"})]
)
def test_every_layer_runs_as_integer(
    processor: Processor, kernels: set[str], bundle: Callable[[str, str], Path], tmp_path: Path
) -> None:
    out = tmp_path / "layers.json"
    arguments = ["-m", "toolchain.inspect", str(bundle("vit_digits", "w8a8")), "--json", str(out)]
    done = emulate(processor, arguments, tmp_path / "root")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(out.read_text(encoding="utf-8"))["layers"]
    assert rows and all(row["integer"] for row in rows)
    assert {row["executed_as"].rpartition(", ")[2] for row in rows} == kernels


@pytest.mark.parametrize(
    ("processor", "has", "problem"),
    [
        (AVX2, set(), "no VNNI or AMX"),
        (SSE4, set(), "no AVX2"),
        (DOT_PRODUCT, {"dot product"}, ""),
        (I8MM, {"dot product", "i8mm", "BF16"}, ""),
    ],
)
def test_the_doctor_names_what_the_processor_has(
    processor: Processor, has: set[str], problem: str, tmp_path: Path
) -> None:
    out = tmp_path / "doctor.json"
    done = emulate(processor, ["-m", "runtime.doctor", "--json", str(out)], tmp_path / "root")
    found = json.loads(out.read_text(encoding="utf-8"))
    assert {name for name, flags in found["features"].items() if flags} == has
    assert found["onnxruntime"]["version"], done.stdout + done.stderr
    said = [entry["what"] for entry in found["problems"] if entry["what"].startswith("the CPU")]
    assert (len(said) == 1 and problem in said[0]) if problem else said == []
