# SPDX-License-Identifier: Apache-2.0
"""ROS image messages <-> arrays.

Reading checks the message first, honours row padding (``step``) and ``is_bigendian``, and always gives uint8 (H, W, 3)
BGR. bgr8 is a view of the message's own bytes, without a copy. Every other encoding goes through cv_bridge where it
works, otherwise through rosbags-image; both are OpenCV underneath. 16-bit pixels are scaled linearly, 65535 to 255,
rounded: a 12-bit camera that does not shift its values up therefore looks dark.
Messages are duck-typed, so that everything but ``image_message`` runs without ROS.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from array import array
from collections.abc import Callable
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np

#: encoding -> (bytes per channel, channels). YUV 4:2:2 counts as two channels: one luma, one shared chroma byte.
ENCODINGS = {
    **dict.fromkeys(("bgr8", "rgb8"), (1, 3)),
    **dict.fromkeys(("bgra8", "rgba8"), (1, 4)),
    "mono8": (1, 1),
    "mono16": (2, 1),
    **{f"bayer_{pattern}{8 * size}": (size, 1) for pattern in ("rggb", "bggr", "gbrg", "grbg") for size in (1, 2)},
    **dict.fromkeys(("yuv422", "uyvy", "yuv422_yuy2", "yuyv"), (1, 2)),
}
#: Newer ROS names that cv_bridge of older distributions does not know.
_ALIASES = {"uyvy": "yuv422", "yuyv": "yuv422_yuy2"}
_JPEG, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
_PNG, _PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xae\x42\x60\x82"

# Run in a process of its own: a cv_bridge that was built for another NumPy may abort the interpreter.
_CV_BRIDGE_PROBE = """
from types import SimpleNamespace
from cv_bridge import CvBridge
message = SimpleNamespace(height=1, width=2, encoding="rgb8", is_bigendian=0, step=6, data=bytes([1, 2, 3, 4, 5, 6]))
assert CvBridge().imgmsg_to_cv2(message, "bgr8").tolist() == [[[3, 2, 1], [6, 5, 4]]]
"""


class ImageError(ValueError):
    """A message that holds no usable image. Says what was received and what was expected."""


def image_to_bgr(msg: Any) -> np.ndarray:
    """Convert a sensor_msgs/Image to uint8 (H, W, 3) BGR. For bgr8 the result shares the message's memory.

    Raises ImageError for an unknown encoding, an empty image, or data that does not fit height, step and encoding.
    """
    pixels = _pixels(msg)
    encoding = _ALIASES.get(msg.encoding, msg.encoding)
    if encoding == "bgr8":
        return pixels
    if pixels.dtype == np.uint16:
        pixels = cv2.convertScaleAbs(pixels, alpha=255.0 / 65535.0)
        encoding = encoding.replace("16", "8")
    pixels = np.ascontiguousarray(pixels)
    packed = SimpleNamespace(height=msg.height, width=msg.width, encoding=encoding, is_bigendian=0)
    packed.step, packed.data = pixels.strides[0], pixels.reshape(-1).data
    return _converter()[1](packed)


def compressed_to_bgr(msg: Any) -> np.ndarray:
    """Decode a sensor_msgs/CompressedImage, JPEG or PNG, to uint8 (H, W, 3) BGR.

    The orientation in EXIF is ignored, so that the mask keeps the pixel grid of the camera. Where image_transport
    packed a Bayer camera's mosaic as it is, and says so in ``format``, its colours are made here. Raises ImageError
    for another format and for a file that is cut short: OpenCV would fill the missing part with grey.
    """
    data = bytes(msg.data)
    is_jpeg, is_png = data.startswith(_JPEG), data.startswith(_PNG)
    if not (is_jpeg or is_png):
        raise ImageError(
            f"received {len(data)} bytes of format {msg.format!r} beginning with {data[:8].hex() or 'nothing'}; "
            "expected a JPEG or PNG file"
        )
    if (_JPEG_END if is_jpeg else _PNG_END) not in data.rstrip(b"\0")[-64:]:
        raise ImageError(
            f"received {len(data)} bytes of {'JPEG' if is_jpeg else 'PNG'} without its end: it is cut short"
        )
    mosaic = _bayer_encoding(msg.format)
    colour = cv2.IMREAD_UNCHANGED if mosaic else cv2.IMREAD_COLOR
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), colour | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        raise ImageError(f"received {len(data)} bytes that OpenCV cannot decode: {error}") from error
    if image is None:
        raise ImageError(f"received {len(data)} bytes of {'JPEG' if is_jpeg else 'PNG'} that are corrupt")
    return image_to_bgr(fill_image(SimpleNamespace(), image, mosaic)) if mosaic else image


def _bayer_encoding(image_format: str) -> str:
    """The Bayer encoding of a mosaic that was compressed as it is, from "bayer_rggb8; png compressed "; else ""."""
    encoding, _, way = image_format.partition(";")
    packed_as = way.rpartition("compressed")[2].strip()
    return encoding if encoding.startswith("bayer_") and encoding in ENCODINGS and not packed_as else ""


def fill_image(msg: Any, pixels: np.ndarray, encoding: str, header: Any = None) -> Any:
    """Fill an empty sensor_msgs/Image from uint8 or uint16 (H, W) or (H, W, C); returns it.

    ``frombytes`` is over a thousand times faster than assigning an array to ``msg.data``.
    """
    if encoding not in ENCODINGS:
        raise ImageError(f"received encoding {encoding!r}; expected one of {', '.join(ENCODINGS)}")
    size, channels = ENCODINGS[encoding]
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


def image_message(pixels: np.ndarray, encoding: str, header: Any = None) -> Any:
    """Make a sensor_msgs/Image; see ``fill_image``."""
    from sensor_msgs.msg import Image

    return fill_image(Image(), pixels, encoding, header)


def converter_name() -> str:
    """Which library converts what is not bgr8, and why, for the log."""
    return _converter()[0]


def _pixels(msg: Any) -> np.ndarray:
    """View a message's bytes as (H, W) or (H, W, C), uint8 or native uint16, without row padding."""
    if msg.encoding not in ENCODINGS:
        raise ImageError(f"received encoding {msg.encoding!r}; expected one of {', '.join(ENCODINGS)}")
    size, channels = ENCODINGS[msg.encoding]
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


@lru_cache(maxsize=1)
def _converter() -> tuple[str, Callable[[Any], np.ndarray]]:
    """Choose once: (what was chosen and why, packed message -> BGR). Without either, all but bgr8 is an ImageError."""
    reason = "cv_bridge is not installed"
    if importlib.util.find_spec("cv_bridge") is not None:
        command = [sys.executable, "-c", _CV_BRIDGE_PROBE]
        try:
            probe = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
        except subprocess.TimeoutExpired:
            reason = "cv_bridge does not answer within 60 s"
        else:
            if probe.returncode == 0:
                from cv_bridge import CvBridge

                bridge = CvBridge()
                return "cv_bridge", lambda packed: bridge.imgmsg_to_cv2(packed, "bgr8")
            last_line = (probe.stderr.strip().splitlines() or [f"exit status {probe.returncode}"])[-1]
            reason = f"cv_bridge does not work here: {last_line}"
    try:
        from rosbags.image import image_to_cvimage
    except ImportError as error:
        missing = f"only bgr8 can be read: {reason}, nor is rosbags-image ({error}); install either"

        def refuse(packed: Any) -> np.ndarray:
            raise ImageError(missing)

        return missing, refuse
    return f"rosbags-image ({reason})", lambda packed: image_to_cvimage(packed, "bgr8")
