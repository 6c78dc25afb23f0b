"""``edgesmith estimate``: the page for people, the object for machines, and what is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from edgesmith.sdk.board.roofline import ASSUMPTIONS
from edgesmith.sdk.cli.app import app
from edgesmith.sdk.errors import BundleError, ConfigError, DeviceProfileError

MakeBundle = Callable[..., Path]
# 3 channels go through a 1 x 1 convolution; the logits are the means of the planes.
GRAPH = """
<ir_version: 9, opset_import: ["" : 20]>
agraph (float[N, 3, 32, 32] images) => (float[N, 3] logits)
<int64[2] plane = {2, 3}, float[3, 3, 1, 1] w = {1, 0, 0, 0, 1, 0, 0, 0, 1}, float[N, 3, 32, 32] y>
{
  y = Conv (images, w)
  logits = ReduceMean <keepdims = 0> (y, plane)
}
"""


def call(*args: object) -> Result:
    return CliRunner().invoke(app, ["estimate", *map(str, args)], standalone_mode=False)


@pytest.fixture
def bundle(make_bundle: MakeBundle) -> Path:
    return make_bundle("classify", text=GRAPH)  # batches of 1 to 8, usually 4


def test_the_page(bundle: Path) -> None:
    done = call(bundle, "--device", "orin-nano-8gb", "--mode", "super")
    assert done.exception is None
    text = done.stdout
    assert text.startswith("Estimate (a roofline, nothing measured): ")
    assert "orin-nano-8gb, mode super, 102 GB/s, 8 GB; batch 4: 0.0 M multiply-accumulates" in text
    assert [line.split()[0] for line in text.splitlines() if line.startswith(("FP32", "FP16", "INT8 "))] == [
        "FP32", "FP16", "INT8",
    ]  # fmt: skip
    assert re.search(r"it brings nothing to 1 layer, \d+ % of the FP16 time: few channels\n", text)
    assert "few channels: 3 in, 3 out" in text
    assert "The 2 slowest of 2 layers (FP16):" in text
    assert all(line in text for line in ASSUMPTIONS)
    assert "slowest" not in call(bundle, "--device", "orin-nano-8gb", "--layers", 0).stdout


def test_the_object(bundle: Path) -> None:
    found = json.loads(call(bundle, "--device", "orin-nano-8gb", "--json").stdout)
    assert (found["bundle"], found["variant"], found["estimate"]) == (str(bundle), "float", True)
    assert found["macs"] == 4 * 3 * 32 * 32 * 3
    assert list(found["totals"]) == ["fp32", "fp16", "int8"]
    assert [layer["operators"] for layer in found["layers"]] == [["Conv"], ["ReduceMean"]]
    assert found["layers"][0]["costs"]["fp16"]["bytes_read"] == 4 * 4 * 3 * 32 * 32 + 2 * 9
    assert found["assumptions"] == list(ASSUMPTIONS)


def test_the_help_names_every_key(bundle: Path) -> None:
    found = json.loads(call(bundle, "--device", "orin-nano-8gb", "--json").stdout)
    layer = found["layers"][0]
    words = set(re.findall(r"\w+", CliRunner().invoke(app, ["estimate", "--help"]).stdout))
    keys = {*found, *layer, *layer["costs"]["fp16"], *found["totals"]["fp16"]}
    assert keys <= words


def test_refusals(bundle: Path, make_bundle: MakeBundle) -> None:
    for args, kind, why in (
        (("--device", "generic"), DeviceProfileError, "generic: no estimate, the profile has no figures"),
        (("--device", "orin-nano"), DeviceProfileError, "did you mean"),
        (("--device", "orin-nano-8gb", "--mode", "turbo"), DeviceProfileError, "it has base, super"),
        (("--device", "orin-nano-8gb", "--variant", "int8"), ConfigError, "no variant 'int8'; it has float"),
    ):
        error = call(bundle, *args).exception
        assert type(error) is kind
        assert why in str(error)
    bare = make_bundle("classify", name="bare.edge", text=GRAPH.replace(", float[N, 3, 32, 32] y", ""))
    error = call(bare, "--device", "orin-nano-8gb").exception
    assert type(error) is BundleError
    assert "model.float.onnx does not state the shape of tensor 'y'; convert the model again" in str(error)
