"""Standard output that outlives its reader: what comes after the printing (``--json``, an exit code) is still done."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import Any

import rich.console

PIPE_WIDTH = 160  # columns where nobody told how many there are: no layer's name is cut for a file or a pipe


class Console(rich.console.Console):
    """Prints until nobody reads any more (``| head -1``), and is silent from then on.

    What is no terminal is taken to have 160 columns, unless the caller or ``COLUMNS`` names another number.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        if not self.is_terminal and "width" not in options and not os.environ.get("COLUMNS"):
            self.width = PIPE_WIDTH

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
