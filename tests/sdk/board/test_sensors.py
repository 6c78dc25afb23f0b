"""The sensors on trees as JetPack 4 to 7 lay them out, whole and in pieces."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from edgesmith.sdk.board.sensors import STREAK, Board, Gpu, Throttling

CONF = """\
< PARAM TYPE=CLOCK NAME=GPU >
MAX_FREQ /sys/devices/gpu.0/devfreq/17000000.gpu/max_freq

< POWER_MODEL ID=0 NAME=15W >
CPU_A78_0 MAX_FREQ 1497600
GPU MAX_FREQ 612000000

< POWER_MODEL ID=1 NAME=25W >
GPU MAX_FREQ 918000000

< POWER_MODEL ID=2 NAME=MAXN_SUPER >
GPU MAX_FREQ -1

< POWER_MODEL ID=3 NAME=7W >
EMC MAX_FREQ 2133000000

< PM_CONFIG DEFAULT=1 >
"""
STEPS = "306000000 408000000 612000000 918000000 1020000000\n"


def write(root: Path, files: dict[str, str]) -> Board:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Board(root)


def orin(root: Path, **changes: str) -> Board:
    """JetPack 5 to 7 on an Orin Nano in mode 1 (25W), busy at the mode's clock."""
    values = {"load": "995", "cur": "918000000", "min": "306000000", "max": "918000000", "mode": "0001"}
    values |= changes
    node, power = "sys/class/devfreq/17000000.gpu", "sys/bus/i2c/devices/1-0040"
    return write(
        root,
        {
            "sys/class/devfreq/15340000.vic/device/of_node/name": "vic\0",
            "sys/class/devfreq/15340000.vic/cur_freq": "1\n",
            f"{node}/device/of_node/name": "ga10b\0",
            f"{node}/device/load": values["load"] + "\n",
            f"{node}/cur_freq": values["cur"] + "\n",
            f"{node}/min_freq": values["min"] + "\n",
            f"{node}/max_freq": values["max"] + "\n",
            f"{node}/available_frequencies": STEPS,
            f"{node}/governor": "nvhost_podgov\n",
            "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
            "sys/class/thermal/thermal_zone0/temp": "47500\n",
            "sys/class/thermal/thermal_zone1/type": "gpu-thermal\n",
            "sys/class/thermal/thermal_zone1/temp": "51250\n",
            "sys/class/thermal/thermal_zone2/type": "PMIC-Die\n",
            "sys/class/thermal/thermal_zone2/temp": "100000\n",
            "sys/class/thermal/cooling_device0/type": "pwm-fan\n",
            "sys/class/thermal/cooling_device0/temp": "60000\n",
            f"{power}/name": "ina3221\n",
            f"{power}/hwmon/hwmon3/in1_label": "VDD_IN\n",
            f"{power}/hwmon/hwmon3/in1_input": "5000\n",
            f"{power}/hwmon/hwmon3/curr1_input": "1400\n",
            f"{power}/hwmon/hwmon3/in2_label": "VDD_CPU_GPU_CV\n",
            f"{power}/hwmon/hwmon3/in2_input": "4980\n",
            f"{power}/hwmon/hwmon3/curr2_input": "500\n",
            f"{power}/hwmon/hwmon3/in3_label": "NC\n",
            f"{power}/hwmon/hwmon3/in3_input": "5000\n",
            f"{power}/hwmon/hwmon3/curr3_input": "9000\n",
            f"{power}/hwmon/hwmon3/in7_label": "sum of shunt voltages\n",
            f"{power}/hwmon/hwmon3/in7_input": "5000\n",
            f"{power}/hwmon/hwmon3/curr7_input": "9000\n",
            "var/lib/nvpmodel/status": f"pmode:{values['mode']} fmode:quiet\n",
            "etc/nvpmodel.conf": CONF,
        },
    )


def test_an_orin(tmp_path: Path) -> None:
    board = orin(tmp_path)
    assert board.gpu() == Gpu(
        load=0.995, mhz=918.0, min_mhz=306.0, max_mhz=918.0, top_mhz=1020.0, governor="nvhost_podgov"
    )
    assert board.gpu().locked is False
    assert list(board.temperatures().items()) == [("gpu-thermal", 51.25), ("cpu-thermal", 47.5)]
    assert board.rails() == pytest.approx({"VDD_IN": 7.0, "VDD_CPU_GPU_CV": 2.49})
    assert board.watts() == pytest.approx(7.0)
    mode, fastest = board.power_mode(), board.fastest_mode()
    assert mode is not None
    assert (mode.number, mode.name, mode.gpu_mhz) == (1, "25W", 918.0)
    assert fastest is not None
    assert (fastest.number, fastest.name) == (2, "MAXN_SUPER")
    assert [m.number for m in board.power_modes()] == [0, 1, 2, 3]


