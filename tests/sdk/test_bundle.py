"""Reading a bundle is safe: whatever the file holds, it is the original or a BundleError."""

from __future__ import annotations

import hashlib
import io
import os
import random
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgesmith.sdk.bundle import MANIFEST, MAX_MEMBERS, Bundle, write_bundle
from edgesmith.sdk.errors import BundleError, BundleMissingError
from edgesmith.sdk.manifest import Golden, Manifest, Nms, Preprocess, Provenance, TensorSpec, Variant

MEMBERS = {
    "model.onnx": bytes(range(256)) * 9,
    "golden/0.png": b"a picture",
    "golden/fp32.npz": b"\x00\x01 expected outputs",
    "report.json": b"{}",
}
LOCAL, CENTRAL, END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"


def manifest(**changes: Any) -> Manifest:
    plain = Manifest(
        name="shapes",
        task="detect",
        labels=("cat", "dog"),
        preprocess=Preprocess(size=(32, 32)),
        inputs=(TensorSpec(name="images", dtype="float32", shape=(1, 3, 32, 32)),),
        outputs=(TensorSpec(name="boxes", dtype="float32", shape=(1, "K", 4)),),
        nms=Nms(),
        chosen="fp32",
        variants={
            "fp32": Variant(
                member="model.onnx", precision="fp32", golden="golden/fp32.npz", tolerance={"boxes": 1e-3}
            )
        },
        golden=Golden(images=("golden/0.png",)),
        provenance=Provenance(
            created="2026-01-01T00:00:00Z",
            edgesmith="0.1.0",
            source="seeded",
            source_sha256="0" * 64,
            recipe={},
            versions={},
        ),
    )
    return msgspec.structs.replace(plain, **changes)


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "model.edge"
    write_bundle(path, manifest(), MEMBERS)
    return path


def contents(path: Path) -> list[tuple[str, bytes]]:
    with zipfile.ZipFile(path) as archive:
        return [(name, archive.read(name)) for name in archive.namelist()]


