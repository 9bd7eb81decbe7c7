# SPDX-License-Identifier: Apache-2.0
"""The one reader of label maps' files, and the one check of their ids."""

from __future__ import annotations

import re
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from class_sets import CAMVID11, CITYSCAPES19

from nightlab_core.data.datasets.paired import PairedFolder
from nightlab_core.data.frames import open_frames
from nightlab_core.data.image_header import ImageError
from nightlab_core.data.label_doubts import doubts_of_files
from nightlab_core.data.label_maps import checked_labels, decode_label_image, read_label_map
from nightlab_core.labels import ClassSet

IDS = np.array([[0, 10, 18], [255, 5, 7]], np.uint8)
IMAGE = np.zeros((2, 3, 3), np.uint8)


def _write(path: Path, labels: np.ndarray) -> Path:
    assert cv2.imwrite(str(path), labels)
    return path


def png(stored: np.ndarray, bits: int, palette_rgb: Any = None) -> bytes:
    """A PNG that stores values in so many bits, grey or as indices of a palette; written without a library."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    height, width = stored.shape
    each_bit = np.unpackbits(stored.astype(np.uint8)[..., None], axis=-1)[..., 8 - bits :]
    rows = np.packbits(each_bit.reshape(height, -1), axis=1)
    header = struct.pack(">IIBBBBB", width, height, bits, 0 if palette_rgb is None else 3, 0, 0, 0)
    colours = b"" if palette_rgb is None else chunk(b"PLTE", np.asarray(palette_rgb, np.uint8).tobytes())
    pixels = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + colours + pixels + chunk(b"IEND", b"")


@pytest.mark.parametrize("palette", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_few_bits_give_the_stored_ids(bits: int, palette: bool) -> None:
    ids = (np.arange(16 * 13) % min(1 << bits, 19)).reshape(16, 13).astype(np.uint8)
    colours = [(90, 30, i) for i in range(1 << bits)] if palette else None
    found = decode_label_image(png(ids, bits, colours), CITYSCAPES19)
    assert found.dtype == np.uint8 and found.tolist() == ids.tolist()


ROAD, SKY, CAR = (CITYSCAPES19.colors_rgb[i] for i in (0, 10, 13))
BLACK, OTHER = (0, 0, 0), (1, 200, 3)
VOC = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128), (0, 128, 128), (128, 128, 128)]
VOC += [(64, 0, 0), (192, 0, 0), (64, 128, 0), (192, 128, 0), (64, 0, 128), (192, 0, 128), (64, 128, 128)]
VOC += [(192, 128, 128), (0, 64, 0)]
VOC_CLASSES = ClassSet(key="voc", names=tuple("abcd"), colors_rgb=tuple(VOC[:4]))


@pytest.mark.parametrize(
    ("palette", "stored", "ids", "classes"),
    [
        (CITYSCAPES19.colors_rgb, [0, 10, 13], [0, 10, 13], CITYSCAPES19),
        ([SKY, ROAD, CAR], [0, 1, 2], [10, 0, 13], CITYSCAPES19),  # in another order: by colour
        ([BLACK, SKY, ROAD], [0, 1, 2], [255, 10, 0], CITYSCAPES19),  # as CVAT writes them
        ([BLACK, SKY, ROAD], [0, 0, 0], [255, 255, 255], CITYSCAPES19),
        ([SKY, OTHER], [0, 0, 0], [10, 10, 10], CITYSCAPES19),  # colours that no pixel has do not count
        ([(i, i, i) for i in (0, 10, 13, 255)], [1, 2, 3], [10, 13, 255], CITYSCAPES19),  # grey, made smaller
        ([(i, i, i) for i in range(256)], [0, 10, 255], [0, 10, 255], CITYSCAPES19),
        ([OTHER] * 20, [0, 10, 19], [0, 10, 19], CITYSCAPES19),  # colours of nothing known: by index
        ([ROAD, OTHER, OTHER], [0, 1, 2], [0, 1, 2], CITYSCAPES19),
        ([(70, 132, 178), (128, 64, 129), CAR], [0, 1, 2], [10, 0, 13], CITYSCAPES19),  # as colour management changes
        ([(1, 0, 2), SKY], [0, 1], [255, 10], CITYSCAPES19),
        ([(1, 0, 2), OTHER], [0, 0], [0, 0], CITYSCAPES19),
        (VOC, [1, 3, 0], [1, 3, 0], CAMVID11),  # 128, 128, 0 is CamVid's tree, too
        (CITYSCAPES19.colors_rgb, [0, 10, 13], [0, 10, 13], None),
        ([SKY, ROAD, CAR], [0, 1, 2], [0, 1, 2], None),  # ids of another numbering: by index
    ],
)
def test_the_rule_for_palettes(palette: Any, stored: list[int], ids: list[int], classes: ClassSet | None) -> None:
    image = png(np.array([stored], np.uint8), 8, palette)
    assert decode_label_image(image, classes).tolist() == [ids]


@pytest.mark.parametrize(
    ("palette", "stored", "doubt"),
    [
        (VOC, [0, 1, 3], "1 of 1 label maps .* palette of PASCAL VOC, whose index 0 .* taken as 'road': .* from 1"),
        ([BLACK, OTHER, (9, 90, 200)], [0, 1, 2], "1 of 1 label maps .* colours that cityscapes19 does not have"),
        ([(128, 64, 130), OTHER, (9, 90, 200)], [0, 1, 2], "colours that cityscapes19 does not have"),
        (CITYSCAPES19.colors_rgb, [0, 10, 13], ""),
        ([SKY, ROAD, CAR], [0, 1, 2], ""),
        ([(i, i, i) for i in range(256)], [0, 10, 255], ""),
        ([*CITYSCAPES19.colors_rgb, *[OTHER] * 237], [0, 10, 255], ""),
    ],
)
def test_a_palette_of_other_colours_is_a_doubt(palette: Any, stored: list[int], doubt: str, tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(png(np.array([stored], np.uint8), 8, palette))
    found = doubts_of_files([file], CITYSCAPES19)
    assert len(found) == bool(doubt) and all(re.search(doubt, sentence) for sentence in found), found
    assert doubts_of_files([file], VOC_CLASSES) == [] or palette is not VOC


def test_palettes_that_fit_no_rule_are_refused() -> None:
    with pytest.raises(ImageError, match="index 0 has the colour of 'sky' of cityscapes19 beside colours of no class"):
        decode_label_image(png(np.array([[0, 1]]), 8, [SKY, OTHER]), CITYSCAPES19)
    with pytest.raises(ImageError, match="palette index 3; the palette has 2 colours"):
        decode_label_image(png(np.array([[0, 3]]), 8, [SKY, ROAD]), CITYSCAPES19)


def test_labels_in_jpeg_and_damaged_palettes_are_refused() -> None:
    with pytest.raises(ImageError, match="received a JPEG file; expected a PNG"):
        decode_label_image(cv2.imencode(".jpg", IDS)[1].tobytes(), CITYSCAPES19)
    with pytest.raises(ImageError, match=r"beginning with 424d.*; expected a PNG file"):
        decode_label_image(cv2.imencode(".bmp", IDS)[1].tobytes(), CITYSCAPES19)
    whole = bytearray(png(IDS % 3, 2, [SKY, ROAD, CAR]))
    whole[43] ^= 1  # in the palette
    with pytest.raises(ImageError, match="corrupt"):
        decode_label_image(bytes(whole), CITYSCAPES19)


@pytest.mark.parametrize("bits", [2, 8])
def test_training_and_bags_read_a_palette_alike(tmp_path: Path, bits: int) -> None:
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    _write(tmp_path / "images" / "a.png", IMAGE)
    (tmp_path / "labels" / "a.png").write_bytes(png(np.array([[0, 1, 2], [2, 1, 0]]), bits, [SKY, ROAD, CAR]))
    (frame,) = open_frames(tmp_path)
    samples = PairedFolder(tmp_path / "images", tmp_path / "labels", CITYSCAPES19)
    for ids in (frame.labels, samples[0].labels, samples.matching("a")[0].labels):
        assert ids is not None and ids.tolist() == [[10, 0, 13], [13, 0, 10]]
    assert samples.in_class_set(CAMVID11)[0].labels.tolist() == [[0, 3, 8], [8, 3, 0]]


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (
            np.zeros((2, 3, 3), np.uint8),
            r"a\.png are uint8 \(2, 3, 3\); expected class ids, .* not colours",
        ),
        (np.zeros((2, 3), np.uint16), r"a\.png are uint16 \(2, 3\); expected class ids"),
    ],
)
def test_colours_and_16_bits_are_refused(tmp_path: Path, labels: np.ndarray, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        read_label_map(_write(tmp_path / "a.png", labels), CITYSCAPES19)


def test_a_file_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.png", IDS)
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(ValueError, match=r"a\.png cannot be read: .*cut short"):
        read_label_map(path, CITYSCAPES19)
    with pytest.raises(FileNotFoundError):
        read_label_map(tmp_path / "missing.png", CITYSCAPES19)


def test_ids_are_checked_in_the_class_set() -> None:
    assert checked_labels(IDS, IMAGE, CITYSCAPES19, "a") is IDS
    void = np.array([[0, 10, 11], [255, 5, 7]], np.uint8)
    found = checked_labels(void, IMAGE, CAMVID11, "a")
    assert found is not None and found.tolist() == [[0, 10, 255], [255, 5, 7]]
    with pytest.raises(ValueError, match=r"labels a hold the ids \[18\]; camvid11 has 0-10 and 255"):
        checked_labels(IDS, IMAGE, CAMVID11, "a")
    with pytest.raises(ValueError, match=r"labels a are \(2, 3\), their image is \(4, 3\)"):
        checked_labels(IDS, np.zeros((4, 3, 3), np.uint8), CITYSCAPES19, "a")
    assert checked_labels(None, IMAGE, CITYSCAPES19, "a") is None
