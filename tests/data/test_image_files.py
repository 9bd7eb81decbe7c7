# SPDX-License-Identifier: Apache-2.0
"""Image files: every format comes back equal, sizes are limited before decoding, and damage is refused."""

from __future__ import annotations

import struct
import zlib
from array import array
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from nightlab_core.data.image_files import decode_bgr, decode_image, read_image
from nightlab_core.data.image_header import MAX_ASPECT, MAX_PIXELS, ImageError, check_header
from nightlab_core.data.images import compressed_to_bgr, image_to_bgr
from nightlab_core.data.label_maps import decode_label_image
from nightlab_core.data.png import png_chunk


def noise(height: int = 96, width: int = 128) -> np.ndarray:
    """Return a picture whose JPEG has about as many bits in each part, uint8 (H, W, 3)."""
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def packed(extension: str, pixels: np.ndarray, *options: int) -> bytes:
    return cv2.imencode(extension, pixels, list(options))[1].tobytes()


def png_header(width: int, height: int, bits: int = 1) -> bytes:
    """Return a complete PNG that claims a size and holds one row."""
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(10))), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


JPEG = packed(".jpg", noise())
FRAME_HEADER = JPEG.index(b"\xff\xc0")
EXPECTED = cv2.imdecode(np.frombuffer(JPEG, np.uint8), cv2.IMREAD_COLOR)
HALF_COLOUR = (  # 4:2:2, which OpenCV 4.5.4 cannot write
    (cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422)
    if hasattr(cv2, "IMWRITE_JPEG_SAMPLING_FACTOR")
    else ()
)
counts_images = pytest.mark.skipif(not hasattr(cv2, "imdecodemulti"), reason="OpenCV is older than 4.10")


def with_height(height: int) -> bytes:
    return JPEG[: FRAME_HEADER + 5] + height.to_bytes(2, "big") + JPEG[FRAME_HEADER + 7 :]


@pytest.mark.parametrize(
    ("extension", "kind"),
    [
        (".png", "PNG"),
        (".bmp", "BMP"),
        pytest.param(".tiff", "TIFF", marks=counts_images),
        pytest.param(".webp", "WebP", marks=counts_images),
    ],
)
@pytest.mark.parametrize("shape", [(7, 5), (96, 128)])
def test_lossless_formats_come_back_equal(extension: str, kind: str, shape: tuple[int, int], tmp_path: Path) -> None:
    pixels = noise(*shape)
    data = packed(extension, pixels, *((cv2.IMWRITE_WEBP_QUALITY, 101) if extension == ".webp" else ()))
    assert check_header(data) == (kind, shape[::-1])
    (tmp_path / f"a{extension}").write_bytes(data)
    assert np.array_equal(read_image(tmp_path / f"a{extension}"), pixels)


@counts_images
@pytest.mark.parametrize(("extension", "tolerance"), [(".gif", 40.0), (".avif", 8.0), (".webp", 8.0), (".jpg", 4.0)])
def test_lossy_formats_are_read_in_the_order_blue_green_red(extension: str, tolerance: float) -> None:
    pixels = np.full((48, 64, 3), (250, 120, 10), np.uint8)
    try:
        data = packed(extension, pixels)
    except cv2.error:
        pytest.skip(f"this build of OpenCV does not write {extension}")
    assert check_header(data)[1] == (64, 48)
    assert np.abs(decode_bgr(data).astype(int) - pixels).mean() < tolerance


@counts_images
def test_a_tiff_of_16_bits_keeps_its_high_bits_and_floats_are_refused() -> None:
    pixels = (noise().astype(np.uint16) << 8) + 255
    assert np.array_equal(decode_bgr(packed(".tiff", pixels)), cv2.convertScaleAbs(pixels, alpha=1 / 257))
    with pytest.raises(ImageError, match="float32 pixels; expected uint8 or uint16"):
        decode_bgr(packed(".tiff", pixels.astype(np.float32)))


