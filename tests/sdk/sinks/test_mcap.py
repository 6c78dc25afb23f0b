from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edgesmith.sdk import Classifications, Result
from edgesmith.sdk.errors import SinkError
from edgesmith.sdk.sinks.mcap import McapRecording

MakeResult = Callable[..., Result]
pytest.importorskip("foxglove", reason="pip install 'edgesmith[mcap]'")
reader = pytest.importorskip("mcap.reader", reason="pip install mcap")
protobuf = pytest.importorskip("mcap_protobuf.decoder", reason="pip install mcap-protobuf-support")


def write_all(sink: McapRecording, results: list[Result]) -> None:
    for result in results:
        sink.write(result)


def read(path: Path) -> tuple[dict[str, str], list[tuple[str, int, Any]]]:
    """Schema by topic, and (topic, log time, message), with the library of the format's makers."""
    with path.open("rb") as file:
        recording = reader.make_reader(file, decoder_factories=[protobuf.DecoderFactory()])
        summary = recording.get_summary()
        schemas = {c.topic: summary.schemas[c.schema_id].name for c in summary.channels.values()}
        messages = []
        for _schema, channel, message in recording.iter_messages():
            if channel.message_encoding == "json":
                value = json.loads(message.data)
            else:
                decode = protobuf.DecoderFactory().decoder_for(
                    channel.message_encoding, summary.schemas[channel.schema_id]
                )
                value = decode(message.data)
            messages.append((channel.topic, message.log_time, value))
    return schemas, messages


def test_a_recording_reads_back_with_the_formats_own_library(tmp_path: Path, make_result: MakeResult) -> None:
    path = tmp_path / "drive.mcap"
    sink = McapRecording(path, quality=95)
    began, captured = time.time_ns(), time.monotonic_ns()
    for n in range(10):
        sink.write(make_result(n, captured_ns=captured + n * 33_000_000, color=(40, 90, 10 * n)))
    sink.close()
    schemas, messages = read(path)
    assert schemas["/front/image"] == "foxglove.CompressedImage"
    assert schemas["/front/annotations"] == "foxglove.ImageAnnotations"
    assert len(messages) == 30
    images = [m for m in messages if m[0] == "/front/image"]
    for n, (_, log_time, image) in enumerate(images):
        stamp = image.timestamp.seconds * 10**9 + image.timestamp.nanos
        assert stamp == log_time
        # The moment of the grab by the time of day, each a thirtieth of a second after the last.
        assert abs(log_time - (began + n * 33_000_000)) < 5_000_000
        assert (image.format, image.frame_id) == ("jpeg", "front")
        picture = cv2.imdecode(np.frombuffer(image.data, np.uint8), cv2.IMREAD_COLOR)
        assert picture is not None
        assert np.abs(picture.mean(axis=(0, 1)) - (40, 90, 10 * n)).max() < 3
    times = [m[1] for m in images]
    assert times == sorted(times)


def test_boxes_are_annotations_on_the_picture_of_the_same_time(
    tmp_path: Path, make_result: MakeResult
) -> None:
    path = tmp_path / "a.mcap"
    sink = McapRecording(path)
    sink.write(make_result(3))
    sink.close()
    by_topic = {topic: (when, message) for topic, when, message in read(path)[1]}
    when, note = by_topic["/front/annotations"]
    assert when == by_topic["/front/image"][0]
    (loop,) = note.points
    assert [(p.x, p.y) for p in loop.points] == [(5, 5), (30, 5), (30, 40), (5, 40)]
    assert loop.type == 2  # LINE_LOOP
    (text,) = note.texts
    assert (text.text, text.position.x, text.position.y) == ("#7 dog 0.75", 5, 5)
    line = by_topic["/front/result"][1]
    assert line["frame"] == 3
    assert line["detections"][0]["name"] == "dog"


def test_classes_are_text_and_cameras_have_topics_of_their_own(
    tmp_path: Path, make_result: MakeResult, classes: Classifications
) -> None:
    path = tmp_path / "a.mcap"
    sink = McapRecording(path, images=False)
    sink.write(make_result(0, answer=classes, source="rtsp://10.0.0.7/door"))
    sink.write(make_result(0, source="rear"))
    sink.close()
    schemas, messages = read(path)
    assert {t.split("/")[1] for t in schemas} == {"rtsp_10_0_0_7_door", "rear"}
    assert not any(t.endswith("/image") for t, _, _ in messages)
    (note,) = [m for t, _, m in messages if t == "/rtsp_10_0_0_7_door/annotations"]
    assert [t.text for t in note.texts] == ["red 0.70", "blue 0.20", "green 0.10"]


def test_two_recordings_do_not_write_into_each_other(tmp_path: Path, make_result: MakeResult) -> None:
    first, second = McapRecording(tmp_path / "1.mcap"), McapRecording(tmp_path / "2.mcap")
    first.write(make_result(1, source="a"))
    second.write(make_result(2, source="b"))
    first.close()
    second.close()
    assert set(read(tmp_path / "1.mcap")[0]) == {"/a/image", "/a/annotations", "/a/result"}
    assert set(read(tmp_path / "2.mcap")[0]) == {"/b/image", "/b/annotations", "/b/result"}


def test_a_long_recording_goes_on_in_the_next_file(tmp_path: Path, make_result: MakeResult) -> None:
    sink = McapRecording(tmp_path / "a.mcap", max_bytes=1_000_000)
    random = np.random.default_rng(0)
    for n in range(60):
        sink.write(make_result(n, image=random.integers(0, 256, (300, 400, 3), np.uint8)))
    sink.close()
    files = sorted(p.name for p in tmp_path.iterdir())
    assert files[:3] == ["a-0001.mcap", "a-0002.mcap", "a-0003.mcap"]
    assert files[-1] == "a.mcap"
    frames = []
    for name in ("a.mcap", *files[:-1]):
        frames += [m["frame"] for topic, _, m in read(tmp_path / name)[1] if topic == "/front/result"]
    assert frames == list(range(60))


def test_a_recording_is_not_overwritten(tmp_path: Path) -> None:
    McapRecording(tmp_path / "a.mcap").close()
    with pytest.raises(SinkError, match="is there already"):
        McapRecording(tmp_path / "a.mcap")
    with pytest.raises(SinkError, match="No such file"):
        McapRecording(tmp_path / "none" / "a.mcap")


def test_a_full_disk_is_told_and_a_new_file_begun(
    tmp_path: Path, make_result: MakeResult, caplog: pytest.LogCaptureFixture
) -> None:
    sink = McapRecording(tmp_path / "a.mcap")
    sink._file._file.close()
    sink._file._file = open("/dev/full", "wb", buffering=0)  # noqa: SIM115 - closed by the sink
    noise = np.random.default_rng(0).integers(0, 256, (600, 800, 3), np.uint8)
    with pytest.raises(SinkError, match="No space left on device"):
        write_all(sink, [make_result(n, image=noise) for n in range(20)])
    sink.reopen()
    sink.write(make_result(1))
    sink.close()
    assert [m["frame"] for t, _, m in read(tmp_path / "a-0001.mcap")[1] if "res" in t] == [1]
