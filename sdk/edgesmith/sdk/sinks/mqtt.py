"""Results to an MQTT broker."""

from __future__ import annotations

import logging
import os
import ssl
import sys
import threading
from collections import deque
from pathlib import Path
from typing import Any, Literal

import msgspec

from edgesmith.sdk.errors import ConfigError, SinkError
from edgesmith.sdk.loop.result import Result
from edgesmith.sdk.sinks.base import wall_ns
from edgesmith.sdk.sinks.jsonl import line_of
from edgesmith.sdk.sinks.naming import SourceNames, camera_of, need

log = logging.getLogger(__name__)

_LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})


class MqttPublisher:
    """A JSON message a result on ``TOPIC/CAMERA``, and a retained ``TOPIC/status`` with a last will.

    The message has the keys of the JSON lines sink and ``captured_unix_ns``, the time of day of the grab.
    The status is ``{"state": "online"}``, ``"offline"`` after :meth:`close`, and ``"lost"`` when the broker
    misses us. The connection is made, and made again, in the background with pauses of 1 to
    ``reconnect_s`` seconds; a broker that is away at the start is no error. While it is away, messages of
    ``qos`` 0 are refused, those of 1 and 2 wait in memory, at most ``queue`` of them; the same bound
    holds for a broker that is there and takes nothing.

    Args:
        host: the broker's name or address.
        port: 1883, or 8883 with TLS, where it is None.
        topic: first part of all topics.
        qos: 0, 1 or 2.
        retain: whether the broker keeps the latest result for those who come later.
        protocol: ``5`` or ``3.1.1``.
        client_id: who we are to the broker, which lets only one of a name in; made up where it is None.
        username: None for an anonymous connection.
        password: the secret itself; in files rather ``password_env`` (name of an environment variable) or
            ``password_file``. It is never logged or shown.
        tls: whether the connection is encrypted; so it is where ``ca``, ``certificate`` or ``key`` is given.
        ca: file with the authority that signed the broker's certificate; the system's where it is None.
        certificate, key: files with our own certificate and key, where the broker asks for them.
        keepalive_s: seconds without traffic after which either side asks whether the other is there.
        reconnect_s: longest pause between two attempts to connect.
        queue: messages that may wait for the broker.

    Raises:
        ConfigError: settings that do not go together.
        MissingExtraError: ``paho-mqtt`` is not installed.
    """

    reads_image = False

    def __init__(
        self,
        host: str,
        *,
        port: int | None = None,
        topic: str = "edgesmith",
        qos: Literal[0, 1, 2] = 0,
        retain: bool = False,
        protocol: Literal["5", "3.1.1"] = "5",
        client_id: str | None = None,
        username: str | None = None,
        password: str | None = None,
        password_env: str | None = None,
        password_file: str | os.PathLike[str] | None = None,
        tls: bool = False,
        ca: str | os.PathLike[str] | None = None,
        certificate: str | os.PathLike[str] | None = None,
        key: str | os.PathLike[str] | None = None,
        keepalive_s: int = 20,
        reconnect_s: int = 30,
        queue: int = 200,
    ) -> None:
        if not topic or any(c in topic for c in "+#\0") or topic.startswith("$") or topic.endswith("/"):
            raise ConfigError(f"mqtt: topic {topic!r} cannot be published to: no +, # or $, no / at the end")
        if queue < 1 or keepalive_s < 1 or reconnect_s < 1:
            raise ConfigError(
                f"mqtt: queue {queue}, keepalive_s {keepalive_s}, reconnect_s {reconnect_s}: at least 1 each"
            )
        try:
            host.encode("idna")
        except UnicodeError as error:
            raise ConfigError(f"mqtt: {host!r} is no host name: {error}") from error
        encrypted = tls or bool(ca or certificate or key)
        secret = _secret(username, password, password_env, password_file)
        self.notes: list[str] = []
        if secret is not None and not encrypted and host not in _LOCAL:
            self.notes.append(f"mqtt: the password goes to {host} in the clear: set tls = true")
        self.topic, self._qos, self._retain = topic, qos, retain
        self._paho: Any = need("paho.mqtt.client", extra="mqtt", sink="mqtt")
        self._names = SourceNames()
        port = (8883 if encrypted else 1883) if port is None else port
        self._where = f"the broker {host}:{port}"
        self._connected = threading.Event()
        self._closing = False
        self._queue = queue
        self._under_way: deque[Any] = deque()
        self._trouble = "no answer yet"
        self._client = self._made(protocol, client_id, queue)
        if username is not None:
            self._client.username_pw_set(username, secret)
        if encrypted:
            self._client.tls_set_context(_tls(ca, certificate, key))
        self._client.will_set(self._status, _state("lost"), qos=1, retain=True)
        self._client.reconnect_delay_set(1, reconnect_s)
        try:
            self._client.connect_async(host, port, keepalive=keepalive_s)
        except ValueError as error:
            raise ConfigError(f"mqtt: {self._where}: {error}") from error
        self._client.loop_start()

    @property
    def _status(self) -> str:
        return f"{self.topic}/status"

    def _made(self, protocol: str, client_id: str | None, queue: int) -> Any:
        paho = self._paho
        client = paho.Client(
            paho.CallbackAPIVersion.VERSION2,
            client_id=client_id or "",
            protocol=paho.MQTTv5 if protocol == "5" else paho.MQTTv311,
        )
        client.max_queued_messages_set(queue)
        client.connect_timeout = 5.0
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_connect_fail = self._on_connect_fail
        return client

    def _on_connect(self, client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if reason.is_failure:
            self._lost(str(reason))
            return
        log.info("mqtt: connected to %s", self._where)
        client.publish(self._status, _state("online"), qos=1, retain=True)
        self._connected.set()

    def _on_disconnect(self, _client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if self._connected.is_set() and not self._closing:
            self._lost(f"connection lost ({reason})")

    def _on_connect_fail(self, _client: Any, _data: Any) -> None:
        # The client calls this while it handles the error, which it does not hand over.
        error = sys.exc_info()[1]
        self._lost(f"it cannot be reached ({error})" if error else "it cannot be reached")

    def _lost(self, why: str) -> None:
        self._connected.clear()
        self._under_way = deque()  # they went with the connection
        if why != self._trouble:  # each attempt fails alike: told once
            log.warning("mqtt: %s: %s; trying again", self._where, why)
        self._trouble = why

    def write(self, result: Result) -> None:
        """Hand one message to the client.

        Raises:
            SinkError: the broker is away and the message cannot wait.
        """
        if self._qos == 0 and not self._connected.is_set():
            raise SinkError(f"{self._where}: {self._trouble}")
        under_way = self._under_way  # a lost connection begins a new one
        while under_way and under_way[0].is_published():
            under_way.popleft()
        if len(under_way) >= self._queue:
            raise SinkError(f"{self._where}: takes nothing: {len(under_way)} messages are under way")
        line = {**line_of(result), "captured_unix_ns": wall_ns(result.frame.captured_ns)}
        topic = f"{self.topic}/{self._names[camera_of(result)]}"
        sent = self._client.publish(topic, msgspec.json.encode(line), qos=self._qos, retain=self._retain)
        # While the broker is away rc is NO_CONN, yet a message of qos 1 or 2 waits and is sent later.
        waits = self._qos > 0 and sent.rc == self._paho.MQTT_ERR_NO_CONN
        if sent.rc != self._paho.MQTT_ERR_SUCCESS and not waits:
            reason = self._paho.error_string(sent.rc).rstrip(".")
            raise SinkError(f"{self._where}: {reason}; {self._trouble}")
        if self._qos == 0:  # the client's own bound is for the others
            under_way.append(sent)

    def close(self) -> None:
        """Say goodbye where the broker listens; what waits for an absent one is lost, which a note tells."""
        self._closing = True
        if self._connected.is_set():
            goodbye = self._client.publish(self._status, _state("offline"), qos=1, retain=True)
            try:
                goodbye.wait_for_publish(1.0)
            except (RuntimeError, ValueError) as error:
                log.warning("mqtt: %s did not hear the goodbye: %s", self._where, error)
        else:
            self.notes.append(f"mqtt: {self._where} was away at the end: {self._trouble}")
        self._client.disconnect()
        # Stopping waits for an attempt to connect, which may hang in a name server's silence.
        stopping = threading.Thread(target=self._client.loop_stop, name="mqtt-stop", daemon=True)
        stopping.start()
        stopping.join(1.0)


def _state(state: str) -> bytes:
    return msgspec.json.encode({"state": state})


def _secret(
    username: str | None,
    password: str | None,
    env: str | None,
    file: str | os.PathLike[str] | None,
) -> str | None:
    """The password from the one place that is named."""
    given = [
        name
        for name, value in (("password", password), ("password_env", env), ("password_file", file))
        if value is not None
    ]
    if len(given) > 1:
        raise ConfigError(f"mqtt: {' and '.join(given)}: one is enough")
    if given and username is None:
        raise ConfigError(f"mqtt: {given[0]} without username")
    if env is not None:
        if env not in os.environ:
            raise ConfigError(f"mqtt: the environment variable {env} (password_env) is not set")
        return os.environ[env]
    if file is not None:
        try:
            return Path(file).read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "is no text"
            raise ConfigError(f"mqtt: {os.fspath(file)} (password_file): {reason}") from error
    return password


def _tls(
    ca: str | os.PathLike[str] | None,
    certificate: str | os.PathLike[str] | None,
    key: str | os.PathLike[str] | None,
) -> ssl.SSLContext:
    """The broker's certificate and name are always checked."""
    if key is not None and certificate is None:
        raise ConfigError("mqtt: key without certificate")
    try:
        context = ssl.create_default_context(cafile=ca)
        if certificate is not None:
            context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        names = ", ".join(os.fspath(p) for p in (ca, certificate, key) if p is not None)
        raise ConfigError(f"mqtt: TLS files {names}: {error}") from error
    return context
