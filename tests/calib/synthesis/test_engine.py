"""The optimisation loop: one seed, one result; interrupted or not; on the packaged network and a tiny Swin."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from calib.errors import IntvitError
from calib.models import LoadedModel, ModelSpec
from calib.synthesis import engine
from calib.synthesis.engine import SyntheticSet, _round_at, synthesise
from calib.synthesis.methods import NOISE, PSAQ, Round, SynthesisConfig
from calib.synthesis.priors.patch_entropy import patch_entropy_loss
from calib.synthesis.priors.total_variation import scaled_target, total_variation
from calib.taps import AttentionOutputs
from tests.calib.networks import SWIN_SIDE, spec_of, tiny_swin, tiny_vit

SMALL = replace(PSAQ, images=3, batch=2, iterations=8)


@pytest.fixture(scope="module")
def tiny() -> tuple[Any, ModelSpec]:
    model = tiny_vit()
    return model, spec_of(model, 32)


def same(one: SyntheticSet, two: SyntheticSet) -> bool:
    return torch.equal(one.images, two.images) and torch.equal(one.labels, two.labels) and one.history == two.history


def test_one_seed_one_result(tiny) -> None:
    first, second, other = synthesise(*tiny, SMALL, 1), synthesise(*tiny, SMALL, 1), synthesise(*tiny, SMALL, 2)
    assert same(first, second)
    assert not torch.equal(first.images, other.images)


def test_the_global_generator_is_neither_read_nor_moved(tiny) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = synthesise(*tiny, SMALL, 1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert same(first, synthesise(*tiny, SMALL, 1))


def test_what_comes_out(tiny) -> None:
    made = synthesise(*tiny, SMALL, 0)
    assert made.images.shape == (3, 3, 32, 32) and made.images.dtype == torch.float16
    assert made.labels.shape == (3,) and made.labels.dtype == torch.int64
    assert made.labels.min() >= 0 and made.labels.max() < 7
    assert made.images.min() >= 0 and made.images.max() <= 1
    assert [(row["batch"], row["step"]) for row in made.history] == [(b, s + 1) for b in range(2) for s in range(8)]
    for row in made.history:
        assert row.keys() == {"batch", "step", "entropy", "class", "tv", "total"}
        assert row["total"] == pytest.approx(row["entropy"] + row["class"] + row["tv"], rel=1e-5, abs=1e-5)


def test_batches_are_independent_of_how_many_follow(tiny) -> None:
    three, five = synthesise(*tiny, SMALL, 4), synthesise(*tiny, replace(SMALL, images=5), 4)
    assert five.images.shape[0] == 5
    assert torch.equal(three.images[:2], five.images[:2])
    assert not torch.equal(five.images[:2], five.images[2:4])


def test_the_network_is_not_changed(tiny) -> None:
    model, spec = tiny
    state = copy.deepcopy(model.state_dict())
    synthesise(model, spec, SMALL, 0)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_the_loss_goes_down_on_digits(digits: LoadedModel) -> None:
    made = synthesise(digits.module, digits.spec, replace(PSAQ, images=4, iterations=40), 0)
    first, last = made.history[0], made.history[-1]
    assert last["total"] < 0.2 * first["total"]
    assert last["class"] < first["class"] and last["tv"] < first["tv"] and last["entropy"] < first["entropy"]
    logits = digits.module(digits.spec.normalise(made.images.float()))
    noise = synthesise(digits.module, digits.spec, replace(NOISE, images=4), 0)
    before = digits.module(digits.spec.normalise(noise.images.float()))
    chosen = torch.arange(4)
    assert (logits.log_softmax(1)[chosen, made.labels]).mean() > (before.log_softmax(1)[chosen, made.labels]).mean() + 1


def test_swin() -> None:
    model = tiny_swin()
    made = synthesise(model, spec_of(model, SWIN_SIDE), replace(PSAQ, images=2, iterations=6), 0)
    assert made.images.shape == (2, 3, SWIN_SIDE, SWIN_SIDE)
    assert made.history[-1]["total"] < made.history[0]["total"]


def test_the_first_losses_are_the_priors_on_the_view(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand from the drawn images, rolled by at most 30 / 224 of their side."""
    monkeypatch.setattr(engine, "has_fast_bf16", lambda kind: False)
    model, spec = tiny
    config = replace(SMALL, images=2, iterations=1, flip=False, tv_target=(2500.0, 2500.0))
    start = engine._start(spec, config, 7, 0)
    view = engine.random_roll(start.images, 4, torch.Generator().set_state(start.generator.get_state()))
    with AttentionOutputs(model) as taps:
        logits = model(view)
    target = scaled_target(2500.0, view.numel())
    row = synthesise(model, spec, config, 7).history[0]
    assert row["entropy"] == pytest.approx(float(patch_entropy_loss(taps.values, 1)), rel=1e-4)
    assert row["class"] == pytest.approx(float(torch.nn.functional.cross_entropy(logits, start.labels)), rel=1e-4)
    assert row["tv"] == pytest.approx(0.05 * abs(float(total_variation(view)) - target), rel=1e-4)


