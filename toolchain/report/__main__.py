"""Run the command."""

from __future__ import annotations

from runtime import cli
from toolchain.report.command import main

if __name__ == "__main__":
    cli.run(main)
