"""Parity holds for a good bundle and fails for every alteration of the numbers."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper
from safetensors.numpy import load_file, save_file

from runtime import cli
from runtime import parity as verb
from runtime.bundle import Bundle
from runtime.errors import IntvitError
from runtime.parity import check, sqnr_db
from tests.runtime.tiny import Spec, make_bundle, rehash

Edit = Callable[[dict[str, np.ndarray]], None]


def _alter(root: Path, edit: Edit) -> None:
    """Change initializers of the integer graph by name, and hash the bundle again."""
    path = root / "ort/model.onnx"
    model = onnx.load(path)
    values = {
        t.name: numpy_helper.to_array(t).copy() for t in model.graph.initializer if t.data_type != onnx.TensorProto.INT4
    }
    edit(values)
    for tensor in model.graph.initializer:
        if tensor.name in values:
            tensor.CopyFrom(numpy_helper.from_array(values[tensor.name], tensor.name))
    onnx.save(model, path)
    rehash(root)


@pytest.mark.parametrize("int4", [False, True])
def test_a_good_bundle(tmp_path: Path, int4: bool) -> None:
    result = check(Bundle.open(make_bundle(tmp_path, Spec(int4=int4, depth=2))))
    assert result.ok and result.failures == ()
    assert [tap.name for tap in result.taps] == ["embed", "b0.fc1", "b0.fc2", "b1.fc1", "b1.fc2", "head"]
    assert result.taps[0].max_lsb == 0 and all(tap.mismatch_rate < 0.1 for tap in result.taps)
    assert result.logits_sqnr_db > 80 and result.top1_agreement == 100


@pytest.mark.parametrize(
    ("name", "factor", "tap"),
    [
        ("embed.scale", 1.02, "embed"),
        ("b0.fc1.scale", 0.99, "b0.fc1"),
        ("head.scale", 1.02, "head"),
        ("gamma", 1.01, "b0.fc1"),
    ],
)
def test_an_altered_number_upstream_of_a_tap(bundle_copy: Path, name: str, factor: float, tap: str) -> None:
    _alter(bundle_copy, lambda values: values.update({name: np.float32(factor) * values[name]}))
    result = check(Bundle.open(bundle_copy))
    assert not result.ok
    assert any(repr(tap) in line for line in result.failures), result.failures


def test_a_fault_is_charged_to_its_own_tap_only(bundle_copy: Path) -> None:
    """Aligned: the quantizer after the altered weight and none later. Free: everything after it drifts."""

    def edit(values: dict[str, np.ndarray]) -> None:
        values["embed.w8"][:, ::4] //= 2

    _alter(bundle_copy, edit)
    result = check(Bundle.open(bundle_copy))
    assert not result.ok
    taps = {tap.name: tap for tap in result.taps}
    assert taps["embed"].max_lsb == 0 and taps["b0.fc1"].max_lsb > 1
    assert taps["b0.fc2"].max_lsb == 0 and taps["b0.fc2"].free_max_lsb > 1


def test_one_weight_of_the_head_off_by_a_level(bundle_copy: Path) -> None:
    """No tap comes after the head: the logits from golden integers show it."""

    def edit(values: dict[str, np.ndarray]) -> None:
        values["head.w8"][0, 0] += 3

    _alter(bundle_copy, edit)
    result = check(Bundle.open(bundle_copy))
    assert all(tap.max_lsb == 0 for tap in result.taps)
    assert not result.ok and result.logits_sqnr_db < 60


def test_an_altered_int4_weight(bundle_copy: Path) -> None:
    path = bundle_copy / "ort/model.onnx"
    model = onnx.load(path)
    tensor = next(t for t in model.graph.initializer if t.name == "b0.fc1.w4")
    tensor.raw_data = bytes([tensor.raw_data[0] ^ 0x33]) + tensor.raw_data[1:]
    onnx.save(model, path)
    rehash(bundle_copy)
    assert not check(Bundle.open(bundle_copy)).ok


def test_altered_golden_logits(bundle_copy: Path) -> None:
    path = bundle_copy / "golden/golden.safetensors"
    tensors = {name: value.copy() for name, value in load_file(path).items()}
    tensors["logits"] = tensors["logits"][::-1].copy()
    save_file(tensors, path)
    rehash(bundle_copy)
    result = check(Bundle.open(bundle_copy))
    assert not result.ok and result.logits_sqnr_db < 35 and result.top1_agreement < 100


def test_a_tap_of_another_shape(bundle_copy: Path) -> None:
    path = bundle_copy / "golden/golden.safetensors"
    tensors = {name: value.copy() for name, value in load_file(path).items()}
    tensors["tap.head"] = tensors["tap.head"][:, 0]
    save_file(tensors, path)
    rehash(bundle_copy)
    with pytest.raises(IntvitError, match="another shape") as caught:
        check(Bundle.open(bundle_copy))
    assert caught.value.where == "head"


def test_a_tap_that_is_not_there(bundle_copy: Path) -> None:
    taps = Bundle.open(bundle_copy).manifest.taps
    rehash(bundle_copy, taps=[*taps[:-1], taps[-1].model_copy(update={"tensor": "nowhere"})])
    with pytest.raises(IntvitError, match="'head' is not in the graph"):
        check(Bundle.open(bundle_copy))


def test_no_taps_at_all(bundle_copy: Path) -> None:
    rehash(bundle_copy, taps=[])
    with pytest.raises(IntvitError, match="no taps"):
        check(Bundle.open(bundle_copy))


def test_the_command(bundle_copy: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "parity.json"
    assert cli.invoke(verb.main, [str(bundle_copy), "--json", str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["ok"] is True and {"logits_sqnr_db", "top1_agreement", "taps"} <= set(found)
    assert {"name", "values", "max_lsb", "mismatch_rate", "free_max_lsb", "free_mismatch_rate"} == set(found["taps"][0])
    _alter(bundle_copy, lambda values: values.update({"embed.scale": np.float32(1.1) * values["embed.scale"]}))
    assert cli.invoke(verb.main, [str(bundle_copy), "--json", str(out)]) == 1
    assert json.loads(out.read_text())["ok"] is False
    captured = capfd.readouterr()
    assert "FAILED: the first tap 'embed'" in captured.out and "Traceback" not in captured.err
    pasted = shlex.join(["python", "-m", "runtime.parity", str(bundle_copy)])
    assert f"next: {pasted} --ladder\n" in captured.out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--between", "canonical", "engine"], "--between belongs to --find"),
        (["--ladder", "--tolerance", "0.1"], "--tolerance belongs to --find"),
        (["--find", "--between", "engine", "engine"], "name two different rungs"),
    ],
)
def test_options_that_say_nothing_are_refused(
    options: list[str], said: str, tiny_bundle: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.invoke(verb.main, [str(tiny_bundle), *options]) == 1
    captured = capfd.readouterr()
    assert said in captured.err and captured.out == ""


@given(st.floats(-60, 60))
def test_sqnr_of_a_known_noise(db: float) -> None:
    reference = np.array([3.0, -4.0], np.float32)
    noisy = (reference + 5.0 * 10 ** (-db / 20) * np.array([0.6, 0.8])).astype(np.float32)
    assert sqnr_db(reference, noisy) == pytest.approx(db, abs=0.1)


def test_sqnr_at_the_ends() -> None:
    one, zero = np.ones(3, np.float32), np.zeros(3, np.float32)
    assert sqnr_db(one, one) == sqnr_db(zero, zero) == 200.0
    assert sqnr_db(zero, one) == sqnr_db(one, np.full(3, np.nan, np.float32)) == -200.0
    assert sqnr_db(one, zero) == 0.0


@pytest.mark.parametrize(
    ("lsb", "differing", "values", "kept"),
    [
        (0, 0, 10, True),
        (1, 3, 1536, True),
        (1, 4, 1536, False),
        (2, 1, 1536, False),
        (1, 299, 300_000, True),
        (1, 300, 300_000, False),
        (2, 1, 300_000, False),
        (1, 8, 1536, False),  # one channel of eight images
    ],
)
def test_the_limits_of_a_tap(lsb: int, differing: int, values: int, kept: bool) -> None:
    assert verb.within_limits(lsb, 100 * differing / values, values) == kept
    assert verb.TapParity("head", values, lsb, 100 * differing / values, 0, 0.0).close == kept
