"""Whose threads tell of others on the machine."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from runtime.bench import disturbance
from runtime.bench.contenders import ENGINE, TWIN, opened, witnesses
from runtime.bench.measure import Plan
from runtime.bundle import Bundle
from tests.runtime.bench.fakes import Fake, contender

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="the system lists no threads")


def named(name: str, *threads: int) -> object:
    engine = Fake("e", 0.0)
    engine.name = name
    return replace(contender(engine), threads=frozenset(threads))


def test_threads_of_an_engine_that_crowds_itself_are_no_witnesses() -> None:
    """They waited 0.3 s a second on an idle machine: vit_digits beside its BF16 twin was called disturbed each time."""
    mine = threading.get_native_id()
    assert witnesses([named("ort", 1, 2), named("openvino", 3, 4), named("ort", 5)]) == {mine, 1, 2, 5}
    assert witnesses([named("openvino", 3)]) == {mine}


@pytest.mark.parametrize("batch", [1, 2])
def test_each_engine_knows_the_threads_it_came_with(tiny_bundle: Path, batch: int) -> None:
    before = disturbance.threads()
    setup = Plan(threads=2, batch=batch).setup()
    with opened(Bundle.open(tiny_bundle), setup, bf16=False) as (contenders, _):
        engine, twin = contenders
        assert [engine.role, twin.role] == [ENGINE, TWIN]
        assert engine.threads and twin.threads and not engine.threads & twin.threads
        assert disturbance.threads() - before == engine.threads | twin.threads
        for each in contenders:
            each.call()
        assert disturbance.threads() - before == engine.threads | twin.threads, "later calls bring no more"
        read = disturbance.read(witnesses(contenders))
    assert read.waited is not None and read.waited >= 0.0
    assert disturbance.read([]).waited is None
