"""A page taken apart, and bundles with everything measured that a report can show."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np

from runtime.bundle import Bundle
from runtime.files import atomic_write_json
from runtime.ladder import climb
from tests.toolchain.nets import calibrated, noise, spec_of, vit, write_bundle
from toolchain.inspect import inspect
from toolchain.traces import write_traces

JOULES = {"engine": 0.01, "baseline": 0.03}
VOID = {"meta", "img", "br", "link", "input", "use", "path"}


class Page(HTMLParser):
    """Ids, references, images, table heads and the visible text of an HTML page; tags must balance."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.references: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.heads: list[dict[str, str | None]] = []
        self.tags: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        self.ids += [value for key, value in attrs if key == "id" and value]
        self.references += [value for key, value in attrs if key in ("src", "href", "xlink:href", "srcset") and value]
        if tag == "img":
            self.images.append(named)
        if tag == "th":
            self.heads.append(named)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag
        self.text += " " if tag in ("td", "th", "dt", "dd", "li") else ""

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "script"):
            self.text += data


def bare_bundle(folder: Path, scheme: str = "w8a8") -> Path:
    """A bundle of a tiny ViT with random weights and what its build notes; nothing measured."""
    module = vit()
    spec = spec_of(module)
    model = calibrated(module, spec, scheme)
    write_bundle(module, spec, scheme, folder, model)
    history = folder.with_name(f"{folder.name}-history.json")
    rows = [{"batch": b, "step": s, "class": 3.0 / s + b, "total": 4.0 / s + b} for b in (0, 1) for s in range(1, 9)]
    history.write_text(json.dumps(rows))
    write_traces(model, module, noise(spec, 2, seed=2), history, folder)
    return folder


def bench_record(median: float = 2.0, twin: float = 3.0) -> dict[str, Any]:
    """What ``runtime.bench --json`` writes, sensors and energy included."""
    raw = np.linspace(0.9, 1.3, 40)
    figures = {name: value for name, value in (("p90_ms", 1.25), ("p99_ms", 1.3))}

    def part(scale: float) -> dict[str, Any]:
        times = (scale * raw / np.median(raw)).tolist()
        return {"median_ms": scale, "raw_ms": times, **{key: scale * value for key, value in figures.items()}}

    rails = ["ina3221 VDD_IN"]
    sample = {"power_w": {rails[0]: 9.0}, "clocks_mhz": {"cpu 0": 1500.0}, "temperature_c": {}, "throttle": []}
    return {
        "backend": "ort",
        "batch": 1,
        "threads": 2,
        **part(median),
        "baseline": part(twin),
        "others": [{"name": "BF16 (openvino)", **part(2.5)}],
        "speedup": twin / median,
        "verdict": "W8A8 is faster than FP32 here.",
        "disturbed": ["other processes kept 1.4 of 2 processors busy"],
        "warnings": [],
        "absent": ["no GPU telemetry: nvidia-ml-py is not installed"],
        "machine": {"cpu": "A processor"},
        "date": "2026-11-21T12:00:00+00:00",
        "telemetry": {
            "samples": [sample | {"t_s": 0.1 * i} for i in range(20)],
            "energy": {
                "rails": rails,
                "by": {"engine": {"joules_an_image": 0.01}, "baseline": {"joules_an_image": 0.03}},
            },
        },
    }


def accuracy_record(top1: float = 80.0) -> dict[str, Any]:
    """What ``runtime.accuracy --json`` writes; one class has a hostile name."""
    drop = {"index": 3, "id": "3", "name": "<script>alert(1)</script>", "images": 9, "right": 5, "baseline_right": 8}
    return {
        "backend": "ort",
        "top1": top1,
        "top5": 95.0,
        "images": 100,
        "baseline_top1": 82.0,
        "baseline_top5": 96.0,
        "agreement": 90.0,
        "stderr": 0.5,
        "interval_95": [-3.0, -1.0],
        "drops": [drop],
        "unreadable": [],
    }


def measured_bundle(folder: Path, scheme: str = "w8a8", **changes: float) -> Path:
    """A bundle with everything in its ``reports/``."""
    bare_bundle(folder, scheme)
    bundle = Bundle.open(folder)
    records = {
        "bench": bench_record(changes.get("median", 2.0)),
        "accuracy": accuracy_record(changes.get("top1", 80.0)),
        "ladder": climb(bundle, threads=1).to_json() | {"backend": "ort"},
        "inspect": inspect(bundle).to_json() | {"backend": "ort"},
    }
    for kind, record in records.items():
        atomic_write_json(folder / f"reports/{kind}.json", record | {"bundle": bundle.sha256})
    return folder
