"""Every trained model in every number format through TensorRT's compiler: no layer silently in float."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgesmith.converters import Recipe, compiled, convert
from edgesmith.converters.compiled import CompiledGraph
from edgesmith.sdk.bundle import Bundle

pytest.importorskip("tensorrt_rtx_bindings", reason="no compiler: pip install 'edgesmith[trt-check]'")
MODELS = (
    "yolox_nano", "nanodet_m", "fastestdet", "mobilenet_v1_025", "efficientnet_lite0", "resnet20_cifar",
    "resnet56_cifar",
)  # fmt: skip
IMAGES = 8  # placement does not depend on how well the ranges are known


class Compiled(msgspec.Struct, frozen=True):
    """What of ``report.json`` is looked at here."""

    compiled: tuple[CompiledGraph, ...]


def few_images(assets: Path, name: str, folder: Path) -> str:
    """A list of a few calibration images, or an ``.npz`` of them."""
    if "cifar" in name:
        with np.load(assets / "cifar10" / "train.npz") as data:
            np.savez(folder / "few.npz", images=data["images"][:IMAGES], labels=data["labels"][:IMAGES])
        return str(folder / "few.npz")
    source = assets / (
        "coco_calib" if name in ("yolox_nano", "nanodet_m", "fastestdet") else "imagenet_calib"
    )
    (folder / "few.txt").write_text("".join(f"{p}\n" for p in sorted(source.glob("*.jpg"))[:IMAGES]))
    return str(folder / "few.txt")


@pytest.mark.assets
@pytest.mark.timeout(1500)  # conversions of a large network beside other work
@pytest.mark.slow  # a minute a model: continuous integration runs this file by itself
@pytest.mark.parametrize("name", MODELS)
def test_every_format_compiles_and_runs_where_it_was_meant(
    name: str,
    assets: Path,
    asset_recipe: Callable[..., Recipe],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compiled, "installed", lambda: True)
    monkeypatch.setattr("edgesmith.converters.report.against_float.LATENCY_S", 0.05)
    images = few_images(assets, name, tmp_path)
    found: dict[str, CompiledGraph] = {}
    for mode, rest in (("int8", "fp32"), ("auto", "fp16")):
        recipe = asset_recipe(
            name,
            data__calibration=images,
            data__evaluation=None,
            precision={
                "mode": mode,
                "rest": rest,
                "max_drop": 100.0,
                # All that the automatic search would put in front of a rounding, in one way.
                "repairs": ["factor", "offset", "bias"],
            },
        )
        convert(recipe, tmp_path / f"{mode}.edge")
        report = Bundle.open(tmp_path / f"{mode}.edge").read("report.json")
        found |= {g.variant: g for g in msgspec.json.decode(report, type=Compiled).compiled}
    assert set(found) >= {"float", "fp16", "int8", "auto"}
    assert {g.outcome for g in found.values()} == {"compiled"}
    assert [layer for g in found.values() for layer in g.float_instead] == []
    assert found["float"].meant == found["fp16"].meant == 0
    assert found["int8"].meant == found["auto"].meant > 15
