"""A prior of one's own, in one file: ``--prior FILE.py=WEIGHT`` adds its ``loss`` to any method that optimises.

The file defines ``loss(images, attention)``; nothing need be registered. ``images``: (B, 3, H, W) float32, normalised,
with gradient. ``attention``: :class:`Attention`. The result is a scalar tensor, the mean over images, so that its
weight does not depend on the group size. The file is run as it stands: give only your own.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from calib.errors import IntvitError

if TYPE_CHECKING:
    from torch import Tensor

    from calib.synthesis.methods import SynthesisConfig

ENTRY = "loss"


@dataclass(frozen=True)
class Attention:
    """What attention did with the images, a tensor a block: see :class:`calib.taps.AttentionTaps`."""

    values: list[Tensor]
    queries: list[Tensor]
    keys: list[Tensor]
    prefix_tokens: int


@dataclass(frozen=True)
class OwnPrior:
    """A file, its sha256 (so that images of another version of it are never taken for these), and a weight."""

    file: str
    sha256: str
    weight: float

    @property
    def name(self) -> str:
        """Of the loss term."""
        return Path(self.file).stem

    def loss(self) -> Callable[[Tensor, Attention], Tensor]:
        """The file's function.

        Raises:
            IntvitError: the file has changed since, does not run, or has no such function.
        """
        return _load(self.file, self.sha256)


def parse_prior(text: str) -> OwnPrior:
    """``FILE.py=WEIGHT`` as an :class:`OwnPrior`, the file run once.

    Raises:
        IntvitError: it is not of that form, or the file cannot be read or does not run.
    """
    file, _, weight = text.rpartition("=")
    try:
        if not file:
            raise ValueError("no file")
        own = OwnPrior(file, hashlib.sha256(Path(file).read_bytes()).hexdigest(), float(weight))
    except ValueError as error:
        raise IntvitError(f"not a prior: {text!r}", where="--prior", next="write it as FILE.py=WEIGHT") from error
    except OSError as error:
        raise IntvitError("cannot read the prior", where=file, why=error.strerror or str(error)) from error
    own.loss()
    return own


@functools.cache
def _load(file: str, sha256: str) -> Callable[[Tensor, Attention], Tensor]:
    hint = f"define {ENTRY}(images, attention) in it: docs/synthesis.md"
    try:
        if hashlib.sha256(Path(file).read_bytes()).hexdigest() != sha256:
            raise IntvitError("the prior has changed while it was used", where=file, next="run the command again")
        spec = importlib.util.spec_from_file_location(f"own_prior_{sha256[:12]}", file)
        if spec is None or spec.loader is None:
            raise IntvitError("the prior is no Python file", where=file, next=hint)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found: Callable[[Tensor, Attention], Tensor] = getattr(module, ENTRY)
    except IntvitError:
        raise
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        raise IntvitError("the prior does not load", where=file, why=why, next=hint) from error
    return found


def with_priors(config: SynthesisConfig, own: Sequence[OwnPrior]) -> SynthesisConfig:
    """The method with these priors beside its own losses, in every part that optimises.

    Raises:
        IntvitError: there are some and the method optimises nothing.
    """
    if not own:
        return config
    if not config.iterations:
        why = f"method {config.method!r} only draws its images"
        raise IntvitError("a prior needs a method that optimises", where="--prior", why=why, next="--method best")
    parts = tuple(with_priors(part, own) if part.iterations else part for part in config.mixture)
    return replace(config, priors=replace(config.priors, own=tuple(own)), mixture=parts)