def test_adam_is_torchs(tiny) -> None:
    """Without clamping; the rate changes from step to step."""
    generator = torch.Generator().manual_seed(0)
    state = engine._start(tiny[1], replace(SMALL, images=1), 0, 0)
    twin = state.images.clone().requires_grad_(True)
    optimiser = torch.optim.Adam([twin], lr=1.0, betas=(0.5, 0.9), eps=1e-8)
    for count in range(1, 6):
        gradient = torch.randn(twin.shape, generator=generator)
        optimiser.param_groups[0]["lr"] = 0.1 * count
        twin.grad = gradient.clone()
        optimiser.step()
        engine._adam(state, gradient, 0.1 * count, (0.5, 0.9), count)
    assert torch.allclose(state.images, twin, atol=1e-5)


def test_every_round_starts_adam_anew_and_every_step_stays_within_the_pixels(
    tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, spec = tiny
    low, high = engine._pixel_limits(spec, torch.zeros(1))
    counts: list[int] = []
    adam = engine._adam

    def watched(state: engine.BatchState, gradient: torch.Tensor, lr: float, betas: tuple, count: int) -> None:
        counts.append(count)
        fresh = not (state.first.any() or state.second.any())
        assert fresh is (count == 1)
        assert (state.images >= low).all() and (state.images <= high).all()
        adam(state, gradient, lr, betas, count)
        if count == 1:  # without a history, every pixel moves by the whole rate
            assert float((state.images - before).abs().median()) == pytest.approx(lr, rel=1e-3)

    def gradient(*args: Any) -> Any:
        nonlocal before
        before = args[3].images.clone()
        return original(*args)

    before, original = torch.zeros(1), engine._gradient
    monkeypatch.setattr(engine, "_adam", watched)
    monkeypatch.setattr(engine, "_gradient", gradient)
    synthesise(model, spec, replace(SMALL, images=2), 0)
    assert counts == [1, 2, 3, 4, 1, 2, 3, 4]


def test_noise_has_no_iterations(tiny) -> None:
    seen: list[tuple[int, int, str]] = []
    spec = tiny[1]
    made = synthesise(*tiny, replace(NOISE, images=5, batch=2), 0, progress=lambda *a: seen.append(a))
    assert made.history == [] and made.images.shape[0] == 5
    assert seen == [(3, 3, "")]
    drawn = torch.randn((2, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    expected = spec.denormalise(drawn).clamp(0, 1).half()
    assert torch.allclose(made.images[:2].float(), expected.float(), atol=2e-3)


@pytest.mark.parametrize("count", [0, -1])
def test_no_images_are_refused(tiny, count: int) -> None:
    with pytest.raises(IntvitError, match="at least one image") as caught:
        synthesise(*tiny, replace(SMALL, images=count), 0)
    assert caught.value.where == "--images" and str(count) in caught.value.why


def test_divergence_is_told(tiny) -> None:
    model = copy.deepcopy(tiny[0])
    model.head.weight.data[0, 0] = float("nan")
    with pytest.raises(IntvitError, match="diverged") as caught:
        synthesise(model, tiny[1], SMALL, 0)
    assert "batch 0, iteration 1" in caught.value.where and "--seed" in caught.value.next


def test_progress_counts_every_iteration_once(tiny) -> None:
    seen: list[tuple[int, int, str]] = []
    synthesise(*tiny, SMALL, 0, progress=lambda *a: seen.append(a))
    assert [done for done, _, _ in seen] == [*range(1, 17), 16]
    assert {total for _, total, _ in seen} == {16}
    assert seen[3][2].startswith("loss ")


@pytest.mark.parametrize(
    ("iterations", "expected"),
    [
        (8, [(0, 0, 4), (0, 3, 4), (1, 0, 4), (1, 3, 4)]),
        (1000, [(0, 0, 500), (0, 499, 500), (1, 0, 500), (1, 499, 500)]),
        (5, [(0, 0, 2), (0, 1, 2), (1, 0, 3), (1, 2, 3)]),
        (1, [(1, 0, 1), (1, 0, 1)]),
    ],
)
def test_rounds(iterations: int, expected: list[tuple[int, int, int]]) -> None:
    config = SynthesisConfig("two", iterations=iterations, rounds=(Round(0.5, 15), Round(0.5, 30)))
    runs = [_round_at(config, step) for step in range(iterations)]
    assert len(runs) == iterations
    edges = [
        (config.rounds.index(part), inner, length)
        for part, inner, length in runs
        if inner in (0, length - 1) or iterations == 1
    ]
    assert edges[:4] == expected[: len(edges)]
    assert all(0 <= inner < length for _, inner, length in runs)


class Stop(Exception):
    pass


def interrupted(tiny, config: SynthesisConfig, work: Path, at: int) -> None:
    """Run until the progress callback is told of iteration ``at``, then stop as Ctrl-C would."""

    def stop(done: int, total: int, note: str) -> None:
        if done == at:
            raise Stop

    with pytest.raises(Stop):
        synthesise(*tiny, config, 3, work=work, progress=stop)


@pytest.mark.parametrize("at", [1, 2, 4, 5, 8, 9, 12, 16])
def test_going_on_gives_what_an_uninterrupted_run_gives(
    tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """Two batches of 8; the callback stops before iteration ``at`` is written."""
    monkeypatch.setattr(engine, "SAVE_EVERY_S", -1.0)
    whole = synthesise(*tiny, SMALL, 3)
    work = tmp_path / "work"
    interrupted(tiny, SMALL, work, at)
    steps: list[int] = []
    resumed = synthesise(*tiny, SMALL, 3, work=work, progress=lambda done, *_: steps.append(done))
    assert same(whole, resumed)
    assert steps == [*range(at, 17), 16]  # nothing that was written is done again
    assert list(work.iterdir()) == []


def test_going_on_twice(tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "SAVE_EVERY_S", -1.0)
    for at in (3, 7, 11):
        interrupted(tiny, SMALL, tmp_path, at)
    assert same(synthesise(*tiny, SMALL, 3), synthesise(*tiny, SMALL, 3, work=tmp_path))


def test_between_checkpoints_work_is_done_again_with_the_same_result(
    tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "SAVE_EVERY_S", 1e9)
    interrupted(tiny, SMALL, tmp_path, 13)  # only the first batch's end was written
    steps: list[int] = []
    resumed = synthesise(*tiny, SMALL, 3, work=tmp_path, progress=lambda done, *_: steps.append(done))
    assert steps[0] == 9
    assert same(synthesise(*tiny, SMALL, 3), resumed)


@pytest.mark.parametrize("damage", ["empty", "truncated", "text", "header", "other-batch-size", "missing-tensor"])
def test_a_damaged_checkpoint_is_ignored(tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    monkeypatch.setattr(engine, "SAVE_EVERY_S", -1.0)
    interrupted(tiny, SMALL, tmp_path, 5)
    (path,) = tmp_path.iterdir()
    raw = path.read_bytes()
    if damage == "other-batch-size":
        path.unlink()
        interrupted(tiny, replace(SMALL, batch=1), tmp_path, 5)
    elif damage == "missing-tensor":
        tensors = load_file(path)
        del tensors["second"]
        save_file(tensors, path, {"history": "[]"})
    else:
        path.write_bytes(
            {"empty": b"", "truncated": raw[:-100], "text": b"no", "header": b"\xff" * 9 + raw[9:]}[damage]
        )
    assert same(synthesise(*tiny, SMALL, 3), synthesise(*tiny, SMALL, 3, work=tmp_path))
    assert list(tmp_path.iterdir()) == []
