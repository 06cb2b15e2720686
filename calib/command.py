"""Turn a function into a command of this package: errors a person can read, ``--debug``, honest exit codes.

Exit codes: 0 done, 1 an error, 2 a wrong command line, 130 stopped with Ctrl-C.
"""

from __future__ import annotations

import errno
import functools
import inspect
import io
import sys
import traceback
from collections.abc import Callable
from typing import Annotated, Any, NoReturn

import typer

from calib.errors import IntvitError
from calib.memory import out_of_memory

DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def as_message(error: Exception) -> IntvitError:
    """The error to show for any exception that ended a command."""
    if isinstance(error, IntvitError):
        return error
    if isinstance(error, OSError) and error.errno is not None:
        advice = "free some space, or choose another --out" if error.errno == errno.ENOSPC else "check the path"
        return IntvitError(
            "the operating system refused", where=str(error.filename or ""), why=str(error.strerror), next=advice
        )
    if out_of_memory(error):
        return IntvitError("out of memory", why=str(error).split("\n")[0], next="use a smaller --batch")
    if isinstance(error, ModuleNotFoundError) and error.name:
        return IntvitError(f"{error.name} is not installed", next="pip install 'intvit[build]'")
    return IntvitError(
        f"unexpected {type(error).__name__}: {error}".rstrip(": "),
        why="this is a fault of intvit, not of what you typed",
        next="run the command again with --debug and report the traceback",
    )


def run(function: Callable[..., None]) -> NoReturn:
    """Run ``function`` as this process's command, with a ``--debug`` of its own, and exit with its code."""

    @functools.wraps(function)
    def command(*args: Any, debug: bool = False, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
        except (typer.Exit, typer.Abort):
            raise
        except KeyboardInterrupt:
            print("\nstopped by Ctrl-C; the same command goes on from here", file=sys.stderr, flush=True)
            raise typer.Exit(130) from None
        except Exception as error:
            if debug:
                traceback.print_exc(file=sys.stderr)
            print(as_message(error).render(), file=sys.stderr, flush=True)
            raise typer.Exit(1) from None

    own = inspect.signature(function, eval_str=True)
    added = inspect.Parameter("debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=DebugOption)
    shown: Any = command  # what typer reads the options from
    shown.__signature__ = own.replace(parameters=[*own.parameters.values(), added])
    shown.__annotations__ = function.__annotations__ | {"debug": DebugOption}
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(command)
    if isinstance(sys.stdout, io.TextIOWrapper):  # what its encoding lacks is written as an escape
        sys.stdout.reconfigure(errors="backslashreplace")
    app()
    sys.exit(0)
