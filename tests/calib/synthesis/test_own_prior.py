"""A prior in one file: read, run beside the method's losses, and part of what names a set."""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from calib.errors import IntvitError
from calib.recipes import recipe, with_own_priors
from calib.synthesis.losses import gradient, wanted
from calib.synthesis.methods import BEST, NOISE, PROCEDURAL, PSAQ, SPDFQ
from calib.synthesis.own_prior import Attention, parse_prior, with_priors
from calib.synthesis.plan import Group
from calib.synthesis.priors.attention_prior import layouts
from calib.synthesis.state import start
from calib.synthesis.twin import twins
from calib.taps import AttentionTaps
from tests.calib.networks import VIT_SIDE, spec_of, tiny_vit

FLAT = """
def loss(images, attention):
    assert attention.prefix_tokens == 1
    assert {len(kept) for kept in (attention.values, attention.queries, attention.keys)} == {2}
    assert all(kept.shape[0] == len(images) for kept in attention.keys)
    return images.square().mean()
"""


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    path = tmp_path / "flat.py"
    path.write_text(FLAT)
    return path


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("method", [PSAQ, SPDFQ], ids=lambda method: method.method)
def test_its_term_and_gradient_are_added(flat: Path, method: object) -> None:
    """Of SPDFQ's patches, which the network sees as images of their own, the prior sees nothing."""
    assert isinstance(method, type(PSAQ))
    plain = replace(method, priors=replace(method.priors, normalise=False))
    config = with_priors(plain, [parse_prior(f"{flat}=2.5")])
    (model,) = twins(tiny_vit(), 1, "cpu")
    found = []
    for each in (plain, config):
        state = start(spec_of(model, VIT_SIDE), layouts(model), Group((0, 1), each), 3)
        with AttentionTaps(model, wanted(each)) as taps:
            found.append((*gradient(model, each, state, taps), state.images))
    (before, slope, images), (after, both, _) = found
    assert after["flat"] == pytest.approx(2.5 * float(images.square().mean()), rel=1e-5)
    assert after["total"] == pytest.approx(before["total"] + after["flat"], rel=1e-5)
    torch.testing.assert_close(both - slope, 5.0 * images / images.numel(), rtol=1e-3, atol=1e-7)


def test_every_part_that_optimises_gets_it_and_the_version_counts(flat: Path) -> None:
    own = parse_prior(f"{flat}=1")
    config = with_priors(replace(BEST, mixture=(*BEST.mixture, PROCEDURAL)), [own])
    assert [part.priors.own for part in config.mixture] == [(own,)] * 4 + [()]
    flat.write_text(FLAT + "\n# changed\n")
    assert asdict(with_priors(BEST, [parse_prior(f"{flat}=1")])) != asdict(with_priors(BEST, [own]))
    assert with_priors(BEST, []) is BEST


def test_a_recipe_takes_it(flat: Path) -> None:
    made = with_own_priors(recipe("psaq"), [f"{flat}=0.1"])
    assert made.synthesis is not None and made.synthesis.priors.own[0].weight == 0.1
    with pytest.raises(IntvitError, match="synthesised"):
        with_own_priors(recipe("real"), [f"{flat}=0.1"])


def test_a_method_that_only_draws_refuses_it(flat: Path) -> None:
    for config in (NOISE, PROCEDURAL):
        with pytest.raises(IntvitError, match="optimises"):
            with_priors(config, [parse_prior(f"{flat}=1")])


