# SPDX-License-Identifier: Apache-2.0
"""Read the format and size of an image file from its first bytes, and refuse sizes that are beyond the limits.

A file of a few kB may claim a size that takes gigabytes to decode, so nothing is decoded before `check_size`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

#: Most pixels of an image or label map from a topic, a file or a bag.
MAX_PIXELS = 8192 * 8192
#: Largest ratio of the sides: the network's input has the image's aspect, and each side has a smallest size.
MAX_ASPECT = 64
#: Most bytes of a file or message: MAX_PIXELS of four channels of 16 bits.
MAX_BYTES = 8 * MAX_PIXELS
JPEG, PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
#: A JPEG's EXIF block lies in its first bytes, as a segment has at most 64 KiB.
MAX_EXIF_BYTES, _EXIF = 1 << 17, b"Exif\0\0"
#: Markers of a JPEG's frame header, which holds its size. 0xC4, 0xC8 and 0xCC are none.
JPEG_FRAMES = (0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF)
_TIFF_SIZE, _TIFF_TILE = (256, 257), (322, 323)  #: tags of width and height
_TIFF_BITS, _TIFF_ORIENTATION, _TIFF_CHANNELS = 258, 274, 277
_TIFF_PARTS = ((273, 279), (324, 325))  #: tags of the offsets and byte counts of strips, and of tiles
_TIFF_TAGS = {*_TIFF_SIZE, *_TIFF_TILE, _TIFF_BITS, _TIFF_ORIENTATION, _TIFF_CHANNELS, *_TIFF_PARTS[0], *_TIFF_PARTS[1]}


class ImageError(ValueError):
    """A message or file holds no usable image. The text says what was received and what was expected."""


def check_bytes(num_bytes: int) -> None:
    """Raise ImageError if a file or message is larger than MAX_BYTES."""
    if num_bytes > MAX_BYTES:
        raise ImageError(f"received {num_bytes} bytes; expected at most {MAX_BYTES} in an image")


def check_size(width: int, height: int) -> None:
    """Raise ImageError if a size in pixels is empty or beyond MAX_PIXELS or MAX_ASPECT."""
    if height < 1 or width < 1:
        raise ImageError(f"received an empty image of {width}x{height} pixels; expected at least 1x1")
    if width * height > MAX_PIXELS:
        raise ImageError(f"received an image of {width}x{height} pixels; expected at most {MAX_PIXELS} pixels")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ImageError(f"received an image of {width}x{height} pixels; expected sides of at most {MAX_ASPECT} to 1")


def check_header(data: bytes) -> tuple[str, tuple[int, int]]:
    """Return format, such as "PNG", and size (width, height) of an image file's bytes. Raises ImageError.

    Raises for an unknown format, a size beyond the limits, and for a TIFF of several images, one that is cut short,
    whose missing part OpenCV would fill with black, or one that is to be shown turned or mirrored: OpenCV turns it, and
    its labels no longer fit.
    """
    check_bytes(len(data))
    kind = next((kind for kind, (is_kind, _) in FORMATS.items() if is_kind(data)), None)
    if kind is None:
        raise ImageError(
            f"received {len(data)} bytes beginning with {data[:8].hex() or 'nothing'}; expected a file of "
            f"{', '.join(FORMATS)}"
        )
    try:
        size = FORMATS[kind][1](data)
    except (struct.error, LookupError, ValueError) as error:
        raise ImageError(f"received {len(data)} bytes of {kind} without a size in its header: it is corrupt") from error
    check_size(*size)
    if kind == "TIFF":
        _check_tiff(data)
    return kind, size


def jpeg_orientation(data: bytes) -> int:
    """Return the orientation in the EXIF block of a JPEG's first bytes, 1 to 8; 1 (as stored) if there is none."""
    start = data.find(_EXIF, 0, MAX_EXIF_BYTES) if data.startswith(JPEG) else -1
    if start < 0:
        return 1
    try:
        return (_tiff_directory(data[start + len(_EXIF) :])[0].get(_TIFF_ORIENTATION) or [1])[0]
    except (struct.error, LookupError, ValueError):
        return 1


