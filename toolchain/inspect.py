"""``python -m toolchain.inspect BUNDLE``: what really runs as integer, read back from the engine.

ONNX Runtime: from the graph its optimizer leaves. OpenVINO: from its runtime model and profile. TensorRT: from its
engine inspector's JSON, also as a file, so that the engine may lie on another machine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from rich.box import SIMPLE_HEAD
from rich.table import Table
from typer import Option

from runtime import cli, machine
from runtime.backends.base import backend_class, open_engine
from runtime.backends.ort import called_bytes, executed_bytes, make_session
from runtime.bundle import Bundle
from runtime.console import Console
from runtime.errors import IntvitError
from runtime.execution import INTEGER_KERNELS, execution, warnings
from runtime.files import atomic_write_json
from runtime.manifest import Layer
from runtime.onnx_wire import INT8, UINT8, Graph, Node, read_graph, with_extra_outputs
from toolchain import inspect_openvino, inspect_tensorrt
from toolchain import profile as profiling
from toolchain.inspection import Inspection, LayerRow

TYPES = {INT8: "s8", UINT8: "u8"}
FLOAT_TYPES = ("tensor(float)", "tensor(float16)", "tensor(double)")


def inspect(bundle: Bundle, backend: str = "ort", threads: int | None = None, batch: int = 1) -> Inspection:
    """Find every layer of the bundle in what ``backend`` executes on this machine, OpenVINO's with their times.

    ``threads`` (None: the cores there are) and ``batch``, the images a call, decide which form of the graph ONNX
    Runtime runs (:func:`runtime.backends.ort.called_bytes`).

    Raises:
        IntvitError: the backend is unknown or not installed, or its graph does not load.
    """
    if backend == "tensorrt":
        return _inspect_tensorrt(bundle)
    backend_class(backend)
    if backend == "openvino":
        return inspect_openvino.inspect(bundle, threads)
    return _inspect_ort(bundle, threads or machine.available_cores(), batch)


def _inspect_tensorrt(bundle: Bundle) -> Inspection:
    """The engine of this machine's GPU; one of another machine is read from a file, see ``--engine-json``."""
    engine: Any = open_engine(bundle, "tensorrt")
    try:
        return inspect_tensorrt.inspect(bundle, engine.layers_json(), where="this GPU's engine")
    finally:
        engine.close()


def _inspect_ort(bundle: Bundle, threads: int, batch: int) -> Inspection:
    path = bundle.file("graph", "ort")
    executed = called_bytes(executed_bytes(bundle), batch, threads)
    optimized, stored = read_graph(executed), read_graph(path.read_bytes())
    rows = tuple(_row(layer, optimized, stored) for layer in bundle.manifest.layers)
    found = execution(optimized, bundle.manifest.layers)
    return Inspection(
        layers=rows,
        operators=dict(sorted(found.operators.items())),
        warnings=tuple(warnings(found)),
        float_operators=_float_operators(executed, optimized, where=str(path)),
    )


def _float_operators(executed: bytes, graph: Graph, *, where: str) -> dict[str, int]:
    """How many nodes of each operator give a float tensor, by ONNX Runtime's own types; nothing is run."""
    producer = {name: node.op_type for node in graph.nodes for name in node.outputs[:1]}
    session = make_session(with_extra_outputs(executed, list(producer)), threads=1, optimize=False, where=where)
    made = [producer[value.name] for value in session.get_outputs() if value.type in FLOAT_TYPES]
    return dict(sorted(Counter(made).items()))


def _row(layer: Layer, optimized: Graph, stored: Graph) -> LayerRow:
    node = _executing(layer, optimized)
    kernel = "not found in the optimized graph" if node is None else _kernel_name(node, optimized)
    return LayerRow.of(layer, stored, kernel, node is not None and node.op_type in INTEGER_KERNELS)


def _executing(layer: Layer, optimized: Graph) -> Node | None:
    """The node that carries the layer's product: the same name, or what it was fused into (same output)."""
    for node in optimized.nodes:
        if node.name == layer.tensor or f"{layer.tensor}:0" in node.outputs:
            return node
    found = optimized.producer.get(f"{layer.name}/Add:0")
    while found is not None and found.op_type == "Reshape":  # a Gemm takes two dimensions and gives them back
        found = optimized.producer.get(found.inputs[0])
    return found


