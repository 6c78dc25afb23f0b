"""``edgesmith eval``: accuracy on labelled images."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click
import msgspec

from edgesmith.sdk.cli.output import console, emit_json, progress, table
from edgesmith.sdk.evaluate import EvaluationData
from edgesmith.sdk.evaluate import evaluate as run_evaluation
from edgesmith.sdk.metrics import shown
from edgesmith.sdk.models import load_model


@click.command("eval")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--data", required=True, type=click.Path(path_type=Path),
    help="Folder of pictures (with instances.json, labels.csv or class folders in it), or an .npz.",
)  # fmt: skip
@click.option("--annotations", type=click.Path(path_type=Path), help="COCO JSON of a detector's pictures.")
@click.option("--labels", type=click.Path(path_type=Path), help="CSV with the columns file,class.")
@click.option(
    "--masks",
    type=click.Path(path_type=Path),
    help="A segmenter's masks, grey PNG; default: among the pictures.",
)
@click.option("--mask-values", metavar="0,255", help="Pixel value of each class in a mask, in class order.")
@click.option(
    "--downscale",
    type=click.IntRange(min=1),
    help="PSNR of pictures made smaller by this factor and enlarged.",
)
@click.option("--limit", type=click.IntRange(min=1), help="The first N pictures only.")
@click.option("--backend", default="auto", show_default=True, help="auto, cuda or cpu.")
@click.option("--variant", help="A graph of the bundle by name, in place of the chosen one.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads of one run.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def evaluate(
    bundle: Path,
    data: Path,
    annotations: Path | None,
    labels: Path | None,
    masks: Path | None,
    mask_values: str | None,
    downscale: int | None,
    limit: int | None,
    backend: str,
    variant: str | None,
    threads: int | None,
    as_json: bool,
) -> int:
    """Measure BUNDLE's accuracy.

    Top-1 and top-5 of a classifier, COCO mAP of a detector (of its masks too, where pictures and model have
    them), mean IoU of a segmenter, PSNR of an image enhancer.

    The exit status is 1 when pictures had to be left out because they could not be read.
    """
    found = EvaluationData.found(data, limit=limit)
    found = msgspec.structs.replace(
        found,
        annotations=annotations or found.annotations,
        labels=labels or found.labels,
        masks=masks,
        mask_values=None if mask_values is None else _numbers(mask_values),
        metric=None if downscale is None else "psnr",
        downscale=downscale,
    )
    with (
        load_model(bundle, backend=backend, variant=variant, threads=threads) as model,
        progress("images") as bar,
    ):
        started = time.monotonic()
        task = bar.add_task("evaluating", total=None, rate=0.0)

        def tell(done: int, total: int) -> None:
            rate = done / max(time.monotonic() - started, 1e-9)
            bar.update(task, completed=done, total=total, rate=rate)

        result = run_evaluation(model, found, progress=tell)
    for fault in result.faults:
        console.print(f"left out: {fault}", style="yellow", markup=False)
    if as_json:
        emit_json(msgspec.to_builtins(result))
    else:
        rows = [(name, shown(name, value)) for name, value in result.values.items()]
        where = (
            f"{result.images} images, variant {result.variant} on {result.backend}, {result.seconds:.1f} s"
        )
        table(f"{bundle}: {where}", ("metric", "value"), rows)
    sys.stdout.flush()
    return 1 if result.faults else 0


def _numbers(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise click.BadParameter(f"{text!r}: whole numbers, as 0,255", param_hint="--mask-values")
    return tuple(int(part) for part in parts)
