# SPDX-License-Identifier: Apache-2.0
"""Read metadata.yaml, which rosbag2 writes beside a bag's files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nightlab_core.config import ConfigError, read_yaml

METADATA_NAME = "metadata.yaml"
#: Key in `custom_data` that names the class set of a bag's labels.
CLASSES_KEY = "nightlab_classes"


def bag_information(folder: Path) -> dict[str, Any]:
    """Return `rosbag2_bagfile_information` of a bag folder. Raises FileNotFoundError, and ValueError if unusable."""
    try:
        return dict(read_yaml(folder / METADATA_NAME)["rosbag2_bagfile_information"])
    except (ConfigError, KeyError, TypeError) as error:
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error


def custom_data(bag: Path) -> dict[str, str]:
    """Return `custom_data` from metadata.yaml; empty if there is none or it cannot be used.

    For a single file the metadata.yaml beside it counts, if it lists the file.
    """
    try:
        information = bag_information(bag.parent if bag.is_file() else bag)
        names = [Path(str(name)).name for name in information["relative_file_paths"]] if bag.is_file() else [bag.name]
        found = dict(information.get("custom_data") or {}) if bag.name in names else {}
    except (OSError, AttributeError, KeyError, TypeError, ValueError):
        return {}
    return {str(key): str(value) for key, value in found.items()}
