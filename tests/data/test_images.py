# SPDX-License-Identifier: Apache-2.0
"""Every encoding against pixels that were computed by hand, and messages that must be refused. Needs no ROS."""

from __future__ import annotations

from array import array
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from class_sets import CITYSCAPES19

from nightlab_core.data.image_files import decode_image
from nightlab_core.data.image_header import ImageError
from nightlab_core.data.images import ENCODINGS, compressed_to_bgr, fill_image, image_to_bgr
from nightlab_core.data.label_maps import label_map

BLUE, GREEN, RED, ALPHA = 10, 120, 250, 77
BGR = [BLUE, GREEN, RED]
HEIGHT, WIDTH = 4, 6


def message(encoding: str, rows: np.ndarray, padding: int = 0, is_bigendian: int = 0, **changes: Any) -> Any:
    """An image message from uint8 rows (H, bytes), each followed by padding bytes of 0xEE."""
    rows = np.pad(rows, ((0, 0), (0, padding)), constant_values=0xEE)
    fields = {"height": len(rows), "width": WIDTH, "encoding": encoding, "is_bigendian": is_bigendian}
    fields |= {"step": rows.shape[1], "data": array("B", rows.tobytes())}
    return SimpleNamespace(**{**fields, **changes})


def of_pixels(*pixel: int) -> np.ndarray:
    return np.tile(np.array(pixel, np.uint8), (HEIGHT, WIDTH))


