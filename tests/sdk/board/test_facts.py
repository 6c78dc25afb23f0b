"""What the doctor reads: OpenCV's build text, requirements, libraries that break."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

from edgesmith.sdk.board.facts import (
    Library,
    build_features,
    cache_folder,
    gather,
    load,
    normalised,
    own_requirements,
)

HEADLESS = """
  GUI:                           NONE
    VTK support:                 NO

  Video I/O:
    FFMPEG:                      YES
      avcodec:                   YES (62.28.101)
    GStreamer:                   NO
"""
DEBIAN = """
  GUI:
    GTK+:                        YES (ver 3.24.38)
      GThread :                  YES (ver 2.74.6)
    VTK support:                 YES (ver 9.1.0)

  Video I/O:
    FFMPEG:                      NO
    GStreamer:                   YES (1.22.0)
"""
WITH_QT = HEADLESS.replace("NONE", "QT5").replace(
    "GStreamer:                   NO", "GStreamer: YES (1.20.3)"
)


@pytest.mark.parametrize(
    ("text", "features"),
    [
        (HEADLESS, {"gui": "no", "gstreamer": "no", "ffmpeg": "YES"}),
        (DEBIAN, {"gui": "GTK+", "gstreamer": "YES (1.22.0)", "ffmpeg": "no"}),
        (WITH_QT, {"gui": "QT5", "gstreamer": "YES (1.20.3)", "ffmpeg": "YES"}),
        ("", {"gui": "no", "gstreamer": "no", "ffmpeg": "no"}),
    ],
)
def test_what_an_opencv_lacks(text: str, features: dict[str, str]) -> None:
    assert build_features(text) == features


def test_requirements_by_extra() -> None:
    lines = [
        "numpy>=1.23",
        "edgesmith[runtime,eval]; extra == 'convert'",
        "onnx-ir>=0.1.4; extra == 'convert'",
        'PyGObject<3.52; extra == "gst"',
        "old-thing>=2; python_version < '3.8'",
        "new_thing>=2; python_version < '4.0'",
    ]
    assert own_requirements(lines) == (
        ("", "numpy", "1.23"),
        ("convert", "edgesmith", ""),
        ("convert", "onnx-ir", "0.1.4"),
        ("gst", "pygobject", ""),
        ("", "new-thing", "2"),
    )
    assert normalised("Ruamel.yaml__clib") == "ruamel-yaml-clib"


def test_a_library_that_is_absent_or_broken_is_a_fact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(module: ModuleType) -> Library:
        return Library(str(module.__version__))

    monkeypatch.syspath_prepend(str(tmp_path))
    assert load("no_such_library", version) is None
    (tmp_path / "sound_library.py").write_text("__version__ = '1.2'")
    assert load("sound_library", version) == Library("1.2")
    (tmp_path / "bare_library.py").write_text("")
    broken = load("bare_library", version)
    assert broken is not None
    assert broken.error == "AttributeError: module 'bare_library' has no attribute '__version__'"
    (tmp_path / "torn_library.py").write_text("raise ImportError('libx.so.1: cannot open\\nmore')")
    torn = load("torn_library", version)
    assert torn is not None
    assert torn.error == "ImportError: libx.so.1: cannot open"
    for name in ("sound_library", "bare_library"):
        sys.modules.pop(name)


def test_this_machine() -> None:
    facts = gather()
    assert facts.python == sys.version_info[:3]
    assert facts.packages["numpy"]
    assert ("", "numpy", "1.23") in facts.requirements
    assert facts.cv2 is not None
    assert facts.cv2.error is None
    assert facts.cv2.detail["path"].endswith("__init__.py")
    assert facts.onnxruntime is not None
    assert "CPUExecutionProvider" in facts.onnxruntime.detail["providers"]
    assert facts.free_bytes > 0


def test_the_cache_follows_the_users_wish(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "edgesmith"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "edgesmith"
    assert not (tmp_path / "edgesmith").exists()
