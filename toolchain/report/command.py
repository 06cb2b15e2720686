"""The command, and what ``toolchain.build`` calls at its end. Needs matplotlib and jinja2, not torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from rich.console import Console
from typer import Argument, Option

from runtime import cli
from runtime.errors import IntvitError
from runtime.files import atomic_write_text
from toolchain.report.gather import gather


def write_report(bundles: Sequence[Path], out: Path) -> None:
    """Write one page of ``bundles`` to ``out``, whole or not at all.

    Raises:
        IntvitError: a bundle does not verify, a measurement beside it is malformed, matplotlib or jinja2 is not
            installed, or the file cannot be written.
    """
    try:
        from toolchain.report.page import render
    except ImportError as error:
        raise IntvitError("cannot write a report", why=str(error), next="pip install 'intvit[build]'") from error
    atomic_write_text(out, render([gather(path) for path in bundles]))


def main(
    bundles: Annotated[list[Path], Argument(metavar="BUNDLE...", help="One bundle or several, to be compared.")],
    out: Annotated[
        Path | None, Option("--out", metavar="FILE.html", help="Default: report.html in the first bundle.")
    ] = None,
    debug: cli.DebugOption = False,
) -> None:
    """Write what is known of the bundles as one HTML file that needs nothing else."""
    path = out or bundles[0] / "report.html"
    write_report(bundles, path)
    size = path.stat().st_size
    Console().print(f"wrote {path}, {size / 1e3:.0f} kB", markup=False, highlight=False, soft_wrap=True)
