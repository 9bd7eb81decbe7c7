# SPDX-License-Identifier: Apache-2.0
"""The lock file of the vehicle's requirements fits their ranges, on every supported Python, and is complete."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("packaging")

from packaging.requirements import Requirement

FOLDER = Path(__file__).parents[2] / "requirements"
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
MACHINES = ("x86_64", "aarch64")


def requirements(file: str) -> Iterator[tuple[Requirement, list[str]]]:
    """Each requirement of a file, with its hashes."""
    text = (FOLDER / file).read_text(encoding="utf-8").replace("\\\n", " ")
    for line in text.splitlines():
        if line.strip() and not line.startswith(("#", "-")):
            words, _, _ = line.partition("--hash=")
            yield Requirement(words.strip()), re.findall(r"--hash=sha256:([0-9a-f]{64})\b", line)


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("python", PYTHONS)
def test_each_requirement_is_pinned_within_its_range(python: str, machine: str) -> None:
    environment = {
        "python_version": python,
        "python_full_version": f"{python}.1",
        "sys_platform": "linux",
        "platform_machine": machine,
    }
    pins: dict[str, str] = {}
    for pin, _ in requirements("vehicle.lock"):
        if pin.marker is None or pin.marker.evaluate(environment):
            assert canonical(pin.name) not in pins, f"{pin.name} is pinned twice"
            (specifier,) = pin.specifier
            assert specifier.operator == "=="
            pins[canonical(pin.name)] = specifier.version
    for wanted, _ in (*requirements("robot.txt"), *requirements("vehicle.txt")):
        if wanted.marker is None or wanted.marker.evaluate(environment):
            version = pins.get(canonical(wanted.name))
            assert version is not None and wanted.specifier.contains(version), (
                f"{wanted} is pinned to {version}: run make lock"
            )


def test_each_pin_has_hashes() -> None:
    pins = list(requirements("vehicle.lock"))
    assert len(pins) > 20 and all(hashes for _, hashes in pins)


@pytest.mark.parametrize("path", sorted(FOLDER.iterdir()), ids=lambda path: path.name)
def test_no_file_names_a_registry(path: Path) -> None:
    assert "://" not in path.read_text(encoding="utf-8")
