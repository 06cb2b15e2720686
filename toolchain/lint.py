"""``python -m toolchain.lint MODEL.onnx --target T``: what a target would refuse, get wrong, or run slowly.

Works on any ONNX graph, whoever wrote it. The rules are in ``toolchain/rules``; docs/lint.md lists them.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common
import typer
from rich.console import Console
from rich.table import Table

from runtime import cli
from runtime.bundle import Bundle
from runtime.errors import IntvitError
from runtime.files import atomic_write_json
from toolchain.rules import TARGETS, Finding, findings
from toolchain.rules.graph import DEQUANTIZE, QUANTIZE

SHOWN = 3
_READ_HINT = "check that it is the whole .onnx file, with its external data beside it"


def read(path: Path) -> ir.Model:
    """An ONNX file as the rules want it: functions inlined, Constant nodes as initializers, shapes inferred.

    Raises:
        IntvitError: there is no such file, it is not ONNX, it holds no graph, a tensor's bytes are missing, or a node
            reads a tensor that nothing makes.
    """
    if not path.is_file():
        raise IntvitError("there is no such model", where=str(path), next="give an .onnx file or a bundle's directory")
    with _quiet():  # what onnx-ir notes while reading is raised below; where inference gives up, known types do
        model = _load(path)
        _check_whole(model, path)
        if model.functions:
            common.InlinePass()(model)
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        common.ShapeInferencePass(check_type=False, strict_mode=False)(model)
    return model


def _load(path: Path) -> ir.Model:
    try:
        model = ir.load(path)
    except OSError as error:
        raise IntvitError("cannot read the model", where=str(path), why=error.strerror or str(error)) from error
    except Exception as error:  # protobuf, onnx and onnx-ir each have their own on bytes that are no model
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise IntvitError("the file is not an ONNX model", where=str(path), why=why, next=_READ_HINT) from error
    if not len(model.graph):
        raise IntvitError("the model holds no graph", where=str(path), why="no node in it", next=_READ_HINT)
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    log = logging.getLogger("onnx_ir")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)


def _check_whole(model: ir.Model, path: Path) -> None:
    for name, stored in model.graph.initializers.items():
        try:
            array = stored.const_value.numpy() if stored.const_value is not None else None
        except Exception as error:  # a missing file, too few bytes, an unknown type: each reader has its own
            raise IntvitError(
                "a tensor of the model cannot be read", where=f"{path}: {name}", why=str(error), next=_READ_HINT
            ) from error
        if array is None:
            raise IntvitError("a tensor of the model has no values", where=f"{path}: {name}", next=_READ_HINT)
    opset = model.opset_imports.get("", onnx.defs.onnx_opset_version())
    for node in model.graph.all_nodes():
        fault = _malformed(node, opset)
        if fault:
            label = f"{path}: {node.name or node.op_type}"
            raise IntvitError("a node is not what ONNX defines", where=label, why=fault, next=_READ_HINT)
        for value in node.inputs:
            if value is None or value.producer() is not None or value.is_graph_input() or value.is_initializer():
                continue
            raise IntvitError(
                "a node reads a tensor that nothing makes",
                where=f"{path}: {node.name or node.op_type}",
                why=f"{value.name!r} is no input, no initializer and no node's output",
                next=_READ_HINT,
            )


def _malformed(node: ir.Node, opset: int) -> str:
    """How a node of ONNX's own breaks its operator's signature, as far as the rules rely on it; empty where not."""
    texts = [node.op_type, node.domain, node.name or "", *(value.name or "" for value in node.outputs)]
    if not all(isinstance(text, str) for text in texts):
        return "one of its names is not UTF-8"
    if not onnx.defs.has(node.op_type) or (node.domain and node.op_type not in (QUANTIZE, DEQUANTIZE)):
        return ""
    try:
        schema = onnx.defs.get_schema(node.op_type, opset)
    except onnx.defs.SchemaError:  # younger than the opset, which is a rule's business
        schema = onnx.defs.get_schema(node.op_type)
    if len(node.inputs) < schema.min_input or not node.outputs:
        return f"{node.op_type} has {len(node.inputs)} inputs and {len(node.outputs)} outputs"
    for name, attribute in node.attributes.items():
        declared = schema.attributes.get(name)
        kind = str(declared.type).rsplit(".", 1)[-1] if declared is not None else attribute.type.name
        if kind != attribute.type.name:
            return f"its attribute {name} is {attribute.type.name}, not {kind}"
    return ""


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
        table = Table(title=f"{path} on {target}", show_lines=True)
        for column in ("rule", "nodes", "what", "why, and what to do"):
            table.add_column(column, overflow="fold")
        for rule, members in groups.items():
            first = members[0]
            more = len(members) - SHOWN
            lines = [f"{member.node}: {member.what}" for member in members[:SHOWN]]
            what = "\n".join([*lines, f"and {more} more"] if more > 0 else lines)
            style = "red" if first.severity == "error" else "yellow"
            table.add_row(
                f"{rule}\n[{style}]{first.severity}[/]", str(len(members)), _plain(what), f"{first.why}\n→ {first.next}"
            )
        console.print(table)
    errors = sum(finding.severity == "error" for finding in found)
    console.print(f"{path} on {target}: {errors} errors, {len(found) - errors} warnings", markup=False, soft_wrap=True)


def _plain(text: str) -> str:
    return text.replace("[", r"\[")


def main(
    graph: Annotated[Path, typer.Argument(metavar="MODEL", help="An .onnx file, or a bundle's directory.")],
    target: Annotated[str, typer.Option("--target", metavar="T", help="Whose rules: " + ", ".join(TARGETS) + ".")],
    json: cli.JsonOption = None,
    debug: cli.DebugOption = False,
) -> None:
    """Hold an ONNX graph against a target's rules; exit code 1 when one is broken."""
    path = graph_of(graph, check_target(target))
    found = findings(read(path), target)
    if json is not None:
        atomic_write_json(json, report(path, target, found))
    _show(found, path, target, Console())
    if any(finding.severity == "error" for finding in found):
        raise typer.Exit(1)


if __name__ == "__main__":
    cli.run(main)
