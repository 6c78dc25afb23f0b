"""The section on training stages, from figures worked out by hand."""

from __future__ import annotations

from edgesmith.converters.report.charts import loss_curve
from edgesmith.converters.report.compression import (
    CompressionReport,
    Figures,
    KeptWhole,
    SparseLayer,
    StageReport,
    Width,
    compression_of,
)
from edgesmith.converters.report.compression_page import compression_section
from edgesmith.converters.training.curves import Curves, Epoch

FIGURES = Figures(
    metric="top1", accuracy=90.0, macs=2_000_000, parameters=500_000, latency_ms=4.0, size_bytes=2_000_000
)
CURVES = Curves(
    epochs=tuple(
        Epoch(loss=loss, parts={}, rate=0.1, metric=metric, seconds=1.0)
        for loss, metric in ((1.0, 50.0), (0.5, 80.0), (0.4, 70.0))
    ),
    best=1, metric="top-1", images=100, held_out=10, steps=5, seconds=3.0, resumed=True,
)  # fmt: skip
STAGES = (
    StageReport(name="trained", note="as brought", figures=FIGURES, seconds=0.0),
    StageReport(
        name="prune",
        note="half <of it>",
        figures=Figures(
            metric="top1",
            accuracy=89.0,
            macs=1_000_000,
            parameters=250_000,
            latency_ms=2.0,
            size_bytes=1_000_000,
        ),
        seconds=5.0,
        cached=True,
        curves=(CURVES,),
        widths=(Width(layer="a.conv", before=16, after=8), Width(layer="b", before=4, after=4)),
        whole=(KeptWhole(layer="head", channels=10, why="it makes the outputs"),),
        sparse=(SparseLayer(layer="a.conv", kept=0.8, unpermuted=0.7),),
    ),
    StageReport(name="qat", note="learned", figures=None, seconds=1.0),
)


def test_every_stage_has_its_line() -> None:
    page = compression_section(CompressionReport(stages=STAGES, processor="A & B"))
    assert "1 M, 2.00x less" in page
    assert "0.25 M, 2.00x less" in page
    assert "2 ms, 2.00x less" in page
    assert "half &lt;of it&gt; (from an earlier run)" in page
    assert "A &amp; B" in page
    assert "1 layers lost channels" in page
    assert "<td>16</td><td>8</td>" in page
    assert "it makes the outputs" in page
    assert "80.0 % of the weights' size is kept on the mean (70.0 % before" in page
    assert "epoch 2 was kept, by top-1 on 10 images" in page
    assert "taken up again after a stop" in page
    assert "trained for INT8" in page


def test_the_curve_falls_as_the_loss_does() -> None:
    chart = loss_curve([1.0, 0.5, 0.25], [None, 60.0, 70.0], "top-1")
    heights = [float(part.split('"')[0]) for part in chart.split('cy="')[1:]]
    assert heights[0] < heights[1] < heights[2]  # down the page
    assert "epoch 2: loss 0.5, top-1 60" in chart
    assert loss_curve([], [], "top-1") == ""


def test_no_stages_no_report() -> None:
    assert compression_of([]) is None
    found = compression_of(STAGES)
    assert found is not None
    assert found.processor