@counts_images
def test_files_of_several_images_and_turned_tiffs_are_refused() -> None:
    several = cv2.imencodemulti(".tiff", [noise(), noise()])[1].tobytes()
    with pytest.raises(ImageError, match="TIFF of several images"):
        decode_image(several)
    turned = bytearray(packed(".tiff", noise()))
    (directory,) = struct.unpack_from("<I", turned, 4)
    (count,) = struct.unpack_from("<H", turned, directory)
    tags = {struct.unpack_from("<H", turned, directory + 2 + 12 * n)[0]: directory + 2 + 12 * n for n in range(count)}
    struct.pack_into("<HHIHH", turned, tags[max(tags)], 274, 3, 1, 6, 0)
    with pytest.raises(ImageError, match="TIFF of orientation 6; expected 1"):
        decode_image(bytes(turned))


def tiff_with_its_directory_first(
    pixels: np.ndarray, entries: tuple[tuple[int, int, int], ...] = (), next_image: int = 0
) -> bytes:
    """A grey TIFF of one strip without compression, whose pixels are at the end; `entries`: tag, type and value."""
    height, width = pixels.shape
    num_tags = 8 + len(entries)
    begin = 8 + 2 + 12 * num_tags + 4
    tags = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: begin, 278: height, 279: pixels.size}
    every = [*entries, *((tag, 4, value) for tag, value in tags.items())]
    directory = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in every)
    return b"II*\0" + struct.pack("<IH", 8, num_tags) + directory + struct.pack("<I", next_image) + pixels.tobytes()


@pytest.mark.parametrize(
    ("entries", "next_image", "reason"),
    [
        (((256, 9, 20000), (257, 9, 20000)), 0, "TIFF without a size in its header"),
        (((256, 16, 20000),), 0, "TIFF without a size in its header"),
        (((256, 4, 20000), (257, 4, 20000)), 0, "TIFF without a size in its header"),
        (((322, 4, 60000), (323, 4, 60000)), 0, "received 3600000000 bytes; expected at most"),
        (((277, 3, 60000),), 0, "received 737280000 bytes; expected at most"),
        ((), 4000, "TIFF of several images"),
    ],
    ids=["a size of type SLONG first", "of type LONG8", "a size twice", "a huge tile", "channels", "a second image"],
)
def test_a_tiff_whose_size_libtiff_may_read_otherwise_is_refused(
    entries: tuple[tuple[int, int, int], ...], next_image: int, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cv2, "imdecodemulti", None, raising=False)
    with pytest.raises(ImageError, match=reason):
        check_header(tiff_with_its_directory_first(noise()[..., 0], entries, next_image))


@counts_images
def test_a_tiff_that_ends_before_its_last_pixel_is_refused() -> None:
    pixels = noise()[..., 0]
    whole = tiff_with_its_directory_first(pixels)
    assert np.array_equal(decode_bgr(whole)[..., 0], pixels)
    with pytest.raises(ImageError, match=f"received {len(whole) - 1} bytes of TIFF; expected {len(whole)}: it is cut"):
        decode_bgr(whole[:-1])


def test_formats_of_several_images_are_refused_where_opencv_cannot_count_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(cv2, "imdecodemulti", raising=False)
    with pytest.raises(ImageError, match=r"received a TIFF, whose images .* expected 4\.10 or later"):
        decode_image(packed(".tiff", noise()))


