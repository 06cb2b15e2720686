"""``python -m toolchain.lint MODEL.onnx --target T``: what a target would refuse, get wrong, or run slowly.

Works on any ONNX graph, whoever wrote it. The rules are in ``toolchain/rules``; docs/lint.md lists them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from runtime import cli
from runtime.bundle import Bundle
from runtime.console import Console
from runtime.errors import IntvitError
from runtime.files import atomic_write_json
from toolchain.targets.choices import TARGETS

if TYPE_CHECKING:
    from toolchain.rules import Finding

SHOWN = 3


def graph_of(path: Path, target: str) -> Path:
    """``path`` itself, or of a bundle the target's graph; the canonical one where it has none of that target.

    Raises:
        IntvitError: the bundle is damaged.
    """
    if not path.is_dir():
        return path
    bundle = Bundle.open(path)
    held = any(entry.role == "graph" and entry.target == target for entry in bundle.manifest.files)
    return bundle.file("graph", target) if held else bundle.file("canonical")


def check_target(target: str) -> str:
    """``target`` if there are rules for it.

    Raises:
        IntvitError: there are none.
    """
    if target not in TARGETS:
        raise IntvitError(f"no rules for the target {target!r}", where="--target", next="known: " + ", ".join(TARGETS))
    return target


def report(path: Path, target: str, found: Sequence[Finding]) -> dict[str, Any]:
    """The findings and their counts, as JSON writes them."""
    errors = sum(finding.severity == "error" for finding in found)
    return {
        "model": str(path),
        "target": target,
        "errors": errors,
        "warnings": len(found) - errors,
        "findings": [finding.to_json() for finding in found],
    }


def _show(found: Sequence[Finding], path: Path, target: str, console: Console) -> None:
    groups: dict[str, list[Finding]] = {}
    for finding in found:
        groups.setdefault(finding.rule, []).append(finding)
    if groups:
        table = Table(title=Text(f"{path} on {target}"), show_lines=True)
        for column in ("rule", "nodes", "what", "why, and what to do"):
            table.add_column(column, overflow="fold")
        for rule, members in groups.items():
            first = members[0]
            more = len(members) - SHOWN
            lines = [f"{member.node}: {member.what}" for member in members[:SHOWN]]
            what = "\n".join([*lines, f"and {more} more"] if more > 0 else lines)
            style = "red" if first.severity == "error" else "yellow"
            what_and_why = (Text(what), Text(f"{first.why}\n→ {first.next}"))  # neither they nor a path are markup
            table.add_row(f"{rule}\n[{style}]{first.severity}[/]", str(len(members)), *what_and_why)
        console.print(table)
    errors = sum(finding.severity == "error" for finding in found)
    console.print(f"{path} on {target}: {errors} errors, {len(found) - errors} warnings", markup=False, soft_wrap=True)


def main(
    graph: Annotated[Path, typer.Argument(metavar="MODEL", help="An .onnx file, or a bundle's directory.")],
    target: Annotated[str, typer.Option("--target", metavar="T", help="Whose rules: " + ", ".join(TARGETS) + ".")],
    json: cli.JsonOption = None,
) -> None:
    """Hold an ONNX graph against a target's rules; exit code 1 when one is broken."""
    path = graph_of(graph, check_target(target))
    from toolchain.onnx_file import read  # not above: --help need not wait for onnx
    from toolchain.rules import findings

    found = findings(read(path), target)
    _show(found, path, target, Console())
    if json is not None:
        atomic_write_json(json, report(path, target, found))
    if any(finding.severity == "error" for finding in found):
        raise typer.Exit(1)


if __name__ == "__main__":
    cli.run(main)
