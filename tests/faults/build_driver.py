"""The build command with a brake: slow steps to be killed in, or a stop at a named place, and a count of iterations.

``python tests/faults/build_driver.py MODE FOLDER BUILD-OPTIONS``. ``FOLDER/iterations`` gets one byte for each
synthesis iteration; ``FOLDER/reached`` appears where a stopping mode stops (and sleeps until it is killed).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from calib.synthesis import engine
from runtime import cli
from toolchain import assemble, pipeline
from toolchain.build import main


def stop(folder: Path) -> None:
    (folder / "reached").touch()
    time.sleep(300)


def stopping_after(function: Callable[..., Any], folder: Path) -> Callable[..., Any]:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        function(*args, **kwargs)
        stop(folder)

    return wrapped


def drive(mode: str, folder: Path, options: list[str]) -> int:
    gradient, calibrate = engine.gradient, pipeline.calibrate

    def counted(*args: Any, **kwargs: Any) -> Any:
        with (folder / "iterations").open("ab") as stream:
            stream.write(b".")
        if mode == "slow":
            time.sleep(0.1)
        return gradient(*args, **kwargs)

    def stops_halfway(*args: Any) -> Any:
        *rest, progress, checkpoints = args

        def report(done: int, total: int, note: str) -> None:
            progress(done, total, note)
            if done == total // 2:
                stop(folder)

        return calibrate(*rest, report, checkpoints)

    engine.SAVE_EVERY_S = 0.05
    engine.gradient = counted
    if mode == "in-calibration":
        pipeline.calibrate = stops_halfway
    elif mode == "in-lowering":
        pipeline.write_golden = stopping_after(pipeline.write_golden, folder)
    elif mode == "in-assembling":
        assemble.write_manifest = stopping_after(assemble.write_manifest, folder)
    return cli.invoke(main, options)


if __name__ == "__main__":
    sys.exit(drive(sys.argv[1], Path(sys.argv[2]), sys.argv[3:]))
