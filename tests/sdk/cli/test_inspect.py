"""``edgesmith inspect``: the overview for people and the object for machines."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result

from edgesmith.sdk.bundle import Bundle, write_bundle
from edgesmith.sdk.cli.app import app
from edgesmith.sdk.cli.inspect import labels_text, preprocess_text, size_text
from edgesmith.sdk.errors import BundleError, BundleMissingError
from edgesmith.sdk.manifest import Preprocess

MakeBundle = Callable[..., Path]


def call(*args: object) -> Result:
    return CliRunner().invoke(app, ["inspect", *(str(a) for a in args)], standalone_mode=False)


def test_the_overview_has_what_a_person_asks_for(make_bundle: MakeBundle) -> None:
    path = make_bundle(parity={"boxes max_abs": 1.25e-5}, measured={"mAP": 28.321})
    done = call(path)
    assert done.exception is None
    lines = done.stdout.splitlines()
    facts = {line.split("  ")[0]: line.split("  ", 1)[1].strip() for line in lines if "  " in line}
    assert lines[0] == f"{path}: tiny, {size_text(path.stat().st_size)}"
    assert facts["task"] == "detect"
    assert facts["labels"] == "1: ball"
    assert facts["preprocess"].startswith("32 x 32 (H x W), letterbox centred, pad 114, may enlarge")
    assert facts["batch"] == "1 to 8, usually 4"
    assert facts["inputs"] == "images float32 [N, 3, 32, 32]"
    assert facts["outputs"] == "boxes float32 [N]; scores float32 [N]"
    assert facts["suppression"].startswith("host, score over 0.25 (0.001 in an evaluation), IoU 0.65")
    assert facts["measured"] == "mAP 28.32"
    assert facts["parity"] == "boxes max_abs 1.25e-05"
    assert facts["licence"] == "not stated"
    assert facts["float (chosen)"].split()[:2] == ["fp32", "model.float.onnx"]
    for name, member in Bundle.open(path).manifest.members.items():
        (line,) = [line for line in lines if line.startswith(f"{name}  ")]
        assert line.endswith(member.sha256[:12])
        assert size_text(member.size_bytes) in line
    assert "hashes" not in done.stdout


def test_rows_are_aligned(make_bundle: MakeBundle) -> None:
    lines = call(make_bundle()).stdout.splitlines()
    start = lines.index(next(line for line in lines if line.startswith("member ")))
    rows = [line for line in lines[start:] if line]
    assert len({len(row) for row in rows[1:]}) == 1
    assert rows[0].index("SHA-256") == rows[1].rindex(rows[1].split()[-1])
    assert not any(line != line.rstrip() for line in lines)


def test_json_has_the_manifest_and_the_members(make_bundle: MakeBundle) -> None:
    path = make_bundle("classify")
    answer = json.loads(call(path, "--json").stdout)
    manifest = Bundle.open(path).manifest
    assert set(answer) == {"bundle", "size_bytes", "checked", "manifest", "members"}
    assert answer["size_bytes"] == path.stat().st_size
    assert answer["checked"] is False
    assert msgspec.convert(answer["manifest"], type(manifest)) == manifest
    assert {m["name"]: (m["size_bytes"], m["sha256"]) for m in answer["members"]} == {
        name: (m.size_bytes, m.sha256) for name, m in manifest.members.items()
    }


def test_check_reads_every_member(make_bundle: MakeBundle) -> None:
    path = make_bundle()
    assert "all 3 hashes are right" in call(path, "--check").stdout
    assert json.loads(call(path, "--check", "--json").stdout)["checked"] is True
    whole = bytearray(path.read_bytes())
    bundle = Bundle.open(path)
    at = whole.index(bundle.read("golden/input-0.png")) + 20
    whole[at] ^= 1
    path.write_bytes(whole)
    assert call(path).exception is None  # the manifest is sound
    done = call(path, "--check")
    assert isinstance(done.exception, BundleError)
    assert "golden/input-0.png" in str(done.exception)


def test_what_is_no_bundle_ends_in_one_line(tmp_path: Path) -> None:
    assert isinstance(call(tmp_path / "none.edge").exception, BundleMissingError)
    wrong = tmp_path / "wrong.edge"
    wrong.write_bytes(b"hello")
    done = subprocess.run(
        [sys.executable, "-m", "edgesmith.sdk.cli", "inspect", str(wrong)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 3
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "not an edgesmith bundle" in done.stderr


def test_it_needs_no_opencv(make_bundle: MakeBundle) -> None:
    program = f"""
