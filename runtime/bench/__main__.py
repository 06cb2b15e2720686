"""Run the bench: ``python -m runtime.bench BUNDLE``."""

from __future__ import annotations

from runtime import cli
from runtime.bench.command import main

if __name__ == "__main__":
    cli.run(main)
