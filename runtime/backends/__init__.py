"""The engines a bundle can run on, each behind the same small protocol."""

from __future__ import annotations

from runtime.backends.base import BACKENDS, Engine, backend_class, open_engine

__all__ = ["BACKENDS", "Engine", "backend_class", "open_engine"]
