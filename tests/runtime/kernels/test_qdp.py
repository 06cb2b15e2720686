"""The ahead-of-time plugins against a recording ``tensorrt.plugin``: logic, no TensorRT."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from runtime.errors import IntvitError
from runtime.kernels import qdp
from runtime.kernels.tiles import DEFAULT_SHARED, OUTPUTS, TILES, WIDTHS, kernel_name
from tests.runtime.kernels import fake_tensorrt
from tests.runtime.kernels.fake_tensorrt import TensorDesc


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """PTX as nvcc lays it out, with empty kernels."""
    for bits in WIDTHS:
        names = [kernel_name(bits, output, tile) for tile in TILES for output in OUTPUTS]
        kernels = "".join(f".visible .entry {name}(\n)\n{{\n\tret; // {name}\n\n}}\n\t// .globl\n" for name in names)
        (tmp_path / f"w{bits}a8.ptx").write_text(f".version 7.0\n.target sm_80\n{kernels}", "ascii")
    return tmp_path


@pytest.fixture
def registered(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """What TensorRT would have after register()."""
    trt = fake_tensorrt.module()
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    monkeypatch.setitem(sys.modules, "tensorrt.plugin", trt.plugin)
    qdp.register(folder)
    return dict(trt.plugin.registered)


def descs(bits: int, *, int8: bool) -> list[TensorDesc]:
    """Inputs of deit_s' fc1 on two images."""
    floats = [TensorDesc((1536,), "float32")] * (3 if int8 else 2)
    floats += [TensorDesc((4,), "float32")] if int8 else []
    return [TensorDesc((2, 197, 384), "int8"), TensorDesc((1536, 384 * bits // 8), "int8"), *floats]


def test_both_plugins_have_all_three_functions(registered: dict[str, dict[str, Any]]) -> None:
    assert {name: set(roles) for name, roles in registered.items()} == {
        "intvit::linear_f16": {"register", "autotune", "aot_impl"},
        "intvit::linear_i8": {"register", "autotune", "aot_impl"},
    }


@pytest.mark.parametrize(("plugin", "kind"), [("linear_f16", "float16"), ("linear_i8", "int8")])
def test_the_output(registered: dict[str, dict[str, Any]], plugin: str, kind: str) -> None:
    int8 = kind == "int8"
    out = registered[f"intvit::{plugin}"]["register"](*descs(4, int8=int8), 4, 0, *([0] if int8 else []))
    assert (out.shape_expr, out.dtype) == ([2, 197, 1536], kind)


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("output", ["f16_gelu", "i8", "i8_gelu", "i8_gelu_affine"])
def test_tactics_are_the_tiles_every_launch_can_have(
    registered: dict[str, dict[str, Any]], bits: int, output: str
) -> None:
    int8 = output.startswith("i8")
    roles = registered["intvit::linear_i8" if int8 else "intvit::linear_f16"]
    inputs = descs(bits, int8=int8)
    attributes = [bits, int("gelu" in output), *([int("affine" in output)] if int8 else [])]
    out = (roles["register"](*inputs, *attributes),)
    (combination,) = roles["autotune"](*inputs, bits, outputs=out)
    assert len(combination.io_types) == len(inputs) + 1
    assert combination.io_types[-1] == ("INT8" if int8 else "FP16")
    assert combination.layouts == "LINEAR"
    assert combination.tactics == [2, 3, 4]
    for tactic in combination.tactics:
        name, ptx, launch, scalars = roles["aot_impl"](*inputs, *attributes, out, tactic)
        tile = TILES[tactic - 1]
        assert name == f"intvit_w{bits}a8_{output}_{tile.name}"
        assert ptx.startswith(".version 7.0")
        assert ptx.count(".entry") == 1
        assert f".entry {name}(" in ptx
        assert (launch.grid_x, launch.grid_y) == (1536 // tile.columns, -(-394 // tile.rows))
        assert (launch.block_x, launch.shared_mem) == (tile.threads, tile.shared_bytes(bits))  # type: ignore[arg-type]
        assert launch.shared_mem <= DEFAULT_SHARED
        assert [scalar.value for scalar in scalars.items] == [394, 1536, 384]


def test_the_default_tactic_is_one_of_them(registered: dict[str, dict[str, Any]]) -> None:
    inputs = descs(8, int8=False)
    name, *_ = registered["intvit::linear_f16"]["aot_impl"](*inputs, 8, 0, (), 0)
    assert name == f"intvit_w8a8_f16_{TILES[1].name}"


def test_a_factor_without_gelu_is_refused(registered: dict[str, dict[str, Any]]) -> None:
    with pytest.raises(IntvitError, match="no kernel has such an output"):
        registered["intvit::linear_i8"]["aot_impl"](*descs(4, int8=True), 4, 0, 1, (), 2)


def test_other_widths_are_refused(registered: dict[str, dict[str, Any]]) -> None:
    with pytest.raises(IntvitError, match="bits is 3"):
        registered["intvit::linear_f16"]["aot_impl"](*descs(4, int8=False), 3, 0, (), 2)


def test_a_tensorrt_without_such_plugins_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trt = fake_tensorrt.module()
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    monkeypatch.setitem(sys.modules, "tensorrt.plugin", None)
    with pytest.raises(IntvitError, match="no quickly deployable plugins"):
        qdp.register(folder)
    del trt.plugin.aot_impl
    monkeypatch.setitem(sys.modules, "tensorrt.plugin", trt.plugin)
    with pytest.raises(IntvitError, match="no ahead-of-time plugins"):
        qdp.register(folder)


def test_nothing_built_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trt = fake_tensorrt.module()
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    monkeypatch.setitem(sys.modules, "tensorrt.plugin", trt.plugin)
    with pytest.raises(IntvitError, match="not built"):
        qdp.register(tmp_path)
