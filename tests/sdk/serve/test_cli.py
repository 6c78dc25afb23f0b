"""``edgesmith serve`` as a process: what it prints, its log, its signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgesmith.sdk.cli.app import main

TOKEN = "a-secret-of-good-length"


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Starts the command and reads the object that it prints when it serves."""
    running: list[subprocess.Popen[str]] = []

    def start(*arguments: str, **environment: str) -> tuple[subprocess.Popen[str], dict[str, Any]]:
        line = [sys.executable, "-m", "edgesmith.sdk.cli", "serve", *arguments]
        line += ["--port", "0", "--json", "--backend", "cpu", "--access-log", str(tmp_path / "access.jsonl")]
        process = subprocess.Popen(
            line,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        running.append(process)
        assert process.stdout is not None
        text = ""
        while not text.endswith("}\n") or text.count("{") != text.count("}"):
            part = process.stdout.readline()
            assert part, process.communicate()[1]
            text += part
        return process, json.loads(text)

    yield start
    for process in running:
        process.kill()
        process.communicate()


def ask(url: str, data: bytes | None = None, token: str | None = None) -> Any:
    request = urllib.request.Request(url, data=data, headers={"Content-Type": "image/png"})
    if token is not None:
        request.add_header("Authorization", f"Bearer {token}")
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.loads(answer.read())


def test_it_serves_logs_changes_and_ends(
    command: Callable[..., Any], make_bundle: Any, picture: Callable[..., bytes], tmp_path: Path
) -> None:
    path = make_bundle()
    process, told = command(f"ball={path}", "--watch-s", "0", EDGESMITH_TOKEN=TOKEN)
    assert told["pid"] == process.pid
    assert [(m["name"], m["task"], m["max_batch"]) for m in told["models"]] == [("ball", "detect", 8)]
    url = told["url"]
    assert url.startswith("http://127.0.0.1:")
    assert ask(f"{url}/models/ball/predict?score=0", picture(), TOKEN)["detections"]
    make_bundle()
    # SIGHUP looks at the bundle's file at once.
    process.send_signal(signal.SIGHUP)
    end = time.monotonic() + 15
    while ask(f"{url}/models/ball", token=TOKEN)["change"] is None:
        assert time.monotonic() < end
        time.sleep(0.05)
    assert ask(f"{url}/models/ball", token=TOKEN)["change"]["taken"] is True
    # SIGTERM ends it, with the status of a command that did its work.
    answers: list[Any] = []
    threads = [
        threading.Thread(
            target=lambda: answers.append(ask(f"{url}/models/ball/predict?score=0", picture(), TOKEN))
        )
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 0, err
    assert len(answers) == 8
    lines = [json.loads(line) for line in (tmp_path / "access.jsonl").read_text().splitlines()]
    first = lines[0]
    assert (first["method"], first["path"], first["status"]) == ("POST", "/models/ball/predict", 200)
    assert first["model"] == "ball"
    assert first["batch"] >= 1
    assert first["infer_ms"] > 0
    assert TOKEN not in json.dumps(lines) + out + err


def test_what_is_told_in_one_line(
    make_bundle: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EDGESMITH_TOKEN", raising=False)
    path = str(make_bundle())
    (tmp_path / "weak").write_text("short\n")
    (tmp_path / "good").write_text(f"{TOKEN}\n")
    for arguments, status, text in [
        ([str(tmp_path / "none.edge")], 3, "there is no such bundle"),
        ([path, "--host", "0.0.0.0"], 2, "can be reached by others"),
        ([path, "--host", "0.0.0.0", "--token-file", str(tmp_path / "weak")], 2, "16 or more"),
        ([path, "--token-file", str(tmp_path / "gone")], 2, "cannot be read"),
        ([path, "--tls-cert", "a.pem"], 2, "both --tls-cert and --tls-key"),
        ([path, path], 2, "two bundles are called 'tiny'"),
        ([f"a={path}", f"a={path}"], 2, "given to two bundles"),
        ([path, "--host", "192.0.2.1", "--token-file", str(tmp_path / "good")], 5, "cannot be served"),
        ([path, "--max-body-mb", "1000", "--max-memory-mb", "10"], 2, "max_memory_bytes"),
    ]:
        with pytest.raises(SystemExit) as caught:
            main(["serve", *arguments])
        told = capsys.readouterr().err
        assert (caught.value.code, text in told) == (status, True), (arguments, told)
        assert "Traceback" not in told
