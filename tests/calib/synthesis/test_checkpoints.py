"""A group's checkpoint: equal to the bit when read back, never half believed, and a run goes on from it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from calib.models import ModelSpec
from calib.synthesis import checkpoints, engine
from calib.synthesis.checkpoints import drop, restore, save
from calib.synthesis.engine import SyntheticSet, synthesise
from calib.synthesis.methods import MIMIQ, PSAQ, SPDFQ, SynthesisConfig
from calib.synthesis.plan import Group
from calib.synthesis.state import GroupState, start
from tests.calib.networks import VIT_SIDE, spec_of, tiny_vit

SPEC = spec_of(tiny_vit(), VIT_SIDE)
NAME = "group-000000.safetensors"


def state(seed: int, step: int = 0, images: int = 1) -> GroupState:
    """Small, random, and after ``step`` iterations."""
    small = replace(SPEC, input_size=(3, 4, 4))
    made = start(small, [], Group(tuple(range(images)), replace(PSAQ, images=images)), seed)
    generator = torch.Generator().manual_seed(seed)
    made.first, made.second = (torch.randn(made.images.shape, generator=generator) for _ in range(2))
    made.step, made.since, made.scales = step, step // 2, {"heads": seed / 3} if step else {}
    made.history = [{"batch": 0, "step": i + 1, "total": 0.1 * seed + i / 3} for i in range(step)]
    torch.rand(step, generator=made.generator)
    return made


def same(one: GroupState, two: GroupState) -> bool:
    tensors = all(torch.equal(getattr(one, name), getattr(two, name)) for name in ("images", "first", "second"))
    generators = torch.equal(one.generator.get_state(), two.generator.get_state())
    rest = all(getattr(one, name) == getattr(two, name) for name in ("step", "since", "history", "scales", "classes"))
    return tensors and generators and rest


def test_read_back_to_the_bit(tmp_path: Path) -> None:
    saved = state(1, step=4)
    save(tmp_path / "made", 7, saved)
    assert os.listdir(tmp_path / "made") == ["group-000007.safetensors"]
    found = restore(tmp_path / "made", 7, replace(state(2), classes=saved.classes))
    assert same(found, saved)
    assert torch.equal(torch.rand(5, generator=found.generator), torch.rand(5, generator=saved.generator))


def test_history_keeps_integers_and_every_bit_of_a_float(tmp_path: Path) -> None:
    saved = state(1, step=2)
    saved.history[1]["total"], saved.scales["heads"] = 0.1 + 0.2, 1 / 3
    save(tmp_path, 0, saved)
    found = restore(tmp_path, 0, state(2))
    assert found.history == saved.history and isinstance(found.history[0]["step"], int)
    assert found.scales == {"heads": 1 / 3}


def test_equal_states_are_equal_files(tmp_path: Path) -> None:
    for first in range(12):
        save(tmp_path, first, state(1, step=2))
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


def test_each_group_has_its_own(tmp_path: Path) -> None:
    save(tmp_path, 0, state(1, step=1))
    assert same(restore(tmp_path, 1, state(1)), state(1))
    drop(tmp_path, 1)
    assert same(restore(tmp_path, 0, state(1)), state(1, step=1))
    drop(tmp_path, 0)
    assert os.listdir(tmp_path) == []


def test_a_write_that_fails_leaves_the_last_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 0, state(1, step=1))

    def full(tensors: object, path: Path, metadata: object) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(OSError, match="No space"):
        save(tmp_path, 0, state(2, step=2))
    monkeypatch.undo()
    assert os.listdir(tmp_path) == [NAME]
    assert same(restore(tmp_path, 0, state(1)), state(1, step=1))


def parts(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(path, framework="pt") as file:
        return load_file(path), dict(file.metadata())


@pytest.mark.parametrize("missing", ["images", "first", "second", "step", "generator"])
def test_a_checkpoint_without_a_part_is_removed_and_nothing_of_it_used(tmp_path: Path, missing: str) -> None:
    save(tmp_path, 0, state(1, step=2))
    tensors, meta = parts(tmp_path / NAME)
    del tensors[missing]
    save_file(tensors, tmp_path / NAME, meta)
    assert same(restore(tmp_path, 0, state(2)), state(2))
    assert os.listdir(tmp_path) == []


STATES = {
    "none": None,
    "nothing": "",
    "no list": "3",
    "no digest": '["{}"]',
    "another digest": '["0", "{\\"history\\": [{}, {}], \\"scales\\": {}, \\"since\\": 0}"]',
    "no text": '["0", 3]',
    "no history": '["0", "{}"]',
    "nested": "[" * 100_000,
    "a list": '["0", "[]"]',
}


@pytest.mark.parametrize("text", STATES.values(), ids=STATES)
def test_a_checkpoint_whose_state_does_not_fit_is_not_used(tmp_path: Path, text: str | None) -> None:
    save(tmp_path, 0, state(1, step=2))
    tensors, meta = parts(tmp_path / NAME)
    assert list(meta) == ["state"]
    save_file(tensors, tmp_path / NAME, None if text is None else {"state": text})
    assert same(restore(tmp_path, 0, state(2)), state(2))


def signed(path: Path, tensors: dict[str, torch.Tensor], history: list[Any]) -> None:
    """A checkpoint whose digest is right and whose content is not."""
    text = json.dumps({"history": history, "scales": {}, "since": 0})
    save_file(tensors, path, {"state": json.dumps([checkpoints._digest(tensors, text), text])})


@pytest.mark.parametrize("fault", ["generator", "history", "shape"])
def test_a_whole_checkpoint_that_does_not_fit_is_not_used(tmp_path: Path, fault: str) -> None:
    save(tmp_path, 0, state(1, step=2, images=2 if fault == "shape" else 1))
    tensors, _ = parts(tmp_path / NAME)
    if fault == "generator":
        tensors["generator"] = torch.zeros(3, dtype=torch.uint8)
    signed(tmp_path / NAME, tensors, [{"batch": 0}] * (3 if fault == "history" else 2))
    assert same(restore(tmp_path, 0, state(2)), state(2))
    assert os.listdir(tmp_path) == []


def test_one_flipped_byte_anywhere_is_noticed(tmp_path: Path) -> None:
    """Every seventh byte of the header, and some of every tensor."""
    save(tmp_path, 0, state(1, step=2))
    raw = (tmp_path / NAME).read_bytes()
    body = 8 + int.from_bytes(raw[:8], "little")
    for place in [*range(0, body, 7), *range(body, len(raw), 61), len(raw) - 1]:
        for flip in (1, 64, 255):
            damaged = bytearray(raw)
            damaged[place] ^= flip
            (tmp_path / NAME).write_bytes(damaged)
            assert same(restore(tmp_path, 0, state(2)), state(2)), place
            assert not (tmp_path / NAME).exists()


# Going on after an interruption.

CONFIGS = {
    config.method: replace(config, images=3, batch=2, iterations=8)
    for config in (PSAQ, MIMIQ, SPDFQ, replace(SPDFQ, method="warm", warm=0.5))
}
SMALL = CONFIGS["psaq"]


@pytest.fixture(autouse=True)
def _every_step_is_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "SAVE_EVERY_S", -1.0)


@pytest.fixture(scope="module")
def whole(tiny: tuple[Any, ModelSpec]) -> dict[str, SyntheticSet]:
    """What uninterrupted runs make."""
    return {name: synthesise(*tiny, config, 3, workers=1) for name, config in CONFIGS.items()}


def equal(one: SyntheticSet, two: SyntheticSet) -> bool:
    return torch.equal(one.images, two.images) and torch.equal(one.labels, two.labels) and one.history == two.history


class Stop(Exception):
    pass


def interrupted(tiny: Any, config: SynthesisConfig, work: Path, at: int, workers: int = 1) -> None:
    """Run until the progress callback is told of iteration ``at``, then stop as Ctrl-C would."""

    def stop(done: int, total: int, note: str) -> None:
        if done >= at:
            raise Stop

    with pytest.raises(Stop):
        synthesise(*tiny, config, 3, work=work, progress=stop, workers=workers)


@pytest.mark.parametrize("at", [1, 2, 4, 5, 8, 9, 12, 16])
def test_going_on_gives_what_an_uninterrupted_run_gives(tiny: Any, whole: Any, tmp_path: Path, at: int) -> None:
    """Two groups of 8 iterations; the callback stops before iteration ``at`` is written."""
    work = tmp_path / "work"
    interrupted(tiny, SMALL, work, at)
    steps: list[int] = []
    resumed = synthesise(*tiny, SMALL, 3, work=work, progress=lambda done, *_: steps.append(done), workers=1)
    assert equal(whole["psaq"], resumed)
    first, second = min(at - 1, 8), max(at - 9, 0)  # nothing that was written is done again
    expected = [first] * bool(first) + [*range(first + 1, 9)] + [8 + second] * bool(second) + [*range(9 + second, 17)]
    assert steps == expected
    assert list(work.iterdir()) == []


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "psaq"])
@pytest.mark.parametrize("at", [2, 4, 5, 6, 13])
def test_so_do_draws_of_all_kinds_and_the_scales(tiny: Any, whole: Any, tmp_path: Path, name: str, at: int) -> None:
    interrupted(tiny, CONFIGS[name], tmp_path, at)
    assert equal(whole[name], synthesise(*tiny, CONFIGS[name], 3, work=tmp_path, workers=1))


def test_going_on_several_times(tiny: Any, whole: Any, tmp_path: Path) -> None:
    for at in (3, 7, 11):
        interrupted(tiny, SMALL, tmp_path, at)
    assert equal(whole["psaq"], synthesise(*tiny, SMALL, 3, work=tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (2, 2)])
def test_going_on_with_another_number_of_threads(
    tiny: Any, whole: Any, tmp_path: Path, before: int, after: int
) -> None:
    interrupted(tiny, SMALL, tmp_path, 5, before)
    assert equal(whole["psaq"], synthesise(*tiny, SMALL, 3, work=tmp_path, workers=after))


def test_between_checkpoints_work_is_done_again_with_the_same_result(
    tiny: Any, whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "SAVE_EVERY_S", 1e9)
    interrupted(tiny, SMALL, tmp_path, 13)  # only the first group's end was written
    steps: list[int] = []
    resumed = synthesise(*tiny, SMALL, 3, work=tmp_path, progress=lambda done, *_: steps.append(done), workers=1)
    assert steps == list(range(8, 17))
    assert equal(whole["psaq"], resumed)


def damages(path: Path, tiny: Any) -> Iterator[str]:
    """Every way to damage the checkpoint at ``path``, one after another."""
    raw = path.read_bytes()
    for name, content in {
        "empty": b"",
        "truncated": raw[:-100],
        "text": b"no",
        "header": b"\xff" * 9 + raw[9:],
        "one byte": raw[:-200] + bytes([raw[-200] ^ 16]) + raw[-199:],
    }.items():
        path.write_bytes(content)
        yield name
    path.write_bytes(raw)
    tensors, meta = parts(path)
    del tensors["second"]
    save_file(tensors, path, meta)
    yield "missing tensor"
    interrupted(tiny, replace(SMALL, batch=1), path.parent, 5)
    yield "another batch"


def test_a_run_ignores_a_damaged_checkpoint(tiny: Any, whole: Any, tmp_path: Path) -> None:
    interrupted(tiny, SMALL, tmp_path, 5)
    (path,) = tmp_path.iterdir()
    for damage in damages(path, tiny):
        assert equal(whole["psaq"], synthesise(*tiny, SMALL, 3, work=tmp_path, workers=1)), damage
        assert list(tmp_path.iterdir()) == [], damage
