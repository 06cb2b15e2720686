"""Compiled engines: same bits, used only where they belong, rebuilt when anything differs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from runtime import cli, machine
from runtime import compile as verb
from runtime.backends import ort
from runtime.backends.ort import OrtEngine
from runtime.bundle import Bundle
from runtime.compile import compile_bundle
from runtime.errors import IntvitError
from runtime.parity import check
from runtime.registry import compile_key
from tests.runtime.tiny import Spec, make_bundle, rehash


def test_both_paths_give_the_same_bits(bundle_copy: Path) -> None:
    bundle = Bundle.open(bundle_copy)
    images = np.random.default_rng(5).normal(size=(16, 3, 8, 8)).astype(np.float32)
    plain = OrtEngine.open(bundle, threads=2)
    assert plain.describe()["compiled"] == ""
    wanted = plain.run(images)
    done = compile_bundle(bundle)
    assert done.built and done.execution.as_expected
    compiled = OrtEngine.open(Bundle.open(bundle_copy), threads=2)
    assert compiled.describe()["compiled"] == done.record.key
    np.testing.assert_array_equal(compiled.run(images), wanted)
    assert check(Bundle.open(bundle_copy)).ok


def test_nothing_to_do_the_second_time_unless_forced(bundle_copy: Path) -> None:
    first = compile_bundle(Bundle.open(bundle_copy))
    again = compile_bundle(Bundle.open(bundle_copy))
    assert not again.built and again.record == first.record
    forced = compile_bundle(Bundle.open(bundle_copy), force=True)
    assert forced.built and forced.reason == "--force"
    Bundle.open(bundle_copy)


def test_another_machine_does_not_use_it_and_says_why_it_builds(
    bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = compile_bundle(Bundle.open(bundle_copy))
    monkeypatch.setattr(machine, "integer_flags", lambda: ["avx2"])
    bundle = Bundle.open(bundle_copy)
    assert OrtEngine.open(bundle).describe()["compiled"] == ""
    second = compile_bundle(bundle)
    assert second.built and "cpu_flags" in second.reason and "['avx2']" in second.reason
    assert [record.key for record in Bundle.open(bundle_copy).engines] == [second.record.key]
    assert not (bundle_copy / "engines" / f"ort-{first.record.key}").exists()


def test_another_graph_rebuilds(bundle_copy: Path, tmp_path: Path) -> None:
    compile_bundle(Bundle.open(bundle_copy))
    other = make_bundle(tmp_path / "other", Spec(seed=3))
    for name in ("ort/model.onnx", "golden/golden.safetensors"):
        (bundle_copy / name).write_bytes((other / name).read_bytes())
    rehash(bundle_copy)
    assert OrtEngine.open(Bundle.open(bundle_copy)).describe()["compiled"] == ""
    assert "graph_sha256" in compile_bundle(Bundle.open(bundle_copy)).reason


def test_an_engine_that_computes_other_numbers_is_not_kept(bundle_copy: Path, tmp_path: Path) -> None:
    other = (make_bundle(tmp_path / "other", Spec(seed=3)) / "ort/model.onnx").read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ort, "optimized_bytes", lambda graph, where: other)
        with pytest.raises(IntvitError, match="other numbers") as caught:
            compile_bundle(Bundle.open(bundle_copy))
    assert "largest difference" in caught.value.why and "LSB" in caught.value.why
    assert not (bundle_copy / "engines").exists()


@pytest.mark.parametrize("same_bits", [False, True])
def test_other_last_bits_are_judged_by_the_integers(
    same_bits: bool, bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ARM's fused multiply-add gives a product and its bias other last bits than the two operators; compiling was
    refused there for 2.4e-7."""
    plain = verb._TOOLS["ort"]

    def rounded(model: bytes, compiled: bool, images: np.ndarray) -> np.ndarray:
        logits = plain.logits(model, compiled, images)
        return np.nextafter(logits, np.float32(np.inf)) if compiled else logits

    monkeypatch.setitem(verb._TOOLS, "ort", replace(plain, logits=rounded, same_bits=same_bits))
    if same_bits:
        with pytest.raises(IntvitError, match="other numbers"):
            compile_bundle(Bundle.open(bundle_copy))
    else:
        assert compile_bundle(Bundle.open(bundle_copy)).built


def test_a_cut_in_the_middle_leaves_a_bundle_that_opens(bundle_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compile_bundle(Bundle.open(bundle_copy))

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("runtime.registry.save_registry", killed)
    with pytest.raises(KeyboardInterrupt):
        compile_bundle(Bundle.open(bundle_copy), force=True)
    monkeypatch.undo()
    assert Bundle.open(bundle_copy).engines == ()
    assert compile_bundle(Bundle.open(bundle_copy)).built
    assert len(Bundle.open(bundle_copy).engines) == 1


def test_a_full_temporary_disk(bundle_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10})())
    with pytest.raises(IntvitError, match="disk is full") as caught:
        compile_bundle(Bundle.open(bundle_copy))
    assert "TMPDIR" in caught.value.next


def test_the_command(bundle_copy: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.invoke(verb.main, [str(bundle_copy), "--backend", "ort"]) == 0
    said = capfd.readouterr().out
    assert "4 integer kernels for 4 integer layers" in said and "WARNING" not in said
    assert cli.invoke(verb.main, [str(bundle_copy)]) == 0
    assert "up to date" in capfd.readouterr().out
    assert cli.invoke(verb.main, [str(bundle_copy), "--backend", "ORT"]) == 1


def test_options_are_tensorrts_and_the_help_says_so(tiny_bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.invoke(verb.main, [str(tiny_bundle), "--option", "spin_wait=off"]) == 1
    assert "next: leave --option out" in capfd.readouterr().err
    assert cli.invoke(verb.main, ["--help"]) == 0
    shown = capfd.readouterr().out
    assert "tensorrt" in shown and "openvino" not in shown


def test_layers_are_tensorrts_and_the_error_says_what_to_type(
    tiny_bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.invoke(verb.main, [str(tiny_bundle), "--layers", str(tmp_path / "layers.json")]) == 1
    assert "next: leave --layers out" in capfd.readouterr().err


def test_a_layer_without_a_kernel_is_a_loud_warning(bundle_copy: Path, capfd: pytest.CaptureFixture[str]) -> None:
    layers = Bundle.open(bundle_copy).manifest.layers
    rehash(bundle_copy, layers=[*layers, layers[0].model_copy(update={"name": "ghost"})])
    assert cli.invoke(verb.main, [str(bundle_copy)]) == 0
    assert "WARNING: 5 layers should run as integer, found 4" in capfd.readouterr().out


def test_the_key_is_short_hex() -> None:
    key = compile_key({"a": 1})
    assert len(key) == 16 and int(key, 16) >= 0
