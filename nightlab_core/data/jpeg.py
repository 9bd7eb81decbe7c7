# SPDX-License-Identifier: Apache-2.0
"""Decode JPEG files and refuse damaged ones: libjpeg only warns of damage, and fills the rest with invented pixels."""

from __future__ import annotations

import re

import numpy as np
import simplejpeg

from nightlab_core.data.image_header import ImageError
from nightlab_core.data.jpeg_scans import check_scans

_END = b"\xff\xd9"
#: Webcams write a few bytes between the last pixel and the end.
_MOST_EXTRANEOUS_BYTES = 64
_EXTRANEOUS = re.compile(r"(\d+) extraneous bytes before marker 0xd9")


def decode_jpeg(data: bytes, size: tuple[int, int], grey: bool | None) -> np.ndarray:
    """Decode a JPEG of `size` (width, height): uint8 (H, W, 3) BGR, or (H, W) if `grey`; None: as the file is.

    A missing end marker and what follows it are ignored. Raises ImageError for a JPEG that is cut short, whose data
    do not have the header's size, or that is corrupt.
    """
    check_scans(data)
    data = data + _END  # a missing end would hide what else is wrong
    is_grey = _is_grey(data)
    grey = is_grey if grey is None else grey
    pixels = np.empty((size[1], size[0], 1 if grey else 3), np.uint8)
    try:
        simplejpeg.decode_jpeg(data, "GRAY" if grey else "BGR", buffer=pixels)
    except ValueError as error:  # of warnings, too: the pixels are there
        extraneous = _EXTRANEOUS.search(str(error))
        if not extraneous or int(extraneous[1]) > _MOST_EXTRANEOUS_BYTES:
            raise ImageError(_fault(len(data) - len(_END), size, str(error))) from error
    return pixels[..., 0] if grey else pixels


def _is_grey(data: bytes) -> bool:
    try:
        colours = simplejpeg.decode_jpeg_header(data)[2]
    except ValueError as error:
        raise ImageError(
            f"received {len(data) - len(_END)} bytes of JPEG whose header is cut short, corrupt or unusual ({error})"
        ) from error
    if colours not in ("Gray", "YCbCr", "RGB"):
        raise ImageError(f"received a JPEG in {colours}; expected colour or grey")
    return bool(colours == "Gray")


def _fault(num_bytes: int, size: tuple[int, int], warning: str) -> str:
    """Return the sentence for a warning or error of libjpeg."""
    received = f"received {num_bytes} bytes of JPEG"
    if "premature end" in warning.lower():
        return f"{received} whose data end before the last pixel of {size[0]}x{size[1]}: it is cut short or damaged"
    if "extraneous bytes before marker 0xd9" in warning:
        return f"{received} whose data go on behind the last pixel of {size[0]}x{size[1]}: it is damaged"
    return f"{received} that are corrupt: {warning}"
