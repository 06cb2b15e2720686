"""The machine's description, from texts of other machines."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from runtime import machine

X86 = "processor\t: 0\nmodel\t\t: 85\nmodel name\t: Some Xeon\nflags\t\t: fpu avx2 avx512_vnni\n\nflags : x\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd asimddp\nCPU part\t: 0xd42\n\nModel\t\t: A Board\n"


def test_cpuinfo_of_both_kinds() -> None:
    assert machine.parse_cpuinfo(X86) == ("Some Xeon", frozenset({"fpu", "avx2", "avx512_vnni"}))
    assert machine.parse_cpuinfo(ARM) == ("A Board", frozenset({"fp", "asimd", "asimddp"}))
    assert machine.parse_cpuinfo("") == ("", frozenset())


@pytest.mark.parametrize(
    ("x86", "flags", "saturates"),
    [
        (True, {"avx2"}, True),
        (True, {"avx2", "avx_vnni"}, False),
        (True, {"amx_int8"}, False),
        (False, {"asimd"}, False),
    ],
)
def test_saturation(monkeypatch: pytest.MonkeyPatch, x86: bool, flags: set[str], saturates: bool) -> None:
    monkeypatch.setattr(machine, "is_x86", lambda: x86)
    monkeypatch.setattr(machine, "cpu_flags", lambda: frozenset(flags))
    assert machine.saturating_u8s8() is saturates


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"/sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
        ({"/sys/fs/cgroup/cpu.max": "max 100000\n"}, math.inf),
        ({}, math.inf),
        (
            {"/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "200000", "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"},
            2.0,
        ),
        ({"/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1", "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, math.inf),
    ],
)
def test_container_quota(monkeypatch: pytest.MonkeyPatch, files: dict[str, str], cores: float) -> None:
    monkeypatch.setattr(machine, "_read", lambda path: files.get(path, ""))
    assert machine._quota_cores() == cores


def test_hyper_threads_are_one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(path: str) -> str:
        if path.endswith("core_id"):
            return str(int(path.split("/cpu")[-1].split("/")[0]) // 2)
        return "0" if path.endswith("package_id") else ""

    monkeypatch.setattr(machine, "_read", read)
    monkeypatch.setattr(machine, "available_cpus", lambda: [0, 1, 2, 3, 6])
    assert machine.available_cores() == 3
    monkeypatch.setattr(machine, "_quota_cores", lambda: 1.2)
    assert machine.available_cores() == 2
    monkeypatch.setattr(machine, "_quota_cores", lambda: 0.1)
    assert machine.available_cores() == 1


def test_cores_of_another_cluster_are_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """ARM under Linux 6: one package, core_id from 0 on in each of three clusters of four (AGX Orin)."""

    def read(path: str) -> str:
        if "topology" not in path:
            return ""
        cpu = int(path.split("/cpu")[-1].split("/")[0])
        named = {"core_id": cpu % 4, "physical_package_id": 0, "thread_siblings_list": cpu}
        return f"{named[path.rpartition('/')[2]]}\n"

    monkeypatch.setattr(machine, "_read", read)
    monkeypatch.setattr(machine, "available_cpus", lambda: list(range(12)))
    assert machine.available_cores() == 12


MEMINFO = {"/proc/meminfo": "MemTotal: 8192 kB\nMemAvailable: 4096 kB\n"}
V2, V1 = "/sys/fs/cgroup", "/sys/fs/cgroup/memory"


@pytest.mark.parametrize(
    ("files", "kib"),
    [
        ({}, (8192, 4096)),
        ({f"{V2}/memory.max": "max\n", f"{V2}/memory.current": "1024\n"}, (8192, 4096)),
        ({f"{V2}/memory.max": str(2 << 20), f"{V2}/memory.current": str(1 << 20)}, (2048, 1024)),
        (
            {
                f"{V2}/memory.max": str(2 << 20),
                f"{V2}/memory.current": str(2 << 20),
                f"{V2}/memory.stat": f"anon 5\ninactive_file {1 << 19}\n",
            },
            (2048, 512),
        ),
        ({f"{V1}/memory.limit_in_bytes": str(2 << 20), f"{V1}/memory.usage_in_bytes": "0"}, (2048, 2048)),
        ({f"{V1}/memory.limit_in_bytes": "9223372036854771712", f"{V1}/memory.usage_in_bytes": "0"}, (8192, 4096)),
    ],
)
def test_a_containers_memory(monkeypatch: pytest.MonkeyPatch, files: dict[str, str], kib: tuple[int, int]) -> None:
    monkeypatch.setattr(machine, "_read", lambda path: (MEMINFO | files).get(path, ""))
    assert machine.memory_bytes() == (kib[0] << 10, kib[1] << 10)


def test_a_folder_is_no_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bundle has folders called openvino and tensorrt, and ``python -m`` looks in the one it stands in."""
    (tmp_path / "only_a_folder").mkdir()
    (tmp_path / "a_package").mkdir()
    (tmp_path / "a_package" / "__init__.py").write_text("raise ImportError")
    monkeypatch.syspath_prepend(tmp_path)
    names = ("only_a_folder", "a_package", "numpy", "no_such_module", "no_such_module.inside")
    assert [machine.has_module(name) for name in names] == [False, True, True, False, False]


def test_description() -> None:
    about = machine.describe()
    assert about["cpu"] and about["cores"] >= 1 and about["versions"]["onnxruntime"]
    assert machine.version_of("no-such-distribution") == ""
