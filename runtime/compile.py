"""``python -m runtime.compile BUNDLE``: optimize the graph once on this machine and keep the result, verified.

The compiled engine skips ONNX Runtime's optimizer at every later load. It is used only where the graph, ONNX Runtime,
the CPU's features and the options are those it was compiled with; it computes the same bits.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from runtime import cli
from runtime.backends.base import backend_class
from runtime.backends.ort import (
    compile_inputs,
    compile_key,
    compiled_engine,
    fused,
    make_session,
    optimized_bytes,
    refuse_external,
)
from runtime.bundle import Bundle
from runtime.errors import IntvitError
from runtime.execution import Execution, execution, warnings
from runtime.files import atomic_write_bytes, sha256_bytes
from runtime.onnx_wire import read_graph
from runtime.registry import ENGINES, EngineRecord, Registry, forget_registry, save_registry


@dataclass(frozen=True)
class Compiled:
    """What :func:`compile_bundle` did.

    Attributes:
        record: the registered engine.
        execution: what runs as integer in it.
        reason: why it was built, or "up to date".
        built: False when an engine was already there.
    """

    record: EngineRecord
    execution: Execution
    reason: str
    built: bool


def _difference(old: EngineRecord | None, inputs: dict[str, Any]) -> str:
    if old is None:
        return "no engine for ONNX Runtime yet"
    changed = [
        f"{name} {_short(old.inputs.get(name))} -> {_short(inputs.get(name))}"
        for name in sorted({*old.inputs, *inputs})
        if old.inputs.get(name) != inputs.get(name)
    ]
    return "changed: " + "; ".join(changed) if changed else "--force"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:12] + "..."


def _check_same(bundle: Bundle, graph: bytes, compiled: bytes) -> None:
    """Both must give the same bits on the golden images."""
    images, name = bundle.golden().images, bundle.manifest.input_name
    fresh = make_session(fused(graph), threads=1, where=bundle.entry("graph", "ort").path).run(None, {name: images})[0]
    kept = make_session(compiled, threads=1, optimize=False, where="the compiled engine").run(None, {name: images})[0]
    if not np.array_equal(fresh, kept):
        raise IntvitError(
            "the compiled engine computes other numbers than the graph",
            where=str(bundle.file("graph", "ort")),
            why=f"largest difference {float(np.abs(fresh - kept).max())} on the golden images",
            next="do not compile on this machine; the engine runs without. Run `python -m runtime.doctor`",
        )


def compile_bundle(bundle: Bundle, *, force: bool = False) -> Compiled:
    """Make sure the bundle holds an engine for ONNX Runtime on this machine.

    The engine is compared with the plain graph on the golden images before it is registered, and replaces any other
    ONNX Runtime engine of the bundle.

    Raises:
        IntvitError: the graph does not load, the two disagree, or the bundle cannot be written to.
    """
    entry = bundle.entry("graph", "ort")
    inputs = compile_inputs(entry.sha256)
    present = compiled_engine(bundle)
    if present is not None and not force:
        view = read_graph((bundle.root / present.path).read_bytes())
        return Compiled(present, execution(view, bundle.manifest.layers), "up to date", built=False)
    previous = next((record for record in bundle.engines if record.backend == "ort"), None)
    reason = _difference(previous, inputs)
    graph = (bundle.root / entry.path).read_bytes()
    refuse_external(graph, str(bundle.root / entry.path))
    data = optimized_bytes(graph, where=str(bundle.root / entry.path))
    found = execution(read_graph(data), bundle.manifest.layers)
    _check_same(bundle, graph, data)
    key = compile_key(inputs)
    path = f"{ENGINES}/ort-{key}/model.onnx"
    record = EngineRecord(
        backend="ort",
        key=key,
        path=path,
        sha256=sha256_bytes(data),
        bytes=len(data),
        inputs=inputs,
        kernels=found.integer_kernels,
    )
    forget_registry(bundle.root)
    atomic_write_bytes(bundle.root / path, data)
    others = [old for old in bundle.engines if old.backend != "ort"]
    save_registry(bundle.root, Registry(engines=[*others, record]))
    for stale in (bundle.root / ENGINES).glob("ort-*"):
        if stale.name != f"ort-{key}":
            shutil.rmtree(stale, ignore_errors=True)
    return Compiled(record, found, reason, built=True)


def show(compiled: Compiled, console: Console) -> None:
    """Print what was done, what runs as integer, and every warning."""
    record = compiled.record
    done = f"compiled ({compiled.reason})" if compiled.built else "up to date, nothing to do"
    console.print(f"{record.path}: {done}, {record.bytes / 1e6:.1f} MB", markup=False, highlight=False, soft_wrap=True)
    table = Table(title="operators after optimization")
    table.add_column("operator")
    table.add_column("nodes", justify="right")
    for name, count in compiled.execution.operators.items():
        table.add_row(f"{name} (integer)" if name in compiled.execution.integer_kernels else name, str(count))
    console.print(table)
    kernels = sum(compiled.execution.integer_kernels.values())
    console.print(f"{kernels} integer kernels for {compiled.execution.expected} integer layers", highlight=False)
    for line in warnings(compiled.execution):
        console.print(line, style="bold red", markup=False, highlight=False, soft_wrap=True)


def main(
    bundle: cli.BundleArgument,
    backend: cli.BackendOption = "ort",
    force: Annotated[bool, typer.Option("--force", help="Compile again even when nothing differs.")] = False,
    debug: cli.DebugOption = False,
) -> None:
    """Compile the bundle's integer graph for this machine and say what runs as integer."""
    backend_class(backend)
    show(compile_bundle(Bundle.open(bundle), force=force), Console())


if __name__ == "__main__":
    cli.run(main)
