"""The wheel and the sdist hold what a user needs, and install."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

FOLDERS = ("sdk", "converters", "calibration", "device_profiles")


def test_the_wheel_holds_every_module_and_data_file(distributions: Path, root: Path) -> None:
    (wheel,) = distributions.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
    wanted = set()
    for folder in FOLDERS:
        for path in (root / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                wanted.add(path.relative_to(root / folder).as_posix())
    assert inside == wanted


def test_the_sdist_holds_the_tests_and_samples_too(distributions: Path) -> None:
    (sdist,) = distributions.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        inside = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    for name in ("README.md", "LICENSE", "pyproject.toml", "tests/conftest.py", "samples/demo/recipe.toml"):
        assert name in inside


def test_the_wheel_installs_and_answers(distributions: Path, tmp_path: Path) -> None:
    (wheel,) = distributions.glob("*.whl")
    target = tmp_path / "site"
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--target",
        str(target),
        str(wheel),
    ]
    subprocess.run(install, check=True, capture_output=True)
    # -P and an empty folder: nothing of the checkout is importable but what was installed.
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); import edgesmith.sdk, edgesmith.converters; "
        "print(edgesmith.sdk.__file__); print(edgesmith.converters.__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(target)], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    lines = done.stdout.split()
    assert all(line.startswith(str(target)) for line in lines)


@pytest.mark.slow
def test_the_device_install_runs_a_bundle(
    distributions: Path, other_python: str, make_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    (wheel,) = distributions.glob("*.whl")
    bundle = make_bundle()
    venv = tmp_path / "venv"
    subprocess.run([other_python, "-m", "venv", str(venv)], check=True)
    python = str(venv / "bin" / "python")
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", f"{wheel}[runtime]"]
    done = subprocess.run(install, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    listed = subprocess.run([python, "-m", "pip", "list"], capture_output=True, text=True, check=True).stdout
    assert "onnxruntime" in listed
    assert "torch" not in listed
    command = [str(venv / "bin" / "edgesmith"), "verify", str(bundle)]
    verified = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert verified.returncode == 0, verified.stdout + verified.stderr
    picture = tmp_path / "a.png"
    save = "import cv2, numpy, sys; cv2.imwrite(sys.argv[1], numpy.full((90, 120, 3), 200, numpy.uint8))"
    subprocess.run([python, "-c", save, str(picture)], check=True)
    command = [str(venv / "bin" / "edgesmith"), "run", str(bundle), "--source", str(picture), "--json"]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert '"frames": 1' in ran.stdout


@pytest.mark.slow
def test_the_bare_install_reads_bundles_and_names_what_is_missing(
    distributions: Path, make_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    (wheel,) = distributions.glob("*.whl")
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    install = [str(venv / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check", str(wheel)]
    done = subprocess.run(install, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    bundle = make_bundle()

    def edgesmith(*args: str) -> subprocess.CompletedProcess[str]:
        command = [str(venv / "bin" / "edgesmith"), *args]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)

    assert edgesmith("inspect", str(bundle), "--check").returncode == 0
    assert edgesmith("devices").returncode == 0
    doctor = edgesmith("doctor")
    assert "Traceback" not in doctor.stderr
    assert "edgesmith[runtime]" in doctor.stdout
    for command, extra in ((["verify", str(bundle)], "runtime"), (["convert", "r.toml"], "convert")):
        refused = edgesmith(*command)
        assert refused.returncode == 2
        assert f"edgesmith[{extra}]" in refused.stderr
        assert "Traceback" not in refused.stderr
