"""The report as a page: complete, standing alone, and safe with any name."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from edgesmith.converters.parity import OutputParity, Parity
from edgesmith.converters.report.data import Report, Tensors
from edgesmith.converters.report.page import page
from edgesmith.converters.report.thumbnails import thumbnails
from edgesmith.sdk.manifest import Golden, Manifest, Nms, Preprocess, Provenance, TensorSpec, Variant

NASTY = "net<script>alert(1)</script>&\"'"
VOID = {"meta", "img", "path", "rect", "circle", "br"}


def report(*, images: int = 16, max_abs: float = 1e-5, task: str = "detect") -> Report:
    parity = Parity(
        images=images,
        outputs=(OutputParity(name="boxes", max_abs=max_abs, cosine=0.99999999, range=416.0, tolerance=0.4),),
        metric="box_agreement",
        agreement=0.995,
        decisions=109,
        needed=0.99,
    )
    manifest = Manifest(
        name=NASTY,
        task=task,  # type: ignore[arg-type]
        labels=("cat",),
        preprocess=Preprocess(size=(40, 60)),
        inputs=(TensorSpec(name="images", dtype="float32", shape=("batch", 3, 40, 60)),),
        outputs=(TensorSpec(name="boxes", dtype="float32", shape=("batch", 9, 4)),),
        nms=Nms(),
        chosen="float",
        variants={"float": Variant(member="m", precision="fp32", golden="g", tolerance={"boxes": 0.5})},
        golden=Golden(images=("golden/input-0.png",)),
        measured={"mAP": 28.317},
        provenance=Provenance(
            created="2026-01-02T03:04:05+00:00", edgesmith="0.1", source="factory a:b",
            source_sha256="0" * 64, versions={"torch": "9.9"},
            recipe={"task": "detect", "input": {"size": [40, 60], "upscale": False}},
        ),
    )  # fmt: skip
    return Report(
        manifest=manifest,
        head="yolox",
        notes=("took the entry 'ema'",),
        images="coco_val",
        exported=parity,
        simplified=parity,
        metric="mAP",
        measured_images=158,
        faults=("a.jpg: damaged",),
        operators={"Conv": 113, "Sigmoid": 20},
        weights=Tensors(count=2, values=904463),
        sizes_bytes={"model.float.onnx": 3776495},
        stages_s={"export": 1.25},
    )


class Balance(HTMLParser):
    """Checks that every element is closed in order, and gathers text and links."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [str(v) for k, v in attrs if k in ("src", "href", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass  # closes itself

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(html: str) -> Balance:
    found = Balance()
    found.feed(html)
    assert found.open == []
    return found


def test_the_page_has_the_figures_and_stands_alone() -> None:
    html = page(report(), [b"jpeg"])
    found = read(html)
    text = re.sub(r"\s+", " ", " ".join(found.text))
    for figure in (
        "28.32 %", "99.5 %", "1.00e-05", "4.00e-01", "109", "113", "904 k", "3.78 MB", "158 labelled images",
        "a.jpg: damaged", "40 x 60 (H x W)", "batch x 9 x 4", "torch 9.9", "input.size = [40, 60]",
        "input.upscale = false", "took the entry 'ema'", "16 images of coco_val",
    ):  # fmt: skip
        assert figure in text, figure
    assert all(link.startswith("data:image/jpeg;base64,") for link in found.links)
    assert "http" not in html
    assert "@import" not in html


def test_names_cannot_break_the_page() -> None:
    html = page(report(), [b""])
    assert "<script" not in html
    assert NASTY in "".join(read(html).text)


@pytest.mark.parametrize(
    ("max_abs", "verdict"), [(1e-5, "proven"), (0.5, "refused"), (float("inf"), "refused")]
)
def test_the_verdict_is_that_of_the_figures(max_abs: float, verdict: str) -> None:
    assert f'<span class="{verdict}">{verdict}</span>' in page(report(max_abs=max_abs), [b""])


def test_pseudo_images_are_marked() -> None:
    assert "the recipe names no real ones" in page(report(images=0), [b""])


def test_thumbnails_show_what_was_found() -> None:
    given = report().manifest
    picture = np.zeros((40, 60, 3), np.uint8)
    outputs = {
        "boxes": np.array([[[10.0, 10.0, 30.0, 30.0]]], np.float32),
        "scores": np.array([[[0.9]]], np.float32),
    }
    empty = {**outputs, "scores": np.zeros((1, 1, 1), np.float32)}
    drawn, plain = thumbnails([picture], outputs, given)[0], thumbnails([picture], empty, given)[0]
    assert drawn[:2] == plain[:2] == b"\xff\xd8"
    assert len(drawn) > len(plain)
