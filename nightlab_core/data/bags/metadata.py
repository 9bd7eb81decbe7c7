# SPDX-License-Identifier: Apache-2.0
"""Read metadata.yaml, which rosbag2 writes beside a bag's files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nightlab_core.yaml_files import ConfigError, read_yaml

METADATA_NAME = "metadata.yaml"
#: Key in `custom_data` that names the class set of a bag's labels.
CLASSES_KEY = "nightlab_classes"


def bag_information(folder: Path) -> dict[str, Any]:
    """Return `rosbag2_bagfile_information` of a bag folder. Raises FileNotFoundError, and ValueError if unusable."""
    try:
        return dict(read_yaml(folder / METADATA_NAME)["rosbag2_bagfile_information"])
    except (ConfigError, KeyError, TypeError) as error:
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error


def custom_data(information: dict[str, Any]) -> dict[str, str]:
    """Return `custom_data` of `bag_information`; empty if there is none or it cannot be used."""
    try:
        return {str(key): str(value) for key, value in dict(information.get("custom_data") or {}).items()}
    except (TypeError, ValueError):
        return {}


def custom_data_of_file(file: Path) -> dict[str, str]:
    """Return `custom_data` of the metadata.yaml beside a bag's file; empty if that does not list the file."""
    try:
        information = bag_information(file.parent)
        listed = [Path(str(name)).name for name in information["relative_file_paths"]]
    except (OSError, KeyError, TypeError, ValueError):
        return {}
    return custom_data(information) if file.name in listed else {}
