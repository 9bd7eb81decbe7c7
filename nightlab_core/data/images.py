# SPDX-License-Identifier: Apache-2.0
"""Convert between ROS image messages and arrays, without ROS.

Messages are duck-typed: they need `height`, `width`, `encoding`, `step`, `is_bigendian` and `data`, or `format` and
`data`. Reading checks the message first, honours row padding (`step`) and `is_bigendian`, and always returns uint8
(H, W, 3) BGR. bgr8 is a view of the message's bytes, without a copy. Every other encoding goes through a converter:
rosbags-image, or the one that the caller passes. 16-bit pixels are scaled linearly, 65535 to 255, rounded, so a 12-bit
camera that does not shift its values up looks dark.
"""

from __future__ import annotations

import io
import sys
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(frozen=True)
class Encoding:
    """How an encoding stores its pixels.

    YUV 4:2:2 counts as two channels: one luma and one shared chroma byte. `converts_as` is the name under which every
    converter knows the 8-bit form of the encoding.
    """

    bytes_per_channel: int
    channels: int
    converts_as: str


_BAYER = ("bayer_rggb", "bayer_bggr", "bayer_gbrg", "bayer_grbg")
#: Every supported encoding of sensor_msgs/Image. All others are refused.
ENCODINGS = {
    **{name: Encoding(1, 3, name) for name in ("bgr8", "rgb8")},
    **{name: Encoding(1, 4, name) for name in ("bgra8", "rgba8")},
    "mono8": Encoding(1, 1, "mono8"),
    "mono16": Encoding(2, 1, "mono8"),
    **{f"{pattern}8": Encoding(1, 1, f"{pattern}8") for pattern in _BAYER},
    **{f"{pattern}16": Encoding(2, 1, f"{pattern}8") for pattern in _BAYER},
    "yuv422": Encoding(1, 2, "yuv422"),
    "uyvy": Encoding(1, 2, "yuv422"),  # newer names, which cv_bridge of older distributions does not know
    "yuv422_yuy2": Encoding(1, 2, "yuv422_yuy2"),
    "yuyv": Encoding(1, 2, "yuv422_yuy2"),
}
_LABEL_ENCODINGS = ("mono8", "8UC1")
_JPEG, _JPEG_SCAN, _JPEG_END = b"\xff\xd8\xff", 0xDA, b"\xff\xd9"
_PNG, _PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xae\x42\x60\x82"

#: Converts a packed 8-bit message of an encoding in `Encoding.converts_as` to uint8 (H, W, 3) BGR.
Converter = Callable[[Any], np.ndarray]


class ImageError(ValueError):
    """A message or file holds no usable image. The text says what was received and what was expected."""


def rosbags_image(packed: Any) -> np.ndarray:
    """Convert with rosbags-image; the default converter. Raises ImageError if it is not installed."""
    try:
        from rosbags.image import image_to_cvimage
    except ImportError as error:
        raise ImageError(f"only bgr8 can be read: rosbags-image is not installed ({error})") from error
    return image_to_cvimage(packed, "bgr8")


def message_to_bgr(msg: Any, convert: Converter = rosbags_image) -> np.ndarray:
    """Convert a sensor_msgs/Image or CompressedImage to uint8 (H, W, 3) BGR. Raises ImageError."""
    return compressed_to_bgr(msg, convert) if hasattr(msg, "format") else image_to_bgr(msg, convert)


def image_to_bgr(msg: Any, convert: Converter = rosbags_image) -> np.ndarray:
    """Convert a sensor_msgs/Image to uint8 (H, W, 3) BGR. For bgr8 the result shares the message's memory.

    Raises ImageError for an unsupported encoding, an empty image, or data that does not fit height, step and encoding.
    """
    encoding = ENCODINGS.get(msg.encoding)
    if encoding is None:
        raise _unsupported(msg.encoding)
    pixels = _pixels(msg, encoding)
    if msg.encoding == "bgr8":
        return pixels
    if pixels.dtype == np.uint16:
        pixels = cv2.convertScaleAbs(pixels, alpha=255.0 / 65535.0)
    pixels = np.ascontiguousarray(pixels)
    packed = SimpleNamespace(height=msg.height, width=msg.width, encoding=encoding.converts_as, is_bigendian=0)
    packed.step, packed.data = pixels.strides[0], pixels.reshape(-1).data
    return convert(packed)


