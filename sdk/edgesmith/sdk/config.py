"""What a robot runs, in one TOML file: cameras, model, policy, sinks.

    policy = "latest"
    max_age_ms = 300
    [model]
    bundle = "model.edge"
    [[cameras]]
    source = "rtsp://user:${DOOR_PASSWORD}@10.0.0.7/stream"
    name = "door"
    [[sinks]]
    kind = "mqtt"
    host = "broker.local"

Paths are relative to the file. ``${NAME}`` in a source or a sink's option is an environment
variable: passwords stay out of the file. Keys that are unknown are refused by name.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from edgesmith.sdk.cameras import SupervisedCamera, open_camera
from edgesmith.sdk.errors import ConfigError
from edgesmith.sdk.loop.mailbox import Policy
from edgesmith.sdk.loop.track import TrackSettings
from edgesmith.sdk.sinks.base import BackgroundSink, Sink
from edgesmith.sdk.sinks.open import KINDS, make_sink, open_sink

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Share = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]
Positive = Annotated[int, msgspec.Meta(ge=1)]
Above = Annotated[float, msgspec.Meta(gt=0.0)]
S = TypeVar("S", bound=msgspec.Struct)
_VARIABLE = re.compile(r"\$\{(\w+)\}")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[model]``: which bundle, on what, with which thresholds."""

    bundle: str
    backend: str = "auto"
    device: int = 0
    variant: str | None = None
    threads: Positive | None = None
    score: Share | None = None
    iou: Share | None = None


class CameraConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[[cameras]]``: as of ``open_camera``; ``options`` are the other keys, those of its kind."""

    source: str | int
    name: str | None = None
    size: tuple[Positive, Positive] | None = None
    fps: Above | None = None
    policy: Policy | None = None
    options: dict[str, Any] = {}


class SinkConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[[sinks]]``: as of ``open_sink``; ``options`` are the other keys, those of its kind."""

    kind: str
    name: str | None = None
    capacity: Positive | None = None
    overflow: Literal["oldest", "newest", "wait"] | None = None
    options: dict[str, Any] = {}


class RobotConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole file; the loop's keys stand at its top and are those of ``CaptureLoop``.

    ``policy`` None means ``latest`` for live cameras and ``every`` for files.
    """

    model: ModelConfig
    cameras: Annotated[tuple[CameraConfig, ...], msgspec.Meta(min_length=1)]
    sinks: tuple[SinkConfig, ...] = ()
    policy: Policy | None = None
    max_age_ms: Above | None = None
    track: bool | TrackSettings = False
    batch: Positive | None = None
    gather_ms: Annotated[float, msgspec.Meta(ge=0.0)] = 5.0
    limit: Positive | None = None


def read_config(path: str | os.PathLike[str]) -> RobotConfig:
    """Read a robot's file; relative paths of the bundle, of sources and of sinks are resolved.

    Raises:
        ConfigError: the file is missing or is no TOML, a key is unknown or missing, a value is of the
            wrong type, or an environment variable is not set.
    """
    file = Path(path)
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not TOML: {error}") from error
    for key, kind in (("cameras", CameraConfig), ("sinks", SinkConfig)):
        if key not in table:
            continue
        entries = table[key]
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise ConfigError(f"{file}: {key} is a list of tables: begin each with [[{key}]]")
        table[key] = [_with_options(entry, kind) for entry in entries]
    try:
        config = msgspec.convert(table, RobotConfig)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{file}: {_plain(str(error))}") from error
    return _placed(config, file)


def open_cameras(cameras: Sequence[CameraConfig]) -> list[SupervisedCamera]:
    """Open the cameras of a file; where one cannot be opened, the others are closed again.

    Raises:
        CameraError: a source is not there or cannot be opened.
        ConfigError: an option is unknown, or cannot be used.
    """
    opened: list[SupervisedCamera] = []
    try:
        for camera in cameras:
            opened.append(
                open_camera(
                    camera.source, size=camera.size, fps=camera.fps, name=camera.name, **camera.options
                )
            )
    except BaseException:
        for each in opened:
            each.close()
        raise
    return opened


def policies(config: RobotConfig, cameras: Sequence[SupervisedCamera]) -> tuple[Policy, ...]:
    """The policy of each camera: its own, the file's, or what suits its kind."""
    return tuple(
        entry.policy or config.policy or ("latest" if camera.live else "every")
        for entry, camera in zip(config.cameras, cameras, strict=True)
    )


