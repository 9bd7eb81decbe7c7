# SPDX-License-Identifier: Apache-2.0
"""Install the ROS package and the command nightlab, with colcon or pip. Training and tests stay in the repository."""

from glob import glob
from pathlib import Path
from xml.etree import ElementTree

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
PACKAGE = ElementTree.parse(ROOT / "package.xml").getroot()
NAME = PACKAGE.findtext("name")


def requirements(name: str) -> list[str]:
    """Return the packages in requirements/NAME.txt, without the files that it includes."""
    return [line for line in (ROOT / f"requirements/{name}.txt").read_text().splitlines() if line[:1] not in "#-"]


setup(
    name=NAME,
    version=PACKAGE.findtext("version"),
    description=PACKAGE.findtext("description"),
    license=PACKAGE.findtext("license"),
    python_requires=">=3.10",
    packages=find_packages(include=["nightlab_*"]),
    package_data={
        "nightlab_core": [
            "classes/*.yaml",
            "bundles/*/*.onnx",
            "bundles/*/*.yaml",
            "bundles/*/*.md",
            "bundles/*/*.json",
        ],
        "nightlab_replay": ["templates/*"],
        "nightlab_ros": ["demo/templates/*"],
    },
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml"]),
        (f"share/{NAME}/launch", glob("launch/*.launch.*")),
        (
            f"share/{NAME}/config",
            [*glob("config/*.yaml"), *glob("config/*.xml"), *glob("config/*.rviz"), *glob("config/*.json")],
        ),
    ],
    # ROS's own packages come with ROS. colcon leaves these as they are, pip installs them.
    install_requires=[*requirements("robot"), *requirements("vehicle")],
    extras_require={
        "replay": requirements("replay"),
        "tensorrt": requirements("tensorrt"),
        "train": requirements("train"),
        "test": ["pytest"],
    },
    zip_safe=False,
    entry_points={
        "console_scripts": [
            "nightlab = nightlab_cli.main:main",
            "nightlab_node = nightlab_ros.program:main",
            "nightlab_demo = nightlab_cli.main:demo",
            "nightlab_player = nightlab_ros.playback.player:main",
        ],
    },
)
