"""``python -m runtime.bench BUNDLE``: how long one call takes, integer engine against float, side by side."""

from __future__ import annotations

from runtime.bench.command import main
from runtime.bench.measure import Plan, measure

__all__ = ["Plan", "main", "measure"]
