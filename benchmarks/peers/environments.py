"""An environment for each tool, since their pins exclude one another.

    python benchmarks/peers/environments.py [NAME ...]

They lie in ``benchmarks/peers/.venvs``, which git does not see; what is there already is left as it is.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
FOLDER = HERE / ".venvs"
# Requirement files by environment; those ending in _alone are installed without their dependencies.
ENVIRONMENTS: dict[str, tuple[str, ...]] = {
    "onnxruntime": ("onnxruntime.txt",),
    "modelopt": ("modelopt.txt", "modelopt_alone.txt"),
    "nncf": ("nncf.txt",),
    "litserve": ("litserve.txt",),
    "ultralytics": ("ultralytics.txt", "ultralytics_alone.txt"),
    "inference": ("inference.txt", "inference_alone.txt"),
}
_DONE = ".complete"  # an installation that was cut off does not have it


def interpreter(name: str) -> Path:
    """The Python of an environment.

    Raises:
        FileNotFoundError: it was not built.
    """
    if not (FOLDER / name / _DONE).exists():
        raise FileNotFoundError(
            f"no environment {name}: build it with `python benchmarks/peers/environments.py {name}`"
        )
    return FOLDER / name / "bin" / "python"


def build(name: str) -> None:
    """Make an environment, or complete it."""
    folder = FOLDER / name
    if (folder / _DONE).exists():
        return
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    for file in ENVIRONMENTS[name]:
        alone = ["--no-deps"] if file.endswith("_alone.txt") else []
        python = folder / "bin" / "python"
        command = [str(python), "-m", "pip", "install", "--quiet", *alone, "-r", str(HERE / file)]
        subprocess.run(command, check=True)
    (folder / _DONE).touch()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", default=tuple(ENVIRONMENTS), metavar="NAME")
    options = parser.parse_args()
    for name in options.names:
        if name not in ENVIRONMENTS:
            parser.error(f"no environment {name!r}; there are {', '.join(ENVIRONMENTS)}")
        build(name)
        print(f"{name}: {interpreter(name).parent.parent}")


if __name__ == "__main__":
    main()
