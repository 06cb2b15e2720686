"""The command, and what ``toolchain.build`` calls at its end. Needs matplotlib and jinja2, not torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from runtime.cli import require_kept
from runtime.console import Console
from runtime.errors import IntvitError
from runtime.files import atomic_write_text
from toolchain.report.gather import REPORTS, gather


def write_report(bundles: Sequence[Path], out: Path) -> None:
    """Write one page of ``bundles`` to ``out``, whole or not at all.

    Raises:
        IntvitError: a bundle does not verify, a measurement beside it is malformed, matplotlib or jinja2 is not
            installed, or the file cannot be written.
    """
    try:
        from jinja2 import TemplateError

        from toolchain.report.page import render
    except ImportError as error:
        raise IntvitError("cannot write a report", why=str(error), next="pip install 'intvit[build]'") from error
    found = [gather(path) for path in bundles]
    try:
        page = render(found)
    except (TemplateError, KeyError, TypeError, ValueError) as error:
        raise IntvitError(
            "a measurement has another form than this version of intvit writes",
            where=", ".join(str(path / REPORTS) for path in bundles),
            why=f"{type(error).__name__}: {error}",
            next="write the files there again, or remove them",
        ) from error
    atomic_write_text(out, page)


def main(
    bundles: Annotated[list[Path], Argument(metavar="BUNDLE...", help="One bundle or several, to be compared.")],
    out: Annotated[
        Path | None, Option("--out", metavar="FILE.html", help="Default: report.html in the first bundle.")
    ] = None,
) -> None:
    """Write what is known of the bundles as one HTML file that needs nothing else."""
    path = out or bundles[0] / "report.html"
    require_kept(path, bundles)
    write_report(bundles, path)
    size = path.stat().st_size
    Console().print(f"wrote {path}, {size / 1e3:.0f} kB", markup=False, highlight=False, soft_wrap=True)
