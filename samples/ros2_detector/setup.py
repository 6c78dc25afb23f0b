"""Built by colcon: `colcon build --packages-select ros2_detector`."""

from pathlib import Path

from setuptools import setup  # type: ignore[import-untyped, unused-ignore]

PACKAGE = "ros2_detector"
HERE = Path(__file__).resolve().parent


def files_in(folder: str) -> list[str]:
    """Paths of the folder's files, relative to the package."""
    return sorted(str(path.relative_to(HERE)) for path in (HERE / folder).iterdir())


setup(
    name=PACKAGE,
    version="0.1.0",
    packages=[PACKAGE],
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{PACKAGE}"]),
        (f"share/{PACKAGE}", ["package.xml"]),
        (f"share/{PACKAGE}/launch", files_in("launch")),
        (f"share/{PACKAGE}/config", files_in("config")),
    ],
    install_requires=["setuptools", "edgesmith"],
    zip_safe=True,
    description="Detections of an edgesmith bundle as vision_msgs",
    license="Apache-2.0",
    entry_points={"console_scripts": [f"detector = {PACKAGE}.node:main"]},
)
