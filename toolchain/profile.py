"""Where the time of a run goes, read from ONNX Runtime's own profiler: ``toolchain.inspect BUNDLE --profile``."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from runtime import machine
from runtime.backends.ort import A_CALL, called_bytes, make_session
from runtime.bundle import Bundle
from runtime.errors import IntvitError
from runtime.manifest import Layer
from runtime.onnx_wire import Graph, Node, read_graph
from runtime.qkv import carriers
from runtime.rungs import rung

WARM, RUNS = 3, 50
NOT_FOUND = "not found in the executed graph"

Executing = Callable[[Layer, Graph], "Node | None"]


@dataclass(frozen=True)
class Row:
    """Time of one linear layer, or of all nodes of one kernel.

    Attributes:
        name: the layer's, or the kernel's for everything that belongs to no layer.
        kernel: the operator that runs.
        layer: whether ``name`` is a layer of the manifest.
        nodes: how many nodes these are.
        ms: milliseconds of one run: the sum of the nodes' medians over the runs.
        share: percent of the sum of all kernels' time.
    """

    name: str
    kernel: str
    layer: bool
    nodes: int
    ms: float
    share: float


@dataclass(frozen=True)
class Profile:
    """The result of :func:`profile`.

    Attributes:
        batch, threads, runs: how it was measured.
        lane: images of the profiled run where calls of this batch run in lanes, on one thread each; else 0.
        run_ms: median of a whole run, profiler included; what ``kernels_ms`` lacks of it lies between the kernels.
        kernels_ms: the sum of all kernels.
        rows: every linear layer (one that no node carries with 0 ms), then the rest by kernel. Shares sum to 100.
        kernels: all nodes by kernel, slowest first. Shares sum to 100.
    """

    batch: int
    threads: int
    runs: int
    lane: int
    run_ms: float
    kernels_ms: float
    rows: tuple[Row, ...]
    kernels: tuple[Row, ...]

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)


def profile(bundle: Bundle, executing: Executing, *, batch: int = 1, threads: int | None = None) -> Profile:
    """Run the engine under ONNX Runtime's profiler: one call, or one piece of a lane where ``batch`` is run in lanes.

    Args:
        executing: finds the node of the optimized graph that carries a layer's product, or None.
        batch: images a run, the golden ones repeated as needed.

    Raises:
        IntvitError: the engine does not load or run, or the profile cannot be read.
    """
    engine, used = rung("engine"), threads or machine.available_cores()
    executed = engine.executed(bundle, engine.stored(bundle))
    data = called_bytes(executed, batch, used)
    lane = min(A_CALL, batch // used) if used > 1 else 0
    images = bundle.golden().images
    images = np.ascontiguousarray(np.resize(images, (lane or batch, *images.shape[1:])))
    whole, graph = read_graph(executed), read_graph(data)
    feeds = {bundle.manifest.input_name: images}
    nodes, run_ms = _measure(data, feeds, threads=1 if lane else used, where=str(bundle.root))
    total = sum(node.ms for node in nodes)
    place = {id(node): at for at, node in enumerate(graph.nodes)}
    carrying: dict[tuple[int, ...], list[str]] = defaultdict(list)
    missing = []
    for layer in bundle.manifest.layers:
        node = executing(layer, whole)
        if node is None:
            missing.append(Row(layer.name, NOT_FOUND, True, 0, 0.0, 0.0))
        else:
            carrying[tuple(place[id(one)] for one in carriers(node, graph))].append(layer.name)
    by_index = {node.index: node for node in nodes}
    layers = []
    for places, names in carrying.items():
        ms = sum(by_index[at].ms for at in places)
        kernel = by_index[places[0]].kernel
        layers.append(Row(" + ".join(names), kernel, True, len(places), ms, 100 * ms / total))
    carried = {at for places in carrying for at in places}
    rest = _by_kernel([node for node in nodes if node.index not in carried], total)
    rows = (*layers, *missing, *rest)
    return Profile(batch, used, RUNS, lane, run_ms, total, rows, tuple(_by_kernel(nodes, total)))


@dataclass(frozen=True)
class _Node:
    """A node of the executed graph: its place there, its operator, the median of its milliseconds."""

    index: int
    kernel: str
    ms: float


def _by_kernel(nodes: Sequence[_Node], total: float) -> list[Row]:
    groups: dict[str, list[float]] = defaultdict(list)
    for node in nodes:
        groups[node.kernel].append(node.ms)
    rows = [Row(kernel, kernel, False, len(ms), sum(ms), 100 * sum(ms) / total) for kernel, ms in groups.items()]
    return sorted(rows, key=lambda row: (-row.ms, row.name))


def _measure(data: bytes, feeds: dict[str, Any], *, threads: int, where: str) -> tuple[list[_Node], float]:
    """Every node with its time, and the median milliseconds of a run."""
    with tempfile.TemporaryDirectory(prefix="intvit-") as folder:
        session = make_session(data, threads=threads, optimize=False, profile_to=Path(folder) / "run", where=where)
        try:
            for _ in range(WARM + RUNS):
                session.run(None, feeds)
        except Exception as error:
            raise IntvitError("ONNX Runtime failed while running", where=where, why=str(error)) from error
        path = Path(session.end_profiling())
        try:
            events = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            why = f"ONNX Runtime's profile is not there or no JSON: {error}"
            raise IntvitError("cannot read the profile", where=str(path), why=why) from error
    kernels: dict[tuple[int, str], list[int]] = defaultdict(list)
    whole = [event["dur"] for event in events if event.get("name") == "model_run"]
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            kernels[int(event["args"]["node_index"]), event["args"]["op_name"]].append(event["dur"])
    if not kernels or any(len(times) != WARM + RUNS for times in (whole, *kernels.values())):
        why = f"{len(kernels)} nodes and {len(whole)} runs, expected {WARM + RUNS} of each"
        raise IntvitError("cannot read the profile", where=where, why=why, next="report it with ONNX Runtime's version")
    nodes = [_Node(at, kernel, median(times[WARM:]) / 1e3) for (at, kernel), times in kernels.items()]
    return nodes, median(whole[WARM:]) / 1e3


def show(found: Profile, console: Console) -> None:
    """Print the time by kernel, then by layer."""
    how = f"batch {found.batch}, {found.threads} threads, {found.runs} runs"
    how += f", one lane of {found.threads} with {found.lane} image{'s' * (found.lane > 1)}" if found.lane else ""
    kernels = Table("kernel", title=f"time by kernel: {how}")
    layers = Table("layer", "kernel", title=f"time by layer, of the rest by kernel: {how}")
    for table, rows in ((kernels, found.kernels), (layers, found.rows)):
        for column in ("nodes", "ms", "share %"):
            table.add_column(column, justify="right")
        for row in rows:
            named = () if table is kernels else (row.name if row.layer else "",)
            table.add_row(*named, row.kernel, str(row.nodes), f"{row.ms:.3f}", f"{row.share:.1f}")
        console.print(table)
    console.print(
        f"kernels {found.kernels_ms:.3f} ms of a run's {found.run_ms:.3f} ms, the profiler's own cost included",
        highlight=False,
        soft_wrap=True,
    )
