"""The device and the faults of a fake TensorRT, and the plan that it writes."""

from __future__ import annotations

import hashlib
import zlib
from typing import Any
from urllib.parse import urlencode

import msgspec

from edgesmith.sdk.onnx_reader import Outline, read_outline

MAKER = "edgesmith.sdk.testing.fake_tensorrt:make"
_HEAD = 32
_RTX_MAJOR = 1  # TensorRT-RTX counts its versions on its own


class Simulated(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a fake is to be. A graph is named in the faults by its number format (``int8``, ``fp16``,
    ``fp32``) or by the first digits of its SHA-256.

    Attributes:
        version: of TensorRT; one below 2 makes a TensorRT-RTX.
        gpu, compute_capability, l4t, driver: the device.
        num_DLA_cores: DLA cores that TensorRT sees.
        build_s: seconds that a build takes.
        build_fault: ``refused`` (an error in the log), ``memory`` (no GPU memory), ``killed`` (as the kernel
            does when memory runs out), ``hang``, ``empty`` (a plan of no bytes).
        wrong: graphs that this version computes wrongly, whoever built the plan.
        wrong_plans: graphs whose plans come out wrong when this fake builds them.
        latency_s: seconds of one run by graph.
        throttle_after: runs after which every run takes half as long again; None is never.
    """

    version: str = "10.3.0"
    gpu: str = "Orin (nvgpu)"
    compute_capability: tuple[int, int] = (8, 7)
    l4t: str = "36.4.3"
    driver: str = "12.6"
    num_DLA_cores: int = 0
    build_s: float = 0.0
    build_fault: str = ""
    wrong: tuple[str, ...] = ()
    wrong_plans: tuple[str, ...] = ()
    latency_s: dict[str, float] = {}
    throttle_after: int | None = None

    @property
    def rtx(self) -> bool:
        """True for a TensorRT-RTX."""
        return self.numbers[0] <= _RTX_MAJOR

    @property
    def numbers(self) -> tuple[int, ...]:
        """The version as numbers, four of them."""
        numbers = [int(n) for n in self.version.split(".")]
        return (*numbers, 0, 0, 0, 0)[:4]

    @property
    def specification(self) -> str:
        """How another process makes the same fake: what ``EDGESMITH_TENSORRT`` takes."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        usual = msgspec.to_builtins(Simulated())
        query = {
            name: value if isinstance(value, str) else msgspec.json.encode(value).decode()
            for name, value in plain.items()
            if value != usual[name] or name == "version"
        }
        return f"{MAKER}?{urlencode(query)}"


def simulated_of(settings: dict[str, Any]) -> Simulated:
    """The settings as they are, or as text from a specification.

    Raises:
        TypeError: there is no such setting, or it has the wrong type.
    """
    types = {field.name: field.type for field in msgspec.structs.fields(Simulated)}
    text = {name for name, value in settings.items() if isinstance(value, str)}
    coded = {name for name in text if types.get(name, str) is not str}
    plain = {name: msgspec.json.decode(v) if name in coded else v for name, v in settings.items()}
    try:
        return msgspec.convert(plain, Simulated)
    except msgspec.ValidationError as error:
        raise TypeError(f"no such fake TensorRT: {error}") from error


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What a fake engine knows of itself; ``profiles`` has (min, opt, max) by input, for each profile."""

    graph: bytes
    numbers: tuple[int, ...]
    compute_capability: tuple[int, int]
    version_compatible: bool = False
    hardware_compatible: bool = False
    wrong: bool = False
    dla: int | None = None
    profiles: tuple[dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]], ...] = ()
    layers: tuple[str, ...] = ()


def write_plan(plan: Plan, rtx: bool) -> bytes:
    """Bytes with the header layout of real plans, and a checksum behind it."""
    body = msgspec.msgpack.encode(plan)
    version = bytes(n % 256 for n in plan.numbers[:4])
    mark, fill = (b"vtrt", (2).to_bytes(8, "little")) if rtx else (b"ftrt", bytes(8))
    size = (_HEAD + len(body)).to_bytes(8, "little")
    return mark + bytes(4) + fill + size + version + zlib.crc32(body).to_bytes(4, "little") + body


def read_plan(data: bytes, rtx: bool) -> Plan:
    """The plan in the bytes.

    Raises:
        ValueError: cut off, changed, or of another kind.
    """
    if data[:4] != (b"vtrt" if rtx else b"ftrt") or int.from_bytes(data[16:24], "little") != len(data):
        raise ValueError("Serialization assertion stdVersionRead == kSERIALIZATION_VERSION failed")
    if zlib.crc32(data[_HEAD:]) != int.from_bytes(data[28:32], "little"):
        raise ValueError("Serialization assertion magicTagRead == kMAGIC_TAG failed.")
    return msgspec.msgpack.decode(data[_HEAD:], type=Plan)


def number_format(outline: Outline) -> str:
    """``int8`` where the graph quantizes, ``fp16`` where a weight is, else ``fp32``."""
    if any(node.operator == "QuantizeLinear" for node in outline.nodes):
        return "int8"
    return "fp16" if "float16" in outline.weights.values() else "fp32"


def names_of(graph: bytes) -> tuple[str, str]:
    """What a graph is called in the faults: its number format and its SHA-256."""
    return number_format(read_outline(graph)), hashlib.sha256(graph).hexdigest()


def is_named(graph: bytes, wanted: tuple[str, ...]) -> bool:
    """Whether one of the names means this graph."""
    kind, digest = names_of(graph)
    return any(name == kind or digest.startswith(name) for name in wanted)
