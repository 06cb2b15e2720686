"""What TensorRT says, kept; and what a failure of it means: which node, whose layer, what to do next."""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from runtime.backends.trt.types import ILogger, OnnxParser, ParserError, TensorRT
from runtime.errors import IntvitError
from runtime.manifest import Layer
from runtime.onnx_wire import Graph

_KEPT = 200
_LINES = 6  # of TensorRT's own text in a message
_MEMORY = re.compile(r"out ?of ?memory|insufficient memory|requested amount of gpu memory|cudaError 2\b", re.IGNORECASE)


@dataclass
class Heard:
    """What a logger heard, oldest first: the last errors, and each warning once.

    Attributes:
        forgotten: how many errors went before those that are kept.
    """

    errors: list[str]
    warnings: list[str]
    forgotten: int = 0

    def error(self, text: str) -> None:
        """Keep an error, also one that was heard before: it may be why another call failed."""
        self.errors.append(text)
        self.forgotten += max(0, len(self.errors) - _KEPT)
        del self.errors[:-_KEPT]

    def warning(self, text: str) -> None:
        """Keep a warning."""
        if text not in self.warnings:
            self.warnings.append(text)
            del self.warnings[:-_KEPT]

    def mark(self) -> int:
        """How many errors were heard so far, for :meth:`since`."""
        return self.forgotten + len(self.errors)

    def since(self, mark: int = 0) -> str:
        """The last errors heard after ``mark`` as one text, each once."""
        return "; ".join(list(dict.fromkeys(self.errors[max(0, mark - self.forgotten) :]))[-_LINES:])


def make_logger(trt: TensorRT) -> tuple[ILogger, Heard]:
    """A logger that prints nothing and keeps errors and warnings. It must outlive every object made with it."""
    heard, lock = Heard([], []), threading.Lock()
    severity = trt.ILogger.Severity

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, level: Any, text: str) -> None:
            with lock:
                if level in (severity.ERROR, severity.INTERNAL_ERROR):
                    heard.error(text)
                elif level == severity.WARNING:
                    heard.warning(text)

    return Log(), heard


def layer_of(node: str, layers: Sequence[Layer]) -> str:
    """The manifest's layer (its timm module) that a node belongs to by its name; empty where there is none."""
    owners = [layer.name for layer in layers if f"{node}/".startswith(f"{layer.name}/")]
    return max(owners, key=len, default="")


def node_in(said: str, graph: Graph) -> str:
    """The node of ``graph`` that a text of TensorRT names first, the longest name where several start there."""
    found = []
    for node in graph.nodes:
        match = re.search(rf"(?<![\w/]){re.escape(node.name)}(?![\w/])", said) if node.name else None
        found += [(match.start(), -len(node.name), node.name)] if match else []
    return min(found)[2] if found else ""


def place(node: str, op_type: str, layers: Sequence[Layer], where: str) -> str:
    """``where`` with the node and its layer, as far as they are known."""
    layer = layer_of(node, layers)
    parts = [where, f"{op_type} node {node!r}" if op_type else f"node {node!r}" if node else ""]
    return ", ".join(part for part in (*parts, f"layer {layer!r}" if layer else "") if part)


def parse_error(parser: OnnxParser, heard: Heard, layers: Sequence[Layer], where: str) -> IntvitError:
    """Why the parser refused a graph: the first node it names, and its own words."""
    texts, node, op_type = [], "", ""
    for index in range(int(parser.num_errors)):
        fault: ParserError = parser.get_error(index)
        texts.append(str(fault.desc()))
        if not node:
            node, op_type = str(fault.node_name()), str(fault.node_operator())
    return IntvitError(
        "TensorRT cannot read the graph",
        where=place(node, op_type if node else "", layers, where),
        why="; ".join(texts[:_LINES]) or heard.since() or "it gives no reason",
        next="`python -m toolchain.lint BUNDLE --target tensorrt` says what TensorRT refuses and how to write it",
    )


def build_error(heard: Heard, graph: Graph, layers: Sequence[Layer], where: str, error: str = "") -> IntvitError:
    """Why no engine came out of a graph that was read."""
    said = "; ".join(part for part in (heard.since(), error) if part)
    node = node_in(said, graph)
    op_type = next((one.op_type for one in graph.nodes if one.name == node), "") if node else ""
    if _MEMORY.search(said):
        return memory_error(where, said)
    return IntvitError(
        "TensorRT cannot build an engine from the graph",
        where=place(node, op_type, layers, where),
        why=said or "it gives no reason",
        next="`python -m toolchain.lint BUNDLE --target tensorrt`; a larger --option workspace=MIB; "
        "or --option level=3, TensorRT's own default",
    )


def memory_error(where: str, said: str) -> IntvitError:
    """The device's memory did not suffice."""
    return IntvitError(
        "the GPU's memory is used up",
        where=where,
        why=said,
        next="close other programs, then a smaller --option workspace=MIB, batch=1 or level=2; a Jetson shares its "
        "memory with the CPU: leave the desktop with `sudo init 3`",
    )


def failure(what: str, heard: Heard, mark: int, where: str, next: str) -> IntvitError:
    """A call that failed while loading or running, with what TensorRT has said since ``mark``."""
    said = heard.since(mark)
    if _MEMORY.search(said):
        return memory_error(where, said)
    return IntvitError(what, where=where, why=said or "TensorRT gives no reason", next=next)
