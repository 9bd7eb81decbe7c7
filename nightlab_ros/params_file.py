# SPDX-License-Identifier: Apache-2.0
"""Check a file of ROS parameters before a node starts with it: ROS ignores a file that names another node."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nightlab_core.yaml_files import ConfigError, read_yaml


def check_params_file(path: Path, node: str, argument: str = "params_file") -> None:
    """Raise ValueError unless a YAML file holds parameters for the node with this full name, such as "/front/nightlab".

    `argument` is the launch argument that names the file. A file that is no YAML raises ConfigError, a ValueError, as
    does one that cannot be read.
    """
    try:
        names = list(_node_names(read_yaml(path)))
    except OSError as error:
        raise ConfigError(f"{argument}: {path}: {error.strerror}; expected a YAML file of parameters") from error
    if not any(_matches(name, node) for name in names):
        found = ", ".join(names) if names else "no node with ros__parameters"
        raise ValueError(f"{path} has parameters of {found}; expected {node}, or /** for every node")


def _node_names(content: Any, prefix: str = "") -> Iterator[str]:
    """Yield the names of the nodes that a file has parameters of, with their namespaces."""
    if not isinstance(content, dict):
        return
    for key, value in content.items():
        if key == "ros__parameters":
            yield prefix or "/"
        else:
            yield from _node_names(value, f"{prefix}/{str(key).strip('/')}")


def _matches(name: str, node: str) -> bool:
    """Return True if a name matches a node's: `*` stands for one part of a name, `**` for any number of parts."""
    pattern = re.escape(name).replace(re.escape("/**"), "(/.+)?").replace(re.escape("*"), "[^/]+")
    return re.fullmatch(pattern, node) is not None
