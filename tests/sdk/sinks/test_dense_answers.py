"""What each sink makes of class maps and of plain tensors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from edgesmith.sdk import Result, Segmentation, Tensors
from edgesmith.sdk.errors import SinkError
from edgesmith.sdk.sinks.events import EventPictures
from edgesmith.sdk.sinks.jsonl import line_of
from edgesmith.sdk.sinks.ros2_messages import answer_message, topic_of
from edgesmith.sdk.sinks.vitals import Vitals

MakeResult = Callable[..., Result]
NAMES = ("background", "road", "car")


class Plain:
    """Messages as bags of their fields."""

    def make(self, name: str, /, **fields: Any) -> Any:
        return SimpleNamespace(kind=name, **fields)

    def octets(self, data: bytes) -> Any:
        return data


@pytest.fixture
def street() -> Segmentation:
    """Half road, a corner of car, for frames of 60 x 80."""
    class_map = np.zeros((60, 80), np.uint8)
    class_map[30:] = 1
    class_map[40:50, :16] = 2
    return Segmentation(class_map, NAMES)


@pytest.fixture
def read() -> Tensors:
    return Tensors({"steps": np.arange(6, dtype=np.float32).reshape(2, 3)}, text=("ab", 0.5))


def test_lines_of_json(make_result: MakeResult, street: Segmentation, read: Tensors) -> None:
    line = line_of(make_result(answer=street))
    np.testing.assert_array_equal(Segmentation.from_dict(line["regions"]).class_map, street.class_map)
    line = line_of(make_result(answer=read))
    assert (line["text"], line["score"]) == ("ab", 0.5)
    assert line["tensors"][0]["shape"] == [2, 3]
    assert "text" not in line_of(make_result(answer=Tensors()))


def test_vitals_count_the_classes_in_view(
    make_result: MakeResult, street: Segmentation, read: Tensors
) -> None:
    vitals = Vitals()
    vitals.add(make_result(answer=street))
    (camera,) = vitals.cameras()
    assert camera["found"] == {"road": 1, "car": 1}
    vitals.add(make_result(answer=read))
    assert vitals.cameras()[0]["found"] == {}


def test_a_class_that_comes_into_view_is_an_event(
    make_result: MakeResult, street: Segmentation, read: Tensors, tmp_path: Path
) -> None:
    sink = EventPictures(tmp_path / "events", classes=["car"])
    empty = Segmentation(np.zeros((60, 80), np.uint8), NAMES)
    for number, answer in enumerate((empty, street, street, read)):
        sink.write(make_result(number, answer=answer, captured_ns=number * 10**8))
    sink.close()
    (saved,) = (tmp_path / "events").glob("*.jpg")
    assert saved.stem.endswith("-car-1")
    picture = cv2.imdecode(np.frombuffer(saved.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    assert picture is not None
    assert picture.shape == (60, 80, 3)


def test_ros_gets_the_class_map_as_a_picture(
    make_result: MakeResult, street: Segmentation, read: Tensors
) -> None:
    assert topic_of(street) == ("segmentation", "sensor_msgs/msg/Image")
    message = answer_message(make_result(answer=street), Plain(), None)
    assert (message.kind, message.encoding, message.height, message.step) == (
        "sensor_msgs/msg/Image", "mono8", 60, 80
    )  # fmt: skip
    np.testing.assert_array_equal(np.frombuffer(message.data, np.uint8).reshape(60, 80), street.class_map)
    wide = Segmentation(np.full((2, 3), 500, np.uint16))
    message = answer_message(make_result(answer=wide), Plain(), None)
    assert (message.encoding, message.step) == ("mono16", 6)
    np.testing.assert_array_equal(np.frombuffer(message.data, "<u2"), np.full(6, 500))
    for call in (lambda: topic_of(read), lambda: answer_message(make_result(answer=read), Plain(), None)):
        with pytest.raises(SinkError, match="there is no message for"):
            call()


def test_a_recording_names_the_regions(make_result: MakeResult, street: Segmentation, tmp_path: Path) -> None:
    pytest.importorskip("foxglove", reason="pip install 'edgesmith[mcap]'")
    reader = pytest.importorskip("mcap.reader", reason="pip install mcap")
    protobuf = pytest.importorskip("mcap_protobuf.decoder", reason="pip install mcap-protobuf-support")
    from edgesmith.sdk.sinks.mcap import McapRecording

    sink = McapRecording(tmp_path / "x.mcap")
    sink.write(make_result(answer=street))
    sink.write(make_result(1, answer=Tensors()))
    sink.close()
    with (tmp_path / "x.mcap").open("rb") as file:
        recording = reader.make_reader(file, decoder_factories=[protobuf.DecoderFactory()])
        notes = [m.decoded_message for m in recording.iter_decoded_messages(topics=["/front/annotations"])]
    assert [text.text for text in notes[0].texts] == ["road 47 %", "car 3 %"]
    assert len(notes[1].texts) == 0