@counts_images
def test_a_refused_image_writes_nothing_to_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    for extension in (".tiff", ".webp", ".gif", ".bmp"):
        with pytest.raises(ImageError):
            decode_bgr(packed(extension, noise())[:-40])
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (png_header(20000, 20000), f"20000x20000 pixels; expected at most {MAX_PIXELS}"),
        (png_header(1, 1_000_000), f"1x1000000 pixels; expected sides of at most {MAX_ASPECT} to 1"),
        (png_header(0, 5), "empty image of 0x5"),
        (b"GIF89a" + struct.pack("<HH", 65535, 65535) + bytes(20), "65535x65535"),
        (b"BM" + bytes(12) + struct.pack("<Iii", 40, 30000, -30000) + bytes(40), "30000x30000"),
        (b"RIFF" + bytes(4) + b"WEBPVP8X" + bytes(8) + b"\xff" * 6, "16777216x16777216"),
        (b"\0\0\0\x20ftypavif" + bytes(20) + b"ispe" + struct.pack(">III", 0, 40000, 40000), "40000x40000"),
        (b"\0\0\0\x20ftypheic" + bytes(20), "expected a file of JPEG, PNG, WebP, BMP, TIFF, GIF, AVIF"),
        (b"II*\0" + b"\xff" * 4, "TIFF without a size in its header"),
    ],
    ids=["PNG", "thin", "empty", "GIF", "BMP", "WebP", "AVIF", "HEIC", "TIFF"],
)
def test_sizes_are_refused_before_anything_is_decoded(
    data: bytes, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cv2, "imdecode", None)
    with pytest.raises(ImageError, match=reason):
        decode_bgr(data)


def test_raw_messages_beyond_the_limits_are_refused() -> None:
    pixels = array("B", bytes(3_000_000))
    fields = {"encoding": "bgr8", "is_bigendian": 0, "data": pixels}
    with pytest.raises(ImageError, match=f"sides of at most {MAX_ASPECT} to 1"):
        image_to_bgr(SimpleNamespace(height=1_000_000, width=1, step=3, **fields))
    with pytest.raises(ImageError, match=f"expected at most {MAX_PIXELS}"):
        image_to_bgr(SimpleNamespace(height=10_000, width=10_000, step=30_000, **fields))


