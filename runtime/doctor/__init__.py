"""``python -m runtime.doctor [BUNDLE]``: what this machine offers, what is wrong, and the command that mends it."""

from __future__ import annotations

from runtime.doctor.command import examine, main
from runtime.doctor.nvidia import nvidia_driver

__all__ = ["examine", "main", "nvidia_driver"]
