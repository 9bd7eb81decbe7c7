# SPDX-License-Identifier: Apache-2.0
"""The shipped bundle: size, card, agreement with its checkpoint, and accuracy on real frames."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from class_sets import CITYSCAPES19
from pipelines import open_pipeline

from nightlab_core.data.datasets.catalogue import open_dataset
from nightlab_core.data.rendered import night
from nightlab_core.metrics import confusion_matrix, iou
from nightlab_core.runtime.bundle import default_bundle, load_bundle

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("NIGHTLAB_DATA", ROOT.parent / "shared" / "data"))
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the real images are not here; set NIGHTLAB_DATA")


def test_it_is_small_and_whole() -> None:
    bundle = load_bundle(default_bundle())
    assert bundle.class_set is CITYSCAPES19
    assert sum(p.stat().st_size for p in default_bundle().iterdir()) < 15e6
    assert bundle.manifest.trained_on and "research" in bundle.manifest.licence


def test_its_card_gives_the_figures_of_its_manifest() -> None:
    card = (default_bundle() / "MODEL_CARD.md").read_text(encoding="utf-8")
    accuracy = load_bundle(default_bundle()).manifest.accuracy
    assert "camvid_val_both_levels_miou" in accuracy
    missing = [f"{name} {value:.2f}" for name, value in accuracy.items() if f"{value:.2f}" not in card]
    assert not missing, f"the card lacks {missing}"


def _parity_frames() -> list[np.ndarray]:
    if DATA.is_dir():
        paths = [*sorted((DATA / "camvid" / "val" / "images").iterdir())[::60]]
        paths += sorted((DATA / "nightcoarse" / "val" / "images").iterdir())[::20]
        return [cv2.imread(str(p)) for p in paths]  # type: ignore[misc]
    return [night.render_scene(i, size_hw=(360, 480)).image_bgr for i in range(3)]


def test_its_engines_agree_with_its_checkpoint() -> None:
    """On real frames where they are, on rendered ones elsewhere."""
    pytest.importorskip("torch")
    from nightlab_core.export.parity import check_parity
    from nightlab_core.models.engine import open_checkpoint

    engines = open_checkpoint(ROOT / "checkpoints" / "nightlab-lite.pt")
    rows = check_parity(engines, default_bundle(), _parity_frames())
    assert len(rows) == 6 and all(r.passed for r in rows), rows


def test_its_masks_lie_where_the_picture_is() -> None:
    """A mask that lies aside would agree best with its mirror image's mask where that is moved by twice as much."""
    with open_pipeline(default_bundle(), precision="float32") as pipeline:
        agreement = dict.fromkeys((-2, -1, 0, 1, 2), 0.0)
        for frame in _parity_frames():
            labels = pipeline(frame).labels
            mirrored = pipeline(np.ascontiguousarray(frame[:, ::-1])).labels[:, ::-1]
            for shift in agreement:
                agreement[shift] += (labels == np.roll(mirrored, shift, axis=1))[:, 2:-2].mean()
    assert max(agreement, key=lambda shift: agreement[shift]) == 0, agreement


@needs_data
@pytest.mark.data
@pytest.mark.skipif(not hasattr(cv2, "imdecodemulti"), reason="OpenCV is older than 4.10, and the frames are WebP")
def test_it_sees_road_car_and_pole_at_dusk() -> None:
    with open_pipeline(default_bundle()) as pipeline:
        samples, _ = open_dataset("camvid", DATA / "camvid", "test", "0001TP_*", classes=CITYSCAPES19)
        matrix = np.zeros((19, 20), np.int64)
        for i in range(0, len(samples), 6):
            matrix += confusion_matrix(samples[i].labels, pipeline(samples[i].image_bgr).labels, 19)
    seen = dict(zip(CITYSCAPES19.names, iou(matrix), strict=True))
    # Far below what it does, far above what a blind network gets.
    assert seen["road"] > 0.85 and seen["car"] > 0.6 and seen["pole"] > 0.05, seen
