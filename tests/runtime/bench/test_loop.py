"""Fair turns, phases of a call on a device, several engines at once."""

from __future__ import annotations

import gc
import time
from typing import Any

import pytest

from runtime.bench import loop
from runtime.errors import IntvitError
from tests.runtime.bench.fakes import IMAGES, Fake, OnDevice, contender


@pytest.mark.parametrize("letters", ["et", "etb"])
def test_turns_are_taken_and_their_order_swaps(letters: str) -> None:
    log: list[str] = []
    engines = [Fake(letter, 0.001 * 4**place, log) for place, letter in enumerate(letters)]
    timings = loop.interleave([contender(engine) for engine in engines], seconds=0.0, warm_up_s=0.0)
    order = "".join(log[len(letters) :])
    turns = letters + letters[::-1] + letters
    assert order == "".join(letter * (loop.BLOCK + 1) for letter in turns)
    assert {len(timing.raw_ms) for timing in timings} == {3 * loop.BLOCK}
    assert 3 * loop.BLOCK >= loop.MIN_CALLS
    medians = [loop.median(timing.raw_ms) for timing in timings]
    assert 2 < medians[1] / medians[0] < 6
    assert [len(timing.medians) for timing in timings] == [3] * len(letters)


def test_a_time_is_one_call() -> None:
    (timing,) = loop.interleave([contender(Fake("e", 0.02))], seconds=0.0, warm_up_s=0.0)
    assert min(timing.raw_ms) >= 20.0 and timing.phases == {}


def test_parts_of_a_call_on_a_device() -> None:
    (timing,) = loop.interleave([contender(OnDevice("g", 0.002))], seconds=0.0, warm_up_s=0.0)
    assert set(timing.phases) == set(loop.PHASES)
    assert {len(values) for values in timing.phases.values()} == {len(timing.raw_ms)}
    assert set(timing.phases["compute_ms"]) == {2.0} and min(timing.raw_ms) >= 2.0


def test_a_devices_own_clock() -> None:
    class Clocked(Fake):
        def gpu_ms(self, images: Any, calls: int) -> list[float]:
            self.log.append("clock")
            return [1.5] * calls

    engine = Clocked("g", 0.0)
    (timing,) = loop.interleave([contender(engine)], seconds=0.0, warm_up_s=0.0)
    assert timing.phases == {"compute_ms": [1.5] * len(timing.raw_ms)}
    assert engine.log.count("clock") == len(timing.blocks)


def test_the_collector_is_switched_on_again() -> None:
    class Breaks(Fake):
        def run(self, images: Any) -> Any:
            if len(self.log) > 3:
                assert not gc.isenabled()
                raise IntvitError("it broke")
            return super().run(images)

    assert gc.isenabled()
    with pytest.raises(IntvitError, match="it broke"):
        loop.interleave([contender(Breaks("e", 0.0))], seconds=0.0, warm_up_s=0.0)
    assert gc.isenabled()


def test_engines_together() -> None:
    engines = [Fake("a", 0.02), Fake("b", 0.02)]
    calls, spent = loop.together(engines, IMAGES, 0.2)
    assert 0.2 <= spent < 2 and 2 <= calls <= 22
    assert calls == sum(len(engine.log) for engine in engines) - 2
    calls, _ = loop.together(engines, IMAGES, 0.0)
    assert calls == 2


def test_an_engine_that_fails_beside_another_is_told() -> None:
    class Breaks(Fake):
        def run(self, images: Any) -> Any:
            if self.log:
                raise IntvitError("it broke")
            return super().run(images)

    began = time.perf_counter()
    with pytest.raises(IntvitError, match="it broke"):
        loop.together([Fake("a", 0.01), Breaks("b", 0.01)], IMAGES, 0.1)
    assert time.perf_counter() - began < 5
