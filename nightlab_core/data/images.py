# SPDX-License-Identifier: Apache-2.0
"""Convert between ROS image messages and arrays, without ROS.

Messages are duck-typed: they need `height`, `width`, `encoding`, `step`, `is_bigendian` and `data`, or `format` and
`data`. Reading checks the message first, honours row padding (`step`) and `is_bigendian`, and always returns uint8
(H, W, 3) BGR. bgr8 and 8UC3 are a view of the message's bytes, without a copy. OpenCV converts all others. 16-bit
pixels are scaled linearly from their significant bits, see `pixel_depth`.
"""

from __future__ import annotations

import sys
from array import array
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal

import cv2
import numpy as np

from nightlab_core.data.image_files import decode_bgr, decode_image, decode_pixels_of_16_bits
from nightlab_core.data.image_header import JPEG, PNG, ImageError, check_bytes, check_size
from nightlab_core.data.pixel_depth import PixelDepth


@dataclass(frozen=True)
class Encoding:
    """How an encoding stores its pixels.

    YUV 4:2:2 counts as two channels: one luma and one shared chroma byte. YUV 4:2:0 has one channel of luma, followed
    by height / 2 rows of chroma: `chroma` says whether U and V alternate in rows of `step` bytes, or are two planes
    with rows of step / 2 bytes.
    """

    bytes_per_channel: int
    channels: int
    to_bgr: int | None  #: OpenCV's conversion of the 8-bit form; None: it is BGR
    pixels: str  #: what a pixel is, for the documentation
    chroma: Literal["", "interleaved", "planes"] = ""


_BAYER = {
    "bayer_rggb": cv2.COLOR_BayerBG2BGR,  # OpenCV names the second row's second and third site
    "bayer_bggr": cv2.COLOR_BayerRG2BGR,
    "bayer_gbrg": cv2.COLOR_BayerGR2BGR,
    "bayer_grbg": cv2.COLOR_BayerGB2BGR,
}
_UYVY = Encoding(1, 2, cv2.COLOR_YUV2BGR_UYVY, "YUV 4:2:2, bytes U Y V Y")
_YUYV = Encoding(1, 2, cv2.COLOR_YUV2BGR_YUYV, "YUV 4:2:2, bytes Y U Y V")


def _of_sizes(names: tuple[str, str], channels: int, to_bgr: int | None, pixels: str) -> dict[str, Encoding]:
    """Return the encodings of 8 and 16 bits a channel."""
    return {name: Encoding(size, channels, to_bgr, pixels) for size, name in enumerate(names, 1)}


#: Every supported encoding of sensor_msgs/Image. All others are refused.
ENCODINGS = {
    **_of_sizes(("bgr8", "bgr16"), 3, None, "blue, green, red"),
    **_of_sizes(("rgb8", "rgb16"), 3, cv2.COLOR_RGB2BGR, "red, green, blue"),
    **_of_sizes(("bgra8", "bgra16"), 4, cv2.COLOR_BGRA2BGR, "blue, green, red, alpha; alpha is ignored"),
    **_of_sizes(("rgba8", "rgba16"), 4, cv2.COLOR_RGBA2BGR, "red, green, blue, alpha; alpha is ignored"),
    **_of_sizes(("mono8", "mono16"), 1, cv2.COLOR_GRAY2BGR, "grey"),
    **_of_sizes(("8UC1", "16UC1"), 1, cv2.COLOR_GRAY2BGR, "taken as grey"),
    **_of_sizes(("8UC3", "16UC3"), 3, None, "taken as blue, green, red"),
    **_of_sizes(("8UC4", "16UC4"), 4, cv2.COLOR_BGRA2BGR, "taken as blue, green, red, alpha; alpha is ignored"),
    **{
        f"{pattern}{8 * size}": Encoding(size, 1, to_bgr, f"Bayer mosaic of {8 * size} bits")
        for pattern, to_bgr in _BAYER.items()
        for size in (1, 2)
    },
    "yuv422": _UYVY,
    "uyvy": _UYVY,
    "yuv422_yuy2": _YUYV,
    "yuyv": _YUYV,
    "yvyu": Encoding(1, 2, cv2.COLOR_YUV2BGR_YVYU, "YUV 4:2:2, bytes Y V Y U"),
    "nv12": Encoding(1, 1, cv2.COLOR_YUV2BGR_NV12, "YUV 4:2:0, plane Y, plane of U V", "interleaved"),
    "nv21": Encoding(1, 1, cv2.COLOR_YUV2BGR_NV21, "YUV 4:2:0, plane Y, plane of V U", "interleaved"),
    "i420": Encoding(1, 1, cv2.COLOR_YUV2BGR_I420, "YUV 4:2:0, planes Y, U, V", "planes"),
    "yv12": Encoding(1, 1, cv2.COLOR_YUV2BGR_YV12, "YUV 4:2:0, planes Y, V, U", "planes"),
}


