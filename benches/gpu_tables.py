"""The tables of benches/gpu_kernels.py."""

from __future__ import annotations

from typing import Any

from benches.markdown import markdown

Record = dict[str, Any]


def _chip(record: Record) -> str:
    gpu, chip = record["gpu"], record["measured"]
    driver = gpu["nvidia_smi"].get("driver_version", "unknown")
    return (
        f"{gpu['name']}, SM {gpu['sm']}, {gpu['processors']} multiprocessors, driver {driver}. Measured ceilings: "
        f"{chip['int8'] / 1e12:.0f} int8 TOPS, {chip['f16'] / 1e12:.0f} float16 TFLOPS, {chip['bandwidth'] / 1e12:.2f} "
        f"TB/s. {record['compared']} launches gave numpy's bits before anything was timed.\n\n"
    )


def layers(record: Record) -> str:
    """A row a layer and batch: microseconds in the tile that was chosen, speed-up over float16, share of the floor."""
    head = ["model", "layer", "batch", "FP16 µs"]
    head += [f"{name} {what}" for name in ("W8A8", "W4A8") for what in ("µs", "× FP16", "of floor", "tile (fastest)")]
    rows = []
    for row in record["rows"]:
        cells = [row["model"], row["layer"], str(row["batch"]), f"{row['fp16_us']:.1f}"]
        for ours in (row["w8a8"], row["w4a8"]):
            tile = f"{ours['chosen']} ({ours['fastest']})"
            cells += [f"{ours['us']:.1f}", f"{ours['speedup']:.2f}", f"{100 * ours['of_floor']:.0f} %", tile]
        rows.append(cells)
    return _chip(record) + markdown(head, rows, left=2)


def blocks(record: Record) -> str:
    """A row a model and batch: microseconds of a whole block."""
    head = ["model", "batch", "torch FP16 µs", "W8A8 µs", "× FP16", "dB", "W4A8 µs", "× FP16", "dB"]
    rows = []
    for row in record["blocks"]:
        cells = [row["model"], str(row["batch"]), f"{row['us']['fp16 torch']:.1f}"]
        for name in ("w8a8", "w4a8"):
            cells += [f"{row['us'][name]:.1f}", f"{row['speedup'][name]:.2f}", f"{row['sqnr_db'][name]:.1f}"]
        rows.append(cells)
    return _chip(record) + markdown(head, rows, left=1)


def bench(record: Record) -> str:
    """A row a model, batch and precision: the parts of a call, how well the clocks agree, what NVML saw."""
    head = ["model", "batch", "torch, CUDA graph", "call ms", "copies in, out ms", "compute ms", "graph alone ms"]
    head += ["host beside ms", "J an image", "3 ratios, apart %", "W", "SM MHz", "°C"]
    rows = []
    for row in record["rows"]:
        watched, energy = row["telemetry"], row["energy"].get("by", {})
        for role, (name, one) in zip(("engine", "baseline"), row["contenders"].items(), strict=True):
            parts, drawn = one["phases"], energy.get(role, {}).get("joules_an_image")
            cells = [row["model"], str(row["batch"]), name.split()[0], f"{one['median_ms']:.3f}"]
            cells += [f"{parts['h2d_ms']:.3f}, {parts['d2h_ms']:.3f}", f"{parts['compute_ms']:.3f}"]
            cells += [f"{one['bare_ms']:.3f}", f"{one['outside_ms']:.3f}", "–" if drawn is None else f"{drawn:.4f}"]
            ratios = ", ".join(f"{ratio:.2f}" for ratio in row["ratios"])
            first = role == "engine"  # what belongs to the row as a whole stands once
            cells.append(f"{ratios}; {row['spread_percent']:.1f}" if first else "")
            cells += _watched(watched) if first else ["", "", ""]
            rows.append(cells)
    gpu = record["gpu"]
    driver = gpu["nvidia_smi"].get("driver_version", "unknown")
    return f"{gpu['name']}, SM {gpu['sm']}, driver {driver}.\n\n" + markdown(head, rows, left=1)


def _watched(telemetry: Record) -> list[str]:
    """Mean watts, lowest and highest SM clock, highest temperature of the GPU; dashes where NVML did not tell."""
    power, clocks = telemetry.get("power_w", {}), telemetry.get("clocks_mhz", {})
    heat = telemetry.get("temperature_c", {})
    watts = f"{power['nvml GPU']:.0f}" if "nvml GPU" in power else "–"
    span = "–".join(f"{value:.0f}" for value in clocks["nvml SM"]) if "nvml SM" in clocks else "–"
    return [watts, span, f"{heat['nvml GPU']:.0f}" if "nvml GPU" in heat else "–"]
