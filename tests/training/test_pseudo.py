# SPDX-License-Identifier: Apache-2.0
"""Labels that a bundle gives to unlabelled frames."""

from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("torch")

from pipelines import open_pipeline

from nightlab_core.data.datasets.catalogue import plain_folder
from nightlab_core.data.rendered import night
from tests.support.tiny_bundle import write_tiny_bundle
from training.stages.pseudo import label_folder, read_both_ways, thresholds


def test_thresholds_keep_the_most_confident_pixels_of_every_class() -> None:
    counts = np.zeros((256, 256), np.int64)
    counts[3, [100, 150, 200, 250]] = 10  # half of 40 pixels: those at 200 and more
    counts[5, 40] = 7  # all alike: all stay
    counts[7, 255] = 100
    counts[7, 240] = 1  # the median is 255, but the ceiling is always enough
    least = thresholds(counts, 0.5, 230)
    assert (least[3], least[5], least[7]) == (200, 40, 230)
    assert thresholds(counts, 1.0, 230)[3] == 100


def test_pixels_that_the_mirror_image_contradicts_are_unlabelled(tmp_path: Path) -> None:
    with open_pipeline(write_tiny_bundle(tmp_path / "bundle"), engine="onnxruntime") as pipeline:
        frame = np.ascontiguousarray(night.render_scene(3, size_hw=(96, 160)).image_bgr)
        labels, confidence = read_both_ways(pipeline, frame)
        plain, mirrored = pipeline(frame).labels, pipeline(np.ascontiguousarray(frame[:, ::-1])).labels[:, ::-1]
        assert np.array_equal(labels == 255, (plain != mirrored) | (plain == 255))
        assert np.array_equal(labels[plain == mirrored], plain[plain == mirrored])
        assert not confidence[plain != mirrored].any()


def test_the_written_folder_opens_as_a_data_set(tmp_path: Path) -> None:
    (tmp_path / "frames").mkdir()
    for i in range(2):
        cv2.imwrite(str(tmp_path / "frames" / f"{i}.png"), night.render_scene(i, size_hw=(96, 160)).image_bgr)
    with open_pipeline(write_tiny_bundle(tmp_path / "bundle"), engine="onnxruntime") as pipeline:
        images = sorted((tmp_path / "frames").iterdir())
        shares = label_folder(pipeline, images, tmp_path / "out", 0.5, 230)
        with pytest.raises(ValueError, match="holds labels of an earlier run"):  # of frames that may be left out now
            label_folder(pipeline, images[:1], tmp_path / "out", 0.5, 230)
        with pytest.raises(ValueError, match="equal stem"):
            label_folder(pipeline, [*images, images[0].with_suffix(".jpg")], tmp_path / "other", 0.5, 230)
    assert shares.sum() == pytest.approx(1)
    samples = plain_folder(tmp_path / "out")
    assert [s.name for s in samples] == ["0", "1"] and samples[0].labels.shape == (96, 160)
