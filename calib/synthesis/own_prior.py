"""A prior of one's own, in one file: ``--prior FILE.py=WEIGHT`` adds its ``loss`` to any method that optimises.

The file defines ``loss(images, attention)``; nothing need be registered. ``images``: (B, 3, H, W) float32, normalised,
with gradient. ``attention``: :class:`Attention`. The result is a scalar tensor, the mean over images, so that its
weight does not depend on the group size. The file is run as it stands: give only your own.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from calib.errors import IntvitError
from calib.memory import out_of_memory

if TYPE_CHECKING:
    from importlib.abc import Loader
    from importlib.machinery import ModuleSpec

    from torch import Tensor

    from calib.synthesis.methods import SynthesisConfig

ENTRY = "loss"
_HINT = f"define {ENTRY}(images, attention) in it, giving a scalar tensor: docs/synthesis.md"


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

    def value(self, images: Tensor, attention: Attention) -> Tensor:
        """What the function gives: a scalar with a gradient.

        Raises:
            IntvitError: it raises, or gives something else or no finite number.
        """
        try:
            found = self.loss()(images, attention)
        except Exception as error:
            if isinstance(error, IntvitError) or out_of_memory(error):
                raise
            why = f"{type(error).__name__}: {error}"
            raise IntvitError("the prior failed", where=self.file, why=why, next=_HINT) from error
        if getattr(found, "ndim", None) != 0:
            shape = f" of shape {tuple(found.shape)}" if hasattr(found, "shape") else ""
            why = f"it is a {type(found).__name__}{shape}"
        elif not found.requires_grad:
            why = "it has no gradient: it depends neither on the images nor on what attention did with them"
        elif not math.isfinite(number := float(found.detach())):
            why = f"it is {number}"
        else:
            return found
        raise IntvitError("the prior's loss cannot be minimised", where=self.file, why=why, next=_HINT)


def parse_prior(text: str) -> OwnPrior:
    """``FILE.py=WEIGHT`` as an :class:`OwnPrior`, the file run once.

    Raises:
        IntvitError: it is not of that form, or the file cannot be read or does not run.
    """
    file, _, weight = text.rpartition("=")
    try:
        if not file:
            raise ValueError("no file")
        if not math.isfinite(float(weight)):
            raise ValueError("no weight")
        own = OwnPrior(file, hashlib.sha256(Path(file).read_bytes()).hexdigest(), float(weight))
    except ValueError as error:
        raise IntvitError(f"not a prior: {text!r}", where="--prior", next="write it as FILE.py=WEIGHT") from error
    except OSError as error:
        why = error.strerror or str(error)
        raise IntvitError("cannot read the prior", where=file, why=why, next="write it as FILE.py=WEIGHT") from error
    own.loss()
    return own


@functools.cache
def _load(file: str, sha256: str) -> Callable[[Tensor, Attention], Tensor]:
    try:
        if hashlib.sha256(Path(file).read_bytes()).hexdigest() != sha256:
            raise IntvitError("the prior has changed while it was used", where=file, next="run the command again")
        spec = importlib.util.spec_from_file_location(_module_name(file, sha256), file)
        if spec is None or spec.loader is None:
            raise IntvitError("the prior is no Python file", where=file, next=_HINT)
        return _run(spec, spec.loader)
    except IntvitError:
        raise
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        raise IntvitError("the prior does not load", where=file, why=why, next=_HINT) from error


def _module_name(file: str, sha256: str) -> str:
    """One that no import statement can say, and that only this file in this version has."""
    return "own prior " + hashlib.sha256(f"{Path(file).resolve()}\n{sha256}".encode()).hexdigest()[:16]


def _run(spec: ModuleSpec, loader: Loader) -> Callable[[Tensor, Attention], Tensor]:
    """The function of the module, which is registered as an import would: dataclasses look their module up."""
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        loader.exec_module(module)
        found: Callable[[Tensor, Attention], Tensor] = getattr(module, ENTRY)
        if not callable(found):
            raise TypeError(f"{ENTRY} is a {type(found).__name__}, not a function")
    except BaseException:
        sys.modules.pop(spec.name, None)
        raise
    return found


# the names of the methods' own losses, and of what the history has beside them
TAKEN = frozenset({"entropy", "heads", "attention", "class", "tv", "total", "batch", "step"})


def with_priors(config: SynthesisConfig, own: Sequence[OwnPrior]) -> SynthesisConfig:
    """The method with these priors beside its own losses, in every part that optimises.

    Raises:
        IntvitError: there are some and the method optimises nothing; two of one name, or one that a method's own loss
            or a column of the history has.
    """
    if not own:
        return config
    names = [prior.name for prior in own]
    taken = next((name for name in names if name in TAKEN or names.count(name) > 1), None)
    if taken is not None:
        why = f"losses are told apart by the file's name, and {taken!r} is another's"
        raise IntvitError(f"two losses are called {taken}", where="--prior", why=why, next="rename the file")
    if not config.iterations:
        why = f"method {config.method!r} only draws its images"
        raise IntvitError("a prior needs a method that optimises", where="--prior", why=why, next="--method best")
    parts = tuple(with_priors(part, own) if part.iterations else part for part in config.mixture)
    return replace(config, priors=replace(config.priors, own=tuple(own)), mixture=parts)
