# SPDX-License-Identifier: Apache-2.0
"""Properties of image and label files: what is written comes back equal, and damage is an error or changes nothing."""

from __future__ import annotations

import contextlib
import struct
import zlib
from array import array
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

pytest.importorskip("hypothesis")
if not hasattr(cv2, "imdecodemulti"):
    pytest.skip("OpenCV is older than 4.10", allow_module_level=True)

from class_sets import CITYSCAPES19
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nightlab_core.data.image_files import decode_bgr
from nightlab_core.data.image_header import PNG, ImageError
from nightlab_core.data.images import message_to_bgr
from nightlab_core.data.label_maps import decode_label_image, label_map
from nightlab_core.data.png import png_chunk

SIDES = st.integers(1, 24)
LOSSLESS = {".png": (), ".bmp": (), ".tiff": (), ".webp": (cv2.IMWRITE_WEBP_QUALITY, 101)}
FORMATS = (*LOSSLESS, ".jpg", ".gif")


def pack(extension: str, pixels: np.ndarray) -> bytes:
    return cv2.imencode(extension, pixels, list(LOSSLESS.get(extension, ())))[1].tobytes()


def noise(channels: int = 3) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (24, 32, channels), np.uint8).squeeze()


WHOLE = {extension: pack(extension, noise()) for extension in FORMATS}


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """The bytes, cut, or with a part of other bytes, or with zeros in a part."""
    at = draw(st.integers(0, len(data) - 1))
    kind = draw(st.sampled_from(["cut", "zeros", "other bytes"]))
    if kind == "cut":
        return data[:at]
    part = bytes(draw(st.integers(1, 200))) if kind == "zeros" else draw(st.binary(min_size=1, max_size=8))
    return (data[:at] + part + data[at + len(part) :])[: len(data)]


@given(hnp.arrays(np.uint8, st.tuples(SIDES, SIDES, st.just(3))), st.sampled_from(list(LOSSLESS)))
def test_an_image_comes_back_equal(pixels: np.ndarray, extension: str) -> None:
    data = pack(extension, pixels)
    assert np.array_equal(decode_bgr(data), pixels)
    if extension == ".png":
        assert np.array_equal(message_to_bgr(SimpleNamespace(format="png", data=array("B", data))), pixels)


@given(hnp.arrays(np.uint16, st.tuples(SIDES, SIDES)), st.sampled_from([".png", ".tiff"]))
def test_an_image_of_16_bits_keeps_its_high_bits(pixels: np.ndarray, extension: str) -> None:
    expected = np.rint(pixels / 257).astype(np.uint8)
    assert np.abs(decode_bgr(pack(extension, pixels)).astype(int) - expected[..., None]).max() <= 1


@given(st.data(), st.sampled_from(FORMATS))
def test_a_damaged_image_is_an_error_or_a_picture_of_a_size_within_the_limits(data: st.DataObject, name: str) -> None:
    with contextlib.suppress(ImageError):
        image = decode_bgr(data.draw(damaged(WHOLE[name])))
        assert image.dtype == np.uint8 and image.shape[2] == 3


@given(st.data())
def test_a_damaged_png_is_an_error_or_equal(data: st.DataObject) -> None:
    with contextlib.suppress(ImageError):
        assert np.array_equal(decode_bgr(data.draw(damaged(WHOLE[".png"]))), noise())


@given(st.integers(0, len(WHOLE[".jpg"])), st.sampled_from([b"", b"\xff\xd9"]))
def test_a_cut_jpeg_is_an_error_or_equal(length: int, end: bytes) -> None:
    with contextlib.suppress(ImageError):
        cut = decode_bgr(WHOLE[".jpg"][:length] + end)
        assert np.array_equal(cut, decode_bgr(WHOLE[".jpg"])), length


def grey_png(ids: np.ndarray, bits: int) -> bytes:
    """A PNG of 1, 2, 4 or 8 bits, written by hand: OpenCV writes 8 alone."""
    height, width = ids.shape
    places = np.unpackbits(ids[..., None], axis=-1)[..., 8 - bits :].reshape(height, -1)
    rows = np.packbits(places, axis=1)
    data = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(data)), (b"IEND", b""))
    return PNG + b"".join(png_chunk(*chunk) for chunk in chunks)


@given(st.data(), st.sampled_from([1, 2, 4, 8]))
def test_ids_come_back_equal(data: st.DataObject, bits: int) -> None:
    ids = data.draw(hnp.arrays(np.uint8, st.tuples(SIDES, SIDES), elements=st.integers(0, 2**bits - 1)))
    packed = grey_png(ids, bits)
    assert np.array_equal(decode_label_image(packed, CITYSCAPES19), ids)
    assert np.array_equal(label_map(SimpleNamespace(format="png", data=packed), CITYSCAPES19), ids)


@given(st.data(), st.sampled_from([1, 4, 8]))
def test_damaged_ids_are_an_error_or_equal(data: st.DataObject, bits: int) -> None:
    ids = noise(1) >> (8 - bits)
    with contextlib.suppress(ImageError):
        assert np.array_equal(decode_label_image(data.draw(damaged(grey_png(ids, bits))), CITYSCAPES19), ids)
