"""The hour of ``benchmarks/soak.py``, in two minutes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("paho.mqtt.client", reason="pip install 'edgesmith[mqtt]'")
pytest.importorskip("foxglove", reason="pip install 'edgesmith[mcap]'")
pytest.importorskip("av", reason="pip install 'edgesmith[video]'")


@pytest.mark.slow
@pytest.mark.assets
@pytest.mark.timeout(600)
def test_a_robot_outlives_its_camera_its_broker_and_its_disk(
    component: Callable[[str], None], root: Path, assets: Path
) -> None:
    for name in ("gstreamer", "rtsp-server", "mosquitto"):
        component(name)
    environment = {**os.environ, "EDGESMITH_ASSETS": str(assets), "OMP_NUM_THREADS": "1"}
    environment.pop("EDGESMITH_ROS_PYTHON", None)
    script = root / "benchmarks" / "soak.py"
    done = subprocess.run(
        [sys.executable, str(script), "--minutes", "2", "--json"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=580,
    )
    assert done.stdout, done.stderr
    figures = json.loads(done.stdout)
    # Memory and latency of two minutes say nothing, threads and files may still be those of a browser.
    held = {name: held for name, held in figures["held"].items() if name not in ("memory", "latency")}
    assert all(held.values()), (held, figures["faults"], figures["notes"])
    assert figures["heard"]["watchdog"]["WATCHDOG"] > 5
    assert figures["heard"]["mqtt"]["soak/door"] > 100
    assert figures["heard"]["browsers"]["pictures"] > 0
    assert figures["written"]["events_kept"] > 0
    assert figures["written"]["videos"]["yard"]["read"] > 100
