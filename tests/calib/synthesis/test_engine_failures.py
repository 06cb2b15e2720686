"""The loop when something goes wrong, and what it tells meanwhile; the caller's network stays as it was."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from calib.errors import IntvitError
from calib.models import ModelSpec
from calib.synthesis import engine
from calib.synthesis.engine import Made, Share, assemble, make_groups, synthesise
from calib.synthesis.methods import PSAQ, SPDFQ
from calib.synthesis.state import GroupState
from tests.calib.networks import SWIN_SIDE, complete, spec_of, tiny_swin, tiny_vit

Tiny = tuple[Any, ModelSpec]
SMALL = replace(PSAQ, images=3, batch=2, iterations=8)
ENDLESS = 3000  # iterations: many more than are made before the others are told to stop
BAD = replace(PSAQ, method="bad", iterations=ENDLESS)
PAIR = replace(PSAQ, images=4, batch=1, mixture=(replace(PSAQ, iterations=ENDLESS), BAD))


@pytest.fixture(autouse=True)
def _all_threads_end() -> Iterator[None]:
    """No thread is left behind, and torch has as many as before."""
    before = threading.active_count(), torch.get_num_threads()
    yield
    assert (threading.active_count(), torch.get_num_threads()) == before


def everything(model: Any) -> list[Any]:
    """All that a caller could notice of a network, values included."""
    tensors = [
        (name, tensor.dtype, tensor.device, tensor.requires_grad, tensor.data_ptr(), tuple(tensor.flatten().tolist()))
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]
    ]
    modules = [
        (module.training, len(module._forward_hooks), len(module._forward_pre_hooks), getattr(module, "fused_attn", 0))
        for module in model.modules()
    ]
    return [*modules, *tensors]


@pytest.mark.parametrize("build", [tiny_vit, tiny_swin])
def test_the_callers_network_is_not_changed_also_after_a_failure(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build().train().requires_grad_(True)
    model.get_submodule("norm").register_forward_hook(lambda module, args, out: None)
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = True
    spec = spec_of(model, SWIN_SIDE if build is tiny_swin else 32)
    before = everything(model)
    for config in (SMALL, replace(SPDFQ, images=3, batch=2, warm=0.5)):
        for workers in (1, 2):
            synthesise(model, spec, replace(config, iterations=2), 0, workers=workers)
            assert everything(model) == before
    monkeypatch.setattr(engine, "gradient", lambda *args: 1 / 0)
    for workers in (1, 2):
        with pytest.raises(ZeroDivisionError):
            synthesise(model, spec, SMALL, 0, workers=workers)
        assert everything(model) == before


def test_a_network_in_training_mode_makes_the_same_images(tiny: Tiny) -> None:
    model = tiny_vit(proj_drop_rate=0.5, drop_path_rate=0.5)
    one, two = (synthesise(mode, tiny[1], SMALL, 0) for mode in (model.eval(), copy.deepcopy(model).train()))
    assert torch.equal(one.images, two.images) and one.history == two.history


@pytest.mark.parametrize("count", [0, -1])
def test_no_images_are_refused(tiny: Tiny, count: int) -> None:
    with pytest.raises(IntvitError, match="at least one image") as caught:
        synthesise(*tiny, replace(SMALL, images=count), 0)
    assert complete(caught.value).where == "--images" and str(count) in caught.value.why


@pytest.mark.parametrize("workers", [1, 2])
def test_divergence_is_told(tiny: Tiny, workers: int) -> None:
    model = copy.deepcopy(tiny[0])
    model.head.weight.data[0, 0] = float("nan")
    with pytest.raises(IntvitError, match="diverged") as caught:
        synthesise(model, tiny[1], SMALL, 0, workers=workers)
    error = complete(caught.value)
    assert error.where in ("images from 0 on, iteration 1", "images from 2 on, iteration 1")
    assert "--seed" in error.next


def test_divergence_names_the_group_and_the_iteration(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    original = engine.gradient

    def spoilt(model: Any, config: Any, state: GroupState, taps: Any) -> Any:
        terms, slope = original(model, config, state, taps)
        return terms, slope * (float("nan") if len(state.images) == 1 and state.step == 4 else 1)

    monkeypatch.setattr(engine, "gradient", spoilt)
    with pytest.raises(IntvitError) as caught:
        synthesise(*tiny, SMALL, 0, workers=1)
    assert caught.value.where == "images from 2 on, iteration 5"


class Lost(Exception):
    pass


@pytest.mark.parametrize("workers", [2, 3])
def test_a_failure_in_one_thread_stops_the_others(tiny: Tiny, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    """They do not go on to their end, and groups not yet begun are not."""
    begun: list[Any] = []
    steps = [0]

    def failing(model: Any, config: Any, state: GroupState, taps: Any) -> Any:
        steps[0] += 1
        if state.step == 0:
            begun.append(state)
        if config.method == "bad" and state.step == 3:
            raise Lost
        time.sleep(0.001)
        return {"total": 0.0}, torch.zeros_like(state.images)

    monkeypatch.setattr(engine, "gradient", failing)
    with pytest.raises(Lost):
        synthesise(*tiny, replace(PAIR, images=12), 0, workers=workers)
    assert 2 <= len(begun) < 12 and steps[0] < ENDLESS / 3


@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_in_the_progress_callback_stops_all(tiny: Tiny, workers: int) -> None:
    seen: list[int] = []

    def interrupt(done: int, total: int, note: str) -> None:
        seen.append(done)
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synthesise(*tiny, PAIR, 0, progress=interrupt, workers=workers)
    assert len(seen) < ENDLESS / 3


def test_ctrl_c_while_waiting_stops_all_and_leaves_checkpoints(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a terminal does: the main thread is interrupted while the others work."""
    steps, arrived = [0], threading.Event()

    def count(done: int, total: int, note: str) -> None:
        steps[0] = done
        if done > 10:
            arrived.set()

    def interrupted(tasks: Any, return_when: str) -> None:
        assert arrived.wait(60)
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        synthesise(*tiny, replace(PAIR, images=2), 0, work=tmp_path, progress=count, workers=2)
    assert steps[0] < ENDLESS / 3
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"group-00000{n}.safetensors" for n in (0, 1)]
    monkeypatch.undo()
    resumed: list[int] = []

    def stop(done: int, total: int, note: str) -> None:
        resumed.append(done)
        if len(resumed) == 2:
            raise Lost

    with pytest.raises(Lost):
        synthesise(*tiny, replace(PAIR, images=2), 0, work=tmp_path, progress=stop, workers=2)
    assert min(resumed) >= 1 and max(resumed) >= steps[0]  # every step that was counted was kept


