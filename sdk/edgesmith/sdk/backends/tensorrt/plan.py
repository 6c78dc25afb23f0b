"""A plan (a serialized engine): what it is asked for, its key, its record, and its header.

The header is read without TensorRT, so that a plan of another version is refused with a sentence of ours
before the library sees it. Offsets (checked against TensorRT's own sample code and plans of TensorRT-RTX
1.7):

    bytes 0..3    ``ftrt`` (TensorRT) or ``vtrt`` (TensorRT-RTX)
    bytes 16..23  TensorRT-RTX only: size of the whole plan, little-endian
    bytes 24..27  version of the builder: major, minor, patch, build (the last one modulo 256)
"""

from __future__ import annotations

import hashlib
import re
from typing import Annotated, Literal, NamedTuple

import msgspec

from edgesmith.sdk.backends.tensorrt.dla import Coverage
from edgesmith.sdk.backends.tensorrt.target import Target
from edgesmith.sdk.bundle import Bundle
from edgesmith.sdk.errors import BuildError, IncompatibleEngineError
from edgesmith.sdk.manifest import Batch

MAGICS = {b"ftrt": "tensorrt", b"vtrt": "tensorrt-rtx"}
HEADER_BYTES = 28
# Raised when the builder is told something else for the same options: older plans are then built anew.
RECIPE = 1
# The old road to the DLA (TensorRT <= 10.7): members of the bundle.
DLA_GRAPH, DLA_CACHE = "model.dla.onnx", "calibration.cache"
Size = tuple[Annotated[int, msgspec.Meta(ge=1)], Annotated[int, msgspec.Meta(ge=1)]]


class BuildOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How an engine is built. Each field but ``timeout_s`` is a part of the engine's key.

    Attributes:
        workspace_bytes: the most scratch memory that a layer's tactic may use; None is 1 GiB. Less is taken,
            with a warning, where the device has not that much free.
        level: the builder's optimization level 0..5; None leaves it to TensorRT (3).
        version_compatible: the plan also loads on later versions of the same major one; it carries a lean
            runtime (tens of MB), and some fast kernels are not available to it.
        hardware_compatible: the plan also runs on later GPUs (Ampere or newer); slower, as only what all of
            them have is used. Not for Jetson.
        sparse: use 2:4 sparse kernels where the weights are pruned so.
        dla: number of the DLA core, None for the GPU. A DLA takes one batch, the bundle's usual one.
        size: ``(H, W)`` of the input for a graph that takes any size.
        compute_capability: build for this GPU (``8.6``) in place of the one that is here: TensorRT-RTX only.
        timeout_s: seconds after which a build is given up.
    """

    workspace_bytes: Annotated[int, msgspec.Meta(ge=1)] | None = None
    level: Annotated[int, msgspec.Meta(ge=0, le=5)] | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    sparse: bool = False
    dla: Annotated[int, msgspec.Meta(ge=0)] | None = None
    size: Size | None = None
    compute_capability: str | None = None
    timeout_s: float = 3600.0

    def in_key(self) -> dict[str, object]:
        """The fields that change the plan and are not at their default, by name."""
        plain = msgspec.to_builtins(self)
        usual = msgspec.to_builtins(BuildOptions())
        return {k: v for k, v in plain.items() if k != "timeout_s" and v != usual[k]}


class EngineKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What decides whether an engine can be used again: the driver is not in it, it is self-tested then."""

    graph_sha256: str
    library: str
    tensorrt: str
    gpu: str
    compute_capability: str
    l4t: str
    batch: tuple[int, int, int]
    options: dict[str, object]
    recipe: int = RECIPE

    @property
    def digest(self) -> str:
        """The key as a name for files: 32 hexadecimal digits."""
        return hashlib.sha256(msgspec.json.encode(self, order="sorted")).hexdigest()[:32]

    def differences(self, other: EngineKey) -> list[str]:
        """In words what of another key is not as here."""
        words = {
            "graph_sha256": "another model",
            "tensorrt": "another TensorRT version",
            "gpu": "another GPU",
            "compute_capability": "another compute capability",
            "l4t": "another L4T release",
            "options": "other build options",
            "batch": "another batch range",
            "recipe": "another way of building",
            "library": "another library",
        }
        found = []
        for name, text in words.items():
            mine, its = getattr(self, name), getattr(other, name)
            if mine == its:
                continue
            shown = name not in ("graph_sha256", "options")
            found.append(f"{text} ({its or 'none'}, not {mine or 'none'})" if shown else text)
        return found


class EngineRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What stands beside a plan.

    Attributes:
        key: what it was built from and for.
        bundle: SHA-256 of the bundle's content, see :func:`identity`.
        variant: the bundle's graph.
        plan_sha256, plan_bytes: hash and size of the plan.
        created: date, ISO 8601.
        seconds: how long the build took.
        workspace_bytes: what the builder was given, less than asked for where memory was short.
        notes: warnings of the build, for people.
        coverage: what a DLA takes, where one was asked for.
    """

    key: EngineKey
    bundle: str
    variant: str
    plan_sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    plan_bytes: Annotated[int, msgspec.Meta(ge=0)]
    created: str
    seconds: float
    workspace_bytes: int
    notes: tuple[str, ...] = ()
    coverage: Coverage | None = None


class Engine(NamedTuple):
    """A plan that was checked against its record, to be deserialised."""

    plan: bytes
    record: EngineRecord


class Header(NamedTuple):
    """The head of a plan: ``library`` that made it, and four numbers of its version."""

    library: Literal["tensorrt", "tensorrt-rtx"]
    version: tuple[int, int, int, int]


def read_header(plan: bytes) -> Header:
    """Which library and version made the plan.

    Raises:
        IncompatibleEngineError: it is no plan, or was cut off.
    """
    library = MAGICS.get(bytes(plan[:4]))
    if library is None:
        if len(plan) > 8 and plan[4:5] == b"{":
            raise IncompatibleEngineError(
                "not a TensorRT plan: it begins with JSON, as `ultralytics` writes it"
            )
        raise IncompatibleEngineError("not a TensorRT plan: it begins with none of the known marks")
    if len(plan) < HEADER_BYTES:
        raise IncompatibleEngineError(f"the plan is cut off: {len(plan)} bytes")
    if library == "tensorrt-rtx":
        stated = int.from_bytes(plan[16:24], "little")
        if stated > len(plan):
            raise IncompatibleEngineError(f"the plan is cut off: {len(plan):,} of {stated:,} bytes")
        return Header("tensorrt-rtx", (plan[24], plan[25], plan[26], plan[27]))
    return Header("tensorrt", (plan[24], plan[25], plan[26], plan[27]))


def check_header(plan: bytes, target: Target, *, version_compatible: bool = False) -> None:
    """Refuse a plan that the target's library cannot load, before the library sees it.

    A version-compatible plan loads in the same major version, of the same age or newer.

    Raises:
        IncompatibleEngineError: it is no plan, or of another library or version; the message says which.
    """
    header = read_header(plan)
    if header.library != target.library:
        raise IncompatibleEngineError(f"the plan is one of {header.library}, and {target.library} runs here")
    wanted = tuple(int(n) for n in re.findall(r"\d+", target.tensorrt)[:3])
    made = header.version[: len(wanted)]
    if version_compatible and made[:1] == wanted[:1] and made <= wanted:
        return
    if made != wanted:
        shown = ".".join(str(n) for n in made)
        raise IncompatibleEngineError(
            f"the plan was built by {header.library} {shown}, not {target.tensorrt}"
        )


def _batch(batch: Batch, options: BuildOptions) -> tuple[int, int, int]:
    """A DLA takes one batch: the usual one. The models fill up what is missing and split what is more."""
    return (batch.min, batch.opt, batch.max) if options.dla is None else (batch.opt,) * 3


def identity(bundle: Bundle) -> str:
    """SHA-256 of what a bundle holds, wherever the file lies and whatever it is called."""
    content = "\n".join(f"{name} {member.sha256}" for name, member in sorted(bundle.manifest.members.items()))
    return hashlib.sha256(content.encode()).hexdigest()


def key_of(
    bundle: Bundle, variant: str, target: Target, options: BuildOptions, *, calibrated: bool = False
) -> EngineKey:
    """The key of one variant's engine.

    ``calibrated``: it is built from the bundle's stripped graph and calibration cache (DLA, TensorRT <=
    10.7).

    Raises:
        BuildError: the bundle lacks what is needed for that.
    """
    manifest = bundle.manifest
    names = [DLA_GRAPH, DLA_CACHE] if calibrated else [manifest.variants[variant].member]
    for name in names:
        if name not in manifest.members:
            raise BuildError(
                f"{bundle.path}: the bundle has no {name}, which the DLA of TensorRT {target.tensorrt} "
                "needs: "
                "convert it again with target.dla, or build without --dla"
            )
    hashes = "".join(manifest.members[name].sha256 for name in names)
    return EngineKey(
        graph_sha256=hashes if len(names) == 1 else hashlib.sha256(hashes.encode()).hexdigest(),
        library=target.library,
        tensorrt=target.tensorrt,
        gpu=target.gpu,
        compute_capability=options.compute_capability or target.compute_capability,
        l4t=target.l4t,
        batch=_batch(manifest.batch, options),
        options=options.in_key(),
    )
