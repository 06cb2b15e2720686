"""tegrastats lines of several boards, as the tool printed them (public logs of their owners; some with fewer cores)."""

from __future__ import annotations

import stat
import time
from pathlib import Path

import pytest

from runtime.telemetry import tegrastats
from runtime.telemetry.reading import Reading

# AGX Orin, JetPack 5: two powers, sensors of idle parts at -256C.
AGX_ORIN_JP5 = (
    "04-11-2025 10:36:27 RAM 4321/62801MB (lfb 1759x4MB) SWAP 19/31400MB (cached 0MB) CPU [0%@729,3%@1190,off,0%@729] "
    "EMC_FREQ 0%@2133 GR3D_FREQ 0%@[0,0] VIC_FREQ 729 APE 174 CV0@-256C CPU@44.562C Tboard@32C SOC2@40.093C "
    "Tdiode@33C SOC0@41.093C CV1@-256C GPU@-256C tj@44.343C SOC1@41.25C CV2@-256C VDD_GPU_SOC 2340mW/2340mW "
    "VDD_CPU_CV 390mW/390mW VIN_SYS_5V0 4025mW/4025mW NC 0mW/0mW VDDQ_VDD2_1V8AO 301mW/301mW NC 0mW/0mW"
)
# AGX Orin, JetPack 7.2: a third power, two temperatures, a list of clocks beside the load.
AGX_ORIN_JP7 = (
    "07-25-2026 09:08:28 RAM 20642/62817MB (lfb 1x2MB) CPU [23%@2201,10%@2201,4%@1800] EMC_FREQ 3%@3199 "
    "GR3D_FREQ 12%@[1300,1300] NVENC0 off NVDEC0 off VIC off OFA off PVA0_FREQ off APE 174 cpu@52.968C/52.968C "
    "soc2@48.406C/48.406C soc0@49.531C/49.531C gpu@47.625C/47.625C VDD_GPU_SOC 5139mW/5001mW/6139mW "
    "VDD_CPU_CV 3268mW/3268mW/3268mW VIN_SYS_5V0 5500mW/5500mW/5500mW"
)
# Orin Nano, JetPack 6: no clock for the GPU; VDD_IN is the whole module.
ORIN_NANO = (
    "08-23-2026 13:57:46 RAM 3595/7607MB (lfb 1x1MB) SWAP 11/3804MB (cached 0MB) "
    "CPU [100%@1728,1%@1728,3%@1728,0%@1728,1%@729,1%@729] GR3D_FREQ 0% cpu@51C soc2@50.562C soc0@51.031C "
    "gpu@50.625C tj@51.781C soc1@51.781C VDD_IN 5832mW/5852mW VDD_CPU_GPU_CV 1307mW/1327mW VDD_SOC 1468mW/1468mW"
)
# AGX Thor, Jetson Linux 39 under load and idle (a clock without a load), and JetPack 7.0 (a negative power).
THOR = (
    "08-08-2026 21:00:39 RAM 8353/125749MB (lfb 31x4MB) CPU [90%@2601,75%@2601,off,7%@2601] EMC_FREQ 34%@4266 "
    "GR3D_FREQ 87%@[1574,1574,1574] NVENC0_FREQ @1691 VIC off cpu@58.25C/61.75C tj@66.625C/66.625C gpu@56.937C/66.625C "
    "soc012@55.375C/58.781C soc345@55.812C/60.031C VDD_GPU 37939mW/8660mW/37939mW "
    "VDD_CPU_SOC_MSS 30059mW/12281mW/30059mW VIN_SYS_5V0 15486mW/7424mW/15486mW VIN 124486mW/36487mW/124486mW"
)
THOR_IDLE = (
    "08-08-2026 20:58:23 RAM 3429/125749MB (lfb 120x4MB) CPU [0%,5%,off]@2601 EMC_FREQ @4266 "
    "GR3D_FREQ @[1574,1574,1574] cpu@49.75C/49.75C tj@51.218C/51.218C gpu@51.218C/51.218C "
    "VDD_GPU 6330mW/6330mW/6330mW VIN 28906mW/14453mW/28906mW"
)
THOR_38 = (
    "05-14-2026 21:36:35 RAM 26063/125772MB (lfb 35x4MB) CPU [2%@972,0%@972] VDD_GPU -392mW/-392mW "
    "VDD_CPU_SOC_MSS 3924mW/3835mW VIN_SYS_5V0 5064mW/5055mW VIN 15004mW/15096mW"
)
# Jetson Nano, JetPack 4: powers without a unit, no clock at all but the cores'.
NANO = (
    "RAM 1590/3956MB (lfb 224x4MB) SWAP 12/1978MB (cached 0MB) CPU [10%@1479,off,5%@1479,7%@1479] EMC_FREQ 0% "
    "GR3D_FREQ 37% PLL@34C CPU@37C PMIC@100C GPU@35.5C AO@43.5C thermal@36.5C "
    "POM_5V_IN 1897/1850 POM_5V_GPU 41/41 POM_5V_CPU 331/331"
)


