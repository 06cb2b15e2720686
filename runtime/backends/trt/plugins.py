"""Our kernels' plugins, made known to TensorRT before it reads a graph or a plan that holds their nodes.

Two kinds (docs/kernels.md): quickly deployable ones, compiled ahead of time, from 10.13 on, whose kernels lie in the
plan; IPluginV3 in Python before that, which has to be there when the plan runs as well. TensorRT-RTX has neither: its
parser finds an IPluginV3 and makes it, and then ends the process, for its networks have no plugin layers (1.7.1).
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from runtime.backends.trt.library import is_rtx, module_name
from runtime.backends.trt.types import TensorRT
from runtime.errors import IntvitError
from runtime.kernels import plugin_v3, qdp
from runtime.kernels.build import require_built
from runtime.kernels.nodes import uses_kernels
from runtime.onnx_wire import Graph

OLDEST_SM = (8, 0)
_FREE = "build the bundle with --option kernels=off: TensorRT's own kernels run it"
# What TensorRT knows already: the module and the creators, which its registry does not keep alive.
_known: list[tuple[TensorRT, list[Any]]] = []
_lock = threading.Lock()


def ahead_of_time(trt: TensorRT) -> bool:
    """Whether this TensorRT takes the kernels into its plans, so that running one needs no plugin."""
    return hasattr(trt, "IPluginV3QuickAOTBuild")


def make_known(trt: TensorRT, graph: Graph, folder: Path, *, sm: str = "", where: str = "") -> None:
    """Register the plugins once for this process, if ``graph`` holds nodes of our kernels.

    Args:
        folder: what ``make kernels`` wrote.
        sm: compute capability of the GPU, such as "8.7"; empty: not known.
        where: the graph's file, for messages.

    Raises:
        IntvitError: it holds such nodes, and the kernels are not built, the GPU is too old for them, or this TensorRT
            has no plugins.
    """
    if not uses_kernels(graph):
        return
    if is_rtx(trt):
        raise IntvitError(
            "TensorRT-RTX cannot run our kernels",
            where=where,
            why=f"{module_name(trt)} {trt.__version__} has no plugin layers",
            next=f"use TensorRT 10.3 or later; or {_FREE}",
        )
    if sm and tuple(int(part) for part in sm.split(".")) < OLDEST_SM:
        why = f"SM {sm}; they need 8.0 or later"
        raise IntvitError("this GPU is too old for our kernels", where=where, why=why, next=_FREE)
    with _lock:
        if any(known is trt for known, _ in _known):
            return
        _register(trt, folder, where)


def _register(trt: TensorRT, folder: Path, where: str) -> None:
    try:
        require_built(folder)
    except IntvitError as error:
        hint = f"`make kernels`, or --option kernels=FOLDER where they lie elsewhere; or {_FREE}"
        raise IntvitError(error.what, where=where or error.where, why=error.why or str(folder), next=hint) from error
    if ahead_of_time(trt):
        qdp.register(folder)
        _known.append((trt, []))
    else:
        _known.append((trt, plugin_v3.register(folder, trt=trt)))
