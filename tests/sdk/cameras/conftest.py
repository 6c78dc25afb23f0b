"""Real servers for the cameras, as processes of their own."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

SERVER = Path(__file__).with_name("rtsp_server.py")


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether a condition came true in time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.01)
    return condition()


class RtspServer:
    """An RTSP server of the test pattern that can be stopped, killed and started again on the same port."""

    def __init__(self, port: int, arguments: tuple[str, ...]) -> None:
        self.port = port
        self.arguments = arguments
        self.url = f"rtsp://127.0.0.1:{port}"
        self.process: subprocess.Popen[str] | None = None
        self.start()

    def start(self) -> None:
        """Returns once it listens."""
        command = [sys.executable, str(SERVER), "--port", str(self.port), *self.arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "READY\n"

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(scope="session")
def until() -> Callable[[Callable[[], bool], float], bool]:
    """``until(condition, seconds)``: whether it came true in time."""
    return wait_until


@pytest.fixture(scope="module")
def rtsp(component: Callable[[str], None]) -> Iterator[Callable[..., RtspServer]]:
    """Starts an RTSP server with these arguments; one for each set of them in a module."""
    component("gstreamer")
    component("rtsp-server")
    servers: dict[tuple[str, ...], RtspServer] = {}

    def serve(*arguments: str) -> RtspServer:
        if arguments not in servers:
            servers[arguments] = RtspServer(free_port(), arguments)
        return servers[arguments]

    yield serve
    for server in servers.values():
        server.kill()
