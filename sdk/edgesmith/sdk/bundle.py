"""The one place that reads and writes a bundle (``model.edge``).

A bundle is a zip with stored members: ``manifest.json`` and the files that it lists with size
and SHA-256. The reader trusts nothing: names, sizes and hashes are checked before a byte is
handed on, and nothing is ever unpacked to disk. A newer schema is refused by name.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from edgesmith.sdk.errors import BundleError, BundleMissingError
from edgesmith.sdk.manifest import SCHEMA, Manifest, Member
from edgesmith.sdk.replacing import replaced

MANIFEST = "manifest.json"
MAX_MEMBERS = 1024
MAX_MANIFEST_BYTES = 16 << 20
MAX_MEMBER_BYTES = 4 << 30
_ENCRYPTED = 0x1 | 0x40  # flag bits of an archive entry: the old cipher, the strong ones
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")
# Everything the standard library's reader raises on bytes that are not a sound archive.
_ZIP_FAULTS = (
    zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError, RuntimeError,
    UnicodeDecodeError, OverflowError, ValueError, KeyError, IndexError,
)  # fmt: skip


class Bundle:
    """An opened bundle: its manifest, and its members on demand.

    Opening reads the manifest alone; :meth:`read` gives one member after its hash was checked.

    Raises:
        BundleMissingError: there is no such file.
        BundleError: the file is not a sound bundle; the message says what is wrong.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Bundle:
        """Check the archive and its manifest; no other member is read yet."""
        path = Path(path)
        with _opened(path) as archive:
            infos = _checked_infos(path, archive)
            if MANIFEST not in infos:
                raise BundleError(f"{path}: not an edgesmith bundle, it has no {MANIFEST}")
            if infos[MANIFEST].file_size > MAX_MANIFEST_BYTES:
                raise BundleError(f"{path}: {MANIFEST} claims {infos[MANIFEST].file_size:,} bytes")
            manifest = _decoded(path, _bytes_of(path, archive, MANIFEST))
        _check_members(path, manifest, infos)
        return cls(path, manifest)

    def read(self, name: str) -> bytes:
        """The bytes of one member, after its size and SHA-256 were checked."""
        member = self.manifest.members.get(name)
        if member is None:
            raise BundleError(f"{self.path}: the bundle has no member {name!r}")
        with _opened(self.path) as archive:
            infos = _checked_infos(self.path, archive)
            if name not in infos or infos[name].file_size != member.size_bytes:
                raise BundleError(f"{self.path}: {name} changed since the bundle was opened")
            data = _bytes_of(self.path, archive, name)
        if hashlib.sha256(data).hexdigest() != member.sha256:
            raise BundleError(f"{self.path}: {name} does not match its SHA-256; copy the bundle again")
        return data

    def check(self) -> None:
        """Read every member once, so that each hash is checked."""
        for name in self.manifest.members:
            self.read(name)

    def __repr__(self) -> str:
        manifest = self.manifest
        return f"Bundle({str(self.path)!r}, task={manifest.task!r}, precision={manifest.precision!r})"


