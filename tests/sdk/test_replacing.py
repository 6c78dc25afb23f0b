"""A file is there whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgesmith.sdk.replacing import replaced


def test_the_new_file_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with replaced(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_it_lies_in_another_folder_until_it_is_whole(tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    with replaced(tmp_path / "file", folder) as temporary:
        temporary.write_text("new")
        assert [p.parent for p in tmp_path.rglob("*file*")] == [folder]
    assert (tmp_path / "file").read_text() == "new"
    assert not list(folder.iterdir())


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_nothing_is_left_of_what_failed(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def write_half() -> None:
        with replaced(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(type(error)):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
