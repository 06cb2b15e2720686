"""What a rule is: a question put to a graph, what the answer means on each target, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Literal, NamedTuple

import onnx_ir as ir

Severity = Literal["error", "warning"]


class Hit(NamedTuple):
    """A node that breaks a rule, and how."""

    node: ir.Node
    what: str


@dataclass(frozen=True)
class Verdict:
    """What breaking a rule means on one target.

    Attributes:
        severity: an error is refused there, computes something else, or runs in float what was meant as integers; a
            warning works, at a price.
        why: the fact behind the rule; where it was measured, with which version.
    """

    severity: Severity
    why: str


@dataclass(frozen=True)
class Finding:
    """One node that breaks one rule on one target."""

    rule: str
    target: str
    severity: Severity
    node: str
    op_type: str
    what: str
    why: str
    next: str

    def to_json(self) -> dict[str, str]:
        """Every field as text."""
        return asdict(self)


Find = Callable[[ir.Model], Iterator[Hit]]


@dataclass(frozen=True)
class Rule:
    """One rule. ``verdicts`` names the targets it holds for; ``find`` yields the nodes that break it."""

    id: str
    title: str
    next: str
    verdicts: Mapping[str, Verdict]
    find: Find

    def check(self, model: ir.Model, target: str) -> list[Finding]:
        """The findings on ``target``, each once, as ``find`` yields them; none where the rule does not hold there."""
        verdict = self.verdicts.get(target)
        if verdict is None:
            return []
        found = {(id(node), what): node for node, what in self.find(model)}
        return [
            Finding(self.id, target, verdict.severity, label(node), node.op_type, what, verdict.why, self.next)
            for (_, what), node in found.items()
        ]


def rule(
    id: str,
    title: str,
    *,
    next: str,
    ort: Verdict | None = None,
    openvino: Verdict | None = None,
    tensorrt: Verdict | None = None,
) -> Callable[[Find], Rule]:
    """Make the function below it a :class:`Rule`; the targets it holds for are those with a verdict."""
    given = {"ort": ort, "openvino": openvino, "tensorrt": tensorrt}
    verdicts = {target: verdict for target, verdict in given.items() if verdict is not None}
    return lambda find: Rule(id, title, next, verdicts, find)


def error(why: str) -> Verdict:
    """The target refuses it, computes something else, or runs it in float."""
    return Verdict("error", why)


def warning(why: str) -> Verdict:
    """It works, at a price that ``why`` states."""
    return Verdict("warning", why)


def label(node: ir.Node) -> str:
    """A node's name, or where it has none, its operator and its first output."""
    return node.name or f"{node.op_type} -> {node.outputs[0].name if node.outputs else ''}"
