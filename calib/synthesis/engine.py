"""The optimisation loop: images that a frozen network finds natural. Resumable to the bit; one seed, one result.

A set is made in groups of images. A group is always made by one thread on the CPU (several groups at a time), or by
one device, from generators named by the image and the group: the images are the same bytes however many threads,
processes or machines share the work.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue

import torch
from torch import Tensor, nn

from calib.errors import IntvitError
from calib.models import ModelSpec
from calib.quant.families import is_swin
from calib.synthesis.checkpoints import drop, restore, save
from calib.synthesis.losses import gradient, wanted
from calib.synthesis.methods import Optimiser, SynthesisConfig
from calib.synthesis.plan import Group, groups
from calib.synthesis.priors.attention_prior import layouts
from calib.synthesis.schedule import rate_at, round_at
from calib.synthesis.state import GroupState, pixel_limits, start
from calib.synthesis.twin import fitting_batch, half_size, twins
from calib.taps import AttentionTaps

Progress = Callable[[int, int, str], None]
SAVE_EVERY_S = 5.0
NO_CLASS = -1


@dataclass
class SyntheticSet:
    """Images (B, 3, H, W) float16 in [0, 1], labels (B,) int64, and the loss terms over the iterations.

    ``labels`` holds the foremost intended class, -1 where there is none; ``classes`` (B, M) int64 all of them, foremost
    first, padded with -1.
    A row of ``history`` has ``batch`` (the group's first image), ``step`` and the weighted terms.
    """

    images: Tensor
    labels: Tensor
    history: list[dict[str, float]] = field(default_factory=list)
    classes: Tensor | None = None


@dataclass
class Made:
    """One finished group: float16 images in [0, 1], the intended classes of each, and its history."""

    members: tuple[int, ...]
    images: Tensor
    classes: list[list[int]]
    history: list[dict[str, float]]


@dataclass(frozen=True)
class Share:
    """Which part of the groups this process makes: every ``of``-th from the ``mine``-th on."""

    mine: int = 0
    of: int = 1


def synthesise(
    model: nn.Module,
    spec: ModelSpec,
    config: SynthesisConfig,
    seed: int,
    device: str = "cpu",
    work: Path | None = None,
    progress: Progress | None = None,
    workers: int | None = None,
) -> SyntheticSet:
    """Make ``config.images`` images from ``model`` alone.

    Args:
        model: float timm network; not changed. device: torch device. work: folder for checkpoints (resume), or None.
        progress: called as (iterations done, in all, note). workers: groups made at a time on the CPU; default:
            torch's number of threads. It does not change the images.

    Raises:
        IntvitError: no images asked for, or the optimisation diverged.
    """
    made = make_groups(model, spec, config, seed, device, work, progress, workers)
    if work is not None:
        for group in made:
            drop(work, group.members[0])
    return assemble(made, config.images)


def make_groups(
    model: nn.Module,
    spec: ModelSpec,
    config: SynthesisConfig,
    seed: int,
    device: str = "cpu",
    work: Path | None = None,
    progress: Progress | None = None,
    workers: int | None = None,
    share: Share | None = None,
    agree: Callable[[int], int] = int,
) -> list[Made]:
    """This process's share of the groups of a set, in order; see :func:`synthesise`. Checkpoints are left in place.

    ``agree`` turns the batch that fits this process into the one that all have in common: groups cut differently would
    leave images out and make others twice.
    """
    if config.images < 1:
        raise IntvitError(
            "at least one image is needed", where="--images", why=f"got {config.images}", next="give 1 or more"
        )
    share = share or Share()
    cpu = torch.device(device).type == "cpu"
    threads = torch.get_num_threads()
    count = max(1, workers or threads) if cpu else 1
    try:
        pool = twins(model, 1, device)
        batch = config.batch or agree(_auto_batch(pool[0], spec, config, device))
        mine = groups(config, batch)[share.mine :: share.of]
        count = min(count, max(1, len(mine)))
        run = _Run(spec, seed, device, work, _Counter(progress, mine))
        if count == 1:
            run.one_thread(cpu)
            return [run.make(pool[0], group) for group in mine]
        return _in_threads(run, twins(model, count, device), mine)
    finally:
        torch.set_num_threads(threads)


def starting_images(model: nn.Module, spec: ModelSpec, config: SynthesisConfig, seed: int) -> Tensor:
    """What the images of a set were before the first iteration: (B, 3, H, W) float32 in [0, 1]."""
    layout = layouts(model)
    singles = [start(spec, layout, group, seed) for group in groups(config, 1)]
    return spec.denormalise(torch.cat([state.images for state in singles])).clamp(0, 1)


def assemble(made: list[Made], count: int) -> SyntheticSet:
    """The whole set of ``count`` images from its groups, in their order.

    Raises:
        IntvitError: the groups do not have each of them once.
    """
    _require_each_once(Counter(index for group in made for index in group.members), count)
    flat = sorted(
        (index, image, classes)
        for group in made
        for index, image, classes in zip(group.members, group.images.unbind(0), group.classes, strict=True)
    )
    width = max(1, *(len(classes) for _, _, classes in flat))
    padded = torch.tensor([classes + [NO_CLASS] * (width - len(classes)) for _, _, classes in flat])
    history = [row for group in sorted(made, key=lambda group: group.members) for row in group.history]
    return SyntheticSet(torch.stack([image for _, image, _ in flat]), padded[:, 0].clone(), history, padded)


def _require_each_once(times: Counter[int], count: int) -> None:
    faults = {
        "never made": [index for index in range(count) if index not in times],
        "made twice": sorted(index for index, number in times.items() if number > 1),
        "not asked for": sorted(index for index in times if index not in range(count)),
    }
    if any(faults.values()):
        said = (f"{fault}: {', '.join(map(str, found[:5]))}" for fault, found in faults.items() if found)
        raise IntvitError(
            "the processes did not share out the images as one",
            where=f"{count} images",
            why="; ".join(said),
            next="start all of them with the same command and the same intvit, and give --batch",
        )


def _auto_batch(model: nn.Module, spec: ModelSpec, config: SynthesisConfig, device: str) -> int:
    parts = config.mixture or (config,)
    if not any(part.iterations for part in parts):
        return 64
    return fitting_batch(model, spec, device, 1 + max(part.views.patches for part in parts))


class _Counter:
    """Adds up the iterations of all threads, and tells how many images a minute that makes."""

    def __init__(self, progress: Progress | None, mine: list[Group]) -> None:
        self._progress, self._lock = progress, threading.Lock()
        self._total = sum(max(group.config.iterations, 1) for group in mine)
        self._images = sum(len(group.members) for group in mine)
        self._done = self._resumed = 0
        self._begun = time.monotonic()

    def add(self, steps: int, note: str, resumed: bool = False) -> None:
        with self._lock:
            self._done += steps
            self._resumed += steps * resumed
            if self._progress is not None:
                share = (self._done - self._resumed) / max(self._total, 1)
                rate = 60 * self._images * share / max(time.monotonic() - self._begun, 1e-3)
                self._progress(self._done, self._total, f"{note}{rate:.1f} images/min")


@dataclass
class _Run:
    """What all groups of a run share."""

    spec: ModelSpec
    seed: int
    device: str
    work: Path | None
    counter: _Counter
    stop: threading.Event = field(default_factory=threading.Event)

    @staticmethod
    def one_thread(cpu: bool) -> None:
        if cpu:
            torch.set_num_threads(1)

    def make(self, model: nn.Module, group: Group) -> Made:
        """One group from where its checkpoint left it, or from the start, to the end."""
        state = start(self.spec, layouts(model), group, self.seed)
        if self.work is not None:
            state = restore(self.work, group.first, state)
        state = state.to(self.device)
        if state.step:
            self.counter.add(state.step, "", resumed=True)
        if group.config.iterations:
            self._optimise(model, group, state)
        else:
            self.counter.add(1, "")
        images = self.spec.denormalise(state.images).clamp(0, 1).half().cpu()
        return Made(group.members, images, state.classes, state.history)

    def _optimise(self, model: nn.Module, group: Group, state: GroupState) -> None:
        half = half_size(model, self.spec) if group.config.warm else None
        warm = group.warm_steps(half is not None)
        if half is not None and state.step < warm:
            if state.step == 0:
                state.halve()
            self._descend(half, group, state, warm)
        if state.halved and state.step == warm:
            state.grow()
        if not self.stop.is_set():
            self._descend(model, group, state, group.config.iterations)
        if self.work is not None:
            save(self.work, group.first, state)

    def _descend(self, model: nn.Module, group: Group, state: GroupState, until: int) -> None:
        config, saved = group.config, time.monotonic()
        low, high = pixel_limits(self.spec, state.images)
        with AttentionTaps(model, wanted(config)) as taps:
            while state.step < until and not self.stop.is_set():
                terms, slope = gradient(model, config, state, taps)
                descend(config, is_swin(model), state, slope)
                state.images.clamp_(low, high)
                state.step += 1
                if not torch.isfinite(state.images).all():
                    raise IntvitError(
                        "synthesis diverged",
                        where=f"images from {group.first} on, iteration {state.step}",
                        why="a pixel is not a finite number",
                        next="try another --seed",
                    )
                state.history.append({"batch": group.first, "step": state.step, **terms})
                self.counter.add(1, f"loss {terms['total']:.2f}, ")
                if self.work is not None and time.monotonic() - saved > SAVE_EVERY_S:
                    save(self.work, group.first, state)
                    saved = time.monotonic()


def _in_threads(run: _Run, models: list[nn.Module], mine: list[Group]) -> list[Made]:
    """Several groups at a time, each with a copy of the network of its own; the first failure stops all."""
    idle: SimpleQueue[nn.Module] = SimpleQueue()
    for model in models:
        idle.put(model)

    def work(group: Group) -> Made | None:
        if run.stop.is_set():
            return None
        run.one_thread(True)
        model = idle.get()
        try:
            return run.make(model, group)
        finally:
            idle.put(model)

    with ThreadPoolExecutor(len(models)) as pool:
        tasks = [pool.submit(work, group) for group in mine]
        try:
            wait(tasks, return_when=FIRST_EXCEPTION)
        finally:
            if not all(task.done() and task.exception() is None for task in tasks):
                run.stop.set()
    made = [task.result() for task in tasks]
    return [group for group in made if group is not None]


def descend(config: SynthesisConfig, swin: bool, state: GroupState, slope: Tensor) -> None:
    """One step of Adam, or of AdamW (Loshchilov & Hutter, 2019) where there is a weight decay."""
    optimiser, step, steps = config.optimiser, state.step, config.iterations
    if optimiser.restart:
        _, step, steps = round_at(config.rounds, config.iterations, state.step)
    adam(state, slope, rate_at(optimiser, swin, step, steps), optimiser, state.step - state.since + 1)


def adam(state: GroupState, slope: Tensor, rate: float, optimiser: Optimiser, count: int) -> None:
    """Adam (Kingma & Ba, 2015) on ``state.images``, its moments kept in ``state`` so that a checkpoint is complete."""
    one, two = optimiser.betas
    state.first.mul_(one).add_(slope, alpha=1 - one)
    state.second.mul_(two).addcmul_(slope, slope, value=1 - two)
    spread = state.second.sqrt().div_(math.sqrt(1 - two**count)).add_(1e-8)
    if optimiser.weight_decay:
        state.images.mul_(1 - rate * optimiser.weight_decay)
    state.images.addcdiv_(state.first, spread, value=-rate / (1 - one**count))
