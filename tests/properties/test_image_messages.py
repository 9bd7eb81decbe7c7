# SPDX-License-Identifier: Apache-2.0
"""Properties of the conversion between image messages and arrays."""

from __future__ import annotations

from array import array
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("hypothesis")

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nightlab_core.data.image_header import ImageError
from nightlab_core.data.images import ENCODINGS, fill_image, message_to_bgr

SIDES = st.integers(2, 24)
WRITABLE = [name for name, encoding in ENCODINGS.items() if not encoding.chroma]


@st.composite
def messages(draw: st.DrawFn) -> Any:
    """Messages with any header: a few of them fit together."""
    return SimpleNamespace(
        height=draw(st.integers(0, 9)),
        width=draw(st.integers(0, 9)),
        step=draw(st.integers(0, 80)),
        encoding=draw(st.sampled_from([*ENCODINGS, "", "jpeg"])),
        is_bigendian=draw(st.integers(0, 255)),
        data=array("B", draw(st.binary(max_size=300))),
    )


@given(messages())
def test_a_message_is_converted_or_refused(message: Any) -> None:
    try:
        frame = message_to_bgr(message)
    except ImageError as error:
        assert "received" in str(error)
    else:
        assert frame.dtype == np.uint8 and frame.shape == (message.height, message.width, 3)


@given(st.binary(max_size=400), st.sampled_from(["jpeg", "png", "bayer_rggb8; png compressed ", ""]))
def test_compressed_bytes_are_converted_or_refused(data: bytes, image_format: str) -> None:
    for start in (b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"):
        with pytest.raises(ImageError):
            message_to_bgr(SimpleNamespace(format=image_format, data=array("B", start + data)))


@given(hnp.arrays(np.uint8, st.tuples(SIDES, SIDES, st.just(3))), st.integers(0, 7))
def test_padding_and_the_order_of_colours_change_nothing(frame: np.ndarray, padding: int) -> None:
    for encoding, pixels in {"bgr8": frame, "rgb8": frame[..., ::-1]}.items():
        message = fill_image(SimpleNamespace(), pixels, encoding)
        rows = np.frombuffer(message.data, np.uint8).reshape(len(frame), -1)
        message.data = array("B", np.pad(rows, ((0, 0), (0, padding)), constant_values=77).tobytes())
        message.step += padding
        assert np.array_equal(message_to_bgr(message), frame)


@given(st.data(), st.sampled_from(WRITABLE))
def test_the_written_size_is_read(data: st.DataObject, name: str) -> None:
    encoding = ENCODINGS[name]
    least = 3 if name.startswith("bayer_") else 1  # of a side of a mosaic
    height, width = data.draw(SIDES.filter(lambda side: side >= least)), 2 * data.draw(st.integers(-(-least // 2), 12))
    shape = (height, width) if encoding.channels == 1 else (height, width, encoding.channels)
    dtype = np.uint8 if encoding.bytes_per_channel == 1 else np.uint16
    message = fill_image(SimpleNamespace(), data.draw(hnp.arrays(dtype, shape)), name)
    assert message_to_bgr(message).shape == (height, width, 3)
    message.data = message.data[:-1]
    with pytest.raises(ImageError, match="received"):
        message_to_bgr(message)


@given(hnp.arrays(np.uint16, st.tuples(SIDES, SIDES)))
def test_the_byte_order_of_16_bits_changes_nothing(pixels: np.ndarray) -> None:
    message = fill_image(SimpleNamespace(), pixels, "mono16")
    expected = message_to_bgr(message)
    message.is_bigendian = int(not message.is_bigendian)
    message.data = array("B", pixels.byteswap().tobytes())
    assert np.array_equal(message_to_bgr(message), expected)