@pytest.mark.parametrize(
    ("text", "content", "fault"),
    [
        ("flat.py", None, "not a prior"),
        ("flat.py=much", FLAT, "not a prior"),
        ("absent.py=1", None, "cannot read"),
        ("empty.py=1", "", "does not load"),
        ("broken.py=1", "def loss(:", "does not load"),
        ("raises.py=1", "1 / 0", "ZeroDivisionError"),
        ("number.py=1", "loss = 3", "loss is a int, not a function"),
        ("flat.py=nan", FLAT, "not a prior"),
        ("flat.py=inf", FLAT, "not a prior"),
    ],
)
def test_what_is_no_prior_is_refused(
    text: str, content: str | None, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path(text.partition("=")[0]).write_text(content)
    with pytest.raises(IntvitError) as caught:
        parse_prior(text)
    assert fault in str(caught.value)


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ("images.mean((1, 2, 3))", "it is a Tensor of shape (2,)"),
        ("1.0", "it is a float"),
        ("None", "it is a NoneType"),
        ("images.detach().mean()", "no gradient"),
        ("images.mean() * float('nan')", "it is nan"),
        ("attention.nothing", "AttributeError"),
    ],
)
def test_a_loss_that_cannot_be_minimised_is_told_by_its_file(body: str, fault: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(f"def loss(images, attention):\n    return {body}\n")
    own = parse_prior(f"{path}=1")
    images = torch.zeros(2, 3, 4, 4, requires_grad=True)
    with pytest.raises(IntvitError) as caught:
        own.value(images, Attention([], [], [], 1))
    assert caught.value.where == str(path) and fault in caught.value.why and "docs/synthesis.md" in caught.value.next


def test_a_file_that_changes_meanwhile_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "first.py"
    path.write_text(FLAT)
    own = replace(parse_prior(f"{path}=1"), sha256="0" * 64)
    with pytest.raises(IntvitError, match="changed"):
        own.loss()


DATED = """
from __future__ import annotations
from dataclasses import dataclass


@dataclass
class Settings:
    part: float = 0.5


def loss(images, attention):
    return Settings().part * images.mean()
"""


def test_a_file_may_define_a_dataclass_with_annotations_of_the_future(tmp_path: Path) -> None:
    path = tmp_path / "settings.py"
    path.write_text(DATED)
    images = torch.ones(1, 3, 2, 2, requires_grad=True)
    value = parse_prior(f"{path}=1").value(images, Attention([], [], [], 1))
    assert float(value.detach()) == 0.5


@pytest.mark.parametrize("text", ["1 / 0", "raise SystemExit(3)", "loss = 3"])
def test_a_file_that_does_not_load_leaves_no_module(text: str, tmp_path: Path) -> None:
    path = tmp_path / "json.py"
    path.write_text(f"import json\n{text}\n")
    before = set(sys.modules)
    with pytest.raises((IntvitError, SystemExit)):
        parse_prior(f"{path}=1")
    assert set(sys.modules) == before


def test_equal_files_are_modules_of_their_own_and_no_importable_ones(tmp_path: Path) -> None:
    before, found = set(sys.modules), []
    for name in ("torch", "one", "two"):
        (tmp_path / f"{name}.py").write_text(FLAT)
        found.append(parse_prior(f"{tmp_path / name}.py=1").loss())
    added = set(sys.modules) - before
    assert len(added) == len({loss.__module__ for loss in found}) == 3
    assert not any(name.isidentifier() for name in added) and sys.modules["torch"] is torch


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you ...")])
def test_memory_that_runs_out_is_no_fault_of_the_prior(
    error: Exception, flat: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise error

    own = parse_prior(f"{flat}=1")
    monkeypatch.setattr(type(own), "loss", lambda _: failing)
    with pytest.raises(type(error)):
        own.value(torch.zeros(1), Attention([], [], [], 1))


@pytest.mark.parametrize("name", ["class", "tv", "attention", "entropy", "heads", "total", "step", "batch"])
def test_a_name_that_a_loss_or_a_column_has_is_refused(name: str, flat: Path, tmp_path: Path) -> None:
    """It would have been lost, or have taken the place of the method's own loss."""
    file = tmp_path / f"{name}.py"
    file.write_text(flat.read_text())
    with pytest.raises(IntvitError, match=f"two losses are called {name}"):
        with_priors(BEST, [parse_prior(f"{file}=1")])


def test_two_files_of_one_name_are_refused(flat: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = tmp_path / "other" / flat.name
    other.write_text(flat.read_text())
    with pytest.raises(IntvitError, match="two losses are called"):
        with_priors(BEST, [parse_prior(f"{flat}=1"), parse_prior(f"{other}=1")])
