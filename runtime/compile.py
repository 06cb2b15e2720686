"""``python -m runtime.compile BUNDLE``: optimize the graph once on this machine and keep the result, verified.

The compiled engine skips the library's optimizer at every later load (OpenVINO: for a batch of 1). It is used only
where the graph, the library, the CPU's features and the options are those it was compiled with; it computes the same
bits. TensorRT runs nothing but engines built so, on the very GPU; its float16 twin is built beside each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.table import Table

from runtime import cli
from runtime.backends import openvino
from runtime.backends.base import Images, Logits, backend_class, refuse_external
from runtime.backends.openvino_nodes import executed_nodes
from runtime.backends.openvino_nodes import execution as openvino_execution
from runtime.backends.ort import compile_inputs, executed_bytes, fused, make_session
from runtime.backends.tensorrt import CompiledRole, compile_engines
from runtime.bundle import Bundle
from runtime.console import Console
from runtime.errors import IntvitError
from runtime.execution import Execution, execution, warnings
from runtime.files import atomic_write_text, require_writable, sha256_bytes
from runtime.manifest import Manifest
from runtime.onnx_wire import read_graph
from runtime.parity import check, sqnr_db
from runtime.registry import ENGINES, EngineRecord, add_engine, compile_key, difference, find_engine


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


@dataclass(frozen=True)
class _Tools:
    """What compiling needs of a backend.

    Attributes:
        library: its name. file: of an engine.
        inputs: of a graph's sha256: all that decides an engine's bytes.
        engine: a bundle to an engine's bytes.
        execution: what an engine's bytes run.
        logits: of images, from a graph's bytes (False) or an engine's (True).
        same_bits: whether they must agree to the last bit; else :func:`runtime.parity.check`, which reads the
            integers out of the very bytes that ``engine`` gives, has the last word.
    """

    library: str
    file: str
    inputs: Callable[[str], dict[str, Any]]
    engine: Callable[[Bundle], bytes]
    execution: Callable[[bytes, Manifest], Execution]
    logits: Callable[[bytes, bool, Images], Logits]
    same_bits: bool


def _ort_logits(model: bytes, compiled: bool, images: Images) -> Logits:
    where = "the compiled engine" if compiled else "the graph"
    session = make_session(model if compiled else fused(model), threads=1, optimize=not compiled, where=where)
    logits: Logits = session.run(None, {session.get_inputs()[0].name: images})[0]
    return logits


def _openvino_engine(bundle: Bundle) -> bytes:
    source = bundle.file("graph", "openvino")
    return openvino.exported_bytes(source.read_bytes(), where=str(source))


def _openvino_model(model: bytes, compiled: bool) -> Any:
    where = "the compiled engine" if compiled else "the graph"
    source = model if compiled else openvino.fixed(openvino.load(model, where=where), 1)
    return openvino.compiled_model(source, openvino.properties(1, openvino.OpenVinoOptions()), where=where)


def _openvino_logits(model: bytes, compiled: bool, images: Images) -> Logits:
    request = _openvino_model(model, compiled).create_infer_request()
    return np.concatenate([request.infer({0: image[None]})[0].copy() for image in images])


def _openvino_execution(engine: bytes, manifest: Manifest) -> Execution:
    rule = manifest.preprocess
    nothing = np.zeros((1, rule.channels, rule.height, rule.width), np.float32)
    return openvino_execution(executed_nodes(_openvino_model(engine, True), nothing), manifest.layers)


_TOOLS = {
    "ort": _Tools(
        library="ONNX Runtime",
        file="model.onnx",
        inputs=compile_inputs,
        engine=executed_bytes,
        execution=lambda engine, manifest: execution(read_graph(engine), manifest.layers),
        logits=_ort_logits,
        # The plain graph saturates where the engine does not (runtime/saturation.py), and ARM adds a bias that is part
        # of a product without rounding the product first.
        same_bits=False,
    ),
    "openvino": _Tools(
        library="OpenVINO",
        file="model.blob",
        inputs=openvino.compile_inputs,
        engine=_openvino_engine,
        execution=_openvino_execution,
        logits=_openvino_logits,
        same_bits=True,
    ),
}


def show_tensorrt(bundle: Bundle, done: Sequence[CompiledRole], console: Console) -> None:
    """Print what was built, how far each engine's logits are from its reference's, and what to run next."""
    golden, table = bundle.golden(), Table(title="TensorRT engines of this device")
    for column in ("engine", "MB", "built because", "dB from its reference"):
        table.add_column(column, justify="right" if column == "MB" else "left")
    for one in done:
        reference = golden.logits if one.role == "integer" else golden.float_logits
        what = "integer" if one.role == "integer" else f"{one.precision} twin"
        far = f"{sqnr_db(reference, one.logits):.1f}"
        table.add_row(what, f"{one.record.bytes / 1e6:.1f}", one.reason, far)
        console.print(one.record.path, markup=False, highlight=False, soft_wrap=True)
    console.print(table)
    lost = sqnr_db(golden.float_logits, golden.logits)
    line = f"quantization itself leaves {lost:.1f} dB between the two references, the fake-quant and the float network"
    console.print(line, highlight=False, soft_wrap=True)


def _check_same(tools: _Tools, bundle: Bundle, backend: str, graph: bytes, engine: bytes, where: str) -> None:
    """Both give the same bits on the golden images, or (see :class:`_Tools`) the engine the calibrated integers."""
    images = bundle.golden().images
    fresh, kept = tools.logits(graph, False, images), tools.logits(engine, True, images)
    if np.array_equal(fresh, kept):
        return
    why = f"largest difference {float(np.abs(fresh - kept).max())} on the golden images"
    if not tools.same_bits:
        found = check(bundle, backend=backend, threads=1)
        if found.ok:
            return
        why += f"; {found.failures[0]}"
    raise IntvitError(
        "the compiled engine computes other numbers than the graph",
        where=where,
        why=why,
        next="do not compile on this machine; the engine runs without. Run `python -m runtime.doctor`",
    )


def compile_bundle(bundle: Bundle, *, backend: str = "ort", force: bool = False) -> Compiled:
    """Make sure the bundle holds an engine of ``backend``, "ort" or "openvino", for this machine.

    The engine is compared with the plain graph on the golden images before it is registered (the same bits; for ONNX
    Runtime, the calibrated integers at every tap will do), and replaces any other engine of that backend in the bundle.

    Raises:
        IntvitError: the graph does not load, the two disagree, or the bundle cannot be written to.
    """
    backend_class(backend)
    if backend not in _TOOLS:
        raise IntvitError(f"{backend} engines are compiled by another function", why="use its own compile_engines")
    tools, entry = _TOOLS[backend], bundle.entry("graph", backend)
    inputs = tools.inputs(entry.sha256)
    present = find_engine(bundle.engines, backend, inputs)
    if present is not None and not force:
        found = tools.execution((bundle.root / present.path).read_bytes(), bundle.manifest)
        return Compiled(present, found, "up to date", built=False)
    previous = next((record for record in bundle.engines if record.backend == backend), None)
    reason = difference(tools.library, previous, inputs)
    source = bundle.root / entry.path
    graph = source.read_bytes()
    refuse_external(graph, str(source))
    data = tools.engine(bundle)
    found = tools.execution(data, bundle.manifest)
    _check_same(tools, bundle, backend, graph, data, str(source))
    key = compile_key(inputs)
    path = f"{ENGINES}/{backend}-{key}/{tools.file}"
    record = EngineRecord(
        backend=backend,
        key=key,
        path=path,
        sha256=sha256_bytes(data),
        bytes=len(data),
        inputs=inputs,
        kernels=found.integer_kernels,
    )
    add_engine(bundle.root, bundle.engines, record, data, lambda old: old.backend == backend)
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
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--option", metavar="NAME=VALUE", help="An option of a tensorrt engine, e.g. level=5; others have none."
        ),
    ] = None,
    layers: Annotated[
        Path | None, typer.Option("--layers", metavar="FILE", help="Write TensorRT's account of its layers as JSON.")
    ] = None,
) -> None:
    """Compile the bundle's integer graph for this machine and say what runs as integer."""
    options, opened = cli.parse_options(option), Bundle.open(bundle)
    if backend == "tensorrt":
        if layers is not None:
            require_writable(layers)
        done = compile_engines(opened, options, force=force)
        show_tensorrt(opened, done, Console())
        if layers is not None:
            atomic_write_text(layers, done[0].layers_json)
        return
    if layers is not None:
        hint = "leave --layers out, or add --backend tensorrt"
        raise IntvitError("only TensorRT's engines give an account of their layers", where="--layers", next=hint)
    if options:
        why = f"an engine of {backend} is compiled for the default options"
        hint = "leave --option out; bench and accuracy take it"
        raise IntvitError("compile has no options for this backend", where="--option", why=why, next=hint)
    show(compile_bundle(opened, backend=backend, force=force), Console())


if __name__ == "__main__":
    cli.run(main)
