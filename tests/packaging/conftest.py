"""Built distributions, and interpreters to install them in."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def distributions(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist, built from the sdist as a release would be."""
    out = tmp_path_factory.mktemp("dist")
    # --no-isolation: the build backend is in this environment, and a test downloads nothing it has.
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(root)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def find_python(version: str) -> str:
    """An interpreter of that version, as a path; the test is skipped where there is none."""
    folders = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin"))
    candidates = [str(folder / "python3") for folder in folders] + [shutil.which(f"python{version}") or ""]
    for candidate in candidates:
        if candidate and Path(candidate).is_file():
            done = subprocess.run([candidate, "-m", "venv", "--help"], capture_output=True)
            if done.returncode == 0:
                return candidate
    pytest.skip(f"no Python {version} with venv on this machine")


@pytest.fixture(params=["3.10", "3.12"])
def other_python(request: pytest.FixtureRequest) -> str:
    """Interpreters of JetPack 6 (3.10) and JetPack 7 (3.12)."""
    return find_python(request.param)
