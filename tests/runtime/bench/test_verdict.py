"""Words for figures."""

from __future__ import annotations

from typing import Any

import pytest

from runtime.bench.verdict import DISTURBED, hints, spoken, timing_warnings, verdict


@pytest.mark.parametrize(
    ("ratios", "said", "never"),  # never: what must not stand beside it
    [
        ({"FP32": 2.0}, "W8A8 is 2.00x FP32 here, at this batch", "do not"),
        ({"FP32": 0.5}, "slower than FP32: do not deploy this for speed", "available"),
        ({"FP32": 1.01}, "no faster in practice", "deploy"),
        (
            {"FP32": 1.9, "BF16 (openvino)": 1.1},
            "1.90x FP32 here, 1.10x BF16 (openvino); do not quantize if BF16 is available (under 15 % over it",
            "at this",
        ),
        ({"FP32": 1.9, "BF16 (openvino)": 0.8}, "do not quantize if BF16 is available", "at this"),
        ({"FP32": 1.9, "BF16 (openvino)": 1.5}, "1.50x BF16 (openvino), at this batch", "do not"),
        ({"FP16": 1.08}, "W8A8 is 1.08x FP16 here; do not quantize if FP16 is available", "at this"),
        ({"FP16": 0.9}, "slower than FP16: do not deploy", "available"),
        ({"FP16": 1.6}, "W8A8 is 1.60x FP16 here, at this batch", "do not"),
    ],
)
def test_words(ratios: dict[str, float], said: str, never: str) -> None:
    sixteen = [name for name in ratios if "16" in name]
    found = verdict("W8A8", ratios, sixteen)
    assert said in found and never not in found


def record(**changes: Any) -> dict[str, Any]:
    made = {"scheme": "w4a8", "speedup": 1.9, "baseline": {"name": "FP32 (ort)"}, "others": [], "disturbed": []}
    return made | {"threads": 2, "disturbance": {"cores": 2}} | changes


def test_a_record_in_words() -> None:
    assert spoken(record()) == "W4A8 is 1.90x FP32 here, at this batch and thread count."
    bf16 = {"role": "bf16", "name": "BF16 (openvino)", "speedup": 1.1}
    assert "1.10x BF16 (openvino); do not quantize if BF16 is available" in spoken(record(others=[bf16]))
    assert "do not quantize if FP16" in spoken(record(baseline={"name": "FP16 (tensorrt)"}, speedup=1.1))


@pytest.mark.parametrize(
    ("ratio", "said"), [(1.3, "It is 1.30x as fast as"), (0.5, "slower, 2.00x the time of"), (1.0, "It is as fast as")]
)
def test_another_bundle(ratio: float, said: str) -> None:
    other = {"role": "other", "name": "W8A8 (ort)", "model": "deit_t", "speedup": ratio}
    found = spoken(record(others=[other]))
    assert said in found and found.endswith("deit_t W8A8 (ort) of the other bundle.")


def test_a_rival_on_another_engine_is_pointed_at() -> None:
    rival = {"role": "bf16", "name": "BF16 (openvino)", "speedup": 0.8}
    (line,) = hints(record(backend="ort", others=[rival]))
    assert "time the integers there too" in line
    assert hints(record(backend="openvino", others=[rival])) == []
    assert hints(record(backend="ort", others=[rival | {"speedup": 1.5}])) == []


def test_more_threads_than_processors_is_pointed_at() -> None:
    (line,) = hints(record(threads=3))
    assert line == "3 threads share 2 processors and wait for one another: --threads 2 or fewer"
    (line,) = hints(record(threads=2, disturbance={"cores": 1}))
    assert line == "2 threads share 1 processor and wait for one another: --threads 1"


def test_doubt_comes_first() -> None:
    found = spoken(record(disturbed=["other processes kept 1.00 of 2 processor(s) busy", "more"]))
    assert found.startswith(f"{DISTURBED}: other processes kept 1.00") and "; more. W4A8 is" in found


def test_warnings_of_trtexec() -> None:
    calm = {"variation": 0.01}
    assert timing_warnings("e", calm) == []
    assert "unstable" in timing_warnings("e", {"variation": 0.03})[0]
    parts = {"compute_ms": [1.0, 1.0, 9.0], "enqueue_ms": [0.9, 0.9, 0.0], "h2d_ms": [0.5], "d2h_ms": [0.4]}
    (bound,) = timing_warnings("e", calm | {"phases": parts})
    assert "bound by the host" in bound and "CUDA graph" in bound
    slow = parts | {"enqueue_ms": [0.5], "h2d_ms": [0.7]}
    (moved,) = timing_warnings("e", calm | {"phases": slow})
    assert "bound by transfers" in moved
    assert timing_warnings("e", calm | {"phases": {"enqueue_ms": [5.0]}}) == []
