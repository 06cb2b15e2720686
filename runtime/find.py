"""The first node at which two rungs of the ladder part, found by bisection.

Both graphs are cut at their taps and fed the golden integers. Every tensor that has the same name in both can be
compared; what lies between two such tensors is one step, even where one graph does it in a single fused kernel. First
the ends of the segments, which are what each tap quantizes and where the graph forks, are compared in order. Then the
steps that lead to the first wrong end are bisected. At each cut through them only the tensors that cross it are
compared, so a few tensors are held at a time. What is left is a tensor beyond tolerance whose inputs are all within.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console

from runtime import machine
from runtime.bundle import Bundle
from runtime.comparable import Compared, CutModel, Item, changed_constants, comparable, compared
from runtime.parity import LIMIT, MAX_LSB, TOLERANCE
from runtime.rungs import Rung, golden_input, open_rung

AT_A_TIME = 8


@dataclass(frozen=True)
class FirstNode:
    """Where two rungs part.

    Attributes:
        node, op_type: of the upper rung's node that makes the tensor.
        tensor: how it compares.
        kernel: name, operator and domain of the node that makes it in the lower rung.
        fused: the upper rung's nodes, as "operator name", that the lower rung does in other nodes; empty where both
            do the same.
        kernels: the lower rung's nodes that do it, as "operator name".
        inputs: the tensors the step reads, all within tolerance.
        golden: the taps whose golden integers it was fed.
        constants: constants it reads that have the same name in both and other values.
    """

    node: str
    op_type: str
    tensor: Compared
    kernel: str
    fused: tuple[str, ...]
    kernels: tuple[str, ...]
    inputs: tuple[Compared, ...]
    golden: tuple[str, ...]
    constants: tuple[str, ...]


@dataclass(frozen=True)
class Search:
    """The result of :func:`find`: ``comparable`` tensors, of which ``compared`` had to be looked at, in ``runs`` runs
    of each graph; ``first`` is None when none was beyond ``tolerance`` (relative to a tensor's largest value)."""

    upper: str
    lower: str
    tolerance: float
    comparable: int
    compared: int
    runs: int
    first: FirstNode | None

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)


def find(
    bundle: Bundle, upper: Rung, lower: Rung, *, tolerance: float = TOLERANCE, threads: int | None = None
) -> Search:
    """Name the first node of ``lower`` whose output differs from ``upper``'s by more than ``tolerance``.

    Args:
        tolerance: of a float tensor, relative to its largest absolute value. A tap is held to 1 LSB in 0.1 % of its
            values or in 3.

    Raises:
        IntvitError: a rung's graph is not in the bundle, or does not load or run.
    """
    golden = bundle.golden()
    first, second = (CutModel(open_rung(one, bundle), golden) for one in (upper, lower))
    search = _Bisection(first, second, tolerance, threads or machine.available_cores())
    found = search.first_bad()
    node = None if found is None else search.describe(found)
    counts = (len(search.items), len(search.seen), search.runs)
    return Search(upper.name, lower.name, tolerance, *counts, first=node)


