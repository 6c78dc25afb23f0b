"""The stream of images: a folder, a list file, a glob or an ``.npz``, through the one preprocess.

images = Images.open("coco_calib")
for tensor in tensors(images.sample(64, seed=0), preprocess): ...      # (1, C, H, W) float32
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np

from edgesmith.sdk.cameras import read_image
from edgesmith.sdk.cameras.pictures import PICTURES
from edgesmith.sdk.errors import CameraError, DataError
from edgesmith.sdk.preprocess import Frame8, Preprocess, Tensor, prepared


class Images:
    """A fixed list of images, each read when it is asked for, BGR uint8 ``(H, W, 3)``.

    ``names`` tells them apart: the path relative to the source, or the number in an archive.
    """

    def __init__(
        self,
        source: str,
        names: tuple[str, ...],
        read: Callable[[int], Frame8],
        content: Callable[[int], bytes],
    ) -> None:
        self.source = source
        self.names = names
        self._read = read
        self._content = content

    @classmethod
    def open(cls, source: str | os.PathLike[str]) -> Images:
        """Find the images of a folder (with its sub-folders, by ending), list file, glob or ``.npz``.

        A list file is text with one path a line, relative to the file. An ``.npz`` holds ``images``,
        uint8 ``(N, H, W, 3)`` RGB.

        Raises:
            DataError: there is no such source, or no image in it.
        """
        path = Path(source)
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.suffix.lower() in PICTURES and p.is_file())
            if not found:
                raise DataError(f"{path}: no pictures in this folder (endings {', '.join(sorted(PICTURES))})")
            return cls._of_files(str(path), path, found)
        if path.suffix == ".npz" and path.is_file():
            return cls._of_archive(path)
        if path.is_file():
            return cls._of_files(str(path), path.parent, _listed(path))
        found = sorted(_matching(path))
        found = [p for p in found if p.suffix.lower() in PICTURES]
        if not found:
            raise DataError(f"{path}: there is no such folder, list file or .npz, and no picture matches it")
        return cls._of_files(str(path), Path(os.path.commonpath([p.parent for p in found])), found)

    @classmethod
    def _of_files(cls, source: str, root: Path, paths: list[Path]) -> Images:
        def read(index: int) -> Frame8:
            try:
                return read_image(paths[index])
            except CameraError as error:
                raise DataError(f"{source}: {error}") from error

        names = tuple(p.relative_to(root).as_posix() if p.is_relative_to(root) else str(p) for p in paths)
        return cls(source, names, read, lambda index: _bytes_of(source, paths[index]))

    @classmethod
    def _of_archive(cls, path: Path) -> Images:
        try:
            with np.load(path, allow_pickle=False) as archive:
                if "images" not in archive:
                    raise DataError(
                        f"{path}: has no array `images`; it holds {', '.join(archive) or 'nothing'}"
                    )
                pictures = archive["images"]
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{path}: not a sound .npz file: {error}") from error
        if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[3] != 3 or not len(pictures):
            raise DataError(
                f"{path}: images must be uint8 (N, H, W, 3) RGB, got {pictures.dtype} {pictures.shape}"
            )
        names = tuple(str(n) for n in range(len(pictures)))
        return cls(
            str(path),
            names,
            lambda index: np.ascontiguousarray(pictures[index][..., ::-1]),
            lambda index: pictures[index].tobytes(),
        )

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Frame8:
        """One image by number.

        Raises:
            DataError: its file cannot be read.
        """
        return self._read(range(len(self))[index])

    def __iter__(self) -> Iterator[Frame8]:
        return (self[index] for index in range(len(self)))

    def fingerprint(self) -> str:
        """SHA-256 over the images' names and stored bytes, in order.

        Raises:
            DataError: a file cannot be read.
        """
        digest = hashlib.sha256()
        for index, name in enumerate(self.names):
            digest.update(hashlib.sha256(name.encode()).digest())
            digest.update(hashlib.sha256(self._content(index)).digest())
        return digest.hexdigest()

    def pick(self, numbers: Iterable[int]) -> Images:
        """The images of these numbers, in their order."""
        chosen = [range(len(self))[n] for n in numbers]
        return Images(
            self.source,
            tuple(self.names[n] for n in chosen),
            lambda index: self._read(chosen[index]),
            lambda index: self._content(chosen[index]),
        )

    def sample(self, count: int, seed: int) -> Images:
        """At most ``count`` images drawn by ``seed``, in the order of the source."""
        if count >= len(self):
            return self
        drawn = np.random.default_rng(seed).choice(len(self), count, replace=False)
        return self.pick(sorted(int(n) for n in drawn))

    def __repr__(self) -> str:
        return f"Images({self.source!r}, {len(self)})"


def tensors(images: Iterable[Frame8], preprocess: Preprocess) -> Iterator[Tensor]:
    """Each image as the network takes it, ``(1, C, H, W)`` float32.

    Raises:
        CameraFormatError: an image does not have the size that ``fit = "none"`` takes.
    """
    for image in images:
        yield prepared(preprocess, image)[0]


def pseudo_images(count: int, seed: int, size: tuple[int, int]) -> list[Frame8]:
    """Seeded pictures for when there are none: smooth colour with edges, BGR uint8 ``(H, W, 3)``.

    They reach every layer with values of the usual size, which white noise does not, and prove
    that two graphs compute the same. They say nothing of accuracy and give no useful ranges.
    """
    random = np.random.default_rng(seed)
    rows, columns = size
    pictures: list[Frame8] = []
    for _ in range(count):
        coarse = random.uniform(0, 255, (5, 7, 3)).astype(np.float32)
        picture: Tensor = np.asarray(
            cv2.resize(coarse, (columns, rows), interpolation=cv2.INTER_CUBIC), np.float32
        )
        for _ in range(12):
            y, x = random.integers(0, rows), random.integers(0, columns)
            h, w = random.integers(1, max(2, rows // 3)), random.integers(1, max(2, columns // 3))
            patch = picture[y : y + h, x : x + w]
            patch[:] = 0.4 * patch + np.float32(1) * random.uniform(0, 150, 3)
        noise = np.asarray(random.normal(0, 4, picture.shape))
        pictures.append(np.clip(picture + noise, 0, 255).astype(np.uint8))
    return pictures


def _matching(pattern: Path) -> Iterator[Path]:
    """Files that a glob finds; nothing where the path holds no pattern."""
    parts = pattern.parts
    wild = next((n for n, part in enumerate(parts) if any(c in part for c in "*?[")), None)
    if wild is None:
        return iter(())
    return Path(*parts[:wild]).glob(str(Path(*parts[wild:])))


def _listed(path: Path) -> list[Path]:
    """The paths of a list file."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as a list of pictures, one path a line: {error}") from error
    found = [path.parent / line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not found:
        raise DataError(f"{path}: the list is empty")
    for number, entry in enumerate(found, 1):
        if not entry.is_file():
            raise DataError(f"{path}: entry {number}: there is no file {entry}")
    return found


__all__ = ["Images", "pseudo_images", "tensors"]


def _bytes_of(source: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{source}: {path} cannot be read: {error.strerror or error}") from error
