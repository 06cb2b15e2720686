"""INA3221, RAPL and the processor's own sensors, from trees of files as the kernel lays them out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.telemetry import cpu, ina3221, rapl


def write(root: Path, texts: dict[str, str]) -> None:
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{text}\n")


def channel(device: str, number: int, label: str, millivolts: int, milliamperes: int) -> dict[str, str]:
    return {
        f"{device}/in{number}_label": label,
        f"{device}/in{number}_input": str(millivolts),
        f"{device}/curr{number}_input": str(milliamperes),
        f"{device}/in{number}_enable": "1",
    }


def test_rails_of_an_orin_nano(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "hwmon0/name": "soc_thermal",
            "hwmon1/name": "ina3221",
            **channel("hwmon1", 1, "VDD_IN", 5016, 1163),
            **channel("hwmon1", 2, "VDD_CPU_GPU_CV", 5008, 261),
            **channel("hwmon1", 3, "VDD_SOC", 5008, 293),
            "hwmon1/in7_label": "sum of shunt voltages",
            "hwmon1/in7_input": "8600",
            "hwmon1/curr4_input": "1717",
        },
    )
    source = ina3221.find(tmp_path)
    assert not isinstance(source, str)
    found = source.read().power_w
    assert found == pytest.approx({"VDD_IN": 5.833608, "VDD_CPU_GPU_CV": 1.307088, "VDD_SOC": 1.467344})
    (tmp_path / "hwmon1/curr2_input").unlink()
    assert set(source.read().power_w) == {"VDD_IN", "VDD_SOC"}
    source.close()


def test_rails_of_an_agx_orin_and_a_thor(tmp_path: Path) -> None:
    orin = {
        "hwmon3/name": "ina3221",
        **channel("hwmon3", 1, "VDD_GPU_SOC", 19000, 126),
        **channel("hwmon3", 2, "VDD_CPU_CV", 19000, 21),
        **channel("hwmon3", 3, "VIN_SYS_5V0", 4944, 816),
        "hwmon4/name": "ina3221",
        **channel("hwmon4", 1, "NC", 0, 0),
        **channel("hwmon4", 2, "VDDQ_VDD2_1V8AO", 19000, 16),
        **channel("hwmon4", 3, "OFF", 19000, 16),
        "hwmon4/in3_enable": "0",
    }
    write(tmp_path / "orin", orin)
    assert [rail.label for rail in ina3221.rails(tmp_path / "orin")] == [
        "VDD_GPU_SOC",
        "VDD_CPU_CV",
        "VIN_SYS_5V0",
        "VDDQ_VDD2_1V8AO",
    ]
    thor = {
        "hwmon0/name": "ina3221",
        **channel("hwmon0", 1, "VDD_GPU", 19000, 333),
        "hwmon5/name": "ina238",
        "hwmon5/label": "VIN",
        "hwmon5/power1_input": "28906000",
    }
    write(tmp_path / "thor", thor)
    source = ina3221.find(tmp_path / "thor")
    assert not isinstance(source, str)
    assert source.read().power_w == pytest.approx({"VDD_GPU": 6.327, "VIN": 28.906})


def test_no_rails(tmp_path: Path) -> None:
    assert ina3221.find(tmp_path) == f"no power rails: no INA3221 or INA238 under {tmp_path}"


def powercap(root: Path, energies: dict[str, int], limit: int = 262143328850) -> None:
    names = {"intel-rapl:0": "package-0", "intel-rapl:0:0": "core", "intel-rapl:0:1": "dram"}
    for zone, energy in energies.items():
        texts = {"name": names[zone], "energy_uj": str(energy), "max_energy_range_uj": str(limit)}
        write(root, {f"{zone}/{name}": text for name, text in texts.items()})


def test_rapl_counts_powers_and_turns_over(tmp_path: Path) -> None:
    limit, moments = 1000_000_000, iter([10.0, 12.0, 13.0])
    powercap(tmp_path, {"intel-rapl:0": 990_000_000, "intel-rapl:0:0": 5, "intel-rapl:0:1": 7}, limit)
    (tmp_path / "intel-rapl").mkdir()
    source = rapl.Rapl(rapl.zones(tmp_path), clock=lambda: next(moments))
    first = source.read()
    assert first.power_w == {} and first.energy_j["package-0"] == 0.0
    assert set(first.energy_j) == {"package-0", "package-0 core", "package-0 dram"}
    powercap(tmp_path, {"intel-rapl:0": 20_000_000, "intel-rapl:0:0": 4_000_005, "intel-rapl:0:1": 7}, limit)
    second = source.read()
    assert second.energy_j == {"package-0": 30.0, "package-0 core": 4.0, "package-0 dram": 0.0}
    assert second.power_w == {"package-0": 15.0, "package-0 core": 2.0, "package-0 dram": 0.0}
    (tmp_path / "intel-rapl:0/energy_uj").unlink()
    assert set(source.read().energy_j) == {"package-0 core", "package-0 dram"}


@given(st.integers(1, 1 << 40), st.data())
def test_rapl_steps_are_what_was_used(limit: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, limit - 1))
    used = data.draw(st.integers(0, limit - 1))
    assert rapl.advance(start, (start + used) % limit, limit) == used


def test_no_rapl(tmp_path: Path) -> None:
    assert "no intel-rapl zone" in str(rapl.find(tmp_path))
    powercap(tmp_path, {"intel-rapl:0": 5})
    assert isinstance(rapl.find(tmp_path), rapl.Rapl)
    (tmp_path / "intel-rapl:0/energy_uj").write_text("")  # what a reader without the right sees: nothing
    assert "sudo chmod a+r" in str(rapl.find(tmp_path))


def test_the_processor(tmp_path: Path) -> None:
    core, zone = "devices/system/cpu/cpu{}/", "class/thermal/thermal_zone{}/"
    write(
        tmp_path,
        {
            core.format(0) + "cpufreq/scaling_cur_freq": "2400000",
            core.format(1) + "cpufreq/scaling_cur_freq": "3100000",
            core.format(0) + "thermal_throttle/core_throttle_count": "4",
            core.format(1) + "thermal_throttle/core_throttle_count": "0",
            zone.format(0) + "type": "x86_pkg_temp",
            zone.format(0) + "temp": "61500",
        },
    )
    source = cpu.find(tmp_path)
    assert not isinstance(source, str)
    found = source.read()
    assert found.clocks_mhz == {"CPU": 3100.0} and found.temperature_c == {"x86_pkg_temp": 61.5}
    assert found.throttle == ()
    write(tmp_path, {core.format(1) + "thermal_throttle/core_throttle_count": "1"})
    assert source.read().throttle == ("core thermal throttling",)
    assert source.read().throttle == ()
    assert "no cpufreq and no thermal zone" in str(cpu.find(tmp_path / "none"))


@pytest.mark.skipif(os.name != "posix", reason="sysfs is Linux's")
def test_every_source_answers_on_this_machine() -> None:
    for find in (ina3221.find, rapl.find, cpu.find):
        found = find()
        assert isinstance(found, str) or found.read() is not None
