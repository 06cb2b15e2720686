"""The CUDA sources compile: no spills, and the integer tensor cores' instruction in every kernel's machine code."""

from __future__ import annotations

import importlib.util
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from runtime.cli import invoke
from runtime.errors import IntvitError
from runtime.kernels import build
from runtime.kernels.tiles import SMS, TILES, TOKEN_KERNELS, every_kernel, kernel_name
from runtime.machine import version_of


def _has_compiler() -> bool:
    try:
        return bool(build.tool("nvcc") and build.tool("ptxas"))
    except IntvitError:
        return False


NEEDS_NVCC = pytest.mark.skipif(not _has_compiler(), reason="no nvcc and ptxas here")
SPECIAL = "IMMA.16832.S8.S8"  # mma.sync.m16n8k32 of int8 in the machine code of SM 8.0 and later


def cuobjdump() -> Path:
    """NVIDIA's disassembler, from the PATH or from Triton's wheel."""
    spec = importlib.util.find_spec("triton")
    if spec is not None and spec.origin is not None:
        inside = Path(spec.origin).parent / "backends/nvidia/bin/cuobjdump"
        if inside.is_file():
            return inside
    try:
        return Path(build.tool("cuobjdump"))
    except IntvitError:
        pytest.skip("no cuobjdump here: neither on the PATH nor in Triton")


def products(cubin: Path) -> dict[str, int]:
    """How many integer products the machine code of each kernel has, whatever else is in it."""
    done = subprocess.run([cuobjdump(), "--dump-sass", cubin], capture_output=True, text=True, check=True, timeout=100)
    _, *functions = re.split(r"^\s*Function : ", done.stdout, flags=re.MULTILINE)
    return {text.split("\n", 1)[0].strip(): text.count(SPECIAL) for text in functions}


def check(names: Sequence[str], ptx: str, sm: str, folder: Path) -> None:
    """Just these kernels, none spills, each with the products its tile takes."""
    binary, usage = build.compile_cubin(ptx, "unit", sm)
    spilling = {name: use for name, use in usage.items() if use.spill_stores or use.spill_loads}
    assert not spilling, sm
    path = folder / f"unit.{sm}.cubin"
    path.write_bytes(binary)
    found = products(path)
    assert found.keys() == usage.keys() == set(names)
    for name, count in found.items():
        # Two halves of a step, 8 tiles of 8 columns, the tiles of 16 rows a warp has; the tokens' kernels have none.
        rows = {"256x128": 4, "128x128": 4, "64x128": 2, "64x64": 1}.get(name.rsplit("_", 1)[-1], 0)
        assert count == 16 * rows, (sm, name, count)


@NEEDS_NVCC
def test_the_heaviest_int4_kernels_of_orin(tmp_path: Path) -> None:
    ptx = build.compile_ptx("w4a8")
    for tile in TILES:
        name = kernel_name(4, "i8_gelu_affine", tile)
        check([name], build.entry(ptx, name), "87", tmp_path)


@NEEDS_NVCC
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_kernel_of_every_sm(tmp_path: Path) -> None:
    for unit in build.UNITS:
        ptx = build.compile_ptx(unit)
        names = TOKEN_KERNELS if unit == "tokens" else [name for name in every_kernel() if unit in name]
        for sm in SMS:
            check(names, ptx, sm, tmp_path)


@NEEDS_NVCC
def test_a_build_is_complete_and_one_kernel_of_it_stands_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "UNITS", ("tokens",))
    usage = build.build(tmp_path, ("80", "90"))
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()} == {
        "kernels.json",
        "tokens.ptx",
        "sm_80/tokens.cubin",
        "sm_90/tokens.cubin",
    }
    assert set(usage["80"]) == set(TOKEN_KERNELS)
    ptx = (tmp_path / "tokens.ptx").read_text("ascii")
    assert f".version {build.PTX_VERSION}\n" in ptx
    for name in TOKEN_KERNELS:
        _, alone = build.compile_cubin(build.entry(ptx, name), "tokens", "87")
        assert list(alone) == [name]
    with pytest.raises(IntvitError, match="no kernel intvit_quantize"):
        build.entry(ptx, "intvit_quantize")


def test_no_compiler_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build.shutil, "which", lambda *_, **__: None)
    with pytest.raises(IntvitError, match="there is no nvcc here"):
        build.compile_ptx("w4a8")


@NEEDS_NVCC
def test_what_ptxas_refuses_is_said() -> None:
    with pytest.raises(IntvitError, match="do not compile"):
        build.compile_cubin(".version 7.0\nnonsense", "w4a8", "80")


@pytest.mark.parametrize("name", ["foo", "99999"])
def test_an_unknown_sm_is_refused_before_anything_is_compiled(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(build, "compile_ptx", lambda unit: pytest.fail("compiled"))
    assert invoke(build.main, ["--out", str(tmp_path / "out"), "--sm", SMS[0], "--sm", name]) == 1
    assert f"no kernels for SM {name!r}" in capfd.readouterr().err and not (tmp_path / "out").exists()


def test_the_hash_of_the_sources_changes_with_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = build.source_hash()
    for path in build.SOURCES.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(build, "SOURCES", tmp_path)
    assert build.source_hash() == before
    (tmp_path / "linear.cuh").write_text("// nothing", "utf-8")
    assert build.source_hash() != before


def test_the_disassembler_is_here_where_the_compiler_is() -> None:
    """Triton is a development dependency through torch on Linux: the test above must not be skipped there."""
    if _has_compiler() and version_of("triton"):
        assert cuobjdump().is_file()
