"""From a sink's kind and options to the sink: the one table."""

from __future__ import annotations

import importlib
import inspect
import os
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from edgesmith.sdk.errors import ConfigError
from edgesmith.sdk.sinks.base import BackgroundSink, Overflow, Sink


class SinkKind(msgspec.Struct, frozen=True):
    """Where a kind of sink is, and how its queue behaves: see :class:`BackgroundSink`."""

    path: str
    capacity: int
    overflow: Overflow


# Recordings keep what was begun and pass over what comes; live sinks show the newest.
KINDS: Mapping[str, SinkKind] = types.MappingProxyType(
    {
        "events": SinkKind("edgesmith.sdk.sinks.events:EventPictures", 16, "newest"),
        "jsonl": SinkKind("edgesmith.sdk.sinks.jsonl:JsonLines", 64, "newest"),
        "mcap": SinkKind("edgesmith.sdk.sinks.mcap:McapRecording", 32, "newest"),
        "mqtt": SinkKind("edgesmith.sdk.sinks.mqtt:MqttPublisher", 64, "oldest"),
        "pictures": SinkKind("edgesmith.sdk.sinks.video:AnnotatedPictures", 16, "newest"),
        "ros2": SinkKind("edgesmith.sdk.sinks.ros2:RosPublisher", 4, "oldest"),
        "video": SinkKind("edgesmith.sdk.sinks.video:AnnotatedVideo", 32, "newest"),
        "view": SinkKind("edgesmith.sdk.sinks.view:WebView", 2, "oldest"),
        "watchdog": SinkKind("edgesmith.sdk.sinks.watchdog:SystemdWatchdog", 2, "oldest"),
        "window": SinkKind("edgesmith.sdk.sinks.window:Window", 1, "oldest"),
    }
)


def open_sink(
    kind: str,
    *,
    capacity: int | None = None,
    overflow: Overflow | None = None,
    name: str | None = None,
    **options: Any,
) -> BackgroundSink:
    """A sink by its kind, behind a queue and a thread of its own.

    Args:
        kind: a key of :data:`KINDS`.
        capacity, overflow, name: of the queue, in place of the kind's own.
        options: those of the kind's class.

    Raises:
        ConfigError: there is no such kind or option, or a value is of the wrong type.
        MissingExtraError: a package is missing; the message names the extra that brings it.
        SinkError: it cannot be opened.
    """
    return BackgroundSink(
        make_sink(kind, **options),
        capacity=KINDS[kind].capacity if capacity is None else capacity,
        overflow=KINDS[kind].overflow if overflow is None else overflow,
        name=name or kind,
    )


def make_sink(kind: str, **options: Any) -> Sink:
    """A sink by its kind, written in the caller's thread; raises what :func:`open_sink` raises."""
    if kind not in KINDS:
        raise ConfigError(f"there is no sink of kind {kind!r}: {', '.join(sorted(KINDS))}")
    module, _, attribute = KINDS[kind].path.partition(":")
    made = getattr(importlib.import_module(module), attribute)
    _check(kind, made, options)
    sink: Sink = made(**options)
    return sink


def _check(kind: str, made: type[Any], options: Mapping[str, Any]) -> None:
    """Refuse options by name before anything is opened."""
    parameters = list(inspect.signature(made).parameters.values())
    known = [p.name for p in parameters]
    for option in options:
        if option not in known:
            raise ConfigError(f"the {kind} sink has no option {option!r}: it takes {', '.join(known)}")
    for parameter in parameters:
        if parameter.default is parameter.empty and parameter.name not in options:
            raise ConfigError(f"the {kind} sink needs the option {parameter.name!r}")
    hints = typing.get_type_hints(vars(made)["__init__"])
    for option, value in options.items():
        if not _fits(value, hints[option]):
            wanted = inspect.formatannotation(hints[option]).replace("os.PathLike[str]", "path")
            raise ConfigError(f"the {kind} sink's option {option!r} is {value!r}: {wanted} is needed")


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value, as a configuration file or a call gives it, is of the type that is asked for."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in arguments)
    if origin is typing.Literal:
        return any(type(value) is type(a) and value == a for a in arguments)
    if hint is typing.Any:
        return True
    if hint in (int, float) and isinstance(value, bool):
        return False
    if hint is float:
        return isinstance(value, int | float)
    if origin in (tuple, list, Sequence):
        return isinstance(value, list | tuple) and all(_fits(item, arguments[0]) for item in value)
    if origin is os.PathLike:
        return isinstance(value, os.PathLike)
    if origin is not None:
        return isinstance(value, origin)
    return value is None if hint is type(None) else isinstance(value, hint)
