"""Was the machine ours while we timed? Counters of the kernel read before and after, and the reasons they give.

Sources: proc(5) for ``/proc/stat`` and ``/proc/PID/task/TID/schedstat`` (second field: nanoseconds a thread was ready
but had no processor), getrusage(2) for involuntary context switches. Where a counter is missing, its test is left out.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from runtime import machine
from runtime.bench.statistics import percentile

# Limits, from deit_s with three contenders of 2 threads each on 2 cores, alone and beside one busy process: others 0.01
# to 0.04 and 0.37 of the cores, waited 0.01 (vit_digits: 0.03 to 0.09) and 0.62, preempted 75 to 140 (contenders' own
# threads meet at the end of a turn) and 240 to 290, slow over fast rounds 1.03 to 1.10 (1.55 when something did come
# between) and 1.58 to 2.2.
OTHERS = 0.1  # of the time of the processors this process may use
STOLEN = 0.02  # of that time, taken by the hypervisor
WAITED = 0.2  # of the time that went by, summed over threads
PREEMPTED = 200.0  # involuntary context switches a second; of a small network's short turns more are its own, so that
# they count only where the system says neither who else was busy nor how long threads waited
ROUNDS = 1.25  # slow rounds over fast ones
_MIN_S = 0.2  # /proc/stat counts in hundredths of a second
_MIN_ROUNDS = 8


@dataclass(frozen=True)
class Counters:
    """Seconds since some moment, None where the system does not say.

    Attributes:
        wall: gone by. own: processor time of this process, all threads.
        busy: processor time of everybody on the processors this process may use; stolen: the hypervisor's share.
        waited: by the threads asked for, ready to run without a processor to run on.
        switches: how often one of them was taken off its processor (a count).
    """

    wall: float
    own: float
    busy: float | None
    stolen: float | None
    waited: float | None
    switches: int | None


@dataclass(frozen=True)
class Quiet:
    """What happened between two readings, as shares.

    Attributes:
        others: processors kept busy by other processes. stolen: processors taken by the hypervisor.
        waited: seconds a second, by the threads asked for. switches: a second.
        cores: processors this process may use. wall: seconds.
    """

    wall: float
    cores: int
    others: float | None
    stolen: float | None
    waited: float | None
    switches: float | None


def parse_stat(text: str, cpus: Iterable[int], ticks: int) -> tuple[float, float] | None:
    """(busy, stolen) seconds of the processors ``cpus`` from the text of ``/proc/stat``, in ``ticks`` a second.

    Fields of a line: user nice system idle iowait irq softirq steal; guest time is counted in user already.
    None when no such processor is listed.
    """
    wanted, busy, stolen, seen = {f"cpu{cpu}" for cpu in cpus}, 0, 0, False
    for line in text.splitlines():
        name, *fields = line.split()
        if name in wanted and len(fields) >= 8:
            user, nice, system, _, _, irq, softirq, steal = (int(field) for field in fields[:8])
            busy, stolen, seen = busy + user + nice + system + irq + softirq, stolen + steal, True
    return (busy / ticks, stolen / ticks) if seen else None


def threads() -> frozenset[int]:
    """The threads this process has now, by number; empty where the system does not list them."""
    try:
        return frozenset(int(thread.name) for thread in Path("/proc/self/task").iterdir())
    except OSError:
        return frozenset()


def _waited(wanted: Iterable[int]) -> float | None:
    total, seen = 0, False
    for thread in wanted:
        try:
            total += int(Path(f"/proc/self/task/{thread}/schedstat").read_text().split()[1])
            seen = True
        except (OSError, ValueError, IndexError):
            continue  # a thread that has ended, or a kernel without the file
    return total / 1e9 if seen else None


def _switches() -> int | None:
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def read(wanted: Iterable[int]) -> Counters:
    """The counters now; waiting is that of the threads ``wanted``."""
    try:
        found = parse_stat(Path("/proc/stat").read_text(), machine.available_cpus(), os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, AttributeError):
        found = None
    busy, stolen = found or (None, None)
    return Counters(time.perf_counter(), time.process_time(), busy, stolen, _waited(wanted), _switches())


def between(before: Counters, after: Counters, cores: int | None = None) -> Quiet:
    """What happened between two readings; ``cores`` defaults to the processors this process may use."""
    wall = max(after.wall - before.wall, 1e-9)

    def rate(last: float | None, first: float | None, less: float = 0.0) -> float | None:
        return None if last is None or first is None else max(0.0, last - first - less) / wall

    return Quiet(
        wall=wall,
        cores=cores or len(machine.available_cpus()),
        others=rate(after.busy, before.busy, after.own - before.own),
        stolen=rate(after.stolen, before.stolen),
        waited=rate(after.waited, before.waited),
        switches=rate(after.switches, before.switches),
    )


def rounds_ratio(medians: Sequence[float]) -> float | None:
    """The slow rounds over the fast ones, 90th over 10th percentile of their medians; None for fewer than 8 rounds."""
    if len(medians) < _MIN_ROUNDS:
        return None
    return percentile(medians, 0.9) / percentile(medians, 0.1)


def reasons(quiet: Quiet, medians: Sequence[float] = ()) -> list[str]:
    """Why the times are not to be trusted, a sentence each; empty when nothing speaks against them.

    Args:
        quiet: what happened while they were taken.
        medians: of each round of one engine, in order.
    """
    found = []
    if quiet.wall >= _MIN_S:
        if quiet.others is not None and quiet.others > OTHERS * quiet.cores:
            found.append(f"other processes kept {quiet.others:.2f} of {quiet.cores} processor(s) busy")
        if quiet.stolen is not None and quiet.stolen > STOLEN * quiet.cores:
            found.append(f"the hypervisor took {quiet.stolen:.2f} of {quiet.cores} processor(s) away")
        if quiet.waited is not None and quiet.waited > WAITED:
            found.append(f"threads waited {1e3 * quiet.waited:.0f} ms a second for a processor")
        blind = quiet.others is None and quiet.waited is None
        if blind and quiet.switches is not None and quiet.switches > PREEMPTED:
            found.append(f"threads were taken off their processor {quiet.switches:.0f} times a second")
    ratio = rounds_ratio(medians)
    if ratio is not None and ratio > ROUNDS:
        found.append(f"slow rounds took {ratio:.2f}x the time of fast ones")
    return found


def record(quiet: Quiet, medians: Sequence[float]) -> dict[str, Any]:
    """The same as JSON values: every counter, the spread of the rounds, and the reasons."""
    middle = statistics.median(medians) if medians else None
    return {
        **asdict(quiet),
        "rounds": len(medians),
        "rounds_ratio": rounds_ratio(medians),
        "rounds_median_ms": middle,
        "reasons": reasons(quiet, medians),
    }
