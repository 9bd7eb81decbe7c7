# SPDX-License-Identifier: Apache-2.0
"""Describe the inputs of a run: bags, bundle, hashes, library versions, machine."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from nightlab_core.classes import load_class_set, shipped_keys
from nightlab_core.data.bags.protocol import BagError
from nightlab_core.data.bags.reader import Bag
from nightlab_core.data.bags.storage import bag_files
from nightlab_core.data.bags.topics import TopicError
from nightlab_core.labels import ClassSet
from nightlab_core.runtime.bundle import MANIFEST_NAME, Bundle, sha256_of
from nightlab_core.runtime.hardware import cpu_model, usable_cores
from nightlab_core.version import package_version
from nightlab_replay.records import BagInfo, BundleInfo, TopicInfo

_PACKAGES = ("numpy", "opencv-python-headless", "openvino", "onnxruntime", "rosbags", "distributed", "rclpy")


def describe_bags(
    paths: Sequence[Path],
    topic: str | None,
    label_topic: str | None,
    max_frames: int | None,
    classes_of: Callable[[BagInfo], ClassSet] | None = None,
    pixel_bits: int = 0,
) -> list[BagInfo]:
    """Open each bag once and describe it. A bag that cannot be read at all is described with its problem.

    `classes_of` returns the class set of a bag's label maps; with it, doubtful ids are among the bag's notes.

    `pixel_bits` are the significant bits of 16-bit pixels, see `Bag`.

    Raises ValueError if a bag is given twice, also as a folder and a file in it. If none of the bags can be opened,
    raises the error of the first: FileNotFoundError, OSError or TopicError.
    """
    errors: list[Exception] = []
    bags: list[BagInfo] = []
    for path in paths:
        place = path.resolve()
        for given in (Path(bag.path) for bag in bags):
            if given == place:
                raise ValueError(f"{path} is given twice")
            if (place.is_file() and place.parent == given) or (given.is_file() and given.parent == place):
                raise ValueError(f"{path} is given twice, also as {given}")
        name = place.name
        taken = {bag.name for bag in bags}
        while name in taken:
            name += "_"
        try:
            bags.append(_describe_bag(name, path, topic, label_topic, max_frames, classes_of, pixel_bits))
        except (OSError, TopicError) as error:
            errors.append(error)
            bags.append(_unreadable(name, path, str(error)))
    if errors and len(errors) == len(bags):
        raise errors[0]
    return bags


def _unreadable(name: str, path: Path, problem: str) -> BagInfo:
    return BagInfo(
        name=name,
        path=str(path.resolve()),
        size_bytes=0,
        mtimes_ns={},
        storage="unreadable",
        topics={},
        num_frames=0,
        problems=(problem,),
    )


def _describe_bag(
    name: str,
    path: Path,
    topic: str | None,
    label_topic: str | None,
    max_frames: int | None,
    classes_of: Callable[[BagInfo], ClassSet] | None,
    pixel_bits: int,
) -> BagInfo:
    stats = {f.name: f.stat() for f in bag_files(path)} if path.exists() else {}
    known: dict[str, Any] = {
        "name": name,
        "path": str(path.resolve()),
        "size_bytes": sum(stat.st_size for stat in stats.values()),
        "mtimes_ns": {file: stat.st_mtime_ns for file, stat in stats.items()},
    }
    try:
        with Bag(path, topic, label_topic, pixel_bits) as bag:
            num_frames = len(bag) if max_frames is None else min(len(bag), max_frames)
            found = BagInfo(
                **known,
                storage=bag.kind,
                topics={n: TopicInfo(type=t.type, count=t.count) for n, t in sorted(bag.topics.items())},
                image_topic=bag.image_topic,
                label_topic=bag.label_topic,
                label_classes=bag.label_classes,
                num_frames=num_frames,
                num_labels=bag.num_labels,
                frame_hw=_frame_hw(bag, num_frames),
                problems=tuple(bag.problems),
                notes=tuple(bag.notes),
            )
            doubts = bag.label_doubts(classes_of(found)) if classes_of else []
            return found.model_copy(update={"notes": (*found.notes, *doubts)})
    except BagError as error:
        return BagInfo(**known, storage="unreadable", topics={}, num_frames=0, problems=(str(error),))


def _frame_hw(bag: Bag, num_frames: int) -> tuple[int, int] | None:
    images = (frame.image_bgr for frame in bag.frames(0, num_frames))
    return next(((image.shape[0], image.shape[1]) for image in images if image is not None), None)


def label_class_set(requested: str | None, bags: Sequence[BagInfo], bundle: ClassSet) -> ClassSet:
    """Return the class set of the labels: as requested, else as the bags say, else the bundle's.

    Raises ValueError if the bags disagree or name an unknown class set.
    """
    if requested is not None:
        return bundle if requested == bundle.key else load_class_set(requested)
    named = {bag.label_classes: bag.name for bag in bags if bag.label_classes and bag.num_labels}
    if len(named) > 1:
        raise ValueError(
            f"the labels of the bags have different class sets ({', '.join(f'{n}: {c}' for c, n in named.items())}): "
            "replay these bags into separate folders"
        )
    for key, name in named.items():
        if key == bundle.key:
            return bundle
        if key not in shipped_keys():
            raise ValueError(
                f"{name}: the class set of its labels is {key!r}, expected one of {', '.join(shipped_keys())}: "
                "choose one with --classes"
            )
        return load_class_set(str(key))
    return bundle


def describe_bundle(bundle: Bundle, engine: str) -> BundleInfo:
    """Describe a bundle and the name of the engine that runs it."""
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
    """Return the versions of Python and of the libraries that affect the result."""
    found = {"python": platform.python_version(), "nightlab_ros": package_version()}
    for package in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def machine() -> dict[str, str]:
    """Describe this machine. The workers of a cluster may run on others."""
    found = {"system": platform.platform(), "cpu": cpu_model(), "cores": str(usable_cores())}
    if sys.platform == "linux":
        found["memory_gib"] = f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f}"
    return found


class BagHashes:
    """SHA-256 of every file of the bags, computed in a thread while a replay reads the same files."""

    def __init__(self, bags: Sequence[BagInfo]) -> None:
        self._found: dict[str, dict[str, str]] = {}
        self._cancelled = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(bags,), daemon=True)
        self._thread.start()

    def wait(self) -> dict[str, dict[str, str]]:
        """Wait for all hashes and return them by bag and file."""
        self._thread.join()
        return self._found

    def cancel(self) -> None:
        """Stop computing. The hashes found so far must not be used."""
        self._cancelled.set()

    def _work(self, bags: Sequence[BagInfo]) -> None:
        for bag in bags:
            with suppress(OSError):  # the problem of an unreadable file is already in its `BagInfo`
                self._found[bag.name] = {f.name: self._hash(f) for f in bag_files(Path(bag.path))}

    def _hash(self, path: Path) -> str:
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while not self._cancelled.is_set() and (block := file.read(1 << 20)):
                digest.update(block)
        return digest.hexdigest()