def compressed_to_bgr(msg: Any, convert: Converter = rosbags_image) -> np.ndarray:
    """Decode a sensor_msgs/CompressedImage, JPEG or PNG, to uint8 (H, W, 3) BGR.

    If image_transport compressed the mosaic of a Bayer camera without converting it, and says so in `format`, its
    colours are computed here. Raises ImageError for another format and for a file that is cut short.
    """
    data = bytes(msg.data)
    if not data.startswith((_JPEG, _PNG)):
        raise ImageError(
            f"received {len(data)} bytes of format {msg.format!r} beginning with {data[:8].hex() or 'nothing'}; "
            "expected a JPEG or PNG file"
        )
    mosaic = _bayer_encoding(msg.format)
    image = decode_image(data, cv2.IMREAD_UNCHANGED if mosaic else cv2.IMREAD_COLOR)
    return image_to_bgr(fill_image(SimpleNamespace(), image, mosaic), convert) if mosaic else image


def decode_image(data: bytes, flags: int = cv2.IMREAD_COLOR) -> np.ndarray:
    """Decode the bytes of an image file: uint8 (H, W, 3) BGR unless OpenCV's `flags` say otherwise.

    The orientation in EXIF is ignored, so that labels and masks keep the camera's pixel grid. Raises ImageError for
    bytes that are no image, and for a JPEG or PNG that is cut short: OpenCV would fill the missing part with grey.
    """
    kind = "JPEG" if data.startswith(_JPEG) else "PNG" if data.startswith(_PNG) else "an image file"
    if (kind == "JPEG" and not _has_jpeg_end(data)) or (kind == "PNG" and _PNG_END not in data):
        raise ImageError(f"received {len(data)} bytes of {kind} without its end: it is cut short")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags | cv2.IMREAD_IGNORE_ORIENTATION) if data else None
    except cv2.error as error:
        raise ImageError(f"received {len(data)} bytes that OpenCV cannot decode: {error}") from error
    if image is None:
        raise ImageError(f"received {len(data)} bytes of {kind} that are corrupt")
    return image


def image_files(folder: Path) -> list[Path]:
    """List the image files of a folder by name, without hidden files, which other file systems leave beside images."""
    visible = (p for p in folder.iterdir() if not p.name.startswith("."))
    return sorted(p for p in visible if p.suffix.lower() in IMAGE_SUFFIXES)


def read_image(file: Path, flags: int = cv2.IMREAD_COLOR) -> np.ndarray:
    """Read an image file: uint8 (H, W, 3) BGR unless OpenCV's `flags` say otherwise. Raises OSError and ValueError."""
    try:
        return decode_image(file.read_bytes(), flags)
    except ImageError as error:
        raise ValueError(f"{file} cannot be read as an image: {error}") from error


def decode_label_image(data: bytes) -> np.ndarray:
    """Decode the bytes of a label map's PNG, uint8 (H, W); of a PNG with a palette, its indices are the ids.

    Returns other shapes and types as they are, see `label_maps.checked_labels`. Raises ImageError.
    """
    labels = decode_image(data, cv2.IMREAD_UNCHANGED)
    if labels.ndim == 2 or not data.startswith(_PNG):
        return labels
    try:
        from PIL import Image
    except ImportError:  # the vehicle's environment lacks it
        raise ImageError("received colours or a palette; expected one channel of class ids") from None
    with Image.open(io.BytesIO(data)) as picture:  # OpenCV turns a palette's indices into colours
        return np.asarray(picture) if picture.mode == "P" else labels