import sys
sys.modules["cv2"] = sys.modules["onnxruntime"] = None
from edgesmith.sdk.cli.app import main
main(["inspect", {str(make_bundle())!r}, "--check"])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "all 3 hashes are right" in done.stdout


def test_text_of_the_bundle_is_only_text(make_bundle: MakeBundle) -> None:
    path = make_bundle()
    bundle = Bundle.open(path)
    members = {name: bundle.read(name) for name in bundle.manifest.members}
    evil = "[red]ball[/red]\x1b[2J\r\n"
    write_bundle(path, msgspec.structs.replace(bundle.manifest, labels=(evil,), name=evil), members)
    text = call(path).stdout
    assert "1: [red]ball[/red]\\x1b[2J\\r\\n" in text
    assert "\x1b" not in text
    assert "\r" not in text


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"size": (416, 320), "anchor": "top-left", "color": "bgr", "scale": 1.0, "rounding": "floor"},
            "416 x 320 (H x W), letterbox to the top left, pad 114, may enlarge, sides rounded down, linear, "
            "BGR, value = pixel",
        ),
        (
            {"size": (224, 224), "fit": "resize-crop", "mean": (0.48, 0.45, 0.4), "std": (0.22, 0.2, 0.25)},
            "224 x 224 (H x W), shorter side to 256, centre crop, linear, RGB, "
            "value = (pixel / 255 - [0.48, 0.45, 0.4]) / [0.22, 0.2, 0.25]",
        ),
        (
            {"size": (32, 32), "fit": "stretch", "interpolation": "cubic", "antialias": True, "std": (2.0,)},
            "32 x 32 (H x W), stretched, cubic with antialias, RGB, value = pixel / 255 / 2",
        ),
        (
            {"size": None, "fit": "none", "color": "y", "scale": 0.3, "mean": (1.0,)},
            "any size, luma (Y of YCrCb), value = pixel x 0.3 - 1",
        ),
        (
            {"size": (8, 8), "upscale": False, "layout": "nhwc", "scale": 1 / 127.5},
            "8 x 8 (H x W), letterbox centred, pad 114, never enlarge, sides rounded, linear, RGB, "
            "uint8 NHWC, values as they are",
        ),
        (
            {"size": (8, 8), "fit": "stretch", "scale": 1 / 127.5, "mean": (1.0, 1.0, 1.0)},
            "8 x 8 (H x W), stretched, linear, RGB, value = pixel / 127.5 - 1",
        ),
    ],
)  # fmt: skip
def test_the_preprocess_in_words(options: dict[str, Any], text: str) -> None:
    assert preprocess_text(Preprocess(**options)) == text


def test_texts() -> None:
    assert labels_text(()) == "none"
    assert labels_text(tuple("abcdef")) == "6: a, b, c, d, e, f"
    assert labels_text(tuple("abcdefg")) == "7: a, b, c, d, e, f, ..."
    assert [size_text(n) for n in (0, 1023, 1024, 5 << 20)] == ["0 B", "1023 B", "1.0 KiB", "5.00 MiB"]


def test_help_reads_well() -> None:
    text = CliRunner().invoke(app, ["inspect", "--help"]).stdout
    assert "Show what BUNDLE holds" in text
    assert all(option in text for option in ("--check", "--json"))
    assert all(len(line) <= 80 for line in text.splitlines())