def test_locked_clocks(tmp_path: Path) -> None:
    assert orin(tmp_path, min="918000000").gpu().locked is True


def test_a_thor_tells_its_clock_and_no_load(tmp_path: Path) -> None:
    board = write(
        tmp_path,
        {
            "sys/class/devfreq/gpu-gpc-0/cur_freq": "1575000000\n",
            "sys/class/devfreq/gpu-gpc-0/max_freq": "1575000000\n",
            "sys/class/devfreq/gpu-nvd-0/cur_freq": "900000000\n",
            "sys/class/devfreq/gpu-nvd-0/device/of_node/name": "gpu\0",
        },
    )
    assert board.gpu() == Gpu(mhz=1575.0, max_mhz=1575.0)
    assert board.gpu().locked is None
    assert board.throttled() is None


def test_the_power_monitor_of_jetpack_4(tmp_path: Path) -> None:
    folder = "sys/bus/i2c/devices/6-0040"
    files = {f"{folder}/name": "ina3221x\n", "sys/devices/gpu.0/load": "250\n"}
    for channel, (name, mw) in enumerate([("POM_5V_IN", "3200"), ("POM_5V_GPU", "900"), ("NC", "7")]):
        files[f"{folder}/iio:device0/rail_name_{channel}"] = name + "\n"
        files[f"{folder}/iio:device0/in_power{channel}_input"] = mw + "\n"
    board = write(tmp_path, files)
    assert board.rails() == {"POM_5V_IN": 3.2, "POM_5V_GPU": 0.9}
    assert board.watts() == 3.2
    assert board.gpu() == Gpu(load=0.25)


def test_without_a_rail_of_the_input_the_rails_are_added(tmp_path: Path) -> None:
    board = orin(tmp_path)
    monitor = tmp_path / "sys/bus/i2c/devices/1-0040/hwmon/hwmon3"
    (monitor / "in1_label").write_text("CPU\n")
    assert board.watts() == pytest.approx(9.49)


@pytest.mark.parametrize(
    ("changes", "throttled"),
    [
        ({}, False),
        ({"cur": "612000000"}, True),
        # Heat that lowers max_freq too does not hide behind it.
        ({"cur": "612000000", "max": "612000000"}, True),
        ({"cur": "612000000", "load": "400"}, False),
        ({"cur": "612000000", "mode": "0000", "max": "612000000"}, False),
        ({"cur": "918000000", "mode": "0002", "max": "1020000000"}, False),
        ({"cur": "612000000", "mode": "0002", "max": "1020000000"}, True),
        # The mode does not speak of the GPU: the limit in force counts.
        ({"cur": "612000000", "mode": "0003", "max": "612000000"}, False),
        ({"load": "?"}, None),
        ({"cur": ""}, None),
    ],
)
def test_throttled_is_a_slow_clock_under_load(
    tmp_path: Path, changes: dict[str, str], throttled: bool | None
) -> None:
    assert orin(tmp_path, **changes).throttled() is throttled


def test_one_dip_is_no_throttling(tmp_path: Path) -> None:
    slow = orin(tmp_path, cur="612000000")
    watch = Throttling(slow)
    assert [watch.look() for _ in range(STREAK)] == [False] * (STREAK - 1) + [True]
    orin(tmp_path)
    assert watch.look() is False
    orin(tmp_path, cur="612000000")
    assert watch.look() is False
    orin(tmp_path, load="")
    assert watch.look() is None


def told(board: Board) -> tuple[object, ...]:
    return (
        board.gpu(), board.temperatures(), board.rails(), board.watts(), board.power_mode(),
        board.power_modes(), board.fastest_mode(), board.throttled(),
    )  # fmt: skip


def test_a_machine_that_is_no_board(tmp_path: Path) -> None:
    assert told(Board(tmp_path)) == (Gpu(), {}, {}, None, None, (), None, None)


@pytest.mark.parametrize("damage", ["missing", "unreadable", "garbage"])
def test_any_one_file_may_be_damaged(tmp_path: Path, damage: str) -> None:
    orin(tmp_path / "whole")
    files = sorted(p.relative_to(tmp_path / "whole") for p in (tmp_path / "whole").rglob("*") if p.is_file())
    for number, name in enumerate(files):
        root = tmp_path / str(number)
        shutil.copytree(tmp_path / "whole", root)
        file = root / name
        file.unlink()
        if damage == "unreadable":  # a folder in its place: reading it fails for root too
            file.mkdir()
        elif damage == "garbage":
            file.write_bytes(b"\xff\x00 none\n")
        assert len(told(Board(root))) == 8, name


def test_a_number_without_its_configuration(tmp_path: Path) -> None:
    board = orin(tmp_path)
    (tmp_path / "etc/nvpmodel.conf").unlink()
    mode = board.power_mode()
    assert mode is not None
    assert (mode.number, mode.name, mode.gpu_mhz) == (1, "1", None)
    assert board.fastest_mode() is None
