"""Writing a bundle is one step: the old file or the new one, never a part."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from edgesmith.sdk.bundle import MANIFEST, MAX_MEMBERS, Bundle, write_bundle
from edgesmith.sdk.errors import BundleError
from edgesmith.sdk.manifest import Manifest

Content = tuple[Manifest, dict[str, bytes]]


@pytest.fixture
def content(make_bundle: Callable[..., Path]) -> Content:
    """A manifest and the members that go with it; no file is left."""
    path = make_bundle()
    bundle = Bundle.open(path)
    members = {name: bundle.read(name) for name in bundle.manifest.members}
    path.unlink()
    return bundle.manifest, {**members, "report.json": b"{}"}


@pytest.fixture
def good(content: Content, tmp_path: Path) -> Path:
    path = tmp_path / "model.edge"
    write_bundle(path, *content)
    return path


def renamed(manifest: Manifest, name: str) -> Manifest:
    return msgspec.structs.replace(manifest, name=name)


def test_the_same_content_gives_the_same_bytes(good: Path, content: Content, tmp_path: Path) -> None:
    other = tmp_path / "other.edge"
    write_bundle(other, content[0], dict(reversed(content[1].items())))
    assert other.read_bytes() == good.read_bytes()


@pytest.mark.parametrize("name", ["", "../x", "/x", "a//b", "a\\b", "x\0", ".x", "a/", MANIFEST, "ä"])
def test_a_bad_member_name_is_not_written(name: str, content: Content, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="cannot be the name of a member"):
        write_bundle(tmp_path / "model.edge", content[0], {**content[1], name: b""})
    assert list(tmp_path.iterdir()) == []


def test_what_could_not_be_read_is_not_written(content: Content, tmp_path: Path) -> None:
    path = tmp_path / "model.edge"
    manifest, members = content
    with pytest.raises(BundleError, match=r"refers to member golden/input-0\.png"):
        write_bundle(path, manifest, {k: v for k, v in members.items() if k != "golden/input-0.png"})
    with pytest.raises(BundleError, match="more than a bundle takes"):
        write_bundle(path, manifest, members | {f"m{i}": b"" for i in range(MAX_MEMBERS)})
    assert list(tmp_path.iterdir()) == []


def _no_space(*_: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("fails", ["os.fsync", "zipfile.ZipFile.writestr", "pathlib.Path.replace"])
def test_a_failed_write_leaves_the_old_bundle(
    fails: str, good: Path, content: Content, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = good.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(fails, _no_space)
        with pytest.raises(BundleError, match="cannot write the bundle: No space left on device"):
            write_bundle(good, renamed(content[0], "next"), content[1])
    assert good.read_bytes() == before
    assert list(good.parent.iterdir()) == [good]


def test_an_interrupted_write_leaves_the_old_bundle(
    good: Path, content: Content, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    before = good.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            write_bundle(good, renamed(content[0], "next"), content[1])
    assert good.read_bytes() == before
    assert list(good.parent.iterdir()) == [good]


def test_a_write_that_the_system_stops_in_the_middle(good: Path) -> None:
    # A real limit on the size of a file, in a process of its own: the kernel refuses half way.
    program = f"""
import resource, sys
from edgesmith.sdk.bundle import Bundle, write_bundle
from edgesmith.sdk.errors import BundleError
bundle = Bundle.open({str(good)!r})
members = {{name: bundle.read(name) for name in bundle.manifest.members}}
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
try:
    write_bundle({str(good)!r}, bundle.manifest, members | {{"big.bin": bytes(1 << 20)}})
except BundleError as error:
    sys.exit(0 if "cannot write the bundle: File too large" in str(error) else str(error))
sys.exit("it was written")
"""
    before = good.read_bytes()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert good.read_bytes() == before
    assert list(good.parent.iterdir()) == [good]


def test_a_reader_sees_the_old_bundle_or_the_new(good: Path, content: Content) -> None:
    manifest, members = content
    versions = {name: {**members, "report.json": name.encode() * 500} for name in ("even", "odd")}
    write_bundle(good, renamed(manifest, "even"), versions["even"])
    stop = threading.Event()

    def rewrite() -> None:
        turn = 0
        while not stop.is_set():
            name = ("even", "odd")[turn % 2]
            write_bundle(good, renamed(manifest, name), versions[name])
            turn += 1

    writer = threading.Thread(target=rewrite)
    writer.start()
    seen = set()
    try:
        for _ in range(200):
            bundle = Bundle.open(good)  # whole at any moment
            try:
                assert bundle.read("report.json") == versions[bundle.manifest.name]["report.json"]
                seen.add(bundle.manifest.name)
            except BundleError as error:  # replaced since: said, never mixed
                assert "changed since" in str(error) or "SHA-256" in str(error)  # noqa: PT017
    finally:
        stop.set()
        writer.join()
    assert seen == {"even", "odd"}


def test_a_folder_that_is_not_there_is_said(content: Content, good: Path) -> None:
    with pytest.raises(BundleError, match="cannot write the bundle: No such file or directory"):
        write_bundle(good.parent / "none" / "model.edge", *content)
    with pytest.raises(BundleError, match="cannot write the bundle: Not a directory"):
        write_bundle(good / "inner.edge", *content)
    with pytest.raises(BundleError, match="cannot write the bundle: Is a directory"):
        write_bundle(good.parent, *content)
