"""``python -m toolchain.inspect BUNDLE``: what really runs as integer, read from ONNX Runtime's optimized graph."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from runtime import cli
from runtime.backends.ort import optimized_bytes
from runtime.bundle import Bundle
from runtime.execution import INTEGER_KERNELS, execution, warnings
from runtime.files import atomic_write_json
from runtime.manifest import Layer
from runtime.onnx_wire import INT8, UINT8, Graph, Node, read_graph

TARGET = "ort"
TYPES = {INT8: "s8", UINT8: "u8"}


@dataclass(frozen=True)
class LayerRow:
    """One linear layer, convolution or integer attention product; ``macs`` per image.

    Attributes:
        executed_as: the kernel's name in the optimized graph. integer: whether that kernel multiplies integers.
        stored_bytes: size of its weights in the file.
    """

    name: str
    macs: int
    weight_bits: int
    activation_bits: int
    stored_as: str
    executed_as: str
    integer: bool
    stored_bytes: int


@dataclass(frozen=True)
class Inspection:
    """``integer_mac_fraction``: part (0..1) of the MACs of the manifest's layers that run on integer kernels.

    Those are linear layers and convolutions, and with ``+attn8`` both attention products; float products do not count.

    Attributes:
        operators: node counts of the optimized graph. warnings: one line for each thing that is not as it should be.
    """

    integer_mac_fraction: float
    layers: tuple[LayerRow, ...]
    operators: dict[str, int]
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The fixed keys, and ``operators``, ``linear_weight_bytes`` and ``warnings`` beside them."""
        return {
            "integer_mac_fraction": self.integer_mac_fraction,
            "layers": [asdict(row) for row in self.layers],
            "operators": self.operators,
            "linear_weight_bytes": sum(row.stored_bytes for row in self.layers),
            "warnings": list(self.warnings),
        }


def inspect(bundle: Bundle) -> Inspection:
    """Optimize the bundle's graph as its engine would be, and find every layer in the result.

    Raises:
        IntvitError: the graph does not load.
    """
    path = bundle.file("graph", TARGET)
    source = path.read_bytes()
    optimized = read_graph(optimized_bytes(source, where=str(path)))
    stored = read_graph(source)
    rows = tuple(_row(layer, optimized, stored) for layer in bundle.manifest.layers)
    total = sum(row.macs for row in rows)
    found = execution(optimized, bundle.manifest.layers)
    return Inspection(
        integer_mac_fraction=sum(row.macs for row in rows if row.integer) / max(total, 1),
        layers=rows,
        operators=dict(sorted(found.operators.items())),
        warnings=tuple(warnings(found)),
    )


def _row(layer: Layer, optimized: Graph, stored: Graph) -> LayerRow:
    node = _executing(layer, optimized)
    kernel = "not found in the optimized graph" if node is None else _kernel_name(node, optimized)
    weights = stored.constant.get(f"{layer.name}.weight_q")
    return LayerRow(
        name=layer.name,
        macs=layer.macs,
        weight_bits=layer.weight_bits,
        activation_bits=layer.activation_bits,
        stored_as=layer.stored_as,
        executed_as=kernel,
        integer=node is not None and node.op_type in INTEGER_KERNELS,
        stored_bytes=len(weights.raw) if weights is not None else 0,
    )


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
    known = [graph.constant.get(name) for name in (*node.inputs, *[""] * 6)[:6]]
    left, right = (TYPES.get(value.data_type, "?") if value else "?" for value in (known[4], known[1] or known[5]))
    return f"{node.op_type}, {left} x {right}"


def _show(found: Inspection, console: Console) -> None:
    table = Table(title="layers, as ONNX Runtime executes them")
    for column in ("layer", "MMACs", "W", "A", "stored as", "executed as"):
        table.add_column(column, justify="right" if column in ("MMACs", "W", "A") else "left")
    for row in found.layers:
        cells = (f"{row.macs / 1e6:.2f}", str(row.weight_bits), str(row.activation_bits))
        table.add_row(row.name, *cells, row.stored_as, row.executed_as, style=None if row.integer else "yellow")
    console.print(table)
    share = 100 * found.integer_mac_fraction
    kernels = {name: count for name, count in found.operators.items() if name in INTEGER_KERNELS}
    console.print(f"{share:.1f} % of the MACs of these layers run on integer kernels: {kernels or 'none'}")
    for line in found.warnings:
        console.print(line, style="bold red", markup=False, soft_wrap=True)


def main(bundle: cli.BundleArgument, json: cli.JsonOption = None, debug: cli.DebugOption = False) -> None:
    """Show, layer by layer, how weights are stored and which kernel runs, read from the optimized graph."""
    opened = Bundle.open(bundle)
    found = inspect(opened)
    if json is not None:
        atomic_write_json(json, found.to_json() | {"bundle": opened.sha256})
    _show(found, Console())


if __name__ == "__main__":
    cli.run(main)