def message_to_bgr(msg: Any, depth: PixelDepth | None = None) -> np.ndarray:
    """Convert a sensor_msgs/Image or CompressedImage to uint8 (H, W, 3) BGR. Raises ImageError.

    `depth` is the stream's, for pixels of 16 bits; without it all 16 bits are significant.
    """
    return compressed_to_bgr(msg, depth) if hasattr(msg, "format") else image_to_bgr(msg, depth)


def image_to_bgr(msg: Any, depth: PixelDepth | None = None) -> np.ndarray:
    """Convert a sensor_msgs/Image to uint8 (H, W, 3) BGR. For bgr8 and 8UC3 the result shares the message's memory.

    Raises ImageError for an unsupported encoding, an empty image, or data that does not fit height, step and encoding.
    """
    encoding = ENCODINGS.get(msg.encoding)
    if encoding is None:
        raise _unsupported(msg.encoding)
    pixels = _pixels(msg, encoding)
    if pixels.dtype == np.uint16:
        pixels = (depth or PixelDepth(16)).to_8_bits(pixels)
    if encoding.to_bgr is None:
        return pixels
    return cv2.cvtColor(np.ascontiguousarray(pixels), encoding.to_bgr)


def compressed_to_bgr(msg: Any, depth: PixelDepth | None = None) -> np.ndarray:
    """Decode a sensor_msgs/CompressedImage, JPEG or PNG, to uint8 (H, W, 3) BGR.

    If image_transport compressed the mosaic of a Bayer camera without converting it, and says so in `format`, its
    colours are computed here. Raises ImageError for another format and for a file that is cut short.
    """
    data = bytes(msg.data)
    if not data.startswith((JPEG, PNG)):
        raise ImageError(
            f"received {len(data)} bytes of format {msg.format!r} beginning with {data[:8].hex() or 'nothing'}; "
            "expected a JPEG or PNG file"
        )
    mosaic = _bayer_encoding(msg.format)
    if not mosaic:
        return decode_bgr(data, depth)
    image = decode_image(data, cv2.IMREAD_UNCHANGED)
    return image_to_bgr(fill_image(SimpleNamespace(), image, mosaic), depth)


def pixels_of_16_bits(msg: Any) -> np.ndarray | None:
    """Return the uint16 pixels of an Image or CompressedImage as they are; None for 8 bits. Raises ImageError."""
    if hasattr(msg, "format"):
        return decode_pixels_of_16_bits(bytes(msg.data))
    encoding = ENCODINGS.get(msg.encoding)
    return _pixels(msg, encoding) if encoding is not None and encoding.bytes_per_channel == 2 else None


def mono8_pixels(msg: Any) -> np.ndarray:
    """View the bytes of a message with one byte a pixel, whatever they mean: uint8 (H, W). Raises ImageError."""
    return _pixels(msg, ENCODINGS["mono8"])


