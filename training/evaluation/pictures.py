# SPDX-License-Identifier: Apache-2.0
"""Draw the results of a bundle on rendered night scenes that it was not trained on.

python -m training.evaluation.pictures nightlab_core/bundles/nightlab-lite --out docs/images

Writes results_good.jpg, results_bad.jpg and results_gain.jpg: the frames with the highest and the lowest IoU, and those
where the region level helps most. Real frames are not used, since their licences may not allow it.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from rich.progress import track

from nightlab_core.data.rendered.night import NightFrame, render_scene
from nightlab_core.data.rendered.shapes import CLASSES
from nightlab_core.labels import overlay, to_class_set
from nightlab_core.metrics import confusion_matrix, mean_iou
from nightlab_core.runtime.engines.engine import EngineOptions
from nightlab_core.runtime.engines.open import Engines
from nightlab_core.runtime.pipeline import Pipeline, Result
from training.command import exit_on_error

FIRST_SEED = 100_000  #: training recipes count their scenes from 0
PANEL_HW = (270, 480)


@dataclass(frozen=True)
class EvaluatedScene:
    """A scene, the bundle's result, and the mean IoU of the image level and of both levels."""

    seed: int
    frame: NightFrame
    result: Result
    image_labels: np.ndarray  #: uint8 (H, W) in the class set of the rendered labels
    labels: np.ndarray
    image_level: float
    both_levels: float


def evaluate_scene(pipeline: Pipeline, seed: int) -> EvaluatedScene:
    """Render a scene, segment it and evaluate the result."""
    frame = render_scene(seed, size_hw=(720, 1280))
    result = pipeline(frame.image_bgr)
    predicted = pipeline.bundle.class_set
    maps = [to_class_set(labels, predicted, CLASSES) for labels in (result.image_labels, result.labels)]
    first, second = (mean_iou(confusion_matrix(frame.labels, labels, len(CLASSES))) for labels in maps)
    return EvaluatedScene(seed, frame, result, maps[0], maps[1], first, second)


def sheet(scenes: list[EvaluatedScene]) -> np.ndarray:
    """One row a scene, uint8 (H, W, 3) BGR: frame with the regions, image level, both levels, ground truth."""
    rows = []
    for scene in scenes:
        picture = scene.frame.image_bgr.copy()
        for x0, y0, x1, y1 in scene.result.boxes_xyxy[scene.result.refined].round().astype(int).tolist():
            cv2.rectangle(picture, (x0, y0), (x1, y1), (0, 255, 255), 3)
        maps = (scene.image_labels, scene.labels, scene.frame.labels)
        panels = [picture, *(overlay(scene.frame.image_bgr, m, CLASSES, 0.7) for m in maps)]
        names = (
            f"scene {scene.seed}, {np.count_nonzero(scene.result.refined)} regions",
            f"image level, IoU {100 * scene.image_level:.1f}",
            f"both levels, IoU {100 * scene.both_levels:.1f}",
            "ground truth",
        )
        rows.append(cv2.hconcat([_named(p, n) for p, n in zip(panels, names, strict=True)]))
    return cv2.vconcat(rows)


def _named(panel: np.ndarray, name: str) -> np.ndarray:
    small = cv2.resize(panel, PANEL_HW[::-1], interpolation=cv2.INTER_AREA)
    small[:28] = small[:28] // 3
    cv2.putText(small, name, (8, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.55, (255, 255, 255), 1, cv2.LINE_AA)
    return small


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="folder of the pictures")
    parser.add_argument("--scenes", type=int, default=40, help="scenes to choose from (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=3, help="scenes a picture (default: %(default)s)")
    arguments = parser.parse_args()
    with exit_on_error():
        if not 1 <= arguments.rows <= arguments.scenes:
            raise ValueError(
                f"{arguments.rows} rows of {arguments.scenes} scenes; expected at least 1 and no more rows"
            )
        arguments.out.mkdir(parents=True, exist_ok=True)
        options = EngineOptions(precision="float32")
        seeds = range(FIRST_SEED, FIRST_SEED + arguments.scenes)
        with Engines.open(arguments.bundle, options) as engines, Pipeline(engines) as pipeline:
            scenes = [evaluate_scene(pipeline, seed) for seed in track(seeds, "scenes")]
        orders = {
            "good": sorted(scenes, key=lambda s: -s.both_levels),
            "bad": sorted(scenes, key=lambda s: s.both_levels),
            "gain": sorted(scenes, key=lambda s: s.image_level - s.both_levels),
        }
        for name, ordered in orders.items():
            path = arguments.out / f"results_{name}.jpg"
            cv2.imwrite(str(path), sheet(ordered[: arguments.rows]), [cv2.IMWRITE_JPEG_QUALITY, 85])
            print(path)


if __name__ == "__main__":
    main()
