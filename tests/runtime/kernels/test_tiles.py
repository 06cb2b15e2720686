"""The table of tiles agrees with the sources, and the choice of one is sound."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import IntvitError
from runtime.kernels.build import SOURCES
from runtime.kernels.tiles import (
    DEFAULT_SHARED,
    OUTPUTS,
    SHARED_OF_SM,
    TILES,
    WIDTHS,
    choose,
    every_kernel,
    kernel_name,
    output_name,
)


def test_the_table_is_that_of_the_sources() -> None:
    text = (SOURCES / "linear.cuh").read_text("utf-8")
    found = re.findall(r"INTVIT_KERNELS\(PREFIX, INT4, (\w+), (\d), (\d+), (\d+), (\d), (\d), (\d)\)", text)
    ours = [(tile.name, tile.blocks, tile.rows, tile.columns, tile.threads // 32, tile.stages) for tile in TILES]
    theirs = [
        (name, int(blocks), int(rows), int(columns), int(down) * int(across), int(stages))
        for name, blocks, rows, columns, down, across, stages in found
    ]
    assert ours == theirs


@pytest.mark.parametrize("bits", WIDTHS)
def test_all_but_the_largest_tile_need_no_more_shared_memory_than_any_launch_has(bits: int) -> None:
    assert [tile.shared_bytes(bits) <= DEFAULT_SHARED for tile in TILES] == [False, True, True, True]  # type: ignore[arg-type]
    assert all(tile.shared_bytes(bits) <= min(SHARED_OF_SM.values()) for tile in TILES)  # type: ignore[arg-type]


def test_every_kernel_has_a_name_of_its_own() -> None:
    names = every_kernel()
    assert len(set(names)) == len(names) == 50
    assert kernel_name(4, "i8_gelu", TILES[1]) == "intvit_w4a8_i8_gelu_128x128"


def test_outputs_by_what_they_have() -> None:
    made = {output_name("f16", gelu=gelu, affine=False) for gelu in (False, True)}
    made |= {
        output_name("i8", gelu=gelu, affine=affine) for gelu, affine in ((False, False), (True, False), (True, True))
    }
    assert {"i32", *made} == set(OUTPUTS)
    for plain, gelu in (("f16", True), ("i8", False)):
        with pytest.raises(IntvitError, match="no kernel has such an output"):
            output_name(plain, gelu=gelu, affine=True)  # type: ignore[arg-type]


@settings(deadline=None)
@given(
    st.integers(1, 20000),
    st.integers(1, 4096),
    st.integers(16, 4096),
    st.sampled_from(WIDTHS),
    st.sampled_from([*SHARED_OF_SM, "130"]),
    st.integers(1, 200),
)
def test_the_choice_always_fits(m: int, n: int, k: int, bits: int, sm: str, processors: int) -> None:
    tile = choose(m, n, k, bits, sm, processors, within=DEFAULT_SHARED)  # type: ignore[arg-type]
    assert tile.shared_bytes(bits) <= DEFAULT_SHARED  # type: ignore[arg-type]
    across, down = tile.grid(m, n)
    assert (across - 1) * tile.columns < n <= across * tile.columns
    assert (down - 1) * tile.rows < m <= down * tile.rows


def test_few_rows_take_small_tiles_and_many_rows_large_ones() -> None:
    assert choose(197, 384, 384, 4, "90", 132).name == "64x64"
    assert choose(64 * 197, 3072, 768, 4, "90", 132).rows >= 128


def test_no_room_is_said() -> None:
    with pytest.raises(IntvitError, match="no tile fits"):
        choose(1, 1, 16, 4, "86", 8, within=1024)
