# SPDX-License-Identifier: Apache-2.0
"""What a run was made of and on: hashes of bundle and bags, versions, machine."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from nightlab_core.data.bags.storage import bag_files
from nightlab_core.runtime.bundle import MANIFEST_NAME, Bundle, sha256_of
from nightlab_replay.records import BagInfo, BundleInfo

_PACKAGES = ("numpy", "opencv-python-headless", "openvino", "onnxruntime", "rosbags", "mcap", "distributed", "rclpy")


def bundle_info(bundle: Bundle, engine: str) -> BundleInfo:
    """What is written down of a bundle."""
    files = bundle.manifest.engines
    names = [MANIFEST_NAME, files.image.file, files.hardness.file, files.region.file]
    return BundleInfo(
        path=str(bundle.dir.resolve()),
        name=bundle.manifest.name,
        sha256={name: sha256_of(bundle.dir / name) for name in names},
        manifest=bundle.manifest.model_dump(mode="json"),
        engine=engine,
    )


def versions() -> dict[str, str]:
    """Of Python and of the libraries that have a say in the result."""
    found = {"python": platform.python_version()}
    for package in ("nightlab_ros", *_PACKAGES):
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def machine() -> dict[str, str]:
    """What this replay ran on; the distributed one's workers may differ."""
    cpu = platform.processor() or platform.machine()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), cpu)
    found = {"system": platform.platform(), "cpu": cpu, "cores": str(os.cpu_count())}
    if sys.platform == "linux":
        found["memory_gib"] = f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f}"
    return found


class Hashes:
    """SHA-256 of every file of the bags, computed on a thread: beside a replay that has the files in memory anyway."""

    def __init__(self, bags: Sequence[BagInfo]) -> None:
        self._found: dict[str, dict[str, str]] = {}
        self._cancelled = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(bags,), daemon=True)
        self._thread.start()

    def wait(self) -> dict[str, dict[str, str]]:
        """By bag and file, when all are done."""
        self._thread.join()
        return self._found

    def cancel(self) -> None:
        """Stop; what was found so far is of no use."""
        self._cancelled.set()

    def _work(self, bags: Sequence[BagInfo]) -> None:
        for bag in bags:
            with suppress(OSError):  # one that cannot be read is a problem that the bag's list has already
                self._found[bag.name] = {f.name: self._hash(f) for f in bag_files(Path(bag.path))}

    def _hash(self, path: Path) -> str:
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while not self._cancelled.is_set() and (block := file.read(1 << 20)):
                digest.update(block)
        return digest.hexdigest()