def fill_image(msg: Any, pixels: np.ndarray, encoding: str, header: Any = None) -> Any:
    """Fill an empty sensor_msgs/Image from uint8 or uint16 (H, W) or (H, W, C) and return it. Raises ImageError.

    `frombytes` is over a thousand times faster than assigning an array to `msg.data`.
    """
    if encoding not in ENCODINGS:
        raise _unsupported(encoding)
    if ENCODINGS[encoding].chroma:
        raise ImageError(f"received the encoding {encoding} to write; expected one without planes, such as bgr8")
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
    """View a message's bytes as (H, W) or (H, W, C), uint8 or native uint16, without row padding.

    YUV 4:2:0 becomes (H * 3 / 2, W), as OpenCV expects it.
    """
    _check_layout(msg, encoding)
    size, channels = encoding.bytes_per_channel, encoding.channels
    height, width, step = msg.height, msg.width, msg.step
    data = np.frombuffer(msg.data, np.uint8)
    if encoding.chroma == "interleaved":
        return data.reshape(-1, step)[:, :width]
    if encoding.chroma == "planes":
        luma, chroma = data[: height * step].reshape(height, step), data[height * step :].reshape(height, step // 2)
        return np.concatenate([luma[:, :width].ravel(), chroma[:, : width // 2].ravel()]).reshape(-1, width)
    dtype = np.dtype(np.uint8) if size == 1 else np.dtype(">u2" if msg.is_bigendian else "<u2")
    shape = (height, width) if channels == 1 else (height, width, channels)
    strides = (step, size) if channels == 1 else (step, size * channels, size)
    pixels: np.ndarray = np.ndarray(shape, dtype, data, 0, strides)
    return pixels if dtype.isnative else pixels.astype(dtype.newbyteorder("="))


def _check_layout(msg: Any, encoding: Encoding) -> None:
    """Raise ImageError if a message's size, step and amount of data do not fit its encoding."""
    height, width, step = msg.height, msg.width, msg.step
    row = width * encoding.channels * encoding.bytes_per_channel
    check_size(width, height)
    check_bytes(len(msg.data))
    if encoding.channels == 2 and width % 2:
        raise ImageError(f"received {msg.encoding} of width {width}; expected an even width, as pixels share chroma")
    if encoding.chroma and (width % 2 or height % 2):
        raise ImageError(
            f"received {msg.encoding} of {width}x{height} pixels; expected even sides, as pixels share chroma"
        )
    if encoding.to_bgr in _BAYER.values() and min(width, height) < 3:  # OpenCV makes these black
        raise ImageError(f"received {msg.encoding} of {width}x{height} pixels; expected a mosaic of at least 3x3")
    if step < row or (encoding.chroma == "planes" and step % 2):
        even = ", and even" if encoding.chroma == "planes" else ""
        raise ImageError(f"received step {step} for {width} pixels of {msg.encoding}; expected at least {row}{even}")
    expected = step * height * 3 // 2 if encoding.chroma else step * height
    if len(msg.data) != expected:
        rule = "times 3/2; height is the picture's, without the rows of chroma" if encoding.chroma else ""
        raise ImageError(
            f"received {len(msg.data)} bytes for {width}x{height} {msg.encoding} with step {step}; "
            f"expected {expected}, height times step {rule}".rstrip()
        )


def _bayer_encoding(image_format: str) -> str:
    """Return the Bayer encoding of a mosaic that was compressed without conversion, or "".

    For such a mosaic image_transport writes "bayer_rggb8; png compressed ", other publishers repeat the encoding at the
    end. Another encoding at the end is what the mosaic was converted to.
    """
    encoding, _, rest = image_format.partition(";")
    target = (rest.split() or [""])[-1]
    stored = target if target in ENCODINGS else encoding
    return stored if stored.startswith("bayer_") and stored in ENCODINGS else ""
