# SPDX-License-Identifier: Apache-2.0
"""Which windows are read, and at which size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from nightlab_core.config import replace as replaced
from nightlab_core.runtime.bundle import Bundle, load_bundle
from nightlab_core.runtime.crops import CropPlan, plan_crops, size_of, wanted_scale
from nightlab_core.runtime.engines.engine import TensorSpec
from nightlab_core.runtime.engines.open import Engines
from nightlab_core.runtime.pipeline import Pipeline
from nightlab_core.runtime.regions import context_boxes
from nightlab_core.runtime.settings import PipelineSettings

pytest.importorskip("onnx")
from fake_engines import FakeEngine, black, known_boxes, plain_maps

FRAME_HW = (480, 640)
SIZES_HW = ((64, 64), (128, 128), (256, 256))


def plan(boxes: Any, sizes_hw: Any = SIZES_HW, *, share: bool = True, gains: Any = None) -> CropPlan:
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    gains = np.linspace(1, 0.5, len(boxes)) if gains is None else np.array(gains)
    return plan_crops(boxes, gains, FRAME_HW, 0.0, sizes_hw, 1.0, share=share)


@pytest.mark.parametrize(("side", "size"), [(8, 0), (64, 0), (65, 1), (128, 1), (129, 2), (256, 2), (400, 2)])
def test_a_window_is_read_at_the_smallest_size_that_holds_it(side: int, size: int) -> None:
    assert size_of(np.array([0, 0, side, side]), SIZES_HW, 1.0) == size
    found = plan([[100, 40, 100 + side, 40 + side]])
    assert found.sizes.tolist() == [size]
    assert plan([[100, 40, 100 + side, 40 + side]], SIZES_HW[-1:]).sizes.tolist() == [0]


def test_the_scale_is_relative_to_what_the_image_level_reads() -> None:
    assert wanted_scale((480, 640), (480, 640)) == pytest.approx(2.2)
    assert wanted_scale((480, 640), (960, 1280)) == pytest.approx(1.1)
    assert wanted_scale((480, 640), (240, 320)) == pytest.approx(4.4)
    window = np.array([[10, 10, 60, 60]], np.float32)  # 110 and 55 pixels of a crop
    found = [
        plan_crops(window, np.ones(1), FRAME_HW, 0.0, SIZES_HW, scale, share=False).sizes[0] for scale in (2.2, 1.1)
    ]
    assert found == [1, 0]


def test_windows_apart_keep_their_own_crops_in_order() -> None:
    boxes = np.array([[0, 0, 100, 100], [200, 0, 230, 30], [90, 90, 190, 190]], np.float32)
    found = plan(boxes)
    np.testing.assert_array_equal(found.windows, context_boxes(boxes, FRAME_HW, 0.0, 1.0))
    assert found.crop_of.tolist() == [0, 1, 2] and found.sizes.tolist() == [1, 0, 1]
    np.testing.assert_array_equal(found.gains, np.linspace(1, 0.5, 3))


def test_windows_that_overlap_strongly_are_read_once() -> None:
    found = plan([[200, 200, 250, 250], [10, 10, 60, 60], [20, 20, 70, 70]])
    assert found.crop_of.tolist() == [1, 0, 0]  # 0.75 + 0.5 is more than 1
    assert found.gains.tolist() == [1.25, 1.0]
    assert found.windows.tolist() == [[10, 10, 70, 70], [200, 200, 250, 250]]
    assert plan([[200, 200, 250, 250], [10, 10, 60, 60], [20, 20, 70, 70]], share=False).crop_of.tolist() == [0, 1, 2]


def test_a_small_window_inside_a_large_one_keeps_its_own_crop_if_no_crop_holds_the_large_one() -> None:
    assert plan([[0, 0, 300, 300], [100, 100, 120, 120]]).crop_of.tolist() == [0, 1]
    assert plan([[0, 0, 100, 100], [40, 40, 60, 60]]).crop_of.tolist() == [0, 0]


def test_windows_stay_apart_if_one_crop_would_take_more_pixels() -> None:
    boxes = [[0, 0, 64, 64], [0, 30, 64, 94]]
    assert plan(boxes, ((64, 64), (256, 256))).crop_of.tolist() == [0, 1]
    assert plan(boxes, ((256, 256),)).crop_of.tolist() == [0, 0]


def test_a_plan_of_no_boxes_is_empty() -> None:
    found = plan([])
    assert found.windows.shape == (0, 4) and len(found.sizes) == len(found.gains) == len(found.crop_of) == 0


def two_sizes(tiny_bundle: Path, **region: Any) -> Bundle:
    """The tiny bundle, whose crops are 32x48 or 64x96."""
    bundle = load_bundle(tiny_bundle)
    files = bundle.manifest.engines
    region = {"further_hw": ((64, 96),), **region}
    return replace(
        bundle, manifest=replaced(bundle.manifest, engines=replaced(files, region=replaced(files.region, **region)))
    )


@pytest.mark.parametrize(
    ("region", "message"),
    [
        ({"further_hw": ((64, 64),)}, "another aspect"),
        ({"multiple": 16, "further_hw": ((40, 60),)}, "not a multiple of 16"),
        ({"further_hw": ((64, 96), (96, 144), (128, 192), (160, 240))}, "at most 3"),
    ],
)
def test_sizes_that_do_not_fit_together_are_refused(tiny_bundle: Path, region: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        two_sizes(tiny_bundle, **region)


def engines_of(bundle: Bundle, crop_hw: tuple[int | None, int | None]) -> Engines:
    region = FakeEngine("region", plain_maps(2, 200))
    region.inputs = {"crops": TensorSpec(np.dtype(np.uint8), (None, *crop_hw, 3))}
    boxes = np.array([[0, 0, 0.5, 0.5], [0.6, 0.6, 0.63, 0.63], [0.8, 0.1, 0.82, 0.13]])
    return Engines(bundle, FakeEngine("image", plain_maps(1, 100)), FakeEngine("hardness", known_boxes(
        boxes, np.array([0.9, 0.8, 0.7]))), region)  # fmt: skip


def test_each_size_is_read_in_one_call_and_all_are_merged(tiny_bundle: Path) -> None:
    engines = engines_of(two_sizes(tiny_bundle), (None, None))
    with Pipeline(engines) as pipeline:
        result = pipeline(black(256, 384))
        assert sorted(engines.region.received) == [(1, 64, 96, 3), (2, 32, 48, 3)]  # type: ignore[attr-defined]
        assert result.refined.all()
        assert [result.labels[y, x] for y, x in ((60, 60), (157, 236), (29, 311))] == [2, 2, 2]
        assert [costs.estimate_ms(1) > 0 for costs in pipeline.budget.reading] == [True, True]


def test_an_engine_of_one_size_reads_that_size(tiny_bundle: Path) -> None:
    engines = engines_of(two_sizes(tiny_bundle), (32, 48))
    with Pipeline(engines) as pipeline:
        assert pipeline(black(256, 384)).refined.all()
    assert engines.region.received == [(3, 32, 48, 3)]  # type: ignore[attr-defined]


def test_every_size_is_prepared(tiny_bundle: Path) -> None:
    engines = engines_of(two_sizes(tiny_bundle), (None, None))
    engines.prepare((256, 384))
    sizes = [(32, 48), (64, 96)]
    expected = [(batch, *size, 3) for size in sizes for batch in range(1, 11)]
    assert engines.region.prepared == expected  # type: ignore[attr-defined]


def test_boxes_that_share_a_crop_get_the_labels_of_the_one_call(tiny_bundle: Path) -> None:
    engines = engines_of(load_bundle(tiny_bundle), (32, 48))
    boxes = np.array([[0.10, 0.10, 0.12, 0.12], [0.105, 0.11, 0.125, 0.13], [0.8, 0.8, 0.82, 0.82]])
    engines.hardness.answer = known_boxes(boxes, np.array([0.9, 0.8, 0.7]))  # type: ignore[attr-defined]
    for merge in ("replace", "confident"):
        engines.region.received.clear()  # type: ignore[attr-defined]
        with Pipeline(engines, PipelineSettings(share_windows=True, merge=merge)) as pipeline:
            result = pipeline(black(400, 600))
        assert engines.region.received == [(2, 32, 48, 3)]  # type: ignore[attr-defined]
        assert result.refined.tolist() == [True] * 3
        assert [result.labels[y, x] for y, x in ((42, 63), (50, 72), (324, 486))] == [2, 2, 2]
