"""Power modes and governors, from what Jetsons and PCs print."""

from __future__ import annotations

from pathlib import Path

from runtime.doctor import power

CONFIG = """< PARAM TYPE=FILE NAME=CPU_ONLINE >
CORE_0 /sys/devices/system/cpu/cpu0/online
< POWER_MODEL ID=0 NAME=15W >
CPU_ONLINE CORE_0 1
< POWER_MODEL ID=1 NAME=25W >
< POWER_MODEL ID=2 NAME=MAXN_SUPER >
< POWER_MODEL ID=3 NAME=7W >
< PM_CONFIG DEFAULT=1 >
"""


def test_the_mode_and_its_id() -> None:
    assert power.parse_mode("NV Power Mode: MODE_30W\n2\n") == ("MODE_30W", 2)
    assert power.parse_mode("NV Fan Mode:quiet\nNV Power Mode: MAXN\n0\n") == ("MAXN", 0)
    assert power.parse_mode("") == ("", None)


def test_the_mode_without_caps(tmp_path: Path) -> None:
    config = tmp_path / "nvpmodel.conf"
    config.write_text(CONFIG)
    assert power.parse_modes(CONFIG) == {"15W": 0, "25W": 1, "MAXN_SUPER": 2, "7W": 3}
    found = power.power_mode("NV Power Mode: 25W\n1\n", config)
    assert found == {"name": "25W", "id": 1, "best": {"name": "MAXN_SUPER", "id": 2}}
    assert power.power_mode("", tmp_path / "none") == {"name": "", "id": None, "best": None}


def test_governors(tmp_path: Path) -> None:
    for core, governor in (("cpu0", "schedutil"), ("cpu1", "schedutil")):
        folder = tmp_path / core / "cpufreq"
        folder.mkdir(parents=True)
        (folder / "scaling_driver").write_text("tegra194\n")
        (folder / "scaling_governor").write_text(f"{governor}\n")
    assert power.governors(tmp_path) == {"tegra194": "schedutil"}
    assert power.governors(tmp_path / "none") == {}
