from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgesmith.sdk import Result
from edgesmith.sdk.errors import ConfigError, MissingExtraError, SinkError
from edgesmith.sdk.sinks.naming import SourceNames
from edgesmith.sdk.sinks.open import KINDS, make_sink, open_sink

MakeResult = Callable[..., Result]


def test_every_kind_is_a_class_with_the_methods_of_a_sink() -> None:
    for kind in KINDS.values():
        module, _, name = kind.path.partition(":")
        made = getattr(importlib.import_module(module), name)
        assert callable(made.write)
        assert callable(made.close)


def test_a_kind_with_its_options_is_opened_behind_a_queue(tmp_path: Path, make_result: MakeResult) -> None:
    sink = open_sink("jsonl", path=str(tmp_path / "a.jsonl"), name="lines")
    sink.write(make_result(3))
    sink.close()
    (line,) = (tmp_path / "a.jsonl").read_text().splitlines()
    assert json.loads(line)["frame"] == 3
    assert sink.stats().name == "lines"


@pytest.mark.parametrize(
    ("kind", "options", "says"),
    [
        ("paper", {}, "no sink of kind 'paper': events, jsonl, mcap"),
        ("mqtt", {"hots": "a"}, "mqtt sink has no option 'hots': it takes host, port"),
        ("jsonl", {}, "jsonl sink needs the option 'path'"),
        ("mqtt", {"host": "a", "port": "1883"}, r"'port' is '1883': int \| None is needed"),
        ("mqtt", {"host": "a", "qos": 3}, r"'qos' is 3: "),
        ("mqtt", {"host": "a", "qos": True}, r"'qos' is True: "),
        ("mqtt", {"host": 5}, "'host' is 5: str is needed"),
        ("events", {"folder": "x", "classes": "dog"}, "'classes' is 'dog'"),
        ("events", {"folder": "x", "max_bytes": 1.5}, "'max_bytes' is 1.5: int is needed"),
        ("view", {"max_fps": True}, "'max_fps' is True: float is needed"),
        ("ros2", {"images": "all"}, "'images' is 'all'"),
    ],
)
def test_what_cannot_be_is_refused_by_name(kind: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        open_sink(kind, **options)


def test_a_whole_number_is_a_rate_and_a_path_is_a_path(tmp_path: Path) -> None:
    make_sink("video", path=tmp_path / "a.mp4", fps=25).close()
    make_sink("events", folder=tmp_path / "events", classes=["dog"]).close()


def test_a_sink_that_cannot_be_opened_leaves_no_thread(tmp_path: Path) -> None:
    import threading

    before = threading.active_count()
    with pytest.raises(SinkError, match="missing"):
        open_sink("jsonl", path=str(tmp_path / "missing" / "a.jsonl"))
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("kind", "options", "package"),
    [("mqtt", {"host": "localhost"}, "paho"), ("mcap", {"path": "a.mcap"}, "foxglove")],
)
def test_a_missing_package_names_its_extra(
    monkeypatch: pytest.MonkeyPatch, kind: str, options: dict[str, Any], package: str
) -> None:
    for name in [n for n in sys.modules if n.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)  # its import is refused
    with pytest.raises(MissingExtraError, match=rf"edgesmith\[{kind}\]") as caught:
        make_sink(kind, **options)
    assert caught.value.extra == kind


def test_names_of_sources_never_meet() -> None:
    names = SourceNames()
    sources = ["a b", "a_b", "a-b", "7", "", "é", "x" * 100 + "1", "x" * 100 + "2"]
    found = [names[s] for s in sources]
    assert len(set(found)) == len(sources)
    assert all(n.isascii() and n[0].isalpha() and len(n) < 70 for n in found)
    assert [names[s] for s in sources] == found
