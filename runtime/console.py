"""Standard output that outlives its reader: what comes after the printing (``--json``, an exit code) is still done."""

from __future__ import annotations

import contextlib
import io
import os
import sys

import rich.console


class Console(rich.console.Console):
    """Prints until nobody reads any more (``| head -1``), and is silent from then on."""

    def on_broken_pipe(self) -> None:
        """See :meth:`rich.console.Console.on_broken_pipe`, which ends the process instead."""
        self.quiet = True
        null = os.open(os.devnull, os.O_WRONLY)
        with contextlib.suppress(OSError, ValueError):  # where standard output is no file there is nothing to save
            os.dup2(null, sys.stdout.fileno())
        os.close(null)


def forgive_characters() -> None:
    """Let standard output write what its encoding lacks (Latin-1 has no "…", UTF-8 no byte of a foreign file name) as
    an escape instead of raising."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
