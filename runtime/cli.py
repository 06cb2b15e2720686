"""Turn a function into a command: errors a person can read, ``--debug`` for the traceback, honest exit codes.

Exit codes: 0 done, 1 an error or a check that failed, 2 a wrong command line, 130 stopped with Ctrl-C.
"""

from __future__ import annotations

import functools
import inspect
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from runtime.console import forgive_characters
from runtime.errors import IntvitError
from runtime.files import disk_full, require_apart, require_writable, write_error
from runtime.manifest import MANIFEST, MANIFEST_DIGEST, Manifest
from runtime.registry import ENGINES, REGISTRY, REGISTRY_DIGEST, Registry
from runtime.verify import read_digested

MOST_THREADS = 1024

BundleArgument = Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle: a directory with manifest.json.")]
BackendOption = Annotated[str, typer.Option("--backend", help="Which engine runs the integer graph.")]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        "--threads", min=1, max=MOST_THREADS, help="Threads of the engine; default: physical cores available."
    ),
]
EngineOption = Annotated[
    list[str] | None,
    typer.Option("--option", metavar="NAME=VALUE", help="An option of the backend, e.g. precision=bf16 of openvino."),
]
JsonOption = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write the result as JSON.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]

_OUTPUTS = ("json", "out", "layers")  # arguments that name what a command writes
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory")  # torch says the one of a GPU, the other of the CPU


def parse_options(texts: Sequence[str] | None) -> dict[str, str]:
    """The NAME=VALUE texts of ``--option`` as a dictionary.

    Raises:
        IntvitError: one has no "=" or no name.
    """
    found = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise IntvitError(f"not an option: {text!r}", where="--option", next="write it as NAME=VALUE")
        found[name] = value
    return found


def _held_files(bundle: Path) -> Iterator[Path]:
    """The files of a bundle that a digest covers; none of a folder that is no bundle."""
    engines = bundle / ENGINES
    for listing, digest, kind, field in (
        (bundle / MANIFEST, bundle / MANIFEST_DIGEST, Manifest, "files"),
        (engines / REGISTRY, engines / REGISTRY_DIGEST, Registry, "engines"),
    ):
        try:
            listed = getattr(kind.model_validate_json(read_digested(listing, digest)), field)
        except (IntvitError, ValueError):
            continue
        yield from (listing, digest, *(bundle / entry.path for entry in listed))


def require_kept(out: Path, inputs: Iterable[Path]) -> None:
    """Refuse an ``out`` that would overwrite one of ``inputs``, or a file that a digest covers in one that is a bundle.

    Raises:
        IntvitError: naming the input.
    """
    for path in inputs:
        require_apart(out, (path, *_held_files(path)))


def _require_outputs(given: Mapping[str, Any]) -> None:
    """Refuse the outputs among a command's arguments that cannot be written, or would overwrite an input."""
    if given.get("json") is not None:
        require_writable(given["json"])
    outputs = [given[name] for name in _OUTPUTS if isinstance(given.get(name), Path)]
    others = [value for name, value in given.items() if name not in _OUTPUTS]
    inputs = [path for value in others for path in (value if isinstance(value, list) else [value])]
    checkpoint = [Path(name).expanduser() for name in (given.get("checkpoint"),) if name not in (None, "random")]
    for out in outputs:
        require_kept(out, [*checkpoint, *(path for path in inputs if isinstance(path, Path))])


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def render_error(error: BaseException) -> str:
    """The message for any exception that ended a command, in :meth:`IntvitError.render`'s form."""
    if type(error).__name__ == IntvitError.__name__:  # calib's has the same form, and cannot be imported here
        return str(error)
    if isinstance(error, OSError) and disk_full(error):
        if error.filename is None:  # so it is where print() fails, and whatever writes without a name
            hint = "free some space, or send standard output elsewhere"
            why = error.strerror or str(error)
            return IntvitError("standard output, or a file, cannot be written", why=why, next=hint).render()
        return write_error(Path(str(error.filename)), error).render()
    if isinstance(error, OSError) and error.errno is not None:
        reason = error.strerror or str(error)
        return IntvitError("the operating system refused", where=str(error.filename or ""), why=reason).render()
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in _OUT_OF_MEMORY)
    ):
        return IntvitError(
            "out of memory",
            why=str(error).partition("\n")[0],
            next="use a smaller --batch, --images or --limit, where the command has one, or a machine with more memory",
        ).render()
    if isinstance(error, ModuleNotFoundError) and error.name:
        why = "building a bundle needs it, running one does not"
        return IntvitError(f"{error.name} is not installed", why=why, next="pip install 'intvit[build]'").render()
    return IntvitError(
        f"unexpected {type(error).__name__}: {error}".rstrip(": "),
        why="this is a fault of intvit, not of what you typed",
        next="run the command again with --debug and report the traceback",
    ).render()


def guarded(function: Callable[..., None]) -> Callable[..., None]:
    """``function`` with its exceptions turned into messages on standard error and an exit code.

    It takes one argument more: ``debug``, which lets the traceback through to standard error as well. One of
    ``function``'s own that is called ``json`` is a file that must be writable before ``function`` begins; neither it
    nor ``out`` or ``layers`` may overwrite what the other arguments name.
    """

    @functools.wraps(function)
    def command(*args: Any, debug: bool = False, **kwargs: Any) -> None:
        try:
            _require_outputs(kwargs)
            function(*args, **kwargs)
        except (typer.Exit, typer.Abort):
            raise
        except KeyboardInterrupt:
            _say("\nstopped by Ctrl-C; nothing half-written was left under a final name")
            raise typer.Exit(130) from None
        except BrokenPipeError:
            raise typer.Exit(1) from None
        except Exception as error:
            if debug:
                traceback.print_exc(file=sys.stderr)
            _say(render_error(error))
            raise typer.Exit(1) from None

    own = inspect.signature(function, eval_str=True)
    added = inspect.Parameter("debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=DebugOption)
    shown: Any = command  # what typer reads the options from
    shown.__signature__ = own.replace(parameters=[*own.parameters.values(), added])
    shown.__annotations__ = function.__annotations__ | {"debug": DebugOption}
    return command


def invoke(function: Callable[..., None], arguments: Sequence[str] | None = None) -> int:
    """Run ``function`` as a typer command on ``arguments`` (default: the process's own) and return the exit code."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(guarded(function))
    try:
        app(args=None if arguments is None else list(arguments))
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return 0


def run(function: Callable[..., None]) -> NoReturn:
    """Run ``function`` as this process's command and exit with its code."""
    forgive_characters()
    sys.exit(invoke(function))