def _kernel_name(node: Node, graph: Graph) -> str:
    if node.op_type not in INTEGER_KERNELS:
        return f"{node.op_type}, float32"
    # The place of the activation's zero point; the weight's is next.
    zero = {"QAttention": 6, "MatMulInteger": 2}.get(node.op_type, 4)
    known = [graph.constant.get(name) for name in (*node.inputs, *[""] * 8)[:8]]
    left, right = (
        TYPES.get(value.data_type, "?") if value else "?" for value in (known[zero], known[1] or known[zero + 1])
    )
    return f"{node.op_type}, {left} x {right}"


def _show(found: Inspection, backend: str, console: Console) -> None:
    timed = found.milliseconds is not None
    title = f"linear layers and convolutions, as {backend} executes them"
    # As narrow as that, 80 columns hold a kernel's whole name.
    table = Table(title=title, box=SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    for column in ("layer", "MMACs", "W", "A", "stored as", "executed as", *(("ms", "share") if timed else ())):
        justify: Literal["left", "right"] = "left" if column in ("layer", "stored as", "executed as") else "right"
        table.add_column(column, justify=justify)
    for row in found.layers:
        cells = [
            f"{row.macs / 1e6:.2f}",
            str(row.weight_bits),
            str(row.activation_bits),
            row.stored_as,
            row.executed_as,
        ]
        if found.milliseconds is not None:
            spent = row.milliseconds or 0.0
            cells += [f"{spent:.3f}", f"{100 * spent / max(found.milliseconds, 1e-9):.1f} %"]
        table.add_row(row.name, *cells, style=None if row.integer else "yellow")
    console.print(table)
    if found.milliseconds is not None:
        mine = sum(row.milliseconds or 0.0 for row in found.layers)
        console.print(
            f"one image: {found.milliseconds:.3f} ms in all nodes, {mine:.3f} ms of it in these layers with what is "
            "fused into them",
            highlight=False,
            soft_wrap=True,
        )
    share = 100 * found.integer_mac_fraction
    kernels = Counter(row.executed_as for row in found.layers if row.integer)

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    say(f"{share:.1f} % of the MACs of these layers run on integer kernels: {_counted(kernels)}")
    for line in found.notes:
        say(line)
    if found.float_operators is not None:
        say(f"operators that give float tensors: {_counted(found.float_operators)}")
    for line in found.warnings:
        console.print(line, style="bold red", markup=False, soft_wrap=True)


def _counted(names: Mapping[str, int]) -> str:
    """``12 x Add; 3 x Gelu``, the most frequent first."""
    ranked = sorted(names.items(), key=lambda item: (-item[1], item[0]))
    return "; ".join(f"{count} x {name}" for name, count in ranked) or "none"


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or str(error)
        hint = "give the file that python -m runtime.compile --backend tensorrt --layers FILE wrote"
        raise IntvitError("cannot read the engine's layers", where=str(path), why=why, next=hint) from error


def main(
    bundle: cli.BundleArgument,
    backend: cli.BackendOption = "ort",
    json: cli.JsonOption = None,
    profile: Annotated[
        bool, Option("--profile", help="Also run it under ONNX Runtime's profiler (OpenVINO is always timed).")
    ] = False,
    batch: Annotated[int, Option("--batch", min=1, help="Images a call.")] = 1,
    threads: cli.ThreadsOption = None,
    engine_json: Annotated[
        Path | None,
        Option("--engine-json", metavar="FILE", help="What TensorRT's engine inspector said, 10.x or 11.x."),
    ] = None,
) -> None:
    """Show, layer by layer, how weights are stored and which kernel runs, read back from the engine."""
    opened = Bundle.open(bundle)
    if engine_json is not None:
        backend = "tensorrt"
        found = inspect_tensorrt.inspect(opened, _text(engine_json), where=str(engine_json))
    else:
        found = inspect(opened, backend, threads, batch)
    timed = (
        profiling.profile(opened, _executing, batch=batch, threads=threads) if profile and backend == "ort" else None
    )
    _show(found, backend, Console())
    if timed is not None:
        profiling.show(timed, Console())
    if json is not None:
        times = {} if timed is None else {"profile": timed.to_json()}
        atomic_write_json(json, found.to_json() | {"bundle": opened.sha256, "backend": backend} | times)


if __name__ == "__main__":
    cli.run(main)
