"""Run an intvit bundle on a device: load it verified, compile, time, check and measure it. Needs no torch.

The verbs are modules: ``python -m runtime.compile``, ``bench``, ``parity``, ``accuracy`` and ``doctor``.
"""

from __future__ import annotations

from runtime.bundle import Bundle, entry_for, write_manifest
from runtime.errors import IntvitError
from runtime.manifest import Manifest

__all__ = ["Bundle", "IntvitError", "Manifest", "entry_for", "write_manifest"]
