"""What the figures mean, in words a person can act on, and every reason to doubt them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

FASTER = 1.05  # below it a ratio is no gain in practice
WORTH = 1.15  # below it a gain over a 16-bit float path does not pay for the accuracy it costs
UNSTABLE = 0.025  # trtexec's limit for the coefficient of variation of the compute time
ENQUEUE_BOUND = 0.8  # trtexec's limit for enqueue over compute, medians
DISTURBED = "DISTURBED RUN, do not quote these figures"


def _ratios(name: str, ratios: Mapping[str, float]) -> str:
    first, *others = (f"{ratio:.2f}x {reference}" for reference, ratio in ratios.items())
    return ", ".join([f"{name} is {first} here", *others])


def verdict(name: str, ratios: Mapping[str, float], sixteen: Sequence[str] = ()) -> str:
    """One sentence.

    Args:
        name: of the integer engine, as "W8A8".
        ratios: how many times as fast it is as each float path, by the path's name; the first is its own float twin.
        sixteen: which of those names are 16-bit float paths.
    """
    said = _ratios(name, ratios)
    own = next(iter(ratios))
    if ratios[own] < 1.0:
        return f"{said}: slower than {own}: do not deploy this for speed."
    rivals = [reference for reference in sixteen if ratios[reference] < WORTH]
    if rivals:
        kind = rivals[0].split()[0]
        little = f"under {100 * (WORTH - 1):.0f} % over it does not pay for the accuracy"
        return f"{said}; do not quantize if {kind} is available ({little}), unless the smaller file is what you need."
    if ratios[own] < FASTER:
        return f"{said}: no faster in practice; the gain is the smaller file."
    return f"{said}, at this batch and thread count."


def timing_warnings(name: str, figures: Mapping[str, Any]) -> list[str]:
    """trtexec's warnings for one contender's figures (its ``variation``, and ``phases`` where an engine has them).

    Source of the limits: TensorRT 11.1, samples/common/sampleReporting.cpp.
    """
    found = []
    medians = {key: median(values) for key, values in figures.get("phases", {}).items() if values}
    compute = medians.get("compute_ms")
    if figures["variation"] > UNSTABLE:
        part = 100 * figures["variation"]
        found.append(f"{name}: times vary by {part:.1f} % (over 2.5 %): unstable; trust the median and the ratio")
    if compute is not None:
        enqueue = medians.get("enqueue_ms", 0.0)
        moved = medians.get("h2d_ms", 0.0) + medians.get("d2h_ms", 0.0)
        if enqueue > ENQUEUE_BOUND * compute:
            bound = f"{name}: bound by the host: enqueueing takes {enqueue:.3f} ms, computing {compute:.3f} ms"
            found.append(f"{bound}; a CUDA graph or a larger batch helps")
        if moved >= compute:
            found.append(f"{name}: bound by transfers: {moved:.3f} ms of copies, {compute:.3f} ms compute")
    return found


def _relation(ratio: float) -> str:
    if 1 / FASTER < ratio < FASTER:
        return "as fast as"
    return f"{ratio:.2f}x as fast as" if ratio > 1 else f"slower, {1 / ratio:.2f}x the time of"


def hints(record: Mapping[str, Any]) -> list[str]:
    """What to set otherwise, a line each.

    A 16-bit rival close behind or ahead runs on another engine than the integers: part of its speed may be the
    engine's. There are more threads than processors. Needs of the record: ``backend``, ``others`` [{role, name,
    speedup}], ``threads``, ``disturbance`` {cores}.
    """
    found = []
    close = [one for one in record["others"] if one["role"] == "bf16" and one["speedup"] < WORTH]
    if close and record["backend"] not in close[0]["name"]:
        rival = close[0]["name"]
        found.append(f"{rival} is another engine than {record['backend']}: time the integers there too (--backend)")
    threads, cpus = record["threads"], record["disturbance"]["cores"]
    if threads > cpus:
        shared, at_most = (f"{cpus} processors", f"{cpus} or fewer") if cpus > 1 else ("1 processor", "1")
        found.append(f"{threads} threads share {shared} and wait for one another: --threads {at_most}")
    return found


def spoken(record: Mapping[str, Any]) -> str:
    """The verdict of a whole record, with the reasons to doubt it first.

    Needs of the record: ``scheme``, ``speedup``, ``baseline`` {name}, ``others`` [{role, name, speedup}],
    ``disturbed``.
    """
    baseline = record["baseline"]["name"]
    ratios = {baseline.split()[0]: record["speedup"]}
    rivals = [one for one in record["others"] if one["role"] == "bf16"]
    ratios |= {one["name"]: one["speedup"] for one in rivals}
    sixteen = [name for name in ratios if name.split()[0] in ("BF16", "FP16")]
    said = verdict(record["scheme"].upper(), ratios, sixteen)
    for one in record["others"]:
        if one["role"] == "other":
            said += f" It is {_relation(one['speedup'])} {one['model']} {one['name']} of the other bundle."
    if record["disturbed"]:
        return f"{DISTURBED}: {'; '.join(record['disturbed'])}. {said}"
    return said
