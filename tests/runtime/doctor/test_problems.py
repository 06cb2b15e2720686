"""Known illnesses of other machines are recognised, and healthy ones left alone."""

from __future__ import annotations

import pytest

from runtime.doctor import problems


def test_versions() -> None:
    assert problems.version_tuple("1.31.1+cpu") == (1, 31, 1)
    assert problems.version_tuple("odd") == ()
    assert "onnxruntime>=" in problems.ort_problems("1.19.2", ["CPUExecutionProvider"])[0].fix
    assert "INT4" in problems.ort_problems("1.22.1", ["CPUExecutionProvider"])[0].why
    assert all(problems.ort_problems(fit, ["CPUExecutionProvider"]) == [] for fit in ("1.23.2", "1.31.1"))
    assert "no CPU provider" in problems.ort_problems("1.31.1", [])[0].what
    assert problems.ort_notes("1.20.1") == []
    assert len(problems.ort_notes("1.22.0")) == len(problems.ort_notes("1.31.1")) == 1


@pytest.mark.parametrize(
    ("flags", "x86", "said"),
    [
        (["avx2", "avx512_vnni"], True, ""),
        (["avx2"], True, "no VNNI"),
        ([], True, "no AVX2"),
        (["asimd"], False, "no dot product"),
        (["asimd", "asimddp"], False, ""),
        ([], False, ""),
    ],
)
def test_processors(flags: list[str], x86: bool, said: str) -> None:
    found = problems.cpu_problems(flags, x86=x86)
    assert (said in found[0].what) if said else found == []


def test_gpu_and_room() -> None:
    down = {"found": False, "devices": 0, "driver": "", "error": "no libcuda"}
    up = {"found": True, "devices": 1, "driver": "13.0", "error": ""}
    whole, none = {"library": "tensorrt", "memory": "pycuda"}, {"library": "", "memory": ""}
    assert "no libcuda" in problems.gpu_problems(down, {"tensorrt": "11.0"}, **whole)[0].why
    assert problems.gpu_problems(down, {}, **none) == problems.gpu_problems(up, {"tensorrt": "11.0"}, **whole) == []
    assert "pip install" in problems.gpu_problems(up, {}, **none)[0].fix
    (memory,) = problems.gpu_problems(up, {"tensorrt": "11.0"}, library="tensorrt", memory="")
    assert memory.fix == "pip install 'cuda-python==13.*'"
    assert [problem.what for problem in problems.room_problems(1 << 20, 1 << 20)] == [
        "little memory",
        "little disk space",
    ]
    assert problems.room_problems(0, 1 << 40) == []


@pytest.mark.parametrize(
    ("version", "more", "said"),
    [
        ("", {"driver": "12.4"}, ""),
        ("10.3.0", {"l4t": (36, 4, 3), "compute": ["8.7"], "driver": "12.6", "cuda": "12"}, ""),
        ("8.5.3.1", {}, "too old"),
        ("11.0.0.114", {"l4t": (36, 4, 3)}, "does not support this JetPack"),
        ("11.4.0", {"l4t": (39, 2)}, "does not support this JetPack"),
        ("11.4.1", {"l4t": (39, 2)}, ""),
        ("11.4.1", {"l4t": (38, 2)}, "does not support this JetPack"),
        ("11.0.0.114", {"driver": "13.2", "cuda": "13"}, ""),
        ("10.16.2.10", {"l4t": (39, 2), "compute": ["8.7"]}, "on Orin"),
        ("10.16.2.10", {"l4t": (39, 2), "compute": ["11.0"]}, ""),
        ("10.16.1.11", {"driver": "12.4", "cuda": "13"}, "needs a newer driver"),
        ("10.16.1.11", {"driver": "12.4", "cuda": "12"}, ""),
    ],
)
def test_known_bad_pairs(version: str, more: dict, said: str) -> None:
    found = problems.tensorrt_problems(version, **more)
    assert [said in problem.what and bool(problem.fix) for problem in found] == ([True] if said else [])


def test_power_settings() -> None:
    best = {"name": "MAXN", "id": 0}
    capped = {"name": "MODE_15W", "id": 2, "best": best}
    (found,) = problems.power_problems(capped, {}, jetson=True)
    assert found.fix == "sudo nvpmodel -m 0" and "MODE_15W" in found.why
    assert problems.power_problems({"name": "MAXN", "id": 0, "best": best}, {}, jetson=True) == []
    assert problems.power_problems({"name": "", "id": None, "best": None}, {}, jetson=False) == []
    none = {"name": "", "id": None, "best": None}
    (slow,) = problems.power_problems(none, {"acpi-cpufreq": "powersave"}, jetson=False)
    assert "cpupower" in slow.fix
    assert "jetson_clocks" in problems.power_problems(none, {"tegra194": "conservative"}, jetson=True)[0].fix
    assert problems.power_problems(none, {"intel_pstate": "powersave", "x": "schedutil"}, jetson=False) == []
