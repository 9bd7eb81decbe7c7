# SPDX-License-Identifier: Apache-2.0
"""Scale 16-bit pixels to 8 bits by the bits that a camera uses.

Cameras of 10, 12 and 14 bits store their values in 16 bits, and no encoding says how many are used. The number is given
by the user, or found from the highest value in a stream's first frames and kept from then on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

import cv2
import numpy as np

#: Frames over which the highest value is measured; black frames do not count.
FIRST_FRAMES = 5
#: Numbers of significant bits that are found by measuring.
MEASURED_BITS = (8, 10, 12, 14, 16)
#: Highest pixels of a frame that are not measured, as they may be hot: one of so many, and at most so many of a frame.
ONE_HOT_OF, MOST_HOT = 1000, 8
_SWAPPED = np.arange(1 << 16, dtype=np.uint16).byteswap()  #: each value with its two bytes exchanged
_LOG = logging.getLogger(__name__)


class PixelDepth:
    """The significant bits of one stream's 16-bit pixels. Each stream owns one.

    Args:
        bits: 8 to 16, or 0 to measure them over the first `FIRST_FRAMES` frames.
        report: takes the sentences that say which number was found, that the byte order is doubtful, and that later
            values are higher.
    """

    def __init__(self, bits: int = 0, report: Callable[[str], object] = _LOG.warning) -> None:
        if bits and not 8 <= bits <= 16:
            raise ValueError(f"received {bits} significant bits; expected 8 to 16, or 0 to measure them")
        self._given, self._report = bits, report
        self._highest = self._highest_swapped = self._set_bits = self._frames = 0
        self._reported_clipping = False

    @property
    def bits(self) -> int:
        """Significant bits: as given, or as measured so far; 16 before the first frame that is not black."""
        if self._given or not self._highest:
            return self._given or 16
        if not self._set_bits & 3:  # 10, 12 or 14 bits that are stored in the high bits
            return 16
        return next(bits for bits in MEASURED_BITS if self._highest < 1 << bits)

    def measure(self, frames: Iterable[np.ndarray]) -> None:
        """Fix the bits by a stream's first frames, uint16; others are ignored."""
        for pixels in frames:
            if pixels.dtype == np.uint16:
                self._observe(pixels)
        if 0 < self._frames < FIRST_FRAMES:
            self._fix()

    def to_8_bits(self, pixels: np.ndarray) -> np.ndarray:
        """Scale uint16 of any shape linearly to uint8: 0 to 0, the highest value of the significant bits to 255."""
        self._observe(pixels)
        highest = int(pixels.max())
        limit = (1 << self.bits) - 1
        if highest > limit and not self._reported_clipping:
            self._reported_clipping = True
            self._report(
                f"received the pixel value {highest}, above the {limit} of {self.bits} significant bits: higher values "
                "are clipped (--pixel-bits, or the node's parameter pixel_bits, sets another number)"
            )
        scaled = cv2.convertScaleAbs(np.ascontiguousarray(pixels).reshape(pixels.shape[0], -1), alpha=255.0 / limit)
        return scaled.reshape(pixels.shape)

    def _observe(self, pixels: np.ndarray) -> None:
        if self._given or self._frames >= FIRST_FRAMES:
            return
        counts = np.bincount(pixels.ravel(), minlength=1 << 16)
        highest = _highest(counts)
        if not highest:
            return
        self._highest = max(self._highest, highest)
        self._highest_swapped = max(self._highest_swapped, _highest(counts[_SWAPPED]))
        self._set_bits |= int(np.bitwise_or.reduce(np.flatnonzero(counts[: highest + 1])))
        self._frames += 1
        if self._frames == FIRST_FRAMES:
            self._fix()

    def _fix(self) -> None:
        count, self._frames = self._frames, FIRST_FRAMES
        other = "(--pixel-bits, or the node's parameter pixel_bits, sets another number)"
        if self.bits < 16:
            self._report(
                f"16-bit pixels hold {self.bits} significant bits: the highest value in the first {count} frames is "
                f"{self._highest} {other}"
            )
        elif self._highest < 1 << 14:
            self._report(
                f"16-bit pixels are taken as 16 significant bits: the highest value in the first {count} frames is "
                f"{self._highest}, but the low 2 bits of all values are 0, as if the high bits were used {other}"
            )
        elif self._highest_swapped < 1 << 14 and self._set_bits & 0xFF:
            self._report(
                f"16-bit pixels may be in the other byte order: the highest value in the first {count} frames is "
                f"{self._highest}, and {self._highest_swapped} with the bytes exchanged, as of a camera of 14 bits or "
                "less: check is_bigendian in the driver's messages"
            )


def _highest(counts: np.ndarray) -> int:
    """Return the highest value of a histogram, int (65536,), without a few pixels that may be hot."""
    hot = min(int(counts.sum()) // ONE_HOT_OF, MOST_HOT)
    return len(counts) - 1 - int(np.argmax(np.cumsum(counts[::-1]) > hot))
