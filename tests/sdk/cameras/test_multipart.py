from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgesmith.sdk.cameras.multipart import LARGEST_HEAD, MultipartReader, boundary_of


def jpeg(n: int, size: int = 400) -> bytes:
    return b"\xff\xd8" + bytes([n % 256]) * size + b"\xff\xd9"


def part(body: bytes, *, length: int | None = -1, mark: bytes = b"--cut", end: bytes = b"\r\n") -> bytes:
    head = mark + end + b"Content-Type: image/jpeg" + end
    if length is not None:
        head += b"Content-Length: %d" % (len(body) if length == -1 else length) + end
    return head + end + body + end


def read(data: bytes, *, step: int = 100, boundary: bytes = b"cut", largest: int = 1 << 20) -> list[bytes]:
    reader = MultipartReader(boundary, largest=largest)
    return [p.body for at in range(0, len(data), step) for p in reader.feed(data[at : at + step])]


CLOSING = b"--cut--\r\n\r\n"


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 2000), st.booleans(), st.sampled_from([b"\r\n", b"\n"]))
def test_parts_come_whole_however_they_are_cut(step: int, stated: bool, end: bytes) -> None:
    pictures = [jpeg(n, 50 + 100 * n) for n in range(12)]
    data = b"".join(part(p, length=-1 if stated else None, end=end) for p in pictures) + CLOSING
    assert read(data, step=step) == pictures


@settings(max_examples=40, deadline=None)
@given(st.lists(st.binary(max_size=600), min_size=5, max_size=5), st.integers(1, 900))
def test_garbage_between_parts_is_passed_over(garbage: list[bytes], step: int) -> None:
    pictures = [jpeg(n) for n in range(4)]
    clean = [g.replace(b"--cut", b"") for g in garbage]
    data = b"".join(g + b"\r\n" + part(p) for g, p in zip(clean, pictures, strict=False)) + clean[4]
    assert read(data, step=step) == pictures


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=5000), st.integers(1, 700))
def test_garbage_alone_never_raises_and_gives_nothing(garbage: bytes, step: int) -> None:
    assert all(p.startswith(b"\xff\xd8") for p in read(garbage, step=step))


@pytest.mark.parametrize("length", [1, 10, 399, 405, 1000, 10**9, 10**40])
def test_a_wrong_length_costs_one_picture_at_most(length: int) -> None:
    pictures = [jpeg(n) for n in range(4)]
    data = (
        part(pictures[0]) + part(pictures[1], length=length) + part(pictures[2]) + part(pictures[3]) + CLOSING
    )
    got = read(data)
    assert [p for p in got if p != pictures[1]] == [pictures[0], pictures[2], pictures[3]]


def test_a_torn_picture_is_counted_and_not_given() -> None:
    reader = MultipartReader(b"cut")
    data = part(jpeg(1)) + part(jpeg(2)[:200]) + part(b"<html>no</html>") + part(jpeg(3)) + CLOSING
    got = [p.body for p in reader.feed(data)]
    assert got == [jpeg(1), jpeg(3)]
    assert reader.damaged == 2


def test_memory_is_bounded_whatever_comes() -> None:
    reader = MultipartReader(b"cut", largest=100_000)
    streams = (
        b"x" * 3_000_000,
        b"--cut\r\n" + b"h: 1\r\n" * 500_000,
        part(jpeg(1), length=None)[:-10] + b"y" * 3_000_000,
    )
    for stream in streams:
        for at in range(0, len(stream), 10_000):
            assert list(reader.feed(stream[at : at + 10_000])) == []
            assert len(reader._buffer) <= 100_000 + 10_000 + LARGEST_HEAD
    assert reader.damaged > 0
    assert [p.body for p in reader.feed(b"\r\n" + part(jpeg(5)) + CLOSING)] == [jpeg(5)]


def test_headers_and_the_moment_of_the_first_byte_are_kept() -> None:
    reader = MultipartReader(b"--cut")
    head = b"--cut\r\nX-Timestamp: 12.5\r\nContent-Length: 404\r\n\r\n"
    assert list(reader.feed(head)) == []
    (got,) = reader.feed(jpeg(1))
    assert got.headers["x-timestamp"] == "12.5"
    assert got.began_ns > 0


@pytest.mark.parametrize(
    ("text", "boundary"),
    [
        ("multipart/x-mixed-replace; boundary=cut", b"cut"),
        ('Multipart/X-Mixed-Replace;boundary="--cut"', b"cut"),
        ("multipart/x-mixed-replace;charset=x; Boundary=--cut", b"cut"),
        ("multipart/x-mixed-replace", None),
        ("multipart/x-mixed-replace; boundary=--", None),
        ("image/jpeg; boundary=cut", None),
        ("", None),
    ],
)
def test_the_boundary_is_read_as_servers_write_it(text: str, boundary: bytes | None) -> None:
    assert boundary_of(text) == boundary
