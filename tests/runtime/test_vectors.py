# SPDX-License-Identifier: Apache-2.0
"""This runtime computes the golden vectors in docs/data/bundle_vectors.json, which test other runtimes.

To write the expected values again after a change of the method: python tests/runtime/test_vectors.py
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from nightlab_core.runtime import regions as rg
from nightlab_core.runtime.crops import size_of, wanted_scale

PATH = Path(__file__).parents[2] / "docs" / "data" / "bundle_vectors.json"
Case = dict[str, Any]


def _array(case: Case, name: str, dtype: Any, *shape: int) -> np.ndarray:
    return np.array(case[name], dtype).reshape(shape)


def _regions(case: Case) -> rg.Regions:
    count = len(case["scores"])
    height, width = case["region_hw"]
    return rg.Regions(
        _array(case, "boxes", np.float32, count, 4),
        _array(case, "scores", np.float32, count),
        _array(case, "windows", np.int64, count, 4),
        _array(case, "region_labels", np.uint8, count, height, width),
        _array(case, "region_confidence", np.uint8, count, height, width),
    )


def network_size(case: Case) -> Case:
    return {"network_hw": list(rg.network_size_hw(case["frame_hw"], case["input_hw"], case["multiple"]))}


def suppression(case: Case) -> Case:
    boxes, scores = _array(case, "boxes", np.float32, -1, 4), np.array(case["scores"], np.float32)
    return {"kept": rg.non_maximum_suppression(boxes, scores, case["iou"], case["limit"]).tolist()}


def windows(case: Case) -> Case:
    boxes, frame_hw = _array(case, "boxes", np.float32, -1, 4), tuple(case["frame_hw"])
    return {
        "box_pixels": rg.box_pixels(boxes, frame_hw).tolist(),
        "windows": rg.context_boxes(boxes, frame_hw, case["margin"], case["aspect"]).tolist(),
    }


def crop_size(case: Case) -> Case:
    sizes_hw = [tuple(size) for size in case["sizes_hw"]]
    scale = wanted_scale(tuple(case["image_hw"]), tuple(case["frame_hw"]))
    return {"sizes_hw": [list(sizes_hw[size_of(np.array(w), sizes_hw, scale)]) for w in case["windows"]]}


def crop(case: Case) -> Case:
    frame = _array(case, "frame_bgr", np.uint8, *case["frame_hw"], 3)
    windows = _array(case, "windows", np.int64, -1, 4)
    return {"crops": rg.crop_and_enlarge(frame, windows, tuple(case["region_hw"])).reshape(len(windows), -1).tolist()}


def context(case: Case) -> Case:
    probabilities = np.array(case["probabilities"], np.uint8)
    windows = _array(case, "windows", np.int64, -1, 4)
    found = rg.crop_probabilities(probabilities, windows, tuple(case["frame_hw"]), tuple(case["size_hw"]))
    return {"context": found.tolist()}


def resize(case: Case) -> Case:
    values, size_hw = np.array(case["values"], np.uint8), tuple(case["size_hw"])
    return {
        "as_labels": rg.resize_labels(values, size_hw).tolist(),
        "as_confidence": rg.resize_image(values, size_hw).tolist(),
    }


def merge(case: Case) -> Case:
    labels, confidence = np.array(case["labels"], np.uint8), np.array(case["confidence"], np.uint8)
    regions = _regions(case)
    found: Case = {"inner_windows": rg.inner_windows(regions, labels.shape).tolist()}
    for name, paste in rg.MERGES.items():
        merged, certainty = paste(labels, confidence, regions)
        found[name] = {"labels": merged.tolist(), "confidence": certainty.tolist()}
    return found


STEPS: dict[str, Callable[[Case], Case]] = {
    step.__name__: step for step in (network_size, suppression, windows, crop_size, crop, context, resize, merge)
}


@pytest.mark.parametrize("step", STEPS)
def test_the_runtime_reproduces_the_golden_vectors(step: str) -> None:
    if step in ("resize", "merge") and not hasattr(cv2, "imdecodemulti"):
        pytest.skip("OpenCV before 4.10 takes the other one of two nearest pixels")
    cases = json.loads(PATH.read_text(encoding="utf-8"))[step]
    assert len(cases) >= 2
    for case in cases:
        assert STEPS[step](case["input"]) == case["expected"], case["name"]


def test_the_file_of_golden_vectors_is_small_and_has_only_known_steps() -> None:
    assert PATH.stat().st_size < 20_000
    assert set(json.loads(PATH.read_text(encoding="utf-8"))) == {"format", *STEPS}


def write() -> None:
    """Compute the expected values of every case again, and write the file with one case a line."""
    vectors = json.loads(PATH.read_text(encoding="utf-8"))
    lines = [f'{{\n"format": {vectors["format"]},']
    for step, compute in STEPS.items():
        cases = [{**case, "expected": compute(case["input"])} for case in vectors[step]]
        rows = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases)
        lines.append(f'"{step}": [\n{rows}\n]' + ("," if step != list(STEPS)[-1] else "\n}"))
    PATH.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write()