def mosaic(pattern: str) -> np.ndarray:
    """A uniform colour as a colour filter sees it, uint8 (H, W); the pattern names the sites row by row."""
    values = {"r": RED, "g": GREEN, "b": BLUE}
    cell = np.array([values[site] for site in pattern], np.uint8).reshape(2, 2)
    return np.tile(cell, (HEIGHT // 2, WIDTH // 2))


def bytes_of_16_bits(values: np.ndarray, big: bool) -> np.ndarray:
    """8-bit values spread over 16 bits (255 becomes 65535), as rows of bytes."""
    return (values.astype(np.uint16) * 257).astype(">u2" if big else "<u2").view(np.uint8)


EXACT = {
    "bgr8": (of_pixels(BLUE, GREEN, RED), BGR),
    "rgb8": (of_pixels(RED, GREEN, BLUE), BGR),
    "bgra8": (of_pixels(BLUE, GREEN, RED, ALPHA), BGR),
    "rgba8": (of_pixels(RED, GREEN, BLUE, ALPHA), BGR),
    **{name: (of_pixels(GREEN), [GREEN] * 3) for name in ("mono8", "8UC1")},
    "8UC3": (of_pixels(BLUE, GREEN, RED), BGR),
    "8UC4": (of_pixels(BLUE, GREEN, RED, ALPHA), BGR),
    **{name: (bytes_of_16_bits(of_pixels(GREEN), big=False), [GREEN] * 3) for name in ("mono16", "16UC1")},
    **{name: (bytes_of_16_bits(of_pixels(*BGR), big=False), BGR) for name in ("bgr16", "16UC3")},
    **{name: (bytes_of_16_bits(of_pixels(*BGR, ALPHA), big=False), BGR) for name in ("bgra16", "16UC4")},
    "rgb16": (bytes_of_16_bits(of_pixels(*BGR[::-1]), big=False), BGR),
    "rgba16": (bytes_of_16_bits(of_pixels(*BGR[::-1], ALPHA), big=False), BGR),
    **{f"bayer_{p}8": (mosaic(p), BGR) for p in ("rggb", "bggr", "gbrg", "grbg")},
    **{f"bayer_{p}16": (bytes_of_16_bits(mosaic(p), big=False), BGR) for p in ("rggb", "bggr", "gbrg", "grbg")},
}
# Pure red in BT.601's studio range, as cameras send it: Y 81, U 90, V 240.
RED_YUV = {
    "yuv422": of_pixels(90, 81, 240, 81)[:, : WIDTH * 2],
    "uyvy": of_pixels(90, 81, 240, 81)[:, : WIDTH * 2],
    "yuv422_yuy2": of_pixels(81, 90, 81, 240)[:, : WIDTH * 2],
    "yuyv": of_pixels(81, 90, 81, 240)[:, : WIDTH * 2],
    "yvyu": of_pixels(81, 240, 81, 90)[:, : WIDTH * 2],
}
#: The same red in 4:2:0: bytes of one row of chroma, which may be two planes.
RED_CHROMA = {"nv12": [90, 240] * 3, "nv21": [240, 90] * 3, "i420": [90] * 6, "yv12": [240] * 6}


def planar(encoding: str, luma: np.ndarray, chroma: np.ndarray, padding: int) -> Any:
    """A message of 4:2:0: luma uint8 (H, W), chroma uint8 (H / 2, W), or (H, W / 2) of two planes."""
    per_row = padding if encoding in ("nv12", "nv21") else padding // 2
    rows = [np.pad(p, ((0, 0), (0, n)), constant_values=0xEE) for p, n in ((luma, padding), (chroma, per_row))]
    data = array("B", b"".join(r.tobytes() for r in rows))
    return message(encoding, luma, data=data, step=luma.shape[1] + padding, width=luma.shape[1])


@pytest.mark.parametrize("padding", [0, 10])
@pytest.mark.parametrize("encoding", RED_CHROMA)
def test_yuv_420_of_one_colour(encoding: str, padding: int) -> None:
    shape = (HEIGHT // 2, WIDTH) if encoding in ("nv12", "nv21") else (HEIGHT, WIDTH // 2)
    chroma = np.resize(np.array(RED_CHROMA[encoding], np.uint8), shape)
    if shape[0] == HEIGHT:  # the second plane has the other colour difference
        chroma[HEIGHT // 2 :] = 330 - RED_CHROMA[encoding][0]
    bgr = image_to_bgr(planar(encoding, np.full((HEIGHT, WIDTH), 81, np.uint8), chroma, padding))
    assert bgr.shape == (HEIGHT, WIDTH, 3)
    assert np.abs(bgr.astype(int) - [0, 0, 255]).max() <= 2


@pytest.mark.parametrize("padding", [0, 6])
@pytest.mark.parametrize("encoding", ["nv12", "nv21", "i420", "yv12"])
def test_yuv_420_gives_the_picture(encoding: str, padding: int) -> None:
    height, width = picture().shape[:2]
    rows = cv2.cvtColor(picture(), cv2.COLOR_BGR2YUV_I420)
    luma, u, v = rows[:height], *rows[height:].reshape(2, height // 2, width // 2)
    pair = (u, v) if encoding in ("nv12", "i420") else (v, u)
    interleaved = np.stack(pair, -1).reshape(height // 2, width)
    chroma = interleaved if encoding in ("nv12", "nv21") else np.concatenate(pair)
    bgr = image_to_bgr(planar(encoding, luma, chroma, padding))
    assert bgr.shape == picture().shape and np.abs(bgr.astype(int) - picture()).mean() < 4


def test_yuv_420_whose_height_counts_the_rows_of_chroma_is_refused() -> None:
    rows = np.zeros((HEIGHT * 3 // 2, WIDTH), np.uint8)
    assert image_to_bgr(message("nv12", rows, height=HEIGHT)).shape == (HEIGHT, WIDTH, 3)
    with pytest.raises(ImageError, match=r"received 36 bytes for 6x6 nv12.*expected 54,.*height is the picture's"):
        image_to_bgr(message("nv12", rows))
    with pytest.raises(ImageError, match="nv12 of 6x3 pixels; expected even sides"):
        image_to_bgr(message("nv12", rows, height=3))
    with pytest.raises(ImageError, match="step 7 for 6 pixels of i420; expected at least 6, and even"):
        image_to_bgr(message("i420", rows, padding=1, height=HEIGHT))


@pytest.mark.parametrize("padding", [0, 10])
@pytest.mark.parametrize("encoding", EXACT)
def test_encodings(encoding: str, padding: int) -> None:
    rows, expected = EXACT[encoding]
    bgr = image_to_bgr(message(encoding, rows, padding))
    assert bgr.dtype == np.uint8 and bgr.shape == (HEIGHT, WIDTH, 3)
    assert (bgr == expected).all()


@pytest.mark.parametrize("padding", [0, 10])
@pytest.mark.parametrize("encoding", RED_YUV)
def test_yuv_encodings(encoding: str, padding: int) -> None:
    bgr = image_to_bgr(message(encoding, RED_YUV[encoding], padding))
    assert bgr.shape == (HEIGHT, WIDTH, 3)
    assert np.abs(bgr.astype(int) - [0, 0, 255]).max() <= 2


def test_every_encoding_is_tested() -> None:
    assert {*EXACT, *RED_YUV, *RED_CHROMA} == set(ENCODINGS)


@pytest.mark.parametrize("encoding", ["mono16", "bayer_rggb16", "bayer_grbg16"])
def test_bigendian_16_bits(encoding: str) -> None:
    values = of_pixels(GREEN) if encoding == "mono16" else mosaic(encoding[6:10])
    bgr = image_to_bgr(message(encoding, bytes_of_16_bits(values, big=True), padding=4, is_bigendian=1))
    assert (bgr == ([GREEN] * 3 if encoding == "mono16" else BGR)).all()


def test_16_bit_values_are_scaled_linearly_and_rounded() -> None:
    values = np.array([[0, 128, 129, 32768, 65406, 65535]], "<u2")  # 257 steps in 16 bits are one step in 8 bits
    bgr = image_to_bgr(message("mono16", values.view(np.uint8)))
    assert bgr[0, :, 0].tolist() == [0, 0, 1, 128, 254, 255]


def test_rows_and_columns_keep_their_order() -> None:
    rows = np.arange(HEIGHT * WIDTH * 3, dtype=np.uint8).reshape(HEIGHT, WIDTH * 3)
    expected = rows.reshape(HEIGHT, WIDTH, 3)
    assert np.array_equal(image_to_bgr(message("bgr8", rows, padding=5)), expected)
    assert np.array_equal(image_to_bgr(message("rgb8", rows, padding=5)), expected[..., ::-1])


@pytest.mark.parametrize("padding", [0, 7])
def test_bgr8_shares_the_memory_of_the_message(padding: int) -> None:
    msg = message("bgr8", of_pixels(*BGR), padding)
    bgr = image_to_bgr(msg)
    msg.data[1] = 33
    assert bgr[0, 0, 1] == 33
    assert cv2.resize(bgr, (3, 2)).shape == (2, 3, 3)  # OpenCV accepts the padded view


@pytest.mark.parametrize(
    ("changes", "received", "expected"),
    [
        ({"encoding": "32FC1"}, "'32FC1'", "bgr8"),
        ({"encoding": ""}, "''", "bgr8"),
        ({"height": 0}, "6x0", "at least 1x1"),
        ({"width": 0}, "0x4", "at least 1x1"),
        ({"step": 17}, "step 17", "at least 18"),
        ({"data": array("B", bytes(71))}, "71 bytes", "72"),
        ({"data": array("B", bytes(73))}, "73 bytes", "72"),
        ({"data": array("B")}, "0 bytes", "72"),
    ],
)
def test_bad_images_are_refused(changes: dict[str, Any], received: str, expected: str) -> None:
    with pytest.raises(ImageError) as error:
        image_to_bgr(message(**{"encoding": "bgr8", "rows": of_pixels(*BGR), **changes}))
    assert received in str(error.value) and expected in str(error.value)


def test_yuv_of_an_odd_width_is_refused() -> None:
    with pytest.raises(ImageError, match="width 5; expected an even width"):
        image_to_bgr(message("yuv422", np.zeros((4, 10), np.uint8), width=5))


def picture() -> np.ndarray:
    """A smooth image, uint8 (48, 64, 3), which JPEG changes by a few grey levels at most."""
    y, x = np.mgrid[0:48, 0:64]
    return np.stack([x * 3, y * 4, 255 - x * 3], axis=-1).astype(np.uint8)


def compressed(extension: str, pixels: np.ndarray) -> Any:
    data = cv2.imencode(extension, pixels)[1].tobytes()
    return SimpleNamespace(format=f"bgr8; {extension[1:]} compressed bgr8", data=array("B", data))


def test_png_is_exact() -> None:
    assert np.array_equal(compressed_to_bgr(compressed(".png", picture())), picture())


def test_grey_png_becomes_bgr() -> None:
    grey = np.ascontiguousarray(picture()[..., 0])
    assert np.array_equal(compressed_to_bgr(compressed(".png", grey)), np.repeat(grey[..., None], 3, axis=-1))


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
def test_a_compressed_bayer_mosaic_is_converted_to_colour(pattern: str, size: int) -> None:
    """image_transport compresses a mosaic without conversion, and then names no target encoding in `format`."""
    pixels = mosaic(pattern) if size == 1 else mosaic(pattern).astype(np.uint16) * 257
    msg = compressed(".png", pixels)
    encoding = f"bayer_{pattern}{8 * size}"
    for text in (f"{encoding}; png compressed ", f"{encoding}; png compressed {encoding}", f"{encoding}; png"):
        msg.format = text
        assert (compressed_to_bgr(msg) == BGR).all()
    msg.format = f"bayer_{pattern}{8 * size}; png compressed mono8"  # converted to grey before compression
    grey = compressed_to_bgr(msg)
    assert (grey[..., 0] == grey[..., 2]).all()
    coloured = compressed(".png", picture())
    coloured.format = f"bayer_{pattern}{8 * size}; png compressed "
    with pytest.raises(ImageError, match=r"needs 1 channels .*received 3"):
        compressed_to_bgr(coloured)


@pytest.mark.parametrize(("height", "width"), [(1, 8), (2, 2), (8, 2)])
def test_a_mosaic_too_small_to_convert_is_refused(height: int, width: int) -> None:
    with pytest.raises(ImageError, match=rf"received bayer_rggb8 of {width}x{height} pixels; expected .* at least 3x3"):
        image_to_bgr(fill_image(SimpleNamespace(), np.full((height, width), 90, np.uint8), "bayer_rggb8"))


def test_jpeg_is_decoded_to_similar_pixels() -> None:
    decoded = compressed_to_bgr(compressed(".jpg", picture()))
    assert decoded.shape == (48, 64, 3)
    assert np.abs(decoded.astype(int) - picture()).mean() < 3


def test_the_orientation_in_exif_is_ignored() -> None:
    exif = b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"  # orientation 6: 90 degrees
    data = cv2.imencode(".jpg", picture())[1].tobytes()
    turned = data[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + data[2:]
    assert cv2.imdecode(np.frombuffer(turned, np.uint8), cv2.IMREAD_COLOR).shape == (64, 48, 3)  # without the flag
    assert compressed_to_bgr(SimpleNamespace(format="jpeg", data=array("B", turned))).shape == (48, 64, 3)


@pytest.mark.parametrize("extension", [".jpg", ".png"])
def test_compressed_images_that_are_cut_short_are_refused(extension: str) -> None:
    msg = compressed(extension, picture())
    with pytest.raises(ImageError, match="cut short"):
        compressed_to_bgr(SimpleNamespace(format=msg.format, data=msg.data[: len(msg.data) // 2]))


@pytest.mark.parametrize("extension", [".jpg", ".png"])
def test_corrupt_compressed_images_are_refused(extension: str) -> None:
    data = bytearray(compressed(extension, picture()).data)
    data[12:-16] = b"\x55" * (len(data) - 28)
    with pytest.raises(ImageError, match=r"corrupt|expected at most"):
        compressed_to_bgr(SimpleNamespace(format=extension, data=array("B", bytes(data))))


@pytest.mark.parametrize("data", [b"", b"RIFF....WEBP", bytes(100)])
def test_other_formats_are_refused(data: bytes) -> None:
    with pytest.raises(ImageError, match=r"format 'webp'.*expected a JPEG or PNG"):
        compressed_to_bgr(SimpleNamespace(format="webp", data=array("B", data)))


@pytest.mark.parametrize(
    ("encoding", "pixels"),
    [
        ("mono8", np.arange(24, dtype=np.uint8).reshape(4, 6)),
        ("bgr8", np.arange(72, dtype=np.uint8).reshape(4, 6, 3)[:, ::-1]),  # not contiguous
        ("bgra8", np.arange(96, dtype=np.uint8).reshape(4, 6, 4)),
        ("mono16", (np.arange(24, dtype=np.uint16) * 257).reshape(4, 6)),
    ],
)
def test_filled_messages_are_read_as_written(encoding: str, pixels: np.ndarray) -> None:
    header = object()
    msg = fill_image(SimpleNamespace(), pixels, encoding, header)
    assert (msg.height, msg.width, msg.encoding, msg.header) == (4, 6, encoding, header)
    assert len(msg.data) == msg.step * msg.height and msg.data.tobytes() == pixels.tobytes()
    grey = (pixels // 257 if encoding == "mono16" else pixels).astype(np.uint8)
    expected = grey[..., :3] if grey.ndim == 3 else np.repeat(grey[..., None], 3, axis=-1)
    assert np.array_equal(image_to_bgr(msg), expected)


def test_filling_checks_the_array() -> None:
    with pytest.raises(ImageError, match=r"mono8 needs 1 channels of 1 bytes; received 3 of 1"):
        fill_image(SimpleNamespace(), picture(), "mono8")
    with pytest.raises(ImageError, match="received the encoding nv12 to write"):
        fill_image(SimpleNamespace(), picture()[..., 0], "nv12")
    with pytest.raises(ImageError, match="'cmyk'"):
        fill_image(SimpleNamespace(), picture(), "cmyk")


@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize("encoding", ["mono8", "8UC1"])
def test_label_maps_of_raw_messages(encoding: str, padding: int) -> None:
    rows = np.arange(24, dtype=np.uint8).reshape(HEIGHT, WIDTH)
    assert np.array_equal(label_map(message(encoding, rows, padding), CITYSCAPES19), rows)


def test_label_maps_in_colour_or_cut_short_are_refused() -> None:
    with pytest.raises(ImageError, match="encoding 'bgr8'; expected mono8"):
        label_map(message("bgr8", of_pixels(*BGR)), CITYSCAPES19)
    with pytest.raises(ImageError, match="71 bytes"):
        label_map(message("mono8", of_pixels(GREEN), data=array("B", bytes(71)), step=18), CITYSCAPES19)
    msg = compressed(".png", picture()[..., 0])
    assert np.array_equal(label_map(msg, CITYSCAPES19), picture()[..., 0])
    with pytest.raises(ImageError, match=r"label map of format .*cut short"):
        label_map(SimpleNamespace(format=msg.format, data=msg.data[:-20]), CITYSCAPES19)


@pytest.mark.parametrize("behind", [b"", bytes(500), b"\xff" * 100, bytes(range(200))])
def test_jpeg_with_anything_behind_its_end_is_read(behind: bytes) -> None:
    msg = compressed(".jpg", picture())
    expected = compressed_to_bgr(msg)
    msg.data.frombytes(behind)
    assert np.array_equal(compressed_to_bgr(msg), expected)


def test_a_jpeg_that_is_cut_short_behind_its_thumbnail_is_refused() -> None:
    thumbnail = cv2.imencode(".jpg", picture()[::4, ::4])[1].tobytes()
    data = cv2.imencode(".jpg", picture())[1].tobytes()
    data = data[:2] + b"\xff\xe1" + (2 + len(thumbnail)).to_bytes(2, "big") + thumbnail + data[2:]
    decode_image(data)
    with pytest.raises(ImageError, match=r"cut short|corrupt"):
        decode_image(data[: len(data) - 100])