@pytest.mark.parametrize(
    ("line", "power", "clocks", "heat"),
    [
        (
            AGX_ORIN_JP5,
            {"VDD_GPU_SOC": 2.34, "VDD_CPU_CV": 0.39, "VIN_SYS_5V0": 4.025, "VDDQ_VDD2_1V8AO": 0.301},
            {"EMC": 2133.0, "GR3D": 0.0, "CPU": 1190.0},
            {
                "CPU": 44.562,
                "Tboard": 32.0,
                "SOC2": 40.093,
                "Tdiode": 33.0,
                "SOC0": 41.093,
                "tj": 44.343,
                "SOC1": 41.25,
            },
        ),
        (
            AGX_ORIN_JP7,
            {"VDD_GPU_SOC": 5.139, "VDD_CPU_CV": 3.268, "VIN_SYS_5V0": 5.5},
            {"EMC": 3199.0, "GR3D": 1300.0, "CPU": 2201.0},
            {"cpu": 52.968, "soc2": 48.406, "soc0": 49.531, "gpu": 47.625},
        ),
        (
            ORIN_NANO,
            {"VDD_IN": 5.832, "VDD_CPU_GPU_CV": 1.307, "VDD_SOC": 1.468},
            {"CPU": 1728.0},
            {"cpu": 51.0, "soc2": 50.562, "soc0": 51.031, "gpu": 50.625, "tj": 51.781, "soc1": 51.781},
        ),
        (
            THOR,
            {"VDD_GPU": 37.939, "VDD_CPU_SOC_MSS": 30.059, "VIN_SYS_5V0": 15.486, "VIN": 124.486},
            {"EMC": 4266.0, "GR3D": 1574.0, "NVENC0": 1691.0, "CPU": 2601.0},
            {"cpu": 58.25, "tj": 66.625, "gpu": 56.937, "soc012": 55.375, "soc345": 55.812},
        ),
        (
            THOR_IDLE,
            {"VDD_GPU": 6.33, "VIN": 28.906},
            {"EMC": 4266.0, "GR3D": 1574.0, "CPU": 2601.0},
            {"cpu": 49.75, "tj": 51.218, "gpu": 51.218},
        ),
        (
            THOR_38,
            {"VDD_GPU": -0.392, "VDD_CPU_SOC_MSS": 3.924, "VIN_SYS_5V0": 5.064, "VIN": 15.004},
            {"CPU": 972.0},
            {},
        ),
        (
            NANO,
            {"POM_5V_IN": 1.897, "POM_5V_GPU": 0.041, "POM_5V_CPU": 0.331},
            {"CPU": 1479.0},
            {"PLL": 34.0, "CPU": 37.0, "PMIC": 100.0, "GPU": 35.5, "AO": 43.5, "thermal": 36.5},
        ),
    ],
    ids=["agx-orin-jp5", "agx-orin-jp7", "orin-nano", "thor", "thor-idle", "thor-38", "nano"],
)
def test_lines(line: str, power: dict[str, float], clocks: dict[str, float], heat: dict[str, float]) -> None:
    assert tegrastats.parse(line) == Reading(power_w=power, clocks_mhz=clocks, temperature_c=heat)


def test_cores_with_one_clock_and_noise() -> None:
    found = tegrastats.parse("CPU [0%,5%,off]@2601 EMC_FREQ @4266 FUTURE_TOKEN value @ / 3/4 x@y")
    assert found == Reading(clocks_mhz={"EMC": 4266.0, "CPU": 2601.0})
    assert tegrastats.parse("") == Reading()


def test_the_tool_is_followed_and_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "tegrastats"
    tool.write_text(f"#!/bin/sh\nwhile true; do echo '{ORIN_NANO}'; sleep 0.05; done\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    source = tegrastats.find(50)
    assert not isinstance(source, str)
    deadline = time.monotonic() + 10
    while not source.read().power_w and time.monotonic() < deadline:
        time.sleep(0.02)
    assert source.read().power_w["VDD_IN"] == 5.832
    source.close()
    assert source._process.poll() is not None and not source._thread.is_alive()


def test_without_the_tool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert tegrastats.find() == "no tegrastats: this is no Jetson"