def write_bundle(path: str | os.PathLike[str], manifest: Manifest, members: Mapping[str, bytes]) -> Manifest:
    """Write a bundle in one step: a reader sees the old file or the new one, never a part.

    Args:
        path: the file to make or to replace.
        manifest: everything but ``members``, which is filled in here.
        members: content by member name; :data:`MANIFEST` is not among them.

    Returns:
        The manifest as written.

    Raises:
        BundleError: a name is not allowed, the manifest refers to a member that is not there, or the
            file cannot be written. Nothing is left behind, and an older file stays as it was.
    """
    path = Path(path)
    for name in members:
        if not _NAME.fullmatch(name) or name == MANIFEST:
            raise BundleError(f"{name!r} cannot be the name of a member")
    listed = {
        name: Member(size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
        for name, data in sorted(members.items())
    }
    manifest = msgspec.structs.replace(manifest, members=listed)
    _check_references(path, manifest)
    text = msgspec.json.format(msgspec.json.encode(manifest), indent=1)
    if len(members) >= MAX_MEMBERS or len(text) > MAX_MANIFEST_BYTES:
        raise BundleError(
            f"{path}: {len(members):,} members and a {MANIFEST} of {len(text):,} bytes are more than "
            f"a bundle takes ({MAX_MEMBERS - 1:,} and {MAX_MANIFEST_BYTES:,})"
        )
    try:
        with replaced(path) as temporary, zipfile.ZipFile(temporary, "x", zipfile.ZIP_STORED) as archive:
            for name, data in ((MANIFEST, text), *sorted(members.items())):
                # A fixed date and mode: the same content gives the same bytes.
                info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
                info.external_attr = 0o644 << 16
                archive.writestr(info, data)
    except OSError as error:
        raise BundleError(f"{path}: cannot write the bundle: {error.strerror or error}") from error
    return manifest


def file_sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a bundle's whole file, as ``sha256sum`` prints it.

    Raises:
        BundleMissingError: there is no such file.
        BundleError: it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except FileNotFoundError as error:
        raise BundleMissingError(f"{os.fspath(path)}: there is no such bundle") from error
    except OSError as error:
        raise BundleError(f"{os.fspath(path)}: cannot be read: {error.strerror or error}") from error
    return digest.hexdigest()


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        archive = zipfile.ZipFile(path)
    except FileNotFoundError as error:
        raise BundleMissingError(f"{path}: there is no such bundle") from error
    except IsADirectoryError as error:
        raise BundleError(f"{path}: is a folder, not a bundle") from error
    except OSError as error:
        raise BundleError(f"{path}: cannot be read: {error.strerror or error}") from error
    except _ZIP_FAULTS as error:
        raise BundleError(f"{path}: {_why_no_archive(path)} ({error})") from error
    with archive:
        yield archive


def _why_no_archive(path: Path) -> str:
    """In words what a file is that the zip reader refuses."""
    try:
        with open(path, "rb") as file:
            start = file.read(4)
    except (OSError, ValueError):
        return "cannot be read"
    if not start:
        return "is empty; copy the bundle again"
    if start == b"PK\x03\x04":
        return "is cut off or damaged at its end; copy the bundle again"
    return "is not an edgesmith bundle: no zip archive"


def _checked_infos(path: Path, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The directory by name, once every entry is harmless."""
    entries = archive.infolist()
    if len(entries) > MAX_MEMBERS:
        raise BundleError(f"{path}: {len(entries):,} members; a bundle has at most {MAX_MEMBERS:,}")
    # The size of the file that is open: the path may lead to another one by now.
    assert archive.fp is not None
    size = room = archive.fp.seek(0, os.SEEK_END)
    infos: dict[str, zipfile.ZipInfo] = {}
    for info in entries:
        name = info.filename
        if info.orig_filename != name or not _NAME.fullmatch(name):
            raise BundleError(f"{path}: member name {info.orig_filename!r} is not allowed")
        if name in infos:
            raise BundleError(f"{path}: member {name} stands twice in the archive")
        if info.flag_bits & _ENCRYPTED:
            raise BundleError(f"{path}: member {name} is encrypted; bundles are stored plainly")
        if info.compress_type != zipfile.ZIP_STORED:
            raise BundleError(f"{path}: member {name} is compressed; bundles are stored plainly")
        if info.file_size > MAX_MEMBER_BYTES or info.file_size > room or info.file_size != info.compress_size:
            raise BundleError(f"{path}: member {name} claims {info.file_size:,} bytes in a file of {size:,}")
        room -= info.file_size
        infos[name] = info
    return infos


def _bytes_of(path: Path, archive: zipfile.ZipFile, name: str) -> bytes:
    try:
        return archive.read(name)
    except OSError as error:
        raise BundleError(f"{path}: {name} cannot be read: {error.strerror or error}") from error
    except _ZIP_FAULTS as error:
        raise BundleError(f"{path}: {name} is damaged ({error}); copy the bundle again") from error


class _Version(msgspec.Struct):
    schema: int


def _decoded(path: Path, text: bytes) -> Manifest:
    try:
        version = msgspec.json.decode(text, type=_Version).schema
        if version > SCHEMA:
            raise BundleError(
                f"{path}: written in bundle schema {version}; this edgesmith reads up to {SCHEMA}: upgrade it"
            )
        return msgspec.json.decode(text, type=Manifest)
    except msgspec.ValidationError as error:
        raise BundleError(f"{path}: {MANIFEST} has the wrong shape: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"{path}: {MANIFEST} is not valid JSON: {error}") from error


def _check_members(path: Path, manifest: Manifest, infos: Mapping[str, zipfile.ZipInfo]) -> None:
    present = set(infos) - {MANIFEST}
    for name in sorted(set(manifest.members) - present):
        raise BundleError(f"{path}: member {name} is missing")
    for name in sorted(present - set(manifest.members)):
        raise BundleError(f"{path}: member {name} is not listed in {MANIFEST}")
    for name, member in manifest.members.items():
        if infos[name].file_size != member.size_bytes:
            raise BundleError(
                f"{path}: member {name} has {infos[name].file_size:,} bytes, not {member.size_bytes:,}"
            )
    _check_references(path, manifest)


def _check_references(path: Path, manifest: Manifest) -> None:
    golden = manifest.golden
    needed = [n for v in manifest.variants.values() for n in (v.member, v.golden)]
    needed += [*golden.images, *((golden.resize.image, golden.resize.expected) if golden.resize else ())]
    for name in needed:
        if name not in manifest.members:
            raise BundleError(f"{path}: {MANIFEST} refers to member {name}, which is missing")