def archive(entries: Iterable[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as target, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Duplicate name")  # some of these are wrong on purpose
        for name, data in entries:
            target.writestr(zipfile.ZipInfo(name), data, method)
    return buffer.getvalue()


def with_text(path: Path, change: Callable[[dict[str, Any]], object]) -> bytes:
    """The bundle with a changed manifest."""
    entries = dict(contents(path))
    tree = msgspec.json.decode(entries[MANIFEST])
    change(tree)
    return archive([*{**entries, MANIFEST: msgspec.json.encode(tree)}.items()])


def with_member(path: Path, name: str, data: bytes) -> bytes:
    return archive([*{**dict(contents(path)), name: data}.items()])


def without(path: Path, name: str) -> bytes:
    return archive((n, d) for n, d in contents(path) if n != name)


def renamed(path: Path, new: str) -> bytes:
    """The bundle with ``report.json`` under another name of the same length in the archive."""
    assert len(new) == len("report.json")
    return path.read_bytes().replace(b"report.json", new.encode())


def central_field(data: bytes, member: str, offset: int, form: str, value: int) -> bytes:
    """Overwrite one field of a member's entry in the archive's directory."""
    at = data.index(CENTRAL)
    while data[at + 46 : at + 46 + len(member)] != member.encode():
        at = data.index(CENTRAL, at + 4)
    patched = bytearray(data)
    struct.pack_into(form, patched, at + offset, value)
    return bytes(patched)


def claims_10_gb(path: Path) -> bytes:
    """A member whose directory entry states 10 GB in the 64-bit extra field."""
    huge = 10 * 2**30
    name = b"report.json"
    data = path.read_bytes()
    start = data.index(CENTRAL)
    end = data.index(END)
    entry = data.index(name, start) - 46
    fields = list(struct.unpack_from("<4s4B4HL2L5H2L", data, entry))
    extra = struct.pack("<HHQQ", 1, 16, huge, huge)
    fields[10] = fields[11] = 0xFFFFFFFF
    fields[13] = len(extra)
    head = struct.pack("<4s4B4HL2L5H2L", *fields)
    directory = data[start:entry] + head + name + extra + data[entry + 46 + len(name) : end]
    tail = bytearray(data[end:])
    struct.pack_into("<L", tail, 12, len(directory))
    return data[:start] + directory + bytes(tail)


def wrong_hash(path: Path) -> bytes:
    def change(tree: dict[str, Any]) -> None:
        tree["members"]["report.json"]["sha256"] = "f" * 64

    return with_text(path, change)


# name: (how the file is made from a good one, a piece of the message, the step that tells)
FAULTS: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "empty": (lambda p: b"", "is empty"),
    "not a zip": (lambda p: b"\x7fELF" + bytes(2000), "no zip archive"),
    "cut after the first bytes": (lambda p: p.read_bytes()[:10], "cut off or damaged"),
    "cut in the middle": (lambda p: p.read_bytes()[: p.stat().st_size // 2], "cut off or damaged"),
    "cut in the directory": (lambda p: p.read_bytes()[: p.read_bytes().index(CENTRAL) + 50], "cut off or"),
    "last byte gone": (lambda p: p.read_bytes()[:-1], "cut off or damaged"),
    "wrong hash": (wrong_hash, "report.json does not match its SHA-256"),
    "wrong content": (lambda p: with_member(p, "report.json", b"[]"), "report.json does not match its SHA"),
    "wrong size": (lambda p: with_member(p, "report.json", b"{ }"), "report.json has 3 bytes, not 2"),
    "missing member": (lambda p: without(p, "report.json"), "member report.json is missing"),
    "unlisted member": (lambda p: with_member(p, "extra.bin", b"?"), "extra.bin is not listed"),
    "absolute name": (lambda p: with_member(p, "/etc/passwd", b"x"), "'/etc/passwd' is not allowed"),
    "parent name": (lambda p: with_member(p, "a/../../b", b"x"), "'a/../../b' is not allowed"),
    "dots alone": (lambda p: with_member(p, "..", b"x"), "'..' is not allowed"),
    "hidden name": (lambda p: with_member(p, ".ssh/id", b"x"), "'.ssh/id' is not allowed"),
    "folder entry": (lambda p: with_member(p, "golden/", b""), "'golden/' is not allowed"),
    "backslash name": (lambda p: renamed(p, "a\\..\\b.json"), "is not allowed"),
    "NUL name": (lambda p: renamed(p, "repor\0.json"), r"'repor\\x00.json' is not allowed"),
    "drive name": (lambda p: with_member(p, "C:evil", b"x"), "'C:evil' is not allowed"),
    "newline name": (lambda p: with_member(p, "model.onnx\n", b"x"), "is not allowed"),
    "duplicate member": (lambda p: archive([*contents(p), ("report.json", b"{}")]), "stands twice"),
    "duplicate manifest": (lambda p: archive([*contents(p), contents(p)[0]]), "manifest.json stands twice"),
    "10 GB declared": (claims_10_gb, r"report.json claims 10,737,418,240 bytes in a file of"),
    "deflated": (lambda p: archive(contents(p), zipfile.ZIP_DEFLATED), "is compressed"),
    "unknown method": (lambda p: central_field(p.read_bytes(), "report.json", 10, "<H", 99), "is compressed"),
    "encrypted": (lambda p: central_field(p.read_bytes(), "report.json", 8, "<H", 1), "is encrypted"),
    "too many members": (
        lambda p: archive((f"m{i}", b"") for i in range(MAX_MEMBERS + 1)),
        "1,025 members; a bundle has at most 1,024",
    ),
    "no manifest": (lambda p: without(p, MANIFEST), "it has no manifest.json"),
    "manifest is no JSON": (lambda p: with_member(p, MANIFEST, b"{'a': 1}"), "is not valid JSON"),
    "manifest is not UTF-8": (lambda p: with_member(p, MANIFEST, b'{"schema": 1, "name": "\xff"}'), "utf-8"),
    "manifest nests too deep": (lambda p: with_member(p, MANIFEST, b'{"a":' * 100_000), "recursion"),
    "manifest is empty": (lambda p: with_member(p, MANIFEST, b""), "is not valid JSON"),
    "manifest is a list": (lambda p: with_member(p, MANIFEST, b"[]"), "has the wrong shape"),
    "no schema": (lambda p: with_text(p, lambda t: t.pop("schema")), "wrong shape.*`schema`"),
    "wrong type": (lambda p: with_text(p, lambda t: t.update(labels=7)), r"wrong shape.*\$\.labels"),
    "contradiction": (lambda p: with_text(p, lambda t: t.update(chosen="int8")), "chosen names 'int8'"),
    "bad preprocess": (
        lambda p: with_text(p, lambda t: t["preprocess"].update(size=[0, 32])),
        r"each side must be.*\$\.preprocess",
    ),
    "newer schema": (
        lambda p: with_text(p, lambda t: t.update(schema=2, news=True)),
        "written in bundle schema 2; this edgesmith reads up to 1: upgrade",
    ),
    "older schema": (lambda p: with_text(p, lambda t: t.update(schema=0)), "wrong shape.*schema"),
    "unknown field": (lambda p: with_text(p, lambda t: t.update(code="x")), "unknown field `code`"),
    "unknown inner field": (
        lambda p: with_text(p, lambda t: t["nms"].update(where2="x")),
        r"unknown field `where2` - at `\$\.nms`",
    ),
    "variant without graph": (
        lambda p: with_text(p, lambda t: t["variants"]["fp32"].update(member="gone.onnx")),
        "refers to member gone.onnx",
    ),
    "variant without golden": (
        lambda p: with_text(p, lambda t: t["variants"]["fp32"].update(golden="gone.npz")),
        "refers to member gone.npz",
    ),
    "golden image gone": (
        lambda p: with_text(p, lambda t: t["golden"].update(images=["gone.png"])),
        "refers to member gone.png",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_corrupted_bundle_is_refused(fault: str, good: Path, tmp_path: Path) -> None:
    make, message = FAULTS[fault]
    bad = tmp_path / "bad.edge"
    bad.write_bytes(make(good))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(BundleError, match=message) as caught:
        Bundle.open(bad).check()
    assert str(bad) in str(caught.value)
    assert caught.value.exit_status == 3
    assert sorted(tmp_path.rglob("*")) == before, "reading wrote something"


def test_opening_tells_all_but_the_content_of_members(good: Path, tmp_path: Path) -> None:
    # Only content needs the bytes; everything else must fail before a caller holds a bundle.
    bad = tmp_path / "bad.edge"
    for fault, (make, message) in FAULTS.items():
        bad.write_bytes(make(good))
        if fault in ("wrong hash", "wrong content"):
            with pytest.raises(BundleError, match=message):
                Bundle.open(bad).read("report.json")
            assert Bundle.open(bad).read("model.onnx") == MEMBERS["model.onnx"]
        else:
            with pytest.raises(BundleError, match=message):
                Bundle.open(bad)


def test_a_missing_file_is_also_what_python_would_raise(tmp_path: Path) -> None:
    with pytest.raises(BundleMissingError, match="there is no such bundle") as caught:
        Bundle.open(tmp_path / "none.edge")
    assert isinstance(caught.value, FileNotFoundError)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is a folder, not a bundle"):
        Bundle.open(tmp_path)


def test_a_path_below_a_file_is_refused(good: Path) -> None:
    with pytest.raises(BundleError, match="cannot be read: Not a directory"):
        Bundle.open(good / "inner.edge")


def test_a_path_with_a_nul_is_refused() -> None:
    with pytest.raises(BundleError, match="cannot be read"):
        Bundle.open("model\0.edge")


def test_no_permission(good: Path) -> None:
    good.chmod(0)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # the superuser may read anything: look as nobody
    try:
        with pytest.raises(BundleError, match="cannot be read: Permission denied"):
            Bundle.open(good)
    finally:
        os.seteuid(user)


def test_an_unknown_member_is_refused(good: Path) -> None:
    with pytest.raises(BundleError, match=r"has no member 'model\.trt'"):
        Bundle.open(good).read("model.trt")


def test_flipped_bytes_are_never_believed(good: Path, tmp_path: Path) -> None:
    whole = good.read_bytes()
    expected = Bundle.open(good).manifest
    rng = random.Random(11)
    places = [rng.randrange(len(whole)) for _ in range(400)]
    # The headers are a small part of the file and the part that can mislead: the rest goes there.
    heads = [i for sign in (LOCAL, CENTRAL, END) for i in _places_of(whole, sign)]
    places += [min(rng.choice(heads) + rng.randrange(60), len(whole) - 1) for _ in range(600)]
    bad = tmp_path / "bad.edge"
    refused = 0
    for place in places:
        flipped = bytearray(whole)
        flipped[place] ^= rng.randrange(1, 256)
        bad.write_bytes(flipped)
        try:
            bundle = Bundle.open(bad)
            read = {name: bundle.read(name) for name in bundle.manifest.members}
        except BundleError:
            refused += 1
        else:
            assert bundle.manifest == expected, f"byte {place}"
            assert read == MEMBERS, f"byte {place}"
    assert refused > 500  # dates, modes and the like may be anything


def _places_of(data: bytes, sign: bytes) -> list[int]:
    found, at = [], data.find(sign)
    while at >= 0:
        found.append(at)
        at = data.find(sign, at + 1)
    return found


def test_round_trip(good: Path) -> None:
    bundle = Bundle.open(good)
    bundle.check()
    assert {name: bundle.read(name) for name in bundle.manifest.members} == MEMBERS
    assert msgspec.structs.replace(bundle.manifest, members={}) == manifest()
    for name, data in MEMBERS.items():
        assert bundle.manifest.members[name].sha256 == hashlib.sha256(data).hexdigest()
    assert repr(bundle) == f"Bundle({str(good)!r}, task='detect', precision='fp32')"


def test_members_are_stored_plainly(good: Path) -> None:
    with zipfile.ZipFile(good) as opened:
        assert opened.namelist() == [MANIFEST, *sorted(MEMBERS)]
        assert {i.compress_type for i in opened.infolist()} == {zipfile.ZIP_STORED}
