"""``python -m runtime.doctor [BUNDLE]``: what this machine offers, what is wrong, and the command that mends it."""

from __future__ import annotations

from runtime.doctor.command import examine, main

__all__ = ["examine", "main"]