def _check_tiff(data: bytes) -> None:
    values, is_last = _tiff_directory(data)
    if not is_last:
        raise ImageError("received a TIFF of several images; expected a file of one image")
    bits = (values.get(_TIFF_CHANNELS) or [1])[0] * max(values.get(_TIFF_BITS) or [1])
    for width, height in (_TIFF_SIZE, _TIFF_TILE):  # whole tiles are decoded
        check_bytes((values.get(width) or [0])[0] * (values.get(height) or [0])[0] * bits // 8)
    if (turned := (values.get(_TIFF_ORIENTATION) or [1])[0]) != 1:
        raise ImageError(f"received a TIFF of orientation {turned}; expected 1: store its pixels as they are shown")
    ends = [sum(part) for tags in _TIFF_PARTS for part in zip(*(values.get(tag, []) for tag in tags), strict=False)]
    if max(ends, default=0) > len(data):
        raise ImageError(f"received {len(data)} bytes of TIFF; expected {max(ends)}: it is cut short")


def _jpeg_size(data: bytes) -> tuple[int, int]:
    at = 2
    while data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
        elif marker in JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", data, at + 5)
            return width, height
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    raise ValueError("no frame header")


def _bmp_size(data: bytes) -> tuple[int, int]:
    old = struct.unpack_from("<I", data, 14)[0] == 12
    width, height = struct.unpack_from("<HH" if old else "<ii", data, 18)
    return width, abs(height)  # a negative height means that the first row is the highest


def _webp_size(data: bytes) -> tuple[int, int]:
    if data[12:16] == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if data[12:16] == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF


def _tiff_directory(data: bytes) -> tuple[dict[int, list[int]], bool]:
    """Return the numbers of `_TIFF_TAGS` in the first directory of a TIFF by tag, and whether no other image follows.

    Raises ValueError for a number that is given twice or is no SHORT or LONG: libtiff might read another one.
    """
    order = "<" if data.startswith(b"II") else ">"
    (at,) = struct.unpack_from(order + "I", data, 4)
    (entries,) = struct.unpack_from(order + "H", data, at)
    end = at + 2 + 12 * entries
    found: dict[int, list[int]] = {}
    for entry in range(at + 2, end, 12):
        tag, kind, count = struct.unpack_from(order + "HHI", data, entry)
        if tag not in _TIFF_TAGS:
            continue
        if tag in found or kind not in (3, 4):
            raise ValueError(f"tag {tag} stands twice or is of type {kind}")
        form = f"{order}{count}{'H' if kind == 3 else 'I'}"
        in_entry = struct.calcsize(form) <= 4  # else there is the offset of the numbers
        place = entry + 8 if in_entry else struct.unpack_from(order + "I", data, entry + 8)[0]
        found[tag] = list(struct.unpack_from(form, data, place))
    return found, data[end : end + 4] in (b"", bytes(4))


def _tiff_size(data: bytes) -> tuple[int, int]:
    values, _ = _tiff_directory(data)
    return values[_TIFF_SIZE[0]][0], values[_TIFF_SIZE[1]][0]


def _isobmff_size(data: bytes) -> tuple[int, int]:
    """Return the largest size that a box `ispe` of an AVIF or HEIC file states."""

    def sizes() -> Iterator[tuple[int, int]]:
        at = data.find(b"ispe")
        while at >= 0:
            width, height = struct.unpack_from(">II", data, at + 8)
            yield width, height
            at = data.find(b"ispe", at + 4)

    return max(sizes(), key=lambda size: size[0] * size[1])


def _has_brand(*brands: bytes) -> Callable[[bytes], bool]:
    return lambda data: data[4:8] == b"ftyp" and data[8:12] in brands


#: For each format of image files: whether bytes begin like it, and how its width and height are read.
FORMATS: dict[str, tuple[Callable[[bytes], bool], Callable[[bytes], tuple[int, int]]]] = {
    "JPEG": (lambda data: data.startswith(JPEG), _jpeg_size),
    "PNG": (lambda data: data.startswith(PNG), lambda data: struct.unpack_from(">II", data, 16)),
    "WebP": (lambda data: data.startswith(b"RIFF") and data[8:12] == b"WEBP", _webp_size),
    "BMP": (lambda data: data.startswith(b"BM"), _bmp_size),
    "TIFF": (lambda data: data.startswith((b"II*\0", b"MM\0*")), _tiff_size),
    "GIF": (lambda data: data.startswith((b"GIF87a", b"GIF89a")), lambda data: struct.unpack_from("<HH", data, 6)),
    "AVIF": (_has_brand(b"avif"), _isobmff_size),
}
