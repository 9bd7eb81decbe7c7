# SPDX-License-Identifier: Apache-2.0
"""Label maps are matched to images by stamp, and doubt about them is said with numbers."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from class_sets import CITYSCAPES19

from nightlab_core.data.bags.label_pairs import TOLERANCE_NS, pair_labels
from nightlab_core.data.bags.reader import Bag
from nightlab_core.data.bags.write import BagWriter
from nightlab_core.data.datasets.catalogue import plain_folder
from nightlab_core.data.frames import open_frames
from nightlab_core.data.label_doubts import label_doubts, spread
from nightlab_core.data.label_maps import checked_labels

MS, STEP_MS = 1_000_000, 100
IMAGES, LABELS = "/camera/image_raw", "/camera/labels"
SIZE = (4, 6)


def stamps(*values_ms: float) -> np.ndarray:
    return (np.asarray(values_ms) * MS).astype(np.int64)


@pytest.mark.parametrize(
    ("images_ms", "labels_ms", "places", "numbers"),
    [
        ([100, 200, 300], [300, 100], {0: 1, 2: 0}, (2, 0, 0, 0)),
        ([100, 200, 300], [104, 197, 326], {0: 0, 1: 1}, (0, 2, 1, 0)),
        ([100, 110, 120], [112], {1: 0}, (0, 1, 0, 0)),  # a third of the interval, less than TOLERANCE_NS
        ([100, 110, 120], [105], {}, (0, 0, 1, 0)),
        ([100, 200], [98, 103, 200], {1: 2}, (1, 0, 0, 2)),  # two claim the first image
        ([100, 200, 200], [200, 100, 200], {0: 1, 1: 0, 2: 2}, (3, 0, 0, 0)),  # repeated, as many of both
        ([100, 200, 200], [200], {}, (0, 0, 0, 1)),
        ([300, 100, 200], [200, 300], {0: 1, 2: 0}, (2, 0, 0, 0)),
        ([100, -1], [-1, 100], {0: 1}, (1, 0, 0, 0)),
        ([100], [124], {0: 0}, (0, 1, 0, 0)),
        ([], [100], {}, (0, 0, 1, 0)),
    ],
)
def test_label_maps_are_matched_by_stamp(
    images_ms: list[float], labels_ms: list[float], places: dict[int, int], numbers: tuple[int, ...]
) -> None:
    pairs = pair_labels(stamps(*images_ms), stamps(*labels_ms))
    assert pairs.places == places
    assert (pairs.exact, pairs.near, pairs.unmatched, pairs.ambiguous) == numbers
    assert pairs.tolerance_ns <= TOLERANCE_NS


def write_bag(path: Path, label_ms: list[float], image_stamps_ms: list[float] | None = None) -> Path:
    """Write images of the value i and label maps of the id i, recorded in the order of the stamps 100, 200, ... ms."""
    with BagWriter(path, classes="cityscapes19") as bag:
        for index, late_ms in enumerate(label_ms):
            time_ms = STEP_MS * (index + 1)
            stamp_ms = time_ms if image_stamps_ms is None else image_stamps_ms[index]
            label_stamp_ms = stamp_ms + late_ms if stamp_ms else 0
            image = np.full((*SIZE, 3), index, np.uint8)
            bag.image(IMAGES, image, int(stamp_ms * MS), "c", time_ns=time_ms * MS)
            bag.image(LABELS, image[..., 0], int(label_stamp_ms * MS), "c", time_ns=int((time_ms + late_ms) * MS))
    return path


@pytest.mark.parametrize("image_stamps_ms", [None, [0] * 4, [7, 5, 5, 300]], ids=["good", "zero", "repeated"])
def test_labels_that_miss_their_images_by_milliseconds_belong_to_them(
    image_stamps_ms: list[float] | None, tmp_path: Path
) -> None:
    late_ms = [0.0] * 4 if image_stamps_ms and image_stamps_ms[0] else [3.0, 0.0, -2.0, 4.0]
    path = write_bag(tmp_path / "bag", late_ms, image_stamps_ms)
    with Bag(path) as bag:
        assert [int(f.labels[0, 0]) for f in bag.frames(0, 4, CITYSCAPES19) if f.labels is not None] == [0, 1, 2, 3]
        assert (bag.problems, bag.num_labels) == ([], 4)
        said = [note for note in bag.notes if "were matched" in note]
    assert len(said) == (0 if late_ms == [0.0] * 4 else 1)
    assert all("of 4 label maps 1 have the stamp of an image, 3 were matched to one within 25 ms" in s for s in said)


def test_labels_without_an_image_are_counted(tmp_path: Path) -> None:
    with Bag(write_bag(tmp_path / "bag", [0, 0, 45, 50])) as bag:
        assert [f.labels is not None for f in bag.frames(0, 4, CITYSCAPES19)] == [True, True, False, False]
        (problem,) = bag.problems
    assert "of 4 label maps 2 have the stamp of an image, 0 were matched" in problem
    assert "2 match no image and 0 more than one" in problem


def maps(*ids: int, count: int = 3) -> list[np.ndarray]:
    return [np.resize(np.array(ids, np.uint8), SIZE)] * count


@pytest.mark.parametrize(
    ("label_maps", "words"),
    [
        (maps(0, 255), r"3 label maps .* 0 \('road'\) and 255 \(unlabelled\), as in a binary mask"),
        (maps(0, 1), r"0 \('road'\) and 1 \('sidewalk'\), as in a binary mask"),
        (maps(1, 5, 13, 255), r"3 label maps .* id 0 \('road'\); they hold 1 to 13: .* counted from 1"),
        (
            maps(7, 8, 11, 17),
            r"3 label maps .* \(7, 8, 11, 17\) are also ids of \*_labelIds\.png, and none is 0 \('road'\)",
        ),
    ],
)
def test_doubtful_ids_are_named(label_maps: list[np.ndarray], words: str) -> None:
    (doubt,) = label_doubts(label_maps, CITYSCAPES19, [])
    assert re.search(words, doubt), doubt


@pytest.mark.parametrize("label_maps", [maps(0, 1, 2), maps(0, 10, 255), maps(2, 8), maps(255), []])
def test_usual_ids_raise_no_doubt(label_maps: list[np.ndarray]) -> None:
    assert label_doubts(label_maps, CITYSCAPES19, []) == []


@pytest.mark.parametrize("first", [0, 1], ids=["with_background", "without"])
def test_ids_counted_from_1_up_to_the_last_class_are_refused_by_name(first: int) -> None:
    labels = np.resize(np.arange(first, 20, dtype=np.uint8), (4, 5))
    with pytest.raises(ValueError, match=r"ids \[19\] \(are the ids counted from 1\?\); cityscapes19 has 0-18"):
        checked_labels(labels, np.zeros((4, 5, 3), np.uint8), CITYSCAPES19, "a.png")


def test_doubts_are_notes_of_folders_and_bags(tmp_path: Path) -> None:
    for kind, pixels in (("images", np.zeros((*SIZE, 3), np.uint8)), ("labels", maps(0, 255)[0])):
        (tmp_path / kind).mkdir()
        assert cv2.imwrite(str(tmp_path / kind / "a.png"), pixels)
    (note,) = open_frames(tmp_path).notes
    assert "of 1 label maps that were examined" in note and "binary mask" in note
    with BagWriter(tmp_path / "bag") as bag:
        bag.image(IMAGES, np.zeros((*SIZE, 3), np.uint8), 5, "c", time_ns=5)
        bag.image(LABELS, maps(0, 1)[0], 5, "c", time_ns=5)
    (note,) = open_frames(tmp_path / "bag").notes
    assert "binary mask" in note


@pytest.mark.parametrize("orientation", [1, 3])
def test_images_that_viewers_turn_are_a_note_in_folders_and_in_training(
    orientation: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    exif = b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0" + bytes([orientation]) + bytes(6)
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
    for name, block in (("a", b""), ("b", exif)):
        data = cv2.imencode(".jpg", np.zeros((*SIZE, 3), np.uint8))[1].tobytes()
        segment = b"\xff\xe1" + (len(block) + 2).to_bytes(2, "big") + block
        (tmp_path / "images" / f"{name}.jpg").write_bytes(data[:2] + segment + data[2:])
        assert cv2.imwrite(str(tmp_path / "labels" / f"{name}.png"), maps(0, 1, 2)[0])
    expected = ["1 of 2 images that were examined, such as b.jpg, have an orientation in EXIF"] * (orientation != 1)
    plain_folder(tmp_path)
    for said in (open_frames(tmp_path).notes, [record.getMessage() for record in caplog.records]):
        assert len(said) == len(expected) and all(text in line for text, line in zip(expected, said, strict=True))


def test_samples_are_spread() -> None:
    assert spread(list(range(100)), 4) == [0, 25, 50, 75]
    assert spread([1, 2]) == [1, 2]
