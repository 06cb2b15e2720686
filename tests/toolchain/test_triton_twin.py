"""The Triton twin gives numpy's bits, in Triton's interpreter."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest

from benches.kernel_shapes import every
from tests.conftest import REPO

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
EDGES = ["1,1,1", "70,100,97", "65,31,65", "130,200,129"]  # any k: the twin masks each element


def sweep(rows: int, shapes: list[str]) -> None:
    """Two widths, two outputs a shape, in a process of its own."""
    command = [sys.executable, "-m", "tests.toolchain.twin_sweep", str(rows), *shapes]
    done = subprocess.run(command, cwd=REPO, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{4 * len(shapes)} compared\n"


def test_edges() -> None:
    """m, k and n short of a tile, past one and odd."""
    sweep(0, EDGES)


def test_layers_on_a_few_rows() -> None:
    """The smaller ViT and the ends of Swin, 33 rows: one tile that is half empty."""
    sweep(33, [f"{s.tokens},{s.k},{s.n}" for s in every() if s.model == "deit_t" or s.layer.endswith("stage 1")])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_layer_on_an_image() -> None:
    """deit_t, deit_s, deit_b and swin_t, every token of an image: 197, 3136, 784, 196 and 49 rows."""
    sweep(0, sorted({f"{shape.tokens},{shape.k},{shape.n}" for shape in every()}))
