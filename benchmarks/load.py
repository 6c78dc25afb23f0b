"""Clients that ask a server over loopback as fast as it answers, and keep what it said.

In a process of their own (``python load.py``, told what to do on stdin), so that their work is not the
server's or the caller's. The sockets are raw: a client library would cost more than the server.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_PAUSE_S = 0.02  # after a refusal


def _inference(prediction: dict[str, Any]) -> dict[str, Any]:
    """A detection as ours, from centre and size."""
    x, y, half_w, half_h = (prediction[key] for key in ("x", "y", "width", "height"))
    half_w, half_h = half_w / 2, half_h / 2
    box = [x - half_w, y - half_h, x + half_w, y + half_h]
    return {"label": prediction["class_id"], "score": prediction["confidence"], "box": box}


# By kind: the content type, the body for a picture in base64, and the detections in an answer.
KINDS: dict[str, tuple[str, Callable[[str], bytes], Callable[[Any], Any]]] = {
    "edgesmith": ("image/jpeg", base64.b64decode, lambda told: told["detections"]),
    "litserve": (
        "application/json",
        lambda picture: json.dumps({"image": picture}).encode(),
        lambda told: told["detections"],
    ),
    "inference": (
        "application/json",
        lambda picture: json.dumps(
            {"model_id": "edgesmith/1", "api_key": "none", "image": {"type": "base64", "value": picture}}
        ).encode(),
        lambda told: [_inference(one) for one in told["predictions"]],
    ),
}


class Load:
    """``clients`` connections to ``HOST:PORT/PATH``, each with one request at a time, of one picture.

    ``kind`` is one of :data:`KINDS`: what a request looks like, and where its answer has the detections.
    """

    def __init__(self, address: str, bodies: list[bytes], clients: int, kind: str = "edgesmith") -> None:
        self.address, self.bodies, self.clients, self.kind = address, bodies, clients, kind

    def run(self, seconds: float) -> dict[str, Any]:
        """``ms`` of the answered, ``statuses`` with their number, ``answers`` as picture, text, number."""
        told = {
            "address": self.address,
            "kind": self.kind,
            "clients": self.clients,
            "seconds": seconds,
            "bodies": [base64.b64encode(body).decode() for body in self.bodies],
        }
        done = subprocess.run(
            [sys.executable, str(Path(__file__))],
            input=json.dumps(told).encode(),
            stdout=subprocess.PIPE,
            check=True,
            timeout=seconds + 120,
        )
        return dict(json.loads(done.stdout))


def verified(answers: list[Any], wanted: list[Any], *, pixels: float = 1.0, score: float = 5e-3) -> int:
    """How many answers are not those of their picture: other classes, or boxes or scores further off.

    Detections close to the threshold may come or go, as batches sum in another order.
    """
    wrong = 0
    for picture, text, number in answers:
        body = json.loads(text)
        if not _same(body["detections"], wanted[picture], pixels, score):
            wrong += number
    return wrong


def _same(found: list[Any], wanted: list[Any], pixels: float, score: float) -> bool:
    sure = [d for d in wanted if d["score"] > 0.25 + 2 * score]
    if len(found) < len(sure) or len(found) > len(wanted) + 1:
        return False
    return all(
        any(
            d["label"] == f["label"]
            and abs(d["score"] - f["score"]) < score
            and max(abs(a - b) for a, b in zip(d["box"], f["box"], strict=True)) < pixels
            for f in found
        )
        for d in sure
    )


class _Clients:
    """The process's side."""

    def __init__(self, told: dict[str, Any]) -> None:
        host, _, path = told["address"].partition("/")
        self.host, self.port = host.split(":")[0], int(host.split(":")[1])
        self.requests = [_request(f"/{path}", host, body, told["kind"]) for body in told["bodies"]]
        self.kind = told["kind"]
        self.clients, self.seconds = told["clients"], told["seconds"]
        self.ms: list[float] = []
        self.statuses: dict[str, int] = {}
        self.answers: dict[tuple[int, bytes], list[Any]] = {}

    async def run(self) -> dict[str, Any]:
        started = time.monotonic()
        self.end = started + self.seconds
        await asyncio.gather(*(self._client(number) for number in range(self.clients)))
        return {
            "seconds": time.monotonic() - started,
            "ms": self.ms,
            "statuses": self.statuses,
            "answers": [[picture, text, count] for (picture, _), (text, count) in self.answers.items()],
        }

    async def _client(self, number: int) -> None:
        reader, writer = await asyncio.open_connection(self.host, self.port, limit=1 << 22)
        at = number
        while time.monotonic() < self.end:
            picture = at % len(self.requests)
            asked = time.monotonic()
            writer.write(self.requests[picture])
            await writer.drain()
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(head.partition(b"content-length:")[2].split()[0])
            body = await reader.readexactly(length)
            status = head[9:12].decode()
            self.statuses[status] = self.statuses.get(status, 0) + 1
            if status == "200":
                self.ms.append(1e3 * (time.monotonic() - asked))
                self._keep(picture, body)
                at += self.clients + 1
            else:
                await asyncio.sleep(_PAUSE_S)
            if b"connection: close" in head:
                writer.close()
                reader, writer = await asyncio.open_connection(self.host, self.port, limit=1 << 22)
        writer.close()

    def _keep(self, picture: int, body: bytes) -> None:
        """Each picture's distinct answers once, with how often they came; times in them are left out."""
        text = json.dumps({"detections": KINDS[self.kind][2](json.loads(body))})
        key = (picture, hashlib.sha256(text.encode()).digest())
        self.answers.setdefault(key, [text, 0])[1] += 1


def _request(path: str, host: str, picture: str, kind: str) -> bytes:
    """All bytes of a request for a picture in base64."""
    content, made, _ = KINDS[kind]
    body = made(picture)
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: {content}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_Clients(json.loads(sys.stdin.buffer.read())).run())))
