# SPDX-License-Identifier: Apache-2.0
"""Make an environment smaller: remove files that no test loads, and link copies of one file to each other.

python requirements/trim.py ENVIRONMENT

The wheels of ROS hold each library up to three times, since a wheel cannot hold a link.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from pathlib import Path

#: Below the environment's folder: headers, packages' own tests, and OpenVINO's plugins for devices other than the CPU.
UNUSED = (
    "include",
    "lib/python3.*/site-packages/*/tests",
    "lib/python3.*/site-packages/*/include",
    "lib/python3.*/site-packages/onnx/backend/test",
    "lib/python3.*/site-packages/openvino/libs/libopenvino_intel_[gn]pu_*",
)
#: Smaller files are not worth a link, in bytes.
LEAST_BYTES = 100_000


def trim(environment: Path) -> None:
    """Trim the environment in place."""
    for pattern in UNUSED:
        for path in sorted(environment.glob(pattern)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    first: dict[str, Path] = {}
    for path in sorted(environment.rglob("*")):
        if path.is_symlink() or not path.is_file() or path.stat().st_size < LEAST_BYTES:
            continue
        original = first.setdefault(hashlib.sha256(path.read_bytes()).hexdigest(), path)
        if original is not path:
            path.unlink()
            os.link(original, path)


if __name__ == "__main__":
    trim(Path(sys.argv[1]))
