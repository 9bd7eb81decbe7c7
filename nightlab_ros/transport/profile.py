# SPDX-License-Identifier: Apache-2.0
"""Fast DDS's profiles: where they are installed, which fits this machine, and what to advise where images are lost."""

from __future__ import annotations

import os
import shutil
from importlib import metadata
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")
#: Shared memory that a process with the profile takes, in bytes.
SEGMENT_BYTES = 35_127_840


def profile_variable() -> str:
    """Return Fast DDS's variable of this distribution: Kilted and later ones warn of the old name."""
    up_to_jazzy = int(metadata.version("rclpy").split(".")[0]) < 8
    return "FASTRTPS_DEFAULT_PROFILES_FILE" if up_to_jazzy else "FASTDDS_DEFAULT_PROFILES_FILE"


def profile_path(name: str = "fastdds.xml") -> Path:
    """Return the absolute path of a profile, in the repository or in the share folder that pip or colcon installed.

    ROS's index is not asked: after `pip install` it does not know the package. Raises FileNotFoundError.
    """
    above = Path(__file__).resolve().parents
    for folder in (above[2] / "config", *(folder / "share" / "nightlab_ros" / "config" for folder in above)):
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(
        f"{name} is in no folder share/nightlab_ros/config above {above[0]}: install the package with pip or colcon"
    )


def choose_profile(num_processes: int) -> tuple[Path, str]:
    """Return the profile for so many new processes, and a sentence if /dev/shm has no room for that of large images."""
    needed, free = num_processes * SEGMENT_BYTES, free_shared_memory()
    if free >= needed:
        return profile_path(), ""
    note = (
        f"{SHARED_MEMORY} has {free // 2**20} MB free, and {num_processes} processes need {needed // 2**20 + 1} MB: "
        "images go over UDP, which is slower. In a container, docker run --shm-size=512m enlarges it"
    )
    return profile_path("fastdds_network.xml"), note


def profile_environment(num_processes: int) -> dict[str, str]:
    """Return Fast DDS's variable with the profile for so many new processes; nothing where the user has set one."""
    if any(name.endswith("_DEFAULT_PROFILES_FILE") for name in os.environ):
        return {}
    profile, note = choose_profile(num_processes)
    if note:
        print(note)
    return {profile_variable(): str(profile)}


def free_shared_memory() -> int:
    """Return the free shared memory in bytes; 0 where there is none."""
    return shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else 0


def loss_advice(reliability: str, middleware: str, *, by_parameter: bool = False) -> str:
    """Return a sentence for lost images: `reliability` of the subscription, `middleware` as rclpy names it.

    `by_parameter`: a qos_overrides parameter sets the reliability, whatever the camera offers.
    It leaves out what this process has already.
    """
    lost = f"images are lost in the transport, which is {reliability}: "
    change = (
        "leave out the qos_overrides parameter that says so" if by_parameter else "let the camera publish as reliable"
    )
    reliable = "" if reliability == "reliable" else f"{change}, or "
    if "fastrtps" not in middleware:
        return f"{lost}{reliable}enlarge the buffers of {middleware}"
    variable, path = profile_variable(), profile_path()
    given = os.environ.get(variable)
    if not given:
        advice = f"start the camera and this node with {variable}={path}"
    elif Path(given).resolve() == path:
        advice = f"start the camera, too, with {variable}={path}"
    else:
        advice = f"compare the profile {given}, with which this node was started, with {path}"
    free_bytes = free_shared_memory()
    if free_bytes < SEGMENT_BYTES:
        advice = (
            f"enlarge {SHARED_MEMORY}, which has {free_bytes // 2**20} MB free where each process with the profile "
            f"takes 34 MB; then {advice}"
        )
    return lost + reliable + advice
