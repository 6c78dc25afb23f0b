"""``edgesmith devices``: the table, one device alone, and the object for machines."""

from __future__ import annotations

import json

from click.testing import CliRunner, Result

from edgesmith.device_profiles import list_profiles, load_profile
from edgesmith.sdk.cli.app import app
from edgesmith.sdk.errors import DeviceProfileError


def call(*args: str) -> Result:
    return CliRunner().invoke(app, ["devices", *args], standalone_mode=False)


def test_the_table_has_a_row_for_each_mode() -> None:
    done = call()
    assert done.exception is None
    lines = done.stdout.splitlines()
    rows = lines[1 : lines.index("")]
    assert [row.split()[0] for row in rows] == [
        name for name in list_profiles() for _ in load_profile(name).modes or ("none",)
    ]
    (row,) = [row for row in rows if row.startswith("orin-nx-8gb") and "super" in row]
    # The clock of that mode is unverified, and so is all that follows from it.
    assert row.split() == [
        "orin-nx-8gb", "super", "1173?", "102.4", "38.4?", "19.2?", "10?-40", "8", "1", "10.3.0", "10.16.2",
    ]  # fmt: skip
    nano = next(row for row in rows if row.startswith("jetson-nano"))
    assert nano.split()[-1] == "no"
    assert any(line.startswith("jetson-nano: JetPack for the Nano ends at TensorRT 8.2") for line in lines)


def test_columns_are_aligned() -> None:
    lines = call().stdout.splitlines()
    rows = lines[: lines.index("")]
    for column in ("MHz", "GB/s", "INT8", "RAM"):  # numbers end where their heading ends
        end = rows[0].index(column) + len(column)
        assert all(row[end - 1] != " " and row[end : end + 2].strip() == "" for row in rows), column
    start = rows[0].index("TensorRT")
    assert all(row[start - 2 : start] == "  " and row[start] != " " for row in rows)


def test_one_device_alone_shows_its_sources() -> None:
    text = call("orin-nano-8gb").stdout
    profile = load_profile("orin-nano-8gb")
    assert text.startswith("orin-nano-8gb: Jetson Orin Nano 8 GB\n")
    for short, long in profile.sources.items():
        assert f"\n{short} " in text
        assert long in text
    assert "super: watts max" in text
    assert "6.1 to 6.2.2" in text
    assert "sources" not in call("generic").stdout


def test_an_unsupported_device_says_why() -> None:
    text = " ".join(call("agx-xavier").stdout.split())
    assert "not supported JetPack for Xavier ends at TensorRT 8.5" in text


def test_json_has_everything() -> None:
    answer = json.loads(call("--json").stdout)
    assert [p["name"] for p in answer["profiles"]] == list(list_profiles())
    (nano,) = json.loads(call("orin-nano-8gb", "--json").stdout)["profiles"]
    assert nano["modes"][1]["stated"] == {
        "value": 67, "source": "seeed-super", "status": "documented", "kind": "int8-sparse", "covers": "gpu",
    }  # fmt: skip
    assert nano["modes"][1]["stated"]["source"] in nano["sources"]


def test_an_unknown_device_is_said() -> None:
    done = call("orin-nano-16gb")
    assert isinstance(done.exception, DeviceProfileError)
    assert "did you mean orin-nano-" in str(done.exception)


def test_help_reads_well() -> None:
    text = CliRunner().invoke(app, ["devices", "--help"]).stdout
    assert "[NAME]" in text
    assert "With --json: profiles" in text
    assert all(len(line) <= 80 for line in text.splitlines())
