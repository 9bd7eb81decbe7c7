# SPDX-License-Identifier: Apache-2.0
"""Augmentation: image and labels move together, and one generator decides everything."""

import cv2
import numpy as np
import pytest

from nightlab_core.data import transforms


def _pair(height: int = 48, width: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """An image that shows its own labels: value 10 x id."""
    labels = (np.indices((height, width)).sum(0) // 16 % 9).astype(np.uint8)
    return np.repeat(labels[..., None] * 10, 3, 2), labels


@pytest.mark.parametrize("scale", [0.5, 1.0, 1.7])
def test_image_and_labels_stay_together(scale: float) -> None:
    image, labels = transforms.scale_crop_flip(*_pair(), (40, 56), scale, np.random.default_rng(3))
    assert image.shape == (40, 56, 3) and labels.shape == (40, 56)
    known = labels != 255
    close = np.abs(image[..., 0].astype(int) - labels.astype(int) * 10) <= 5
    assert close[known].mean() > 0.8  # the image is blended at class borders, the labels are not
    assert (image[~known] == 0).all()


def test_pixels_outside_the_image_are_unlabelled() -> None:
    image, labels = transforms.crop_pair(*_pair(8, 8), (12, 10), np.random.default_rng(0))
    assert image.shape == (12, 10, 3)
    assert (labels[8:] == 255).all() and (labels[:, 8:] == 255).all() and (labels[:8, :8] != 255).all()


def test_both_mirrorings_occur() -> None:
    image, labels = _pair()
    results = {
        transforms.scale_crop_flip(image, labels, labels.shape, 1.0, np.random.default_rng(s))[1].tobytes()
        for s in range(8)
    }
    assert results == {labels.tobytes(), labels[:, ::-1].tobytes()}


@pytest.mark.parametrize("change", [transforms.photometric, transforms.darken])
def test_one_seed_one_result(change: object) -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    first, again, other = (change(image, np.random.default_rng(s)) for s in (5, 5, 6))  # type: ignore[operator]
    assert first.dtype == np.uint8 and first.shape == image.shape
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_darkening_darkens() -> None:
    image = np.random.default_rng(0).integers(60, 256, (48, 64, 3), np.uint8)
    means = [transforms.darken(image, np.random.default_rng(s)).mean() for s in range(60)]
    assert max(means) < image.mean() * 0.75 and np.median(means) < 70


@pytest.mark.skipif(not hasattr(cv2, "imdecodemulti"), reason="training needs OpenCV 4.10 or later")
@pytest.mark.parametrize("seed", range(25))
def test_darkening_takes_any_image_and_leaves_it_as_it_is(seed: int) -> None:
    rng = np.random.default_rng(seed)
    height, width, least = (int(rng.integers(*limits)) for limits in ((1, 40), (1, 60), (0, 256)))
    image = rng.integers(least, 256, (height, width, 3), np.uint8)
    image = image[:, ::-1] if seed % 2 else image  # a mirrored view, as crops are
    before = image.copy()
    dark = transforms.darken(image, np.random.default_rng(seed))
    assert dark.dtype == np.uint8 and dark.shape == image.shape
    assert np.array_equal(image, before)
    assert np.array_equal(dark, transforms.darken(image, np.random.default_rng(seed)))


def test_lamps_are_saturated_and_lights_differ_in_colour() -> None:
    image = np.full((88, 120, 3), 90, np.uint8)
    dark = [transforms.darken(image, np.random.default_rng(s)) for s in range(60)]
    assert 0.5 < np.mean([d.max() == 255 for d in dark]) < 0.95
    below = np.array([d[-20:].reshape(-1, 3).mean(0) for d in dark])
    red_to_blue = below[:, 2] / np.maximum(below[:, 0], 1)
    assert red_to_blue.min() < 0.9 and red_to_blue.max() > 1.5
    assert np.median([d[:20].mean() / max(d[-20:].mean(), 1) for d in dark]) < 0.8  # the sky is darker than the road


def test_a_crop_holds_the_wanted_class_wherever_it_is() -> None:
    image = np.zeros((60, 90, 3), np.uint8)
    labels = np.zeros((60, 90), np.uint8)
    labels[57, 88] = 5
    rng = np.random.default_rng(0)
    corners = set()
    for _ in range(30):
        _, cropped = transforms.crop_pair(image, labels, (24, 32), rng, [5])
        assert cropped.shape == (24, 32) and (cropped == 5).sum() == 1
        corners.add(tuple(np.argwhere(cropped == 5)[0]))
    assert len(corners) > 3  # not always at the same place
    without = [(transforms.crop_pair(image, labels, (24, 32), rng)[1] == 5).any() for _ in range(30)]
    assert not all(without)
    assert transforms.crop_pair(image, labels, (24, 32), rng, [7])[1].shape == (24, 32)  # there is none: any crop
