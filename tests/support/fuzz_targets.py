# SPDX-License-Identifier: Apache-2.0
"""Everything that reads bytes from outside, as functions to fuzz: each returns, or raises an error that is a fault."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from array import array
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from nightlab_core.config import checked
from nightlab_core.data.bags.messages import COMPRESSED_TYPE, IMAGE_TYPE, deserialize
from nightlab_core.data.bags.protocol import BagError
from nightlab_core.data.bags.reader import Bag
from nightlab_core.data.bags.topics import TopicError
from nightlab_core.data.image_files import decode_bgr
from nightlab_core.data.image_header import ImageError
from nightlab_core.data.images import ENCODINGS, message_to_bgr
from nightlab_core.runtime.bundle import Manifest
from nightlab_core.runtime.onnx_file import read_onnx
from nightlab_core.yaml_files import ConfigError, read_yaml


def _folder() -> Path:
    """Return a folder in memory, where the machine has one, since readers of bags and YAML take paths."""
    parent = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="nightlab-fuzz-", dir=parent))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


FOLDER = _folder()
_NAMES = sorted(ENCODINGS)


def _file(name: str, data: bytes) -> Path:
    path = FOLDER / name
    path.write_bytes(data)
    return path


def images(data: bytes) -> None:
    """Decode a compressed image."""
    try:
        frame = decode_bgr(data)
    except ImageError:
        return
    _check_frame(frame)


def raw_images(data: bytes) -> None:
    """Convert a raw image; six bytes choose its header."""
    head = data[:6].ljust(6, b"\0")
    message = SimpleNamespace(
        height=head[0],
        width=head[1],
        step=head[2] | head[3] << 8,
        encoding=_NAMES[head[4] % len(_NAMES)],
        is_bigendian=head[5] & 1,
        data=array("B", data[6:]),
    )
    try:
        frame = message_to_bgr(message)
    except ImageError:
        return
    _check_frame(frame)


def cdr(data: bytes) -> None:
    """Read a serialised message, and convert its image."""
    for message_type in (IMAGE_TYPE, COMPRESSED_TYPE):
        try:
            frame = message_to_bgr(deserialize(data, message_type))
        except (BagError, ImageError):
            continue
        _check_frame(frame)


def bundle_yaml(data: bytes) -> None:
    """Read a bundle's manifest."""
    path = _file("bundle.yaml", data)
    try:
        checked(read_yaml(path), Manifest, path)
    except ConfigError:
        return


def networks(data: bytes) -> None:
    """Read the facts of an ONNX file."""
    try:
        read_onnx(_file("network.onnx", data))
    except ValueError:
        return


def _bag(name: str) -> Callable[[bytes], None]:
    def read(data: bytes) -> None:
        path = _file(name, data)
        try:
            with Bag(path) as bag:
                for frame in bag.frames(0, min(len(bag), 20)):
                    if frame.image_bgr is not None:
                        _check_frame(frame.image_bgr)
        except (BagError, TopicError):
            return

    read.__doc__ = f"Read every frame of a bag: {name}."
    return read


def _check_frame(frame: np.ndarray) -> None:
    assert frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[2] == 3 and 0 not in frame.shape


#: Functions by the name of their corpus.
TARGETS: dict[str, Callable[[bytes], None]] = {
    "images": images,
    "raw_images": raw_images,
    "cdr": cdr,
    "bundle_yaml": bundle_yaml,
    "networks": networks,
    "bags_mcap": _bag("bag.mcap"),
    "bags_sqlite": _bag("bag.db3"),
    "bags_ros1": _bag("bag.bag"),
}
