"""One progress bar with the time left, or plain lines when nobody watches a terminal."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_LINE_EVERY_S = 5.0
_LINE_EVERY_PART = 0.1


class Advance(Protocol):
    """Say that ``n`` more steps are done; ``note`` is shown beside the bar and replaces the one before."""

    def __call__(self, n: int = 1, note: str = "") -> None: ...


def _clock(seconds: float) -> str:
    whole = int(max(0.0, seconds) + 0.5)
    minutes = f"{whole // 60 % 60:02d}:{whole % 60:02d}"
    return f"{whole // 3600}:{minutes}" if whole >= 3600 else minutes


@contextlib.contextmanager
def task(label: str, total: int, *, console: Console | None = None) -> Iterator[Advance]:
    """Show the progress of ``total`` steps on standard error while the block runs; yields :class:`Advance`.

    On a terminal: a bar with the estimated time left. Otherwise a line at about every tenth of the way, and no more
    than one in five seconds; the last one always.
    """
    screen = console or Console(stderr=True)
    if screen.is_terminal:
        yield from _bar(label, total, screen)
    else:
        yield from _lines(label, total, screen)


def _bar(label: str, total: int, screen: Console) -> Iterator[Advance]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=screen) as bar:
        handle = bar.add_task(label, total=total, note="")

        def advance(n: int = 1, note: str = "") -> None:
            if note:
                bar.update(handle, advance=n, note=note)
            else:
                bar.update(handle, advance=n)

        yield advance


def _lines(label: str, total: int, screen: Console) -> Iterator[Advance]:
    start = last_time = time.monotonic()
    done = last_done = 0

    def advance(n: int = 1, note: str = "") -> None:
        nonlocal done, last_done, last_time
        done += n
        now = time.monotonic()
        step = done - last_done >= _LINE_EVERY_PART * total and now - last_time >= _LINE_EVERY_S
        if not step and done < total:
            return
        last_done, last_time = done, now
        spent = now - start
        left = spent / done * (total - done) if done else 0.0
        percent = 100 * done // total if total else 100
        text = f"{label}: {done}/{total} ({percent} %), {_clock(spent)} spent, {_clock(left)} left"
        screen.print(f"{text}, {note}" if note else text, markup=False, highlight=False, soft_wrap=True)

    yield advance
