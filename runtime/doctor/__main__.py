"""Run the doctor: ``python -m runtime.doctor [BUNDLE]``."""

from __future__ import annotations

from runtime import cli
from runtime.doctor.command import main

if __name__ == "__main__":
    cli.run(main)