# Progress.


@pytest.mark.parametrize("workers", [1, 2])
def test_progress_counts_every_iteration_once(tiny: Tiny, workers: int) -> None:
    seen: list[tuple[int, int, str]] = []
    synthesise(*tiny, SMALL, 0, progress=lambda *a: seen.append(a), workers=workers)
    assert [(done, total) for done, total, _ in seen] == [(step, 16) for step in range(1, 17)]
    assert all(note.startswith("loss ") and note.endswith(" images/min") for _, _, note in seen)


def test_progress_of_a_share_is_its_own(tiny: Tiny) -> None:
    seen: list[tuple[int, int]] = []
    make_groups(*tiny, SMALL, 0, progress=lambda done, total, _: seen.append((done, total)), share=Share(1, 2))
    assert seen == [(step, 8) for step in range(1, 9)]


def test_images_a_minute_do_not_count_what_was_resumed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten images of 8 iterations in two groups: half of the run in 30 seconds is ten a minute."""
    now, notes = [100.0], []
    monkeypatch.setattr(engine.time, "monotonic", lambda: now[0])
    groups = engine.groups(replace(SMALL, images=10, batch=5), 5)
    counter = engine._Counter(lambda done, total, note: notes.append((done, total, note)), groups)
    now[0] = 110.0
    counter.add(4, "", resumed=True)
    now[0] = 130.0
    counter.add(8, "loss 1.00, ")
    assert notes == [(4, 16, "0.0 images/min"), (12, 16, "loss 1.00, 10.0 images/min")]


# Processes that do not fit together.


def test_groups_are_cut_as_all_processes_agreed(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes with other memory: each image once all the same, and a batch that was given is not asked about."""
    config, made, asked = replace(SMALL, images=5, batch=None, iterations=1), [], []

    def agreed(number: int) -> int:
        asked.append(number)
        return 2

    for mine, own in enumerate((1, 4)):
        monkeypatch.setattr(engine, "fitting_batch", lambda *_, own=own: own)
        made += make_groups(*tiny, config, 0, share=Share(mine, 2), agree=agreed)
    assert asked == [1, 4]
    assert sorted(group.members for group in made) == [(0, 1), (2, 3), (4,)]
    assert len(assemble(made, 5).images) == 5
    make_groups(*tiny, replace(config, batch=1), 0, share=Share(0, 2), agree=agreed)
    assert asked == [1, 4]


@pytest.mark.parametrize(
    ("groups", "why"),
    [
        ([(0, 1), (1, 2)], "made twice: 1"),
        ([(0,), (2,)], "never made: 1"),
        ([(0, 1)], "never made: 2"),
        ([(0, 1), (2, 3)], "not asked for: 3"),
        ([(0, 0), (3,)], "never made: 1, 2; made twice: 0; not asked for: 3"),
        ([], "never made: 0, 1, 2"),
    ],
)
def test_a_set_has_each_image_once(groups: list[tuple[int, ...]], why: str) -> None:
    made = [Made(members, torch.zeros(len(members), 3, 2, 2), [[1]] * len(members), []) for members in groups]
    with pytest.raises(IntvitError) as caught:
        assemble(made, 3)
    assert complete(caught.value).why == why and "--batch" in caught.value.next
