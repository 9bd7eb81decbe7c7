# SPDX-License-Identifier: Apache-2.0
"""Write what a camera saw into a folder of bounded size: frame, masks of both levels, regions, diagnostics.

A capture is a folder of its own, which appears whole or not at all. Imports no ROS.
"""

from __future__ import annotations

import json
import re
import shutil
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from nightlab_core.runtime.pipeline import Result
from nightlab_ros.monitoring.health import HealthReport
from nightlab_ros.publishing.messages import region_records

#: Name of a capture's folder; no other folder is ever deleted. The camera's name is missing if it has none.
NAME = re.compile(r"capture-\d{8}T\d{6}\.\d{6}Z(-[A-Za-z]\w*)?")
#: Seconds after which an unfinished capture counts as left by a killed process.
_ABANDONED_S = 3600.0
#: Fast compression: a capture must not take long.
_PNG = (cv2.IMWRITE_PNG_COMPRESSION, 1)


class CaptureError(Exception):
    """A capture could not be written. The message says why and what to do."""


class CaptureStore:
    """Captures in one folder. The oldest are deleted when their sum exceeds the limit. Any thread may save."""

    def __init__(self, folder: str, max_mb: int) -> None:
        """Use `folder`, which is created with the first capture. Raises CaptureError for a ~ that leads nowhere."""
        if folder.startswith("~"):
            raise CaptureError(f"{folder}: there is no home directory; set HOME, or capture_dir to a folder")
        self._folder, self._max_bytes = Path(folder), max_mb * 1_000_000
        self._lock = threading.Lock()

    def save(self, camera: str, files: Mapping[str, bytes]) -> Path:
        """Write a capture with these files, and return its folder. Raises CaptureError."""
        moment = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S.%fZ")
        path = self._folder / "-".join(["capture", moment, *([camera] if camera else [])])
        temporary = self._folder / f".{path.name}"
        size = sum(map(len, files.values()))
        if size > self._max_bytes:
            raise CaptureError(
                f"a capture has {size / 1e6:.1f} MB, capture_max_mb allows {self._max_bytes // 1_000_000}: increase it"
            )
        with self._lock:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                self._make_room(size)
                temporary.mkdir()
                for name, data in files.items():
                    (temporary / name).write_bytes(data)
                temporary.rename(path)
            except OSError as error:
                raise CaptureError(f"{path}: {error.strerror or error}; check capture_dir and its disk") from error
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        return path

    def _make_room(self, size: int) -> None:
        """Delete what a killed process left, and the oldest captures until `size` bytes more fit."""
        for left in self._folder.glob(".capture-*"):
            if NAME.fullmatch(left.name[1:]) and time.time() - left.stat().st_mtime > _ABANDONED_S:
                shutil.rmtree(left, ignore_errors=True)
        captures = sorted(path for path in self._folder.iterdir() if NAME.fullmatch(path.name) and path.is_dir())
        sizes = [sum(file.stat().st_size for file in path.iterdir()) for path in captures]
        used = sum(sizes)
        for path, freed in zip(captures, sizes, strict=True):
            if used + size <= self._max_bytes:
                return
            shutil.rmtree(path)
            used -= freed


def capture_files(
    frame_bgr: np.ndarray, result: Result, origin: Mapping[str, Any], report: HealthReport
) -> dict[str, bytes]:
    """Return the files of a capture by name: PNG images, and capture.json.

    `frame_bgr` is uint8 (H, W, 3). `origin` says where the frame comes from and with which settings it was processed.
    """
    description = {
        **origin,
        "light_level": result.light_level,
        "refine_reason": result.refine_reason,
        "stages_ms": result.stages_ms,
        "regions": region_records(result),
        "diagnostics": asdict(report),
    }
    images = {
        "frame.png": frame_bgr,
        "mask.png": result.labels,
        "confidence.png": result.confidence,
        "image_level_mask.png": result.image_labels,
        "image_level_confidence.png": result.image_confidence,
    }
    files = {name: cv2.imencode(".png", pixels, _PNG)[1].tobytes() for name, pixels in images.items()}
    return files | {"capture.json": json.dumps(description, indent=2).encode()}