def label_map(msg: Any) -> np.ndarray:
    """Return the class ids in a mono8 Image or a PNG in a CompressedImage, uint8 (H, W) if it is a label map.

    Raises ImageError. `checked_labels` checks shape, type and ids.
    """
    if hasattr(msg, "format"):
        try:
            return decode_label_image(bytes(msg.data))
        except ImageError as error:
            raise ImageError(f"the compressed label map of format {msg.format!r} cannot be decoded: {error}") from error
    if msg.encoding not in _LABEL_ENCODINGS:
        raise ImageError(f"the label map has the encoding {msg.encoding!r}; expected mono8, class ids")
    return _pixels(msg, ENCODINGS["mono8"])


def fill_image(msg: Any, pixels: np.ndarray, encoding: str, header: Any = None) -> Any:
    """Fill an empty sensor_msgs/Image from uint8 or uint16 (H, W) or (H, W, C) and return it. Raises ImageError.

    `frombytes` is over a thousand times faster than assigning an array to `msg.data`.
    """
    if encoding not in ENCODINGS:
        raise _unsupported(encoding)
    size, channels = ENCODINGS[encoding].bytes_per_channel, ENCODINGS[encoding].channels
    received = (pixels.dtype.itemsize, 1 if pixels.ndim == 2 else pixels.shape[-1])
    if received != (size, channels):
        raise ImageError(
            f"{encoding} needs {channels} channels of {size} bytes; received {received[1]} of {received[0]}"
        )
    if header is not None:
        msg.header = header
    msg.height, msg.width, msg.encoding = pixels.shape[0], pixels.shape[1], encoding
    msg.is_bigendian = int(sys.byteorder == "big")
    msg.step = pixels.shape[1] * size * channels
    data = array("B")
    data.frombytes(np.ascontiguousarray(pixels).data.cast("B"))
    msg.data = data
    return msg


def _unsupported(encoding: str) -> ImageError:
    return ImageError(f"received encoding {encoding!r}; expected one of {', '.join(ENCODINGS)}")


def _pixels(msg: Any, encoding: Encoding) -> np.ndarray:
    """View a message's bytes as (H, W) or (H, W, C), uint8 or native uint16, without row padding."""
    size, channels = encoding.bytes_per_channel, encoding.channels
    height, width, step = msg.height, msg.width, msg.step
    if height < 1 or width < 1:
        raise ImageError(f"received an empty image of {width}x{height} pixels; expected at least 1x1")
    if channels == 2 and width % 2:
        raise ImageError(f"received {msg.encoding} of width {width}; expected an even width, as pixels share chroma")
    if step < width * channels * size:
        raise ImageError(
            f"received step {step} for {width} pixels of {msg.encoding}; expected at least {width * channels * size}"
        )
    if len(msg.data) != step * height:
        raise ImageError(
            f"received {len(msg.data)} bytes for {width}x{height} {msg.encoding} with step {step}; "
            f"expected {step * height}, height times step"
        )
    dtype = np.dtype(np.uint8) if size == 1 else np.dtype(">u2" if msg.is_bigendian else "<u2")
    shape = (height, width) if channels == 1 else (height, width, channels)
    strides = (step, size) if channels == 1 else (step, size * channels, size)
    pixels: np.ndarray = np.ndarray(shape, dtype, np.frombuffer(msg.data, np.uint8), 0, strides)
    return pixels if dtype.isnative else pixels.astype(dtype.newbyteorder("="))


def _bayer_encoding(image_format: str) -> str:
    """Return the Bayer encoding of a mosaic that was compressed without conversion, or "".

    For such a mosaic image_transport writes "bayer_rggb8; png compressed ", otherwise the target encoding at the end.
    """
    encoding, _, rest = image_format.partition(";")
    compressed_as = rest.rpartition("compressed")[2].strip()
    return encoding if encoding.startswith("bayer_") and encoding in ENCODINGS and not compressed_as else ""


def _has_jpeg_end(data: bytes) -> bool:
    """Return whether the end marker follows the first scan. An embedded thumbnail, before it, has an end of its own."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == _JPEG_SCAN:
            return data.find(_JPEG_END, at) >= 0
    return _JPEG_END in data[at:]
