"""Which images are made together. It depends on the method and the batch alone, never on who does the work."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from calib.synthesis.methods import SynthesisConfig


@dataclass(frozen=True)
class Group:
    """Images optimised together: their indices in the set, and the one method that makes them all."""

    members: tuple[int, ...]
    config: SynthesisConfig

    def warm_steps(self, able: bool) -> int:
        """Iterations at half resolution; none for a network that is not ``able``."""
        return round(self.config.warm * self.config.iterations) if able else 0

    @property
    def first(self) -> int:
        """The index that names the group."""
        return self.members[0]


def groups(config: SynthesisConfig, batch: int) -> list[Group]:
    """Every group of a set of ``config.images`` images, at most ``batch`` in each.

    Image i of a mixture belongs to part i modulo the number of parts, so that a small set has the same shares as a
    large one, and its images are the first of the large one's.
    """
    parts = config.mixture or (config,)
    found = []
    for number, part in enumerate(parts):
        mine = range(number, config.images, len(parts))
        found += [Group(tuple(mine[start : start + batch]), part) for start in range(0, len(mine), batch)]
    return sorted(found, key=lambda group: group.first)


def image_generator(seed: int, image: int, purpose: int = 0) -> torch.Generator:
    """A generator for one image (or for a group, named by its first image) of one seed.

    ``purpose`` keeps different uses apart: 0 what an image starts from, 1 what happens from step to step.
    """
    entropy = [seed % 2**32, image, purpose, seed % 2**63 >> 32]  # one word each: numpy joins the words of all
    words = np.random.SeedSequence(entropy).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(words[0] >> np.uint64(1)))
