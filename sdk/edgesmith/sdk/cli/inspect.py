"""``edgesmith inspect``: what a bundle holds."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from edgesmith.sdk.bundle import Bundle
from edgesmith.sdk.cli.output import emit_json, printable, table
from edgesmith.sdk.manifest import Manifest, Preprocess, TensorSpec

_LABELS = 6  # how many class names are shown


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--check", is_flag=True, help="Read every member and check its hash.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def inspect(bundle: Path, check: bool, as_json: bool) -> int:
    """Show what BUNDLE holds: its task, input, graphs, figures and members.

    Opening checks the archive and its manifest; --check reads every member as well.

    With --json: bundle (the path), size_bytes, checked (whether the hashes were), manifest (as it
    stands in the bundle) and members, a list of name, size_bytes and sha256.
    """
    opened = Bundle.open(bundle)
    if check:
        opened.check()
    manifest = opened.manifest
    if as_json:
        members = [{"name": n, **msgspec.to_builtins(m)} for n, m in manifest.members.items()]
        emit_json(
            {
                "bundle": str(bundle),
                "size_bytes": bundle.stat().st_size,
                "checked": check,
                "manifest": msgspec.to_builtins(manifest),
                "members": members,
            }
        )
        return 0
    _show(manifest, bundle, check)
    return 0


def _show(manifest: Manifest, path: Path, checked: bool) -> None:
    click.echo(f"{path}: {printable(manifest.name)}, {size_text(path.stat().st_size)}")
    table("", ("", ""), [(k, v) for k, v in overview(manifest) if v], header=False)
    variants = [
        (
            name + (" (chosen)" if name == manifest.chosen else ""),
            v.precision,
            v.member,
            figures_text(v.measured) or "-",
            figures_text(v.tolerance),
        )
        for name, v in manifest.variants.items()
    ]
    click.echo()
    table("", ("variant", "precision", "graph", "measured", "tolerance"), variants)
    click.echo()
    members = [(n, size_text(m.size_bytes), m.sha256[:12]) for n, m in manifest.members.items()]
    table("", ("member", "size", "SHA-256"), members, right=("size",))
    if checked:
        click.echo(f"\nall {len(members)} hashes are right")


def overview(manifest: Manifest) -> list[tuple[str, str]]:
    """Label and text of each fact, for people; an empty text has nothing to say."""
    provenance, nms, batch = manifest.provenance, manifest.nms, manifest.batch
    suppression = (
        f"{nms.where}, score over {nms.score:g} ({nms.evaluation_score:g} in an evaluation), "
        f"IoU {nms.iou:g}, {'one class' if nms.classes == 'best' else 'every class'} a box, "
        f"{nms.candidates:,} candidates, at most {nms.max_detections}"
        if nms
        else ""
    )
    return [
        ("task", manifest.task),
        ("labels", labels_text(manifest.labels)),
        ("preprocess", preprocess_text(manifest.preprocess)),
        ("batch", str(batch.max) if batch.fixed else f"{batch.min} to {batch.max}, usually {batch.opt}"),
        ("inputs", tensors_text(manifest.inputs)),
        ("outputs", tensors_text(manifest.outputs)),
        ("suppression", suppression),
        ("precision", manifest.precision),
        ("target", manifest.target),
        ("measured", figures_text(manifest.measured)),
        ("parity", figures_text(manifest.parity)),
        ("licence", provenance.license or "not stated"),
        ("made from", f"{provenance.source} (SHA-256 {provenance.source_sha256[:12] or 'not known'})"),
        ("made", f"{provenance.created} by edgesmith {provenance.edgesmith}, in {provenance.seconds:.0f} s"),
        ("with", ", ".join(f"{name} {version}" for name, version in provenance.versions.items())),
    ]


def preprocess_text(p: Preprocess) -> str:
    """The preprocess in words."""
    size = f"{p.size[0]} x {p.size[1]} (H x W)" if p.size else "any size"
    parts = [size]
    if p.fit == "letterbox":
        where = "to the top left" if p.anchor == "top-left" else "centred"
        parts.append(f"letterbox {where}, pad {p.pad}, {'may' if p.upscale else 'never'} enlarge")
        parts.append(f"sides {'rounded down' if p.rounding == 'floor' else 'rounded'}")
    elif p.fit == "stretch":
        parts.append("stretched")
    elif p.fit == "resize-crop":
        parts.append(f"shorter side to {p.crop_side}, centre crop")
    if p.fit != "none":
        parts.append(p.interpolation + (" with antialias" if p.antialias else ""))
    parts.append({"rgb": "RGB", "bgr": "BGR", "y": "luma (Y of YCrCb)"}[p.color])
    if p.layout == "nhwc":
        parts.append("uint8 NHWC, values as they are")
    else:
        parts.append(f"value = {_formula(p)}")
    return ", ".join(parts)


def _formula(p: Preprocess) -> str:
    divisor = f"{1 / p.scale:.12g}"
    # A scale is mostly one over a short number; where it is not, it is shown as it is.
    text = f"pixel / {divisor}" if len(divisor) <= 6 else f"pixel x {p.scale:g}"
    text = "pixel" if p.scale == 1 else text
    shifted, scaled = any(p.mean), any(v != 1 for v in p.std)
    if shifted:
        text += f" - {_per_channel(p.mean)}"
    if scaled:
        text = f"({text})" if shifted else text
        text += f" / {_per_channel(p.std)}"
    return text


def _per_channel(values: tuple[float, ...]) -> str:
    texts = [f"{v:g}" for v in values]
    return texts[0] if len(set(texts)) == 1 else f"[{', '.join(texts)}]"


def labels_text(labels: tuple[str, ...]) -> str:
    """The first class names and how many there are."""
    if not labels:
        return "none"
    more = ", ..." if len(labels) > _LABELS else ""
    return f"{len(labels)}: {', '.join(labels[:_LABELS])}{more}"


def tensors_text(tensors: tuple[TensorSpec, ...]) -> str:
    """Name, type and shape of each tensor."""
    return "; ".join(f"{t.name} {t.dtype} [{', '.join(str(n) for n in t.shape)}]" for t in tensors)


def figures_text(figures: dict[str, float]) -> str:
    """Named figures in one line."""
    return ", ".join(f"{name} {value:.4g}" for name, value in figures.items())


def size_text(size: int) -> str:
    """A number of bytes for people."""
    if size < 1024:
        return f"{size} B"
    return f"{size / 1024:.1f} KiB" if size < 1 << 20 else f"{size / (1 << 20):.2f} MiB"
