from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgesmith.sdk import Result
from edgesmith.sdk.errors import SinkError
from edgesmith.sdk.sinks.watchdog import SystemdWatchdog, notify, watchdog_s

MakeResult = Callable[..., Result]


@pytest.fixture(params=["path", "abstract"])
def manager(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[socket.socket]:
    """The service manager's end of the socket."""
    address = str(tmp_path / "notify") if request.param == "path" else f"@edgesmith-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(address.replace("@", "\0", 1))
        end.settimeout(0.2)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        monkeypatch.setenv("WATCHDOG_USEC", "300000")
        monkeypatch.delenv("WATCHDOG_PID", raising=False)
        yield end


def heard(manager: socket.socket) -> list[str]:
    lines: list[str] = []
    while True:
        try:
            lines += manager.recv(4096).decode().splitlines()
        except TimeoutError:
            return lines


def test_readiness_comes_with_the_first_result_and_life_with_the_rest(
    manager: socket.socket, make_result: MakeResult
) -> None:
    sink = SystemdWatchdog()
    assert heard(manager) == []  # loaded is not ready
    sink.write(make_result(0))
    first = heard(manager)
    assert first[:2] == ["READY=1", "WATCHDOG=1"]
    assert first[2].startswith("STATUS=1 results from 1 cameras, ")
    began = time.monotonic()
    for n in range(1, 101):
        sink.write(make_result(n))
        time.sleep(0.005)
    seconds = time.monotonic() - began
    lines = heard(manager)
    assert "READY=1" not in lines
    # Every 0.1 s, a third of the 0.3 s that systemd allows, and no oftener.
    assert 3 <= lines.count("WATCHDOG=1") <= seconds / 0.1 + 2
    sink.close()
    assert heard(manager) == ["STOPPING=1"]


def test_without_results_there_is_no_sign_of_life(manager: socket.socket, make_result: MakeResult) -> None:
    sink = SystemdWatchdog()
    sink.write(make_result())
    heard(manager)
    time.sleep(0.5)
    assert heard(manager) == []
    sink.close()


def test_without_a_service_manager_it_does_nothing_and_says_so(
    monkeypatch: pytest.MonkeyPatch, make_result: MakeResult
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    sink = SystemdWatchdog()
    sink.write(make_result())
    sink.close()
    assert not notify("READY=1")
    assert "NOTIFY_SOCKET" in sink.notes[0]


def test_a_manager_that_went_away_is_a_sinks_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_result: MakeResult
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    with pytest.raises(SinkError, match="NOTIFY_SOCKET: No such file"):
        SystemdWatchdog().write(make_result())


@pytest.mark.parametrize(
    ("usec", "pid", "wanted"),
    [
        ("2000000", None, 2.0),
        ("2000000", "us", 2.0),
        ("2000000", "1", None),
        ("", None, None),
        ("0", None, None),
    ],
)
def test_the_time_is_what_the_manager_said_to_us(
    monkeypatch: pytest.MonkeyPatch, usec: str, pid: str | None, wanted: float | None
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", usec)
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    if pid is not None:
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()) if pid == "us" else pid)
    assert watchdog_s() == wanted
