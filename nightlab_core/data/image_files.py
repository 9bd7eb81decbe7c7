# SPDX-License-Identifier: Apache-2.0
"""Decode image files to arrays: the one place where compressed images of topics, bags and folders are decoded.

The size is read from the header first (see `image_header`), damage is an error, and the orientation in EXIF is ignored,
so that labels and masks keep the camera's pixel grid.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from nightlab_core.data.folders import visible
from nightlab_core.data.image_header import PNG, ImageError, check_bytes, check_header
from nightlab_core.data.jpeg import decode_jpeg
from nightlab_core.data.pixel_depth import FIRST_FRAMES, PixelDepth
from nightlab_core.data.png import png_chunks

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif")
#: Images of other formats: left out, and named.
UNREAD_SUFFIXES = (".heic", ".heif", ".jxl", ".jp2", ".dng", ".exr", ".ppm", ".pgm")
_HEAD_BYTES = 25  #: up to the bit depth of a PNG
_SEVERAL = ("WebP", "TIFF", "GIF", "AVIF")  #: formats that hold several images
if "OPENCV_LOG_LEVEL" not in os.environ:  # every ImageError says what OpenCV would write to standard error
    _set_log_level = getattr(cv2, "setLogLevel", None) or cv2.utils.logging.setLogLevel  # its place up to OpenCV 4.6
    _set_log_level(0)


def decode_bgr(data: bytes, depth: PixelDepth | None = None) -> np.ndarray:
    """Decode the bytes of an image file to uint8 (H, W, 3) BGR. Raises ImageError.

    `depth` is the stream's, for pixels of 16 bits; without it all 16 bits are significant.
    """
    if not _may_have_16_bits(data):
        return decode_image(data)
    pixels = decode_image(data, cv2.IMREAD_UNCHANGED)
    if pixels.dtype == np.uint16:
        pixels = (depth or PixelDepth(16)).to_8_bits(pixels)
    elif pixels.dtype != np.uint8:
        raise ImageError(f"received an image of {pixels.dtype} pixels; expected uint8 or uint16")
    code = {1: cv2.COLOR_GRAY2BGR, 4: cv2.COLOR_BGRA2BGR}.get(1 if pixels.ndim == 2 else pixels.shape[2])
    return pixels if code is None else cv2.cvtColor(pixels, code)


def decode_image(data: bytes, flags: int = cv2.IMREAD_COLOR) -> np.ndarray:
    """Decode the bytes of an image file: uint8 (H, W, 3) BGR unless OpenCV's `flags` say otherwise.

    Raises ImageError for bytes that are no image, sizes beyond the limits, damaged files, and several images in one.
    """
    kind, size = check_header(data)
    if kind == "JPEG":
        return decode_jpeg(data, size, grey=None if flags == cv2.IMREAD_UNCHANGED else False)
    if kind == "PNG":
        for _ in png_chunks(data):
            pass  # raises for a damaged chunk
    if kind in _SEVERAL and not hasattr(cv2, "imdecodemulti"):  # imdecode would take the first image of several
        raise ImageError(
            f"received a {kind}, whose images OpenCV {cv2.__version__} cannot count; expected 4.10 or later"
        )
    packed = np.frombuffer(data, np.uint8)
    try:
        if kind in _SEVERAL:
            found = cv2.imdecodemulti(packed, flags | cv2.IMREAD_IGNORE_ORIENTATION, range=(0, 2))[1]
        else:
            image = cv2.imdecode(packed, flags | cv2.IMREAD_IGNORE_ORIENTATION)
            found = () if image is None else (image,)
    except cv2.error as error:
        raise ImageError(f"received {len(data)} bytes of {kind} that OpenCV cannot decode: {error}") from error
    if not found:
        raise ImageError(
            f"received {len(data)} bytes of {kind} that are corrupt, or that OpenCV {cv2.__version__} cannot decode"
        )
    if len(found) > 1:
        raise ImageError(f"received a {kind} of several images; expected a file of one image")
    return np.asarray(found[0])


def decode_pixels_of_16_bits(data: bytes) -> np.ndarray | None:
    """Return the uint16 pixels of an image file's bytes as they are; None for 8 bits. Raises ImageError."""
    if not _may_have_16_bits(data):
        return None
    pixels = decode_image(data, cv2.IMREAD_UNCHANGED)
    return pixels if pixels.dtype == np.uint16 else None


def depth_of_files(files: Sequence[Path], bits: int = 0) -> PixelDepth:
    """Return the depth of a folder's images: given, or measured over the first files with pixels of 16 bits.

    Files that cannot be read are skipped; reading their image raises.
    """

    def first_pixels() -> Iterator[np.ndarray]:
        for file in filter(Path.is_file, files[:FIRST_FRAMES]):  # a pipe would be waited for
            with contextlib.suppress(OSError, ImageError):
                with file.open("rb") as opened:
                    head = opened.read(_HEAD_BYTES)
                pixels = decode_pixels_of_16_bits(read_file(file)) if _may_have_16_bits(head) else None
                if pixels is not None:
                    yield pixels

    depth = PixelDepth(bits)
    depth.measure(first_pixels())
    return depth


def image_files(folder: Path) -> list[Path]:
    """List the image files of a folder in the natural order of their names, without hidden files."""
    return [p for p in visible(folder) if p.suffix.lower() in IMAGE_SUFFIXES]


def read_image(file: Path, depth: PixelDepth | None = None) -> np.ndarray:
    """Read an image file: uint8 (H, W, 3) BGR; for `depth` see `decode_bgr`. Raises OSError and ValueError."""
    try:
        return decode_bgr(read_file(file), depth)
    except ImageError as error:
        raise ValueError(f"{file} cannot be read as an image: {error}") from error


def read_file(file: Path) -> bytes:
    """Return the bytes of an image file. Raises OSError, and ImageError for one too large, or no file but a pipe."""
    status = file.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ImageError("it is a folder, a pipe or a device; expected a file")
    check_bytes(status.st_size)
    return file.read_bytes()


def _may_have_16_bits(data: bytes) -> bool:
    """Return whether the first bytes of a file are those of a PNG of 16 bits or of a TIFF."""
    is_png_16 = data.startswith(PNG) and data[_HEAD_BYTES - 1 : _HEAD_BYTES] == b"\x10"
    return is_png_16 or data.startswith((b"II*\0", b"MM\0*"))
