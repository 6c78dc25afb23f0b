"""The house: where code may stand, and what it may import."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import edgesmith.sdk as sdk

FOLDERS = ("sdk", "converters", "calibration", "device_profiles")


@pytest.mark.parametrize("folder", FOLDERS)
def test_each_folder_holds_its_own_package_and_nothing_else(root: Path, folder: str) -> None:
    # A file here would end the namespace: the other three packages would vanish from imports.
    namespace = root / folder / "edgesmith"
    assert not (namespace / "__init__.py").exists()
    assert [p.name for p in namespace.iterdir() if p.name != "__pycache__"] == [folder]


def test_the_customers_folders_are_there(root: Path) -> None:
    for name in (*FOLDERS, "tests", "samples"):
        assert (root / name).is_dir()


def test_the_face_is_what_all_says() -> None:
    assert len(sdk.__all__) == len(set(sdk.__all__))
    assert sorted(name for names in sdk._HOMES.values() for name in names) == sorted(sdk.__all__)
    for home, names in sdk._HOMES.items():
        module = importlib.import_module(f"edgesmith.sdk.{home}")
        for name in names:
            assert getattr(sdk, name) is getattr(module, name)
    with pytest.raises(AttributeError, match="no attribute 'Detectr'"):
        sdk.Detectr  # noqa: B018 - the access is the test


def test_the_checker_sees_the_same_face(root: Path) -> None:
    # What type checkers read (the imports under TYPE_CHECKING) against what runs.
    tree = ast.parse((root / "sdk/edgesmith/sdk/__init__.py").read_text())
    seen = {
        (node.module.removeprefix("edgesmith.sdk."), alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("edgesmith.sdk.")
        for alias in node.names
    }
    assert seen == {(home, name) for home, names in sdk._HOMES.items() for name in names}


@pytest.mark.parametrize("package", FOLDERS)
def test_every_module_says_what_it_is_for(package: str) -> None:
    module = importlib.import_module(f"edgesmith.{package}")
    for info in pkgutil.walk_packages(module.__path__, f"edgesmith.{package}."):
        spec = importlib.util.find_spec(info.name)
        assert spec is not None
        assert spec.origin is not None
        assert ast.get_docstring(ast.parse(Path(spec.origin).read_text())), f"{info.name} has no docstring"


@pytest.mark.parametrize("package", ["edgesmith.sdk", "edgesmith.calibration", "edgesmith.device_profiles"])
def test_the_device_side_imports_no_torch(package: str) -> None:
    script = (
        "import importlib, pkgutil, sys\n"
        f"package = importlib.import_module({package!r})\n"
        f"for info in pkgutil.walk_packages(package.__path__, {package!r} + '.'):\n"
        "    if not info.name.endswith('__main__'): importlib.import_module(info.name)\n"
        "print([name for name in ('torch', 'onnxscript', 'tensorrt', 'pycuda') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_is_quick_to_import() -> None:
    script = (
        "import sys\n"
        "from edgesmith.sdk.cli.app import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "print([name for name in ('numpy', 'cv2', 'torch', 'rich', 'msgspec') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "Commands:" in done.stdout
    assert done.stdout.strip().endswith("[]")
