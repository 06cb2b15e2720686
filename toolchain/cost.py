"""What a stage cost: wall-clock seconds and the peak of the process's memory."""

from __future__ import annotations

import contextlib
import resource
import time
from pathlib import Path
from types import TracebackType
from typing import Any

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Meter:
    """While open, measures; then ``cost`` holds ``seconds`` and ``peak_mib``.

    The peak is this process's resident memory, all it held before included (proc(5): VmHWM, started again by writing 5
    to clear_refs). Where the kernel has no such counter it is the peak of the process's whole life so far.
    """

    def __init__(self) -> None:
        self.cost: dict[str, Any] = {}

    def __enter__(self) -> Meter:
        with contextlib.suppress(OSError):
            RESET.write_text("5", "ascii")
        self._begun = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cost = {"seconds": round(time.monotonic() - self._begun, 3), "peak_mib": peak_mib()}


def peak_mib() -> int:
    """Peak resident memory of this process, MiB."""
    try:
        lines = STATUS.read_text("ascii").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) // 1024
    except (OSError, StopIteration, ValueError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
