"""From each tensor of a graph to those who read it: what the rewrites of ONNX files match their patterns with."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from runtime.onnx_wire import Graph, Node


@dataclass(frozen=True)
class Links:
    """A graph with the way from each tensor to those who read it."""

    graph: Graph

    @cached_property
    def index(self) -> dict[int, int]:
        """Each node's number in file order, by ``id``."""
        return {id(node): number for number, node in enumerate(self.graph.nodes)}

    @cached_property
    def readers(self) -> dict[str, list[Node]]:
        """The nodes that read each tensor."""
        found: dict[str, list[Node]] = {}
        for node in self.graph.nodes:
            for name in node.inputs:
                found.setdefault(name, []).append(node)
        return found

    def maker(self, name: str, op_type: str, **integers: tuple[int, ...]) -> Node | None:
        """The node that makes ``name``, if it is of that type and has those attributes."""
        return _fitting(self.graph.producer.get(name), op_type, integers)

    def reader(self, node: Node, op_type: str, **integers: tuple[int, ...]) -> Node | None:
        """The only node that reads what ``node`` makes, if it is of that type and has those attributes."""
        found = self.readers.get(node.outputs[0], [])
        alone = len(found) == 1 and node.outputs[0] not in self.graph.outputs
        return _fitting(found[0], op_type, integers) if alone else None

    def integers(self, name: str) -> tuple[int, ...]:
        """The values of an int64 constant, empty for anything else."""
        return self.graph.constant[name].integers() if name in self.graph.constant else ()


def _fitting(node: Node | None, op_type: str, integers: dict[str, tuple[int, ...]]) -> Node | None:
    if node is None or node.op_type != op_type or node.domain:
        return None
    return node if all(node.integers.get(name) == value for name, value in integers.items()) else None


def closed(links: Links, parts: tuple[Node, ...], last: Node) -> bool:
    """Nothing but these nodes reads what they make, apart from what ``last`` makes."""
    inside = {id(part) for part in parts}
    made = {name for part in parts if part is not last for name in part.outputs}
    read = {name for name in made for node in links.readers.get(name, ()) if id(node) not in inside}
    return not read and made.isdisjoint(links.graph.outputs)