def open_one(sink: SinkConfig, policies: Sequence[Policy]) -> Sink:
    """A sink of a file.

    Recordings of files are written in the loop's own thread: each frame counts, and an error ends the
    run. Everything else gets a queue.

    Raises:
        ConfigError: there is no such kind or option.
        SinkError: it cannot be opened.
    """
    kept = sink.kind in KINDS and KINDS[sink.kind].overflow == "newest"
    if kept and "latest" not in policies and sink.overflow is None and sink.capacity is None:
        return make_sink(sink.kind, **sink.options)
    queue: dict[str, Any] = {"name": sink.name, "capacity": sink.capacity, "overflow": sink.overflow}
    opened: BackgroundSink = open_sink(sink.kind, **queue, **sink.options)
    return opened


def _with_options(entry: Mapping[str, Any], kind: type[msgspec.Struct]) -> dict[str, Any]:
    """The keys that every entry has, and the others under ``options``."""
    own = set(kind.__struct_fields__) - {"options"}
    split: dict[str, Any] = {key: value for key, value in entry.items() if key in own}
    split["options"] = {key: value for key, value in entry.items() if key not in own}
    return split


def _plain(message: str) -> str:
    """The validator's message with the key's dotted name in place of its path."""
    text, _, path = message.partition(" - at `$")
    where = path.rstrip("`").lstrip(".").replace("[", ".").replace("]", "")
    unknown = re.search(r"unknown field `(.+)`", text)
    if unknown:
        return f"unknown key {where + '.' if where else ''}{unknown[1]}"
    missing = re.search(r"missing required field `(.+)`", text)
    if missing:
        return f"the key {where + '.' if where else ''}{missing[1]} is missing"
    return f"{where or 'the file'}: {text[:1].lower()}{text[1:]}"


def _placed(config: RobotConfig, file: Path) -> RobotConfig:
    base = file.parent
    cameras = tuple(
        msgspec.structs.replace(camera, source=_source(camera.source, base, file))
        for camera in config.cameras
    )
    sinks = tuple(
        msgspec.structs.replace(sink, options=_sink_options(sink, base, file)) for sink in config.sinks
    )
    model = msgspec.structs.replace(config.model, bundle=str(base / config.model.bundle))
    return msgspec.structs.replace(config, cameras=cameras, sinks=sinks, model=model)


def _source(source: str | int, base: Path, file: Path) -> str | int:
    if isinstance(source, int):
        return source
    source = _filled(source, file)
    if source.isdecimal() or _SCHEME.match(source):
        return source
    return str(base / source)


def _sink_options(sink: SinkConfig, base: Path, file: Path) -> dict[str, Any]:
    options = {
        key: _filled(value, file) if isinstance(value, str) else value for key, value in sink.options.items()
    }
    if sink.kind not in KINDS:
        raise ConfigError(f"{file}: there is no sink of kind {sink.kind!r}: {', '.join(sorted(KINDS))}")
    module, _, attribute = KINDS[sink.kind].path.partition(":")
    hints = typing.get_type_hints(getattr(importlib.import_module(module), attribute).__init__)
    for key, value in options.items():
        if isinstance(value, str) and "PathLike" in str(hints.get(key)):
            options[key] = str(base / value)
    return options


def _filled(text: str, file: Path) -> str:
    def value(match: re.Match[str]) -> str:
        if match[1] not in os.environ:
            raise ConfigError(f"{file}: the environment variable {match[1]} is not set")
        return os.environ[match[1]]

    return _VARIABLE.sub(value, text)
