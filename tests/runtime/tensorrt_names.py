"""Which names of TensorRT a source touches, and which of them a version lacks: read from the source, nothing is run."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
LISTS = REPO / "tests/runtime/data/tensorrt-api"
VERSIONS = ("10.3", "10.13", "10.16", "11.0", "11.4", "rtx-1.7.1")
TYPES = "runtime.backends.trt.types"
MODULE = "TensorRT"
# Members of TensorRT's classes that other objects have too: a base of unknown type says nothing with these.
COMMON = frozenset(
    " ".join(
        (
            "name names shape dtype flags value values code index line file func desc log reset update combine query",
            "clear serialize nbytes engine version device stream data type size axis axes keys items parse num dims",
            "append remove insert pop release allocate builder logger free set min max scale bias op error count",
            "precision start end",
        )
    ).split()
)


@functools.cache
def names(version: str) -> frozenset[str]:
    """Every public name of a version of TensorRT's Python binding, as ``Class.member``."""
    return frozenset((LISTS / f"{version}.txt").read_text("utf-8").split())


@functools.cache
def members() -> frozenset[str]:
    """The last part of every ``Class.member`` of any version, but for the common ones."""
    found = {name.rpartition(".")[2] for version in VERSIONS for name in names(version) if "." in name}
    return frozenset(found) - COMMON


@dataclass(frozen=True)
class Use:
    """An attribute in a source: ``name`` is ``Class.member``, or ``?.member`` where the object's class is not told.

    ``versions`` are those that the source is for.
    """

    where: str
    name: str
    guards: frozenset[str]
    versions: tuple[str, ...] = VERSIONS


@dataclass
class _Reader(ast.NodeVisitor):
    where: str
    attributes: dict[str, str]
    types: set[str]
    uses: list[Use] = field(default_factory=list)
    scopes: list[dict[str, str]] = field(default_factory=lambda: [{}])
    guards: list[str] = field(default_factory=list)
    versions: tuple[str, ...] = VERSIONS

    def kind(self, node: ast.expr) -> str:
        """What an expression is: a class of TensorRT, "TensorRT" for the module, "=Path" for a name in it, or ""."""
        if isinstance(node, ast.Name):
            return next((scope[node.id] for scope in reversed(self.scopes) if node.id in scope), "")
        if isinstance(node, ast.Attribute):
            base = self.kind(node.value)
            if base == MODULE:
                return f"={node.attr}"
            if base.startswith("="):
                return f"{base}.{node.attr}"
            return "" if base else self.attributes.get(node.attr, "")
        return ""

    def full(self, node: ast.Attribute) -> str:
        """``Class.member`` of an attribute; "?.member" where the class is unknown; "" where it is none of ours."""
        base = self.kind(node.value)
        if node.attr.startswith("__"):
            return ""
        if base == MODULE:
            return node.attr
        if base:
            return f"{base.removeprefix('=')}.{node.attr}"
        return f"?.{node.attr}" if node.attr in members() and not self.kind(node) else ""

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if name := self.full(node):
            self.uses.append(Use(f"{self.where}:{node.lineno}", name, frozenset(self.guards), self.versions))
        self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        arguments = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
        self.scopes.append({one.arg: kind for one in arguments if (kind := self.annotated(one.annotation))})
        self.generic_visit(node)
        self.scopes.pop()

    def annotated(self, annotation: ast.expr | None) -> str:
        """The class of TensorRT that an annotation names."""
        return annotation.id if isinstance(annotation, ast.Name) and annotation.id in self.types else ""

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if isinstance(node.target, ast.Name) and (kind := self.annotated(node.annotation)):
            self.scopes[-1][node.target.id] = kind
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        self.generic_visit(node)
        kind = self.kind(node.value)
        if len(node.targets) == 1 and isinstance(node.targets[0], ast.Name) and kind:
            self.scopes[-1][node.targets[0].id] = kind

    def visit_Import(self, node: ast.Import) -> None:
        for one in node.names:
            if one.name in ("tensorrt", "tensorrt_rtx"):
                self.scopes[-1][one.asname or one.name] = MODULE

    def asked(self, test: ast.expr) -> list[str]:
        """The names that ``hasattr`` in a condition finds to be there."""
        if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And):
            return [name for part in test.values for name in self.asked(part)]
        if isinstance(test, ast.Call) and isinstance(test.func, ast.Name) and test.func.id == "hasattr":
            base, attribute = test.args
            if isinstance(attribute, ast.Constant):
                path = ast.Attribute(base, str(attribute.value), ast.Load(), lineno=0)
                return [self.full(path)]
        return []

    def guarded(self, found: list[str], nodes: list[ast.AST]) -> None:
        self.guards += found
        for node in nodes:
            self.visit(node)
        del self.guards[len(self.guards) - len(found) :]

    def visit_If(self, node: ast.If) -> None:
        self.visit(node.test)
        self.guarded(self.asked(node.test), list(node.body))
        self.guarded([], list(node.orelse))

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self.visit(node.test)
        self.guarded(self.asked(node.test), [node.body])
        self.visit(node.orelse)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        found: list[str] = []
        for part in node.values:
            self.guarded(found, [part])
            if isinstance(node.op, ast.And):
                found = found + self.asked(part)


