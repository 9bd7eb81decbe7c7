# SPDX-License-Identifier: Apache-2.0
"""Version of the installed package."""

from __future__ import annotations

import re
from functools import lru_cache
from importlib import metadata
from pathlib import Path


@lru_cache(maxsize=1)
def package_version() -> str:
    """Return the version, also where the package runs from its repository; "unknown" if neither tells."""
    try:
        return metadata.version("nightlab_ros")
    except metadata.PackageNotFoundError:
        manifest = Path(__file__).resolve().parents[1] / "package.xml"
        text = manifest.read_text(encoding="utf-8") if manifest.is_file() else ""
        match = re.search(r"<version>([^<]+)</version>", text)
        return match[1] if match else "unknown"