class _Bisection:
    def __init__(self, upper: CutModel, lower: CutModel, tolerance: float, threads: int) -> None:
        self.cuts, self.tolerance, self.threads = (upper, lower), tolerance, threads
        self.items = comparable(upper, lower)
        self.by_name = {item.names[0]: index for index, item in enumerate(self.items)}
        self.parents = [self._parents(item) for item in self.items]
        self.seen: dict[int, Compared] = {}
        self.runs = 0

    def _parents(self, item: Item) -> list[int]:
        read, _ = self.cuts[0].sources(item.names[0], self.by_name)
        return sorted(self.by_name[name] for name in read if name in self.by_name)

    def compare(self, wanted: Sequence[int]) -> list[int]:
        """Those of the items that are beyond tolerance, ``AT_A_TIME`` to a run; what is known is not run again."""
        new = [index for index in wanted if index not in self.seen]
        for start in range(0, len(new), AT_A_TIME):
            some = new[start : start + AT_A_TIME]
            self.runs += 1
            values = [
                cut.model.run(cut.data, [self.items[i].names[side] for i in some], cut.feeds, self.threads)
                for side, cut in enumerate(self.cuts)
            ]
            for i in some:
                pair = [values[side][self.items[i].names[side]] for side in (0, 1)]
                self.seen[i] = compared(self.items[i], pair[0], pair[1], self.tolerance)
        return [index for index in wanted if not self.seen[index].within]

    def first_bad(self) -> int | None:
        """The first item beyond tolerance whose inputs are all within."""
        ends = self._ends()
        for start in range(0, len(ends), AT_A_TIME):
            if bad := self.compare(ends[start : start + AT_A_TIME]):
                return self._bisect(min(bad))
        return None

    def _ends(self) -> list[int]:
        """Taps and what they are made of, the outputs, and the forks, such as the residual stream: an error shows at
        one of them. Not always at a tap: LayerNormalization removes a constant that was added to every channel."""
        readers = Counter(parent for parents in self.parents for parent in parents)
        ends = {index for index, item in enumerate(self.items) if item.tap is not None or readers[index] != 1}
        return sorted(ends | {parent for index in ends for parent in self.parents[index]})

    def _bisect(self, bad: int) -> int:
        """Between nothing and ``bad``, among what it is made of. Kept: ``path[high]`` is beyond tolerance, and all
        that crosses the cut after ``path[low]`` is within."""
        path = self._ancestors(bad)
        last = {parent: index for index in path for parent in self.parents[index]}  # path ascends: the last reader
        low, high = -1, len(path) - 1
        while high - low > 1:
            middle = (low + high) // 2
            crossing = [index for index in path[: middle + 1] if last[index] > path[middle]]
            wrong = self.compare(crossing)
            if wrong:
                high = path.index(min(wrong))
            else:
                low = middle
        return path[high]

    def _ancestors(self, index: int) -> list[int]:
        found, waiting = {index}, [index]
        while waiting:
            for parent in self.parents[waiting.pop()]:
                if parent not in found:
                    found.add(parent)
                    waiting.append(parent)
        return sorted(found)

    def describe(self, index: int) -> FirstNode:
        item, (upper, lower) = self.items[index], self.cuts
        read, nodes = upper.sources(item.names[0], self.by_name)
        below = {item.names[1]: item for item in self.items}
        read_below, kernels = lower.sources(item.names[1], below)
        node, kernel = upper.graph.producer[item.names[0]], lower.graph.producer[item.names[1]]
        same = [one.op_type for one in nodes] == [one.op_type for one in kernels]
        taps = {golden_input(i): quantizer.tap.name for i, quantizer in enumerate(upper.model.quantizers)}
        return FirstNode(
            node=node.name,
            op_type=node.op_type,
            tensor=self.seen[index],
            kernel=f"{kernel.op_type} {kernel.name!r}" + (f" ({kernel.domain})" if kernel.domain else ""),
            fused=() if same else tuple(f"{one.op_type} {one.name}" for one in nodes),
            kernels=() if same else tuple(f"{one.op_type} {one.name}" for one in kernels),
            inputs=tuple(self.seen[parent] for parent in self.parents[index]),
            golden=tuple(taps[name] for name in read if name in taps),
            constants=tuple(changed_constants(read, read_below, upper.graph, lower.graph)),
        )


def show(found: Search, console: Console) -> None:
    """Print the node, what executes it and how its inputs compare."""

    def say(text: str, style: str | None = None) -> None:
        console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    say(
        f"{found.upper} against {found.lower}, fed golden integers: {found.comparable} tensors can be compared, "
        f"{found.compared} were, in {found.runs} runs; tolerance {found.tolerance:g} of a tensor's largest value, "
        f"{MAX_LSB} LSB in {LIMIT} at a tap"
    )
    node = found.first
    if node is None:
        say("no node is beyond tolerance", "bold green")
        return
    if node.fused:
        say(f"first node beyond tolerance: {found.lower}'s {node.kernel}", "bold red")
        by, done = ", ".join(node.kernels), ", ".join(node.fused)
        say(f"  {found.lower} does in {by} what {found.upper} does in {done}")
    else:
        say(f"first node beyond tolerance: {node.op_type} {node.node!r}", "bold red")
    say(f"  its output {node.tensor}")
    for line in node.inputs:
        say(f"  input {line}")
    for name in node.golden:
        say(f"  input tap {name!r}: fed golden integers")
    for name in node.constants:
        say(f"  constant {name!r} has other values in {found.lower}")