DAMAGES: dict[str, tuple[Callable[[], bytes], str]] = {
    "cut, with an end": (lambda: JPEG[: len(JPEG) // 10] + b"\xff\xd9", "cut short"),
    "the last bytes cut, with an end": (lambda: JPEG[:-300] + b"\xff\xd9", "cut short"),
    "cut, without an end": (lambda: JPEG[: len(JPEG) * 6 // 10], "cut short"),
    "zeros in the middle": (
        lambda: JPEG[: len(JPEG) // 2] + bytes(2000) + JPEG[len(JPEG) // 2 + 2000 :],
        r"damaged|corrupt",
    ),
    "double height": (lambda: with_height(192), "128x192: it is cut short"),
    "half height": (lambda: with_height(48), "go on behind the last pixel of 128x48"),
    "the header alone": (lambda: JPEG[: FRAME_HEADER + 19], "header is cut short"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_jpeg_is_refused(name: str) -> None:
    make, reason = DAMAGES[name]
    with pytest.raises(ImageError, match=reason):
        decode_bgr(make())
    with pytest.raises(ImageError, match=reason):
        compressed_to_bgr(SimpleNamespace(format="jpeg", data=array("B", make())))


SMOOTH = cv2.GaussianBlur(noise(240, 320), (0, 0), 2)
FORMS = {
    "baseline": (),
    "optimised tables": (cv2.IMWRITE_JPEG_OPTIMIZE, 1),
    "restarts": (cv2.IMWRITE_JPEG_RST_INTERVAL, 8),
    "progressive": (cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
}


@pytest.mark.parametrize("form", FORMS)
def test_zeros_within_the_pixels_of_a_jpeg_are_refused_wherever_they_are(form: str) -> None:
    data = packed(".jpg", SMOOTH, *FORMS[form])
    begin = data.index(b"\xff\xda") + 300
    for at in np.linspace(begin, len(data) - 1200, 12).astype(int):
        with pytest.raises(ImageError, match=r"damaged|corrupt|cut short"):
            decode_bgr(data[:at] + bytes(1000) + data[at + 1000 :])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["black", "half black", "plain", "smooth"])
def test_plain_areas_of_a_jpeg_are_no_zeros_within_the_pixels(form: str, kind: str) -> None:
    pixels = {"black": np.zeros_like(SMOOTH), "plain": np.full_like(SMOOTH, 90)}.get(kind, SMOOTH.copy())
    if kind == "half black":
        pixels[:120] = 0
    data = packed(".jpg", cv2.resize(pixels, None, fx=3, fy=3), *FORMS[form])
    assert np.array_equal(decode_bgr(data + bytes(3000)), cv2.imdecode(np.frombuffer(data, np.uint8), 1))


def test_a_progressive_jpeg_that_lacks_scans_or_has_too_many_is_refused() -> None:
    data = packed(".jpg", noise(), cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    scans = [at for at in range(len(data)) if data.startswith(b"\xff\xda", at)]
    assert len(scans) > 5
    for at in scans[1:]:
        for end in (b"", b"\xff\xd9"):
            with pytest.raises(ImageError, match="progressive JPEG without all scans: it is cut short"):
                decode_bgr(data[:at] + end)
    last = data[scans[-1] : -2]
    with pytest.raises(ImageError, match="more than 128 scans"):
        decode_bgr(data[:-2] + last * 128 + b"\xff\xd9")


def without_huffman_tables() -> bytes:
    kept, at = JPEG[:2], 2
    while JPEG[at + 1] != 0xDA:
        length = 2 + int.from_bytes(JPEG[at + 2 : at + 4], "big")
        kept += b"" if JPEG[at + 1] == 0xC4 else JPEG[at : at + length]
        at += length
    return kept + JPEG[at:]


@pytest.mark.parametrize(
    "data",
    [
        JPEG,
        JPEG[:-2],
        JPEG[:-1],
        JPEG + b"\xff" * 100,
        JPEG + bytes(500),
        JPEG[:-2] + b"\x12" * 20 + JPEG[-2:],
        without_huffman_tables(),
    ],
    ids=["whole", "no end", "half an end", "0xFF behind", "zeros behind", "a webcam's bytes before the end", "MJPEG"],
)
def test_a_complete_jpeg_is_read_whatever_its_end_is(data: bytes) -> None:
    assert np.array_equal(decode_bgr(data), EXPECTED)


@pytest.mark.parametrize("flags", [cv2.IMREAD_COLOR, cv2.IMREAD_UNCHANGED])
def test_a_jpeg_is_decoded_as_opencv_does(flags: int) -> None:
    for data in (
        JPEG,
        packed(".jpg", noise()[..., 0]),
        packed(".jpg", noise(), cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
        *([packed(".jpg", noise(33, 31), *HALF_COLOUR)] if HALF_COLOUR else []),
    ):
        assert np.array_equal(decode_image(data, flags), cv2.imdecode(np.frombuffer(data, np.uint8), flags))


def test_an_animated_png_is_refused_as_image_and_as_label_map() -> None:
    data = packed(".png", noise()[..., 0])
    header, end = data[:33], data[-12:]
    one, two = (png_chunk(b"acTL", struct.pack(">II", count, 0)) for count in (1, 2))
    further = png_chunk(b"fdAT", bytes(4) + zlib.compress(bytes(97 * 128)))
    assert np.array_equal(decode_bgr(header + one + data[33:])[..., 0], noise()[..., 0])
    for several in (header + two + data[33:], header + one + data[33:-12] + further + end):
        for decode in (decode_bgr, lambda png: decode_label_image(png, None)):
            with pytest.raises(ImageError, match="PNG of several images, an animation; expected a file of one image"):
                decode(several)


def test_a_png_of_more_data_than_its_pixels_take_is_refused_before_it_is_unpacked() -> None:
    data = packed(".png", noise())
    header, stored = data[:33], zlib.compress(b"".join(b"\0" + row.tobytes() for row in noise()[..., ::-1]), 0)
    end = data[-12:]
    assert np.array_equal(decode_bgr(header + png_chunk(b"IDAT", stored) + end), noise())
    bomb = png_chunk(b"IDAT", zlib.compress(bytes(100 << 20)))
    with pytest.raises(ImageError, match="more data than its pixels take"):
        decode_bgr(header + bomb + end)


def test_a_png_with_a_changed_byte_is_refused() -> None:
    data = bytearray(packed(".png", noise()))
    data[len(data) // 2] ^= 1
    with pytest.raises(ImageError, match="PNG that are corrupt"):
        decode_bgr(bytes(data))