def _types(tree: ast.AST) -> set[str]:
    """The classes of TensorRT that a source imports to annotate with."""
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == TYPES]
    return {alias.name for node in imports for alias in node.names}


def _annotated_attributes(tree: ast.AST, types: set[str]) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            fields = [one for one in node.body if isinstance(one, ast.AnnAssign)]
            inner = [one for one in ast.walk(node) if isinstance(one, ast.AnnAssign)]
            for one in (*fields, *inner):
                if isinstance(one.annotation, ast.Name) and one.annotation.id in types:
                    if isinstance(one.target, ast.Attribute):
                        yield one.target.attr, one.annotation.id
                    elif isinstance(one.target, ast.Name) and one in fields:
                        yield one.target.id, one.annotation.id


def _versions(tree: ast.AST) -> tuple[str, ...]:
    """What a source is for: with TensorRT's classes to annotate with, all; else those of the module it imports."""
    if _types(tree):
        return VERSIONS
    imported = {one.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for one in node.names}
    rtx = tuple(version for version in VERSIONS if version.startswith("rtx"))
    full = tuple(version for version in VERSIONS if version not in rtx)
    return (full if "tensorrt" in imported else ()) + (rtx if "tensorrt_rtx" in imported else ()) or VERSIONS


def uses(sources: dict[str, str]) -> list[Use]:
    """Every use of TensorRT in the sources (text by file name). Only a source that annotates tells objects' classes."""
    trees = {where: ast.parse(text) for where, text in sources.items()}
    attributes: dict[str, str] = {}
    for tree in trees.values():
        attributes |= dict(_annotated_attributes(tree, _types(tree)))
    found = []
    for where, tree in trees.items():
        reader = _Reader(where, attributes, _types(tree), versions=_versions(tree))
        reader.visit(tree)
        found += [use for use in reader.uses if _types(tree) or not use.name.startswith("?.")]
    return found


def problems(sources: dict[str, str]) -> list[str]:
    """What is wrong: a name that a version lacks and no ``hasattr`` guards, or an object whose class is not told.

    A source that imports only ``tensorrt_rtx``, or only ``tensorrt``, is held against that one's versions.
    """
    wrong = []
    for use in uses(sources):
        if use.name.startswith("?."):
            wrong.append(f"{use.where}: {use.name[2:]} of an object whose class is not told")
            continue
        lacking = [version for version in use.versions if use.name not in names(version)]
        if not any(use.name in names(version) for version in VERSIONS):
            wrong.append(f"{use.where}: no version has {use.name}")
        elif lacking and use.name not in use.guards:
            wrong.append(f"{use.where}: {', '.join(lacking)} without {use.name}")
    return wrong


def ours() -> dict[str, str]:
    """The sources of the project that use TensorRT: those that import it, or its classes to annotate with."""
    found = {}
    for folder in ("runtime", "toolchain", "calib", "benches"):
        for path in sorted((REPO / folder).rglob("*.py")):
            text = path.read_text("utf-8")
            if TYPES in text or "import tensorrt" in text:
                found[path.relative_to(REPO).as_posix()] = text
    return found
