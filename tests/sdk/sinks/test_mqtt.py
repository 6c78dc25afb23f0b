from __future__ import annotations

import json
import logging
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgesmith.sdk import Detections, Result
from edgesmith.sdk.errors import ConfigError, SinkError
from edgesmith.sdk.sinks.base import BackgroundSink
from edgesmith.sdk.sinks.mqtt import MqttPublisher

paho = pytest.importorskip("paho.mqtt.client", reason="pip install 'edgesmith[mqtt]'")
MakeResult = Callable[..., Result]
SECRET = "orchid-battery-9"
# The client leaves a socket of which the handshake failed to the garbage collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*unclosed <(socket|ssl):ResourceWarning",
    "ignore:.*SSLSocket:pytest.PytestUnraisableExceptionWarning",
)


def write_all(sink: MqttPublisher, results: list[Result]) -> None:
    for result in results:
        sink.write(result)


def until(what: Callable[[], object], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.01)


class Broker:
    """A real mosquitto with a password, and a TLS port with its own authority."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port, self.tls_port = free_ports(2)
        self.process: subprocess.Popen[bytes] | None = None
        tool("mosquitto_passwd", "-c", "-b", folder / "passwords", "robot", SECRET)
        make_certificates(folder)
        (folder / "mosquitto.conf").write_text(
            f"per_listener_settings false\nallow_anonymous false\npassword_file {folder}/passwords\n"
            f"listener {self.port} 127.0.0.1\n"
            f"listener {self.tls_port} 127.0.0.1\ncafile {folder}/ca.crt\ncertfile {folder}/srv.crt\n"
            f"keyfile {folder}/srv.key\npersistence false\nuser root\n"
        )

    def start(self) -> None:
        with (self.folder / "broker.log").open("ab") as log:
            self.process = subprocess.Popen(
                ["/usr/sbin/mosquitto", "-c", str(self.folder / "mosquitto.conf")], stdout=log, stderr=log
            )
        until(lambda: answers(self.port))

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 0.2).close()
    except OSError:
        return False
    return True


def free_ports(count: int) -> list[int]:
    holders = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [holder.getsockname()[1] for holder in holders]
    for holder in holders:
        holder.close()
    return ports


def tool(*command: object) -> None:
    subprocess.run([str(c) for c in command], check=True, capture_output=True)


def make_certificates(folder: Path) -> None:
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256")
    new = ("openssl", "req", "-x509", *curve, "-nodes", "-days", 2)
    tool(*new, "-keyout", folder / "ca.key", "-out", folder / "ca.crt", "-subj", "/CN=test authority")
    names = "subjectAltName=DNS:localhost,IP:127.0.0.1"
    signed = ("-CA", folder / "ca.crt", "-CAkey", folder / "ca.key", "-addext", names)
    tool(*new, *signed, "-keyout", folder / "srv.key", "-out", folder / "srv.crt", "-subj", "/CN=localhost")


@pytest.fixture(scope="module")
def _broker(component: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    component("mosquitto")
    broker = Broker(tmp_path_factory.mktemp("broker"))
    yield broker
    if broker.process is not None:
        broker.kill()


@pytest.fixture
def broker(_broker: Broker) -> Broker:
    """The broker, running."""
    if _broker.process is None or _broker.process.poll() is not None:
        _broker.start()
    return _broker


class Listener:
    """What a subscriber gets."""

    def __init__(self, broker: Broker, topic: str) -> None:
        self.messages: list[tuple[str, Any, bool]] = []
        self.joined = threading.Event()
        self.client = paho.Client(paho.CallbackAPIVersion.VERSION2)
        self.client.username_pw_set("robot", SECRET)
        self.client.reconnect_delay_set(1, 1)
        self.client.on_connect = lambda client, *_: client.subscribe(topic, qos=1)
        self.client.on_subscribe = lambda *_: self.joined.set()
        self.client.on_message = self._take
        self.client.connect("127.0.0.1", broker.port)
        self.client.loop_start()
        assert self.joined.wait(5)

    def _take(self, _client: Any, _data: Any, message: Any) -> None:
        self.messages.append((message.topic, json.loads(message.payload), message.retain))

    def on(self, topic: str) -> list[Any]:
        return [payload for name, payload, _ in self.messages if name == topic]

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


@pytest.fixture
def listen(broker: Broker) -> Iterator[Callable[[str], Listener]]:
    made: list[Listener] = []

    def begin(topic: str) -> Listener:
        made.append(Listener(broker, topic))
        return made[-1]

    yield begin
    for listener in made:
        listener.close()


def published(broker: Broker, **options: Any) -> MqttPublisher:
    sink = MqttPublisher("127.0.0.1", port=broker.port, username="robot", password=SECRET, **options)
    until(sink._connected.is_set)
    return sink


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_a_result_reaches_a_subscriber(
    broker: Broker, listen: Any, make_result: MakeResult, protocol: Any, qos: Any
) -> None:
    topic = f"robots/7/{protocol.replace('.', '')}-{qos}"
    listener = listen(f"{topic}/#")
    sink = published(broker, topic=topic, protocol=protocol, qos=qos)
    for n in range(5):
        sink.write(make_result(n))
    until(lambda: len(listener.on(f"{topic}/front")) == 5)
    sink.close()
    until(lambda: listener.on(f"{topic}/status") == [{"state": "online"}, {"state": "offline"}])
    messages = listener.on(f"{topic}/front")
    assert [m["frame"] for m in messages] == list(range(5))
    assert messages[0]["detections"][0]["name"] == "dog"
    assert messages[0]["detections"][0]["track_id"] == 7
    assert abs(messages[0]["captured_unix_ns"] - time.time_ns()) < 30e9
    assert sink.notes == []


def test_the_latest_result_and_the_state_are_there_for_those_who_come_later(
    broker: Broker, listen: Any, make_result: MakeResult
) -> None:
    sink = published(broker, topic="late", qos=1, retain=True)
    for n in range(3):
        sink.write(make_result(n))
    sink.close()
    listener = listen("late/#")
    until(lambda: len(listener.messages) == 2)
    assert listener.on("late/front")[0]["frame"] == 2
    assert listener.on("late/status") == [{"state": "offline"}]
    assert all(retained for _, _, retained in listener.messages)


def test_a_robot_that_vanishes_is_reported_lost_by_the_broker(broker: Broker, listen: Any) -> None:
    listener = listen("gone/status")
    sink = published(broker, topic="gone")
    sink._client.socket().shutdown(socket.SHUT_RDWR)  # the cable, not a goodbye
    until(lambda: {"state": "lost"} in listener.on("gone/status"))
    until(lambda: listener.on("gone/status")[-1] == {"state": "online"})  # and comes back by itself
    sink.close()


def test_a_killed_broker_costs_what_came_meanwhile_and_no_more(
    broker: Broker, listen: Any, make_result: MakeResult, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="edgesmith")
    listener = listen("kill/front")
    inner = published(broker, topic="kill", reconnect_s=1)
    sink = BackgroundSink(inner, name="mqtt", capacity=4, backoff_s=(0.02, 0.1))
    sink.write(make_result(0))
    until(lambda: len(listener.messages) == 1)
    broker.kill()
    until(lambda: not inner._connected.is_set())
    slowest = 0.0
    for n in range(1, 200):
        began = time.monotonic()
        sink.write(make_result(n))
        slowest = max(slowest, time.monotonic() - began)
        time.sleep(0.002)
    assert slowest < 0.5  # the loop never waited for the broker
    listener.joined.clear()
    broker.start()
    until(inner._connected.is_set)
    assert listener.joined.wait(10)
    for n in range(200, 260):
        sink.write(make_result(n))
        time.sleep(0.005)
    until(lambda: sink.stats().queued == 0)
    until(lambda: listener.on("kill/front")[-1]["frame"] == 259)
    sink.close()
    stats = sink.stats()
    assert stats.written + stats.dropped + stats.errors == 260
    assert stats.errors > 0
    frames = [m["frame"] for m in listener.on("kill/front")]
    assert frames == sorted(set(frames))
    told = [r.getMessage() for r in caplog.records]
    assert sum("connection lost" in t for t in told) == 2  # by the client, and by the queue: once each
    assert len(told) < 8
    assert SECRET not in caplog.text


def test_with_qos_1_messages_wait_for_the_broker_up_to_the_bound(
    broker: Broker, listen: Any, make_result: MakeResult
) -> None:
    sink = published(broker, topic="wait", qos=1, queue=10, reconnect_s=1)
    broker.kill()
    until(lambda: not sink._connected.is_set())
    for n in range(10):
        sink.write(make_result(n))
    with pytest.raises(SinkError, match=r"127\.0\.0\.1:\d+: .*queue.*"):
        write_all(sink, [make_result(n) for n in range(10, 13)])
    broker.start()
    listener = listen("wait/front")
    until(lambda: len(listener.messages) >= 9)
    until(lambda: not sink._client._out_messages)
    sink.close()
    # A subscriber that joins after us may miss the first; what comes is in order and none twice.
    frames = [m["frame"] for m in listener.on("wait/front")]
    assert frames == sorted(set(frames))
    assert frames[-1] == 9


def test_a_broker_that_takes_nothing_does_not_fill_the_memory(
    broker: Broker, make_result: MakeResult
) -> None:
    sink = published(broker, topic="full", queue=20)
    many = Detections(
        np.zeros((500, 4), np.float32), np.ones(500, np.float32), np.zeros(500, np.int32), ("x" * 200,)
    )
    assert broker.process is not None
    broker.process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(SinkError, match="takes nothing: 20 messages are under way"):
            write_all(sink, [make_result(n, answer=many) for n in range(500)])
    finally:
        broker.process.send_signal(signal.SIGCONT)
    until(lambda: all(sent.is_published() for sent in sink._under_way))
    sink.write(make_result())  # it goes on
    sink.close()


def test_tls_with_an_authority_of_ones_own(broker: Broker, listen: Any, make_result: MakeResult) -> None:
    listener = listen("tls/front")
    sink = MqttPublisher(
        "localhost",
        port=broker.tls_port,
        topic="tls",
        qos=1,
        username="robot",
        password=SECRET,
        ca=broker.folder / "ca.crt",
    )
    sink.write(make_result(1))
    until(lambda: listener.on("tls/front"))
    sink.close()


def test_a_certificate_of_nobody_known_is_refused_and_told(
    broker: Broker, make_result: MakeResult, caplog: pytest.LogCaptureFixture
) -> None:
    sink = MqttPublisher("localhost", port=broker.tls_port, tls=True, username="robot", password=SECRET)
    until(lambda: "certificate" in sink._trouble)
    with pytest.raises(SinkError, match="certificate verify failed"):
        sink.write(make_result())
    sink.close()
    assert "certificate verify failed" in sink.notes[-1]


def test_a_wrong_password_is_told_without_the_password(
    broker: Broker, make_result: MakeResult, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    sink = MqttPublisher("127.0.0.1", port=broker.port, username="robot", password="wrong-" + SECRET)
    until(lambda: sink._trouble == "Not authorized")
    with pytest.raises(SinkError, match="Not authorized"):
        sink.write(make_result())
    sink.close()
    assert SECRET not in caplog.text + str(sink.notes) + repr(vars(sink))


def test_a_broker_that_is_not_there_yet_holds_nobody_up(make_result: MakeResult) -> None:
    (port,) = free_ports(1)
    began = time.monotonic()
    sink = MqttPublisher("127.0.0.1", port=port)
    with pytest.raises(SinkError, match=str(port)):
        sink.write(make_result())
    until(lambda: "refused" in sink._trouble)
    sink.close()
    assert time.monotonic() - began < 5
    assert "was away at the end" in sink.notes[-1]


def test_the_password_comes_from_where_it_is_kept(
    broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret").write_text(SECRET + "\n")
    monkeypatch.setenv("BROKER_PASSWORD", SECRET)
    sources: list[dict[str, Any]] = [
        {"password_file": tmp_path / "secret"},
        {"password_env": "BROKER_PASSWORD"},
    ]
    for source in sources:
        sink = MqttPublisher("127.0.0.1", port=broker.port, username="robot", **source)
        until(sink._connected.is_set)
        sink.close()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"topic": "a/#"}, "cannot be published to"),
        ({"topic": ""}, "cannot be published to"),
        ({"queue": 0}, "queue 0"),
        ({"password": "x"}, "password without username"),
        ({"username": "a", "password": "x", "password_env": "Y"}, "password and password_env: one is enough"),
        ({"username": "a", "password_env": "NOT_SET_ANYWHERE"}, "NOT_SET_ANYWHERE .* is not set"),
        ({"username": "a", "password_file": "no/such"}, "no/such .*No such file"),
        ({"ca": "no/such.crt"}, "no/such.crt: .*No such file"),
        ({"key": "k.pem"}, "key without certificate"),
        ({"host": "a" * 70 + ".example"}, "is no host name"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(options: dict[str, Any], says: str) -> None:
    threads = threading.active_count()
    with pytest.raises(ConfigError, match=says):
        MqttPublisher(**{"host": "127.0.0.1", **options})
    assert threading.active_count() == threads


def test_a_password_in_the_clear_is_noted() -> None:
    sink = MqttPublisher("192.0.2.1", username="robot", password=SECRET)
    assert sink.notes == ["mqtt: the password goes to 192.0.2.1 in the clear: set tls = true"]
    began = time.monotonic()
    sink.close()  # while it tries to connect to where nobody answers
    assert time.monotonic() - began < 3
