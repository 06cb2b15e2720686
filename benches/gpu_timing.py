"""Times on a GPU: launches captured in CUDA graphs, replayed in turns, measured with events."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from runtime.errors import IntvitError


def need_gpu(device: str) -> None:
    """Refuse anything but a CUDA device that torch can use.

    Raises:
        IntvitError: another device is asked for, or there is none.
    """
    if device != "cuda":
        raise IntvitError(f"this bench does not run on {device!r}", where="--device", next="use --device cuda")
    if not torch.cuda.is_available():
        raise IntvitError(
            "there is no NVIDIA GPU here",
            why="torch sees none: no GPU, no driver, or a torch without CUDA",
            next="run this where nvidia-smi lists a GPU",
        )


def current_stream() -> int:
    """The stream torch launches on now, as a CUstream; 0 where there is no GPU."""
    return int(torch.cuda.current_stream().cuda_stream) if torch.cuda.is_available() else 0


def captured(calls: Sequence[Callable[[], Any]]) -> torch.cuda.CUDAGraph:
    """All calls, in order, as one graph. Each runs twice before, outside it: modules load, buffers are made."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            for call in calls:
                call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph


def microseconds(variants: Mapping[str, Sequence[Callable[[], Any]]], repeats: int) -> dict[str, list[float]]:
    """Microseconds a call of each variant, ``repeats`` of them: variants take turns, three rounds do not count."""
    graphs = {name: (captured(calls), len(calls)) for name, calls in variants.items()}
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    times: dict[str, list[float]] = {name: [] for name in graphs}
    for turn in range(repeats + 3):
        for name, (graph, count) in graphs.items():
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            if turn >= 3:
                times[name].append(round(1e3 * begin.elapsed_time(end) / count, 3))
    return times
